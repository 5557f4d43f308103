/*
 * skinny for operands of every kind: copies of A, B, scales, and zero points or factors to a stage, and where a lane
 * finds them there.
 */
#ifndef INT4MM_SKINNY_COPIES_CUH
#define INT4MM_SKINNY_COPIES_CUH

#include "sm80/skinny_shape.cuh"

namespace {

/* Where chunk c (16 bytes) of a row of a stage's A lies in it: swizzled so that a slice is read without bank conflicts.
 */
template <int WORDS> __device__ __forceinline__ int swizzled(int row, int c) {
  return WORDS == 1 ? c ^ (row / 2 & 3) : WORDS == 2 ? c ^ 2 * (row & 3) : c ^ 4 * (row & 1);
}

/* Where words of slice 0 of lane (g, t) lie in eight rows; those of slice j are at an exclusive or with 16 WORDS j. */
template <int WORDS> __device__ __forceinline__ uint32_t first_slice(int g, int t) {
  int swizzle = WORDS == 1 ? g / 2 & 3 : WORDS == 2 ? g & 3 : g & 1;
  return g * 64 * WORDS + 4 * WORDS * t + 16 * WORDS * swizzle;
}

/* Of [N, K/8], from a stage on: where chunk c of a step of column 4g + i lies. */
template <class S> __device__ __forceinline__ uint32_t nk_offset(int i, int g, int c) {
  if (S::BLOCKS == 2) return line_offset(S::PARAMETERS, i, g, c);
  return i * CHUNK_BYTES + g / 2 * 128 + (c ^ (g % 2 * 4 + g / 2)) * 16;
}

/* Where this lane copies from, at K's beginning: B, A, scales, and zero points or factors. Of B a lane takes four
 * columns of words t, t + 4, ..., or of [N, K/8] a chunk of a step, of column 4g + i for every i, or of two k-blocks
 * for every second g; of A chunk c of each line of every ROWS_STEP-th row; of the others eight lanes take a segment.
 *
 * Of [N, K/8] a stage of two k-blocks lies as line_offset says; of one a line of shared memory has the four chunks of
 * columns 4g + i and 4(g + 1) + i for an even g, swizzled alike. */
template <class S> struct GeneralSource {
  /* Lanes along a row of A, each with a chunk of every line; rows at a time. */
  static constexpr int LANES = S::A_ROW_BYTES < 128 ? S::A_ROW_BYTES / 16 : 8, ROWS_STEP = 32 / LANES;
  const char *b, *rows, *scales, *bytes;
  bool inside;                                     /* of the warp's columns */
  int valid_rows;                                  /* of A from the lane's first on */
  uint32_t b_to, rows_to;                          /* in a stage: where it copies to */
  uint32_t b_at, rows_at;                          /* and where it loads the words of slice 0 from */
  int copies_scales, copies_bytes;                 /* of a segment */
  uint32_t scales_at, zeros_at, stride;            /* GROUPS: of the lane in a stage; from a group to the next */
  int slices, stages, zeros, factors, scale_dtype; /* of the arguments; scale_dtype is -1 without scales */

  __device__ __forceinline__ GeneralSource(const GeneralArguments &p, int first_row, int first_column) {
    int lane = threadIdx.x % 32, row = lane / LANES, c = lane % LANES, g = lane / 4, t = lane % 4;
    if (!S::NK)
      b = (const char *)(p.b + lane / 8 * p.ldb + first_column + lane % 8 * 4);
    else if (S::BLOCKS == 2)
      b = (const char *)(p.b + (first_column + lane / 16 * 4 + lane / 8 % 2) * p.ldb + lane % 8 * 4);
    else
      b = (const char *)(p.b + (first_column + g * 4) * p.ldb + t * 4);
    rows = p.rows + (first_row + row) * p.row_stride + c * 16;
    scales = p.scales + first_column * size_of_scale(p) + lane % 8 * 16;
    bytes = p.bytes + first_column + lane % 8 * 16;
    inside = first_column + COLUMNS <= p.N, valid_rows = p.M - first_row - row;
    if (!S::BRANCHES) valid_rows = kept(valid_rows);
    b_to = chunk_offset(lane / 8, lane % 8), b_at = chunk_offset(t, g);
    if (S::NK) b_to = nk_offset<S>(0, g, t), b_at = nk_offset<S>(0, g, 0) + 4 * t;
    if (S::BLOCKS == 2) b_to = nk_offset<S>(lane / 8 % 2, lane / 16, lane % 8);
    rows_to = B_BYTES + row * S::A_ROW_BYTES + swizzled<S::A::WORDS>(row, c) * 16;
    rows_at = B_BYTES + first_slice<S::A::WORDS>(g, t);
    b = kept(b), rows = kept(rows), b_to = kept(b_to), rows_to = kept(rows_to), b_at = kept(b_at);
    rows_at = kept(rows_at), stages = kept(p.stages);
    zeros = S::BRANCHES ? kept(p.bytes && !p.factors ? 1 : 0) : S::ZEROS;
    if (S::IS_PLAIN) return;
    if (S::IS_GROUPS) {
      uint32_t at = S::BY_COLUMNS ? S::lane_column() * size_of_scale(p) : lane * size_of_scale(p) & ~3u;
      bool copies_zeros = S::ZEROS && lane >= 8;
      scales = kept(copies_zeros ? bytes : scales);
      if (S::ZEROS) stride = kept(copies_zeros ? p.bytes_stride : p.scales_stride);
      scale_dtype = kept(p.scale_dtype), scales_at = kept(S::PARAMETERS + at);
      if (S::ZEROS) zeros_at = kept(S::PARAMETERS + 128 + (S::FLOAT ? 4 * g : S::lane_column()));
      copies_scales = kept(copies_zeros ? lane < 10 : lane * 16 < COLUMNS * size_of_scale(p));
      return;
    }
    scales = kept(scales), bytes = kept(bytes), slices = kept(p.slices), factors = kept((int)p.factors);
    scale_dtype = kept(p.scales ? p.scale_dtype : -1);
    copies_scales = kept(lane / 8 < p.segments && p.scales && lane % 8 * 16 < COLUMNS * size_of_scale(p) ? 1 : 0);
    copies_bytes = kept(lane / 8 < p.segments && p.bytes && lane % 8 < 2 ? 1 : 0);
  }

  /* Always true, which ptxas does not know: what has to wait for it comes after all of the above. */
  __device__ __forceinline__ bool is_ready() const { return stages > 0; }
};

/* A part of the B of a step that is whole, of columns inside the matrix. */
template <class S>
__device__ __forceinline__ void copy_whole_b(const GeneralSource<S> &from, const GeneralArguments &p, uint32_t stage,
                                             uint32_t step, int part) {
  const char *b = from.b + (uint64_t)step * p.b_step_bytes;
  const uint32_t chunk = stage + from.b_to;
  if (S::BLOCKS == 2) {
    b += part * (p.b_copy_bytes / 4);
#pragma unroll
    for (int g = 0; g < 8; g += 2, b += p.b_copy_bytes)
      ptx::cp_async16((chunk ^ nk_offset<S>(0, g, 0) % 128) + nk_offset<S>(2 * part, 0, 0) + g * 128, b, 16);
  } else if (S::NK) {
#pragma unroll
    for (int i = 0; i < 4; i++, b += p.b_copy_bytes) ptx::cp_async16_line(chunk + i * CHUNK_BYTES, b, 16);
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++, b += p.b_copy_bytes) ptx::cp_async16(chunk + j * CHUNK_BYTES, b, 16);
  }
}

