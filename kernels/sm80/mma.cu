/*
 * mma: large M on every GPU from sm_80 on that has no kernel of its own, by cp.async, ldmatrix and mma.sync alone.
 *
 *   A  [M, K/8]               --(Int4: cp.async; Int8: registers, unpacked)--> stages --ldmatrix--> fragments --+
 *   B  [K/8, N] or [N, K/8]   --cp.async-------------------------------------> stages --registers, unpacked-----+-> mma
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
  uint32_t xor_a, xor_b;
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

/* A thread's part of the copies of A: in pass i, the 16 bytes at `chunk` of row + i * ROWS of the tile. */
template <class T> struct CopyA {
  /* Of 8 threads that store together: unpacked chunks come in twos, of which each store has one. */
  static constexpr int TOGETHER = T::POLICY::UNPACKS ? 4 : T::CHUNKS, LANES = 8 / TOGETHER > 0 ? 8 / TOGETHER : 1;
  static constexpr int ROWS = T::THREADS / T::CHUNKS;
  static_assert(ROWS % 8 == 0, "the swizzle would change from pass to pass");
  const uint32_t *from;
  int64_t ld;
  int words_left, rows_left; /* from here on */
  uint32_t to, swizzled;     /* in a slot: the row, and where its first chunk lies */
  uint4 words[T::POLICY::UNPACKS ? T::A_PASSES : 1];
  uint32_t fix; /* as Unpacker has it */

  __device__ __forceinline__ CopyA(const Arguments &p, const TileCoord &at) : ld(p.lda), fix(Unpacker<false>(p.xor_a).fix) {
    int tid = threadIdx.x, group = tid / (TOGETHER * LANES);
    int chunk = tid % TOGETHER + group % (T::CHUNKS / TOGETHER) * TOGETHER;
    int row = tid / TOGETHER % LANES + group / (T::CHUNKS / TOGETHER) * LANES;
    from = p.a + (at.row + row) * ld + chunk * 4;
    words_left = p.words - chunk * 4, rows_left = p.M - at.row - row;
    to = row * T::A_PITCH;
    swizzled = (chunk * (T::POLICY::A_CHUNK_BYTES / 16) ^ swizzle<T::A_PITCH>(row)) * 16;
  }
  __device__ __forceinline__ bool is_inside(int pass) const { return words_left > 0 && pass * ROWS < rows_left; }
  __device__ __forceinline__ void advance() { from += T::BK / 8, words_left -= T::BK / 8; }

  /* Int8: a pass from memory to registers. */
  __device__ __forceinline__ void load(int pass) {
    if constexpr (T::POLICY::UNPACKS) ptx::ld_global_v4_if(is_inside(pass), words[pass], from + pass * ROWS * ld);
  }
  /* Int8: a pass from registers, loaded before the last advance, to a slot; zeros past K. Int4: from memory,
   * asynchronously. */
  __device__ __forceinline__ void store(uint32_t slot, int pass) {
    uint32_t chunk = slot + to + pass * ROWS * T::A_PITCH;
    if constexpr (T::POLICY::UNPACKS) {
      const bool inside = words_left + T::BK / 8 > 0;
      const uint32_t mask = inside ? 0xf0f0f0f0u : 0, flip = inside ? fix : 0;
      auto even = [&](uint32_t word) { return (word << 4 & mask) ^ flip; };
      auto odd = [&](uint32_t word) { return (word & mask) ^ flip; };
      const uint4 &w = words[pass];
      ptx::st_shared_v4(chunk + swizzled, even(w.x), even(w.y), even(w.z), even(w.w));
      ptx::st_shared_v4(chunk + (swizzled ^ 16), odd(w.x), odd(w.y), odd(w.z), odd(w.w));
    } else {
      ptx::cp_async16_if(is_inside(pass), chunk + swizzled, from + pass * ROWS * ld);
    }
  }
};

/* The same of B. In a word row of B [K/8, N] chunk c lies at c ^ 2 (row % 4), since 8 lanes read 2 chunks of 4 word rows
 * together. */
