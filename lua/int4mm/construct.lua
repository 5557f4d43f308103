--- Makes tensors: empty, filled, random, from tables, strings and C memory.
-- @module int4mm.construct

local ffi = require "ffi"
local binding = require "int4mm.ffi"
local check = require "int4mm.check"
local devices = require "int4mm.device"
local names = require "int4mm.names"
local numeric = require "int4mm.numeric"
local tensor = require "int4mm.tensor"

local lib, float_argument = binding.lib, numeric.float_argument
local alloc, encode = tensor.alloc, tensor.encode
local construct = {}

-- { 2, 3, dtype = "int8", device = "cuda" } as rank, rows, columns, dtype, device
local function parse_spec(name, spec)
  if type(spec) ~= "table" then
    check.raise(name, "the shape is %s, expected a table such as { 2, 3, dtype = \"float32\", device = \"cpu\" }",
      check.describe(spec))
  end
  local options = {}
  for key, value in next, spec do
    if type(key) ~= "number" then options[key] = value
    elseif key ~= 1 and key ~= 2 then
      check.raise(name, "a tensor has one or two dimensions, the shape given has [%s] = %s", tostring(key),
        check.describe(value))
    end
  end
  check.options(name, options, { "dtype", "device" })
  local rank = spec[2] == nil and 1 or 2
  local rows = check.integer(name, rank == 2 and "the number of rows" or "the length", spec[1], 0)
  local columns = rank == 2 and check.integer(name, "the number of columns", spec[2], 0) or 1
  return rank, rows, columns, names.dtype(name, "dtype", spec.dtype, "float32"),
    names.device(name, "device", spec.device, "cpu")
end

--- A tensor with undefined contents.
-- @tparam table spec `{ rows, columns, dtype = "float32", device = "cpu" }`, or `{ length, ... }` for a vector
-- @treturn tensor
-- @raise for a negative size, an unknown dtype or device, and when memory runs out
function construct.empty(spec)
  return alloc("empty", parse_spec("empty", spec))
end

--- A tensor of zeros; `spec` as in @{empty}.
function construct.zeros(spec)
  local t = alloc("zeros", parse_spec("zeros", spec))
  binding.check("zeros", lib.int4mm_tensor_fill_bytes(t.c, 0, nil))
  return t
end

--- A tensor with one value everywhere; `spec` as in @{empty}.
function construct.full(spec, value)
  return alloc("full", parse_spec("full", spec)):fill_(value)
end

--- A tensor of ones; `spec` as in @{empty}.
function construct.ones(spec) return construct.full(spec, 1) end

-- A seed: a whole number up to 2^53 or a uint64_t, 0 by default.
function construct.check_seed(name, seed)
  if ffi.istype("uint64_t", seed) then return seed end
  return check.integer(name, "seed", seed or 0, 0)
end

--- Fills a tensor with random numbers, the same on every machine and device for the same seed (Philox4x32-10).
-- @tparam tensor t float32 (uniform from low to high) or int32 (random bits: eight uniform int4 a word)
-- @tparam[opt] table opts `seed` (0; a whole number or a uint64_t), `sequence` (0; one of 2^32 of a seed), `low` (0),
--   `high` (1), `stream`
-- @treturn tensor t
function construct.random(t, opts)
  tensor.check("random", "the tensor", t)
  opts = check.options("random", opts, { "seed", "sequence", "low", "high", "stream" })
  local seed = construct.check_seed("random", opts.seed)
  local sequence = check.integer("random", "sequence", opts.sequence or 0, 0, 2 ^ 32 - 1)
  local low, high = check.number("random", "low", opts.low or 0), check.number("random", "high", opts.high or 1)
  binding.check("random", lib.int4mm_random(t.c, seed, sequence, float_argument(0, low), float_argument(1, high),
    devices.stream_handle("random", opts.stream)))
  return t
end

local function fill_row(name, data, offset, row, rank, i, columns, dtype)
  for j = 1, columns do data[offset + j - 1] = encode(name, dtype, row[j], rank, i, j) end
end