/* What else a k-block of it has. Words of A take half a line for a k-block, and L1 serves the other half, and other
 * warps: 16 x 4096 x 14336 takes 12.8 us, past L1 14.3. Of a wider A it would serve little again: 16 x 14336 x 4096 of
 * floats takes 13.2 us, through L1 17.3. */
template <class S>
__device__ __forceinline__ void copy_whole(const GeneralSource<S> &from, const GeneralArguments &p, uint32_t stage,
                                           uint32_t k_block) {
  typedef GeneralSource<S> Source;
  /* a lane's rows have one swizzle */
  static_assert(Source::ROWS_STEP % (S::A::WORDS == 1 ? 8 : S::A::WORDS == 2 ? 4 : 2) == 0, "swizzles differ");
  const int lane = threadIdx.x % 32;
  const char *rows = from.rows + (uint64_t)k_block * S::A_ROW_BYTES;
  const uint32_t to = stage + from.rows_to;
#pragma unroll
  for (int line = 0; line < S::A_ROW_BYTES; line += 128) {
    const char *row = rows + line;
#pragma unroll
    for (int i = 0; i < S::ROWS; i += Source::ROWS_STEP, row += p.row_step_bytes) {
      if (S::A::WORDS > 1)
        ptx::cp_async16_if(to + i * S::A_ROW_BYTES + line, row, i < from.valid_rows);
      else if (i < from.valid_rows)
        ptx::cp_async16_l1(to + i * S::A_ROW_BYTES, row, 16);
    }
  }
  if (S::IS_PLAIN) return;
  if (S::IS_GROUPS) { /* zero points are after 128 bytes of scales */
    uint32_t stride = S::ZEROS ? from.stride : p.scales_stride;
    ptx::cp_async16_if(stage + S::PARAMETERS + lane * 16, from.scales + (uint64_t)group_of(p, k_block) * stride,
                       from.copies_scales);
    return;
  }
  const uint32_t s = lane / 8, in_segment = lane % 8 * 16, parameters = stage + S::PARAMETERS;
  const uint32_t group = group_of(p, k_block * p.segments + s);
  ptx::cp_async16_if(parameters + s * 128 + in_segment, from.scales + (uint64_t)group * p.scales_stride,
                     from.copies_scales);
  ptx::cp_async16_if(parameters + p.segments * 128 + s * 32 + in_segment, from.bytes + (uint64_t)group * p.bytes_stride,
                     from.copies_bytes);
}

