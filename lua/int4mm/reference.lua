--- The oracle: the product, rotating, quantising and layers in plain LuaJIT, straight from their definitions.
--
-- No function of the C core computes here (one checks the arguments of the product): nibbles, sums, scales and
-- roundings are written a second time, plainly, so that a mistake has to be made twice to stay unseen. A sum of
-- products of whole numbers is one far below 2^53, so Lua's doubles hold it exactly; a sum, product or quotient of two
-- float32 in double precision, rounded to float32, is the one rounded once.
-- @module int4mm.reference

local ffi = require "ffi"
local bit = require "bit"
local activation = require "int4mm.internal.activation"
local enums = require "int4mm.enums"
local check = require "int4mm.internal.check"
local numeric = require "int4mm.internal.numeric"
local linear = require "int4mm.linear"
local ops = require "int4mm.ops"
local options = require "int4mm.internal.options"
local product = require "int4mm.internal.product"
local tensor = require "int4mm.tensor"

local band, bor, lshift, rshift = bit.band, bit.bor, bit.lshift, bit.rshift
local to_float, round_half_even = numeric.to_float, numeric.round_half_even

local reference = {}

-- ---- the product ----

local OPTIONS = { "out", "out_dtype", "bias", "encoding_a", "encoding_b", "layout_b", "zeros", "factors", "group_size" }
local BOUND_OPTIONS = { "out_dtype", "bias", "encoding_b", "layout_b", "zeros", "factors", "group_size" }

-- A call as int4mm.internal.product takes it, its tensors on the CPU; how operands are packed is what the options say,
-- or else the marks of the words.
local function call_of(name, a_packed, b_packed, scale_a, scale_b, opts)
  local a, b = a_packed.packing or {}, b_packed.packing or {}
  local call = { a = a_packed, b = b_packed, scale_a = scale_a, scale_b = scale_b, bias = opts.bias,
    zeros = opts.zeros, factors = opts.factors }
  for key, t in pairs(call) do call[key] = tensor.on_cpu(name, t) end
  call.encoding_a = opts.encoding_a or a.encoding or "twos_complement"
  call.encoding_b = opts.encoding_b or b.encoding or "twos_complement"
  call.layout_b = opts.layout_b or (b.dim == 2 and "nk" or "kn")
  call.group_size = opts.group_size
  return call
end

--- The product in plain LuaJIT: slow on purpose, and what every other backend is compared with, bit for bit.
-- Of floats it is a sum in float64, which others are near to: see @{int4_matmul_bound}. GPU operands are copied to the
-- CPU, the result to where `a_packed` is.
-- @tparam tensor a_packed [M, K/8] int32, [M, K] int8, or [M, K] of floats
-- @tparam tensor b_packed [K/8, N] int32, or [N, K/8] with `layout_b = "nk"`; not prepacked
-- @tparam ?tensor scale_a [M] float32; nil for floats
-- @tparam tensor scale_b [N] float32, or group scales [G, N]
-- @tparam[opt] table opts `out`, `out_dtype`, `bias`, `zeros`, `factors`, `group_size`, `encoding_a`, `encoding_b`,
--   `layout_b` as in @{int4mm.ops.int4_matmul}
-- @treturn tensor [M, N]
-- @raise as int4_matmul
function reference.int4_matmul_reference(a_packed, b_packed, scale_a, scale_b, opts)
  local name = "int4_matmul_reference"
  opts = ops.check_matmul(name, a_packed, b_packed, scale_a, scale_b, opts, OPTIONS)
  local call = call_of(name, a_packed, b_packed, scale_a, scale_b, opts)
  local out, here = opts.out, opts.out
  if not out or out.c.device ~= enums.CPU then
    local M, N = a_packed:size(1), b_packed:size(call.layout_b == "nk" and 1 or 2)
    here = tensor.alloc(name, 2, M, N, enums.dtypes[out and out.dtype or opts.out_dtype or "float16"], enums.CPU)
  end
  product.multiply(here, call)
  if out then return out == here and out or tensor.copy(name, out, here) end
  return tensor.convert(name, here, a_packed.c.device, enums.dtypes[here.dtype])
end

