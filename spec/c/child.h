/*
 * Tests in a child process.
 */
#ifndef INT4MM_SPEC_CHILD_H
#define INT4MM_SPEC_CHILD_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

/* Whether the test is right in a child; a signal or 60 seconds without end is a failure. */
static inline bool in_child(bool (*test)(void)) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(test() ? 0 : 1);
  }
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#endif
