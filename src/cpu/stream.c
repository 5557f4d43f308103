/*
 * Small M: the weight is the traffic, so it is read once, as it lies, in long runs, and never packed. Accumulators wait
 * in the first-level cache; a thread has a range of columns, or, where columns are few, a range of K.
 */
#include <string.h>

#include "gemm.h"

enum {
  SLICE_K8 = 4096,     /* words of K whose expanded A is kept at a time */
  ACC_BYTES = 16 << 10 /* of accumulators that a thread works on */
};

typedef struct stream_run {
  const int4mm_kernels *k;
  const int4mm_problem *p;
  int64_t columns, column_parts; /* of a piece */
  int64_t k8, k_parts;
  int32_t threads;
  int32_t *sums; /* [k_parts][M][N rounded up to panels] */
  uint32_t *a;   /* expanded: [threads][M][2 * SLICE_K8], or [M][2 * K/8] for all when it fits */
  int32_t *row;  /* sums of A's rows, when expanded once for all */
  bool shared;
  int64_t ld;
} stream_run;

/* The last columns of a raw weight that do not fill a vector, copied into one: words of b beyond N are not read. */
static void stream_tail(const stream_run *s, const uint32_t *a, int64_t lda, const uint32_t *b, int64_t ldb,
                        int64_t columns, int64_t k8, int32_t *acc) {
  enum { DEPTH = 32 };
  uint32_t words[DEPTH * 16];
  int64_t width = s->k->stream_width;
  for (int64_t j = 0; j < k8; j += DEPTH) {
    int64_t depth = int4mm_min64(DEPTH, k8 - j);
    for (int64_t i = 0; i < depth; i++) {
      const uint32_t *row = b + (j + i) * ldb;
      for (int64_t c = 0; c < width; c++) words[i * width + c] = c < columns ? row[c] : 0;
    }
    s->k->stream(s->p->M, width, depth, a + 2 * j, lda, words, width, s->p->flip_b, acc, s->ld);
  }
}

/* acc += A[:, slice] * B[slice, n .. n + columns - 1]. */
static void stream_columns(const stream_run *s, const uint32_t *a, int64_t lda, int64_t j, int64_t k8, int64_t n,
                           int64_t columns, int32_t *acc) {
  const int4mm_problem *p = s->p;
  if (p->b_panels) {
    for (int64_t c = 0; c < columns; c += INT4MM_PANEL) { /* a panel's padding is there to be read */
      s->k->stream(p->M, INT4MM_PANEL, k8, a, lda, int4mm_b_word(p, j, n + c), INT4MM_PANEL, p->flip_b, acc + c, s->ld);
    }
    return;
  }
  const uint32_t *b = p->b + j * p->ldb + n;
  int64_t whole = columns / s->k->stream_width * s->k->stream_width, width;
  for (int64_t c = 0; c < whole; c += width) {
    width = int4mm_min64(whole - c, ACC_BYTES / (4 * p->M) / INT4MM_PANEL * INT4MM_PANEL);
    s->k->stream(p->M, width, k8, a, lda, b + c, p->ldb, p->flip_b, acc + c, s->ld);
  }
  if (whole < columns) stream_tail(s, a, lda, b + whole, p->ldb, columns - whole, k8, acc + whole);
}

static void store_columns(const stream_run *s, int64_t n, int64_t columns) {
  s->k->store(s->p, 0, n, s->p->M, columns, s->sums + n, s->ld);
}

static void piece(void *context, int64_t index, int32_t slot) {
  const stream_run *s = context;
  const int4mm_problem *p = s->p;
  int64_t part = index / s->column_parts, n = index % s->column_parts * s->columns;
  int64_t columns = int4mm_min64(s->columns, p->N - n);
  int64_t j0 = part * s->k8, j1 = int4mm_min64(j0 + s->k8, p->K / 8);
  int32_t *acc = s->sums + part * p->M * s->ld + n;
  int64_t padded = int4mm_ceil_div(columns, INT4MM_PANEL) * INT4MM_PANEL;
  for (int64_t m = 0; m < p->M; m++) memset(acc + m * s->ld, 0, (size_t)padded * 4);
  for (int64_t j = j0; j < j1; j += SLICE_K8) {
    int64_t k8 = int4mm_min64(SLICE_K8, j1 - j), lda = 2 * SLICE_K8;
    uint32_t *a = s->a + slot * p->M * lda;
    int32_t sums[16];
    if (s->shared) {
      lda = 2 * (p->K / 8);
      a = s->a + 2 * j;
    }
    for (int64_t m = 0; m < p->M; m++) {
      sums[m] = s->shared ? (j == 0 ? s->row[m] : 0) : s->k->expand(a + m * lda, p->a + m * p->lda + j, k8, p->flip_a);
    }
    if (s->k->offset) {
      for (int64_t m = 0; m < p->M; m++) {
        for (int64_t c = 0; c < padded; c++) acc[m * s->ld + c] -= s->k->offset * sums[m];
      }
    }
    stream_columns(s, a, lda, j, k8, n, columns, acc);
  }
  if (s->k_parts == 1) store_columns(s, n, columns);
}

static void add_parts(const stream_run *s) {
  int64_t size = s->p->M * s->ld;
  for (int64_t part = 1; part < s->k_parts; part++) {
    for (int64_t i = 0; i < size; i++) s->sums[i] += s->sums[part * size + i];
  }
  store_columns(s, 0, s->p->N);
}

/* Columns are shared out in whole panels; K too when there are fewer panels than threads and K is long. */
static void choose_parts(stream_run *s) {
  const int4mm_problem *p = s->p;
  int64_t panels = int4mm_ceil_div(p->N, INT4MM_PANEL), k8 = int4mm_max64(1, p->K / 8);
  int64_t parts = int4mm_min64(panels, s->threads);
  s->columns = int4mm_ceil_div(panels, parts) * INT4MM_PANEL;
  s->column_parts = int4mm_ceil_div(panels * INT4MM_PANEL, s->columns);
  s->k_parts = int4mm_max64(1, int4mm_min64(s->threads / s->column_parts, k8 / 512));
  s->k8 = int4mm_ceil_div(k8, s->k_parts);
  s->k_parts = int4mm_ceil_div(k8, s->k8);
}

int32_t int4mm_gemm_stream(const int4mm_kernels *kernels, const int4mm_problem *p) {
  stream_run s = {.k = kernels, .p = p};
  int64_t k8 = p->K / 8;
  s.threads = int4mm_threads_for(p->N * k8, 1 << 15);
  choose_parts(&s);
  s.ld = int4mm_ceil_div(p->N, INT4MM_PANEL) * INT4MM_PANEL;
  s.shared = k8 <= SLICE_K8;
  int64_t sums = 4 * s.k_parts * p->M * s.ld;
  int64_t a = 8 * p->M * (s.shared ? k8 : (int64_t)SLICE_K8 * s.threads);
  char *memory = int4mm_workspace_take(sums + a);
  if (!memory) return INT4MM_ERR_MEMORY;
  s.sums = (int32_t *)memory;
  s.a = (uint32_t *)(memory + sums);
  int32_t row[16] = {0};
  s.row = row;
  for (int64_t m = 0; s.shared && m < p->M; m++) {
    row[m] = kernels->expand(s.a + 2 * m * k8, p->a + m * p->lda, k8, p->flip_a);
  }
  int4mm_parallel(s.threads, s.column_parts * s.k_parts, piece, &s);
  if (s.k_parts > 1) add_parts(&s);
  int4mm_workspace_give(memory);
  return INT4MM_OK;
}
