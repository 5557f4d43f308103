# The files of the CPU backend for this MACHINE (x86_64, aarch64, ...) and the flags of each. Included by the Makefile.
#
#   FLAGS_src/cpu/<file>.c   what that file alone is compiled with, after the flags of the project
#
# Every file that needs an instruction set is here with exactly the flags that give it; all else is compiled for the
# oldest machine of the architecture, since it runs before the choice is made.

CPU_FLAGS := -O3 -fno-math-errno -fno-trapping-math
CPU_FILES := cpu features scalar thread_count threads workspace \
             $(addprefix elementwise/,elementwise groups map quantize rearrange rotate rowwise)
CPU_GEMM  := $(addprefix gemm/,blocked float gemm pack raw skinny strassen)

ifeq ($(MACHINE),x86_64)
CPU_FILES += $(CPU_GEMM) x86/avx2 x86/avxvnni x86/avx512vl_vnni x86/avx512vnni
# x86/x86_256.inc is compiled three times, in avx2, avxvnni and avx512vl_vnni
CPU_FLAGS_avx2 := -mavx2 -mfma -mf16c
CPU_FLAGS_avxvnni := -mavx2 -mfma -mf16c -mavxvnni
CPU_FLAGS_avx512vl_vnni := -mavx2 -mfma -mf16c -mavx512f -mavx512vl -mavx512vnni
CPU_FLAGS_avx512vnni := -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mprefer-vector-width=512
endif

ifeq ($(MACHINE),aarch64)
CPU_FILES += $(CPU_GEMM) aarch64/neon_dot aarch64/neon_i8mm
# aarch64/neon.inc is compiled twice, in both
CPU_FLAGS_neon_dot := -march=armv8.2-a+dotprod
CPU_FLAGS_neon_i8mm := -march=armv8.2-a+dotprod+i8mm
endif

CPU_SRC := $(CPU_FILES:%=src/cpu/%.c)
$(foreach f,$(CPU_FILES),$(eval FLAGS_src/cpu/$f.c := $(CPU_FLAGS) $(CPU_FLAGS_$(notdir $f))))
