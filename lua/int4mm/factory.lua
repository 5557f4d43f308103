--- Makes tensors: empty, filled, random, from tables, strings and C memory, and test data.
-- @module int4mm.factory

local ffi = require "ffi"
local binding = require "int4mm.lib"
local cdata = require "int4mm.internal.cdata"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local enums = require "int4mm.enums"
local numeric = require "int4mm.internal.numeric"
local tensor = require "int4mm.tensor"

local lib, float_argument = binding.lib, numeric.float_argument
local CPU = enums.CPU
local alloc, encode = tensor.alloc, tensor.encode
local factory = {}

-- Whether memory is to be pinned, which only the CPU's can be.
local function check_pinned(name, pinned, device)
  pinned = check.boolean(name, "pinned", pinned, false)
  if pinned and device ~= CPU then
    check.raise(name, "pinned is true but device is %s: pinned memory is the host's; leave one of them out",
      enums.device_name(device))
  end
  return pinned
end

-- { 2, 3, dtype = "int8", device = "cuda", pinned = false } as rank, rows, columns, dtype, device, pinned
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
  check.options(name, options, { "dtype", "device", "pinned" })
  local rank = spec[2] == nil and 1 or 2
  local rows = check.integer(name, rank == 2 and "the number of rows" or "the length", spec[1], 0)
  local columns = rank == 2 and check.integer(name, "the number of columns", spec[2], 0) or 1
  local dtype = enums.dtype(name, "dtype", spec.dtype, "float32")
  local device = enums.device(name, "device", spec.device, "cpu")
  return rank, rows, columns, dtype, device, check_pinned(name, spec.pinned, device)
end

--- A tensor with undefined contents.
-- @tparam table spec `{ rows, columns, dtype = "float32", device = "cpu", pinned = false }`, or `{ length, ... }` for a
--   vector; `pinned`: in page-locked host memory, where `pin` of a tensor copies it
-- @treturn tensor
-- @raise for a negative size, an unknown dtype or device, when memory runs out, and for pinned memory without CUDA
function factory.empty(spec)
  return alloc("empty", parse_spec("empty", spec))
end

--- A tensor of zeros; `spec` as in @{empty}.
function factory.zeros(spec)
  local t = alloc("zeros", parse_spec("zeros", spec))
  binding.check("zeros", lib.int4mm_tensor_fill_bytes(t.c, 0, devices.stream_handle("zeros", nil, t.c.device)))
  return t
end

--- A tensor with one value everywhere; `spec` as in @{empty}.
function factory.full(spec, value)
  return tensor.fill("full", alloc("full", parse_spec("full", spec)), value)
end

--- A tensor of ones; `spec` as in @{empty}.
function factory.ones(spec)
  return tensor.fill("ones", alloc("ones", parse_spec("ones", spec)), 1)
end

-- A seed: a whole number up to 2^53 or a uint64_t, 0 by default.
local function check_seed(name, seed)
  if ffi.istype("uint64_t", seed) then return seed end
  return check.integer(name, "seed", check.default(seed, 0), 0)
end

--- Fills a tensor with random numbers, the same on every machine and device for the same seed (Philox4x32-10).
-- @tparam tensor t float32 (uniform from low to high) or int32 (random bits: eight uniform int4 a word)
-- @tparam[opt] table opts `seed` (0; a whole number or a uint64_t), `sequence` (0; one of 2^32 of a seed), `low` (0),
--   `high` (1), `stream`
-- @treturn tensor t
function factory.random(t, opts)
  tensor.check("random", "the tensor", t)
  opts = check.options("random", opts, { "seed", "sequence", "low", "high", "stream" })
  local seed = check_seed("random", opts.seed)
  local sequence = check.integer("random", "sequence", check.default(opts.sequence, 0), 0, 2 ^ 32 - 1)
  local low = check.number("random", "low", check.default(opts.low, 0))
  local high = check.number("random", "high", check.default(opts.high, 1))
  binding.check("random", lib.int4mm_random(t.c, seed, sequence, float_argument(0, low), float_argument(1, high),
    devices.stream_handle("random", opts.stream, t.c.device)))
  return t
end

local function fill_row(name, data, offset, row, rank, i, columns, dtype)
  for j = 1, columns do data[offset + j - 1] = encode(name, dtype, row[j], rank, i, j) end
end

local function from_table(source, dtype)
  local rank = type(source[1]) == "table" and 2 or 1
  local rows, columns = #source, rank == 2 and #source[1] or 1
  local t = alloc("tensor", rank, rows, columns, dtype, CPU)
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
  if type(source) == "cdata" then
    source = { memory = source, address = cdata.memory("tensor", "the source", source, dtype, bytes) }
  elseif #source ~= bytes then
    check.raise("tensor", "the string has %d bytes, expected %.0f for %.0f values of %s", #source, bytes,
      rows * columns, dtype.name)
  end
  local t = alloc("tensor", rank, rows, columns, dtype, CPU)
  ffi.copy(t.c.data, source.address or source, bytes)
  return t
end

local function from_tensor(source, opts, device, pinned)
  tensor.check("tensor", "the source", source)
  if opts.shape ~= nil then check.raise("tensor", "shape goes with a string or C memory; a tensor has its own") end
  local dtype = enums.dtype("tensor", "dtype", opts.dtype, source.dtype)
  local t = tensor.convert("tensor", source, device or source.c.device, dtype)
  if pinned then return tensor.copy("tensor", tensor.like("tensor", t, CPU, true), t) end
  return t == source and tensor.clone("tensor", source) or t
end

