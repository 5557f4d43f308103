--- Test data: Philox4x32-10 against its authors' vectors and against a plain-Lua one.

local bit = require "bit"
local ffi = require "ffi"

local helper = require "spec.helper"
local q = require "int4mm"

--- The high and the low word of a 32-bit by 32-bit product.
local function multiply(a, b)
  local product = ffi.cast("uint64_t", a) * ffi.cast("uint64_t", b)
  return tonumber(product / 2 ^ 32), tonumber(product % 2 ^ 32)
end

local function xor(a, b, c)
  return bit.bxor(a, b, c) % 2 ^ 32
end

--- Philox4x32-10 by the paper: ten rounds of two products, the key bumped between them.
local function philox(counter, key)
  local c0, c1, c2, c3 = unpack(counter)
  local k0, k1 = unpack(key)
  for _ = 1, 10 do
    local high0, low0 = multiply(0xD2511F53, c0)
    local high1, low1 = multiply(0xCD9E8D57, c2)
    c0, c1, c2, c3 = xor(high1, c1, k0), low1, xor(high0, c3, k1), low0
    k0, k1 = (k0 + 0x9E3779B9) % 2 ^ 32, (k1 + 0xBB67AE85) % 2 ^ 32
  end
  return { c0, c1, c2, c3 }
end

