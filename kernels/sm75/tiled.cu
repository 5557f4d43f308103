/*
 * 16 x 16 output tiles through shared memory, a thread per output of a tile, dp4a: the kernel for large products where
 * no faster one serves. Every shape, stride and alignment, on every architecture from sm_75 on.
 *
 *            16 columns of b           A k-block is 16 words (128 values): each of the 256 threads loads one word of a
 *           +---------------+          and one of b, splits them into even and odd nibbles (see nibbles.cuh) and stores
 *           |  16 words     |          them to shared memory, where each word is used 16 times.
 *           +---------------+
 *   +-----+ +---------------+
 *   |  a  | |  16 x 16 out  |
 *   +-----+ +---------------+
 */
#include "common/epilogue.cuh"
#include "common/experts.cuh"
#include "common/kernels.h"
#include "common/nibbles.cuh"
#include "common/shapes.h"
#include "sm75/general.cuh"

namespace {

constexpr int kTile = INT4MM_TILE(tiled, M); /* rows and columns of out, and words of k in a k-block */
static_assert(kTile == INT4MM_TILE(tiled, N) && kTile == INT4MM_BLOCK_WORDS, "the tile is a cube");
constexpr int kThreads = kTile * kTile;
constexpr int kSpanBlocks = INT4MM_SPAN / (8 * kTile);

struct Tile {
  uint32_t a_even[kTile][kTile + 1], a_odd[kTile][kTile + 1]; /* [m][j]; one more word keeps columns in other banks */
  uint32_t b_even[kTile][kTile + 1], b_odd[kTile][kTile + 1]; /* [j][n] */
};

/* Words [.., j .. j+15] of both operands; 0 beyond an edge. */
__device__ __forceinline__ void load(Tile &tile, const int4mm_problem &p, int64_t m0, int64_t n0, int64_t j0) {
  int row = threadIdx.y, col = threadIdx.x;
  int64_t words = p.K / 8, m = m0 + row;
  uint32_t a = m < p.M && j0 + col < words ? p.a.words[m * p.a.stride + j0 + col] ^ p.a.xor_mask : 0;
  tile.a_even[row][col] = Unpacker<false>(0).even(a), tile.a_odd[row][col] = Unpacker<false>(0).odd(a);
  bool nk = p.b.layout == INT4MM_K_MAJOR; /* neighbouring threads read neighbouring words of B, along k or along n */
  int j_in_tile = nk ? col : row, n_in_tile = nk ? row : col;
  int64_t j = j0 + j_in_tile, n = n0 + n_in_tile;
  int64_t at = nk ? n * p.b.stride + j : j * p.b.stride + n;
  uint32_t b = n < p.N && j < words ? p.b.words[at] ^ p.b.xor_mask : 0;
  tile.b_even[j_in_tile][n_in_tile] = Unpacker<false>(0).even(b);
  tile.b_odd[j_in_tile][n_in_tile] = Unpacker<false>(0).odd(b);
}

/* The sum of this thread's output over all of k. */
__device__ __forceinline__ int32_t accumulate(Tile &tile, const int4mm_problem &p, int64_t m0, int64_t n0) {
  int64_t k_blocks = (p.K / 8 + kTile - 1) / kTile;
  int32_t acc = 0, sum = 0;
  for (int64_t k_block = 0; k_block < k_blocks; k_block++) {
    load(tile, p, m0, n0, k_block * kTile);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kTile; j++) {
      sum = int4mm_dot4(tile.a_even[threadIdx.y][j], tile.b_even[j][threadIdx.x], sum);
      sum = int4mm_dot4(tile.a_odd[threadIdx.y][j], tile.b_odd[j][threadIdx.x], sum);
    }
    __syncthreads();
    if (k_block % kSpanBlocks == kSpanBlocks - 1) acc += sum >> 8, sum = 0;
  }
  return acc + (sum >> 8);
}

template <bool LAYER>
__global__ void __launch_bounds__(kThreads)
    tiled_kernel(const int4mm_problem p, const __grid_constant__ EpilogueArguments e) {
  __shared__ Tile tile;
  int64_t tiles_n = (p.N + kTile - 1) / kTile, tiles = (p.M + kTile - 1) / kTile * tiles_n;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    int64_t m0 = t / tiles_n * kTile, n0 = t % tiles_n * kTile;
    int32_t acc[1] = {accumulate(tile, p, m0, n0)};
    int64_t m = m0 + threadIdx.y, n = n0 + threadIdx.x;
    if (m >= p.M || n >= p.N) continue;
    float scale_b[1] = {e.scale_b[n]};
    float bias[1];
    int4mm_load_bias(bias, e, n, p.N);
    int4mm_finish<LAYER>(e, m, n, p.N, 1.0f, e.scale_a[m], scale_b, bias, acc);
  }
}

/* ---- operands of every kind ---- */

template <bool FLOAT> struct GeneralTile {
  Eight<FLOAT> a[kTile][kTile + 1], b[kTile][kTile + 1]; /* [m][j] and [j][n] */
};

