//! What is known of whether the bucket can be restored, remembered beside the control file (`verified`).
//!
//! ```json
//! {"replica":"8f0e…","ended_at":"2026-11-23T09:00:00.000Z","txid":"000000000000001c","verified_at":"2026-11-23T09:00:00.000Z",
//!  "files":12,"files_in_bucket":134,"bytes":53124,"finding":null,"tried_at":null,"obstacle":null}
//! ```
//!
//! It is about the bucket and nothing else, so that it is bound to the replica's URL alone. The process that uploads writes it, all of them show it, and the
//! one that takes the uploading over goes on from it. It is put in its place whole, and not synced: what a power loss takes is found out anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use serde_json::{Value, json};

use crate::fault::{fault_io, fault_point};
use crate::logging::event;
use crate::replicator::control::replica_hash;
use crate::replicator::database::Database;
use crate::replicator::local::{OwnerMode, Paths};
use crate::status::{Outcome, Verification};
use crate::types::{TimestampMs, Txid};

/// A finding is cut there: a message, and no list of a thousand objects.
const MOST_TEXT: usize = 2000;
const MOST_BYTES: u64 = 64 << 10;

/// The newest state that was found whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) txid: Txid,
    /// When that was.
    pub(crate) at_ms: i64,
    /// Files that were read for it.
    pub(crate) files: u64,
    /// Of so many.
    pub(crate) files_in_bucket: u64,
    pub(crate) bytes: u64,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Proof {
    /// When a verification last came to its end, whatever it has found; 0 for never.
    pub(crate) ended_ms: i64,
    pub(crate) whole: Option<Whole>,
    /// What that one has found wrong.
    pub(crate) finding: Option<String>,
    /// When one could not be carried out since, and why. It says nothing of the bucket.
    pub(crate) obstacle: Option<(i64, String)>,
}

impl Proof {
    /// When anything was last found out.
    fn changed_ms(&self) -> i64 {
        self.obstacle.as_ref().map_or(0, |(at, _)| *at).max(self.ended_ms)
    }

    /// What is known of a database's bucket: by this process, or by the one that uploads.
    pub(crate) fn of(database: &Database) -> Self {
        let here = database.proof.lock().clone();
        [here, read(database).ok().flatten()].into_iter().flatten().max_by_key(Self::changed_ms).unwrap_or_default()
    }

    /// The same for whoever does not have the database open; `None` where nothing was kept.
    pub(crate) fn beside(paths: &Paths, replica_hash: u64) -> Option<Self> {
        read_of(paths, &format!("{replica_hash:016x}")).ok().flatten()
    }

    /// Keeps it. Where there is no room on the disk it is known to this process.
    pub(super) fn keep(&self, database: &Database) {
        *database.proof.lock() = Some(self.clone());
        if let Err(error) = write(database, &self.encode(&database_hash(database))) {
            event!(Debug, "local_file", database, cause = error; "{}: {error}", database.paths.verified().display());
        }
        fault_point!("proof.written");
    }

    fn encode(&self, replica: &str) -> Vec<u8> {
        let time = |ms: i64| TimestampMs(ms).to_rfc3339();
        json!({
            "replica": replica,
            "ended_at": Some(self.ended_ms).filter(|ms| *ms > 0).map(time),
            "txid": self.whole.map(|whole| whole.txid.to_string()),
            "verified_at": self.whole.map(|whole| time(whole.at_ms)),
            "files": self.whole.map(|whole| whole.files),
            "files_in_bucket": self.whole.map(|whole| whole.files_in_bucket),
            "bytes": self.whole.map(|whole| whole.bytes),
            "finding": self.finding,
            "tried_at": self.obstacle.as_ref().map(|(at, _)| time(*at)),
            "obstacle": self.obstacle.as_ref().map(|(_, why)| why),
        })
        .to_string()
        .into_bytes()
    }

