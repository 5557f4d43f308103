/*
 * Columns that are not rotated: a thread has two, of 16 or 32 rows, and a cluster has columns whole. It copies its next
 * group while it quantises one.
 */
#include "elementwise/quantize_columns.cuh"

namespace {

struct PairArguments : ColumnArguments {
  bool vector_store; /* of two words or bytes */
};

/* ---- two columns ---- */

constexpr int PAIR_WARPS = 8, PAIR_COLUMNS = 32;      /* of a CTA */
constexpr int PAIR_WORDS = 32;                        /* that a thread holds */
constexpr int PAIR_MEMORY = 32 * 4 * PAIR_WORDS + 64; /* bytes of a warp's shared memory */

/* Two columns of ROWS rows, as they are in the source, which a thread holds. The threads of a half-warp have the CTA's
 * columns, the next half the next rows. */
template <class T> struct Pairs {
  static constexpr int WORDS = sizeof(T) / 2, ROWS = PAIR_WORDS / WORDS, ACROSS = PAIR_COLUMNS / 2;
  static constexpr int WARP_ROWS = 32 / ACROSS * ROWS, CTA_ROWS = PAIR_WARPS * WARP_ROWS;
  static constexpr int CTAS = WORDS == 1 ? 2 : 3; /* of an SM: two that keep all in registers, or three */
  uint32_t raw[ROWS][WORDS];

  static __device__ __forceinline__ int column() { return threadIdx.x % ACROSS * 2; }
  static __device__ __forceinline__ int row() { return threadIdx.x / ACROSS * ROWS; }

  /* Where a row of a warp lies in its memory: of one half, then 64 bytes further on, in other banks, of the other. */
  static __device__ __forceinline__ T *place(void *memory, int row) {
    return (T *)((char *)memory + row / ROWS * 64) + row * PAIR_COLUMNS;
  }
  /* Copies what a warp's threads hold to its memory, where `row` is the first; zeros outside the matrix. */
  static __device__ __forceinline__ void copy(void *memory, const PairArguments &a, int64_t row, int64_t first_col) {
    const int4mm_matrix &src = a.job.plain;
    for_pieces<sizeof(T)>(a.copied, [&](auto piece) {
      typedef decltype(piece) Piece;
      constexpr int VALUES = sizeof(Piece) / sizeof(T), ACROSS = PAIR_COLUMNS / VALUES, STEP = 32 / ACROSS;
      const int column = lane_id() % ACROSS * VALUES, first = lane_id() / ACROSS;
      const int64_t r = row + first, c = first_col + column;
      const int left = c < src.cols ? (int)min(src.rows - r, (int64_t)WARP_ROWS) : 0;
      copy_rows<Piece, WARP_ROWS, STEP>([&](int i) { return place(memory, first + i) + column; },
                                        static_cast<const T *>(src.data) + r * src.stride + c, src.stride, left);
    });
  }
  /* Takes them from there. Another copy may follow at once. */
  __device__ __forceinline__ void take(void *memory) {
    typedef std::conditional_t<WORDS == 1, uint32_t, uint2> Row;
    const T *from = place(memory, lane_id() / ACROSS * ROWS) + column();
    wait_for_copies();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      const Row row = *(const Row *)(from + i * PAIR_COLUMNS);
      memcpy(raw[i], &row, sizeof row);
    }
    __syncwarp();
  }
  /* Eight rows of a column. */
  __device__ __forceinline__ void fetch(float (&x)[8], int first, int column) const {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float two[2];
      to_floats<T>(two, raw[first + i]);
      x[i] = two[column];
    }
  }
  /* Raises `most` to the magnitudes in the columns, as bits of T, which compare as they do. */
  __device__ __forceinline__ void find_largest(uint32_t (&most)[WORDS]) const {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
      for (int w = 0; w < WORDS; w++)
        most[w] = WORDS == 2 ? max(most[w], raw[i][w] & 0x7fffffffu) : __vmaxu2(most[w], raw[i][w] & 0x7fff7fffu);
  }
};

/* ---- scales ---- */

/* What a CTA knows of its columns: in every other round, their largest magnitudes; of each, the power, scale and
 * reciprocal of its Divisor, and the largest magnitude whose quotient is not beyond qmax. */
struct PairColumns {
  Exchange<PAIR_COLUMNS> exchange;
  uint32_t maxima[2][PAIR_COLUMNS];
  float4 divisors[PAIR_COLUMNS];
};

