/*
 * The skinny driver, for few rows. Reading the weight takes most of the time, so it is read once, in its own layout, in
 * long sequential runs, and never packed: along the columns, or, where it is K-major, as dot products along K.
 * Accumulators stay in the second-level cache. Threads divide the columns, and K too where there are too few columns.
 */
#include <string.h>

#include "cpu/gemm/gemm.h"

enum {
  MAX_ROWS = 64,
  SLICE_K8 = 4096,       /* words of K of an expanded slice of A */
  ACC_BYTES = 128 << 10, /* of a thread's accumulators */
  GROUP_SUMS = 2048,     /* of a thread, where there are totals as well: the first-level cache holds both */
  DOT_COLUMNS = 128,     /* of a strip where groups are made by dot products: scales for all of its groups are loaded */
  DOT_PIECES = 8,        /* of a thread with dot products: threads that take turns along B read a tenth more */
  DOT_PANELS = 8,        /* of such a piece, at least */
  PART_K8 = 64,          /* words of K of a group that are computed for all columns before the next ones */
  PAGE = 4096,
  ROW_PAD = 16 /* dwords after each row of scratch: rows a power of two apart would map to the same cache sets */
};

/* Which slice of A a thread's buffer holds. Each thread expands its own: that is faster than reading another core's. */
typedef struct slice {
  int64_t first;              /* word of K; -1: none */
  int32_t row_sums[MAX_ROWS]; /* of the slice */
} slice;

typedef struct skinny_run {
  const int4mm_kernels *k;
  const int4mm_problem *p;
  int32_t threads;
  int64_t columns, column_parts; /* columns of a piece; pieces along N */
  int64_t k8, k_parts;           /* words of K of a piece; pieces along K */
  int64_t width;                 /* columns of a thread's accumulators */
  uint32_t *a;                   /* [threads][M][lda]: expanded slices of A */
  int64_t lda;
  slice *slices;     /* [threads]: which slices these are */
  bool in_groups;    /* the product is made group by group: a slice is whole groups, or lies inside of one */
  bool dot;          /* by dot products along K */
  int64_t group8;    /* words of K to a group */
  int64_t slice8;    /* words of K in a slice */
  int64_t pieces;    /* parts of groups in a slice */
  int32_t *row_sums; /* [threads][pieces][M] then */
  int32_t *totals;   /* [threads]: scales, factors and zero points [3][width], with `dot` of each piece of a slice,
                        totals [M][width + ROW_PAD] */
  int64_t totals_size;
  int32_t *acc; /* [threads][acc_size], in each [M][width + ROW_PAD] */
  int64_t acc_size;
  int32_t *sums; /* [k_parts][M][ld]: partial sums, where K is split */
  int64_t ld;
} skinny_run;

/* The last columns of a raw weight, fewer than skinny_columns: copied to a buffer, since reading beyond N would be out
 * of bounds. */
static void skinny_tail(const skinny_run *s, const uint32_t *a, const uint32_t *b, int64_t columns, int64_t k8,
                        int32_t *acc) {
  enum { DEPTH = 32 };
  uint32_t words[DEPTH * 16];
  int64_t wide = s->k->skinny_columns;
  for (int64_t j = 0; j < k8; j += DEPTH) {
    int64_t depth = int4mm_min64(DEPTH, k8 - j);
    for (int64_t i = 0; i < depth; i++) {
      const uint32_t *row = b + (j + i) * s->p->b.stride;
      for (int64_t c = 0; c < wide; c++) words[i * wide + c] = c < columns ? row[c] : 0;
    }
    s->k->skinny(s->p->M, wide, depth, a + 2 * j, s->lda, words, wide, s->p->b.xor_mask, acc, s->width + ROW_PAD);
  }
}

