/*
 * skinny: few rows, the weights streamed once through registers (sm_80 on).
 *
 * With few rows the product is bound by reading B, so what matters is enough bytes in flight: a warp owns 32 columns
 * and a share of K, and copies what it will itself read into its own stages of shared memory with cp.async, each lane
 * 16 bytes of a row of B at a time. Stages are private to a warp, so there is no barrier in the mainloop, and shared
 * memory serves as a deep register file for loads in flight (Little's law asks for some 26 KB per SM on an H200).
 *
 * Consecutive calls overlap (programmatic dependent launch, sm_90): dependents are launched when the last copies have
 * been issued, and the next grid prefetches its first rows of B into L2 before it waits for this one.
 *
 * A k-block is 16 words (128 values). mma m16n8k32 wants, per lane, one register of four k at column lane / 4: the even
 * nibbles of one word of B give its first register, the odd ones its second, so slice j of a k-block takes the words
 * 4t + j of lane-in-quad t (see unpack.cuh), and the four columns of a 16-byte load go to four mmas, whose column c is
 * column 4c + i of the stripe. Int4 tensor cores (sm_80 to 89) take words 4t + j and 4t + j + 1 as they lie, m16n8k64.
 *
 * Where B is [N, K/8], each of four 16-byte loads of a lane has its words of all slices for the column of one mma, and
 * the quad has the k-block's 64 bytes of that column. With two k-blocks to a stage a copy reads whole lines of 128;
 * such a stage is copied and waited for in two parts, each with half of the columns, so that no more products are left
 * when the last bytes land.
 *
 * K is split over the warps of a CTA and, where columns are few, over a cluster (sm_90); int32 partial sums are added
 * in shared memory, which is exact in any order.
 *
 * This file is the kernel, and W4A4 with a scale for each column; skinny_general.cuh is what else there is: other
 * activations, group scales, factors and zero points.
 */
#ifndef INT4MM_SKINNY_CUH
#define INT4MM_SKINNY_CUH

#include "common/epilogue.cuh"
#include "common/experts.cuh"
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "common/shapes.h"
#include "common/unpack.cuh"
#include "sm80/skinny_quantize.cuh"

