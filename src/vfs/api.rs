//! The few functions of SQLite that we call, taken from the table that the host hands over.
//!
//! A process can hold two copies of SQLite, so the table is kept per registered VFS and nothing here is global.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use super::abi::{
    File, Module, SQLITE_CHECKPOINT_PASSIVE, SQLITE_ERROR, SQLITE_FCNTL_FILE_POINTER, SQLITE_FCNTL_JOURNAL_POINTER, SQLITE_FCNTL_PRAGMA,
    SQLITE_OK, SQLITE_OPEN_NOMUTEX, SQLITE_OPEN_PRIVATECACHE, SQLITE_OPEN_READWRITE, SQLITE_TXN_WRITE, Vfs,
};
use crate::fault::fault_value;

/// The oldest SQLite whose table has all that we call: `sqlite3_filename_database` came with 3.31.0, and 3.32.0 is what is tested.
pub(crate) const OLDEST_VERSION: c_int = 3_032_000;

/// `sqlite3_api_routines`: opaque here, read by slot.
#[repr(C)]
#[derive(Debug)]
pub struct ApiRoutines {
    _private: [u8; 0],
}

/// Slots of the append-only `struct sqlite3_api_routines` of `sqlite3ext.h`.
pub(super) mod slot {
    pub(in crate::vfs) const CLOSE: usize = 16;
    pub(in crate::vfs) const DECLARE_VTAB: usize = 50;
    pub(in crate::vfs) const ERRMSG: usize = 53;
    pub(in crate::vfs) const EXEC: usize = 55;
    pub(in crate::vfs) const FREE: usize = 58;
    pub(in crate::vfs) const LIBVERSION_NUMBER: usize = 67;
    pub(in crate::vfs) const MPRINTF: usize = 69;
    pub(in crate::vfs) const RESULT_ERROR: usize = 80;
    pub(in crate::vfs) const RESULT_INT64: usize = 83;
    pub(in crate::vfs) const RESULT_NULL: usize = 84;
    pub(in crate::vfs) const RESULT_TEXT: usize = 85;
    pub(in crate::vfs) const VALUE_TEXT: usize = 109;
    pub(in crate::vfs) const CREATE_MODULE_V2: usize = 119;
    pub(in crate::vfs) const FILE_CONTROL: usize = 127;
    pub(in crate::vfs) const MUTEX_ALLOC: usize = 130;
    pub(in crate::vfs) const MUTEX_FREE: usize = 132;
    pub(in crate::vfs) const OPEN_V2: usize = 135;
    pub(in crate::vfs) const VFS_FIND: usize = 141;
    pub(in crate::vfs) const VFS_REGISTER: usize = 142;
    pub(in crate::vfs) const CONTEXT_DB_HANDLE: usize = 149;
    pub(in crate::vfs) const CREATE_FUNCTION_V2: usize = 162;
    pub(in crate::vfs) const LOG: usize = 167;
    pub(in crate::vfs) const DB_FILENAME: usize = 180;
    pub(in crate::vfs) const URI_PARAMETER: usize = 189;
    pub(in crate::vfs) const WAL_CHECKPOINT_V2: usize = 191;
    pub(in crate::vfs) const AUTO_EXTENSION: usize = 192;
    pub(in crate::vfs) const URI_KEY: usize = 245;
    pub(in crate::vfs) const FILENAME_DATABASE: usize = 246;
    /// From 3.34.0 on.
    pub(in crate::vfs) const TXN_STATE: usize = 252;
    /// From 3.39.0 on.
    pub(in crate::vfs) const DB_NAME: usize = 264;
}

/// The first version whose table has `sqlite3_db_name`.
const DB_NAME_VERSION: c_int = 3_039_000;

/// Why a host's function table cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The host was built without extension loading and hands over no table.
    #[error("this SQLite hands over no API table (it was built with SQLITE_OMIT_LOAD_EXTENSION)")]
    NoTable,
    /// The host lacks functions that we need.
    #[error("SQLite {}.{}.{} is too old: replicated needs 3.32.0 or newer", .0 / 1_000_000, .0 / 1000 % 1000, .0 % 1000)]
    TooOld(c_int),
    /// A slot that this version should fill is empty.
    #[error("this SQLite's API table lacks {0}")]
    Missing(&'static str),
}

