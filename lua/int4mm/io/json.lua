--- JSON by lua-cjson, strict: a name that an object has twice is an error, as are NaN and hexadecimal numbers.
-- @module int4mm.io.json

local ffi = require "ffi"
local check = require "int4mm.internal.check"

local json = {}

local codec -- cjson with settings of its own, loaded on first need: products do without it

--- Loads lua-cjson, or raises.
-- @tparam string name the function that the user called
function json.need(name)
  if codec then return end
  local found, cjson = pcall(require, "cjson")
  if not found then
    check.raise(name, "lua-cjson is not installed (Debian: lua-cjson, LuaRocks: lua-cjson): %s", tostring(cjson))
  end
  codec = cjson.new()
  codec.decode_invalid_numbers(false)
  codec.decode_max_depth(32)
end

-- The names in all objects of a JSON text, which are as many as colons outside strings.
local function count_colons(text)
  local bytes, colons, inside, i, n = ffi.cast("const uint8_t *", text), 0, false, 0, #text
  while i < n do
    local c = bytes[i]
    if inside then
      if c == 0x5c then i = i + 1 elseif c == 0x22 then inside = false end
    elseif c == 0x22 then
      inside = true
    elseif c == 0x3a then
      colons = colons + 1
    end
    i = i + 1
  end
  return colons
end

-- The names that are left of them in Lua's tables, where the last of equal ones stays. (Those of arrays are numbers.)
local function count_names(value)
  local names = 0
  for key, inner in pairs(value) do
    if type(key) == "string" then names = names + 1 end
    if type(inner) == "table" then names = names + count_names(inner) end
  end
  return names
end

-- The end of the string that begins at a quotation mark.
local function string_end(text, first)
  local last = first
  repeat
    last = text:find('["\\]', last + 1)
    local escape = text:byte(last) == 0x5c
    if escape then last = last + 1 end
  until not escape
  return last
end

-- The first name that an object of a valid JSON text has twice.
local function duplicate(text)
  local objects, position = {}, text:find '["{}]'
  while position do
    local c, last = text:sub(position, position), position
    if c == "{" then
      objects[#objects + 1] = {}
    elseif c == "}" then
      objects[#objects] = nil
    else
      last = string_end(text, position)
      if text:find("^%s*:", last + 1) then
        local name, names = codec.decode("[" .. text:sub(position, last) .. "]")[1], objects[#objects]
        if names[name] then return name end
        names[name] = true
      end
    end
    position = text:find('["{}]', last + 1)
  end
  return nil
end

--- Decodes a text that holds an object.
-- @tparam string text
-- @treturn ?table objects and arrays as tables, null as a light userdata
-- @treturn ?string what is wrong
function json.decode(text)
  if not text:find "^%s*{" then return nil, "it does not begin with {" end
  local ok, value = pcall(codec.decode, text)
  if not ok then return nil, (value:gsub("^Expected", "expected")) end
  if count_colons(text) ~= count_names(value) then
    return nil, ("the name %s stands twice in one object"):format(check.describe(duplicate(text)))
  end
  return value
end

--- Encodes a string, a whole number, true, false, a list or an object of these, its names in order of their bytes; an
-- empty table is an object.
function json.encode(value)
  if type(value) == "number" then return ("%.0f"):format(value) end
  if type(value) ~= "table" then return codec.encode(value) end
  local names, parts = {}, {}
  if #value > 0 then
    for i, item in ipairs(value) do parts[i] = json.encode(item) end
    return "[" .. table.concat(parts, ",") .. "]"
  end
  for name in pairs(value) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do parts[i] = codec.encode(name) .. ":" .. json.encode(value[name]) end
  return "{" .. table.concat(parts, ",") .. "}"
end

-- Characters of UTF-8 beyond ASCII (RFC 3629).
local UTF8 = {
  "[\194-\223][\128-\191]", "\224[\160-\191][\128-\191]", "[\225-\236\238\239][\128-\191][\128-\191]",
  "\237[\128-\159][\128-\191]", "\240[\144-\191][\128-\191][\128-\191]",
  "[\241-\243][\128-\191][\128-\191][\128-\191]", "\244[\128-\143][\128-\191][\128-\191]",
}

--- Whether a string is UTF-8, as JSON has to be.
function json.is_utf8(text)
  if not text:find "[\128-\255]" then return true end
  for _, character in ipairs(UTF8) do text = text:gsub(character, ".") end
  return not text:find "[\128-\255]"
end

return json
