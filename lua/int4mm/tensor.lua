--- Tensors: matrices and vectors of int32, int8, float16, bfloat16 or float32, in host or GPU memory.
--
-- A tensor is a C struct held by value; its memory is counted by references, so views share it, and goes when the last
-- tensor over it is collected or freed. Fields, all for reading: `shape` ({ rows, columns } or { length }), `dtype`
-- ("float16"), `device` ("cpu", "cuda:0"), `stride` (elements from one row to the next), `layout` ("rows", or "panels"
-- for a prepacked weight, whose elements cannot be read), `packing` (see below), `pinned` (whether it lies in
-- page-locked host memory, which a GPU reads and writes by itself). Indices and dimensions count from 1.
--
-- **A packed tensor knows how it was packed.** What `pack_int4_to_int32`, `quantize`, `prepack` and
-- `generate_test_data` return has `packing` = `{ dim =, encoding =, length =, rotate =, with = }`: the dimension that
-- is packed eight to a word, the nibbles' encoding, how many values there are along it (nil where it is not known), of
-- which the last word may hold fewer than eight, the block that `quantize` rotated by (nil for none), and what it wrote
-- beside the scales ("zeros" or "factors", nil for neither). Products, `unpack_int32_to_int4` and `dequantize` take
-- options that are left out from there, refuse those that contradict it, and ask for zeros and factors. Words from
-- elsewhere have no `packing` and are read as the options say; @{methods:mark_} gives them one. Copies and views have
-- the packing of what they were made from; @{methods:set} leaves it, and what writes all words anew (`fill_`,
-- `fill_bytes_`, `random`, `copy_` from words without one) takes it away. What would break the packing (another shape,
-- rows as vectors, elements picked along the packed dimension) is refused: unpack first, or take the mark away with
-- @{methods:unmark_}.
--
-- More methods: shapes and rearranging in @{int4mm.shape}, sums and comparisons with a tolerance in @{int4mm.reduce}.
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

-- Its metatable is set at the end of this file. Tensors are held by value: with a pointer in hand, p[1] would be
-- pointer arithmetic.
local Tensor = ffi.typeof("int4mm_lua_tensor")
local events, methods, fields = {}, {}, {}
tensor.methods = methods -- int4mm.shape and int4mm.reduce add theirs

local function info_of(t) return enums.dtypes[enums.dtype_names[t.c.dtype]] end

tensor.info_of = info_of

local function rows_of(t) return tonumber(t.c.shape[0]) end
local function columns_of(t) return tonumber(t.c.shape[1]) end

--- Whether a value is a tensor (freed ones included).
function tensor.is_tensor(value) return ffi.istype(Tensor, value) end

--- A tensor with nothing in it yet, for the core to fill.
-- @local
function tensor.released() return Tensor() end

-- What must outlive a tensor over borrowed memory: { pointer, owner } by tensor. Keys are weak and values strong, so an
-- owner that keeps its tensor keeps the entry: a tensor is no table that could hold the owner itself.
local owners = binding.kept_table("owners", "k")
tensor.owners = owners

-- While a CUDA graph is captured, `owners` is the set of what its tensors over borrowed memory need: the core keeps the
-- memory that it knows the owner of, so the graph has to keep these (int4mm.graph).
local capture = binding.kept_table("capture")
tensor.capture = capture

--- Checks that an argument is a tensor that has not been freed, and returns it.
-- @tparam string name the function that the user called
-- @tparam string what the argument
-- @param value what it was
-- @local
function tensor.check(name, what, value)
  if not ffi.istype(Tensor, value) then
    check.raise(name, "%s is %s, expected a tensor%s", what, check.describe(value),
      type(value) == "table" and " (int4mm.tensor makes one from a table)" or "")
  end
  if value.c.rank == 0 then check.raise(name, "%s was freed", what) end
  if capture.owners and owners[value] then capture.owners[owners[value]] = true end
  return value
end

-- "[2, 3]"
local function shape_text(t) return "[" .. table.concat(t.shape, ", ") .. "]" end
tensor.shape_text = shape_text

