--- Shapes, transposing, joining, picking, sums and comparisons of tensors, against plain Lua.

local ffi = require "ffi"

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local DTYPES = { "int32", "int8", "float16", "bfloat16", "float32" }
local SHAPES = {
  { 0, 0 }, { 0, 5 }, { 5, 0 }, { 1, 1 }, { 1, 7 }, { 7, 1 }, { 2, 3 }, { 31, 33 }, { 32, 64 }, { 65, 17 }, { 3, 1030 },
  { 130, 257 },
}

--- A matrix of random bits, every other one with gaps between its rows (filled with random bits as well).
local function random_matrix(r, rows, columns, dtype)
  local left, right = r:range(0, 2) * r:range(0, 8), r:range(0, 1) * r:range(0, 16)
  local whole = q.empty { rows, left + columns + right, dtype = dtype }
  local bytes = {}
  for i = 1, whole:numel() * helper.ELEMENT_BYTES[dtype] do bytes[i] = string.char(r:range(0, 255)) end
  helper.set_bytes(whole, table.concat(bytes))
  return whole:narrow(2, left + 1, columns)
end

--- The bits of a matrix as a table of rows of strings.
local function bits_of(t)
  local size, bytes, rows = helper.ELEMENT_BYTES[t.dtype], helper.bytes(t), {}
  for i = 1, t.shape[1] do
    rows[i] = {}
    for j = 1, t.shape[2] do
      local at = ((i - 1) * t.shape[2] + j - 1) * size
      rows[i][j] = bytes:sub(at + 1, at + size)
    end
  end
  return rows
end

