/*
 * mma: large M on every GPU from sm_80 on that has no kernel of its own, by cp.async, ldmatrix and mma.sync alone.
 *
 *   A  [M, K/8]               --cp.async--> stages --ldmatrix------> words --policy--> mma
 *   B  [K/8, N] or [N, K/8]   --cp.async--> stages --128-bit loads-> words --policy--> mma
 *
 * A CTA makes a tile. Stages go around a ring in shared memory; what is copied in a stage's turn goes to the slot that
 * was read in the turn before. Where tiles are few, the warps of a CTA share K and add their sums in shared memory,
 * exact in any order.
 *
 * There is no branch in a stage's body: copies are predicated and stand between the mma. Fragments are loaded one unit
 * ahead.
 *
 * Columns: of a 16-byte load of B along N, columns 4c .. 4c+3 of a word row, word i goes to n tile i, whose column c is
 * then column 4c + i of the warp's group of 32. Of a row of sums a lane so has 8 neighbouring columns, 8t .. 8t+7. With
 * B along k the columns are put into shared memory in that order.
 */
#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "common/shapes.h"
#include "sm80/mma.cuh"

namespace {

constexpr int BAND = 8;    /* rows of tiles that neighbouring CTAs go through together, for the sake of L2 */
constexpr int COLUMNS = 8; /* neighbours that a lane finishes together */

struct Arguments {
  const uint32_t *a, *b;
  int64_t lda, ldb;
  int M, N, words; /* words of k: K / 8 */
  int tiles_m, tiles_n;
  Encodings encodings;
  EpilogueArguments epilogue;
};

/* First row and column of this CTA's tile. */
struct TileCoord {
  int row, column;
};
template <class T> __device__ __forceinline__ TileCoord tile_coord(const Arguments &p) {
  int per_band = BAND * p.tiles_n, band = blockIdx.x / per_band, inside = blockIdx.x % per_band;
  int height = min(BAND, p.tiles_m - band * BAND);
  return {(band * BAND + inside % height) * T::BM, inside / height * T::BN};
}

/* ---- copies ---- */

/* A thread's part of the copies of an operand whose rows lie along k, A or with NK the columns of B: in pass i, 16
 * bytes of row + i * ROWS of the tile. PERMUTED: row 8i + c of each 32 in shared memory is 4c + i in memory. */
template <class T, int OFFSET, bool PERMUTED> struct CopyKMajor {
  static constexpr int ROWS = T::THREADS / T::CHUNKS;
  static_assert(ROWS == 8 || ROWS == 16 || ROWS % 32 == 0, "order and swizzle would change from pass to pass");
  const uint32_t *from;
  int64_t ld;
  int words_left, rows_left; /* from here on */
  uint32_t to;               /* in a slot */

  __device__ __forceinline__ CopyKMajor(const uint32_t *words, int64_t ld, int K_words, int rows, int first_row)
      : ld(ld) {
    int chunk = threadIdx.x % T::CHUNKS, row = threadIdx.x / T::CHUNKS;
    to = OFFSET + row * T::A_PITCH + (chunk ^ swizzle<T::A_PITCH>(row)) * 16;
    if (PERMUTED) row = row / 32 * 32 + row % 8 * 4 + row / 8 % 4;
    from = words + (first_row + row) * ld + chunk * 4;
    words_left = K_words - chunk * 4, rows_left = rows - first_row - row;
  }
  __device__ __forceinline__ void copy(uint32_t slot, int pass) const {
    const int rows = PERMUTED ? pass * ROWS / 32 * 32 + pass * ROWS % 32 / 8 : pass * ROWS; /* in memory */
    ptx::cp_async16_if(words_left > 0 && rows < rows_left, slot + to + pass * ROWS * T::A_PITCH, from + rows * ld);
  }
  __device__ __forceinline__ void advance() { from += T::BK / 8, words_left -= T::BK / 8; }
};

/* The same of B [K/8, N]. Chunk c of a word row lies at c ^ 2 (row % 4), since 8 lanes read 2 chunks of 4 word rows
 * together. */
template <class T> struct CopyNMajor {
  static constexpr int ROW_CHUNKS = T::BN / 4, ROWS = T::THREADS / ROW_CHUNKS;
  static_assert(ROWS % 4 == 0, "the swizzle would change from pass to pass");
  const uint32_t *from;
  int64_t ld;
  int words_left, columns_left;
  uint32_t to;

  __device__ __forceinline__ CopyNMajor(const uint32_t *words, int64_t ld, int K_words, int columns, int first_column)
      : ld(ld) {
    int chunk = threadIdx.x % ROW_CHUNKS, row = threadIdx.x / ROW_CHUNKS;
    to = T::A_BYTES + row * T::B_PITCH + (chunk ^ 2 * (row & 3)) * 16;
    from = words + row * ld + first_column + chunk * 4;
    words_left = K_words - row, columns_left = columns - first_column - chunk * 4;
  }
  __device__ __forceinline__ void copy(uint32_t slot, int pass) const {
    ptx::cp_async16_if(pass * ROWS < words_left && columns_left > 0, slot + to + pass * ROWS * T::B_PITCH,
                       from + pass * ROWS * ld);
  }
  __device__ __forceinline__ void advance() { from += T::BK / 8 * ld, words_left -= T::BK / 8; }
};

template <class T> using CopyA = CopyKMajor<T, 0, false>;
template <class T> using CopyB = typename std::conditional<T::NK, CopyKMajor<T, T::A_BYTES, true>, CopyNMajor<T>>::type;

/* One pass of a stage's copies. */
template <class T>
__device__ __forceinline__ void copy_pass(const CopyA<T> &copy_a, const CopyB<T> &copy_b, uint32_t slot, int pass) {
  if (pass < T::A_PASSES)
    copy_a.copy(slot, pass);
  else
    copy_b.copy(slot, pass - T::A_PASSES);
}

/* ---- fragments ---- */

/* Where this lane's words of a unit lie in a slot. */
template <class T> struct Words {
  typedef typename T::POLICY POLICY;
  static constexpr int UNIT_CHUNKS = POLICY::UNIT / 32; /* of a row along k */
  uint32_t a, a_swizzle, b, b_swizzle;

  __device__ __forceinline__ Words(int warp_m, int warp_n, int warp_k) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int row = warp_m * T::WM + (UNIT_CHUNKS == 1 ? lane : lane % 16);
    a = row * T::A_PITCH;
    a_swizzle = ((UNIT_CHUNKS == 1 ? 0 : lane / 16) ^ swizzle<T::A_PITCH>(row) ^ UNIT_CHUNKS * warp_k) * 16;
    row = warp_n * T::WN + lane;
    b = T::A_BYTES + (T::NK ? row * T::B_PITCH
                            : (t + warp_k * (POLICY::UNIT / 8)) * T::B_PITCH + warp_n * T::WN * 4 + (g ^ 2 * t) * 16);
    b_swizzle = (swizzle<T::B_PITCH>(row) ^ UNIT_CHUNKS * warp_k) * 16;
  }
  /* Of this warp's unit i of the slot. ldmatrix has four times 8 rows of 16 bytes: 32 rows of A, or 16 and two chunks.
   */
  __device__ __forceinline__ void load_a(uint32_t (&w)[T::MT][POLICY::A_WORDS], uint32_t slot, int i) const {
    uint32_t from = slot + a + (a_swizzle ^ i * T::WARPS_K * UNIT_CHUNKS * 16);
#pragma unroll
    for (int m = 0; m < T::MT; m += 4 / POLICY::A_WORDS) {
      uint32_t r[4];
      ptx::ldmatrix_x4(r, from + m * 16 * T::A_PITCH);
#pragma unroll
      for (int j = 0; j < 4; j++) w[m + j / POLICY::A_WORDS][j % POLICY::A_WORDS] = r[j];
    }
  }
  __device__ __forceinline__ void load_b(uint32_t (&w)[POLICY::B_WORDS][T::NT], uint32_t slot, int i) const {
#pragma unroll
    for (int h = 0; h < POLICY::B_WORDS; h++)
#pragma unroll
      for (int n = 0; n < T::NT; n += 4) {
        uint32_t r[4];
        if (T::NK) {
          uint32_t chunk = b_swizzle ^ (i * T::WARPS_K * UNIT_CHUNKS + h) * 16;
          ptx::ldmatrix_x4(r, slot + b + n * 8 * T::B_PITCH + chunk);
        } else {
          int word = i * T::WARPS_K * (POLICY::UNIT / 8) + h * 4;
          uint4 v = ptx::ld_shared_v4(slot + b + word * T::B_PITCH + n * 32);
          r[0] = v.x, r[1] = v.y, r[2] = v.z, r[3] = v.w;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) w[h][n + j] = r[j];
      }
  }
};

