/*
 * Middling M and small squares on Hopper (sm_90a): a CTA for each narrow tile, in which everything serves to be done
 * soon. See hopper.cuh for what it shares with hopper.cu.
 *
 *   global --copy--> packed A ring ------------(registers)--> wgmma --> epilogue --> global
 *   global --(registers)--> unpackers --> int8 B ring ------> |
 *
 * A CTA takes half of an SM: two of them hide each other's latencies, and where the tiles of a call take no more than
 * one place on each SM the next call's CTAs start in the other while this one's end.
 *
 * Packed B comes straight to the registers of the warps that unpack it: shared memory is what bounds narrow tiles, and
 * so holds it once, not twice. A needs no producer: its ring is longer than that of int8 B, so that an unpacker that
 * has found a slot of B free again knows that a slot of A is, and asks for the step that goes there.
 *
 * The two consumer warpgroups of a 128 x 64 tile have its upper and its lower rows. A 64 x 64 tile's products of a step
 * are fewer clocks than what is around them, waiting, unpacking A, issuing: there they take turns, each with every
 * other step of the whole tile, and add their sums at the end.
 *
 * Where tiles are few, a cluster of two CTAs shares a tile's K. Each adds its peer's sums of half the columns, which
 * come through distributed shared memory: exact, so the order does not matter, and with no workspace.
 */
#include "sm90/hopper.cuh"

namespace {

/* TURNS that the consumers take, 1 or 2; depths of the rings of packed A and int8 B. */
template <int TURNS_, int STAGES_A_, int STAGES_8_, bool WIDE_> struct Tile {
  static constexpr int TURNS = TURNS_, STAGES_A = STAGES_A_, STAGES_8 = STAGES_8_;
  static constexpr bool WIDE = WIDE_;
  static constexpr int CONSUMERS = 2, UNPACKERS = 2, THREADS = 128 * (UNPACKERS + CONSUMERS);
  static constexpr int BLOCKS = 1, BM = 64 * CONSUMERS / TURNS, BN = 64, LANES = BN / 4, QUADS = BN / 32;
  static constexpr int LOWERS = CONSUMERS / TURNS, BUFFERS = 1, UNPACKED = 1;

  /* Unpacking warps that share a step, and teams of them, each busy with a step of its own. A warp unpacks two slices
   * at once, which makes a step of two warps. */
  static constexpr int TEAM = 2, TEAMS = 4 * UNPACKERS / TEAM;
  /* Turns before its last at which a team lets the next grid's CTAs come. Sooner, the grid after it would come as well;
   * later, this one's CTAs leave while they come, and they crowd on the SMs that are free first. */
  static constexpr int TURNS_LEFT = 3;
  /* The parity of a barrier tells a round only from the next, so a consumer comes back to the slots that it knows; and
   * a team has seen the consumer of its slot finish a later step than the slot's last but one. */
  static_assert(STAGES_A % TURNS == 0 && STAGES_8 % TURNS == 0 && STAGES_8 >= TEAMS, "rounds would be mistaken");
  static constexpr int AHEAD = STAGES_A - STAGES_8;
  static_assert(AHEAD > 0, "A has to be there before B is unpacked");

  static constexpr int A_BYTES = BM * STEP_WORDS * 4, B8_BYTES = BN * STEP_K;
  static constexpr int HALF_BYTES = BM * BN * 2; /* half a tile's sums: what a consumer or a CTA gives away */
  static constexpr int A_OFFSET = STAGES_8 * B8_BYTES, PEER_OFFSET = A_OFFSET + STAGES_A * A_BYTES,
                       BARRIER_OFFSET = PEER_OFFSET + HALF_BYTES, BARRIERS = STAGES_A + 2 * STAGES_8 + 1,
                       SHARED_BYTES = BARRIER_OFFSET + 8 * BARRIERS;
  static_assert(2 * (SHARED_BYTES + 1024) <= SHARED_LIMIT + 1024, "an SM has no room for two CTAs");
  static_assert(2 * HALF_BYTES <= PEER_OFFSET, "sums must fit where the rings were");

  static constexpr int UNPACKER_REGISTERS = 48, CONSUMER_REGISTERS = 80; /* 64 on average */
};

template <class T> struct Shared {
  uint32_t base;
  __device__ __forceinline__ uint32_t b8(int slot) const { return base + slot * T::B8_BYTES; }
  __device__ __forceinline__ uint32_t a(int slot) const { return base + T::A_OFFSET + slot * T::A_BYTES; }
  __device__ __forceinline__ uint32_t peer() const { return base + T::PEER_OFFSET; }
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + T::BARRIER_OFFSET + 8 * i; }
  __device__ __forceinline__ uint32_t full_a(int slot) const { return barrier(slot); }
  __device__ __forceinline__ uint32_t full_b8(int slot) const { return barrier(T::STAGES_A + slot); }
  __device__ __forceinline__ uint32_t empty_b8(int slot) const { return barrier(T::STAGES_A + T::STAGES_8 + slot); }
  __device__ __forceinline__ uint32_t full_peer() const { return barrier(T::STAGES_A + 2 * T::STAGES_8); }
  __device__ __forceinline__ void release_a(int) const {} /* a slot of A is free when that of B is */
  __device__ __forceinline__ void release_b8(int slot) const { ptx::barrier_arrive(empty_b8(slot)); }