check.describe_type(Tensor, function(t)
  return t.c.rank == 0 and "a freed tensor" or ("a tensor %s %s"):format(shape_text(t), t.dtype)
end)

-- As tensor.check, for methods that look at elements.
local function check_rows(name, value, what)
  tensor.check(name, what or "the tensor", value)
  if value.c.layout ~= enums.ROWS then
    check.raise(name, "%s is prepacked; its elements cannot be read or written: keep the words that it was made from",
      what or "the tensor")
  end
  return value
end
tensor.check_rows = check_rows

-- C and loops over elements have pointers into tensors, which the collector cannot follow: a function that ends with
-- keep(tensors) has them live until there, for the interpreter and for compiled code.
local function keep() end
tensor.keep = keep

-- ---- making tensors ----

local function try_alloc(t, rank, rows, columns, dtype, device)
  return lib.int4mm_tensor_alloc(t.c, rank, rows, columns, dtype, device)
end

local function try_alloc_pinned(t, rank, rows, columns, dtype)
  return lib.int4mm_tensor_alloc_pinned(t.c, rank, rows, columns, dtype)
end

-- Allocates; dtype is a description from enums, device the core's number. Pinned memory is the CPU's.
local function alloc(name, rank, rows, columns, dtype, device, pinned)
  local t = Tensor()
  local bytes = rows * columns * dtype.bytes
  binding.check(name, memory.with_room(device, bytes, pinned and try_alloc_pinned or try_alloc, t, rank, rows, columns,
    dtype.id, device))
  return t
end
tensor.alloc = alloc

local function like(name, t, device, pinned)
  return alloc(name, t.c.rank, rows_of(t), columns_of(t), info_of(t), device or t.c.device, pinned)
end
tensor.like = like

local no_options = {}

-- dst = src. opts: `stream`, by default the current one of the GPU that takes part, and `non_blocking`.
local function copy(name, dst, src, opts)
  opts = opts or no_options
  local gpu = dst.c.device ~= CPU and dst.c.device or src.c.device
  local stream = devices.stream_handle(name, opts.stream, gpu)
  if opts.non_blocking then
    binding.check(name, lib.int4mm_tensor_copy_async(dst.c, src.c, stream))
  else
    binding.check(name, lib.int4mm_tensor_copy(dst.c, src.c, stream))
  end
  return dst
end
tensor.copy = copy

-- Floats on a GPU in another float dtype, there: a product with 1, which rounds as a copy on the CPU does.
local function convert_floats(name, t, dtype, opts)
  local out, args = alloc(name, t.c.rank, rows_of(t), columns_of(t), dtype, t.c.device), ffi.new "int4mm_map_args"
  args.src, args.out, args.number, args.op = t.c, out.c, 1, lib.INT4MM_MUL
  args.stream = devices.stream_handle(name, opts and opts.stream, t.c.device)
  binding.check(name, lib.int4mm_map(args))
  keep(t)
  return out
end

-- The tensor on a device in a dtype (a description from enums), itself when nothing changes; opts as of copy. On a GPU
-- floats become other floats; all else is converted on the CPU, which waits.
local function convert(name, t, device, dtype, opts)
  if dtype == info_of(t) and device == t.c.device then return t end
  check_rows(name, t)
  if dtype ~= info_of(t) and device ~= CPU and device == t.c.device and not (dtype.low or info_of(t).low) then
    return convert_floats(name, t, dtype, opts)
  end
  if dtype ~= info_of(t) then
    local here = convert(name, t, CPU, info_of(t), opts and { stream = opts.stream })
    t = copy(name, alloc(name, t.c.rank, rows_of(t), columns_of(t), dtype, CPU), here)
  end
  if device == t.c.device then return t end
  local pinned = device == CPU and opts ~= nil and opts.non_blocking or false
  return copy(name, like(name, t, device, pinned), t, opts)
end
tensor.convert = convert

--- The tensor in pinned host memory; itself where it is.
-- @tparam string name the function that the user called
-- @tparam tensor t on the CPU
-- @local
function tensor.pin(name, t)
  check_rows(name, t)
  if t.c.device ~= CPU then
    check.raise(name, "the tensor is on %s, expected one on the CPU: pinned memory is the host's", t.device)
  end
  return t.pinned and t or copy(name, like(name, t, CPU, true), t)
