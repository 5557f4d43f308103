/* Instruction sets that this CPU and operating system support, by the names of the tables in cpu.h. */
#ifndef INT4MM_CPU_FEATURES_H
#define INT4MM_CPU_FEATURES_H

#include <stdbool.h>

bool int4mm_has_avx2(void);          /* with F16C and FMA */
bool int4mm_has_avxvnni(void);       /* the VEX form of vpdpbusd, with AVX2 */
bool int4mm_has_avx512vl_vnni(void); /* the 256-bit EVEX form */
bool int4mm_has_avx512vnni(void);
bool int4mm_has_neon_dot(void);
bool int4mm_has_neon_i8mm(void);

#endif
