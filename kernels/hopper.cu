/*
 * Large and middling M on Hopper (sm_90a): int8 wgmma fed by an unpack.
 *
 * Hopper has no int4 tensor instruction, so packed words are widened to int8 on chip. A CTA computes a BM x BN tile
 * with specialised warpgroups (the scheme of CUTLASS's warp-specialised persistent kernels):
 *
 *     producers   a thread each: bulk tensor copies of packed A [BM, 16 words] and packed B [16 words, BN] into rings
 *     unpackers   packed B -> int8, K-major in the 128-byte swizzle, for wgmma to read from shared memory
 *     consumers   packed A -> int8 fragments in registers, wgmma, epilogue straight from registers
 *
 *   global --copy--> packed A ring ---------------------(registers)--> wgmma --> epilogue --> global
 *   global --copy--> packed B ring --> unpackers --> int8 B ring ------> |
 *
 * One step is 128 values of k: 16 words. A wgmma takes 32 of them, a slice: slice j is the four words 4t + j, t = 0..3,
 * their even nibbles in bytes 0..15, their odd ones in bytes 16..31 (see unpack.cuh). Then one 128-bit shared load per
 * row gives a lane its A fragments of all four slices.
 *
 * The columns of a tile are permuted as well: an unpacking lane l reads the columns 4l .. 4l + 3 with one load and
 * writes them to the rows l, l + BN / 4, ... of the int8 tile. That gives a thread of the product accumulators of 8
 * neighbouring columns (gather), so the epilogue stores 16 bytes at a time.
 *
 * What bounds it is shared memory (128 bytes a clock): per step and 256 x 128 tile, 1024 clocks of wgmma, 64 KB are
 * read by wgmma, 32 KB are packed A in and out, 16 KB packed B in and out, 16 KB int8 B in. Narrow tiles pay more per
 * product and are for shapes that would leave SMs idle.
 *
 * With two consumers of two row blocks each, the second runs a few steps behind the first, so that the epilogue of one
 * overlaps the products of the other. Several teams unpack at a time, since the way of a step through shared memory and
 * the fence takes longer than its products.
 *
 * Where tiles are few, a cluster of CTAs shares a tile's K and adds its int32 partial sums through distributed shared
 * memory: exact, so the order does not matter, and with no workspace.
 */
#include "epilogue.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "ptx.cuh"
#include "unpack.cuh"

namespace {

constexpr int STEP_WORDS = 16; /* packed words of k in a step */
constexpr int STEP_K = 128;
constexpr int COLUMNS = 8;           /* of an output row that a thread holds side by side */
constexpr int SHARED_LIMIT = 232448; /* bytes a CTA may have on sm_90 */

/* CONSUMERS warpgroups of BLOCKS 64-row blocks each; UNPACKERS warpgroups; depths of the rings of packed A, packed B
 * and int8 B; WIDE as in unpack.cuh. */
template <int CONSUMERS_, int BLOCKS_, int BN_, int UNPACKERS_, int STAGES_A_, int STAGES_B_, int STAGES_8_, bool WIDE_>
struct Tile {
  static constexpr int CONSUMERS = CONSUMERS_, BLOCKS = BLOCKS_, BN = BN_, UNPACKERS = UNPACKERS_;
  static constexpr int STAGES_A = STAGES_A_, STAGES_B = STAGES_B_, STAGES_8 = STAGES_8_;
  static constexpr bool WIDE = WIDE_;
  static constexpr int BM = 64 * CONSUMERS * BLOCKS;
  static constexpr int THREADS = 128 * (1 + UNPACKERS + CONSUMERS);

  /* Lanes of a warp that unpack four columns each; spans of 32 columns, which a quad of lanes holds 8 by 8. */
  static constexpr int LANES = BN / 4, QUADS = BN / 32;
  static_assert(BN % 32 == 0 && LANES <= 32, "a tile is whole quads of 8 columns, and one warp spans it");

  /* A step is done in groups of wgmmas that are committed together: one per row block, or one per slice. */
  static constexpr int GROUPS = BLOCKS == 2 ? 2 : 4, SLICES = BLOCKS == 2 ? 4 : 1;

  /* Unpacking warps that share a step, and teams of them, each busy with a step of its own. */
  static constexpr int TEAM = 2, TEAMS = 4 * UNPACKERS / TEAM;
  /* A team frees its step's slot only once it has the words of its next one, so there must be more slots than teams.
   * And a team may wait for a slot's next round only if it has itself seen the one before, which may arrive later than
   * its neighbours: the parity of a barrier tells a round only from the next. */
  static_assert(STAGES_B > TEAMS && STAGES_B % TEAMS == 0, "teams must come back to the slots they know");

