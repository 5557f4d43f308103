/*
 * Threads of the CPU backend: calls from many threads at once, inside the caller's own parallel region, with the
 * caller's floating-point environment, after fork, when memory runs out, and when the library is unloaded. Each in a
 * process of its own with an alarm, so that a deadlock is a failure. Under ThreadSanitizer what forks or needs OpenMP
 * is left out, since it supports neither; so it is where NO_FORK is set, as an emulator may need.
 */
#include <dlfcn.h>
#include <fenv.h>
#include <float.h>
#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "child.h"
#include "core/error.h"
#include "core/tensor.h"
#include "cpu/backend.h"
#include "cpu/cpu.h"
#include "cuda/table.h"

enum { M = 90, N = 300, K = 2048, CALLERS = 8, OUT_BYTES = M * N * 2 };

static uint32_t a[M * K / 8], b[K / 8 * N];
static float scale_a[M], scale_b[N];
static uint16_t expected[M * N];

static int4mm_problem problem(void *out) {
  return (int4mm_problem){.M = M,
                          .N = N,
                          .K = K,
                          .a = {.words = a, .stride = K / 8, .layout = INT4MM_K_MAJOR, .scales = scale_a, .group = K},
                          .b = {.words = b, .stride = N, .layout = INT4MM_MN_MAJOR, .scales = scale_b, .group = K},
                          .out = {out, M, N, N, INT4MM_FLOAT16}};
}

/* Whether products of both kinds, blocked and skinny, come out right. */
static bool product_is_right(void) {
  uint16_t *out = malloc(OUT_BYTES);
  if (!out) return false;
  bool right = true;
  for (int round = 0; round < 3; round++) {
    memset(out, 0xa5, OUT_BYTES);
    int4mm_problem p = problem(out);
    if (round == 1) p.M = 4;
    if (round == 2) p.strassen = 1;
    right = right && int4mm_cpu_matmul(&p) == INT4MM_OK && !memcmp(out, expected, (size_t)p.M * N * 2);
  }
  free(out);
  return right;
}

static bool quantize_is_steady(void) {
  enum { ROWS = 64, COLS = 4096 };
  float *x = malloc(sizeof(float) * ROWS * COLS), scales[2][COLS];
  uint32_t *words[2] = {malloc(4 * ROWS / 8 * COLS), malloc(4 * ROWS / 8 * COLS)};
  bool right = x && words[0] && words[1];
  for (int i = 0; right && i < ROWS * COLS; i++) x[i] = (float)(i * 7919 % 2001 - 1000) * 0.37f;
  for (int i = 0; right && i < 2; i++) {
    int4mm_pack_job job = {.packed = {words[i], ROWS / 8, COLS, COLS, INT4MM_INT32},
                           .plain = {x, ROWS, COLS, COLS, INT4MM_FLOAT32},
                           .scales = scales[i],
                           .check = true};
    int64_t bad;
    right = int4mm_cpu_quantize(&job, &bad) == INT4MM_OK;
  }
  right = right && !memcmp(words[0], words[1], 4 * ROWS / 8 * COLS) && !memcmp(scales[0], scales[1], sizeof scales[0]);
  free(x), free(words[0]), free(words[1]);
  return right;
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

static void *caller(void *failures) {
  for (int i = 0; i < 20; i++) {
    if (!product_is_right() || !quantize_is_steady()) __atomic_fetch_add((int *)failures, 1, __ATOMIC_SEQ_CST);
  }
  return NULL;
}

static bool many_callers(void) {
  pthread_t threads[CALLERS];
  int failures = 0, started = 0;
  while (started < CALLERS && !pthread_create(&threads[started], NULL, caller, &failures)) started++;
  for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
  return started == CALLERS && failures == 0;
}

static bool changing_settings(void) { /* while another thread multiplies */
  pthread_t thread;
  int failures = 0;
  if (pthread_create(&thread, NULL, caller, &failures)) return false;
  for (int i = 0; i < 200; i++) {
    const char *isa = int4mm_cpu_isa_at(i % 2);
    if (int4mm_set_num_threads(1 + i % 4) || (isa && int4mm_set_cpu_isa(isa))) failures++;
  }
  pthread_join(thread, NULL);
  return failures == 0 && !int4mm_set_cpu_isa(NULL) && !int4mm_set_num_threads(3);
}

/* Few columns and a long K, which the threads share; the results are subnormal. */
static void long_product(float out[8]) {
  static const float tiny_a = 1e-33f, tiny_b[8] = {1e-10f, 2e-10f, 3e-10f, 4e-10f, 5e-10f, -6e-10f, 7e-10f, 8e-10f};
  int4mm_problem p = problem(out);
  p.M = 1, p.N = p.b.stride = p.out.stride = 8, p.K = K / 8 * N / 8 * 8, p.a.stride = p.K / 8; /* all of b as [K, 8] */
  p.a.scales = &tiny_a, p.b.scales = tiny_b, p.out.dtype = INT4MM_FLOAT32;
  memset(out, 0xa5, 8 * sizeof(float));
  (void)int4mm_cpu_matmul(&p);
}

static bool callers_environment(void) {
  float before_it[8], in_it[8];
  long_product(before_it);
  bool subnormal = before_it[0] != 0 && fabsf(before_it[0]) < FLT_MIN;
  fesetround(FE_UPWARD);
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040); /* flush to zero, denormals are zero */
  unsigned before = _mm_getcsr();
#endif
  bool right = product_is_right();
  long_product(in_it);
  right = right && subnormal && !memcmp(before_it, in_it, sizeof in_it);
#if defined(__x86_64__)
  right = right && (_mm_getcsr() & 0xffc0) == (before & 0xffc0);
#endif
  return right && fegetround() == FE_UPWARD;
}