/* acc += A[:, slice] * (B + offset)[slice, n .. n + columns - 1]; the slice is k8 words of K from word j on. */
static void multiply_columns(const skinny_run *s, const uint32_t *a, int64_t j, int64_t k8, int64_t n, int64_t columns,
                             int32_t *acc) {
  const int4mm_problem *p = s->p;
  int64_t ldacc = s->width + ROW_PAD;
  if (int4mm_is_panels(&p->b)) {
    for (int64_t c = 0; c < columns; c += INT4MM_PANEL) {
      const uint32_t *b = int4mm_b_word(p, j, n + c);
      s->k->skinny_panel(p->M, k8, a, s->lda, b, acc + c, ldacc);
    }
    return;
  }
  const uint32_t *b = int4mm_b_word(p, j, n);
  if (s->dot) {
    s->k->dot(p->M, columns, k8, a, s->lda, b, p->b.stride, p->b.xor_mask, acc, ldacc);
    return;
  }
  int64_t whole = columns / s->k->skinny_columns * s->k->skinny_columns;
  if (whole > 0) s->k->skinny(p->M, whole, k8, a, s->lda, b, p->b.stride, p->b.xor_mask, acc, ldacc);
  if (whole < columns) skinny_tail(s, a, b + whole, columns - whole, k8, acc + whole);
}

/* Row m of A, words j .. j + k8 - 1 of K, expanded: the sum of its values. */
static int32_t expand(const skinny_run *s, uint32_t *dwords, int64_t m, int64_t j, int64_t k8) {
  const int4mm_operand *a = &s->p->a;
  int64_t run = s->dot ? s->k->dot_words : 1;
  if (a->dtype == INT4MM_INT8) {
    const int8_t *row = (const int8_t *)a->data + m * a->stride + 8 * j;
    return int4mm_expand_int8(dwords, row, int4mm_min64(8 * k8, s->p->K - 8 * j), run);
  }
  return s->k->expand(dwords, a->words + m * a->stride + j, k8, a->xor_mask, run);
}

/* The sum of the values of words j .. j + k8 - 1 of an expanded row in runs of `run` words. */
static int32_t sum_of_words(const uint32_t *row, int64_t j, int64_t k8, int64_t run) {
  int64_t sum = -8 * 128 * k8; /* bytes + 128 are added, two at a time */
  for (int64_t i = j; i < j + k8; i++) {
    const uint32_t *even = row + 2 * i - i % run;
    uint32_t x = even[0] ^ 0x80808080u, y = even[run] ^ 0x80808080u;
    uint32_t pairs = (x & 0x00ff00ff) + (x >> 8 & 0x00ff00ff) + (y & 0x00ff00ff) + (y >> 8 & 0x00ff00ff);
    sum += (pairs & 0xffff) + (pairs >> 16);
  }
  return (int32_t)sum;
}

/* The slice of A from word j on, expanded, and the sums of its rows; with groups in each of them. */
static const uint32_t *expand_slice(const skinny_run *s, int64_t j, int64_t k8, int32_t slot) {
  const int4mm_problem *p = s->p;
  uint32_t *a = s->a + slot * p->M * s->lda;
  slice *local = &s->slices[slot];
  if (local->first == j) return a;
  local->first = j;
  for (int64_t m = 0; m < p->M; m++) {
    uint32_t *row = a + m * s->lda;
    if (!s->in_groups) {
      local->row_sums[m] = expand(s, row, m, j, k8);
      continue;
    }
    int32_t *sums = s->row_sums + slot * s->pieces * p->M + m;
    if (s->dot) (void)expand(s, row, m, j, k8);
    for (int64_t i = 0; s->dot && i < k8; i += s->group8, sums += p->M) {
      *sums = sum_of_words(row, i, int4mm_min64(s->group8, k8 - i), s->k->dot_words);
    }
    for (int64_t i = 0; !s->dot && i < k8; i += s->group8, sums += p->M) {
      *sums = expand(s, row + 2 * i, m, j + i, int4mm_min64(s->group8, k8 - i));
    }
  }
  return a;
}

/* Words of K in the slice from word j on. */
static int64_t words_of_slice(const skinny_run *s, int64_t j, int64_t j1) {
  int64_t k8 = int4mm_min64(s->slice8, j1 - j);
  return s->group8 > s->slice8 ? int4mm_min64(k8, s->group8 - j % s->group8) : k8;
}

