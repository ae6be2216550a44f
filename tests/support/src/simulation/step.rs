//! What can happen, and how often. A step is data and means the same whatever came before it, so that a list of steps can be shortened: one that
//! has nothing to act on does nothing.

use super::wire::Size;

/// How many hosts there are.
pub const HOSTS: usize = 2;
/// Processes of a host with the extension, of which at most [`AT_ONCE`] have the database open.
pub const PROCESSES: usize = 3;
/// So many processes of a host may have one database open through the extension at a time.
pub const AT_ONCE: usize = 3;
/// The process of a host that has no extension comes after the others.
pub const FOREIGNER: usize = PROCESSES;

/// What the store is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weather {
    /// It does what it is asked.
    Fine,
    /// Nobody is there.
    Down,
    /// Answers come late, a few bytes at a time.
    Slow,
    /// 503.
    Unavailable,
    /// It stores, and the connection is reset before the answer.
    ResetAfter,
    /// Requests are carried out when others have come, and are not answered.
    Late,
}

/// What a process does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Starts, if it does not run, and opens the database.
    Open,
    /// Closes its connections.
    Close,
    /// Closes them and ends.
    Quit,
    /// A transaction.
    Transaction(Size),
    /// One that is undone.
    Undone(Size),
    /// One whose commit waits for the bucket.
    Waits(Size),
    /// The beginning of one.
    Begin,
    /// More of it.
    Write(Size),
    /// Its end.
    Commit,
    /// Or another one.
    Rollback,
    /// A checkpoint.
    Checkpoint(&'static str),
    /// Another journal mode.
    Journal(&'static str),
    /// `VACUUM`.
    Vacuum,
    /// Reads and compares.
    Read,
    /// Another connection begins to read.
    Hold,
    /// And ends it.
    Release,
    /// Waits until the bucket has everything.
    Sync,
    /// Waits for the TXID that what is committed will have.
    WaitFor,
    /// Another locking mode.
    Locking(&'static str),
    /// kill -9.
    Kill,
    /// kill -9 in the midst of a transaction, so many microseconds after it was asked for.
    KillWithin(Size, u64),
    /// SIGSTOP.
    Stop,
    /// SIGSTOP in the midst of a transaction.
    StopWithin(Size, u64),
    /// SIGCONT.
    GoOn,
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A process does something.
    Process {
        /// On which host.
        host: usize,
        /// Which one.
        process: usize,
        /// What.
        act: Act,
    },
    /// All processes of a host that have the database open commit in turn, so many times.
    Turns {
        /// The host.
        host: usize,
        /// How often.
        times: u32,
    },
    /// The store changes.
    Weather(Weather),
    /// The host is replaced by one with an empty disk.
    NewHost(usize),
    /// The user keeps a copy of the database of a host, which nobody has open.
    KeepCopy(usize),
    /// And puts it in the place of the database, into the same file or as another one.
    PutBack(usize, bool),
    /// The user restores an earlier state, of about this many thousandths of the chain, or the latest one.
    Restore(usize, u32),
    /// The user declares a host's file the truth.
    Adopt(usize),
    /// What the bucket has is looked at.
    Look,
    /// A state of the bucket is restored and compared: of about this many thousandths of the chain.
    RestoreAside(u32),
    /// Time passes, in milliseconds.
    Pass(u64),
}

/// What a world is like.
#[derive(Clone, Debug)]
pub struct Style {
    /// Page size.
    pub page_bytes: u32,
    /// Pragmas of every connection.
    pub pragmas: String,
    /// Journal modes in turn; the first one is what a new database gets.
    pub modes: Vec<&'static str>,
    /// Connections may keep their locks.
    pub exclusive: bool,
    /// One step of ten thousand is a disaster so often: a kill, a new host, weather.
    pub disasters: u32,
}

impl Style {
    /// From a seed.
    #[must_use]
    pub fn of(random: &mut fastrand::Rng, disasters: u32) -> Self {
        let page_bytes = *random.choice(&[512, 1024, 4096, 4096]).unwrap_or(&4096);
        let cache = *random.choice(&[5, 200, 2000]).unwrap_or(&2000);
        let autocheckpoint = *random.choice(&[5, 40, 1000, 1000]).unwrap_or(&1000);
        let synchronous = *random.choice(&["NORMAL", "NORMAL", "FULL"]).unwrap_or(&"NORMAL");
        let limit = *random.choice(&[-1, -1, 0, 20_000]).unwrap_or(&-1);
        let pragmas = format!(
            "PRAGMA cache_size={cache}; PRAGMA wal_autocheckpoint={autocheckpoint}; PRAGMA synchronous={synchronous}; PRAGMA journal_size_limit={limit}"
        );
        let modes = match random.u8(0..6) {
            0 => vec!["delete", "wal", "truncate", "persist"],
            1 => vec!["wal", "delete", "wal", "persist"],
            _ => vec!["wal"],
        };
        Self { page_bytes, pragmas, modes, exclusive: random.u8(0..6) == 0, disasters }
    }
}

fn size(random: &mut fastrand::Rng) -> Size {
    match random.u8(0..40) {
        0 => Size::Large,
        1..8 => Size::Medium,
        _ => Size::Small,
    }
}

fn host(random: &mut fastrand::Rng) -> usize {
    usize::from(random.u8(0..5) == 0)
}

/// What a process does in peace.
fn work(random: &mut fastrand::Rng, style: &Style) -> Act {
    match random.u32(0..200) {
        0..92 => Act::Transaction(size(random)),
        92..99 => Act::Undone(size(random)),
        99..103 => Act::Waits(size(random)),
        103..112 => Act::Begin,
        112..124 => Act::Write(size(random)),
        124..134 => Act::Commit,
        134..138 => Act::Rollback,
        138..150 => Act::Checkpoint(["PASSIVE", "PASSIVE", "FULL", "RESTART", "TRUNCATE"][random.usize(0..5)]),
        150..152 => Act::Journal(style.modes[random.usize(0..style.modes.len())]),
        152 => Act::Vacuum,
        153..160 => Act::Read,
        160..165 => Act::Hold,
        165..171 => Act::Release,
        171..175 => Act::Sync,
        175 | 176 => Act::WaitFor,
        177..186 => Act::Open,
        186..190 => Act::Close,
        190 => Act::Quit,
        191 if style.exclusive => Act::Locking("EXCLUSIVE"),
        192..194 if style.exclusive => Act::Locking("NORMAL"),
        _ => Act::Transaction(Size::Small),
    }
}

/// What does not happen every day.
fn disaster(random: &mut fastrand::Rng, style: &Style) -> Step {
    let host = host(random);
    let process = random.usize(0..=FOREIGNER);
    let act = |act| Step::Process { host, process, act };
    // Most of what a process does takes a few hundred microseconds.
    let moment = random.u64(0..40).pow(2);
    match random.u32(0..100) {
        0..14 => act(Act::Kill),
        14..34 => act(Act::KillWithin(size(random), moment)),
        34..40 => act(Act::Stop),
        40..46 => act(Act::StopWithin(size(random), moment)),
        46..62 => Step::Weather(
            [
                Weather::Fine,
                Weather::Fine,
                Weather::Fine,
                Weather::Down,
                Weather::Slow,
                Weather::Unavailable,
                Weather::ResetAfter,
                Weather::Late,
            ][random.usize(0..8)],
        ),
        62..68 => Step::NewHost(host),
        68..71 => Step::KeepCopy(host),
        71..74 => Step::PutBack(host, random.bool()),
        74..77 => Step::Restore(host, if random.bool() { 1000 } else { random.u32(0..1000) }),
        77..84 => Step::Adopt(host),
        84..88 => Step::Turns { host, times: random.u32(1..6) },
        // A foreign process comes, or one on another host.
        88..93 => Step::Process { host: random.usize(0..HOSTS), process: FOREIGNER, act: Act::Open },
        93..97 => Step::Process { host: 1, process: random.usize(0..PROCESSES), act: Act::Open },
        _ => Step::Process { host, process, act: Act::Journal(style.modes[random.usize(0..style.modes.len())]) },
    }
}

/// The next step.
pub fn next(random: &mut fastrand::Rng, style: &Style) -> Step {
    if random.u32(0..10_000) < style.disasters {
        return disaster(random, style);
    }
    match random.u32(0..1000) {
        0..4 => Step::Look,
        4..7 => Step::RestoreAside(random.u32(0..1000)),
        7..11 => Step::Pass(random.u64(1..15)),
        // Whoever is stopped goes on some time.
        11..20 => Step::Process { host: host(random), process: random.usize(0..=FOREIGNER), act: Act::GoOn },
        _ => {
            let process = if random.u8(0..12) == 0 { FOREIGNER } else { random.usize(0..PROCESSES) };
            Step::Process { host: host(random), process, act: work(random, style) }
        }
    }
}

/// All steps of a world.
#[must_use]
pub fn steps(seed: u64, count: usize, style: &Style) -> Vec<Step> {
    let mut random = fastrand::Rng::with_seed(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x5eed);
    let mut steps = vec![
        Step::Process { host: 0, process: 0, act: Act::Open },
        Step::Process { host: 0, process: 0, act: Act::Journal(style.modes[0]) },
        Step::Process { host: 0, process: 0, act: Act::Transaction(Size::Medium) },
    ];
    while steps.len() < count {
        steps.push(next(&mut random, style));
    }
    steps
}
