--- CUDA graphs: work that is captured once and launched as one, which costs the host a few microseconds whatever there
-- is in it.
--
--     local x = q.empty { 1, 4096, dtype = "float16", device = "cuda" }
--     local layer, y = q.graph(function()
--       local a, scale_a = q.quantize(x, { check = false })
--       return q.int4_matmul(a, weight, scale_a, scale_w)
--     end)
--     x:copy_(input)
--     layer:launch()
--     print(y)
--
-- **Inputs** are the tensors that the function uses: write to them, then launch. A tensor that is made inside is a
-- plain one, whose contents come with each launch; it may be kept, as y is, or dropped. The graph keeps the memory of
-- all tensors that captured work uses until it is freed, also of those made inside and dropped: what a long function
-- makes over and over is better given as `out`. Scratch memory, such as a layer's workspace, is the graph's as well, and
-- shared by calls one after the other.
--
-- **What waits is refused inside**, in words that say what to change: `quantize` with its check of values (`check =
-- false`), reading elements, copies to or from host memory that is not pinned, synchronising. Work that is given a
-- stream by itself goes there at once, and work on the CPU is done at once; neither is captured.
--
-- Fields: `device` (the GPU's name), `nodes` (kernels, copies and fills in it).
-- @module int4mm.graph

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local enums = require "int4mm.enums"
local tensor = require "int4mm.tensor"

local lib, capture = binding.lib, tensor.capture
local graph = {}

local Graph = ffi.typeof("int4mm_lua_graph")
local events, methods = {}, {}

-- What tensors over borrowed memory need, by graph; see tensor.capture.
local owners = binding.kept_table("graph.owners", "k")

check.describe_type(Graph, function(g) return g.live and "a graph" or "a freed graph" end)

-- ---- capturing ----

local function results(...) return { n = select("#", ...), ... } end

-- Runs f with a stream that captures as the current one. Returns what pcall does, as a table, and what borrowed memory
-- needs.
local function run_captured(f, stream)
  capture.owners, capture.number = {}, stream.number
  local ran = results(pcall(devices.with_stream, stream, f, stream))
  local needed = capture.owners
  capture.owners, capture.number = nil, nil
  stream.live = false -- it goes with the capture
  return ran, needed
end

-- Frees a graph that did not come about; there is a first failure already, which is the one to tell.
local function give_up(g)
  g.live = false
  lib.int4mm_graph_destroy(g.graph)
end

local function warm_up(f, device, times)
  if times == 0 then return end
  local stream = devices.stream(device)
  for _ = 1, times do devices.with_stream(stream, f, stream) end
  stream:synchronize()
  stream:destroy()
end

--- Captures what a function enqueues on a GPU into a CUDA graph.
-- Calls that are given no stream go to the capture (see @{int4mm.device.with_stream}). The function runs once, and its
-- work not at all before @{methods:launch}. An error in it ends the capture and is raised again. It must not yield.
-- @tparam function f is given the stream that captures, for other libraries' work
-- @tparam[opt] table opts `device` ("cuda"); `warmup` (0): how many times f is called first for real, where something
--   in it has to be set up by a first call
-- @treturn graph
-- @return what f returned
-- @raise inside another q.graph, where CUDA is not available, and what f raises
function graph.graph(f, opts)
  local name = "graph"
  if type(f) ~= "function" then check.raise(name, "f is %s, expected a function", check.describe(f)) end
  opts = check.options(name, opts, { "device", "warmup" })
  local number = enums.gpu(name, "device", opts.device)
  local times = check.integer(name, "warmup", check.default(opts.warmup, 0), 0, 1000)
  if capture.owners then
    check.raise(name, "a CUDA graph is being captured already, and captures do not nest: call the function itself")
  end
  warm_up(f, enums.device_name(number), times)
  local made, stream = ffi.new("int4mm_graph *[1]"), ffi.new("void *[1]")
  binding.check(name, lib.int4mm_graph_begin(number, made, stream))
  local g = Graph(made[0], number, true)
  local ran, needed = run_captured(f, devices.borrowed_stream(stream[0], number))
  if not ran[1] then
    give_up(g)
    error(ran[2], 0) -- with the position that it has
  end
  if lib.int4mm_graph_end(g.graph) ~= enums.status.ok then
    local sentence = binding.last_error()
    give_up(g)
    check.raise(name, sentence)
  end
  owners[g] = needed
  return g, unpack(ran, 2, ran.n)
end

-- ---- graphs ----

local function check_graph(name, g)
  if not ffi.istype(Graph, g) then
    check.raise(name, "the graph is %s, expected one from int4mm.graph", check.describe(g))
  end
  if not g.live then check.raise(name, "the graph was freed") end
  return g
end

--- Methods of graphs
-- @section methods

--- Enqueues the captured work. Launches of one graph run one after the other.
-- @tparam[opt] stream stream of the same GPU; by default that of @{int4mm.device.with_stream}, else one of the graph's
--   own. That one is ordered with the default stream, as those of @{int4mm.device.stream} are: a launch comes after
--   what was enqueued there before, and what is enqueued there later comes after the launch
-- @treturn graph self
-- @raise while a graph is captured
function methods:launch(stream)
  check_graph("launch", self)
  if capture.owners then
    check.raise("launch", "a CUDA graph is being captured, in which another one cannot be launched: call its function")
  end
  local handle = devices.stream_on("launch", stream, self.number)
  binding.check("launch", lib.int4mm_graph_launch(self.graph, handle))
  return self
end

--- Waits for the launches so far, whatever stream they were given.
function methods:synchronize()
  check_graph("synchronize", self)
  binding.check("synchronize", lib.int4mm_graph_synchronize(self.graph))
end

--- Gives the graph back now instead of when it is collected, with the memory that it alone keeps; waits for launches on
-- its own stream. Harmless when done twice.
function methods:free()
  if not ffi.istype(Graph, self) then check_graph("free", self) end
  if not self.live then return end
  self.live = false
  owners[self] = nil
  binding.check("free", lib.int4mm_graph_destroy(self.graph))
end

function events.__index(g, key)
  if key == "device" then return enums.device_name(g.number) end
  if key == "nodes" then return tonumber(lib.int4mm_graph_nodes(check_graph("nodes", g).graph)) end
  return methods[key] or check.raise("graph", "there is no field or method %s", check.describe(key))
end

function events.__newindex(_, key) check.raise("graph", "%s cannot be assigned", check.describe(key)) end

function events.__tostring(g)
  if not g.live then return ("graph(%s, freed)"):format(g.device) end
  return ("graph(%s, %d node%s)"):format(g.device, g.nodes, g.nodes == 1 and "" or "s")
end

function events.__gc(g)
  -- a failure is not told: the process may be ending and its driver be unloaded
  if g.live then lib.int4mm_graph_destroy(g.graph) end
end

check.refuse_operators(events, "graph", { other = "a graph has launch, synchronize, free, device and nodes" })
binding.metatype("int4mm_lua_graph", events)

return graph