namespace {

constexpr int BLOCK_WORDS = INT4MM_BLOCK_WORDS; /* packed words of k in a k-block */
constexpr int COLUMNS = INT4MM_SKINNY_COLUMNS;  /* of a warp's stripe */
constexpr int CHUNK_WORDS = 4;                  /* a lane's part of a copy: 16 bytes */
constexpr int CHUNK_BYTES = 32 * 16;            /* a chunk of all lanes */

/* What all shapes have. What is wanted first stands together, since each line of arguments that a kernel touches first
 * costs it some 100 ns. */
struct SkinnyCommon {
  const uint32_t *b;
  int64_t ldb;
  int M, N, words;      /* words of k: K / 8 */
  int warps_n, warps_k; /* of a CTA: along the columns, along K */
  uint32_t reciprocal;  /* 2^16 over warps_n, rounded up: a division takes 40 instructions */
  int split;            /* CTAs of a cluster that share K */
  int rotation_length;  /* stages that every warp has, times the warps that share K */
  int rotation_starts;  /* a power of two up to what a warp has of them: the places where CTAs begin */
  uint32_t xor_a, xor_b;
};

struct SkinnyArguments : SkinnyCommon {
  const uint32_t *a;
  int64_t lda;
  EpilogueArguments epilogue;
  OwnRows own; /* of a shape with OWN_CHUNKS */
};

inline void set_warps(SkinnyCommon *p, const int4mm_plan *plan) {
  p->warps_n = plan->tile_n / COLUMNS, p->warps_k = plan->tile_k / INT4MM_BLOCK_K, p->split = plan->split_k;
  p->reciprocal = (65536 + p->warps_n - 1) / p->warps_n;
}

/* Lengths that a launcher finds from a plan: K is rotated over the stages of `words` that every warp has. */
inline void set_rotation(SkinnyCommon *p, int words) {
  int stride = p->split * p->warps_k, rounds = (p->words + words - 1) / words / stride;
  p->rotation_length = rounds * stride;
  for (p->rotation_starts = 1; 2 * p->rotation_starts <= rounds;) p->rotation_starts *= 2;
}

/* What becomes of words of A and B, some of each row and column at a time: the registers of an mma, which permutes k
 * alike for both. Int4 tensor cores take two words as they lie; int8 ones the even and the odd nibbles of one. */
struct Int4Words {
  static constexpr int COUNT = 2;
  static constexpr float UNSCALE = 1;
  uint32_t xor_a, xor_b;
  __device__ __forceinline__ Int4Words(uint32_t xor_a, uint32_t xor_b) : xor_a(xor_a), xor_b(xor_b) {}
  __device__ __forceinline__ void rows(uint32_t (&to)[4], const uint32_t (&x)[2], const uint32_t (&y)[2]) const {
    to[0] = x[0] ^ xor_a, to[1] = y[0] ^ xor_a, to[2] = x[1] ^ xor_a, to[3] = y[1] ^ xor_a;
  }
  __device__ __forceinline__ void column(uint32_t (&to)[2], const uint32_t (&w)[2]) const {
    to[0] = w[0] ^ xor_b, to[1] = w[1] ^ xor_b;
  }
  static __device__ __forceinline__ void mma(int32_t (&acc)[4], const uint32_t (&rows)[4],
                                             const uint32_t (&column)[2]) {
    ptx::mma_m16n8k64_movable(acc, rows, column[0], column[1]);
  }
};
template <bool WIDE> struct Int8Words {
  static constexpr int COUNT = 1;
  static constexpr float UNSCALE = Unpacker<WIDE>::UNSCALE;
  Unpacker<WIDE> a, b;
  __device__ __forceinline__ Int8Words(uint32_t xor_a, uint32_t xor_b) : a(xor_a), b(xor_b) {}
  __device__ __forceinline__ void rows(uint32_t (&to)[4], const uint32_t (&x)[1], const uint32_t (&y)[1]) const {
    to[0] = a.even(x[0]), to[1] = a.even(y[0]), to[2] = a.odd(x[0]), to[3] = a.odd(y[0]);
  }
  __device__ __forceinline__ void column(uint32_t (&to)[2], const uint32_t (&w)[1]) const {
    to[0] = b.even(w[0]), to[1] = b.odd(w[0]);
  }
  static __device__ __forceinline__ void mma(int32_t (&acc)[4], const uint32_t (&rows)[4],
                                             const uint32_t (&column)[2]) {
    ptx::mma_m16n8k32(acc, rows, column[0], column[1]);
  }
};

/* ROWS of A (8, 16, 32 or 64) per CTA, STAGES in flight per warp. LAYER: with activation and residual. NK: B
 * is [N, K/8], else [K/8, N]. ALIGNED: rows of A and B start on 16 bytes. ROTATED: neighbouring CTAs begin K at
 * different k-blocks; a CTA has one stripe. OWN_CHUNKS: not 0, a CTA makes its A itself, each warp of so many chunks.
 * BLOCKS: k-blocks of a stage, and its parts; two where of rows of [N, K/8] whole lines are to be copied. */
template <int ROWS_, int STAGES_, bool LAYER_, bool NK_, bool ALIGNED_, bool WIDE_, bool ROTATED_ = false,
          int OWN_CHUNKS_ = 0, int BLOCKS_ = 1>
struct Shape {
  typedef SkinnyArguments Arguments;
  typedef int32_t Sum;
  static constexpr int ROWS = ROWS_, STAGES = STAGES_;
  static constexpr bool LAYER = LAYER_, NK = NK_, ALIGNED = ALIGNED_, WIDE = WIDE_, ROTATED = ROTATED_;
  static constexpr bool ONE_STRIPE = ROTATED, GENERAL = false, FINISHES = false;
  static constexpr int PREFETCHED = 2; /* k-blocks of a warp, before the grid ahead of this one has ended */
  static constexpr int OWN_CHUNKS = OWN_CHUNKS_, BLOCKS = BLOCKS_;
  static constexpr int ROW_TILES = (ROWS + 15) / 16; /* of an mma */
  static constexpr int A_CHUNKS = ROWS / 8;          /* per lane and k-block: rows g, g + 8, ... */
  static constexpr int CHUNKS = 4 + A_CHUNKS;        /* B's first */
  static constexpr int CTAS = ROWS <= 16 && ALIGNED && !OWN_CHUNKS_ ? 2 : 1;
  static constexpr int BLOCK_BYTES = CHUNKS * CHUNK_BYTES, WARP_BYTES = STAGES * BLOCKS * BLOCK_BYTES;
  static_assert(BLOCK_BYTES == INT4MM_SKINNY_B_BYTES + ROWS / 8 * INT4MM_SKINNY_A_BYTES, "the plan counts other bytes");
  static_assert(ROWS * COLUMNS * 4 <= WARP_BYTES, "partial sums must fit where the stages were");
  typedef typename std::conditional<ptx::HAS_INT4, Int4Words, Int8Words<WIDE>>::type Words;
  static constexpr float UNSCALE = Words::UNSCALE;
  struct Sums {
    int32_t acc[ROW_TILES][4][4];
  }; /* of a lane: of each mma */
  struct Waiting {};
  struct Source { /* there is nothing that a shape of few rows would keep */
    __device__ __forceinline__ Source(const Arguments &, int, int) {}
    static constexpr __device__ bool is_ready() { return true; }
  };
  static constexpr __device__ int block_bytes(const Arguments &) { return BLOCK_BYTES; }
  static constexpr __device__ int stages(const Arguments &) { return STAGES; }
  static __device__ __forceinline__ bool more(const Arguments &, int, int step, int steps) { return step < steps; }
  template <int PART> static __device__ __forceinline__ void wait(const Source &) {
    ptx::cp_async_wait_group<STAGES * BLOCKS - 1 - PART>();
  }
  static __device__ __forceinline__ void select_expert(Arguments &, const int4mm_experts &, int) {}
};

/* Warps of a CTA along the columns, and a number below 64 divided by it. */
template <class S> __device__ __forceinline__ int warps_n(const SkinnyCommon &p) {
  return S::ONE_STRIPE ? 1 : p.warps_n;
}
template <class S> __device__ __forceinline__ int by_warps_n(const SkinnyCommon &p, int x) {
  return S::ONE_STRIPE ? x : (int)((uint32_t)x * p.reciprocal >> 16);
}

/* Bytes of shared memory that a warp has for its stages. */
template <class S> __device__ __forceinline__ int warp_bytes(const typename S::Arguments &p) {
  return S::stages(p) * S::BLOCKS * S::block_bytes(p);
}

/* ---- mainloop ---- */

/* Copies the first `valid` of four words (may be negative or above 4); the rest of the chunk is undefined. LINES: the
 * rest of the 128-byte line will be read as well. */
template <bool ALIGNED, bool THROUGH_L1, bool LINES = false>
__device__ __forceinline__ void copy_words(uint32_t shared, const uint32_t *from, int valid) {
  if (ALIGNED) {
    if (valid <= 0) return;
    if (LINES)
      ptx::cp_async16_line(shared, from, 4 * min(valid, CHUNK_WORDS));
    else if (THROUGH_L1)
      ptx::cp_async16_l1(shared, from, 4 * min(valid, CHUNK_WORDS));
    else
      ptx::cp_async16(shared, from, 4 * min(valid, CHUNK_WORDS));
  } else {
#pragma unroll
    for (int i = 0; i < CHUNK_WORDS; i++)
      if (i < valid) ptx::cp_async4(shared + 4 * i, from + i);
  }
}

/* Where in a row-times-column block of chunks the one of quad row t and column group g lies: swizzled, so that both the
 * copying lanes (a quad row after the other) and the reading ones (t fastest) are free of bank conflicts. */
__device__ __forceinline__ uint32_t chunk_offset(int t, int g) {
  return (8 * t + (g ^ 2 * t)) * 16;
}

/* [N, K/8] in stages of two k-blocks: where chunk c of the eight of column 4g + i lies. A column has a line of shared
 * memory, since copies past L1 are fast where a quarter-warp reads one line and writes one; in it chunks are swizzled
 * so that neither the same chunk of all g nor four chunks of an even g and the next have bank conflicts. The columns of
 * i from 2 on lie in the second k-block's part of the stage. */
__device__ __forceinline__ uint32_t line_offset(int block_bytes, int i, int g, int c) {
  return i / 2 * block_bytes + i % 2 * 1024 + g * 128 + (c ^ (g % 2 * 4 + g / 2)) * 16;
}

/* Copies of B of [K/8, N]: lanes along a row first, since a copy past L1 goes to L2 in whole sectors of a
 * quarter-warp's neighbours only. */
template <class S>
__device__ __forceinline__ void copy_b_kn(const SkinnyArguments &p, uint32_t stage, int k_block, int first_column,
                                          int lane) {
  const int t = lane / 8, g = lane % 8;
  const int word = k_block * BLOCK_WORDS + 4 * t, column = first_column + 4 * g;
  const uint32_t *b = p.b + word * p.ldb + column;
  uint32_t chunk = stage + chunk_offset(t, g);
#pragma unroll
  for (int j = 0; j < 4; j++, b += p.ldb)
    if (word + j < p.words) copy_words<S::ALIGNED, false>(chunk + j * CHUNK_BYTES, b, p.N - column);
}

/* Of [N, K/8]: column 4g + i, words 4t .. for the lane itself. */
template <class S>
__device__ __forceinline__ void copy_b_nk(const SkinnyArguments &p, uint32_t stage, int k_block, int first_column) {
  constexpr int UNROLL = S::ALIGNED ? 4 : 1; /* word by word registers are few */
  const int lane = threadIdx.x % 32, word = k_block * BLOCK_WORDS + lane % 4 * 4, column = first_column + lane / 4 * 4;
  const uint32_t *b = p.b + column * p.ldb + word;
#pragma unroll UNROLL
  for (int i = 0; i < 4; i++, b += p.ldb)
    if (column + i < p.N) copy_words<S::ALIGNED, false, true>(stage + i * CHUNK_BYTES + lane * 16, b, p.words - word);
}

/* The same of two k-blocks, with eight lanes along a column: of a part the columns 4g + i of two i. */
template <class S>
__device__ __forceinline__ void copy_b_lines(const SkinnyArguments &p, uint32_t stage, int k_block, int first_column,
                                             int part) {
  const int i = 2 * part + threadIdx.x / 8 % 2, c = threadIdx.x % 8, word = k_block * BLOCK_WORDS + 4 * c;
  const int odd = threadIdx.x / 16 % 2, column = first_column + 4 * odd + i;
  const uint32_t *b = p.b + column * p.ldb + word;
#pragma unroll
  for (int g = 0; g < 8; g += 2, b += 8 * p.ldb)
    if (column + 4 * g < p.N)
      copy_words<true, false>(stage + line_offset(S::BLOCK_BYTES, i, g + odd, c), b, p.words - word);
}

/* A: row g + 8r, words 4t .. for the lane itself. */
template <class S>
__device__ __forceinline__ void copy_a(const SkinnyArguments &p, uint32_t stage, int k_block, int first_row, int lane) {
  const int word = k_block * BLOCK_WORDS + lane % 4 * 4;
#pragma unroll
  for (int r = 0; r < S::A_CHUNKS; r++) {
    int row = first_row + lane / 4 + 8 * r;
    if (row < p.M)
      copy_words<S::ALIGNED, true>(stage + (4 + r) * CHUNK_BYTES + lane * 16, p.a + row * p.lda + word, p.words - word);
  }
}

/* Issues this warp's copies of a part of a step's k-blocks to the stage at `stage`, with the first that of A. Rows and
 * columns outside the matrices are not copied: their sums are never stored. */
template <class S>
__device__ __forceinline__ void copy_step(const SkinnyArguments &p, uint32_t stage, int step, int first_row,
                                          int first_column, int part) {
  const int k_block = step * S::BLOCKS, lane = threadIdx.x % 32;
  if constexpr (!S::NK)
    copy_b_kn<S>(p, stage, k_block, first_column, lane);
  else if constexpr (S::BLOCKS == 2)
    copy_b_lines<S>(p, stage, k_block, first_column, part);
  else
    copy_b_nk<S>(p, stage, k_block, first_column);
  if (part > 0) return;
#pragma unroll
  for (int h = 0; h < S::BLOCKS; h++)
    if constexpr (!S::OWN_CHUNKS) copy_a<S>(p, stage + h * S::BLOCK_BYTES, k_block + h, first_row, lane);
}

/* Where chunk i of this lane's B lies, from a k-block's part of a stage on. */
template <class S> __device__ __forceinline__ int b_offset(int block, int i) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  if (S::BLOCKS == 2) return (int)line_offset(S::BLOCK_BYTES, i, g, 4 * block + t) - block * S::BLOCK_BYTES;
  return (S::NK ? 16 * (4 * g + t) : (int)chunk_offset(t, g)) + i * CHUNK_BYTES;
}

