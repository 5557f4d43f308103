/*
 * narrow: middling M and small squares on Hopper (sm_90a). A CTA for each narrow tile, built for a short latency. See
 * mainloop.cuh for what it shares with hopper.cu.
 *
 *   global --copy--> packed A stages ---------(registers)--> wgmma --> epilogue --> global
 *   global --(registers)--> unpackers --> int8 B stages ------> |
 *
 * A CTA takes half of an SM: two of them hide each other's latencies, and where the tiles of a call take no more than
 * one place on each SM the next call's CTAs start in the other while this one's end.
 *
 * Packed B comes straight to the registers of the warps that unpack it: shared memory is what bounds narrow tiles, and
 * so holds it once, not twice. A needs no producer warp: its pipeline is as deep as that of int8 B or deeper, so that
 * an unpacker that has found a stage of B free again knows that a stage of A is, and issues the copy of the k-block
 * that goes there.
 *
 * The two consumer warpgroups of a 128 x 64 tile have its upper and its lower rows. A 64 x 64 tile's products of a
 * k-block are fewer clocks than what is around them, waiting, unpacking A, issuing: there the consumers split K, each
 * with every other k-block of the whole tile, and add their sums at the end.
 *
 * Where tiles are few, a cluster of two CTAs splits a tile's K (split_k.cuh).
 */
#include "sm90/mainloop.cuh"
#include "sm90/narrow_b.cuh"
#include "sm90/split_k.cuh"
#include "sm90/tile_epilogue.cuh"

namespace {

/* K_GROUPS: 2 where the consumers split K, else 1; depths of the pipelines of A and int8 B, where a turn is one
 * k-block; what A and B are; LAYER: with activation and residual; how B and out lie. */
template <int K_GROUPS_, int STAGES_A_, int STAGES_8_, class Kind_, bool LAYER_, bool NK_, bool ALIGNED_,
          bool OUT_ALIGNED_>
struct Tile {
  typedef Kind_ Kind;
  static constexpr bool NK = NK_, ALIGNED = ALIGNED_, OUT_ALIGNED = OUT_ALIGNED_;
  static constexpr int K_GROUPS = K_GROUPS_;
  static constexpr bool LAYER = LAYER_, EXPERTS = false, CALLS = EXPERTS; /* layers finish sums in line */
  static constexpr int CONSUMERS = 2, UNPACKERS = 2, THREADS = 128 * (UNPACKERS + CONSUMERS);
  static constexpr int ROW_BLOCKS = 1, BM = 64 * CONSUMERS / K_GROUPS, BN = 64, UNPACK_LANES = BN / 4,
                       COLUMN_GROUPS = BN / 32;
  static constexpr int FRAGMENT_ROWS = CONSUMERS / K_GROUPS, FRAGMENT_BUFFERS = 1;

  /* Unpacking warps that share a turn's k-blocks, and groups of them, each with a turn of its own at a time. A lane
   * unpacks 16 words, which makes two warps for a k-block. A turn is one; in 16-byte loads of [N, K/8] two, so that
   * these read whole lines: with half lines 64 x 4096 x 14336 of W4A8 took 18.2 us on an H100, with whole ones 15.8.
   * That fills two stages of int8 B at a time. It pays then to have more of these and no A ahead of them: 256 x 4096 x
   * 4096 takes 11.3 us, for 11.8, and 64 x 4096 x 14336 14.5, for 15.0. */
  static constexpr int TURN = NK && ALIGNED ? 2 : 1;
  static constexpr int STAGES_8 = TURN == 2 && K_GROUPS == 1 ? (STAGES_A_ + STAGES_8_) / 2 : STAGES_8_,
                       STAGES_A = TURN == 2 ? STAGES_8 : STAGES_A_;
  static constexpr int GROUP_WARPS = 2 * TURN, UNPACK_GROUPS = 4 * UNPACKERS / GROUP_WARPS;
  /* Turns before its last at which a group launches dependents. Sooner, the grid after the next would be resident as
   * well; later, this grid's CTAs exit while the next one's arrive, which pile up on the SMs that are free first. */
  static constexpr int LAUNCH_DEPENDENTS_BEFORE = 3;
  /* The phase bit tells a phase only from the next, so a consumer comes back to the stages that it knows; and a group
   * has seen the consumer of its stage finish a later k-block than the stage's last but one. */
  static_assert(STAGES_A % K_GROUPS == 0 && STAGES_8 % K_GROUPS == 0 && STAGES_8 >= UNPACK_GROUPS * TURN,
                "phases would be mistaken");
  static_assert(STAGES_8 % TURN == 0, "the stages of a turn follow each other");
  /* An unrolled mainloop of 64 x 64 tiles is 2 % slower, and with zero points it takes too many registers. */
  static constexpr int UNROLL = K_GROUPS == 1 && !Kind::ZEROS ? STAGES_A : 1;
  static_assert(UNROLL == 1 || (UNROLL % STAGES_A == 0 && UNROLL % STAGES_8 == 0), "the first stages do not come back");
  static constexpr int A_LEAD = STAGES_A - STAGES_8; /* k-blocks */
  static_assert(A_LEAD >= 0, "A has to be there when B is unpacked");

