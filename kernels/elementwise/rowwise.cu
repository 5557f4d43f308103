/*
 * Softmax, layer norm, RMS norm and argmax of rows, with the bits of src/cpu: a CTA for a row, which it stages in
 * shared memory as float32. The order of sums is fixed, 32 chains of which each is sequential: one warp adds them up, a
 * lane each, while other CTAs load. Rows that are longer than a tile are staged tile by tile in each pass.
 */
#include "core/activation.h"
#include "elementwise/octet.cuh"

namespace {

constexpr int CHAINS = 32;
constexpr int TILE = 8192; /* values that are staged at a time, a multiple of CHAINS and WIDTH */
constexpr int MAX_THREADS = 1024;

struct RowwiseArguments {
  Octets dst, src, weight, bias;
  float eps;
  int32_t op;
};

/* A row and the tile of it that is staged. Its functions are called by all threads of the CTA. */
struct StagedRow {
  const Octets &src;
  int64_t row;
  float *tile;
  int64_t staged; /* the column where the tile starts; -1: nothing is staged */

  __device__ __forceinline__ int size(int64_t first) const {
    return (int)(src.m.cols - first < TILE ? src.m.cols - first : TILE);
  }

  __device__ __forceinline__ void stage(int64_t first) {
    int n = size(first), whole = src.vector ? n / WIDTH * WIDTH : 0, step = WIDTH * blockDim.x;
    for (int i = WIDTH * threadIdx.x; i < whole; i += 2 * step) { /* two loads at a time */
      RawOctet low, high;
      low.load_whole(src, row, first + i);
      if (i + step < whole) high.load_whole(src, row, first + i + step);
      put(i, low);
      if (i + step < whole) put(i + step, high);
    }
    for (int i = whole + threadIdx.x; i < n; i += blockDim.x) {
      float x[1];
      load_values(x, src, row, first + i);
      tile[i] = x[0];
    }
    staged = first;
  }

  __device__ __forceinline__ void put(int i, const RawOctet &raw) {
    float x[WIDTH];
    raw.to_floats(x, src.m.dtype);
#pragma unroll
    for (int j = 0; j < WIDTH; j += 4) *(float4 *)(tile + i + j) = make_float4(x[j], x[j + 1], x[j + 2], x[j + 3]);
  }

  /* f(first, n) for each tile, staged: n values from column `first` on. Before it comes a barrier, after it none. */
  template <class F> __device__ __forceinline__ void each_tile(F f) {
    for (int64_t first = 0; first < src.m.cols; first += TILE) {
      if (staged != first) {
        __syncthreads();
        stage(first);
      }
      __syncthreads();
      f(first, size(first));
    }
  }
};

/* ---- reductions of a CTA ---- */

/* acc + term(tile[lane]) + term(tile[lane + 32]) + ..., in this order: a lane's chain. */
template <class F> __device__ __forceinline__ float add_chain(float acc, const float *tile, int n, F term) {
#pragma unroll 8
  for (int i = threadIdx.x; i < n; i += CHAINS) acc = int4mm_add(acc, term(tile[i]));
  return acc;
}

/* The sum, to all threads, of the chains of the first warp. */
__device__ __forceinline__ float sum_chains(float acc) {
  __shared__ __align__(16) float chains[CHAINS];
  if (threadIdx.x < CHAINS) chains[threadIdx.x] = acc;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll 8
  for (int i = 0; i < CHAINS; i++) sum = int4mm_add(sum, chains[i]);
  __syncthreads();
  return sum;
}

/* The largest value of all threads, to all threads. */
template <class T> __device__ __forceinline__ T cta_max(T most) {
  __shared__ T of_warp[MAX_THREADS / 32];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    T other = __shfl_xor_sync(0xffffffffu, most, lane);
    most = other > most ? other : most;
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = most;
  __syncthreads();
  for (int i = 0; i < blockDim.x / 32; i++) most = of_warp[i] > most ? of_warp[i] : most;
  __syncthreads();
  return most;
}

/* ---- operations on a row ---- */

/* Stores f of the n values of a tile, eight at a time where `vector` says that all operands can, else one: f gets an
 * array of them, which it changes, and the column of the first. */
template <class F>
__device__ __forceinline__ void store_tile(const Octets &dst, const StagedRow &row, int64_t first, int n, bool vector,
                                           F f) {
  int whole = vector ? n / WIDTH * WIDTH : 0;
  for (int i = WIDTH * threadIdx.x; i < whole; i += WIDTH * blockDim.x) {
    float x[WIDTH];
#pragma unroll
    for (int j = 0; j < WIDTH; j += 4) {
      float4 four = *(const float4 *)(row.tile + i + j);
      x[j] = four.x, x[j + 1] = four.y, x[j + 2] = four.z, x[j + 3] = four.w;
    }
    f(x, first + i);
    store_values(dst, row.row, first + i, x);
  }
  for (int i = whole + threadIdx.x; i < n; i += blockDim.x) {
    float x[1] = {row.tile[i]};
    f(x, first + i);
    store_values(dst, row.row, first + i, x);
  }
}

/* x = f(x, the elements of a vector from column col on), where there is one. */
template <int COUNT, class F>
__device__ __forceinline__ void each_with(float (&x)[COUNT], const Octets &vector, int64_t col, F f) {
  if (!vector.m.data) return;
  float y[COUNT];
  load_values(y, vector, 0, col);
#pragma unroll
  for (int i = 0; i < COUNT; i++) x[i] = f(x[i], y[i]);
}

/* A row of one tile keeps its exponentials there; of a longer one they are computed a second time. */
__device__ __forceinline__ void softmax(const RowwiseArguments &a, StagedRow row) {
  const bool kept = a.src.m.cols <= TILE;
  float most = -INFINITY, acc = 0.0f;
  row.each_tile([&](int64_t, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) most = row.tile[i] > most ? row.tile[i] : most;
  });
  most = cta_max(most);
  row.each_tile([&](int64_t, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) row.tile[i] = int4mm_exp(int4mm_add(row.tile[i], -most));
    __syncthreads();
    if (threadIdx.x < CHAINS) acc = add_chain(acc, row.tile, n, [](float e) { return e; });
  });
  float sum = sum_chains(acc);
  row.each_tile([&](int64_t first, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
      float e = kept ? row.tile[i] : int4mm_exp(int4mm_add(row.tile[i], -most));
      row.tile[i] = int4mm_div(e, sum);
    }
    __syncthreads();
    store_tile(a.dst, row, first, n, a.dst.vector, [](auto &, int64_t) {});
  });
}

