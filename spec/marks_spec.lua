--- A packed tensor knows how it was packed: who writes that down, who keeps it, who goes by it, and what it makes of
-- mistakes that would otherwise give wrong numbers.

local ffi = require "ffi"

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local ENCODINGS = { "twos_complement", "offset" }

--- Values from -7 to 7, as a dtype.
local function values(rows, columns, dtype, seed)
  local r, t = cases.random(seed or 1), q.empty { rows, columns, dtype = dtype or "int8" }
  for i = 1, rows do
    for j = 1, columns do t:set(i, j, r:range(-7, 7)) end
  end
  return t
end

--- The same words without a mark.
local function raw(t) return t:clone():unmark_() end

local function packing(dim, encoding, length) return { dim = dim, encoding = encoding, length = length } end

-- ---- who writes it down ----

describe("a mark is written by", function()
  for dim = 1, 2 do
    for _, encoding in ipairs(ENCODINGS) do
      it(("packing and quantising along dim %d, %s, with the length that is not a multiple of 8"):format(dim, encoding),
        function()
          local opts = { dim = dim, encoding = encoding }
          local expected = packing(dim, encoding, dim == 1 and 60 or 13)
          assert.same(expected, q.pack_int4_to_int32(values(60, 13), opts).packing)
          assert.same(expected, q.pack_int4_to_int32(values(60, 13, "int32"), opts).packing)
          local packed, scales = q.quantize(values(60, 13, "float32"), opts)
          assert.same(expected, packed.packing)
          assert.is_nil(scales.packing)
        end)
    end
  end

  it("packing into a given tensor, which may have had another; not where it fails", function()
    local out = q.pack_int4_to_int32(values(8, 16), { dim = 1, encoding = "offset" })
    out = q.pack_int4_to_int32(values(1, 128), { out = out })
    assert.same(packing(2, "twos_complement", 128), out.packing)
    q.quantize(values(8, 16, "float32"), { dim = 1, out = out })
    assert.same(packing(1, "twos_complement", 8), out.packing)
    assert.is_false(pcall(q.pack_int4_to_int32, q.full({ 1, 128, dtype = "int8" }, 8), { out = out }))
    assert.same(packing(1, "twos_complement", 8), out.packing)
  end)

  it("prepacking: [K/8, N] in two's complement, whatever the weight was", function()
    local weight = values(5, 60)
    local packed = q.pack_int4_to_int32(weight, { encoding = "offset" })
    assert.same(packing(1, "twos_complement", 60), q.prepack(packed).packing)
    assert.same(packing(1, "twos_complement", nil),
      q.prepack(raw(packed), { layout_b = "nk", encoding = "offset" }).packing)
  end)

  it("generate_test_data", function()
    local a_packed, b_packed, scale_a, scale_b, a, b = q.generate_test_data(3, 16, 5)
    assert.same(packing(2, "twos_complement", 16), a_packed.packing)
    assert.same(packing(1, "twos_complement", 16), b_packed.packing)
    for _, t in ipairs { scale_a, scale_b, a, b } do assert.is_nil(t.packing) end
  end)

  it("hand", function()
    local words = q.zeros { 3, 8, dtype = "int32" }
    assert.is_nil(words.packing)
    assert.equal(words, words:mark_ { encoding = "offset", length = 60 })
    assert.same(packing(2, "offset", 60), words.packing)
    assert.same(packing(1, "twos_complement", nil), words:mark_({ dim = 1 }).packing)
    assert.same(packing(2, "twos_complement", nil), words:mark_().packing)
    assert.equal(words, words:unmark_())
    assert.is_nil(words.packing)
    for _, length in ipairs { 56, 65 } do
      assert.fails_with(("mark_: packed_k is %d, which the 8 words along dim 2 do not hold"):format(length),
        function() words:mark_ { length = length } end)
    end
    assert.fails_with("mark_: [4] int32 cannot be marked as packed: only a matrix of int32 words can",
      function() q.zeros({ 4, dtype = "int32" }):mark_() end)
    assert.fails_with("mark_: [4, 4] int8 cannot be marked as packed: only a matrix of int32 words can",
      function() q.zeros({ 4, 4, dtype = "int8" }):mark_() end)
    assert.fails_with("mark_: dim is 3, expected 1 (rows) or 2 (columns)", function() words:mark_ { dim = 3 } end)
    assert.is_nil(words.packing)
  end)
end)

-- ---- who keeps it ----

