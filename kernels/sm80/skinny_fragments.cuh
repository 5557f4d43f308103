/*
 * What skinny_general.cuh multiplies: A as int4, int8 or 16-bit floats, and B unpacked for it.
 *
 * Slice j of a k-block is its words 4j .. 4j + 3 of B, 32 values; lane-in-quad t has word 4j + t of the rows and
 * columns that an mma gives it, and what stands beside it in A: 4, 8 or 16 bytes. The values of a word go to the k of
 * an mma in an order that unpacking B makes cheap, and A is permuted alike.
 *
 * A kind of A is a policy:
 *   Sum           int32_t or float
 *   STEPS         mma instructions for a slice: of k32 for int8, k16 for floats
 *   WORDS         32-bit words of A beside a word of B
 *   SHIFT         sums are 2^SHIFT times too large (unpack.cuh)
 *   ONES          a register of an mma that is 1 throughout
 *   ONES_SHIFT    sums over A times ones are 2^ONES_SHIFT times too large
 *   UNSCALE       what sums of floats are to be multiplied with, a power of two
 *   mask          makes words of A past the `valid` ones of a k-block 0 where zeroed memory is not
 *   fragments     an mma's registers of A for each step, from words of rows g and g + 8
 *   B             unpacks a word of B for column i of a lane's four: two registers for each step; of floats less the
 *                 zero points of set_zeros, a byte for each of these columns, from -120 to 119
 */
#ifndef INT4MM_SKINNY_FRAGMENTS_CUH
#define INT4MM_SKINNY_FRAGMENTS_CUH

#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/ptx.cuh"
#include "common/unpack.cuh"

namespace {

/* ---- integers ---- */

/* B at 16 times its value; zero points are taken from the sums. */
struct IntegerB {
  Unpacker<false> unpack;
  __device__ __forceinline__ explicit IntegerB(uint32_t xor_mask) : unpack(xor_mask) {}
  __device__ __forceinline__ void set_zeros(uint32_t) {}
  __device__ __forceinline__ void operator()(uint32_t (&to)[2], uint32_t word, int) const {
    to[0] = unpack.even(word), to[1] = unpack.odd(word);
  }
};

struct IntegerA {
  typedef int32_t Sum;
  typedef IntegerB B;
  static constexpr int STEPS = 1;
  static constexpr float UNSCALE = 1;
  static constexpr uint32_t ONES = 0x01010101u;
  static __device__ __forceinline__ void mma(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k32(acc, a, b0, b1);
  }
};

/* Int4 tensor cores take a slice's words as they lie. */
struct WordsB {
  uint32_t xor_mask;
  __device__ __forceinline__ explicit WordsB(uint32_t xor_mask) : xor_mask(xor_mask) {}
  __device__ __forceinline__ void set_zeros(uint32_t) {}
  __device__ __forceinline__ void operator()(uint32_t (&to)[2], uint32_t word, int) const {
    to[0] = to[1] = word ^ xor_mask;
  }
};

struct Int4A : IntegerA {
  typedef std::conditional<ptx::HAS_INT4, WordsB, IntegerB>::type B;
  static constexpr int WORDS = 1, SHIFT = ptx::HAS_INT4 ? 0 : 8, ONES_SHIFT = ptx::HAS_INT4 ? 0 : 4;
  static constexpr uint32_t ONES = ptx::HAS_INT4 ? 0x11111111u : IntegerA::ONES;
  Unpacker<false> unpack;
  uint32_t zero;
  __device__ __forceinline__ explicit Int4A(uint32_t xor_mask) : unpack(xor_mask), zero(xor_mask) {}
  __device__ __forceinline__ void mask(uint32_t (&x)[1], uint32_t (&y)[1], int j, int valid) const {
    if (4 * j + (int)threadIdx.x % 4 >= valid) x[0] = y[0] = zero;
  }
  __device__ __forceinline__ void fragments(uint32_t (&to)[1][4], const uint32_t (&x)[1],
                                            const uint32_t (&y)[1]) const {
    if constexpr (ptx::HAS_INT4) {
      to[0][0] = x[0] ^ zero, to[0][1] = y[0] ^ zero;
    } else {
      to[0][0] = unpack.even(x[0]), to[0][1] = unpack.even(y[0]);
      to[0][2] = unpack.odd(x[0]), to[0][3] = unpack.odd(y[0]);
    }
  }
  static __device__ __forceinline__ void mma(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (ptx::HAS_INT4)
      ptx::mma_m16n8k32_s4_movable(acc, {a[0], a[1]}, b0);
    else
      ptx::mma_m16n8k32(acc, a, b0, b1);
  }
};

struct Int8A : IntegerA {
  static constexpr int WORDS = 2, SHIFT = 4, ONES_SHIFT = 0;
  __device__ __forceinline__ explicit Int8A(uint32_t) {}
  __device__ __forceinline__ void mask(uint32_t (&)[2], uint32_t (&)[2], int, int) const {}
  __device__ __forceinline__ void fragments(uint32_t (&to)[1][4], const uint32_t (&x)[2],
                                            const uint32_t (&y)[2]) const {
    to[0][0] = __byte_perm(x[0], x[1], 0x6420), to[0][1] = __byte_perm(y[0], y[1], 0x6420);
    to[0][2] = __byte_perm(x[0], x[1], 0x7531), to[0][3] = __byte_perm(y[0], y[1], 0x7531);
  }
};

/* ---- floats ---- */

/* Pairs of b - z as floats of 16 bits, exact: values k and k + 4 of a word. A nibble beside the bits of 1024 is 1024 +
 * u in float16, with u = b + 8; four bits higher it is 1024 + 16 u, which a multiplication turns into 64 + u. */
struct Float16B {
  static constexpr float UNSCALE = 1;
  uint32_t magic[2];  /* for a nibble at its place and four bits higher */
  __half2 less[2][4]; /* what is to be taken away, for each column */
  __device__ __forceinline__ explicit Float16B(uint32_t xor_mask) {
    uint32_t fix = xor_mask ^ 0x88888888u;
    magic[0] = 0x64006400u ^ (fix & 0x000f000fu), magic[1] = 0x64006400u ^ (fix & 0x00f000f0u);
#pragma unroll
    for (int i = 0; i < 4; i++) less[0][i] = __float2half2_rn(-1032), less[1][i] = __float2half2_rn(-72);
  }
  /* A byte z + 128 beside the bits of 1024 is 1152 + z. */
  __device__ __forceinline__ void set_zeros(uint32_t bytes) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t bits = __byte_perm(bytes ^ 0x80808080u, 0x64, 0x4040 + 0x0101 * i);
      __half2 x;
      memcpy(&x, &bits, sizeof x);
      less[0][i] = __hsub2(__float2half2_rn(120), x), less[1][i] = __hsub2(__float2half2_rn(1080), x);
    }
  }
  __device__ __forceinline__ uint32_t pair(uint32_t word, int i, int place) const {
    uint32_t bits = (word & (place ? 0x00f000f0u : 0x000f000fu)) ^ magic[place];
    __half2 x;
    memcpy(&x, &bits, sizeof x);
    x = place ? __hfma2(x, __float2half2_rn(0.0625f), less[1][i]) : __hadd2(x, less[0][i]);
    memcpy(&bits, &x, sizeof x);
    return bits;
  }
  __device__ __forceinline__ void operator()(uint32_t (&to)[4], uint32_t word, int i) const {
    to[0] = pair(word, i, 0), to[1] = pair(word, i, 1);
    word >>= 8;
    to[2] = pair(word, i, 0), to[3] = pair(word, i, 1);
  }
};

