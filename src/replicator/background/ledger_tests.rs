use super::*;

const KEY: Key = Key { replica_hash: 7, node_id: 9 };

fn upload(txid: u64) -> Listed {
    let name = LtxName::level0(Txid::new(txid).unwrap());
    Listed { name, size_bytes: 1000 + txid, timestamp: TimestampMs(1_000_000 + txid.cast_signed()), timestamp_is_exact: true }
}

fn merged(level: u8, min: u64, max: u64) -> Listed {
    let name = LtxName { level: Level::new(level).unwrap(), min_txid: Txid::new(min).unwrap(), max_txid: Txid::new(max).unwrap() };
    Listed { name, ..upload(max) }
}

fn txid(number: u64) -> Option<Txid> {
    Txid::new(number)
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("app.db"), b"").unwrap();
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("bucket")
    }

    /// As the next process finds it.
    fn open(&self) -> Ledger {
        Ledger::new(self.path(), self.dir.path().join("app.db"))
    }

    /// One that has listed 1 to 3.
    fn listed(&self) -> Ledger {
        let mut ledger = self.open();
        for number in 1..=3 {
            ledger.uploaded(KEY, upload(number));
        }
        assert!(ledger.begin(KEY, txid(3)).is_none());
        let files = (1..=3).map(upload).collect();
        assert!(ledger.end(KEY, Some(Known { files, listed: TimestampMs(5), generation: Some(4) }), None, 77));
        ledger
    }
}

fn names(known: &Known) -> Vec<String> {
    known.files.iter().map(|file| file.name.to_string()).collect()
}

fn name(file: &Listed) -> String {
    file.name.to_string()
}

#[test]
fn what_is_uploaded_and_merged_is_known_to_the_next_process() {
    let place = Place::new();
    let mut ledger = place.listed();
    assert_eq!(ledger.pending(KEY).uploads, 0);
    ledger.uploaded(KEY, upload(4));
    ledger.uploaded(KEY, upload(5));
    // A successor sends the last one again.
    ledger.uploaded(KEY, upload(5));
    assert_eq!(ledger.pending(KEY), Pending { uploads: 2, round_ms: 77, waited_ms: 0 });
    let known = ledger.begin(KEY, txid(5)).unwrap();
    assert_eq!((known.files.len(), known.listed, known.generation), (5, TimestampMs(5), Some(4)));
    assert_eq!(known.files[4], upload(5));
    // While the round is at work.
    ledger.uploaded(KEY, upload(6));
    let one = merged(1, 1, 5);
    let mut files = known.files;
    files.push(one);
    files.remove(0);
    let known = Known { files, generation: Some(5), ..known };
    ledger.end(KEY, Some(known), Some((&[one], &[upload(1).name])), 88);
    assert_eq!(ledger.pending(KEY), Pending { uploads: 1, round_ms: 88, waited_ms: 0 });
    let mut next = place.open();
    assert_eq!(next.pending(KEY).uploads, 0, "it has not uploaded anything itself");
    let known = next.begin(KEY, txid(6)).unwrap();
    let expected = [2, 3, 4, 5, 6].map(|number| name(&upload(number))).into_iter().chain([name(&one)]).collect::<Vec<_>>();
    assert_eq!((names(&known), known.generation), (expected, Some(5)));
    next.give_up();
    next.uploaded(KEY, upload(7));
    assert_eq!(next.pending(KEY), Pending { uploads: 2, round_ms: 88, waited_ms: 0 });
}

#[test]
fn a_file_that_is_damaged_torn_foreign_or_old_is_worth_nothing() {
    let place = Place::new();
    let mut ledger = place.listed();
    ledger.uploaded(KEY, upload(4));
    let good = std::fs::read(place.path()).unwrap();
    assert!(place.open().begin(KEY, txid(4)).is_some());
    assert!(place.open().begin(Key { node_id: 8, ..KEY }, txid(4)).is_none());
    let mut told = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(place.path(), &bad).unwrap();
        let known = place.open().begin(KEY, txid(4));
        told += u32::from(known.is_none());
    }
    assert_eq!(told as usize, good.len());
    for length in 0..good.len() {
        std::fs::write(place.path(), &good[..length]).unwrap();
        assert!(place.open().begin(KEY, txid(4)).is_none(), "{length}");
    }
    // A tail of zeros, as a power loss leaves it: what is before it counts, and it is written over.
    let mut zeros = good.clone();
    zeros.extend([0; 100]);
    std::fs::write(place.path(), &zeros).unwrap();
    let mut next = place.open();
    next.uploaded(KEY, upload(5));
    assert_eq!(next.begin(KEY, txid(5)).unwrap().files.len(), 5);
    // The bucket has more than it says: another program, or a process that was killed at the wrong moment.
    std::fs::write(place.path(), &good).unwrap();
    assert!(place.open().begin(KEY, txid(5)).is_none());
    std::fs::write(place.path(), &good).unwrap();
    let mut next = place.open();
    next.uploaded(KEY, upload(6));
    assert!(next.begin(KEY, txid(6)).is_none());
    assert_eq!(next.pending(KEY), Pending { uploads: 2, round_ms: 77, waited_ms: 0 });
}

