--- Quantising and dequantising against plain Lua: per row and per column, all float types, ties, zeros, subnormals.

local ffi = require "ffi"

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local f = helper.float32
local DTYPES = { "float32", "float16", "bfloat16" }

--- scale = absmax / 7, q = clamp(round_half_even(x / scale), -7, 7), 0 where the scale is 0; each step in float32.
local function quantize_by_definition(rows, dim)
  local lines = #rows
  local cols = rows[1] and #rows[1] or 0
  local scales, values = {}, {}
  for i = 1, lines do values[i] = {} end
  local outer, inner = lines, cols
  if dim == 1 then outer, inner = cols, lines end
  local function at(o, n) return dim == 1 and rows[n][o] or rows[o][n] end
  for o = 1, outer do
    local most = 0
    for n = 1, inner do most = math.max(most, math.abs(at(o, n))) end
    local scale = f(most / 7)
    scales[o] = scale
    for n = 1, inner do
      local v = 0
      if scale ~= 0 then v = math.max(-7, math.min(7, helper.round_even(f(at(o, n) / scale), 1))) end
      if dim == 1 then values[n][o] = v + 0 else values[o][n] = v + 0 end
    end
  end
  return values, scales
end

--- Floats of a wide range of magnitudes, in a tensor of this dtype.
local function random_floats(r, rows, cols, dtype, spread)
  local t = q.empty { rows, cols, dtype = dtype }
  for i = 1, rows do
    for j = 1, cols do t:set(i, j, r:range(-2 ^ 20, 2 ^ 20) * 2 ^ (r:range(-spread, spread) - 20)) end
  end
  return t
end

local function check(source, dim, name)
  local values, scales = quantize_by_definition(source:totable(), dim)
  for _, encoding in ipairs { "twos_complement", "offset" } do
    local packed, got = q.quantize(source, { dim = dim, encoding = encoding })
    assert.equal("int32", packed.dtype)
    assert.same_bits(q.tensor(scales), got, name .. ": scales")
    local expected = q.pack_int4_to_int32(q.tensor(values, { dtype = "int8" }), { dim = dim, encoding = encoding })
    assert.same_bits(expected, packed, name .. ": packed, " .. encoding)
  end
end

describe("quantize", function()
  for _, dtype in ipairs(DTYPES) do
    for _, dim in ipairs { 1, 2 } do
      it(("is the definition, %s along dim %d"):format(dtype, dim), function()
        local r = cases.random(dim)
        for _, shape in ipairs { { 1, 1 }, { 1, 8 }, { 5, 3 }, { 3, 5 }, { 8, 40 }, { 40, 8 }, { 17, 66 }, { 66, 17 },
          { 2, 300 }, { 300, 2 } } do
          for _, spread in ipairs { 1, 10 } do
            check(random_floats(r, shape[1], shape[2], dtype, spread), dim,
              ("[%d, %d] %s"):format(shape[1], shape[2], dtype))
          end
        end
      end)

      it(("rounds ties to even, %s along dim %d"):format(dtype, dim), function()
        local row = { 7, -6.5, -5.5, -4.5, -3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, -7 }
        local expected = { 7, -6, -6, -4, -4, -2, -2, 0, 0, 2, 2, 4, 4, 6, 6, -7 }
        local source, values = { row }, { expected }
        if dim == 1 then
          for i, x in ipairs(row) do source[i], values[i] = { x }, { expected[i] } end
        end
        local packed, scales = q.quantize(q.tensor(source, { dtype = dtype }), { dim = dim })
        assert.same({ 1 }, scales:totable())
        assert.same(values, q.unpack_int32_to_int4(packed, { dim = dim }):totable())
      end)

      it(("gives zeros and a scale of 0 to a line of zeros, %s along dim %d"):format(dtype, dim), function()
        local source = q.zeros { 24, 24, dtype = dtype }
        source:set(3, 5, -2)
        source:set(9, 9, -0.0)
        check(source, dim, "one value")
        local _, scales = q.quantize(source, { dim = dim })
        for i, s in ipairs(scales:totable()) do
          assert.equal(i == (dim == 1 and 5 or 3) and f(2 / 7) or 0, s)
        end
      end)

      it(("reads a strided view, %s along dim %d"):format(dtype, dim), function()
        local whole = random_floats(cases.random(9), 21, 37, dtype, 3)
        check(whole:narrow(1, 2, 18):narrow(2, 5, 29), dim, "view")
      end)
    end
  end

  it("keeps subnormals, and never flushes them", function()
    local smallest = 2 ^ -149
    for _, rows in ipairs {
      { { smallest, 0, -smallest } }, { { 2 * smallest, 3 * smallest, 0 } },
      { { 4 * smallest, -2 * smallest, smallest } }, { { 100 * smallest, -50 * smallest, 7 * smallest } },
      { { 2 ^ -126, 2 ^ -127, -2 ^ -128 } },
      { { 10 * smallest, -10 * smallest, 9 * smallest } }, -- the scale rounds down so far that 10 needs the clamp
    } do
      check(q.tensor(rows), 2, "subnormal")
      local column = {}
      for i, x in ipairs(rows[1]) do column[i] = { x } end
      check(q.tensor(column), 1, "subnormal")
    end
  end)

  it("reaches the largest floats", function()
    local most = (2 - 2 ^ -23) * 2 ^ 127
    check(q.tensor { { most, -most, most / 2, 1 }, { -most, 1e30, -1e37, 0 } }, 2, "largest")
    check(q.tensor({ { 65504, -65504, 1, 0 } }, { dtype = "float16" }), 2, "largest half")
  end)

  it("quantises activations per row by default", function()
    local source = q.tensor { { 7, 1 }, { 14, 2 } }
    local packed, scales = q.quantize(source)
    assert.same({ 1, 2 }, scales:totable())
    assert.same({ 2, 1 }, packed.shape)
  end)

  it("takes matrices without elements", function()
    local packed, scales = q.quantize(q.zeros { 0, 16 })
    assert.same({ 0, 2 }, packed.shape)
    assert.same({ 0 }, scales.shape)
    packed, scales = q.quantize(q.zeros { 3, 0 })
    assert.same({ 3, 0 }, packed.shape)
    assert.same({ 0, 0, 0 }, scales:totable())
  end)

  for _, dtype in ipairs(DTYPES) do
    it("refuses NaN and infinity and says where the first is: " .. dtype, function()
      for _, dim in ipairs { 1, 2 } do
        for name, bad in pairs { ["NaN"] = 0 / 0, ["%+?[Ii]nf"] = 1 / 0, ["%-[Ii]nf"] = -1 / 0 } do
          local source = q.zeros { 33, 40, dtype = dtype }
          source:set(31, 3, bad)
          source:set(14, 38, bad)
          assert.fails_with({ pattern = "^quantize: .*" .. name .. ".* at row 14, column 38" },
            function() q.quantize(source, { dim = dim }) end)
        end
      end
    end)
  end

  it("gives the same bits on every instruction set and any number of threads", function()
    local source = random_floats(cases.random(4), 130, 515, "float32", 4)
    for _, dim in ipairs { 1, 2 } do
      local packed, scales
      for _, isa in ipairs(q.cpu_isas()) do
        for _, threads in ipairs { 1, 3 } do
          q.set_cpu_isa(isa)
          q.set_num_threads(threads)
          local p, s = q.quantize(source, { dim = dim })
          packed, scales = packed or helper.bytes(p), scales or helper.bytes(s)
          assert.same_bits(packed, p, isa)
          assert.same_bits(scales, s, isa)
        end
      end
    end
    q.set_cpu_isa(nil)
    q.set_num_threads(0)
  end)
end)