/* ---- mainloop ---- */

/* Fills the ring but for its last slot, and waits for the first stage. */
template <class T>
__device__ __forceinline__ void copy_first_stages(CopyA<T> &copy_a, CopyB<T> &copy_b, uint32_t ring) {
#pragma unroll
  for (int i = 0; i < T::STAGES - 1; i++) {
#pragma unroll
    for (int j = 0; j < T::PASSES; j++) copy_pass<T>(copy_a, copy_b, ring + i * T::STAGE_BYTES, j);
    copy_a.advance(), copy_b.advance();
    ptx::cp_async_commit_group();
  }
  ptx::cp_async_wait_group<T::STAGES - 2>();
  __syncthreads();
}

/* Where sums begin. What is copied past K is 0, or in the offset encoding -8: where both operands have that, at what
 * takes these products away. */
template <class T>
__device__ __forceinline__ void begin_sums(int32_t (&acc)[T::MT][T::NT][4], const Arguments &p, int stages,
                                           int warp_k) {
  const int past = warp_k == 0 && p.encodings.a && p.encodings.b ? stages * T::BK - p.words * 8 : 0;
#pragma unroll
  for (int m = 0; m < T::MT; m++)
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) acc[m][n][i] = -64 * T::POLICY::SCALE * past;
}

