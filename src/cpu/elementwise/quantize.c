/*
 * Quantising to int4 or int8 by rows or by columns, after a rotation where the job asks for one.
 *
 * A row is read once: its floats, converted and rotated, stay in the caches for its maximum, for the search of the best
 * clip and for its quotients. A row longer than HELD is converted and rotated anew for each of these. Columns that
 * are only divided by their maximum are quantised in two sweeps in memory order; where they are rotated, or their clip
 * is searched, a thread holds a strip of columns, as it would a row.
 *
 * Where a rotation overflows, the scale is infinite and every q of its row or column 0. Source values that are not
 * finite are found by the maximum: a butterfly with one of them gives four values that are not finite.
 */
#include <math.h>
#include <string.h>

#include "core/group_quantize.h"
#include "cpu/elementwise/pieces.h"

enum {
  WIDE = 4 * BLOCK,    /* columns in a block of the sweeps over columns */
  HELD = 16 * BLOCK,   /* floats of a row that a thread holds */
  STRIP = 256 * 1024,  /* floats of a strip of columns that a thread holds: 1 MiB */
  STRIP_COLS = 64,     /* columns of a strip, at most; 16 at least */
  SEARCH = 16,         /* the work of a search, in conversions of the row */
  ROWS_GRAIN = 1 << 14 /* elements of rows for which a thread pays: the product that comes next has it awake anyway */
};

static const uint32_t infinity_bits = 0x7f800000u;

typedef struct quantize_run {
  const int4mm_rows *rows;
  const int4mm_pack_job *job;
  float most; /* 7 or 127 */
  pieces pieces;
  float *strips;         /* one for each slot */
  int64_t cols_of_strip; /* the distance between rows of one as well */
  _Atomic int64_t bad;   /* smallest index of a value that is not finite, or INT64_MAX */
} quantize_run;

static bool is_bytes(const quantize_run *run) {
  return run->job->packed.dtype == INT4MM_INT8;
}

/* (absmax * clip) / most, from absmax as bits; a NaN counts as infinite. */
static float scale_of(const quantize_run *run, uint32_t absmax, float clip) {
  float x = int4mm_bits_float(absmax < infinity_bits ? absmax : infinity_bits);
  return int4mm_mul(x, clip) / run->most;
}

static int64_t first_not_finite(const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    if ((int4mm_float_bits(x[i]) & 0x7fffffffu) >= infinity_bits) return i;
  }
  return n;
}

/* n <= BLOCK floats of a row of the source, converted into `buffer` when they are not float32. */
static const float *source_floats(const quantize_run *run, float *buffer, int64_t r, int64_t c, int64_t n) {
  const int4mm_matrix *plain = &run->job->plain;
  const void *src = at(plain, r, c);
  if (plain->dtype == INT4MM_FLOAT32) return src;
  run->rows->to_float(buffer, src, plain->dtype, n);
  return buffer;
}

/* Looks for the first value of columns c0 .. c1 - 1 of row r that is not finite and records it. */
static bool find_not_finite(quantize_run *run, int64_t r, int64_t c0, int64_t c1) {
  float buffer[BLOCK];
  for (int64_t c = c0; c < c1; c += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, c1 - c), first = first_not_finite(source_floats(run, buffer, r, c, n), n);
    if (first == n) continue;
    record_bad(&run->bad, r * run->job->plain.cols + c + first);
    return true;
  }
  return false;
}

/* Prefetches n elements of row r, which may be past the last. */
static void prefetch_row(const int4mm_matrix *m, int64_t r, int64_t c, int64_t n) {
  const char *row = at(m, r, c);
  for (int64_t i = 0; i < n * (int64_t)int4mm_dtype_size(m->dtype); i += 64) __builtin_prefetch(row + i, 0, 2);
}

