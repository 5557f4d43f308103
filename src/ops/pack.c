/*
 * Packing, quantising and test data: checks, then the backend of the tensors' device.
 */
#include <math.h>
#include <string.h>

#include "core/tensor.h"
#include "cpu/backend.h"
#include "dispatch/devices.h"
#include "ops/copy.h"

static bool is_integer(int32_t dtype) {
  return dtype == INT4MM_INT32 || dtype == INT4MM_INT8;
}

static int32_t check_matrix(const char *name, const int4mm_tensor *t, bool (*dtype_ok)(int32_t), const char *expected) {
  int32_t status = int4mm_check_rows(name, t);
  if (!status && (t->rank != 2 || !dtype_ok(t->dtype)))
    status =
        int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected a matrix of %s", name, int4mm_describe(t).s, expected);
  return status;
}

static bool is_word(int32_t dtype) {
  return dtype == INT4MM_INT32;
}

/* A packed matrix, its plain counterpart and the dimension that is eight times as long there. `output` is the one of
 * the two that is written. */
static int32_t check_pair(const char *name, const int4mm_tensor *plain, bool (*dtype_ok)(int32_t), const char *expected,
                          const int4mm_tensor *packed, int32_t dim, int32_t encoding) {
  int32_t status = check_matrix(name, plain, dtype_ok, expected);
  if (!status) status = check_matrix("packed", packed, is_word, "int32");
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

static int32_t check_scales(const int4mm_tensor *scales, const char *name, const int4mm_tensor *plain, int32_t dim) {
  int32_t status = int4mm_check_rows("scales", scales);
  int64_t expect;
  if (status) return status;
  expect = plain->shape[dim ? 0 : 1];
  if (scales->rank != 1 || scales->dtype != INT4MM_FLOAT32 || scales->shape[0] != expect)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "scales is %s, expected [%lld] float32: one per %s of %s",
                       int4mm_describe(scales).s, (long long)expect, dim ? "row" : "column", name);
  return int4mm_check_same_device("scales", scales, name, plain);
}

static int4mm_pack_job make_job(const int4mm_tensor *packed, const int4mm_tensor *plain, const int4mm_tensor *scales,
                                int32_t dim, int32_t encoding, bool check) {
  return (int4mm_pack_job){.packed = int4mm_as_matrix(packed),
                           .plain = int4mm_as_matrix(plain),
                           .scales = scales ? scales->data : NULL,
                           .dim = dim,
                           .xor_mask = encoding == INT4MM_OFFSET ? INT4MM_ENCODING_XOR : 0,
                           .check = check};
}

/* The table, with the tensors made ready for the stream. */
static int32_t open_cuda(const int4mm_cuda_backend **cuda, void *stream, const int4mm_tensor *const *tensors,
                         int count) {
  *cuda = int4mm_cuda();
  return *cuda ? int4mm_use_on_stream(*cuda, tensors[0]->device, stream, tensors, count, NULL) : INT4MM_ERR_UNAVAILABLE;
}

/* ---- the first bad value ---- */

/* The text for element `bad`, whose value is fetched for it. */
static int32_t bad_value(const char *name, const int4mm_tensor *t, int64_t bad, const char *expected, void *stream) {
  int64_t row = bad / t->shape[1], col = bad % t->shape[1];
  size_t size = int4mm_dtype_size(t->dtype);
  int32_t word = 0;
  int4mm_tensor element = *t, host = {0};
  element.data = (char *)t->data + (size_t)(row * t->stride + col) * size;
  element.shape[0] = element.shape[1] = 1;
  int32_t status = int4mm_tensor_wrap(&host, &word, 2, 1, 1, 1, t->dtype, INT4MM_CPU);
  if (!status) status = int4mm_copy_checked(&host, &element, stream);
  if (status) return status;
  if (is_integer(t->dtype))
    return int4mm_fail(INT4MM_ERR_VALUE, "%s holds %d at row %lld, column %lld (counted from 0): %s", name,
                       t->dtype == INT4MM_INT8 ? (int)*(int8_t *)&word : (int)word, (long long)row, (long long)col,
                       expected);
  float value = 0;
  int4mm_matrix from = int4mm_as_matrix(&host), to = {&value, 1, 1, 1, INT4MM_FLOAT32};
  int4mm_cpu_copy(&to, &from);
  return int4mm_fail(INT4MM_ERR_VALUE, "%s holds %s at row %lld, column %lld (counted from 0): %s", name,
                     isnan(value) ? "NaN" : (value > 0 ? "+Inf" : "-Inf"), (long long)row, (long long)col, expected);
}

