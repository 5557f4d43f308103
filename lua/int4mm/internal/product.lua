--- The oracle's product of operands on the CPU, straight from its definition.
-- Nibbles, groups, sums, scales and roundings are written a second time, plainly, so that a mistake has to be made
-- twice to stay unseen. Sums of products of int4 and int8 are whole numbers below 2^53, which doubles hold exactly.
-- @module int4mm.internal.product

local ffi = require "ffi"
local bit = require "bit"
local enums = require "int4mm.enums"
local numeric = require "int4mm.internal.numeric"
local tensor = require "int4mm.tensor"

local band, rshift = bit.band, bit.rshift
local to_float, fma = numeric.to_float, numeric.fma

local product = {}

-- The value of a nibble, by encoding: two's complement, or value + 8.
local values = {
  twos_complement = function(nibble) return nibble < 8 and nibble or nibble - 16 end,
  offset = function(nibble) return nibble - 8 end,
}
product.values = values

-- ---- operands ----

-- Decodes packed words into int16 [vectors][8 * k8]: `along` words lead from one word of a vector to its next, `across`
-- from one vector to the next.
local function decode(words, vectors, k8, along, across, encoding)
  local value = values[encoding]
  local K = 8 * k8
  local plain = ffi.new("int16_t[?]", vectors * K)
  for v = 0, vectors - 1 do
    for j = 0, k8 - 1 do
      local word = words[v * across + j * along]
      for i = 0, 7 do plain[v * K + 8 * j + i] = value(band(rshift(word, 4 * i), 15)) end
    end
  end
  return plain
end

-- The elements of a tensor as Lua numbers by row and column, both counted from 0; a vector is one row.
local function grid(t)
  local dtype = enums.dtypes[t.dtype]
  local data, stride, rows = ffi.cast(dtype.pointer, t:data()), t.stride, {}
  local matrix = t:dim() == 2
  for r = 0, matrix and t:size(1) - 1 or 0 do
    local row = {}
    for c = 0, t:size(matrix and 2 or 1) - 1 do row[c] = dtype.decode(data[r * stride + c]) end
    rows[r] = row
  end
  tensor.keep(t)
  return rows
end

local function transposed(rows, columns)
  local turned = {}
  for c = 0, columns - 1 do
    turned[c] = {}
    for r, row in pairs(rows) do turned[c][r] = row[c] end
  end
  return turned
end

-- A matrix for groups by group and column, which for a weight [N, K/8] may lie the other way round; where its shape
-- does not tell, its mark does.
local function by_group(t, groups, columns)
  local rows = grid(t)
  local turned = t:dim() == 2 and not (t:size(1) == groups and t:size(2) == columns and t.c.packing ~= 1)
  return turned and transposed(rows, groups) or rows
end

-- Zero points by group and column, of int8 or out of words packed along N.
local function zero_points(t, groups, N, encoding)
  if t.dtype ~= "int32" then return by_group(t, groups, N) end
  if tensor.is_marked(t) then encoding = enums.encoding_names[t.c.encoding] end
  local words, zeros = by_group(t, groups, math.ceil(N / 8)), {}
  for g, row in pairs(words) do
    zeros[g] = {}
    for n = 0, N - 1 do
      zeros[g][n] = values[encoding](band(rshift(row[math.floor(n / 8)], 4 * (n % 8)), 15))
    end
  end
  return zeros
end

-- a [M][K] as numbers of A, whatever it is.
local function values_of_a(t, encoding)
  local M, K = t:size(1), t:size(2)
  if t.dtype == "int32" then return decode(t:data(), M, K, 1, t.stride, encoding), 8 * K end
  local dtype = enums.dtypes[t.dtype]
  local plain, data, stride = ffi.new("double[?]", M * K), ffi.cast(dtype.pointer, t:data()), t.stride
  for m = 0, M - 1 do
    for k = 0, K - 1 do plain[m * K + k] = dtype.decode(data[m * stride + k]) end
  end
  return plain, K
end

-- b [N][pitch]: what the sums take, which is b - z or b * f.
local function values_of_b(t, call, K)
  local N, words, nk, ld = call.N, math.ceil(K / 8), call.layout_b == "nk", t.stride
  local b = decode(t:data(), N, words, nk and 1 or ld, nk and ld or 1, call.encoding_b)
  local zeros = call.zeros and zero_points(call.zeros, call.groups, N, call.encoding_b)
  local factors = call.factors and by_group(call.factors, call.groups, N)
  if zeros or factors then
    for n = 0, N - 1 do
      for k = 0, 8 * words - 1 do
        local g, at = math.min(math.floor(k / call.group), call.groups - 1), n * 8 * words + k
        b[at] = zeros and b[at] - zeros[g][n] or b[at] * factors[g][n]
      end
    end
  end
  return b, 8 * words
