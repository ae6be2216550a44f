//! The VFS `replicated`: opens files as ours or straight through, and hears of deleted WALs. The rest goes to the VFS below.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use super::abi::{
    AnyFn, File, SQLITE_CANTOPEN, SQLITE_ERROR, SQLITE_IOERR, SQLITE_OK, SQLITE_OPEN_CREATE, SQLITE_OPEN_MAIN_DB, SQLITE_OPEN_READONLY,
    SQLITE_OPEN_SUPER_JOURNAL, SQLITE_OPEN_WAL, Vfs,
};
use super::api::{ApiError, ApiRoutines, SqliteApi};
use super::base::BaseVfs;
use super::versions::has_wal_reset_bug;
use super::{checkpointer, file, host};
use crate::config::{ConfigFile, Options};
use crate::logging::{PerProcess, event};
use crate::replicator::ahead::Checkpointed;
use crate::replicator::database::Host;
use crate::replicator::durability::Policy;
use crate::replicator::if_missing::restore_if_missing;
use crate::replicator::lease::{Taken, take_at_open};
use crate::replicator::preserve::DatabaseFile;
use crate::replicator::process;
use crate::replicator::replicas::{Each, Replicas};
use crate::replicator::shared::Mapped;
use crate::wal::IndexHeader;

/// The name in `vfs=replicated`.
pub(super) const NAME: &CStr = c"replicated";
/// Why an open has failed, where it is our own doing.
const FAULT: &str = "a fault in the extension: please report it with the log. The next open tries again";

/// What hangs on a registered VFS: one for each copy of SQLite in the process.
#[derive(Debug)]
struct Registered {
    api: SqliteApi,
    base: BaseVfs,
}

impl Host for &'static Registered {
    fn open_database(&self, path: &Path) -> io::Result<Box<dyn DatabaseFile>> {
        self.base.open_database(path)
    }

    fn wal_index(&self, path: &Path) -> Option<IndexHeader> {
        super::group::wal_index(path)
    }

    fn map_shared(&self, control: &fs::File) -> io::Result<Box<dyn Mapped>> {
        super::mapping::map(control)
    }

    fn obstacle_to_checkpoints(&self) -> Option<String> {
        checkpointer::obstacle(&self.api)
    }

    fn checkpoint(&self, path: &Path, replicas: &Replicas) -> Checkpointed {
        checkpointer::checkpoint(&self.api, path, replicas)
    }
}

/// Registers the VFS with the SQLite that `routines` belongs to, once.
///
/// # Safety
/// `routines` is null or the table that a SQLite library passes to an extension's entry point.
pub(crate) unsafe fn register(routines: *const ApiRoutines, make_default: bool) -> Result<SqliteApi, ApiError> {
    // SAFETY: passed on.
    let api = unsafe { SqliteApi::from_routines(routines)? };
    host::watch_forks();
    let existing = api.find_vfs(Some(NAME));
    if !existing.is_null() {
        if make_default {
            // SAFETY: it is registered already, and so lives for ever.
            unsafe { api.register_vfs(existing, true) };
        }
        return Ok(api);
    }
    let base = api.find_vfs(None);
    // SAFETY: a registered VFS is alive.
    let Some(below) = (unsafe { base.as_ref() }) else { return Err(ApiError::Missing("a default VFS")) };
    warn_of_known_bugs(&api);
    host::keep_loaded(&[api.address(), open as *const c_void, below.open.map_or(std::ptr::null(), |open| open as *const c_void)]);
    let registered = Box::leak(Box::new(Registered { api, base: BaseVfs(base) }));
    let vfs = Box::leak(Box::new(wrap(below, std::ptr::from_mut(registered).cast())));
    // SAFETY: complete, and leaked so that it lives as long as the process.
    unsafe { api.register_vfs(vfs, make_default) };
    Ok(api)
}

