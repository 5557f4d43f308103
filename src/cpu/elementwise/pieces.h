/*
 * How a matrix is divided among the threads: into pieces, and a piece into blocks of at most BLOCK elements, whose
 * intermediate values stay in the first-level cache. Shared by the files of this folder.
 */
#ifndef INT4MM_CPU_PIECES_H
#define INT4MM_CPU_PIECES_H

#include <stdatomic.h>

#include "core/numeric.h"
#include "cpu/cpu.h"

enum {
  BLOCK = 1024,       /* elements of a row in a block, a multiple of 64 and of every block of a rotation */
  GRAIN = 1 << 16,    /* elements for which a thread pays */
  MAX_TASKS = 1 << 20 /* bounds the number of pieces of very tall matrices */
};

/* A division of a matrix into pieces of piece_rows x piece_cols, row-major, `across` of them in a row. */
typedef struct pieces {
  int64_t rows, cols, piece_rows, piece_cols, across, count;
  int32_t threads;
} pieces;

/* Rows r0 .. r1 - 1, columns c0 .. c1 - 1. */
typedef struct piece {
  int64_t r0, r1, c0, c1;
} piece;

/* piece_rows is a multiple of row_step. work_per_row: elements that a row stands for; grain: how many of these make a
 * piece, for which a thread pays. */
static inline pieces cut_by(int64_t grain, int64_t rows, int64_t cols, int64_t row_step, int64_t work_per_row) {
  pieces p = {.rows = rows, .cols = cols};
  if (rows <= 0 || cols <= 0) return p;
  p.threads = int4mm_threads_for(rows * work_per_row, grain);
  p.piece_cols = cols;
  p.piece_rows = int4mm_ceil_div(int4mm_max64(1, grain / int4mm_max64(1, work_per_row)), row_step) * row_step;
  p.piece_rows = int4mm_max64(p.piece_rows, int4mm_ceil_div(int4mm_ceil_div(rows, MAX_TASKS), row_step) * row_step);
  if (rows <= row_step * p.threads && cols > BLOCK)
    p.piece_cols = int4mm_ceil_div(int4mm_ceil_div(cols, 4 * p.threads), BLOCK) * BLOCK;
  p.across = int4mm_ceil_div(cols, p.piece_cols);
  p.count = int4mm_ceil_div(rows, p.piece_rows) * p.across;
  return p;
}

static inline pieces cut(int64_t rows, int64_t cols, int64_t row_step, int64_t work_per_row) {
  return cut_by(GRAIN, rows, cols, row_step, work_per_row);
}

/* Pieces of whole rows. */
static inline pieces cut_rows(int64_t rows, int64_t cols) {
  pieces p = cut(rows, cols, 1, cols);
  p.piece_cols = cols, p.across = 1;
  p.count = p.piece_rows ? int4mm_ceil_div(rows, p.piece_rows) : 0;
  return p;
}

static inline piece piece_at(const pieces *p, int64_t index) {
  int64_t r0 = index / p->across * p->piece_rows, c0 = index % p->across * p->piece_cols;
  piece s = {r0, int4mm_min64(r0 + p->piece_rows, p->rows), c0, int4mm_min64(c0 + p->piece_cols, p->cols)};
  return s;
}

static inline void *at(const int4mm_matrix *m, int64_t r, int64_t c) {
  return (char *)m->data + (size_t)(r * m->stride + c) * int4mm_dtype_size(m->dtype);
}

/* Keeps the smallest index of a bad value; INT64_MAX means none yet. */
static inline void record_bad(_Atomic int64_t *bad, int64_t index) {
  int64_t before = atomic_load(bad);
  while (index < before && !atomic_compare_exchange_weak(bad, &before, index)) {
  }
}

/* What a call returns that recorded bad values, with *bad set to their smallest index. */
static inline int32_t status_of_bad(_Atomic int64_t *recorded, int64_t *bad) {
  int64_t first = atomic_load(recorded);
  if (first == INT64_MAX) return INT4MM_OK;
  *bad = first;
  return INT4MM_ERR_VALUE;
}

/* A search for bad values: a piece gives record_bad its first. */
typedef struct search {
  const int4mm_rows *rows; /* or NULL, where the pieces need none */
  const int4mm_matrix *src;
  pieces pieces;
  _Atomic int64_t bad;
} search;

/* The index of the first bad value, or -1. `task` is given a search. */
static inline int64_t find_bad(const int4mm_rows *rows, const int4mm_matrix *src, int4mm_task *task) {
  search run = {.rows = rows, .src = src, .pieces = cut(src->rows, src->cols, 1, src->cols)};
  atomic_init(&run.bad, INT64_MAX);
  int4mm_parallel(run.pieces.threads, run.pieces.count, task, &run);
  int64_t bad = -1;
  (void)status_of_bad(&run.bad, &bad);
  return bad;
}

/* Which NaN a conversion or a product gives IEEE leaves to the machine: as results all are INT4MM_NAN_BITS. */
static inline void make_one_nan(float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    if (x[i] != x[i]) x[i] = int4mm_bits_float(INT4MM_NAN_BITS);
  }
}

/* dst = x rounded, each NaN the one of dst's dtype. */
static inline void store_row(const int4mm_rows *rows, void *dst, int32_t dtype, float *x, int64_t n) {
  const float nan = int4mm_bits_float(INT4MM_NAN_BITS);
  for (int64_t i = 0; dtype == INT4MM_FLOAT32 && i < n; i++) x[i] = x[i] != x[i] ? nan : x[i];
  rows->from_float(dst, dtype, x, n);
}

#endif