end

--- What is multiplied, in plain numbers. All tensors are on the CPU and known to fit each other.
-- @tparam table call `a`, `b`, `scale_a` (nil for floats), `scale_b`, `bias`, `zeros`, `factors`, `group_size`,
--   `encoding_a`, `encoding_b`, `layout_b`; N is not 0
function product.operands(call)
  local a, b, scale_b = call.a, call.b, call.scale_b
  local is_float = enums.float_dtypes[a.dtype] ~= nil
  local o = { M = a:size(1), N = b:size(call.layout_b == "nk" and 1 or 2), is_float = is_float }
  o.a, o.K = values_of_a(a, call.encoding_a)
  local per_group = scale_b:dim() == 2 and scale_b or call.factors
  o.groups, o.group = 1, math.max(o.K, 1)
  if per_group then -- one side of the matrix is N
    o.groups = per_group:numel() / o.N
    o.group = call.group_size or math.max(o.K / o.groups, 1)
  end
  o.b, o.pitch = values_of_b(b, {
    N = o.N, layout_b = call.layout_b, encoding_b = call.encoding_b, zeros = call.zeros, factors = call.factors,
    groups = o.groups, group = o.group,
  }, o.K)
  o.scale_a = call.scale_a and grid(call.scale_a)[0]
  o.has_group_scales = scale_b:dim() == 2
  o.scale_b = by_group(scale_b, o.has_group_scales and o.groups or 1, o.N)
  o.bias = call.bias and grid(call.bias)[0]
  return o
end

-- ---- sums ----

local function dot(a, b, first, last)
  local acc = 0
  for k = first, last do acc = acc + a[k] * b[k] end
  return acc
end

local function dot_of_magnitudes(a, b, first, last)
  local acc = 0
  for k = first, last do acc = acc + math.abs(a[k] * b[k]) end
  return acc
end

-- The first and last value of K in group g, counted from 0.
local function range(o, g)
  if not o.has_group_scales then return 0, o.K - 1 end
  return g * o.group, (g < o.groups - 1 and (g + 1) * o.group or o.K) - 1
end

-- y[m, n] of the header, every step rounded to float32. A double holds the product of two float32 exactly, and their
-- sum with more than twice the digits, so that rounding it is rounding once.
local function exact_result(o, m, n)
  local a, b, t = o.a + m * o.K, o.b + n * o.pitch, 0
  if not o.has_group_scales then
    return to_float(to_float(to_float(dot(a, b, 0, o.K - 1)) * o.scale_a[m]) * o.scale_b[0][n])
  end
  for g = 0, o.groups - 1 do t = fma(to_float(dot(a, b, range(o, g))), o.scale_b[g][n], t) end
  return to_float(t * o.scale_a[m])
end

-- The sum of a * w in float64, and that of the magnitudes: W4A16, and what its bound needs.
local function float_sums(o, m, n)
  local a, b, exact, magnitude = o.a + m * o.K, o.b + n * o.pitch, 0, 0
  for g = 0, o.has_group_scales and o.groups - 1 or 0 do
    local scale = o.scale_b[g][n]
    exact = exact + dot(a, b, range(o, g)) * scale
    magnitude = magnitude + dot_of_magnitudes(a, b, range(o, g)) * math.abs(scale)
  end
  return exact, magnitude
end

--- One output before its activation, rounded to float32; of an A of floats from a sum in float64.
-- @tparam table o from @{operands}
-- @tparam number m counted from 0
-- @tparam number n counted from 0
function product.result(o, m, n)
  local x = o.is_float and to_float((float_sums(o, m, n))) or exact_result(o, m, n)
  return o.bias and to_float(x + o.bias[n]) or x
end

--- One output of an A of floats in float64, and the sum of the magnitudes of all terms, the bias being one.
function product.float_result(o, m, n)
  local exact, magnitude = float_sums(o, m, n)
  local bias = o.bias and o.bias[n] or 0
  return exact + bias, magnitude + math.abs(bias)
end

--- Fills `out` [M, N]; finish(x, m, n), if there is one, is what follows the bias, with the places counted from 0.
function product.multiply(out, call, finish)
  if out:numel() == 0 then return end
  local o = product.operands(call)
  local dtype = enums.dtypes[out.dtype]
  local data, stride = ffi.cast(dtype.pointer, out:data()), out.stride
  for m = 0, o.M - 1 do
    for n = 0, o.N - 1 do
      local x = product.result(o, m, n)
      data[m * stride + n] = dtype.encode(finish and finish(x, m, n) or x)
    end
  end
  tensor.keep(out, call)
end

return product
