--- Finds and holds the C library.
--
-- `libint4mm.so` is looked for along `package.cpath`, where LuaRocks and `make install` put it, and its declarations
-- come from the module `int4mm.cdef`, which the build makes from src/int4mm.h.
-- @module int4mm.ffi

local ffi = require "ffi"
local check = require "int4mm.check"

local binding = {}

-- What is needed of libc, under names of our own: a program may declare the usual ones differently.
local libc = [[
  typedef struct int4mm_timespec { long seconds; long nanoseconds; } int4mm_timespec;
  int int4mm_clock_gettime(int clock, int4mm_timespec *time) __asm__("clock_gettime");
  int int4mm_isatty(int fd) __asm__("isatty");
  int int4mm_memcmp(const void *x, const void *y, size_t bytes) __asm__("memcmp");
  char *int4mm_realpath(const char *path, char *resolved) __asm__("realpath");
]]

local function declare()
  local found, cdef = pcall(require, "int4mm.cdef")
  if not found then
    error("int4mm: the build's part is missing; build it with make, or install it with luarocks or make install: "
      .. cdef, 0)
  end
  -- a second Lua-side load in the same state finds the types declared
  if not pcall(ffi.typeof, "int4mm_tensor") then
    ffi.cdef(cdef)
    ffi.cdef(libc)
  end
  return cdef:match('int4mm_cdef_version%[%] __asm__%("(.-)"%)')
end

-- An absolute path, so that the CUDA library, which the core looks for beside itself on first need, is found after a
-- change of the working directory too.
local function absolute(path)
  local resolved = ffi.new("char[4096]") -- PATH_MAX
  return ffi.C.int4mm_realpath(path, resolved) ~= nil and ffi.string(resolved) or path
end

local function load()
  local declared = declare()
  local path, looked = package.searchpath("libint4mm", package.cpath)
  if not path then
    error("int4mm: libint4mm.so is not on package.cpath; build it with make, or install it with luarocks or make "
      .. "install. Looked for:" .. looked, 0)
  end
  local lib = ffi.load(absolute(path))
  local version = ffi.string(lib.int4mm_version())
  if version ~= declared then
    error(("int4mm: %s is version %s but the Lua files on package.path are of %s; one of them is of another build")
      :format(path, version, declared), 0)
  end
  return lib, version
end

-- The library's namespace. It stays referenced for ever: a collected library takes the code of its functions along.
binding.lib, binding.version = load()
local lib = binding.lib

-- C counts rows, columns and dimensions from 0, Lua from 1.
local function count_from_one(sentence)
  sentence = sentence:gsub("row (%d+), column (%d+) %(counted from 0%)", function(row, column)
    return ("row %.0f, column %.0f"):format(row + 1, column + 1)
  end)
  sentence = sentence:gsub("index (%d+) %(counted from 0%)", function(i) return ("index %.0f"):format(i + 1) end)
  return (sentence:gsub("along dim ([01])", { ["0"] = "along dim 1", ["1"] = "along dim 2" }))
end

--- The C core's last sentence in this thread.
function binding.last_error() return count_from_one(ffi.string(lib.int4mm_last_error())) end

--- Raises the C core's sentence for a status that is not OK.
-- @tparam string name the function that the user called
-- @tparam number status an int4mm_status
function binding.check(name, status)
  if status ~= 0 then check.raise(name, binding.last_error()) end
end

return binding
