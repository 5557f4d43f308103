/*
 * What the wgmma kernels for Hopper (sm_90a) share: how a step and a tile are laid out, the products of a step, the
 * epilogue, and the tensor maps.
 *
 * Hopper has no int4 tensor instruction, so packed words are widened to int8 on chip, A on its way from shared memory
 * to the fragments that wgmma takes from registers, B on its way into shared memory, K-major in the 128-byte swizzle.
 *
 * One step is 128 values of k: 16 words. A wgmma takes 32 of them, a slice: slice j is the four words 4t + j, t = 0..3,
 * their even nibbles in bytes 0..15, their odd ones in bytes 16..31 (see unpack.cuh). Then one 128-bit shared load per
 * row gives a lane its A fragments of all four slices.
 *
 * The columns of a tile are permuted as well: an unpacking lane l reads the columns 4l .. 4l + 3 with one load and
 * writes them to the rows l, l + BN / 4, ... of the int8 tile. That gives a thread of the product accumulators of 8
 * neighbouring columns (gather), so the epilogue stores 16 bytes at a time.
 *
 * A kernel's tile is a type T with its size BM x BN and
 *   BLOCKS            of 64 rows that a warpgroup multiplies
 *   BUFFERS           of fragments: groups of wgmmas that may be under way at a time
 *   TURNS             warpgroups that take the steps in turn
 *   LOWERS            how many of the two rows that a thread has in each block it finishes
 *   LANES, UNPACKED   of a warp, that unpack four columns each, so many of them at a time
 *   QUADS             spans of 32 columns, which a quad of lanes holds 8 by 8
 *   STAGES_A, _8      depths of the rings of packed A and int8 B in shared memory
 *   WIDE              as in unpack.cuh
 */
#ifndef INT4MM_HOPPER_CUH
#define INT4MM_HOPPER_CUH

#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "common/unpack.cuh"

namespace {

constexpr int STEP_WORDS = 16; /* packed words of k in a step */
constexpr int STEP_K = 128;
constexpr int SLICES = 4;            /* of a step: what a wgmma takes of it */
constexpr int COLUMNS = 8;           /* of an output row that a thread holds side by side */
constexpr int SHARED_LIMIT = 232448; /* bytes a CTA may have on sm_90 */

struct Arguments {
  int M, N, words; /* words of k: K / 8 */
  int tiles_m, tiles_n;
  int split;    /* CTAs that share a tile's K, a cluster */
  int box_rows; /* of A that a copy brings: a tile's, or M where that is less. It takes longer to fill with zeros */
  const uint32_t *b;
  int64_t ldb, ldo;
  uint32_t xor_a, xor_b;
  const float *scale_a, *scale_b, *bias;
  void *out;
  int32_t out_dtype;
  bool vector_store; /* a row of 8 columns may be stored 16 bytes at a time */
};

/* A slot of a ring of N and the parity of its current round. */
template <int N> struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next(int by = 1) {
    slot += by;
    if (slot >= N) slot -= N, parity ^= 1;
  }
};