fn warn_of_known_bugs(api: &SqliteApi) {
    let version = api.version();
    if has_wal_reset_bug(version) {
        event!(
            Info, "sqlite_is_old", PerProcess;
            "this is SQLite {}.{}.{}; versions before 3.51.3 have a rare bug that can corrupt a database in WAL mode (the WAL-reset bug)",
            version / 1_000_000, version / 1000 % 1000, version % 1000
        );
    }
}

/// Our VFS over `below`: the same version, paths and optional methods.
fn wrap(below: &Vfs, app_data: *mut c_void) -> Vfs {
    let version = below.version.min(3);
    let mut vfs = Vfs {
        version,
        file_bytes: below.file_bytes + file::SHIM_BYTES as c_int,
        max_path_bytes: below.max_path_bytes,
        next: std::ptr::null_mut(),
        name: NAME.as_ptr(),
        app_data,
        open: Some(open),
        delete: Some(delete),
        access: Some(access),
        full_pathname: Some(full_pathname),
        dl_open: below.dl_open.and(Some(dl_open)),
        dl_error: below.dl_error.and(Some(dl_error)),
        dl_sym: below.dl_sym.and(Some(dl_sym)),
        dl_close: below.dl_close.and(Some(dl_close)),
        randomness: Some(randomness),
        sleep: Some(sleep),
        current_time: Some(current_time),
        get_last_error: below.get_last_error.and(Some(get_last_error)),
        current_time_int64: None,
        set_system_call: None,
        get_system_call: None,
        next_system_call: None,
    };
    // Entries beyond the version are not there in the base.
    if version >= 2 {
        vfs.current_time_int64 = below.current_time_int64.and(Some(current_time_int64));
    }
    if version >= 3 {
        vfs.set_system_call = below.set_system_call.and(Some(set_system_call));
        vfs.get_system_call = below.get_system_call.and(Some(get_system_call));
        vfs.next_system_call = below.next_system_call.and(Some(next_system_call));
    }
    vfs
}

/// # Safety
/// `vfs` is ours.
unsafe fn registered(vfs: *mut Vfs) -> &'static Registered {
    // SAFETY: set in `register` and leaked.
    unsafe { &*(*vfs).app_data.cast::<Registered>() }
}

/// What to do with a database that is opened.
enum Plan {
    PassThrough,
    /// Opened read-only, and restored before that if it is not there.
    RestoreOnly(Box<Options>),
    Replicate(Box<Options>),
}

/// The variables of the process that may be ours.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, _)| name.starts_with("REPLICATED_"))
        .collect()
}

/// Decides by the URI parameters, the environment and the configuration file. All parameters are ours that come with `vfs=replicated` or a replica; where
/// only a variable or the file asks for replication, those are that look like it. The variables always are, so that a misspelt one does not leave a database
/// without replication in silence.
fn plan(path: &Path, parameters: &[(String, String)], environment: &[(String, String)], flags: c_int) -> Result<Plan, String> {
    let given = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let file = ConfigFile::find(Some(path), environment).map_err(|error| {
        log_where_asked(path, parameters, environment, None);
        error.to_string()
    })?;
    let named = given("vfs") == NAME.to_str().ok() || given("replica").is_some();
    let asked_for =
        environment.iter().any(|(name, _)| name == "REPLICATED_REPLICA") || file.as_ref().is_some_and(|file| file.asks_for(path));
    let ours: Vec<_> = parameters.iter().filter(|(name, _)| named || asked_for && Options::is_meant(name)).cloned().collect();
    let resolved = Options::resolve_for(Some(path), &ours, environment, file.as_ref());
    let options = resolved.map(|resolved| resolved.options).map_err(|error| {
        log_where_asked(path, &ours, environment, file.as_ref());
        error.to_string()
    })?;
    let switched_on = |name: &str| given(name).is_some_and(|v| !matches!(v, "0" | "no" | "false" | "off"));
    let read_only = flags & SQLITE_OPEN_READONLY != 0 || given("mode") == Some("ro") || switched_on("immutable");
    if options.replica.is_none() || given("mode") == Some("memory") || read_only && !options.restore_if_missing {
        return Ok(Plan::PassThrough);
    }
    if read_only {
        return Ok(Plan::RestoreOnly(Box::new(options)));
    }
    Ok(Plan::Replicate(Box::new(options)))
}

