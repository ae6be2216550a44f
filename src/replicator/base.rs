//! A base for a chain that has lost its own.
//!
//! Where objects were deleted and increments remain that nothing leads to, the full state as the next level-0 file is not enough: a restore
//! begins at level 9. The snapshot is made of that very file, so that both hold the same moment: whatever is merged across it later, no
//! older page comes back.

use super::database::Database;
use super::snapshot::{SharedBuffer, send_part};
use super::step::StepError;
use crate::logging::event;
use crate::ltx::{Decoder, Encoder, HEADER_BYTES, Header};
use crate::store::{LtxName, Upload};
use crate::types::Txid;

/// Makes the snapshot `1-N` of the level-0 file `N-N`, which has every page. One part of each is in memory at a time.
pub(crate) async fn make(database: &Database, full: &LtxName) -> Result<(), StepError> {
    let name = LtxName::snapshot(full.max_txid);
    let size_bytes = database.store.head(full).await?.size_bytes;
    let mut header = Header::decode(&database.store.get_range(full, 0..HEADER_BYTES as u64).await?)?;
    header.min_txid = Txid::FIRST;
    let (buffer, part_bytes) = (SharedBuffer::default(), database.store.part_size_bytes());
    let (mut decoder, mut encoder) = (Decoder::new(), Encoder::new(buffer.clone(), &header)?);
    let mut upload: Option<Box<dyn Upload>> = None;
    let mut offset = 0;
    while offset < size_bytes {
        let end = size_bytes.min(offset + part_bytes as u64);
        let bytes = database.store.get_range(full, offset..end).await?;
        decoder.push(&bytes, &mut |number, page| encoder.page(number, page))?;
        while let Some(part) = buffer.take(part_bytes) {
            send_part(database, &name, header.timestamp, &mut upload, part).await?;
        }
        offset = end;
    }
    decoder.finish()?;
    encoder.finish()?;
    let rest = buffer.take_all();
    if upload.is_some() && !rest.is_empty() {
        send_part(database, &name, header.timestamp, &mut upload, rest.clone()).await?;
    }
    // One that is there already holds the same.
    match upload {
        None => database.store.create(&name, rest, header.timestamp).await?,
        Some(upload) => upload.finish().await?,
    };
    event!(Info, "base_made", database, txid = name.max_txid; "{name} is made of {full}: what was there before had no beginning");
    Ok(())
}
