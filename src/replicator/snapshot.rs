//! Sending the full state of a live database.
//!
//! For an empty bucket it becomes the level-9 snapshot `1-2` with an empty level-0 file `2-2` beside it (nothing but level 9 ever starts at
//! 1); after a break of continuity the next level-0 file itself carries every page. See `docs/format.md`.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::aside::SetAside;
use super::base;
use super::batch::{BatchError, FramePages, WalFile};
use super::control::{Acked, FullReason, FullSent};
use super::database::{Database, Published, now_ms};
use super::file_header::{FileHeader, HEADER_BYTES};
use super::lineage::{self, Newest};
use super::lost_tail;
use super::preserve::{DatabaseFile, Preserver};
use super::progress::Facts;
use super::progress::ReplicationState;
use super::send;
use super::step::{Next, StepError};
use super::tail::{Mode, TailError};
use crate::fault::fault_point;
use crate::logging::event;
use crate::ltx::{Encoder, Finished, Header};
use crate::store::{Created, Level, LtxName, StoreError, Upload};
use crate::types::{PageNo, PageSize, TimestampMs, Txid, WalPos};

/// How long to wait for a checkpoint or a restart that is under way just now.
const WRITER_PAUSE: Duration = Duration::from_millis(5);
/// A longer one, for a transaction that writes to the database file: its end ends the pause.
const TRANSACTION_PAUSE: Duration = Duration::from_secs(1);
/// Pages are read in runs of this many bytes while SQLite's writes to the file wait.
const RUN_BYTES: usize = 256 * 1024;

/// Sends it. `Again` after success, or where the snapshot must start over.
pub(crate) async fn send_full(database: &Database, reason: FullReason) -> Result<Next, StepError> {
    if database.awaits_writers() || database.awaits_others() {
        if database.awaits_open() {
            database.progress.update(|f| f.awaits_open = true);
        }
        return Ok(Next::After(TRANSACTION_PAUSE));
    }
    let before = database.published();
    if before.end.frame == 0
        && let Err(BeginError::Step(damaged)) = size_of(database)
    {
        if database.published() != before || database.awaits_writers() || database.awaits_others() {
            // A commit's checkpoint may write the file just now: its first page is there before the others.
            return Ok(Next::After(WRITER_PAUSE));
        }
        // Before anything is asked of the store.
        return Err(damaged);
    }
    let newest = lineage::newest(database).await?;
    if lineage::is_overtaken(database, reason, newest.as_ref()).await? {
        return Ok(Next::Again);
    }
    if reason == FullReason::BucketAhead
        && let Some(lost) = newest
    {
        lost_tail::keep(database, lost.object.name.max_txid).await?;
    }
    lineage::probe(database).await?;
    // Before its moment is chosen: what is committed up to then is in it. One that was sent before may have come to be there.
    let txid = txid_after(newest.as_ref());
    database.progress.update(|f| f.full_txid = f.full_txid.max(Some(txid)));
    database.sync_file();
    database.prepare_preserving();
    let moment = match begin(database, reason)? {
        Begin::Moment(moment) => moment,
        Begin::Wait => return Ok(Next::After(WRITER_PAUSE)),
        Begin::Empty(sequence) => {
            database.note_acked(sequence);
            database.progress.update(|f| f.acked_sequence = f.acked_sequence.max(sequence));
            return Ok(Next::Idle);
        }
    };
    let _ends = Preserving(database);
    if reason == FullReason::First {
        // After a loss of power nothing else may tell that what is sent now is of this database.
        database.paths.sync_directories();
    }
    database.sync_control();
    send_moment(database, reason, newest, &moment).await
}

/// Ends preserving, also where the snapshot is cut off.
struct Preserving<'a>(&'a Database);

impl Drop for Preserving<'_> {
    fn drop(&mut self) {
        self.0.end_preserving();
    }
}

enum Begin {
    Moment(Published),
    /// A checkpoint, a transaction or a restart of the WAL is under way.
    Wait,
    /// There is no page yet, as of that commit.
    Empty(u64),
}

enum BeginError {
    Empty,
    Step(StepError),
}

