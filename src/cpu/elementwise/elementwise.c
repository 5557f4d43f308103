/*
 * Pack, unpack, dequantize, random and copy over whole matrices, in blocks (pieces.h); the loops over a block are those
 * of rows.h.
 */
#include <string.h>

#include "cpu/elementwise/pieces.h"

typedef struct pack_run {
  const int4mm_rows *rows;
  const int4mm_pack_job *pack;
  pieces pieces;
  _Atomic int64_t bad; /* smallest index of a bad value seen, or INT64_MAX */
} pack_run;

/* ---- pack and unpack -------------------------------------------------------------------------------------------- */

static int64_t first_outside(const void *src, int32_t dtype, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    int32_t value = dtype == INT4MM_INT8 ? ((const int8_t *)src)[i] : ((const int32_t *)src)[i];
    if (value < -8 || value > 7) return i;
  }
  return n;
}

/* n values of a row of `plain` as int4; records the first that is not one. */
static void narrow(pack_run *j, int8_t *q, int64_t r, int64_t c, int64_t n) {
  const int4mm_matrix *plain = &j->pack->plain;
  const void *src = at(plain, r, c);
  if (!j->rows->narrow(q, src, plain->dtype, n) && j->pack->check) {
    record_bad(&j->bad, r * plain->cols + c + first_outside(src, plain->dtype, n));
  }
}

static void pack_along(void *context, int64_t index, int32_t slot) {
  (void)slot;
  pack_run *j = context;
  const int4mm_pack_job *p = j->pack;
  piece s = piece_at(&j->pieces, index); /* rows and words */
  int8_t q[BLOCK];
  for (int64_t r = s.r0; r < s.r1; r++) {
    for (int64_t w = s.c0; w < s.c1; w += BLOCK / 8) {
      int64_t words = int4mm_min64(BLOCK / 8, s.c1 - w), n = int4mm_min64(8 * words, p->plain.cols - 8 * w);
      memset(q + n, 0, (size_t)(8 * words - n));
      narrow(j, q, r, 8 * w, n);
      j->rows->pack_along(at(&p->packed, r, w), q, words, p->xor_mask);
    }
  }
}

static void pack_across(void *context, int64_t index, int32_t slot) {
  (void)slot;
  pack_run *j = context;
  const int4mm_pack_job *p = j->pack;
  piece s = piece_at(&j->pieces, index); /* rows of words and columns */
  int8_t q[8][BLOCK];
  for (int64_t w = s.r0; w < s.r1; w++) {
    int64_t rows = int4mm_min64(8, p->plain.rows - 8 * w);
    for (int64_t c = s.c0; c < s.c1; c += BLOCK) {
      int64_t n = int4mm_min64(BLOCK, s.c1 - c);
      for (int64_t i = 0; i < 8; i++) {
        if (i < rows) {
          narrow(j, q[i], 8 * w + i, c, n);
        } else {
          memset(q[i], 0, (size_t)n);
        }
      }
      j->rows->pack_across(at(&p->packed, w, c), q[0], BLOCK, n, p->xor_mask);
    }
  }
}

/* Without elements it has no pieces. */
static pack_run make_run(const int4mm_pack_job *p, const int4mm_rows *rows) {
  pack_run j = {.rows = rows, .pack = p};
  atomic_init(&j.bad, INT64_MAX);
  if (!p->plain.rows || !p->plain.cols) return j;
  if (p->dim == 1) {
    j.pieces = cut(p->packed.rows, int4mm_ceil_div(p->plain.cols, 8), 1, p->plain.cols);
  } else {
    j.pieces = cut(int4mm_ceil_div(p->plain.rows, 8), p->plain.cols, 1, 8 * p->plain.cols);
  }
  return j;
}

int32_t int4mm_elementwise_pack(const int4mm_rows *rows, const int4mm_pack_job *p, int64_t *bad) {
  pack_run j = make_run(p, rows);
  int4mm_parallel(j.pieces.threads, j.pieces.count, p->dim == 1 ? pack_along : pack_across, &j);
  return status_of_bad(&j.bad, bad);
}

/* Whether a product of an int4 and one of these scales may be NaN. */
static bool may_give_nan(const int4mm_rows *rows, const float *scales, int64_t n) {
  return rows->absmax(scales, n) >= 0x7f800000u;
}

