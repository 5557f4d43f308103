--- The oracle's rotating, quantising and dequantising, straight from their definitions.
-- Written a second time, plainly, so that a mistake has to be made twice to stay unseen. A matrix is taken as its lines
-- along a dimension, tables of numbers; a line that is not divided is one group.
-- @module int4mm.internal.quantizing

local ffi = require "ffi"
local bit = require "bit"
local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"
local numeric = require "int4mm.internal.numeric"
local ops = require "int4mm.ops"
local product = require "int4mm.internal.product"
local tensor = require "int4mm.tensor"

local band, bor, lshift, rshift = bit.band, bit.bor, bit.lshift, bit.rshift
local to_float, round_half_even = numeric.to_float, numeric.round_half_even

local quantizing = {}

-- ---- lines ----

--- A matrix on the CPU as its lines along dim (0: columns, 1: rows), each a table of numbers from 1.
function quantizing.lines_of(t, dim)
  local dtype = enums.dtypes[t.dtype]
  local data = ffi.cast(dtype.pointer, t:data())
  local rows, columns, stride, lines = t:size(1), t:size(2), t.stride, {}
  for l = 1, dim == 0 and columns or rows do lines[l] = {} end
  for r = 1, rows do
    for c = 1, columns do
      local x = dtype.decode(data[(r - 1) * stride + c - 1])
      if dim == 0 then lines[c][r] = x else lines[r][c] = x end
    end
  end
  return lines
end

--- Calls write(row, column, value) for each element of lines, with the places counted from 0.
function quantizing.each_element(lines, dim, write)
  for l, line in ipairs(lines) do
    for k, x in ipairs(line) do
      if dim == 0 then write(k - 1, l - 1, x) else write(l - 1, k - 1, x) end
    end
  end
end

-- ---- rotation ----

-- One stage of four points over a line.
local function four_points(x, stride)
  for base = 1, #x, 4 * stride do
    for i = base, base + stride - 1 do
      local x0, x1, x2, x3 = x[i], x[i + stride], x[i + 2 * stride], x[i + 3 * stride]
      local s = to_float(to_float(x0 + x1) + to_float(x2 + x3))
      x[i], x[i + stride] = to_float(s - to_float(x3 + x3)), to_float(s - to_float(x2 + x2))
      x[i + 2 * stride], x[i + 3 * stride] = to_float(s - to_float(x1 + x1)), to_float(s - to_float(x0 + x0))
    end
  end
end

local function two_points(x, stride)
  for base = 1, #x, 2 * stride do
    for i = base, base + stride - 1 do
      x[i], x[i + stride] = to_float(x[i] + x[i + stride]), to_float(x[i] - x[i + stride])
    end
  end
end

--- Rotates a line in place.
function quantizing.rotate_line(x, block)
  local stride = 1
  while 4 * stride <= block do
    four_points(x, stride)
    stride = 4 * stride
  end
  if stride < block then two_points(x, stride) end
  local factor = to_float(1 / math.sqrt(block))
  for i = 1, #x do x[i] = to_float(x[i] * factor) end
end

-- ---- steps: { scale =, zero =, low =, high = }, where q is from low to high and its value (q - zero) * scale ----

local function round_signed(x) return x < 0 and -round_half_even(-x) or round_half_even(x) end

local function clamp(x, low, high) return math.min(math.max(x, low), high) end

local function is_step(scale) return scale > 0 and scale < math.huge end

-- q of one value, 0 where the scale is 0 or infinite.
local function quantum(x, step)
  if not is_step(step.scale) then return 0 end
  return clamp(round_signed(to_float(x / step.scale)) + step.zero, step.low, step.high)
end

-- Infinite for an infinite scale, so that a smaller one is better.
local function squared_error(x, step)
  if step.scale == math.huge then return math.huge end
  local sums, sum = {}, 0
  for i = 0, 31 do sums[i] = 0 end
  for k = 0, #x - 1 do
    local e = x[k + 1] - (quantum(x[k + 1], step) - step.zero) * step.scale
    sums[k % 32] = sums[k % 32] + e * e
  end
  for i = 0, 31 do sum = sum + sums[i] end
  return sum
end

local function symmetric_step(absmax, clip, most)
  return { scale = to_float(to_float(absmax * clip) / most), zero = 0, low = -most, high = most }
end

