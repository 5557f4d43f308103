--- safetensors files: tensors by name, read one at a time.
--
-- A file is 8 bytes with the length of the header (little-endian), the header in JSON, and the data, which the header
-- covers without gaps or overlap. All of that is checked when a file is opened; nothing is read outside it. A file
-- that is cut later, while it is open, makes a read raise. JSON is read by lua-cjson.
--
--     local f = assert(q.open_safetensors "model.safetensors")
--     for _, name in ipairs(f:names()) do print(name, f:info(name).dtype) end
--     local weight = f:tensor "model.layers.0.mlp.down_proj.weight"
-- @module int4mm.io.safetensors

local ffi = require "ffi"
local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"
local file = require "int4mm.io.file"
local json = require "int4mm.io.json"
local tensor = require "int4mm.tensor"

local quote = file.quote
local safetensors = {}

local MAX_HEADER = 100e6 -- bytes, as other readers have it

-- ---- dtypes ----

-- A number, or an int64_t where a Lua number would not be exact.
local function whole(x)
  local number = tonumber(x)
  return number > -2 ^ 53 and number < 2 ^ 53 and number or x
end

-- By arithmetic: LuaJIT keeps its types in the payloads of NaNs, so none may become a Lua value as it is.
local function from_double_bits(bits)
  local sign = bits >= 0x8000000000000000ULL and -1 or 1
  local exponent, fraction = tonumber(bits / 2 ^ 52 % 2048), tonumber(bits % 2 ^ 52)
  if exponent == 2047 then return fraction == 0 and sign * math.huge or 0 / 0 end
  if exponent == 0 then return sign * fraction * 2 ^ -1074 end
  return sign * (2 ^ 52 + fraction) * 2 ^ (exponent - 1075)
end

-- What an element is: its bits; the tensors' dtype that holds it; or a pointer type and a function to read it by.
local function viewed(bits, ctype, decode)
  return { bits = bits, pointer = ffi.typeof(ctype), decode = decode or tonumber }
end
local function held(name)
  local dtype = enums.dtypes[name]
  return { bits = 8 * dtype.bytes, dtype = dtype, pointer = dtype.pointer, decode = dtype.decode }
end

local DTYPES = {
  I32 = held "int32", I8 = held "int8", F16 = held "float16", BF16 = held "bfloat16", F32 = held "float32",
  BOOL = viewed(8, "uint8_t *", function(x) return x ~= 0 end),
  U8 = viewed(8, "uint8_t *"), U16 = viewed(16, "uint16_t *"), I16 = viewed(16, "int16_t *"),
  U32 = viewed(32, "uint32_t *"), U64 = viewed(64, "uint64_t *", whole), I64 = viewed(64, "int64_t *", whole),
  F64 = viewed(64, "uint64_t *", from_double_bits),
  F8_E4M3 = { bits = 8 }, F8_E5M2 = { bits = 8 }, F8_E8M0 = { bits = 8 }, F8_E4M3FNUZ = { bits = 8 },
  F8_E5M2FNUZ = { bits = 8 }, F6_E2M3 = { bits = 6 }, F6_E3M2 = { bits = 6 }, F4 = { bits = 4 }, C64 = { bits = 64 },
}
local NAMES = {} -- of the tensors' dtypes
for name, info in pairs(DTYPES) do
  if info.dtype then NAMES[info.dtype.id] = name end
end

-- ---- the header ----

-- Whether a value is what cjson makes of an array.
local function is_list(value)
  if type(value) ~= "table" then return false end
  local keys = 0
  for _ in pairs(value) do keys = keys + 1 end
  return keys == #value
end

