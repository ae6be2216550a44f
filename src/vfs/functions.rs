//! What every connection of the process can ask in SQL: `replicated_status()`, the table `replicated_status`, `replicated_last_error()`.
//!
//! SQLite gives a PRAGMA of an extension one value and no rows; these have rows, and can be joined, filtered and put into a view. They are asked of the
//! database's file by that PRAGMA, so that this part knows nothing of replication.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::catch_unwind;
use std::sync::OnceLock;

use super::abi::{Cursor, Module, SQLITE_ERROR, SQLITE_OK, Table};
use super::api::{ApiRoutines, SqlFunction, SqliteApi};
use super::last_refusal;
use crate::logging::{PerProcess, event};

/// Copies of SQLite in one process that are told apart: the result functions of one are not for another's contexts, and nothing in a context says whose it is.
const MOST_COPIES: usize = 4;
static COPIES: [OnceLock<SqliteApi>; MOST_COPIES] = [const { OnceLock::new() }; MOST_COPIES];

const NAME: &CStr = c"replicated_status";

/// Gives them to the connection that has loaded the extension, if there is one, and to every one that is opened from here on.
///
/// # Safety
/// `database` is null or a connection of the SQLite behind `api`.
pub(super) unsafe fn offer(database: *mut c_void, api: &SqliteApi) {
    // SAFETY: passed on. The entry point is kept loaded, see `keep_loaded`.
    unsafe {
        if !database.is_null() {
            offer_to(database, api);
        }
        if !api.offer_to_all(every_connection) {
            event!(Debug, "sqlite_is_old", PerProcess; "SQLite has no automatic extensions: other connections have no replicated_status(), but the PRAGMA");
        }
    }
}

/// SQLite calls this for every connection that it opens. Whatever comes of it, the open succeeds.
unsafe extern "C" fn every_connection(database: *mut c_void, _error: *mut *mut c_char, routines: *const ApiRoutines) -> c_int {
    let _ = catch_unwind(|| {
        // SAFETY: called by SQLite with its own table and a connection that is being opened.
        unsafe {
            if let Ok(api) = SqliteApi::from_routines(routines) {
                offer_to(database, &api);
            }
        }
    });
    SQLITE_OK
}

/// # Safety
/// `database` is a connection of the SQLite behind `api`.
unsafe fn offer_to(database: *mut c_void, api: &SqliteApi) {
    let is_it = |slot: &&OnceLock<SqliteApi>| slot.get_or_init(|| *api).is_same(api);
    let Some((copy, slot)) = COPIES.iter().enumerate().find(|(_, slot)| is_it(slot)) else { return };
    let Some(api) = slot.get() else { return };
    let functions: [(SqlFunction, SqlFunction); MOST_COPIES] =
        [(last_error::<0>, status::<0>), (last_error::<1>, status::<1>), (last_error::<2>, status::<2>), (last_error::<3>, status::<3>)];
    let Some((last_error, status)) = functions.get(copy) else { return };
    // SAFETY: the connection is the caller's; the functions and the module's methods are those of this copy of SQLite, whose table lives for ever.
    unsafe {
        api.create_function(database, c"replicated_last_error", 0, *last_error);
        api.create_function(database, NAME, -1, *status);
        api.create_module(database, NAME, &MODULE, std::ptr::from_ref(api).cast_mut().cast());
    }
}

fn api<const COPY: usize>() -> Option<&'static SqliteApi> {
    COPIES.get(COPY)?.get()
}

/// `SELECT replicated_last_error()`: why a database was not opened, or a transaction refused. SQLite itself shows a fixed text for that, and a VFS has no way to
/// give another.
unsafe extern "C" fn last_error<const COPY: usize>(context: *mut c_void, _count: c_int, _arguments: *mut *mut c_void) {
    let text = catch_unwind(last_refusal).unwrap_or_default();
    if let Some(api) = api::<COPY>() {
        // SAFETY: SQLite's own context.
        unsafe { api.result(context, text.as_deref()) };
    }
}

