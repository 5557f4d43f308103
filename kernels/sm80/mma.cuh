/*
 * mma.sync products of large tiles: what a tile is, and the policies that tell kinds of operands and tensor cores
 * apart.
 *
 * A lane of mma holds, of a row of A or a column of B, neighbours along k at lane % 4. k may be permuted as long as
 * both operands are permuted alike. Where both are packed, lane-in-quad t gets word 4i + t of either, i counting chunks
 * of 32 values:
 *
 *   Int4   m16n8k64 (sm_80, 86, 87, 89; later ones emulate it): the words are the fragments as they lie, and the offset
 *          encoding is one XOR. On sm_75 m8n8k32 with units of 32.
 *   Int8   m16n8k32 (everywhere): the even nibbles of a word are a lane's first register of k, the odd ones its second,
 *          kept at 16 times their value: two ANDs and a shift for eight values. The shift is a multiplication, which
 *          another pipe does than the ANDs; as a shift it costs 3 % on an H100. An AND that takes in the XOR of the
 *          offset encoding reads one register more, and that 9 %, so the plain encoding has code of its own. (A of int8
 *          in shared memory, unpacked once for all warps of a CTA, was 6 % slower: loads from there cost more than the
 *          instructions that they save.)
 *
 * Other activations lie in memory as ldmatrix and the mma want them, k in its order, and B is dealt accordingly
 * (common/neighbours.cuh):
 *
 *   Bytes    A int8, m16n8k32: 4t .. 4t + 3 of 32 values and 16 further on, half of word t / 2 and of word t / 2 + 2
 *   Floats   A float16 or bfloat16, m16n8k16: 2t, 2t + 1 of 16 values and 8 further on, byte t of two words
 */
#ifndef INT4MM_MMA_CUH
#define INT4MM_MMA_CUH

#include "common/neighbours.cuh"
#include "common/ptx.cuh"
#include "common/unpack.cuh"

