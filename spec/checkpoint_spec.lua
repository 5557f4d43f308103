--- Layers of other programs with groups, zero points and orders of activations: against PyTorch's results of layers
-- that their writers' own code packed (spec/golden/checkpoints.py), and against the oracle on generated files.

local bit = require "bit"

local cases = require "spec.cases"
local helper = require "spec.helper"
local kinds = require "spec.kinds"
local q = require "int4mm"

local folder

setup(function() folder = helper.temporary_folder() end)

teardown(function() helper.shell("rm -r '" .. folder .. "'") end)

local function at(name) return folder .. "/" .. name end

-- The rows of a float64 tensor of a file.
local function rows_of(f, name)
  local values, columns, rows = f:values(name), f:info(name).shape[2], {}
  for i, value in ipairs(values) do
    local m = math.floor((i - 1) / columns) + 1
    rows[m] = rows[m] or {}
    rows[m][(i - 1) % columns + 1] = value
  end
  return rows
end

describe("a layer that another program packed", function()
  local f = assert(q.open_safetensors "spec/golden/checkpoints.safetensors")
  local x = f:tensor "x"
  local NAMES = { "gptq", "gptq_act_order", "gptq_v2", "awq", "compressed", "compressed_act_order" }

  local function options(name, more)
    local opts = { out_dtype = "float32", checkpoint_format = name == "gptq_v2" and "gptq_v2" or nil }
    for key, value in pairs(more or {}) do opts[key] = value end
    return opts
  end

  -- PyTorch's results in float64 and how far float32 sums may be from them.
  local function expected_of(name)
    local expected, magnitude = { exact = rows_of(f, name .. ".y"), bound = {} }, rows_of(f, name .. ".magnitude")
    for m, row in ipairs(magnitude) do
      expected.bound[m] = {}
      for n, sum in ipairs(row) do
        expected.bound[m][n] = 2 ^ -24 * math.abs(expected.exact[m][n]) + (16 + 256 / 8) * 2 ^ -24 * sum
      end
    end
    return expected
  end

  for _, name in ipairs(NAMES) do
    it("is within the bound of PyTorch's float64 product: " .. name, function()
      local layer = q.load_linear(f, name, options(name))
      assert.same({ 256, 32, 64, "float" },
        { layer.in_features, layer.out_features, layer.group_size, layer.activations })
      assert.equal(name:find "act_order" ~= nil, layer.order ~= nil)
      assert.same({ { 4, 32 }, { 4, 32 } }, { layer.scales.shape, layer.zeros.shape })
      local expected = expected_of(name)
      helper.on_every_isa(function(isa) kinds.check_bound(expected, layer(x), isa) end)
      kinds.check_bound(expected, q.load_linear(f, name, options(name, { prepack = true }))(x), "prepacked")
      for _, dtype in ipairs { "float16", "bfloat16" } do
        local out = layer(x:to(dtype), { out_dtype = "float32" }) -- float16 holds x
        if dtype == "float16" then kinds.check_bound(expected, out, dtype) end
      end
    end)

    it("has the bits of exact fractions with int8 activations: " .. name, function()
      local layer = q.load_linear(f, name, options(name, { activations = "int8" }))
      local expected = f:tensor(name .. ".y8")
      helper.on_every_isa(function(isa) assert.same_bits(expected, layer(x), isa) end)
      assert.same_bits(expected, q.load_linear(f, name, options(name, { activations = "int8", prepack = true }))(x))
    end)

    helper.on_gpu("is the same on a GPU: " .. name, function()
      local layer = q.load_linear(f, name, options(name, { device = "cuda:0" }))
      kinds.check_bound(expected_of(name), layer(x:to "cuda:0"), name)
      local int8 = q.load_linear(f, name, options(name, { device = "cuda:0", activations = "int8" }))
      assert.same_bits(f:tensor(name .. ".y8"), int8(x:to "cuda:0"))
      assert.same_bits(f:tensor(name .. ".y8"), int8:to "cpu"(x))
      local moved = q.load_linear(f, name, options(name, { activations = "int8" })):to "cuda:0"
      assert.same_bits(f:tensor(name .. ".y8"), moved(x:to "cuda:0"))
    end)
  end

  it("is ComfyUI's own bits: convrot_w4a4", function()
    local layer = q.load_linear(f, "convrot", { out_dtype = "float32" })
    assert.same({ 256, "int4" }, { layer.rotate, layer.activations })
    helper.on_every_isa(function(isa) assert.same_bits(f:tensor "convrot.y4", layer(f:tensor "convrot.x"), isa) end)
  end)

  it("is read as gptq_v2 by itself where all zero points are stored as 8", function()
    local tensors = {}
    for _, key in ipairs { "qweight", "scales", "qzeros" } do tensors["a." .. key] = f:tensor("gptq." .. key) end
    tensors["a.qzeros"]:fill_(bit.tobit(0x88888888))
    assert(q.save_safetensors(at "v2.safetensors", tensors))
    local as_v2 = assert(q.open_safetensors(at "v2.safetensors"))
    assert.is_nil(q.load_linear(as_v2, "a").zeros)
    assert.is_nil(q.load_linear(as_v2, "a", { checkpoint_format = "gptq_v2" }).zeros)
    tensors["a.qzeros"]:fill_(0x77777777)
    assert(q.save_safetensors(at "v1.safetensors", tensors))
    assert.is_nil(q.load_linear(assert(q.open_safetensors(at "v1.safetensors")), "a").zeros)
  end)
end)

