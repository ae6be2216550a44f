//! Putting a frozen batch into the bucket.

use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;

use super::database::Database;
use super::tail::{Body, Inflight};
use super::uploader::StepError;
use crate::store::{Created, LtxName};
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
            upload.abort().await;
            return Err(error.into());
        }
    }
    Ok(upload.finish().await?)
}

fn read(path: &Path, offset: u64, bytes: u64) -> std::io::Result<Bytes> {
    let mut buffer = vec![0; usize::try_from(bytes).map_err(std::io::Error::other)?];
    std::fs::File::open(path)?.read_exact_at(&mut buffer, offset)?;
    Ok(buffer.into())
}
