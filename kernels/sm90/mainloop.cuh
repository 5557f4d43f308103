/*
 * What the wgmma kernels for Hopper (sm_90a) share that widen B in shared memory: how a k-block and a tile are laid
 * out, the unpacking of B, and the mainloop of a consumer warpgroup. See operands.cuh for what a kernel gets, and
 * tile_epilogue.cuh for what follows the mainloop.
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
 *   UNROLL            k-blocks of a consumer that the code of the mainloop has one after another
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

#include "common/ptx.cuh"
#include "sm90/operands.cuh"
#include "sm90/pipeline.cuh"

namespace {

constexpr int SLICES = 4; /* of a k-block, one for each wgmma */

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

/* The mainloop of a consumer warpgroup, which takes every K_GROUPS-th of a tile's k-blocks, from the k_group-th on. S
 * finds the stages and barriers in shared memory. A k-block is a group of wgmmas for each row block. With two
 * FRAGMENT_BUFFERS two groups are in flight at a time, so that one is unpacked while the other is multiplied: the two
 * row blocks of a k-block, or with one row block two k-blocks.
 *
 * Where a CTA has one tile and both pipelines are at their first stage again after UNROLL k-blocks, the compiler knows
 * the stage in each copy of the code; else half of a consumer's instructions find stages and barriers, and 256 x 4096 x
 * 4096 takes 11.2 us on an H100, for 10.7. */
template <class T, class S> struct Consumer {
  const S &shared;
  const int k_group;
  typename std::conditional<T::Kind::INT8_A, BytesA<T>, WordsA<T>>::type a;
  PipelineState<T::STAGES_A / T::K_GROUPS> state_a; /* of the k_group's stages */
  PipelineState<T::STAGES_8 / T::K_GROUPS> state_b8;
  int32_t acc[T::ROW_BLOCKS][T::BN / 2];
  uint32_t fragments[T::FRAGMENT_BUFFERS][SLICES][4];
  ZeroPoints<T> zeros;
  int reading, read; /* stages of int8 B that groups in flight read: the last k-block's and the one before it; or -1 */

  __device__ __forceinline__ Consumer(const S &shared, const Arguments &p, int row_in_tile, int k_group = 0)
      : shared(shared), k_group(k_group), a(p, row_in_tile) {}

  __device__ __forceinline__ int stage_a() const { return state_a.index * T::K_GROUPS + k_group; }
  __device__ __forceinline__ int stage_b8() const { return state_b8.index * T::K_GROUPS + k_group; }

  __device__ __forceinline__ void load_a() {
    ptx::mbarrier_wait(shared.full_a(stage_a()), state_a.phase);
    a.load(shared.a(stage_a()));
  }

  __device__ __forceinline__ void release_b8(int &stage) {
    if (stage >= 0) shared.release_b8(stage);
    stage = -1;
  }

  /* The number of the k-block among those of this tile tells the fragment buffer that is free. Int8 B is waited for
   * when all else is done, since it mostly comes last. */
  __device__ __forceinline__ void multiply_k_block(int number, bool first) {
#pragma unroll
    for (int block = 0; block < T::ROW_BLOCKS; block++) {
      uint32_t(&buffer)[SLICES][4] = fragments[T::ROW_BLOCKS == 2 ? block : number % T::FRAGMENT_BUFFERS];
      ptx::wgmma_wait_group<T::FRAGMENT_BUFFERS - 1>();
      if (T::FRAGMENT_BUFFERS == 1 || block == 1) release_b8(reading);
      if (T::FRAGMENT_BUFFERS == 2 && T::ROW_BLOCKS == 1) release_b8(read), read = reading;
      a.make_fragments(buffer, block);
      keep_in_registers(buffer); /* all of them, before the fence of the wgmmas */
      if (block == 0) ptx::mbarrier_wait(shared.full_b8(stage_b8()), state_b8.phase);
      multiply<T>(acc[block], buffer, ptx::make_smem_desc(shared.b8(stage_b8())), !first);
      zeros.add(block, buffer);
      if (block + 1 < T::ROW_BLOCKS) a.load_next(shared.a(stage_a()), block + 1);
    }
    shared.release_a(stage_a()); /* only now: its words have been used */
    reading = stage_b8();
    state_a.advance(), state_b8.advance();
  }

  __device__ __forceinline__ void multiply_k_blocks(int k_blocks) {
    load_a();
    int i = 0;
#pragma unroll 1
    for (; i + T::UNROLL <= k_blocks; i += T::UNROLL)
#pragma unroll
      for (int u = 0; u < T::UNROLL; u++) {
        multiply_k_block(u, u == 0 && i == 0);
        if (u + 1 < T::UNROLL || i + T::UNROLL < k_blocks) load_a();
      }
    for (unsigned left = (unsigned)k_blocks % T::UNROLL; left > 0; left--, i++) {
      multiply_k_block(0, i == 0);
      if (left > 1) load_a();
    }
  }

  /* The products of `k_blocks` k-blocks, at least one, left in acc. while_last() is called while the last are in
   * flight; with zero points, which begin() before, it loads these. */
  template <class F> __device__ __forceinline__ void multiply_tile(int k_blocks, F while_last) {
    reading = read = -1;
    /* So that what subtract() left of another tile does not stay in registers, where these are few. */
    if (T::Kind::ZEROS && T::FRAGMENT_BUFFERS == 2 && (T::ROW_BLOCKS == 1 || T::LAYER))
#pragma unroll
      for (int i = 0; i < T::ROW_BLOCKS * T::BN / 2; i++) acc[i / (T::BN / 2)][i % (T::BN / 2)] = 0;
    multiply_k_blocks(k_blocks);
    while_last();
    ptx::wgmma_wait_group<0>();
    release_b8(read);
    release_b8(reading);
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++) keep_in_registers(acc[b]);
    zeros.subtract(acc);
  }
};

} // namespace
#endif
