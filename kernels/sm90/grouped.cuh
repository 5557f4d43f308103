/*
 * grouped: middle and large M on Hopper (sm_90a) where weights go to wgmma from registers: sums over groups of k that
 * are scaled one by one, W4A16, and int8 activations with a scale for each column.
 *
 *   groups    t = 0, t = fma(float(acc_g), scale_b[g, n], t) for the groups in order; out = t * scale_a[m] + bias[n]
 *   columns   out = float(acc) * scale_a[m] * scale_b[n] + bias[n]
 *
 * The operands change roles: wgmma's A, from registers, are 64 columns of B, and its B, from shared memory, is a tile
 * of activations, as they were copied. So the two rows of a thread's fragments are two columns of the output, and it
 * needs two scales for all of its sums. Persistent CTAs, each computing tiles of BM rows and BN columns of the output:
 *
 *   producers   a warpgroup: bulk tensor copies of packed B [16 words, BN] and activations [BM, 128], which lie in
 *               shared memory as int8 or 16-bit floats, K-major in the 128-byte swizzle; scales and zero points of
 *               groups in the form that consumers want, or factors. An int4 A comes widened to int8
 *               (src/dispatch/choose.c)
 *   consumers   two warpgroups of BLOCKS blocks of 64 columns each: packed B -> fragments in registers, wgmma,
 *               promotion to float32 sums, epilogue straight from registers
 *
 * A k-block is 128 values of k. With groups its products are done in chains: CHAIN rows of the output and the values of
 * k of one group. A chain's wgmmas leave their sums in accumulators which are then promoted: converted, and added by an
 * fma to the float32 sums of the tile, DeepGEMM's way with fp8. With two sets of accumulators that happens while the
 * next chain is under way. With one, consumers take turns, so that one multiplies while the other promotes: in step
 * with each other they would leave the tensor cores idle. What bounds it is that promotion, and in W4A16 the card's
 * power.
 *
 * A small tile's k-block is bound by latency: a warp that issues a wgmma whose A comes from registers waits until the
 * one before has begun, so that it hides little of its own. There consumers share a tile's k-blocks, each with RUN of
 * every K_GROUPS x RUN, and only the promotion has an order: the tile's sums are handed on in shared memory.
 *
 * With a scale for each column all of K is one sum, and the fragments of a k-block are made while the one before is
 * multiplied. Per k-block and 256 x 128 tile, 1024 clocks of wgmma, it moves 112 KB through shared memory; with the
 * roles of hopper.cu, which writes int8 activations and weights and reads them again, that is 160 KB of at most 128.
 */
#ifndef INT4MM_GROUPED_CUH
#define INT4MM_GROUPED_CUH

#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"
#include "common/shapes.h"
#include "sm90/grouped_b.cuh"
#include "sm90/kinds.cuh"
#include "sm90/pipeline.cuh"
#include "sm90/tile_scheduler.cuh"

namespace {

constexpr int BOX_COLUMNS = 32; /* of packed B in a copy: 128 bytes */
constexpr int BOX_BYTES = BOX_COLUMNS * BLOCK_WORDS * 4;
constexpr int ROW_BYTES = 128; /* of a part of a row of activations */

/* KIND of activations; GROUP: 32, 64 or 128 (in W4A16 any multiple of it), or 0: any multiple of 128, for tiles of one
 * block and as many chains as sets of accumulators, or PER_COLUMN; what B's WEIGHTS are; BM rows; BLOCKS of 64 columns
 * to a consumer; rows to a CHAIN; sets of accumulators; pipeline depth; consumers; K_GROUPS: as many
 * as consumers where these share a tile's k-blocks, else 1; a grouped product. */
constexpr int PER_COLUMN = -1;
template <int KIND_, int GROUP_, int WEIGHTS_, int BM_, int BLOCKS_, int CHAIN_, int ACCS_, int STAGES_, int CONSUMERS_,
          int K_GROUPS_, bool EXPERTS_>
struct Tile {
  static constexpr int KIND = KIND_, GROUP = GROUP_, WEIGHTS = WEIGHTS_, BM = BM_, BLOCKS = BLOCKS_;
  static constexpr bool FLOAT = KIND == W4A16_HALF || KIND == W4A16_BFLOAT, COLUMNS = GROUP == PER_COLUMN;
  static constexpr bool HAS_FACTORS = WEIGHTS == AFFINE, GROUP_ZEROS = !COLUMNS && (WEIGHTS == ZEROS || FLOAT);
  /* Integers that are not 16 times their value, where looking at each scale whether it takes in a sixteenth would cost
   * more than the two instructions with which a zero point, or 0, is subtracted. */
  static constexpr bool SMALL_GROUPS = GROUP == 32 || GROUP == 64;
  typedef typename PolicyB<KIND, SMALL_GROUPS ? ZEROS : WEIGHTS>::type B;
  static constexpr int CONSUMERS = CONSUMERS_, K_GROUPS = K_GROUPS_, BN = 64 * CONSUMERS / K_GROUPS * BLOCKS,
                       THREADS = 128 * (1 + CONSUMERS);
  static constexpr int CTAS = CONSUMERS == 1 || K_GROUPS == 2 ? 2 : 1; /* of an SM */
  static constexpr int GROUP_M = 2048 / BM;                            /* tile rows in which tiles are rasterised */
  static constexpr bool EXPERTS = EXPERTS_;

  static constexpr int SLICES = FLOAT ? 8 : 4;                /* of a k-block: what one wgmma takes of k */
  static constexpr int PARTS = SLICES / 4;                    /* of a k-block: 128 bytes of a row of activations */
  static constexpr int GROUPS = GROUP <= 0 ? 1 : 128 / GROUP; /* of a k-block */
  static constexpr int GROUP_SLICES = SLICES / GROUPS;
  static constexpr int CHAIN = CHAIN_, CHAINS = BM / CHAIN, ITEMS = CHAINS * GROUPS;
  static constexpr int ACCS = ACCS_;
  /* Words are loaded ahead: there are registers for them. */
  static constexpr bool AHEAD = K_GROUPS == 1 && (!FLOAT || BM * BLOCKS < 256);
  static constexpr bool TURNS = ACCS == 1 && BM > 64 && !COLUMNS; /* small tiles are bound by latency */
  /* k-blocks that a consumer takes at a time where consumers share them. */
  static constexpr int RUN = K_GROUPS > 1 ? ACCS : 1;
  /* Warps that copy; the others bring scales. Where k-blocks are quick, one thread would not keep up. */
  static constexpr int COPIERS = K_GROUPS > 1 && GROUPS == 1 && BM *PARTS <= 64 ? 2 : 1;
  /* The next grid's CTAs come when all is copied: of those that came at once two would be on some SMs and none on
   * others, or the quantiser of a layer would be late. */
  static constexpr bool LAUNCHES_LATE = !FLOAT && K_GROUPS > 1;
  static constexpr int BUFFERS = COLUMNS ? 2 : 1; /* of fragments */
  static_assert(ACCS == 1 || CHAINS > 1 || RUN > 1, "no second chain");
  static_assert(RUN == 1 || ITEMS == 1, "a k-block has several groups");
  static_assert(GROUP > 0 || (BLOCKS == 1 && CHAINS == ACCS), "sums of a group stay in the accumulators");
  static_assert(K_GROUPS == 1 || (K_GROUPS == CONSUMERS && BLOCKS == 1 && CHAINS == 1 && GROUP > 0 && !EXPERTS),
                "each consumer has all of a k-block");
  static_assert(!COLUMNS || !FLOAT, "a scale for each column is for integers");
  static_assert(COLUMNS || !HAS_FACTORS, "factors have a scale for each column");