impl From<TailError> for BeginError {
    fn from(error: TailError) -> Self {
        Self::Step(error.into())
    }
}

impl From<BatchError> for BeginError {
    fn from(error: BatchError) -> Self {
        TailError::from(error).into()
    }
}

impl From<io::Error> for BeginError {
    fn from(error: io::Error) -> Self {
        Self::Step(error.into())
    }
}

/// Page size and pages of the database by its own header, where there is nothing in the WAL.
fn size_of(database: &Database) -> Result<(Option<PageSize>, u32), BeginError> {
    let size_bytes = std::fs::metadata(&database.paths.database)?.len();
    if size_bytes == 0 {
        return Err(BeginError::Empty);
    }
    let header = match database.file_header() {
        Ok(header) => header,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => FileHeader::decode(&[0; HEADER_BYTES]),
        Err(error) => return Err(error.into()),
    };
    match header.damage(size_bytes) {
        Some(why) => Err(BeginError::Step(StepError::Damaged(why))),
        None => Ok((header.page_size, header.pages(size_bytes))),
    }
}

/// Chooses the moment: from here on its pages are preserved and later frames are captured as they come.
fn begin(database: &Database, reason: FullReason) -> Result<Begin, StepError> {
    fault_point!("full.begin");
    let mut tail = database.lock_tail();
    let sequence = database.published().sequence;
    let begun = database.begin_preserving(|mut published| {
        let frames = if published.end.frame > 0 {
            let start = WalPos { frame: 0, ..published.end };
            tail.wal()?.pages(&start, published.end.frame)?
        } else {
            // A WAL-index that was made for an empty WAL knows neither; somebody else may have changed both.
            (published.page_size, published.database_pages) = size_of(database)?;
            FramePages::none(published.page_size.ok_or(BeginError::Empty)?, published.database_pages, published.end)
        };
        let size_bytes = std::fs::metadata(&database.paths.database)?.len();
        let preserver = Preserver::new(frames, published.database_pages, size_bytes, &database.paths.directory)
            .map_err(|source| TailError::Control { path: database.paths.directory.clone(), source })?;
        let others =
            SetAside::begin(&database.shared, &database.paths, preserver.page_size, preserver.commit_pages, preserver.wal_frames())
                .map_err(|source| TailError::Control { path: database.paths.directory.clone(), source })?;
        let preserver = preserver.with_others(others);
        if preserver.missing().is_some() && tail.wal().is_ok_and(|wal| wal.goes_on_after(&published.end)) {
            // Then it may be a later commit that made the file shorter.
            return Err(BeginError::Step(StepError::StartOver("another process has committed to the WAL".to_owned())));
        }
        Ok((preserver, published))
    });
    let begun = match begun {
        Err(BeginError::Empty) => return Ok(Begin::Empty(sequence)),
        Err(BeginError::Step(error)) => return Err(error),
        Ok(begun) => begun,
    };
    let Some(published) = begun else { return Ok(Begin::Wait) };
    tail.state.captured = Some(published.end);
    // With nothing in the WAL that is not in the database file, whatever generation SQLite begins next follows on.
    tail.state.sealed = published.end.frame == 0;
    if !tail.state.sealed {
        tail.state.next_salts = None;
    }
    tail.state.stamp = if tail.state.sealed { database.stamp() } else { None };
    tail.state.full = Some(if reason == FullReason::First { reason } else { FullReason::Unfinished });
    tail.state.open_transaction = None;
    tail.state.page_size = published.page_size.map_or(0, PageSize::get);
    tail.captured_sequence = published.sequence;
    // What was captured after an earlier moment, of a snapshot that did not come to its end, is older than this one.
    tail.spool.clear();
    tail.save()?;
    let attempt = tail.state.attempt.map(|a| a.txid);
    tail.spool.remove_stale(attempt).map_err(TailError::from)?;
    database.note_captured(&tail);
    fault_point!("full.begun");
    Ok(Begin::Moment(published))
}

fn txid_after(newest: Option<&Newest>) -> Txid {
    newest.map_or(Txid::FIRST, |newest| newest.object.name.max_txid).next()
}

