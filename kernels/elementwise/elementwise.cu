/*
 * Packing, quantising, test data and transposition on the device, with the bits of src/cpu. A thread per packed word
 * (per Philox block, per element) with a grid-stride loop: they run at the speed of memory, which is all there is.
 */
#include "common/epilogue.cuh"
#include "common/kernels.h"

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t first_item() {
  return (int64_t)blockIdx.x * kThreads + threadIdx.x;
}
__device__ __forceinline__ int64_t item_step() {
  return (int64_t)gridDim.x * kThreads;
}

/* Where the eight values of packed word (r, c) lie in the plain matrix. */
struct Eight {
  int64_t row, col, offset, step; /* of the first; elements between neighbours */
  int count;                      /* 8, or less at the end of the packed dimension */
};

__device__ __forceinline__ Eight locate(const int4mm_pack_job &job, int64_t word) {
  int64_t r = word / job.packed.cols, c = word - r * job.packed.cols, left;
  Eight at;
  at.row = job.dim ? r : 8 * r, at.col = job.dim ? 8 * c : c;
  at.offset = at.row * job.plain.stride + at.col;
  at.step = job.dim ? 1 : job.plain.stride;
  left = job.dim ? job.plain.cols - at.col : job.plain.rows - at.row;
  at.count = left < 8 ? (int)left : 8;
  return at;
}

__device__ __forceinline__ uint32_t *packed_word(const int4mm_pack_job &job, int64_t word) {
  int64_t r = word / job.packed.cols;
  return static_cast<uint32_t *>(job.packed.data) + r * job.packed.stride + (word - r * job.packed.cols);
}

/* Records the row-major index of value i of `at`, where it is the smallest so far. */
__device__ __forceinline__ void report(const int4mm_pack_job &job, const Eight &at, int i, unsigned long long *bad) {
  int64_t row = at.row + (job.dim ? 0 : i), col = at.col + (job.dim ? i : 0);
  atomicMin(bad, (unsigned long long)(row * job.plain.cols + col));
}

/* A float element of a run-time type's word. */
__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <int DTYPE> struct Element;
template <> struct Element<INT4MM_INT32> { typedef int32_t type; };
template <> struct Element<INT4MM_INT8> { typedef int8_t type; };
template <> struct Element<INT4MM_FLOAT16> { typedef __half type; };
template <> struct Element<INT4MM_BFLOAT16> { typedef __nv_bfloat16 type; };
template <> struct Element<INT4MM_FLOAT32> { typedef float type; };

/* ---- pack and unpack ---- */

template <int DTYPE> __global__ void pack_kernel(const int4mm_pack_job job, unsigned long long *bad) {
  typedef typename Element<DTYPE>::type T;
  int64_t words = job.packed.rows * job.packed.cols;
  for (int64_t word = first_item(); word < words; word += item_step()) {
    Eight at = locate(job, word);
    const T *plain = static_cast<const T *>(job.plain.data) + at.offset;
    uint32_t packed = 0;
    for (int i = 0; i < at.count; i++) {
      int32_t value = plain[i * at.step];
      if (bad && (value < -8 || value > 7)) report(job, at, i, bad);
      packed |= ((uint32_t)value & 15u) << (4 * i);
    }
    *packed_word(job, word) = packed ^ job.xor_mask;
  }
}

template <int DTYPE> __global__ void unpack_kernel(const int4mm_pack_job job) {
  typedef typename Element<DTYPE>::type T;
  int64_t words = job.packed.rows * job.packed.cols;
  for (int64_t word = first_item(); word < words; word += item_step()) {
    Eight at = locate(job, word);
    T *plain = static_cast<T *>(job.plain.data) + at.offset;
    uint32_t packed = *packed_word(job, word) ^ job.xor_mask;
    for (int i = 0; i < at.count; i++) plain[i * at.step] = (T)int4mm_nibble(packed, i);
  }
}

/* ---- quantize and dequantize ---- */

/* Magnitudes of floats compare as their bits do. */
__device__ __forceinline__ uint32_t magnitude(float x) {
  return __float_as_uint(x) & 0x7fffffffu;
}

__device__ __forceinline__ float scale_of(uint32_t absmax) {
  return __fdiv_rn(__uint_as_float(absmax), 7.0f);
}

