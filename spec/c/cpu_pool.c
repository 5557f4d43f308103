/*
 * The pool of threads itself, through int4mm_parallel: every piece once, with threads that cannot be had, that come
 * late, that a fork left behind, and how many there are by default. This program's own pthread_create stands before
 * libc's, so that it may refuse a thread or hold it back, and so does its syscall. What forks is left out under
 * ThreadSanitizer and where NO_FORK is set.
 */
#define _GNU_SOURCE /* RTLD_NEXT, CPU_SET */
#include <dlfcn.h>
#include <errno.h>
#include <fenv.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "child.h"
#include "cpu/cpu.h"

/* ---- threads under control -------------------------------------------------------------------------------------- */

static atomic_bool refuse_threads;
static atomic_int threads_refused;
static atomic_bool hold_threads; /* new threads wait at their start while it is set */

typedef struct beginning {
  void *(*start)(void *);
  void *argument;
} beginning;

static void *held(void *argument) {
  beginning b = *(beginning *)argument;
  free(argument);
  while (atomic_load(&hold_threads)) usleep(1000);
  return b.start(b.argument);
}

static int (*libc_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
static long (*libc_syscall)(long, ...);

__attribute__((constructor)) static void find_libc(void) {
  *(void **)&libc_create = dlsym(RTLD_NEXT, "pthread_create");
  *(void **)&libc_syscall = dlsym(RTLD_NEXT, "syscall");
}

int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes, void *(*start)(void *),
                   void *restrict argument) {
  if (atomic_load(&refuse_threads)) {
    atomic_fetch_add(&threads_refused, 1);
    return EAGAIN;
  }
  beginning *b = malloc(sizeof *b);
  if (!b) return EAGAIN;
  *b = (beginning){start, argument};
  int error = libc_create(thread, attributes, held, b);
  if (error) free(b);
  return error;
}

static pthread_t main_thread;
static enum { PASS, ARMED, HOLDING } _Atomic wake; /* ARMED: the next worker that wakes a caller is held after it */

long syscall(long number, ...) {
  long x[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; i++) x[i] = va_arg(list, long);
  va_end(list);
  long result = libc_syscall(number, x[0], x[1], x[2], x[3], x[4], x[5]);
  if (number == SYS_futex && (int)x[1] == FUTEX_WAKE_PRIVATE && atomic_load(&wake) == ARMED &&
      !pthread_equal(pthread_self(), main_thread)) {
    atomic_store(&wake, HOLDING);
    while (atomic_load(&wake) == HOLDING) usleep(1000);
  }
  return result;
}

/* ---- regions ---------------------------------------------------------------------------------------------------- */

enum { PIECES = 1000, MAX_COUNT = (1 << 20) + 5 };

typedef struct region_seen {
  unsigned char *times; /* each piece was run */
  atomic_int outside;   /* pieces whose slot is not below the number of threads, or that ran on another thread */
  int32_t asked, threads;
  pthread_t only; /* the one thread that may run pieces, when threads is 1 */
} region_seen;

static void see(void *context, int64_t index, int32_t slot) {
  region_seen *seen = context;
  seen->times[index]++;
  if (seen->threads < seen->asked) usleep(1000); /* time for others to come */
  if (slot < 0 || slot >= seen->threads) atomic_fetch_add(&seen->outside, 1);
  if (seen->threads == 1 && !pthread_equal(pthread_self(), seen->only)) atomic_fetch_add(&seen->outside, 1);
}

/* Whether a region of `count` pieces on up to `threads` threads, when `asked` are asked for, runs each of them once. */
static bool runs_each_on(int32_t asked, int32_t threads, int64_t count) {
  region_seen seen = {
      .times = calloc((size_t)count + 1, 1), .asked = asked, .threads = threads, .only = pthread_self()};
  if (!seen.times) return false;
  int4mm_parallel(asked, count, see, &seen);
  bool right = atomic_load(&seen.outside) == 0 && seen.times[count] == 0;
  for (int64_t i = 0; i < count; i++) right = right && seen.times[i] == 1;
  free(seen.times);
  return right;
}

static bool runs_each_once(int32_t threads, int64_t count) {
  return runs_each_on(threads, threads, count);
}

