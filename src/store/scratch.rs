//! An object of no meaning to any reader of a bucket, to find out what the store lets one do, by the requests that replication makes.

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Created, StoreError};

/// What its name begins with, behind that of level 0: no reader takes it for a file.
pub(super) const SCRATCH: &str = ".replicated-probe-";

/// The object. Nothing is there until it is created; whoever has created it deletes it.
pub trait Scratch: fmt::Debug + Send + Sync {
    /// Its place in the bucket, for messages.
    fn name(&self) -> &str;

    /// Creates it if it is not there, as an upload is created. `None` where the store refuses such conditions: then nothing was created.
    fn create(&self, body: Bytes) -> BoxFuture<'_, Result<Option<Created>, StoreError>>;

    /// Writes it whether it is there or not.
    fn put(&self, body: Bytes) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Asks for it to be replaced on a condition that does not hold, as whoever has lost a lease would. True where the store replaces it all the same.
    fn replace_on_false_condition(&self, body: Bytes) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Reads it.
    fn read(&self) -> BoxFuture<'_, Result<Bytes, StoreError>>;

    /// The names of all such objects that a listing shows: this one's, and those that others could not delete.
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, StoreError>>;

    /// Begins an upload in parts under its name and gives it up.
    fn begin_parts(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Deletes it. One that is not there is no error.
    fn delete(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}
