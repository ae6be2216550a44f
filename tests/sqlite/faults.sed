# What is done to SQLite's test sources before they are compiled. The extension has a thread of its own, which reads databases through SQLite's
# VFS. The suite counts I/O errors, failing system calls and failing allocations down in plain globals, and knows of one thread only: a fault that
# it means for a statement would hit that thread, and the statement would succeed.

# I/O errors, full disks and syncs: one counter a thread; the suite sees its own.
s/^( *)(SQLITE_API )?(extern )?int (sqlite3_io_error_[a-z]+|sqlite3_diskfull[a-z_]*|sqlite3_(full)?sync_count)( = 0)?;/\1\2\3_Thread_local int \4\6;/
s/^( *)extern int sqlite3_sync_count, sqlite3_fullsync_count;/\1extern _Thread_local int sqlite3_sync_count, sqlite3_fullsync_count;/
# Two threads that open and close count right.
s/^( *)(SQLITE_API )?(extern )?int sqlite3_open_file_count/\1\2\3_Atomic int sqlite3_open_file_count/
# Allocations and system calls fail in the suite's threads only.
s/^static int (faultsimStep|tsIsFail)\(void\)\{/extern int replicated_test_is_uploader(void);\n&\n  if( replicated_test_is_uploader() ) return 0;/
# The extension also reads, and asks for the file's size, in the suite's thread: while SQLite writes, commits or gives a lock up. Only what SQLite
# itself asked for may fail.
s/^( *)return id->pMethods->xRead\(id, pBuf, amt, offset\);/{ int rc; replicated_test_asked++; rc = id->pMethods->xRead(id, pBuf, amt, offset); replicated_test_asked--; return rc; }/
s/^( *)return id->pMethods->xFileSize\(id, pSize\);/{ int rc; replicated_test_asked++; rc = id->pMethods->xFileSize(id, pSize); replicated_test_asked--; return rc; }/
s/^( *)SimulateIOError\( got = -1 \);?/if( replicated_test_asked ){ SimulateIOError( got = -1 ) }/
/^static int unixFileSize\(/,/^}/s/^( *)SimulateIOError\( rc=1 \);?/if( replicated_test_asked ){ SimulateIOError( rc=1 ) }/
s/^SQLITE_PRIVATE int sqlite3OsRead\(sqlite3_file \*id, void \*pBuf.*\{/_Thread_local int replicated_test_asked = 0;\n&/
s/^static int seekAndRead\(unixFile/extern _Thread_local int replicated_test_asked;\n&/
