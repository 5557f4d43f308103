--- The files of a BERT model in a folder: model.safetensors, vocab.txt, config.json.

local json = require "cjson"
local q = require "int4mm"
local wordpiece = require "minilm.wordpiece"

local model = {}

local SIZES = { "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
  "num_hidden_layers", "type_vocab_size", "vocab_size" }

local function is_size(value) return type(value) == "number" and value >= 1 and value % 1 == 0 end

-- What is wrong with the contents of a config.json, if anything.
local function fault_of(config)
  if type(config) ~= "table" then return "is not an object of JSON" end
  for _, key in ipairs(SIZES) do
    if not is_size(config[key]) then
      return ("has %s = %s, expected a whole number from 1"):format(key, tostring(config[key]))
    end
  end
  if type(config.layer_norm_eps) ~= "number" then return "has no layer_norm_eps" end
  if config.hidden_act ~= "gelu" then
    return ("has hidden_act = %s, expected gelu"):format(tostring(config.hidden_act))
  end
  if config.hidden_size % (4 * config.num_attention_heads) ~= 0 then
    return ("has hidden_size = %d, expected a multiple of 4 for each of the %d heads"):format(config.hidden_size,
      config.num_attention_heads)
  end
end

local function read_config(path)
  local file, reason = io.open(path, "rb")
  if not file then return nil, reason end
  local text = file:read "*a"
  file:close()
  local parsed, config = pcall(json.decode, text)
  local fault = not parsed and "is not JSON" or fault_of(config)
  if fault then return nil, ("%s %s"):format(path, fault) end
  return config
end

--- Opens a model.
-- @tparam string folder
-- @treturn ?table `folder`, `config` (of config.json), `tokenizer`, `weights` (an open safetensors file)
-- @treturn ?string why not
function model.open(folder)
  local config, reason = read_config(folder .. "/config.json")
  if not config then return nil, reason end
  local tokenizer, weights
  tokenizer, reason = wordpiece.load(folder .. "/vocab.txt")
  if not tokenizer then return nil, reason end
  if tokenizer.size > config.vocab_size then
    return nil, ("%s/vocab.txt has %d pieces, but config.json has vocab_size = %d"):format(folder, tokenizer.size,
      config.vocab_size)
  end
  weights, reason = q.open_safetensors(folder .. "/model.safetensors")
  if not weights then return nil, reason end
  return { folder = folder, config = config, tokenizer = tokenizer, weights = weights }
end

return model