  static constexpr int A_BYTES = BM * Kind::A_ROW_BYTES, B8_BYTES = BN * BLOCK_K;
  static constexpr int HALF_BYTES = BM * BN * 2; /* half a tile's sums: what a consumer or a CTA gives away */
  static constexpr int A_OFFSET = STAGES_8 * B8_BYTES, PEER_OFFSET = A_OFFSET + STAGES_A * A_BYTES,
                       BARRIER_OFFSET = PEER_OFFSET + HALF_BYTES, BARRIERS = STAGES_A + 2 * STAGES_8 + CONSUMERS,
                       SHARED_BYTES = BARRIER_OFFSET + 8 * BARRIERS;
  static_assert(2 * (SHARED_BYTES + 1024) <= SHARED_LIMIT + 1024, "an SM has no room for two CTAs");
  static_assert(2 * HALF_BYTES <= PEER_OFFSET, "sums must fit where the stages were");

  static constexpr int UNPACKER_REGISTERS = 48, CONSUMER_REGISTERS = 80; /* 64 on average */
};

template <class T> struct Shared {
  uint32_t base;
  __device__ __forceinline__ uint32_t b8(int stage) const { return base + stage * T::B8_BYTES; }
  __device__ __forceinline__ uint32_t a(int stage) const { return base + T::A_OFFSET + stage * T::A_BYTES; }
  __device__ __forceinline__ uint32_t peer(int consumer, int unit) const {
    return base + T::PEER_OFFSET + (unit * T::CONSUMERS + consumer) * 2048;
  }
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + T::BARRIER_OFFSET + 8 * i; }
  __device__ __forceinline__ uint32_t full_a(int stage) const { return barrier(stage); }
  __device__ __forceinline__ uint32_t full_b8(int stage) const { return barrier(T::STAGES_A + stage); }
  __device__ __forceinline__ uint32_t empty_b8(int stage) const { return barrier(T::STAGES_A + T::STAGES_8 + stage); }
  __device__ __forceinline__ uint32_t full_peer(int consumer) const {
    return barrier(T::STAGES_A + 2 * T::STAGES_8 + consumer);
  }
  __device__ __forceinline__ void release_a(int) const {} /* a stage of A is free when that of B is */
  __device__ __forceinline__ void release_b8(int stage) const { ptx::mbarrier_arrive(empty_b8(stage)); }

  __device__ __forceinline__ int arrivals(int i) const {
    constexpr int EMPTY_8 = T::STAGES_A + T::STAGES_8, PEER = EMPTY_8 + T::STAGES_8;
    if (i < T::STAGES_A || i >= PEER) return 1; /* the thread that issues the copy */
    return i < EMPTY_8 ? 32 * T::GROUP_WARPS : 128 * T::CONSUMERS / T::K_GROUPS;
  }
};

/* The CTA's tile, and its share of the tile's k-blocks. The grid is the tiles, or the pairs of them. The last tile
 * along M lies at the end of A, over its neighbour, so that no rows outside A have to be filled with zeros, which takes
 * longer than copying rows. What both tiles compute is the same, bit for bit. */
