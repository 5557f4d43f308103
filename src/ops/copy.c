/*
 * Copies and fills, on the device or between two.
 */
#include <string.h>

#include "core/storage.h"
#include "core/tensor.h"
#include "cpu/backend.h"
#include "dispatch/devices.h"
#include "ops/common.h"
#include "ops/copy.h"

static int32_t check_copy(const int4mm_tensor *dst, const int4mm_tensor *src) {
  int32_t status = int4mm_check_rows("dst", dst);
  if (!status) status = int4mm_check_rows("src", src);
  if (status) return status;
  if (dst->rank != src->rank || dst->shape[0] != src->shape[0] || dst->shape[1] != src->shape[1])
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "dst is %s but src is %s: the shapes differ", int4mm_describe(dst).s,
                       int4mm_describe(src).s);
  if (dst->dtype != src->dtype) {
    if (dst->device != INT4MM_CPU || src->device != INT4MM_CPU)
      return int4mm_fail(INT4MM_ERR_ARGUMENT, "dst is %s on %s but src is %s on %s: dtypes convert only on the CPU",
                         int4mm_dtype_name(dst->dtype), int4mm_device_name(dst->device).s,
                         int4mm_dtype_name(src->dtype), int4mm_device_name(src->device).s);
    if (int4mm_is_out_dtype(src->dtype) && !int4mm_is_out_dtype(dst->dtype))
      return int4mm_fail(INT4MM_ERR_ARGUMENT, "dst is %s but src is %s: a float does not become an integer by a copy",
                         int4mm_dtype_name(dst->dtype), int4mm_dtype_name(src->dtype));
  }
  if (dst->device == src->device && dst->data == src->data && dst->stride == src->stride && dst->dtype == src->dtype)
    return INT4MM_OK; /* onto itself */
  return int4mm_check_apart("dst", dst, "src", src);
}

/* ---- pinned memory ---- */

/* What the driver says of memory that is not ours; no, where it cannot tell. */
static bool is_known_as_pinned(const void *data) {
  const int4mm_cuda_backend *cuda = int4mm_cuda_if_open();
  int4mm_location location = {0};
  if (!cuda || !data) return false;
  int4mm_hold_error();
  int32_t status = cuda->locate(data, &location);
  int4mm_unhold_error();
  return !status && location.pinned;
}

int32_t int4mm_tensor_is_pinned(const int4mm_tensor *t) {
  if (!t || !t->rank || t->device != INT4MM_CPU) return 0;
  if (t->storage && t->storage->counted) return t->storage->pinned;
  return is_known_as_pinned(t->data);
}

/* ---- copies ---- */

/* One side is a GPU, the other that GPU, another or the CPU. */
static int32_t copy_with_gpu(const int4mm_tensor *dst, const int4mm_tensor *src, void *stream, bool async) {
  int4mm_matrix d = int4mm_as_matrix(dst), s = int4mm_as_matrix(src);
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  if (!cuda) return INT4MM_ERR_UNAVAILABLE;
  bool to_host = dst->device == INT4MM_CPU, from_host = src->device == INT4MM_CPU;
  const int4mm_tensor *host = to_host ? dst : from_host ? src : NULL;
  int32_t device = to_host ? src->device : dst->device;
  size_t size = int4mm_dtype_size(d.dtype), width = (size_t)d.cols * size, rows = (size_t)d.rows;
  size_t dst_pitch = (size_t)d.stride * size, src_pitch = (size_t)s.stride * size;
  int32_t status = int4mm_use_on_stream(cuda, device, stream, (const int4mm_tensor *[]){dst, src}, 2, NULL);
  if (status) return status;
  if (!async || !host || !int4mm_tensor_is_pinned(host))
    return cuda->copy(dst->device, d.data, dst_pitch, src->device, s.data, src_pitch, width, rows, stream);
  if (host->storage) atomic_fetch_or(&host->storage->used_by, (uint64_t)1 << device);
  return cuda->copy_async(device, to_host, d.data, dst_pitch, s.data, src_pitch, width, rows, stream);
}

static int32_t copy_any(const int4mm_tensor *dst, const int4mm_tensor *src, void *stream, bool async) {
  int4mm_matrix d = int4mm_as_matrix(dst), s = int4mm_as_matrix(src);
  if (!d.rows || !d.cols || (dst->device == src->device && d.data == s.data)) return INT4MM_OK;
  if (dst->device != INT4MM_CPU || src->device != INT4MM_CPU) return copy_with_gpu(dst, src, stream, async);
  int4mm_cpu_copy(&d, &s);
  return INT4MM_OK;
}

int32_t int4mm_copy_checked(const int4mm_tensor *dst, const int4mm_tensor *src, void *stream) {
  return copy_any(dst, src, stream, false);
}

/* int8 holds less than int32: nothing is written unless all of it fits. */
static int32_t check_values(const int4mm_tensor *dst, const int4mm_tensor *src) {
  if (dst->dtype != INT4MM_INT8 || src->dtype != INT4MM_INT32) return INT4MM_OK;
  int4mm_matrix values = int4mm_as_matrix(src);
  int64_t bad = int4mm_cpu_find_outside_int8(&values);
  return bad < 0 ? INT4MM_OK : int4mm_fail_value("src", src, bad, "int8 holds -128 to 127", NULL);
}

static int32_t copy_tensor(int4mm_tensor *dst, const int4mm_tensor *src, void *stream, bool async) {
  int32_t status = check_copy(dst, src);
  if (!status) status = check_values(dst, src);
  if (!status) status = copy_any(dst, src, stream, async);
  if (status) return status;
  if (dst->dtype == src->dtype)
    int4mm_copy_mark(dst, src, src->packing - 1);
  else
    int4mm_clear_mark(dst);
  return INT4MM_OK;
}

int32_t int4mm_tensor_copy(int4mm_tensor *dst, const int4mm_tensor *src, void *stream) {
  return copy_tensor(dst, src, stream, false);
}

int32_t int4mm_tensor_copy_async(int4mm_tensor *dst, const int4mm_tensor *src, void *stream) {
  return copy_tensor(dst, src, stream, true);
}

/* ---- fills ---- */

static int32_t fill_bytes(const int4mm_tensor *t, uint8_t byte, void *stream) {
  int4mm_matrix m = int4mm_as_matrix(t);
  size_t size = int4mm_dtype_size(m.dtype), pitch = (size_t)m.stride * size, width = (size_t)m.cols * size;
  if (!m.rows || !m.cols) return INT4MM_OK;
  if (t->device == INT4MM_CPU) {
    for (int64_t r = 0; r < m.rows; r++) memset((char *)m.data + (size_t)r * pitch, byte, width);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  if (!cuda) return INT4MM_ERR_UNAVAILABLE;
  int32_t status = int4mm_use_on_stream(cuda, t->device, stream, &t, 1, NULL);
  return status ? status : cuda->fill_bytes(t->device, m.data, pitch, byte, width, (size_t)m.rows, stream);
}

int32_t int4mm_tensor_fill_bytes(int4mm_tensor *t, uint8_t byte, void *stream) {
  int32_t status = int4mm_check_rows("tensor", t);
  if (!status) status = fill_bytes(t, byte, stream);
  if (!status) int4mm_clear_mark(t);
  return status;
}
