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
 * neighbouring columns (gather), so the epilogue stores 16 bytes at a time.
 *
 * A kernel's tile is a type T with its size BM x BN and
 *   ROW_BLOCKS        of 64 rows that a warpgroup multiplies
 *   FRAGMENT_BUFFERS  groups of wgmmas that may be in flight at a time
 *   K_GROUPS          consumer warpgroups that share a tile's k-blocks, each with every K_GROUPS-th
 *   FRAGMENT_ROWS     how many of the two rows that a thread has in each row block it finishes
 *   UNPACK_LANES      of a warp, that unpack four columns each, UNPACK_COLUMNS at a time
 *   COLUMN_GROUPS     of 32 columns, which a quad of lanes holds 8 by 8
 *   STAGES_A, _8      depths of the pipelines of packed A and int8 B in shared memory
 *   WIDE              as in unpack.cuh
 */
#ifndef INT4MM_MAINLOOP_CUH
#define INT4MM_MAINLOOP_CUH

#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "common/shapes.h"
#include "common/unpack.cuh"

namespace {

constexpr int BLOCK_WORDS = INT4MM_BLOCK_WORDS; /* packed words of k in a k-block */
constexpr int BLOCK_K = INT4MM_BLOCK_K;
constexpr int SLICES = 4;            /* of a k-block, one for each wgmma */
constexpr int COLUMNS = 8;           /* of an output row that a thread holds side by side */
constexpr int SHARED_LIMIT = 232448; /* bytes a CTA may have on sm_90 */

struct Arguments {
  int M, N, words; /* words of k: K / 8 */
  int tiles_m, tiles_n;
  int split;    /* CTAs that share a tile's K, a cluster */
  int box_rows; /* of A in a copy: a tile's, or M where that is less. Filling rows with zeros takes longer than copying
                 */
  const uint32_t *b;
  int64_t ldb;
  uint32_t xor_a, xor_b;
  EpilogueArguments epilogue;
};

/* A stage of a pipeline of N and the phase of its barriers. */
template <int N> struct PipelineState {
  int index = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void advance(int by = 1) {
    index += by;
    if (index >= N) index -= N, phase ^= 1;
  }
};

/* A tile's coordinates among the tiles. */
struct TileCoord {
  int m, n;
};

/* Keeps the compiler from computing these registers after this point: a fragment made between two wgmmas would
 * serialise them. */
template <int N> __device__ __forceinline__ void keep_in_registers(uint32_t (&r)[N][4]) {
#pragma unroll
  for (int i = 0; i < 4 * N; i++) asm volatile("" : "+r"(r[i / 4][i % 4])::"memory");
}
template <int N> __device__ __forceinline__ void keep_in_registers(int32_t (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(r[i])::"memory");
}

/* Initialises a kernel's barriers, one lane of each warp some of them: the lanes of one warp would be serialised, at 70
 * clocks each. A CTA barrier must follow. */
template <class T, class S> __device__ __forceinline__ void init_barriers(const S &shared) {
  if (threadIdx.x % 32) return;
  for (int i = threadIdx.x / 32; i < T::BARRIERS; i += T::THREADS / 32)
    ptx::mbarrier_init(shared.barrier(i), shared.arrivals(i));
  ptx::fence_mbarrier_init();
}

/* ---- the unpacking of B ---- */

/* WIDTH of a lane's four columns, from `first` on, of the four words of a slice, widened to int8. */
template <class T> struct Unpacked {
  static constexpr int WIDTH = T::UNPACK_COLUMNS;
  uint32_t even[WIDTH][4], odd[WIDTH][4];

  __device__ __forceinline__ Unpacked(const Unpacker<T::WIDE> &unpacker, const uint4 (&words)[4], int first) {
#pragma unroll
    for (int i = 0; i < WIDTH; i++)
#pragma unroll
      for (int t = 0; t < 4; t++) {
        even[i][t] = unpacker.even(element(words[t], first + i));
        odd[i][t] = unpacker.odd(element(words[t], first + i));
      }
    keep_in_registers(even), keep_in_registers(odd); /* so that the stores follow each other */
  }

  /* To the int8 tile that `tile` begins, 16 bytes of a row at a time, swizzled. */
  __device__ __forceinline__ void store(uint32_t tile, int slice, int first) const {
    uint32_t row = threadIdx.x % T::UNPACK_LANES;
    uint32_t low = tile + row * BLOCK_K + ((2 * slice ^ (row & 7)) << 4), high = low ^ 16;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      int below = (first + i) * T::UNPACK_LANES * BLOCK_K;
      ptx::st_shared_v4(low + below, even[i][0], even[i][1], even[i][2], even[i][3]);
      ptx::st_shared_v4(high + below, odd[i][0], odd[i][1], odd[i][2], odd[i][3]);
    }
  }
};

