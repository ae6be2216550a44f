//! What the page says to somebody who only reads the control file, and has not mapped it.

use std::mem::offset_of;

use super::{ERROR_WORDS, LAYOUT, MAINTENANCE_ERROR_WORDS, Page};

/// Some of the words, as they were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peek {
    pub(crate) state: u64,
    pub(crate) last_success_ms: u64,
    pub(crate) oldest_waiting_ns: u64,
    pub(crate) last_maintenance_ms: u64,
    pub(crate) error: Option<String>,
    pub(crate) maintenance_error: Option<String>,
}

/// Reads them; `None` where nobody has begun such a page.
pub(crate) fn peek(page: &[u8]) -> Option<Peek> {
    let word = |at: usize| page.get(at..)?.first_chunk().map(|word| u64::from_ne_bytes(*word));
    (word(offset_of!(Page, layout))? == LAYOUT).then_some(())?;
    Some(Peek {
        state: word(offset_of!(Page, state))?,
        last_success_ms: word(offset_of!(Page, last_success_ms))?,
        oldest_waiting_ns: word(offset_of!(Page, oldest_waiting_ns))?,
        last_maintenance_ms: word(offset_of!(Page, last_maintenance_ms))?,
        error: text(page.get(offset_of!(Page, error)..)?, ERROR_WORDS),
        maintenance_error: text(page.get(offset_of!(Page, maintenance_error)..)?, MAINTENANCE_ERROR_WORDS),
    })
}

/// The text that counts of the two that lie in `Slots`: a word with their number, and then each with its length before it.
fn text(slots: &[u8], words: usize) -> Option<String> {
    let (number, slots) = slots.split_first_chunk()?;
    let at = usize::from(u64::from_ne_bytes(*number) & 1 == 1) * words * 8;
    let (length, content) = slots.get(at..at + words * 8)?.split_first_chunk()?;
    let text = content.get(..usize::try_from(u64::from_ne_bytes(*length)).ok()?)?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    /// The bytes of a page, by its words: all of them are words that stand for themselves.
    fn bytes(of: &[(usize, u64)]) -> Vec<u8> {
        let mut page = vec![0; size_of::<Page>()];
        for (at, word) in of {
            page[*at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }
        page
    }

    #[test]
    fn the_words_are_where_the_page_has_them() {
        assert_eq!(peek(&bytes(&[])), None);
        assert_eq!(peek(b"short"), None);
        let state = offset_of!(Page, state);
        let seen = peek(&bytes(&[(offset_of!(Page, layout), LAYOUT), (state, 2)])).unwrap();
        assert_eq!((seen.state, seen.error), (2, None));
        let page = Page::default();
        page.begin();
        assert_eq!(page.layout.load(Ordering::Relaxed), LAYOUT);
    }

    #[test]
    fn the_text_is_the_one_that_counts() {
        let error = offset_of!(Page, error);
        let word = |text: &[u8; 8]| u64::from_ne_bytes(*text);
        let [first, second] = [error + 8, error + 8 + ERROR_WORDS * 8];
        let words = [(0, LAYOUT), (first, 5), (first + 8, word(b"older...")), (second, 8), (second + 8, word(b"the news"))];
        let of = |number: u64| peek(&bytes(&[words.as_slice(), &[(error, number)]].concat())).unwrap().error.unwrap();
        assert_eq!((of(4), of(5)), ("older".to_owned(), "the news".to_owned()));
    }
}
