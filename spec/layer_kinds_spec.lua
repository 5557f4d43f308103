--- Layers of every kind of activations and scales: int4_linear against the oracle, the layer object against
-- int4_linear, weights of floats that are quantised in groups, inputs in another order, wrong calls.

local cases = require "spec.cases"
local helper = require "spec.helper"
local kinds = require "spec.kinds"
local q = require "int4mm"

local DTYPES = { "float32", "float16", "bfloat16" }
local ACTIVATIONS = { "none", "relu", "silu", "gelu", "gelu_tanh" }

after_each(function() q.set_cpu_isa(nil) end)

--- A layer of any kind: x, the weight's tensors as int4_linear takes them, the options. `kind` of activations.
local function generate(seed, kind, M, N, K, set)
  local r = cases.random(seed)
  local all = { a = kind == "float" and "float32" or "int8", bias = false, scale_b = "plain", K = K }
  for key, value in pairs(set or {}) do all[key] = value end
  local case = kinds.draw(r, M, N, K, all)
  local _, b, _, scale_b, opts = kinds.arguments(case, kinds.build(case))
  opts.encoding_a, opts.activations = nil, kind
  opts.out_dtype = r:choose(DTYPES)
  local block = r:choose { false, 4, 16, 32, 64 }
  opts.rotate = block and K % block == 0 and block or nil
  if kind ~= "float" and r:chance(0.3) then opts.clip = r:choose { 0.9, "mse" } end
  if r:chance(0.5) then opts.bias = cases.vector(r, N, "plain") end
  case.x = cases.draw(r, M, K, r:choose(DTYPES), "plain")
  case.b, case.scale_b, case.opts = b, scale_b, opts
  case.activation = r:choose(ACTIVATIONS)
  case.residual = r:chance(0.5) and cases.draw(r, M, N, r:choose(DTYPES), "plain") or nil
  case.name = ("%s activations of %s, rotated by %s: %s"):format(kind, case.x.dtype, tostring(block), case.name)
  return case
end

local SHAPES = {
  { 1, 33, 256 }, { 1, 1, 1 }, { 2, 40, 64 }, { 3, 24, 100 }, { 5, 65, 36 }, { 17, 96, 512 }, { 33, 31, 264 },
  { 70, 17, 128 }, { 0, 8, 64 }, { 4, 0, 64 },
}

describe("int4_linear of any kind", function()
  for index, shape in ipairs(SHAPES) do
    local M, N, K = unpack(shape)
    for _, kind in ipairs { "int4", "int8" } do
      it(("is the oracle's, %s activations, %d x %d x %d"):format(kind, M, K, N), function()
        for seed = 1, 12 do
          local case = generate(100 * index + seed, kind, M, N, K)
          case.opts.activation, case.opts.residual = case.activation, case.residual
          local expected = q.int4_linear_reference(case.x, case.b, case.scale_b, case.opts)
          helper.on_every_isa(function(isa)
            assert.same_bits(expected, q.int4_linear(case.x, case.b, case.scale_b, case.opts), isa .. " " .. case.name)
          end)
          case.opts.workspace = q.empty { q.linear_workspace(M, K, kind), dtype = "int8" }:fill_bytes_(0xA5)
          assert.same_bits(expected, q.int4_linear(case.x, case.b, case.scale_b, case.opts), case.name)
        end
      end)
    end

    it(("is within its bound, float activations, %d x %d x %d"):format(M, K, N), function()
      for seed = 1, 12 do
        local case = generate(100 * index + seed, "float", M, N, K)
        local x, opts, plain = case.x, case.opts, {}
        if opts.rotate then x = q.rotate_reference(x, { block = opts.rotate }) end
        for _, key in ipairs { "bias", "zeros", "factors", "group_size", "encoding_b", "layout_b" } do
          plain[key] = opts[key]
        end
        plain.out_dtype, opts.out_dtype = "float32", "float32"
        local expected = {}
        expected.exact, expected.bound = q.int4_matmul_bound(x, case.b, case.scale_b, plain)
        helper.on_every_isa(function(isa)
          local y = q.int4_linear(case.x, case.b, case.scale_b, opts)
          kinds.check_bound(expected, y, isa .. " " .. case.name)
          -- what follows is exact on that
          local after = { activation = case.activation, residual = case.residual }
          for key, value in pairs(opts) do after[key] = value end
          after.out_dtype = "bfloat16"
          local activated = case.activation == "none" and y
            or q.elementwise_reference[case.activation:gsub("_tanh", "")](y,
              { approximate = case.activation == "gelu_tanh" and "tanh" or nil })
          if case.residual then activated = q.elementwise_reference.add(activated, case.residual:to "float32") end
          assert.same_bits(activated:to "bfloat16", q.int4_linear(case.x, case.b, case.scale_b, after), case.name)
        end)
      end
    end)
  end
end)

