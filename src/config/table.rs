//! The table of options: names, what they take, defaults. `docs/configuration.md` is tested against it.

use std::time::Duration;

use super::value::{show_bytes, show_duration};

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The URL of a bucket, or of a folder in one.
    Replica,
    /// A duration with its unit.
    Duration {
        /// The shortest allowed.
        min: Duration,
        /// The longest allowed.
        max: Duration,
    },
    /// A whole number.
    Count {
        /// The smallest allowed.
        min: u32,
        /// The largest allowed.
        max: u32,
    },
    /// A number of bytes with its unit.
    Bytes {
        /// The smallest allowed.
        min: u64,
        /// The largest allowed.
        max: u64,
    },
    /// Where log lines go.
    Log,
    /// How much is logged.
    LogLevel,
    /// On or off.
    Switch,
    /// An address and a port.
    Address,
    /// Any text but the empty one.
    Text,
    /// A TXID in hexadecimal.
    Txid,
    /// What COMMIT waits for.
    Durability,
    /// Whose acknowledgement COMMIT waits for.
    WaitFor,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Three durations, of levels 1 to 3.
    Spans,
}

impl Kind {
    /// What is allowed, in words: for error messages and the documentation.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Replica => "a URL: s3://bucket/path, gs://bucket/path, abs://account@container/path or file:///path".to_owned(),
            Self::Duration { min, max } => {
                format!("a duration from {} to {}, such as 500ms, 1s, 5m", show_duration(*min), show_duration(*max))
            }
            Self::Count { min, max } => format!("a number from {min} to {max}"),
            Self::Bytes { min, max } => {
                format!("a size from {} to {}, such as 64MiB, 1GiB, 500MB", show_bytes(*min), show_bytes(*max))
            }
            Self::Log => "sqlite, stderr or an absolute path".to_owned(),
            Self::LogLevel => "error, warn, info, debug or off".to_owned(),
            Self::Switch => "true or false".to_owned(),
            Self::Address => "an IP address and a port, such as 127.0.0.1:9464".to_owned(),
            Self::Text => "a text that is not empty".to_owned(),
            Self::Txid => "a TXID: 1 to 16 hexadecimal digits, not zero".to_owned(),
            Self::Durability => "local, bounded or remote".to_owned(),
            Self::WaitFor => "first, both or any".to_owned(),
            Self::OneOf(words) => words.join(" or "),
            Self::Spans => "three durations that are not zero and do not become shorter, such as 30s,5m,1h".to_owned(),
        }
    }
}

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// Its name as a URI parameter.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The default as a user would write it; empty where there is none.
    pub default: &'static str,
    /// What it does, one sentence.
    pub about: &'static str,
}

impl OptionSpec {
    /// The environment variable of the same meaning.
    #[must_use]
    pub fn env_name(&self) -> String {
        format!("{ENV_PREFIX}{}", self.name.to_ascii_uppercase())
    }
}

/// What the names of our environment variables begin with.
pub(super) const ENV_PREFIX: &str = "REPLICATED_";

/// Environment variables of ours that are no options of a database.
pub(super) const ENV_OTHERS: &[&str] = &["REPLICATED_DEFAULT", "REPLICATED_CONFIG"];

/// What the project's own tests are steered by.
pub(super) const ENV_TESTS: &str = "REPLICATED_TEST_";

/// URI parameters that SQLite itself reads.
pub(super) const SQLITE_PARAMETERS: &[&str] = &["vfs", "mode", "cache", "psow", "nolock", "immutable", "modeof", "8_3_names"];
/// How a driver's own parameters begin, which it leaves in the URI: `_journal_mode` and others of Go's mattn/go-sqlite3. None of ours does.
pub(super) const DRIVERS_PREFIX: char = '_';

/// A shorter lease is over before it is renewed.
pub(super) const SHORTEST_LEASE: Duration = Duration::from_millis(200);

/// More often a bucket is not read from its beginning to its end.
pub(super) const LEAST_VERIFY: Duration = Duration::from_secs(60);

/// Ten years.
const MOST_HISTORY_MS: u64 = 3650 * 24 * 3_600_000;

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