/* Waits for a part of the oldest stage. */
template <int ROWS, class A, Mode MODE, bool NK>
template <int PART>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::wait(const Source &source) {
  if (BLOCKS == 2)
    ptx::cp_async_wait_group<2 * INT4MM_SKINNY_NK_STAGES - 1 - PART>();
  else if (source.stages == 2)
    ptx::cp_async_wait_group<1>();
  else if (source.stages == 3)
    ptx::cp_async_wait_group<2>();
  else
    ptx::cp_async_wait_group<3>();
}

/* A row of `size` bytes for each of 32 columns to shared memory, by any alignment. */
__device__ __forceinline__ void copy_columns(uint32_t to, const char *from, int size, int valid) {
  int lane = threadIdx.x % 32;
  if (lane >= valid) return;
  from += lane * size;
  if (size == 4)
    ptx::st_shared(to + 4 * lane, *(const uint32_t *)from);
  else if (size == 2)
    ptx::st_shared_u16(to + 2 * lane, *(const uint16_t *)from);
  else
    ptx::st_shared_u8(to + lane, *(const uint8_t *)from);
}

/* The B of any k-block: what is past the edges is not copied. */
template <class S>
__device__ __forceinline__ void copy_any_b(const GeneralArguments &p, uint32_t stage, int k_block, int first_column) {
  const int lane = threadIdx.x % 32;
  if (S::NK) {
    const int word = k_block * BLOCK_WORDS + lane % 4 * 4, column = first_column + lane / 4 * 4;
    const int block = k_block % S::BLOCKS;
    stage -= block * S::PARAMETERS;
    for (int i = 0; i < 4; i++)
      if (column + i < p.N)
        copy_words<true, false>(stage + nk_offset<S>(i, lane / 4, 4 * block + lane % 4),
                                p.b + (column + i) * p.ldb + word, p.words - word);
    return;
  }
  const int word = k_block * BLOCK_WORDS + lane / 8, column = first_column + lane % 8 * 4;
  for (int j = 0; j < 4; j++)
    if (word + 4 * j < p.words)
      copy_words<true, false>(stage + chunk_offset(lane / 8, lane % 8) + j * CHUNK_BYTES,
                              p.b + (word + 4 * j) * p.ldb + column, p.N - column);
}

/* Any k-block: past K come zeros in A, what is past the edges of B is not copied, and scales, zero points and factors
 * may start anywhere. */
template <class S>
__device__ __noinline__ void copy_any(const GeneralArguments &p, uint32_t stage, int k_block, int first_row,
                                      int first_column) {
  constexpr int CHUNKS = S::A_ROW_BYTES / 16;
  const int lane = threadIdx.x % 32;
  copy_any_b<S>(p, stage, k_block, first_column);
  for (int at = lane; at < S::ROWS * CHUNKS; at += 32) {
    int row = at / CHUNKS, c = at % CHUNKS, byte = k_block * S::A_ROW_BYTES + 16 * c;
    int valid = min(max(p.row_bytes - byte, 0), 16);
    const char *from = p.rows + (first_row + row) * p.row_stride + (valid > 0 ? byte : 0);
    uint32_t to = stage + B_BYTES + row * S::A_ROW_BYTES + swizzled<S::A::WORDS>(row, c) * 16;
    if (first_row + row < p.M) ptx::cp_async16_l1(to, from, valid);
  }
  if (S::IS_PLAIN) return; /* whose stages have no place for these */
  int size = size_of_scale(p), valid = p.N - first_column;
  for (int s = 0; s < p.segments; s++) {
    uint32_t group = group_of(p, min(k_block * p.segments + s, p.all_segments - 1)), to = stage + S::PARAMETERS;
    if (p.scales)
      copy_columns(to + s * 128, p.scales + (uint64_t)group * p.scales_stride + first_column * size, size, valid);
    if (p.bytes)
      copy_columns(to + p.segments * 128 + s * 32, p.bytes + (uint64_t)group * p.bytes_stride + first_column, 1, valid);
  }
}

template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::copy(const Source &source, const Arguments &p,
                                                                      uint32_t stage, int step, int first_row,
                                                                      int first_column, int part) {
  if (first_column >= p.N) return; /* a warp of the last CTA without columns: nobody has its sums */
  const bool whole = step < p.whole_steps && source.inside;
  if (whole) copy_whole_b<GeneralShape>(source, p, stage, step, part);
  if (part > 0) return;
#pragma unroll
  for (int h = 0; h < BLOCKS; h++, stage += block_bytes(p)) {
    const int k_block = step * BLOCKS + h;
    if (whole)
      copy_whole<GeneralShape>(source, p, stage, k_block);
    else /* all parts */
      copy_any<GeneralShape>(p, stage, k_block, first_row, first_column);
  }
}

} // namespace
#endif
