/*
 * Launching the fast kernels: shared memory beyond 48 KB, programmatic dependent launch and clusters.
 */
#ifndef INT4MM_LAUNCH_CUH
#define INT4MM_LAUNCH_CUH

#include <atomic>

#include <cuda_runtime.h>

/* Finds, once for each device, the architecture that a kernel's code was compiled for: that of its PTX where the driver
 * compiled it, which may be older than the device. Also lets the kernel have all the shared memory that a CTA may have.
 * `known` remembers the answers. */
static inline cudaError_t int4mm_prepare_kernel(int device, const void *kernel, std::atomic<int> (&known)[64],
                                                int *code_arch, bool keeps_shared = false) {
  int bytes;
  cudaFuncAttributes attributes;
  *code_arch = device < 64 ? known[device].load(std::memory_order_relaxed) : 0;
  if (*code_arch) return cudaSuccess;
  cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  bytes -= (int)attributes.sharedSizeBytes; /* what it declares counts as well */
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess && keeps_shared)
    error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error != cudaSuccess) return error;
  *code_arch = attributes.ptxVersion;
  if (device < 64) known[device] = *code_arch;
  return cudaSuccess;
}

/* Dynamic shared memory of a CTA. one_per_sm: where a grid has no more CTAs than the device SMs, so much more that an
 * SM has room for one. The CTAs of a grid that starts while the one before it ends would else come two to one SM and
 * none to another. */
struct int4mm_shared {
  size_t bytes;
  bool one_per_sm;
  int4mm_shared(size_t bytes, bool one_per_sm = false) : bytes(bytes), one_per_sm(one_per_sm) {}
};

static inline cudaError_t int4mm_raise_shared(int4mm_shared *shared, int device, dim3 grid) {
  int sms, bytes;
  if (!shared->one_per_sm) return cudaSuccess;
  cudaError_t error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  if (error != cudaSuccess || (int64_t)grid.x * grid.y * grid.z > sms) return error;
  if (shared->bytes < (size_t)bytes / 2) shared->bytes = (size_t)bytes / 2;
  return error;
}

/* Launches KERNEL on `device`, the current one, in clusters of so many CTAs along x, y and z. Code compiled for sm_90
 * and later may start while the kernel before it in the stream is finishing: it has to call ptx::griddepcontrol_wait
 * before it touches memory that others write or read. Older code has neither that nor clusters: with a cluster it is
 * cudaErrorNotSupported. KEEPS_SHARED: SMs stay divided as those kernels want them that need most of the shared memory.
 * An SM has to be empty to be divided anew, so that else their CTAs could not start beside this kernel's; but L1 is
 * small then. */
template <auto KERNEL, bool KEEPS_SHARED = false, typename... Arguments>
static inline cudaError_t int4mm_launch(int device, dim3 grid, int threads, int4mm_shared shared, dim3 cluster,
                                        cudaStream_t stream, const Arguments &...arguments) {
  static std::atomic<int> known[64];
  int code_arch;
  cudaError_t error = int4mm_prepare_kernel(device, (const void *)KERNEL, known, &code_arch, KEEPS_SHARED);
  if (error == cudaSuccess) error = int4mm_raise_shared(&shared, device, grid);
  if (error != cudaSuccess) return error;
  bool alone = cluster.x * cluster.y * cluster.z == 1;
  if (code_arch < 90 && !alone) return cudaErrorNotSupported;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster.x, cluster.y, cluster.z};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = threads, config.dynamicSmemBytes = shared.bytes, config.stream = stream;
  config.attrs = attributes, config.numAttrs = code_arch < 90 ? 0 : alone ? 1 : 2;
  return cudaLaunchKernelEx(&config, KERNEL, arguments...);
}

#endif
