--- A quantised linear layer, y = x W^T + bias, on activations with outliers: what rotation and clipping are for.
--
--     luajit examples/linear.lua [batch inputs outputs]     16 1024 1024 by default; inputs a multiple of 4

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
package.path = here .. "/bench/?.lua;" .. package.path
local q = require "int4mm"
local bench, floats = require "bench", require "floats"

local batch, inputs, outputs = tonumber(arg[1] or 16), tonumber(arg[2] or 1024), tonumber(arg[3] or 1024)
local device = q.cuda_available() and "cuda" or "cpu"

local function uniform(sequence, bound, ...)
  return q.random(q.empty { ... }, { seed = 1, sequence = sequence, low = -bound, high = bound })
end

-- ---- random data, one channel in 128 thirty times as large as the others ----

local x = uniform(1, 1, batch, inputs)
for channel = 5, inputs, 128 do
  for m = 1, batch do x:set(m, channel, 30 * x:get(m, channel)) end
end
local weight, bias = uniform(2, 1 / math.sqrt(inputs), outputs, inputs), uniform(3, 1 / math.sqrt(inputs), outputs)
local expected = floats.linear(x, weight, bias)

-- ---- layers ----

local x_there, weight_there, bias_there = x:to(device), weight:to(device), bias:to(device)

-- A row of the table: a layer's error, bytes and time. A clip of 1 is none.
local function row(name, opts)
  opts.bias = bias_there
  local layer = q.linear(weight_there, opts)
  local seconds = bench.time(function() layer(x_there) end, { finish = q.synchronize, seconds = 0.2 })
  return { name, ("%.1f%%"):format(100 * floats.relative_error(layer(x_there), expected)), bench.size(layer:bytes()),
    bench.duration(seconds) }
end

local float_seconds = bench.time(function() floats.linear(x, weight, bias) end, { seconds = 0.2 })
print(("A linear layer %d -> %d, batch of %d, W4A4 on %s"):format(inputs, outputs, batch, device))
print()
print(bench.columns({
  { "layer", "error", "bytes", "a call" },
  { "float32 in plain Lua", "0.0%", bench.size(weight:bytes() + bias:bytes()), bench.duration(float_seconds) },
  row("int4", { rotate = false, weight_clip = 1 }),
  row("int4, rotated", { weight_clip = 1 }),
  row("int4, rotated, weight clipped", {}), -- what q.linear does by default
  row("int4, rotated, both clipped", { clip = "mse" }),
}, "1"))