/// Heeds the options of the log where another option is refused: that is when they are needed.
fn log_where_asked(path: &Path, parameters: &[(String, String)], environment: &[(String, String)], file: Option<&ConfigFile>) {
    const OF_LOG: [&str; 4] = ["log", "log_level", "log_format", "log_max_bytes"];
    let is_of_log =
        |name: &str| OF_LOG.iter().any(|option| *option == name || format!("REPLICATED_{}", option.to_ascii_uppercase()) == name);
    // One of these may be what is refused.
    let is_right = |pair: &(String, String), of_uri: bool| {
        let (uri, environment): (&[_], &[_]) = if of_uri { (std::slice::from_ref(pair), &[]) } else { (&[], std::slice::from_ref(pair)) };
        is_of_log(&pair.0) && Options::resolve(uri, environment).is_ok()
    };
    let parameters: Vec<_> = parameters.iter().filter(|pair| is_right(pair, true)).cloned().collect();
    let environment: Vec<_> = environment.iter().filter(|pair| is_right(pair, false)).cloned().collect();
    if let Ok(resolved) = Options::resolve_for(Some(path), &parameters, &environment, file)
        && OF_LOG.iter().any(|name| resolved.given.contains_key(name))
    {
        crate::logging::configure(&resolved.options);
    }
}

unsafe extern "C" fn open(vfs: *mut Vfs, name: *const c_char, out: *mut File, flags: c_int, out_flags: *mut c_int) -> c_int {
    // SAFETY: SQLite calls the method of a registered VFS with memory of `file_bytes` bytes.
    let registered = unsafe {
        (*out).methods = std::ptr::null();
        registered(vfs)
    };
    if flags & SQLITE_OPEN_MAIN_DB != 0
        && !name.is_null()
        && let Some(replicas) = checkpointer::opens()
    {
        // SAFETY: passed on.
        return unsafe { open_own(registered, name, out, flags, out_flags, replicas) };
    }
    if flags & SQLITE_OPEN_MAIN_DB != 0 && !name.is_null() {
        // SAFETY: a main database's name carries its URI parameters.
        let parameters = unsafe { registered.api.uri_parameters(name) };
        // SAFETY: the name is a C string.
        let path = unsafe { path_of(name) };
        let planned = catch_unwind(|| plan(path, &parameters, &environment(), flags)).unwrap_or_else(|_| Err(FAULT.to_owned()));
        match planned {
            Ok(Plan::PassThrough) => {}
            Ok(Plan::RestoreOnly(options)) => {
                if let Err(error) = restore_first(path, &options) {
                    return refuse(path, &error);
                }
            }
            // SAFETY: passed on.
            Ok(Plan::Replicate(options)) => return unsafe { open_main(registered, name, out, flags, out_flags, &options) },
            Err(error) => return refuse(path, &error),
        }
    } else if flags & SQLITE_OPEN_WAL != 0 && !name.is_null() {
        // SAFETY: `name` is what SQLite, or a VFS above ours, passed for the WAL.
        let main = unsafe { main_of_wal(registered, name) };
        if !main.is_null() {
            // SAFETY: the memory is as large as we said; the base's part lies behind ours.
            unsafe {
                let rc = open_base(registered.base, name, file::base_at(out), flags, out_flags);
                if rc == SQLITE_OK && !file::become_wal(out, main) {
                    return SQLITE_ERROR;
                }
                return rc;
            }
        }
    }
    if flags & SQLITE_OPEN_SUPER_JOURNAL != 0 && flags & SQLITE_OPEN_CREATE != 0 {
        // SAFETY: as for a WAL.
        unsafe {
            let rc = open_base(registered.base, name, file::base_at(out), flags, out_flags);
            if rc == SQLITE_OK {
                file::become_super_journal(out);
            }
            return rc;
        }
    }
    // Not a file of ours: the base opens it straight into the buffer, and our methods are never seen.
    // SAFETY: the memory is larger than the base asks for.
    unsafe { open_base(registered.base, name, out, flags, out_flags) }
}