/* A block per row. */
template <int DTYPE> __global__ void __launch_bounds__(kThreads) row_scales_kernel(const int4mm_pack_job job) {
  typedef typename Element<DTYPE>::type T;
  __shared__ uint32_t absmax;
  for (int64_t row = blockIdx.x; row < job.plain.rows; row += gridDim.x) {
    const T *plain = static_cast<const T *>(job.plain.data) + row * job.plain.stride;
    uint32_t mine = 0;
    if (threadIdx.x == 0) absmax = 0;
    __syncthreads();
    for (int64_t col = threadIdx.x; col < job.plain.cols; col += kThreads)
      mine = max(mine, magnitude(to_float(plain[col])));
    for (int lane = 16; lane > 0; lane /= 2) mine = max(mine, __shfl_xor_sync(0xffffffffu, mine, lane));
    if (threadIdx.x % 32 == 0) atomicMax(&absmax, mine);
    __syncthreads();
    if (threadIdx.x == 0) job.scales[row] = scale_of(absmax);
    __syncthreads();
  }
}

/* A block per 32 columns: each of its 8 warps takes every eighth row. */
template <int DTYPE> __global__ void __launch_bounds__(kThreads) column_scales_kernel(const int4mm_pack_job job) {
  typedef typename Element<DTYPE>::type T;
  __shared__ uint32_t absmax[kThreads / 32][32];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t stripes = (job.plain.cols + 31) / 32;
  for (int64_t stripe = blockIdx.x; stripe < stripes; stripe += gridDim.x) {
    int64_t col = stripe * 32 + lane;
    uint32_t mine = 0;
    if (col < job.plain.cols)
      for (int64_t row = warp; row < job.plain.rows; row += kThreads / 32)
        mine = max(mine, magnitude(to_float(static_cast<const T *>(job.plain.data)[row * job.plain.stride + col])));
    absmax[warp][lane] = mine;
    __syncthreads();
    if (warp == 0 && col < job.plain.cols) {
      for (int w = 1; w < kThreads / 32; w++) mine = max(mine, absmax[w][lane]);
      job.scales[col] = scale_of(mine);
    }
    __syncthreads();
  }
}

__device__ __forceinline__ int32_t quantize_one(float x, float scale) {
  if (scale == 0.0f) return 0;
  return __float2int_rn(fminf(fmaxf(__fdiv_rn(x, scale), -7.0f), 7.0f));
}

template <int DTYPE> __global__ void quantize_kernel(const int4mm_pack_job job, unsigned long long *bad) {
  typedef typename Element<DTYPE>::type T;
  int64_t words = job.packed.rows * job.packed.cols;
  for (int64_t word = first_item(); word < words; word += item_step()) {
    Eight at = locate(job, word);
    const T *plain = static_cast<const T *>(job.plain.data) + at.offset;
    float scale = job.scales[job.dim ? at.row : at.col];
    uint32_t packed = 0;
    for (int i = 0; i < at.count; i++) {
      float x = to_float(plain[i * at.step]);
      if (bad && magnitude(x) >= 0x7f800000u) report(job, at, i, bad);
      packed |= ((uint32_t)quantize_one(x, scale) & 15u) << (4 * i);
    }
    *packed_word(job, word) = packed ^ job.xor_mask;
  }
}

template <int DTYPE> __global__ void dequantize_kernel(const int4mm_pack_job job) {
  typedef typename int4mm_out_word<DTYPE>::type T;
  int64_t words = job.packed.rows * job.packed.cols;
  for (int64_t word = first_item(); word < words; word += item_step()) {
    Eight at = locate(job, word);
    T *plain = static_cast<T *>(job.plain.data) + at.offset;
    float scale = job.scales[job.dim ? at.row : at.col];
    uint32_t packed = *packed_word(job, word) ^ job.xor_mask;
    for (int i = 0; i < at.count; i++)
      plain[i * at.step] = int4mm_round<DTYPE>(int4mm_mul((float)int4mm_nibble(packed, i), scale));
  }
}

/* ---- random numbers and transposition ---- */

/* A thread per block of four elements of the row-major order. */
__global__ void random_kernel(const int4mm_random_job job) {
  const int4mm_matrix &dst = job.dst;
  int64_t elements = dst.rows * dst.cols, blocks = (elements + 3) / 4;
  for (int64_t block = first_item(); block < blocks; block += item_step()) {
    uint32_t words[4];
    int4mm_philox(job.seed, (uint64_t)block, job.sequence, words);
    int64_t row = 4 * block / dst.cols, col = 4 * block - row * dst.cols;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (4 * block + i >= elements) break;
      int64_t at = row * dst.stride + col;
      if (dst.dtype == INT4MM_INT32)
        static_cast<uint32_t *>(dst.data)[at] = words[i];
      else
        static_cast<float *>(dst.data)[at] = int4mm_uniform(words[i], job.low, job.high);
      if (++col == dst.cols) col = 0, row++;
    }
  }
}

