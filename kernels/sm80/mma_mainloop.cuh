/*
 * mma: large M on every GPU from sm_80 on that has no kernel of its own, by cp.async, ldmatrix and mma.sync alone.
 *
 *   A  [M, K/8] or [M, K]     --cp.async--> stages --ldmatrix------> words --policy--> mma
 *   B  [K/8, N] or [N, K/8]   --cp.async--> stages --128-bit loads-> words --policy--> mma
 *
 * A CTA makes a tile. Stages go around a ring in shared memory; what is copied in a stage's turn goes to the slot that
 * was read in the turn before. Where tiles are few, the warps of a CTA share K and add their sums in shared memory.
 * CTAs share the K of tiles that do not fill the GPU, all of them or those that whole waves leave over, and put the
 * sums of their parts into memory, which a second kernel adds (sm75/add_sums.cu): int32, exact in any order.
 *
 * There is no branch in a stage's body but for groups: copies are predicated and stand between the mma. Fragments are
 * loaded one unit ahead.
 *
 * Columns: of a 16-byte load of B along N, columns 4c .. 4c+3 of a word row, word i goes to n tile i, whose column c is
 * then column 4c + i of the warp's group of 32. Of a row of sums a lane so has 8 neighbouring columns, 8t .. 8t+7. With
 * B along k the columns are put into shared memory in that order.
 *
 * Groups: k is cut into segments that no group's border divides. After a group's last segment a warp adds its sums to
 * totals in float32, t = fma(sum, scale, t), in the order of k (CHAIN).
 */
#ifndef INT4MM_MMA_MAINLOOP_CUH
#define INT4MM_MMA_MAINLOOP_CUH

#include "common/bands.cuh"
#include "common/epilogue.cuh"
#include "common/experts.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "common/shapes.h"
#include "sm80/mma.cuh"
#include "sm80/mma_groups.cuh"