  __device__ __forceinline__ int arrivals(int i) const {
    constexpr int EMPTY_8 = T::STAGES_A + T::STAGES_8, PEER = EMPTY_8 + T::STAGES_8;
    if (i < T::STAGES_A || i == PEER) return 1; /* who asks for the bytes */
    return i < EMPTY_8 ? 32 * T::TEAM : 128 * T::CONSUMERS / T::TURNS;
  }
};

/* The CTA's tile, and its share of the tile's steps: `count` from `begin` on. The grid is the tiles, with the CTAs of a
 * pair side by side. The last tile along M lies at the end of A, over its neighbour, so that no rows outside A have to
 * be filled with zeros, which takes longer than bringing rows. What both tiles compute is the same, bit for bit. */
template <class T> struct Work {
  int rank, begin, count;
  int first_row;
  Position at;
  __device__ __forceinline__ explicit Work(const Arguments &p)
      : rank(blockIdx.x & (p.split - 1)), at{(int)blockIdx.x >> (p.split - 1), (int)blockIdx.y} {
    first_row = min(at.m * T::BM, p.M - p.box_rows);
    int steps = (p.words + STEP_WORDS - 1) / STEP_WORDS, first = p.split == 2 ? (steps + 1) / 2 : steps;
    begin = rank ? first : 0, count = rank ? steps - first : first;
  }
};

/* Asks for packed A of a step of this CTA. One thread calls it. */
template <class T>
__device__ __forceinline__ void copy_a(const Shared<T> &shared, const CUtensorMap *map, const Arguments &p,
                                       const Work<T> &work, int step) {
  int slot = step % T::STAGES_A;
  ptx::barrier_expect(shared.full_a(slot), p.box_rows * STEP_WORDS * 4);
  ptx::tensor_load_2d(shared.a(slot), map, (work.begin + step) * STEP_WORDS, work.first_row, shared.full_a(slot));
}

/* ---- unpackers ---- */

/* The packed words of B that a lane unpacks of a step: four neighbouring columns of four words. */
struct PackedB {
  const uint32_t *from; /* the first of them */
  int rows;             /* of B that there are from there on; 0 for columns outside */
  uint4 words[4];

  /* Asks L2 for what load() will want, a lane for each line of 128 bytes. It reads nothing, so it need not wait for the
   * kernels before this one. */
  __device__ __forceinline__ void prefetch(const Arguments &p) const {
#pragma unroll
    for (int t = 0; t < 4; t++)
      if (threadIdx.x % 8 == 0 && 4 * t < rows) ptx::prefetch_l2(from + 4 * t * p.ldb);
  }

  /* Rows past K are zeros: whatever the tail of A holds then does not count. */
  __device__ __forceinline__ void load(const Arguments &p) {
#pragma unroll
    for (int t = 0; t < 4; t++)
      words[t] =
          4 * t < rows ? ptx::load_global4(from + 4 * t * p.ldb) : make_uint4(p.xor_b, p.xor_b, p.xor_b, p.xor_b);
  }
};

/* `warp` counts the unpacking warps. A team of TEAM warps takes a step, so that several steps are under way at a time,
 * and asks for its next one before it stores this. */
