//! What several commands take as the value of a flag.

use replicated::types::{TimestampMs, Txid};

use crate::moment;

pub(crate) fn txid(text: &str) -> Result<Txid, String> {
    Txid::from_hex(text).ok_or_else(|| "a TXID is 1 to 16 hexadecimal digits and not zero".to_owned())
}

pub(crate) fn timestamp(text: &str) -> Result<TimestampMs, String> {
    moment::parse(text, &jiff::Zoned::now())
}