    /// `None` where it is of another replica, or nothing that this wrote.
    fn decode(bytes: &[u8], replica: &str) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let number = |name: &str| value.get(name).and_then(Value::as_u64).unwrap_or_default();
        let time = |name: &str| text(name).and_then(TimestampMs::from_rfc3339).map(|at| at.0);
        if text("replica") != Some(replica) {
            return None;
        }
        let whole = text("txid").and_then(Txid::from_hex).and_then(|txid| {
            let (files, files_in_bucket, bytes) = (number("files"), number("files_in_bucket"), number("bytes"));
            Some(Whole { txid, at_ms: time("verified_at")?, files, files_in_bucket, bytes })
        });
        let obstacle = text("obstacle").map(|why| (time("tried_at").unwrap_or_default(), told(why)));
        Some(Self { ended_ms: time("ended_at").unwrap_or_default(), whole, finding: text("finding").map(told), obstacle })
    }

    /// The gist of it.
    pub(crate) fn verification(&self, is_asked_for: bool) -> Verification {
        let outcome = match self {
            _ if !is_asked_for => Outcome::Off,
            Self { finding: Some(_), .. } => Outcome::Wrong,
            Self { obstacle: Some(_), .. } => Outcome::NotChecked,
            Self { whole: Some(_), .. } => Outcome::Verified,
            _ => Outcome::None,
        };
        let last = Some(self.ended_ms).filter(|ms| *ms > 0).map(TimestampMs);
        Verification { outcome, last, txid: self.whole.map(|whole| whole.txid), at: self.whole.map(|whole| TimestampMs(whole.at_ms)) }
    }

    /// Lines of the status. `is_asked_for`: by the options of this process.
    pub(crate) fn rows(&self, is_asked_for: bool) -> Vec<(&'static str, String)> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let time = |ms: i64| TimestampMs(ms).to_string();
        let files = |whole: Whole| format!("{} of {}, {} bytes", whole.files, whole.files_in_bucket, whole.bytes);
        vec![
            ("verification", self.verification(is_asked_for).outcome.as_str().to_owned()),
            ("last_verification", or_dash(Some(self.ended_ms).filter(|ms| *ms > 0).map(time))),
            ("verified_txid", or_dash(self.whole.map(|whole| whole.txid.to_string()))),
            ("verified_at", or_dash(self.whole.map(|whole| time(whole.at_ms)))),
            ("verified_files", or_dash(self.whole.map(files))),
            ("verification_finding", or_dash(self.finding.clone())),
            ("verification_error", or_dash(self.obstacle.as_ref().map(|(_, why)| why.clone()))),
        ]
    }
}

/// Text for people, on one line and of bounded length.
pub(super) fn told(text: &str) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() > MOST_TEXT {
        let end = (0..=MOST_TEXT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

fn database_hash(database: &Database) -> String {
    format!("{:016x}", replica_hash(database.store.url()))
}

fn read(database: &Database) -> io::Result<Option<Proof>> {
    read_of(&database.paths, &database_hash(database))
}

fn read_of(paths: &Paths, replica: &str) -> io::Result<Option<Proof>> {
    let mut bytes = Vec::new();
    File::open(paths.verified())?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(Proof::decode(&bytes, replica))
}

fn write(database: &Database, bytes: &[u8]) -> io::Result<()> {
    let path = database.paths.verified();
    let draft = path.with_extension("tmp");
    fault_io!("proof.write")?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&draft)?;
    OwnerMode::of(&database.paths.database)?.apply(&file)?;
    file.write_all(bytes)?;
    std::fs::rename(&draft, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_only_for_its_replica() {
        let whole = Whole { txid: Txid::FIRST, at_ms: 1_795_000_000_123, files: 3, files_in_bucket: 9, bytes: u64::MAX };
        let proof = Proof {
            ended_ms: 1_795_000_100_000,
            whole: Some(whole),
            finding: Some("0/…: \"damaged\"".to_owned()),
            obstacle: Some((1_795_000_200_000, "refused".to_owned())),
        };
        for proof in [proof.clone(), Proof { whole: None, ..proof.clone() }, Proof { obstacle: None, ..proof }, Proof::default()] {
            let bytes = proof.encode("00ff");
            assert_eq!(Proof::decode(&bytes, "00ff"), Some(proof));
            assert_eq!(Proof::decode(&bytes, "00fe"), None);
            for cut in 0..bytes.len() {
                assert_eq!(Proof::decode(&bytes[..cut], "00ff"), None, "{cut}");
            }
        }
    }

    #[test]
    fn damage_is_told_whatever_came_after_it() {
        let outcome = |proof: &Proof| proof.rows(true).into_iter().find(|(name, _)| *name == "verification").unwrap().1;
        let mut proof = Proof::default();
        assert_eq!(outcome(&proof), "none");
        proof.obstacle = Some((5, "refused".to_owned()));
        assert_eq!(outcome(&proof), "not_checked");
        proof.finding = Some("damaged".to_owned());
        assert_eq!(outcome(&proof), "wrong");
        assert!(proof.rows(false).contains(&("verification", "off".to_owned())));
        let long = "ä\n".repeat(MOST_TEXT);
        assert!(told(&long).len() <= MOST_TEXT + '…'.len_utf8() && !told(&long).contains('\n'));
    }
}
