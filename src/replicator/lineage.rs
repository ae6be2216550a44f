//! Whether the bucket and the local database are one history.
//!
//! Asked once after an open, and whenever a name that was to be created is taken already. Where nothing is proved, nothing is sent.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::join_all;

use super::batch::WalFile;
use super::control::{Acked, Attempt, Conflict, FullReason, FullSent, State};
use super::database::Database;
use super::origin::Relation;
use super::step::{StepError, stop};
use super::tail::{Mode, StopKind};
use super::{looks, send};
use crate::fault::fault_point;
use crate::logging::{event, repeated_event};
use crate::ltx::{Decoder, HEADER_BYTES, Header, LtxError};
use crate::restore::{self, Target};
use crate::store::{Level, Listed, LtxName, StoreError, StoreErrorKind};
use crate::types::{PageNo, Txid, WalPos};

/// Header, end of pages, empty index and trailer: no LTX file is shorter.
const SMALLEST_FILE_BYTES: u64 = 131;
/// Another tool's file is read to compare one page with the WAL; a larger one proves nothing.
const MOST_COMPARED_BYTES: u64 = 16 * 1024 * 1024;

/// Whose an object is that was there before us.
#[derive(Debug)]
pub(crate) enum Exists {
    /// An earlier attempt of ours.
    Ours,
    /// Another writer's.
    Foreign(Conflict),
    /// No LTX file; the text says what to do.
    Unreadable(String),
}

/// Where a bucket ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newest {
    pub(crate) object: Listed,
    /// A restore finds its way to it. Where objects were deleted it may not.
    pub(crate) has_base: bool,
}

/// The newest object over all levels.
///
/// What a listing leaves out would be taken for absent, and its name be given to another state. So the name that would be next is asked for
/// itself.
pub(crate) async fn newest(database: &Database) -> Result<Option<Newest>, StepError> {
    /// Objects of ours that a listing may lack. None lags as far.
    const MOST_UNLISTED: usize = 1000;
    let (mut found, mut failure) = (Vec::new(), None::<StoreError>);
    for level in join_all(Level::all().map(|level| database.store.list(level, None))).await {
        match level {
            Ok(listed) => found.extend(listed),
            // Of several failures the one that names a time counts: no request may come before it.
            Err(error) if failure.as_ref().is_none_or(|f| error.retry_after > f.retry_after) => failure = Some(error),
            Err(_) => {}
        }
    }
    if let Some(failure) = failure {
        return Err(failure.into());
    }
    // Of objects that reach equally far the lowest level says most.
    let mut newest = found.iter().copied().max_by_key(|l| (l.name.max_txid, std::cmp::Reverse(l.name.level)));
    for _ in 0..MOST_UNLISTED {
        let next = newest.map_or(LtxName::snapshot(Txid::FIRST.next()), |l| LtxName::level0(l.name.max_txid.next()));
        match look(database, &next).await? {
            Some(unlisted) => newest = Some(unlisted),
            None => break,
        }
        found.extend(newest);
    }
    let Some(object) = newest else { return Ok(None) };
    let leads_there = |found: &[Listed]| restore::plan(found, Target::Txid(object.name.max_txid)).is_ok();
    let mut has_base = leads_there(&found);
    if !has_base {
        // The listing of the snapshots may lag as well; this is where a bucket begins.
        found.extend(look(database, &LtxName::snapshot(Txid::FIRST.next())).await?);
        has_base = leads_there(&found);
    }
    Ok(Some(Newest { object, has_base }))
}

