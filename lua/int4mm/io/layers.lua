--- Layers in files: what @{int4mm.linear.linear} has made, with everything that belongs to it.
--
-- A file is a safetensors file. Layer `name` has the tensors `name.weight` (int32 words), `name.scales` and, where it
-- has them, `name.zeros` and `name.factors` (int8), `name.order` (int32) and `name.bias` (float32); a single layer's
-- have no name in front. The metadata `int4mm` is JSON with `version` and `layers`, an object of layers by name, or
-- `layer`: in_features, out_features, rotate, activation, dim, encoding and, where they are set, length, clip,
-- out_dtype, group_size and activations other than "int4", which are the fields of a layer and of its weight's packing;
-- rotated is true where the packing knows of the rotation.
-- @module int4mm.io.layers

local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"
local file = require "int4mm.io.file"
local json = require "int4mm.io.json"
local linear = require "int4mm.linear"
local safetensors = require "int4mm.io.safetensors"

local quote = file.quote
local layers = {}

local VERSION = 1
local TENSORS = { "weight", "scales", "zeros", "factors", "order", "bias" }
local FIELDS = { -- of a layer that are saved, beside its tensors
  in_features = true, out_features = true, rotate = true, clip = true, activation = true, out_dtype = true,
  group_size = true, activations = true,
}
for _, what in ipairs(TENSORS) do FIELDS[what] = true end

-- ---- saving ----

-- "layer", or "layer \"name\"", for messages
local function called(key) return key == nil and "the layer" or "layer " .. quote(key) end

-- What the metadata says of a layer.
local function record_of(name, key, layer)
  if not linear.is_linear(layer) then
    check.raise(name, "%s is %s, expected what q.linear makes", called(key), check.describe(layer))
  end
  for field in pairs(layer) do
    if not FIELDS[field] then
      check.raise(name, "%s has the field %s, which files of layers do not hold", called(key), check.describe(field))
    end
  end
  if layer.weight.layout ~= "rows" then
    check.raise(name, "%s was made with prepack = true, and its words cannot be read; save it without, load has "
      .. "prepack as well", called(key))
  end
  local packing = layer.weight.packing
  return {
    in_features = layer.in_features, out_features = layer.out_features, rotate = layer.rotate,
    activation = layer.activation, out_dtype = layer.out_dtype, dim = packing.dim, encoding = packing.encoding,
    length = packing.length, rotated = packing.rotate and true, with = packing.with, group_size = layer.group_size,
    activations = layer.activations ~= "int4" and layer.activations or nil,
    clip = type(layer.clip) == "number" and ("%.17g"):format(layer.clip) or layer.clip,
  }
end

local function add_tensors(tensors, prefix, layer)
  for _, what in ipairs(TENSORS) do tensors[prefix .. what] = layer[what] end
end

--- Saves layers, to be loaded by @{load} with the same bits. A file of that name is replaced when the new one is
-- complete.
-- @tparam string path
-- @param given a layer from @{int4mm.linear.linear}, or a table of layers by name; on the CPU or a GPU, not prepacked
-- @treturn ?boolean true
-- @treturn ?string why the file could not be written
function layers.save(path, given)
  local name = "save"
  file.check_path(name, path)
  json.need(name)
  local tensors, about = {}, { version = VERSION }
  if linear.is_linear(given) then
    about.layer = record_of(name, nil, given)
    add_tensors(tensors, "", given)
  elseif type(given) == "table" then
    about.layers = {}
    for key, layer in pairs(given) do
      if type(key) ~= "string" then
        check.raise(name, "the layers have the key %s, expected names", check.describe(key))
      end
      about.layers[key] = record_of(name, key, layer)
      add_tensors(tensors, key .. ".", layer)
    end
  else
    check.raise(name, "the layers are %s, expected a layer or a table of layers by name", check.describe(given))
  end
  return safetensors.save_as(name, path, tensors, { metadata = { int4mm = json.encode(about) } })
end

-- ---- loading ----

-- The metadata of a file of layers.
local function read_about(f)
  local text = f.metadata.int4mm
  if type(text) ~= "string" then
    file.fault(f.path, "it holds no layers of int4mm; load_linear makes a layer of other files, open_safetensors reads "
      .. "their tensors")
  end
  local about, reason = json.decode(text)
  if not about then file.fault(f.path, "the metadata int4mm is not JSON as it should be: %s", reason) end
  if about.version ~= VERSION then
    file.fault(f.path, "the layers are of version %s, this int4mm reads version %d", check.describe(about.version),
      VERSION)
  end
  if type(about.layers) ~= "table" and type(about.layer) ~= "table" then
    file.fault(f.path, "the metadata int4mm has neither layer nor layers")
  end
  return about
