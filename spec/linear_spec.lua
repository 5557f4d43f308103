--- Whole layers: int4_linear against the oracle, bit for bit, on generated cases; the layer object; wrong calls.

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local DTYPES = { "float32", "float16", "bfloat16" }
local ACTIVATIONS = { "none", "relu", "silu", "gelu", "gelu_tanh" }
local BLOCKS = { false, 4, 8, 32, 64, 128, 256 }

--- A vector [n] of float32.
local function vector(r, n)
  local v = q.empty { n }
  for i = 1, n do v:set(i, r:range(-2 ^ 20, 2 ^ 20) * 2 ^ -19) end
  return v
end

--- A layer's arguments: x a view with rows apart, the weight in either layout and encoding.
local function generate(seed, M, K, N)
  local r = cases.random(seed)
  local block = r:choose(BLOCKS)
  if block and K % block ~= 0 then block = K % 4 == 0 and 4 or false end
  local nk = r:chance(0.5)
  local weight = cases.draw(r, nk and N or K, nk and K or N, "float32", "plain")
  local case = {
    x = cases.draw(r, M, K, r:choose(DTYPES), r:choose(cases.KIND_NAMES)),
    opts = {
      rotate = block or nil,
      clip = r:chance(0.3) and r:choose { 0.9, 0.5, "mse" } or nil,
      activation = r:choose(ACTIVATIONS),
      bias = r:chance(0.7) and vector(r, N) or nil,
      residual = r:chance(0.5) and cases.draw(r, M, N, r:choose(DTYPES), "plain") or nil,
      out_dtype = r:choose(DTYPES),
    },
  }
  case.words, case.scales = q.quantize(weight,
    { dim = nk and 2 or 1, rotate = block or nil, encoding = r:choose { "twos_complement", "offset" } })
  case.name = ("%d x %d x %d %s, %s, block %s, clip %s, %s%s%s to %s"):format(M, K, N, nk and "nk" or "kn",
    case.x.dtype, tostring(block), tostring(case.opts.clip), case.opts.activation, case.opts.bias and ", bias" or "",
    case.opts.residual and ", residual " .. case.opts.residual.dtype or "", case.opts.out_dtype)
  return case
end

local SHAPES = {
  { 1, 256, 33 }, { 1, 64, 1 }, { 2, 8, 7 }, { 3, 100, 40 }, { 5, 1, 3 }, { 7, 36, 65 }, { 17, 512, 96 },
  { 33, 264, 31 }, { 65, 72, 130 }, { 130, 64, 17 }, { 0, 64, 8 }, { 4, 64, 0 }, { 4, 0, 8 },
}

--- The call's result in a view with rows apart that was poisoned before.
local function into_view(M, N, dtype, call)
  local whole = q.empty { M + 2, N + 3, dtype = dtype }:fill_bytes_(0xA5)
  local out = whole:narrow(1, 2, M):narrow(2, 3, N)
  call(out)
  return out
end

