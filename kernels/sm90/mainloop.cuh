/*
 * What the wgmma kernels for Hopper (sm_90a) share: how a k-block and a tile are laid out, the mainloop of a consumer
 * warpgroup, the epilogue of a tile, and the tensor maps.
 *
 * Hopper has no int4 tensor instruction, so packed words are widened to int8 on chip, A on its way from shared memory
 * to the fragments that wgmma takes from registers, B on its way into shared memory, K-major in the 128-byte swizzle.
 *
 * A k-block is 128 values of k: 16 words. A wgmma takes 32 of them, a slice: slice j is the four words 4t + j,
 * t = 0..3, their even nibbles in bytes 0..15, their odd ones in bytes 16..31 (see unpack.cuh). Then one 128-bit shared
 * load per row gives a lane its A fragments of all four slices.
 *
 * The columns of a tile are permuted as well: an unpacking lane l reads the columns 4l .. 4l + 3 with one load and
 * writes them to the rows l, l + BN / 4, ... of the int8 tile. That gives a consumer thread accumulators of 8
 * neighbouring columns (gather), so the epilogue stores 16 bytes at a time. So column c of a tile is row
 * c % 4 * BN / 4 + c / 4 of the int8 tile, however B lies in memory.
 *
 * The copy engine takes rows that start on 16 bytes, from columns that do. A has such rows: where it has not, it was
 * copied before the launch (src/ops/). For B see RowMaps.
 *
 * What A and B are is a type Kind (kinds.cuh). An int8 A comes as it is, [BM, 128 bytes] a k-block in the 128-byte
 * swizzle. Of a row a lane has 32 bytes, of which 8j .. 8j + 7 are what its word 4t + j would be unpacked.
 *
 * A kernel's tile is a type T with its size BM x BN and
 *   Kind              of the product
 *   NK                B is [N, K/8], else [K/8, N]
 *   ALIGNED           rows of B start on 16 bytes
 *   OUT_ALIGNED       rows of out do
 *   ROW_BLOCKS        of 64 rows that a warpgroup multiplies
 *   FRAGMENT_BUFFERS  groups of wgmmas that may be in flight at a time
 *   K_GROUPS          consumer warpgroups that share a tile's k-blocks, each with every K_GROUPS-th
 *   FRAGMENT_ROWS     how many of the two rows that a thread has in each row block it finishes
 *   UNPACK_LANES      a quarter of BN; in [K/8, N], the lanes of a warp that unpack a row of B, four columns each
 *   UNPACK_COLUMNS    times four words that a lane unpacks at a time
 *   COLUMN_GROUPS     of 32 columns, which a quad of lanes holds 8 by 8
 *   STAGES_A, _8      depths of the pipelines of packed A and int8 B in shared memory
 *   LAYER             may have an activation and a residual, and stores as any tile does: OUT_ALIGNED has no meaning
 *   CALLS             finishes 8 columns of a row by a call
 *   EXPERTS           of a grouped product
 */
#ifndef INT4MM_MAINLOOP_CUH
#define INT4MM_MAINLOOP_CUH

#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "sm90/kinds.cuh"
#include "sm90/pipeline.cuh"

