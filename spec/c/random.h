/*
 * The random numbers of the C tests: set `state`, then draw.
 */
#ifndef INT4MM_SPEC_RANDOM_H
#define INT4MM_SPEC_RANDOM_H

#include <stdint.h>

static uint64_t state;

static uint32_t next(void) { /* splitmix64 (Steele, Lea and Flood, OOPSLA 2014) */
  uint64_t x = state += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return (uint32_t)((x ^ x >> 31) >> 16);
}

/* From 0 to n - 1; 0 where there is no such number. */
static int64_t below(int64_t n) {
  return n > 0 ? next() % n : 0;
}

#endif
