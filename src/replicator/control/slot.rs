//! The state as bytes: one slot of the control file, with a sequence number and a CRC-32.

use super::{
    Acked, Attempt, Conflict, FullReason, FullSent, Identity, MAGIC, OpenTransaction, RestoredEarlier, SLOT_BYTES, SLOTS_OFFSET, Stamp,
    State,
};
use crate::replicator::looks::Looks;
use crate::types::{Txid, WalPos};

pub(crate) fn newest_slot(page: &[u8]) -> Option<(u64, State)> {
    if page.get(..8) != Some(MAGIC.as_slice()) {
        return None;
    }
    let slot = |index: usize| {
        let start = SLOTS_OFFSET as usize + index * SLOT_BYTES;
        page.get(start..start + SLOT_BYTES).and_then(decode_slot)
    };
    match (slot(0), slot(1)) {
        (Some(a), Some(b)) => Some(if a.0 > b.0 { a } else { b }),
        (a, b) => a.or(b),
    }
}

pub(super) fn encode_slot(sequence: u64, state: &State) -> [u8; SLOT_BYTES] {
    let mut w = Writer { bytes: Vec::with_capacity(SLOT_BYTES) };
    w.u64(sequence);
    w.option(state.identity, |w, i| {
        w.u64(i.device);
        w.u64(i.inode);
        w.u64(i.born_ns);
    });
    w.u64(state.replica_hash);
    w.u64(state.node_id);
    w.u64(u64::from(state.page_size));
    w.option(state.acked, |w, a| {
        w.u64(a.txid.get());
        w.pos(&a.end);
    });
    w.option(state.attempt, |w, a| {
        w.u64(a.txid.get());
        w.pos(&a.start);
        w.pos(&a.end);
        w.u64(u64::from(a.commit_pages));
        w.u64(a.timestamp_ms.cast_unsigned());
        w.u64(a.size_bytes);
        w.u64(a.checksum);
        w.u64(u64::from(a.in_file));
    });
    w.option(state.captured, |w, p| w.pos(&p));
    w.u64(u64::from(state.sealed));
    w.option(state.next_salts, |w, s| w.pair(s));
    w.u64(state.spool_first);
    w.u64(state.spool_next);
    w.option(state.stamp, |w, s| w.stamp(&s));
    w.u64(state.open_transaction.map_or(0, |t| t as u64));
    w.u64(state.full.map_or(0, |r| r as u64));
    w.option(state.restored_earlier, |w, r| {
        w.u64(r.txid.get());
        w.u64(r.newest.get());
    });
    w.u64(state.adopt.map_or(0, Txid::get));
    w.option(state.fencing, |w, f| w.u64(u64::from(f)));
    w.option(state.full_sent, |w, f| {
        w.u64(f.txid.get());
        w.u64(u64::from(f.again));
    });
    w.u64(state.witness.map_or(0, Txid::get));
    // An older file has zeros from here on.
    w.option(state.conflict, |w, c| {
        w.u64(c.txid.get());
        w.u64(c.node_id);
        w.u64(c.timestamp_ms.cast_unsigned());
        w.u64(c.size_bytes);
    });
    w.u64(state.looks.boot);
    w.u64(state.looks.compared_ms.cast_unsigned());
    w.option(state.to_compare, |w, s| w.stamp(&s));
    w.u64(state.looks.looked_back_ms.cast_unsigned());
    let mut slot = [0; SLOT_BYTES];
    for (to, from) in slot.iter_mut().zip(&w.bytes) {
        *to = *from;
    }
    let crc = crc32fast::hash(&slot[..SLOT_BYTES - 4]);
    slot[SLOT_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode_slot(slot: &[u8]) -> Option<(u64, State)> {
    let (body, crc) = slot.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut r = Reader { rest: body };
    let sequence = r.u64()?;
    if sequence == 0 {
        return None;
    }
    let identity = r.option(|r| Some(Identity { device: r.u64()?, inode: r.u64()?, born_ns: r.u64()? }))?;
    let replica_hash = r.u64()?;
    let node_id = r.u64()?;
    let page_size = r.u32()?;
    let acked = r.option(|r| Some(Acked { txid: Txid::new(r.u64()?)?, end: r.pos()? }))?;
    let attempt = r.option(|r| {
        Some(Attempt {
            txid: Txid::new(r.u64()?)?,
            start: r.pos()?,
            end: r.pos()?,
            commit_pages: r.u32()?,
            timestamp_ms: r.u64()?.cast_signed(),
            size_bytes: r.u64()?,
            checksum: r.u64()?,
            in_file: r.u64()? != 0,
        })
    })?;
    let captured = r.option(Reader::pos)?;
    let sealed = r.u64()? != 0;
    let next_salts = r.option(Reader::pair)?;
    let spool_first = r.u64()?;
    let spool_next = r.u64()?;
    let stamp = r.option(Reader::stamp)?;
    let open_transaction = match u8::try_from(r.u64()?).ok()? {
        0 => None,
        byte => Some(OpenTransaction::from_byte(byte)?),
    };
    let full = match u8::try_from(r.u64()?).ok()? {
        0 => None,
        byte => Some(FullReason::from_byte(byte)?),
    };
    let restored_earlier = r.option(|r| Some(RestoredEarlier { txid: Txid::new(r.u64()?)?, newest: Txid::new(r.u64()?)? }))?;
    let adopt = Txid::new(r.u64()?);
    let fencing = r.option(|r| Some(r.u64()? != 0))?;
    let full_sent = r.option(|r| Some(FullSent { txid: Txid::new(r.u64()?)?, again: r.u64()? != 0 }))?;
    let witness = Txid::new(r.u64()?);
    let conflict = r.option(|r| {
        Some(Conflict { txid: Txid::new(r.u64()?)?, node_id: r.u64()?, timestamp_ms: r.u64()?.cast_signed(), size_bytes: r.u64()? })
    })?;
    let (boot, compared_ms) = (r.u64()?, r.u64()?.cast_signed());
    let to_compare = r.option(Reader::stamp)?;
    let looks = Looks { boot, compared_ms, looked_back_ms: r.u64()?.cast_signed() };
    let state = State {
        identity,
        replica_hash,
        node_id,
        page_size,
        acked,
        attempt,
        captured,
        sealed,
        next_salts,
        spool_first,
        spool_next,
        stamp,
        open_transaction,
        full,
        restored_earlier,
        adopt,
        fencing,
        full_sent,
        witness,
        conflict,
        looks,
        to_compare,
    };
    Some((sequence, state))
}

struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn pair(&mut self, [a, b]: [u32; 2]) {
        self.u64(u64::from(a) << 32 | u64::from(b));
    }

    fn pos(&mut self, pos: &WalPos) {
        self.pair(pos.salts);
        self.u64(u64::from(pos.frame));
        self.pair(pos.checksum);
    }

    fn stamp(&mut self, stamp: &Stamp) {
        self.u64(stamp.size_bytes);
        self.u64(stamp.mtime_ns.cast_unsigned());
        self.u64(stamp.ctime_ns.cast_unsigned());
        self.pair(stamp.header_words);
        self.u64(u64::from(stamp.is_wal));
        self.u64(u64::from(stamp.too_fresh));
        self.u64(stamp.boot);
        self.u64(u64::from(stamp.synced));
    }

    fn option<T>(&mut self, value: Option<T>, some: impl FnOnce(&mut Self, T)) {
        self.u64(u64::from(value.is_some()));
        if let Some(value) = value {
            some(self, value);
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.rest.split_first_chunk::<8>()?;
        self.rest = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn u32(&mut self) -> Option<u32> {
        u32::try_from(self.u64()?).ok()
    }

    fn pair(&mut self) -> Option<[u32; 2]> {
        let word = self.u64()?;
        Some([(word >> 32) as u32, word as u32])
    }

    fn pos(&mut self) -> Option<WalPos> {
        Some(WalPos { salts: self.pair()?, frame: self.u32()?, checksum: self.pair()? })
    }

    fn stamp(&mut self) -> Option<Stamp> {
        Some(Stamp {
            size_bytes: self.u64()?,
            mtime_ns: self.u64()?.cast_signed(),
            ctime_ns: self.u64()?.cast_signed(),
            header_words: self.pair()?,
            is_wal: self.u64()? != 0,
            too_fresh: self.u64()? != 0,
            boot: self.u64()?,
            synced: self.u64()? != 0,
        })
    }

    /// `Some(None)` for an absent value, `None` for a malformed one.
    fn option<T>(&mut self, some: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u64()? {
            0 => Some(None),
            1 => some(self).map(Some),
            _ => None,
        }
    }
}
