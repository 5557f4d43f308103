/*
 * dst = src rotated in blocks: along rows in blocks of the first-level cache, along columns in strips that hold a block
 * of rows.
 */
#include "cpu/elementwise/pieces.h"

enum { STRIP = 16 * BLOCK, STRIP_COLS = 256 }; /* floats and columns of a strip */

typedef struct rotate_run {
  const int4mm_rows *rows;
  const int4mm_rotate_job *job;
  pieces pieces;
} rotate_run;

static void store(const rotate_run *run, int64_t r, int64_t c, float *x, uint32_t absmax, int64_t n) {
  const int4mm_matrix *dst = &run->job->dst;
  if (absmax > 0x7f800000u) make_one_nan(x, n);
  run->rows->from_float(at(dst, r, c), dst->dtype, x, n);
}

static void rotate_along(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const rotate_run *run = context;
  piece s = piece_at(&run->pieces, index);
  float x[BLOCK];
  for (int64_t r = s.r0; r < s.r1; r++) {
    for (int64_t c = s.c0; c < s.c1; c += BLOCK) {
      int64_t n = int4mm_min64(BLOCK, s.c1 - c);
      uint32_t absmax = run->rows->rotate(x, at(&run->job->src, r, c), run->job->src.dtype, run->job->block, n);
      store(run, r, c, x, absmax, n);
    }
  }
}

static void rotate_across(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const rotate_run *run = context;
  piece s = piece_at(&run->pieces, index); /* whole blocks of rows, and columns */
  const int4mm_matrix *src = &run->job->src;
  int64_t block = run->job->block, cols = int4mm_min64(STRIP / block, STRIP_COLS);
  float x[STRIP];
  for (int64_t r = s.r0; r < s.r1; r += block) {
    for (int64_t c = s.c0; c < s.c1; c += cols) {
      int64_t n = int4mm_min64(cols, s.c1 - c);
      for (int64_t i = 0; i < block; i++) run->rows->to_float(x + i * cols, at(src, r + i, c), src->dtype, n);
      run->rows->rotate_columns(x, cols, (int32_t)block, n);
      for (int64_t i = 0; i < block; i++) {
        float *row = x + i * cols;
        store(run, r + i, c, row, run->rows->absmax(row, n), n);
      }
    }
  }
}

void int4mm_elementwise_rotate(const int4mm_rows *rows, const int4mm_rotate_job *job) {
  int64_t cols = job->src.cols;
  rotate_run run = {rows, job, cut(job->src.rows, cols, job->dim == 1 ? 1 : job->block, cols)};
  int4mm_parallel(run.pieces.threads, run.pieces.count, job->dim == 1 ? rotate_along : rotate_across, &run);
}
