--- Files as int4mm reads and writes them: read at offsets on demand, and written whole or not at all.
--
-- A file is read with pread into memory of our own rather than mapped: a mapped file that another program cuts kills
-- the process that touches it, where a read just comes back short.
-- @module int4mm.io.file

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"
local tensor = require "int4mm.tensor"

-- libc, under names that no program uses; declared once in a Lua state, whoever loads this module anew. LuaJIT passes
-- a file of Lua's io library as its FILE *.
local declared = binding.kept_table "io.file"
if not declared[1] then
  ffi.cdef [[
    int int4mm_libc_fileno(void *stream) __asm__("fileno");
    long int4mm_libc_pread(int descriptor, void *buffer, size_t bytes, long offset) __asm__("pread");
    size_t int4mm_libc_fwrite(const void *data, size_t size, size_t count, void *stream) __asm__("fwrite");
    int int4mm_libc_fsync(int descriptor) __asm__("fsync");
    int int4mm_libc_getpid(void) __asm__("getpid");
    char *int4mm_libc_strerror(int number) __asm__("strerror");
  ]]
  declared[1] = true
end
local C = ffi.C
local EINTR, EEXIST, EISDIR = 4, 17, 21 -- Linux, every machine

local file = {}

local function system_error() return ffi.string(C.int4mm_libc_strerror(ffi.errno())) end

-- ---- what is wrong with a file ----

local Fault = {}

--- Ends the function that @{catch} has called, with what is wrong with a file.
-- @tparam string path
-- @tparam string message a format for string.format
-- @param ... its arguments
function file.fault(path, message, ...)
  error(setmetatable({ reason = path .. ": " .. message:format(...) }, Fault), 0)
end

--- A value, or where it is nil a fault with this reason, which names the file already.
function file.need(value, reason)
  if value == nil then error(setmetatable({ reason = reason }, Fault), 0) end
  return value
end

--- Calls a function that may end with a fault.
-- @treturn ?any its result, or nil for a fault
-- @treturn ?string the fault
function file.catch(f, ...)
  local ok, result = pcall(f, ...)
  if ok then return result end
  if getmetatable(result) == Fault then return nil, result.reason end
  error(result, 0)
end

