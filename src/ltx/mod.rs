//! The LTX byte format, both directions, streaming.
