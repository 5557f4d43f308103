--- examples/minilm: its tokenizer, attention, encoder and measures, on a small model of random weights.
--
-- The encoder is compared with one in plain Lua and double, written from BERT's definition, sentence by sentence.

local helper = require "spec.helper"
local q = require "int4mm"

local paths = package.path
package.path = "./examples/?.lua;./examples/bench/?.lua;" .. paths
local attention, encoder = require "minilm.attention", require "minilm.encoder"
local measures, schemes = require "minilm.measures", require "minilm.schemes"
local plot, wordpiece = require "minilm.plot", require "minilm.wordpiece"
package.path = paths

-- ---- the small model ----

local CONFIG = {
  hidden_size = 128, intermediate_size = 256, num_hidden_layers = 2, num_attention_heads = 4, layer_norm_eps = 1e-12,
  max_position_embeddings = 16, type_vocab_size = 2, vocab_size = 20, hidden_act = "gelu",
}
local VOCABULARY = {
  "[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bee", "##s", "##keep", "##er", "cat", "dance", "sleep", ".", "?", "cafe",
  "the",
}
local SENTENCES = { "the bees dance", "A cat.", "a beekeeper sleeps", "Café?", "dance dance dance the cat", "x" }

local function random(seed, low, high, ...)
  return q.random(q.empty { ... }, { seed = seed, low = low, high = high })
end

-- Its tensors by their names in BERT.
local function make_weights()
  local tensors, seed = {}, 0
  local function add(name, low, high, ...)
    seed = seed + 1
    tensors[name] = random(seed, low, high, ...)
  end
  local function linear(name, outputs, inputs)
    add(name .. ".weight", -0.15, 0.15, outputs, inputs)
    add(name .. ".bias", -0.1, 0.1, outputs)
  end
  local function norm(name)
    add(name .. ".weight", 0.5, 1.5, 128)
    add(name .. ".bias", -0.2, 0.2, 128)
  end
  add("embeddings.word_embeddings.weight", -1, 1, CONFIG.vocab_size, 128)
  add("embeddings.position_embeddings.weight", -0.3, 0.3, CONFIG.max_position_embeddings, 128)
  add("embeddings.token_type_embeddings.weight", -0.3, 0.3, 2, 128)
  norm "embeddings.LayerNorm"
  for i = 0, CONFIG.num_hidden_layers - 1 do
    local at = ("encoder.layer.%d."):format(i)
    for _, part in ipairs { "self.query", "self.key", "self.value", "output.dense" } do
      linear(at .. "attention." .. part, 128, 128)
    end
    linear(at .. "intermediate.dense", 256, 128)
    linear(at .. "output.dense", 128, 256)
    norm(at .. "attention.output.LayerNorm")
    norm(at .. "output.LayerNorm")
  end
  return tensors
end

local TENSORS = make_weights()
local WEIGHTS = { tensor = function(_, name) return assert(TENSORS[name], name) end }
local TOKENIZER = assert(wordpiece.new(VOCABULARY))

local function ids_of(texts)
  local list = {}
  for i, text in ipairs(texts) do list[i] = TOKENIZER:encode(text) end
  return list
end

-- ---- BERT in plain Lua: rows of tables ----

local function dot(a, b)
  local sum = 0
  for i = 1, #a do sum = sum + a[i] * b[i] end
  return sum
end

local function map(list, f)
  local result = {}
  for i, value in ipairs(list) do result[i] = f(value, i) end
  return result
end

local function sum_rows(x, y)
  return map(x, function(row, i) return map(row, function(v, c) return v + y[i][c] end) end)
end

local values = setmetatable({}, { __index = function(t, name) -- of a tensor, as tables
  t[name] = assert(TENSORS[name], name):totable()
  return t[name]
end })

local function plain_linear(x, name)
  local weight, bias = values[name .. ".weight"], values[name .. ".bias"]
  return map(x, function(row) return map(weight, function(w, n) return dot(row, w) + bias[n] end) end)
end