local function from_table(source, dtype)
  local rank = type(source[1]) == "table" and 2 or 1
  local rows, columns = #source, rank == 2 and #source[1] or 1
  local t = alloc("tensor", rank, rows, columns, dtype, -1)
  local data = ffi.cast(dtype.pointer, t.c.data)
  if rank == 1 then
    fill_row("tensor", data, 0, source, 1, 1, rows, dtype)
    return t
  end
  for i = 1, rows do
    local row = source[i]
    if type(row) ~= "table" then
      check.raise("tensor", "row %d is %s, expected a table of %d numbers", i, check.describe(row), columns)
    elseif #row ~= columns then
      check.raise("tensor", "row %d has %d values but row 1 has %d: the rows are ragged", i, #row, columns)
    end
    fill_row("tensor", data, (i - 1) * columns, row, 2, i, columns, dtype)
  end
  return t
end

-- { rows, columns } or { length } as rank, rows, columns
local function parse_shape(name, shape)
  if type(shape) ~= "table" then
    check.raise(name, "shape is %s, expected a table such as { 2, 3 }", check.describe(shape))
  end
  for key in next, shape do
    if key ~= 1 and key ~= 2 then
      check.raise(name, "shape has the key %s, expected { rows, columns } or { length }", check.describe(key))
    end
  end
  return parse_spec(name, shape)
end

-- The bytes of a string or of C memory, row by row.
local function from_bytes(source, shape, dtype)
  local rank, rows, columns = parse_shape("tensor", shape)
  local bytes = rows * columns * dtype.bytes
  local have
  if type(source) == "string" then
    have = #source
    if have ~= bytes then
      check.raise("tensor", "the string has %d bytes, expected %d for %d values of %s", have, bytes, rows * columns,
        dtype.name)
    end
  elseif tostring(ffi.typeof(source)):find("[", 1, true) then
    have = ffi.sizeof(source)
    if have < bytes then
      check.raise("tensor", "the array has %d bytes, expected %d for %d values of %s", have, bytes, rows * columns,
        dtype.name)
    end
  end
  local t = alloc("tensor", rank, rows, columns, dtype, -1)
  ffi.copy(t.c.data, source, bytes)
  return t
end

--- A tensor from a table of numbers, a table of rows, a string of bytes, C memory or another tensor.
-- @param source `{ 1, 2 }` (a vector), `{ { 1, 2 }, { 3, 4 } }` (a matrix), a string or a C pointer or array holding
--   the elements row by row in the machine's byte order (then with `opts.shape`), or a tensor; always copied
-- @tparam[opt] table opts `dtype` ("float32"), `device` ("cpu"), `shape` ({ rows, columns } or { length }, with a
--   string or C memory only)
-- @treturn tensor
-- @raise for ragged rows, for what is not a number and for numbers outside the dtype, with row and column
function construct.tensor(source, opts)
  opts = check.options("tensor", opts, { "dtype", "device", "shape" })
  local device = names.device("tensor", "device", opts.device, "cpu")
  if tensor.is_tensor(source) then
    tensor.check("tensor", "the source", source)
    local t = source:to(names.device_name(opts.device and device or source.c.device), opts.dtype or source.dtype)
    return t == source and source:clone() or t
  end
  local dtype = names.dtype("tensor", "dtype", opts.dtype, "float32")
  local t
  if type(source) == "table" then
    if opts.shape ~= nil then check.raise("tensor", "shape goes with a string or C memory; a table has its own") end
    t = from_table(source, dtype)
  elseif type(source) == "string" or type(source) == "cdata" then
    t = from_bytes(source, opts.shape, dtype)
  else
    check.raise("tensor", "the source is %s, expected a table of numbers, a string, C memory or a tensor",
      check.describe(source))
  end
  return device == -1 and t or tensor.copy("tensor", tensor.like("tensor", t, device), t)
end

--- A tensor over memory that belongs to something else, without a copy: a C array, a mapped file, a GPU pointer of
-- another library.
-- @tparam cdata pointer the first element, on `device`
-- @tparam table opts `shape`, `dtype` ("float32"), `device` ("cpu"), `stride` in elements (the number of columns),
--   `owner` (a Lua value to be kept while the tensor or a view of it lives; the pointer itself always is)
-- @treturn tensor
function construct.wrap(pointer, opts)
  opts = check.options("wrap", opts, { "shape", "dtype", "device", "stride", "owner" })
  if type(pointer) ~= "cdata" then
    check.raise("wrap", "the memory is %s, expected a C pointer or array", check.describe(pointer))
  end
  local rank, rows, columns = parse_shape("wrap", opts.shape)
  local stride = check.integer("wrap", "stride", opts.stride or (rank == 1 and 1 or columns), 0)
  local dtype = names.dtype("wrap", "dtype", opts.dtype, "float32")
  local device = names.device("wrap", "device", opts.device, "cpu")
  local t = tensor.released()
  binding.check("wrap", lib.int4mm_tensor_wrap(t.c, ffi.cast("void *", pointer), rank, rows, columns, stride, dtype.id,
    device))
  tensor.owners[t] = { pointer, opts.owner }
  return t
end

return construct
