/*
 * Threads of the CPU backend: a pool of workers that start on first need and sleep when idle.
 *
 * A region is one call of int4mm_parallel. Its pieces lie in one work queue for each thread of the team; a thread takes
 * its own pieces first, so that equal calls give it the same part of the operands, and then those left in other queues.
 * The caller waits for pieces that somebody has taken, never for a worker: one that has not been scheduled yet is a
 * worker that takes no piece. So regions lie in static memory, and a queue's word holds the region's number (epoch):
 * a worker that comes late, when the region is closed or is another's, takes nothing. A thread that cannot be had is
 * one fewer in the team. A forked child has no workers and starts its own.
 *
 * Offer: caller IDLE or SLEEPING -> CLAIMED, writes the job, -> OFFERED; worker OFFERED -> BUSY, reads the job, runs,
 * -> IDLE. When all pieces are taken the caller takes back (-> IDLE) what is still OFFERED.
 */
#define _GNU_SOURCE /* syscall, pthread_setname_np */
#include <fenv.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cpu/cpu.h"

enum {
  MAX_WORKERS = INT4MM_MAX_THREADS - 1,
  REGIONS = 64,                       /* open at once; a call beyond them runs on its own thread */
  INDEX_BITS = 20,                    /* of a queue's word; the rest is the epoch */
  MAX_PIECES = (1 << INDEX_BITS) - 1, /* in a region; a longer call is several */
  STACK_BYTES = 1 << 20,              /* pieces need some 100 KiB */
  PAUSES = 100,                       /* some microseconds of spinning; then the core is offered to others */
  WORKER_YIELD_NS = 100000,           /* ... for so long, then the thread sleeps */
  CALLER_YIELD_NS = 20000,
  RETRY_S = 1 /* after a thread could not be had */
};

static const uint32_t CALLER_SLEEPS = 1u << 31; /* in pending */

typedef struct region {
  atomic_bool open;
  uint64_t epoch;                              /* of its last use, in the upper bits; its owner's to read */
  _Atomic uint32_t pending;                    /* pieces that are not finished */
  _Atomic uint64_t queues[INT4MM_MAX_THREADS]; /* epoch + next piece */
} region;

/* A thread's part in a region. */
typedef struct job {
  int4mm_task *task;
  void *context;
  region *region;
  uint64_t epoch;
  int64_t first; /* index of piece 0 */
  int32_t pieces, team, slot;
} job;

/* The state of a worker; that of a claim or an offer also holds the region's number. */
enum { IDLE, SLEEPING, BUSY, CLAIMED, OFFERED, STATES = 8 };

typedef struct worker {
  _Alignas(64) _Atomic uint32_t state;
  bool asleep; /* when it was claimed */
  job job;     /* written by who claimed it */
} worker;

static region regions[REGIONS];
static worker workers[MAX_WORKERS];
static atomic_int workers_started;
static atomic_bool starting_worker;
static _Atomic int64_t retry_at;    /* CLOCK_MONOTONIC_COARSE, in seconds */
static atomic_int busy_threads;     /* threads of teams now at work */
static _Thread_local bool in_piece; /* this thread runs a piece */

/* Of the program's OpenMP where it has one. */
extern int omp_in_parallel(void) __attribute__((weak));

static void forked(void) { /* only the calling thread came along */
  atomic_store(&busy_threads, in_piece ? 1 : 0);
  for (int32_t i = 0; i < atomic_load(&workers_started); i++) atomic_store(&workers[i].state, IDLE);
  atomic_store(&workers_started, 0);
  atomic_store(&starting_worker, false);
  atomic_store(&retry_at, 0);
  for (int32_t i = 0; i < REGIONS; i++) atomic_store(&regions[i].open, false);
}

/* At load. It fails for want of memory alone; a forked child then waits for workers that it does not have. */
__attribute__((constructor)) static void watch_forks(void) {
  (void)pthread_atfork(NULL, NULL, forked);
}

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

