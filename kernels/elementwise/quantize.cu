/*
 * Rotation and quantising on the device, with the bits of src/cpu: what int4mm_quantize and int4mm_rotate promise.
 *
 * A warp takes 1024 values in its registers, and rotates and quantises them by itself (rotation.cuh). Rows (dim 1): a
 * CTA per row, which is read once; where a CTA cannot hold it, one for each piece, once for the scale and once for the
 * words. Columns (dim 0): a CTA per tile, transposed in shared memory, once for the scales and once for the words; the
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
  int64_t first_item;      /* of the first CTA */
  int row_warps, pieces;   /* of a row: a CTA of so many warps for each piece */
  bool few_rows;           /* a warp for each 512 values */
  bool scales_given;       /* by a kernel before */
  bool vector_load, vector_store;
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

enum Task { FIND_SCALES, TO_INT4, TO_INT8, ROTATE };

/* A CTA has a piece of a row, C times 512 values for each warp; where the row is in one piece, it finds the scale as
 * well. FIND_SCALES leaves in scales the largest of what the pieces of a row find, as scale_of never falls. */
template <int TASK, int C>
__global__ void __launch_bounds__(32 * MAX_WARPS) rows_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ uint32_t warps[MAX_WARPS];
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  constexpr bool INT8 = TASK == TO_INT8;
  constexpr int VALUES = C * 32 * CHUNK; /* of a warp */
  const int4mm_pack_job &job = a.job;
  const int warp = threadIdx.x / 32, block = job.rotate;
  int64_t row = a.first_item + blockIdx.x, first = warp * VALUES;
  if (a.pieces > 1) {
    first += row % a.pieces * (blockDim.x / 32) * VALUES;
    row /= a.pieces;
  }
  const Line line = line_of(job.plain, 1, row, first, VALUES);
  float x[C][CHUNK];
  float most = make_values(x, shared + warp * WARP_FLOATS, line, a.vector_load, block);
  if constexpr (TASK == ROTATE)
    return store_floats(a.rotated, row * a.rotated.stride + first, line.count, x, a.factor, block > CHUNK);
  float scale;
  if (a.scales_given) {
    scale = job.scales[row];
  } else {
    uint32_t absmax = cta_max(__fmul_rn(most, a.factor), warps);
    scale = scale_of(absmax, job.clip, TASK == FIND_SCALES ? qmax_of(job) : QMAX<INT8>);
    if (threadIdx.x == 0) {
      if (TASK == FIND_SCALES)
        atomicMax((uint32_t *)job.scales + row, __float_as_uint(scale));
      else
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
    const bool whole = !INT8 || a.vector_store;
    for_words<INT8>(words, block > CHUNK, [&](uint32_t word, int at) {
      if (at >= line.count) return;
      if (whole)
        *(uint32_t *)(to + at * 4 / PER_WORD<INT8>) = word ^ (INT8 ? 0 : job.xor_mask);
      else
        for (int k = 0; k < 4 && at + k < line.count; k++) to[at + k] = (uint8_t)(word >> 8 * k);
    });
  }
}

/* ---- columns ---- */

constexpr int EIGHT = 8; /* columns that a thread loads at once */
constexpr int COLUMN_WARPS = 8;

/* What a CTA takes of a matrix: so many rows that blocks are whole, and for each warp 1024 values of them, column after
 * column. All are powers of two, of which these are the logarithms. */
struct Tile {
  int log2_rows, log2_warp_columns, log2_columns;

  __host__ __device__ __forceinline__ explicit Tile(int block) {
    log2_rows = block == 1024 ? 10 : block == 512 ? 9 : 8;
    log2_warp_columns = 10 - log2_rows, log2_columns = log2_warp_columns + 3; /* 8 warps */
  }
  __host__ __device__ __forceinline__ int rows() const { return 1 << log2_rows; }
  __host__ __device__ __forceinline__ int warp_columns() const { return 1 << log2_warp_columns; }
  __host__ __device__ __forceinline__ int columns() const { return 1 << log2_columns; }
};

/* Places the tile from (row, col) on in the memories of the warps; zeros outside the matrix. A thread has eight columns
 * of four rows. */
