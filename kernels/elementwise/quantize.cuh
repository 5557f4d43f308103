/*
 * Quantising a warp's 1024 values in its registers, for the kernels that do nothing else (quantize.cu names them) and
 * for products that make their own A. The bits are those of src/cpu.
 */
#ifndef INT4MM_QUANTIZE_CUH
#define INT4MM_QUANTIZE_CUH

#include <type_traits>

#include "elementwise/elementwise.cuh"
#include "elementwise/rotation.cuh"

namespace {

/* ---- loading ---- */

/* Values of a row or a column of a matrix: `step` is what lies between them. */
struct Line {
  const char *data;
  int64_t step;
  int count; /* of a warp's values; none if negative */
  int dtype;

  __device__ __forceinline__ float operator[](int index) const {
    float x = 0;
    int4mm_for_out_dtype(
        dtype, [&](auto d) { x = to_float(((const typename Element<decltype(d)::value>::type *)data)[index * step]); });
    return x;
  }
};

/* Row (dim 1) or column (dim 0) `index`, from value `first` on: at most a warp's values. */
__device__ __forceinline__ Line line_of(const int4mm_matrix &m, int dim, int64_t index, int64_t first,
                                        int values = WARP_VALUES) {
  int64_t left = (dim ? m.cols : m.rows) - first, start = dim ? index * m.stride + first : first * m.stride + index;
  return {static_cast<const char *>(m.data) + start * (m.dtype == INT4MM_FLOAT32 ? 4 : 2), dim ? 1 : m.stride,
          (int)min(left, (int64_t)values), m.dtype};
}

/* Places `values` of a line in memory, in order; zeros beyond its end. */
template <int UNROLL> __device__ __forceinline__ void gather(float *memory, const Line &line, int values) {
  const int left = line.count - lane_id();
  float *to = memory + place(lane_id());
  __syncwarp();
  int4mm_for_out_dtype(line.dtype, [&](auto dtype) {
    const auto *from = (const typename Element<decltype(dtype)::value>::type *)line.data + lane_id() * line.step;
#pragma unroll UNROLL
    for (int i = 0; i < values; i += 32, from += 32 * line.step) to[place(i)] = i < left ? to_float(*from) : 0;
  });
}

/* COUNT values as they lie in memory, as floats. */
template <class T, int COUNT> __device__ __forceinline__ void to_floats(float (&x)[COUNT], const uint32_t *words) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    if constexpr (sizeof(T) == 4)
      x[i] = __uint_as_float(words[i]);
    else if constexpr (std::is_same_v<T, __nv_bfloat16>)
      x[i] = __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    else
      x[i] = to_float(((const T *)words)[i]);
  }
}

/* The same into registers, from a row of whole vectors of 16 bytes, aligned. */
template <int C> __device__ __forceinline__ void load_vectors(float (&x)[C][CHUNK], const Line &row) {
  int4mm_for_out_dtype(row.dtype, [&](auto dtype) {
    typedef typename Element<decltype(dtype)::value>::type T;
    constexpr int VECTORS = CHUNK * sizeof(T) / 16;
    uint4 raw[C][VECTORS] = {};
#pragma unroll
    for (int c = 0; c < C; c++) {
      int at = first_value(c, false);
#pragma unroll
      for (int v = 0; v < VECTORS; v++)
        if (at + v * 16 / (int)sizeof(T) < row.count) raw[c][v] = __ldg((const uint4 *)((const T *)row.data + at) + v);
    }
#pragma unroll
    for (int c = 0; c < C; c++) to_floats<T>(x[c], (const uint32_t *)raw[c]);
  });
}

/* The larger magnitude; NaN where one is. */
__device__ __forceinline__ float max_magnitude(float most, float x) {
#if __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(most) : "f"(fabsf(x)));
  return most;
#else
  return __uint_as_float(max(__float_as_uint(most), magnitude(x)));
#endif
}

template <int COUNT> __device__ __forceinline__ float largest(const float (&x)[COUNT]) {
  float most = 0;
#pragma unroll
  for (int i = 0; i < COUNT; i++) most = max_magnitude(most, x[i]);
  return most;
}

/* Rotates a warp's values but for the factor; `most` becomes the largest magnitude of each of this lane's chunks.
 * place_all() places the values in memory once more, in order. */
