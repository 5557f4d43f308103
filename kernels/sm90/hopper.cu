/*
 * hopper: large M on Hopper (sm_90a). Persistent CTAs, each computing BM x BN tiles with specialised warpgroups (the
 * scheme of CUTLASS's warp-specialised persistent kernels).
 *
 *     producers   a thread for each tensor map: bulk tensor copies of packed A [BM, 16 words] and packed B [16 words,
 * BN] unpackers   packed B -> int8 consumers   packed A -> int8 fragments in registers, wgmma, epilogue straight from
 * registers
 *
 *   global --copy--> packed A stages ---------------------(registers)--> wgmma --> epilogue --> global
 *   global --copy--> packed B stages --> unpackers --> int8 B stages ------> |
 *
 * What bounds it is shared memory (128 bytes a clock): per k-block and 256 x 128 tile, 1024 clocks of wgmma, 64 KB are
 * read by wgmma, 32 KB are packed A in and out, 16 KB packed B in and out, 16 KB int8 B in. Smaller tiles pay more per
 * product and are for shapes that would leave SMs idle; see also narrow.cu.
 *
 * Several k-blocks are unpacked at a time, since the way of one through shared memory and the fence takes longer than
 * its products.
 *
 * Where tiles are few, a cluster of two CTAs splits a tile's K (split_k.cuh). The sums that a consumer gets lie where
 * its rows of packed A were: it tells its peer when it has loaded the last of these, while its last products are in
 * flight.
 */
#include "sm90/hopper_b.cuh"
#include "sm90/mainloop.cuh"
#include "sm90/split_k.cuh"
#include "sm90/tile_epilogue.cuh"
#include "sm90/tile_scheduler.cuh"
#include "sm90/words_b.cuh"

namespace {

/* CONSUMERS warpgroups of ROW_BLOCKS 64-row blocks each; UNPACKERS warpgroups; depths of the pipelines of int4 A (and
 * where rows of B do not start on 16 bytes, which takes more shared memory; of int8 A half as deep), packed B and int8
 * B; what A and B are; with activation and residual or not; how B and out lie; a grouped product. */
template <int CONSUMERS_, int ROW_BLOCKS_, int UNPACKERS_, int STAGES_A_, int SHIFTED_STAGES_A_, int STAGES_B_,
          int STAGES_8_, class Kind_, bool LAYER_, bool NK_, bool ALIGNED_, bool OUT_ALIGNED_, bool EXPERTS_ = false>
struct Tile {
  typedef Kind_ Kind;
  static constexpr bool NK = NK_, ALIGNED = ALIGNED_, OUT_ALIGNED = OUT_ALIGNED_, EXPERTS = EXPERTS_;
  static constexpr int MAPS_B = ALIGNED && !NK ? 1 : 4;
  /* Two k-blocks of B in a copy, where a tile has an even number of them: whole lines, with which 512 x 4096 x 4096
   * takes 15.6 us on an H100, for 16.1. Factors come for each stage. */
  static constexpr bool B_LINES = NK && ALIGNED && !Kind::AFFINE;
  /* B comes straight to registers, word by word: on an H100, 512 x 4104 x 4096 takes 20.1 us, for 24.3 by copies. With
   * fewer unpackers, 1024 rows take 32.9, for 31.4. */
  static constexpr bool WORDS_B = NK && !ALIGNED && !Kind::AFFINE && UNPACKERS_ == 2;
  static constexpr int CONSUMERS = CONSUMERS_, ROW_BLOCKS = ROW_BLOCKS_, UNPACKERS = UNPACKERS_;
  static constexpr int STAGES_A = (ALIGNED_ ? STAGES_A_ : SHIFTED_STAGES_A_) / (Kind::INT8_A ? 2 : 1),
                       STAGES_B = STAGES_B_, STAGES_8 = STAGES_8_ - (Kind::AFFINE && UNPACKERS_ == 2);
  static constexpr int BM = 64 * CONSUMERS * ROW_BLOCKS, BN = 128, UNPACK_LANES = 32, COLUMN_GROUPS = 4,
                       FRAGMENT_ROWS = 2, K_GROUPS = 1, FRAGMENT_BUFFERS = 2, UNPACK_COLUMNS = Kind::AFFINE ? 1 : 2;
  static constexpr int UNROLL = FRAGMENT_BUFFERS / ROW_BLOCKS; /* so that a buffer is known in each copy of the code */
  static constexpr bool LAYER = LAYER_, CALLS = LAYER_ || EXPERTS_,
                        SPLITS = !Kind::AFFINE && !EXPERTS_ && (LAYER_ || OUT_ALIGNED_); /* K */
  static constexpr int THREADS = 128 * (1 + UNPACKERS + CONSUMERS), GROUP_M = 8; /* in which tiles are rasterised */

