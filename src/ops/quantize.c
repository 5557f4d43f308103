/*
 * Rotation, quantising to int4 or int8 by rows or columns, and the way back.
 */
#include "cpu/backend.h"
#include "ops/common.h"

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

static const char floats[] = "float32, float16 or bfloat16";

static int32_t check_same_shape(const char *name, const int4mm_tensor *t, const char *like_name,
                                const int4mm_tensor *like) {
  if (t->shape[0] == like->shape[0] && t->shape[1] == like->shape[1]) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s but %s is %s: the shapes differ", name, int4mm_describe(t).s,
                     like_name, int4mm_describe(like).s);
}

/* Floats, and int4 words along dim or int8 of the same shape. */
static int32_t check_quantized(const char *name, const int4mm_tensor *plain, const int4mm_tensor *packed, int32_t dim,
                               int32_t encoding) {
  int32_t status = int4mm_check_tensor("packed", packed);
  if (status) return status;
  if (packed->dtype != INT4MM_INT8)
    return int4mm_check_packed_pair(name, plain, int4mm_is_out_dtype, floats, packed, dim, encoding);
  status = int4mm_check_matrix(name, plain, int4mm_is_out_dtype, floats);
  if (!status) status = int4mm_check_matrix("packed", packed, int4mm_is_integer_dtype, "int8");
  if (!status) status = int4mm_check_range("dim", dim, 0, 1, "0 or 1");
  if (!status) status = int4mm_check_encoding("encoding", encoding);
  if (!status) status = check_same_shape("packed", packed, name, plain);
  if (!status) status = int4mm_check_same_device("packed", packed, name, plain);
  return status ? status : int4mm_check_apart("packed", packed, name, plain);
}

/* ---- quantize ---- */

static int32_t check_quantize(const int4mm_quantize_args *a) {
  if (!a) return int4mm_fail(INT4MM_ERR_ARGUMENT, "args is NULL");
  int32_t status = check_quantized("src", a->src, a->packed, a->dim, a->encoding);
  if (!status) status = check_scales(a->scales, "src", a->src, a->dim);
  if (!status) status = int4mm_check_apart("scales", a->scales, "src", a->src);
  if (!status) status = int4mm_check_apart("scales", a->scales, "packed", a->packed);
  if (!status && a->rotate) status = int4mm_check_block("rotate", a->rotate, "src", a->src, a->dim);
  return status ? status : int4mm_check_clip(a->clip, a->clip_mse);
}

int32_t int4mm_quantize(const int4mm_quantize_args *args) {
  int64_t bad = 0;
  int32_t status = check_quantize(args);
  if (status) return status;
  const int4mm_tensor *src = args->src, *packed = args->packed, *scales = args->scales;
  bool check = args->check || src->device == INT4MM_CPU;
  int4mm_pack_job job = int4mm_make_pack_job(packed, src, scales, args->dim, args->encoding, check);
  job.rotate = args->rotate, job.clip = args->clip > 0 ? args->clip : 1, job.clip_mse = args->clip_mse != 0;
  if (src->device == INT4MM_CPU) {
    status = int4mm_cpu_quantize(&job, &bad);
  } else {
    const int4mm_cuda_backend *cuda;
    status = int4mm_open_cuda(&cuda, args->stream, (const int4mm_tensor *[]){packed, src, scales}, 3);
    if (!status) status = cuda->quantize(src->device, &job, &bad, args->stream);
  }
  if (!status && packed->dtype == INT4MM_INT32)
    int4mm_set_mark(args->packed, args->dim, args->encoding, src->shape[args->dim], args->rotate);
  if (status != INT4MM_ERR_VALUE) return status;
  return int4mm_fail_value("src", src, bad, "only finite numbers can be quantised", args->stream);
}

/* ---- rotate ---- */

int32_t int4mm_rotate(const int4mm_tensor *dst, const int4mm_tensor *src, int32_t dim, int32_t block, void *stream) {
  int32_t status = int4mm_check_matrix("src", src, int4mm_is_out_dtype, floats);
  if (!status) status = int4mm_check_matrix("dst", dst, int4mm_is_out_dtype, floats);
  if (!status) status = int4mm_check_range("dim", dim, 0, 1, "0 or 1");
  if (!status) status = check_same_shape("dst", dst, "src", src);
  if (!status) status = int4mm_check_same_device("dst", dst, "src", src);
  if (!status) status = int4mm_check_block("block", block, "src", src, dim);
  if (!status) status = int4mm_check_apart_or_same("dst", dst, "src", src);
  if (status) return status;
  int4mm_rotate_job job = {int4mm_as_matrix(dst), int4mm_as_matrix(src), dim, block};
  if (src->device == INT4MM_CPU) {
    int4mm_cpu_rotate(&job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  status = int4mm_open_cuda(&cuda, stream, (const int4mm_tensor *[]){dst, src}, 2);
  return status ? status : cuda->rotate(src->device, &job, stream);
}

/* ---- dequantize ---- */

int32_t int4mm_dequantize(const int4mm_dequantize_args *args) {
  if (!args) return int4mm_fail(INT4MM_ERR_ARGUMENT, "args is NULL");
  const int4mm_tensor *dst = args->dst, *packed = args->packed, *scales = args->scales;
  int32_t dim = args->dim, encoding = args->encoding;
  void *stream = args->stream;
  int32_t status = check_quantized("dst", dst, packed, dim, encoding);
  if (!status) status = check_scales(scales, "dst", dst, dim);
  if (!status) status = int4mm_check_apart("dst", dst, "scales", scales);
  if (!status) status = int4mm_check_read_mark("dst", dst, packed, dim, encoding);
  if (status) return status;
  int4mm_pack_job job = int4mm_make_pack_job(packed, dst, scales, dim, encoding, false);
  if (dst->device == INT4MM_CPU) {
    int4mm_cpu_dequantize(&job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  status = int4mm_open_cuda(&cuda, stream, (const int4mm_tensor *[]){dst, packed, scales}, 3);
  return status ? status : cuda->dequantize(dst->device, &job, stream);
}
