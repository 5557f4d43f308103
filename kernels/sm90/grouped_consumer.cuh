/*
 * The consumers of grouped.cuh: fragments, wgmma, promotion and epilogue.
 */
#ifndef INT4MM_GROUPED_CONSUMER_CUH
#define INT4MM_GROUPED_CONSUMER_CUH

#include "sm90/grouped_tile.cuh"

namespace {

template <bool FLOAT> struct Accumulator { typedef int32_t type; };
template <> struct Accumulator<true> { typedef float type; };

template <int N> __device__ __forceinline__ void keep_in_registers(float (&r)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(r[i])::"memory");
}

/* Of two neighbouring columns, and whether UNSCALE is in it. */
struct GroupScale {
  float2 of;
  bool folded;
};

/* What COUNT neighbouring columns of the output take after their sums: a bias, and where it is for all of k the scale.
 */
template <int COUNT> struct OutputColumns {
  float bias[COUNT], scale_b[COUNT];

  template <bool SCALES> __device__ __forceinline__ void load(const EpilogueArguments &e, int column, int N) {
    int4mm_load_bias(bias, e, column, N);
#pragma unroll
    for (int i = 0; i < COUNT; i++) scale_b[i] = SCALES && column + i < N ? __ldg(e.scale_b + column + i) : 0;
  }
  template <bool ROWS, bool SCALES>
  __device__ __forceinline__ void scale(float (&x)[COUNT], const EpilogueArguments &e, int row) const {
    float scale_a = ROWS ? __ldg(e.scale_a + row) : 1;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      if (ROWS) x[i] = __fmul_rn(x[i], scale_a);
      if (SCALES) x[i] = __fmul_rn(x[i], scale_b[i]);
    }
  }
};