/* acc = A * B for columns n .. n + columns - 1 over words j0 .. j1 - 1 of K. */
static void run_columns(const skinny_run *s, int64_t n, int64_t columns, int64_t j0, int64_t j1, int32_t slot,
                        int32_t *acc) {
  int64_t j = j0;
  do { /* once where K is 0: acc is 0 */
    int64_t k8 = int4mm_min64(s->slice8, j1 - j);
    const uint32_t *a = expand_slice(s, j, k8, slot);
    for (int64_t m = 0; m < s->p->M; m++) {
      int32_t acc_init = -s->k->offset * s->slices[slot].row_sums[m], *row = acc + m * (s->width + ROW_PAD);
      for (int64_t c = 0; c < s->width; c++) row[c] = j > j0 ? row[c] + acc_init : acc_init;
    }
    if (k8 > 0) multiply_columns(s, a, j, k8, n, columns, acc);
    j += k8;
  } while (j < j1);
}

/* One group's scales, factors and zero points for columns from n on, where they are or in `buffer`. */
static int4mm_group_columns load_columns(const skinny_run *s, int64_t group, int64_t n, int64_t columns,
                                         int32_t *buffer) {
  const int4mm_operand *b = &s->p->b;
  int32_t *factors = buffer + s->width, *zeros = factors + s->width;
  int64_t wide = int4mm_round_up(columns, INT4MM_PANEL);
  int4mm_load_group(s->k, s->p, group, n, columns, wide, (float *)(void *)buffer, factors, zeros);
  return (int4mm_group_columns){.scales = b->group_scales.data ? (const float *)(const void *)buffer : NULL,
                                .factors = b->factors.data ? factors : NULL,
                                .zeros = b->zeros.data ? zeros : NULL};
}

/* At most a panel of columns of a raw weight: its last ones. */
static void copied_words(const skinny_run *s, uint32_t *words, int64_t j, int64_t n, int64_t columns, int64_t k8) {
  const int4mm_operand *b = &s->p->b;
  const uint32_t *src = int4mm_b_word(s->p, j, n);
  for (int64_t i = 0; i < k8; i++, words += INT4MM_PANEL, src += b->stride) {
    for (int64_t c = 0; c < INT4MM_PANEL; c++) words[c] = c < columns ? src[c] ^ b->xor_mask : 0;
  }
}

/* Some words of a group, from word j of K on, and columns, from n on. */
typedef struct group_part {
  int4mm_skinny_group rows; /* its pointers are to column n */
  int64_t j, n, columns;
} group_part;

/* `columns` columns of a part from column c on. */
static void multiply_rows(const skinny_run *s, const group_part *part, int64_t c, int64_t columns,
                          const uint32_t *words, int64_t ld, uint32_t xor_mask) {
  int4mm_skinny_group here = part->rows;
  here.acc += c, here.totals += c;
  if (here.columns.scales) here.columns.scales += c;
  if (here.columns.factors) here.columns.factors += c;
  if (here.columns.zeros) here.columns.zeros += c;
  s->k->skinny_group(&here, columns, words, ld, xor_mask);
}

static void multiply_part(const skinny_run *s, const group_part *part) {
  const int4mm_operand *b = &s->p->b;
  int64_t whole = b->layout == INT4MM_MN_MAJOR ? part->columns / s->k->skinny_columns * s->k->skinny_columns : 0;
  uint32_t buffer[PART_K8 * INT4MM_PANEL];
  if (whole) multiply_rows(s, part, 0, whole, int4mm_b_word(s->p, part->j, part->n), b->stride, b->xor_mask);
  for (int64_t c = whole; c < part->columns; c += INT4MM_PANEL) {
    int64_t columns = int4mm_min64(INT4MM_PANEL, part->columns - c);
    if (int4mm_is_panels(b)) {
      const uint32_t *words = int4mm_b_word(s->p, part->j, part->n + c);
      multiply_rows(s, part, c, INT4MM_PANEL, words, INT4MM_PANEL, 0);
    } else {
      copied_words(s, buffer, part->j, part->n + c, columns, part->rows.k8);
      multiply_rows(s, part, c, int4mm_round_up(columns, s->k->skinny_columns), buffer, INT4MM_PANEL, 0);
    }
  }
}

