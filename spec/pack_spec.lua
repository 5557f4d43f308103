--- Packing and unpacking against plain Lua: both dimensions, both encodings, padding, strides, bad values.

local bit = require "bit"

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local ENCODINGS = { "twos_complement", "offset" }

--- A matrix of int4 values drawn from a generator.
local function random_values(r, rows, cols, dtype)
  local t = q.empty { rows, cols, dtype = dtype }
  local p = t:data()
  for i = 0, rows * cols - 1 do p[i] = r:range(-8, 7) end
  return t
end

--- The words by the definition: word j of a row holds values 8j .. 8j+7, lowest nibble first; padding means zero.
local function pack_by_definition(t, dim, encoding)
  local values, rows, cols = t:totable(), t.shape[1], t.shape[2]
  local function value(i, k) -- k along the packed dimension
    local row, col = i, k
    if dim == 1 then row, col = k, i end
    if row > rows or col > cols then return 0 end
    return values[row][col]
  end
  local lines, length = rows, cols
  if dim == 1 then lines, length = cols, rows end
  local words = math.ceil(length / 8)
  local result = dim == 2 and q.empty { lines, words, dtype = "int32" } or q.empty { words, lines, dtype = "int32" }
  for i = 1, lines do
    for j = 1, words do
      local word = 0
      for n = 0, 7 do
        local v = value(i, 8 * (j - 1) + n + 1)
        word = bit.bor(word, bit.lshift(encoding == "offset" and v + 8 or bit.band(v, 15), 4 * n))
      end
      if dim == 2 then result:set(i, j, word) else result:set(j, i, word) end
    end
  end
  return result
end

--- Ten around every boundary, and what vector code handles apart.
local SHAPES = { { 1, 1 }, { 1, 8 }, { 8, 1 }, { 3, 7 }, { 7, 3 }, { 2, 9 }, { 9, 2 }, { 16, 16 }, { 5, 64 }, { 64, 5 },
  { 17, 33 }, { 33, 130 }, { 130, 33 }, { 1, 257 }, { 257, 1 } }

describe("pack_int4_to_int32", function()
  for _, dim in ipairs { 1, 2 } do
    for _, encoding in ipairs(ENCODINGS) do
      it(("is the definition, along dim %d, %s"):format(dim, encoding), function()
        local r = cases.random(dim)
        for _, shape in ipairs(SHAPES) do
          for _, dtype in ipairs { "int8", "int32" } do
            local values = random_values(r, shape[1], shape[2], dtype)
            local packed = q.pack_int4_to_int32(values, { dim = dim, encoding = encoding })
            assert.same_bits(pack_by_definition(values, dim, encoding), packed,
              ("[%d, %d] %s"):format(shape[1], shape[2], dtype))
          end
        end
      end)
    end

    it(("reads a strided view, along dim %d"):format(dim), function()
      local whole = random_values(cases.random(5), 20, 50, "int8")
      local view = whole:narrow(1, 3, 13):narrow(2, 6, 21)
      assert.same_bits(pack_by_definition(view, dim, "offset"),
        q.pack_int4_to_int32(view, { dim = dim, encoding = "offset" }))
    end)
  end

  it("packs columns and two's complement by default", function()
    local values = q.tensor({ { -8, -7, -1, 0, 1, 2, 6, 7 } }, { dtype = "int8" })
    assert.same({ { bit.tobit(0x76210f98) } }, q.pack_int4_to_int32(values):totable())
    assert.same({ { bit.tobit(0xfea98710) } }, q.pack_int4_to_int32(values, { encoding = "offset" }):totable())
  end)

  it("differs between the encodings by 0x88888888 in every word, padding too", function()
    local values = random_values(cases.random(6), 3, 13, "int8")
    local twos, offset = q.pack_int4_to_int32(values):totable(), q.pack_int4_to_int32(values, { encoding = "offset" })
    for i, row in ipairs(offset:totable()) do
      for j, word in ipairs(row) do assert.equal(bit.tobit(0x88888888), bit.bxor(word, twos[i][j])) end
    end
  end)

  it("takes matrices without elements", function()
    assert.same({ 0, 2 }, q.pack_int4_to_int32(q.zeros { 0, 16, dtype = "int8" }).shape)
    assert.same({ 3, 0 }, q.pack_int4_to_int32(q.zeros { 3, 0, dtype = "int8" }).shape)
    assert.same({ 0, 3 }, q.pack_int4_to_int32(q.zeros({ 0, 3, dtype = "int8" }), { dim = 1 }).shape)
  end)

  it("writes into out, and leaves what is around it", function()
    local values = random_values(cases.random(7), 5, 24, "int8")
    local whole = q.full({ 7, 9, dtype = "int32" }, 123456)
    local out = whole:narrow(1, 2, 5):narrow(2, 4, 3)
    assert.equal(out, q.pack_int4_to_int32(values, { out = out }))
    assert.same_bits(pack_by_definition(values, 2, "twos_complement"), out)
    for i = 1, 7 do
      for j = 1, 9 do
        if i < 2 or i > 6 or j < 4 or j > 6 then assert.equal(123456, whole:get(i, j)) end
      end
    end
  end)

  for _, dtype in ipairs { "int8", "int32" } do
    it("refuses values outside [-8, 7] and says where the first is: " .. dtype, function()
      for _, bad in ipairs { 8, -9, 127, -128 } do
        for _, dim in ipairs { 1, 2 } do
          local values = q.zeros { 37, 45, dtype = dtype }
          values:set(30, 2, bad)
          values:set(12, 41, bad) -- the first by rows
          local number = tostring(bad):gsub("%-", "%%-")
          assert.fails_with({ pattern = "^pack_int4_to_int32: .* " .. number .. " at row 12, column 41.*%-8 to 7" },
            function() q.pack_int4_to_int32(values, { dim = dim }) end)
        end
      end
    end)
  end

  it("refuses words that only look small in their low bits", function()
    for _, bad in ipairs { 2 ^ 31 - 1, -2 ^ 31, 256, 65536 + 3, -256 } do
      local values = q.zeros { 2, 16, dtype = "int32" }
      values:set(2, 3, bad)
      assert.fails_with({ pattern = "^pack_int4_to_int32: .* at row 2, column 3" },
        function() q.pack_int4_to_int32(values) end)
    end
  end)
end)