/* A tile's place among the tiles. */
struct Position {
  int m, n;
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

/* Sets up a kernel's barriers, a lane of each warp some of them: the lanes of one warp take turns, at 70 clocks each. A
 * CTA barrier must follow. */
template <class T, class S> __device__ __forceinline__ void init_barriers(const S &shared) {
  if (threadIdx.x % 32) return;
  for (int i = threadIdx.x / 32; i < T::BARRIERS; i += T::THREADS / 32)
    ptx::barrier_init(shared.barrier(i), shared.arrivals(i));
  ptx::barrier_init_fence();
}

/* ---- the unpacking of B ---- */

/* WIDTH of a lane's four columns, from `first` on, of the four words of a slice. */
template <class T> struct Unpacked {
  static constexpr int WIDTH = T::UNPACKED;
  uint32_t even[WIDTH][4], odd[WIDTH][4];

  __device__ __forceinline__ Unpacked(const Unpacker<T::WIDE> &unpacker, const uint4 (&words)[4], int first) {
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
#pragma unroll
      for (int t = 0; t < 4; t++) {
        even[i][t] = unpacker.even(element(words[t], first + i));
        odd[i][t] = unpacker.odd(element(words[t], first + i));
      }
    pin(even), pin(odd); /* so that the stores follow each other */
  }

  /* To the int8 tile that `tile` begins, 16 bytes of a row at a time, swizzled. */
  __device__ __forceinline__ void store(uint32_t tile, int slice, int first) const {
    uint32_t row = threadIdx.x % T::LANES;
    uint32_t low = tile + row * STEP_K + ((2 * slice ^ (row & 7)) << 4), high = low ^ 16;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      int below = (first + i) * T::LANES * STEP_K;
      ptx::store_shared4(low + below, even[i][0], even[i][1], even[i][2], even[i][3]);
      ptx::store_shared4(high + below, odd[i][0], odd[i][1], odd[i][2], odd[i][3]);
    }
  }
};

/* ---- products ---- */

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