namespace {

constexpr int COLUMNS = 8; /* neighbours that a lane finishes together */

struct Arguments {
  const uint32_t *a, *b;
  int64_t lda, ldb; /* words of 32 bits, of A too */
  int M, N;
  int a_bytes, b_bytes; /* of k: of a row of A, of a column of B */
  int stages;           /* of K */
  int past;             /* packed A: values of k past K in the last stage */
  int tiles_m, tiles_n;
  Encodings encodings;
  EpilogueArguments epilogue;
  GroupArguments groups;
  int4mm_experts experts;
  int whole_tiles, shared_tiles; /* of whose K a CTA has all; of whose K it has `part` stages or, at the end, fewer */
  int part;
  int32_t *sums; /* of each part: int4mm_sums_stride */
  int64_t ld_sums, sums_area;
};

/* What a CTA multiplies: of a tile `stages` of K from `first` on. The sums go to `slot` of p.sums; where that is < 0,
 * they are finished. */
struct Work {
  TileCoord at;
  int slot, first, stages;
  bool last; /* of K */
};
template <class T> __device__ __forceinline__ TileCoord tile_coord(const Arguments &p, int tile) {
  return tile_coord(tile, p.tiles_m, p.tiles_n, T::BM, T::BN);
}
template <class T> __device__ __forceinline__ Work work_of_cta(const Arguments &p, int cta) {
  const int slot = cta - p.whole_tiles;
  if (!T::SPLITS || slot < 0) return {tile_coord<T>(p, cta), -1, 0, p.stages, true};
  const int first = slot / p.shared_tiles * p.part, left = p.stages - first;
  return {tile_coord<T>(p, p.whole_tiles + slot % p.shared_tiles), slot, first, min(p.part, left), left <= p.part};
}

/* The arguments of one expert's product, whose rows end at `end`. */
__device__ __forceinline__ Arguments arguments_of(const Arguments &p, int expert, int end) {
  Arguments own = p;
  own.M = end;
  own.b += expert * p.experts.b;
  own.groups.scales += expert * p.groups.scales_expert;
  if (p.groups.bytes) own.groups.bytes += expert * p.groups.bytes_expert;
  own.epilogue.scale_b += expert * p.experts.scales;
  if (p.epilogue.bias) own.epilogue.bias += expert * p.experts.bias;
  return own;
}

/* ---- copies ---- */

/* How a thread's 16-byte copies get to shared memory: copy() for each pass of a stage, then end_stage(); before a stage
 * is read, wait() until at most PENDING later ones are under way. */
template <class T> struct AsyncCopies {
  __device__ __forceinline__ void begin_stage() {}
  __device__ __forceinline__ void copy(int, bool valid, uint32_t to, const void *from) {
    ptx::cp_async16_if(valid, to, from);
  }
  __device__ __forceinline__ void copy_bytes(int, int bytes, uint32_t to, const void *from) {
    ptx::cp_async16_line(to, from, bytes);
  }
  __device__ __forceinline__ void end_stage() { ptx::cp_async_commit_group(); }
  template <int PENDING> __device__ __forceinline__ void wait() { ptx::cp_async_wait_group<PENDING>(); }
};

/* The same where there is no cp.async: registers hold a stage from copy() to the next begin_stage(), most of a turn. */
template <class T> struct StagedCopies {
  uint4 held[T::PASSES];
  uint32_t places[T::PASSES];
  __device__ __forceinline__ void begin_stage() {
#pragma unroll
    for (int i = 0; i < T::PASSES; i++) ptx::st_shared_v4(places[i], held[i].x, held[i].y, held[i].z, held[i].w);
  }
  __device__ __forceinline__ void copy(int pass, bool valid, uint32_t to, const void *from) {
    held[pass] = ptx::ld_global_v4_if(valid, from), places[pass] = to;
  }
  __device__ __forceinline__ void copy_bytes(int pass, int bytes, uint32_t to, const void *from) {
    copy(pass, bytes > 0, to, from); /* all 16: K is a multiple of them */
  }
  __device__ __forceinline__ void end_stage() {}
  template <int PENDING> __device__ __forceinline__ void wait() {}
};
template <class T> using Copies = typename std::conditional<T::STAGED, StagedCopies<T>, AsyncCopies<T>>::type;

/* A thread's part of the copies of an operand whose rows lie along k, A or with NK the columns of B: in pass i, 16
 * bytes of row + i * ROWS of the tile. PERMUTED: row 8i + c of each 32 in shared memory is 4c + i in memory. EXACT: a
 * row ends anywhere in 16 bytes, else between them, which spares six instructions a pass; but on sm_100 int8 with
 * groups spills. */
template <class T, int OFFSET, int PITCH, bool PERMUTED> struct CopyKMajor {
  static constexpr bool EXACT = T::POLICY::NEIGHBOURS && (PERMUTED || !T::POLICY::FLOAT);
  static constexpr int CHUNKS = PITCH / 16, ROWS = T::THREADS / CHUNKS, FIRST = OFFSET ? T::A_PASSES : 0;
  static_assert(ROWS == 8 || ROWS == 16 || ROWS % 32 == 0, "order and swizzle would change from pass to pass");
  const uint32_t *from;
  int64_t ld;
  int bytes_left, rows_left; /* from here on */
  uint32_t to;               /* in a slot */

  __device__ __forceinline__ CopyKMajor(const uint32_t *words, int64_t ld, int bytes, int rows, int first_row)
      : ld(ld) {
    int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
    to = OFFSET + row * PITCH + (chunk ^ swizzle<PITCH>(row)) * 16;
    if (PERMUTED) row = row / 32 * 32 + row % 8 * 4 + row / 8 % 4;
    from = words + (first_row + row) * ld + chunk * 4;
    bytes_left = bytes - chunk * 16, rows_left = rows - first_row - row;
  }
  __device__ __forceinline__ void copy(Copies<T> &copies, uint32_t slot, int pass) const {
    const int rows = PERMUTED ? pass * ROWS / 32 * 32 + pass * ROWS % 32 / 8 : pass * ROWS; /* in memory */
    int64_t step = ld;
    if (T::CHAIN) asm volatile("" : "+l"(step)); /* else the products are kept in registers, which are few */
    if constexpr (EXACT)
      copies.copy_bytes(FIRST + pass, rows < rows_left ? min(max(bytes_left, 0), 16) : 0,
                        slot + to + pass * ROWS * PITCH, from + rows * step);
    else
      copies.copy(FIRST + pass, bytes_left > 0 && rows < rows_left, slot + to + pass * ROWS * PITCH,
                  from + rows * step);
  }
  __device__ __forceinline__ void advance() { from += PITCH / 4, bytes_left -= PITCH; }
};

/* The same of B [K/8, N]. Chunk c of a word row lies at c ^ 2 (row % 4), since 8 lanes read 2 chunks of 4 word rows
 * together. */
template <class T> struct CopyNMajor {
  static constexpr int ROW_CHUNKS = T::BN / 4, ROWS = T::THREADS / ROW_CHUNKS;
  static_assert(ROWS % 4 == 0, "the swizzle would change from pass to pass");
  const uint32_t *from;
  int64_t ld;
  int words_left, columns_left;
  uint32_t to;

  __device__ __forceinline__ CopyNMajor(const uint32_t *words, int64_t ld, int bytes, int columns, int first_column)
      : ld(ld) {
    int chunk = threadIdx.x % ROW_CHUNKS, row = threadIdx.x / ROW_CHUNKS;
    to = T::A_BYTES + row * T::B_PITCH + (chunk ^ 2 * (row & 3)) * 16;
    from = words + row * ld + first_column + chunk * 4;
    words_left = bytes / 4 - row, columns_left = columns - first_column - chunk * 4;
  }
  __device__ __forceinline__ void copy(Copies<T> &copies, uint32_t slot, int pass) const {
    int64_t step = ld;
    if (T::CHAIN) asm volatile("" : "+l"(step));
    copies.copy(T::A_PASSES + pass, pass * ROWS < words_left && columns_left > 0, slot + to + pass * ROWS * T::B_PITCH,
                from + pass * ROWS * step);
  }
  __device__ __forceinline__ void advance() { from += T::BK / 8 * ld, words_left -= T::BK / 8; }
};

template <class T> using CopyA = CopyKMajor<T, 0, T::A_PITCH, false>;
template <class T>
using CopyB = typename std::conditional<T::NK, CopyKMajor<T, T::A_BYTES, T::NK_PITCH, true>, CopyNMajor<T>>::type;

/* Both for a CTA's part of K. */
template <class T> __device__ __forceinline__ CopyA<T> copies_of_a(const Arguments &p, const Work &work) {
  const int before = work.first * T::A_PITCH;
  const int bytes = T::SPLITS ? min(p.a_bytes - before, work.stages * T::A_PITCH) : p.a_bytes;
  return CopyA<T>(p.a + before / 4, p.lda, bytes, p.M, work.at.row);
}
template <class T> __device__ __forceinline__ CopyB<T> copies_of_b(const Arguments &p, const Work &work) {
  const int before = work.first * T::NK_PITCH;
  const int bytes = T::SPLITS ? min(p.b_bytes - before, work.stages * T::NK_PITCH) : p.b_bytes;
  return CopyB<T>(p.b + before / 4 * (T::NK ? 1 : p.ldb), p.ldb, bytes, p.N, work.at.column);
}

/* One pass of a stage's copies. */
template <class T>
__device__ __forceinline__ void copy_pass(Copies<T> &copies, const CopyA<T> &copy_a, const CopyB<T> &copy_b,
                                          uint32_t slot, int pass) {
  if (pass < T::A_PASSES)
    copy_a.copy(copies, slot, pass);
  else
    copy_b.copy(copies, slot, pass - T::A_PASSES);
}

/* ---- fragments ---- */

/* Where this lane's words of a unit of A lie in a slot. ldmatrix has four times 8 rows of 16 bytes: 32 rows, or 16 and
 * two chunks. */
template <class T> struct WordsOfA {
  typedef typename T::POLICY POLICY;
  static constexpr int CHUNKS = POLICY::UNIT * POLICY::A_BITS / 128; /* of a row in a unit */
  uint32_t at, swizzled;

  __device__ __forceinline__ WordsOfA(int warp_m, int warp_k) {
    int lane = threadIdx.x % 32, row = warp_m * T::WM + (CHUNKS == 1 ? lane : lane % 16);
    at = row * T::A_PITCH;
    swizzled = ((CHUNKS == 1 ? 0 : lane / 16) ^ swizzle<T::A_PITCH>(row) ^ CHUNKS * warp_k) * 16;
  }
  /* Of this warp's unit i of the slot. */
  __device__ __forceinline__ void load(uint32_t (&w)[T::MT][POLICY::A_WORDS], uint32_t slot, int i) const {
    uint32_t from = slot + at + (swizzled ^ i * T::WARPS_K * CHUNKS * 16);
#pragma unroll
    for (int m = 0; m < T::MT; m += 4 / POLICY::A_WORDS) {
      uint32_t r[4];
      ptx::ldmatrix_x4(r, from + m * 16 * T::A_PITCH);
#pragma unroll
      for (int j = 0; j < 4; j++) w[m + j / POLICY::A_WORDS][j % POLICY::A_WORDS] = r[j];
    }
  }
};

/* The same of B for lanes that take word t of each 32 values. */
template <class T> struct WordsOfB {
  typedef typename T::POLICY POLICY;
  static constexpr int CHUNKS = POLICY::UNIT / 32;
  uint32_t at, swizzled;

  __device__ __forceinline__ WordsOfB(int warp_n, int warp_k) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = warp_n * T::WN + lane;
    at = T::A_BYTES + (T::NK ? row * T::B_PITCH
                             : (t + warp_k * (POLICY::UNIT / 8)) * T::B_PITCH + warp_n * T::WN * 4 + (g ^ 2 * t) * 16);
    swizzled = (swizzle<T::B_PITCH>(row) ^ CHUNKS * warp_k) * 16;
  }
  __device__ __forceinline__ void load(uint32_t (&w)[POLICY::B_WORDS][T::NT], uint32_t slot, int i) const {
#pragma unroll
    for (int h = 0; h < POLICY::B_WORDS; h++)
#pragma unroll
      for (int n = 0; n < T::NT; n += 4) {
        uint32_t r[4];
        if (T::NK) {
          uint32_t chunk = swizzled ^ (i * T::WARPS_K * CHUNKS + h) * 16;
          ptx::ldmatrix_x4(r, slot + at + n * 8 * T::B_PITCH + chunk);
        } else {
          int word = i * T::WARPS_K * (POLICY::UNIT / 8) + h * 4;
          uint4 v = ptx::ld_shared_v4(slot + at + word * T::B_PITCH + n * 32);
          r[0] = v.x, r[1] = v.y, r[2] = v.z, r[3] = v.w;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) w[h][n + j] = r[j];
      }
  }
};

