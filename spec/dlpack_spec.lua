--- DLPack: tensors given away and taken over, in Lua, between streams, and with NumPy where there is one.

local ffi = require "ffi"

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local DTYPES = { "int32", "int8", "float16", "bfloat16", "float32" }

-- DLPack's structs as the specs read and make them, under names of their own.
if not pcall(ffi.typeof, "spec_dl_managed") then
  ffi.cdef [[
    typedef struct spec_dl_tensor {
      void *data;
      int32_t device_type, device_id, ndim;
      uint8_t code, bits;
      uint16_t lanes;
      int64_t *shape, *strides;
      uint64_t byte_offset;
    } spec_dl_tensor;
    typedef struct spec_dl_managed {
      spec_dl_tensor tensor;
      void *context;
      void (*deleter)(void *);
    } spec_dl_managed;
    typedef struct spec_dl_versioned {
      uint32_t major, minor;
      void *context;
      void (*deleter)(void *);
      uint64_t flags;
      spec_dl_tensor tensor;
    } spec_dl_versioned;
  ]]
end

--- The tensor inside of what to_dlpack gives.
local function look(managed, versioned)
  return ffi.cast(versioned and "spec_dl_versioned *" or "spec_dl_managed *", managed).tensor
end

local function address_of(managed) return tonumber(ffi.cast("uintptr_t", managed)) end

local function allocated(device)
  collectgarbage()
  collectgarbage()
  local figures = q.memory()[device or "cpu"]
  return figures and figures.allocated or 0
end

local foreign_memory = {} -- for ever: tensors over it may be collected after the spec that made them

--- A struct of "another library" over an array: float32 [2, 3], rows 4 apart, without a deleter. Returns its address,
-- the array and the struct.
local function foreign(versioned)
  local data, shape, strides = ffi.new("float[8]", { 1, 2, 3, 0, 4, 5, 6, 0 }), ffi.new("int64_t[2]", { 2, 3 }),
    ffi.new("int64_t[2]", { 4, 1 })
  local managed = ffi.new(versioned and "spec_dl_versioned" or "spec_dl_managed")
  if versioned then managed.major = 1 end
  local t = managed.tensor
  t.data, t.device_type, t.ndim, t.code, t.bits, t.lanes, t.shape, t.strides = data, 1, 2, 2, 32, 1, shape, strides
  local name = versioned and "struct DLManagedTensorVersioned *" or "struct DLManagedTensor *"
  foreign_memory[#foreign_memory + 1] = { data, shape, strides, managed }
  return ffi.cast(name, managed), data, managed
end

describe("to_dlpack and from_dlpack", function()
  for _, versioned in ipairs { false, true } do
    local kind = versioned and "versioned" or "old"

    for _, dtype in ipairs(DTYPES) do
      it(("pass %s of every shape and stride on, in the same memory (%s)"):format(dtype, kind), function()
        local r = cases.random(21)
        for _, shape in ipairs { { 0, 3 }, { 3, 0 }, { 1, 1 }, { 1, 7 }, { 7, 1 }, { 5, 33 } } do
          local whole = q.random(q.empty { shape[1], 64, dtype = "int32" }, { seed = r:range(0, 1000) })
          whole = q.tensor(ffi.string(helper.bytes(whole), shape[1] * 64),
            { dtype = dtype, shape = { shape[1], 64 / helper.ELEMENT_BYTES[dtype] } })
          local t = shape[2] <= whole.shape[2] and whole:narrow(2, 1, shape[2]) or whole
          local back = q.from_dlpack(t:to_dlpack { versioned = versioned })
          assert.same_bits(t, back, dtype)
          if t:numel() > 0 then assert.equal(t:data(), back:data()) end
        end
        local v = q.tensor({ 1, 2, 3 }, { dtype = dtype })
        local back = q.from_dlpack(v:to_dlpack { versioned = versioned })
        assert.same({ 3 }, back.shape)
        back:set(2, 9)
        assert.equal(9, v:get(2))
      end)
    end

    it(("take addresses in any form (%s)"):format(kind), function()
      local t = q.tensor { 1, 2 }
      local function given() return t:to_dlpack { versioned = versioned } end
      local opts = { versioned = versioned }
      assert.same({ 1, 2 }, q.from_dlpack(given(), opts):totable())
      assert.same({ 1, 2 }, q.from_dlpack(address_of(given()), opts):totable())
      assert.same({ 1, 2 }, q.from_dlpack(ffi.cast("uintptr_t", given()), opts):totable())
      assert.same({ 1, 2 }, q.from_dlpack(ffi.cast("intptr_t", given()), opts):totable())
      assert.same({ 1, 2 }, q.from_dlpack(ffi.cast("void *", given()), opts):totable())
    end)

    it(("keep memory until the last hand lets go (%s)"):format(kind), function()
      local before = allocated()
      local t = q.ones { 1000 }
      local managed = t:to_dlpack { versioned = versioned }
      t:free()
      assert.equal(before + 4000, allocated())
      local taken = q.from_dlpack(managed)
      local view = taken:narrow(1, 1000, 1)
      taken:free()
      taken = nil -- luacheck: ignore
      assert.equal(before + 4000, allocated())
      assert.equal(1, view:get(1))
      view = nil -- luacheck: ignore
      assert.equal(before, allocated())
    end)

    it(("hand memory of another library on (%s)"):format(kind), function()
      local managed, data = foreign(versioned)
      local t = q.from_dlpack(managed)
      assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t:totable())
      assert.equal(4, t.stride)
      t:set(2, 3, 7)
      assert.equal(7, data[6])
      local again = q.from_dlpack(t:to_dlpack { versioned = versioned })
      t:free()
      assert.same({ { 1, 2, 3 }, { 4, 5, 7 } }, again:totable())
    end)
  end

  it("say what the tensor is", function()
    local t = q.zeros({ 3, 8, dtype = "bfloat16" }):narrow(2, 3, 4)
    for _, versioned in ipairs { false, true } do
      local managed = t:to_dlpack { versioned = versioned }
      local d = look(managed, versioned)
      assert.equal(t:data(), ffi.cast("uint16_t *", d.data))
      assert.same({ 1, 0, 2, 4, 16, 1 }, { d.device_type, d.device_id, d.ndim, d.code, d.bits, d.lanes })
      assert.same({ 3, 4, 8, 1 },
        { tonumber(d.shape[0]), tonumber(d.shape[1]), tonumber(d.strides[0]), tonumber(d.strides[1]) })
      q.from_dlpack(managed):free()
    end
  end)

  it("leave a mark behind", function()
    local packed = q.generate_test_data(2, 16, 1)
    assert.is_nil(q.from_dlpack(packed:to_dlpack()).packing)
  end)

  it("work beside a program's own declaration of the structs", function()
    local output, status = helper.luajit [[
      local ffi = require "ffi"
      ffi.cdef "typedef struct DLManagedTensor { void *data; int rest; } DLManagedTensor;"
      local q = require "int4mm"
      ffi.cdef "typedef struct DLManagedTensorVersioned { uint32_t major, minor; } DLManagedTensorVersioned;"
      print(q.from_dlpack(q.ones({ 2 }):to_dlpack()):sum())
      local managed = q.ones({ 3 }):to_dlpack { versioned = true }
      print(managed.major, q.from_dlpack(managed):sum())
    ]]
    assert.equal(0, status, output)
    assert.equal("2\n1\t3\n", output)
  end)
end)