static void unpack_along(void *context, int64_t index, int32_t slot) {
  (void)slot;
  pack_run *j = context;
  const int4mm_pack_job *p = j->pack;
  piece s = piece_at(&j->pieces, index);
  int8_t q[BLOCK];
  float x[BLOCK];
  for (int64_t r = s.r0; r < s.r1; r++) {
    for (int64_t w = s.c0; w < s.c1; w += BLOCK / 8) {
      int64_t words = int4mm_min64(BLOCK / 8, s.c1 - w), n = int4mm_min64(8 * words, p->plain.cols - 8 * w);
      void *dst = at(&p->plain, r, 8 * w);
      j->rows->unpack_along(q, at(&p->packed, r, w), words, p->xor_mask);
      if (p->scales) {
        j->rows->dequantize(x, q, p->scales[r], n);
        if (may_give_nan(j->rows, p->scales + r, 1)) make_one_nan(x, n);
        j->rows->from_float(dst, p->plain.dtype, x, n);
      } else {
        j->rows->widen(dst, p->plain.dtype, q, n);
      }
    }
  }
}

static void unpack_across(void *context, int64_t index, int32_t slot) {
  (void)slot;
  pack_run *j = context;
  const int4mm_pack_job *p = j->pack;
  piece s = piece_at(&j->pieces, index);
  int8_t q[8][BLOCK];
  float x[BLOCK];
  for (int64_t w = s.r0; w < s.r1; w++) {
    int64_t rows = int4mm_min64(8, p->plain.rows - 8 * w);
    for (int64_t c = s.c0; c < s.c1; c += BLOCK) {
      int64_t n = int4mm_min64(BLOCK, s.c1 - c);
      bool nan = p->scales && may_give_nan(j->rows, p->scales + c, n);
      j->rows->unpack_across(q[0], BLOCK, at(&p->packed, w, c), n, p->xor_mask);
      for (int64_t i = 0; i < rows; i++) {
        void *dst = at(&p->plain, 8 * w + i, c);
        if (p->scales) {
          j->rows->dequantize_columns(x, q[i], p->scales + c, n);
          if (nan) make_one_nan(x, n);
          j->rows->from_float(dst, p->plain.dtype, x, n);
        } else {
          j->rows->widen(dst, p->plain.dtype, q[i], n);
        }
      }
    }
  }
}

/* n values of int8 from (r, c) on. */
static void dequantize_bytes(const pack_run *j, int64_t r, int64_t c, int64_t n) {
  const int4mm_pack_job *p = j->pack;
  const float *scales = p->scales + (p->dim == 1 ? r : c);
  float x[BLOCK];
  if (p->dim == 1) {
    j->rows->dequantize(x, at(&p->packed, r, c), *scales, n);
  } else {
    j->rows->dequantize_columns(x, at(&p->packed, r, c), scales, n);
  }
  if (may_give_nan(j->rows, scales, p->dim == 1 ? 1 : n)) make_one_nan(x, n);
  j->rows->from_float(at(&p->plain, r, c), p->plain.dtype, x, n);
}

static void dequantize_piece(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const pack_run *j = context;
  piece s = piece_at(&j->pieces, index);
  for (int64_t r = s.r0; r < s.r1; r++) {
    for (int64_t c = s.c0; c < s.c1; c += BLOCK) dequantize_bytes(j, r, c, int4mm_min64(BLOCK, s.c1 - c));
  }
}

/* Dequantizing when the job has scales. */
void int4mm_elementwise_unpack(const int4mm_rows *rows, const int4mm_pack_job *p) {
  pack_run j = make_run(p, rows);
  if (p->packed.dtype == INT4MM_INT8) { /* which only has to be dequantized */
    j.pieces = cut(p->plain.rows, p->plain.cols, 1, p->plain.cols);
    int4mm_parallel(j.pieces.threads, j.pieces.count, dequantize_piece, &j);
    return;
  }
  int4mm_parallel(j.pieces.threads, j.pieces.count, p->dim == 1 ? unpack_along : unpack_across, &j);
}

/* ---- random and copy -------------------------------------------------------------------------------------------- */

typedef struct random_run {
  const int4mm_rows *rows;
  const int4mm_random_job *job;
  pieces pieces;
} random_run;

/* n elements from the row-major position `first` on, which may be within a block of the generator. */
static void random_block(const random_run *run, void *dst, uint64_t first, int64_t n) {
  const int4mm_random_job *job = run->job;
  uint32_t words[BLOCK + 8];
  int64_t skip = (int64_t)(first % 4);
  run->rows->random(words, job->seed, first / 4, job->sequence, int4mm_ceil_div(skip + n, 4));
  if (job->dst.dtype == INT4MM_FLOAT32) {
    run->rows->uniform(dst, words + skip, job->low, job->high, n);
  } else {
    memcpy(dst, words + skip, (size_t)n * 4);
  }
}