--- What pick(i, j) gives for each element of a [rows, columns] result, as bytes.
local function bytes_of(rows, columns, pick)
  local bytes = {}
  for i = 1, rows do
    for j = 1, columns do bytes[#bytes + 1] = pick(i, j) end
  end
  return table.concat(bytes)
end

--- A [rows, columns] matrix holding 10 * row + column.
local function numbered(rows, columns, dtype)
  local t = q.empty { rows, columns, dtype = dtype or "float32" }
  for i = 1, rows do
    for j = 1, columns do t:set(i, j, 10 * i + j) end
  end
  return t
end

describe("view and reshape", function()
  it("see the elements in another shape, in the same memory", function()
    for _, dtype in ipairs(DTYPES) do
      local t = numbered(2, 6, dtype)
      local u = t:view(3, 4)
      assert.same({ { 11, 12, 13, 14 }, { 15, 16, 21, 22 }, { 23, 24, 25, 26 } }, u:totable())
      u:set(2, 3, 99)
      assert.equal(99, t:get(2, 1))
      assert.same({ 11, 12, 13, 14, 15, 16, 99, 22, 23, 24, 25, 26 }, t:view(12):totable())
      assert.same(t:totable(), t:view(12):view { 2, 6 }:totable())
      assert.equal(t:data(), t:reshape(12, 1):data())
    end
  end)

  it("find one size", function()
    local t = numbered(4, 6)
    assert.same({ 3, 8 }, t:view(3, -1).shape)
    assert.same({ 2, 12 }, t:view { -1, 12 }.shape)
    assert.same({ 24 }, t:reshape(-1).shape)
    assert.same({ 0, 5 }, q.zeros { 5, 0 }:view(-1, 5).shape)
  end)

  it("keep the tensor's memory, and what owns it, alive", function()
    local view = numbered(2, 2):view(4)
    collectgarbage()
    collectgarbage()
    assert.same({ 11, 12, 21, 22 }, view:totable())
    local memory = setmetatable({}, { __mode = "v" })
    do
      local array = ffi.new("float[4]", { 1, 2, 3, 4 })
      memory[1] = array
      view = q.wrap(array, { shape = { 2, 2 } }):view(4)
    end
    collectgarbage()
    collectgarbage()
    assert.is_truthy(memory[1])
    assert.same({ 1, 2, 3, 4 }, view:totable())
  end)

  it("copy where rows have gaps, and only then", function()
    local t = numbered(3, 4)
    local part = t:narrow(2, 2, 2)
    assert.fails_with("view: tensor is [3, 2] float32 with a stride of 4: only rows without gaps can be seen in "
      .. "another shape", function() part:view(6) end)
    local copy = part:reshape(2, 3)
    assert.same({ { 12, 13, 22 }, { 23, 32, 33 } }, copy:totable())
    copy:set(1, 1, 0)
    assert.equal(12, t:get(1, 2))
    assert.equal(part:data(), part:reshape(3, 2):data())
    assert.equal(part:data(), part:view(3, 2):data())
    local row = t:narrow(1, 2, 1):narrow(2, 2, 2)
    assert.same({ 22, 23 }, row:view(2):totable()) -- one row has no gaps
  end)

  it("refuse other numbers of elements", function()
    local t = q.zeros { 4, 6 }
    assert.fails_with("view: 5 x 5 elements are not those of [4, 6] float32", function() t:view(5, 5) end)
    assert.fails_with("reshape: 25 x 1 elements are not those of [4, 6] float32", function() t:reshape(25) end)
    assert.fails_with("reshape: 5 x 1 elements are not those of [4, 3] float32",
      function() t:narrow(2, 1, 3):reshape(5) end)
    assert.fails_with("view: the number of columns is -1, but 24 elements are no multiple of 5",
      function() t:view(5, -1) end)
    assert.fails_with("view: the number of rows is -1, which does not follow from an extent of 0", function()
      local empty = q.zeros { 0, 4 }
      empty:view(-1, 0)
    end)
    assert.fails_with("view: both sizes are -1, expected one of them to be given", function() t:view(-1, -1) end)
    assert.fails_with("view: the number of rows is 2.5, expected a whole number >= -1", function() t:view(2.5, 4) end)
    assert.fails_with("view: the length is nil, expected a whole number >= -1", function() t:view() end)
    assert.fails_with("view: a tensor has one or two dimensions, the shape given has more",
      function() t:view { 2, 3, 4 } end)
  end)

  it("keep a mark with its shape, and refuse marked words in another", function()
    local packed = q.pack_int4_to_int32(q.zeros { 4, 60, dtype = "int8" }, { encoding = "offset" })
    assert.same({ dim = 2, encoding = "offset", length = 60 }, packed:view(4, 8).packing)
    assert.same({ dim = 2, encoding = "offset", length = 60 }, packed:reshape(4, -1).packing)
    for _, name in ipairs { "view", "reshape" } do
      assert.fails_with(name .. ": tensor is [4, 8] int32 of int4 packed along dim 2, which another shape would break: "
        .. "unpack it, or take its mark away", function() packed[name](packed, 32) end)
    end
    assert.is_nil(packed:unmark_():view(32).packing)
  end)
end)

describe("rows", function()
  it("are vectors over the matrix", function()
    local t = numbered(3, 4)
    local seen = {}
    for i, row in t:narrow(2, 2, 2):rows() do
      seen[i] = row:totable()
      assert.equal(1, row:dim())
      row:fill_(i)
    end
    assert.same({ { 12, 13 }, { 22, 23 }, { 32, 33 } }, seen)
    assert.same({ { 11, 1, 1, 14 }, { 21, 2, 2, 24 }, { 31, 3, 3, 34 } }, t:totable())
    for _ in q.zeros { 0, 4 }:rows() do error "there is no row" end
    for _, row in q.zeros { 2, 0 }:rows() do assert.same({ 0 }, row.shape) end
  end)

  it("need a matrix that is not packed", function()
    assert.fails_with("rows: the tensor is [3], expected a matrix", function() q.zeros({ 3 }):rows() end)
    local packed = q.generate_test_data(2, 16, 1)
    assert.fails_with("rows: the tensor is int4 packed along dim 2, K = 16, twos_complement, which rows as vectors "
      .. "could not say; narrow(1, i, 1) gives a row that does", function() packed:rows() end)
  end)
end)

--- What is tested on the CPU and on a GPU alike.
local function rearranging(device)
  -- the matrix there, now and then with gaps between its rows
  local function there(r, t)
    if device == "cpu" then return t end
    local rows, columns = t.shape[1], t.shape[2]
    local whole = q.empty { rows, columns + r:range(0, 3), dtype = t.dtype, device = device }
    return whole:narrow(2, 1, columns):copy_(t)
  end

  local function transposes()
    local r = cases.random(11)
    for _, dtype in ipairs(DTYPES) do
      for _, shape in ipairs(SHAPES) do
        local t = random_matrix(r, shape[1], shape[2], dtype)
        local bits, u = bits_of(t), there(r, t):t()
        assert.same({ shape[2], shape[1] }, u.shape)
        assert.equal(device == "cpu" and "cpu" or "cuda:0", u.device)
        assert.same_bits(bytes_of(shape[2], shape[1], function(i, j) return bits[j][i] end), u,
          ("%s [%d, %d]"):format(dtype, shape[1], shape[2]))
      end
    end
  end

  local function gathers()
    local r = cases.random(12)
    for _, dtype in ipairs(DTYPES) do
      for _, shape in ipairs(SHAPES) do
        for dim = 1, 2 do
          local t = random_matrix(r, shape[1], shape[2], dtype)
          local n, list, ids = r:choose { 0, 1, 3, 40 }, {}, {}
          if shape[dim] == 0 then n = 0 end
          for i = 1, n do list[i] = r:range(1, shape[dim]) ids[i] = list[i] - 1 end
          local indices = q.tensor(ids, { dtype = "int32" }):to(device)
          local bits, source = bits_of(t), there(r, t)
          local rows, columns = dim == 1 and n or shape[1], dim == 2 and n or shape[2]
          local expected = bytes_of(rows, columns, function(i, j)
            return bits[dim == 1 and list[i] or i][dim == 2 and list[j] or j]
          end)
          local name = ("%s [%d, %d], %d along %d"):format(dtype, shape[1], shape[2], n, dim)
          for _, chosen in ipairs { list, indices, indices:to "cpu" } do
            local u = source:index_select(dim, chosen)
            assert.same({ rows, columns }, u.shape)
            assert.same_bits(expected, u, name)
          end
        end
      end
    end
  end

  local function gathers_of_vectors()
    for _, dtype in ipairs(DTYPES) do
      local t = q.tensor({ 5, 6, 7 }, { dtype = dtype, device = device })
      assert.same({ 7, 5, 5 }, t:index_select(1, { 3, 1, 1 }):totable())
      assert.same({ 6 }, t:index_select(1, q.tensor({ 1 }, { dtype = "int32", device = device })):totable())
    end
  end

  local function joins()
    local r = cases.random(13)
    for _, dtype in ipairs(DTYPES) do
      for dim = 1, 2 do
        local list, bits, total = {}, {}, 0
        for i, extent in ipairs { 3, 0, 1, 40 } do
          local t = random_matrix(r, dim == 1 and extent or 5, dim == 2 and extent or 5, dtype)
          list[i] = there(r, t)
          for k, row in ipairs(bits_of(t)) do
            if dim == 1 then bits[#bits + 1] = row else
              bits[k] = bits[k] or {}
              for _, bit in ipairs(row) do table.insert(bits[k], bit) end
            end
          end
          total = total + extent
        end
        local joined = q.cat(list, dim)
        assert.same(dim == 1 and { total, 5 } or { 5, total }, joined.shape)
        assert.same_bits(bytes_of(joined.shape[1], joined.shape[2], function(i, j) return bits[i][j] end), joined)
      end
    end
    local v = q.tensor({ 1, 2 }, { device = device })
    assert.same({ 1, 2, 1, 2, 1 }, q.cat({ v, v, v:narrow(1, 1, 1) }):totable())
  end

  return { transposes = transposes, gathers = gathers, gathers_of_vectors = gathers_of_vectors, joins = joins }
end

describe("t", function()
  it("is the transposed matrix, a copy, for every dtype, shape and stride", rearranging("cpu").transposes)

  it("is the same on several threads", function()
    local t = q.random(q.empty { 1000, 777 }, { seed = 3 })
    q.set_num_threads(1)
    local one = t:t()
    q.set_num_threads(4)
    local four = t:t()
    q.set_num_threads(nil)
    assert.same_bits(one, four)
    assert.equal(t:get(999, 5), one:get(5, 999))
    assert.same_bits(t, four:t())
  end)

  it("shares no memory", function()
    local t = numbered(2, 2)
    t:t():fill_(0)
    assert.same({ { 11, 12 }, { 21, 22 } }, t:totable())
  end)

  it("turns a mark to the other dimension, so that the values stay", function()
    local r = cases.random(5)
    local values = q.empty { 20, 60, dtype = "int8" }
    for i = 1, 20 do
      for j = 1, 60 do values:set(i, j, r:range(-8, 7)) end
    end
    for _, encoding in ipairs { "offset", "twos_complement" } do
      local packed = q.pack_int4_to_int32(values, { encoding = encoding })
      local turned = packed:t()
      assert.same({ dim = 1, encoding = encoding, length = 60 }, turned.packing)
      assert.same_bits(values:t(), q.unpack_int32_to_int4(turned))
      assert.same({ dim = 2, encoding = encoding, length = 60 }, turned:t().packing)
    end
  end)

  it("takes a weight for layout nk to one for kn", function()
    local a, b, scale_a, scale_b = q.generate_test_data(5, 64, 24)
    local nk = b:t()
    assert.same_bits(q.int4_matmul_cpu(a, b, scale_a, scale_b), q.int4_matmul_cpu(a, nk, scale_a, scale_b))
    assert.same_bits(b, nk:t())
  end)

  it("needs a matrix", function()
    assert.fails_with("t: the tensor is [3], expected a matrix", function() q.zeros({ 3 }):t() end)
    local prepacked = q.prepack((select(2, q.generate_test_data(1, 8, 1))))
    assert.fails_with({ pattern = "^t: the tensor is prepacked; its elements cannot be read or written" },
      function() prepacked:t() end)
  end)
end)

describe("index_select", function()
  it("picks rows and columns, for every dtype, shape and stride", rearranging("cpu").gathers)
  it("picks elements of vectors", rearranging("cpu").gathers_of_vectors)

  it("is the same on several threads", function()
    local t, ids = q.random(q.empty { 300, 513 }, { seed = 3 }), {}
    for i = 1, 1000 do ids[i] = i * 77 % 300 + 1 end
    q.set_num_threads(4)
    local four = t:index_select(1, ids)
    local columns = t:t():index_select(2, ids)
    q.set_num_threads(nil)
    for i = 1, 1000, 111 do assert.same_bits(t:narrow(1, ids[i], 1), four:narrow(1, i, 1)) end
    assert.same_bits(four, columns:t())
  end)

  it("refuses indices outside the tensor, and writes nothing", function()
    local t = numbered(3, 4)
    assert.fails_with("index_select: indices[2] is 4, expected a whole number from 1 to 3",
      function() t:index_select(1, { 3, 4 }) end)
    assert.fails_with("index_select: indices[1] is 0, expected a whole number from 1 to 4",
      function() t:index_select(2, { 0 }) end)
    assert.fails_with("index_select: indices[1] is \"a\", expected a whole number from 1 to 4",
      function() t:index_select(2, { "a" }) end)
    for _, outside in ipairs { 3, -1, 2 ^ 31 - 1, -2 ^ 31 } do
      local ids = q.tensor({ 2, outside, 9 }, { dtype = "int32" })
      assert.fails_with(("index_select: indices holds %d at index 2: src has 3, counted from 0"):format(outside),
        function() t:index_select(1, ids) end)
    end
    assert.fails_with({ pattern = "^index_select: indices is a tensor %[1%] float32, expected a vector of int32" },
      function() t:index_select(1, q.zeros { 1 }) end)
    assert.fails_with({ pattern = "^index_select: indices is 3, expected a tensor" },
      function() t:index_select(1, 3) end)
    assert.fails_with("index_select: dim is 3, expected a whole number from 1 to 2",
      function() t:index_select(3, { 1 }) end)
  end)

  it("keeps the mark of rows of words, and refuses the packed dimension", function()
    local values = q.tensor({ { 1, 2, 3 }, { 4, 5, 6 }, { -1, -2, -3 } }, { dtype = "int8" })
    local packed = q.pack_int4_to_int32(values, { encoding = "offset" })
    local picked = packed:index_select(1, { 3, 1 })
    assert.same({ dim = 2, encoding = "offset", length = 3 }, picked.packing)
    assert.same({ { -1, -2, -3 }, { 1, 2, 3 } }, q.unpack_int32_to_int4(picked):totable())
    assert.fails_with("index_select: src is [3, 1] int32 of int4 packed along dim 2, along which only whole words "
      .. "could be gathered: unpack it, or take its mark away", function() packed:index_select(2, { 1 }) end)
  end)
end)

describe("cat", function()
  it("puts tensors below each other and side by side, for every dtype", rearranging("cpu").joins)

  it("refuses what does not fit", function()
    local t = q.zeros { 2, 3 }
    assert.fails_with("cat: the list is empty, expected a table of one tensor or more", function() q.cat({}) end)
    assert.fails_with({ pattern = "^cat: the list is a tensor %[2, 3%] float32, expected a table" },
      function() q.cat(t) end)
    assert.fails_with("cat: tensor 2 is [2, 4] float32 but tensor 1 is [2, 3] float32; they may differ along dim 1 "
      .. "alone", function() q.cat({ t, q.zeros { 2, 4 } }, 1) end)
    assert.fails_with("cat: tensor 2 is [2, 3] int8 but tensor 1 is [2, 3] float32; they may differ along dim 2 alone",
      function() q.cat({ t, q.zeros { 2, 3, dtype = "int8" } }, 2) end)
    assert.fails_with({ pattern = "^cat: tensor 2 is %[3%] float32 but tensor 1 is %[2, 3%] float32" },
      function() q.cat { t, q.zeros { 3 } } end)
    assert.fails_with({ pattern = "^cat: tensor 2 is 5, expected a tensor" }, function() q.cat { t, 5 } end)
    assert.fails_with("cat: dim is 2, expected a whole number from 1 to 1", function() q.cat({ q.zeros { 3 } }, 2) end)
    assert.fails_with({ pattern = '^cat: unknown option "out"' }, function() q.cat({ t }, 1, { out = t }) end)
  end)

  it("joins packed words where the values follow each other", function()
    local function packed(rows, columns, value, opts)
      return q.pack_int4_to_int32(q.full({ rows, columns, dtype = "int8" }, value), opts)
    end
    local below = q.cat { packed(2, 20, 3), packed(1, 20, -4) }
    assert.same({ dim = 2, encoding = "twos_complement", length = 20 }, below.packing)
    assert.same_bits(q.cat { q.full({ 2, 20, dtype = "int8" }, 3), q.full({ 1, 20, dtype = "int8" }, -4) },
      q.unpack_int32_to_int4(below))
    local beside = q.cat({ packed(2, 16, 3), packed(2, 20, -4) }, 2)
    assert.same({ dim = 2, encoding = "twos_complement", length = 36 }, beside.packing)
    assert.same_bits(q.cat({ q.full({ 2, 16, dtype = "int8" }, 3), q.full({ 2, 20, dtype = "int8" }, -4) }, 2),
      q.unpack_int32_to_int4(beside))
    assert.equal(16, q.cat({ packed(2, 16, 3), packed(2, 0, 3) }, 2).packing.length)
    assert.fails_with("cat: tensor 1 is int4 packed along dim 2, K = 20, twos_complement, so its last word may not be "
      .. "full, and others follow it; take the marks away, or unpack first",
      function() q.cat({ packed(2, 20, 3), packed(2, 16, -4) }, 2) end)
    assert.fails_with({ pattern = "^cat: tensor 2 is int4 packed along dim 2, K = 20, offset but tensor 1 is int4 "
      .. "packed along dim 2, K = 20, twos_complement; " },
      function() q.cat { packed(2, 20, 3), packed(2, 20, 3, { encoding = "offset" }) } end)
    local function rotated(rows, columns, block)
      return (q.quantize(q.random(q.empty { rows, columns }), { rotate = block }))
    end
    assert.equal(16, q.cat { rotated(2, 32, 16), rotated(1, 32, 16) }.packing.rotate)
    assert.same({ dim = 2, encoding = "twos_complement", length = 48, rotate = 16 },
      q.cat({ rotated(2, 32, 16), rotated(2, 16, 16) }, 2).packing)
    assert.fails_with({ pattern = "^cat: tensor 2 is int4 .*, rotated by 8 but tensor 1 is int4 .*, rotated by 16; " },
      function() q.cat { rotated(2, 32, 16), rotated(2, 32, 8) } end)
    assert.equal(16, rotated(2, 32, 16):t().packing.rotate)
    assert.equal(16, rotated(2, 32, 16):index_select(1, { 2, 2 }).packing.rotate)
    assert.equal(16, rotated(2, 32, 16):view(2, 4).packing.rotate)
    assert.fails_with({ pattern = "^cat: tensor 2 is int4 packed along dim 2, K = 22, twos_complement but tensor 1 " },
      function() q.cat { packed(2, 20, 3), packed(2, 22, 3) } end)
    local words = q.zeros { 2, 3, dtype = "int32" }
    assert.fails_with({ pattern = "^cat: tensor 2 is not packed but tensor 1 is int4 packed" },
      function() q.cat { packed(2, 20, 3), words } end)
    assert.fails_with({ pattern = "^cat: tensor 2 is int4 packed .* but tensor 1 is not packed; " },
      function() q.cat { words, packed(2, 20, 3) } end)
  end)
end)

describe("sum, mean, max, min and abs_max", function()
  it("are those of plain Lua, in order, for every dtype and stride", function()
    local r = cases.random(14)
    for _, dtype in ipairs(DTYPES) do
      for _, shape in ipairs { { 1, 1 }, { 3, 5 }, { 17, 31 } } do
        local t = random_matrix(r, shape[1], shape[2], dtype)
        if dtype:find "float" then -- finite ones
          for i = 1, shape[1] do
            for j = 1, shape[2] do t:set(i, j, r:range(-4000, 4000) / 512) end
          end
        end
        local sum, most, least, magnitude = 0, -math.huge, math.huge, 0
        for _, row in ipairs(t:totable()) do
          for _, x in ipairs(row) do
            sum, most, least = sum + x, math.max(most, x), math.min(least, x)
            magnitude = math.max(magnitude, math.abs(x))
          end
        end
        assert.equal(sum, t:sum())
        assert.equal(sum / t:numel(), t:mean())
        assert.equal(most, t:max())
        assert.equal(least, t:min())
        assert.equal(magnitude, t:abs_max())
      end
    end
  end)

  it("add in float64, from the first element to the last", function()
    assert.equal(1, q.tensor({ 2 ^ 60, -2 ^ 60, 1 }):sum())
    assert.equal(0, q.tensor({ 1, 2 ^ 60, -2 ^ 60 }):sum())
    assert.equal(2 ^ 24 + 1, q.tensor({ 2 ^ 24, 1 }):sum())
    assert.equal(2 ^ 31, q.tensor({ -2 ^ 31, 2 ^ 31 - 1 }, { dtype = "int32" }):abs_max())
    assert.equal(2 ^ -149, q.tensor({ 0, 2 ^ -149 }):max())
  end)

  it("are NaN where an element is, wherever it stands", function()
    for _, name in ipairs { "sum", "mean", "max", "min", "abs_max" } do
      for position = 1, 3 do
        local t = q.tensor { 1, 2, 3 }
        t:set(position, 0 / 0)
        local x = t[name](t)
        assert(x ~= x, name)
      end
    end
    assert.equal(math.huge, q.tensor({ 1, -math.huge }):abs_max())
  end)

  it("of nothing are 0, NaN and an error", function()
    local t = q.zeros { 0, 3 }
    assert.equal(0, t:sum())
    assert.is_true(t:mean() ~= t:mean())
    for _, name in ipairs { "max", "min", "abs_max" } do
      assert.fails_with(name .. ": the tensor has no elements, expected one or more", function() t[name](t) end)
    end
    assert.fails_with("sum: the tensor was freed", function()
      local freed = q.zeros { 1 }
      freed:free()
      freed:sum()
    end)
  end)
end)

describe("allclose", function()
  it("compares within tolerances of the other tensor's element", function()
    local t = q.tensor { 100, -1, 0 }
    assert.is_true(t:allclose(q.tensor { 100.0009, -1.000005, 1e-8 }))
    assert.same({ false, "1 of 3 elements are not close, the first at index 3: 0 and 1.99999999e-08" },
      { t:allclose(q.tensor { 100, -1, 2e-8 }) })
    assert.is_false((t:allclose(q.tensor { 100.01, -1, 0 })))
    assert.is_true(t:allclose(q.tensor { 110, -1, 0 }, { rtol = 0.1 }))
    assert.is_false((q.tensor { 110 }:allclose(q.tensor { 99 }, { rtol = 0.1 }))) -- of the other: 9.9
    assert.is_true(q.tensor { 99 }:allclose(q.tensor { 110 }, { rtol = 0.1 }))
    assert.is_true(t:allclose(q.tensor { 101, 0, 1 }, { rtol = 0, atol = 1 }))
    assert.same({ false, "2 of 4 elements are not close, the first at row 1, column 2: 2 and 3" },
      { q.tensor { { 1, 2 }, { 3, 4 } }:allclose(q.tensor { { 1, 3 }, { 3, 5 } }) })
  end)

  it("takes other dtypes and strides", function()
    local t = numbered(3, 4)
    assert.is_true(t:narrow(2, 2, 2):allclose(t:to("half"):narrow(2, 2, 2)))
    assert.is_true(t:allclose(t:to "bfloat16", { atol = 0.2 }))
    assert.same({ false, "the shapes are [3, 4] and [4, 3]" }, { t:allclose(t:t()) })
    assert.same({ false, "the shapes are [2] and [2, 1]" }, { q.zeros({ 2 }):allclose(q.zeros { 2, 1 }) })
    assert.is_true(q.zeros({ 0, 2 }):allclose(q.zeros { 0, 2 }))
  end)

  it("knows infinities and NaN", function()
    local inf, nan = math.huge, 0 / 0
    assert.is_true(q.tensor({ inf, -inf }):allclose(q.tensor { inf, -inf }))
    for _, pair in ipairs { { inf, -inf }, { 1, inf }, { inf, 1 }, { nan, nan }, { nan, 1 }, { 1, nan } } do
      assert.is_false((q.tensor({ pair[1] }):allclose(q.tensor { pair[2] })))
    end
    assert.is_true(q.tensor({ nan }):allclose(q.tensor { nan }, { equal_nan = true }))
    assert.is_false((q.tensor({ nan }):allclose(q.tensor { 1 }, { equal_nan = true })))
  end)

  it("refuses tolerances that are none", function()
    local t = q.zeros { 1 }
    assert.fails_with("allclose: rtol is -1, expected a finite number, 0 or more",
      function() t:allclose(t, { rtol = -1 }) end)
    assert.fails_with({ pattern = "^allclose: atol is %-?nan, expected" },
      function() t:allclose(t, { atol = 0 / 0 }) end)
    assert.fails_with({ pattern = '^allclose: unknown option "tol"' }, function() t:allclose(t, { tol = 1 }) end)
  end)
end)

describe("the dtype names of PyTorch", function()
  it("half and float are taken wherever a dtype is", function()
    assert.equal("float16", q.zeros({ 2, dtype = "half" }).dtype)
    assert.equal("float32", q.tensor({ 1 }, { dtype = "float" }).dtype)
    assert.equal("float16", q.tensor({ 1 }):to("half").dtype)
    local a, b, scale_a, scale_b = q.generate_test_data(1, 8, 1)
    assert.equal("float32", q.int4_matmul_cpu(a, b, scale_a, scale_b, { out_dtype = "float" }).dtype)
  end)

  it("others are refused with the five that there are", function()
    for _, name in ipairs { "double", "long", "fp16", "torch.float16", "Half", "int", "char" } do
      assert.fails_with(('zeros: dtype is "%s", expected "bfloat16", "float16", "float32", "int32" or "int8"'):format(
        name), function() q.zeros { 2, dtype = name } end)
    end
    assert.fails_with({ pattern = '^to: the target is "double", expected a device' },
      function() q.zeros({ 2 }):to "double" end)
  end)
end)

describe("on a GPU", function()
  helper.on_gpu("t is the transposed matrix", rearranging("cuda").transposes)
  helper.on_gpu("index_select picks rows and columns", rearranging("cuda").gathers)
  helper.on_gpu("index_select picks elements of vectors", rearranging("cuda").gathers_of_vectors)
  helper.on_gpu("cat joins", rearranging("cuda").joins)

  helper.on_gpu("an index outside the tensor gives NaN or -1, and reads nothing there", function()
    local nothing = { int32 = "\255\255\255\255", int8 = "\255", float16 = "\255\127", bfloat16 = "\255\127",
      float32 = "\255\255\255\127" }
    local ids = q.tensor({ 1, -1, 2, 2 ^ 31 - 1, -2 ^ 31, 0 }, { dtype = "int32", device = "cuda" })
    for _, dtype in ipairs(DTYPES) do
      for _, columns in ipairs { 3, 16 } do
        local t = numbered(2, columns, dtype)
        local bits, there = bits_of(t), t:to "cuda"
        local from = { 2, 0, 0, 0, 0, 1 }
        local expected = bytes_of(6, columns, function(i, j) return (bits[from[i]] or {})[j] or nothing[dtype] end)
        assert.same_bits(expected, there:index_select(1, ids), dtype)
        assert.same_bits(expected, there:t():index_select(2, ids):t(), dtype)
      end
    end
  end)

  helper.on_gpu("indices that are on the CPU are checked", function()
    local t = numbered(3, 4):to "cuda"
    assert.fails_with("index_select: indices[1] is 4, expected a whole number from 1 to 3",
      function() t:index_select(1, { 4 }) end)
    local ids = q.tensor({ 0, 3 }, { dtype = "int32" })
    assert.fails_with("index_select: indices holds 3 at index 2: the tensor has 3, counted from 0",
      function() t:index_select(1, ids) end)
  end)

  helper.on_gpu("views, rows and sums", function()
    local t = numbered(3, 4):to "cuda"
    assert.same({ { 11, 12, 13, 14, 21, 22 }, { 23, 24, 31, 32, 33, 34 } }, t:view(2, 6):totable())
    assert.same({ 12, 22, 32 }, t:narrow(2, 2, 1):reshape(3):totable())
    for i, row in t:rows() do assert.equal(10 * i + 4, row:get(4)) end
    assert.equal(270, t:sum())
    assert.equal(34, t:max())
    assert.is_true(t:allclose(t:to "cpu"))
  end)

  helper.on_gpu("a graph keeps the indices that it was captured with", function()
    local t = numbered(3, 4):to "cuda"
    local ids = q.tensor({ 2, 0 }, { dtype = "int32", device = "cuda" })
    local picked, turned
    local graph = q.graph(function() picked, turned = t:index_select(1, ids), t:t() end)
    collectgarbage()
    graph:launch()
    graph:synchronize()
    assert.same({ { 31, 32, 33, 34 }, { 11, 12, 13, 14 } }, picked:totable())
    assert.same({ 11, 21, 31 }, turned:totable()[1])
    graph:free()
  end)
end)
