/*
 * Times the CPU backend beside its peers in one run: OpenBLAS (float32) and oneDNN (u8 x s8 with prepacked weights,
 * float32 out), both opened when the program starts and skipped by name where they are missing. Debian's packages:
 * libopenblas-dev libdnnl-dev.
 *
 *   cpu_peers [--json] [--threads 1,2] [--shapes MxKxN,...] [--rounds 7] [--only name,...] [--cpu-time]
 *           [--kinds]
 *
 * --kinds: instead of other instruction sets and Strassen, the product's kinds: int8 and float activations, groups,
 * zero points. The ceiling of those of floats is the rate of float32 fma on registers.
 *
 * --only: contenders with one of these texts in their name. --cpu-time: runs on one thread are timed by its own clock,
 * which stands still while others have the core.
 *
 * Contenders of a shape take turns, so that all of them see the same neighbours on the machine; each figure is the
 * least over the rounds, with their median behind it. GOPS counts a multiplication and an addition as two. The ceiling
 * is the rate of vpdpbusd on registers, measured between the same rounds in 2 ms (the contender `vpdpbusd alone` does
 * as many operations as the product, and shows what the machine leaves of that over its time), and for small M the rate
 * at which the same threads read: as many bytes as the weight has, over and over, or 256 MiB when `cold`, where
 * contenders rotate over weights that are as large together, more than the caches hold.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <inttypes.h>
#include <omp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "int4mm.h"
#include "options.h"

#if __has_include(<dnnl.h>)
#include <dnnl.h>
#define HAVE_DNNL_HEADER 1
#endif

enum { MAX_CONTENDERS = 24, MAX_ROUNDS = 101, MAX_SHAPES = 32, MAX_THREADS = 8 };

static const char *const USAGE = "cpu_peers [--json] [--threads 1,2] [--shapes MxKxN,...] [--rounds 7] "
                                 "[--only name,...] [--cpu-time] [--kinds]";

static void check(int32_t status) {
  if (status) fail(int4mm_strerror(status), int4mm_last_error());
}

static clockid_t watch = CLOCK_MONOTONIC;

static double now(void) {
  struct timespec t;
  clock_gettime(watch, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *allocate(size_t bytes) {
  void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
  if (!p) fail("memory", "none left");
  return p;
}

/* ---- ceilings --------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* 16 independent vpdpbusd, 128 operations each, `times` times. */
__attribute__((target("avx512f,avx512vnni"))) static void dot_products(int64_t times) {
  for (int64_t i = 0; i < times; i++) {
#define DOT(n) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #n "\n\t"
    __asm__ volatile(DOT(0) DOT(1) DOT(2) DOT(3) DOT(4) DOT(5) DOT(6) DOT(7) DOT(8) DOT(9) DOT(10) DOT(11) DOT(12)
                         DOT(13) DOT(14) DOT(15)::
                             : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                               "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
#undef DOT
  }
}

static bool have_dot_products(void) {
  return __builtin_cpu_supports("avx512vnni");
}
#else
static bool have_dot_products(void) {
  return false;
}
static void dot_products(int64_t times) {
  (void)times;
}
#endif

enum { DOT_OPERATIONS = 16 * 128 };

static void dot_products_of(int64_t times, int threads) {
#pragma omp parallel num_threads(threads)
  dot_products(times);
}

static double ceiling_gops(int threads) { /* 0 where the CPU has no vpdpbusd */
  const int64_t times = 400000;
  if (!have_dot_products()) return 0;
  double t = now();
  dot_products_of(times, threads);
  return (double)times * DOT_OPERATIONS * threads / (now() - t) / 1e9;
}

/* 12 independent fma of eight float32, `times` times. */
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void fused_products(int64_t times) {
  for (int64_t i = 0; i < times; i++) {
#define FMA(n) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" #n "\n\t"
    __asm__ volatile(FMA(0) FMA(1) FMA(2) FMA(3) FMA(4) FMA(5) FMA(6) FMA(7) FMA(8) FMA(9) FMA(10) FMA(11)::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                           "xmm11");
#undef FMA
  }
}
__attribute__((target("avx512f"))) static void fused_products_512(int64_t times) {
  for (int64_t i = 0; i < times; i++) {
#define FMA(n) "vfmadd231ps %%zmm14, %%zmm15, %%zmm" #n "\n\t"
    __asm__ volatile(FMA(0) FMA(1) FMA(2) FMA(3) FMA(4) FMA(5) FMA(6) FMA(7) FMA(8) FMA(9) FMA(10) FMA(11)::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                           "xmm11");
#undef FMA
  }
}
#endif

static double fma_gops(int threads) { /* 0 where it is not known */
  const int64_t times = 200000;
  double operations = 0, t = now();
#if defined(__x86_64__)
  bool wide = __builtin_cpu_supports("avx512f");
  if (!__builtin_cpu_supports("fma")) return 0;
  operations = 12.0 * 2 * (wide ? 16 : 8) * (double)times * threads;
#pragma omp parallel num_threads(threads)
  wide ? fused_products_512(times) : fused_products(times);
#else
  (void)times, (void)threads;
#endif
  return operations / (now() - t) / 1e9;
}

enum { READ_BYTES = 256 << 20 };

typedef uint64_t line __attribute__((vector_size(64), may_alias));

#define READ(name, how)                                                                                                \
  how static uint64_t name(const line *memory, int64_t lines) {                                                        \
    line sum[4] = {{0}};                                                                                               \
    for (int64_t i = 0; i < lines; i += 4) {                                                                           \
      sum[0] ^= memory[i], sum[1] ^= memory[i + 1], sum[2] ^= memory[i + 2], sum[3] ^= memory[i + 3];                  \
    }                                                                                                                  \
    sum[0] ^= sum[1] ^ sum[2] ^ sum[3];                                                                                \
    return sum[0][0] ^ sum[0][1] ^ sum[0][2] ^ sum[0][3] ^ sum[0][4] ^ sum[0][5] ^ sum[0][6] ^ sum[0][7];              \
  }
READ(read_plain, )
#if defined(__x86_64__)
READ(read_avx512, __attribute__((target("avx512f"))))
READ(read_avx2, __attribute__((target("avx2"))))
#endif

static uint64_t read_lines(const line *memory, int64_t lines) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_avx512(memory, lines);
  if (__builtin_cpu_supports("avx2")) return read_avx2(memory, lines);
#endif
  return read_plain(memory, lines);
}

