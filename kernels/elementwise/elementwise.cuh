/*
 * What the elementwise kernels share: items of a grid-stride loop, elements of every dtype, and the place of a bad
 * value.
 */
#ifndef INT4MM_ELEMENTWISE_CUH
#define INT4MM_ELEMENTWISE_CUH

#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/unpack.cuh"

namespace {

constexpr int LOOP_THREADS = 256; /* of a CTA */

__device__ __forceinline__ int64_t first_item() {
  return (int64_t)blockIdx.x * LOOP_THREADS + threadIdx.x;
}
__device__ __forceinline__ int64_t item_step() {
  return (int64_t)gridDim.x * LOOP_THREADS;
}

/* The row of an item, of which there are `items`, so many to a row. A division of 64 bits takes longer than all the
 * rest of a small job. */
__device__ __forceinline__ int64_t divide(int64_t item, int64_t per_row, int64_t items) {
  return items <= UINT32_MAX ? (int64_t)((uint32_t)item / (uint32_t)per_row) : item / per_row;
}

/* The values of a two's complement word in their order, a byte each. */
__device__ __forceinline__ uint2 widen(uint32_t word) {
  const Unpacker<true> unpack(0);
  uint32_t even = unpack.even(word), odd = unpack.odd(word);
  return make_uint2(__byte_perm(even, odd, 0x5140), __byte_perm(even, odd, 0x7362));
}

/* The same for a row of bytes that is even_odd (core/problem.h): the word whose first value is that of k. */
__device__ __forceinline__ void store_even_odd(uint8_t *row, int64_t k, uint32_t word) {
  const Unpacker<true> unpack(0);
  uint32_t *to = (uint32_t *)(row + k - k % 32 / 2);
  to[0] = unpack.even(word), to[4] = unpack.odd(word);
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

/* Records the row-major index of element (row, col) of the plain matrix, where it is the smallest so far. */
__device__ __forceinline__ void report(const int4mm_pack_job &job, int64_t row, int64_t col, unsigned long long *bad) {
  atomicMin(bad, (unsigned long long)(row * job.plain.cols + col));
}

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

/* Magnitudes of floats compare as their bits do; those from here on are infinite or NaN. */
constexpr uint32_t INFINITE = 0x7f800000u;
__device__ __forceinline__ uint32_t magnitude(float x) {
  return __float_as_uint(x) & 0x7fffffffu;
}

inline int element_bytes(int32_t dtype) {
  return dtype == INT4MM_INT8 ? 1 : dtype == INT4MM_FLOAT16 || dtype == INT4MM_BFLOAT16 ? 2 : 4;
}

/* Whether rows are whole vectors of so many elements, which are of these bytes together, and aligned to them (to 16
 * bytes where they are more). */
inline bool is_whole_vectors(const int4mm_matrix &m, int64_t elements, size_t bytes) {
  size_t element = bytes / elements;
  return ((uintptr_t)m.data | (uintptr_t)m.stride * element) % (bytes < 16 ? bytes : 16) == 0 && m.cols % elements == 0;
}

/* Whether they are whole vectors of 16 bytes. */
inline bool is_whole_vectors(const int4mm_matrix &m) {
  return is_whole_vectors(m, 16 / element_bytes(m.dtype), 16);
}

} // namespace
#endif