  static constexpr int A_BYTES = BM * STEP_WORDS * 4, B_BYTES = BN * STEP_WORDS * 4, B8_BYTES = BN * STEP_K;
  static constexpr int A_OFFSET = STAGES_8 * B8_BYTES, B_OFFSET = A_OFFSET + STAGES_A * A_BYTES,
                       BARRIER_OFFSET = B_OFFSET + STAGES_B * B_BYTES,
                       SHARED_BYTES = BARRIER_OFFSET + 16 * (STAGES_A + STAGES_B + STAGES_8);
  static_assert(SHARED_BYTES <= SHARED_LIMIT, "too much shared memory");
  static_assert(BM * BN * 4 <= BARRIER_OFFSET, "partial sums must fit where the rings were");

  /* Registers per thread: what the launch gives, shared out by setmaxnreg. */
  static constexpr int LAUNCH_REGISTERS = 65536 / THREADS / 8 * 8;
  static constexpr int PRODUCER_REGISTERS = 24, UNPACKER_REGISTERS = BLOCKS == 2 ? 56 : 72;
  static constexpr int LEFT = LAUNCH_REGISTERS * THREADS / 128 - PRODUCER_REGISTERS - UNPACKERS * UNPACKER_REGISTERS;
  static constexpr int CONSUMER_REGISTERS = LEFT / CONSUMERS / 8 * 8 < 240 ? LEFT / CONSUMERS / 8 * 8 : 240;

  /* Two consumers of two blocks run LAG steps apart. */
  static constexpr bool STAGGERED = CONSUMERS == 2 && BLOCKS == 2;
  static constexpr int LAG = 3;
  static_assert(!STAGGERED || (STAGES_A > LAG + 1 && STAGES_8 > LAG + 1), "the rings must hold the lag");
};

struct Arguments {
  int M, N, words; /* words of k: K / 8 */
  int tiles_m, tiles_n;
  int split; /* CTAs of a cluster that share a tile's K */
  uint32_t flip_a, flip_b;
  const float *scale_a, *scale_b, *bias;
  void *out;
  int64_t ldo;
  int32_t out_dtype;
  bool vector_store; /* a row of 8 columns may be stored 16 bytes at a time */
};

/* A slot of a ring of N and the parity of its current round. */
template <int N> struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++slot == N) slot = 0, parity ^= 1;
  }
};

template <class T> struct Shared {
  uint32_t base;
  __device__ __forceinline__ uint32_t b8(int slot) const { return base + slot * T::B8_BYTES; }
  __device__ __forceinline__ uint32_t a(int slot) const { return base + T::A_OFFSET + slot * T::A_BYTES; }
  __device__ __forceinline__ uint32_t b(int slot) const { return base + T::B_OFFSET + slot * T::B_BYTES; }
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + T::BARRIER_OFFSET + 8 * i; }
  __device__ __forceinline__ uint32_t full_a(int slot) const { return barrier(slot); }
  __device__ __forceinline__ uint32_t empty_a(int slot) const { return barrier(T::STAGES_A + slot); }
  __device__ __forceinline__ uint32_t full_b(int slot) const { return barrier(2 * T::STAGES_A + slot); }
  __device__ __forceinline__ uint32_t empty_b(int slot) const { return barrier(2 * T::STAGES_A + T::STAGES_B + slot); }
  __device__ __forceinline__ uint32_t full_b8(int slot) const {
    return barrier(2 * (T::STAGES_A + T::STAGES_B) + slot);
  }
  __device__ __forceinline__ uint32_t empty_b8(int slot) const {
    return barrier(2 * (T::STAGES_A + T::STAGES_B) + T::STAGES_8 + slot);
  }

  __device__ __forceinline__ void init_barriers() const {
    for (int i = 0; i < T::STAGES_A; i++) {
      ptx::barrier_init(full_a(i), 1);
      ptx::barrier_init(empty_a(i), 4 * T::CONSUMERS); /* a warp each */
    }
    for (int i = 0; i < T::STAGES_B; i++) {
      ptx::barrier_init(full_b(i), 1);
      ptx::barrier_init(empty_b(i), T::TEAM);
    }
    for (int i = 0; i < T::STAGES_8; i++) {
      ptx::barrier_init(full_b8(i), T::TEAM);
      ptx::barrier_init(empty_b8(i), 4 * T::CONSUMERS);
    }
    ptx::barrier_init_fence();
  }
};

/* The CTA's share of the work: tiles first, first + stride, ... and of each the steps begin .. end - 1. */
struct Work {
  int first, stride, tiles, begin, end;
  __device__ __forceinline__ explicit Work(const Arguments &p) {
    int rank = blockIdx.x % p.split, steps = (p.words + STEP_WORDS - 1) / STEP_WORDS;
    first = blockIdx.x / p.split, stride = gridDim.x / p.split, tiles = p.tiles_m * p.tiles_n;
    begin = (int)((int64_t)steps * rank / p.split), end = (int)((int64_t)steps * (rank + 1) / p.split);
  }
};