/* The sums of all of K. Words of A that are unpacked are loaded two units ahead and made fragments one ahead. */
template <class T>
__device__ __forceinline__ void multiply_tile(int32_t (&acc)[T::MT][T::NT][4], const Arguments &p, const TileCoord &at,
                                              uint32_t ring, int warp_m, int warp_n, int warp_k) {
  typedef typename T::POLICY POLICY;
  const POLICY policy(p.encodings);
  const Words<T> words(warp_m, warp_n, warp_k);
  CopyA<T> copy_a(p.a, p.lda, p.words, p.M, at.row);
  CopyB<T> copy_b(p.b, p.ldb, p.words, p.N, at.column);
  const int stages = (p.words + T::BK / 8 - 1) / (T::BK / 8);
  begin_sums<T>(acc, p, stages, warp_k);
  copy_first_stages<T>(copy_a, copy_b, ring);

  uint32_t read = ring, write = ring + (T::STAGES - 1) * T::STAGE_BYTES;
  const uint32_t end = ring + T::RING_BYTES;
  uint32_t a[2][T::MT][POLICY::A_WORDS], b[2][POLICY::B_WORDS][T::NT], f[2][T::MT][4];
  words.load_b(b[0], read, 0);
  if constexpr (POLICY::UNPACKS) {
    words.load_a(a[0], read, 0), words.load_a(a[1], read, 1);
#pragma unroll
    for (int i = 0; i < T::MT * POLICY::A_WORDS; i++) policy.fragment(f[0], a[0], i);
  } else {
    words.load_a(f[0], read, 0);
  }
#pragma unroll 1
  for (int stage = 0; stage < stages; stage++) {
#pragma unroll
    for (int i = 0; i < T::UNITS; i++) {
      if (i < T::COPY_UNITS) {
#pragma unroll
        for (int j = i * T::PASSES / T::COPY_UNITS; j < (i + 1) * T::PASSES / T::COPY_UNITS; j++)
          copy_pass<T>(copy_a, copy_b, write, j);
      }
      if (i < T::UNITS - 1) words.load_b(b[(i + 1) % 2], read, i + 1);
      if constexpr (!POLICY::UNPACKS)
        if (i < T::UNITS - 1) words.load_a(f[(i + 1) % 2], read, i + 1);
      if (i == T::UNITS - 2) { /* the next stage has landed, and all have loaded all of this one */
        ptx::cp_async_commit_group();
        ptx::cp_async_wait_group<T::STAGES - 2>();
        __syncthreads();
        write = write + T::STAGE_BYTES == end ? ring : write + T::STAGE_BYTES;
        read = read + T::STAGE_BYTES == end ? ring : read + T::STAGE_BYTES;
      }
      if (i == T::UNITS - 1) words.load_b(b[0], read, 0);
      if constexpr (POLICY::UNPACKS) {
        words.load_a(a[i % 2], read, (i + 2) % T::UNITS);
        policy.multiply(acc, f[i % 2], b[i % 2], f[(i + 1) % 2], a[(i + 1) % 2]);
      } else {
        if (i == T::UNITS - 1) words.load_a(f[0], read, 0);
        policy.multiply(acc, f[i % 2], b[i % 2]);
      }
    }
    copy_a.advance(), copy_b.advance();
  }
}

