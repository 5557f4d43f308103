/*
 * skinny for operands of every kind: A of int4, int8, float16 or bfloat16 (skinny_fragments.cuh), group scales, factors
 * and zero points of B. The mainloop is skinny.cuh's; this is what it calls for a k-block.
 *
 * Sums are formed over segments: the longest of 32, 64 or 128 values that no group's border divides. A stage has the
 * scales and the zero points or factors of its segments beside A and B. What becomes of a segment's sums:
 *
 * A is floats: t = fma(sum, scale, t) in registers, for the segments that a warp has. Warps and CTAs that share K add
 * their t in a fixed order.
 *
 * Integers without group scales: they are added, times the factor. A zero point is taken away times the sum of A's
 * values, which is one mma more with a B of ones; where it is a column's, once at the end.
 *
 * Integers with group scales, whose chain t = fma(float(acc_g), scale, t) has an order: a segment's sums and scales go
 * to its slot in shared memory, and after a window of rounds the threads that will finish outputs take them from there
 * in order. The window is all of K where that fits, else there are two, of which one is filled while the other is read.
 *
 * With a group to each k-block windows of less than all of K, whose barriers stop all warps of a stripe, are not worth
 * it: the warps are a ring in which t goes from k-block to k-block, by shared memory; a lane has the same outputs in
 * all of them. A turn takes some 100 ns, which is hidden where a CTA has several stripes: 16 x 4096 x 14336 takes 12.8
 * us on an H100, by windows 15.2. Of one stripe 16 x 4096 x 4096 takes 6.4 by a ring and 5.2 by slots.
 */
#ifndef INT4MM_SKINNY_GENERAL_CUH
#define INT4MM_SKINNY_GENERAL_CUH

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
  static constexpr int BLOCKS = NK && IS_PLAIN ? INT4MM_SKINNY_NK_BLOCKS : 1; /* else memory for stages is short */
  static constexpr float UNSCALE = 1;
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
  static __device__ void wait(const Source &source);
  static __device__ void select_expert(Arguments &own, const int4mm_experts &experts, int expert);
  static __device__ void begin(Sums &sums, const Arguments &p, uint32_t slots, int first_row, int first_column);
  static __device__ void copy(const Source &source, const Arguments &p, uint32_t stage, int step, int first_row,
                              int first_column);
  static __device__ void multiply(Sums &sums, Waiting &pending, const Source &source, const Arguments &p,
                                  uint32_t stage, int k_block, int round);
  static __device__ void add(Sums &sums, Waiting &pending, const Source &source, const Arguments &p);
  static __device__ void end_round(Sums &sums, const Arguments &p, int round);
  static __device__ void finish(Sums &sums, const Arguments &p, int first_row);
  static __device__ void store_partial(uint32_t matrix, const Sums &sums);
};

/* ---- copies ---- */

/* Where chunk c (16 bytes) of a row of a stage's A lies in it: swizzled so that a slice is read without bank conflicts.
 */
template <int WORDS> __device__ __forceinline__ int swizzled(int row, int c) {
  return WORDS == 1 ? c ^ (row / 2 & 3) : WORDS == 2 ? c ^ 2 * (row & 3) : c ^ 4 * (row & 1);
}

/* Where words of slice 0 of lane (g, t) lie in eight rows; those of slice j are at an exclusive or with 16 WORDS j. */
template <int WORDS> __device__ __forceinline__ uint32_t first_slice(int g, int t) {
  int swizzle = WORDS == 1 ? g / 2 & 3 : WORDS == 2 ? g & 3 : g & 1;
  return g * 64 * WORDS + 4 * WORDS * t + 16 * WORDS * swizzle;
}

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

/* Of [N, K/8], from a stage on: where chunk c of a step of column 4g + i lies. */
template <class S> __device__ __forceinline__ uint32_t nk_offset(int i, int g, int c) {
  if (S::BLOCKS == 2) return line_offset(S::PARAMETERS, i, g, c);
  return i * CHUNK_BYTES + g / 2 * 128 + (c ^ (g % 2 * 4 + g / 2)) * 16;
}

/* Where this lane copies from, at K's beginning: B, A, scales, and zero points or factors. Of B a lane takes four
 * columns of words t, t + 4, ..., or of [N, K/8] a chunk of a step, of column 4g + i for every i, or of two k-blocks
 * for every g; of A chunk c of every ROWS_STEP-th row; of the others eight lanes take a segment.
 *
 * Of [N, K/8] a stage of two k-blocks lies as line_offset says; of one a line of shared memory has the four chunks of
 * columns 4g + i and 4(g + 1) + i for an even g, swizzled alike. */