/* The products of a part of a k-block from this lane's chunks. */
template <class S>
__device__ __forceinline__ void multiply_k_block(int32_t (&acc)[S::ROW_TILES][4][4], const SkinnyArguments &p,
                                                 uint32_t stage, int k_block, const OwnWords &own,
                                                 const typename S::Words &words, int part) {
  const int lane = threadIdx.x % 32, first = 4 / S::BLOCKS * part, last = first + 4 / S::BLOCKS;
  uint4 b[4], a[2 * S::ROW_TILES];
#pragma unroll
  for (int i = first; i < last; i++) b[i] = ptx::ld_shared_v4(stage + b_offset<S>(k_block % S::BLOCKS, i));
#pragma unroll
  for (int r = 0; r < 2 * S::ROW_TILES; r++)
    a[r] = r < S::A_CHUNKS && !S::OWN_CHUNKS ? ptx::ld_shared_v4(stage + (4 + r) * CHUNK_BYTES + lane * 16)
                                             : make_uint4(0, 0, 0, 0);
  if (S::OWN_CHUNKS && lane / 4 < p.M)
    a[0] = *(const uint4 *)(own.words + lane / 4 * own.stride + k_block * BLOCK_WORDS + lane % 4 * 4);
  int valid = p.words - k_block * BLOCK_WORDS - lane % 4 * 4;
  if (valid < 4) { /* past K: zeros in B, so that the undefined words of A do not count */
#pragma unroll
    for (int j = first; j < last; j++)
      if (S::NK) {
        b[j].x = valid > 0 ? b[j].x : p.xor_b, b[j].y = valid > 1 ? b[j].y : p.xor_b;
        b[j].z = valid > 2 ? b[j].z : p.xor_b, b[j].w = p.xor_b;
      } else if (j >= valid) {
        b[j] = make_uint4(p.xor_b, p.xor_b, p.xor_b, p.xor_b);
      }
  }
  constexpr int COUNT = S::Words::COUNT;
#pragma unroll
  for (int j = 0; j < 4; j += COUNT) {
    uint32_t fragments[S::ROW_TILES][4];
#pragma unroll
    for (int m = 0; m < S::ROW_TILES; m++) {
      uint32_t x[COUNT], y[COUNT];
#pragma unroll
      for (int k = 0; k < COUNT; k++) x[k] = element(a[2 * m], j + k), y[k] = element(a[2 * m + 1], j + k);
      words.rows(fragments[m], x, y);
    }
#pragma unroll
    for (int i = first; i < last; i++) {
      uint32_t w[COUNT], column[2];
#pragma unroll
      for (int k = 0; k < COUNT; k++) w[k] = S::NK ? element(b[i], j + k) : element(b[j + k], i);
      words.column(column, w);
#pragma unroll
      for (int m = 0; m < S::ROW_TILES; m++) S::Words::mma(acc[m][i], fragments[m], column);
    }
  }
}