static void meet(void *arrived, int64_t index, int32_t slot) {
  (void)index, (void)slot;
  atomic_fetch_add((atomic_int *)arrived, 1);
  for (int ms = 0; ms < 20000 && atomic_load((atomic_int *)arrived) < 3; ms++) usleep(1000);
}

/* Whether three pieces run at the same time; they wait for each other for 20 seconds. */
static bool runs_in_parallel(void) {
  atomic_int arrived = 0;
  int64_t seconds = time(NULL);
  int4mm_parallel(3, 3, meet, &arrived);
  return time(NULL) - seconds < 20;
}

static void every_piece_once(void) {
  static const int64_t counts[] = {0, 1, 2, 3, 7, 8, PIECES, (1 << 20) - 1, 1 << 20, MAX_COUNT};
  OK(int4mm_set_num_threads(9));
  for (int32_t threads = 1; threads <= 9; threads++) {
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) CHECK(runs_each_once(threads, counts[i]));
  }
}

static void nested(void *context, int64_t index, int32_t slot) {
  (void)index, (void)slot;
  bool right = runs_each_on(4, 1, 10); /* on this thread */
  if (!right) atomic_fetch_add((atomic_int *)context, 1);
}

static void inside_a_piece(void) {
  atomic_int wrong = 0;
  int4mm_parallel(4, 20, nested, &wrong);
  CHECK(atomic_load(&wrong) == 0);
}

static void *call(void *failures) {
  for (int i = 0; i < 200; i++) {
    if (!runs_each_once(1 + i % 5, 1 + i * 7 % 300)) atomic_fetch_add((atomic_int *)failures, 1);
  }
  return NULL;
}

/* More callers than there are regions, so that some run alone. */
static void many_callers(void) {
  enum { CALLERS = 80 };
  pthread_t callers[CALLERS];
  atomic_int failed = 0;
  int started = 0;
  OK(int4mm_set_num_threads(200));
  while (started < CALLERS && !pthread_create(&callers[started], NULL, call, &failed)) started++;
  for (int i = 0; i < started; i++) pthread_join(callers[i], NULL);
  CHECK(started == CALLERS && atomic_load(&failed) == 0);
  OK(int4mm_set_num_threads(9));
}

typedef struct surroundings {
  pthread_t caller;
  atomic_int arrived, other_rounding, signals;
} surroundings;

static void look_around(void *context, int64_t index, int32_t slot) {
  surroundings *s = context;
  meet(&s->arrived, index, slot);
  if (fegetround() != FE_TONEAREST) atomic_fetch_add(&s->other_rounding, 1);
  sigset_t blocked;
  pthread_sigmask(SIG_SETMASK, NULL, &blocked);
  if (pthread_equal(pthread_self(), s->caller)) return;
  if (!sigismember(&blocked, SIGTERM) || !sigismember(&blocked, SIGUSR1)) atomic_fetch_add(&s->signals, 1);
}

/* Rounding as by default in pieces, the caller's after them; signals go to the program's own threads. */
static void threads_state(void) {
  surroundings s = {.caller = pthread_self()};
  fesetround(FE_UPWARD);
  int4mm_parallel(3, 3, look_around, &s);
  CHECK(fegetround() == FE_UPWARD);
  fesetround(FE_TONEAREST);
  CHECK(atomic_load(&s.other_rounding) == 0 && atomic_load(&s.signals) == 0);
}

/* ---- threads that are not there --------------------------------------------------------------------------------- */

/* While the pool is empty. */
static void no_threads(void) {
  OK(int4mm_set_num_threads(4));
  atomic_store(&refuse_threads, true);
  CHECK(runs_each_once(4, PIECES));
  CHECK(atomic_load(&threads_refused) > 0);
  atomic_store(&refuse_threads, false);
  usleep(1100000); /* the pool asks again after a second */
  CHECK(runs_in_parallel());
}

/* Regions end although their workers have not started; those find closed regions, and others' later. */
static void late_threads(void) {
  OK(int4mm_set_num_threads(9)); /* more than were started before */
  atomic_store(&hold_threads, true);
  for (int i = 0; i < 100; i++) CHECK(runs_each_once(9, PIECES));
  atomic_store(&hold_threads, false);
  for (int i = 0; i < 1000; i++) CHECK(runs_each_once(2 + i % 8, 1 + i % 20));
}

