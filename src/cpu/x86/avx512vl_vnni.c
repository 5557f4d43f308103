/*
 * AVX512-VNNI on 256-bit registers: the kernels of avxvnni.c with vpdpbusd in its EVEX form, for machines that lack the
 * VEX form, so that these kernels can be tested there. Needs -mavx2 -mfma -mf16c -mavx512f -mavx512vl -mavx512vnni.
 */
#ifndef __AVX512VNNI__
#error "compile this file with the flags that flags.mk gives it"
#endif
#include "cpu/x86/x86_256.inc"

const int4mm_cpu_table int4mm_cpu_avx512vl_vnni = {
    "avx512vl_vnni", int4mm_has_avx512vl_vnni, int4mm_gemm, int4mm_gemm_plan, &kernels, &int4mm_rows_avx2, transpose};
