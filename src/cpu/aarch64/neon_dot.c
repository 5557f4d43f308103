/* AArch64 with SDOT (ARMv8.2 and later). Needs -march=armv8.2-a+dotprod. */
#ifndef __ARM_FEATURE_DOTPROD
#error "compile this file with the flags that flags.mk gives it"
#endif
#include "cpu/aarch64/neon.inc"

const int4mm_cpu_table int4mm_cpu_neon_dot = {"neon_dot", int4mm_has_neon_dot, int4mm_gemm, int4mm_gemm_plan,
                                              &kernels,   &int4mm_rows_scalar, transpose};
