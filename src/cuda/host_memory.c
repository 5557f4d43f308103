/*
 * Pinned host memory. cudaFreeHost is not documented to wait for copies that use the memory, so freeing waits for the
 * devices that were given some; but not during a capture, which a wait or a call that maps memory could disturb.
 */
#include "cuda/backend.h"

int32_t int4mm_cuda_host_alloc(size_t bytes, void **data) {
  int4mm_cuda_scope scope;
  *data = NULL;
  int32_t status = int4mm_cuda_enter(int4mm_cuda_device_in_use(), &scope);
  if (status) return status;
  int4mm_cuda_flush_deferred();
  cudaError_t error = cudaHostAlloc(data, bytes, cudaHostAllocPortable);
  return int4mm_cuda_leave_after(&scope, error, "allocate pinned host memory");
}

/* Waits for the work that a device was given; false where its default stream cannot be used now. */
static bool wait_for(int32_t device) {
  int4mm_cuda_scope scope;
  if (int4mm_cuda_enter(device, &scope)) return true; /* CUDA is shutting down with the process */
  bool blocked = int4mm_cuda_default_blocked();
  if (!blocked) {
    cudaError_t error = int4mm_cuda_wait_for_work(device, scope.device);
    blocked = error == cudaErrorStreamCaptureImplicit; /* a capture that began just now */
    if (error != cudaSuccess) (void)cudaGetLastError();
    /* there is the other way to be sure that the work is done */
    if (error != cudaSuccess && !blocked && cudaDeviceSynchronize() != cudaSuccess) (void)cudaGetLastError();
  }
  int4mm_cuda_leave(&scope);
  return !blocked;
}

bool int4mm_cuda_try_host_free(void *data, uint64_t devices) {
  int4mm_cuda_scope scope;
  if (int4mm_cuda_is_capturing()) return false;
  for (int32_t device = 0; device < INT4MM_CUDA_DEVICES; device++)
    if ((devices >> device & 1) && !wait_for(device)) return false;
  if (int4mm_cuda_enter(int4mm_cuda_device_in_use(), &scope)) return true;
  if (cudaFreeHost(data) != cudaSuccess) (void)cudaGetLastError(); /* the process is ending */
  int4mm_cuda_leave(&scope);
  return true;
}

void int4mm_cuda_host_free(void *data, uint64_t devices) {
  int4mm_cuda_give_back(&(int4mm_cuda_block){INT4MM_CPU, data, false, devices});
}