/* ---- reduction over the warps and CTAs that share K ---- */

/* This lane's partial sums as a [ROWS, COLUMNS] matrix in shared memory. */
template <class S>
__device__ __forceinline__ void store_partial(uint32_t matrix, const int32_t (&acc)[S::ROW_TILES][4][4]) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < S::A_CHUNKS; r++) {
    uint32_t row = matrix + ((g + 8 * r) * COLUMNS + 8 * t) * 4;
    const int32_t(&c)[4][4] = acc[r / 2];
    int lower = r % 2 * 2;
    ptx::st_shared_v4(row, c[0][lower], c[1][lower], c[2][lower], c[3][lower]);
    ptx::st_shared_v4(row + 16, c[0][lower + 1], c[1][lower + 1], c[2][lower + 1], c[3][lower + 1]);
  }
}

/* sum += x, of int32 or of float32 by their bits. */
template <class Sum> __device__ __forceinline__ void add_sums(int4 &sum, const int4 &x) {
  if constexpr (std::is_same<Sum, float>::value) {
    sum.x = __float_as_int(__fadd_rn(__int_as_float(sum.x), __int_as_float(x.x)));
    sum.y = __float_as_int(__fadd_rn(__int_as_float(sum.y), __int_as_float(x.y)));
    sum.z = __float_as_int(__fadd_rn(__int_as_float(sum.z), __int_as_float(x.z)));
    sum.w = __float_as_int(__fadd_rn(__int_as_float(sum.w), __int_as_float(x.w)));
  } else {
    sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
  }
}