namespace {

constexpr int SLICES = 4;  /* of a k-block, one for each wgmma */
constexpr int COLUMNS = 8; /* of an output row that a thread holds side by side */

struct Arguments {
  int M, N, words; /* words of k of B */
  int tiles_m, tiles_n;
  int split;    /* CTAs that share a tile's K, a cluster */
  int box_rows; /* of A in a copy: a tile's, or M where that is less. Filling rows with zeros takes longer than copying
                 */
  const uint32_t *b;
  int64_t ldb;
  const int8_t *zeros; /* of the columns, or NULL */
  uint32_t xor_a, xor_b;
  bool early_b; /* B may be read before the prerequisite grids have completed */
  EpilogueArguments epilogue;
  int4mm_experts experts;
};

/* ---- copies ---- */

/* What the copy engine needs to know of B. Where its rows start on 16 bytes that is one map. Of any other matrix the
 * rows r, r + 4, r + 8, ... lie a multiple of 16 bytes apart, so that four maps serve, map[r] for those rows: it begins
 * on 16 bytes, `shift` words before its first row, and boxes are four words wider. In shared memory the rows of a box
 * lie in the order of r first. That is also the order which the int8 tile has of columns, so that rows of [N, K/8] are
 * always copied so. */
template <int MAPS> struct RowMaps {
  static_assert(MAPS == 1 || MAPS == 4, "16 bytes are four words");
  CUtensorMap map[MAPS];
  int shift[MAPS];
};

/* A lane's copy of the box at (x, y), which as many lanes issue as there are maps, those of a warp from a multiple of
 * that many on. With four maps lane r copies a quarter of the rows: y + r, y + r + 4, ...; y is a multiple of 4. */
template <int MAPS> struct BoxCopy {
  int r, x, y;
  const CUtensorMap *map;
  __device__ __forceinline__ BoxCopy(const RowMaps<MAPS> &maps, int x, int y)
      : r(threadIdx.x % MAPS), x(x), y(y / MAPS), map(&maps.map[r]) {}
};

/* ---- the unpacking of B ---- */

/* Four words of WIDTH columns, widened to int8; word(i, t) gives them. */
template <class Unpack, int WIDTH> struct Unpacked {
  uint32_t even[WIDTH][4], odd[WIDTH][4];

  template <class Word> __device__ __forceinline__ Unpacked(const Unpack &unpacker, Word word) {
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
#pragma unroll
      for (int t = 0; t < 4; t++) {
        auto w = word(i, t);
        even[i][t] = unpacker.even(w), odd[i][t] = unpacker.odd(w);
      }
    keep_in_registers(even), keep_in_registers(odd); /* so that the stores follow each other */
  }

  /* Makes 0 of the words that are not inside(i, t). */
  template <class Inside> __device__ __forceinline__ void mask(Inside inside) {
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
#pragma unroll
      for (int t = 0; t < 4; t++)
        if (!inside(i, t)) even[i][t] = odd[i][t] = 0;
  }

  /* Those of a slice: to the halves of its 32 bytes. */
  __device__ __forceinline__ void store(int i, uint32_t low, uint32_t high) const {
    ptx::st_shared_v4(low, even[i][0], even[i][1], even[i][2], even[i][3]);
    ptx::st_shared_v4(high, odd[i][0], odd[i][1], odd[i][2], odd[i][3]);
  }
};

/* Where slice 0 of a row of an int8 tile begins, in the 128-byte swizzle; slice j is this ^ 32 * j, its odd half ^ 16.
 */
__device__ __forceinline__ uint32_t int8_row(uint32_t tile, uint32_t row) {
  return tile + row * BLOCK_K + ((row & 7) << 4);
}

/* ---- products ---- */

/* A thread's first row in its warpgroup's row block, as wgmma's fragments have it; the second is 8 below. */
__device__ __forceinline__ int fragment_row() {
  return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

/* A lane's part of A, int4: a k-block's words 4t .. 4t + 3 of rows g and g + 8 of each 64-row block. */
template <class T> struct WordsA {
  uint32_t offset; /* in a stage */
  Unpacker<T::Kind::WIDE> unpack;
  uint4 low[T::ROW_BLOCKS], high[T::ROW_BLOCKS];

  __device__ __forceinline__ WordsA(const Arguments &p, int row_in_tile)
      : offset((row_in_tile * BLOCK_WORDS + threadIdx.x % 4 * 4) * 4), unpack(p.xor_a) {}
  __device__ __forceinline__ void load(uint32_t stage) {
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++) {
      low[b] = ptx::ld_shared_v4(stage + offset + b * 64 * BLOCK_WORDS * 4);
      high[b] = ptx::ld_shared_v4(stage + offset + (b * 64 + 8) * BLOCK_WORDS * 4);
    }
  }
  __device__ __forceinline__ void load_next(uint32_t, int) {}
  __device__ __forceinline__ void make_fragments(uint32_t (&to)[SLICES][4], int block) const {
#pragma unroll
    for (int j = 0; j < SLICES; j++) {
      to[j][0] = unpack.even(element(low[block], j)), to[j][1] = unpack.even(element(high[block], j));
      to[j][2] = unpack.odd(element(low[block], j)), to[j][3] = unpack.odd(element(high[block], j));
    }
  }
};

/* The same of an int8 A: bytes 32t .. 32t + 31 of the two rows. Twice as much, and so of one row block at a time: the
 * next one's are loaded when its wgmmas have been issued. */
template <class T> struct BytesA {
  uint32_t offset; /* in a stage, of the first of two 16-byte chunks, in the 128-byte swizzle */
  uint4 low[2], high[2];

  __device__ __forceinline__ BytesA(const Arguments &, int row_in_tile)
      : offset(row_in_tile * BLOCK_K + ((threadIdx.x % 4 * 2 ^ threadIdx.x % 32 / 4) << 4)) {}
  __device__ __forceinline__ void load(uint32_t stage) { load_next(stage, 0); }
  __device__ __forceinline__ void load_next(uint32_t stage, int block) {
    uint32_t first = stage + offset + block * 64 * BLOCK_K, second = first ^ 16;
    low[0] = ptx::ld_shared_v4(first), low[1] = ptx::ld_shared_v4(second);
    high[0] = ptx::ld_shared_v4(first + 8 * BLOCK_K), high[1] = ptx::ld_shared_v4(second + 8 * BLOCK_K);
  }
  __device__ __forceinline__ void make_fragments(uint32_t (&to)[SLICES][4], int) const {
#pragma unroll
    for (int j = 0; j < SLICES; j++) {
      uint32_t x = element(low[j / 2], j % 2 * 2), y = element(low[j / 2], j % 2 * 2 + 1);
      to[j][0] = __byte_perm(x, y, 0x6420), to[j][2] = __byte_perm(x, y, 0x7531);
      x = element(high[j / 2], j % 2 * 2), y = element(high[j / 2], j % 2 * 2 + 1);
      to[j][1] = __byte_perm(x, y, 0x6420), to[j][3] = __byte_perm(x, y, 0x7531);
    }
  }
};

/* Zero points: a consumer's sums of rows of A, which are 1 << SHIFT_A times too large, and z of the columns of lane l,
 * 4l .. 4l + 3, a byte each. */
template <class T, bool ANY = T::Kind::ZEROS> struct ZeroPoints { /* none */
  __device__ __forceinline__ void begin(const Arguments &, bool) {}
  __device__ __forceinline__ void add(int, const uint32_t (&)[SLICES][4]) {}
  __device__ __forceinline__ void load(const Arguments &, const TileCoord &) {}
  __device__ __forceinline__ void subtract(int32_t (&)[T::ROW_BLOCKS][T::BN / 2]) {}
};
template <class T> struct ZeroPoints<T, true> {
  int32_t sums[T::ROW_BLOCKS][2];
  uint32_t columns;

  /* For a tile's k-blocks, the last one among them or not: past K an A of words in the offset encoding reads as -8. */
  __device__ __forceinline__ void begin(const Arguments &p, bool last) {
    int past = -p.words & (BLOCK_WORDS - 1);
    bool counts = !T::Kind::INT8_A && p.xor_a && last && threadIdx.x % 4 == 0; /* one lane of a row's four */
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++) sums[b][0] = sums[b][1] = counts ? past * 8 * 8 << T::Kind::SHIFT_A : 0;
  }
  __device__ __forceinline__ void add(int block, const uint32_t (&fragments)[SLICES][4]) {
#pragma unroll
    for (int j = 0; j < SLICES; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) sums[block][i % 2] = __dp4a((int)fragments[j][i], 0x01010101, sums[block][i % 2]);
  }
  __device__ __forceinline__ void load(const Arguments &p, const TileCoord &at) {
    int first = at.n * T::BN + threadIdx.x % 32 * 4;
    columns = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (threadIdx.x % 32 < T::UNPACK_LANES && first + i < p.N)
        columns |= (uint32_t)__ldg((const uint8_t *)p.zeros + first + i) << 8 * i;
  }
  /* Makes sums what they are with zero points, no longer too large. */
  __device__ __forceinline__ void subtract(int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2]) {
#pragma unroll
    for (int i = 0; i < 2 * T::ROW_BLOCKS; i++) {
      int32_t &sum = sums[i / 2][i % 2];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      sum >>= T::Kind::SHIFT_A;
    }
#pragma unroll
    for (int four = 0; four < T::BN / 16; four++) { /* neighbouring columns, the first or last of a column group's */
      __syncwarp();                                 /* or the compiler works on many at once, and spills */
      uint32_t zeros = __shfl_sync(0xffffffffu, columns, four / 2 * 8 + threadIdx.x % 4 * 2 + four % 2);
#pragma unroll
      for (int c = 0; c < 4; c++) {
        int32_t z = (int8_t)(zeros >> 8 * c);
        int i = (c * T::COLUMN_GROUPS + four / 2) * 4 + four % 2;
#pragma unroll
        for (int b = 0; b < T::ROW_BLOCKS; b++) {
          acc[b][i] = (acc[b][i] >> T::Kind::SHIFT) - z * sums[b][0];
          acc[b][i + 2] = (acc[b][i + 2] >> T::Kind::SHIFT) - z * sums[b][1];
        }
      }
    }
  }
};

