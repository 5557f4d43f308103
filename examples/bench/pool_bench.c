/*
 * Times the CPU backend's threads where cores are short: alone, beside a busy neighbour, confined to one core after the
 * first call, several processes at once, in a forked child.
 *
 *   pool_bench [--seconds 0.3] [--rounds 5] [--threads n] [--shapes MxKxN,...] [--only title,...] library...
 *
 * Each library is a build of libint4mm.so, or `dnnl` for oneDNN (u8 x s8, prepacked weights; needs dnnl.h and
 * libdnnl.so.2). Every measurement is a process of its own; libraries take turns, so that all see the same machine.
 * Figures are milliseconds a call, "at once" the calls of all processes in a second: the best over the rounds, with
 * their median behind it. Threads are each library's default unless --threads says otherwise; `1 thread` is for
 * comparison. --only: rows with one of these texts in their title.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "int4mm.h"
#include "options.h"

#if __has_include(<dnnl.h>)
#include <dnnl.h>
#define HAVE_DNNL_HEADER 1
#endif

enum { MAX_LIBRARIES = 8, MAX_ROUNDS = 99, MAX_SHAPES = 32, PROCESSES = 4 };

static const char *const USAGE = "pool_bench [--seconds 0.3] [--rounds 5] [--threads n] [--shapes MxKxN,...] "
                                 "[--only title,...] library...";

typedef bench_shape shape;

typedef enum scene { ALONE, NEIGHBOUR, CONFINED, AT_ONCE, FORKED } scene;

static double seconds = 0.3;
static int rounds = 5, chosen_threads;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *symbol(void *library, const char *name) {
  void *found = dlsym(library, name);
  if (!found) fail(name, dlerror());
  return found;
}

/* ---- what is timed ---------------------------------------------------------------------------------------------- */

static int32_t (*matmul)(const int4mm_matmul_args *);
static int4mm_tensor a, b, scale_a, scale_b, out;
static int4mm_matmul_args args;

static void open_int4mm(const char *path, shape s, int threads) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) fail(path, dlerror());
  int32_t (*alloc)(int4mm_tensor *, int32_t, int64_t, int64_t, int32_t, int32_t);
  int32_t (*fill)(const int4mm_tensor *, uint64_t, uint32_t, float, float, void *);
  int32_t (*set_threads)(int32_t);
  *(void **)&alloc = symbol(library, "int4mm_tensor_alloc");
  *(void **)&fill = symbol(library, "int4mm_random");
  *(void **)&set_threads = symbol(library, "int4mm_set_num_threads");
  *(void **)&matmul = symbol(library, "int4mm_matmul");
  if (set_threads(threads) || alloc(&a, 2, s.M, s.K / 8, INT4MM_INT32, INT4MM_CPU) ||
      alloc(&b, 2, s.K / 8, s.N, INT4MM_INT32, INT4MM_CPU) || alloc(&scale_a, 1, s.M, 1, INT4MM_FLOAT32, INT4MM_CPU) ||
      alloc(&scale_b, 1, s.N, 1, INT4MM_FLOAT32, INT4MM_CPU) || alloc(&out, 2, s.M, s.N, INT4MM_FLOAT16, INT4MM_CPU) ||
      fill(&a, 1, 1, 0, 1, NULL) || fill(&b, 1, 2, 0, 1, NULL) || fill(&scale_a, 1, 3, 0, 1, NULL) ||
      fill(&scale_b, 1, 4, 0, 1, NULL)) {
    fail(path, "the operands cannot be made");
  }
  args = (int4mm_matmul_args){
      .a_packed = &a, .b_packed = &b, .scale_a = &scale_a, .scale_b = &scale_b, .out = &out, .backend = INT4MM_USE_CPU};
}

static void call_int4mm(void) {
  if (matmul(&args)) fail("matmul", "failed");
}

#ifdef HAVE_DNNL_HEADER
static dnnl_status_t (*execute)(const_dnnl_primitive_t, dnnl_stream_t, int, const dnnl_exec_arg_t *);
static dnnl_primitive_t product;
static dnnl_stream_t stream;
static dnnl_exec_arg_t arguments[3];

