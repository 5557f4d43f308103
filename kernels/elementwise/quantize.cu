/*
 * Rotation and quantising on the device, with the bits of src/cpu: what int4mm_quantize and int4mm_rotate promise.
 *
 * A warp takes 1024 values in its registers, and rotates and quantises them by itself (rotation.cuh). Rows (dim 1): a
 * CTA per row, which is read once, or a cluster where they are few and long; where a CTA cannot hold a row, one for
 * each piece, once for the scale and once for the words. Columns (dim 0): a cluster of CTAs per group of columns, each
 * with a part of the rows; they tell each other the largest magnitudes, and what a CTA holds is read once. Rotated ones
 * are transposed in shared memory; of others a lane has two columns, and clusters copy their next group while they
 * quantise one. Where there are no clusters, or few, a CTA per tile, once for the scales and once for the words; the
 * second reading goes backwards, through what L2 still has. The clip of least squared error has sums whose order is
 * fixed, 32 chains for every ratio, and so a kernel of its own, which leaves the scales.
 */
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "elementwise/quantize.cuh"

namespace {

constexpr int RATIOS = 33;    /* 64/64 down to 32/64 */
constexpr int MAX_WARPS = 32; /* of a CTA that has a row */
constexpr int WARP_BYTES = WARP_FLOATS * sizeof(float);

struct Arguments {
  int4mm_pack_job job;
  int4mm_matrix rotated;   /* of rotate: where the result goes; src is job.plain */
  unsigned long long *bad; /* or NULL */
  float factor;            /* of the rotation; 1 without one */
  int64_t first_item;      /* of the first CTA; of columns, of the first along y */
  int row_warps, pieces;   /* of a row: a CTA of so many warps for each piece */
  bool few_rows;           /* a warp for each 512 values */
  int share;               /* of columns: tiles of a CTA */
  int copied;              /* bytes that columns are copied by: 16, 4 or one element */
  bool scales_given;       /* by a kernel before */
  bool vector_load, vector_store;
  bool chunk_store; /* of rows: the words of a chunk are there together, and aligned to their size */
};

/* ---- scales ---- */

__device__ __forceinline__ float ratio_of(int i) {
  return (float)(64 - i) / 64;
}

/* The largest magnitude of all threads, as bits. `warps` is not to be used by the next call. */
__device__ __forceinline__ uint32_t cta_max(float most, uint32_t (&warps)[MAX_WARPS]) {
  uint32_t value = warp_max(magnitude(most));
  if (lane_id() == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_max(lane_id() < (int)blockDim.x / 32 ? warps[lane_id()] : 0);
}

constexpr int MAX_CLUSTER = 8; /* CTAs that any device with clusters has room for */

/* What the CTAs of a cluster, which has LINES rows or columns whole, tell each other of these, by the CTA that tells.
 * They may tell of others in a next round, and so on. One that tells in a round has heard all in the one before, so
 * that what was told in the one before that has been read: two places do. */
template <int LINES> struct Exchange {
  uint64_t barriers[2];
  uint32_t maxima[2][MAX_CLUSTER][LINES];

  /* At the start of the kernel, by all threads. */
  __device__ __forceinline__ void begin() {
#if __CUDA_ARCH__ >= 900
    if (gridDim.x == 1) return;
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; i++) ptx::mbarrier_init(barrier(i), 1);
      ptx::fence_mbarrier_init();
      for (int i = 0; i < 2; i++) expect(i);
    }
    __syncwarp();
    ptx::cluster_arrive();
#endif
  }
  /* Before the first tell, by all threads. */
  __device__ __forceinline__ void wait_for_others() {
    if (gridDim.x > 1) ptx::cluster_wait();
  }
  /* Tells a CTA, one value for each line in all. */
  __device__ __forceinline__ void tell(int round, int cta, int line, uint32_t most) {
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1)
      return ptx::st_async_u32(ptx::mapa(ptx::smem_address(&maxima[round % 2][blockIdx.x][line]), cta),
                               ptx::mapa(barrier(round), cta), most);
#endif
    maxima[round % 2][0][line] = most;
  }
  /* Until all have told. All threads are to meet before the next tell. */
  __device__ __forceinline__ void wait(int round) {
#if __CUDA_ARCH__ >= 900
    if (gridDim.x > 1) {
      ptx::mbarrier_wait(barrier(round), round / 2 % 2);
      if (threadIdx.x == 0) expect(round);
      return;
    }
#endif
    __syncthreads();
  }

private:
  __device__ __forceinline__ uint32_t barrier(int round) {
    return ptx::smem_address(&barriers[round % 2]);
  }
  __device__ __forceinline__ void expect(int round) {
    ptx::mbarrier_arrive_expect_tx(barrier(round), gridDim.x * sizeof maxima[0][0]);
  }
};

