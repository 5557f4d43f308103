/*
 * How many threads a call of the CPU backend may have: int4mm_set_num_threads, else INT4MM_NUM_THREADS, else the least
 * of the cores that the calling thread may run on, the cgroups' CPU quota and OMP_NUM_THREADS.
 *
 * The variables and the quota are read once. The affinity mask is asked for again once a tick of the kernel's clock
 * (some milliseconds), since a process may be confined to other cores at any time.
 */
#define _GNU_SOURCE /* sched_getaffinity, secure_getenv */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cpu/cpu.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int32_t asked_for;         /* INT4MM_NUM_THREADS; 0 for none. Written once, under `once`, as the next two are */
static int32_t limit;             /* of the default besides the cores */
static char warning[160];         /* about INT4MM_NUM_THREADS */
static atomic_int chosen_threads; /* int4mm_set_num_threads; 0: the default */

/* ---- cgroups ---------------------------------------------------------------------------------------------------- */

/* A file's beginning as text; false where there is no such file. */
static bool read_file(const char *path, char *text, size_t size) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return false;
  size_t used = 0;
  for (ssize_t got; used < size - 1 && (got = read(file, text + used, size - 1 - used)) > 0;) used += (size_t)got;
  close(file);
  text[used] = 0;
  return used > 0;
}

/* CPUs of a quota: "150000 100000" are 1. No limit where there is no number ("max", "-1"). */
static int32_t cpus_of_quota(const char *quota, const char *period) {
  int64_t used = strtoll(quota, NULL, 10), of = strtoll(period, NULL, 10);
  if (used <= 0 || of <= 0) return INT32_MAX;
  return (int32_t)int4mm_max64(1, int4mm_min64(used / of, INT32_MAX));
}

/* What the folder of one cgroup allows: cpu.max in version 2, two files in version 1. */
static int32_t cpus_of_folder(const char *folder) {
  char path[PATH_MAX], quota[64], period[64];
  snprintf(path, sizeof path, "%s/cpu.max", folder);
  if (read_file(path, quota, sizeof quota)) {
    const char *second = strchr(quota, ' ');
    return second ? cpus_of_quota(quota, second) : INT32_MAX;
  }
  snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
  if (!read_file(path, quota, sizeof quota)) return INT32_MAX;
  snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
  return read_file(path, period, sizeof period) ? cpus_of_quota(quota, period) : INT32_MAX;
}

/* The least that a cgroup and those above it allow. In a container `cgroup` may name folders that it does not see; the
 * mounted root is then its own. */
static int32_t cpus_of_path(const char *root, const char *controllers, const char *cgroup) {
  char folder[PATH_MAX];
  size_t base = (size_t)snprintf(folder, sizeof folder, "%s%s%s", root, *controllers ? "/" : "", controllers);
  if (base + strlen(cgroup) >= sizeof folder - 32) return INT32_MAX;
  strcpy(folder + base, cgroup);
  int32_t cpus = cpus_of_folder(folder);
  for (char *end; (end = strrchr(folder + base, '/'));) {
    *end = 0;
    cpus = (int32_t)int4mm_min64(cpus, cpus_of_folder(folder));
  }
  return cpus;
}

static bool has_cpu_controller(const char *controllers) {
  for (const char *at = controllers; (at = strstr(at, "cpu")); at += 3) {
    if ((at == controllers || at[-1] == ',') && (at[3] == 0 || at[3] == ',')) return true;
  }
  return false;
}

/* Lines of `membership` are number:controllers:path; version 2 has no controllers there. */
int32_t int4mm_cgroup_cpus(const char *root, const char *membership) {
  int32_t cpus = INT32_MAX;
  for (const char *line = membership; line; line = strchr(line, '\n'), line = line ? line + 1 : NULL) {
    char controllers[128], path[2048];
    int fields = sscanf(line, "%*d:%127[^:\n]:%2047[^\n]", controllers, path);
    if (fields < 1) {
      *controllers = 0;
      if (sscanf(line, "%*d::%2047[^\n]", path) < 1) continue;
    } else if (fields < 2 || !has_cpu_controller(controllers)) {
      continue;
    }
    cpus = (int32_t)int4mm_min64(cpus, cpus_of_path(root, controllers, path));
    if (*controllers) cpus = (int32_t)int4mm_min64(cpus, cpus_of_path(root, "cpu", path)); /* the usual link */
  }
  return cpus;
}

/* ---- the default ------------------------------------------------------------------------------------------------ */

/* Of a variable's number; 0 where it is not set or is none from 1 to INT4MM_MAX_THREADS. */
static int32_t number_in(const char *text, const char *ends) {
  if (!text) return 0;
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  bool whole = end != text && !errno && (*end == 0 || strchr(ends, *end));
  return whole && value >= 1 && value <= INT4MM_MAX_THREADS ? (int32_t)value : 0;
}

static void setup(void) {
  char membership[16384];
  const char *text = secure_getenv("INT4MM_NUM_THREADS");
  asked_for = number_in(text, "");
  if (text && *text && !asked_for) {
    snprintf(warning, sizeof warning, "INT4MM_NUM_THREADS is \"%.40s\", expected 1 to %d; the default is used", text,
             (int)INT4MM_MAX_THREADS);
  }
  limit = INT4MM_MAX_THREADS;
  if (read_file("/proc/self/cgroup", membership, sizeof membership)) {
    limit = (int32_t)int4mm_min64(limit, int4mm_cgroup_cpus("/sys/fs/cgroup", membership));
  }
  int32_t openmp = number_in(secure_getenv("OMP_NUM_THREADS"), ", "); /* the first of a list */
  if (openmp) limit = (int32_t)int4mm_min64(limit, openmp);
}

/* Cores that this thread may run on. */
static int32_t usable_cores(void) {
  unsigned long set[2048 / sizeof(long)]; /* for 16384 cores; the kernel has 8192 at most */
  if (sched_getaffinity(0, sizeof set, (cpu_set_t *)set)) return 1;
  return (int32_t)int4mm_max64(1, CPU_COUNT_S(sizeof set, (cpu_set_t *)set));
}

/* The same, as of this tick of the kernel's clock: reading that takes a few nanoseconds, asking a few hundred. */
static int32_t usable_cores_now(void) {
  static _Thread_local struct timespec asked_at;
  static _Thread_local int32_t cores;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  if (!cores || now.tv_nsec != asked_at.tv_nsec || now.tv_sec != asked_at.tv_sec) {
    cores = usable_cores();
    asked_at = now;
  }
  return cores;
}

int32_t int4mm_get_num_threads(void) {
  int32_t chosen = atomic_load(&chosen_threads);
  if (chosen) return chosen;
  pthread_once(&once, setup);
  return asked_for ? asked_for : (int32_t)int4mm_min64(limit, usable_cores_now());
}

int32_t int4mm_set_num_threads(int32_t threads) {
  if (threads < 0 || threads > INT4MM_MAX_THREADS) {
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "threads is %d, expected 1 to %d, or 0 for the default", (int)threads,
                       (int)INT4MM_MAX_THREADS);
  }
  atomic_store(&chosen_threads, threads);
  return INT4MM_OK;
}

int32_t int4mm_threads_for(int64_t work, int64_t grain) {
  if (work < 2 * grain) return 1;
  return (int32_t)int4mm_min64(work / grain, int4mm_get_num_threads());
}

const char *int4mm_threads_warning(void) {
  pthread_once(&once, setup);
  return *warning ? warning : NULL;
}
