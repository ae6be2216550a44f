//! Crashes on demand: processes that die at a call of SQLite's VFS or at a fail point of the extension, and power losses.
//!
//! | module | what it is |
//! |---|---|
//! | [`beneath`] | a database whose calls to that VFS a test sees |
//! | [`vfs`] | a VFS below ours that counts calls and ends the process at one |
//! | [`disk`] | what a disk keeps of SQLite's files when the power fails |
//! | [`own_files`] | the same for the extension's |
//! | [`model`] | what the database must hold, noted outside of it |
//! | [`session`] | what a process does until it dies: the program `crash-host` |
//! | [`life`] | many processes one after another, and what is checked in between |

pub mod beneath;
pub mod disk;
pub mod life;
pub mod model;
pub mod own_files;
pub mod session;
pub mod vfs;