/* Tiles are walked in bands of 8 tile rows, down a band's columns, so that the CTAs of a wave share operands in L2. */
struct Position {
  int m, n;
  __device__ __forceinline__ Position(int tile, const Arguments &p) {
    constexpr int BAND = 8;
    int band = tile / (BAND * p.tiles_n), rows = min(p.tiles_m - band * BAND, BAND), i = tile % (BAND * p.tiles_n);
    m = band * BAND + i % rows, n = i / rows;
  }
};

/* Keeps the compiler from moving the making of these registers past this point: a fragment that it made between two
 * wgmmas would serialise them. */
template <int N> __device__ __forceinline__ void pin(uint32_t (&r)[N][4]) {
#pragma unroll
  for (int i = 0; i < 4 * N; i++) asm volatile("" : "+r"(r[i / 4][i % 4])::"memory");
}
template <int N> __device__ __forceinline__ void pin(int32_t (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}

/* ---- producers ---- */

/* Walks a ring of STAGES slots through the CTA's steps; load(ring, position, step) fills a slot. One thread for each
 * operand, since B runs ahead of A by the steps that lie unpacked. */
template <int STAGES, class Load> __device__ __forceinline__ void produce(const Arguments &p, Load load) {
  Ring<STAGES> ring;
  Work work(p);
  for (int tile = work.first; tile < work.tiles; tile += work.stride) {
    Position at(tile, p);
#pragma unroll 1
    for (int step = work.begin; step < work.end; step++, ring.next()) load(ring, at, step);
  }
}

template <class T>
__device__ __forceinline__ void produce_a(const Shared<T> &shared, const CUtensorMap *map, const Arguments &p) {
  produce<T::STAGES_A>(p, [&](const Ring<T::STAGES_A> &ring, const Position &at, int step) {
    ptx::barrier_wait(shared.empty_a(ring.slot), ring.parity ^ 1);
    ptx::barrier_expect(shared.full_a(ring.slot), T::A_BYTES);
    ptx::tensor_load_2d(shared.a(ring.slot), map, step * STEP_WORDS, at.m * T::BM, shared.full_a(ring.slot));
  });
}

template <class T>
__device__ __forceinline__ void produce_b(const Shared<T> &shared, const CUtensorMap *map, const Arguments &p) {
  produce<T::STAGES_B>(p, [&](const Ring<T::STAGES_B> &ring, const Position &at, int step) {
    ptx::barrier_wait(shared.empty_b(ring.slot), ring.parity ^ 1);
    ptx::barrier_expect(shared.full_b(ring.slot), T::B_BYTES);
    ptx::tensor_load_2d(shared.b(ring.slot), map, at.n * T::BN, step * STEP_WORDS, shared.full_b(ring.slot));
  });
}

/* ---- unpackers ---- */

/* A lane's part of a slice of a step: four neighbouring columns of its four words. */
template <class T> struct PackedB {
  uint4 words[4];
  uint32_t even[4][4], odd[4][4]; /* of column i, words t */

  __device__ __forceinline__ static int lane() { return threadIdx.x % 32; }

  __device__ __forceinline__ void load(uint32_t from, int slice) {
    uint32_t at = from + (slice * T::BN + 4 * lane()) * 4;
    if (T::LANES == 32 || lane() < T::LANES) {
#pragma unroll
      for (int t = 0; t < 4; t++) words[t] = ptx::load_shared4(at + t * 16 * T::BN);
    }
  }

  /* Rows past K come as zero words, which mean -8 in the offset encoding: put 0 there, and zero times whatever the tail
   * of A holds is zero. */
  __device__ __forceinline__ void clear_from(int valid, int slice) {
    constexpr uint32_t zero = INT4MM_ENCODING_FLIP;
#pragma unroll
    for (int t = 0; t < 4; t++)
      if (4 * t + slice >= valid) words[t] = make_uint4(zero, zero, zero, zero);
  }

  __device__ __forceinline__ void unpack(const Unpacker<T::WIDE> &unpacker) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int t = 0; t < 4; t++) {
        even[i][t] = unpacker.even(element(words[t], i));
        odd[i][t] = unpacker.odd(element(words[t], i));
      }
    pin(even), pin(odd); /* so that the stores follow each other */
  }

  __device__ __forceinline__ void store(uint32_t to, int slice) const {
    if (T::LANES < 32 && lane() >= T::LANES) return;
    uint32_t row = to + lane() * STEP_K, swizzle = lane() & 7; /* of 16-byte chunks within the row */
    uint32_t first = row + ((2 * slice ^ swizzle) << 4), second = row + (((2 * slice + 1) ^ swizzle) << 4);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      ptx::store_shared4(first + i * T::LANES * STEP_K, even[i][0], even[i][1], even[i][2], even[i][3]);
      ptx::store_shared4(second + i * T::LANES * STEP_K, odd[i][0], odd[i][1], odd[i][2], odd[i][3]);
    }
  }
};