template <class T> struct CopyB {
  static constexpr int ROW_CHUNKS = T::NK ? T::CHUNKS : T::BN / 4, ROWS = T::THREADS / ROW_CHUNKS;
  static_assert(ROWS % (T::NK ? 32 : 4) == 0 || T::B_PASSES == 1, "the swizzle would change from pass to pass");
  const uint32_t *from;
  int64_t step; /* from pass to pass, words */
  int words_left, columns_left;
  uint32_t to;

  __device__ __forceinline__ CopyB(const Arguments &p, const TileCoord &at) : step(ROWS * p.ldb) {
    int chunk = threadIdx.x % ROW_CHUNKS, row = threadIdx.x / ROW_CHUNKS;
    if (T::NK) { /* row 8i + c of a group of 32 is column 4c + i */
      int column = at.column + row / 32 * 32 + row % 8 * 4 + row / 8 % 4;
      from = p.b + column * p.ldb + chunk * 4;
      words_left = p.words - chunk * 4, columns_left = p.N - column;
      to = T::A_BYTES + row * T::B_PITCH + (chunk ^ swizzle<T::B_PITCH>(row)) * 16;
    } else {
      from = p.b + row * p.ldb + at.column + chunk * 4;
      words_left = p.words - row, columns_left = p.N - at.column - chunk * 4;
      to = T::A_BYTES + row * T::B_PITCH + (chunk ^ 2 * (row & 3)) * 16;
    }
  }
  __device__ __forceinline__ void advance(const Arguments &p) {
    from += T::NK ? T::BK / 8 : T::BK / 8 * p.ldb, words_left -= T::BK / 8;
  }
  __device__ __forceinline__ void store(uint32_t slot, int pass) const {
    bool inside = T::NK ? words_left > 0 && pass * ROWS < columns_left : pass * ROWS < words_left && columns_left > 0;
    ptx::cp_async16_if(inside, slot + to + pass * ROWS * T::B_PITCH, from + pass * step);
  }
};

/* ---- fragments ---- */

/* Where this lane's fragments of a unit lie in a slot. */
template <class T> struct Fragments {
  uint32_t a, a_swizzle, b, b_swizzle;
  static constexpr int B_CHUNKS = T::POLICY::UNIT / 32; /* of a unit, with NK */

  __device__ __forceinline__ Fragments(int warp_m, int warp_n, int warp_k) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, row = warp_m * T::WM + lane % 16;
    a = row * T::A_PITCH;
    a_swizzle = (lane / 16 ^ swizzle<T::A_PITCH>(row) ^ 2 * warp_k) * 16;
    if (T::NK) {
      row = warp_n * T::WN + lane;
      b = T::A_BYTES + row * T::B_PITCH;
      b_swizzle = (swizzle<T::B_PITCH>(row) ^ B_CHUNKS * warp_k) * 16;
    } else {
      b = T::A_BYTES + (t + warp_k * (T::POLICY::UNIT / 8)) * T::B_PITCH + warp_n * T::WN * 4 + (g ^ 2 * t) * 16;
      b_swizzle = 0;
    }
  }
  /* Of this warp's unit i of the slot. */
  __device__ __forceinline__ void load_a(uint32_t (&f)[T::MT][4], uint32_t slot, int i) const {
    uint32_t from = slot + a + (a_swizzle ^ i * T::WARPS_K * 32);
#pragma unroll
    for (int m = 0; m < T::MT; m++) ptx::ldmatrix_x4(f[m], from + m * 16 * T::A_PITCH);
  }
  __device__ __forceinline__ void load_b(uint32_t (&w)[T::POLICY::B_WORDS][T::NT], uint32_t slot, int i) const {
#pragma unroll
    for (int h = 0; h < T::POLICY::B_WORDS; h++)
#pragma unroll
      for (int n = 0; n < T::NT; n += 4)
        if (T::NK) {
          uint32_t(&four)[4] = (uint32_t(&)[4])w[h][n];
          uint32_t chunk = b_swizzle ^ (i * T::WARPS_K * B_CHUNKS + h) * 16;
          ptx::ldmatrix_x4(four, slot + b + n * 8 * T::B_PITCH + chunk);
        } else {
          int word = i * T::WARPS_K * (T::POLICY::UNIT / 8) + h * 4;
          uint4 v = ptx::ld_shared_v4(slot + b + word * T::B_PITCH + n * 32);
          w[h][n] = v.x, w[h][n + 1] = v.y, w[h][n + 2] = v.z, w[h][n + 3] = v.w;
        }
  }
};

/* ---- mainloop ---- */