template <class S> struct GeneralSource {
  static constexpr int CHUNKS = S::A_ROW_BYTES / 16, ROWS_STEP = 32 / CHUNKS; /* chunks of a row, rows at a time */
  const char *b, *rows, *scales, *bytes;
  bool inside;                                     /* of the warp's columns */
  int valid_rows;                                  /* of A from the lane's first on */
  uint32_t b_to, rows_to;                          /* in a stage: where it copies to */
  uint32_t b_at, rows_at;                          /* and where it loads the words of slice 0 from */
  int copies_scales, copies_bytes;                 /* of a segment */
  uint32_t scales_at, zeros_at, stride;            /* GROUPS: of the lane in a stage; from a group to the next */
  int slices, stages, zeros, factors, scale_dtype; /* of the arguments; scale_dtype is -1 without scales */

  __device__ __forceinline__ GeneralSource(const GeneralArguments &p, int first_row, int first_column) {
    int lane = threadIdx.x % 32, row = lane / CHUNKS, c = lane % CHUNKS, g = lane / 4, t = lane % 4;
    if (!S::NK)
      b = (const char *)(p.b + lane / 8 * p.ldb + first_column + lane % 8 * 4);
    else if (S::BLOCKS == 2)
      b = (const char *)(p.b + (first_column + lane / 8) * p.ldb + lane % 8 * 4);
    else
      b = (const char *)(p.b + (first_column + g * 4) * p.ldb + t * 4);
    rows = p.rows + (first_row + row) * p.row_stride + c * 16;
    scales = p.scales + first_column * size_of_scale(p) + lane % 8 * 16;
    bytes = p.bytes + first_column + lane % 8 * 16;
    inside = first_column + COLUMNS <= p.N, valid_rows = p.M - first_row - row;
    if (!S::BRANCHES) valid_rows = kept(valid_rows);
    b_to = chunk_offset(lane / 8, lane % 8), b_at = chunk_offset(t, g);
    if (S::NK) b_to = nk_offset<S>(0, g, t), b_at = nk_offset<S>(0, g, 0) + 4 * t;
    if (S::BLOCKS == 2) b_to = nk_offset<S>(lane / 8, 0, lane % 8);
    rows_to = B_BYTES + row * S::A_ROW_BYTES + swizzled<S::A::WORDS>(row, c) * 16;
    rows_at = B_BYTES + first_slice<S::A::WORDS>(g, t);
    b = kept(b), rows = kept(rows), b_to = kept(b_to), rows_to = kept(rows_to), b_at = kept(b_at);
    rows_at = kept(rows_at), stages = kept(p.stages);
    zeros = S::BRANCHES ? kept(p.bytes && !p.factors ? 1 : 0) : S::ZEROS;
    if (S::IS_PLAIN) return;
    if (S::IS_GROUPS) {
      uint32_t at = S::BY_COLUMNS ? S::lane_column() * size_of_scale(p) : lane * size_of_scale(p) & ~3u;
      bool copies_zeros = S::ZEROS && lane >= 8;
      scales = kept(copies_zeros ? bytes : scales);
      if (S::ZEROS) stride = kept(copies_zeros ? p.bytes_stride : p.scales_stride);
      scale_dtype = kept(p.scale_dtype), scales_at = kept(S::PARAMETERS + at);
      if (S::ZEROS) zeros_at = kept(S::PARAMETERS + 128 + (S::FLOAT ? 4 * g : S::lane_column()));
      copies_scales = kept(copies_zeros ? lane < 10 : lane * 16 < COLUMNS * size_of_scale(p));
      return;
    }
    scales = kept(scales), bytes = kept(bytes), slices = kept(p.slices), factors = kept((int)p.factors);
    scale_dtype = kept(p.scales ? p.scale_dtype : -1);
    copies_scales = kept(lane / 8 < p.segments && p.scales && lane % 8 * 16 < COLUMNS * size_of_scale(p) ? 1 : 0);
    copies_bytes = kept(lane / 8 < p.segments && p.bytes && lane % 8 < 2 ? 1 : 0);
  }
};

/* The B of a step that is whole, of columns inside the matrix. */
template <class S>
__device__ __forceinline__ void copy_whole_b(const GeneralSource<S> &from, const GeneralArguments &p, uint32_t stage,
                                             uint32_t step) {
  const char *b = from.b + (uint64_t)step * p.b_step_bytes;
  const uint32_t chunk = stage + from.b_to;
  if (S::BLOCKS == 2) {
#pragma unroll
    for (int g = 0; g < 8; g++, b += p.b_copy_bytes)
      ptx::cp_async16((chunk ^ nk_offset<S>(0, g, 0) % 128) + g * 128, b, 16);
  } else if (S::NK) {
#pragma unroll
    for (int i = 0; i < 4; i++, b += p.b_copy_bytes) ptx::cp_async16_line(chunk + i * CHUNK_BYTES, b, 16);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++, b += p.b_copy_bytes) ptx::cp_async16(chunk + j * CHUNK_BYTES, b, 16);
  }
}

/* What else a k-block of it has. */
template <class S>
__device__ __forceinline__ void copy_whole(const GeneralSource<S> &from, const GeneralArguments &p, uint32_t stage,
                                           uint32_t k_block) {
  typedef GeneralSource<S> Source;
  /* a lane's rows have one swizzle */
  static_assert(Source::ROWS_STEP % (S::A::WORDS == 1 ? 8 : S::A::WORDS == 2 ? 4 : 2) == 0, "swizzles differ");
  const int lane = threadIdx.x % 32;
  const char *rows = from.rows + (uint64_t)k_block * S::A_ROW_BYTES;
  const uint32_t to = stage + from.rows_to;
#pragma unroll
  for (int i = 0; i < S::ROWS; i += Source::ROWS_STEP, rows += p.row_step_bytes)
    ptx::cp_async16_l1_if(to + i * S::A_ROW_BYTES, rows, i < from.valid_rows);
  if (S::IS_PLAIN) return;
  if (S::IS_GROUPS) { /* zero points are after 128 bytes of scales */
    uint32_t stride = S::ZEROS ? from.stride : p.scales_stride;
    ptx::cp_async16_if(stage + S::PARAMETERS + lane * 16, from.scales + (uint64_t)group_of(p, k_block) * stride,
                       from.copies_scales);
    return;
  }
  const uint32_t s = lane / 8, in_segment = lane % 8 * 16, parameters = stage + S::PARAMETERS;
  const uint32_t group = group_of(p, k_block * p.segments + s);
  ptx::cp_async16_if(parameters + s * 128 + in_segment, from.scales + (uint64_t)group * p.scales_stride,
                     from.copies_scales);
  ptx::cp_async16_if(parameters + p.segments * 128 + s * 32 + in_segment, from.bytes + (uint64_t)group * p.bytes_stride,
                     from.copies_bytes);
}