/* The same for Bytes and Floats: two words of a unit for each column. */
template <class T> struct NeighboursOfB {
  typedef typename T::POLICY POLICY;
  static constexpr bool FLOATS = POLICY::UNIT == 16; /* words 0 and 1 of two, else t / 2 and t / 2 + 2 of four */
  static constexpr int WORDS = POLICY::UNIT / 8, STEP = FLOATS ? 1 : 2;
  uint32_t at, swizzled;

  __device__ __forceinline__ NeighboursOfB(int warp_n, int) {
    int lane = threadIdx.x % 32, g = lane / 4, first = FLOATS ? 0 : lane % 4 / 2;
    if (T::NK) {
      at = T::A_BYTES + (warp_n * T::WN + g) * T::B_PITCH + first * 4;
      swizzled = swizzle<T::B_PITCH>(g) * 16;
    } else {
      at = T::A_BYTES + first * T::B_PITCH + warp_n * T::WN * 4 + (g ^ 2 * first) * 16;
    }
  }
  __device__ __forceinline__ void load(uint32_t (&w)[2][T::NT], uint32_t slot, int i) const {
    if constexpr (T::NK) {
      uint32_t from = slot + at + (swizzled ^ i * WORDS / 4 * 16) + i * WORDS % 4 * 4;
#pragma unroll
      for (int n = 0; n < T::NT; n++) {
        uint32_t column = from + n * 8 * T::B_PITCH;
        if (FLOATS) {
          uint2 v = ptx::ld_shared_v2(column);
          w[0][n] = v.x, w[1][n] = v.y;
        } else {
          w[0][n] = ptx::ld_shared(column), w[1][n] = ptx::ld_shared(column + 8);
        }
      }
    } else {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row =
            i * WORDS + h * STEP; /* its chunks lie at an exclusive or with 2 (row % 4), slots at 128 bytes */
        uint32_t from = ((slot + at) ^ (row & 3) * 32) + row * T::B_PITCH;
#pragma unroll
        for (int n = 0; n < T::NT; n += 4) {
          uint4 v = ptx::ld_shared_v4(from + n * 32);
          w[h][n] = v.x, w[h][n + 1] = v.y, w[h][n + 2] = v.z, w[h][n + 3] = v.w;
        }
      }
    }
  }
};

