--- The generator of products of every kind: activations of int4, int8 and floats, scales for columns and for groups,
-- factors, zero points. Like spec/cases.lua, whose generator it uses: a case is a small table, `build` makes its
-- operands, `check` runs one way of multiplying and compares it with the oracle, bit for bit; where A is floats it
-- holds it to the bound.

local assert = require "luassert"

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local kinds = {}

local FLOATS = { "float16", "bfloat16", "float32" }
local IS_FLOAT = { float16 = true, bfloat16 = true, float32 = true }
local ENCODINGS = { "twos_complement", "offset" }
local SCALE_KINDS = { "plain", "plain", "plain", "mixed", "special", "overflow", "subnormal" }
local GUARDS = { 0, 0, 0, 1, 2, 4, 13 }

-- ---- the list ----

local function name(case)
  local groups = case.scaling == "column" and "" or (" of %d%s%s"):format(case.group, case.ng and " [N, G]" or "",
    case.give and "" or " by shape")
  return ("%s M=%d N=%d K=%d %s%s %s%s a:%s b:%s %s %s%s scales %s/%s guards %d/%d/%d seed %d"):format(case.a, case.M,
    case.N, case.K, case.scaling, groups, case.scaling == "group" and case.scale_dtype or "",
    case.zeros and " zeros " .. case.zeros or "", case.encoding_a, case.encoding_b, case.layout_b, case.out_dtype,
    case.bias and "+bias" or "", case.scale_a, case.scale_b, case.guard_a, case.guard_b, case.guard_out, case.seed)
end

--- Groups of K, and whether their size follows from their number.
local function groups_of(case)
  if case.scaling == "column" then return 1, true end
  local groups = math.ceil(case.K / case.group)
  return groups, groups == 1 or case.K % groups == 0 and case.K / groups == case.group
end

--- A case of this shape with everything else drawn at random; `set` overrides. K is made what the kind of A needs.
function kinds.draw(r, M, N, K, set)
  local case = {
    M = M, N = N, K = K,
    a = r:choose { "int4", "int8", "int8", "float16", "bfloat16", "float32" },
    scaling = r:choose { "column", "group", "group", "factors" },
    scale_dtype = r:choose { "float32", "float32", "float16", "bfloat16" },
    group = r:choose { 32, 32, 64, 96, 128, 256 },
    zeros = r:choose { false, "int8", "words" },
    encoding_a = r:choose(ENCODINGS), encoding_b = r:choose(ENCODINGS),
    layout_b = r:chance(0.4) and "nk" or "kn", ng = r:chance(0.5), give = r:chance(0.5),
    out_dtype = r:choose(FLOATS), bias = r:chance(0.3),
    scale_a = r:choose(SCALE_KINDS), scale_b = r:choose(SCALE_KINDS),
    guard_a = r:choose(GUARDS), guard_b = r:choose(GUARDS), guard_out = r:choose(GUARDS), guard_s = r:choose(GUARDS),
    seed = r:range(1, 2 ^ 30),
  }
  for key, value in pairs(set or {}) do case[key] = value end
  if case.a == "int4" then case.K = 8 * math.ceil(case.K / 8) else case.encoding_a = "twos_complement" end
  if case.scaling == "factors" then case.zeros = false end
  if IS_FLOAT[case.a] then -- nothing is exact: no infinities
    case.scale_b = case.scale_b == "subnormal" and "subnormal" or "plain"
  end
  local groups, follows = groups_of(case)
  case.groups, case.give = groups, case.give or not follows
  case.ng = case.ng and case.layout_b == "nk" and case.N ~= groups
    and not (case.zeros == "words" and math.ceil(case.N / 8) == groups)
  case.name = name(case)
  return case
end

local SCALINGS = {
  { scaling = "column" }, { scaling = "group" }, { scaling = "factors" }, { scaling = "column", zeros = "int8" },
  { scaling = "column", zeros = "words" }, { scaling = "group", zeros = "int8" },
  { scaling = "group", zeros = "words" },
}

local generated