/// `replicated_status()`, `replicated_status('json')`, `replicated_status('json', 'schema')`: NULL where that database is not replicated.
unsafe extern "C" fn status<const COPY: usize>(context: *mut c_void, count: c_int, arguments: *mut *mut c_void) {
    let Some(api) = api::<COPY>() else { return };
    let answer = catch_unwind(|| {
        // SAFETY: SQLite's own context and arguments.
        let (given, connection) = unsafe { (api.texts(count, arguments), api.connection_of(context)) };
        let [form, schema] = match given.as_slice() {
            [] => [None, None],
            [form] => [form.clone(), None],
            [form, schema] => [form.clone(), schema.clone()],
            _ => return Err("replicated_status: allowed are two arguments, the form (text or json) and the name of a database".to_owned()),
        };
        let form = form.unwrap_or_else(|| "text".to_owned());
        if !matches!(form.as_str(), "text" | "json") {
            return Err(format!("replicated_status: got {form:?}; allowed is text or json"));
        }
        let text = |text: String| CString::new(text).map_err(|_| "replicated_status: an argument with a NUL in it".to_owned());
        let (form, schema) = (text(form)?, text(schema.unwrap_or_else(|| "main".to_owned()))?);
        // SAFETY: within a function of SQLite's, which holds the connection.
        unsafe { api.ask(connection, &schema, NAME, &form) }.transpose()
    });
    // SAFETY: SQLite's own context.
    unsafe {
        match answer.unwrap_or_else(|_| Err("replicated_status: a fault in the extension".to_owned())) {
            Ok(text) => api.result(context, text.as_deref()),
            Err(error) => api.result_error(context, &error),
        }
    }
}

/// The table `replicated_status`: a row for each item of each replica of each database of the connection.
static MODULE: Module = Module {
    version: 0,
    create: None,
    connect: Some(connect),
    best_index: Some(best_index),
    disconnect: Some(disconnect),
    destroy: None,
    open: Some(open),
    close: Some(close),
    filter: Some(filter),
    next: Some(next),
    eof: Some(eof),
    column: Some(column),
    rowid: Some(rowid),
    unused: [None; 12],
};
const COLUMNS: &CStr = c"CREATE TABLE replicated_status(schema TEXT, replica INTEGER, name TEXT, value)";

/// The table as one connection has it.
#[repr(C)]
struct StatusTable {
    base: Table,
    api: &'static SqliteApi,
    connection: *mut c_void,
}

/// A query of it.
#[repr(C)]
struct StatusCursor {
    base: Cursor,
    rows: Vec<StatusRow>,
    at: usize,
}

struct StatusRow {
    schema: String,
    replica: i64,
    name: String,
    value: serde_json::Value,
}

unsafe extern "C" fn connect(
    connection: *mut c_void,
    data: *mut c_void,
    _count: c_int,
    _arguments: *const *const c_char,
    out: *mut *mut Table,
    _error: *mut *mut c_char,
) -> c_int {
    // SAFETY: the data is the table of functions that the module was made with, which lives for ever; the rest is SQLite's.
    unsafe {
        let api: &'static SqliteApi = &*data.cast::<SqliteApi>();
        let rc = api.declare_table(connection, COLUMNS);
        if rc == SQLITE_OK {
            let base = Table { module: std::ptr::null(), references: 0, error: std::ptr::null_mut() };
            *out = Box::into_raw(Box::new(StatusTable { base, api, connection })).cast();
        }
        rc
    }
}

unsafe extern "C" fn best_index(_table: *mut Table, _info: *mut c_void) -> c_int {
    // It is always read from its beginning to its end: it has some forty rows.
    SQLITE_OK
}

unsafe extern "C" fn disconnect(table: *mut Table) -> c_int {
    // SAFETY: made by `connect`, and given back once.
    drop(unsafe { Box::from_raw(table.cast::<StatusTable>()) });
    SQLITE_OK
}

