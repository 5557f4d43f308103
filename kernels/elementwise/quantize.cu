/*
 * Rotation and quantising on the device, with the bits of src/cpu: what int4mm_quantize and int4mm_rotate promise.
 *
 * Rows (dim 1): a CTA per row. Its threads hold the row in registers, rotate it through shared memory, find the absmax
 * and quantise, so that the row is read once; rows that are too long for that are read, and rotated, a second time.
 * Columns (dim 0): a CTA per 32 columns, a lane each; a span of rows at a time is rotated in shared memory, once for
 * the scale and once for the words. The clip of least squared error has sums whose order is fixed, 32 chains for every
 * ratio, and so a pass of its own.
 */
#include "elementwise/elementwise.cuh"
#include "elementwise/rotation.cuh"

namespace {

constexpr int RATIOS = 33;        /* 64/64 down to 32/64 */
constexpr int MAX_THREADS = 1024; /* of a CTA that has a row */

__device__ __forceinline__ float ratio_of(int i) {
  return (float)(64 - i) / 64;
}

/* ---- values ---- */

/* The scale of an absmax, given as its bits; infinite where that is infinite or NaN. */
__device__ __forceinline__ float scale_of(uint32_t absmax, float clip, int qmax) {
  return __fdiv_rn(__fmul_rn(__uint_as_float(min(absmax, INFINITE)), clip), (float)qmax);
}

__device__ __forceinline__ int qmax_of(const int4mm_pack_job &job) {
  return job.packed.dtype == INT4MM_INT8 ? 127 : 7;
}

/* x / scale rounded to an integer of at most qmax; 0 where scale is 0 or infinite. */
__device__ __forceinline__ int32_t quantize_one(float x, float scale, int qmax) {
  float y = __fdiv_rn(x, scale);
  return scale == 0.0f || y != y ? 0 : __float2int_rn(fminf(fmaxf(y, (float)-qmax), (float)qmax));
}

/* The same for a chunk. Two corrections of a product with the correctly rounded reciprocal give the correctly rounded
 * quotient (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990); a quotient
 * so small that they lose bits is rounded to 0 all the same. `ordinary` is alike in a CTA. */
template <int QMAX>
__device__ __forceinline__ void quantize_chunk(uint32_t (&q)[CHUNK], const float (&x)[CHUNK], float scale,
                                               float reciprocal, bool ordinary) {
  const float to_integer = 12582912.0f; /* 1.5 * 2^23: a sum with it is rounded to an integer, in the low bits */
  if (ordinary) {
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      float y = __fmul_rn(x[i], reciprocal);
      y = __fmaf_rn(__fmaf_rn(-y, scale, x[i]), reciprocal, y);
      y = __fmaf_rn(__fmaf_rn(-y, scale, x[i]), reciprocal, y);
      q[i] = __float_as_uint(__fadd_rn(fminf(fmaxf(y, (float)-QMAX), (float)QMAX), to_integer));
    }
  } else {
#pragma unroll
    for (int i = 0; i < CHUNK; i++) q[i] = (uint32_t)quantize_one(x[i], scale, QMAX);
  }
}

/* Whether reciprocals and products with this scale stay among the normal numbers. */
__device__ __forceinline__ bool is_ordinary(float scale) {
  return scale >= 0x1p-100f && scale <= 0x1p100f;
}

/* The low nibbles of eight bytes as a word. */
__device__ __forceinline__ uint32_t pack_bytes(uint32_t low, uint32_t high) {
  low &= 0x0f0f0f0fu, high &= 0x0f0f0f0fu;
  low = (low | low >> 4) & 0x00ff00ffu, high = (high | high >> 4) & 0x00ff00ffu;
  return ((low | low >> 8) & 0xffffu) | (high | high >> 8) << 16;
}

/* ---- rows ---- */

struct RowArguments {
  int4mm_pack_job job;
  unsigned long long *bad; /* or NULL */
  bool scales_given;       /* by the pass that finds clips */
  bool vector_load, vector_store;
};

