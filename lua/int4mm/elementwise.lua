--- What a model needs between products: sums, activations, softmax, norms.
--
-- The functions take matrices and vectors (which are one row) of float32, float16 or bfloat16, on the CPU or a GPU, and
-- have the names of PyTorch's. Everything is computed in float32, each step rounded, in an order that is fixed, and
-- then rounded once to the dtype of the result: the bits are the same on every machine, and those of the oracle,
-- @{int4mm.elementwise_reference}. A last table of options may hold
--
-- - `out`: a tensor to write to; it may be an operand of its own shape and dtype
-- - `out_dtype`: of a new tensor; by default the first operand's dtype
-- - `stream`: as in @{int4mm.ops}
-- @module int4mm.elementwise

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local enums = require "int4mm.enums"
local numeric = require "int4mm.internal.numeric"
local tensor = require "int4mm.tensor"

local lib = binding.lib
local elementwise = {}

-- ---- what the functions share ----

-- The tensor given as `out`, or a new one of src's shape.
local function output(name, src, opts)
  local dtype = check.choice(name, "out_dtype", opts.out_dtype, enums.float_dtypes, src.dtype)
  if opts.out == nil then
    return tensor.alloc(name, src.c.rank, tonumber(src.c.shape[0]), tonumber(src.c.shape[1]), dtype, src.c.device)
  end
  tensor.check(name, "out", opts.out)
  if opts.out_dtype ~= nil and opts.out.c.dtype ~= dtype.id then
    check.raise(name, "out is %s but out_dtype is %s; leave one of them out", opts.out.dtype, dtype.name)
  end
  return opts.out
end

-- src has floats; the core checks the rest, but not before a result is made.
local function check_source(name, src)
  tensor.check(name, "src", src)
  if not enums.float_dtypes[src.dtype] then
    check.raise(name, "src is %s, expected float32, float16 or bfloat16", (check.describe(src):gsub("^a tensor ", "")))
  end
end

local function map(name, op, src, other, opts)
  check_source(name, src)
  local args = ffi.new "int4mm_map_args"
  if type(other) == "number" then
    args.number = numeric.float_argument(0, other)
  elseif other ~= nil then
    args.other = tensor.check(name, "other", other).c
  end
  args.op, args.stream = op, devices.stream_handle(name, opts.stream, src.c.device)
  local out = output(name, src, opts)
  args.src, args.out = src.c, out.c
  binding.check(name, lib.int4mm_map(args))
  tensor.keep(src, other, opts)
  return out
end

local MAP_OPTIONS = { "out", "out_dtype", "stream" }

-- ---- two operands ----

local function binary(name, op)
  return function(src, other, opts)
    opts = check.options(name, opts, MAP_OPTIONS)
    if type(other) ~= "number" and not tensor.is_tensor(other) then
      check.raise(name, "other is %s, expected a tensor or a number", check.describe(other))
    end
    return map(name, op, src, other, opts)
  end
end

--- src + other.
-- @function add
-- @tparam tensor src [R, C] or [C]
-- @tparam tensor|number other of src's shape, or [C], which is added to every row, of a float dtype; or a number, which
--   is rounded to float32
-- @tparam[opt] table opts `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
elementwise.add = binary("add", lib.INT4MM_ADD)

--- src * other.
-- @function mul
-- @tparam tensor src [R, C] or [C]
-- @tparam tensor|number other as in @{add}
-- @tparam[opt] table opts `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
elementwise.mul = binary("mul", lib.INT4MM_MUL)

-- ---- one operand ----

local function unary(name, op)
  return function(src, opts)
    return map(name, op, src, nil, check.options(name, opts, MAP_OPTIONS))
  end
end

--- e^src, within 2 units in the last place of float32 before it is rounded to the result's dtype.
-- @function exp
-- @tparam tensor src [R, C] or [C]
-- @tparam[opt] table opts `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
elementwise.exp = unary("exp", lib.INT4MM_EXP)

--- tanh(src), as @{exp}.
-- @function tanh
-- @tparam tensor src [R, C] or [C]
-- @tparam[opt] table opts `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
elementwise.tanh = unary("tanh", lib.INT4MM_TANH)

--- The error function of src, as @{exp}.
-- @function erf
-- @tparam tensor src [R, C] or [C]
-- @tparam[opt] table opts `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
elementwise.erf = unary("erf", lib.INT4MM_ERF)

--- src where it is positive, else 0.
-- @function relu
-- @tparam tensor src [R, C] or [C]
-- @tparam[opt] table opts `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
elementwise.relu = unary("relu", lib.INT4MM_RELU)

