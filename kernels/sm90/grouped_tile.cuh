/*
 * A tile of grouped.cuh, its stages in shared memory, the kernel's arguments and the way of a CTA through its tiles.
 */
#ifndef INT4MM_GROUPED_TILE_CUH
#define INT4MM_GROUPED_TILE_CUH

#include "common/epilogue.cuh"
#include "common/shapes.h"
#include "sm90/grouped_b.cuh"
#include "sm90/kinds.cuh"
#include "sm90/pipeline.cuh"
#include "sm90/tile_scheduler.cuh"

namespace {

constexpr int ROW_BYTES = 128; /* of a part of a row of activations */

/* KIND of activations; GROUP: 32, 64 or 128 (in W4A16 any multiple of it), or 0: any multiple of 128, for tiles of one
 * block and as many chains as sets of accumulators, or PER_COLUMN; what B's WEIGHTS are; BM rows; BLOCKS of 64 columns
 * to a consumer; rows to a CHAIN; sets of accumulators; pipeline depth; consumers; K_GROUPS: as many
 * as consumers where these share a tile's k-blocks, else 1; a grouped product; B is [N, K/8], else [K/8, N]. */
constexpr int PER_COLUMN = -1;
template <int KIND_, int GROUP_, int WEIGHTS_, int BM_, int BLOCKS_, int CHAIN_, int ACCS_, int STAGES_, int CONSUMERS_,
          int K_GROUPS_, bool EXPERTS_, bool NK_>
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
  static constexpr int CTAS = CONSUMERS == 1 ? 2 : 1; /* of an SM */
  static constexpr int GROUP_M = 2048 / BM;           /* tile rows in which tiles are rasterised */
  static constexpr bool EXPERTS = EXPERTS_, NK = NK_;
  static constexpr bool MATRICES = NK && KIND == W4A8_EVEN_ODD; /* B is loaded by ldmatrix */
  typedef typename std::conditional<MATRICES, NkMatrices<BN>, NkBoxes<BN>>::type OfNk;
  typedef typename std::conditional<NK, OfNk, KnBoxes>::type Boxes; /* of B in a stage */
  static_assert(!NK || BLOCKS == 1, "of [N, K/8] a lane finds two columns");

  static constexpr int SLICES = FLOAT ? 8 : 4;                /* of a k-block: what one wgmma takes of k */
  static constexpr int PARTS = SLICES / 4;                    /* of a k-block: 128 bytes of a row of activations */
  static constexpr int GROUPS = GROUP <= 0 ? 1 : 128 / GROUP; /* of a k-block */
  static constexpr int GROUP_SLICES = SLICES / GROUPS;
  static constexpr int CHAIN = CHAIN_, CHAINS = BM / CHAIN, ITEMS = CHAINS * GROUPS;
  static constexpr int ACCS = ACCS_;
  /* Words are loaded ahead: there are registers for them. */
  static constexpr bool AHEAD = K_GROUPS == 1 && (!FLOAT || BM * BLOCKS < 256);
  /* Consumers take turns to multiply, except for small tiles, which are bound by latency. */
  static constexpr bool TURNS = ACCS == 1 && BM > 64 && !COLUMNS;
  /* k-blocks that a consumer takes at a time where consumers share them. */
  static constexpr int RUN = K_GROUPS > 1 ? ACCS : 1;
  /* Warps that copy; the others bring scales. Where k-blocks are quick, one thread would not keep up. */
  static constexpr int COPIERS = K_GROUPS > 1 && GROUPS == 1 && BM *PARTS <= 64 ? 2 : 1;
  /* Bulk copies bring scales and zero points, which then lie in a stage as in memory, where rows are aligned. Elsewhere
   * what consumers take to widen them is more than copies save. */
  static constexpr bool COPIES_SCALES = !COLUMNS && BM < 256 && (BM < 64 || (GROUPS == 1 && !FLOAT));
  /* The next grid's CTAs come when all is copied: of those that came at once two would be on some SMs and none on
   * others, or the quantiser of a layer would be late. */
  static constexpr bool LAUNCHES_LATE = !FLOAT && K_GROUPS > 1;
  /* A tile with rows outside the output ends as a whole one does. Not where rows have scales, which then are not loaded
   * ahead: 1024 x 4096 x 4096 of W4A8 takes 30.2 us so on an H100, for 24.3. */
  static constexpr bool ENDS_ANYWHERE = FLOAT;
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
                       ZERO_BYTES = !GROUP_ZEROS    ? 0
                                    : COPIES_SCALES ? (GROUPS * BN + 127) / 128 * 128
                                                    : SCALE_BYTES,
                       STAGE_BARRIERS = 2;
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

  /* Registers per thread: what the launch gives each, and what that leaves. Where consumers need few, the launch has
   * them as for more threads, so that CTAs of the kernel that makes A find room beside a CTA, and it beside them. */
  static constexpr bool SHARES_SM = !FLOAT && CTAS == 1 && (COLUMNS ? BM == 128 : BM <= 64 && GROUPS == 1);
  static constexpr int LAUNCH_THREADS = !SHARES_SM ? THREADS : BM > 64 ? 512 : THREADS < 640 ? 640 : 768;
  static constexpr int REGISTERS = 65536 / (CTAS * LAUNCH_THREADS) / 8 * 8;
  static constexpr int PRODUCER_REGISTERS = SHARES_SM            ? 40
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
  bool boxes;   /* of [K/8, N]: map_b has a dimension of boxes, all of a tile's in one copy */
  bool early_b; /* B may be read before the prerequisite grids have completed */
  uint32_t xor_b;
  int group;          /* K where one scale serves a column */
  bool copied_scales; /* scales and zero points come by bulk copies, of which Maps has the maps */
  int scale_bytes;    /* of a scale in a stage: copied ones lie there as in memory, others as floats */
  bool half_scales;   /* in a stage they are float16 */
  const void *scales;
  int64_t scales_stride;
  int32_t scales_dtype;
  const int8_t *zeros; /* or NULL */
  int64_t zeros_stride;
  AffineArguments factors; /* where there are any */
  EpilogueArguments epilogue;
  int4mm_experts experts; /* group_scales: of `scales` */
};

/* Of activations and packed B; of scales and zero points where they are copied. */
struct Maps {
  CUtensorMap a, b, scales, zeros;
};

/* Stages and barriers. full: all that consumers need is there. */
template <class T> struct Shared {
  uint32_t base;
  __device__ __forceinline__ uint32_t a(int stage) const { return base + stage * T::A_BYTES; }
  __device__ __forceinline__ uint32_t b(int stage) const { return base + T::B_OFFSET + stage * T::B_BYTES; }
  __device__ __forceinline__ uint32_t scales(int stage) const {
    return base + T::SCALE_OFFSET + stage * T::SCALE_BYTES;
  }
  __device__ __forceinline__ uint32_t zeros(int stage) const { return base + T::ZERO_OFFSET + stage * T::ZERO_BYTES; }
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

} // namespace
#endif
