/*
 * A thread per output: the kernel for small products, and the one that others are checked against. Serves every shape,
 * stride and alignment.
 */
#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/nibbles.cuh"
#include "sm75/general.cuh"

namespace {

constexpr int kThreads = 256;

/* Row m of a against column n of b, over `words` words of k. */
__device__ __forceinline__ int32_t dot(const int4mm_operand &a, const int4mm_operand &b, int64_t m, int64_t n,
                                       int64_t words) {
  bool nk = b.layout == INT4MM_K_MAJOR;
  int64_t step = nk ? 1 : b.stride;
  const uint32_t *row = a.words + m * a.stride, *column = b.words + (nk ? n * b.stride : n);
  int32_t acc = 0;
  for (int64_t first = 0; first < words; first += INT4MM_SPAN / 8) {
    int64_t end = min(words, first + INT4MM_SPAN / 8);
    int32_t sum = 0;
    for (int64_t j = first; j < end; j++) sum = int4mm_dot8(row[j] ^ a.xor_mask, column[j * step] ^ b.xor_mask, sum);
    acc += sum >> 8;
  }
  return acc;
}

/* Neighbouring threads take neighbouring columns, so that reads of b and writes of out are coalesced. */
template <bool LAYER>
__global__ void __launch_bounds__(kThreads)
    simple_kernel(const int4mm_problem p, const __grid_constant__ EpilogueArguments e) {
  int64_t outputs = p.M * p.N, step = (int64_t)gridDim.x * kThreads;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < outputs; i += step) {
    int64_t m = i / p.N, n = i - m * p.N;
    int32_t acc[1] = {dot(p.a, p.b, m, n, p.K / 8)};
    float scale_b[1] = {e.scale_b[n]};
    float bias[1];
    int4mm_load_bias(bias, e, n, p.N);
    int4mm_finish<LAYER>(e, m, n, p.N, 1.0f, e.scale_a[m], scale_b, bias, acc);
  }
}

/* The same for operands of every kind. */
template <int KIND>
__global__ void __launch_bounds__(kThreads)
    simple_general_kernel(const int4mm_problem p, const __grid_constant__ EpilogueArguments e) {
  constexpr bool FLOAT = KIND == FLOATS;
  int64_t outputs = p.M * p.N, step = (int64_t)gridDim.x * kThreads, words = (p.K + 7) / 8;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < outputs; i += step) {
    int64_t m = i / p.N, n = i - m * p.N;
    Sum<FLOAT> sum;
    for (int64_t j = 0; j < words; j++) {
      sum.add(load_a<(AKind)KIND>(p, m, j), load_b<FLOAT>(p, j, n));
      end_word(sum, p, j, n);
    }
    finish_sum(sum, p, e, m, n);
  }
}

} // namespace

cudaError_t int4mm_launch_simple(const int4mm_problem *problem, const int4mm_plan *, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(problem->M * problem->N, kThreads);
  EpilogueArguments e = int4mm_epilogue_arguments(problem, 1);
  if (!int4mm_is_elementary(problem))
    for_kind_of_a(problem, [&](auto kind) {
      simple_general_kernel<decltype(kind)::value><<<blocks, kThreads, 0, stream>>>(*problem, e);
    });
  else if (e.layer)
    simple_kernel<true><<<blocks, kThreads, 0, stream>>>(*problem, e);
  else
    simple_kernel<false><<<blocks, kThreads, 0, stream>>>(*problem, e);
  return cudaGetLastError();
}
