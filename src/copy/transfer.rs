//! Brings one object from one store to another, verified on its way.

use bytes::Bytes;

use super::error::CopyError;
use crate::fault::fault_point;
use crate::ltx::{Decoder, Header, LtxError, Summary, TRAILER_BYTES};
use crate::restore::fetch;
use crate::restore::fetch::retried;
use crate::store::{Created, Listed, Store, StoreError, StoreErrorKind, Upload};

/// What became of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    Copied,
    /// Somebody else has copied it in the meantime.
    WasThere,
    /// The source does not have it any more.
    Gone,
    /// The source's is damaged.
    Damaged(String),
    /// The destination's is damaged, and the store does not let it go.
    Locked(String),
}

/// An object as it was read and verified.
pub(super) struct Body {
    bytes: Bytes,
    header: Header,
}

/// Reads a small one to its end.
pub(super) async fn read(from: &dyn Store, file: &Listed) -> Result<Result<Body, Moved>, StoreError> {
    let bytes = match fetch::range(from, &file.name, 0..file.size_bytes).await {
        Ok(bytes) => bytes,
        Err(error) => return not_had(error).map(Err),
    };
    let mut decoder = Decoder::new();
    let decoded = decoder.push(&bytes, &mut |_, _| Ok(())).and_then(|()| decoder.finish());
    Ok(match judged(file, decoded) {
        Ok(summary) => Ok(Body { bytes, header: summary.header }),
        Err(moved) => Err(moved),
    })
}

/// Stores it, and looks whether the store has it.
pub(super) async fn put(to: &dyn Store, file: &Listed, body: &Body) -> Result<Moved, CopyError> {
    fault_point!("copy.create");
    let created = retried(async || to.create(&file.name, body.bytes.clone(), body.header.timestamp).await).await?;
    fault_point!("copy.created");
    let trailer = body.bytes.get(body.bytes.len().saturating_sub(TRAILER_BYTES)..).unwrap_or_default();
    stored(to, file, trailer, created).await
}

/// Copies a large one in parts, in bounded memory. One that is there and damaged is deleted first, once the source's has proved to be good.
pub(super) async fn stream(from: &dyn Store, to: &dyn Store, file: &Listed, replaces: bool) -> Result<Moved, CopyError> {
    if replaces {
        match parts(from, file, None).await? {
            Ok(_) => match retried(async || to.delete(&[file.name]).await).await {
                Err(error) if !error.is_transient() => return Ok(Moved::Locked(error.to_string())),
                deleted => deleted?,
            },
            Err(moved) => return Ok(moved),
        }
    }
    let mut upload = None;
    let outcome = parts(from, file, Some((to, &mut upload))).await;
    let trailer = match outcome {
        Ok(Ok(trailer)) => trailer,
        other => {
            if let Some(upload) = upload.take() {
                upload.abort().await;
            }
            return other?.map_or_else(Ok, |_| Ok(Moved::Gone));
        }
    };
    fault_point!("copy.finish");
    let Some(upload) = upload.take() else { return Ok(Moved::Gone) };
    let created = upload.finish().await?;
    stored(to, file, &trailer, created).await
}

/// Where it goes, and the upload once it has begun.
type Sink<'a> = (&'a dyn Store, &'a mut Option<Box<dyn Upload>>);

/// Reads an object in parts, and sends each on where there is somewhere to send it. The answer is its trailer, once all of it was verified.
async fn parts(from: &dyn Store, file: &Listed, mut to: Option<Sink<'_>>) -> Result<Result<Bytes, Moved>, CopyError> {
    let part_bytes = to.as_ref().map_or(fetch::CHUNK_BYTES, |(to, _)| to.part_size_bytes() as u64);
    let (mut decoder, mut offset, mut trailer) = (Decoder::new(), 0, Bytes::new());
    while offset < file.size_bytes {
        let end = file.size_bytes.min(offset + part_bytes);
        let bytes = match fetch::range(from, &file.name, offset..end).await {
            Ok(bytes) => bytes,
            Err(error) => return Ok(Err(not_had(error)?)),
        };
        if let Err(error) = decoder.push(&bytes, &mut |_, _| Ok(())) {
            return Ok(Err(Moved::Damaged(error.to_string())));
        }
        trailer = last_of(&trailer, &bytes);
        if let Some((to, upload)) = &mut to {
            let upload = match &mut **upload {
                Some(upload) => upload,
                none => {
                    let Some(header) = decoder.header().copied() else { return Ok(Err(Moved::Damaged("it has no header".to_owned()))) };
                    none.insert(retried(async || to.upload(&file.name, header.timestamp).await).await?)
                }
            };
            fault_point!("copy.part");
            upload.part(bytes).await?;
        }
        offset = end;
    }
    Ok(judged(file, decoder.finish()).map(|_| trailer))
}

/// The last bytes of what came before and of what comes now.
fn last_of(before: &Bytes, now: &Bytes) -> Bytes {
    let joined: Vec<u8> = before.iter().chain(now.get(now.len().saturating_sub(TRAILER_BYTES)..).unwrap_or_default()).copied().collect();
    joined.get(joined.len().saturating_sub(TRAILER_BYTES)..).unwrap_or_default().to_vec().into()
}

fn judged(file: &Listed, decoded: Result<Summary, LtxError>) -> Result<Summary, Moved> {
    let summary = decoded.map_err(|error| Moved::Damaged(error.to_string()))?;
    let (min, max) = (summary.header.min_txid, summary.header.max_txid);
    if (min, max) == (file.name.min_txid, file.name.max_txid) {
        Ok(summary)
    } else {
        Err(Moved::Damaged(format!("its header says that it holds TXID {min} to {max}")))
    }
}

fn not_had(error: StoreError) -> Result<Moved, StoreError> {
    match error.kind {
        StoreErrorKind::NotFound => Ok(Moved::Gone),
        StoreErrorKind::Truncated => Ok(Moved::Damaged(format!("it is shorter than listed ({})", error.cause))),
        _ => Err(error),
    }
}

/// Whether the store has what was sent: its size and its checksum.
async fn stored(to: &dyn Store, file: &Listed, trailer: &[u8], created: Created) -> Result<Moved, CopyError> {
    let size = retried(async || to.head(&file.name).await).await?.size_bytes;
    let is_same = size == file.size_bytes
        && retried(async || to.get_range(&file.name, size.saturating_sub(trailer.len() as u64)..size).await).await? == trailer;
    match (is_same, created) {
        (true, Created::New) => Ok(Moved::Copied),
        (true, Created::AlreadyExists) => Ok(Moved::WasThere),
        (false, Created::AlreadyExists) => Err(CopyError::OtherHistory { url: to.url().to_owned(), object: file.name }),
        (false, Created::New) => {
            // A restore would trip over it. Where it cannot be deleted the error says what it is.
            let _ = to.delete(&[file.name]).await;
            Err(CopyError::NotStored { url: to.url().to_owned(), object: file.name })
        }
    }
}
