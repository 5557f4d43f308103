/*
 * The exact epilogue that every kernel shares: sums to outputs.
 *
 *   x = float(acc) * scale_a * scale_b (+ bias), each step rounded once to float32, then once to the output type.
 *
 * Nothing here may be contracted or flushed: the products and the sum are __fmul_rn and __fadd_rn (never fused, kept
 * subnormal since the build does not ask for -ftz), so the bits are those of src/cpu.
 *
 * The unit of work is COUNT neighbouring columns of one row, which a thread finishes together.
 */
#ifndef INT4MM_EPILOGUE_CUH
#define INT4MM_EPILOGUE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/numeric.h"
#include "core/problem.h"

/* The word that holds one element of an output type: int4mm_out_word<INT4MM_FLOAT16>::type is uint16_t. */
template <int DTYPE> struct int4mm_out_word { typedef uint16_t type; };
template <> struct int4mm_out_word<INT4MM_FLOAT32> { typedef uint32_t type; };

/* One rounding to the output type, NaN made canonical (0x7fff, 0x7fffffff). The hardware's conversions already give
 * that pattern for the 16-bit types. */
template <int DTYPE> __device__ __forceinline__ typename int4mm_out_word<DTYPE>::type int4mm_round(float x) {
  static_assert(DTYPE == INT4MM_FLOAT16 || DTYPE == INT4MM_BFLOAT16 || DTYPE == INT4MM_FLOAT32, "not an output type");
  if constexpr (DTYPE == INT4MM_FLOAT16)
    return __half_as_ushort(__float2half_rn(x));
  else if constexpr (DTYPE == INT4MM_BFLOAT16)
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
  else
    return x != x ? INT4MM_NAN_BITS : __float_as_uint(x);
}

/* Two elements of a 16-bit output type in one word, `low` at the lower address: one conversion instruction. */
template <int DTYPE> __device__ __forceinline__ uint32_t int4mm_round2(float low, float high) {
  static_assert(DTYPE == INT4MM_FLOAT16 || DTYPE == INT4MM_BFLOAT16, "only the 16-bit types fit two to a word");
  if constexpr (DTYPE == INT4MM_FLOAT16) {
    __half2 pair = __floats2half2_rn(low, high);
    return (uint32_t)__half_as_ushort(__low2half(pair)) | (uint32_t)__half_as_ushort(__high2half(pair)) << 16;
  } else {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return (uint32_t)__bfloat16_as_ushort(__low2bfloat16(pair)) | (uint32_t)__bfloat16_as_ushort(__high2bfloat16(pair))
                                                                      << 16;
  }
}

/* Calls f(integral constant) for a run-time output dtype, so that a launcher or a kernel picks a template instance:
 *   int4mm_for_out_dtype(dtype, [&](auto d) { kernel<decltype(d)::value><<<...>>>(...); });
 * f may be of either side: without the pragma the compiler insists on both. */
template <int V> struct int4mm_constant { static constexpr int value = V; };
#pragma nv_exec_check_disable
template <typename F> static __host__ __device__ __forceinline__ void int4mm_for_out_dtype(int32_t dtype, F f) {
  if (dtype == INT4MM_FLOAT16)
    f(int4mm_constant<INT4MM_FLOAT16>());
  else if (dtype == INT4MM_BFLOAT16)
    f(int4mm_constant<INT4MM_BFLOAT16>());
  else
    f(int4mm_constant<INT4MM_FLOAT32>());
}

/* What turns sums into outputs, and where these go. */
struct EpilogueArguments {
  const float *scale_a, *scale_b, *bias; /* bias: or NULL. No bias is not a bias of 0, which would turn -0 into 0 */
  void *out;
  int64_t ldo;
  int32_t out_dtype;
  bool vector_store; /* COUNT columns may be stored at once */
};

/* For kernels that finish `count` columns at a time, from one that is a multiple of `count` on. */
static inline EpilogueArguments int4mm_epilogue_arguments(const int4mm_problem *problem, int count) {
  uint64_t element = problem->out.dtype == INT4MM_FLOAT32 ? 4 : 2, bytes = count * element;
  bool aligned =
      ((uint64_t)problem->out.data | (uint64_t)problem->out.stride * element) % (bytes < 16 ? bytes : 16) == 0;
  return {problem->a.scales,   problem->b.scales,  problem->bias,       problem->out.data,
          problem->out.stride, problem->out.dtype, count > 1 && aligned};
}

/* x = acc * unscale * scale_a * scale_b. `unscale` is a power of two that undoes what the mainloop left in its sums. */
template <int COUNT>
__device__ __forceinline__ void int4mm_scale_sums(float (&x)[COUNT], const int32_t (&acc)[COUNT], float unscale,
                                                  float scale_a, const float (&scale_b)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) x[i] = __fmul_rn(__fmul_rn(__fmul_rn((float)acc[i], unscale), scale_a), scale_b[i]);
}

/* Adds the bias of the columns from `column` on, as far as they lie inside the output's N. */
template <int COUNT, class Index>
__device__ __forceinline__ void int4mm_add_bias(float (&x)[COUNT], const float *bias, Index column, Index N) {
#pragma unroll
  for (int i = 0; i < COUNT; i++)
    if (column + i < N) x[i] = __fadd_rn(x[i], __ldg(bias + column + i));
}

/* Rounds COUNT neighbours of one row to the output type and stores them at once; `out` is aligned to them or to 16
 * bytes. */
template <int DTYPE, int COUNT>
__device__ __forceinline__ void int4mm_store_vector(typename int4mm_out_word<DTYPE>::type *out,
                                                    const float (&x)[COUNT]) {
  static_assert(COUNT == 4 || COUNT == 8, "not a vector");
  if constexpr (DTYPE == INT4MM_FLOAT32) {
    uint32_t w[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) w[i] = int4mm_round<DTYPE>(x[i]);
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) *(uint4 *)(out + i) = make_uint4(w[i], w[i + 1], w[i + 2], w[i + 3]);
  } else if constexpr (COUNT == 8) {
    *(uint4 *)out = make_uint4(int4mm_round2<DTYPE>(x[0], x[1]), int4mm_round2<DTYPE>(x[2], x[3]),
                               int4mm_round2<DTYPE>(x[4], x[5]), int4mm_round2<DTYPE>(x[6], x[7]));
  } else {
    *(uint2 *)out = make_uint2(int4mm_round2<DTYPE>(x[0], x[1]), int4mm_round2<DTYPE>(x[2], x[3]));
  }
}

/* The whole epilogue of COUNT neighbouring columns of one row, as far as they lie inside the output's N. Index: the
 * integer type that a kernel counts rows and columns in. */
template <int COUNT, class Index>
__device__ __forceinline__ void int4mm_finish(const EpilogueArguments &e, Index row, Index column, Index N,
                                              float unscale, float scale_a, const float (&scale_b)[COUNT],
                                              const int32_t (&acc)[COUNT]) {
  float x[COUNT];
  int4mm_scale_sums(x, acc, unscale, scale_a, scale_b);
  if (e.bias) int4mm_add_bias(x, e.bias, column, N);
  int4mm_for_out_dtype(e.out_dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    typedef typename int4mm_out_word<DTYPE>::type Word;
    Word *out = (Word *)e.out + row * e.ldo + column;
    if constexpr (COUNT > 1)
      if (e.vector_store && column + COUNT <= N) return int4mm_store_vector<DTYPE>(out, x);
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (column + i < N) out[i] = int4mm_round<DTYPE>(x[i]);
  });
}

#endif
