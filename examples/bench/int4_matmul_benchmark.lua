--- Speed and accuracy of the int4 product over a list of shapes, on every backend at hand.
--
--     luajit examples/bench/int4_matmul_benchmark.lua --help

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/../.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
package.path = here .. "/?.lua;" .. package.path
local argparse = require "argparse"
local ffi = require "ffi"
local json = require "cjson"
local q = require "int4mm"
local bench = require "bench"
local options = require "options"

local SHAPES = "1x4096x4096,16x4096x4096,128x4096x4096,256x256x256,512x512x512,1024x1024x1024,2048x2048x2048,"
  .. "4096x4096x4096"

-- Each has a product and the device its operands belong on; prepare(b_packed) is done once a shape.
local BACKENDS = {
  { name = "cpu", device = "cpu", multiply = q.int4_matmul_cpu },
  { name = "prepacked", device = "cpu", multiply = q.int4_matmul_cpu, prepare = q.prepack },
  { name = "cuda", device = "cuda:0", multiply = q.int4_matmul_cuda, finish = q.synchronize },
}

-- ---- arguments ----

local function parse_arguments()
  local parser = argparse("int4_matmul_benchmark.lua",
    "Times the int4 product, and measures what quantising to int4 costs in accuracy.\n"
    .. "The operands of a shape stay the same from call to call, so that small ones come from cache.",
    "Columns: time is the median of a call; TOPS counts 2 M K N operations; memory is that of the packed operands\n"
    .. "and their scales, beside the same in fp16; exact says that a sample of rows equals the plain-LuaJIT oracle\n"
    .. "bit for bit; error is the root mean square of (quantised - float) over that of float, for normal random data.")
  parser:option("--shapes", "MxKxN,... instead of the usual 8"):convert(options.shapes):argname "<list>"
  parser:option("--only", "backends, of cpu,prepacked,cuda (prepacked: the CPU with a prepacked weight)")
    :convert(options.only { "cpu", "prepacked", "cuda" }):argname "<list>"
  parser:option("--threads", "threads on the CPU"):convert(options.count(1)):argname "<count>"
  parser:option("--isa", "instruction set on the CPU"):choices(q.cpu_isas())
  parser:option("--seconds", "time for each row of the table", "0.5"):convert(options.seconds):argname "<time>"
  parser:option("--seed", "of the random data", "1"):convert(options.count(0)):argname "<number>"
  parser:flag("--json", "print JSON instead of a table")
  local arguments = parser:parse()
  arguments.shapes = arguments.shapes or options.shapes(SHAPES)
  return arguments
end

-- ---- backends ----

