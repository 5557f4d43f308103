/*
 * Eight int4 products with two dp4a, for the kernels that serve any architecture.
 *
 * The bytes are 16 times their value (unpack.cuh), so a product is 256 times too large: sums are kept over at most
 * INT4MM_SPAN values of k, which int32 holds, and then divided by 256, which is exact.
 */
#ifndef INT4MM_NIBBLES_CUH
#define INT4MM_NIBBLES_CUH

#include "common/unpack.cuh"

/* Values of k whose scaled sum fits: 65536 * 64 * 256 = 2^30. */
#define INT4MM_SPAN 65536

/* sum + four signed byte products. */
__device__ __forceinline__ int32_t int4mm_dot4(uint32_t a, uint32_t b, int32_t sum) {
  return __dp4a((int32_t)a, (int32_t)b, sum);
}

/* sum + 256 times the eight products of two words in two's complement. */
__device__ __forceinline__ int32_t int4mm_dot8(uint32_t a, uint32_t b, int32_t sum) {
  const Unpacker<false> unpack(0);
  return int4mm_dot4(unpack.odd(a), unpack.odd(b), int4mm_dot4(unpack.even(a), unpack.even(b), sum));
}

#endif