static atomic_int slow_pieces, pieces_after_end;
static atomic_bool slow_region_open;

static void slow(void *context, int64_t index, int32_t slot) {
  (void)context, (void)index;
  if (!atomic_load(&slow_region_open)) atomic_fetch_add(&pieces_after_end, 1);
  if (slot > 0 && atomic_fetch_add(&slow_pieces, 1) == 0) usleep(20000); /* the caller falls asleep */
  if (slot == 0) {                                                       /* when the worker has come */
    for (int ms = 0; ms < 1000 && !atomic_load(&slow_pieces); ms++) usleep(1000);
  }
}

static void let_go(void *context, int64_t index, int32_t slot) {
  (void)context, (void)slot;
  if (index > 0) return;
  atomic_store(&wake, PASS);
  usleep(20000);
}

/* A worker that is descheduled between the last piece of a region and looking for another: it has to find that region
 * closed, although another is open in its place. */
static void worker_after_the_end(void) {
  OK(int4mm_set_num_threads(2));
  for (int held = 0; held < 3;) {
    atomic_store(&slow_pieces, 0);
    atomic_store(&slow_region_open, true);
    atomic_store(&wake, ARMED);
    int4mm_parallel(2, PIECES, slow, NULL);
    atomic_store(&slow_region_open, false);
    usleep(5000);
    if (atomic_load(&wake) == HOLDING) held++;
    int4mm_parallel(2, PIECES, let_go, NULL);
    atomic_store(&wake, PASS);
  }
  CHECK(atomic_load(&pieces_after_end) == 0);
}

/* ---- fork ------------------------------------------------------------------------------------------------------- */

static bool many_regions(void) {
  bool right = runs_in_parallel();
  for (int i = 0; i < 200; i++) right = right && runs_each_once(4, PIECES);
  return right;
}

static atomic_bool region_entered, region_may_end;

static void linger(void *context, int64_t index, int32_t slot) {
  (void)context, (void)index, (void)slot;
  atomic_store(&region_entered, true);
  while (!atomic_load(&region_may_end)) usleep(1000);
}

static void *linger_in_region(void *unused) {
  int4mm_parallel(2, 2, linger, NULL);
  return unused;
}

/* While another thread is inside a region, with a worker of the pool. */
static void fork_beside_region(void) {
  pthread_t thread;
  OK(int4mm_set_num_threads(4));
  CHECK(!pthread_create(&thread, NULL, linger_in_region, NULL));
  while (!atomic_load(&region_entered)) usleep(1000);
  CHECK(in_child(many_regions));
  atomic_store(&region_may_end, true);
  pthread_join(thread, NULL);
  CHECK(many_regions());
  CHECK(in_child(many_regions));
}

/* ---- how many --------------------------------------------------------------------------------------------------- */

/* Confined to one core after the first call, the default becomes one thread, and is as before when that ends. */
static void affinity(void) {
  cpu_set_t before, one;
  OK(int4mm_set_num_threads(0));
  int32_t count = int4mm_get_num_threads();
  CHECK(!sched_getaffinity(0, sizeof before, &before) && count <= CPU_COUNT(&before));
  CPU_ZERO(&one);
  for (int cpu = 0; !CPU_COUNT(&one); cpu++) {
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  }
  CHECK(!sched_setaffinity(0, sizeof one, &one));
  while (int4mm_get_num_threads() != 1) usleep(1000); /* until the alarm */
  CHECK(runs_each_once(int4mm_threads_for(1 << 20, 1), PIECES));
  CHECK(!sched_setaffinity(0, sizeof before, &before));
  while (int4mm_get_num_threads() != count) usleep(1000);
}

static char root[] = "/tmp/int4mm-cgroup-XXXXXX";

/* A file below the root and the folders that it needs; no text: removes it. */
static void put(const char *path, const char *text) {
  char whole[256];
  snprintf(whole, sizeof whole, "%s/%s", root, path);
  for (char *at = whole + strlen(root) + 1; (at = strchr(at, '/')); at++) {
    *at = 0;
    mkdir(whole, 0700);
    *at = '/';
  }
  if (!text) {
    unlink(whole);
    return;
  }
  FILE *file = fopen(whole, "w");
  CHECK(file && fputs(text, file) >= 0);
  if (file) fclose(file);
}