/* Where an absmax is not finite: reports what is not finite among a warp's values of a row or column of the source. */
__device__ __forceinline__ void report_bad(const Arguments &a, int64_t index, int64_t first) {
  const Line line = line_of(a.job.plain, a.job.dim, index, first);
#pragma unroll 1
  for (int i = lane_id() % CHUNK; i < line.count; i += CHUNK) /* halves of a warp may have lines of their own */
    if (magnitude(line[i]) >= INFINITE)
      report(a.job, a.job.dim ? index : first + i, a.job.dim ? first + i : index, a.bad);
}

/* ---- rows ---- */

/* Stores a warp's rotated values in a row, from element `at` on. */
template <int C>
__device__ __forceinline__ void store_floats(const int4mm_matrix &dst, int64_t at, int count,
                                             const float (&x)[C][CHUNK], float factor, bool strided) {
  int4mm_for_out_dtype(dst.dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    auto *to = static_cast<typename int4mm_out_word<DTYPE>::type *>(dst.data) + at;
#pragma unroll
    for (int c = 0; c < C; c++)
#pragma unroll
      for (int i = 0; i < CHUNK; i++) {
        int k = first_value(c, strided) + (strided ? CHUNK : 1) * i;
        if (k < count) to[k] = int4mm_round<DTYPE>(__fmul_rn(x[c][i], factor));
      }
  });
}

/* Stores a warp's words in a row, of which `to` is where the warp's first goes. Words that are in order go a chunk at a
 * time where chunk_store says so: a lane's one by one would have a warp write a quarter of each sector, or half, in
 * every store. */
template <bool INT8, int C>
__device__ __forceinline__ void store_row(uint8_t *to, uint32_t (&words)[C][WORDS<INT8>], int count, bool strided,
                                          bool chunk_store, const Arguments &a) {
  typedef std::conditional_t<INT8, uint4, uint2> Vector;
  const uint32_t mask = INT8 ? 0 : a.job.xor_mask;
  if (!strided && chunk_store) {
#pragma unroll
    for (int c = 0; c < C; c++) {
      const int at = first_value(c, false);
#pragma unroll
      for (int i = 0; i < WORDS<INT8>; i++) words[c][i] ^= mask;
      Vector vector;
      memcpy(&vector, words[c], sizeof vector);
      if (at < count) *(Vector *)(to + at * 4 / PER_WORD<INT8>) = vector;
    }
    return;
  }
  const bool whole = !INT8 || a.vector_store;
  for_words<INT8>(words, strided, [&](uint32_t word, int at) {
    if (at >= count) return;
    if (whole)
      *(uint32_t *)(to + at * 4 / PER_WORD<INT8>) = word ^ mask;
    else
      for (int k = 0; k < 4 && at + k < count; k++) to[at + k] = (uint8_t)(word >> 8 * k);
  });
}

enum Task { FIND_SCALES, TO_INT4, TO_INT8, ROTATE };

/* The largest of what the CTAs of a cluster have found of a row. */
__device__ __forceinline__ uint32_t max_of_row(uint32_t absmax, Exchange<1> &exchange) {
  if (gridDim.x == 1) return absmax;
  exchange.wait_for_others();
  if (threadIdx.x < gridDim.x) exchange.tell(0, threadIdx.x, 0, absmax);
  __syncwarp();
  exchange.wait(0);
  for (int i = 0; i < gridDim.x; i++) absmax = max(absmax, exchange.maxima[0][i][0]);
  return absmax;
}

/* Rows of an instance of the kernel: any, or those of a dtype of 16 bits that all warps have whole chunks of, in
 * vectors of 16 bytes, rotated as activations most often are: for int4 by blocks of 256, for int8 not. The code for
 * these is a tenth fewer instructions, and short: 1024 rows of 4096 take 5.3 us on an H100 (6.0 otherwise), a layer
 * with them 29.5 (31.9), since between two products none of it is in the instruction cache. */
constexpr int ANY_ROWS = -1;
template <int TASK> constexpr int USUAL_BLOCK = TASK == TO_INT4 ? SPAN : 0;

/* A CTA has a piece of a row, C times 512 values for each warp; where the row is in one piece, it finds the scale as
 * well. C = 1, for few rows: CTA (x, y) has piece x of row y, and the cluster all of it. FIND_SCALES leaves in scales
 * the largest of what the pieces of a row find, as scale_of never falls. */