/* GB/s of reading through the first `bytes` of memory again and again, 256 MiB in all. */
static double read_rate(const void *memory, int64_t bytes, int threads) {
  const int64_t run = 512, lines = bytes / 64 / run > 0 ? bytes / 64 / run * run : run;
  const int times = (int)(READ_BYTES / 64 / lines);
  uint64_t sum = 0;
  double t = now();
#pragma omp parallel num_threads(threads) reduction(^ : sum)
  for (int i = 0; i < times; i++) {
#pragma omp for schedule(static) nowait
    for (int64_t j = 0; j < lines; j += run) sum ^= read_lines((const line *)memory + j, run);
  }
  t = now() - t;
  if (sum == 42) fprintf(stderr, " ");
  return 64.0 * (double)lines * times / t / 1e9;
}

/* ---- contenders ------------------------------------------------------------------------------------------------- */

/* What a product's operands are. */
typedef struct kind {
  const char *name;
  int32_t dtype_a; /* INT4MM_INT32: words */
  int64_t group;   /* of group scales or factors; 0: none */
  bool factors, zeros;
} kind;

static const kind kinds[] = {{"W4A8", INT4MM_INT8, 0, false, false},
                             {"W4A4 g128", INT4MM_INT32, 128, false, false},
                             {"W4A4 g32", INT4MM_INT32, 32, false, false},
                             {"W4A4 g128 factors", INT4MM_INT32, 128, true, false},
                             {"W4A8 g128", INT4MM_INT8, 128, false, false},
                             {"W4A8 g32", INT4MM_INT8, 32, false, false},
                             {"W4A8 g128 zeros", INT4MM_INT8, 128, false, true},
                             {"W4A16", INT4MM_FLOAT16, 0, false, false},
                             {"W4A16 g128", INT4MM_FLOAT16, 128, false, false},
                             {"W4A16 g128 zeros", INT4MM_FLOAT16, 128, false, true},
                             {"W4A16 g32", INT4MM_FLOAT16, 32, false, false}};
