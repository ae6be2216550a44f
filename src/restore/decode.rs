//! Threads that decode runs of page frames and write their pages, and one that has the disk begin early with what they wrote.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::apply::ApplyError;
use crate::logging::{PerProcess, event};
use crate::ltx::{LtxError, Run, Sum};
use crate::types::PageSize;

/// Neighbouring pages are written together up to this size.
const WRITE_BYTES: usize = 256 << 10;

/// After so much written the disk is told to write it: it works while the rest is read, and the sync at the end finds little left.
const SYNC_EVERY_BYTES: u64 = 32 << 20;

const STACK_BYTES: usize = 256 << 10;

/// A run to decode.
#[derive(Debug)]
pub(super) struct Job {
    /// Which file of the plan, counted from the newest.
    pub(super) place: usize,
    /// Which run of the file.
    pub(super) number: u64,
    pub(super) run: Run,
    pub(super) page_size: PageSize,
    /// The memory that it holds.
    pub(super) held_bytes: u64,
}

/// What became of one.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) place: usize,
    pub(super) number: u64,
    pub(super) held_bytes: u64,
    pub(super) outcome: Result<Sum, ApplyError>,
}

/// The threads. They are gone when this is dropped, whatever was left to do.
#[derive(Debug)]
pub(super) struct Workers {
    jobs: Option<Sender<Job>>,
    done: UnboundedReceiver<Done>,
    sync_error: Receiver<io::Error>,
    threads: Vec<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
}

impl Workers {
    /// Starts up to `count` of them, at least one.
    pub(super) fn start(count: usize, file: &Arc<File>) -> io::Result<Self> {
        let (jobs, queue) = crossbeam_channel::unbounded();
        let (to, done) = unbounded_channel();
        let (sync, syncs) = crossbeam_channel::bounded(1);
        let (sync_failed, sync_error) = crossbeam_channel::bounded(1);
        let is_over = Arc::new(AtomicBool::new(false));
        let mut workers = Self { jobs: Some(jobs), done, sync_error, threads: Vec::new(), is_over };
        let written = Arc::new(AtomicU64::new(0));
        for i in 0..count.max(1) {
            let worker = Worker {
                queue: queue.clone(),
                to: to.clone(),
                sync: sync.clone(),
                file: Arc::clone(file),
                written: Arc::clone(&written),
                is_over: Arc::clone(&workers.is_over),
            };
            match spawn("replicated-decode", move || worker.run()) {
                Ok(thread) => workers.threads.push(thread),
                // One is enough.
                Err(error) if i > 0 => {
                    event!(Debug, "restore_threads", PerProcess, cause = error; "{i} of {count} decoding threads started: {error}")
                }
                Err(error) => return Err(error),
            }
        }
        let file = Arc::clone(file);
        // Without it the sync at the end does everything.
        let syncer = spawn("replicated-sync", move || {
            for () in syncs {
                if let Err(error) = file.sync_data() {
                    // An error of the disk is told once; the sync at the end would not hear of it again.
                    let _ = sync_failed.try_send(error);
                }
            }
        });
        workers.threads.extend(syncer.ok());
        Ok(workers)
    }

    /// How many are at work at most is the caller's business.
    pub(super) fn send(&self, job: Job) {
        // Fails where all of them have ended, which `done` then says.
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }

    pub(super) async fn done(&mut self) -> io::Result<Done> {
        self.done.recv().await.ok_or_else(|| io::Error::other("the decoding threads have ended"))
    }

    /// Waits for the threads; fails where the disk has failed.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.join();
        self.sync_error.try_recv().map_or(Ok(()), Err)
    }

    fn join(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // It does not panic: what could is caught.
            let _ = thread.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.join();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    // Signals that are blocked here are blocked there, too.
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(body)
}

struct Worker {
    queue: Receiver<Job>,
    to: UnboundedSender<Done>,
    sync: Sender<()>,
    file: Arc<File>,
    written: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Worker {
    fn run(self) {
        let mut buffer = Vec::new();
        for job in &self.queue {
            if self.is_over.load(Ordering::Relaxed) {
                continue;
            }
            let Job { place, number, run, page_size, held_bytes } = job;
            let decoded = catch_unwind(AssertUnwindSafe(|| self.decode(&run, page_size, &mut buffer)));
            let outcome = decoded.unwrap_or_else(|_| Err(ApplyError::Write(io::Error::other("a fault in the program"))));
            drop(run);
            // Nobody waits for it any more where the restore is over.
            let _ = self.to.send(Done { place, number, held_bytes, outcome });
        }
    }

    fn decode(&self, run: &Run, page_size: PageSize, buffer: &mut Vec<u8>) -> Result<Sum, ApplyError> {
        buffer.clear();
        buffer.reserve(WRITE_BYTES);
        let mut out = Writer { file: &self.file, start: 0, buffer, written: 0 };
        let sum = run.decode(&mut |page, data| {
            // The output is zeroes already, and a hole takes no disk.
            if is_zeroes(data) { Ok(()) } else { out.write(page_size.offset_of(page), data) }
        });
        let sum = sum.and_then(|sum| out.flush().map(|()| sum).map_err(LtxError::Io));
        let before = self.written.fetch_add(out.written, Ordering::Relaxed);
        if before / SYNC_EVERY_BYTES != (before + out.written) / SYNC_EVERY_BYTES {
            // Where one is to come anyway that does.
            let _ = self.sync.try_send(());
        }
        sum.map_err(ApplyError::from)
    }
}

/// By comparing it with itself, one byte on.
fn is_zeroes(data: &[u8]) -> bool {
    data.split_first().is_none_or(|(first, rest)| *first == 0 && data.starts_with(rest))
}

/// Gathers neighbouring pages, which in a snapshot all are, into fewer writes.
struct Writer<'a> {
    file: &'a File,
    start: u64,
    buffer: &'a mut Vec<u8>,
    written: u64,
}

impl Writer<'_> {
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let is_next = offset == self.start + self.buffer.len() as u64;
        if !is_next || self.buffer.len() + data.len() > WRITE_BYTES {
            self.flush()?;
            self.start = offset;
        }
        self.buffer.extend_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_all_at(self.buffer, self.start)?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::is_zeroes;

    #[test]
    fn zeroes_are_told_from_everything_else() {
        assert!(is_zeroes(&[]) && is_zeroes(&[0]) && is_zeroes(&[0; 4096]));
        for at in [0, 1, 2047, 4094, 4095] {
            let mut data = [0; 4096];
            data[at] = 1;
            assert!(!is_zeroes(&data), "{at}");
        }
        assert!(!is_zeroes(&[7; 4096]));
    }
}
