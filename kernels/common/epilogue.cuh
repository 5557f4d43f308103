/*
 * The exact epilogue that every kernel shares: sums to outputs.
 *
 *   x = activation(float(acc) * scale_a * scale_b (+ bias)) (+ residual), each step rounded once to float32, then once
 * to the output type.
 *
 * Nothing here may be contracted or flushed: the products and the sum are __fmul_rn and __fadd_rn (never fused, kept
 * subnormal since the build does not ask for -ftz), so the bits are those of src/cpu.
 *
 * The unit of work is COUNT neighbouring columns of one row, which a thread finishes together.
 */
#ifndef INT4MM_EPILOGUE_CUH
#define INT4MM_EPILOGUE_CUH

#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/ptx.cuh"
#include "core/activation.h"
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
  bool vector_store;    /* COUNT columns may be stored at once */
  bool vector_residual; /* and COUNT of the residual loaded */
  bool layer;           /* there is an activation or a residual */
  int32_t activation;
  int32_t residual_dtype;
  const void *residual; /* or NULL */
  int64_t ldr;
};

/* Whether `count` columns of a float matrix, from one that is a multiple of `count` on, are aligned to their size or to
 * 16 bytes. */
static inline bool int4mm_is_vector_aligned(const int4mm_matrix *m, int count) {
  uint64_t element = m->dtype == INT4MM_FLOAT32 ? 4 : 2, bytes = count * element;
  return ((uint64_t)m->data | (uint64_t)m->stride * element) % (bytes < 16 ? bytes : 16) == 0;
}

/* For kernels that finish `count` columns at a time, from one that is a multiple of `count` on. */
static inline EpilogueArguments int4mm_epilogue_arguments(const int4mm_problem *problem, int count) {
  const int4mm_matrix *out = &problem->out, *residual = &problem->residual;
  EpilogueArguments e = {};
  e.scale_a = problem->a.scales, e.scale_b = problem->b.scales, e.bias = problem->bias;
  e.out = out->data, e.ldo = out->stride, e.out_dtype = out->dtype;
  e.vector_store = count > 1 && int4mm_is_vector_aligned(out, count);
  e.activation = problem->activation;
  e.residual = residual->data, e.ldr = residual->stride, e.residual_dtype = residual->dtype;
  e.vector_residual = count > 1 && int4mm_is_vector_aligned(residual, count);
  e.layer = int4mm_is_layer(problem);
  return e;
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

/* The bias of COUNT columns from `column` on, as far as they lie inside the output's N; without a bias it is not read.
 */
template <int COUNT, class Index>
__device__ __forceinline__ void int4mm_load_bias(float (&bias)[COUNT], const EpilogueArguments &e, Index column,
                                                 Index N) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) bias[i] = e.bias && column + i < N ? __ldg(e.bias + column + i) : 0;
}

template <int COUNT>
__device__ __forceinline__ void int4mm_add_bias(float (&x)[COUNT], const EpilogueArguments &e,
                                                const float (&bias)[COUNT]) {
  if (!e.bias) return;
#pragma unroll
  for (int i = 0; i < COUNT; i++) x[i] = __fadd_rn(x[i], bias[i]);
}

/* An element of a float type as a float. */
template <int DTYPE> __device__ __forceinline__ float int4mm_widen(typename int4mm_out_word<DTYPE>::type word) {
  if constexpr (DTYPE == INT4MM_FLOAT16)
    return __half2float(__ushort_as_half(word));
  else if constexpr (DTYPE == INT4MM_BFLOAT16)
    return __uint_as_float((uint32_t)word << 16);
  else
    return __uint_as_float(word);
}

/* The activation of COUNT numbers, its choice outside the loop; four at a time, more would take registers that a
 * product does not have. */
template <int COUNT> __device__ __forceinline__ void int4mm_activate_all(float (&x)[COUNT], int32_t activation) {
  auto each = [&](auto f) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      x[i] = f(x[i]);
      if (i % 4 == 3) asm volatile("" : "+f"(x[i - 3]), "+f"(x[i]));
    }
  };
  if (activation == INT4MM_RELU) each([](float y) { return int4mm_relu(y); });
  if (activation == INT4MM_SILU) each([](float y) { return int4mm_silu(y); });
  if (activation == INT4MM_GELU) each([](float y) { return int4mm_gelu(y); });
  if (activation == INT4MM_GELU_TANH) each([](float y) { return int4mm_gelu_tanh(y); });
}

