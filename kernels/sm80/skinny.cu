/*
 * Small M: the weights streamed once through registers (sm_80 on).
 *
 * With few rows the product is bound by reading B, so everything serves to keep enough bytes in flight: a warp owns 32
 * columns and a share of K, and copies what it will itself read into its own slots of shared memory with cp.async, each
 * lane 16 bytes of a row of B at a time. Slots are private to a warp, so there is no barrier in the loop, and shared
 * memory is only a deep register file for loads on their way (Little's law asks for some 26 KB per SM on an H200).
 *
 * Calls that follow each other overlap (programmatic dependent launch, sm_90): the next grid is let in when the last
 * copies are on their way, and asks L2 for its first rows of B while this one ends.
 *
 * One step is 16 words of k (128 values). mma m16n8k32 wants, per lane, one register of four k at column lane / 4: the
 * even nibbles of one word of B give its first register, the odd ones its second, so slice j of a step takes the words
 * 4t + j of lane-in-quad t (see unpack.cuh), and the four columns of a 16-byte load go to four mmas, whose column c is
 * column 4c + i of the stripe.
 *
 * K is split over the warps of a CTA and, where columns are few, over a cluster (sm_90); int32 partial sums are added
 * in shared memory, exactly, in whatever order.
 */
#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "common/unpack.cuh"

