/*
 * Quantising and dequantising in groups along a row or a column, with zero points and with integer group scales.
 *
 * Symmetric groups whose rows can be taken for a matrix of their own are left to the loops for whole rows and columns
 * (quantize.c): a group of rows is a slab that is quantised by columns; groups along rows that divide contiguous rows
 * are rows of a narrower matrix. All other groups are tiles: one group of up to LINES neighbouring rows or columns, as
 * floats, each line contiguous, a chunk of HELD values at a time.
 */
#include <string.h>

#include "core/group_quantize.h"
#include "cpu/elementwise/pieces.h"

enum {
  LINES = 16,          /* rows or columns of a tile */
  HELD = BLOCK,        /* values of each that it holds, a multiple of 32 */
  PITCH = HELD + 16,   /* so that neighbours are in different sets of the caches */
  FEW_COLUMNS = 16,    /* fewer are not worth a call for each slab */
  SEARCH = 32,         /* the work of a search, in quantisations */
  TILE_GRAIN = 1 << 14 /* values for which a thread pays: they are divided one by one */
};

typedef struct groups_run {
  const int4mm_rows *rows;
  const int4mm_group_job *job;
  int64_t lines, extent; /* rows or columns, and values of each */
  int64_t groups, strips;
  bool factors_given; /* and scales with them */
} groups_run;

static groups_run make_groups_run(const int4mm_rows *rows, const int4mm_group_job *job) {
  const int4mm_matrix *plain = &job->plain, *by_group = int4mm_by_group(job);
  groups_run run = {.rows = rows, .job = job};
  run.lines = job->dim ? plain->rows : plain->cols, run.extent = job->dim ? plain->cols : plain->rows;
  run.groups = job->dim ? by_group->cols : by_group->rows;
  run.strips = int4mm_ceil_div(run.lines, LINES);
  return run;
}

/* Element (line, k) of a matrix with lines along dim. */
static void *at_line(const groups_run *run, const int4mm_matrix *m, int64_t line, int64_t k) {
  return run->job->dim ? at(m, line, k) : at(m, k, line);
}

static float *scale_at(const groups_run *run, int64_t line, int64_t group) {
  return at_line(run, &run->job->scales, line, run->job->factors.data ? 0 : group);
}

static bool is_bytes(const groups_run *run) {
  return run->job->packed.dtype == INT4MM_INT8;
}

/* ---- a tile ----------------------------------------------------------------------------------------------------- */

typedef struct tile {
  const groups_run *run;
  int64_t group, line, first, count; /* its group, first line, first value and number of values */
  int64_t held;                      /* the first value of the chunk in x, counted in the group; -1: none */
  int32_t lines;
  int4mm_group_step steps[LINES];
  float x[LINES][PITCH];
} tile;

static void begin_tile(tile *t, const groups_run *run, int64_t index) {
  bool along = run->job->dim == 1; /* neighbours in memory come one after the other */
  int64_t strip = along ? index / run->groups : index % run->strips;
  t->run = run, t->group = along ? index % run->groups : index / run->strips;
  t->line = strip * LINES, t->lines = (int32_t)int4mm_min64(LINES, run->lines - t->line);
  t->first = t->group * run->job->group, t->count = int4mm_min64(run->job->group, run->extent - t->first);
  t->held = -1;
}

/* Has the tile hold the chunk from value k of the group on; returns how many values that is. */
static int64_t hold(tile *t, int64_t k) {
  const int4mm_matrix *plain = &t->run->job->plain;
  int64_t n = int4mm_min64(HELD, t->count - k);
  float row[LINES];
  if (t->held == k) return n;
  t->held = k;
  if (t->run->job->dim == 1) {
    for (int32_t l = 0; l < t->lines; l++) {
      t->run->rows->to_float(t->x[l], at(plain, t->line + l, t->first + k), plain->dtype, n);
    }
    return n;
  }
  for (int64_t i = 0; i < n; i++) {
    t->run->rows->to_float(row, at(plain, t->first + k + i, t->line), plain->dtype, t->lines);
    for (int32_t l = 0; l < t->lines; l++) t->x[l][i] = row[l];
  }
  return n;
}

/* ---- steps ------------------------------------------------------------------------------------------------------ */

static int4mm_group_step step_of(const groups_run *run, int4mm_group_range range, float clip) {
  return run->job->zeros.data ? int4mm_affine_step(range, clip)
                              : int4mm_symmetric_step(range, clip, is_bytes(run) ? 127.0f : 7.0f);
}

