/*
 * dst = op(src), or src op other, element by element.
 */
#include "cpu/elementwise/pieces.h"

typedef struct map_run {
  const int4mm_rows *rows;
  const int4mm_map_job *job;
  pieces pieces;
} map_run;

/* `y` holds the job's number where there is no other matrix. */
static void map_block(const map_run *run, int64_t r, int64_t c, float *y, int64_t n) {
  const int4mm_map_job *job = run->job;
  float x[BLOCK];
  run->rows->to_float(x, at(&job->src, r, c), job->src.dtype, n);
  if (job->op == INT4MM_ADD || job->op == INT4MM_MUL) {
    if (job->other.data) run->rows->to_float(y, at(&job->other, r, c), job->other.dtype, n);
    run->rows->combine(x, y, job->op, n);
  } else {
    run->rows->map(x, job->op, n);
  }
  store_row(run->rows, at(&job->dst, r, c), job->dst.dtype, x, n);
}

static void map_piece(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const map_run *run = context;
  piece s = piece_at(&run->pieces, index);
  float y[BLOCK];
  for (int64_t i = 0; i < BLOCK; i++) y[i] = run->job->number;
  for (int64_t r = s.r0; r < s.r1; r++) {
    for (int64_t c = s.c0; c < s.c1; c += BLOCK) map_block(run, r, c, y, int4mm_min64(BLOCK, s.c1 - c));
  }
}

void int4mm_elementwise_map(const int4mm_rows *rows, const int4mm_map_job *job) {
  map_run run = {rows, job, cut(job->src.rows, job->src.cols, 1, job->src.cols)};
  int4mm_parallel(run.pieces.threads, run.pieces.count, map_piece, &run);
}