/* The wgmmas of a row block and k-block, committed as a group. */
template <class T>
__device__ __forceinline__ void multiply(int32_t (&acc)[T::BN / 2], const uint32_t (&fragments)[SLICES][4], uint64_t b,
                                         bool accumulate) {
  if (T::ROW_BLOCKS == T::FRAGMENT_BUFFERS) keep_in_registers(acc); /* else the group before is still writing to acc */
  ptx::wgmma_fence();
#pragma unroll
  for (int j = 0; j < SLICES; j++) ptx::wgmma<T::BN>(acc, fragments[j], b + 2 * j, accumulate || j > 0);
  ptx::wgmma_commit_group();
}

/* The mainloop of a consumer warpgroup, which takes every K_GROUPS-th of a tile's k-blocks. S finds the stages and
 * barriers in shared memory. A k-block is a group of wgmmas for each row block. With two FRAGMENT_BUFFERS two groups
 * are in flight at a time, so that one is unpacked while the other is multiplied: the two row blocks of a k-block, or
 * with one row block two k-blocks. */
template <class T, class S> struct Consumer {
  const S &shared;
  typename std::conditional<T::Kind::INT8_A, BytesA<T>, WordsA<T>>::type a;
  PipelineState<T::STAGES_A> state_a;
  PipelineState<T::STAGES_8> state_b8;
  int32_t acc[T::ROW_BLOCKS][T::BN / 2];
  uint32_t fragments[T::FRAGMENT_BUFFERS][SLICES][4];
  ZeroPoints<T> zeros;
  int reading, read; /* stages of int8 B that groups in flight read: the last k-block's and the one before it; or -1 */

  __device__ __forceinline__ Consumer(const S &shared, const Arguments &p, int row_in_tile)
      : shared(shared), a(p, row_in_tile) {}

  __device__ __forceinline__ void load_a() {
    ptx::mbarrier_wait(shared.full_a(state_a.index), state_a.phase);
    a.load(shared.a(state_a.index));
  }

  __device__ __forceinline__ void release_b8(int &stage) {
    if (stage >= 0) shared.release_b8(stage);
    stage = -1;
  }

  /* PARITY of the k-block among those of this tile, which tells the fragment buffer that is free. Int8 B is waited for
   * when all else is done, since it mostly comes last. */
  template <int PARITY> __device__ __forceinline__ void multiply_k_block(bool first, bool last) {
#pragma unroll
    for (int block = 0; block < T::ROW_BLOCKS; block++) {
      uint32_t(&buffer)[SLICES][4] = fragments[T::ROW_BLOCKS == 2 ? block : PARITY];
      ptx::wgmma_wait_group<T::FRAGMENT_BUFFERS - 1>();
      if (T::FRAGMENT_BUFFERS == 1 || block == 1) release_b8(reading);
      if (T::FRAGMENT_BUFFERS == 2 && T::ROW_BLOCKS == 1) release_b8(read), read = reading;
      a.make_fragments(buffer, block);
      keep_in_registers(buffer); /* all of them, before the fence of the wgmmas */
      if (block == 0) ptx::mbarrier_wait(shared.full_b8(state_b8.index), state_b8.phase);
      multiply<T>(acc[block], buffer, ptx::make_smem_desc(shared.b8(state_b8.index)), !first);
      zeros.add(block, buffer);
      if (block + 1 < T::ROW_BLOCKS) a.load_next(shared.a(state_a.index), block + 1);
    }
    shared.release_a(state_a.index); /* only now: its words have been used */
    state_a.advance(T::K_GROUPS);
    reading = state_b8.index;
    state_b8.advance(T::K_GROUPS);
    if (!last) load_a();
  }

  /* The products of `k_blocks` k-blocks, at least one, left in acc. while_last() is called while the last are in
   * flight; with zero points, which begin() before, it loads these. */
  template <class F> __device__ __forceinline__ void multiply_tile(int k_blocks, F while_last) {
    reading = read = -1;
    load_a();
    /* So that what subtract() left of another tile does not stay in registers, where these are few. */
    if (T::Kind::ZEROS && T::FRAGMENT_BUFFERS == 2 && (T::ROW_BLOCKS == 1 || T::LAYER))
#pragma unroll
      for (int i = 0; i < T::ROW_BLOCKS * T::BN / 2; i++) acc[i / (T::BN / 2)][i % (T::BN / 2)] = 0;
    int i = 0;
    if constexpr (T::ROW_BLOCKS < T::FRAGMENT_BUFFERS) { /* the compiler has to see that fragments alternate */
#pragma unroll 1
      for (; i + 1 < k_blocks; i += 2) {
        multiply_k_block<0>(i == 0, false);
        multiply_k_block<1>(false, i + 2 == k_blocks);
      }
      if (i < k_blocks) multiply_k_block<0>(i == 0, true);
    } else {
#pragma unroll 1
      for (; i < k_blocks; i++) multiply_k_block<0>(i == 0, i + 1 == k_blocks);
    }
    while_last();
    ptx::wgmma_wait_group<0>();
    release_b8(read);
    release_b8(reading);
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++) keep_in_registers(acc[b]);
    zeros.subtract(acc);
  }
};

