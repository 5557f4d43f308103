--- Mistakes that newcomers make with products and layers: each raises a sentence that says what to write instead.

local helper = require "spec.helper"
local q = require "int4mm"

local M, K, N = 3, 64, 24

local function random(sequence, ...)
  return q.random(q.empty { ... }, { seed = 1, sequence = sequence, low = -1, high = 1 })
end

local x, weight = random(1, M, K), random(2, N, K) -- as PyTorch has them
local transposed = random(3, K, N)
local a, scale_a = q.quantize(x)
local w, scale_w = q.quantize(weight)
local b, scale_b = q.quantize(transposed, { dim = 1 })

--- Words that do not know how they were packed.
local function raw(words) return words:clone():unmark_() end

local function raises(sentence, f, ...)
  local arguments, n = { ... }, select("#", ...)
  assert.fails_with(sentence, function()
    local _ = f(unpack(arguments, 1, n))
  end)
end

describe("a product of the wrong operands", function()
  it("a weight [K, N] was quantised with its dim forgotten", function()
    local words, scales = q.quantize(transposed)
    local tail = "K/8 differs (8 and 3); b was packed along dim 2, so it is [N, K/8]: pack a weight [K, N] along dim 1"
    raises("int4_matmul: b_packed is [64, 3] int32 but a_packed is [3, 8] int32: " .. tail,
      q.int4_matmul, a, words, scale_a, scales)
    raises("int4_linear: b_packed is [64, 3] int32 but x is [3, 64] float32: " .. tail,
      q.int4_linear, x, words, scales)
  end)

  it("another layout is named than the weight has", function()
    raises('int4_matmul: layout_b is "nk" but b_packed was packed along dim 1, which is "kn"; leave layout_b out',
      q.int4_matmul, a, b, scale_a, scale_b, { layout_b = "nk" })
    raises('linear: layout is "kn", but weight was packed along dim 2; leave layout out',
      q.linear, w, { scales = scale_w, layout = "kn" })
  end)

  it("another encoding is named than the words have", function()
    raises('int4_matmul: encoding_a is "offset" but a_packed was packed as "twos_complement"; leave encoding_a out',
      q.int4_matmul, a, b, scale_a, scale_b, { encoding_a = "offset" })
    raises('int4_linear: encoding_b is "offset" but b_packed was packed as "twos_complement"; leave encoding_b out',
      q.int4_linear, x, b, scale_b, { encoding_b = "offset" })
    raises('linear: encoding is "offset" but weight was packed as "twos_complement"; leave encoding out',
      q.linear, w, { scales = scale_w, encoding = "offset" })
  end)

  it("60 values meet 64, though both are 8 words", function()
    local short, scales = q.quantize(random(4, M, 60))
    raises("int4_matmul: b_packed was packed from K = 64 values but a_packed from K = 60: K differs, though both are "
      .. "8 words", q.int4_matmul, short, b, scales, scale_b)
    local layer = q.linear(weight)
    raises("linear: x is a tensor [3, 60] float32, but the layer has 64 inputs and 24 outputs", layer,
      random(4, M, 60))
    -- words that do not tell how many values they have are taken to be full
    local unmarked = q.linear(raw(w), { scales = scale_w })
    raises("linear: x is a tensor [3, 60] float32, but the layer has 64 inputs and 24 outputs", unmarked,
      random(4, M, 60))
  end)

  it("the scales are swapped", function()
    raises("int4_matmul: scale_a is [24] float32 and scale_b [3] float32, expected [3] and [24] float32: swap them",
      q.int4_matmul, a, b, scale_b, scale_a)
  end)

  it("the operands are swapped", function()
    raises("int4_matmul: a_packed was packed along dim 1, expected [M, K/8]: pack A [M, K] along dim 2; or were "
      .. "a_packed and b_packed swapped?", q.int4_matmul, b, a, scale_b, scale_a)
  end)

  it("floats are given for words", function()
    raises("int4_matmul: scale_a is [3] float32, but a_packed is [3, 64] float32, floats, which have no scale: leave "
      .. "scale_a out, or quantize a_packed first", q.int4_matmul, x, b, scale_a, scale_b)
    raises("int4_linear: b_packed is [64, 24] float32, expected a matrix of int32, eight int4 to a word: quantize it "
      .. "first", q.int4_linear, x, transposed, scale_b)
  end)
end)