/* A group, or what a slice has of it: k8 words of K from word j on, in parts. */
static void multiply_group(const skinny_run *s, group_part *part, int64_t k8) {
  const uint32_t *a = part->rows.a;
  int64_t j = part->j, here;
  for (int64_t i = 0; i < k8; i += here) {
    here = int4mm_min64(PART_K8, k8 - i);
    part->j = j + i, part->rows.a = a + 2 * i, part->rows.k8 = here;
    part->rows.first = i == 0, part->rows.last = i + here == k8;
    multiply_part(s, part);
  }
}

/* The scales, factors and zero points of the groups of a slice, of k8 words from word j on: where they are, or in
 * `buffer`, [3][pieces][width]. */
static int4mm_group_columns load_slice(const skinny_run *s, int64_t j, int64_t k8, int64_t n, int64_t columns,
                                       int32_t *buffer) {
  const int4mm_operand *b = &s->p->b;
  const int4mm_matrix *scales = &b->group_scales;
  bool alone = !b->factors.data && !b->zeros.data, whole = columns % s->k->skinny_columns == 0;
  if (scales->data && scales->dtype == INT4MM_FLOAT32 && alone && whole) {
    const float *first = (const float *)scales->data + j / s->group8 * scales->stride + n;
    return (int4mm_group_columns){.scales = first, .ld = scales->stride};
  }
  int64_t size = s->pieces * s->width;
  int32_t *at = buffer;
  for (int64_t i = 0; i < k8; i += s->group8, at += s->width) {
    int4mm_load_group(s->k, s->p, (j + i) / s->group8, n, columns, s->width, (float *)(void *)at, at + size,
                      at + 2 * size);
  }
  return (int4mm_group_columns){.scales = scales->data ? (const float *)(const void *)buffer : NULL,
                                .factors = b->factors.data ? buffer + size : NULL,
                                .zeros = b->zeros.data ? buffer + 2 * size : NULL,
                                .ld = s->width};
}

/* The totals of columns n .. n + columns - 1 over all of K, group by group, by dot products. */
static int32_t *run_dot_groups(const skinny_run *s, int64_t n, int64_t columns, int32_t slot) {
  const int4mm_problem *p = s->p;
  const int4mm_operand *b = &p->b;
  int64_t k8 = int4mm_words_of_k(p);
  int32_t *scales = s->totals + slot * s->totals_size, *totals = scales + 3 * s->pieces * s->width;
  int4mm_dot_groups job = {.rows = p->M, .columns = columns, .group8 = s->group8, .lda = s->lda, .ldb = b->stride};
  job.xor_mask = b->xor_mask, job.offset = s->k->offset, job.totals = totals, job.ld = s->width + ROW_PAD;
  memset(totals, 0, (size_t)(p->M * job.ld) * 4);
  for (int64_t j = 0; j < k8; j += job.k8) {
    job.k8 = int4mm_min64(s->slice8, k8 - j);
    job.a = expand_slice(s, j, job.k8, slot), job.b = int4mm_b_word(p, j, n);
    job.row_sums = s->row_sums + slot * s->pieces * p->M;
    job.groups = load_slice(s, j, job.k8, n, columns, scales);
    s->k->dot_groups(&job);
  }
  return totals;
}

