rockspec_format = "3.0"
package = "int4mm"
version = "scm-1"
-- For `luarocks make` in a clone, which fetches nothing. `make rock` writes a rockspec with a source that can be fetched,
-- which is the one for `luarocks pack` and for publishing.
source = { url = "git+file://." }
description = {
  summary = "Matrix multiplication by int4 weights for LuaJIT, on CPUs and CUDA GPUs",
  detailed = [[
Multiplies activations of int4, int8 or floats by packed 4-bit weights with a scale per column or group. With int4 and
int8 every backend (scalar, SIMD, CUDA) gives the same bits. LuaJIT's FFI calls a C library; the CUDA library is built where nvcc is found and opened on first need.]],
  license = "MIT",
}
supported_platforms = { "linux" }
-- LuaJIT 2.1 is needed and is Lua 5.1 to LuaRocks. safetensors files need lua-cjson as well, the rock or a package of
-- the system, which is loaded on first need; all else works without it.
dependencies = { "lua == 5.1" }
-- LuaRocks installs what is listed here by itself: of files that `make install` puts somewhere it would know nothing in
-- a tree of its own, such as `--pack-binary-rock` makes.
build = {
  type = "make",
  build_target = "rock-files",
  build_variables = { BUILD = "build", CC = "$(CC)", CFLAGS = "$(CFLAGS)", LIBFLAG = "$(LIBFLAG)" },
  install_pass = false,
  install = {
    lib = { libint4mm = "build/libint4mm.so", libint4mm_cuda = "build/rock/libint4mm_cuda.so" },
    lua = {
      ["int4mm.cdef"] = "build/lua/int4mm/cdef.lua",
      ["int4mm.device"] = "lua/int4mm/device.lua",
      ["int4mm.dlpack"] = "lua/int4mm/dlpack.lua",
      ["int4mm.elementwise"] = "lua/int4mm/elementwise.lua",
      ["int4mm.elementwise_reference"] = "lua/int4mm/elementwise_reference.lua",
      ["int4mm.enums"] = "lua/int4mm/enums.lua",
      ["int4mm.event"] = "lua/int4mm/event.lua",
      ["int4mm.factory"] = "lua/int4mm/factory.lua",
      ["int4mm.graph"] = "lua/int4mm/graph.lua",
      ["int4mm.init"] = "lua/int4mm/init.lua",
      ["int4mm.internal.activation"] = "lua/int4mm/internal/activation.lua",
      ["int4mm.internal.cdata"] = "lua/int4mm/internal/cdata.lua",
      ["int4mm.internal.check"] = "lua/int4mm/internal/check.lua",
      ["int4mm.internal.memory"] = "lua/int4mm/internal/memory.lua",
      ["int4mm.internal.numeric"] = "lua/int4mm/internal/numeric.lua",
      ["int4mm.internal.options"] = "lua/int4mm/internal/options.lua",
      ["int4mm.internal.print"] = "lua/int4mm/internal/print.lua",
      ["int4mm.internal.product"] = "lua/int4mm/internal/product.lua",
      ["int4mm.internal.quantizing"] = "lua/int4mm/internal/quantizing.lua",
      ["int4mm.internal.scaling"] = "lua/int4mm/internal/scaling.lua",
      ["int4mm.io.checkpoint"] = "lua/int4mm/io/checkpoint.lua",
      ["int4mm.io.file"] = "lua/int4mm/io/file.lua",
      ["int4mm.io.json"] = "lua/int4mm/io/json.lua",
      ["int4mm.io.layers"] = "lua/int4mm/io/layers.lua",
      ["int4mm.io.npy"] = "lua/int4mm/io/npy.lua",
      ["int4mm.io.safetensors"] = "lua/int4mm/io/safetensors.lua",
      ["int4mm.lib"] = "lua/int4mm/lib.lua",
      ["int4mm.linear"] = "lua/int4mm/linear.lua",
      ["int4mm.meta.types"] = "lua/int4mm/meta/types.lua",
      ["int4mm.ops"] = "lua/int4mm/ops.lua",
      ["int4mm.reduce"] = "lua/int4mm/reduce.lua",
      ["int4mm.reference"] = "lua/int4mm/reference.lua",
      ["int4mm.shape"] = "lua/int4mm/shape.lua",
      ["int4mm.tensor"] = "lua/int4mm/tensor.lua",
      ["int4mm.tune"] = "lua/int4mm/tune.lua",
    },
  },
}
-- `luarocks test -- SPEC=spec/pack_spec.lua` runs one file.
test = { type = "command", command = "make test" }
