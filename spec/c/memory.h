/*
 * Memory of the C tests: there, or the test ends.
 */
#ifndef INT4MM_SPEC_MEMORY_H
#define INT4MM_SPEC_MEMORY_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static void *allocate(int64_t bytes) {
  void *p = malloc((size_t)(bytes > 0 ? bytes : 1));
  if (!p) {
    fprintf(stderr, "no memory for %" PRId64 " bytes\n", bytes);
    exit(2);
  }
  return p;
}

#endif
