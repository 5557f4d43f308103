/*
 * Packing, test data, transposition and gathering on the device, with the bits of src/cpu. A thread per packed word
 * (per Philox block, per element or a few) with a grid-stride loop: they run at the speed of memory, which is all there
 * is.
 */
#include <cstring>

#include "elementwise/elementwise.cuh"

namespace {

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
      if (bad && (value < -8 || value > 7)) report(job, at.row + (job.dim ? 0 : i), at.col + (job.dim ? i : 0), bad);
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

constexpr int TILE = 32;

/* 32 x 32 tiles through shared memory, 8 rows at a time, so that reads and writes are both coalesced. T: an unsigned
 * type of the elements' size. */
template <class T>
__global__ void __launch_bounds__(LOOP_THREADS)
    transpose_kernel(const int4mm_matrix dst, const int4mm_matrix src, T xor_mask) {
  __shared__ T tile[TILE][TILE + 1];
  int64_t tiles_c = (src.cols + TILE - 1) / TILE, tiles = (src.rows + TILE - 1) / TILE * tiles_c;
  int lane = threadIdx.x % TILE, warp = threadIdx.x / TILE;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    int64_t r0 = t / tiles_c * TILE, c0 = t % tiles_c * TILE;
    for (int i = warp; i < TILE; i += LOOP_THREADS / TILE)
      if (r0 + i < src.rows && c0 + lane < src.cols)
        tile[i][lane] = static_cast<const T *>(src.data)[(r0 + i) * src.stride + c0 + lane] ^ xor_mask;
    __syncthreads();
    for (int i = warp; i < TILE; i += LOOP_THREADS / TILE)
      if (c0 + i < src.cols && r0 + lane < src.rows)
        static_cast<T *>(dst.data)[(c0 + i) * dst.stride + r0 + lane] = tile[lane][i];
    __syncthreads();
  }
}

/* ---- gathering ---- */

/* A job whose rows and strides count units of type T: elements, or for rows whole vectors of them. */
template <class T> struct GatherArguments {
  T *dst;
  const T *src;
  const int32_t *indices;
  int64_t cols, dst_stride, src_stride, items; /* of dst */
  int64_t extent;                              /* of src along the dimension of the indices */
  T outside;
};

/* A thread for each unit of dst; its neighbours read neighbours of a row, or the same row of src at other columns. */
template <class T, bool ROWS>
__global__ void __launch_bounds__(LOOP_THREADS) gather_kernel(const GatherArguments<T> a) {
  for (int64_t item = first_item(); item < a.items; item += item_step()) {
    int64_t row = divide(item, a.cols, a.items), col = item - row * a.cols;
    int64_t from = a.indices[ROWS ? row : col];
    bool inside = from >= 0 && from < a.extent;
    T value = a.outside;
    if (inside) value = a.src[(ROWS ? from : row) * a.src_stride + (ROWS ? col : from)];
    a.dst[row * a.dst_stride + col] = value;
  }
}

int64_t size(const int4mm_matrix &m) {
  return m.rows * m.cols;
}

/* `bytes`: of an element, of which a unit T is one or several. */
template <class T, bool ROWS> cudaError_t launch_gather(const int4mm_gather_job &job, int bytes, cudaStream_t stream) {
  const int64_t elements = sizeof(T) / bytes;
  GatherArguments<T> a = {static_cast<T *>(job.dst.data),
                          static_cast<const T *>(job.src.data),
                          job.indices,
                          job.dst.cols / elements,
                          job.dst.stride / elements,
                          job.src.stride / elements,
                          size(job.dst) / elements,
                          ROWS ? job.src.rows : job.src.cols,
                          {}};
  for (size_t i = 0; i < sizeof(T); i += 4) memcpy((char *)&a.outside + i, &job.outside, sizeof(T) < 4 ? sizeof(T) : 4);
  gather_kernel<T, ROWS><<<int4mm_blocks(a.items, LOOP_THREADS), LOOP_THREADS, 0, stream>>>(a);
  return cudaGetLastError();
}

} // namespace

/* ---- launchers ---- */

cudaError_t int4mm_launch_pack(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(size(job->packed), LOOP_THREADS);
  if (!blocks) return cudaSuccess;
  if (job->plain.dtype == INT4MM_INT8)
    pack_kernel<INT4MM_INT8><<<blocks, LOOP_THREADS, 0, stream>>>(*job, bad);
  else
    pack_kernel<INT4MM_INT32><<<blocks, LOOP_THREADS, 0, stream>>>(*job, bad);
  return cudaGetLastError();
}

cudaError_t int4mm_launch_unpack(const int4mm_pack_job *job, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(size(job->packed), LOOP_THREADS);
  if (!blocks) return cudaSuccess;
  if (job->plain.dtype == INT4MM_INT8)
    unpack_kernel<INT4MM_INT8><<<blocks, LOOP_THREADS, 0, stream>>>(*job);
  else
    unpack_kernel<INT4MM_INT32><<<blocks, LOOP_THREADS, 0, stream>>>(*job);
  return cudaGetLastError();
}

cudaError_t int4mm_launch_random(const int4mm_random_job *job, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(size(job->dst), 4 * LOOP_THREADS);
  if (blocks) random_kernel<<<blocks, LOOP_THREADS, 0, stream>>>(*job);
  return cudaGetLastError();
}

cudaError_t int4mm_launch_transpose(const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                                    cudaStream_t stream) {
  int64_t tiles = (src->rows + TILE - 1) / TILE * ((src->cols + TILE - 1) / TILE);
  unsigned blocks = int4mm_blocks(tiles, 1);
  if (!blocks) return cudaSuccess;
  switch (element_bytes(src->dtype)) {
  case 1:
    transpose_kernel<uint8_t><<<blocks, LOOP_THREADS, 0, stream>>>(*dst, *src, 0);
    break;
  case 2:
    transpose_kernel<uint16_t><<<blocks, LOOP_THREADS, 0, stream>>>(*dst, *src, 0);
    break;
  default:
    transpose_kernel<uint32_t><<<blocks, LOOP_THREADS, 0, stream>>>(*dst, *src, xor_mask);
  }
  return cudaGetLastError();
}

cudaError_t int4mm_launch_gather(const int4mm_gather_job *job, cudaStream_t stream) {
  const int bytes = element_bytes(job->src.dtype);
  if (job->dim) {
    if (bytes == 1) return launch_gather<uint8_t, false>(*job, bytes, stream);
    if (bytes == 2) return launch_gather<uint16_t, false>(*job, bytes, stream);
    return launch_gather<uint32_t, false>(*job, bytes, stream);
  }
  if (is_whole_vectors(job->dst) && is_whole_vectors(job->src)) return launch_gather<uint4, true>(*job, bytes, stream);
  if (bytes == 1) return launch_gather<uint8_t, true>(*job, bytes, stream);
  if (bytes == 2) return launch_gather<uint16_t, true>(*job, bytes, stream);
  return launch_gather<uint32_t, true>(*job, bytes, stream);
}
