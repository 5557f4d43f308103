--- Tensors to and from other libraries of the process through DLPack, without a copy: NumPy, PyTorch, JAX and others
-- that run in it (a Python that loads LuaJIT, or the other way round; `examples/dlpack.py` shows the first).
--
-- What changes hands is the address of a `DLManagedTensor`, or of a `DLManagedTensorVersioned` (DLPack 1.0), which a
-- Python capsule named "dltensor" or "dltensor_versioned" holds. **It owns its memory until its deleter is called,
-- once.** @{from_dlpack} takes it over: the deleter is called when the last tensor over the memory goes.
-- @{methods:to_dlpack} gives one away: whoever takes the address calls the deleter; an address that nobody takes keeps
-- its memory for ever, unless `from_dlpack` takes it back.
--
-- No deleter is a Lua function, so they may be called from any thread.
-- @module int4mm.dlpack

local ffi = require "ffi"
local binding = require "int4mm.lib"
local cdata = require "int4mm.internal.cdata"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local tensor = require "int4mm.tensor"

local lib, methods = binding.lib, tensor.methods
local dlpack = {}

local Managed, Versioned = ffi.typeof "struct DLManagedTensor *", ffi.typeof "struct DLManagedTensorVersioned *"

-- A number, a 64-bit integer, a C pointer or a light userdata as void *; nil for any other value.
local function pointer_of(name, what, value)
  if type(value) == "number" then
    return ffi.cast("void *", ffi.cast("uintptr_t", check.integer(name, what, value, 0)))
  end
  if ffi.istype("uint64_t", value) or ffi.istype("int64_t", value) then return ffi.cast("void *", value) end
  return cdata.handle(value)
end

-- Whether the struct is versioned: what its C type says, with which the option has to agree, else the option.
local function is_versioned(managed, option)
  local typed
  if ffi.istype(Versioned, managed) then typed = true elseif ffi.istype(Managed, managed) then typed = false end
  option = check.boolean("from_dlpack", "versioned", option, check.default(typed, false))
  if typed ~= nil and option ~= typed then
    check.raise("from_dlpack", "versioned is %s but managed is %s; leave versioned out", tostring(option),
      check.describe(managed))
  end
  return option
end

--- The tensor of another library, over the same memory.
--
-- Vectors and matrices of int32, int8, float16, bfloat16 or float32 on the CPU, in pinned memory or on a GPU are taken,
-- with elements that are neighbours in their row; rows may have gaps between them. On a GPU the producer's work on the
-- data must be done, or ordered before the stream that uses the tensor first: give that stream to the producer's
-- `__dlpack__(stream=)` (1 for the default stream). The deleter does not wait for work of ours: before the last tensor
-- over the memory goes, work on it has to be done, or ordered with what the producer does next.
-- @param managed the address: a number, a C pointer, a light userdata. Taken over on success alone
-- @tparam[opt] table opts `versioned` (false; known where `managed` is a pointer to one of the two structs),
--   `read_only` (false: memory that is flagged as read-only is refused; true: it is taken, and the program does not
--   write to it)
-- @treturn tensor
-- @raise for what DLPack can say and a tensor cannot be: other ranks, dtypes, devices, strides
function dlpack.from_dlpack(managed, opts)
  local name = "from_dlpack"
  opts = check.options(name, opts, { "versioned", "read_only" })
  local address = pointer_of(name, "managed", managed)
  if type(address) == "nil" then -- a NULL pointer equals nil, and the core refuses it
    check.raise(name, "managed is %s, expected the address of a DLManagedTensor or DLManagedTensorVersioned",
      check.describe(managed))
  end
  local versioned = is_versioned(managed, opts.versioned)
  local read_only = check.boolean(name, "read_only", opts.read_only, false)
  local t = tensor.released()
  if versioned then
    binding.check(name, lib.int4mm_from_dlpack_versioned(t.c, ffi.cast(Versioned, address), read_only and 1 or 0))
  else
    binding.check(name, lib.int4mm_from_dlpack(t.c, ffi.cast(Managed, address)))
  end
  return t
end

--- Methods of tensors
-- @section methods

--- The tensor for another library, over the same memory, which lives until that calls the deleter, whatever becomes of
-- the tensor. How words are packed does not travel along.
--
-- On a GPU the consumer's stream is made to wait for what the tensor's GPU was given on the stream of
-- @{int4mm.device.with_stream}, or else on the default stream; work on other streams the program orders itself. Work of
-- the consumer's that is still under way when it calls the deleter has to be on a stream that the default stream waits
-- for.
-- @tparam[opt] table opts `versioned` (false; true for DLPack 1.0), `stream` (the consumer's: a stream of ours, a C
--   pointer, a light userdata or a number as `__dlpack__` has it; by default the default stream)
-- @treturn cdata `struct DLManagedTensor *` or `struct DLManagedTensorVersioned *`; as a number it is
--   `tonumber(ffi.cast("uintptr_t", p))`
-- @raise for a tensor over borrowed memory (`wrap`), which nothing would keep, and for read-only memory without
--   `versioned`
function methods:to_dlpack(opts)
  local name = "to_dlpack"
  tensor.check_rows(name, self)
  opts = check.options(name, opts, { "versioned", "stream" })
  local versioned, stream = check.boolean(name, "versioned", opts.versioned, false), nil
  if type(opts.stream) == "number" then
    stream = pointer_of(name, "stream", opts.stream)
  elseif type(opts.stream) ~= "nil" then
    stream = devices.stream_on(name, opts.stream, self.c.device)
  end
  local from = devices.stream_handle(name, nil, self.c.device)
  local managed = ffi.new(versioned and "struct DLManagedTensorVersioned *[1]" or "struct DLManagedTensor *[1]")
  if versioned then
    binding.check(name, lib.int4mm_to_dlpack_versioned(self.c, from, stream, managed))
  else
    binding.check(name, lib.int4mm_to_dlpack(self.c, from, stream, managed))
  end
  tensor.keep(self, opts)
  return managed[0]
end

return dlpack
