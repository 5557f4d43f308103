/*
 * The rotation by a regular Hadamard matrix, as int4mm_rotate has it: stages of four points at strides 1, 4, 16, ...,
 * where the block is no power of four a last one of two points, then one multiplication.
 *
 * A thread holds a chunk of 16 neighbours, in which it does the strides 1 and 4. A span is 256 values, 16 threads: they
 * exchange through shared memory, so that each then holds every 16th value, and does the strides 16 and 64. The last
 * stage of blocks above 256 combines neighbouring spans.
 */
#ifndef INT4MM_ROTATION_CUH
#define INT4MM_ROTATION_CUH

#include <stdint.h>

namespace {

constexpr int CHUNK = 16; /* neighbours that a thread holds */
constexpr int SPAN = 256, SPAN_THREADS = SPAN / CHUNK;
/* Floats of shared memory for a span: rows of 16 are 20 apart and spans 16 more, which keeps both ways of an exchange
 * free of bank conflicts. */
constexpr int ROW_FLOATS = 20, SPAN_FLOATS = SPAN_THREADS * ROW_FLOATS + 16;

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

/* The stages of a block of so many of the values that a thread holds, among those at distances 1, 4 and 8. */
__device__ __forceinline__ void rotate_chunk(float (&x)[CHUNK], int block) {
  if (block >= 4) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += 4) four_points<true>(x[i], x[i + 1], x[i + 2], x[i + 3]);
  } else if (block == 2) {
#pragma unroll
    for (int i = 0; i < CHUNK; i += 2) two_points(x[i], x[i + 1]);
  }
  if (block >= 16) {
#pragma unroll
    for (int i = 0; i < 4; i++) four_points<true>(x[i], x[i + 4], x[i + 8], x[i + 12]);
  } else if (block == 8) {
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
      if (i % 8 < 4) two_points(x[i], x[i + 4]);
  }
}

/* 1 / sqrt(block) as float32, for the powers of two from 4 to 1024. */
__device__ __forceinline__ float rotation_scale(int block) {
  int log2 = 31 - __clz(block);
  float whole = __uint_as_float((uint32_t)(127 - log2 / 2) << 23);          /* 2^-(log2 / 2) */
  return log2 % 2 ? __fmul_rn(whole, __uint_as_float(0x3f3504f3u)) : whole; /* times 1 / sqrt(2) */
}

/* Value i of a span in its shared memory. */
__device__ __forceinline__ float &in_span(float *span, int i) {
  return span[i / CHUNK * ROW_FLOATS + i % CHUNK];
}

__device__ __forceinline__ void store_to_span(const float (&x)[CHUNK], float *span, int thread) {
  __syncwarp(); /* what lay there before has been read */
#pragma unroll
  for (int i = 0; i < CHUNK; i += 4)
    *(float4 *)&in_span(span, thread * CHUNK + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
  __syncwarp();
}

/* Every 16th value of the span. */
__device__ __forceinline__ void load_strided(float (&x)[CHUNK], float *span, int thread) {
#pragma unroll
  for (int j = 0; j < CHUNK; j++) x[j] = in_span(span, j * CHUNK + thread);
}

/* The stages up to a span in shared memory, in steps that may overflow: short code, which is hardly ever run. */
__device__ __forceinline__ void rotate_large(float (&x)[CHUNK], float *span, int thread, int block) {
  int stride = 1;
  store_to_span(x, span, thread);
#pragma unroll 1
  for (; 4 * stride <= block && stride < SPAN; stride *= 4) {
#pragma unroll 1
    for (int i = thread; i < SPAN / 4; i += SPAN_THREADS) {
      int at = i / stride * 4 * stride + i % stride;
      four_points<false>(in_span(span, at), in_span(span, at + stride), in_span(span, at + 2 * stride),
                         in_span(span, at + 3 * stride));
    }
    __syncwarp();
  }
#pragma unroll 1
  for (int i = thread; stride < block && stride < SPAN && i < SPAN / 2; i += SPAN_THREADS) {
    int at = i / stride * 2 * stride + i % stride;
    two_points(in_span(span, at), in_span(span, at + stride));
  }
  __syncwarp();
  if (block > CHUNK) return load_strided(x, span, thread);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) x[i] = in_span(span, thread * CHUNK + i);
}

/* The last stage of blocks of 512 and 1024: the values of neighbouring spans, which all threads of the CTA give at
 * once. `spans` is where span 0 of the CTA lies, `index` this thread's. */
__device__ __forceinline__ void combine_spans(float (&x)[CHUNK], float *spans, int index, int thread, int block) {
  int count = block / SPAN, mine = index % count;
  float *first = spans + (index - mine) * SPAN_FLOATS;
  __syncthreads();
#pragma unroll
  for (int j = 0; j < CHUNK; j++) in_span(first + mine * SPAN_FLOATS, j * CHUNK + thread) = x[j];
  __syncthreads();
#pragma unroll
  for (int j = 0; j < CHUNK; j++) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = i < count ? in_span(first + i * SPAN_FLOATS, j * CHUNK + thread) : 0;
    if (count == 2)
      two_points(v[0], v[1]);
    else
      four_points<false>(v[0], v[1], v[2], v[3]);
    x[j] = mine == 0 ? v[0] : mine == 1 ? v[1] : mine == 2 ? v[2] : v[3];
  }
  __syncthreads(); /* before the memory is used again */
}

/* Rotates what the threads of a CTA hold, chunk by chunk; all of them call it. `spans` is shared memory of SPAN_FLOATS
 * for every SPAN_THREADS threads. After it a thread holds its chunk still where block is 16 or less, else every 16th
 * value of its span, from its number in the span on. `large`, alike in a warp: it has a value so large that twice a sum
 * might overflow. */
__device__ __forceinline__ void rotate(float (&x)[CHUNK], float *spans, int block, bool large) {
  int index = threadIdx.x / SPAN_THREADS, thread = threadIdx.x % SPAN_THREADS;
  float *span = spans + index * SPAN_FLOATS;
  if (large) {
    rotate_large(x, span, thread, block);
  } else {
    rotate_chunk(x, block);
    if (block > CHUNK) {
      store_to_span(x, span, thread);
      load_strided(x, span, thread);
      rotate_chunk(x, block / CHUNK);
    }
  }
  if (block > SPAN) combine_spans(x, spans, index, thread, block);
  float scale = rotation_scale(block);
#pragma unroll
  for (int i = 0; i < CHUNK; i++) x[i] = __fmul_rn(x[i], scale);
}

} // namespace
#endif
