/*
 * What the tests of a device share: numbers drawn from a seed, tensors of varying strides, comparison by bits.
 */
#ifndef INT4MM_SPEC_DEVICE_H
#define INT4MM_SPEC_DEVICE_H

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "core/error.h"
#include "core/numeric.h"
#include "core/tensor.h"
#include "cpu/backend.h"
#include "cuda/table.h"

static uint64_t seed = 1, drawn;

/* A number in 0 .. n-1. */
static inline int64_t draw(int64_t n) {
  uint32_t r[4];
  int4mm_philox(seed, drawn++, 99, r);
  return (int64_t)(r[0] % (uint64_t)n);
}

enum { VECTOR = -1 };

/* [rows, cols], or with VECTOR for cols [rows], on a device; sometimes columns of a wider tensor, so that strides and
 * alignment vary. */
static inline int4mm_tensor make(int64_t rows, int64_t cols, int32_t dtype, int32_t device) {
  int4mm_tensor wide = {0}, t = {0};
  if (cols == VECTOR) {
    OK(int4mm_tensor_alloc(&t, 1, rows, 1, dtype, device));
    return t;
  }
  int64_t left = draw(3) ? 0 : draw(9), right = draw(3) ? 0 : draw(9);
  OK(int4mm_tensor_alloc(&wide, 2, rows, left + cols + right, dtype, device));
  OK(int4mm_tensor_fill_bytes(&wide, 0xa5, NULL));
  OK(int4mm_tensor_narrow(&t, &wide, 1, left, cols));
  int4mm_tensor_release(&wide);
  return t;
}

/* A copy elsewhere, with a stride of its own. */
static inline int4mm_tensor moved(const int4mm_tensor *t, int32_t device) {
  int4mm_tensor copy = make(t->shape[0], t->rank == 1 ? VECTOR : t->shape[1], t->dtype, device);
  OK(int4mm_tensor_copy(&copy, t, NULL));
  return copy;
}

static inline bool same(const int4mm_tensor *expected, const int4mm_tensor *got) {
  int4mm_tensor x = moved(expected, INT4MM_CPU), y = moved(got, INT4MM_CPU);
  int4mm_matrix a = int4mm_as_matrix(&x), b = int4mm_as_matrix(&y);
  size_t size = int4mm_dtype_size(a.dtype);
  bool equal = a.rows == b.rows && a.cols == b.cols && a.dtype == b.dtype;
  for (int64_t r = 0; equal && a.cols && r < a.rows; r++) /* an empty one may have no memory at all */
    equal = !memcmp((char *)a.data + (size_t)(r * a.stride) * size, (char *)b.data + (size_t)(r * b.stride) * size,
                    (size_t)a.cols * size);
  int4mm_tensor_release(&x);
  int4mm_tensor_release(&y);
  return equal;
}

/* Opens the device that INT4MM_CUDA_LIBRARY names, or by default the one that fake_cuda.so beside `program` plays. */
static inline bool open_device(const char *program) {
  char path[4096];
  const char *slash = strrchr(program, '/');
  snprintf(path, sizeof path, "%.*sfake_cuda.so", slash ? (int)(slash - program) + 1 : 0, program);
  if (setenv("INT4MM_CUDA_LIBRARY", path, 0) || setenv("INT4MM_FAKE_CUDA", "host", 0)) return false;
  OK(int4mm_cuda_available());
  return !failures;
}

#endif