/* Makes the scales of the CTA's columns, from `first_col` on, from the maxima of the CTAs of its cluster. */
__device__ __forceinline__ void share_scales(PairColumns &columns, int round, const PairArguments &a,
                                             int64_t first_col) {
  const int column = threadIdx.x % PAIR_COLUMNS, cta = threadIdx.x / PAIR_COLUMNS;
  static_assert(32 * PAIR_WARPS >= PAIR_COLUMNS * MAX_CLUSTER, "too few threads to tell all");
  __syncthreads();
  if (round == 0) columns.exchange.wait_for_others();
  if (cta < gridDim.x) columns.exchange.tell(round, cta, column, columns.maxima[round % 2][column]);
  __syncwarp();
  columns.exchange.wait(round);
  if (cta == 0) {
    uint32_t absmax = 0;
    for (int i = 0; i < gridDim.x; i++) absmax = max(absmax, columns.exchange.maxima[round % 2][i][column]);
    const float scale = scale_of(absmax, a.job.clip, qmax_of(a.job));
    const Divisor by(scale); /* for a scale of 0 any power will do, as all values are 0 */
    columns.divisors[column] = make_float4(scale == 0 ? 1 : by.power, by.scale, by.reciprocal,
                                           __fdiv_rn((float)qmax_of(a.job), by.reciprocal));
    if (blockIdx.x == 0 && first_col + column < a.job.plain.cols) a.job.scales[first_col + column] = scale;
    columns.maxima[(round + 1) % 2][column] = 0;
  }
  __syncthreads();
}

/* ---- quantising ---- */

/* Stores the words, or bytes, of eight rows of two columns. */
template <bool INT8>
__device__ __forceinline__ void store_eight(const uint32_t (&words)[2][8 / PER_WORD<INT8>], const PairArguments &a,
                                            int64_t row, int64_t col) {
  typedef std::conditional_t<INT8, uint8_t, uint32_t> Out;
  constexpr int ROWS = INT8 ? 8 : 1;
  const int4mm_matrix &packed = a.job.packed;
  if (!INT8) row /= 8;
  Out *to = static_cast<Out *>(packed.data) + row * packed.stride + col;
  const int rows = col < packed.cols ? (int)min(packed.rows - row, (int64_t)ROWS) : 0;
#pragma unroll
  for (int i = 0; i < ROWS; i++, to += packed.stride) {
    uint32_t two[2];
#pragma unroll
    for (int c = 0; c < 2; c++) two[c] = INT8 ? words[c][i / 4] >> i % 4 * 8 : words[c][0] ^ a.job.xor_mask;
    if (i >= rows) continue;
    if (a.vector_store && INT8)
      *(uint16_t *)to = (uint16_t)__byte_perm(two[0], two[1], 0x0040);
    else if (a.vector_store)
      *(uint2 *)to = make_uint2(two[0], two[1]);
    else
      for (int c = 0; c < 2 && col + c < packed.cols; c++) to[c] = (Out)two[c];
  }
}

/* Quantises eight rows of a thread's columns with scales of any size, which are rare: reads them once more. */
template <bool INT8>
__device__ __forceinline__ void quantize_any(const float4 *divisors, const PairArguments &a, int64_t row, int64_t col) {
  uint32_t words[2][8 / PER_WORD<INT8>];
#pragma unroll 1
  for (int c = 0; c < 2; c++) {
    float x[8];
    Divisor by(1);
    by.power = divisors[c].x, by.scale = divisors[c].y, by.reciprocal = divisors[c].z;
    const Line line = line_of(a.job.plain, 0, min(col + c, a.job.plain.cols - 1), row, 8);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = i < line.count ? line[i] : 0;
    quantize_chunk<INT8>(words[c], x, by, 1, true);
  }
  store_eight<INT8>(words, a, row, col);
}

/* Quantises a thread's rows of its columns, and stores them. */
template <bool INT8, class T>
__device__ __forceinline__ void quantize_pairs(const Pairs<T> &pairs, const float4 *divisors, const PairArguments &a,
                                               int64_t row, int64_t col) {
  if (divisors[0].x != 1 || divisors[1].x != 1) {
#pragma unroll 1
    for (int first = 0; first < Pairs<T>::ROWS; first += 8) quantize_any<INT8>(divisors, a, row + first, col);
    return;
  }
  constexpr bool SHORT = sizeof(T) == 2;
  Divisor by[2] = {Divisor(1), Divisor(1)};
  const float limits[2] = {divisors[0].w, divisors[1].w};
#pragma unroll
  for (int c = 0; c < 2; c++) by[c].scale = divisors[c].y, by[c].reciprocal = divisors[c].z;
#pragma unroll
  for (int first = 0; first < Pairs<T>::ROWS; first += 8) {
    uint32_t words[2][8 / PER_WORD<INT8>];
#pragma unroll
    for (int c = 0; c < 2; c++) {
      float x[8];
      uint32_t u[8];
      pairs.fetch(x, first, c);
      if (a.job.clip < 1) saturate(x, limits[c]);
      if constexpr (SHORT)
        round_short(u, x, by[c]);
      else
        round_chunk<INT8>(u, x, by[c], 1);
      pack_words<INT8, SHORT>(words[c], u);
    }
    store_eight<INT8>(words, a, row + first, col);
  }
}

/* Reports what is not finite among a thread's rows of its columns. */
__device__ __forceinline__ void report_pairs(const PairArguments &a, int64_t row, int64_t col, int rows) {
#pragma unroll 1
  for (int c = 0; c < 2 && col + c < a.job.plain.cols; c++) {
    const Line line = line_of(a.job.plain, 0, col + c, row, rows);
#pragma unroll 1
    for (int i = 0; i < line.count; i++)
      if (magnitude(line[i]) >= INFINITE) report(a.job, row + i, col + c, a.bad);
  }
}