-- With a zero point; of values whose range with 0 is low .. high.
local function affine_step(low, high, clip)
  low, high = to_float(low * clip), to_float(high * clip)
  local step = { scale = to_float(to_float(high - low) / 15), zero = 0, low = -8, high = 7 }
  if is_step(step.scale) then step.zero = clamp(-8 - round_signed(to_float(low / step.scale)), -8, 7) end
  return step
end

-- The step of a group of values, whose rotation may have overflowed.
local function step_of_group(x, known, most)
  local low, high, absmax = 0, 0, 0
  for _, v in ipairs(x) do
    if v - v ~= 0 then return { scale = math.huge, zero = 0, low = -most, high = most } end
    low, high, absmax = math.min(low, v), math.max(high, v), math.max(absmax, math.abs(v))
  end
  local function step_at(clip)
    return known.zeros and affine_step(low, high, clip) or symmetric_step(absmax, clip, most)
  end
  if known.clip_mse == 0 then return step_at(known.clip == 0 and 1 or known.clip) end
  local best, least
  for i = 64, 32, -1 do
    local step = step_at(i / 64)
    local err = squared_error(x, step)
    if not best or err < least then best, least = step, err end
  end
  return best
end

-- The steps of a line's groups, an array of arrays of values; with factors, these and their scale as well.
local function steps_of_line(groups, known, most)
  local steps, largest = {}, 0
  for g, x in ipairs(groups) do
    steps[g] = step_of_group(x, known, most)
    largest = math.max(largest, steps[g].scale)
  end
  if not known.factors then return steps end
  local unit, factors = to_float(largest / 15), {}
  for g, step in ipairs(steps) do
    factors[g] = is_step(unit) and clamp(round_signed(to_float(step.scale / unit)), 1, 15) or 1
    steps[g] = { scale = to_float(factors[g] * unit), zero = 0, low = -8, high = 7 }
  end
  return steps, factors, unit
end

-- ---- quantising ----