static void open_dnnl(shape s, int threads) {
  char number[16];
  snprintf(number, sizeof number, "%d", threads);
  if (threads) setenv("OMP_NUM_THREADS", number, 1); /* read when libgomp is loaded, which is now */
  void *library = dlopen("libdnnl.so.2", RTLD_NOW);
  if (!library) fail("libdnnl.so.2", dlerror());
#define OPEN(name)                                                                                                     \
  __typeof__(name) *p_##name;                                                                                          \
  *(void **)&p_##name = symbol(library, #name)
  OPEN(dnnl_engine_create);
  OPEN(dnnl_stream_create);
  OPEN(dnnl_memory_desc_init_by_tag);
  OPEN(dnnl_matmul_desc_init);
  OPEN(dnnl_primitive_desc_create);
  OPEN(dnnl_primitive_desc_query_md);
  OPEN(dnnl_primitive_create);
  OPEN(dnnl_memory_create);
#undef OPEN
  *(void **)&execute = symbol(library, "dnnl_primitive_execute");
  dnnl_engine_t engine;
  dnnl_memory_desc_t x, w, y;
  dnnl_matmul_desc_t desc;
  dnnl_primitive_desc_t pd;
  dnnl_memory_t memory[3];
  int failed = p_dnnl_engine_create(&engine, dnnl_cpu, 0) ||
               p_dnnl_stream_create(&stream, engine, dnnl_stream_default_flags) ||
               p_dnnl_memory_desc_init_by_tag(&x, 2, (dnnl_dims_t){s.M, s.K}, dnnl_u8, dnnl_ab) ||
               p_dnnl_memory_desc_init_by_tag(&w, 2, (dnnl_dims_t){s.K, s.N}, dnnl_s8, dnnl_format_tag_any) ||
               p_dnnl_memory_desc_init_by_tag(&y, 2, (dnnl_dims_t){s.M, s.N}, dnnl_f32, dnnl_ab) ||
               p_dnnl_matmul_desc_init(&desc, &x, &w, NULL, &y) ||
               p_dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL) || p_dnnl_primitive_create(&product, pd) ||
               p_dnnl_memory_create(&memory[0], &x, engine, DNNL_MEMORY_ALLOCATE) ||
               p_dnnl_memory_create(&memory[1], p_dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0), engine,
                                    DNNL_MEMORY_ALLOCATE) ||
               p_dnnl_memory_create(&memory[2], &y, engine, DNNL_MEMORY_ALLOCATE);
  if (failed) fail("oneDNN", "a call failed");
  static const int roles[] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
  for (int i = 0; i < 3; i++) arguments[i] = (dnnl_exec_arg_t){roles[i], memory[i]};
}

static void call_dnnl(void) {
  if (execute(product, stream, 3, arguments)) fail("oneDNN", "a call failed");
}
#endif

static void (*open_library(const char *name, shape s, int threads))(void) {
#ifdef HAVE_DNNL_HEADER
  if (!strcmp(name, "dnnl")) {
    open_dnnl(s, threads);
    return call_dnnl;
  }
#endif
  open_int4mm(name, s, threads);
  return call_int4mm;
}

/* ---- a measurement: a process of its own ------------------------------------------------------------------------ */

/* All threads of this process, which are there since the first call. */
static void confine_to_one_core(void) {
  cpu_set_t mine, one;
  sched_getaffinity(0, sizeof mine, &mine);
  CPU_ZERO(&one);
  for (int cpu = 0; !CPU_COUNT(&one); cpu++) {
    if (CPU_ISSET(cpu, &mine)) CPU_SET(cpu, &one);
  }
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *entry; tasks && (entry = readdir(tasks));) {
    if (atoi(entry->d_name)) sched_setaffinity(atoi(entry->d_name), sizeof one, &one);
  }
  if (tasks) closedir(tasks);
}

/* Milliseconds a call over the time set. */
static double time_calls(void (*call)(void)) {
  double start = now(), spent;
  long calls = 0;
  do {
    call();
    calls++;
    spent = now() - start;
  } while (spent < seconds);
  return 1e3 * spent / (double)calls;
}

static double measure(const char *library, shape s, int threads, scene where) {
  void (*call)(void) = open_library(library, s, threads);
  for (int i = 0; i < 3; i++) call();
  if (where == CONFINED) confine_to_one_core();
  if (where == FORKED && fork() > 0) { /* the child answers */
    wait(NULL);
    _exit(0);
  }
  double start = now();
  while (where != FORKED && where != CONFINED && now() - start < 0.1) call(); /* warm */
  return time_calls(call);
}

/* Starts measure() in a child, which writes the figure to the pipe. */
static pid_t start_measure(int result, const char *library, shape s, int threads, scene where) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    double ms = measure(library, s, threads, where);
    _exit(write(result, &ms, sizeof ms) != sizeof ms);
  }
  return child;
}

static pid_t start_neighbour(void) {
  pid_t child = fork();
  if (child == 0) {
    for (volatile unsigned long i = 0;; i++) {
    }
  }
  return child;
}

