/*
 * Quantising and dequantising in groups on the device, with the bits of src/cpu: what int4mm_quantize promises of
 * groups, zero points and integer group scales.
 *
 * A warp takes a group, lane k modulo 32 a value of it, so that the 32 sums of a squared error are the lanes'. Groups
 * of neighbouring lines come to neighbouring warps, which read the same sectors where lines are columns. A group is
 * read again for each pass, from the first-level cache. Dequantising has a thread for each word, or byte.
 */
#include "common/epilogue.cuh"
#include "core/group_quantize.h"
#include "elementwise/elementwise.cuh"
#include "elementwise/rotation.cuh"

namespace {

constexpr int LOOP_WARPS = LOOP_THREADS / 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

/* Rows (dim 1) or columns (dim 0), and the groups of each. */
struct Lines {
  int64_t count, extent, groups;

  __host__ __device__ __forceinline__ explicit Lines(const int4mm_group_job &job) {
    const int4mm_matrix &by_group = job.factors.data ? job.factors : job.scales;
    count = job.dim ? job.plain.rows : job.plain.cols, extent = job.dim ? job.plain.cols : job.plain.rows;
    groups = job.dim ? by_group.cols : by_group.rows;
  }
};

/* The index of element (line, k) of a matrix with lines along dim. */
__device__ __forceinline__ int64_t index_of(const int4mm_matrix &m, int dim, int64_t line, int64_t k) {
  return dim ? line * m.stride + k : k * m.stride + line;
}

template <class T> __device__ __forceinline__ T &element(const int4mm_matrix &m, int dim, int64_t line, int64_t k) {
  return static_cast<T *>(m.data)[index_of(m, dim, line, k)];
}

/* ---- quantize ---- */

/* The values of a group. */
template <class T> struct Group {
  const T *data;
  int64_t step, count;

  __device__ __forceinline__ float operator[](int64_t k) const { return to_float(data[k * step]); }
};

__device__ __forceinline__ int4mm_group_range warp_range(int4mm_group_range range) {
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    int4mm_group_range other = {__shfl_xor_sync(ALL_LANES, range.low, lanes),
                                __shfl_xor_sync(ALL_LANES, range.high, lanes),
                                __shfl_xor_sync(ALL_LANES, range.absmax, lanes)};
    range = int4mm_unite_ranges(range, other);
  }
  return range;
}

__device__ __forceinline__ int4mm_group_step step_of(const int4mm_group_job &job, int4mm_group_range range,
                                                     float clip) {
  return job.zeros.data ? int4mm_affine_step(range, clip)
                        : int4mm_symmetric_step(range, clip, job.packed.dtype == INT4MM_INT8 ? 127.0f : 7.0f);
}

/* The squared error of a step, the lanes' sums added in order; infinite where the scale is. */
template <class T> __device__ __forceinline__ double error_of(const Group<T> &x, int4mm_group_step step) {
  if (step.scale > 0 && !int4mm_is_step(step.scale)) return (double)step.scale;
  double sum = 0, total = 0;
  for (int64_t k = lane_id(); k < x.count; k += 32) sum = int4mm_add_error(sum, step, x[k]);
#pragma unroll 8
  for (int lane = 0; lane < 32; lane++) total = __dadd_rn(total, __shfl_sync(ALL_LANES, sum, lane));
  return total;
}

/* The step of a group; with clip_mse the one of least squared error, of equals the largest ratio's. */
template <class T>
__device__ __forceinline__ int4mm_group_step find_step(const int4mm_group_job &job, const Group<T> &x) {
  int4mm_group_range range = {0, 0, 0};
  for (int64_t k = lane_id(); k < x.count; k += 32) range = int4mm_widen_range(range, x[k]);
  range = warp_range(range);
  int4mm_group_step best = step_of(job, range, job.clip_mse ? 1 : job.clip);
  if (!job.clip_mse || !int4mm_is_finite_range(range)) return best;
  double least = error_of(x, best);
#pragma unroll 1
  for (int i = 1; i < INT4MM_CLIP_RATIOS; i++) {
    int4mm_group_step step = step_of(job, range, int4mm_clip_ratio(i));
    double error = error_of(x, step);
    if (error < least) least = error, best = step;
  }
  return best;
}