-- What rounding to a dtype adds at most, as parts of a value, and where values are subnormal.
local ROUNDING = {
  float16 = { 2 ^ -11, 2 ^ -25 }, bfloat16 = { 2 ^ -8, 2 ^ -134 }, float32 = { 2 ^ -24, 2 ^ -150 },
}

-- Where the rows of each expert begin, from 0, and where the last one's end: E + 1 numbers.
local function beginnings(name, offsets, T)
  local begins = {}
  if type(offsets) == "number" then
    for e = 0, offsets do begins[e + 1] = T / offsets * e end
    return begins
  end
  local last = 0 -- where a GPU's were not checked, as int4_grouped_matmul takes them
  for e, offset in ipairs(tensor.on_cpu(name, offsets):totable()) do
    last = math.min(math.max(last, offset), T)
    begins[e] = last
  end
  return begins
end

-- The part of a matrix that belongs to expert e of E; with `vector`, its one row as a vector.
local function share(name, t, e, E, vector)
  if not t then return nil end
  local rows = t:size(1) / E
  local part = tensor.narrow(name, t, 1, (e - 1) * rows + 1, rows)
  return vector and tensor.view(name, part, 1, t:size(2), 1) or part
end

--- The grouped product in plain LuaJIT, expert by expert: what @{int4mm.ops.int4_grouped_matmul} is compared with.
-- @tparam tensor a_packed [T, K/8] int32, [T, K] int8, or [T, K] of floats
-- @tparam tensor b_packed [E * K/8, N] int32, or [E * N, K/8] with `layout_b = "nk"`
-- @tparam ?tensor scale_a [T] float32; nil for floats
-- @tparam tensor scale_b [E, N] float32, or group scales [E * G, N]
-- @tparam tensor|number offsets [E + 1] int32, or the number of experts
-- @tparam[opt] table opts `out`, `out_dtype`, `bias`, `zeros`, `factors`, `group_size`, `encoding_a`, `encoding_b`,
--   `layout_b` as there
-- @treturn tensor [T, N]
-- @raise as int4_grouped_matmul
function reference.int4_grouped_matmul_reference(a_packed, b_packed, scale_a, scale_b, offsets, opts)
  local name = "int4_grouped_matmul_reference"
  if offsets == nil then offsets = false end -- which is refused
  opts = ops.check_matmul(name, a_packed, b_packed, scale_a, scale_b, opts, OPTIONS, offsets)
  local call = call_of(name, a_packed, b_packed, scale_a, scale_b, opts)
  local T, begins = a_packed:size(1), beginnings(name, offsets, a_packed:size(1))
  local E, nk = #begins - 1, call.layout_b == "nk"
  local N = nk and b_packed:size(1) / E or b_packed:size(2)
  local by_column = scale_b.dtype == "float32" and scale_b:size(1) == E and (not opts.group_size or opts.factors ~= nil)
  local here = tensor.alloc(name, 2, T, N, enums.dtypes[opts.out and opts.out.dtype or opts.out_dtype or "float16"],
    enums.CPU)
  ffi.fill(here:data(), here:numel() * enums.dtypes[here.dtype].bytes)
  for e = 1, E do
    local first, rows = begins[e], begins[e + 1] - begins[e]
    local own = {}
    for key, value in pairs(call) do own[key] = value end
    own.a = tensor.narrow(name, call.a, 1, first + 1, rows)
    own.scale_a = call.scale_a and tensor.narrow(name, call.scale_a, 1, first + 1, rows)
    own.b, own.factors = share(name, call.b, e, E), share(name, call.factors, e, E)
    own.scale_b, own.zeros = share(name, call.scale_b, e, E, by_column), share(name, call.zeros, e, E)
    own.bias = share(name, call.bias, e, E, true)
    product.multiply(tensor.narrow(name, here, 1, first + 1, rows), own)
  end
  if opts.out then return tensor.copy(name, opts.out, here) end
  return tensor.convert(name, here, a_packed.c.device, enums.dtypes[here.dtype])
end