__device__ __forceinline__ void load_tile(float *shared, const int4mm_matrix &src, int64_t row, int64_t col,
                                          const Tile &tile, bool vector) {
  constexpr int ROWS = 4;
  const int log2_groups = tile.log2_columns - 3, group = threadIdx.x / 4 & ((1 << log2_groups) - 1);
  const int c = group * EIGHT, r = ((threadIdx.x / 4 >> log2_groups) * 4 + threadIdx.x % 4) * ROWS;
  const int64_t rows = src.rows - row - r, cols = src.cols - col - c; /* that are left */
  int4mm_for_out_dtype(src.dtype, [&](auto dtype) {
    typedef typename Element<decltype(dtype)::value>::type T;
    constexpr int VECTORS = EIGHT * sizeof(T) / 16;
    const T *from = static_cast<const T *>(src.data) + (row + r) * src.stride + col + c;
    uint4 raw[ROWS][VECTORS] = {};
    float x[ROWS][EIGHT];
    if (vector) {
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
          if (i < rows && cols > 0) raw[i][v] = __ldg((const uint4 *)(from + i * src.stride) + v);
    } else {
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int k = 0; k < EIGHT; k++)
          if (i < rows && k < cols) ((T *)raw[i])[k] = from[i * src.stride + k];
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) to_floats<T>(x[i], raw[i]);
#pragma unroll
    for (int k = 0; k < EIGHT; k++) {
      int slot = (c + k) & (tile.warp_columns() - 1);
      float *to = shared + (c + k >> tile.log2_warp_columns) * WARP_FLOATS + place((slot << tile.log2_rows) + r);
      *(float4 *)to = make_float4(x[0][k], x[1][k], x[2][k], x[3][k]);
    }
  });
}

/* Calls f(element, value) for `count` rows of what the warps left in their memories, from (row, col) of dst on:
 * elements of type T, those of a column `pitch` after those of the one before. */
template <class T, class F>
__device__ __forceinline__ void store_tile(const float *shared, int64_t row, int64_t col, const Tile &tile, int count,
                                           int pitch, const int4mm_matrix &dst, F f) {
  const int c = threadIdx.x & (tile.columns() - 1), slot = c & (tile.warp_columns() - 1);
  const T *from = (const T *)(shared + (c >> tile.log2_warp_columns) * WARP_FLOATS) + slot * pitch;
  __syncthreads();
  if (col + c >= dst.cols) return;
  if (count > dst.rows - row) count = (int)(dst.rows - row);
#pragma unroll 4
  for (int r = threadIdx.x >> tile.log2_columns; r < count; r += 32 * COLUMN_WARPS >> tile.log2_columns)
    f((row + r) * dst.stride + col + c, from[r]);
}

/* The largest of the lanes that have values of a column, in each chunk, as bits. */
__device__ __forceinline__ void max_of_columns(uint32_t (&most)[CHUNKS], const Tile &tile) {
#pragma unroll
  for (int c = 0; c < CHUNKS; c++)
    for (int lane = 1; lane < (tile.rows() > SPAN ? 32 : CHUNK); lane *= 2)
      most[c] = max(most[c], __shfl_xor_sync(0xffffffffu, most[c], lane));
  if (tile.rows() == WARP_VALUES) most[0] = most[1] = max(most[0], most[1]);
}

/* Stores the rotated values of a tile. */
__device__ __forceinline__ void store_rotated(float *shared, const Values &x, const Arguments &a, int64_t row,
                                              int64_t col, const Tile &tile) {
  const int pitch = tile.rows() + 1;
  const bool strided = a.job.rotate > CHUNK;
  float *memory = shared + threadIdx.x / 32 * WARP_FLOATS;
#pragma unroll
  for (int c = 0; c < CHUNKS; c++)
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      int at = first_value(c, strided) + i * (strided ? CHUNK : 1);
      memory[(at >> tile.log2_rows) * pitch + (at & (tile.rows() - 1))] = __fmul_rn(x[c][i], a.factor);
    }
  store_tile<float>(shared, row, col, tile, tile.rows(), pitch, a.rotated, [&](int64_t at, float v) {
    int4mm_for_out_dtype(a.rotated.dtype, [&](auto dtype) {
      constexpr int DTYPE = decltype(dtype)::value;
      static_cast<typename int4mm_out_word<DTYPE>::type *>(a.rotated.data)[at] = int4mm_round<DTYPE>(v);
    });
  });
}

