--- A stack of quantised layers for one token, launched call by call and as one CUDA graph.
--
--     luajit examples/graph.lua [layers width]     16 4096 by default; the width a multiple of 8
--
-- A small product takes a GPU less time than its calls take the host. A graph is captured once and launched as one.

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
local q = require "int4mm"

local layers, width = tonumber(arg[1] or 16), tonumber(arg[2] or 4096)
local REPEATS = 20

local cuda, reason = q.cuda_available()
if not cuda then
  print("A CUDA graph takes a GPU. " .. reason)
  os.exit(0)
end

-- ---- the layers ----

local weights = {}
for i = 1, layers do
  local weight = q.random(q.empty { width, width, device = "cuda" }, { seed = i, low = -1, high = 1 })
  local packed, scales = q.quantize(weight, { dim = 1 })
  weights[i] = { packed = packed, scales = scales }
end

local input = q.empty { 1, width, device = "cuda" }

-- Values are not checked (check = false): a check waits for the GPU, which a graph cannot.
local function forward()
  local x = input
  for _, weight in ipairs(weights) do
    local packed, scales = q.quantize(x, { check = false })
    x = q.int4_matmul(packed, weight.packed, scales, weight.scales, { out_dtype = "float32" })
  end
  return x
end

-- ---- both ways, on the same input ----

local graph, output = q.graph(forward)
print(("%d layers of %d x %d as %s"):format(layers, width, width, tostring(graph)))

-- Microseconds per call, by events on the GPU: the median.
local function time(f)
  local times = {}
  for i = 1, REPEATS do
    local start, stop = q.event(), q.event()
    start:record()
    f()
    stop:record()
    times[i] = start:elapsed(stop) * 1000
  end
  table.sort(times)
  return times[math.ceil(REPEATS / 2)]
end

-- pinned, so that the copy to the GPU waits for nothing
local host = q.random(q.empty { 1, width, pinned = true }, { seed = 99, low = -1, high = 1 })
input:copy_(host, { non_blocking = true })
print(("one by one   %.1f us"):format(time(forward)))
print(("as a graph   %.1f us"):format(time(function() graph:launch() end)))

local same, difference = output:equal(forward())
print(same and "the results are the same, bit for bit" or "the results differ at " .. difference)
os.exit(same and 0 or 1)