namespace {

/* What puts the encodings right, made by the host: as computed here it would be computed again for every word. */
struct Encodings {
  uint32_t a, b;    /* packed operands: XOR masks, or as Unpacker has them; neighbours.cuh: fix */
  uint32_t sixteen; /* 16, which the compiler must not know, or it shifts */
};

/* A policy takes a unit of k at a time, UNIT values: A_WORDS words of a lane for 16 rows of A, B_WORDS for 8 columns of
 * B. Sums are SCALE times too large. multiply() adds the products of a unit; one that UNPACKS takes the fragments of A
 * that it made in the unit before, f, and makes the words of the next unit, a, into its own. XORS: a mask is not 0.
 * SUM_LIMIT: the largest product. AVAILABLE: there is code for the architecture. NEIGHBOURS: A is not packed, its
 * values are of A_BITS. */
template <bool XORS, int UNIT_ = 64> struct Int4 {
  typedef int32_t Sum;
  static constexpr bool UNPACKS = false, NEIGHBOURS = false, AVAILABLE = ptx::HAS_INT4, FLOAT = false;
  static constexpr int A_BITS = 4, WEIGHTS = PLAIN;
  static Encodings encodings(uint32_t xor_a, uint32_t xor_b) { return {xor_a, xor_b, 16}; }
  static constexpr int UNIT = UNIT_, A_WORDS = UNIT / 16, F_WORDS = A_WORDS, B_WORDS = UNIT / 32;
  static constexpr int SCALE = 1, SUM_LIMIT = 64;
  static constexpr float UNSCALE = 1;
  uint32_t xor_a, xor_b;
  __device__ __forceinline__ explicit Int4(const Encodings &e) : xor_a(e.a), xor_b(e.b) {}

  template <int MT, int NT>
  __device__ __forceinline__ void multiply(int32_t (&acc)[MT][NT][4], const uint32_t (&a)[MT][A_WORDS],
                                           const uint32_t (&b)[B_WORDS][NT]) const {
    uint32_t f[MT][A_WORDS];
#pragma unroll
    for (int i = 0; i < MT * A_WORDS; i++) {
      const uint32_t w = a[i / A_WORDS][i % A_WORDS];
      f[i / A_WORDS][i % A_WORDS] = XORS ? w ^ xor_a : w;
    }
#pragma unroll
    for (int n = 0; n < NT; n++) {
      const uint32_t b0 = XORS ? b[0][n] ^ xor_b : b[0][n], last = b[B_WORDS - 1][n], b1 = XORS ? last ^ xor_b : last;
#pragma unroll
      for (int m = 0; m < MT; m++)
        if constexpr (UNIT == 64)
          ptx::mma_m16n8k64_movable(acc[m][n], f[m], b0, b1);
        else
          ptx::mma_m16n8k32_s4_movable(acc[m][n], f[m], b0);
    }
  }
};

template <bool XORS> struct Int8 {
  typedef int32_t Sum;
  static constexpr bool UNPACKS = true, NEIGHBOURS = false, AVAILABLE = !ptx::HAS_INT4, FLOAT = false;
  static constexpr int A_BITS = 4, WEIGHTS = PLAIN;
  static Encodings encodings(uint32_t xor_a, uint32_t xor_b) { return {xor_a & 0x80808080u, xor_b & 0x80808080u, 16}; }
  static constexpr int UNIT = 32, A_WORDS = 2, F_WORDS = 4, B_WORDS = 1, SCALE = 256, SUM_LIMIT = 64;
  static constexpr float UNSCALE = 1.0f / SCALE;
  uint32_t fix_a, fix_b, sixteen;
  __device__ __forceinline__ explicit Int8(const Encodings &e) : fix_a(e.a), fix_b(e.b), sixteen(e.sixteen) {}
  __device__ __forceinline__ uint32_t even(uint32_t word, uint32_t fix) const {
    return XORS ? (word * sixteen & 0xf0f0f0f0u) ^ fix : word * sixteen & 0xf0f0f0f0u;
  }
  __device__ __forceinline__ uint32_t odd(uint32_t word, uint32_t fix) const {
    return XORS ? (word & 0xf0f0f0f0u) ^ fix : word & 0xf0f0f0f0u;
  }

  /* Word i of A: of row i % 2 * 8 + g of m tile i / 2. */
  template <int MT>
  __device__ __forceinline__ void fragment(uint32_t (&f)[MT][4], const uint32_t (&a)[MT][2], int i) const {
    const uint32_t w = a[i / 2][i % 2];
    f[i / 2][i % 2] = even(w, fix_a), f[i / 2][i % 2 + 2] = odd(w, fix_a);
  }
  template <int MT, int NT>
  __device__ __forceinline__ void multiply(int32_t (&acc)[MT][NT][4], const uint32_t (&f)[MT][4],
                                           const uint32_t (&b)[1][NT], uint32_t (&next)[MT][4],
                                           const uint32_t (&a)[MT][2]) const {
#pragma unroll
    for (int n = 0; n < NT; n++) {
      const uint32_t b0 = even(b[0][n], fix_b), b1 = odd(b[0][n], fix_b);
#pragma unroll
      for (int m = 0; m < MT; m++) {
        ptx::mma_m16n8k32_movable(acc[m][n], f[m], b0, b1);
        if (m != MT / 2 - 1) continue;
#pragma unroll
        for (int i = n * 2 * MT / NT; i < (n + 1) * 2 * MT / NT; i++) fragment(next, a, i);
      }
    }
  }
};

/* What Bytes and Floats share: a unit of A as ldmatrix gives it and two words of B for each column. */
template <class POLICY> struct Neighbours {
  static constexpr bool UNPACKS = false, NEIGHBOURS = true, AVAILABLE = true;
  static constexpr int A_WORDS = 4, F_WORDS = 4, B_WORDS = 2;

  template <int MT, int NT, class Sum>
  __device__ __forceinline__ void multiply(Sum (&acc)[MT][NT][4], const uint32_t (&f)[MT][4],
                                           const uint32_t (&b)[2][NT], const Column (&columns)[NT]) const {
    each(acc, f, b, columns,
         [](Sum(&acc)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) { POLICY::mma(acc, a, b0, b1); });
  }
  /* The same for sums that begin with `zero`. */
  template <int MT, int NT, class Sum>
  __device__ __forceinline__ void multiply_first(Sum (&acc)[MT][NT][4], const uint32_t (&f)[MT][4],
                                                 const uint32_t (&b)[2][NT], const Column (&columns)[NT],
                                                 Sum zero) const {
    each(acc, f, b, columns, [zero](Sum(&acc)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) {
      ptx::mma_m16n8k32_from(acc, a, b0, b1, zero);
    });
  }

private:
  template <int MT, int NT, class Sum, class F>
  __device__ __forceinline__ void each(Sum (&acc)[MT][NT][4], const uint32_t (&f)[MT][4], const uint32_t (&b)[2][NT],
                                       const Column (&columns)[NT], F mma) const {
#pragma unroll
    for (int n = 0; n < NT; n++) {
      uint32_t b0, b1;
      ((const POLICY *)this)->unpack(b0, b1, b[0][n], b[1][n], columns[n]);
#pragma unroll
      for (int m = 0; m < MT; m++) mma(acc[m][n], f[m], b0, b1);
    }
  }
};

/* Lane-in-quad t takes words first_word() and two further on of a unit's four. */
template <int WEIGHTS_> struct Bytes : Neighbours<Bytes<WEIGHTS_>> {
  typedef int32_t Sum;
  static constexpr int WEIGHTS = WEIGHTS_, A_BITS = 8, UNIT = 32, SCALE = WEIGHTS == PLAIN ? 16 : 1;
  static constexpr int64_t SUM_LIMIT = 1 << 14;
  static constexpr bool FLOAT = false;
  static constexpr float UNSCALE = 1.0f / SCALE;
  uint32_t fix, halves; /* a selector for prmt: this lane's half of two words */
  __device__ __forceinline__ explicit Bytes(const Encodings &e) : fix(e.b), halves(threadIdx.x & 1 ? 0x7632 : 0x5410) {}
  static Encodings encodings(uint32_t, uint32_t xor_b) { return {0, bytes_fix(WEIGHTS, xor_b), 16}; }
  static __device__ __forceinline__ void columns(Column *to, uint32_t bytes, bool factors) {
    columns_of_bytes<WEIGHTS>(to, bytes, factors);
  }
  __device__ __forceinline__ void unpack(uint32_t &b0, uint32_t &b1, uint32_t first, uint32_t second,
                                         const Column &column) const {
    bytes_of_neighbours<WEIGHTS>(b0, b1, __byte_perm(first, second, halves), fix, column);
  }
  static __device__ __forceinline__ void mma(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k32_movable(acc, a, b0, b1);
  }
};

/* A lane takes both words of a unit. */
template <bool BFLOAT16> struct Floats : Neighbours<Floats<BFLOAT16>> {
  typedef float Sum;
  static constexpr int WEIGHTS = ZEROS, A_BITS = 16, UNIT = 16, SCALE = 1, SUM_LIMIT = 0;
  static constexpr bool FLOAT = true;
  static constexpr float UNSCALE = FloatsScale<BFLOAT16>::UNSCALE;
  uint32_t fix, byte; /* a selector for prmt: byte t of two words, twice */
  __device__ __forceinline__ explicit Floats(const Encodings &e) : fix(e.b), byte(threadIdx.x % 4 * 0x1111 + 0x4040) {}
  static Encodings encodings(uint32_t, uint32_t xor_b) { return {0, floats_fix(xor_b), 16}; }
  static __device__ __forceinline__ void columns(Column *to, uint32_t zeros, bool) {
    columns_of_floats<BFLOAT16>(to, zeros);
  }
  __device__ __forceinline__ void unpack(uint32_t &b0, uint32_t &b1, uint32_t first, uint32_t second,
                                         const Column &column) const {
    uint32_t w = __byte_perm(first, second, byte);
    b0 = floats_of_neighbours<BFLOAT16>(w, fix, column), b1 = floats_of_neighbours<BFLOAT16>(w >> 8, fix, column);
  }
  static __device__ __forceinline__ void mma(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    ptx::mma_m16n8k16_movable<BFLOAT16>(acc, a, b0, b1);
  }
};

/* What sums are: int32 or float32 without the scales of B, or totals with them in. */
enum SumKind { INTEGERS, FLOATS, TOTALS };

/* BM x BN outputs of a CTA by warps of WM x WN; WARPS_K warps share a warp's outputs, each with every WARPS_Kth unit
 * of k. BK values of k a stage, STAGES of them; CTAS for each SM. NK: B is [N, K/8], else [K/8, N]. CHAIN: with group
 * scales, for each of which a warp adds its sums to totals in float32. SEGMENT: values of k that no group's border
 * divides; STAGE_IS_GROUP: each stage is a group. STAGED: for sm_75, which has 64 KB of shared memory and no cp.async.
 */
template <class POLICY_, int BM_, int BN_, int WM_, int WN_, int WARPS_K_, int BK_, int STAGES_, int CTAS_, bool NK_,
          bool CHAIN_ = false, int SEGMENT_ = (POLICY_::UNIT > 32 ? POLICY_::UNIT : 32), bool STAGED_ = false,
          bool STAGE_IS_GROUP_ = false>
struct Tile {
  typedef POLICY_ POLICY;
  static constexpr int BM = BM_, BN = BN_, WM = WM_, WN = WN_, WARPS_K = WARPS_K_, BK = BK_, STAGES = STAGES_;
  static constexpr int CTAS = CTAS_;
  static constexpr bool NK = NK_, CHAIN = CHAIN_, STAGED = STAGED_, STAGE_IS_GROUP = STAGE_IS_GROUP_;
  /* Values of k that sums of floats may be of, 0 for any number: an mma of sm_75 adds 8 products and rounds towards
   * zero, so that so many cost no more than what the bound allows for K. */
  static constexpr int LONGEST_SUM = STAGED && POLICY::FLOAT ? 128 : 0;
  static constexpr float UNSCALE = CHAIN && !POLICY::FLOAT ? 1 : POLICY::UNSCALE; /* of the sums at last */
  static constexpr SumKind SUM_KIND = CHAIN ? TOTALS : POLICY::FLOAT ? FLOATS : INTEGERS;
  static constexpr bool SPLITS = SUM_KIND == INTEGERS; /* CTAs may share K: their sums are exact in any order */
  /* After the mainloop, of whose registers it would take some: of sm_100 they do not suffice. */
  static constexpr bool FINDS_WORK_AGAIN = POLICY::A_BITS == 8 && BN > 128;
  static constexpr int MT = WM / 16, NT = WN / 8; /* tiles of an mma in a warp's */
  static constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN, THREADS = 32 * WARPS_M * WARPS_N * WARPS_K;
  static constexpr int UNITS = BK / POLICY::UNIT / WARPS_K; /* of a warp in a stage */

