--- Products and layers of every kind of activations and weights on a GPU, timed as a model runs them: in CUDA graphs,
--- with weights that rotate so that none of them is in the cache.
--
--     luajit examples/bench/layer_benchmark.lua --help

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/../.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
package.path = here .. "/?.lua;" .. package.path
local argparse = require "argparse"
local json = require "cjson"
local q = require "int4mm"
local bench = require "bench"
local options = require "options"

local DEVICE = "cuda:0"

-- `a`: activations; `group`: values to a group scale, `factors` where these are integers; `zeros`: zero points
local SCHEMES = {
  { name = "w4a4", a = "int4", rotate = 256 },
  { name = "w4a8", a = "int8" },
  { name = "w4a8z", a = "int8", zeros = true },
  { name = "w4a4g128", a = "int4", group = 128, rotate = 256 },
  { name = "w4a8g128", a = "int8", group = 128 },
  { name = "w4a8g128z", a = "int8", group = 128, zeros = true },
  { name = "w4a8g64", a = "int8", group = 64 },
  { name = "w4a8g32", a = "int8", group = 32 },
  { name = "w4a8f128", a = "int8", group = 128, factors = true },
  { name = "w4a8f32", a = "int8", group = 32, factors = true },
  { name = "w4a4f128", a = "int4", group = 128, factors = true, rotate = 256 },
  { name = "w4a16", a = "float" },
  { name = "w4a16g128", a = "float", group = 128 },
  { name = "w4a16g128z", a = "float", group = 128, zeros = true },
}

local ROWS, WEIGHTS = { 1, 16, 64, 256, 1024, 4096 }, { { 4096, 4096 }, { 4096, 14336 }, { 3072, 12288 } } -- K, N

-- ---- arguments ----

local function parse_shapes(text)
  local list, reason = options.shapes(text)
  for _, shape in ipairs(list or {}) do
    if shape.K % 256 ~= 0 then
      return nil, ("K is %d in %s, expected a multiple of 256"):format(shape.K, shape.name)
    end
  end
  return list, reason
end

