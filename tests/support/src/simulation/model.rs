//! What was committed, by whom, from what: a tree of states, since two hosts, an older copy and a declaration of the user's make branches.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use replicated::types::Txid;

use super::wire::{Deed, ROWS, Seen, row_sum};

type Rows = Arc<[u64; ROWS as usize]>;

struct State {
    parent: u64,
    depth: u32,
    rows: Rows,
    by_foreigner: bool,
}

/// A promise that was given.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// This state is in the bucket.
    pub id: u64,
    /// In the state of this TXID, or of one before it.
    pub txid: Txid,
}

/// See the module.
#[derive(Default)]
pub struct Model {
    last_id: u64,
    begun: HashMap<u64, (Vec<Deed>, bool)>,
    states: HashMap<u64, State>,
    /// What was acknowledged as being in the bucket.
    pub promises: Vec<Promise>,
    /// Transactions of which nobody knows yet whether they were committed: who was asked for them was stopped or killed.
    pub doubtful: Vec<u64>,
    /// The user has declared a local file the truth over the bucket up to here.
    pub adopted: BTreeSet<Txid>,
}

impl Model {
    /// Nothing was committed yet.
    #[must_use]
    pub fn new() -> Self {
        let mut model = Self::default();
        model.states.insert(0, State { parent: 0, depth: 0, rows: Arc::new([0; ROWS as usize]), by_foreigner: false });
        model
    }

    /// A transaction begins; its number.
    pub fn begin(&mut self, by_foreigner: bool) -> u64 {
        self.last_id += 1;
        self.begun.insert(self.last_id, (Vec::new(), by_foreigner));
        self.last_id
    }

    /// It writes.
    pub fn writes(&mut self, deed: Deed) {
        if let Some((deeds, _)) = self.begun.get_mut(&deed.commit) {
            deeds.push(deed);
        }
    }

    /// It was committed, made from a state that is known.
    ///
    /// # Errors
    /// Where that state is not known.
    pub fn commit(&mut self, id: u64, parent: u64) -> Result<(), String> {
        let Some(before) = self.states.get(&parent) else {
            return Err(format!("transaction {id} was made from {parent}, which was never committed"));
        };
        let Some((deeds, by_foreigner)) = self.begun.get(&id) else { return Err(format!("transaction {id} was never begun")) };
        let mut rows = *before.rows;
        for deed in deeds {
            let tag = deed.tag();
            for (row, body) in deed.writes() {
                if let Some(sum) = rows.get_mut(usize::try_from(row - 1).unwrap_or(0)) {
                    *sum = body.map_or(0, |body| row_sum(row, &tag, &body));
                }
            }
        }
        let state = State { parent, depth: before.depth + 1, rows: Arc::new(rows), by_foreigner: *by_foreigner };
        self.states.insert(id, state);
        Ok(())
    }

    /// Whether a transaction was committed, as far as is known.
    #[must_use]
    pub fn knows(&self, id: u64) -> bool {
        self.states.contains_key(&id)
    }

    /// What a database says it holds is a state that was committed, with all of its rows.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, seen: Seen) -> Result<(), String> {
        let Some(state) = self.states.get(&seen.id) else {
            return Err(format!("state {} was never committed", seen.id));
        };
        if state.parent != seen.line[0] {
            return Err(format!("state {} says it was made from {}, and was made from {}", seen.id, seen.line[0], state.parent));
        }
        let sum = state.rows.iter().fold(0_u64, |sum, row| sum.wrapping_add(*row));
        if sum != seen.sum {
            return Err(format!("state {} has other rows than were committed", seen.id));
        }
        Ok(())
    }

    /// Whether the later state was made from the earlier one, or is it.
    #[must_use]
    pub fn continues(&self, later: u64, earlier: u64) -> bool {
        let Some(depth) = self.states.get(&earlier).map(|state| state.depth) else { return false };
        let mut at = later;
        while let Some(state) = self.states.get(&at) {
            if state.depth <= depth {
                return at == earlier;
            }
            at = state.parent;
        }
        false
    }

    /// The newest state up to this one that was made through the extension.
    #[must_use]
    pub fn of_ours(&self, mut id: u64) -> u64 {
        while let Some(state) = self.states.get(&id).filter(|state| state.by_foreigner) {
            id = state.parent;
        }
        id
    }

    /// Whether the user has declared a file the truth over the bucket up to this TXID. A batch that was on its way before that is sent first.
    #[must_use]
    pub fn allows_break_after(&self, txid: Txid) -> bool {
        self.adopted.contains(&txid) || self.adopted.iter().any(|adopted| adopted.next() == txid)
    }

    /// How many states there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether nothing was ever committed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.len() <= 1
    }
}