namespace {

constexpr int STEP_WORDS = 16; /* packed words of k in a step */
constexpr int COLUMNS = 32;    /* of a warp's stripe */
constexpr int LANE_WORDS = 4;  /* copied at a time */

struct Arguments {
  const uint32_t *a, *b;
  int64_t lda, ldb, ldo;
  int M, N, words;      /* words of k: K / 8 */
  int warps_n, warps_k; /* of a CTA: along the columns, along K */
  int split;            /* CTAs of a cluster that share K */
  uint32_t xor_a, xor_b;
  const float *scale_a, *scale_b, *bias;
  void *out;
  int32_t out_dtype;
  bool vector_store; /* 4 columns may be stored at a time */
  int circle;        /* steps that every warp has, times the warps that share K */
  int starts;        /* a power of two up to what a warp has of them: CTAs begin at so many, in turn */
};

/* ROWS of A (8, 16, 32 or 64) per CTA, STAGES steps in flight per warp. ALIGNED: rows of A and B start on 16 bytes.
 * TURNED: neighbouring CTAs begin at different steps. */
template <int ROWS_, int STAGES_, bool ALIGNED_, bool WIDE_, bool TURNED_ = false> struct Shape {
  static constexpr int ROWS = ROWS_, STAGES = STAGES_;
  static constexpr bool ALIGNED = ALIGNED_, WIDE = WIDE_, TURNED = TURNED_;
  static constexpr int TILES = (ROWS + 15) / 16; /* mma row tiles */
  static constexpr int A_SLOTS = ROWS / 8;       /* 16-byte slots per lane and step: rows g, g + 8, ... */
  static constexpr int SLOTS = 4 + A_SLOTS;      /* B first */
  static constexpr int CTAS = ROWS <= 16 && ALIGNED ? 2 : 1;
  static constexpr int WARP_BYTES = STAGES * SLOTS * 32 * 16;
  static_assert(ROWS * COLUMNS * 4 <= WARP_BYTES, "partial sums must fit where the slots were");
};

/* Copies the first `valid` of four words (may be negative or above 4); what stays of the slot is undefined. */
template <bool ALIGNED, bool THROUGH_L1>
__device__ __forceinline__ void copy_words(uint32_t shared, const uint32_t *from, int valid) {
  if (ALIGNED) {
    if (valid <= 0) return;
    if (THROUGH_L1)
      ptx::copy_async16_l1(shared, from, 4 * min(valid, LANE_WORDS));
    else
      ptx::copy_async16(shared, from, 4 * min(valid, LANE_WORDS));
  } else {
#pragma unroll
    for (int i = 0; i < LANE_WORDS; i++)
      if (i < valid) ptx::copy_async4(shared + 4 * i, from + i);
  }
}

/* Where in a row-times-column block of 16-byte slots the one of quad row t and column group g lies: swizzled, so that
 * both the copying lanes (a quad row after the other) and the reading ones (t fastest) meet no bank conflict. */
__device__ __forceinline__ uint32_t slot_offset(int t, int g) {
  return (8 * t + (g ^ 2 * t)) * 16;
}

/* Starts one step's copies of this warp. B: lanes along a row of B first, since a copy past L1 goes to L2 in whole
 * sectors of a quarter-warp's neighbours only. A: row g + 8r, words 4t .. for the lane itself. Rows and columns outside
 * the matrices are not copied: their sums are never stored. */
template <class S>
__device__ __forceinline__ void start_step(const Arguments &p, uint32_t slots, int step, int first_row,
                                           int first_column) {
  int lane = threadIdx.x % 32;
  {
    int t = lane / 8, g = lane % 8, word = step * STEP_WORDS + 4 * t, column = first_column + 4 * g;
    const uint32_t *b = p.b + word * p.ldb + column;
    uint32_t slot = slots + slot_offset(t, g);
#pragma unroll
    for (int j = 0; j < 4; j++, b += p.ldb)
      if (word + j < p.words) copy_words<S::ALIGNED, false>(slot + j * 512, b, p.N - column);
  }
  int g = lane / 4, word = step * STEP_WORDS + lane % 4 * 4;
#pragma unroll
  for (int r = 0; r < S::A_SLOTS; r++) {
    int row = first_row + g + 8 * r;
    if (row < p.M)
      copy_words<S::ALIGNED, true>(slots + (4 + r) * 512 + lane * 16, p.a + row * p.lda + word, p.words - word);
  }
}

/* The products of one step from this lane's slots. */
template <class S>
__device__ __forceinline__ void multiply_step(int32_t (&acc)[S::TILES][4][4], const Arguments &p, uint32_t slots,
                                              int step, const Unpacker<S::WIDE> &unpack_a,
                                              const Unpacker<S::WIDE> &unpack_b) {
  int lane = threadIdx.x % 32;
  uint4 b[4], a[2 * S::TILES];
#pragma unroll
  for (int j = 0; j < 4; j++) b[j] = ptx::load_shared4(slots + slot_offset(lane % 4, lane / 4) + j * 512);
#pragma unroll
  for (int r = 0; r < 2 * S::TILES; r++)
    a[r] = r < S::A_SLOTS ? ptx::load_shared4(slots + (4 + r) * 512 + lane * 16) : make_uint4(0, 0, 0, 0);
  int valid = p.words - step * STEP_WORDS - lane % 4 * 4;
  if (valid < 4) { /* past K: zeros in B, and whatever A's slots hold does not count */
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j >= valid) b[j] = make_uint4(p.xor_b, p.xor_b, p.xor_b, p.xor_b);
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    uint32_t fragments[S::TILES][4];
#pragma unroll
    for (int m = 0; m < S::TILES; m++) {
      uint32_t x = element(a[2 * m], j), y = element(a[2 * m + 1], j);
      fragments[m][0] = unpack_a.even(x), fragments[m][1] = unpack_a.even(y);
      fragments[m][2] = unpack_a.odd(x), fragments[m][3] = unpack_a.odd(y);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t w = element(b[j], i), even = unpack_b.even(w), odd = unpack_b.odd(w);
#pragma unroll
      for (int m = 0; m < S::TILES; m++) ptx::mma_16x8x32(acc[m][i], fragments[m], even, odd);
    }
  }
}

