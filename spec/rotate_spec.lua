--- Rotating, and quantising with rotation, clip and int8, against the plain-Lua oracle, bit for bit; and what they are
-- for: accuracy.

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local f = helper.float32
local DTYPES = { "float32", "float16", "bfloat16" }
local BLOCKS = { 4, 8, 16, 32, 64, 128, 256, 512, 1024 }

local on_every_isa, draw, KIND_NAMES = helper.on_every_isa, cases.draw, cases.KIND_NAMES

local function size_along(dim, along, other)
  if dim == 1 then return along, other end
  return other, along
end

-- ---- the rotation ----

describe("rotate", function()
  for _, dtype in ipairs(DTYPES) do
    for dim = 1, 2 do
      it(("is the oracle's, %s along dim %d, every block"):format(dtype, dim), function()
        local r = cases.random(dim)
        for _, block in ipairs(BLOCKS) do
          local kind, out_dtype = r:choose(KIND_NAMES), r:choose(DTYPES)
          local rows, columns = size_along(dim, block * r:range(1, block > 64 and 1 or 3), r:range(1, 19))
          local source = draw(r, rows, columns, dtype, kind)
          local expected = q.rotate_reference(source, { block = block, dim = dim })
          local other = q.rotate_reference(source, { block = block, dim = dim, out_dtype = out_dtype })
          on_every_isa(function(isa)
            local name = ("%s block %d %s [%d, %d]"):format(isa, block, kind, rows, columns)
            assert.same_bits(expected, q.rotate(source, { block = block, dim = dim }), name)
            local out = q.empty { rows, columns, dtype = out_dtype }
            assert.equal(out, q.rotate(source, { block = block, dim = dim, out = out }))
            assert.same_bits(other, out, name .. " to " .. out_dtype)
            local copy = source:clone()
            q.rotate(copy, { block = block, dim = dim, out = copy })
            assert.same_bits(expected, copy, name .. " in place")
          end)
        end
      end)
    end
  end

  it("is the regular Hadamard matrix of four points", function()
    local unit = q.tensor { { 1, 0, 0, 0 }, { 0, 1, 0, 0 }, { 0, 0, 1, 0 }, { 0, 0, 0, 1 } }
    local half = { { .5, .5, .5, -.5 }, { .5, .5, -.5, .5 }, { .5, -.5, .5, .5 }, { -.5, .5, .5, .5 } }
    assert.same(half, q.rotate(unit, { block = 4 }):totable())
    assert.same(half, q.rotate(unit, { block = 4, dim = 1 }):totable())
  end)

  it("takes blocks of 256 along columns of a row by default", function()
    local source = draw(cases.random(6), 3, 512, "float32", "plain")
    assert.same_bits(q.rotate_reference(source, { block = 256, dim = 2 }), q.rotate(source))
  end)

  it("has rows of one length for every block", function()
    local source = draw(cases.random(7), 2, 1024, "float32", "plain")
    for _, block in ipairs(BLOCKS) do
      local rotated = q.rotate(source, { block = block })
      for i = 1, 2 do
        local before, after = 0, 0
        for j = 1, 1024 do
          before, after = before + source:get(i, j) ^ 2, after + rotated:get(i, j) ^ 2
        end
        assert(math.abs(after / before - 1) < 1e-5, ("block %d: %g became %g"):format(block, before, after))
      end
    end
  end)

  -- Sums of `block` whole numbers up to 7 and what two rotations make of them stay below 2^24, and the factor is a
  -- power of two.
  it("comes back after a second one, to the bit for small whole numbers and powers of four", function()
    for _, block in ipairs { 4, 16, 64, 256, 1024 } do
      local source = draw(cases.random(block), 3, 1024, "float32", "whole")
      on_every_isa(function(isa)
        local back = q.rotate(q.rotate(source, { block = block }), { block = block })
        assert.same(source:totable(), back:totable(), isa .. " block " .. block)
      end)
    end
  end)

  -- Two rotations are 2 log4(block) + 2 stages, each of which adds at most some 3 half units in the last place of the
  -- block's length.
  it("comes back after a second one within 2^-20 of a block's length", function()
    for _, block in ipairs { 4, 16, 64, 256, 1024 } do
      local source = draw(cases.random(block), 2, 1024, "float32", "plain")
      local back = q.rotate(q.rotate(source, { block = block }), { block = block })
      for i = 1, 2 do
        for first = 1, 1024, block do
          local length = 0
          for j = first, first + block - 1 do length = length + source:get(i, j) ^ 2 end
          for j = first, first + block - 1 do
            local off = math.abs(back:get(i, j) - source:get(i, j))
            assert(off <= math.sqrt(length) * 2 ^ -20, ("block %d: off by %g"):format(block, off))
          end
        end
      end
    end
  end)

  it("keeps what is not finite within its block, and makes one NaN of all", function()
    local source = q.zeros { 1, 16 }
    source:set(1, 2, 0 / 0)
    source:set(1, 7, 1 / 0)
    for _, dtype in ipairs(DTYPES) do
      local out = q.empty { 1, 16, dtype = dtype }
      on_every_isa(function(isa)
        q.rotate(source, { block = 4, out = out })
        assert.same_bits(q.rotate_reference(source, { block = 4, out_dtype = dtype }), out, isa)
      end)
      for j = 9, 16 do assert.equal(0, out:get(1, j)) end
      for j = 1, 4 do assert(out:get(1, j) ~= out:get(1, j)) end
      local nan = dtype == "float32" and "ffffff7f" or "ff7f"
      assert.equal(nan:rep(4), helper.to_hex(helper.bytes(out)):sub(1, 4 * #nan))
    end
  end)

  it("leaves a product as it was, but for rounding", function()
    local r = cases.random(11)
    local K = 128
    local x, w = draw(r, 4, K, "float32", "plain"), draw(r, K, 5, "float32", "plain")
    local xr, wr = q.rotate(x, { block = 32 }), q.rotate(w, { block = 32, dim = 1 })
    -- 32 is no power of four: its matrix is its own transpose all the same
    for m = 1, 4 do
      for n = 1, 5 do
        local sum, rotated, size = 0, 0, 0
        for k = 1, K do
          sum, rotated = sum + x:get(m, k) * w:get(k, n), rotated + xr:get(m, k) * wr:get(k, n)
          size = size + math.abs(x:get(m, k) * w:get(k, n))
        end
        assert(math.abs(sum - rotated) < size * 1e-5, ("(%d, %d): %g and %g"):format(m, n, sum, rotated))
      end
    end
  end)

  it("refuses blocks that are none, and what is no matrix of floats", function()
    local x = q.zeros { 8, 24 }
    for name, call in pairs { rotate = q.rotate, rotate_reference = q.rotate_reference } do
      assert.fails_with(name .. ": block is 12, expected a power of two from 4 to 1024",
        function() call(x, { block = 12 }) end)
      assert.fails_with(name .. ": block is 2, expected a whole number from 4 to 1024",
        function() call(x, { block = 2 }) end)
      assert.fails_with(name .. ": block is 256, which does not divide the 24 values along dim 2 of src",
        function() call(x) end)
      assert.fails_with(name .. ": block is 16, which does not divide the 8 values along dim 1 of src",
        function() call(x, { block = 16, dim = 1 }) end)
      assert.fails_with({ pattern = "^" .. name .. ": src is .*%[8, 24%] int8, expected a matrix of float32, float16" },
        function() call(q.zeros { 8, 24, dtype = "int8" }, { block = 8 }) end)
      assert.fails_with({ pattern = "^" .. name .. ": src is .*%[24%] float32, expected a matrix" },
        function() call(q.zeros { 24 }, { block = 8 }) end)
      assert.fails_with({ pattern = "^" .. name .. ': unknown option "size"' }, function() call(x, { size = 8 }) end)
    end
    assert.fails_with("rotate: dst is [8, 23] float32 but src is [8, 24] float32: the shapes differ",
      function() q.rotate(x, { block = 8, out = q.zeros { 8, 23 } }) end)
    assert.fails_with({ pattern = "^rotate: dst overlaps src" }, function()
      local whole = q.zeros { 9, 24 }
      q.rotate(whole:narrow(1, 1, 8), { block = 8, out = whole:narrow(1, 2, 8) })
    end)
  end)
end)

-- ---- quantising ----

local CLIPS = { 1, 0.9, 0.5, 2 ^ -6, 2 ^ -140, "mse", "mse", "mse" } -- or none

--- A case: a matrix and the options, drawn at random.
local function draw_case(r, dtype, dim)
  local block = r:chance(0.6) and r:choose(BLOCKS) or nil
  local along = block and block * r:range(1, block > 64 and 1 or 4) or r:range(1, 150)
  local opts = { dim = dim, rotate = block, dtype = r:choose { "int4", "int8" },
    encoding = r:choose { "twos_complement", "offset" },
    clip = CLIPS[r:range(1, #CLIPS + 1)] }
  local kind = r:choose(KIND_NAMES)
  local rows, columns = size_along(dim, along, r:range(1, 7))
  local name = ("%s [%d, %d] %s rotate %s clip %s to %s"):format(dtype, rows, columns, kind, tostring(block),
    tostring(opts.clip), opts.dtype)
  return draw(r, rows, columns, dtype, kind), opts, name
end

describe("quantize with rotation, clip and int8", function()
  for _, dtype in ipairs(DTYPES) do
    for dim = 1, 2 do
      it(("is the oracle's on generated cases, %s along dim %d"):format(dtype, dim), function()
        local r = cases.random(100 + dim)
        for _ = 1, 60 do
          local source, opts, name = draw_case(r, dtype, dim)
          local packed, scales = q.quantize_reference(source, opts)
          on_every_isa(function(isa)
            local p, s = q.quantize(source, opts)
            assert.same_bits(scales, s, isa .. " scales: " .. name)
            assert.same_bits(packed, p, isa .. " values: " .. name)
          end)
        end
      end)
    end
  end

  it("is the oracle's where a row or a column is longer than what is held", function()
    local r = cases.random(5)
    for dim = 1, 2 do
      for _, opts in ipairs { { rotate = 64 }, { clip = "mse" }, { rotate = 1024, dtype = "int8" }, { clip = 0.5 } } do
        opts.dim = dim
        local rows, columns = size_along(dim, 17 * 1024, 2)
        local source = draw(r, rows, columns, "bfloat16", "plain")
        local packed, scales = q.quantize_reference(source, opts)
        on_every_isa(function(isa)
          local p, s = q.quantize(source, opts)
          assert.same_bits(scales, s, isa)
          assert.same_bits(packed, p, isa)
        end)
      end
    end
  end)

  it("is the oracle's on ten thousand random rows", function()
    local source = q.random(q.empty { 10000, 64 }, { seed = 9, low = -3, high = 3 })
    local packed, scales = q.quantize_reference(source, { rotate = 64 })
    on_every_isa(function(isa)
      local p, s = q.quantize(source, { rotate = 64 })
      assert.same_bits(scales, s, isa)
      assert.same_bits(packed, p, isa)
    end)
  end)

  it("gives the same bits with any number of threads", function()
    local source = draw(cases.random(8), 320, 192, "float32", "plain")
    for _, opts in ipairs { { rotate = 64, clip = "mse" }, { rotate = 64, clip = "mse", dim = 1 }, { dtype = "int8" },
      { dtype = "int8", dim = 1, rotate = 64 } } do
      local packed, scales = q.quantize(source, opts)
      for threads = 1, 4 do
        q.set_num_threads(threads)
        local p, s = q.quantize(source, opts)
        assert.same_bits(packed, p)
        assert.same_bits(scales, s)
      end
      q.set_num_threads(0)
    end
  end)

  it("is rotating, then quantising", function()
    local source = draw(cases.random(12), 24, 96, "float32", "plain")
    for dim = 1, 2 do
      local block = dim == 1 and 8 or 32
      local packed, scales = q.quantize(q.rotate(source, { block = block, dim = dim }), { dim = dim, clip = "mse" })
      local p, s = q.quantize(source, { dim = dim, rotate = block, clip = "mse" })
      assert.same_bits(packed, p)
      assert.same_bits(scales, s)
    end
  end)

  it("multiplies the largest magnitude by clip, and what is beyond saturates", function()
    local packed, scales = q.quantize(q.tensor { { 14, -14, 7, 3.5, 1, 0, -6, 5 } }, { clip = 0.5 })
    assert.same({ 1 }, scales:totable())
    assert.same({ { 7, -7, 7, 4, 1, 0, -6, 5 } }, q.unpack_int32_to_int4(packed):totable())
    local bytes, step = q.quantize(q.tensor { { 254, -127, 1, 2.5, -300 } }, { clip = 127 / 300, dtype = "int8" })
    assert.equal("int8", bytes.dtype)
    assert.equal(f(f(300 * f(127 / 300)) / 127), step:get(1))
    assert.same({ { 127, -127, 1, 2, -127 } }, bytes:totable())
  end)

  it("takes the largest ratio of equal errors", function()
    -- only 0 and one magnitude: the error is that of one product, 0 for 7 * scale = x, which several ratios may reach
    for _, x in ipairs { 7, 1, 3.25, 1e-44, 2 ^ -149 } do
      local row = q.tensor { { x, 0, -x, 0 } }
      local _, plain = q.quantize(row)
      local _, best = q.quantize(row, { clip = "mse" })
      local _, oracle = q.quantize_reference(row, { clip = "mse" })
      assert.same_bits(oracle, best)
      if x == 7 then assert.same_bits(plain, best) end
    end
  end)

  it("gives an infinite scale and zeros where the rotation overflows", function()
    for _, dtype in ipairs { "float32", "bfloat16" } do
      for dim = 1, 2 do
        local rows, columns = size_along(dim, 16, 3)
        local source = q.zeros { rows, columns, dtype = dtype }
        for k = 1, 4 do
          local i, j = size_along(dim, k, 2)
          source:set(i, j, 2 ^ 127)
        end
        source:set(1, 1, 5)
        for _, clip in ipairs { 1, 0.5, "mse" } do
          on_every_isa(function(isa)
            local opts = { dim = dim, rotate = 4, clip = clip }
            local packed, scales = q.quantize(source, opts)
            local p, s = q.quantize_reference(source, opts)
            assert.same_bits(p, packed, isa)
            assert.same_bits(s, scales, isa)
            assert.equal(1 / 0, scales:get(2))
            assert.equal(0, scales:get(3))
            local values = q.unpack_int32_to_int4(packed, { dim = dim })
            for k = 1, 16 do
              local i, j = size_along(dim, k, 2)
              assert.equal(0, values:get(i, j))
            end
          end)
        end
      end
    end
  end)

  it("names what is not finite by its place in the source, before the rotation", function()
    for _, dtype in ipairs(DTYPES) do
      for dim = 1, 2 do
        for _, opts in ipairs { { rotate = 8 }, { rotate = 8, clip = "mse" }, { clip = "mse" }, { dtype = "int8" } } do
          opts.dim = dim
          local source = q.zeros { 40, 136, dtype = dtype }
          source:set(31, 3, 1 / 0)
          source:set(14, 130, 0 / 0)
          on_every_isa(function()
            assert.fails_with("quantize: src holds NaN at row 14, column 130: only finite numbers can be quantised",
              function() q.quantize(source, opts) end)
          end)
          assert.fails_with(
            "quantize_reference: src holds NaN at row 14, column 130: only finite numbers can be quantised",
            function() q.quantize_reference(source, opts) end)
          source:set(14, 130, 1)
          source:set(35, 1, 0 / 0)
          assert.fails_with("quantize: src holds +Inf at row 31, column 3: only finite numbers can be quantised",
            function() q.quantize(source, opts) end)
        end
      end
    end
  end)

  it("takes matrices without elements", function()
    for _, opts in ipairs { { rotate = 16 }, { rotate = 16, dtype = "int8" }, { clip = "mse" } } do
      for dim = 1, 2 do
        opts.dim = dim
        local rows, columns = size_along(dim, 0, 5)
        local _, scales = q.quantize(q.zeros { rows, columns }, opts)
        assert.same({ 0, 0, 0, 0, 0 }, scales:totable())
        rows, columns = size_along(dim, 16, 0)
        local packed
        packed, scales = q.quantize(q.zeros { rows, columns }, opts)
        assert.same({ 0 }, scales.shape)
        assert.equal(0, packed.shape[1] * packed.shape[2])
      end
    end
  end)

  it("writes to the tensors given, and takes int8 from out", function()
    local source = draw(cases.random(2), 5, 16, "float32", "plain")
    local out, scales = q.zeros { 5, 16, dtype = "int8" }, q.zeros { 5 }
    local packed, steps = q.quantize(source, { out = out, scales = scales, rotate = 16 })
    assert.same({ out, scales }, { packed, steps })
    local expected, expected_steps = q.quantize_reference(source, { dtype = "int8", rotate = 16 })
    assert.same_bits(expected, out)
    assert.same_bits(expected_steps, scales)
  end)

  it("refuses options that are none", function()
    local x = q.zeros { 8, 24 }
    for name, call in pairs { quantize = q.quantize, quantize_reference = q.quantize_reference } do
      for _, clip in ipairs { 0, -1, 1.5, 1 + 2 ^ -40, 1 / 0, 0 / 0, 1e-60 } do
        assert.fails_with({ pattern = "^" .. name .. ': clip is .*, expected a number above 0 and up to 1, or "mse"$' },
          function() call(x, { clip = clip }) end)
      end
      assert.fails_with(name .. ': clip is "mae", expected a number above 0 and up to 1, or "mse"',
        function() call(x, { clip = "mae" }) end)
      assert.fails_with(name .. ': dtype is "int32", expected "int4" or "int8"',
        function() call(x, { dtype = "int32" }) end)
      assert.fails_with(name .. ": rotate is 12, expected a power of two from 4 to 1024",
        function() call(x, { rotate = 12 }) end)
      assert.fails_with(name .. ": rotate is 16, which does not divide the 24 values along dim 2 of src",
        function() call(x, { rotate = 16 }) end)
      assert.fails_with(name .. ": rotate is true, expected a whole number from 4 to 1024",
        function() call(x, { rotate = true }) end)
    end
    assert.fails_with('quantize: out is int32 but dtype is "int8", which is stored as int8; leave one of them out',
      function() q.quantize(x, { dtype = "int8", out = q.zeros { 8, 3, dtype = "int32" } }) end)
    assert.fails_with("quantize: packed is [8, 23] int8 but src is [8, 24] float32: the shapes differ",
      function() q.quantize(x, { out = q.zeros { 8, 23, dtype = "int8" } }) end)
  end)
end)

describe("dequantize of int8", function()
  for _, dtype in ipairs(DTYPES) do
    for dim = 1, 2 do
      it(("is the value times the scale, rounded once: %s along dim %d"):format(dtype, dim), function()
        local R, C = 13, 1100
        local r = cases.random(21)
        local values = q.empty { R, C, dtype = "int8" }
        for i = 0, R * C - 1 do values:data()[i] = r:range(-128, 127) end
        local scales = q.empty { dim == 1 and C or R }
        for i = 1, scales.shape[1] do scales:set(i, r:range(1, 2 ^ 20) * 2 ^ r:range(-45, -5)) end
        scales:set(2, 0 / 0)
        local expected = q.empty { R, C }
        for i = 1, R do
          for j = 1, C do expected:set(i, j, f(values:get(i, j) * scales:get(dim == 1 and j or i))) end
        end
        on_every_isa(function(isa)
          assert.same_bits(expected:to(dtype), q.dequantize(values, scales, { dim = dim, dtype = dtype }), isa)
        end)
      end)
    end
  end

  it("refuses a length, and scales of another number", function()
    local values = q.zeros { 4, 6, dtype = "int8" }
    assert.fails_with("dequantize: length is 6, but packed is int8, which has no padding: leave it out",
      function() q.dequantize(values, q.zeros { 4 }, { length = 6 }) end)
    assert.fails_with({ pattern = "^dequantize: scales is %[6%] float32, expected %[4%] float32: one per row" },
      function() q.dequantize(values, q.zeros { 6 }) end)
  end)
end)

-- ---- what it is for ----

--- Numbers of a normal distribution (Box and Muller, 1958).
local function gaussian(r)
  local u = (r:range(0, 2 ^ 24 - 1) + 1) / 2 ^ 24
  return math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * r:range(0, 2 ^ 24 - 1) / 2 ^ 24)
end

--- Rows of them; with outliers, one channel in 64 is 30 times as large, as activations of language models have it.
local function activations(seed, outliers)
  local r = cases.random(seed)
  local rows = {}
  for i = 1, 128 do
    rows[i] = {}
    for k = 1, 1024 do rows[i][k] = gaussian(r) * (outliers and k % 64 == 17 and 30 or 1) end
  end
  return q.tensor(rows)
end

--- sqrt(sum of squared errors / sum of squares) of what comes back.
local function relative_error(source, opts)
  local packed, scales = q.quantize(source, opts)
  local back = q.dequantize(packed, scales)
  if opts.rotate then back = q.rotate(back, { block = opts.rotate }) end
  local off, size = 0, 0
  for i = 1, source.shape[1] do
    for k = 1, source.shape[2] do
      off, size = off + (back:get(i, k) - source:get(i, k)) ^ 2, size + source:get(i, k) ^ 2
    end
  end
  return math.sqrt(off / size)
end

describe("accuracy", function()
  -- The bounds are a plain simulation in float64 (numpy, 2,000 rows of this distribution), plus or minus 5 %.
  local EXPECTED = {
    gaussian = {
      { error = 0.1430 }, { clip = 0.9, error = 0.1292 }, { clip = "mse", error = 0.1127 },
      { rotate = 256, error = 0.1426 }, { rotate = 256, clip = "mse", error = 0.1125 },
    },
    outliers = {
      { error = 0.2687 }, { clip = "mse", error = 0.2670 }, { rotate = 64, error = 0.1101 },
      { rotate = 256, error = 0.1100 }, { rotate = 256, clip = "mse", error = 0.0941 },
    },
  }

  for _, data in ipairs { "gaussian", "outliers" } do
    for _, case in ipairs(EXPECTED[data]) do
      it(("%s, rotate %s, clip %s: what the simulation says"):format(data, tostring(case.rotate), tostring(case.clip)),
        function()
          local got = relative_error(activations(3, data == "outliers"), { rotate = case.rotate, clip = case.clip })
          assert(math.abs(got / case.error - 1) < 0.05, ("%.4f where %.4f was expected"):format(got, case.error))
        end)
    end

    it(data .. ": clipping lowers the error, and so does rotating where values stand out", function()
      local source = activations(4, data == "outliers")
      local plain, clipped = relative_error(source, {}), relative_error(source, { clip = "mse" })
      local rotated = relative_error(source, { rotate = 256 })
      local both = relative_error(source, { rotate = 256, clip = "mse" })
      assert(clipped < plain and both < rotated)
      if data == "outliers" then assert(rotated < 0.5 * plain and both < 0.5 * clipped) end
    end)
  end
end)
