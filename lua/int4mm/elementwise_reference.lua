--- The oracle of @{int4mm.elementwise}: the same functions in plain LuaJIT, straight from their definitions, slow on
-- purpose, and what every backend is compared with, bit for bit.
--
-- They take the same arguments but for `out` and `stream`, which have to be valid: only the C core checks. Results are
-- on the CPU.
-- @module int4mm.elementwise_reference

local ffi = require "ffi"
local activation = require "int4mm.internal.activation"
local enums = require "int4mm.enums"
local numeric = require "int4mm.internal.numeric"
local tensor = require "int4mm.tensor"

local f = numeric.to_float
local reference = {}

-- The rows of a tensor, each a table of numbers from 1; a vector is one row.
local function rows_of(name, t)
  t = tensor.on_cpu(name, t)
  local dtype, stride, rows = enums.dtypes[t.dtype], t.stride, {}
  local data = ffi.cast(dtype.pointer, t:data())
  local matrix = t:dim() == 2
  for r = 1, matrix and t:size(1) or 1 do
    rows[r] = {}
    for c = 1, t:size(matrix and 2 or 1) do rows[r][c] = dtype.decode(data[(r - 1) * stride + c - 1]) end
  end
  tensor.keep(t)
  return rows
end

-- A tensor of such rows, with src's rank and number of columns.
local function from_rows(name, rows, src, dtype)
  local matrix = src:dim() == 2
  local columns = src:size(matrix and 2 or 1)
  local out = tensor.alloc(name, src:dim(), matrix and #rows or columns, matrix and columns or 1, dtype, enums.CPU)
  local data = ffi.cast(dtype.pointer, out:data())
  for r, row in ipairs(rows) do
    for c = 1, columns do data[(r - 1) * columns + c - 1] = dtype.encode(row[c]) end
  end
  tensor.keep(out)
  return out
end

-- Replaces each row of src by what `each` makes of it and its number.
local function by_rows(name, src, opts, each)
  local rows = rows_of(name, src)
  for r, row in ipairs(rows) do rows[r] = each(row, r) end
  return from_rows(name, rows, src, enums.dtypes[opts and opts.out_dtype or src.dtype])
end

-- ---- maps ----

local function unary(name)
  return function(src, opts)
    return by_rows(name, src, opts, function(row)
      for i, x in ipairs(row) do row[i] = activation[name](x) end
      return row
    end)
  end
end

for _, name in ipairs { "exp", "tanh", "erf", "relu", "silu" } do reference[name] = unary(name) end
local gelus = { none = unary "gelu", tanh = unary "gelu_tanh" }

function reference.gelu(src, opts) return gelus[opts and opts.approximate or "none"](src, opts) end

local function binary(name, combine)
  return function(src, other, opts)
    local number = type(other) == "number" and f(other)
    local rows = not number and rows_of(name, other)
    return by_rows(name, src, opts, function(row, r)
      for i, x in ipairs(row) do row[i] = f(combine(x, number or (other:dim() == 1 and rows[1] or rows[r])[i])) end
      return row
    end)
  end
end

reference.add = binary("add", function(x, y) return x + y end)
reference.mul = binary("mul", function(x, y) return x * y end)

-- ---- rows ----

local function sum(row, term)
  local partial, all = {}, 0
  for i = 0, 31 do partial[i] = 0 end
  for i, x in ipairs(row) do partial[(i - 1) % 32] = f(partial[(i - 1) % 32] + term(x)) end
  for i = 0, 31 do all = f(all + partial[i]) end
  return all
end

local function itself(x) return x end

function reference.softmax(src, opts)
  return by_rows("softmax", src, opts, function(row)
    local most = -math.huge
    for _, x in ipairs(row) do if x > most then most = x end end
    for i, x in ipairs(row) do row[i] = activation.exp(f(x - most)) end
    local all = sum(row, itself)
    for i, e in ipairs(row) do row[i] = f(e / all) end
    return row
  end)
end

-- (x - mean) / sqrt(mean of squares + eps), weight and bias where there are any.
local function normalize(row, mean, eps, weight, bias)
  local square = f(sum(row, function(x) return f(f(x - mean) * f(x - mean)) end) / f(#row))
  local factor = f(1 / f(math.sqrt(f(square + f(eps)))))
  for i, x in ipairs(row) do
    local y = f(f(x - mean) * factor)
    if weight then y = f(y * weight[i]) end
    row[i] = bias and f(y + bias[i]) or y
  end
  return row
end

function reference.layer_norm(src, weight, bias, opts)
  local name, eps = "layer_norm", opts and opts.eps or 1e-5
  weight, bias = weight and rows_of(name, weight)[1], bias and rows_of(name, bias)[1]
  return by_rows(name, src, opts, function(row)
    return normalize(row, f(sum(row, itself) / f(#row)), eps, weight, bias)
  end)
end

function reference.rms_norm(src, weight, opts)
  local name, eps = "rms_norm", opts and opts.eps or 2 ^ -23
  weight = weight and rows_of(name, weight)[1]
  return by_rows(name, src, opts, function(row) return normalize(row, 0, eps, weight) end)
end

function reference.argmax(src)
  local rows = rows_of("argmax", src)
  local out = tensor.alloc("argmax", 1, #rows, 1, enums.dtypes.int32, enums.CPU)
  for r, row in ipairs(rows) do
    local best = 1
    for i = 2, #row do
      local x, y = row[i], row[best]
      if y == y and (x ~= x or x > y) then best = i end
    end
    out:set(r, best - 1)
  end
  return out
end

return reference