  /* Unpacking warps that share a k-block, and groups of them, each with a k-block of its own at a time. */
  static constexpr int GROUP_WARPS = 2, UNPACK_GROUPS = 4 * UNPACKERS / GROUP_WARPS;
  /* The phase bit tells a phase only from the next, and the barriers of neighbouring stages may complete in another
   * order. So a group may wait for a phase of a stage only if it has itself seen the one before. */
  static_assert(STAGES_B % UNPACK_GROUPS == 0 && STAGES_8 >= UNPACK_GROUPS, "groups must come back to their stages");

  static constexpr int A_BYTES = BM * Kind::A_ROW_BYTES, B8_BYTES = BN * BLOCK_K;
  /* A box of packed B, its parts by four maps, and their places: a row is four words longer where it may be shifted. */
  static constexpr int ROW_BYTES = (NK ? BLOCK_WORDS : BN) * 4 + (ALIGNED ? 0 : 16), ROWS = NK ? BN : BLOCK_WORDS;
  static constexpr int COPY_BYTES = ROWS * ROW_BYTES, QUARTER_BYTES = (COPY_BYTES / 4 + 127) / 128 * 128,
                       B_BYTES = 4 * QUARTER_BYTES, AFFINE_BYTES = Kind::AFFINE ? UNITS * BN : 0;
  static constexpr int A_OFFSET = STAGES_8 * B8_BYTES, B_OFFSET = A_OFFSET + STAGES_A * A_BYTES,
                       AFFINE_OFFSET = B_OFFSET + STAGES_B * B_BYTES,
                       BARRIER_OFFSET = AFFINE_OFFSET + STAGES_B * AFFINE_BYTES,
                       BARRIERS = 2 * (STAGES_A + STAGES_B + STAGES_8 + (SPLITS ? CONSUMERS : 0)),
                       TABLE_OFFSET = BARRIER_OFFSET + 8 * BARRIERS,
                       SHARED_BYTES = TABLE_OFFSET + (EXPERTS ? TABLE_BYTES : 0);
  static_assert(SHARED_BYTES <= SHARED_LIMIT, "too much shared memory");
  static_assert(BM * BN * 2 <= STAGES_A * A_BYTES, "half of a tile's sums must fit where packed A was");

