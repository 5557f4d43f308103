/*
 * What the warp-specialised kernels for Hopper (sm_90a) share: pipelines of stages in shared memory, and the driver's
 * function that makes tensor maps.
 */
#ifndef INT4MM_PIPELINE_CUH
#define INT4MM_PIPELINE_CUH

#include <atomic>

#include <cuda_runtime.h>

#include "common/ptx.cuh"

namespace {

constexpr int SHARED_LIMIT = 232448; /* bytes a CTA may have on sm_90 */

/* A stage of a pipeline of N and the phase of its barriers. */
template <int N> struct PipelineState {
  int index = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance(int by = 1) {
    index += by;
    if (index >= N) index -= N, phase ^= 1;
  }
};

/* A tile's coordinates among the tiles. */
struct TileCoord {
  int m, n;
};

/* Keeps the compiler from computing these registers after this point: a fragment made between two wgmmas would
 * serialise them. */
template <int N> __device__ __forceinline__ void keep_in_registers(uint32_t (&r)[N][4]) {
#pragma unroll
  for (int i = 0; i < 4 * N; i++) asm volatile("" : "+r"(r[i / 4][i % 4])::"memory");
}
template <int N> __device__ __forceinline__ void keep_in_registers(int32_t (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}

/* Initialises a kernel's barriers, one lane of each warp some of them: the lanes of one warp would be serialised, at 70
 * clocks each. A CTA barrier must follow. */
template <class T, class S> __device__ __forceinline__ void init_barriers(const S &shared) {
  if (threadIdx.x % 32) return;
  for (int i = threadIdx.x / 32; i < T::BARRIERS; i += T::THREADS / 32)
    ptx::mbarrier_init(shared.barrier(i), shared.arrivals(i));
  ptx::fence_mbarrier_init();
}

/* ---- host ---- */

typedef CUresult (*EncodeTiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* From the driver through the runtime, so that the library needs no libcuda to load. */
cudaError_t find_encoder(EncodeTiled *encode) {
  static std::atomic<EncodeTiled> found{nullptr};
  if (!(*encode = found.load())) {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#else /* of the runtime's version, 12.0 to 12.4 */
    cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
    if (error != cudaSuccess) return error;
    if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
    found = *encode = (EncodeTiled)function;
  }
  return cudaSuccess;
}

} // namespace
#endif
