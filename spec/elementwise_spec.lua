--- Maps, softmax, norms and argmax against the plain-Lua oracle, bit for bit, on every instruction set and on the GPU.

local ffi = require "ffi"

local activation = require "int4mm.internal.activation"
local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local lib = require("int4mm.lib").lib
local on_every_isa, oracle = helper.on_every_isa, q.elementwise_reference

local DTYPES = { "float32", "float16", "bfloat16" }
local UNARY = { "exp", "tanh", "erf", "relu", "silu", "gelu" }
local CELL = { float32 = "uint32_t *", float16 = "uint16_t *", bfloat16 = "uint16_t *" }

-- ---- data ----

--- Bits of values at which something changes: zeros, subnormals, the largest, infinities, NaN of either sign.
local EDGES = {
  float32 = { 0, 0x80000000, 1, 0x80000001, 0x7fffff, 0x800000, 0x3f800000, 0xbf800000, 0x7f7fffff, 0xff7fffff,
    0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001, 0x42b17218, 0xc2cff1b5, 0x3f200000 },
  float16 = { 0, 0x8000, 1, 0x8001, 0x3ff, 0x400, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfe01,
    0x7c01 },
  bfloat16 = { 0, 0x8000, 1, 0x8001, 0x7f, 0x80, 0x3f80, 0xbf80, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0xffc1,
    0x7f81 },
}
local BITS_OF = { float32 = helper.float_bits, float16 = helper.half_bits, bfloat16 = helper.bfloat_bits }

--- How the bits of an element are drawn.
local KINDS = {
  plain = function(r, dtype) return BITS_OF[dtype](helper.float32(r:range(-2 ^ 20, 2 ^ 20) * 2 ^ -18)) end,
  few = function(r, dtype) return BITS_OF[dtype](r:range(-3, 3)) end, -- ties
  any = function(r, dtype) return r:word() % (dtype == "float32" and 2 ^ 32 or 2 ^ 16) end,
  edges = function(r, dtype) return r:choose(EDGES[dtype]) end,
  huge = function(r, dtype) return BITS_OF[dtype](r:range(-99, 99) * (dtype == "float16" and 600 or 2 ^ 120)) end,
  tiny = function(r, dtype) return BITS_OF[dtype](r:range(-9, 9) * (dtype == "float16" and 2 ^ -24 or 2 ^ -133)) end,
}
local KIND_NAMES = { "plain", "plain", "few", "any", "edges", "huge", "tiny" }

--- A matrix or (columns alone) a vector of random bits, which is a view with rows apart unless `tight`.
local function draw(r, dtype, kind, rows, columns, tight)
  if not columns then rows, columns = nil, rows end
  local whole, view
  if tight or not rows then
    whole = rows and q.empty { rows, columns, dtype = dtype } or q.empty { columns, dtype = dtype }
    view = whole
  else
    whole = q.empty { rows + 1, columns + 5, dtype = dtype }
    view = whole:narrow(1, 2, rows):narrow(2, 1 + r:range(0, 4), columns)
  end
  local data, stride = ffi.cast(CELL[dtype], view:data()), view.stride
  for i = 0, (rows or 1) - 1 do
    for j = 0, columns - 1 do data[i * stride + j] = KINDS[kind](r, dtype) end
  end
  return view
end

--- An out in the middle of poisoned memory, and a function that checks that the rest is as it was.
local function guarded(dtype, rows, columns)
  local whole = rows and q.empty { rows + 2, columns + 6, dtype = dtype } or q.empty { columns + 6, dtype = dtype }
  whole:fill_bytes_(0xa5)
  local view = rows and whole:narrow(1, 2, rows):narrow(2, 4, columns) or whole:narrow(1, 4, columns)
  return view, function(name)
    local expected = q.empty { (rows or -1) + 2, columns + 6, dtype = dtype }:fill_bytes_(0xa5)
    if not rows then expected = q.empty { columns + 6, dtype = dtype }:fill_bytes_(0xa5) end
    local inside = rows and expected:narrow(1, 2, rows):narrow(2, 4, columns) or expected:narrow(1, 4, columns)
    inside:copy_(view)
    assert.same_bits(expected, whole, name .. ", around out")
  end