/* ---- the operations ---- */

int32_t int4mm_pack(const int4mm_tensor *packed, const int4mm_tensor *src, int32_t dim, int32_t encoding,
                    void *stream) {
  int64_t bad = 0;
  int32_t status = check_pair("src", src, is_integer, "int8 or int32", packed, dim, encoding);
  if (status) return status;
  int4mm_pack_job job = make_job(packed, src, NULL, dim, encoding, true);
  if (src->device == INT4MM_CPU) {
    status = int4mm_cpu_pack(&job, &bad);
  } else {
    const int4mm_cuda_backend *cuda;
    status = open_cuda(&cuda, stream, (const int4mm_tensor *[]){packed, src}, 2);
    if (!status) status = cuda->pack(src->device, &job, &bad, stream);
  }
  return status == INT4MM_ERR_VALUE ? bad_value("src", src, bad, "int4 holds -8 to 7", stream) : status;
}

int32_t int4mm_unpack(const int4mm_tensor *dst, const int4mm_tensor *packed, int32_t dim, int32_t encoding,
                      void *stream) {
  int32_t status = check_pair("dst", dst, is_integer, "int8 or int32", packed, dim, encoding);
  if (status) return status;
  int4mm_pack_job job = make_job(packed, dst, NULL, dim, encoding, false);
  if (dst->device == INT4MM_CPU) {
    int4mm_cpu_unpack(&job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  status = open_cuda(&cuda, stream, (const int4mm_tensor *[]){dst, packed}, 2);
  return status ? status : cuda->unpack(dst->device, &job, stream);
}

int32_t int4mm_quantize(const int4mm_tensor *packed, const int4mm_tensor *scales, const int4mm_tensor *src, int32_t dim,
                        int32_t encoding, int32_t check, void *stream) {
  int64_t bad = 0;
  int32_t status = check_pair("src", src, int4mm_is_out_dtype, "float32, float16 or bfloat16", packed, dim, encoding);
  if (!status) status = check_scales(scales, "src", src, dim);
  if (!status) status = int4mm_check_apart("scales", scales, "src", src);
  if (!status) status = int4mm_check_apart("scales", scales, "packed", packed);
  if (status) return status;
  int4mm_pack_job job = make_job(packed, src, scales, dim, encoding, check || src->device == INT4MM_CPU);
  if (src->device == INT4MM_CPU) {
    status = int4mm_cpu_quantize(&job, &bad);
  } else {
    const int4mm_cuda_backend *cuda;
    status = open_cuda(&cuda, stream, (const int4mm_tensor *[]){packed, src, scales}, 3);
    if (!status) status = cuda->quantize(src->device, &job, &bad, stream);
  }
  return status == INT4MM_ERR_VALUE ? bad_value("src", src, bad, "only finite numbers can be quantised", stream)
                                    : status;
}

int32_t int4mm_dequantize(const int4mm_tensor *dst, const int4mm_tensor *packed, const int4mm_tensor *scales,
                          int32_t dim, int32_t encoding, void *stream) {
  int32_t status = check_pair("dst", dst, int4mm_is_out_dtype, "float32, float16 or bfloat16", packed, dim, encoding);
  if (!status) status = check_scales(scales, "dst", dst, dim);
  if (!status) status = int4mm_check_apart("dst", dst, "scales", scales);
  if (status) return status;
  int4mm_pack_job job = make_job(packed, dst, scales, dim, encoding, false);
  if (dst->device == INT4MM_CPU) {
    int4mm_cpu_dequantize(&job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  status = open_cuda(&cuda, stream, (const int4mm_tensor *[]){dst, packed, scales}, 3);
  return status ? status : cuda->dequantize(dst->device, &job, stream);
}

int32_t int4mm_random(const int4mm_tensor *t, uint64_t seed, uint32_t sequence, float low, float high, void *stream) {
  int32_t status = int4mm_check_rows("tensor", t);
  if (status) return status;
  if (t->dtype != INT4MM_INT32 && t->dtype != INT4MM_FLOAT32)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "tensor is %s, expected int32 or float32", int4mm_describe(t).s);
  if (t->dtype == INT4MM_FLOAT32 && !(isfinite(high - low) && low <= high))
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "low is %g and high %g, expected finite numbers in order, their difference finite", (double)low,
                       (double)high);
  int4mm_random_job job = {int4mm_as_matrix(t), seed, sequence, low, high};
  if (t->device == INT4MM_CPU) {
    int4mm_cpu_random(&job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  status = open_cuda(&cuda, stream, &t, 1);
  return status ? status : cuda->random(t->device, &job, stream);
}
