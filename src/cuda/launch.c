/*
 * Jobs to kernels: the right launcher, its errors in words, and the answer of the value checks.
 */
#include "common/kernels.h"
#include "cuda/backend.h"

/* What follows a launcher in `scope`: words for an error, then the event that later frees wait for. */
static int32_t finish(const int4mm_cuda_scope *scope, int32_t device, cudaError_t error, const char *doing,
                      void *stream) {
  int32_t status = int4mm_cuda_check(error, doing);
  if (!status) status = int4mm_cuda_record_work(device, stream);
  int4mm_cuda_leave(scope);
  return status;
}

/* In the order of plan->kernel. */
#define INT4MM_KERNEL(name, min_arch, max_arch, tile_m, tile_n, stages, family) int4mm_launch_##name,
static int4mm_launch_fn *const launchers[] = {
#include "common/kernels.inc"
};
#undef INT4MM_KERNEL

int32_t int4mm_cuda_code_arch(int32_t device, int32_t *arch) {
  static _Atomic int32_t known[INT4MM_CUDA_DEVICES]; /* 0: not asked yet */
  int4mm_cuda_scope scope;
  int32_t status = INT4MM_OK;
  int32_t found = device >= 0 && device < INT4MM_CUDA_DEVICES ? known[device] : 0;
  if (!found) {
    if ((status = int4mm_cuda_enter(device, &scope))) return status;
    status = int4mm_cuda_leave_after(&scope, int4mm_code_arch(&found), "find what the kernels were compiled for");
    if (!status) known[device] = found;
  }
  *arch = found;
  return status;
}

/* Programmatic dependent launch has the product's CTAs start while the quantiser's still run, which have waited for all
 * kernels before them by then: the weight may be read at once. */
static cudaError_t launch_product(const int4mm_pack_job *quantize, const int4mm_problem *problem,
                                  const int4mm_plan *plan, cudaStream_t stream) {
  if (!quantize) return launchers[plan->kernel](problem, plan, stream);
  cudaError_t error = cudaErrorNotSupported;
  if (int4mm_is_elementary(problem)) error = int4mm_launch_own_skinny(quantize, problem, plan, stream);
  if (error != cudaErrorNotSupported) return error;
  int4mm_problem early = *problem;
  early.after_a = early.early_b = true;
  error = int4mm_launch_quantize(quantize, NULL, stream);
  return error == cudaSuccess ? launchers[plan->kernel](&early, plan, stream) : error;
}

int32_t int4mm_cuda_matmul(int32_t device, const int4mm_pack_job *quantize, const int4mm_problem *problem,
                           const int4mm_plan *plan, void *stream, bool non_blocking) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = launch_product(quantize, problem, plan, int4mm_cuda_stream(stream));
  if (error == cudaErrorNotSupported) {
    (void)cudaGetLastError();
    int4mm_cuda_leave(&scope);
    return int4mm_cuda_fail(INT4MM_ERR_UNSUPPORTED, "the kernel %s cannot serve M = %lld, N = %lld, K = %lld",
                            plan->name, (long long)problem->M, (long long)problem->N, (long long)problem->K);
  }
  status = int4mm_cuda_check(error, "launch the product");
  if (!status && non_blocking) status = int4mm_cuda_record_event(device, stream);
  int4mm_cuda_leave(&scope);
  return status;
}

/* ---- value checks ---- */

typedef cudaError_t checked_launcher(const void *job, unsigned long long *bad, cudaStream_t stream);

static cudaError_t launch_pack(const void *job, unsigned long long *bad, cudaStream_t stream) {
  return int4mm_launch_pack(job, bad, stream);
}

static cudaError_t launch_quantize(const void *job, unsigned long long *bad, cudaStream_t stream) {
  return int4mm_launch_quantize(job, bad, stream);
}

static cudaError_t launch_find_not_finite(const void *src, unsigned long long *bad, cudaStream_t stream) {
  return int4mm_launch_find_not_finite(src, bad, stream);
}