/* What is copied in a stage's turn, in the first units of the stage: first B, whose cp.async stand together, since on
 * sm_90 ptxas puts idle instructions before each group of them; then A, with two units to a stage in the same one. */
template <class T>
__device__ __forceinline__ void copy_in_unit(CopyA<T> &copy_a, const CopyB<T> &copy_b, uint32_t slot, int unit) {
  constexpr int UNIT_OF_A = T::UNITS > 2;
  if (unit == 0) {
#pragma unroll
    for (int i = 0; i < T::B_PASSES; i++) copy_b.store(slot, i);
  }
  if (unit == UNIT_OF_A) {
#pragma unroll
    for (int i = 0; i < T::A_PASSES; i++) {
      copy_a.store(slot, i);
      copy_a.load(i);
    }
  }
}

/* The sums of all of K. What is copied past K is 0, or in the offset encoding -8: where both operands have that, the sums
 * begin at what takes these products away. */
template <class T>
__device__ __forceinline__ void multiply_tile(int32_t (&acc)[T::MT][T::NT][4], const Arguments &p, const TileCoord &at,
                                              uint32_t ring, int warp_m, int warp_n, int warp_k) {
  typedef typename T::POLICY POLICY;
  const POLICY policy(p.xor_a, p.xor_b);
  const Fragments<T> fragments(warp_m, warp_n, warp_k);
  CopyA<T> copy_a(p, at);
  CopyB<T> copy_b(p, at);
  const int stages = (p.words + T::BK / 8 - 1) / (T::BK / 8);
  const int past = POLICY::UNPACKS || warp_k > 0 || !p.xor_a || !p.xor_b ? 0 : stages * T::BK - p.words * 8;
#pragma unroll
  for (int m = 0; m < T::MT; m++)
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) acc[m][n][i] = -64 * past;

#pragma unroll
  for (int i = 0; i < T::STAGES - 1; i++) {
#pragma unroll
    for (int j = 0; j < T::B_PASSES; j++) copy_b.store(ring + i * T::STAGE_BYTES, j);
    copy_b.advance(p);
    if (!POLICY::UNPACKS) {
#pragma unroll
      for (int j = 0; j < T::A_PASSES; j++) copy_a.store(ring + i * T::STAGE_BYTES, j);
      copy_a.advance();
    }
    ptx::cp_async_commit_group();
  }
  if (POLICY::UNPACKS) { /* one stage more: it waits in registers */
#pragma unroll
    for (int i = 0; i < T::STAGES; i++) {
#pragma unroll
      for (int j = 0; j < T::A_PASSES; j++) {
        if (i > 0) copy_a.store(ring + (i - 1) * T::STAGE_BYTES, j);
        copy_a.load(j);
      }
      copy_a.advance();
    }
  }
  ptx::cp_async_wait_group<T::STAGES - 2>();
  __syncthreads();

  uint32_t read = ring, write = ring + (T::STAGES - 1) * T::STAGE_BYTES;
  const uint32_t end = ring + T::RING_BYTES;
  uint32_t f[2][T::MT][4], b[2][POLICY::B_WORDS][T::NT];
  fragments.load_b(b[0], read, 0);
  fragments.load_a(f[0], read, 0);
#pragma unroll 1
  for (int stage = 0; stage < stages; stage++) {
#pragma unroll
    for (int i = 0; i < T::UNITS; i++) {
      if (i < T::UNITS - 1) fragments.load_b(b[(i + 1) % 2], read, i + 1), fragments.load_a(f[(i + 1) % 2], read, i + 1);
      copy_in_unit<T>(copy_a, copy_b, write, i);
      if (i == T::UNITS - 2) { /* the next stage has landed, and all have loaded all of this one */
        ptx::cp_async_commit_group();
        ptx::cp_async_wait_group<T::STAGES - 2>();
        __syncthreads();
        write = write + T::STAGE_BYTES == end ? ring : write + T::STAGE_BYTES;
        read = read + T::STAGE_BYTES == end ? ring : read + T::STAGE_BYTES;
      }
      if (i == T::UNITS - 1) fragments.load_b(b[0], read, 0), fragments.load_a(f[0], read, 0);
      policy.multiply(acc, f[i % 2], b[i % 2]);
    }
    copy_a.advance(), copy_b.advance(p);
  }
}

