rockspec_format = "3.0"
package = "int4mm"
version = "scm-1"
source = { url = "git+file://." } -- for `luarocks make` in a clone, which fetches nothing
description = {
  summary = "Exact int4 (W4A4) matrix multiplication for LuaJIT, on CPUs and CUDA GPUs",
  detailed = [[
Multiplies matrices of packed 4-bit integers with one scale per row and column. Every backend (scalar, SIMD, CUDA) gives
the same bits. LuaJIT's FFI calls a C library; the CUDA library is built where nvcc is found and opened on first need.]],
  license = "MIT",
}
supported_platforms = { "linux" }
-- LuaJIT 2.1 is needed and is Lua 5.1 to LuaRocks. safetensors files need lua-cjson as well, the rock or a package of
-- the system, which is loaded on first need; all else works without it.
dependencies = { "lua == 5.1" }
build = {
  type = "make",
  build_variables = { CC = "$(CC)", CFLAGS = "$(CFLAGS)", LIBFLAG = "$(LIBFLAG)" },
  install_variables = {
    PREFIX = "$(PREFIX)",
    LUADIR = "$(LUADIR)",
    LIBDIR = "$(LIBDIR)",
    INCDIR = "$(PREFIX)/include",
    CC = "$(CC)",
    CFLAGS = "$(CFLAGS)",
    LIBFLAG = "$(LIBFLAG)",
  },
}
-- `luarocks test -- SPEC=spec/pack_spec.lua` runs one file.
test = { type = "command", command = "make test" }
