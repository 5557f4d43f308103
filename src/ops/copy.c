/*
 * Copies, with conversion between dtypes.
 */
#include "cpu/backend.h"
#include "ops/common.h"

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

/* int8 holds less than int32: nothing is written unless all of it fits. */
static int32_t check_values(const int4mm_tensor *dst, const int4mm_tensor *src) {
  if (dst->dtype != INT4MM_INT8 || src->dtype != INT4MM_INT32) return INT4MM_OK;
  int4mm_matrix values = int4mm_as_matrix(src);
  int64_t bad = int4mm_cpu_find_outside_int8(&values);
  return bad < 0 ? INT4MM_OK : int4mm_fail_value("src", src, bad, "int8 holds -128 to 127", NULL);
}

int32_t int4mm_tensor_copy(const int4mm_tensor *dst, const int4mm_tensor *src, void *stream) {
  int32_t status = check_copy(dst, src);
  if (!status) status = check_values(dst, src);
  return status ? status : int4mm_copy_checked(dst, src, stream);
}
