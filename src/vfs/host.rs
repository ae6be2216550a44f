//! What we ask of the operating system beside SQLite: a thread that no signal handler runs on, and word of forks.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Once;

use super::fork;
use crate::logging::{PerProcess, event};

/// The uploader's stack; its deepest use is TLS.
const STACK_BYTES: usize = 1024 * 1024;

/// Starts the uploader's thread with all signals blocked. It is never joined: at exit it simply ends with the process.
pub(crate) fn start_thread(body: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are ours; `sigfillset` makes the first, `pthread_sigmask` the second.
    let blocked = unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr())
    };
    let body = move || {
        fork::is_ours();
        body();
    };
    // The new thread takes the mask of the one that makes it.
    let started = std::thread::Builder::new().name("replicated".to_owned()).stack_size(STACK_BYTES).spawn(body);
    if blocked == 0 {
        // SAFETY: `before` was filled by the successful call above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    }
    started.map(drop)
}

/// Keeps the libraries that these addresses are in loaded for as long as the process lives. A plugin that brings SQLite, or us, may be unloaded: the
/// uploader would go on in code that is not there any more. (`SQLITE_OK_LOAD_PERMANENTLY` keeps SQLite itself from unloading us, and no more.)
pub(crate) fn keep_loaded(addresses: &[*const c_void]) {
    for address in addresses {
        let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: the structure is ours, and filled where something is found. The name is the loader's own. Nothing is loaded by that, and the handle
        // is never given back; for the program itself there may be none, and need not.
        unsafe {
            if libc::dladdr(*address, found.as_mut_ptr()) != 0 {
                let name = found.assume_init().dli_fname;
                if !name.is_null() {
                    libc::dlopen(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
                }
            }
        }
    }
}

/// Counts forks from now on, and has them wait for our thread: see `fork`.
pub(crate) fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handlers only change atomics, and the first one waits for one; that is sound in the child of a threaded process, too.
        let rc = unsafe { libc::pthread_atfork(Some(fork::prepare), Some(fork::in_parent), Some(fork::in_child)) };
        if rc != 0 {
            event!(Warn, "forks_unnoticed", PerProcess; "forks cannot be noticed (error {rc}): a child must not use databases that its parent opened");
        }
    });
}