  /* A stage: activations, packed B, and for each group a row of scales and of zero points, or for each unit one of
   * factors, bytes; and its barriers. There are as many as fit, at most those asked for. */
  static constexpr int A_BYTES = BM * ROW_BYTES * PARTS, B_BYTES = BN * BLOCK_WORDS * 4,
                       SCALE_BYTES = COLUMNS ? HAS_FACTORS * UNITS * BN : GROUPS * BN * 4,
                       ZERO_BYTES = GROUP_ZEROS ? SCALE_BYTES : 0, STAGE_BARRIERS = 2;
  static constexpr int SUMS_BYTES = K_GROUPS > 1 ? BM *BN * 4 : 0; /* a tile's, handed on */
  static constexpr int FITTING =
      (SHARED_LIMIT / CTAS - (CTAS > 1 ? 1024 : 0) - SUMS_BYTES - (EXPERTS ? TABLE_BYTES : 0)) /
      (A_BYTES + B_BYTES + SCALE_BYTES + ZERO_BYTES + 8 * STAGE_BARRIERS);
  static constexpr int STAGES = (STAGES_ < FITTING ? STAGES_ : FITTING) / RUN * RUN;
  static constexpr int B_OFFSET = STAGES * A_BYTES, SCALE_OFFSET = B_OFFSET + STAGES * B_BYTES,
                       ZERO_OFFSET = SCALE_OFFSET + STAGES * SCALE_BYTES,
                       SUMS_OFFSET = ZERO_OFFSET + STAGES * ZERO_BYTES, BARRIER_OFFSET = SUMS_OFFSET + SUMS_BYTES,
                       BARRIERS = STAGE_BARRIERS * STAGES, TABLE_OFFSET = BARRIER_OFFSET + 8 * BARRIERS,
                       SHARED_BYTES = TABLE_OFFSET + (EXPERTS ? TABLE_BYTES : 0);

  static_assert(STAGES >= K_GROUPS * RUN, "a consumer may not skip a phase of a stage");

  /* Registers per thread: what the launch gives each, and what that leaves. */
  static constexpr int REGISTERS = 65536 / (CTAS * THREADS) / 8 * 8;
  static constexpr int PRODUCER_REGISTERS = K_GROUPS == 2        ? 32
                                            : K_GROUPS > 1       ? 56
                                            : BM < 256           ? 72
                                            : COLUMNS || EXPERTS ? 40
                                                                 : 24;
  static constexpr int CONSUMER_REGISTERS = (REGISTERS * (1 + CONSUMERS) - PRODUCER_REGISTERS) / CONSUMERS / 8 * 8;
};

struct Arguments {
  int M, N, K, tiles_m, tiles_n;
  int k_blocks; /* a multiple of T::RUN: the last ones may lie beyond K */
  int box_rows; /* of activations in a copy: a tile's, or M where that is less */
  bool boxes;   /* map_b has a dimension of boxes: all of a tile's in one copy */
  bool early_b; /* B may be read before the prerequisite grids have completed */
  uint32_t xor_b;
  int group; /* K where one scale serves a column */
  const void *scales;
  int64_t scales_stride;
  int32_t scales_dtype;
  const int8_t *zeros; /* or NULL */
  int64_t zeros_stride;
  AffineArguments factors; /* where there are any */
  EpilogueArguments epilogue;
  int4mm_experts experts; /* group_scales: of `scales` */
};

/* Stages and barriers. full: all that consumers need is there. */
template <class T> struct Shared {
  uint32_t base;
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * T::A_BYTES; }
  __device__ __forceinline__ uint32_t b(int stage) const { return base + T::B_OFFSET + stage * T::B_BYTES; }
  __device__ __forceinline__ uint32_t scales(int stage) const {
    return base + T::SCALE_OFFSET + stage * T::SCALE_BYTES;
  }
  __device__ __forceinline__ uint32_t zeros(int stage) const { return base + T::ZERO_OFFSET + stage * T::SCALE_BYTES; }
  __device__ __forceinline__ uint32_t sums() const { return base + T::SUMS_OFFSET; }
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + T::BARRIER_OFFSET + 8 * i; }
  __device__ __forceinline__ uint32_t full(int stage) const { return barrier(stage); }
  __device__ __forceinline__ uint32_t empty(int stage) const { return barrier(T::STAGES + stage); }
  __device__ __forceinline__ int arrivals(int i) const {
    if (i >= T::STAGES) return 4 * T::CONSUMERS / T::K_GROUPS;
    return 1 + (T::HAS_FACTORS ? 32 : T::COLUMNS ? 0 : 1); /* the copies' and the factors' or scales' */
  }
};

/* A CTA's way through the k-blocks of its tiles, every gridDim.x-th. Its place is worked out once a tile: that takes a
 * hundred instructions. */
template <class T> struct Walk {
  int tile, k_block = 0;
  ExpertCoord at;
  const Arguments &p;
  __device__ __forceinline__ explicit Walk(const Arguments &p, int tile = blockIdx.x) : tile(tile), p(p) { find(); }
  __device__ __forceinline__ void find() { at = find_tile<T>(tile, p); }
  __device__ __forceinline__ bool done() const { return tile >= count_tiles<T>(p); }
  __device__ __forceinline__ void advance(int by = 1) {
    for (k_block += by; k_block >= p.k_blocks; k_block -= p.k_blocks) {
      tile += gridDim.x;
      if (done()) return;
      if (k_block < 2 * p.k_blocks) find();
    }
  }
};

/* ---- producers ---- */

/* The copies of a k-block into a stage that is empty: first B's. Its boxes are 32 columns, 128 bytes of a row; where N
 * is no multiple of that each has a copy of its own. One thread calls them. */
template <class T>
__device__ __forceinline__ void copy_b(const Shared<T> &shared, const CUtensorMap &map, const Arguments &p,
                                       const Walk<T> &walk, int stage) {
  constexpr int BOXES = T::BN / BOX_COLUMNS;
  int row = walk.k_block * BLOCK_WORDS;
  if (T::EXPERTS) row += walk.at.expert * ((p.K + 7) / 8);
  uint32_t full = shared.full(stage);
  ptx::mbarrier_arrive_expect_tx(full, T::B_BYTES + p.box_rows * ROW_BYTES * T::PARTS);
  if (p.boxes) return ptx::cp_async_bulk_tensor_3d(shared.b(stage), &map, 0, row, walk.at.n * BOXES, full);
#pragma unroll 1
  for (int i = 0; i < BOXES; i++)
    ptx::cp_async_bulk_tensor_2d(shared.b(stage) + i * BOX_BYTES, &map, walk.at.n * T::BN + i * BOX_COLUMNS, row, full);
}

