//! Putting a frozen batch into the bucket.

use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::clock;
use super::database::Database;
use super::step::StepError;
use super::tail::{Body, Inflight};
use crate::config::Options;
use crate::ltx::Finished;
use crate::store::{Created, Listed, LtxName, StoreError, StoreErrorKind};
use crate::types::TimestampMs;

/// How long a batch that goes in one request is waited for before it is sent again, the same bytes under the same name.
///
/// `request_timeout` is for what may be large. Were a small request that hangs waited for as long, a commit that waits would be over with its
/// time before there was another; so that it gets several. Where the store is only slow each further try is given twice the time.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    in_vain: u32,
}

impl Patience {
    const LEAST: Duration = Duration::from_secs(2);
    const MOST: Duration = Duration::from_secs(10);
    /// Slower connections than this have their tries doubled.
    const BYTES_PER_SECOND: u64 = 128 * 1024;

    /// The limit for so many bytes.
    pub(crate) fn limit(&self, options: &Options, bytes: u64) -> Duration {
        let first = (options.ack_timeout / 3).clamp(Self::LEAST, Self::MOST) + Duration::from_secs(bytes / Self::BYTES_PER_SECOND);
        first.saturating_mul(1 << self.in_vain.min(16)).min(options.request_timeout)
    }

    /// Awaits a request of so many bytes.
    pub(crate) async fn wait<T>(
        &mut self,
        database: &Database,
        name: &LtxName,
        bytes: u64,
        request: impl Future<Output = Result<T, StepError>>,
    ) -> Result<T, StepError> {
        let limit = self.limit(&database.options, bytes);
        let Ok(done) = tokio::time::timeout(limit, request).await else {
            self.in_vain = self.in_vain.saturating_add(1);
            return Err(StepError::Store(StoreError {
                kind: StoreErrorKind::Timeout,
                operation: "create",
                object: format!("{name} in {}", database.store.url()),
                cause: format!("no answer within {:.1} s", limit.as_secs_f64()),
                advice: "Check the network; where it is only slow, the next tries are given more time",
                retry_after: None,
            }));
        };
        self.in_vain = 0;
        done
    }
}

/// Sends it, in one request or in parts. `AlreadyExists` says nothing of whose the object is. With it what was sent, where that was one request.
pub(crate) async fn send(database: &Database, name: &LtxName, inflight: &Inflight) -> Result<(Created, Option<Bytes>), StepError> {
    let timestamp = TimestampMs(inflight.attempt.timestamp_ms);
    let path = match &inflight.body {
        Body::Memory(bytes) => return Ok((database.store.create(name, bytes.clone(), timestamp).await?, Some(bytes.clone()))),
        Body::File(path) => path,
    };
    let part = database.store.part_size_bytes();
    let size = inflight.attempt.size_bytes;
    if size <= part as u64 {
        let bytes = read(path, 0, size)?;
        return Ok((database.store.create(name, bytes.clone(), timestamp).await?, Some(bytes)));
    }
    let mut upload = database.store.upload(name, timestamp).await?;
    let mut offset = 0;
    while offset < size {
        let bytes = read(path, offset, (size - offset).min(part as u64))?;
        offset += bytes.len() as u64;
        if let Err(error) = upload.part(bytes).await {
            // A store that has asked for no more requests gets none for this either.
            if error.retry_after.is_none() {
                upload.abort().await;
            }
            return Err(error.into());
        }
    }
    Ok((upload.finish().await?, None))
}

/// Whether an object is there after all, byte for byte, although the request that was to make it has failed.
///
/// The end of an upload in parts may take the store longer than a request may take; so that is asked for again, for a while.
pub(crate) async fn has_landed<W>(database: &Database, name: &LtxName, file: &Finished<W>, in_parts: bool, error: &StoreError) -> bool {
    if error.retry_after.is_some() {
        return false;
    }
    let pauses: &[u64] = if in_parts { &[0, 1, 2, 4, 8, 16] } else { &[0] };
    for seconds in pauses {
        clock::sleep_until(clock::now() + Duration::from_secs(*seconds)).await;
        match database.store.head(name).await {
            // Where something else is there, or the store fails, the next attempt finds out.
            Ok(listed) => return is_file(database, &listed, file.size_bytes, file.file_checksum).await.unwrap_or(false),
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            Err(_) => return false,
        }
    }
    false
}

/// Whether an object is the LTX file of that size and checksum, which is what it ends with.
pub(crate) async fn is_file(database: &Database, object: &Listed, size_bytes: u64, checksum: u64) -> Result<bool, StoreError> {
    if object.size_bytes != size_bytes {
        return Ok(false);
    }
    let last8 = database.store.get_range(&object.name, size_bytes.saturating_sub(8)..size_bytes).await?;
    Ok(last8.as_ref() == checksum.to_be_bytes())
}

fn read(path: &Path, offset: u64, bytes: u64) -> std::io::Result<Bytes> {
    let mut buffer = vec![0; usize::try_from(bytes).map_err(std::io::Error::other)?];
    std::fs::File::open(path)?.read_exact_at(&mut buffer, offset)?;
    Ok(buffer.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_request_is_made_again_while_a_commit_waits_and_a_slow_one_gets_its_time() {
        let options = Options::default();
        let mut patience = Patience::default();
        assert!(options.ack_timeout >= 3 * patience.limit(&options, 4096));
        assert!(patience.limit(&options, 4 << 20) > patience.limit(&options, 4096));
        let hasty = Options { ack_timeout: Duration::from_millis(10), ..Options::default() };
        assert_eq!(patience.limit(&hasty, 4096), Patience::LEAST);
        let impatient = Options { request_timeout: Duration::from_millis(300), ..Options::default() };
        assert_eq!(patience.limit(&impatient, 4096), impatient.request_timeout);
        let before = patience.limit(&options, 4096);
        patience.in_vain = 1;
        assert_eq!(patience.limit(&options, 4096), 2 * before);
        patience.in_vain = u32::MAX;
        assert_eq!(patience.limit(&options, 4096), options.request_timeout);
    }
}
