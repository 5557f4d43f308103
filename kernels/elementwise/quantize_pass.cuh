/*
 * Quantising and rotating the lines of a matrix, which are its rows (dim 1) or its columns (dim 0): what the families
 * of kernels share, each a file, and the functions by which quantize.cu calls them.
 */
#ifndef INT4MM_QUANTIZE_PASS_CUH
#define INT4MM_QUANTIZE_PASS_CUH

#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "elementwise/quantize.cuh"

struct int4mm_quantize_pass {
  int4mm_pack_job job;
  int4mm_matrix rotated;   /* of a rotation alone: where job.plain goes */
  unsigned long long *bad; /* or NULL */
  float factor;            /* of the rotation; 1 without one */
  bool scales_given;       /* in job.scales */
};

/* Scales, where they are not given, and words. There are lines. */
cudaError_t int4mm_quantize_rows(const int4mm_quantize_pass *pass, cudaStream_t stream);
cudaError_t int4mm_quantize_tiles(const int4mm_quantize_pass *pass, cudaStream_t stream); /* columns */

/* The same for columns that are not rotated, and whose scales are not given. cudaErrorNotSupported, and nothing
 * launched, where int4mm_quantize_tiles is to serve them. */
cudaError_t int4mm_quantize_pairs(const int4mm_quantize_pass *pass, cudaStream_t stream);

/* Scales alone: with the clip of least squared error. */
cudaError_t int4mm_find_clips(const int4mm_quantize_pass *pass, cudaStream_t stream);

/* job.plain, rotated. */
cudaError_t int4mm_rotate_rows(const int4mm_quantize_pass *pass, cudaStream_t stream);
cudaError_t int4mm_rotate_tiles(const int4mm_quantize_pass *pass, cudaStream_t stream);

namespace {

/* What an instance of a kernel does. */
enum Task { FIND_SCALES, TO_INT4, TO_INT8, ROTATE };

constexpr int MAX_WARPS = 32;  /* of a CTA */
constexpr int MAX_CLUSTER = 8; /* CTAs that any device with clusters has room for */
constexpr int WARP_BYTES = WARP_FLOATS * sizeof(float);

/* How many there are. */
__host__ __device__ __forceinline__ int64_t lines_of(const int4mm_pack_job &job) {
  return job.dim ? job.plain.rows : job.plain.cols;
}

/* ---- kernels ---- */

/* The largest magnitude of all threads, as bits. `warps` is not to be used by the next call. */
__device__ __forceinline__ uint32_t cta_max(float most, uint32_t (&warps)[MAX_WARPS]) {
  uint32_t value = warp_max(magnitude(most));
  if (lane_id() == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_max(lane_id() < (int)blockDim.x / 32 ? warps[lane_id()] : 0);
}

/* What the CTAs of a cluster, which has LINES rows or columns whole, tell each other of these, by the CTA that tells.
 * They may tell of others in a next round, and so on. One that tells in a round has heard all in the one before, so
 * that what was told in the one before that has been read: two places do. */
template <int LINES> struct Exchange {
  uint64_t barriers[2];
  uint32_t maxima[2][MAX_CLUSTER][LINES];

  /* At the start of the kernel, by all threads. */
  __device__ __forceinline__ void begin() {
#if __CUDA_ARCH__ >= 900
    if (gridDim.x == 1) return;
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; i++) ptx::mbarrier_init(barrier(i), 1);
      ptx::fence_mbarrier_init();
      for (int i = 0; i < 2; i++) expect(i);
    }
    __syncwarp();
    ptx::cluster_arrive();
#endif
  }
  /* Before the first tell, by all threads. */
  __device__ __forceinline__ void wait_for_others() {
    if (gridDim.x > 1) ptx::cluster_wait();
  }
  /* Tells a CTA, one value for each line in all. */
  __device__ __forceinline__ void tell(int round, int cta, int line, uint32_t most) {
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1)
      return ptx::st_async_u32(ptx::mapa(ptx::smem_address(&maxima[round % 2][blockIdx.x][line]), cta),
                               ptx::mapa(barrier(round), cta), most);
#endif
    maxima[round % 2][0][line] = most;
  }
  /* Until all have told. All threads are to meet before the next tell. */
  __device__ __forceinline__ void wait(int round) {
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1) {
      ptx::mbarrier_wait(barrier(round), round / 2 % 2);
      if (threadIdx.x == 0) expect(round);
      return;
    }
#endif
    __syncthreads();
  }

private:
  __device__ __forceinline__ uint32_t barrier(int round) {
    return ptx::smem_address(&barriers[round % 2]);
  }
  __device__ __forceinline__ void expect(int round) {
    ptx::mbarrier_arrive_expect_tx(barrier(round), gridDim.x * sizeof maxima[0][0]);
  }
};

/* Where an absmax is not finite: reports what is not finite among a warp's values of a row or column of the source. */
__device__ __forceinline__ void report_bad(const int4mm_quantize_pass &a, int64_t index, int64_t first) {
  const Line line = line_of(a.job.plain, a.job.dim, index, first);
#pragma unroll 1
  for (int i = lane_id() % CHUNK; i < line.count; i += CHUNK) /* halves of a warp may have lines of their own */
    if (magnitude(line[i]) >= INFINITE)
      report(a.job, a.job.dim ? index : first + i, a.job.dim ? first + i : index, a.bad);
}

/* ---- launchers ---- */

inline int64_t ceil_div(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

/* Of the current device. */
inline cudaError_t get_attribute(int *value, cudaDeviceAttr attribute) {
  int device;
  cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(value, attribute, device) : error;
}

template <auto KERNEL, bool KEEPS_SHARED = false, class... A>
cudaError_t launch(dim3 grid, int warps, int bytes, int cluster, cudaStream_t stream, const A &...arguments) {
  int device;
  cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error
                              : int4mm_launch<KERNEL, KEEPS_SHARED>(device, grid, 32 * warps, (size_t)bytes, cluster,
                                                                    stream, arguments...);
}

inline cudaError_t clear_scales(const int4mm_pack_job &job, cudaStream_t stream) {
  return cudaMemsetAsync(job.scales, 0, (size_t)lines_of(job) * sizeof(float), stream);
}

} // namespace
#endif