/* Waits for the oldest stage. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::wait(const Source &source) {
  if (source.stages == 2)
    ptx::cp_async_wait_group<1>();
  else if (source.stages == 3)
    ptx::cp_async_wait_group<2>();
  else
    ptx::cp_async_wait_group<3>();
}

/* A row of `size` bytes for each of 32 columns to shared memory, by any alignment. */
__device__ __forceinline__ void copy_columns(uint32_t to, const char *from, int size, int valid) {
  int lane = threadIdx.x % 32;
  if (lane >= valid) return;
  from += lane * size;
  if (size == 4)
    ptx::st_shared(to + 4 * lane, *(const uint32_t *)from);
  else if (size == 2)
    ptx::st_shared_u16(to + 2 * lane, *(const uint16_t *)from);
  else
    ptx::st_shared_u8(to + lane, *(const uint8_t *)from);
}

/* The B of any k-block: what is past the edges is not copied. */
template <class S>
__device__ __forceinline__ void copy_any_b(const GeneralArguments &p, uint32_t stage, int k_block, int first_column) {
  const int lane = threadIdx.x % 32;
  if (S::NK) {
    const int word = k_block * BLOCK_WORDS + lane % 4 * 4, column = first_column + lane / 4 * 4;
    const int block = k_block % S::BLOCKS;
    stage -= block * S::PARAMETERS;
    for (int i = 0; i < 4; i++)
      if (column + i < p.N)
        copy_words<true, false>(stage + nk_offset<S>(i, lane / 4, 4 * block + lane % 4),
                                p.b + (column + i) * p.ldb + word, p.words - word);
    return;
  }
  const int word = k_block * BLOCK_WORDS + lane / 8, column = first_column + lane % 8 * 4;
  for (int j = 0; j < 4; j++)
    if (word + 4 * j < p.words)
      copy_words<true, false>(stage + chunk_offset(lane / 8, lane % 8) + j * CHUNK_BYTES,
                              p.b + (word + 4 * j) * p.ldb + column, p.N - column);
}

/* Any k-block: past K come zeros in A, what is past the edges of B is not copied, and scales, zero points and factors
 * may start anywhere. */
template <class S>
__device__ __noinline__ void copy_any(const GeneralArguments &p, uint32_t stage, int k_block, int first_row,
                                      int first_column) {
  constexpr int CHUNKS = S::A_ROW_BYTES / 16;
  const int lane = threadIdx.x % 32;
  copy_any_b<S>(p, stage, k_block, first_column);
  for (int at = lane; at < S::ROWS * CHUNKS; at += 32) {
    int row = at / CHUNKS, c = at % CHUNKS, byte = k_block * S::A_ROW_BYTES + 16 * c;
    int valid = min(max(p.row_bytes - byte, 0), 16);
    const char *from = p.rows + (first_row + row) * p.row_stride + (valid > 0 ? byte : 0);
    uint32_t to = stage + B_BYTES + row * S::A_ROW_BYTES + swizzled<S::A::WORDS>(row, c) * 16;
    if (first_row + row < p.M) ptx::cp_async16_l1(to, from, valid);
  }
  if (S::IS_PLAIN) return; /* whose stages have no place for these */
  int size = size_of_scale(p), valid = p.N - first_column;
  for (int s = 0; s < p.segments; s++) {
    uint32_t group = group_of(p, min(k_block * p.segments + s, p.all_segments - 1)), to = stage + S::PARAMETERS;
    if (p.scales)
      copy_columns(to + s * 128, p.scales + (uint64_t)group * p.scales_stride + first_column * size, size, valid);
    if (p.bytes)
      copy_columns(to + p.segments * 128 + s * 32, p.bytes + (uint64_t)group * p.bytes_stride + first_column, 1, valid);
  }
}

template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::copy(const Source &source, const Arguments &p,
                                                                      uint32_t stage, int step, int first_row,
                                                                      int first_column) {
  const bool whole = step < p.whole_steps && source.inside;
  if (whole) copy_whole_b<GeneralShape>(source, p, stage, step);
#pragma unroll
  for (int h = 0; h < BLOCKS; h++, stage += block_bytes(p)) {
    const int k_block = step * BLOCKS + h;
    if (whole)
      copy_whole<GeneralShape>(source, p, stage, k_block);
    else
      copy_any<GeneralShape>(p, stage, k_block, first_row, first_column);
  }
}

/* Scales, zero points and factors of an expert's groups. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::select_expert(Arguments &own, const int4mm_experts &x,
                                                                               int expert) {
  if (own.scales) own.scales += expert * x.group_scales * size_of_scale(own);
  if (own.bytes) own.bytes += expert * (own.factors ? x.factors : x.zeros);
}

/* ---- products ---- */

template <int WORDS> __device__ __forceinline__ void load_shared(uint32_t (&x)[WORDS], uint32_t at) {
  if constexpr (WORDS == 1) {
    x[0] = ptx::ld_shared(at);
  } else if constexpr (WORDS == 2) {
    uint2 v = ptx::ld_shared_v2(at);
    x[0] = v.x, x[1] = v.y;
  } else {
    uint4 v = ptx::ld_shared_v4(at);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  }
}