/* 16 values of a row as they lie in memory, zeros beyond its end: loaded before they are needed. */
template <class T> struct RawChunk {
  static constexpr int VECTORS = CHUNK * sizeof(T) / 16;
  uint4 words[VECTORS];

  __device__ __forceinline__ void load(const T *row, int64_t col, int64_t cols, bool vector) {
    if (vector && col + CHUNK <= cols) {
#pragma unroll
      for (int v = 0; v < VECTORS; v++) words[v] = __ldg((const uint4 *)(row + col) + v);
    } else {
#pragma unroll
      for (int v = 0; v < VECTORS; v++) {
        T part[16 / sizeof(T)];
#pragma unroll
        for (int i = 0; i < (int)(16 / sizeof(T)); i++) {
          int64_t at = col + v * (16 / sizeof(T)) + i;
          part[i] = at < cols ? row[at] : T(0.0f);
        }
        memcpy(&words[v], part, 16);
      }
    }
  }

  __device__ __forceinline__ void to_floats(float (&x)[CHUNK]) const {
    const T *values = (const T *)words;
#pragma unroll
    for (int i = 0; i < CHUNK; i++) x[i] = to_float(values[i]);
  }
};

__device__ __forceinline__ uint32_t largest(const float (&x)[CHUNK]) {
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < CHUNK; i++) most = max(most, magnitude(x[i]));
  return most;
}

__device__ __forceinline__ uint32_t warp_max(uint32_t value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, value);
#else
  for (int lane = 16; lane > 0; lane /= 2) value = max(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
#endif
}

/* The largest of all threads' values. `warps` is not to be used by the next call. */
__device__ __forceinline__ uint32_t cta_max(uint32_t value, uint32_t (&warps)[32]) {
  value = warp_max(value);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_max(threadIdx.x % 32 < blockDim.x / 32 ? warps[threadIdx.x % 32] : 0);
}

/* A chunk of a row as floats, checked where `bad` is given, and rotated. */
template <class T>
__device__ __forceinline__ void make_chunk(float (&x)[CHUNK], const RawChunk<T> &raw, const RowArguments &a,
                                           int64_t row, int64_t col, float *spans, unsigned long long *bad) {
  raw.to_floats(x);
  if (!bad && !a.job.rotate) return;
  uint32_t most = largest(x);
  if (bad && most >= INFINITE) {
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
      if (magnitude(x[i]) >= INFINITE) report(a.job, row, col + i, bad);
  }
  if (a.job.rotate) rotate(x, spans, a.job.rotate, __any_sync(0xffffffffu, most >= 0x71800000u)); /* 2^100 */
}

/* A chunk's bytes in the order of the row: threads that hold every 16th value of a span exchange them. */
__device__ __forceinline__ uint4 bytes_in_order(const uint32_t (&q)[CHUNK], float *spans, bool strided) {
  uint32_t w[4];
  if (strided) {
    int thread = threadIdx.x % SPAN_THREADS;
    uint8_t *bytes = (uint8_t *)(spans + threadIdx.x / SPAN_THREADS * SPAN_FLOATS);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < CHUNK; j++) bytes[CHUNK * j + thread] = (uint8_t)q[j];
    __syncwarp();
    return *(const uint4 *)(bytes + CHUNK * thread);
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    w[i] = (q[4 * i] & 255) | (q[4 * i + 1] & 255) << 8 | (q[4 * i + 2] & 255) << 16 | q[4 * i + 3] << 24;
  return make_uint4(w[0], w[1], w[2], w[3]);
}

/* Stores 16 values of a row from `col` on: two words, or 16 bytes. */
template <bool INT8>
__device__ __forceinline__ void store_chunk(const RowArguments &a, int64_t row, int64_t col, const uint4 &bytes) {
  const int4mm_matrix &packed = a.job.packed;
  if constexpr (INT8) {
    int8_t *to = static_cast<int8_t *>(packed.data) + row * packed.stride + col;
    if (a.vector_store && col + CHUNK <= packed.cols) {
      *(uint4 *)to = bytes;
    } else {
      for (int i = 0; i < CHUNK; i++)
        if (col + i < packed.cols) to[i] = (int8_t)((&bytes.x)[i / 4] >> i % 4 * 8);
    }
  } else {
    uint32_t *to = static_cast<uint32_t *>(packed.data) + row * packed.stride + col / 8;
    uint32_t first = pack_bytes(bytes.x, bytes.y) ^ a.job.xor_mask,
             second = pack_bytes(bytes.z, bytes.w) ^ a.job.xor_mask;
    if (a.vector_store && col / 8 + 2 <= packed.cols) {
      *(uint2 *)to = make_uint2(first, second);
    } else {
      if (col / 8 < packed.cols) to[0] = first;
      if (col / 8 + 1 < packed.cols) to[1] = second;
    }
  }
}