describe("int4_linear", function()
  for index, shape in ipairs(SHAPES) do
    local M, K, N = unpack(shape)
    it(("is the oracle's, %d x %d x %d, on every instruction set"):format(M, K, N), function()
      for seed = 1, M * K * N > 40000 and 3 or 8 do
        local case = generate(100 * index + seed, M, K, N)
        local expected = q.int4_linear_reference(case.x, case.words, case.scales, case.opts)
        helper.on_every_isa(function(isa)
          local y = q.int4_linear(case.x, case.words, case.scales, case.opts)
          assert.same_bits(expected, y, isa .. " " .. case.name)
        end)
      end
    end)
  end

  it("writes into a view, with a workspace, and from a prepacked weight", function()
    for seed = 1, 10 do
      local M, N = 1 + seed * 5, 40 + seed
      local case = generate(seed, M, 128, N)
      local expected = q.int4_linear_reference(case.x, case.words, case.scales, case.opts)
      local opts, dtype = case.opts, case.opts.out_dtype
      opts.out_dtype = nil
      opts.workspace = q.empty { q.linear_workspace(M, 128) + seed, dtype = "int8" }:fill_bytes_(0xA5)
      assert.same_bits(expected, into_view(M, N, dtype, function(out)
        opts.out = out
        assert.equal(out, q.int4_linear(case.x, case.words, case.scales, opts))
      end), case.name)
      opts.out, opts.out_dtype = nil, dtype
      assert.same_bits(expected, q.int4_linear(case.x, q.prepack(case.words), case.scales, opts), case.name)
    end
  end)

  it("is quantize and int4_matmul where nothing else is asked for", function()
    local case = generate(5, 9, 256, 48)
    local words, scales = q.quantize(case.x, { rotate = case.words.packing.rotate })
    assert.same_bits(q.int4_matmul(words, case.words, scales, case.scales, { out_dtype = "float32" }),
      q.int4_linear(case.x, case.words, case.scales, { out_dtype = "float32" }))
  end)

  it("gives a row of NaN for a row with NaN or an infinity, and no other", function()
    for _, dtype in ipairs(DTYPES) do
      for _, bad in ipairs { 0 / 0, math.huge, -math.huge } do
        for _, rotate in ipairs { false, 16 } do
          local x = cases.draw(cases.random(3), 4, 64, dtype, "plain")
          local words, scales = q.quantize(cases.draw(cases.random(4), 64, 20, "float32", "plain"), { dim = 1 })
          local opts = { rotate = rotate or nil, activation = "silu", out_dtype = dtype }
          local clean = q.int4_linear(x, words, scales, opts)
          x:set(3, 17, bad)
          helper.on_every_isa(function(isa)
            local y = q.int4_linear(x, words, scales, opts)
            for i = 1, 4 do
              for j = 1, 20 do
                local value = y:get(i, j)
                if i == 3 then
                  assert(value ~= value, isa)
                else
                  assert.equal(clean:get(i, j), value, isa)
                end
              end
            end
            assert.same_bits(q.int4_linear_reference(x, words, scales, opts), y, isa)
          end)
        end
      end
    end
  end)

  it("has x's dtype by default", function()
    local words, scales = q.quantize(q.zeros { 8, 4 }, { dim = 1 })
    for _, dtype in ipairs(DTYPES) do
      assert.equal(dtype, q.int4_linear(q.zeros { 2, 8, dtype = dtype }, words, scales).dtype)
    end
  end)

  it("raises a sentence for wrong calls, and writes nothing", function()
    local x, words, scales = q.zeros { 3, 64 }, q.quantize(q.ones { 64, 24 }, { dim = 1 })
    local function fails(message, ...)
      local arguments, n = { ... }, select("#", ...)
      assert.fails_with(type(message) == "table" and message or "int4_linear: " .. message, function()
        local _ = q.int4_linear(unpack(arguments, 1, n))
      end)
    end
    local nk, nk_scales = q.quantize(q.ones { 24, 64 })
    fails("x is nil, expected a tensor", nil, words, scales)
    fails("x is [3, 64] int8, expected a matrix of float32, float16 or bfloat16: give the activations themselves, the "
      .. "call quantises them", q.zeros { 3, 64, dtype = "int8" },
      words, scales)
    fails("b_packed is [64, 24] float32, expected a matrix of int32, eight int4 to a word: quantize it first", x,
      q.ones { 64, 24 }, scales)
    fails("b_packed was packed from K = 64 values but x has K = 60: K differs, though both are 8 words",
      q.zeros { 3, 60 }, words, scales)
    fails("b_packed is [8, 24] int32 but x is [3, 128] float32: K/8 differs (16 and 8)", q.zeros { 3, 128 }, words,
      scales)
    local wrong_dim, wrong_scales = q.quantize(q.ones { 64, 24 })
    fails("b_packed is [64, 3] int32 but x is [3, 64] float32: K/8 differs (8 and 3); b was packed along dim 2, so it "
      .. "is [N, K/8]: pack a weight [K, N] along dim 1", x, wrong_dim, wrong_scales)
    fails("scale_b is [64] float32, expected [24] float32: one scale per column of b", x, words, q.zeros { 64 })
    fails('layout_b is "kn" but b_packed was packed along dim 2, which is "nk"; leave layout_b out', x, nk, nk_scales,
      { layout_b = "kn" })
    fails("bias is [3] float32, expected [24] float32: one addend per column of b", x, words, scales,
      { bias = q.zeros { 3 } })
    fails("residual is [24, 3] float32, expected [3, 24] float16, bfloat16 or float32", x, words, scales,
      { residual = q.zeros { 24, 3 } })
    fails("rotate is 48, expected a power of two from 4 to 1024", x, words, scales, { rotate = 48 })
    fails("rotate is 128, which does not divide the 64 values along dim 2 of x", x, words, scales, { rotate = 128 })
    fails('clip is 2, expected a number above 0 and up to 1, or "mse"', x, words, scales, { clip = 2 })
    fails('activation is "tanh", expected "gelu", "gelu_tanh", "none", "relu" or "silu"', x, words, scales,
      { activation = "tanh" })
    fails("workspace is [100] int8, expected a vector of int8, 268 or more", x, words, scales,
      { workspace = q.zeros { 100, dtype = "int8" } })
    fails('kernel is "tiled" but x is on the CPU: it names a CUDA kernel', x, words, scales, { kernel = "tiled" })
    local out = q.empty { 3, 24 }:fill_bytes_(0xA5)
    local before = helper.bytes(out)
    fails({ pattern = "^int4_linear: out .* residual" }, x, words, scales,
      { out = out, residual = out })
    assert.equal(before, helper.bytes(out))
  end)

  it("has a workspace that holds words in rows of 16 bytes and the scales", function()
    assert.equal(0, q.linear_workspace(0, 64))
    assert.equal(256 + 4, q.linear_workspace(1, 1))
    assert.equal(512 + 12, q.linear_workspace(3, 256)) -- 3 rows of 128 bytes
    assert.equal(512 + 8, q.linear_workspace(2, 257)) -- of 256
    assert.equal(768 + 12, q.linear_workspace(3, 256, "int8"))
    assert.equal(3 * 1024, q.linear_workspace(3, 256, "float"))
    assert.equal(0, q.linear_workspace(2 ^ 40, 2 ^ 40))
  end)
end)

