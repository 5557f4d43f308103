--- Tensors: matrices and vectors of int32, int8, float16, bfloat16 or float32, in host or GPU memory.
--
-- A tensor is a C struct held by value; its memory is counted by references, so views share it, and goes when the last
-- tensor over it is collected or freed. Fields, all for reading: `shape` ({ rows, columns } or { length }), `dtype`
-- ("float16"), `device` ("cpu", "cuda:0"), `stride` (elements from one row to the next), `layout` ("rows", or "panels"
-- for a prepacked weight, whose elements cannot be read). Indices and dimensions count from 1.
-- @module int4mm.tensor

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local memory = require "int4mm.internal.memory"
local enums = require "int4mm.enums"
local print_tensor = require "int4mm.internal.print"

local lib = binding.lib
local CPU = enums.CPU
local tensor = {}

-- A struct around the C struct: the C struct's own fields would hide `shape` and `dtype` of __index. It is held by
-- value: with a pointer in hand, p[1] would be pointer arithmetic.
local Tensor = ffi.typeof("struct { int4mm_tensor c; }")
local methods, fields = {}, {}

local function info_of(t) return enums.dtypes[enums.dtype_names[t.c.dtype]] end

local function rows_of(t) return tonumber(t.c.shape[0]) end
local function columns_of(t) return tonumber(t.c.shape[1]) end

--- Whether a value is a tensor (freed ones included).
function tensor.is_tensor(value) return ffi.istype(Tensor, value) end

--- A tensor with nothing in it yet, for the core to fill.
function tensor.released() return Tensor() end

--- Checks that an argument is a tensor that has not been freed, and returns it.
-- @tparam string name the function that the user called
-- @tparam string what the argument
-- @param value what it was
function tensor.check(name, what, value)
  if not ffi.istype(Tensor, value) then
    check.raise(name, "%s is %s, expected a tensor%s", what, check.describe(value),
      type(value) == "table" and " (int4mm.tensor makes one from a table)" or "")
  end
  if value.c.rank == 0 then check.raise(name, "%s was freed", what) end
  return value
end

-- "[2, 3]"
local function shape_text(t) return "[" .. table.concat(t.shape, ", ") .. "]" end

check.describe_type(Tensor, function(t)
  return t.c.rank == 0 and "a freed tensor" or ("a tensor %s %s"):format(shape_text(t), t.dtype)
end)

-- As tensor.check, for methods that look at elements.
local function check_rows(name, value, what)
  tensor.check(name, what or "the tensor", value)
  if value.c.layout ~= enums.ROWS then
    check.raise(name, "%s is prepacked; its elements cannot be read or written", what or "the tensor")
  end
  return value
end

-- ---- making tensors ----

local function try_alloc(t, rank, rows, columns, dtype, device)
  return lib.int4mm_tensor_alloc(t.c, rank, rows, columns, dtype, device)
end

-- Allocates; dtype is a description from enums, device the core's number.
local function alloc(name, rank, rows, columns, dtype, device)
  local t = Tensor()
  local bytes = rows * columns * dtype.bytes
  binding.check(name, memory.with_room(device, bytes, try_alloc, t, rank, rows, columns, dtype.id, device))
  return t
end
tensor.alloc = alloc

local function like(name, t, device)
  return alloc(name, t.c.rank, rows_of(t), columns_of(t), info_of(t), device or t.c.device)
end
tensor.like = like

local function copy(name, dst, src, stream)
  binding.check(name, lib.int4mm_tensor_copy(dst.c, src.c, stream))
  return dst
end
tensor.copy = copy

-- where a value stands, for messages
local function place(rank, i, j)
  return rank == 2 and ("row %d, column %d"):format(i, j) or ("index %d"):format(j)
end

--- The bits of a number in a dtype, or a raise that says where it stands.
function tensor.encode(name, dtype, x, rank, i, j)
  if type(x) ~= "number" then
    check.raise(name, "the value at %s is %s, expected a number", place(rank, i, j), check.describe(x))
  end
  if dtype.low then
    if x % 1 ~= 0 or x < dtype.low or x > dtype.high then
      check.raise(name, "the value %s at %s does not fit %s (whole numbers from %d to %d)", check.describe(x),
        place(rank, i, j), dtype.name, dtype.low, dtype.high)
    end
    return x
  end
  local bits = dtype.encode(x)
  if math.abs(x) < math.huge and math.abs(dtype.decode(bits)) == math.huge then
    check.raise(name, "the value %s at %s is too large for %s", check.describe(x), place(rank, i, j), dtype.name)
  end
  return bits
