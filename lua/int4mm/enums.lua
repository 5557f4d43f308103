--- The Lua names of the C core's numbers: dtypes, devices, encodings, layouts. The numbers are the header's own.
-- @module int4mm.enums

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local numeric = require "int4mm.internal.numeric"

local lib = binding.lib
local enums = {}

local function identity(x) return x end

-- What Lua needs to know of a dtype: its C enumerator, its bytes, a pointer type to reach its elements, how an element
-- becomes a number and back, and for integers the numbers that it can hold.
local function dtype(id, bytes, ctype, decode, encode, low, high)
  return {
    id = tonumber(id), bytes = bytes, pointer = ffi.typeof(ctype), decode = decode, encode = encode, low = low,
    high = high,
  }
end

enums.dtypes = {
  int32 = dtype(lib.INT4MM_INT32, 4, "int32_t *", identity, identity, -2 ^ 31, 2 ^ 31 - 1),
  int8 = dtype(lib.INT4MM_INT8, 1, "int8_t *", identity, identity, -128, 127),
  float16 = dtype(lib.INT4MM_FLOAT16, 2, "uint16_t *", numeric.from_half, numeric.to_half),
  bfloat16 = dtype(lib.INT4MM_BFLOAT16, 2, "uint16_t *", numeric.from_bfloat, numeric.to_bfloat),
  float32 = dtype(lib.INT4MM_FLOAT32, 4, "uint32_t *", numeric.from_float_bits, numeric.float_bits),
}

-- PyTorch's other names of its dtypes. They are found by name, but are none of those that there are.
local ALIASES = { half = "float16", float = "float32" }
local aliased = { __index = function(dtypes, name) return rawget(dtypes, ALIASES[name]) end }
setmetatable(enums.dtypes, aliased)

-- The dtypes of results that are numbers, and of unpacked int4.
enums.float_dtypes, enums.integer_dtypes = {}, {}
for name, info in pairs(enums.dtypes) do
  local group = info.low and enums.integer_dtypes or enums.float_dtypes
  group[name] = info
end
setmetatable(enums.float_dtypes, aliased)

-- from the C enumerator to the name
enums.dtype_names = {}
for name, info in pairs(enums.dtypes) do
  info.name = name
  enums.dtype_names[info.id] = name
end

--- The description of a dtype, by name ("half" and "float" are float16 and float32, as in PyTorch).
-- @tparam string caller the function that the user called
-- @tparam string what the argument
-- @param value the name given
-- @tparam[opt] string default the name that nil means
function enums.dtype(caller, what, value, default) return check.choice(caller, what, value, enums.dtypes, default) end

local CPU = tonumber(lib.INT4MM_CPU)
enums.CPU = CPU

--- The C core's number of a device: enums.CPU for "cpu", 0 for "cuda" and "cuda:0".
function enums.device(caller, what, value, default)
  if value == nil then value = default end
  if value == "cpu" then return CPU end
  if value == "cuda" then return 0 end
  local ordinal = type(value) == "string" and value:match("^cuda:(%d+)$")
  if not ordinal or #ordinal > 4 then
    check.raise(caller, '%s is %s, expected "cpu", "cuda" or "cuda:0" and so on', what, check.describe(value))
  end
  return tonumber(ordinal)
end

--- The number of a GPU, "cuda" by default.
function enums.gpu(caller, what, value)
  local number = enums.device(caller, what, value, "cuda")
  if number == CPU then
    check.raise(caller, '%s is "cpu", expected a GPU, "cuda" or "cuda:0" and so on', what)
  end
  return number
end

--- "cpu" or "cuda:0", from the C core's number.
function enums.device_name(number)
  number = tonumber(number)
  return number == CPU and "cpu" or ("cuda:%d"):format(number)
end

enums.encodings = {
  twos_complement = tonumber(lib.INT4MM_TWOS_COMPLEMENT), offset = tonumber(lib.INT4MM_OFFSET),
}
enums.encoding_names = {}
for name, id in pairs(enums.encodings) do enums.encoding_names[id] = name end
enums.layouts_b = { kn = tonumber(lib.INT4MM_B_KN), nk = tonumber(lib.INT4MM_B_NK) }

enums.activations = {
  none = tonumber(lib.INT4MM_NO_ACTIVATION), relu = tonumber(lib.INT4MM_RELU), silu = tonumber(lib.INT4MM_SILU),
  gelu = tonumber(lib.INT4MM_GELU), gelu_tanh = tonumber(lib.INT4MM_GELU_TANH),
}

-- what a layer makes of its input
enums.activation_kinds = {
  int4 = tonumber(lib.INT4MM_ACTIVATIONS_INT4), int8 = tonumber(lib.INT4MM_ACTIVATIONS_INT8),
  float = tonumber(lib.INT4MM_ACTIVATIONS_FLOAT),
}

-- what the scales of a weight are
enums.scalings = {
  per_column = tonumber(lib.INT4MM_PER_COLUMN), group_scales = tonumber(lib.INT4MM_GROUP_SCALES),
  group_factors = tonumber(lib.INT4MM_GROUP_FACTORS),
}

-- how a tensor's words lie in memory: numbers and names
enums.ROWS = tonumber(lib.INT4MM_ROWS)
enums.layout_names = { [enums.ROWS] = "rows", [tonumber(lib.INT4MM_PANELS)] = "panels" }

-- What a mark says of the packed dimension; the others are the dimensions as Lua counts them.
enums.UNMARKED = tonumber(lib.INT4MM_UNMARKED)

-- which backend a product asks for
enums.backends = {
  auto = tonumber(lib.INT4MM_AUTO), cpu = tonumber(lib.INT4MM_USE_CPU), cuda = tonumber(lib.INT4MM_USE_CUDA),
}

-- the statuses that are told apart in Lua
enums.status = {
  ok = tonumber(lib.INT4MM_OK),
  memory = tonumber(lib.INT4MM_ERR_MEMORY),
  unsupported = tonumber(lib.INT4MM_ERR_UNSUPPORTED),
}

--- The dimension that an option names, counted from 1 in Lua and from 0 in C.
function enums.dim(caller, value, default)
  if value == nil then value = default end
  if value ~= 1 and value ~= 2 then
    check.raise(caller, "dim is %s, expected 1 (rows) or 2 (columns)", check.describe(value))
  end
  return value - 1
end

return enums
