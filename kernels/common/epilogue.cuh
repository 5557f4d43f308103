/*
 * The exact epilogue that every kernel shares: accumulator to output element.
 *
 *   x = float(acc) * scale_a * scale_b (+ bias), each step rounded once to float32, then once to the output type.
 *
 * Nothing here may be contracted or flushed: the products and the sum are __fmul_rn and __fadd_rn (never fused, kept
 * subnormal since the build does not ask for -ftz), so the bits are those of src/cpu.
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

/* Adds the bias of column n where there is one. No bias is not a bias of 0, which would turn -0 into 0. */
__device__ __forceinline__ float int4mm_add_bias(float x, const float *bias, int64_t n) {
  return bias ? int4mm_add(x, bias[n]) : x;
}

/* The whole epilogue of one output, written to element `index` of `out`. */
template <int DTYPE>
__device__ __forceinline__ void int4mm_store(void *out, int64_t index, int32_t acc, float scale_a, float scale_b,
                                             const float *bias, int64_t n) {
  float x = int4mm_add_bias(int4mm_scale(acc, scale_a, scale_b), bias, n);
  static_cast<typename int4mm_out_word<DTYPE>::type *>(out)[index] = int4mm_round<DTYPE>(x);
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

#endif
