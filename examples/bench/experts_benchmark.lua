--- Grouped products of a mixture's experts on a GPU beside a product for each expert, timed in CUDA graphs. Rows are
--- dealt to two experts of each token, at random.
--
--     luajit examples/bench/experts_benchmark.lua --help

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/../.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
package.path = here .. "/?.lua;" .. package.path
local argparse = require "argparse"
local q = require "int4mm"
local bench = require "bench"
local options = require "options"

local DEVICE, TOP, CALLS = "cuda:0", 2, 2 -- experts of a token; calls in a graph

-- `a`: activations; `group`: values to a group scale
local SCHEMES = {
  { name = "w4a4", a = "int4" }, { name = "w4a8", a = "int8" }, { name = "w4a8g128", a = "int8", group = 128 },
  { name = "w4a16g128", a = "float16", group = 128 },
}

local function parse_arguments()
  local names = {}
  for i, scheme in ipairs(SCHEMES) do names[i] = scheme.name end
  local parser = argparse("experts_benchmark.lua", "Times products of a mixture's experts in one call.",
    "M of a shape counts tokens, each of which two experts take, so that there are 2 M rows. Weights should be larger\n"
    .. "than the cache together. Times are medians of a call; separate is a call for each expert that has rows; same\n"
    .. "says that both have the same bits, which those of floats need not.")
  parser:option("--shapes", "MxKxN,... of an expert's weight"):convert(options.shapes):argname "<list>"
  parser:option("--only", "schemes, of " .. table.concat(names, ",")):convert(options.only(names)):argname "<list>"
  parser:option("--experts", "how many there are", "8"):convert(options.count(2)):argname "<count>"
  parser:option("--kernel", "a CUDA kernel to take"):argname "<name>"
  parser:option("--rounds", "launches of each graph, of which the median counts", "7"):convert(options.count(1))
    :argname "<count>"
  local arguments = parser:parse()
  arguments.only = arguments.only or { "w4a4" }
  arguments.shapes = arguments.shapes
    or options.shapes "8x4096x14336,128x4096x14336,512x4096x14336,2048x4096x14336,4096x4096x14336"
  return arguments
end

-- Where each expert's rows begin, from 0, when each of `tokens` goes to TOP different ones.
local function deal(tokens, experts)
  math.randomseed(tokens)
  local counts, begins = {}, { 0 }
  for e = 1, experts do counts[e] = 0 end
  for _ = 1, tokens do
    local first = math.random(experts)
    local second = (first + math.random(experts - 1) - 1) % experts + 1
    counts[first], counts[second] = counts[first] + 1, counts[second] + 1
  end
  for e = 1, experts do begins[e + 1] = begins[e] + counts[e] end
  return begins
end

local function random(shape, seed, low, high)
  shape.device = DEVICE
  return q.random(q.empty(shape), { seed = seed, low = low, high = high })
end

-- T rows of A for a scheme, and their scales.
local function activations(scheme, T, K)
  local x = random({ T, K }, 1, -1, 1)
  if scheme.a == "float16" then return x:to "float16", nil end
  return q.quantize(x, { dtype = scheme.a == "int8" and "int8" or nil })
end

local function measure(scheme, shape, arguments)
  local E, K, N, T = arguments.experts, shape.K, shape.N, TOP * shape.M
  local begins, groups = deal(shape.M, E), scheme.group and K / scheme.group or 1
  local a, scale_a = activations(scheme, T, K)
  local b = random({ E * K / 8, N, dtype = "int32" }, 2)
  local scale_b = random({ E * groups, N }, 3, 0.001, 0.01)
  if scheme.group then scale_b = scale_b:to "float16" end
  local offsets = q.tensor(begins, { dtype = "int32" }):to(DEVICE)
  local out = q.empty { T, N, dtype = "float16", device = DEVICE }
  local apart = q.empty { T, N, dtype = "float16", device = DEVICE }
  local products = {}
  for e = 1, E do
    local first, rows = begins[e] + 1, begins[e + 1] - begins[e]
    local own_a, own_scale_a = a:narrow(1, first, rows), scale_a and scale_a:narrow(1, first, rows)
    local own_b, own_scale_b = b:narrow(1, (e - 1) * K / 8 + 1, K / 8), scale_b:narrow(1, (e - 1) * groups + 1, groups)
    if not scheme.group then own_scale_b = own_scale_b:view(N) end
    local opts = { out = apart:narrow(1, first, rows), group_size = scheme.group }
    if rows > 0 then
      products[#products + 1] = function() q.int4_matmul(own_a, own_b, own_scale_a, own_scale_b, opts) end
    end
  end
  local opts = { out = out, kernel = arguments.kernel, group_size = scheme.group }
  local function time(f) return bench.graph_time(q, f, CALLS, arguments.rounds) end
  local separate = time(function() for _, product in ipairs(products) do product() end end)
  local grouped = time(function() q.int4_grouped_matmul(a, b, scale_a, scale_b, offsets, opts) end)
  opts.offsets = offsets
  return {
    rows = T, grouped = grouped, separate = separate, exact = scheme.a ~= "float16",
    same = out:to("cpu"):equal(apart:to "cpu"),
    kernel = q.explain(a, b, scale_a, scale_b, opts).kernel, tops = 2 * T * K * N / grouped * 1e-6,
  }
end

local arguments = parse_arguments()
local wanted = {}
for _, name in ipairs(arguments.only) do wanted[name] = true end
local available, reason = q.cuda_available()
if not available then
  io.stderr:write("experts_benchmark: nothing was timed: ", reason, "\n")
  os.exit(1)
end
local rows, same = { { "scheme", "rows x K x N", "kernel", "time", "TOPS", "separate", "same" } }, true
for _, scheme in ipairs(SCHEMES) do
  for _, shape in ipairs(wanted[scheme.name] and arguments.shapes or {}) do
    local r = measure(scheme, shape, arguments)
    rows[#rows + 1] = {
      scheme.name, ("%dx%dx%d"):format(r.rows, shape.K, shape.N), r.kernel, bench.duration(r.grouped * 1e-6),
      ("%.0f"):format(r.tops), bench.duration(r.separate * 1e-6), r.same and "yes" or r.exact and "NO" or "-",
    }
    same = same and (r.same or not r.exact)
    collectgarbage()
    collectgarbage()
  end
end
print(("int4mm %s on %s: %d experts, two of them for each row\n"):format(q._VERSION, q.device_info(DEVICE).name,
  arguments.experts))
print(bench.columns(rows, "1 2 3"))
os.exit(same and 0 or 1)