describe("a mark is kept by", function()
  local words = q.pack_int4_to_int32(values(5, 60), { encoding = "offset" }) -- [5, 8]
  local mark = packing(2, "offset", 60)

  it("copies", function()
    assert.same(mark, words:clone().packing)
    assert.same(mark, words:to("cpu").packing)
    assert.same(mark, words:narrow(2, 1, 8):contiguous().packing)
    assert.same(mark, q.tensor(words).packing)
    assert.same(mark, q.empty({ 5, 8, dtype = "int32" }):copy_(words).packing)
    local other = q.pack_int4_to_int32(values(40, 8), { dim = 1 })
    assert.same(mark, other:copy_(words).packing)
    assert.same(mark, other:copy_(other).packing)
  end)

  it("views, which hold as many values as their words", function()
    assert.same(mark, words:narrow(1, 2, 3).packing)
    for first = 1, 9 do
      for length = 0, 9 - first do
        local k = math.min(8 * length, 60 - 8 * (first - 1))
        assert.same(packing(2, "offset", length > 0 and k or nil), words:narrow(2, first, length).packing)
      end
    end
    local columns = q.pack_int4_to_int32(values(13, 6), { dim = 1 }) -- [2, 6]
    assert.same(packing(1, "twos_complement", 8), columns:narrow(1, 1, 1).packing)
    assert.same(packing(1, "twos_complement", 5), columns:narrow(1, 2, 1):narrow(2, 3, 2).packing)
    local unknown = raw(words):mark_()
    assert.same(packing(2, "twos_complement", nil), unknown:narrow(2, 3, 2).packing)
  end)

  it("setting one word", function()
    assert.same(mark, words:clone():set(1, 1, 5).packing)
  end)
end)

describe("a mark is lost where", function()
  local words = q.pack_int4_to_int32(values(5, 60))

  it("all words are written anew from elsewhere", function()
    assert.is_nil(words:clone():fill_(0).packing)
    assert.is_nil(words:clone():fill_bytes_(0).packing)
    assert.is_nil(q.random(words:clone()).packing)
    assert.is_nil(words:clone():copy_(q.zeros { 5, 8, dtype = "int32" }).packing)
    assert.is_nil(words:clone():copy_(q.zeros { 5, 8, dtype = "int8" }).packing)
  end)

  it("the tensor holds words no more", function()
    assert.is_nil(q.full({ 2, 2, dtype = "int32" }, 3):mark_():to("int8").packing)
    assert.is_nil(words:to("float32").packing)
    local out = q.zeros({ 5, 60, dtype = "int32" }):mark_()
    assert.is_nil(q.unpack_int32_to_int4(words, { out = out }).packing)
  end)

  it("but not by a call that is refused", function()
    local t = words:clone()
    assert.is_false(pcall(t.fill_, t, 2 ^ 40))
    assert.is_false(pcall(t.copy_, t, q.zeros { 5, 7, dtype = "int32" }))
    assert.same(packing(2, "twos_complement", 60), t.packing)
  end)
end)

-- ---- who goes by it ----

local MULTIPLY = { "int4_matmul", "int4_matmul_cpu", "int4_matmul_reference" }

describe("a product takes from the marks", function()
  for _, name in ipairs(MULTIPLY) do
    it("encodings and layout, in " .. name, function()
      for _, K in ipairs { 60, 64 } do
        for _, encoding_a in ipairs(ENCODINGS) do
          for _, encoding_b in ipairs(ENCODINGS) do
            for dim, layout_b in ipairs { "kn", "nk" } do
              local a = q.pack_int4_to_int32(values(3, K), { encoding = encoding_a })
              local b = dim == 1 and values(K, 8, "int8", 2) or values(8, K, "int8", 2) -- N = K/8: either layout fits
              b = q.pack_int4_to_int32(b, { dim = dim, encoding = encoding_b })
              local scale_a, scale_b = q.random(q.empty { 3 }), q.random(q.empty { 8 }, { seed = 1 })
              local given = { encoding_a = encoding_a, encoding_b = encoding_b, layout_b = layout_b }
              local expected = q.int4_matmul_reference(raw(a), raw(b), scale_a, scale_b, given)
              local what = ("K=%d %s %s %s"):format(K, encoding_a, encoding_b, layout_b)
              assert.same_bits(expected, q[name](a, b, scale_a, scale_b), what)
              assert.same_bits(expected, q[name](a, b, scale_a, scale_b, {}), what)
              assert.same_bits(expected, q[name](a, b, scale_a, scale_b, given), what)
              assert.same_bits(expected, q[name](raw(a), b, scale_a, scale_b, { encoding_a = encoding_a }), what)
              if name ~= "int4_matmul_reference" then
                assert.same_bits(expected, q[name](a, q.prepack(b), scale_a, scale_b), what)
              end
            end
          end
        end
      end
    end)
  end

  it("what it needs of one operand where the other has none", function()
    local a, b = q.pack_int4_to_int32(values(3, 60)), q.random(q.empty { 8, 5, dtype = "int32" })
    local scale_a, scale_b = q.ones { 3 }, q.ones { 5 }
    local opts = { encoding_b = "offset" }
    assert.same_bits(q.int4_matmul_reference(raw(a), b, scale_a, scale_b, opts),
      q.int4_matmul_cpu(a, b, scale_a, scale_b, opts))
  end)

  it("a weight [N, K/8] of another N, whose result is [M, N]", function()
    local a, b = q.quantize(values(3, 64, "float32")), q.quantize(values(70, 64, "float32"))
    assert.same({ 3, 70 }, q.int4_matmul(a, b, q.ones { 3 }, q.ones { 70 }).shape)
    assert.same({ 3, 70 }, q.int4_matmul_reference(a, b, q.ones { 3 }, q.ones { 70 }).shape)
  end)
end)

