/*
 * Large M on Hopper (sm_90a): persistent CTAs, each computing BM x BN tiles with specialised warpgroups (the scheme of
 * CUTLASS's warp-specialised persistent kernels).
 *
 *     producers   a thread each: bulk tensor copies of packed A [BM, 16 words] and packed B [16 words, BN] into rings
 *     unpackers   packed B -> int8
 *     consumers   packed A -> int8 fragments in registers, wgmma, epilogue straight from registers
 *
 *   global --copy--> packed A ring ---------------------(registers)--> wgmma --> epilogue --> global
 *   global --copy--> packed B ring --> unpackers --> int8 B ring ------> |
 *
 * What bounds it is shared memory (128 bytes a clock): per step and 256 x 128 tile, 1024 clocks of wgmma, 64 KB are
 * read by wgmma, 32 KB are packed A in and out, 16 KB packed B in and out, 16 KB int8 B in. Smaller tiles pay more per
 * product and are for shapes that would leave SMs idle; see also narrow.cu.
 *
 * Several teams unpack at a time, since the way of a step through shared memory and the fence takes longer than its
 * products.
 */
#include "sm90/hopper.cuh"

namespace {

/* CONSUMERS warpgroups of BLOCKS 64-row blocks each; UNPACKERS warpgroups; depths of the rings of packed A, packed B
 * and int8 B. */
template <int CONSUMERS_, int BLOCKS_, int UNPACKERS_, int STAGES_A_, int STAGES_B_, int STAGES_8_> struct Tile {
  static constexpr int CONSUMERS = CONSUMERS_, BLOCKS = BLOCKS_, UNPACKERS = UNPACKERS_;
  static constexpr int STAGES_A = STAGES_A_, STAGES_B = STAGES_B_, STAGES_8 = STAGES_8_;
  static constexpr int BM = 64 * CONSUMERS * BLOCKS, BN = 128, LANES = 32, QUADS = 4, LOWERS = 2, TURNS = 1,
                       BUFFERS = 2, UNPACKED = 2;
  static constexpr bool WIDE = false;
  static constexpr int THREADS = 128 * (1 + UNPACKERS + CONSUMERS);

  /* Unpacking warps that share a step, and teams of them, each busy with a step of its own. */
  static constexpr int TEAM = 2, TEAMS = 4 * UNPACKERS / TEAM;
  /* A team may wait for a slot's next round only if it has itself seen the one before, which may arrive later than its
   * neighbours: the parity of a barrier tells a round only from the next. */
  static_assert(STAGES_B % TEAMS == 0 && STAGES_8 >= TEAMS, "teams must come back to the slots they know");

  static constexpr int A_BYTES = BM * STEP_WORDS * 4, B_BYTES = BN * STEP_WORDS * 4, B8_BYTES = BN * STEP_K;
  static constexpr int A_OFFSET = STAGES_8 * B8_BYTES, B_OFFSET = A_OFFSET + STAGES_A * A_BYTES,
                       BARRIER_OFFSET = B_OFFSET + STAGES_B * B_BYTES, BARRIERS = 2 * (STAGES_A + STAGES_B + STAGES_8),
                       SHARED_BYTES = BARRIER_OFFSET + 8 * BARRIERS;
  static_assert(SHARED_BYTES <= SHARED_LIMIT, "too much shared memory");

  /* Registers per thread: what the launch gives, shared out by setmaxnreg. */
  static constexpr int LAUNCH_REGISTERS = 65536 / THREADS / 8 * 8;
  static constexpr int PRODUCER_REGISTERS = 24, UNPACKER_REGISTERS = BLOCKS == 2 ? 56 : 72;
  static constexpr int LEFT = LAUNCH_REGISTERS * THREADS / 128 - PRODUCER_REGISTERS - UNPACKERS * UNPACKER_REGISTERS;
  static constexpr int CONSUMER_REGISTERS = LEFT / CONSUMERS / 8 * 8;
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
  __device__ __forceinline__ void release_a(int slot) const { ptx::barrier_arrive(empty_a(slot)); }
  __device__ __forceinline__ void release_b8(int slot) const { ptx::barrier_arrive(empty_b8(slot)); }

  __device__ __forceinline__ int arrivals(int i) const {
    constexpr int FULL_B = 2 * T::STAGES_A, EMPTY_B = FULL_B + T::STAGES_B, EMPTY_8 = T::BARRIERS - T::STAGES_8;
    if (i < T::STAGES_A || (i >= FULL_B && i < EMPTY_B)) return 1; /* a producer, besides bytes */
    return i < FULL_B || i >= EMPTY_8 ? 128 * T::CONSUMERS : 32 * T::TEAM;
  }
};

/* The CTA's share of the work: tiles first, first + stride, ..., of so many steps each. */
struct Work {
  int first, stride, tiles, steps;
  __device__ __forceinline__ explicit Work(const Arguments &p)
      : first(blockIdx.x), stride(gridDim.x), tiles(p.tiles_m * p.tiles_n),
        steps((p.words + STEP_WORDS - 1) / STEP_WORDS) {}
};

/* Tiles are walked in bands of 8 tile rows, down a band's columns, so that the CTAs of a wave share operands in L2. */
constexpr int BAND = 8;

__device__ __forceinline__ Position position(int tile, const Arguments &p) {
  int band = tile / (BAND * p.tiles_n), rows = min(p.tiles_m - band * BAND, BAND), i = tile % (BAND * p.tiles_n);
  return {band * BAND + i % rows, i / rows};
}

/* ---- producers ---- */

/* Walks a ring of STAGES slots through the CTA's steps; load(ring, position, step) fills a slot. One thread for each
 * operand, since B runs ahead of A by the steps that lie unpacked. */
template <int STAGES, class Load> __device__ __forceinline__ void produce(const Arguments &p, Load load) {
  Ring<STAGES> ring;
  Work work(p);
  for (int tile = work.first; tile < work.tiles; tile += work.stride) {
    Position at = position(tile, p);
#pragma unroll 1
    for (int step = 0; step < work.steps; step++, ring.next()) load(ring, at, step);
  }
}

template <class T>
__device__ __forceinline__ void produce_a(const Shared<T> &shared, const CUtensorMap *map, const Arguments &p) {
  int patience = 16; /* with which A's second step waits for B's first, which has farther to go. It must not wait for
                      * ever: B's barrier may be phases further on */
  produce<T::STAGES_A>(p, [&](const Ring<T::STAGES_A> &ring, const Position &at, int step) {
    ptx::barrier_wait(shared.empty_a(ring.slot), ring.parity ^ 1);
    for (; step == 1 && patience > 0; patience--)
      if (ptx::barrier_try_wait(shared.full_b(0), 0)) patience = 1; /* the last try */
    ptx::barrier_expect(shared.full_a(ring.slot), p.box_rows * STEP_WORDS * 4);
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

/* Asks L2 for B of the first steps, one CTA for each column of a band: all at once for the same lines would take longer
 * than it saves. It reads nothing, so it need not wait for the kernels before this one. */
template <class T> __device__ __forceinline__ void prefetch_b(const CUtensorMap *map, const Arguments &p) {
  Position at = position(blockIdx.x, p);
  if (at.m % BAND) return;
  for (int step = 0; step < 4; step++) ptx::tensor_prefetch_2d(map, at.n * T::BN, step * STEP_WORDS);
}

/* ---- unpackers ---- */

/* A lane's words of a slice: of its four columns, rows 4t + slice of the step's 16. Rows past K come as zero words,
 * which mean -8 in the offset encoding: `xor_mask` puts 0 there, and zero times whatever the tail of A holds is zero.
 */
template <class T>
__device__ __forceinline__ void load_slice(uint4 (&words)[4], uint32_t from, int slice, int valid, uint32_t xor_mask) {
  uint32_t at = from + (slice * T::BN + threadIdx.x % T::LANES * 4) * 4;
#pragma unroll
  for (int t = 0; t < 4; t++) words[t] = ptx::load_shared4(at + t * 16 * T::BN);
  if (valid < STEP_WORDS && xor_mask) {
#pragma unroll
    for (int t = 0; t < 4; t++)
      if (4 * t + slice >= valid) words[t] = make_uint4(xor_mask, xor_mask, xor_mask, xor_mask);
  }
}

/* `warp` counts the unpacking warps. A team of TEAM warps takes a step, so that several steps are under way at a time.
 * The fence comes after the next step's unpacking has begun, when the stores have had time to land. */
template <class T> __device__ __forceinline__ void unpack_b(const Shared<T> &shared, const Arguments &p, int warp) {
  constexpr int SHARE = SLICES / T::TEAM; /* slices of a warp */
  Work work(p);
  int team = warp / T::TEAM, first_slice = warp % T::TEAM * SHARE;
  int left = work.first < work.tiles ? ((work.tiles - 1 - work.first) / work.stride + 1) * work.steps - team : 0;
  int step = team; /* within its tile */
  Ring<T::STAGES_B> packed;
  Ring<T::STAGES_8> wide;
  packed.next(team), wide.next(team);
  Unpacker<T::WIDE> unpacker(p.xor_b);
  int stored = -1;   /* slot that was filled and is not announced yet */
  bool fresh = true; /* the first step is waited for: it is announced at once */
  auto announce = [&] {
    ptx::fence_async_shared();
    ptx::barrier_arrive(shared.full_b8(stored));
  };

#pragma unroll 1
  for (; left > 0; left -= T::TEAMS, step += T::TEAMS) {
    while (step >= work.steps) step -= work.steps;
    int valid = p.words - step * STEP_WORDS;
    uint4 words[4];
    ptx::barrier_wait(shared.full_b(packed.slot), packed.parity);
    load_slice<T>(words, shared.b(packed.slot), first_slice, valid, p.xor_b);
#pragma unroll
    for (int i = 0; i < SHARE; i++)
#pragma unroll
      for (int column = 0; column < 4; column += T::UNPACKED) {
        Unpacked<T> unpacked(unpacker, words, column);
        if (column + T::UNPACKED == 4 && i + 1 < SHARE)
          load_slice<T>(words, shared.b(packed.slot), first_slice + i + 1, valid, p.xor_b);
        if (i + column == 0) {
          if (stored >= 0) announce();
          ptx::barrier_wait(shared.empty_b8(wide.slot), wide.parity ^ 1);
        }
        unpacked.store(shared.b8(wide.slot), first_slice + i, column);
      }
    ptx::barrier_arrive(shared.empty_b(packed.slot)); /* only now: its words have been used */
    stored = wide.slot;
    if (fresh) announce(), stored = -1, fresh = false;
    packed.next(T::TEAMS), wide.next(T::TEAMS);
  }
  if (stored >= 0) announce();
}

/* ---- consumers ---- */

template <class T> __device__ __forceinline__ void consume(const Shared<T> &shared, const Arguments &p, int index) {
  int row_in_tile = index * T::BLOCKS * 64 + row_in_block();
  Consumer<T, Shared<T>> consumer(shared, p, row_in_tile);
  Work work(p);
  /* One consumer lets the other go ahead where that costs no products, so that they do not store at the same time. */
  constexpr int LAG = 2;
  if (T::BLOCKS == 1 && index == 1 && work.steps > LAG) ptx::barrier_wait(shared.full_b8(LAG), 0);
  for (int tile = work.first; tile < work.tiles; tile += work.stride) {
    Scales<T> scales;
    consumer.tile(work.steps, [&] {
      Position at = position(tile, p);
      scales.load(p, at, at.m * T::BM + row_in_tile);
    });
    Position at = position(tile, p); /* once more: registers are few in the loop */
    epilogue<T>(p, at, at.m * T::BM + row_in_tile, scales, consumer.acc, [](int) { return true; });
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
  init_barriers<T>(shared);
  if (threadIdx.x == 32) ptx::prefetch_tensor_map(&map_a), ptx::prefetch_tensor_map(&map_b);
  __syncthreads();
  ptx::allow_next_grid();
  if (threadIdx.x == 64) prefetch_b<T>(&map_b, p);
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
#endif
}

template <class T> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  static std::atomic<uint64_t> allowed{0};
  cudaError_t error = int4mm_allow_shared(plan->device, (const void *)hopper<T>, allowed);
  if (error != cudaSuccess) return error;
  CUtensorMap map_a, map_b;
  Arguments p = make_arguments(problem, plan);
  int64_t words = problem->K / 8;
  error = map_words(&map_a, problem->a.words, problem->M, words, problem->a.stride, p.box_rows, STEP_WORDS);
  if (error != cudaSuccess) return error;
  error = map_words(&map_b, problem->b.words, words, problem->N, problem->b.stride, STEP_WORDS, T::BN);
  if (error != cudaSuccess) return error;
  return int4mm_launch(plan->device, hopper<T>, dim3(plan->ctas), T::THREADS, T::SHARED_BYTES, 1, stream, map_a, map_b,
                       p);
}

} // namespace

extern "C" cudaError_t int4mm_launch_hopper(const int4mm_problem *problem, const int4mm_plan *plan,
                                            cudaStream_t stream) {
  if (problem->K >= INT4MM_WIDE_K || plan->tile_n != 128) return cudaErrorNotSupported;
  if (plan->tile_m == 256) return launch<Tile<2, 2, 1, 6, 4, 6>>(problem, plan, stream);
  if (plan->tile_m == 128) return launch<Tile<2, 1, 2, 6, 8, 7>>(problem, plan, stream);
  return cudaErrorNotSupported;
}