template <class T> using LoadB = typename std::conditional<T::POLICY::NEIGHBOURS, NeighboursOfB<T>, WordsOfB<T>>::type;

/* ---- mainloop ---- */

/* Fills the ring but for its last slot, STAGED also the registers, and waits for the first stage. */
template <class T>
__device__ __forceinline__ void copy_first_stages(Copies<T> &copies, CopyA<T> &copy_a, CopyB<T> &copy_b,
                                                  CopyGroups<T> &groups, uint32_t ring) {
#pragma unroll
  for (int i = 0; i < T::AHEAD; i++) {
    if (i > 0) copies.begin_stage();
#pragma unroll
    for (int j = 0; j < T::PASSES; j++) copy_pass<T>(copies, copy_a, copy_b, ring + i * T::STAGE_BYTES, j);
    if constexpr (T::GROUPS)
      if (i < T::STAGES - 1) groups.copy(ring + T::RING_BYTES + i * T::GROUP_BYTES);
    copy_a.advance(), copy_b.advance();
    copies.end_stage();
  }
  copies.template wait<T::STAGES - 2>();
  __syncthreads();
}

/* Where sums begin. What is copied past K is 0, or in the offset encoding -8: where both operands have that, the sums
 * that are `last` begin at what takes these products away. */
template <class T>
__device__ __forceinline__ void begin_sums(typename T::POLICY::Sum (&acc)[T::MT][T::NT][4], const Arguments &p,
                                           bool last) {
  const int past = last && p.encodings.a && p.encodings.b ? p.past : 0;
#pragma unroll
  for (int m = 0; m < T::MT; m++)
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if constexpr (T::CHAIN)
          acc[m][n][i] = Accumulator<typename T::POLICY::Sum, T::POLICY::SCALE>::ZERO;
        else if constexpr (T::POLICY::NEIGHBOURS)
          acc[m][n][i] = 0;
        else
          acc[m][n][i] = -64 * T::POLICY::SCALE * past;
      }
}

/* A unit's products for policies that do not unpack A; `first` of a stage. */
template <class T, class Sum, int WORDS>
__device__ __forceinline__ void multiply_unit(const typename T::POLICY &policy, Sum (&acc)[T::MT][T::NT][4],
                                              const uint32_t (&f)[T::MT][T::POLICY::F_WORDS],
                                              const uint32_t (&b)[WORDS][T::NT], const Column (&columns)[T::NT],
                                              bool first) {
  if constexpr (T::STAGE_IS_GROUP)
    if (first) return policy.multiply_first(acc, f, b, columns, Accumulator<Sum, T::POLICY::SCALE>::ZERO);
  if constexpr (T::POLICY::NEIGHBOURS)
    policy.multiply(acc, f, b, columns);
  else
    policy.multiply(acc, f, b);
}

/* A ring's slots that are read and written. */
template <int BYTES, int SLOTS> struct Ring {
  uint32_t read, write, first;
  __device__ __forceinline__ Ring(uint32_t first, int ahead)
      : read(first), write(first + ahead * BYTES), first(first) {}
  __device__ __forceinline__ void advance() {
    write = write + BYTES == first + SLOTS * BYTES ? first : write + BYTES;
    read = read + BYTES == first + SLOTS * BYTES ? first : read + BYTES;
  }
};