/* ---- epilogue ---- */

/* The scales of a tile, loaded while its last products are in flight: lane l holds those of the columns 4l .. 4l + 3,
 * and every lane those of its own rows. The bias, for which there are no registers, goes to L1. */
template <class T> struct Scales {
  float column[4], row[T::ROW_BLOCKS][T::FRAGMENT_ROWS];

  __device__ __forceinline__ void load(const Arguments &p, const TileCoord &at, int first_row) {
    int first = at.n * T::BN + threadIdx.x % 32 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
      column[i] = threadIdx.x % 32 < T::UNPACK_LANES && first + i < p.N ? __ldg(p.epilogue.scale_b + first + i) : 0;
    if (p.epilogue.bias && threadIdx.x % 32 < T::UNPACK_LANES && first < p.N) ptx::prefetch_l1(p.epilogue.bias + first);
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
        int r = first_row + b * 64 + lower * 8;
        row[b][lower] = r < p.M ? __ldg(p.epilogue.scale_a + r) : 0;
      }
  }

  /* Those of this lane's 8 columns in a column group. All lanes of the warp call it. */
  __device__ __forceinline__ void gather(float (&to)[COLUMNS], int group) const {
    gather_columns(to, column, group);
  }

  static __device__ __forceinline__ void gather_columns(float (&to)[COLUMNS], const float (&from)[4], int group) {
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
      to[i] = __shfl_sync(0xffffffffu, from[i % 4], group * 8 + threadIdx.x % 4 * 2 + i / 4);
  }
};