/// What an object is by itself, whatever a listing says.
pub(crate) async fn look(database: &Database, name: &LtxName) -> Result<Option<Listed>, StepError> {
    match database.store.head(name).await {
        Ok(listed) => Ok(Some(listed)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// An object's header. Where there is none the object itself is wrong: trying again for ever would not help.
pub(crate) async fn header(database: &Database, object: &Listed) -> Result<Header, StepError> {
    let mut why = format!("it has {} bytes", object.size_bytes);
    if object.size_bytes >= SMALLEST_FILE_BYTES {
        // Twice, in case that a proxy in between has answered for the store.
        for _ in 0..2 {
            match Header::decode(&database.store.get_range(&object.name, 0..HEADER_BYTES as u64).await?) {
                Ok(header) => return Ok(header),
                Err(error) => why = error.to_string(),
            }
        }
    }
    Err(StepError::Unreadable(format!(
        "{} in {} is no LTX file ({why}), and nothing is sent over it. Look at what it is; once it is moved away or deleted, open the database again",
        object.name,
        database.store.url()
    )))
}

/// Finds out, once, whether the store refuses to replace objects.
pub(crate) async fn probe(database: &Database) -> Result<(), StepError> {
    if database.progress.facts().fencing.is_some() {
        return Ok(());
    }
    fault_point!("probe.begin");
    let conditional = database.store.creates_are_conditional().await?;
    fault_point!("probe.done");
    if !conditional {
        event!(
            Warn, "store_is_weak", database;
            "this store{} replaces objects even when asked not to, so that two writers on one path are told apart only by looking before and after \
             each upload. Make sure that there is one",
            database.paths.of_second()
        );
    }
    database.lock_tail().state.fencing = Some(conditional);
    database.progress.update(|f| f.fencing = Some(conditional));
    Ok(())
}

/// Compares what the control file says with the bucket, and sets the mode accordingly. Where this host has done so just before it `may_be_left_out`: then false.
pub(crate) async fn verify(database: &Database, may_be_left_out: bool) -> Result<bool, StepError> {
    let state = database.lock_tail().state.clone();
    if state.fencing.is_some() {
        database.progress.update(|f| f.fencing = state.fencing);
    }
    let Some(acked) = state.acked else { return verify_unknown(database).await.map(|()| true) };
    // What others have committed meanwhile another tool may have sent.
    let is_as_left = database.shared.began_empty.load(Ordering::Relaxed) != 0;
    if may_be_left_out && is_as_left && looks::may_be_left_out(&state) && database.lock_tail().mode == Mode::Running {
        database.progress.update(|f| f.remote_txid = Some(acked.txid));
        if state.looks.has_just_looked_back() || is_kept(database, &state).await? {
            return Ok(false);
        }
    }
    verify_known(database, state, acked).await.map(|()| true)
}

/// Whether an object of level 0 that was sent before is there: then none that another writer has sent after it has been merged and deleted, and its name would be
/// taken.
async fn is_kept(database: &Database, state: &State) -> Result<bool, StepError> {
    let (Some(witness), Some(acked)) = (state.witness, state.acked) else { return Ok(false) };
    let is_kept = witness <= acked.txid && look(database, &LtxName::level0(witness)).await?.is_some();
    if is_kept {
        note_kept(database, acked.txid);
    }
    Ok(is_kept)
}

/// What the bucket had is there; the next look is at this one.
fn note_kept(database: &Database, next: Txid) {
    let mut tail = database.lock_tail();
    tail.state.witness = Some(next);
    tail.state.looks.looked_back();
}

async fn verify_known(database: &Database, state: State, acked: Acked) -> Result<(), StepError> {
    let witness = state.witness.filter(|witness| *witness < acked.txid);
    let listed = database.store.list(Level::ZERO, Some(witness.unwrap_or(acked.txid))).await?;
    let reach = match listed.iter().map(|l| l.name.max_txid).max() {
        reach if reach >= Some(acked.txid) => reach,
        _ => match newest(database).await?.map(|n| n.object.name.max_txid) {
            reach if reach >= Some(acked.txid) => reach,
            reach => look(database, &LtxName::level0(acked.txid)).await?.map(|l| l.name.max_txid).or(reach),
        },
    };
    // What another writer has sent counts for nobody who waits here. That may be what has the name of our own attempt, until it is sent again.
    let of_ours = reach.map(|reach| reach.min(acked.txid));
    database.progress.update(|f| f.remote_txid = of_ours);
    match reach {
        Some(reach) if reach == acked.txid => {}
        // The attempt of a predecessor arrived; sending it again finds that out.
        Some(reach) if state.attempt.is_some_and(|a| a.txid == reach) => {}
        Some(reach) if reach > acked.txid => return ahead(database, acked.txid, reach).await,
        Some(_) | None => {
            deleted(database, acked.txid, if reach.is_none() { FullReason::First } else { FullReason::BucketBehind });
            return Ok(());
        }
    }
    if let Some(witness) = witness
        && !listed.iter().any(|l| l.name.max_txid == witness)
        && look_back(database).await? == LookBack::Lost
    {
        return Ok(());
    }
    {
        let mut tail = database.lock_tail();
        tail.state.looks.compared();
        tail.state.looks.looked_back();
        tail.save()?;
    }
    resend(database, reach)
}

/// What a look at an older object says of the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LookBack {
    /// Nothing is wrong.
    Kept,
    /// Increments have lost what they follow on: the full state is due.
    Lost,
}

/// Looks whether what the bucket had when it was looked at last is still there: increments would go on arriving without it, for nothing.
///
/// A deletion before the last look was found then, and one after it has taken the object that is looked at now, or is no loss.
pub(crate) async fn look_back(database: &Database) -> Result<LookBack, StepError> {
    let (acked, witness) = {
        let tail = database.lock_tail();
        (tail.state.acked, tail.state.witness)
    };
    let Some(acked) = acked else { return Ok(LookBack::Kept) };
    if let Some(witness) = witness.filter(|witness| *witness <= acked.txid)
        && look(database, &LtxName::level0(witness)).await?.is_none()
        // It may have been merged into another.
        && !newest(database).await?.is_some_and(|newest| newest.has_base)
    {
        deleted(database, witness, FullReason::BucketBehind);
        return Ok(LookBack::Lost);
    }
    note_kept(database, acked.txid);
    Ok(LookBack::Kept)
}

/// The bucket has lost what it had: nothing that is known of it holds any more.
fn deleted(database: &Database, txid: Txid, reason: FullReason) {
    let mut tail = database.lock_tail();
    (tail.inflight, tail.state.attempt, tail.state.acked, tail.state.witness, tail.found_newest) = (None, None, None, None, None);
    event!(Warn, "bucket_lost", database, txid = txid; "the bucket{} had TXID {txid} and does not have it now", database.paths.of_second());
    database.lose(&mut tail, reason);
}

/// What a predecessor may have sent is sent again, byte for byte. Where that cannot be, the full state follows on what is there.
fn resend(database: &Database, reach: Option<Txid>) -> Result<(), StepError> {
    let mut tail = database.lock_tail();
    let Some(attempt) = tail.state.attempt else { return Ok(()) };
    fault_point!("resend");
    if tail.inflight.is_some() || tail.rebuild_attempt()? {
        return Ok(());
    }
    event!(
        Warn, "batch_lost", database, txid = attempt.txid;
        "the batch of TXID {} that was being sent cannot be built again{}",
        attempt.txid,
        if reach == Some(attempt.txid) { "; the bucket has it, and this file may not" } else { "" }
    );
    tail.state.attempt = None;
    // A request for it may still arrive.
    tail.state.full_sent = Some(FullSent { txid: attempt.txid, again: false });
    let lost = if reach == Some(attempt.txid) { FullReason::BucketAhead } else { FullReason::SpoolLost };
    let reason = tail.state.full.unwrap_or(lost);
    database.lose(&mut tail, reason);
    Ok(())
}

/// The bucket goes further than the control file knows. Where that is our own doing, or another tool went on from this very file, it is no
/// other history.
async fn ahead(database: &Database, ours: Txid, reach: Txid) -> Result<(), StepError> {
    let lost_tail = || {
        if database.lock_tail().refuses_lost_tail() {
            let message = format!(
                "a power loss took commits that the bucket still has, up to TXID {reach}, and refuse_lost_tail is set: nothing is sent. Restore the newest \
                 state, or declare this file the truth with `replicated adopt`"
            );
            stop(database, StopKind::Diverged, message);
            return Ok(());
        }
        event!(Warn, "bucket_ahead", database, txid = reach; "the bucket{} has commits up to TXID {reach} that this file may lack", database.paths.of_second());
        give_attempt_up(database, Some(FullReason::BucketAhead))
    };
    if database.lock_tail().state.adopt.is_some_and(|adopt| adopt >= reach) {
        return give_attempt_up(database, Some(FullReason::Adopted));
    }
    let mut theirs = None;
    if let Some(Newest { object: newest, .. }) = newest(database).await? {
        let header = header(database, &newest).await?;
        let proven = proven_end(database, &newest, &header).await?;
        let (node_id, sending_full, spooled, rebooted_without_wal) = {
            let tail = database.lock_tail();
            (tail.state.node_id, tail.state.full.is_some(), !tail.spool.is_empty(), tail.rebooted_without_wal)
        };
        let by_us = header.node_id != 0 && header.node_id == node_id;
        let live = database.published().end;
        match proven {
            // A full state that arrived before the crash, or after its request was given up. Another one follows it.
            _ if by_us && sending_full => return give_attempt_up(database, None),
            // The WAL has all that the bucket has: the control file was set back by a power loss, or another tool went on.
            Some(end) if !spooled => {
                give_attempt_up(database, None)?;
                return continue_from(database, newest.name.max_txid, end);
            }
            // What of the WAL was lost with it is not known.
            _ if by_us && header.wal_end().is_some_and(|end| end.salts == live.salts) => {
                return lost_tail();
            }
            // Outside the WAL nothing tells more than that the machine was started again.
            _ if by_us && rebooted_without_wal => return lost_tail(),
            _ if litestream_position(database) == Some(newest.name.max_txid) => {
                return give_attempt_up(database, Some(FullReason::TakenOver));
            }
            _ => {}
        }
        theirs = (header.node_id != 0 && !by_us).then(|| conflict(&newest, &header));
    }
    if let Some(conflict) = theirs {
        fence(database, conflict);
        return Ok(());
    }
    let message = format!(
        "the bucket goes on to TXID {reach}, this database knows of {ours} only: it is an older copy, or another writer has gone on. Nothing is sent \
         over it. Restore the newest state, or declare this file the truth with `replicated adopt`"
    );
    stop(database, StopKind::Diverged, message);
    database.progress.update(|f| f.remote_txid = Some(reach));
    Ok(())
}

/// The full state would go over what somebody else has written since bucket and database were compared: then they are compared again, which stops
/// replication unless this database goes on from there. A loss of continuity says nothing of the bucket.
pub(crate) async fn is_overtaken(database: &Database, reason: FullReason, newest: Option<&Newest>) -> Result<bool, StepError> {
    let Some(Newest { object, .. }) = newest else { return Ok(false) };
    let reach = object.name.max_txid;
    let (acked, adopt, node_id, found) = {
        let tail = database.lock_tail();
        (tail.state.acked.map(|acked| acked.txid), tail.state.adopt, tail.state.node_id, tail.found_newest)
    };
    let is_expected = match acked.or(found) {
        Some(known) => reach <= known,
        // Nothing at all, or what the user has looked at.
        None => !matches!(reason, FullReason::First | FullReason::Adopted),
    };
    if is_expected || adopt.is_some_and(|adopt| adopt >= reach) || litestream_position(database) == Some(reach) {
        return Ok(false);
    }
    let theirs = header(database, object).await?.node_id;
    if theirs != 0 && theirs == node_id {
        return Ok(false);
    }
    match acked {
        Some(acked) => ahead(database, acked, reach).await?,
        None => verify_unknown(database).await?,
    }
    Ok(true)
}

/// An attempt that the bucket has gone past is not made again.
fn give_attempt_up(database: &Database, full: Option<FullReason>) -> Result<(), StepError> {
    let mut tail = database.lock_tail();
    (tail.inflight, tail.state.attempt) = (None, None);
    match full {
        Some(reason) => database.lose(&mut tail, reason),
        None => tail.save()?,
    }
    Ok(())
}

/// Nothing is known locally of a position in this bucket.
async fn verify_unknown(database: &Database) -> Result<(), StepError> {
    let found = newest(database).await?;
    let Some(Newest { object: newest, has_base }) = found else {
        let mut tail = database.lock_tail();
        tail.found_newest = None;
        // Whatever else was lost before: nothing had been sent.
        if tail.mode != Mode::Full(FullReason::First) {
            database.lose(&mut tail, FullReason::First);
        }
        return Ok(());
    };
    let reach = newest.name.max_txid;
    let header = header(database, &newest).await?;
    // Where one of several states may end up under that name, none of them is gone on from; nor where a restore would not come there.
    let settled = has_base && !database.lock_tail().state.full_sent.is_some_and(|sent| sent.again && sent.txid == reach);
    if let Some(end) = proven_end(database, &newest, &header).await?.filter(|_| settled) {
        let mut tail = database.lock_tail();
        if tail.exchanged {
            tail.found_newest = Some(reach);
            database.lose(&mut tail, FullReason::Exchanged);
            return Ok(());
        }
        drop(tail);
        // At once, before SQLite begins another generation. Where the marker cannot be written, increments follow that say as much.
        continue_from(database, reach, end)?;
        if newest.name.level != Level::ZERO && database.store.list(Level::ZERO, None).await?.is_empty() {
            write_marker(database, reach, &header).await?;
        }
        return Ok(());
    }
    let origin = database.origin.map(|found| (found, found.origin.relation_of(&header)));
    if let Some((found, Relation::Same)) = origin
        && found.is_unchanged
        && settled
        && continue_restored(database, reach)?
    {
        return Ok(());
    }
    let mut tail = database.lock_tail();
    let ours = header.node_id != 0 && header.node_id == tail.state.node_id;
    let reason = if tail.state.adopt.is_some_and(|adopt| adopt >= reach) {
        FullReason::Adopted
    } else if ours {
        FullReason::Unfinished
    } else if litestream_position(database) == Some(reach) {
        FullReason::TakenOver
    } else if matches!(origin, Some((_, Relation::Same | Relation::NotAhead))) {
        FullReason::Restored
    } else {
        drop(tail);
        let message = match origin {
            Some((found, Relation::Ahead)) => format!(
                "the bucket goes on to TXID {reach} (of {}), and this file was restored from the database's other replica at TXID {} (of {}), which had less. \
                 Nothing is sent over it. Restore this one instead with `replicated restore`, or declare this file the truth with `replicated adopt`",
                header.timestamp, found.origin.txid, found.origin.timestamp
            ),
            _ => format!(
                "the bucket holds a database up to TXID {reach}, and nothing shows that this file continues it. Nothing is sent over it. Restore it with \
                 `replicated restore`, or use another replica URL, or declare this file the truth with `replicated adopt`"
            ),
        };
        stop(database, StopKind::Diverged, message);
        // For the status, now that nobody waits for it.
        database.progress.update(|f| f.remote_txid = Some(reach));
        return Ok(());
    };
    tail.found_newest = Some(reach);
    database.lose(&mut tail, reason);
    Ok(())
}

/// The file was restored from the other replica, which ended with the same commit, and nobody had written to it when it was opened: what is captured since
/// follows on what this one has. False where something of that is lost, so that the full state is due.
fn continue_restored(database: &Database, txid: Txid) -> Result<bool, StepError> {
    let mut tail = database.lock_tail();
    if tail.has_failed() || tail.exchanged || tail.mode != Mode::Running || tail.state.full.is_some() {
        return Ok(false);
    }
    (tail.state.acked, tail.state.witness, tail.state.full_sent) = (Some(Acked { txid, end: WalPos::default() }), Some(txid), None);
    tail.save()?;
    event!(
        Info, "resumed", database, txid = txid;
        "goes on after TXID {txid} of the bucket{}, with what was restored from the other one",
        database.paths.of_second()
    );
    Ok(true)
}

/// The WAL holds what the bucket's newest file ends with: go on from there.
fn continue_from(database: &Database, txid: Txid, end: WalPos) -> Result<(), StepError> {
    let mut tail = database.lock_tail();
    if tail.has_failed() {
        return Ok(());
    }
    let live = database.published().end;
    if live.salts != end.salts || live.frame < end.frame || !tail.wal().is_ok_and(|wal| wal.holds(&end)) {
        // SQLite has begun another generation since that was looked at, and what came between is captured as of another moment.
        database.lose(&mut tail, FullReason::Unfinished);
        return Ok(());
    }
    (tail.state.acked, tail.state.witness, tail.state.full_sent) = (Some(Acked { txid, end }), Some(txid), None);
    let captured = tail.state.captured.unwrap_or_default();
    let covers = captured.salts == end.salts && captured.frame >= end.frame;
    if tail.state.full.take().is_some() || !covers && tail.spool.is_empty() {
        // A seal of what was captured before is none of this.
        (tail.state.captured, tail.state.sealed, tail.state.next_salts) = (Some(end), false, None);
    }
    tail.mode = Mode::Running;
    tail.save()?;
    database.note_captured(&tail);
    database.progress.update(|f| f.full_txid = None);
    event!(Info, "resumed", database, txid = txid; "goes on after TXID {txid} of the bucket{}", database.paths.of_second());
    Ok(())
}

/// Where in the live WAL the bucket's newest file ends, if it provably does.
async fn proven_end(database: &Database, newest: &Listed, header: &Header) -> Result<Option<WalPos>, StepError> {
    let live = database.published().end;
    let Some(end) = header.wal_end() else { return Ok(None) };
    if end.frame == 0 || live.salts != end.salts || live.frame < end.frame {
        return Ok(None);
    }
    let Ok(wal) = WalFile::open(&database.paths.wal) else { return Ok(None) };
    if end.checksum != [0, 0] {
        return Ok(wal.holds(&end).then_some(end));
    }
    // Another tool's file names salts and a frame, which a power loss can make ambiguous: compare that frame's page.
    let Ok((at, page, content)) = wal.frame(header.page_size, end.frame) else { return Ok(None) };
    if newest.size_bytes > MOST_COMPARED_BYTES || at.salts != end.salts {
        return Ok(None);
    }
    let bytes = database.store.get_range(&newest.name, 0..newest.size_bytes).await?;
    // A file that cannot be read proves nothing.
    Ok(has_page(&bytes, page, &content).unwrap_or(false).then_some(at))
}

fn has_page(file: &Bytes, number: PageNo, content: &[u8]) -> Result<bool, LtxError> {
    let mut found = false;
    let mut decoder = Decoder::new();
    decoder.push(file, &mut |pgno, data| {
        found |= pgno == number && data == content;
        Ok(())
    })?;
    decoder.finish()?;
    Ok(found)
}

/// The newest TXID that Litestream replicated from this very file, by what it keeps beside it.
fn litestream_position(database: &Database) -> Option<Txid> {
    let path = &database.paths.database;
    let name = format!(".{}-litestream", path.file_name()?.to_str()?);
    let directory = path.parent()?.join(name).join("ltx").join("0");
    std::fs::read_dir(directory)
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| LtxName::parse(Level::ZERO, entry.file_name().to_str()?))
        .map(|name| name.max_txid)
        .max()
}

/// Compares an object that was there before us with the batch that we were to send.
pub(crate) async fn compare(database: &Database, name: &LtxName, attempt: &Attempt) -> Result<Exists, StepError> {
    let listed = database.store.head(name).await?;
    let theirs = match header(database, &listed).await {
        Err(StepError::Unreadable(message)) => return Ok(Exists::Unreadable(message)),
        other => other?,
    };
    let same_bytes = send::is_file(database, &listed, attempt.size_bytes, attempt.checksum).await?;
    let node_id = database.lock_tail().state.node_id;
    let same_range = node_id != 0 && theirs.node_id == node_id && theirs.wal_end() == Some(attempt.end);
    if same_bytes || same_range {
        return Ok(Exists::Ours);
    }
    Ok(Exists::Foreign(conflict(&listed, &theirs)))
}

fn conflict(object: &Listed, header: &Header) -> Conflict {
    Conflict { txid: object.name.max_txid, node_id: header.node_id, timestamp_ms: object.timestamp.0, size_bytes: object.size_bytes }
}

/// Another writer has gone on: replication stops, now and after every open, until the user has decided.
pub(crate) fn fence(database: &Database, conflict: Conflict) {
    fault_point!("fence.begin");
    let message = {
        let mut tail = database.lock_tail();
        tail.state.conflict = Some(conflict);
        let message = conflict.message(tail.state.node_id);
        if let Err(error) = tail.save() {
            repeated_event!(Warn, "local_file", database, cause = error; "{error}");
        }
        message
    };
    stop(database, StopKind::Fenced, message);
    database.sync_control();
}

/// The empty level-0 file beside a first snapshot, without which other tools would count from 1 again.
pub(crate) async fn write_marker(database: &Database, txid: Txid, snapshot: &Header) -> Result<(), StepError> {
    let mut header = Header::new(snapshot.page_size, snapshot.commit_pages, txid, txid, snapshot.timestamp);
    header.node_id = snapshot.node_id;
    let marker = crate::ltx::Encoder::new(Vec::new(), &header)?.finish()?;
    let name = LtxName::level0(txid);
    // One that is there already is as good.
    fault_point!("full.marker");
    database.store.create(&name, marker.out.into(), snapshot.timestamp).await?;
    fault_point!("full.marked");
    Ok(())
}