/* This lane's partial sums as a [ROWS, COLUMNS] matrix in shared memory. */
template <class S> __device__ __forceinline__ void deposit(uint32_t matrix, const int32_t (&acc)[S::TILES][4][4]) {
  int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < S::A_SLOTS; r++) {
    uint32_t row = matrix + ((g + 8 * r) * COLUMNS + 8 * t) * 4;
    const int32_t(&c)[4][4] = acc[r / 2];
    int lower = r % 2 * 2;
    ptx::store_shared4(row, c[0][lower], c[1][lower], c[2][lower], c[3][lower]);
    ptx::store_shared4(row + 16, c[0][lower + 1], c[1][lower + 1], c[2][lower + 1], c[3][lower + 1]);
  }
}

/* Scales, rounds and stores 4 neighbouring columns of one row. */
template <class S, int DTYPE>
__device__ __forceinline__ void finish(const Arguments &p, int row, int column, const float (&scale_b)[LANE_WORDS],
                                       const int4 &sum) {
  typedef typename int4mm_out_word<DTYPE>::type Word;
  const int32_t acc[LANE_WORDS] = {sum.x, sum.y, sum.z, sum.w};
  float scale_a = __ldg(p.scale_a + row);
  Word *out = (Word *)p.out + row * p.ldo + column, word[LANE_WORDS];
#pragma unroll
  for (int i = 0; i < LANE_WORDS; i++) {
    float x = __fmul_rn(__fmul_rn(__fmul_rn((float)acc[i], Unpacker<S::WIDE>::UNSCALE), scale_a), scale_b[i]);
    word[i] = int4mm_round<DTYPE>(column + i < p.N ? int4mm_add_bias(x, p.bias, column + i) : x);
  }
  if (p.vector_store && column + LANE_WORDS <= p.N) {
    if constexpr (sizeof(Word) == 4)
      *(uint4 *)out = make_uint4(word[0], word[1], word[2], word[3]);
    else
      *(uint2 *)out = make_uint2(word[0] | (uint32_t)word[1] << 16, word[2] | (uint32_t)word[3] << 16);
  } else {
#pragma unroll
    for (int i = 0; i < LANE_WORDS; i++)
      if (column + i < p.N) out[i] = word[i];
  }
}

/* Adds the partial sums of the warps that share columns, then the cluster's, and finishes. A thread has the same 4
 * columns in every row that it takes: the threads of a CTA are whole rows of the stripe. */
template <class S>
__device__ __forceinline__ void reduce(const Arguments &p, uint32_t base, int first_row, int first_column,
                                       const float (&scale_b)[LANE_WORDS]) {
  int lanes = p.warps_n * COLUMNS / LANE_WORDS, column = threadIdx.x % lanes * LANE_WORDS;
  int rows = min(S::ROWS, p.M - first_row), step = blockDim.x / lanes, rank = blockIdx.x % p.split;
  uint32_t place = base + column / COLUMNS * S::WARP_BYTES + column % COLUMNS * 4; /* in the first warp with it */
  auto store = [&](int row, const int4 &sum) {
    if (first_column + column >= p.N) return;
    if (p.out_dtype == INT4MM_FLOAT16)
      finish<S, INT4MM_FLOAT16>(p, first_row + row, first_column + column, scale_b, sum);
    else if (p.out_dtype == INT4MM_BFLOAT16)
      finish<S, INT4MM_BFLOAT16>(p, first_row + row, first_column + column, scale_b, sum);
    else
      finish<S, INT4MM_FLOAT32>(p, first_row + row, first_column + column, scale_b, sum);
  };
  auto add = [](int4 &sum, const int4 &x) { sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w; };

  for (int row = threadIdx.x / lanes; row < rows; row += step) {
    int4 sum = make_int4(0, 0, 0, 0);
    uint32_t at = place + row * COLUMNS * 4;
#pragma unroll 4
    for (int w = 0; w < p.warps_k; w++, at += p.warps_n * S::WARP_BYTES) {
      uint4 x = ptx::load_shared4(at);
      add(sum, make_int4(x.x, x.y, x.z, x.w));
    }
    if (p.split > 1)
      ptx::store_shared4(place + row * COLUMNS * 4, sum.x, sum.y, sum.z, sum.w);
    else
      store(row, sum);
  }
  if (p.split == 1) return;
  ptx::cluster_arrive();
  ptx::cluster_wait();
  for (int row = threadIdx.x / lanes * p.split + rank; row < rows; row += step * p.split) {
    int4 sum = make_int4(0, 0, 0, 0);
    for (int r = 0; r < p.split; r++) add(sum, ptx::load_cluster4(ptx::map_shared(place + row * COLUMNS * 4, r)));
    store(row, sum);
  }
  ptx::cluster_arrive(); /* nobody leaves while its shared memory is being read */
  ptx::cluster_wait();
}

