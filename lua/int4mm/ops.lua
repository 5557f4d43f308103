--- Packing, quantising and the product.
--
-- The functions that compute take a last table of options, in which an unknown key is an error. Common ones: `stream`,
-- a stream from @{int4mm.device.stream} or a cudaStream_t as a C pointer, on which work for GPU tensors is enqueued (by
-- default that of @{int4mm.device.with_stream} or of a graph's capture, else the default stream); encodings,
-- "twos_complement" (nibble = value & 15, the default) or "offset" (nibble = value + 8); `dim`, the dimension that is
-- packed eight to a word, 2 (columns, the default) or 1 (rows).
--
-- Packed tensors know their encoding, dimension and length (see @{int4mm.tensor}): functions that read one have those
-- for defaults, and raise for an option that contradicts them.
-- @module int4mm.ops

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local memory = require "int4mm.internal.memory"
local enums = require "int4mm.enums"
local numeric = require "int4mm.internal.numeric"
local options = require "int4mm.internal.options"
local tensor = require "int4mm.tensor"

local lib = binding.lib
local NK = enums.layouts_b.nk
local MAX_INT32 = 2 ^ 31 - 1
local ops = {}

local AUTO, USE_CPU, USE_CUDA = enums.backends.auto, enums.backends.cpu, enums.backends.cuda

local is_marked, encoding_of, dim_of = options.is_marked, options.encoding, options.dim

-- The tensor given as an option, or a new one.
local function output(name, what, given, ...)
  if given ~= nil then return tensor.check(name, what, given) end
  return tensor.alloc(name, ...)
end

local keep = tensor.keep

-- ---- packing ----

local function rows_and_columns(t) return tonumber(t.c.shape[0]), tonumber(t.c.shape[1]) end

-- The shape of a packed matrix.
local function packed_shape(t, dim)
  local rows, columns = rows_and_columns(t)
  if dim == 0 then return math.ceil(rows / 8), columns end
  return rows, math.ceil(columns / 8)
end

-- The shape of an unpacked one; `length` is the option of that name.
local function plain_shape(name, packed, dim, length)
  local rows, columns = rows_and_columns(packed)
  local max = 8 * (dim == 0 and rows or columns)
  local known = is_marked(packed) and packed.c.packed_k > 0 and tonumber(packed.c.packed_k)
  length = length == nil and (known or max) or check.integer(name, "length", length, math.max(max - 7, 0), max)
  if known and length ~= known then
    check.raise(name, "length is %d but packed holds %d values along dim %d; leave length out", length, known, dim + 1)
  end
  if dim == 0 then return length, columns end
  return rows, length
end

--- Packs int4 values eight to an int32, lowest nibble first. A last word that is not full is filled with zeros.
-- @tparam tensor src [R, C] int8 or int32, values from -8 to 7
-- @tparam[opt] table opts `dim` (2: to [R, C/8]; 1: to [R/8, C]; rounded up), `encoding`, `out`, `stream`
-- @treturn tensor int32 on the device of src
-- @raise for a value outside -8 to 7, with its row and column
function ops.pack_int4_to_int32(src, opts)
  local name = "pack_int4_to_int32"
  opts = check.options(name, opts, { "dim", "encoding", "out", "stream" })
  tensor.check(name, "src", src)
  local dim, encoding = enums.dim(name, opts.dim, 2), encoding_of(name, opts, "encoding")
  local stream = devices.stream_handle(name, opts.stream, src.c.device)
  local rows, columns = packed_shape(src, dim)
  local out = output(name, "out", opts.out, 2, rows, columns, enums.dtypes.int32, src.c.device)
  binding.check(name, lib.int4mm_pack(out.c, src.c, dim, encoding, stream))
  keep(src, opts)
  return out
end

--- Unpacks int32 words into the int4 values they hold.
-- @tparam tensor packed [R, C] int32
-- @tparam[opt] table opts `dim` (2: to [R, 8C]; 1: to [8R, C]), `length` (how many values along dim, where the last
--   word is not full) and `encoding`, each by default packed's own; `dtype` ("int8" or "int32"), `out`, `stream`
-- @treturn tensor int8 on the device of packed
function ops.unpack_int32_to_int4(packed, opts)
  local name = "unpack_int32_to_int4"
  opts = check.options(name, opts, { "dim", "length", "encoding", "dtype", "out", "stream" })
  tensor.check(name, "packed", packed)
  local dim, encoding = dim_of(name, opts, "packed", packed), encoding_of(name, opts, "encoding", "packed", packed)
  local dtype = check.choice(name, "dtype", opts.dtype, enums.integer_dtypes, "int8")
  local stream = devices.stream_handle(name, opts.stream, packed.c.device)
  local rows, columns = plain_shape(name, packed, dim, opts.length)
  local out = output(name, "out", opts.out, 2, rows, columns, dtype, packed.c.device)
  binding.check(name, lib.int4mm_unpack(out.c, packed.c, dim, encoding, stream))
  keep(packed, opts)
  return out
end

-- ---- quantising ----

local QUANTIZED = { int4 = enums.dtypes.int32, int8 = enums.dtypes.int8 }

-- The dtype of quantised values, which has to be that of `out` where both are given.
local function quantized_dtype(name, opts)
  local dtype = check.choice(name, "dtype", opts.dtype, QUANTIZED, "int4")
  if opts.dtype ~= nil and opts.out ~= nil and opts.out.c.dtype ~= dtype.id then
    check.raise(name, "out is %s but dtype is %q, which is stored as %s; leave one of them out", opts.out.dtype,
      opts.dtype, dtype.name)
  end
  return dtype
end

-- The option group_size of so many values along dim; 0 where there are no groups.
local function group_size(name, opts, length)
  return opts.group_size == nil and 0 or options.group_size(name, opts.group_size, length)
end

local GROUP_SCALES = { float = false, integer = true }

-- Sets group, zeros and factors in `known`: the size, of so many values along dim, and whether there is the one or the
-- other beside the scales.
local function set_groups(name, opts, known, length)
  known.group = group_size(name, opts, length)
  known.factors = check.choice(name, "group_scales", opts.group_scales, GROUP_SCALES, "float")
  known.zeros = check.boolean(name, "zero_point", opts.zero_point, false)
  local what = known.factors and 'group_scales is "integer"' or "zero_point is true"
  if known.factors and known.zeros then
    check.raise(name, "%s, which has no zero points, but zero_point is true; leave one of them out", what)
  end
  if known.factors and known.group == 0 then
    check.raise(name, "%s but group_size is nil, expected the number of values in a group", what)
  end
  local bytes = known.dtype == enums.dtypes.int8 or opts.out ~= nil and opts.out.dtype == "int8"
  if (known.factors or known.zeros) and bytes then
    check.raise(name, "%s but the values are int8, expected int4", what)
  end
  for _, key in ipairs { "zeros", "factors" } do
    if opts[key] ~= nil and not known[key] then
      check.raise(name, "%s is %s but %s is not; leave %s out", key, check.describe(opts[key]),
        key == "zeros" and "zero_point" or 'group_scales = "integer"', key)
    end
  end
end

-- The options of a quantisation, checked: { dim = 0 or 1, encoding =, rotate =, clip =, clip_mse =, dtype =, group =,
-- zeros =, factors = }. Also for the oracle.
function ops.quantize_options(name, src, opts)
  tensor.check(name, "src", src)
  if opts.out ~= nil then tensor.check(name, "out", opts.out) end
  local known = { dim = enums.dim(name, opts.dim, 2), encoding = encoding_of(name, opts, "encoding") }
  known.rotate = options.block(name, "rotate", opts.rotate)
  known.clip, known.clip_mse = options.clip(name, opts.clip)
  known.dtype = quantized_dtype(name, opts)
  set_groups(name, opts, known, tonumber(src.c.shape[known.dim]))
  return known
end

-- Rank, rows and columns of what has a value for each line of a matrix along dim, or, with a group size, for each
-- group. Also for the oracle.
function ops.shape_beside(rows, columns, dim, group)
  if group == 0 then return 1, dim == 0 and columns or rows, 1 end
  if dim == 0 then return 2, math.ceil(rows / group), columns end
  return 2, rows, math.ceil(columns / group)
end

--- Multiplies each block of a matrix by a regular Hadamard matrix over the square root of its size, as in ConvRot
-- (arXiv 2512.03673). Rotated alike, activations and weights have the same product, and values that stand out are
-- spread over their block, which quantising to int4 needs. For blocks of 4, 16, 64, 256 and 1024 the rotation is its
-- own inverse, up to rounding.
--
-- Stages of four points at strides 1, 4, 16, ... in float32, each step rounded: s = (x0 + x1) + (x2 + x3), y0 = s - 2
-- x3, y1 = s - 2 x2, y2 = s - 2 x1, y3 = s - 2 x0; for other blocks a last stage x0 + x1, x0 - x1; then one product
-- with float32(1 / sqrt(block)) and one rounding to the dtype of out.
-- @tparam tensor src [R, C] float32, float16 or bfloat16
-- @tparam[opt] table opts `block` (256): a power of two from 4 to 1024 that divides the extent along dim; `dim`: 2 for
--   blocks along rows (activations [M, K], weights [N, K]), 1 along columns (weights [K, N]); `out`, a tensor of that
--   shape of a float dtype, which may be src; `stream`
-- @treturn tensor of src's dtype where no out is given
function ops.rotate(src, opts)
  local name = "rotate"
  opts = check.options(name, opts, { "block", "dim", "out", "stream" })
  tensor.check(name, "src", src)
  local dim = enums.dim(name, opts.dim, 2)
  local block = check.integer(name, "block", check.default(opts.block, 256), 4, 1024)
  local stream = devices.stream_handle(name, opts.stream, src.c.device)
  local rows, columns = rows_and_columns(src)
  local out = output(name, "out", opts.out, 2, rows, columns, enums.dtypes[src.dtype], src.c.device)
  binding.check(name, lib.int4mm_rotate(out.c, src.c, dim, block, stream))
  keep(src, opts)
  return out
end

local QUANTIZE_OPTIONS = {
  "dim", "rotate", "group_size", "group_scales", "zero_point", "clip", "dtype", "encoding", "out", "scales", "zeros",
  "factors", "check", "stream",
}

--- Quantises to int4 or int8 by the largest magnitude of each row or column, or of each group of values in one.
-- In float32, each step rounded: with most = 7 for int4 and 127 for int8, scale = (absmax * clip) / most, and q is x /
-- scale rounded to the nearest (ties to even), from -most to most; where scale is 0, q is 0. Where a rotation
-- overflows, scale is infinite and q 0.
--
-- With zero points (int4): low and high are the least and the largest of the values and 0, each times clip; scale =
-- (high - low) / 15, zero = -8 - low / scale, q = x / scale + zero, both rounded to the nearest and from -8 to 7, where
-- low / scale and x / scale are rounded before they are added; a value is (q - zero) * scale. With integer group scales
-- (int4; QServe, arXiv 2405.04532): the scale of a row or column is the largest of its groups' symmetric scales over
-- 15, a factor is the group's scale over that, rounded, from 1 to 15, and q is x / (factor * scale), from -8 to 7.
-- @tparam tensor src [R, C] float32, float16 or bfloat16, finite
-- @tparam[opt] table opts
--
-- - `dim`: 2 for a scale per row and [R, C/8] words (activations [M, K], or weights [N, K] for `layout_b = "nk"`), 1
--   for a scale per column and [R/8, C] words (weights [K, N])
-- - `rotate`: the block of a rotation along dim, as in @{rotate}, before anything else
-- - `group_size`: values along dim that share a scale, a multiple of 32, of which the last group may hold fewer, or all
-- - `group_scales`: "float" (the default), or "integer" for a float32 scale per row or column and a factor per group
-- - `zero_point`: true for zero points, one beside each scale
-- - `clip`: a number above 0 and up to 1 that absmax is multiplied by, where what is beyond saturates; or "mse", for
--   each row, column or group the one among 1, 63/64, ..., 32/64 of least squared error, the largest of equals
-- - `dtype`: "int4" (int32 words, the default) or "int8" (values, [R, C])
-- - `encoding` of int4
-- - `out`, `scales`, `zeros` and `factors`: tensors to write to
-- - `check`: true; false skips the search for NaN and infinities on a GPU, which has to wait
-- - `stream`
-- @treturn tensor packed, int32 or int8
-- @treturn tensor scales, float32 [R] (dim 2) or [C] (dim 1); of G groups [R, G] or [G, C], unless there are factors
-- @treturn ?tensor zeros, int8 of the shape of scales, or factors, int8 [R, G] or [G, C]
-- @raise for NaN and infinities, with row and column
function ops.quantize(src, opts) return ops.quantize_as("quantize", "src", src, opts) end

local function call_quantize(args) return lib.int4mm_quantize(args) end

-- @{quantize} for the function `name`, whose argument `what` the source is.
function ops.quantize_as(name, what, src, opts)
  opts = check.options(name, opts, QUANTIZE_OPTIONS)
  local known = ops.quantize_options(name, src, opts)
  local args = ffi.new("int4mm_quantize_args")
  args.dim, args.encoding, args.rotate, args.clip_mse = known.dim, known.encoding, known.rotate, known.clip_mse
  args.group = known.group
  args.clip = numeric.float_argument(0, known.clip)
  args.check = check.boolean(name, "check", opts.check, true) and 1 or 0
  args.stream = devices.stream_handle(name, opts.stream, src.c.device)
  local rows, columns = rows_and_columns(src)
  local function beside(key, dtype, group)
    local rank, r, c = ops.shape_beside(rows, columns, known.dim, group)
    return output(name, key, opts[key], rank, r, c, enums.dtypes[dtype], src.c.device)
  end
  local packed_rows, packed_columns = rows, columns
  if known.dtype ~= enums.dtypes.int8 then packed_rows, packed_columns = packed_shape(src, known.dim) end
  local out = output(name, "out", opts.out, 2, packed_rows, packed_columns, known.dtype, src.c.device)
  local scales = beside("scales", "float32", known.factors and 0 or known.group)
  local zeros = known.zeros and beside("zeros", "int8", known.group) or nil
  local factors = known.factors and beside("factors", "int8", known.group) or nil
  args.src, args.packed, args.scales = src.c, out.c, scales.c
  if zeros then args.zeros = zeros.c end
  if factors then args.factors = factors.c end
  binding.check(name, memory.with_retry(src.c.device, call_quantize, args), what)
  keep(src, out, scales, zeros or factors, opts)
  return out, scales, zeros or factors
end

-- The values of a group, as the option says, or as the groups that there are divide the values evenly; 0 where there
-- are no groups.
local function read_group_size(name, scales, known, opts)
  local what, by_group = "scales", scales
  if opts.factors ~= nil then what, by_group = "factors", opts.factors end
  if what == "factors" and by_group.c.rank ~= 2 then
    check.raise(name, "factors is %s, expected a matrix of int8, one for each group", check.describe(by_group))
  end
  local length = known.dim == 0 and known.rows or known.columns
  local given = group_size(name, opts, length)
  if given > 0 or by_group.c.rank ~= 2 then return given end
  local groups = tonumber(by_group.c.shape[known.dim])
  if groups <= 1 then return 32 * math.max(math.ceil(length / 32), 1) end
  if length % groups == 0 and length / groups % 32 == 0 then return length / groups end
  check.raise(name, "group_size is nil but %s is %s, whose %d groups do not divide the %d values along dim %d into "
    .. "multiples of 32; give group_size", what, check.describe(by_group), groups, length, known.dim + 1)
end

-- The options of the way back, checked: { dim = 0 or 1, encoding =, dtype =, rows =, columns =, group = }, with the
-- shape of the result. Also for the oracle.
function ops.dequantize_options(name, packed, scales, opts)
  tensor.check(name, "packed", packed)
  tensor.check(name, "scales", scales)
  for _, key in ipairs { "zeros", "factors" } do
    if opts[key] ~= nil then tensor.check(name, key, opts[key]) end
  end
  local known = {
    dim = dim_of(name, opts, "packed", packed),
    encoding = encoding_of(name, opts, "encoding", "packed", packed),
    dtype = check.choice(name, "dtype", opts.dtype, enums.float_dtypes, "float32"),
  }
  known.rows, known.columns = rows_and_columns(packed)
  if packed.c.dtype ~= enums.dtypes.int8.id then
    known.rows, known.columns = plain_shape(name, packed, known.dim, opts.length)
  elseif opts.length ~= nil then
    check.raise(name, "length is %s, but packed is int8, which has no padding: leave it out",
      check.describe(opts.length))
  end
  known.group = read_group_size(name, scales, known, opts)
  return known
end

--- The way back: q * scale; with zero points (q - zero) * scale, with factors q * (factor * scale). It does not undo a
-- rotation; @{rotate} does.
-- @tparam tensor packed int32 or int8, and
-- @tparam tensor scales float32, as @{quantize} returns them; those of groups also float16 or bfloat16
-- @tparam[opt] table opts `dim` and `encoding` as in @{quantize} and `length` (how many values along dim, where the
--   last word is not full), each by default packed's own; `zeros` or `factors`, as @{quantize} returns them;
--   `group_size`, by default what divides the values evenly among the groups that scales or factors have; `dtype`
--   ("float32", "float16" or "bfloat16"), `out`, `stream`
-- @treturn tensor
function ops.dequantize(packed, scales, opts)
  local name = "dequantize"
  opts = check.options(name, opts,
    { "dim", "length", "encoding", "group_size", "zeros", "factors", "dtype", "out", "stream" })
  local known = ops.dequantize_options(name, packed, scales, opts)
  local args = ffi.new("int4mm_dequantize_args")
  args.stream = devices.stream_handle(name, opts.stream, packed.c.device)
  local out = output(name, "out", opts.out, 2, known.rows, known.columns, known.dtype, packed.c.device)
  args.dst, args.packed, args.scales = out.c, packed.c, scales.c
  if opts.zeros ~= nil then args.zeros = opts.zeros.c end
  if opts.factors ~= nil then args.factors = opts.factors.c end
  args.dim, args.encoding, args.group = known.dim, known.encoding, known.group
  binding.check(name, lib.int4mm_dequantize(args))
  keep(packed, scales, opts)
  return out
end

-- ---- the product ----

local MATMUL_OPTIONS = {
  "out", "out_dtype", "bias", "zeros", "factors", "group_size", "encoding_a", "encoding_b", "layout_b", "stream",
  "kernel", "strassen",
}

-- 0 by the measured rules, -1 never, else so many levels
local function strassen_levels(name, value)
  if value == nil or value == true then return 0 end
  if value == false or value == 0 then return -1 end
  if value ~= 1 and value ~= 2 then
    check.raise(name, "strassen is %s, expected true, false or 0, 1 or 2 levels", check.describe(value))
  end
  return value
end

local function check_operands(name, a_packed, b_packed, scale_a, scale_b, opts)
  tensor.check(name, "a_packed", a_packed)
  tensor.check(name, "b_packed", b_packed)
  if scale_a ~= nil or not enums.float_dtypes[a_packed.dtype] then tensor.check(name, "scale_a", scale_a) end
  tensor.check(name, "scale_b", scale_b)
  if opts.bias ~= nil then tensor.check(name, "bias", opts.bias) end
  if opts.out ~= nil then tensor.check(name, "out", opts.out) end
  options.check_kernel(name, opts)
end

-- The options as the C core takes them; the tensors are set just before the call.
local function make_args(name, backend, a_packed, b_packed, opts)
  local args = ffi.new("int4mm_matmul_args")
  args.backend = backend
  args.out_dtype = enums.dtypes.float16.id
  -- operands on the CPU may have their product on a GPU
  local where = (a_packed.c.device < 0 and opts.out or a_packed).c.device
  args.stream = devices.stream_handle(name, opts.stream, where)
  if next(opts) == nil then return args end
  args.out_dtype = options.out_dtype(name, opts, "float16")
  args.encoding_a = encoding_of(name, opts, "encoding_a", "a_packed", a_packed)
  args.encoding_b = encoding_of(name, opts, "encoding_b", "b_packed", b_packed)
  args.layout_b = options.layout_b(name, opts, b_packed)
  args.group = options.scaling(name, opts)
  args.strassen = strassen_levels(name, opts.strassen)
  return args
end

local function set_tensors(args, a_packed, b_packed, scale_a, scale_b, out, opts)
  args.a_packed, args.b_packed, args.scale_b, args.out = a_packed.c, b_packed.c, scale_b.c, out.c
  if scale_a ~= nil then args.scale_a = scale_a.c end
  if opts.bias ~= nil then args.bias = opts.bias.c end
  if opts.zeros ~= nil then args.zero_b = opts.zeros.c end
  if opts.factors ~= nil then args.factor_b = opts.factors.c end
  if opts.kernel ~= nil then args.kernel = opts.kernel end
end

-- Of a grouped product the argument `offsets`: the tensor, or nil, and the number of experts.
local function take_offsets(name, offsets)
  if type(offsets) == "number" then return nil, check.integer(name, "offsets", offsets, 1, 2 ^ 20) end
  if not tensor.is_tensor(offsets) then
    check.raise(name, "offsets is %s, expected a tensor [E + 1] int32, where the rows of each expert begin, or the "
      .. "number of experts, which then have as many rows each", check.describe(offsets))
  end
  tensor.check(name, "offsets", offsets)
  return offsets, math.max(tonumber(offsets.c.shape[0]) - 1, 1)
end

local function call_matmul(args, experts, offsets)
  if not experts then return lib.int4mm_matmul(args) end
  return lib.int4mm_grouped_matmul(args, offsets and offsets.c, offsets and 0 or experts)
end

-- A product, or with `experts` (a tensor of offsets beside it, or nil) a grouped one.
local function matmul(name, backend, a_packed, b_packed, scale_a, scale_b, opts, experts, offsets)
  local args = make_args(name, backend, a_packed, b_packed, opts)
  local out = opts.out or tensor.released()
  set_tensors(args, a_packed, b_packed, scale_a, scale_b, out, opts)
  local status
  if opts.out then
    status = memory.with_retry(a_packed.c.device, call_matmul, args, experts, offsets)
  else
    local nk = args.layout_b == NK or b_packed.c.packing == 2
    local columns = tonumber(b_packed.c.shape[nk and 0 or 1]) / (nk and experts or 1)
    local bytes = tonumber(a_packed.c.shape[0]) * columns * enums.dtypes[enums.dtype_names[args.out_dtype]].bytes
    status = memory.with_room(a_packed.c.device, bytes, call_matmul, args, experts, offsets)
  end
  binding.check(name, status)
  keep(a_packed, b_packed, scale_a, scale_b, opts)
  return out
end

local function plain_matmul(name, backend, a_packed, b_packed, scale_a, scale_b, opts)
  opts = check.options(name, opts, MATMUL_OPTIONS)
  check_operands(name, a_packed, b_packed, scale_a, scale_b, opts)
  return matmul(name, backend, a_packed, b_packed, scale_a, scale_b, opts)
end

local function grouped_matmul(name, backend, a_packed, b_packed, scale_a, scale_b, offsets, opts)
  opts = check.options(name, opts, MATMUL_OPTIONS)
  check_operands(name, a_packed, b_packed, scale_a, scale_b, opts)
  local begins, experts = take_offsets(name, offsets)
  local out = matmul(name, backend, a_packed, b_packed, scale_a, scale_b, opts, experts, begins)
  if begins then keep(begins) end
  return out
end

--- The product with an int4 weight. Of int4 and int8 activations it is exact up to one rounding:
-- out[m, n] = round(float32(sum over k of a[m, k] * b[k, n]) * scale_a[m] * scale_b[n] + bias[n]): the sum is exact,
-- every step after it is one of float32, and the last rounds once to the output's dtype. Every backend gives the same
-- bits. It runs where the operands are; for operands on the CPU a GPU is taken where there is one and the copies pay.
--
-- **What A is, its dtype says**: words of int4 (W4A4), int8 (W4A8), or floats (W4A16), which have no scale_a. Products
-- of floats are summed in float32: out is not the same on every backend, but near to the exact result
-- (@{int4mm.reference.int4_matmul_bound}), the same on every run.
--
-- **Group scales**: a scale_b of rank 2 has a scale for each group of K and each column. With acc[g] the exact sum over
-- group g, t = 0, then t = fma(float32(acc[g]), scale_b[g, n], t) for each g in order, and out[m, n] = round(t *
-- scale_a[m] + bias[n]). **Integer group scales**: b is multiplied by `factors` [G, N], whole numbers from 1 to 15, and
-- scale_b is [N]; that costs less. **Zero points** are taken from b before it is multiplied.
--
-- Sums have to fit int32: K may be 33,554,431 (W4A4) or 2,097,151 (W4A8), with factors 2,236,962 or 139,810, and less
-- with zero points, which the error tells. With group scales that holds for a group. W4A16 has no limit.
-- @tparam tensor a_packed [M, K/8] int32 words, [M, K] int8, or [M, K] float16, bfloat16 or float32
-- @tparam tensor b_packed [K/8, N] int32, or [N, K/8] with `layout_b = "nk"`, or a weight from @{prepack}; K/8 is
--   rounded up
-- @tparam ?tensor scale_a [M] float32; nil for an A of floats
-- @tparam tensor scale_b [N] float32, or group scales [G, N], for `layout_b = "nk"` also [N, G], of a float dtype
-- @tparam[opt] table opts
--
-- - `zeros`: zero points, of scale_b's shape: int8 from -120 to 119, or int32 words of eight along N (lowest nibble
--   first) in their own encoding where they know it, else in that of b_packed
-- - `factors`: integer group scales [G, N] ([N, G] as well for "nk"), int8 from 1 to 15; not with `zeros`
-- - `group_size`: values of K in a group, a multiple of 32, of which the last group may have fewer, or K; by default
--   K / G
-- - `out`: a tensor [M, N] to write to, float16, bfloat16 or float32, apart from the operands
-- - `out_dtype` ("float16"): of a new result, also "bfloat16" and "float32"
-- - `bias`: a tensor [N] float32
-- - `encoding_a`, `encoding_b`: "twos_complement" or "offset"; by default what the operand was packed in
-- - `layout_b`: "kn" or "nk"; by default "nk" for a weight that was packed along dim 2
-- - `stream`: for GPU tensors
-- - `kernel`: the name of a CUDA kernel to take, whichever is best (see @{cuda_kernels})
-- - `strassen`: on the CPU, true (by measured rules, the default), false, or so many levels
-- @treturn tensor [M, N] on the device of a_packed
-- @raise naming the argument, what it was and what was expected
function ops.int4_matmul(a_packed, b_packed, scale_a, scale_b, opts)
  return (plain_matmul("int4_matmul", AUTO, a_packed, b_packed, scale_a, scale_b, opts))