-- Those asked for that are there, and those that are not, with the reason.
local function choose_backends(asked)
  local wanted, chosen, missing = {}, {}, {}
  for _, name in ipairs(asked or { "cpu", "prepacked", "cuda" }) do wanted[name] = true end
  for _, backend in ipairs(BACKENDS) do
    if wanted[backend.name] then
      local there, reason = true, nil
      if backend.device ~= "cpu" then there, reason = q.cuda_available() end
      if there then
        chosen[#chosen + 1] = backend
      else
        missing[#missing + 1] = { backend = backend.name, reason = reason }
      end
    end
  end
  return chosen, missing
end

-- ---- accuracy ----

-- Normal random numbers by the Box-Muller transform of uniform ones in (0, 1].
local function normal(rows, columns, seed, sequence)
  local half = math.ceil(rows * columns / 2)
  local u = q.random(q.empty { half }, { seed = seed, sequence = sequence }):data()
  local v = q.random(q.empty { half }, { seed = seed, sequence = sequence + 1 }):data()
  local t = q.empty { rows, columns }
  local x = t:data()
  for i = 0, rows * columns - 1 do
    local pair = math.floor(i / 2)
    local radius, angle = math.sqrt(-2 * math.log(u[pair])), 2 * math.pi * v[pair]
    x[i] = radius * (i % 2 == 0 and math.cos(angle) or math.sin(angle))
  end
  return t
end

-- Rows and columns of a product do not influence one another, so a block of it shows the error of the whole.
local function quantising_error(shape, seed)
  local M, K, N = math.min(shape.M, 32), shape.K, math.min(shape.N, 128)
  local a, b = normal(M, K, seed, 10), normal(K, N, seed, 20)
  local a_packed, scale_a = q.quantize(a)
  local b_packed, scale_b = q.quantize(b, { dim = 1 })
  local c = q.int4_matmul_cpu(a_packed, b_packed, scale_a, scale_b, { out_dtype = "float32" })
  local x, y, z = a:data(), b:data(), c:data()
  local sums = ffi.new("double[?]", N)
  local difference, whole = 0, 0
  for m = 0, M - 1 do
    ffi.fill(sums, 8 * N)
    for k = 0, K - 1 do
      local factor = x[m * K + k]
      for n = 0, N - 1 do sums[n] = sums[n] + factor * y[k * N + n] end
    end
    for n = 0, N - 1 do
      difference, whole = difference + (z[m * N + n] - sums[n]) ^ 2, whole + sums[n] ^ 2
    end
  end
  return whole > 0 and math.sqrt(difference / whole) or 0
end

-- ---- speed ----

local ORACLE_PRODUCTS = 5e7 -- what the oracle does in some tenths of a second

-- Whether the first rows of `out` are what the oracle says.
local function is_exact(shape, operands, out)
  local rows = math.min(shape.M, math.max(1, math.floor(ORACLE_PRODUCTS / math.max(shape.K * shape.N, 1))))
  local expected = q.int4_matmul_reference(operands[1]:narrow(1, 1, rows), operands[2],
    operands[3]:narrow(1, 1, rows), operands[4])
  return (out:narrow(1, 1, rows):equal(expected))
end

local function measure(shape, backend, arguments)
  local a_packed, b_packed, scale_a, scale_b = q.generate_test_data(shape.M, shape.K, shape.N,
    { seed = arguments.seed, device = backend.device })
  local weight = backend.prepare and backend.prepare(b_packed) or b_packed
  local out = q.empty { shape.M, shape.N, dtype = "float16", device = backend.device }
  local opts = { out = out }
  local seconds, samples = bench.time(function() backend.multiply(a_packed, weight, scale_a, scale_b, opts) end,
    { seconds = arguments.seconds, finish = backend.finish })
  local packed, fp16 = 0, 2 * (shape.M * shape.K + shape.K * shape.N)
  for _, t in ipairs { a_packed, b_packed, scale_a, scale_b } do packed = packed + t:bytes() end
  return {
    M = shape.M, K = shape.K, N = shape.N, shape = shape.name, backend = backend.name,
    kernel = a_packed.device == "cpu" and q.cpu_isa() or q.explain(a_packed, weight, scale_a, scale_b).kernel,
    seconds = seconds, samples = samples, tops = 2 * shape.M * shape.K * shape.N / seconds * 1e-12,
    bytes = packed, fp16_bytes = fp16,
    exact = is_exact(shape, { a_packed, b_packed, scale_a, scale_b }, out),
  }
end

local function run(arguments, backends)
  local results = {}
  local step = bench.progress(#arguments.shapes * (#backends + 1))
  for _, shape in ipairs(arguments.shapes) do
    step(shape.name .. " accuracy")
    local err = quantising_error(shape, arguments.seed)
    for _, backend in ipairs(backends) do
      step(shape.name .. " " .. backend.name)
      local result = measure(shape, backend, arguments)
      result.error = err
      results[#results + 1] = result
    end
  end
  step()
  return results
end

-- ---- output ----

local function print_table(report)
  local rows = { { "M x K x N", "backend", "kernel", "time", "TOPS", "memory", "fp16", "ratio", "exact", "error" } }
  for _, r in ipairs(report.results) do
    rows[#rows + 1] = {
      r.shape, r.backend, r.kernel, bench.duration(r.seconds), ("%.3f"):format(r.tops), bench.size(r.bytes),
      bench.size(r.fp16_bytes), ("%.2fx"):format(r.fp16_bytes / r.bytes), r.exact and "yes" or "NO",
      ("%.1f%%"):format(100 * r.error),
    }
  end
  print(("int4mm %s; CPU: %s, %d threads%s\n"):format(report.version, report.cpu.isa, report.cpu.threads,
    report.gpu and "; GPU: " .. report.gpu.name or ""))
  print(bench.columns(rows, "1 2 3"))
  for _, absent in ipairs(report.missing) do
    print(("\n%s was not timed: %s"):format(absent.backend, absent.reason))
  end
end

local arguments = parse_arguments()
if arguments.threads then q.set_num_threads(arguments.threads) end
if arguments.isa then q.set_cpu_isa(arguments.isa) end
local backends, missing = choose_backends(arguments.only)
if #backends == 0 then
  io.stderr:write("int4_matmul_benchmark: nothing was timed: ", missing[1].reason, "\n")
  os.exit(1)
end
local report = { version = q._VERSION, cpu = q.device_info("cpu"), missing = missing }
for _, backend in ipairs(backends) do
  if backend.device ~= "cpu" then report.gpu = q.device_info(backend.device) end
end
report.results = run(arguments, backends)
local exact = true
for _, result in ipairs(report.results) do exact = exact and result.exact end
if arguments.json then
  report.missing = #missing > 0 and missing or json.empty_array
  print(json.encode(report))
else
  print_table(report)
end
os.exit(exact and 0 or 1)
