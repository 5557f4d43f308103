/* AVX-VNNI: vpdpbusd on 256 bits in its VEX form. Needs -mavx2 -mfma -mf16c -mavxvnni. */
#ifndef __AVXVNNI__
#error "compile this file with the flags that flags.mk gives it"
#endif
#include "cpu/x86/x86_256.inc"

const int4mm_cpu_table int4mm_cpu_avxvnni = {"avxvnni", int4mm_has_avxvnni, int4mm_gemm, int4mm_gemm_plan,
                                             &kernels,  &int4mm_rows_avx2,  transpose};