/* The sums of this CTA's part of K. Words of A that are unpacked are loaded two units ahead and made fragments one
 * ahead. */
template <class T>
__device__ __forceinline__ void multiply_tile(typename T::POLICY::Sum (&acc)[T::MT][T::NT][4], TotalsOf<T> &totals,
                                              const Arguments &p, const Work &work, uint32_t memory, int warp_m,
                                              int warp_n, int warp_k) {
  typedef typename T::POLICY POLICY;
  constexpr int SEGMENT_UNITS = T::SEGMENT / POLICY::UNIT;
  const POLICY policy(p.encodings);
  const WordsOfA<T> words_a(warp_m, warp_k);
  const LoadB<T> words_b(warp_n, warp_k);
  CopyA<T> copy_a = copies_of_a<T>(p, work);
  CopyB<T> copy_b = copies_of_b<T>(p, work);
  CopyGroups<T> copy_groups(p.groups, work.first * T::SEGMENTS, work.at.column, p.N);
  Columns<T> columns(p.groups, work.at.column + warp_n * T::WN, p.N);
  begin_sums<T>(acc, p, work.last && warp_k == 0);
  Copies<T> copies;
  copy_first_stages<T>(copies, copy_a, copy_b, copy_groups, memory);

  Ring<T::STAGE_BYTES, T::STAGES> ring(memory, T::STAGES - 1);
  Ring<T::GROUP_BYTES, T::SLOTS> groups(memory + T::RING_BYTES, T::STAGES - 1);
  const int scales_at = warp_n * T::WN * p.groups.scale_size;
  uint32_t a[2][T::MT][POLICY::A_WORDS], b[2][POLICY::B_WORDS][T::NT], f[2][T::MT][POLICY::F_WORDS];
  words_b.load(b[0], ring.read, 0);
  if (columns.ALTERNATE) columns.load(p.groups, groups.read, 0, warp_n);
  if constexpr (POLICY::UNPACKS) {
    words_a.load(a[0], ring.read, 0), words_a.load(a[1], ring.read, 1);
#pragma unroll
    for (int i = 0; i < T::MT * POLICY::A_WORDS; i++) policy.fragment(f[0], a[0], i);
  } else {
    words_a.load(f[0], ring.read, 0);
  }
#pragma unroll 1
  for (int stage = 0; stage < work.stages; stage++) {
    const uint32_t scales = groups.read + scales_at;
    if constexpr (T::GROUPS) copy_groups.copy(groups.write);
#pragma unroll
    for (int i = 0; i < T::UNITS; i++) {
      if (i == 0) copies.begin_stage();
      if (i < T::COPY_UNITS) {
#pragma unroll
        for (int j = i * T::PASSES / T::COPY_UNITS; j < (i + 1) * T::PASSES / T::COPY_UNITS; j++)
          copy_pass<T>(copies, copy_a, copy_b, T::STAGED ? ring.read : ring.write, j);
      }
      if (i < T::UNITS - 1) words_b.load(b[(i + 1) % 2], ring.read, i + 1);
      if (columns.ALTERNATE && i < T::UNITS - 1 && (i + 1) % SEGMENT_UNITS == 0)
        columns.load(p.groups, groups.read, (i + 1) / SEGMENT_UNITS, warp_n);
      if (!columns.ALTERNATE && i == 0) columns.load(p.groups, groups.read, 0, warp_n);
      if constexpr (!POLICY::UNPACKS)
        if (i < T::UNITS - 1) words_a.load(f[(i + 1) % 2], ring.read, i + 1);
      if (i == T::UNITS - 2) { /* the next stage has landed, and all have loaded all of this one */
        copies.end_stage();
        copies.template wait<T::STAGES - 2>();
        __syncthreads();
        ring.advance();
        if constexpr (T::GROUPS) groups.advance();
      }
      if (i == T::UNITS - 1) words_b.load(b[0], ring.read, 0);
      if (columns.ALTERNATE && i == T::UNITS - 1) columns.load(p.groups, groups.read, 0, warp_n);
      if constexpr (POLICY::UNPACKS) {
        words_a.load(a[i % 2], ring.read, (i + 2) % T::UNITS);
        policy.multiply(acc, f[i % 2], b[i % 2], f[(i + 1) % 2], a[(i + 1) % 2]);
      } else {
        if (i == T::UNITS - 1) words_a.load(f[0], ring.read, 0);
        multiply_unit<T>(policy, acc, f[i % 2], b[i % 2], columns.segment(i / SEGMENT_UNITS), i == 0);
      }
      if constexpr (T::CHAIN)
        if ((i + 1) % SEGMENT_UNITS == 0) totals.end_segment(acc, p.groups, scales + i / SEGMENT_UNITS * T::BN * 4);
    }
    copy_a.advance(), copy_b.advance();
  }
}

/* Adds the sums of the warps that share a tile, over the ring: warp_k keeps m tiles from warp_k * KEEP on and gives the
 * others away. */