/* The words of this lane in slice j of eight rows of A, from those of slice 0. */
template <int WORDS> __device__ __forceinline__ void load_slice(uint32_t (&x)[WORDS], uint32_t rows, int j) {
  load_shared(x, rows ^ 16 * WORDS * j);
}

/* The words of slice j of a lane's four columns. */
template <class S> __device__ __forceinline__ uint4 load_words(uint32_t at, int j) {
  if (!S::NK) return ptx::ld_shared_v4(at + j * CHUNK_BYTES);
  at ^= 16 * j;
  return make_uint4(ptx::ld_shared(at), ptx::ld_shared(at + nk_offset<S>(1, 0, 0)),
                    ptx::ld_shared(at + nk_offset<S>(2, 0, 0)), ptx::ld_shared(at + nk_offset<S>(3, 0, 0)));
}

/* The products of a slice: columns 4g + i of B for every i are those of an mma. */
template <class S, class Fragments>
__device__ __forceinline__ void multiply_columns(Segment<S> &sum, const uint4 &words, const Fragments &rows,
                                                 const typename S::A::B &b, bool with_ones) {
  typedef typename S::A A;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    uint32_t unpacked[2 * A::STEPS];
    b(unpacked, element(words, i), i);
#pragma unroll
    for (int step = 0; step < A::STEPS; step++)
#pragma unroll
      for (int m = 0; m < S::ROW_TILES; m++)
        A::mma(sum.acc[m][i], rows[m][step], unpacked[2 * step], unpacked[2 * step + 1]);
  }
  if constexpr (!S::FLOAT)
    if (with_ones)
#pragma unroll
      for (int m = 0; m < S::ROW_TILES; m++) A::mma(sum.ones[m], rows[m][0], A::ONES, A::ONES);
}

/* SWAPPED: columns 4g + i and 4g + i + 1 of B are rows g and g + 8 of an mma. */
template <class S, class Fragments>
__device__ __forceinline__ void multiply_swapped(Segment<S> &sum, const uint4 &words, const Fragments &rows,
                                                 const typename S::A::B &b, bool with_ones) {
  typedef typename S::A A;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    uint32_t x[2 * A::STEPS], y[2 * A::STEPS];
    b(x, element(words, i), i), b(y, element(words, i + 1), i + 1);
#pragma unroll
    for (int step = 0; step < A::STEPS; step++) {
      const uint32_t columns[4] = {x[2 * step], y[2 * step], x[2 * step + 1], y[2 * step + 1]};
      A::mma(sum.acc[0][i / 2], columns, rows[step][0], rows[step][2]);
    }
  }
  if constexpr (!S::FLOAT) {
    const uint32_t ones[4] = {A::ONES, A::ONES, A::ONES, A::ONES};
    if (with_ones) A::mma(sum.ones[0], ones, rows[0][0], rows[0][2]);
  }
}

template <class S>
__device__ __forceinline__ void multiply_slice(Segment<S> &sum, uint32_t words_at, uint32_t rows, int j,
                                               const typename S::A &a, const typename S::A::B &b, bool with_ones,
                                               int valid) {
  typedef typename S::A A;
  uint32_t fragments[S::ROW_TILES][A::STEPS][4];
  const uint4 words = load_words<S>(words_at, j);
#pragma unroll
  for (int m = 0; m < S::ROW_TILES; m++) {
    uint32_t x[A::WORDS], y[A::WORDS] = {};
    load_slice<A::WORDS>(x, rows + 2 * m * S::EIGHT_BYTES, j);
    if (2 * m + 1 < S::EIGHTS) load_slice<A::WORDS>(y, rows + (2 * m + 1) * S::EIGHT_BYTES, j);
    a.mask(x, y, j, valid);
    a.fragments(fragments[m], x, y);
  }
  if constexpr (S::SWAPPED)
    multiply_swapped<S>(sum, words, fragments[0], b, with_ones);
  else
    multiply_columns<S>(sum, words, fragments, b, with_ones);
}

/* The scale of lane l's column, or of all columns of this lane, of a stage's segment. */
__device__ __forceinline__ float load_scale(int dtype, uint32_t scales, int l) {
  if (dtype == INT4MM_FLOAT32) return __uint_as_float(ptx::ld_shared(scales + 4 * l));
  uint32_t bits = ptx::ld_shared(scales + l / 2 * 4) >> l % 2 * 16;
  return dtype == INT4MM_FLOAT16 ? int4mm_widen<INT4MM_FLOAT16>((uint16_t)bits)
                                 : int4mm_widen<INT4MM_BFLOAT16>((uint16_t)bits);
}
template <class S>
__device__ __forceinline__ void load_scales(float (&to)[S::LANE_COLUMNS], int dtype, uint32_t scales) {
  if (dtype == INT4MM_FLOAT32) {
#pragma unroll
    for (int i = 0; i < S::LANE_COLUMNS; i += 4) {
      uint4 v = ptx::ld_shared_v4(scales + 4 * S::lane_column() + 4 * i);
#pragma unroll
      for (int c = 0; c < 4; c++) to[i + c] = __uint_as_float(element(v, c));
    }
    return;
  }
  uint32_t v[S::LANE_COLUMNS / 2];
  load_shared(v, scales + 2 * S::lane_column());
#pragma unroll
  for (int i = 0; i < S::LANE_COLUMNS; i++) {
    uint16_t bits = (uint16_t)(v[i / 2] >> i % 2 * 16);
    to[i] = dtype == INT4MM_FLOAT16 ? int4mm_widen<INT4MM_FLOAT16>(bits) : int4mm_widen<INT4MM_BFLOAT16>(bits);
  }
}

