/*
 * Checks for the C tests: each failure is a line, main returns report().
 */
#ifndef INT4MM_SPEC_CHECK_H
#define INT4MM_SPEC_CHECK_H

#include <stdio.h>
#include <string.h>

#include "int4mm.h"

static int checks, failures;

#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    checks++;                                                                                                          \
    if (!(condition)) {                                                                                                \
      failures++;                                                                                                      \
      printf("%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, int4mm_last_error());                     \
    }                                                                                                                  \
  } while (0)

#define OK(call) CHECK((call) == INT4MM_OK)

/* A call that has to fail with this status and a sentence that holds these words. */
#define FAILS(call, status, words)                                                                                     \
  do {                                                                                                                 \
    int32_t got_ = (call);                                                                                             \
    CHECK(got_ == (status));                                                                                           \
    CHECK(strstr(int4mm_last_error(), words) != NULL);                                                                 \
  } while (0)

/* int4mm_dequantize of rows or columns that are one group each. */
static inline int32_t dequantize(const int4mm_tensor *dst, const int4mm_tensor *packed, const int4mm_tensor *scales,
                                 int32_t dim, int32_t encoding) {
  return int4mm_dequantize(
      &(int4mm_dequantize_args){.dst = dst, .packed = packed, .scales = scales, .dim = dim, .encoding = encoding});
}

static inline int report(void) {
  printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}

#endif
