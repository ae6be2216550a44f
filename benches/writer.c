/* Commits single rows, each timed: the application of `make bench`, as a C program that does nothing else.
**
**   writer NAME=VALUE...
**
**   uri         the database; a URI
**   extension   a loadable extension that is loaded first, once
**   threads     so many, each with a connection of its own (1)
**   commits     so many by each (1000)
**   bytes       so many in each row (70)
**   pause_us    each takes at least so long, by a loop that does nothing: what a program does beside (0)
**   sleep_us    sleeps so long after each (0)
**   warm        commits that are not timed, before (200)
**   idle        1: one more thread, which does nothing (0)
**   busy_ms     SQLite's busy timeout (0). Without one a BUSY is counted and the commit is tried again
**   sync        1: waits for the bucket before it is ready (0)
**   go          1: says `ready` and waits for a line before it begins (0)
**   latencies   a file for what each commit took, in nanoseconds, 8 bytes each in the machine's order
**   load_only   1: loads the extension and ends (0)
**
** Prints one line of JSON. The clock of its moments is CLOCK_MONOTONIC, which processes share.
*/
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "sqlite3.h"

static const char *argument(int argc, char **argv, const char *name, const char *fallback) {
  size_t length = strlen(name);
  for (int i = 1; i < argc; i++)
    if (strncmp(argv[i], name, length) == 0 && argv[i][length] == '=') return argv[i] + length + 1;
  return fallback;
}

