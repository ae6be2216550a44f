//! Putting a frozen batch into the bucket.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::clock;
use super::database::Database;
use super::tail::{Body, Inflight};
use super::uploader::StepError;
use crate::ltx::Finished;
use crate::store::{Created, LtxName, StoreError, StoreErrorKind};
use crate::types::TimestampMs;

/// Sends it, in one request or in parts. `AlreadyExists` says nothing of whose the object is.
pub(crate) async fn send(database: &Database, name: &LtxName, inflight: &Inflight) -> Result<Created, StepError> {
    let timestamp = TimestampMs(inflight.attempt.timestamp_ms);
    let path = match &inflight.body {
        Body::Memory(bytes) => return Ok(database.store.create(name, bytes.clone(), timestamp).await?),
        Body::File(path) => path,
    };
    let part = database.store.part_size_bytes();
    let size = inflight.attempt.size_bytes;
    if size <= part as u64 {
        return Ok(database.store.create(name, read(path, 0, size)?, timestamp).await?);
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
    Ok(upload.finish().await?)
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
            Ok(listed) if listed.size_bytes == file.size_bytes => {
                let last8 = listed.size_bytes.saturating_sub(8)..listed.size_bytes;
                let checksum = database.store.get_range(name, last8).await;
                return checksum.is_ok_and(|checksum| checksum.as_ref() == file.file_checksum.to_be_bytes());
            }
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            // Something else is there, or the store fails: the next attempt finds out.
            _ => return false,
        }
    }
    false
}

fn read(path: &Path, offset: u64, bytes: u64) -> std::io::Result<Bytes> {
    let mut buffer = vec![0; usize::try_from(bytes).map_err(std::io::Error::other)?];
    std::fs::File::open(path)?.read_exact_at(&mut buffer, offset)?;
    Ok(buffer.into())
}
