//! What the tests, the demo and the benchmarks share.
//!
//! * [`s3::Server`]: an S3 server in the process that checks signatures and counts requests;
//! * [`net::Proxy`]: a network that refuses, hangs, cuts and delays on demand;
//! * [`bucket`]: what is in a bucket;
//! * [`host`]: programs with a SQLite of their own;
//! * [`committers`]: threads that say what was acknowledged;
//! * [`sqlite`]: comparing databases;
//! * [`crash`]: processes that die on demand, and power losses;
//! * [`tools`]: other programs that tests run;

// It is part of tests: what cannot go on panics.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

pub mod bucket;
pub mod committers;
pub mod crash;
mod google;
pub mod host;
pub mod net;
pub mod s3;
pub mod sqlite;
pub mod tools;