template <class T> struct WorkTile : ShareOfK {
  int first_row;
  TileCoord at;
  __device__ __forceinline__ explicit WorkTile(const Arguments &p)
      : ShareOfK(p, p.split), at{(int)blockIdx.x >> (p.split - 1), (int)blockIdx.y} {
    first_row = min(at.m * T::BM, p.M - p.box_rows);
  }
};

/* Issues the copy of packed A of a k-block of this CTA. One thread calls it. */
template <class T>
__device__ __forceinline__ void copy_a(const Shared<T> &shared, const CUtensorMap *map, const Arguments &p,
                                       const WorkTile<T> &work, int k_block) {
  int stage = k_block % T::STAGES_A;
  ptx::mbarrier_arrive_expect_tx(shared.full_a(stage), p.box_rows * T::Kind::A_ROW_BYTES);
  ptx::cp_async_bulk_tensor_2d(shared.a(stage), map, (work.begin + k_block) * T::Kind::A_ELEMENTS, work.first_row,
                               shared.full_a(stage));
}

/* ---- unpackers ---- */

/* `warp` counts the unpacking warps. A group of GROUP_WARPS takes a turn's k-blocks, so that several are in flight at a
 * time, and loads its next turn before it stores this. What the last turn unpacks beyond the CTA's share nobody reads;
 * it lies where it does before the share's last k-block is called full, and so before sums take its place. */
template <class T>
__device__ __forceinline__ void unpack_b(const Shared<T> &shared, const CUtensorMap *map_a, const Arguments &p,
                                         const WorkTile<T> &work, int warp) {
  constexpr int STEP = T::UNPACK_GROUPS * T::TURN; /* k-blocks from a group's turn to its next */
  int group = warp / T::GROUP_WARPS;
  PipelineState<T::STAGES_8> state;
  state.advance(group * T::TURN);
  typename T::Kind::UnpackB unpacker(p.xor_b);
  typename NarrowB<T>::type b(p, (work.begin + group * T::TURN) * BLOCK_WORDS, work.at.n * T::BN, warp);
  b.prefetch(p);
  if (!p.early_b) ptx::griddepcontrol_wait();
  b.load(p);
#pragma unroll 1
  for (int k_block = group * T::TURN; k_block < work.count; k_block += STEP) {
    if (k_block + T::LAUNCH_DEPENDENTS_BEFORE * STEP >= work.count) ptx::griddepcontrol_launch_dependents();
    b.from += (int64_t)STEP * BLOCK_WORDS * (T::NK ? 1 : p.ldb), b.left -= STEP * BLOCK_WORDS;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      Unpacked<typename T::Kind::UnpackB, 1> unpacked(unpacker, [&](int, int t) { return b.word(e, t); });
      if (e == 3) b.load(p);
      if (e == 0) {
#pragma unroll
        for (int i = 0; i < T::TURN; i++) {
          ptx::mbarrier_wait(shared.empty_b8(state.index + i), state.phase ^ 1);
          const int ahead = k_block + i + T::A_LEAD;
          if (threadIdx.x % (32 * T::GROUP_WARPS) == 0 && k_block >= T::STAGES_8 && ahead < work.count) {
            ptx::griddepcontrol_wait(); /* it is over: the stage was free, after a copy of A before */
            copy_a(shared, map_a, p, work, ahead);
          }
        }
        __syncwarp();
      }
      b.store(unpacked, shared.b8(state.index), e);
    }
    ptx::fence_proxy_async();
#pragma unroll
    for (int i = 0; i < T::TURN; i++) ptx::mbarrier_arrive(shared.full_b8(state.index + i));
    state.advance(STEP);
  }
}

/* ---- consumers ---- */

/* Adds the sums of consumers that split K. Of the two rows that a thread has, consumer 0 finishes the first and
 * consumer 1 the second: each stores its sums of the other's row where the stages were. The result lies in acc as
 * lower = 0. */
