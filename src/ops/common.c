/*
 * Checks and helpers that the operations share.
 */
#include <math.h>
#include <stdio.h>

#include "cpu/backend.h"
#include "ops/common.h"
#include "ops/copy.h"

/* ---- checks ---- */

int32_t int4mm_check_matrix(const char *name, const int4mm_tensor *t, bool (*dtype_ok)(int32_t), const char *expected) {
  int32_t status = int4mm_check_rows(name, t);
  if (!status && (t->rank != 2 || !dtype_ok(t->dtype)))
    status =
        int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected a matrix of %s", name, int4mm_describe(t).s, expected);
  return status;
}

/* What makes words of something else. */
static const char *make_words(const int4mm_tensor *t) {
  if (t->rank != 2 || t->dtype == INT4MM_INT32) return "";
  return t->dtype == INT4MM_INT8 ? ": pack it first" : ": quantize it first";
}

int32_t int4mm_check_words(const char *name, const int4mm_tensor *t) {
  int32_t status = int4mm_check_tensor(name, t);
  if (!status && (t->rank != 2 || t->dtype != INT4MM_INT32))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected a matrix of int32, eight int4 to a word%s", name,
                         int4mm_describe(t).s, make_words(t));
  return status;
}

int32_t int4mm_check_range(const char *name, int32_t value, int32_t low, int32_t high, const char *meaning) {
  if (value >= low && value <= high) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %d, expected %s", name, (int)value, meaning);
}

int32_t int4mm_check_vector(const char *name, const int4mm_tensor *t, int64_t length, const char *what) {
  int32_t status = int4mm_check_rows(name, t);
  if (!status && (t->rank != 1 || t->dtype != INT4MM_FLOAT32 || t->shape[0] != length))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected [%lld] float32: one %s", name, int4mm_describe(t).s,
                         (long long)length, what);
  return status;
}

int32_t int4mm_check_floats(const char *name, const int4mm_tensor *t, int64_t rows, int64_t cols) {
  int32_t status = int4mm_check_rows(name, t);
  if (!status && (t->rank != 2 || t->shape[0] != rows || t->shape[1] != cols || !int4mm_is_out_dtype(t->dtype)))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected [%lld, %lld] float16, bfloat16 or float32", name,
                         int4mm_describe(t).s, (long long)rows, (long long)cols);
  return status;
}

int32_t int4mm_check_out(const int4mm_tensor *out, int32_t out_dtype, int64_t rows, int64_t cols) {
  if (!out) return int4mm_fail(INT4MM_ERR_ARGUMENT, "out is NULL: give a tensor, or a released one to be allocated");
  if (out->rank) return int4mm_check_floats("out", out, rows, cols);
  if (int4mm_is_out_dtype(out_dtype)) return INT4MM_OK;
  if (!int4mm_dtype_size(out_dtype))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "out_dtype is %d, which is not an int4mm_dtype", (int)out_dtype);
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "out_dtype is %s, expected float16, bfloat16 or float32",
                     int4mm_dtype_name(out_dtype));
}

int32_t int4mm_check_apart_or_same(const char *name_out, const int4mm_tensor *out, const char *name,
                                   const int4mm_tensor *t) {
  bool same = out->data == t->data && out->dtype == t->dtype && out->rank == t->rank && out->shape[0] == t->shape[0] &&
              out->shape[1] == t->shape[1] && (out->stride == t->stride || out->shape[0] <= 1);
  return same ? INT4MM_OK : int4mm_check_apart(name_out, out, name, t);
}

int32_t int4mm_check_block(const char *name, int32_t block, const char *src_name, const int4mm_tensor *src,
                           int32_t dim) {
  if (block < 4 || block > 1024 || (block & (block - 1)))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %d, expected a power of two from 4 to 1024", name, (int)block);
  if (src->shape[dim] % block == 0) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %d, which does not divide the %lld values along dim %d of %s", name,
                     (int)block, (long long)src->shape[dim], (int)dim, src_name);
}

int32_t int4mm_check_clip(float clip, int32_t clip_mse) {
  if (!(clip >= 0 && clip <= 1))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "clip is %g, expected a number above 0 and up to 1", (double)clip);
  if (clip_mse && clip != 0)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "clip is %g beside clip_mse, which finds the ratio itself: leave it 0",
                       (double)clip);
  return int4mm_check_range("clip_mse", clip_mse, 0, 1, "0 or 1");
}

static bool is_word(int32_t dtype) {
  return dtype == INT4MM_INT32;
}

int32_t int4mm_check_packed_pair(const char *name, const int4mm_tensor *plain, bool (*dtype_ok)(int32_t),
                                 const char *expected, const int4mm_tensor *packed, int32_t dim, int32_t encoding) {
  int32_t status = int4mm_check_matrix(name, plain, dtype_ok, expected);
  if (!status) status = int4mm_check_matrix("packed", packed, is_word, "int32");
  if (!status && dim != 0 && dim != 1)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "dim is %d: a matrix has dimensions 0 and 1", (int)dim);
  if (!status) status = int4mm_check_encoding("encoding", encoding);
  if (status) return status;
  int64_t expect[2] = {plain->shape[0], plain->shape[1]};
  expect[dim] = expect[dim] / 8 + (expect[dim] % 8 != 0);
  if (packed->shape[0] != expect[0] || packed->shape[1] != expect[1])
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "packed is %s but %s is %s: packed along dim %d that is [%lld, %lld]",
                       int4mm_describe(packed).s, name, int4mm_describe(plain).s, (int)dim, (long long)expect[0],
                       (long long)expect[1]);
  status = int4mm_check_same_device("packed", packed, name, plain);
  return status ? status : int4mm_check_apart("packed", packed, name, plain);
}

