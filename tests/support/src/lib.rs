//! What the tests, the demo and the benchmarks share.
//!
//! * [`s3::Server`]: an S3 server in the process that checks signatures and counts requests;
//! * [`net::Proxy`]: a network that refuses, hangs, cuts and delays on demand;
//! * [`faulty::Endpoint`]: an S3 endpoint that misbehaves request by request, as a plan says;
//! * [`bucket`]: what is in a bucket;
//! * [`life`]: an application whose every state can be told by itself;
//! * [`host`]: programs with a SQLite of their own;
//! * [`locked`]: what a bucket does with objects that may not go;
//! * [`maintenance`]: rounds of it at any time;
//! * [`follower`]: copies that follow a bucket, and who reads them;
//! * [`committers`]: threads that say what was acknowledged;
//! * [`sqlite`]: comparing databases;
//! * [`crash`]: processes that die on demand, and power losses;
//! * [`simulation`]: hosts, processes, a store and a user, with a model of what must hold;
//! * [`tools`]: other programs that tests run;

// It is part of tests: what cannot go on panics.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

pub mod bucket;
pub mod committers;
pub mod crash;
pub mod faulty;
pub mod follower;
mod google;
pub mod host;
pub mod life;
pub mod locked;
pub mod maintenance;
pub mod net;
pub mod place;
pub mod rows;
pub mod s3;
pub mod serve;
pub mod simulation;
pub mod sqlite;
pub mod tools;
mod wrapped;
