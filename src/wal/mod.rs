//! The byte formats of the write-ahead log and its index.