/* A CTA per row; a pass over it is a chunk for each thread. Rows of several passes are read twice: for the scale, then
 * for the words. */
template <int DTYPE, bool INT8>
__global__ void __launch_bounds__(MAX_THREADS) quantize_rows(const __grid_constant__ RowArguments a) {
  typedef typename Element<DTYPE>::type T;
  extern __shared__ __align__(16) float spans[];
  __shared__ uint32_t warps[2][32];
  constexpr int QMAX = INT8 ? 127 : 7;
  const int4mm_pack_job &job = a.job;
  const int64_t cols = job.plain.cols, pass = (int64_t)blockDim.x * CHUNK;
  const int readings = a.scales_given || pass >= cols ? 1 : 2;
  int parity = 0;
  for (int64_t row = blockIdx.x; row < job.plain.rows; row += gridDim.x, parity ^= 1) {
    const T *plain = static_cast<const T *>(job.plain.data) + row * job.plain.stride;
    float scale = a.scales_given ? job.scales[row] : 0;
    uint32_t absmax = 0;
    for (int reading = 0; reading < readings; reading++) {
      for (int64_t first = 0; first < cols; first += pass) {
        int64_t col = first + threadIdx.x * CHUNK;
        RawChunk<T> raw;
        float x[CHUNK];
        raw.load(plain, col, cols, a.vector_load);
        make_chunk(x, raw, a, row, col, spans, reading ? nullptr : a.bad);
        if (!a.scales_given && reading == 0) {
          absmax = max(absmax, largest(x));
          if (first + pass >= cols) scale = scale_of(cta_max(absmax, warps[parity]), job.clip, QMAX);
        }
        if (reading + 1 < readings) continue;
        uint32_t q[CHUNK];
        quantize_chunk<QMAX>(q, x, scale, __frcp_rn(scale), is_ordinary(scale));
        uint4 bytes = bytes_in_order(q, spans, job.rotate > CHUNK);
        if (col < cols) store_chunk<INT8>(a, row, col, bytes);
      }
    }
    if (threadIdx.x == 0 && !a.scales_given) job.scales[row] = scale;
  }
}

/* The scales of rows by the clip of least squared error. A warp for a ratio, a lane for k modulo 32; one that is left
 * over goes to the first warp. */
template <int DTYPE> __global__ void __launch_bounds__(1024) clip_rows(const __grid_constant__ RowArguments a) {
  typedef typename Element<DTYPE>::type T;
  extern __shared__ __align__(16) float spans[];
  __shared__ uint32_t warps[32];
  __shared__ double errors[RATIOS];
  const int4mm_pack_job &job = a.job;
  const int qmax = qmax_of(job);
  float *values = spans + 1024 / SPAN_THREADS * SPAN_FLOATS; /* a pass of the row, rotated */
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t pass = 1024 * CHUNK;
  auto load_pass = [&](int64_t row, int64_t first, unsigned long long *bad) {
    RawChunk<T> raw;
    float x[CHUNK];
    int thread = threadIdx.x % SPAN_THREADS, base = threadIdx.x * CHUNK;
    raw.load(static_cast<const T *>(job.plain.data) + row * job.plain.stride, first + base, job.plain.cols,
             a.vector_load);
    make_chunk(x, raw, a, row, first + base, spans, bad);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
      values[job.rotate > CHUNK ? base - thread * CHUNK + i * CHUNK + thread : base + i] = x[i];
    __syncthreads();
    return largest(x);
  };
  for (int64_t row = blockIdx.x; row < job.plain.rows; row += gridDim.x) {
    uint32_t most = 0;
    for (int64_t first = 0; first < job.plain.cols; first += pass) most = max(most, load_pass(row, first, a.bad));
    uint32_t absmax = cta_max(most, warps);
    double sums[2] = {0, 0};
    for (int64_t first = 0; first < job.plain.cols; first += pass) {
      if (job.plain.cols > pass) (void)load_pass(row, first, nullptr);
      int64_t end = min(pass, job.plain.cols - first);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (warp + 32 * i >= RATIOS) continue;
        float scale = scale_of(absmax, ratio_of(warp + 32 * i), qmax);
        for (int64_t k = lane; k < end; k += 32) {
          double e = __dsub_rn(values[k], __dmul_rn(quantize_one(values[k], scale, qmax), scale));
          sums[i] = __dadd_rn(sums[i], __dmul_rn(e, e));
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      double sum = 0;
      for (int l = 0; l < 32; l++) sum = __dadd_rn(sum, __shfl_sync(0xffffffffu, sums[i], l));
      if (lane == 0 && warp + 32 * i < RATIOS) errors[warp + 32 * i] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int best = 0;
      for (int i = 1; i < RATIOS; i++)
        if (errors[i] < errors[best]) best = i;
      job.scales[row] = scale_of(absmax, ratio_of(best), qmax);
    }
    __syncthreads();
  }
}

/* Stores a value as element `index` of a matrix of a float dtype. */
__device__ __forceinline__ void store_float(const int4mm_matrix &dst, int64_t index, float x) {
  int4mm_for_out_dtype(dst.dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    static_cast<typename int4mm_out_word<DTYPE>::type *>(dst.data)[index] = int4mm_round<DTYPE>(x);
  });
}