/* A quarter of it in bfloat16: 128 + u, whose mantissa has room for a nibble at its place alone; four bits higher the
 * bits are 16 u times the least subnormal, 2^-133, which the largest power of two makes u / 4. */
struct Bfloat16B {
  static constexpr float UNSCALE = 4;
  uint32_t magic[2];
  __nv_bfloat162 less[2][4];
  __device__ __forceinline__ explicit Bfloat16B(uint32_t xor_mask) {
    uint32_t fix = xor_mask ^ 0x88888888u;
    magic[0] = 0x43004300u ^ (fix & 0x000f000fu), magic[1] = fix & 0x00f000f0u;
#pragma unroll
    for (int i = 0; i < 4; i++) less[0][i] = __float2bfloat162_rn(-34), less[1][i] = __float2bfloat162_rn(-2);
  }
  /* A byte z + 128 beside the bits of 2^23 is 2^23 + 128 + z. */
  __device__ __forceinline__ void set_zeros(uint32_t bytes) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float z = __uint_as_float(__byte_perm(bytes ^ 0x80808080u, 0x4b, 0x4550 + i)) - 8388736.0f;
      less[0][i] = __float2bfloat162_rn(__fmaf_rn(z, -0.25f, -34));
      less[1][i] = __float2bfloat162_rn(__fmaf_rn(z, -0.25f, -2));
    }
  }
  __device__ __forceinline__ uint32_t pair(uint32_t word, int i, int place) const {
    uint32_t bits = (word & (place ? 0x00f000f0u : 0x000f000fu)) ^ magic[place];
    __nv_bfloat162 x;
    memcpy(&x, &bits, sizeof x);
    x = __hfma2(x, __float2bfloat162_rn(place ? 0x1p127f : 0.25f), less[place][i]);
    memcpy(&bits, &x, sizeof x);
    return bits;
  }
  __device__ __forceinline__ void operator()(uint32_t (&to)[4], uint32_t word, int i) const {
    to[0] = pair(word, i, 0), to[1] = pair(word, i, 1);
    word >>= 8;
    to[2] = pair(word, i, 0), to[3] = pair(word, i, 1);
  }
};

template <bool BFLOAT16> struct FloatA {
  typedef float Sum;
  typedef typename std::conditional<BFLOAT16, Bfloat16B, Float16B>::type B;
  static constexpr int STEPS = 2, WORDS = 4, SHIFT = 0, ONES_SHIFT = 0;
  static constexpr float UNSCALE = B::UNSCALE;
  __device__ __forceinline__ explicit FloatA(uint32_t) {}
  __device__ __forceinline__ void mask(uint32_t (&)[4], uint32_t (&)[4], int, int) const {}
  static __device__ __forceinline__ void mma(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k16<BFLOAT16>(acc, a, b0, b1);
  }
  /* Values k and k + 4 of the eight beside a word of B, for k = 0 and 1, then 2 and 3. */
  __device__ __forceinline__ void fragments(uint32_t (&to)[2][4], const uint32_t (&x)[4],
                                            const uint32_t (&y)[4]) const {
#pragma unroll
    for (int step = 0; step < 2; step++) {
      to[step][0] = __byte_perm(x[step], x[step + 2], 0x5410), to[step][1] = __byte_perm(y[step], y[step + 2], 0x5410);
      to[step][2] = __byte_perm(x[step], x[step + 2], 0x7632), to[step][3] = __byte_perm(y[step], y[step + 2], 0x7632);
    }
  }
};

} // namespace
#endif
