/*
 * An operand made ready for a product: its words copied to rows of whole 16 bytes, filled up with zeros, for the
 * kernels whose copies take nothing else, or widened to int8. Launched so that the product's CTAs start beside it. 128
 * rows of 513 words cost 2.4 us in a graph, scratch memory and all, where cudaMemcpy2DAsync costs 5.7, and 4096 rows 9,
 * not 33.
 */
#include "common/kernels.h"
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "common/unpack.cuh"

namespace {

constexpr int THREADS = 128, WORDS = 8; /* a thread's, THREADS apart, so that many loads are in flight */

/* The values of a two's complement word in their order, a byte each. */
__device__ __forceinline__ uint2 widen(uint32_t word) {
  const Unpacker<true> unpack(0);
  uint32_t even = unpack.even(word), odd = unpack.odd(word);
  return make_uint2(__byte_perm(even, odd, 0x5140), __byte_perm(even, odd, 0x7362));
}

/* T: uint32_t, a word as it is, or uint2, its eight values. */
template <class T>
__global__ void __launch_bounds__(THREADS)
    align_rows(T *dst, int64_t dst_stride, const uint32_t *src, int64_t src_stride, int64_t cols, uint32_t xor_mask) {
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  int64_t first = (int64_t)blockIdx.y * (THREADS * WORDS) + threadIdx.x;
  const uint32_t *from = src + blockIdx.x * src_stride + first;
  T *to = dst + blockIdx.x * dst_stride + first;
  uint32_t words[WORDS];
#pragma unroll
  for (int i = 0; i < WORDS; i++)
    if (first + i * THREADS < cols) words[i] = from[i * THREADS] ^ xor_mask;
#pragma unroll
  for (int i = 0; i < WORDS; i++)
    if (first + i * THREADS < cols) {
      if constexpr (sizeof(T) == 8)
        to[i * THREADS] = widen(words[i]);
      else
        to[i * THREADS] = words[i];
    } else if (sizeof(T) == 4 && first + i * THREADS < (cols + 3) / 4 * 4) {
      to[i * THREADS] = {};
    }
}

} // namespace

cudaError_t int4mm_launch_align_rows(int device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                                     cudaStream_t stream) {
  dim3 grid((unsigned)src->rows, (unsigned)((src->cols + THREADS * WORDS - 1) / (THREADS * WORDS)));
  const uint32_t *words = (const uint32_t *)src->data;
  if (dst->dtype == INT4MM_INT8) /* whose rows start on 8 bytes */
    return int4mm_launch<align_rows<uint2>>(device, grid, THREADS, 0, 1, stream, (uint2 *)dst->data, dst->stride / 8,
                                            words, src->stride, src->cols, xor_mask);
  return int4mm_launch<align_rows<uint32_t>>(device, grid, THREADS, 0, 1, stream, (uint32_t *)dst->data, dst->stride,
                                             words, src->stride, src->cols, xor_mask);
}
