/*
 * The twin of avxvnni.c for machines that have vpdpbusd in its EVEX form alone, so that the body which both share runs
 * there too. Needs -mavx2 -mf16c -mavx512f -mavx512vl -mavx512vnni.
 */
#ifndef __AVX512VNNI__
#error "compile this file with the flags that flags.mk gives it"
#endif
#include "cpu/x86/x86_256.inc"

const int4mm_cpu_table int4mm_cpu_avx512vl_vnni = {
    "avx512vl_vnni", int4mm_has_avx512vl_vnni, int4mm_gemm, int4mm_gemm_plan, &kernels, &int4mm_rows_avx2};
