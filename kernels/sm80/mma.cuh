/*
 * mma.sync products of large tiles: what a tile is, and the policies that tell int4 tensor cores from int8 ones.
 *
 * A lane of mma holds, of a row of A or a column of B, neighbours along k at lane % 4. k may be permuted as long as both
 * operands are permuted alike, so lane-in-quad t gets word 4i + t of either, i counting chunks of 32 values:
 *
 *   Int4   m16n8k64 (sm_80, 86, 87, 89; later ones emulate it): the words are the fragments as they lie, and the offset
 *          encoding is one XOR.
 *   Int8   m16n8k32 (everywhere): the even nibbles of a word are a lane's first register of k, the odd ones its second,
 *          kept at 16 times their value (unpack.cuh). A CTA unpacks A once, on its way into shared memory, since all its
 *          warps along N read the same; each warp unpacks what it reads of B.
 *
 * Either way a unit, what one mma takes of k, is two 16-byte chunks of a row of A in shared memory, and ldmatrix.x4
 * makes the fragment of 16 rows.
 */
#ifndef INT4MM_MMA_CUH
#define INT4MM_MMA_CUH

#include "common/ptx.cuh"
#include "common/unpack.cuh"

namespace {

/* Whether the architecture that is compiled for has int4 tensor cores. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool HAS_INT4 = true;
#else
constexpr bool HAS_INT4 = false;
#endif

/* XORS: a mask is not 0. */
template <bool XORS> struct Int4 {
  static constexpr bool UNPACKS = false;
  static constexpr int UNIT = 64;   /* values of k */
  static constexpr int B_WORDS = 2; /* of a lane for a unit of a column */
  static constexpr int A_CHUNK_BYTES = 16; /* in shared memory, for 32 values of a row of A */
  static constexpr float UNSCALE = 1;
  uint32_t xor_a, xor_b;
  __device__ __forceinline__ Int4(uint32_t xor_a, uint32_t xor_b) : xor_a(xor_a), xor_b(xor_b) {}

  /* acc += A B of a unit: f[m] has the words of 16 rows of A, b[..][n] those of 8 columns of B. */
  template <int MT, int NT>
  __device__ __forceinline__ void multiply(int32_t (&acc)[MT][NT][4], uint32_t (&f)[MT][4],
                                           const uint32_t (&b)[2][NT]) const {
    if (XORS) {
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) f[m][i] ^= xor_a;
    }
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int m = 0; m < MT; m++)
        ptx::mma_m16n8k64(acc[m][n], f[m], XORS ? b[0][n] ^ xor_b : b[0][n], XORS ? b[1][n] ^ xor_b : b[1][n]);
  }
};

struct Int8 {
  static constexpr bool UNPACKS = true;
  static constexpr int UNIT = 32, B_WORDS = 1, A_CHUNK_BYTES = 32;
  static constexpr float UNSCALE = Unpacker<false>::UNSCALE;
  Unpacker<false> unpack_b;
  __device__ __forceinline__ Int8(uint32_t, uint32_t xor_b) : unpack_b(xor_b) {}

  template <int MT, int NT>
  __device__ __forceinline__ void multiply(int32_t (&acc)[MT][NT][4], uint32_t (&f)[MT][4],
                                           const uint32_t (&b)[1][NT]) const {
#pragma unroll
    for (int n = 0; n < NT; n++) {
      const uint32_t even = unpack_b.even(b[0][n]), odd = unpack_b.odd(b[0][n]);
#pragma unroll
      for (int m = 0; m < MT; m++) ptx::mma_m16n8k32(acc[m][n], f[m], even, odd);
    }
  }
};

/* BM x BN outputs of a CTA by warps of WM x WN; WARPS_K warps share a warp's outputs, each with every WARPS_Kth unit of
 * k. BK values of k a stage, STAGES of them; CTAS for each SM. NK: B is [N, K/8], else [K/8, N]. */
template <class POLICY_, int BM_, int BN_, int WM_, int WN_, int WARPS_K_, int BK_, int STAGES_, int CTAS_, bool NK_>
struct Tile {
  typedef POLICY_ POLICY;
  static constexpr int BM = BM_, BN = BN_, WM = WM_, WN = WN_, WARPS_K = WARPS_K_, BK = BK_, STAGES = STAGES_;
  static constexpr int CTAS = CTAS_;
  static constexpr bool NK = NK_;
  static constexpr int MT = WM / 16, NT = WN / 8; /* tiles of an mma in a warp's */
  static constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN, THREADS = 32 * WARPS_M * WARPS_N * WARPS_K;
  static constexpr int UNITS = BK / POLICY::UNIT / WARPS_K; /* of a warp in a stage */
  static constexpr int CHUNKS = BK / 32;                    /* of words, 16 bytes each, in a row of k of a stage */

  /* A stage in shared memory: rows of A; then word rows of B, or with NK columns of B. */
  static constexpr int A_PITCH = CHUNKS * POLICY::A_CHUNK_BYTES, A_BYTES = BM * A_PITCH;
  static constexpr int B_PITCH = NK ? CHUNKS * 16 : BN * 4, B_BYTES = BN * CHUNKS * 16;
  static constexpr int STAGE_BYTES = A_BYTES + B_BYTES, RING_BYTES = STAGES * STAGE_BYTES;
  static constexpr int REDUCE_BYTES = (WARPS_K - 1) * BM * BN * 4;
  static constexpr int SHARED_BYTES = RING_BYTES > REDUCE_BYTES ? RING_BYTES : REDUCE_BYTES;

  /* Copies of a stage, in passes of all threads, 16 bytes of words each. */
  static constexpr int A_PASSES = BM * CHUNKS / THREADS, B_PASSES = BN * CHUNKS / THREADS;
  static_assert(BM * CHUNKS % THREADS == 0 && BN * CHUNKS % THREADS == 0, "a pass would be broken off");
  static_assert(UNITS % 2 == 0 && WN % 32 == 0 && MT % WARPS_K == 0, "fragments alternate between two buffers");
};

/* Where 16-byte chunk c of a row lies among the row's: so that 8 neighbouring rows, one chunk of each, are in different
 * banks. */
template <int PITCH> __device__ __forceinline__ uint32_t swizzle(int row) {
  return PITCH == 64 ? row >> 1 & 3 : row & 7;
}

} // namespace
#endif