--- How near @{int4mm.ops.int4_matmul} is with an `a` of floats:
-- |out - exact| <= r |exact| + (16 + K/8) 2^-24 (sum over k of |a w|), with r 2^-11 for float16, 2^-8 for bfloat16 and
-- 2^-24 for float32, where nothing overflows. A bias is one more term of both sums, and half of the dtype's least
-- number is added.
-- @tparam tensor a [M, K] float32, float16 or bfloat16
-- @tparam tensor b_packed as in @{int4mm.ops.int4_matmul}, not prepacked; and
-- @tparam tensor scale_b
-- @tparam[opt] table opts `out_dtype`, `bias`, `zeros`, `factors`, `group_size`, `encoding_b`, `layout_b` as there
-- @treturn table the exact results, in float64: a table of rows
-- @treturn table how far the result may be from each
function reference.int4_matmul_bound(a, b_packed, scale_b, opts)
  local name = "int4_matmul_bound"
  opts = ops.check_matmul(name, a, b_packed, nil, scale_b, opts, BOUND_OPTIONS)
  local call = call_of(name, a, b_packed, nil, scale_b, opts)
  local N = b_packed:size(call.layout_b == "nk" and 1 or 2)
  local o = N > 0 and product.operands(call)
  local rounding, exact, bound = ROUNDING[opts.out_dtype or "float16"], {}, {}
  for m = 1, a:size(1) do
    exact[m], bound[m] = {}, {}
    for n = 1, N do
      local value, magnitude = product.float_result(o, m - 1, n - 1)
      exact[m][n] = value
      bound[m][n] = rounding[1] * math.abs(value) + (16 + o.K / 8) * 2 ^ -24 * magnitude + rounding[2]
    end
  end
  return exact, bound
end

-- ---- rotating and quantising ----

-- A matrix on the CPU and its lines along dim (0: columns, 1: rows), each a table of numbers from 1.
local function lines_of(t, dim)
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

-- Calls write(row, column, value) with the places counted from 0.
local function each_element(lines, dim, write)
  for l, line in ipairs(lines) do
    for k, x in ipairs(line) do
      if dim == 0 then write(k - 1, l - 1, x) else write(l - 1, k - 1, x) end
    end
  end
end

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

local function rotate_line(x, block)
  local stride = 1
  while 4 * stride <= block do
    four_points(x, stride)
    stride = 4 * stride
  end
  if stride < block then two_points(x, stride) end
  local factor = to_float(1 / math.sqrt(block))
  for i = 1, #x do x[i] = to_float(x[i] * factor) end
end

local function check_float_matrix(name, src)
  if #src.shape ~= 2 or not enums.float_dtypes[src.dtype] then
    check.raise(name, "src is %s, expected a matrix of float32, float16 or bfloat16", check.describe(src))
  end
end

-- As the C core checks it; 0 stands for no rotation.
local function check_block(name, what, block, src, dim)
  if block == 0 then return end
  local _, exponent = math.frexp(block)
  if block ~= 2 ^ (exponent - 1) then
    check.raise(name, "%s is %d, expected a power of two from 4 to 1024", what, block)
  end
  if src:size(dim + 1) % block ~= 0 then
    check.raise(name, "%s is %d, which does not divide the %d values along dim %d of src", what, block,
      src:size(dim + 1), dim + 1)
  end
end

--- @{int4mm.ops.rotate} in plain LuaJIT: slow on purpose, and what every backend is compared with, bit for bit.
-- @tparam tensor src [R, C] float32, float16 or bfloat16
-- @tparam[opt] table opts `block` and `dim` as there; `out_dtype`, which is src's by default
-- @treturn tensor on the CPU
function reference.rotate_reference(src, opts)
  local name = "rotate_reference"
  opts = check.options(name, opts, { "block", "dim", "out_dtype" })
  tensor.check(name, "src", src)
  check_float_matrix(name, src)
  local dim = enums.dim(name, opts.dim, 2)
  local block = check.integer(name, "block", check.default(opts.block, 256), 4, 1024)
  local dtype = check.choice(name, "out_dtype", opts.out_dtype, enums.float_dtypes, src.dtype)
  check_block(name, "block", block, src, dim)
  src = tensor.on_cpu(name, src)
  local lines = lines_of(src, dim)
  local out = tensor.alloc(name, 2, src:size(1), src:size(2), dtype, enums.CPU)
  local data, stride = ffi.cast(dtype.pointer, out:data()), out.stride
  for _, line in ipairs(lines) do rotate_line(line, block) end
  each_element(lines, dim, function(r, c, x) data[r * stride + c] = dtype.encode(x) end)
  tensor.keep(out)
  return out