describe("the plain-Lua Philox4x32-10", function()
  -- kat_vectors of the Random123 distribution
  local ones = 0xffffffff
  local known = {
    { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
    { { ones, ones, ones, ones }, { ones, ones }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
    { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 },
      { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
  }
  for i, vector in ipairs(known) do
    it("gives its authors' vector " .. i, function()
      assert.same(vector[3], philox(vector[1], vector[2]))
    end)
  end
end)

describe("random", function()
  --- What an int32 tensor of n elements must hold.
  local function expected_words(n, seed, sequence)
    local words = ffi.new("uint32_t[?]", n)
    local key = { seed % 2 ^ 32, math.floor(seed / 2 ^ 32) }
    for block = 0, math.ceil(n / 4) - 1 do
      local c = philox({ block, 0, sequence, 0 }, key)
      for i = 0, 3 do
        if 4 * block + i < n then words[4 * block + i] = c[i + 1] end
      end
    end
    return ffi.string(words, 4 * n)
  end

  it("starts with the authors' zero vector", function()
    local t = q.random(q.empty { 4, dtype = "int32" }, { seed = 0 })
    assert.equal("d5e827668dc569e14cac57bcd8db009b", helper.to_hex(helper.bytes(t)))
  end)

  it("is Philox by element of the row-major order, any seed and sequence", function()
    for _, c in ipairs { { 1, 0, 1 }, { 3, 1, 0 }, { 257, 7, 2 }, { 4099, 2 ^ 52 + 12345, 4294967295 } } do
      local n, seed, sequence = c[1], c[2], c[3]
      local t = q.random(q.empty { n, dtype = "int32" }, { seed = seed, sequence = sequence })
      assert.same_bits(expected_words(n, seed, sequence), t, ("n %d, seed %.0f"):format(n, seed))
    end
  end)

  it("numbers the elements of a matrix row by row", function()
    assert.same_bits(expected_words(77, 9, 0), q.random(q.empty { 7, 11, dtype = "int32" }, { seed = 9 }))
  end)

  it("fills a view by the view's own order and leaves what is around it", function()
    local whole = q.zeros { 7, 11, dtype = "int32" }
    q.random(whole:narrow(1, 2, 5):narrow(2, 4, 6), { seed = 9 })
    assert.same_bits(expected_words(30, 9, 0), whole:narrow(1, 2, 5):narrow(2, 4, 6))
    assert.same_bits(("\0"):rep(44), whole:narrow(1, 1, 1))
    assert.same_bits(("\0"):rep(44), whole:narrow(1, 7, 1))
    assert.same_bits(("\0"):rep(84), whole:narrow(2, 1, 3))
    assert.same_bits(("\0"):rep(56), whole:narrow(2, 10, 2))
  end)

  it("takes a seed of 64 bits", function()
    local function words(seed) return helper.bytes(q.random(q.empty { 8, dtype = "int32" }, { seed = seed })) end
    assert.equal(words(2 ^ 40 + 1), words(0x10000000001ULL))
    assert.not_equal(words(0xffffffffffffffffULL), words(0x7fffffffffffffffULL))
  end)

  it("gives float32 in (low, high], each step rounded to float32", function()
    local n, low, high = 999, -0.25, 1.7
    local t = q.random(q.empty { n }, { seed = 5, sequence = 2, low = low, high = high })
    local raw = expected_words(n, 5, 2)
    local words = ffi.cast("const uint32_t *", raw)
    local f = helper.float32
    local got = helper.pointer(t)
    for i = 0, n - 1 do
      local u = f((bit.rshift(words[i], 8) + 1) * 2 ^ -24)
      local expected = f(f(low) + f(u * f(f(high) - f(low))))
      assert(got[i] == expected, ("element %d is %.9g, expected %.9g"):format(i, got[i], expected))
      assert(got[i] >= f(low) and got[i] <= f(high))
    end
  end)
end)

describe("a host that flushes subnormals to zero", function()
  --- Calls f with the floating-point environment that some libraries leave behind: FTZ and DAZ on x86, FZ on AArch64.
  local function flushing(f)
    ffi.cdef "int fegetenv(void *); int fesetenv(const void *);"
    local m = ffi.load "m"
    local before, hostile = ffi.new "uint32_t[16]", ffi.new "uint32_t[16]"
    m.fegetenv(before)
    m.fegetenv(hostile)
    if ffi.arch == "x64" then hostile[7] = bit.bor(hostile[7], 0x8040) end -- MXCSR
    if ffi.arch == "arm64" then hostile[0] = bit.bor(hostile[0], 2 ^ 24) end -- FPCR
    m.fesetenv(hostile)
    local cell = ffi.new("union { float f; uint32_t u; }")
    cell.u = 1
    local flushed = ffi.arch ~= "x64" or cell.f == 0
    local results = { pcall(f) }
    m.fesetenv(before)
    assert(flushed, "nothing is flushed here, so nothing is tested")
    assert(results[1], results[2])
    return unpack(results, 2)
  end

  -- each returns a tensor whose numbers are subnormal, or made of such
  local steps = {
    ["random numbers"] = function() return q.random(q.empty { 4099 }, { seed = 3, low = 0, high = 2e-38 }) end,
    ["a range of subnormals"] = function()
      return q.random(q.empty { 99 }, { seed = 3, low = -1e-40, high = 3e-39 })
    end,
    ["tensors of a table"] = function() return q.tensor { 1e-39, -2e-45, 1e-45, 1.1754943e-38, 2 ^ -150, -1e-310 } end,
    ["elements read and written"] = function()
      local t, u = q.tensor { 1e-39, -3e-41 }, q.zeros { 2 }
      for i = 1, 2 do u:set(i, t:get(i)) end
      return u
    end,
    ["quantising"] = function() return (select(2, q.quantize(q.tensor { { 1e-39, 2e-40 }, { -3e-42, 1e-45 } }))) end,
    ["dequantising"] = function()
      return q.dequantize(q.tensor({ { 0x76543210 } }, { dtype = "int32" }), q.tensor { 1e-40 })
    end,
    ["conversions"] = function()
      return q.tensor({ 1e-39, -3e-41 }, { dtype = "bfloat16" }):to("float32"):to("bfloat16"):to "float32"
    end,
    ["halves"] = function() return q.tensor({ 6e-8, -3e-6 }, { dtype = "float16" }):to("float32"):to "float16" end,
  }
  for _, product in ipairs { "int4_matmul_reference", "int4_matmul_cpu" } do
    steps[product] = function()
      local a, b, scale_a, scale_b = q.generate_test_data(3, 16, 5, { seed = 1 })
      for i = 1, 3 do scale_a:set(i, 1e-38 / i) end
      for i = 1, 5 do scale_b:set(i, i % 2 == 0 and 1e-40 or 0.5) end
      return q[product](a, b, scale_a, scale_b, { bias = scale_b, out_dtype = "float32" })
    end
  end
  for name, step in pairs(steps) do
    it("changes no bit of " .. name, function()
      local expected = helper.bytes(step())
      for _ = 1, 60 do -- compiled too
        assert.same_bits(expected, flushing(step))
      end
    end)
  end
end)

describe("generate_test_data", function()
  local M, K, N = 13, 48, 21
  local NAMES = { "a_packed", "b_packed", "scale_a", "scale_b", "a", "b" }

  local function bytes_of(...)
    local list = {}
    for i, t in ipairs { ... } do list[i] = helper.bytes(t) end
    return list
  end

  it("gives the six tensors of the contract", function()
    local six = { q.generate_test_data(M, K, N, { seed = 1 }) }
    local expected = { { "int32", M, K / 8 }, { "int32", K / 8, N }, { "float32", M }, { "float32", N },
      { "int8", M, K }, { "int8", K, N } }
    assert.equal(6, #six)
    for i, e in ipairs(expected) do
      assert.equal(e[1], six[i].dtype, NAMES[i])
      assert.same({ e[2], e[3] }, six[i].shape, NAMES[i])
      assert.equal("cpu", six[i].device, NAMES[i])
    end
  end)

  it("packs a and b", function()
    local a_packed, b_packed, _, _, a, b = q.generate_test_data(M, K, N, { seed = 1 })
    assert.same_bits(a_packed, q.pack_int4_to_int32(a))
    assert.same_bits(b_packed, q.pack_int4_to_int32(b, { dim = 1 }))
  end)

  it("gives the same from the same seed, something else from another", function()
    local once = bytes_of(q.generate_test_data(M, K, N, { seed = 42 }))
    assert.same(once, bytes_of(q.generate_test_data(M, K, N, { seed = 42 })))
    local other = bytes_of(q.generate_test_data(M, K, N, { seed = 43 }))
    for i, name in ipairs(NAMES) do assert.not_equal(once[i], other[i], name) end
  end)

  it("has a default seed", function()
    assert.same(bytes_of(q.generate_test_data(M, K, N)), bytes_of(q.generate_test_data(M, K, N)))
  end)

  it("draws every int4 value about equally often, and useful scales", function()
    local _, _, scale_a, scale_b, a = q.generate_test_data(64, 512, 8, { seed = 4 })
    local count = {}
    local p = helper.pointer(a)
    for i = 0, 64 * 512 - 1 do count[p[i]] = (count[p[i]] or 0) + 1 end
    for v = -8, 7 do
      assert(count[v] and math.abs(count[v] - 2048) < 300, ("%d was drawn %s times"):format(v, tostring(count[v])))
    end
    for _, scales in ipairs { scale_a, scale_b } do
      for _, s in ipairs(scales:totable()) do assert(s > 0 and s < math.huge, ("a scale of %g"):format(s)) end
    end
  end)

  it("is not the same for a and b, nor for the two scales", function()
    local a_packed, b_packed, scale_a, scale_b = q.generate_test_data(16, 128, 16, { seed = 1 })
    assert.not_equal(helper.bytes(a_packed), helper.bytes(b_packed))
    assert.not_equal(helper.bytes(scale_a), helper.bytes(scale_b))
  end)

  it("takes a dimension of 0", function()
    local a_packed, b_packed, scale_a, scale_b = q.generate_test_data(0, 0, 3)
    assert.same({ 0, 0 }, a_packed.shape)
    assert.same({ 0, 3 }, b_packed.shape)
    assert.same({ 0 }, scale_a.shape)
    assert.same({ 3 }, scale_b.shape)
  end)
end)
