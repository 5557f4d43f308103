/*
 * CPU features by cpuid and auxv, since compilers' builtins differ in the names that they know. An AVX feature is used
 * only where the operating system saves its registers, which XCR0 says.
 */
#include "cpu/features.h"

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>

enum {
  XCR0_AVX = 0x06,    /* XMM and YMM state */
  XCR0_AVX512 = 0xe6, /* those, the mask registers and both halves of ZMM */
};

typedef struct leaf {
  uint32_t eax, ebx, ecx, edx;
} leaf;

static leaf cpuid(uint32_t number, uint32_t sub) {
  leaf l = {0, 0, 0, 0};
  if (!__get_cpuid_count(number, sub, &l.eax, &l.ebx, &l.ecx, &l.edx)) l = (leaf){0, 0, 0, 0};
  return l;
}

static bool bit(uint32_t word, int n) {
  return word >> n & 1;
}

/* Whether the operating system saves these registers at a context switch. */
static bool os_saves(uint32_t state) {
  if (!bit(cpuid(1, 0).ecx, 27)) return false; /* OSXSAVE */
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & state) == state;
}

bool int4mm_has_avx2(void) {
  leaf one = cpuid(1, 0), seven = cpuid(7, 0);
  /* AVX, FMA, F16C, AVX2 */
  return bit(one.ecx, 28) && bit(one.ecx, 12) && bit(one.ecx, 29) && bit(seven.ebx, 5) && os_saves(XCR0_AVX);
}

bool int4mm_has_avxvnni(void) {
  return int4mm_has_avx2() && cpuid(7, 0).eax >= 1 && bit(cpuid(7, 1).eax, 4);
}

/* AVX512 F, DQ, BW, VL and VNNI. Every CPU with the last has the others. */
bool int4mm_has_avx512vl_vnni(void) {
  leaf seven = cpuid(7, 0);
  return int4mm_has_avx2() && bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 30) && bit(seven.ebx, 31) &&
         bit(seven.ecx, 11) && os_saves(XCR0_AVX512);
}

bool int4mm_has_avx512vnni(void) {
  return int4mm_has_avx512vl_vnni();
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

bool int4mm_has_neon_dot(void) {
  return getauxval(AT_HWCAP) >> 20 & 1;
} /* HWCAP_ASIMDDP */
bool int4mm_has_neon_i8mm(void) {
  return int4mm_has_neon_dot() && (getauxval(AT_HWCAP2) >> 13 & 1);
} /* HWCAP2_I8MM */
#endif