/* The bytes of a lane's columns, and byte c of them, signed. */
template <class S> __device__ __forceinline__ void load_bytes(uint2 &to, uint32_t at) {
  to = S::LANE_COLUMNS == 4 ? make_uint2(ptx::ld_shared(at), 0) : ptx::ld_shared_v2(at);
}
__device__ __forceinline__ int signed_byte(const uint2 &v, int c) {
  return (int32_t)((c < 4 ? v.x : v.y) << (24 - c % 4 * 8)) >> 24;
}

/* A segment of floats: t = fma(sum, scale, t). */
template <class S> __device__ __forceinline__ void add_floats(int32_t (&state)[S::ROWS], const Pending<S> &pending) {
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++)
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c++) {
      int32_t &t = state[S::LANE_COLUMNS * r + c];
      t = __float_as_int(__fmaf_rn(pending.sum.at(r, c), pending.scales[c], __int_as_float(t)));
    }
}

/* The integers of the lane's row r of a segment, their true values, and these less the zero points. */
template <class S>
__device__ __forceinline__ void true_sums(int32_t (&x)[S::LANE_COLUMNS], const Segment<S> &sum, int r) {
#pragma unroll
  for (int c = 0; c < S::LANE_COLUMNS; c++) x[c] = sum.at(r, c) >> S::A::SHIFT;
}
template <class S>
__device__ __forceinline__ void take_zeros(int32_t (&x)[S::LANE_COLUMNS], const Segment<S> &sum, int r,
                                           const int32_t (&zeros)[S::LANE_COLUMNS]) {
  int32_t ones = sum.of_ones(r) >> S::A::ONES_SHIFT;
#pragma unroll
  for (int c = 0; c < S::LANE_COLUMNS; c++) x[c] -= zeros[c] * ones;
}

/* The same of a pending segment. */
template <class S>
__device__ __forceinline__ void pending_sums(int32_t (&x)[S::LANE_COLUMNS], const GeneralSource<S> &source,
                                             const Pending<S> &pending, int r) {
  true_sums<S>(x, pending.sum, r);
  if (S::BRANCHES ? !source.zeros : !S::ZEROS) return;
  if (S::BRANCHES) asm volatile(""); /* a branch: the instructions are too many to be done in vain */
  int32_t zeros[S::LANE_COLUMNS];
#pragma unroll
  for (int c = 0; c < S::LANE_COLUMNS; c++) zeros[c] = signed_byte(pending.bytes, c);
  take_zeros<S>(x, pending.sum, r, zeros);
}

/* A segment of integers without group scales. */
template <class S>
__device__ __forceinline__ void add_integers(int32_t (&state)[S::ROWS], const GeneralSource<S> &source,
                                             const Pending<S> &pending) {
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++) {
    int32_t x[S::LANE_COLUMNS];
    pending_sums<S>(x, source, pending, r);
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c++) {
      int32_t factor = signed_byte(pending.bytes, c);
      state[S::LANE_COLUMNS * r + c] += source.factors ? x[c] * factor : x[c];
    }
  }
}

/* A segment with group scales to its slot: [slot_rows, 32] sums, swizzled as slot_swizzle() says, then the scales.
 * `first`: where the lane's first chunk lies in it. */
template <class S>
__device__ __forceinline__ void store_slot(const GeneralArguments &p, const GeneralSource<S> &source,
                                           const Pending<S> &pending, uint32_t first) {
  const int lane = threadIdx.x % 32, rows = S::slot_rows(p);
  const uint32_t at = pending.slot + first;
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++) { /* which all have one swizzle */
    int32_t x[S::LANE_COLUMNS];
    pending_sums<S>(x, source, pending, r);
    if (!S::IS_GROUPS && S::lane_row(r) >= rows) continue;
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c += 4)
      ptx::st_shared_v4((at ^ 4 * c) + r * S::ROW_STEP * COLUMNS * 4, x[c], x[c + 1], x[c + 2], x[c + 3]);
  }
  ptx::st_shared(pending.slot + rows * COLUMNS * 4 + 4 * lane, __float_as_uint(pending.scales[0]));
}

/* What a stage has for a segment, where `scales` and `bytes` are. */
template <class S>
__device__ __forceinline__ void load_parameters(Pending<S> &pending, const GeneralSource<S> &source, uint32_t scales,
                                                uint32_t bytes) {
  const int lane = threadIdx.x % 32;
  pending.bytes = make_uint2(0, 0);
  if (source.factors || (!S::FLOAT && source.zeros)) load_bytes<S>(pending.bytes, bytes + S::lane_column());
  if constexpr (S::MODE == CHAIN) pending.scales[0] = load_scale(source.scale_dtype, scales, lane);
  if constexpr (S::FLOAT) {
    if (source.scale_dtype >= 0)
      load_scales<S>(pending.scales, source.scale_dtype, scales);
    else
#pragma unroll
      for (int c = 0; c < S::LANE_COLUMNS; c++)
        pending.scales[c] = source.factors ? (float)signed_byte(pending.bytes, c) : 1;
  }
}

/* GROUPS: loads the scales of a k-block without a look at them. */
template <class S> __device__ __forceinline__ void load_packed_scales(Pending<S> &pending, uint32_t at) {
  if constexpr (S::BY_COLUMNS) {
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c += 4) {
      uint4 v = ptx::ld_shared_v4(at + 4 * c);
#pragma unroll
      for (int i = 0; i < 4; i++) pending.packed[c + i] = element(v, i);
    }
  } else {
    pending.packed[0] = ptx::ld_shared(at);
  }
}