/* Whether a quotient may need the clamp: otherwise the largest is `most` or the float above. */
static bool may_clamp(const quantize_run *run) {
  return run->job->clip != 1 || run->job->clip_mse;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* A row as chunks of HELD floats. */
typedef struct row {
  const quantize_run *run;
  int64_t r, held; /* the first element of the chunk in buffer; -1: none */
  uint32_t absmax; /* of that chunk, where it is rotated */
  float buffer[HELD];
} row;

static int64_t chunk_length(const row *l, int64_t c) {
  return int4mm_min64(HELD, l->run->job->plain.cols - c);
}

/* Whether a row's floats are made, not read where they are. */
static bool is_made(const int4mm_pack_job *p) {
  return p->plain.dtype != INT4MM_FLOAT32 || p->rotate;
}

/* The chunk from element c on, rotated. Half of the next row is prefetched meanwhile, evenly, as the memory would be
 * idle; write_row does the other half. */
static const float *chunk_at(row *l, int64_t c) {
  const int4mm_pack_job *p = l->run->job;
  const char *src = at(&p->plain, l->r, c);
  if (!is_made(p)) return (const float *)(const void *)src;
  if (l->held == c) return l->buffer;
  int64_t length = chunk_length(l, c);
  l->absmax = 0;
  for (int64_t i = 0; i < length; i += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, length - i);
    const void *from = at(&p->plain, l->r, c + i);
    if (c == 0) prefetch_row(&p->plain, l->r + 1, i, n / 2);
    if (p->rotate) {
      uint32_t absmax = l->run->rows->rotate(l->buffer + i, from, p->plain.dtype, p->rotate, n);
      l->absmax = absmax > l->absmax ? absmax : l->absmax;
    } else {
      l->run->rows->to_float(l->buffer + i, from, p->plain.dtype, n);
    }
  }
  l->held = c;
  return l->buffer;
}

static uint32_t absmax_of_row(row *l) {
  uint32_t absmax = 0;
  for (int64_t c = 0; c < l->run->job->plain.cols; c += HELD) {
    const float *x = chunk_at(l, c);
    uint32_t bits = l->run->job->rotate ? l->absmax : l->run->rows->absmax(x, chunk_length(l, c));
    absmax = bits > absmax ? bits : absmax;
  }
  return absmax;
}

static double squared_error_of_row(row *l, float scale) {
  double sums[32] = {0}, sum = 0;
  for (int64_t c = 0; c < l->run->job->plain.cols; c += HELD) {
    l->run->rows->add_errors(sums, chunk_at(l, c), scale, l->run->most, chunk_length(l, c));
  }
  for (int i = 0; i < 32; i++) sum += sums[i];
  return sum;
}

/* The scale of least squared error; of equals the largest ratio's. */
static float best_scale_of_row(row *l, uint32_t absmax) {
  float best = scale_of(l->run, absmax, 1);
  double least = squared_error_of_row(l, best);
  for (int i = 1; i < INT4MM_CLIP_RATIOS; i++) {
    float scale = scale_of(l->run, absmax, int4mm_clip_ratio(i));
    double error = squared_error_of_row(l, scale);
    if (error < least) least = error, best = scale;
  }
  return best;
}

/* The beginning of the next row, or the half that chunk_at leaves of it, is prefetched meanwhile. */
static void write_row(row *l, float scale) {
  const quantize_run *run = l->run;
  const int4mm_pack_job *p = run->job;
  for (int64_t c = 0; c < p->plain.cols; c += BLOCK) {
    int64_t n = int4mm_min64(BLOCK, p->plain.cols - c), fetched = is_made(p) ? n / 2 : 0;
    const float *x = chunk_at(l, c / HELD * HELD) + c % HELD;
    if (c < HELD) prefetch_row(&p->plain, l->r + 1, c + fetched, n - fetched);
    if (is_bytes(run)) {
      run->rows->quantize(at(&p->packed, l->r, c), x, scale, run->most, n);
      continue;
    }
    run->rows->quantize_words(at(&p->packed, l->r, c / 8), x, scale, may_clamp(run), n, p->xor_mask);
  }
}

static void quantize_along(void *context, int64_t index, int32_t slot) {
  (void)slot;
  quantize_run *run = context;
  const int4mm_pack_job *p = run->job;
  piece s = piece_at(&run->pieces, index); /* whole rows */
  row l;
  l.run = run;
  for (int64_t r = s.r0; r < s.r1; r++) {
    l.r = r, l.held = -1;
    uint32_t absmax = absmax_of_row(&l);
    if (absmax >= infinity_bits && p->check && find_not_finite(run, r, 0, p->plain.cols)) continue;
    bool search = p->clip_mse && absmax < infinity_bits;
    float scale = search ? best_scale_of_row(&l, absmax) : scale_of(run, absmax, p->clip);
    p->scales[r] = scale;
    write_row(&l, scale);
  }
}

