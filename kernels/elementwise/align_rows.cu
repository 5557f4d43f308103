/*
 * An operand made ready for a product: its rows copied to rows of whole 16 bytes, filled up with zeros, for the kernels
 * whose copies take nothing else, or its words widened to int8. The product's CTAs start beside it. 4096 rows of 513
 * words cost 9 us in a graph, where cudaMemcpy2DAsync costs 33.
 */
#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "elementwise/elementwise.cuh"

namespace {

constexpr int THREADS = 128, UNITS = 8; /* a thread's, THREADS apart, so that many loads are in flight */
constexpr int FEW_ROWS = 512;

/* T: what is read at a time. TO: the same, or uint2, the eight values of a word, which may be even_odd. Strides and
 * cols count them. FEW: for few rows, beside whose CTAs those of the product find room (launch.cuh). */
template <class T, class TO, bool FEW>
__global__ void __launch_bounds__(THREADS) align_rows(TO *dst, int64_t dst_stride, const T *src, int64_t src_stride,
                                                      int64_t cols, uint32_t xor_mask, bool even_odd, bool early_b) {
  if (early_b) ptx::griddepcontrol_wait(); /* before the product starts, which reads B at once */
  ptx::griddepcontrol_launch_dependents();
  if (!early_b) ptx::griddepcontrol_wait();
  constexpr int VECTOR = 16 / (int)sizeof(TO);
  int64_t first = (int64_t)blockIdx.y * (THREADS * UNITS) + threadIdx.x;
  const T *from = src + blockIdx.x * src_stride + first;
  TO *to = dst + blockIdx.x * dst_stride + first;
  int left = (int)min(cols - first, (int64_t)THREADS * UNITS), past = (int)(-cols & (VECTOR - 1));
  T units[UNITS] = {};
#pragma unroll
  for (int i = 0; i < UNITS; i++)
    if (i * THREADS < left) units[i] = from[i * THREADS];
#pragma unroll
  for (int i = 0; i < UNITS; i++) {
    const T unit = i * THREADS < left ? (T)(units[i] ^ xor_mask) : 0;
    if (i * THREADS >= left + past) continue;
    if constexpr (sizeof(TO) != 8)
      to[i * THREADS] = unit;
    else if (even_odd)
      store_even_odd((uint8_t *)(dst + blockIdx.x * dst_stride), 8 * (first + i * THREADS), unit);
    else
      to[i * THREADS] = widen(unit);
  }
}

/* T, TO: as above; `bytes` are those of a row. */
template <class T, class TO>
cudaError_t launch(int device, const int4mm_matrix *dst, const int4mm_matrix *src, int64_t src_pitch, int64_t dst_pitch,
                   int64_t bytes, uint32_t xor_mask, bool even_odd, bool early_b, cudaStream_t stream) {
  const int64_t cols = bytes / (int64_t)sizeof(T);
  dim3 grid((unsigned)src->rows, (unsigned)((cols + THREADS * UNITS - 1) / (THREADS * UNITS)));
  auto with = [&](auto few) {
    constexpr bool FEW = decltype(few)::value;
    return int4mm_launch<align_rows<T, TO, FEW>, FEW>(
        device, grid, THREADS, 0, 1, stream, (TO *)dst->data, dst_pitch / (int64_t)sizeof(TO), (const T *)src->data,
        src_pitch / (int64_t)sizeof(T), cols, xor_mask, even_odd, early_b);
  };
  return src->rows <= FEW_ROWS ? with(std::true_type()) : with(std::false_type());
}

} // namespace

cudaError_t int4mm_launch_align_rows(int device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                                     bool even_odd, bool early_b, cudaStream_t stream) {
  const int64_t size = element_bytes(src->dtype), from = src->stride * size, bytes = src->cols * size;
  const int64_t to = dst->stride * element_bytes(dst->dtype);
  if (!bytes) return cudaSuccess;
  if (src->dtype == INT4MM_INT32 && dst->dtype == INT4MM_INT8) /* whose rows start on 8 bytes */
    return launch<uint32_t, uint2>(device, dst, src, from, to, bytes, xor_mask, even_odd, early_b, stream);
  const int64_t all = (int64_t)(uintptr_t)src->data | from | bytes;
  if (all % 4 == 0)
    return launch<uint32_t, uint32_t>(device, dst, src, from, to, bytes, xor_mask, even_odd, early_b, stream);
  if (all % 2 == 0) return launch<uint16_t, uint16_t>(device, dst, src, from, to, bytes, 0, even_odd, early_b, stream);
  return launch<uint8_t, uint8_t>(device, dst, src, from, to, bytes, 0, even_odd, early_b, stream);
}
