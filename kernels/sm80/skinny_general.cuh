/*
 * skinny for operands of every kind: A of int4, int8, float16 or bfloat16 (skinny_fragments.cuh), group scales, factors
 * and zero points of B. The mainloop is skinny.cuh's; this is what it calls for a k-block.
 *
 * Sums are formed over segments: the longest of 32, 64 or 128 values that no group's border divides. A stage has the
 * scales and the zero points or factors of its segments beside A and B. What becomes of a segment's sums:
 *
 * - A is floats: t = fma(sum, scale, t) in registers, for the segments that a warp has. Warps and CTAs that share K add
 *   their t in a fixed order.
 * - Integers without group scales: they are added, times the factor, less the zero point times the sum of A's values,
 *   which is one mma more with a B of ones.
 * - Integers with group scales, whose chain t = fma(float(acc_g), scale, t) has an order: a segment's sums and scales go
 *   to its slot in shared memory, and after a window of rounds the threads that will finish outputs take them from there
 *   in order. The window is all of K where that fits, else there are two, of which one is filled while the other is
 *   read. With a cluster it is all of K, and the slots of all CTAs are read.
 */
#ifndef INT4MM_SKINNY_GENERAL_CUH
#define INT4MM_SKINNY_GENERAL_CUH

#include "sm80/skinny.cuh"
#include "sm80/skinny_fragments.cuh"

namespace {

constexpr int B_BYTES = INT4MM_SKINNY_B_BYTES;

struct GeneralArguments : SkinnyArguments {
  const char *rows; /* A */
  int64_t row_stride;
  int row_bytes; /* of K values */
  int stages, stage_bytes;
  int segments, slices; /* segments of a k-block, slices of a segment */
  int group, groups;    /* of segments, and groups */
  int all_segments;     /* of K */
  /* Of each group: scales, and zero points or factors; NULL: none. */
  const char *scales, *bytes;
  int64_t scales_stride, bytes_stride; /* from group to group, in bytes */
  int scale_dtype;
  bool factors;        /* the bytes are factors */
  bool vectors;        /* rows of both start on 16 bytes */
  bool chain;          /* integers with group scales */
  int rounds, window;  /* rounds of k-blocks, and those of a window */
  int slot_rows, slot_bytes, stripe_bytes; /* a slot: rows of sums, then the scales; slots of a stripe */
};

/* A lane's sums. Without a chain state[8 r + c] is of row g + 8 r and column 8 t + c, int32 or float. With one the first
 * half is t and the second the sum of a group so far, of each output of this thread, four columns a row. */
template <class S> struct GeneralSums {
  int32_t state[S::ROWS];
  int first, half; /* a window's first round; which of two it is */
};

template <int ROWS_, class A_, bool NK_> struct GeneralShape {
  typedef GeneralArguments Arguments;
  typedef A_ A;
  typedef typename A::Sum Sum;
  typedef GeneralSums<GeneralShape> Sums;
  static constexpr int ROWS = ROWS_, OWN_CHUNKS = 0, CTAS = 1;
  static constexpr bool LAYER = true, NK = NK_, ALIGNED = true, WIDE = false, ROTATED = true, ONE_STRIPE = false;
  static constexpr bool GENERAL = true, FLOAT = std::is_same<Sum, float>::value;
  static constexpr float UNSCALE = 1;
  static constexpr int ROW_TILES = (ROWS + 15) / 16, EIGHTS = ROWS / 8; /* of rows */
  static constexpr int A_ROW_BYTES = BLOCK_WORDS * 4 * A::WORDS, EIGHT_BYTES = 8 * A_ROW_BYTES;
  static constexpr int PARAMETERS = B_BYTES + EIGHTS * EIGHT_BYTES; /* where they lie in a stage */
  static constexpr int ITEMS = (ROWS + 7) / 8; /* outputs of a thread in a chain: two warps share K at least */

  static __device__ __forceinline__ int stage_bytes(const Arguments &p) { return p.stage_bytes; }
  static __device__ __forceinline__ int stages(const Arguments &p) { return p.stages; }
  static __device__ __forceinline__ bool more(const Arguments &p, int round, int, int) { return round < p.rounds; }
  static __device__ __forceinline__ void wait(const Arguments &p) {
    if (p.stages == 2)
      ptx::cp_async_wait_group<1>();
    else if (p.stages == 3)
      ptx::cp_async_wait_group<2>();
    else
      ptx::cp_async_wait_group<3>();
  }

  static __device__ void copy(const Arguments &p, uint32_t stage, int k_block, int first_row, int first_column);
  static __device__ void multiply(Sums &sums, const Arguments &p, uint32_t stage, uint32_t slots, int k_block,
                                  int round, int first_row);
  static __device__ void end_round(Sums &sums, const Arguments &p, uint32_t slots, int round, int first_row);
  static __device__ bool finish(Sums &sums, const Arguments &p, uint32_t slots, int first_row, int first_column,
                                const float (&bias)[CHUNK_WORDS]);
  static __device__ void store_partial(uint32_t matrix, const Sums &sums);
};

/* ---- copies ---- */

/* Where chunk c (16 bytes) of a row of a stage's A lies in it: swizzled so that a slice is read without bank conflicts.
 */
template <int WORDS> __device__ __forceinline__ int swizzled(int row, int c) {
  return WORDS == 1 ? c ^ (row / 2 & 3) : WORDS == 2 ? c ^ 2 * (row & 3) : c ^ 4 * (row & 1);
}

/* Rows of A of a k-block; past K come zeros. */
template <class S>
__device__ __forceinline__ void copy_rows(const GeneralArguments &p, uint32_t to, int k_block, int first_row) {
  constexpr int CHUNKS = S::A_ROW_BYTES / 16;
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < S::EIGHTS * CHUNKS / 4; i++) {
    int at = lane + 32 * i, row = at / CHUNKS, c = at % CHUNKS, byte = k_block * S::A_ROW_BYTES + 16 * c;
    int valid = min(max(p.row_bytes - byte, 0), 16);
    const char *from = p.rows + (first_row + row) * p.row_stride + (valid > 0 ? byte : 0);
    uint32_t chunk = to + row * S::A_ROW_BYTES + swizzled<S::A::WORDS>(row, c) * 16;
    if (first_row + row < p.M) ptx::cp_async16_l1(chunk, from, valid);
  }
}