  /* Registers per thread: what the launch gives, shared out by setmaxnreg. */
  static constexpr int LAUNCH_REGISTERS = 65536 / THREADS / 8 * 8;
  static constexpr int PRODUCER_REGISTERS = 24,
                       UNPACKER_REGISTERS = (ROW_BLOCKS == 2 || Kind::ZEROS ? 56 : 72) +
                                            (!Kind::AFFINE     ? (EXPERTS && ROW_BLOCKS == 2 ? 8 : 0)
                                             : ROW_BLOCKS == 2 ? 16
                                                               : 8);
  static constexpr int LEFT = LAUNCH_REGISTERS * THREADS / 128 - PRODUCER_REGISTERS - UNPACKERS * UNPACKER_REGISTERS;
  static constexpr int CONSUMER_REGISTERS = LEFT / CONSUMERS / 8 * 8;
};

template <class T> struct Shared {
  uint32_t base;
  __device__ __forceinline__ uint32_t b8(int stage) const { return base + stage * T::B8_BYTES; }
  __device__ __forceinline__ uint32_t a(int stage) const { return base + T::A_OFFSET + stage * T::A_BYTES; }
  __device__ __forceinline__ uint32_t b(int stage) const { return base + T::B_OFFSET + stage * T::B_BYTES; }
  /* Factors of a stage of packed B: for each unit a byte for each column, as the unpackers' lanes take them. */
  __device__ __forceinline__ uint32_t affine(int stage) const {
    return base + T::AFFINE_OFFSET + stage * T::AFFINE_BYTES;
  }
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + T::BARRIER_OFFSET + 8 * i; }
  __device__ __forceinline__ uint32_t full_a(int stage) const { return barrier(stage); }
  __device__ __forceinline__ uint32_t empty_a(int stage) const { return barrier(T::STAGES_A + stage); }
  __device__ __forceinline__ uint32_t full_b(int stage) const { return barrier(2 * T::STAGES_A + stage); }
  __device__ __forceinline__ uint32_t empty_b(int stage) const {
    return barrier(2 * T::STAGES_A + T::STAGES_B + stage);
  }
  __device__ __forceinline__ uint32_t full_b8(int stage) const {
    return barrier(2 * (T::STAGES_A + T::STAGES_B) + stage);
  }
  __device__ __forceinline__ uint32_t empty_b8(int stage) const {
    return barrier(2 * (T::STAGES_A + T::STAGES_B) + T::STAGES_8 + stage);
  }
  /* The peer's sums lie where the same consumer's rows of packed A were. */
  __device__ __forceinline__ uint32_t peer(int consumer, int unit) const {
    constexpr int ROWS_BYTES = T::A_BYTES / T::CONSUMERS, UNITS = ROWS_BYTES / 2048;
    return a(unit / UNITS) + consumer * ROWS_BYTES + unit % UNITS * 2048;
  }
  __device__ __forceinline__ uint32_t full_peer(int consumer) const {
    return barrier(T::BARRIERS - 2 * T::CONSUMERS + consumer);
  }
  __device__ __forceinline__ uint32_t empty_peer(int consumer) const { /* the peer has room */
    return barrier(T::BARRIERS - T::CONSUMERS + consumer);
  }
  __device__ __forceinline__ void release_a(int stage) const { ptx::mbarrier_arrive(empty_a(stage)); }
  __device__ __forceinline__ void release_b8(int stage) const { ptx::mbarrier_arrive(empty_b8(stage)); }

  __device__ __forceinline__ int arrivals(int i) const {
    constexpr int FULL_B = 2 * T::STAGES_A, EMPTY_B = FULL_B + T::STAGES_B, FULL_8 = EMPTY_B + T::STAGES_B,
                  EMPTY_8 = FULL_8 + T::STAGES_8, PEER = EMPTY_8 + T::STAGES_8;
    if (i >= PEER) return i < PEER + T::CONSUMERS ? 1 : 4; /* who waits for sums, besides bytes; warps */
    if (i < T::STAGES_A) return 1;                         /* a producer, besides bytes */
    if (i >= FULL_B && i < EMPTY_B) return T::Kind::AFFINE ? 1 + 32 : 1;
    return i < FULL_B || i >= EMPTY_8 ? 128 * T::CONSUMERS : 32 * T::GROUP_WARPS;
  }
};

/* CTAs that share a tile's K. */
template <class T> __device__ __forceinline__ int split_of(const Arguments &p) {
  return T::SPLITS ? p.split : 1;
}

/* The CTA's tiles, first, first + stride, ..., and its share of the k-blocks of each. A pair of CTAs has one tile. */
template <class T> struct TileScheduler : ShareOfK {
  int first, stride;
  __device__ __forceinline__ explicit TileScheduler(const Arguments &p)
      : ShareOfK(p, split_of<T>(p)), first(blockIdx.x >> (split_of<T>(p) - 1)),
        stride(gridDim.x >> (split_of<T>(p) - 1)) {}
};

/* ---- producers ---- */

/* Walks a pipeline of STAGES through the CTA's k-blocks; load(state, at, k_block) fills a stage. One thread for each
 * map of an operand; and threads for each operand, since B runs ahead of A by the k-blocks that lie unpacked. */
template <class T, int STAGES, class Load> __device__ __forceinline__ void produce(const Arguments &p, Load load) {
  PipelineState<STAGES> state;
  TileScheduler<T> scheduler(p);
  for (int tile = scheduler.first; tile < count_tiles<T>(p); tile += scheduler.stride) {
    ExpertCoord at = find_tile<T>(tile, p);
#pragma unroll 1
    for (int i = 0; i < scheduler.count; i++, state.advance()) load(state, at, scheduler.begin + i);
  }
}

