--- The int4 product beside cuBLAS fp16 and cuBLASLt int8 and fp8, in one process on one GPU.
--
--     luajit examples/bench/gpu_peers.lua --help
--
-- Each contender of a shape is captured into a CUDA graph of calls that rotate over sets of random operands, together
-- larger than the L2 where --sets allows, and the graph is replayed back to back between events; the figure is the
-- median. It is replayed for --warm seconds before, so that the clocks are those that this contender's own power
-- allows: a large product runs up to a fifth faster on a GPU that has rested, and a small one a tenth slower after a
-- large one. A peer is given its best: the first algorithms of cuBLASLt's heuristic are all tried, for fp16 with the
-- weight in either order and by cublasGemmEx too, and the fastest is what counts. What int4mm computes is compared bit
-- for bit with the CPU's result, that of a plain call and that of the graph.

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
local cublas = require "cublas"
local q = require "int4mm"
local bench = require "bench"
local options = require "options"
local describe = require "gpu_peers_report"

local PEERS = { "fp16", "int8", "fp8" }
local DEVICE = "cuda:0"
local WORKSPACE = 64 * 2 ^ 20 -- bytes for cuBLAS and cuBLASLt
local ROTATED = 300e6         -- bytes of operands that the sets of a shape should have together
local GRAPH_SECONDS = 2e-3    -- a graph holds about so much work, and each set at least once
local MOST_CALLS = 2048       -- in a graph
local ALGORITHMS = 8          -- of each heuristic
local CHECKED = 1e11          -- multiplications that the CPU does to check a result

-- ---- arguments ----

