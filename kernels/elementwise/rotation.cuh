/*
 * The rotation by a regular Hadamard matrix, as int4mm_rotate has it: stages of four points at strides 1, 4, 16, ...,
 * where the block is no power of four a last one of two points, then one multiplication, which is left to the caller.
 *
 * A warp rotates 1024 values by itself, or 512 where blocks are not larger and there are few rows, for which more warps
 * take less time: a lane holds two chunks of 16 neighbours, or one, in which it does the strides 1 and 4.
 * Half a warp holds a span of 256 values in either chunk: its lanes exchange through shared memory, so that each then
 * holds every 16th value, and do the strides 16 and 64. The last stage of blocks above 256 combines spans by shuffles.
 */
#ifndef INT4MM_ROTATION_CUH
#define INT4MM_ROTATION_CUH

#include <stdint.h>

namespace {

constexpr int CHUNK = 16, CHUNKS = 2, SPAN = 256, WARP_VALUES = 32 * CHUNKS * CHUNK;

/* What a lane holds of its warp's values, in C chunks, most often these two. In order: value 512 c + 16 lane + i is
 * x[c][i]. Strided, after a rotation by more than a chunk: value 512 c + 256 (lane / 16) + lane % 16 + 16 i is. */
typedef float Values[CHUNKS][CHUNK];

/* Floats of a warp's shared memory: 16 values in a row of 20, which keeps 128-bit accesses by lanes free of bank
 * conflicts, and 4 more, so that one place of neighbouring warps lies in different banks. */
constexpr int WARP_FLOATS = WARP_VALUES / CHUNK * 20 + 4;

__device__ __forceinline__ int place(int value) {
  return value / CHUNK * 20 + value % CHUNK;
}

__device__ __forceinline__ int lane_id() {
  return threadIdx.x % 32;
}

/* The number of x[c][0] among the warp's values, and what is between neighbours in a chunk. */
__device__ __forceinline__ int first_value(int c, bool strided) {
  int lane = lane_id();
  return 2 * SPAN * c + (strided ? lane / CHUNK * SPAN + lane % CHUNK : CHUNK * lane);
}

/* A lane's values from the warp's memory, where all were placed in order. */
template <int C> __device__ __forceinline__ void fetch(float (&x)[C][CHUNK], const float *memory, bool strided) {
  __syncwarp();
  if (strided) {
#pragma unroll
    for (int c = 0; c < C; c++)
#pragma unroll
      for (int i = 0; i < CHUNK; i++) x[c][i] = memory[place(first_value(c, true) + CHUNK * i)];
  } else {
#pragma unroll
    for (int c = 0; c < C; c++)
#pragma unroll
      for (int i = 0; i < CHUNK; i += 4) {
        float4 v = *(const float4 *)(memory + place(first_value(c, false) + i));
        x[c][i] = v.x, x[c][i + 1] = v.y, x[c][i + 2] = v.z, x[c][i + 3] = v.w;
      }
  }
  __syncwarp();
}

/* Four points of a stage. FUSED: s - 2 x in one step, which is the same as in two as long as 2 x does not overflow. */
template <bool FUSED> __device__ __forceinline__ void four_points(float &x0, float &x1, float &x2, float &x3) {
  auto minus_twice = [](float s, float x) { return FUSED ? __fmaf_rn(-2.0f, x, s) : __fsub_rn(s, __fadd_rn(x, x)); };
  float s = __fadd_rn(__fadd_rn(x0, x1), __fadd_rn(x2, x3));
  float y0 = minus_twice(s, x3), y1 = minus_twice(s, x2);
  x2 = minus_twice(s, x1), x3 = minus_twice(s, x0);
  x0 = y0, x1 = y1;
}

__device__ __forceinline__ void two_points(float &x0, float &x1) {
  float y = __fadd_rn(x0, x1);
  x1 = __fsub_rn(x0, x1), x0 = y;
}

/* The stages of a block of so many values among the sixteen of each chunk: those at distances 1, 4 and 8. */
template <int C> __device__ __forceinline__ void rotate_sixteens(float (&x)[C][CHUNK]) {
#pragma unroll
  for (int c = 0; c < C; c++) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += 4) four_points<true>(x[c][i], x[c][i + 1], x[c][i + 2], x[c][i + 3]);
#pragma unroll
    for (int i = 0; i < 4; i++) four_points<true>(x[c][i], x[c][i + 4], x[c][i + 8], x[c][i + 12]);
  }
}

