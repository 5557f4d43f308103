/*
 * The table of int4mm_set_tuning: sorted, and searched for each product.
 */
#include "dispatch/tuning.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/check.h"
#include "core/error.h"
#include "dispatch/registry.h"

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER; /* for all of these */
static struct {
  char device[128];
  int32_t arch;
  int4mm_tuned *tuned; /* sorted by compare(); `kernel` is the registry's name */
  size_t count;
} table;
static atomic_bool is_set; /* so that products without a table take no lock */

static int compare(const void *left, const void *right) {
  const int4mm_tuned *l = left, *r = right;
  const int64_t a[] = {l->M, l->N, l->K, l->group, l->dtype_a, l->scaling, l->zeros, l->layout_b};
  const int64_t b[] = {r->M, r->N, r->K, r->group, r->dtype_a, r->scaling, r->zeros, r->layout_b};
  for (size_t i = 0; i < sizeof a / sizeof *a; i++)
    if (a[i] != b[i]) return a[i] < b[i] ? -1 : 1;
  return 0;
}

/* The registry's own name, which lasts; NULL for an unknown one. */
static const char *registered_name(const char *kernel) {
  for (int32_t i = 0; kernel && i < int4mm_kernel_count; i++)
    if (!strcmp(kernel, int4mm_kernels_cuda[i].name)) return int4mm_kernels_cuda[i].name;
  return NULL;
}

static int32_t copy_sorted(const int4mm_tuned *tuned, int64_t count, int4mm_tuned **copy) {
  *copy = malloc((size_t)count * sizeof **copy);
  if (!*copy) return int4mm_fail(INT4MM_ERR_MEMORY, "no memory for %lld tuned products", (long long)count);
  for (int64_t i = 0; i < count; i++) {
    (*copy)[i] = tuned[i];
    (*copy)[i].kernel = registered_name(tuned[i].kernel);
    if (!tuned[i].scaling) (*copy)[i].group = 0;
    if ((*copy)[i].kernel) continue;
    free(*copy);
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "tuned[%lld].kernel is \"%s\", expected one of int4mm_cuda_kernel_at",
                       (long long)i, tuned[i].kernel ? tuned[i].kernel : "NULL");
  }
  qsort(*copy, (size_t)count, sizeof **copy, compare);
  for (int64_t i = 1; i < count; i++) {
    if (compare(*copy + i - 1, *copy + i)) continue;
    int64_t M = (*copy)[i].M, N = (*copy)[i].N, K = (*copy)[i].K;
    free(*copy);
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "tuned has the product M = %lld, N = %lld, K = %lld twice", (long long)M,
                       (long long)N, (long long)K);
  }
  return INT4MM_OK;
}

int32_t int4mm_set_tuning(const char *device, int32_t arch, const int4mm_tuned *tuned, int64_t count) {
  int4mm_tuned *copy = NULL;
  if (count < 0 || count > INT32_MAX)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "count is %lld, expected from 0 to 2^31 - 1", (long long)count);
  if (count && (!device || !tuned)) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", device ? "tuned" : "device");
  if (count && strlen(device) >= sizeof table.device)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "device has %zu characters, expected at most %zu", strlen(device),
                       sizeof table.device - 1);
  int32_t status = count ? copy_sorted(tuned, count, &copy) : INT4MM_OK;
  if (status) return status;
  pthread_rwlock_wrlock(&lock);
  int4mm_tuned *before = table.tuned;
  strcpy(table.device, count ? device : "");
  table.arch = arch, table.tuned = copy, table.count = (size_t)count;
  atomic_store(&is_set, count > 0);
  pthread_rwlock_unlock(&lock);
  free(before);
  return INT4MM_OK;
}

/* With the lock. */
static bool is_of(const int4mm_gpu_traits *gpu) {
  return table.arch == gpu->arch && gpu->name && !strcmp(table.device, gpu->name);
}

bool int4mm_is_tuned_elsewhere(const int4mm_gpu_traits *gpu) {
  if (!atomic_load_explicit(&is_set, memory_order_relaxed)) return false;
  pthread_rwlock_rdlock(&lock);
  bool elsewhere = table.tuned && !is_of(gpu);
  pthread_rwlock_unlock(&lock);
  return elsewhere;
}

const char *int4mm_tuned_kernel(const int4mm_gpu_traits *gpu, const int4mm_gpu_problem *p) {
  if (!atomic_load_explicit(&is_set, memory_order_relaxed) || p->experts) return NULL; /* a table knows no experts */
  const int4mm_tuned key = {.M = p->M,
                            .N = p->N,
                            .K = p->K,
                            .group = p->scaling ? p->group : 0,
                            .dtype_a = p->dtype_a,
                            .scaling = p->scaling,
                            .zeros = p->zeros,
                            .layout_b = p->layout_b};
  pthread_rwlock_rdlock(&lock);
  const int4mm_tuned *found = NULL;
  if (table.tuned && is_of(gpu)) found = bsearch(&key, table.tuned, table.count, sizeof key, compare);
  const char *kernel = found ? found->kernel : NULL;
  pthread_rwlock_unlock(&lock);
  return kernel;
}