/* The bias of a tile that lies whole inside the output, where there is one: lane l holds that of the columns 4l ..
 * 4l + 3, loaded once. Each row's loads would wait for L2: stores go between them. */
template <class T> struct Bias {
  bool any;
  float column[4];

  __device__ __forceinline__ Bias(const Arguments &p, const TileCoord &at) : any(p.epilogue.bias != nullptr), column() {
    if (!any || threadIdx.x % 32 >= T::UNPACK_LANES) return;
#pragma unroll
    for (int i = 0; i < 4; i++) column[i] = __ldg(p.epilogue.bias + at.n * T::BN + threadIdx.x % 32 * 4 + i);
  }
  __device__ __forceinline__ void gather(float (&to)[COLUMNS], int group) const {
    if (any) Scales<T>::gather_columns(to, column, group);
  }
  __device__ __forceinline__ void add(float (&x)[COLUMNS], const float (&mine)[COLUMNS]) const {
    if (!any) return;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) x[i] = __fadd_rn(x[i], mine[i]);
  }
};

/* A thread's sums of 8 neighbouring columns of one row: the `lower` of its two fragment rows, in a column group. */
template <class T>
__device__ __forceinline__ void gather(int32_t (&to)[COLUMNS], const int32_t (&acc)[T::BN / 2], int lower, int group) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) to[i] = acc[(i % 4 * T::COLUMN_GROUPS + group) * 4 + lower * 2 + i / 4];
}

/* 8 neighbouring columns of a row, scaled, and their bias, or NULL, added. `row_scale` has UNSCALE in it. */
template <class T>
__device__ __forceinline__ void scale_columns(float (&x)[COLUMNS], const int32_t (&acc)[T::BN / 2], int lower,
                                              int group, float row_scale, const float (&scale_b)[COLUMNS],
                                              const float *bias) {
  int32_t sums[COLUMNS];
  gather<T>(sums, acc, lower, group);
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) x[i] = __fmul_rn(__fmul_rn((float)sums[i], row_scale), scale_b[i]);
  if (bias) int4mm_add_bias(x, bias, 0, COLUMNS);
}