int32_t int4mm_check_read_mark(const char *name, const int4mm_tensor *plain, const int4mm_tensor *packed, int32_t dim,
                               int32_t encoding) {
  if (!packed->packing) return INT4MM_OK;
  if (packed->packing != dim + 1)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "packed was packed along dim %d, expected along dim %d as dim says",
                       (int)packed->packing - 1, (int)dim);
  if (packed->encoding != encoding)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "encoding is %s but packed was packed in %s",
                       int4mm_encoding_name(encoding), int4mm_encoding_name(packed->encoding));
  if (!packed->packed_k || plain->shape[dim] == packed->packed_k) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s but packed holds %lld values along dim %d", name,
                     int4mm_describe(plain).s, (long long)packed->packed_k, (int)dim);
}

int32_t int4mm_check_packed_with(const char *name, const int4mm_tensor *words, const char *zeros_name, bool zeros,
                                 const char *factors_name, bool factors) {
  if (!words->packing) return INT4MM_OK;
  bool without_zeros = words->packed_with == INT4MM_WITH_ZEROS && !zeros;
  bool without_factors = words->packed_with == INT4MM_WITH_FACTORS && !factors;
  if (!without_zeros && !without_factors) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s was quantised with %s: give them as %s", name,
                     without_zeros ? "zero points" : "integer group scales", without_zeros ? zeros_name : factors_name);
}

/* ---- options that a mark may give ---- */

int32_t int4mm_take_encoding(const char *option, int32_t *encoding, const char *name, const int4mm_tensor *words) {
  if (!words->packing) return INT4MM_OK;
  if (*encoding && *encoding != words->encoding)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s but %s was packed in %s: leave %s out", option,
                       int4mm_encoding_name(*encoding), name, int4mm_encoding_name(words->encoding), option);
  *encoding = words->encoding;
  return INT4MM_OK;
}

int32_t int4mm_take_layout_b(int32_t *layout_b, const int4mm_tensor *b_packed) {
  if (!b_packed->packing) return INT4MM_OK;
  if (*layout_b == INT4MM_B_NK && b_packed->packing == INT4MM_PACKED_DIM0)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "layout_b is nk but b_packed was packed along dim 0, which is kn: leave "
                                            "layout_b out");
  *layout_b = b_packed->packing == INT4MM_PACKED_DIM1 ? INT4MM_B_NK : INT4MM_B_KN;
  return INT4MM_OK;
}

/* ---- jobs and backends ---- */

int4mm_pack_job int4mm_make_pack_job(const int4mm_tensor *packed, const int4mm_tensor *plain,
                                     const int4mm_tensor *scales, int32_t dim, int32_t encoding, bool check) {
  return (int4mm_pack_job){.packed = int4mm_as_matrix(packed),
                           .plain = int4mm_as_matrix(plain),
                           .scales = scales ? scales->data : NULL,
                           .dim = dim,
                           .xor_mask = int4mm_xor_mask_of(encoding),
                           .check = check};
}

int32_t int4mm_open_cuda(const int4mm_cuda_backend **cuda, void *stream, const int4mm_tensor *const *tensors,
                         int count) {
  *cuda = int4mm_cuda();
  return *cuda ? int4mm_use_on_stream(*cuda, tensors[0]->device, stream, tensors, count, NULL) : INT4MM_ERR_UNAVAILABLE;
}

/* ---- bad values ---- */

static int4mm_text describe_position(const int4mm_tensor *t, int64_t index) {
  int4mm_text text;
  if (t->rank == 1)
    snprintf(text.s, sizeof text.s, "index %lld (counted from 0)", (long long)index);
  else
    snprintf(text.s, sizeof text.s, "row %lld, column %lld (counted from 0)", (long long)(index / t->shape[1]),
             (long long)(index % t->shape[1]));
  return text;
}

int32_t int4mm_fail_value(const char *name, const int4mm_tensor *t, int64_t bad, const char *expected, void *stream) {
  int64_t row = bad / t->shape[1], col = bad % t->shape[1];
  int32_t word = 0;
  int4mm_tensor element = *t, host = {0};
  element.data = (char *)t->data + (size_t)(row * t->stride + col) * int4mm_dtype_size(t->dtype);
  element.shape[0] = element.shape[1] = 1;
  int32_t status = int4mm_tensor_wrap(&host, &word, 2, 1, 1, 1, t->dtype, INT4MM_CPU);
  if (!status) status = int4mm_copy_checked(&host, &element, stream);
  if (status) return status;
  int4mm_text position = describe_position(t, bad);
  if (int4mm_is_integer_dtype(t->dtype))
    return int4mm_fail(INT4MM_ERR_VALUE, "%s holds %d at %s: %s", name,
                       t->dtype == INT4MM_INT8 ? (int)*(int8_t *)&word : (int)word, position.s, expected);
  float value = 0;
  int4mm_matrix from = int4mm_as_matrix(&host), to = {&value, 1, 1, 1, INT4MM_FLOAT32};
  int4mm_cpu_copy(&to, &from);
  return int4mm_fail(INT4MM_ERR_VALUE, "%s holds %s at %s: %s", name,
                     isnan(value) ? "NaN" : (value > 0 ? "+Inf" : "-Inf"), position.s, expected);
}