/* SUM of term over the row, divided by the number of columns. */
template <class F> __device__ __forceinline__ float mean(StagedRow &row, F term) {
  float acc = 0.0f;
  row.each_tile([&](int64_t, int n) {
    if (threadIdx.x < CHAINS) acc = add_chain(acc, row.tile, n, term);
  });
  return int4mm_div(sum_chains(acc), (float)row.src.m.cols);
}

/* An RMS norm is a layer norm whose mean is taken for 0: x - 0 is x. */
__device__ __forceinline__ void norm(const RowwiseArguments &a, StagedRow row) {
  float centre = a.op == INT4MM_LAYER_NORM ? mean(row, [](float x) { return x; }) : 0.0f;
  float square = mean(row, [&](float x) {
    float d = int4mm_add(x, -centre);
    return int4mm_mul(d, d);
  });
  float factor = int4mm_div(1.0f, int4mm_sqrt(int4mm_add(square, a.eps)));
  bool vector = a.dst.vector && a.weight.vector && a.bias.vector;
  row.each_tile([&](int64_t first, int n) {
    store_tile(a.dst, row, first, n, vector, [&](auto &x, int64_t col) {
      each(x, [&](float v) { return int4mm_mul(int4mm_add(v, -centre), factor); });
      each_with(x, a.weight, col, [](float v, float w) { return int4mm_mul(v, w); });
      each_with(x, a.bias, col, [](float v, float b) { return int4mm_add(v, b); });
    });
  });
}

/* The largest key, and of equals the smallest column, which is in the low half, counted down. */
__device__ __forceinline__ unsigned long long argmax_key(float x, int64_t col) {
  uint32_t key = (uint32_t)int4mm_order_key(x) ^ 0x80000000u;
  return (unsigned long long)key << 32 | (UINT32_MAX - (uint32_t)col);
}

__device__ __forceinline__ void argmax(const RowwiseArguments &a, StagedRow staged) {
  const int64_t row = staged.row;
  unsigned long long best = 0; /* below the key of every number */
  int64_t whole = a.src.vector ? a.src.m.cols / WIDTH * WIDTH : 0;
  for (int64_t col = (int64_t)WIDTH * threadIdx.x; col < whole; col += (int64_t)WIDTH * blockDim.x) {
    float x[WIDTH];
    load_values(x, a.src, row, col);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) best = max(best, argmax_key(x[i], col + i));
  }
  for (int64_t col = whole + threadIdx.x; col < a.src.m.cols; col += blockDim.x) {
    float x[1];
    load_values(x, a.src, row, col);
    best = max(best, argmax_key(x[0], col));
  }
  best = cta_max(best);
  if (threadIdx.x == 0) static_cast<int32_t *>(a.dst.m.data)[row] = (int32_t)(UINT32_MAX - (uint32_t)best);
}

/* A kernel for each operation, since together they would need more registers than any of them. */
template <void (*OPERATION)(const RowwiseArguments &, StagedRow)>
__global__ void __launch_bounds__(MAX_THREADS) rowwise_kernel(const RowwiseArguments a) {
  extern __shared__ float4 shared[];
  for (int64_t r = blockIdx.x; r < a.src.m.rows; r += gridDim.x) OPERATION(a, {a.src, r, (float *)shared, -1});
}

/* Whole warps. Few rows do not fill the GPU and get a thread for each octet; of many, more than one row waits for the
 * memory on each SM, and a thread has four octets. */
int threads_of(const int4mm_matrix &src) {
  int64_t each = src.rows > 512 ? 4 * WIDTH : WIDTH, threads = (src.cols + each * 32 - 1) / (each * 32) * 32;
  return (int)(threads < MAX_THREADS ? threads : MAX_THREADS);
}

} // namespace

cudaError_t int4mm_launch_rowwise(const int4mm_rowwise_job *job, cudaStream_t stream) {
  RowwiseArguments a = {
      octets_of(job->dst), octets_of(job->src), octets_of(job->weight), octets_of(job->bias), job->eps, job->op};
  int64_t staged = job->src.cols < TILE ? (job->src.cols + WIDTH - 1) / WIDTH * WIDTH : TILE;
  size_t shared = job->op == INT4MM_ARGMAX ? 0 : (size_t)staged * sizeof(float);
  auto kernel = job->op == INT4MM_SOFTMAX  ? rowwise_kernel<softmax>
                : job->op == INT4MM_ARGMAX ? rowwise_kernel<argmax>
                                           : rowwise_kernel<norm>;
  kernel<<<int4mm_blocks(job->src.rows, 1), threads_of(job->src), shared, stream>>>(a);
  return cudaGetLastError();
}