const fn durations(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min_ms), max: Duration::from_millis(max_ms) }
}

const fn option(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> OptionSpec {
    OptionSpec { name, kind, default, about }
}

/// Every option, in the order of the documentation.
pub const OPTIONS: &[OptionSpec] = &[
    option(
        "replica",
        Kind::Replica,
        "",
        "Where the database is replicated to; without it nothing is replicated. `{name}` stands for the database's file name.",
    ),
    option(
        "replica2",
        Kind::Replica,
        "",
        "A second replica, with a position of its own: at another provider, so that the loss of one is survived. Asks for `replica` as well.",
    ),
    option(
        "restore",
        Kind::OneOf(&["never", "if-missing"]),
        "never",
        "What an open does where the database is not there: make an empty one, or restore what the replica has first.",
    ),
    option(
        "restore_from",
        Kind::OneOf(&["first", "any"]),
        "first",
        "With `restore=if-missing` and `replica2`: whether the second replica may be restored where the first does not answer or has nothing.",
    ),
    option(
        "restore_wait",
        durations(10, 86_400_000),
        "10m",
        "With `restore=if-missing`: how long an open waits for another process or thread that is restoring the database. Then it fails.",
    ),
    option(
        "restore_threads",
        Kind::Count { min: 1, max: 64 },
        "8",
        "With `restore=if-missing`: the most threads that decode while an open restores, of this process and until the restore ends. There is never more than one for each core.",
    ),
    option(
        "on_conflict",
        Kind::OneOf(&["continue", "readonly"]),
        "continue",
        "What becomes of commits once another writer has gone on with the replica, and nothing is sent any more: they go on here, or fail.",
    ),
    option(
        "lease",
        durations(0, 3_600_000),
        "0s",
        "How long the lease in the bucket lasts without being renewed, with which one host at a time writes to the replica: for hand-over in deployments, say `30s`. `0s`: none.",
    ),
    option(
        "lease_wait",
        durations(0, 3_600_000),
        "2m",
        "With `lease`: how long an open waits for another holder to let go, or for its lease to run out. Then the open fails.",
    ),
    option(
        "sync_interval",
        durations(10, 3_600_000),
        "1s",
        "Under sustained writes one upload is made per interval. A commit after a pause is uploaded at once.",
    ),
    option(
        "burst",
        Kind::Count { min: 1, max: 100 },
        "4",
        "How many uploads may follow each other without waiting for the interval, after a pause.",
    ),
    option(
        "durability",
        Kind::Durability,
        "local",
        "What COMMIT waits for: nothing, the bucket while it lags behind by more than `max_lag`, or the bucket.",
    ),
    option(
        "wait_for",
        Kind::WaitFor,
        "both",
        "With `replica2` and `durability=bounded` or `remote`: whose acknowledgement COMMIT waits for.",
    ),
    option(
        "max_lag",
        durations(10, 86_400_000),
        "10s",
        "With `durability=bounded`: how old the oldest commit that is not in the bucket may be before COMMIT waits.",
    ),
    option(
        "ack_timeout",
        durations(10, 3_600_000),
        "30s",
        "How long COMMIT waits for the bucket. Then it fails with an I/O error: committed here, not known to be in the bucket.",
    ),
    option(
        "close_timeout",
        durations(0, 600_000),
        "5s",
        "How long the last close waits for the bucket. What is left is sent after the next open.",
    ),
    option("sync_timeout", durations(10, 3_600_000), "30s", "How long `PRAGMA replicated_sync` and `replicated_wait` wait for the bucket."),
    option(
        "checkpoint",
        Kind::OneOf(&["inline", "background"]),
        "inline",
        "Where checkpoints run that nobody asks for: inside a COMMIT, as SQLite does by itself, or ahead of that on a thread of the extension.",
    ),
    option(
        "max_memory",
        Kind::Bytes { min: 16 * MIB, max: TIB },
        "32MiB",
        "What the replication of a database may take in memory: a batch over an eighth of it goes through a file.",
    ),
    option(
        "max_local",
        Kind::Bytes { min: MIB, max: 1024 * TIB },
        "4GiB",
        "The limit of the local disk that changes take which wait in the spool while the bucket cannot be reached, with what is made of them to send them: half of it may wait. Past it they are dropped, and the full state follows.",
    ),
    option("connect_timeout", durations(100, 600_000), "5s", "How long a connection to the store may take to open."),
    option(
        "request_timeout",
        durations(100, 3_600_000),
        "60s",
        "How long one request to the store may take. A small one is made again sooner: after a third of `ack_timeout`, 2 to 10 s.",
    ),
    option("log", Kind::Log, "sqlite", "Where log lines go: to SQLite's own log (`sqlite3_log`), to stderr, or to a file."),
    option("log_level", Kind::LogLevel, "info", "How much is logged."),
    option(
        "log_format",
        Kind::OneOf(&["text", "json"]),
        "text",
        "The form of lines on stderr and in a file: for people, or one JSON object a line for programs. SQLite's own log gets text.",
    ),
    option(
        "log_max_bytes",
        Kind::Bytes { min: 16 << 10, max: TIB },
        "16MiB",
        "With a file as `log`: how large it may become. Then it is renamed to one with `.1` at its end, in place of the one before, and a new one is begun.",
    ),
    option(
        "metrics",
        Kind::Address,
        "",
        "Where the process answers Prometheus with the metrics of all of its databases; without it nowhere. Without TLS or password: best at 127.0.0.1.",
    ),
    option(
        "endpoint",
        Kind::Text,
        "",
        "The endpoint of an S3-compatible store. Also read from the URL's query and from `AWS_ENDPOINT_URL`.",
    ),
    option("region", Kind::Text, "", "The region of the bucket. Also read from the URL's query and from `AWS_REGION`."),
    option("path_style", Kind::Switch, "", "Whether the bucket stands in the path of a request instead of its host name."),
    option("allow_http", Kind::Switch, "", "Whether an endpoint without TLS is allowed."),
    option("ca_bundle", Kind::Text, "", "A PEM file with certificates of authorities to trust, beside those of the system."),
    option("profile", Kind::Text, "", "The profile in `~/.aws` to take credentials and region from."),
    option(
        "maintenance",
        Kind::OneOf(&["on", "off"]),
        "on",
        "Whether the process that uploads also merges what the bucket has, makes snapshots and deletes what no restore within `history` needs. `off` where `replicated maintain` or Litestream does.",
    ),
    option("history", durations(0, MOST_HISTORY_MS), "24h", "Any state of the last so much time can be restored."),
    option(
        "exact",
        durations(0, MOST_HISTORY_MS),
        "",
        "Within the last so much of `history`, to each upload; before that to a span of level 1. Not longer than `history`; without it all of that.",
    ),
    option(
        "grace",
        durations(0, MOST_HISTORY_MS),
        "1h",
        "What no restore needs any more is kept for so much longer, for restores and readers that are under way.",
    ),
    option("spans", Kind::Spans, "30s,5m,1h", "The time that a file of level 1, 2 and 3 spans."),
    option(
        "snapshot_every",
        durations(1, MOST_HISTORY_MS),
        "24h",
        "Another snapshot is made when the newest one is so old, counted from midnight UTC, where anything has changed.",
    ),
    option(
        "snapshot_change",
        Kind::Count { min: 1, max: 100_000 },
        "100",
        "Another one is made as well when the changes since are so large, in hundredths of its size.",
    ),
    option(
        "verify_every",
        durations(0, MOST_HISTORY_MS),
        "0s",
        "How often the process that uploads reads the newest state's files in the bucket to their end and verifies them, say `24h`: from `1m`. `0s`: never.",
    ),
    option(
        "refuse_lost_tail",
        Kind::Switch,
        "false",
        "Where a power loss took commits that the bucket has: stop replication until somebody decides, instead of going on with what is left.",
    ),
    option(
        "adopt",
        Kind::Txid,
        "",
        "Declares the local database the truth over the bucket's history up to this TXID, after replication refused because the two differ.",
    ),
    option("adopt2", Kind::Txid, "", "The same for the bucket of `replica2`, which counts its own TXIDs."),
];

/// The option of a name.
pub(super) fn find(name: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|spec| spec.name == name)
}
