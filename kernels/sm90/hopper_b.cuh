/*
 * How hopper.cu's unpackers read packed B in shared memory: a policy for each way that it may lie there. A lane has 16
 * words of a k-block at a time, four times four, and a warp a quarter of the k-block:
 *
 *   KnVectors  [K/8, N], aligned       a slice; a lane's four neighbouring columns of it
 *   KnWords    [K/8, N], by four maps  a slice, which is the rows of one map; columns 32 apart, over the lanes in an
 *                                      order in which they lie in other rows of a swizzle pattern
 *   NkVectors  [N, K/8], aligned       the columns of one map, a k-block or two of each, 64 or 128 bytes in the swizzle
 *                                      of as many; all four slices of a lane's
 *   NkWords    [N, K/8], shifted       the same in words; lanes 8 apart begin with other slices, and so read other
 * banks
 *
 * Where T::WORDS_B words come straight from global memory instead (words_b.cuh).
 *
 * Loads and stores are free of bank conflicts. Words past K are made such as mean 0, since those of an
 * int4 A are undefined; those of an int8 A are 0 (where it saves registers, it is left at that).
 * word_of(quarter, e, t) is the word of the k-block that word(e, t) is, column_of(quarter, e) which it is of a lane's
 * four columns, first_column() and every STEP-th from there.
 */
#ifndef INT4MM_HOPPER_B_CUH
#define INT4MM_HOPPER_B_CUH

#include "sm90/mainloop.cuh"

