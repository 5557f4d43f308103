--- Events: a point in a stream's work, to wait for, to order another stream after, and to take times by.
--
--     local start, stop = q.event(), q.event()
--     start:record()
--     q.int4_matmul(a, b, scale_a, scale_b, { out = c })
--     stop:record()
--     print(start:elapsed(stop) .. " ms")
--
-- Fields: `device` (the GPU's name), `handle` (the cudaEvent_t as void *). One that was never recorded counts as done.
-- Recorded while a graph is captured, an event orders captured streams (`stream:wait(e)` has that stream captured too)
-- and cannot be asked or waited for.
-- @module int4mm.event

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local enums = require "int4mm.enums"

local lib = binding.lib
local event = {}

local Event = ffi.typeof("int4mm_lua_event")
local events, methods = {}, {}

check.describe_type(Event, function(e) return e.live and "an event" or "a freed event" end)

--- A new event, with timing. It goes when it is collected.
-- @tparam[opt] table opts `device` ("cuda"): the GPU whose streams it is recorded on
-- @treturn event
-- @raise where CUDA is not available
function event.event(opts)
  opts = check.options("event", opts, { "device" })
  local number = enums.gpu("event", "device", opts.device)
  local handle = ffi.new("void *[1]")
  binding.check("event", lib.int4mm_event_create(number, handle))
  return Event(handle[0], number, true, false)
end

local function check_event(name, what, e)
  if not ffi.istype(Event, e) then
    check.raise(name, "%s is %s, expected one from int4mm.event", what, check.describe(e))
  end
  if not e.live then check.raise(name, "%s was freed", what) end
  return e
end

--- Methods of events
-- @section methods

--- Records the event: from now on it stands for the work that the stream was given so far.
-- @tparam[opt] stream stream by default that of @{int4mm.device.with_stream}, else the default stream
-- @treturn event self
-- @raise for a stream of another GPU
function methods:record(stream)
  check_event("record", "the event", self)
  local handle = devices.stream_on("record", stream, self.number)
  binding.check("record", lib.int4mm_event_record(self.number, self.event, handle))
  self.recorded = true
  return self
end

--- Waits for the work that the event stands for.
function methods:synchronize()
  check_event("synchronize", "the event", self)
  binding.check("synchronize", lib.int4mm_event_synchronize(self.number, self.event))
end

--- Whether the work that the event stands for is done; does not wait.
-- @treturn boolean
function methods:query()
  check_event("query", "the event", self)
  local done = ffi.new("int32_t[1]")
  binding.check("query", lib.int4mm_event_query(self.number, self.event, done))
  return done[0] ~= 0
end

--- The time from this event to a later one, to about half a microsecond; waits for both.
-- @tparam event later
-- @treturn number milliseconds
-- @raise where one of them was not recorded, and for events of two GPUs
function methods:elapsed(later)
  check_event("elapsed", "the event", self)
  check_event("elapsed", "the later event", later)
  if not self.recorded then check.raise("elapsed", "the event was not recorded") end
  if not later.recorded then check.raise("elapsed", "the later event was not recorded") end
  if self.number ~= later.number then
    check.raise("elapsed", "the event is on %s but the later one is on %s: there is no time between two GPUs",
      self.device, later.device)
  end
  local milliseconds = ffi.new("float[1]")
  binding.check("elapsed", lib.int4mm_event_elapsed(self.number, self.event, later.event, milliseconds))
  return tonumber(milliseconds[0])
end

--- Gives the event back now instead of when it is collected. Harmless when done twice.
function methods:free()
  if not ffi.istype(Event, self) then check_event("free", "the event", self) end
  if not self.live then return end
  self.live = false
  binding.check("free", lib.int4mm_event_destroy(self.number, self.event))
end

-- A method of streams: later work on the stream comes after the event.
function devices.stream_methods:wait(e)
  local handle = devices.stream_handle("wait", self)
  check_event("wait", "the event", e)
  binding.check("wait", lib.int4mm_stream_wait(self.number, handle, e.event))
end

function events.__index(e, key)
  if key == "device" then return enums.device_name(e.number) end
  if key == "handle" then return check_event("handle", "the event", e).event end
  return methods[key] or check.raise("event", "there is no field or method %s", check.describe(key))
end

function events.__newindex(_, key) check.raise("event", "%s cannot be assigned", check.describe(key)) end

function events.__tostring(e)
  local state = not e.live and "freed" or e.recorded and "recorded" or "not recorded"
  return ("event(%s, %s)"):format(e.device, state)
end

function events.__gc(e)
  -- a failure is not told: the process may be ending and its driver be unloaded
  if e.live then lib.int4mm_event_destroy(e.number, e.event) end
end

check.refuse_operators(events, "event", { other = "an event has record, synchronize, query, elapsed and free" })
binding.metatype("int4mm_lua_event", events)

return event
