/*
 * Softmax, layer norm, RMS norm and argmax of rows. A row is one thread's, and is read block by block in each pass:
 * what it takes to keep the order of its sums.
 */
#include "cpu/elementwise/pieces.h"

enum {
  CHAINS = 32,       /* partial sums of a row, which int4mm_rowwise_op fixes; BLOCK is a multiple of it */
  KEPT = 16 * BLOCK, /* columns up to which softmax keeps a row's exponentials */
};

typedef struct rowwise_run {
  const int4mm_rows *rows;
  const int4mm_rowwise_job *job;
  pieces pieces; /* of whole rows */
} rowwise_run;

static float total(const float sums[CHAINS]) {
  float sum = 0;
  for (int i = 0; i < CHAINS; i++) sum = int4mm_add(sum, sums[i]);
  return sum;
}

/* n columns of row r from c on as float32: themselves, or in `x`. */
static const float *view(const rowwise_run *run, int64_t r, int64_t c, int64_t n, float *x) {
  const int4mm_matrix *src = &run->job->src;
  if (src->dtype == INT4MM_FLOAT32) return at(src, r, c);
  run->rows->to_float(x, at(src, r, c), src->dtype, n);
  return x;
}

/* The same in `x` always. */
static void load(const rowwise_run *run, int64_t r, int64_t c, int64_t n, float *x) {
  run->rows->to_float(x, at(&run->job->src, r, c), run->job->src.dtype, n);
}

static void store(const rowwise_run *run, int64_t r, int64_t c, float *x, int64_t n) {
  const int4mm_matrix *dst = &run->job->dst;
  store_row(run->rows, at(dst, r, c), dst->dtype, x, n);
}

/* ---- softmax ---- */

static float largest(const rowwise_run *run, int64_t r) {
  float x[BLOCK], most = -INFINITY;
  for (int64_t c = 0; c < run->job->src.cols; c += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, run->job->src.cols - c);
    most = run->rows->max(view(run, r, c, n, x), most, n);
  }
  return most;
}

static void softmax_row(const rowwise_run *run, int64_t r) {
  int64_t cols = run->job->src.cols;
  bool kept = cols <= KEPT;
  float row[KEPT], sums[CHAINS] = {0}, most = largest(run, r);
  for (int64_t c = 0; c < cols; c += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, cols - c);
    float *x = kept ? row + c : row;
    load(run, r, c, n, x);
    run->rows->exp_below(x, most, n);
    run->rows->add_sums(sums, x, n);
  }
  float sum = total(sums);
  for (int64_t c = 0; c < cols; c += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, cols - c);
    float *x = kept ? row + c : row;
    if (!kept) {
      load(run, r, c, n, x);
      run->rows->exp_below(x, most, n);
    }
    run->rows->divide(x, sum, n);
    store(run, r, c, x, n);
  }
}

/* ---- norms ---- */

static float mean_of(const rowwise_run *run, int64_t r) {
  float x[BLOCK], sums[CHAINS] = {0};
  int64_t cols = run->job->src.cols;
  for (int64_t c = 0; c < cols; c += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, cols - c);
    run->rows->add_sums(sums, view(run, r, c, n, x), n);
  }
  return int4mm_div(total(sums), (float)cols);
}

/* Of the squares of the row less `mean`. */
static float mean_square(const rowwise_run *run, int64_t r, float mean) {
  float x[BLOCK], sums[CHAINS] = {0};
  int64_t cols = run->job->src.cols;
  for (int64_t c = 0; c < cols; c += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, cols - c);
    run->rows->add_squares(sums, view(run, r, c, n, x), mean, n);
  }
  return int4mm_div(total(sums), (float)cols);
}

/* x = x op v, columns c .. c + n - 1 of a vector that there may be. */
static void apply(const rowwise_run *run, float *x, const int4mm_matrix *v, int32_t op, int64_t c, int64_t n) {
  float y[BLOCK];
  if (!v->data) return;
  run->rows->to_float(y, at(v, 0, c), v->dtype, n);
  run->rows->combine(x, y, op, n);
}

/* An RMS norm is a layer norm whose mean is taken for 0: x - 0 is x. */
static void norm_row(const rowwise_run *run, int64_t r) {
  const int4mm_rowwise_job *job = run->job;
  float x[BLOCK], mean = job->op == INT4MM_LAYER_NORM ? mean_of(run, r) : 0;
  float factor = int4mm_div(1, int4mm_sqrt(int4mm_add(mean_square(run, r, mean), job->eps)));
  for (int64_t c = 0; c < job->src.cols; c += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, job->src.cols - c);
    load(run, r, c, n, x);
    run->rows->normalize(x, mean, factor, n);
    apply(run, x, &job->weight, INT4MM_MUL, c, n);
    apply(run, x, &job->bias, INT4MM_ADD, c, n);
    store(run, r, c, x, n);
  }
}

/* ---- argmax ---- */

static void argmax_row(const rowwise_run *run, int64_t r) {
  float x[BLOCK];
  int32_t most = INT32_MIN;
  int64_t cols = run->job->src.cols, first = 0; /* where the block of the largest key begins */
  for (int64_t c = 0; c < cols; c += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, cols - c);
    int32_t key = run->rows->max_key(view(run, r, c, n, x), n);
    if (key > most) most = key, first = c;
  }
  const float *block = view(run, r, first, int4mm_min64(BLOCK, cols - first), x);
  int32_t i = 0;
  while (int4mm_order_key(block[i]) != most) i++;
  ((int32_t *)run->job->dst.data)[r] = (int32_t)first + i;
}

/* ---- rows ---- */

static void rowwise_piece(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const rowwise_run *run = context;
  piece s = piece_at(&run->pieces, index);
  for (int64_t r = s.r0; r < s.r1; r++) {
    switch (run->job->op) {
    case INT4MM_SOFTMAX:
      softmax_row(run, r);
      break;
    case INT4MM_ARGMAX:
      argmax_row(run, r);
      break;
    default:
      norm_row(run, r);
    }
  }
}

void int4mm_elementwise_rowwise(const int4mm_rows *rows, const int4mm_rowwise_job *job) {
  rowwise_run run = {rows, job, cut_rows(job->src.rows, job->src.cols)};
  int4mm_parallel(run.pieces.threads, run.pieces.count, rowwise_piece, &run);
}
