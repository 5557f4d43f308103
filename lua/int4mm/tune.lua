--- Tuning: the kernels that a GPU runs fastest for given products, found by timing them.
--
--     q.tune({ { M = 16, K = 4096, N = 14336 }, { M = 512, K = 4096, N = 4096 } }, { path = "tuned.json" })
--     q.load_tuning "tuned.json" -- or INT4MM_TUNE=tuned.json in the environment
--
-- Nothing is ever tuned by itself, and nothing has to be: without it the choice goes by estimates, and
-- @{int4mm.ops.explain} tells which it was. A tuning is of one GPU's name and architecture and of one version of
-- int4mm; others refuse it. It counts for products of exactly its sizes and kinds. Files are JSON, by lua-cjson.
-- @module int4mm.tune

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local enums = require "int4mm.enums"
local event = require "int4mm.event"
local factory = require "int4mm.factory"
local file = require "int4mm.io.file"
local graph = require "int4mm.graph"
local json = require "int4mm.io.json"
local ops = require "int4mm.ops"

local lib = binding.lib
local tune = {}

local FORMAT = "int4mm tuning 1"
local MOST_SETS = 16      -- of operands, to rotate over
local GRAPH_SECONDS = 1e-3 -- a graph holds about so much work, and each set at least once
local MOST_CALLS = 256    -- in a graph
local SLOW_PRODUCTS = 2 ^ 28 -- more than so many multiplications are not timed with the kernels that serve anything
local LEAST_GAIN = 0.98   -- of the time of the kernel that would be taken anyway: less is noise

-- ---- products ----

local KIND = { "dtype_a", "scaling", "group_size", "zeros", "layout_b" }
local SHAPE = { "M", "K", "N", unpack(KIND) }

-- A product with everything said; raises for one that is none.
local function check_shape(name, what, shape)
  if type(shape) ~= "table" then
    check.raise(name, "%s is %s, expected a table { M =, K =, N = }", what, check.describe(shape))
  end
  shape = check.options(name, shape, SHAPE)
  local full = {}
  for _, key in ipairs { "M", "K", "N" } do
    full[key] = check.integer(name, what .. "." .. key, shape[key], 1, 2 ^ 31 - 1)
  end
  full.dtype_a = check.choice(name, what .. ".dtype_a", shape.dtype_a, enums.dtypes, "int32").name
  if full.dtype_a == "int32" and full.K % 8 ~= 0 then
    check.raise(name, "%s.K is %d, expected a multiple of 8", what, full.K)
  end
  full.scaling = shape.scaling or "per_column"
  check.choice(name, what .. ".scaling", full.scaling, enums.scalings)
  full.zeros = check.boolean(name, what .. ".zeros", shape.zeros, false)
  full.layout_b = shape.layout_b or "kn"
  check.choice(name, what .. ".layout_b", full.layout_b, enums.layouts_b)
  full.group_size = full.scaling ~= "per_column"
    and check.integer(name, what .. ".group_size", shape.group_size, 1, full.K) or 0
  return full
end

-- One set of operands, whose words are random bits, and the options of a product of it.
local function make_operands(shape, device, sequence)
  local M, K, N, words = shape.M, shape.K, shape.N, math.ceil(shape.K / 8)
  local function make(value, dtype, ...) return factory.full({ dtype = dtype, device = device, ... }, value) end
  local function random_words(rows, columns)
    return factory.random(factory.empty { rows, columns, dtype = "int32", device = device }, { sequence = sequence })
  end
  local set = { b = shape.layout_b == "nk" and random_words(N, words) or random_words(words, N) }
  if shape.dtype_a == "int32" then
    set.a = random_words(M, words)
  elseif shape.dtype_a == "int8" then
    set.a = ops.unpack_int32_to_int4(random_words(M, words)):narrow(2, 1, K)
  else
    local floats = factory.random(factory.empty { M, K, device = device }, { sequence = sequence, low = -1 })
    set.a = shape.dtype_a == "float32" and floats or floats:to(shape.dtype_a)
  end
  if not enums.float_dtypes[shape.dtype_a] then set.scale_a = make(1 / 64, "float32", M) end
  local opts = { layout_b = shape.layout_b, out = factory.empty { M, N, dtype = "float16", device = device } }
  local by_group = { N }
  if shape.scaling ~= "per_column" then
    opts.group_size, by_group = shape.group_size, { math.ceil(K / shape.group_size), N }
  end
  local factors = shape.scaling == "group_factors"
  set.scale_b = factors and make(1 / 64, "float32", N) or make(1 / 64, "float32", unpack(by_group))
  if factors then opts.factors = make(1, "int8", unpack(by_group)) end
  if shape.zeros then opts.zeros = make(1, "int8", unpack(by_group)) end
  set.opts = opts
  return set