/* In the device's scope: a launcher with a scratch word for the smallest bad index, which is waited for. */
static int32_t find_bad(int32_t device, const int4mm_cuda_device *on, checked_launcher *launch, const void *job,
                        unsigned long long *bad, void *stream) {
  cudaStream_t s = int4mm_cuda_stream(stream);
  void *word = NULL;
  int32_t status = int4mm_cuda_scratch_here(device, on, sizeof *bad, &word, stream);
  if (status) return status;
  cudaError_t error = cudaMemsetAsync(word, 0xff, sizeof *bad, s);
  if (error == cudaSuccess) error = launch(job, word, s);
  if (error == cudaSuccess) error = cudaMemcpyAsync(bad, word, sizeof *bad, cudaMemcpyDeviceToHost, s);
  if (error == cudaSuccess) error = cudaStreamSynchronize(s);
  cudaError_t freed = int4mm_cuda_scratch_free_here(on, word, stream);
  return int4mm_cuda_check(error == cudaSuccess ? freed : error, "check values on the device");
}

static int32_t run_checked(int32_t device, checked_launcher *launch, const void *job, int64_t *bad, const char *instead,
                           void *stream) {
  unsigned long long found = INT4MM_NO_BAD_INDEX;
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_check_waitable(stream, "check values", instead);
  if (!status) status = find_bad(device, scope.device, launch, job, &found, stream);
  int4mm_cuda_leave(&scope);
  if (status || found == INT4MM_NO_BAD_INDEX) return status;
  *bad = (int64_t)found;
  return INT4MM_ERR_VALUE;
}

/* `instead` of a check, where a capture forbids that. */
static int32_t run_pack(int32_t device, checked_launcher *launch, const int4mm_pack_job *job, int64_t *bad,
                        const char *doing, const char *instead, void *stream) {
  int4mm_cuda_scope scope;
  if (job->check) return run_checked(device, launch, job, bad, instead, stream);
  int32_t status = int4mm_cuda_enter(device, &scope);
  return status ? status : finish(&scope, device, launch(job, NULL, int4mm_cuda_stream(stream)), doing, stream);
}

int32_t int4mm_cuda_pack(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream) {
  return run_pack(device, launch_pack, job, bad, "pack on the device", "pack before the capture", stream);
}

int32_t int4mm_cuda_quantize(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream) {
  return run_pack(device, launch_quantize, job, bad, "quantise on the device", "give check = false", stream);
}

int32_t int4mm_cuda_find_not_finite(int32_t device, const int4mm_matrix *src, int64_t *bad, void *stream) {
  int32_t status = run_checked(device, launch_find_not_finite, src, bad, "give check = false", stream);
  if (!status) *bad = -1;
  return status == INT4MM_ERR_VALUE ? INT4MM_OK : status;
}

/* ---- the rest ---- */

/* int4mm_cuda_<name>, which gives a job to int4mm_launch_<name>. */
#define LAUNCH(name, job_type, doing)                                                                                  \
  int32_t int4mm_cuda_##name(int32_t device, const job_type *job, void *stream) {                                      \
    int4mm_cuda_scope scope;                                                                                           \
    int32_t status = int4mm_cuda_enter(device, &scope);                                                                \
    if (status) return status;                                                                                         \
    return finish(&scope, device, int4mm_launch_##name(job, int4mm_cuda_stream(stream)), doing, stream);               \
  }

LAUNCH(quantize_groups, int4mm_group_job, "quantise in groups on the device")
LAUNCH(dequantize_groups, int4mm_group_job, "dequantise in groups on the device")
LAUNCH(rotate, int4mm_rotate_job, "rotate on the device")
LAUNCH(unpack, int4mm_pack_job, "unpack on the device")
LAUNCH(dequantize, int4mm_pack_job, "dequantise on the device")
LAUNCH(map, int4mm_map_job, "compute element by element on the device")
LAUNCH(rowwise, int4mm_rowwise_job, "compute row by row on the device")
LAUNCH(random, int4mm_random_job, "fill with random numbers on the device")
LAUNCH(gather, int4mm_gather_job, "gather on the device")

int32_t int4mm_cuda_align_rows(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                               bool even_odd, bool early_b, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error =
      int4mm_launch_align_rows(device, dst, src, xor_mask, even_odd, early_b, int4mm_cuda_stream(stream));
  return finish(&scope, device, error, "copy rows on the device", stream);
}

int32_t int4mm_cuda_transpose(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                              void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = int4mm_launch_transpose(dst, src, xor_mask, int4mm_cuda_stream(stream));
  return finish(&scope, device, error, "transpose on the device", stream);
}