-- ---- generated files ----

-- A weight of random values in groups: values [N, K] as b, zero points and scales [G, N], the group of each of K.
local function generate(seed, N, K, group, shuffled)
  local r = cases.random(seed)
  local case = { N = N, K = K, group = group, G = math.ceil(K / group), x = cases.draw(r, 3, K, "float32", "plain") }
  case.values = q.empty { K, N, dtype = "int8" }
  for k = 1, K do
    for n = 1, N do case.values:set(k, n, r:range(-8, 7)) end
  end
  case.zeros, case.scales = q.empty { case.G, N, dtype = "int8" }, q.empty { case.G, N, dtype = "float16" }
  for g = 1, case.G do
    for n = 1, N do case.zeros:set(g, n, r:range(-8, 7)):get(g, n) end
    for n = 1, N do case.scales:set(g, n, r:range(1, 1000) * 2 ^ -14) end
  end
  case.index = {}
  for k = 1, K do case.index[k] = math.floor((k - 1) / group) end
  if shuffled then
    for k = K, 2, -1 do
      local other = r:range(1, k)
      case.index[k], case.index[other] = case.index[other], case.index[k]
    end
  end
  return case
end

-- What the layer has to give, with int8 activations: the oracle on columns of x and rows of the weight sorted by group.
local function expected_of(case)
  local order = {}
  for g = 0, case.G - 1 do
    for k = 1, case.K do
      if case.index[k] == g then order[#order + 1] = k end
    end
  end
  local words = q.pack_int4_to_int32(case.values:index_select(1, order), { dim = 1 })
  return q.int4_linear_reference(case.x:index_select(2, order), words, case.scales,
    { zeros = case.zeros, group_size = case.group, activations = "int8" })
end

local function int32(list) return q.tensor(list, { dtype = "int32" }) end

-- Nibbles of a matrix plus `add`, modulo 16, packed along a dimension.
local function nibbles(t, dim, add)
  local plain = t:clone()
  for i = 1, t:size(1) do
    for j = 1, t:size(2) do plain:set(i, j, (t:get(i, j) + 8 + add) % 16 - 8) end
  end
  return q.pack_int4_to_int32(plain, { dim = dim, encoding = "offset" }):unmark_()
end

local function save(tensors, name)
  assert(q.save_safetensors(at(name), tensors))
  return assert(q.open_safetensors(at(name)))
end

local FORMATS = {
  gptq = function(case)
    return { ["a.qweight"] = nibbles(case.values, 1, 0), ["a.qzeros"] = nibbles(case.zeros, 2, -1),
      ["a.scales"] = case.scales, ["a.g_idx"] = int32(case.index) }
  end,
  compressed = function(case)
    return { ["a.weight_packed"] = nibbles(case.values:t(), 2, 0),
      ["a.weight_zero_point"] = nibbles(case.zeros:t(), 1, 0), ["a.weight_scale"] = case.scales:t(),
      ["a.weight_shape"] = int32 { case.N, case.K }, ["a.weight_g_idx"] = int32(case.index) }
  end,
  awq = function(case)
    local columns = {}
    for n = 0, case.N - 1 do columns[n + 1] = n - n % 8 + ({ 0, 2, 4, 6, 1, 3, 5, 7 })[n % 8 + 1] + 1 end
    return { ["a.qweight"] = nibbles(case.values:index_select(2, columns), 2, 0),
      ["a.qzeros"] = nibbles(case.zeros:index_select(2, columns), 2, 0), ["a.scales"] = case.scales }
  end,
}

describe("load_linear", function()
  local function refuses(message, tensors, opts)
    local f = save(tensors, "refused.safetensors")
    assert.fails_with(('load_linear: %s: layer "a": %s'):format(f.path, message), function()
      local _ = q.load_linear(f, "a", opts)
    end)
  end

  for name, tensors_of in pairs(FORMATS) do
    it("takes groups, zero points and orders of activations: " .. name, function()
      for seed, shape in ipairs { { 24, 128, 32 }, { 8, 512, 128 }, { 40, 96, 96 }, { 16, 64, 32 }, { 8, 320, 64 } } do
        local case = generate(seed, shape[1], shape[2], shape[3], seed % 2 == 0 and name ~= "awq")
        local layer = q.load_linear(save(tensors_of(case), "layer.safetensors"), "a", { activations = "int8" })
        assert.equal(shape[3] < shape[2] and shape[3] or nil, layer.group_size)
        if layer.group_size then assert.same_bits(expected_of(case), layer(case.x), name .. seed) end
        assert(q.save(at "ours.safetensors", layer))
        local again = assert(q.load(at "ours.safetensors"))
        assert.same_bits(layer(case.x), again(case.x), name)
        assert.equal(tostring(layer), tostring(again))
      end
    end)
  end

  it("takes one scale for each output with zero points", function()
    for name, tensors_of in pairs(FORMATS) do
      local case = generate(3, 16, 64, 64)
      local layer = q.load_linear(save(tensors_of(case), "layer.safetensors"), "a", { activations = "int8" })
      assert.same({ { 16 }, { 16 } }, { layer.scales.shape, layer.zeros.shape })
      local words = q.pack_int4_to_int32(case.values, { dim = 1 })
      assert.same_bits(q.int4_linear_reference(case.x, words, case.scales:to "float32":view(16),
        { zeros = case.zeros:view(16), activations = "int8" }), layer(case.x), name)
    end
  end)

  it("takes a last group that is shorter, where group_size says so", function()
    for name, tensors_of in pairs(FORMATS) do
      local case = generate(5, 16, 144, 64)
      local f = save(tensors_of(case), "layer.safetensors")
      local layer = q.load_linear(f, "a", { activations = "int8", group_size = 64 })
      assert.same_bits(expected_of(case), layer(case.x), name)
    end
  end)

  it("leaves out zero points that are zero, and an order that is none", function()
    for name, tensors_of in pairs(FORMATS) do
      local case = generate(6, 16, 128, 32)
      case.zeros:fill_(0)
      local layer = q.load_linear(save(tensors_of(case), "layer.safetensors"), "a")
      assert.is_nil(layer.zeros, name)
      assert.is_nil(layer.order, name)
    end
  end)

  it("takes zero points of compressed-tensors that are not packed, and an index of -1", function()
    local case = generate(7, 20, 128, 32)
    local tensors = FORMATS.compressed(case)
    tensors["a.weight_zero_point"] = case.zeros:t()
    tensors["a.weight_g_idx"] = q.full({ 128, dtype = "int32" }, -1)
    local layer = q.load_linear(save(tensors, "layer.safetensors"), "a", { activations = "int8" })
    assert.same_bits(expected_of(case), layer(case.x))
  end)

  it("multiplies by floats unless told otherwise", function()
    for name, tensors_of in pairs(FORMATS) do
      local case = generate(8, 16, 128, 32)
      local f = save(tensors_of(case), "layer.safetensors")
      assert.equal("float", q.load_linear(f, "a").activations, name)
      assert.equal("int4", q.load_linear(f, "a", { activations = "int4" }).activations)
    end
  end)

  it("quantises a weight of floats in groups", function()
    local r = cases.random(9)
    local weight, x = cases.draw(r, 24, 160, "float32", "plain"):clone(), cases.draw(r, 3, 160, "float32", "plain")
    local f = save({ ["a.weight"] = weight }, "float.safetensors")
    for _, set in ipairs {
      { group_size = 64 }, { group_size = 32, zero_point = true }, { group_size = 32, group_scales = "integer" },
      { zero_point = true },
    } do
      local opts = { activations = "int8", rotate = 32 }
      for key, value in pairs(set) do opts[key] = value end
      assert.same_bits(q.linear(weight, opts)(x), q.load_linear(f, "a", opts)(x))
    end
  end)

  it("refuses what does not fit, in a sentence", function()
    local case = generate(10, 16, 128, 32)
    local function with(format, key, tensor)
      local tensors = FORMATS[format](case)
      tensors["a." .. key] = tensor
      return tensors
    end
    local index = int32(case.index)
    for _, g in ipairs { 4, -1 } do
      refuses(("g_idx has %d for value 3 of K, expected groups from 0 to 3"):format(g),
        with("gptq", "g_idx", index:clone():set(3, g)))
    end
    refuses("weight_g_idx has more than 32 values of K in group 1", with("compressed", "weight_g_idx",
      index:clone():set(128, 1)))
    refuses("g_idx is [127], expected [128]: a group for each value along K",
      with("gptq", "g_idx", q.zeros { 127, dtype = "int32" }))
    refuses("scales holds 3 groups of K = 128, expected groups of a multiple of 32; where the last is shorter, "
      .. "group_size says how long the others are", with("awq", "scales", q.zeros { 3, 16, dtype = "float16" }))
    refuses("scales holds 4 groups, but K = 128 has 2 groups of 64", FORMATS.awq(case), { group_size = 64 })
    refuses("qzeros is [4, 1], expected [4, 2]: eight zero points of 4 bits a word",
      with("awq", "qzeros", q.zeros { 4, 1, dtype = "int32" }))
    refuses("qzeros is [3, 2], expected [4, 2]: eight zero points of 4 bits a word",
      with("gptq", "qzeros", q.zeros { 3, 2, dtype = "int32" }))
    refuses("scales is [4, 24], but qweight is [128, 2], which has 2 outputs, or 16 as AWQ has it",
      with("awq", "scales", q.zeros { 4, 24, dtype = "float16" }))
    refuses("weight_zero_point is [2, 3], expected [2, 4]: eight zero points of 4 bits a word",
      with("compressed", "weight_zero_point", q.zeros { 2, 3, dtype = "int32" }))
    refuses("weight_zero_point is [4, 16], expected [16, 4]: a zero point for each scale",
      with("compressed", "weight_zero_point", q.zeros { 4, 16, dtype = "int8" }))
    refuses("weight_scale is [15, 4], expected [16, 4]: a scale for each group",
      with("compressed", "weight_scale", q.zeros { 15, 4, dtype = "float16" }))
    assert.fails_with("load_linear: group_size is 0, expected a whole number >= 1", function()
      local _ = q.load_linear(save(FORMATS.awq(case), "refused.safetensors"), "a", { group_size = 0 })
    end)
  end)

  it("gives a layer or an error for a damaged file", function()
    local r, made_layers, refused = cases.random(11), 0, 0
    local list = {}
    for _, tensors_of in pairs(FORMATS) do
      local case = generate(12, 8, 64, 32, true)
      save(tensors_of(case), "whole.safetensors"):close()
      local stream = assert(io.open(at "whole.safetensors", "rb"))
      list[#list + 1] = stream:read "*a"
      stream:close()
    end
    for round = 1, tonumber(os.getenv "INT4MM_FUZZ" or 1500) do
      local bytes = list[round % #list + 1]
      for _ = 1, r:range(1, 4) do
        local place = r:chance(0.5) and r:range(9, 600) or r:range(1, #bytes)
        local new = r:chance(0.5) and ("0123456789,[]"):sub(r:range(1, 13)):sub(1, 1) or string.char(r:range(0, 255))
        bytes = bytes:sub(1, place - 1) .. new .. bytes:sub(place + 1)
      end
      local stream = assert(io.open(at "damaged.safetensors", "wb"))
      stream:write(bytes)
      stream:close()
      local f = q.open_safetensors(at "damaged.safetensors")
      if f then
        local ok, result = pcall(q.load_linear, f, "a", { activations = "int8" })
        if ok then
          made_layers = made_layers + 1
          assert.equal(2, result(q.ones { 2, result.in_features }):size(1))
        else
          refused = refused + 1
          assert.matches("^%l+_?%l*: ", (tostring(result):gsub("^%S+:%d+: ", "")))
        end
        f:close()
      end
    end
    assert.is_true(made_layers > 50 and refused > 20, made_layers .. ", " .. refused)
  end)
end)