describe("linear", function()
  local r = cases.random(11)
  local weight, bias = cases.draw(r, 40, 96, "bfloat16", "plain"), vector(r, 40)
  local x = cases.draw(r, 5, 96, "bfloat16", "plain")

  it("quantises a float weight [N, K] with rotation and the clip of least error", function()
    local layer = q.linear(weight, { bias = bias, activation = "gelu" })
    local words, scales = q.quantize(weight, { rotate = 16, clip = "mse" })
    assert.same({ 96, 40, 16 }, { layer.in_features, layer.out_features, layer.rotate })
    assert.same_bits(words, layer.weight)
    assert.same_bits(scales, layer.scales)
    assert.same_bits(q.int4_linear(x, words, scales, { rotate = 16, bias = bias, activation = "gelu" }), layer(x))
  end)

  it("takes a weight [K, N], and packed words", function()
    local transposed = q.empty { 96, 40, dtype = "bfloat16" }
    for i = 1, 40 do
      for j = 1, 96 do transposed:set(j, i, weight:get(i, j)) end
    end
    local layer = q.linear(weight, { rotate = 32, bias = bias })
    assert.same_bits(layer(x), q.linear(transposed, { layout = "kn", rotate = 32, bias = bias })(x))
    local packed = layer:parameters()
    local again = q.linear(packed.weight, { scales = packed.scales, bias = packed.bias, rotate = 32 })
    assert.same_bits(layer(x), again(x))
    local raw = packed.weight:clone():unmark_()
    assert.same_bits(layer(x), q.linear(raw, { scales = packed.scales, bias = packed.bias, rotate = 32 })(x))
    local prepacked = q.linear(weight, { rotate = 32, bias = bias, prepack = true })
    assert.same_bits(layer(x), prepacked(x))
  end)

  it("passes a call's options on", function()
    local layer = q.linear(weight, { out_dtype = "float32" })
    local residual, out = cases.draw(r, 5, 40, "float32", "plain"), q.empty { 5, 40, dtype = "float16" }
    assert.equal("float32", layer(x).dtype)
    assert.equal("bfloat16", layer(x, { out_dtype = "bfloat16" }).dtype)
    assert.equal(out, layer(x, { out = out, residual = residual }))
    local expected = q.int4_linear(x, layer.weight, layer.scales,
      { rotate = 16, residual = residual, out_dtype = "float16" })
    assert.same_bits(expected, out)
  end)

  it("tells what it is", function()
    assert.equal("linear 96 -> 40, int4, rotated by 16, clip 0.9, bias, silu on cpu: 2.24 KB, in place of 7.68 KB as "
      .. "float16", tostring(q.linear(weight, { bias = bias, activation = "silu", clip = 0.9 })))
    local layer = q.linear(weight, { rotate = false, prepack = true })
    assert.truthy(tostring(layer):find("linear 96 -> 40, int4, prepacked on cpu", 1, true))
    assert.equal(layer, layer:to "cpu")
  end)

  it("raises a sentence for what cannot be a layer", function()
    local function fails(message, ...)
      local arguments, n = { ... }, select("#", ...)
      assert.fails_with("linear: " .. message, function()
        local _ = q.linear(unpack(arguments, 1, n))
      end)
    end
    fails("weight is nil, expected a tensor", nil)
    fails("weight is a tensor [96] float32, expected a matrix of floats, or of packed words (int32)", q.zeros { 96 })
    fails("bias is a tensor [96] float32, expected [40] float32: one for each output", weight,
      { bias = q.zeros { 96 } })
    fails("scales is nil: a weight of packed words comes with its scales, a tensor [N] float32, or [G, N] of floats "
      .. "for groups",
      q.zeros { 40, 12, dtype = "int32" })
    fails("scales is given, but weight is bfloat16 and will be quantised: it is for packed words", weight,
      { scales = q.zeros { 40 } })
    fails('layout is "nm", expected "kn" or "nk"', weight, { layout = "nm" })
    local words, scales = q.quantize(weight)
    fails('layout is "kn", but weight was packed along dim 2; leave layout out', words,
      { scales = scales, layout = "kn" })
    fails("rotate is 64, which does not divide the 96 inputs", words, { scales = scales, rotate = 64 })
  end)

  helper.on_gpu("moves to the GPU and back, and has the same bits there", function()
    local layer = q.linear(weight, { bias = bias, activation = "gelu_tanh" })
    local there = layer:to "cuda:0"
    assert.equal("cuda:0", there.weight.device)
    assert.same_bits(layer(x), there(x:to "cuda:0"))
    assert.same_bits(layer(x), there:to "cpu"(x))
    assert.truthy(tostring(there):find("on cuda:0", 1, true))
  end)
end)