template <int TASK, int C, int DTYPE>
__global__ void __launch_bounds__(32 * MAX_WARPS) rows_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ uint32_t warps[MAX_WARPS];
  __shared__ Exchange<1> exchange;
  if (C == 1) exchange.begin();
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  constexpr bool INT8 = TASK == TO_INT8, USUAL = DTYPE != ANY_ROWS;
  constexpr int VALUES = C * 32 * CHUNK; /* of a warp */
  const int4mm_pack_job &job = a.job;
  const int warp = threadIdx.x / 32, block = USUAL ? USUAL_BLOCK<TASK> : job.rotate;
  int64_t row = a.first_item + blockIdx.x, first = warp * VALUES;
  if (C == 1) {
    row = blockIdx.y, first += blockIdx.x * (blockDim.x / 32) * VALUES;
  } else if (!USUAL && a.pieces > 1) {
    first += row % a.pieces * (blockDim.x / 32) * VALUES;
    row /= a.pieces;
  }
  Line line = line_of(job.plain, 1, row, first, VALUES);
  if (USUAL) line.count = VALUES, line.dtype = DTYPE;
  float x[C][CHUNK];
  float most = make_values(x, shared + warp * WARP_FLOATS, line, USUAL || a.vector_load, block);
  if constexpr (TASK == ROTATE)
    return store_floats(a.rotated, row * a.rotated.stride + first, line.count, x, a.factor, block > CHUNK);
  float scale;
  if (!USUAL && a.scales_given) {
    scale = job.scales[row];
  } else {
    uint32_t absmax = cta_max(__fmul_rn(most, a.factor), warps);
    if (C == 1) absmax = max_of_row(absmax, exchange);
    scale = scale_of(absmax, job.clip, TASK == FIND_SCALES ? qmax_of(job) : QMAX<INT8>);
    if (threadIdx.x == 0) {
      if (TASK == FIND_SCALES)
        atomicMax((uint32_t *)job.scales + row, __float_as_uint(scale));
      else if (C == 2 || blockIdx.x == 0)
        job.scales[row] = scale;
    }
    if (absmax >= INFINITE && a.bad) report_bad(a, row, first);
  }
  if constexpr (TASK == TO_INT4 || TASK == TO_INT8) {
    uint32_t words[C][WORDS<INT8>];
    const Divisor by(scale);
#pragma unroll
    for (int c = 0; c < C; c++) quantize_chunk<INT8>(words[c], x[c], by, a.factor, job.clip_mse || job.clip < 1);
    uint8_t *to = static_cast<uint8_t *>(job.packed.data);
    to += INT8 ? row * job.packed.stride + first : row * job.packed.stride * 4 + first / 2;
    store_row<INT8>(to, words, line.count, block > CHUNK, USUAL || a.chunk_store, a);
  }
}

/* ---- columns ---- */

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

/* Copies to shared memory, or places zeros; asynchronous but for 2 bytes and for code before sm_80. */
template <class Piece> __device__ __forceinline__ void copy_piece(Piece *to, const Piece *from, bool there) {
#if __CUDA_ARCH__ >= 800
  if constexpr (sizeof(Piece) == 16) return ptx::cp_async16_line(ptx::smem_address(to), from, there ? 16 : 0);
  if constexpr (sizeof(Piece) == 4)
    if (there) return ptx::cp_async4(ptx::smem_address(to), from);
#endif
  *to = there ? *from : Piece{};
}

__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
#endif
}

/* Copies every STEPth of ROWS rows, of which `left` are there, to place(0), place(STEP), ...; zeros for the others. */
template <class Piece, int ROWS, int STEP, class T, class F>
__device__ __forceinline__ void copy_rows(F place, const T *from, int64_t stride, int left) {
#pragma unroll 8
  for (int r = 0; r < ROWS; r += STEP, from += STEP * stride)
    copy_piece((Piece *)place(r), (const Piece *)from, r < left);
}

/* Calls f(piece) with the type that elements of SIZE bytes are copied by. */
template <int SIZE, class F> __device__ __forceinline__ void for_pieces(int copied, F f) {
  if (copied == 16) return f(uint4{});
  if (copied == 4 || SIZE == 4) return f(0u);
  if constexpr (SIZE == 2) f(uint16_t(0));
}

