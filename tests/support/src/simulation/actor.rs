//! What an actor is: a process with connections to a database and to its twin, which does as it is told. The program `simulation-host`.

use std::io::{self, BufRead, Write};

use rusqlite::{Connection, OptionalExtension, params};

use super::wire::{Answer, Deed, Line, Op, Outcome, Problem, ROWS, Seen, row_sum};

const SCHEMA: &str = "
    CREATE TABLE state(id INTEGER, line TEXT);
    INSERT INTO state VALUES (0, '');
    CREATE TABLE item(id INTEGER PRIMARY KEY, tag TEXT, body BLOB);
    CREATE INDEX item_tag ON item(tag);";

/// Connections to one file.
struct Copy {
    uri: String,
    main: Connection,
    holder: Option<Connection>,
    made_from: Line,
}

/// Does what comes until nothing more does.
///
/// # Errors
/// Where the pipes fail.
pub fn serve() -> io::Result<()> {
    crate::serve::log_as_told()?;
    let (mut real, mut twin) = (None, None);
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let op: Op = serde_json::from_str(&line?)?;
        let answer = carry_out(&op, &mut real, &mut twin);
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        out.write_all(&line)?;
        out.flush()?;
    }
    Ok(())
}

fn carry_out(op: &Op, real: &mut Option<Copy>, twin: &mut Option<Copy>) -> Answer {
    match op {
        Op::Open { uri, twin: other, pragmas, page_bytes } => {
            let opened = open(uri, pragmas, *page_bytes, real);
            let other = other.as_ref().map(|uri| open(uri, pragmas, *page_bytes, twin));
            Answer { real: opened, twin: other }
        }
        Op::Close => {
            let closed = close(real);
            let had = twin.is_some();
            let other = close(twin);
            Answer { real: closed, twin: had.then_some(other) }
        }
        Op::ForgetTwin => Answer { real: Outcome::Done, twin: Some(close(twin)) },
        Op::Sync(_) | Op::WaitFor | Op::Status => Answer { real: on(op, real), twin: None },
        _ => {
            let outcome = on(op, real);
            Answer { real: outcome, twin: twin.is_some().then(|| on(op, twin)) }
        }
    }
}

fn told(error: &rusqlite::Error) -> Outcome {
    let code = match error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
        _ => 0,
    };
    Outcome::Failed(Problem { code, text: error.to_string() })
}

fn outcome(result: rusqlite::Result<Outcome>) -> Outcome {
    result.unwrap_or_else(|error| told(&error))
}

fn open(uri: &str, pragmas: &str, page_bytes: u32, place: &mut Option<Copy>) -> Outcome {
    let opened = connect(uri, pragmas, page_bytes).map(|main| Copy { uri: uri.to_owned(), main, holder: None, made_from: Line::default() });
    // What cannot be read now is not open.
    match opened.and_then(|copy| look(&copy.main).map(|seen| (copy, seen))) {
        Ok((copy, seen)) => {
            *place = Some(copy);
            Outcome::State(seen)
        }
        Err(error) => told(&error),
    }
}

fn connect(uri: &str, pragmas: &str, page_bytes: u32) -> rusqlite::Result<Connection> {
    let connection = Connection::open(uri)?;
    connection.busy_timeout(std::time::Duration::ZERO)?;
    // Nothing is done to a file that is there. These do not look at it.
    connection.execute_batch(&format!("PRAGMA page_size={page_bytes}; {pragmas}"))?;
    Ok(connection)
}

fn close(place: &mut Option<Copy>) -> Outcome {
    let Some(copy) = place.take() else { return Outcome::Done };
    drop(copy.holder);
    match copy.main.close() {
        Ok(()) => Outcome::Done,
        Err((_, error)) => told(&error),
    }
}

fn on(op: &Op, place: &mut Option<Copy>) -> Outcome {
    let Some(copy) = place else { return Outcome::Failed(Problem { code: 0, text: "it is not open".to_owned() }) };
    outcome(copy.carry_out(op))
}

impl Copy {
    fn carry_out(&mut self, op: &Op) -> rusqlite::Result<Outcome> {
        let db = &self.main;
        match op {
            Op::Begin { commit } => {
                self.made_from = begin(db, *commit)?;
                Ok(Outcome::MadeFrom(self.made_from))
            }
            Op::Write(deed) => write(db, *deed).map(|()| Outcome::Done),
            Op::Commit => db.execute_batch("COMMIT").map(|()| Outcome::MadeFrom(self.made_from)),
            Op::Rollback => db.execute_batch("ROLLBACK").map(|()| Outcome::Done),
            Op::Transaction { deeds, rolls_back, remote } => {
                let is_ours = self.uri.contains("vfs=replicated");
                let durability = |durability: &str| {
                    let sql = format!("PRAGMA replicated_durability={durability}");
                    if *remote && is_ours { db.query_row(&sql, [], |_| Ok(())) } else { Ok(()) }
                };
                durability("remote")?;
                let done = transaction(db, deeds, *rolls_back);
                durability("local")?;
                done.map(Outcome::MadeFrom)
            }
            Op::Checkpoint(kind) => {
                let row: (i64, i64) = db.query_row(&format!("PRAGMA wal_checkpoint({kind})"), [], |row| Ok((row.get(0)?, row.get(1)?)))?;
                // How long the WAL is depends on when it could be begun anew, whether there is one does not.
                Ok(Outcome::Text(format!("busy {}, {}", row.0, if row.1 < 0 { "no WAL" } else { "a WAL" })))
            }
            Op::Journal(mode) => text(db, &format!("PRAGMA journal_mode={mode}")),
            Op::Locking(mode) => text(db, &format!("PRAGMA locking_mode={mode}")),
            Op::Vacuum => db.execute_batch("VACUUM").map(|()| Outcome::Done),
            Op::Read => look(db).map(Outcome::State),
            Op::Hold => {
                let holder = connect(&self.uri, "", 4096)?;
                holder.execute_batch("BEGIN")?;
                let seen = look(&holder)?;
                self.holder = Some(holder);
                Ok(Outcome::State(seen))
            }
            Op::Release => {
                let Some(holder) = self.holder.take() else { return Ok(Outcome::Done) };
                let seen = look(&holder)?;
                holder.execute_batch("COMMIT")?;
                Ok(Outcome::State(seen))
            }
            Op::Sync(limit) => text(db, &format!("PRAGMA replicated_sync='{limit}'")),
            Op::WaitFor => {
                let status: String = db.query_row("PRAGMA replicated_status", [], |row| row.get(0))?;
                let txid = status.lines().find_map(|line| line.strip_prefix("local_txid ")).unwrap_or_default();
                db.query_row(&format!("PRAGMA replicated_wait='{txid}'"), [], |_| Ok(()))?;
                Ok(Outcome::Text(txid.to_owned()))
            }
            Op::Status => text(db, "PRAGMA replicated_status"),
            Op::Open { .. } | Op::Close | Op::ForgetTwin => Ok(Outcome::Done),
        }
    }
}

