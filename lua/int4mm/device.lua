--- Devices, streams, threads and instruction sets.
--
-- Devices are named "cpu", "cuda" (the first GPU) and "cuda:0" and so on. Nothing here touches the CUDA driver before
-- it is asked about a GPU.
-- @module int4mm.device

local ffi = require "ffi"
local binding = require "int4mm.lib"
local cdata = require "int4mm.internal.cdata"
local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"

local lib = binding.lib
local device = {}

--- Whether CUDA can be used here.
-- @treturn boolean
-- @treturn ?string where it cannot: why (no CUDA build, no driver, a driver that is too old, no device)
function device.cuda_available()
  if lib.int4mm_cuda_available() == enums.status.ok then return true end
  return false, binding.last_error()
end

--- The number of CUDA devices.
-- @treturn number 0 where CUDA cannot be used
-- @treturn ?string then the reason
function device.device_count()
  local available, reason = device.cuda_available()
  if not available then return 0, reason end
  local count = ffi.new("int32_t[1]")
  binding.check("device_count", lib.int4mm_cuda_device_count(count))
  return count[0]
end

-- 13020 as "13.2"
local function cuda_version(number) return ("%d.%d"):format(math.floor(number / 1000), number % 1000 / 10) end

--- What there is to know of a device.
-- @tparam[opt="cuda"] string which "cpu" or "cuda:0"
-- @treturn table for a GPU `device`, `name`, `arch` (90 for compute capability 9.0), `kernel_arch` (that kernels are
--   chosen for: the environment's INT4MM_CUDA_ARCH, else arch), `sms`, `total_memory`, `free_memory`, `l2_bytes` and
--   `shared` (what a CTA may have of shared memory) in bytes, `clock` (MHz, the highest), `memory` (GB/s),
--   `runtime_version`, `driver_version`; clock, memory and shared are 0 where the driver does not say. For the
--   CPU `device`, `isa`, `isas`, `threads`. Or nil where CUDA cannot be used
-- @treturn ?string then the reason
-- @raise for a GPU number that does not exist
function device.device_info(which)
  local number = enums.device("device_info", "device", which, "cuda")
  if number == enums.CPU then
    return { device = "cpu", isa = device.cpu_isa(), isas = device.cpu_isas(), threads = device.get_num_threads() }
  end
  local available, reason = device.cuda_available()
  if not available then return nil, reason end
  local info = ffi.new("int4mm_gpu_info")
  binding.check("device_info", lib.int4mm_cuda_device_info(number, info))
  return {
    device = enums.device_name(number),
    name = ffi.string(info.name),
    arch = info.arch,
    kernel_arch = info.kernel_arch,
    sms = info.sms,
    total_memory = tonumber(info.total_memory),
    free_memory = tonumber(info.free_memory),
    l2_bytes = info.l2_bytes,
    clock = info.clock,
    memory = info.memory,
    shared = info.shared,
    runtime_version = cuda_version(info.runtime_version),
    driver_version = cuda_version(info.driver_version),
  }
end

--- Waits for all work on a device.
-- @tparam[opt] string which "cuda:0" and so on; by default every GPU, where there is one. There is nothing to wait for
--   on the CPU.
function device.synchronize(which)
  if which ~= nil then
    binding.check("synchronize", lib.int4mm_synchronize(enums.device("synchronize", "device", which)))
    return
  end
  for number = 0, device.device_count() - 1 do binding.check("synchronize", lib.int4mm_synchronize(number)) end
end

-- ---- streams ----

local Stream = ffi.typeof("int4mm_lua_stream")
local events, methods = {}, {}

check.describe_type(Stream, function(stream) return stream.live and "a stream" or "a destroyed stream" end)

--- A new CUDA stream. Work on it runs in order, beside other streams. It goes when it is collected.
-- @tparam[opt="cuda"] string which the GPU
-- @treturn stream with `device` (the GPU's name), `handle` (the cudaStream_t as void *), `:synchronize()`, `:wait(e)`
--   (later work on it comes after an @{int4mm.event.event|event}), `:destroy()`
-- @raise where CUDA is not available
function device.stream(which)
  local number = enums.gpu("stream", "device", which)
  local handle = ffi.new("void *[1]")
  binding.check("stream", lib.int4mm_stream_create(number, handle))
  return Stream(handle[0], number, true, true)
end

-- A stream over a handle that something else destroys, which then says so with `live = false`.
function device.borrowed_stream(handle, number) return Stream(handle, number, true, false) end

local function check_stream(name, stream)
  if not ffi.istype(Stream, stream) then
    check.raise(name, "the stream is %s, expected one from int4mm.stream", check.describe(stream))
  end
  if not stream.live then check.raise(name, "the stream has been destroyed") end
  return stream
end

-- Waits for all work on the stream.
function methods:synchronize()
  check_stream("synchronize", self)
  binding.check("synchronize", lib.int4mm_stream_synchronize(self.number, self.stream))
end

-- Waits for the work on the stream and gives it back; when that fails the stream is as it was. Harmless when done
-- twice.
function methods:destroy()
  if not ffi.istype(Stream, self) then check_stream("destroy", self) end
  if not self.live then return end
  if not self.owned then check.raise("destroy", "the stream is a CUDA graph's and goes with its capture") end
  binding.check("destroy", lib.int4mm_stream_destroy(self.number, self.stream))
  self.live = false
end

function events.__index(stream, key)
  if key == "device" then return enums.device_name(stream.number) end
  if key == "handle" then return check_stream("handle", stream).stream end
  return methods[key] or check.raise("stream", "there is no field or method %s", check.describe(key))
end

function events.__newindex(_, key) check.raise("stream", "%s cannot be assigned", check.describe(key)) end

function events.__tostring(stream)
  return ("stream(%s, %s)"):format(stream.device, stream.live and tostring(stream.stream) or "destroyed")
end

function events.__gc(stream)
  -- a failure is not told: the process may be ending and its driver be unloaded
  if stream.live and stream.owned then lib.int4mm_stream_destroy(stream.number, stream.stream) end
end

check.refuse_operators(events, "stream", { other = "a stream has device, handle, synchronize, wait and destroy" })
binding.metatype("int4mm_lua_stream", events)

-- The stream that calls without a stream go to, by device number, and `last`, the one of the innermost with_stream.
local current = binding.kept_table("streams.current")

-- What a protected call gave, with the streams of before put back.
local function finish_with(number, stream, last, ok, ...)
  current[number], current.last = stream, last
  if not ok then error((...), 0) end
  return ...
end

--- Runs a function whose calls on the stream's GPU go to the stream where they are given none: products, quantising,
-- copies, fills and the like. Calls of this function may stand inside each other; the streams of before are back when
-- it returns or raises. The function must not yield.
-- @tparam stream stream from @{stream}
-- @tparam function f
-- @param ... its arguments
-- @return what f returns
function device.with_stream(stream, f, ...)
  check_stream("with_stream", stream)
  if type(f) ~= "function" then check.raise("with_stream", "f is %s, expected a function", check.describe(f)) end
  local number = stream.number
  local before, last = current[number], current.last
  current[number], current.last = stream, stream
  return finish_with(number, before, last, pcall(f, ...))
end

-- The cudaStream_t in a `stream` option: a stream of ours, a C pointer, a light userdata, or nil for the stream of
-- @{with_stream}, else the default stream.
-- @tparam string name the function that the user called
-- @param value what was given
-- @tparam[opt] number number the device that the work is for; by default that of the innermost with_stream
function device.stream_handle(name, value, number)
  if type(value) == "nil" then -- a NULL pointer, which equals nil, is the default stream
    local stream = current[number or "last"]
    return stream and check_stream(name, stream).stream or nil
  end
  if ffi.istype(Stream, value) then return check_stream(name, value).stream end
  local handle = cdata.handle(value)
  if not handle then
    check.raise(name, "stream is %s, expected one from int4mm.stream or a cudaStream_t as C pointer or light userdata",
      check.describe(value))
  end
  return handle
end

-- As stream_handle, for what has to be on the device `number` itself: a stream of ours that is elsewhere is refused.
function device.stream_on(name, value, number)
  if ffi.istype(Stream, value) and value.number ~= number then
    check.raise(name, "the stream is on %s, expected one on %s", value.device, enums.device_name(number))
  end
  return device.stream_handle(name, value, number)
end

-- The methods of streams, for int4mm.event, which adds `wait`.
device.stream_methods = methods

-- ---- the CPU ----

--- Sets how many threads a call on the CPU may use.
-- @tparam[opt] number threads 1 or more; nil or 0 puts back the default: the environment's INT4MM_NUM_THREADS, else
--   the least of the cores that the calling thread may run on, the cgroups' CPU quota and OMP_NUM_THREADS
function device.set_num_threads(threads)
  if threads == nil then threads = 0 end
  check.integer("set_num_threads", "threads", threads, 0, 2 ^ 31 - 1)
  binding.check("set_num_threads", lib.int4mm_set_num_threads(threads))
end

--- The number of threads that a call on the CPU may use.
function device.get_num_threads() return lib.int4mm_get_num_threads() end

--- The instruction set that calls on the CPU use: "avx512vnni", "avxvnni", "avx2", "neon_i8mm", "neon_dot" or "scalar".
function device.cpu_isa() return ffi.string(lib.int4mm_cpu_isa()) end

--- Forces an instruction set.
-- @tparam[opt] string name one of @{cpu_isas}; nil puts back the default: the environment's INT4MM_CPU, else the best
-- @raise for an unknown one and for one that this CPU lacks
function device.set_cpu_isa(name)
  if name ~= nil and type(name) ~= "string" then
    check.raise("set_cpu_isa", "the name is %s, expected a string", check.describe(name))
  end
  binding.check("set_cpu_isa", lib.int4mm_set_cpu_isa(name))
end

--- The instruction sets that can be used here, best first.
-- @treturn table array of names
function device.cpu_isas()
  local list = {}
  local name = lib.int4mm_cpu_isa_at(0)
  while name ~= nil do
    list[#list + 1] = ffi.string(name)
    name = lib.int4mm_cpu_isa_at(#list)
  end
  return list
end

return device