/* `warp` counts the unpacking warps. A team of TEAM warps takes a step, so that several steps are under way at a time:
 * the way of one through shared memory and the fence is longer than the products of a step. The words of the next slice
 * are on their way while the present one is stored. */
template <class T> __device__ __forceinline__ void unpack_b(const Shared<T> &shared, const Arguments &p, int warp) {
  constexpr int SLICES = 4 / T::TEAM;
  Work work(p);
  int per_tile = work.end - work.begin, index = warp / T::TEAM, first_slice = warp % T::TEAM * SLICES;
  int left = work.first < work.tiles ? ((work.tiles - 1 - work.first) / work.stride + 1) * per_tile - index : 0;
  int step = work.begin + index; /* within its tile */
  Ring<T::STAGES_B> packed;
  Ring<T::STAGES_8> wide;
  for (int i = 0; i < index; i++) packed.next(), wide.next();
  Unpacker<T::WIDE> unpacker(p.flip_b);
  PackedB<T> b;

  auto load_first = [&] {
    ptx::barrier_wait(shared.full_b(packed.slot), packed.parity);
    b.load(shared.b(packed.slot), first_slice);
  };
  if (left > 0) load_first();
#pragma unroll 1
  while (left > 0) {
    while (step >= work.end) step -= per_tile;
    int valid = p.words - step * STEP_WORDS, used = packed.slot, filled = wide.slot;
#pragma unroll
    for (int i = 0; i < SLICES; i++) {
      int slice = first_slice + i;
      if (valid < STEP_WORDS && p.flip_b) b.clear_from(valid, slice);
      b.unpack(unpacker);
      if (i == 0) ptx::barrier_wait(shared.empty_b8(filled), wide.parity ^ 1);
      b.store(shared.b8(filled), slice);
      if (i + 1 < SLICES) b.load(shared.b(used), slice + 1);
    }
    for (int i = 0; i < T::TEAMS; i++) packed.next(), wide.next(), step++, left--;
    if (left > 0) load_first();
    ptx::fence_async_shared();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ptx::barrier_arrive(shared.full_b8(filled));
      ptx::barrier_arrive(shared.empty_b(used)); /* only now: its words have been used */
    }
  }
}

/* ---- consumers ---- */

/* A step's packed words of A for one lane: rows g and g + 8 of each 64-row block, words 4t .. 4t + 3. */
template <class T> struct PackedA {
  uint4 low[T::BLOCKS], high[T::BLOCKS];
  __device__ __forceinline__ void load(uint32_t address) {
#pragma unroll
    for (int b = 0; b < T::BLOCKS; b++) {
      low[b] = ptx::load_shared4(address + b * 64 * STEP_WORDS * 4);
      high[b] = ptx::load_shared4(address + (b * 64 + 8) * STEP_WORDS * 4);
    }
  }
};

/* The wgmmas of one group: fragments from words FIRST .. of a row block, times the slices from FIRST on. */
template <class T, int FIRST>
__device__ __forceinline__ void multiply(int32_t (&acc)[T::BN / 2], uint32_t (&fragments)[T::SLICES][4], uint4 low,
                                         uint4 high, const Unpacker<T::WIDE> &unpack, uint64_t b, bool accumulate) {
  const uint32_t x[4] = {low.x, low.y, low.z, low.w}, y[4] = {high.x, high.y, high.z, high.w};
#pragma unroll
  for (int j = 0; j < T::SLICES; j++) {
    fragments[j][0] = unpack.even(x[FIRST + j]), fragments[j][1] = unpack.even(y[FIRST + j]);
    fragments[j][2] = unpack.odd(x[FIRST + j]), fragments[j][3] = unpack.odd(y[FIRST + j]);
  }
  pin(fragments);
  if (T::BLOCKS == 2) pin(acc); /* with one block other groups are still writing to acc */
  ptx::wgmma_fence();
#pragma unroll
  for (int j = 0; j < T::SLICES; j++)
    ptx::wgmma<T::BN>(acc, fragments[j], b + 2 * (FIRST + j), accumulate || FIRST + j > 0);
  ptx::wgmma_commit();
}