end

local function first_not_finite(name, lines, dim)
  local first, row, column, value = math.huge
  each_element(lines, dim, function(r, c, x)
    local place = r * 2 ^ 26 + c
    if x - x ~= 0 and place < first then first, row, column, value = place, r + 1, c + 1, x end
  end)
  if not row then return end
  local text = value ~= value and "NaN" or value > 0 and "+Inf" or "-Inf"
  check.raise(name, "src holds %s at row %d, column %d: only finite numbers can be quantised", text, row, column)
end

-- q of one value, 0 where the scale is 0 or infinite.
local function quantum(x, step, most)
  if step == 0 or step == math.huge then return 0 end
  local ratio = to_float(x / step)
  local q = math.abs(ratio) < most and round_half_even(math.abs(ratio)) or most
  return ratio < 0 and q ~= 0 and -q or q
end

local function squared_error(x, step, most)
  local sums, sum = {}, 0
  for i = 0, 31 do sums[i] = 0 end
  for k = 0, #x - 1 do
    local e = x[k + 1] - quantum(x[k + 1], step, most) * step
    sums[k % 32] = sums[k % 32] + e * e
  end
  for i = 0, 31 do sum = sum + sums[i] end
  return sum
end

-- The scale of a line, whose rotation may have overflowed.
local function scale_of_line(x, known, most)
  local absmax = 0
  for _, v in ipairs(x) do
    if v - v ~= 0 then return math.huge end
    absmax = math.max(absmax, math.abs(v))
  end
  local function scale_at(clip) return to_float(to_float(absmax * clip) / most) end
  if known.clip_mse == 0 then return scale_at(known.clip == 0 and 1 or known.clip) end
  local best, least = nil, math.huge
  for i = 64, 32, -1 do
    local step = scale_at(i / 64)
    local err = squared_error(x, step, most)
    if not best or err < least then best, least = step, err end
  end
  return best
end

-- Stores the values of lines in `out`: int8, or packed along dim.
local function store(out, lines, dim, encoding)
  local data, stride = ffi.cast(enums.dtypes[out.dtype].pointer, out:data()), out.stride
  if out.dtype == "int8" then
    each_element(lines, dim, function(r, c, q) data[r * stride + c] = q end)
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

