/*
 * How narrow.cu's unpackers get packed B: a policy for each way that B may lie and start. A k-block is shared by two
 * warps, or two by four, of whose lanes each has 16 words, four times four, read straight from global memory:
 *
 *   KnVectors  [K/8, N] in 16-byte loads    four neighbouring columns of four rows of B: a slice of each column
 *   KnWords    [K/8, N] in words            32 neighbouring words to a load, over the lanes in an order in which their
 *                                           columns lie in other rows of a swizzle pattern; two columns of two slices
 *   NkVectors  [N, K/8] in 16-byte loads    a quad has 64 bytes, a k-block, of each of its four columns, and of two
 *                                           k-blocks the next quad the second. A lane's words belong to four slices,
 *                                           which stmatrix brings together
 *   NkRuns     [N, K/8] in words            see words_b.cuh
 *
 * All of them store free of bank conflicts. word(e, t) is the t-th word of element e, 0..3: what one step of the loop
 * unpacks; store() takes it to the int8 tile.
 */
#ifndef INT4MM_NARROW_B_CUH
#define INT4MM_NARROW_B_CUH

#include "sm90/words_b.cuh"

namespace {

template <class T> struct KnVectors : PackedB {
  uint32_t offset; /* in the int8 tile */

  __device__ __forceinline__ KnVectors(const Arguments &p, int first_word, int first_column, int warp)
      : PackedB(p, p.ldb, 1, first_word + slice(warp), first_column + lane() * 4),
        offset(int8_row(0, lane()) ^ slice(warp) << 5) {
    if (columns <= 0) left = 0;
  }
  static __device__ __forceinline__ int lane() { return threadIdx.x % T::UNPACK_LANES; }
  static __device__ __forceinline__ int slice(int warp) {
    return warp % T::GROUP_WARPS * 2 + threadIdx.x % 32 / T::UNPACK_LANES;
  }

  __device__ __forceinline__ void prefetch(const Arguments &p) const {
#pragma unroll
    for (int t = 0; t < 4; t++)
      if (threadIdx.x % 8 == 0 && 4 * t < left) ptx::prefetch_l2(from + 4 * t * p.ldb);
  }
  __device__ __forceinline__ void load(const Arguments &p) {
#pragma unroll
    for (int t = 0; t < 4; t++) words[t] = load_vector(from + 4 * t * p.ldb, 4 * t < left, p);
  }
  __device__ __forceinline__ void store(const Unpacked<typename T::Kind::UnpackB, 1> &unpacked, uint32_t tile,
                                        int e) const {
    uint32_t low = tile + offset, high = low ^ 16, below = e * T::UNPACK_LANES * BLOCK_K;
    unpacked.store(0, low + below, high + below);
  }
};

template <class T> struct KnWords : PackedB {
  uint32_t offset;

  __device__ __forceinline__ KnWords(const Arguments &p, int first_word, int first_column, int warp)
      : PackedB(p, p.ldb, 1, first_word + slice(warp), first_column + column()),
        offset(int8_row(0, column() % 4 * T::UNPACK_LANES + column() / 4) ^ slice(warp) << 5) {}
  static __device__ __forceinline__ int column() { return threadIdx.x % 8 * 4 + threadIdx.x % 32 / 8; }
  static __device__ __forceinline__ int slice(int warp) { return warp % T::GROUP_WARPS * 2; } /* and the next one */

  __device__ __forceinline__ void prefetch(const Arguments &p) const {
#pragma unroll
    for (int t = 0; t < 4; t++)
      if (threadIdx.x % 16 == 0 && 4 * t < left) ptx::prefetch_l2(from + 4 * t * p.ldb);
  }
  /* Element e: column e % 2 * 32 from the first one on, of slice e / 2. */
  __device__ __forceinline__ uint32_t load(const Arguments &p, int t, int e) const {
    int row = 4 * t + e / 2, column = e % 2 * 32;
    return load_word(from + row * p.ldb + column, row < left && column < columns, p);
  }
  __device__ __forceinline__ void load(const Arguments &p) {
#pragma unroll
    for (int t = 0; t < 4; t++) words[t] = make_uint4(load(p, t, 0), load(p, t, 1), load(p, t, 2), load(p, t, 3));
  }
  __device__ __forceinline__ void store(const Unpacked<typename T::Kind::UnpackB, 1> &unpacked, uint32_t tile,
                                        int e) const {
    uint32_t low = (tile + offset) ^ e / 2 << 5, high = low ^ 16, below = e % 2 * 8 * BLOCK_K;
    unpacked.store(0, low + below, high + below);
  }
};

/* A quad's columns are a multiple of four and the next ones: in the int8 tile they lie UNPACK_LANES rows apart. */
template <class T> struct NkVectors : PackedB {
  uint32_t offset; /* of a row of a matrix */

  static constexpr int LANES = 4 * T::TURN; /* that have the k-blocks of a column */

  /* Lane 8j + r has the address of the r-th quad's column in slice j, where a matrix of stmatrix has its row r. Second
   * k-blocks have slice j ^ 2 there: their rows are those of the first ones, in the same banks. */
  __device__ __forceinline__ NkVectors(const Arguments &p, int first_word, int first_column, int warp)
      : PackedB(p, 1, p.ldb, first_word + threadIdx.x % LANES * 4,
                first_column + (first_quad(warp) + threadIdx.x % 32 / LANES) * 4) {
    const int second = threadIdx.x % T::TURN, slice = threadIdx.x % 32 / 8 ^ second * 2;
    offset = (int8_row(0, first_quad(warp) + threadIdx.x % 8 / T::TURN) ^ slice << 5) + second * T::B8_BYTES;
  }
  static __device__ __forceinline__ int first_quad(int warp) { return warp % T::GROUP_WARPS * (32 / LANES); }
  /* Of column e the words 4t + j of lane t. */
  __device__ __forceinline__ uint32_t word(int e, int j) const {
    return T::TURN == 2 && threadIdx.x & 4 ? element(words[e], j ^ 2) : element(words[e], j);
  }

  /* Where CTAs share K, all that the CTA takes of 64 columns, up to 1 KB each, by its first group. On an H100 64 x 4096
   * x 4096 takes 6.8 us so, for 7.2, 128 rows 8.0, for 8.4; where CTAs are more, 256 rows 12.4, for 11.7. Not where A
   * is still being made, whose kernel would wait for memory behind it: the layer of 128 rows takes 9.9 us, for 10.9. */
  __device__ __forceinline__ void prefetch(const Arguments &p) const {
    const int column = threadIdx.x % LANES, words = min(left + column * 4, 16 * BLOCK_WORDS);
    if (p.split == 2 && !p.early_b) {
      if (threadIdx.x < 32 * T::GROUP_WARPS && column < min(columns, 4) && words > 0)
        ptx::cp_async_bulk_prefetch(from + column * p.ldb - column * 4, words * 4);
      return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (threadIdx.x % LANES == 0 && e < columns && left > 0) ptx::prefetch_l2(from + e * p.ldb);
  }
  __device__ __forceinline__ void load(const Arguments &p) {
#pragma unroll
    for (int e = 0; e < 4; e++) words[e] = load_vector(from + e * p.ldb, e < columns && left > 0, p);
  }
  __device__ __forceinline__ void store(const Unpacked<typename T::Kind::UnpackB, 1> &unpacked, uint32_t tile,
                                        int e) const {
    uint32_t low = tile + offset, high = low ^ 16, below = e * T::UNPACK_LANES * BLOCK_K;
    ptx::stmatrix_x4(low + below, unpacked.even[0]);
    ptx::stmatrix_x4(high + below, unpacked.odd[0]);
  }
};

template <class T, bool NK = T::NK, bool ALIGNED = T::ALIGNED> struct NarrowB { typedef KnVectors<T> type; };
template <class T> struct NarrowB<T, false, false> { typedef KnWords<T> type; };
template <class T> struct NarrowB<T, true, true> { typedef NkVectors<T> type; };
template <class T> struct NarrowB<T, true, false> { typedef NkRuns<T> type; };

} // namespace
#endif