template <class T> struct Consumer {
  const Shared<T> &shared;
  const Arguments &p;
  typename T::B policy;
  int index;  /* of the consumers */
  int column; /* in the tile: that of fragment row g in block 0; row g + 8 is the next, block 1 four further on */
  typename T::Boxes boxes;
  PipelineState<T::STAGES> state;
  uint2 words[T::SLICES]; /* of a k-block, as the policy loads them */
  uint32_t fragments[T::BUFFERS][T::SLICES][4];
  typename Accumulator<T::FLOAT>::type acc[T::ACCS][T::CHAIN / 2];
  float sums[T::BLOCKS][T::BM / 2];
  uint2 zero;            /* prepared, for all k: that of columns, or 0 */
  int last, before_last; /* stages of k-blocks whose products are under way, where there is a scale for each column */

  /* Lanes 4g + t and 4 (g ^ 1) + t have four neighbouring columns in a block, eight in two blocks; a warp has 16, or
   * 32, that follow each other. The words that half a warp loads at once lie in different banks. */
  __device__ __forceinline__ Consumer(const Shared<T> &shared, const Arguments &p, int index)
      : shared(shared), p(p), policy(p.xor_b), index(index), column(column_of_lane(index)),
        boxes(column, policy.first_row()), zero(make_uint2(prepare_zero<T::KIND>(0), prepare_zero<T::KIND>(0))) {}
  static __device__ __forceinline__ int column_of_lane(int index) {
    int l = threadIdx.x >> 2 & 1, m = threadIdx.x >> 3 & 1, h = threadIdx.x >> 4 & 1;
    int warp = (T::K_GROUPS > 1 ? 0 : index * 4) + threadIdx.x % 128 / 32;
    return (16 * warp + 8 * m + 4 * h) * T::BLOCKS + 2 * l;
  }

  __device__ __forceinline__ void load_words(int block, int stage) {
    if constexpr (T::MATRICES) {
#pragma unroll
      for (int j = 0; j < T::SLICES; j += 2) boxes.load(words[j], words[j + 1], shared.b(stage), j);
    } else {
      const Rows<typename T::Boxes> rows{boxes, shared.b(stage), block};
#pragma unroll
      for (int j = 0; j < T::SLICES; j++) words[j] = policy.load(j, rows);
    }
    if constexpr (T::AHEAD)
#pragma unroll
      for (int j = 0; j < T::SLICES; j++) asm volatile("" : "+r"(words[j].x), "+r"(words[j].y)::"memory");
  }

  /* Two neighbouring columns' words of a row of scales or zero points, in the form that they are wanted in. */
  __device__ __forceinline__ uint2 load_pair(uint32_t from, int block, int row) const {
    return ptx::ld_shared_v2(from + (row * T::BN + column + 4 * block) * 4);
  }

  /* Two neighbouring columns' scales of a group. */
  __device__ __forceinline__ float2 load_scales(int block, int stage, int group) const {
    if (!T::COPIES_SCALES) {
      uint2 s = load_pair(shared.scales(stage), block, group);
      return make_float2(__uint_as_float(s.x), __uint_as_float(s.y));
    }
    bool wide = p.scale_bytes == 4;
    uint32_t at = shared.scales(stage) + (group * T::BN + column + 4 * block) * p.scale_bytes;
    uint32_t x = ptx::ld_shared(at), y = ptx::ld_shared(at + (wide ? 4 : 0));
    float2 floats = make_float2(__uint_as_float(wide ? x : x << 16), __uint_as_float(wide ? y : y & 0xffff0000u));
    return p.half_scales ? __half22float2(*(const __half2 *)&x) : floats;
  }

  /* Their zero points, prepared. */
  __device__ __forceinline__ uint2 load_zeros(int block, int stage, int group) const {
    if (!T::COPIES_SCALES) return load_pair(shared.zeros(stage), block, group);
    int at = column + 4 * block;
    uint32_t four = ptx::ld_shared(shared.zeros(stage) + group * T::BN + (at & ~3));
    return policy.pair_of_zeros(four >> (at & 2) * 8);
  }

  /* Two neighbouring columns' factors of a unit. */
  __device__ __forceinline__ uint2 load_factors(int stage, int unit) const {
    uint32_t four = ptx::ld_shared(shared.scales(stage) + unit * T::BN + (column & ~3));
    uint32_t first = 0x4440 + (column & 3);
    return make_uint2(__byte_perm(four, 0, first), __byte_perm(four, 0, first + 1));
  }

  __device__ __forceinline__ void make_fragments(uint32_t (&to)[T::SLICES][4], int block, int stage) {
    uint2 affine = zero;
#pragma unroll
    for (int j = 0; j < T::SLICES; j++) {
      if (T::GROUP_ZEROS && j % T::GROUP_SLICES == 0) affine = load_zeros(block, stage, j / T::GROUP_SLICES);
      if (T::HAS_FACTORS) affine = load_factors(stage, j);
      policy.unpack(to[j], words[j].x, words[j].y, affine);
    }
    keep_in_registers(to);
  }

  /* The turns of the consumers: of multiplying, or where they share k-blocks of promoting. A barrier has two of them.
   */
  __device__ __forceinline__ void wait_for_turn() const {
    ptx::named_barrier_sync(1 + index, 256);
  }
  __device__ __forceinline__ void pass_turn() const {
    ptx::named_barrier_arrive(1 + (index + 1) % T::CONSUMERS, 256);
  }

  /* Starts a chain, the ITEMth of a block and k-block, which has CHAINS for each group. `starts`: the accumulators hold
   * nothing. */
  template <int ITEM, int BUFFER = 0, int ACC = ITEM % T::ACCS>
  __device__ __forceinline__ void multiply(uint64_t a, bool starts) {
    constexpr int CHAIN = ITEM % T::CHAINS, FIRST = ITEM / T::CHAINS * T::GROUP_SLICES;
    auto &to = acc[ACC];
    if (!T::COLUMNS) keep_in_registers(to); /* else the k-block before is still writing to it */
    if (T::TURNS) wait_for_turn();
    ptx::wgmma_fence();
#pragma unroll
    for (int j = FIRST; j < FIRST + T::GROUP_SLICES; j++) {
      uint64_t operand = a + (j / 4 * T::BM + CHAIN * T::CHAIN) * (ROW_BYTES / 16) + 2 * (j % 4);
      if constexpr (T::FLOAT)
        ptx::wgmma_f32<T::CHAIN, T::KIND == W4A16_BFLOAT>(to, fragments[BUFFER][j], operand, !starts || j > FIRST);
      else
        ptx::wgmma<T::CHAIN>(to, fragments[BUFFER][j], operand, !starts || j > FIRST);
    }
    ptx::wgmma_commit_group();
    if (T::TURNS) pass_turn();
  }

  /* Adds a chain's sums to those of the tile; where consumers share k-blocks the first of a k-block waits for these. */
  template <int ITEM> __device__ __forceinline__ void promote(int block, int stage, const GroupScale &scale) {
    constexpr int FIRST = ITEM % T::CHAINS * (T::CHAIN / 2);
    auto &from = acc[ITEM % T::ACCS];
    keep_in_registers(from);
    unscale(from, scale);
    if constexpr (T::K_GROUPS > 1 && ITEM == 0) {
      float x[T::CHAIN / 2];
      convert(x, from);
      if (T::ITEMS == 1) release(stage);
      take_sums();
      add<FIRST>(block, scale, [&](int i) { return x[i]; });
    } else {
      add<FIRST>(block, scale, [&](int i) { return (float)from[i]; });
    }
  }
  /* Column by column: an operand that is that of the instruction before is not read from its register again, and
   * reading registers, which wgmma does as well, is what bounds this. */
  template <int FIRST, class F> __device__ __forceinline__ void add(int block, const GroupScale &scale, F value) {
#pragma unroll
    for (int column = 0; column < 2; column++)
#pragma unroll
      for (int i = 2 * column; i < T::CHAIN / 2; i += i % 2 ? 3 : 1)
        sums[block][FIRST + i] = __fmaf_rn(value(i), column ? scale.of.y : scale.of.x, sums[block][FIRST + i]);
  }
  template <class E> static __device__ __forceinline__ void convert(float (&x)[T::CHAIN / 2], const E &from) {
#pragma unroll
    for (int i = 0; i < T::CHAIN / 2; i++) x[i] = (float)from[i];
    keep_in_registers(x);
  }

  /* Without the 16 times of B, if there are any. */
  static __device__ __forceinline__ int32_t unscaled(int32_t sum) {
    static_assert(T::FLOAT || T::B::UNSCALE == 1 || T::B::UNSCALE == 1.0f / 16, "another factor");
    return T::B::UNSCALE == 1 ? sum : sum >> 4;
  }
  template <class E, int COUNT>
  static __device__ __forceinline__ void unscale(E (&sums)[COUNT], const GroupScale &scale) {
    if constexpr (!T::FLOAT && T::B::UNSCALE != 1) {
      if (__builtin_expect(!scale.folded, false))
#pragma unroll
        for (int32_t &x : sums) x = unscaled(x);
    }
  }

  /* UNSCALE goes into the scales, unless a warp has one that it would round: then, rarely, into the sums. */
  __device__ __forceinline__ GroupScale load_scale(int block, int stage, int group) const {
    constexpr float UNSCALE = T::B::UNSCALE;
    float2 of = load_scales(block, stage, group);
    float2 folded = make_float2(__fmul_rn(of.x, UNSCALE), __fmul_rn(of.y, UNSCALE));
    if constexpr (T::FLOAT || UNSCALE == 1) return {folded, true};
    bool rounded = __fmul_rn(folded.x, 1 / UNSCALE) != of.x || __fmul_rn(folded.y, 1 / UNSCALE) != of.y;
    bool any = __any_sync(0xffffffffu, rounded);
    return {any ? of : folded, !any};
  }

  /* From ITEM on: waits for a chain, promotes its sums and starts the one that takes its accumulators. next() is called
   * while a last chain is under way. */
  template <int ITEM, class Next>
  __device__ __forceinline__ void finish(int block, int stage, uint64_t a, GroupScale scale, Next next) {
    constexpr int AFTER = ITEM + T::ACCS;
    if (ITEM % T::CHAINS == 0) scale = load_scale(block, stage, ITEM / T::CHAINS);
    if (T::ACCS == 1 && ITEM == 0) next();
    ptx::wgmma_wait_group<AFTER - 1 < T::ITEMS ? T::ACCS - 1 : 0>();
    promote<ITEM>(block, stage, scale);
    if constexpr (AFTER < T::ITEMS) multiply<AFTER>(a, true);
    if (T::ACCS == 2 && AFTER == T::ITEMS) next();
    if constexpr (ITEM + 1 < T::ITEMS) finish<ITEM + 1>(block, stage, a, scale, next);
  }

  /* The products of a block's columns and a k-block; next() is called while wgmmas are under way. `starts` and `ends`
   * count where a group has several k-blocks: it starts, or ends, here. */
  template <class Next>
  __device__ __forceinline__ void multiply_block(int block, int stage, bool starts, bool ends, Next next) {
    if (!T::AHEAD) load_words(block, stage);
    make_fragments(fragments[0], block, stage);
    uint64_t a = ptx::make_smem_desc(shared.a(stage));
    multiply<0>(a, T::GROUP > 0 || starts);
    if constexpr (T::ACCS == 2) multiply<1>(a, T::GROUP > 0 || starts);
    if constexpr (T::GROUP > 0) {
      finish<0>(block, stage, a, GroupScale(), next);
    } else {
      next();
      ptx::wgmma_wait_group<0>();
      for (auto &set : acc) keep_in_registers(set);
      if (!ends) return;
      GroupScale scale = load_scale(block, stage, 0);
      promote<0>(block, stage, scale);
      if constexpr (T::ACCS == 2) promote<1>(block, stage, scale);
    }
  }

  /* Waits for a k-block and loads its first words. */
  __device__ __forceinline__ void begin_k_block() {
    ptx::mbarrier_wait(shared.full(state.index), state.phase);
    if (T::AHEAD) load_words(0, state.index);
  }

  /* A k-block's products. The words of the next block are loaded while wgmmas are under way. All lanes of a warp do the
   * same: branches there would have ptxas serialise them (C7513). */
  __device__ __forceinline__ void multiply_k_block(bool starts, bool ends, bool more) {
    int stage = state.index;
    auto advance = [&] {
      state.advance();
      if (more) begin_k_block();
    };
#pragma unroll
    for (int block = 0; block < T::BLOCKS; block++)
      multiply_block(block, stage, starts, ends, [&] {
        if (block + 1 == T::BLOCKS)
          advance();
        else if (T::AHEAD)
          load_words(block + 1, stage);
      });
    release(stage);
  }

  __device__ __forceinline__ void release(int stage) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0 && stage >= 0) ptx::mbarrier_arrive(shared.empty(stage));
  }

  /* A k-block's products with a scale for each column. Those of the k-block before are under way meanwhile, so that
   * fragments take turns by PARITY. */
  template <int PARITY> __device__ __forceinline__ void add_k_block(bool starts, bool more) {
    int stage = state.index;
    ptx::wgmma_wait_group<1>();
    release(before_last);
    make_fragments(fragments[PARITY], 0, stage);
    multiply<0, PARITY>(ptx::make_smem_desc(shared.a(stage)), starts);
    before_last = last, last = stage;
    state.advance();
    if (more) begin_k_block();
  }

  /* A tile's products with a scale for each column, left in the accumulators. */
  __device__ __forceinline__ void add_tile(bool last_tile) {
    last = before_last = -1;
    int k_block = 0;
#pragma unroll 1
    for (; k_block + 1 < p.k_blocks; k_block += 2) {
      add_k_block<0>(k_block == 0, true);
      add_k_block<1>(false, k_block + 2 < p.k_blocks || !last_tile);
    }
    if (k_block < p.k_blocks) add_k_block<0>(k_block == 0, !last_tile);
    ptx::wgmma_wait_group<0>();
    release(before_last), release(last);
    keep_in_registers(acc[0]);
  }

  /* ---- consumers that share k-blocks ---- */

  /* A tile's sums, handed on from turn to turn. */
  __device__ __forceinline__ uint32_t handed(int i) const {
    return shared.sums() + i * (128 * 4) + threadIdx.x % 128 * 16;
  }
  __device__ __forceinline__ void take_sums() {
    wait_for_turn();
#pragma unroll
    for (int i = 0; i < T::BM / 2; i += 4) {
      uint4 x = ptx::ld_shared_v4(handed(i));
      sums[0][i] = __uint_as_float(x.x), sums[0][i + 1] = __uint_as_float(x.y);
      sums[0][i + 2] = __uint_as_float(x.z), sums[0][i + 3] = __uint_as_float(x.w);
    }
  }
  /* `ends`: the next turn begins a tile. */
  __device__ __forceinline__ void pass_sums(bool ends) const {
#pragma unroll
    for (int i = 0; i < T::BM / 2; i += 4) {
      uint32_t x[4];
#pragma unroll
      for (int j = 0; j < 4; j++) x[j] = ends ? 0 : __float_as_uint(sums[0][i + j]);
      ptx::st_shared_v4(handed(i), x[0], x[1], x[2], x[3]);
    }
    pass_turn();
  }

  /* Starts the products of a run's k-blocks from the Ith on. */
  template <int I = 0> __device__ __forceinline__ void start_run() {
    int stage = state.index + I;
    ptx::mbarrier_wait(shared.full(stage), state.phase);
    load_words(0, stage);
    if (I > 0) ptx::wgmma_wait_group<0>(); /* the fragments are free */
    make_fragments(fragments[0], 0, stage);
    multiply<0, 0, I>(ptx::make_smem_desc(shared.a(stage)), true);
    if constexpr (I + 1 < T::RUN) start_run<I + 1>();
  }
  /* The products of a run, whose first k-block is given, added to the tile's sums. */
  __device__ __forceinline__ void multiply_run(int k_block) {
    GroupScale scale[T::RUN];
    float x[T::RUN][T::CHAIN / 2];
    start_run();
#pragma unroll
    for (int i = 0; i < T::RUN; i++) scale[i] = load_scale(0, state.index + i, 0);
    ptx::wgmma_wait_group<0>();
#pragma unroll
    for (int i = 0; i < T::RUN; i++) {
      keep_in_registers(acc[i]);
      unscale(acc[i], scale[i]);
      convert(x[i], acc[i]);
      release(state.index + i);
    }
    take_sums();
#pragma unroll
    for (int i = 0; i < T::RUN; i++)
      if (i == 0 || (k_block + i) * BLOCK_K < p.K) add<0>(0, scale[i], [&](int j) { return x[i][j]; });
  }

  /* The products of all tiles. Consumers multiply as they come, and add what they have to a tile's sums in their turn,
   * so that groups are added in order. Who has a tile's last k-block finishes it. */
  __device__ __forceinline__ void share_tiles() {
    Walk<T> walk(p);
    if (index + 1 == T::K_GROUPS) pass_sums(true);
    walk.advance(index * T::RUN), state.advance(index * T::RUN);
#pragma unroll 1
    for (; !walk.done(); walk.advance(T::K_GROUPS * T::RUN), state.advance(T::K_GROUPS * T::RUN)) {
      bool ends = walk.k_block + T::RUN == p.k_blocks;
      if constexpr (T::RUN > 1) {
        multiply_run(walk.k_block);
      } else {
        ptx::mbarrier_wait(shared.full(state.index), state.phase);
        multiply_block(0, state.index, true, true, [] {});
        if (T::ITEMS > 1) release(state.index);
      }
      pass_sums(ends);
      if (ends) finish_tile(find_tile<T>(walk.tile, p)); /* found here: registers are few */
    }
    if (walk.k_block == p.k_blocks) wait_for_turn(); /* so that the barrier is left empty */
  }

  /* The zero points of a tile's columns, for make_fragments; prefetched while the tile before is finished. */
  __device__ __forceinline__ const int8_t *zeros_of(const ExpertCoord &at) const {
    return p.zeros + (T::EXPERTS ? at.expert * p.experts.zeros : 0);
  }
  __device__ __forceinline__ void load_tile_zeros(const ExpertCoord &at) {
    const int8_t *zeros = zeros_of(at);
    int first = at.n * T::BN + column;
    zero.x = prepare_zero<T::KIND>(first < p.N ? __ldg(zeros + first) : 0);
    zero.y = prepare_zero<T::KIND>(first + 1 < p.N ? __ldg(zeros + first + 1) : 0);
  }
  __device__ __forceinline__ void prefetch_zeros(const ExpertCoord &at) const {
    int first = at.n * T::BN + column;
    if (first < p.N) ptx::prefetch_l1(zeros_of(at) + first);
  }

  /* A tile's products, scaled group by group. */
  __device__ __forceinline__ void promote_tile(bool last_tile) {
#pragma unroll
    for (int i = 0; i < T::BLOCKS * T::BM / 2; i++) sums[i / (T::BM / 2)][i % (T::BM / 2)] = 0;
    int left = 0; /* k-blocks of the group */
#pragma unroll 1
    for (int k_block = 0; k_block < p.k_blocks; k_block++) {
      bool last = k_block + 1 == p.k_blocks, starts = left == 0;
      if (T::GROUP == 0) left = starts ? (p.group - 1) / BLOCK_K : left - 1;
      multiply_k_block(starts, left == 0 || last, !last || !last_tile);
    }
  }

  /* ---- the epilogue ---- */

  /* A tile's sum. */
  __device__ __forceinline__ float sum(int block, int i) const {
    if constexpr (T::COLUMNS)
      return (float)unscaled(acc[0][i]);
    else
      return sums[block][i];
  }

  /* COUNT neighbouring columns of a row: of rows 8q + 2t and the next one, lanes l = 0 and 1 exchange halves. */
  static constexpr int COUNT = 4 * T::BLOCKS;
  __device__ __forceinline__ void gather(float (&x)[COUNT], int q) const {
    int l = threadIdx.x >> 2 & 1;
#pragma unroll
    for (int block = 0; block < T::BLOCKS; block++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        float first = sum(block, 4 * q + 2 * r), second = sum(block, 4 * q + 2 * r + 1);
        float kept = l ? second : first, got = __shfl_xor_sync(0xffffffffu, l ? first : second, 4);
        x[4 * block + r] = l ? got : kept, x[4 * block + 2 + r] = l ? kept : got;
      }
  }

  /* A tile whose columns lie inside an output of aligned rows, without activation and residual: straight-line code but
   * for rows from `end` on. */
  template <int DTYPE>
  __device__ __forceinline__ void finish_rows(int row, int end, int first_column,
                                              const OutputColumns<COUNT> &columns) const {
    typedef typename int4mm_out_word<DTYPE>::type Word;
    Word *out = (Word *)p.epilogue.out + row * p.epilogue.ldo + first_column;
#pragma unroll
    for (int q = 0; q < T::BM / 8; q++) {
      float x[COUNT];
      __syncwarp(); /* or the compiler works on several rows at once, and spills */
      gather(x, q);
      if (T::ENDS_ANYWHERE && row + 8 * q >= end) continue;
      columns.template scale<!T::FLOAT, T::COLUMNS>(x, p.epilogue, row + 8 * q);
      int4mm_add_bias(x, p.epilogue, columns.bias);
      int4mm_store_vector<DTYPE>(out + 8 * q * p.epilogue.ldo, x);
    }
  }

  __device__ __forceinline__ void finish_tile(const ExpertCoord &at) const;
};

