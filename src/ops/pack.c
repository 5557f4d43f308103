/*
 * Packing int4 values eight to a word, and the way back.
 */
#include "cpu/backend.h"
#include "ops/common.h"

/* Values, not words: a tensor that is packed already has a mark. */
static int32_t check_unpacked(const int4mm_tensor *src) {
  if (!src->packing) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "src is %s, packed already along dim %d: it is good as it is, or unpack it",
                     int4mm_describe(src).s, (int)src->packing - 1);
}

int32_t int4mm_pack(int4mm_tensor *packed, const int4mm_tensor *src, int32_t dim, int32_t encoding, void *stream) {
  int64_t bad = 0;
  int32_t status =
      int4mm_check_packed_pair("src", src, int4mm_is_integer_dtype, "int8 or int32", packed, dim, encoding);
  if (!status) status = check_unpacked(src);
  if (status) return status;
  int4mm_pack_job job = int4mm_make_pack_job(packed, src, NULL, dim, encoding, true);
  if (src->device == INT4MM_CPU) {
    status = int4mm_cpu_pack(&job, &bad);
  } else {
    const int4mm_cuda_backend *cuda;
    status = int4mm_open_cuda(&cuda, stream, (const int4mm_tensor *[]){packed, src}, 2);
    if (!status) status = cuda->pack(src->device, &job, &bad, stream);
  }
  if (!status) int4mm_set_mark(packed, dim, encoding, src->shape[dim], 0);
  return status == INT4MM_ERR_VALUE ? int4mm_fail_value("src", src, bad, "int4 holds -8 to 7", stream) : status;
}

static int32_t unpack(const int4mm_tensor *dst, const int4mm_tensor *packed, int32_t dim, int32_t encoding,
                      void *stream) {
  int4mm_pack_job job = int4mm_make_pack_job(packed, dst, NULL, dim, encoding, false);
  if (dst->device == INT4MM_CPU) {
    int4mm_cpu_unpack(&job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  int32_t status = int4mm_open_cuda(&cuda, stream, (const int4mm_tensor *[]){dst, packed}, 2);
  return status ? status : cuda->unpack(dst->device, &job, stream);
}

int32_t int4mm_unpack(int4mm_tensor *dst, const int4mm_tensor *packed, int32_t dim, int32_t encoding, void *stream) {
  int32_t status =
      int4mm_check_packed_pair("dst", dst, int4mm_is_integer_dtype, "int8 or int32", packed, dim, encoding);
  if (!status) status = int4mm_check_read_mark("dst", dst, packed, dim, encoding);
  if (!status) status = unpack(dst, packed, dim, encoding, stream);
  if (!status) int4mm_clear_mark(dst);
  return status;
}
