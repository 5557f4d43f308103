/*
 * The entry points of the CPU backend: choose the table of an instruction set once, and forward to it.
 */
#define _GNU_SOURCE /* secure_getenv */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"

/* Best first. */
static const int4mm_cpu_table *const tables[] = {
#if defined(__x86_64__)
    &int4mm_cpu_avx512vnni, &int4mm_cpu_avxvnni, &int4mm_cpu_avx512vl_vnni, &int4mm_cpu_avx2,
#elif defined(__aarch64__)
    &int4mm_cpu_neon_i8mm,
    &int4mm_cpu_neon_dot,
#endif
    &int4mm_cpu_scalar,
};
enum { TABLES = sizeof tables / sizeof *tables };

static _Atomic(const int4mm_cpu_table *) current; /* NULL: not chosen yet */

static const int4mm_cpu_table *find(const char *name) {
  for (int i = 0; i < TABLES; i++) {
    if (!strcmp(tables[i]->name, name)) return tables[i];
  }
  return NULL;
}

/* "avx512vnni", "avxvnni", ...: every table's name. */
static void list_names(char *text, size_t size) {
  size_t used = 0;
  for (int i = 0; i < TABLES && used < size; i++) {
    used += (size_t)snprintf(text + used, size - used, "%s\"%s\"", i ? ", " : "", tables[i]->name);
  }
}

/* INT4MM_CPU where it names one that runs here, else NULL. */
static const int4mm_cpu_table *named(void) {
  const char *name = secure_getenv("INT4MM_CPU");
  const int4mm_cpu_table *table = name ? find(name) : NULL;
  return table && table->supported() ? table : NULL;
}

/* That, else the best. Two threads that come here at once agree. */
static const int4mm_cpu_table *choose(void) {
  const int4mm_cpu_table *table = named();
  if (table) return table;
  for (int i = 0; i < TABLES; i++) {
    if (tables[i]->supported()) return tables[i];
  }
  return &int4mm_cpu_scalar;
}

const int4mm_cpu_table *int4mm_cpu_current(void) {
  const int4mm_cpu_table *table = atomic_load_explicit(&current, memory_order_acquire);
  if (!table) {
    table = choose();
    atomic_store_explicit(&current, table, memory_order_release);
  }
  return table;
}

const char *int4mm_cpu_isa(void) {
  return int4mm_cpu_current()->name;
}

const char *int4mm_cpu_isa_at(int32_t index) {
  if (index < 0) return NULL;
  for (int i = 0; i < TABLES; i++) {
    if (tables[i]->supported() && index-- == 0) return tables[i]->name;
  }
  return NULL;
}

int32_t int4mm_set_cpu_isa(const char *name) {
  const int4mm_cpu_table *table = name ? find(name) : choose();
  if (!table) {
    char known[128] = "";
    list_names(known, sizeof known);
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "name is \"%s\", expected one of %s", name, known);
  }
  if (!table->supported()) {
    return int4mm_fail(INT4MM_ERR_UNAVAILABLE, "this CPU or operating system does not support \"%s\"", name);
  }
  atomic_store_explicit(&current, table, memory_order_release);
  return INT4MM_OK;
}

/* ---- the environment -------------------------------------------------------------------------------------------- */

static char warnings[512];

static void check_environment(void) {
  const char *name = secure_getenv("INT4MM_CPU"), *threads = int4mm_threads_warning();
  size_t used = 0;
  if (threads) used = (size_t)snprintf(warnings, sizeof warnings, "%s", threads);
  if (!name || !*name || named()) return;
  char known[128] = "";
  list_names(known, sizeof known);
  snprintf(warnings + used, sizeof warnings - used, "%sINT4MM_CPU is \"%.40s\", %s%s; the best is used",
           used ? "\n" : "", name, find(name) ? "which this CPU or operating system lacks" : "expected one of ",
           find(name) ? "" : known);
}

const char *int4mm_warning(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, check_environment);
  return *warnings ? warnings : NULL;
}

/* ---- the calls of backend.h ------------------------------------------------------------------------------------- */

int32_t int4mm_cpu_matmul(const int4mm_problem *problem) {
  if (problem->M == 0 || problem->N == 0) return INT4MM_OK;
  const int4mm_cpu_table *table = int4mm_cpu_current();
  return table->matmul(table->kernels, problem);
}