static bool inside_openmp(void) {
  int failures = 0;
#pragma omp parallel num_threads(4) reduction(+ : failures)
  failures += !product_is_right();
  return failures == 0;
}

static bool grandchild(void) {
  return product_is_right() && in_child(many_callers);
}

static bool after_fork(void) { /* several children of a process whose pool is warm, and a child of a child */
  return product_is_right() && in_child(product_is_right) && in_child(many_callers) && in_child(grandchild) &&
         product_is_right();
}

static void *fork_here(void *right) {
  *(bool *)right = in_child(many_callers);
  return NULL;
}

static bool fork_from_thread(void) { /* while others are in regions */
  pthread_t threads[2];
  int failures = 0;
  bool right = false;
  if (pthread_create(&threads[0], NULL, caller, &failures)) return false;
  if (pthread_create(&threads[1], NULL, fork_here, &right)) return false;
  pthread_join(threads[0], NULL);
  pthread_join(threads[1], NULL);
  return failures == 0 && right;
}

__attribute__((unused)) static bool
out_of_memory(void) { /* the workspace does not fit: an error, and nothing written */
  enum { ROWS = 1000, COLS = 30000 };
  uint16_t *out = malloc(sizeof(uint16_t) * ROWS * COLS);
  float *scales = calloc(COLS, sizeof(float));
  uint32_t *words = calloc((size_t)COLS * 256, 4);
  if (!out || !scales || !words) return false;
  memset(out, 0xa5, sizeof(uint16_t) * ROWS * COLS);
  int4mm_problem p = problem(out);
  p.M = ROWS, p.N = p.b.stride = p.out.stride = COLS, p.K = 2048, p.a.stride = 256;
  p.a.words = p.b.words = words, p.a.scales = p.b.scales = scales;
  struct rlimit limit = {1 << 20, 1 << 20}; /* less than is in use: no new mapping at all */
  bool right = !int4mm_set_num_threads(1) && !setrlimit(RLIMIT_AS, &limit);
  for (int strassen = 0; strassen <= 2; strassen++) {
    p.strassen = strassen;
    right = right && int4mm_cpu_matmul(&p) == INT4MM_ERR_MEMORY && strlen(int4mm_last_error()) > 20;
  }
  for (int64_t i = 0; right && i < (int64_t)ROWS * COLS; i++) right = out[i] == 0xa5a5;
  return right;
}