end

--- The tensor on the CPU; itself where it is.
local function on_cpu(name, t) return convert(name, t, CPU, info_of(t)) end
tensor.on_cpu = on_cpu

local function clone(name, t)
  check_rows(name, t)
  return copy(name, like(name, t), t)
end
tensor.clone = clone

-- ---- numbers ----

-- the position of an element, for messages
local function position(rank, i, j)
  return rank == 2 and ("row %d, column %d"):format(i, j) or ("index %d"):format(j)
end

-- " at row 1, column 2", or nothing for a value that is for all elements
local function at(rank, i, j) return rank and " at " .. position(rank, i, j) or "" end

--- The bits of a number in a dtype, or a raise that names its position (none, without rank, i and j).
-- @local
function tensor.encode(name, dtype, x, rank, i, j)
  if type(x) ~= "number" then
    check.raise(name, "the value%s is %s, expected a number", at(rank, i, j), check.describe(x))
  end
  if dtype.low then
    if x % 1 ~= 0 or x < dtype.low or x > dtype.high then
      check.raise(name, "the value %s%s does not fit %s (whole numbers from %d to %d)", check.describe(x),
        at(rank, i, j), dtype.name, dtype.low, dtype.high)
    end
    return x
  end
  local bits = dtype.encode(x)
  if math.abs(x) < math.huge and math.abs(dtype.decode(bits)) == math.huge then
    check.raise(name, "the value %s%s is too large for %s", check.describe(x), at(rank, i, j), dtype.name)
  end
  return bits
end

-- ---- marks ----

local function is_marked(t) return t.c.packing ~= enums.UNMARKED end
tensor.is_marked = is_marked

-- packing is 1 or 2, the dimension, or enums.UNMARKED; a length of 0 is not known
local function mark(name, t, packing, encoding, length)
  binding.check(name, lib.int4mm_tensor_mark(t.c, packing, encoding, length))
  return t
end
tensor.mark = mark

-- What quantize wrote beside the scales, by int4mm_packed_with.
local BESIDE = { "zeros", "factors" }

--- How a tensor is packed, in words: "int4 packed along dim 2, K = 60, offset"; nil where it has no mark.
-- @local
function tensor.packing_text(t)
  if not is_marked(t) then return nil end
  local known = t.c.packed_k > 0 and (", K = %d"):format(tonumber(t.c.packed_k)) or ""
  local rotated = t.c.packed_rotate > 0 and (", rotated by %d"):format(t.c.packed_rotate) or ""
  if t.c.packed_with > 0 then rotated = ("%s, with %s"):format(rotated, BESIDE[t.c.packed_with]) end
  return ("int4 packed along dim %d%s, %s%s"):format(t.c.packing, known, enums.encoding_names[t.c.encoding], rotated)
end

-- ---- filling ----

-- Sets every element to one value.
function tensor.fill(name, t, value)
  check_rows(name, t)
  local dtype, rows, columns = info_of(t), rows_of(t), columns_of(t)
  local bits = tensor.encode(name, dtype, value)
  if is_marked(t) then mark(name, t, enums.UNMARKED, 0, 0) end
  if rows * columns == 0 then return t end
  local here = t.c.device == CPU and t or like(name, t, CPU)
  local data, stride = ffi.cast(dtype.pointer, here.c.data), tonumber(here.c.stride)
  for i = 0, rows - 1 do
    for j = i * stride, i * stride + columns - 1 do data[j] = bits end
  end
  keep(here)
  return here == t and t or copy(name, t, here)
end

-- ---- views ----

-- Rows (dim 1) or columns from `first` on, which are inside the tensor.
local function narrow(name, t, dim, first, length)
  local view = Tensor()
  binding.check(name, lib.int4mm_tensor_narrow(view.c, t.c, dim - 1, first - 1, length))
  owners[view] = owners[t]
  return view
end
tensor.narrow = narrow

