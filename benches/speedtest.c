/* SQLite's speedtest1 with an extension loaded first, where $BENCH_EXTENSION names one: it registers the VFS that `--vfs` names. */
#define main speedtest1_main
#include "speedtest1.c"
#undef main

int main(int argc, char **argv) {
  const char *extension = getenv("BENCH_EXTENSION");
  if (extension && *extension) {
    sqlite3 *scratch;
    char *error = 0;
    if (sqlite3_open(":memory:", &scratch) != SQLITE_OK) return 1;
    sqlite3_db_config(scratch, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, 0);
    if (sqlite3_load_extension(scratch, extension, 0, &error) != SQLITE_OK) {
      fprintf(stderr, "%s: %s\n", extension, error ? error : "failed");
      return 1;
    }
    sqlite3_close(scratch);
  }
  return speedtest1_main(argc, argv);
}
