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

local function parse_arguments()
  local parser = argparse("experts_benchmark.lua", "Times W4A4 products of a mixture's experts in one call.",
    "M of a shape counts tokens, each of which two experts take, so that there are 2 M rows. Weights should be larger\n"
    .. "than the cache together. Times are medians of a call; separate is a call for each expert that has rows; same\n"
    .. "says that both have the same bits.")
  parser:option("--shapes", "MxKxN,... of an expert's weight"):convert(options.shapes):argname "<list>"
  parser:option("--experts", "how many there are", "8"):convert(options.count(2)):argname "<count>"
  parser:option("--kernel", "a CUDA kernel to take"):argname "<name>"
  parser:option("--rounds", "launches of each graph, of which the median counts", "7"):convert(options.count(1))
    :argname "<count>"
  local arguments = parser:parse()
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

local function measure(shape, arguments)
  local E, K, N, T = arguments.experts, shape.K, shape.N, TOP * shape.M
  local begins = deal(shape.M, E)
  local a, _, scale_a = q.generate_test_data(T, K, 1, { seed = 1, device = DEVICE })
  local b = select(2, q.generate_test_data(1, E * K, N, { seed = 2, device = DEVICE }))
  local scale_b = q.random(q.empty { E, N, device = DEVICE }, { seed = 3, low = 0.001, high = 0.01 })
  local offsets = q.tensor(begins, { dtype = "int32" }):to(DEVICE)
  local out = q.empty { T, N, dtype = "float16", device = DEVICE }
  local apart = q.empty { T, N, dtype = "float16", device = DEVICE }
  local products = {}
  for e = 1, E do
    local first, rows = begins[e] + 1, begins[e + 1] - begins[e]
    local own_a, own_scale_a = a:narrow(1, first, rows), scale_a:narrow(1, first, rows)
    local own_b, own_scale_b = b:narrow(1, (e - 1) * K / 8 + 1, K / 8), scale_b:narrow(1, e, 1):view(N)
    local opts = { out = apart:narrow(1, first, rows) }
    if rows > 0 then
      products[#products + 1] = function() q.int4_matmul(own_a, own_b, own_scale_a, own_scale_b, opts) end
    end
  end
  local opts = { out = out, kernel = arguments.kernel }
  local function time(f) return bench.graph_time(q, f, CALLS, arguments.rounds) end
  local separate = time(function() for _, product in ipairs(products) do product() end end)
  local grouped = time(function() q.int4_grouped_matmul(a, b, scale_a, scale_b, offsets, opts) end)
  opts.offsets = offsets
  return {
    rows = T, grouped = grouped, separate = separate, same = out:to("cpu"):equal(apart:to "cpu"),
    kernel = q.explain(a, b, scale_a, scale_b, opts).kernel, tops = 2 * T * K * N / grouped * 1e-6,
  }
end

local arguments = parse_arguments()
local available, reason = q.cuda_available()
if not available then
  io.stderr:write("experts_benchmark: nothing was timed: ", reason, "\n")
  os.exit(1)
end
local rows, same = { { "rows x K x N", "kernel", "time", "TOPS", "separate", "same" } }, true
for _, shape in ipairs(arguments.shapes) do
  local r = measure(shape, arguments)
  rows[#rows + 1] = {
    ("%dx%dx%d"):format(r.rows, shape.K, shape.N), r.kernel, bench.duration(r.grouped * 1e-6), ("%.0f"):format(r.tops),
    bench.duration(r.separate * 1e-6), r.same and "yes" or "NO",
  }
  same = same and r.same
  collectgarbage()
  collectgarbage()
end
print(("int4mm %s on %s: %d experts, two of them for each row\n"):format(q._VERSION, q.device_info(DEVICE).name,
  arguments.experts))
print(bench.columns(rows, "1 2"))
os.exit(same and 0 or 1)