describe("a product without what its weight was quantised with", function()
  local zeros = { q.quantize(weight, { group_size = 32, zero_point = true }) }
  local factors = { q.quantize(weight, { group_size = 32, group_scales = "integer" }) }
  local without_zeros, without_factors = "was quantised with zero points: give them as zeros",
    "was quantised with integer group scales: give them as factors"

  it("is refused", function()
    for name, call in pairs { int4_matmul = q.int4_matmul, int4_matmul_reference = q.int4_matmul_reference } do
      raises(name .. ": b_packed " .. without_zeros, call, a, zeros[1], scale_a, zeros[2])
      raises(name .. ": b_packed " .. without_factors, call, a, factors[1], scale_a, factors[2])
    end
    raises("int4_linear: b_packed " .. without_zeros, q.int4_linear, x, zeros[1], zeros[2])
    raises("linear: weight " .. without_zeros, q.linear, zeros[1], { scales = zeros[2] })
    raises("linear: weight " .. without_factors, q.linear, factors[1], { scales = factors[2] })
    raises("dequantize: packed " .. without_zeros, q.dequantize, zeros[1], zeros[2])
    raises("dequantize: packed " .. without_factors, q.dequantize, factors[1], factors[2])
  end)

  it("is refused of copies, views and prepacked weights as well, but not of words without a mark", function()
    assert.equal("zeros", zeros[1].packing.with)
    assert.matches("twos_complement, with zeros", tostring(zeros[1]), 1, true)
    for _, words in ipairs { zeros[1]:clone(), zeros[1]:t(), q.prepack(zeros[1]), zeros[1]:narrow(1, 1, N) } do
      assert.equal("zeros", words.packing.with)
      raises("int4_matmul: b_packed " .. without_zeros, q.int4_matmul, a, words, scale_a, zeros[2]:t())
    end
    assert.is_nil(q.quantize(weight, { out = zeros[1]:clone() }).packing.with)
    assert.same({ M, N }, q.int4_matmul(a, raw(zeros[1]), scale_a, zeros[2], { layout_b = "nk" }).shape)
  end)

  it("may have factors multiplied into scales of groups", function()
    local scales = q.mul(q.ones { N, K / 32 }, factors[3]:to "float32")
    for n = 1, N do
      for g = 1, K / 32 do scales:set(n, g, scales:get(n, g) * factors[2]:get(n)) end
    end
    assert.same({ M, N }, q.int4_matmul(a, factors[1], scale_a, scales).shape)
    assert.same({ M, N }, q.linear(factors[1], { scales = scales })(x).shape)
    assert.same({ N, K }, q.dequantize(factors[1], scales).shape)
  end)
end)

describe("activations of a layer", function()
  local layer = q.linear(weight)
  local tail = "expected a matrix of float32, float16 or bfloat16: give the activations themselves, the call quantises "
    .. "them"

  it("are words", function()
    raises("int4_linear: x is [3, 8] int32, " .. tail, q.int4_linear, a, b, scale_b)
    raises("linear: x is [3, 8] int32, " .. tail, layer, a)
  end)

  it("are int8", function()
    local bytes = q.quantize(x, { dtype = "int8" })
    raises("int4_linear: x is [3, 64] int8, " .. tail, q.int4_linear, bytes, b, scale_b)
    raises("linear: x is [3, 64] int8, " .. tail, layer, bytes)
  end)

  it("are a vector, a table or nothing", function()
    raises("linear: x is [64] float32, expected a matrix of float32, float16 or bfloat16: one row is a matrix [1, K]",
      layer, q.zeros { K })
    raises("linear: x is a table, expected a tensor (int4mm.tensor makes one from a table)", layer, { 1, 2 })
    raises("linear: x is nil, expected a tensor", layer)
  end)

  it("have another length", function()
    raises("linear: x is a tensor [3, 32] float32, but the layer has 64 inputs and 24 outputs", layer, random(5, M, 32))
  end)
end)