/* Where a thread's first row lies in its warpgroup's block of 64. */
__device__ __forceinline__ int row_in_block() {
  return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

/* A lane's fragments of a row block and step: all at once, before the fence of the wgmmas. */
template <bool WIDE>
__device__ __forceinline__ void make_fragments(uint32_t (&fragments)[SLICES][4], uint4 low, uint4 high,
                                               const Unpacker<WIDE> &unpack) {
#pragma unroll
  for (int j = 0; j < SLICES; j++) {
    fragments[j][0] = unpack.even(element(low, j)), fragments[j][1] = unpack.even(element(high, j));
    fragments[j][2] = unpack.odd(element(low, j)), fragments[j][3] = unpack.odd(element(high, j));
  }
  pin(fragments);
}

/* The wgmmas of a row block and step, committed as a group. */
template <class T>
__device__ __forceinline__ void multiply(int32_t (&acc)[T::BN / 2], const uint32_t (&fragments)[SLICES][4], uint64_t b,
                                         bool accumulate) {
  if (T::BLOCKS == T::BUFFERS) pin(acc); /* else the group before is still writing to acc */
  ptx::wgmma_fence();
#pragma unroll
  for (int j = 0; j < SLICES; j++) ptx::wgmma<T::BN>(acc, fragments[j], b + 2 * j, accumulate || j > 0);
  ptx::wgmma_commit();
}

/* A warpgroup's products, step after step of a tile; it takes every TURNS-th of the CTA's steps. S finds the rings in
 * shared memory. A step is a group of wgmmas for each row block. With two BUFFERS of fragments two groups are under way
 * at a time, so that one is unpacked while the other is multiplied: the two blocks of a step, or with one block two
 * steps. */
template <class T, class S> struct Consumer {
  const S &shared;
  uint32_t a_offset;
  Unpacker<T::WIDE> unpack;
  PackedA<T> packed;
  Ring<T::STAGES_A> ring_a;
  Ring<T::STAGES_8> ring_b8;
  int32_t acc[T::BLOCKS][T::BN / 2];
  uint32_t fragments[T::BUFFERS][SLICES][4];
  int reading, read; /* slots of int8 B that groups under way read: of the last step and of the one before; or -1 */

  __device__ __forceinline__ Consumer(const S &shared, const Arguments &p, int row_in_tile)
      : shared(shared), a_offset((row_in_tile * STEP_WORDS + threadIdx.x % 4 * 4) * 4), unpack(p.xor_a) {}

  __device__ __forceinline__ void load_a() {
    ptx::barrier_wait(shared.full_a(ring_a.slot), ring_a.parity);
    packed.load(shared.a(ring_a.slot) + a_offset);
  }

  __device__ __forceinline__ void release_b8(int &slot) {
    if (slot >= 0) shared.release_b8(slot);
    slot = -1;
  }

  /* PARITY of the step among those of this tile, which tells the fragments that are free. Int8 B is waited for when all
   * else is done, since it mostly comes last. */
  template <int PARITY> __device__ __forceinline__ void step(bool first, bool last) {
#pragma unroll
    for (int block = 0; block < T::BLOCKS; block++) {
      uint32_t(&mine)[SLICES][4] = fragments[T::BLOCKS == 2 ? block : PARITY];
      ptx::wgmma_wait<T::BUFFERS - 1>();
      if (T::BUFFERS == 1 || block == 1) release_b8(reading);
      if (T::BUFFERS == 2 && T::BLOCKS == 1) release_b8(read), read = reading;
      make_fragments(mine, packed.low[block], packed.high[block], unpack);
      if (block == 0) ptx::barrier_wait(shared.full_b8(ring_b8.slot), ring_b8.parity);
      multiply<T>(acc[block], mine, ptx::swizzled_operand(shared.b8(ring_b8.slot)), !first);
    }
    shared.release_a(ring_a.slot); /* only now: its words have been used */
    ring_a.next(T::TURNS);
    reading = ring_b8.slot;
    ring_b8.next(T::TURNS);
    if (!last) load_a();
  }

  /* The products of `steps` steps, at least one, left in acc. while_last() is called while the last are under way. */
  template <class F> __device__ __forceinline__ void tile(int steps, F while_last) {
    reading = read = -1;
    load_a();
    int i = 0;
    if constexpr (T::BLOCKS < T::BUFFERS) { /* the compiler has to see that fragments alternate */
#pragma unroll 1
      for (; i + 1 < steps; i += 2) {
        step<0>(i == 0, false);
        step<1>(false, i + 2 == steps);
      }
      if (i < steps) step<0>(i == 0, true);
    } else {
#pragma unroll 1
      for (; i < steps; i++) step<0>(i == 0, i + 1 == steps);
    }
    while_last();
    ptx::wgmma_wait<0>();
    release_b8(read);
    release_b8(reading);
#pragma unroll
    for (int b = 0; b < T::BLOCKS; b++) pin(acc[b]);
  }
};

/* ---- epilogue ---- */

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
  float column[4], row[T::BLOCKS][T::LOWERS];

  __device__ __forceinline__ void load(const Arguments &p, const Position &at, int first_row) {
    int first = at.n * T::BN + threadIdx.x % 32 * 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
      column[i] = threadIdx.x % 32 < T::LANES && first + i < p.N ? __ldg(p.scale_b + first + i) : 0;
#pragma unroll
    for (int b = 0; b < T::BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < T::LOWERS; lower++) {
        int r = first_row + b * 64 + lower * 8;
        row[b][lower] = r < p.M ? __ldg(p.scale_a + r) : 0;
      }
  }

  /* Those of this lane's 8 columns in a span of 32. All lanes of the warp call it. */
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
  int4mm_for_out_dtype(p.out_dtype, [&](auto dtype) { store_columns<decltype(dtype)::value>(p, row, column, x); });
}

/* A thread's sums of 8 neighbouring columns of one row: `lower` of the rows g and g + 8, quad of columns. */
template <class T>
__device__ __forceinline__ void gather(int32_t (&to)[COLUMNS], const int32_t (&acc)[T::BN / 2], int lower, int quad) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) to[i] = acc[(i % 4 * T::QUADS + quad) * 4 + lower * 2 + i / 4];
}

/* The epilogue of a tile that lies whole inside an output of aligned rows: straight-line code, a third of the general
 * one's, whose size would cost more in instruction fetches than its arithmetic. `row_scale` has 1/256 in it. */