template <class T>
__device__ __forceinline__ void reduce_consumers(const Shared<T> &shared, int index,
                                                 int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2]) {
  uint32_t mine = shared.base + index * T::HALF_BYTES + threadIdx.x % 128 * 16;
  uint32_t others = shared.base + (index ^ 1) * T::HALF_BYTES + threadIdx.x % 128 * 16;
  ptx::named_barrier_sync(1, 256); /* both are done with the stages */
#pragma unroll
  for (int i = 0; i < T::BN / 16; i++) {
    const int32_t *s = &acc[0][i * 8];
    ptx::st_shared_v4(others + i * 2048, index ? s[0] : s[2], index ? s[1] : s[3], index ? s[4] : s[6],
                      index ? s[5] : s[7]);
  }
  ptx::named_barrier_sync(1, 256);
#pragma unroll
  for (int i = 0; i < T::BN / 16; i++) {
    int32_t *s = &acc[0][i * 8];
    uint4 x = ptx::ld_shared_v4(mine + i * 2048);
    s[0] = (index ? s[2] : s[0]) + (int32_t)x.x, s[1] = (index ? s[3] : s[1]) + (int32_t)x.y;
    s[4] = (index ? s[6] : s[4]) + (int32_t)x.z, s[5] = (index ? s[7] : s[5]) + (int32_t)x.w;
  }
}

template <class T>
__device__ __forceinline__ void consume(const Shared<T> &shared, const CUtensorMap *map_a, const Arguments &p,
                                        const WorkTile<T> &work, int index) {
  ptx::griddepcontrol_wait();
  if (threadIdx.x % 128 == 0) /* the first copies of A */
    for (int k_block = index; k_block < min(T::STAGES_A, work.count); k_block += 2)
      copy_a(shared, map_a, p, work, k_block);
  __syncwarp();
  int k_group = T::K_GROUPS == 2 ? index : 0;
  int row_in_tile = (T::K_GROUPS == 2 ? 0 : index * 64) + fragment_row();
  int first_row = work.first_row + row_in_tile + k_group * 8;
  Consumer<T, Shared<T>> consumer(shared, p, row_in_tile, k_group);
  Scales<T> scales;
  if (k_group < work.count) {
    bool last = work.rank + 1 == p.split && (work.count - 1 - k_group) % T::K_GROUPS == 0;
    consumer.zeros.begin(p, last);
    consumer.multiply_tile((work.count - k_group + T::K_GROUPS - 1) / T::K_GROUPS, [&] {
      scales.load(p, work.at, first_row);
      consumer.zeros.load(p, work.at);
    });
  } else { /* a single k-block */
    scales.load(p, work.at, first_row);
#pragma unroll
    for (int i = 0; i < T::BN / 2; i++) consumer.acc[0][i] = 0;
  }
  if (T::K_GROUPS == 2) reduce_consumers<T>(shared, index, consumer.acc);
  if (p.split == 2) {
    ptx::cluster_wait(); /* the peer has initialised its barrier */
    reduce_pair<T>(shared, index, consumer.acc);
  }
  epilogue<T>(p, work.at, first_row, scales, consumer.acc, [&](int group) { return owns_group(p.split, group); });
}

/* ---- the kernel ---- */

template <class T>
__global__ void __launch_bounds__(T::THREADS, 2)
    narrow(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ Arguments p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared<T> shared{ptx::smem_address(memory)};
  WorkTile<T> work(p);
  init_barriers<T>(shared);
  if (threadIdx.x == 64) ptx::prefetch_tensormap(&map_a);
  __syncthreads();
  if (p.split == 2) ptx::cluster_arrive();
  int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* uniform over a warp, for the compiler */
  if (group < T::UNPACKERS) {
    ptx::setmaxnreg_dec<T::UNPACKER_REGISTERS>();
    unpack_b<T>(shared, &map_a, p, work, __shfl_sync(0xffffffffu, threadIdx.x / 32, 0));
    if (p.split == 2) ptx::cluster_wait();
  } else {
    ptx::setmaxnreg_inc<T::CONSUMER_REGISTERS>();
    consume<T>(shared, &map_a, p, work, group - T::UNPACKERS);
  }
#endif
}

