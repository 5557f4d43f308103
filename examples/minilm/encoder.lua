--- A sentence encoder of BERT's kind: embeddings, layers of attention and a feed-forward network, and the mean of the
-- last layer's rows, normalised to length 1.
--
-- The linear layers are those of a scheme (see schemes.lua); everything between them is float32. A batch is one matrix
-- with a row for each token, sentence after sentence, so nothing is padded, and a sentence's result does not depend on
-- the others in its batch.

local attention = require "minilm.attention"
local q = require "int4mm"

local encoder = {}
local Encoder = {}
Encoder.__index = Encoder

local BATCH = 64 -- sentences

-- ---- construction ----

-- A model's tensors by name, checked.
local function reader(weights, device)
  return function(name, rows, columns)
    local t = weights:tensor(name)
    local fits = t.dtype == "float32" and t:size(1) == (rows or t:size(1))
      and (columns == nil and t:dim() == 1 or columns and t:dim() == 2 and t:size(2) == columns)
    if not fits then
      error(("%s is [%s] %s, expected [%s] float32"):format(name, table.concat(t.shape, ", "), t.dtype,
        table.concat({ rows or "any", columns }, ", ")), 0)
    end
    return device and t:to(device) or t
  end
end

--- An encoder.
-- @tparam table weights has `tensor(self, name)`, as files of q.open_safetensors do
-- @tparam table config `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`,
--   `layer_norm_eps`, `max_position_embeddings`, `type_vocab_size`, `vocab_size`: what config.json has
-- @tparam table scheme of schemes.lua
-- @tparam[opt="cpu"] string device
-- @treturn encoder
-- @raise for tensors that are missing or have another shape
function encoder.new(weights, config, scheme, device)
  device = device or "cpu"
  local width, inner = config.hidden_size, config.intermediate_size
  local read, here = reader(weights, device), reader(weights)
  local self = setmetatable({
    heads = config.num_attention_heads, eps = config.layer_norm_eps, device = device, linears = {}, blocks = {},
  }, Encoder)
  local function linear(name, outputs, inputs, activation)
    local layer = scheme.linear(here(name .. ".weight", outputs, inputs), {
      bias = here(name .. ".bias", outputs), activation = activation,
    })
    if device ~= "cpu" then layer = layer:to(device) end
    self.linears[#self.linears + 1] = layer
    return layer
  end
  local function norm(name) return { weight = read(name .. ".weight", width), bias = read(name .. ".bias", width) } end

  self.words = read("embeddings.word_embeddings.weight", config.vocab_size, width)
  self.positions = read("embeddings.position_embeddings.weight", config.max_position_embeddings, width)
  self.token_type = read("embeddings.token_type_embeddings.weight", config.type_vocab_size, width)
    :narrow(1, 1, 1):view(width) -- all tokens are of the first sentence
  self.norm = norm "embeddings.LayerNorm"
  for i = 0, config.num_hidden_layers - 1 do
    local name = ("encoder.layer.%d."):format(i)
    self.blocks[i + 1] = {
      query = linear(name .. "attention.self.query", width, width),
      key = linear(name .. "attention.self.key", width, width),
      value = linear(name .. "attention.self.value", width, width),
      attention_output = linear(name .. "attention.output.dense", width, width),
      attention_norm = norm(name .. "attention.output.LayerNorm"),
      intermediate = linear(name .. "intermediate.dense", inner, width, "gelu"),
      output = linear(name .. "output.dense", width, inner),
      output_norm = norm(name .. "output.LayerNorm"),
    }
  end
  return self
end

--- The bytes of the linear layers.
function Encoder:linear_bytes()
  local sum = 0
  for _, layer in ipairs(self.linears) do sum = sum + layer:bytes() end
  return sum
end

-- ---- running ----

function Encoder:normalise(x, norm) return q.layer_norm(x, norm.weight, norm.bias, { eps = self.eps }) end

-- The sum of what token, position and sentence stand for: [T, width].
function Encoder:embed(batch)
  local ids, positions = {}, {}
  for _, sentence in ipairs(batch) do
    for position, id in ipairs(sentence) do ids[#ids + 1], positions[#positions + 1] = id, position - 1 end
  end
  local function rows(table_of, list) return table_of:index_select(1, q.tensor(list, { dtype = "int32" })) end
  local x = q.add(rows(self.words, ids), rows(self.positions, positions))
  return self:normalise(q.add(x, self.token_type), self.norm)
end

-- One layer, which x is added to twice.
function Encoder:block(layer, x, lengths)
  local context = attention(layer.query(x), layer.key(x), layer.value(x), lengths, self.heads)
  x = self:normalise(layer.attention_output(context, { residual = x }), layer.attention_norm)
  return self:normalise(layer.output(layer.intermediate(x), { residual = x }), layer.output_norm)
end

-- The mean of rows [first, first + length) of x, of length 1, to offset `at` of `result`. Squares of floats are exact.
local function pool(result, at, x, first, length, width)
  local squares = 0
  for c = 0, width - 1 do
    local sum = 0
    for i = first, first + length - 1 do sum = sum + x[i * width + c] end
    result[at + c] = sum / length
    squares = squares + result[at + c] * result[at + c]
  end
  local norm = math.sqrt(squares)
  for c = 0, width - 1 do result[at + c] = result[at + c] / norm end
end

--- The embeddings of sentences.
-- @tparam table sentences a list of lists of ids, each with one id or more
-- @treturn tensor [sentences, width] float32 on the CPU, rows of length 1
function Encoder:encode(sentences)
  local width = self.words:size(2)
  local result = q.empty { #sentences, width }
  for first = 1, #sentences, BATCH do
    local batch, lengths = {}, {}
    for i = first, math.min(first + BATCH - 1, #sentences) do
      batch[#batch + 1], lengths[#lengths + 1] = sentences[i], #sentences[i]
    end
    local x = self:embed(batch)
    for _, layer in ipairs(self.blocks) do x = self:block(layer, x, lengths) end
    x = x:to "cpu"
    local row = 0
    for i, length in ipairs(lengths) do
      pool(result:data(), (first + i - 2) * width, x:data(), row, length, width)
      row = row + length
    end
  end
  return result
end

return encoder