describe("a layer", function()
  it("is made of a weight [K, N] in the default layout", function()
    local sentence = "linear: x is a tensor [3, 64] float32, but the layer has 24 inputs and 64 outputs: was its "
      .. 'weight transposed? A weight [N, K] is layout "nk", the default, [K, N] is "kn", and words are packed along K'
    raises(sentence, q.linear(transposed), x)
    raises(sentence, q.linear(weight, { layout = "kn" }), x)
    local words, scales = q.quantize(transposed)
    raises(sentence, q.linear(words, { scales = scales }), x)
    words, scales = q.quantize(weight, { dim = 1 })
    raises(sentence, q.linear(words, { scales = scales }), x)
  end)

  it("is made of words of unknown origin in the wrong layout", function()
    raises('linear: scales is a tensor [24] float32, but weight is read as [N, K/8], which has 8 outputs: give layout '
      .. '= "kn"', q.linear, raw(b), { scales = scale_b })
    raises('linear: scales is a tensor [24] float32, but weight is read as [K/8, N], which has 8 outputs: give layout '
      .. '= "nk"', q.linear, raw(w), { scales = scale_w, layout = "kn" })
  end)

  it("is made of a bias of another length or kind", function()
    raises("linear: bias is a tensor [64] float32, expected [24] float32: one for each output", q.linear, weight,
      { bias = q.zeros { K } })
    raises("linear: bias is a tensor [1, 24] float32, expected [24] float32: one for each output", q.linear, weight,
      { bias = q.zeros { 1, N } })
    raises("linear: bias is a tensor [24] float16, expected [24] float32: one for each output", q.linear, weight,
      { bias = q.zeros { N, dtype = "float16" } })
  end)

  it("is made of no weight, or of int8", function()
    raises("linear: weight is a tensor [64] float32, expected a matrix of floats, or of packed words (int32)",
      q.linear, q.zeros { K })
    raises("linear: weight is a tensor [24, 64] int8, expected a matrix of floats, or of packed words (int32): "
      .. "pack_int4_to_int32 packs int4 values", q.linear, q.zeros { N, K, dtype = "int8" })
    raises("linear: weight is a table, expected a tensor (int4mm.tensor makes one from a table)", q.linear,
      { weight = weight })
  end)

  it("is made of floats that cannot be quantised as asked", function()
    raises("linear: weight holds NaN at row 2, column 3: only finite numbers can be quantised", q.linear,
      weight:clone():set(2, 3, 0 / 0))
    raises("linear: rotate is 128, which does not divide the 64 values along dim 2 of weight", q.linear, weight,
      { rotate = 128 })
    raises("linear: rotate is 12, expected a power of two from 4 to 1024", q.linear, weight, { rotate = 12 })
    raises("linear: zero_point is 1, expected true or false", q.linear, weight, { zero_point = 1 })
  end)

  it("has had its weight freed", function()
    local layer = q.linear(weight)
    layer.weight:free()
    raises("linear: the layer's weight was freed", layer, x)
  end)

  it("is given the scales of its words by themselves, or none", function()
    raises("linear: the options are a tensor [24] float32, expected a table: scales are given as { scales = scales }",
      q.linear, w, scale_w)
    raises("linear: scales is nil: a weight of packed words comes with its scales, a tensor [N] float32, or [G, N] "
      .. "of floats for groups", q.linear, w)
  end)

  it("is made of a prepacked weight", function()
    raises("linear: weight is prepacked: give the words that it was made from, and prepack = true", q.linear,
      q.prepack(w), { scales = scale_w })
  end)

  it("is to be prepacked and moved", function()
    local layer = q.linear(weight, { prepack = true })
    raises("to: the layer was made with prepack = true, which keeps its weight on the CPU: make it without", layer.to,
      layer, "cuda")
    raises("to: the tensor is prepacked; its elements cannot be read or written: keep the words that it was made from",
      layer.weight.to, layer.weight, "cuda")
  end)

  it("of floats rotates weight and activations alike, so no call can forget it", function()
    local layer = q.linear(weight)
    assert.equal(64, layer.rotate)
    local words, scales = q.quantize(weight, { rotate = 64, clip = "mse" })
    assert.same_bits(q.int4_linear(x, words, scales, { rotate = 64 }), layer(x))
    raises('linear: unknown option "rotate"; the options are residual, out, out_dtype, workspace, stream, kernel',
      layer, x, { rotate = false })
  end)

  it("gets a residual of its input's shape", function()
    raises("linear: residual is [3, 64] float32, expected [3, 24] float16, bfloat16 or float32", q.linear(weight), x,
      { residual = x })
  end)
end)