/* Rounds 8 neighbours of one row to the output type and stores them; `out` is on 16 bytes. */
template <int DTYPE>
__device__ __forceinline__ void store_whole(typename int4mm_out_word<DTYPE>::type *out, const float (&x)[COLUMNS]) {
  if constexpr (DTYPE == INT4MM_FLOAT32) {
    uint32_t w[COLUMNS];
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) w[i] = int4mm_round<DTYPE>(x[i]);
    *(uint4 *)out = make_uint4(w[0], w[1], w[2], w[3]);
    *(uint4 *)(out + 4) = make_uint4(w[4], w[5], w[6], w[7]);
  } else {
    *(uint4 *)out = make_uint4(int4mm_round2<DTYPE>(x[0], x[1]), int4mm_round2<DTYPE>(x[2], x[3]),
                               int4mm_round2<DTYPE>(x[4], x[5]), int4mm_round2<DTYPE>(x[6], x[7]));
  }
}

/* The same for those that lie in a row of N columns, one by one where need be. */
template <int DTYPE>
__device__ __forceinline__ void store_columns(const Arguments &p, int row, int column, const float (&x)[COLUMNS]) {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  Word *out = (Word *)p.out + row * p.ldo + column;
  if (p.vector_store && column + COLUMNS <= p.N) return store_whole<DTYPE>(out, x);
#pragma unroll
  for (int i = 0; i < COLUMNS; i++)
    if (column + i < p.N) out[i] = int4mm_round<DTYPE>(x[i]);
}

/* The scales of a tile, asked for while its last products are under way: lane l holds those of the columns 4l .. 4l +
 * 3, and every lane those of its own rows. */
template <class T> struct Scales {
  float column[4], row[T::BLOCKS][2];

  __device__ __forceinline__ Scales(const Arguments &p, const Position &at, int first_row) {
    int first = at.n * T::BN + threadIdx.x % 32 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
      column[i] = threadIdx.x % 32 < T::LANES && first + i < p.N ? __ldg(p.scale_b + first + i) : 0;
#pragma unroll
    for (int b = 0; b < T::BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < 2; lower++) {
        int r = first_row + b * 64 + lower * 8;
        row[b][lower] = r < p.M ? __ldg(p.scale_a + r) : 0;
      }
  }

  /* Of this lane's 8 columns in a span of 32. All lanes of the warp call it. */
  __device__ __forceinline__ void gather(float (&to)[COLUMNS], int quad) const {
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
      to[i] = __shfl_sync(0xffffffffu, column[i % 4], quad * 8 + threadIdx.x % 4 * 2 + i / 4);
  }
};

/* Scales, rounds and stores 8 neighbouring columns of one row. */
template <class T>
__device__ __forceinline__ void finish(const Arguments &p, int row, int column, float scale_a,
                                       const float (&scale_b)[COLUMNS], const int32_t (&acc)[COLUMNS]) {
  if (row >= p.M || column >= p.N) return;
  float x[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; i++)
    x[i] = __fmul_rn(__fmul_rn(__fmul_rn((float)acc[i], Unpacker<T::WIDE>::UNSCALE), scale_a), scale_b[i]);
  if (p.bias) {
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
      if (column + i < p.N) x[i] = __fadd_rn(x[i], __ldg(p.bias + column + i));
  }
  if (p.out_dtype == INT4MM_FLOAT16)
    store_columns<INT4MM_FLOAT16>(p, row, column, x);
  else if (p.out_dtype == INT4MM_BFLOAT16)
    store_columns<INT4MM_BFLOAT16>(p, row, column, x);
  else
    store_columns<INT4MM_FLOAT32>(p, row, column, x);
}

/* A thread's sums of 8 neighbouring columns of one row: `lower` of the rows g and g + 8, quad of columns. */
template <class T>
__device__ __forceinline__ void gather(int32_t (&to)[COLUMNS], const int32_t (&acc)[T::BN / 2], int lower, int quad) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) to[i] = acc[(i % 4 * T::QUADS + quad) * 4 + lower * 2 + i / 4];
}

/* The epilogue of a tile that lies whole inside an output of aligned rows: straight-line code, a third of the general
 * one's, whose size would cost more in instruction fetches than its arithmetic. `row_scale` has 1/256 in it. */
template <class T, int DTYPE>
__device__ __forceinline__ void epilogue_inside(const Arguments &p, const Position &at, int first_row,
                                                const Scales<T> &scales, const float (&row_scale)[T::BLOCKS][2],
                                                const int32_t (&acc)[T::BLOCKS][T::BN / 2]) {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  int first_column = at.n * T::BN + threadIdx.x % 4 * COLUMNS;
  Word *out = (Word *)p.out + first_row * p.ldo + first_column;
#pragma unroll
  for (int quad = 0; quad < T::QUADS; quad++) {
    float scale_b[COLUMNS];
    scales.gather(scale_b, quad);
#pragma unroll
    for (int b = 0; b < T::BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < 2; lower++) {
        int32_t sums[COLUMNS];
        gather<T>(sums, acc[b], lower, quad);
        float x[COLUMNS];
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) x[i] = __fmul_rn(__fmul_rn((float)sums[i], row_scale[b][lower]), scale_b[i]);
        if (p.bias) {
#pragma unroll
          for (int i = 0; i < COLUMNS; i++) x[i] = __fadd_rn(x[i], __ldg(p.bias + first_column + quad * 32 + i));
        }
        store_whole<DTYPE>(out + (b * 64 + lower * 8) * p.ldo + quad * 32, x);
      }
  }
}