/* Stores the words, or bytes, of a tile. */
template <bool INT8>
__device__ __forceinline__ void store_words(float *shared, uint32_t (&words)[CHUNKS][WORDS<INT8>], const Arguments &a,
                                            int64_t row, int64_t col, const Tile &tile) {
  typedef typename Element<INT8 ? INT4MM_INT8 : INT4MM_INT32>::type T;
  constexpr int N = PER_WORD<INT8>;
  const int4mm_matrix &packed = a.job.packed;
  const int pitch = tile.rows() / N + 1; /* words */
  uint32_t *memory = (uint32_t *)(shared + threadIdx.x / 32 * WARP_FLOATS);
  for_words<INT8>(words, a.job.rotate > CHUNK, [&](uint32_t word, int at) {
    memory[(at >> tile.log2_rows) * pitch + (at & (tile.rows() - 1)) / N] = word;
  });
  store_tile<T>(shared, INT8 ? row : row / 8, col, tile, INT8 ? tile.rows() : tile.rows() / 8, INT8 ? pitch * 4 : pitch,
                packed, [&](int64_t at, T v) { static_cast<T *>(packed.data)[at] = v ^ (INT8 ? 0 : a.job.xor_mask); });
}

/* A CTA for a tile. Those that quantise or rotate go backwards. */
template <int TASK>
__global__ void __launch_bounds__(32 * COLUMN_WARPS, 32 / COLUMN_WARPS)
    columns_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) float shared[];
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  constexpr bool INT8 = TASK == TO_INT8;
  const int4mm_pack_job &job = a.job;
  const int block = job.rotate, warp = threadIdx.x / 32;
  const Tile tile(block);
  const int64_t across = (job.plain.cols + tile.columns() - 1) >> tile.log2_columns;
  const int64_t down = (job.plain.rows + tile.rows() - 1) >> tile.log2_rows;
  int64_t item = a.first_item + blockIdx.x;
  if (TASK != FIND_SCALES) item = across * down - 1 - item;
  const int64_t row = item / across << tile.log2_rows, first_col = item % across << tile.log2_columns;
  load_tile(shared, job.plain, row, first_col, tile, a.vector_load);
  __syncthreads();
  Values x;
  float most[CHUNKS];
  int64_t col[CHUNKS]; /* of each chunk's values in this lane */
#pragma unroll
  for (int c = 0; c < CHUNKS; c++)
    col[c] = first_col + ((warp * WARP_VALUES + SPAN * CHUNKS * c + SPAN * (lane_id() / CHUNK)) >> tile.log2_rows);
  float *memory = shared + warp * WARP_FLOATS;
  fetch(x, memory, false);
  rotate_values(x, most, memory, block, [&] {
    for (int i = 0; i < tile.warp_columns(); i++) {
      int64_t at = min(first_col + (warp << tile.log2_warp_columns) + i, job.plain.cols - 1);
      gather<1>(memory + place(i << tile.log2_rows), line_of(job.plain, 0, at, row), tile.rows());
    }
  });
  __syncwarp();
  if constexpr (TASK == FIND_SCALES) {
    uint32_t absmax[CHUNKS] = {magnitude(__fmul_rn(most[0], a.factor)), magnitude(__fmul_rn(most[1], a.factor))};
    max_of_columns(absmax, tile);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      if (col[c] >= job.plain.cols) continue;
      float scale = scale_of(absmax[c], job.clip, qmax_of(job));
      if (lane_id() % CHUNK == 0) atomicMax((uint32_t *)job.scales + col[c], __float_as_uint(scale));
      if (absmax[c] >= INFINITE && a.bad) report_bad(a, col[c], row);
    }
  } else if constexpr (TASK == ROTATE) {
    store_rotated(shared, x, a, row, first_col, tile);
  } else {
    uint32_t words[CHUNKS][WORDS<INT8>];
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      const Divisor by(col[c] < job.plain.cols ? job.scales[col[c]] : 0);
      quantize_chunk<INT8>(words[c], x[c], by, a.factor, job.clip_mse || job.clip < 1);
    }
    store_words<INT8>(shared, words, a, row, first_col, tile);
  }
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

template <auto KERNEL, class... A>
cudaError_t launch(int64_t blocks, int warps, int memories, cudaStream_t stream, const A &...arguments) {
  int device;
  cudaError_t error = cudaGetDevice(&device);
  return error != cudaSuccess ? error
                              : int4mm_launch<KERNEL>(device, int4mm_blocks(blocks, 1), 32 * warps,
                                                      (size_t)memories * WARP_BYTES, 1, stream, arguments...);
}

/* A CTA per item, in as many grids as it takes. */
template <auto KERNEL>
cudaError_t launch_items(Arguments a, int64_t items, int warps, int memories, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (a.first_item = 0; a.first_item < items && error == cudaSuccess; a.first_item += INT32_MAX)
    error = launch<KERNEL>(items - a.first_item, warps, memories, stream, a);
  return error;
}

/* Whether the warps of rows use their memories. */
bool uses_memory(const Arguments &a) {
  return a.job.rotate || !a.vector_load;
}

