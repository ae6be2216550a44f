//! What we ask of the operating system beside SQLite: a thread that no signal handler runs on, and word of forks.

use std::mem::MaybeUninit;
use std::sync::Once;

use crate::replicator::process;

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
    // The new thread takes the mask of the one that makes it.
    let started = std::thread::Builder::new().name("replicated".to_owned()).stack_size(STACK_BYTES).spawn(body);
    if blocked == 0 {
        // SAFETY: `before` was filled by the successful call above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    }
    started.map(drop)
}

/// Counts forks from now on.
pub(crate) fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler only adds to an atomic, which is sound in the child of a threaded process.
        let rc = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        if rc != 0 {
            log::warn!(target: "replicated", "forks cannot be noticed (error {rc}): a child must not use databases that its parent opened");
        }
    });
}

extern "C" fn in_child() {
    process::forked();
}