local function plain_norm(x, name)
  local weight, bias = values[name .. ".weight"], values[name .. ".bias"]
  return map(x, function(row)
    local ones = map(row, function() return 1 end)
    local mean = dot(row, ones) / #row
    local centred = map(row, function(v) return v - mean end)
    local scale = 1 / math.sqrt(dot(centred, centred) / #row + CONFIG.layer_norm_eps)
    return map(centred, function(v, c) return v * scale * weight[c] + bias[c] end)
  end)
end

local function part(row, head, depth)
  local result = {}
  for d = 1, depth do result[d] = row[head * depth + d] end
  return result
end

local function plain_attention(query, key, value, heads)
  local depth = #query[1] / heads
  return map(query, function(row)
    local context = {}
    for head = 0, heads - 1 do
      local asked = part(row, head, depth)
      local weights = map(key, function(k) return math.exp(dot(asked, part(k, head, depth)) / math.sqrt(depth)) end)
      local total = dot(weights, map(weights, function() return 1 end))
      for d = 1, depth do
        local column = map(value, function(v) return v[head * depth + d] end)
        context[head * depth + d] = dot(weights, column) / total
      end
    end
    return context
  end)
end

local function erf(x) -- Abramowitz and Stegun 7.1.5, a series that is exact enough for small |x|
  local term, sum, n = x, x, 0
  while math.abs(term) > 1e-17 and n < 200 do
    n = n + 1
    term = -term * x * x / n
    sum = sum + term / (2 * n + 1)
  end
  return 2 / math.sqrt(math.pi) * sum
end

local function plain_encode(ids)
  local function row(name, i) return values["embeddings." .. name .. ".weight"][i + 1] end
  local x = map(ids, function(id, i)
    return sum_rows({ row("word_embeddings", id) }, sum_rows({ row("position_embeddings", i - 1) },
      { row("token_type_embeddings", 0) }))[1]
  end)
  x = plain_norm(x, "embeddings.LayerNorm")
  for i = 0, CONFIG.num_hidden_layers - 1 do
    local at = ("encoder.layer.%d."):format(i)
    local function self_part(name) return plain_linear(x, at .. "attention.self." .. name) end
    local context = plain_attention(self_part "query", self_part "key", self_part "value", CONFIG.num_attention_heads)
    x = plain_norm(sum_rows(plain_linear(context, at .. "attention.output.dense"), x),
      at .. "attention.output.LayerNorm")
    local inner = map(plain_linear(x, at .. "intermediate.dense"), function(r)
      return map(r, function(v) return v / 2 * (1 + erf(v / math.sqrt(2))) end)
    end)
    x = plain_norm(sum_rows(plain_linear(inner, at .. "output.dense"), x), at .. "output.LayerNorm")
  end
  local mean = map(x[1], function(_, c)
    local sum = 0
    for i = 1, #x do sum = sum + x[i][c] end
    return sum / #x
  end)
  local length = math.sqrt(dot(mean, mean))
  return map(mean, function(v) return v / length end)
end

-- ---- the specs ----

describe("the tokenizer", function()
  it("cuts words and punctuation, lower-cased, without accents", function()
    for text, words in pairs {
      ["Hello,  World!"] = "hello|,|world|!",
      ["don't\tgo\r\nnow"] = "don|'|t|go|now",
      ["Ångström naïve ŻÓŁĆ e\204\129"] = "angstrom|naive|zołc|e",
      ["ΆΒΓ Ёжик"] = "αβγ|ежик",
      ["a\194\160b\226\128\147c"] = "a|b|–|c",
      ["東京x"] = "東|京|x",
      ["soft\194\173hyphen\239\187\191"] = "softhyphen",
      ["\255bad\192bytes\0"] = "badbytes",
      ["   "] = "",
    } do
      assert.equal(words, table.concat(wordpiece.words(text), "|"), text)
    end
  end)

  it("takes the longest pieces, and one [UNK] for a word that does not come out even", function()
    for text, ids in pairs {
      ["the beekeepers"] = "2 15 5 7 8 6 3",
      ["bees?"] = "2 5 6 13 3",
      ["beex a"] = "2 1 4 3",
      ["CAFÉ."] = "2 14 12 3",
      [""] = "2 3",
      [("a"):rep(101)] = "2 1 3",
    } do
      assert.equal(ids, table.concat(TOKENIZER:encode(text), " "), text)
    end
    local long = assert(wordpiece.new { "[UNK]", "[CLS]", "[SEP]", "e", "##e" })
    assert.equal(102, #long:encode(("é"):rep(100))) -- counted in characters, not in bytes
    assert.equal(3, #long:encode(("é"):rep(101)))
  end)

  it("leaves out what is too long", function()
    assert.equal("2 15 3", table.concat(TOKENIZER:encode("the cat sleeps", 3), " "))
    assert.equal("2 15 9 11 6 3", table.concat(TOKENIZER:encode("the cat sleeps", 6), " "))
  end)

  it("says what a vocabulary lacks", function()
    assert.same({ nil, "the vocabulary has no [SEP]" }, { wordpiece.new { "[UNK]", "[CLS]" } })
    local tokenizer, reason = wordpiece.load "/nowhere/vocab.txt"
    assert.is_nil(tokenizer)
    assert.matches("/nowhere/vocab.txt: No such file", reason, 1, true)
  end)
end)

describe("attention", function()
  it("is softmax(Q K^T / sqrt(depth)) V within each sentence and head", function()
    for _, case in ipairs {
      { heads = 1, width = 4, 1 }, { heads = 3, width = 36, 5, 1, 17 }, { heads = 4, width = 128, 3, 8 },
    } do
      local rows = 0
      for _, length in ipairs(case) do rows = rows + length end
      local query, key = random(1, -2, 2, rows, case.width), random(2, -2, 2, rows, case.width)
      local value = random(3, -1, 1, rows, case.width)
      local context = attention(query, key, value, case, case.heads):totable()
      local first = 1
      for _, length in ipairs(case) do
        local function rows_of(t) return t:narrow(1, first, length):totable() end
        for i, row in ipairs(plain_attention(rows_of(query), rows_of(key), rows_of(value), case.heads)) do
          for c, expected in ipairs(row) do
            assert(math.abs(context[first + i - 1][c] - expected) < 2e-6,
              ("row %d, column %d"):format(first + i - 1, c))
          end
        end
        first = first + length
      end
    end
  end)
end)

describe("the encoder", function()
  local ids = ids_of(SENTENCES)

  it("is BERT's, in float32", function()
    local got = encoder.new(WEIGHTS, CONFIG, schemes.list[1]):encode(ids):totable()
    for i, sentence in ipairs(ids) do
      for c, expected in ipairs(plain_encode(sentence)) do
        assert(math.abs(got[i][c] - expected) < 1e-5,
          ("sentence %d, column %d: %g and %g"):format(i, c, got[i][c], expected))
      end
    end
  end)

  it("comes near with every scheme, and the sentences of a batch do not matter to each other", function()
    local expected = encoder.new(WEIGHTS, CONFIG, schemes.list[1]):encode(ids)
    for _, scheme in ipairs(schemes.list) do
      local made = encoder.new(WEIGHTS, CONFIG, scheme)
      local together = made:encode(ids)
      local mean, least = measures.cosines(together, expected)
      assert(mean > 0.95 and least > 0.9, ("%s: cosine %.4f, least %.4f"):format(scheme.name, mean, least))
      for i, sentence in ipairs(ids) do
        if scheme.exact then assert.same_bits(together:narrow(1, i, 1), made:encode { sentence }, scheme.name) end
      end
      assert.equal(12, #made.linears)
    end
  end)

  it("takes many sentences in several batches", function()
    local made, many = encoder.new(WEIGHTS, CONFIG, schemes.list[4]), {}
    for i = 1, 150 do many[i] = ids[i % #ids + 1] end
    local all = made:encode(many)
    for _, i in ipairs { 1, 64, 65, 150 } do
      assert.same_bits(all:narrow(1, i, 1), made:encode { many[i] })
    end
  end)

  it("names a tensor of another shape", function()
    local name = "encoder.layer.1.output.dense.weight"
    local odd = { tensor = function(_, key) return key == name and q.ones { 128, 128 } or TENSORS[key] end }
    local ok, reason = pcall(encoder.new, odd, CONFIG, schemes.list[4])
    assert.is_false(ok)
    assert.equal("encoder.layer.1.output.dense.weight is [128, 128] float32, expected [128, 256] float32", reason)
  end)

  it("rotates by the largest block that there is", function()
    for K, block in pairs { [384] = 128, [1536] = 512, [4096] = 1024, [20] = 4, [128] = 128 } do
      assert.equal(block, schemes.largest_block(K))
    end
  end)
end)

describe("the measures", function()
  -- unit vectors in the plane, at these degrees
  local function at(...)
    local rows = {}
    for i, degrees in ipairs { ... } do rows[i] = { math.cos(math.rad(degrees)), math.sin(math.rad(degrees)) } end
    return q.tensor(rows, { dtype = "float32" })
  end

  it("are cosines, neighbours and ranks", function()
    local x, y = at(0, 10, 30, 90), at(0, 70, 30, 90)
    local mean, least = measures.cosines(x, y)
    assert(math.abs(least - 0.5) < 1e-6 and math.abs(mean - 3.5 / 4) < 1e-6)
    local found = measures.nearest(x, x, 1, 2, 1)
    assert.equal(2, #found)
    assert.equal(2, found[1].index)
    assert.equal(3, found[2].index)
    assert.equal(1, measures.recall(x, x, 1))
    assert.equal(3 / 4, measures.recall(x, at(0, 20, 25, 90), 1)) -- nearest 2, 1, 2, 3 and 2, 3, 2, 3
    assert.equal(6, #measures.similarities(x))
  end)

  it("have Spearman's rho, with the mean rank for equals", function()
    assert.equal(1, measures.spearman({ 1, 5, 2 }, { 10, 1000, 11 }))
    assert.equal(-1, measures.spearman({ 1, 5, 2 }, { 3, 1, 2 }))
    assert(math.abs(measures.spearman({ 1, 2, 2, 3 }, { 1, 2, 3, 4 }) - 0.948683) < 1e-6)
  end)
end)

describe("examples/minilm.lua", function()
  local folder

  local function write(path, text)
    local file = assert(io.open(path, "wb"))
    assert(file:write(text))
    file:close()
  end

  local function write_config(changes)
    local config = {}
    for key, value in pairs(CONFIG) do config[key] = value end
    for key, value in pairs(changes or {}) do config[key] = value end
    write(folder .. "/config.json", require("cjson").encode(config))
  end

  setup(function()
    folder = helper.temporary_folder()
    assert(q.save_safetensors(folder .. "/model.safetensors", TENSORS))
    write(folder .. "/vocab.txt", table.concat(VOCABULARY, "\n") .. "\n")
    write(folder .. "/sentences.txt", table.concat(SENTENCES, "\r\n") .. "\n\n")
  end)
  before_each(function() write_config() end)
  teardown(function() helper.shell("rm -rf '" .. folder .. "'") end)

  local function run(arguments, env)
    local always = ("--model %s --sentences %s/sentences.txt --seconds 0.01 "):format(folder, folder)
    return helper.script("examples/minilm.lua", always .. arguments, env)
  end

  local no_gpu = { INT4MM_CUDA_LIBRARY = "/nowhere/cuda.so" }
  local gpu = q.cuda_available() and {} or {
    INT4MM_CUDA_LIBRARY = helper.build_folder() .. "/spec/c/fake_cuda.so", INT4MM_FAKE_CUDA = "host",
  }

  it("prints the table and searches", function()
    local output, status = run("'the bees'", no_gpu)
    assert.equal(0, status, output)
    assert.matches("2 layers, 128 wide: 12 linear layers, on cpu", output, 1, true)
    assert.matches("\nfloat32 +1.1 MB +%d+ +1.0000 +1.0000 +100 %% +1.000\n", output)
    for _, scheme in ipairs(schemes.list) do
      local name = scheme.name:gsub("%p", "%%%0")
      assert.matches("\n" .. name .. " +%d%.%d MB +%d+ +[01]%.%d+ +[01]%.%d+ +%d+ %% +[01]%.%d+\n", output)
    end
    assert.matches('"the bees" (W4A4, rotated and clipped)', output, 1, true)
    assert.matches("\n +0%.%d+ +0%.%d+  the bees dance\n", output) -- carriage returns and empty lines were left out
  end)

  it("gives the same bits on a GPU", function()
    local output, status = run("--device cuda", gpu)
    assert.equal(0, status, output)
    assert.matches("12 linear layers, on cuda", output, 1, true)
    assert.matches("The embeddings of the 4 W4A8 and W4A4 schemes have the same bits on cuda and on the CPU.", output,
      1, true)
  end)

  it("searches alone", function()
    local output, status = run("--search 'a cat' --device cpu")
    assert.equal(0, status, output)
    assert.is_nil(output:find "recall")
    assert.matches("float32\n +%d%.%d+ +%d%.%d+  A cat%.\n", output)
  end)

  it("says what is wrong", function()
    local function fails(arguments, words)
      local output, status = run(arguments, no_gpu)
      assert.equal(1, status, output)
      assert.matches(words, output, 1, true)
    end
    fails("--model /nowhere", "/nowhere/config.json: No such file or directory: `make minilm` fetches the model")
    fails("--device tpu", "minilm.lua: --device: ")
    fails("--device cuda", "minilm.lua: --device: ")
    fails("--sentences /nowhere", "minilm.lua: /nowhere: No such file or directory")
    write(folder .. "/few.txt", "one\ntwo\n")
    fails("--sentences " .. folder .. "/few.txt", "few.txt has 2 sentences, expected more than 5")
    for words, changes in pairs {
      ["config.json has num_hidden_layers = 2.5, expected a whole number from 1"] = { num_hidden_layers = 2.5 },
      ["config.json has hidden_act = relu, expected gelu"] = { hidden_act = "relu" },
      ["config.json has hidden_size = 120, expected a multiple of 4 for each of the 4 heads"] = { hidden_size = 120 },
      ["vocab.txt has 16 pieces, but config.json has vocab_size = 10"] = { vocab_size = 10 },
      [": embeddings.word_embeddings.weight is [20, 128] float32, expected [21, 128] float32"] = { vocab_size = 21 },
    } do
      write_config(changes)
      fails("", words)
    end
    write(folder .. "/config.json", "{")
    fails("", "config.json is not JSON")
  end)

  it("draws", function()
    if helper.sanitized() then return end -- gnuplot itself leaks, at its exit
    local results = { { scheme = schemes.list[1], mean = 1, least = 1, bytes = 1e6, embeddings = q.ones { 50, 1 } },
      { scheme = schemes.list[4], mean = 0.7, least = 0.44, bytes = 2e5, embeddings = q.ones { 50, 1 } } }
    local drawn, reason = plot(folder .. "/it's.svg", results)
    if os.execute "command -v gnuplot >/dev/null 2>&1" ~= 0 then
      assert.same({ nil, "the picture takes gnuplot (Debian: gnuplot-nox), which is not there" }, { drawn, reason })
      return
    end
    assert(drawn, reason)
    local file = assert(io.open(folder .. "/it's.svg"))
    local text = file:read "*a"
    file:close()
    for _, words in ipairs { "float32", "W4A4", "0.700, 0.2 MB", "mean of 50 sentences", ">0.4<" } do
      assert.matches(words, text, 1, true)
    end
  end)
end)

describe("examples/minilm/fetch.sh", function()
  it("says what to do without a network, and leaves nothing", function()
    local output, status = helper.shell([[
      folder=$(mktemp -d); mkdir $folder/bin
      printf '#!/bin/sh\nexit 1\n' > $folder/bin/python3; chmod +x $folder/bin/python3
      PATH=$folder/bin:$PATH sh examples/minilm/fetch.sh $folder/model; status=$?
      ls -A $folder/model; rm -r $folder; (exit $status)]])
    assert.equal(1, status)
    assert.matches("Where there is no network, put its files", output, 1, true)
    assert.matches("make minilm MINILM=folder\n$", output)
  end)

  it("refuses files that are not the model's", function()
    local output, status = helper.shell([[
      folder=$(mktemp -d); for file in model.safetensors vocab.txt config.json; do echo x > $folder/$file; done
      sh examples/minilm/fetch.sh $folder; status=$?; rm -r $folder; (exit $status)]])
    assert.equal(1, status)
    assert.matches("model.safetensors: FAILED", output, 1, true)
    assert.matches("are not those of the model: remove them to fetch it anew.", output, 1, true)
  end)
end)