/* The q of a group from value `first` of its line on: bytes, or words that eight lanes make together. */
template <class T>
__device__ __forceinline__ void store_group(const int4mm_group_job &job, const Group<T> &x, int4mm_group_step step,
                                            int64_t line, int64_t first) {
  const bool is_step = int4mm_is_step(step.scale), bytes = job.packed.dtype == INT4MM_INT8;
  for (int64_t start = 0; start < x.count; start += 32) {
    const int64_t k = start + lane_id();
    int32_t q = is_step && k < x.count ? (int32_t)int4mm_quantum(step, x[k]) : 0;
    if (bytes) {
      if (k < x.count) element<int8_t>(job.packed, job.dim, line, first + k) = (int8_t)q;
      continue;
    }
    uint32_t word = ((uint32_t)q & 15u) << lane_id() % 8 * 4;
    for (int lanes = 1; lanes < 8; lanes *= 2) word |= __shfl_xor_sync(ALL_LANES, word, lanes);
    if (lane_id() % 8 == 0 && k < x.count)
      element<uint32_t>(job.packed, job.dim, line, (first + k) / 8) = word ^ job.xor_mask;
  }
}

/* FIND: the symmetric scales of groups that are to have factors; GIVEN: their values, by factors and scales. */
enum Task { WHOLE, FIND, GIVEN };

template <int DTYPE>
__global__ void __launch_bounds__(LOOP_THREADS) quantize_groups_kernel(const int4mm_group_job job, const Task task) {
  typedef typename Element<DTYPE>::type T;
  const Lines lines(job);
  const int64_t items = lines.count * lines.groups;
  for (int64_t item = (int64_t)blockIdx.x * LOOP_WARPS + threadIdx.x / 32; item < items;
       item += (int64_t)gridDim.x * LOOP_WARPS) {
    const int64_t row = divide(item, job.dim ? lines.groups : lines.count, items);
    const int64_t col = item - row * (job.dim ? lines.groups : lines.count);
    const int64_t line = job.dim ? row : col, group = job.dim ? col : row, first = group * job.group;
    const Group<T> x = {&element<const T>(job.plain, job.dim, line, first), job.dim ? 1 : job.plain.stride,
                        min(job.group, lines.extent - first)};
    if (task == GIVEN) {
      const int32_t factor = element<int8_t>(job.factors, job.dim, line, group);
      store_group(job, x, int4mm_factor_step(factor, element<float>(job.scales, job.dim, line, 0)), line, first);
      continue;
    }
    const int4mm_group_step step = find_step(job, x);
    if (lane_id() == 0) {
      element<float>(task == FIND ? job.group_scales : job.scales, job.dim, line, group) = step.scale;
      if (job.zeros.data) element<int8_t>(job.zeros, job.dim, line, group) = (int8_t)(int32_t)step.zero;
    }
    if (task == WHOLE) store_group(job, x, step, line, first);
  }
}

/* Scales and factors of a line from the scales of its groups. */
__global__ void __launch_bounds__(LOOP_THREADS) factors_kernel(const int4mm_group_job job) {
  const Lines lines(job);
  for (int64_t line = first_item(); line < lines.count; line += item_step()) {
    float largest = 0;
    for (int64_t g = 0; g < lines.groups; g++) {
      const float s = element<float>(job.group_scales, job.dim, line, g);
      largest = s > largest ? s : largest;
    }
    const float scale = int4mm_scale_of_factors(largest);
    element<float>(job.scales, job.dim, line, 0) = scale;
    for (int64_t g = 0; g < lines.groups; g++)
      element<int8_t>(job.factors, job.dim, line, g) =
          (int8_t)int4mm_factor(element<float>(job.group_scales, job.dim, line, g), scale);
  }
}

/* ---- dequantize ---- */

