/*
** Replicates a database from C: a few commits, a wait until the bucket has them, the status.
**
** usage: c_app REPLICA_URL [DATABASE]
**
** It links the extension, which exports sqlite3_replicated_init, and the SQLite that it uses anyway:
**
**     make build
**     cc -o c_app -Iinclude examples/c_app.c -Ldist -l:replicated.so -lsqlite3 -Wl,-rpath,"$PWD/dist"
*/
#include <sqlite3.h>
#include <stdio.h>

#include "replicated.h"

static int fail(sqlite3 *db, const char *what) {
  fprintf(stderr, "%s: %s\n", what, sqlite3_errmsg(db));
  sqlite3_close(db);
  return 1;
}

/* SQLite's own log: also where the reason stands when a database is not opened. */
static void on_log(void *unused, int code, const char *message) {
  (void)unused;
  fprintf(stderr, "(%d) %s\n", code, message);
}

/* Prints the first column of each row. */
static int query(sqlite3 *db, const char *sql) {
  sqlite3_stmt *stmt;
  int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, 0);
  if (rc != SQLITE_OK) return rc;
  while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) printf("%s\n", (const char *)sqlite3_column_text(stmt, 0));
  sqlite3_finalize(stmt);
  return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

int main(int argc, char **argv) {
  sqlite3 *db = 0;
  char *uri;
  if (argc < 2) {
    fprintf(stderr, "usage: c_app REPLICA_URL [DATABASE]\n");
    return 2;
  }
  sqlite3_config(SQLITE_CONFIG_LOG, on_log, (void *)0);
  if (replicated_register() != SQLITE_OK) {
    fprintf(stderr, "the VFS could not be registered\n");
    return 1;
  }
  /* A URL with '&', '#' or '%' in it must be percent-encoded here. */
  uri = sqlite3_mprintf("file:%s?vfs=replicated&replica=%s", argc > 2 ? argv[2] : "app.db", argv[1]);
  if (sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, 0) != SQLITE_OK) return fail(db, uri);
  sqlite3_free(uri);

  if (sqlite3_exec(db,
                   "PRAGMA journal_mode=wal;"
                   "CREATE TABLE IF NOT EXISTS notes(id INTEGER PRIMARY KEY, text TEXT);"
                   "INSERT INTO notes(text) VALUES ('one from C');"
                   "INSERT INTO notes(text) VALUES ('two from C');",
                   0, 0, 0) != SQLITE_OK)
    return fail(db, "writing");
  if (query(db, "PRAGMA replicated_sync") != SQLITE_OK) return fail(db, "replicated_sync");
  if (query(db, "PRAGMA replicated_status") != SQLITE_OK) return fail(db, "replicated_status");
  return sqlite3_close(db) == SQLITE_OK ? 0 : 1;
}