describe("int4_linear on a GPU", function()
  local GPU_SHAPES = {
    { 1, 256, 64 }, { 1, 1128, 262 }, { 1, 4096, 512 }, { 3, 1128, 262 },
    { 1, 1024, 8704 }, { 2, 2056, 14340 }, { 8, 520, 4300 },
    { 16, 1024, 257 }, { 33, 72, 130 }, { 64, 512, 96 }, { 129, 100, 192 },
    { 256, 1024, 1024 }, { 300, 520, 515 }, { 1000, 256, 384 }, { 0, 64, 8 }, { 4, 64, 0 }, { 4, 0, 8 },
  }
  for index, shape in ipairs(GPU_SHAPES) do
    local M, K, N = unpack(shape)
    helper.on_gpu(("has the CPU's bits, %d x %d x %d, with every kernel"):format(M, K, N), function()
      local device = "cuda:0"
      for seed = 1, 6 do
        local case = generate(1000 * index + seed, M, K, N)
        local expected = q.int4_linear(case.x, case.words, case.scales, case.opts)
        local opts = {}
        for key, value in pairs(case.opts) do opts[key] = q.is_tensor(value) and value:to(device) or value end
        local x, words, scales = case.x:to(device), case.words:to(device), case.scales:to(device)
        opts.out_dtype = nil
        local kernels = { false }
        for _, name in ipairs(q.cuda_kernels()) do kernels[#kernels + 1] = name end
        for _, kernel in ipairs(kernels) do
          local out = q.empty { M, N, dtype = expected.dtype, device = device }:fill_bytes_(0xA5)
          opts.out, opts.kernel = out, kernel or nil
          local ok, err = pcall(q.int4_linear, x, words, scales, opts)
          if ok then
            assert.same_bits(expected, out, (kernel or "the best") .. " " .. case.name)
          else -- a kernel that does not serve the shape says so
            assert(kernel and err:find("the kernel " .. kernel, 1, true), err)
          end
        end
      end
    end)
  end

  local function check_row_of_calls(seed, M, K)
    local stream = q.stream "cuda:0"
    local case = generate(seed, M, K, K)
    case.opts.residual, case.opts.activation, case.opts.out_dtype = nil, nil, "bfloat16"
    case.x = case.x:to "bfloat16"
    local expected, x = { case.x }, case.x
    for i = 1, 6 do
      x = q.int4_linear(x, case.words, case.scales, case.opts)
      expected[i + 1] = x
    end
    local opts = { stream = stream }
    for key, value in pairs(case.opts) do opts[key] = q.is_tensor(value) and value:to "cuda:0" or value end
    local words, scales, first = case.words:to "cuda:0", case.scales:to "cuda:0", case.x:to "cuda:0"
    for _ = 1, 20 do
      local y, all = first, {}
      for i = 1, 6 do
        y = q.int4_linear(y, words, scales, opts)
        all[i] = y
      end
      stream:synchronize()
      for i = 1, 6 do assert.same_bits(expected[i + 1], all[i], "layer " .. i) end
    end
  end

  for i, shape in ipairs { { 16, 1024 }, { 1, 1024 }, { 1, 4352 }, { 2, 4352 } } do
    helper.on_gpu(("has the same bits in a row of calls of %d x %d on one stream, whose parts overlap"):format(
      unpack(shape)), function()
      for seed = 3, i == 1 and 3 or 6 do check_row_of_calls(seed, unpack(shape)) end
    end)
  end
end)
