--- The generator of grouped products: cases of spec/kinds.lua with experts, as that file has them for one weight.

local assert = require "luassert"

local cases = require "spec.cases"
local helper = require "spec.helper"
local kinds = require "spec.kinds"
local q = require "int4mm"

local experts = {}

--- How rows are shared out among E experts: offsets, and how many rows there are in all; `most` rows of one.
local SHARES = {
  even = function(_, E)
    local begins = {}
    for e = 0, E do begins[e + 1] = 5 * e end
    return begins, 5 * E
  end,
  ragged = function(r, E, most) -- some have none, and rows before and after belong to nobody
    local begins = { r:range(0, 3) }
    for e = 1, E do begins[e + 1] = begins[e] + (r:chance(0.4) and 0 or r:range(1, most)) end
    return begins, begins[E + 1] + r:range(0, 3)
  end,
  one = function(r, E) -- one expert has all
    local begins, own = {}, r:range(1, E)
    for e = 0, E do begins[e + 1] = e < own and 0 or 37 end
    return begins, 37
  end,
  none = function(_, E)
    local begins = {}
    for e = 0, E do begins[e + 1] = 0 end
    return begins, 0
  end,
  outside = function(_, E) -- rows, but nobody's
    local begins = {}
    for e = 0, E do begins[e + 1] = 4 end
    return begins, 9
  end,
}

--- A case of spec/kinds.lua for each expert, with E and the shares; `set` overrides. Of ragged shares an expert has up
-- to `most` rows, else 23.
function experts.draw(r, E, share, N, K, set, most)
  local begins, T = SHARES[share](r, E, most or 23)
  local case = kinds.draw(r, T, N, K, set)
  case.E, case.begins, case.ng = E, begins, false
  -- float32 in E rows would be taken as a scale for each column
  if case.scaling == "group" and case.groups == 1 then case.give = true end
  case.name = ("E=%d %s: %s"):format(E, share, case.name)
  return case
end

--- The operands of all experts: those of spec/kinds.lua for each, copied one below the other into guarded matrices.
function experts.build(case)
  local r, E, nk = cases.random(case.seed), case.E, case.layout_b == "nk"
  local words, single = math.ceil(case.K / 8), {}
  for key, value in pairs(case) do single[key] = value end
  local built = kinds.build(case) -- A, scale_a and out are of all rows
  for _, key in ipairs { "b", "scale_b", "zeros", "factors", "bias" } do
    if built[key] then
      local parts = {}
      single.M = 0
      for e = 1, E do
        single.seed = case.seed + e
        local t = kinds.build(single)[key].view
        parts[e] = t:dim() == 2 and t or t:view(1, t:size(1))
      end
      local rows, columns = parts[1]:size(1), parts[1]:size(2)
      local stacked = cases.guarded(r, parts[1].dtype, E * rows, columns, key == "b" and case.guard_b or case.guard_s)
      for e = 1, E do stacked.view:narrow(1, (e - 1) * rows + 1, rows):copy_(parts[e]) end
      built[key] = stacked
    end
  end
  assert(built.b.view:size(1) == E * (nk and case.N or words))
  return built
end

--- Arguments on a device, and the options without `out`.
function experts.arguments(case, built, place)
  local a, b, scale_a, scale_b, opts = kinds.arguments(case, built, place)
  local offsets = q.tensor(case.begins, { dtype = "int32" })
  return a, b, scale_a, scale_b, place == "cpu" and offsets or offsets:to(place), opts
end

--- Part e of a matrix of E parts; with `vector`, its row.
function experts.part(t, e, E, vector)
  if not t then return nil end
  local rows = t:size(1) / E
  local own = t:narrow(1, (e - 1) * rows + 1, rows)
  return vector and own:view(own:size(2)) or own
end

--- Calls f(first, rows, a, b, scale_a, scale_b, opts) with the operands of each expert's own product.
local function each_expert(case, built, f)
  local a, b, scale_a, scale_b, _, opts = experts.arguments(case, built, "cpu")
  local column = case.scaling ~= "group"
  for e = 1, case.E do
    local first, rows = case.begins[e] + 1, case.begins[e + 1] - case.begins[e]
    local own = {}
    for key, value in pairs(opts) do own[key] = value end
    own.zeros, own.factors = experts.part(opts.zeros, e, case.E, column), experts.part(opts.factors, e, case.E)
    own.bias = experts.part(opts.bias, e, case.E, true)
    f(first, rows, a:narrow(1, first, rows), experts.part(b, e, case.E), scale_a and scale_a:narrow(1, first, rows),
      experts.part(scale_b, e, case.E, column), own)
  end
end

--- The bytes of the whole result; of floats exact results and bounds by row.
function experts.work_out(case, built)
  local is_float = kinds.IS_FLOAT[case.a]
  local whole = q.zeros { case.M, case.N, dtype = case.out_dtype }
  local expected = is_float and { exact = {}, bound = {} } or {}
  for m = 1, is_float and case.M or 0 do
    expected.exact[m], expected.bound[m] = {}, {}
    for n = 1, case.N do expected.exact[m][n], expected.bound[m][n] = 0, 0 end
  end
  each_expert(case, built, function(first, rows, a, b, scale_a, scale_b, opts)
    if not is_float then
      whole:narrow(1, first, rows):copy_(q.int4_matmul_reference(a, b, scale_a, scale_b, opts))
      return
    end
    local exact, bound = q.int4_matmul_bound(a, b, scale_b, opts)
    for m = 1, rows do expected.exact[first + m - 1], expected.bound[first + m - 1] = exact[m], bound[m] end
  end)
  if not is_float then expected.bytes = helper.bytes(whole) end
  return expected
end

local known = setmetatable({}, { __mode = "k" })

local function expect(case, built)
  known[case] = known[case] or experts.work_out(case, built)
  return known[case]
end

--- Runs `multiply` on a device and compares.
function experts.check(case, multiply, place, more)
  local built = experts.build(case)
  local a, b, scale_a, scale_b, offsets, opts = experts.arguments(case, built, place)
  kinds.check_out(case, built, expect(case, built), place, opts, more,
    function() multiply(a, b, scale_a, scale_b, offsets, opts) end)
end

return experts
