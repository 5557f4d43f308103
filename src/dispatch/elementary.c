/*
 * simple and tiled: the kernels that serve every problem on every architecture. They are taken where no other serves,
 * simple for small outputs and tiled for the rest.
 */
#include <stdio.h>

#include "dispatch/registry.h"

enum {
  SIMPLE_THREADS = 256,       /* of a CTA, each with an output */
  SMALL_OUTPUTS = 64 * 64 - 1 /* the most for which simple is taken */
};

static const char *unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  return p->experts && !kernel->tile_m ? "has no code for grouped products" : NULL;
}

static int64_t plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  int64_t outputs = int4mm_plan_mul(p->M, p->N);
  int tiled = kernel->tile_m > 0, small = outputs <= SMALL_OUTPUTS && !p->experts;
  plan->ctas = int4mm_plan_ctas(tiled ? int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n)
                                      : int4mm_plan_ceil_div(outputs, SIMPLE_THREADS));
  return INT4MM_COST_ANY + (tiled == small);
}

static void explain(const int4mm_gpu_problem *p, const int4mm_plan *plan, char *text, size_t size) {
  if (plan->tile_m)
    snprintf(text, size, "%d x %d tiles serve any shape on any architecture", plan->tile_m, plan->tile_n);
  else
    snprintf(text, size, "a thread per output serves any shape; %lld outputs", (long long)int4mm_plan_mul(p->M, p->N));
}

const int4mm_family int4mm_family_elementary = {unsupported, plan, explain, INT4MM_COPIES_NONE, true, false};