end

-- what must outlive a tensor over borrowed memory
local owners = setmetatable({}, { __mode = "k" })
tensor.owners = owners

-- ---- fields ----

function fields.shape(t)
  if t.c.rank == 2 then return { rows_of(t), columns_of(t) } end
  return { rows_of(t) }
end
function fields.dtype(t) return enums.dtype_names[t.c.dtype] end
function fields.device(t) return enums.device_name(t.c.device) end
function fields.stride(t) return tonumber(t.c.stride) end
function fields.layout(t) return enums.layout_names[t.c.layout] end

-- ---- methods ----

--- Methods of tensors
-- @section methods

--- The number of dimensions: 2 for a matrix, 1 for a vector.
function methods:dim() return tensor.check("dim", "the tensor", self).c.rank end

--- The number of elements.
function methods:numel()
  tensor.check("numel", "the tensor", self)
  return rows_of(self) * columns_of(self)
end

--- The extent of one dimension, or without an argument the shape.
-- @tparam[opt] number dim 1 or 2
function methods:size(dim)
  tensor.check("size", "the tensor", self)
  if dim == nil then return self.shape end
  check.integer("size", "dim", dim, 1, self.c.rank)
  return tonumber(self.c.shape[dim - 1])
end

--- The bytes that the elements take, without gaps between rows.
function methods:bytes()
  tensor.check("bytes", "the tensor", self)
  return rows_of(self) * columns_of(self) * info_of(self).bytes
end

--- A typed C pointer to the first element (uint16_t for the half types, float for float32), in the memory of the
-- tensor's device. It counts from 0, ignores the shape and does not keep the tensor alive. A float NaN with a payload
-- is not safe to read through it (LuaJIT keeps types in the payloads of NaNs); @{methods:get} and @{methods:totable}
-- are.
function methods:data()
  tensor.check("data", "the tensor", self)
  local dtype = info_of(self)
  return ffi.cast(dtype.name == "float32" and "float *" or dtype.pointer, self.c.data)
end

--- Whether the rows lie one after the other without gaps.
function methods:is_contiguous()
  check_rows("is_contiguous", self)
  return rows_of(self) <= 1 or self.c.stride == self.c.shape[1]
end

--- The tensor itself when it is contiguous, else a contiguous copy.
function methods:contiguous() return self:is_contiguous() and self or self:clone() end

--- A contiguous copy on the same device.
function methods:clone()
  check_rows("clone", self)
  return copy("clone", like("clone", self), self)
end

--- Copies the elements of another tensor of the same shape into this one, between devices too. Between CPU tensors the
-- dtypes may differ: values are rounded to the nearest; from float to int is an error. A copy between GPU tensors is
-- enqueued, any other is done on return.
-- @tparam tensor src
-- @tparam[opt] stream stream for copies with a GPU
-- @treturn tensor self
-- @raise for shapes that differ, and from float to int
function methods:copy_(src, stream)
  check_rows("copy_", self)
  check_rows("copy_", src, "the source")
  return copy("copy_", self, src, devices.stream_handle("copy_", stream))
end

local function convert(t, dtype)
  t = t:to("cpu")
  return copy("to", alloc("to", t.c.rank, rows_of(t), columns_of(t), dtype, CPU), t)
end

--- The tensor on another device, as another dtype, or both; itself when nothing changes.
-- @tparam string where "cpu", "cuda", "cuda:1" or a dtype such as "float32"
-- @tparam[opt] string also the other of the two
-- @treturn tensor
-- @raise for an unknown name, from float to int, and where there is no such device
function methods:to(where, also)
  tensor.check("to", "the tensor", self)
  local device, dtype = self.c.device, info_of(self)
  for i = 1, also == nil and 1 or 2 do
    local name = i == 1 and where or also
    if enums.dtypes[name] then
      dtype = enums.dtypes[name]
    elseif type(name) == "string" and (name == "cpu" or name:find("^cuda")) then
      device = enums.device("to", "the device", name)
    else
      check.raise("to", "the target is %s, expected a device (\"cpu\", \"cuda:0\") or a dtype (\"float16\")",
        check.describe(name))
    end
  end
  if dtype == info_of(self) and device == self.c.device then return self end
  check_rows("to", self)
  local t = dtype == info_of(self) and self or convert(self, dtype)
  return device == t.c.device and t or copy("to", like("to", t, device), t)