/* sums[k % 32] += the squared error of value k; infinite where the scale is, so that a smaller one is better. */
static void add_errors(double sums[32], int4mm_group_step step, const float *x, int64_t n) {
  if (step.scale > 0 && !int4mm_is_step(step.scale)) {
    sums[0] = (double)step.scale;
    return;
  }
  int64_t k = 0;
  for (; k + 32 <= n; k += 32) {
    for (int i = 0; i < 32; i++) sums[i] = int4mm_add_error(sums[i], step, x[k + i]);
  }
  for (int i = 0; k < n; i++, k++) sums[i] = int4mm_add_error(sums[i], step, x[k]);
}

/* The errors of a step for each line. */
static void find_errors(tile *t, const int4mm_group_step *steps, double *errors) {
  double sums[LINES][32] = {{0}};
  for (int64_t k = 0; k < t->count; k += HELD) {
    int64_t n = hold(t, k);
    for (int32_t l = 0; l < t->lines; l++) add_errors(sums[l], steps[l], t->x[l], n);
  }
  for (int32_t l = 0; l < t->lines; l++) {
    errors[l] = 0;
    for (int i = 0; i < 32; i++) errors[l] += sums[l][i];
  }
}

/* The steps of least squared error; of equals the largest ratio's. Those of ranges that are not finite stay. */
static void search_steps(tile *t, const int4mm_group_range *ranges) {
  int4mm_group_step steps[LINES];
  double errors[LINES], least[LINES];
  find_errors(t, t->steps, least);
  for (int i = 1; i < INT4MM_CLIP_RATIOS; i++) {
    for (int32_t l = 0; l < t->lines; l++) steps[l] = step_of(t->run, ranges[l], int4mm_clip_ratio(i));
    find_errors(t, steps, errors);
    for (int32_t l = 0; l < t->lines; l++) {
      if (int4mm_is_finite_range(ranges[l]) && errors[l] < least[l]) least[l] = errors[l], t->steps[l] = steps[l];
    }
  }
}

static int4mm_group_range range_of(const float *x, int64_t n, int4mm_group_range range) {
  for (int64_t i = 0; i < n; i++) range = int4mm_widen_range(range, x[i]);
  return range;
}

/* Finds the steps and stores them as scales and zero points. */
static void find_steps(tile *t) {
  const int4mm_group_job *job = t->run->job;
  int4mm_group_range ranges[LINES] = {{0, 0, 0}};
  for (int64_t k = 0; k < t->count; k += HELD) {
    int64_t n = hold(t, k);
    for (int32_t l = 0; l < t->lines; l++) ranges[l] = range_of(t->x[l], n, ranges[l]);
  }
  for (int32_t l = 0; l < t->lines; l++) t->steps[l] = step_of(t->run, ranges[l], job->clip_mse ? 1 : job->clip);
  if (job->clip_mse) search_steps(t, ranges);
  for (int32_t l = 0; l < t->lines; l++) {
    *scale_at(t->run, t->line + l, t->group) = t->steps[l].scale;
    if (job->zeros.data) *(int8_t *)at_line(t->run, &job->zeros, t->line + l, t->group) = (int8_t)(int)t->steps[l].zero;
  }
}

