/*
 * skinny for operands of every kind: the products of a slice, and what becomes of a segment's sums in registers.
 */
#ifndef INT4MM_SKINNY_PRODUCTS_CUH
#define INT4MM_SKINNY_PRODUCTS_CUH

#include "sm80/skinny_copies.cuh"

namespace {

/* ---- a slice ---- */

template <int WORDS> __device__ __forceinline__ void load_shared(uint32_t (&x)[WORDS], uint32_t at) {
  if constexpr (WORDS == 1) {
    x[0] = ptx::ld_shared(at);
  } else if constexpr (WORDS == 2) {
    uint2 v = ptx::ld_shared_v2(at);
    x[0] = v.x, x[1] = v.y;
  } else {
    uint4 v = ptx::ld_shared_v4(at);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  }
}

/* The words of this lane in slice j of eight rows of A, from those of slice 0. */
template <int WORDS> __device__ __forceinline__ void load_slice(uint32_t (&x)[WORDS], uint32_t rows, int j) {
  load_shared(x, rows ^ 16 * WORDS * j);
}

/* The words of slice j of a lane's four columns, of a part of a step those from `first` on. */
template <class S> __device__ __forceinline__ uint4 load_words(uint32_t at, int j, int first) {
  if (!S::NK) return ptx::ld_shared_v4(at + j * CHUNK_BYTES);
  at ^= 16 * j;
  uint32_t words[4] = {};
#pragma unroll
  for (int i = first; i < first + 4 / S::BLOCKS; i++) words[i] = ptx::ld_shared(at + nk_offset<S>(i, 0, 0));
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/* The products of a slice: columns 4g + i of B for every i are those of an mma. */
template <class S, class Fragments>
__device__ __forceinline__ void multiply_columns(Segment<S> &sum, const uint4 &words, const Fragments &rows,
                                                 const typename S::A::B &b, bool with_ones, int first) {
  typedef typename S::A A;
#pragma unroll
  for (int i = first; i < first + 4 / S::BLOCKS; i++) {
    uint32_t unpacked[2 * A::STEPS];
    b(unpacked, element(words, i), i);
#pragma unroll
    for (int step = 0; step < A::STEPS; step++)
#pragma unroll
      for (int m = 0; m < S::ROW_TILES; m++)
        A::mma(sum.acc[m][i], rows[m][step], unpacked[2 * step], unpacked[2 * step + 1]);
  }
  if constexpr (!S::FLOAT)
    if (with_ones && first == 0)
#pragma unroll
      for (int m = 0; m < S::ROW_TILES; m++) A::mma(sum.ones[m], rows[m][0], A::ONES, A::ONES);
}

/* SWAPPED: columns 4g + i and 4g + i + 1 of B are rows g and g + 8 of an mma. */
template <class S, class Fragments>
__device__ __forceinline__ void multiply_swapped(Segment<S> &sum, const uint4 &words, const Fragments &rows,
                                                 const typename S::A::B &b, bool with_ones, int first) {
  typedef typename S::A A;
#pragma unroll
  for (int i = first; i < first + 4 / S::BLOCKS; i += 2) {
    uint32_t x[2 * A::STEPS], y[2 * A::STEPS];
    b(x, element(words, i), i), b(y, element(words, i + 1), i + 1);
#pragma unroll
    for (int step = 0; step < A::STEPS; step++) {
      const uint32_t columns[4] = {x[2 * step], y[2 * step], x[2 * step + 1], y[2 * step + 1]};
      A::mma(sum.acc[0][i / 2], columns, rows[step][0], rows[step][2]);
    }
  }
  if constexpr (!S::FLOAT) {
    const uint32_t ones[4] = {A::ONES, A::ONES, A::ONES, A::ONES};
    if (with_ones && first == 0) A::mma(sum.ones[0], ones, rows[0][0], rows[0][2]);
  }
}

template <class S>
__device__ __forceinline__ void multiply_slice(Segment<S> &sum, uint32_t words_at, uint32_t rows, int j,
                                               const typename S::A &a, const typename S::A::B &b, bool with_ones,
                                               int valid, int part) {
  typedef typename S::A A;
  const int first = 4 / S::BLOCKS * part;
  uint32_t fragments[S::ROW_TILES][A::STEPS][4];
  const uint4 words = load_words<S>(words_at, j, first);
#pragma unroll
  for (int m = 0; m < S::ROW_TILES; m++) {
    uint32_t x[A::WORDS], y[A::WORDS] = {};
    load_slice<A::WORDS>(x, rows + 2 * m * S::EIGHT_BYTES, j);
    if (2 * m + 1 < S::EIGHTS) load_slice<A::WORDS>(y, rows + (2 * m + 1) * S::EIGHT_BYTES, j);
    a.mask(x, y, j, valid);
    a.fragments(fragments[m], x, y);
  }
  if constexpr (S::SWAPPED)
    multiply_swapped<S>(sum, words, fragments[0], b, with_ones, first);
  else
    multiply_columns<S>(sum, words, fragments, b, with_ones, first);
}

/* ---- a segment ---- */

/* The scale of lane l's column, or of all columns of this lane, of a stage's segment. */
__device__ __forceinline__ float load_scale(int dtype, uint32_t scales, int l) {
  if (dtype == INT4MM_FLOAT32) return __uint_as_float(ptx::ld_shared(scales + 4 * l));
  uint32_t bits = ptx::ld_shared(scales + l / 2 * 4) >> l % 2 * 16;
  return dtype == INT4MM_FLOAT16 ? int4mm_widen<INT4MM_FLOAT16>((uint16_t)bits)
                                 : int4mm_widen<INT4MM_BFLOAT16>((uint16_t)bits);
}
template <class S>
__device__ __forceinline__ void load_scales(float (&to)[S::LANE_COLUMNS], int dtype, uint32_t scales) {
  if (dtype == INT4MM_FLOAT32) {
#pragma unroll
    for (int i = 0; i < S::LANE_COLUMNS; i += 4) {
      uint4 v = ptx::ld_shared_v4(scales + 4 * S::lane_column() + 4 * i);
#pragma unroll
      for (int c = 0; c < 4; c++) to[i + c] = __uint_as_float(element(v, c));
    }
    return;
  }
  uint32_t v[S::LANE_COLUMNS / 2];
  load_shared(v, scales + 2 * S::lane_column());
#pragma unroll
  for (int i = 0; i < S::LANE_COLUMNS; i++) {
    uint16_t bits = (uint16_t)(v[i / 2] >> i % 2 * 16);
    to[i] = dtype == INT4MM_FLOAT16 ? int4mm_widen<INT4MM_FLOAT16>(bits) : int4mm_widen<INT4MM_BFLOAT16>(bits);
  }
}

/* The bytes of a lane's columns, and byte c of them, signed. */
template <class S> __device__ __forceinline__ void load_bytes(uint2 &to, uint32_t at) {
  to = S::LANE_COLUMNS == 4 ? make_uint2(ptx::ld_shared(at), 0) : ptx::ld_shared_v2(at);
}
__device__ __forceinline__ int signed_byte(const uint2 &v, int c) {
  return (int32_t)((c < 4 ? v.x : v.y) << (24 - c % 4 * 8)) >> 24;
}

/* A segment of floats: t = fma(sum, scale, t). */
template <class S> __device__ __forceinline__ void add_floats(int32_t (&state)[S::ROWS], const Pending<S> &pending) {
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++)
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c++) {
      int32_t &t = state[S::LANE_COLUMNS * r + c];
      t = __float_as_int(__fmaf_rn(pending.sum.at(r, c), pending.scales[c], __int_as_float(t)));
    }
}

