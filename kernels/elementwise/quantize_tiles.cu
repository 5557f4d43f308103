/*
 * Columns in tiles, which are transposed in shared memory for the warps to rotate and quantise. A cluster of CTAs has a
 * group of columns, each CTA a part of the rows; they tell each other the largest magnitudes, and what a CTA holds is
 * read once. Where there are no clusters, or few, a CTA per tile, once for the scales and once for the words; the
 * second reading goes backwards, through what L2 still has.
 */
#include "elementwise/quantize_columns.cuh"

namespace {

/* ---- the tile ---- */

constexpr int COLUMN_WARPS = 8, COLUMN_THREADS = 32 * COLUMN_WARPS;
constexpr int SPANS = COLUMN_WARPS * WARP_VALUES / SPAN; /* of a tile */

/* Rows and columns of a tile: so many rows that blocks are whole, and 1024 values for each warp. A span is 256 values
 * of a column. Spans are numbered as they lie side by side in shared memory: those of the first 256 rows, then those of
 * the next. Of its four spans a warp has 0 and 1 in the chunks 0 of its halves, 2 and 3 in the chunks 1. All numbers
 * are powers of two, of which the fields are logarithms. */
struct Tile {
  int log2_rows, log2_columns;

  __host__ __device__ __forceinline__ explicit Tile(int block) {
    log2_rows = block == 1024 ? 10 : block == 512 ? 9 : 8, log2_columns = 13 - log2_rows;
  }
  __host__ __device__ __forceinline__ int rows() const { return 1 << log2_rows; }
  __host__ __device__ __forceinline__ int columns() const { return 1 << log2_columns; }
  __device__ __forceinline__ int log2_warp_columns() const { return log2_columns - 3; }

  __device__ __forceinline__ int column(int span) const { return span & (columns() - 1); }
  __device__ __forceinline__ int row(int span) const { return (span >> log2_columns) * SPAN; }
  /* Where a lane has two spans of a column, they are in order; else its chunks are neighbours in a row. */
  __device__ __forceinline__ bool is_tall() const { return log2_rows == 10; }
  __device__ __forceinline__ int swap(int number) const { return is_tall() ? number : number % 2 * 2 + number / 2; }
  /* The span of a warp's number, and the reverse. */
  __device__ __forceinline__ int span(int warp, int number) const {
    const int n = swap(number), w = log2_warp_columns();
    return (n >> w << log2_columns) + (warp << w) + (n & ((1 << w) - 1));
  }
  __device__ __forceinline__ int warp(int span) const { return column(span) >> log2_warp_columns(); }
  __device__ __forceinline__ int number(int span) const {
    const int w = log2_warp_columns();
    return swap((span >> log2_columns << w) + (span & ((1 << w) - 1)));
  }
};

/* What is a thread's own: the spans of its chunks, the memory of its warp among those of all. */
struct Member {
  int warp, span[CHUNKS];
  float *memories, *memory;

  __device__ __forceinline__ Member(float *shared, const Tile &tile) {
    warp = threadIdx.x / 32, memories = shared, memory = memories + warp * WARP_FLOATS;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) span[c] = tile.span(warp, CHUNKS * c + lane_id() / CHUNK);
  }
};

/* Where a row of a span lies in a tile: 16 rows, then 16 bytes that spread lanes over the banks. */
template <class T> __device__ __forceinline__ T *tile_place(void *tile, int row, int span) {
  return (T *)((char *)tile + row / CHUNK * 16) + row * SPANS + span;
}

/* Copies the tile from (row, col) on; zeros outside the matrix. */
__device__ __forceinline__ void load_tile(const ColumnArguments &a, int64_t row, int64_t col, const Member &my,
                                          const Tile &tile) {
  const int4mm_matrix &src = a.job.plain;
  auto copy = [&](auto value, auto piece) {
    typedef decltype(value) T;
    typedef decltype(piece) Piece;
    constexpr int VALUES = sizeof(Piece) / sizeof(T), ACROSS = SPANS / VALUES, STEP = COLUMN_THREADS / ACROSS;
    const int span = threadIdx.x % ACROSS * VALUES, first = threadIdx.x / ACROSS;
    const int64_t r = row + tile.row(span) + first, c = col + tile.column(span);
    const int left = c < src.cols ? (int)min(src.rows - r, (int64_t)SPAN) : 0;
    T *to = tile_place<T>(my.memories, first, span);
    copy_rows<Piece, SPAN, STEP>(
        [&](int i) { return STEP % CHUNK ? tile_place<T>(my.memories, first + i, span) : tile_place<T>(to, i, 0); },
        static_cast<const T *>(src.data) + r * src.stride + c, src.stride, left);
  };
  if (src.dtype == INT4MM_FLOAT32)
    for_pieces<4>(a.copied, [&](auto piece) { copy(0u, piece); });
  else
    for_pieces<2>(a.copied, [&](auto piece) { copy(uint16_t(0), piece); });
  wait_for_copies();
}