/* The epilogue of a tile that lies whole inside an output of aligned rows, without activation and residual:
 * straight-line code, a third of the general one's, whose size would cost more in instruction fetches than its
 * arithmetic. */
template <class T, int DTYPE, class Owns>
__device__ __forceinline__ void epilogue_full_tile(const Arguments &p, const TileCoord &at, int first_row,
                                                   const Scales<T> &scales,
                                                   const float (&row_scale)[T::ROW_BLOCKS][T::FRAGMENT_ROWS],
                                                   const int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2], Owns owns) {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  /* Registers are few: scales are gathered for every row. */
  constexpr bool TIGHT = (T::NK || T::Kind::AFFINE || T::EXPERTS) && T::ROW_BLOCKS == 2;
  int first_column = at.n * T::BN + threadIdx.x % 4 * COLUMNS;
  Word *out = (Word *)p.epilogue.out + first_row * p.epilogue.ldo + first_column;
  const Bias<T> bias(p, at);
#pragma unroll
  for (int group = 0; group < T::COLUMN_GROUPS; group++) {
    if (!owns(group)) continue;
    __syncwarp(); /* or the compiler works on several groups at once, and spills */
    float scale_b[COLUMNS], bias_b[COLUMNS] = {};
    scales.gather(scale_b, group);
    if (!TIGHT) bias.gather(bias_b, group);
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
        if (TIGHT) {
          __syncwarp();
          scales.gather(scale_b, group);
        }
        float x[COLUMNS];
        scale_columns<T>(x, acc[b], lower, group, row_scale[b][lower], scale_b, nullptr);
        if (TIGHT) bias.gather(bias_b, group);
        bias.add(x, bias_b);
        int4mm_store_vector<DTYPE>(out + (b * 64 + lower * 8) * p.epilogue.ldo + group * 32, x);
      }
  }
}

/* The same for an output whose rows start anywhere. Whole rows of the tile, or where only some groups are this CTA's,
 * those groups are the spans. */
template <class T, int DTYPE, class Owns>
__device__ __forceinline__ void epilogue_any_rows(const Arguments &p, const TileCoord &at, int first_row,
                                                  const Scales<T> &scales,
                                                  const float (&row_scale)[T::ROW_BLOCKS][T::FRAGMENT_ROWS],
                                                  const int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2], Owns owns) {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  bool whole = owns(0) && owns(1);
  const float *bias = p.epilogue.bias ? p.epilogue.bias + at.n * T::BN + threadIdx.x % 4 * COLUMNS : nullptr;
#pragma unroll
  for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
    for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
      Word *out = (Word *)p.epilogue.out + (first_row + b * 64 + lower * 8) * p.epilogue.ldo + at.n * T::BN;
      SpanStore<DTYPE> span(out);
      asm volatile("" : "+l"(bias)); /* read anew for each row, since registers are few */
#pragma unroll
      for (int group = 0; group < T::COLUMN_GROUPS; group++) {
        if (!owns(group)) continue;
        __syncwarp(); /* as above */
        float scale_b[COLUMNS], x[COLUMNS];
        scales.gather(scale_b, group);
        scale_columns<T>(x, acc[b], lower, group, row_scale[b][lower], scale_b, bias ? bias + group * 32 : nullptr);
        if (!whole) span = SpanStore<DTYPE>(out + group * 32);
        span.store(x, whole ? group * 32 : 0);
        if (!whole) span.finish(32);
      }
      if (whole) span.finish(T::BN);
    }
}

/* COLUMNS neighbours of one row, scaled. */
struct Unit {
  float x[COLUMNS];
};

/* What follows the scales, for COLUMNS neighbours of one row. */
template <class T> __device__ __forceinline__ void finish_scaled(const Arguments &p, int row, int column, Unit unit) {
  if (p.epilogue.bias) int4mm_add_bias(unit.x, p.epilogue.bias, column, p.N);
  if (T::LAYER) int4mm_finish_layer(unit.x, p.epilogue, row, column, p.N);
  int4mm_store(p.epilogue, row, column, p.N, unit.x);
}

/* A call, not inlined, where T::CALLS: a thread of a large tile has many units, and the code of the activations for
 * each would be half a megabyte. */
template <class T> __device__ __noinline__ void call_finish_scaled(const Arguments &p, int row, int column, Unit unit) {
  finish_scaled<T>(p, row, column, unit);
}