  /* A stage in shared memory: rows of A; then word rows of B, or with NK columns of B. */
  static constexpr int A_PITCH = BK * POLICY::A_BITS / 8, A_BYTES = BM * A_PITCH;
  static constexpr int NK_PITCH = BK / 2, B_PITCH = NK ? NK_PITCH : BN * 4, B_BYTES = BN * NK_PITCH;
  static constexpr int STAGE_BYTES = A_BYTES + B_BYTES, RING_BYTES = STAGES * STAGE_BYTES;

  /* Where k has groups a stage's segments have each a row of scales and one of what the weights take for a column. They
   * have a ring of their own, of a slot more: a segment's scales are read when its products are done. */
  static constexpr bool COLUMN_BYTES = POLICY::WEIGHTS == AFFINE || (CHAIN && POLICY::WEIGHTS == ZEROS);
  static constexpr bool GROUPS = CHAIN || COLUMN_BYTES;
  static constexpr int SEGMENT = SEGMENT_, SEGMENTS = BK / SEGMENT;
  static constexpr int SCALE_BYTES = CHAIN ? SEGMENTS * BN * 4 : 0;
  static constexpr int GROUP_BYTES = SCALE_BYTES + (COLUMN_BYTES ? SEGMENTS * BN : 0), SLOTS = STAGES + 1;

