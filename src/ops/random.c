/*
 * Test data.
 */
#include <math.h>

#include "cpu/backend.h"
#include "ops/common.h"

static int32_t fill_random(const int4mm_tensor *t, const int4mm_random_job *job, void *stream) {
  if (t->device == INT4MM_CPU) {
    int4mm_cpu_random(job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  int32_t status = int4mm_open_cuda(&cuda, stream, &t, 1);
  return status ? status : cuda->random(t->device, job, stream);
}

int32_t int4mm_random(int4mm_tensor *t, uint64_t seed, uint32_t sequence, float low, float high, void *stream) {
  int32_t status = int4mm_check_rows("tensor", t);
  if (status) return status;
  if (t->dtype != INT4MM_INT32 && t->dtype != INT4MM_FLOAT32)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "tensor is %s, expected int32 or float32", int4mm_describe(t).s);
  if (t->dtype == INT4MM_FLOAT32 && !(isfinite(high - low) && low <= high))
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "low is %g and high %g, expected finite numbers in order, their difference finite", (double)low,
                       (double)high);
  int4mm_random_job job = {int4mm_as_matrix(t), seed, sequence, low, high};
  status = fill_random(t, &job, stream);
  if (!status) int4mm_clear_mark(t);
  return status;
}