unsafe extern "C" fn open(table: *mut Table, out: *mut *mut Cursor) -> c_int {
    // SAFETY: SQLite's own pointer; it sets the cursor's table itself.
    unsafe { *out = Box::into_raw(Box::new(StatusCursor { base: Cursor { table }, rows: Vec::new(), at: 0 })).cast() };
    SQLITE_OK
}

unsafe extern "C" fn close(cursor: *mut Cursor) -> c_int {
    // SAFETY: made by `open`, and given back once.
    drop(unsafe { Box::from_raw(cursor.cast::<StatusCursor>()) });
    SQLITE_OK
}

/// A query begins: all of it is asked for now.
unsafe extern "C" fn filter(
    cursor: *mut Cursor,
    _number: c_int,
    _name: *const c_char,
    _count: c_int,
    _arguments: *mut *mut c_void,
) -> c_int {
    // SAFETY: a cursor of ours, of a table of ours.
    let (cursor, table) = unsafe { (&mut *cursor.cast::<StatusCursor>(), &*(*cursor).table.cast::<StatusTable>()) };
    let rows = catch_unwind(|| {
        // SAFETY: within a query of that connection.
        let schemas = unsafe { table.api.schema_names(table.connection) };
        schemas.iter().flat_map(|schema| rows_of(table, schema)).collect()
    });
    cursor.at = 0;
    match rows {
        Ok(rows) => {
            cursor.rows = rows;
            SQLITE_OK
        }
        Err(_) => SQLITE_ERROR,
    }
}

/// None where that database is not replicated.
fn rows_of(table: &StatusTable, schema: &CStr) -> Vec<StatusRow> {
    // SAFETY: as `filter`.
    let Some(Ok(text)) = (unsafe { table.api.ask(table.connection, schema, NAME, c"rows") }) else { return Vec::new() };
    let rows: Vec<(i64, String, serde_json::Value)> = serde_json::from_str(&text).unwrap_or_default();
    let schema = schema.to_string_lossy();
    rows.into_iter().map(|(replica, name, value)| StatusRow { schema: schema.clone().into_owned(), replica, name, value }).collect()
}

unsafe extern "C" fn next(cursor: *mut Cursor) -> c_int {
    // SAFETY: a cursor of ours.
    unsafe { (*cursor.cast::<StatusCursor>()).at += 1 };
    SQLITE_OK
}

unsafe extern "C" fn eof(cursor: *mut Cursor) -> c_int {
    // SAFETY: a cursor of ours.
    let cursor = unsafe { &*cursor.cast::<StatusCursor>() };
    c_int::from(cursor.at >= cursor.rows.len())
}

unsafe extern "C" fn column(cursor: *mut Cursor, context: *mut c_void, column: c_int) -> c_int {
    // SAFETY: a cursor of ours, of a table of ours.
    let (cursor, api) = unsafe { (&*cursor.cast::<StatusCursor>(), (*(*cursor).table.cast::<StatusTable>()).api) };
    let Some(row) = cursor.rows.get(cursor.at) else { return SQLITE_ERROR };
    // SAFETY: SQLite's own context.
    unsafe {
        match (column, &row.value) {
            (0, _) => api.result(context, Some(&row.schema)),
            (1, _) => api.result_number(context, row.replica),
            (2, _) => api.result(context, Some(&row.name)),
            (_, serde_json::Value::Null) => api.result(context, None),
            (_, serde_json::Value::Number(number)) => api.result_number(context, number.as_i64().unwrap_or(i64::MAX)),
            (_, serde_json::Value::String(text)) => api.result(context, Some(text)),
            (_, other) => api.result(context, Some(&other.to_string())),
        }
    }
    SQLITE_OK
}

unsafe extern "C" fn rowid(cursor: *mut Cursor, out: *mut i64) -> c_int {
    // SAFETY: a cursor of ours; SQLite's own integer.
    unsafe { *out = i64::try_from((*cursor.cast::<StatusCursor>()).at).unwrap_or(i64::MAX) };
    SQLITE_OK
}