end

--- Some rows or columns as a view of the same memory.
-- @tparam number dim 1 (rows, or the elements of a vector) or 2 (columns)
-- @tparam number first the first one, counted from 1
-- @tparam number length how many
-- @treturn tensor
-- @raise for a range that is not inside the tensor
function methods:narrow(dim, first, length)
  check_rows("narrow", self)
  check.integer("narrow", "dim", dim, 1, self.c.rank)
  local extent = tonumber(self.c.shape[dim - 1])
  check.integer("narrow", "first", first, 1, extent + 1)
  check.integer("narrow", "length", length, 0, extent - first + 1)
  local view = Tensor()
  binding.check("narrow", lib.int4mm_tensor_narrow(view.c, self.c, dim - 1, first - 1, length))
  owners[view] = owners[self]
  return view
end

-- The place of element (i, j), checked: a dtype description, a pointer and an offset in elements.
local function element(name, t, i, j)
  check_rows(name, t)
  local offset
  if t.c.rank == 1 then
    if j ~= nil then check.raise(name, "a vector has one index, two were given") end
    offset = check.integer(name, "the index", i, 1, rows_of(t)) - 1
  else
    check.integer(name, "the row", i, 1, rows_of(t))
    check.integer(name, "the column", j, 1, columns_of(t))
    offset = (i - 1) * tonumber(t.c.stride) + j - 1
  end
  local dtype = info_of(t)
  return dtype, ffi.cast(dtype.pointer, t.c.data), offset
end

-- One element of a GPU tensor as a CPU tensor over `view`, which shares the GPU's memory.
local function element_view(t, i, j)
  if t.c.rank == 1 then return t:narrow(1, i, 1) end
  return t:narrow(1, i, 1):narrow(2, j, 1)
end

--- One element as a Lua number. From a GPU this is a copy of its own, and slow: take @{totable} for many.
-- @tparam number i row, or index of a vector, counted from 1
-- @tparam[opt] number j column, counted from 1
-- @treturn number
-- @raise for an index outside the tensor
function methods:get(i, j)
  local dtype, data, offset = element("get", self, i, j)
  if self.c.device ~= CPU then
    local here = element_view(self, i, j):to("cpu")
    return dtype.decode(ffi.cast(dtype.pointer, here.c.data)[0])
  end
  return dtype.decode(data[offset])
end

--- Sets one element.
-- @tparam number i row, or index of a vector
-- @param j column (none for a vector)
-- @param value a number
-- @treturn tensor self
-- @raise for an index outside the tensor, and for a value that the dtype cannot hold
function methods:set(i, j, value)
  if ffi.istype(Tensor, self) and self.c.rank == 1 then
    check.integer("set", "the number of arguments", value == nil and 2 or 3, 2, 2)
    value, j = j, nil
  end
  local dtype, data, offset = element("set", self, i, j)
  local bits = tensor.encode("set", dtype, value, self.c.rank, i, j or i)
  if self.c.device ~= CPU then
    local view = element_view(self, i, j)
    local here = like("set", view, CPU)
    ffi.cast(dtype.pointer, here.c.data)[0] = bits
    copy("set", view, here)
  else
    data[offset] = bits
  end
  return self
end

--- Sets every element to one value.
-- @tparam number value
-- @treturn tensor self
function methods:fill_(value)
  check_rows("fill_", self)
  local dtype = info_of(self)
  if type(value) ~= "number" then check.raise("fill_", "the value is %s, expected a number", check.describe(value)) end
  local bits = tensor.encode("fill_", dtype, value, self.c.rank, 1, 1)
  local here = self.c.device ~= CPU and like("fill_", self, CPU) or self
  local data, stride = ffi.cast(dtype.pointer, here.c.data), tonumber(here.c.stride)
  for i = 0, rows_of(self) - 1 do
    for j = i * stride, i * stride + columns_of(self) - 1 do data[j] = bits end
  end
  return here == self and self or copy("fill_", self, here)
end