-- A list by its first values, an object as a table, null, and all else as check.describe has it.
local function describe(value)
  if type(value) == "userdata" then return "null" end
  if not is_list(value) then return check.describe(value) end
  local parts = {}
  for i = 1, math.min(#value, 8) do parts[i] = describe(value[i]) end
  return "[" .. table.concat(parts, ", ") .. (#value > 8 and ", ...]" or "]")
end

-- Checks dtype, shape and offsets of one tensor against each other and the data.
-- @treturn table { dtype =, shape =, first = offset in the data, bytes = }
local function check_entry(path, name, entry, data_bytes)
  local function fault(message, ...) file.fault(path, "tensor %s: " .. message, quote(name), ...) end
  if type(entry) ~= "table" then fault("its entry is %s, expected dtype, shape and data_offsets", describe(entry)) end
  local info = type(entry.dtype) == "string" and DTYPES[entry.dtype]
  if not info then fault("dtype is %s, which safetensors does not have", describe(entry.dtype)) end
  local elements = is_list(entry.shape) and file.elements(entry.shape)
  if not elements then
    fault("shape is %s, expected whole numbers with a product below 2^53", describe(entry.shape))
  end
  local offsets = entry.data_offsets
  if not is_list(offsets) or #offsets ~= 2 or not file.elements { offsets[1] } or not file.elements { offsets[2] }
    or offsets[1] > offsets[2] then
    fault("data_offsets are %s, expected two whole numbers, the begin and the end", describe(offsets))
  end
  local bytes = offsets[2] - offsets[1]
  if elements * info.bits ~= 8 * bytes then
    fault("shape %s of %s takes %.15g bytes, but data_offsets are %s, which is %.0f", describe(entry.shape),
      entry.dtype, elements * info.bits / 8, describe(offsets), bytes)
  end
  if offsets[2] > data_bytes then
    fault("data_offsets are %s, but the file has %.0f bytes of data: it is cut, or its header is wrong",
      describe(offsets), data_bytes)
  end
  return { dtype = entry.dtype, shape = entry.shape, first = offsets[1], bytes = bytes }
end

local function fault_overlap(path, name, entry)
  file.fault(path, "tensor %s: data_offsets are [%.0f, %.0f], which overlap another tensor's", quote(name), entry.first,
    entry.first + entry.bytes)
end

-- Says why the tensors do not cover the data: `position` is where those that were found one behind the other end.
local function fault_cover(path, entries, position, data_bytes)
  local next_first, at = data_bytes, nil
  for name, entry in pairs(entries) do
    if entry.bytes > 0 and not entry.covered then
      if entry.first < position then
        fault_overlap(path, name, entry)
      elseif entry.first < next_first then
        next_first, at = entry.first, name
      end
    end
  end
  file.fault(path, "no tensor has the bytes from %.0f to %.0f of the data%s: a safetensors file has no gaps", position,
    next_first, at and ", before tensor " .. quote(at) or " at its end")
end

-- Each byte of the data belongs to one tensor. In time that grows with the tensors, without sorting them.
local function check_cover(path, entries, data_bytes)
  local by_first, position = {}, 0
  for name, entry in pairs(entries) do
    if entry.bytes > 0 then
      if by_first[entry.first] then fault_overlap(path, name, entry) end
      by_first[entry.first] = entry
    end
  end
  while by_first[position] do
    local entry = by_first[position]
    entry.covered = true
    position = position + entry.bytes
  end
  for _, entry in pairs(by_first) do
    if not entry.covered then fault_cover(path, entries, position, data_bytes) end
  end
  if position ~= data_bytes then fault_cover(path, entries, position, data_bytes) end
end

local function check_metadata(path, metadata)
  if metadata == nil then return {} end
  if type(metadata) ~= "table" or #metadata > 0 then
    file.fault(path, "__metadata__ is %s, expected an object of strings", describe(metadata))
  end
  for key, value in pairs(metadata) do
    if type(value) ~= "string" then
      file.fault(path, "__metadata__ has %s = %s, expected a string", quote(key), describe(value))
    end
  end
  return metadata
end

-- The header's text and the offset of the data.
local function header_text(reader)
  local path = reader.path
  if reader.size < 8 then
    file.fault(path, "the file has %.0f bytes, too few for the length of a header: it is no safetensors file, or cut",
      reader.size)
  end
  local low, high = 0, 0
  for i, byte in ipairs { file.need(reader:text(8, 0)):byte(1, 8) } do
    if i <= 4 then low = low + byte * 256 ^ (i - 1) else high = high + byte * 256 ^ (i - 5) end
  end
  local length = low + high * 2 ^ 32
  if length > MAX_HEADER or length < 2 then
    file.fault(path, "the length of the header is %.0f, expected 2 to %.0f: it is no safetensors file", length,
      MAX_HEADER)
  elseif length > reader.size - 8 then
    file.fault(path, "the length of the header is %.0f, but only %.0f bytes follow: the file is cut, or no safetensors "
      .. "file", length, reader.size - 8)
  end
  return file.need(reader:text(length, 8)), 8 + length
end

-- The whole header, checked: { entries =, metadata =, data = offset of the data }.
local function read_header(reader)
  local text, data = header_text(reader)
  local entries, reason
  if text:byte() == 0x7b then
    entries, reason = json.decode(text)
  else
    reason = "it does not begin with {"
  end
  if not entries then file.fault(reader.path, "the header is not as safetensors has it: %s", reason) end
  local metadata = check_metadata(reader.path, entries.__metadata__)
  entries.__metadata__ = nil
  for name, entry in pairs(entries) do
    entries[name] = check_entry(reader.path, name, entry, reader.size - data)
  end
  check_cover(reader.path, entries, reader.size - data)
  return { entries = entries, metadata = metadata, data = data }
end

-- ---- an open file ----

local File = { __name = "int4mm.safetensors" }
File.__index = File

-- Where a folder's model begins.
local IN_FOLDER = {
  "model.safetensors.index.json", "model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
  "diffusion_pytorch_model.safetensors",
}

local function open_single(path)
  local reader, reason, folder = file.open(path)
  if not reader then return nil, reason, folder end
  local header
  header, reason = file.catch(read_header, reader)
  if not header then
    reader:close()
    return nil, reason
  end
  header.path, header.reader = path, reader
  return setmetatable(header, File)
end

-- The index of a model in several files: { weight_map = { name = file, ... }, metadata = { ... } }.
local function read_index(reader)
  local path = reader.path
  if reader.size > MAX_HEADER then file.fault(path, "%.0f bytes are too many for an index", reader.size) end
  local index, reason = json.decode(file.need(reader:text(reader.size, 0)))
  if not index then file.fault(path, "the index is not JSON as it should be: %s", reason) end
  if type(index.weight_map) ~= "table" then
    file.fault(path, "weight_map is %s, expected an object of tensors and their files", describe(index.weight_map))
  end
  for name, shard in pairs(index.weight_map) do
    if type(name) ~= "string" or type(shard) ~= "string" or shard:find "[/%z]" or shard == "" then
      file.fault(path, "weight_map has %s in %s, expected the name of a file beside the index", describe(name),
        describe(shard))
    end
  end
  return { weight_map = index.weight_map, metadata = type(index.metadata) == "table" and index.metadata or {} }
end

local function open_index(path)
  local reader, reason, folder = file.open(path)
  if not reader then return nil, reason, folder end
  local index
  index, reason = file.catch(read_index, reader)
  reader:close()
  if not index then return nil, reason end
  index.path, index.folder, index.shards = path, path:match "^(.*/)[^/]*$" or "", {}
  return setmetatable(index, File)
end

local function open_path(path) return (path:find "%.json$" and open_index or open_single)(path) end

local function open_in_folder(folder)
  for _, name in ipairs(IN_FOLDER) do
    local path = folder:gsub("/*$", "/") .. name
    local stream = io.open(path, "rb")
    if stream then
      stream:close()
      return open_path(path)
    end
  end
  return nil, ("%s: the folder has none of %s"):format(folder, table.concat(IN_FOLDER, ", "))
end

--- Opens a safetensors file, or the files of one model: the path of `model.safetensors.index.json`, or of the folder
-- that it or `model.safetensors` is in (also by the names that diffusers gives them). Files that an index names are
-- opened when a tensor of theirs is asked for.
-- @tparam string path
-- @treturn ?file with the methods below and the fields `path` and `metadata` (`__metadata__`, a table of strings; of an
--   index its `metadata`); nil where it cannot be opened
-- @treturn ?string why: the file, the tensor and what is wrong
function safetensors.open_safetensors(path)
  local name = "open_safetensors"
  file.check_path(name, path)
  json.need(name)
  local f, reason, folder = open_path(path)
  if folder then f, reason = open_in_folder(path) end
  return f, reason
end

-- By name, so that modules that are loaded anew take files that were opened before.
local function is_file(value)
  local metatable = type(value) == "table" and getmetatable(value)
  return type(metatable) == "table" and metatable.__name == File.__name
end

--- Checks that an argument is a file that @{open_safetensors} has opened.
-- @tparam string name the function that the user called
-- @tparam string what the argument
-- @param value what it was
-- @local
function safetensors.check_file(name, what, value)
  if not is_file(value) then
    check.raise(name, "%s is %s, expected a file from open_safetensors%s", what, check.describe(value),
      type(value) == "string" and ": open it first" or "")
  end
  if value.closed then check.raise(name, "%s is closed: %s", what, value.path) end
  return value
end

local function open_shard(name, f, shard_name)
  local shard, reason = open_single(f.folder .. shard_name)
  if not shard then check.raise(name, "%s", reason) end
  f.shards[shard_name] = shard
  return shard
end

-- The file that a tensor is in and its entry; raises where there is none.
local function locate(name, f, key)
  safetensors.check_file(name, "the file", f)
  if type(key) ~= "string" then check.raise(name, "name is %s, expected a string", check.describe(key)) end
  local found = (f.weight_map or f.entries)[key]
  if not found then
    check.raise(name, "%s has no tensor %s", f.path, quote(key))
  end
  if not f.weight_map then return f, found end
  local shard = f.shards[found] or open_shard(name, f, found)
  if not shard.entries[key] then
    check.raise(name, "%s has no tensor %s, though %s says so", shard.path, quote(key), f.path)
  end
  return shard, shard.entries[key]
end

--- The metadata of the very file that a tensor is in, where an index names several.
-- @local
function safetensors.metadata_of(name, f, key) return locate(name, f, key).metadata end

--- Methods of files
-- @section methods

--- The names of all tensors, in order of their bytes.
-- @treturn table
function File:names()
  safetensors.check_file("names", "the file", self)
  local names = {}
  for name in pairs(self.weight_map or self.entries) do names[#names + 1] = name end
  table.sort(names)
  return names
end

--- Whether there is a tensor of a name.
-- @tparam string name
-- @treturn boolean
function File:has(name)
  safetensors.check_file("has", "the file", self)
  return (self.weight_map or self.entries)[name] ~= nil
end

--- What a tensor is, without reading it.
-- @tparam string name
-- @treturn table `dtype` as safetensors calls it ("F16"), `shape` (a table of any length), `bytes`, and `path` of the
--   file that it is in
-- @raise where there is no such tensor
function File:info(name)
  local f, entry = locate("info", self, name)
  local shape = {}
  for i, extent in ipairs(entry.shape) do shape[i] = extent end
  return { dtype = entry.dtype, shape = shape, bytes = entry.bytes, path = f.path }
end

--- Reads a tensor of I32, I8, F16, BF16 or F32 into memory of its own on the CPU.
-- A tensor of more than two dimensions becomes a matrix, all but the last folded into rows; one without dimensions a
-- vector of one element.
-- @tparam string name
-- @treturn tensor int32, int8, float16, bfloat16 or float32
-- @raise where there is no such tensor, for another dtype, and for a file that has been cut since it was opened
function File:tensor(name)
  local f, entry = locate("tensor", self, name)
  local info = DTYPES[entry.dtype]
  if not info.dtype then
    check.raise("tensor", "%s: tensor %s is %s, which tensors cannot hold (I32, I8, F16, BF16 and F32 they can); "
      .. "f:bytes(name) gives its bytes%s", f.path, quote(name), entry.dtype,
      info.decode and ", f:values(name) its elements" or "")
  end
  local rank, rows, columns = file.fold(entry.shape)
  local t, reason = f.reader:tensor("tensor", f.data + entry.first, rank, rows, columns, info.dtype)
  if not t then check.raise("tensor", "%s (tensor %s)", reason, quote(name)) end
  return t
end

--- The bytes of a tensor of any dtype as they lie in the file.
-- @tparam string name
-- @treturn string
-- @raise where there is no such tensor, and for a file that has been cut since it was opened
function File:bytes(name)
  local f, entry = locate("bytes", self, name)
  local text, reason = f.reader:text(entry.bytes, f.data + entry.first)
  if not text then check.raise("bytes", "%s (tensor %s)", reason, quote(name)) end
  return text
end

--- The elements of a tensor as a Lua table, row by row in one dimension, whatever the shape: numbers, booleans of BOOL,
-- and an int64_t or uint64_t where a number would not be exact (magnitudes of 2^53 and more).
-- @tparam string name
-- @treturn table
-- @raise where there is no such tensor, for dtypes that are not decoded (floats of 4, 6 and 8 bits, complex numbers),
--   and for a file that has been cut since it was opened
function File:values(name)
  local f, entry = locate("values", self, name)
  local info, values = DTYPES[entry.dtype], {}
  if not info.decode then
    check.raise("values", "%s: tensor %s is %s, which is not decoded; f:bytes(name) gives its bytes", f.path,
      quote(name), entry.dtype)
  end
  local text = self:bytes(name)
  local elements = ffi.cast(info.pointer, ffi.cast("const char *", text))
  for i = 1, entry.bytes * 8 / info.bits do values[i] = info.decode(elements[i - 1]) end
  return values
end

--- Closes the file and those that an index has opened. Tensors that were read stay. Harmless when done twice.
function File:close()
  if not is_file(self) then safetensors.check_file("close", "the file", self) end
  if self.reader then self.reader:close() end
  for _, shard in pairs(self.shards or {}) do shard:close() end
  self.closed = true
end

function File:__tostring()
  local count = 0
  for _ in pairs(self.weight_map or self.entries) do count = count + 1 end
  return ("safetensors(%s, %d tensors%s)"):format(self.path, count, self.closed and ", closed" or "")
end

-- ---- saving ----

--- Functions
-- @section functions

local function check_metadata_option(name, metadata)
  if type(metadata) ~= "table" then
    check.raise(name, "metadata is %s, expected a table of strings", check.describe(metadata))
  end
  for key, value in pairs(metadata) do
    if type(key) ~= "string" or type(value) ~= "string" then
      check.raise(name, "metadata has %s = %s, expected strings", check.describe(key), check.describe(value))
    elseif not (json.is_utf8(key) and json.is_utf8(value)) then
      check.raise(name, "metadata has %s = %s, expected UTF-8, which JSON is written in", check.describe(key),
        check.describe(value))
    end
  end
end

-- An entry of the file that is given as { dtype =, shape =, data = }, checked: what it is and how many bytes.
local function described(name, what, given)
  local info = DTYPES[given.dtype]
  if not info then
    check.raise(name, "%s has the dtype %s, expected one of safetensors, such as \"I64\"", what,
      check.describe(given.dtype))
  end
  local elements = is_list(given.shape) and file.elements(given.shape)
  if not elements or elements * info.bits % 8 ~= 0 then
    check.raise(name, "%s has the shape %s, expected a table of whole numbers that fill whole bytes", what,
      describe(given.shape))
  end
  local data = given.data
  if type(data) ~= "string" and type(data) ~= "function" and not tensor.is_tensor(data) then
    check.raise(name, "%s has the data %s, expected a string, a tensor or a function that gives one", what,
      check.describe(data))
  end
  return { dtype = given.dtype, shape = given.shape, data = data, size = info.bits / 8,
    bytes = elements * info.bits / 8 }
end

-- Checks data that is there by now against its entry.
local function check_data(name, item, data)
  local what = "tensor " .. quote(item.name)
  if type(data) ~= "string" then file.check_tensor(name, what, data) end
  local bytes = type(data) == "string" and #data or data:bytes()
  if bytes ~= item.bytes then
    check.raise(name, "%s has data of %.0f bytes, expected %.0f for %s %s", what, bytes, item.bytes,
      describe(item.shape), item.dtype)
  end
  return data
end

-- The tensors as they will lie in the file: those of larger elements first, so that all are aligned, by name among
-- equals.
local function arrange(name, tensors)
  local list = {}
  for key, t in pairs(tensors) do
    if type(key) ~= "string" or key == "__metadata__" then
      check.raise(name, "the tensors have the key %s, expected names%s", check.describe(key),
        key == "__metadata__" and " other than that of the metadata" or "")
    elseif not json.is_utf8(key) then
      check.raise(name, "the name %s is not UTF-8, which JSON is written in", quote(key))
    end
    local what, item = "tensor " .. quote(key)
    if type(t) == "table" and not tensor.is_tensor(t) and t.dtype ~= nil then
      item = described(name, what, t)
    else
      file.check_tensor(name, what, t)
      item = { dtype = NAMES[t.c.dtype], shape = t.shape, data = t, size = enums.dtypes[t.dtype].bytes,
        bytes = t:bytes() }
    end
    item.name = key
    if type(item.data) ~= "function" then check_data(name, item, item.data) end
    list[#list + 1] = item
  end
  table.sort(list, function(x, y)
    if x.size ~= y.size then return x.size > y.size end
    return x.name < y.name
  end)
  return list
end

local function header_of(list, metadata)
  local parts, position = {}, 0
  if metadata and next(metadata) ~= nil then parts[1] = '"__metadata__":' .. json.encode(metadata) end
  for _, item in ipairs(list) do
    local last, shape = position + item.bytes, {}
    for i, extent in ipairs(item.shape) do shape[i] = ("%.0f"):format(extent) end
    parts[#parts + 1] = ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'):format(json.encode(item.name),
      item.dtype, table.concat(shape, ","), position, last)
    position = last
  end
  local header = "{" .. table.concat(parts, ",") .. "}"
  return header .. (" "):rep(-#header % 8)
end

-- Writes one entry; what a function gives is not referenced once it is written.
local function put_item(name, put, item)
  local data = item.data
  if type(data) == "function" then data = check_data(name, item, data()) end
  if type(data) == "string" then return put(data, #data) end
  file.put_tensor(name, put, data)
end

local function little_endian(number, bytes)
  local text = {}
  for i = 1, bytes do
    text[i] = string.char(number % 256)
    number = math.floor(number / 256)
  end
  return table.concat(text)
end

--- Writes tensors to a safetensors file. The same tensors give the same bytes: those of larger elements come first, so
-- that all lie aligned, and in order of their names. A file of that name is replaced when the new one is complete (a
-- temporary file beside it takes its name), and stays as it was where writing fails. What @{int4mm.tensor|marks} say of
-- packed words is not kept; @{int4mm.io.layers.save} keeps it.
-- @tparam string path
-- @tparam table tensors by name, which is UTF-8; on the CPU or a GPU, not prepacked. For one of a dtype or a shape that
--   tensors do not have, or that is made only when it is written, a table `{ dtype = "I64", shape = { 2 }, data = }`,
--   whose data is a string of its bytes, a tensor of as many, or a function that gives one of these
-- @tparam[opt] table opts `metadata`: a table of strings
-- @treturn ?boolean true
-- @treturn ?string why the file could not be written
-- @raise for what is no tensor or name
function safetensors.save_safetensors(path, tensors, opts)
  return safetensors.save_as("save_safetensors", path, tensors, opts)
end

--- @{save_safetensors}, with the name of the function that the user called.
-- @local
function safetensors.save_as(name, path, tensors, opts)
  file.check_path(name, path)
  json.need(name)
  opts = check.options(name, opts, { "metadata" })
  if type(tensors) ~= "table" then
    check.raise(name, "the tensors are %s, expected a table of tensors by name", check.describe(tensors))
  end
  if opts.metadata ~= nil then check_metadata_option(name, opts.metadata) end
  local list = arrange(name, tensors)
  local header = header_of(list, opts.metadata)
  return file.replace(path, function(put)
    put(little_endian(#header, 8), 8)
    put(header, #header)
    for _, item in ipairs(list) do put_item(name, put, item) end
  end)
end

return safetensors