/* GROUPS: the scales of the lane's columns, for next(), which every dtype has code of its own of. */
template <class S, class F>
__device__ __forceinline__ void with_scales(Pending<S> &pending, int32_t scale_dtype, F next) {
  auto with = [&](auto scale) {
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c++) pending.scales[c] = scale(c);
    next();
  };
  auto half = [&](int c) { return (uint16_t)(pending.packed[c / 2] >> c % 2 * 16); };
  if (scale_dtype == INT4MM_FLOAT32)
    with([&](int c) { return __uint_as_float(pending.packed[c]); });
  else if (scale_dtype == INT4MM_FLOAT16)
    with([&](int c) { return int4mm_widen<INT4MM_FLOAT16>(half(c)); });
  else
    with([&](int c) { return int4mm_widen<INT4MM_BFLOAT16>(half(c)); });
}

/* GROUPS: the scale of lane's column. */
__device__ __forceinline__ float unpack_scale(uint32_t bits, int32_t dtype) {
  uint16_t half = (uint16_t)(bits >> threadIdx.x % 2 * 16);
  float wide = dtype == INT4MM_FLOAT16 ? int4mm_widen<INT4MM_FLOAT16>(half) : int4mm_widen<INT4MM_BFLOAT16>(half);
  return dtype == INT4MM_FLOAT32 ? __uint_as_float(bits) : wide;
}

/* RING: a k-block, when its turn has come: t = fma(sum, scale, t), for the warp with the next one. */
template <class S>
__device__ __forceinline__ void pass_on(RingSums<S> &sums, Pending<S> &pending, const GeneralSource<S> &source) {
  float x[S::ROWS];
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++) {
    int32_t acc[S::LANE_COLUMNS];
    pending_sums<S>(acc, source, pending, r);
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c++) x[S::LANE_COLUMNS * r + c] = (float)acc[c];
  }
  with_scales(pending, source.scale_dtype, [] {});
  const bool first = pending.k_block == 0;
  if (!first) ptx::named_barrier_sync(sums.turn, 64);
#pragma unroll
  for (int i = 0; i < S::ROWS; i += 4) {
    uint4 before = make_uint4(0, 0, 0, 0);
    if (!first) before = ptx::ld_shared_v4(sums.at + 128 * i);
#pragma unroll
    for (int c = 0; c < 4; c++)
      sums.t[i + c] =
          int4mm_fma(x[i + c], pending.scales[i % S::LANE_COLUMNS + c], __uint_as_float(element(before, c)));
  }
  if (pending.k_block == sums.last) return;
#pragma unroll
  for (int i = 0; i < S::ROWS; i += 4) {
    const float *t = &sums.t[i];
    ptx::st_shared_v4(sums.at + 128 * i, __float_as_uint(t[0]), __float_as_uint(t[1]), __float_as_uint(t[2]),
                      __float_as_uint(t[3]));
  }
  ptx::named_barrier_arrive(sums.next, 64);
}

/* Where products are added up. */
template <class S> __device__ __forceinline__ Segment<S> &sum_of(typename S::Sums &sums, Pending<S> &pending) {
  if constexpr (S::IS_PLAIN)
    return sums.plain;
  else
    return pending.sum;
}

/* The last segment's sums, once they are there. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::add(Sums &sums, Waiting &pending, const Source &source,
                                                                     const Arguments &p) {
  if constexpr (IS_GROUPS && FLOAT) {
    with_scales(pending, source.scale_dtype, [&] { add_floats<GeneralShape>(sums.state, pending); });
  } else if constexpr (RINGS) {
    pass_on<GeneralShape>(sums, pending, source);
  } else if constexpr (FLOAT) {
    add_floats<GeneralShape>(sums.state, pending);
  } else if constexpr (CHAINS) {
    if (IS_GROUPS) pending.scales[0] = unpack_scale(pending.packed[0], source.scale_dtype);
    store_slot<GeneralShape>(p, source, pending, sums.to);
  }
  if constexpr (MODE == SUMS && !FLOAT) add_integers<GeneralShape>(sums.state, source, pending);
}

/* The products of a k-block. The last segment is left pending: its stage is free and the next copies are issued before
 * its sums are there. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::multiply(Sums &sums, Waiting &pending,
                                                                          const Source &source, const Arguments &p,
                                                                          uint32_t stage, int k_block, int round) {
  const A a(p.xor_a);
  typename A::B b(p.xor_b);
  /* past K the int4 of A are made 0, which zeroed memory is not in every encoding */
  const int valid = p.words - k_block * BLOCK_WORDS;
  const int block = k_block % BLOCKS;
  const uint32_t words_at = (stage - block * PARAMETERS + source.b_at) ^ block * 64;
  const uint32_t rows = stage + source.rows_at;
  if constexpr (!BRANCHES) {
    if constexpr (IS_GROUPS) {
      pending.sum = {}, pending.k_block = k_block;
      if constexpr (ZEROS && FLOAT) b.set_zeros(ptx::ld_shared(stage + source.zeros_at));
      if constexpr (ZEROS && !FLOAT) load_bytes<GeneralShape>(pending.bytes, stage + source.zeros_at);
      load_packed_scales<GeneralShape>(pending, stage + source.scales_at);
      if constexpr (CHAINS) pending.slot = sums.slot + k_block * slot_bytes(p);
    }
    Segment<GeneralShape> &sum = sum_of<GeneralShape>(sums, pending);
#pragma unroll
    for (int i = 0; i < 4; i++) multiply_slice<GeneralShape>(sum, words_at, rows, i, a, b, ZEROS, valid);
    return;
  }
  const bool zeros = source.zeros;
  uint32_t scales = stage + PARAMETERS, bytes = scales + p.segments * 128;
  if constexpr (MODE == CHAIN) pending.slot = sums.slot + k_block * p.block_slot_bytes;
