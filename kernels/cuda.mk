# The CUDA library: what nvcc is, for which architectures it compiles, and the rules. Included by the Makefile where
# something is built and CUDA is not 0. The folder of a kernel says what it is compiled for:
#
#   archs_<folder>   the architectures of CUDA_ARCHS that kernels/<folder>/*.cu are compiled for; archs_<folder>/<name>:
#                    those of one file. Each has one at least, whatever CUDA_ARCHS says, so that the library links;
#                    unused ones are never launched
#   CHECKED          the folders and files whose kernels are tuned to the register: what ptxas spills there is a fault
#
# Sets NO_CUDA, a reason why nothing is compiled, empty where all is there; adds to LIBS.

CUDA_LIB := $(BUILD)/libint4mm_cuda.so
CU_SRC   := $(sort $(wildcard kernels/*/*.cu))
CUDA_C   := $(filter-out src/cuda/loader.c,$(sort $(wildcard src/cuda/*.c))) # the loader is of the core
CUDA_H   := $(sort $(wildcard kernels/*/*.h kernels/*/*.cuh src/cuda/*.h))
CU_OBJ   := $(CU_SRC:%.cu=$(BUILD)/%.o) $(CUDA_C:%.c=$(BUILD)/%.o)

# ---- nvcc ------------------------------------------------------------------------------------------------------------

# PTX 8.1 brought st.async.
CUDA_OLDEST := 12.1
# What was asked for by name and cannot be had stops the build; what was merely not found is a reason to do without.
asked := $(or $(if $(NVCC),NVCC=$(NVCC)),$(if $(CUDA_ASKED),CUDA=1))
NVCC  ?= $(firstword $(shell sh -c 'command -v nvcc') $(wildcard /usr/local/cuda/bin/nvcc))

ifeq ($(NVCC),)
NO_CUDA := no nvcc on PATH or in /usr/local/cuda/bin
else ifeq ($(shell sh -c 'command -v g++'),)
NO_CUDA := nvcc needs g++, which is not installed
else
NVCC_VERSION := $(shell $(NVCC) --version 2>/dev/null | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p')
ifeq ($(NVCC_VERSION),)
NO_CUDA := '$(NVCC) --version' does not run, or is not of nvcc
else
NO_CUDA := $(shell printf '%s\n' $(CUDA_OLDEST) $(NVCC_VERSION) | sort -C -V || \
             echo '$(NVCC) is of CUDA $(NVCC_VERSION), the oldest served is $(CUDA_OLDEST)')
endif
endif

ifneq ($(NO_CUDA),)
ifneq ($(asked),)
$(error $(asked) cannot be had: $(NO_CUDA))
endif

# A library built earlier, where nvcc could be found, stays and is installed. Whether it is still of these sources is
# all that can be told here.
ifneq ($(wildcard $(CUDA_LIB)),)
LIBS     += $(CUDA_LIB)
CUDA_IS   = $(CUDA_LIB) is kept as it was built earlier: $(NO_CUDA)
$(CUDA_LIB): $(CU_SRC) $(CUDA_C) $(CUDA_H) $(ABI)
	@echo "$@ is older than $(firstword $?) and cannot be built: $(NO_CUDA). Give NVCC=/path/to/nvcc, or CUDA=0" \
	  "to do without." >&2; exit 1
endif

else
LIBS += $(CUDA_LIB)

# ---- architectures ---------------------------------------------------------------------------------------------------

ARCHS_OLDEST := 75
ARCHS_KNOWN  := $(shell $(NVCC) --help | grep -oE 'sm_[0-9]+[a-z]?' | sed 's/sm_//' | sort -u | sort -n)
ifeq ($(origin CUDA_ARCHS),undefined)
ARCHS := $(filter $(ARCHS_KNOWN),75 80 86 89 90a 100 120)
else
ARCHS := $(shell printf '%s\n' $(CUDA_ARCHS) | sort -u | sort -n)
unknown := $(filter-out $(ARCHS_KNOWN),$(ARCHS))
ifneq ($(or $(unknown),$(if $(ARCHS),,none)),)
$(error CUDA_ARCHS is '$(CUDA_ARCHS)': expected are architectures that $(NVCC) of CUDA $(NVCC_VERSION) knows \
  ($(ARCHS_KNOWN))$(if $(unknown),$(comma) not $(unknown)))
endif
ifneq ($(shell for a in $(ARCHS); do [ "$${a%[a-z]}" -ge $(ARCHS_OLDEST) ] || echo $$a; done),)
$(error CUDA_ARCHS is '$(CUDA_ARCHS)': the oldest architecture that the kernels serve is $(ARCHS_OLDEST))
endif
endif

archs_sm75        := $(ARCHS)
# Tuned to 75; later ones have kernels of their own.
archs_sm75/mma    := $(or $(filter 75,$(ARCHS_KNOWN)),$(firstword $(ARCHS)))
archs_elementwise := $(ARCHS)
archs_sm80        := $(or $(filter-out 75,$(ARCHS)),80)
# wgmma and bulk tensor copies of this kind exist on 90a alone.
archs_sm90        := 90a
CHECKED := sm75/mma sm80 sm90

folder  = $(patsubst kernels/%/,%,$(dir $1))
stem    = $(patsubst kernels/%.cu,%,$1)
archs   = $(or $(archs_$(call stem,$1)),$(archs_$(call folder,$1)),$(error kernels/cuda.mk has no \
            archs_$(call folder,$1) for $1))
# Machine code for each, which runs on later ones of the same major version, and PTX of one, from which drivers compile
# for any later GPU: of the newest without a letter, but of 100 where that is among them, since 110 takes none of 120.
ptx     = $(or $(filter 100,$1),$(lastword $(filter-out %a %f,$1)))
gencode = $(foreach a,$1,-gencode arch=compute_$a$(comma)code=sm_$a) \
          $(foreach a,$(ptx),-gencode arch=compute_$a$(comma)code=compute_$a)

# ---- flags -----------------------------------------------------------------------------------------------------------

# -lineinfo, which profilers want, would double the library.
NVCCFLAGS ?= -O3
# Machine code in a fifth of the bytes, for 9 ms once when a process first multiplies (H100). Every driver that runs
# CUDA 13 unpacks it; older compilers may serve drivers that do not.
COMPRESS := $(shell printf '%s\n' 13.0 $(NVCC_VERSION) | sort -C -V && echo --compress-mode=size)
PROJECT_NVCCFLAGS := -std=c++17 -Isrc -Ikernels \
                     -Xcompiler -fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra $(COMPRESS) \
                     $(if $(WERROR),-Werror all-warnings -Xcompiler -Werror)

# nvcc defines no macro that would tell these to the code; -Xcompiler's are refused by core/exact.h.
nvcc_flags := $(subst =, ,$(NVCC) $(NVCC_PREPEND_FLAGS) $(NVCCFLAGS) $(NVCC_APPEND_FLAGS))
inexact    := $(or $(filter %-use_fast_math,$(nvcc_flags)),$(findstring -ftz true,$(nvcc_flags)),$(findstring \
                -prec-div false,$(nvcc_flags)),$(findstring -prec-sqrt false,$(nvcc_flags)))
ifneq ($(inexact),)
$(error NVCCFLAGS has $(inexact), which changes the bits of results: leave it out)
endif

CUDA_HOME    := $(patsubst %/bin/nvcc,%,$(realpath $(shell sh -c 'command -v $(lastword $(NVCC))')))
CUDA_INCLUDE := $(if $(wildcard $(CUDA_HOME)/include/cuda_runtime_api.h),-isystem $(CUDA_HOME)/include)
CUDA_LIBPATH := $(addprefix -L,$(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/lib))

CUDA_FLAGS_TEXT := $(nvcc_flags) $(PROJECT_NVCCFLAGS) $(ARCHS)
$(BUILD)/cuda_flags.txt: FORCE
	@$(call write_if_changed,$(CUDA_FLAGS_TEXT))

# ---- rules -----------------------------------------------------------------------------------------------------------

# ptxas reports registers and spills (-v) to a log, which is kept. In the folders of CHECKED the build fails on what
# makes a kernel slow without a word: spills, a setmaxnreg that is ignored (C7508), wgmma that was serialised (C7510 to
# C7520). The ptxas of CUDA 12 serialises the wgmma of two tile shapes, with right results: a warning there.
ptxas_fails := $(or $(WERROR),$(if $(filter 12.%,$(NVCC_VERSION)),,1))
define ptxas_check
@if grep -E '\(C75(08|1[0-9]|20)\)|[1-9][0-9]* bytes spill' $(@:.o=.log) >&2; then \
  echo "$<: ptxas spilled, ignored setmaxnreg or serialised wgmma; all it said is in $(@:.o=.log)" >&2; \
  $(if $(ptxas_fails),rm -f $@; exit 1,:); fi
endef
# Code of 90 on may run before the grid ahead of it has ended (common/launch.cuh), so that no kernel touches global memory
# before griddepcontrol.wait, beyond which ptxas moves ld.global.nc. With WERROR machine code is searched for that, where
# a cuobjdump lies beside nvcc or on PATH: it takes a tenth of the compiler's time.
CUOBJDUMP ?= $(firstword $(wildcard $(CUDA_HOME)/bin/cuobjdump) $(shell sh -c 'command -v cuobjdump'))
waiting    = $(if $(WERROR),$(if $(CUOBJDUMP),$(filter 9% 1%,$(call archs,$1))))
define wait_check
@for arch in $(call waiting,$<); do \
  $(CUOBJDUMP) -sass -arch sm_$$arch $@ | $(LUAJIT) examples/bench/kernel_waits.lua || \
  { echo "$<: code for $$arch touches global memory before griddepcontrol.wait" >&2; rm -f $@; exit 1; }; done
endef
$(BUILD)/kernels/%.o: kernels/%.cu kernels/cuda.mk $(BUILD)/cuda_flags.txt
	@mkdir -p $(@D)
	$(if $(Q),@echo "NVCC $< ($(call archs,$<))")
	$(Q)$(NVCC) $(NVCCFLAGS) $(PROJECT_NVCCFLAGS) $(call gencode,$(call archs,$<)) -Xptxas -v -MMD -MP -MF $(@:.o=.d) \
	  -c -o $@ $< 2> $(@:.o=.log); status=$$?; \
	  grep -Ev '^ptxas info|^ +[0-9]+ bytes stack frame' $(@:.o=.log) >&2; exit $$status
	$(if $(filter $(CHECKED),$(call folder,$<) $(call stem,$<)),$(ptxas_check))
	$(if $(call waiting,$<),$(wait_check))

$(CUDA_C:%.c=$(BUILD)/%.o): PROJECT_CFLAGS += $(CUDA_INCLUDE)
$(CUDA_C:%.c=$(BUILD)/%.o): $(BUILD)/cuda_flags.txt
$(BUILD)/src/cuda/device.o: PROJECT_CFLAGS += -DINT4MM_CUDA_ARCHS='"$(ARCHS)"' # for the words of an error

# The runtimes of CUDA and C++ are linked in and their symbols kept inside: the library needs nothing but the driver.
$(CUDA_LIB): $(CU_OBJ)
	$(if $(Q),@echo "LINK $@")
	$(Q)g++ $(LIBFLAG) $(CFLAGS) $(LDFLAGS) -static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL -o $@ $^ \
	  $(CUDA_LIBPATH) -lcudart_static -lrt $(PROJECT_LDLIBS)
	@echo "$@ has $$(($$(wc -c < $@) / 1000000)) MB, with code for $(ARCHS)"

-include $(CU_OBJ:.o=.d)
endif