/* Adds the sums of the warps that share a tile, over the ring: warp_k keeps m tiles from warp_k * KEEP on and gives the
 * others away. */
template <class T> __device__ __forceinline__ void reduce(int32_t (&acc)[T::MT][T::NT][4], uint32_t ring, int warp_k) {
  constexpr int KEEP = T::MT / T::WARPS_K, M_BYTES = T::NT * 512, PIECE = KEEP * M_BYTES; /* of one warp for another */
  ptx::cp_async_wait_group<0>();
  __syncthreads();
  uint32_t mine = ring + threadIdx.x / 32 % (T::WARPS_M * T::WARPS_N) * (T::WARPS_K * (T::WARPS_K - 1) * PIECE) +
                  threadIdx.x % 32 * 16;
#pragma unroll
  for (int m = 0; m < T::MT; m++) {
    int to = m / KEEP;
    if (to == warp_k) continue;
    uint32_t at = mine + (to * (T::WARPS_K - 1) + (warp_k < to ? warp_k : warp_k - 1)) * PIECE + m % KEEP * M_BYTES;
#pragma unroll
    for (int n = 0; n < T::NT; n++)
      ptx::st_shared_v4(at + n * 512, acc[m][n][0], acc[m][n][1], acc[m][n][2], acc[m][n][3]);
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < T::MT; m++) {
    if (m / KEEP != warp_k) continue;
#pragma unroll
    for (int from = 0; from < T::WARPS_K - 1; from++)
#pragma unroll
      for (int n = 0; n < T::NT; n++) {
        uint4 v = ptx::ld_shared_v4(mine + (warp_k * (T::WARPS_K - 1) + from) * PIECE + m % KEEP * M_BYTES + n * 512);
        acc[m][n][0] += v.x, acc[m][n][1] += v.y, acc[m][n][2] += v.z, acc[m][n][3] += v.w;
      }
  }
}

/* ---- epilogue ---- */

/* COLUMNS neighbours of one row, unscaled. */
struct Octet {
  int32_t sums[COLUMNS];
};

/* Finishes them wherever they lie, with whatever follows. A call, and half of them at a time, since a thread has many
 * of them and a library many instances: all the activations for eight columns would be half of it. */
__device__ __noinline__ void finish_any(const Arguments &p, int row, int column, float unscale, Octet octet) {
  constexpr int HALF = COLUMNS / 2;
  const float scale_a = __ldg(p.epilogue.scale_a + row);
#pragma unroll 1
  for (int half = 0; half < 2 && column < p.N; half++, column += HALF) {
    int32_t sums[HALF];
    float scale_b[HALF], bias[HALF];
#pragma unroll
    for (int i = 0; i < HALF; i++) {
      sums[i] = half ? octet.sums[HALF + i] : octet.sums[i];
      scale_b[i] = column + i < p.N ? __ldg(p.epilogue.scale_b + column + i) : 0;
    }
    int4mm_load_bias(bias, p.epilogue, column, p.N);
    int4mm_finish<true>(p.epilogue, row, column, p.N, unscale, scale_a, scale_b, bias, sums);
  }
}

template <class T>
__device__ __forceinline__ void gather(int32_t (&sums)[COLUMNS], const int32_t (&acc)[T::MT][T::NT][4], int m,
                                       int lower, int n) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) sums[i] = acc[m][n + i % 4][2 * lower + i / 4];
}

