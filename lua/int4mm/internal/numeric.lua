--- float16, bfloat16 and float32 in plain Lua numbers and bits.
--
-- Written apart from the C core (core/numeric.h) on purpose: the oracle and the specs compare the two. Rounding is to
-- nearest even, overflow gives infinity, every NaN has the one bit pattern 0x7fff (float32: 0x7fffffff).
-- @module int4mm.internal.numeric

local ffi = require "ffi"
local bit = require "bit"

local band, rshift, tobit = bit.band, bit.rshift, bit.tobit

local numeric = {}

-- Declared once in a Lua state, whoever loads this module anew: a union without a name would be a new type each time.
if not pcall(ffi.typeof, "int4mm_lua_number") then
  ffi.cdef "typedef union { double number; int32_t word[2]; float single; uint32_t bits; } int4mm_lua_number;"
end
local scratch = ffi.new("int4mm_lua_number")
local arguments = ffi.new("uint32_t[2]")
local high_word = ffi.abi("le") and 1 or 0

-- The largest e with 2^e <= x, for a finite x > 0; -1023 for a subnormal double, which all uses clamp anyway.
local function exponent(x)
  scratch.number = x
  return band(rshift(scratch.word[high_word], 20), 0x7ff) - 1023
end

-- A double of magnitude 2^52 .. 2^53 has no fraction: the addition rounds to nearest even.
local function round_half_even(x) return (x + 2 ^ 52) - 2 ^ 52 end
numeric.round_half_even = round_half_even

-- The bits of a small float type with `precision` significant bits and a smallest subnormal of 2^lowest. A value
-- is q * 2^unit with q below 2^precision; counting units from the smallest one, its bits are q + (unit - lowest) *
-- 2^(precision-1), since the hidden bit of q adds one to the exponent field, as does a q rounded up to 2^precision.
local function encode(x, precision, lowest, infinity)
  if x ~= x then return 0x7fff end
  local sign = 0
  if x < 0 or (x == 0 and 1 / x < 0) then sign, x = 0x8000, -x end
  if x == 0 then return sign end
  if x == math.huge then return sign + infinity end
  local unit = math.max(exponent(x) - (precision - 1), lowest)
  local bits = round_half_even(x * 2 ^ -unit) + (unit - lowest) * 2 ^ (precision - 1)
  return sign + math.min(bits, infinity)
end

-- The way back.
local function decode(bits, precision, lowest, infinity)
  local sign = bits >= 0x8000 and -1 or 1
  bits = band(bits, 0x7fff)
  if bits > infinity then return 0 / 0 end
  if bits == infinity then return sign * math.huge end
  local steps = 2 ^ (precision - 1)
  local field = math.floor(bits / steps)
  if field == 0 then return sign * bits * 2 ^ lowest end
  return sign * (bits % steps + steps) * 2 ^ (lowest + field - 1)
end

--- The bits of the float16 nearest to a number.
-- @tparam number x
-- @treturn number 0 .. 0xffff
function numeric.to_half(x) return encode(x, 11, -24, 0x7c00) end

--- The number that float16 bits stand for.
function numeric.from_half(bits) return decode(bits, 11, -24, 0x7c00) end

--- The bits of the bfloat16 nearest to a number.
function numeric.to_bfloat(x) return encode(x, 8, -133, 0x7f80) end

--- The number that bfloat16 bits stand for.
function numeric.from_bfloat(bits) return decode(bits, 8, -133, 0x7f80) end

-- Subnormal float32 are made by arithmetic on doubles: another library may have set the machine to flush them to zero.
local SMALLEST_NORMAL, UNIT = 2 ^ -126, 2 ^ -149

local function is_subnormal(x) return x > -SMALLEST_NORMAL and x < SMALLEST_NORMAL and x ~= 0 end

--- A number rounded to float32.
function numeric.to_float(x)
  if is_subnormal(x) then
    local rounded = round_half_even(math.abs(x) / UNIT) * UNIT
    return x < 0 and -rounded or rounded
  end
  scratch.single = x
  return scratch.single
end

-- A sum of doubles rounded to odd: where it is not exact, to the neighbour whose last bit is set. Rounded on to a type
-- with at least two digits less it is the exact sum rounded once (Boldo and Melquiond, "Emulation of FMA and correctly
-- rounded sums", 2008). What rounding to nearest leaves is TwoSum's (Knuth).
local function odd_sum(x, y)
  local sum = x + y
  local part = sum - x
  local rest = (x - (sum - part)) + (y - part)
  scratch.number = sum
  if rest == 0 or rest ~= rest or scratch.word[1 - high_word] % 2 ~= 0 then return sum end
  -- its bits count magnitudes: one more away from zero, one less towards it
  if (rest > 0) == (sum > 0) then
    scratch.word[1 - high_word] = scratch.word[1 - high_word] + 1
  else
    if scratch.word[1 - high_word] == 0 then scratch.word[high_word] = scratch.word[high_word] - 1 end
    scratch.word[1 - high_word] = tobit(scratch.word[1 - high_word] - 1)
  end
  return scratch.number
end

--- x * y + z of float32, rounded to float32 once. A double holds the product exactly.
function numeric.fma(x, y, z) return numeric.to_float(odd_sum(x * y, z)) end

--- The bits of the float32 nearest to a number.
-- @treturn number 0 .. 0xffffffff
function numeric.float_bits(x)
  if x ~= x then return 0x7fffffff end
  if is_subnormal(x) then return round_half_even(math.abs(x) / UNIT) + (x < 0 and 0x80000000 or 0) end
  scratch.single = x
  return scratch.bits
end

--- The number that float32 bits stand for. A float NaN must not become a Lua value as it is: LuaJIT keeps the types of
-- its values in the payloads of NaNs and would take 0xffffffff for a nil.
function numeric.from_float_bits(bits)
  local magnitude = band(tobit(bits), 0x7fffffff)
  if magnitude > 0x7f800000 then return 0 / 0 end
  if magnitude < 0x800000 and magnitude > 0 then return (tobit(bits) < 0 and -UNIT or UNIT) * magnitude end
  scratch.bits = bits
  return scratch.single
end

local float_reference = ffi.typeof "float &"

--- A number as an argument of type float: its float32 as a reference, which is passed on as it is. (A Lua number the
-- machine converts, and may flush.) It has to be used before the next one of the same `index`.
-- @tparam number index 0 or 1
-- @tparam number x
function numeric.float_argument(index, x)
  arguments[index] = numeric.float_bits(x)
  return ffi.cast(float_reference, arguments + index)
end

return numeric
