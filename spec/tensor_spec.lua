--- Tensors: constructors, elements, views, conversion, printing, lifetime.

local bit = require "bit"
local ffi = require "ffi"

local helper = require "spec.helper"
local q = require "int4mm"

local DTYPES = { "int32", "int8", "float16", "bfloat16", "float32" }
local NAN_PATTERNS = { 0x7f800001, 0x7fc00000, 0x7fffffff, 0xff800001, 0xffc00000, 0xfffeffff, 0xffffffff }

--- A [rows, cols] int32 tensor holding 10 * row + column.
local function numbered(rows, cols, dtype)
  local t = q.empty { rows, cols, dtype = dtype or "int32" }
  for i = 1, rows do
    for j = 1, cols do t:set(i, j, 10 * i + j) end
  end
  return t
end

describe("q.empty and q.zeros", function()
  for _, dtype in ipairs(DTYPES) do
    it("make matrices and vectors of " .. dtype, function()
      for _, make in ipairs { q.empty, q.zeros } do
        local m = make { 3, 5, dtype = dtype }
        assert.same({ 3, 5 }, m.shape)
        assert.equal(dtype, m.dtype)
        assert.equal("cpu", m.device)
        assert.equal(5, m.stride)
        local v = make { 7, dtype = dtype, device = "cpu" }
        assert.same({ 7 }, v.shape)
        assert.equal(1, v:dim())
      end
    end)

    it("zeros are zero: " .. dtype, function()
      local bytes = 3 * 5 * helper.ELEMENT_BYTES[dtype]
      assert.same_bits(("\0"):rep(bytes), q.zeros { 3, 5, dtype = dtype })
    end)
  end

  it("are float32 by default", function()
    assert.equal("float32", q.empty { 2, 2 }.dtype)
    assert.equal("float32", q.zeros { 2 }.dtype)
  end)

  it("make tensors without elements", function()
    for _, shape in ipairs { { 0 }, { 0, 4 }, { 4, 0 }, { 0, 0 } } do
      local t = q.zeros { shape[1], shape[2], dtype = "int8" }
      assert.same(shape, t.shape)
      assert.equal(0, t:numel())
    end
  end)

  it("align their memory to 64 bytes", function()
    for _, n in ipairs { 1, 3, 100, 5000, 2000000 } do
      local address = tonumber(ffi.cast("uintptr_t", q.empty { n, dtype = "int8" }:data()))
      assert.equal(0, address % 64)
    end
  end)
end)

describe("q.full and q.ones", function()
  it("have one value everywhere", function()
    assert.same({ { 2.5, 2.5 }, { 2.5, 2.5 } }, q.full({ 2, 2, dtype = "float16" }, 2.5):totable())
    assert.same({ 1, 1, 1 }, q.ones({ 3, dtype = "int32" }):totable())
  end)
end)

