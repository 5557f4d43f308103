/*
 * Groups along k for mma: scales, and factors or zero points, from memory to a stage's slot and from there to lanes;
 * the totals of groups that are done.
 */
#ifndef INT4MM_MMA_GROUPS_CUH
#define INT4MM_MMA_GROUPS_CUH

#include "common/epilogue.cuh"
#include "sm80/mma.cuh"

namespace {

/* Rows of scales and of bytes, factors or zero points, for each group; NULL: none. */
struct GroupArguments {
  const char *scales, *bytes;
  int64_t scales_stride, bytes_stride; /* in bytes; 0 where one row serves all */
  int32_t scale_dtype, scale_size;
  bool factors;
  bool vectors;                        /* rows start on 16 bytes */
  bool large;                          /* a group's sums may be 2^22 and more */
  int group, segments;                 /* in segments: a group; K */
  uint32_t reciprocal;                 /* 2^31 over `group`, rounded up; 0 where there is one group */
  int64_t scales_expert, bytes_expert; /* from an expert's `scales` and `bytes` to the next one's, in bytes */
};

/* ---- copies ---- */

/* A row of `count` elements of any alignment to shared memory, by a warp. */
template <class E> __device__ __forceinline__ void copy_elements(uint32_t to, const E *from, int count) {
  constexpr int AT_ONCE = 4;
  for (int i = threadIdx.x % 32; i < count; i += 32 * AT_ONCE) {
    E x[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++)
      if (i + 32 * j < count) x[j] = __ldg(from + i + 32 * j);
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
      const uint32_t at = to + (i + 32 * j) * sizeof(E);
      if (i + 32 * j >= count) break;
      if constexpr (sizeof(E) == 4)
        ptx::st_shared(at, x[j]);
      else if constexpr (sizeof(E) == 2)
        ptx::st_shared_u16(at, x[j]);
      else
        ptx::st_shared_u8(at, x[j]);
    }
  }
}
__device__ __noinline__ void copy_row(uint32_t to, const char *from, int size, int count) {
  if (size == 4)
    copy_elements(to, (const uint32_t *)from, count);
  else if (size == 2)
    copy_elements(to, (const uint16_t *)from, count);
  else
    copy_elements(to, (const uint8_t *)from, count);
}

/* A row for each of a stage's segments, each by a warp; the warps take turns. */
template <class T> struct AsyncGroups {
  static constexpr int WARPS = T::THREADS / 32;
  static_assert(T::SEGMENTS <= WARPS || !T::GROUPS, "a warp has a row");
  const GroupArguments &g;
  int first_column, columns; /* of the tile, and how many the matrix has from there on */
  int segment, turn;         /* of the next stage; the row of it that this warp has */

  __device__ __forceinline__ AsyncGroups(const GroupArguments &g, int first_segment, int first_column, int N)
      : g(g), first_column(first_column), columns(min(T::BN, N - first_column)), segment(first_segment),
        turn(threadIdx.x / 32) {}
  /* Those of the next stage, beside the copies of A and B. Past K they are those of the last segment. */
  __device__ __forceinline__ void copy(uint32_t slot) {
    if (turn < T::SEGMENTS) {
      int64_t group = __umulhi(2 * min(segment + turn, g.segments - 1), g.reciprocal);
      const char *scales = g.scales + group * g.scales_stride + first_column * g.scale_size;
      const char *bytes = g.bytes + group * g.bytes_stride + first_column;
      const uint32_t to = slot + turn * (T::BN * 4), bytes_to = slot + T::SCALE_BYTES + turn * T::BN;
      if (T::CHAIN) copy_columns(to, scales, g.scale_size);
      if (T::COLUMN_BYTES && g.bytes) copy_columns(bytes_to, bytes, 1);
    }
    segment += T::SEGMENTS, turn -= T::SEGMENTS;
    if (turn < 0) turn += WARPS;
  }

private:
  __device__ __forceinline__ void copy_columns(uint32_t to, const char *from, int size) const {
    const int at = threadIdx.x % 32 * 16, bytes = columns * size;
    if (!g.vectors || bytes % 16) return copy_row(to, from, size, columns);
    if (at < bytes) ptx::cp_async16(to + at, from + at, 16);
  }
};