template <class T, int DTYPE, class Mine>
__device__ __forceinline__ void epilogue_inside(const Arguments &p, const Position &at, int first_row,
                                                const Scales<T> &scales, const float (&row_scale)[T::BLOCKS][T::LOWERS],
                                                const int32_t (&acc)[T::BLOCKS][T::BN / 2], Mine mine) {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  int first_column = at.n * T::BN + threadIdx.x % 4 * COLUMNS;
  Word *out = (Word *)p.out + first_row * p.ldo + first_column;
#pragma unroll
  for (int quad = 0; quad < T::QUADS; quad++) {
    if (!mine(quad)) continue;
    if (T::BLOCKS == 1) __syncwarp(); /* or the compiler works on several spans at once, and spills */
    float scale_b[COLUMNS];
    scales.gather(scale_b, quad);
#pragma unroll
    for (int b = 0; b < T::BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < T::LOWERS; lower++) {
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

/* Finishes what a thread has: LOWERS rows of each block, and of their columns the spans of 32 that mine(quad) names. */
template <class T, class Mine>
__device__ __forceinline__ void epilogue(const Arguments &p, const Position &at, int first_row, const Scales<T> &scales,
                                         const int32_t (&acc)[T::BLOCKS][T::BN / 2], Mine mine) {
  /* A row's scale takes in the factor 1/256 where that is exact: not among the subnormals. */
  float row_scale[T::BLOCKS][T::LOWERS];
  bool inside = p.vector_store && (at.m + 1) * T::BM <= p.M && (at.n + 1) * T::BN <= p.N;
#pragma unroll
  for (int b = 0; b < T::BLOCKS; b++)
#pragma unroll
    for (int lower = 0; lower < T::LOWERS; lower++) {
      float scale = scales.row[b][lower];
      row_scale[b][lower] = __fmul_rn(scale, Unpacker<T::WIDE>::UNSCALE);
      inside = inside && __fmul_rn(row_scale[b][lower], 1 / Unpacker<T::WIDE>::UNSCALE) == scale;
    }
  if (__all_sync(0xffffffffu, inside)) {
    int4mm_for_out_dtype(p.out_dtype, [&](auto dtype) {
      epilogue_inside<T, decltype(dtype)::value>(p, at, first_row, scales, row_scale, acc, mine);
    });
    return;
  }
#pragma unroll
  for (int quad = 0; quad < T::QUADS; quad++) {
    if (!mine(quad)) continue;
    int column = at.n * T::BN + quad * 32 + threadIdx.x % 4 * COLUMNS;
    float scale_b[COLUMNS];
    scales.gather(scale_b, quad);
#pragma unroll
    for (int b = 0; b < T::BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < T::LOWERS; lower++) {
        int32_t sums[COLUMNS];
        gather<T>(sums, acc[b], lower, quad);
        finish<T>(p, first_row + b * 64 + lower * 8, column, scales.row[b][lower], scale_b, sums);
      }
  }
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

/* The arguments of a problem in tiles of tile_m x tile_n. */
Arguments make_arguments(const int4mm_problem *problem, const int4mm_plan *plan) {
  Arguments p = {};
  p.M = (int)problem->M, p.N = (int)problem->N, p.words = (int)(problem->K / 8);
  p.tiles_m = (p.M + plan->tile_m - 1) / plan->tile_m, p.tiles_n = (p.N + plan->tile_n - 1) / plan->tile_n;
  p.split = plan->split_k, p.box_rows = p.M < plan->tile_m ? p.M : plan->tile_m;
  p.b = problem->b.words, p.ldb = problem->b.stride, p.ldo = problem->out.stride;
  p.xor_a = problem->a.xor_mask, p.xor_b = problem->b.xor_mask;
  p.scale_a = problem->a.scales, p.scale_b = problem->b.scales, p.bias = problem->bias;
  p.out = problem->out.data, p.out_dtype = problem->out.dtype;
  uint64_t element = problem->out.dtype == INT4MM_FLOAT32 ? 4 : 2;
  p.vector_store = ((uint64_t)problem->out.data | (uint64_t)problem->out.stride * element) % 16 == 0;
  return p;
}

} // namespace
#endif