template <class T>
__device__ __forceinline__ void epilogue(const Arguments &p, const Position &at, int first_row, const Scales<T> &scales,
                                         const int32_t (&acc)[T::BLOCKS][T::BN / 2]) {
  /* A row's scale takes in the factor 1/256 where that is exact: not among the subnormals. */
  float row_scale[T::BLOCKS][2];
  bool inside = p.vector_store && (at.m + 1) * T::BM <= p.M && (at.n + 1) * T::BN <= p.N;
#pragma unroll
  for (int i = 0; i < 2 * T::BLOCKS; i++) {
    float scale = scales.row[i / 2][i % 2];
    row_scale[i / 2][i % 2] = __fmul_rn(scale, Unpacker<T::WIDE>::UNSCALE);
    inside = inside && __fmul_rn(row_scale[i / 2][i % 2], 1 / Unpacker<T::WIDE>::UNSCALE) == scale;
  }
  if (__all_sync(0xffffffffu, inside)) {
    if (p.out_dtype == INT4MM_FLOAT16)
      epilogue_inside<T, INT4MM_FLOAT16>(p, at, first_row, scales, row_scale, acc);
    else if (p.out_dtype == INT4MM_BFLOAT16)
      epilogue_inside<T, INT4MM_BFLOAT16>(p, at, first_row, scales, row_scale, acc);
    else
      epilogue_inside<T, INT4MM_FLOAT32>(p, at, first_row, scales, row_scale, acc);
    return;
  }
#pragma unroll
  for (int quad = 0; quad < T::QUADS; quad++) {
    int column = at.n * T::BN + quad * 32 + threadIdx.x % 4 * COLUMNS;
    float scale_b[COLUMNS];
    scales.gather(scale_b, quad);
#pragma unroll
    for (int b = 0; b < T::BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < 2; lower++) {
        int32_t sums[COLUMNS];
        gather<T>(sums, acc[b], lower, quad);
        finish<T>(p, first_row + b * 64 + lower * 8, column, scales.row[b][lower], scale_b, sums);
      }
  }
}

/* Split K: partial sums of a unit (COLUMNS neighbours of one row, for each thread) as they lie in shared memory. */
template <class T> __device__ __forceinline__ uint32_t partial_address(uint32_t base, int unit, int part, int thread) {
  return base + ((unit * (COLUMNS / 4) + part) * T::CONSUMERS * 128 + thread) * 16;
}

/* Puts this CTA's partial sums where the rings were. */
template <class T>
__device__ __forceinline__ void deposit(uint32_t base, int thread, const int32_t (&acc)[T::BLOCKS][T::BN / 2]) {
#pragma unroll
  for (int unit = 0; unit < T::BLOCKS * 2 * T::QUADS; unit++) {
    int32_t s[COLUMNS];
    gather<T>(s, acc[unit / (2 * T::QUADS)], unit / T::QUADS % 2, unit % T::QUADS);
#pragma unroll
    for (int part = 0; part < COLUMNS / 4; part++)
      ptx::store_shared4(partial_address<T>(base, unit, part, thread), s[part * 4], s[part * 4 + 1], s[part * 4 + 2],
                         s[part * 4 + 3]);
  }
}

/* Adds up and finishes every split-th unit of the cluster's tile. */
template <class T>
__device__ __forceinline__ void reduce(const Arguments &p, const Position &at, int first_row, const Scales<T> &scales,
                                       uint32_t base, int thread) {
#pragma unroll 1
  for (int unit = blockIdx.x % p.split; unit < T::BLOCKS * 2 * T::QUADS; unit += p.split) {
    int row = first_row + unit / (2 * T::QUADS) * 64 + unit / T::QUADS % 2 * 8, quad = unit % T::QUADS;
    float scale_a = row < p.M ? __ldg(p.scale_a + row) : 0, scale_b[COLUMNS];
    scales.gather(scale_b, quad);
    int32_t sums[COLUMNS] = {};
#pragma unroll 2
    for (int rank = 0; rank < p.split; rank++)
#pragma unroll
      for (int part = 0; part < COLUMNS / 4; part++) {
        int4 s = ptx::load_cluster4(ptx::map_shared(partial_address<T>(base, unit, part, thread), rank));
        sums[part * 4] += s.x, sums[part * 4 + 1] += s.y, sums[part * 4 + 2] += s.z, sums[part * 4 + 3] += s.w;
      }
    finish<T>(p, row, at.n * T::BN + quad * 32 + threadIdx.x % 4 * COLUMNS, scale_a, scale_b, sums);
  }
}