static bool unloading(void) { /* threads of the pool outlive the library */
  char path[4096];
  const char *build = getenv("BUILD");
  snprintf(path, sizeof path, "%s/libint4mm.so", build ? build : "build");
  if (access(path, R_OK)) {
    printf("cpu_threads: unloading is skipped: no %s\n", path);
    return true;
  }
  for (int i = 0; i < 5; i++) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return false;
    int32_t (*alloc)(int4mm_tensor *, int32_t, int64_t, int64_t, int32_t, int32_t);
    int32_t (*fill)(const int4mm_tensor *, uint64_t, uint32_t, float, float, void *);
    int32_t (*threads)(int32_t);
    void (*release)(int4mm_tensor *);
    *(void **)&alloc = dlsym(library, "int4mm_tensor_alloc");
    *(void **)&fill = dlsym(library, "int4mm_random");
    *(void **)&threads = dlsym(library, "int4mm_set_num_threads");
    *(void **)&release = dlsym(library, "int4mm_tensor_release");
    int4mm_tensor t = {0};
    if (threads(4) || alloc(&t, 2, 2000, 2000, INT4MM_INT32, INT4MM_CPU) || fill(&t, 1, 2, 0, 1, NULL)) return false;
    release(&t);
    dlclose(library);
    usleep(20000);
  }
  return true;
}

/* The case in a process that acc_init_bytes anew: OpenMP itself does not outlive a fork. */
static bool in_new_process(const char *name) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    alarm(60);
    execl("/proc/self/exe", "cpu_threads", name, NULL);
    _exit(1);
  }
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

enum { HERE, CHILD, ANEW };

static int run(const char *name, bool (*test)(void), int where) {
  bool right = where == HERE ? test() : where == CHILD ? in_child(test) : in_new_process(name);
  printf("cpu_threads: %-22s %s\n", name, right ? "ok" : "FAILED");
  return !right;
}

int main(int argc, char **argv) {
#if defined(__SANITIZE_THREAD__)
  const bool forks = false;
#else
  const bool forks = !getenv("NO_FORK");
#endif
  for (int i = 0; i < M * K / 8; i++) a[i] = (uint32_t)i * 2654435761u;
  for (int i = 0; i < K / 8 * N; i++) b[i] = (uint32_t)i * 2246822519u ^ (uint32_t)i >> 7;
  for (int i = 0; i < M; i++) scale_a[i] = 1e-5f * (float)(i + 1);
  for (int i = 0; i < N; i++) scale_b[i] = 1e-4f * (float)(i - 99);
  int4mm_problem p = problem(expected);
  if (int4mm_set_num_threads(1) || int4mm_set_cpu_isa("scalar") || int4mm_cpu_matmul(&p)) return 1;
  if (int4mm_set_cpu_isa(NULL) || int4mm_set_num_threads(3)) return 1;
  if (argc > 1) return !(strcmp(argv[1], "unloading") ? inside_openmp() : unloading());
  int failed = 0;
  if (forks) {               /* first, while this process has not used a pool, and once more when it has */
#ifndef __SANITIZE_ADDRESS__ /* which needs address space itself */
    failed += run("out of memory", out_of_memory, CHILD);
#endif
    failed += run("unloading", unloading, ANEW);
    failed += run("inside OpenMP", inside_openmp, ANEW);
    failed += run("after fork, cold", after_fork, CHILD);
  }
  failed += run("many callers", many_callers, HERE);
  failed += run("changing settings", changing_settings, HERE);
  if (forks) {
    failed += run("after fork", after_fork, HERE);
    failed += run("fork from a thread", fork_from_thread, HERE);
  }
  failed += run("caller's environment", callers_environment, HERE);
  return failed > 0;
}