/* ---- the kernel ---- */

/* CTA (x, y) has part x of the rows, `share` times as many as its threads hold; its cluster has columns whole, those of
 * y, then those of y + gridDim.y and so on. It goes down the rows for the largest magnitude, and back for the words:
 * the last are still there. What comes next is copied in the meantime. */
template <bool INT8, class T>
__device__ __forceinline__ void quantize_columns(const PairArguments &a, PairColumns &columns, void *memory) {
  typedef Pairs<T> Own;
  Own pairs;
  const int64_t step = (int64_t)gridDim.y * PAIR_COLUMNS, cols = a.job.plain.cols;
  const int last = a.share - 1, turns = 2 * last + 1;
  auto row_of = [&](int turn) {
    return ((int64_t)blockIdx.x * a.share + (turn > last ? 2 * last - turn : turn)) * Own::CTA_ROWS;
  };
  auto copy = [&](int turn, int64_t col) {
    Own::copy(memory, a, row_of(turn) + threadIdx.x / 32 * Own::WARP_ROWS, col);
  };
  int64_t first_col = (int64_t)blockIdx.y * PAIR_COLUMNS;
  copy(0, first_col);
#pragma unroll 1
  for (int round = 0; first_col < cols; round++, first_col += step) {
    const int64_t col = first_col + Own::column();
    uint32_t most[Own::WORDS] = {};
#pragma unroll 1
    for (int turn = 0; turn < turns; turn++) {
      const int64_t row = row_of(turn) + Own::row();
      pairs.take(memory);
      turn + 1 < turns ? copy(turn + 1, first_col) : copy(0, first_col + step);
      if (turn <= last) {
        pairs.find_largest(most);
        float two[2];
        to_floats<T>(two, most);
        if (a.bad && magnitude(max_magnitude(two[0], two[1])) >= INFINITE) report_pairs(a, row, col, Own::ROWS);
        if (turn < last) continue;
#pragma unroll
        for (int c = 0; c < 2; c++) atomicMax(&columns.maxima[round % 2][Own::column() + c], __float_as_uint(two[c]));
        share_scales(columns, round, a, first_col);
      }
      quantize_pairs<INT8>(pairs, columns.divisors + Own::column(), a, row, col);
    }
  }
}

template <bool INT8, class T>
__global__ void __launch_bounds__(32 * PAIR_WARPS, Pairs<T>::CTAS)
    pairs_kernel(const __grid_constant__ PairArguments a) {
  __shared__ __align__(16) char memories[PAIR_WARPS][PAIR_MEMORY];
  __shared__ PairColumns columns;
  static_assert(sizeof(Pairs<T>::raw) * 32 + 64 == PAIR_MEMORY, "a warp's memory has another size");
  columns.exchange.begin();
  if (threadIdx.x < PAIR_COLUMNS) columns.maxima[0][threadIdx.x] = 0;
  __syncthreads();
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  quantize_columns<INT8, T>(a, columns, memories[threadIdx.x / 32]);
}

/* ---- launchers ---- */

template <class T> cudaError_t launch_pairs(PairArguments a, int sms, cudaStream_t stream) {
  int64_t down, across;
  cudaError_t error = divide_columns(&a, Pairs<T>::CTA_ROWS, PAIR_COLUMNS, sms, &down, &across);
  if (error != cudaSuccess) return error;
  /* equal parts for all, and no more clusters than run at a time: a tenth of the SMs finds no others for one */
  const int64_t slots = max((int64_t)1, Pairs<T>::CTAS * sms * 9 / 10 / down);
  const int64_t clusters = ceil_div(across, ceil_div(across, slots));
  return a.job.packed.dtype == INT4MM_INT8
             ? launch_columns<pairs_kernel<true, T>>(a, down, clusters, PAIR_WARPS, 0, true, stream)
             : launch_columns<pairs_kernel<false, T>>(a, down, clusters, PAIR_WARPS, 0, true, stream);
}

} // namespace

cudaError_t int4mm_quantize_pairs(const int4mm_quantize_pass *pass, cudaStream_t stream) {
  const int4mm_matrix &packed = pass->job.packed;
  const PairArguments a = {arguments_of(*pass), is_whole_vectors(packed, 2, 2 * element_bytes(packed.dtype))};
  const int dtype = a.job.plain.dtype;
  int sms;
  cudaError_t error = get_attribute(&sms, cudaDevAttrMultiProcessorCount);
  if (error != cudaSuccess) return error;
  return dtype == INT4MM_FLOAT32   ? launch_pairs<float>(a, sms, stream)
         : dtype == INT4MM_FLOAT16 ? launch_pairs<__half>(a, sms, stream)
                                   : launch_pairs<__nv_bfloat16>(a, sms, stream);
}