/* A call, not inlined: a thread of a large tile has many units. */
template <class T, int COUNT>
__device__ __noinline__ void call_finish_sums(const Arguments &p, int row, int column, OutputColumns<COUNT> columns,
                                              int4mm_floats<COUNT> sums) {
  if (column >= p.N) return;
  columns.template scale<!T::FLOAT, T::COLUMNS>(sums.x, p.epilogue, row);
  int4mm_finish_scaled<true>(p.epilogue, row, column, p.N, columns.bias, sums.x);
}

template <class T> __device__ __forceinline__ void Consumer<T>::finish_tile(const ExpertCoord &at) const {
  int t = threadIdx.x % 4, l = threadIdx.x >> 2 & 1;
  int begin = at.begin + at.m * T::BM, row = begin + 2 * t + l, first_column = at.n * T::BN + column - 2 * l;
  OutputColumns<COUNT> columns;
  columns.template load<T::COLUMNS>(arguments_of<T>(p, at).epilogue, first_column, p.N);
  bool inside = p.epilogue.vector_store && !p.epilogue.layer && (at.n + 1) * T::BN <= p.N;
  if (!T::ENDS_ANYWHERE) inside = inside && begin + T::BM <= at.end;
  if (inside)
    return int4mm_for_out_dtype(p.epilogue.out_dtype, [&](auto dtype) {
      finish_rows<decltype(dtype)::value>(row, at.end, first_column, columns);
    });
#pragma unroll
  for (int q = 0; q < T::BM / 8; q++) {
    int4mm_floats<COUNT> x;
    gather(x.x, q);
    if (row + 8 * q < at.end) call_finish_sums<T>(p, row + 8 * q, first_column, columns, x);
  }
}

