--- .npy files, numpy's format for one array (numpy.lib.format), versions 1 to 3.
--
-- A file is the magic "\x93NUMPY", two bytes of version, the length of the header (two bytes little-endian, from
-- version 2 on four), the header, which is a Python dictionary with `descr`, `fortran_order` and `shape`, and the data.
-- The header is read by a parser of its own that knows these three and nothing else.
--
-- numpy has no bfloat16. As the package ml_dtypes does it, such tensors are saved as '<V2', two bytes without a type:
-- `numpy.load(path).view(ml_dtypes.bfloat16)` is the array, and what that package's arrays are saved as can be loaded.
-- @module int4mm.io.npy

local ffi = require "ffi"
local enums = require "int4mm.enums"
local file = require "int4mm.io.file"
local tensor = require "int4mm.tensor"

local npy = {}

local MAGIC = "\147NUMPY"
local MAX_HEADER = 2 ^ 20 -- bytes; a plain array's has less than 128

local WRITTEN = { int32 = "<i4", int8 = "|i1", float16 = "<f2", float32 = "<f4", bfloat16 = "<V2" }
local READ = { ["<i1"] = enums.dtypes.int8, ["|V2"] = enums.dtypes.bfloat16 }
for name, descr in pairs(WRITTEN) do READ[descr] = enums.dtypes[name] end

-- ---- the header ----

-- Parsers of Python literals at a position: each gives the value and the position after it and white space, or nil.

