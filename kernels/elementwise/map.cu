/*
 * dst = op(src), or src op other, element by element, with the bits of src/cpu: a thread for eight neighbours, at the
 * speed of memory. One kernel serves all operations and dtypes, which are alike in all threads.
 */
#include "core/activation.h"
#include "elementwise/octet.cuh"

namespace {

struct MapArguments {
  Octets dst, src, other;
  int64_t octets, items; /* eights of a row, and of the matrix */
  float number;
  int32_t op;
};

__device__ __forceinline__ void apply(float (&x)[WIDTH], int32_t op) {
  switch (op) {
  case INT4MM_RELU:
    return each(x, [](float v) { return int4mm_relu(v); });
  case INT4MM_SILU:
    return each(x, [](float v) { return int4mm_silu(v); });
  case INT4MM_GELU:
    return each(x, [](float v) { return int4mm_gelu(v); });
  case INT4MM_GELU_TANH:
    return each(x, [](float v) { return int4mm_gelu_tanh(v); });
  case INT4MM_EXP:
    return each(x, [](float v) { return int4mm_exp(v); });
  case INT4MM_TANH:
    return each(x, [](float v) { return int4mm_tanh(v); });
  default:
    return each(x, [](float v) { return int4mm_erf(v); });
  }
}

__device__ __forceinline__ void combine(float (&x)[WIDTH], const float (&y)[WIDTH], int32_t op) {
#pragma unroll
  for (int i = 0; i < WIDTH; i++) x[i] = op == INT4MM_ADD ? int4mm_add(x[i], y[i]) : int4mm_mul(x[i], y[i]);
}

__global__ void __launch_bounds__(LOOP_THREADS) map_kernel(const MapArguments a) {
  for (int64_t item = first_item(); item < a.items; item += item_step()) {
    int64_t row = divide(item, a.octets, a.items), col = (item - row * a.octets) * WIDTH;
    float x[WIDTH], y[WIDTH];
    RawOctet src, other;
    src.load(a.src, row, col);
    if (a.other.m.data) other.load(a.other, row, col);
    src.to_floats(x, a.src.m.dtype);
    if (a.op != INT4MM_ADD && a.op != INT4MM_MUL) {
      apply(x, a.op);
    } else {
      each(y, [&](float) { return a.number; });
      if (a.other.m.data) other.to_floats(y, a.other.m.dtype);
      combine(x, y, a.op);
    }
    store_octet(a.dst, row, col, x);
  }
}

bool is_contiguous(const int4mm_matrix &m) {
  return m.stride == m.cols; /* of one row it is so */
}

/* Rows that lie one after the other without gaps are one long row. */
int4mm_map_job flatten(int4mm_map_job job) {
  if (!is_contiguous(job.dst) || !is_contiguous(job.src) || (job.other.data && !is_contiguous(job.other))) return job;
  int64_t elements = job.dst.rows * job.dst.cols;
  for (int4mm_matrix *m : {&job.dst, &job.src, &job.other}) m->rows = 1, m->cols = m->stride = elements;
  return job;
}

} // namespace

cudaError_t int4mm_launch_map(const int4mm_map_job *job, cudaStream_t stream) {
  int4mm_map_job flat = flatten(*job);
  int64_t octets = (flat.dst.cols + WIDTH - 1) / WIDTH;
  MapArguments a = {octets_of(flat.dst),
                    octets_of(flat.src),
                    octets_of(flat.other),
                    octets,
                    octets * flat.dst.rows,
                    flat.number,
                    flat.op};
  map_kernel<<<int4mm_blocks(a.items, LOOP_THREADS), LOOP_THREADS, 0, stream>>>(a);
  return cudaGetLastError();
}
