/*
 * Sizes that the kernels' templates and the choice of a kernel (src/dispatch/) must agree on. Plain C, no CUDA: the
 * templates are held to them by static_assert.
 */
#ifndef INT4MM_SHAPES_H
#define INT4MM_SHAPES_H

enum {
  INT4MM_BLOCK_K = 128,    /* values of k in a k-block of the fast kernels */
  INT4MM_BLOCK_WORDS = 16, /* the same in packed words */

  /* skinny: a warp's columns; the depth built for rows off 16 bytes and for a wide K; the one for rotated K; k-blocks
   * to a stage and depth of up to 16 rows for an aligned [N, K/8]; bytes of shared memory that a warp has for a
   * k-block, before and for every 8 rows of A. */
  INT4MM_SKINNY_COLUMNS = 32,
  INT4MM_SKINNY_GENERAL_STAGES = 4,
  INT4MM_SKINNY_ROTATED_STAGES = 3,
  INT4MM_SKINNY_NK_BLOCKS = 2,
  INT4MM_SKINNY_NK_STAGES = 2,
  INT4MM_SKINNY_B_BYTES = 2048,
  INT4MM_SKINNY_A_BYTES = 512,
  /* For operands of every kind: the longest K, and the longest stride of B, in words. */
  INT4MM_SKINNY_GENERAL_MAX_K = 1 << 20,
  INT4MM_SKINNY_GENERAL_MAX_STRIDE = 1 << 24,
  /* Warps that share K at least with group scales of integers, and where a CTA has 8 rows. */
  INT4MM_SKINNY_CHAIN_WARPS = 4,
  INT4MM_SKINNY_CHAIN_WARPS_8 = 2,

  /* mma: the longest K whose products of floats are summed by tensor cores alone, which round towards zero at each
   * addition; a longer one is cut into groups of so many values, which are added with float32's own rounding. */
  INT4MM_MMA_LONG_K = 8192,
  INT4MM_MMA_LONG_GROUP = 1024,

  INT4MM_TABLE_EXPERTS = 256 /* hopper, grouped: the most experts of a grouped product */
};

/* INT4MM_TILE(hopper_256x128, M) and the like: what common/kernels.inc says. */
#define INT4MM_ANY_ARCH 9999
#define INT4MM_KERNEL(name, min_arch, max_arch, tile_m, tile_n, stages, family)                                        \
  INT4MM_TILE_##name##_M = tile_m, INT4MM_TILE_##name##_N = tile_n, INT4MM_TILE_##name##_STAGES = stages,
enum {
#include "common/kernels.inc"
  INT4MM_TILE_END
};
#undef INT4MM_KERNEL
#define INT4MM_TILE(name, extent) (INT4MM_TILE_##name##_##extent)

#endif