/* Calls begin(column) and then f(m, lower, n, row, column) for this lane's octets with these columns, and so on: those
 * of the m tiles that its warp has after reduce. */
template <class T, class Begin, class F>
__device__ __forceinline__ void for_octets(const TileCoord &at, int warp_m, int warp_n, int warp_k, Begin begin, F f) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < T::NT; n += 4) {
    const int column = at.column + warp_n * T::WN + n * 8 + lane % 4 * COLUMNS;
    begin(column);
#pragma unroll
    for (int m = 0; m < T::MT; m++) {
      if (T::WARPS_K > 1 && m / (T::MT / T::WARPS_K) != warp_k) continue;
#pragma unroll
      for (int lower = 0; lower < 2; lower++)
        f(m, lower, n, at.row + warp_m * T::WM + m * 16 + lower * 8 + lane / 4, column);
    }
  }
}

/* The octets of a tile inside the output, of 16 bits and with nothing but a bias. */
template <class T>
__device__ __forceinline__ void finish_inside(const Arguments &p, const TileCoord &at, int warp_m, int warp_n,
                                              int warp_k, const int32_t (&acc)[T::MT][T::NT][4]) {
  const bool half = p.epilogue.out_dtype == INT4MM_FLOAT16;
  float scale_b[COLUMNS], bias[COLUMNS];
  auto begin = [&](int column) {
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) scale_b[i] = __ldg(p.epilogue.scale_b + column + i);
    int4mm_load_bias(bias, p.epilogue, column, p.N);
  };
  for_octets<T>(at, warp_m, warp_n, warp_k, begin, [&](int m, int lower, int n, int row, int column) {
    int32_t sums[COLUMNS];
    float x[COLUMNS];
    uint32_t w[COLUMNS / 2];
    gather<T>(sums, acc, m, lower, n);
    int4mm_scale_sums(x, sums, 1.0f / T::POLICY::SCALE, __ldg(p.epilogue.scale_a + row), scale_b);
    int4mm_add_bias(x, p.epilogue, bias);
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++)
      w[i] = half ? int4mm_round2<INT4MM_FLOAT16>(x[2 * i], x[2 * i + 1])
                  : int4mm_round2<INT4MM_BFLOAT16>(x[2 * i], x[2 * i + 1]);
    int4mm_store_v4((uint16_t *)p.epilogue.out + row * p.epilogue.ldo + column, w[0], w[1], w[2], w[3]);
  });
}

template <class T>
__device__ __forceinline__ void epilogue(const Arguments &p, const TileCoord &at, int warp_m, int warp_n, int warp_k,
                                         const int32_t (&acc)[T::MT][T::NT][4]) {
  const bool inside = at.row + T::BM <= p.M && at.column + T::BN <= p.N && p.epilogue.vector_store;
  if (inside && !p.epilogue.layer && p.epilogue.out_dtype != INT4MM_FLOAT32)
    return finish_inside<T>(p, at, warp_m, warp_n, warp_k, acc);
  for_octets<T>(
      at, warp_m, warp_n, warp_k, [](int) {},
      [&](int m, int lower, int n, int row, int column) {
        Octet octet;
        gather<T>(octet.sums, acc, m, lower, n);
        if (row < p.M && column < p.N) finish_any(p, row, column, 1.0f / T::POLICY::SCALE, octet);
      });
}

/* ---- the kernel ---- */

