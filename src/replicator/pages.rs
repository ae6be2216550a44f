//! A set of page numbers, as a rollback-mode transaction writes them: in runs, in any order, many times.

use std::collections::BTreeMap;

const WORD_BITS: u32 = u64::BITS;
const WORDS: usize = 64;
/// Pages of one block of bits.
const BLOCK_PAGES: u32 = WORD_BITS * WORDS as u32;

/// Blocks of 512 bytes for 4096 pages each: at the most an eighth of a byte for each page of the database.
#[derive(Debug, Default)]
pub(crate) struct PageSet {
    blocks: BTreeMap<u32, Box<[u64; WORDS]>>,
}

impl PageSet {
    pub(crate) fn insert(&mut self, page: u32) {
        let block = self.blocks.entry(page / BLOCK_PAGES).or_insert_with(|| Box::new([0; WORDS]));
        let bit = page % BLOCK_PAGES;
        if let Some(word) = block.get_mut((bit / WORD_BITS) as usize) {
            *word |= 1 << (bit % WORD_BITS);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.blocks.iter().flat_map(|(block, words)| {
            words.iter().zip(0_u32..).flat_map(move |(word, at)| {
                let first = block * BLOCK_PAGES + at * WORD_BITS;
                let mut rest = *word;
                std::iter::from_fn(move || {
                    let bit = rest.trailing_zeros();
                    rest &= rest.checked_sub(1)?;
                    Some(first + bit)
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_back_once_and_ascending() {
        let mut set = PageSet::default();
        assert!(set.is_empty());
        let mut expected = std::collections::BTreeSet::new();
        for i in 0..10_000_u32 {
            let page = [1, 63, 64, 65, 4095, 4096, 4097, u32::MAX][i as usize % 8].wrapping_sub(i / 8 * 31) | 1;
            set.insert(page);
            expected.insert(page);
        }
        assert!(set.iter().eq(expected));
    }
}