template <class T>
__device__ __forceinline__ void produce_a(const Shared<T> &shared, const CUtensorMap *map, const Arguments &p) {
  /* Tries for which A's second k-block is held back until B's first has landed, which has the longer way to the
   * consumers. They are bounded, since B's barrier may be phases further on; where B came early it is. */
  int tries = p.early_b || T::WORDS_B ? 0 : 16;
  ptx::griddepcontrol_wait();
  produce<T, T::STAGES_A>(p, [&](const PipelineState<T::STAGES_A> &state, const ExpertCoord &at, int k_block) {
    ptx::mbarrier_wait(shared.empty_a(state.index), state.phase ^ 1);
    for (; state.index == 1 && tries > 0; tries--)
      if (ptx::mbarrier_try_wait(shared.full_b(0), 0)) tries = 1; /* the last try */
    ptx::mbarrier_arrive_expect_tx(shared.full_a(state.index), p.box_rows * T::Kind::A_ROW_BYTES);
    ptx::cp_async_bulk_tensor_2d(shared.a(state.index), map, k_block * T::Kind::A_ELEMENTS, at.begin + at.m * T::BM,
                                 shared.full_a(state.index));
  });
}

/* A box of B: 16 rows of BN columns, or with NK the BN rows of 16 words each. */
template <class T> struct BoxB {
  int x, y;
  __device__ __forceinline__ BoxB(const Arguments &p, const ExpertCoord &at, int k_block)
      : x(T::NK ? k_block * BLOCK_WORDS : at.n * T::BN), y(T::NK ? at.n * T::BN : k_block * BLOCK_WORDS) {
    if (T::EXPERTS) y += at.expert * (T::NK ? p.N : p.words);
  }
};

/* k-blocks of B in a copy. */
template <class T> __device__ __forceinline__ int b_blocks(const Arguments &p) {
  return T::B_LINES ? p.b_blocks : 1;
}

template <class T>
__device__ __forceinline__ void produce_b(const Shared<T> &shared, const RowMaps<T::MAPS_B> &maps, const Arguments &p) {
  produce<T, T::STAGES_B>(p, [&](const PipelineState<T::STAGES_B> &state, const ExpertCoord &at, int k_block) {
    BoxB<T> box(p, at, k_block);
    BoxCopy<T::MAPS_B> copy(maps, box.x, box.y);
    const int blocks = b_blocks<T>(p);
    if (state.index & (blocks - 1)) return; /* it came with the stage before */
    ptx::mbarrier_wait(shared.empty_b(state.index), state.phase ^ 1);
    if (blocks == 2) ptx::mbarrier_wait(shared.empty_b(state.index + 1), state.phase ^ 1);
    if (copy.r == 0) ptx::mbarrier_arrive_expect_tx(shared.full_b(state.index), blocks * T::COPY_BYTES);
    ptx::cp_async_bulk_tensor_2d(shared.b(state.index) + copy.r * blocks * T::QUARTER_BYTES, copy.map, copy.x, copy.y,
                                 shared.full_b(state.index));
  });
}

/* Factors, which come with packed B: a warp's copies. */
template <class T>
__device__ __forceinline__ void produce_affine(const Shared<T> &shared, const Arguments &p,
                                               const AffineArguments &affine) {
  typedef typename HopperB<T>::type B;
  produce<T, T::STAGES_B>(p, [&](const PipelineState<T::STAGES_B> &state, const ExpertCoord &at, int k_block) {
    ptx::mbarrier_wait(shared.empty_b(state.index), state.phase ^ 1);
    copy_affine<B::STEP>(affine, shared.affine(state.index) + threadIdx.x % 32 * 4, T::BN, k_block,
                         at.n * T::BN + B::first_column(), p.N, shared.full_b(state.index));
  });
}

/* Prefetches B of the first k-blocks into L2, one CTA for each column of a rasterisation group: all CTAs at once for
 * the same lines would take longer than it saves. It reads nothing, so it need not wait for the prerequisite grids. */
