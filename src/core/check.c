/*
 * Tensors in words, and the checks that every call shares.
 */
#include <stdio.h>

#include "core/check.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/tensor.h"

/* ---- words ---- */

int4mm_text int4mm_describe(const int4mm_tensor *t) {
  int4mm_text text;
  const char *dtype = t->layout == INT4MM_PANELS ? "prepacked" : int4mm_dtype_name(t->dtype);
  if (t->rank == 1)
    snprintf(text.s, sizeof text.s, "[%lld] %s", (long long)t->shape[0], dtype);
  else
    snprintf(text.s, sizeof text.s, "[%lld, %lld] %s", (long long)t->shape[0], (long long)t->shape[1], dtype);
  return text;
}

int4mm_text int4mm_device_name(int32_t device) {
  int4mm_text text;
  if (device == INT4MM_CPU)
    snprintf(text.s, sizeof text.s, "cpu");
  else
    snprintf(text.s, sizeof text.s, "cuda:%d", (int)device);
  return text;
}

const char *int4mm_encoding_name(int32_t encoding) {
  return encoding == INT4MM_OFFSET ? "offset" : "twos_complement";
}

/* ---- checks ---- */

int32_t int4mm_check_args(const int64_t reserved[4]) {
  if (!reserved) return int4mm_fail(INT4MM_ERR_ARGUMENT, "args is NULL");
  for (int i = 0; i < 4; i++)
    if (reserved[i])
      return int4mm_fail(INT4MM_ERR_ARGUMENT,
                         "reserved[%d] is %lld, expected 0: zero the arguments before you fill them in", i,
                         (long long)reserved[i]);
  return INT4MM_OK;
}

int32_t int4mm_check_device(int32_t device) {
  if (device >= INT4MM_CPU && device < INT4MM_MAX_DEVICES) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "device is %d: -1 is the CPU, CUDA devices are 0 to %d", (int)device,
                     INT4MM_MAX_DEVICES - 1);
}

int32_t int4mm_check_shape(int32_t rank, int64_t rows, int64_t cols, int64_t stride, int32_t dtype) {
  size_t size = int4mm_dtype_size(dtype);
  int64_t elements, bytes;
  if (rank != 1 && rank != 2)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "rank is %d: a tensor is a vector (1) or a matrix (2)", (int)rank);
  if (!size) return int4mm_fail(INT4MM_ERR_ARGUMENT, "dtype is %d, which is not an int4mm_dtype", (int)dtype);
  if (rows < 0 || cols < 0)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "shape is [%lld, %lld]: sizes cannot be negative", (long long)rows,
                       (long long)cols);
  if (rank == 1 && (cols != 1 || stride != 1))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "a vector has 1 column and stride 1, not %lld and %lld", (long long)cols,
                       (long long)stride);
  if (stride < cols)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "stride is %lld, less than the %lld columns of a row", (long long)stride,
                       (long long)cols);
  if (__builtin_mul_overflow(rows, stride, &elements) || __builtin_mul_overflow(elements, (int64_t)size, &bytes))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "[%lld, %lld] %s with stride %lld is larger than any memory",
                       (long long)rows, (long long)cols, int4mm_dtype_name(dtype), (long long)stride);
  return INT4MM_OK;
}

/* Rows, or what int4mm_prepack makes. */
static int32_t check_layout(const int4mm_tensor *t) {
  if (t->layout == INT4MM_ROWS) return INT4MM_OK;
  if (t->layout != INT4MM_PANELS)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "layout is %d: rows are %d, a prepacked weight is %d", (int)t->layout,
                       INT4MM_ROWS, INT4MM_PANELS);
  if (t->rank == 2 && t->dtype == INT4MM_INT32 && t->device == INT4MM_CPU && t->stride == t->shape[1]) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "layout is that of a prepacked weight, but only int4mm_prepack makes those");
}

int32_t int4mm_check_mark(const int4mm_tensor *t, int32_t packing, int32_t encoding, int64_t k) {
  if (packing == INT4MM_UNMARKED) return INT4MM_OK;
  if (packing != INT4MM_PACKED_DIM0 && packing != INT4MM_PACKED_DIM1)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "packing is %d: unmarked is %d, packed along dim 0 %d, along dim 1 %d",
                       (int)packing, INT4MM_UNMARKED, INT4MM_PACKED_DIM0, INT4MM_PACKED_DIM1);
  if (t->rank != 2 || t->dtype != INT4MM_INT32)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s cannot be marked as packed: only a matrix of int32 words can",
                       int4mm_describe(t).s);
  int64_t words = t->shape[packing - 1];
  if (k && (k < 0 || k / 8 + (k % 8 != 0) != words))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "packed_k is %lld, which the %lld words along dim %d do not hold",
                       (long long)k, (long long)words, (int)packing - 1);
  return int4mm_check_encoding("encoding", encoding);
}

