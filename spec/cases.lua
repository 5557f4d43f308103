--- The generator of matmul cases that every backend's spec runs: the same few hundred on every machine.
--
-- A case is a small table (shape, options, how its memory lies); `build` makes its operands, `expected` the bits that
-- the plain-Lua oracle gives, `check` runs one way of multiplying and compares all of it and the guards around `out`.

local assert = require "luassert"
local bit = require "bit"
local ffi = require "ffi"

local helper = require "spec.helper"
local q = require "int4mm"

local cases = {}

-- ---- random numbers ----

local Random = {}
Random.__index = Random

--- xorshift32 (Marsaglia, "Xorshift RNGs", 2003).
function cases.random(seed)
  local self = setmetatable({ state = bit.tobit(seed * 2654435761 % 2 ^ 32) }, Random)
  if self.state == 0 then self.state = 1 end
  for _ = 1, 4 do self:word() end
  return self
end

--- A word as LuaJIT's bit library has it: -2^31 .. 2^31 - 1.
function Random:word()
  local x = self.state
  x = bit.bxor(x, bit.lshift(x, 13))
  x = bit.bxor(x, bit.rshift(x, 17))
  x = bit.bxor(x, bit.lshift(x, 5))
  self.state = x
  return x
end

--- An integer from low to high, both included.
function Random:range(low, high)
  return low + math.floor((self:word() % 2 ^ 32) / 2 ^ 32 * (high - low + 1))
end