--- A name out of a file, quoted for a message: names of tensors are longer than what check.describe shows.
function file.quote(name)
  return (("%q"):format(#name > 200 and name:sub(1, 197) .. "..." or name):gsub("\\\n", "\\n"))
end

--- Checks that an argument is a path.
function file.check_path(name, path)
  if type(path) ~= "string" or path == "" or path:find "%z" then
    check.raise(name, "path is %s, expected the name of a file", check.describe(path))
  end
  return path
end

-- ---- reading ----

local Reader = {}
Reader.__index = Reader

--- Opens a file for reading.
-- @tparam string path
-- @treturn ?table with `path`, `size` (bytes) and the methods below; nil where it cannot be read
-- @treturn ?string why
-- @treturn ?boolean whether it is a folder
function file.open(path)
  local stream, reason = io.open(path, "rb")
  if not stream then return nil, reason end
  local _, trouble, number = stream:read(0) -- a folder can be opened, not read
  local size
  if not trouble then size, trouble = stream:seek "end" end
  if not size then
    stream:close()
    return nil, path .. ": " .. trouble, number == EISDIR
  end
  return setmetatable({ path = path, size = size, stream = stream }, Reader)
end

--- Reads bytes from an offset on into memory.
-- @param destination a C pointer
-- @tparam number bytes
-- @tparam number offset
-- @treturn ?boolean true
-- @treturn ?string why not, with the file's name
function Reader:read(destination, bytes, offset)
  local target, descriptor = ffi.cast("char *", destination), C.int4mm_libc_fileno(self.stream)
  while bytes > 0 do
    local got = tonumber(C.int4mm_libc_pread(descriptor, target, bytes, offset))
    if got == 0 then
      return nil, ("%s: the file ends at byte %.0f, expected %.0f bytes more: it has been cut"):format(self.path,
        offset, bytes)
    elseif got > 0 then
      target, bytes, offset = target + got, bytes - got, offset + got
    elseif ffi.errno() ~= EINTR then
      return nil, self.path .. ": " .. system_error()
    end
  end
  return true
end

--- Bytes from an offset on as a string, by way of memory that Lua's collector does not have to hold twice.
-- @treturn ?string
-- @treturn ?string why not
function Reader:text(bytes, offset)
  if bytes >= 2 ^ 31 - 2 ^ 16 then
    return nil, ("%s: %.0f bytes are more than a string can hold"):format(self.path, bytes)
  end
  local memory = tensor.alloc("text", 1, bytes, 1, enums.dtypes.int8, enums.CPU)
  local ok, reason = self:read(memory.c.data, bytes, offset)
  local text = ok and (bytes > 0 and ffi.string(memory.c.data, bytes) or "") or nil
  memory:free()
  return text, reason
end

--- A new tensor with bytes from an offset on.
-- @tparam string name the function that the user called
-- @tparam number offset
-- @tparam number rank
-- @tparam number rows
-- @tparam number columns 1 for a vector
-- @tparam table dtype a description from enums
-- @treturn ?tensor
-- @treturn ?string why not
function Reader:tensor(name, offset, rank, rows, columns, dtype)
  local t = tensor.alloc(name, rank, rows, columns, dtype, enums.CPU)
  local ok, reason = self:read(t.c.data, rows * columns * dtype.bytes, offset)
  if ok then return t end
  t:free()
  return nil, reason
end

--- Closes the file. Harmless when done twice.
function Reader:close()
  if io.type(self.stream) == "file" then self.stream:close() end
end

--- Rows and columns of a tensor for a shape of any rank: what is beyond two dimensions folds into rows x last, and a
-- shape without dimensions is one element.
-- @tparam table shape whole numbers whose product has been checked
-- @treturn number rank 1 or 2
-- @treturn number rows
-- @treturn number columns
function file.fold(shape)
  if #shape <= 1 then return 1, shape[1] or 1, 1 end
  local rows = 1
  for i = 1, #shape - 1 do rows = rows * shape[i] end
  return 2, rows, shape[#shape]
end

--- The number of elements of a shape; nil where it, or a dimension, is no whole number from 0 to 2^53 - 1.
function file.elements(shape)
  local product, largest = 1, 1
  for i = 1, #shape do
    local extent = shape[i]
    if type(extent) ~= "number" or extent % 1 ~= 0 or extent < 0 or extent >= 2 ^ 53 then return nil end
    product, largest = product * extent, largest * math.max(extent, 1)
  end
  return largest < 2 ^ 53 and product or nil
end

-- ---- writing ----

-- A new file beside another one, of a name that is not taken.
local function open_beside(path)
  for number = 1, 1000 do
    local name = ("%s.%d-%d.tmp"):format(path, C.int4mm_libc_getpid(), number)
    local stream, reason, code = io.open(name, "wbx")
    if stream then return stream, name end
    if code ~= EEXIST then return nil, reason end
  end
  return nil, path .. ": too many files of that name with .tmp behind it"
end

-- Writes, and sees to it that the bytes are on the disk.
local function write_all(path, stream, fill)
  local function put(data, bytes)
    if tonumber(C.int4mm_libc_fwrite(data, 1, bytes, stream)) ~= bytes then file.fault(path, "%s", system_error()) end
  end
  fill(put)
  local ok, reason = stream:flush()
  if not ok then file.fault(path, "%s", reason) end
  if C.int4mm_libc_fsync(C.int4mm_libc_fileno(stream)) ~= 0 then file.fault(path, "%s", system_error()) end
  return true
end

--- Writes a file whole or not at all: to a temporary file beside it, which then takes its name. One that was there
-- stays as it was until then, for programs that have it open too.
-- @tparam string path
-- @tparam function fill is called with a function `put(data, bytes)`, data a C pointer or a string
-- @treturn ?boolean true
-- @treturn ?string why not; then nothing is left behind
function file.replace(path, fill)
  local stream, temporary = open_beside(path)
  if not stream then return nil, temporary end
  local ok, done, reason = pcall(file.catch, write_all, path, stream, fill)
  local closed, trouble = stream:close()
  if ok and done and not closed then done, reason = nil, path .. ": " .. trouble end
  if ok and done then done, reason = os.rename(temporary, path) end
  if ok and done then return true end
  os.remove(temporary)
  if not ok then error(done, 0) end
  return nil, reason
end

--- The elements of a tensor for a file: on the CPU, without gaps.
-- @tparam string name the function that the user called
-- @tparam string what the argument
-- @tparam tensor t
function file.check_tensor(name, what, t)
  tensor.check(name, what, t)
  if t.c.layout ~= enums.ROWS then
    check.raise(name, "%s is prepacked, and its elements cannot be read; save what it was made from", what)
  end
  return t
end

--- Writes a tensor's elements by `put` of @{replace}.
function file.put_tensor(name, put, t)
  local here = tensor.on_cpu(name, t):contiguous()
  put(here.c.data, here:bytes())
  tensor.keep(here)
end

return file