/* Scales and finishes four columns of a row. */
template <class S>
__device__ __forceinline__ void finish_sums(const typename S::Arguments &p, int row, int column, const float &scale_a,
                                            const float (&scale_b)[CHUNK_WORDS], const float (&bias)[CHUNK_WORDS],
                                            const int4 &sum) {
  const int32_t acc[CHUNK_WORDS] = {sum.x, sum.y, sum.z, sum.w};
  if constexpr (std::is_same<typename S::Sum, float>::value) {
    float x[CHUNK_WORDS];
#pragma unroll
    for (int i = 0; i < CHUNK_WORDS; i++) x[i] = __fmul_rn(S::UNSCALE * __int_as_float(acc[i]), scale_b[i]);
    int4mm_finish_scaled<S::LAYER>(p.epilogue, row, column, p.N, bias, x);
  } else {
    int4mm_finish<S::LAYER>(p.epilogue, row, column, p.N, S::UNSCALE, scale_a, scale_b, bias, acc);
  }
}

/* Where a thread finishes outputs: four columns of the CTA's, of every step-th row from one on. */
struct Finisher {
  int row, column, step;
  template <class S> static __device__ __forceinline__ Finisher of(const SkinnyCommon &p) {
    constexpr int LANES = COLUMNS / CHUNK_WORDS; /* for a stripe's row */
    int fours = threadIdx.x / LANES, row = by_warps_n<S>(p, fours);
    return {row, (fours - row * warps_n<S>(p)) * COLUMNS + (int)threadIdx.x % LANES * CHUNK_WORDS,
            32 / LANES * p.warps_k};
  }
};