/* ---- products ---- */

/* A k-block's packed words of A for one lane: rows g and g + 8 of each 64-row block, words 4t .. 4t + 3. */
template <class T> struct PackedA {
  uint4 low[T::ROW_BLOCKS], high[T::ROW_BLOCKS];
  __device__ __forceinline__ void load(uint32_t address) {
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++) {
      low[b] = ptx::ld_shared_v4(address + b * 64 * BLOCK_WORDS * 4);
      high[b] = ptx::ld_shared_v4(address + (b * 64 + 8) * BLOCK_WORDS * 4);
    }
  }
};

/* A thread's first row in its warpgroup's row block, as wgmma's fragments have it; the second is 8 below. */
__device__ __forceinline__ int fragment_row() {
  return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
}

/* A lane's fragments of a row block and k-block: all at once, before the fence of the wgmmas. */
template <bool WIDE>
__device__ __forceinline__ void make_fragments(uint32_t (&fragments)[SLICES][4], uint4 low, uint4 high,
                                               const Unpacker<WIDE> &unpack) {
#pragma unroll
  for (int j = 0; j < SLICES; j++) {
    fragments[j][0] = unpack.even(element(low, j)), fragments[j][1] = unpack.even(element(high, j));
    fragments[j][2] = unpack.odd(element(low, j)), fragments[j][3] = unpack.odd(element(high, j));
  }
  keep_in_registers(fragments);
}

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
  uint32_t a_offset;
  Unpacker<T::WIDE> unpack;
  PackedA<T> packed;
  PipelineState<T::STAGES_A> state_a;
  PipelineState<T::STAGES_8> state_b8;
  int32_t acc[T::ROW_BLOCKS][T::BN / 2];
  uint32_t fragments[T::FRAGMENT_BUFFERS][SLICES][4];
  int reading, read; /* stages of int8 B that groups in flight read: the last k-block's and the one before it; or -1 */

  __device__ __forceinline__ Consumer(const S &shared, const Arguments &p, int row_in_tile)
      : shared(shared), a_offset((row_in_tile * BLOCK_WORDS + threadIdx.x % 4 * 4) * 4), unpack(p.xor_a) {}

  __device__ __forceinline__ void load_a() {
    ptx::mbarrier_wait(shared.full_a(state_a.index), state_a.phase);
    packed.load(shared.a(state_a.index) + a_offset);
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
      make_fragments(buffer, packed.low[block], packed.high[block], unpack);
      if (block == 0) ptx::mbarrier_wait(shared.full_b8(state_b8.index), state_b8.phase);
      multiply<T>(acc[block], buffer, ptx::make_smem_desc(shared.b8(state_b8.index)), !first);
    }
    shared.release_a(state_a.index); /* only now: its words have been used */
    state_a.advance(T::K_GROUPS);
    reading = state_b8.index;
    state_b8.advance(T::K_GROUPS);
    if (!last) load_a();
  }

  /* The products of `k_blocks` k-blocks, at least one, left in acc. while_last() is called while the last are in
   * flight. */
  template <class F> __device__ __forceinline__ void multiply_tile(int k_blocks, F while_last) {
    reading = read = -1;
    load_a();
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
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
      to[i] = __shfl_sync(0xffffffffu, column[i % 4], group * 8 + threadIdx.x % 4 * 2 + i / 4);
  }
};