/* Finishes what a thread has of any tile, as far as it lies inside the output. Large tiles do it for layers alone. */
template <class T, class Owns>
__device__ __forceinline__ void epilogue_any_tile(const Arguments &p, const TileCoord &at, int first_row,
                                                  const Scales<T> &scales,
                                                  const int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2], Owns owns) {
#pragma unroll
  for (int group = 0; group < T::COLUMN_GROUPS; group++) {
    if (!owns(group)) continue;
    int column = at.n * T::BN + group * 32 + threadIdx.x % 4 * COLUMNS;
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
        int32_t sums[COLUMNS];
        float scale_b[COLUMNS]; /* anew for each row: registers are few */
        scales.gather(scale_b, group);
        gather<T>(sums, acc[b], lower, group);
        int row = first_row + b * 64 + lower * 8;
        if (row < p.M && column < p.N) {
          Unit unit;
          /* Affine kinds have fewer registers. */
          float scale_a = T::Kind::AFFINE ? __ldg(p.epilogue.scale_a + row) : scales.row[b][lower];
          int4mm_scale_sums(unit.x, sums, T::Kind::UNSCALE, scale_a, scale_b);
          if constexpr (T::CALLS)
            call_finish_scaled<T>(p, row, column, unit);
          else
            finish_scaled<T>(p, row, column, unit);
        }
      }
  }
}

/* Finishes what a thread has: FRAGMENT_ROWS of each row block, and of their columns the groups that owns(group) names.
 */
template <class T, class Owns>
__device__ __forceinline__ void epilogue(const Arguments &p, const TileCoord &at, int first_row,
                                         const Scales<T> &scales, const int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2],
                                         Owns owns) {
  if constexpr (T::LAYER) return epilogue_any_tile<T>(p, at, first_row, scales, acc, owns);
  /* A row's scale takes in UNSCALE where that is exact: not among the subnormals. */
  float row_scale[T::ROW_BLOCKS][T::FRAGMENT_ROWS];
  const int last_row = first_row + (T::ROW_BLOCKS - 1) * 64 + (T::FRAGMENT_ROWS - 1) * 8;
  bool inside = (!T::OUT_ALIGNED || p.epilogue.vector_store) && last_row < p.M && (at.n + 1) * T::BN <= p.N;
#pragma unroll
  for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
    for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
      float scale = scales.row[b][lower];
      row_scale[b][lower] = __fmul_rn(scale, T::Kind::UNSCALE);
      inside = inside && __fmul_rn(row_scale[b][lower], 1 / T::Kind::UNSCALE) == scale;
    }
  if (!__all_sync(0xffffffffu, inside)) return epilogue_any_tile<T>(p, at, first_row, scales, acc, owns);
  int4mm_for_out_dtype(p.epilogue.out_dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    if constexpr (T::OUT_ALIGNED)
      epilogue_full_tile<T, DTYPE>(p, at, first_row, scales, row_scale, acc, owns);
    else
      epilogue_any_rows<T, DTYPE>(p, at, first_row, scales, row_scale, acc, owns);
  });
}

/* ---- host ---- */