describe("dequantize", function()
  for _, dtype in ipairs(DTYPES) do
    for _, dim in ipairs { 1, 2 } do
      it(("is the value times the scale, rounded once: %s along dim %d"):format(dtype, dim), function()
        local R, C = 13, 21
        local r = cases.random(21)
        local values = q.empty { R, C, dtype = "int8" }
        for i = 0, R * C - 1 do values:data()[i] = r:range(-8, 7) end
        local scales = q.empty { dim == 1 and C or R, dtype = "float32" }
        for i = 1, scales.shape[1] do scales:set(i, r:range(1, 2 ^ 20) * 2 ^ r:range(-45, -5)) end
        for _, encoding in ipairs { "twos_complement", "offset" } do
          local packed = q.pack_int4_to_int32(values, { dim = dim, encoding = encoding })
          local back = q.dequantize(packed, scales, { dim = dim, encoding = encoding, dtype = dtype,
            length = values.shape[dim] })
          local expected = q.empty { R, C, dtype = "float32" }
          for i = 1, R do
            for j = 1, C do expected:set(i, j, f(values:get(i, j) * scales:get(dim == 1 and j or i))) end
          end
          assert.same_bits(expected:to(dtype), back)
        end
      end)
    end
  end

  it("comes within half a step of what was quantised", function()
    local source = random_floats(cases.random(3), 16, 64, "float32", 2)
    local packed, scales = q.quantize(source)
    local back = q.dequantize(packed, scales)
    assert.equal("float32", back.dtype)
    for i = 1, 16 do
      for j = 1, 64 do
        local off = math.abs(back:get(i, j) - source:get(i, j))
        assert(off <= scales:get(i) * 0.5001, ("(%d, %d) is off by %g"):format(i, j, off))
      end
    end
  end)

  it("propagates infinite and NaN scales", function()
    local packed = q.pack_int4_to_int32(q.tensor({ { 1, -1, 0 }, { 1, -1, 0 } }, { dtype = "int8" }))
    local back = q.dequantize(packed, q.tensor { 1 / 0, 0 / 0 }, { length = 3 }):totable()
    assert.equal(1 / 0, back[1][1])
    assert.equal(-1 / 0, back[1][2])
    for _, x in ipairs { back[1][3], back[2][1], back[2][2], back[2][3] } do assert(x ~= x) end
  end)

  it("makes one NaN of all, on every instruction set", function()
    local values = q.tensor({ { 1, -1, 0, 5, -8, 7, 3 } }, { dtype = "int8" })
    local nan = { float32 = "ffffff7f", float16 = "ff7f", bfloat16 = "ff7f" }
    for _, isa in ipairs(q.cpu_isas()) do
      q.set_cpu_isa(isa)
      for _, bits in ipairs { 0x7fc00000, 0xffc12345, 0x7f800001, 0xffffffff } do
        for dim = 1, 2 do
          local packed = q.pack_int4_to_int32(values, { dim = dim })
          local n = dim == 1 and 7 or 1
          local words = ffi.new("uint32_t[7]", bits, bits, bits, bits, bits, bits, bits)
          local scales = q.wrap(ffi.cast("void *", words), { shape = { n }, owner = words })
          for dtype, expected in pairs(nan) do
            local back = q.dequantize(packed, scales, { dim = dim, length = dim == 1 and 1 or 7, dtype = dtype })
            assert.equal(expected:rep(7), helper.to_hex(helper.bytes(back)), isa .. " " .. dtype)
          end
        end
      end
    end
    q.set_cpu_isa(nil)
  end)
end)