end

--- As @{int4_matmul}, on the CPU: threaded SIMD code. Operands have to be on the CPU.
function ops.int4_matmul_cpu(a_packed, b_packed, scale_a, scale_b, opts)
  return (plain_matmul("int4_matmul_cpu", USE_CPU, a_packed, b_packed, scale_a, scale_b, opts))
end

--- As @{int4_matmul}, on a GPU; operands on the CPU are copied there and the result back.
-- @raise as int4_matmul, and where CUDA is not available, with the reason
function ops.int4_matmul_cuda(a_packed, b_packed, scale_a, scale_b, opts)
  return (plain_matmul("int4_matmul_cuda", USE_CUDA, a_packed, b_packed, scale_a, scale_b, opts))
end

--- The products of several experts in one call, a weight of the same size each: what a mixture of experts multiplies
-- after its rows were sorted by expert, or a batch. Tensors have two dimensions: an array [E, K/8, N] is the matrix of
-- its experts one below the other, [E * K/8, N]. With one weight for a whole batch a plain @{int4_matmul} of all rows
-- is the product.
--
-- Each row has the bits that @{int4_matmul} gives with its expert's weight; with an A of floats it is within the same
-- bound. Rows before the first offset and from the last one on belong to no expert, and their results are 0.
--
-- On a GPU the offsets are read there when the product runs, so that the call does not wait for them and may be
-- captured into a CUDA graph. Their values are then not checked: in place of an offset it takes the largest of those so
-- far, at least 0 and at most T, and touches no other rows.
-- @tparam tensor a_packed [T, K/8] int32 words, or [T, K] int8 or floats: the rows of all experts, the first one's
--   first; T below 2^31 - 1024
-- @tparam tensor b_packed [E * K/8, N] int32 (K/8 rounded up for each expert), or [E * N, K/8] with `layout_b = "nk"`;
--   not from @{prepack}
-- @tparam ?tensor scale_a [T] float32; nil for an A of floats
-- @tparam tensor scale_b [E, N] float32, or group scales [E * G, N], for "nk" also [E * N, G], of a float dtype; of
--   float32 in E rows they are a scale for each column unless `group_size` is given
-- @tparam tensor|number offsets [E + 1] int32 beside a_packed: expert e (from 1 on) has the rows from offsets[e],
--   counted from 0, to before offsets[e + 1], which may be none; or the number of experts, which then have T / E rows
--   each; E is at most 2^20
-- @tparam[opt] table opts as of @{int4_matmul}, but `zeros` [E, N] or [E * G, N] as scale_b is, or words of eight along
--   N; `factors` [E * G, N]; `bias` [E, N]; `out` [T, N]
-- @treturn tensor [T, N] on the device of a_packed
-- @raise naming the argument, what it was and what was expected; on the CPU also for offsets that descend or lie
--   outside 0 .. T
function ops.int4_grouped_matmul(a_packed, b_packed, scale_a, scale_b, offsets, opts)
  return (grouped_matmul("int4_grouped_matmul", AUTO, a_packed, b_packed, scale_a, scale_b, offsets, opts))
