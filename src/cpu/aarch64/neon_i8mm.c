/* AArch64 with SMMLA (ARMv8.6, optional from 8.2 on). Needs -march=armv8.2-a+dotprod+i8mm. */
#ifndef __ARM_FEATURE_MATMUL_INT8
#error "compile this file with the flags that flags.mk gives it"
#endif
#define INT4MM_I8MM 1
#include "cpu/aarch64/neon.inc"

const int4mm_cpu_table int4mm_cpu_neon_i8mm = {"neon_i8mm", int4mm_has_neon_i8mm, int4mm_gemm, int4mm_gemm_plan,
                                               &kernels,    &int4mm_rows_scalar,  transpose};