/* Copies the tile from (row, col) on; zeros outside the matrix. */
__device__ __forceinline__ void load_tile(const Arguments &a, int64_t row, int64_t col, const Member &my,
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
__device__ __forceinline__ void make_tile(Values &x, float (&most)[CHUNKS], const Arguments &a, int64_t row,
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
__device__ __forceinline__ void store_rotated(const Values &x, const Arguments &a, int64_t row, int64_t col,
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
__device__ __forceinline__ void store_words(Values &x, const float (&scales)[CHUNKS], const Arguments &a, int64_t row,
                                            int64_t col, const Member &my, const Tile &tile) {
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
__device__ __forceinline__ void add_to_largest(float (&all)[CHUNKS], const float (&most)[CHUNKS], const Arguments &a,
                                               int64_t row, int64_t first_col, const Member &my, const Tile &tile) {
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
                                            Exchange<SPANS> &exchange, const Arguments &a, int64_t first_col,
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

/* CTA (x, y) has part x of the rows of columns y, `share` tiles. FIND_SCALES leaves in scales the largest of what the
 * parts find, as scale_of never falls. Where the scales are not given, a task that stores finds them itself, in a
 * cluster that has the columns whole: it goes down the tiles and back, for the last tile is still in registers then,
 * and others are in L2. Where they are given it starts with the columns that were read last. */
template <int TASK>
__global__ void __launch_bounds__(COLUMN_THREADS, 4) columns_kernel(const __grid_constant__ Arguments a) {
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

/* ---- columns that are not rotated ---- */

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
  static __device__ __forceinline__ void copy(void *memory, const Arguments &a, int64_t row, int64_t first_col) {
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

/* What a CTA knows of its columns: in every other round, their largest magnitudes; of each, the power, scale and
 * reciprocal of its Divisor, and the largest magnitude whose quotient is not beyond qmax. */
struct PairColumns {
  Exchange<PAIR_COLUMNS> exchange;
  uint32_t maxima[2][PAIR_COLUMNS];
  float4 divisors[PAIR_COLUMNS];
};

/* Makes the scales of the CTA's columns, from `first_col` on, from the maxima of the CTAs of its cluster. */
__device__ __forceinline__ void share_scales(PairColumns &columns, int round, const Arguments &a, int64_t first_col) {
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

/* Stores the words, or bytes, of eight rows of two columns. */
template <bool INT8>
__device__ __forceinline__ void store_eight(const uint32_t (&words)[2][8 / PER_WORD<INT8>], const Arguments &a,
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
__device__ __forceinline__ void quantize_any(const float4 *divisors, const Arguments &a, int64_t row, int64_t col) {
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
__device__ __forceinline__ void quantize_pairs(const Pairs<T> &pairs, const float4 *divisors, const Arguments &a,
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
__device__ __forceinline__ void report_pairs(const Arguments &a, int64_t row, int64_t col, int rows) {
#pragma unroll 1
  for (int c = 0; c < 2 && col + c < a.job.plain.cols; c++) {
    const Line line = line_of(a.job.plain, 0, col + c, row, rows);
#pragma unroll 1
    for (int i = 0; i < line.count; i++)
      if (magnitude(line[i]) >= INFINITE) report(a.job, row + i, col + c, a.bad);
  }
}

/* CTA (x, y) has part x of the rows, `share` times as many as its threads hold; its cluster has columns whole, those of
 * y, then those of y + gridDim.y and so on. It goes down the rows for the largest magnitude, and back for the words:
 * the last are still there. What comes next is copied in the meantime. */
template <bool INT8, class T>
__device__ __forceinline__ void quantize_columns(const Arguments &a, PairColumns &columns, void *memory) {
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
__global__ void __launch_bounds__(32 * PAIR_WARPS, Pairs<T>::CTAS) pairs_kernel(const __grid_constant__ Arguments a) {
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

/* ---- the clip of least squared error ---- */

constexpr int SEARCH_WARPS = 11, OWN_RATIOS = RATIOS / SEARCH_WARPS; /* three ratios for each warp */
constexpr int HELD_WARPS = 8;                                        /* times 1024 values in shared memory */

/* (x - q scale)^2, where the product is exact. The rounded quotient is 0x4b400000 + q as bits; these below 2^52 are a
 * double. */
__device__ __forceinline__ double squared_error(float x, const Divisor &by, double scale, float qmax) {
  float rounded = divide_and_round(__fmul_rn(x, by.power), by, qmax);
  double q = __dsub_rn(__hiloint2double(0x43300000, (int)__float_as_uint(rounded)), 0x1p52 + 0x4b400000);
  double e = __fma_rn(-q, scale, (double)x);
  return __dmul_rn(e, e);
}

/* The ratio of least error, of equals the largest, from the sums of this warp's ratios in each lane. */
__device__ __forceinline__ int best_ratio(const double (&sums)[OWN_RATIOS], double (&errors)[RATIOS]) {
#pragma unroll
  for (int i = 0; i < OWN_RATIOS; i++) {
    double sum = 0;
    for (int lane = 0; lane < 32; lane++) sum = __dadd_rn(sum, __shfl_sync(0xffffffffu, sums[i], lane));
    if (lane_id() == 0) errors[threadIdx.x / 32 * OWN_RATIOS + i] = sum;
  }
  __syncthreads();
  int best = 0;
  for (int i = 1; i < RATIOS; i++)
    if (errors[i] < errors[best]) best = i;
  return best;
}

/* The scales of rows or columns. A CTA for each, 8192 values at a time; a lane for k modulo 32. */
__global__ void __launch_bounds__(32 * SEARCH_WARPS) find_clips(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ uint32_t warps[MAX_WARPS];
  __shared__ double errors[RATIOS];
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int4mm_pack_job &job = a.job;
  const int warp = threadIdx.x / 32, lane = lane_id(), block = job.rotate, step = block > CHUNK ? CHUNK : 1;
  const int qmax = qmax_of(job);
  const int64_t lines = job.dim ? job.plain.rows : job.plain.cols, held = HELD_WARPS * WARP_VALUES;
  for (int64_t index = blockIdx.x; index < lines; index += gridDim.x) {
    const int64_t count = job.dim ? job.plain.cols : job.plain.rows;
    auto load = [&](int64_t first) {
      float most = 0, *memory = shared + warp * WARP_FLOATS;
      __syncthreads();
      if (warp < HELD_WARPS) {
        Values x;
        const Line line = line_of(job.plain, job.dim, index, first + warp * WARP_VALUES);
        most = make_values(x, memory, line, job.dim && a.vector_load, block);
        __syncwarp();
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
          for (int i = 0; i < CHUNK; i++) memory[first_value(c, step > 1) + step * i] = __fmul_rn(x[c][i], a.factor);
      }
      __syncthreads();
      return __fmul_rn(most, a.factor);
    };
    float most = 0;
    for (int64_t first = 0; first < count; first += held) most = max_magnitude(most, load(first));
    const uint32_t absmax = cta_max(most, warps);
    if (absmax >= INFINITE && a.bad)
      for (int64_t at = warp * WARP_VALUES; at < count; at += SEARCH_WARPS * WARP_VALUES) report_bad(a, index, at);
    auto own_scale = [&](int i) { return scale_of(absmax, ratio_of(warp * OWN_RATIOS + i), qmax); };
    static_assert(OWN_RATIOS == 3, "three are written out");
    const double scales[OWN_RATIOS] = {own_scale(0), own_scale(1), own_scale(2)};
    const Divisor by[OWN_RATIOS] = {Divisor(own_scale(0)), Divisor(own_scale(1)), Divisor(own_scale(2))};
    double sums[OWN_RATIOS] = {};
    for (int64_t first = 0; first < count; first += held) {
      if (count > held) (void)load(first);
      int end = (int)min(held, count - first);
      for (int k = lane; k < end; k += 32) {
        float x = shared[k / WARP_VALUES * WARP_FLOATS + k % WARP_VALUES];
#pragma unroll
        for (int i = 0; i < OWN_RATIOS; i++)
          sums[i] = __dadd_rn(sums[i], squared_error(x, by[i], scales[i], (float)qmax));
      }
    }
    const int best = best_ratio(sums, errors);
    if (threadIdx.x == 0) job.scales[index] = scale_of(absmax, ratio_of(best), qmax);
  }
}

/* ---- dequantize ---- */

/* Nibble i of a word as a float, exactly: an unsigned value in the low bits of 2^23. */
__device__ __forceinline__ float value_of_nibble(uint32_t word, int i) {
  return __uint_as_float(((word ^ 0x88888888u) >> 4 * i & 15u) | 0x4b000000u) - 8388616.0f;
}

/* GROUP columns of a packed row: bytes of int8, words of int4 along dim 0, nibbles of one word along dim 1. They are 16
 * bytes of the matrix, aligned, or one element. */
template <bool INT8, int GROUP>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(const int4mm_pack_job job) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  typedef typename Element<INT8 ? INT4MM_INT8 : INT4MM_INT32>::type T;
  const int4mm_matrix &packed = job.packed, &plain = job.plain;
  const bool across = !INT8 && job.dim == 0;
  const int64_t groups = plain.cols / GROUP, items = packed.rows * groups;
  for (int64_t item = first_item(); item < items; item += item_step()) {
    const int64_t r = item / groups, col = (item - r * groups) * GROUP;
    const T *from = static_cast<const T *>(packed.data) + r * packed.stride + (INT8 || across ? col : col / 8);
    __align__(16) T q[GROUP] = {};
    if (INT8 || across) {
      memcpy(q, __builtin_assume_aligned(from, sizeof q < 16 ? sizeof q : 16), sizeof q);
    } else {
      uint32_t word = *from >> col % 8 * 4;
#pragma unroll
      for (int i = 0; i < GROUP; i++) q[i] = word >> 4 * i;
    }
    float scales[GROUP], scale = job.dim ? __ldg(job.scales + r) : 0;
#pragma unroll
    for (int i = 0; i < GROUP; i++) scales[i] = job.dim ? scale : __ldg(job.scales + col + i);
    const int rows = across ? (int)min(plain.rows - 8 * r, (int64_t)8) : 1;
    int4mm_for_out_dtype(plain.dtype, [&](auto dtype) {
      constexpr int DTYPE = decltype(dtype)::value;
      if constexpr (GROUP > 1 && (GROUP == 4) != (DTYPE == INT4MM_FLOAT32)) return;
      auto *to = static_cast<typename int4mm_out_word<DTYPE>::type *>(plain.data) + (across ? 8 * r : r) * plain.stride;
#pragma unroll
      for (int k = 0; k < (INT8 ? 1 : 8); k++, to += plain.stride) {
        if (k >= rows) break;
        float x[GROUP];
#pragma unroll
        for (int i = 0; i < GROUP; i++)
          x[i] = __fmul_rn(INT8 ? (float)q[i] : value_of_nibble(q[i] ^ job.xor_mask, k), scales[i]);
        if constexpr (GROUP > 1 && (GROUP == 4) == (DTYPE == INT4MM_FLOAT32))
          int4mm_store_vector<DTYPE>(to + col, x);
        else if constexpr (GROUP == 1)
          to[col] = int4mm_round<DTYPE>(x[0]);
      }
    });
  }
}

} // namespace

/* ---- launchers ---- */

namespace {

size_t element_bytes(const int4mm_matrix &m) {
  return m.dtype == INT4MM_INT32 || m.dtype == INT4MM_FLOAT32 ? 4 : m.dtype == INT4MM_INT8 ? 1 : 2;
}

int64_t ceil_div(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

template <auto KERNEL, bool KEEPS_SHARED = false, class... A>
cudaError_t launch(dim3 grid, int warps, int bytes, int cluster, cudaStream_t stream, const A &...arguments) {
  int device;
  cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error
                              : int4mm_launch<KERNEL, KEEPS_SHARED>(device, grid, 32 * warps, (size_t)bytes, cluster,
                                                                    stream, arguments...);
}

/* Whether the warps of rows use their memories. */
bool uses_memory(const Arguments &a) {
  return a.job.rotate || !a.vector_load;
}

/* The warps of a CTA that has a row, or a piece of one where it cannot hold all. */
void divide_rows(Arguments *a, int most, int shared_bytes) {
  if (uses_memory(*a) && (shared_bytes - 1024) / WARP_BYTES < most) most = (shared_bytes - 1024) / WARP_BYTES;
  constexpr int FEW_ROWS = 512, FEW_VALUES = WARP_VALUES / 2; /* more rows keep an SM busy with longer ones, */
  constexpr int FEW_WARPS = 6144;                             /* unless they are short: 46 warps for an SM of an H100 */
  const int64_t few_warps = ceil_div(a->job.plain.cols, FEW_VALUES), rows = a->job.plain.rows;
  a->few_rows = a->job.packed.data && few_warps && (rows <= FEW_ROWS || rows * few_warps <= FEW_WARPS) &&
                a->job.rotate <= FEW_VALUES && few_warps <= most;
  const int64_t warps = !a->job.plain.cols ? 1 : a->few_rows ? few_warps : ceil_div(a->job.plain.cols, WARP_VALUES);
  a->row_warps = warps <= most ? (int)warps : 8;
  a->pieces = (int)ceil_div(warps, a->row_warps);
}

/* A kernel for columns: `down` CTAs for the rows of each `across`. */
template <auto KERNEL>
cudaError_t launch_columns(Arguments a, int64_t down, int64_t across, int warps, int bytes, bool cluster,
                           cudaStream_t stream) {
  const int64_t most = 65535;
  cudaError_t error = cudaSuccess;
  for (a.first_item = 0; down && a.first_item < across && error == cudaSuccess; a.first_item += most)
    error = launch<KERNEL>(dim3((unsigned)down, (unsigned)min(across - a.first_item, most)), warps, bytes,
                           cluster ? (int)down : 1, stream, a);
  return error;
}

template <int TASK> cudaError_t launch_tiles(const Arguments &a, cudaStream_t stream) {
  const Tile tile(a.job.rotate);
  const bool whole = TASK != FIND_SCALES && TASK != ROTATE && !a.scales_given; /* columns, in clusters */
  return launch_columns<columns_kernel<TASK>>(a, ceil_div(a.job.plain.rows, (int64_t)a.share * tile.rows()),
                                              ceil_div(a.job.plain.cols, tile.columns()), COLUMN_WARPS,
                                              COLUMN_WARPS * WARP_BYTES, whole, stream);
}

/* Calls f(DTYPE) for the instance of rows_kernel for these rows, of which the warps have so many values. */
template <int TASK, class F> cudaError_t for_rows(const Arguments &a, int64_t values, F f) {
  if constexpr (TASK == TO_INT4 || TASK == TO_INT8) {
    const int4mm_pack_job &job = a.job;
    const bool usual = job.plain.cols == values && a.vector_load && job.rotate == USUAL_BLOCK<TASK> &&
                       (job.rotate || a.chunk_store) && !a.scales_given;
    if (usual && job.plain.dtype == INT4MM_BFLOAT16) return f(std::integral_constant<int, INT4MM_BFLOAT16>());
    if (usual && job.plain.dtype == INT4MM_FLOAT16) return f(std::integral_constant<int, INT4MM_FLOAT16>());
  }
  return f(std::integral_constant<int, ANY_ROWS>());
}

template <auto KERNEL> cudaError_t launch_rows(Arguments a, cudaStream_t stream) {
  const int64_t items = a.job.plain.rows * a.pieces;
  cudaError_t error = cudaSuccess;
  for (a.first_item = 0; a.first_item < items && error == cudaSuccess; a.first_item += INT32_MAX)
    error = launch<KERNEL>(int4mm_blocks(items - a.first_item, 1), a.row_warps,
                           uses_memory(a) ? a.row_warps * WARP_BYTES : 0, 1, stream, a);
  return error;
}

/* Rows that leave SMs without work are divided among the CTAs of clusters, where there are some. Many rows are faster
 * with L1, of which this kernel leaves little. */
template <int TASK> cudaError_t launch_few_rows(const Arguments &a, cudaStream_t stream) {
  constexpr int LEAST_WARPS = 8; /* that are worth a CTA */
  int device, sms, ctas = 1;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  while (!a.scales_given && a.row_warps > LEAST_WARPS * ctas && 4 * ctas * a.job.plain.rows <= sms) ctas *= 2;
  static_assert(LEAST_WARPS * MAX_CLUSTER >= MAX_WARPS, "a cluster may have too many CTAs");
  auto launch_ctas = [&](int number) {
    const int warps = (a.row_warps + number - 1) / number;
    const dim3 grid(number, (unsigned)a.job.plain.rows);
    return for_rows<TASK>(a, (int64_t)number * warps * (WARP_VALUES / 2), [&](auto dtype) {
      return launch<rows_kernel<TASK, 1, dtype.value>, true>(grid, warps, uses_memory(a) ? warps * WARP_BYTES : 0,
                                                             number, stream, a);
    });
  };
  error = ctas > 1 ? launch_ctas(ctas) : cudaErrorNotSupported;
  return error == cudaErrorNotSupported ? launch_ctas(1) : error;
}

template <int TASK> cudaError_t launch_task(const Arguments &a, cudaStream_t stream) {
  if (!a.job.dim) return launch_tiles<TASK>(a, stream);
  if constexpr (TASK == TO_INT4 || TASK == TO_INT8)
    if (a.few_rows) return launch_few_rows<TASK>(a, stream);
  return for_rows<TASK>(a, (int64_t)a.row_warps * WARP_VALUES,
                        [&](auto dtype) { return launch_rows<rows_kernel<TASK, 2, dtype.value>>(a, stream); });
}

cudaError_t launch_words(const Arguments &a, cudaStream_t stream) {
  return a.job.packed.dtype == INT4MM_INT8 ? launch_task<TO_INT8>(a, stream) : launch_task<TO_INT4>(a, stream);
}

cudaError_t find_scales(const Arguments &a, int64_t lines, cudaStream_t stream) {
  cudaError_t error = cudaMemsetAsync(a.job.scales, 0, (size_t)lines * sizeof(float), stream);
  return error == cudaSuccess ? launch_task<FIND_SCALES>(a, stream) : error;
}

/* The parts that columns are divided into: `down` CTAs, a cluster, for the rows, `across` groups of columns. Sets
 * a->share. cudaErrorNotSupported where clusters would be few and have long to go. */
cudaError_t divide_columns(Arguments *a, int tile_rows, int tile_columns, int sms, int64_t *down, int64_t *across) {
  const int64_t tiles = ceil_div(a->job.plain.rows, tile_rows), share = ceil_div(tiles, MAX_CLUSTER);
  *across = ceil_div(a->job.plain.cols, tile_columns);
  if (!tiles) return cudaErrorNotSupported;
  a->share = (int)share, *down = ceil_div(tiles, share);
  return share > 1 && *down * *across < sms ? cudaErrorNotSupported : cudaSuccess;
}

template <class T> cudaError_t launch_pairs(Arguments a, int sms, cudaStream_t stream) {
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

/* Scales and words of columns at once, in clusters that have the columns whole. cudaErrorNotSupported where there are
 * no clusters, and where they would be few and have long to go. */
cudaError_t quantize_whole_columns(Arguments a, cudaStream_t stream) {
  int device, sms;
  int64_t down, across;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  if (a.job.rotate) {
    const Tile tile(a.job.rotate);
    error = divide_columns(&a, tile.rows(), tile.columns(), sms, &down, &across);
    return error == cudaSuccess ? launch_words(a, stream) : error;
  }
  const int dtype = a.job.plain.dtype;
  return dtype == INT4MM_FLOAT32   ? launch_pairs<float>(a, sms, stream)
         : dtype == INT4MM_FLOAT16 ? launch_pairs<__half>(a, sms, stream)
                                   : launch_pairs<__nv_bfloat16>(a, sms, stream);
}

/* How the work is divided among CTAs, by what a CTA may have of shared memory. */
cudaError_t divide(Arguments *a, int most_row_warps) {
  int device, bytes;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  if (a->job.dim) divide_rows(a, most_row_warps, bytes);
  const int element = (int)element_bytes(a->job.plain);
  auto is_whole = [&](int size) { return is_whole_vectors(a->job.plain, size / element, size); };
  a->copied = is_whole(16) ? 16 : is_whole(4) ? 4 : element;
  a->share = 1;
  return cudaSuccess;
}

} // namespace

cudaError_t int4mm_launch_quantize(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream) {
  const int64_t lines = job->dim ? job->plain.rows : job->plain.cols;
  Arguments a = {};
  a.job = *job, a.bad = bad, a.factor = int4mm_rotation_factor(job->rotate);
  const int stored = job->dim ? 4 : 2;
  a.vector_load = is_whole_vectors(job->plain, 16 / (int)element_bytes(job->plain), 16);
  a.vector_store = is_whole_vectors(job->packed, stored, stored * element_bytes(job->packed));
  const bool int8 = job->packed.dtype == INT4MM_INT8;
  a.chunk_store = job->dim && is_whole_vectors(job->packed, int8 ? CHUNK : CHUNK / 8, int8 ? CHUNK : CHUNK / 2);
  if (!lines) return cudaSuccess;
  cudaError_t error = divide(&a, MAX_WARPS);
  if (error != cudaSuccess) return error;
  if (job->clip_mse) {
    error = launch<find_clips>(int4mm_blocks(lines, 1), SEARCH_WARPS, HELD_WARPS * WARP_BYTES, 1, stream, a);
    a.scales_given = true;
  } else if (!job->dim || a.pieces > 1) {
    error = job->dim ? cudaErrorNotSupported : quantize_whole_columns(a, stream);
    if (error != cudaErrorNotSupported) return error;
    error = find_scales(a, lines, stream);
    a.scales_given = true;
  }
  return error == cudaSuccess ? launch_words(a, stream) : error;
}

cudaError_t int4mm_launch_rotate(const int4mm_rotate_job *job, cudaStream_t stream) {
  Arguments a = {};
  a.rotated = job->dst, a.factor = int4mm_rotation_factor(job->block);
  a.job.plain = job->src, a.job.rotate = job->block, a.job.dim = job->dim;
  a.vector_load = is_whole_vectors(job->src, 16 / (int)element_bytes(job->src), 16);
  if (!job->src.cols) return cudaSuccess;
  cudaError_t error = divide(&a, 8);
  return error == cudaSuccess ? launch_task<ROTATE>(a, stream) : error;
}

template <bool INT8, int GROUP> cudaError_t launch_dequantize(const int4mm_pack_job &job, cudaStream_t stream) {
  int64_t items = job.packed.rows * (job.plain.cols / GROUP);
  return items
             ? launch<dequantize_kernel<INT8, GROUP>>(int4mm_blocks(items, kThreads), kThreads / 32, 0, 1, stream, job)
             : cudaSuccess;
}

cudaError_t int4mm_launch_dequantize(const int4mm_pack_job *job, cudaStream_t stream) {
  const bool int8 = job->packed.dtype == INT4MM_INT8;
  const int group = 16 / (int)element_bytes(job->plain);
  bool vector = is_whole_vectors(job->plain, group, 16);
  if (int8 || !job->dim) vector = vector && is_whole_vectors(job->packed, group, group * element_bytes(job->packed));
  if (!vector) return int8 ? launch_dequantize<true, 1>(*job, stream) : launch_dequantize<false, 1>(*job, stream);
  if (group == 4) return int8 ? launch_dequantize<true, 4>(*job, stream) : launch_dequantize<false, 4>(*job, stream);
  return int8 ? launch_dequantize<true, 8>(*job, stream) : launch_dequantize<false, 8>(*job, stream);
}