end

--- As @{int4_grouped_matmul}, on the CPU: one expert after the other, each by all threads.
function ops.int4_grouped_matmul_cpu(a_packed, b_packed, scale_a, scale_b, offsets, opts)
  return (grouped_matmul("int4_grouped_matmul_cpu", USE_CPU, a_packed, b_packed, scale_a, scale_b, offsets, opts))
end

--- As @{int4_grouped_matmul}, on a GPU; operands on the CPU are copied there and the result back.
-- @raise as int4_grouped_matmul, and where CUDA is not available, with the reason
function ops.int4_grouped_matmul_cuda(a_packed, b_packed, scale_a, scale_b, offsets, opts)
  return (grouped_matmul("int4_grouped_matmul_cuda", USE_CUDA, a_packed, b_packed, scale_a, scale_b, offsets, opts))
end

--- Rearranges a weight once for many products on the CPU. Its scales, zero points and factors stay what they are.
-- @tparam tensor b_packed [K/8, N] int32, or [N, K/8] with `layout_b = "nk"`
-- @tparam[opt] table opts `layout_b` and `encoding` of b_packed, by default its own
-- @treturn tensor [K/8, N], to be used as b_packed with the default `layout_b` and `encoding_b`; on the CPU its
--   elements cannot be read, on a GPU it is a copy in the contract's layout, which the kernels there read as it is
function ops.prepack(b_packed, opts)
  opts = check.options("prepack", opts, { "layout_b", "encoding" })
  tensor.check("prepack", "b_packed", b_packed)
  if b_packed.c.device == tensor.capture.number then
    check.raise("prepack", "a CUDA graph is being captured on %s, which a prepacked weight is not made for: prepack "
      .. "before", b_packed.device)
  end
  local layout = options.layout_b("prepack", opts, b_packed)
  local encoding = encoding_of("prepack", opts, "encoding", "b_packed", b_packed)
  local prepacked = tensor.released()
  binding.check("prepack", memory.with_room(b_packed.c.device, b_packed:bytes(), function()
    return lib.int4mm_prepack(prepacked.c, b_packed.c, layout, encoding)
  end))
  keep(b_packed)
  return prepacked