--- Every kind of A with every scaling in both layouts, on shapes with odd edges and tails, and random ones.
function kinds.generated()
  if generated then return generated end
  local r, list = cases.random(1202), {}
  local function add(...) list[#list + 1] = kinds.draw(r, ...) end
  for _, a in ipairs { "int4", "int8", "float16", "bfloat16", "float32" } do
    for _, set in ipairs(SCALINGS) do
      for _, layout_b in ipairs { "kn", "nk" } do
        local all = { a = a, layout_b = layout_b, zeros = false }
        for key, value in pairs(set) do all[key] = value end
        add(r:range(1, 5), r:range(1, 40), r:range(1, 300), all)
        add(r:range(6, 40), r:range(1, 70), r:range(1, 300), all)
      end
    end
  end
  for _ = 1, 100 do add(r:range(1, 40), r:range(1, 70), r:choose { r:range(1, 64), r:range(1, 700), 128, 256, 512 }) end
  for _, shape in ipairs { { 0, 5, 64 }, { 5, 0, 64 }, { 1, 1, 1 }, { 1, 1, 7 }, { 3, 9, 31 }, { 2, 33, 33 } } do
    for _ = 1, 4 do add(shape[1], shape[2], shape[3]) end
  end
  add(1, 37, 5000, { group = 32 })
  add(2, 9, 20000, { group = 128, scaling = "group", a = "int8" })
  add(3, 5, 0, { scaling = "column" })
  for _, a in ipairs { "int4", "int8", "float16" } do
    for _, scaling in ipairs { "group", "factors" } do add(3, 5, 0, { a = a, scaling = scaling, group = 32 }) end
  end
  generated = list
  return list
end

--- `count` random cases up to these limits.
function kinds.sweep(count, seed, limits)
  local r, list = cases.random(seed), {}
  for i = 1, count do
    list[i] = kinds.draw(r, r:range(1, limits.M), r:range(1, limits.N), r:range(1, limits.K), limits.set)
  end
  return list
end

-- ---- operands ----

--- Sets the elements of a guarded matrix by a function of the generator that gives numbers.
local function fill(r, matrix, each)
  local t = matrix.view
  for i = 1, t.shape[1] do
    for j = 1, t.shape[2] do t:set(i, j, each(r)) end
  end
  return matrix
end

--- Values of floats of A that do not overflow in a product: a few binades, zeros, now and then some that cancel.
local function float_value(r)
  if r:chance(0.05) then return 0 end
  return r:range(-2 ^ 10, 2 ^ 10) * 2 ^ r:range(-12, -9)
end

--- One of the scales, as a number that the dtype holds; NaN and infinities too.
local function scale_value(case)
  return function(r)
    local x = helper.bits_float(cases.SCALES[case.scale_b](r))
    local largest = case.scale_dtype == "float16" and 65504 or 2 ^ 127
    return math.abs(x) > largest and math.abs(x) < math.huge and largest or x
  end
end

--- A matrix [G, columns], or [columns, G], inside a larger one.
local function by_group(r, case, dtype, columns, each)
  local rows = case.groups
  if case.ng then rows, columns = columns, rows end
  local m = cases.guarded(r, dtype, rows, columns, case.guard_s)
  return each and fill(r, m, each) or m
end

--- Operands on the CPU: guarded `a`, `b`, `out`; `scale_a` (nil for floats), `scale_b`, `zeros`, `factors`, `bias`.
-- on(device) of each gives what surrounds it and itself on a device.
function kinds.build(case)
  local r, words = cases.random(case.seed), math.ceil(case.K / 8)
  local built = {}
  if case.a == "int4" then
    built.a = cases.guarded(r, "int32", case.M, words, case.guard_a)
  else
    built.a = cases.guarded(r, case.a, case.M, case.K, case.guard_a)
    if IS_FLOAT[case.a] then fill(r, built.a, float_value) end
  end
  local nk = case.layout_b == "nk"
  built.b = cases.guarded(r, "int32", nk and case.N or words, nk and words or case.N, case.guard_b)
  local function fixed(t)
    return { view = t, on = function(place) return nil, place == "cpu" and t or t:to(place) end }
  end
  built.scale_a = not IS_FLOAT[case.a] and fixed(cases.vector(r, case.M, case.scale_a)) or nil
  built.scale_b = case.scaling == "group" and by_group(r, case, case.scale_dtype, case.N, scale_value(case))
    or fixed(cases.vector(r, case.N, case.scale_b))
  if case.scaling == "factors" then
    built.factors = by_group(r, case, "int8", case.N, function(random) return random:range(1, 15) end)
  end
  local function zero(random) return random:chance(0.3) and random:range(-120, 119) or random:range(-8, 8) end
  if case.zeros then
    local int8 = case.zeros == "int8"
    local columns = int8 and case.N or math.ceil(case.N / 8)
    if case.scaling == "group" then
      built.zeros = by_group(r, case, int8 and "int8" or "int32", columns, int8 and zero or nil)
    else
      local t = q.empty { columns, dtype = int8 and "int8" or "int32" }
      for i = 1, columns do t:set(i, int8 and zero(r) or r:word()) end
      built.zeros = fixed(t)
    end
  end
  built.bias = case.bias and fixed(cases.vector(r, case.N, IS_FLOAT[case.a] and "plain" or case.scale_b)) or nil
  built.out = cases.guarded(r, case.out_dtype, case.M, case.N, case.guard_out)
  return built
end

--- The arguments of int4_matmul on a device: a, b, scale_a, scale_b and the options, without `out`.
function kinds.arguments(case, built, place)
  local function on(key)
    if not built[key] then return nil end
    local _, view = built[key].on(place or "cpu")
    return view
  end
  local opts = {
    encoding_b = case.encoding_b, layout_b = case.layout_b, zeros = on "zeros", factors = on "factors",
    bias = on "bias", group_size = case.scaling ~= "column" and case.give and case.group or nil,
    out_dtype = case.out_dtype,
  }
  if case.a == "int4" then opts.encoding_a = case.encoding_a end
  return on "a", on "b", on "scale_a", on "scale_b", opts
end

-- ---- checks ----

local known = setmetatable({}, { __mode = "k" })

--- What the oracle gives for a case, worked out once: the bytes, or exact results and bounds.
function kinds.expected(case, built)
  if known[case] then return known[case] end
  local a, b, scale_a, scale_b, opts = kinds.arguments(case, built)
  if IS_FLOAT[case.a] then
    local exact, bound = q.int4_matmul_bound(a, b, scale_b, opts)
    known[case] = { exact = exact, bound = bound }
  else
    known[case] = { bytes = helper.bytes(q.int4_matmul_reference(a, b, scale_a, scale_b, opts)) }
  end
  return known[case]
end

--- Holds every output to its bound.
function kinds.check_bound(expected, out, title)
  for m, row in ipairs(out:totable()) do
    for n, y in ipairs(row) do
      local exact, bound = expected.exact[m][n], expected.bound[m][n]
      local near = math.abs(y - exact) <= bound -- NaN is not
      if not near then
        error(("%s: output (%d, %d) is %.9g, which is %.3g from %.9g, %.3g times the bound"):format(title, m, n, y,
          math.abs(y - exact), exact, math.abs(y - exact) / bound))
      end
    end
  end
end

--- Calls `multiply` with a poisoned out of `built` on a device, given in `opts` with `more`, and compares all of it
-- with what is expected, and what lies around it. Returns out's bytes.
function kinds.check_out(case, built, expected, place, opts, more, multiply)
  local whole, out = built.out.on(place)
  local before = helper.bytes(whole)
  for key, value in pairs(more or {}) do opts[key] = value end
  opts.out, opts.out_dtype = out, nil
  multiply()
  if expected.bytes then
    assert.same_bits(expected.bytes, out, case.name)
  else
    kinds.check_bound(expected, out, case.name)
  end
  if case.guard_out > 0 then cases.check_guards(case, before, helper.bytes(whole)) end
  return helper.bytes(out)
end

--- Runs `multiply` on a device and compares; `more` are further options. Returns out's bytes.
function kinds.check(case, multiply, more, place)
  place = place or "cpu"
  local built = kinds.build(case)
  local expected = kinds.expected(case, built)
  local a, b, scale_a, scale_b, opts = kinds.arguments(case, built, place)
  return kinds.check_out(case, built, expected, place, opts, more,
    function() multiply(a, b, scale_a, scale_b, opts, case) end)
end

kinds.IS_FLOAT = IS_FLOAT

return kinds
