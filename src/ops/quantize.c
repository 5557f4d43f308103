/*
 * Quantising to int4 by rows or columns, and the way back.
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

int32_t int4mm_quantize(const int4mm_tensor *packed, const int4mm_tensor *scales, const int4mm_tensor *src, int32_t dim,
                        int32_t encoding, int32_t check, void *stream) {
  int64_t bad = 0;
  int32_t status =
      int4mm_check_packed_pair("src", src, int4mm_is_out_dtype, "float32, float16 or bfloat16", packed, dim, encoding);
  if (!status) status = check_scales(scales, "src", src, dim);
  if (!status) status = int4mm_check_apart("scales", scales, "src", src);
  if (!status) status = int4mm_check_apart("scales", scales, "packed", packed);
  if (status) return status;
  int4mm_pack_job job = int4mm_make_pack_job(packed, src, scales, dim, encoding, check || src->device == INT4MM_CPU);
  if (src->device == INT4MM_CPU) {
    status = int4mm_cpu_quantize(&job, &bad);
  } else {
    const int4mm_cuda_backend *cuda;
    status = int4mm_open_cuda(&cuda, stream, (const int4mm_tensor *[]){packed, src, scales}, 3);
    if (!status) status = cuda->quantize(src->device, &job, &bad, stream);
  }
  return status == INT4MM_ERR_VALUE ? int4mm_fail_value("src", src, bad, "only finite numbers can be quantised", stream)
                                    : status;
}

int32_t int4mm_dequantize(const int4mm_tensor *dst, const int4mm_tensor *packed, const int4mm_tensor *scales,
                          int32_t dim, int32_t encoding, void *stream) {
  int32_t status =
      int4mm_check_packed_pair("dst", dst, int4mm_is_out_dtype, "float32, float16 or bfloat16", packed, dim, encoding);
  if (!status) status = check_scales(scales, "dst", dst, dim);
  if (!status) status = int4mm_check_apart("dst", dst, "scales", scales);
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
