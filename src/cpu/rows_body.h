/*
 * The loops behind int4mm_rows, in plain C: included by each instruction set's file after INT4MM_ROWS_TABLE names the
 * table to define. Loops are shaped for the vectoriser: no branches, no aliasing, one width at a time. Half precision
 * takes the machine's conversions where the flags allow them.
 */
#include <string.h>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../numeric.h"
#include "rows.h"

static bool rows_narrow(int8_t *restrict q, const void *restrict src, int32_t dtype, int64_t n) {
  uint32_t outside = 0;
  if (dtype == INT4MM_INT8) {
    const int8_t *s = src;
    uint8_t seen = 0;
    for (int64_t i = 0; i < n; i++) {
      seen |= (uint8_t)(s[i] + 8);
      q[i] = s[i];
    }
    outside = seen;
  } else {
    const int32_t *s = src;
    for (int64_t i = 0; i < n; i++) {
      outside |= (uint32_t)s[i] + 8u;
      q[i] = (int8_t)s[i];
    }
  }
  return outside < 16;
}

static void rows_widen(void *restrict dst, int32_t dtype, const int8_t *restrict q, int64_t n) {
  if (dtype == INT4MM_INT8) {
    memcpy(dst, q, (size_t)n);
  } else {
    int32_t *d = dst;
    for (int64_t i = 0; i < n; i++) d[i] = q[i];
  }
}

static void rows_pack_along(uint32_t *restrict words, const int8_t *restrict q, int64_t n, uint32_t flip) {
  for (int64_t i = 0; i < n; i++) {
    uint64_t x; /* eight bytes; nibbles close up in three steps (little-endian, as every supported machine is) */
    memcpy(&x, q + 8 * i, 8);
    x &= 0x0f0f0f0f0f0f0f0fu;
    x = (x | x >> 4) & 0x00ff00ff00ff00ffu;
    x = (x | x >> 8) & 0x0000ffff0000ffffu;
    x = x | x >> 16;
    words[i] = (uint32_t)x ^ flip;
  }
}

static void rows_unpack_along(int8_t *restrict q, const uint32_t *restrict words, int64_t n, uint32_t flip) {
  for (int64_t i = 0; i < n; i++) {
    uint64_t x = words[i] ^ flip ^ INT4MM_ENCODING_FLIP; /* nibble = value + 8 */
    x = (x | x << 16) & 0x0000ffff0000ffffu;
    x = (x | x << 8) & 0x00ff00ff00ff00ffu;
    x = (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
    /* minus 8 in every byte, without a borrow between bytes */
    x = ((x | 0x8080808080808080u) - 0x0808080808080808u) ^ 0x8080808080808080u;
    memcpy(q + 8 * i, &x, 8);
  }
}

static void rows_pack_across(uint32_t *restrict words, const int8_t *restrict q, int64_t pitch, int64_t n,
                             uint32_t flip) {
  const int8_t *q0 = q, *q1 = q + pitch, *q2 = q + 2 * pitch, *q3 = q + 3 * pitch;
  const int8_t *q4 = q + 4 * pitch, *q5 = q + 5 * pitch, *q6 = q + 6 * pitch, *q7 = q + 7 * pitch;
  for (int64_t i = 0; i < n; i++) {
    uint8_t p0 = (uint8_t)((q0[i] & 15) | q1[i] * 16), p1 = (uint8_t)((q2[i] & 15) | q3[i] * 16);
    uint8_t p2 = (uint8_t)((q4[i] & 15) | q5[i] * 16), p3 = (uint8_t)((q6[i] & 15) | q7[i] * 16);
    words[i] = ((uint32_t)p0 | (uint32_t)p1 << 8 | (uint32_t)p2 << 16 | (uint32_t)p3 << 24) ^ flip;
  }
}

static void rows_unpack_across(int8_t *restrict q, int64_t pitch, const uint32_t *restrict words, int64_t n,
                               uint32_t flip) {
  for (int r = 0; r < 8; r++) {
    int8_t *restrict row = q + r * pitch;
    for (int64_t i = 0; i < n; i++) row[i] = (int8_t)((int32_t)((words[i] ^ flip) << (28 - 4 * r)) >> 28);
  }
}

/* ---- floats ----------------------------------------------------------------------------------------------------- */

/* The machine's conversion quiets a signalling NaN, int4mm_from_half keeps it: blocks with a NaN go through the latter.
 */
static void rows_from_half(float *restrict dst, const uint16_t *restrict src, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    __m512 x = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(src + i)));
    _mm512_storeu_ps(dst + i, x);
    if (_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q)) {
      for (int j = 0; j < 16; j++) dst[i + j] = int4mm_from_half(src[i + j]);
    }
  }
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    __m256 x = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(src + i)));
    _mm256_storeu_ps(dst + i, x);
    if (_mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q))) {
      for (int j = 0; j < 8; j++) dst[i + j] = int4mm_from_half(src[i + j]);
    }
  }
