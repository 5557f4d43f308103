/*
 * What simple and tiled do for operands of every kind: A of words, int8 or floats; group scales, factors and zero
 * points of B. Eight values of k, a word of B, are taken at a time.
 */
#ifndef INT4MM_GENERAL_CUH
#define INT4MM_GENERAL_CUH

#include "common/epilogue.cuh"
#include "common/unpack.cuh"

namespace {

enum AKind { WORDS, BYTES, FLOATS };

/* Eight values along k: as int8 with the even ones and the odd ones in a dword each, or as float32. */
template <bool FLOAT> struct Eight { uint32_t even, odd; };
template <> struct Eight<true> { float x[8]; };

/* Values 8j .. 8j + 7 of row m of A, 0 past K. */
template <AKind KIND>
__device__ __forceinline__ Eight<KIND == FLOATS> load_a(const int4mm_problem &p, int64_t m, int64_t j) {
  Eight<KIND == FLOATS> a;
  int left = (int)min(p.K - 8 * j, (int64_t)8);
  int64_t at = m * p.a.stride + (KIND == WORDS ? j : 8 * j);
  if constexpr (KIND == WORDS) {
    uint32_t word = p.a.words[at] ^ p.a.xor_mask;
    a = {Unpacker<true>(0).even(word), Unpacker<true>(0).odd(word)};
  } else if constexpr (KIND == BYTES) {
    const uint8_t *from = (const uint8_t *)p.a.data + at;
    a = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      uint32_t byte = i < left ? (uint32_t)from[i] << i / 2 * 8 : 0;
      if (i % 2)
        a.odd |= byte;
      else
        a.even |= byte;
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) a.x[i] = i < left ? int4mm_load_float(p.a.data, p.a.dtype, at + i) : 0;
  }
  return a;
}

/* An int8 of a matrix for groups, or what stands for it where there is none. */
__device__ __forceinline__ int group_value(const int4mm_matrix &m, int64_t g, int64_t n, int otherwise) {
  return m.data ? ((const int8_t *)m.data)[g * m.stride + n] : otherwise;
}

/* The values (b - z) * f of word j of column n, which fit int8. With u = b + 8 and f the factor they are u f + c - 128
 * where c = 128 - (8 + z) f lies in 1 .. 240, so that no byte carries into another. */
template <bool FLOAT> __device__ __forceinline__ Eight<FLOAT> load_b(const int4mm_problem &p, int64_t j, int64_t n) {
  Eight<FLOAT> b;
  bool nk = p.b.layout == INT4MM_K_MAJOR;
  uint32_t u = p.b.words[nk ? n * p.b.stride + j : j * p.b.stride + n] ^ p.b.xor_mask ^ INT4MM_ENCODING_XOR;
  int64_t g = 8 * j / p.b.group;
  int f = group_value(p.b.factors, g, n, 1), z = group_value(p.b.zeros, g, n, 0);
  if constexpr (FLOAT) {
#pragma unroll
    for (int i = 0; i < 8; i++) b.x[i] = (float)(((int)(u >> 4 * i & 15) - 8 - z) * f);
  } else {
    uint32_t c = (uint32_t)(128 - (8 + z) * f) * 0x01010101u;
    b.even = ((u & 0x0f0f0f0fu) * f + c) ^ 0x80808080u, b.odd = ((u >> 4 & 0x0f0f0f0fu) * f + c) ^ 0x80808080u;
  }
  return b;
}

/* One output on its way along k: the sum of a group, and the chain over groups. */
template <bool FLOAT> struct Sum {
  int32_t acc = 0;
  float t = 0;
  __device__ __forceinline__ void add(const Eight<false> &a, const Eight<false> &b) {
    acc = __dp4a((int32_t)a.even, (int32_t)b.even, acc);
    acc = __dp4a((int32_t)a.odd, (int32_t)b.odd, acc);
  }
  __device__ __forceinline__ void end_group(float scale) { t = int4mm_next_group(t, acc, scale), acc = 0; }
  __device__ __forceinline__ float scaled(float scale_a, float scale_b) const {
    return int4mm_scale(acc, scale_a, scale_b);
  }
};

/* Eight sums, which keeps the error within that of K / 8 + 3 additions. */
template <> struct Sum<true> {
  float acc[8] = {}, t = 0;
  __device__ __forceinline__ void add(const Eight<true> &a, const Eight<true> &b) {
#pragma unroll
    for (int i = 0; i < 8; i++) acc[i] = __fmaf_rn(a.x[i], b.x[i], acc[i]);
  }
  __device__ __forceinline__ float total() const {
    return ((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]));
  }
  __device__ __forceinline__ void end_group(float scale) {
    t = __fmaf_rn(total(), scale, t);
#pragma unroll
    for (int i = 0; i < 8; i++) acc[i] = 0;
  }
  __device__ __forceinline__ float scaled(float, float scale_b) const {
    return __fmul_rn(total(), scale_b);
  }
};

/* After word j of column n: ends its group where that has a scale of its own and this was its last word. */
template <bool FLOAT>
__device__ __forceinline__ void end_word(Sum<FLOAT> &sum, const int4mm_problem &p, int64_t j, int64_t n) {
  const int4mm_matrix &scales = p.b.group_scales;
  if (!scales.data) return;
  int64_t k = 8 * (j + 1);
  if (k % p.b.group == 0 || k >= p.K)
    sum.end_group(int4mm_load_float(scales.data, scales.dtype, 8 * j / p.b.group * scales.stride + n));
}

template <bool FLOAT>
__device__ __forceinline__ void finish_sum(const Sum<FLOAT> &sum, const int4mm_problem &p, const EpilogueArguments &e,
                                           int64_t m, int64_t n) {
  float bias[1], x[1];
  int4mm_load_bias(bias, e, n, p.N);
  if (p.b.group_scales.data) {
    x[0] = sum.t;
    return int4mm_finish_sums<true>(e, m, n, p.N, bias, x);
  }
  x[0] = sum.scaled(FLOAT ? 1 : e.scale_a[m], e.scale_b[n]);
  int4mm_finish_scaled<true>(e, m, n, p.N, bias, x);
}

/* Calls f(kind), a constant: that of A. */
template <class F> void for_kind_of_a(const int4mm_problem *problem, F f) {
  if (problem->a.dtype == INT4MM_INT32)
    f(int4mm_constant<WORDS>());
  else if (problem->a.dtype == INT4MM_INT8)
    f(int4mm_constant<BYTES>());
  else
    f(int4mm_constant<FLOATS>());
}

} // namespace
#endif