describe("a rotated weight", function()
  local words, scales = q.quantize(weight, { rotate = 16 })
  local expected = q.int4_linear_reference(x, raw(words), scales, { rotate = 16, layout_b = "nk" })

  it("has its activations rotated alike by a layer that is not told", function()
    assert.equal(16, words.packing.rotate)
    assert.same_bits(expected, q.int4_linear(x, words, scales))
    assert.same_bits(expected, q.int4_linear_reference(x, words, scales))
    assert.same_bits(expected, q.linear(words, { scales = scales })(x))
    for _, known in ipairs { words:clone(), words:narrow(1, 1, N), q.prepack(words) } do
      assert.equal(16, known.packing.rotate)
      assert.same_bits(expected, q.int4_linear(x, known, scales))
    end
  end)

  it("is left alone where the activations were rotated before", function()
    local rotated = q.rotate(x, { block = 16 })
    assert.same_bits(expected, q.int4_linear(rotated, words, scales, { rotate = false }))
    assert.same_bits(expected, q.linear(words, { scales = scales, rotate = false })(rotated))
    local a_packed, a_scales = q.quantize(rotated)
    assert.same_bits(expected, q.int4_matmul(a_packed, words, a_scales, scales, { out_dtype = "float32" }))
    -- and a weight whose floats were rotated before knows of no rotation
    local before, scales_before = q.quantize(q.rotate(weight, { block = 16 }))
    assert.is_nil(before.packing.rotate)
    assert.same_bits(expected, q.int4_linear(x, before, scales_before, { rotate = 16 }))
  end)

  it("meets activations that are rotated by another block", function()
    raises("int4_linear: rotate is 64 but b_packed was quantised with rotate = 16; leave rotate out",
      q.int4_linear, x, words, scales, { rotate = 64 })
    raises("int4_linear_reference: rotate is 64 but b_packed was quantised with rotate = 16; leave rotate out",
      q.int4_linear_reference, x, words, scales, { rotate = 64 })
    raises("linear: rotate is 64 but weight was quantised with rotate = 16; leave rotate out",
      q.linear, words, { scales = scales, rotate = 64 })
    local a_packed, a_scales = q.quantize(x, { rotate = 64 })
    raises("int4_matmul: b_packed was quantised with rotate = 16 but a_packed with 64: both need the same",
      q.int4_matmul, a_packed, words, a_scales, scales)
    assert.equal("int4 packed along dim 2, K = 64, twos_complement, rotated by 64",
      q.explain(a_packed, w, a_scales, scale_w).a_packed)
  end)

  it("forgets it where its blocks are cut, and where it is written anew", function()
    assert.is_nil(words:narrow(2, 1, 1).packing.rotate)
    assert.is_nil(words:clone():mark_({ length = K }).packing.rotate)
    local again = words:clone()
    q.quantize(weight, { out = again })
    assert.is_nil(again.packing.rotate)
    assert.is_nil(q.pack_int4_to_int32(q.unpack_int32_to_int4(words)).packing.rotate)
  end)
end)

describe("GPU calls for the CPU", function()
  it("name what a GPU is called", function()
    local tail = ': device is "cpu", expected a GPU, "cuda" or "cuda:0" and so on'
    raises("graph" .. tail, q.graph, function() end, { device = "cpu" })
    raises("event" .. tail, q.event, { device = "cpu" })
    raises("stream" .. tail, q.stream, "cpu")
  end)

  it("tell where things are, on a device in host memory", function()
    local output, status = helper.luajit([[
      local q = require "int4mm"
      local x, weight = q.ones { 3, 64 }, q.ones { 24, 64 }
      local words, scales = q.quantize(weight)
      local layer = q.linear(weight)
      local calls = {
        function() return layer(x:to "cuda") end,
        function() return layer:to "cuda"(x) end,
        function() return layer:to "cuda"(x:to "cuda", { residual = q.zeros { 3, 24 } }) end,
        function() return q.linear(weight:to "cuda", { bias = q.zeros { 24 } }) end,
        function() return q.linear(weight:to "cuda", { prepack = true }) end,
        function() return q.int4_linear(x:to "cuda", words, scales) end,
        function() return q.int4_matmul_cuda(words, q.prepack(words), scales, scales) end,
      }
      for _, call in ipairs(calls) do print((select(2, pcall(call)):gsub("^%(command line%):%d+: ", ""))) end
    ]], { INT4MM_CUDA_LIBRARY = helper.build_folder() .. "/spec/c/fake_cuda.so", INT4MM_FAKE_CUDA = "host" })
    assert.equal(0, status, output)
    assert.equal(table.concat({
      'linear: x is on cuda:0 but the layer is on cpu: move one of them, as in x:to "cpu"',
      'linear: x is on cpu but the layer is on cuda:0: move one of them, as in x:to "cuda:0"',
      "linear: residual is on cpu but x is on cuda:0",
      "linear: bias is on cpu but weight is on cuda:0",
      "linear: prepack is true, but weight is on cuda:0: it is for layers on the CPU, so leave it out",
      "int4_linear: b_packed is on cpu but x is on cuda:0",
      "int4_matmul_cuda: b_packed is prepacked for the CPU: a CUDA call takes the words it was made from",
    }, "\n") .. "\n", output)
  end)
end)