/* A row of `size` bytes for each of 32 columns to shared memory, as far as columns are valid; `lane` copies. */
__device__ __forceinline__ void copy_columns(uint32_t to, const char *from, int size, int valid, int lane, bool vector) {
  if (vector) {
    int bytes = min(valid * size - 16 * lane, 16);
    if (lane < 2 * size && bytes > 0) ptx::cp_async16(to + 16 * lane, from + 16 * lane, bytes);
  } else if (lane < valid) {
    from += lane * size;
    if (size == 4)
      ptx::st_shared(to + 4 * lane, *(const uint32_t *)from);
    else if (size == 2)
      ptx::st_shared_u16(to + 2 * lane, *(const uint16_t *)from);
    else
      ptx::st_shared_u8(to + lane, *(const uint8_t *)from);
  }
}

__device__ __forceinline__ int size_of_scale(const GeneralArguments &p) {
  return p.scale_dtype == INT4MM_FLOAT32 ? 4 : 2;
}

/* Scales, zero points and factors of a k-block's segments: 128 bytes for the scales of each, then 32 for the others. */
__device__ __forceinline__ void copy_parameters(const GeneralArguments &p, uint32_t to, int k_block,
                                                int first_column) {
  int lane = threadIdx.x % 32, valid = p.N - first_column, size = size_of_scale(p);
  auto group_of = [&](int s) {
    int segment = min(k_block * p.segments + s, p.all_segments - 1);
    return p.group == 1 ? segment : segment / p.group;
  };
  if (p.vectors) { /* eight lanes a segment */
    int s = lane / 8, group;
    if (s >= p.segments) return;
    group = group_of(s);
    const char *scales = p.scales + group * p.scales_stride + first_column * size;
    const char *bytes = p.bytes + group * p.bytes_stride + first_column;
    if (p.scales) copy_columns(to + s * 128, scales, size, valid, lane % 8, true);
    if (p.bytes) copy_columns(to + p.segments * 128 + s * 32, bytes, 1, valid, lane % 8, true);
    return;
  }
  for (int s = 0; s < p.segments; s++) {
    int group = group_of(s);
    const char *scales = p.scales + group * p.scales_stride + first_column * size;
    const char *bytes = p.bytes + group * p.bytes_stride + first_column;
    if (p.scales) copy_columns(to + s * 128, scales, size, valid, lane, false);
    if (p.bytes) copy_columns(to + p.segments * 128 + s * 32, bytes, 1, valid, lane, false);
  }
}