describe("a layer of packed words of any kind", function()
  -- Of the same weight in the one form that a layer keeps.
  it("has the bits of int4_linear, keeps one form, and is the same from a file", function()
    local path = os.tmpname()
    for seed = 1, 60 do
      local kind = ({ "int4", "int8", "float" })[seed % 3 + 1]
      local case = generate(seed, kind, 5, 8 + seed, 8 * (seed % 40 + 4))
      local opts = case.opts
      local layer = q.linear(case.b, {
        scales = case.scale_b, zeros = opts.zeros, factors = opts.factors, group_size = opts.group_size,
        layout = opts.layout_b, encoding = opts.encoding_b, bias = opts.bias, rotate = opts.rotate, clip = opts.clip,
        activations = kind, out_dtype = opts.out_dtype,
      })
      local expected = q.int4_linear(case.x, case.b, case.scale_b, opts)
      assert.same_bits(expected, layer(case.x), case.name)
      local shape = case.scaling == "group" and { case.groups, case.N } or { case.N }
      assert.same(shape, layer.scales.shape, case.name)
      if case.zeros then assert.same({ shape, "int8" }, { layer.zeros.shape, layer.zeros.dtype }) end
      if case.scaling == "factors" then assert.same({ case.groups, case.N }, layer.factors.shape) end
      assert(q.save(path, layer))
      assert.same_bits(expected, assert(q.load(path))(case.x), case.name)
      assert.same_bits(expected, assert(q.load(path, { prepack = true }))(case.x), case.name)
    end
    os.remove(path)
  end)

  it("puts its inputs in order", function()
    local r = cases.random(2)
    local case = generate(3, "int8", 4, 20, 96, { scaling = "group", group = 32, zeros = "int8", layout_b = "kn" })
    local order, indices = q.empty { 96, dtype = "int32" }, {}
    for k = 1, 96 do indices[k] = k end
    for k = 96, 2, -1 do
      local other = r:range(1, k)
      indices[k], indices[other] = indices[other], indices[k]
    end
    for k = 1, 96 do order:set(k, indices[k] - 1) end
    local opts = { scales = case.scale_b, zeros = case.opts.zeros, layout = "kn", encoding = case.opts.encoding_b,
      activations = "int8", group_size = 32 }
    local plain = q.linear(case.b, opts)
    opts.order = order
    local layer = q.linear(case.b, opts)
    assert.same_bits(plain(case.x:index_select(2, indices)), layer(case.x))
    assert.equal(order, layer:parameters().order)
    assert.truthy(tostring(layer):find("inputs reordered", 1, true))
  end)

  it("tells what it is", function()
    local words = q.zeros { 24, 32, dtype = "int32" }
    local function told(opts) return (tostring(q.linear(words, opts)):match "^(.-):") end
    assert.equal("linear 256 -> 24, int4, groups of 64, zero points, int8 activations on cpu",
      told { scales = q.ones { 24, 4 }, zeros = q.zeros { 24, 4, dtype = "int8" }, activations = "int8" })
    assert.equal("linear 256 -> 24, int4, integer scales for groups of 32, float activations, relu on cpu",
      told { scales = q.ones { 24 }, factors = q.ones { 8, 24, dtype = "int8" }, activations = "float",
        activation = "relu" })
    local layer = q.linear(words, { scales = q.ones { 4, 24 } })
    assert.equal(24 * 32 * 4 + 4 * 24 * 4, layer:bytes())
    assert.same({ "scales", "weight" }, (function()
      local names = {}
      for name in pairs(layer:parameters()) do names[#names + 1] = name end
      table.sort(names)
      return names
    end)())
  end)

  helper.on_gpu("moves to a GPU and back with the same bits", function()
    for seed = 1, 40 do
      local kind = ({ "int4", "int8", "float" })[seed % 3 + 1]
      local case = generate(seed, kind, 5 + seed * 3, 8 + 8 * seed, 8 * (seed % 40 + 4))
      local opts = case.opts
      local layer = q.linear(case.b, {
        scales = case.scale_b, zeros = opts.zeros, factors = opts.factors, group_size = opts.group_size,
        layout = opts.layout_b, encoding = opts.encoding_b, bias = opts.bias, rotate = opts.rotate, clip = opts.clip,
        activations = kind, out_dtype = opts.out_dtype,
      })
      local there = layer:to "cuda:0"
      local expected = q.int4_linear(case.x, case.b, case.scale_b, opts)
      local y = there(case.x:to "cuda:0", { residual = nil })
      if kind == "float" then
        assert.is_true((y:to "float32":allclose(expected:to "float32", { rtol = 0.02, atol = 0.05 })), case.name)
      else
        assert.same_bits(expected, y, case.name)
      end
      assert.same_bits(expected, there:to "cpu"(case.x), case.name)
      local moved = {}
      for key, value in pairs(opts) do moved[key] = q.is_tensor(value) and value:to "cuda:0" or value end
      local direct = q.int4_linear(case.x:to "cuda:0", case.b:to "cuda:0", case.scale_b:to "cuda:0", moved)
      if kind ~= "float" then assert.same_bits(expected, direct, case.name) end
    end
  end)

  -- Short and long rows, rotated by a lane, by several and not, of a CTA and of clusters; rows of which the last word
  -- is not whole 16 bytes.
  local function compare_quantised(kind, kernel, set)
    local r = cases.random(31)
    for index, shape in ipairs { { 1, 128, 256 }, { 3, 64, 1032 }, { 65, 96, 512 }, { 130, 64, 4096 }, { 5, 32, 18432 },
      { 700, 32, 768 } } do
      local M, N, K = unpack(shape)
      for _, rotate in ipairs { false, 8, 16, 64, 256, 1024 } do
        if not rotate or K % rotate == 0 then
          local all = { layout_b = "kn", ng = false, a = kind, guard_b = 0, guard_s = 0 }
          for key, value in pairs(set) do all[key] = value end
          local case = generate(500 + index, kind, M, N, K, all)
          local opts, moved = case.opts, { kernel = kernel }
          opts.rotate, opts.layout_b = rotate or nil, nil
          opts.clip = r:choose { 0.9, "mse", 1 }
          for key, value in pairs(opts) do moved[key] = q.is_tensor(value) and value:to "cuda:0" or value end
          local y = q.int4_linear(case.x:to "cuda:0", case.b:to "cuda:0", case.scale_b:to "cuda:0", moved)
          assert.same_bits(q.int4_linear(case.x, case.b, case.scale_b, opts), y,
            ("%s, rotated by %s"):format(case.name, rotate))
        end
      end
    end
  end

  -- Kernels for int8 activations multiply these: quantising stores int4 values as int8.
  helper.on_gpu("has the same bits where int4 activations are widened", function()
    local arch = q.device_info().kernel_arch
    local kernel = arch == 90 and "grouped_64x64" or arch >= 80 and "mma_128x128" or nil
    -- of 128 it is made for int4 on some
    compare_quantised("int4", kernel, { scaling = "group", group = kernel == "mma_128x128" and 96 or 128 })
  end)

  -- Kernels of sm_90 take bytes of even k first.
  helper.on_gpu("has the same bits where int8 activations are in the order of words", function()
    if q.device_info().kernel_arch ~= 90 then return pending "kernels of sm_90" end
    compare_quantised("int8", "grouped_64x64", { scaling = "group", group = 128 })
    compare_quantised("int8", "grouped_256x128", { scaling = "column" })
  end)
end)

describe("a layer of a float weight in groups", function()
  local r = cases.random(12)
  local weight, x = cases.draw(r, 40, 160, "float32", "plain"):clone(), cases.draw(r, 5, 160, "float32", "plain")

  it("is quantised as q.quantize does it, in either layout, and near to the floats", function()
    for _, set in ipairs {
      { group_size = 32 }, { group_size = 64 }, { group_size = 128, zero_point = true }, { zero_point = true },
      { group_size = 32, group_scales = "integer" }, { group_size = 32, rotate = 32 }, { group_size = 256 },
    } do
      local exact = q.linear(weight, { rotate = false, activations = "float", out_dtype = "float32" })
      assert.is_nil(exact.group_size)
      for _, activations in ipairs { "int4", "int8", "float" } do
        local opts = { activations = activations, out_dtype = "float32", rotate = false }
        for key, value in pairs(set) do opts[key] = value end
        local layer = q.linear(weight, opts)
        opts.layout = "kn"
        assert.same_bits(layer(x), q.linear(weight:t(), opts)(x))
        local words, scales, beside = q.quantize(weight, { rotate = set.rotate, clip = "mse", dim = 2,
          group_size = set.group_size, group_scales = set.group_scales, zero_point = set.zero_point })
        assert.same_bits(words, layer.weight)
        local expected = q.int4_linear(x, words, scales, { activations = activations, out_dtype = "float32",
          zeros = set.zero_point and beside or nil, factors = set.group_scales and beside or nil,
          group_size = set.group_size })
        assert.same_bits(expected, layer(x))
      end
    end
  end)

  it("is nearer to the floats the more it keeps", function()
    -- the weight's rows vary along K, as real ones do
    local uneven = weight:clone()
    for n = 1, 40 do
      for k = 1, 160 do uneven:set(n, k, weight:get(n, k) * 2 ^ (math.floor((k - 1) / 32) % 4)) end
    end
    local function err(opts)
      opts.rotate, opts.out_dtype = false, "float32"
      local y, sum = q.linear(uneven, opts)(x), 0
      for m = 1, 5 do
        for n = 1, 40 do
          local exact = 0
          for k = 1, 160 do exact = exact + x:get(m, k) * uneven:get(n, k) end
          sum = sum + (y:get(m, n) - exact) ^ 2
        end
      end
      return sum
    end
    local column, groups = err { activations = "float" }, err { activations = "float", group_size = 32 }
    assert.is_true(groups < column / 2, column .. ", " .. groups)
    assert.is_true(err { activations = "int8", group_size = 32 } < 2 * groups)
    assert.is_true(err { activations = "float", group_size = 32, group_scales = "integer" } < column / 1.5)
    assert.is_true(err { activations = "int4", group_size = 32 } > groups)
  end)
end)

describe("wrong layers", function()
  local words, floats = q.zeros { 24, 32, dtype = "int32" }, q.ones { 24, 256 }
  local function zeros(...) return q.zeros { dtype = "int8", ... } end
  local function fails(message, ...)
    local arguments, n = { ... }, select("#", ...)
    assert.fails_with("linear: " .. message, function()
      local _ = q.linear(unpack(arguments, 1, n))
    end)
  end

  it("of packed words say what fits", function()
    fails("scales is a tensor [24, 2] float32, expected [G, 24]: is it [N, G]? scales:t() turns it",
      q.zeros { 32, 24, dtype = "int32" }, { layout = "kn", scales = q.ones { 24, 2 } })
    fails("scales is a tensor [3, 7] float32, expected [G, 24] or [24, G]", words, { scales = q.ones { 3, 7 } })
    fails("scales has 3 groups for K = 256, which is no multiple of 32 for each: give group_size if the last is "
      .. "shorter", words, { scales = q.ones { 3, 24 } })
    fails("scales is a tensor [24, 4] float32, expected [8, 24] or [24, 8]: K = 256 has 8 groups of 32", words,
      { scales = q.ones { 24, 4 }, group_size = 32 })
    fails("scales is a tensor [24, 4] int8, expected [G, 24] or [24, G] of floats: one for each group and output",
      words, { scales = zeros(24, 4) })
    fails("group_size is 48, expected a multiple of 32, or all of K = 256", words,
      { scales = q.ones { 24, 4 }, group_size = 48 })
    fails("group_size is 64, but scales is a tensor [24] float32 and there are no factors: scales for groups are [4, "
      .. "24] or [24, 4]", words, { scales = q.ones { 24 }, group_size = 64 })
    fails("zeros is a tensor [24, 4] float32, expected int8, or int32 words of eight: whole numbers that are taken "
      .. "from the weight's values", words, { scales = q.ones { 24, 4 }, zeros = q.ones { 24, 4 } })
    fails("zeros is a tensor [24] int8 but scales is a tensor [4, 24] float32: they go together, one zero point for "
      .. "each scale", words, { scales = q.ones { 24, 4 }, zeros = zeros(24) })
    fails("zeros is a tensor [24, 3] int8, expected [4, 24] or [24, 4]", words,
      { scales = q.ones { 24, 4 }, zeros = zeros(24, 3) })
    fails("zeros is a tensor [23] int8, expected [24]: one for each output", words,
      { scales = q.ones { 24 }, zeros = zeros(23) })
    fails("zeros is a tensor [4, 4] int32, expected [4, 3] or [3, 4]: eight zero points to a word", words,
      { scales = q.ones { 24, 4 }, zeros = q.zeros { 4, 4, dtype = "int32" } })
    fails("zeros has 127 for group 1, output 5, expected values from -120 to 119", words,
      { scales = q.ones { 24, 4 }, zeros = zeros(24, 4):set(5, 1, 127) })
    fails("factors has 0 for group 2, output 3, expected values from 1 to 15", words,
      { scales = q.ones { 24 }, factors = q.ones({ 4, 24, dtype = "int8" }):set(2, 3, 0) })
    fails("factors is given, but scales is a tensor [4, 24] float32: factors belong to scales [24], one for each "
      .. "output", words, { scales = q.ones { 4, 24 }, factors = q.ones { 4, 24, dtype = "int8" } })
    fails("zeros and factors are given: a weight with factors has no zero points", words,
      { scales = q.ones { 24 }, factors = q.ones { 4, 24, dtype = "int8" }, zeros = zeros(24) })
    fails("factors is a tensor [24] int8, expected a matrix of int8, [G, 24] or [24, G]", words,
      { scales = q.ones { 24 }, factors = zeros(24) })
    fails("zero_point is given, but weight is packed already: it is for a weight of floats", words,
      { scales = q.ones { 24 }, zero_point = true })
    fails("order is a tensor [25] int32, expected [256] int32: an input for each value along K, counted from 0", words,
      { scales = q.ones { 24 }, order = q.zeros { 25, dtype = "int32" } })
    fails("order has 0 at index 2, expected each input from 0 to 255 once", words,
      { scales = q.ones { 24 }, order = q.zeros { 256, dtype = "int32" } })
  end)

  it("of floats say what fits", function()
    fails("zeros is given, but weight is float32 and will be quantised: it is for packed words", floats,
      { zeros = zeros(24) })
    fails('activations is "int16", expected "float", "int4" or "int8"', floats, { activations = "int16" })
    fails('clip is 0.5, but activations is "float", which are not quantised: leave clip out', floats,
      { activations = "float", clip = 0.5 })
    fails("group_size is 48, expected a multiple of 32, or all of K = 256", floats, { group_size = 48 })
    assert.fails_with({ pattern = "group_scales is \"whole\", expected \"float\" or \"integer\"" }, function()
      local _ = q.linear(floats, { group_scales = "whole" })
    end)
  end)

  it("have a workspace by their activations", function()
    assert.is_true(q.linear_workspace(8, 256, "int8") > q.linear_workspace(8, 256))
    assert.is_true(q.linear_workspace(8, 256, "float") >= 8 * 256 * 4)
    assert.fails_with('linear_workspace: activations is "fp8", expected "float", "int4" or "int8"', function()
      local _ = q.linear_workspace(8, 256, "fp8")
    end)
  end)
end)