--- The elements, which lie without gaps, in another shape: a view.
-- @tparam string name the function that the user called
-- @tparam tensor t
-- @tparam number rank
-- @tparam number rows
-- @tparam number columns 1 for a vector
-- @local
function tensor.view(name, t, rank, rows, columns)
  local view = Tensor()
  binding.check(name, lib.int4mm_tensor_view(view.c, t.c, rank, rows, columns))
  owners[view] = owners[t]
  return view
end

-- ---- fields ----

function fields.shape(t)
  if t.c.rank == 2 then return { rows_of(t), columns_of(t) } end
  return { rows_of(t) }
end
function fields.dtype(t) return enums.dtype_names[t.c.dtype] end
function fields.device(t) return enums.device_name(t.c.device) end
function fields.stride(t) return tonumber(t.c.stride) end
function fields.layout(t) return enums.layout_names[t.c.layout] end
function fields.pinned(t) return lib.int4mm_tensor_is_pinned(t.c) == 1 end

function fields.packing(t)
  if not is_marked(t) then return nil end
  local k = tonumber(t.c.packed_k)
  return {
    dim = t.c.packing, encoding = enums.encoding_names[t.c.encoding], length = k > 0 and k or nil,
    rotate = t.c.packed_rotate > 0 and t.c.packed_rotate or nil, with = BESIDE[t.c.packed_with],
  }
end

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

local function is_contiguous(t) return rows_of(t) <= 1 or columns_of(t) == 0 or t.c.stride == t.c.shape[1] end
tensor.is_contiguous = is_contiguous

--- Whether the rows lie one after the other without gaps.
function methods:is_contiguous()
  check_rows("is_contiguous", self)
  return is_contiguous(self)
end

--- The tensor itself when it is contiguous, else a contiguous copy.
function methods:contiguous()
  check_rows("contiguous", self)
  return is_contiguous(self) and self or clone("contiguous", self)
end

--- A contiguous copy on the same device.
function methods:clone() return clone("clone", self) end

-- { stream =, non_blocking = }, checked; a stream by itself is one too.
local function copy_options(name, opts)
  if type(opts) ~= "table" then return { stream = opts } end
  check.options(name, opts, { "stream", "non_blocking" })
  return { stream = opts.stream, non_blocking = check.boolean(name, "non_blocking", opts.non_blocking, false) }
end

--- Copies the elements of another tensor of the same shape into this one, between devices too. Between CPU tensors the
-- dtypes may differ: values are rounded to the nearest; from float to int is an error. A copy between GPU tensors is
-- enqueued, any other is done on return, unless it is non-blocking.
-- @tparam tensor src
-- @param[opt] opts the stream for copies with a GPU, or a table: `stream`; `non_blocking` (false): true enqueues a copy
--   between pinned host memory and a GPU as well. Until the stream has come to it, pinned memory that is copied from
--   must not be written to, and what is copied to must not be read; freeing it waits. Host memory that is not pinned is
--   waited for as ever.
-- @treturn tensor self
-- @raise for shapes that differ, and from float to int
function methods:copy_(src, opts)
  check_rows("copy_", self)
  check_rows("copy_", src, "the source")
  return copy("copy_", self, src, copy_options("copy_", opts))
end

--- A copy in pinned (page-locked) host memory; itself where it is in such memory. Copies between that and a GPU are
-- faster, and with `non_blocking` nobody waits for them. Pinned memory is taken from what the system can swap: pin what
-- is copied often.
-- @treturn tensor
-- @raise for a tensor on a GPU, and where CUDA is not available
function methods:pin() return tensor.pin("pin", self) end

-- The device's number or the dtype that a name stands for, the other of the two nil.
local function target_of(name)
  if enums.dtypes[name] then return nil, enums.dtypes[name] end
  if type(name) == "string" and (name == "cpu" or name:find("^cuda")) then
    return enums.device("to", "the device", name)
  end
  check.raise("to", "the target is %s, expected a device (\"cpu\", \"cuda:0\") or a dtype (\"float16\")",
    check.describe(name))
end