/// An SQL function's implementation: context, number of arguments, arguments.
pub(crate) type SqlFunction = unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_void);
type Unused = Option<unsafe extern "C" fn()>;
type CreateFunction =
    unsafe extern "C" fn(*mut c_void, *const c_char, c_int, c_int, *mut c_void, Option<SqlFunction>, Unused, Unused, Unused) -> c_int;
/// The last argument is a destructor; all ones means that SQLite makes a copy.
type ResultText = unsafe extern "C" fn(*mut c_void, *const c_char, c_int, isize);

/// What tells of the databases of a connection, where this SQLite has it.
#[derive(Clone, Copy, Debug)]
struct Schemas {
    db_name: unsafe extern "C" fn(*mut c_void, c_int) -> *const c_char,
    txn_state: unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
}

/// One database of a connection, as SQLite's own pointers tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schema {
    /// The file name that was passed to `xOpen`; empty for temporary and in-memory databases.
    pub(crate) file_name: *const c_char,
    /// A transaction of the connection may change it.
    pub(crate) is_written: bool,
    /// Its rollback journal or WAL; null where SQLite does not tell.
    pub(crate) journal: *mut File,
}

/// The functions, all present.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SqliteApi {
    version: c_int,
    mprintf: unsafe extern "C" fn(*const c_char, ...) -> *mut c_char,
    vfs_find: unsafe extern "C" fn(*const c_char) -> *mut Vfs,
    vfs_register: unsafe extern "C" fn(*mut Vfs, c_int) -> c_int,
    log: unsafe extern "C" fn(c_int, *const c_char, ...),
    uri_parameter: unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char,
    uri_key: unsafe extern "C" fn(*const c_char, c_int) -> *const c_char,
    filename_database: unsafe extern "C" fn(*const c_char) -> *const c_char,
    file_control: unsafe extern "C" fn(*mut c_void, *const c_char, c_int, *mut c_void) -> c_int,
    db_filename: unsafe extern "C" fn(*mut c_void, *const c_char) -> *const c_char,
    schemas: Option<Schemas>,
    create_function: CreateFunction,
    result_text: ResultText,
    result_null: unsafe extern "C" fn(*mut c_void),
    result_int64: unsafe extern "C" fn(*mut c_void, i64),
    result_error: unsafe extern "C" fn(*mut c_void, *const c_char, c_int),
    value_text: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    context_db_handle: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    /// Missing where SQLite was built without virtual tables.
    tables: Option<Tables>,
    /// Missing where it was built without WAL, or without mutexes.
    connections: Option<Connections>,
    /// Missing where it was built without extensions of this kind.
    auto_extension: Option<unsafe extern "C" fn(AutoEntry) -> c_int>,
}

/// What virtual tables are made with.
#[derive(Clone, Copy, Debug)]
struct Tables {
    create_module: unsafe extern "C" fn(*mut c_void, *const c_char, *const Module, *mut c_void, Unused) -> c_int,
    declare: unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
}

/// What it takes to checkpoint a database on a connection of our own.
#[derive(Clone, Copy, Debug)]
struct Connections {
    open: unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, *const c_char) -> c_int,
    close: unsafe extern "C" fn(*mut c_void) -> c_int,
    exec: unsafe extern "C" fn(*mut c_void, *const c_char, Unused, *mut c_void, *mut *mut c_char) -> c_int,
    errmsg: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    checkpoint: unsafe extern "C" fn(*mut c_void, *const c_char, c_int, *mut c_int, *mut c_int) -> c_int,
    mutex_alloc: unsafe extern "C" fn(c_int) -> *mut c_void,
    mutex_free: unsafe extern "C" fn(*mut c_void),
}

