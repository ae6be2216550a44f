//! Replicates a database from Rust: a few commits, a wait until the bucket has them, the status.
//!
//! usage: `cargo run --example rust_app -- REPLICA_URL [DATABASE]`
//!
//! The application links its own SQLite, here the one that rusqlite bundles; the library is handed the functions of that one.

#![allow(clippy::print_stdout)] // An example.

use std::error::Error;

use rusqlite::{Connection, OpenFlags};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let replica = arguments.next().ok_or("usage: rust_app REPLICA_URL [DATABASE]")?;
    let database = arguments.next().unwrap_or_else(|| "app.db".to_owned());

    // Once, before the database is opened.
    replicated::register!(rusqlite::ffi)?;

    // The URL stands inside of another one: what has a meaning there is escaped.
    let replica = replica.replace('%', "%25").replace('&', "%26").replace('#', "%23");
    let uri = format!("file:{database}?vfs=replicated&replica={replica}");
    let db = Connection::open_with_flags(&uri, OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI).map_err(|error| {
        // SQLite has one text for whatever goes wrong here.
        format!("{error}: {}", replicated::last_refusal().unwrap_or_default())
    })?;

    db.pragma_update(None, "journal_mode", "wal")?;
    db.execute_batch("CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)")?;
    for text in ["one from Rust", "two from Rust"] {
        db.execute("INSERT INTO notes(text) VALUES (?1)", [text])?;
    }

    let txid: String = db.query_row("PRAGMA replicated_sync", [], |row| row.get(0))?;
    println!("everything is in the bucket, up to TXID {txid}");
    let status: String = db.query_row("PRAGMA replicated_status", [], |row| row.get(0))?;
    println!("{status}");
    Ok(())
}