/* The warps of a CTA that has a row, or a piece of one where it cannot hold all. */
cudaError_t divide_rows(Arguments *a) {
  int device, bytes, most = MAX_WARPS;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  if (uses_memory(*a) && (bytes - 1024) / WARP_BYTES < most) most = (bytes - 1024) / WARP_BYTES;
  constexpr int FEW_ROWS = 512, FEW_VALUES = WARP_VALUES / 2; /* more rows keep an SM busy with longer ones */
  const int64_t few_warps = ceil_div(a->job.plain.cols, FEW_VALUES);
  a->few_rows = a->job.plain.rows <= FEW_ROWS && a->job.rotate <= FEW_VALUES && few_warps <= most;
  const int64_t warps = !a->job.plain.cols ? 1 : a->few_rows ? few_warps : ceil_div(a->job.plain.cols, WARP_VALUES);
  a->row_warps = warps <= most ? (int)warps : 8;
  a->pieces = (int)ceil_div(warps, a->row_warps);
  return cudaSuccess;
}

template <int TASK> cudaError_t launch_task(const Arguments &a, cudaStream_t stream) {
  const int4mm_matrix &m = a.job.plain;
  if (a.job.dim) {
    const int memories = uses_memory(a) ? a.row_warps : 0;
    if constexpr (TASK == TO_INT4 || TASK == TO_INT8)
      if (a.few_rows) return launch_items<rows_kernel<TASK, 1>>(a, m.rows * a.pieces, a.row_warps, memories, stream);
    return launch_items<rows_kernel<TASK, 2>>(a, m.rows * a.pieces, a.row_warps, memories, stream);
  }
  const Tile tile(a.job.rotate);
  int64_t tiles = ceil_div(m.rows, tile.rows()) * ceil_div(m.cols, tile.columns());
  return launch_items<columns_kernel<TASK>>(a, tiles, COLUMN_WARPS, COLUMN_WARPS, stream);
}

} // namespace

cudaError_t int4mm_launch_quantize(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream) {
  const int64_t lines = job->dim ? job->plain.rows : job->plain.cols;
  const int vector = job->dim ? CHUNK : EIGHT;
  Arguments a = {*job, {}, bad, int4mm_rotation_factor(job->rotate), 0, 1, 1, false, false, false, false};
  a.vector_load = is_whole_vectors(job->plain, vector, vector * element_bytes(job->plain));
  a.vector_store = is_whole_vectors(job->packed, 4, 4 * element_bytes(job->packed));
  if (!lines) return cudaSuccess;
  cudaError_t error = job->dim ? divide_rows(&a) : cudaSuccess;
  if (error != cudaSuccess) return error;
  if (job->clip_mse) {
    error = launch<find_clips>(lines, SEARCH_WARPS, HELD_WARPS, stream, a);
    a.scales_given = true;
  } else if (!job->dim || a.pieces > 1) {
    error = cudaMemsetAsync(job->scales, 0, (size_t)lines * sizeof(float), stream);
    if (error == cudaSuccess) error = launch_task<FIND_SCALES>(a, stream);
    a.scales_given = true;
  }
  if (error != cudaSuccess) return error;
  return job->packed.dtype == INT4MM_INT8 ? launch_task<TO_INT8>(a, stream) : launch_task<TO_INT4>(a, stream);
}

cudaError_t int4mm_launch_rotate(const int4mm_rotate_job *job, cudaStream_t stream) {
  const int vector = job->dim ? CHUNK : EIGHT;
  Arguments a = {{}, job->dst, nullptr, int4mm_rotation_factor(job->block), 0, 1, 1, false, false, false, false};
  a.job.plain = job->src, a.job.rotate = job->block, a.job.dim = job->dim;
  a.vector_load = is_whole_vectors(job->src, vector, vector * element_bytes(job->src));
  const int64_t warps = ceil_div(job->src.cols, WARP_VALUES);
  if (!warps) return cudaSuccess;
  a.row_warps = warps < 8 ? (int)warps : 8;
  a.pieces = (int)ceil_div(warps, a.row_warps);
  return launch_task<ROTATE>(a, stream);
}

template <bool INT8, int GROUP> cudaError_t launch_dequantize(const int4mm_pack_job &job, cudaStream_t stream) {
  int64_t items = job.packed.rows * (job.plain.cols / GROUP);
  return items ? launch<dequantize_kernel<INT8, GROUP>>(ceil_div(items, kThreads), kThreads / 32, 0, stream, job)
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