template <class T> __device__ __forceinline__ void consume(const Shared<T> &shared, const Arguments &p, int index) {
  int tiles = count_tiles<T>(p);
  if constexpr (T::EXPERTS) zero_rows<T>(p, threadIdx.x - 128, 128 * T::CONSUMERS);
  if ((int)blockIdx.x >= tiles) return;
  Consumer<T> consumer(shared, p, index);
  if constexpr (T::K_GROUPS > 1) return consumer.share_tiles();
  constexpr bool COLUMN_ZEROS = T::COLUMNS && T::WEIGHTS == ZEROS;
  if (T::TURNS && index == 1) consumer.pass_turn();
  consumer.begin_k_block();
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    bool last_tile = tile + (int)gridDim.x >= tiles;
    if (COLUMN_ZEROS) consumer.load_tile_zeros(Walk<T>(p, tile).at);
    if constexpr (T::COLUMNS)
      consumer.add_tile(last_tile);
    else
      consumer.promote_tile(last_tile);
    if (COLUMN_ZEROS && !last_tile) consumer.prefetch_zeros(Walk<T>(p, tile + gridDim.x).at);
    consumer.finish_tile(Walk<T>(p, tile).at);
  }
  if (T::TURNS && index == 0) consumer.wait_for_turn(); /* so that the barrier is left empty */
}

} // namespace
#endif