--- The tensor on another device, as another dtype, or both; itself when nothing changes. On a GPU floats become other
-- floats without waiting, as in a call of its own; other dtypes are converted on the CPU.
-- @tparam string where "cpu", "cuda", "cuda:1" or a dtype such as "float32"
-- @tparam[opt] string also the other of the two
-- @tparam[opt] table opts `stream` and `non_blocking` as for @{methods:copy_}. A non-blocking copy to the CPU goes to
--   pinned memory, and is there when the stream has been waited for; one to a GPU does not wait where self is pinned
-- @treturn tensor
-- @raise for an unknown name, from float to int, and where there is no such device
function methods:to(where, also, opts)
  tensor.check("to", "the tensor", self)
  if type(also) == "table" and opts == nil then also, opts = nil, also end
  if opts ~= nil and type(opts) ~= "table" then
    check.raise("to", "the options are %s, expected a table", check.describe(opts))
  end
  local device, dtype = target_of(where)
  if also ~= nil then
    local also_device, also_dtype = target_of(also)
    if (device and also_device) or (dtype and also_dtype) then
      check.raise("to", "the targets are %s and %s, expected a device and a dtype", check.describe(where),
        check.describe(also))
    end
    device, dtype = device or also_device, dtype or also_dtype
  end
  return convert("to", self, device or self.c.device, dtype or info_of(self), opts and copy_options("to", opts))
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
  return narrow("narrow", self, dim, first, length)
end

-- The address of element (i, j), checked: a dtype description, a pointer and an offset in elements.
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
local function element_view(name, t, i, j)
  local row = narrow(name, t, 1, i, 1)
  return t.c.rank == 1 and row or narrow(name, row, 2, j, 1)
end

--- One element as a Lua number. From a GPU this is a copy of its own, and slow: take @{totable} for many.
-- @tparam number i row, or index of a vector, counted from 1
-- @tparam[opt] number j column, counted from 1
-- @treturn number
-- @raise for an index outside the tensor
function methods:get(i, j)
  local dtype, data, offset = element("get", self, i, j)
  if self.c.device ~= CPU then
    local here = on_cpu("get", element_view("get", self, i, j))
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
  tensor.check("set", "the tensor", self)
  if self.c.rank == 1 then
    if value ~= nil then check.raise("set", "a vector has one index, two were given") end
    value, j = j, nil
  end
  local dtype, data, offset = element("set", self, i, j)
  local bits = tensor.encode("set", dtype, value, self.c.rank, i, j or i)
  if self.c.device ~= CPU then
    local view = element_view("set", self, i, j)
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
-- @raise for a value that the dtype cannot hold
function methods:fill_(value) return tensor.fill("fill_", self, value) end

--- Sets every byte of every element.
-- @tparam number byte 0 .. 255
-- @tparam[opt] stream stream
-- @treturn tensor self
function methods:fill_bytes_(byte, stream)
  check_rows("fill_bytes_", self)
  check.integer("fill_bytes_", "the byte", byte, 0, 255)
  local handle = devices.stream_handle("fill_bytes_", stream, self.c.device)
  binding.check("fill_bytes_", lib.int4mm_tensor_fill_bytes(self.c, byte, handle))
  return self
end

--- Says how words from elsewhere are packed, as if they came from `pack_int4_to_int32`.
-- @tparam[opt] table opts `dim` (2: the words are [R, K/8]; 1: [K/8, C]), `encoding` ("twos_complement" or "offset"),
--   `length` (K, where it is known)
-- @treturn tensor self
-- @raise for what is no matrix of int32, and for a length that the words do not hold
function methods:mark_(opts)
  check_rows("mark_", self)
  opts = check.options("mark_", opts, { "dim", "encoding", "length" })
  local dim = enums.dim("mark_", opts.dim, 2)
  local encoding = check.choice("mark_", "encoding", opts.encoding, enums.encodings, "twos_complement")
  local length = check.integer("mark_", "length", check.default(opts.length, 0), 0)
  return mark("mark_", self, dim + 1, encoding, length)
end

--- Takes the mark away: the words are read as options say.
-- @treturn tensor self
function methods:unmark_()
  return mark("unmark_", check_rows("unmark_", self), enums.UNMARKED, 0, 0)
end

