/*
** replicated: continuous replication of SQLite databases to object storage.
**
** For programs that link replicated.so (or open it with dlopen) instead of loading it with load_extension. Include sqlite3.h first.
**
**     replicated_register();                    // once, before the database is opened
**     sqlite3_open_v2("file:app.db?vfs=replicated&replica=s3://bucket/app", &db,
**                     SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, 0);
**
** SQLite 3.32.0 or newer, built with extension loading (the default).
*/
#ifndef REPLICATED_H
#define REPLICATED_H

#ifdef __cplusplus
extern "C" {
#endif

struct sqlite3_api_routines;

/*
** The entry point of the extension, as SQLite calls it: registers the VFS "replicated" with the SQLite that the routines belong to, and makes
** it the default if the environment has REPLICATED_DEFAULT=1. Returns SQLITE_OK_LOAD_PERMANENTLY, or SQLITE_ERROR with a message in
** *pzErrMsg (to be freed with sqlite3_free).
*/
int sqlite3_replicated_init(sqlite3 *db, char **pzErrMsg, const struct sqlite3_api_routines *pApi);

/*
** The extended result code (sqlite3_extended_errcode) of a COMMIT that did not reach the bucket in time with durability=bounded or remote: it is
** committed here and not known to be there. Do not repeat the transaction. SQLite itself reports this code for nothing.
*/
#define REPLICATED_NOT_ACKNOWLEDGED SQLITE_IOERR_COMMIT_ATOMIC

/*
** Registers the VFS with the SQLite that the program links. SQLite hands its function table to automatic extensions only, hence the scratch
** connection. Returns SQLITE_OK, or SQLITE_ERROR where the VFS is not there afterwards.
*/
static int replicated_register(void) {
  sqlite3 *scratch = 0;
  sqlite3_auto_extension((void (*)(void))sqlite3_replicated_init);
  /* An automatic extension that asks to stay loaded makes this open report 256; the VFS is registered all the same. */
  sqlite3_open(":memory:", &scratch);
  sqlite3_close(scratch);
  sqlite3_cancel_auto_extension((void (*)(void))sqlite3_replicated_init);
  return sqlite3_vfs_find("replicated") ? SQLITE_OK : SQLITE_ERROR;
}

#ifdef __cplusplus
}
#endif

#endif