template <class T> __device__ __forceinline__ void prefetch_b(const RowMaps<T::MAPS_B> &maps, const Arguments &p) {
  TileScheduler<T> scheduler(p);
  ExpertCoord at = find_tile<T>(scheduler.first, p);
  if (at.m % T::GROUP_M) return;
  for (int i = 0; i < 4; i++) {
    BoxB<T> box(p, at, scheduler.begin + i * b_blocks<T>(p));
    BoxCopy<T::MAPS_B> copy(maps, box.x, box.y);
    ptx::cp_async_bulk_prefetch_tensor_2d(copy.map, copy.x, copy.y);
  }
}

/* ---- unpackers ---- */

/* What word(quarter, e, t) of a k-block's B, a policy, is with its factor, which lies in shared memory. */
template <class T, class B, bool AFFINE = T::Kind::AFFINE> struct AffineB {
  __device__ __forceinline__ explicit AffineB(const NoAffineArguments &) {}
  __device__ __forceinline__ void load(uint32_t) {}
  __device__ __forceinline__ uint32_t word(const B &b, int, int e, int t) const { return b.word(e, t); }
};
template <class T, class B> struct AffineB<T, B, true> {
  uint32_t bytes[UNITS];
  __device__ __forceinline__ explicit AffineB(const AffineArguments &) {}
  /* For each quarter anew: what is made of these would else be kept for the next one, in too many registers. */
  __device__ __forceinline__ void load(uint32_t from) {
#pragma unroll
    for (int u = 0; u < UNITS; u++) bytes[u] = ptx::ld_shared(from + u * T::BN + threadIdx.x % 32 * 4);
  }
  __device__ __forceinline__ AffineWord word(const B &b, int quarter, int e, int t) const {
    return AffineColumns(bytes[t]).word(b.word(e, t), B::column_of(quarter, e));
  }
};

/* `warp` counts the unpacking warps. A group of GROUP_WARPS takes a k-block, so that several are in flight at a time.
 * A filled stage is committed (fence, then arrive) after the next k-block's unpacking has begun, when its stores have
 * had time to land. */
template <class T>
__device__ __forceinline__ void unpack_b(const Shared<T> &shared, const RowMaps<T::MAPS_B> &maps, const Arguments &p,
                                         const typename T::Kind::Affine &affine_arguments, int warp) {
  constexpr int SHARE = 4 / T::GROUP_WARPS; /* quarters of a warp */
  TileScheduler<T> scheduler(p);
  int group = warp / T::GROUP_WARPS, first_quarter = warp % T::GROUP_WARPS * SHARE;
  int tiles = (count_tiles<T>(p) - 1 - scheduler.first + scheduler.stride) / scheduler.stride;
  int left = tiles > 0 ? tiles * scheduler.count - group : 0;
  int words = p.words - (scheduler.begin + group) * BLOCK_WORDS; /* of k, from the k-block on */
  PipelineState<T::STAGES_B> packed;
  PipelineState<T::STAGES_8> wide;
  packed.advance(group), wide.advance(group);
  typedef typename HopperB<T>::type B;
  typename T::Kind::UnpackB unpacker(p.xor_b);
  AffineB<T, B> affine(affine_arguments);
  int filled = -1;   /* stage that is filled and not committed yet */
  bool first = true; /* the first k-block is waited for: it is committed at once */
  auto commit = [&] {
    ptx::fence_proxy_async();
    ptx::mbarrier_arrive(shared.full_b8(filled));
  };

#pragma unroll 1
  for (; left > 0; left -= T::UNPACK_GROUPS, words -= T::UNPACK_GROUPS * BLOCK_WORDS) {
    while (words <= 0) words += (p.words + BLOCK_WORDS - 1) / BLOCK_WORDS * BLOCK_WORDS; /* of the next tile */
    int valid = T::EXPERTS ? BLOCK_WORDS : words; /* or the next words are not 0 */
    B b;
    const int block = packed.index & (b_blocks<T>(p) - 1),
              copied = packed.index - block; /* the stage that it came with */
    auto load = [&](int quarter) {
      const int place = T::ALIGNED ? b_blocks<T>(p) - 1 + block : maps.shift[quarter];
      b.load(shared.b(copied), quarter, place, valid, p.xor_b);
      affine.load(shared.affine(packed.index));
    };
    ptx::mbarrier_wait(shared.full_b(copied), packed.phase);
    load(first_quarter);
#pragma unroll
    for (int i = 0; i < SHARE; i++)
#pragma unroll
      for (int column = 0; column < 4; column += T::UNPACK_COLUMNS) {
        int quarter = first_quarter + i;
        if (T::Kind::AFFINE) __syncwarp(); /* or the compiler unpacks much at once, and spills */
        typename B::Elements unpacked(unpacker, [&](int i, int t) { return affine.word(b, quarter, column + i, t); });
        if (T::Kind::MASKS_B && valid < BLOCK_WORDS)
          unpacked.mask([&](int i, int t) { return B::word_of(quarter, column + i, t) < valid; });
        if (column + T::UNPACK_COLUMNS == 4 && i + 1 < SHARE) load(quarter + 1);
        if (i + column == 0) {
          if (filled >= 0) commit();
          ptx::mbarrier_wait(shared.empty_b8(wide.index), wide.phase ^ 1);
        }
        b.store(unpacked, shared.b8(wide.index), quarter, column);
      }
    ptx::mbarrier_arrive(shared.empty_b(packed.index)); /* only now: its words have been used */
    filled = wide.index;
    if (first) commit(), filled = -1, first = false;
    packed.advance(T::UNPACK_GROUPS), wide.advance(T::UNPACK_GROUPS);
  }
  if (filled >= 0) commit();
}