describe("from_dlpack", function()
  it("refuses what is no address, at the caller's line", function()
    local expected = "expected the address of a DLManagedTensor or DLManagedTensorVersioned"
    assert.fails_with("from_dlpack: managed is nil, " .. expected, function() q.from_dlpack() end)
    assert.fails_with('from_dlpack: managed is "x", ' .. expected, function() q.from_dlpack "x" end)
    assert.fails_with("from_dlpack: managed is a tensor [1] float32, " .. expected,
      function() q.from_dlpack(q.zeros { 1 }) end)
    assert.fails_with("from_dlpack: managed is a C value of type int [2], " .. expected,
      function() q.from_dlpack(ffi.new "int[2]") end)
    assert.fails_with("from_dlpack: managed is NULL", function() q.from_dlpack(0) end)
    assert.fails_with("from_dlpack: managed is NULL", function() q.from_dlpack(ffi.cast("void *", nil)) end)
    assert.fails_with("from_dlpack: managed is 1.5, expected a whole number >= 0", function() q.from_dlpack(1.5) end)
    assert.fails_with({ pattern = '^from_dlpack: unknown option "version"' },
      function() q.from_dlpack(1, { version = 1 }) end)
  end)

  it("refuses one struct for the other", function()
    local old, versioned = foreign(false), foreign(true)
    assert.fails_with("from_dlpack: versioned is true but managed is a C value of type struct DLManagedTensor *; leave "
      .. "versioned out", function() q.from_dlpack(old, { versioned = true }) end)
    assert.fails_with({ pattern = "^from_dlpack: versioned is false but managed is a C value of type struct "
      .. "DLManagedTensorVersioned %*; " }, function() q.from_dlpack(versioned, { versioned = false }) end)
    local address = address_of(versioned)
    assert.fails_with("from_dlpack: managed begins like a DLManagedTensorVersioned of version 1.0, expected a "
      .. "DLManagedTensor", function() q.from_dlpack(address) end)
  end)

  it("refuses tensors that ours cannot be, and takes them when they were changed", function()
    local managed, _, struct = foreign(true)
    struct.tensor.bits = 64
    assert.fails_with("from_dlpack: managed holds float64, expected int32, int8, float16, bfloat16 or float32",
      function() q.from_dlpack(managed) end)
    struct.tensor.bits = 32
    struct.flags = 1
    assert.fails_with("from_dlpack: managed is flagged as read-only: say that nobody will write to it (read_only), or "
      .. "copy it first", function() q.from_dlpack(managed) end)
    local t = q.from_dlpack(managed, { read_only = true })
    assert.equal(21, t:sum())
    assert.fails_with("to_dlpack: tensor is over read-only memory, which only a versioned DLPack tensor can say: ask "
      .. "for that", function() t:to_dlpack() end)
    local again = t:to_dlpack { versioned = true }
    assert.fails_with({ pattern = "^from_dlpack: managed is flagged as read%-only" },
      function() q.from_dlpack(again) end)
    q.from_dlpack(again, { read_only = true }):free()
  end)
end)