template <int C, class F>
__device__ __forceinline__ void rotate_values(float (&x)[C][CHUNK], float (&most)[C], float *memory, int block,
                                              F place_all) {
  auto find_largest = [&] {
#pragma unroll
    for (int c = 0; c < C; c++) most[c] = largest(x[c]);
  };
  if (block) rotate(x, memory, block);
  find_largest();
  if (block && __any_sync(0xffffffffu, magnitude(largest(most)) >= __float_as_uint(LARGE))) {
    place_all();
    rotate_large(memory, block, C * 32 * CHUNK);
    fetch(x, memory, block > CHUNK);
    find_largest();
  }
}

/* A warp's values of a row or column, rotated but for the factor; zeros beyond the end. `vector`: its vectors of 16
 * bytes are whole and aligned. Returns the largest magnitude of this lane's. */
template <int C>
__device__ __forceinline__ float make_values(float (&x)[C][CHUNK], float *memory, const Line &line, bool vector,
                                             int block) {
  constexpr int VALUES = C * 32 * CHUNK;
  float most[C];
  if (vector) {
    load_vectors(x, line);
  } else {
    gather<8>(memory, line, VALUES);
    fetch(x, memory, false);
  }
  rotate_values(x, most, memory, block, [&] { gather<1>(memory, line, VALUES); });
  return largest(most);
}

/* ---- scales ---- */

/* The scale of an absmax, given as its bits; infinite where that is infinite or NaN. */
__device__ __forceinline__ float scale_of(uint32_t absmax, float clip, int qmax) {
  return __fdiv_rn(__fmul_rn(__uint_as_float(min(absmax, INFINITE)), clip), (float)qmax);
}

/* Whether reciprocals and products with this scale stay among the normal numbers. */
__device__ __forceinline__ bool is_ordinary(float scale) {
  return scale >= 0x1p-100f && scale <= 0x1p100f;
}

__device__ __forceinline__ uint32_t warp_max(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, value);
#else
  for (int lane = 16; lane > 0; lane /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
#endif
}

/* ---- quantising ---- */

template <bool INT8> constexpr int QMAX = INT8 ? 127 : 7;
template <bool INT8> constexpr int PER_WORD = INT8 ? 4 : 8;
template <bool INT8> constexpr int WORDS = CHUNK / PER_WORD<INT8>; /* of a chunk */

__host__ __device__ __forceinline__ bool makes_int8(const int4mm_pack_job &job) {
  return job.packed.dtype == INT4MM_INT8 && !job.widened;
}

__device__ __forceinline__ int qmax_of(const int4mm_pack_job &job) {
  return makes_int8(job) ? QMAX<true> : QMAX<false>;
}

/* A scale to divide by: moved, with what is divided, by a power of two to where reciprocals are exact to half a unit;
 * the power is 0 where every q is 0. */
struct Divisor {
  float power, scale, reciprocal;

  __device__ __forceinline__ explicit Divisor(float s) {
    power = is_ordinary(s) ? 1 : s == 0 || s == __uint_as_float(INFINITE) ? 0 : s < 1 ? 0x1p64f : 0x1p-64f;
    scale = power == 0 ? 1 : __fmul_rn(s, power);
    reciprocal = __frcp_rn(scale);
  }
};

constexpr float TO_INTEGER = 12582912.0f; /* 1.5 * 2^23: a sum with it is rounded to an integer */

/* x / scale rounded to an integer, in the low bits of a float. Two corrections of a product with the correctly rounded
 * reciprocal give the correctly rounded quotient (Markstein, "Computation of elementary functions on the IBM RISC
 * System/6000 processor", 1990); a quotient so small that they lose bits is rounded to 0 all the same. */
__device__ __forceinline__ float divide_and_round(float x, const Divisor &by, float qmax) {
  float y = __fmul_rn(x, by.reciprocal);
  y = __fmaf_rn(__fmaf_rn(-y, by.scale, x), by.reciprocal, y);
  y = __fmaf_rn(__fmaf_rn(-y, by.scale, x), by.reciprocal, y);
  return __fadd_rn(fminf(fmaxf(y, -qmax), qmax), TO_INTEGER);
}