enum { KINDS = sizeof kinds / sizeof *kinds };

typedef struct setting {
  int64_t M, K, N;
  int threads, copies; /* of the weight, for cold runs */
  int4mm_tensor a, scale_a, scale_b, out;
  int4mm_tensor *b, *panels;
  int4mm_tensor a8, a16, groups, factors, zeros; /* for `kinds`: groups of 32, of which others take the first rows */
  float *fa, *fb, *fc;                           /* OpenBLAS */
  uint8_t *ua;                                   /* oneDNN */
} setting;

typedef struct contender {
  char name[32];
  void (*run)(const setting *s, const struct contender *c, int iteration);
  const char *isa;
  int32_t strassen;
  bool panels;
  const kind *kind; /* NULL: W4A4 with a scale for each column */
  double times[MAX_ROUNDS];
} contender;

static void run_ours(const setting *s, const contender *c, int iteration) {
  int4mm_tensor out = s->out;
  int4mm_matmul_args args = {.a_packed = &s->a,
                             .b_packed = (c->panels ? s->panels : s->b) + iteration % s->copies,
                             .scale_a = &s->scale_a,
                             .scale_b = &s->scale_b,
                             .out = &out,
                             .backend = INT4MM_USE_CPU,
                             .strassen = c->strassen};
  int4mm_tensor groups = s->groups, factors = s->factors, zeros = s->zeros;
  if (c->kind) {
    args.group = c->kind->group;
    if (args.group) groups.shape[0] = factors.shape[0] = zeros.shape[0] = (s->K + args.group - 1) / args.group;
    if (c->kind->dtype_a == INT4MM_INT8) args.a_packed = &s->a8;
    if (c->kind->dtype_a == INT4MM_FLOAT16) args.a_packed = &s->a16, args.scale_a = NULL;
    if (args.group && !c->kind->factors) args.scale_b = &groups;
    if (c->kind->factors) args.factor_b = &factors;
    if (c->kind->zeros) args.zero_b = &zeros;
  }
  check(int4mm_matmul(&args));
}

/* The ceiling for as long as a product takes: what the machine does besides interrupts both alike. */
static void run_ceiling(const setting *s, const contender *c, int iteration) {
  (void)c, (void)iteration;
  dot_products_of(2 * s->M * s->K * s->N / DOT_OPERATIONS / s->threads, s->threads);
}

typedef void sgemm_fn(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                      const float *b, int ldb, float beta, float *c, int ldc);
static sgemm_fn *sgemm;
static void (*blas_threads)(int);

static bool open_blas(void) {
  void *library = dlopen("libopenblas.so.0", RTLD_NOW);
  if (!library) return false;
  *(void **)&sgemm = dlsym(library, "cblas_sgemm");
  *(void **)&blas_threads = dlsym(library, "openblas_set_num_threads");
  return sgemm && blas_threads;
}

static void run_blas(const setting *s, const contender *c, int iteration) {
  (void)c;
  const float *b = s->fb + (size_t)(iteration % s->copies) * (size_t)(s->K * s->N);
  int M = (int)s->M, N = (int)s->N, K = (int)s->K;
  sgemm(101, 111, 111, M, N, K, 1, s->fa, K, b, N, 0, s->fc, N); /* row-major, not transposed */
}

#ifdef HAVE_DNNL_HEADER
#define DNNL_CALLS(X)                                                                                                  \
  X(dnnl_engine_create)                                                                                                \
  X(dnnl_stream_create)                                                                                                \
  X(dnnl_stream_wait)                                                                                                  \
  X(dnnl_memory_desc_init_by_tag)                                                                                      \
  X(dnnl_matmul_desc_init)                                                                                             \
  X(dnnl_primitive_desc_create)                                                                                        \
  X(dnnl_primitive_desc_query_md)                                                                                      \
  X(dnnl_primitive_create)                                                                                             \
  X(dnnl_primitive_execute)                                                                                            \
  X(dnnl_primitive_destroy)                                                                                            \
  X(dnnl_primitive_desc_destroy)                                                                                       \
  X(dnnl_memory_create)                                                                                                \
  X(dnnl_memory_destroy)                                                                                               \
  X(dnnl_memory_desc_get_size)