/* Rotated rows as floats. */
template <int SRC>
__global__ void __launch_bounds__(MAX_THREADS) rotate_rows(const int4mm_rotate_job job, bool vector) {
  typedef typename Element<SRC>::type T;
  extern __shared__ __align__(16) float spans[];
  int64_t pass = (int64_t)blockDim.x * CHUNK;
  for (int64_t row = blockIdx.x; row < job.src.rows; row += gridDim.x)
    for (int64_t first = 0; first < job.src.cols; first += pass) {
      int64_t col = first + (int64_t)threadIdx.x * CHUNK;
      int step = job.block > CHUNK ? CHUNK : 1, thread = threadIdx.x % SPAN_THREADS;
      RawChunk<T> raw;
      float x[CHUNK];
      raw.load(static_cast<const T *>(job.src.data) + row * job.src.stride, col, job.src.cols, vector);
      raw.to_floats(x);
      rotate(x, spans, job.block, __any_sync(0xffffffffu, largest(x) >= 0x71800000u));
      __syncthreads(); /* in place, no value is overwritten that is still to be read */
      if (step > 1) col += thread - thread * CHUNK;
#pragma unroll
      for (int i = 0; i < CHUNK; i++)
        if (col + i * step < job.src.cols) store_float(job.dst, row * job.dst.stride + col + i * step, x[i]);
    }
}

/* ---- columns ---- */

constexpr int LANES = 32, COLUMN_WARPS = 32;

/* A span of `height` rows of 32 columns in shared memory, rotated along its rows. All threads call it; a lane has a
 * column. report_bad(row, column) is called for values that are not finite. Rows and columns outside are zeros. */
template <class T, class Report>
__device__ __forceinline__ void load_span(float *span, const int4mm_matrix &src, int64_t first_row, int64_t first_col,
                                          int height, int block, Report report_bad) {
  constexpr int BATCH = SPAN / COLUMN_WARPS; /* loads in flight */
  int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  int64_t col = first_col + lane;
  const T *from = static_cast<const T *>(src.data) + col;
  __syncthreads(); /* the span before has been used */
  for (int r0 = warp; r0 < height; r0 += SPAN) {
    T values[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      int64_t row = first_row + r0 + i * COLUMN_WARPS;
      values[i] = row < src.rows && col < src.cols ? from[row * src.stride] : T(0.0f);
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      float x = to_float(values[i]);
      if (magnitude(x) >= INFINITE) report_bad(first_row + r0 + i * COLUMN_WARPS, col);
      span[(r0 + i * COLUMN_WARPS) * LANES + lane] = x;
    }
  }
  __syncthreads();
  if (!block) return;
  int stride = 1;
  for (; 4 * stride <= block; stride *= 4) {
    for (int i = warp; i < height / 4; i += COLUMN_WARPS) {
      float *x = span + (i / stride * 4 * stride + i % stride) * LANES + lane;
      four_points<false>(x[0], x[stride * LANES], x[2 * stride * LANES], x[3 * stride * LANES]);
    }
    __syncthreads();
  }
  if (stride < block) {
    for (int i = warp; i < height / 2; i += COLUMN_WARPS) {
      float *x = span + (i / stride * 2 * stride + i % stride) * LANES + lane;
      two_points(x[0], x[stride * LANES]);
    }
    __syncthreads();
  }
  float scale = rotation_scale(block);
  for (int r = warp; r < height; r += COLUMN_WARPS) span[r * LANES + lane] = __fmul_rn(span[r * LANES + lane], scale);
  __syncthreads();
}