describe("q.tensor", function()
  it("takes a table of rows", function()
    local t = q.tensor({ { 1, 2, 3 }, { 4, 5, 6 } }, { dtype = "int8" })
    assert.same({ 2, 3 }, t.shape)
    assert.equal("int8", t.dtype)
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t:totable())
  end)

  it("takes a table of numbers as a vector", function()
    local t = q.tensor { 0.5, -1.25 }
    assert.same({ 2 }, t.shape)
    assert.equal("float32", t.dtype)
    assert.same({ 0.5, -1.25 }, t:totable())
  end)

  it("takes a string of bytes", function()
    local t = q.tensor("\1\0\0\0\255\255\255\255", { dtype = "int32", shape = { 1, 2 } })
    assert.same({ { 1, -1 } }, t:totable())
  end)

  it("takes C arrays and pointers, and copies them", function()
    local array = ffi.new("float[6]", { 1, 2, 3, 4, 5, 6 })
    local t = q.tensor(array, { shape = { 2, 3 } })
    local u = q.tensor(ffi.cast("float *", array), { shape = { 6 } })
    array[0] = 99
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t:totable())
    assert.same({ 1, 2, 3, 4, 5, 6 }, u:totable())
  end)

  it("copies another tensor", function()
    local t = numbered(2, 2)
    local copy = q.tensor(t)
    t:set(1, 1, 0)
    assert.same({ { 11, 12 }, { 21, 22 } }, copy:totable())
    assert.equal("float32", q.tensor(t, { dtype = "float32" }).dtype)
  end)

  it("rounds numbers to its dtype, ties to even, in one step from the double", function()
    -- 1 + 2^-11 + 2^-40 rounds up to 1 + 2^-10; through float32 it would be a tie and round down to 1
    local t = q.tensor({ 1 + 2 ^ -11, 1 + 3 * 2 ^ -11, 1 + 2 ^ -11 + 2 ^ -40, 65519, 2 ^ -25, 2 ^ -25 + 2 ^ -60 },
      { dtype = "float16" })
    assert.same({ 1, 1 + 2 ^ -9, 1 + 2 ^ -10, 65504, 0, 2 ^ -24 }, t:totable())
    local b = q.tensor({ 1 + 2 ^ -8, 1 + 3 * 2 ^ -8, 1 + 2 ^ -8 + 2 ^ -40 }, { dtype = "bfloat16" })
    assert.same({ 1, 1 + 2 ^ -6, 1 + 2 ^ -7 }, b:totable())
  end)

  it("takes infinities and NaN into float types", function()
    for _, dtype in ipairs { "float16", "bfloat16", "float32" } do
      local t = q.tensor({ 1 / 0, -1 / 0, 0 / 0 }, { dtype = dtype }):totable()
      assert.equal(1 / 0, t[1])
      assert.equal(-1 / 0, t[2])
      assert.is_true(t[3] ~= t[3])
    end
  end)

  it("keeps the sign of zero", function()
    for _, dtype in ipairs { "float16", "bfloat16", "float32" } do
      assert.equal(-1 / 0, 1 / q.tensor({ -0.0 }, { dtype = dtype }):get(1))
    end
  end)
end)

describe("q.wrap", function()
  it("lies over memory of the caller, with a stride", function()
    local memory = ffi.new("int32_t[12]")
    local t = q.wrap(memory, { shape = { 2, 3 }, stride = 5, dtype = "int32" })
    t:copy_(q.tensor({ { 1, 2, 3 }, { 4, 5, 6 } }, { dtype = "int32" }))
    local seen = {}
    for i = 0, 11 do seen[i + 1] = memory[i] end
    assert.same({ 1, 2, 3, 0, 0, 4, 5, 6, 0, 0, 0, 0 }, seen)
  end)

  it("keeps its memory alive, through views too", function()
    local view
    do
      local memory = ffi.new("int32_t[4]", { 7, 8, 9, 10 })
      view = q.wrap(memory, { shape = { 4 }, dtype = "int32" }):narrow(1, 2, 2)
    end
    for _ = 1, 3 do
      collectgarbage()
      for _ = 1, 1000 do ffi.new("int32_t[4]", 1, 1, 1, 1) end
    end
    assert.same({ 8, 9 }, view:totable())
  end)

  it("keeps an owner that it was given", function()
    local memory = ffi.new "int32_t[1]"
    local weak = setmetatable({ {} }, { __mode = "v" })
    local t = q.wrap(ffi.cast("int32_t *", memory), { shape = { 1 }, dtype = "int32", owner = weak[1] })
    collectgarbage()
    assert.is_table(weak[1])
    assert.equal(0, t:get(1))
  end)
end)

