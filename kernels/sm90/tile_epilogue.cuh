/*
 * The epilogue of a tile of mainloop.cuh, whose T and order of columns it takes: a thread's sums, scaled, and with what
 * follows of a layer, stored 16 bytes at a time where the output's rows allow.
 */
#ifndef INT4MM_TILE_EPILOGUE_CUH
#define INT4MM_TILE_EPILOGUE_CUH

#include "sm90/operands.cuh"

namespace {

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
    gather_columns(to, column, group);
  }

  static __device__ __forceinline__ void gather_columns(float (&to)[COLUMNS], const float (&from)[4], int group) {
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
      to[i] = __shfl_sync(0xffffffffu, from[i % 4], group * 8 + threadIdx.x % 4 * 2 + i / 4);
  }
};

/* The bias of a tile that lies whole inside the output, where there is one: lane l holds that of the columns 4l ..
 * 4l + 3, loaded once. Each row's loads would wait for L2: stores go between them. */
template <class T> struct Bias {
  bool any;
  float column[4];

  __device__ __forceinline__ Bias(const Arguments &p, const TileCoord &at) : any(p.epilogue.bias != nullptr), column() {
    if (!any || threadIdx.x % 32 >= T::UNPACK_LANES) return;
#pragma unroll
    for (int i = 0; i < 4; i++) column[i] = __ldg(p.epilogue.bias + at.n * T::BN + threadIdx.x % 32 * 4 + i);
  }
  __device__ __forceinline__ void gather(float (&to)[COLUMNS], int group) const {
    if (any) Scales<T>::gather_columns(to, column, group);
  }
  __device__ __forceinline__ void add(float (&x)[COLUMNS], const float (&mine)[COLUMNS]) const {
    if (!any) return;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) x[i] = __fadd_rn(x[i], mine[i]);
  }
};

/* A thread's sums of 8 neighbouring columns of one row: the `lower` of its two fragment rows, in a column group. */
template <class T>
__device__ __forceinline__ void gather(int32_t (&to)[COLUMNS], const int32_t (&acc)[T::BN / 2], int lower, int group) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) to[i] = acc[(i % 4 * T::COLUMN_GROUPS + group) * 4 + lower * 2 + i / 4];
}

/* 8 neighbouring columns of a row, scaled, and their bias, or NULL, added. `row_scale` has UNSCALE in it. */
template <class T>
__device__ __forceinline__ void scale_columns(float (&x)[COLUMNS], const int32_t (&acc)[T::BN / 2], int lower,
                                              int group, float row_scale, const float (&scale_b)[COLUMNS],
                                              const float *bias) {
  int32_t sums[COLUMNS];
  gather<T>(sums, acc, lower, group);
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) x[i] = __fmul_rn(__fmul_rn((float)sums[i], row_scale), scale_b[i]);
  if (bias) int4mm_add_bias(x, bias, 0, COLUMNS);
}

/* The epilogue of a tile whose columns lie inside an output of aligned rows, without activation and residual:
 * straight-line code but for rows from M on, a third of the general one's, whose size would cost more in instruction
 * fetches than its arithmetic. */
template <class T, int DTYPE, class Owns>
__device__ __forceinline__ void epilogue_full_columns(const Arguments &p, const TileCoord &at, int first_row,
                                                      const Scales<T> &scales,
                                                      const float (&row_scale)[T::ROW_BLOCKS][T::FRAGMENT_ROWS],
                                                      const int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2], Owns owns) {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  /* Registers are few: scales are gathered for every row. */
  constexpr bool TIGHT = (T::NK || T::Kind::AFFINE || T::EXPERTS) && T::ROW_BLOCKS == 2;
  int first_column = at.n * T::BN + threadIdx.x % 4 * COLUMNS;
  Word *out = (Word *)p.epilogue.out + first_row * p.epilogue.ldo + first_column;
  const Bias<T> bias(p, at);
#pragma unroll
  for (int group = 0; group < T::COLUMN_GROUPS; group++) {
    if (!owns(group)) continue;
    __syncwarp(); /* or the compiler works on several groups at once, and spills */
    float scale_b[COLUMNS], bias_b[COLUMNS] = {};
    scales.gather(scale_b, group);
    if (!TIGHT) bias.gather(bias_b, group);
#pragma unroll
    for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
      for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
        if (TIGHT) {
          __syncwarp();
          scales.gather(scale_b, group);
        }
        float x[COLUMNS];
        scale_columns<T>(x, acc[b], lower, group, row_scale[b][lower], scale_b, nullptr);
        if (TIGHT) bias.gather(bias_b, group);
        bias.add(x, bias_b);
        if (first_row + b * 64 + lower * 8 < p.M)
          int4mm_store_vector<DTYPE>(out + (b * 64 + lower * 8) * p.epilogue.ldo + group * 32, x);
      }
  }
}