--- src / (1 + e^-src). As in PyTorch NaN for -infinity.
-- @function silu
-- @tparam tensor src [R, C] or [C]
-- @tparam[opt] table opts `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
elementwise.silu = unary("silu", lib.INT4MM_SILU)

local GELU = { none = lib.INT4MM_GELU, tanh = lib.INT4MM_GELU_TANH }

--- (src / 2) (1 + erf(src / sqrt(2))), or (src / 2) (1 + tanh(sqrt(2 / pi) (src + .044715 src^3))). As in PyTorch NaN
-- for -infinity.
-- @tparam tensor src [R, C] or [C]
-- @tparam[opt] table opts `approximate` ("none", the default, or "tanh"), `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
function elementwise.gelu(src, opts)
  opts = check.options("gelu", opts, { "approximate", "out", "out_dtype", "stream" })
  return map("gelu", check.choice("gelu", "approximate", opts.approximate, GELU, "none"), src, nil, opts)
end

-- ---- rows ----

-- eps as the core takes it: a float32 that is not infinite.
local function set_eps(name, args, eps, default)
  if eps == nil then eps = default end
  if type(eps) ~= "number" or not (eps >= 0 and numeric.to_float(eps) < math.huge) then
    check.raise(name, "eps is %s, expected a finite number, 0 or more", check.describe(eps))
  end
  args.eps = numeric.float_argument(0, eps)
end

local function vector(name, what, value)
  return value ~= nil and tensor.check(name, what, value).c or nil
end

local function rowwise(name, op, args, src, out, opts)
  args.op, args.stream = op, devices.stream_handle(name, opts.stream, src.c.device)
  args.src, args.out = src.c, out.c
  binding.check(name, lib.int4mm_rowwise(args))
  return out
end

--- e^src over its sum in each row. The largest of the row is subtracted first; a row with a NaN, or whose largest is
-- infinite, becomes NaN.
-- @tparam tensor src [R, C] or [C]
-- @tparam[opt] table opts `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
function elementwise.softmax(src, opts)
  opts = check.options("softmax", opts, MAP_OPTIONS)
  check_source("softmax", src)
  local args = ffi.new "int4mm_rowwise_args"
  local out = rowwise("softmax", lib.INT4MM_SOFTMAX, args, src, output("softmax", src, opts), opts)
  tensor.keep(src, opts)
  return out
end

local NORM_OPTIONS = { "eps", "out", "out_dtype", "stream" }

--- Each row less its mean, over sqrt(variance + eps), times weight, plus bias. The variance is the mean of the squared
-- differences.
-- @tparam tensor src [R, C] or [C]
-- @tparam[opt] tensor weight [C], of a float dtype
-- @tparam[opt] tensor bias [C], of a float dtype
-- @tparam[opt] table opts `eps` (1e-5), `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
function elementwise.layer_norm(src, weight, bias, opts)
  local name = "layer_norm"
  opts = check.options(name, opts, NORM_OPTIONS)
  check_source(name, src)
  local args = ffi.new "int4mm_rowwise_args"
  args.weight, args.bias = vector(name, "weight", weight), vector(name, "bias", bias)
  set_eps(name, args, opts.eps, 1e-5)
  local out = rowwise(name, lib.INT4MM_LAYER_NORM, args, src, output(name, src, opts), opts)
  tensor.keep(src, weight, bias, opts)
  return out
end

--- Each row over sqrt(mean of its squares + eps), times weight.
-- @tparam tensor src [R, C] or [C]
-- @tparam[opt] tensor weight [C], of a float dtype
-- @tparam[opt] table opts `eps` (2^-23, which is what PyTorch takes for float32), `out`, `out_dtype`, `stream`
-- @treturn tensor of src's shape
function elementwise.rms_norm(src, weight, opts)
  local name = "rms_norm"
  opts = check.options(name, opts, NORM_OPTIONS)
  check_source(name, src)
  local args = ffi.new "int4mm_rowwise_args"
  args.weight = vector(name, "weight", weight)
  set_eps(name, args, opts.eps, 2 ^ -23)
  local out = rowwise(name, lib.INT4MM_RMS_NORM, args, src, output(name, src, opts), opts)
  tensor.keep(src, weight, opts)
  return out
end

--- Where the largest element of each row is, the first of equals; a NaN is larger than all else. As C and PyTorch have
-- it, and unlike Lua's indices, it counts from 0: ids of tokens and classes do.
-- @tparam tensor src [R, C] or [C], C at least 1
-- @tparam[opt] table opts `out` ([R] int32), `stream`
-- @treturn tensor [R] int32; [1] for a vector
function elementwise.argmax(src, opts)
  local name = "argmax"
  opts = check.options(name, opts, { "out", "stream" })
  check_source(name, src)
  local out = opts.out
  if out == nil then
    local rows = src.c.rank == 2 and tonumber(src.c.shape[0]) or 1
    out = tensor.alloc(name, 1, rows, 1, enums.dtypes.int32, src.c.device)
  end
  tensor.check(name, "out", out)
  rowwise(name, lib.INT4MM_ARGMAX, ffi.new "int4mm_rowwise_args", src, out, opts)
  tensor.keep(src, opts)
  return out
end

return elementwise