/* Adds the partial sums of the warps that share columns, then the cluster's, and finishes. A thread has the same 4
 * columns in every row that it takes: the threads of a CTA are whole rows of the stripe. Sums of floats are added in
 * the order of the warps and CTAs. */
template <class S>
__device__ __forceinline__ void reduce(const typename S::Arguments &p, uint32_t base, int first_row, int first_column,
                                       const Finisher &of, const float (&scale_b)[CHUNK_WORDS],
                                       const float (&bias)[CHUNK_WORDS], const OwnWords &own) {
  const int bytes = warp_bytes<S>(p);
  const int rows = min(S::ROWS, p.M - first_row), rank = blockIdx.y, column = of.column, step = of.step;
  uint32_t partial = base + column / COLUMNS * bytes + column % COLUMNS * 4; /* of the first warp with it */
  auto finish = [&](int row, const int4 &sum) {
    if (first_column + column >= p.N) return;
    float scale_a = S::OWN_CHUNKS                                 ? own.scales[row]
                    : std::is_same<typename S::Sum, float>::value ? 1
                                                                  : __ldg(p.epilogue.scale_a + first_row + row);
    finish_sums<S>(p, first_row + row, first_column + column, scale_a, scale_b, bias, sum);
  };

  for (int row = of.row; row < rows; row += step) {
    int4 sum = make_int4(0, 0, 0, 0);
    uint32_t at = partial + row * COLUMNS * 4;
#pragma unroll 4
    for (int w = 0; w < p.warps_k; w++, at += warps_n<S>(p) * bytes) {
      uint4 x = ptx::ld_shared_v4(at);
      add_sums<typename S::Sum>(sum, make_int4(x.x, x.y, x.z, x.w));
    }
    if (p.split > 1)
      ptx::st_shared_v4(partial + row * COLUMNS * 4, sum.x, sum.y, sum.z, sum.w);
    else
      finish(row, sum);
  }
  if (p.split == 1) return;
  ptx::cluster_arrive();
  ptx::cluster_wait();
  for (int row = of.row * p.split + rank; row < rows; row += step * p.split) {
    int4 sum = make_int4(0, 0, 0, 0);
    for (int r = 0; r < p.split; r++)
      add_sums<typename S::Sum>(sum, ptx::ld_shared_cluster_v4(ptx::mapa(partial + row * COLUMNS * 4, r)));
    finish(row, sum);
  }
  ptx::cluster_arrive(); /* no CTA exits while its shared memory is being read */
  ptx::cluster_wait();
}

/* ---- the kernel ---- */

/* Prefetches B of a step into L2, a lane for each row: half a warp calls it, or with NK a warp. It reads nothing, so
 * it need not wait for the prerequisite grids, and memory is busy while they end and this one starts. */
template <class S> __device__ __forceinline__ void prefetch(const SkinnyCommon &p, int step, int first_column) {
  int word = step * S::BLOCKS * BLOCK_WORDS + (S::NK ? 0 : threadIdx.x % BLOCK_WORDS);
  int column = first_column + (S::NK ? threadIdx.x % 32 : 0);
  if (word < p.words && column < p.N) ptx::prefetch_l2(p.b + (S::NK ? column * p.ldb + word : word * p.ldb + column));
}

template <class S> __device__ __forceinline__ OwnWords own_words(uint8_t *base, const typename S::Arguments &p) {
  if constexpr (S::OWN_CHUNKS > 0)
    return OwnWords(base, p.own, p.words);
  else
    return OwnWords();
}

