# Installing, and packing for LuaRocks.
#
#   make install    the Lua module, and the library for C programs with its header and pkg-config file
#   make dist       the sources as an archive
#   make rock       that archive as a source rock, which `luarocks install FILE` builds without a network
#
# Variables: PREFIX, DESTDIR, LUADIR (Lua files), CMODDIR (where Lua looks for C modules), LIBDIR, INCDIR (for C
# programs), URL (where the archive of `make rock` will be published).

PREFIX  ?= /usr/local
LUADIR  ?= $(PREFIX)/share/lua/5.1
CMODDIR ?= $(PREFIX)/lib/lua/5.1
LIBDIR  ?= $(PREFIX)/lib
INCDIR  ?= $(PREFIX)/include
PLACES  := LUADIR CMODDIR LIBDIR INCDIR

.PHONY: install uninstall rock rock-files dist

# ---- installing ------------------------------------------------------------------------------------------------------

# A relative PREFIX or DESTDIR is relative to this folder.
ifneq ($(filter install uninstall,$(MAKECMDGOALS)),)
$(foreach v,$(PLACES),$(if $(and $(DESTDIR),$(filter-out /%,$(firstword $($v)))),\
  $(error $v is '$($v)': below DESTDIR an absolute path is expected (from PREFIX too, which is '$(PREFIX)'))))
$(if $(filter ~%,$(DESTDIR) $(foreach v,$(PLACES),$($v))),\
  $(error PREFIX or DESTDIR begins with '~', which this shell did not expand: write $$HOME))
endif

# Where to install: paths of the shell, quoted.
TO_LUA   = $(call quoted,$(DESTDIR)$(LUADIR)/int4mm)
TO_CMOD  = $(call quoted,$(DESTDIR)$(CMODDIR))
TO_LIB   = $(call quoted,$(DESTDIR)$(LIBDIR))
TO_INC   = $(call quoted,$(DESTDIR)$(INCDIR))

# What pkg-config prints is for a shell, so spaces in paths get a backslash.
define PKG_CONFIG_FILE
libdir=$(LIBDIR_IN_PC)
includedir=$(INCDIR_IN_PC)

Name: int4mm
Description: Matrix multiplication by int4 weights on CPUs and CUDA GPUs
Version: $(VERSION)
Libs: -L$${libdir} -lint4mm
Libs.private: -pthread -ldl -lm
Cflags: -I$${includedir}
endef
in_pc = $(subst $(space),\ ,$(if $(filter /%,$(firstword $1)),$1,$(CURDIR)/$1))
space := $(subst ,, )
LIBDIR_IN_PC = $(call in_pc,$(LIBDIR))
INCDIR_IN_PC = $(call in_pc,$(INCDIR))
export PKG_CONFIG_FILE

# The library is there once, with links to it by the names that a program's linker (libint4mm.so), a program
# (libint4mm.so.0) and Lua look for.
install: all ## install into PREFIX (or LUADIR, CMODDIR, LIBDIR, INCDIR), below DESTDIR
	find lua/int4mm -name '*.lua' -exec sh -c 'for file; do \
	  install -D -m 644 "$$file" "$$0/$${file#lua/int4mm/}" || exit 1; done' $(TO_LUA) {} +
	install -D -m 644 -t $(TO_LUA) $(CDEF)
	install -D -m 755 $(CORE) $(TO_LIB)/libint4mm.so.$(VERSION)
	ln -sf libint4mm.so.$(VERSION) $(TO_LIB)/$(SONAME)
	ln -sf $(SONAME) $(TO_LIB)/libint4mm.so
	$(if $(filter-out $(CORE),$(LIBS)),install -m 755 $(filter-out $(CORE),$(LIBS)) $(TO_LIB))
	mkdir -p $(TO_CMOD) $(TO_LIB)/pkgconfig
	[ $(TO_LIB) -ef $(TO_CMOD) ] || ln -srf $(TO_LIB)/$(SONAME) $(TO_CMOD)/libint4mm.so
	printf '%s\n' "$$PKG_CONFIG_FILE" > $(TO_LIB)/pkgconfig/int4mm.pc
	install -D -m 644 -t $(TO_INC) src/int4mm.h

uninstall: ## remove what install put there
	rm -f $(TO_LIB)/libint4mm.so $(TO_LIB)/$(SONAME) $(TO_LIB)/libint4mm.so.$(VERSION) $(TO_LIB)/libint4mm_cuda.so \
	  $(TO_LIB)/pkgconfig/int4mm.pc $(TO_CMOD)/libint4mm.so $(TO_INC)/int4mm.h
	rm -rf $(TO_LUA)

# ---- LuaRocks --------------------------------------------------------------------------------------------------------

# LuaRocks copies the files that the rockspec lists, so each has to be there: a CUDA library that was not built is an
# empty file, which the core takes for none.
ROCK_CUDA := $(BUILD)/rock/libint4mm_cuda.so
rock-files: all
	@mkdir -p $(dir $(ROCK_CUDA))
	@if [ -f $(BUILD)/libint4mm_cuda.so ]; then ln -f $(BUILD)/libint4mm_cuda.so $(ROCK_CUDA); \
	  else rm -f $(ROCK_CUDA); : > $(ROCK_CUDA); fi

DIST    := int4mm-$(VERSION)
ARCHIVE := $(BUILD)/$(DIST).tar.gz
SOURCES := Makefile src kernels lua spec examples rockspec README.md LICENSE CHANGELOG.md CONTRIBUTING.md config.ld \
           .busted .ci .clang-format .editorconfig .gitignore .luacheckrc .luarc.json
dist: ## the sources as an archive in $(BUILD), the same bytes for the same files
	@mkdir -p $(BUILD)
	@tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
	  --transform='s,^,$(DIST)/,' -cf - $(wildcard $(SOURCES)) | gzip -9n > $(ARCHIVE)
	@echo "$(ARCHIVE)"

URL  ?= file://$(abspath $(ARCHIVE))
ROCK := $(BUILD)/$(DIST)-1
# The rockspec of the tree, with a version and an archive that has a checksum.
rock: dist ## a source rock in $(BUILD), for `luarocks install FILE` (URL=where its archive will be published)
	@$(call need,zip)
	@case '$(URL)' in */$(DIST).tar.gz) ;; *) echo "URL is '$(URL)': the URL of $(DIST).tar.gz is expected" >&2; \
	  exit 1 ;; esac
	@md5=$$(md5sum < $(ARCHIVE) | cut -d ' ' -f 1); \
	sed -e 's|^version = .*|version = "$(VERSION)-1"|' \
	  -e "s|^source = .*|source = { url = \"$(URL)\", md5 = \"$$md5\" }|" rockspec/int4mm-scm-1.rockspec > $(ROCK).rockspec
	@rm -f $(ROCK).src.rock
	@zip -X -q -j $(ROCK).src.rock $(ROCK).rockspec $(ARCHIVE)
	@echo "$(ROCK).rockspec"; echo "$(ROCK).src.rock"