/* The same where there is no cp.async, a column or several by each thread: loaded a stage ahead. */
template <class T> struct StagedGroups {
  static constexpr int ALL = T::SEGMENTS * T::BN, ITEMS = (ALL + T::THREADS - 1) / T::THREADS;
  static constexpr int ROWS = T::THREADS / T::BN;
  static_assert(!T::GROUPS || !T::STAGED || (T::THREADS % T::BN == 0 && (ITEMS == 1 || ALL % T::THREADS == 0)),
                "a thread has a column of its own");
  const GroupArguments &g;
  int segment, column; /* of the next stage */
  bool inside;
  uint32_t scales[ITEMS]; /* as they lie in memory */
  uint8_t bytes[ITEMS];

  __device__ __forceinline__ StagedGroups(const GroupArguments &g, int first_segment, int first_column, int N)
      : g(g), segment(first_segment + threadIdx.x / T::BN), column(first_column + threadIdx.x % T::BN),
        inside(column < N && (int)threadIdx.x < ALL) {
    if constexpr (T::GROUPS) load();
  }
  __device__ __forceinline__ void copy(uint32_t slot) {
    if (inside)
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        const uint32_t row = threadIdx.x / T::BN + i * ROWS, at = threadIdx.x % T::BN;
        if (T::CHAIN && g.scale_size == 4) ptx::st_shared(slot + (row * T::BN + at) * 4, scales[i]);
        if (T::CHAIN && g.scale_size == 2) ptx::st_shared_u16(slot + row * T::BN * 4 + at * 2, (uint16_t)scales[i]);
        if (T::COLUMN_BYTES) ptx::st_shared_u8(slot + T::SCALE_BYTES + row * T::BN + at, bytes[i]);
      }
    load();
  }

private:
  __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      int64_t group = __umulhi(2 * min(segment + i * ROWS, g.segments - 1), g.reciprocal);
      const char *from = g.scales + group * g.scales_stride + column * g.scale_size;
      scales[i] = 0, bytes[i] = 0;
      if (T::CHAIN && inside)
        scales[i] = g.scale_size == 4 ? __ldg((const uint32_t *)from) : __ldg((const uint16_t *)from);
      if (T::COLUMN_BYTES && inside && g.bytes)
        bytes[i] = __ldg((const uint8_t *)g.bytes + group * g.bytes_stride + column);
    }
    segment += T::SEGMENTS;
  }
};
template <class T> using CopyGroups = typename std::conditional<T::STAGED, StagedGroups<T>, AsyncGroups<T>>::type;

/* ---- what the weights take for the columns that a lane unpacks ---- */

/* Of a segment, or where there are no groups of all K. */
template <class T> struct Columns {
  static constexpr bool ALTERNATE = T::COLUMN_BYTES && T::SEGMENTS > 1;
  Column of[ALTERNATE ? 2 : 1][T::NT];

  __device__ __forceinline__ Columns(const GroupArguments &g, int first_column, int N) {
    if constexpr (!T::COLUMN_BYTES && T::POLICY::WEIGHTS == ZEROS)
#pragma unroll
      for (int n = 0; n < T::NT; n += 4) {
        const int column = first_column + n * 8 + threadIdx.x % 32 / 4 * 4;
        uint32_t bytes = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (g.bytes && column + i < N) bytes |= (uint32_t)__ldg((const uint8_t *)g.bytes + column + i) << 8 * i;
        T::POLICY::columns(&of[0][n], bytes, false);
      }
  }
  /* Of a segment of a slot of groups. Where a stage has several they alternate. */
  __device__ __forceinline__ void load(const GroupArguments &g, uint32_t slot, int segment, int warp_n) {
    if constexpr (T::COLUMN_BYTES) {
      uint32_t from = slot + T::SCALE_BYTES + segment * T::BN + warp_n * T::WN + threadIdx.x % 32 / 4 * 4;
#pragma unroll
      for (int n = 0; n < T::NT; n += 4) {
        uint32_t bytes = 0;
        if (g.bytes) bytes = ptx::ld_shared(from + n * 8);
        T::POLICY::columns(&of[ALTERNATE ? segment % 2 : 0][n], bytes, g.factors);
      }
    }
  }
  __device__ __forceinline__ const Column (&segment(int i) const)[T::NT] {
    return of[ALTERNATE ? i % 2 : 0];
  }
};