describe("get and set", function()
  for _, dtype in ipairs(DTYPES) do
    it("count from 1: " .. dtype, function()
      local t = q.zeros { 2, 3, dtype = dtype }
      t:set(2, 3, -5)
      t:set(1, 1, 7)
      assert.same({ { 7, 0, 0 }, { 0, 0, -5 } }, t:totable())
      assert.equal(-5, t:get(2, 3))
      local v = q.zeros { 3, dtype = dtype }
      v:set(2, 4)
      assert.same({ 0, 4, 0 }, v:totable())
      assert.equal(4, v:get(2))
    end)
  end

  it("write bits in the machine's formats", function()
    local t = q.tensor({ 1 }, { dtype = "float16" })
    assert.equal(0x3c00, t:data()[0])
    t = q.tensor({ -2 }, { dtype = "bfloat16" })
    assert.equal(0xc000, t:data()[0])
  end)

  it("read every NaN as a NaN, whatever its payload", function()
    local words = ffi.new("uint32_t[?]", #NAN_PATTERNS, NAN_PATTERNS)
    local t = q.wrap(ffi.cast("void *", words), { shape = { #NAN_PATTERNS }, dtype = "float32", owner = words })
    local list = t:totable()
    for i, pattern in ipairs(NAN_PATTERNS) do
      for _, x in ipairs { list[i], t:get(i) } do
        assert(type(x) == "number" and x ~= x, ("0x%08x was read as %s"):format(pattern, tostring(x)))
      end
      assert.is_not_nil(list[i])
      assert.is_not_nil(t:get(i))
    end
  end)

  it("read and write through views and strides", function()
    local t = numbered(4, 5)
    local view = t:narrow(1, 2, 2):narrow(2, 3, 2)
    assert.equal(23, view:get(1, 1))
    assert.equal(34, view:get(2, 2))
    view:set(2, 1, -1)
    assert.equal(-1, t:get(3, 3))
  end)

  it("refuse indices outside the tensor", function()
    local t, v = numbered(2, 3), q.zeros { 4 }
    for _, index in ipairs { { 0, 1 }, { 3, 1 }, { 1, 0 }, { 1, 4 }, { 1.5, 1 }, { -1, 1 } } do
      assert.fails_with({ pattern = "^get: the %w+ is .-, expected a whole number from 1 to [23]" },
        function() t:get(index[1], index[2]) end)
      assert.fails_with({ pattern = "^set: the %w+ is .-, expected a whole number from 1 to [23]" },
        function() t:set(index[1], index[2], 1) end)
    end
    assert.fails_with("get: the index is 5, expected a whole number from 1 to 4", function() v:get(5) end)
    assert.fails_with("get: the column is nil, expected a whole number from 1 to 3", function() t:get(1) end)
    assert.fails_with({ pattern = "^get: a vector has one index" }, function() v:get(1, 1) end)
  end)

  it("refuse numbers that the dtype cannot hold", function()
    local t = q.zeros { 2, 3, dtype = "int8" }
    assert.fails_with("set: the value 128 at row 1, column 2 does not fit int8 (whole numbers from -128 to 127)",
      function() t:set(1, 2, 128) end)
    assert.fails_with({ pattern = "^set: the value 1%.5 at row 2, column 3 does not fit int8" },
      function() t:set(2, 3, 1.5) end)
    assert.fails_with({ pattern = '^set: the value at row 1, column 1 is "x", expected a number' },
      function() t:set(1, 1, "x") end)
    assert.fails_with({ pattern = "^set: the value 65520 at row 1, column 1 is too large for float16" },
      function() q.zeros({ 1, 1, dtype = "float16" }):set(1, 1, 65520) end)
    assert.same({ { 0, 0, 0 }, { 0, 0, 0 } }, t:totable())
  end)
end)

describe("narrow", function()
  it("is a view of rows, columns or part of a vector", function()
    local t = numbered(4, 5)
    assert.same({ { 21, 22, 23, 24, 25 }, { 31, 32, 33, 34, 35 } }, t:narrow(1, 2, 2):totable())
    assert.same({ { 14 }, { 24 }, { 34 }, { 44 } }, t:narrow(2, 4, 1):totable())
    assert.same({ 2, 3 }, q.tensor({ 1, 2, 3, 4 }):narrow(1, 2, 2):totable())
  end)

  it("keeps the stride of the whole", function()
    local view = numbered(4, 5):narrow(2, 2, 3)
    assert.same({ 4, 3 }, view.shape)
    assert.equal(5, view.stride)
    assert.is_false(view:is_contiguous())
    assert.is_true(view:contiguous():is_contiguous())
    assert.same(view:totable(), view:contiguous():totable())
  end)

  it("may be empty, at the end too", function()
    local t = numbered(4, 5)
    assert.same({ 0, 5 }, t:narrow(1, 5, 0).shape)
    assert.same({ 4, 0 }, t:narrow(2, 6, 0).shape)
  end)

  it("shares memory with what it was made from", function()
    local t = numbered(3, 3)
    t:narrow(1, 2, 1):fill_(0)
    assert.same({ { 11, 12, 13 }, { 0, 0, 0 }, { 31, 32, 33 } }, t:totable())
  end)

  it("refuses ranges outside the tensor", function()
    local t = numbered(4, 5)
    assert.fails_with("narrow: dim is 3, expected a whole number from 1 to 2", function() t:narrow(3, 1, 1) end)
    assert.fails_with("narrow: dim is 2, expected a whole number from 1 to 1",
      function() q.zeros({ 3 }):narrow(2, 1, 1) end)
    assert.fails_with("narrow: first is 0, expected a whole number from 1 to 5", function() t:narrow(1, 0, 1) end)
    assert.fails_with("narrow: length is 3, expected a whole number from 0 to 2", function() t:narrow(1, 3, 3) end)
    assert.fails_with({ pattern = "^narrow: length is %-1" }, function() t:narrow(1, 1, -1) end)
  end)
end)

describe("a view", function()
  it("outlives the tensor that it was made from, freed or collected", function()
    for _, let_go in ipairs { function(t) t:free() end, function() collectgarbage() end } do
      local t = numbered(6, 6)
      local view = t:narrow(1, 3, 2):narrow(2, 2, 2)
      let_go(t)
      t = nil -- luacheck: ignore
      for _ = 1, 20 do q.full({ 6, 6, dtype = "int32" }, -1) end
      collectgarbage()
      for _ = 1, 20 do q.full({ 6, 6, dtype = "int32" }, -1) end
      assert.same({ { 32, 33 }, { 42, 43 } }, view:totable())
    end
  end)
end)

describe("copy_", function()
  it("copies between strides", function()
    local source, target = numbered(4, 5), q.zeros { 6, 7, dtype = "int32" }
    target:narrow(1, 2, 2):narrow(2, 3, 2):copy_(source:narrow(1, 3, 2):narrow(2, 4, 2))
    local expected = {}
    for i = 1, 6 do expected[i] = { 0, 0, 0, 0, 0, 0, 0 } end
    expected[2][3], expected[2][4], expected[3][3], expected[3][4] = 34, 35, 44, 45
    assert.same(expected, target:totable())
  end)

  it("gives back the target", function()
    local t = q.zeros { 2, 2 }
    assert.equal(t, t:copy_(q.ones { 2, 2 }))
  end)

  it("converts from every dtype to every float type, and among the integers", function()
    local values = { -8, -1, 0, 1, 2, 100 }
    for _, from in ipairs(DTYPES) do
      for _, to in ipairs(DTYPES) do
        local source, target = q.tensor(values, { dtype = from }), q.zeros { 6, dtype = to }
        if to:find "int" and from:find "float" then
          assert.fails_with({ pattern = "^copy_: .*" .. to .. ".*" }, function() target:copy_(source) end)
        else
          assert.same(values, target:copy_(source):totable(), from .. " to " .. to)
        end
      end
    end
  end)

  it("rounds int32 to float32 to the nearest, ties to even", function()
    local values = { 2 ^ 24 + 1, 2 ^ 24 + 3, -(2 ^ 24) - 1, 2 ^ 31 - 1, -2 ^ 31, 2 ^ 30 + 32, 2 ^ 30 + 96 }
    local rounded = q.tensor(values, { dtype = "int32" }):to "float32"
    assert.same({ 2 ^ 24, 2 ^ 24 + 4, -2 ^ 24, 2 ^ 31, -2 ^ 31, 2 ^ 30, 2 ^ 30 + 128 }, rounded:totable())
  end)

  it("refuses another shape", function()
    assert.fails_with("copy_: dst is [3, 2] float32 but src is [2, 3] float32: the shapes differ",
      function() q.zeros({ 3, 2 }):copy_(q.zeros { 2, 3 }) end)
    assert.fails_with({ pattern = "^copy_: the source is a table, expected a tensor" },
      function() q.zeros({ 1 }):copy_ { 1 } end)
  end)
end)

describe("to", function()
  it("is the tensor itself when nothing changes", function()
    local t = numbered(2, 2)
    assert.equal(t, t:to "cpu")
    assert.equal(t, t:to "int32")
    assert.equal(t, t:to("cpu", "int32"))
  end)

  it("converts floats in both directions", function()
    local t = q.tensor { { 1.5, -2.25 }, { 1e-8, 70000 } }
    local half = t:to "float16"
    assert.equal("float16", half.dtype)
    assert.same({ { 1.5, -2.25 }, { 0, 1 / 0 } }, half:totable())
    assert.same({ { 1.5, -2.25 }, { 0, 1 / 0 } }, half:to("float32"):totable())
  end)

  it("rounds as the definition of each format says", function()
    local n = 4096
    local source = q.random(q.empty { n, dtype = "int32" }, { seed = 17 })
    local floats = q.wrap(ffi.cast("void *", source:data()), { shape = { n }, dtype = "float32", owner = source })
    local words = ffi.cast("uint32_t *", source:data())
    for _, case in ipairs { { "float16", helper.half_bits, 0x7c00 }, { "bfloat16", helper.bfloat_bits, 0x7f80 } } do
      local dtype, bits_of = case[1], case[2]
      local got = floats:to(dtype):data()
      for i = 0, n - 1 do
        local x = helper.bits_float(words[i])
        local expected = bits_of(x)
        assert(got[i] == expected, ("0x%08x became 0x%04x, expected 0x%04x"):format(words[i], got[i], expected))
      end
    end
  end)

  it("refuses what is neither a device nor a dtype", function()
    local t = q.zeros { 1 }
    assert.fails_with('to: the target is "float64", expected a device ("cpu", "cuda:0") or a dtype ("float16")',
      function() t:to "float64" end)
    assert.fails_with({ pattern = "^to: the target is nil" }, function() t:to(nil) end)
    assert.fails_with({ pattern = '^to: the device is "cuda:x"' }, function() t:to "cuda:x" end)
    assert.fails_with('to: the targets are "float16" and "int32", expected a device and a dtype',
      function() t:to("float16", "int32") end)
    assert.fails_with('to: the targets are "cpu" and "cpu", expected a device and a dtype',
      function() t:to("cpu", "cpu") end)
  end)
end)

describe("clone", function()
  it("is contiguous and apart", function()
    local t = numbered(3, 4)
    local copy = t:narrow(2, 2, 2):clone()
    assert.equal(2, copy.stride)
    t:fill_(0)
    assert.same({ { 12, 13 }, { 22, 23 }, { 32, 33 } }, copy:totable())
  end)
end)

describe("fill_ and fill_bytes_", function()
  it("fill views and leave the rest", function()
    local t = q.zeros { 3, 4, dtype = "int8" }
    t:narrow(1, 2, 2):narrow(2, 2, 2):fill_bytes_(255)
    assert.same({ { 0, 0, 0, 0 }, { 0, -1, -1, 0 }, { 0, -1, -1, 0 } }, t:totable())
    t:narrow(2, 4, 1):fill_(7)
    assert.same({ { 0, 0, 0, 7 }, { 0, -1, -1, 7 }, { 0, -1, -1, 7 } }, t:totable())
  end)

  it("take a byte", function()
    local t = q.zeros { 1 }
    assert.fails_with("fill_bytes_: the byte is 256, expected a whole number from 0 to 255",
      function() t:fill_bytes_(256) end)
    assert.fails_with({ pattern = '^fill_: the value is "1", expected a number' }, function() t:fill_ "1" end)
  end)
end)

describe("the size of a tensor", function()
  it("is told by dim, numel, size and bytes", function()
    local t = q.zeros { 3, 4, dtype = "float16" }
    assert.equal(2, t:dim())
    assert.equal(12, t:numel())
    assert.equal(24, t:bytes())
    assert.same({ 3, 4 }, t:size())
    assert.equal(4, t:size(2))
    assert.fails_with("size: dim is 3, expected a whole number from 1 to 2", function() t:size(3) end)
  end)
end)

describe("equal", function()
  it("compares bits, and says where they differ", function()
    local t = numbered(3, 3)
    assert.is_true(t:equal(t:clone()))
    assert.is_true(t:narrow(2, 2, 2):equal(t:narrow(2, 2, 2):clone()))
    local other = t:clone():set(2, 3, 0)
    local same, why = t:equal(other)
    assert.is_false(same)
    assert.matches("row 2, column 3: 23 and 0, bits 0x17 and 0x0", why, 1, true)
    assert.is_true(q.tensor({ 0 / 0 }):equal(q.tensor { 0 / 0 }))
    assert.is_false((q.tensor({ 0 }):equal(q.tensor { -0.0 })))
  end)

  it("minds shape and dtype", function()
    local same, why = q.zeros({ 2, 3 }):equal(q.zeros { 3, 2 })
    assert.is_false(same)
    assert.equal("the shapes are [2, 3] and [3, 2]", why)
    same, why = q.zeros({ 2 }):equal(q.zeros { 2, dtype = "int32" })
    assert.is_false(same)
    assert.equal("the dtypes are float32 and int32", why)
  end)

  it("names the index in a vector", function()
    local _, why = q.tensor({ 1, 2, 3 }):equal(q.tensor { 1, 2, 4 })
    assert.matches("index 3", why)
  end)

  it("names the first difference by row and column, with gaps between the rows and without", function()
    local t = numbered(4, 5)
    local views = { { t, 3, 2 }, { t:narrow(2, 2, 3), 4, 1 }, { t:narrow(1, 2, 3), 1, 5 }, { t:narrow(1, 4, 1), 1, 2 } }
    for _, case in ipairs(views) do
      local view, i, j = case[1], case[2], case[3]
      local other = view:clone():set(i, j, -1)
      other:set(other:size(1), other:size(2), -2)
      local same, why = view:equal(other)
      assert.is_false(same)
      assert.matches(("^row %d, column %d: %d and %%-"):format(i, j, view:get(i, j)), why)
    end
  end)
end)

describe("tensors without elements", function()
  local MANY = 2 ^ 45 -- a loop over so many rows would not end

  it("are filled, compared and copied at once, whatever their extents", function()
    local t = q.full({ MANY, 0 }, 1)
    assert.equal(t, t:fill_(2))
    assert.is_true(t:equal(q.zeros { MANY, 0 }))
    assert.is_true(t:narrow(1, 2, MANY - 2):equal(t:narrow(1, 1, MANY - 2)))
    assert.is_true(q.zeros({ 0, MANY }):equal(q.zeros { 0, MANY }))
    assert.same({ MANY, 0 }, t:clone():copy_(t):to("float16").shape)
    assert.matches("[]", tostring(t), 1, true)
  end)

  it("are multiplied at once by the oracle", function()
    local a, b = q.zeros { MANY, 0, dtype = "int32" }, q.zeros { 0, 0, dtype = "int32" }
    local scale = q.wrap(ffi.cast("void *", ffi.cast("uintptr_t", 4096)), { shape = { MANY } }) -- never read
    assert.same({ MANY, 0 }, q.int4_matmul_reference(a, b, scale, q.zeros { 0 }).shape)
    a, b = q.zeros { 0, 0, dtype = "int32" }, q.zeros { 0, MANY, dtype = "int32" }
    assert.same({ 0, MANY }, q.int4_matmul_reference(a, b, q.zeros { 0 }, scale).shape)
  end)
end)

describe("tostring", function()
  it("shows the values, dtype, device and shape", function()
    local text = tostring(q.tensor({ { 1, 2 }, { -3, 40 } }, { dtype = "int8" }))
    assert.matches("tensor([[ 1,  2],", text, 1, true)
    assert.matches("[-3, 40]]", text, 1, true)
    assert.matches("dtype=int8, device=cpu, shape=[2, 2])", text, 1, true)
  end)

  it("shows floats with four digits, and infinities and NaN by name", function()
    local text = tostring(q.tensor { 0.5, -1 / 0, 0 / 0 })
    assert.matches("0.5000", text, 1, true)
    assert.matches("-inf", text, 1, true)
    assert.matches("nan", text, 1, true)
  end)

  it("leaves out the middle of a large tensor", function()
    local text = tostring(q.zeros { 500, 500, dtype = "int32" })
    assert(#text < 2000, "the text has " .. #text .. " bytes")
    assert.matches("...", text, 1, true)
    assert.matches("shape=[500, 500]", text, 1, true)
  end)

  it("shows what has no elements and what was freed", function()
    local t = q.zeros { 0, 3 }
    assert.matches("[]", tostring(t), 1, true)
    assert.matches("shape=[0, 3]", tostring(t), 1, true)
    t:free()
    assert.equal("tensor(freed)", tostring(t))
  end)
end)

describe("totable", function()
  it("of nothing is an empty table", function()
    assert.same({}, q.zeros({ 0 }):totable())
    assert.same({ {}, {} }, q.zeros({ 2, 0 }):totable())
    assert.same({}, q.zeros({ 0, 2 }):totable())
  end)
end)

describe("data", function()
  it("is a typed pointer from 0", function()
    local t = numbered(2, 2)
    assert.equal("ctype<int *>", tostring(ffi.typeof(t:data())))
    assert.equal(22, t:data()[3])
    assert.equal(bit.tobit(0x3f800000), ffi.cast("int32_t *", q.ones({ 1 }):data())[0])
  end)
end)

describe("free", function()
  it("gives the memory back at once", function()
    local t = q.empty { 1000, 1000, dtype = "int32" }
    local before = q.memory().cpu.allocated
    t:free()
    assert.equal(4000000, before - q.memory().cpu.allocated)
    t:free() -- harmless
  end)

  it("leaves the memory to a view", function()
    local t = q.empty { 1000, 1000, dtype = "int32" }
    local view = t:narrow(1, 1, 1)
    local before = q.memory().cpu.allocated
    t:free()
    assert.equal(before, q.memory().cpu.allocated)
    view:free()
    assert.equal(4000000, before - q.memory().cpu.allocated)
  end)

  it("makes every later use an error", function()
    local uses = {
      get = function(t) t:get(1, 1) end,
      set = function(t) t:set(1, 1, 1) end,
      narrow = function(t) t:narrow(1, 1, 1) end,
      clone = function(t) t:clone() end,
      totable = function(t) t:totable() end,
      data = function(t) t:data() end,
      fill_ = function(t) t:fill_(0) end,
      copy_ = function(t) t:copy_(t) end,
      equal = function(t) t:equal(t) end,
      to = function(t) t:to "float16" end,
    }
    for name, use in pairs(uses) do
      local t = numbered(2, 2)
      t:free()
      local ok, message = pcall(use, t)
      assert.is_false(ok, name)
      assert.matches(name .. ": the tensor was freed", message, 1, true)
    end
  end)
end)

describe("a field or method that there is not", function()
  it("is an error that names it", function()
    local t = q.zeros { 1 }
    assert.fails_with('tensor: there is no field or method "shap"', function() return t.shap end)
    assert.fails_with({ pattern = '^tensor: "shape" cannot be assigned' }, function() t.shape = { 2 } end)
  end)
end)