/* The smallest of the low halves of three words, in the low half. */
__device__ __forceinline__ uint32_t min_low_halves(uint32_t x, uint32_t y, uint32_t z) {
#if __CUDA_ARCH__ >= 900
  return __vimin3_u16x2(x, y, z);
#else
  return min(min(x & 0xffffu, y & 0xffffu), z & 0xffffu);
#endif
}

/* The same byte of each. */
template <int BYTE> __device__ __forceinline__ uint32_t gather_bytes(uint32_t w, uint32_t x, uint32_t y, uint32_t z) {
  constexpr uint32_t PAIR = BYTE + 16 * (BYTE + 4);
  return __byte_perm(__byte_perm(w, x, PAIR), __byte_perm(y, z, PAIR << 8), 0x7610);
}

/* Where so many bits of fraction say that a quotient has to be divided to be rounded; see round_chunk. */
template <bool INT8> __device__ __forceinline__ bool is_near(uint32_t fraction) {
  return (fraction & 0xffffu) <= (INT8 ? 4 : 0);
}

/* round_half_even(fl(fl(x * factor) / scale)) in byte 2 of u; of int8, 128 more; `multiplier` is the product of factor
 * and the reciprocal of the scale. One multiplication and addition puts the quotient, and half an integer, above 16
 * bits of fraction (for int8 15, and a shift); the fraction is cut off. That is right where the fraction is farther
 * from 0 than all that was rounded, here and in the exact way: the reciprocal, its product with factor, x * factor and
 * the quotient, together less than 4 * 2^-24 of the quotient. Of 7.5 that is less than the half unit of the last place
 * within which a fraction becomes 0; of 127.5, less than one and a half, wherefore a unit is added and the fraction
 * compared with two. Returns the smallest fraction, of which is_near tells whether any is too near. */
template <bool INT8, int COUNT>
__device__ __forceinline__ uint32_t round_quotients(uint32_t (&u)[COUNT], const float (&x)[COUNT], float multiplier) {
  uint32_t least = 0xffff;
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    u[i] = __float_as_uint(__fmaf_rn(x[i], multiplier, INT8 ? 384.5f + 0x1p-15f : 192.5f));
    if (INT8) u[i] <<= 1;
    if (i % 2) least = min_low_halves(least, u[i - 1], u[i]);
  }
  return least;
}

/* The same, where what is too near is divided. */
template <bool INT8, int COUNT>
__device__ __forceinline__ void round_chunk(uint32_t (&u)[COUNT], const float (&x)[COUNT], const Divisor &by,
                                            float factor) {
  constexpr int FEW = 4; /* values that are divided together */
  if (!is_near<INT8>(round_quotients<INT8>(u, x, __fmul_rn(factor, by.reciprocal)))) return;
#pragma unroll
  for (int i = 0; i < COUNT; i += FEW)
    if (is_near<INT8>(min_low_halves(min_low_halves(u[i], u[i + 1], u[i + 2]), u[i + 3], u[i + 3]))) {
#pragma unroll
      for (int k = i; k < i + FEW; k++) {
        float rounded = divide_and_round(__fmul_rn(x[k], factor), by, QMAX<INT8>);
        u[k] = (__float_as_uint(rounded) << 16) ^ (INT8 ? 0x800000u : 0);
      }
    }
}

/* Values beyond `limit` made that. */
template <int COUNT> __device__ __forceinline__ void saturate(float (&x)[COUNT], float limit) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) x[i] = fminf(fmaxf(x[i], -limit), limit);
}

/* round_half_even(fl(x / scale)) in byte 0 of u, for values of at most 11 bits, as those of float16 and bfloat16 are,
 * of which many lie halfway. One correction leaves an error of 2^-47 of the quotient, and no quotient of 11 bits and 24
 * is as near as that to a border of what is rounded to some n + 1/2, as trying all shows. */
template <int COUNT>
__device__ __forceinline__ void round_short(uint32_t (&u)[COUNT], const float (&x)[COUNT], const Divisor &by) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const float y = __fmul_rn(x[i], by.reciprocal);
    const float corrected = __fmaf_rn(__fmaf_rn(-y, by.scale, x[i]), by.reciprocal, y);
    u[i] = __float_as_uint(__fadd_rn(corrected, TO_INTEGER));
  }
}