#pragma unroll 1
  for (int j = 0; j < 4; j += source.slices, scales += 128, bytes += 32) {
    if (j > 0) {
      add(sums, pending, source, p);
      pending.slot += p.slot_bytes;
    }
    pending.sum = {};
    if (FLOAT && zeros) b.set_zeros(ptx::ld_shared(bytes + threadIdx.x % 32 / 4 * 4));
    if (source.slices == 4) {
#pragma unroll
      for (int i = 0; i < 4; i++) multiply_slice<GeneralShape>(pending.sum, words_at, rows, i, a, b, zeros, valid);
    } else {
#pragma unroll 1
      for (int i = 0; i < source.slices; i++)
        multiply_slice<GeneralShape>(pending.sum, words_at, rows, j + i, a, b, zeros, valid);
    }
    load_parameters<GeneralShape>(pending, source, scales, bytes);
  }
}

/* ---- the chain ---- */

/* The first ITEMS outputs of a thread over a run of slots in order, each a group: the addresses are those of their sums
 * and their column's scale in the first. */
template <int ITEMS, int UNROLL, int ALL>
__device__ __forceinline__ void chain_groups(float (&t)[ALL], int slot_bytes, const uint32_t (&sums)[ALL],
                                             uint32_t scales, int count) {
#pragma unroll UNROLL
  for (int i = 0, offset = 0; i < count; i++, offset += slot_bytes) {
    const float scale = __uint_as_float(ptx::ld_shared(scales + offset));
#pragma unroll
    for (int item = 0; item < ITEMS; item++)
      t[item] = int4mm_next_group(t[item], (int32_t)ptx::ld_shared(sums[item] + offset), scale);
  }
}

/* An output over a window's segments from `segment` on, of which several are a group. */
struct ChainState {
  float t;
  int32_t sum; /* of the group so far */
};
__device__ __noinline__ ChainState chain_segments(ChainState state, const GeneralArguments &p, uint32_t sums,
                                                  uint32_t scales, int segment, int count) {
  int in_group = segment - (int)group_of(p, segment) * p.group;
  for (int i = 0; i < count; i++, sums += p.slot_bytes, scales += p.slot_bytes) {
    state.sum += (int32_t)ptx::ld_shared(sums);
    if (++in_group == p.group || segment + i + 1 == p.all_segments) {
      state.t = int4mm_next_group(state.t, state.sum, __uint_as_float(ptx::ld_shared(scales)));
      state.sum = in_group = 0;
    }
  }
  return state;
}

/* The chains of this thread's outputs over `count` slots, each a group. */
template <class S>
__device__ __forceinline__ void chain_slots(typename S::Sums &sums, const GeneralArguments &p, int count) {
  constexpr int ITEMS = S::ITEMS;
  const int slot_bytes = S::slot_bytes(p);
  if (!sums.items) return;
  if (sums.items == 1)
    chain_groups<1, 8>(sums.t, slot_bytes, sums.at, sums.scales, count);
  else if (ITEMS == 2 || sums.items == 2)
    chain_groups<2, S::IS_GROUPS ? 8 : 4>(sums.t, slot_bytes, sums.at, sums.scales, count);
  else
    chain_groups<ITEMS, 2>(sums.t, slot_bytes, sums.at, sums.scales, count);
}

/* CHAIN: the same over a window's slots. */
template <class S>
__device__ __forceinline__ void chain_window(typename S::Sums &sums, const GeneralArguments &p, int rounds) {
  const int segment = sums.first * p.warps_k * p.segments;
  const int count = min(rounds * p.warps_k * p.segments, p.all_segments - segment);
  if (p.group == 1) return chain_slots<S>(sums, p, count);
#pragma unroll
  for (int item = 0; item < S::ITEMS; item++) {
    if (item >= sums.items) continue;
    ChainState state = chain_segments({sums.t[item], sums.sum[item]}, p, sums.at[item], sums.scales, segment, count);
    sums.t[item] = state.t, sums.sum[item] = state.sum;
  }
}

/* What the outputs of a chain need. */
template <class S>
__device__ __forceinline__ void load_outputs(typename S::Sums &sums, const GeneralArguments &p, int first_row) {
  int4mm_load_bias(sums.bias, p.epilogue, sums.column, p.N);
#pragma unroll
  for (int item = 0; item < S::ITEMS; item++) {
    int row = sums.row + item * sums.step;
    sums.scale_a[item] = row < min(S::ROWS, p.M - first_row) ? __ldg(p.epilogue.scale_a + first_row + row) : 0;
  }
}

/* Of a ring: this warp's place in it, and what its outputs need. */
template <class S>
__device__ __forceinline__ void begin_ring(RingSums<S> &sums, const GeneralArguments &p, uint32_t slots, int first_row,
                                           int first_column) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, along_k = by_warps_n<S>(p, warp);
  const int stripe = warp - along_k * p.warps_n;
  sums.at = kept(slots + stripe * S::ROWS * COLUMNS * 4 + lane * 16);
  sums.turn = kept(warp), sums.next = kept(along_k + 1 == p.warps_k ? stripe : warp + p.warps_n);
  sums.last = kept((p.words + BLOCK_WORDS - 1) / BLOCK_WORDS - 1);
  sums.row = first_row + S::lane_row(0), sums.column = first_column + S::lane_column();
  if (sums.last % p.warps_k != along_k) sums.row = p.M; /* another has the outputs */
  int4mm_load_bias(sums.bias, p.epilogue, sums.column, p.N);
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++)
    sums.scale_a[r] = sums.row + S::ROW_STEP * r < p.M ? __ldg(p.epilogue.scale_a + sums.row + S::ROW_STEP * r) : 0;
}

