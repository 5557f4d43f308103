/* AVX2, by the int16 method, and the elementwise loops of all 256-bit instruction sets. Needs -mavx2 -mfma -mf16c. */
#define INT4MM_ROWS_TABLE int4mm_rows_avx2
#include "cpu/elementwise/rows.inc"

#include "cpu/x86/x86_256.inc"

const int4mm_cpu_table int4mm_cpu_avx2 = {"avx2",   int4mm_has_avx2,   int4mm_gemm, int4mm_gemm_plan,
                                          &kernels, &int4mm_rows_avx2, transpose};