end

-- ---- plans ----

local Plan = { __name = "int4mm.plan" }

function Plan.__tostring(plan)
  local parts = {}
  if plan.tile.m > 0 then
    parts[1] = ("tiles of %d x %d x %d"):format(plan.tile.m, plan.tile.n, plan.tile.k):gsub(" x 0$", "")
  end
  if plan.stages > 1 then parts[#parts + 1] = plan.stages .. " stages" end
  if plan.split_k > 1 then parts[#parts + 1] = "K split in " .. plan.split_k end
  if plan.ctas > 0 then parts[#parts + 1] = plan.ctas .. " CTAs" end
  local details = #parts > 0 and " (" .. table.concat(parts, ", ") .. ")" or ""
  local where = plan.arch and "sm_" .. plan.arch or plan.device
  local text = ("%s on %s%s: %s"):format(plan.kernel, where, details, plan.reason)
  for _, operand in ipairs { "a_packed", "b_packed" } do
    if plan[operand] then text = ("%s; %s is %s"):format(text, operand, plan[operand]) end
  end
  return text
end

local function plan_table(plan)
  return setmetatable({
    device = enums.device_name(plan.device),
    kernel = ffi.string(plan.name),
    tile = { m = plan.tile_m, n = plan.tile_n, k = plan.tile_k },
    stages = plan.stages,
    split_k = plan.split_k,
    ctas = plan.ctas,
    reason = ffi.string(plan.reason),
  }, Plan)
end

-- `offsets` as the argument of a grouped product; nil for a plain one.
local function plan_matmul(name, backend, a_packed, b_packed, scale_a, scale_b, opts, offsets)
  check_operands(name, a_packed, b_packed, scale_a, scale_b, opts)
  local begins, experts
  if offsets ~= nil then begins, experts = take_offsets(name, offsets) end
  local args, plan = make_args(name, backend, a_packed, b_packed, opts), ffi.new("int4mm_plan")
  local out = opts.out or tensor.released()
  set_tensors(args, a_packed, b_packed, scale_a, scale_b, out, opts)
  local status
  if experts then
    status = lib.int4mm_grouped_matmul_plan(args, begins and begins.c, begins and 0 or experts, plan)
  else
    status = lib.int4mm_matmul_plan(args, plan)
  end
  binding.check(name, status)
  keep(a_packed, b_packed, scale_a, scale_b, out, opts)
  if begins then keep(begins) end
  return plan
end

local EXPLAIN_OPTIONS = { "offsets", unpack(MATMUL_OPTIONS) }

local PROBLEM_OPTIONS = {
  "arch", "code_arch", "sms", "clock", "memory", "shared", "M", "N", "K", "lda", "ldb", "ldo", "align_a", "align_b",
  "align_out", "out_dtype", "encoding_a", "encoding_b", "layout_b", "dtype_a", "scaling", "group_size", "zeros",
  "experts", "kernel",
}

-- What A and the scales of B are, in the problem's fields.
local function set_kind(name, p, problem)
  local dtype = check.choice(name, "dtype_a", problem.dtype_a, enums.dtypes, "int32")
  p.dtype_a, p.scaling = dtype.id, check.choice(name, "scaling", problem.scaling, enums.scalings, "per_column")
  if dtype == enums.dtypes.int32 and p.K % 8 ~= 0 then
    check.raise(name, "K is %d, expected a multiple of 8", problem.K)
  end
  if p.scaling == enums.scalings.per_column and problem.group_size ~= nil then
    check.raise(name, 'group_size is %s, but scaling is "per_column", which has no groups',
      check.describe(problem.group_size))
  end
  p.group = p.scaling == enums.scalings.per_column and 0 or check.integer(name, "group_size", problem.group_size, 1)
  p.zeros = check.boolean(name, "zeros", problem.zeros, false) and 1 or 0
  p.experts = check.integer(name, "experts", check.default(problem.experts, 0), 0, 2 ^ 20)
end

-- 86 for 86 or "sm_86"
local function check_arch(name, what, value)
  local number = type(value) == "string" and tonumber(value:match "^sm_(%d+)$") or value
  if type(number) ~= "number" or number % 1 ~= 0 or number < 0 or number > MAX_INT32 then
    check.raise(name, '%s is %s, expected an architecture such as 86 or "sm_86"', what, check.describe(value))
  end
  return number
end

-- @{choose_cuda} for the function `name`.
local function choose_cuda(name, problem)
  if type(problem) ~= "table" then
    check.raise(name, "the problem is %s, expected a table { arch =, M =, N =, K = }", check.describe(problem))
  end
  problem = check.options(name, problem, PROBLEM_OPTIONS)
  local p = ffi.new("int4mm_gpu_problem")
  for _, key in ipairs { "M", "N", "K" } do p[key] = check.integer(name, key, problem[key], 0) end
  p.arch = check_arch(name, "arch", problem.arch)
  if problem.code_arch ~= nil then p.code_arch = check_arch(name, "code_arch", problem.code_arch) end
  for _, key in ipairs { "sms", "clock", "memory", "shared" } do
    if problem[key] ~= nil then p[key] = check.integer(name, key, problem[key], 1, MAX_INT32) end
  end
  set_kind(name, p, problem)
  p.layout_b = check.choice(name, "layout_b", problem.layout_b, enums.layouts_b, "kn")
  local words = math.ceil(problem.K / 8)
  local a_cols = p.dtype_a == enums.dtypes.int32.id and words or problem.K
  local b_cols = p.layout_b == NK and words or problem.N
  for key, default in pairs { lda = a_cols, ldb = b_cols, ldo = problem.N } do
    p[key] = check.integer(name, key, check.default(problem[key], default), 0)
  end
  for _, key in ipairs { "align_a", "align_b", "align_out" } do
    p[key] = check.integer(name, key, check.default(problem[key], 256), 0, MAX_INT32)
  end
  p.out_dtype = check.choice(name, "out_dtype", problem.out_dtype, enums.float_dtypes, "float16").id
  p.encoding_a, p.encoding_b = encoding_of(name, problem, "encoding_a"), encoding_of(name, problem, "encoding_b")
  options.check_kernel(name, problem)
  local plan = ffi.new("int4mm_plan")
  local status = lib.int4mm_choose_cuda(p, problem.kernel, plan)
  if status == enums.status.unsupported then return nil, binding.last_error() end
  binding.check(name, status)
  local chosen = plan_table(plan)
  chosen.arch = p.arch
  return chosen
end

--- What @{int4_matmul} would do with these arguments, without doing it; with the option `offsets` in opts, what
-- @{int4_grouped_matmul} would do, whose argument that is. With one table in place of tensors, such as
-- `{ arch = "sm_86", M = 1, K = 4096, N = 4096 }`, it is @{choose_cuda}: what would run on any architecture.
-- @treturn table `{ device = "cuda:0", kernel = "tiled", tile = { m =, n =, k = }, stages =, split_k =, ctas =, reason
--   = }` that tostring makes a sentence of; `a_packed` and `b_packed` in it say how these are packed, where they know
-- @raise as int4_matmul
function ops.explain(a_packed, b_packed, scale_a, scale_b, opts)
  if type(a_packed) == "table" and not tensor.is_tensor(a_packed) and b_packed == nil then
    return choose_cuda("explain", a_packed)
  end
  opts = check.options("explain", opts, EXPLAIN_OPTIONS)
  local plan = plan_table(plan_matmul("explain", AUTO, a_packed, b_packed, scale_a, scale_b, opts, opts.offsets))
  plan.a_packed, plan.b_packed = tensor.packing_text(a_packed), tensor.packing_text(b_packed)
  return plan
end

-- Raises as a product of these operands would; for the oracle. `known` are the options that there are; returns them as
-- a table, never nil. `offsets`: of a grouped product, else nil.
function ops.check_matmul(name, a_packed, b_packed, scale_a, scale_b, opts, known, offsets)
  opts = check.options(name, opts, known)
  if tensor.is_tensor(b_packed) and b_packed.c.rank > 0 and b_packed.c.layout ~= enums.ROWS then
    check.raise(name, "b_packed is prepacked; the oracle reads the words it was made from")
  end
  -- nothing of CUDA is opened for operands on the CPU
  local function on_gpu(t) return tensor.is_tensor(t) and t.c.rank > 0 and t.c.device >= 0 end
  local backend = (on_gpu(a_packed) or on_gpu(opts.out)) and AUTO or USE_CPU
  plan_matmul(name, backend, a_packed, b_packed, scale_a, scale_b, opts, offsets)
  return opts
end

--- The choice of a CUDA kernel: a pure function, which needs no GPU.
-- @tparam table problem `arch` (90 or "sm_90" for compute capability 9.0), `M`, `N`, `K`; where they are not those of
--   the architecture's card (see @{architectures}) `sms`, `clock` (MHz), `memory` (GB/s), `shared` (bytes that a CTA
--   may have), and `code_arch`, what the kernels for every architecture were compiled for; where they are not those of
--   fresh contiguous operands `lda` and `ldb` (words from row to row), `ldo` (elements), `align_a`, `align_b`,
--   `align_out` (powers of two up to 256 that divide the addresses); `out_dtype`, `encoding_a`, `encoding_b`,
--   `layout_b`; `dtype_a` ("int32" for words of int4, "int8" or a float dtype, which lda then counts), `scaling`
--   ("per_column", "group_scales" or "group_factors") with the `group_size`, `zeros` (true: there are zero points);
--   `experts`, of a grouped product, whose M counts the rows of all of them; `kernel` to force one
-- @treturn table as from @{explain}, with the problem's `arch` as a number; or nil where the forced kernel cannot serve
--   the problem
-- @treturn ?string then the reason
function ops.choose_cuda(problem) return choose_cuda("choose_cuda", problem) end

--- The architectures that the CUDA kernels serve, and what the estimates behind the choice take from the datasheet of
-- a card of each.
-- @treturn table array, oldest first, of `{ arch = 86, card =, sms =, clock =, memory =, l2 =, shared =, int4_macs =,
--   int8_macs =, fp16_macs = }`: clock in MHz, memory in GB/s, l2 and shared (what a CTA may have) in bytes, the last
--   three in multiply-adds of an SM a clock by mma.sync
function ops.architectures()
  local list = {}
  local a = lib.int4mm_architecture_at(0)
  while a ~= nil do
    list[#list + 1] = {
      arch = a.arch, card = ffi.string(a.card), sms = a.sms, clock = a.clock, memory = a.memory, l2 = a.l2 * 2 ^ 20,
      shared = a.shared * 2 ^ 10, int4_macs = a.int4_macs, int8_macs = a.int8_macs, fp16_macs = a.fp16_macs,
    }
    a = lib.int4mm_architecture_at(#list)
  end
  return list
end

--- The names of the CUDA kernels, for the option `kernel`.
-- @treturn table array of strings
function ops.cuda_kernels()
  local list = {}
  local kernel = lib.int4mm_cuda_kernel_at(0)
  while kernel ~= nil do
    list[#list + 1] = ffi.string(kernel)
    kernel = lib.int4mm_cuda_kernel_at(#list)
  end
  return list
end

return ops