static int32_t quantize_rows(quantize_run *run, int64_t *bad) {
  const int4mm_matrix *plain = &run->job->plain;
  int64_t cols = int4mm_max64(plain->cols, 1);
  pieces *p = &run->pieces;
  if (!plain->rows) return INT4MM_OK; /* there may be any number of columns */
  *p = cut_by(ROWS_GRAIN, plain->rows, cols, 1, run->job->clip_mse ? SEARCH * cols : cols);
  p->piece_cols = cols; /* rows stay whole: each needs its maximum first */
  p->count = int4mm_ceil_div(plain->rows, p->piece_rows);
  p->across = 1;
  int4mm_parallel(p->threads, p->count, quantize_along, run);
  return status_of_bad(&run->bad, bad);
}

/* ---- columns, in two sweeps: the largest of each, then the quotients -------------------------------------------- */

typedef uint32_t float_bits __attribute__((may_alias));

/* The first sweep, over pieces of whole rows. `scales` holds the largest values so far, as bits. */
static void absmax_across(void *context, int64_t index, int32_t slot) {
  (void)slot;
  quantize_run *run = context;
  const int4mm_matrix *plain = &run->job->plain;
  float_bits *shared = (float_bits *)run->job->scales;
  piece s = piece_at(&run->pieces, index);
  float buffer[BLOCK];
  for (int64_t c = s.c0; c < s.c1; c += WIDE) {
    int64_t n = int4mm_min64(WIDE, s.c1 - c);
    uint32_t absmax[WIDE];
    memset(absmax, 0, (size_t)n * 4);
    if (plain->dtype == INT4MM_FLOAT32) {
      run->rows->absmax_columns(absmax, at(plain, s.r0, c), plain->stride, s.r1 - s.r0, n);
    } else {
      for (int64_t r = s.r0; r < s.r1; r++) {
        for (int64_t i = 0; i < n; i += BLOCK) {
          int64_t here = int4mm_min64(BLOCK, n - i);
          run->rows->absmax_columns(absmax + i, source_floats(run, buffer, r, c + i, here), 0, 1, here);
        }
      }
    }
    for (int64_t i = 0; i < n; i++) {
      uint32_t before = __atomic_load_n(&shared[c + i], __ATOMIC_RELAXED);
      while (absmax[i] > before && !__atomic_compare_exchange_n(&shared[c + i], &before, absmax[i], true,
                                                                __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      }
    }
  }
}

/* From largest values to scales. Run through int4mm_parallel for the default floating-point environment. */
static void scales_across(void *context, int64_t index, int32_t slot) {
  (void)index, (void)slot;
  quantize_run *run = context;
  const int4mm_pack_job *p = run->job;
  bool bad = false;
  for (int64_t c = 0; c < p->plain.cols; c++) {
    uint32_t absmax = int4mm_float_bits(p->scales[c]);
    bad |= absmax >= infinity_bits;
    p->scales[c] = scale_of(run, absmax, p->clip);
  }
  for (int64_t r = 0; bad && p->check && r < p->plain.rows; r++) {
    if (find_not_finite(run, r, 0, p->plain.cols)) break;
  }
}

/* A row of at most WIDE columns. The next one is on another page, where no hardware prefetcher follows. */
static void quantize_wide(const quantize_run *run, const float *inverses, int8_t *q, int64_t r, int64_t c, int64_t n) {
  const int4mm_pack_job *p = run->job;
  float buffer[BLOCK];
  for (int64_t i = 0; i < n; i += BLOCK) {
    int64_t here = int4mm_min64(BLOCK, n - i);
    const float *x = source_floats(run, buffer, r, c + i, here);
    prefetch_row(&p->plain, r + 1, c + i, here);
    run->rows->quantize_columns(q + i, x, p->scales + c + i, inverses + i, run->most, may_clamp(run), here);
  }
}

/* The second sweep, over whole words, from the last rows to the first: the last are still in the caches. */
static void quantize_across(void *context, int64_t index, int32_t slot) {
  (void)slot;
  quantize_run *run = context;
  const int4mm_pack_job *p = run->job;
  piece s = piece_at(&run->pieces, run->pieces.count - 1 - index); /* eights of rows, and columns */
  int8_t q[8][WIDE];
  float inverses[WIDE];
  for (int64_t w = s.r0; w < s.r1; w++) {
    int64_t rows = int4mm_min64(8, p->plain.rows - 8 * w);
    for (int64_t c = s.c0; c < s.c1; c += WIDE) {
      int64_t n = int4mm_min64(WIDE, s.c1 - c);
      run->rows->reciprocals(inverses, p->scales + c, n);
      for (int64_t i = 0; i < rows; i++) {
        quantize_wide(run, inverses, is_bytes(run) ? at(&p->packed, 8 * w + i, c) : q[i], 8 * w + i, c, n);
      }
      if (is_bytes(run)) continue;
      for (int64_t i = rows; i < 8; i++) memset(q[i], 0, (size_t)n);
      run->rows->pack_across(at(&p->packed, w, c), q[0], WIDE, n, p->xor_mask);
    }
  }
}

static int32_t quantize_columns(quantize_run *run, int64_t *bad) {
  const int4mm_matrix *plain = &run->job->plain;
  pieces *p = &run->pieces;
  *p = cut(plain->rows, plain->cols, 64, plain->cols);
  for (int64_t c = 0; c < plain->cols; c++) run->job->scales[c] = 0.0f;
  int4mm_parallel(p->threads, p->count, absmax_across, run);
  int4mm_parallel(1, 1, scales_across, run);
  if (status_of_bad(&run->bad, bad)) return INT4MM_ERR_VALUE;
  *p = plain->cols ? cut(int4mm_ceil_div(plain->rows, 8), plain->cols, 1, 8 * plain->cols) : (pieces){0};
  int4mm_parallel(p->threads, p->count, quantize_across, run);
  return INT4MM_OK;
}

/* ---- columns, in strips ----------------------------------------------------------------------------------------- */

/* Columns c .. c + n - 1 as chunks of `chunk` rows, of which there is more than one only where STRIP cannot hold all.
 */
typedef struct strip {
  const quantize_run *run;
  int64_t c, n, pitch, chunk;
  int64_t held; /* the first row of the chunk in buffer; -1: none */
  float *buffer;
} strip;

static int64_t chunk_rows(const strip *s, int64_t r) {
  return int4mm_min64(s->chunk, s->run->job->plain.rows - r);
}

/* The chunk from row r on, rotated. */
static const float *rows_at(strip *s, int64_t r) {
  const int4mm_pack_job *p = s->run->job;
  const int4mm_rows *rows = s->run->rows;
  int64_t count = chunk_rows(s, r);
  if (s->held == r) return s->buffer;
  for (int64_t i = 0; i < count; i++) {
    if (i + 8 < count) prefetch_row(&p->plain, r + i + 8, s->c, s->n);
    rows->to_float(s->buffer + i * s->pitch, at(&p->plain, r + i, s->c), p->plain.dtype, s->n);
  }
  for (int64_t i = 0; p->rotate && i < count; i += p->rotate) {
    rows->rotate_columns(s->buffer + i * s->pitch, s->pitch, p->rotate, s->n);
  }
  s->held = r;
  return s->buffer;
}

/* The largest values as bits; returns the largest of all. */
static uint32_t absmax_of_strip(strip *s, uint32_t *absmax) {
  uint32_t largest = 0;
  memset(absmax, 0, sizeof *absmax * STRIP_COLS);
  for (int64_t r = 0; r < s->run->job->plain.rows; r += s->chunk) {
    s->run->rows->absmax_columns(absmax, rows_at(s, r), s->pitch, chunk_rows(s, r), s->n);
  }
  for (int64_t i = 0; i < s->n; i++) largest = absmax[i] > largest ? absmax[i] : largest;
  return largest;
}

static void squared_errors_of_strip(strip *s, const float *scales, double *errors) {
  double sums[32][STRIP_COLS] = {{0}};
  for (int64_t r = 0; r < s->run->job->plain.rows; r += s->chunk) {
    const float *x = rows_at(s, r);
    int64_t count = chunk_rows(s, r); /* r is a multiple of 32 */
    for (int64_t i = 0; i < count; i++) {
      s->run->rows->add_errors_columns(sums[i % 32], x + i * s->pitch, scales, s->run->most, s->n);
    }
  }
  for (int64_t c = 0; c < s->n; c++) {
    errors[c] = 0;
    for (int i = 0; i < 32; i++) errors[c] += sums[i][c];
  }
}

/* As best_scale_of_row. Where absmax is infinite every ratio gives the same scale. */
static void best_scales_of_strip(strip *s, const uint32_t *absmax, float *best) {
  float scales[STRIP_COLS];
  double errors[STRIP_COLS], least[STRIP_COLS];
  for (int64_t c = 0; c < s->n; c++) best[c] = scale_of(s->run, absmax[c], 1);
  squared_errors_of_strip(s, best, least);
  for (int i = 1; i < INT4MM_CLIP_RATIOS; i++) {
    for (int64_t c = 0; c < s->n; c++) scales[c] = scale_of(s->run, absmax[c], int4mm_clip_ratio(i));
    squared_errors_of_strip(s, scales, errors);
    for (int64_t c = 0; c < s->n; c++) {
      if (errors[c] < least[c]) least[c] = errors[c], best[c] = scales[c];
    }
  }
}

static void write_strip(strip *s) {
  const quantize_run *run = s->run;
  const int4mm_pack_job *p = run->job;
  const float *scales = p->scales + s->c;
  int8_t q[8][STRIP_COLS];
  float inverses[STRIP_COLS];
  run->rows->reciprocals(inverses, scales, s->n);
  for (int64_t r = 0; r < p->plain.rows; r += 8) {
    const float *x = rows_at(s, r / s->chunk * s->chunk) + r % s->chunk * s->pitch;
    int64_t rows = int4mm_min64(8, p->plain.rows - r);
    for (int64_t i = 0; i < rows; i++) {
      int8_t *to = is_bytes(run) ? at(&p->packed, r + i, s->c) : q[i];
      run->rows->quantize_columns(to, x + i * s->pitch, scales, inverses, run->most, may_clamp(run), s->n);
    }
    if (is_bytes(run)) continue;
    for (int64_t i = rows; i < 8; i++) memset(q[i], 0, sizeof q[i]);
    run->rows->pack_across(at(&p->packed, r / 8, s->c), q[0], STRIP_COLS, s->n, p->xor_mask);
  }
}

static void quantize_strip(void *context, int64_t index, int32_t slot) {
  quantize_run *run = context;
  const int4mm_pack_job *p = run->job;
  int64_t pitch = run->cols_of_strip, chunk = STRIP / pitch, c = index * pitch;
  strip s = {run, c, int4mm_min64(pitch, p->plain.cols - c), pitch, chunk, -1, NULL};
  s.buffer = run->strips + slot * int4mm_min64(chunk, p->plain.rows) * pitch;
  uint32_t absmax[STRIP_COLS];
  bool finite = absmax_of_strip(&s, absmax) < infinity_bits;
  for (int64_t r = 0; !finite && p->check && r < p->plain.rows; r++) {
    if (find_not_finite(run, r, c, c + s.n)) return;
  }
  if (p->clip_mse) {
    best_scales_of_strip(&s, absmax, p->scales + c);
  } else {
    for (int64_t i = 0; i < s.n; i++) p->scales[c + i] = scale_of(run, absmax[i], p->clip);
  }
  write_strip(&s);
}

static int32_t quantize_strips(quantize_run *run, int64_t *bad) {
  const int4mm_matrix *plain = &run->job->plain;
  int64_t K = int4mm_max64(plain->rows, 1), cols = STRIP / K / 16 * 16;
  if (!plain->cols) return INT4MM_OK;
  run->cols_of_strip = int4mm_max64(16, int4mm_min64(STRIP_COLS, cols));
  int64_t count = int4mm_ceil_div(plain->cols, run->cols_of_strip);
  int64_t work = plain->rows * plain->cols * (run->job->clip_mse ? SEARCH : 1);
  int32_t threads = (int32_t)int4mm_min64(int4mm_threads_for(work, GRAIN), count);
  int64_t floats = int4mm_min64(STRIP / run->cols_of_strip, K) * run->cols_of_strip;
  run->strips = int4mm_workspace_acquire(threads * floats * (int64_t)sizeof(float));
  if (!run->strips) return INT4MM_ERR_MEMORY;
  int4mm_parallel(threads, count, quantize_strip, run);
  int4mm_workspace_release(run->strips);
  return status_of_bad(&run->bad, bad);
}

int32_t int4mm_elementwise_quantize(const int4mm_rows *rows, const int4mm_pack_job *p, int64_t *bad) {
  quantize_run run = {.rows = rows, .job = p, .most = p->packed.dtype == INT4MM_INT8 ? 127 : 7};
  atomic_init(&run.bad, INT64_MAX);
  if (p->dim == 1) return quantize_rows(&run, bad);
  return p->rotate || p->clip_mse ? quantize_strips(&run, bad) : quantize_columns(&run, bad);
}
