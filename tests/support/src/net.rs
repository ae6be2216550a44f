//! A network with faults: a TCP proxy in front of an endpoint whose behaviour a test switches while it runs.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the proxy does with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Forward,
    /// Refuses connections, and closes those that are open.
    Refuse,
    /// Accepts connections and swallows what they send, those that are open too; nothing ever comes back.
    Hang,
    /// Closes each connection after so many bytes of answers, counted from the connection's beginning.
    Cut {
        /// Answer bytes that still pass.
        after_bytes: u64,
    },
    /// Passes everything on, each piece so much later.
    Delay(Duration),
}

struct Shared {
    mode: Mutex<Mode>,
    target: SocketAddr,
    /// `None` while connections are refused.
    listener: Mutex<Option<TcpListener>>,
    address: SocketAddr,
    open: Mutex<Vec<TcpStream>>,
    accepted: AtomicU64,
    stopped: AtomicBool,
}

/// The proxy; stops when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 in front of `target`: `http://host:port` or `host:port`.
    ///
    /// # Errors
    ///
    /// Where the target has no address or no port is free.
    pub fn start(target: &str) -> io::Result<Self> {
        let host = target.trim_start_matches("http://").trim_end_matches('/');
        let target = host.to_socket_addrs()?.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            mode: Mutex::new(Mode::Forward),
            target,
            address: listener.local_addr()?,
            listener: Mutex::new(Some(listener)),
            open: Mutex::new(Vec::new()),
            accepted: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept()
        });
        Ok(Self { shared, acceptor: Some(acceptor) })
    }

    /// `http://127.0.0.1:<port>`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// Changes the behaviour, for open connections too.
    ///
    /// # Errors
    ///
    /// Where the port cannot be had again after `Refuse`.
    pub fn set(&self, mode: Mode) -> io::Result<()> {
        *lock(&self.shared.mode) = mode;
        let mut listener = lock(&self.shared.listener);
        if mode == Mode::Refuse {
            *listener = None;
            for stream in lock(&self.shared.open).drain(..) {
                // It may be closed already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        } else if listener.is_none() {
            let again = TcpListener::bind(self.shared.address)?;
            again.set_nonblocking(true)?;
            *listener = Some(again);
        }
        Ok(())
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for stream in lock(&self.shared.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn accept(self: Arc<Self>) {
        while !self.stopped() {
            let accepted = lock(&self.listener).as_ref().map(TcpListener::accept);
            match accepted {
                Some(Ok((client, _))) => {
                    self.accepted.fetch_add(1, Ordering::SeqCst);
                    let shared = Arc::clone(&self);
                    std::thread::spawn(move || shared.serve(client));
                }
                // Nobody has come, or nobody is let in.
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn serve(self: Arc<Self>, client: TcpStream) {
        let Ok(server) = client.set_nonblocking(false).and_then(|()| TcpStream::connect(self.target)) else { return };
        let copies = || Ok::<_, io::Error>((client.try_clone()?, server.try_clone()?, client.try_clone()?, server.try_clone()?));
        let Ok((client_in, server_in, for_list, for_list_too)) = copies() else { return };
        lock(&self.open).extend([for_list, for_list_too]);
        let requests = std::thread::spawn({
            let shared = Arc::clone(&self);
            move || shared.pump(client_in, server, false)
        });
        self.pump(server_in, client, true);
        let _ = requests.join();
    }

    /// Copies one direction until an end closes or the mode says so.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, answers: bool) {
        let mut passed = 0;
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut piece = &buffer[..length];
            let mode = *lock(&self.mode);
            match mode {
                Mode::Forward => {}
                Mode::Refuse => break,
                Mode::Hang => continue,
                Mode::Delay(delay) => std::thread::sleep(delay),
                Mode::Cut { after_bytes } if answers => {
                    let left = usize::try_from(after_bytes.saturating_sub(passed)).unwrap_or(usize::MAX);
                    piece = &piece[..left.min(length)];
                }
                Mode::Cut { .. } => {}
            }
            passed += piece.len() as u64;
            if to.write_all(piece).is_err() || piece.len() < length {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each byte with a thousand.
    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).is_ok() {
                        stream.write_all(&[byte[0]; 1000]).unwrap();
                    }
                });
            }
        });
        address
    }

    fn ask(stream: &mut TcpStream) -> io::Result<usize> {
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        stream.write_all(b"x")?;
        let (mut total, mut buffer) = (0, [0; 1000]);
        while total < 1000 {
            match stream.read(&mut buffer)? {
                0 => break,
                n => total += n,
            }
        }
        Ok(total)
    }

    #[test]
    fn faults_come_and_go() {
        let proxy = Proxy::start(&server().to_string()).unwrap();
        let address = proxy.endpoint().trim_start_matches("http://").to_owned();
        let mut first = TcpStream::connect(&address).unwrap();
        assert_eq!(ask(&mut first).unwrap(), 1000);
        proxy.set(Mode::Hang).unwrap();
        assert_eq!(ask(&mut first).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        proxy.set(Mode::Cut { after_bytes: 1300 }).unwrap();
        let mut second = TcpStream::connect(&address).unwrap();
        assert_eq!(ask(&mut second).unwrap(), 1000);
        assert_eq!(ask(&mut second).unwrap(), 300);
        proxy.set(Mode::Refuse).unwrap();
        assert!(ask(&mut first).is_err() || ask(&mut first).is_err());
        assert_eq!(TcpStream::connect(&address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        proxy.set(Mode::Delay(Duration::from_millis(50))).unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(ask(&mut TcpStream::connect(&address).unwrap()).unwrap(), 1000);
        assert!(begun.elapsed() >= Duration::from_millis(100));
        assert_eq!(proxy.connections(), 3);
    }
}