describe("to_dlpack", function()
  it("refuses what nothing would keep, and what has no elements to read", function()
    local memory = ffi.new("float[4]")
    local t = q.wrap(memory, { shape = { 4 } })
    assert.fails_with("to_dlpack: tensor is over borrowed memory, which nothing would keep for the other library: "
      .. "clone it first", function() t:to_dlpack() end)
    local prepacked = q.prepack((select(2, q.generate_test_data(1, 8, 1))))
    assert.fails_with({ pattern = "^to_dlpack: the tensor is prepacked" }, function() prepacked:to_dlpack() end)
    assert.fails_with({ pattern = '^to_dlpack: unknown option "dtype"' }, function() t:to_dlpack { dtype = 1 } end)
    assert.fails_with({ pattern = "^to_dlpack: stream is a table, expected one from int4mm.stream" },
      function() q.zeros({ 1 }):to_dlpack { stream = {} } end)
  end)
end)

describe("on a GPU", function()
  helper.on_gpu("tensors go over and back", function()
    local before = allocated "cuda:0"
    local t = q.tensor({ { 1, 2, 3 }, { 4, 5, 6 } }, { dtype = "half", device = "cuda" })
    for _, versioned in ipairs { false, true } do
      local managed = t:narrow(2, 2, 2):to_dlpack { versioned = versioned }
      local d = look(managed, versioned)
      assert.same({ 2, 0 }, { d.device_type, d.device_id })
      local back = q.from_dlpack(managed)
      assert.equal("cuda:0", back.device)
      assert.same({ { 2, 3 }, { 5, 6 } }, back:totable())
      back:free()
    end
    t = nil -- luacheck: ignore
    assert.equal(before, allocated "cuda:0")
  end)

  helper.on_gpu("pinned memory says that it is", function()
    local t = q.zeros { 4, pinned = true }
    local managed = t:to_dlpack()
    assert.equal(3, look(managed).device_type)
    local back = q.from_dlpack(managed)
    assert.equal("cpu", back.device)
    assert.is_true(back.pinned)
  end)

  helper.on_gpu("the consumer's stream comes after ours", function()
    local mine, theirs = q.stream(), q.stream()
    local t = q.empty { 100000, device = "cuda" }
    for _, stream in ipairs { theirs, theirs.handle, address_of(theirs.handle) } do
      for value = 1, 3 do
        local managed = q.with_stream(mine, function()
          t:copy_(q.full({ 100000 }, value):pin(), { non_blocking = true })
          return t:to_dlpack { stream = stream }
        end)
        local back = q.from_dlpack(managed)
        local copy = q.empty { 100000, pinned = true }:copy_(back, { stream = theirs, non_blocking = true })
        theirs:synchronize()
        assert.equal(value * 100000, copy:sum())
      end
    end
    assert.equal(100000, q.from_dlpack(q.with_stream(mine, t.to_dlpack, t)):numel())
    mine:destroy()
    theirs:destroy()
  end)
end)

describe("in one process with Python,", function()
  local function python(arguments)
    return helper.shell(("env LUA_PATH='%s' LUA_CPATH='%s' python3 %s"):format(package.path, package.cpath, arguments))
  end

  -- it(), or pending() where the module, with versioned structs, is missing. A sanitizer would have to be Python's
  -- first library, too.
  local function with(module, name, f)
    local _, missing = python(("-c 'import ctypes, numpy, %s; ctypes.CDLL(\"libluajit-5.1.so.2\"); "
      .. "%s.zeros(1).__dlpack__(max_version=(1, 0))'"):format(module, module))
    if missing ~= 0 then
      pending(("%s (no python3 with a new %s and libluajit-5.1.so.2 here)"):format(name, module))
    elseif helper.sanitized() then
      pending(name .. " (not under a sanitizer)")
    else
      it(name, f)
    end
  end

  with("numpy", "NumPy's arrays go over and back, and live as long as they are used", function()
    local output, status = python "spec/numpy_dlpack.py"
    assert.equal(0, status, output)
    assert.equal("round trips, versioned 0: ok\nlifetimes, versioned 0: ok\nround trips, versioned 1: ok\n"
      .. "lifetimes, versioned 1: ok\nrefusals: ok\n", output)
  end)

  with("numpy", "examples/dlpack.py multiplies NumPy's arrays", function()
    local output, status = python "examples/dlpack.py 5 64 3"
    assert.equal(0, status, output)
    assert.matches("c (5, 3) float32 from int4mm\nall results equal NumPy's\n", output, 1, true)
    assert.matches("doubled in place by Lua: [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]", output, 1, true)
  end)

  with("torch", "PyTorch's tensors go over and back", function()
    local output, status = python "spec/torch_dlpack.py"
    assert.equal(0, status, output)
    assert.matches("cpu: ok\nlifetimes: ok\n", output, 1, true)
  end)
end)