namespace {

/* What the policies share. word(e, t) is the t-th word of element e, 0..3; `shift` is that of the quarter's map. */
template <class T> struct QuarterB {
  typedef Unpacked<typename T::Kind::UnpackB, T::UNPACK_COLUMNS> Elements;
  static constexpr int STEP = 1;
  uint4 words[4];
  __device__ __forceinline__ uint32_t word(int e, int t) const { return element(words[t], e); }
  static __device__ __forceinline__ uint32_t lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int first_column() { return lane() * 4; }
};

/* Of [K/8, N] a quarter is a slice, its elements columns. Of [N, K/8] it is columns, their elements slices. */
template <class T> struct QuarterKn : QuarterB<T> {
  static __device__ __forceinline__ int word_of(int slice, int, int t) { return 4 * t + slice; }
  static __device__ __forceinline__ int column_of(int, int e) { return e; }
};
template <class T> struct QuarterNk : QuarterB<T> {
  static __device__ __forceinline__ int word_of(int, int e, int t) { return 4 * t + e; }
  static __device__ __forceinline__ int column_of(int residue, int) { return residue; }
};

template <class T> struct KnVectors : QuarterKn<T> {
  using QuarterB<T>::words, QuarterB<T>::lane;
  __device__ __forceinline__ void load(uint32_t from, int slice, int, int valid, uint32_t xor_mask) {
    uint32_t at = from + slice * T::ROW_BYTES + lane() * 16;
#pragma unroll
    for (int t = 0; t < 4; t++) words[t] = ptx::ld_shared_v4(at + 4 * t * T::ROW_BYTES);
    if (!T::Kind::ZERO_TAIL && valid < BLOCK_WORDS &&
        xor_mask) { /* zero words came, which mean -8 in the offset encoding */
#pragma unroll
      for (int t = 0; t < 4; t++)
        if (!T::Kind::ZERO_TAIL && 4 * t + slice >= valid)
          words[t] = make_uint4(xor_mask, xor_mask, xor_mask, xor_mask);
    }
  }
  static __device__ __forceinline__ void store(const typename QuarterB<T>::Elements &unpacked, uint32_t tile, int slice,
                                               int first) {
    uint32_t low = int8_row(tile, lane()) ^ slice << 5, high = low ^ 16;
#pragma unroll
    for (int i = 0; i < T::UNPACK_COLUMNS; i++) {
      int below = (first + i) * T::UNPACK_LANES * BLOCK_K;
      unpacked.store(i, low + below, high + below);
    }
  }
};

template <class T> struct KnWords : QuarterKn<T> {
  using QuarterB<T>::words, QuarterB<T>::lane;
  static constexpr int STEP = 32;
  static __device__ __forceinline__ int first_column() { return lane() % 8 * 4 + lane() / 8; }
  __device__ __forceinline__ void load(uint32_t from, int slice, int shift, int valid, uint32_t xor_mask) {
    uint32_t at = from + slice * T::QUARTER_BYTES + (shift + lane() % 8 * 4 + lane() / 8) * 4;
#pragma unroll
    for (int t = 0; t < 4; t++) {
      uint32_t row = at + t * T::ROW_BYTES;
      words[t] = make_uint4(ptx::ld_shared(row), ptx::ld_shared(row + 128), ptx::ld_shared(row + 256),
                            ptx::ld_shared(row + 384));
      if (!T::Kind::ZERO_TAIL && 4 * t + slice >= valid) words[t] = make_uint4(xor_mask, xor_mask, xor_mask, xor_mask);
    }
  }
  static __device__ __forceinline__ void store(const typename QuarterB<T>::Elements &unpacked, uint32_t tile, int slice,
                                               int first) {
    uint32_t low = int8_row(tile, lane() / 8 * T::UNPACK_LANES + lane() % 8) ^ slice << 5, high = low ^ 16;
#pragma unroll
    for (int i = 0; i < T::UNPACK_COLUMNS; i++) {
      int below = (first + i) * 8 * BLOCK_K;
      unpacked.store(i, low + below, high + below);
    }
  }
};

template <class T> struct NkVectors : QuarterNk<T> {
  using QuarterB<T>::words, QuarterB<T>::lane;
  /* `place`: 0 of a k-block that was copied alone, 1 or 2 of the first or the second of two. */
  __device__ __forceinline__ void load(uint32_t from, int residue, int place, int valid, uint32_t xor_mask) {
    const uint32_t row = (residue * (T::BN / 4) + lane()) * (place ? 2 * T::ROW_BYTES : T::ROW_BYTES);
    const uint32_t at = (from + row + ((place ? lane() & 7 : lane() >> 1 & 3) << 4)) ^ place / 2 * T::ROW_BYTES;
#pragma unroll
    for (int t = 0; t < 4; t++) words[t] = ptx::ld_shared_v4(at ^ t << 4);
    if (!T::Kind::ZERO_TAIL && valid < BLOCK_WORDS && xor_mask) {
#pragma unroll
      for (int t = 0; t < 4; t++) {
        uint4 &w = words[t];
        w.x = 4 * t < valid ? w.x : xor_mask, w.y = 4 * t + 1 < valid ? w.y : xor_mask;
        w.z = 4 * t + 2 < valid ? w.z : xor_mask, w.w = 4 * t + 3 < valid ? w.w : xor_mask;
      }
    }
  }
  static __device__ __forceinline__ void store(const typename QuarterB<T>::Elements &unpacked, uint32_t tile,
                                               int residue, int first) {
    uint32_t low = int8_row(tile, residue * T::UNPACK_LANES + lane()), high = low ^ 16;
#pragma unroll
    for (int i = 0; i < T::UNPACK_COLUMNS; i++) unpacked.store(i, low ^ (first + i) << 5, high ^ (first + i) << 5);
  }
};

template <class T> struct NkWords : QuarterNk<T> {
  using QuarterB<T>::words, QuarterB<T>::lane;
  static __device__ __forceinline__ int slice(int e) { return (e + lane() / 8) % 4; } /* of an element */
  static __device__ __forceinline__ int word_of(int, int e, int t) { return 4 * t + slice(e); }

  __device__ __forceinline__ void load(uint32_t from, int residue, int shift, int valid, uint32_t xor_mask) {
    uint32_t at = from + residue * T::QUARTER_BYTES + lane() * T::ROW_BYTES + shift * 4;
    uint32_t at_0 = at + 4 * slice(0), at_1 = at + 4 * slice(1), at_2 = at + 4 * slice(2), at_3 = at + 4 * slice(3);
#pragma unroll
    for (int t = 0; t < 4; t++)
      words[t] = make_uint4(ptx::ld_shared(at_0 + 16 * t), ptx::ld_shared(at_1 + 16 * t), ptx::ld_shared(at_2 + 16 * t),
                            ptx::ld_shared(at_3 + 16 * t));
    if (!T::Kind::ZERO_TAIL && valid < BLOCK_WORDS) {
#pragma unroll
      for (int t = 0; t < 4; t++) {
        uint4 &w = words[t];
        w.x = 4 * t + slice(0) < valid ? w.x : xor_mask, w.y = 4 * t + slice(1) < valid ? w.y : xor_mask;
        w.z = 4 * t + slice(2) < valid ? w.z : xor_mask, w.w = 4 * t + slice(3) < valid ? w.w : xor_mask;
      }
    }
  }
  static __device__ __forceinline__ void store(const typename QuarterB<T>::Elements &unpacked, uint32_t tile,
                                               int residue, int first) {
    uint32_t row = int8_row(tile, residue * T::UNPACK_LANES + lane());
#pragma unroll
    for (int i = 0; i < T::UNPACK_COLUMNS; i++) {
      uint32_t low = row ^ slice(first + i) << 5;
      unpacked.store(i, low, low ^ 16);
    }
  }
};

template <class T, bool NK = T::NK, bool ALIGNED = T::ALIGNED> struct HopperB { typedef KnVectors<T> type; };
template <class T> struct HopperB<T, false, false> { typedef KnWords<T> type; };
template <class T> struct HopperB<T, true, true> { typedef NkVectors<T> type; };
template <class T> struct HopperB<T, true, false> { typedef NkWords<T> type; };

} // namespace
#endif