template <class T>
__device__ __forceinline__ void unpack_b(const Shared<T> &shared, const CUtensorMap *map_a, const Arguments &p,
                                         const Work<T> &work, int warp) {
  int team = warp / T::TEAM, slice = warp % T::TEAM * 2 + threadIdx.x % 32 / T::LANES;
  int word = (work.begin + team) * STEP_WORDS + slice, n = work.at.n * T::BN + threadIdx.x % T::LANES * 4;
  Ring<T::STAGES_8> ring;
  ring.next(team);
  Unpacker<T::WIDE> unpacker(p.xor_b);
  PackedB b = {p.b + word * p.ldb + n, n < p.N ? p.words - word : 0};
  b.prefetch(p);
  ptx::wait_for_prior_grids();
  b.load(p);
#pragma unroll 1
  for (int step = team; step < work.count; step += T::TEAMS) {
    if (step + T::TURNS_LEFT * T::TEAMS >= work.count) ptx::allow_next_grid();
    b.from += T::TEAMS * STEP_WORDS * p.ldb, b.rows -= T::TEAMS * STEP_WORDS;
#pragma unroll
    for (int column = 0; column < 4; column += T::UNPACKED) {
      Unpacked<T> unpacked(unpacker, b.words, column);
      if (column + T::UNPACKED == 4) b.load(p);
      if (column == 0) {
        ptx::barrier_wait(shared.empty_b8(ring.slot), ring.parity ^ 1);
        if (threadIdx.x % (32 * T::TEAM) == 0 && step >= T::STAGES_8 && step + T::AHEAD < work.count)
          copy_a(shared, map_a, p, work, step + T::AHEAD);
        __syncwarp();
      }
      unpacked.store(shared.b8(ring.slot), slice, column);
    }
    ptx::fence_async_shared();
    ptx::barrier_arrive(shared.full_b8(ring.slot));
    ring.next(T::TEAMS);
  }
}

/* ---- consumers ---- */

/* Of the two rows that a thread has, consumer 0 finishes the first and consumer 1 the second: they give each other
 * their sums of the others, where the rings were. What a thread ends up with lies in acc as lower = 0. */
template <class T>
__device__ __forceinline__ void add_consumers(const Shared<T> &shared, int index,
                                              int32_t (&acc)[T::BLOCKS][T::BN / 2]) {
  uint32_t mine = shared.base + index * T::HALF_BYTES + threadIdx.x % 128 * 16;
  uint32_t others = shared.base + (index ^ 1) * T::HALF_BYTES + threadIdx.x % 128 * 16;
  ptx::named_barrier_sync(1, 256); /* both are done with the rings */
#pragma unroll
  for (int i = 0; i < T::BN / 16; i++) {
    const int32_t *s = &acc[0][i * 8];
    ptx::store_shared4(others + i * 2048, index ? s[0] : s[2], index ? s[1] : s[3], index ? s[4] : s[6],
                       index ? s[5] : s[7]);
  }
  ptx::named_barrier_sync(1, 256);
#pragma unroll
  for (int i = 0; i < T::BN / 16; i++) {
    int32_t *s = &acc[0][i * 8];
    uint4 x = ptx::load_shared4(mine + i * 2048);
    s[0] = (index ? s[2] : s[0]) + (int32_t)x.x, s[1] = (index ? s[3] : s[1]) + (int32_t)x.y;
    s[4] = (index ? s[6] : s[4]) + (int32_t)x.z, s[5] = (index ? s[7] : s[5]) + (int32_t)x.w;
  }
}

/* The same between the CTAs of a pair: that of rank 0 finishes the even spans of 32 columns, its peer the odd ones. In
 * acc these are the even and the odd of its groups of four. */
template <class T>
__device__ __forceinline__ void add_peer(const Shared<T> &shared, int index, int rank,
                                         int32_t (&acc)[T::BLOCKS][T::BN / 2]) {
  constexpr int UNITS = T::BN / 32 * T::LOWERS;
  uint32_t mine = shared.peer() + (index * 128 + threadIdx.x % 128) * 16, others = ptx::map_shared(mine, rank ^ 1);
  uint32_t full = ptx::map_shared(shared.full_peer(), rank ^ 1);
  ptx::cluster_wait(); /* the peer has set up its barrier */
  if (index == 0 && threadIdx.x % 128 == 0) ptx::barrier_expect(shared.full_peer(), T::HALF_BYTES);
#pragma unroll
  for (int i = 0; i < UNITS; i++) {
    const int32_t *s = &acc[0][i / T::LOWERS * 16 + i % T::LOWERS * 2];
    ptx::store_async4(others + i * 4096, full, rank ? s[0] : s[4], rank ? s[1] : s[5], rank ? s[8] : s[12],
                      rank ? s[9] : s[13]);
  }
  ptx::barrier_wait(shared.full_peer(), 0);
#pragma unroll
  for (int i = 0; i < UNITS; i++) {
    int32_t *s = &acc[0][i / T::LOWERS * 16 + i % T::LOWERS * 2];
    uint4 x = ptx::load_shared4(mine + i * 4096);
    if (rank == 0)
      s[0] += (int32_t)x.x, s[1] += (int32_t)x.y, s[8] += (int32_t)x.z, s[9] += (int32_t)x.w;
    else
      s[4] += (int32_t)x.x, s[5] += (int32_t)x.y, s[12] += (int32_t)x.z, s[13] += (int32_t)x.w;
  }
}