static void fail(const char *what, sqlite3 *db) {
  fprintf(stderr, "writer: %s: %s\n", what, db ? sqlite3_errmsg(db) : "failed");
  exit(1);
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static long resident_kib(void) {
  char line[256];
  long kib = 0;
  FILE *status = fopen("/proc/self/status", "r");
  if (!status) return 0;
  while (fgets(line, sizeof line, status))
    if (sscanf(line, "VmRSS: %ld", &kib) == 1) break;
  fclose(status);
  return kib;
}

typedef struct {
  sqlite3 *db;
  sqlite3_stmt *insert;
  long commits;
  uint64_t *latencies;
  uint64_t pause_ns;
  useconds_t sleep_us;
  long busy;
} Writer;

static void execute(sqlite3 *db, const char *sql) {
  if (sqlite3_exec(db, sql, 0, 0, 0) != SQLITE_OK) fail(sql, db);
}

static void commit_rows(Writer *w, long commits, uint64_t *latencies) {
  for (long i = 0; i < commits; i++) {
    uint64_t begun = now_ns();
    for (;;) {
      int step = sqlite3_step(w->insert), done = sqlite3_reset(w->insert);
      if (step == SQLITE_DONE && done == SQLITE_OK) break;
      if ((done & 0xff) != SQLITE_BUSY) fail("INSERT", w->db);
      w->busy++;
    }
    if (latencies) {
      latencies[i] = now_ns() - begun;
      while (w->pause_ns && now_ns() - begun < w->pause_ns) {
      }
      if (w->sleep_us) usleep(w->sleep_us);
    }
  }
}

static void *write_rows(void *given) {
  Writer *w = given;
  commit_rows(w, w->commits, w->latencies);
  return 0;
}

static void *idle(void *given) {
  (void)given;
  for (;;) pause();
}

int main(int argc, char **argv) {
  const char *uri = argument(argc, argv, "uri", 0), *extension = argument(argc, argv, "extension", 0);
  const char *file = argument(argc, argv, "latencies", 0);
  long threads = atol(argument(argc, argv, "threads", "1")), commits = atol(argument(argc, argv, "commits", "1000"));
  long bytes = atol(argument(argc, argv, "bytes", "70")), warm = atol(argument(argc, argv, "warm", "200"));
  int busy_ms = atoi(argument(argc, argv, "busy_ms", "0"));
  uint64_t load_ns = 0;

  if (extension) {
    sqlite3 *scratch;
    char *error = 0;
    sqlite3_initialize();
    if (sqlite3_open(":memory:", &scratch) != SQLITE_OK) fail("open", scratch);
    sqlite3_db_config(scratch, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, 0);
    uint64_t begun = now_ns();
    if (sqlite3_load_extension(scratch, extension, 0, &error) != SQLITE_OK) fail(error ? error : extension, scratch);
    load_ns = now_ns() - begun;
    sqlite3_close(scratch);
  }
  if (atoi(argument(argc, argv, "load_only", "0"))) {
    printf("{\"load_ns\": %llu, \"rss_kib\": %ld}\n", (unsigned long long)load_ns, resident_kib());
    return 0;
  }
  if (!uri || threads < 1 || commits < 1) fail("wrong arguments", 0);
  if (atoi(argument(argc, argv, "idle", "0"))) {
    pthread_t thread;
    if (pthread_create(&thread, 0, idle, 0)) fail("pthread_create", 0);
  }

  Writer *writers = calloc((size_t)threads, sizeof *writers);
  uint64_t *latencies = calloc((size_t)(threads * commits), sizeof *latencies);
  char *row = malloc((size_t)bytes);
  pthread_t *running = calloc((size_t)threads, sizeof *running);
  if (!writers || !latencies || !row || !running) fail("memory", 0);
  /* Touched now, so that the first use of a page of it is not in a commit's time. */
  memset(latencies, 1, (size_t)(threads * commits) * sizeof *latencies);
  for (long i = 0; i < bytes; i++) row[i] = (char)('0' + i % 10);
  for (long i = 0; i < threads; i++) {
    Writer *w = writers + i;
    if (sqlite3_open_v2(uri, &w->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX, 0) != SQLITE_OK) fail(uri, w->db);
    sqlite3_busy_timeout(w->db, 60000);
    execute(w->db, "PRAGMA journal_mode=wal; PRAGMA synchronous=normal; CREATE TABLE IF NOT EXISTS t(a INTEGER PRIMARY KEY, b)");
    if (sqlite3_prepare_v2(w->db, "INSERT INTO t(b) VALUES(?1)", -1, &w->insert, 0) != SQLITE_OK) fail("INSERT", w->db);
    sqlite3_bind_text(w->insert, 1, row, (int)bytes, SQLITE_STATIC);
    w->commits = commits;
    w->pause_ns = 1000 * (uint64_t)atol(argument(argc, argv, "pause_us", "0"));
    w->sleep_us = (useconds_t)atol(argument(argc, argv, "sleep_us", "0"));
    w->latencies = latencies + i * commits;
    commit_rows(w, warm, 0);
    sqlite3_busy_timeout(w->db, busy_ms);
  }
  if (atoi(argument(argc, argv, "sync", "0"))) execute(writers[0].db, "PRAGMA replicated_sync");
  if (atoi(argument(argc, argv, "go", "0"))) {
    char line[16];
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 1;
  }

  struct rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  uint64_t begun = now_ns();
  if (threads == 1) {
    /* On the first thread: a program with one thread has one. */
    write_rows(writers);
  } else {
    for (long i = 0; i < threads; i++)
      if (pthread_create(running + i, 0, write_rows, writers + i)) fail("pthread_create", 0);
    for (long i = 0; i < threads; i++) pthread_join(running[i], 0);
  }
  uint64_t ended = now_ns();
  getrusage(RUSAGE_SELF, &after);
  long busy = 0;
  for (long i = 0; i < threads; i++) busy += writers[i].busy;
  double cpu = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) +
               1e-6 * (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec);
  if (file) {
    FILE *out = fopen(file, "wb");
    if (!out || fwrite(latencies, sizeof *latencies, (size_t)(threads * commits), out) != (size_t)(threads * commits) || fclose(out)) fail(file, 0);
  }
  printf("{\"begun_ns\": %llu, \"ended_ns\": %llu, \"commits\": %ld, \"busy\": %ld, \"rss_kib\": %ld, \"cpu_s\": %.3f}\n",
         (unsigned long long)begun, (unsigned long long)ended, threads * commits, busy, resident_kib(), cpu);
  /* The connections stay open: what a last close waits for is not part of this, and the process ends as one that is killed. */
  fflush(stdout);
  _exit(0);
}