template <class T>
__device__ __forceinline__ void copy_a(const Shared<T> &shared, const CUtensorMap &map, const Walk<T> &walk,
                                       int stage) {
#pragma unroll
  for (int part = 0; part < T::PARTS; part++)
    ptx::cp_async_bulk_tensor_2d(shared.a(stage) + part * T::BM * ROW_BYTES, &map,
                                 walk.k_block * BLOCK_K + part * (BLOCK_K / T::PARTS),
                                 walk.at.begin + walk.at.m * T::BM, shared.full(stage));
}

/* Scales and zero points of COUNT columns of a group, 32 apart, on their way to a stage. Beyond N and K scales are 0:
 * there the sums are 0 as well. All are loaded before one is looked at, and not by ld.global.nc, which ptxas moves up
 * beyond griddepcontrol.wait. */
template <class T, int COUNT> struct GroupRow {
  uint32_t scale[COUNT]; /* as they lie in memory */
  int zero[COUNT];

  template <class E> __device__ __forceinline__ void load_scales(const E *from, int columns) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      scale[i] = 0;
      if (32 * i < columns) scale[i] = from[32 * i];
    }
  }
  __device__ __forceinline__ void load(const Arguments &p, int expert, int k, int column) {
    int g = T::GROUP > 0 && p.group == T::GROUP ? k / max(T::GROUP, 1) : k / p.group;
    int columns = k < p.K ? p.N - column : 0;
    int64_t at = g * p.scales_stride + column, zeros_at = g * p.zeros_stride + column;
    if (T::EXPERTS) at += expert * p.experts.group_scales, zeros_at += expert * p.experts.zeros;
    if (p.scales_dtype == INT4MM_FLOAT32)
      load_scales((const uint32_t *)p.scales + at, columns);
    else
      load_scales((const uint16_t *)p.scales + at, columns);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      zero[i] = 0;
      if (T::GROUP_ZEROS && p.zeros && 32 * i < columns) zero[i] = p.zeros[zeros_at + 32 * i];
    }
  }
  static __device__ __forceinline__ uint32_t widen(uint32_t bits, int32_t dtype) {
    if (dtype == INT4MM_FLOAT32) return bits;
    return dtype == INT4MM_BFLOAT16 ? bits << 16 : __float_as_uint(__half2float(__ushort_as_half((uint16_t)bits)));
  }
  __device__ __forceinline__ void store(const Shared<T> &shared, const Arguments &p, int stage, int row,
                                        int column) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      uint32_t at = (row * T::BN + column + 32 * i) * 4;
      ptx::st_shared(shared.scales(stage) + at, widen(scale[i], p.scales_dtype));
      if (T::GROUP_ZEROS) ptx::st_shared(shared.zeros(stage) + at, prepare_zero<T::KIND>(zero[i]));
    }
  }
};

/* A thread that copies each COPIERSth k-block. */
template <class T>
__device__ __forceinline__ void produce(const Shared<T> &shared, const CUtensorMap &map_a, const CUtensorMap &map_b,
                                        const Arguments &p, int index) {
  constexpr int STEP = T::COPIERS;
  PipelineState<T::STAGES> state;
  Walk<T> walk(p);
  walk.advance(index), state.advance(index);
  int early = 0; /* k-blocks whose B is on its way before A may be read */
  if (p.early_b)
#pragma unroll 1
    for (Walk<T> next = walk; index + early * STEP < T::STAGES && !next.done(); next.advance(STEP), early++)
      copy_b(shared, map_b, p, next, index + early * STEP);
  ptx::griddepcontrol_wait();
#pragma unroll 1
  for (; !walk.done(); walk.advance(STEP), state.advance(STEP), early--) {
    if (early <= 0) {
      ptx::mbarrier_wait(shared.empty(state.index), state.phase ^ 1);
      copy_b(shared, map_b, p, walk, state.index);
    }
    copy_a(shared, map_a, walk, state.index);
  }
  if (T::LAUNCHES_LATE) ptx::griddepcontrol_launch_dependents();
}

/* One that brings factors. */
template <class T> __device__ __forceinline__ void produce_factors(const Shared<T> &shared, const Arguments &p) {
  PipelineState<T::STAGES> state;
  int lane = threadIdx.x % 32;
#pragma unroll 1
  for (Walk<T> walk(p); !walk.done(); walk.advance(), state.advance()) {
    AffineArguments factors = p.factors;
    if (T::EXPERTS) factors.data += walk.at.expert * p.experts.factors;
    ptx::mbarrier_wait(shared.empty(state.index), state.phase ^ 1);
    copy_affine<1>(factors, shared.scales(state.index) + lane * 4, T::BN, walk.k_block, walk.at.n * T::BN + lane * 4,
                   p.N, shared.full(state.index));
  }
}

/* And the others bring scales, each those of every WARPSth k-block. They wait for memory: of DEPTH k-blocks the loads
 * are under way, or where a k-block's groups take too many registers, of ROWS of these. */
template <class T>
__device__ __forceinline__ void produce_scales(const Shared<T> &shared, const Arguments &p, int warp) {
  constexpr int WARPS = 4 - T::COPIERS, COUNT = T::BN / 32,
                ROWS = T::BM >= 256                   ? 1
                       : T::EXPERTS && T::GROUPS == 4 ? 2
                                                      : T::GROUPS;
  constexpr int MOST = 16 / (ROWS * COUNT), WANTED = T::COPIERS * 2;
  constexpr int DEPTH = T::BM >= 256 || ROWS < T::GROUPS ? 1 : MOST < WANTED ? MOST : WANTED;
  constexpr bool AHEAD = T::BM < 256; /* elsewhere registers are few: loaded when they are stored */
  static_assert(T::STAGES >= WARPS + (T::K_GROUPS > 1 ? T::RUN * (T::K_GROUPS + 1) - 1 : 0),
                "a warp may not skip a phase of a stage, even when consumers release theirs out of order");
  typedef GroupRow<T, COUNT> Rows[ROWS];
  int lane = threadIdx.x % 32;
  PipelineState<T::STAGES> state;
  Walk<T> walk(p); /* of what is loaded next */
  walk.advance(warp), state.advance(warp);
  auto load = [&](Rows &rows, int first) {
    if (walk.done()) return false;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
      rows[i].load(p, walk.at.expert, walk.k_block * BLOCK_K + (first + i) * T::GROUP, walk.at.n * T::BN + lane);
    if (first + ROWS == T::GROUPS) walk.advance(WARPS);
    return true;
  };
  Rows rows[DEPTH];
  bool there[DEPTH];
#pragma unroll
  for (int i = 0; i < DEPTH; i++) there[i] = AHEAD ? load(rows[i], 0) : !walk.done();
#pragma unroll 1
  while (there[0])
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
      if (!there[i]) return;
#pragma unroll 1
      for (int first = 0; first < T::GROUPS; first += ROWS) {
        if (first || !AHEAD) load(rows[i], first);
        if (first == 0) ptx::mbarrier_wait(shared.empty(state.index), state.phase ^ 1);
#pragma unroll
        for (int r = 0; r < ROWS; r++) rows[i][r].store(shared, p, state.index, first + r, lane);
      }
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(shared.full(state.index));
      state.advance(WARPS);
      there[i] = AHEAD ? load(rows[i], 0) : !walk.done();
    }
}

