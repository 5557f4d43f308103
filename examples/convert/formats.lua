--- The formats that convert.lua writes: which sizes fit, which tensors a layer becomes, what config.json says.
--
-- Each has `check(arguments)`, a sentence for options that do not go with it; `fits(K, arguments)` and `needs`, what it
-- takes in words; `block(arguments)` of a rotation or nil; `encoding`; `add(add, layer, arguments, quantize)`, which
-- adds the layer's tensors, made by `quantize()` when they are written, by `add(name, entry)`; and where a config.json
-- belongs to it `config(text, arguments, left)`, the new text, or nil and why not.

local q = require "int4mm"
local cjson = require "cjson"

local formats = { names = { "convrot_w4a4", "compressed-tensors" } }

-- Results of `quantize()`, which is called for the first of them that is asked for; none is referenced once taken.
local function shared(quantize)
  local made
  return function(what)
    if not made then
      made = {}
      made.words, made.scales, made.zeros = quantize()
    end
    local result = made[what]
    made[what] = nil
    return result
  end
end

-- ---- convrot_w4a4 ----

local convrot = { encoding = "twos_complement" }
formats.convrot_w4a4 = convrot

function convrot.block(arguments) return arguments.rotate or 256 end

function convrot.check(arguments)
  if arguments.group_size then
    return "--group-size is for compressed-tensors: convrot_w4a4 has a scale for each output"
  end
  if arguments.zero_point then return "--zero-point is for compressed-tensors: convrot_w4a4 has none" end
  local block = convrot.block(arguments)
  if block ~= 4 and block ~= 16 and block ~= 64 and block ~= 256 and block ~= 1024 then
    return ("--rotate is %d, expected a power of four from 4 to 1024"):format(block)
  end
end

function convrot.fits(K, arguments) return K % math.max(convrot.block(arguments), 8) == 0 end

function convrot.needs(arguments) return ("a multiple of %d"):format(math.max(convrot.block(arguments), 8)) end

function convrot.add(add, layer, arguments, quantize)
  local take, name = shared(quantize), layer.name
  local about = ('{"format": "convrot_w4a4", "convrot_groupsize": %d}'):format(convrot.block(arguments))
  local function entry(what, dtype, shape, bytes, data)
    add(name .. "." .. what, { dtype = dtype, shape = shape, bytes = bytes, data = data, of = name })
  end
  entry("weight", "I8", { layer.N, layer.K / 2 }, layer.N * layer.K / 2, function() return take "words" end)
  entry("weight_scale", "F32", { layer.N }, 4 * layer.N, function() return take "scales" end)
  entry("comfy_quant", "U8", { #about }, #about, about)
end

-- ---- compressed-tensors ----

local compressed = { encoding = "offset" }
formats["compressed-tensors"] = compressed

function compressed.block() return nil end

function compressed.check(arguments)
  if arguments.rotate then return "--rotate is for convrot_w4a4: compressed-tensors has no rotation" end
  local group = arguments.group_size
  if group and group % 32 ~= 0 then return ("--group-size is %d, expected a multiple of 32"):format(group) end
end

function compressed.fits(K, arguments) return K % (arguments.group_size or 8) == 0 end

function compressed.needs(arguments) return ("a multiple of %d"):format(arguments.group_size or 8) end

-- An int64 from 0 to 2^53, little-endian.
local function int64(number)
  local bytes = {}
  for i = 1, 8 do
    bytes[i] = string.char(number % 256)
    number = math.floor(number / 256)
  end
  return table.concat(bytes)
end

function compressed.add(add, layer, arguments, quantize)
  local take, name, N, K = shared(quantize), layer.name, layer.N, layer.K
  local G = arguments.group_size and K / arguments.group_size or 1
  local function entry(what, dtype, shape, bytes, data)
    add(name .. "." .. what, { dtype = dtype, shape = shape, bytes = bytes, data = data, of = name })
  end
  entry("weight_packed", "I32", { N, K / 8 }, N * K / 2, function() return take "words" end)
  entry("weight_scale", "F32", { N, G }, 4 * N * G, function() return take "scales" end)
  entry("weight_shape", "I64", { 2 }, 16, int64(N) .. int64(K))
  if arguments.zero_point then
    entry("weight_zero_point", "I32", { math.ceil(N / 8), G }, 4 * math.ceil(N / 8) * G, function()
      return q.pack_int4_to_int32(take "zeros":view(N, G), { dim = 1, encoding = "offset" })
    end)
  end
end

-- The text stays as it is, with quantization_config behind its last entry.
function compressed.config(text, arguments, left)
  local ok, config = pcall(cjson.decode, text)
  local head = text:match "^(%s*{.*)}%s*$"
  if not ok or not head then return nil, "it is not JSON with an object" end
  if config.quantization_config ~= nil then
    return nil, "it has a quantization_config: the model is quantised already"
  end
  local ignored = {}
  for i, layer in ipairs(left) do ignored[i] = cjson.encode(layer) end
  local group = arguments.group_size
  local about = ([[
"quantization_config": {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
      "group_0": {
        "targets": ["Linear"],
        "weights": {
          "num_bits": 4, "type": "int", "symmetric": %s, "strategy": "%s", "group_size": %s, "dynamic": false
        },
        "input_activations": null,
        "output_activations": null
      }
    },
    "ignore": [%s]
  }]]):format(tostring(not arguments.zero_point), group and "group" or "channel", group or "null",
    table.concat(ignored, ", "))
  return ("%s%s\n  %s\n}\n"):format(head:gsub("%s+$", ""), next(config) ~= nil and "," or "", about)
end

return formats