template <class T> __global__ void __launch_bounds__(T::THREADS, T::CTAS) mma(const __grid_constant__ Arguments p) {
  if constexpr (T::POLICY::UNPACKS != HAS_INT4) {
    extern __shared__ __align__(128) uint8_t memory[];
    const uint32_t ring = ptx::smem_address(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_m = warp % T::WARPS_M, warp_n = warp / T::WARPS_M % T::WARPS_N;
    const int warp_k = warp / (T::WARPS_M * T::WARPS_N);
    const TileCoord at = tile_coord<T>(p);
    ptx::griddepcontrol_wait();
    if (lane < T::WM / 8 && at.row + warp_m * T::WM + lane * 8 < p.M)
      ptx::prefetch_l1(p.epilogue.scale_a + at.row + warp_m * T::WM + lane * 8);
    if (lane < T::WN / 8 && at.column + warp_n * T::WN + lane * 8 < p.N)
      ptx::prefetch_l1(p.epilogue.scale_b + at.column + warp_n * T::WN + lane * 8);
    int32_t acc[T::MT][T::NT][4];
    multiply_tile<T>(acc, p, at, ring, warp_m, warp_n, warp_k);
    ptx::griddepcontrol_launch_dependents();
    if constexpr (T::WARPS_K > 1) reduce<T>(acc, ring, warp_k);
    epilogue<T>(p, at, warp_m, warp_n, warp_k, acc);
  }
}

/* ---- host ---- */

template <class T> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  Arguments p = {};
  p.a = problem->a.words, p.b = problem->b.words, p.lda = problem->a.stride, p.ldb = problem->b.stride;
  p.M = (int)problem->M, p.N = (int)problem->N, p.words = (int)(problem->K / 8);
  p.tiles_m = (p.M + T::BM - 1) / T::BM, p.tiles_n = (p.N + T::BN - 1) / T::BN;
  p.encodings = make_encodings(!T::POLICY::UNPACKS, problem->a.xor_mask, problem->b.xor_mask);
  p.epilogue = int4mm_epilogue_arguments(problem, COLUMNS);
  return int4mm_launch<mma<T>>(plan->device, dim3(p.tiles_m * p.tiles_n), T::THREADS, T::SHARED_BYTES, dim3(1), stream,
                               p);
}

__global__ void probe() {}

/* What the code on the device multiplies: int4 or int8, by the architecture that it was compiled for. */
cudaError_t has_int4(int device, bool *answer) {
  static std::atomic<int> known[64];
  int code_arch;
  cudaError_t error = int4mm_prepare_kernel(device, (const void *)probe, known, &code_arch);
  *answer = code_arch < 90;
  return error;
}

template <int BM, int BN, int WM, int WN, int WARPS_K, int BK, int STAGES, int CTAS>
cudaError_t launch_tile(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  bool int4, nk = problem->b.layout == INT4MM_K_MAJOR, xors = problem->a.xor_mask || problem->b.xor_mask;
  cudaError_t error = has_int4(plan->device, &int4);
  if (error != cudaSuccess) return error;
  auto with = [&](auto nk, auto xors) {
    constexpr bool NK = decltype(nk)::value, XORS = decltype(xors)::value;
    if (int4) return launch<Tile<Int4<XORS>, BM, BN, WM, WN, WARPS_K, BK, STAGES, CTAS, NK>>(problem, plan, stream);
    return launch<Tile<Int8<XORS>, BM, BN, WM, WN, WARPS_K, BK, STAGES, CTAS, NK>>(problem, plan, stream);
  };
  int4mm_constant<0> no;
  int4mm_constant<1> yes;
  if (nk) return xors ? with(yes, yes) : with(yes, no);
  return xors ? with(no, yes) : with(no, no);
}

} // namespace

#define LAUNCHER(NAME, BM, BN, ...)                                                                                    \
  extern "C" cudaError_t int4mm_launch_##NAME(const int4mm_problem *problem, const int4mm_plan *plan,                  \
                                              cudaStream_t stream) {                                                   \
    static_assert(BM == INT4MM_TILE(NAME, M) && BN == INT4MM_TILE(NAME, N), "the registry has another tile");          \
    return launch_tile<BM, BN, __VA_ARGS__>(problem, plan, stream);                                                    \
  }
LAUNCHER(mma_128x256, 128, 256, 64, 64, 1, 256, INT4MM_TILE(mma_128x256, STAGES), 1)
LAUNCHER(mma_128x128, 128, 128, 64, 64, 1, 128, INT4MM_TILE(mma_128x128, STAGES), 2)
LAUNCHER(mma_128x64, 128, 64, 64, 32, 2, 256, INT4MM_TILE(mma_128x64, STAGES), 1)
LAUNCHER(mma_64x64, 64, 64, 64, 32, 4, 512, INT4MM_TILE(mma_64x64, STAGES), 1)
#undef LAUNCHER