/* A lane's values from the tile, in order. */
__device__ __forceinline__ void fetch_tile(Values &x, int dtype, const Member &my, const Tile &tile) {
  const int row = lane_id() % CHUNK * CHUNK;
  int4mm_for_out_dtype(dtype, [&](auto d) {
    typedef typename Element<decltype(d)::value>::type T;
    typedef std::conditional_t<sizeof(T) == 4, uint2, uint32_t> Pair;
    const T *at = tile_place<T>(my.memories, row, my.span[0]);
    if (tile.is_tall()) {
#pragma unroll
      for (int c = 0; c < CHUNKS; c++)
#pragma unroll
        for (int i = 0; i < CHUNK; i++) x[c][i] = to_float(at[SPANS * i + SPANS / CHUNKS * c]);
      return;
    }
    Pair pairs[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) pairs[i] = *(const Pair *)(at + SPANS * i);
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      float two[CHUNKS];
      to_floats<T>(two, (const uint32_t *)&pairs[i]);
      x[0][i] = two[0], x[1][i] = two[1];
    }
  });
}

/* Loads and rotates the tile from (row, col) on. The tile lies where the warps have their memories. */
__device__ __forceinline__ void make_tile(Values &x, float (&most)[CHUNKS], const ColumnArguments &a, int64_t row,
                                          int64_t col, const Member &my, const Tile &tile) {
  load_tile(a, row, col, my, tile);
  __syncthreads();
  fetch_tile(x, a.job.plain.dtype, my, tile);
  __syncthreads();
  rotate_values(x, most, my.memory, a.job.rotate, [&] {
    for (int number = 0; number < WARP_VALUES / SPAN; number++) {
      int span = tile.span(my.warp, number);
      gather<1>(my.memory + place(number * SPAN),
                line_of(a.job.plain, 0, min(col + tile.column(span), a.job.plain.cols - 1), row + tile.row(span)),
                SPAN);
    }
  });
  __syncwarp();
}

/* ---- storing ---- */

/* Calls f(element, value) for what the warps left of a tile in their memories: SPAN / N rows of each span, `pitch`
 * elements of type T after those of the one before. The element is of dst, where (row, col) is the tile's first. */
template <class T, int N, class F>
__device__ __forceinline__ void store_tile(int pitch, int64_t row, int64_t col, const int4mm_matrix &dst,
                                           const Member &my, const Tile &tile, F f) {
  const int span = threadIdx.x % SPANS;
  const T *from = (const T *)(my.memories + tile.warp(span) * WARP_FLOATS) + tile.number(span) * pitch;
  __syncthreads();
  row += tile.row(span) / N + my.warp, col += tile.column(span);
  if (col >= dst.cols) return;
  const int left = (int)min(dst.rows - row, (int64_t)SPAN);
  int64_t element = row * dst.stride + col;
#pragma unroll 4
  for (int r = 0; r < SPAN / N; r += COLUMN_WARPS, element += COLUMN_WARPS * dst.stride)
    if (r < left) f(element, from[my.warp + r]);
}

/* Stores the rotated values of a tile. */
__device__ __forceinline__ void store_rotated(const Values &x, const ColumnArguments &a, int64_t row, int64_t col,
                                              const Member &my, const Tile &tile) {
  constexpr int PITCH = SPAN + 1;
  const bool strided = a.job.rotate > CHUNK;
#pragma unroll
  for (int c = 0; c < CHUNKS; c++)
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      int at = first_value(c, strided) + i * (strided ? CHUNK : 1);
      my.memory[at / SPAN * PITCH + at % SPAN] = __fmul_rn(x[c][i], a.factor);
    }
  store_tile<float, 1>(PITCH, row, col, a.rotated, my, tile, [&](int64_t at, float v) {
    int4mm_for_out_dtype(a.rotated.dtype, [&](auto dtype) {
      constexpr int DTYPE = decltype(dtype)::value;
      static_cast<typename int4mm_out_word<DTYPE>::type *>(a.rotated.data)[at] = int4mm_round<DTYPE>(v);
    });
  });
}