describe("unpack_int32_to_int4", function()
  for _, dim in ipairs { 1, 2 } do
    for _, encoding in ipairs(ENCODINGS) do
      it(("undoes packing, along dim %d, %s"):format(dim, encoding), function()
        local r = cases.random(10 + dim)
        for _, shape in ipairs(SHAPES) do
          local values = random_values(r, shape[1], shape[2], "int8")
          local opts = { dim = dim, encoding = encoding }
          local packed = q.pack_int4_to_int32(values, opts)
          opts.length = shape[dim]
          assert.same_bits(values, q.unpack_int32_to_int4(packed, opts), ("[%d, %d]"):format(shape[1], shape[2]))
          opts.dtype = "int32"
          assert.same_bits(values:to "int32", q.unpack_int32_to_int4(packed, opts))
        end
      end)
    end
  end

  it("gives the padding of words without a mark too when no length is given: zeros", function()
    local values = q.full({ 2, 11, dtype = "int8" }, -8)
    for _, encoding in ipairs(ENCODINGS) do
      local packed = q.pack_int4_to_int32(values, { encoding = encoding })
      local back = q.unpack_int32_to_int4(packed:unmark_(), { encoding = encoding })
      assert.same({ 2, 16 }, back.shape)
      assert.same_bits(values, back:narrow(2, 1, 11))
      assert.same_bits(q.zeros { 2, 5, dtype = "int8" }, back:narrow(2, 12, 5))
    end
  end)

  it("knows every word: 16 values in each of the eight places", function()
    local words = q.empty { 16, 8, dtype = "int32" }
    for v = 0, 15 do
      for n = 0, 7 do words:set(v + 1, n + 1, bit.lshift(v, 4 * n)) end
    end
    local back = q.unpack_int32_to_int4(words):totable()
    for v = 0, 15 do
      for n = 0, 7 do
        assert.equal(v < 8 and v or v - 16, back[v + 1][8 * n + n + 1])
        assert.equal(0, back[v + 1][8 * n + (n + 1) % 8 + 1])
      end
    end
  end)

  it("reads a strided view", function()
    local words = q.random(q.empty { 9, 12, dtype = "int32" }, { seed = 3 })
    local view = words:narrow(1, 2, 5):narrow(2, 3, 7)
    for _, dim in ipairs { 1, 2 } do
      assert.same_bits(q.unpack_int32_to_int4(view:clone(), { dim = dim }), q.unpack_int32_to_int4(view, { dim = dim }))
    end
  end)

  it("refuses a length that the words do not hold", function()
    local words = q.zeros { 2, 2, dtype = "int32" }
    assert.fails_with({ pattern = "^unpack_int32_to_int4: .*length.*17" },
      function() q.unpack_int32_to_int4(words, { length = 17 }) end)
    assert.fails_with({ pattern = "^unpack_int32_to_int4: .*length.*8" },
      function() q.unpack_int32_to_int4(words, { length = 8 }) end)
  end)
end)

describe("packing on every instruction set", function()
  after_each(function() q.set_cpu_isa(nil) end)

  it("gives the same bits", function()
    local values = random_values(cases.random(8), 70, 203, "int8")
    for _, dim in ipairs { 1, 2 } do
      for _, encoding in ipairs(ENCODINGS) do
        local expected
        for _, isa in ipairs(q.cpu_isas()) do
          q.set_cpu_isa(isa)
          local packed = q.pack_int4_to_int32(values, { dim = dim, encoding = encoding })
          expected = expected or helper.bytes(packed)
          assert.same_bits(expected, packed, isa)
          assert.same_bits(values,
            q.unpack_int32_to_int4(packed, { dim = dim, encoding = encoding, length = values.shape[dim] }), isa)
        end
      end
    end
  end)
end)