/* B so that slice j is words 4j + t: by rows of B a chunk of lane (t, g) for each slice; with NK chunk j of column
 * 4g + i, where the lane-in-quad is j. */
template <int ROWS, class A, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, NK>::copy(const Arguments &p, uint32_t stage, int k_block,
                                                                int first_row, int first_column) {
  int lane = threadIdx.x % 32;
  if (NK) {
    int g = lane / 4, j = lane % 4, word = k_block * BLOCK_WORDS + 4 * j, column = first_column + 4 * g;
    const uint32_t *b = p.b + column * p.ldb + word;
    uint32_t chunk = stage + g * 64 + swizzled<1>(g, j) * 16;
#pragma unroll
    for (int i = 0; i < 4; i++, b += p.ldb)
      if (column + i < p.N) copy_words<true, false, true>(chunk + i * CHUNK_BYTES, b, p.words - word);
  } else {
    int t = lane / 8, g = lane % 8, word = k_block * BLOCK_WORDS + t, column = first_column + 4 * g;
    const uint32_t *b = p.b + word * p.ldb + column;
    uint32_t chunk = stage + chunk_offset(t, g);
#pragma unroll
    for (int j = 0; j < 4; j++, b += 4 * p.ldb)
      if (word + 4 * j < p.words) copy_words<true, false>(chunk + j * CHUNK_BYTES, b, p.N - column);
  }
  copy_rows<GeneralShape>(p, stage + B_BYTES, k_block, first_row);
  if (p.scales || p.bytes) copy_parameters(p, stage + PARAMETERS, k_block, first_column);
}

/* ---- products ---- */

/* The words of this lane in slice j of eight rows of A. */
template <int WORDS> __device__ __forceinline__ void load_slice(uint32_t (&x)[WORDS], uint32_t eight, int j) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  uint32_t row = eight + g * 64 * WORDS;
  if constexpr (WORDS == 1) {
    x[0] = ptx::ld_shared(row + swizzled<1>(g, j) * 16 + 4 * t);
  } else if constexpr (WORDS == 2) {
    uint2 v = ptx::ld_shared_v2(row + swizzled<2>(g, 2 * j + t / 2) * 16 + 8 * (t & 1));
    x[0] = v.x, x[1] = v.y;
  } else {
    uint4 v = ptx::ld_shared_v4(row + swizzled<4>(g, 4 * j + t) * 16);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  }
}

/* Word 4j + t of this lane's four columns. */
template <bool NK> __device__ __forceinline__ uint4 load_words(uint32_t stage, int j) {
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  if (!NK) return ptx::ld_shared_v4(stage + chunk_offset(t, g) + j * CHUNK_BYTES);
  uint32_t at = stage + g * 64 + swizzled<1>(g, j) * 16 + 4 * t;
  return make_uint4(ptx::ld_shared(at), ptx::ld_shared(at + CHUNK_BYTES), ptx::ld_shared(at + 2 * CHUNK_BYTES),
                    ptx::ld_shared(at + 3 * CHUNK_BYTES));
}