/* Words [.., j0 .. j0+15] of both operands; 0 beyond an edge. */
template <int KIND>
__device__ __forceinline__ void load_general(GeneralTile<KIND == FLOATS> &tile, const int4mm_problem &p, int64_t m0,
                                             int64_t n0, int64_t j0) {
  constexpr bool FLOAT = KIND == FLOATS;
  int row = threadIdx.y, col = threadIdx.x;
  int64_t words = (p.K + 7) / 8;
  tile.a[row][col] = m0 + row < p.M && j0 + col < words ? load_a<(AKind)KIND>(p, m0 + row, j0 + col) : Eight<FLOAT>{};
  bool nk = p.b.layout == INT4MM_K_MAJOR; /* neighbouring threads read neighbouring words */
  int j = nk ? col : row, n = nk ? row : col;
  tile.b[j][n] = n0 + n < p.N && j0 + j < words ? load_b<FLOAT>(p, j0 + j, n0 + n) : Eight<FLOAT>{};
}

template <int KIND>
__device__ __forceinline__ void accumulate_general(Sum<KIND == FLOATS> &sum, GeneralTile<KIND == FLOATS> &tile,
                                                   const int4mm_problem &p, int64_t m0, int64_t n0) {
  int64_t words = (p.K + 7) / 8, n = n0 + threadIdx.x;
  for (int64_t j0 = 0; j0 < words; j0 += kTile) {
    load_general<KIND>(tile, p, m0, n0, j0);
    __syncthreads();
    for (int j = 0; j < kTile && j0 + j < words; j++) {
      sum.add(tile.a[threadIdx.y][j], tile.b[j][threadIdx.x]);
      if (n < p.N) end_word(sum, p, j0 + j, n);
    }
    __syncthreads();
  }
}

/* The output of this thread's in the tile at (m0, n0), whose rows end at p.M. */
template <int KIND>
__device__ __forceinline__ void general_tile(GeneralTile<KIND == FLOATS> &tile, const int4mm_problem &p,
                                             const EpilogueArguments &e, int64_t m0, int64_t n0) {
  Sum<KIND == FLOATS> sum;
  accumulate_general<KIND>(sum, tile, p, m0, n0);
  int64_t m = m0 + threadIdx.y, n = n0 + threadIdx.x;
  if (m < p.M && n < p.N) finish_sum(sum, p, e, m, n);
}

template <int KIND>
__global__ void __launch_bounds__(kThreads)
    tiled_general_kernel(const int4mm_problem p, const __grid_constant__ EpilogueArguments e) {
  __shared__ GeneralTile<KIND == FLOATS> tile;
  int64_t tiles_n = (p.N + kTile - 1) / kTile, tiles = (p.M + kTile - 1) / kTile * tiles_n;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x)
    general_tile<KIND>(tile, p, e, t / tiles_n * kTile, t % tiles_n * kTile);
}

/* ---- grouped products ---- */

/* Of operands of every kind, in at most tiles_m tiles of rows. */
template <int KIND>
__global__ void __launch_bounds__(kThreads)
    tiled_experts_kernel(const int4mm_problem p, const __grid_constant__ EpilogueArguments e, int64_t tiles_m) {
  __shared__ GeneralTile<KIND == FLOATS> tile;
  int64_t tiles_n = (p.N + kTile - 1) / kTile, tiles = tiles_m * tiles_n;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const ExpertTile at = find_expert_tile<kTile>(p.experts, (int)p.M, t / tiles_n);
    const int64_t n0 = t % tiles_n * kTile, m = at.row + threadIdx.y, n = n0 + threadIdx.x;
    if (at.expert >= 0) {
      int4mm_problem own = p;
      EpilogueArguments columns = e;
      select_expert(own, columns, at.expert);
      own.M = at.end;
      general_tile<KIND>(tile, own, columns, at.row, n0);
    } else if (m < at.end && n < p.N) {
      const float zero[1] = {0};
      int4mm_store(e, m, n, p.N, zero);
    }
  }
}

} // namespace

cudaError_t int4mm_launch_tiled(const int4mm_problem *problem, const int4mm_plan *, cudaStream_t stream) {
  const int32_t experts = problem->experts.count;
  int64_t tiles_m = experts ? int4mm_expert_tiles(problem->M, experts, kTile) : (problem->M + kTile - 1) / kTile;
  unsigned blocks = int4mm_blocks(tiles_m * ((problem->N + kTile - 1) / kTile), 1);
  EpilogueArguments e = int4mm_epilogue_arguments(problem, 1);
  if (experts)
    for_kind_of_a(problem, [&](auto kind) {
      tiled_experts_kernel<decltype(kind)::value><<<blocks, dim3(kTile, kTile), 0, stream>>>(*problem, e, tiles_m);
    });
  else if (!int4mm_is_elementary(problem))
    for_kind_of_a(problem, [&](auto kind) {
      tiled_general_kernel<decltype(kind)::value><<<blocks, dim3(kTile, kTile), 0, stream>>>(*problem, e);
    });
  else if (e.layer)
    tiled_kernel<true><<<blocks, dim3(kTile, kTile), 0, stream>>>(*problem, e);
  else
    tiled_kernel<false><<<blocks, dim3(kTile, kTile), 0, stream>>>(*problem, e);
  return cudaGetLastError();
}