async fn send_moment(database: &Database, reason: FullReason, newest: Option<Newest>, moment: &Published) -> Result<Next, StepError> {
    let Some(page_size) = moment.page_size else { return Ok(Next::Idle) };
    let txid = txid_after(newest.as_ref());
    // Files of two page sizes cannot follow each other: with another one a new line of increments begins, as with the first.
    let begins = match newest {
        None => true,
        Some(Newest { object: newest, .. }) => {
            let last = lineage::header(database, &newest).await?;
            if newest.name.level != Level::ZERO {
                // A snapshot that was cut off from its marker.
                lineage::write_marker(database, newest.name.max_txid, &last).await?;
            }
            last.page_size != page_size
        }
    };
    let name = if begins { LtxName::snapshot(txid) } else { LtxName::level0(txid) };
    let timestamp = TimestampMs(if moment.committed_ms > 0 { moment.committed_ms } else { now_ms() });
    let mut header = Header::new(page_size, moment.database_pages, name.min_txid, name.max_txid, timestamp);
    if moment.end.frame > 0 {
        header.set_wal_range(0, &moment.end);
    }
    header.node_id = database.lock_tail().state.node_id;
    // A store that can be read but not written fails here, again and again: the failure itself is told once, and so is this.
    let level = if database.progress.facts().last_error.is_none() { log::Level::Info } else { log::Level::Debug };
    event!(
        level, "full_state_begins", database, txid = txid, cause = reason.text();
        "sending the full state, {} pages, as {name}: {}", moment.database_pages, reason.text()
    );
    database.progress.update(Facts::under_way);
    let missing = database.with_preserver(|preserver| preserver.missing()).flatten();
    match stream(database, &name, &header, timestamp).await? {
        Streamed::Sent(Created::New) => {}
        // A name that was taken meanwhile: look again whose it is.
        Streamed::Sent(Created::AlreadyExists) => {
            lineage::verify(database, false).await?;
            return Ok(Next::Again);
        }
        Streamed::StartOver(why) => return Err(StepError::StartOver(why)),
    }
    if begins {
        lineage::write_marker(database, txid, &header).await?;
    } else if newest.is_some_and(|newest| !newest.has_base) {
        base::make(database, &name).await?;
    }
    let mut tail = database.lock_tail();
    if tail.state.full_sent.is_some_and(|sent| sent.txid == txid && sent.again) {
        // An earlier request may still put another state there. With every page under the next name that harms nothing.
        tail.state.full_sent = None;
        tail.save()?;
        event!(Info, "full_state_again", database, txid = txid; "the full state is sent once more: an earlier request for TXID {txid} may still arrive");
        database.progress.update(|f| (f.snapshots, f.last_snapshot) = (f.snapshots + 1, Some((now_ms(), reason))));
        return Ok(Next::Again);
    }
    tail.state.full_sent = None;
    if tail.state.captured.is_none() || tail.has_failed() {
        // Continuity was lost while the last request was under way.
        return Ok(Next::Again);
    }
    (tail.state.acked, tail.state.witness) = (Some(Acked { txid, end: moment.end }), Some(txid));
    (tail.state.full, tail.state.adopt, tail.state.restored_earlier, tail.state.attempt) = (None, None, None, None);
    tail.state.looks.compared();
    tail.state.looks.looked_back();
    tail.mode = Mode::Running;
    tail.save()?;
    fault_point!("full.acked");
    let settled = database.is_settled(&tail);
    drop(tail);
    event!(Info, "full_state_sent", database, txid = txid; "the full state is in the bucket: {} pages, TXID {txid}", moment.database_pages);
    if let Some((first, last)) = missing {
        event!(
            Warn, "database_damaged", database, txid = txid;
            "is damaged: of pages {first} to {last} some are missing in the file and in its WAL, as a power loss with synchronous=OFF \
             leaves it. SQLite reads zeros there, and so it is in the bucket as TXID {txid}. Look with PRAGMA integrity_check; a restore of an \
             earlier TXID has what was there before"
        );
    }
    database.note_acked(moment.sequence);
    database.progress.update(|f| {
        f.acked_sequence = f.acked_sequence.max(moment.sequence);
        f.remote_txid = Some(txid);
        f.full_txid = None;
        f.last_success_ms = Some(now_ms());
        f.last_error = None;
        (f.snapshots, f.last_snapshot) = (f.snapshots + 1, Some((now_ms(), reason)));
        f.state = if settled { ReplicationState::Idle } else { ReplicationState::Uploading };
    });
    Ok(Next::Again)
}

