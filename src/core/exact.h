/*
 * Compiler options that would change the bits of results are refused. Included by every other header of core/, so that
 * no file is compiled without it. INFINITY and NaN are values here, a subnormal is not zero, and float arithmetic is
 * that of float.
 */
#ifndef INT4MM_CORE_EXACT_H
#define INT4MM_CORE_EXACT_H

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) ||                               \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "int4mm: -ffast-math, -Ofast, -ffinite-math-only and their like change the bits of results: leave them out"
#endif
#if defined(__FLT_EVAL_METHOD__) && (__FLT_EVAL_METHOD__ == 1 || __FLT_EVAL_METHOD__ == 2)
#error "int4mm: float arithmetic in a wider type (-mfpmath=387) changes the bits of results: use -msse2 -mfpmath=sse"
#endif

#endif
