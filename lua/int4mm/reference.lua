--- The oracle: the product, rotating, quantising and layers in plain LuaJIT, straight from their definitions.
--
-- No function of the C core computes here (one checks the arguments of the product): nibbles, sums, scales and
-- roundings are written a second time, plainly, so that a mistake has to be made twice to stay unseen. A sum of
-- products of whole numbers is one far below 2^53, so Lua's doubles hold it exactly; a sum, product or quotient of two
-- float32 in double precision, rounded to float32, is the one rounded once.
-- @module int4mm.reference

local ffi = require "ffi"
local activation = require "int4mm.internal.activation"
local enums = require "int4mm.enums"
local check = require "int4mm.internal.check"
local numeric = require "int4mm.internal.numeric"
local linear = require "int4mm.linear"
local ops = require "int4mm.ops"
local options = require "int4mm.internal.options"
local product = require "int4mm.internal.product"
local quantizing = require "int4mm.internal.quantizing"
local tensor = require "int4mm.tensor"

local to_float = numeric.to_float

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
  local lines = quantizing.lines_of(src, dim)
  local out = tensor.alloc(name, 2, src:size(1), src:size(2), dtype, enums.CPU)
  local data, stride = ffi.cast(dtype.pointer, out:data()), out.stride
  for _, line in ipairs(lines) do quantizing.rotate_line(line, block) end
  quantizing.each_element(lines, dim, function(r, c, x) data[r * stride + c] = dtype.encode(x) end)
  tensor.keep(out)
  return out
end

local function first_not_finite(name, lines, dim)
  local first, row, column, value = math.huge
  quantizing.each_element(lines, dim, function(r, c, x)
    local place = r * 2 ^ 26 + c
    if x - x ~= 0 and place < first then first, row, column, value = place, r + 1, c + 1, x end
  end)
  if not row then return end
  local text = value ~= value and "NaN" or value > 0 and "+Inf" or "-Inf"
  check.raise(name, "src holds %s at row %d, column %d: only finite numbers can be quantised", text, row, column)
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
  check_block(name, "rotate", known.rotate, src, known.dim)
  src = tensor.on_cpu(name, src)
  local lines = quantizing.lines_of(src, known.dim)
  first_not_finite(name, lines, known.dim)
  return quantizing.quantize(name, src, lines, known)
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
  return quantizing.dequantize(name, packed, scales, opts, known)
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
  local a, scales = quantizing.quantize(name, x, quantizing.lines_of(x, 1), known)
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
  local terms = opts.residual and quantizing.lines_of(tensor.on_cpu(name, opts.residual), 1)
  local N = b_packed:size(call.layout_b == "nk" and 1 or 2)
  local out = tensor.alloc(name, 2, x:size(1), N, enums.dtypes[here.out_dtype], enums.CPU)
  product.multiply(out, call, function(sum, m, n)
    local y = activate and activate(sum) or sum
    return terms and to_float(y + terms[m + 1][n + 1]) or y
  end)
  return out
end

return reference