/* The totals of columns n .. n + columns - 1 over all of K, group by group. */
static int32_t *run_groups(const skinny_run *s, int64_t n, int64_t columns, int32_t slot, int32_t *acc) {
  const int4mm_problem *p = s->p;
  int64_t k8 = int4mm_words_of_k(p), ld = s->width + ROW_PAD;
  int32_t *scales = s->totals + slot * s->totals_size, *totals = scales + 3 * s->width, acc_init[MAX_ROWS];
  group_part part = {.n = n, .columns = columns};
  part.rows = (int4mm_skinny_group){.rows = p->M, .lda = s->lda, .acc_init = acc_init, .acc = acc};
  part.rows.totals = totals, part.rows.ld = ld;
  memset(totals, 0, (size_t)(p->M * ld) * 4);
  for (int64_t j = 0, here; j < k8; j += here) {
    here = words_of_slice(s, j, k8);
    const uint32_t *a = expand_slice(s, j, here, slot);
    part.rows.row_sums = s->row_sums + slot * s->pieces * p->M;
    for (int64_t i = 0; i < here; i += s->group8, part.rows.row_sums += p->M) {
      for (int64_t m = 0; m < p->M; m++) acc_init[m] = -s->k->offset * part.rows.row_sums[m];
      part.rows.columns = load_columns(s, (j + i) / s->group8, n, columns, scales);
      part.j = j + i, part.rows.a = a + 2 * i;
      multiply_group(s, &part, int4mm_min64(s->group8, here - i));
    }
  }
  return totals;
}

/* A thread's accumulators for columns from n on, placed half a page, modulo a page, from the words of B that are read
 * with them: a load whose address has the last 12 bits of a recent store's is delayed (4K aliasing). */
static int32_t *acc_of_thread(const skinny_run *s, int64_t n, int32_t slot) {
  int32_t *acc = s->acc + slot * s->acc_size;
  intptr_t distance = (intptr_t)s->p->b.words + 4 * n - (intptr_t)acc + PAGE / 2 - 32 * s->p->M;
  return acc + (distance & (PAGE - 1)) / 64 * 16;
}

static void piece(void *context, int64_t index, int32_t slot) {
  const skinny_run *s = context;
  const int4mm_problem *p = s->p;
  int64_t k_part = index / s->column_parts, n0 = index % s->column_parts * s->columns;
  int64_t n1 = int4mm_min64(n0 + s->columns, p->N);
  int64_t j0 = k_part * s->k8, j1 = int4mm_min64(j0 + s->k8, int4mm_words_of_k(p)), ldacc = s->width + ROW_PAD;
  int32_t *acc = acc_of_thread(s, n0, slot);
  for (int64_t n = n0; n < n1; n += s->width) {
    int64_t columns = int4mm_min64(s->width, n1 - n);
    if (s->in_groups) {
      const int32_t *totals = s->dot ? run_dot_groups(s, n, columns, slot) : run_groups(s, n, columns, slot, acc);
      s->k->epilogue(p, 0, n, p->M, columns, totals, ldacc);
      continue;
    }
    run_columns(s, n, columns, j0, j1, slot, acc);
    if (s->k_parts == 1) {
      s->k->epilogue(p, 0, n, p->M, columns, acc, ldacc);
      continue;
    }
    for (int64_t m = 0; m < p->M; m++) {
      int32_t *sums = s->sums + (k_part * p->M + m) * s->ld + n;
      for (int64_t c = 0; c < columns; c++) sums[c] = acc[m * ldacc + c];
    }
  }
}

/* Reduces the partial sums of K. Run through int4mm_parallel, since the epilogue needs the default floating-point
 * environment. */
static void add_parts(void *context, int64_t index, int32_t slot) {
  (void)index, (void)slot;
  const skinny_run *s = context;
  const int4mm_problem *p = s->p;
  for (int64_t part = 1; part < s->k_parts; part++) {
    for (int64_t m = 0; m < p->M; m++) {
      int32_t *sums = s->sums + m * s->ld;
      const int32_t *partial = s->sums + (part * p->M + m) * s->ld;
      for (int64_t n = 0; n < p->N; n++) sums[n] += partial[n];
    }
  }
  s->k->epilogue(p, 0, 0, p->M, p->N, s->sums, s->ld);
}