/* Adds the sums of the warps that share a tile, over the ring: warp_k keeps m tiles from warp_k * KEEP on and gives the
 * others away. */
template <class T>
__device__ __forceinline__ void reduce(int32_t (&acc)[T::MT][T::NT][4], uint32_t ring, int warp_k) {
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
struct Unit {
  int32_t sums[COLUMNS];
};

/* Finishes them wherever they lie, with whatever follows. A call, since a thread has many units and a library many
 * instances. */
__device__ __noinline__ void finish_any(const Arguments &p, int row, int column, float unscale, Unit unit) {
  float scale_b[COLUMNS], bias[COLUMNS];
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) scale_b[i] = column + i < p.N ? __ldg(p.epilogue.scale_b + column + i) : 0;
  int4mm_load_bias(bias, p.epilogue, column, p.N);
  int4mm_finish<true>(p.epilogue, row, column, p.N, unscale, __ldg(p.epilogue.scale_a + row), scale_b, bias, unit.sums);
}

template <class T>
__device__ __forceinline__ void gather(int32_t (&sums)[COLUMNS], const int32_t (&acc)[T::MT][T::NT][4], int m,
                                       int lower, int n) {
#pragma unroll
  for (int i = 0; i < COLUMNS; i++) sums[i] = acc[m][n + i % 4][2 * lower + i / 4];
}

/* Calls begin(column) and then f(m, lower, n, row, column) for this lane's units with these columns, and so on: units of
 * the m tiles that its warp has after reduce. */
template <class T, class Begin, class F>
__device__ __forceinline__ void for_units(const TileCoord &at, int warp_m, int warp_n, int warp_k, Begin begin, F f) {
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

/* The units of a tile inside the output, of 16 bits and with nothing but a bias. */
template <class T, int DTYPE>
__device__ __forceinline__ void finish_inside(const Arguments &p, const TileCoord &at, int warp_m, int warp_n,
                                              int warp_k, const int32_t (&acc)[T::MT][T::NT][4]) {
  float scale_b[COLUMNS], bias[COLUMNS];
  auto begin = [&](int column) {
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) scale_b[i] = __ldg(p.epilogue.scale_b + column + i);
    int4mm_load_bias(bias, p.epilogue, column, p.N);
  };
  for_units<T>(at, warp_m, warp_n, warp_k, begin, [&](int m, int lower, int n, int row, int column) {
    int32_t sums[COLUMNS];
    float x[COLUMNS];
    gather<T>(sums, acc, m, lower, n);
    int4mm_scale_sums(x, sums, T::POLICY::UNSCALE, __ldg(p.epilogue.scale_a + row), scale_b);
    int4mm_add_bias(x, p.epilogue, bias);
    int4mm_store_vector<DTYPE>((uint16_t *)p.epilogue.out + row * p.epilogue.ldo + column, x);
  });
}

template <class T>
__device__ __forceinline__ void epilogue(const Arguments &p, const TileCoord &at, int warp_m, int warp_n, int warp_k,
                                         const int32_t (&acc)[T::MT][T::NT][4]) {
  const bool inside = at.row + T::BM <= p.M && at.column + T::BN <= p.N && p.epilogue.vector_store;
  auto nothing = [](int) {};
  if (!inside || p.epilogue.layer || p.epilogue.out_dtype == INT4MM_FLOAT32)
    for_units<T>(at, warp_m, warp_n, warp_k, nothing, [&](int m, int lower, int n, int row, int column) {
      Unit unit;
      gather<T>(unit.sums, acc, m, lower, n);
      if (row < p.M && column < p.N) finish_any(p, row, column, T::POLICY::UNSCALE, unit);
    });
  else if (p.epilogue.out_dtype == INT4MM_FLOAT16)
    finish_inside<T, INT4MM_FLOAT16>(p, at, warp_m, warp_n, warp_k, acc);
  else
    finish_inside<T, INT4MM_BFLOAT16>(p, at, warp_m, warp_n, warp_k, acc);
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
  p.xor_a = problem->a.xor_mask, p.xor_b = problem->b.xor_mask;
  p.epilogue = int4mm_epilogue_arguments(problem, COLUMNS);
  return int4mm_launch<mma<T>>(plan->device, dim3(p.tiles_m * p.tiles_n), T::THREADS, T::SHARED_BYTES, dim3(1), stream,
                               p);
}

} // namespace

/* VARIANTS */
