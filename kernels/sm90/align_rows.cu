/*
 * A matrix of words copied into one whose rows start on 16 bytes: A, for the kernels whose copies take nothing else
 * (sm_90a). Launched so that the product's CTAs start beside it. 128 rows of 513 words cost 2.4 us in a graph, scratch
 * memory and all, where cudaMemcpy2DAsync costs 5.7, and 4096 rows 9, not 33.
 */
#include "common/kernels.h"
#include "common/launch.cuh"
#include "common/ptx.cuh"

namespace {

constexpr int THREADS = 128, WORDS = 8; /* a thread's, THREADS apart, so that many loads are in flight */

__global__ void __launch_bounds__(THREADS)
    align_rows(uint32_t *dst, int64_t dst_stride, const uint32_t *src, int64_t src_stride, int64_t cols) {
  ptx::griddepcontrol_launch_dependents();
  ptx::griddepcontrol_wait();
  int64_t first = (int64_t)blockIdx.y * (THREADS * WORDS) + threadIdx.x;
  const uint32_t *from = src + blockIdx.x * src_stride + first;
  uint32_t *to = dst + blockIdx.x * dst_stride + first;
  uint32_t words[WORDS];
#pragma unroll
  for (int i = 0; i < WORDS; i++)
    if (first + i * THREADS < cols) words[i] = from[i * THREADS];
#pragma unroll
  for (int i = 0; i < WORDS; i++)
    if (first + i * THREADS < cols) to[i * THREADS] = words[i];
}

} // namespace

cudaError_t int4mm_launch_align_rows(int device, const int4mm_matrix *dst, const int4mm_matrix *src,
                                     cudaStream_t stream) {
  dim3 grid((unsigned)src->rows, (unsigned)((src->cols + THREADS * WORDS - 1) / (THREADS * WORDS)));
  return int4mm_launch<align_rows>(device, grid, THREADS, 0, 1, stream, (uint32_t *)dst->data, dst->stride,
                                   (const uint32_t *)src->data, src->stride, src->cols);
}