/* Quantises a tile and stores the words, or bytes. */
template <bool INT8>
__device__ __forceinline__ void store_words(Values &x, const float (&scales)[CHUNKS], const ColumnArguments &a,
                                            int64_t row, int64_t col, const Member &my, const Tile &tile) {
  typedef typename Element<INT8 ? INT4MM_INT8 : INT4MM_INT32>::type T;
  constexpr int N = PER_WORD<INT8>, PITCH = SPAN / N + 1;
  const int4mm_matrix &packed = a.job.packed;
  uint32_t words[CHUNKS][WORDS<INT8>];
#pragma unroll
  for (int c = 0; c < CHUNKS; c++)
    quantize_chunk<INT8>(words[c], x[c], Divisor(scales[c]), a.factor, a.job.clip_mse || a.job.clip < 1);
  for_words<INT8>(words, a.job.rotate > CHUNK, [&](uint32_t word, int at) {
    ((uint32_t *)my.memory)[at / SPAN * PITCH + at % SPAN / N] = word ^ (INT8 ? 0 : a.job.xor_mask);
  });
  store_tile<T, INT8 ? 1 : N>(INT8 ? PITCH * 4 : PITCH, INT8 ? row : row / 8, col, packed, my, tile,
                              [&](int64_t at, T v) { static_cast<T *>(packed.data)[at] = v; });
}

/* ---- scales ---- */

/* The largest of the lanes that have values of a column, in each chunk, as bits. */
__device__ __forceinline__ void max_of_columns(uint32_t (&most)[CHUNKS], const Tile &tile) {
#pragma unroll
  for (int lane = 1; lane < CHUNK; lane *= 2)
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) most[c] = max(most[c], __shfl_xor_sync(0xffffffffu, most[c], lane));
  if (tile.rows() == SPAN) return;
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) most[c] = max(most[c], __shfl_xor_sync(0xffffffffu, most[c], CHUNK));
  if (tile.is_tall()) most[0] = most[1] = max(most[0], most[1]);
}

/* The same as max_of_columns, of the cluster. Lane i of either half of a warp tells CTA i, and reads what it told. */
__device__ __forceinline__ void max_of_cluster(uint32_t (&most)[CHUNKS], Exchange<SPANS> &exchange, const Member &my,
                                               const Tile &tile) {
  const int i = lane_id() % CHUNK;
  exchange.wait_for_others();
  if (i < gridDim.x) {
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) exchange.tell(0, i, my.span[c], most[c]);
  }
  __syncwarp();
  exchange.wait(0);
#pragma unroll
  for (int c = 0; c < CHUNKS; c++)
    if (i < gridDim.x) most[c] = exchange.maxima[0][i][my.span[c]];
  max_of_columns(most, tile);
}

/* Adds the largest magnitudes of a tile's chunks to those of all tiles, and reports what is not finite. */
__device__ __forceinline__ void add_to_largest(float (&all)[CHUNKS], const float (&most)[CHUNKS],
                                               const ColumnArguments &a, int64_t row, int64_t first_col,
                                               const Member &my, const Tile &tile) {
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) all[c] = max_magnitude(all[c], most[c]);
  if (!a.bad || !__any_sync(0xffffffffu, magnitude(max_magnitude(most[0], most[1])) >= INFINITE)) return;
  for (int c = 0; c < CHUNKS; c++) {
    int64_t col = first_col + tile.column(my.span[c]);
    if (col < a.job.plain.cols) report_bad(a, col, row);
  }
}

/* Makes and stores the scales: of whole columns, which a cluster has, or for FIND_SCALES of a part, where larger. */
template <int TASK>
__device__ __forceinline__ void make_scales(float (&scales)[CHUNKS], const float (&all)[CHUNKS],
                                            Exchange<SPANS> &exchange, const ColumnArguments &a, int64_t first_col,
                                            const Member &my, const Tile &tile) {
  uint32_t absmax[CHUNKS] = {magnitude(__fmul_rn(all[0], a.factor)), magnitude(__fmul_rn(all[1], a.factor))};
  max_of_columns(absmax, tile);
  if (TASK != FIND_SCALES) max_of_cluster(absmax, exchange, my, tile);
#pragma unroll
  for (int c = 0; c < CHUNKS; c++) {
    const int64_t col = first_col + tile.column(my.span[c]);
    scales[c] = scale_of(absmax[c], a.job.clip, qmax_of(a.job));
    if (col >= a.job.plain.cols || lane_id() % CHUNK > 0) continue;
    if (TASK == FIND_SCALES)
      atomicMax((uint32_t *)a.job.scales + col, __float_as_uint(scales[c]));
    else if (blockIdx.x == 0)
      a.job.scales[col] = scales[c];
  }
}

/* ---- the kernel ---- */