  static constexpr int REDUCE_BYTES = (WARPS_K - 1) * BM * BN * 4;
  static constexpr int USED_BYTES = RING_BYTES + SLOTS * GROUP_BYTES;
  static constexpr int SHARED_BYTES = USED_BYTES > REDUCE_BYTES ? USED_BYTES : REDUCE_BYTES;

  /* Copies of a stage, in passes of all threads, 16 bytes each; and the units of a stage in which they are issued:
   * early ones, and few, since on sm_90 ptxas puts idle instructions before each group of them. */
  static constexpr int A_PASSES = A_BYTES / 16 / THREADS, B_PASSES = B_BYTES / 16 / THREADS;
  static constexpr int PASSES = A_PASSES + B_PASSES;
  static constexpr int AHEAD = STAGED ? STAGES : STAGES - 1; /* stages that are copied before the first is read */
  static constexpr int COPY_UNITS = STAGED ? 1 : UNITS <= 4 ? UNITS / 2 : 3;
  static_assert(CTAS * (SHARED_BYTES + 1024) <= 100 << 10, "an SM of sm_86, 89 and 120 has no room for it");
  static_assert(!STAGED || (CTAS * SHARED_BYTES <= 64 << 10 && STAGES == 2), "not for an SM of sm_75");
  static_assert(A_BYTES / 16 % THREADS == 0 && B_BYTES / 16 % THREADS == 0, "a pass would be broken off");
  static_assert(UNITS % 2 == 0 && WM % 32 == 0 && WN % 32 == 0 && MT % WARPS_K == 0,
                "fragments alternate between two buffers");
  static_assert(WARPS_K == 1 || !(GROUPS || POLICY::NEIGHBOURS), "segments are in order");
};

/* Where 16-byte chunk c of a row along k lies among the row's: at c ^ swizzle, so that 8 neighbouring rows, one chunk
 * of each, are in different banks. */
template <int PITCH> __device__ __forceinline__ uint32_t swizzle(int row) {
  return PITCH == 32 ? row >> 2 & 1 : PITCH == 64 ? row >> 1 & 3 : row & 7;
}

} // namespace
#endif
