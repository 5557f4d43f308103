--- Shapes of tensors: views in another shape, transposing, joining, picking rows and columns.
--
-- The names are PyTorch's. A tensor has rows with a stride and no stride of columns, so that `t` and `index_select`
-- make copies; `view` and `rows` share memory, and `reshape` does where it can. Everything takes tensors on the CPU and
-- on GPUs, where work is enqueued.
--
-- **Packed tensors** keep their `packing` as long as it stays true: transposing turns it to the other dimension, `cat`
-- and `index_select` along the dimension that is not packed leave it, `cat` along the packed one adds the lengths.
-- What would break it is refused.
-- @module int4mm.shape

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local enums = require "int4mm.enums"
local tensor = require "int4mm.tensor"

local lib = binding.lib
local methods, check_rows, info_of = tensor.methods, tensor.check_rows, tensor.info_of
local shape = {}

local function rows_of(t) return tonumber(t.c.shape[0]) end
local function columns_of(t) return tonumber(t.c.shape[1]) end

--- Methods of tensors
-- @section methods

-- ---- views ----

-- rank, rows, columns of a shape given as numbers or as one table, of which one size may be -1.
local function target_shape(name, t, rows, columns)
  if type(rows) == "table" and columns == nil then
    if rows[3] ~= nil then check.raise(name, "a tensor has one or two dimensions, the shape given has more") end
    rows, columns = rows[1], rows[2]
  end
  local rank, count = columns == nil and 1 or 2, rows_of(t) * columns_of(t)
  local first, second = rank == 2 and "the number of rows" or "the length", "the number of columns"
  check.integer(name, first, rows, -1)
  if rank == 2 then check.integer(name, second, columns, -1) else columns = 1 end
  if rows == -1 and columns == -1 then check.raise(name, "both sizes are -1, expected one of them to be given") end
  local known = rows == -1 and columns or columns == -1 and rows or nil
  if known then
    local unknown = rows == -1 and first or second
    if known == 0 then check.raise(name, "%s is -1, which does not follow from an extent of 0", unknown) end
    if count % known ~= 0 then
      check.raise(name, "%s is -1, but %.0f elements are no multiple of %.0f", unknown, count, known)
    end
    if rows == -1 then rows = count / known else columns = count / known end
  end
  return rank, rows, columns
end

--- The elements in another shape, row by row, as a view of the same memory.
-- @tparam number|table rows or the length of a vector, or `{ rows, columns }` or `{ length }`; one size may be -1,
--   which is found from the number of elements
-- @tparam[opt] number columns none for a vector
-- @treturn tensor
-- @raise for another number of elements, for rows with gaps between them (`reshape` copies those), and for packed words
--   in another shape
function methods:view(rows, columns)
  check_rows("view", self)
  return tensor.view("view", self, target_shape("view", self, rows, columns))
end

--- The elements in another shape, row by row: a view as of @{methods:view}, or where rows have gaps between them, of a
-- contiguous copy.
-- @tparam number|table rows as in @{methods:view}
-- @tparam[opt] number columns
-- @treturn tensor
-- @raise for another number of elements, and for packed words in another shape
function methods:reshape(rows, columns)
  check_rows("reshape", self)
  local rank, height, width = target_shape("reshape", self, rows, columns)
  local same = rank == self.c.rank and height == rows_of(self) and width == columns_of(self)
  -- what will be refused is not copied first
  if same or tensor.is_contiguous(self) or tensor.is_marked(self) or height * width ~= rows_of(self) * columns_of(self)
  then
    return tensor.view("reshape", self, rank, height, width)
  end
  return tensor.view("reshape", tensor.clone("reshape", self), rank, height, width)
end

--- The rows one by one, as vectors that share the matrix's memory: `for i, row in t:rows() do`.
-- @treturn function the iterator
-- @raise for a vector, and for packed words, whose rows as vectors could not say how they are packed (`narrow(1, i, 1)`
--   gives a row that does)
function methods:rows()
  check_rows("rows", self)
  if self.c.rank ~= 2 then check.raise("rows", "the tensor is %s, expected a matrix", tensor.shape_text(self)) end
  if tensor.is_marked(self) then
    check.raise("rows", "the tensor is %s, which rows as vectors could not say; narrow(1, i, 1) gives a row that does",
      tensor.packing_text(self))
  end
  local function next_row(t, i)
    if i >= rows_of(t) then return nil end
    return i + 1, tensor.view("rows", tensor.narrow("rows", t, 1, i + 1, 1), 1, columns_of(t), 1)
  end
  return next_row, self, 0