/* The integers of the lane's row r of a segment, their true values, and these less the zero points. */
template <class S>
__device__ __forceinline__ void true_sums(int32_t (&x)[S::LANE_COLUMNS], const Segment<S> &sum, int r) {
#pragma unroll
  for (int c = 0; c < S::LANE_COLUMNS; c++) x[c] = sum.at(r, c) >> S::A::SHIFT;
}
template <class S>
__device__ __forceinline__ void take_zeros(int32_t (&x)[S::LANE_COLUMNS], const Segment<S> &sum, int r,
                                           const int32_t (&zeros)[S::LANE_COLUMNS]) {
  int32_t ones = sum.of_ones(r) >> S::A::ONES_SHIFT;
#pragma unroll
  for (int c = 0; c < S::LANE_COLUMNS; c++) x[c] -= zeros[c] * ones;
}

/* The same of a pending segment. */
template <class S>
__device__ __forceinline__ void pending_sums(int32_t (&x)[S::LANE_COLUMNS], const GeneralSource<S> &source,
                                             const Pending<S> &pending, int r) {
  true_sums<S>(x, pending.sum, r);
  if (S::BRANCHES ? !source.zeros : !S::ZEROS) return;
  if (S::BRANCHES) asm volatile(""); /* a branch: the instructions are too many to be done in vain */
  int32_t zeros[S::LANE_COLUMNS];
#pragma unroll
  for (int c = 0; c < S::LANE_COLUMNS; c++) zeros[c] = signed_byte(pending.bytes, c);
  take_zeros<S>(x, pending.sum, r, zeros);
}

