# int4mm: the core (C), the CUDA backend where nvcc is found, and the generated Lua cdef.
#
#   make demo            builds, multiplies and checks; installs what is missing on Debian
#   make test            runs the specs; SPEC=spec/pack_spec.lua for one, ARGS="--filter ..." for busted
#   make help            lists the targets
#
# Variables: BUILD folder, CC, CFLAGS, LDFLAGS, CUDA=0 (no CUDA), NVCC, CUDA_ARCHS, WERROR=1, V=1 (show commands),
# SANITIZE=address,undefined, PREFIX, DESTDIR. Project flags stand apart from CFLAGS, so that CFLAGS on the command line
# (as LuaRocks gives it) adds to them and drops none.

comma := ,
ifeq ($(origin CC),default)
CC := gcc
endif
LUAJIT   ?= luajit
BUILD    ?= build$(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))
PREFIX   ?= /usr/local
LUADIR   ?= $(PREFIX)/share/lua/5.1
LIBDIR   ?= $(PREFIX)/lib/lua/5.1
INCDIR   ?= $(PREFIX)/include
SPEC     ?= spec
Q        := $(if $(V),,@)

# The build before a run uses every core, unless -j was given.
JOBS     := $(or $(shell getconf _NPROCESSORS_ONLN 2>/dev/null),1)
BUILD_IT  = $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS)) all

# ---- what is built with which flags ----------------------------------------------------------------------------------

CFLAGS  ?= -O3 -g
LIBFLAG ?= -shared
PROJECT_CFLAGS := -std=gnu11 -Isrc -Ikernels -fPIC -fvisibility=hidden -ffp-contract=off -fopenmp -pthread \
                  -Wall -Wextra -Wpedantic -Wstrict-prototypes -Wvla $(if $(WERROR),-Werror)
# nodelete: OpenMP's idle threads would be left without code when a Lua state closes and unloads the library.
PROJECT_LDLIBS := -fopenmp -pthread -ldl -lm -Wl,-z,nodelete
ifneq ($(SANITIZE),)
PROJECT_CFLAGS += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
PROJECT_LDLIBS += -fsanitize=$(SANITIZE)
else
PROJECT_LDLIBS += -Wl,-z,defs
endif

# x86_64, aarch64: what CC compiles for
MACHINE := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))