-- Words or int8, and scales, of the lines of src along known.dim, which are overwritten.
local function quantize_lines(name, src, lines, known, most)
  local dim, size = known.dim, { src:size(1), src:size(2) }
  if most == 7 then size[dim + 1] = math.ceil(size[dim + 1] / 8) end
  local out = tensor.alloc(name, 2, size[1], size[2], known.dtype, enums.CPU)
  local scales = tensor.alloc(name, 1, #lines, 1, enums.dtypes.float32, enums.CPU)
  local bits = ffi.cast("uint32_t *", scales:data())
  for l, x in ipairs(lines) do
    if known.rotate > 0 then rotate_line(x, known.rotate) end
    local step = scale_of_line(x, known, most)
    bits[l - 1] = numeric.float_bits(step)
    for k = 1, #x do x[k] = quantum(x[k], step, most) end
  end
  store(out, lines, dim, known.encoding)
  tensor.keep(src, out, scales)
  return out, scales
end

-- ---- groups ----

local function round_signed(x) return x < 0 and -round_half_even(-x) or round_half_even(x) end

local function clamp(x, low, high) return math.min(math.max(x, low), high) end

-- A step: { scale =, zero =, low =, high = }, of which a value is (q - zero) * scale.
local function is_step(x) return x > 0 and x < math.huge end

local function quantum_by_step(x, step)
  if not is_step(step.scale) then return 0 end
  return clamp(round_signed(to_float(x / step.scale)) + step.zero, step.low, step.high)
end

-- Infinite for an infinite scale, so that a smaller one is better.
local function error_of_step(x, step)
  if step.scale == math.huge then return math.huge end
  local sums, sum = {}, 0
  for i = 0, 31 do sums[i] = 0 end
  for k = 0, #x - 1 do
    local e = x[k + 1] - (quantum_by_step(x[k + 1], step) - step.zero) * step.scale
    sums[k % 32] = sums[k % 32] + e * e
  end
  for i = 0, 31 do sum = sum + sums[i] end
  return sum
end

-- The step with a zero point of values whose range with 0 is low .. high.
local function affine_step(low, high, clip)
  low, high = to_float(low * clip), to_float(high * clip)
  local step = { scale = to_float(to_float(high - low) / 15), zero = 0, low = -8, high = 7 }
  if is_step(step.scale) then step.zero = clamp(-8 - round_signed(to_float(low / step.scale)), -8, 7) end
  return step
end

local function affine_step_of_group(x, known)
  local low, high = 0, 0
  for _, v in ipairs(x) do
    if v - v ~= 0 then return { scale = math.huge, zero = 0, low = -8, high = 7 } end
    low, high = math.min(low, v), math.max(high, v)
  end
  if known.clip_mse == 0 then return affine_step(low, high, known.clip == 0 and 1 or known.clip) end
  local best, least
  for i = 64, 32, -1 do
    local step = affine_step(low, high, i / 64)
    local err = error_of_step(x, step)
    if not best or err < least then best, least = step, err end
  end
  return best
end

-- The steps of a line's groups, an array of arrays of values; with factors, these and their scale as well.
local function steps_of_line(groups, known, most)
  local steps, largest = {}, 0
  for g, x in ipairs(groups) do
    steps[g] = known.zeros and affine_step_of_group(x, known)
      or { scale = scale_of_line(x, known, most), zero = 0, low = -most, high = most }
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

-- A line cut into groups of known.group values; 0: one group.
local function cut(x, known)
  local groups = known.group == 0 and { {} } or {}
  for k, v in ipairs(x) do
    local g = known.group == 0 and 1 or math.ceil(k / known.group)
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

-- As quantize_lines, with groups or zero points.
local function quantize_groups(name, src, lines, known, most)
  local dim, size = known.dim, { src:size(1), src:size(2) }
  if most == 7 then size[dim + 1] = math.ceil(size[dim + 1] / 8) end
  local out = tensor.alloc(name, 2, size[1], size[2], known.dtype, enums.CPU)
  local scales, set_scale = beside(name, src, known, "float32", known.factors and 0 or known.group)
  local other, set_other
  if known.zeros or known.factors then other, set_other = beside(name, src, known, "int8", known.group) end
  for l, x in ipairs(lines) do
    if known.rotate > 0 then rotate_line(x, known.rotate) end
    local groups = cut(x, known)
    local steps, factors, unit = steps_of_line(groups, known, most)
    if factors then set_scale(l, 1, unit) end
    local k = 0
    for g, step in ipairs(steps) do
      if not factors then set_scale(l, g, step.scale) end
      if set_other then set_other(l, g, factors and factors[g] or step.zero) end
      for _, v in ipairs(groups[g]) do
        k = k + 1
        x[k] = quantum_by_step(v, step)
      end
    end
  end
  store(out, lines, dim, known.encoding)
  tensor.keep(src, out, scales, other)
  return out, scales, other
end

--- @{int4mm.ops.quantize} in plain LuaJIT: slow on purpose, and what every backend is compared with, bit for bit.
-- @tparam tensor src [R, C] float32, float16 or bfloat16, finite
-- @tparam[opt] table opts `dim`, `rotate`, `group_size`, `group_scales`, `zero_point`, `clip`, `dtype` and `encoding`
--   as there
-- @treturn tensor packed, int32 or int8, on the CPU
-- @treturn tensor scales, float32, on the CPU
-- @treturn ?tensor zeros or factors, int8, on the CPU
-- @raise as quantize
function reference.quantize_reference(src, opts)
  local name = "quantize_reference"
  opts = check.options(name, opts,
    { "dim", "rotate", "group_size", "group_scales", "zero_point", "clip", "dtype", "encoding" })
  local known = ops.quantize_options(name, src, opts)
  check_float_matrix(name, src)
  local dim, most = known.dim, known.dtype == enums.dtypes.int8 and 127 or 7
  check_block(name, "rotate", known.rotate, src, dim)
  src = tensor.on_cpu(name, src)
  local lines = lines_of(src, dim)
  first_not_finite(name, lines, dim)
  local quantize = (known.group > 0 or known.zeros) and quantize_groups or quantize_lines
  return quantize(name, src, lines, known, most)
end

-- ---- dequantizing ----

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

--- @{int4mm.ops.dequantize} in plain LuaJIT: slow on purpose, and what every backend is compared with.
-- @tparam tensor packed int32 or int8
-- @tparam tensor scales
-- @tparam[opt] table opts `dim`, `length`, `encoding`, `group_size`, `zeros`, `factors` and `dtype` as there
-- @treturn tensor on the CPU
-- @raise as dequantize
function reference.dequantize_reference(packed, scales, opts)
  local name = "dequantize_reference"
  opts = check.options(name, opts, { "dim", "length", "encoding", "group_size", "zeros", "factors", "dtype" })
  local known = ops.dequantize_options(name, packed, scales, opts)
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

-- ---- a layer ----

local LINEAR_OPTIONS = {
  "bias", "rotate", "clip", "activation", "residual", "out_dtype", "layout_b", "encoding_b", "activations", "zeros",
  "factors", "group_size",
}

-- What a layer multiplies: its input as the product's operand, and the scales that this has.
local function activations_of(name, x, b_packed, opts)
  local rotate, kind = options.rotation(name, opts, "b_packed", b_packed), options.activations(name, opts)
  check_float_matrix(name, x)
  check_block(name, "rotate", rotate, x, 1)
  x = tensor.on_cpu(name, x)
  if kind == enums.activation_kinds.float then
    return rotate > 0 and reference.rotate_reference(x, { block = rotate }) or x
  end
  local int8 = kind == enums.activation_kinds.int8
  local known = ops.quantize_options(name, x,
    { rotate = rotate > 0 and rotate, clip = opts.clip, dtype = int8 and "int8" or "int4" })
  local a, scales = quantize_lines(name, x, lines_of(x, 1), known, int8 and 127 or 7)
  if not int8 then
    a:mark_ { length = x:size(2) }
    a.c.packed_rotate = rotate
  end
  return a, scales
end

--- @{int4mm.linear.int4_linear} in plain LuaJIT: slow on purpose, and what every backend is compared with, bit for bit
-- where activations are quantised.
-- @tparam tensor x
-- @tparam tensor b_packed
-- @tparam tensor scale_b
-- @tparam[opt] table opts `bias`, `activations`, `rotate`, `clip`, `activation`, `residual`, `zeros`, `factors`,
--   `group_size`, `out_dtype`, `layout_b` and `encoding_b` as there
-- @treturn tensor [M, N] on the CPU
-- @raise as int4_linear
function reference.int4_linear_reference(x, b_packed, scale_b, opts)
  local name = "int4_linear_reference"
  opts = linear.check_tensors(name, x, b_packed, scale_b, opts, LINEAR_OPTIONS)
  check.choice(name, "activation", opts.activation, enums.activations, "none")
  local activate = activation[opts.activation or "none"] -- nil for "none"
  local a, scale_a = activations_of(name, x, b_packed, opts)
  local here = { out_dtype = opts.out_dtype or x.dtype }
  for _, key in ipairs(OPTIONS) do here[key] = check.default(here[key], opts[key]) end
  ops.check_matmul(name, a, b_packed, scale_a, scale_b, here, OPTIONS)
  local call = call_of(name, a, b_packed, scale_a, scale_b, here)
  local terms = opts.residual and lines_of(tensor.on_cpu(name, opts.residual), 1)
  local N = b_packed:size(call.layout_b == "nk" and 1 or 2)
  local out = tensor.alloc(name, 2, x:size(1), N, enums.dtypes[here.out_dtype], enums.CPU)
  product.multiply(out, call, function(sum, m, n)
    local y = activate and activate(sum) or sum
    return terms and to_float(y + terms[m + 1][n + 1]) or y
  end)
  return out
end

return reference
