--- examples/convert.lua on a small checkpoint: what it writes loads as the layers that q.linear makes of the floats.

local json = require "cjson"

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local N, K = 256, 512
local folder, tensors

local function at(name) return folder .. "/" .. name end

local function write(name, text)
  local stream = assert(io.open(at(name), "wb"))
  stream:write(text)
  stream:close()
end

local function read(name)
  local stream = assert(io.open(at(name), "rb"))
  local text = stream:read "*a"
  stream:close()
  return text
end

local function quoted(path) return "'" .. path .. "'" end

local function convert(input, arguments)
  return helper.script("examples/convert.lua", quoted(at(input)) .. " " .. arguments .. " 2>&1")
end

local function listing() return helper.shell("ls " .. quoted(folder)) end

local function random(seed, rows, columns, dtype)
  return q.random(q.empty { rows, columns }, { seed = seed, low = -1, high = 1 }):to(dtype)
end

setup(function()
  folder = helper.temporary_folder()
  tensors = {
    ["model.a.weight"] = random(1, N, K, "float16"), ["model.a.bias"] = q.random(q.empty { N }, { seed = 2 }),
    ["model.b.weight"] = random(3, N, K, "bfloat16"), ["model.c.weight"] = random(4, N, K, "float32"),
    ["model.odd.weight"] = random(5, 8, 36, "float16"), ["model.embed_tokens.weight"] = random(6, 16, K, "float16"),
    ["model.norm.weight"] = q.ones { K, dtype = "bfloat16" },
    ["model.conv.weight"] = { dtype = "F16", shape = { 2, 3, 2, 1 }, data = ("\1\2"):rep(12) },
    ["model.ids"] = { dtype = "I64", shape = { 2 }, data = ("\7"):rep(16) },
    ["model.mask"] = { dtype = "BOOL", shape = { 3 }, data = "\0\1\0" },
    ["model.scalar"] = { dtype = "F64", shape = {}, data = ("\3"):rep(8) },
  }
  assert(q.save_safetensors(at "model.safetensors", tensors, { metadata = { made = "here" } }))
end)

teardown(function() helper.shell("rm -r " .. quoted(folder)) end)

-- Checks a converted file against the input: every tensor that is no converted layer's has the same bytes.
local function check_others(f, converted)
  local input = assert(q.open_safetensors(at "model.safetensors"))
  for _, name in ipairs(input:names()) do
    if not converted[name] then
      local before, after = input:info(name), f:info(name)
      assert.same({ before.dtype, before.shape }, { after.dtype, after.shape }, name)
      assert.equal(input:bytes(name), f:bytes(name), name)
    end
  end
  assert.same({ made = "here", format = "pt" }, f.metadata)
end

local LAYERS = { "model.a", "model.b", "model.c" }
local CONVERTED = { ["model.a.weight"] = true, ["model.b.weight"] = true, ["model.c.weight"] = true }

-- Checks that the layers of a file give the bits of q.linear of the floats.
local function check_layers(f, given)
  local x = cases.draw(cases.random(7), 3, K, "float32", "plain")
  for _, name in ipairs(LAYERS) do
    for _, activations in ipairs { "int4", "int8", "float" } do
      local opts = { activations = activations, bias = tensors[name .. ".bias"] }
      for key, value in pairs(given) do opts[key] = value end
      assert.same_bits(q.linear(tensors[name .. ".weight"], opts)(x),
        q.load_linear(f, name, { activations = activations })(x), name .. " " .. activations)
    end
  end
end