--- A tensor from a table of numbers, a table of rows, a string of bytes, C memory or another tensor.
-- @param source `{ 1, 2 }` (a vector), `{ { 1, 2 }, { 3, 4 } }` (a matrix), a string or a C pointer or array holding
--   the elements row by row in the machine's byte order (then with `opts.shape`), or a tensor; always copied
-- @tparam[opt] table opts `dtype` ("float32"), `device` ("cpu"), `shape` ({ rows, columns } or { length }, with a
--   string or C memory only), `pinned` (false)
-- @treturn tensor
-- @raise for ragged rows, for what is not a number and for numbers outside the dtype, with row and column
function factory.tensor(source, opts)
  opts = check.options("tensor", opts, { "dtype", "device", "shape", "pinned" })
  local device = opts.device ~= nil and enums.device("tensor", "device", opts.device) or nil
  local pinned = check_pinned("tensor", opts.pinned, device or CPU)
  if tensor.is_tensor(source) then return from_tensor(source, opts, pinned and CPU or device, pinned) end
  local dtype = enums.dtype("tensor", "dtype", opts.dtype, "float32")
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
  return pinned and tensor.pin("tensor", t) or tensor.convert("tensor", t, device or CPU, dtype)
end

--- A tensor over memory that belongs to something else, without a copy: a C array, a mapped file, a GPU pointer of
-- another library.
--
-- `pointer` and `owner` are kept as long as the tensor or a view of it is. Neither may lead to the tensor itself: an
-- owner that keeps the tensor keeps it, and with it itself, for ever, since the collector does not see through the pair
-- (`free` on the tensor and its views ends it). For an object that holds both its memory and tensors over it, give as
-- `owner` what frees the memory, such as the cdata that ffi.gc was called on, and not the object.
-- @tparam cdata pointer the first element, on `device`: a C pointer or an array. Its elements are of the dtype's type
--   (int32_t or uint32_t, int8_t, float, for the half types int16_t or uint16_t), or it is a void, char or uint8_t
--   pointer, which is taken as it is; of an array the size is checked as well
-- @tparam table opts `shape`, `dtype` ("float32"), `device` ("cpu"), `stride` in elements (the number of columns),
--   `owner` (a Lua value to be kept while the tensor or a view of it lives; the pointer itself always is)
-- @treturn tensor
-- @raise for what is no pointer, for elements of another type, and for an array that is smaller than the tensor
function factory.wrap(pointer, opts)
  opts = check.options("wrap", opts, { "shape", "dtype", "device", "stride", "owner" })
  local dtype = enums.dtype("wrap", "dtype", opts.dtype, "float32")
  local device = enums.device("wrap", "device", opts.device, "cpu")
  local rank, rows, columns = parse_shape("wrap", opts.shape)
  local stride = check.integer("wrap", "stride", check.default(opts.stride, rank == 1 and 1 or columns), 0)
  local elements = rows * columns == 0 and 0 or (rows - 1) * stride + columns
  local address = cdata.memory("wrap", "the memory", pointer, dtype, elements * dtype.bytes)
  local t = tensor.released()
  binding.check("wrap", lib.int4mm_tensor_wrap(t.c, address, rank, rows, columns, stride, dtype.id, device))
  tensor.owners[t] = { pointer, opts.owner }
  return t
end

-- ---- test data ----

--- Random operands of a product: uniform int4 values and scales in (0, 1/64].
-- Philox4x32-10 with the seed as its key and sequences 1 (a), 2 (b), 3 (scale_a) and 4 (scale_b).
-- @tparam number M rows of A
-- @tparam number K columns of A and rows of B, a multiple of 8
-- @tparam number N columns of B
-- @tparam[opt] table opts `seed` (0), `device` ("cpu")
-- @treturn tensor a_packed [M, K/8] int32
-- @treturn tensor b_packed [K/8, N] int32
-- @treturn tensor scale_a [M] float32
-- @treturn tensor scale_b [N] float32
-- @treturn tensor a [M, K] int8: what a_packed holds
-- @treturn tensor b [K, N] int8
function factory.generate_test_data(M, K, N, opts)
  local name = "generate_test_data"
  check.integer(name, "M", M, 0)
  check.integer(name, "K", K, 0)
  check.integer(name, "N", N, 0)
  if K % 8 ~= 0 then check.raise(name, "K is %d, expected a multiple of 8: a word holds eight values", K) end
  opts = check.options(name, opts, { "seed", "device" })
  local device = enums.device(name, "device", opts.device, "cpu")
  local seed, stream = check_seed(name, opts.seed), devices.stream_handle(name, nil, device)
  local function random(sequence, high, ...)
    local t = alloc(name, ...)
    binding.check(name, lib.int4mm_random(t.c, seed, sequence, 0, high, stream))
    return t
  end
  local function unpacked(packed, dim, rows, columns)
    local t = alloc(name, 2, rows, columns, enums.dtypes.int8, device)
    binding.check(name, lib.int4mm_unpack(t.c, packed.c, dim, enums.encodings.twos_complement, stream))
    return t
  end
  local int32, float32 = enums.dtypes.int32, enums.dtypes.float32
  local a_packed, b_packed = random(1, 1, 2, M, K / 8, int32, device), random(2, 1, 2, K / 8, N, int32, device)
  tensor.mark(name, a_packed, 2, enums.encodings.twos_complement, K)
  tensor.mark(name, b_packed, 1, enums.encodings.twos_complement, K)
  local scale_a, scale_b = random(3, 1 / 64, 1, M, 1, float32, device), random(4, 1 / 64, 1, N, 1, float32, device)
  return a_packed, b_packed, scale_a, scale_b, unpacked(a_packed, 1, M, K), unpacked(b_packed, 0, K, N)
end

return factory