end

-- So many sets that they do not fit the L2 together, or as many as half the free memory has room for.
local function make_sets(shape, info)
  local before, sets = info.free_memory, {}
  sets[1] = make_operands(shape, info.device, 0)
  local bytes = sets[1].a:bytes() + sets[1].b:bytes() + sets[1].opts.out:bytes()
  local count = math.min(MOST_SETS, math.ceil(2 * info.l2_bytes / bytes), math.floor(before / 2 / bytes))
  for i = 2, count do sets[i] = make_operands(shape, info.device, i) end
  return sets
end

-- ---- times ----

local function multiply(set, kernel)
  set.opts.kernel = kernel
  ops.int4_matmul_cuda(set.a, set.b, set.scale_a, set.scale_b, set.opts)
end

local function explain(set, kernel)
  set.opts.kernel = kernel
  return ops.explain(set.a, set.b, set.scale_a, set.scale_b, set.opts).kernel
end

-- The kernels that serve a product. Those that serve any are slow: of a large product they are left out where another
-- one serves it.
local function candidates(shape, set)
  local fast, slow = {}, {}
  for _, kernel in ipairs(ops.cuda_kernels()) do
    local served = pcall(explain, set, kernel)
    local list = (kernel == "simple" or kernel == "tiled") and slow or fast
    if served then list[#list + 1] = kernel end
  end
  if #fast == 0 or shape.M * shape.K * shape.N <= SLOW_PRODUCTS then
    for _, kernel in ipairs(slow) do fast[#fast + 1] = kernel end
  end
  return fast
end

-- Seconds of a replay of a graph.
local function replay(captured, timer)
  timer.start:record(timer.stream)
  captured:launch(timer.stream)
  timer.stop:record(timer.stream)
  timer.stop:synchronize()
  return timer.start:elapsed(timer.stop) * 1e-3
end

local function capture(sets, kernel, calls, device)
  return (graph.graph(function()
    for i = 0, calls - 1 do multiply(sets[i % #sets + 1], kernel) end
  end, { device = device }))
end

local function median(times)
  table.sort(times)
  return times[math.ceil(#times / 2)]
end

-- Each kernel's graph, with how many calls it has and how often to replay it for so many seconds.
local function prepare(sets, kernel, seconds, timer)
  multiply(sets[1], kernel) -- what a first call sets up
  local short = capture(sets, kernel, #sets, timer.device)
  replay(short, timer)
  local call = math.max(replay(short, timer) / #sets, 1e-7)
  short:free()
  local calls = #sets * math.max(1, math.min(math.floor(GRAPH_SECONDS / call / #sets), math.floor(MOST_CALLS / #sets)))
  local rounds = math.max(3, math.min(100, math.ceil(seconds / (call * calls))))
  return { kernel = kernel, calls = calls, rounds = rounds, times = {},
    graph = capture(sets, kernel, calls, timer.device) }
end

-- Nanoseconds a call by kernel. The kernels take turns, so that they run at the same clocks.
local function time_kernels(sets, kernels, seconds, timer)
  local list, most, found = {}, 0, {}
  for i, kernel in ipairs(kernels) do
    list[i] = prepare(sets, kernel, seconds, timer)
    most = math.max(most, list[i].rounds)
  end
  for round = 1, most do
    for _, one in ipairs(list) do
      if round <= one.rounds then one.times[round] = replay(one.graph, timer) / one.calls end
    end
  end
  for _, one in ipairs(list) do
    one.graph:free()
    found[one.kernel] = math.floor(median(one.times) * 1e9 + .5)
  end
  return found
end

local function tune_shape(shape, info, seconds, timer)
  local sets = make_sets(shape, info)
  local entry = { taken = explain(sets[1], nil) }
  for _, key in ipairs(SHAPE) do entry[key] = shape[key] end
  local kernels = candidates(shape, sets[1])
  local listed = false
  for _, kernel in ipairs(kernels) do listed = listed or kernel == entry.taken end
  if not listed then kernels[#kernels + 1] = entry.taken end
  entry.kernels = time_kernels(sets, kernels, seconds, timer)
  entry.kernel = entry.taken
  for kernel, time in pairs(entry.kernels) do
    local least = entry.kernels[entry.kernel] * (entry.kernel == entry.taken and LEAST_GAIN or 1)
    if time < least then entry.kernel = kernel end
  end
  entry.nanoseconds, entry.taken_nanoseconds = entry.kernels[entry.kernel], entry.kernels[entry.taken]
  sets = nil -- luacheck: ignore
  collectgarbage() -- what the next shape needs room for
  return entry
end

--- Times the kernels that can serve each product, with CUDA graphs over operands that rotate past the L2 cache.
-- @tparam table shapes array of products `{ M =, K =, N = }`, with `dtype_a`, `scaling`, `group_size`, `zeros` and
--   `layout_b` as in @{int4mm.ops.choose_cuda} where it is not W4A4 with a scale for each column
-- @tparam[opt] table opts `device` ("cuda"), `path`: a file to write to, `seconds` (0.05) for each kernel and product
-- @treturn table for @{load_tuning} and, as JSON, in the file: `format`, `version` (of int4mm), `device` (the GPU's
--   name), `arch`, and `entries`, for each product what it is, `kernel` (the fastest) with its `nanoseconds` a call,
--   `taken` (what is chosen now, kept unless another one is 2% faster) with its `taken_nanoseconds`, and `kernels`, the
--   nanoseconds of all
-- @raise where CUDA is not available, for products that cannot be, and where the file cannot be written
function tune.tune(shapes, opts)
  local name = "tune"
  opts = check.options(name, opts, { "device", "path", "seconds" })
  if type(shapes) == "table" and shapes.M ~= nil then
    check.raise(name, "shapes is one product, expected an array of them: { { M =, K =, N = } }")
  elseif type(shapes) ~= "table" or #shapes == 0 then
    check.raise(name, "shapes is %s, expected an array of products { M =, K =, N = }",
      type(shapes) == "table" and "empty" or check.describe(shapes))
  end
  local full = {}
  for i, shape in ipairs(shapes) do full[i] = check_shape(name, ("shapes[%d]"):format(i), shape) end
  local seconds = check.number(name, "seconds", check.default(opts.seconds, 0.05))
  if not (seconds >= 0 and seconds < math.huge) then
    check.raise(name, "seconds is %s, expected a finite number, 0 or more", check.describe(seconds))
  end
  if opts.path ~= nil then
    file.check_path(name, opts.path)
    json.need(name)
  end
  local device = enums.device_name(enums.gpu(name, "device", opts.device))
  local info = devices.device_info(device)
  if not info then check.raise(name, "%s", select(2, devices.cuda_available())) end
  local timer = { device = device, stream = devices.stream(device), start = event.event { device = device },
    stop = event.event { device = device } }
  local tuning = { format = FORMAT, version = binding.version, device = info.name, arch = info.kernel_arch,
    entries = {} }
  for i, shape in ipairs(full) do tuning.entries[i] = tune_shape(shape, info, seconds, timer) end
  if opts.path == nil then return tuning end
  local text = json.encode(tuning) .. "\n"
  local written, reason = file.replace(opts.path, function(put) put(text, #text) end)
  if not written then check.raise(name, "%s", reason) end
  return tuning
end

-- ---- what was tuned ----

-- Why an entry of a file is none, or nil.
local function entry_fault(entry)
  if type(entry) ~= "table" then return "it is no object" end
  for _, key in ipairs { "M", "K", "N", "group_size" } do
    local value = entry[key]
    if type(value) ~= "number" or value % 1 ~= 0 or value < 0 or value > 2 ^ 53 then
      return key .. " is no whole number"
    end
  end
  if not enums.dtypes[entry.dtype_a] then return "dtype_a is no dtype" end
  if not enums.scalings[entry.scaling] then return "scaling is none" end
  if not enums.layouts_b[entry.layout_b] then return "layout_b is none" end
  if type(entry.zeros) ~= "boolean" then return "zeros is neither true nor false" end
  return type(entry.kernel) ~= "string" and "kernel is no name" or nil
end

-- Why a tuning cannot be used here, or nil; of its GPU where `info` is given.
local function fault(tuning, info)
  if tuning.format ~= FORMAT then return "it is no tuning of int4mm" end
  if tuning.version ~= binding.version then
    return ("it is of int4mm %s, this is %s: tune again"):format(tostring(tuning.version), binding.version)
  end
  if type(tuning.device) ~= "string" or type(tuning.arch) ~= "number" or type(tuning.entries) ~= "table" then
    return "it has no device, arch or entries"
  end
  if info and (info.name ~= tuning.device or info.kernel_arch ~= tuning.arch) then
    return ("it is of %s, sm_%d, and %s is %s, sm_%d: tune again"):format(tuning.device, tuning.arch, info.device,
      info.name, info.kernel_arch)
  end
  for i, entry in ipairs(tuning.entries) do
    local reason = entry_fault(entry)
    if reason then return ("entry %d: %s"):format(i, reason) end
  end
end

-- Gives the entries to the C core: true, or nil and the reason.
local function set(tuning)
  local entries = tuning.entries
  local tuned = ffi.new("int4mm_tuned[?]", math.max(#entries, 1))
  for i, entry in ipairs(entries) do
    local t = tuned[i - 1]
    t.M, t.N, t.K, t.group = entry.M, entry.N, entry.K, entry.group_size
    t.dtype_a, t.scaling = enums.dtypes[entry.dtype_a].id, enums.scalings[entry.scaling]
    t.zeros, t.layout_b, t.kernel = entry.zeros and 1 or 0, enums.layouts_b[entry.layout_b], entry.kernel
  end
  if lib.int4mm_set_tuning(tuning.device, tuning.arch, tuned, #entries) == enums.status.ok then return true end
  return nil, binding.last_error()
end

local function read(path)
  local reader, reason = file.open(path)
  if not reader then return nil, reason end
  local text
  text, reason = reader:text(reader.size, 0)
  reader:close()
  if not text then return nil, reason end
  local tuning
  tuning, reason = json.decode(text)
  if not tuning then return nil, ("%s: %s"):format(path, reason) end
  return tuning
end

-- A tuning from a table or a file, checked and given to the C core.
local function load(source, info)
  local tuning, reason = source, nil
  if type(source) == "string" then tuning, reason = read(source) end
  if not tuning then return nil, reason end
  reason = fault(tuning, info)
  local done = not reason
  if done then done, reason = set(tuning) end
  if done then return #tuning.entries end
  return nil, type(source) == "string" and ("%s: %s"):format(source, reason) or reason
end

--- Has products take the kernels that @{tune} found, from now on and in place of what was loaded before. A kernel that
-- cannot serve a product, for how its operands lie, is passed over.
-- @tparam ?string|table source a file, or what @{tune} returned; nil: nothing is tuned any more
-- @tparam[opt] table opts `device` ("cuda"): the GPU that it has to be of
-- @treturn ?number how many products it has; nil where it cannot be used
-- @treturn ?string then why: it cannot be read, or is of another GPU or version
function tune.load_tuning(source, opts)
  local name = "load_tuning"
  opts = check.options(name, opts, { "device" })
  if source == nil then
    binding.check(name, lib.int4mm_set_tuning(nil, 0, nil, 0))
    return 0
  end
  if type(source) ~= "table" then
    file.check_path(name, source)
    json.need(name)
  end
  local info, reason = devices.device_info(enums.device_name(enums.gpu(name, "device", opts.device)))
  if not info then return nil, reason end
  return load(source, info)
end

-- What the environment's INT4MM_TUNE names, without a look at the GPU, which would open the driver: the C core compares
-- that on first need. Returns what is wrong, or nil.
function tune.load_environment()
  local path = os.getenv "INT4MM_TUNE"
  if not path or path == "" then return end
  local ok, loaded, reason = pcall(function()
    json.need "INT4MM_TUNE"
    return load(path)
  end)
  if ok and loaded then return end
  return ("INT4MM_TUNE is not used: %s"):format(tostring(ok and reason or loaded))
end

return tune