describe("examples/convert.lua", function()
  for arguments, opts in pairs {
    [""] = { rotate = 256 }, ["--rotate 64 --clip 0.9"] = { rotate = 64, weight_clip = 0.9 },
  } do
    it("writes convrot_w4a4 " .. arguments, function()
      local output, status = convert("model.safetensors", "--format convrot_w4a4 --output "
        .. quoted(at "convrot.safetensors") .. " " .. arguments)
      assert.equal(0, status, output)
      assert.matches(("3 layers converted to convrot_w4a4, 1 left whose K is not a multiple of %d"):format(opts.rotate),
        output, 1, true)
      assert.matches("tensors: 1.02 MiB before, 21%d KiB after", output)
      local percent = tonumber(output:match "relative error of the weights: ([%d.]+)%%, at most")
      assert(percent > 5 and percent < 20, output)
      local f = assert(q.open_safetensors(at "convrot.safetensors"))
      assert.same({ "I8", { N, K / 2 } }, { f:info("model.a.weight").dtype, f:info("model.a.weight").shape })
      assert.same({ format = "convrot_w4a4", convrot_groupsize = opts.rotate },
        json.decode(f:bytes "model.a.comfy_quant"))
      check_others(f, CONVERTED)
      check_layers(f, opts)
    end)
  end

  for arguments, opts in pairs {
    [""] = {}, ["--zero-point"] = { zero_point = true }, ["--group-size 128"] = { group_size = 128 },
    ["--group-size 32 --zero-point --clip 1"] = { group_size = 32, zero_point = true, weight_clip = 1 },
  } do
    it("writes compressed-tensors " .. arguments, function()
      local output, status = convert("model.safetensors", "--format compressed-tensors --output "
        .. quoted(at "packed.safetensors") .. " --skip model.odd " .. arguments)
      assert.equal(0, status, output)
      assert.matches("3 layers converted to compressed-tensors\n", output, 1, true)
      local f = assert(q.open_safetensors(at "packed.safetensors"))
      assert.same({ N, K }, f:values "model.a.weight_shape")
      assert.equal("I64", f:info("model.a.weight_shape").dtype)
      local G = opts.group_size and K / opts.group_size or 1
      assert.same({ N, G }, f:info("model.a.weight_scale").shape)
      assert.equal(opts.zero_point ~= nil, f:has "model.a.weight_zero_point")
      assert.is_false(f:has "model.a.weight")
      if opts.zero_point then assert.same({ N / 8, G }, f:info("model.a.weight_zero_point").shape) end
      check_others(f, CONVERTED)
      opts.rotate = false
      check_layers(f, opts)
    end)
  end

  it("takes a model of several files with its config.json, which it completes", function()
    helper.shell(("mkdir %s %s"):format(quoted(at "model"), quoted(at "new")))
    local map = {}
    local shards = { { "model.a.weight", "model.a.bias" }, { "model.b.weight", "model.embed_tokens.weight" } }
    for shard, names in ipairs(shards) do
      local part, file_name = {}, ("model-%d.safetensors"):format(shard)
      for _, name in ipairs(names) do part[name], map[name] = tensors[name], file_name end
      assert(q.save_safetensors(at("model/" .. file_name), part))
    end
    write("model/model.safetensors.index.json", json.encode { metadata = { total_size = 1 }, weight_map = map })
    write("model/config.json", '{\n  "eps": 1e-05,\n  "none": []\n}\n')
    local arguments = "--format compressed-tensors --group-size 64 --output " .. quoted(at "new/model.safetensors")
    local output, status = convert("model", arguments)
    assert.equal(0, status, output)
    assert.equal("config.json\nmodel.safetensors\n", helper.shell("ls " .. quoted(at "new")))
    local text = read "new/config.json"
    assert.equal('{\n  "eps": 1e-05,\n  "none": [],\n', text:sub(1, 32))
    local config = json.decode(text).quantization_config
    assert.same({ "compressed-tensors", "pack-quantized", { "model.embed_tokens" } },
      { config.quant_method, config.format, config.ignore })
    local weights = config.config_groups.group_0.weights
    assert.same({ 4, true, "group", 64 }, { weights.num_bits, weights.symmetric, weights.strategy, weights.group_size })
    assert.equal(64, q.load_linear(assert(q.open_safetensors(at "new/model.safetensors")), "model.b").group_size)

    output, status = convert("model", arguments)
    assert.equal(1, status)
    assert.equal(("convert.lua: %s is there already: write to a folder that has no config.json\n")
      :format(at "new/config.json"), output)
    output, status = convert("new", "--format compressed-tensors --only '*embed*' --output "
      .. quoted(at "x.safetensors"))
    assert.equal(1, status)
    assert.matches("new/config.json: it has a quantization_config: the model is quantised already\n", output, 1, true)
  end)

  it("converts what --only names, embeddings too, but for what --skip names", function()
    local output, status = convert("model.safetensors", "--format convrot_w4a4 --only 'model.?' --only '*embed*' "
      .. "--skip model.b --output " .. quoted(at "some.safetensors"))
    assert.equal(0, status, output)
    local f = assert(q.open_safetensors(at "some.safetensors"))
    local kinds = {}
    for _, layer in ipairs { "a", "b", "c", "embed_tokens", "odd" } do
      kinds[layer] = f:info("model." .. layer .. ".weight").dtype
    end
    assert.same({ a = "I8", b = "BF16", c = "I8", embed_tokens = "I8", odd = "F16" }, kinds)
  end)

  it("opens in Python's safetensors", function()
    if os.execute "python3 -c 'import safetensors, numpy' 2>/dev/null" ~= 0 then
      return pending "no safetensors for Python here"
    end
    assert.equal(0, select(2, convert("model.safetensors", "--format compressed-tensors --skip model.b --skip "
      .. "'*odd' --output " .. quoted(at "python.safetensors"))))
    local output, status = helper.shell(([[python3 -c 'import safetensors
with safetensors.safe_open("%s", "np") as f:
    print(f.get_tensor("model.a.weight_packed").shape, f.get_tensor("model.a.weight_shape").tolist())' 2>&1]])
      :format(at "python.safetensors"))
    assert.equal(0, status, output)
    assert.equal("(256, 64) [256, 512]\n", output)
  end)

  it("ends with a sentence, and leaves nothing behind", function()
    local poisoned = random(9, 16, K, "float32"):set(3, 5, 0 / 0)
    assert(q.save_safetensors(at "nan.safetensors", { ["a.weight"] = random(8, 16, K, "float32"),
      ["b.weight"] = poisoned }))
    assert(q.save_safetensors(at "taken.safetensors", { ["a.weight"] = tensors["model.a.weight"],
      ["a.weight_scale"] = q.ones { N } }))
    write("lost.index.json", json.encode { weight_map = { ["a.weight"] = "lost-1.safetensors" } })
    write("broken.safetensors", "\255\0\0\0\0\0\0\0{}")
    local before = listing()
    local convrot, packed = "--format convrot_w4a4 ", "--format compressed-tensors "
    local output_at = "--output " .. quoted(at "refused.safetensors") .. " "
    for _, case in ipairs {
      { "nan", convrot .. output_at, "convert.lua: layer b of .*/nan.safetensors: quantize: .*row 3, column 5" },
      { "nan", packed .. output_at, "convert.lua: layer b of .*/nan.safetensors: quantize: .*row 3, column 5" },
      { "taken", convrot .. output_at, "has the tensor a.weight_scale already, which layer a would get" },
      { "broken", convrot .. output_at, "convert.lua: .*/broken.safetensors: " },
      { "nowhere", convrot .. output_at, "convert.lua: .*/nowhere.safetensors: No such file or directory" },
      { "model", convrot .. output_at .. "--only nothing", "has no layer to convert: no float weight" },
      { "model", packed .. output_at .. "--group-size 1024",
        "has no layer to convert: K does not fit in 4, expected a multiple of 1024" },
      { "model", convrot .. "--output " .. quoted(folder .. "/.//model.safetensors"),
        "%-%-output is .*, which the input is read from" },
      { "lost.index.json", convrot .. output_at, "convert.lua: .*/lost%-1.safetensors: No such file or directory" },
      { "model", convrot .. "--output " .. quoted(at "none/x.safetensors"), "No such file or directory" },
      { "model", convrot .. "--output x.bin", 'output is "x.bin", expected the name of a .safetensors file' },
      { "model", output_at, "missing option '%-%-format'" },
      { "model", convrot .. output_at .. "--group-size 128", "%-%-group%-size is for compressed%-tensors" },
      { "model", convrot .. output_at .. "--zero-point", "%-%-zero%-point is for compressed%-tensors" },
      { "model", convrot .. output_at .. "--rotate 32", "%-%-rotate is 32, expected a power of four" },
      { "model", packed .. output_at .. "--rotate 64", "%-%-rotate is for convrot_w4a4" },
      { "model", packed .. output_at .. "--group-size 48", "%-%-group%-size is 48, expected a multiple of 32" },
      { "model", packed .. output_at .. "--clip 2", 'a clip is "mse" or a number above 0 and up to 1; "2" is not' },
      { "model", "--format gguf " .. output_at, "must be one of" },
    } do
      local input = case[1]:find(".", 1, true) and case[1] or case[1] .. ".safetensors"
      local output, status = convert(input, case[2])
      assert.not_equal(0, status, case[3])
      assert.matches(case[3], output)
      assert.is_nil(output:find "stack traceback")
      assert.equal(before, listing(), case[3])
    end
  end)
end)

describe("config.json", function()
  it("is not written where the conversion fails, and has to be an object", function()
    helper.shell(("mkdir %s %s"):format(quoted(at "bad"), quoted(at "out")))
    assert(q.save_safetensors(at "bad/nan.safetensors", { ["a.weight"] = q.full({ 8, 64 }, 0 / 0) }))
    assert(q.save_safetensors(at "bad/good.safetensors", { ["a.weight"] = q.ones { 8, 64 } }))
    local function run(input)
      return convert(input, "--format compressed-tensors --output " .. quoted(at "out/x.safetensors"))
    end
    write("bad/config.json", "{}")
    local output, status = run "bad/nan.safetensors"
    assert.equal(1, status)
    assert.matches("convert.lua: layer a of .*: quantize: ", output)
    assert.equal("", helper.shell("ls " .. quoted(at "out")))
    for _, text in ipairs { "[]", "{", "" } do
      write("bad/config.json", text)
      output, status = run "bad/good.safetensors"
      assert.equal(1, status)
      assert.matches("bad/config.json: it is not JSON with an object\n", output, 1, true)
      assert.equal("", helper.shell("ls " .. quoted(at "out")))
    end
    write("bad/config.json", "{ }")
    output, status = run "bad/good.safetensors"
    assert.equal(0, status, output)
    assert.same({}, json.decode(read "out/config.json").quantization_config.ignore)
  end)
end)

describe("save_safetensors", function()
  it("refuses entries that are not what they say", function()
    for message, entry in pairs {
      ['tensor "a" has the dtype "X9", expected one of safetensors, such as "I64"'] = { dtype = "X9" },
      ['tensor "a" has the shape nil, expected a table of whole numbers that fill whole bytes'] = { dtype = "I64" },
      ['tensor "a" has the shape [3], expected a table of whole numbers that fill whole bytes'] =
        { dtype = "F4", shape = { 3 } },
      ['tensor "a" has the data nil, expected a string, a tensor or a function that gives one'] =
        { dtype = "I64", shape = { 1 } },
      ['tensor "a" has data of 7 bytes, expected 8 for [1] I64'] = { dtype = "I64", shape = { 1 }, data = "1234567" },
    } do
      local before = listing()
      assert.fails_with("save_safetensors: " .. message, function()
        local _ = q.save_safetensors(at "refused.safetensors", { a = entry })
      end)
      assert.equal(before, listing())
    end
  end)

  it("asks for the data of entries when it writes them, and leaves nothing behind where that fails", function()
    local path, before, asked = at "refused.safetensors", listing(), {}
    local function given(name, data)
      return { dtype = "I64", shape = { 2 }, data = function()
        asked[#asked + 1] = name
        return data
      end }
    end
    local ok, message = pcall(q.save_safetensors, path, { b = given("b", q.ones { 3 }), a = given("a", q.ones { 4 }) })
    assert.is_false(ok)
    assert.matches('save_safetensors: tensor "b" has data of 12 bytes, expected 16 for [2] I64', message, 1, true)
    assert.same({ "a", "b" }, asked)
    ok, message = pcall(q.save_safetensors, path, { a = { dtype = "U8", shape = { 0 }, data = error } })
    assert.is_false(ok)
    assert.is_nil(message)
    assert.equal(before, listing())
    assert(q.save_safetensors(path, { a = given("a", ("x"):rep(16)), ["in"] = { dtype = "U8", shape = { 2, 0, 3 },
      data = "" }, f = { dtype = "BF16", shape = { 2, 1, 4 }, data = q.ones { 2, 4, dtype = "bfloat16" } } }))
    local f = assert(q.open_safetensors(path))
    assert.same({ { 2, 0, 3 }, { 2, 1, 4 } }, { f:info("in").shape, f:info("f").shape })
    assert.equal(("x"):rep(16), f:bytes "a")
    assert.same_bits(q.ones { 2, 4, dtype = "bfloat16" }, f:tensor "f")
    os.remove(path)
  end)
end)