/* The same of a B that comes straight to registers: a k-block's share of a warp, 32 columns at a time, the next ones
 * loaded before these are stored. */
template <class T> __device__ __forceinline__ void unpack_words(const Shared<T> &shared, const Arguments &p, int warp) {
  constexpr int BLOCKS = T::BN / 32 / T::GROUP_WARPS;
  static_assert(T::UNPACK_COLUMNS > 1, "these have no factors");
  TileScheduler<T> scheduler(p);
  PipelineState<T::STAGES_8> wide;
  typename T::Kind::UnpackB unpacker(p.xor_b);
  int tile = scheduler.first, k_block = warp / T::GROUP_WARPS, column = 0; /* of the next k-block, and its tile's */
  const int tiles = count_tiles<T>(p);
  wide.advance(k_block);
  auto find = [&] {
    while (k_block >= scheduler.count && tile < tiles) k_block -= scheduler.count, tile += scheduler.stride;
    if (tile < tiles) column = find_tile<T>(tile, p).n * T::BN;
  };
  find();
  if (tile >= tiles) return;
  NkRuns<T> b(p, (scheduler.begin + k_block) * BLOCK_WORDS, column, warp);
  b.load(p);
#pragma unroll 1
  while (tile < tiles) {
    k_block += T::UNPACK_GROUPS;
    if (k_block >= scheduler.count) find();
#pragma unroll
    for (int block = 0; block < BLOCKS; block++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        Unpacked<typename T::Kind::UnpackB, 1> unpacked(unpacker, [&](int, int t) { return b.word(e, t); });
        if (e == 3 && block + 1 < BLOCKS) b.load(p, block + 1);
        if (e == 3 && block + 1 == BLOCKS && tile < tiles)
          b.move(p, (scheduler.begin + k_block) * BLOCK_WORDS, column, warp), b.load(p);
        if (block + e == 0) ptx::mbarrier_wait(shared.empty_b8(wide.index), wide.phase ^ 1);
        b.store(unpacked, shared.b8(wide.index), e, block);
      }
    ptx::fence_proxy_async();
    ptx::mbarrier_arrive(shared.full_b8(wide.index));
    wide.advance(T::UNPACK_GROUPS);
  }
}

/* ---- consumers ---- */

/* Tells the peer, by each warp of a consumer, that its sums have room where packed A was, which is in registers. */
template <class T> __device__ __forceinline__ void offer_room(const Shared<T> &shared, int index) {
  ptx::cluster_wait(); /* it has initialised its barriers */
  __syncwarp();
  ptx::mbarrier_arrive_cluster(ptx::mapa(shared.empty_peer(index), ~blockIdx.x & 1), threadIdx.x % 32 == 0);
}