fn text(db: &Connection, sql: &str) -> rusqlite::Result<Outcome> {
    db.query_row(sql, [], |row| row.get(0)).map(Outcome::Text)
}

fn state(db: &Connection) -> rusqlite::Result<Option<(u64, Line)>> {
    let told = |row: &rusqlite::Row<'_>| {
        let mut line = Line::default();
        for (state, text) in line.iter_mut().zip(row.get::<_, String>(1)?.split(' ')) {
            *state = text.parse().unwrap_or(0);
        }
        Ok((row.get::<_, i64>(0)?.cast_unsigned(), line))
    };
    db.query_row("SELECT id, line FROM state", [], told).optional()
}

fn begin(db: &Connection, commit: u64) -> rusqlite::Result<Line> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    let number = commit.cast_signed();
    let begun = (|| {
        let made: bool = db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'state'", [], |row| row.get(0))?;
        if !made {
            db.execute_batch(SCHEMA)?;
        }
        let (id, line) = state(db)?.unwrap_or((u64::MAX, Line::default()));
        let mut made_from = line;
        made_from.rotate_right(1);
        made_from[0] = id;
        let text: Vec<String> = made_from.iter().map(ToString::to_string).collect();
        db.execute("UPDATE state SET id = ?1, line = ?2", params![number, text.join(" ")])?;
        Ok(made_from)
    })();
    if begun.is_err() && !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    begun
}

fn write(db: &Connection, deed: Deed) -> rusqlite::Result<()> {
    let tag = deed.tag();
    for (row, body) in deed.writes() {
        match body {
            Some(body) => db
                .prepare("INSERT INTO item VALUES (?1, ?2, ?3) ON CONFLICT(id) DO UPDATE SET tag = ?2, body = ?3")?
                .execute(params![row.cast_signed(), tag, body])?,
            None => db.prepare("DELETE FROM item WHERE id = ?1")?.execute([row.cast_signed()])?,
        };
    }
    Ok(())
}

/// Leaves no transaction open, whatever comes of it.
fn transaction(db: &Connection, deeds: &[Deed], rolls_back: bool) -> rusqlite::Result<Line> {
    let Some(first) = deeds.first() else { return Ok(Line::default()) };
    let made_from = begin(db, first.commit)?;
    let done = deeds.iter().try_for_each(|deed| write(db, *deed));
    let done = done.and_then(|()| db.execute_batch(if rolls_back { "ROLLBACK" } else { "COMMIT" }));
    if done.is_err() && !db.is_autocommit() {
        db.execute_batch("ROLLBACK")?;
    }
    done.map(|()| made_from)
}

/// Everything that a database holds.
///
/// # Errors
/// SQLite's.
pub fn look(db: &Connection) -> rusqlite::Result<Seen> {
    let made: bool = db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'state'", [], |row| row.get(0))?;
    if !made {
        return Ok(Seen::default());
    }
    let was_in_transaction = !db.is_autocommit();
    if !was_in_transaction {
        db.execute_batch("BEGIN")?;
    }
    let seen = look_within(db);
    if !was_in_transaction {
        // Where it is not read to its end there may be none any more.
        let ended = if db.is_autocommit() { Ok(()) } else { db.execute_batch("COMMIT") };
        return seen.and_then(|seen| ended.map(|()| seen));
    }
    seen
}

fn look_within(db: &Connection) -> rusqlite::Result<Seen> {
    let Some((id, line)) = state(db)? else { return Ok(Seen { id: u64::MAX, ..Seen::default() }) };
    let mut sum = 0_u64;
    let mut statement = db.prepare("SELECT id, tag, body FROM item NOT INDEXED")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let number = row.get::<_, i64>(0)?.cast_unsigned();
        // A row that was never written has no number of ours.
        let of_row = if (1..=ROWS).contains(&number) { row_sum(number, row.get_ref(1)?.as_str()?, row.get_ref(2)?.as_blob()?) } else { 1 };
        sum = sum.wrapping_add(of_row);
    }
    Ok(Seen { id, line, sum })
}