end

local OPTIONAL = {
  length = "number", clip = "string", out_dtype = "string", rotated = "boolean", group_size = "number",
  activations = "string", with = "string",
}
local EXPECTED = {
  in_features = "number", out_features = "number", rotate = "number", activation = "string", dim = "number",
  encoding = "string",
}

local function check_record(f, key, record)
  if type(record) ~= "table" then file.fault(f.path, "%s is not an object in the metadata int4mm", called(key)) end
  for field, kind in pairs(EXPECTED) do
    if type(record[field]) ~= kind then
      file.fault(f.path, "%s has %s = %s in the metadata int4mm, expected a %s", called(key), field,
        check.describe(record[field]), kind)
    end
  end
  for field, value in pairs(record) do
    local kind = EXPECTED[field] or OPTIONAL[field]
    if type(value) ~= kind then
      file.fault(f.path, "%s has %s = %s in the metadata int4mm, which this int4mm does not know", called(key),
        check.describe(field), check.describe(value))
    end
  end
end

-- The layer of a record that has been checked; whatever is wrong with its values, q.linear tells.
local function make_layer(f, prefix, record, opts)
  local weight = f:tensor(prefix .. "weight")
  weight:mark_ { dim = record.dim, encoding = record.encoding, length = record.length }
  if record.rotated then weight.c.packed_rotate = check.integer("load", "rotate", record.rotate, 4, 1024) end
  local clip = record.clip
  if clip ~= nil and clip ~= "mse" then clip = tonumber(clip) or clip end
  local all = {
    rotate = record.rotate > 0 and record.rotate or nil, clip = clip, activation = record.activation,
    activations = record.activations, group_size = record.group_size, out_dtype = record.out_dtype,
    prepack = opts.prepack, scales = f:tensor(prefix .. "scales"),
  }
  for _, what in ipairs { "zeros", "factors", "order", "bias" } do
    all[what] = f:has(prefix .. what) and f:tensor(prefix .. what) or nil
  end
  weight.c.packed_with = check.choice("load", "with", record.with, { none = 0, zeros = 1, factors = 2 }, "none")
  local layer = linear.linear(weight, all)
  for _, field in ipairs { "in_features", "out_features" } do
    if layer[field] ~= record[field] then
      error(("%s is %s, but the tensors have %d"):format(field, check.describe(record[field]), layer[field]), 0)
    end
  end
  return layer:to(check.default(opts.device, "cpu"))
end

local function load_layer(f, key, record, opts)
  check_record(f, key, record)
  local ok, layer = pcall(make_layer, f, key and key .. "." or "", record, opts)
  if not ok then file.fault(f.path, "%s: %s", called(key), tostring(layer)) end
  return layer
end

local function load_all(f, opts)
  local about = read_about(f)
  if about.layer then return load_layer(f, nil, about.layer, opts) end
  local loaded = {}
  for key, record in pairs(about.layers) do loaded[key] = load_layer(f, key, record, opts) end
  return loaded
end

--- Loads what @{save} has saved.
-- @tparam string path
-- @tparam[opt] table opts `device` ("cpu"): where the layers are to be, moved one at a time; `prepack`: as in
--   @{int4mm.linear.linear}
-- @return a layer, or a table of layers by name, as it was saved
-- @treturn ?string why there is none: the file and what is wrong, of a file of another kind as well
function layers.load(path, opts)
  local name = "load"
  file.check_path(name, path)
  json.need(name)
  opts = check.options(name, opts, { "device", "prepack" })
  check.boolean(name, "prepack", opts.prepack)
  if enums.device(name, "device", opts.device, "cpu") ~= enums.CPU and opts.prepack then
    check.raise(name, "prepack is true but device is %s: a prepacked weight is the CPU's; leave one of them out",
      opts.device)
  end
  local f, reason = safetensors.open_safetensors(path)
  if not f then return nil, reason end
  local loaded
  loaded, reason = file.catch(load_all, f, opts)
  f:close()
  return loaded, reason
end

return layers