int32_t int4mm_cpu_pack(const int4mm_pack_job *job, int64_t *bad) {
  return int4mm_elementwise_pack(int4mm_cpu_current()->rows, job, bad);
}

int32_t int4mm_cpu_quantize(const int4mm_pack_job *job, int64_t *bad) {
  return int4mm_elementwise_quantize(int4mm_cpu_current()->rows, job, bad);
}

void int4mm_cpu_rotate(const int4mm_rotate_job *job) {
  int4mm_elementwise_rotate(int4mm_cpu_current()->rows, job);
}

void int4mm_cpu_unpack(const int4mm_pack_job *job) {
  int4mm_pack_job plain = *job;
  plain.scales = NULL;
  int4mm_elementwise_unpack(int4mm_cpu_current()->rows, &plain);
}

void int4mm_cpu_dequantize(const int4mm_pack_job *job) {
  int4mm_elementwise_unpack(int4mm_cpu_current()->rows, job);
}

int32_t int4mm_cpu_quantize_groups(const int4mm_group_job *job) {
  return int4mm_elementwise_quantize_groups(int4mm_cpu_current()->rows, job);
}

void int4mm_cpu_dequantize_groups(const int4mm_group_job *job) {
  int4mm_elementwise_dequantize_groups(int4mm_cpu_current()->rows, job);
}

int64_t int4mm_cpu_find_not_finite(const int4mm_matrix *src) {
  return int4mm_elementwise_find_not_finite(int4mm_cpu_current()->rows, src);
}

void int4mm_cpu_random(const int4mm_random_job *job) {
  int4mm_elementwise_random(int4mm_cpu_current()->rows, job);
}

void int4mm_cpu_map(const int4mm_map_job *job) {
  int4mm_elementwise_map(int4mm_cpu_current()->rows, job);
}

void int4mm_cpu_rowwise(const int4mm_rowwise_job *job) {
  int4mm_elementwise_rowwise(int4mm_cpu_current()->rows, job);
}

void int4mm_cpu_copy(const int4mm_matrix *dst, const int4mm_matrix *src) {
  int4mm_elementwise_copy(int4mm_cpu_current()->rows, dst, src);
}

/* ---- prepacked weights ------------------------------------------------------------------------------------------ */

int64_t int4mm_cpu_panel_words(int64_t k8, int64_t N) {
  return int4mm_ceil_div(N, INT4MM_PANEL) * INT4MM_PANEL * k8;
}

typedef struct prepack_run {
  uint32_t *panels;
  const int4mm_operand *b;
  int4mm_transpose_words *transpose;
  int64_t k8, N;
} prepack_run;

static void prepack_panel(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const prepack_run *run = context;
  const int4mm_operand *b = run->b;
  int64_t n0 = index * INT4MM_PANEL, columns = int4mm_min64(INT4MM_PANEL, run->N - n0);
  uint32_t *panel = run->panels + index * run->k8 * INT4MM_PANEL;
  if (int4mm_is_k_major(b)) {
    run->transpose(panel, INT4MM_PANEL, b->words + n0 * b->stride, b->stride, columns, run->k8, b->xor_mask);
    return;
  }
  for (int64_t j = 0; j < run->k8; j++, panel += INT4MM_PANEL) {
    const uint32_t *row = b->words + j * b->stride + n0;
    for (int64_t i = 0; i < columns; i++) panel[i] = row[i] ^ b->xor_mask;
    memset(panel + columns, 0, (size_t)(INT4MM_PANEL - columns) * 4);
  }
}

void int4mm_cpu_prepack(uint32_t *panels, const int4mm_operand *b) {
  bool k_major = int4mm_is_k_major(b);
  prepack_run run = {panels, b, int4mm_cpu_current()->transpose, k_major ? b->cols : b->rows,
                     k_major ? b->rows : b->cols};
  if (!run.k8) return; /* empty panels, of which there may be many */
  int64_t count = int4mm_ceil_div(run.N, INT4MM_PANEL);
  int4mm_parallel(int4mm_threads_for(run.k8 * run.N, 1 << 16), count, prepack_panel, &run);
}

void int4mm_cpu_plan(const int4mm_problem *problem, int4mm_plan *plan) {
  const int4mm_cpu_table *table = int4mm_cpu_current();
  memset(plan, 0, sizeof *plan);
  plan->device = INT4MM_CPU;
  snprintf(plan->name, sizeof plan->name, "%s", table->name);
  table->plan(table->kernels, problem, plan);
}