/* A segment of integers without group scales. */
template <class S>
__device__ __forceinline__ void add_integers(int32_t (&state)[S::ROWS], const GeneralSource<S> &source,
                                             const Pending<S> &pending) {
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++) {
    int32_t x[S::LANE_COLUMNS];
    pending_sums<S>(x, source, pending, r);
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c++) {
      int32_t factor = signed_byte(pending.bytes, c);
      state[S::LANE_COLUMNS * r + c] += source.factors ? x[c] * factor : x[c];
    }
  }
}

/* What a stage has for a segment, where `scales` and `bytes` are. */
template <class S>
__device__ __forceinline__ void load_parameters(Pending<S> &pending, const GeneralSource<S> &source, uint32_t scales,
                                                uint32_t bytes) {
  const int lane = threadIdx.x % 32;
  pending.bytes = make_uint2(0, 0);
  if (source.factors || (!S::FLOAT && source.zeros)) load_bytes<S>(pending.bytes, bytes + S::lane_column());
  if constexpr (S::MODE == CHAIN) pending.scales[0] = load_scale(source.scale_dtype, scales, lane);
  if constexpr (S::FLOAT) {
    if (source.scale_dtype >= 0)
      load_scales<S>(pending.scales, source.scale_dtype, scales);
    else
#pragma unroll
      for (int c = 0; c < S::LANE_COLUMNS; c++)
        pending.scales[c] = source.factors ? (float)signed_byte(pending.bytes, c) : 1;
  }
}

/* GROUPS: loads the scales of a k-block without a look at them. */
template <class S> __device__ __forceinline__ void load_packed_scales(Pending<S> &pending, uint32_t at) {
  if constexpr (S::BY_COLUMNS) {
    constexpr int WORDS = S::LANE_COLUMNS / 2; /* as far as scales of 16 bits are aligned */
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c += WORDS) {
      uint32_t v[WORDS];
      load_shared(v, at + 4 * c);
#pragma unroll
      for (int i = 0; i < WORDS; i++) pending.packed[c + i] = v[i];
    }
  } else {
    pending.packed[0] = ptx::ld_shared(at);
  }
}

/* GROUPS: the scales of the lane's columns, for next(), which every dtype has code of its own of. */
template <class S, class F>
__device__ __forceinline__ void with_scales(Pending<S> &pending, int32_t scale_dtype, F next) {
  auto with = [&](auto scale) {
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c++) pending.scales[c] = scale(c);
    next();
  };
  auto half = [&](int c) { return (uint16_t)(pending.packed[c / 2] >> c % 2 * 16); };
  if (scale_dtype == INT4MM_FLOAT32)
    with([&](int c) { return __uint_as_float(pending.packed[c]); });
  else if (scale_dtype == INT4MM_FLOAT16)
    with([&](int c) { return int4mm_widen<INT4MM_FLOAT16>(half(c)); });
  else
    with([&](int c) { return int4mm_widen<INT4MM_BFLOAT16>(half(c)); });
}

/* GROUPS: the scale of lane's column. */
__device__ __forceinline__ float unpack_scale(uint32_t bits, int32_t dtype) {
  uint16_t half = (uint16_t)(bits >> threadIdx.x % 2 * 16);
  float wide = dtype == INT4MM_FLOAT16 ? int4mm_widen<INT4MM_FLOAT16>(half) : int4mm_widen<INT4MM_BFLOAT16>(half);
  return dtype == INT4MM_FLOAT32 ? __uint_as_float(bits) : wide;
}

} // namespace
#endif