impl Connections {
    /// # Safety
    /// `read` gives the slots of SQLite's own table.
    unsafe fn from(read: impl Fn(usize) -> *const c_void) -> Option<Self> {
        // SAFETY: each slot is transmuted to the type that `sqlite3ext.h` declares for it; a null function pointer is `None`.
        unsafe {
            Some(Self {
                open: std::mem::transmute::<
                    *const c_void,
                    Option<unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, *const c_char) -> c_int>,
                >(read(slot::OPEN_V2))?,
                close: std::mem::transmute::<*const c_void, Option<unsafe extern "C" fn(*mut c_void) -> c_int>>(read(slot::CLOSE))?,
                exec: std::mem::transmute::<
                    *const c_void,
                    Option<unsafe extern "C" fn(*mut c_void, *const c_char, Unused, *mut c_void, *mut *mut c_char) -> c_int>,
                >(read(slot::EXEC))?,
                errmsg: std::mem::transmute::<*const c_void, Option<unsafe extern "C" fn(*mut c_void) -> *const c_char>>(read(
                    slot::ERRMSG,
                ))?,
                checkpoint: std::mem::transmute::<
                    *const c_void,
                    Option<unsafe extern "C" fn(*mut c_void, *const c_char, c_int, *mut c_int, *mut c_int) -> c_int>,
                >(read(slot::WAL_CHECKPOINT_V2))?,
                mutex_alloc: std::mem::transmute::<*const c_void, Option<unsafe extern "C" fn(c_int) -> *mut c_void>>(read(
                    slot::MUTEX_ALLOC,
                ))?,
                mutex_free: std::mem::transmute::<*const c_void, Option<unsafe extern "C" fn(*mut c_void)>>(read(slot::MUTEX_FREE))?,
            })
        }
    }
}

/// An extension's entry point, as SQLite declares it where it is registered for every connection.
type AutoEntry = unsafe extern "C" fn();
/// And as it calls it.
pub(crate) type EveryConnection = unsafe extern "C" fn(*mut c_void, *mut *mut c_char, *const ApiRoutines) -> c_int;

impl SqliteApi {
    /// Somewhere in the library that SQLite is in.
    pub(crate) fn address(&self) -> *const c_void {
        self.vfs_find as *const c_void
    }