template <class T> __device__ __forceinline__ void reduce(int32_t (&acc)[T::MT][T::NT][4], uint32_t ring, int warp_k) {
  constexpr int KEEP = T::MT / T::WARPS_K, M_BYTES = T::NT * 512, PIECE = KEEP * M_BYTES; /* of one warp for another */
  Copies<T>().template wait<0>();
  __syncthreads();
  uint32_t mine = ring + threadIdx.x / 32 % (T::WARPS_M * T::WARPS_N) * (T::WARPS_K * (T::WARPS_K - 1) * PIECE) +
                  threadIdx.x % 32 * 16;
#pragma unroll
  for (int m = 0; m < T::MT; m++) {
    int to = m / KEEP;
    if (to == warp_k) continue;
    uint32_t at = mine + (to * (T::WARPS_K - 1) + (warp_k < to ? warp_k : warp_k - 1)) * PIECE + m % KEEP * M_BYTES;
#pragma unroll
    for (int n = 0; n < T::NT; n++)
      ptx::st_shared_v4(at + n * 512, acc[m][n][0], acc[m][n][1], acc[m][n][2], acc[m][n][3]);
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < T::MT; m++) {
    if (m / KEEP != warp_k) continue;
#pragma unroll
    for (int from = 0; from < T::WARPS_K - 1; from++)
#pragma unroll
      for (int n = 0; n < T::NT; n++) {
        uint4 v = ptx::ld_shared_v4(mine + (warp_k * (T::WARPS_K - 1) + from) * PIECE + m % KEEP * M_BYTES + n * 512);
        acc[m][n][0] += v.x, acc[m][n][1] += v.y, acc[m][n][2] += v.z, acc[m][n][3] += v.w;
      }
  }
}

/* ---- epilogue ---- */

/* COLUMNS neighbours of one row, as bits. */
struct Octet {
  int32_t sums[COLUMNS];
};

/* Scales COUNT of them. scale_b is not looked at with totals, nor scale_a with floats. */
template <int KIND, int COUNT>
__device__ __forceinline__ void scale_sums(float (&x)[COUNT], const int32_t (&sums)[COUNT], float unscale,
                                           bool scaled_a, float scale_a, const float (&scale_b)[COUNT]) {
  if constexpr (KIND == INTEGERS) {
    int4mm_scale_sums(x, sums, unscale, scale_a, scale_b);
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      float sum = __int_as_float(sums[i]);
      x[i] = KIND == FLOATS ? __fmul_rn(__fmul_rn(sum, unscale), scale_b[i])
                            : __fmul_rn(sum, scaled_a ? scale_a : unscale);
    }
  }
}

/* Finishes them wherever they lie, with whatever follows. A call, and half of them at a time, since a thread has many
 * of them and a library many instances: all the activations for eight columns would be half of it. */
template <int KIND>
__device__ __noinline__ void finish_any(const Arguments &p, int row, int column, float unscale, Octet octet) {
  constexpr int HALF = COLUMNS / 2;
  const float scale_a = p.epilogue.scale_a ? __ldg(p.epilogue.scale_a + row) : 1;
#pragma unroll 1
  for (int half = 0; half < 2 && column < p.N; half++, column += HALF) {
    int32_t sums[HALF];
    float scale_b[HALF], bias[HALF], x[HALF];
#pragma unroll
    for (int i = 0; i < HALF; i++) {
      sums[i] = half ? octet.sums[HALF + i] : octet.sums[i];
      scale_b[i] = KIND != TOTALS && column + i < p.N ? __ldg(p.epilogue.scale_b + column + i) : 0;
    }
    int4mm_load_bias(bias, p.epilogue, column, p.N);
    scale_sums<KIND>(x, sums, unscale, p.epilogue.scale_a, scale_a, scale_b);
    int4mm_finish_scaled<true>(p.epilogue, row, column, p.N, bias, x);
  }
}

__device__ __forceinline__ int32_t bits_of(int32_t x) {
  return x;
}
__device__ __forceinline__ int32_t bits_of(float x) {
  return __float_as_int(x);
}

template <class T, class Sum>
__device__ __forceinline__ void gather(int32_t (&sums)[COLUMNS], const Sum (&acc)[T::MT][T::NT][4], int m, int lower,
                                       int n) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) sums[i] = bits_of(acc[m][n + i % 4][2 * lower + i / 4]);
}

/* Calls begin(column) and then f(m, lower, n, row, column) for this lane's octets with these columns, and so on: those
 * of the m tiles that its warp has after reduce. */
template <class T, class Begin, class F>
__device__ __forceinline__ void for_octets(const TileCoord &at, int warp_m, int warp_n, int warp_k, Begin begin, F f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < T::NT; n += 4) {
    const int column = at.column + warp_n * T::WN + n * 8 + lane % 4 * COLUMNS;
    begin(column);
#pragma unroll
    for (int m = 0; m < T::MT; m++) {
      if (T::WARPS_K > 1 && m / (T::MT / T::WARPS_K) != warp_k) continue;
#pragma unroll
      for (int lower = 0; lower < 2; lower++)
        f(m, lower, n, at.row + warp_m * T::WM + m * 16 + lower * 8 + lane / 4, column);
    }
  }
}

