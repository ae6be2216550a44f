//! An application whose every committed state can be told from its number: what transaction `n` does depends on a seed and on `n` only,
//! so a database that was restored says by itself which state it is, and whether it is all of that state and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rusqlite::Connection;

use crate::sqlite::integrity_check;

/// Rows of the table that is updated all over.
const CHURN: i64 = 150;
/// Transactions whose rows are kept.
const KEPT: i64 = 40;
/// Large rows that are kept.
const KEPT_LARGE: usize = 2;
/// One transaction of so many makes a table, and drops an older one.
const SCHEMA_EVERY: i64 = 29;

/// The application, by its seed.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Decides what each transaction does.
    pub seed: u64,
    /// The largest row of the large table, in bytes; one transaction of 20 writes such a row.
    pub most_large_bytes: u32,
}

/// What one transaction does.
struct Deed {
    parts: Vec<u32>,
    churned: BTreeSet<i64>,
    large: Option<u32>,
}

impl Life {
    fn deed(&self, n: i64) -> Deed {
        let mut random = fastrand::Rng::with_seed(self.seed ^ n.cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let parts = (0..random.u32(1..6)).map(|_| if random.u32(0..8) == 0 { random.u32(1..20_000) } else { random.u32(1..900) }).collect();
        let churned = (0..random.u32(0..25)).map(|_| random.i64(1..=CHURN)).collect();
        let large = (random.u32(0..20) == 0).then(|| random.u32(1..self.most_large_bytes.max(2)));
        Deed { parts, churned, large }
    }

    /// The statements that make state 0, in one transaction.
    #[must_use]
    pub fn begin(&self) -> Vec<String> {
        [
            "BEGIN IMMEDIATE",
            "CREATE TABLE counter(n INTEGER)",
            "INSERT INTO counter VALUES (0)",
            "CREATE TABLE ledger(txn INTEGER, part INTEGER, parts INTEGER, body BLOB)",
            "CREATE INDEX ledger_txn ON ledger(txn)",
            "CREATE TABLE churn(id INTEGER PRIMARY KEY, txn INTEGER, body BLOB)",
            "CREATE INDEX churn_txn ON churn(txn, id)",
            "CREATE TABLE large(txn INTEGER PRIMARY KEY, body BLOB)",
            &format!(
                "WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM i WHERE n < {CHURN})
                 INSERT INTO churn SELECT n, 0, randomblob(500) FROM i"
            ),
            // Pages that never change, so that only a full state has every page.
            "CREATE TABLE ballast(body BLOB)",
            "INSERT INTO ballast VALUES (randomblob(150000))",
            "COMMIT",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// The statements of transaction `n`, which follows on state `n - 1`.
    #[must_use]
    pub fn transaction(&self, n: i64) -> Vec<String> {
        let deed = self.deed(n);
        let mut statements = vec!["BEGIN IMMEDIATE".to_owned(), format!("UPDATE counter SET n = {n}")];
        let count = deed.parts.len();
        let rows: Vec<String> =
            deed.parts.iter().enumerate().map(|(i, bytes)| format!("({n}, {i}, {count}, randomblob({bytes}))")).collect();
        statements.push(format!("INSERT INTO ledger VALUES {}", rows.join(", ")));
        statements.push(format!("DELETE FROM ledger WHERE txn <= {}", n - KEPT));
        if !deed.churned.is_empty() {
            let ids: Vec<String> = deed.churned.iter().map(i64::to_string).collect();
            let bytes = 100 + n % 1400;
            statements.push(format!("UPDATE churn SET txn = {n}, body = randomblob({bytes}) WHERE id IN ({})", ids.join(",")));
        }
        if let Some(bytes) = deed.large {
            statements.push(format!("INSERT INTO large VALUES ({n}, randomblob({bytes}))"));
            let keep = KEPT_LARGE;
            statements.push(format!("DELETE FROM large WHERE txn NOT IN (SELECT txn FROM large ORDER BY txn DESC LIMIT {keep})"));
        }
        if n % SCHEMA_EVERY == 0 {
            statements.push(format!("CREATE TABLE made_{n}(x)"));
            if n > 2 * SCHEMA_EVERY {
                statements.push(format!("DROP TABLE made_{}", n - 2 * SCHEMA_EVERY));
            }
        }
        statements.push("COMMIT".to_owned());
        statements
    }

    /// Which state a database is in; -1 before state 0.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn state(&self, path: &Path) -> Result<i64, String> {
        integrity_check(path)?;
        let connection = Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| e.to_string())?;
        self.state_of(&connection).map_err(|e| e.to_string())?
    }

    fn state_of(&self, connection: &Connection) -> rusqlite::Result<Result<i64, String>> {
        let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        let pairs = |sql: &str| -> rusqlite::Result<Vec<(i64, i64)>> {
            connection.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        if one("SELECT count(*) FROM sqlite_schema WHERE name = 'ballast'")? == 0 {
            return Ok(Ok(-1));
        }
        let n = one("SELECT n FROM counter")?;
        let (mut ledger, mut churn, mut large) = (Vec::new(), BTreeMap::new(), Vec::new());
        for txn in 1..=n {
            let deed = self.deed(txn);
            if txn > n - KEPT {
                ledger.extend(deed.parts.iter().map(|bytes| (txn, i64::from(*bytes))));
            }
            for id in deed.churned {
                churn.insert(id, (txn, 100 + txn % 1400));
            }
            large.extend(deed.large.map(|bytes| (txn, i64::from(bytes))));
        }
        large.drain(..large.len().saturating_sub(KEPT_LARGE));
        let made: Vec<String> =
            (1..=n).filter(|txn| txn % SCHEMA_EVERY == 0 && txn + 2 * SCHEMA_EVERY > n).map(|n| format!("made_{n}")).collect();
        let mut wrong = Vec::new();
        if pairs("SELECT txn, length(body) FROM ledger ORDER BY txn, part")? != ledger {
            wrong.push("ledger");
        }
        let expected: Vec<(i64, i64)> = (1..=CHURN).map(|id| churn.get(&id).copied().unwrap_or((0, 500))).collect();
        if pairs("SELECT txn, length(body) FROM churn ORDER BY id")? != expected {
            wrong.push("churn");
        }
        if pairs("SELECT txn, length(body) FROM large ORDER BY txn")? != large {
            wrong.push("large");
        }
        let names: rusqlite::Result<Vec<String>> = connection
            .prepare("SELECT name FROM sqlite_schema WHERE name LIKE 'made%' ORDER BY CAST(substr(name, 6) AS INTEGER)")?
            .query_map([], |row| row.get(0))?
            .collect();
        if names? != made {
            wrong.push("the schema");
        }
        Ok(if wrong.is_empty() { Ok(n) } else { Err(format!("state {n} is not whole: {} is of another moment", wrong.join(", "))) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_told_by_itself_and_a_mixture_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("life.db");
        let life = Life { seed: 7, most_large_bytes: 50_000 };
        let connection = Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE t(x)").unwrap();
        assert_eq!(life.state(&path), Ok(-1));
        connection.execute_batch(&life.begin().join(";")).unwrap();
        assert_eq!(life.state(&path), Ok(0));
        for n in 1..=150 {
            connection.execute_batch(&life.transaction(n).join(";")).unwrap();
            if n % 30 == 0 {
                assert_eq!(life.state(&path), Ok(n));
            }
        }
        connection.execute_batch("UPDATE churn SET txn = txn - 1 WHERE id = 3").unwrap();
        assert!(life.state(&path).unwrap_err().contains("churn"));
    }
}
