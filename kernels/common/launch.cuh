/*
 * What the launchers of the fast kernels share: shared memory beyond 48 KB, programmatic dependent launch and clusters.
 */
#ifndef INT4MM_LAUNCH_CUH
#define INT4MM_LAUNCH_CUH

#include <atomic>

#include <cuda_runtime.h>

/* Lets a kernel have all the shared memory that a CTA may have on `device`, the current one. `done` remembers the
 * devices. */
static inline cudaError_t int4mm_allow_shared(int device, const void *kernel, std::atomic<uint64_t> &done) {
  int bytes;
  uint64_t bit = device < 64 ? 1ull << device : 0;
  if (done.load(std::memory_order_relaxed) & bit) return cudaSuccess;
  cudaError_t error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) done |= bit;
  return error;
}

/* Launches on `device`, the current one, with `cluster` CTAs a cluster. From sm_90 on the kernel may start while the
 * one before it in the stream is finishing: it has to call ptx::wait_for_prior_grids before it touches memory that
 * others write or read. */
template <typename... Parameters, typename... Arguments>
static inline cudaError_t int4mm_launch(int device, void (*kernel)(Parameters...), dim3 grid, int threads,
                                        size_t shared, int cluster, cudaStream_t stream,
                                        const Arguments &...arguments) {
  int major;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {(unsigned)cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = threads, config.dynamicSmemBytes = shared, config.stream = stream;
  config.attrs = attributes, config.numAttrs = major < 9 ? 0 : cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

#endif