static void futex(_Atomic uint32_t *word, int operation, uint32_t value) {
  syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

typedef struct spinner {
  int32_t rounds;
  int64_t since;
} spinner;

static int64_t nanoseconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* Lets a moment pass; false when it is time to sleep. */
static bool spin(spinner *s, int64_t yield_ns) {
  if (s->rounds++ < PAUSES) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
    return true;
  }
  int64_t now = nanoseconds();
  if (!s->since) s->since = now;
  if (now - s->since > yield_ns) return false;
  sched_yield();
  return true;
}

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

static int64_t start_of_queue(const job *j, int32_t queue) {
  return (int64_t)j->pieces * queue / j->team;
}

/* The next piece of a queue; -1 where it is empty or the region closed. */
static int64_t take_piece(const job *j, int32_t queue) {
  _Atomic uint64_t *next = &j->region->queues[queue];
  uint64_t word = atomic_load(next), end = (uint64_t)start_of_queue(j, queue + 1);
  do {
    if (word - j->epoch >= end) return -1;
  } while (!atomic_compare_exchange_weak(next, &word, word + 1));
  return (int64_t)(word - j->epoch);
}

/* Runs pieces until none is left to take. A region is not closed while a piece that was taken is not reported. */
static void run_pieces(const job *j) {
  for (int32_t i = 0; i < j->team; i++) {
    int32_t queue = (j->slot + i) % j->team;
    uint32_t done = 0;
    for (int64_t piece; (piece = take_piece(j, queue)) >= 0; done++) j->task(j->context, j->first + piece, j->slot);
    if (done && atomic_fetch_sub(&j->region->pending, done) == (done | CALLER_SLEEPS)) {
      futex(&j->region->pending, FUTEX_WAKE_PRIVATE, 1);
    }
  }
}

static void wait_for_pieces(region *r) {
  spinner s = {0};
  for (uint32_t left; (left = atomic_load(&r->pending)) & ~CALLER_SLEEPS;) {
    if (left & CALLER_SLEEPS) {
      futex(&r->pending, FUTEX_WAIT_PRIVATE, left);
    } else if (!spin(&s, CALLER_YIELD_NS)) {
      atomic_fetch_or(&r->pending, CALLER_SLEEPS);
    }
  }
}

/* ---- workers ---------------------------------------------------------------------------------------------------- */

static void take_offer(worker *w) {
  spinner s = {0};
  for (;;) {
    uint32_t state = atomic_load(&w->state);
    if (state % STATES == OFFERED && atomic_compare_exchange_strong(&w->state, &state, BUSY)) return;
    if (spin(&s, WORKER_YIELD_NS)) continue;
    state = IDLE;
    atomic_compare_exchange_strong(&w->state, &state, SLEEPING);
    while (atomic_load(&w->state) == SLEEPING) futex(&w->state, FUTEX_WAIT_PRIVATE, SLEEPING);
    s = (spinner){0};
  }
}

static void *worker_main(void *argument) {
  worker *w = argument;
  pthread_setname_np(pthread_self(), "int4mm");
  fesetenv(FE_DFL_ENV);
  in_piece = true;
  for (;;) {
    take_offer(w);
    run_pieces(&w->job);
    atomic_store(&w->state, IDLE);
  }
  return NULL;
}

/* Detached, and deaf to signals, which are for the program's own threads. */
static bool create_thread(worker *w) {
  pthread_attr_t attributes;
  pthread_t thread;
  sigset_t all, before;
  if (pthread_attr_init(&attributes)) return false;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(&thread, &attributes, worker_main, w);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return !error;
}

/* One worker more, in this state, unless there are `max_threads`, another thread is starting one or none can be had. */
static bool start_worker(uint32_t state, int32_t max_threads) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  if (now.tv_sec < atomic_load(&retry_at) || atomic_exchange(&starting_worker, true)) return false;
  int32_t count = atomic_load(&workers_started);
  bool started = false;
  if (count < max_threads && count < MAX_WORKERS) {
    worker *w = &workers[count];
    w->asleep = false;
    atomic_store(&w->state, state);
    started = create_thread(w);
    if (started) {
      atomic_store(&workers_started, count + 1);
    } else {
      atomic_store(&retry_at, now.tv_sec + RETRY_S);
    }
  }
  atomic_store(&starting_worker, false);
  return started;
}