describe("unpacking and dequantising take from the mark", function()
  for dim = 1, 2 do
    for _, encoding in ipairs(ENCODINGS) do
      it(("dim %d, %s and the length"):format(dim, encoding), function()
        local ints = values(13, 60)
        local packed = q.pack_int4_to_int32(ints, { dim = dim, encoding = encoding })
        assert.same_bits(ints, q.unpack_int32_to_int4(packed))
        assert.same_bits(ints, q.unpack_int32_to_int4(packed, packed.packing))
        local ones = q.ones { dim == 1 and 60 or 13 }
        assert.same_bits(ints:to "float32", q.dequantize(packed, ones))
        assert.same_bits(ints:to "float32", q.dequantize(packed, ones, packed.packing))
        assert.same_bits(ints:narrow(1, 1, 8), q.unpack_int32_to_int4(packed):narrow(1, 1, 8))
      end)
    end
  end

  it("of a view as well", function()
    local ints = values(13, 60)
    local packed = q.pack_int4_to_int32(ints, { encoding = "offset" })
    assert.same_bits(ints:narrow(1, 2, 5):narrow(2, 49, 12),
      q.unpack_int32_to_int4(packed:narrow(1, 2, 5):narrow(2, 7, 2)))
  end)
end)

describe("a mark is shown by", function()
  it("tostring", function()
    local words = q.pack_int4_to_int32(q.zeros { 1, 13, dtype = "int8" })
    assert.equal("tensor([[0, 0]], dtype=int32, device=cpu, shape=[1, 2], "
      .. "int4 packed along dim 2, K = 13, twos_complement)", tostring(words))
    assert.equal("tensor([[0, 0]], dtype=int32, device=cpu, shape=[1, 2], int4 packed along dim 1, offset)",
      tostring(words:mark_ { dim = 1, encoding = "offset" }))
    assert.equal("tensor([[0, 0]], dtype=int32, device=cpu, shape=[1, 2])", tostring(words:unmark_()))
    assert.equal("tensor(prepacked, dtype=int32, device=cpu, shape=[2, 3], "
      .. "int4 packed along dim 1, K = 13, twos_complement)", tostring(q.prepack(q.pack_int4_to_int32(values(3, 13)))))
  end)

  it("explain", function()
    local a, b = q.pack_int4_to_int32(values(3, 60)), q.pack_int4_to_int32(values(5, 60), { encoding = "offset" })
    local plan = q.explain(a, b, q.ones { 3 }, q.ones { 5 })
    assert.equal("int4 packed along dim 2, K = 60, twos_complement", plan.a_packed)
    assert.equal("int4 packed along dim 2, K = 60, offset", plan.b_packed)
    assert.matches("; a_packed is " .. plan.a_packed .. "; b_packed is " .. plan.b_packed, tostring(plan), 1, true)
    plan = q.explain(raw(a), raw(b), q.ones { 3 }, q.ones { 5 }, { layout_b = "nk" })
    assert.is_nil(plan.a_packed)
    assert.is_nil(plan.b_packed)
    assert.is_nil(tostring(plan):find("_packed is", 1, true))
  end)
end)

-- ---- mistakes ----

