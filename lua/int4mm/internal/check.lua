--- Errors and argument checks.
--
-- A mistake of the caller raises a sentence that starts with the name of the function that was called and carries the
-- position of the caller's own line, however deep inside the package it was found.
-- @module int4mm.internal.check

local ffi = require "ffi"

local check = {}

-- "@/path/to/int4mm/": what the source of every function of this package starts with.
local package_source = debug.getinfo(1, "S").source:match("^(.*[/\\])internal[/\\]") or "@"

-- C functions that call a metamethod for a program: its own line is above theirs.
local transparent = { [pairs] = true, [ipairs] = true }

--- Raises `name: message` at the first line on the stack that is not in this package.
-- @tparam string name the function that the user called
-- @tparam string message a sentence; with further arguments, a format for string.format
-- @param ... the format's arguments
function check.raise(name, message, ...)
  if select("#", ...) > 0 then message = message:format(...) end
  local level = 2
  local info = debug.getinfo(level, "Sf")
  while info and (transparent[info.func] or info.source:sub(1, #package_source) == package_source) do
    level = level + 1
    info = debug.getinfo(level, "Sf")
  end
  error(name .. ": " .. message, level)
end

local described = {} -- { ctype =, describe = } of each C type that has words of its own

--- Gives the values of a C type words of their own in messages.
-- @param ctype from ffi.typeof
-- @tparam function describe from a value to a few words
function check.describe_type(ctype, describe) described[#described + 1] = { ctype = ctype, describe = describe } end

--- The C type of a cdata as text: "float [4]", "int64_t".
function check.ctype_name(value) return tostring(ffi.typeof(value)):match "^ctype<(.*)>$" end

--- Whether a cdata is a C type itself, as ffi.typeof returns it.
function check.is_ctype(value)
  local ok, text = pcall(tostring, value)
  return ok and text == ("ctype<%s>"):format(check.ctype_name(value))
end

local function describe_cdata(value)
  for _, entry in ipairs(described) do
    if ffi.istype(entry.ctype, value) then return entry.describe(value) end
  end
  local name = check.ctype_name(value)
  return (check.is_ctype(value) and "the C type " or "a C value of type ") .. name
end

-- As few digits as tell a number from every other.
local function number_text(x)
  local short = ("%.15g"):format(x)
  return (tonumber(short) == x or x ~= x) and short or ("%.17g"):format(x)
end

--- A value in a few words for an error message: `nil`, `"text"`, `1.5`, `a table`, `a tensor [2, 3] int8`.
function check.describe(value)
  local kind = type(value)
  if kind == "string" then return ("%q"):format(#value > 40 and value:sub(1, 37) .. "..." or value) end
  if kind == "number" then return number_text(value) end
  if kind == "nil" or kind == "boolean" then return tostring(value) end
  return kind == "cdata" and describe_cdata(value) or "a " .. kind
end

-- What is not there, by event.
local OPERATORS = {
  __add = "operator +", __sub = "operator -", __mul = "operator *", __div = "operator /", __mod = "operator %",
  __pow = "operator ^", __unm = "operator -", __concat = "operator ..", __len = "operator #", __lt = "operator <",
  __le = "operator <=", __pairs = "iteration by pairs", __ipairs = "iteration by ipairs", __call = "call",
}

--- Adds a function that raises for each operator that a type has not: without them LuaJIT would name a number of its
-- own for the type.
-- @tparam table events the type's metamethods
-- @tparam string name of the type, such as "tensor"
-- @tparam table hints what to use instead, by event; `hints.other` for those that have none
function check.refuse_operators(events, name, hints)
  for event, operator in pairs(OPERATORS) do
    events[event] = events[event] or function()
      check.raise(name, "there is no %s; %s", operator, hints[event] or hints.other)
    end
  end
end

--- The value, or where it is nil (and not where it is false) the default.
function check.default(value, default)
  if value == nil then return default end
  return value
end

--- Checks that a value is a whole number from low to high and returns it.
-- @tparam string name the function that the user called
-- @tparam string what the argument
-- @param value what it was
-- @tparam number low
-- @tparam[opt=2^53] number high
function check.integer(name, what, value, low, high)
  high = high or 2 ^ 53
  if type(value) ~= "number" or value % 1 ~= 0 or value < low or value > high then
    local range = high == 2 ^ 53 and (">= %d"):format(low) or ("from %d to %.0f"):format(low, high)
    check.raise(name, "%s is %s, expected a whole number %s", what, check.describe(value), range)
  end
  return value
end

--- Checks that a value is a number (NaN and infinities included) and returns it.
function check.number(name, what, value)
  if type(value) ~= "number" then
    check.raise(name, "%s is %s, expected a number", what, check.describe(value))
  end
  return value
end

local nothing = {}

-- The known options of a table with a metatable, each read once: whatever __index gives is checked and used as one.
local function inherited(opts, known)
  local plain = {}
  for i = 1, #known do plain[known[i]] = opts[known[i]] end
  return plain
end

--- Checks an options table: no other keys than the known ones.
-- @tparam string name the function that the user called
-- @param opts the table, or nil
-- @tparam table known array of the keys that are known
-- @treturn table opts, an empty table for nil, or a copy without a metatable where opts has one
function check.options(name, opts, known)
  if opts == nil then return nothing end
  if type(opts) ~= "table" then
    check.raise(name, "the options are %s, expected a table", check.describe(opts))
  end
  for key in next, opts do
    local found = false
    for i = 1, #known do found = found or known[i] == key end
    if not found then
      check.raise(name, "unknown option %s; the options are %s",
        type(key) == "string" and ("%q"):format(key) or tostring(key), table.concat(known, ", "))
    end
  end
  return getmetatable(opts) and inherited(opts, known) or opts
end

--- Translates a name by a map, or raises with the names that there are.
-- @tparam string name the function that the user called
-- @tparam string what the option
-- @param value what it was; nil stands for `default`
-- @tparam table map from names to values
-- @param default the name that nil means
-- @return `map[value]`
function check.choice(name, what, value, map, default)
  if value == nil then value = default end
  local chosen = map[value]
  if chosen == nil then
    local names = {}
    for known in pairs(map) do names[#names + 1] = ("%q"):format(known) end
    table.sort(names)
    local last = table.remove(names)
    check.raise(name, "%s is %s, expected %s", what, check.describe(value),
      #names > 0 and table.concat(names, ", ") .. " or " .. last or last)
  end
  return chosen
end

--- Checks an optional boolean and returns it.
function check.boolean(name, what, value, default)
  if value == nil then return default end
  if type(value) ~= "boolean" then
    check.raise(name, "%s is %s, expected true or false", what, check.describe(value))
  end
  return value
end

return check