end

-- ---- copies ----

-- The options' stream, for a device.
local function stream_of(name, opts, t)
  opts = check.options(name, opts, { "stream" })
  return devices.stream_handle(name, opts.stream, t.c.device)
end

--- The transposed matrix, as a copy: unlike PyTorch's it does not share memory. Packed words become packed along the
-- other dimension, so that a weight for `layout_b = "nk"` becomes one for "kn" and the other way round.
-- @tparam[opt] table opts `stream`
-- @treturn tensor [C, R] of a matrix [R, C]
-- @raise for a vector
function methods:t(opts)
  check_rows("t", self)
  local stream = stream_of("t", opts, self)
  if self.c.rank ~= 2 then check.raise("t", "the tensor is %s, expected a matrix", tensor.shape_text(self)) end
  local out = tensor.alloc("t", 2, columns_of(self), rows_of(self), info_of(self), self.c.device)
  binding.check("t", lib.int4mm_transpose(out.c, self.c, stream))
  tensor.keep(self, opts)
  return out
end

-- Indices from 1 in a table, as an int32 tensor of what counts from 0.
local function indices_of_table(list, extent)
  local t = tensor.alloc("index_select", 1, #list, 1, enums.dtypes.int32, enums.CPU)
  local data = ffi.cast("int32_t *", t.c.data)
  for i = 1, #list do data[i - 1] = check.integer("index_select", ("indices[%d]"):format(i), list[i], 1, extent) - 1 end
  return t
end

-- Checked on the CPU where they are there, since a GPU would not tell.
local function check_indices(indices, extent)
  if indices.c.device ~= enums.CPU then return end
  local data = ffi.cast("int32_t *", indices.c.data)
  for i = 0, rows_of(indices) - 1 do
    if data[i] < 0 or data[i] >= extent then
      check.raise("index_select", "indices holds %d at index %d: the tensor has %d, counted from 0", data[i], i + 1,
        extent)
    end
  end
end

--- Rows or columns by their indices, in their order and as often as they are named: what an embedding does with the
-- rows of its table.
--
-- **A Lua table of indices counts from 1, as Lua does; an int32 tensor counts from 0**, as C and PyTorch do and as ids
-- of tokens and what @{int4mm.elementwise.argmax|argmax} gives are.
-- @tparam number dim 1 (rows, or the elements of a vector) or 2 (columns)
-- @tparam tensor|table indices a vector of int32, or a table of whole numbers; those on the CPU are checked. For
--   indices on a GPU nobody waits: what one outside the tensor would give is NaN, in integer tensors -1, and nothing is
--   read there
-- @tparam[opt] table opts `stream`
-- @treturn tensor
-- @raise for an index outside the tensor, and along the packed dimension
function methods:index_select(dim, indices, opts)
  local name = "index_select"
  check_rows(name, self)
  check.integer(name, "dim", dim, 1, self.c.rank)
  local stream, extent = stream_of(name, opts, self), tonumber(self.c.shape[dim - 1])
  if type(indices) == "table" then
    indices = indices_of_table(indices, extent)
  else
    check_rows(name, indices, "indices")
    if indices.c.rank ~= 1 or indices.dtype ~= "int32" then
      check.raise(name, "indices is %s, expected a vector of int32 or a table", check.describe(indices))
    end
    if self.c.device ~= enums.CPU then check_indices(indices, extent) end
  end
  indices = tensor.convert(name, indices, self.c.device, enums.dtypes.int32, opts and { stream = opts.stream })
  local n = rows_of(indices)
  local rows, columns = dim == 1 and n or rows_of(self), dim == 2 and n or columns_of(self)
  local out = tensor.alloc(name, self.c.rank, rows, columns, info_of(self), self.c.device)
  binding.check(name, lib.int4mm_gather(out.c, self.c, indices.c, dim - 1, stream))
  tensor.keep(self, indices, opts)
  return out
end

--- Functions
-- @section functions

-- "[2, 3] int8"
local function text_of(t) return tensor.shape_text(t) .. " " .. t.dtype end

-- Raises unless a tensor of the list can stand beside the first.
local function check_fits(t, first, i, dim)
  local what = ("tensor %d"):format(i)
  check_rows("cat", t, what)
  if t.c.device ~= first.c.device then
    check.raise("cat", "%s is on %s but tensor 1 is on %s", what, t.device, first.device)
  end
  local across = 2 - dim -- the index of the other extent
  if t.c.rank ~= first.c.rank or t.c.dtype ~= first.c.dtype
    or (t.c.rank == 2 and t.c.shape[across] ~= first.c.shape[across]) then
    check.raise("cat", "%s is %s but tensor 1 is %s; they may differ along dim %d alone", what, text_of(t),
      text_of(first), dim)
  end
end

-- The number of values along dim of tensors that are packed alike; 0 where it is not known. nil, with the reason, where
-- joined they would not be packed any more.
local function joined_length(list, dim)
  local first, length = list[1], 0
  if not tensor.is_marked(first) then
    for i, t in ipairs(list) do
      local text = tensor.packing_text(t)
      if text then return nil, ("tensor %d is %s but tensor 1 is not packed"):format(i, text) end
    end
    return 0
  end
  for i, t in ipairs(list) do
    local text = tensor.packing_text(t)
    if t.c.packing ~= first.c.packing or t.c.encoding ~= first.c.encoding
      or t.c.packed_rotate ~= first.c.packed_rotate or t.c.packed_with ~= first.c.packed_with then
      return nil, ("tensor %d is %s but tensor 1 is %s"):format(i, text or "not packed", tensor.packing_text(first))
    end
    if first.c.packing ~= dim and t.c.packed_k ~= first.c.packed_k then
      return nil, ("tensor %d is %s but tensor 1 is %s"):format(i, text, tensor.packing_text(first))
    end
    if first.c.packing == dim and i < #list and t.c.packed_k ~= 8 * t.c.shape[dim - 1] then
      return nil, ("tensor %d is %s, so its last word may not be full, and others follow it"):format(i, text)
    end
    length = length + tonumber(t.c.packed_k)
  end
  if first.c.packing ~= dim then return tonumber(first.c.packed_k) end
  local last = list[#list]
  return (last.c.packed_k > 0 or last.c.shape[dim - 1] == 0) and length or 0
end

-- Tensors joined along dim, known to fit, into a new one.
local function join(list, dim, total, opts)
  local first, at = list[1], 1
  local rows, columns = dim == 1 and total or rows_of(first), dim == 2 and total or columns_of(first)
  local out = tensor.alloc("cat", first.c.rank, rows, columns, info_of(first), first.c.device)
  for _, t in ipairs(list) do
    local extent = tonumber(t.c.shape[dim - 1])
    tensor.copy("cat", tensor.narrow("cat", out, dim, at, extent), t, opts)
    at = at + extent
  end
  return out
end

--- Tensors one after the other, as a new one.
-- @tparam table list one tensor or more, of one dtype and rank, on one device, alike in the other dimension
-- @tparam[opt=1] number dim along which: 1 (below each other, or vectors) or 2 (side by side)
-- @tparam[opt] table opts `stream`
-- @treturn tensor
-- @raise for tensors that do not fit; for packed ones beside others, and where one with a last word that is not full
--   would be followed along the packed dimension
function shape.cat(list, dim, opts)
  if type(list) ~= "table" or #list == 0 then
    check.raise("cat", "the list is %s, expected a table of one tensor or more",
      type(list) == "table" and "empty" or check.describe(list))
  end
  opts = check.options("cat", opts, { "stream" })
  local first = check_rows("cat", list[1], "tensor 1")
  dim = check.integer("cat", "dim", check.default(dim, 1), 1, first.c.rank)
  local total = 0
  for i = 1, #list do
    check_fits(list[i], first, i, dim)
    total = total + tonumber(list[i].c.shape[dim - 1])
  end
  local length, reason = joined_length(list, dim)
  if not length then check.raise("cat", "%s; take the marks away, or unpack first", reason) end
  local out = join(list, dim, total, opts)
  if tensor.is_marked(first) then
    tensor.mark("cat", out, first.c.packing, first.c.encoding, length)
    out.c.packed_rotate = first.c.packed_rotate -- a rotated length is whole blocks, so they stay so side by side
    out.c.packed_with = first.c.packed_with
  end
  return out
end

return shape