enum Streamed {
    Sent(Created),
    StartOver(String),
}

/// Reads, encodes and sends, holding one part in memory.
async fn stream(database: &Database, name: &LtxName, header: &Header, timestamp: TimestampMs) -> Result<Streamed, StepError> {
    let file = database.open_file()?;
    // Its own descriptor: the WAL may be deleted while the snapshot runs.
    let wal = database.with_preserver(|p| p.reads_wal()).unwrap_or(false).then(|| WalFile::open(&database.paths.wal)).and_then(Result::ok);
    let part_bytes = database.store.part_size_bytes();
    let buffer = SharedBuffer::default();
    let mut encoder = Encoder::new(buffer.clone(), header)?;
    let mut upload: Option<Box<dyn Upload>> = None;
    loop {
        fault_point!("full.run");
        let run = read_run(database, file.as_ref(), wal.as_ref(), header.page_size.bytes());
        let (pages, end) = match run {
            Ok(run) => run,
            Err(Unread::StartOver(why)) => {
                abort(upload).await;
                return Ok(Streamed::StartOver(why));
            }
            Err(Unread::Failed(error)) => {
                abort(upload).await;
                return Err(error.into());
            }
        };
        for (number, page) in &pages {
            encoder.page(*number, page)?;
        }
        while let Some(part) = buffer.take(part_bytes) {
            send_part(database, name, timestamp, &mut upload, part).await?;
        }
        if end {
            break;
        }
        if database.closing.load(Ordering::Acquire) {
            abort(upload).await;
            return Err(StepError::Closed);
        }
        tokio::task::yield_now().await;
    }
    if let (Some(wal), Some(end)) = (&wal, header.wal_end())
        && database.with_preserver(|p| p.reads_frames()) == Some(true)
        && !wal.holds(&end)
    {
        abort(upload).await;
        return Ok(Streamed::StartOver("the WAL was restarted by someone we did not see".to_owned()));
    }
    if database.is_checkpointed_by_others() {
        abort(upload).await;
        return Ok(Streamed::StartOver("a process without the extension has run a checkpoint".to_owned()));
    }
    if database.is_touched_by_others() {
        abort(upload).await;
        return Ok(Streamed::StartOver("the database file was written to by someone we did not see".to_owned()));
    }
    let finished = encoder.finish()?;
    while let Some(part) = buffer.take(part_bytes) {
        send_part(database, name, timestamp, &mut upload, part).await?;
    }
    let rest = buffer.take_all();
    if upload.is_some() && !rest.is_empty() {
        send_part(database, name, timestamp, &mut upload, rest.clone()).await?;
    }
    fault_point!("full.put");
    let in_parts = upload.is_some();
    let replaces = database.progress.facts().fencing == Some(false);
    if replaces && is_there(database, name, &finished).await?.is_some() {
        abort(upload).await;
        return Ok(Streamed::Sent(Created::AlreadyExists));
    }
    let before = note_sent(database, name.max_txid, in_parts)?;
    let sent = match upload {
        None => database.store.create(name, rest, timestamp).await,
        Some(upload) => upload.finish().await,
    };
    match sent {
        // Of two that were written at the same time the later one stands.
        Ok(Created::New) if replaces && is_there(database, name, &finished).await? != Some(true) => {
            Ok(Streamed::Sent(Created::AlreadyExists))
        }
        Ok(created) => {
            fault_point!("full.put-done");
            Ok(Streamed::Sent(created))
        }
        Err(error) if !error.may_have_been_done() => {
            database.lock_tail().state.full_sent = before;
            Err(error.into())
        }
        // The answer got lost, and it is a whole upload that would have to be made again.
        Err(error) if send::has_landed(database, name, &finished, in_parts, &error).await => Ok(Streamed::Sent(Created::New)),
        Err(error) => {
            // It may still come to be there, and the next try is of a later moment.
            database.progress.update(|f| f.full_txid = f.full_txid.max(Some(name.max_txid.next())));
            Err(error.into())
        }
    }
}