    /// Reads the table.
    ///
    /// # Safety
    /// `routines` is null or the table that a SQLite library passes to an extension's entry point.
    pub(crate) unsafe fn from_routines(routines: *const ApiRoutines) -> Result<Self, ApiError> {
        if routines.is_null() {
            return Err(ApiError::NoTable);
        }
        let slots = routines.cast::<*const c_void>();
        // SAFETY: the table is an array of function pointers, and every slot read before the version check exists since 3.3.13.
        let read = |index: usize| unsafe { *slots.add(index) };
        let libversion = read(slot::LIBVERSION_NUMBER);
        if libversion.is_null() {
            return Err(ApiError::Missing("sqlite3_libversion_number"));
        }
        // SAFETY: slot 67 is `int (*libversion_number)(void)`.
        let version = unsafe { std::mem::transmute::<*const c_void, unsafe extern "C" fn() -> c_int>(libversion)() };
        if version < OLDEST_VERSION {
            return Err(ApiError::TooOld(version));
        }
        let need = |index: usize, name: &'static str| {
            let function = read(index);
            if function.is_null() { Err(ApiError::Missing(name)) } else { Ok(function) }
        };
        // SAFETY: each slot is transmuted to the type that `sqlite3ext.h` declares for it; nulls were refused.
        unsafe {
            Ok(Self {
                version,
                mprintf: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*const c_char, ...) -> *mut c_char>(need(
                    slot::MPRINTF,
                    "sqlite3_mprintf",
                )?),
                vfs_find: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*const c_char) -> *mut Vfs>(need(
                    slot::VFS_FIND,
                    "sqlite3_vfs_find",
                )?),
                vfs_register: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut Vfs, c_int) -> c_int>(need(
                    slot::VFS_REGISTER,
                    "sqlite3_vfs_register",
                )?),
                log: std::mem::transmute::<*const c_void, unsafe extern "C" fn(c_int, *const c_char, ...)>(need(slot::LOG, "sqlite3_log")?),
                uri_parameter: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char>(
                    need(slot::URI_PARAMETER, "sqlite3_uri_parameter")?,
                ),
                uri_key: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*const c_char, c_int) -> *const c_char>(need(
                    slot::URI_KEY,
                    "sqlite3_uri_key",
                )?),
                filename_database: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*const c_char) -> *const c_char>(need(
                    slot::FILENAME_DATABASE,
                    "sqlite3_filename_database",
                )?),
                file_control: std::mem::transmute::<
                    *const c_void,
                    unsafe extern "C" fn(*mut c_void, *const c_char, c_int, *mut c_void) -> c_int,
                >(need(slot::FILE_CONTROL, "sqlite3_file_control")?),
                db_filename: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void, *const c_char) -> *const c_char>(need(
                    slot::DB_FILENAME,
                    "sqlite3_db_filename",
                )?),
                schemas: if fault_value!("REPLICATED_TEST_SQLITE_VERSION", version, |older| c_int::try_from(older).unwrap_or(version))
                    < DB_NAME_VERSION
                {
                    None
                } else {
                    Some(Schemas {
                        db_name: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void, c_int) -> *const c_char>(need(
                            slot::DB_NAME,
                            "sqlite3_db_name",
                        )?),
                        txn_state: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int>(need(
                            slot::TXN_STATE,
                            "sqlite3_txn_state",
                        )?),
                    })
                },
                create_function: std::mem::transmute::<*const c_void, CreateFunction>(need(
                    slot::CREATE_FUNCTION_V2,
                    "sqlite3_create_function_v2",
                )?),
                result_text: std::mem::transmute::<*const c_void, ResultText>(need(slot::RESULT_TEXT, "sqlite3_result_text")?),
                result_null: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void)>(need(
                    slot::RESULT_NULL,
                    "sqlite3_result_null",
                )?),
                result_int64: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void, i64)>(need(
                    slot::RESULT_INT64,
                    "sqlite3_result_int64",
                )?),
                result_error: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void, *const c_char, c_int)>(need(
                    slot::RESULT_ERROR,
                    "sqlite3_result_error",
                )?),
                value_text: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void) -> *const c_char>(need(
                    slot::VALUE_TEXT,
                    "sqlite3_value_text",
                )?),
                context_db_handle: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void) -> *mut c_void>(need(
                    slot::CONTEXT_DB_HANDLE,
                    "sqlite3_context_db_handle",
                )?),
                free: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void)>(need(slot::FREE, "sqlite3_free")?),
                connections: Connections::from(read),
                // A null function pointer is `None`.
                auto_extension: std::mem::transmute::<*const c_void, Option<unsafe extern "C" fn(AutoEntry) -> c_int>>(read(
                    slot::AUTO_EXTENSION,
                )),
                tables: if read(slot::CREATE_MODULE_V2).is_null() || read(slot::DECLARE_VTAB).is_null() {
                    None
                } else {
                    Some(Tables {
                        create_module: std::mem::transmute::<
                            *const c_void,
                            unsafe extern "C" fn(*mut c_void, *const c_char, *const Module, *mut c_void, Unused) -> c_int,
                        >(read(slot::CREATE_MODULE_V2)),
                        declare: std::mem::transmute::<*const c_void, unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int>(read(
                            slot::DECLARE_VTAB,
                        )),
                    })
                },
            })
        }
    }

    /// Whether both are of one copy of SQLite.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        std::ptr::fn_addr_eq(self.vfs_find, other.vfs_find)
    }

    /// `sqlite3_libversion_number()`.
    pub(crate) const fn version(&self) -> c_int {
        self.version
    }

    /// The VFS of that name, or the default one.
    pub(crate) fn find_vfs(&self, name: Option<&CStr>) -> *mut Vfs {
        // SAFETY: the argument is null or a C string.
        unsafe { (self.vfs_find)(name.map_or(std::ptr::null(), CStr::as_ptr)) }
    }

    /// Registers a VFS.
    ///
    /// # Safety
    /// `vfs` is complete and lives until the process ends.
    pub(crate) unsafe fn register_vfs(&self, vfs: *mut Vfs, make_default: bool) -> c_int {
        // SAFETY: passed on to the caller.
        unsafe { (self.vfs_register)(vfs, c_int::from(make_default)) }
    }

    /// Text in memory of SQLite's, which SQLite frees. Null when out of memory.
    pub(crate) fn sqlite_string(&self, text: &str) -> *mut c_char {
        let text = c_string(text);
        // SAFETY: both are C strings; "%s" consumes exactly one.
        unsafe { (self.mprintf)(c"%s".as_ptr(), text.as_ptr()) }
    }

    /// `prefix` and the string `rest`, which is freed as `%z` does.
    ///
    /// # Safety
    /// `rest` is null or came from SQLite's allocator and is not used afterwards.
    pub(crate) unsafe fn prefixed(&self, prefix: &CStr, rest: *mut c_char) -> *mut c_char {
        // SAFETY: `%s%z` consumes exactly the two arguments; `rest` is the caller's to give.
        unsafe { (self.mprintf)(c"%s%z".as_ptr(), prefix.as_ptr(), rest) }
    }

    /// Writes to the host's error log.
    pub(crate) fn log(&self, code: c_int, message: &str) {
        let message = c_string(message);
        // SAFETY: "%s" consumes exactly one C string.
        unsafe { (self.log)(code, c"%s".as_ptr(), message.as_ptr()) }
    }

    /// Gives a connection an SQL function of so many arguments, -1 for any number. Where it fails the connection goes without.
    ///
    /// # Safety
    /// `database` is a connection of this SQLite.
    pub(crate) unsafe fn create_function(&self, database: *mut c_void, name: &CStr, arguments: c_int, function: SqlFunction) {
        const SQLITE_UTF8: c_int = 1;
        // SAFETY: the connection is the caller's, and no application data is passed.
        let _ = unsafe {
            (self.create_function)(database, name.as_ptr(), arguments, SQLITE_UTF8, std::ptr::null_mut(), Some(function), None, None, None)
        };
    }

    /// Answers an SQL function with text, or NULL.
    ///
    /// # Safety
    /// `context` is the one that SQLite passed to the function.
    pub(crate) unsafe fn result(&self, context: *mut c_void, text: Option<&str>) {
        const SQLITE_TRANSIENT: isize = -1;
        match text.map(c_string) {
            // SAFETY: SQLite copies the C string at once.
            Some(text) => unsafe { (self.result_text)(context, text.as_ptr(), -1, SQLITE_TRANSIENT) },
            // SAFETY: passed on.
            None => unsafe { (self.result_null)(context) },
        }
    }

    /// The same with a number.
    ///
    /// # Safety
    /// As `result`.
    pub(crate) unsafe fn result_number(&self, context: *mut c_void, number: i64) {
        // SAFETY: passed on.
        unsafe { (self.result_int64)(context, number) }
    }

    /// Has an SQL function fail.
    ///
    /// # Safety
    /// As `result`.
    pub(crate) unsafe fn result_error(&self, context: *mut c_void, text: &str) {
        let text = c_string(text);
        // SAFETY: SQLite copies the C string at once.
        unsafe { (self.result_error)(context, text.as_ptr(), -1) }
    }

    /// The arguments of an SQL function as text; `None` for NULL.
    ///
    /// # Safety
    /// As SQLite passed them to the function.
    pub(crate) unsafe fn texts(&self, count: c_int, arguments: *mut *mut c_void) -> Vec<Option<String>> {
        let text = |at: usize| {
            // SAFETY: there are so many arguments, and the text of one lasts until it is asked for in another form.
            unsafe {
                let text = (self.value_text)(*arguments.add(at));
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        (0..usize::try_from(count).unwrap_or(0)).map(text).collect()
    }

    /// The connection that an SQL function runs on.
    ///
    /// # Safety
    /// As `result`.
    pub(crate) unsafe fn connection_of(&self, context: *mut c_void) -> *mut c_void {
        // SAFETY: passed on.
        unsafe { (self.context_db_handle)(context) }
    }

    /// Has an entry point called for every connection that is opened from here on. False where this SQLite cannot.
    ///
    /// # Safety
    /// The entry point stays where it is for as long as the process lives.
    pub(crate) unsafe fn offer_to_all(&self, entry: EveryConnection) -> bool {
        let Some(auto_extension) = self.auto_extension else { return false };
        // SAFETY: SQLite declares the entry point without its arguments, and calls it with them. Registering it twice is once.
        unsafe { auto_extension(std::mem::transmute::<EveryConnection, AutoEntry>(entry)) == SQLITE_OK }
    }

    /// Gives a connection the tables of a module. Where it fails the connection goes without.
    ///
    /// # Safety
    /// `database` is a connection of this SQLite; the module's methods take `data`, which lives as long as the process, for what it is.
    pub(crate) unsafe fn create_module(&self, database: *mut c_void, name: &CStr, module: &'static Module, data: *mut c_void) {
        if let Some(tables) = &self.tables {
            // SAFETY: the caller's.
            let _ = unsafe { (tables.create_module)(database, name.as_ptr(), module, data, None) };
        }
    }

    /// Says which columns a virtual table has, within its `connect`.
    ///
    /// # Safety
    /// `database` is the connection that was passed to it.
    pub(crate) unsafe fn declare_table(&self, database: *mut c_void, sql: &CStr) -> c_int {
        // SAFETY: the caller's.
        self.tables.map_or(SQLITE_ERROR, |tables| unsafe { (tables.declare)(database, sql.as_ptr()) })
    }

    /// What a PRAGMA of ours answers for one database of a connection; `None` where that is not replicated.
    ///
    /// # Safety
    /// `connection` is a connection of this SQLite that this thread may use.
    pub(crate) unsafe fn ask(&self, connection: *mut c_void, schema: &CStr, pragma: &CStr, value: &CStr) -> Option<Result<String, String>> {
        let mut strings = [std::ptr::null_mut(), pragma.as_ptr().cast_mut(), value.as_ptr().cast_mut(), std::ptr::null_mut()];
        // SAFETY: this is what SQLite itself passes for a PRAGMA that it does not know. It comes to our file, to the one below, or to another VFS's,
        // none of which answers to this name but ours. The answer is in memory of SQLite's.
        unsafe {
            let rc = (self.file_control)(connection, schema.as_ptr(), SQLITE_FCNTL_PRAGMA, strings.as_mut_ptr().cast());
            let [answer, ..] = strings;
            if answer.is_null() {
                return None;
            }
            let text = CStr::from_ptr(answer).to_string_lossy().into_owned();
            (self.free)(answer.cast());
            Some(if rc == SQLITE_OK { Ok(text) } else { Err(text) })
        }
    }

    /// The names of a connection's databases; of an SQLite before 3.39, which cannot tell, the first one's.
    ///
    /// # Safety
    /// As `ask`.
    pub(crate) unsafe fn schema_names(&self, connection: *mut c_void) -> Vec<CString> {
        const MOST: c_int = 128;
        let Some(Schemas { db_name, .. }) = self.schemas else { return vec![c"main".to_owned()] };
        // SAFETY: the connection is the caller's; a name lasts while nothing is detached, and is copied.
        let name = |index| unsafe {
            let name = db_name(connection, index);
            (!name.is_null()).then(|| CStr::from_ptr(name).to_owned())
        };
        (0..MOST).map_while(name).collect()
    }

    /// All URI parameters of a database's name, in order.
    ///
    /// # Safety
    /// `name` is the name that SQLite passed to `xOpen` for a main database.
    pub(crate) unsafe fn uri_parameters(&self, name: *const c_char) -> Vec<(String, String)> {
        const MOST: c_int = 256;
        let mut parameters = Vec::new();
        for index in 0..MOST {
            // SAFETY: `name` is such a name.
            let key = unsafe { (self.uri_key)(name, index) };
            if key.is_null() {
                break;
            }
            // SAFETY: `key` is a C string inside the name's own parameter area.
            let value = unsafe { (self.uri_parameter)(name, key) };
            let text = |pointer: *const c_char| {
                // SAFETY: both are C strings that live as long as the name.
                if pointer.is_null() { String::new() } else { unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned() }
            };
            parameters.push((text(key), text(value)));
        }
        parameters
    }

    /// The databases of a connection in the order in which they commit, without the temporary one; none where this SQLite cannot tell.
    ///
    /// # Safety
    /// `connection` is a connection of this SQLite that this thread is working with, as inside of a method of a VFS.
    pub(crate) unsafe fn schemas(&self, connection: *mut c_void) -> Vec<Schema> {
        /// SQLite's own limit is 125 attached databases.
        const MOST: c_int = 128;
        const TEMP: c_int = 1;
        let Some(Schemas { db_name, txn_state }) = self.schemas else { return Vec::new() };
        let mut schemas = Vec::new();
        for index in (0..MOST).filter(|index| *index != TEMP) {
            // SAFETY: the connection is the caller's. All of these take SQLite's own recursive lock, which this thread holds, and the name is
            // SQLite's while nothing is detached.
            unsafe {
                let name = db_name(connection, index);
                if name.is_null() {
                    break;
                }
                let is_written = txn_state(connection, name) == SQLITE_TXN_WRITE;
                let mut journal: *mut File = std::ptr::null_mut();
                if is_written {
                    // Where it fails the pointer stays null.
                    let _ = (self.file_control)(connection, name, SQLITE_FCNTL_JOURNAL_POINTER, (&raw mut journal).cast());
                }
                schemas.push(Schema { file_name: (self.db_filename)(connection, name), is_written, journal });
            }
        }
        schemas
    }

    /// Whether this SQLite may be used by several threads at once, each with connections of its own.
    pub(crate) fn has_mutexes(&self) -> bool {
        const SQLITE_MUTEX_FAST: c_int = 0;
        /// What SQLite hands out for a mutex where it has none.
        const NO_MUTEX: usize = 8;
        let Some(Connections { mutex_alloc, mutex_free, .. }) = self.connections else { return false };
        // SAFETY: a mutex that is made here is freed here.
        unsafe {
            let mutex = mutex_alloc(SQLITE_MUTEX_FAST);
            let is_one = !mutex.is_null() && mutex as usize != NO_MUTEX;
            if is_one {
                mutex_free(mutex);
            }
            is_one
        }
    }

    /// Opens a database by a VFS, checkpoints it as far as that goes without waiting, and closes it: how many frames the WAL had, and how many of them
    /// are in the database file then, each -1 where there is no WAL.
    ///
    /// # Errors
    /// SQLite's code, and its words.
    pub(crate) fn checkpoint(&self, path: &CStr, vfs: &CStr) -> Result<(c_int, c_int), (c_int, String)> {
        const FLAGS: c_int = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_PRIVATECACHE;
        let Some(Connections { open, close, exec, errmsg, checkpoint, .. }) = self.connections else {
            return Err((SQLITE_ERROR, "this SQLite has no WAL".to_owned()));
        };
        let (mut database, mut frames, mut in_file) = (std::ptr::null_mut(), -1, -1);
        // SAFETY: the strings are C strings; the connection is this thread's alone, and closed, also where its open has failed.
        unsafe {
            let mut rc = open(path.as_ptr(), &raw mut database, FLAGS, vfs.as_ptr());
            if rc == SQLITE_OK {
                // A connection that has not read anything knows of no WAL.
                rc = exec(database, c"PRAGMA schema_version".as_ptr(), None, std::ptr::null_mut(), std::ptr::null_mut());
            }
            if rc == SQLITE_OK {
                rc = checkpoint(database, c"main".as_ptr(), SQLITE_CHECKPOINT_PASSIVE, &raw mut frames, &raw mut in_file);
            }
            let said = errmsg(database);
            let why = if rc == SQLITE_OK || said.is_null() { String::new() } else { CStr::from_ptr(said).to_string_lossy().into_owned() };
            close(database);
            if rc == SQLITE_OK { Ok((frames, in_file)) } else { Err((rc, why)) }
        }
    }

    /// Whether a connection works with this file itself, and not with one of another VFS's that is stacked on ours.
    ///
    /// # Safety
    /// As `schemas`; `name` is what was passed to `xOpen` for the file.
    pub(crate) unsafe fn works_with(&self, connection: *mut c_void, file: *mut File, name: *const c_char) -> bool {
        const MOST: c_int = 128;
        let Some(Schemas { db_name, .. }) = self.schemas else { return false };
        for index in 0..MOST {
            // SAFETY: as in `schemas`.
            unsafe {
                let schema = db_name(connection, index);
                if schema.is_null() {
                    return false;
                }
                if (self.db_filename)(connection, schema) == name {
                    let mut found: *mut File = std::ptr::null_mut();
                    return (self.file_control)(connection, schema, SQLITE_FCNTL_FILE_POINTER, (&raw mut found).cast()) == SQLITE_OK
                        && found == file;
                }
            }
        }
        false
    }

    /// Whether `schemas` knows anything.
    pub(crate) const fn tells_schemas(&self) -> bool {
        self.schemas.is_some()
    }

    /// Whether the transaction writes to temporary tables.
    ///
    /// # Safety
    /// As `schemas`.
    pub(crate) unsafe fn writes_temp(&self, connection: *mut c_void) -> bool {
        // SAFETY: the connection is the caller's.
        self.schemas.is_none_or(|Schemas { txn_state, .. }| unsafe { txn_state(connection, c"temp".as_ptr()) } == SQLITE_TXN_WRITE)
    }

    /// The name of the database that belongs to the name of a WAL: where SQLite itself made both names, the very pointer that it passed to
    /// `xOpen` for the database.
    ///
    /// # Safety
    /// `wal_name` is a pointer that was passed to `xOpen` for a WAL: made by SQLite, or by `sqlite3_create_filename`.
    pub(crate) unsafe fn database_name_of(&self, wal_name: *const c_char) -> *const c_char {
        // SAFETY: passed on to the caller.
        unsafe { (self.filename_database)(wal_name) }
    }
}

/// A C string of any text: what follows a NUL is dropped.
fn c_string(text: &str) -> CString {
    let until_nul = text.split('\0').next().unwrap_or_default();
    CString::new(until_nul).unwrap_or_default()
}