template <class T> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  CUtensorMap map_a;
  Arguments p = make_arguments(problem, plan);
  cudaError_t error = map_a_of<T>(&map_a, problem, p);
  if (error != cudaSuccess) return error;
  /* Elsewhere two to an SM are faster, but beside the CTAs of the kernel that makes A, those of all come so, which
   * leaves SMs without one: 128 x 4104 x 4096 took 13.5 us on an H100, for 9.9. */
  const int4mm_shared shared(T::SHARED_BYTES, (T::K_GROUPS == 1 && p.split == 1) || problem->after_a);
  return int4mm_launch<narrow<T>>(plan->device, dim3(p.tiles_m * p.split, p.tiles_n), T::THREADS, shared, p.split,
                                  stream, map_a, p);
}

/* The tile for B and out as they lie. The 16-byte loads of B end with the row. */
template <int K_GROUPS, int STAGES_A, int STAGES_8, class Kind>
cudaError_t launch_layout(const int4mm_problem *problem, Kind kind, const int4mm_plan *plan, cudaStream_t stream) {
  bool aligned = is_aligned(problem->b) && problem->b.cols % 4 == 0;
  return for_layout(problem, kind, aligned, [&](auto layer, auto nk, auto aligned, auto out) {
    typedef Tile<K_GROUPS, STAGES_A, STAGES_8, Kind, layer.value, nk.value, aligned.value, out.value> T;
    return launch<T>(problem, plan, stream);
  });
}

/* For a wide K, which is rare: fewer instances, whose way to store is that of layers. */
template <int K_GROUPS, int STAGES_A, int STAGES_8, class Kind>
cudaError_t launch_wide(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  bool aligned = is_aligned(problem->b) && problem->b.cols % 4 == 0;
  if (problem->b.layout == INT4MM_K_MAJOR)
    return launch<Tile<K_GROUPS, STAGES_A, STAGES_8, Kind, true, true, false, false>>(problem, plan, stream);
  if (aligned) return launch<Tile<K_GROUPS, STAGES_A, STAGES_8, Kind, true, false, true, true>>(problem, plan, stream);
  return launch<Tile<K_GROUPS, STAGES_A, STAGES_8, Kind, true, false, false, false>>(problem, plan, stream);
}

} // namespace

/* With an int8 A the pipelines are as large in bytes. */
extern "C" cudaError_t int4mm_launch_narrow_128x64(const int4mm_problem *problem, const int4mm_plan *plan,
                                                   cudaStream_t stream) {
  constexpr int STAGES = INT4MM_TILE(narrow_128x64, STAGES);
  typedef Tile<1, 8, STAGES, Kind<false, false>, false, false, true, true> T;
  static_assert(T::BM == INT4MM_TILE(narrow_128x64, M) && T::BN == INT4MM_TILE(narrow_128x64, N), "another tile");
  return for_kind(problem, [&](auto kind) {
    typedef decltype(kind) K;
    if constexpr (K::AFFINE)
      return cudaErrorNotSupported;
    else
      return launch_layout < 1, K::INT8_A ? 4 : 8, STAGES > (problem, kind, plan, stream);
  });
}

extern "C" cudaError_t int4mm_launch_narrow_64x64(const int4mm_problem *problem, const int4mm_plan *plan,
                                                  cudaStream_t stream) {
  constexpr int STAGES = INT4MM_TILE(narrow_64x64, STAGES);
  typedef Tile<2, 8, STAGES, Kind<false, false>, false, false, true, true> T;
  static_assert(T::BM == INT4MM_TILE(narrow_64x64, M) && T::BN == INT4MM_TILE(narrow_64x64, N), "another tile");
  return for_kind(problem, [&](auto kind) {
    typedef decltype(kind) K;
    constexpr int STAGES_A = K::INT8_A ? 6 : 8, STAGES_8 = K::INT8_A ? 6 : STAGES;
    if constexpr (K::AFFINE) {
      return cudaErrorNotSupported;
    } else {
      if constexpr (!K::ZEROS)
        if (problem->K >= INT4MM_WIDE_K)
          return launch_wide<2, STAGES_A, STAGES_8, Kind<K::INT8_A, false, true>>(problem, plan, stream);
      return launch_layout<2, STAGES_A, STAGES_8>(problem, kind, plan, stream);
    }
  });
}