template <class T> __device__ __forceinline__ void consume(const Shared<T> &shared, const Arguments &p, int index) {
  ptx::griddepcontrol_wait();
  /* Where registers are fewest, from what need not be kept. */
  int consumer_index = T::Kind::AFFINE || T::EXPERTS ? threadIdx.x / 128 - 1 - T::UNPACKERS : index;
  int row_in_tile = consumer_index * T::ROW_BLOCKS * 64 + fragment_row();
  Consumer<T, Shared<T>> consumer(shared, p, row_in_tile);
  TileScheduler<T> scheduler(p);
  if constexpr (T::EXPERTS) {
    zero_rows<T>(p, threadIdx.x - 128 * (1 + T::UNPACKERS), 128 * T::CONSUMERS);
    if (scheduler.first >= count_tiles<T>(p)) return;
  }
  /* One consumer starts SKEW k-blocks later where that costs no products, so that the two do not store at once. */
  constexpr int SKEW = 2;
  if (T::ROW_BLOCKS == 1 && index == 1 && scheduler.count > SKEW) ptx::mbarrier_wait(shared.full_b8(SKEW), 0);
  for (int tile = scheduler.first; tile < count_tiles<T>(p); tile += scheduler.stride) {
    Scales<T> scales;
    consumer.zeros.begin(p, scheduler.rank + 1 == split_of<T>(p));
    consumer.multiply_tile(scheduler.count, [&] {
      if (split_of<T>(p) == 2) offer_room<T>(shared, index);
      ExpertCoord at = find_tile<T>(tile, p);
      scales.load(arguments_of<T>(p, at), at, at.begin + at.m * T::BM + row_in_tile);
      consumer.zeros.load(p, at);
    });
    ExpertCoord at = find_tile<T>(tile, p); /* once more: registers are few in the mainloop */
    if (split_of<T>(p) == 2) {
      ptx::mbarrier_wait(shared.empty_peer(index), 0);
      reduce_pair<T>(shared, index, consumer.acc);
    }
    epilogue<T>(arguments_of<T>(p, at), at, at.begin + at.m * T::BM + row_in_tile, scales, consumer.acc,
                [&](int group) { return owns_group(split_of<T>(p), group); });
  }
}

/* ---- the kernel ---- */

template <class T>
__global__ void __launch_bounds__(T::THREADS, 1)
    hopper(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ RowMaps<T::MAPS_B> maps_b,
           const __grid_constant__ Arguments p, const __grid_constant__ typename T::Kind::Affine affine) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared<T> shared{ptx::smem_address(memory)};
  init_barriers<T>(shared);
  if (threadIdx.x == 32) {
    ptx::prefetch_tensormap(&map_a);
    if constexpr (!T::WORDS_B)
      for (const CUtensorMap &map : maps_b.map) ptx::prefetch_tensormap(&map);
  }
  __syncthreads();
  ptx::griddepcontrol_launch_dependents();
  if constexpr (!T::EXPERTS && !T::WORDS_B)
    if (threadIdx.x / T::MAPS_B == 64 / T::MAPS_B) prefetch_b<T>(maps_b, p);
  if (!p.early_b) ptx::griddepcontrol_wait(); /* else those do who take more than B */
  init_experts<T>(p);
  int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* uniform over a warp, for the compiler */
  if (split_of<T>(p) == 2) ptx::cluster_arrive();
  if (group == 0) {
    ptx::setmaxnreg_dec<T::PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) produce_a<T>(shared, &map_a, p);
    if constexpr (!T::WORDS_B)
      if (threadIdx.x / T::MAPS_B == 32 / T::MAPS_B) produce_b<T>(shared, maps_b, p);
    if constexpr (T::Kind::AFFINE)
      if (threadIdx.x / 32 == 2) produce_affine<T>(shared, p, affine);
  } else if (group <= T::UNPACKERS) {
    ptx::setmaxnreg_dec<T::UNPACKER_REGISTERS>();
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0) - 4;
    if constexpr (T::WORDS_B)
      unpack_words<T>(shared, p, warp);
    else
      unpack_b<T>(shared, maps_b, p, affine, warp);
  } else {
    ptx::setmaxnreg_inc<T::CONSUMER_REGISTERS>();
    consume<T>(shared, p, group - 1 - T::UNPACKERS);
  }
  if (split_of<T>(p) == 2 && group <= T::UNPACKERS) {
    __syncwarp();
    ptx::cluster_wait();
  }