function Random:choose(list) return list[self:range(1, #list)] end

function Random:chance(p) return self:word() % 2 ^ 32 < p * 2 ^ 32 end

--- Fills n bytes (a multiple of 4) with random words.
function Random:fill(pointer, bytes)
  local words = ffi.cast("int32_t *", pointer)
  for i = 0, bytes / 4 - 1 do words[i] = self:word() end
end

-- ---- the list ----

local ENCODINGS = { "twos_complement", "offset" }
local DTYPES = { "float16", "bfloat16", "float32" }

--- Float32 values that tend to break things, as bits: zeros, subnormals, edges of float16, huge, infinite, NaN.
local SPECIAL = {
  0x00000000, 0x80000000, 0x00000001, 0x80000003, 0x007fffff, 0x00800000, 0x33800000, 0x33000000, 0x38800000,
  0x3f800000, 0xbf800000, 0x447fe000, 0x477fe000, 0xc77ff000, 0x7f7fffff, 0xff7fffff, 0x7149f2ca, 0x7f800000,
  0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001,
}

--- How a vector of scales is made: a function of the generator that gives the bits of one.
local SCALES = {
  plain = function(r) return helper.float_bits(r:range(-300, 1000) / 4096) end,
  special = function(r) return r:choose(SPECIAL) end,
  mixed = function(r) -- a special one here and there
    if r:chance(0.2) then return r:choose(SPECIAL) end
    return helper.float_bits(r:range(-1000, 1000) / 1024)
  end,
  overflow = function(r) return helper.float_bits(r:choose { 8, 15.9, 16, 31.99, 64, -16 }) end,
  subnormal = function(r) return helper.float_bits(r:range(1, 4000) * 2 ^ -27) end,
}

local LAYOUT = { 0, 0, 0, 1, 2, 3, 4, 8, 13 } -- columns of guard to either side

--- A case of this shape with everything else drawn at random; `set` overrides.
local function draw(r, M, N, K, set)
  local case = {
    M = M, N = N, K = K,
    encoding_a = r:choose(ENCODINGS), encoding_b = r:choose(ENCODINGS),
    layout_b = r:chance(0.3) and "nk" or "kn",
    out_dtype = r:choose(DTYPES),
    bias = r:chance(0.3),
    scale_a = r:choose { "plain", "plain", "plain", "mixed", "special", "overflow", "subnormal" },
    scale_b = r:choose { "plain", "plain", "plain", "mixed", "special", "overflow", "subnormal" },
    operands = "random", -- or a pair of nibble values for all of a and of b
    guard_a = r:choose(LAYOUT), guard_b = r:choose(LAYOUT), guard_out = r:choose(LAYOUT),
    seed = r:range(1, 2 ^ 30),
  }
  for key, value in pairs(set or {}) do case[key] = value end
  return case
end

--- What a failing assertion prints, enough to find and to rebuild the case.
local function name(case)
  local operands = case.operands == "random" and "" or (" all %d against all %d"):format(unpack(case.operands))
  return ("M=%d N=%d K=%d%s a:%s b:%s %s %s%s scales %s/%s guards %d/%d/%d seed %d"):format(case.M, case.N, case.K,
    operands, case.encoding_a, case.encoding_b, case.layout_b, case.out_dtype, case.bias and "+bias" or "",
    case.scale_a, case.scale_b, case.guard_a, case.guard_b, case.guard_out, case.seed)
end

local function finish(list)
  for _, case in ipairs(list) do case.name = name(case) end
  return list
end

--- K that is now and then long and mostly not: 8 .. 4096.
local function draw_k(r)
  local longest = r:choose { 64, 64, 512, 512, 1024, 4096 }
  return 8 * r:range(1, longest / 8)
end

local generated

--- The list: random shapes, zeros, edges, extreme values.
function cases.generated()
  if generated then return generated end
  local r, list = cases.random(20261122), {}
  local function add(...) list[#list + 1] = draw(r, ...) end
  for _ = 1, 220 do add(r:range(1, 70), r:range(1, 70), draw_k(r)) end
  -- every combination of the options on one odd shape
  for _, encoding_a in ipairs(ENCODINGS) do
    for _, encoding_b in ipairs(ENCODINGS) do
      for _, out_dtype in ipairs(DTYPES) do
        for _, layout_b in ipairs { "kn", "nk" } do
          local bias = r:chance(0.5)
          add(19, 21, 72, { encoding_a = encoding_a, encoding_b = encoding_b, out_dtype = out_dtype,
            layout_b = layout_b, bias = bias })
        end
      end
    end
  end
  -- nothing to do, or nothing to sum
  local empty = { { 0, 5, 16 }, { 5, 0, 16 }, { 5, 7, 0 }, { 0, 0, 0 }, { 1, 1, 0 }, { 0, 9, 0 }, { 33, 17, 0 } }
  for _, shape in ipairs(empty) do
    add(shape[1], shape[2], shape[3])
    add(shape[1], shape[2], shape[3], { guard_a = 0, guard_b = 0, guard_out = 0, scale_a = "special" })
  end
  -- one row, one column, one of both; widths about the vector lengths
  for _, n in ipairs { 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65 } do
    add(1, n, draw_k(r))
    add(n, 1, draw_k(r))
  end
  -- the largest sums: all -8 against all -8 and against all 7
  for _, encoding in ipairs(ENCODINGS) do
    for _, pair in ipairs { { -8, -8 }, { -8, 7 }, { 7, -8 }, { 7, 7 } } do
      add(9, 35, 4096, { operands = pair, encoding_a = encoding, encoding_b = encoding, scale_a = "plain" })
    end
  end
  add(2, 3, 200000, { scale_a = "plain", scale_b = "plain", out_dtype = "float32" })
  add(1, 17, 200000, { operands = { -8, -8 } })
  generated = finish(list)
  return generated
end

--- Weights [N, K/8], their rows contiguous and strided: dot products along K of every number of rows that a tile can
-- have, K too short for them, blocks, K in several k-blocks, wide K, and the largest sums.
function cases.k_major()
  local r, list = cases.random(311), {}
  local function add(M, N, K, set)
    for _, guard in ipairs { 0, 3 } do
      local case = draw(r, M, N, K, set)
      case.layout_b, case.guard_b = "nk", guard
      list[#list + 1] = case
    end
  end
  for M = 0, 9 do add(M, r:range(1, 41), 8 * r:range(1, 90)) end
  for M = 1, 9 do add(M, 2 * r:range(3, 12) + 1, 8 * (8 * M + 2 * r:range(0, 40) + 1)) end
  for _, K in ipairs { 0, 8, 264, 1096, 2056 } do add(17, 35, K) end
  for _, shape in ipairs {
    { 1, 97, 8 }, { 2, 67, 1032 }, { 1, 33, 40 }, { 33, 5, 2120 }, { 64, 3, 4104 }, { 65, 7, 4104 },
    { 129, 67, 136 }, { 129, 131, 264 }, { 67, 3, 20008 }, { 17, 1, 20008 }, { 1, 7, 40008 },
  } do
    add(shape[1], shape[2], shape[3])
  end
  for _, encoding in ipairs(ENCODINGS) do
    for _, pair in ipairs { { -8, -8 }, { -8, 7 }, { 7, -8 } } do
      add(3, 9, 8200, { operands = pair, encoding_a = encoding, encoding_b = encoding, scale_a = "plain" })
    end
  end
  add(1, 5, 200000, { scale_a = "plain", scale_b = "plain", out_dtype = "float32" })
  return finish(list)
end

--- Shapes large enough for blocks, tiles and levels of Strassen's method, with odd edges; `set` overrides.
function cases.large(set)
  local r, list = cases.random(77), {}
  for _, shape in ipairs {
    { 130, 96, 200 }, { 128, 128, 128 }, { 129, 131, 136 }, { 200, 64, 304 }, { 256, 256, 256 }, { 300, 288, 264 },
    { 97, 300, 520 }, { 65, 67, 1032 }, { 260, 33, 88 }, { 33, 260, 88 },
  } do
    list[#list + 1] = draw(r, shape[1], shape[2], shape[3])
  end
  list[#list + 1] = draw(r, 160, 160, 2048, { operands = { -8, -8 }, encoding_a = "twos_complement" })
  list[#list + 1] = draw(r, 160, 160, 2048, { operands = { -8, 7 }, encoding_b = "offset" })
  for _, case in ipairs(list) do
    for key, value in pairs(set or {}) do case[key] = value end
  end
  return finish(list)
end

--- `count` cases of random shapes up to these limits (K a multiple of 8), for the kernels of large and of small M.
function cases.sweep(count, seed, limits)
  local r, list = cases.random(seed), {}
  for _ = 1, count do
    list[#list + 1] = draw(r, r:range(1, limits.M), r:range(1, limits.N), 8 * r:range(1, limits.K / 8), limits.set)
  end
  return finish(list)
end

-- ---- operands ----

--- A matrix inside a larger one of random bytes: { whole, view }, the view `guard` columns and a row from each edge.
local function guarded(r, dtype, rows, cols, guard, device)
  local whole = q.empty { rows + (guard > 0 and 2 or 0), cols + 2 * guard, dtype = dtype }
  local n = whole.shape[1] * whole.shape[2] * helper.ELEMENT_BYTES[dtype]
  local buffer = ffi.new("uint8_t[?]", n + 4)
  r:fill(buffer, n + 4 - n % 4)
  if n > 0 then ffi.copy(whole:data(), buffer, n) end
  local function on(place)
    local w = place == "cpu" and whole or whole:to(place)
    return w, guard == 0 and w or w:narrow(1, 2, rows):narrow(2, guard + 1, cols)
  end
  return { whole = whole, on = on, view = select(2, on(device or "cpu")) }
end
cases.guarded = guarded

local function set_all(view, word)
  local p = helper.pointer(view)
  for i = 0, view.shape[1] - 1 do
    for j = 0, view.shape[2] - 1 do p[i * view.stride + j] = word end
  end
end

--- The word of eight equal nibbles.
local function word_of(value, encoding)
  local nibble = encoding == "offset" and value + 8 or value % 16
  return bit.tobit(nibble * 0x11111111)
end

local function vector(r, n, kind)
  local t = q.empty { n, dtype = "float32" }
  local p = ffi.cast("uint32_t *", t:data())
  for i = 0, n - 1 do p[i] = SCALES[kind](r) end
  return t
end
cases.vector, cases.SCALES = vector, SCALES

--- Operands on the CPU: a, b, scale_a, scale_b, bias (or nil), and `out`, a guarded and poisoned matrix.
function cases.build(case)
  local r, k8 = cases.random(case.seed), case.K / 8
  local rows, cols = k8, case.N
  if case.layout_b == "nk" then rows, cols = cols, rows end
  local built = {
    a = guarded(r, "int32", case.M, k8, case.guard_a),
    b = guarded(r, "int32", rows, cols, case.guard_b),
    scale_a = vector(r, case.M, case.scale_a),
    scale_b = vector(r, case.N, case.scale_b),
    bias = case.bias and vector(r, case.N, case.scale_b) or nil,
  }
  built.out = guarded(r, case.out_dtype, case.M, case.N, case.guard_out)
  if case.operands ~= "random" then
    set_all(built.a.view, word_of(case.operands[1], case.encoding_a))
    set_all(built.b.view, word_of(case.operands[2], case.encoding_b))
  end
  return built
end

--- The options table of a case; `more` is merged in.
function cases.options(case, more)
  local opts = { out_dtype = case.out_dtype, encoding_a = case.encoding_a, encoding_b = case.encoding_b,
    layout_b = case.layout_b }
  for key, value in pairs(more or {}) do opts[key] = value end
  return opts
end

local known = setmetatable({}, { __mode = "k" })

--- The bytes that the oracle gives for a case; worked out once.
function cases.expected(case, built)
  if not known[case] then
    built = built or cases.build(case)
    known[case] = helper.bytes(q.int4_matmul_reference(built.a.view, built.b.view, built.scale_a, built.scale_b,
      cases.options(case, { bias = built.bias })))
  end
  return known[case]
end

--- Runs `multiply(a, b, scale_a, scale_b, opts, case)` with a poisoned `out` on a device and compares its bits with the
-- oracle's and the guards with what they were. `place` is "cpu" or "cuda:0".
function cases.check(case, multiply, more, place)
  place = place or "cpu"
  local built = cases.build(case)
  local expected = cases.expected(case, built)
  local function move(t) return t and (place == "cpu" and t or t:to(place)) end
  local whole, out = built.out.on(place)
  local before = helper.bytes(whole)
  local _, a = built.a.on(place)
  local _, b = built.b.on(place)
  local opts = cases.options(case, { bias = move(built.bias), out = out })
  for key, value in pairs(more or {}) do opts[key] = value end
  opts.out_dtype = nil -- out says it
  local result = multiply(a, b, move(built.scale_a), move(built.scale_b), opts, case)
  assert.same_bits(expected, out, case.name)
  if result ~= nil then assert.same_bits(expected, result, "returned: " .. case.name) end
  if case.guard_out > 0 then cases.check_guards(case, before, helper.bytes(whole)) end
end

--- Everything around `out` is as it was.
function cases.check_guards(case, before, after)
  local size, guard = helper.ELEMENT_BYTES[case.out_dtype], case.guard_out
  local pitch, left = (case.N + 2 * guard) * size, guard * size
  for i = 0, case.M + 1 do
    local first, last = i * pitch + 1, (i + 1) * pitch
    local function outside(bytes)
      if i == 0 or i == case.M + 1 then return bytes:sub(first, last) end
      return bytes:sub(first, first + left - 1) .. bytes:sub(last - left + 1, last)
    end
    assert(outside(before) == outside(after), ("%s: wrote outside of out, beside row %d"):format(case.name, i))
  end
end

-- ---- floats ----

--- How the values of a generated matrix are drawn: zeros, subnormals, ties, what overflows when it is rotated.
local KINDS = {
  plain = function(r) return r:range(-2 ^ 20, 2 ^ 20) * 2 ^ -18 end,
  spread = function(r) return r:range(-2 ^ 10, 2 ^ 10) * 2 ^ r:range(-20, 4) end,
  zeros = function(r) return r:chance(0.05) and r:range(-5, 5) or r:chance(0.5) and -0.0 or 0 end,
  whole = function(r) return r:range(-7, 7) end,
  halves = function(r) return r:range(-14, 14) / 2 end,
  subnormal = function(r, dtype) return r:range(-9, 9) * (dtype == "float16" and 2 ^ -24 or 2 ^ -133) end,
  huge = function(r, dtype) return r:range(-2 ^ 7, 2 ^ 7) * (dtype == "float16" and 500 or 2 ^ 120) end,
}
cases.KIND_NAMES = { "plain", "spread", "zeros", "whole", "halves", "subnormal", "huge" }

--- A matrix of such values, which is a view with rows apart.
function cases.draw(r, rows, columns, dtype, kind)
  local whole = q.empty { rows + 1, columns + 5, dtype = dtype }
  local view = whole:narrow(1, 2, rows):narrow(2, 1 + r:range(0, 4), columns)
  for i = 1, rows do
    for j = 1, columns do view:set(i, j, KINDS[kind](r, dtype)) end
  end
  return view
end

--- A matrix of int8 that holds int4 values.
function cases.draw_int4(r, rows, columns)
  local t = q.empty { rows, columns, dtype = "int8" }
  for i = 1, rows do
    for j = 1, columns do t:set(i, j, r:range(-8, 7)) end
  end
  return t
end

return cases