/* What a lane sums over a segment: the mmas, and A alone in every column of one more. */
template <class S> struct Segment {
  typename S::Sum acc[S::ROW_TILES][4][4];
  int32_t ones[S::FLOAT ? 1 : S::ROW_TILES][4];
};

template <class S>
__device__ __forceinline__ void multiply_slice(Segment<S> &sum, uint32_t stage, int j, const typename S::A &a,
                                               const typename S::A::B &b, bool with_ones) {
  typedef typename S::A A;
  uint32_t fragments[S::ROW_TILES][A::STEPS][4];
  uint4 words = load_words<S::NK>(stage, j);
#pragma unroll
  for (int m = 0; m < S::ROW_TILES; m++) {
    uint32_t x[A::WORDS], y[A::WORDS] = {};
    load_slice<A::WORDS>(x, stage + B_BYTES + 2 * m * S::EIGHT_BYTES, j);
    if (2 * m + 1 < S::EIGHTS) load_slice<A::WORDS>(y, stage + B_BYTES + (2 * m + 1) * S::EIGHT_BYTES, j);
    a.fragments(fragments[m], x, y);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    uint32_t unpacked[2 * A::STEPS];
    b(unpacked, element(words, i), i);
#pragma unroll
    for (int step = 0; step < A::STEPS; step++)
#pragma unroll
      for (int m = 0; m < S::ROW_TILES; m++)
        A::mma(sum.acc[m][i], fragments[m][step], unpacked[2 * step], unpacked[2 * step + 1]);
  }
  if constexpr (!S::FLOAT)
    if (with_ones)
#pragma unroll
      for (int m = 0; m < S::ROW_TILES; m++) A::mma(sum.ones[m], fragments[m][0], 0x01010101u, 0x01010101u);
}

/* The scale of lane l's column, or of eight columns from 8t on, of a stage's segment. */
__device__ __forceinline__ float load_scale(const GeneralArguments &p, uint32_t scales, int l) {
  if (p.scale_dtype == INT4MM_FLOAT32) return __uint_as_float(ptx::ld_shared(scales + 4 * l));
  uint32_t bits = ptx::ld_shared(scales + l / 2 * 4) >> l % 2 * 16;
  return p.scale_dtype == INT4MM_FLOAT16 ? int4mm_widen<INT4MM_FLOAT16>((uint16_t)bits)
                                         : int4mm_widen<INT4MM_BFLOAT16>((uint16_t)bits);
}
__device__ __forceinline__ void load_scales(float (&to)[8], const GeneralArguments &p, uint32_t scales) {
  int t = threadIdx.x % 4;
  if (p.scale_dtype == INT4MM_FLOAT32) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      uint4 v = ptx::ld_shared_v4(scales + 32 * t + 16 * h);
#pragma unroll
      for (int i = 0; i < 4; i++) to[4 * h + i] = __uint_as_float(element(v, i));
    }
    return;
  }
  uint4 v = ptx::ld_shared_v4(scales + 16 * t);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    uint16_t bits = (uint16_t)(element(v, i / 2) >> i % 2 * 16);
    to[i] = p.scale_dtype == INT4MM_FLOAT16 ? int4mm_widen<INT4MM_FLOAT16>(bits) : int4mm_widen<INT4MM_BFLOAT16>(bits);
  }
}

/* Byte c of eight, signed. */
__device__ __forceinline__ int signed_byte(const uint2 &v, int c) {
  return (int32_t)((c < 4 ? v.x : v.y) << (24 - c % 4 * 8)) >> 24;
}