local function all_shapes()
  local shapes = {}
  for _, weight in ipairs(WEIGHTS) do
    for _, M in ipairs(ROWS) do shapes[#shapes + 1] = { M = M, K = weight[1], N = weight[2] } end
  end
  return shapes
end

local function parse_arguments()
  local names = {}
  for i, scheme in ipairs(SCHEMES) do names[i] = scheme.name end
  local parser = argparse("layer_benchmark.lua", "Times products and layers with weights of int4 on a GPU.",
    "A scheme is w4a4, w4a8 or w4a16 (what the activations are), then g and the size of groups with a float scale\n"
    .. "each, or f with an integer one, then z where there are zero points. A product has its activations quantised\n"
    .. "beforehand; a layer quantises bfloat16 ones (for int4 rotated by 256), adds a bias and gives bfloat16.")
  parser:option("--shapes", "MxKxN,... instead of the usual 18"):convert(parse_shapes):argname "<list>"
  parser:option("--only", "schemes, of " .. table.concat(names, ",")):convert(options.only(names)):argname "<list>"
  parser:option("--rounds", "launches of each graph, of which the median counts", "9"):convert(options.count(1))
    :argname "<count>"
  parser:flag("--products", "products alone")
  parser:flag("--json", "print JSON instead of a table")
  local arguments = parser:parse()
  arguments.shapes = arguments.shapes or all_shapes()
  arguments.only = arguments.only or names
  return arguments
end

-- ---- weights ----

local function words(rows, columns, seed)
  return q.random(q.empty { rows, columns, dtype = "int32", device = DEVICE }, { seed = seed })
end

-- int8 numbers in low .. high on the GPU, a pattern
local function bytes(rows, columns, low, high)
  local t = columns and q.empty { rows, columns, dtype = "int8" } or q.empty { rows, dtype = "int8" }
  local data = t:data()
  for i = 0, rows * (columns or 1) - 1 do data[i] = low + (i * 7) % (high - low + 1) end
  return t:to(DEVICE)
end

-- As many weights as are larger than the cache together, up to eight.
local function make_weights(scheme, K, N)
  local count, weights = math.min(8, math.max(2, math.floor(120e6 / (K * N / 2)))), {}
  for i = 1, count do
    local groups = scheme.group and K / scheme.group
    weights[i] = {
      words = words(K / 8, N, i),
      scales = groups and not scheme.factors and q.full({ groups, N, device = DEVICE, dtype = "bfloat16" }, 0.01)
        or q.full({ N, device = DEVICE }, 0.01),
      opts = {
        group_size = scheme.group, factors = scheme.factors and bytes(groups, N, 1, 15) or nil,
        zeros = scheme.zeros and (groups and bytes(groups, N, -8, 7) or bytes(N, nil, -8, 7)) or nil,
      },
    }
  end
  return weights
end

-- ---- timing ----

-- Microseconds of a call within a graph of some forty.
local function time(call, count, rounds)
  local calls = math.max(count, math.floor(40 / count) * count)
  return bench.graph_time(q, function(i) call((i - 1) % count + 1) end, calls, rounds)
end

local function with(opts, more)
  local all = {}
  for key, value in pairs(opts) do all[key] = value end
  for key, value in pairs(more) do all[key] = value end
  return all
end

local function quantised(scheme, x)
  if scheme.a == "float" then return x, nil end
  return q.quantize(x, { dtype = scheme.a == "int8" and "int8" or nil })
end

local function measure(shape, scheme, weights, arguments)
  local x = q.random(q.empty { shape.M, shape.K }, { seed = 9, low = -1, high = 1 }):to("bfloat16"):to(DEVICE)
  local out = q.empty { shape.M, shape.N, dtype = "bfloat16", device = DEVICE }
  local bias = q.full({ shape.N, device = DEVICE }, 0.5)
  local a, scales = quantised(scheme, x)
  local workspace = q.empty { math.max(1, q.linear_workspace(shape.M, shape.K, scheme.a)),
    dtype = "int8", device = DEVICE }
  local product, layer = {}, {}
  for i, w in ipairs(weights) do
    product[i] = with(w.opts, { out = out })
    layer[i] = with(w.opts, { out = out, bias = bias, activations = scheme.a, rotate = scheme.rotate,
      workspace = workspace })
  end
  local result = with({ M = shape.M, K = shape.K, N = shape.N }, { scheme = scheme.name })
  result.kernel = q.explain(a, weights[1].words, scales, weights[1].scales, product[1]).kernel
  result.product = time(function(i)
    q.int4_matmul(a, weights[i].words, scales, weights[i].scales, product[i])
  end, #weights, arguments.rounds)
  if not arguments.products then
    result.layer = time(function(i) q.int4_linear(x, weights[i].words, weights[i].scales, layer[i]) end, #weights,
      arguments.rounds)
  end
  return result
end

local function scheme_of(name)
  for _, scheme in ipairs(SCHEMES) do
    if scheme.name == name then return scheme end
  end
end

local function run(arguments)
  local results, step = {}, bench.progress(#arguments.shapes * #arguments.only)
  for _, shape in ipairs(arguments.shapes) do
    for _, name in ipairs(arguments.only) do
      local scheme = scheme_of(name)
      step(("%dx%dx%d %s"):format(shape.M, shape.K, shape.N, name))
      results[#results + 1] = measure(shape, scheme, make_weights(scheme, shape.K, shape.N), arguments)
      collectgarbage()
    end
  end
  step()
  return results
end

-- ---- output ----

local function print_table(results)
  print(("int4mm %s on %s; microseconds\n"):format(q._VERSION, q.device_info(DEVICE).name))
  local rows = { { "M x K x N", "scheme", "kernel", "product", "layer" } }
  for _, r in ipairs(results) do
    rows[#rows + 1] = {
      ("%d x %d x %d"):format(r.M, r.K, r.N), r.scheme, r.kernel, ("%.2f"):format(r.product),
      r.layer and ("%.2f"):format(r.layer) or "",
    }
  end
  print(bench.columns(rows, "1 2 3"))
end

local arguments = parse_arguments()
local there, reason = q.cuda_available()
if not there then
  io.stderr:write("layer_benchmark: nothing was timed: ", reason, "\n")
  os.exit(1)
end
local results = run(arguments)
if arguments.json then
  print(json.encode { version = q._VERSION, gpu = q.device_info(DEVICE).name, results = results })
else
  print_table(results)
end