/* Adds COUNT columns of a row of the residual, as far as they lie inside the output's N. */
template <int COUNT, class Index>
__device__ __forceinline__ void int4mm_add_residual(float (&x)[COUNT], const EpilogueArguments &e, Index row,
                                                    Index column, Index N) {
  int4mm_for_out_dtype(e.residual_dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    typedef typename int4mm_out_word<DTYPE>::type Word;
    typedef typename std::conditional<sizeof(Word) * COUNT % 16 == 0, uint4, uint2>::type Vector;
    const Word *from = (const Word *)e.residual + row * e.ldr + column;
    if constexpr (COUNT > 1)
      if (e.vector_residual && column + COUNT <= N) {
        Vector vectors[sizeof(Word) * COUNT / sizeof(Vector)];
        Word words[COUNT];
#pragma unroll
        for (int i = 0; i < (int)(sizeof vectors / sizeof(Vector)); i++) vectors[i] = __ldg((const Vector *)from + i);
        memcpy(words, vectors, sizeof words);
#pragma unroll
        for (int i = 0; i < COUNT; i++) x[i] = __fadd_rn(x[i], int4mm_widen<DTYPE>(words[i]));
        return;
      }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (column + i < N) x[i] = __fadd_rn(x[i], int4mm_widen<DTYPE>(from[i]));
  });
}

/* Activation and residual of COUNT columns of one row. */
template <int COUNT, class Index>
__device__ __forceinline__ void int4mm_finish_layer(float (&x)[COUNT], const EpilogueArguments &e, Index row,
                                                    Index column, Index N) {
  if (e.residual) /* it arrives in L1 meanwhile */
    ptx::prefetch_l1((const char *)e.residual + (row * e.ldr + column) * (e.residual_dtype == INT4MM_FLOAT32 ? 4 : 2));
  int4mm_activate_all(x, e.activation);
  if (e.residual) int4mm_add_residual(x, e, row, column, N);
}

/* The same by a call, for kernels in many instances: their code of all activations would be most of the library. */
template <int COUNT> struct int4mm_floats { float x[COUNT]; };
template <int COUNT, class Index>
static __device__ __noinline__ int4mm_floats<COUNT>
int4mm_call_finish_layer(int4mm_floats<COUNT> sums, const EpilogueArguments &e, Index row, Index column, Index N) {
  int4mm_finish_layer(sums.x, e, row, column, N);
  return sums;
}

/* Stores 16 bytes at once, at an address aligned to them. In C++ the compiler may make four stores of it. */
__device__ __forceinline__ void int4mm_store_v4(void *to, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(x), "r"(y), "r"(z),
               "r"(w)
               : "memory");
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
    for (int i = 0; i < COUNT; i += 4) int4mm_store_v4(out + i, w[i], w[i + 1], w[i + 2], w[i + 3]);
  } else if constexpr (COUNT == 8) {
    int4mm_store_v4(out, int4mm_round2<DTYPE>(x[0], x[1]), int4mm_round2<DTYPE>(x[2], x[3]),
                    int4mm_round2<DTYPE>(x[4], x[5]), int4mm_round2<DTYPE>(x[6], x[7]));
  } else {
    *(uint2 *)out = make_uint2(int4mm_round2<DTYPE>(x[0], x[1]), int4mm_round2<DTYPE>(x[2], x[3]));
  }
}

/* Stores a row's span of columns from any address on, 16 bytes at a time. A quad of lanes has the span, 32 columns at a
 * time, 8 for each lane: each stores the 16 bytes that lie before a multiple of 16 in its columns, with what it needs
 * of the lane before it. What is left at the ends, 16 bytes together, the quad shares out. All lanes of a warp call it
 * alike. */