-- What a newcomer does, and what it says; every one of them but those with `shape` would fit by its shapes.
local x, w = values(4, 64, "float32"), values(64, 8, "float32", 2) -- N = K/8
local a, scale_a = q.quantize(x)
local b, scale_b = q.quantize(w, { dim = 1 })

local mistakes = {
  { "forgets dim for a weight [K, N]", function(f)
    local wide, scales = q.quantize(values(64, 96, "float32"))
    f(a, wide, scale_a, scales)
  end, "b_packed is [64, 12] int32 but a_packed is [4, 8] int32: K/8 differs (8 and 12); b was packed along dim 2, so "
    .. "it is [N, K/8]: pack a weight [K, N] along dim 1" },
  { "gives dim = 1 for a weight [N, K]", function(f)
    local nk, scales = q.quantize(values(96, 64, "float32"), { dim = 1 })
    f(a, nk, scale_a, scales)
  end, "b_packed is [12, 64] int32 but a_packed is [4, 8] int32: K/8 differs (8 and 12); b was packed along dim 1, so "
    .. "it is [K/8, N]: pack a weight [N, K] along dim 2" },
  { "packs the activations along dim 1", function(f)
    local square = q.pack_int4_to_int32(values(64, 8), { dim = 1 }) -- [8, 8]
    f(square, b, q.ones { 8 }, scale_b)
  end, "a_packed was packed along dim 1, expected [M, K/8]: pack A [M, K] along dim 2" },
  { "swaps the operands", function(f)
    f(q.pack_int4_to_int32(values(64, 8), { dim = 1 }), q.pack_int4_to_int32(values(8, 64)), q.ones { 8 }, q.ones { 8 })
  end, "a_packed was packed along dim 1, expected [M, K/8]: pack A [M, K] along dim 2; or were a_packed and b_packed "
    .. "swapped?" },
  { "gives a layout that the weight has not", function(f) f(a, b, scale_a, scale_b, { layout_b = "nk" }) end,
    'layout_b is "nk" but b_packed was packed along dim 1, which is "kn"; leave layout_b out' },
  { "reads the words of a weight [N, K] as if transposed", function(f)
    f(a, q.quantize(values(8, 64, "float32")), scale_a, scale_b, { layout_b = "kn" })
  end, 'layout_b is "kn" but b_packed was packed along dim 2, which is "nk"; leave layout_b out' },
  { "gives an encoding that the weight has not", function(f) f(a, b, scale_a, scale_b, { encoding_b = "offset" }) end,
    'encoding_b is "offset" but b_packed was packed as "twos_complement"; leave encoding_b out' },
  { "gives an encoding that the activations have not", function(f)
    f(q.pack_int4_to_int32(values(4, 64), { encoding = "offset" }), b, scale_a, scale_b,
      { encoding_a = "twos_complement" })
  end, 'encoding_a is "twos_complement" but a_packed was packed as "offset"; leave encoding_a out' },
  { "multiplies K = 64 by K = 60", function(f)
    f(a, q.pack_int4_to_int32(values(60, 8), { dim = 1 }), scale_a, scale_b)
  end, "b_packed was packed from K = 60 values but a_packed from K = 64: K differs, though both are 8 words" },
  { "multiplies K = 60 by K = 64", function(f) f(q.quantize(values(4, 60, "float32")), b, scale_a, scale_b) end,
    "b_packed was packed from K = 64 values but a_packed from K = 60: K differs, though both are 8 words" },
  { "swaps the scales", function(f) f(a, b, scale_b, scale_a) end,
    "scale_a is [8] float32 and scale_b [4] float32, expected [4] and [8] float32: swap them" },
  { "gives the scales of another dimension of the weight", function(f)
    f(a, b, scale_a, select(2, q.quantize(w)))
  end, "scale_b is [64] float32, expected [8] float32: one scale per column of b" },
  { "gives floats for words", function(f) f(x, b, scale_a, scale_b) end,
    "scale_a is [4] float32, but a_packed is [4, 64] float32, floats, which have no scale: leave scale_a out, or "
      .. "quantize a_packed first" },
  { "gives int8 values for words", function(f) f(a, values(8, 8), scale_a, scale_b) end,
    "b_packed is [8, 8] int8, expected a matrix of int32, eight int4 to a word: pack it first" },
}

for _, name in ipairs(MULTIPLY) do
  describe(name .. " says what to write when a newcomer", function()
    for _, mistake in ipairs(mistakes) do
      it(mistake[1], function()
        assert.fails_with(name .. ": " .. mistake[3], function()
          mistake[2](function(...)
            local c = q[name](...)
            return c
          end)
        end)
      end)
    end
  end)