/* ---- sums ---- */

/* What accumulators begin with, and their sum as a float. An int32, SCALE times too large, beside the bits of a number
 * whose last place is worth 1 / SCALE is that number plus it, as long as it is below 2^22: an addition where a
 * conversion costs more. */
template <class Sum, int SCALE> struct Accumulator {
  static constexpr float ZERO = 0;
  static __device__ __forceinline__ float sum(float acc) { return acc; }
};
template <int SCALE> struct Accumulator<int32_t, SCALE> {
  static constexpr float BASE = 12582912.0f / SCALE; /* 1.5 * 2^23, one sixteenth for 16 */
  static constexpr int32_t ZERO = SCALE == 16 ? 0x49400000 : 0x4b400000;
  static_assert(SCALE == 1 || SCALE == 16, "other bits");
  static __device__ __forceinline__ float sum(int32_t acc) { return __int_as_float(acc) - BASE; }
  /* Of any int32 of SCALE 1: its halves, each a float, added with one rounding. */
  static __device__ __forceinline__ float large_sum(int32_t acc) {
    static_assert(SCALE == 1, "the lower half is shifted");
    acc -= ZERO;
    float upper = sum((acc >> 16) + ZERO), lower = sum((acc & 0xffff) + ZERO);
    return __fmaf_rn(upper, 65536, lower);
  }
};

/* The scales of eight columns in shared memory, as they lie in memory. */
__device__ __forceinline__ void load_scales(float (&to)[8], uint32_t from, int32_t dtype) {
  uint4 v = ptx::ld_shared_v4(from);
  if (dtype == INT4MM_FLOAT32) {
    uint4 w = ptx::ld_shared_v4(from + 16);
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = __uint_as_float(element(v, i)), to[4 + i] = __uint_as_float(element(w, i));
  } else if (dtype == INT4MM_BFLOAT16) {
#pragma unroll
    for (int i = 0; i < 8; i++)
      to[i] = __uint_as_float(i % 2 ? element(v, i / 2) & 0xffff0000u : element(v, i / 2) << 16);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = int4mm_widen<INT4MM_FLOAT16>((uint16_t)(element(v, i / 2) >> i % 2 * 16));
  }
}