/// Whether an object is there and has these bytes; `None` where there is none.
async fn is_there<W>(database: &Database, name: &LtxName, file: &Finished<W>) -> Result<Option<bool>, StepError> {
    let Some(object) = lineage::look(database, name).await? else { return Ok(None) };
    Ok(Some(send::is_file(database, &object, file.size_bytes, file.file_checksum).await?))
}

/// Remembers a request that could replace what is there, before it is made: on stores that know no conditions, and for objects in parts,
/// whose end is not conditional everywhere. Returns what was remembered before.
fn note_sent(database: &Database, txid: Txid, in_parts: bool) -> Result<Option<FullSent>, StepError> {
    let mut tail = database.lock_tail();
    let before = tail.state.full_sent;
    if in_parts || tail.state.fencing != Some(true) {
        tail.state.full_sent = Some(FullSent { txid, again: before.is_some_and(|sent| sent.txid == txid) });
        tail.save()?;
    }
    Ok(before)
}

pub(super) async fn send_part(
    database: &Database,
    name: &LtxName,
    timestamp: TimestampMs,
    upload: &mut Option<Box<dyn Upload>>,
    part: Bytes,
) -> Result<(), StepError> {
    let current = match upload {
        Some(current) => current,
        None => upload.insert(database.store.upload(name, timestamp).await?),
    };
    fault_point!("full.part");
    if let Err(error) = current.part(part).await {
        give_up(upload.take(), &error).await;
        return Err(error.into());
    }
    fault_point!("full.part-sent");
    Ok(())
}

/// Gives the parts back, unless the store has asked for no more requests: then a rule of the bucket's removes them one day.
async fn give_up(upload: Option<Box<dyn Upload>>, error: &StoreError) {
    if error.retry_after.is_none() {
        abort(upload).await;
    }
}

async fn abort(upload: Option<Box<dyn Upload>>) {
    if let Some(upload) = upload {
        upload.abort().await;
    }
}

type Run = (Vec<(PageNo, Vec<u8>)>, bool);

/// Why pages were not read.
enum Unread {
    /// The moment is lost: another one may do.
    StartOver(String),
    /// The files cannot be read, or are too short: the next try may fail as well, so that it has to wait.
    Failed(io::Error),
}

/// Reads the next pages.
fn read_run(database: &Database, file: &dyn DatabaseFile, wal: Option<&WalFile>, page_bytes: usize) -> Result<Run, Unread> {
    database
        .with_preserver(|preserver| {
            let mut pages = Vec::new();
            while pages.len() * page_bytes < RUN_BYTES {
                if let Some(why) = preserver.broken() {
                    return Err(Unread::StartOver(why.to_owned()));
                }
                let mut page = vec![0; page_bytes];
                match preserver.next(file, wal, &mut page) {
                    Ok(Some(number)) => pages.push((number, page)),
                    Ok(None) => return Ok((pages, true)),
                    Err(error) => return Err(Unread::Failed(error)),
                }
            }
            Ok((pages, false))
        })
        .unwrap_or_else(|| Err(Unread::StartOver("it was given up".to_owned())))
}

/// Where the encoder writes and the uploads take from.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedBuffer(Rc<RefCell<Vec<u8>>>);

impl SharedBuffer {
    /// Exactly that much, if there is.
    pub(super) fn take(&self, bytes: usize) -> Option<Bytes> {
        let mut buffer = self.0.borrow_mut();
        if buffer.len() < bytes {
            return None;
        }
        let rest = buffer.split_off(bytes);
        Some(std::mem::replace(&mut *buffer, rest).into())
    }

    pub(super) fn take_all(&self) -> Bytes {
        std::mem::take(&mut *self.0.borrow_mut()).into()
    }
}

impl Write for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