/* A map of elements [rows, columns], int32 or uint8, that copies boxes of box_rows x box_columns. */
template <class Element>
cudaError_t map_matrix(CUtensorMap *map, const Element *data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows, int box_columns, CUtensorMapSwizzle swizzle) {
  EncodeTiled encode;
  cudaError_t error = find_encoder(&encode);
  if (error != cudaSuccess) return error;
  CUtensorMapDataType type = sizeof(Element) == 4 ? CU_TENSOR_MAP_DATA_TYPE_INT32 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, pitch[1] = {(cuuint64_t)stride * sizeof(Element)};
  cuuint32_t box[2] = {(cuuint32_t)box_columns, (cuuint32_t)box_rows}, step[2] = {1, 1};
  CUresult result = encode(map, type, 2, (void *)data, size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

/* The maps of a matrix. No row or column that it has not is within their extents. */
template <int MAPS>
cudaError_t map_rows(RowMaps<MAPS> *maps, const uint32_t *words, int64_t rows, int64_t columns, int64_t stride,
                     int box_rows, int box_columns, CUtensorMapSwizzle swizzle) {
  if (MAPS == 1) return map_matrix(&maps->map[0], words, rows, columns, stride, box_rows, box_columns, swizzle);
  cudaError_t error = cudaSuccess;
  for (int r = 0; r < MAPS && error == cudaSuccess; r++) {
    bool any = r < rows; /* else one word, which no other than the first row has: with this shift it is not seen */
    const uint32_t *first = any ? words + r * stride : words;
    int before = (int)((uintptr_t)first / 4 % 4);
    maps->shift[r] = before;
    error = map_matrix(&maps->map[r], first - before, any ? (rows - r + MAPS - 1) / MAPS : 1,
                       any ? columns + before : 1, stride * MAPS, box_rows / MAPS, box_columns, swizzle);
  }
  return error;
}

/* Whether rows of B start on 16 bytes, and those of out. */
bool is_aligned(const int4mm_operand &b) {
  return (uintptr_t)b.words % 16 == 0 && b.stride % 4 == 0;
}
bool is_out_aligned(const int4mm_problem &problem) {
  return int4mm_epilogue_arguments(&problem, COLUMNS).vector_store;
}

/* Calls launch(kind), the Kind of a problem. */
template <class F> cudaError_t for_kind(const int4mm_problem *problem, F launch) {
  bool int8 = problem->a.dtype == INT4MM_INT8;
  if (problem->b.factors.data) return int8 ? launch(Kind<true, true>()) : launch(Kind<false, true>());
  if (problem->b.zeros.data)
    return int8 ? launch(Kind<true, false, false, true>()) : launch(Kind<false, false, false, true>());
  return int8 ? launch(Kind<true, false>()) : launch(Kind<false, false>());
}

/* Calls launch(layer, nk, aligned, out_aligned), constants: the instance for a problem. Layers have one way to store,
 * and other kinds than W4A4 take it for rows of B or out that start off 16 bytes: fewer instances.
 * Elsewhere rows of B that start off 16 bytes come with the more general stores. Those of out alone are as rare in
 * [K/8, N] (an N of 8n + 4) as they are common in [N, K/8], so that only there aligned copies come with general stores
 * as well. */
template <class F, class Kind> cudaError_t for_layout(const int4mm_problem *problem, Kind, bool aligned, F launch) {
  bool nk = problem->b.layout == INT4MM_K_MAJOR, out = is_out_aligned(*problem), layer = int4mm_is_layer(problem);
  int4mm_constant<0> no;
  int4mm_constant<1> yes;
  constexpr bool W4A4 = !Kind::AFFINE && !Kind::INT8_A && !Kind::ZEROS;
  if constexpr (!W4A4) layer = layer || !aligned || !out;
  if (layer) {
    if (nk) return aligned ? launch(yes, yes, yes, yes) : launch(yes, yes, no, no);
    return aligned ? launch(yes, no, yes, yes) : launch(yes, no, no, no);
  }
  if constexpr (!W4A4)
    return nk ? launch(no, yes, yes, yes) : launch(no, no, yes, yes);
  else {
    if (nk) return !aligned ? launch(no, yes, no, no) : out ? launch(no, yes, yes, yes) : launch(no, yes, yes, no);
    return aligned && out ? launch(no, no, yes, yes) : launch(no, no, no, no);
  }
}

/* The arguments of a problem in tiles of tile_m x tile_n. */
Arguments make_arguments(const int4mm_problem *problem, const int4mm_plan *plan) {
  Arguments p = {};
  p.M = (int)problem->M, p.N = (int)problem->N, p.words = (int)int4mm_words_of_k(problem);
  p.tiles_m = (p.M + plan->tile_m - 1) / plan->tile_m, p.tiles_n = (p.N + plan->tile_n - 1) / plan->tile_n;
  p.split = plan->split_k, p.box_rows = p.M < plan->tile_m ? p.M : plan->tile_m;
  p.zeros = (const int8_t *)problem->b.zeros.data;
  p.b = problem->b.words, p.ldb = problem->b.stride;
  p.xor_a = problem->a.xor_mask, p.xor_b = problem->b.xor_mask, p.early_b = problem->early_b;
  p.epilogue = int4mm_epilogue_arguments(problem, COLUMNS);
  p.experts = problem->experts;
  return p;
}

/* The map of A. */
template <class T> cudaError_t map_a_of(CUtensorMap *map, const int4mm_problem *problem, const Arguments &p) {
  const int4mm_operand *a = &problem->a;
  if (T::Kind::INT8_A)
    return map_matrix(map, (const uint8_t *)a->data, problem->M, problem->K, a->stride, p.box_rows, BLOCK_K,
                      CU_TENSOR_MAP_SWIZZLE_128B);
  return map_matrix(map, a->words, problem->M, problem->K / 8, a->stride, p.box_rows, BLOCK_WORDS,
                    CU_TENSOR_MAP_SWIZZLE_NONE);
}

} // namespace
#endif