/* A CTA's rows, from first_row on, of its columns. */
template <class S> __device__ __forceinline__ void multiply_rows(const typename S::Arguments &p, int first_row) {
  extern __shared__ __align__(256) uint8_t memory[];
  const int warp = threadIdx.x / 32, warps = warps_n<S>(p) * p.warps_k, along_k = by_warps_n<S>(p, warp);
  const int block_bytes = S::block_bytes(p), stage_bytes = S::BLOCKS * block_bytes, bytes = warp_bytes<S>(p);
  uint32_t base = ptx::smem_address(memory), stages = base + warp * bytes;
  int stripe_column = blockIdx.x * warps_n<S>(p) * COLUMNS;
  int first_column = stripe_column + (warp - along_k * warps_n<S>(p)) * COLUMNS;
  /* K in steps, each a stage of k-blocks. */
  constexpr int STEP_WORDS = S::BLOCKS * BLOCK_WORDS;
  int steps = (p.words + STEP_WORDS - 1) / STEP_WORDS, stride = p.split * p.warps_k;
  int step = blockIdx.y * p.warps_k + along_k;
  /* The steps that every warp has are rotated, so that the CTAs begin at different ones. */
  int rotation = (blockIdx.x & (p.rotation_starts - 1)) * stride;
  auto rotated = [&](int step) {
    if (!S::ROTATED || step >= p.rotation_length) return step;
    return step + rotation < p.rotation_length ? step + rotation : step + rotation - p.rotation_length;
  };
  if (S::NK) {
    prefetch<S>(p, rotated(step), first_column);
    if (S::BLOCKS < S::PREFETCHED) prefetch<S>(p, rotated(step + stride), first_column);
  } else if (threadIdx.x % 32 < S::PREFETCHED * BLOCK_WORDS) {
    prefetch<S>(p, rotated(step + threadIdx.x % 32 / BLOCK_WORDS * stride), first_column);
  }
  [[maybe_unused]] const typename S::Words words(p.xor_a, p.xor_b);
  typename S::Sums sums = {};
  const typename S::Source source(p, first_row, first_column);

  auto copy = [&](uint32_t stage, int step) {
#pragma unroll
    for (int part = 0; part < S::BLOCKS; part++) {
      if (step < steps) {
        if constexpr (S::GENERAL)
          S::copy(source, p, stage, rotated(step), first_row, first_column, part);
        else
          copy_step<S>(p, stage, rotated(step), first_row, first_column, part);
      }
      ptx::cp_async_commit_group();
    }
  };
  auto copy_stages = [&] {
#pragma unroll
    for (int i = 0; i < S::stages(p); i++) copy(stages + i * stage_bytes, step + i * stride);
  };

  if (source.is_ready()) ptx::griddepcontrol_wait();
  const OwnWords own = own_words<S>(memory + warps * bytes, p);
  if constexpr (S::OWN_CHUNKS > 0)
    make_own_words<S::OWN_CHUNKS>(p.own, own, copy_stages);
  else
    copy_stages();
  if constexpr (S::GENERAL) S::begin(sums, p, base + warps * bytes, first_row, first_column);
  uint32_t stage = stages;
  constexpr int UNROLL = !S::GENERAL && S::LAYER && S::ROWS == 16 ? 1 : S::BLOCKS; /* its registers are few */
  for (int round = 0; S::more(p, round, step, steps); round++, step += stride) {
    [[maybe_unused]] typename S::Waiting pending;
    const int k_block = rotated(step) * S::BLOCKS;
    auto multiply = [&](auto constant) {
      constexpr int part = decltype(constant)::value;
      S::template wait<part>(source);
      __syncwarp(); /* every lane's copies have landed */
#pragma unroll UNROLL
      for (int h = 0; h < S::BLOCKS; h++) {
        if constexpr (!S::GENERAL)
          multiply_k_block<S>(sums.acc, p, stage + h * block_bytes, k_block + h, own, words, part);
        else if (step < steps) /* rounds are those of the warp that has most */
          S::multiply(sums, pending, source, p, stage + h * block_bytes, k_block + h, round, part);
      }
    };
    multiply(std::integral_constant<int, 0>());
    if constexpr (S::BLOCKS == 2) multiply(std::integral_constant<int, 1>());
    __syncwarp(); /* every lane's loads have been used, so the stage is free */
    copy(stage, step + S::stages(p) * stride);
    stage = stage + stage_bytes == stages + bytes ? stages : stage + stage_bytes;
    if constexpr (S::GENERAL)
      if (step < steps) S::add(sums, pending, source, p);
    if constexpr (S::GENERAL) S::end_round(sums, p, round);
  }
  /* Not sooner: CTAs of the next grid that only wait would take the places of this one's on the SMs that are free. */
  ptx::griddepcontrol_launch_dependents();
  if constexpr (S::FINISHES) {
    S::finish(sums, p, first_row);
  } else {
    float scale_b[CHUNK_WORDS], bias[CHUNK_WORDS]; /* of the columns that this thread will finish, loaded meanwhile */
    const Finisher of = Finisher::of<S>(p);
    int scaled = stripe_column + of.column;
    bool has_scale = !S::GENERAL || p.epilogue.scale_b;
#pragma unroll
    for (int i = 0; i < CHUNK_WORDS; i++)
      scale_b[i] = has_scale ? scaled + i < p.N ? __ldg(p.epilogue.scale_b + scaled + i) : 0 : 1;
    int4mm_load_bias(bias, p.epilogue, scaled, p.N);

    ptx::cp_async_wait_group<0>();
    __syncwarp(); /* other lanes' chunks are about to be overwritten */
    if constexpr (S::GENERAL)
      S::store_partial(base + warp * bytes, sums);
    else
      store_partial<S>(base + warp * bytes, sums.acc);
    __syncthreads();
    reduce<S>(p, base, first_row, stripe_column, of, scale_b, bias, own);
  }
}

