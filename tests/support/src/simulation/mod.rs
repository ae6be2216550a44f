//! A simulation of everything that happens to databases with one bucket: hosts, processes that come, commit, stop and are killed, programs without
//! the extension, a store with its weather, a user who copies files and decides. A seed chooses what happens; a model says what must hold.
//!
//! | module | what it is |
//! |---|---|
//! | [`step`] | what can happen, and how often |
//! | [`world`] | what a step does, and what must hold after it |
//! | [`model`] | what was committed, by whom, from what |
//! | [`watch`] | what the bucket holds, as it grows |
//! | [`place`] | the store and its weather |
//! | [`process`], [`wire`], [`actor`] | processes that do as they are told: the program `simulation-host` |
//! | [`run`] | worlds one after another, and the shortest list of steps that fails |

pub mod actor;
pub mod model;
pub mod place;
pub mod process;
pub mod run;
pub mod step;
pub mod watch;
pub mod wire;
pub mod world;
