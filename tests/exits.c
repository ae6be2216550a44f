/* A host that ends, or is disturbed, in the way that its first argument tells. See tests/exits.rs.
 *
 *   exits HOW EXTENSION URI ROWS
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static const char *extension;
static int rows;
static atomic_int committed, no_threads, signals;

static void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  _exit(2);
}

/* In place of the library's, since the program comes first. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
  int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
  if (atomic_load(&no_threads)) return EAGAIN;
  *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
  return real(thread, attributes, start, argument);
}

static void load(void) {
  sqlite3 *loader;
  char *error = 0;
  if (sqlite3_open(":memory:", &loader)) fail("open", sqlite3_errmsg(loader));
  sqlite3_enable_load_extension(loader, 1);
  if (sqlite3_load_extension(loader, extension, 0, &error)) fail("load", error);
  sqlite3_close(loader);
}

static void run(sqlite3 *db, const char *sql) {
  char *error = 0;
  if (sqlite3_exec(db, sql, 0, 0, &error)) fail(sql, error);
}

static sqlite3 *open_database(const char *uri) {
  sqlite3 *db;
  if (sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, 0)) fail("open", sqlite3_errmsg(db));
  sqlite3_busy_timeout(db, 60000);
  run(db, "PRAGMA journal_mode=WAL");
  run(db, "CREATE TABLE IF NOT EXISTS t(x)");
  return db;
}

static void commit(sqlite3 *db, int n) {
  for (int i = 0; i < n; i++) {
    run(db, "INSERT INTO t VALUES (randomblob(300))");
    atomic_fetch_add(&committed, 1);
  }
}

static void *commit_forever(void *db) {
  for (;;) commit(db, 1);
  return 0;
}

static void count_signal(int number) {
  (void)number;
  atomic_fetch_add(&signals, 1);
}

/* The signals come to this thread as well as to the process, and interrupt what they can. */
static void *send_signals(void *target) {
  const struct timespec pause = {0, 100000};
  for (;;) {
    pthread_kill(*(pthread_t *)target, SIGCHLD);
    kill(getpid(), SIGALRM);
    nanosleep(&pause, 0);
  }
  return 0;
}

static void storm(void) {
  static pthread_t self, sender;
  const int numbers[] = {SIGALRM, SIGCHLD, SIGPROF, SIGUSR1};
  struct sigaction action = {.sa_handler = count_signal};
  const struct itimerval often = {{0, 500}, {0, 500}};
  for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) sigaction(numbers[i], &action, 0);
  self = pthread_self();
  if (setitimer(ITIMER_PROF, &often, 0) || setitimer(ITIMER_REAL, &often, 0)) fail("setitimer", strerror(errno));
  if (pthread_create(&sender, 0, send_signals, &self)) fail("pthread_create", "");
}

static void calm(void) {
  const int numbers[] = {SIGALRM, SIGCHLD, SIGPROF, SIGUSR1};
  for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) signal(numbers[i], SIG_IGN);
}

#ifdef PLUGIN
/* As a library that a program loads and unloads: SQLite comes and goes with it. */
int plugin(const char *how, const char *its_extension, const char *uri, int its_rows) {
  extension = its_extension;
  load();
  sqlite3 *db = open_database(uri);
  commit(db, its_rows);
  if (!strcmp(how, "closed")) {
    run(db, "PRAGMA replicated_sync='60s'");
    return sqlite3_close(db);
  }
  return 0;
}
#else
int main(int argc, char **argv) {
  sqlite3 *db;
  pthread_t writer;
  if (argc < 5) return 2;
  const char *how = argv[1], *uri = argv[3];
  extension = argv[2];
  rows = atoi(argv[4]);
  load();
  if (!strcmp(how, "close") || !strcmp(how, "exit") || !strcmp(how, "_exit") || !strcmp(how, "abort")) {
    db = open_database(uri);
    commit(db, rows);
    if (!strcmp(how, "close")) run(db, "PRAGMA replicated_sync='60s'");
    if (!strcmp(how, "close") && sqlite3_close(db)) return 3;
    if (!strcmp(how, "abort")) abort();
    if (!strcmp(how, "_exit")) _exit(0);
    exit(0);
  } else if (!strcmp(how, "exit-while-committing") || !strcmp(how, "_exit-while-committing")) {
    db = open_database(uri);
    if (pthread_create(&writer, 0, commit_forever, db)) return 3;
    while (atomic_load(&committed) < rows) usleep(100);
    printf("%d\n", atomic_load(&committed));
    fflush(stdout);
    if (*how == '_') _exit(0);
    exit(0);
  } else if (!strcmp(how, "storm")) {
    storm();
    db = open_database(uri);
    commit(db, rows);
    run(db, "PRAGMA replicated_sync='60s'");
    if (sqlite3_close(db)) return 3;
    printf("%d\n", atomic_load(&signals));
    fflush(stdout);
    calm();
    _exit(0);
  } else if (!strcmp(how, "no-threads")) {
    atomic_store(&no_threads, 1);
    if (!sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, 0)
        && !sqlite3_exec(db, "CREATE TABLE t(x)", 0, 0, 0)) return 3;
    sqlite3_close(db);
    /* What is not replicated is not concerned. */
    if (sqlite3_open(":memory:", &db)) return 4;
    run(db, "CREATE TABLE t(x)");
    sqlite3_close(db);
    atomic_store(&no_threads, 0);
    db = open_database(uri);
    /* Nor does it need another one. */
    atomic_store(&no_threads, 1);
    commit(db, rows);
    run(db, "PRAGMA replicated_sync='60s'");
    return sqlite3_close(db);
  }
  return 2;
}
#endif