local function parse_arguments()
  local parser = argparse("gpu_peers.lua",
    "Times the int4 product on a GPU beside cuBLAS fp16, cuBLASLt int8 and cuBLASLt fp8 (e4m3), all in this process.",
    "Columns: us is a call, the median over replays of a graph; TOPS counts 2 M K N operations; GB/s is the packed\n"
    .. "weight read once; host us is what a call costs the host; exact says that the result equals the CPU's bit for\n"
    .. "bit (a large one: rows throughout it); x is the time of the peer before it over that of int4mm.\n"
    .. "Exit status: 0; 1 when a result is wrong or int4mm failed, and when there is no GPU, after a line that says\n"
    .. 'why (with --json that is {"skipped": "why"} and status 0).')
  parser:option("--shapes", "MxKxN,... instead of the usual 23"):convert(options.shapes):argname "<list>"
  parser:option("--only", "contenders, of int4mm," .. table.concat(PEERS, ",") .. "; int4mm is timed anyway")
    :convert(options.only { "int4mm", unpack(PEERS) }):argname "<list>"
  parser:option("--kernel", "the int4mm kernel to take instead of the best"):argname "<name>"
  parser:option("--rounds", "replays that are timed", "15"):convert(options.count(1)):argname "<count>"
  parser:option("--sets", "at most so many sets of operands to rotate over", "24"):convert(options.count(1))
    :argname "<count>"
  parser:option("--warm", "replays for so long before those that are timed", "0.5"):convert(options.seconds)
    :argname "<time>"
  parser:option("--sustained", "also run each contender for so long, for a sustained figure"):convert(options.seconds)
    :argname "<time>"
  parser:option("--seed", "of the random data", "1"):convert(options.count(0)):argname "<number>"
  parser:flag("--json", "print JSON instead of a table")
  local arguments = parser:parse()
  arguments.shapes = arguments.shapes or options.shapes(options.GPU_SHAPES)
  arguments.peers = {}
  for _, name in ipairs(arguments.only or PEERS) do
    if name ~= "int4mm" then arguments.peers[#arguments.peers + 1] = name end
  end
  return arguments
end

local arguments = parse_arguments()

local function skip(reason)
  if arguments.json then
    print(json.encode { skipped = reason })
    os.exit(0)
  end
  io.stderr:write("gpu_peers: nothing was timed: ", reason, "\n")
  os.exit(1)
end

-- ---- the GPU, its memory and its data ----

local available, why = q.cuda_available()
if not available then skip(why) end
local runtime, no_runtime = cublas.open_runtime()
if not runtime then skip("the CUDA runtime cannot be used: " .. no_runtime) end

local gpu = q.device_info(DEVICE)
local stream = q.stream(DEVICE)

-- Calls f(slab) and gives back afterwards what it took: slab(bytes, count, dtype) is memory for `count` operands of so
-- many bytes, each aligned to 256, with a function from 1 .. count to their addresses.
local function with_memory(f)
  local taken = {}
  local function slab(bytes, count, dtype)
    local each = math.ceil(bytes / 256) * 256
    local memory = q.empty { each * count / 4, dtype = dtype or "int32", device = DEVICE }
    taken[#taken + 1] = memory
    return memory, function(i) return ffi.cast("char *", memory:data()) + (i - 1) * each end
  end
  local ok, result = pcall(f, slab)
  cublas.synchronize(stream.handle) -- the addresses were used behind the library's back
  for _, memory in ipairs(taken) do memory:free() end
  if ok then return result end
  return nil, (tostring(result):gsub("^.-:%d+: ([%w_]+: )", "%1")) -- int4mm's errors carry this script's line
end

local POOL_WORDS = 2 ^ 22
local pools = {}

-- 16 MiB of random values on the device: fp16 uniform from -1 to 1, fp8 the same cut to e4m3, int8 any bits.
local function make_pool(kind)
  if kind == "int8" then return q.random(q.empty { POOL_WORDS, dtype = "int32", device = DEVICE }, { seed = 2 }) end
  local values = POOL_WORDS * (kind == "fp16" and 2 or 4)
  local halves = q.random(q.empty { values }, { seed = 2, low = -1, high = 1 }):to "float16"
  local bits = halves:data()
  local bytes = ffi.cast("uint8_t *", bits) -- in place: a byte is written where it has been read already
  if kind == "fp8" then
    for i = 0, values - 1 do
      local half = bits[i]
      local exponent = bit.band(bit.rshift(half, 10), 31) - 8 -- the biases are 15 and 7
      local magnitude = exponent > 0 and exponent * 8 + bit.band(bit.rshift(half, 7), 7) or 0
      bytes[i] = bit.band(bit.rshift(half, 8), 128) + magnitude
    end
  end
  local pool = q.tensor(ffi.cast("int32_t *", bits), { shape = { POOL_WORDS }, dtype = "int32", device = DEVICE })
  halves:free() -- not sooner: nothing else keeps what `bits` points to
  return pool
end

-- Fills memory from a kind's pool over and over, from a place of its own on.
local function fill(memory, kind, place)
  pools[kind] = pools[kind] or make_pool(kind)
  local length, done = memory.shape[1], 0
  while done < length do
    local count = math.min(length - done, POOL_WORDS - place)
    memory:narrow(1, done + 1, count):copy_(pools[kind]:narrow(1, place + 1, count))
    done, place = done + count, 0
  end
end

-- How many sets of operands to rotate over.
local function set_count(in_bytes, out_bytes)
  local wanted = math.max(2, math.ceil(ROTATED / in_bytes))
  return math.max(1, math.min(wanted, arguments.sets, math.floor(0.7 * gpu.total_memory / (in_bytes + out_bytes))))
end

-- ---- timing ----

-- What nvidia-smi says now, or nil.
local function read_clocks()
  local pipe = io.popen("nvidia-smi --format=csv,noheader,nounits -i " .. runtime.bus
    .. " --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu 2>/dev/null")
  local sm, memory, watts, celsius = (pipe:read "*l" or ""):match "^([^,]+), ([^,]+), ([^,]+), ([^,]+)$"
  pipe:close()
  return sm and {
    sm_mhz = tonumber(sm), memory_mhz = tonumber(memory), watts = tonumber(watts), celsius = tonumber(celsius),
  }
end

-- A graph of so many calls: call(i) enqueues the product of set i.
local function capture(call, sets, calls)
  return cublas.capture(stream.handle, function()
    for i = 1, calls do call((i - 1) % sets + 1) end
  end)
end

-- Seconds a call, roughly.
local function estimate(call, sets)
  for i = 1, math.min(sets, 2) do call(i) end -- modules are loaded and memory is joined outside of any capture
  cublas.synchronize(stream.handle)
  local graph = capture(call, sets, sets)
  cublas.replay(graph, stream.handle, 1)
  local seconds = bench.median(cublas.replay(graph, stream.handle, 3)) / sets
  cublas.destroy_graph(graph)
  return seconds
end

-- Times call(i) over the sets: a table with seconds a call, and `sustained` where that was asked for. before() is
-- called when all that is left to do is to replay the graph.
local function measure(call, sets, before)
  local seconds = estimate(call, sets)
  local rounds = math.ceil(GRAPH_SECONDS / (seconds * sets))
  local calls = sets * math.max(1, math.min(rounds, math.floor(MOST_CALLS / sets)))
  local graph = capture(call, sets, calls)
  if before then before() end
  cublas.replay(graph, stream.handle, 1, math.max(3, math.ceil(arguments.warm / (seconds * calls))))
  local times = cublas.replay(graph, stream.handle, arguments.rounds)
  local result = { seconds = bench.median(times) / calls, sets = sets, calls = calls, repeats = #times }
  if arguments.sustained then
    local replays, clocks = math.ceil(arguments.sustained / (result.seconds * calls)), nil
    local sustained = cublas.replay(graph, stream.handle, 1, replays, function() clocks = read_clocks() end)[1]
    result.sustained = { seconds = sustained / calls, clocks = clocks }
  end
  cublas.destroy_graph(graph)
  return result
end

local function add_rates(result, shape, weight_bytes)
  local operations = 2 * shape.M * shape.K * shape.N
  result.us, result.tops = result.seconds * 1e6, operations / result.seconds * 1e-12
  result.weight_gbs = weight_bytes / result.seconds * 1e-9
  local sustained = result.sustained
  if sustained then
    sustained.us, sustained.tops = sustained.seconds * 1e6, operations / sustained.seconds * 1e-12
  end
  return result
end

-- ---- int4mm ----

-- A function that compares results with the CPU's: all rows, or of a large product every so many-th. Their distance is
-- odd, so that they are other rows of each tile.
local function make_check(shape, a, b, scale_a, scale_b)
  local M, K, N = shape.M, shape.K, shape.N
  local step = math.min(M, math.ceil(M * K * N / CHECKED))
  if step % 2 == 0 then step = step - 1 end
  local rows = math.ceil(M / step)
  a, scale_a = a:to "cpu", scale_a:to "cpu"
  local scales = q.empty { rows }
  for i = 0, rows - 1 do scales:data()[i] = scale_a:data()[i * step] end
  local words = q.wrap(a:data(), { shape = { rows, K / 8 }, stride = step * K / 8, dtype = "int32", owner = a })
  local expected = q.int4_matmul_cpu(words, b:to "cpu", scales, scale_b:to "cpu")
  return function(out)
    out = out:to "cpu"
    local some = q.wrap(out:data(), { shape = { rows, N }, stride = step * N, dtype = "float16", owner = out })
    local same, difference = some:equal(expected)
    if not same then error(("not the CPU's result, in 1 of %d rows; %s (int4mm, CPU)"):format(step, difference), 0) end
  end
end

-- Seconds that one call takes on the host: enqueued on an idle GPU, not waited for.
local function host_cost(call)
  local samples = {}
  for i = 1, 7 do
    cublas.synchronize(stream.handle)
    local start = bench.now()
    for _ = 1, 40 do call(1) end
    samples[i] = (bench.now() - start) / 40
  end
  cublas.synchronize(stream.handle)
  return bench.median(samples)
end

local function measure_int4mm(shape, slab)
  local M, K, N = shape.M, shape.K, shape.N
  local sets = set_count((M + N) * K / 2, 2 * M * N)
  local function operand(bytes, dtype, sequence, high)
    local memory, at = slab(bytes, sets, dtype)
    q.random(memory, { seed = arguments.seed, sequence = sequence, high = high })
    return function(i, ...)
      return q.wrap(at(i), { shape = { ... }, dtype = dtype, device = DEVICE, owner = memory })
    end
  end
  local a, b = operand(M * K / 2, "int32", 1), operand(N * K / 2, "int32", 2)
  local scale_a, scale_b = operand(4 * M, "float32", 3, 1 / 64), operand(4 * N, "float32", 4, 1 / 64)
  local out_memory, out_at = slab(2 * M * N, sets)
  local operands, opts = {}, {}
  for i = 1, sets do
    operands[i] = { a(i, M, K / 8), b(i, K / 8, N), scale_a(i, M), scale_b(i, N) }
    local out = q.wrap(out_at(i), { shape = { M, N }, dtype = "float16", device = DEVICE, owner = out_memory })
    opts[i] = { out = out, stream = stream, kernel = arguments.kernel }
  end
  local function call(i)
    local of = operands[i]
    q.int4_matmul_cuda(of[1], of[2], of[3], of[4], opts[i])
  end
  local check = make_check(shape, unpack(operands[1]))
  local function poison()
    out_memory:fill_bytes_(0xA5)
    q.synchronize(DEVICE)
  end
  poison()
  call(1)
  cublas.synchronize(stream.handle)
  check(opts[1].out)
  local result = measure(call, sets, poison)
  check(opts[1].out)
  result.host_us = host_cost(call) * 1e6
  local plan = q.explain(operands[1][1], operands[1][2], operands[1][3], operands[1][4], opts[1])
  result.kernel, result.plan, result.exact = plan.kernel, tostring(plan), true
  result.cached = sets * (M + N) * K / 2 < 2 * gpu.l2_bytes
  return add_rates(result, shape, N * K / 2)
end

-- ---- peers ----

-- The fastest candidate that is not refused; those that are say why.
local function choose(candidates, call_of, sets, reason)
  local best, least
  for _, candidate in ipairs(candidates) do
    local ok, seconds = pcall(estimate, call_of(candidate), sets)
    if ok and (not least or seconds < least) then best, least = candidate, seconds end
    if not ok then reason = seconds end
  end
  if not best then error(reason, 0) end
  return best
end

-- `rows`: M, or more where the peer does not serve M.
local function measure_peer_rows(kind, shape, rows, slab)
  local peer, K, N = cublas.peers[kind], shape.K, shape.N
  local scale = slab(4, 1, "float32"):fill_(0.5)
  local candidates, reason, close = cublas.candidates(peer, rows, K, N, scale:data(), ALGORITHMS)
  local ok, result = pcall(function()
    if #candidates == 0 then error(reason, 0) end
    local sets = set_count((rows + N) * K * peer.bytes, rows * N * peer.out_bytes)
    local activations, activation_at = slab(rows * K * peer.bytes, sets)
    local weights, weight_at = slab(N * K * peer.bytes, sets)
    local _, out_at = slab(rows * N * peer.out_bytes, sets)
    fill(activations, kind, 0)
    fill(weights, kind, 1234567)
    q.synchronize(DEVICE)
    local function call_of(candidate)
      return function(i) candidate.run(activation_at(i), weight_at(i), out_at(i)) end
    end
    local best = choose(candidates, call_of, sets, reason)
    local measured = measure(call_of(best), sets)
    measured.algorithm, measured.rows = best.name, rows
    return add_rates(measured, shape, N * K * peer.bytes)
  end)
  cublas.synchronize(stream.handle)
  close()
  if not ok then error(result, 0) end
  return result
end

-- A peer that does not take M rows may take the next multiple of 16, as a caller would pad them.
local function measure_peer(kind, shape)
  local result, reason = with_memory(function(slab) return measure_peer_rows(kind, shape, shape.M, slab) end)
  local padded = math.ceil(shape.M / 16) * 16
  if not result and padded ~= shape.M then
    result = with_memory(function(slab) return measure_peer_rows(kind, shape, padded, slab) end)
  end
  return result, reason
end

-- ---- ceilings of this run ----

-- Reads two vectors of up to 1 GiB: bytes a second in units of 1e9, or nil and why not.
local function measure_reading()
  return with_memory(function(slab)
    local bytes = math.min(2 ^ 30, 2 ^ math.floor(math.log(gpu.total_memory / 8) / math.log(2)))
    local vectors, at = slab(bytes, 2, "float32")
    local _, result_at = slab(4, 1, "float32")
    q.random(vectors, { seed = 3, low = -1 })
    q.synchronize(DEVICE)
    local x, y, result = ffi.cast("float *", at(1)), ffi.cast("float *", at(2)), ffi.cast("float *", result_at(1))
    return 2 * bytes / measure(function() cublas.dot(bytes / 4, x, y, result) end, 1).seconds * 1e-9
  end)
end

local function measure_ceilings()
  local read_gbs, no_read_gbs = measure_reading()
  local shortest = with_memory(function(slab) return measure_int4mm({ M = 8, K = 8, N = 8 }, slab) end)
  return { read_gbs = read_gbs, no_read_gbs = no_read_gbs, shortest_us = shortest and shortest.us }
end

-- ---- the run ----

local function measure_shape(shape, report, step)
  local row = { M = shape.M, K = shape.K, N = shape.N, peers = {}, skipped = {} }
  step(shape.name .. " int4mm")
  row.int4mm, row.failed = with_memory(function(slab) return measure_int4mm(shape, slab) end)
  for _, kind in ipairs(arguments.peers) do
    step(shape.name .. " " .. kind)
    if report.libraries.cublasLt.missing and (kind ~= "fp16" or report.libraries.cublas.missing) then
      row.skipped[kind] = report.libraries.cublasLt.missing
    else
      row.peers[kind], row.skipped[kind] = measure_peer(kind, shape)
      if row.peers[kind] then row.skipped[kind] = nil end
    end
    local peer = row.peers[kind]
    if peer and row.int4mm then peer.ratio = peer.seconds / row.int4mm.seconds end
  end
  return row
end

local function run()
  local workspace = q.empty { WORKSPACE, dtype = "int8", device = DEVICE }
  q.synchronize(DEVICE)
  local report = {
    version = q._VERSION, gpu = gpu, runtime = runtime, peers = arguments.peers, sustained = arguments.sustained,
    warm = arguments.warm, clocks_before = read_clocks(), ceilings = {}, shapes = {},
  }
  report.libraries = cublas.open(stream.handle, workspace:data(), WORKSPACE)
  local step = bench.progress(#arguments.shapes * (1 + #arguments.peers) + 1)
  local ok, reason = pcall(function()
    step "ceilings"
    report.ceilings = measure_ceilings()
    for i, shape in ipairs(arguments.shapes) do report.shapes[i] = measure_shape(shape, report, step) end
  end)
  step()
  if not ok then report.stopped = tostring(reason) end -- a GPU that is broken; what was measured before is told
  report.clocks_after = read_clocks()
  workspace:free()
  return report
end

local report = run()
local good = not report.stopped
for _, row in ipairs(report.shapes) do good = good and row.int4mm ~= nil end
print(arguments.json and json.encode(report) or describe(report))
os.exit(good and 0 or 1)
