/*
 * What the kernels for columns share (quantize_tiles.cu, quantize_pairs.cu): copies of rows to shared memory, and the
 * division of columns among the CTAs of clusters.
 */
#ifndef INT4MM_QUANTIZE_COLUMNS_CUH
#define INT4MM_QUANTIZE_COLUMNS_CUH

#include "elementwise/quantize_pass.cuh"

namespace {

struct ColumnArguments : int4mm_quantize_pass {
  int64_t first_item; /* of the first CTA along y */
  int share;          /* tiles of a CTA, one below the other */
  int copied;         /* bytes that rows are copied by: 16, 4 or one element */
};

/* ---- copies to shared memory ---- */

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

/* ---- launchers ---- */

inline ColumnArguments arguments_of(const int4mm_quantize_pass &pass) {
  const int4mm_matrix &plain = pass.job.plain;
  const int element = element_bytes(plain.dtype);
  return {pass, 0, 1, is_whole_vectors(plain) ? 16 : is_whole_vectors(plain, 4 / element, 4) ? 4 : element};
}

/* The parts that columns are divided into: `down` CTAs, a cluster, for the rows, `across` groups of columns. Sets
 * a->share. cudaErrorNotSupported where clusters would be few and have long to go. */
inline cudaError_t divide_columns(ColumnArguments *a, int tile_rows, int tile_columns, int sms, int64_t *down,
                                  int64_t *across) {
  const int64_t tiles = ceil_div(a->job.plain.rows, tile_rows), share = ceil_div(tiles, MAX_CLUSTER);
  *across = ceil_div(a->job.plain.cols, tile_columns);
  if (!tiles) return cudaErrorNotSupported;
  a->share = (int)share, *down = ceil_div(tiles, share);
  return share > 1 && *down * *across < sms ? cudaErrorNotSupported : cudaSuccess;
}

/* A kernel for columns: `down` CTAs for the rows of each `across`. */
template <auto KERNEL, class A>
cudaError_t launch_columns(A a, int64_t down, int64_t across, int warps, int bytes, bool cluster, cudaStream_t stream) {
  const int64_t most = 65535;
  cudaError_t error = cudaSuccess;
  for (a.first_item = 0; down && a.first_item < across && error == cudaSuccess; a.first_item += most)
    error = launch<KERNEL>(dim3((unsigned)down, (unsigned)min(across - a.first_item, most)), warps, bytes,
                           cluster ? (int)down : 1, stream, a);
  return error;
}

} // namespace
#endif
