--- Finds and holds the C library.
--
-- `libint4mm.so` is looked for along `package.cpath`, where LuaRocks and `make install` put it, and its declarations
-- come from the module `int4mm.cdef`, which the build makes from src/int4mm.h.
--
-- C types can be declared, and given a metatable, once in a Lua state, and the library's code has to stay while there
-- are tensors. All of this is kept in the registry, so that a program may drop the modules from `package.loaded` and
-- load them anew: tensors made before are tensors to the new modules too.
-- @module int4mm.lib

local ffi = require "ffi"
local check = require "int4mm.internal.check"

local binding = {}

-- What is needed before the cdef, to tell whether the library is of its build, and of libc, under names that no program
-- uses.
local FIRST_DECLARATIONS = [[
  int int4mm_memcmp(const void *x, const void *y, size_t bytes) __asm__("memcmp");
  char *int4mm_realpath(const char *path, char *resolved) __asm__("realpath");
  const char *int4mm_version(void);
  const char *int4mm_abi_hash(void);
]]

-- Structs that get metatables (one around the C struct, whose own fields would hide `shape` and `dtype` of __index).
local LUA_TYPES = [[
  typedef struct int4mm_lua_tensor { int4mm_tensor c; } int4mm_lua_tensor;
  typedef struct int4mm_lua_stream { void *stream; int32_t number; bool live, owned; } int4mm_lua_stream;
  typedef struct int4mm_lua_event { void *event; int32_t number; bool live, recorded; } int4mm_lua_event;
  typedef struct int4mm_lua_graph { int4mm_graph *graph; int32_t number; bool live; } int4mm_lua_graph;
]]

local REGISTRY_KEY = "int4mm.lib"
local MISSING = "build it with make, or install it with luarocks or make install"

local function fail(format, ...) error("int4mm: " .. format:format(...), 0) end

-- ---- loading ----

local function is_type(name) return (pcall(ffi.typeof, name)) end

-- An absolute path, so that the CUDA library, which the core looks for beside itself on first need, is found after a
-- change of the working directory too.
local function absolute(path)
  local resolved = ffi.new("char[4096]") -- PATH_MAX
  return ffi.C.int4mm_realpath(path, resolved) ~= nil and ffi.string(resolved) or path
end

-- What the header's build writes into the cdef: a declaration whose symbol is a value, and that nothing looks up.
local function carried(cdef, name) return cdef:match(name .. '%[%] __asm__%("(.-)"%)') or "unknown" end

-- Raises unless the library is of the build that made the cdef; returns the version.
local function check_build(lib, path, cdef)
  local version = ffi.string(lib.int4mm_version())
  local hashed, hash = pcall(function() return ffi.string(lib.int4mm_abi_hash()) end)
  local built = ("%s, interface %s"):format(version, hashed and hash or "unknown")
  local declared = ("%s, interface %s"):format(carried(cdef, "int4mm_cdef_version"), carried(cdef, "int4mm_cdef_hash"))
  if built ~= declared then
    fail("%s is of version %s, but the Lua files on package.path are of version %s; one of them is of another build",
      path, built, declared)
  end
  return version
end

-- A program may have declared the header by itself: the same one, or there would be wrong offsets and calls.
local function check_declared(lib, cdef)
  local function get(name) return lib[name] end
  local function expect(holds, name)
    if not holds then
      fail("this program has declared types of int4mm, but not %s as this build has it; declare what the module "
        .. "int4mm.cdef holds, or leave the declarations to int4mm", name)
    end
  end
  for name in cdef:gmatch "}%s*(int4mm_[%w_]+);" do expect(is_type(name), name) end
  for name in cdef:gmatch "(int4mm_[%w_]+)%(" do expect(pcall(get, name) or is_type(name), name) end
  for name, value in cdef:gmatch "(INT4MM_[%u%d_]+) = (%-?%d+)" do
    local found, declared = pcall(get, name)
    expect(found and tonumber(declared) == tonumber(value), name)
  end
end