/* ---- consumers ---- */

template <bool FLOAT> struct Accumulator { typedef int32_t type; };
template <> struct Accumulator<true> { typedef float type; };

template <int N> __device__ __forceinline__ void keep_in_registers(float (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(r[i])::"memory");
}

/* Of two neighbouring columns, and whether UNSCALE is in it. */
struct GroupScale {
  float2 of;
  bool folded;
};

/* What COUNT neighbouring columns of the output take after their sums: a bias, and where it is for all of k the scale.
 */
template <int COUNT> struct OutputColumns {
  float bias[COUNT], scale_b[COUNT];

  template <bool SCALES> __device__ __forceinline__ void load(const EpilogueArguments &e, int column, int N) {
    int4mm_load_bias(bias, e, column, N);
#pragma unroll
    for (int i = 0; i < COUNT; i++) scale_b[i] = SCALES && column + i < N ? __ldg(e.scale_b + column + i) : 0;
  }
  template <bool ROWS, bool SCALES>
  __device__ __forceinline__ void scale(float (&x)[COUNT], const EpilogueArguments &e, int row) const {
    float scale_a = ROWS ? __ldg(e.scale_a + row) : 1;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      if (ROWS) x[i] = __fmul_rn(x[i], scale_a);
      if (SCALES) x[i] = __fmul_rn(x[i], scale_b[i]);
    }
  }
};

