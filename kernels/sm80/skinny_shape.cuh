/*
 * skinny for operands of every kind (skinny_general.cuh): arguments, what is done with sums, and what a lane keeps.
 */
#ifndef INT4MM_SKINNY_SHAPE_CUH
#define INT4MM_SKINNY_SHAPE_CUH

#include "sm80/skinny.cuh"
#include "sm80/skinny_fragments.cuh"

namespace {

constexpr int B_BYTES = INT4MM_SKINNY_B_BYTES;

struct GeneralArguments : SkinnyCommon {
  const char *rows; /* A */
  int64_t row_stride;
  const char *scales;     /* of each group; NULL: none */
  uint32_t scales_stride; /* from group to group, in bytes */
  int scale_dtype;
  uint32_t group_reciprocal; /* 2^31 over `group`, rounded up */
  uint32_t b_step_bytes;     /* of B, from a step of K to the next, */
  uint32_t b_copy_bytes;     /* and between what a lane copies */
  int64_t row_step_bytes;    /* of A, between the rows that a lane copies */
  int whole_steps;           /* that are copied as a whole */
  int stages;
  int stage_bytes;    /* where the shape does not say it */
  int rounds, window; /* rounds of k-blocks, and those of a window */
  /* A slot: rows of sums, then the scales; a k-block's slots, a stripe's. */
  int slot_rows, slot_bytes, block_slot_bytes, stripe_bytes;
  const char *bytes; /* zero points or factors of each group; NULL: none */
  uint32_t bytes_stride;
  int row_bytes;        /* of K values */
  int segments, slices; /* segments of a k-block, slices of a segment */
  int group;            /* in segments */
  int all_segments;     /* of K */
  bool factors;         /* the bytes are factors */
  EpilogueArguments epilogue;
};

/* What a kernel does with its sums; of floats it is SUMS or GROUPS. A branch within a k-block costs more than what it
 * spares, for loads do not move ahead of it: PLAIN and GROUPS have none, and zero points are modes of their own. */
enum Mode {
  PLAIN,        /* integers, a scale for each column, K below INT4MM_WIDE_K: they stay in the accumulators */
  PLAIN_ZEROS,  /* and a zero point for each */
  SUMS,         /* no group scales, or an A of floats: they are added segment by segment */
  CHAIN,        /* integers, group scales */
  GROUPS,       /* group scales, each for whole k-blocks and with integers for one, whose slots are for all of K */
  GROUPS_ZEROS, /* and a zero point beside each */
  RING,         /* the same of integers by a ring */
  RING_ZEROS
};

/* What a lane sums over a segment: the mmas, of each tile of rows one for every of four columns or, SWAPPED, for two of
 * them, and A alone with ones. */
template <class S> struct Segment {
  typename S::Sum acc[S::ROW_TILES][S::SWAPPED ? 2 : 4][4];
  int32_t ones[S::FLOAT ? 1 : S::ROW_TILES][4];

  /* The sum of the lane's row r and column c. */
  __device__ __forceinline__ typename S::Sum at(int r, int c) const {
    if constexpr (S::SWAPPED)
      return acc[0][c / 2][c % 2 * 2 + r];
    else
      return acc[r / 2][c % 4][r % 2 * 2 + c / 4];
  }
  __device__ __forceinline__ int32_t of_ones(int r) const {
    if constexpr (S::SWAPPED)
      return ones[0][r];
    else
      return ones[r / 2][r % 2 * 2];
  }
};

/* A segment that has been multiplied but not added yet, with what a stage has for it. */
template <class S> struct Pending {
  Segment<S> sum;
  uint2 bytes;                                          /* of the lane's columns */
  float scales[S::BY_COLUMNS ? S::LANE_COLUMNS : 1];    /* the same; of one column for a slot */
  uint32_t packed[S::BY_COLUMNS ? S::LANE_COLUMNS : 1]; /* GROUPS: the same as they lie in memory */
  uint32_t slot;
  int k_block;
};

/* A lane's sums. PLAIN: of each mma. SUMS: those of a row after another, int32 or float. */
template <class S> struct GeneralSums {
  Segment<S> plain;
  int32_t zeros[S::LANE_COLUMNS]; /* PLAIN_ZEROS: of the lane's columns */
  int32_t state[S::ROWS];
};

/* CHAIN: of each output of this thread, rows of one column, t and the sum of a group so far. */
template <class S> struct ChainSums {
  float t[S::ITEMS];
  int32_t sum[S::ITEMS];
  float scale_a[S::ITEMS], bias[1];
  int stripe, column;            /* of the CTA, of the matrix */
  int row, step;                 /* of the warp's first outputs; from one to the next */
  int first, half;               /* a window's first round; which of two it is */
  int items;                     /* rows that the warp has */
  uint32_t at[S::ITEMS], scales; /* in the window's first slot: sums of each output and their scales */
  uint32_t slot, to;             /* of k-block 0, were it in the window; where a lane's sums begin in a slot */
};

/* RING: the chains of a lane's rows, one after another. */
template <class S> struct RingSums {
  float t[S::ROWS], scale_a[S::LANE_ROWS], bias[S::LANE_COLUMNS];
  uint32_t at;           /* where the lane has them for the next warp */
  int turn, next;        /* barriers: of this warp's turn and of the one with the next k-block */
  int row, column, last; /* of the CTA's outputs; the last k-block */
};

template <class S> struct GeneralSource;

/* NK: B is [N, K/8]. */
template <int ROWS_, class A_, Mode MODE_, bool NK_ = false> struct GeneralShape {
  typedef GeneralArguments Arguments;
  typedef A_ A;
  typedef typename A::Sum Sum;
  static constexpr Mode MODE = MODE_;
  static constexpr bool FLOAT = std::is_same<Sum, float>::value;
  static constexpr bool IS_PLAIN = MODE == PLAIN || MODE == PLAIN_ZEROS; /* stages have A and B alone */
  static constexpr bool RINGS = MODE == RING || MODE == RING_ZEROS;
  static constexpr bool IS_GROUPS = MODE == GROUPS || MODE == GROUPS_ZEROS || RINGS;
  static constexpr bool ZEROS = MODE == PLAIN_ZEROS || MODE == GROUPS_ZEROS || MODE == RING_ZEROS;
  static constexpr bool BRANCHES = MODE == SUMS || MODE == CHAIN; /* all is decided at run time */
  static constexpr bool CHAINS = MODE == CHAIN || (IS_GROUPS && !FLOAT && !RINGS);
  static constexpr bool BY_COLUMNS = FLOAT || RINGS; /* a lane has the scales of all its columns */
  static constexpr bool FINISHES = CHAINS || RINGS;  /* outputs without a reduction */
  typedef typename std::conditional<CHAINS, ChainSums<GeneralShape>, GeneralSums<GeneralShape>>::type SomeSums;
  typedef typename std::conditional<RINGS, RingSums<GeneralShape>, SomeSums>::type Sums;
  typedef GeneralSource<GeneralShape> Source;
  typedef Pending<GeneralShape> Waiting;
  struct Words { /* A and A::B are */
    __device__ __forceinline__ Words(uint32_t, uint32_t) {}
  };
  static constexpr int ROWS = ROWS_, OWN_CHUNKS = 0, CTAS = 1;
  static constexpr bool LAYER = true, NK = NK_, ALIGNED = true, WIDE = false, ROTATED = true, ONE_STRIPE = false;
  static constexpr bool GENERAL = true;
  static constexpr int PREFETCHED = FLOAT ? 1 : 2; /* 1 x 4096 x 14336 takes 12.1 us, with two 12.5 */
  static constexpr int BLOCKS = NK && IS_PLAIN ? INT4MM_SKINNY_NK_BLOCKS : 1; /* else memory for stages is short */
  static constexpr float UNSCALE = A::UNSCALE;
  static constexpr int ROW_TILES = (ROWS + 15) / 16, EIGHTS = ROWS / 8; /* of rows */
  /* An mma has 16 rows and 8 columns: 8 rows of A are its columns, and columns of B its rows. */
  static constexpr bool SWAPPED = ROWS == 8;
  /* A lane has sums of rows g + 8r and columns 8t + c, SWAPPED of rows 2t + r and columns 4g + c. */
  static constexpr int LANE_ROWS = SWAPPED ? 2 : EIGHTS, ROW_STEP = SWAPPED ? 1 : 8, LANE_COLUMNS = SWAPPED ? 4 : 8;
  static constexpr int A_ROW_BYTES = BLOCK_WORDS * 4 * A::WORDS, EIGHT_BYTES = 8 * A_ROW_BYTES;
  static constexpr int PARAMETERS = B_BYTES + EIGHTS * EIGHT_BYTES; /* where they lie in a stage */
  /* In a chain: the warps that share K at least, and the outputs of a thread at most. */
  static constexpr int CHAIN_WARPS = ROWS == 8 ? INT4MM_SKINNY_CHAIN_WARPS_8 : INT4MM_SKINNY_CHAIN_WARPS;
  static constexpr int ITEMS = ROWS / CHAIN_WARPS;

  static __device__ __forceinline__ int block_bytes(const Arguments &p) {
    return BRANCHES ? p.stage_bytes : IS_GROUPS ? PARAMETERS + 256 : PARAMETERS;
  }
  static __device__ __forceinline__ int stages(const Arguments &p) { return p.stages; }
  static __device__ __forceinline__ int lane_row(int r) {
    const int lane = threadIdx.x % 32;
    return (SWAPPED ? lane % 4 * 2 : lane / 4) + ROW_STEP * r;
  }
  static __device__ __forceinline__ int lane_column() {
    const int lane = threadIdx.x % 32;
    return SWAPPED ? lane / 4 * 4 : lane % 4 * 8;
  }
  /* Where chunk c (16 bytes) of a row lies in it, in a slot: at an exclusive or with this, which keeps the lanes that
   * store one after another off each other's banks. */
  static __device__ __forceinline__ int slot_swizzle(int row) { return SWAPPED ? row & 6 : row & 1; }
  /* By groups a slot has all rows, so that the chain's loads need no addresses of their own. */
  static __device__ __forceinline__ int slot_rows(const Arguments &p) { return IS_GROUPS ? ROWS : p.slot_rows; }
  static __device__ __forceinline__ int slot_bytes(const Arguments &p) {
    return IS_GROUPS ? (ROWS + 1) * COLUMNS * 4 : p.slot_bytes;
  }
  static __device__ __forceinline__ bool more(const Arguments &p, int round, int, int) { return round < p.rounds; }
  template <int PART> static __device__ void wait(const Source &source);
  static __device__ void select_expert(Arguments &own, const int4mm_experts &experts, int expert);
  static __device__ void begin(Sums &sums, const Arguments &p, uint32_t slots, int first_row, int first_column);
  static __device__ void copy(const Source &source, const Arguments &p, uint32_t stage, int step, int first_row,
                              int first_column, int part);
  static __device__ void multiply(Sums &sums, Waiting &pending, const Source &source, const Arguments &p,
                                  uint32_t stage, int k_block, int round, int part);
  static __device__ void add(Sums &sums, Waiting &pending, const Source &source, const Arguments &p);
  static __device__ void end_round(Sums &sums, const Arguments &p, int round);
  static __device__ void finish(Sums &sums, const Arguments &p, int first_row);
  static __device__ void store_partial(uint32_t matrix, const Sums &sums);
};

__device__ __forceinline__ int size_of_scale(const GeneralArguments &p) {
  return p.scale_dtype == INT4MM_FLOAT32 ? 4 : 2;
}

/* The group of a segment. */
__device__ __forceinline__ uint32_t group_of(const GeneralArguments &p, uint32_t segment) {
  return __umulhi(2 * segment, p.group_reciprocal);
}

/* x, in a register for as long as it is used: what a shuffle gives, ptxas cannot compute anew, which for constants
 * takes a load and its latency each time. */
template <class T> __device__ __forceinline__ T kept(T x) {
  if constexpr (sizeof(T) == 8)
    return (T)__shfl_sync(0xffffffffu, (unsigned long long)x, threadIdx.x % 32);
  else
    return __shfl_sync(0xffffffffu, x, threadIdx.x % 32);
}

} // namespace
#endif