end

describe("a newcomer is told", function()
  local packed, scales = q.quantize(values(8, 60, "float32"), { encoding = "offset" })

  it("by unpacking and dequantising, of options that are not the mark's", function()
    for name, f in pairs {
      unpack_int32_to_int4 = function(opts) return q.unpack_int32_to_int4(packed, opts) end,
      dequantize = function(opts) return q.dequantize(packed, scales, opts) end,
    } do
      local function fails(sentence, opts)
        assert.fails_with(name .. ": " .. sentence, function() local _ = f(opts) end)
      end
      fails("dim is 1 but packed was packed along dim 2; leave dim out", { dim = 1 })
      fails('encoding is "twos_complement" but packed was packed as "offset"; leave encoding out',
        { encoding = "twos_complement" })
      fails("length is 64 but packed holds 60 values along dim 2; leave length out", { length = 64 })
      local dtype = name == "dequantize" and "float32" or "int8"
      fails(("dst is [8, 64] %s but packed holds 60 values along dim 2"):format(dtype),
        { out = q.zeros { 8, 64, dtype = dtype } })
    end
  end)

  it("that a tensor is packed already", function()
    local words = q.pack_int4_to_int32(q.zeros { 2, 16, dtype = "int8" }) -- all zeros: values that int4 holds
    assert.fails_with("pack_int4_to_int32: src is [2, 2] int32, packed already along dim 2: it is good as it is, or "
      .. "unpack it", function() q.pack_int4_to_int32(words) end)
    assert.fails_with("quantize: src is [2, 2] int32, expected a matrix of float32, float16 or bfloat16",
      function() q.quantize(words) end)
  end)

  it("that a weight is prepacked already, and what it was not made from", function()
    assert.fails_with({ pattern = "^prepack: b_packed is prepacked" }, function() q.prepack(q.prepack(b)) end)
    assert.fails_with('prepack: layout_b is "kn" but b_packed was packed along dim 2, which is "nk"; leave '
      .. "layout_b out", function() q.prepack(packed, { layout_b = "kn" }) end)
    assert.fails_with('prepack: encoding is "twos_complement" but b_packed was packed as "offset"; leave encoding out',
      function() q.prepack(packed, { encoding = "twos_complement" }) end)
    local panels = q.prepack(packed)
    assert.fails_with("int4_matmul_cpu: b_packed was packed from K = 60 values but a_packed from K = 64: K differs, "
      .. "though both are 8 words", function() local _ = q.int4_matmul_cpu(a, panels, scale_a, scales) end)
  end)

  it("nothing where words have no mark", function()
    local words = raw(packed)
    for _, opts in ipairs { {}, { layout_b = "nk" }, { encoding_b = "offset" }, { encoding_a = "offset" } } do
      assert.same_bits(q.int4_matmul_reference(raw(a), words, scale_a, q.ones { 8 }, opts),
        q.int4_matmul_cpu(raw(a), words, scale_a, q.ones { 8 }, opts))
    end
    assert.same({ 8, 64 }, q.unpack_int32_to_int4(words).shape)
    assert.same({ 64, 8 }, q.unpack_int32_to_int4(words, { dim = 1 }).shape)
    assert.same({ 8, 57 }, q.dequantize(words, scales, { length = 57 }).shape)
  end)
end)

-- ---- the C core ----