__device__ __forceinline__ int span_height(int block) {
  return block > SPAN ? block : SPAN;
}

/* The squared error of this lane's column with a scale: 32 partial sums over the rows modulo 32, then these in order.
 * `next(first_row)` makes a span. */
template <class Next>
__device__ double column_error(const float *span, double *partial, int64_t rows, int height, float scale, int qmax,
                               Next next) {
  constexpr int OWN = 32 / COLUMN_WARPS; /* of the partial sums */
  int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  double sums[OWN] = {};
  for (int64_t first = 0; first < rows; first += height) {
    next(first);
    int end = (int)min((int64_t)height, rows - first);
#pragma unroll
    for (int i = 0; i < OWN; i++)
      for (int r = warp + i * COLUMN_WARPS; r < end; r += 32) {
        float x = span[r * LANES + lane];
        double e = __dsub_rn(x, __dmul_rn(quantize_one(x, scale, qmax), scale));
        sums[i] = __dadd_rn(sums[i], __dmul_rn(e, e));
      }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < OWN; i++) partial[(warp + i * COLUMN_WARPS) * LANES + lane] = sums[i];
  __syncthreads();
  double sum = 0;
  for (int r = 0; r < 32; r++) sum = __dadd_rn(sum, partial[r * LANES + lane]);
  return sum;
}

/* Stores what a span's rows are quantised to. */
__device__ __forceinline__ void store_span(const int4mm_pack_job &job, const float *span, int64_t first_row,
                                           int64_t col, int height, float scale, int qmax) {
  int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  if (col >= job.plain.cols) return;
  if (job.packed.dtype == INT4MM_INT8) {
    for (int r = warp; r < height && first_row + r < job.packed.rows; r += COLUMN_WARPS)
      static_cast<int8_t *>(job.packed.data)[(first_row + r) * job.packed.stride + col] =
          (int8_t)quantize_one(span[r * LANES + lane], scale, qmax);
  } else {
    for (int w = warp; w < height / 8 && first_row / 8 + w < job.packed.rows; w += COLUMN_WARPS) {
      uint32_t word = 0;
#pragma unroll
      for (int i = 0; i < 8; i++)
        word |= ((uint32_t)quantize_one(span[(8 * w + i) * LANES + lane], scale, qmax) & 15u) << (4 * i);
      static_cast<uint32_t *>(job.packed.data)[(first_row / 8 + w) * job.packed.stride + col] = word ^ job.xor_mask;
    }
  }
}

