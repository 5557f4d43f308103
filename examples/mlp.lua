--- The gated MLP of a transformer, x + down(silu(gate(h)) * up(h)) with h = rms_norm(x), in int4 and in float32.
--
--     luajit examples/mlp.lua [tokens width hidden]     8 1024 2816 by default; width and hidden multiples of 4

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

local tokens, width, hidden = tonumber(arg[1] or 8), tonumber(arg[2] or 1024), tonumber(arg[3] or 2816)
local device = q.cuda_available() and "cuda" or "cpu"

local function uniform(sequence, bound, ...)
  return q.random(q.empty { ... }, { seed = 1, sequence = sequence, low = -bound, high = bound })
end

local x, norm = uniform(1, 1, tokens, width), q.ones { width }
local gate, up = uniform(2, math.sqrt(3 / width), hidden, width), uniform(3, math.sqrt(3 / width), hidden, width)
local down = uniform(4, math.sqrt(3 / hidden), width, hidden)

-- ---- in float32 ----

local function float_mlp()
  local h = q.rms_norm(x, norm)
  return q.add(x, floats.linear(q.mul(q.silu(floats.linear(h, gate)), floats.linear(h, up)), down))
end

-- ---- in int4, each layer one call; the last adds x ----

local norm_there, gate4 = norm:to(device), q.linear(gate, { activation = "silu" }):to(device)
local up4, down4 = q.linear(up):to(device), q.linear(down):to(device)

local function int4_mlp(input)
  local h = q.rms_norm(input, norm_there)
  return down4(q.mul(gate4(h), up4(h)), { residual = input })
end

-- ---- beside each other ----

-- Seconds a call.
local function time(f, input)
  return bench.time(function() f(input) end, { finish = q.synchronize, seconds = 0.3 })
end

local x_there = x:to(device)
local bytes = { gate:bytes() + up:bytes() + down:bytes(), gate4:bytes() + up4:bytes() + down4:bytes() }
for _, layer in ipairs { gate4, up4, down4 } do print(layer) end
print(("weights: %s in float32, %s in int4"):format(bench.size(bytes[1]), bench.size(bytes[2])))
print(("a token of %d at once: %s on %s, %s in float32 in plain Lua"):format(tokens,
  bench.duration(time(int4_mlp, x_there) / tokens), x_there.device, bench.duration(time(float_mlp) / tokens)))
print(("a token by itself: %s"):format(bench.duration(time(int4_mlp, x_there:narrow(1, 1, 1)))))
print(("error against float32: %.1f%% (root mean square)"):format(
  100 * floats.relative_error(int4_mlp(x_there), float_mlp())))
