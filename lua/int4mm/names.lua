--- The Lua names of the C core's numbers: dtypes, devices, encodings, layouts.
-- @module int4mm.names

local ffi = require "ffi"
local check = require "int4mm.check"
local numeric = require "int4mm.numeric"

local names = {}

local function identity(x) return x end

-- What Lua needs to know of a dtype: its C enumerator, its bytes, a pointer type to reach its elements, how an element
-- becomes a number and back, and for integers the numbers that it can hold.
local function dtype(id, bytes, ctype, decode, encode, low, high)
  return {
    id = id, bytes = bytes, pointer = ffi.typeof(ctype), decode = decode, encode = encode, low = low, high = high,
  }
end

names.dtypes = {
  int32 = dtype(0, 4, "int32_t *", identity, identity, -2 ^ 31, 2 ^ 31 - 1),
  int8 = dtype(1, 1, "int8_t *", identity, identity, -128, 127),
  float16 = dtype(2, 2, "uint16_t *", numeric.from_half, numeric.to_half),
  bfloat16 = dtype(3, 2, "uint16_t *", numeric.from_bfloat, numeric.to_bfloat),
  float32 = dtype(4, 4, "uint32_t *", numeric.from_float_bits, numeric.float_bits),
}

-- The dtypes of results that are numbers, and of unpacked int4.
names.float_dtypes, names.integer_dtypes = {}, {}
for name, info in pairs(names.dtypes) do
  local group = info.low and names.integer_dtypes or names.float_dtypes
  group[name] = info
end

-- from the C enumerator to the name
names.dtype_names = {}
for name, info in pairs(names.dtypes) do
  info.name = name
  names.dtype_names[info.id] = name
end

--- The description of a dtype, by name.
-- @tparam string caller the function that the user called
-- @tparam string what the argument
-- @param value the name given
-- @tparam[opt] string default the name that nil means
function names.dtype(caller, what, value, default) return check.choice(caller, what, value, names.dtypes, default) end

--- The C core's number of a device: -1 for "cpu", 0 for "cuda" and "cuda:0".
function names.device(caller, what, value, default)
  if value == nil then value = default end
  if value == "cpu" then return -1 end
  if value == "cuda" then return 0 end
  local ordinal = type(value) == "string" and value:match("^cuda:(%d+)$")
  if not ordinal or #ordinal > 4 then
    check.raise(caller, '%s is %s, expected "cpu", "cuda" or "cuda:0" and so on', what, check.describe(value))
  end
  return tonumber(ordinal)
end

--- "cpu" or "cuda:0", from the C core's number.
function names.device_name(number)
  number = tonumber(number)
  return number == -1 and "cpu" or ("cuda:%d"):format(number)
end

names.encodings = { twos_complement = 0, offset = 1 }
names.layouts_b = { kn = 0, nk = 1 }
names.layout_names = { [0] = "rows", [1] = "panels" }

--- The dimension that an option names, counted from 1 in Lua and from 0 in C.
function names.dim(caller, value, default)
  if value == nil then value = default end
  if value ~= 1 and value ~= 2 then
    check.raise(caller, "dim is %s, expected 1 (rows) or 2 (columns)", check.describe(value))
  end
  return value - 1
end

return names
