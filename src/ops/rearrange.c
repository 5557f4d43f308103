/*
 * Transposing and gathering: elements moved as they are, and their marks with them.
 */
#include <stdio.h>

#include "cpu/backend.h"
#include "ops/common.h"

/* dst is there for the elements of src in the shape rows x cols, apart from it. */
static int32_t check_dst(const int4mm_tensor *dst, const int4mm_tensor *src, int64_t rows, int64_t cols) {
  int32_t status = int4mm_check_rows("dst", dst);
  if (status) return status;
  int4mm_tensor expected = *src;
  expected.shape[0] = rows, expected.shape[1] = cols;
  if (dst->rank != src->rank || dst->dtype != src->dtype || dst->shape[0] != rows || dst->shape[1] != cols)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "dst is %s, expected %s", int4mm_describe(dst).s,
                       int4mm_describe(&expected).s);
  status = int4mm_check_same_device("dst", dst, "src", src);
  return status ? status : int4mm_check_apart("dst", dst, "src", src);
}

static bool is_empty(const int4mm_tensor *t) {
  return !t->shape[0] || !t->shape[1];
}

/* ---- transposing ---- */

static int32_t transpose(const int4mm_tensor *dst, const int4mm_tensor *src, void *stream) {
  int4mm_matrix to = int4mm_as_matrix(dst), from = int4mm_as_matrix(src);
  const int4mm_cuda_backend *cuda;
  if (is_empty(src)) return INT4MM_OK;
  if (src->device == INT4MM_CPU) {
    int4mm_cpu_transpose(&to, &from);
    return INT4MM_OK;
  }
  int32_t status = int4mm_open_cuda(&cuda, stream, (const int4mm_tensor *[]){dst, src}, 2);
  return status ? status : cuda->transpose(src->device, &to, &from, 0, stream);
}

int32_t int4mm_transpose(int4mm_tensor *dst, const int4mm_tensor *src, void *stream) {
  int32_t status = int4mm_check_rows("src", src);
  if (!status && src->rank != 2)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "src is %s, expected a matrix", int4mm_describe(src).s);
  if (!status) status = check_dst(dst, src, src->shape[1], src->shape[0]);
  if (!status) status = transpose(dst, src, stream);
  if (status) return status;
  int4mm_copy_mark(dst, src, src->packing == INT4MM_PACKED_DIM0);
  return INT4MM_OK;
}

/* ---- gathering ---- */

static int32_t check_indices(const int4mm_tensor *indices, const int4mm_tensor *src) {
  int32_t status = int4mm_check_rows("indices", indices);
  if (!status && (indices->rank != 1 || indices->dtype != INT4MM_INT32))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "indices is %s, expected a vector of int32", int4mm_describe(indices).s);
  return status ? status : int4mm_check_same_device("indices", indices, "src", src);
}

static int32_t check_gather(const int4mm_tensor *dst, const int4mm_tensor *src, const int4mm_tensor *indices,
                            int32_t dim) {
  int32_t status = int4mm_check_rows("src", src);
  if (!status) status = check_indices(indices, src);
  if (status) return status;
  if (dim < 0 || dim >= src->rank)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "dim is %d but src is %s", (int)dim, int4mm_describe(src).s);
  if (src->packing && src->packing - 1 == dim)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "src is %s of int4 packed along dim %d, along which only whole words could "
                       "be gathered: unpack it, or take its mark away",
                       int4mm_describe(src).s, (int)dim);
  int64_t n = indices->shape[0];
  status = check_dst(dst, src, dim ? src->shape[0] : n, dim ? n : src->shape[1]);
  return status ? status : int4mm_check_apart("dst", dst, "indices", indices);
}

/* On the CPU: ERR_VALUE for the first index outside src. */
static int32_t check_inside(const int4mm_tensor *indices, int64_t extent) {
  const int32_t *values = indices->data;
  char expected[80];
  int64_t i = 0, n = indices->shape[0];
  while (i < n && values[i] >= 0 && values[i] < extent) i++;
  if (i == n) return INT4MM_OK;
  snprintf(expected, sizeof expected, "src has %lld, counted from 0", (long long)extent);
  return int4mm_fail_value("indices", indices, i, expected, NULL);
}

/* What an index outside src gives on a GPU. */
static uint32_t outside(int32_t dtype) {
  if (int4mm_is_integer_dtype(dtype)) return UINT32_MAX;
  return dtype == INT4MM_FLOAT32 ? 0x7fffffff : 0x7fff7fff;
}

int32_t int4mm_gather(int4mm_tensor *dst, const int4mm_tensor *src, const int4mm_tensor *indices, int32_t dim,
                      void *stream) {
  int32_t status = check_gather(dst, src, indices, dim);
  if (!status && src->device == INT4MM_CPU) status = check_inside(indices, src->shape[dim]);
  if (status) return status;
  int4mm_gather_job job = {.dst = int4mm_as_matrix(dst),
                           .src = int4mm_as_matrix(src),
                           .indices = indices->data,
                           .dim = src->rank == 1 ? 1 : dim, /* of a vector's one row */
                           .outside = outside(src->dtype)};
  if (!is_empty(dst) && src->device == INT4MM_CPU) {
    int4mm_cpu_gather(&job);
  } else if (!is_empty(dst)) {
    const int4mm_cuda_backend *cuda;
    status = int4mm_open_cuda(&cuda, stream, (const int4mm_tensor *[]){dst, src, indices}, 3);
    if (!status) status = cuda->gather(src->device, &job, stream);
  }
  if (status) return status;
  int4mm_copy_mark(dst, src, src->packing - 1);
  return INT4MM_OK;
}
