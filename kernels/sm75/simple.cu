/*
 * A thread per output: the kernel for small products, and the one that others are checked against. Serves every shape,
 * stride and alignment.
 */
#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/nibbles.cuh"

namespace {

constexpr int kThreads = 256;

/* One row of a against one column of b. */
__device__ __forceinline__ int32_t dot(const uint32_t *a, uint32_t xor_a, const uint32_t *b, int64_t ldb,
                                       uint32_t xor_b, int64_t words) {
  int32_t acc = 0;
  for (int64_t first = 0; first < words; first += INT4MM_SPAN / 8) {
    int64_t end = min(words, first + INT4MM_SPAN / 8);
    int32_t sum = 0;
    for (int64_t j = first; j < end; j++) {
      uint32_t wa = a[j] ^ xor_a, wb = b[j * ldb] ^ xor_b;
      sum = int4mm_dot4(Unpacker<false>(0).even(wa), Unpacker<false>(0).even(wb), sum);
      sum = int4mm_dot4(Unpacker<false>(0).odd(wa), Unpacker<false>(0).odd(wb), sum);
    }
    acc += sum >> 8;
  }
  return acc;
}

/* Neighbouring threads take neighbouring columns, so that reads of b and writes of out are coalesced. */
template <int DTYPE> __global__ void __launch_bounds__(kThreads) simple_kernel(const int4mm_problem p) {
  int64_t outputs = p.M * p.N, step = (int64_t)gridDim.x * kThreads;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < outputs; i += step) {
    int64_t m = i / p.N, n = i - m * p.N;
    int32_t acc = dot(p.a.words + m * p.a.stride, p.a.xor_mask, p.b.words + n, p.b.stride, p.b.xor_mask, p.K / 8);
    int4mm_store<DTYPE>(p.out.data, m * p.out.stride + n, acc, p.a.scales[m], p.b.scales[n], p.bias, n);
  }
}

} // namespace

cudaError_t int4mm_launch_simple(const int4mm_problem *problem, const int4mm_plan *, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(problem->M * problem->N, kThreads);
  int4mm_for_out_dtype(problem->out.dtype, [&](auto dtype) {
    simple_kernel<decltype(dtype)::value><<<blocks, kThreads, 0, stream>>>(*problem);
  });
  return cudaGetLastError();
}
