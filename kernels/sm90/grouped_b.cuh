/*
 * How grouped.cuh's consumers make fragments of packed weights, for each kind of activations. A slice is what
 * one wgmma takes of k; a lane's rows of a fragment, g and g + 8, are neighbouring columns of B, whose words it finds
 * by KnBoxes, NkBoxes or NkMatrices.
 *
 *   BytesB   W4A8: k in its order, 32j + 4t .. + 3 and 16 further on: halves of the words 4j + t / 2 and two further on
 *   WordsB   W4A8 in even-odd order: the even and the odd nibbles of the word 4j + t
 *   FloatsB  W4A16: k in its order, 16j + 2t, 2t + 1 and 8 further on: byte t of the words 2j and 2j + 1
 *
 * The arithmetic is that of common/neighbours.cuh, and of common/unpack.cuh for words.
 */
#ifndef INT4MM_GROUPED_B_CUH
#define INT4MM_GROUPED_B_CUH

#include "common/epilogue.cuh"
#include "common/neighbours.cuh"
#include "common/unpack.cuh"
#include "sm90/kinds.cuh"
#include "sm90/pipeline.cuh"

namespace {

/* W4A8_EVEN_ODD: the operand is even_odd (core/problem.h). */
enum Activations { W4A8, W4A8_EVEN_ODD, W4A16_HALF, W4A16_BFLOAT };

/* ---- packed B in a stage ---- */

constexpr int BOX_COLUMNS = 32; /* of [K/8, N] in a copy: 128 bytes */
constexpr int BOX_BYTES = BOX_COLUMNS * BLOCK_WORDS * 4;

/* [K/8, N]: boxes of 32 columns, in the 128-byte swizzle. pair() is what a lane has of a row of k: the words of its
 * column, which is even, and the next. Rows are counted from the lane's `first_row` on, and go past no multiple of 4 by
 * that. */
struct KnBoxes {
  uint32_t offset;
  __device__ __forceinline__ KnBoxes(int column, int first_row)
      : offset(column / BOX_COLUMNS * BOX_BYTES + first_row * (BOX_COLUMNS * 4) +
               (column % BOX_COLUMNS * 4 ^ first_row << 4)) {}
  __device__ __forceinline__ uint2 pair(uint32_t stage, int block, int row) const {
    uint32_t at = (stage + offset) ^ block << 4;
    return ptx::ld_shared_v2((at ^ (row & 7) << 4) + row * (BOX_COLUMNS * 4));
  }
  /* Of two rows, the first even: their words of the column, then those of the next. */
  __device__ __forceinline__ uint4 pairs(uint32_t stage, int block, int row) const {
    const uint2 first = pair(stage, block, row), second = pair(stage, block, row + 1);
    return make_uint4(first.x, second.x, first.y, second.y);
  }
};

/* [N, K/8]: a k-block of each column, 64 bytes, in the 64-byte swizzle, first of the even columns, then of the odd:
 * what a warp loads at once is of columns two apart, which so lie in different banks. */
template <int BN> struct NkBoxes {
  static constexpr int ROW = BLOCK_WORDS * 4, ODD_COLUMNS = BN / 2 * ROW;
  uint32_t offset;
  __device__ __forceinline__ NkBoxes(int column, int first_row) : offset(column_offset(column) + first_row * 4) {}
  static __device__ __forceinline__ uint32_t column_offset(int column) {
    return column / 2 * ROW + ((column / 4 & 3) << 4);
  }
  __device__ __forceinline__ uint2 pair(uint32_t stage, int, int row) const {
    uint32_t at = ((stage + offset) ^ row / 4 << 4) + row % 4 * 4;
    return make_uint2(ptx::ld_shared(at), ptx::ld_shared(at + ODD_COLUMNS));
  }
  __device__ __forceinline__ uint4 pairs(uint32_t stage, int, int row) const {
    uint32_t at = ((stage + offset) ^ row / 4 << 4) + row % 4 * 4;
    const uint2 first = ptx::ld_shared_v2(at), second = ptx::ld_shared_v2(at + ODD_COLUMNS);
    return make_uint4(first.x, first.y, second.x, second.y);
  }
};

/* The same by ldmatrix, whose matrices are four words of each of a warp's eight even columns, or odd ones. Lane 8i + r
 * has the address of the r-th of these columns' row in matrix i: even and odd columns of a slice, then of the next. */
template <int BN> struct NkMatrices {
  typedef NkBoxes<BN> Boxes;
  uint32_t offset;
  __device__ __forceinline__ NkMatrices(int column, int) {
    const int lane = threadIdx.x % 32, of_row = __shfl_sync(0xffffffffu, column, lane % 8 * 4);
    offset = (Boxes::column_offset(of_row) ^ lane / 16 << 4) + lane / 8 % 2 * Boxes::ODD_COLUMNS;
  }
  /* What WordsB::load() gives of two slices, of which the first is even. */
  __device__ __forceinline__ void load(uint2 &first, uint2 &second, uint32_t stage, int slice) const {
    uint32_t matrices[4];
    ptx::ldmatrix_x4(matrices, (stage + offset) ^ slice << 4);
    first = make_uint2(matrices[0], matrices[1]), second = make_uint2(matrices[2], matrices[3]);
  }
};

/* A stage's rows of packed B. */
template <class Boxes> struct Rows {
  const Boxes &boxes;
  uint32_t stage;
  int block;
  __device__ __forceinline__ uint2 pair(int row) const { return boxes.pair(stage, block, row); }
  __device__ __forceinline__ uint4 pairs(int row) const { return boxes.pairs(stage, block, row); }
};

/* ---- fragments ---- */

/* A uniform value in an ordinary register: instructions that take it from a uniform one need a move each. */
__device__ __forceinline__ uint32_t in_register(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

/* load() takes a lane's words of a slice from Rows, where its rows of a k-block begin with first_row().
 * unpack's last argument has for each of the two columns what WEIGHTS take: a prepared zero point or a
 * factor. */
template <int WEIGHTS> struct BytesB {
  static constexpr float UNSCALE = WEIGHTS == PLAIN ? 1.0f / 16 : 1.0f;
  uint32_t fix, halves; /* a selector for prmt: this lane's half of two words */
  __device__ __forceinline__ explicit BytesB(uint32_t xor_mask)
      : fix(in_register(bytes_fix(WEIGHTS, xor_mask))), halves(threadIdx.x & 1 ? 0x7632 : 0x5410) {}

  static __device__ __forceinline__ int first_row() { return threadIdx.x % 4 / 2; }
  /* Halves of the words of slice j: the lower 16 bits are of the first 16 values of k. */
  template <class Rows> __device__ __forceinline__ uint2 load(int j, const Rows &rows) const {
    uint2 first = rows.pair(4 * j), second = rows.pair(4 * j + 2);
    return make_uint2(__byte_perm(first.x, second.x, halves), __byte_perm(first.y, second.y, halves));
  }
  __device__ __forceinline__ void unpack(uint32_t (&to)[4], uint32_t low, uint32_t high, uint2 affine) const {
    bytes_of_neighbours<WEIGHTS>(to[0], to[2], low, fix, column(affine.x));
    bytes_of_neighbours<WEIGHTS>(to[1], to[3], high, fix, column(affine.y));
  }

  /* Of two columns, from the lower of four zero points. */
  static __device__ __forceinline__ uint2 pair_of_zeros(uint32_t zeros) {
    Column columns[4];
    columns_of_bytes<ZEROS>(columns, zeros, false);
    return make_uint2(columns[0].c, columns[1].c);
  }

  static __device__ __forceinline__ Column column(uint32_t affine) {
    return WEIGHTS == AFFINE ? Column{0x80808080u - affine * 0x08080808u, affine} : Column{affine, 1};
  }
};

template <int WEIGHTS> struct WordsB {
  static constexpr float UNSCALE = BytesB<WEIGHTS>::UNSCALE;
  typename std::conditional<WEIGHTS == PLAIN, Unpacker<false>, AffineUnpacker>::type unpacker;
  __device__ __forceinline__ explicit WordsB(uint32_t xor_mask) : unpacker(in_register(xor_mask)) {}

  static __device__ __forceinline__ int first_row() { return threadIdx.x % 4; }
  template <class Rows> __device__ __forceinline__ uint2 load(int j, const Rows &rows) const {
    return rows.pair(4 * j);
  }
  __device__ __forceinline__ void unpack(uint32_t (&to)[4], uint32_t x, uint32_t y, uint2 affine) const {
    const auto first = with_column(x, affine.x), second = with_column(y, affine.y);
    to[0] = unpacker.even(first), to[1] = unpacker.even(second);
    to[2] = unpacker.odd(first), to[3] = unpacker.odd(second);
  }
  static __device__ __forceinline__ uint2 pair_of_zeros(uint32_t zeros) {
    return BytesB<WEIGHTS>::pair_of_zeros(zeros);
  }

private:
  static __device__ __forceinline__ auto with_column(uint32_t word, uint32_t affine) {
    if constexpr (WEIGHTS == PLAIN) {
      return word;
    } else {
      const Column of = BytesB<WEIGHTS>::column(affine);
      return AffineWord{word, of.f, of.c};
    }
  }
};

template <bool BFLOAT> struct FloatsB {
  static constexpr float UNSCALE = FloatsScale<BFLOAT>::UNSCALE;
  uint32_t fix, byte; /* a selector for prmt: byte t of two words, twice */
  __device__ __forceinline__ explicit FloatsB(uint32_t xor_mask)
      : fix(in_register(floats_fix(xor_mask))), byte((threadIdx.x % 4) * 0x1111 + 0x4040) {}

  static __device__ __forceinline__ int first_row() { return 0; }
  template <class Rows> __device__ __forceinline__ uint2 load(int j, const Rows &rows) const {
    const uint4 words = rows.pairs(2 * j);
    return make_uint2(__byte_perm(words.x, words.y, byte), __byte_perm(words.z, words.w, byte));
  }
  __device__ __forceinline__ void unpack(uint32_t (&to)[4], uint32_t low, uint32_t high, uint2 zero) const {
    const Column first = {zero.x, 1}, second = {zero.y, 1};
    to[0] = floats_of_neighbours<BFLOAT>(low, fix, first), to[1] = floats_of_neighbours<BFLOAT>(high, fix, second);
    to[2] = floats_of_neighbours<BFLOAT>(low >> 8, fix, first);
    to[3] = floats_of_neighbours<BFLOAT>(high >> 8, fix, second);
  }

  static __device__ __forceinline__ uint2 pair_of_zeros(uint32_t zeros) {
    Column columns[4];
    columns_of_floats<BFLOAT>(columns, zeros);
    return make_uint2(columns[0].c, columns[1].c);
  }
};

template <int KIND, int WEIGHTS> struct PolicyB { typedef FloatsB<KIND == W4A16_BFLOAT> type; };
template <int WEIGHTS> struct PolicyB<W4A8, WEIGHTS> { typedef BytesB<WEIGHTS> type; };
template <int WEIGHTS> struct PolicyB<W4A8_EVEN_ODD, WEIGHTS> { typedef WordsB<WEIGHTS> type; };

/* A zero point as the policies take it, twice or four times. */
template <int KIND> __device__ __forceinline__ uint32_t prepare_zero(int z) {
  if (KIND == W4A8 || KIND == W4A8_EVEN_ODD) return (uint32_t)(120 - z) * 0x01010101u;
  float x = (float)(-8 - z) / FloatsB<KIND == W4A16_BFLOAT>::UNSCALE;
  return KIND == W4A16_BFLOAT ? int4mm_round2<INT4MM_BFLOAT16>(x, x) : int4mm_round2<INT4MM_FLOAT16>(x, x);
}

} // namespace
#endif
