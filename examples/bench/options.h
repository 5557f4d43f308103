/*
 * The options that the benchmarks in C have in common; options.lua has them for those in Lua, under the same names:
 *   --shapes MxKxN,...   --only name,...   --threads 1,2   --rounds n   --seconds t
 * Whatever cannot be followed, an empty list too, ends the program with a sentence and status 1.
 */
#ifndef INT4MM_BENCH_OPTIONS_H
#define INT4MM_BENCH_OPTIONS_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct bench_shape {
  int64_t M, K, N;
} bench_shape;

static inline void fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, why);
  exit(1);
}

/* Ends the program for an option's value. */
static inline void refuse(const char *option, const char *value, const char *expected) {
  fprintf(stderr, "%s: %s is '%s', expected %s\n", program_invocation_short_name, option, value, expected);
  exit(1);
}

/* The value of `option` where it is at argv[*i], which then is moved to the value; else NULL. */
static inline const char *option_value(int argc, char **argv, int *i, const char *option) {
  if (strcmp(argv[*i], option)) return NULL;
  if (*i + 1 >= argc) fail(option, "a value is expected after it");
  return argv[++*i];
}

/* A whole number of [least, most] at `text`; *end is what comes after it. -1 where there is none. */
static inline int64_t whole_number(const char *text, const char **end, int64_t least, int64_t most) {
  char *after;
  errno = 0;
  long long number = strtoll(text, &after, 10);
  *end = after;
  bool good = *text >= '0' && *text <= '9' && !errno && number >= least && number <= most;
  return good ? (int64_t)number : -1;
}

static inline int option_count(const char *option, const char *value, int least, int most) {
  char expected[64];
  const char *end;
  int64_t count = whole_number(value, &end, least, most);
  snprintf(expected, sizeof expected, "a whole number from %d to %d", least, most);
  if (count < 0 || *end) refuse(option, value, expected);
  return (int)count;
}

static inline double option_seconds(const char *option, const char *value) {
  char *end;
  double seconds = strtod(value, &end);
  if (end == value || *end || !(seconds > 0 && seconds <= 3600)) refuse(option, value, "seconds, above 0, up to 3600");
  return seconds;
}

/* "1,2" as counts from 1, at most `most` of them; returns how many. */
static inline int option_threads(const char *option, const char *value, int *threads, int most) {
  int given = 0;
  for (const char *text = value;; text++) {
    int64_t count = whole_number(text, &text, 1, 4096);
    if (count < 0 || given == most || (*text && *text != ',')) refuse(option, value, "numbers of threads, as in 1,2");
    threads[given++] = (int)count;
    if (!*text) return given;
  }
}

/* "1x4096x4096,16x4096x4096", at most `most` of them; returns how many. */
static inline int option_shapes(const char *option, const char *value, bench_shape *shapes, int most) {
  int given = 0;
  for (const char *text = value;; text++) {
    bench_shape s = {.M = whole_number(text, &text, 1, INT32_MAX)};
    if (*text == 'x') s.K = whole_number(text + 1, &text, 8, INT32_MAX);
    if (*text == 'x') s.N = whole_number(text + 1, &text, 1, INT32_MAX);
    if (s.M < 1 || s.K < 8 || s.K % 8 || s.N < 1 || given == most || (*text && *text != ',')) {
      refuse(option, value, "shapes MxKxN, with K a multiple of 8, as in 1x4096x4096,1024x1024x1024");
    }
    shapes[given++] = s;
    if (!*text) return given;
  }
}

/* Whether `name` holds one of the texts of `only`, "a,b"; NULL selects all, an empty text nothing. */
static inline bool selected(const char *only, const char *name) {
  char text[64];
  while (only) {
    size_t length = strcspn(only, ",");
    snprintf(text, sizeof text, "%.*s", (int)length, only);
    if (*text && strstr(name, text)) return true;
    if (!only[length]) return false;
    only += length + 1;
  }
  return true;
}

#endif
