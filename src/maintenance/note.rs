//! The note beside the levels, `maintenance.json`: who maintains the bucket, and which states are kept although they are old.
//!
//! ```json
//! {"generation":7,"owner":"web-1:4711","node":"00c0ffee00c0ffee","expires_at":"2026-11-22T13:49:05.448Z","kept":[{"txid":"000000000000001c","why":"..."}]}
//! ```
//!
//! It is replaced only by who has read what it was. Without it nothing would break: what two processes merge at the same time is the same or overlaps,
//! which every reader takes, and nothing is deleted before what replaces it was read. It saves doing the work twice.

use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::error::MaintainError;
use super::policy::millis;
use crate::fault::fault_value;
use crate::logging::{PerProcess, event};
use crate::restore::fetch::retried;
use crate::store::{LockVersion, LockWritten, Store, StoreError, StoreErrorKind};
use crate::types::{TimestampMs, Txid};

/// How long a claim holds without being renewed: who was killed keeps others out for no longer.
fn claim_lasts() -> Duration {
    fault_value!("REPLICATED_TEST_CLAIM_MS", Duration::from_secs(120), Duration::from_millis)
}

/// How often others may be faster before it is given up.
const TRIES: u32 = 8;
/// States that are kept at most; the oldest ones go on being kept.
const MOST_KEPT: usize = 100;

/// A state that retention does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The state.
    pub txid: Txid,
    /// Why it is kept.
    pub why: String,
}

/// What the object says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Note {
    /// Counted up each time that somebody takes the claim: who finds it as it was knows that nobody else has worked since.
    generation: u64,
    owner: String,
    node: u64,
    expires_ms: i64,
    kept: Vec<Kept>,
}

impl Note {
    fn parse(body: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned).unwrap_or_default();
        let kept = |value: &Value| Some(Kept { txid: Txid::from_hex(&text(value, "txid"))?, why: text(value, "why") });
        let list = value.get("kept").and_then(Value::as_array).ok_or("it has no list of what is kept")?;
        Ok(Self {
            generation: value.get("generation").and_then(Value::as_u64).unwrap_or_default(),
            owner: text(&value, "owner").chars().filter(|c| !c.is_control()).take(200).collect(),
            node: u64::from_str_radix(&text(&value, "node"), 16).unwrap_or_default(),
            expires_ms: TimestampMs::from_rfc3339(&text(&value, "expires_at")).map_or(0, |at| at.0),
            kept: list.iter().map(|value| kept(value).ok_or("it keeps something that is no TXID")).collect::<Result<_, _>>()?,
        })
    }

    fn encode(&self) -> Vec<u8> {
        let kept: Vec<Value> = self.kept.iter().map(|kept| json!({ "txid": kept.txid.to_string(), "why": kept.why })).collect();
        json!({
            "generation": self.generation,
            "owner": self.owner,
            "node": format!("{:016x}", self.node),
            "expires_at": TimestampMs(self.expires_ms).to_rfc3339(),
            "kept": kept,
        })
        .to_string()
        .into_bytes()
    }
}

/// Reads it, changes it and writes it, until nobody was faster.
async fn change(
    store: &dyn Store,
    mut edit: impl FnMut(&mut Note) -> Result<(), MaintainError>,
) -> Result<(Note, Option<LockVersion>), MaintainError> {
    for _ in 0..TRIES {
        let found = retried(async || store.read_note().await).await?;
        let mut note = match &found {
            Some(object) => Note::parse(&object.body).map_err(|why| unreadable(store, &why))?,
            None => Note::default(),
        };
        let before = note.clone();
        edit(&mut note)?;
        if note == before {
            return Ok((note, found.map(|object| object.version)));
        }
        let expected = found.map(|object| object.version);
        match store.write_note(note.encode().into(), expected.as_ref()).await {
            Ok(LockWritten::Written(version)) => return Ok((note, Some(version))),
            Ok(LockWritten::Changed) => {}
            // Whether it was written or not is seen when it is read again. S3 says so as well of two that write at the same time.
            Err(error) if error.is_transient() => event!(Debug, "maintenance_elsewhere", PerProcess, cause = error; "{error}"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(5..50))).await;
    }
    Err(MaintainError::Store(StoreError {
        kind: StoreErrorKind::Server,
        operation: "put",
        object: format!("maintenance.json in {}", store.url()),
        cause: "it was not written, or somebody else writes to it all the time".to_owned(),
        advice: "Look for programs that maintain this bucket, and leave one of them",
        retry_after: None,
    }))
}

fn unreadable(store: &dyn Store, why: &str) -> MaintainError {
    MaintainError::Store(StoreError {
        kind: StoreErrorKind::Protocol,
        operation: "get",
        object: format!("maintenance.json in {}", store.url()),
        cause: format!("it is no note of ours ({why})"),
        advice: "Look at what it is, and delete it: states that it kept may then be deleted in their time",
        retry_after: None,
    })
}

/// What is kept, and how often the bucket has been claimed.
///
/// # Errors
/// Where the note cannot be read: then nothing may be deleted.
pub(crate) async fn read(store: &dyn Store) -> Result<(Vec<Kept>, u64), MaintainError> {
    match retried(async || store.read_note().await).await? {
        Some(object) => {
            let note = Note::parse(&object.body).map_err(|why| unreadable(store, &why))?;
            Ok((note.kept, note.generation))
        }
        None => Ok((Vec::new(), 0)),
    }
}