# CPU_SRC, the files of the CPU backend for this MACHINE, and FLAGS_<file>, what one file needs besides.
include src/cpu/flags.mk
SRC     := $(wildcard src/core/*.c src/ops/*.c src/dispatch/*.c) src/cuda/loader.c $(CPU_SRC)
OBJ     := $(SRC:%.c=$(BUILD)/%.o)
# A CUDA library that refuses, or plays a GPU in host memory, for the specs; everything else in spec/c is a program.
FAKE_CUDA := $(BUILD)/spec/c/fake_cuda.so
CTESTS  := $(patsubst %.c,$(BUILD)/%,$(filter-out spec/c/fake_cuda.c,$(wildcard spec/c/*.c)))

CORE := $(BUILD)/libint4mm.so
CDEF := $(BUILD)/lua/int4mm/cdef.lua
LIBS := $(CORE)

# ---- CUDA, where nvcc is ---------------------------------------------------------------------------------------------

CUDA       ?= $(if $(SANITIZE),0,1)
CUDA_ARCHS ?= 75 80 86 89 90a 100 120
NVCC       ?= $(firstword $(shell sh -c 'command -v nvcc') $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_OLDEST := 12

# A reason not to build the CUDA library; empty when there is none.
ifeq ($(CUDA),0)
NO_CUDA := switched off (CUDA=0)
else ifeq ($(NVCC),)
NO_CUDA := no nvcc on PATH or in /usr/local/cuda/bin
else ifeq ($(shell sh -c 'command -v g++'),)
NO_CUDA := nvcc needs g++, which is not installed
else
NVCC_MAJOR := $(shell $(NVCC) --version | sed -n 's/.*release \([0-9]*\).*/\1/p')
ifneq ($(shell test "0$(NVCC_MAJOR)" -ge $(CUDA_OLDEST) && echo new),new)
NO_CUDA := $(NVCC) is of CUDA $(or $(NVCC_MAJOR),?), the oldest served is $(CUDA_OLDEST)
endif
endif

ifeq ($(NO_CUDA),)
CUDA_LIB := $(BUILD)/libint4mm_cuda.so
LIBS     += $(CUDA_LIB)
CU_SRC   := $(wildcard kernels/*/*.cu)
CU_OBJ   := $(CU_SRC:%.cu=$(BUILD)/%.o) $(patsubst %.c,$(BUILD)/%.o,$(filter-out src/cuda/loader.c,$(wildcard src/cuda/*.c)))
CUDA_HOME    := $(patsubst %/bin/nvcc,%,$(realpath $(shell sh -c 'command -v $(NVCC)')))
CUDA_INCLUDE := $(if $(wildcard $(CUDA_HOME)/include/cuda_runtime_api.h),-isystem $(CUDA_HOME)/include)
CUDA_LIBPATH := $(addprefix -L,$(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/lib))

# The architectures that this nvcc knows.
ARCHS := $(shell for a in $(CUDA_ARCHS); do $(NVCC) --dryrun -gencode arch=compute_$$a,code=sm_$$a -x cu -c /dev/null \
           -o /dev/null >/dev/null 2>&1 && echo $$a; done)
# $(call ptx,archs): PTX of the newest one without a letter, for GPUs still to come.
ptx     = $(addprefix -gencode arch=compute_,$(foreach a,$(lastword $(filter-out %a,$1)),$a$(comma)code=compute_$a))
gencode = $(foreach a,$1,-gencode arch=compute_$a$(comma)code=sm_$a) $(call ptx,$1)
# wgmma and bulk tensor copies exist on 90a alone; the mma.sync of stream from 80 on. Whatever CUDA_ARCHS says, each
# file is compiled for one architecture at least, so that the library links.
hopper_archs := 90a
stream_archs := $(or $(filter-out 75,$(ARCHS)),80)
archs_of = $(strip $(if $(filter kernels/sm90/%,$1),$(hopper_archs),\
             $(if $(filter kernels/sm80/%,$1),$(stream_archs),$(ARCHS))))

NVCCFLAGS ?= -O3 -lineinfo
PROJECT_NVCCFLAGS := -std=c++17 -Isrc -Ikernels -Xcompiler -fPIC,-fvisibility=hidden,-ffp-contract=off,-Wall,-Wextra \
                     $(if $(WERROR),-Werror all-warnings -Xcompiler -Werror)
endif

# ---- targets ---------------------------------------------------------------------------------------------------------

.PHONY: all demo test ctest bench peers-cpu peers-gpu lint format docs install uninstall clean help deps-dev
.DELETE_ON_ERROR:
.SECONDARY:

all: $(LIBS) $(CDEF) ## build the libraries and the Lua cdef into $(BUILD)
ifneq ($(NO_CUDA),)
	@rm -f $(BUILD)/libint4mm_cuda.so
	@echo "CUDA is skipped: $(NO_CUDA). Everything works on the CPU."
endif

# Everything is rebuilt when its flags change: flags.txt is touched only when its text differs.
FLAGS_TEXT := $(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(LDFLAGS) | $(NVCC) $(NVCCFLAGS) $(PROJECT_NVCCFLAGS) $(ARCHS)
$(BUILD)/flags.txt: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(FLAGS_TEXT)' | cmp -s - $@ || printf '%s\n' '$(FLAGS_TEXT)' > $@
.PHONY: FORCE

$(BUILD)/%.o: %.c src/cpu/flags.mk $(BUILD)/flags.txt
	@mkdir -p $(@D)
	$(if $(Q),@echo "CC   $<")
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(FLAGS_$<) $(if $(filter src/cuda/%,$<),$(CUDA_INCLUDE) -Ikernels) \
	  -MMD -MP -c -o $@ $<

# ptxas reports registers and spills (-v) to a log, which is kept. In the kernels tuned by hand the build fails on what
# silently ruins them: spills, a setmaxnreg that is ignored (C7508), wgmma that was serialised (C7510 to C7520).
define ptxas_check
@if grep -E '\(C75(08|1[0-9]|20)\)|[1-9][0-9]* bytes spill' $(@:.o=.log) >&2; then \
  echo "$<: ptxas spilled, ignored setmaxnreg or serialised wgmma; all it said is in $(@:.o=.log)" >&2; \
  rm -f $@; exit 1; fi
endef
$(BUILD)/kernels/%.o: kernels/%.cu $(BUILD)/flags.txt
	@mkdir -p $(@D)
	$(if $(Q),@echo "NVCC $< ($(call archs_of,$<))")
	$(Q)$(NVCC) $(NVCCFLAGS) $(PROJECT_NVCCFLAGS) $(call gencode,$(call archs_of,$<)) -Xptxas -v -MMD -MP -MF $(@:.o=.d) \
	  -c -o $@ $< 2> $(@:.o=.log); status=$$?; \
	  grep -Ev '^ptxas info|^ +[0-9]+ bytes stack frame' $(@:.o=.log) >&2; exit $$status
	$(if $(filter kernels/sm80/% kernels/sm90/%,$<),$(ptxas_check))

$(CORE): $(OBJ)
	$(if $(Q),@echo "LINK $@")
	$(Q)$(CC) $(LIBFLAG) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(PROJECT_LDLIBS)

# The runtimes of CUDA and C++ are linked in and their symbols kept inside: the library needs nothing but the driver.
$(CUDA_LIB): $(CU_OBJ)
	$(if $(Q),@echo "LINK $@")
	$(Q)g++ $(LIBFLAG) $(CFLAGS) $(LDFLAGS) -static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL -o $@ $^ \
	  $(CUDA_LIBPATH) -lcudart_static -lrt $(PROJECT_LDLIBS)

# The C declarations as LuaJIT's parser takes them, so that they are typed once, in the header.
$(CDEF): src/int4mm.h $(BUILD)/flags.txt
	@mkdir -p $(@D)
	@{ echo '-- Generated from src/int4mm.h by the Makefile.'; echo 'return [==['; \
	   $(CC) -E -P -DINT4MM_CDEF $< && echo ']==]'; } > $@

$(BUILD)/spec/c/%: spec/c/%.c $(OBJ) $(BUILD)/flags.txt
	@mkdir -p $(@D)
	$(if $(Q),@echo "CC   $<")
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) -MMD -MP -MF $@.d $(LDFLAGS) -o $@ $< $(OBJ) $(PROJECT_LDLIBS)

$(BUILD)/examples/%: examples/%.c $(CORE) $(BUILD)/flags.txt
	@mkdir -p $(@D)
	$(if $(Q),@echo "CC   $<")
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) -o $@ $< $(LDFLAGS) $(CORE) -Wl,-rpath,'$$ORIGIN/..' $(PROJECT_LDLIBS)

$(FAKE_CUDA): spec/c/fake_cuda.c $(OBJ) $(BUILD)/flags.txt
	@mkdir -p $(@D)
	$(if $(Q),@echo "CC   $<")
	$(Q)$(CC) $(LIBFLAG) $(CFLAGS) $(PROJECT_CFLAGS) -MMD -MP -MF $@.d $(LDFLAGS) -o $@ $< $(OBJ) $(PROJECT_LDLIBS)

-include $(FAKE_CUDA).d $(OBJ:.o=.d) $(CU_OBJ:.o=.d) $(CTESTS:=.d)

# ---- running ---------------------------------------------------------------------------------------------------------

# Lua programs find the module in the tree, from whatever folder they run in; `;;` is LuaJIT's own path.
ROOT := $(CURDIR)
RUN_ENV := BUILD='$(BUILD)' LUA_PATH='$(ROOT)/lua/?.lua;$(ROOT)/lua/?/init.lua;$(abspath $(BUILD))/lua/?.lua;;' \
           LUA_CPATH='$(abspath $(BUILD))/?.so;;'
# AddressSanitizer has to come first in a process that loads a library built with it. Its leak check at exit looks for
# pointers in the data of loaded libraries, so LuaJIT, which unloads them when it closes, is kept from doing so; then
# neither LuaJIT nor busted's modules need a suppression. It sees no pointers in Lua's heap, so os.exit closes the Lua
# state, which frees what tensors hold. An allocation that is too large fails as malloc's does.
ifneq ($(findstring address,$(SANITIZE)),)
KEEP_OPEN := $(BUILD)/keep_open.so
RUN_ENV   += LUA_INIT='local exit = os.exit; os.exit = function(code) exit(code, true) end' \
             ASAN_OPTIONS=allocator_may_return_null=1 \
             LD_PRELOAD='$(shell $(CC) -print-file-name=libasan.so) $(abspath $(KEEP_OPEN))'
all: $(KEEP_OPEN)
endif
$(BUILD)/keep_open.so: $(BUILD)/flags.txt
	@echo 'int dlclose(void *library) { return library == 0; }' | $(CC) -shared -fPIC -x c -o $@ -
RUN_LUA = $(RUN_ENV) $(LUAJIT)
BUSTED  = $(RUN_LUA) -e 'io.stdout:setvbuf("line"); require("busted.runner")({ standalone = false })' /dev/null \
          --ignore-lua

demo: ## build, multiply 1024 x 1024 x 1024, check against the oracle; installs what is missing
	@$(call need,cc headers luajit)
	+@$(BUILD_IT)
	@$(RUN_LUA) examples/quickstart.lua $(ARGS)

# busted's output goes through as it comes; the last line counts errors among the failures and pending as skipped. A
# run that ends without busted's own summary (a crash) is a failure.
test: ## run the specs under LuaJIT; installs what is missing (SPEC=file, ARGS=busted's options)
	@$(call need,cc headers luajit busted argparse cjson)
	+@$(BUILD_IT) $(FAKE_CUDA)
	@log=$(BUILD)/test.log; \
	{ $(BUSTED) $(ARGS) $(SPEC) 2>&1; echo $$? > $(BUILD)/test.status; } | tee $$log; \
	awk -v status=$$(cat $(BUILD)/test.status) ' \
	  /^[0-9]+ success(es)? \/ [0-9]+ failures? \/ [0-9]+ errors? \/ [0-9]+ pending/ \
	    { passed = $$1; failed = $$4 + $$7; skipped = $$10; summary = 1 } \
	  END { if (!summary) print "The run ended before its summary, with exit status " status "."; \
	        if (status != 0 && !failed) failed = 1; \
	        printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit failed > 0 }' $$log

ctest: $(CTESTS) $(FAKE_CUDA) ## build and run the C tests of spec/c; RUN=qemu-aarch64 and the like stands before each
	@for t in $(CTESTS); do echo "$$t"; $(RUN) $$t || exit 1; done

bench: ## time every backend at hand (ARGS="--help" for the options)
	@$(call need,cc headers luajit argparse cjson)
	+@$(BUILD_IT)
	@$(RUN_LUA) examples/int4_matmul_benchmark.lua $(ARGS)

peers-cpu: ## time the CPU backend beside OpenBLAS and oneDNN (ARGS="--threads 1,2 --shape 1024,1024,1024")
	@$(call need,cc headers openblas dnnl)
	+@$(BUILD_IT) $(BUILD)/examples/cpu_peers
	@$(BUILD)/examples/cpu_peers $(ARGS)

peers-gpu: ## time the CUDA backend beside cuBLAS and cuBLASLt (ARGS="--help" for the options)
	@$(call need,cc headers luajit argparse cjson)
	+@$(BUILD_IT)
	@$(RUN_LUA) examples/gpu_peers.lua $(ARGS)

FORMATTED := $(shell find src kernels spec/c examples -name '*.[ch]' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh')
lint: ## luacheck and clang-format, changing nothing
	@$(call need,luacheck clang-format)
	luacheck --quiet lua spec examples
	clang-format --dry-run --Werror $(FORMATTED)

format: ## clang-format over C and CUDA
	@$(call need,clang-format)
	clang-format -i $(FORMATTED)

docs: ## LDoc pages of the Lua API into $(BUILD)/doc
	@$(call need,luajit ldoc discount)
	@ldoc --quiet --fatalwarnings --config config.ld --dir $(BUILD)/doc . >/dev/null
	@echo "$(BUILD)/doc/index.html"

install: all ## install into PREFIX (or LUADIR, LIBDIR, INCDIR), below DESTDIR
	cd lua && find . -name '*.lua' -exec install -D -m 644 {} '$(DESTDIR)$(LUADIR)/{}' ';'
	install -D -m 644 -t '$(DESTDIR)$(LUADIR)/int4mm' $(CDEF)
	install -D -m 755 -t '$(DESTDIR)$(LIBDIR)' $(LIBS)
	install -D -m 644 -t '$(DESTDIR)$(INCDIR)' src/int4mm.h

uninstall: ## remove what install put there
	rm -f '$(DESTDIR)$(LIBDIR)/libint4mm.so' '$(DESTDIR)$(LIBDIR)/libint4mm_cuda.so' \
	  '$(DESTDIR)$(INCDIR)/int4mm.h'
	rm -rf '$(DESTDIR)$(LUADIR)/int4mm'

clean: ## remove $(BUILD)
	rm -rf '$(BUILD)'

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | \
	  while IFS='|' read -r target text; do printf '  %-10s %s\n' "$$target" "$$text"; done

# ---- what a machine may lack -----------------------------------------------------------------------------------------

deps-dev: ## install what development needs: lint, docs, LuaRocks, cross compiler and emulator
	@$(call need,cc headers luajit busted argparse cjson luacheck clang-format ldoc discount luarocks \
	  aarch64-linux-gnu-gcc aarch64-headers qemu-aarch64)

# What is looked for is a command of the same name in a Debian package of the same name, unless it is told apart here.
DEBIAN_cc       := gcc
DEBIAN_headers  := libc6-dev
DEBIAN_busted   := lua-busted
DEBIAN_argparse := lua-argparse
DEBIAN_cjson    := lua-cjson
DEBIAN_luacheck := lua-check
DEBIAN_ldoc     := lua-ldoc
DEBIAN_discount := lua-discount
DEBIAN_openblas := libopenblas0-pthread
DEBIAN_dnnl     := libdnnl-dev
DEBIAN_aarch64-linux-gnu-gcc := gcc-aarch64-linux-gnu
DEBIAN_aarch64-headers       := libc6-dev-arm64-cross
DEBIAN_qemu-aarch64          := qemu-user
has_cc       = command -v $(CC)
has_headers  = echo '\#include <stdlib.h>' | $(CC) -E -
has_aarch64-headers = echo '\#include <stdlib.h>' | aarch64-linux-gnu-gcc -E -
has_luajit   = command -v $(LUAJIT)
has_busted   = $(LUAJIT) -e 'require "busted.runner"'
has_argparse = $(LUAJIT) -e 'require "argparse"'
has_cjson    = $(LUAJIT) -e 'require "cjson"'
has_discount = $(LUAJIT) -e 'require "discount"'
has_openblas = ldconfig -p | grep -F libopenblas.so.0
has_dnnl     = echo '\#include <dnnl.h>' | $(CC) -E -

# $(call need,names): goes on when all are there; else names what is missing and installs it, or says how and stops.
need = missing=; \
  $(foreach n,$1,$(or $(has_$n),command -v $n) >/dev/null 2>&1 || missing="$$missing $(or $(DEBIAN_$n),$n)"; ) \
  if [ -n "$$missing" ]; then \
    echo "This machine lacks$$missing (Debian's package names)."; sudo=; \
    if ! command -v apt-get >/dev/null; then \
      echo "Install the like with this system's package manager or LuaRocks, then run make again." >&2; exit 1; \
    elif [ "$$(id -u)" != 0 ]; then \
      sudo=sudo; command -v sudo >/dev/null || { \
        echo "Run as root: apt-get install$$missing" >&2; exit 1; }; \
    fi; \
    echo "Installing:$$missing"; \
    $$sudo apt-get update -qq && \
    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null || { \
      echo "apt-get could not install$$missing" >&2; exit 1; }; \
  fi