#define DECLARE(name) static __typeof__(name) *p_##name;
DNNL_CALLS(DECLARE)

static dnnl_engine_t engine;
static dnnl_stream_t stream;
static dnnl_primitive_t product;
static dnnl_memory_t *weights, source, result;

static bool open_dnnl(void) {
  void *library = dlopen("libdnnl.so.2", RTLD_NOW);
  if (!library) return false;
#define FIND(name)                                                                                                     \
  if (!(*(void **)&p_##name = dlsym(library, #name))) return false;
  DNNL_CALLS(FIND)
  return !p_dnnl_engine_create(&engine, dnnl_cpu, 0) &&
         !p_dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
}

static void check_dnnl(dnnl_status_t status) {
  if (status != dnnl_success) fail("oneDNN", "a call failed");
}

/* The primitive for a shape, and weights in the layout that it likes best, filled without a conversion: only time
 * matters here. */
static void prepare_dnnl(const setting *s) {
  dnnl_memory_desc_t a, b, c;
  dnnl_matmul_desc_t desc;
  dnnl_primitive_desc_t pd;
  check_dnnl(p_dnnl_memory_desc_init_by_tag(&a, 2, (dnnl_dims_t){s->M, s->K}, dnnl_u8, dnnl_ab));
  check_dnnl(p_dnnl_memory_desc_init_by_tag(&b, 2, (dnnl_dims_t){s->K, s->N}, dnnl_s8, dnnl_format_tag_any));
  check_dnnl(p_dnnl_memory_desc_init_by_tag(&c, 2, (dnnl_dims_t){s->M, s->N}, dnnl_f32, dnnl_ab));
  check_dnnl(p_dnnl_matmul_desc_init(&desc, &a, &b, NULL, &c));
  check_dnnl(p_dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL));
  check_dnnl(p_dnnl_primitive_create(&product, pd));
  const dnnl_memory_desc_t *best = p_dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
  size_t bytes = p_dnnl_memory_desc_get_size(best);
  weights = allocate((size_t)s->copies * sizeof *weights);
  for (int i = 0; i < s->copies; i++) {
    void *memory = allocate(bytes);
    memset(memory, i + 1, bytes);
    check_dnnl(p_dnnl_memory_create(&weights[i], best, engine, memory));
  }
  check_dnnl(p_dnnl_memory_create(&source, &a, engine, s->ua));
  check_dnnl(p_dnnl_memory_create(&result, &c, engine, s->fc));
  p_dnnl_primitive_desc_destroy(pd);
}

static void run_dnnl(const setting *s, const contender *c, int iteration) {
  (void)c;
  dnnl_exec_arg_t args[] = {
      {DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights[iteration % s->copies]}, {DNNL_ARG_DST, result}};
  check_dnnl(p_dnnl_primitive_execute(product, stream, 3, args));
  check_dnnl(p_dnnl_stream_wait(stream));
}
#endif

/* ---- a shape ---------------------------------------------------------------------------------------------------- */

static void random_tensor(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols, int32_t dtype,
                          uint32_t sequence) {
  memset(t, 0, sizeof *t);
  check(int4mm_tensor_alloc(t, rank, rows, cols, dtype, INT4MM_CPU));
  check(int4mm_random(t, 7, sequence, 0.001f, 0.01f, NULL));
}

static void filled_tensor(int4mm_tensor *t, int64_t rows, int64_t cols, int32_t dtype, int byte) {
  memset(t, 0, sizeof *t);
  check(int4mm_tensor_alloc(t, 2, rows, cols, dtype, INT4MM_CPU));
  memset(t->data, byte, (size_t)(rows * cols) * (dtype == INT4MM_INT8 ? 1 : 2));
}

static setting prepare(int64_t M, int64_t K, int64_t N, int threads, bool cold, bool blas) {
  setting s = {.M = M, .K = K, .N = N, .threads = threads};
  s.copies = cold ? (int)((256 << 20) / (K * N / 2)) + 1 : 1;
  random_tensor(&s.a, 2, M, K / 8, INT4MM_INT32, 0);
  random_tensor(&s.scale_a, 1, M, 1, INT4MM_FLOAT32, 1);
  random_tensor(&s.scale_b, 1, N, 1, INT4MM_FLOAT32, 2);
  memset(&s.out, 0, sizeof s.out);
  check(int4mm_tensor_alloc(&s.out, 2, M, N, INT4MM_FLOAT16, INT4MM_CPU));
  s.b = allocate((size_t)s.copies * sizeof *s.b);
  s.panels = allocate((size_t)s.copies * sizeof *s.panels);
  for (int i = 0; i < s.copies; i++) {
    random_tensor(&s.b[i], 2, K / 8, N, INT4MM_INT32, 3);
    memset(&s.panels[i], 0, sizeof s.panels[i]);
    check(int4mm_prepack(&s.panels[i], &s.b[i], INT4MM_B_KN, INT4MM_TWOS_COMPLEMENT));
  }
  filled_tensor(&s.a8, M, K, INT4MM_INT8, 3);
  filled_tensor(&s.a16, M, K, INT4MM_FLOAT16, 0x3a);
  random_tensor(&s.groups, 2, (K + 31) / 32, N, INT4MM_FLOAT32, 4);
  filled_tensor(&s.factors, (K + 31) / 32, N, INT4MM_INT8, 7);
  filled_tensor(&s.zeros, (K + 31) / 32, N, INT4MM_INT8, 2);
  s.fc = allocate((size_t)(M * N) * 4);
  s.ua = allocate((size_t)(M * K));
  memset(s.ua, 3, (size_t)(M * K));
  if (blas) {
    size_t weights = (size_t)s.copies * (size_t)(K * N);
    s.fa = allocate((size_t)(M * K) * 4);
    s.fb = allocate(weights * 4);
    for (int64_t i = 0; i < M * K; i++) s.fa[i] = (float)(i % 15) - 7;
    for (size_t i = 0; i < weights; i++) s.fb[i] = (float)(i % 13) - 6;
  }
  return s;
}

static void discard(setting *s) {
  int4mm_tensor_release(&s->a), int4mm_tensor_release(&s->scale_a), int4mm_tensor_release(&s->scale_b);
  int4mm_tensor_release(&s->out), int4mm_tensor_release(&s->a8), int4mm_tensor_release(&s->a16);
  int4mm_tensor_release(&s->groups), int4mm_tensor_release(&s->factors), int4mm_tensor_release(&s->zeros);
  for (int i = 0; i < s->copies; i++) int4mm_tensor_release(&s->b[i]), int4mm_tensor_release(&s->panels[i]);
  free(s->b), free(s->panels), free(s->fa), free(s->fb), free(s->fc), free(s->ua);
}

static int compare(const void *x, const void *y) {
  double a = *(const double *)x, b = *(const double *)y;
  return (a > b) - (a < b);
}

static contender *add(contender *list, int *count, const char *name, const char *isa, int32_t strassen, bool panels) {
  contender *c = &list[(*count)++];
  *c = (contender){.run = run_ours, .isa = isa, .strassen = strassen, .panels = panels};
  snprintf(c->name, sizeof c->name, "%s", name);
  return c;
}

typedef struct options {
  bool json, blas, dnnl, cpu_time, kinds;
  int rounds;
  const char *only;
  bench_shape shapes[MAX_SHAPES];
  int shape_count, threads[MAX_THREADS], thread_count;
} options;

static int list_contenders(contender *list, const setting *s, const options *o) {
  int count = 0;
  bool large = s->M >= 1024 && s->N >= 1024 && s->K >= 1024;
  const char *best = int4mm_cpu_isa_at(0);
  add(list, &count, "int4mm", best, 0, false);
  add(list, &count, "int4mm prepacked", best, 0, true);
  if (large) add(list, &count, "int4mm classical", best, -1, false);
  for (int i = 0; o->kinds && i < KINDS; i++) {
    add(list, &count, kinds[i].name, best, 0, false)->kind = &kinds[i];
  }
  if (large && !o->kinds) add(list, &count, "int4mm strassen 1", best, 1, false);
  if (large && !o->kinds) add(list, &count, "int4mm strassen 2", best, 2, false);
  for (int i = 1; !o->kinds && int4mm_cpu_isa_at(i); i++) {
    const char *isa = int4mm_cpu_isa_at(i);
    char name[32];
    snprintf(name, sizeof name, "int4mm %s", isa);
    if (strcmp(isa, "scalar")) add(list, &count, name, isa, 0, false);
  }
  if (o->blas) add(list, &count, "OpenBLAS f32", best, 0, false)->run = run_blas;
#ifdef HAVE_DNNL_HEADER
  if (o->dnnl) add(list, &count, "oneDNN u8s8", best, 0, false)->run = run_dnnl;
#endif
  if (large && have_dot_products()) add(list, &count, "vpdpbusd alone", best, 0, false)->run = run_ceiling;
  int kept = 0;
  for (int i = 0; i < count; i++) {
    if (selected(o->only, list[i].name)) list[kept++] = list[i];
  }
  return kept;
}

/* Seconds of the quickest of a few calls, as many as fit into 5 ms and two at least. */
static double time_one(const setting *s, const contender *c, int *iteration) {
  double least = 1e9, total = 0;
  check(int4mm_set_cpu_isa(c->isa));
  c->run(s, c, (*iteration)++); /* wakes this contender's threads */
  for (int calls = 0; calls < 2 || total < 5e-3; calls++) {
    double start = now();
    c->run(s, c, (*iteration)++);
    double elapsed = now() - start;
    least = elapsed < least ? elapsed : least;
    total += elapsed;
  }
  return least;
}

/* Rates of the machine: the largest over the rounds. */
typedef struct ceilings {
  double dot, fma, memory; /* GOPS, GOPS, GB/s */
} ceilings;

static void report(const setting *s, contender *list, int count, const options *o, bool cold, const ceilings *most) {
  double operations = 2.0 * (double)s->M * (double)s->K * (double)s->N, ours = list[0].times[0];
  for (int i = 0; i < count; i++) {
    double least = list[i].times[0], median = list[i].times[o->rounds / 2], gops = operations / least / 1e9;
    double weight = (double)(s->K * s->N) / 2 / least / 1e9, memory = most->memory;
    bool floats = list[i].run == run_blas || (list[i].kind && list[i].kind->dtype_a == INT4MM_FLOAT16);
    double ceiling = floats ? most->fma : most->dot;
    if (o->json) {
      printf("{\"M\":%" PRId64 ",\"K\":%" PRId64 ",\"N\":%" PRId64 ",\"threads\":%d,\"cold\":%s,\"name\":\"%s\","
             "\"ms\":%.5f,\"median_ms\":%.5f,\"gops\":%.1f,\"ceiling_gops\":%.1f,\"memory_gbs\":%.2f,"
             "\"times_int4mm\":%.3f}\n",
             s->M, s->K, s->N, s->threads, cold ? "true" : "false", list[i].name, 1e3 * least, 1e3 * median, gops,
             ceiling, memory, least / ours);
      continue;
    }
    printf("%5" PRId64 " %5" PRId64 " %5" PRId64 " %2d %-4s %-22s %10.4f %10.4f %9.1f", s->M, s->K, s->N, s->threads,
           cold ? "cold" : "warm", list[i].name, 1e3 * least, 1e3 * median, gops);
    if (ceiling > 0) printf(" %7.1f%%", 100 * gops / ceiling);
    printf(" %7.2fx", least / ours);
    if (list[i].run == run_ours && s->M <= 16)
      printf("  %5.1f GB/s, %5.1f%% of reading", weight, 100 * weight / memory);
    printf("\n");
  }
  fflush(stdout);
}

/* Returns how many contenders were timed. */
static int run_shape(bench_shape shape, int threads, bool cold, const options *o, const uint64_t *memory) {
  const int64_t M = shape.M, K = shape.K, N = shape.N;
  contender list[MAX_CONTENDERS];
  check(int4mm_set_cpu_isa(NULL));
  check(int4mm_set_num_threads(threads));
  watch = o->cpu_time && threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
  omp_set_num_threads(threads);
  if (o->blas) blas_threads(threads);
  setting s = prepare(M, K, N, threads, cold, o->blas);
#ifdef HAVE_DNNL_HEADER
  if (o->dnnl) prepare_dnnl(&s);
#endif
  int count = list_contenders(list, &s, o), iteration = 0;
  ceilings most = {0};
  const int64_t weight = K * N / 2 < READ_BYTES ? K * N / 2 : READ_BYTES;
  for (int round = 0; round < o->rounds; round++) {
    double c = ceiling_gops(threads), r = M <= 16 ? read_rate(memory, cold ? READ_BYTES : weight, threads) : 1;
    double f = fma_gops(threads);
    most.dot = c > most.dot ? c : most.dot;
    most.memory = r > most.memory ? r : most.memory;
    most.fma = f > most.fma ? f : most.fma;
    for (int i = 0; i < count; i++) list[i].times[round] = time_one(&s, &list[i], &iteration);
  }
  for (int i = 0; i < count; i++) qsort(list[i].times, (size_t)o->rounds, sizeof(double), compare);
  report(&s, list, count, o, cold, &most);
#ifdef HAVE_DNNL_HEADER
  if (o->dnnl) p_dnnl_primitive_destroy(product);
  for (int i = 0; o->dnnl && i < s.copies; i++) p_dnnl_memory_destroy(weights[i]);
#endif
  discard(&s);
  return count;
}

static const bench_shape SHAPES[] = {{1024, 1024, 1024}, {2048, 2048, 2048}, {4096, 4096, 4096}, {1, 4096, 4096},
                                     {1, 4096, 14336},   {16, 4096, 4096},   {128, 4096, 4096}};

static options parse(int argc, char **argv) {
  options o = {.rounds = 7, .shape_count = sizeof SHAPES / sizeof *SHAPES, .threads = {1, omp_get_num_procs()}};
  memcpy(o.shapes, SHAPES, sizeof SHAPES);
  o.thread_count = o.threads[1] > 1 ? 2 : 1;
  for (int i = 1; i < argc; i++) {
    const char *value;
    if (!strcmp(argv[i], "--help")) {
      printf("%s\n", USAGE);
      exit(0);
    } else if (!strcmp(argv[i], "--json")) {
      o.json = true;
    } else if (!strcmp(argv[i], "--cpu-time")) {
      o.cpu_time = true;
    } else if (!strcmp(argv[i], "--kinds")) {
      o.kinds = true;
    } else if ((value = option_value(argc, argv, &i, "--only"))) {
      o.only = value;
    } else if ((value = option_value(argc, argv, &i, "--rounds"))) {
      o.rounds = option_count("--rounds", value, 1, MAX_ROUNDS);
    } else if ((value = option_value(argc, argv, &i, "--threads"))) {
      o.thread_count = option_threads("--threads", value, o.threads, MAX_THREADS);
    } else if ((value = option_value(argc, argv, &i, "--shapes"))) {
      o.shape_count = option_shapes("--shapes", value, o.shapes, MAX_SHAPES);
    } else {
      fail(argv[i], USAGE);
    }
  }
  return o;
}

int main(int argc, char **argv) {
  options o = parse(argc, argv);
  o.blas = open_blas();
  if (!o.blas) fprintf(stderr, "cpu_peers: OpenBLAS is skipped: no libopenblas.so.0 (libopenblas-dev)\n");
#ifdef HAVE_DNNL_HEADER
  o.dnnl = open_dnnl();
#endif
  if (!o.dnnl) fprintf(stderr, "cpu_peers: oneDNN is skipped: no dnnl.h or libdnnl.so.2 (libdnnl-dev)\n");
  void *memory = aligned_alloc(2 << 20, READ_BYTES);
  if (!memory) fail("memory", "none left");
  (void)madvise(memory, READ_BYTES, MADV_HUGEPAGE);
  memset(memory, 1, READ_BYTES);
  if (!o.json)
    printf("    M     K     N thr      contender                     ms  median ms      GOPS  ceiling  vs int4mm\n");
  int timed = 0;
  for (int i = 0; i < o.shape_count; i++) {
    for (int t = 0; t < o.thread_count; t++) {
      timed += run_shape(o.shapes[i], o.threads[t], false, &o, memory);
      if (o.shapes[i].M <= 16) timed += run_shape(o.shapes[i], o.threads[t], true, &o, memory);
    }
  }
  if (!timed) refuse("--only", o.only ? o.only : "", "a part of a contender's name: nothing was timed");
  return 0;
}
