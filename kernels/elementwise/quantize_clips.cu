/*
 * The clip of least squared error: a kernel of its own, which leaves the scales, since its sums have a fixed order, 32
 * chains for every ratio.
 */
#include "core/group_quantize.h"
#include "elementwise/quantize_pass.cuh"

namespace {

struct Arguments : int4mm_quantize_pass {
  bool vector_load;
};

constexpr int RATIOS = INT4MM_CLIP_RATIOS, SEARCH_WARPS = 11, OWN_RATIOS = RATIOS / SEARCH_WARPS;
constexpr int HELD_WARPS = 8; /* times 1024 values in shared memory */

/* (x - q scale)^2, where the product is exact. The rounded quotient is 0x4b400000 + q as bits; these below 2^52 are a
 * double. */
__device__ __forceinline__ double squared_error(float x, const Divisor &by, double scale, float qmax) {
  float rounded = divide_and_round(__fmul_rn(x, by.power), by, qmax);
  double q = __dsub_rn(__hiloint2double(0x43300000, (int)__float_as_uint(rounded)), 0x1p52 + 0x4b400000);
  double e = __fma_rn(-q, scale, (double)x);
  return __dmul_rn(e, e);
}

/* The ratio of least error, of equals the largest, from the sums of this warp's ratios in each lane. */
__device__ __forceinline__ int best_ratio(const double (&sums)[OWN_RATIOS], double (&errors)[RATIOS]) {
#pragma unroll
  for (int i = 0; i < OWN_RATIOS; i++) {
    double sum = 0;
    for (int lane = 0; lane < 32; lane++) sum = __dadd_rn(sum, __shfl_sync(0xffffffffu, sums[i], lane));
    if (lane_id() == 0) errors[threadIdx.x / 32 * OWN_RATIOS + i] = sum;
  }
  __syncthreads();
  int best = 0;
  for (int i = 1; i < RATIOS; i++)
    if (errors[i] < errors[best]) best = i;
  return best;
}

/* Brings the values of a row or column from `first` on to shared memory, rotated: 1024 for each of HELD_WARPS warps, in
 * order, zeros beyond the end. Returns the largest magnitude of this lane's. All warps call it. */
__device__ __forceinline__ float hold_values(const Arguments &a, float *shared, int64_t index, int64_t first) {
  const int warp = threadIdx.x / 32, block = a.job.rotate, step = block > CHUNK ? CHUNK : 1;
  float most = 0, *memory = shared + warp * WARP_FLOATS;
  __syncthreads();
  if (warp < HELD_WARPS) {
    Values x;
    const Line line = line_of(a.job.plain, a.job.dim, index, first + warp * WARP_VALUES);
    most = make_values(x, memory, line, a.job.dim && a.vector_load, block);
    __syncwarp();
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
#pragma unroll
      for (int i = 0; i < CHUNK; i++) memory[first_value(c, step > 1) + step * i] = __fmul_rn(x[c][i], a.factor);
  }
  __syncthreads();
  return __fmul_rn(most, a.factor);
}

/* The scales of rows or columns. A CTA for each, 8192 values at a time; a lane for k modulo 32. */
__global__ void __launch_bounds__(32 * SEARCH_WARPS) clips_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ uint32_t warps[MAX_WARPS];
  __shared__ double errors[RATIOS];
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int4mm_pack_job &job = a.job;
  const int warp = threadIdx.x / 32, lane = lane_id(), qmax = qmax_of(job);
  const int64_t lines = lines_of(job), held = HELD_WARPS * WARP_VALUES;
  for (int64_t index = blockIdx.x; index < lines; index += gridDim.x) {
    const int64_t count = job.dim ? job.plain.cols : job.plain.rows;
    float most = 0;
    for (int64_t first = 0; first < count; first += held)
      most = max_magnitude(most, hold_values(a, shared, index, first));
    const uint32_t absmax = cta_max(most, warps);
    if (absmax >= INFINITE && a.bad)
      for (int64_t at = warp * WARP_VALUES; at < count; at += SEARCH_WARPS * WARP_VALUES) report_bad(a, index, at);
    auto own_scale = [&](int i) { return scale_of(absmax, int4mm_clip_ratio(warp * OWN_RATIOS + i), qmax); };
    static_assert(OWN_RATIOS == 3, "three are written out");
    const double scales[OWN_RATIOS] = {own_scale(0), own_scale(1), own_scale(2)};
    const Divisor by[OWN_RATIOS] = {Divisor(own_scale(0)), Divisor(own_scale(1)), Divisor(own_scale(2))};
    double sums[OWN_RATIOS] = {};
    for (int64_t first = 0; first < count; first += held) {
      if (count > held) (void)hold_values(a, shared, index, first);
      const int end = (int)min(held, count - first);
      for (int k = lane; k < end; k += 32) {
        const float x = shared[k / WARP_VALUES * WARP_FLOATS + k % WARP_VALUES];
#pragma unroll
        for (int i = 0; i < OWN_RATIOS; i++)
          sums[i] = __dadd_rn(sums[i], squared_error(x, by[i], scales[i], (float)qmax));
      }
    }
    const int best = best_ratio(sums, errors);
    if (threadIdx.x == 0) job.scales[index] = scale_of(absmax, int4mm_clip_ratio(best), qmax);
  }
}

} // namespace

cudaError_t int4mm_find_clips(const int4mm_quantize_pass *pass, cudaStream_t stream) {
  const Arguments a = {*pass, is_whole_vectors(pass->job.plain)};
  return launch<clips_kernel>(int4mm_blocks(lines_of(a.job), 1), SEARCH_WARPS, HELD_WARPS * WARP_BYTES, 1, stream, a);
}