template <class S>
__global__ void __launch_bounds__(S::ROWS == 64 ? 256 : 512, S::CTAS)
    skinny(const __grid_constant__ typename S::Arguments p) {
  multiply_rows<S>(p, blockIdx.z * S::ROWS);
}

/* Rows of one expert of a grouped product, with arguments that lie in shared memory. CTAs are smaller, so that several
 * on an SM hide each other's beginning and end. */
template <class S>
__global__ void __launch_bounds__(256, S::CTAS == 2   ? 3
                                       : S::ROWS < 64 ? 2
                                                      : 1)
    skinny_experts(const __grid_constant__ typename S::Arguments p, const __grid_constant__ int4mm_experts experts) {
  __shared__ typename S::Arguments own;
  ptx::griddepcontrol_wait();
  const ExpertTile tile = find_expert_tile<S::ROWS>(experts, p.M, blockIdx.z);
  const int columns = warps_n<S>(p) * COLUMNS;
  if (tile.expert == -1 && blockIdx.y == 0)
    zero_tile(p.epilogue, tile.row, min(tile.end, tile.row + S::ROWS), blockIdx.x * columns, columns, p.N);
  if (tile.expert < 0) return;
  if (threadIdx.x == 0) {
    own = p, own.M = tile.end;
    own.b += tile.expert * experts.b;
    if (own.epilogue.scale_b) own.epilogue.scale_b += tile.expert * experts.scales;
    if (own.epilogue.bias) own.epilogue.bias += tile.expert * experts.bias;
    S::select_expert(own, experts, tile.expert);
  }
  __syncthreads();
  multiply_rows<S>(own, tile.row);
}

/* ---- host ---- */

/* How many CTAs there are along M at most. */
template <class S> int64_t row_tiles(const int4mm_problem *problem) {
  const int32_t experts = problem->experts.count;
  return experts ? int4mm_expert_tiles(problem->M, experts, S::ROWS) : (problem->M + S::ROWS - 1) / S::ROWS;
}

/* A CTA for each stripe of columns and each of row_tiles(), in clusters that split K. EXPERTS: there is code for
 * grouped products. */
template <class S, bool EXPERTS>
cudaError_t launch_grid(const int4mm_problem *problem, const typename S::Arguments &p, size_t bytes, int device,
                        cudaStream_t stream) {
  const int threads = 32 * p.warps_n * p.warps_k, stripe = p.warps_n * COLUMNS;
  const dim3 grid((p.N + stripe - 1) / stripe, p.split, (unsigned)row_tiles<S>(problem)), cluster(1, p.split);
  const int4mm_shared shared(bytes, p.split == 1); /* clusters find no place otherwise */
  if (!problem->experts.count) return int4mm_launch<skinny<S>>(device, grid, threads, shared, cluster, stream, p);
  if constexpr (EXPERTS)
    return int4mm_launch<skinny_experts<S>>(device, grid, threads, shared, cluster, stream, p, problem->experts);
  return cudaErrorNotSupported;
}

} // namespace
#endif