/* A thread has a word of eight values along dim, or a byte. */
template <int DTYPE>
__global__ void __launch_bounds__(LOOP_THREADS) dequantize_groups_kernel(const int4mm_group_job job) {
  typedef typename int4mm_out_word<DTYPE>::type Out;
  const bool bytes = job.packed.dtype == INT4MM_INT8;
  const int64_t items = job.packed.rows * job.packed.cols;
  for (int64_t item = first_item(); item < items; item += item_step()) {
    const int64_t row = divide(item, job.packed.cols, items), col = item - row * job.packed.cols;
    const int64_t line = job.dim ? row : col, first = (job.dim ? col : row) * (bytes ? 1 : 8);
    const int64_t group = first / job.group, extent = job.dim ? job.plain.cols : job.plain.rows;
    float scale = int4mm_load_float(job.scales.data, job.scales.dtype,
                                    index_of(job.scales, job.dim, line, job.factors.data ? 0 : group));
    if (job.factors.data) scale = int4mm_mul((float)element<int8_t>(job.factors, job.dim, line, group), scale);
    const int32_t zero = job.zeros.data ? element<int8_t>(job.zeros, job.dim, line, group) : 0;
    auto store = [&](int64_t k, int32_t q) {
      element<Out>(job.plain, job.dim, line, k) = int4mm_round<DTYPE>(int4mm_mul((float)(q - zero), scale));
    };
    if (bytes) {
      store(first, element<int8_t>(job.packed, job.dim, line, first));
      continue;
    }
    const uint32_t word = element<uint32_t>(job.packed, job.dim, line, first / 8) ^ job.xor_mask;
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (first + i < extent) store(first + i, int4mm_nibble(word, i));
  }
}

/* ---- values that are not finite ---- */

template <int DTYPE>
__global__ void __launch_bounds__(LOOP_THREADS)
    find_not_finite_kernel(const int4mm_matrix src, unsigned long long *bad) {
  typedef typename Element<DTYPE>::type T;
  const int64_t items = src.rows * src.cols;
  for (int64_t item = first_item(); item < items; item += item_step()) {
    const int64_t row = divide(item, src.cols, items);
    const float x = to_float(static_cast<const T *>(src.data)[row * src.stride + item - row * src.cols]);
    if (magnitude(x) >= INFINITE) atomicMin(bad, (unsigned long long)item);
  }
}

} // namespace

/* ---- launchers ---- */

cudaError_t int4mm_launch_find_not_finite(const int4mm_matrix *src, unsigned long long *bad, cudaStream_t stream) {
  const unsigned blocks = int4mm_blocks(src->rows * src->cols, LOOP_THREADS);
  if (!blocks) return cudaSuccess;
  int4mm_for_out_dtype(src->dtype, [&](auto d) {
    find_not_finite_kernel<decltype(d)::value><<<blocks, LOOP_THREADS, 0, stream>>>(*src, bad);
  });
  return cudaGetLastError();
}

static cudaError_t launch_task(const int4mm_group_job &job, Task task, cudaStream_t stream) {
  const Lines lines(job);
  const unsigned blocks = int4mm_blocks(lines.count * lines.groups, LOOP_WARPS);
  if (!blocks) return cudaSuccess;
  int4mm_for_out_dtype(job.plain.dtype, [&](auto d) {
    quantize_groups_kernel<decltype(d)::value><<<blocks, LOOP_THREADS, 0, stream>>>(job, task);
  });
  return cudaGetLastError();
}

cudaError_t int4mm_launch_quantize_groups(const int4mm_group_job *job, cudaStream_t stream) {
  if (!job->factors.data) return launch_task(*job, WHOLE, stream);
  const unsigned blocks = int4mm_blocks(Lines(*job).count, LOOP_THREADS);
  cudaError_t error = launch_task(*job, FIND, stream);
  if (error != cudaSuccess || !blocks) return error;
  factors_kernel<<<blocks, LOOP_THREADS, 0, stream>>>(*job);
  error = cudaGetLastError();
  return error == cudaSuccess ? launch_task(*job, GIVEN, stream) : error;
}

cudaError_t int4mm_launch_dequantize_groups(const int4mm_group_job *job, cudaStream_t stream) {
  const unsigned blocks = int4mm_blocks(job->packed.rows * job->packed.cols, LOOP_THREADS);
  if (!blocks) return cudaSuccess;
  int4mm_for_out_dtype(job->plain.dtype, [&](auto d) {
    dequantize_groups_kernel<decltype(d)::value><<<blocks, LOOP_THREADS, 0, stream>>>(*job);
  });
  return cudaGetLastError();
}