template <int DTYPE>
__global__ void __launch_bounds__(LANES *COLUMN_WARPS)
    quantize_columns(const int4mm_pack_job job, unsigned long long *bad) {
  typedef typename Element<DTYPE>::type T;
  extern __shared__ __align__(16) float span[];
  __shared__ uint32_t absmax[COLUMN_WARPS][LANES];
  __shared__ double partial[32 * LANES];
  const int qmax = qmax_of(job);
  int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, height = span_height(job.rotate);
  int64_t rows = job.plain.rows;
  for (int64_t first_col = (int64_t)blockIdx.x * LANES; first_col < job.plain.cols;
       first_col += (int64_t)gridDim.x * LANES) {
    int64_t col = first_col + lane;
    auto next = [&](int64_t first) {
      load_span<T>(span, job.plain, first, first_col, height, job.rotate, [](int64_t, int64_t) {});
    };
    uint32_t most = 0;
    for (int64_t first = 0; first < rows; first += height) {
      load_span<T>(span, job.plain, first, first_col, height, job.rotate, [&](int64_t r, int64_t c) {
        if (bad) report(job, r, c, bad);
      });
      for (int r = warp; r < height; r += COLUMN_WARPS) most = max(most, magnitude(span[r * LANES + lane]));
    }
    absmax[warp][lane] = most;
    __syncthreads();
    for (int w = 0; w < COLUMN_WARPS; w++) most = max(most, absmax[w][lane]);
    float scale = scale_of(most, job.clip_mse ? 1.0f : job.clip, qmax);
    if (job.clip_mse) {
      double least = column_error(span, partial, rows, height, scale, qmax, next);
      for (int i = 1; i < RATIOS; i++) {
        float other = scale_of(most, ratio_of(i), qmax);
        double error = column_error(span, partial, rows, height, other, qmax, next);
        if (error < least) least = error, scale = other;
      }
    }
    if (warp == 0 && col < job.plain.cols) job.scales[col] = scale;
    for (int64_t first = 0; first < rows; first += height) {
      next(first);
      store_span(job, span, first, col, height, scale, qmax);
    }
    __syncthreads();
  }
}

template <int SRC> __global__ void __launch_bounds__(LANES *COLUMN_WARPS) rotate_columns(const int4mm_rotate_job job) {
  typedef typename Element<SRC>::type T;
  extern __shared__ __align__(16) float span[];
  int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES, height = span_height(job.block);
  for (int64_t first_col = (int64_t)blockIdx.x * LANES; first_col < job.src.cols;
       first_col += (int64_t)gridDim.x * LANES)
    for (int64_t first = 0; first < job.src.rows; first += height) {
      load_span<T>(span, job.src, first, first_col, height, job.block, [](int64_t, int64_t) {});
      for (int r = warp; r < height && first + r < job.src.rows && first_col + lane < job.src.cols; r += COLUMN_WARPS)
        store_float(job.dst, (first + r) * job.dst.stride + first_col + lane, span[r * LANES + lane]);
    }
}

/* ---- dequantize ---- */

/* int8: a thread per value. */
template <int DTYPE> __global__ void dequantize_bytes_kernel(const int4mm_pack_job job) {
  typedef typename int4mm_out_word<DTYPE>::type T;
  int64_t cols = job.plain.cols, count = job.plain.rows * cols;
  for (int64_t i = first_item(); i < count; i += item_step()) {
    int64_t row = i / cols, col = i - row * cols;
    float q = static_cast<const int8_t *>(job.packed.data)[row * job.packed.stride + col];
    static_cast<T *>(job.plain.data)[row * job.plain.stride + col] =
        int4mm_round<DTYPE>(int4mm_mul(q, job.scales[job.dim ? row : col]));
  }
}

/* int4: a thread per word. */
template <int DTYPE> __global__ void dequantize_words_kernel(const int4mm_pack_job job) {
  typedef typename int4mm_out_word<DTYPE>::type T;
  int64_t words = job.packed.rows * job.packed.cols;
  for (int64_t word = first_item(); word < words; word += item_step()) {
    Eight at = locate(job, word);
    T *plain = static_cast<T *>(job.plain.data) + at.offset;
    float scale = job.scales[job.dim ? at.row : at.col];
    uint32_t packed = *packed_word(job, word) ^ job.xor_mask;
    for (int i = 0; i < at.count; i++)
      plain[i * at.step] = int4mm_round<DTYPE>(int4mm_mul((float)int4mm_nibble(packed, i), scale));
  }
}

} // namespace

/* ---- launchers ---- */