#elif defined(__aarch64__)
  for (; i + 4 <= n; i += 4) {
    float32x4_t x = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(src + i)));
    vst1q_f32(dst + i, x);
    if (vminvq_u32(vceqq_f32(x, x)) == 0) {
      for (int j = 0; j < 4; j++) dst[i + j] = int4mm_from_half(src[i + j]);
    }
  }
#endif
  for (; i < n; i++) dst[i] = int4mm_from_half(src[i]);
}

static void rows_to_half(uint16_t *restrict dst, const float *restrict src, int64_t n) {
  int64_t i = 0; /* each NaN becomes 0x7fff, whatever its payload */
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512BW__)
  for (; i + 16 <= n; i += 16) {
    __m512 x = _mm512_loadu_ps(src + i);
    __m256i half = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    _mm256_storeu_si256((__m256i *)(dst + i), _mm256_mask_set1_epi16(half, nan, 0x7fff));
  }
#elif defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    __m256 x = _mm256_loadu_ps(src + i);
    x = _mm256_blendv_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)), _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    _mm_storeu_si128((__m128i *)(dst + i), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#elif defined(__aarch64__)
  for (; i + 4 <= n; i += 4) {
    float32x4_t x = vld1q_f32(src + i);
    uint16x4_t half = vreinterpret_u16_f16(vcvt_f16_f32(x)), number = vmovn_u32(vceqq_f32(x, x));
    vst1_u16(dst + i, vbsl_u16(number, half, vdup_n_u16(0x7fff)));
  }
#endif
  for (; i < n; i++) dst[i] = int4mm_to_half(src[i]);
}

static void rows_to_bfloat(uint16_t *restrict dst, const float *restrict src, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, src + i, 4);
    uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    dst[i] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : rounded);
  }
}

static void rows_to_float(float *restrict dst, const void *restrict src, int32_t dtype, int64_t n) {
  switch (dtype) {
  case INT4MM_FLOAT32:
    memcpy(dst, src, (size_t)n * 4);
    break;
  case INT4MM_FLOAT16:
    rows_from_half(dst, src, n);
    break;
  case INT4MM_BFLOAT16:
    for (int64_t i = 0; i < n; i++) dst[i] = int4mm_from_bfloat(((const uint16_t *)src)[i]);
    break;
  case INT4MM_INT8:
    for (int64_t i = 0; i < n; i++) dst[i] = (float)((const int8_t *)src)[i];
    break;
  default:
    for (int64_t i = 0; i < n; i++) dst[i] = (float)((const int32_t *)src)[i];
  }
}

static void rows_from_float(void *restrict dst, int32_t dtype, const float *restrict src, int64_t n) {
  switch (dtype) {
  case INT4MM_FLOAT16:
    rows_to_half(dst, src, n);
    break;
  case INT4MM_BFLOAT16:
    rows_to_bfloat(dst, src, n);
    break;
  default:
    memcpy(dst, src, (size_t)n * 4);
  }
}