template <class T> __device__ __forceinline__ void consume(const Shared<T> &shared, const Arguments &p, int index) {
  int thread = threadIdx.x % 128, lane = thread % 32;
  int row_in_tile = index * T::BLOCKS * 64 + thread / 32 * 16 + lane / 4;
  uint32_t a_offset = (row_in_tile * STEP_WORDS + lane % 4 * 4) * 4;
  int32_t acc[T::BLOCKS][T::BN / 2];
  uint32_t fragments[T::GROUPS][T::SLICES][4];
  PackedA<T> packed;
  Ring<T::STAGES_A> ring_a;
  Ring<T::STAGES_8> ring_b8;
  Unpacker<T::WIDE> unpack(p.flip_a);
  Work work(p);
  int signal = T::STAGGERED && index == 0 ? min(work.begin + T::LAG, work.end) - 1 : -1;
  if (T::STAGGERED && index == 1) ptx::named_barrier_sync(1, 256);

  auto load_a = [&] {
    ptx::barrier_wait(shared.full_a(ring_a.slot), ring_a.parity);
    packed.load(shared.a(ring_a.slot) + a_offset);
  };
  for (int tile = work.first; tile < work.tiles; tile += work.stride) {
    load_a();
    int previous = -1; /* slot of the step before, still read by wgmma */
#pragma unroll 1
    for (int step = work.begin; step < work.end; step++) {
      ptx::barrier_wait(shared.full_b8(ring_b8.slot), ring_b8.parity);
      uint64_t b = ptx::swizzled_operand(shared.b8(ring_b8.slot));
      bool accumulate = previous >= 0;
      auto group = [&](auto constant) {
        constexpr int G = decltype(constant)::value, B = T::BLOCKS == 2 ? G : 0, FIRST = T::BLOCKS == 2 ? 0 : G;
        ptx::wgmma_wait<T::GROUPS - 1>(); /* this group's fragments of the step before are free */
        if (G == T::GROUPS - 1 && previous >= 0 && lane == 0) ptx::barrier_arrive(shared.empty_b8(previous));
        multiply<T, FIRST>(acc[B], fragments[G], packed.low[B], packed.high[B], unpack, b, accumulate);
      };
      group(int4mm_constant<0>());
      group(int4mm_constant<1>());
      if constexpr (T::GROUPS == 4) group(int4mm_constant<2>()), group(int4mm_constant<3>());
      __syncwarp();
      if (lane == 0) ptx::barrier_arrive(shared.empty_a(ring_a.slot)); /* its words have been used */
      ring_a.next();
      previous = ring_b8.slot;
      ring_b8.next();
      if (step + 1 < work.end) load_a();
      if (T::STAGGERED && step == signal) {
        ptx::named_barrier_arrive(1, 256);
        signal = -1;
      }
    }
    Position at(tile, p);
    int first_row = at.m * T::BM + row_in_tile;
    Scales<T> scales(p, at, first_row);
    ptx::wgmma_wait<0>();
    if (lane == 0) ptx::barrier_arrive(shared.empty_b8(previous));
#pragma unroll
    for (int b = 0; b < T::BLOCKS; b++) pin(acc[b]);
    if (p.split == 1) {
      epilogue<T>(p, at, first_row, scales, acc);
    } else {                                          /* one tile per cluster */
      ptx::named_barrier_sync(2, 128 * T::CONSUMERS); /* every consumer is done with the rings */
      deposit<T>(shared.base, index * 128 + thread, acc);
      ptx::cluster_arrive();
      ptx::cluster_wait();
      reduce<T>(p, at, first_row, scales, shared.base, index * 128 + thread);
    }
  }
}

/* ---- the kernel ---- */

template <class T>
__global__ void __launch_bounds__(T::THREADS, 1)
    hopper(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
           const __grid_constant__ Arguments p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared<T> shared{ptx::shared_address(memory)};
  if (threadIdx.x == 0) {
    shared.init_barriers();
    ptx::prefetch_tensor_map(&map_a);
    ptx::prefetch_tensor_map(&map_b);
  }
  __syncthreads();
  ptx::allow_next_grid();
  ptx::wait_for_prior_grids();
  int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* tells the compiler that a warp agrees on it */
  if (group == 0) {
    ptx::shrink_registers<T::PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) produce_a<T>(shared, &map_a, p);
    if (threadIdx.x == 32) produce_b<T>(shared, &map_b, p);
  } else if (group <= T::UNPACKERS) {
    ptx::shrink_registers<T::UNPACKER_REGISTERS>();
    unpack_b<T>(shared, p, __shfl_sync(0xffffffffu, threadIdx.x / 32, 0) - 4);
  } else {
    ptx::grow_registers<T::CONSUMER_REGISTERS>();
    consume<T>(shared, p, group - 1 - T::UNPACKERS);
  }
  if (p.split > 1) { /* nobody leaves while its shared memory is being read */
    __syncwarp();
    if (group <= T::UNPACKERS) ptx::cluster_arrive(), ptx::cluster_wait(); /* the consumers' first meeting */
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
#endif
}

