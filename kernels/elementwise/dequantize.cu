/*
 * Dequantising on the device, with the bits of src/cpu: q times the scale of its row or column.
 */
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "elementwise/elementwise.cuh"

namespace {

/* Nibble i of a word as a float, exactly: an unsigned value in the low bits of 2^23. */
__device__ __forceinline__ float value_of_nibble(uint32_t word, int i) {
  return __uint_as_float(((word ^ 0x88888888u) >> 4 * i & 15u) | 0x4b000000u) - 8388616.0f;
}

/* GROUP columns of a packed row: bytes of int8, words of int4 along dim 0, nibbles of one word along dim 1. They are 16
 * bytes of the matrix, aligned, or one element. */
template <bool INT8, int GROUP>
__global__ void __launch_bounds__(LOOP_THREADS) dequantize_kernel(const int4mm_pack_job job) {
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

template <bool INT8, int GROUP> cudaError_t launch_dequantize(const int4mm_pack_job &job, cudaStream_t stream) {
  const int64_t items = job.packed.rows * (job.plain.cols / GROUP);
  int device;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess || !items) return error;
  return int4mm_launch<dequantize_kernel<INT8, GROUP>>(device, int4mm_blocks(items, LOOP_THREADS), LOOP_THREADS, 0, 1,
                                                       stream, job);
}

} // namespace

cudaError_t int4mm_launch_dequantize(const int4mm_pack_job *job, cudaStream_t stream) {
  const bool int8 = job->packed.dtype == INT4MM_INT8;
  const int group = 16 / element_bytes(job->plain.dtype);
  bool vector = is_whole_vectors(job->plain);
  if (int8 || !job->dim)
    vector = vector && is_whole_vectors(job->packed, group, group * element_bytes(job->packed.dtype));
  if (!vector) return int8 ? launch_dequantize<true, 1>(*job, stream) : launch_dequantize<false, 1>(*job, stream);
  if (group == 4) return int8 ? launch_dequantize<true, 4>(*job, stream) : launch_dequantize<false, 4>(*job, stream);
  return int8 ? launch_dequantize<true, 8>(*job, stream) : launch_dequantize<false, 8>(*job, stream);
}