int32_t int4mm_check_vacant(const char *name, const int4mm_tensor *t) {
  if (!t) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", name);
  if (t->rank) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s already holds a tensor: release it first", name);
  return INT4MM_OK;
}

int32_t int4mm_check_tensor(const char *name, const int4mm_tensor *t) {
  if (!t) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", name);
  if (t->rank == 0) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s was freed", name);
  int32_t status = int4mm_check_shape(t->rank, t->shape[0], t->shape[1], t->stride, t->dtype);
  if (!status) status = int4mm_check_device(t->device);
  if (!status) status = check_layout(t);
  if (!status) status = int4mm_check_mark(t, t->packing, t->encoding, t->packed_k);
  if (status) return int4mm_fail(status, "%s is not a tensor: %s", name, int4mm_last_error());
  if (!t->data && t->shape[0] && t->shape[1])
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s but its data is NULL", name, int4mm_describe(t).s);
  if ((uintptr_t)t->data % int4mm_dtype_size(t->dtype))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s but its data is at %p, which is not aligned for that", name,
                       int4mm_describe(t).s, t->data);
  return INT4MM_OK;
}

int32_t int4mm_check_rows(const char *name, const int4mm_tensor *t) {
  int32_t status = int4mm_check_tensor(name, t);
  if (!status && t->layout != INT4MM_ROWS)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is prepacked: it has no elements to read, it only serves as b_packed",
                         name);
  return status;
}

int32_t int4mm_check_same_device(const char *name_a, const int4mm_tensor *a, const char *name_b,
                                 const int4mm_tensor *b) {
  if (a->device == b->device) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is on %s but %s is on %s", name_a, int4mm_device_name(a->device).s,
                     name_b, int4mm_device_name(b->device).s);
}

int32_t int4mm_check_encoding(const char *name, int32_t encoding) {
  if (encoding == INT4MM_TWOS_COMPLEMENT || encoding == INT4MM_OFFSET) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %d: two's complement is %d, offset is %d", name, (int)encoding,
                     INT4MM_TWOS_COMPLEMENT, INT4MM_OFFSET);
}

/* Whether two tensors share a byte. Rows of equal pitch are compared column by column, so that two column ranges of one
 * matrix count as apart; otherwise the whole spans are compared. */
static bool overlap(const int4mm_tensor *s, const int4mm_tensor *t) {
  int4mm_matrix a = int4mm_as_matrix(s), b = int4mm_as_matrix(t);
  if (s->device != t->device || !a.rows || !a.cols || !b.rows || !b.cols) return false;
  uint64_t size_a = int4mm_dtype_size(a.dtype), size_b = int4mm_dtype_size(b.dtype);
  uint64_t pitch_a = (uint64_t)a.stride * size_a, pitch_b = (uint64_t)b.stride * size_b;
  if (a.rows == 1) pitch_a = pitch_b; /* a single row has any pitch */
  if (b.rows == 1) pitch_b = pitch_a;
  uint64_t width_a = (uint64_t)a.cols * size_a, width_b = (uint64_t)b.cols * size_b;
  uint64_t first_a = (uintptr_t)a.data, end_a = first_a + (uint64_t)(a.rows - 1) * pitch_a + width_a;
  uint64_t first_b = (uintptr_t)b.data, end_b = first_b + (uint64_t)(b.rows - 1) * pitch_b + width_b;
  if (end_a <= first_b || end_b <= first_a) return false;
  if (pitch_a != pitch_b || (a.rows == 1 && b.rows == 1)) return true;
  uint64_t shift = first_b >= first_a ? (first_b - first_a) % pitch_a : (pitch_a - (first_a - first_b) % pitch_a);
  return shift % pitch_a < width_a || shift + width_b > pitch_a;
}

int32_t int4mm_check_apart(const char *name_out, const int4mm_tensor *out, const char *name, const int4mm_tensor *t) {
  if (!overlap(out, t)) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s overlaps %s in memory", name_out, name);
}