template <class T> struct Consumer {
  const Shared<T> &shared;
  const Arguments &p;
  typename T::B policy;
  int index;         /* of the two consumers */
  uint32_t b_offset; /* of this lane's words in its first row of packed B */
  int column; /* in the tile: that of fragment row g in block 0; row g + 8 is the next, block 1 four further on */
  PipelineState<T::STAGES> state;
  uint2 words[T::SLICES]; /* of a k-block, as the policy loads them */
  uint32_t fragments[T::BUFFERS][T::SLICES][4];
  typename Accumulator<T::FLOAT>::type acc[T::ACCS][T::CHAIN / 2];
  float sums[T::BLOCKS][T::BM / 2];
  uint2 zero;            /* prepared, for all k: that of columns, or 0 */
  int last, before_last; /* stages of k-blocks whose products are under way, where there is a scale for each column */

  /* Lanes 4g + t and 4 (g ^ 1) + t have four neighbouring columns in a block, eight in two blocks; a warp has 16, or
   * 32, that follow each other. The words that half a warp loads at once lie in different banks. */
  __device__ __forceinline__ Consumer(const Shared<T> &shared, const Arguments &p, int index)
      : shared(shared), p(p), policy(p.xor_b), index(index),
        zero(make_uint2(prepare_zero<T::KIND>(0), prepare_zero<T::KIND>(0))) {
    int l = threadIdx.x >> 2 & 1, m = threadIdx.x >> 3 & 1, h = threadIdx.x >> 4 & 1;
    int warp = (T::K_GROUPS > 1 ? 0 : index * 4) + threadIdx.x % 128 / 32;
    column = (16 * warp + 8 * m + 4 * h) * T::BLOCKS + 2 * l;
    int row = policy.first_row();
    b_offset = column / BOX_COLUMNS * BOX_BYTES + row * (BOX_COLUMNS * 4) + (column % BOX_COLUMNS * 4 ^ row << 4);
  }

  __device__ __forceinline__ void load_words(int block, int stage) {
    uint32_t at = (shared.b(stage) + b_offset) ^ block << 4;
#pragma unroll
    for (int j = 0; j < T::SLICES; j++)
      words[j] = policy.load(j, [&](int row) { return (at ^ (row & 7) << 4) + row * (BOX_COLUMNS * 4); });
    if constexpr (T::AHEAD)
#pragma unroll
      for (int j = 0; j < T::SLICES; j++) asm volatile("" : "+r"(words[j].x), "+r"(words[j].y)::"memory");
  }

  /* Two neighbouring columns' words of a row of scales or zero points. */
  __device__ __forceinline__ uint2 load_pair(uint32_t from, int block, int row) const {
    return ptx::ld_shared_v2(from + (row * T::BN + column + 4 * block) * 4);
  }

  /* Two neighbouring columns' factors of a unit. */
  __device__ __forceinline__ uint2 load_factors(int stage, int unit) const {
    uint32_t four = ptx::ld_shared(shared.scales(stage) + unit * T::BN + (column & ~3));
    uint32_t first = 0x4440 + (column & 3);
    return make_uint2(__byte_perm(four, 0, first), __byte_perm(four, 0, first + 1));
  }

  __device__ __forceinline__ void make_fragments(uint32_t (&to)[T::SLICES][4], int block, int stage) {
    uint2 affine = zero;
#pragma unroll
    for (int j = 0; j < T::SLICES; j++) {
      if (T::GROUP_ZEROS && j % T::GROUP_SLICES == 0)
        affine = load_pair(shared.zeros(stage), block, j / T::GROUP_SLICES);
      if (T::HAS_FACTORS) affine = load_factors(stage, j);
      policy.unpack(to[j], words[j].x, words[j].y, affine);
    }
    keep_in_registers(to);
  }

  /* The turns of the consumers: of multiplying, or where they share k-blocks of promoting. A barrier has two of them.
   */
  __device__ __forceinline__ void wait_for_turn() const {
    ptx::named_barrier_sync(1 + index, 256);
  }
  __device__ __forceinline__ void pass_turn() const {
    ptx::named_barrier_arrive(1 + (index + 1) % T::CONSUMERS, 256);
  }

  /* Starts a chain, the ITEMth of a block and k-block, which has CHAINS for each group. `starts`: the accumulators hold
   * nothing. */
  template <int ITEM, int BUFFER = 0, int ACC = ITEM % T::ACCS>
  __device__ __forceinline__ void multiply(uint64_t a, bool starts) {
    constexpr int CHAIN = ITEM % T::CHAINS, FIRST = ITEM / T::CHAINS * T::GROUP_SLICES;
    auto &to = acc[ACC];
    if (!T::COLUMNS) keep_in_registers(to); /* else the k-block before is still writing to it */
    if (T::TURNS) wait_for_turn();
    ptx::wgmma_fence();
#pragma unroll
    for (int j = FIRST; j < FIRST + T::GROUP_SLICES; j++) {
      uint64_t operand = a + (j / 4 * T::BM + CHAIN * T::CHAIN) * (ROW_BYTES / 16) + 2 * (j % 4);
      if constexpr (T::FLOAT)
        ptx::wgmma_f32<T::CHAIN, T::KIND == W4A16_BFLOAT>(to, fragments[BUFFER][j], operand, !starts || j > FIRST);
      else
        ptx::wgmma<T::CHAIN>(to, fragments[BUFFER][j], operand, !starts || j > FIRST);
    }
    ptx::wgmma_commit_group();
    if (T::TURNS) pass_turn();
  }

  /* Adds a chain's sums to those of the tile; where consumers share k-blocks the first of a k-block waits for these. */
  template <int ITEM> __device__ __forceinline__ void promote(int block, int stage, const GroupScale &scale) {
    constexpr int FIRST = ITEM % T::CHAINS * (T::CHAIN / 2);
    auto &from = acc[ITEM % T::ACCS];
    keep_in_registers(from);
    unscale(from, scale);
    if constexpr (T::K_GROUPS > 1 && ITEM == 0) {
      float x[T::CHAIN / 2];
      convert(x, from);
      if (T::ITEMS == 1) release(stage);
      take_sums();
      add<FIRST>(block, scale, [&](int i) { return x[i]; });
    } else {
      add<FIRST>(block, scale, [&](int i) { return (float)from[i]; });
    }
  }
  /* Column by column: an operand that is that of the instruction before is not read from its register again, and
   * reading registers, which wgmma does as well, is what bounds this. */
  template <int FIRST, class F> __device__ __forceinline__ void add(int block, const GroupScale &scale, F value) {
#pragma unroll
    for (int column = 0; column < 2; column++)
#pragma unroll
      for (int i = 2 * column; i < T::CHAIN / 2; i += i % 2 ? 3 : 1)
        sums[block][FIRST + i] = __fmaf_rn(value(i), column ? scale.of.y : scale.of.x, sums[block][FIRST + i]);
  }
  template <class E> static __device__ __forceinline__ void convert(float (&x)[T::CHAIN / 2], const E &from) {
#pragma unroll
    for (int i = 0; i < T::CHAIN / 2; i++) x[i] = (float)from[i];
    keep_in_registers(x);
  }

  /* Without the 16 times of B, if there are any. */
  static __device__ __forceinline__ int32_t unscaled(int32_t sum) {
    static_assert(T::FLOAT || T::B::UNSCALE == 1 || T::B::UNSCALE == 1.0f / 16, "another factor");
    return T::B::UNSCALE == 1 ? sum : sum >> 4;
  }
  template <class E, int COUNT>
  static __device__ __forceinline__ void unscale(E (&sums)[COUNT], const GroupScale &scale) {
    if constexpr (!T::FLOAT && T::B::UNSCALE != 1) {
      if (__builtin_expect(!scale.folded, false))
#pragma unroll
        for (int32_t &x : sums) x = unscaled(x);
    }
  }

  /* UNSCALE goes into the scales, unless a warp has one that it would round: then, rarely, into the sums. */
  __device__ __forceinline__ GroupScale load_scale(int block, int stage, int group) const {
    constexpr float UNSCALE = T::B::UNSCALE;
    uint2 s = load_pair(shared.scales(stage), block, group);
    float2 of = make_float2(__uint_as_float(s.x), __uint_as_float(s.y));
    float2 folded = make_float2(__fmul_rn(of.x, UNSCALE), __fmul_rn(of.y, UNSCALE));
    if constexpr (T::FLOAT || UNSCALE == 1) return {folded, true};
    bool rounded = __fmul_rn(folded.x, 1 / UNSCALE) != of.x || __fmul_rn(folded.y, 1 / UNSCALE) != of.y;
    bool any = __any_sync(0xffffffffu, rounded);
    return {any ? of : folded, !any};
  }

  /* From ITEM on: waits for a chain, promotes its sums and starts the one that takes its accumulators. next() is called
   * while a last chain is under way. */
  template <int ITEM, class Next>
  __device__ __forceinline__ void finish(int block, int stage, uint64_t a, GroupScale scale, Next next) {
    constexpr int AFTER = ITEM + T::ACCS;
    if (ITEM % T::CHAINS == 0) scale = load_scale(block, stage, ITEM / T::CHAINS);
    if (T::ACCS == 1 && ITEM == 0) next();
    ptx::wgmma_wait_group<AFTER - 1 < T::ITEMS ? T::ACCS - 1 : 0>();
    promote<ITEM>(block, stage, scale);
    if constexpr (AFTER < T::ITEMS) multiply<AFTER>(a, true);
    if (T::ACCS == 2 && AFTER == T::ITEMS) next();
    if constexpr (ITEM + 1 < T::ITEMS) finish<ITEM + 1>(block, stage, a, scale, next);
  }

  /* The products of a block's columns and a k-block; next() is called while wgmmas are under way. `starts` and `ends`
   * count where a group has several k-blocks: it starts, or ends, here. */
  template <class Next>
  __device__ __forceinline__ void multiply_block(int block, int stage, bool starts, bool ends, Next next) {
    if (!T::AHEAD) load_words(block, stage);
    make_fragments(fragments[0], block, stage);
    uint64_t a = ptx::make_smem_desc(shared.a(stage));
    multiply<0>(a, T::GROUP > 0 || starts);
    if constexpr (T::ACCS == 2) multiply<1>(a, T::GROUP > 0 || starts);
    if constexpr (T::GROUP > 0) {
      finish<0>(block, stage, a, GroupScale(), next);
    } else {
      next();
      ptx::wgmma_wait_group<0>();
      for (auto &set : acc) keep_in_registers(set);
      if (!ends) return;
      GroupScale scale = load_scale(block, stage, 0);
      promote<0>(block, stage, scale);
      if constexpr (T::ACCS == 2) promote<1>(block, stage, scale);
    }
  }

  /* Waits for a k-block and loads its first words. */
  __device__ __forceinline__ void begin_k_block() {
    ptx::mbarrier_wait(shared.full(state.index), state.phase);
    if (T::AHEAD) load_words(0, state.index);
  }

  /* A k-block's products. The words of the next block are loaded while wgmmas are under way. All lanes of a warp do the
   * same: branches there would have ptxas serialise them (C7513). */
  __device__ __forceinline__ void multiply_k_block(bool starts, bool ends, bool more) {
    int stage = state.index;
    auto advance = [&] {
      state.advance();
      if (more) begin_k_block();
    };
#pragma unroll
    for (int block = 0; block < T::BLOCKS; block++)
      multiply_block(block, stage, starts, ends, [&] {
        if (block + 1 == T::BLOCKS)
          advance();
        else if (T::AHEAD)
          load_words(block + 1, stage);
      });
    release(stage);
  }

  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0 && stage >= 0) ptx::mbarrier_arrive(shared.empty(stage));
  }

  /* A k-block's products with a scale for each column. Those of the k-block before are under way meanwhile, so that
   * fragments take turns by PARITY. */
  template <int PARITY> __device__ __forceinline__ void add_k_block(bool starts, bool more) {
    int stage = state.index;
    ptx::wgmma_wait_group<1>();
    release(before_last);
    make_fragments(fragments[PARITY], 0, stage);
    multiply<0, PARITY>(ptx::make_smem_desc(shared.a(stage)), starts);
    before_last = last, last = stage;
    state.advance();
    if (more) begin_k_block();
  }

  /* A tile's products with a scale for each column, left in the accumulators. */
  __device__ __forceinline__ void add_tile(bool last_tile) {
    last = before_last = -1;
    int k_block = 0;
#pragma unroll 1
    for (; k_block + 1 < p.k_blocks; k_block += 2) {
      add_k_block<0>(k_block == 0, true);
      add_k_block<1>(false, k_block + 2 < p.k_blocks || !last_tile);
    }
    if (k_block < p.k_blocks) add_k_block<0>(k_block == 0, !last_tile);
    ptx::wgmma_wait_group<0>();
    release(before_last), release(last);
    keep_in_registers(acc[0]);
  }

  /* ---- consumers that share k-blocks ---- */

  /* A tile's sums, handed on from turn to turn. */
  __device__ __forceinline__ uint32_t handed(int i) const {
    return shared.sums() + i * (128 * 4) + threadIdx.x % 128 * 16;
  }
  __device__ __forceinline__ void take_sums() {
    wait_for_turn();
#pragma unroll
    for (int i = 0; i < T::BM / 2; i += 4) {
      uint4 x = ptx::ld_shared_v4(handed(i));
      sums[0][i] = __uint_as_float(x.x), sums[0][i + 1] = __uint_as_float(x.y);
      sums[0][i + 2] = __uint_as_float(x.z), sums[0][i + 3] = __uint_as_float(x.w);
    }
  }
  /* `ends`: the next turn begins a tile. */
  __device__ __forceinline__ void pass_sums(bool ends) const {
#pragma unroll
    for (int i = 0; i < T::BM / 2; i += 4) {
      uint32_t x[4];
#pragma unroll
      for (int j = 0; j < 4; j++) x[j] = ends ? 0 : __float_as_uint(sums[0][i + j]);
      ptx::st_shared_v4(handed(i), x[0], x[1], x[2], x[3]);
    }
    pass_turn();
  }

  /* Starts the products of a run's k-blocks from the Ith on. */
  template <int I = 0> __device__ __forceinline__ void start_run() {
    int stage = state.index + I;
    ptx::mbarrier_wait(shared.full(stage), state.phase);
    load_words(0, stage);
    if (I > 0) ptx::wgmma_wait_group<0>(); /* the fragments are free */
    make_fragments(fragments[0], 0, stage);
    multiply<0, 0, I>(ptx::make_smem_desc(shared.a(stage)), true);
    if constexpr (I + 1 < T::RUN) start_run<I + 1>();
  }
  /* The products of a run, whose first k-block is given, added to the tile's sums. */
  __device__ __forceinline__ void multiply_run(int k_block) {
    GroupScale scale[T::RUN];
    float x[T::RUN][T::CHAIN / 2];
    start_run();
#pragma unroll
    for (int i = 0; i < T::RUN; i++) scale[i] = load_scale(0, state.index + i, 0);
    ptx::wgmma_wait_group<0>();
#pragma unroll
    for (int i = 0; i < T::RUN; i++) {
      keep_in_registers(acc[i]);
      unscale(acc[i], scale[i]);
      convert(x[i], acc[i]);
      release(state.index + i);
    }
    take_sums();
#pragma unroll
    for (int i = 0; i < T::RUN; i++)
      if (i == 0 || (k_block + i) * BLOCK_K < p.K) add<0>(0, scale[i], [&](int j) { return x[i][j]; });
  }

  /* The products of all tiles. Consumers multiply as they come, and add what they have to a tile's sums in their turn,
   * so that groups are added in order. Who has a tile's last k-block finishes it. */
  __device__ __forceinline__ void share_tiles() {
    Walk<T> walk(p);
    if (index + 1 == T::K_GROUPS) pass_sums(true);
    walk.advance(index * T::RUN), state.advance(index * T::RUN);
#pragma unroll 1
    for (; !walk.done(); walk.advance(T::K_GROUPS * T::RUN), state.advance(T::K_GROUPS * T::RUN)) {
      bool ends = walk.k_block + T::RUN == p.k_blocks;
      if constexpr (T::RUN > 1) {
        multiply_run(walk.k_block);
      } else {
        ptx::mbarrier_wait(shared.full(state.index), state.phase);
        multiply_block(0, state.index, true, true, [] {});
        if (T::ITEMS > 1) release(state.index);
      }
      pass_sums(ends);
      if (ends) finish_tile(find_tile<T>(walk.tile, p)); /* found here: registers are few */
    }
    if (walk.k_block == p.k_blocks) wait_for_turn(); /* so that the barrier is left empty */
  }

  /* The zero points of a tile's columns, for make_fragments; prefetched while the tile before is finished. */
  __device__ __forceinline__ const int8_t *zeros_of(const ExpertCoord &at) const {
    return p.zeros + (T::EXPERTS ? at.expert * p.experts.zeros : 0);
  }
  __device__ __forceinline__ void load_zeros(const ExpertCoord &at) {
    const int8_t *zeros = zeros_of(at);
    int first = at.n * T::BN + column;
    zero.x = prepare_zero<T::KIND>(first < p.N ? __ldg(zeros + first) : 0);
    zero.y = prepare_zero<T::KIND>(first + 1 < p.N ? __ldg(zeros + first + 1) : 0);
  }
  __device__ __forceinline__ void prefetch_zeros(const ExpertCoord &at) const {
    int first = at.n * T::BN + column;
    if (first < p.N) ptx::prefetch_l1(zeros_of(at) + first);
  }

  /* A tile's products, scaled group by group. */
  __device__ __forceinline__ void promote_tile(bool last_tile) {
#pragma unroll
    for (int i = 0; i < T::BLOCKS * T::BM / 2; i++) sums[i / (T::BM / 2)][i % (T::BM / 2)] = 0;
    int left = 0; /* k-blocks of the group */
#pragma unroll 1
    for (int k_block = 0; k_block < p.k_blocks; k_block++) {
      bool last = k_block + 1 == p.k_blocks, starts = left == 0;
      if (T::GROUP == 0) left = starts ? (p.group - 1) / BLOCK_K : left - 1;
      multiply_k_block(starts, left == 0 || last, !last || !last_tile);
    }
  }

  /* ---- the epilogue ---- */

  /* A tile's sum. */
  __device__ __forceinline__ float sum(int block, int i) const {
    if constexpr (T::COLUMNS)
      return (float)unscaled(acc[0][i]);
    else
      return sums[block][i];
  }

  /* COUNT neighbouring columns of a row: of rows 8q + 2t and the next one, lanes l = 0 and 1 exchange halves. */
  static constexpr int COUNT = 4 * T::BLOCKS;
  __device__ __forceinline__ void gather(float (&x)[COUNT], int q) const {
    int l = threadIdx.x >> 2 & 1;
#pragma unroll
    for (int block = 0; block < T::BLOCKS; block++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float first = sum(block, 4 * q + 2 * r), second = sum(block, 4 * q + 2 * r + 1);
        float kept = l ? second : first, got = __shfl_xor_sync(0xffffffffu, l ? first : second, 4);
        x[4 * block + r] = l ? got : kept, x[4 * block + 2 + r] = l ? kept : got;
      }
  }

  /* A tile that lies whole inside an output of aligned rows, without activation and residual: straight-line code. */
  template <int DTYPE>
  __device__ __forceinline__ void finish_full(int row, int first_column, const OutputColumns<COUNT> &columns) const {
    typedef typename int4mm_out_word<DTYPE>::type Word;
    Word *out = (Word *)p.epilogue.out + row * p.epilogue.ldo + first_column;
#pragma unroll
    for (int q = 0; q < T::BM / 8; q++) {
      float x[COUNT];
      __syncwarp(); /* or the compiler works on several rows at once, and spills */
      gather(x, q);
      columns.template scale<!T::FLOAT, T::COLUMNS>(x, p.epilogue, row + 8 * q);
      int4mm_add_bias(x, p.epilogue, columns.bias);
      int4mm_store_vector<DTYPE>(out + 8 * q * p.epilogue.ldo, x);
    }
  }

  __device__ __forceinline__ void finish_tile(const ExpertCoord &at) const;
};

