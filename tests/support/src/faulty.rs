//! An S3 endpoint that misbehaves as a plan says: real HTTP in front of a real [`Server`], whose answers are withheld, delayed, cut off,
//! falsified or replaced by refusals, request by request.
//!
//! HTTP is read and written by hand, with a thread for each connection, so that every byte is the plan's to withhold.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::s3::Server;

/// What kind of request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An object, whole.
    Put,
    /// A part of an object.
    Part,
    /// The beginning of a multipart upload.
    Begin,
    /// Its end, which makes the object visible.
    Complete,
    /// The end of one that is given up, or another deletion.
    Delete,
    /// The reading of an object.
    Get,
    /// A look at an object.
    Head,
    /// A listing.
    List,
}

/// A request that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many came before it.
    pub index: u64,
    /// What it asks for.
    pub kind: Kind,
    /// The path after the bucket, without the query; for a listing the prefix.
    pub key: String,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What it asks for.
    None,
    /// Nobody listens for so long, and connections that are open are reset.
    Refuse(Duration),
    /// The connection is reset before anything is done.
    ResetBefore,
    /// The connection is reset after it was done.
    ResetAfter,
    /// No answer comes, and nothing is done.
    Hang,
    /// It is done, and no answer comes.
    HangAfter,
    /// The connection is reset; it is done when so many more requests have come.
    Late(u64),
    /// A refusal by status, code and time to wait in seconds.
    Refusal(u16, &'static str, Option<u64>),
    /// The answer breaks off within its body, or within its head where it has none.
    Cut,
    /// The answer comes a few bytes at a time, over about so long.
    Drip(Duration),
    /// A listing leaves out what was put among the last so many requests.
    ListLags(u64),
    /// A listing leaves out its last object.
    ListOmits,
}

impl Fault {
    /// Its name, to count by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Refuse(_) => "refuse",
            Self::ResetBefore => "reset before",
            Self::ResetAfter => "reset after",
            Self::Hang => "hang",
            Self::HangAfter => "hang after",
            Self::Late(_) => "late",
            Self::Refusal(_, code, _) => code,
            Self::Cut => "cut",
            Self::Drip(_) => "drip",
            Self::ListLags(_) => "list lags",
            Self::ListOmits => "list omits",
        }
    }
}

/// Decides what happens to each request.
pub type Plan = Box<dyn FnMut(&Seen) -> Fault + Send>;

/// A plan for a whole life, chosen by a seed: what happens to a request depends on the seed, its number and its kind only.
///
/// Requests come in spells of fine and of foul weather, so that there are outages and not only single failures.
#[must_use]
pub fn seeded(seed: u64) -> Plan {
    /// Requests of a spell.
    const SPELL: u64 = 24;
    Box::new(move |seen| {
        let spell = fastrand::Rng::with_seed(seed ^ (seen.index / SPELL).wrapping_mul(0x9e37_79b9_7f4a_7c15)).u32(0..12);
        let mut random = fastrand::Rng::with_seed(seed.rotate_left(17) ^ seen.index.wrapping_mul(0xd134_2543_de82_ef95));
        let likely = match spell {
            0..5 => 4,
            5..9 => 30,
            _ => 75,
        };
        if random.u32(0..100) >= likely {
            return Fault::None;
        }
        match (spell, random.u32(0..100)) {
            // Spells of one kind: nobody there, too many requests, credentials that have expired, a clock that is wrong.
            (9, _) if random.u32(0..6) == 0 => Fault::Refuse(Duration::from_millis(random.u64(50..400))),
            (9, _) => Fault::ResetBefore,
            (10, _) => [
                Fault::Refusal(429, "TooManyRequests", Some(1)),
                Fault::Refusal(503, "SlowDown", Some(1)),
                Fault::Refusal(503, "SlowDown", None),
                Fault::Refusal(503, "ServiceUnavailable", None),
            ][random.usize(0..4)],
            (11, _) => match seen.index / SPELL % 4 {
                0 => Fault::Refusal(400, "ExpiredToken", None),
                1 => Fault::Refusal(403, "InvalidAccessKeyId", None),
                2 => Fault::Refusal(403, "RequestTimeTooSkewed", None),
                _ => Fault::Refusal(403, "AccessDenied", None),
            },
            (_, 0..4) => Fault::Refuse(Duration::from_millis(random.u64(20..150))),
            (_, 4..16) => Fault::ResetBefore,
            (_, 16..32) => Fault::ResetAfter,
            (_, 32..37) => Fault::Hang,
            (_, 37..42) => Fault::HangAfter,
            (_, 42..58) => Fault::Late(random.u64(1..12)),
            (_, 58..66) => Fault::Refusal(500, "InternalError", None),
            (_, 66..70) => Fault::Refusal(503, "SlowDown", [None, Some(1)][random.usize(0..2)]),
            (_, 70..84) => Fault::Cut,
            (_, 84..90) => Fault::Drip(Duration::from_millis(random.u64(20..700))),
            _ if seen.kind == Kind::List && random.bool() => Fault::ListLags(random.u64(1..40)),
            _ if seen.kind == Kind::List => Fault::ListOmits,
            _ => Fault::Cut,
        }
    })
}