--- Sets every byte of every element: a poison for memory that is to be overwritten.
-- @tparam number byte 0 .. 255
-- @tparam[opt] stream stream
-- @treturn tensor self
function methods:fill_bytes_(byte, stream)
  check_rows("fill_bytes_", self)
  check.integer("fill_bytes_", "the byte", byte, 0, 255)
  binding.check("fill_bytes_", lib.int4mm_tensor_fill_bytes(self.c, byte, devices.stream_handle("fill_bytes_", stream)))
  return self
end

--- The elements as Lua numbers: a table for a vector, a table of rows for a matrix.
-- @treturn table
function methods:totable()
  check_rows("totable", self)
  local here = self:to("cpu")
  local decode, data = info_of(here).decode, ffi.cast(info_of(here).pointer, here.c.data)
  local rows, columns, stride = rows_of(here), columns_of(here), tonumber(here.c.stride)
  local result = {}
  if here.c.rank == 1 then
    for i = 1, rows do result[i] = decode(data[i - 1]) end
    return result
  end
  for i = 1, rows do
    local row = {}
    for j = 1, columns do row[j] = decode(data[(i - 1) * stride + j - 1]) end
    result[i] = row
  end
  return result
end

--- Whether another tensor has the same shape, dtype and bits; devices may differ.
-- @tparam tensor other
-- @treturn boolean
-- @treturn ?string where they are not: how they differ, with the first element that does
function methods:equal(other)
  check_rows("equal", self)
  check_rows("equal", other, "the other tensor")
  local x, y = self, other
  if x.dtype ~= y.dtype then return false, ("the dtypes are %s and %s"):format(x.dtype, y.dtype) end
  if x.c.rank ~= y.c.rank or x.c.shape[0] ~= y.c.shape[0] or x.c.shape[1] ~= y.c.shape[1] then
    return false, ("the shapes are %s and %s"):format(shape_text(x), shape_text(y))
  end
  x, y = x:to("cpu"), y:to("cpu")
  local dtype, columns = info_of(x), columns_of(x)
  local p, q = ffi.cast(dtype.pointer, x.c.data), ffi.cast(dtype.pointer, y.c.data)
  for i = 0, rows_of(x) - 1 do
    local row, row_y = p + i * x.c.stride, q + i * y.c.stride
    if ffi.C.int4mm_memcmp(row, row_y, columns * dtype.bytes) ~= 0 then
      local j = 0
      while row[j] == row_y[j] do j = j + 1 end
      local where = x.c.rank == 2 and place(2, i + 1, j + 1) or place(1, 1, i + 1)
      return false, ("%s: %.9g and %.9g, bits 0x%x and 0x%x"):format(where, dtype.decode(row[j]),
        dtype.decode(row_y[j]), tonumber(row[j]) % 2 ^ (8 * dtype.bytes), tonumber(row_y[j]) % 2 ^ (8 * dtype.bytes))
    end
  end
  return true
end

--- Gives the memory back now instead of when the tensor is collected. Views of it keep it. Harmless when done twice;
-- any other use of a freed tensor is an error.
function methods:free()
  if not ffi.istype(Tensor, self) then
    check.raise("free", "the tensor is %s, expected a tensor", check.describe(self))
  end
  lib.int4mm_tensor_release(self.c)
  owners[self] = nil
end

-- ---- the metatype ----

local metatable = { __name = "int4mm.tensor" }

function metatable.__index(t, key)
  local method = methods[key]
  if method then return method end
  local field = fields[key]
  if field then return field(tensor.check(key, "the tensor", t)) end
  return check.raise("tensor", "there is no field or method %s", check.describe(key))
end

function metatable.__newindex(_, key)
  check.raise("tensor", "%s cannot be assigned; use set, fill_ or copy_ for elements", check.describe(key))
end

function metatable.__tostring(t)
  if t.c.rank == 0 then return "tensor(freed)" end
  local suffix = ("dtype=%s, device=%s, shape=%s"):format(t.dtype, t.device, shape_text(t))
  if t.c.layout ~= enums.ROWS then return ("tensor(prepacked, %s)"):format(suffix) end
  return print_tensor(t, info_of(t).low ~= nil, suffix)
end

-- A closure that holds the library: the C function itself could be gone when the last tensors are collected.
function metatable.__gc(t) lib.int4mm_tensor_release(t.c) end

ffi.metatype(Tensor, metatable)

return tensor
