--- What C values that a program gives can be: memory with elements of a known type, or a handle.
--
-- ffi.cast takes a number, a struct or a ctype for an address without a word, so what is given is looked at first.
-- @module int4mm.internal.cdata

local ffi = require "ffi"
local check = require "int4mm.internal.check"

local cdata = {}

-- The element types that hold a dtype's elements, as LuaJIT writes them, and what to ask for. Those of RAW have no type
-- of their own.
local ELEMENTS = {
  int32 = { int = true, ["unsigned int"] = true, expected = "int32_t" },
  int8 = { expected = "int8_t" },
  float16 = { short = true, ["unsigned short"] = true, expected = "uint16_t" },
  bfloat16 = { short = true, ["unsigned short"] = true, expected = "uint16_t" },
  float32 = { float = true, expected = "float" },
}
local RAW = { void = true, char = true, ["signed char"] = true, ["unsigned char"] = true }

-- The element type of a pointer or an array and whether its size is known; nil for any other value.
local function parse(value)
  local name = check.ctype_name(value):gsub("const", ""):gsub("volatile", ""):gsub("^ +", ""):gsub(" +$", "")
  local element, declarator = name:match "^([%w_ ]-) *([%*%[%(&].*)$"
  if not element or check.is_ctype(value) then return nil end
  if declarator == "*" or declarator:find "^%(%*%)%[" then return element, false end
  if declarator:find "^%[" or declarator:find "^%(&%)%[" then return element, true end
end

--- Checks memory that is to be read or written as elements of a dtype, and returns its address.
-- @tparam string name the function that the user called
-- @tparam string what the argument
-- @param value what it was
-- @tparam table dtype a description from enums
-- @tparam number bytes what is needed from the first element on
-- @treturn cdata void *
-- @raise for what is neither a pointer nor an array, for elements of another type, for an array that is too small and
--   for NULL where bytes are needed
function cdata.memory(name, what, value, dtype, bytes)
  local element, sized
  if type(value) == "cdata" then element, sized = parse(value) end
  if not element then
    check.raise(name, "%s is %s, expected a C pointer or array", what, check.describe(value))
  end
  local fitting = ELEMENTS[dtype.name]
  if not fitting[element] and not RAW[element] then
    check.raise(name, "%s is %s, expected %s for %s; a void * is taken as it is", what, check.describe(value),
      fitting.expected, dtype.name)
  end
  if sized and ffi.sizeof(value) < bytes then
    check.raise(name, "%s has %d bytes, expected %.0f", what, ffi.sizeof(value), bytes)
  end
  local address = ffi.cast("void *", value)
  if address == nil and bytes > 0 then check.raise(name, "%s is NULL, expected %.0f bytes", what, bytes) end
  return address
end

--- The handle in a C pointer or a light userdata, or nil for any other value. An array, a number and a pointer to
-- numbers are none.
-- @treturn ?cdata void *
function cdata.handle(value)
  if type(value) == "cdata" then
    local element, sized = parse(value)
    if sized or not element or not (element == "void" or element:find "^struct ") then return nil end
  elseif type(value) ~= "userdata" or debug.getfenv(value) then -- a full userdata has an environment
    return nil
  end
  local ok, handle = pcall(ffi.cast, "void *", value)
  return ok and handle or nil
end

return cdata
