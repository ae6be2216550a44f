/*
** Makes the extension the default VFS of SQLite's test program, testfixture.
**
** SQLite calls the function at the end of sqlite3_initialize() (SQLITE_EXTRA_INIT), also after a sqlite3_shutdown(), which puts "unix" back.
** REPLICATED_TEST_EXTENSION names the extension; without it nothing happens: that is the run to compare with. REPLICATED_DEFAULT=1, which
** the runner sets, is what makes the extension the default. Whatever goes wrong ends the process: no run falls back to "unix" unnoticed.
*/
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "sqlite3.h"

static void fail(const char *what, const char *why){
  fprintf(stderr, "the extension is not in use: %s: %s\n", what, why ? why : "no reason given");
  _Exit(99);
}

/* Whether this is the extension's thread: see faults.sed. */
int replicated_test_is_uploader(void){
  static _Thread_local int known;  /* 0: not known yet, 1: it is, 2: it is not */
  if( known==0 ){
    char name[32] = "";
    pthread_getname_np(pthread_self(), name, sizeof(name));
    known = strcmp(name, "replicated")==0 ? 1 : 2;
  }
  return known==1;
}

/*
** No power is lost here, and SQLite itself is compiled with SQLITE_NO_SYNC. The extension finds these before the C library's: the suite opens
** databases thousands of times in a file, and to sync what is beside each and in its bucket would take most of the time.
*/
int fsync(int fd){ return fcntl(fd, F_GETFD)<0 ? -1 : 0; }
int fdatasync(int fd){ return fsync(fd); }

int replicated_test_init(const char *unused){
  const char *extension = getenv("REPLICATED_TEST_EXTENSION");
  sqlite3 *db = 0;
  char *error = 0;
  sqlite3_vfs *vfs;
  (void)unused;
  if( extension==0 || extension[0]==0 ) return SQLITE_OK;
  vfs = sqlite3_vfs_find("replicated");
  if( vfs ){
    /* Not the first time. Some tests let memory run out here: nothing is allocated, so that it cannot fail. */
    return sqlite3_vfs_register(vfs, 1);
  }
  if( sqlite3_open(":memory:", &db)!=SQLITE_OK ) fail(":memory:", sqlite3_errmsg(db));
  sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int*)0);
  if( sqlite3_load_extension(db, extension, 0, &error)!=SQLITE_OK ) fail(extension, error);
  if( sqlite3_close(db)!=SQLITE_OK ) fail(extension, "the connection that loaded it does not close");
  vfs = sqlite3_vfs_find(0);
  if( vfs==0 || strcmp(vfs->zName, "replicated")!=0 ) fail(extension, "it is not the default VFS");
  return SQLITE_OK;
}