constexpr int kTile = 32;

/* 32 x 32 tiles through shared memory, 8 rows at a time, so that reads and writes are both coalesced. */
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const int4mm_matrix dst, const int4mm_matrix src, uint32_t xor_mask) {
  __shared__ uint32_t tile[kTile][kTile + 1];
  int64_t tiles_c = (src.cols + kTile - 1) / kTile, tiles = (src.rows + kTile - 1) / kTile * tiles_c;
  int lane = threadIdx.x % kTile, warp = threadIdx.x / kTile;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    int64_t r0 = t / tiles_c * kTile, c0 = t % tiles_c * kTile;
    for (int i = warp; i < kTile; i += kThreads / kTile)
      if (r0 + i < src.rows && c0 + lane < src.cols)
        tile[i][lane] = static_cast<const uint32_t *>(src.data)[(r0 + i) * src.stride + c0 + lane] ^ xor_mask;
    __syncthreads();
    for (int i = warp; i < kTile; i += kThreads / kTile)
      if (c0 + i < src.cols && r0 + lane < src.rows)
        static_cast<uint32_t *>(dst.data)[(c0 + i) * dst.stride + r0 + lane] = tile[lane][i];
    __syncthreads();
  }
}

int64_t size(const int4mm_matrix &m) {
  return m.rows * m.cols;
}

} // namespace

/* ---- launchers ---- */

cudaError_t int4mm_launch_pack(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(size(job->packed), kThreads);
  if (!blocks) return cudaSuccess;
  if (job->plain.dtype == INT4MM_INT8)
    pack_kernel<INT4MM_INT8><<<blocks, kThreads, 0, stream>>>(*job, bad);
  else
    pack_kernel<INT4MM_INT32><<<blocks, kThreads, 0, stream>>>(*job, bad);
  return cudaGetLastError();
}

cudaError_t int4mm_launch_unpack(const int4mm_pack_job *job, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(size(job->packed), kThreads);
  if (!blocks) return cudaSuccess;
  if (job->plain.dtype == INT4MM_INT8)
    unpack_kernel<INT4MM_INT8><<<blocks, kThreads, 0, stream>>>(*job);
  else
    unpack_kernel<INT4MM_INT32><<<blocks, kThreads, 0, stream>>>(*job);
  return cudaGetLastError();
}

/* Scales first, then words. A matrix without columns still has its row scales (0), and the other way round. */
cudaError_t int4mm_launch_quantize(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(size(job->packed), kThreads);
  unsigned scale_blocks = job->dim ? int4mm_blocks(job->plain.rows, 1) : int4mm_blocks(job->plain.cols, 32);
  int4mm_for_out_dtype(job->plain.dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    if (scale_blocks && job->dim)
      row_scales_kernel<DTYPE><<<scale_blocks, kThreads, 0, stream>>>(*job);
    else if (scale_blocks)
      column_scales_kernel<DTYPE><<<scale_blocks, kThreads, 0, stream>>>(*job);
    if (blocks) quantize_kernel<DTYPE><<<blocks, kThreads, 0, stream>>>(*job, bad);
  });
  return cudaGetLastError();
}

cudaError_t int4mm_launch_dequantize(const int4mm_pack_job *job, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(size(job->packed), kThreads);
  if (!blocks) return cudaSuccess;
  int4mm_for_out_dtype(job->plain.dtype, [&](auto dtype) {
    dequantize_kernel<decltype(dtype)::value><<<blocks, kThreads, 0, stream>>>(*job);
  });
  return cudaGetLastError();
}

cudaError_t int4mm_launch_random(const int4mm_random_job *job, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(size(job->dst), 4 * kThreads);
  if (blocks) random_kernel<<<blocks, kThreads, 0, stream>>>(*job);
  return cudaGetLastError();
}

cudaError_t int4mm_launch_transpose(const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                                    cudaStream_t stream) {
  int64_t tiles = (src->rows + kTile - 1) / kTile * ((src->cols + kTile - 1) / kTile);
  unsigned blocks = int4mm_blocks(tiles, 1);
  if (blocks) transpose_kernel<<<blocks, kThreads, 0, stream>>>(*dst, *src, xor_mask);
  return cudaGetLastError();
}