/* ---- quantising ------------------------------------------------------------------------------------------------- */

static uint32_t rows_absmax(const float *restrict x, int64_t n) {
  int32_t most = 0; /* signed: the sign bit is gone, and every instruction set has a signed maximum */
  for (int64_t i = 0; i < n; i++) {
    int32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return (uint32_t)most;
}

static inline int32_t rows_max_bits(int32_t most, const float *x) {
  int32_t bits;
  memcpy(&bits, x, 4);
  bits &= 0x7fffffff;
  return bits > most ? bits : most;
}

/* Four rows at a time: memory gives more when it is asked in several places. */
static void rows_absmax_columns(uint32_t *restrict most, const float *restrict x, int64_t stride, int64_t rows,
                                int64_t n) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4, x += 4 * stride) {
    const float *x1 = x + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    for (int64_t i = 0; i < n; i++) {
      int32_t first = rows_max_bits(rows_max_bits((int32_t)most[i], x + i), x1 + i);
      most[i] = (uint32_t)rows_max_bits(rows_max_bits(first, x2 + i), x3 + i);
    }
  }
  for (; r < rows; r++, x += stride) {
    for (int64_t i = 0; i < n; i++) most[i] = (uint32_t)rows_max_bits((int32_t)most[i], x + i);
  }
}

/* Clamped first, which changes nothing, so that adding and taking away 1.5 * 2^23 rounds to the nearest even integer:
 * float32 has no fraction bits up there. NaN becomes -7. */
static inline int8_t rows_round(float ratio) {
  ratio = ratio > -7.0f ? ratio : -7.0f;
  ratio = ratio < 7.0f ? ratio : 7.0f;
  uint32_t bits = int4mm_float_bits(int4mm_add(ratio, 12582912.0f));
  return (int8_t)(bits - 0x4b400000u);
}

#if defined(__AVX512F__)
/* rows_round of 16: compilers make it twice as long. */
static inline __m128i rows_round16(__m512 ratio) {
  ratio = _mm512_max_ps(ratio, _mm512_set1_ps(-7.0f)); /* the second operand where one is NaN */
  ratio = _mm512_add_ps(_mm512_min_ps(ratio, _mm512_set1_ps(7.0f)), _mm512_set1_ps(12582912.0f));
  return _mm512_cvtepi32_epi8(_mm512_castps_si512(ratio));
}
#endif

static void rows_quantize(int8_t *restrict q, const float *restrict x, float scale, int64_t n) {
  int64_t i = 0;
  if (scale == 0.0f) {
    memset(q, 0, (size_t)n);
    return;
  }
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    __m512 ratio = _mm512_div_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(scale));
    _mm_storeu_si128((__m128i *)(q + i), rows_round16(ratio));
  }
#endif
  for (; i < n; i++) q[i] = rows_round(x[i] / scale);
}

/* Where the scale is 0, so is the whole column, or less than seven times the smallest number: by 1 it rounds to 0. */
static void rows_quantize_columns(int8_t *restrict q, const float *restrict x, const float *restrict scales,
                                  int64_t n) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= n; i += 16) {
    __m512 scale = _mm512_loadu_ps(scales + i);
    __mmask16 none = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_EQ_OQ);
    scale = _mm512_mask_mov_ps(scale, none, _mm512_set1_ps(1.0f));
    _mm_storeu_si128((__m128i *)(q + i), rows_round16(_mm512_div_ps(_mm512_loadu_ps(x + i), scale)));
  }
#endif
  for (; i < n; i++) q[i] = rows_round(x[i] / (scales[i] == 0.0f ? 1.0f : scales[i]));
}

static void rows_dequantize(float *restrict x, const int8_t *restrict q, float scale, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = (float)q[i] * scale;
}