#[test]
fn what_a_round_has_changed_counts_whole_or_not_at_all() {
    let place = Place::new();
    let mut ledger = place.listed();
    let known = ledger.begin(KEY, txid(3)).unwrap();
    let before = std::fs::metadata(place.path()).unwrap().len();
    let one = merged(1, 2, 3);
    let known = Known { files: known.files.into_iter().chain([one]).collect(), generation: Some(5), ..known };
    ledger.end(KEY, Some(known), Some((&[one], &[])), 88);
    assert_eq!(place.open().begin(KEY, txid(3)).unwrap().generation, Some(5));
    // A power loss keeps what was written in place, and not what was appended.
    std::fs::File::options().write(true).open(place.path()).unwrap().set_len(before).unwrap();
    assert!(place.open().begin(KEY, txid(3)).is_none());
}

#[test]
fn what_is_not_known_is_counted() {
    let place = Place::new();
    for number in 1..=300 {
        place.open().uploaded(KEY, upload(number));
    }
    let mut ledger = place.open();
    ledger.uploaded(KEY, upload(301));
    assert_eq!(ledger.pending(KEY), Pending { uploads: 301, round_ms: 0, waited_ms: 0 });
    ledger.waits(55);
    assert!(std::fs::metadata(place.path()).unwrap().len() < 200);
    let mut ledger = place.open();
    ledger.uploaded(KEY, upload(302));
    assert_eq!(ledger.pending(KEY), Pending { uploads: 302, round_ms: 0, waited_ms: 55 });
}

#[test]
fn a_full_state_ends_what_is_known_also_of_a_round_at_work() {
    let place = Place::new();
    let mut ledger = place.listed();
    let known = ledger.begin(KEY, txid(3)).unwrap();
    assert!(!ledger.is_void());
    ledger.forget_all(KEY);
    assert!(ledger.is_void());
    ledger.end(KEY, Some(known), Some((&[], &[])), 99);
    assert!(place.open().begin(KEY, txid(3)).is_none());
    let mut ledger = place.listed();
    ledger.begin(KEY, txid(3)).unwrap();
    assert!(!ledger.end(KEY, None, None, 99));
    assert!(place.open().begin(KEY, txid(3)).is_none(), "a round that has failed leaves nothing that is known");
}

#[test]
fn it_does_not_grow_beyond_what_there_is() {
    let place = Place::new();
    let mut ledger = place.listed();
    let mut listed = ledger.begin(KEY, txid(3)).unwrap();
    ledger.give_up();
    for round in 1..60_u64 {
        for number in 1..=100 {
            ledger.uploaded(KEY, upload(3 + (round - 1) * 100 + number));
        }
        let known = ledger.begin(KEY, txid(3 + round * 100)).unwrap();
        // All that came before goes.
        let (gone, left): (Vec<Listed>, Vec<Listed>) = known.files.into_iter().partition(|file| file.name.max_txid.get() < round * 100);
        listed = Known { files: left, ..known };
        let gone: Vec<LtxName> = gone.iter().map(|file| file.name).collect();
        let files = listed.files.clone();
        ledger.end(KEY, Some(Known { files, listed: listed.listed, generation: listed.generation }), Some((&[], &gone)), 99);
        let length = std::fs::metadata(place.path()).unwrap().len();
        assert!(length < (HEADER_BYTES + (2 * 210 + SLACK) * RECORD_BYTES) as u64, "round {round}: {length}");
    }
    let mut next = place.open();
    assert_eq!(names(&next.begin(KEY, txid(3 + 59 * 100)).unwrap()), names(&listed));
}
