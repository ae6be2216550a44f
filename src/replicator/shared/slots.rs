//! Several words that are read as one.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// `N` words with a number that counts how often they were written. One writes at a time, which whoever uses it sees to; and may be killed while it does:
/// what it was about to replace stands then.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slots<const N: usize> {
    /// Its lowest bit says which of the two counts.
    current: AtomicU64,
    slots: [[AtomicU64; N]; 2],
}

impl<const N: usize> Default for Slots<N> {
    fn default() -> Self {
        Self { current: AtomicU64::new(0), slots: array::from_fn(|_| array::from_fn(|_| AtomicU64::new(0))) }
    }
}

impl<const N: usize> Slots<N> {
    const fn slot(&self, number: u64) -> &[AtomicU64; N] {
        let [even, odd] = &self.slots;
        if number & 1 == 0 { even } else { odd }
    }

    /// The number and the words that were written with it.
    pub(crate) fn read(&self) -> (u64, [u64; N]) {
        loop {
            let number = self.current.load(Ordering::Acquire);
            let slot = self.slot(number);
            let words = array::from_fn(|at| slot.get(at).map_or(0, |word| word.load(Ordering::Relaxed)));
            fence(Ordering::Acquire);
            // The slot is written again only after another number was put here.
            if self.current.load(Ordering::Relaxed) == number {
                return (number, words);
            }
            std::hint::spin_loop();
        }
    }

    /// The first word alone, as it is or has just been.
    pub(crate) fn first(&self) -> u64 {
        self.slot(self.current.load(Ordering::Acquire)).first().map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The number that counts now.
    pub(crate) fn number(&self) -> u64 {
        self.current.load(Ordering::Acquire)
    }

    pub(crate) fn write(&self, words: &[u64; N]) {
        let next = self.current.load(Ordering::Relaxed).wrapping_add(1);
        // The number before this one first: it tells readers of the slot that is overwritten now.
        fence(Ordering::Release);
        for (to, from) in self.slot(next).iter().zip(words) {
            to.store(*from, Ordering::Relaxed);
        }
        self.current.store(next, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_was_written_together() {
        const WRITES: u64 = 200_000;
        let slots = Slots::<4>::default();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    while last < WRITES {
                        let (number, words) = slots.read();
                        assert!(words.iter().all(|&word| word == number), "{number}: {words:?}");
                        assert!(number >= last);
                        last = number;
                    }
                });
            }
            for number in 1..=WRITES {
                slots.write(&[number; 4]);
            }
        });
    }
}