namespace {

bool is_aligned(const int4mm_matrix &m, size_t element, size_t bytes) {
  return ((uintptr_t)m.data | (uintptr_t)m.stride * element) % bytes == 0;
}

/* Threads that hold a row of `cols`, a chunk each, in whole warps and, for a rotation, in whole blocks of 1024. */
int threads_for(int64_t cols, bool rotated) {
  int64_t chunks = (cols + CHUNK - 1) / CHUNK, unit = rotated ? 64 : 32, threads = (chunks + unit - 1) / unit * unit;
  return (int)(threads < unit ? unit : threads > MAX_THREADS ? MAX_THREADS : threads);
}

size_t spans_bytes(int threads) {
  return (size_t)threads / SPAN_THREADS * SPAN_FLOATS * sizeof(float);
}

template <auto KERNEL, class... A>
cudaError_t launch_shared(unsigned blocks, int threads, size_t shared, cudaStream_t stream, const A &...arguments) {
  if (shared > 48 << 10) {
    cudaError_t error =
        cudaFuncSetAttribute((const void *)KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error != cudaSuccess) return error;
  }
  KERNEL<<<blocks, threads, shared, stream>>>(arguments...);
  return cudaGetLastError();
}

template <int DTYPE, bool INT8> cudaError_t launch_rows(RowArguments a, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  unsigned blocks = int4mm_blocks(a.job.plain.rows, 1);
  if (a.job.clip_mse) {
    size_t shared = spans_bytes(1024) + 1024 * CHUNK * sizeof(float);
    error = launch_shared<clip_rows<DTYPE>>(blocks, 1024, shared, stream, a);
    if (error != cudaSuccess) return error;
    a.scales_given = true, a.bad = nullptr;
  }
  int threads = threads_for(a.job.plain.cols, a.job.rotate > 0);
  size_t shared = a.job.rotate ? spans_bytes(threads) : 0;
  return launch_shared<quantize_rows<DTYPE, INT8>>(blocks, threads, shared, stream, a);
}

template <int DTYPE, bool INT8>
cudaError_t launch_quantize(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream) {
  if (job->dim) {
    size_t element = DTYPE == INT4MM_FLOAT32 ? 4 : 2;
    RowArguments a = {*job, bad, false, is_aligned(job->plain, element, 16),
                      INT8 ? is_aligned(job->packed, 1, 16) : is_aligned(job->packed, 4, 8)};
    return job->plain.rows ? launch_rows<DTYPE, INT8>(a, stream) : cudaSuccess;
  }
  unsigned blocks = int4mm_blocks(job->plain.cols, LANES);
  size_t shared = (size_t)(job->rotate > SPAN ? job->rotate : SPAN) * LANES * sizeof(float);
  return blocks ? launch_shared<quantize_columns<DTYPE>>(blocks, LANES * COLUMN_WARPS, shared, stream, *job, bad)
                : cudaSuccess;
}

template <int SRC> cudaError_t launch_rotate(const int4mm_rotate_job *job, cudaStream_t stream) {
  if (!job->src.rows || !job->src.cols) return cudaSuccess;
  if (job->dim) {
    int threads = threads_for(job->src.cols, true);
    bool vector = is_aligned(job->src, SRC == INT4MM_FLOAT32 ? 4 : 2, 16);
    return launch_shared<rotate_rows<SRC>>(int4mm_blocks(job->src.rows, 1), threads, spans_bytes(threads), stream, *job,
                                           vector);
  }
  size_t shared = (size_t)(job->block > SPAN ? job->block : SPAN) * LANES * sizeof(float);
  return launch_shared<rotate_columns<SRC>>(int4mm_blocks(job->src.cols, LANES), LANES * COLUMN_WARPS, shared, stream,
                                            *job);
}

} // namespace

cudaError_t int4mm_launch_quantize(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  int4mm_for_out_dtype(job->plain.dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    error = job->packed.dtype == INT4MM_INT8 ? launch_quantize<DTYPE, true>(job, bad, stream)
                                             : launch_quantize<DTYPE, false>(job, bad, stream);
  });
  return error;
}

cudaError_t int4mm_launch_rotate(const int4mm_rotate_job *job, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  int4mm_for_out_dtype(job->src.dtype, [&](auto src) { error = launch_rotate<decltype(src)::value>(job, stream); });
  return error;
}

cudaError_t int4mm_launch_dequantize(const int4mm_pack_job *job, cudaStream_t stream) {
  unsigned blocks = int4mm_blocks(job->packed.rows * job->packed.cols, kThreads);
  if (!blocks) return cudaSuccess;
  int4mm_for_out_dtype(job->plain.dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    if (job->packed.dtype == INT4MM_INT8)
      dequantize_bytes_kernel<DTYPE><<<blocks, kThreads, 0, stream>>>(*job);
    else
      dequantize_words_kernel<DTYPE><<<blocks, kThreads, 0, stream>>>(*job);
  });
  return cudaGetLastError();
}