/* Divides the columns, in whole panels, among the threads, and a long K where there are fewer panels than threads. */
static void choose_parts(skinny_run *s) {
  const int4mm_problem *p = s->p;
  int64_t panels = int4mm_ceil_div(p->N, INT4MM_PANEL), k8 = int4mm_max64(1, int4mm_words_of_k(p));
  int64_t parts = int4mm_min64(panels, s->threads);
  if (s->dot) parts = int4mm_max64(parts, int4mm_min64(panels / DOT_PANELS, DOT_PIECES * (int64_t)s->threads));
  s->columns = int4mm_ceil_div(panels, parts) * INT4MM_PANEL;
  s->column_parts = int4mm_ceil_div(panels * INT4MM_PANEL, s->columns);
  s->k_parts = s->in_groups ? 1 : int4mm_max64(1, int4mm_min64(s->threads / s->column_parts, k8 / 512));
  s->k8 = int4mm_ceil_div(k8, s->k_parts);
  s->k_parts = int4mm_ceil_div(k8, s->k8);
  int64_t sums = s->in_groups ? GROUP_SUMS : ACC_BYTES / 4;
  if (s->in_groups && s->dot) sums = DOT_COLUMNS * p->M;
  s->width = int4mm_min64(s->columns, sums / p->M / INT4MM_PANEL * INT4MM_PANEL);
}

/* Slices of K: whole groups, or parts of one. */
static void choose_slices(skinny_run *s) {
  s->in_groups = int4mm_in_groups(s->k, s->p);
  s->group8 = int4mm_group8(s->p);
  s->dot = int4mm_is_k_major(&s->p->b);
  s->slice8 = s->in_groups && s->group8 < SLICE_K8 ? SLICE_K8 / s->group8 * s->group8 : SLICE_K8;
  s->pieces = int4mm_ceil_div(s->slice8, s->group8);
}

/* Workspace, in the order: expanded A, slices, accumulators, partial sums, sums of rows, totals. */
static bool acquire_workspace(skinny_run *s) {
  const int4mm_problem *p = s->p;
  s->lda = 2 * int4mm_round_up(int4mm_min64(int4mm_words_of_k(p), SLICE_K8), 16) + ROW_PAD; /* whole runs */
  s->ld = int4mm_ceil_div(p->N, INT4MM_PANEL) * INT4MM_PANEL;
  int64_t a = int4mm_round_up(4 * s->threads * p->M * s->lda, 64);
  int64_t slices = int4mm_round_up(s->threads * (int64_t)sizeof(slice), 64);
  s->acc_size = p->M * (s->width + ROW_PAD) + PAGE / 4;
  int64_t acc = 4 * s->threads * s->acc_size;
  int64_t sums = s->k_parts > 1 ? 4 * s->k_parts * p->M * s->ld : 0;
  int64_t row_sums = s->in_groups ? int4mm_round_up(4 * s->threads * s->pieces * p->M, 64) : 0;
  s->totals_size = s->in_groups ? 3 * (s->dot ? s->pieces : 1) * s->width + p->M * (s->width + ROW_PAD) : 0;
  char *memory = int4mm_workspace_acquire(a + slices + acc + sums + row_sums + 4 * s->threads * s->totals_size);
  if (!memory) return false;
  s->a = (uint32_t *)memory;
  s->slices = (slice *)(memory + a);
  s->acc = (int32_t *)(memory + a + slices);
  s->sums = (int32_t *)(memory + a + slices + acc);
  s->row_sums = s->sums + sums / 4;
  s->totals = s->row_sums + row_sums / 4;
  for (int32_t i = 0; i < s->threads; i++) s->slices[i].first = -1;
  return true;
}

int32_t int4mm_gemm_skinny(const int4mm_kernels *kernels, const int4mm_problem *p) {
  skinny_run s = {.k = kernels, .p = p};
  s.threads = int4mm_skinny_threads(p);
  choose_slices(&s);
  choose_parts(&s);
  if (!acquire_workspace(&s)) return INT4MM_ERR_MEMORY;
  int4mm_parallel(s.threads, s.column_parts * s.k_parts, piece, &s);
  if (s.k_parts > 1) int4mm_parallel(1, 1, add_parts, &s);
  int4mm_workspace_release(s.a);
  return INT4MM_OK;
}