/// The open file of the database that a WAL belongs to; null where we do not replicate it.
///
/// Found by the pointer to the database's name. `sqlite3_database_file_object` gives the file that SQLite itself sees, which is another VFS's
/// where one is stacked on ours, and it crashes for names that such a VFS has made.
///
/// # Safety
/// `name` was passed to `xOpen` for a WAL.
unsafe fn main_of_wal(registered: &'static Registered, name: *const c_char) -> *mut File {
    catch_unwind(|| {
        if process::replicates_any() {
            // SAFETY: passed on.
            process::main_named(unsafe { registered.api.database_name_of(name) } as usize)
        } else {
            0
        }
    })
    .unwrap_or_default() as *mut File
}

/// # Safety
/// As `open`.
unsafe fn open_main(
    registered: &'static Registered,
    name: *const c_char,
    out: *mut File,
    flags: c_int,
    out_flags: *mut c_int,
    options: &Options,
) -> c_int {
    // SAFETY: the name is a C string.
    let path = unsafe { path_of(name) };
    let leases = match leases_first(path, options) {
        Ok(leases) => leases,
        Err(error) => return refuse(path, &error),
    };
    if let Err(error) = restore_first(path, options) {
        return refuse(path, &error);
    }
    let mut base_flags = 0;
    // SAFETY: see `open`.
    let rc = unsafe { open_base(registered.base, name, file::base_at(out), flags, &raw mut base_flags) };
    if !out_flags.is_null() {
        // SAFETY: SQLite's own integer.
        unsafe { *out_flags = base_flags };
    }
    if rc != SQLITE_OK {
        // SQLite tells the application no more than that, and whoever asks us is not to hear of an open before this one.
        let _ = catch_unwind(|| super::note_refusal(&not_opened(path, flags)));
        return rc;
    }
    let replicas = if base_flags & SQLITE_OPEN_READONLY != 0 { Ok(None) } else { attach(registered, path, options, leases).map(Some) };
    match replicas {
        Ok(replicas) => {
            // SAFETY: the base's file is open behind our part.
            unsafe { file::become_main(out, &registered.api, name, replicas, Policy::of(options), false) };
            SQLITE_OK
        }
        Err(error) => {
            // SAFETY: the base's file is open, and closed here once.
            unsafe { close_base(file::base_at(out)) };
            refuse(path, &error)
        }
    }
}

/// Opens a database for ourselves.
///
/// # Safety
/// As `open`.
unsafe fn open_own(
    registered: &'static Registered,
    name: *const c_char,
    out: *mut File,
    flags: c_int,
    out_flags: *mut c_int,
    replicas: Replicas,
) -> c_int {
    let mut base_flags = 0;
    // SAFETY: see `open`; what is open is closed here once, or becomes ours.
    unsafe {
        let rc = open_base(registered.base, name, file::base_at(out), flags, &raw mut base_flags);
        if rc != SQLITE_OK {
            return rc;
        }
        if base_flags & SQLITE_OPEN_READONLY != 0 {
            close_base(file::base_at(out));
            return SQLITE_CANTOPEN;
        }
        if !out_flags.is_null() {
            *out_flags = base_flags;
        }
        checkpointer::become_own(out, &registered.api, name, replicas);
    }
    SQLITE_OK
}