end

local SHAPES = {
  { 1, 1 }, { 3, 7 }, { 7, 3 }, { 2, 31 }, { 3, 32 }, { 2, 33 }, { 5, 40 }, { 2, 1030 }, { 1, 2500 }, { 19 }, { 1 },
}

-- ---- calls ----

--- Every call, by name: given a generator and a shape, a function that makes the call of a table of functions (q or the
-- oracle) with a source, options and further operands, and these operands.
local CALLS = {}
for _, name in ipairs(UNARY) do
  CALLS[name] = function() return function(from, src, opts) return from[name](src, opts) end, {} end
end
function CALLS.gelu_tanh()
  return function(from, src, opts)
    opts.approximate = "tanh"
    return from.gelu(src, opts)
  end, {}
end
function CALLS.softmax() return function(from, src, opts) return from.softmax(src, opts) end, {} end

local function draw_any(r, rows, columns) return draw(r, r:choose(DTYPES), r:choose(KIND_NAMES), rows, columns) end

for _, name in ipairs { "add", "mul" } do
  local function call(from, src, opts, others) return from[name](src, others[1], opts) end
  CALLS[name] = function(r, rows, columns) return call, { draw_any(r, rows, columns) } end
  CALLS[name .. " a row"] = function(r, rows, columns) return call, { draw_any(r, columns or rows) } end
  CALLS[name .. " a number"] = function(r)
    local number = r:choose { 0, -0.0, 0.1, -3, 1e30, 1e-44, 1e300, 1 / 0, -1 / 0, 0 / 0 }
    return function(from, src, opts) return from[name](src, number, opts) end, {}
  end
end

local function eps_of(r) return r:choose { false, 0, 1e-12, 0.1 } or nil end

function CALLS.layer_norm(r, rows, columns)
  local weight = r:chance(0.7) and draw_any(r, columns or rows) or false
  local bias = r:chance(0.7) and draw_any(r, columns or rows) or false
  local eps = eps_of(r)
  return function(from, src, opts, others)
    opts.eps = eps
    return from.layer_norm(src, others[1] or nil, others[2] or nil, opts)
  end, { weight, bias }
end

function CALLS.rms_norm(r, rows, columns)
  local weight, eps = r:chance(0.7) and draw_any(r, columns or rows) or false, eps_of(r)
  return function(from, src, opts, others)
    opts.eps = eps
    return from.rms_norm(src, others[1] or nil, opts)
  end, { weight }
end

