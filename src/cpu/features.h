/* What the CPU and the operating system at hand can do. */
#ifndef INT4MM_CPU_FEATURES_H
#define INT4MM_CPU_FEATURES_H

#include <stdbool.h>

bool int4mm_has_avx2(void);          /* and F16C */
bool int4mm_has_avxvnni(void);       /* the VEX form of vpdpbusd, beside AVX2 */
bool int4mm_has_avx512vl_vnni(void); /* its 256-bit EVEX form */
bool int4mm_has_avx512vnni(void);
bool int4mm_has_neon_dot(void);
bool int4mm_has_neon_i8mm(void);

#endif