static void random_piece(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const random_run *run = context;
  const int4mm_matrix *dst = &run->job->dst;
  piece s = piece_at(&run->pieces, index);
  for (int64_t r = s.r0; r < s.r1; r++) {
    for (int64_t c = s.c0; c < s.c1; c += BLOCK) {
      random_block(run, at(dst, r, c), (uint64_t)(r * dst->cols + c), int4mm_min64(BLOCK, s.c1 - c));
    }
  }
}

void int4mm_elementwise_random(const int4mm_rows *rows, const int4mm_random_job *job) {
  random_run run = {rows, job, cut(job->dst.rows, job->dst.cols, 1, job->dst.cols)};
  int4mm_parallel(run.pieces.threads, run.pieces.count, random_piece, &run);
}

typedef struct copy_run {
  const int4mm_rows *rows;
  const int4mm_matrix *dst, *src;
  pieces pieces;
} copy_run;

/* int32 to bfloat16 with one rounding: bits that float32 does not hold are reduced to a sticky bit that it does. */
static uint16_t int_to_bfloat(int32_t value) {
  uint32_t mag = value < 0 ? 0u - (uint32_t)value : (uint32_t)value;
  if (mag >> 24) mag = (mag & ~0xffu) | (uint32_t)((mag & 0xffu) != 0) << 8;
  return int4mm_to_bfloat(value < 0 ? -(float)mag : (float)mag);
}

static void copy_block(const copy_run *run, void *dst, const void *src, int64_t n) {
  int32_t to = run->dst->dtype, from = run->src->dtype;
  float x[BLOCK];
  if (to == from) {
    memcpy(dst, src, (size_t)n * int4mm_dtype_size(to));
  } else if (to == INT4MM_INT32) { /* from int8 */
    for (int64_t i = 0; i < n; i++) ((int32_t *)dst)[i] = ((const int8_t *)src)[i];
  } else if (to == INT4MM_INT8) { /* from int32 */
    for (int64_t i = 0; i < n; i++) ((int8_t *)dst)[i] = (int8_t)((const int32_t *)src)[i];
  } else if (to == INT4MM_BFLOAT16 && from == INT4MM_INT32) {
    for (int64_t i = 0; i < n; i++) ((uint16_t *)dst)[i] = int_to_bfloat(((const int32_t *)src)[i]);
  } else if (to == INT4MM_FLOAT32) {
    run->rows->to_float(dst, src, from, n);
    if (run->rows->absmax(dst, n) > 0x7f800000u) make_one_nan(dst, n);
  } else { /* to 16 bits, which have one NaN */
    run->rows->to_float(x, src, from, n);
    run->rows->from_float(dst, to, x, n);
  }
}

static void copy_piece(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const copy_run *run = context;
  piece s = piece_at(&run->pieces, index);
  for (int64_t r = s.r0; r < s.r1; r++) {
    for (int64_t c = s.c0; c < s.c1; c += BLOCK) {
      copy_block(run, at(run->dst, r, c), at(run->src, r, c), int4mm_min64(BLOCK, s.c1 - c));
    }
  }
}

void int4mm_elementwise_copy(const int4mm_rows *rows, const int4mm_matrix *dst, const int4mm_matrix *src) {
  copy_run run = {rows, dst, src, cut(dst->rows, dst->cols, 1, dst->cols)};
  int4mm_parallel(run.pieces.threads, run.pieces.count, copy_piece, &run);
}

static void range_piece(void *context, int64_t index, int32_t slot) {
  (void)slot;
  search *run = context;
  piece s = piece_at(&run->pieces, index);
  for (int64_t r = s.r0; r < s.r1; r++) {
    const int32_t *row = at(run->src, r, 0);
    uint32_t outside = 0;
    for (int64_t c = s.c0; c < s.c1; c++) outside |= (uint32_t)row[c] + 128u;
    for (int64_t c = s.c0; outside > 255 && c < s.c1; c++) {
      if ((uint32_t)row[c] + 128u <= 255) continue;
      record_bad(&run->bad, r * run->src->cols + c);
      return;
    }
  }
}

int64_t int4mm_cpu_find_outside_int8(const int4mm_matrix *src) {
  return find_bad(NULL, src, range_piece);
}