#endif
}

template <class T> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  CUtensorMap map_a;
  RowMaps<T::MAPS_B> maps_b = {};
  Arguments p = make_arguments(problem, plan);
  typename T::Kind::Affine affine = {};
  if constexpr (T::Kind::AFFINE) affine = affine_arguments(problem);
  const int4mm_operand *b = &problem->b;
  int64_t words = int4mm_words_of_k(problem), experts = T::EXPERTS ? problem->experts.count : 1;
  p.b_blocks = T::B_LINES && (words + BLOCK_WORDS - 1) / BLOCK_WORDS % (2 * p.split) == 0 ? 2 : 1;
  CUtensorMapSwizzle swizzle = !T::NK || !T::ALIGNED ? CU_TENSOR_MAP_SWIZZLE_NONE
                               : p.b_blocks == 2     ? CU_TENSOR_MAP_SWIZZLE_128B
                                                     : CU_TENSOR_MAP_SWIZZLE_64B;
  cudaError_t error = map_a_of<T>(&map_a, problem, p);
  if (error == cudaSuccess && !T::WORDS_B)
    error = map_rows(&maps_b, b->words, experts * (T::NK ? problem->N : words), T::NK ? words : problem->N, b->stride,
                     T::ROWS, p.b_blocks * T::ROW_BYTES / 4, swizzle);
  if (error != cudaSuccess) return error;
  return int4mm_launch<hopper<T>>(plan->device, dim3(plan->ctas), T::THREADS, T::SHARED_BYTES, p.split, stream, map_a,
                                  maps_b, p, affine);
}

/* A grouped product, which has fewer instances. */
template <int CONSUMERS, int ROW_BLOCKS, int UNPACKERS, int STAGES_A, int SHIFTED_STAGES_A, int STAGES_B, int STAGES_8,
          class Kind>
cudaError_t launch_experts(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if constexpr (Kind::AFFINE || Kind::ZEROS) return cudaErrorNotSupported;
  if constexpr (!Kind::AFFINE && !Kind::ZEROS) {
    auto with = [&](auto nk) {
      return launch<Tile<CONSUMERS, ROW_BLOCKS, UNPACKERS, STAGES_A, SHIFTED_STAGES_A, STAGES_B, STAGES_8, Kind, false,
                         nk.value, true, true, true>>(problem, plan, stream);
    };
    return problem->b.layout == INT4MM_K_MAJOR ? with(int4mm_constant<1>()) : with(int4mm_constant<0>());
  }
}

} // namespace

/* KINDS: which a problem may have, a condition on its Kind. */
#define LAUNCHER(NAME, KINDS, ...)                                                                                     \
  extern "C" cudaError_t int4mm_launch_##NAME(const int4mm_problem *problem, const int4mm_plan *plan,                  \
                                              cudaStream_t stream) {                                                   \
    typedef Tile<__VA_ARGS__, Kind<false, false>, false, false, true, true> Basic;                                     \
    static_assert(Basic::BM == INT4MM_TILE(NAME, M) && Basic::BN == INT4MM_TILE(NAME, N), "another tile");             \
    static_assert(Basic::STAGES_8 == INT4MM_TILE(NAME, STAGES), "the registry has another depth");                     \
    return for_kind(problem, [&](auto kind) {                                                                          \
      typedef decltype(kind) K;                                                                                        \
      if (problem->experts.count) return launch_experts<__VA_ARGS__, K>(problem, plan, stream);                        \
      if constexpr (KINDS)                                                                                             \
        return for_layout(problem, kind, is_aligned(problem->b), [&](auto layer, auto nk, auto aligned, auto out) {    \
          typedef Tile<__VA_ARGS__, K, layer.value, nk.value, aligned.value, out.value> T;                             \
          return launch<T>(problem, plan, stream);                                                                     \
        });                                                                                                            \
      else                                                                                                             \
        return cudaErrorNotSupported;                                                                                  \
    });                                                                                                                \
  }
LAUNCHER(hopper_256x128, !K::AFFINE || K::INT8_A, 2, 2, 1, 6, 5, 4, 6)
LAUNCHER(hopper_128x128, true, 2, 1, 2, 6, 4, 8, 7)