/* Claims up to `wanted` workers, of `max_threads` in all, and returns how many. */
static int32_t claim_workers(uint32_t claimed, int32_t wanted, int32_t max_threads) {
  int32_t count = atomic_load(&workers_started), got = 0;
  for (int32_t i = 0; i < count && got < wanted; i++) {
    uint32_t state = atomic_load(&workers[i].state);
    if (state != IDLE && state != SLEEPING) continue;
    if (!atomic_compare_exchange_strong(&workers[i].state, &state, claimed)) continue;
    workers[i].asleep = state == SLEEPING;
    got++;
  }
  while (got < wanted && count < max_threads && start_worker(claimed, max_threads)) got++, count++;
  return got;
}

static void offer(const job *j, uint32_t claimed, uint32_t offered) {
  for (int32_t i = 0, slot = 1; slot < j->team; i++) {
    worker *w = &workers[i];
    if (atomic_load(&w->state) != claimed) continue;
    bool asleep = w->asleep;
    w->job = *j;
    w->job.slot = slot++;
    atomic_store(&w->state, offered);
    if (asleep) futex(&w->state, FUTEX_WAKE_PRIVATE, 1);
  }
}

static void take_back(uint32_t offered) {
  int32_t count = atomic_load(&workers_started);
  for (int32_t i = 0; i < count; i++) {
    uint32_t state = atomic_load(&workers[i].state);
    if (state == offered) atomic_compare_exchange_strong(&workers[i].state, &state, IDLE);
  }
}

/* ---- regions ---------------------------------------------------------------------------------------------------- */

static region *open_region(void) {
  for (int32_t i = 0; i < REGIONS; i++) {
    if (!atomic_load(&regions[i].open) && !atomic_exchange(&regions[i].open, true)) return &regions[i];
  }
  return NULL;
}

/* At most MAX_PIECES of a call. */
static void run_region(region *r, job *j, int32_t wanted, int32_t max_threads) {
  uint32_t number = (uint32_t)(r - regions) * STATES;
  j->team = 1 + claim_workers(number + CLAIMED, wanted, max_threads);
  j->epoch = r->epoch += MAX_PIECES + 1;
  atomic_store(&r->pending, (uint32_t)j->pieces);
  for (int32_t i = 0; i < j->team; i++) {
    atomic_store(&r->queues[i], j->epoch + (uint64_t)start_of_queue(j, i));
  }
  offer(j, number + CLAIMED, number + OFFERED);
  run_pieces(j);
  if (j->team > 1) take_back(number + OFFERED);
  wait_for_pieces(r);
}

static void run(int32_t threads, int32_t max_threads, int64_t count, int4mm_task *task, void *context) {
  region *r = threads > 1 ? open_region() : NULL;
  if (!r) {
    for (int64_t i = 0; i < count; i++) task(context, i, 0);
    return;
  }
  for (int64_t first = 0; first < count; first += MAX_PIECES) {
    job j = {.task = task, .context = context, .region = r, .first = first};
    j.pieces = (int32_t)int4mm_min64(MAX_PIECES, count - first);
    run_region(r, &j, threads - 1, max_threads - 1);
  }
  atomic_store(&r->open, false);
}

void int4mm_parallel(int32_t threads, int64_t count, int4mm_task *task, void *context) {
  if (count <= 0) return;
  if (in_piece) { /* a piece that is itself a region: the thread's state is set already */
    for (int64_t i = 0; i < count; i++) task(context, i, 0);
    return;
  }
  int32_t max_threads = 1;
  threads = (int32_t)int4mm_min64(threads, count);
  if (threads > 1 && omp_in_parallel && omp_in_parallel()) threads = 1;
  if (threads > 1) { /* leave room for the calls that other threads of the caller are making */
    max_threads = int4mm_get_num_threads();
    threads = (int32_t)int4mm_max64(1, int4mm_min64(threads, max_threads - atomic_load(&busy_threads)));
  }
  atomic_fetch_add(&busy_threads, threads);
  fenv_t environment;
  fegetenv(&environment);
  fesetenv(FE_DFL_ENV);
  in_piece = true;
  run(threads, max_threads, count, task, context);
  in_piece = false;
  fesetenv(&environment);
  atomic_fetch_sub(&busy_threads, threads);
}
