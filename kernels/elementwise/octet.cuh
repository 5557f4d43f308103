/*
 * Eight neighbouring values of a row, a vector load of 16 bytes or two, in a float dtype that is known at run time
 * only, alike in all threads: so a kernel needs no instance for each combination of dtypes.
 */
#ifndef INT4MM_OCTET_CUH
#define INT4MM_OCTET_CUH

#include "elementwise/elementwise.cuh"

namespace {

constexpr int WIDTH = 8;

/* A matrix, and whether all its groups of eight columns start at 16 bytes; data NULL: there is none. */
struct Octets {
  int4mm_matrix m;
  bool vector;
};

inline Octets octets_of(const int4mm_matrix &m) {
  int64_t element = m.dtype == INT4MM_FLOAT32 ? 4 : 2;
  return {m, (uintptr_t)m.data % 16 == 0 && (m.rows == 1 || m.stride * element % 16 == 0)};
}

/* Eight values as they lie in memory, zeros beyond the end of the row: loaded before they are needed. Not through the
 * read-only cache, since a kernel may write where it has read. */
struct RawOctet {
  uint32_t words[WIDTH];

  __device__ __forceinline__ void load_vectors(const void *p, int count) {
#pragma unroll
    for (int v = 0; v < 2; v++) {
      if (v >= count) break;
      uint4 four = ((const uint4 *)p)[v];
      words[4 * v] = four.x, words[4 * v + 1] = four.y, words[4 * v + 2] = four.z, words[4 * v + 3] = four.w;
    }
  }

  template <class Word> __device__ __forceinline__ void load_some(const Word *p, int64_t left) {
    constexpr int IN_WORD = 4 / sizeof(Word);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      uint32_t value = i < left ? p[i] : 0;
      if (i % IN_WORD == 0)
        words[i / IN_WORD] = value;
      else
        words[i / IN_WORD] |= value << 16;
    }
  }

  /* Columns col .. col + 7 of a row, all there and at 16 bytes. */
  __device__ __forceinline__ void load_whole(const Octets &from, int64_t row, int64_t col) {
    int64_t at = row * from.m.stride + col;
    if (from.m.dtype == INT4MM_FLOAT32)
      load_vectors((const uint32_t *)from.m.data + at, 2);
    else
      load_vectors((const uint16_t *)from.m.data + at, 1);
  }

  /* As many of them as there are. */
  __device__ __forceinline__ void load(const Octets &from, int64_t row, int64_t col) {
    int64_t at = row * from.m.stride + col, left = from.m.cols - col;
    if (from.vector && left >= WIDTH)
      load_whole(from, row, col);
    else if (from.m.dtype == INT4MM_FLOAT32)
      load_some((const uint32_t *)from.m.data + at, left);
    else
      load_some((const uint16_t *)from.m.data + at, left);
  }

  __device__ __forceinline__ void to_floats(float (&x)[WIDTH], int32_t dtype) const {
    if (dtype == INT4MM_FLOAT32) {
#pragma unroll
      for (int i = 0; i < WIDTH; i++) x[i] = __uint_as_float(words[i]);
    } else if (dtype == INT4MM_FLOAT16) {
#pragma unroll
      for (int i = 0; i < WIDTH; i++) x[i] = __half2float(__ushort_as_half((uint16_t)(words[i / 2] >> i % 2 * 16)));
    } else {
#pragma unroll
      for (int i = 0; i < WIDTH; i++) x[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    }
  }
};

/* Rounds to the dtype of `to` and stores as many as lie in the row. */
__device__ __forceinline__ void store_octet(const Octets &to, int64_t row, int64_t col, const float (&x)[WIDTH]) {
  int4mm_for_out_dtype(to.m.dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    typedef typename int4mm_out_word<DTYPE>::type Word;
    Word *out = (Word *)to.m.data + row * to.m.stride + col;
    if (to.vector && col + WIDTH <= to.m.cols) return int4mm_store_vector<DTYPE>(out, x);
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
      if (col + i < to.m.cols) out[i] = int4mm_round<DTYPE>(x[i]);
  });
}

/* ---- eight whole ones, or one ---- */

template <int COUNT, class F> __device__ __forceinline__ void each(float (&x)[COUNT], F f) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) x[i] = f(x[i]);
}

__device__ __forceinline__ void load_values(float (&x)[WIDTH], const Octets &from, int64_t row, int64_t col) {
  RawOctet raw;
  raw.load_whole(from, row, col);
  raw.to_floats(x, from.m.dtype);
}

__device__ __forceinline__ void load_values(float (&x)[1], const Octets &from, int64_t row, int64_t col) {
  int64_t at = row * from.m.stride + col;
  if (from.m.dtype == INT4MM_FLOAT32)
    x[0] = ((const float *)from.m.data)[at];
  else if (from.m.dtype == INT4MM_FLOAT16)
    x[0] = __half2float(((const __half *)from.m.data)[at]);
  else
    x[0] = __bfloat162float(((const __nv_bfloat16 *)from.m.data)[at]);
}

template <int COUNT>
__device__ __forceinline__ void store_values(const Octets &to, int64_t row, int64_t col, const float (&x)[COUNT]) {
  int4mm_for_out_dtype(to.m.dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    typedef typename int4mm_out_word<DTYPE>::type Word;
    Word *out = (Word *)to.m.data + row * to.m.stride + col;
    if constexpr (COUNT == WIDTH)
      int4mm_store_vector<DTYPE>(out, x);
    else
      out[0] = int4mm_round<DTYPE>(x[0]);
  });
}

} // namespace
#endif