/* Two's complement words of the bytes that round_chunk leaves, or round_short, each of PER_WORD neighbours. */
template <bool INT8, bool SHORT = false, int COUNT>
__device__ __forceinline__ void pack_words(uint32_t (&words)[COUNT / PER_WORD<INT8>], const uint32_t (&u)[COUNT]) {
  constexpr int BYTE = SHORT ? 0 : 2;
#pragma unroll
  for (int i = 0; i < COUNT / PER_WORD<INT8>; i++) {
    const uint32_t *v = u + i * PER_WORD<INT8>;
    if constexpr (INT8) {
      words[i] = gather_bytes<BYTE>(v[0], v[1], v[2], v[3]) ^ (SHORT ? 0 : 0x80808080u);
    } else {
      uint32_t even = gather_bytes<BYTE>(v[0], v[2], v[4], v[6]), odd = gather_bytes<BYTE>(v[1], v[3], v[5], v[7]) << 4;
      words[i] = ((even ^ odd) & 0x0f0f0f0fu) ^ odd; /* even's low nibbles, odd's high ones */
    }
  }
}

/* Two's complement words of a chunk, each of PER_WORD neighbours in x. `saturates`: quotients may be beyond qmax. */
template <bool INT8, int COUNT>
__device__ __forceinline__ void quantize_chunk(uint32_t (&words)[COUNT / PER_WORD<INT8>], float (&x)[COUNT],
                                               const Divisor &by, float factor, bool saturates) {
  if (by.power != 1) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) x[i] = by.power == 0 ? 0 : __fmul_rn(__fmul_rn(x[i], factor), by.power);
    factor = 1, saturates = true;
  }
  if (saturates) saturate(x, __fdiv_rn(QMAX<INT8>, __fmul_rn(factor, by.reciprocal)));
  uint32_t u[COUNT];
  round_chunk<INT8>(u, x, by, factor);
  pack_words<INT8>(words, u);
}

/* Transposes the values of a word over as many neighbouring lanes: strided values become neighbours. Step by step a
 * lane and the one at a distance exchange what the other keeps: halves, bytes, nibbles. */
template <bool INT8> __device__ __forceinline__ void transpose_word(uint32_t &w) {
  int lane = lane_id();
  auto exchange = [&](int distance, uint32_t low, uint32_t high) {
    uint32_t other = __shfl_xor_sync(0xffffffffu, w, distance);
    w = __byte_perm(w, other, lane & distance ? high : low);
  };
  exchange(INT8 ? 2 : 4, 0x5410, 0x3276);
  exchange(INT8 ? 1 : 2, 0x6240, 0x3715);
  if constexpr (!INT8) {
    uint32_t other = __shfl_xor_sync(0xffffffffu, w, 1), keep = lane & 1 ? 0xf0f0f0f0u : 0x0f0f0f0fu;
    other = __funnelshift_l(other, other, lane & 1 ? 28 : 4);
    w = (w & keep) | (other & ~keep);
  }
}

template <bool INT8, int C> __device__ __forceinline__ void transpose_words(uint32_t (&words)[C][WORDS<INT8>]) {
#pragma unroll
  for (int c = 0; c < C; c++)
#pragma unroll
    for (int i = 0; i < WORDS<INT8>; i++) transpose_word<INT8>(words[c][i]);
}

/* Calls f(word, number) for a lane's words, which it puts in order: the number of a word's first value among the
 * warp's. */
template <bool INT8, int C, class F>
__device__ __forceinline__ void for_words(uint32_t (&words)[C][WORDS<INT8>], bool strided, F f) {
  constexpr int N = PER_WORD<INT8>;
  const int lane = lane_id(), thread = lane % CHUNK;
  int first = CHUNK * lane, step = N;
  if (strided) {
    transpose_words<INT8>(words);
    first = SPAN * (lane / CHUNK) + CHUNK * (thread % N) + thread / N * N, step = CHUNK * N;
  }
#pragma unroll
  for (int c = 0; c < C; c++)
#pragma unroll
    for (int i = 0; i < WORDS<INT8>; i++) f(words[c][i], first + 2 * SPAN * c + step * i);
}

} // namespace
#endif
