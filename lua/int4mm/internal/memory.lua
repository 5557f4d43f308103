--- Memory pressure: the collector counts a tensor as some 100 bytes, whatever memory it holds.
--
-- So a loop that drops large tensors would fill the memory long before a collection is due. Before each allocation the
-- bytes that the core holds on that device are compared with a soft limit; over it, a full collection runs and the next
-- limit is set above what is still alive by half of that, at least by `slack` bytes. Many long-lived tensors thus cost
-- few collections (the method of torch7 and cutorch). An allocation that fails is tried once more after a collection.
-- A collector that the program has stopped stays stopped, but for these collections.
-- @module int4mm.internal.memory

local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"

local lib = binding.lib
local memory = {}

local MIB = 2 ^ 20
local CPU, OK, OUT_OF_MEMORY = enums.CPU, enums.status.ok, enums.status.memory

-- by device number; kept where the modules are loaded anew
local slack, limits = binding.kept_table("memory.slack"), binding.kept_table("memory.limits")

local function slack_of(device) return slack[device] or (device == CPU and 64 or 1024) * MIB end

local function allocated(device) return tonumber(lib.int4mm_allocated(device)) end

-- A full collection starts a collector that the program has stopped: it is stopped again.
local function collect(device)
  local running = collectgarbage("isrunning")
  collectgarbage()
  if not running then collectgarbage("stop") end
  local alive = allocated(device)
  limits[device] = alive + math.max(slack_of(device), alive / 2)
end

--- Runs a function of the core that allocates, with room made for it.
-- @tparam number device where: the core's number
-- @tparam number bytes how much it will take, as far as is known
-- @tparam function allocate returns a status; it may be called twice
-- @param ... arguments of `allocate`
-- @treturn number the status
-- @local
function memory.with_room(device, bytes, allocate, ...)
  local limit = limits[device] or slack_of(device)
  if allocated(device) + bytes > limit then collect(device) end
  local status = memory.with_retry(device, allocate, ...)
  if status == OK and not limits[device] then limits[device] = limit end
  return status
end

--- Runs a function of the core that may need memory of its own, though it makes no tensor: tried once more after a
-- collection when there is none.
-- @tparam number device where its tensors are: the core's number
-- @tparam function call returns a status; it may be called twice
-- @param ... arguments of `call`
-- @treturn number the status
-- @local
function memory.with_retry(device, call, ...)
  local status = call(...)
  if status ~= OUT_OF_MEMORY then return status end
  collect(device)
  return call(...)
end

--- What the tensors of this process hold, by device.
-- @treturn table `{ cpu = { allocated =, limit = }, ["cuda:0"] = ... }` in bytes: allocated by tensors now, and the
--   soft limit at which the next allocation collects garbage first; only devices used so far
function memory.figures()
  local figures = {}
  limits[CPU] = limits[CPU] or slack_of(CPU)
  for device, limit in pairs(limits) do
    figures[enums.device_name(device)] = { allocated = allocated(device), limit = limit }
  end
  return figures
end

--- Sets how many bytes of garbage may gather on a device before the collector runs (at most that, or half of what is
-- alive if that is more). Small values give memory back sooner, large ones collect less often.
-- @tparam string device "cpu" or "cuda:0"
-- @tparam number bytes default 64 MiB on the CPU and 1 GiB on a GPU
function memory.set_slack(device, bytes)
  local number = enums.device("set_memory_slack", "device", device)
  slack[number] = check.integer("set_memory_slack", "bytes", bytes, 0)
  collect(number)
end

return memory