local function parse_string(text, at)
  local _, inside, after = text:match([[^%s*(["'])([^"'\]*)%1%s*()]], at)
  return inside, after
end

local function parse_boolean(text, at)
  local word, after = text:match("^%s*(%a+)%s*()", at)
  if word == "True" then return true, after elseif word == "False" then return false, after end
  return nil
end

-- "(2, 3)", "(2,)", "()"; Python 2 wrote "2L".
local function parse_shape(text, at)
  local inside, after = text:match("^%s*(%b())%s*()", at)
  if not inside then return nil end
  local shape, rest = {}, inside:sub(2, -2)
  local position = 1
  while not rest:find("^%s*$", position) do
    local digits, separator, following = rest:match("^%s*(%d+)L?%s*(,?)()", position)
    if not digits or #digits > 16 then return nil end
    shape[#shape + 1] = tonumber(digits)
    if separator == "" and (#shape == 1 or not rest:find("^%s*$", following)) then return nil end
    position = following
  end
  return shape, after
end

local PARSERS = { descr = parse_string, fortran_order = parse_boolean, shape = parse_shape }

-- The dictionary of the header as a table, or nil and where it is not as it should be.
local function parse_header(text)
  local values, at = {}, text:match "^%s*{()"
  while at and not text:find("^%s*}", at) do
    local key, after = parse_string(text, at)
    local colon = key and text:match("^%s*:()", after)
    if not colon or not PARSERS[key] or values[key] ~= nil then return nil, at end
    local value, following = PARSERS[key](text, colon)
    if value == nil then return nil, colon, key end
    values[key] = value
    at = text:match("^%s*,()", following)
    if not at then
      at = following
      if not text:find("^%s*}", at) then return nil, at end
    end
  end
  if not at or not text:find("^%s*}%s*$", at) then return nil, at or 1 end
  return values
end

local function unsupported(descr)
  local hint = descr:find "^>" and "its byte order is the other one"
    or "tensors hold <i4, |i1, <f2, <f4 and bfloat16 (<V2)"
  return ("descr is %s, which cannot be loaded: %s; astype converts the array in numpy"):format(file.quote(descr), hint)
end

-- The header of a file, checked against its size: { dtype =, shape =, fortran =, data = offset of the data }.
local function read_header(reader)
  local function fault(...) file.fault(reader.path, ...) end
  local start = file.need(reader:text(math.min(reader.size, 12), 0))
  if start:sub(1, 6) ~= MAGIC or #start < 10 then fault("it does not begin as a .npy file does") end
  local version, minor, width = start:byte(7), start:byte(8), start:byte(7) == 1 and 2 or 4
  if version < 1 or version > 3 or minor ~= 0 then
    fault("the version is %d.%d, expected 1.0, 2.0 or 3.0", version, minor)
  end
  local length, data = 0, 8 + width
  for i = data, 9, -1 do length = length * 256 + (start:byte(i) or 0) end
  if length > MAX_HEADER or data + length > reader.size then
    fault("the header has %.0f bytes, but %.0f follow: the file is cut, or no .npy file", length, reader.size - data)
  end
  local text = file.need(reader:text(length, data))
  local header, position, key = parse_header(text)
  if not header or header.descr == nil or header.fortran_order == nil or header.shape == nil then
    local found = header and text or text:sub(position, position + 40)
    fault("the header is not as numpy writes it, with descr, fortran_order and shape of a plain array%s: %s",
      key and (" (%s)"):format(key) or "", file.quote(found))
  end
  local dtype = READ[header.descr] or fault("%s", unsupported(header.descr))
  local elements = file.elements(header.shape)
  if not elements then fault("the shape (%s) is too large", table.concat(header.shape, ", ")) end
  if elements * dtype.bytes ~= reader.size - data - length then
    fault("shape (%s) of %s takes %.0f bytes, but the file has %.0f bytes of data%s", table.concat(header.shape, ", "),
      header.descr, elements * dtype.bytes, reader.size - data - length,
      elements * dtype.bytes > reader.size - data - length and ": it is cut" or "")
  end
  if header.fortran_order and #header.shape > 2 then
    fault("it is in Fortran order and has %d dimensions; numpy.ascontiguousarray gives an array that can be loaded",
      #header.shape)
  end
  return { dtype = dtype, shape = header.shape, fortran = header.fortran_order, data = data + length }
end

-- ---- loading and saving ----

-- The elements of a matrix that lie column by column, as they do in `columns` [C, R].
local function transposed(columns, dtype)
  local rows, width = tonumber(columns.c.shape[1]), tonumber(columns.c.shape[0])
  local t = tensor.alloc("load_npy", 2, rows, width, dtype, enums.CPU)
  local from, to = ffi.cast(dtype.pointer, columns.c.data), ffi.cast(dtype.pointer, t.c.data)
  for i = 0, rows - 1 do
    for j = 0, width - 1 do to[i * width + j] = from[j * rows + i] end
  end
  tensor.keep(columns)
  return t
end

--- Loads a .npy file with an array of '<i4', '|i1', '<f2', '<f4', or of '<V2', which is taken as bfloat16.
-- Of more than two dimensions all but the last fold into rows; an array without dimensions becomes a vector of one
-- element. A matrix in Fortran order is brought into C order.
-- @tparam string path
-- @treturn ?tensor int32, int8, float16, float32 or bfloat16, on the CPU
-- @treturn ?string why not: the file and what is wrong
function npy.load_npy(path)
  local name = "load_npy"
  local reader, reason = file.open(file.check_path(name, path))
  if not reader then return nil, reason end
  local header, t
  header, reason = file.catch(read_header, reader)
  if header then
    local rank, rows, columns = file.fold(header.shape)
    local fortran = header.fortran and rank == 2
    if fortran then rows, columns = columns, rows end
    t, reason = reader:tensor(name, header.data, rank, rows, columns, header.dtype)
    if t and fortran then t = transposed(t, header.dtype) end
  end
  reader:close()
  return t, reason
end

--- Saves a tensor as a .npy file of version 1; bfloat16 as '<V2', for which see above. A file of that name is replaced
-- when the new one is complete.
-- @tparam string path
-- @tparam tensor t on the CPU or a GPU, not prepacked
-- @treturn ?boolean true
-- @treturn ?string why the file could not be written
function npy.save_npy(path, t)
  local name = "save_npy"
  file.check_path(name, path)
  file.check_tensor(name, "the tensor", t)
  local header = ("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"):format(WRITTEN[t.dtype],
    table.concat(t.shape, ", ") .. (#t.shape == 1 and "," or ""))
  header = header .. (" "):rep(-(10 + #header + 1) % 64) .. "\n"
  return file.replace(path, function(put)
    put(MAGIC .. "\1\0" .. string.char(#header % 256, math.floor(#header / 256)), 10)
    put(header, #header)
    file.put_tensor(name, put, t)
  end)
end

return npy