/* A call, not inlined: a thread of a large tile has many units. */
template <class T, int COUNT>
__device__ __noinline__ void call_finish_sums(const Arguments &p, int row, int column, OutputColumns<COUNT> columns,
                                              int4mm_floats<COUNT> sums) {
  if (column >= p.N) return;
  columns.template scale<!T::FLOAT, T::COLUMNS>(sums.x, p.epilogue, row);
  int4mm_finish_scaled<true>(p.epilogue, row, column, p.N, columns.bias, sums.x);
}

template <class T> __device__ __forceinline__ void Consumer<T>::finish_tile(const ExpertCoord &at) const {
  int t = threadIdx.x % 4, l = threadIdx.x >> 2 & 1;
  int begin = at.begin + at.m * T::BM, row = begin + 2 * t + l, first_column = at.n * T::BN + column - 2 * l;
  OutputColumns<COUNT> columns;
  columns.template load<T::COLUMNS>(arguments_of<T>(p, at).epilogue, first_column, p.N);
  bool inside = p.epilogue.vector_store && !p.epilogue.layer && begin + T::BM <= at.end && (at.n + 1) * T::BN <= p.N;
  if (inside)
    return int4mm_for_out_dtype(p.epilogue.out_dtype,
                                [&](auto dtype) { finish_full<decltype(dtype)::value>(row, first_column, columns); });
#pragma unroll
  for (int q = 0; q < T::BM / 8; q++) {
    int4mm_floats<COUNT> x;
    gather(x.x, q);
    if (row + 8 * q < at.end) call_finish_sums<T>(p, row + 8 * q, first_column, columns, x);
  }
}