/* ---- host ---- */

typedef CUresult (*EncodeTiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* From the driver through the runtime, so that the library needs no libcuda to load. */
cudaError_t find_encoder(EncodeTiled *encode) {
  static std::atomic<EncodeTiled> found{nullptr};
  if (!(*encode = found.load())) {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    if (error != cudaSuccess) return error;
    if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
    found = *encode = (EncodeTiled)function;
  }
  return cudaSuccess;
}

/* A map of int32 words [rows, columns] that copies boxes of box_rows x box_columns. */
cudaError_t map_words(CUtensorMap *map, const uint32_t *words, int64_t rows, int64_t columns, int64_t stride,
                      int box_rows, int box_columns) {
  EncodeTiled encode;
  cudaError_t error = find_encoder(&encode);
  if (error != cudaSuccess) return error;
  cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, pitch[1] = {(cuuint64_t)stride * 4};
  cuuint32_t box[2] = {(cuuint32_t)box_columns, (cuuint32_t)box_rows}, step[2] = {1, 1};
  CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_INT32, 2, (void *)words, size, pitch, box, step,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class T> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  static std::atomic<uint64_t> allowed{0};
  cudaError_t error = int4mm_allow_shared((const void *)hopper<T>, allowed);
  if (error != cudaSuccess) return error;
  CUtensorMap map_a, map_b;
  int64_t words = problem->K / 8;
  error = map_words(&map_a, problem->a, problem->M, words, problem->lda, T::BM, STEP_WORDS);
  if (error != cudaSuccess) return error;
  error = map_words(&map_b, problem->b, words, problem->N, problem->ldb, STEP_WORDS, T::BN);
  if (error != cudaSuccess) return error;

  Arguments p = {};
  p.M = (int)problem->M, p.N = (int)problem->N, p.words = (int)words;
  p.tiles_m = (p.M + T::BM - 1) / T::BM, p.tiles_n = (p.N + T::BN - 1) / T::BN;
  p.split = plan->split_k;
  p.flip_a = problem->flip_a, p.flip_b = problem->flip_b;
  p.scale_a = problem->scale_a, p.scale_b = problem->scale_b, p.bias = problem->bias;
  p.out = problem->out, p.ldo = problem->ldo, p.out_dtype = problem->out_dtype;
  uint64_t element = problem->out_dtype == INT4MM_FLOAT32 ? 4 : 2;
  p.vector_store = ((uint64_t)problem->out | (uint64_t)problem->ldo * element) % 16 == 0;

  return int4mm_launch(hopper<T>, dim3(plan->ctas), T::THREADS, T::SHARED_BYTES, p.split, stream, map_a, map_b, p);
}

struct Instance {
  int tile_m, tile_n;
  int4mm_launch_fn *launch, *launch_wide; /* for K below INT4MM_WIDE_K and from there on */
};

#define INSTANCE(consumers, blocks, n, ...)                                                                            \
  { 64 * consumers *blocks, n, launch<Tile<consumers, blocks, n, __VA_ARGS__, false>>, nullptr }
#define INSTANCE_WIDE(consumers, blocks, n, ...)                                                                       \
  {                                                                                                                    \
    64 * consumers *blocks, n, launch<Tile<consumers, blocks, n, __VA_ARGS__, false>>,                                 \
        launch<Tile<consumers, blocks, n, __VA_ARGS__, true>>                                                          \
  }

const Instance instances[] = {
    INSTANCE(2, 2, 128, 1, 6, 4, 6), INSTANCE(2, 1, 128, 2, 6, 8, 7),        INSTANCE(2, 1, 64, 2, 8, 8, 10),
    INSTANCE(1, 1, 128, 2, 8, 8, 8), INSTANCE_WIDE(1, 1, 64, 2, 10, 12, 10),
};

} // namespace

extern "C" cudaError_t int4mm_launch_hopper(const int4mm_problem *problem, const int4mm_plan *plan,
                                            cudaStream_t stream) {
  for (const Instance &i : instances)
    if (i.tile_m == plan->tile_m && i.tile_n == plan->tile_n) {
      int4mm_launch_fn *launch = problem->K < INT4MM_WIDE_K ? i.launch : i.launch_wide;
      return launch ? launch(problem, plan, stream) : cudaErrorNotSupported;
    }
  return cudaErrorNotSupported;
}