/* A segment of floats: t = fma(sum, scale, t). */
template <class S>
__device__ __forceinline__ void add_floats(int32_t (&state)[S::ROWS], const GeneralArguments &p, const Segment<S> &sum,
                                           uint32_t scales) {
  float scale[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  if (p.scales) load_scales(scale, p, scales);
#pragma unroll
  for (int r = 0; r < S::EIGHTS; r++)
#pragma unroll
    for (int c = 0; c < 8; c++) {
      float x = sum.acc[r / 2][c % 4][r % 2 * 2 + c / 4];
      state[8 * r + c] = __float_as_int(__fmaf_rn(x, scale[c], __int_as_float(state[8 * r + c])));
    }
}

/* The integers of eight rows of a segment, their true values less the zero points. */
template <class S>
__device__ __forceinline__ void true_sums(int32_t (&x)[8], const Segment<S> &sum, int r, const uint2 &bytes,
                                          bool zeros) {
  int32_t ones = sum.ones[r / 2][r % 2 * 2] >> S::A::ONES_SHIFT;
#pragma unroll
  for (int c = 0; c < 8; c++) {
    x[c] = sum.acc[r / 2][c % 4][r % 2 * 2 + c / 4] >> S::A::SHIFT;
    if (zeros) x[c] -= signed_byte(bytes, c) * ones;
  }
}

/* A segment of integers without group scales. */
template <class S>
__device__ __forceinline__ void add_integers(int32_t (&state)[S::ROWS], const GeneralArguments &p,
                                             const Segment<S> &sum, const uint2 &bytes) {
#pragma unroll
  for (int r = 0; r < S::EIGHTS; r++) {
    int32_t x[8];
    true_sums<S>(x, sum, r, bytes, p.bytes && !p.factors);
#pragma unroll
    for (int c = 0; c < 8; c++) state[8 * r + c] += p.factors ? x[c] * signed_byte(bytes, c) : x[c];
  }
}

/* A segment with group scales to its slot: [slot_rows, 32] sums, chunk c of a row at c ^ (row & 1), then the scales. */
template <class S>
__device__ __forceinline__ void store_slot(uint32_t slot, const GeneralArguments &p, const Segment<S> &sum,
                                           const uint2 &bytes, uint32_t scales) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < S::EIGHTS; r++) {
    int row = g + 8 * r;
    int32_t x[8];
    true_sums<S>(x, sum, r, bytes, p.bytes != nullptr);
    if (row >= p.slot_rows) continue;
    uint32_t at = slot + row * COLUMNS * 4;
    ptx::st_shared_v4(at + ((2 * t) ^ (row & 1)) * 16, x[0], x[1], x[2], x[3]);
    ptx::st_shared_v4(at + ((2 * t + 1) ^ (row & 1)) * 16, x[4], x[5], x[6], x[7]);
  }
  ptx::st_shared(slot + p.slot_rows * COLUMNS * 4 + 4 * lane, __float_as_uint(load_scale(p, scales, lane)));
}

/* The slot of a k-block's first segment. */
template <class S>
__device__ __forceinline__ uint32_t slot_of(const typename S::Sums &sums, const GeneralArguments &p, uint32_t slots,
                                            int k_block, int round) {
  int warp = threadIdx.x / 32, stripe = warp % p.warps_n;
  int at = p.split == 1 ? k_block - sums.first * p.warps_k : round * p.warps_k + warp / p.warps_n;
  return slots + stripe * p.stripe_bytes + (sums.half * p.window * p.warps_k + at) * p.segments * p.slot_bytes;
}