local NAMES = {}
for name in pairs(CALLS) do NAMES[#NAMES + 1] = name end
table.sort(NAMES)

--- Random cases of a call: f(name, call, src, others, r).
local function each_case(name, seed, f)
  local r = cases.random(seed)
  for _, shape in ipairs(SHAPES) do
    for _, dtype in ipairs(DTYPES) do
      local kind = r:choose(KIND_NAMES)
      local src = draw(r, dtype, kind, shape[1], shape[2])
      local call, others = CALLS[name](r, shape[1], shape[2])
      f(("%s %s %s [%s]"):format(name, dtype, kind, table.concat(shape, ", ")), call, src, others, r)
    end
  end
end

describe("an elementwise call", function()
  for i, name in ipairs(NAMES) do
    it("is the oracle's: " .. name, function()
      each_case(name, i, function(text, call, src, others, r)
        local out_dtype = r:choose(DTYPES)
        local expected = call(oracle, src, { out_dtype = out_dtype }, others)
        local plain = call(oracle, src, {}, others)
        on_every_isa(function(isa)
          local where = text .. " on " .. isa
          assert.same_bits(plain, call(q, src, {}, others), where)
          assert.same_bits(expected, call(q, src, { out_dtype = out_dtype }, others), where .. " to " .. out_dtype)
          local out, check = guarded(out_dtype, src.shape[2] and src.shape[1], src.shape[2] or src.shape[1])
          assert.equal(out, call(q, src, { out = out }, others))
          assert.same_bits(expected, out, where .. " in out")
          check(where)
          local copy = src:clone()
          call(q, copy, { out = copy }, others)
          assert.same_bits(plain, copy, where .. " in place")
        end)
      end)
    end)
  end

  it("goes in place into its second operand as well", function()
    local r = cases.random(90)
    local src, other = draw(r, "float32", "plain", 3, 70), draw(r, "float16", "plain", 3, 70)
    local expected = oracle.add(src, other, { out_dtype = "float16" })
    q.add(src, other, { out = other })
    assert.same_bits(expected, other)
    local square = oracle.mul(src, src)
    q.mul(src, src, { out = src })
    assert.same_bits(square, src)
  end)

  it("has nothing to do for what is empty", function()
    for _, dtype in ipairs(DTYPES) do
      for _, shape in ipairs { { 0, 5 }, { 5, 0 }, { 0, 0 }, { 0 } } do
        shape.dtype = dtype
        local src = q.empty(shape)
        for _, name in ipairs { "relu", "softmax", "layer_norm", "rms_norm" } do
          local out = q[name](src)
          assert.same({ dtype, src.shape }, { out.dtype, out.shape })
        end
        assert.same(src.shape, q.add(src, src).shape)
        assert.same(src.shape, q.mul(src, q.zeros { shape[2] or shape[1] }).shape)
      end
    end
    assert.same({ 0 }, q.argmax(q.zeros { 0, 5 }).shape)
  end)
end)

describe("a function of one number", function()
  for _, dtype in ipairs { "float16", "bfloat16" } do
    it("has the oracle's bits for every " .. dtype, function()
      local all = q.empty { 256, 256, dtype = dtype }
      for i = 0, 65535 do all:data()[i] = i end
      for _, name in ipairs(UNARY) do
        local expected = oracle[name](all)
        on_every_isa(function(isa) assert.same_bits(expected, q[name](all), name .. " on " .. isa) end)
      end
      local expected = oracle.gelu(all, { approximate = "tanh" })
      on_every_isa(function(isa) assert.same_bits(expected, q.gelu(all, { approximate = "tanh" }), isa) end)
    end)
  end

  it("has the oracle's bits for float32 of every exponent", function()
    local some = q.empty { 512, 100 }
    local r, bits = cases.random(91), ffi.cast("uint32_t *", some:data())
    for e = 0, 511 do
      for i = 0, 99 do bits[100 * e + i] = e * 2 ^ 23 + (i < 2 and i * (2 ^ 23 - 1) or r:range(0, 2 ^ 23 - 1)) end
    end
    for _, name in ipairs(UNARY) do
      local expected = oracle[name](some)
      on_every_isa(function(isa) assert.same_bits(expected, q[name](some), name .. " on " .. isa) end)
    end
    local expected = oracle.gelu(some, { approximate = "tanh" })
    on_every_isa(function(isa) assert.same_bits(expected, q.gelu(some, { approximate = "tanh" }), isa) end)
  end)

  it("is what its name says", function()
    local function close(x, y) return math.abs(x - y) <= 2 ^ -22 * math.max(math.abs(y), 2 ^ -126) end
    for i = -800, 800 do
      local x = i / 100
      local x32 = helper.float32(x)
      assert(close(activation.exp(x32), math.exp(x32)), x)
      assert(close(activation.tanh(x32), math.tanh(x32)), x)
    end
    -- erf by its series (Abramowitz and Stegun 7.1.6), where that converges
    for i = -250, 250 do
      local x = helper.float32(i / 100)
      local term, sum = x, x
      for n = 1, 60 do
        term = term * 2 * x * x / (2 * n + 1)
        sum = sum + term
      end
      local erf = 2 / math.sqrt(math.pi) * math.exp(-x * x) * sum
      assert(close(activation.erf(x), erf), x)
    end
  end)
end)

-- ---- rows ----

describe("rows", function()
  it("that are longer than a tile or a block have the oracle's bits", function()
    local r = cases.random(92)
    for _, columns in ipairs { 8191, 8193, 16384, 16385, 33000 } do
      local dtype = r:choose(DTYPES)
      local src = draw(r, dtype, "plain", 2, columns)
      for _, name in ipairs { "softmax", "layer_norm", "rms_norm", "argmax" } do
        assert.same_bits(oracle[name](src), q[name](src), ("%s of %d %s"):format(name, columns, dtype))
      end
      local copy = src:clone()
      q.softmax(copy, { out = copy })
      assert.same_bits(oracle.softmax(src), copy)
    end
  end)

  it("give the same bits on any number of threads", function()
    local threads = q.get_num_threads()
    local src = q.random(q.empty { 700, 513 }, { low = -4, high = 4 })
    local expected = {}
    for _, n in ipairs { 1, 2, 3, 8 } do
      q.set_num_threads(n)
      for _, name in ipairs { "gelu", "softmax", "layer_norm", "rms_norm", "argmax" } do
        local got = helper.bytes(q[name](src))
        expected[name] = expected[name] or got
        assert(expected[name] == got, ("%s differs on %d threads"):format(name, n))
      end
    end
    q.set_num_threads(threads)
  end)

  it("are normalised as the definitions say", function()
    local src = q.random(q.empty { 3, 1000 }, { seed = 7, low = -2, high = 5 })
    local softmax, layer, rms = q.softmax(src), q.layer_norm(src), q.rms_norm(src)
    for i = 1, 3 do
      local mean, square, variance, all = 0, 0, 0, 0
      for j = 1, 1000 do
        local x = src:get(i, j)
        mean, square, all = mean + x / 1000, square + x * x / 1000, all + math.exp(x)
      end
      for j = 1, 1000 do variance = variance + (src:get(i, j) - mean) ^ 2 / 1000 end
      for j = 1, 1000, 37 do
        local x = src:get(i, j)
        assert(math.abs(softmax:get(i, j) / (math.exp(x) / all) - 1) < 1e-6)
        assert(math.abs(layer:get(i, j) - (x - mean) / math.sqrt(variance + 1e-5)) < 1e-5)
        assert(math.abs(rms:get(i, j) - x / math.sqrt(square)) < 1e-5)
      end
    end
  end)

  it("with NaN and infinities: softmax is NaN where the sum is", function()
    local inf = math.huge
    local src = q.tensor { { 1, 0 / 0, 2 }, { 1, inf, 2 }, { -inf, -inf, -inf }, { -inf, 0, 0 } }
    local nan = "\255\255\255\127"
    local half = "\0\0\0\63"
    assert.equal(nan:rep(9) .. "\0\0\0\0" .. half:rep(2), helper.bytes(q.softmax(src)))
  end)
end)

describe("argmax", function()
  local inf, nan = math.huge, 0 / 0
  local ROWS = {
    { { 1, 3, 3, 2 }, 1 }, { { -0.0, 0, 0, -1 }, 0 }, { { 0, -0.0, 0, 0 }, 0 }, { { -inf, -inf, -inf, -inf }, 0 },
    { { 1, nan, inf, nan }, 1 }, { { inf, 1, inf, 2 }, 0 }, { { -3, -2, -1, -4 }, 2 },
    { { 2 ^ -149, 0, -1, 2 ^ -148 }, 3 },
  }

  for _, dtype in ipairs(DTYPES) do
    it("is the first of the largest, a NaN the largest of all: " .. dtype, function()
      for _, row in ipairs(ROWS) do
        local values = { {} }
        for j, x in ipairs(row[1]) do
          local tiny = math.abs(x) < 2 ^ -140 and x ~= 0
          values[1][j] = tiny and dtype ~= "float32" and x * 2 ^ 125 or x
        end
        local src = q.tensor(values, { dtype = dtype })
        on_every_isa(function(isa)
          assert.same({ row[2] }, q.argmax(src):totable(), isa)
          assert.same({ row[2] }, q.argmax(q.tensor(values[1], { dtype = dtype })):totable(), isa)
        end)
      end
    end)

    it("is the oracle's: " .. dtype, function()
      local r = cases.random(93)
      for _, shape in ipairs(SHAPES) do
        for _, kind in ipairs(KIND_NAMES) do
          local src = draw(r, dtype, kind, shape[1], shape[2])
          local expected = oracle.argmax(src)
          on_every_isa(function(isa)
            local out, check = guarded("int32", nil, shape[2] and shape[1] or 1)
            assert.equal(out, q.argmax(src, { out = out }))
            assert.same_bits(expected, out, kind .. " on " .. isa)
            check(kind)
          end)
        end
      end
    end)
  end
end)

-- ---- wrong calls ----

describe("a wrong call of", function()
  local x, v = q.zeros { 4, 6 }, q.zeros { 6 }

  it("a map says what is wrong", function()
    assert.fails_with("relu: src is 1, expected a tensor", function() q.relu(1) end)
    assert.fails_with("silu: src is [4, 6] int8, expected float32, float16 or bfloat16",
      function() q.silu(q.zeros { 4, 6, dtype = "int8" }) end)
    assert.fails_with('exp: unknown option "dtype"; the options are out, out_dtype, stream',
      function() q.exp(x, { dtype = "float16" }) end)
    assert.fails_with('gelu: approximate is "fast", expected "none" or "tanh"',
      function() q.gelu(x, { approximate = "fast" }) end)
    assert.fails_with('tanh: out_dtype is "int8", expected "bfloat16", "float16" or "float32"',
      function() q.tanh(x, { out_dtype = "int8" }) end)
    assert.fails_with("erf: out is float32 but out_dtype is float16; leave one of them out",
      function() q.erf(x, { out = x, out_dtype = "float16" }) end)
    assert.fails_with("relu: out is [4, 5] float32 but src is [4, 6] float32: the shapes differ",
      function() q.relu(x, { out = q.zeros { 4, 5 } }) end)
    assert.fails_with("relu: out is [6] float32 but src is [4, 6] float32: the shapes differ",
      function() q.relu(x, { out = v }) end)
    assert.fails_with("relu: out is [4, 6] int32, expected float32, float16 or bfloat16",
      function() q.relu(x, { out = q.zeros { 4, 6, dtype = "int32" } }) end)
    assert.fails_with("relu: out overlaps src in memory", function()
      local wide = q.zeros { 4, 7 }
      q.relu(wide:narrow(2, 1, 6), { out = wide:narrow(2, 2, 6) })
    end)
    local freed = q.zeros { 4, 6 }
    freed:free()
    assert.fails_with({ pattern = "^relu: src .*freed" }, function() q.relu(freed) end)
  end)

  it("add and mul says what is wrong", function()
    assert.fails_with("add: other is nil, expected a tensor or a number", function() q.add(x) end)
    assert.fails_with('mul: other is "2", expected a tensor or a number', function() q.mul(x, "2") end)
    local text = "add: other is [%s] float32 but src is [4, 6] float32: expected the same shape, or [6] for each row"
    assert.fails_with(text:format "4", function() q.add(x, q.zeros { 4 }) end)
    assert.fails_with(text:format "1, 6", function() q.add(x, q.zeros { 1, 6 }) end)
    assert.fails_with("mul: other is [4, 6] int32, expected float32, float16 or bfloat16",
      function() q.mul(x, q.zeros { 4, 6, dtype = "int32" }) end)
    local square = q.zeros { 6, 6 }
    local row = q.wrap(square:data(), { shape = { 6 }, owner = square })
    assert.fails_with("add: out overlaps other in memory", function() q.add(square, row, { out = square }) end)
  end)

  it("a norm says what is wrong", function()
    local expected = "expected [6] float32, float16 or bfloat16: one for each column of src"
    assert.fails_with("layer_norm: weight is [4] float32, " .. expected,
      function() q.layer_norm(x, q.zeros { 4 }) end)
    assert.fails_with("layer_norm: bias is [4, 6] float32, " .. expected, function() q.layer_norm(x, v, x) end)
    assert.fails_with("rms_norm: weight is [6] int32, expected float32, float16 or bfloat16",
      function() q.rms_norm(x, q.zeros { 6, dtype = "int32" }) end)
    assert.fails_with("rms_norm: weight is a table, expected a tensor (int4mm.tensor makes one from a table)",
      function() q.rms_norm(x, { eps = 1 }) end)
    for _, eps in ipairs { -1, 1 / 0, 0 / 0, 1e39, true } do
      assert.fails_with({ pattern = "^layer_norm: eps is .*, expected a finite number, 0 or more$" },
        function() q.layer_norm(x, v, v, { eps = eps }) end)
    end
    local square = q.zeros { 6, 6 }
    local row = q.wrap(square:data(), { shape = { 6 }, owner = square })
    assert.fails_with("rms_norm: out overlaps weight in memory",
      function() q.rms_norm(square, row, { out = square }) end)
  end)

  it("argmax says what is wrong", function()
    assert.fails_with("argmax: src is [3, 0] float32, expected rows of 1 to 2147483647 elements",
      function() q.argmax(q.zeros { 3, 0 }) end)
    assert.fails_with("argmax: out is [6] int32, expected [4] int32: one for each row of src",
      function() q.argmax(x, { out = q.zeros { 6, dtype = "int32" } }) end)
    assert.fails_with("argmax: out is [4] float32, expected [4] int32: one for each row of src",
      function() q.argmax(x, { out = q.zeros { 4 } }) end)
    assert.fails_with('argmax: unknown option "out_dtype"; the options are out, stream',
      function() q.argmax(x, { out_dtype = "float32" }) end)
  end)

  it("the C functions says what Lua cannot get wrong", function()
    local function map(fields)
      local args = ffi.new("int4mm_map_args", fields)
      args.src, args.out = x.c, x.c
      assert.equal(tonumber(lib.INT4MM_ERR_ARGUMENT), lib.int4mm_map(args))
      return ffi.string(lib.int4mm_last_error())
    end
    local function rowwise(fields)
      local args = ffi.new("int4mm_rowwise_args", fields)
      args.src, args.out = x.c, x.c
      assert.equal(tonumber(lib.INT4MM_ERR_ARGUMENT), lib.int4mm_rowwise(args))
      return ffi.string(lib.int4mm_last_error())
    end
    assert.equal("op is 0, expected an int4mm_activation from 1 on or an int4mm_map_op", map { op = 0 })
    assert.equal("op is 10, expected an int4mm_activation from 1 on or an int4mm_map_op", map { op = 10 })
    assert.equal("other is given, but op is 1, which has one operand", map { op = 1, other = v.c })
    assert.equal("op is 4, expected an int4mm_rowwise_op", rowwise { op = 4 })
    assert.equal("weight is given, but op is 0, which has none", rowwise { op = 0, weight = v.c })
    assert.equal("bias is given, but op is 2, which has none", rowwise { op = 2, bias = v.c })
    assert.equal("eps is -1, expected a finite number, 0 or more", rowwise { op = 1, eps = -1 })
    assert.equal(tonumber(lib.INT4MM_ERR_ARGUMENT), lib.int4mm_map(nil))
    assert.equal(tonumber(lib.INT4MM_ERR_ARGUMENT), lib.int4mm_rowwise(nil))
    assert.equal("args is NULL", ffi.string(lib.int4mm_last_error()))
  end)
end)

-- ---- the GPU ----

describe("on the GPU", function()
  for i, name in ipairs(NAMES) do
    helper.on_gpu("the bits are the CPU's: " .. name, function()
      each_case(name, 100 + i, function(text, call, src, others, r)
        local there, out_dtype = {}, r:choose(DTYPES)
        for k, other in ipairs(others) do there[k] = other and other:to "cuda" end
        local expected = call(q, src, { out_dtype = out_dtype }, others)
        assert.same_bits(expected, call(q, src:to "cuda", { out_dtype = out_dtype }, there), text)
        if src.shape[2] then -- rows apart, at an odd address
          local wide = q.empty { src.shape[1], src.shape[2] + 3, dtype = src.dtype, device = "cuda" }
          local strided = wide:narrow(2, 2, src.shape[2]):copy_(src)
          assert.same_bits(expected, call(q, strided, { out_dtype = out_dtype }, there), text .. ", rows apart")
          local plain = call(q, src, {}, others)
          call(q, strided, { out = strided }, there)
          assert.same_bits(plain, strided, text .. ", in place")
        end
      end)
    end)
  end

  helper.on_gpu("the bits are the CPU's for every float16 and bfloat16", function()
    for _, dtype in ipairs { "float16", "bfloat16" } do
      local all = q.empty { 256, 256, dtype = dtype }
      for i = 0, 65535 do all:data()[i] = i end
      local there = all:to "cuda"
      for _, name in ipairs(UNARY) do assert.same_bits(q[name](all), q[name](there), name) end
      local opts = { approximate = "tanh" }
      assert.same_bits(q.gelu(all, opts), q.gelu(there, opts))
    end
  end)

  helper.on_gpu("the bits are the CPU's for short, long and many rows", function()
    local r = cases.random(94)
    for _, shape in ipairs {
      { 3, 8191 }, { 2, 8192 }, { 3, 8193 }, { 2, 40000 }, { 1, 131072 }, { 5000, 4 }, { 700, 384 }, { 70, 4096 },
    } do
      local src = q.random(q.empty(shape), { seed = shape[2], low = -5, high = 5 }):to(r:choose(DTYPES))
      local weight = q.random(q.empty { shape[2] }, { low = -1 })
      local there, weight_there = src:to "cuda", weight:to "cuda"
      local text = ("[%d, %d] %s"):format(shape[1], shape[2], src.dtype)
      assert.same_bits(q.softmax(src), q.softmax(there), "softmax " .. text)
      assert.same_bits(q.layer_norm(src, weight, weight), q.layer_norm(there, weight_there, weight_there), text)
      assert.same_bits(q.rms_norm(src, weight), q.rms_norm(there, weight_there), text)
      assert.same_bits(q.argmax(src), q.argmax(there), "argmax " .. text)
      assert.same_bits(q.add(src, weight), q.add(there, weight_there), "add a row " .. text)
      assert.same_bits(q.gelu(src), q.gelu(there), "gelu " .. text)
    end
  end)

  helper.on_gpu("argmax is the oracle's, and streams are followed", function()
    local r, stream = cases.random(95), q.stream "cuda"
    for _, dtype in ipairs(DTYPES) do
      for _, kind in ipairs(KIND_NAMES) do
        local src = draw(r, dtype, kind, 5, 777)
        local got = q.argmax(src:to "cuda", { stream = stream })
        stream:synchronize()
        assert.same_bits(oracle.argmax(src), got, kind)
      end
    end
  end)

  helper.on_gpu("operands of two devices are refused", function()
    local x = q.zeros { 4, 6 }
    assert.fails_with("add: other is on cpu but src is on cuda:0", function() q.add(x:to "cuda", x) end)
    assert.fails_with("relu: out is on cpu but src is on cuda:0", function() q.relu(x:to "cuda", { out = x }) end)
    assert.fails_with("rms_norm: weight is on cuda:0 but src is on cpu",
      function() q.rms_norm(x, q.zeros { 6, device = "cuda" }) end)
  end)
end)
