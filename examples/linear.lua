--- A quantised linear layer, y = x W^T + bias: weights quantised once, activations on every call.
--
--     luajit examples/linear.lua [batch inputs outputs]     8 1024 512 by default; inputs a multiple of 8
--
-- The weight is [outputs, inputs], as PyTorch keeps it: quantised along its rows it is packed [outputs, inputs/8], and
-- knows that.

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
package.path = here .. "/bench/?.lua;" .. package.path
local q = require "int4mm"
local bench = require "bench"

-- ---- the layer ----

local Linear = {}
Linear.__index = Linear

--- A layer from float tensors: weight [outputs, inputs] and bias [outputs] (or nil), on any device.
function Linear.new(weight, bias)
  local packed, scales = q.quantize(weight)
  local layer = { scales = scales, bias = bias, float_bytes = weight:bytes(), bytes = packed:bytes() + scales:bytes() }
  -- once here instead of in every call; what comes out is [inputs/8, outputs]
  layer.weight = q.prepack(packed)
  return setmetatable(layer, Linear)
end

--- y [batch, outputs] float32 from x [batch, inputs] float32, float16 or bfloat16.
function Linear:forward(x)
  local packed, scales = q.quantize(x)
  return q.int4_matmul(packed, self.weight, scales, self.scales, { bias = self.bias, out_dtype = "float32" })
end

-- ---- one on random data, beside the same in float ----

local batch, inputs, outputs = tonumber(arg[1] or 8), tonumber(arg[2] or 1024), tonumber(arg[3] or 512)
local device = q.cuda_available() and "cuda" or "cpu"

local function uniform(sequence, low, high, ...)
  return q.random(q.empty { ... }, { seed = 1, sequence = sequence, low = low, high = high })
end

-- The float result, in plain Lua: x [batch][inputs] and w [outputs][inputs] are tables, bias too.
local function float_forward(x, w, bias)
  local y = {}
  for m, row in ipairs(x) do
    y[m] = {}
    for n, weights in ipairs(w) do
      local sum = bias[n]
      for k = 1, #row do sum = sum + row[k] * weights[k] end
      y[m][n] = sum
    end
  end
  return y
end

-- The root mean square of the difference over that of the expected values.
local function relative_error(actual, expected)
  local difference, whole = 0, 0
  for m, row in ipairs(expected) do
    for n, value in ipairs(row) do
      difference, whole = difference + (actual[m][n] - value) ^ 2, whole + value ^ 2
    end
  end
  return math.sqrt(difference / whole)
end

local bound = 1 / math.sqrt(inputs)
local x = uniform(1, -1, 1, batch, inputs)
local weight, bias = uniform(2, -bound, bound, outputs, inputs), uniform(3, -bound, bound, outputs)

local layer = Linear.new(weight:to(device), bias:to(device))
local x_device = x:to(device)
local y = layer:forward(x_device)
local seconds = bench.time(function() layer:forward(x_device) end, { finish = q.synchronize })

print(("Linear layer %d -> %d on %s, batch of %d"):format(inputs, outputs, y.device, batch))
print(("weights: %s in float32, %s in int4 with scales"):format(bench.size(layer.float_bytes), bench.size(layer.bytes)))
print(("a call, quantising included: %s"):format(bench.duration(seconds)))
print(y)
print(("error against float: %.2f%% (root mean square)"):format(
  100 * relative_error(y:totable(), float_forward(x:totable(), weight:totable(), bias:totable()))))