static int32_t with_cpu_max(const char *text) {
  put("cpu.max", text);
  return int4mm_cgroup_cpus(root, "0::/\n");
}

static void quota_version_2(void) {
  static const char nested[] = "1:name=systemd:/x\n0::/a/b\n";
  CHECK(int4mm_cgroup_cpus(root, "0::/\n") == INT32_MAX); /* no file */
  CHECK(with_cpu_max("max 100000\n") == INT32_MAX);
  CHECK(with_cpu_max("100000 100000\n") == 1);
  CHECK(with_cpu_max("350000 100000\n") == 3);
  CHECK(with_cpu_max("25000 50000\n") == 1);
  CHECK(with_cpu_max("1600000 200000") == 8);
  CHECK(with_cpu_max("") == INT32_MAX && with_cpu_max("100000") == INT32_MAX && with_cpu_max("1 0") == INT32_MAX);
  CHECK(with_cpu_max("-5 100000") == INT32_MAX && with_cpu_max("x y") == INT32_MAX);
  with_cpu_max("800000 100000");
  CHECK(int4mm_cgroup_cpus(root, nested) == 8); /* of a cgroup above, though the folder is not seen */
  put("a/b/cpu.max", "max 100000\n");
  put("a/cpu.max", "200000 100000\n");
  CHECK(int4mm_cgroup_cpus(root, nested) == 2);
  put("a/b/cpu.max", "100000 100000\n");
  CHECK(int4mm_cgroup_cpus(root, nested) == 1);
  CHECK(int4mm_cgroup_cpus(root, "0::/a") == 2);
  CHECK(int4mm_cgroup_cpus(root, "") == INT32_MAX && int4mm_cgroup_cpus(root, "\n:::\n0:\n") == INT32_MAX);
  put("cpu.max", NULL), put("a/cpu.max", NULL), put("a/b/cpu.max", NULL);
}

static void quota_version_1(void) {
  static const char membership[] = "9:cpuset:/\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n0::/\n";
  put("cpu,cpuacct/cpu.cfs_quota_us", "-1\n"), put("cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  CHECK(int4mm_cgroup_cpus(root, membership) == INT32_MAX);
  put("cpu,cpuacct/cpu.cfs_quota_us", "400000\n");
  CHECK(int4mm_cgroup_cpus(root, membership) == 4); /* what a container sees as its root */
  put("cpu,cpuacct/docker/1/cpu.cfs_quota_us", "50000\n");
  CHECK(int4mm_cgroup_cpus(root, membership) == 4); /* no period */
  put("cpu,cpuacct/docker/1/cpu.cfs_period_us", "20000\n");
  CHECK(int4mm_cgroup_cpus(root, membership) == 2);
  put("cpuset/cpu.cfs_quota_us", "100000\n"), put("cpuset/cpu.cfs_period_us", "100000\n");
  CHECK(int4mm_cgroup_cpus(root, membership) == 2); /* not the cpu controller's */
  CHECK(int4mm_cgroup_cpus(root, "2:cpuacct:/docker/1\n") == INT32_MAX);
  put("cpu/cpu.cfs_quota_us", "100000\n"), put("cpu/cpu.cfs_period_us", "100000\n");
  CHECK(int4mm_cgroup_cpus(root, "1:cpu:/\n") == 1);
}

static void quotas(void) {
  CHECK(mkdtemp(root) != NULL);
  quota_version_2();
  quota_version_1();
  char command[64];
  snprintf(command, sizeof command, "rm -rf %s", root);
  CHECK(system(command) == 0);
}

int main(void) {
#if defined(__SANITIZE_THREAD__)
  const bool forks = false;
#else
  const bool forks = !getenv("NO_FORK");
#endif
  main_thread = pthread_self();
  alarm(300); /* a region without end is a failure */
  unsetenv("INT4MM_NUM_THREADS");
  no_threads();
  late_threads();
  worker_after_the_end();
  every_piece_once();
  inside_a_piece();
  many_callers();
  threads_state();
  if (forks) fork_beside_region();
  affinity();
  quotas();
  return report();
}