/// Why the VFS below has not opened a database, as far as the file system tells.
fn not_opened(path: &Path, flags: c_int) -> String {
    let folder = path.parent().unwrap_or(path);
    let why = if !folder.is_dir() {
        "its folder is not there: make it, or correct the path"
    } else if path.is_dir() {
        "it is a folder: name a file"
    } else if !path.exists() && flags & SQLITE_OPEN_CREATE == 0 {
        "it is not there, and this connection makes none (mode=rw): correct the path, or restore it"
    } else {
        "look at the permissions of the file and of its folder, for the user of this process, and at the disk"
    };
    format!("{}: the system does not open this database: {why}", path.display())
}

/// # Safety
/// `name` is a C string that outlives what is returned.
unsafe fn path_of<'a>(name: *const c_char) -> &'a Path {
    // SAFETY: passed on.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()))
}

/// With `restore=if-missing`: before the base opens the file, which would make an empty one.
fn restore_first(path: &Path, options: &Options) -> Result<(), String> {
    if !options.restore_if_missing {
        return Ok(());
    }
    catch_unwind(AssertUnwindSafe(|| {
        crate::logging::configure(options);
        restore_if_missing(path, options, host::start_thread).map_err(|error| error.to_string())
    }))
    .unwrap_or_else(|_| Err(FAULT.to_owned()))
}

/// With `lease`: before anything else.
fn leases_first(path: &Path, options: &Options) -> Result<Each<Option<Taken>>, String> {
    if options.lease.is_zero() {
        return Ok(Each::default());
    }
    catch_unwind(AssertUnwindSafe(|| {
        crate::logging::configure(options);
        take_at_open(path, options, host::start_thread).map_err(|error| error.to_string())
    }))
    .unwrap_or_else(|_| Err(FAULT.to_owned()))
}

fn attach(registered: &'static Registered, path: &Path, options: &Options, leases: Each<Option<Taken>>) -> Result<Replicas, String> {
    let host: Arc<dyn Host> = Arc::new(registered);
    catch_unwind(AssertUnwindSafe(|| {
        crate::logging::configure(options);
        process::open(path, options, &host, host::start_thread, leases).map_err(|error| error.to_string())
    }))
    .unwrap_or_else(|_| Err(FAULT.to_owned()))
}

/// SQLite shows the application a fixed text for this code, so that the log must tell the reason.
fn refuse(database: &Path, error: &str) -> c_int {
    super::note_refusal(error);
    // The application's own logger may panic.
    let _ = catch_unwind(|| event!(Error, "not_opened", database, cause = error; "the database is not opened: {error}"));
    SQLITE_CANTOPEN
}

/// # Safety
/// `out` has room for the base's file.
unsafe fn open_base(base: BaseVfs, name: *const c_char, out: *mut File, flags: c_int, out_flags: *mut c_int) -> c_int {
    // SAFETY: passed on. A base that fails with its methods set wants to be closed.
    unsafe {
        (*out).methods = std::ptr::null();
        let Some(open) = (*base.0).open else { return SQLITE_ERROR };
        let rc = open(base.0, name, out, flags, out_flags);
        if rc != SQLITE_OK {
            close_base(out);
        }
        rc
    }
}

/// # Safety
/// `base` is a base file, open or failed to open.
unsafe fn close_base(base: *mut File) {
    // SAFETY: methods are null or static.
    unsafe {
        if let Some(close) = (*base).methods.as_ref().and_then(|m| m.close) {
            close(base);
        }
        (*base).methods = std::ptr::null();
    }
}

/// A WAL that is deleted takes its frames along: what is not replicated is saved first.
unsafe extern "C" fn delete(vfs: *mut Vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: SQLite passes a C string.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()));
    let replicas = catch_unwind(|| process::find_by_wal(path)).unwrap_or_default();
    if let Some(replicas) = &replicas {
        // A panic leaves the database poisoned; the deletion goes on, as SQLite must be able to.
        replicas.each((), |database| database.wal_vanishes());
    }
    // SAFETY: passed on.
    unsafe {
        let base = registered(vfs).base.0;
        (*base).delete.map_or(SQLITE_IOERR, |delete| delete(base, name, sync_directory))
    }
}

