--- Numbers about all elements of a tensor, and comparison with a tolerance.
--
-- They are Lua numbers, made on the CPU, where a GPU's elements are copied to. Everything is computed in float64 in one
-- fixed order, from the first element to the last, row by row, so the bits are the same on every machine.
-- @module int4mm.reduce

local ffi = require "ffi"
local check = require "int4mm.internal.check"
local tensor = require "int4mm.tensor"

local methods, check_rows, info_of = tensor.methods, tensor.check_rows, tensor.info_of

local function rows_of(t) return tonumber(t.c.shape[0]) end
local function columns_of(t) return tonumber(t.c.shape[1]) end

--- Methods of tensors
-- @section methods

-- What a tensor's elements are read by: a pointer, the function from bits to a number, rows, columns, stride.
local function elements(t)
  local info = info_of(t)
  return ffi.cast(info.pointer, t.c.data), info.decode, rows_of(t), columns_of(t), tonumber(t.c.stride)
end

-- step(so far, element) over all elements.
local function fold(name, t, start, step)
  local here = tensor.on_cpu(name, check_rows(name, t))
  local data, decode, rows, columns, stride = elements(here)
  local result = start
  for i = 0, rows - 1 do
    for j = i * stride, i * stride + columns - 1 do result = step(result, decode(data[j])) end
  end
  tensor.keep(here)
  return result
end

local function check_some(name, t)
  if rows_of(check_rows(name, t)) * columns_of(t) == 0 then
    check.raise(name, "the tensor has no elements, expected one or more")
  end
end

local function add(sum, x) return sum + x end

--- The sum of all elements, in float64, added from the first to the last; 0 where there are none.
-- @treturn number
function methods:sum() return fold("sum", self, 0, add) end

--- The sum of all elements over their number; NaN where there are none.
-- @treturn number
function methods:mean() return fold("mean", self, 0, add) / (rows_of(self) * columns_of(self)) end

-- A NaN stays, whatever it is compared with.
local function larger(most, x) return (x > most or x ~= x) and x or most end
local function smaller(least, x) return (x < least or x ~= x) and x or least end
local function larger_magnitude(most, x) return larger(most, math.abs(x)) end

--- The largest element; NaN where one is NaN.
-- @treturn number
-- @raise for a tensor without elements
function methods:max()
  check_some("max", self)
  return fold("max", self, -math.huge, larger)
end

--- The smallest element; NaN where one is NaN.
-- @treturn number
-- @raise for a tensor without elements
function methods:min()
  check_some("min", self)
  return fold("min", self, math.huge, smaller)
end

--- The largest magnitude of an element; NaN where one is NaN.
-- @treturn number
-- @raise for a tensor without elements
function methods:abs_max()
  check_some("abs_max", self)
  return fold("abs_max", self, 0, larger_magnitude)
end

-- ---- comparing ----

-- Whether two numbers are close; equal infinities are, and an infinity is to nothing else.
local function is_close(x, y, rtol, atol, equal_nan)
  if x == y then return true end
  if x ~= x or y ~= y then return equal_nan and x ~= x and y ~= y end
  if math.abs(x) == math.huge or math.abs(y) == math.huge then return false end
  return math.abs(x - y) <= atol + rtol * math.abs(y)
end

local function tolerance(name, key, value, default)
  value = check.default(value, default)
  if type(value) ~= "number" or not (value >= 0 and value < math.huge) then
    check.raise(name, "%s is %s, expected a finite number, 0 or more", key, check.describe(value))
  end
  return value
end

-- How many elements of two tensors on the CPU are not close, and the first of those: row, column, x, y.
local function compare(x, y, rtol, atol, equal_nan)
  local p, decode_x, rows, columns, stride_x = elements(x)
  local q, decode_y, _, _, stride_y = elements(y)
  local apart, row, column, first_x, first_y = 0, nil, nil, nil, nil
  for i = 0, rows - 1 do
    for j = 0, columns - 1 do
      local a, b = decode_x(p[i * stride_x + j]), decode_y(q[i * stride_y + j])
      if not is_close(a, b, rtol, atol, equal_nan) then
        apart = apart + 1
        if apart == 1 then row, column, first_x, first_y = i + 1, j + 1, a, b end
      end
    end
  end
  tensor.keep(x, y)
  return apart, row, column, first_x, first_y
end

--- Whether each element is close to that of another tensor: |x - y| <= atol + rtol |y|, or both the same infinity.
-- Dtypes and devices may differ.
-- @tparam tensor other
-- @tparam[opt] table opts `rtol` (1e-5), `atol` (1e-8), `equal_nan` (false: a NaN is close to nothing)
-- @treturn boolean
-- @treturn ?string where they are not: how the shapes differ, or how many elements do, with the first
-- @raise for tolerances that are not finite numbers, 0 or more
function methods:allclose(other, opts)
  local name = "allclose"
  check_rows(name, self)
  check_rows(name, other, "the other tensor")
  opts = check.options(name, opts, { "rtol", "atol", "equal_nan" })
  local rtol, atol = tolerance(name, "rtol", opts.rtol, 1e-5), tolerance(name, "atol", opts.atol, 1e-8)
  local equal_nan = check.boolean(name, "equal_nan", opts.equal_nan, false)
  if self.c.rank ~= other.c.rank or self.c.shape[0] ~= other.c.shape[0] or self.c.shape[1] ~= other.c.shape[1] then
    return false, ("the shapes are %s and %s"):format(tensor.shape_text(self), tensor.shape_text(other))
  end
  local x, y = tensor.on_cpu(name, self), tensor.on_cpu(name, other)
  local apart, row, column, a, b = compare(x, y, rtol, atol, equal_nan)
  if apart == 0 then return true end
  local position = self.c.rank == 2 and ("row %d, column %d"):format(row, column) or ("index %d"):format(row)
  return false, ("%.0f of %.0f elements are not close, the first at %s: %.9g and %.9g"):format(apart, self:numel(),
    position, a, b)
end

return {}