/* A thread's sums of 8 neighbouring columns of one row: the `lower` of its two fragment rows, in a column group. */
template <class T>
__device__ __forceinline__ void gather(int32_t (&to)[COLUMNS], const int32_t (&acc)[T::BN / 2], int lower, int group) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) to[i] = acc[(i % 4 * T::COLUMN_GROUPS + group) * 4 + lower * 2 + i / 4];
}

/* The epilogue of a tile that lies whole inside an output of aligned rows, without activation and residual:
 * straight-line code, a third of the general one's, whose size would cost more in instruction fetches than its
 * arithmetic. `row_scale` has UNSCALE in it. */
template <class T, int DTYPE, class Owns>
__device__ __forceinline__ void epilogue_full_tile(const Arguments &p, const TileCoord &at, int first_row,
                                                   const Scales<T> &scales,
                                                   const float (&row_scale)[T::ROW_BLOCKS][T::FRAGMENT_ROWS],
                                                   const int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2], Owns owns) {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  int first_column = at.n * T::BN + threadIdx.x % 4 * COLUMNS;
  Word *out = (Word *)p.epilogue.out + first_row * p.epilogue.ldo + first_column;
#pragma unroll
  for (int group = 0; group < T::COLUMN_GROUPS; group++) {
    if (!owns(group)) continue;
    if (T::ROW_BLOCKS == 1) __syncwarp(); /* or the compiler works on several groups at once, and spills */
    float scale_b[COLUMNS];
    scales.gather(scale_b, group);
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
        int32_t sums[COLUMNS];
        gather<T>(sums, acc[b], lower, group);
        float x[COLUMNS];
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) x[i] = __fmul_rn(__fmul_rn((float)sums[i], row_scale[b][lower]), scale_b[i]);
        if (p.epilogue.bias) int4mm_add_bias(x, p.epilogue.bias + first_column + group * 32, 0, COLUMNS);
        int4mm_store_vector<DTYPE>(out + (b * 64 + lower * 8) * p.epilogue.ldo + group * 32, x);
      }
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
          int4mm_scale_sums(unit.x, sums, Unpacker<T::WIDE>::UNSCALE, scales.row[b][lower], scale_b);
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
  if constexpr (T::CALLS) return epilogue_any_tile<T>(p, at, first_row, scales, acc, owns);
  /* A row's scale takes in UNSCALE, 1/256, where that is exact: not among the subnormals. */
  float row_scale[T::ROW_BLOCKS][T::FRAGMENT_ROWS];
  bool inside = p.epilogue.vector_store && !(T::LAYER && p.epilogue.layer) && (at.m + 1) * T::BM <= p.M &&
                (at.n + 1) * T::BN <= p.N;
#pragma unroll
  for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
    for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
      float scale = scales.row[b][lower];
      row_scale[b][lower] = __fmul_rn(scale, Unpacker<T::WIDE>::UNSCALE);
      inside = inside && __fmul_rn(row_scale[b][lower], 1 / Unpacker<T::WIDE>::UNSCALE) == scale;
    }
  if (!__all_sync(0xffffffffu, inside)) return epilogue_any_tile<T>(p, at, first_row, scales, acc, owns);
  int4mm_for_out_dtype(p.epilogue.out_dtype, [&](auto dtype) {
    epilogue_full_tile<T, decltype(dtype)::value>(p, at, first_row, scales, row_scale, acc, owns);
  });
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
#if CUDART_VERSION >= 12050
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#else /* of the runtime's version, 12.0 to 12.4 */
    cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
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
  p.b = problem->b.words, p.ldb = problem->b.stride;
  p.xor_a = problem->a.xor_mask, p.xor_b = problem->b.xor_mask;
  p.epilogue = int4mm_epilogue_arguments(problem, COLUMNS);
  return p;
}

} // namespace
#endif