/* The same for an output whose rows start anywhere. Whole rows of the tile, or where only some groups are this CTA's,
 * those groups are the spans. */
template <class T, int DTYPE, class Owns>
__device__ __forceinline__ void epilogue_any_rows(const Arguments &p, const TileCoord &at, int first_row,
                                                  const Scales<T> &scales,
                                                  const float (&row_scale)[T::ROW_BLOCKS][T::FRAGMENT_ROWS],
                                                  const int32_t (&acc)[T::ROW_BLOCKS][T::BN / 2], Owns owns) {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  bool whole = owns(0) && owns(1);
  const float *bias = p.epilogue.bias ? p.epilogue.bias + at.n * T::BN + threadIdx.x % 4 * COLUMNS : nullptr;
#pragma unroll
  for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
    for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
      Word *out = (Word *)p.epilogue.out + (first_row + b * 64 + lower * 8) * p.epilogue.ldo + at.n * T::BN;
      SpanStore<DTYPE> span(out);
      asm volatile("" : "+l"(bias)); /* read anew for each row, since registers are few */
#pragma unroll
      for (int group = 0; group < T::COLUMN_GROUPS; group++) {
        if (!owns(group)) continue;
        __syncwarp(); /* as above */
        float scale_b[COLUMNS], x[COLUMNS];
        scales.gather(scale_b, group);
        scale_columns<T>(x, acc[b], lower, group, row_scale[b][lower], scale_b, bias ? bias + group * 32 : nullptr);
        if (!whole) span = SpanStore<DTYPE>(out + group * 32);
        span.store(x, whole ? group * 32 : 0);
        if (!whole) span.finish(32);
      }
      if (whole) span.finish(T::BN);
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
          /* Affine kinds have fewer registers. */
          float scale_a = T::Kind::AFFINE ? __ldg(p.epilogue.scale_a + row) : scales.row[b][lower];
          int4mm_scale_sums(unit.x, sums, T::Kind::UNSCALE, scale_a, scale_b);
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
  if constexpr (T::LAYER) return epilogue_any_tile<T>(p, at, first_row, scales, acc, owns);
  /* A row's scale takes in UNSCALE where that is exact: not among the subnormals. */
  float row_scale[T::ROW_BLOCKS][T::FRAGMENT_ROWS];
  const int last_row = first_row + (T::ROW_BLOCKS - 1) * 64 + (T::FRAGMENT_ROWS - 1) * 8;
  bool inside = (T::OUT_ALIGNED ? p.epilogue.vector_store : last_row < p.M) && (at.n + 1) * T::BN <= p.N;
#pragma unroll
  for (int b = 0; b < T::ROW_BLOCKS; b++)
#pragma unroll
    for (int lower = 0; lower < T::FRAGMENT_ROWS; lower++) {
      float scale = scales.row[b][lower];
      row_scale[b][lower] = __fmul_rn(scale, T::Kind::UNSCALE);
      inside = inside && __fmul_rn(row_scale[b][lower], 1 / T::Kind::UNSCALE) == scale;
    }
  if (!__all_sync(0xffffffffu, inside)) return epilogue_any_tile<T>(p, at, first_row, scales, acc, owns);
  int4mm_for_out_dtype(p.epilogue.out_dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    if constexpr (T::OUT_ALIGNED)
      epilogue_full_columns<T, DTYPE>(p, at, first_row, scales, row_scale, acc, owns);
    else
      epilogue_any_rows<T, DTYPE>(p, at, first_row, scales, row_scale, acc, owns);
  });
}

} // namespace
#endif