macro_rules! forward {
    ($name:ident($($arg:ident: $type:ty),*) -> $result:ty, $missing:expr) => {
        unsafe extern "C" fn $name(vfs: *mut Vfs $(, $arg: $type)*) -> $result {
            // SAFETY: SQLite calls the methods of a registered VFS; the arguments pass through untouched.
            unsafe {
                let base = registered(vfs).base.0;
                match (*base).$name {
                    Some(method) => method(base $(, $arg)*),
                    None => $missing,
                }
            }
        }
    };
}

forward!(access(name: *const c_char, flags: c_int, out: *mut c_int) -> c_int, SQLITE_IOERR);
forward!(full_pathname(name: *const c_char, bytes: c_int, out: *mut c_char) -> c_int, SQLITE_CANTOPEN);
forward!(dl_open(name: *const c_char) -> *mut c_void, std::ptr::null_mut());
forward!(dl_error(bytes: c_int, out: *mut c_char) -> (), ());
forward!(dl_sym(library: *mut c_void, symbol: *const c_char) -> AnyFn, None);
forward!(dl_close(library: *mut c_void) -> (), ());
forward!(randomness(bytes: c_int, out: *mut c_char) -> c_int, 0);
forward!(sleep(microseconds: c_int) -> c_int, 0);
forward!(current_time(out: *mut f64) -> c_int, SQLITE_ERROR);
forward!(get_last_error(bytes: c_int, out: *mut c_char) -> c_int, 0);
forward!(current_time_int64(out: *mut i64) -> c_int, SQLITE_ERROR);
forward!(set_system_call(name: *const c_char, call: AnyFn) -> c_int, SQLITE_ERROR);
forward!(get_system_call(name: *const c_char) -> AnyFn, None);
forward!(next_system_call(name: *const c_char) -> *const c_char, std::ptr::null());

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn plan_of(parameters: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<bool, String> {
        let plan = plan(Path::new("/srv/app.db"), &pairs(parameters), &pairs(environment), SQLITE_OPEN_MAIN_DB)?;
        Ok(matches!(plan, Plan::Replicate(_)))
    }

    #[test]
    fn only_what_is_meant_is_replicated() {
        assert_eq!(plan_of(&[("vfs", "replicated")], &[]), Ok(false));
        assert_eq!(plan_of(&[("replica", "file:///b")], &[]), Ok(true));
        assert_eq!(plan_of(&[], &[("REPLICATED_REPLICA", "file:///b")]), Ok(true));
        assert_eq!(plan_of(&[("replica", "")], &[("REPLICATED_REPLICA", "file:///b")]), Ok(false));
        assert_eq!(plan_of(&[("replica", "file:///b"), ("mode", "ro")], &[]), Ok(false));
        assert_eq!(plan_of(&[("another_vfs_s_own", "1")], &[("REPLICATED_DEFAULT", "1"), ("REPLICATED_LOG", "stderr")]), Ok(false));
        // The application's own URIs go on to work where the environment replicates its databases.
        let replica = [("REPLICATED_DEFAULT", "1"), ("REPLICATED_REPLICA", "file:///b")];
        assert_eq!(plan_of(&[("another_vfs_s_own", "1"), ("yet", "2")], &replica), Ok(true));
        assert!(plan_of(&[("sync_intervall", "1s")], &replica).is_err());
        assert!(plan_of(&[("vfs", "replicated"), ("another_vfs_s_own", "1")], &replica).is_err());
    }

    #[test]
    fn a_misspelt_variable_refuses_the_open_whatever_the_parameters() {
        let error = plan_of(&[], &[("REPLICATED_DEFAULT", "1"), ("REPLICATED_REPLIKA", "file:///b")]).unwrap_err();
        assert!(error.contains("REPLICATED_REPLICA"), "{error}");
        assert!(plan_of(&[("vfs", "replicated"), ("sync_intervall", "1s")], &[]).is_err());
    }
}
