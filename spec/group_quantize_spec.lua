--- Quantising and dequantising in groups, with zero points and with integer group scales: against the plain-Lua oracle,
-- bit for bit, on every instruction set and, where there is one, on a GPU; against examples done by hand; errors.

local ffi = require "ffi"

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local on_gpu, on_every_isa = helper.on_gpu, helper.on_every_isa
local DTYPES = { "float32", "float16", "bfloat16" }

local function size_along(dim, along, other)
  if dim == 1 then return along, other end
  return other, along
end

-- ---- generated cases ----

local CLIPS = { 1, 0.9, 0.5, 2 ^ -6, 2 ^ -140, "mse", "mse" } -- or none
local BLOCKS = { 4, 16, 32, 64, 128, 256 }

--- A case: a matrix and the options, drawn at random. Groups divide the values, leave a tail, or are longer.
local function draw_case(r, dtype, dim)
  local block = r:chance(0.3) and r:choose(BLOCKS) or nil
  local along = block and block * r:range(1, 3) or r:range(1, r:choose { 40, 150, 400 })
  local opts = {
    dim = dim, rotate = block, encoding = r:choose { "twos_complement", "offset" },
    clip = CLIPS[r:range(1, #CLIPS + 1)], group_size = 32 * r:choose { 1, 1, 2, 3, 4, 8, 40 },
  }
  local form = r:choose { "plain", "zeros", "zeros", "factors", "bytes" }
  opts.zero_point = form == "zeros" or nil
  opts.group_scales = form == "factors" and "integer" or nil
  opts.dtype = form == "bytes" and "int8" or nil
  if form == "zeros" and r:chance(0.2) then opts.group_size = nil end
  if form == "plain" and r:chance(0.3) then along, opts.rotate = opts.group_size * r:range(1, 3), nil end
  local kind = r:choose(cases.KIND_NAMES)
  local rows, columns = size_along(dim, along, r:range(1, r:choose { 7, 40 }))
  local source = cases.draw(r, rows, columns, dtype, kind)
  if r:chance(0.3) then source = source:clone() end -- without gaps
  local name = ("%s [%d, %d] %s dim %d %s groups of %s rotate %s clip %s"):format(dtype, rows, columns, kind, dim, form,
    tostring(opts.group_size), tostring(block), tostring(opts.clip))
  return source, opts, name
end

--- A tensor of this shape and dtype on a device, full of 0xA5 and, where it is a matrix, a view with gaps; and all of
-- it.
local function poisoned(like, device)
  local shape = like.shape
  local whole = q.empty { shape[1] + (shape[2] and 2 or 0), shape[2] and shape[2] + 3, dtype = like.dtype,
    device = device }
  whole:fill_bytes_(0xA5)
  return shape[2] and whole:narrow(1, 2, shape[1]):narrow(2, 3, shape[2]) or whole, whole
end

--- Compares a tensor with what the oracle gives, and that its surroundings were left alone.
local function check_output(expected, view, whole, name)
  assert.same_bits(expected, view, name)
  view:fill_bytes_(0xA5)
  assert(helper.bytes(whole):match "^\xA5*$", name .. ": wrote outside")
end

local function copy_of(opts, more)
  local copy = {}
  for key, value in pairs(opts) do copy[key] = value end
  for key, value in pairs(more) do copy[key] = value end
  return copy
end

--- Quantises on a device into poisoned tensors and compares.
local function check_quantize(source, opts, expected, name)
  local device = source.device
  local key = opts.zero_point and "zeros" or opts.group_scales and "factors"
  local out, whole_out = poisoned(expected[1], device)
  local scales, whole_scales = poisoned(expected[2], device)
  local into = { out = out, scales = scales }
  local other, whole_other
  if key then
    other, whole_other = poisoned(expected[3], device)
    into[key] = other
  end
  local _, _, got = q.quantize(source, copy_of(opts, into))
  assert.equal(other, got)
  check_output(expected[1], out, whole_out, name .. ": values")
  check_output(expected[2], scales, whole_scales, name .. ": scales")
  if key then check_output(expected[3], other, whole_other, name .. ": " .. key) end
end

--- What comes back, with scales of groups in any float dtype.
local function check_dequantize(r, source, opts, expected, name, device)
  local words, scales, key = expected[1], expected[2], opts.zero_point and "zeros" or opts.group_scales and "factors"
  if #scales.shape == 2 then scales = scales:to(r:choose(DTYPES)) end
  local back = { dtype = r:choose(DTYPES), dim = opts.dim, encoding = opts.encoding, group_size = opts.group_size }
  if opts.dtype ~= "int8" then back.length = source.shape[opts.dim] end
  if key then back[key] = expected[3] end
  local floats = q.dequantize_reference(words, scales, back)
  if key then back[key] = expected[3]:to(device) end
  local function compare(isa)
    local out, whole = poisoned(floats, device)
    q.dequantize(words:to(device), scales:to(device), copy_of(back, { out = out, dtype = back.dtype }))
    check_output(floats, out, whole, isa .. " back to " .. back.dtype .. " from " .. scales.dtype .. ": " .. name)
  end
  if device == "cpu" then on_every_isa(compare) else compare(device) end
end

describe("quantize in groups", function()
  for _, dtype in ipairs(DTYPES) do
    for dim = 1, 2 do
      it(("and the way back are the oracle's on generated cases, %s along dim %d"):format(dtype, dim), function()
        local r = cases.random(300 + dim)
        for _ = 1, 60 do
          local source, opts, name = draw_case(r, dtype, dim)
          local expected = { q.quantize_reference(source, opts) }
          on_every_isa(function(isa) check_quantize(source, opts, expected, isa .. " " .. name) end)
          check_dequantize(r, source, opts, expected, name, "cpu")
        end
      end)

      on_gpu(("and the way back are the CPU's on the GPU, %s along dim %d"):format(dtype, dim), function()
        local r = cases.random(310 + dim)
        for _ = 1, 60 do
          local source, opts, name = draw_case(r, dtype, dim)
          local expected = { q.quantize(source, opts) }
          opts.check = r:chance(0.5)
          check_quantize(source:to "cuda", opts, expected, "cuda " .. name)
          check_dequantize(r, source, opts, expected, name, "cuda")
        end
      end)
    end
  end

  it("are the oracle's where a group is longer than what a thread holds", function()
    local r = cases.random(5)
    for dim = 1, 2 do
      for _, opts in ipairs { { zero_point = true }, { zero_point = true, clip = "mse", group_size = 1536 },
        { group_scales = "integer", group_size = 1056 }, { group_size = 2048, clip = "mse" } } do
        opts.dim = dim
        local rows, columns = size_along(dim, 2500, 3)
        local source = cases.draw(r, rows, columns, "bfloat16", "spread")
        local expected = { q.quantize_reference(source, opts) }
        on_every_isa(function(isa) check_quantize(source, opts, expected, isa) end)
      end
    end
  end)

  it("gives the same bits with any number of threads", function()
    local source = cases.draw(cases.random(8), 320, 192, "float32", "plain"):clone()
    for _, opts in ipairs { { group_size = 32 }, { group_size = 64, zero_point = true },
      { group_size = 32, clip = "mse" }, { group_size = 32, group_scales = "integer", rotate = 64 } } do
      for dim = 1, 2 do
        opts.dim = dim
        local expected = { q.quantize(source, opts) }
        for threads = 1, 4 do
          q.set_num_threads(threads)
          check_quantize(source, opts, expected, threads .. " threads")
        end
        q.set_num_threads(0)
      end
    end
  end)

  it("is quantising each group alone", function()
    local source = cases.draw(cases.random(9), 5, 100, "float32", "plain")
    local packed, scales = q.quantize(source, { group_size = 32, clip = "mse" })
    for g = 1, 4 do
      local first, length = 32 * (g - 1) + 1, math.min(32, 100 - 32 * (g - 1))
      local words, steps = q.quantize(source:narrow(2, first, length), { clip = "mse" })
      assert.same_bits(words, packed:narrow(2, 4 * g - 3, math.ceil(length / 8)))
      for i = 1, 5 do assert.equal(steps:get(i), scales:get(i, g)) end
    end
    assert.same({ 5, 4 }, scales.shape)
    assert.equal(100, packed.packing.length)
  end)

  it("puts the range with 0 on -8 to 7 with a zero point", function()
    local packed, scales, zeros = q.quantize(q.tensor { { 0, 7.5, 3, 1 }, { -15, -1, -2, -3 }, { -5, 10, 0.5, -0.5 },
      { 0, 0, 0, 0 } }, { zero_point = true })
    assert.same({ 0.5, 1, 1, 0 }, scales:totable())
    assert.same({ -8, 7, -3, 0 }, zeros:totable())
    assert.equal("int8", zeros.dtype)
    assert.same({ { -8, 7, -2, -6 }, { -8, 6, 5, 4 }, { -8, 7, -3, -3 }, { 0, 0, 0, 0 } },
      q.unpack_int32_to_int4(packed, { length = 4 }):totable())
    assert.same({ { 0, 7.5, 3, 1 }, { -15, -1, -2, -3 }, { -5, 10, 0, 0 }, { 0, 0, 0, 0 } },
      q.dequantize(packed, scales, { zeros = zeros, length = 4 }):totable())
  end)

  it("multiplies the column's scale by whole numbers with integer group scales", function()
    local source = q.zeros { 96, 2 } -- symmetric scales 15, 4, 0 and 0, 0, 0
    source:set(1, 1, 105)
    source:set(2, 1, -50)
    source:set(40, 1, 28.4)
    source:set(41, 1, -30)
    local packed, scales, factors = q.quantize(source, { dim = 1, group_size = 32, group_scales = "integer" })
    assert.same({ 1, 0 }, scales:totable())
    assert.same({ { 15, 1 }, { 4, 1 }, { 1, 1 } }, factors:totable())
    local values = q.unpack_int32_to_int4(packed)
    assert.same({ 7, -3, 7, -8 }, { values:get(1, 1), values:get(2, 1), values:get(40, 1), values:get(41, 1) })
    local back = q.dequantize(packed, scales, { factors = factors })
    assert.same({ 105, -45, 28, -32 }, { back:get(1, 1), back:get(2, 1), back:get(40, 1), back:get(41, 1) })
  end)

  it("gives an infinite scale and zeros where the rotation overflows, and elsewhere not", function()
    for dim = 1, 2 do
      local rows, columns = size_along(dim, 64, 2)
      local source = q.zeros { rows, columns }
      for k = 1, 4 do
        local i, j = size_along(dim, k, 2)
        source:set(i, j, 2 ^ 127)
      end
      local i, j = size_along(dim, 40, 2)
      source:set(i, j, 6)
      for _, opts in ipairs { {}, { zero_point = true }, { group_scales = "integer" }, { clip = "mse" },
        { zero_point = true, clip = "mse" } } do
        opts.dim, opts.rotate, opts.group_size = dim, 4, 32
        local expected = { q.quantize_reference(source, opts) }
        on_every_isa(function(isa) check_quantize(source, opts, expected, isa) end)
        local scales = expected[2]
        if opts.group_scales then
          assert.equal(1 / 0, scales:get(2))
        else
          local first, second = size_along(dim, 1, 2)
          assert.equal(1 / 0, scales:get(first, second))
          first, second = size_along(dim, 2, 2)
          assert(scales:get(first, second) < 1)
        end
      end
    end
  end)

  it("takes the smaller of infinite and finite scales in a search", function()
    local most = (2 - 2 ^ -23) * 2 ^ 127
    local source = q.tensor { { most, -most, 0, most / 2 } }
    local expected = { q.quantize_reference(source, { zero_point = true, clip = "mse" }) }
    assert(expected[2]:get(1) < 1 / 0)
    on_every_isa(function(isa) check_quantize(source, { zero_point = true, clip = "mse" }, expected, isa) end)
    assert.equal(1 / 0, select(2, q.quantize(source, { zero_point = true })):get(1))
  end)

  it("takes matrices without elements", function()
    for dim = 1, 2 do
      for _, opts in ipairs { { group_size = 32 }, { group_size = 32, zero_point = true },
        { group_size = 32, group_scales = "integer", rotate = 16 }, { zero_point = true } } do
        opts.dim = dim
        for _, size in ipairs { { 0, 3 }, { 64, 0 }, { 0, 0 } } do
          local rows, columns = size_along(dim, size[1], size[2])
          local source = q.zeros { rows, columns }
          local expected = { q.quantize_reference(source, opts) }
          check_quantize(source, opts, expected, "empty")
          local groups = math.ceil(size[1] / 32)
          local shape = opts.group_size and { size_along(dim, groups, size[2]) } or { size[2] }
          assert.same(opts.group_scales and { size[2] } or shape, expected[2].shape)
          local back = { dim = dim, group_size = opts.group_size, length = size[1] }
          back.zeros, back.factors = opts.zero_point and expected[3], opts.group_scales and expected[3]
          assert.same({ rows, columns }, q.dequantize(expected[1], expected[2], back).shape)
        end
      end
    end
  end)

  it("names the first value that is not finite by its place in the source", function()
    for dim = 1, 2 do
      for _, opts in ipairs { { group_size = 32 }, { zero_point = true },
        { group_size = 64, group_scales = "integer" }, { group_size = 32, rotate = 64 } } do
        opts.dim = dim
        local source = q.zeros { 192, 128 }
        source:set(31, 3, 1 / 0)
        source:set(14, 120, 0 / 0)
        source:set(14, 128, -1 / 0)
        for name, call in pairs { quantize = q.quantize, quantize_reference = q.quantize_reference } do
          assert.fails_with(name .. ": src holds NaN at row 14, column 120: only finite numbers can be quantised",
            function() call(source, opts) end)
        end
      end
    end
  end)

  it("lowers the error, and more so with a zero point where values lean to one side", function()
    local source = q.random(q.empty { 64, 512 }, { seed = 3, low = 0.25, high = 1 })
    local function off(opts)
      local packed, scales, other = q.quantize(source, opts)
      local back = q.dequantize(packed, scales, { group_size = opts.group_size, zeros = opts.zero_point and other,
        factors = opts.group_scales and other })
      local sum = 0
      for i = 1, 64 do
        for k = 1, 512 do
          sum = sum + (back:get(i, k) - source:get(i, k)) ^ 2
        end
      end
      return sum
    end
    local whole, groups, best = off {}, off { group_size = 32 }, off { group_size = 32, clip = "mse" }
    assert(groups < whole and best < groups)
    local zeros = off { group_size = 32, zero_point = true }
    assert(zeros < 0.4 * groups and off { group_size = 32, zero_point = true, clip = "mse" } <= zeros)
    local factors = off { group_size = 32, group_scales = "integer" }
    assert(factors < 1.1 * whole)
  end)
end)

describe("the size of groups", function()
  it("is told by the groups that there are", function()
    local source = cases.draw(cases.random(1), 3, 192, "float32", "plain")
    for _, size in ipairs { 32, 64, 96, 192, 256 } do
      local packed, scales = q.quantize(source, { group_size = size })
      assert.same_bits(q.dequantize(packed, scales, { group_size = size }), q.dequantize(packed, scales))
      local factors
      packed, scales, factors = q.quantize(source, { group_size = size, group_scales = "integer" })
      assert.same_bits(q.dequantize(packed, scales, { group_size = size, factors = factors }),
        q.dequantize(packed, scales, { factors = factors }))
    end
  end)

  it("may be all values along dim, whatever their number", function()
    for dim = 1, 2 do
      for _, length in ipairs { 1, 40, 100 } do
        local rows, columns = size_along(dim, length, 3)
        local source = cases.draw(cases.random(length), rows, columns, "float32", "plain")
        for _, more in ipairs { {}, { zero_point = true }, { group_scales = "integer" }, { dtype = "int8" } } do
          local opts, wide = { dim = dim, group_size = length }, { dim = dim, group_size = 128 }
          for key, value in pairs(more) do opts[key], wide[key] = value, value end
          check_quantize(source, opts, { q.quantize(source, wide) }, "all of " .. length)
          check_quantize(source, opts, { q.quantize_reference(source, opts) }, "all of " .. length)
          local packed, scales, beside = q.quantize(source, opts)
          local back = { dim = dim, group_size = length, zeros = more.zero_point and beside or nil,
            factors = more.group_scales and beside or nil }
          local expected = q.dequantize_reference(packed, scales, back)
          assert.same_bits(expected, q.dequantize(packed, scales, back))
        end
      end
    end
    local weight, x = q.random(q.empty { 5, 100 }, { low = -1 }), q.random(q.empty { 3, 100 }, { low = -1 })
    assert.same_bits(q.linear(weight, { group_size = 128 })(x), q.linear(weight, { group_size = 100 })(x))
    local words, scales = q.quantize(weight, { group_size = 100 })
    assert.same_bits(q.linear(words, { scales = scales })(x), q.linear(words, { scales = scales, group_size = 100 })(x))
  end)

  it("has to be given where they do not divide the values", function()
    local packed, scales = q.quantize(q.zeros { 3, 100 }, { group_size = 64 })
    for name, call in pairs { dequantize = q.dequantize, dequantize_reference = q.dequantize_reference } do
      assert.fails_with(name .. ": group_size is nil but scales is a tensor [3, 2] float32, whose 2 groups do not "
        .. "divide the 100 values along dim 2 into multiples of 32; give group_size",
        function() call(packed, scales) end)
    end
  end)
end)

describe("errors of groups:", function()
  local x = q.zeros { 8, 96 }

  it("what the options of quantize contradict", function()
    for name, call in pairs { quantize = q.quantize, quantize_reference = q.quantize_reference } do
      local function refuses(message, opts)
        assert.fails_with(name .. ": " .. message, function() call(x, opts) end)
      end
      refuses("group_size is 48, expected a multiple of 32, or all of K = 96", { group_size = 48 })
      refuses("group_size is 8, expected a multiple of 32, or all of K = 96", { group_size = 8 })
      refuses("group_size is 0, expected a whole number >= 1", { group_size = 0 })
      refuses('group_scales is "int", expected "float" or "integer"', { group_scales = "int", group_size = 32 })
      refuses('group_scales is "integer" but group_size is nil, expected the number of values in a group',
        { group_scales = "integer" })
      refuses('group_scales is "integer", which has no zero points, but zero_point is true; leave one of them out',
        { group_scales = "integer", group_size = 32, zero_point = true })
      refuses("zero_point is 1, expected true or false", { zero_point = 1 })
      refuses("zero_point is true but the values are int8, expected int4", { zero_point = true, dtype = "int8" })
      refuses('group_scales is "integer" but the values are int8, expected int4',
        { group_scales = "integer", group_size = 32, dtype = "int8" })
    end
    assert.fails_with({ pattern = "^quantize: zeros is a tensor %[8%] int8 but zero_point is not; leave zeros out" },
      function() q.quantize(x, { zeros = q.zeros { 8, dtype = "int8" } }) end)
    assert.fails_with("quantize: zero_point is true but the values are int8, expected int4",
      function() q.quantize(x, { zero_point = true, out = q.zeros { 8, 96, dtype = "int8" } }) end)
  end)

  it("shapes and dtypes", function()
    local opts = { group_size = 32, scales = q.zeros { 8, 2 } }
    assert.fails_with("quantize: scales is [8, 2] float32, expected [8, 3] float32: one per group of 32 values along "
      .. "dim 2 of src", function() q.quantize(x, opts) end)
    opts = { group_size = 32, dim = 1, scales = q.zeros { 1, 96, dtype = "float16" } }
    assert.fails_with("quantize: scales is [1, 96] float16, expected [1, 96] float32: one per group of 32 values along "
      .. "dim 1 of src", function() q.quantize(x, opts) end)
    opts = { group_size = 32, zero_point = true, zeros = q.zeros { 8, 3, dtype = "int32" } }
    assert.fails_with("quantize: zeros is [8, 3] int32, expected [8, 3] int8: one per group of 32 values along dim 2 "
      .. "of src", function() q.quantize(x, opts) end)
    assert.fails_with("quantize: zeros is [7] int8, expected [8] int8: one per row of src",
      function() q.quantize(x, { zero_point = true, zeros = q.zeros { 7, dtype = "int8" } }) end)
    local packed, scales, factors = q.quantize(x, { group_size = 32, group_scales = "integer" })
    local zeros = q.zeros { 8, 3, dtype = "int8" }
    assert.fails_with("dequantize: zeros and factors are both given: integer group scales have no zero points",
      function() q.dequantize(packed, scales, { factors = factors, zeros = zeros }) end)
    assert.fails_with("dequantize: zeros is given but packed is [8, 96] int8: expected int4, packed in int32",
      function() q.dequantize(q.zeros { 8, 96, dtype = "int8" }, q.zeros { 8, 3 }, { zeros = zeros }) end)
    assert.fails_with("dequantize: scales is [8, 3] float32, expected [8] float32: one per row of dst",
      function() q.dequantize(packed, q.zeros { 8, 3 }, { factors = factors }) end)
    assert.fails_with({ pattern = "^dequantize: scales is %[8, 3%] int8, expected %[8, 3%] float32, float16 or bf" },
      function() q.dequantize(packed, zeros) end)
    assert.fails_with("dequantize: factors is a tensor [8] int8, expected a matrix of int8, one for each group",
      function() q.dequantize(packed, scales, { factors = q.zeros { 8, dtype = "int8" } }) end)
    assert.fails_with({ pattern = "^dequantize_reference: scales is .*%[8%] float32, expected %[8, 3%]" },
      function() q.dequantize_reference(packed, scales, { group_size = 32 }) end)
  end)

  it("outputs that overlap", function()
    local whole = q.zeros { 8, 6 }
    assert.fails_with({ pattern = "^quantize: scales overlaps src" },
      function() q.quantize(x, { group_size = 32, scales = x:narrow(2, 1, 3) }) end)
    assert.fails_with({ pattern = "^quantize: zeros overlaps scales" }, function()
      local data = ffi.cast("void *", whole:data())
      local bytes = q.wrap(data, { shape = { 8, 3 }, stride = 24, dtype = "int8", owner = whole })
      q.quantize(x, { group_size = 32, zero_point = true, scales = whole:narrow(2, 1, 3), zeros = bytes })
    end)
  end)
end)

describe("groups on the GPU", function()
  on_gpu("are quantised inside a graph", function()
    local source = cases.draw(cases.random(3), 64, 256, "float16", "plain")
    local there = source:to "cuda"
    for _, opts in ipairs { { zero_point = true }, { group_scales = "integer" }, { clip = "mse" } } do
      opts.group_size, opts.rotate, opts.check = 64, 64, false
      local graph, packed, scales, other = q.graph(function() return q.quantize(there, opts) end)
      graph:launch()
      local p, s, o = q.quantize(source, opts)
      assert.same_bits(p, packed)
      assert.same_bits(s, scales)
      if o then assert.same_bits(o, other) end
    end
    local opts = { group_size = 64, rotate = 64 }
    assert.fails_with({ pattern = "^quantize: cannot check values while a CUDA graph is being captured.*check = fal" },
      function() q.graph(function() return (q.quantize(there, opts)) end, { warmup = 0 }) end)
  end)

  on_gpu("name the first value that is not finite", function()
    local source = q.zeros { 192, 128, dtype = "bfloat16" }
    source:set(31, 3, 1 / 0)
    source:set(14, 120, 0 / 0)
    for dim = 1, 2 do
      for _, opts in ipairs { { group_size = 32, rotate = 64 }, { zero_point = true } } do
        opts.dim = dim
        assert.fails_with("quantize: src holds NaN at row 14, column 120: only finite numbers can be quantised",
          function() q.quantize(source:to "cuda", opts) end)
      end
    end
  end)

  on_gpu("that hold NaN have, unchecked, an infinite scale and zeros", function()
    local source = q.full({ 192, 3 }, 7)
    source:set(40, 2, 0 / 0)
    for _, form in ipairs { {}, { zero_point = true }, { group_scales = "integer" } } do
      form.dim, form.group_size, form.check = 1, 32, false
      local packed, scales, other = q.quantize(source:to "cuda", form)
      assert.equal(1 / 0, form.group_scales and scales:get(2) or scales:get(2, 2))
      assert(form.group_scales or scales:get(1, 2) < 2)
      local values = q.unpack_int32_to_int4(packed)
      for k = 33, 64 do assert.equal(0, values:get(k, 2)) end
      assert.equal(7, values:get(40, 1))
      if other then assert.equal(form.zero_point and 0 or 1, other:get(2, 2)) end
    end
  end)

  on_gpu("match the CPU on matrices of a real size", function()
    for dim = 1, 2 do
      local source = q.random(q.empty { 1024, 1600 }, { seed = dim, low = -3, high = 2 }):to "bfloat16"
      for _, opts in ipairs { { group_size = 128 }, { group_size = 128, zero_point = true },
        { group_size = 64, group_scales = "integer", clip = "mse" } } do
        opts.dim = dim
        check_quantize(source:to "cuda", opts, { q.quantize(source, opts) }, "dim " .. dim)
      end
    end
  end)
end)
