/*
 * Transposing and gathering: elements of 1, 2 or 4 bytes moved as they are.
 */
#include <string.h>

#include "cpu/elementwise/pieces.h"

enum { TILE = 32 }; /* rows and columns whose lines stay in the first-level cache */

typedef struct rearrange_run {
  const int4mm_matrix *dst, *src;
  const int4mm_gather_job *job; /* NULL to transpose */
  pieces pieces;                /* of src to transpose, of dst to gather */
} rearrange_run;

/* ---- transposing ---- */

/* Rows r0 .. r1 - 1, columns c0 .. c1 - 1 of src, with a `size` that is known to the compiler. */
__attribute__((always_inline)) static inline void transpose_tile(const int4mm_matrix *dst, const int4mm_matrix *src,
                                                                 piece t, size_t size) {
  for (int64_t c = t.c0; c < t.c1; c++) {
    char *to = (char *)dst->data + (size_t)(c * dst->stride) * size;
    const char *from = (const char *)src->data + (size_t)c * size;
    for (int64_t r = t.r0; r < t.r1; r++) memcpy(to + (size_t)r * size, from + (size_t)(r * src->stride) * size, size);
  }
}

static void transpose_piece(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const rearrange_run *run = context;
  piece s = piece_at(&run->pieces, index);
  size_t size = int4mm_dtype_size(run->src->dtype);
  for (int64_t r = s.r0; r < s.r1; r += TILE) {
    for (int64_t c = s.c0; c < s.c1; c += TILE) {
      piece t = {r, int4mm_min64(r + TILE, s.r1), c, int4mm_min64(c + TILE, s.c1)};
      if (size == 1) transpose_tile(run->dst, run->src, t, 1);
      if (size == 2) transpose_tile(run->dst, run->src, t, 2);
      if (size == 4) transpose_tile(run->dst, run->src, t, 4);
    }
  }
}

void int4mm_cpu_transpose(const int4mm_matrix *dst, const int4mm_matrix *src) {
  rearrange_run run = {dst, src, NULL, cut(src->rows, src->cols, TILE, src->cols)};
  int4mm_parallel(run.pieces.threads, run.pieces.count, transpose_piece, &run);
}

/* ---- gathering ---- */

static bool is_inside(int64_t index, int64_t extent) {
  return index >= 0 && index < extent;
}

/* Columns c0 .. c1 - 1 of row r of dst. */
static void gather_from_row(const int4mm_gather_job *job, int64_t r, int64_t c0, int64_t c1) {
  int64_t from = job->indices[r];
  size_t size = int4mm_dtype_size(job->src.dtype);
  if (is_inside(from, job->src.rows)) {
    memcpy(at(&job->dst, r, c0), at(&job->src, from, c0), (size_t)(c1 - c0) * size);
    return;
  }
  for (int64_t c = c0; c < c1; c++) memcpy(at(&job->dst, r, c), &job->outside, size);
}

static void gather_from_columns(const int4mm_gather_job *job, int64_t r, int64_t c0, int64_t c1) {
  size_t size = int4mm_dtype_size(job->src.dtype);
  for (int64_t c = c0; c < c1; c++) {
    int64_t from = job->indices[c];
    memcpy(at(&job->dst, r, c), is_inside(from, job->src.cols) ? at(&job->src, r, from) : (const void *)&job->outside,
           size);
  }
}

static void gather_piece(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const rearrange_run *run = context;
  piece s = piece_at(&run->pieces, index);
  for (int64_t r = s.r0; r < s.r1; r++)
    (run->job->dim ? gather_from_columns : gather_from_row)(run->job, r, s.c0, s.c1);
}

void int4mm_cpu_gather(const int4mm_gather_job *job) {
  rearrange_run run = {&job->dst, &job->src, job, cut(job->dst.rows, job->dst.cols, 1, job->dst.cols)};
  int4mm_parallel(run.pieces.threads, run.pieces.count, gather_piece, &run);
}