/* Milliseconds a call; AT_ONCE: calls a second of all processes. */
static double run(const char *library, shape s, int threads, scene where) {
  int ends[2], processes = where == AT_ONCE ? PROCESSES : 1;
  if (pipe(ends)) fail("pipe", "none left");
  pid_t neighbour = where == NEIGHBOUR ? start_neighbour() : 0;
  double rate = 0, ms;
  for (int i = 0; i < processes; i++) {
    if (start_measure(ends[1], library, s, threads, where) < 0) fail("fork", "failed");
  }
  close(ends[1]);
  for (int i = 0; i < processes; i++) {
    if (read(ends[0], &ms, sizeof ms) != sizeof ms) fail(library, "a measurement failed");
    rate += 1e3 / ms;
  }
  if (neighbour > 0) kill(neighbour, SIGKILL);
  while (wait(NULL) > 0) {
  }
  close(ends[0]);
  return where == AT_ONCE ? rate : 1e3 / rate;
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

static int ascending(const void *x, const void *y) {
  double left = *(const double *)x, right = *(const double *)y;
  return (left > right) - (left < right);
}

static void row(const char *title, shape s, int count, char **libraries, scene where, bool one_thread) {
  static double figures[2 * MAX_LIBRARIES][MAX_ROUNDS];
  int columns = one_thread ? 2 * count : count;
  for (int round = 0; round < rounds; round++) {
    for (int i = 0; i < columns; i++) {
      figures[i][round] = run(libraries[i % count], s, i < count ? chosen_threads : 1, where);
    }
  }
  printf("%-22s %4d x %4d x %4d ", title, (int)s.M, (int)s.K, (int)s.N);
  for (int i = 0; i < columns; i++) {
    qsort(figures[i], (size_t)rounds, sizeof(double), ascending);
    printf("%s%10.4f %10.4f", i == count ? "  1 thread:" : "", figures[i][where == AT_ONCE ? rounds - 1 : 0],
           figures[i][rounds / 2]);
  }
  printf("\n");
  fflush(stdout);
}

static shape shapes[MAX_SHAPES] = {{1, 1024, 1024}, {1, 4096, 4096}, {16, 4096, 4096}, {2048, 2048, 2048}};
static int shape_count = 4;
static const char *only;

/* Fills the options; returns how many libraries were given. */
static int parse(int argc, char **argv, char **libraries) {
  int count = 0;
  for (int i = 1; i < argc; i++) {
    const char *value;
    if (!strcmp(argv[i], "--help")) {
      printf("%s\n", USAGE);
      exit(0);
    } else if ((value = option_value(argc, argv, &i, "--seconds"))) {
      seconds = option_seconds("--seconds", value);
    } else if ((value = option_value(argc, argv, &i, "--rounds"))) {
      rounds = option_count("--rounds", value, 1, MAX_ROUNDS);
    } else if ((value = option_value(argc, argv, &i, "--threads"))) {
      chosen_threads = option_count("--threads", value, 1, 4096);
    } else if ((value = option_value(argc, argv, &i, "--shapes"))) {
      shape_count = option_shapes("--shapes", value, shapes, MAX_SHAPES);
    } else if ((value = option_value(argc, argv, &i, "--only"))) {
      only = value;
    } else if (count < MAX_LIBRARIES && argv[i][0] != '-') {
      libraries[count++] = argv[i];
    } else {
      fail(argv[i], USAGE);
    }
  }
  if (!count) fail("no library is given", USAGE);
  return count;
}

int main(int argc, char **argv) {
  char *libraries[MAX_LIBRARIES];
  int count = parse(argc, argv, libraries);
  static const struct {
    const char *title;
    scene where;
    bool one_thread;
  } rows[] = {{"alone, ms", ALONE, false},
              {"busy neighbour, ms", NEIGHBOUR, true},
              {"one core, ms", CONFINED, true},
              {"four at once, calls/s", AT_ONCE, true},
              {"forked child, ms", FORKED, false}};
  printf("%-22s %18s ", "", "M      K      N");
  for (int i = 0; i < count; i++)
    printf("%21s", strlen(libraries[i]) > 20 ? libraries[i] + strlen(libraries[i]) - 20 : libraries[i]);
  printf("\n");
  bool timed = false;
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    if (!selected(only, rows[i].title)) continue;
    for (int j = 0; j < shape_count; j++) {
      row(rows[i].title, shapes[j], count, libraries, rows[i].where, rows[i].one_thread);
    }
    timed = true;
  }
  if (!timed) refuse("--only", only, "a part of a row's title: nothing was timed");
  return 0;
}