template <int DTYPE> struct SpanStore {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  static constexpr int SIZE = sizeof(Word), WORDS = 8 * SIZE / 4;
  char *first;                       /* of the span, moved down to a multiple of 16 bytes */
  unsigned past;                     /* bytes by which it was moved */
  uint32_t head[WORDS], tail[WORDS]; /* this lane's first columns and its last ones so far */

  __device__ __forceinline__ explicit SpanStore(Word *out)
      : first((char *)((uintptr_t)out & ~(uintptr_t)15)), past((uintptr_t)out % 16) {}

  /* before[i], own[i]: what two neighbouring lanes have. Moves `own` up by `past` bytes, into their place. */
  __device__ __forceinline__ void shift(uint32_t (&own)[WORDS], const uint32_t (&before)[WORDS]) const {
    uint32_t z[2 * WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++) z[i] = before[i], z[WORDS + i] = own[i];
#pragma unroll
    for (int i = 2 * WORDS - 1; i >= 2; i--) z[i] = past & 8 ? z[i - 2] : z[i];
#pragma unroll
    for (int i = 2 * WORDS - 1; i >= 1; i--) z[i] = past & 4 ? z[i - 1] : z[i];
#pragma unroll
    for (int i = 0; i < WORDS; i++)
      own[i] = SIZE == 2 ? __funnelshift_l(z[WORDS + i - 1], z[WORDS + i], past % 4 * 8) : z[WORDS + i];
  }

  /* The columns from `column` of the span on, a multiple of 32; they follow each other. */
  __device__ __forceinline__ void store(const float (&x)[8], int column) {
    unsigned lane = threadIdx.x % 32, t = lane % 4;
    uint32_t own[WORDS], before[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
      if constexpr (SIZE == 2)
        own[i] = int4mm_round2<DTYPE>(x[2 * i], x[2 * i + 1]);
      else
        own[i] = int4mm_round<DTYPE>(x[i]);
      if (column == 0) head[i] = tail[i] = own[i];
      before[i] = __shfl_sync(0xffffffffu, t == 3 ? tail[i] : own[i], (lane & ~3u) | ((t + 3) & 3));
      tail[i] = own[i];
    }
    shift(own, before);
    char *to = first + (column + t * 8) * SIZE;
    if (t > 0 || past == 0 || column > 0) *(uint4 *)to = make_uint4(own[0], own[1], own[2], own[3]);
    if constexpr (SIZE == 4) *(uint4 *)(to + 16) = make_uint4(own[4], own[5], own[6], own[7]);
  }

  /* What is left of the span's `columns`: the end of lane 3's last columns and the beginning of lane 0's first. */
  __device__ __forceinline__ void finish(int columns) {
    unsigned lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll
    for (int i = 0; i < WORDS; i++) tail[i] = __shfl_sync(0xffffffffu, tail[i], lane | 3);
    shift(head, tail);
    uint32_t mine = head[0];
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
      uint32_t word = __shfl_sync(0xffffffffu, head[i], lane & ~3u);
      mine = t == i ? word : mine;
    }
#pragma unroll
    for (int byte = 0; byte < 4; byte += SIZE) {
      unsigned at = t * 4 + byte;
      if (past) *(Word *)(first + at + (at < past ? columns * SIZE : 0)) = (Word)(mine >> 8 * byte);
    }
  }
};

/* Stores COUNT columns of one row in the output's type, as far as they lie inside its N. */
template <int COUNT, class Index>
__device__ __forceinline__ void int4mm_store(const EpilogueArguments &e, Index row, Index column, Index N,
                                             const float (&x)[COUNT]) {
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

/* What follows the scales of COUNT neighbouring columns of one row, as far as they lie inside the output's N. LAYER:
 * with activation and residual, whose code would slow down products that have none. Index: the integer type that a
 * kernel counts rows and columns in. */
template <bool LAYER, int COUNT, class Index>
__device__ __forceinline__ void int4mm_finish_scaled(const EpilogueArguments &e, Index row, Index column, Index N,
                                                     const float (&bias)[COUNT], float (&x)[COUNT]) {
  int4mm_add_bias(x, e, bias);
  if (LAYER && e.layer) {
    int4mm_floats<COUNT> sums;
#pragma unroll
    for (int i = 0; i < COUNT; i++) sums.x[i] = x[i];
    sums = int4mm_call_finish_layer(sums, e, row, column, N);
#pragma unroll
    for (int i = 0; i < COUNT; i++) x[i] = sums.x[i];
  }
  int4mm_store(e, row, column, N, x);
}

/* The whole epilogue of int32 sums with a scale for each column. */
template <bool LAYER, int COUNT, class Index>
__device__ __forceinline__ void int4mm_finish(const EpilogueArguments &e, Index row, Index column, Index N,
                                              float unscale, float scale_a, const float (&scale_b)[COUNT],
                                              const float (&bias)[COUNT], const int32_t (&acc)[COUNT]) {
  float x[COUNT];
  int4mm_scale_sums(x, acc, unscale, scale_a, scale_b);
  int4mm_finish_scaled<LAYER>(e, row, column, N, bias, x);
}

/* The whole epilogue of float32 sums which the scales of B are in already; an A of floats has no scale. */
template <bool LAYER, int COUNT, class Index>
__device__ __forceinline__ void int4mm_finish_sums(const EpilogueArguments &e, Index row, Index column, Index N,
                                                   const float (&bias)[COUNT], const float (&sums)[COUNT]) {
  float x[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++) x[i] = e.scale_a ? __fmul_rn(sums[i], __ldg(e.scale_a + row)) : sums[i];
  int4mm_finish_scaled<LAYER>(e, row, column, N, bias, x);
}

#endif
