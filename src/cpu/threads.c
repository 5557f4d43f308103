/*
 * Threads of the CPU backend: OpenMP's, and plain ones where OpenMP cannot serve.
 *
 * Why not OpenMP alone: after fork() the child has one thread, but libgomp's records of the parent's pool came along,
 * and the next parallel region waits for threads that do not exist. It does not matter whose region it was that made
 * the pool. So a forked child starts fresh pthreads for each region (about 20 us a thread) and leaves OpenMP alone. The
 * same code serves builds without OpenMP, among them the one for ThreadSanitizer, which cannot see libgomp's futexes.
 */
#define _GNU_SOURCE /* sched_getaffinity and its sets */
#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/cpu.h"

/* More threads than this are refused: libgomp ends the process when the system denies it one. */
enum { MAX_THREADS = 1024 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int32_t default_threads = 1; /* written once, under `once` */
static atomic_int chosen_threads;   /* int4mm_set_num_threads; 0: the default */
static atomic_int busy_threads;     /* threads now inside regions */
static atomic_bool pool_lost;       /* this is a forked child: OpenMP's threads did not come along */
static _Thread_local bool in_region;

static void forked(void) {
  atomic_store(&busy_threads, in_region ? 1 : 0); /* the others' threads stayed behind */
  atomic_store(&pool_lost, true);
}

/* At load. It fails for want of memory alone; a fork is then no safer than OpenMP's own. */
__attribute__((constructor)) static void watch_forks(void) {
  (void)pthread_atfork(NULL, NULL, forked);
}

/* Cores this process may run on; the set grows until the kernel's fits. */
static int32_t usable_cores(void) {
  for (int cores = 1024; cores <= 1 << 20; cores *= 2) {
    cpu_set_t *set = CPU_ALLOC(cores);
    if (!set) break;
    size_t size = CPU_ALLOC_SIZE(cores);
    int failed = sched_getaffinity(0, size, set), error = errno, count = failed ? 0 : CPU_COUNT_S(size, set);
    CPU_FREE(set);
    if (count > 0) return count < MAX_THREADS ? count : MAX_THREADS;
    if (!failed || error != EINVAL) break;
  }
  return 1;
}

static void setup(void) {
  default_threads = usable_cores();
  const char *text = getenv("INT4MM_NUM_THREADS");
  if (text) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end != text && *end == 0 && !errno && value >= 1) {
      default_threads = value < MAX_THREADS ? (int32_t)value : MAX_THREADS;
    }
  }
}

int32_t int4mm_get_num_threads(void) {
  pthread_once(&once, setup);
  int32_t chosen = atomic_load(&chosen_threads);
  return chosen ? chosen : default_threads;
}

int32_t int4mm_set_num_threads(int32_t threads) {
  if (threads < 0 || threads > MAX_THREADS) {
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "threads is %d, expected 1 to %d, or 0 for the default", (int)threads,
                       (int)MAX_THREADS);
  }
  atomic_store(&chosen_threads, threads);
  return INT4MM_OK;
}

int32_t int4mm_threads_for(int64_t work, int64_t grain) {
  return (int32_t)int4mm_max64(1, int4mm_min64(work / grain, int4mm_get_num_threads()));
}

typedef struct region {
  int4mm_task *task;
  void *context;
  int64_t count;
  _Atomic int64_t next; /* the next index to hand out */
} region;

/* The share of one thread. The first `team` indices have gone to the team's members by number, so that equal calls
 * give a thread the same part of the operands, which may still be in its cache. */
static void work(region *r, int32_t slot, int32_t team) {
  fenv_t environment;
  fegetenv(&environment);
  fesetenv(FE_DFL_ENV);
  in_region = true;
  if (slot < team && slot < r->count) r->task(r->context, slot, slot);
  for (;;) {
    int64_t index = team + atomic_fetch_add_explicit(&r->next, 1, memory_order_relaxed);
    if (index >= r->count) break;
    r->task(r->context, index, slot);
  }
  in_region = false;
  fesetenv(&environment);
}

typedef struct helper {
  pthread_t thread;
  region *region;
  int32_t slot;
} helper;

static void *helper_main(void *argument) {
  helper *h = argument;
  work(h->region, h->slot, 0);
  return NULL;
}

static void run_on_fresh_threads(region *r, int32_t threads) {
  helper helpers[64];
  int32_t started = 0, wanted = (int32_t)int4mm_min64(threads - 1, 64);
  for (; started < wanted; started++) {
    helpers[started].region = r;
    helpers[started].slot = started + 1;
    if (pthread_create(&helpers[started].thread, NULL, helper_main, &helpers[started])) break;
  }
  work(r, 0, 0);
  for (int32_t i = 0; i < started; i++) pthread_join(helpers[i].thread, NULL);
}

static void run(region *r, int32_t threads) {
#ifdef _OPENMP
  if (!atomic_load(&pool_lost)) {
#pragma omp parallel num_threads(threads)
    work(r, omp_get_thread_num(), omp_get_num_threads());
    return;
  }
#endif
  run_on_fresh_threads(r, threads);
}

static bool nested(void) {
#ifdef _OPENMP
  if (omp_in_parallel()) return true;
#endif
  return in_region;
}

void int4mm_parallel(int32_t threads, int64_t count, int4mm_task *task, void *context) {
  region r = {.task = task, .context = context, .count = count};
  if (count <= 0) return;
  if (in_region) { /* a piece that is itself a region: the thread's state is set already */
    for (int64_t i = 0; i < count; i++) task(context, i, 0);
    return;
  }
  threads = (int32_t)int4mm_min64(threads, count);
  if (threads > 1 && nested()) threads = 1;
  if (threads > 1) { /* leave room for the calls that other threads of the caller are making */
    int32_t others = atomic_load(&busy_threads);
    threads = (int32_t)int4mm_max64(1, int4mm_min64(threads, int4mm_get_num_threads() - others));
  }
  atomic_fetch_add(&busy_threads, threads);
  if (threads > 1) {
    run(&r, threads);
  } else {
    work(&r, 0, 0);
  }
  atomic_fetch_sub(&busy_threads, threads);
}