/* Asks L2 for B of a step, a lane for each row; half a warp calls it. It reads nothing, so it need not wait for the
 * kernels before this one, and the memory has work while they end and this one starts. */
__device__ __forceinline__ void prefetch(const Arguments &p, int step, int first_column) {
  int word = step * STEP_WORDS + threadIdx.x % STEP_WORDS;
  if (word < p.words && first_column < p.N) ptx::prefetch_l2(p.b + word * p.ldb + first_column);
}

template <class S>
__global__ void __launch_bounds__(S::ROWS == 64 ? 256 : 512, S::CTAS) stream(const __grid_constant__ Arguments p) {
  extern __shared__ __align__(16) uint8_t memory[];
  int warp = threadIdx.x / 32, rank = blockIdx.x % p.split;
  uint32_t base = ptx::shared_address(memory), slots = base + warp * S::WARP_BYTES;
  int first_row = blockIdx.y * S::ROWS, stripe_column = blockIdx.x / p.split * p.warps_n * COLUMNS;
  int first_column = stripe_column + warp % p.warps_n * COLUMNS;
  int steps = (p.words + STEP_WORDS - 1) / STEP_WORDS, stride = p.split * p.warps_k;
  int step = rank * p.warps_k + warp / p.warps_n;
  /* Turned, a warp takes the steps that every warp has in a circle, from one of them on. */
  int turn = (blockIdx.x / p.split & (p.starts - 1)) * stride;
  auto place = [&](int step) {
    if (!S::TURNED || step >= p.circle) return step;
    return step + turn < p.circle ? step + turn : step + turn - p.circle;
  };
  Unpacker<S::WIDE> unpack_a(p.xor_a), unpack_b(p.xor_b);
  int32_t acc[S::TILES][4][4] = {};

  prefetch(p, place(step + threadIdx.x % 32 / STEP_WORDS * stride), first_column);
  ptx::wait_for_prior_grids();
#pragma unroll
  for (int stage = 0; stage < S::STAGES; stage++) {
    int ahead = step + stage * stride;
    if (ahead < steps) start_step<S>(p, slots + stage * S::SLOTS * 512, place(ahead), first_row, first_column);
    ptx::copy_async_commit();
  }
  for (uint32_t at = slots; step < steps; step += stride) {
    ptx::copy_async_wait<S::STAGES - 1>();
    __syncwarp(); /* every lane's copies have landed */
    multiply_step<S>(acc, p, at, place(step), unpack_a, unpack_b);
    __syncwarp(); /* every lane's loads have been used, so the slots are free */
    int ahead = step + S::STAGES * stride;
    if (ahead < steps) start_step<S>(p, at, place(ahead), first_row, first_column);
    ptx::copy_async_commit();
    at = at + S::SLOTS * 512 == slots + S::WARP_BYTES ? slots : at + S::SLOTS * 512;
  }
  ptx::allow_next_grid();    /* not sooner: CTAs that only wait would crowd on the SMs that are free first */
  float scale_b[LANE_WORDS]; /* of the columns that this thread will finish, on their way meanwhile */
  int scaled = stripe_column + threadIdx.x % (p.warps_n * COLUMNS / LANE_WORDS) * LANE_WORDS;
#pragma unroll
  for (int i = 0; i < LANE_WORDS; i++) scale_b[i] = scaled + i < p.N ? __ldg(p.scale_b + scaled + i) : 0;
  ptx::copy_async_wait<0>();
  __syncwarp(); /* other lanes' slots are about to be written */
  deposit<S>(base + warp * S::WARP_BYTES, acc);
  __syncthreads();
  reduce<S>(p, base, first_row, stripe_column, scale_b);
}

