/*
 * The K of a tile split over a cluster of two CTAs, for tiles that are few: each multiplies half of the k-blocks and
 * adds its peer's sums of half the columns, which come through distributed shared memory. Sums are integers, so that
 * their order does not matter, and no workspace is needed.
 */
#ifndef INT4MM_SPLIT_K_CUH
#define INT4MM_SPLIT_K_CUH

#include "sm90/operands.cuh"

namespace {

/* A CTA's share of its tile's k-blocks: `count` from `begin` on. The CTAs of a pair lie side by side along x. */
struct ShareOfK {
  int rank, begin, count;
  __device__ __forceinline__ ShareOfK(const Arguments &p, int split) : rank(blockIdx.x & (split - 1)) {
    int k_blocks = (p.words + BLOCK_WORDS - 1) / BLOCK_WORDS, first = split == 2 ? (k_blocks + 1) / 2 : k_blocks;
    begin = rank ? first : 0, count = rank ? k_blocks - first : first;
  }
};

/* Whether a CTA finishes a column group. Found where it is asked for: registers are few. */
__device__ __forceinline__ bool owns_group(int split, int group) {
  return split == 1 || (group + blockIdx.x) % 2 == 0;
}

/* Adds the sums of the CTAs of a pair, by the consumer warpgroup `index` of each: rank 0 finishes the even column
 * groups, its peer the odd ones. These are the even and the odd of acc's groups of four. They come in units of 16 bytes
 * a thread to shared.peer(index, unit), counted by the barrier full_peer(index). The peer has initialised that and no
 * longer needs what lay at its peer(index, ...). */
template <class T, class S>
__device__ __forceinline__ void reduce_pair(const S &shared, int index, int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2]) {
  constexpr int UNITS = T::BN / 32 * T::FRAGMENT_ROWS; /* of a row block */
  const int rank = blockIdx.x & 1;
  const uint32_t lane = threadIdx.x % 128 * 16;
  const uint32_t full = ptx::mapa(shared.full_peer(index), rank ^ 1);
  if (threadIdx.x % 128 == 0) ptx::mbarrier_arrive_expect_tx(shared.full_peer(index), T::ROW_BLOCKS * UNITS * 128 * 16);
#pragma unroll
  for (int i = 0; i < T::ROW_BLOCKS * UNITS; i++) {
    const int32_t *s = &acc[i / UNITS][i % UNITS / T::FRAGMENT_ROWS * 16 + i % T::FRAGMENT_ROWS * 2];
    ptx::st_async_v4(ptx::mapa(shared.peer(index, i) + lane, rank ^ 1), full, rank ? s[0] : s[4], rank ? s[1] : s[5],
                     rank ? s[8] : s[12], rank ? s[9] : s[13]);
  }
  ptx::mbarrier_wait(shared.full_peer(index), 0);
#pragma unroll
  for (int i = 0; i < T::ROW_BLOCKS * UNITS; i++) {
    int32_t *s = &acc[i / UNITS][i % UNITS / T::FRAGMENT_ROWS * 16 + i % T::FRAGMENT_ROWS * 2];
    uint4 x = ptx::ld_shared_v4(shared.peer(index, i) + lane);
    if (rank == 0)
      s[0] += (int32_t)x.x, s[1] += (int32_t)x.y, s[8] += (int32_t)x.z, s[9] += (int32_t)x.w;
    else
      s[4] += (int32_t)x.x, s[5] += (int32_t)x.y, s[12] += (int32_t)x.z, s[13] += (int32_t)x.w;
  }
}

} // namespace
#endif