template <class T>
__device__ __forceinline__ void consume(const Shared<T> &shared, const CUtensorMap *map_a, const Arguments &p,
                                        const Work<T> &work, int index) {
  ptx::wait_for_prior_grids();
  if (threadIdx.x % 128 == 0) /* the first copies of A */
    for (int step = index; step < min(T::STAGES_A, work.count); step += 2) copy_a(shared, map_a, p, work, step);
  __syncwarp();
  int turn = T::TURNS == 2 ? index : 0;
  int row_in_tile = (T::TURNS == 2 ? 0 : index * 64) + row_in_block();
  int first_row = work.first_row + row_in_tile + turn * 8;
  Consumer<T, Shared<T>> consumer(shared, p, row_in_tile);
  consumer.ring_a.next(turn), consumer.ring_b8.next(turn);
  Scales<T> scales;
  if (turn < work.count) {
    consumer.tile((work.count - turn + T::TURNS - 1) / T::TURNS, [&] { scales.load(p, work.at, first_row); });
  } else { /* a single step */
    scales.load(p, work.at, first_row);
#pragma unroll
    for (int i = 0; i < T::BN / 2; i++) consumer.acc[0][i] = 0;
  }
  if (T::TURNS == 2) add_consumers<T>(shared, index, consumer.acc);
  if (p.split == 2) add_peer<T>(shared, index, work.rank, consumer.acc);
  epilogue<T>(p, work.at, first_row, scales, consumer.acc,
              [&](int quad) { return p.split == 1 || quad % 2 == work.rank; });
}

/* ---- the kernel ---- */

template <class T>
__global__ void __launch_bounds__(T::THREADS, 2)
    narrow(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ Arguments p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared<T> shared{ptx::shared_address(memory)};
  Work<T> work(p);
  init_barriers<T>(shared);
  if (threadIdx.x == 64) ptx::prefetch_tensor_map(&map_a);
  __syncthreads();
  if (p.split == 2) ptx::cluster_arrive();
  int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* tells the compiler that a warp agrees on it */
  if (group < T::UNPACKERS) {
    ptx::shrink_registers<T::UNPACKER_REGISTERS>();
    unpack_b<T>(shared, &map_a, p, work, __shfl_sync(0xffffffffu, threadIdx.x / 32, 0));
    if (p.split == 2) ptx::cluster_wait();
  } else {
    ptx::grow_registers<T::CONSUMER_REGISTERS>();
    consume<T>(shared, &map_a, p, work, group - T::UNPACKERS);
  }
#endif
}

template <class T> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  static std::atomic<uint64_t> allowed{0};
  cudaError_t error = int4mm_allow_shared(plan->device, (const void *)narrow<T>, allowed);
  if (error != cudaSuccess) return error;
  CUtensorMap map_a;
  Arguments p = make_arguments(problem, plan);
  error = map_words(&map_a, problem->a.words, problem->M, problem->K / 8, problem->a.stride, p.box_rows, STEP_WORDS);
  if (error != cudaSuccess) return error;
  return int4mm_launch(plan->device, narrow<T>, dim3(p.tiles_m * p.split, p.tiles_n), T::THREADS, T::SHARED_BYTES,
                       p.split, stream, map_a, p);
}

} // namespace

extern "C" cudaError_t int4mm_launch_narrow(const int4mm_problem *problem, const int4mm_plan *plan,
                                            cudaStream_t stream) {
  if (plan->tile_n != 64) return cudaErrorNotSupported;
  if (plan->tile_m == 64 && problem->K >= INT4MM_WIDE_K) return launch<Tile<2, 8, 6, true>>(problem, plan, stream);
  if (plan->tile_m == 64) return launch<Tile<2, 8, 6, false>>(problem, plan, stream);
  if (plan->tile_m == 128 && problem->K < INT4MM_WIDE_K) return launch<Tile<1, 7, 5, false>>(problem, plan, stream);
  return cudaErrorNotSupported;
}
