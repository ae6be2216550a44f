/* Runs a command and prints what it took, as one line of JSON. A process's peak of resident memory, as wait4 tells it, is at least what its parent had before
** exec: a large parent, such as Python, would hide it.
*/
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
  struct rusage usage;
  int status;
  if (argc < 2) return 2;
  double begun = now();
  pid_t child = fork();
  if (child < 0) return 1;
  if (child == 0) {
    /* What it says belongs to the log, not to the figures. */
    dup2(2, 1);
    execv(argv[1], argv + 1);
    perror(argv[1]);
    _exit(127);
  }
  if (wait4(child, &status, 0, &usage) < 0) return 1;
  printf("{\"seconds\": %.6f, \"peak_kib\": %ld, \"cpu_s\": %.6f, \"status\": %d}\n", now() - begun, usage.ru_maxrss,
         (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + 1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec), status);
  return 0;
}