/* ---- host ---- */

template <class S> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream_) {
  static std::atomic<uint64_t> allowed{0};
  cudaError_t error = int4mm_allow_shared(plan->device, (const void *)stream<S>, allowed);
  if (error != cudaSuccess) return error;
  Arguments p = {};
  p.a = problem->a.words, p.b = problem->b.words, p.lda = problem->a.stride, p.ldb = problem->b.stride,
  p.ldo = problem->out.stride;
  p.M = (int)problem->M, p.N = (int)problem->N, p.words = (int)(problem->K / 8);
  p.warps_n = plan->tile_n / COLUMNS, p.warps_k = plan->tile_k / (STEP_WORDS * 8), p.split = plan->split_k;
  p.xor_a = problem->a.xor_mask, p.xor_b = problem->b.xor_mask;
  p.scale_a = problem->a.scales, p.scale_b = problem->b.scales, p.bias = problem->bias;
  p.out = problem->out.data, p.out_dtype = problem->out.dtype;
  uint64_t element = problem->out.dtype == INT4MM_FLOAT32 ? 4 : 2;
  p.vector_store =
      ((uint64_t)problem->out.data | (uint64_t)problem->out.stride * element) % (LANE_WORDS * element) == 0;
  int stride = p.split * p.warps_k, turns = (p.words + STEP_WORDS - 1) / STEP_WORDS / stride;
  p.circle = turns * stride;
  for (p.starts = 1; 2 * p.starts <= turns;) p.starts *= 2;
  int warps = p.warps_n * p.warps_k, stripe = p.warps_n * COLUMNS;
  dim3 grid((p.N + stripe - 1) / stripe * p.split, (p.M + S::ROWS - 1) / S::ROWS);
  return int4mm_launch(plan->device, stream<S>, grid, 32 * warps, (size_t)warps * S::WARP_BYTES, p.split, stream_, p);
}

/* The depth that choose.c plans with: for rows that start on 16 bytes as many steps as leave room for one CTA an SM. */
template <int ROWS>
cudaError_t launch_rows(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream_) {
  bool aligned = (((uint64_t)problem->a.words | (uint64_t)problem->b.words) % 16 |
                  (uint64_t)(problem->a.stride | problem->b.stride) % 4) == 0;
  if (problem->K >= INT4MM_WIDE_K) return launch<Shape<ROWS, 4, false, true>>(problem, plan, stream_);
  if (!aligned) return launch<Shape<ROWS, 4, false, false>>(problem, plan, stream_);
  /* CTAs of one stripe would all ask L2 for the same rows of A at once: 1 x 4096 x 4096 takes 4.1 us, not 4.5. With
   * several stripes to a CTA turning costs more than it gains. */
  if (ROWS <= 16 && plan->tile_n == COLUMNS) return launch<Shape<ROWS, 3, true, false, true>>(problem, plan, stream_);
  return launch<Shape<ROWS, ROWS == 16 ? 3 : 2, true, false>>(problem, plan, stream_);
}

} // namespace

extern "C" cudaError_t int4mm_launch_stream(const int4mm_problem *problem, const int4mm_plan *plan,
                                            cudaStream_t stream_) {
  switch (plan->tile_m) {
  case 8:
    return launch_rows<8>(problem, plan, stream_);
  case 16:
    return launch_rows<16>(problem, plan, stream_);
  case 32:
    return launch_rows<32>(problem, plan, stream_);
  case 64:
    return launch_rows<64>(problem, plan, stream_);
  default:
    return cudaErrorNotSupported;
  }
}