static void take_factors(tile *t) {
  for (int32_t l = 0; l < t->lines; l++) {
    int32_t factor = *(int8_t *)at_line(t->run, &t->run->job->factors, t->line + l, t->group);
    t->steps[l] = int4mm_factor_step(factor, *scale_at(t->run, t->line + l, t->group));
  }
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static void quantize_values(int8_t *q, const float *x, int4mm_group_step step, int64_t n) {
  if (!int4mm_is_step(step.scale)) {
    memset(q, 0, (size_t)n);
    return;
  }
  for (int64_t i = 0; i < n; i++) q[i] = (int8_t)(int)int4mm_quantum(step, x[i]);
}

/* Stores n values of each line, from value k of the group on. */
static void store_along(tile *t, int64_t k, int8_t (*q)[PITCH], int64_t n) {
  const int4mm_group_job *job = t->run->job;
  for (int32_t l = 0; l < t->lines; l++) {
    if (is_bytes(t->run)) {
      memcpy(at(&job->packed, t->line + l, t->first + k), q[l], (size_t)n);
    } else {
      uint32_t *words = at(&job->packed, t->line + l, (t->first + k) / 8);
      t->run->rows->pack_along(words, q[l], int4mm_ceil_div(n, 8), job->xor_mask);
    }
  }
}

static void store_across(tile *t, int64_t k, int8_t (*q)[PITCH], int64_t n) {
  const int4mm_group_job *job = t->run->job;
  int8_t rows[8][LINES];
  for (int64_t i = 0; i < n; i += 8) {
    for (int64_t j = 0; j < 8; j++) {
      for (int32_t l = 0; l < t->lines; l++) rows[j][l] = q[l][i + j];
      if (is_bytes(t->run) && i + j < n)
        memcpy(at(&job->packed, t->first + k + i + j, t->line), rows[j], (size_t)t->lines);
    }
    if (is_bytes(t->run)) continue;
    uint32_t *words = at(&job->packed, (t->first + k + i) / 8, t->line);
    t->run->rows->pack_across(words, rows[0], LINES, t->lines, job->xor_mask);
  }
}

static void write_tile(tile *t) {
  int8_t q[LINES][PITCH];
  for (int64_t k = 0; k < t->count; k += HELD) {
    int64_t n = hold(t, k), whole = int4mm_round_up(n, 8);
    for (int32_t l = 0; l < t->lines; l++) {
      quantize_values(q[l], t->x[l], t->steps[l], n);
      memset(q[l] + n, 0, (size_t)(whole - n));
    }
    t->run->job->dim == 1 ? store_along(t, k, q, n) : store_across(t, k, q, n);
  }
}

static void quantize_tile(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const groups_run *run = context;
  tile t;
  begin_tile(&t, run, index);
  run->factors_given ? take_factors(&t) : find_steps(&t);
  write_tile(&t);
}

static void quantize_tiles(groups_run *run) {
  int64_t work = run->lines * run->extent * (run->job->clip_mse && !run->factors_given ? SEARCH : 1);
  int4mm_parallel(int4mm_threads_for(work, TILE_GRAIN), run->groups * run->strips, quantize_tile, run);
}

/* ---- symmetric groups ------------------------------------------------------------------------------------------- */

static bool is_contiguous(const int4mm_matrix *m) {
  return m->stride == m->cols || m->rows <= 1;
}

static int4mm_pack_job rows_job(const int4mm_group_job *job) {
  return (int4mm_pack_job){.packed = job->packed,
                           .plain = job->plain,
                           .scales = job->scales.data,
                           .dim = job->dim,
                           .xor_mask = job->xor_mask,
                           .clip = job->clip,
                           .clip_mse = job->clip_mse};
}

/* Whether the groups of rows are rows of a matrix of their own. */
static bool reshapes(const groups_run *run) {
  const int4mm_group_job *job = run->job;
  if (job->dim != 1 || run->extent % job->group || !is_contiguous(&job->scales)) return false;
  return run->groups == 1 || (is_contiguous(&job->plain) && is_contiguous(&job->packed));
}

static int32_t quantize_reshaped(const groups_run *run) {
  int64_t bad;
  int4mm_pack_job p = rows_job(run->job);
  if (run->groups > 1) {
    p.plain.rows *= run->groups, p.plain.cols = p.plain.stride = run->job->group;
    p.packed.rows = p.plain.rows, p.packed.cols = p.packed.stride = p.packed.cols / run->groups;
  }
  return int4mm_elementwise_quantize(run->rows, &p, &bad);
}

/* A group of whole rows, by columns. */
static int32_t quantize_slab(const groups_run *run, int64_t g) {
  int64_t bad, first = g * run->job->group, step = is_bytes(run) ? 1 : 8;
  int4mm_pack_job p = rows_job(run->job);
  p.scales = at(&run->job->scales, g, 0);
  p.plain.data = at(&p.plain, first, 0), p.packed.data = at(&p.packed, first / step, 0);
  p.plain.rows = int4mm_min64(run->job->group, run->extent - first);
  p.packed.rows = int4mm_ceil_div(p.plain.rows, step);
  return int4mm_elementwise_quantize(run->rows, &p, &bad);
}

static void quantize_slab_alone(void *context, int64_t index, int32_t slot) {
  (void)slot;
  (void)quantize_slab(context, index); /* without a search it needs no memory */
}

/* A thread for each slab where there are enough; a search has threads, and memory, of its own. */
static int32_t quantize_slabs(groups_run *run) {
  int32_t status = INT4MM_OK, threads = int4mm_threads_for(run->lines * run->extent, GRAIN);
  if (!run->job->clip_mse && run->groups >= threads) {
    int4mm_parallel(threads, run->groups, quantize_slab_alone, run);
    return status;
  }
  for (int64_t g = 0; g < run->groups && !status; g++) status = quantize_slab(run, g);
  return status;
}

static int32_t quantize_symmetric(groups_run *run) {
  if (!run->groups) return INT4MM_OK;
  if (run->job->dim == 0 && run->lines >= FEW_COLUMNS) return quantize_slabs(run);
  if (reshapes(run)) return quantize_reshaped(run);
  quantize_tiles(run);
  return INT4MM_OK;
}

/* ---- integer group scales --------------------------------------------------------------------------------------- */

/* Scales and factors of a strip of lines, from the scales of its groups. */
static void find_factors(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const groups_run *run = context;
  const int4mm_group_job *job = run->job;
  for (int64_t line = index * LINES; line < int4mm_min64(run->lines, (index + 1) * LINES); line++) {
    float largest = 0, *scale = scale_at(run, line, 0);
    for (int64_t g = 0; g < run->groups; g++) {
      float s = *(float *)at_line(run, &job->group_scales, line, g);
      largest = s > largest ? s : largest;
    }
    *scale = int4mm_scale_of_factors(largest);
    for (int64_t g = 0; g < run->groups; g++) {
      float s = *(float *)at_line(run, &job->group_scales, line, g);
      *(int8_t *)at_line(run, &job->factors, line, g) = (int8_t)int4mm_factor(s, *scale);
    }
  }
}

/* The symmetric scales of the groups first; the values that come with them are overwritten. */
static int32_t quantize_by_factors(groups_run *run) {
  int4mm_group_job symmetric = *run->job;
  symmetric.scales = run->job->group_scales, symmetric.factors.data = NULL;
  groups_run scales = make_groups_run(run->rows, &symmetric);
  int32_t status = quantize_symmetric(&scales);
  if (status) return status;
  int4mm_parallel(int4mm_threads_for(run->lines * run->groups, GRAIN), run->strips, find_factors, run);
  run->factors_given = true;
  quantize_tiles(run);
  return INT4MM_OK;
}

int32_t int4mm_elementwise_quantize_groups(const int4mm_rows *rows, const int4mm_group_job *job) {
  groups_run run = make_groups_run(rows, job);
  if (!run.lines) return INT4MM_OK;
  if (job->factors.data) return quantize_by_factors(&run);
  if (!job->zeros.data) return quantize_symmetric(&run);
  quantize_tiles(&run);
  return INT4MM_OK;
}

/* ---- dequantize ------------------------------------------------------------------------------------------------- */

typedef struct dequantize_run {
  groups_run groups;
  pieces pieces; /* rows; for words along dim 0, rows of words */
} dequantize_run;

/* The scale of a group in row r, with its factor, and its zero point. */
static float scale_of_group(const int4mm_group_job *job, int64_t r, int64_t g) {
  const int4mm_matrix *scales = &job->scales;
  float scale = int4mm_load_float(scales->data, scales->dtype, r * scales->stride + (job->factors.data ? 0 : g));
  return job->factors.data ? int4mm_mul((float)*(int8_t *)at(&job->factors, r, g), scale) : scale;
}

static int32_t zero_of_group(const int4mm_group_job *job, int64_t r, int64_t g) {
  return job->zeros.data ? *(int8_t *)at(&job->zeros, r, g) : 0;
}

/* Values of a row that share a scale. */
static void dequantize_segment(const groups_run *run, int64_t r, int64_t c, int64_t n, float scale, int32_t zero) {
  const int4mm_group_job *job = run->job;
  int8_t words[BLOCK];
  const int8_t *q = words;
  float x[BLOCK];
  if (is_bytes(run)) {
    q = at(&job->packed, r, c);
  } else {
    run->rows->unpack_along(words, at(&job->packed, r, c / 8), int4mm_ceil_div(n, 8), job->xor_mask);
  }
  for (int64_t i = 0; i < n; i++) x[i] = int4mm_mul((float)(q[i] - zero), scale);
  store_row(run->rows, at(&job->plain, r, c), job->plain.dtype, x, n);
}

static void dequantize_along(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const dequantize_run *d = context;
  const groups_run *run = &d->groups;
  piece s = piece_at(&d->pieces, index); /* whole rows */
  for (int64_t r = s.r0; r < s.r1; r++) {
    for (int64_t g = 0; g < run->groups; g++) {
      int64_t first = g * run->job->group, end = int4mm_min64(first + run->job->group, run->extent);
      float scale = scale_of_group(run->job, r, g);
      int32_t zero = zero_of_group(run->job, r, g);
      for (int64_t c = first; c < end; c += BLOCK) {
        dequantize_segment(run, r, c, int4mm_min64(BLOCK, end - c), scale, zero);
      }
    }
  }
}

/* The scales and zero points of n columns in a group of rows. */
static void read_columns(const groups_run *run, int64_t g, int64_t c, int64_t n, float *scales, int32_t *zeros) {
  const int4mm_group_job *job = run->job;
  const int8_t *factors = job->factors.data ? at(&job->factors, g, c) : NULL;
  const int8_t *from = job->zeros.data ? at(&job->zeros, g, c) : NULL;
  run->rows->to_float(scales, at(&job->scales, factors ? 0 : g, c), job->scales.dtype, n);
  for (int64_t i = 0; factors && i < n; i++) scales[i] = int4mm_mul((float)factors[i], scales[i]);
  for (int64_t i = 0; i < n; i++) zeros[i] = from ? from[i] : 0;
}

/* Up to eight rows of one group from row r on, which are a row of words, and at most BLOCK columns. */
static void dequantize_block(const groups_run *run, int64_t r, int64_t rows, int64_t c, int64_t n) {
  const int4mm_group_job *job = run->job;
  int8_t words[8][BLOCK];
  float x[BLOCK], scales[BLOCK];
  int32_t zeros[BLOCK];
  read_columns(run, r / job->group, c, n, scales, zeros);
  if (!is_bytes(run)) run->rows->unpack_across(words[0], BLOCK, at(&job->packed, r / 8, c), n, job->xor_mask);
  for (int64_t k = 0; k < rows; k++) {
    const int8_t *q = is_bytes(run) ? at(&job->packed, r + k, c) : words[k];
    for (int64_t i = 0; i < n; i++) x[i] = int4mm_mul((float)(q[i] - zeros[i]), scales[i]);
    store_row(run->rows, at(&job->plain, r + k, c), job->plain.dtype, x, n);
  }
}

static void dequantize_across(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const dequantize_run *d = context;
  piece s = piece_at(&d->pieces, index); /* eights of rows, and columns */
  for (int64_t w = s.r0; w < s.r1; w++) {
    int64_t rows = int4mm_min64(8, d->groups.extent - 8 * w);
    for (int64_t c = s.c0; c < s.c1; c += BLOCK) {
      dequantize_block(&d->groups, 8 * w, rows, c, int4mm_min64(BLOCK, s.c1 - c));
    }
  }
}

void int4mm_elementwise_dequantize_groups(const int4mm_rows *rows, const int4mm_group_job *job) {
  dequantize_run d = {.groups = make_groups_run(rows, job)};
  const int4mm_matrix *plain = &job->plain;
  if (!plain->rows || !plain->cols) return;
  d.pieces = job->dim ? cut_rows(plain->rows, plain->cols)
                      : cut(int4mm_ceil_div(plain->rows, 8), plain->cols, 1, 8 * plain->cols);
  int4mm_parallel(d.pieces.threads, d.pieces.count, job->dim ? dequantize_along : dequantize_across, &d);
}

/* ---- values that are not finite --------------------------------------------------------------------------------- */

static void finite_piece(void *context, int64_t index, int32_t slot) {
  (void)slot;
  search *run = context;
  const int4mm_matrix *src = run->src;
  piece s = piece_at(&run->pieces, index);
  float buffer[BLOCK];
  for (int64_t r = s.r0; r < s.r1; r++) {
    for (int64_t c = s.c0; c < s.c1; c += BLOCK) {
      int64_t n = int4mm_min64(BLOCK, s.c1 - c), i = 0;
      run->rows->to_float(buffer, at(src, r, c), src->dtype, n);
      if (run->rows->absmax(buffer, n) < 0x7f800000u) continue;
      while ((int4mm_float_bits(buffer[i]) & 0x7fffffffu) < 0x7f800000u) i++;
      record_bad(&run->bad, r * src->cols + c + i);
      return;
    }
  }
}

int64_t int4mm_elementwise_find_not_finite(const int4mm_rows *rows, const int4mm_matrix *src) {
  return find_bad(rows, src, finite_piece);
}