/* The octets of a tile inside the output, of 16 bits and with nothing but a bias. */
template <class T, class Sum>
__device__ __forceinline__ void finish_inside(const Arguments &p, const TileCoord &at, int warp_m, int warp_n,
                                              int warp_k, const Sum (&acc)[T::MT][T::NT][4]) {
  constexpr int KIND = T::SUM_KIND;
  const bool half = p.epilogue.out_dtype == INT4MM_FLOAT16, scaled_a = KIND == INTEGERS || p.epilogue.scale_a;
  float scale_b[COLUMNS], bias[COLUMNS];
  auto begin = [&](int column) {
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) scale_b[i] = KIND == TOTALS ? 0 : __ldg(p.epilogue.scale_b + column + i);
    int4mm_load_bias(bias, p.epilogue, column, p.N);
  };
  for_octets<T>(at, warp_m, warp_n, warp_k, begin, [&](int m, int lower, int n, int row, int column) {
    int32_t sums[COLUMNS];
    float x[COLUMNS];
    uint32_t w[COLUMNS / 2];
    gather<T>(sums, acc, m, lower, n);
    scale_sums<KIND>(x, sums, T::UNSCALE, scaled_a, scaled_a ? __ldg(p.epilogue.scale_a + row) : 1, scale_b);
    int4mm_add_bias(x, p.epilogue, bias);
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++)
      w[i] = half ? int4mm_round2<INT4MM_FLOAT16>(x[2 * i], x[2 * i + 1])
                  : int4mm_round2<INT4MM_BFLOAT16>(x[2 * i], x[2 * i + 1]);
    int4mm_store_v4((uint16_t *)p.epilogue.out + row * p.epilogue.ldo + column, w[0], w[1], w[2], w[3]);
  });
}

/* The sums of a part of K, to their place in memory. */
template <class T>
__device__ __forceinline__ void store_part(const Arguments &p, const Work &work, int warp_m, int warp_n, int warp_k,
                                           const int32_t (&acc)[T::MT][T::NT][4]) {
  const bool tiles = p.whole_tiles > 0;
  int32_t *to = p.sums + (tiles ? work.slot : work.slot / p.shared_tiles) * p.sums_area;
  if (tiles) to -= work.at.row * p.ld_sums + work.at.column;
  for_octets<T>(
      work.at, warp_m, warp_n, warp_k, [](int) {},
      [&](int m, int lower, int n, int row, int column) {
        Octet o;
        gather<T>(o.sums, acc, m, lower, n);
        if (row >= p.M || column >= p.N) return;
#pragma unroll
        for (int i = 0; i < COLUMNS; i += 4)
          int4mm_store_v4(to + row * p.ld_sums + column + i, o.sums[i], o.sums[i + 1], o.sums[i + 2], o.sums[i + 3]);
      });
}

template <class T, class Sum>
__device__ __forceinline__ void epilogue(const Arguments &p, const TileCoord &at, int warp_m, int warp_n, int warp_k,
                                         const Sum (&acc)[T::MT][T::NT][4]) {
  const bool inside = at.row + T::BM <= p.M && at.column + T::BN <= p.N && p.epilogue.vector_store;
  if (inside && !p.epilogue.layer && p.epilogue.out_dtype != INT4MM_FLOAT32)
    return finish_inside<T>(p, at, warp_m, warp_n, warp_k, acc);
  for_octets<T>(
      at, warp_m, warp_n, warp_k, [](int) {},
      [&](int m, int lower, int n, int row, int column) {
        Octet octet;
        gather<T>(octet.sums, acc, m, lower, n);
        if (row < p.M && column < p.N) finish_any<T::SUM_KIND>(p, row, column, T::UNSCALE, octet);
      });
}

/* ---- the kernel ---- */

/* The scales that a warp will want: of A, and without groups of B. */
template <class T>
__device__ __forceinline__ void prefetch_scales(const Arguments &p, const TileCoord &at, int warp_m, int warp_n) {
  const int lane = threadIdx.x % 32, row = at.row + warp_m * T::WM + lane * 8;
  const int column = at.column + warp_n * T::WN + lane * 8;
  if (!T::POLICY::FLOAT && lane < T::WM / 8 && row < p.M) ptx::prefetch_l1(p.epilogue.scale_a + row);
  if (!T::CHAIN && lane < T::WN / 8 && column < p.N) ptx::prefetch_l1(p.epilogue.scale_b + column);
}