template <int C> __device__ __forceinline__ void rotate_fewer(float (&x)[C][CHUNK], int block) {
#pragma unroll
  for (int c = 0; c < C; c++) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += 4)
      if (block >= 4)
        four_points<true>(x[c][i], x[c][i + 1], x[c][i + 2], x[c][i + 3]);
      else
        two_points(x[c][i], x[c][i + 1]), two_points(x[c][i + 2], x[c][i + 3]);
    if (block == 8) {
#pragma unroll
      for (int i = 0; i < CHUNK; i++)
        if (i % 8 < 4) two_points(x[c][i], x[c][i + 4]);
    }
  }
}

/* From values in order to strided ones. Chunks go side by side, in rows of 16 times as many that are 4 floats apart;
 * where it is one, the halves of the warp are 16 floats further apart. */
template <int C> __device__ __forceinline__ void exchange(float (&x)[C][CHUNK], float *memory) {
  constexpr int ROW = C * CHUNK + 4;
  int thread = lane_id() % CHUNK;
  float *span = memory + lane_id() / CHUNK * (CHUNK * ROW + (C == 1 ? CHUNK : 0));
  __syncwarp();
#pragma unroll
  for (int i = 0; i < CHUNK; i += 4 / C) {
    float4 four;
    if constexpr (C == 1)
      four = make_float4(x[0][i], x[0][i + 1], x[0][i + 2], x[0][i + 3]);
    else
      four = make_float4(x[0][i], x[1][i], x[0][i + 1], x[1][i + 1]);
    *(float4 *)(span + thread * ROW + C * i) = four;
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < CHUNK; i++)
    if constexpr (C == 1) {
      x[0][i] = span[i * ROW + thread];
    } else {
      float2 pair = *(const float2 *)(span + i * ROW + 2 * thread);
      x[0][i] = pair.x, x[1][i] = pair.y;
    }
}

/* The last stage of blocks of 512 and 1024, over spans: 0 and 1 are chunk 0 of either half of the warp, 2 and 3 are
 * chunk 1. */
template <int C> __device__ __forceinline__ void combine_spans(float (&x)[C][CHUNK], int block) {
  auto other = [](float v) { return __shfl_xor_sync(0xffffffffu, v, CHUNK); };
  if (block == 2 * SPAN) {
    float sign = lane_id() < CHUNK ? 1.0f : -1.0f;
#pragma unroll
    for (int c = 0; c < C; c++)
#pragma unroll
      for (int i = 0; i < CHUNK; i++) x[c][i] = __fmaf_rn(sign, x[c][i], other(x[c][i]));
  } else if constexpr (C == 2) {
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      float other0 = other(x[0][i]), other1 = other(x[1][i]);
      float s = __fadd_rn(__fadd_rn(x[0][i], other0), __fadd_rn(x[1][i], other1));
      x[0][i] = __fmaf_rn(-2.0f, other1, s), x[1][i] = __fmaf_rn(-2.0f, other0, s);
    }
  }
}

/* Rotates a warp's values, from values in order to strided ones where block is more than a chunk. Right where no result
 * reaches LARGE: stages do not make the largest magnitude smaller, so that then nothing overflowed on the way. */
constexpr float LARGE = 0x1p120f;
template <int C> __device__ __forceinline__ void rotate(float (&x)[C][CHUNK], float *memory, int block) {
  if (block >= SPAN) {
    rotate_sixteens(x);
    exchange(x, memory);
    rotate_sixteens(x);
    if (block > SPAN) combine_spans(x, block);
  } else {
    if (block >= CHUNK)
      rotate_sixteens(x);
    else
      rotate_fewer(x, block);
    if (block <= CHUNK) return;
    exchange(x, memory);
    rotate_fewer(x, block / CHUNK);
  }
}

/* The same in memory, where so many values were placed in order, with every overflow in its place. Short, as it is
 * hardly ever run. */
__device__ __forceinline__ void rotate_large(float *memory, int block, int values) {
  int stride = 1;
#pragma unroll 1
  for (; stride < block; stride *= 4) {
    bool four = 4 * stride <= block;
    __syncwarp();
#pragma unroll 1
    for (int i = lane_id(); i < values / (four ? 4 : 2); i += 32) {
      int low = i & (stride - 1), at = (i - low) * (four ? 4 : 2) + low;
      float &x0 = memory[place(at)], &x1 = memory[place(at + stride)];
      if (four)
        four_points<false>(x0, x1, memory[place(at + 2 * stride)], memory[place(at + 3 * stride)]);
      else
        two_points(x0, x1);
    }
  }
}

} // namespace
#endif