--- The elements as Lua numbers: a table for a vector, a table of rows for a matrix.
-- @treturn table
function methods:totable()
  check_rows("totable", self)
  local here = on_cpu("totable", self)
  local decode, data = info_of(here).decode, ffi.cast(info_of(here).pointer, here.c.data)
  local rows, columns, stride = rows_of(here), columns_of(here), tonumber(here.c.stride)
  local result = {}
  for i = 1, rows do
    if here.c.rank == 1 then
      result[i] = decode(data[i - 1])
    else
      local row = {}
      for j = 1, columns do row[j] = decode(data[(i - 1) * stride + j - 1]) end
      result[i] = row
    end
  end
  keep(here)
  return result
end

-- Where two rows of so many elements differ first (from 0), or nil.
local function first_difference(p, q, columns, bytes)
  if ffi.C.int4mm_memcmp(p, q, columns * bytes) == 0 then return nil end
  local j = 0
  while p[j] == q[j] do j = j + 1 end
  return j
end

-- Rows, columns and strides to compare two tensors of one shape by: as one row where both are without gaps.
local function comparison(x, y)
  local rows, columns = rows_of(x), columns_of(x)
  if rows * columns == 0 then return 0, 0, 0, 0 end
  if is_contiguous(x) and is_contiguous(y) then return 1, rows * columns, 0, 0 end
  return rows, columns, tonumber(x.c.stride), tonumber(y.c.stride)
end

local function difference_text(x, dtype, index, bits_x, bits_y)
  local columns, range = columns_of(x), 2 ^ (8 * dtype.bytes)
  local where = x.c.rank == 2 and position(2, math.floor(index / columns) + 1, index % columns + 1)
    or position(1, 1, index + 1)
  return ("%s: %.9g and %.9g, bits 0x%x and 0x%x"):format(where, dtype.decode(bits_x), dtype.decode(bits_y),
    tonumber(bits_x) % range, tonumber(bits_y) % range)
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
  x, y = on_cpu("equal", x), on_cpu("equal", y)
  local dtype = info_of(x)
  local p, q = ffi.cast(dtype.pointer, x.c.data), ffi.cast(dtype.pointer, y.c.data)
  local rows, columns, stride_x, stride_y = comparison(x, y)
  for i = 0, rows - 1 do
    local row_x, row_y = p + i * stride_x, q + i * stride_y
    local j = first_difference(row_x, row_y, columns, dtype.bytes)
    if j then return false, difference_text(x, dtype, i * columns + j, row_x[j], row_y[j]) end
  end
  keep(x, y)
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

function events.__index(t, key)
  local method = methods[key]
  if method then return method end
  local field = fields[key]
  if field then return field(tensor.check(key, "the tensor", t)) end
  return check.raise("tensor", "there is no field or method %s%s", check.describe(key),
    type(key) == "number" and "; get(i, j) reads an element" or "")
end

function events.__newindex(_, key)
  check.raise("tensor", "%s cannot be assigned; use set, fill_ or copy_ for elements", check.describe(key))
end

function events.__tostring(t)
  if t.c.rank == 0 then return "tensor(freed)" end
  local suffix = ("dtype=%s, device=%s, shape=%s"):format(t.dtype, t.device, shape_text(t))
  if is_marked(t) then suffix = suffix .. ", " .. tensor.packing_text(t) end
  if t.c.layout ~= enums.ROWS then return ("tensor(prepacked, %s)"):format(suffix) end
  return print_tensor(t, info_of(t).low ~= nil, suffix)
end

function events.__gc(t) lib.int4mm_tensor_release(t.c) end

check.refuse_operators(events, "tensor", {
  __add = "int4mm.add adds tensors and numbers",
  __mul = "int4mm.mul multiplies element by element, int4_matmul packed matrices",
  __len = "numel counts the elements, size gives the extents",
  __concat = "tostring gives a tensor as text",
  __lt = "equal compares two tensors",
  __le = "equal compares two tensors",
  __call = "get(i, j) reads an element",
  other = "totable gives the elements as numbers",
})
binding.metatype("int4mm_lua_tensor", events)

return tensor