/* PLAIN_ZEROS: loads the zero points. A chain: where this warp's slots and this thread's outputs are: the warps of a
 * stripe share out its rows, a warp takes whole ones. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::begin(Sums &sums, const Arguments &p, uint32_t slots,
                                                                       int first_row, int first_column) {
  if constexpr (MODE == PLAIN_ZEROS) {
    int column = first_column + lane_column();
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; c++)
      sums.zeros[c] = p.bytes && column + c < p.N ? __ldg((const signed char *)p.bytes + column + c) : 0;
  }
  if constexpr (RINGS) begin_ring<GeneralShape>(sums, p, slots, first_row, first_column);
  if constexpr (CHAINS) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = min(ROWS, p.M - first_row);
    sums.row = by_warps_n<GeneralShape>(p, warp), sums.step = p.warps_k;
    sums.stripe = warp - sums.row * p.warps_n, sums.column = first_column + lane;
    slots += sums.stripe * p.stripe_bytes;
    sums.scales = kept(slots + slot_rows(p) * COLUMNS * 4 + lane * 4);
    int items = 0;
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
      int row = min(sums.row + item * sums.step, rows - 1);
      sums.at[item] = kept((slots + row * COLUMNS * 4 + lane * 4) ^ slot_swizzle(row) * 16);
      if (sums.row + item * sums.step < rows) items = item + 1;
    }
    sums.items = kept(items);
    sums.slot = slots, sums.to = (lane_row(0) * COLUMNS + (lane_column() ^ slot_swizzle(lane_row(0)) * 4)) * 4;
    if (IS_GROUPS) sums.to = kept(sums.to); /* else registers are few */
    if (IS_GROUPS) load_outputs<GeneralShape>(sums, p, first_row);
  }
}

/* CHAIN, after a round: the chains, where it has filled a window or is the last. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::end_round(Sums &sums, const Arguments &p, int round) {
  if constexpr (MODE == CHAIN) {
    const bool last = round + 1 == p.rounds;
    if (!last && round + 1 < sums.first + p.window) return;
    if (last) ptx::griddepcontrol_launch_dependents(); /* as after the mainloop */
    /* All of the window is stored, and all of the one before it has been read. */
    ptx::named_barrier_sync(1 + sums.stripe, 32 * p.warps_k);
    chain_window<GeneralShape>(sums, p, round + 1 - sums.first);
    sums.first = round + 1, sums.half ^= 1;
    const int bytes = p.window * p.warps_k * p.block_slot_bytes, moved = sums.half ? bytes : -bytes;
    sums.slot += moved - bytes, sums.scales += moved;
#pragma unroll
    for (int item = 0; item < ITEMS; item++) sums.at[item] += moved;
  }
}

/* The outputs of a ring. */
template <class S> __device__ __forceinline__ void finish_ring(const RingSums<S> &sums, const GeneralArguments &p) {
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++) {
    int row = sums.row + S::ROW_STEP * r;
    if (row >= p.M) continue;
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c += 4) {
      float x[4], bias[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        x[i] = __fmul_rn(sums.t[S::LANE_COLUMNS * r + c + i], sums.scale_a[r]), bias[i] = sums.bias[c + i];
      if (sums.column + c < p.N) int4mm_finish_scaled<S::LAYER>(p.epilogue, row, sums.column + c, p.N, bias, x);
    }
  }
}

/* The outputs of a chain, which by groups begins only here: all slots have been filled. */
template <class S>
__device__ __forceinline__ void finish_chain(typename S::Sums &sums, const GeneralArguments &p, int first_row) {
  if (S::IS_GROUPS) {
    ptx::named_barrier_sync(1 + sums.stripe, 32 * p.warps_k);
    chain_slots<S>(sums, p, p.all_segments);
  } else { /* registers are few before */
    load_outputs<S>(sums, p, first_row);
  }
#pragma unroll
  for (int item = 0; item < S::ITEMS; item++) {
    int row = sums.row + item * sums.step;
    if (row >= min(S::ROWS, p.M - first_row)) continue;
    float x[1] = {__fmul_rn(sums.t[item], sums.scale_a[item])};
    if (sums.column < p.N) int4mm_finish_scaled<S::LAYER>(p.epilogue, first_row + row, sums.column, p.N, sums.bias, x);
  }
}

template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::finish(Sums &sums, const Arguments &p, int first_row) {
  if constexpr (RINGS)
    finish_ring<GeneralShape>(sums, p);
  else
    finish_chain<GeneralShape>(sums, p, first_row);
}

/* Without a chain: this lane's sums as store_partial of skinny.cuh has them. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::store_partial(uint32_t matrix, const Sums &sums) {
#pragma unroll
  for (int r = 0; r < LANE_ROWS; r++) {
    uint32_t row = matrix + (lane_row(r) * COLUMNS + lane_column()) * 4;
    int32_t x[LANE_COLUMNS];
    if constexpr (IS_PLAIN) {
      true_sums<GeneralShape>(x, sums.plain, r);
      if (MODE == PLAIN_ZEROS) take_zeros<GeneralShape>(x, sums.plain, r, sums.zeros);
    } else {
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; c++) x[c] = sums.state[LANE_COLUMNS * r + c];
    }
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; c += 4) ptx::st_shared_v4(row + 4 * c, x[c], x[c + 1], x[c + 2], x[c + 3]);
  }
}

} // namespace
#endif