template <class T> __device__ __forceinline__ void consume(const Shared<T> &shared, const Arguments &p, int index) {
  int tiles = count_tiles<T>(p);
  if constexpr (T::EXPERTS) zero_rows<T>(p, threadIdx.x - 128, 128 * T::CONSUMERS);
  if ((int)blockIdx.x >= tiles) return;
  Consumer<T> consumer(shared, p, index);
  if constexpr (T::K_GROUPS > 1) return consumer.share_tiles();
  constexpr bool COLUMN_ZEROS = T::COLUMNS && T::WEIGHTS == ZEROS;
  if (T::TURNS && index == 1) consumer.pass_turn();
  consumer.begin_k_block();
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    bool last_tile = tile + (int)gridDim.x >= tiles;
    if (COLUMN_ZEROS) consumer.load_zeros(Walk<T>(p, tile).at);
    if constexpr (T::COLUMNS)
      consumer.add_tile(last_tile);
    else
      consumer.promote_tile(last_tile);
    if (COLUMN_ZEROS && !last_tile) consumer.prefetch_zeros(Walk<T>(p, tile + gridDim.x).at);
    consumer.finish_tile(Walk<T>(p, tile).at);
  }
  if (T::TURNS && index == 0) consumer.wait_for_turn(); /* so that the barrier is left empty */
}

/* ---- the kernel ---- */

template <class T>
__global__ void __launch_bounds__(T::THREADS, T::CTAS)
    grouped(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
            const __grid_constant__ Arguments p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared<T> shared{ptx::smem_address(memory)};
  init_barriers<T>(shared);
  if (threadIdx.x == 32) ptx::prefetch_tensormap(&map_a), ptx::prefetch_tensormap(&map_b);
  __syncthreads();
  if (!T::LAUNCHES_LATE) ptx::griddepcontrol_launch_dependents();
  if (T::EXPERTS || !p.early_b) ptx::griddepcontrol_wait();
  init_experts<T>(p);
  int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* uniform over a warp, for the compiler */
  if (group == 0) {
    ptx::setmaxnreg_dec<T::PRODUCER_REGISTERS>();
    int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    if (warp < T::COPIERS) {
      if (threadIdx.x % 32 == 0) produce<T>(shared, map_a, map_b, p, warp);
    } else if constexpr (!T::COLUMNS) {
      produce_scales<T>(shared, p, warp - T::COPIERS);
    } else if constexpr (T::HAS_FACTORS) {
      if (warp == 1) produce_factors<T>(shared, p);
    }
  } else {
    ptx::setmaxnreg_inc<T::CONSUMER_REGISTERS>();
    ptx::griddepcontrol_wait();
    consume<T>(shared, p, group - 1);
  }
#endif
}

/* ---- host ---- */

