//! Replicates a database from Rust through sqlx: a few commits, a wait until the bucket has them, the status.
//!
//! usage: `cargo run -- REPLICA_URL [DATABASE]`

use std::error::Error;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

async fn open(database: &str, replica: &str) -> Result<SqlitePool, sqlx::Error> {
    // The URL stands inside of another one: what has a meaning there is escaped.
    let replica = replica.replace('%', "%25").replace('&', "%26").replace('#', "%23");
    // As a file name: sqlx takes URIs of its own only in `from_str`, and SQLite's here.
    let options = SqliteConnectOptions::new()
        .filename(format!("file:{database}?vfs=replicated&replica={replica}"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    SqlitePoolOptions::new().max_connections(4).connect_with(options).await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let replica = arguments.next().ok_or("usage: sqlx_app REPLICA_URL [DATABASE]")?;
    let database = arguments.next().unwrap_or_else(|| "app.db".to_owned());

    // Once, before the database is opened, with the SQLite that sqlx links.
    replicated::register!(libsqlite3_sys)?;
    // SQLite has one text for whatever goes wrong here.
    let db = open(&database, &replica).await.map_err(|error| format!("{error}: {}", replicated::last_refusal().unwrap_or_default()))?;

    sqlx::query("CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT)").execute(&db).await?;
    for text in ["one from sqlx", "two from sqlx"] {
        sqlx::query("INSERT INTO notes(text) VALUES (?)").bind(text).execute(&db).await?;
    }

    let txid: String = sqlx::query_scalar("PRAGMA replicated_sync").fetch_one(&db).await?;
    println!("everything is in the bucket, up to TXID {txid}");
    let status: String = sqlx::query_scalar("PRAGMA replicated_status").fetch_one(&db).await?;
    println!("{status}");
    // A pool that is only dropped leaves its connections open.
    db.close().await;
    Ok(())
}