struct Shared {
    target: SocketAddr,
    address: SocketAddr,
    /// `None` while connections are refused.
    listener: Mutex<Option<TcpListener>>,
    open: Mutex<HashMap<u64, TcpStream>>,
    state: Mutex<State>,
    accepted: AtomicU64,
    stopped: AtomicBool,
}

struct State {
    plan: Plan,
    /// Only what a listing is to hide is remembered when nothing else happens.
    requests: u64,
    kinds: BTreeMap<Kind, u64>,
    faults: BTreeMap<&'static str, u64>,
    refused_until: Option<Instant>,
    /// Requests that are done later: when so many have come.
    late: Vec<(u64, Vec<u8>)>,
    /// When each key was last put.
    put: HashMap<String, u64>,
    throttled: Option<Throttled>,
    /// Connections before this one are of a process that is gone.
    oldest_connection: u64,
    too_early: Vec<String>,
}

/// The store has asked to be left alone.
struct Throttled {
    until: Instant,
    /// Listings of several levels are asked for at once: those of the same burst are on their way already.
    burst: u32,
}

/// The endpoint; stops when dropped.
pub struct Endpoint {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Listens on a free port of 127.0.0.1 in front of a server.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn start(server: &Server, plan: Plan) -> io::Result<Self> {
        let host = server.endpoint();
        let target = host.trim_start_matches("http://").to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let listener = listen("127.0.0.1:0")?;
        let state = State {
            plan,
            requests: 0,
            kinds: BTreeMap::new(),
            faults: BTreeMap::new(),
            refused_until: None,
            late: Vec::new(),
            put: HashMap::new(),
            throttled: None,
            oldest_connection: 0,
            too_early: Vec::new(),
        };
        let shared = Arc::new(Shared {
            target,
            address: listener.local_addr()?,
            listener: Mutex::new(Some(listener)),
            open: Mutex::default(),
            state: Mutex::new(state),
            accepted: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let acceptor = std::thread::Builder::new().name("testkit-faulty".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept()
        })?;
        Ok(Self { shared, acceptor: Some(acceptor) })
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// Goes on by another plan.
    pub fn follow(&self, plan: Plan) {
        self.shared.state().plan = plan;
    }

    /// From here on every request gets what it asks for. Those that are to be done late still are.
    pub fn behave(&self) {
        self.follow(Box::new(|_| Fault::None));
        self.shared.state().refused_until = None;
        self.shared.state().throttled = None;
    }

    /// Another process comes: it does not know that the one before was asked to wait.
    pub fn forget_who_waits(&self) {
        let mut state = self.shared.state();
        (state.throttled, state.oldest_connection) = (None, self.shared.accepted.load(Ordering::SeqCst));
    }

    /// Does now what is to be done late; how many requests that was.
    pub fn release_late(&self) -> usize {
        let late = std::mem::take(&mut self.shared.state().late);
        for (_, request) in &late {
            self.shared.forward_late(request);
        }
        late.len()
    }

    /// How many requests have come.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.state().requests
    }