-- A line cut into groups of known.group values; 0: one group.
local function cut(x, known)
  if known.group == 0 then return { x } end
  local groups = {}
  for k, v in ipairs(x) do
    local g = math.ceil(k / known.group)
    groups[g] = groups[g] or {}
    groups[g][#groups[g] + 1] = v
  end
  return groups
end

-- A new tensor beside those of src, and the function that writes its element of a line and a group.
local function beside(name, src, known, dtype, group)
  local info = enums.dtypes[dtype]
  local rank, rows, columns = ops.shape_beside(src:size(1), src:size(2), known.dim, group)
  local t = tensor.alloc(name, rank, rows, columns, info, enums.CPU)
  local data = ffi.cast(info.pointer, t:data())
  return t, function(l, g, x)
    local at = l - 1
    if rank == 2 then at = known.dim == 0 and (g - 1) * t.stride + l - 1 or (l - 1) * t.stride + g - 1 end
    data[at] = info.encode(x)
  end
end

-- Stores the values of lines in `out`: int8, or packed along dim.
local function store(out, lines, dim, encoding)
  local data, stride = ffi.cast(enums.dtypes[out.dtype].pointer, out:data()), out.stride
  if out.dtype == "int8" then
    quantizing.each_element(lines, dim, function(r, c, q) data[r * stride + c] = q end)
    return
  end
  local zero = encoding == enums.encodings.offset and 8 or 0
  for r = 0, out:size(1) - 1 do
    for c = 0, out:size(2) - 1 do
      local line, first, word = lines[(dim == 0 and c or r) + 1], 8 * (dim == 0 and r or c), 0
      for i = 0, 7 do word = bor(word, lshift(band((line[first + i + 1] or 0) + zero, 15), 4 * i)) end
      data[r * stride + c] = word
    end
  end
end

--- Words or int8, scales, and zero points or factors, of the lines of src along known.dim, which are overwritten.
-- @tparam string name the function that the user called
-- @tparam tensor src on the CPU
-- @tparam table lines
-- @tparam table known from ops.quantize_options
function quantizing.quantize(name, src, lines, known)
  local int8 = known.dtype == enums.dtypes.int8
  local dim, size, most = known.dim, { src:size(1), src:size(2) }, int8 and 127 or 7
  if not int8 then size[dim + 1] = math.ceil(size[dim + 1] / 8) end
  local out = tensor.alloc(name, 2, size[1], size[2], known.dtype, enums.CPU)
  local scales, set_scale = beside(name, src, known, "float32", known.factors and 0 or known.group)
  local other, set_other
  if known.zeros or known.factors then other, set_other = beside(name, src, known, "int8", known.group) end
  for l, x in ipairs(lines) do
    if known.rotate > 0 then quantizing.rotate_line(x, known.rotate) end
    local groups = cut(x, known)
    local steps, factors, unit = steps_of_line(groups, known, most)
    if factors then set_scale(l, 1, unit) end
    local k = 0
    for g, step in ipairs(steps) do
      if not factors then set_scale(l, g, step.scale) end
      if set_other then set_other(l, g, factors and factors[g] or step.zero) end
      for _, v in ipairs(groups[g]) do
        k = k + 1
        x[k] = quantum(v, step)
      end
    end
  end
  store(out, lines, dim, known.encoding)
  tensor.keep(src, out, scales, other)
  return out, scales, other
end

-- ---- dequantising ----

-- The function that reads the element of a line and a group of a tensor beside packed ones, which has to have this
-- shape and one of these dtypes.
local function reader(name, what, t, known, group, dtypes, expected)
  local rank, rows, columns = ops.shape_beside(known.rows, known.columns, known.dim, group)
  if #t.shape ~= rank or t.shape[1] ~= rows or (rank == 2 and t.shape[2] ~= columns) or not dtypes[t.dtype] then
    check.raise(name, "%s is %s, expected [%d%s] %s", what, check.describe(t), rows,
      rank == 2 and (", %d"):format(columns) or "", expected)
  end
  t = tensor.on_cpu(name, t)
  local info = enums.dtypes[t.dtype]
  local data, stride = ffi.cast(info.pointer, t:data()), t.stride
  return function(l, g)
    local at = l
    if rank == 2 then at = known.dim == 0 and g * stride + l or l * stride + g end
    tensor.keep(t)
    return info.decode(data[at])
  end
end

-- The values of packed, q[r][c] counted from 0.
local function unpack(name, packed, known)
  packed = tensor.on_cpu(name, packed)
  local q, data, stride = {}, ffi.cast(enums.dtypes[packed.dtype].pointer, packed:data()), packed.stride
  local value = product.values[enums.encoding_names[known.encoding]]
  for r = 0, known.rows - 1 do
    q[r] = {}
    for c = 0, known.columns - 1 do
      if packed.dtype == "int8" then
        q[r][c] = data[r * stride + c]
      else
        local k = known.dim == 0 and r or c
        local row, column = known.dim == 0 and math.floor(r / 8) or r, known.dim == 0 and c or math.floor(c / 8)
        q[r][c] = value(band(rshift(data[row * stride + column], 4 * (k % 8)), 15))
      end
    end
  end
  tensor.keep(packed)
  return q
end

--- The way back.
-- @tparam string name the function that the user called
-- @tparam tensor packed
-- @tparam tensor scales
-- @tparam table opts `zeros` and `factors`
-- @tparam table known from ops.dequantize_options
function quantizing.dequantize(name, packed, scales, opts, known)
  local by_group = known.group > 0 and not opts.factors
  local scale_of = reader(name, "scales", scales, known, by_group and known.group or 0,
    by_group and enums.float_dtypes or { float32 = true }, by_group and "float32, float16 or bfloat16" or "float32")
  local function whole(key)
    return opts[key] and reader(name, key, opts[key], known, known.group, { int8 = true }, "int8")
  end
  local zero, factor = whole "zeros", whole "factors"
  local q = unpack(name, packed, known)
  local out = tensor.alloc(name, 2, known.rows, known.columns, known.dtype, enums.CPU)
  local data, stride = ffi.cast(known.dtype.pointer, out:data()), out.stride
  for r = 0, known.rows - 1 do
    for c = 0, known.columns - 1 do
      local l, k = c, r
      if known.dim == 1 then l, k = r, c end
      local g = known.group > 0 and math.floor(k / known.group) or 0
      local step = scale_of(l, g)
      if factor then step = to_float(factor(l, g) * step) end
      data[r * stride + c] = known.dtype.encode(to_float((q[r][c] - (zero and zero(l, g) or 0)) * step))
    end
  end
  tensor.keep(out)
  return out
end

return quantizing