local function load(cdef)
  local path, looked = package.searchpath("libint4mm", package.cpath)
  if not path then fail("libint4mm.so is not on package.cpath; %s. Looked for:%s", MISSING, looked) end
  ffi.cdef(FIRST_DECLARATIONS)
  local lib = ffi.load(absolute(path))
  local version = check_build(lib, path, cdef)
  if is_type "int4mm_tensor" then check_declared(lib, cdef) else ffi.cdef(cdef) end
  ffi.cdef(LUA_TYPES)
  return { cdef = cdef, lib = lib, version = version, tables = {}, metatypes = {} }
end

-- What this Lua state keeps for ever: the library's namespace (once collected, it would take the code along), its cdef,
-- tables and metatypes.
local function load_once()
  local found, cdef = pcall(require, "int4mm.cdef")
  if not found then fail("the build's part is missing; %s: %s", MISSING, cdef) end
  local registry = debug.getregistry()
  local state = registry[REGISTRY_KEY]
  if not state then
    state = load(cdef)
    registry[REGISTRY_KEY] = state
  elseif state.cdef ~= cdef then
    fail("another build of int4mm, version %s, has been loaded in this program; start it anew to use this one",
      state.version)
  end
  return state
end

local state = load_once()
binding.lib, binding.version = state.lib, state.version
local lib = binding.lib

-- ---- what outlives the modules ----

--- A table that is the same one for modules that are loaded anew.
-- @tparam string name
-- @tparam[opt] string mode of a weak table: "k"
function binding.kept_table(name, mode)
  local kept = state.tables[name]
  if not kept then
    kept = mode and setmetatable({}, { __mode = mode }) or {}
    state.tables[name] = kept
  end
  return kept
end

-- A metatable can be given to a C type once and stays as it is, so its functions look up those of the module that was
-- loaded last.
local function make_metatype(name, events)
  local current = {}
  local metatable = {
    __index = function(value, key) return current.__index(value, key) end, -- apart from the loop, for compiled code
  }
  for event in pairs(events) do
    metatable[event] = metatable[event] or function(...) return current[event](...) end
  end
  return { ctype = ffi.metatype(name, metatable), current = current }
end

--- A C type of LUA_TYPES with a metatable.
-- @tparam string name the type's
-- @tparam table events functions by event; those of the first load are the ones that there are
-- @return the ctype, the same one for modules that are loaded anew
function binding.metatype(name, events)
  local kept = state.metatypes[name] or make_metatype(name, events)
  state.metatypes[name] = kept
  for event, f in pairs(events) do kept.current[event] = f end
  return kept.ctype
end

-- ---- errors of the core ----

-- Arguments of C that have other names here.
local NAMES = { zero_b = "zeros", factor_b = "factors" }

-- C counts rows, columns and dimensions from 0, Lua from 1.
local function count_from_one(sentence)
  sentence = sentence:gsub("%f[%w_][%w_]+_b%f[^%w_]", NAMES):gsub("^group is ", "group_size is ")
    :gsub("give group$", "give group_size")
  sentence = sentence:gsub("row (%d+), column (%d+) %(counted from 0%)", function(row, column)
    return ("row %.0f, column %.0f"):format(row + 1, column + 1)
  end)
  sentence = sentence:gsub("(%l+) (%d+) %(counted from 0%)", function(what, i) -- an index, an expert
    return ("%s %.0f"):format(what, i + 1)
  end)
  sentence = sentence:gsub("int4mm_cuda_kernel_at", "cuda_kernels"):gsub("^tuned%[(%d+)%]", function(i)
    return ("entries[%.0f]"):format(i + 1)
  end)
  return (sentence:gsub("along dim ([01])", { ["0"] = "along dim 1", ["1"] = "along dim 2" }))
end

--- The C core's last sentence in this thread.
function binding.last_error() return count_from_one(ffi.string(lib.int4mm_last_error())) end

--- Raises the C core's sentence for a status that is not OK.
-- @tparam string name the function that the user called
-- @tparam number status an int4mm_status
-- @tparam[opt] string src what the user calls the core's argument src
function binding.check(name, status, src)
  if status == 0 then return end
  local sentence, prefix = binding.last_error(), name .. ": "
  if src then sentence = sentence:gsub("%f[%w_]src%f[^%w_]", src) end
  -- some sentences of the core name its function themselves
  check.raise(name, sentence:sub(1, #prefix) == prefix and sentence:sub(#prefix + 1) or sentence)
end

return binding