/// Has a state kept until somebody lets it go.
pub(crate) async fn keep(store: &dyn Store, txid: Txid, why: &str) -> Result<(), MaintainError> {
    change(store, |note| {
        if note.kept.len() < MOST_KEPT && note.kept.iter().all(|kept| kept.txid != txid) {
            note.kept.push(Kept { txid, why: why.to_owned() });
        }
        Ok(())
    })
    .await
    .map(|_| ())
}

/// Lets what was kept go: all up to a TXID. The answer is what that was.
pub(super) async fn let_go(store: &dyn Store, upto: Txid) -> Result<Vec<Kept>, MaintainError> {
    let mut gone = Vec::new();
    change(store, |note| {
        gone = note.kept.iter().filter(|kept| kept.txid <= upto).cloned().collect();
        note.kept.retain(|kept| kept.txid > upto);
        Ok(())
    })
    .await?;
    Ok(gone)
}

/// The right to maintain a bucket, for a while.
pub(super) struct Claim<'a> {
    store: &'a dyn Store,
    node: u64,
    /// It was ours already: a round of ours was cut off.
    was_ours: bool,
    held: Mutex<Held>,
}

struct Held {
    /// `None`: the store knows no conditional writes, so that nobody is kept out.
    version: Option<LockVersion>,
    note: Note,
}

fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

impl<'a> Claim<'a> {
    /// Takes it, or says who has it. Who has a number of its own, which nobody else uses meanwhile, takes its own again: after it was killed, say.
    pub(super) async fn take(store: &'a dyn Store, node: Option<u64>) -> Result<Self, MaintainError> {
        let is_inside = node.is_some();
        let (node, owner) = (node.filter(|node| *node != 0).unwrap_or_else(|| fastrand::u64(1..)), owner());
        let mut was_ours = false;
        let claimed = change(store, |note| {
            was_ours = note.node == node;
            if ![0, node].contains(&note.node) && note.expires_ms > now_ms() {
                return Err(MaintainError::Busy { owner: note.owner.clone(), until: TimestampMs(note.expires_ms).to_rfc3339() });
            }
            (note.node, note.expires_ms) = (node, now_ms().saturating_add(millis(claim_lasts())));
            note.generation = note.generation.saturating_add(1);
            owner.clone_into(&mut note.owner);
            Ok(())
        })
        .await;
        let (note, version) = match claimed {
            // Two processes at once do no harm: see the top of this file.
            Err(MaintainError::Store(error)) if lacks_conditions(&error) => {
                let level = if is_inside { log::Level::Debug } else { log::Level::Info };
                event!(level, "store_is_weak", PerProcess, cause = error; "{}: nothing keeps two processes from maintaining it at once: {error}", store.url());
                (Note { kept: read(store).await?.0, ..Note::default() }, None)
            }
            other => other?,
        };
        Ok(Self { store, node, was_ours, held: Mutex::new(Held { version, note }) })
    }

    /// Whether the last one to claim it was this very node, which has not given it back.
    pub(super) const fn was_ours(&self) -> bool {
        self.was_ours
    }

    /// The how manieth claim it is; `None` where nobody counts.
    pub(super) fn generation(&self) -> Option<u64> {
        let held = self.held.lock();
        held.version.as_ref().map(|_| held.note.generation)
    }

    /// Makes it last, where that is due.
    pub(super) async fn renew_in_time(&self) -> Result<(), MaintainError> {
        let is_due = {
            let held = self.held.lock();
            held.version.is_some() && held.note.expires_ms.saturating_sub(now_ms()) < millis(claim_lasts() / 2)
        };
        if is_due { self.renew().await.map(|_| ()) } else { Ok(()) }
    }

    /// Makes it last, and says what is kept by now.
    pub(super) async fn renew(&self) -> Result<Vec<Kept>, MaintainError> {
        if self.held.lock().version.is_none() {
            return Ok(read(self.store).await?.0);
        }
        let renewed = change(self.store, |note| {
            if note.node != self.node {
                return Err(MaintainError::Busy { owner: note.owner.clone(), until: TimestampMs(note.expires_ms).to_rfc3339() });
            }
            note.expires_ms = now_ms().saturating_add(millis(claim_lasts()));
            Ok(())
        });
        let (note, version) = renewed.await?;
        let kept = note.kept.clone();
        *self.held.lock() = Held { version, note };
        Ok(kept)
    }

    /// Gives it back. Where that fails it runs out.
    pub(super) async fn release(self) {
        if self.held.lock().version.is_none() {
            return;
        }
        let released = change(self.store, |note| {
            if note.node == self.node {
                (note.node, note.expires_ms) = (0, 0);
                note.owner.clear();
            }
            Ok(())
        });
        if let Err(error) = released.await {
            event!(Info, "maintenance_elsewhere", PerProcess, cause = error; "{}: others wait for {} s: {error}", self.store.url(), claim_lasts().as_secs());
        }
    }
}

fn lacks_conditions(error: &StoreError) -> bool {
    error.operation == "put" && error.kind == StoreErrorKind::Protocol
}

fn owner() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}:{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let kept = vec![Kept { txid: Txid::FIRST, why: "a \"lost\" tail".to_owned() }];
        let note = Note { generation: 3, owner: "web:1".to_owned(), node: 0xc0ffee, expires_ms: 1_795_000_000_123, kept };
        assert_eq!(Note::parse(&note.encode()), Ok(note));
        for wrong in ["", "[]", "{}", r#"{"kept":[{"txid":"nothing"}]}"#] {
            assert!(Note::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