static void rows_dequantize_columns(float *restrict x, const int8_t *restrict q, const float *restrict scales,
                                    int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = (float)q[i] * scales[i];
}

/* ---- random numbers --------------------------------------------------------------------------------------------- */

/* int4mm_philox over as many blocks as a register has 64-bit lanes. Only the low halves of lanes count: the widening
 * product ignores the rest. */
#if defined(__AVX512F__)
enum { PHILOX_LANES = 8 };
#define PHILOX_MULTIPLY(x, y) (philox_lanes) _mm512_mul_epu32((__m512i)(x), (__m512i)(y))
#elif defined(__AVX2__)
enum { PHILOX_LANES = 4 };
#define PHILOX_MULTIPLY(x, y) (philox_lanes) _mm256_mul_epu32((__m256i)(x), (__m256i)(y))
#elif defined(__SSE2__)
enum { PHILOX_LANES = 2 };
#define PHILOX_MULTIPLY(x, y) (philox_lanes) _mm_mul_epu32((__m128i)(x), (__m128i)(y))
#elif defined(__aarch64__)
enum { PHILOX_LANES = 2 };
#define PHILOX_MULTIPLY(x, y) (philox_lanes) vmull_u32(vmovn_u64((uint64x2_t)(x)), vmovn_u64((uint64x2_t)(y)))
#else
enum { PHILOX_LANES = 4 };
#define PHILOX_MULTIPLY(x, y) (((x)&0xffffffffu) * ((y)&0xffffffffu))
#endif
typedef uint64_t philox_lanes __attribute__((vector_size(8 * PHILOX_LANES), aligned(4), may_alias));

static void rows_philox(uint32_t *restrict words, uint64_t seed, uint64_t first, uint32_t sequence) {
  philox_lanes c0, c1, c2 = (philox_lanes){0} + sequence, c3 = (philox_lanes){0};
  const philox_lanes m0 = (philox_lanes){0} + 0xD2511F53u, m1 = (philox_lanes){0} + 0xCD9E8D57u;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int i = 0; i < PHILOX_LANES; i++) c0[i] = first + (uint64_t)i;
  c1 = c0 >> 32;
  for (int round = 0; round < 10; round++) {
    philox_lanes p0 = PHILOX_MULTIPLY(c0, m0), p1 = PHILOX_MULTIPLY(c2, m1);
    c0 = p1 >> 32 ^ c1 ^ k0;
    c1 = p1;
    c2 = p0 >> 32 ^ c3 ^ k1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  philox_lanes low = (c0 & 0xffffffffu) | c1 << 32,
               high = (c2 & 0xffffffffu) | c3 << 32; /* two words of a block each */
  for (int i = 0; i < PHILOX_LANES; i++) {
    uint64_t block[2] = {low[i], high[i]};
    memcpy(words + 4 * i, block, 16);
  }
}

static void rows_random(uint32_t *restrict words, uint64_t seed, uint64_t first, uint32_t sequence, int64_t n) {
  int64_t i = 0;
  for (; i + PHILOX_LANES <= n; i += PHILOX_LANES) rows_philox(words + 4 * i, seed, first + (uint64_t)i, sequence);
  for (; i < n; i++) int4mm_philox(seed, first + (uint64_t)i, sequence, words + 4 * i);
}

static void rows_uniform(float *restrict x, const uint32_t *restrict words, float low, float high, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = int4mm_uniform(words[i], low, high);
}

const int4mm_rows INT4MM_ROWS_TABLE = {rows_narrow,      rows_widen,
                                       rows_pack_along,  rows_unpack_along,
                                       rows_pack_across, rows_unpack_across,
                                       rows_to_float,    rows_from_float,
                                       rows_absmax,      rows_absmax_columns,
                                       rows_quantize,    rows_quantize_columns,
                                       rows_dequantize,  rows_dequantize_columns,
                                       rows_random,      rows_uniform};
