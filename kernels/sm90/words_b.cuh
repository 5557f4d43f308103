/*
 * Packed B straight from global memory to the registers of the warps that unpack it, and of that the way which serves
 * rows that start anywhere and which narrow.cu and hopper.cu share.
 */
#ifndef INT4MM_WORDS_B_CUH
#define INT4MM_WORDS_B_CUH

#include "sm90/mainloop.cuh"

namespace {

/* What the policies share: `from` is where the lane's words of the k-block begin, `left` are the words of k from its
 * first on, `columns` those of B from its first on. Words outside are such as mean 0, so that the undefined tail of A
 * does not count. */
struct PackedB {
  const uint32_t *from;
  int left, columns;
  uint4 words[4];

  __device__ __forceinline__ PackedB(const Arguments &p, int64_t step_k, int64_t step_n, int word, int column)
      : from(p.b + word * step_k + column * step_n), left(p.words - word), columns(p.N - column) {}
  __device__ __forceinline__ uint32_t word(int e, int t) const { return element(words[t], e); }

  static __device__ __forceinline__ uint4 load_vector(const uint32_t *at, bool inside, const Arguments &p) {
    return inside ? ptx::ld_global_v4(at) : make_uint4(p.xor_b, p.xor_b, p.xor_b, p.xor_b);
  }
  static __device__ __forceinline__ uint32_t load_word(const uint32_t *at, bool inside, const Arguments &p) {
    return inside ? ptx::ld_global(at) : p.xor_b;
  }
};

/* [N, K/8]. Half of a warp has the k-block of a column, 64 bytes, and its other half that of the same column of the
 * next quad, since loads take L1 longer the more lines they touch. Quads of lanes have the words of a slice, so that
 * all that the warp has of a load is a matrix of stmatrix: two columns' four slices. */
template <class T> struct NkRuns : PackedB {
  uint32_t offset; /* of a row of a matrix */

  __device__ __forceinline__ NkRuns(const Arguments &p, int first_word, int first_column, int warp)
      : PackedB(p, 1, p.ldb, first_word + word_of_lane(), first_column + (first_quad(warp) + half()) * 4) {
    const int lane = threadIdx.x % 32;
    offset = int8_row(0, first_quad(warp) + lane / 8 * 2 + lane % 8 / 4) ^ lane % 4 << 5;
  }
  static __device__ __forceinline__ int half() { return threadIdx.x % 32 / 16; }
  static __device__ __forceinline__ int word_of_lane() { return threadIdx.x % 4 * 4 + threadIdx.x % 16 / 4; }
  static __device__ __forceinline__ int first_quad(int warp) {
    return warp % T::GROUP_WARPS * (T::BN / 4 / T::GROUP_WARPS);
  }
  /* To another k-block. */
  __device__ __forceinline__ void move(const Arguments &p, int first_word, int first_column, int warp) {
    const int word = first_word + word_of_lane(), column = first_column + (first_quad(warp) + half()) * 4;
    from = p.b + word + column * p.ldb, left = p.words - word, columns = p.N - column;
  }

  __device__ __forceinline__ void prefetch(const Arguments &p) const {
    int column = threadIdx.x % 32 - half() * 4; /* from the lane's first on, so that all 32 are */
    if (column < columns && left > 0) ptx::prefetch_l2(from + column * p.ldb);
  }
  /* Of the block-th 32 columns of the warp; element e: column e of the t-th second quad. */
  __device__ __forceinline__ void load(const Arguments &p, int block = 0) {
    const uint32_t *row = from + block * 32 * p.ldb;
    auto next = [&](int column) {
      asm volatile("" : "+l"(row)); /* or the compiler keeps all the distances, in too many registers */
      uint32_t word = load_word(row, block * 32 + column < columns && left > 0, p);
      row += column % 4 == 3 ? 5 * p.ldb : p.ldb;
      return word;
    };
#pragma unroll
    for (int t = 0; t < 4; t++) {
      words[t].x = next(8 * t), words[t].y = next(8 * t + 1);
      words[t].z = next(8 * t + 2), words[t].w = next(8 * t + 3);
    }
  }
  __device__ __forceinline__ void store(const Unpacked<typename T::Kind::UnpackB, 1> &unpacked, uint32_t tile, int e,
                                        int block = 0) const {
    uint32_t low = tile + offset, high = low ^ 16, below = (e * T::UNPACK_LANES + block * 8) * BLOCK_K;
    ptx::stmatrix_x4(low + below, unpacked.even[0]);
    ptx::stmatrix_x4(high + below, unpacked.odd[0]);
  }
};

} // namespace
#endif