template <int ROWS, class A, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, NK>::multiply(Sums &sums, const Arguments &p, uint32_t stage,
                                                                    uint32_t slots, int k_block, int round,
                                                                    int first_row) {
  if (k_block >= (p.words + BLOCK_WORDS - 1) / BLOCK_WORDS) return; /* a round that this warp has no part in */
  const A a(p.xor_a);
  typename A::B b(p.xor_b);
  const bool zeros = p.bytes && !p.factors;
  uint32_t slot = p.chain ? slot_of<GeneralShape>(sums, p, slots, k_block, round) : 0;
  uint32_t scales = stage + PARAMETERS, bytes = scales + p.segments * 128;
  int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int j = 0; j < 4; j += p.slices) {
    Segment<GeneralShape> sum = {};
    if (FLOAT && zeros) {
      uint2 of_columns = make_uint2(ptx::ld_shared(bytes + 4 * g), 0);
#pragma unroll
      for (int i = 0; i < 4; i++) b.set_zero(i, signed_byte(of_columns, i));
    }
    if (p.slices == 4) {
#pragma unroll
      for (int i = 0; i < 4; i++) multiply_slice<GeneralShape>(sum, stage, i, a, b, zeros);
    } else {
      for (int i = 0; i < p.slices; i++) multiply_slice<GeneralShape>(sum, stage, j + i, a, b, zeros);
    }
    if constexpr (FLOAT) {
      add_floats<GeneralShape>(sums.state, p, sum, scales);
    } else {
      uint2 of_lane = make_uint2(0, 0);
      if (p.bytes) of_lane = ptx::ld_shared_v2(bytes + 8 * t);
      if (p.chain)
        store_slot<GeneralShape>(slot, p, sum, of_lane, scales);
      else
        add_integers<GeneralShape>(sums.state, p, sum, of_lane);
    }
    scales += 128, bytes += 32, slot += p.slot_bytes;
  }
}

/* ---- the chain ---- */

/* A run of slots in order, from one with segment `segment` on: four columns of a row. GROUP_IS_SEGMENT: each is a group
 * of its own. The address of a chunk of sums and of scales in the first slot; remote: of another CTA of the cluster. */
template <bool GROUP_IS_SEGMENT>
__device__ __forceinline__ void chain_run(float (&t)[4], int32_t (&carry)[4], const GeneralArguments &p, uint32_t sums,
                                          uint32_t scales, int segment, int count) {
  auto load = [&](uint32_t address) {
    if (!GROUP_IS_SEGMENT && p.split > 1) return ptx::ld_shared_cluster_v4(address);
    uint4 v = ptx::ld_shared_v4(address);
    return make_int4((int)v.x, (int)v.y, (int)v.z, (int)v.w);
  };
  auto end_group = [&](const int4 &s) {
    t[0] = int4mm_next_group(t[0], carry[0], __int_as_float(s.x));
    t[1] = int4mm_next_group(t[1], carry[1], __int_as_float(s.y));
    t[2] = int4mm_next_group(t[2], carry[2], __int_as_float(s.z));
    t[3] = int4mm_next_group(t[3], carry[3], __int_as_float(s.w));
    carry[0] = carry[1] = carry[2] = carry[3] = 0;
  };
  int in_group = GROUP_IS_SEGMENT ? 0 : segment % p.group;
#pragma unroll 4
  for (int i = 0; i < count; i++, sums += p.slot_bytes, scales += p.slot_bytes) {
    int4 x = load(sums), s = load(scales);
    carry[0] += x.x, carry[1] += x.y, carry[2] += x.z, carry[3] += x.w;
    if (GROUP_IS_SEGMENT || ++in_group == p.group || segment + i + 1 == p.all_segments) end_group(s), in_group = 0;
  }
}

/* The chains of this thread's outputs over a window's slots. Its rows follow reduce(): whole rows of the CTA's columns,
 * over the CTAs of a cluster first. */
