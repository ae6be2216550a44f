//! From committed frames to the bucket: channel, uploader, batching, snapshot, resume, lineage.
//!
//! | module | what it knows |
//! |---|---|
//! | `database` | what SQLite's threads tell, and what they may do with the WAL |
//! | `outside`, `pages`, `file_header` | commits that no shared-memory WAL announces: rollback-journal modes, exclusive locking |
//! | `hub` | the channel and the wake-up |
//! | `tail` | which frames are captured, and where: `continuity`, `capture`, `attempt` |
//! | `frames`, `batch` | which page is in which frame; from frames to an LTX file |
//! | `control`, `local`, `mark` | what is kept beside the database |
//! | `shared`, `guest`, `wake` | what the processes that have it open tell each other, and which of them uploads |
//! | `dispatcher`, `uploader`, `step`, `send`, `budget`, `turns`, `clock` | when what is sent |
//! | `background` | what is done beside that when there is time: the maintenance of the bucket |
//! | `outage` | what is told of failures |
//! | `snapshot`, `preserve`, `aside`, `base` | the full state of a live database |
//! | `lineage` | whether bucket and database are one history |
//! | `compare` | the same, page by page, where nothing else tells |
//! | `progress`, `durability` | how far it is, for those who wait, and which commits do |
//! | `stamp`, `remember` | what is told of a file that nobody has open |
//! | `origin` | what it was restored from, for its other replica |
//! | `lease` | which host may write to the replica, and how it hands over |
//! | `if_missing` | a database that is restored before it is opened |
//! | `roles` | which replica is which, and which directory is whose |
//! | `replicas` | the one or two replicas of an open database |
//! | `status` | what is told of it all, from inside and from outside |
//! | `process`, `beside` | what a process has one of; what it finds beside a database |

pub(crate) use self::control::full_state_reasons;

pub(crate) mod ahead;
mod aside;
mod background;
mod base;
mod batch;
mod beside;
mod budget;
pub(crate) mod clock;
mod compare;
pub(crate) mod control;
pub(crate) mod database;
mod dispatcher;
pub(crate) mod durability;
mod file_header;
pub(crate) mod frames;
mod guest;
mod hub;
pub(crate) mod if_missing;
pub(crate) mod lease;
mod lineage;
pub(crate) mod local;
mod looks;
mod lost_tail;
mod mark;
pub(crate) mod origin;
mod outage;
mod pages;
pub(crate) mod preserve;
pub(crate) mod process;
pub(crate) mod progress;
pub(crate) mod remember;
pub(crate) mod replicas;
pub(crate) mod roles;
mod send;
pub(crate) mod shared;
mod snapshot;
pub(crate) mod stamp;
pub(crate) mod status;
pub(crate) mod step;
pub(crate) mod tail;
mod turns;
mod uploader;
pub(crate) mod wake;
