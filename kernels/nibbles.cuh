/*
 * Eight int4 products with two dp4a, for the kernels that serve any architecture.
 *
 * In two's complement, w & 0xF0F0F0F0 is four signed bytes 16 v (odd k), and (w << 4) & 0xF0F0F0F0 the even ones: no
 * sign extension is needed. A product of two such bytes is 256 times too large, so sums are kept over at most
 * INT4MM_SPAN values of k, which int32 holds, and then divided by 256, which is exact.
 */
#ifndef INT4MM_NIBBLES_CUH
#define INT4MM_NIBBLES_CUH

#include <stdint.h>

/* Values of k whose scaled sum fits: 65536 * 64 * 256 = 2^30. */
#define INT4MM_SPAN 65536

__device__ __forceinline__ uint32_t int4mm_odd16(uint32_t word) {
  return word & 0xF0F0F0F0u;
}
__device__ __forceinline__ uint32_t int4mm_even16(uint32_t word) {
  return (word << 4) & 0xF0F0F0F0u;
}

/* sum + four signed byte products. */
__device__ __forceinline__ int32_t int4mm_dot4(uint32_t a, uint32_t b, int32_t sum) {
  return __dp4a((int32_t)a, (int32_t)b, sum);
}

#endif