    /// How many of a kind have come.
    #[must_use]
    pub fn of_kind(&self, kind: Kind) -> u64 {
        self.shared.state().kinds.get(&kind).copied().unwrap_or(0)
    }

    /// How often each fault happened, by its name.
    #[must_use]
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.shared.state().faults.clone()
    }

    /// Requests that came before the time that a refusal had named.
    #[must_use]
    pub fn too_early(&self) -> Vec<String> {
        self.shared.state().too_early.clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.shared.reset_all();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(address: impl ToSocketAddrs) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Closes a connection so that the other side learns of it by a reset.
fn reset(stream: &TcpStream) {
    // Where that is not possible the connection just ends, which is a fault as well.
    let _ = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    let _ = stream.shutdown(Shutdown::Both);
}

/// What is left of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Next,
    Reset,
    Close,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn reset_all(&self) {
        for (_, stream) in lock(&self.open).drain() {
            reset(&stream);
        }
    }

    fn accept(self: Arc<Self>) {
        while !self.stopped() {
            let refusing = self.state().refused_until.is_some_and(|until| Instant::now() < until);
            {
                let mut listener = lock(&self.listener);
                if refusing {
                    *listener = None;
                } else if listener.is_none() {
                    *listener = listen(self.address).ok();
                }
            }
            if refusing {
                self.reset_all();
            }
            let accepted = lock(&self.listener).as_ref().map(TcpListener::accept);
            match accepted {
                Some(Ok((client, _))) => {
                    let id = self.accepted.fetch_add(1, Ordering::SeqCst);
                    let copy = client.set_nonblocking(false).and_then(|()| client.set_nodelay(true)).and_then(|()| client.try_clone());
                    let Ok(copy) = copy else { continue };
                    lock(&self.open).insert(id, copy);
                    let shared = Arc::clone(&self);
                    std::thread::spawn(move || shared.serve(id, client));
                }
                // Nobody has come, or nobody is let in.
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn serve(&self, id: u64, mut client: TcpStream) {
        // A connection that the client breaks off is the client's matter.
        let mut after = After::Next;
        while after == After::Next {
            after = match read_message(&mut client) {
                Ok(Some(request)) => self.answer(id, &mut client, &request).unwrap_or(After::Close),
                Ok(None) | Err(_) => After::Close,
            };
        }
        if after == After::Reset {
            reset(&client);
        }
        let _ = client.shutdown(Shutdown::Both);
        lock(&self.open).remove(&id);
    }

    fn answer(&self, connection: u64, client: &mut TcpStream, request: &Message) -> io::Result<After> {
        let fault = self.decide(request);
        let is_read = matches!(fault, Fault::ListLags(_) | Fault::ListOmits | Fault::None | Fault::Cut | Fault::Drip(_));
        match fault {
            Fault::Refuse(pause) => {
                self.state().refused_until = Some(Instant::now() + pause);
                return Ok(After::Reset);
            }
            Fault::ResetBefore => return Ok(After::Reset),
            Fault::Late(after) => {
                let mut state = self.state();
                let due = state.requests + after;
                state.late.push((due, request.bytes.clone()));
                return Ok(After::Reset);
            }
            Fault::Hang | Fault::HangAfter => {
                if fault == Fault::HangAfter {
                    self.forward(&request.bytes)?;
                }
                // Until the client has had enough.
                let mut rest = [0; 64];
                while matches!(client.read(&mut rest), Ok(1..)) {}
                return Ok(After::Close);
            }
            Fault::Refusal(status, code, retry_after) => {
                let answer = refusal(status, code, retry_after, request.kind().0 == Kind::Head);
                client.write_all(&answer)?;
                if let Some(seconds) = retry_after {
                    // From after the answer was written: the client learns of it later still.
                    let until = Instant::now() + Duration::from_secs(seconds);
                    let burst = if request.kind().0 == Kind::List { 9 } else { 0 };
                    let mut state = self.state();
                    if connection >= state.oldest_connection {
                        state.throttled = Some(Throttled { until, burst });
                    }
                }
                return Ok(After::Next);
            }
            Fault::ResetAfter => {
                self.forward(&request.bytes)?;
                return Ok(After::Reset);
            }
            _ => {}
        }
        debug_assert!(is_read);
        let mut answer = self.forward(&request.bytes)?;
        if request.kind().0 == Kind::List {
            self.hide(&mut answer, fault);
        }
        let bytes = answer.rendered();
        match fault {
            Fault::Cut => {
                let keep = answer.head_bytes() + answer.body.len() / 2;
                let keep = if answer.body.is_empty() { keep / 2 } else { keep };
                client.write_all(&bytes[..keep])?;
                Ok(After::Close)
            }
            Fault::Drip(time) => {
                let pieces = bytes.len().clamp(1, 24);
                for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
                    client.write_all(piece)?;
                    client.flush()?;
                    std::thread::sleep(time / u32::try_from(pieces).unwrap_or(1));
                }
                Ok(After::Next)
            }
            _ => client.write_all(&bytes).map(|()| After::Next),
        }
    }

    /// Counts the request, does what is due by now, and asks the plan.
    fn decide(&self, request: &Message) -> Fault {
        let (kind, key) = request.kind();
        let (fault, due) = {
            let mut state = self.state();
            let index = state.requests;
            state.requests += 1;
            *state.kinds.entry(kind).or_default() += 1;
            if let Some(throttled) = &mut state.throttled
                && Instant::now() < throttled.until
            {
                if kind == Kind::List && throttled.burst > 0 {
                    throttled.burst -= 1;
                } else {
                    let early = throttled.until.saturating_duration_since(Instant::now());
                    state.too_early.push(format!("request {index}, {kind:?} {key}, came {} ms too early", early.as_millis()));
                }
            }
            let seen = Seen { index, kind, key };
            let fault = (state.plan)(&seen);
            *state.faults.entry(fault.name()).or_default() += 1;
            if matches!(kind, Kind::Put | Kind::Complete) {
                state.put.insert(seen.key, index);
            }
            let (due, later) = std::mem::take(&mut state.late).into_iter().partition::<Vec<_>, _>(|(at, _)| *at <= index);
            state.late = later;
            (fault, due)
        };
        for (_, request) in due {
            self.forward_late(&request);
        }
        fault
    }

    /// Nobody waits for the answer.
    fn forward_late(&self, request: &[u8]) {
        let _ = self.forward(request);
    }

    fn forward(&self, request: &[u8]) -> io::Result<Answer> {
        let mut server = TcpStream::connect(self.target)?;
        server.set_nodelay(true)?;
        // One answer, to its end.
        let head = find(request, b"\r\n").ok_or(io::ErrorKind::InvalidData)? + 2;
        server.write_all(&[&request[..head], b"connection: close\r\n", &request[head..]].concat())?;
        let mut bytes = Vec::new();
        server.read_to_end(&mut bytes)?;
        Answer::parse(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Takes objects out of a listing.
    fn hide(&self, answer: &mut Answer, fault: Fault) {
        let Ok(mut text) = String::from_utf8(std::mem::take(&mut answer.body)) else { return };
        let state = self.state();
        let keys: Vec<String> = text.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned())).collect();
        let hidden = |key: &String| match fault {
            Fault::ListLags(requests) => state.put.get(key).is_some_and(|put| put + requests >= state.requests),
            Fault::ListOmits => Some(key) == keys.last(),
            _ => false,
        };
        for key in keys.iter().filter(|key| hidden(key)) {
            let Some(at) = text.find(&format!("<Key>{key}</Key>")) else { continue };
            let (Some(begin), Some(end)) = (text[..at].rfind("<Contents>"), text[at..].find("</Contents>")) else { continue };
            text.replace_range(begin..at + end + "</Contents>".len(), "");
        }
        answer.body = text.into_bytes();
    }
}

fn refusal(status: u16, code: &str, retry_after: Option<u64>, without_body: bool) -> Vec<u8> {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>as the plan says</Message></Error>");
    let retry_after = retry_after.map(|seconds| format!("retry-after: {seconds}\r\n")).unwrap_or_default();
    let head = format!("HTTP/1.1 {status} Refused\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n{retry_after}\r\n", body.len());
    (head + if without_body { "" } else { &body }).into_bytes()
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A whole request.
struct Message {
    bytes: Vec<u8>,
    method: String,
    target: String,
}

impl Message {
    fn kind(&self) -> (Kind, String) {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let asks = |name: &str| query.split('&').any(|part| part == name || part.starts_with(&format!("{name}=")));
        let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        let kind = match self.method.as_str() {
            "PUT" if asks("partNumber") => Kind::Part,
            "PUT" => Kind::Put,
            "POST" if asks("uploads") => Kind::Begin,
            "POST" if asks("uploadId") => Kind::Complete,
            "HEAD" => Kind::Head,
            "GET" if key.is_empty() => Kind::List,
            "GET" => Kind::Get,
            _ => Kind::Delete,
        };
        let prefix = query.split('&').find_map(|part| part.strip_prefix("prefix=")).unwrap_or_default();
        (kind, if kind == Kind::List { prefix.replace("%2F", "/") } else { key.to_owned() })
    }
}

/// Reads a request; `None` at the end of the connection.
fn read_message(client: &mut TcpStream) -> io::Result<Option<Message>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let head = loop {
        if let Some(head) = find(&bytes, b"\r\n\r\n") {
            break head + 4;
        }
        match client.read(&mut buffer)? {
            0 => return Ok(None),
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let length = header(&text, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
    let had = bytes.len() - head;
    if had > length {
        return Err(io::Error::other("a request before the answer to the one before it"));
    }
    bytes.resize(head + length, 0);
    client.read_exact(&mut bytes[head + had..])?;
    Ok(Some(Message { bytes, method, target }))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// A whole answer of the server.
struct Answer {
    /// Without what says how long the body is.
    head: String,
    body: Vec<u8>,
    /// What the server says of a body that it does not send.
    length_of_head: Option<String>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = find(bytes, b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let is_chunked = header(&text, "transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let body = if is_chunked { dechunk(&bytes[end + 4..])? } else { bytes[end + 4..].to_vec() };
        let framing = |line: &str| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            matches!(name.as_str(), "content-length" | "transfer-encoding" | "connection")
        };
        let head = text.lines().filter(|line| !framing(line)).map(|line| format!("{line}\r\n")).collect();
        let length_of_head = header(&text, "content-length").filter(|_| body.is_empty()).map(str::to_owned);
        Some(Self { head, body, length_of_head })
    }

    fn head(&self) -> String {
        let length = self.length_of_head.clone().unwrap_or_else(|| self.body.len().to_string());
        // Of a 204 or 304 it is left out.
        let status: u16 = self.head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        if matches!(status, 204 | 304) { format!("{}\r\n", self.head) } else { format!("{}content-length: {length}\r\n\r\n", self.head) }
    }

    fn head_bytes(&self) -> usize {
        self.head().len()
    }

    fn rendered(&self) -> Vec<u8> {
        [self.head().as_bytes(), &self.body].concat()
    }
}

fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = find(rest, b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?.split(';').next()?.trim(), 16).ok()?;
        rest = &rest[line + 2..];
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..length)?);
        rest = rest.get(length + 2..)?;
    }
}