/* A map of a row-major matrix that copies boxes of rows x columns. */
cudaError_t map_matrix(CUtensorMap *map, const int4mm_operand &o, CUtensorMapDataType type, int element, int64_t rows,
                       int64_t columns, int box_rows, int box_columns, CUtensorMapSwizzle swizzle) {
  EncodeTiled encode;
  cudaError_t error = find_encoder(&encode);
  if (error != cudaSuccess) return error;
  cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, pitch[1] = {(cuuint64_t)o.stride * element};
  cuuint32_t box[2] = {(cuuint32_t)box_columns, (cuuint32_t)box_rows}, step[2] = {1, 1};
  CUresult result = encode(map, type, 2, (void *)o.data, size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

/* Packed B as [N / 32][K / 8][32], so that one copy brings several boxes, or as it is. */
cudaError_t map_b_of(CUtensorMap *map, const int4mm_problem &problem, bool boxes, int count) {
  int64_t words = int4mm_words_of_k(&problem);
  if (problem.experts.count) words *= problem.experts.count; /* one below the other */
  if (!boxes)
    return map_matrix(map, problem.b, CU_TENSOR_MAP_DATA_TYPE_INT32, 4, words, problem.N, BLOCK_WORDS, BOX_COLUMNS,
                      CU_TENSOR_MAP_SWIZZLE_128B);
  EncodeTiled encode;
  cudaError_t error = find_encoder(&encode);
  if (error != cudaSuccess) return error;
  cuuint64_t size[3] = {BOX_COLUMNS, (cuuint64_t)words, (cuuint64_t)problem.N / BOX_COLUMNS};
  cuuint64_t pitch[2] = {(cuuint64_t)problem.b.stride * 4, BOX_COLUMNS * 4};
  cuuint32_t box[3] = {BOX_COLUMNS, BLOCK_WORDS, (cuuint32_t)count}, step[3] = {1, 1, 1};
  CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_INT32, 3, (void *)problem.b.words, size, pitch, box, step,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class T> cudaError_t map_a_of(CUtensorMap *map, const int4mm_problem &problem, const Arguments &p) {
  CUtensorMapDataType type = T::KIND == W4A8         ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                             : T::KIND == W4A16_HALF ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                     : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return map_matrix(map, problem.a, type, T::FLOAT ? 2 : 1, p.M, p.K, p.box_rows, BLOCK_K / T::PARTS,
                    CU_TENSOR_MAP_SWIZZLE_128B);
}

template <class T> Arguments make_arguments(const int4mm_problem &problem) {
  Arguments p = {};
  const int4mm_operand &b = problem.b;
  p.M = (int)problem.M, p.N = (int)problem.N, p.K = (int)problem.K;
  p.k_blocks = (p.K + T::RUN * BLOCK_K - 1) / (T::RUN * BLOCK_K) * T::RUN;
  p.early_b = problem.early_b;
  p.tiles_m = (p.M + T::BM - 1) / T::BM, p.tiles_n = (p.N + T::BN - 1) / T::BN;
  p.box_rows = p.M < T::BM ? p.M : T::BM;
  p.boxes = p.N % BOX_COLUMNS == 0;
  p.xor_b = b.xor_mask;
  p.group = b.group < p.K ? (int)b.group : p.K;
  p.scales = b.group_scales.data, p.scales_stride = b.group_scales.stride, p.scales_dtype = b.group_scales.dtype;
  if (!p.scales) p.scales = b.scales, p.scales_stride = 0, p.scales_dtype = INT4MM_FLOAT32;
  p.zeros = (const int8_t *)b.zeros.data, p.zeros_stride = b.zeros.stride;
  if (T::HAS_FACTORS) p.factors = affine_arguments(&problem);
  p.experts = problem.experts;
  if (!b.group_scales.data) p.experts.group_scales = p.experts.scales;
  if (p.experts.factors % 4) p.factors.vector = false;
  p.epilogue = int4mm_epilogue_arguments(&problem, Consumer<T>::COUNT);
  if (T::FLOAT) p.epilogue.scale_a = nullptr;
  return p;
}

template <class T> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  CUtensorMap map_a, map_b;
  Arguments p = make_arguments<T>(*problem);
  cudaError_t error = map_a_of<T>(&map_a, *problem, p);
  if (error == cudaSuccess) error = map_b_of(&map_b, *problem, p.boxes, T::BN / BOX_COLUMNS);
  if (error != cudaSuccess) return error;
  const int4mm_shared shared(T::SHARED_BYTES, T::LAUNCHES_LATE && T::CTAS == 2);
  return int4mm_launch<grouped<T>>(plan->device, dim3(plan->ctas), T::THREADS, shared, 1, stream, map_a, map_b, p);
}

/* Whether there is an instance for grouped products: the largest tile has no registers left with short groups. */
template <int KIND, int GROUP, int WEIGHTS, int BM, int...>
constexpr bool HAS_EXPERTS = BM < 256 || GROUP >= BLOCK_K || GROUP == PER_COLUMN;

/* The instance for a problem, grouped or not, with these parameters of its tile. */
template <int... PARAMETERS>
cudaError_t launch_instance(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (problem->experts.count) {
    if constexpr (HAS_EXPERTS<PARAMETERS...>) return launch<Tile<PARAMETERS..., true>>(problem, plan, stream);
    return cudaErrorNotSupported;
  }
  return launch<Tile<PARAMETERS..., false>>(problem, plan, stream);
}

/* The instance for a scale for each column: integers, with zero points, factors or neither. */
template <int BM, int STAGES>
cudaError_t launch_columns(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  auto launch_weights = [&](auto weights) {
    return launch_instance<W4A8, PER_COLUMN, decltype(weights)::value, BM, 1, BM, 1, STAGES, 2, 1>(problem, plan,
                                                                                                   stream);
  };
  if (problem->b.factors.data) return launch_weights(int4mm_constant<AFFINE>());
  if (problem->b.zeros.data) return launch_weights(int4mm_constant<ZEROS>());
  return launch_weights(int4mm_constant<PLAIN>());
}

/* The instance for a problem's groups and zero points. With several groups to a k-block chains are short, and two of
 * them hide each other's latency. Where K_GROUPS consumers share a tile's k-blocks, those of groups of 128 are RUNNERS
 * that take RUN at a time. */
template <int KIND, int BM, int BLOCKS, int CHAIN, int STAGES, int K_GROUPS = 1, int RUNNERS = K_GROUPS, int RUN = 1>
cudaError_t launch_tile(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  constexpr bool FLOAT = KIND == W4A16_HALF || KIND == W4A16_BFLOAT;
  auto with_zeros = [&](auto group) {
    constexpr int GROUP = decltype(group)::value,
                  ROWS = CHAIN > 64 && (GROUP == 32 || (GROUP == 64 && !FLOAT)) ? 64 : CHAIN,
                  ACCS = ROWS < CHAIN && !FLOAT ? 2
                         : GROUP == 128         ? RUN
                                                : 1,
                  SHARERS = GROUP == 128 ? RUNNERS : K_GROUPS;
    auto with = [&](auto weights) {
      constexpr int WEIGHTS = decltype(weights)::value;
      if constexpr (K_GROUPS > 1 && GROUP > 0) {
        if (!problem->experts.count)
          return launch<Tile<KIND, GROUP, WEIGHTS, BM, BLOCKS, ROWS, ACCS, STAGES, SHARERS, SHARERS, false>>(
              problem, plan, stream);
        if constexpr (BM == 64)
          return launch<Tile<KIND, GROUP, WEIGHTS, BM, BLOCKS, ROWS, 1, STAGES, 1, 1, true>>(problem, plan, stream);
        return cudaErrorNotSupported;
      } else {
        constexpr int CONSUMERS = K_GROUPS > 1 ? 1 : 2;
        return launch_instance<KIND, GROUP, WEIGHTS, BM, BLOCKS, ROWS, ACCS, STAGES, CONSUMERS, 1>(problem, plan,
                                                                                                   stream);
      }
    };
    if constexpr (!FLOAT) /* floats take zero points in any case */
      if (problem->b.zeros.data) return with(int4mm_constant<ZEROS>());
    return with(int4mm_constant<PLAIN>());
  };
  int64_t group = problem->b.group, K = problem->K;
  if ((group >= K && K <= BLOCK_K) || group == 128 || (FLOAT && (group % BLOCK_K == 0 || group >= K)))
    return with_zeros(int4mm_constant<128>());
  if (group == 64) return with_zeros(int4mm_constant<64>());
  if constexpr (!FLOAT || BM < 256) /* where it fits into shared memory in some depth */
    if (group == 32) return with_zeros(int4mm_constant<32>());
  if constexpr (!FLOAT && BLOCKS == 1 && BM <= 64) return with_zeros(int4mm_constant<0>());
  return cudaErrorNotSupported;
}

} // namespace
#endif