/* A CTA's work, in dynamic shared memory. */
template <class T> __device__ __forceinline__ void run(const Arguments &p, Work work) {
  extern __shared__ __align__(128) uint8_t memory[];
  const uint32_t ring = ptx::smem_address(memory);
  const int warp = threadIdx.x / 32;
  const int warp_m = warp % T::WARPS_M, warp_n = warp / T::WARPS_M % T::WARPS_N;
  const int warp_k = warp / (T::WARPS_M * T::WARPS_N);
  prefetch_scales<T>(p, work.at, warp_m, warp_n);
  typename T::POLICY::Sum acc[T::MT][T::NT][4];
  TotalsOf<T> totals(p.groups);
  multiply_tile<T>(acc, totals, p, work, ring, warp_m, warp_n, warp_k);
  ptx::griddepcontrol_launch_dependents();
  if constexpr (T::FINDS_WORK_AGAIN) work = work_of_cta<T>(p, ptx::ctaid_x());
  if constexpr (T::WARPS_K > 1) reduce<T>(acc, ring, warp_k);
  if constexpr (T::SPLITS)
    if (work.slot >= 0) return store_part<T>(p, work, warp_m, warp_n, warp_k, acc);
  if constexpr (T::CHAIN)
    epilogue<T>(p, work.at, warp_m, warp_n, warp_k, totals.t);
  else
    epilogue<T>(p, work.at, warp_m, warp_n, warp_k, acc);
}

/* SHARED, the dynamic shared memory, is a part of the name for examples/bench/kernel_table.lua. */
template <class T, int SHARED = T::SHARED_BYTES>
__global__ void __launch_bounds__(T::THREADS, T::CTAS) mma(const __grid_constant__ Arguments p) {
  if constexpr (T::POLICY::AVAILABLE) {
    const Work work = work_of_cta<T>(p, blockIdx.x);
    ptx::griddepcontrol_wait();
    run<T>(p, work);
  }
}

/* ---- grouped products ---- */

/* An expert's tile, whose arguments lie in shared memory. */
template <class T, int SHARED = T::SHARED_BYTES>
__global__ void __launch_bounds__(T::THREADS, T::CTAS) mma_experts(const __grid_constant__ Arguments p) {
  if constexpr (T::POLICY::AVAILABLE) {
    __shared__ Arguments own;
    const TileCoord at = tile_coord<T>(p, blockIdx.x);
    ptx::griddepcontrol_wait();
    const ExpertTile tile = find_expert_tile<T::BM>(p.experts, p.M, at.row / T::BM);
    if (tile.expert == -1) zero_tile(p.epilogue, tile.row, min(tile.end, tile.row + T::BM), at.column, T::BN, p.N);
    if (tile.expert < 0) return;
    if (threadIdx.x == 0) own = arguments_of(p, tile.expert, tile.end);
    __syncthreads();
    run<T>(own, {{tile.row, at.column}, -1, 0, p.stages, true});
  }
}

/* ---- host ---- */

template <class T> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  Arguments p = {};
  const int64_t element = T::POLICY::A_BITS == 4 ? 4 : T::POLICY::A_BITS / 8; /* of A's dtype, in bytes */
  p.a = problem->a.words, p.b = problem->b.words;
  p.lda = problem->a.stride * element / 4, p.ldb = problem->b.stride;
  p.M = (int)problem->M, p.N = (int)problem->N;
  p.a_bytes = (int)(problem->K * T::POLICY::A_BITS / 8), p.b_bytes = (int)(int4mm_words_of_k(problem) * 4);
  p.stages = (int)((problem->K + T::BK - 1) / T::BK), p.past = (int)(p.stages * T::BK - problem->K);
  p.experts = problem->experts;
  p.tiles_m = p.experts.count ? (int)int4mm_expert_tiles(p.M, p.experts.count, T::BM) : (p.M + T::BM - 1) / T::BM;
  p.tiles_n = (p.N + T::BN - 1) / T::BN;
  p.encodings = T::POLICY::encodings(problem->a.xor_mask, problem->b.xor_mask);
  p.epilogue = int4mm_epilogue_arguments(problem, COLUMNS);
  p.groups = group_arguments<T>(problem);
  const int tiles = p.tiles_m * p.tiles_n, split = T::SPLITS && problem->sums ? plan->split_k : 1;
  p.part = (p.stages + split - 1) / split;
  const int parts = (p.stages + p.part - 1) / p.part;
  p.whole_tiles = parts > 1 ? plan->whole_tiles : tiles, p.shared_tiles = tiles - p.whole_tiles;
  p.sums = problem->sums, p.ld_sums = int4mm_sums_stride(problem, plan);
  p.sums_area = int4mm_sum_rows(problem, plan) * p.ld_sums;
  const dim3 grid(p.whole_tiles + p.shared_tiles * parts);
  if (!p.experts.count) {
    /* one to an SM, also where two have room, as those of 64 x 64 words do */
    const int4mm_shared shared(T::SHARED_BYTES, T::CTAS == 1);
    cudaError_t error = int4mm_launch<mma<T>>(plan->device, grid, T::THREADS, shared, dim3(1), stream, p);
    return error == cudaSuccess && parts > 1 ? int4mm_launch_add_sums(problem, plan, parts, T::UNSCALE, stream) : error;
  }
  if constexpr (T::BM == T::BN && !T::STAGED) /* fewer instances for grouped products */
    return int4mm_launch<mma_experts<T>>(plan->device, grid, T::THREADS, T::SHARED_BYTES, dim3(1), stream, p);
  return cudaErrorNotSupported;
}

} // namespace
#endif