/* A warp's outputs so far, of the groups whose products are done. */
template <class T> struct Totals {
  typedef typename T::POLICY::Sum Sum;
  typedef Accumulator<Sum, T::POLICY::SCALE> Acc;
  static constexpr bool MAY_BE_LARGE = !T::POLICY::FLOAT && (T::SEGMENTS == 1 || T::STAGED) && !T::STAGE_IS_GROUP;
  float t[T::MT][T::NT][4];
  int segment, next; /* segments done, and that after which a group ends */

  __device__ __forceinline__ explicit Totals(const GroupArguments &g) : segment(0), next(min(g.group, g.segments)) {
#pragma unroll
    for (int m = 0; m < T::MT; m++)
#pragma unroll
      for (int n = 0; n < T::NT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) t[m][n][i] = 0;
  }
  /* After a segment, whose scales of this warp's columns are at `scales`: adds the sums of a group that ends, and
   * clears them. */
  __device__ __forceinline__ void end_segment(Sum (&acc)[T::MT][T::NT][4], const GroupArguments &g, uint32_t scales) {
    if constexpr (T::STAGE_IS_GROUP) return add(acc, g, scales, [](Sum x) { return Acc::sum(x); });
    if (++segment != next) return;
    next = next < g.segments ? min(next + g.group, g.segments) : -1;
    if constexpr (MAY_BE_LARGE)
      if (g.large) return add(acc, g, scales, [](Sum x) { return Acc::large_sum(x); });
    add(acc, g, scales, [](Sum x) { return Acc::sum(x); });
  }

private:
  template <class F>
  __device__ __forceinline__ void add(Sum (&acc)[T::MT][T::NT][4], const GroupArguments &g, uint32_t scales,
                                      F to_float) {
    scales += threadIdx.x % 4 * 8 * g.scale_size;
#pragma unroll
    for (int q = 0; q < T::NT; q += 4) {
      float scale[8]; /* of columns 8t .. 8t + 7 of 32 */
      load_scales(scale, scales + q * 8 * g.scale_size, g.scale_dtype);
#pragma unroll
      for (int m = 0; m < T::MT; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            t[m][q + n][i] = __fmaf_rn(to_float(acc[m][q + n][i]), scale[n + i % 2 * 4], t[m][q + n][i]);
            if (!T::STAGE_IS_GROUP) acc[m][q + n][i] = Acc::ZERO;
          }
    }
  }
};
struct NoTotals {
  __device__ __forceinline__ explicit NoTotals(const GroupArguments &) {}
};
template <class T> using TotalsOf = typename std::conditional<T::CHAIN, Totals<T>, NoTotals>::type;

/* ---- host ---- */

inline bool is_vectors(const void *data, int64_t stride) {
  return ((uint64_t)data | (uint64_t)stride) % 16 == 0;
}

/* Segments and groups, where k has any. */
template <class T> GroupArguments group_arguments(const int4mm_problem *problem) {
  const int4mm_operand *b = &problem->b;
  const int4mm_matrix &scales = b->group_scales, &bytes = b->factors.data ? b->factors : b->zeros;
  GroupArguments g = {};
  g.segments = (int)((problem->K + T::SEGMENT - 1) / T::SEGMENT);
  g.group = b->groups > 1 ? (int)(b->group / T::SEGMENT) : g.segments;
  g.reciprocal = b->groups > 1 ? (uint32_t)(((1ull << 31) + g.group - 1) / g.group) : 0;
  g.large = (b->groups > 1 ? b->group : problem->K) * T::POLICY::SUM_LIMIT >= 1 << 22;
  g.scales = (const char *)scales.data, g.scale_dtype = scales.dtype;
  g.scale_size = scales.dtype == INT4MM_FLOAT32 ? 4 : 2;
  g.scales_stride = scales.rows > 1 ? scales.stride * g.scale_size : 0;
  if (T::CHAIN && !scales.data) { /* a scale for each column alone: a long K */
    g.scales = (const char *)b->scales, g.scale_dtype = INT4MM_FLOAT32, g.scale_size = 4;
    g.group = INT4MM_MMA_LONG_GROUP / T::SEGMENT;
  }
  for (int part = T::LONGEST_SUM / T::SEGMENT; part > 0 && g.group > part; part /= 2)
    if (b->groups <= 1 || g.group % part == 0) g.group = part; /* a group's sum in parts of one scale */
  g.bytes = (const char *)bytes.data, g.factors = b->factors.data, g.bytes_stride = bytes.rows > 1 ? bytes.stride : 0;
  const int4mm_experts &x = problem->experts;
  g.scales_expert = (scales.data ? x.group_scales : x.scales) * g.scale_size;
  g.bytes_expert = g.factors ? x.factors : x.zeros;
  g.vectors =
      is_vectors(g.scales, g.scales_stride | g.scales_expert) && is_vectors(g.bytes, g.bytes_stride | g.bytes_expert);
  return g;
}

} // namespace
#endif