template <class S>
__device__ __forceinline__ void chain_window(typename S::Sums &sums, const GeneralArguments &p, uint32_t slots,
                                             int first_row, int end) {
  int lanes = p.warps_n * COLUMNS / CHUNK_WORDS, chunk = threadIdx.x % (COLUMNS / CHUNK_WORDS);
  int rows = min(S::ROWS, p.M - first_row), step = blockDim.x / lanes * p.split;
  int slots_of_round = p.warps_k * p.segments, runs = p.split == 1 ? 1 : (end - sums.first) * p.split;
  uint32_t stripe = slots + threadIdx.x % lanes / (COLUMNS / CHUNK_WORDS) * p.stripe_bytes +
                    sums.half * p.window * slots_of_round * p.slot_bytes;
#pragma unroll
  for (int item = 0; item < S::ITEMS; item++) {
    int row = threadIdx.x / lanes * p.split + blockIdx.y + item * step;
    if (row >= rows) continue;
    float t[4];
    int32_t carry[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
      t[i] = __int_as_float(sums.state[4 * item + i]), carry[i] = sums.state[S::ROWS / 2 + 4 * item + i];
    uint32_t at = stripe + row * COLUMNS * 4 + (chunk ^ (row & 1)) * 16;
    uint32_t scales = stripe + p.slot_rows * COLUMNS * 4 + chunk * 16;
    int length = p.split == 1 ? (end - sums.first) * slots_of_round : slots_of_round;
    for (int run = 0; run < runs; run++) {
      int segment = sums.first * slots_of_round * p.split + run * length;
      int count = min(length, p.all_segments - segment), skip = run / p.split * slots_of_round * p.slot_bytes;
      if (p.split > 1)
        chain_run<false>(t, carry, p, ptx::mapa(at + skip, run % p.split), ptx::mapa(scales + skip, run % p.split),
                         segment, count);
      else if (p.group == 1)
        chain_run<true>(t, carry, p, at, scales, segment, count);
      else
        chain_run<false>(t, carry, p, at, scales, segment, count);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
      sums.state[4 * item + i] = __float_as_int(t[i]), sums.state[S::ROWS / 2 + 4 * item + i] = carry[i];
  }
}

/* After a round: a window that is full, but the last, which is left to finish(). */
template <int ROWS, class A, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, NK>::end_round(Sums &sums, const Arguments &p, uint32_t slots,
                                                                     int round, int first_row) {
  if constexpr (!FLOAT)
    if (p.chain && round + 1 == sums.first + p.window && round + 1 < p.rounds) {
      __syncthreads(); /* all of it is stored, and all of the window before it has been read */
      chain_window<GeneralShape>(sums, p, slots, first_row, round + 1);
      sums.first = round + 1, sums.half ^= 1;
    }
}

/* The last window and the outputs; false, and nothing done, without a chain. */
template <int ROWS, class A, bool NK>
__device__ __forceinline__ bool GeneralShape<ROWS, A, NK>::finish(Sums &sums, const Arguments &p, uint32_t slots,
                                                                  int first_row, int first_column,
                                                                  const float (&bias)[CHUNK_WORDS]) {
  if (FLOAT || !p.chain) return false;
  int lanes = p.warps_n * COLUMNS / CHUNK_WORDS, column = first_column + threadIdx.x % lanes * CHUNK_WORDS;
  int rows = min(ROWS, p.M - first_row), step = blockDim.x / lanes * p.split;
  if (p.split > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
  chain_window<GeneralShape>(sums, p, slots, first_row, p.rounds);
  if (p.split > 1) { /* no CTA exits while its shared memory is being read */
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  if (column >= p.N) return true;
#pragma unroll
  for (int item = 0; item < ITEMS; item++) {
    int row = threadIdx.x / lanes * p.split + blockIdx.y + item * step;
    if (row >= rows) continue;
    float t[CHUNK_WORDS];
#pragma unroll
    for (int i = 0; i < CHUNK_WORDS; i++) t[i] = __int_as_float(sums.state[4 * item + i]);
    int4mm_finish_sums<LAYER>(p.epilogue, first_row + row, column, p.N, bias, t);
  }
  return true;
}

/* Without a chain: this lane's sums as store_partial of skinny.cuh has them. */
template <int ROWS, class A, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, NK>::store_partial(uint32_t matrix, const Sums &sums) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < EIGHTS; r++) {
    uint32_t row = matrix + ((g + 8 * r) * COLUMNS + 8 * t) * 4;
    const int32_t *x = sums.state + 8 * r;
    ptx::st_shared_v4(row, x[0], x[1], x[2], x[3]);
    ptx::st_shared_v4(row + 16, x[4], x[5], x[6], x[7]);
  }
}

} // namespace
#endif