/* CTA (x, y) has part x of the rows of columns y, `share` tiles. FIND_SCALES leaves in scales the largest of what the
 * parts find, as scale_of never falls. Where the scales are not given, a task that stores finds them itself, in a
 * cluster that has the columns whole: it goes down the tiles and back, for the last tile is still in registers then,
 * and others are in L2. Where they are given it starts with the columns that were read last. */
template <int TASK>
__global__ void __launch_bounds__(COLUMN_THREADS, 4) columns_kernel(const __grid_constant__ ColumnArguments a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ Exchange<SPANS> exchange;
  constexpr bool STORES = TASK != FIND_SCALES;
  const Tile tile(a.job.rotate);
  const Member my(shared, tile);
  const bool finds = TASK == FIND_SCALES || (TASK != ROTATE && !a.scales_given);
  const int y = a.scales_given ? gridDim.y - 1 - blockIdx.y : blockIdx.y;
  const int64_t col = (a.first_item + y) << tile.log2_columns;
  if (STORES && finds) exchange.begin();
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  Values x;
  float most[CHUNKS], all[CHUNKS] = {}, scales[CHUNKS] = {};
  if (TASK != ROTATE && !finds)
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
      if (col + tile.column(my.span[c]) < a.job.plain.cols) scales[c] = a.job.scales[col + tile.column(my.span[c])];
  const int turns = finds && STORES ? 2 * a.share : a.share;
#pragma unroll 1
  for (int turn = 0; turn < turns; turn++) {
    const bool back = turn >= a.share;
    const int64_t at = (int64_t)blockIdx.x * a.share + (back ? turns - 1 - turn : turn), row = at << tile.log2_rows;
    if (turn != a.share) {
      if (turn) __syncthreads(); /* all are done with the memories */
      make_tile(x, most, a, row, col, my, tile);
    }
    if (finds && !back) {
      add_to_largest(all, most, a, row, col, my, tile);
      if (turn == a.share - 1) make_scales<TASK>(scales, all, exchange, a, col, my, tile);
    }
    if constexpr (TASK == ROTATE)
      store_rotated(x, a, row, col, my, tile);
    else if constexpr (STORES)
      if (!finds || back) store_words<TASK == TO_INT8>(x, scales, a, row, col, my, tile);
  }
}

/* ---- launchers ---- */

template <int TASK> cudaError_t launch_tiles(const ColumnArguments &a, cudaStream_t stream) {
  const Tile tile(a.job.rotate);
  const bool whole = TASK != FIND_SCALES && TASK != ROTATE && !a.scales_given; /* columns, in clusters */
  return launch_columns<columns_kernel<TASK>>(a, ceil_div(a.job.plain.rows, (int64_t)a.share * tile.rows()),
                                              ceil_div(a.job.plain.cols, tile.columns()), COLUMN_WARPS,
                                              COLUMN_WARPS * WARP_BYTES, whole, stream);
}

cudaError_t launch_words(const ColumnArguments &a, cudaStream_t stream) {
  return makes_int8(a.job) ? launch_tiles<TO_INT8>(a, stream) : launch_tiles<TO_INT4>(a, stream);
}

/* Scales and words at once, in clusters. cudaErrorNotSupported, and nothing launched, where there are none, or few that
 * had long to go. */
cudaError_t quantize_whole(ColumnArguments a, cudaStream_t stream) {
  const Tile tile(a.job.rotate);
  int sms;
  int64_t down, across;
  cudaError_t error = get_attribute(&sms, cudaDevAttrMultiProcessorCount);
  if (error == cudaSuccess) error = divide_columns(&a, tile.rows(), tile.columns(), sms, &down, &across);
  return error == cudaSuccess ? launch_words(a, stream) : error;
}

} // namespace

cudaError_t int4mm_quantize_tiles(const int4mm_quantize_pass *pass, cudaStream_t stream) {
  ColumnArguments a = arguments_of(*pass);
  cudaError_t error = cudaSuccess;
  if (!a.scales_given) {
    error = a.job.rotate ? quantize_whole(a, stream) : cudaErrorNotSupported;
    if (error != cudaErrorNotSupported) return error;
    error = clear_scales(a.job, stream);
    if (error == cudaSuccess) error = launch_tiles<FIND_SCALES>(a, stream);
    a.scales_given = true;
  }
  return error == cudaSuccess ? launch_words(a, stream) : error;
}

cudaError_t int4mm_rotate_tiles(const int4mm_quantize_pass *pass, cudaStream_t stream) {
  return launch_tiles<ROTATE>(arguments_of(*pass), stream);
}