describe("in C", function()
  local lib = require("int4mm.lib").lib

  --- A product's status with these options, and the sentence where it failed.
  local function product(a_words, b_words, set)
    local args, out = ffi.new "int4mm_matmul_args", ffi.new "int4mm_tensor"
    local one_a, one_b = q.ones { 4 }, q.ones { 8 }
    args.a_packed, args.b_packed, args.scale_a, args.scale_b = a_words.c, b_words.c, one_a.c, one_b.c
    args.out, args.out_dtype, args.backend = out, 4, 1
    for key, value in pairs(set or {}) do args[key] = value end
    local status = lib.int4mm_matmul(args)
    lib.int4mm_tensor_release(out)
    return status, status ~= 0 and ffi.string(lib.int4mm_last_error()) or ""
  end

  it("an option of 0 is the mark's, another has to be", function()
    local offset = q.pack_int4_to_int32(values(8, 64), { encoding = "offset" })
    assert.equal(0, (product(a, offset)))
    assert.equal(0, (product(a, offset, { layout_b = 1, encoding_b = 1 })))
    assert.same({ 1, "layout_b is nk but b_packed was packed along dim 0, which is kn: leave layout_b out" },
      { product(a, b, { layout_b = 1 }) })
    assert.same({ 1, "encoding_b is offset but b_packed was packed in twos_complement: leave encoding_b out" },
      { product(a, b, { encoding_b = 1 }) })
    assert.same({ 1, "encoding_a is offset but a_packed was packed in twos_complement: leave encoding_a out" },
      { product(a, b, { encoding_a = 1 }) })
  end)

  it("arguments of their own have to be the mark's", function()
    local packed, plain = q.pack_int4_to_int32(values(8, 60)), q.zeros { 8, 60, dtype = "int8" }
    local function unpack(dim, encoding, dst)
      return lib.int4mm_unpack(dst.c, packed.c, dim, encoding, nil), ffi.string(lib.int4mm_last_error())
    end
    assert.equal(0, (unpack(1, 0, plain)))
    assert.same({ 1, "encoding is offset but packed was packed in twos_complement" }, { unpack(1, 1, plain) })
    assert.same({ 1, "packed was packed along dim 1, expected along dim 0 as dim says" },
      { unpack(0, 0, q.zeros { 64, 8, dtype = "int8" }) })
    assert.same({ 1, "dst is [8, 61] int8 but packed holds 60 values along dim 1" },
      { unpack(1, 0, q.zeros { 8, 61, dtype = "int8" }) })
  end)

  it("a mark that there cannot be is refused", function()
    for _, mark in ipairs { { 3, 0, 0 }, { -1, 0, 0 }, { 2, 2, 0 }, { 2, -1, 0 }, { 2, 0, -1 }, { 2, 0, 65 },
      { 2, 0, 56 }, { 1, 0, 64 }, { 2, 0, 2 ^ 62 } } do
      local t = raw(a)
      assert.equal(1, lib.int4mm_tensor_mark(t.c, mark[1], mark[2], mark[3]))
      assert.is_nil(t.packing)
      t.c.packing, t.c.encoding, t.c.packed_k = mark[1], mark[2], mark[3]
      assert.equal(1, (product(t, b)))
      assert.matches("^a_packed is not a tensor: ", (select(2, product(t, b))))
    end
    assert.equal(1, lib.int4mm_tensor_mark(nil, 0, 0, 0))
    assert.equal(0, lib.int4mm_tensor_mark(q.zeros({ 4 }).c, 0, 0, 0))
    assert.equal(1, lib.int4mm_tensor_mark(q.zeros({ 4 }).c, 1, 0, 0))
    local t = raw(a)
    t.c.encoding, t.c.packed_k = 77, -5 -- without a packing these have no meaning
    assert.equal(0, (product(t, b)))
  end)

  it("a released tensor has none", function()
    local t = a:clone()
    lib.int4mm_tensor_release(t.c)
    assert.equal(0, t.c.packing)
    assert.equal(0, tonumber(t.c.packed_k))
  end)
end)

-- ---- on a GPU ----

describe("a mark on a GPU", function()
  helper.on_gpu("goes with copies over and back, and with what is packed there", function()
    local packed = q.pack_int4_to_int32(values(5, 60), { encoding = "offset" })
    assert.same(packed.packing, packed:to("cuda").packing)
    assert.same(packed.packing, packed:to("cuda"):to("cpu").packing)
    assert.same(packed.packing, q.pack_int4_to_int32(values(5, 60):to "cuda", { encoding = "offset" }).packing)
    local there, scales = q.quantize(values(5, 60, "float32"):to "cuda", { encoding = "offset" })
    assert.same(packed.packing, there.packing)
    assert.same(packing(1, "twos_complement", 60), q.prepack(there).packing)
    local x_packed, x_scales = q.quantize(values(3, 60, "float32"):to "cuda")
    local expected = q.int4_matmul_reference(x_packed, there, x_scales, scales)
    assert.same_bits(expected, q.int4_matmul(x_packed, there, x_scales, scales))
    assert.same_bits(expected, q.int4_matmul(x_packed, q.prepack(there), x_scales, scales))
    assert.is_nil(there:clone():fill_(0).packing)
    assert.same(there.packing, there:clone():set(1, 1, 7).packing)
    assert.fails_with('int4_matmul: encoding_b is "twos_complement" but b_packed was packed as "offset"; leave '
      .. "encoding_b out", function()
      local _ = q.int4_matmul(x_packed, there, x_scales, scales, { encoding_b = "twos_complement" })
    end)
  end)
end)
