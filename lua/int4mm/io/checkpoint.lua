--- Layers out of other programs' files: how a weight was quantised is recognised by the tensors that there are.
--
-- - **convrot_w4a4** (ComfyUI): `weight` int8 [N, K/2], two nibbles a byte, rotated; `weight_scale` [N]; JSON with the
--   size of the rotation in `comfy_quant`, or by layer in the metadata `_quantization_metadata`
-- - **compressed-tensors**, "pack-quantized": `weight_packed` [N, K/8], `weight_scale` [N, 1], `weight_shape`
-- - **GPTQ**: `qweight` [K/8, N], `scales` [1, N], `qzeros` [1, N/8]
-- - **floats**: `weight` [N, K] float32, float16 or bfloat16, which is quantised here
--
-- Each has its `bias` [N] or none. The weights of the second and third were made for activations that are not
-- quantised; here they are multiplied by int4 ones. One scale for each output is needed, and values around zero:
-- weights with scales for groups of K or with other zero points are refused.
-- @module int4mm.io.checkpoint

local bit = require "bit"
local ffi = require "ffi"
local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"
local file = require "int4mm.io.file"
local json = require "int4mm.io.json"
local linear = require "int4mm.linear"
local safetensors = require "int4mm.io.safetensors"
local tensor = require "int4mm.tensor"

local NAME = "load_linear"
local checkpoint = {}

-- ---- a layer's tensors ----

-- { file =, layer =, prefix = }
local Source = {}
Source.__index = Source

function Source:refuse(message, ...)
  check.raise(NAME, "%s: layer %s: %s", self.file.path, file.quote(self.layer), message:format(...))
end

function Source:has(what) return self.file:has(self.prefix .. what) end

local function shape_text(shape) return "[" .. table.concat(shape, ", ") .. "]" end

-- What a tensor is, where its dtype is one of those named (by spaces) and its rank so much.
function Source:info(what, dtypes, rank)
  if not self:has(what) then self:refuse("it has no %s", what) end
  local info = self.file:info(self.prefix .. what)
  if not (" " .. dtypes .. " "):find(" " .. info.dtype .. " ", 1, true) or (rank and #info.shape ~= rank) then
    self:refuse("%s is %s %s, expected %s%s", what, shape_text(info.shape), info.dtype, (dtypes:gsub(" ", " or ")),
      rank and (" with %d dimension%s"):format(rank, rank == 1 and "" or "s") or "")
  end
  return info
end

function Source:tensor(what) return self.file:tensor(self.prefix .. what) end

local FLOATS = "F32 F16 BF16"

-- One float32 for each of N outputs, whatever the shape that they are in.
function Source:vector(what, N)
  local info = self:info(what, FLOATS)
  local t = self:tensor(what):to "float32"
  if t:numel() ~= N then
    self:refuse("%s is %s, expected one for each of %d outputs", what, shape_text(info.shape), N)
  end
  if t:dim() == 1 then return t end
  local flat = tensor.alloc(NAME, 1, N, 1, enums.dtypes.float32, enums.CPU)
  ffi.copy(flat.c.data, t.c.data, 4 * N)
  tensor.keep(t)
  return flat
end

function Source:bias(N) return self:has "bias" and self:vector("bias", N) or nil end

-- Refuses a tensor of int32 with another element than one of two.
function Source:expect_all(what, text, one, other)
  self:info(what, "I32")
  for _, value in ipairs(self.file:values(self.prefix .. what)) do
    if value ~= one and value ~= other then self:refuse("%s has %d, expected %s", what, value, text) end
  end
end

-- Refuses scales [N, G], or [G, N] with the groups along dim 1, for more than one group of K.
function Source:refuse_groups(what, dim)
  local groups = self:info(what, FLOATS).shape[dim or 2] or 1
  if groups ~= 1 then
    self:refuse("%s has scales for %d groups of K; only weights with one scale for each output can be loaded, group "
      .. "scales not yet", what, groups)
  end
end

-- ---- convrot_w4a4 ----

-- ComfyUI's description of a layer: of the tensor `comfy_quant`, else of the file's metadata; nil where it has none.
function Source:comfy()
  local tensor_name, key = "comfy_quant", "_quantization_metadata"
  local own = self:has(tensor_name) and self:info(tensor_name, "U8") ~= nil
  local text = own and self.file:bytes(self.prefix .. tensor_name)
    or safetensors.metadata_of(NAME, self.file, self.prefix .. "weight")[key]
  if text == nil then return nil end
  local about, reason = json.decode(text)
  if not about then self:refuse("%s is not JSON as it should be: %s", own and tensor_name or key, reason) end
  if own then return about end
  return type(about.layers) == "table" and about.layers[self.layer] or nil
end

-- The rotation's block, which has to be one of ours.
local function convrot_block(source, about, K)
  local block = check.default(about.convrot_groupsize, 256) -- as ComfyUI has it
  local power = 4
  while power < 1024 and power ~= block do power = 4 * power end
  if power ~= block or K % block ~= 0 then
    source:refuse("convrot_groupsize is %s, expected a power of four from 4 to 1024 that divides K, %d",
      check.describe(block), K)
  end
  return block
end

local function take_convrot(source, about)
  local format = type(about) == "table" and about.format or about
  if format ~= "convrot_w4a4" then
    source:refuse("its format is %s, of ComfyUI's only convrot_w4a4 can be loaded", check.describe(format))
  end
  local shape = source:info("weight", "I8", 2).shape
  local N, K = shape[1], 2 * shape[2]
  source:refuse_groups "weight_scale"
  local block = convrot_block(source, about, K)
  local bytes = source:tensor "weight"
  local words = tensor.alloc(NAME, 2, N, math.ceil(K / 8), enums.dtypes.int32, enums.CPU)
  words:fill_bytes_(0) -- K may be 4 more than a multiple of 8
  for row = 0, N - 1 do
    ffi.copy(ffi.cast("char *", words.c.data) + row * 4 * math.ceil(K / 8), ffi.cast("char *", bytes.c.data)
      + row * K / 2, K / 2)
  end
  tensor.keep(bytes, words)
  return words:mark_ { dim = 2, length = K }, { scales = source:vector("weight_scale", N), rotate = block }
end

-- ---- compressed-tensors ----

-- The last words of rows that K does not fill: their padding has to mean zero, which is 8.
local function clean_padding(words, K)
  if K % 8 == 0 then return end
  local data, columns = ffi.cast("int32_t *", words.c.data), words:size(2)
  local kept = bit.lshift(1, 4 * (K % 8)) - 1
  for row = 1, words:size(1) do
    local index = row * columns - 1
    data[index] = bit.bor(bit.band(data[index], kept), bit.band(0x88888888, bit.bnot(kept)))
  end
  tensor.keep(words)
end

local EIGHTS = bit.tobit(0x88888888)

local function take_compressed(source)
  local packed = source:info("weight_packed", "I32", 2).shape
  local shape = source:info("weight_shape", "I64 I32", 1).shape
  local sizes = source.file:values(source.prefix .. "weight_shape")
  local N, K = sizes[1], sizes[2]
  if shape[1] ~= 2 or N ~= packed[1] or type(K) ~= "number" or K < 0 then
    source:refuse("weight_shape does not belong to weight_packed %s", shape_text(packed))
  elseif packed[2] ~= math.ceil(K / 8) then
    source:refuse("weight_packed is %s for K = %d, expected [%d, %d]: eight values of 4 bits a word",
      shape_text(packed), K, N, math.ceil(K / 8))
  end
  source:refuse_groups "weight_scale"
  if source:has "weight_zero_point" then
    source:expect_all("weight_zero_point", "zero points of 0, as a symmetric weight has: others cannot be loaded yet",
      EIGHTS, EIGHTS)
  end
  if source:has "weight_g_idx" then
    source:expect_all("weight_g_idx", "one group: an order of activations cannot be loaded", 0, -1)
  end
  local words = source:tensor "weight_packed"
  clean_padding(words, K)
  return words:mark_ { dim = 2, encoding = "offset", length = K > 0 and K or nil },
    { scales = source:vector("weight_scale", N) }
end

-- ---- GPTQ ----

-- Zero points are stored one less, or from "gptq_v2" on as they are: all have to be 8.
local function check_zeros(source, N, opts)
  local format = opts.checkpoint_format
    or safetensors.metadata_of(NAME, source.file, source.prefix .. "qweight").checkpoint_format or "gptq"
  local stored = format == "gptq_v2" and 8 or 7
  local shape = source:info("qzeros", "I32", 2).shape
  if shape[1] ~= 1 or shape[2] ~= math.ceil(N / 8) then
    source:refuse("qzeros is %s for %d outputs, expected [1, %d]: eight zero points of 4 bits a word",
      shape_text(shape), N, math.ceil(N / 8))
  end
  local words = source.file:values(source.prefix .. "qzeros")
  for n = 0, N - 1 do
    local zero = bit.band(bit.rshift(words[math.floor(n / 8) + 1], 4 * (n % 8)), 15)
    if zero ~= stored then
      source:refuse("qzeros has %d for output %d, expected %d in a symmetric weight of checkpoint_format %q; weights "
        .. "with other zero points cannot be loaded yet", zero, n + 1, stored, format)
    end
  end
end

local function take_gptq(source, opts)
  local packed = source:info("qweight", "I32", 2).shape
  local scales = source:info("scales", FLOATS, 2).shape
  local K, N = 8 * packed[1], packed[2]
  if N ~= scales[2] and 8 * N == scales[2] then
    source:refuse("qweight is %s, packed along N as AWQ has it, which cannot be loaded yet", shape_text(packed))
  end
  source:refuse_groups("scales", 1)
  check_zeros(source, N, opts)
  if source:has "g_idx" then
    local length = source:info("g_idx", "I32", 1).shape[1]
    if length ~= K then
      source:refuse("qweight is %s for K = %d (by g_idx), expected [%d, %d]: eight values of 4 bits a word",
        shape_text(packed), length, math.ceil(length / 8), N)
    end
    source:expect_all("g_idx", "0, the one group that there is: an order of activations cannot be loaded", 0, 0)
  end
  return source:tensor("qweight"):mark_ { dim = 1, encoding = "offset", length = K > 0 and K or nil },
    { scales = source:vector("scales", N) }
end

-- ---- which one ----

local FLOAT_ONLY = { "rotate", "weight_clip" }
local PASSED = { "clip", "activation", "out_dtype", "prepack" }

-- Words and what q.linear needs with them, of a weight that is packed; nil for one of floats.
local function take_packed(source, opts)
  if source:has "qweight" then return take_gptq(source, opts) end
  if source:has "weight_packed" then return take_compressed(source) end
  if not source:has "weight" then
    source:refuse("it has no weight: none of the tensors weight, weight_packed and qweight")
  end
  local about = source:comfy()
  if about ~= nil then return take_convrot(source, about) end
  local info = source:info("weight", FLOATS .. " I8", 2)
  if info.dtype == "I8" then
    source:refuse("weight is %s I8, but neither comfy_quant nor _quantization_metadata says what it is",
      shape_text(info.shape))
  end
  return nil
end

-- The weight on a device, and what goes with it.
local function moved(weight, all, device)
  if device == nil then return weight end
  for _, key in ipairs { "scales", "bias" } do all[key] = all[key] and all[key]:to(device) end
  return weight:to(device)
end

--- Makes a layer from a checkpoint, whatever of the formats above it is in.
-- @tparam file f from @{int4mm.io.safetensors.open_safetensors}
-- @tparam string layer what stands before `.weight` and so on: "model.layers.0.mlp.down_proj"; "" for tensors with
--   nothing before them
-- @tparam[opt] table opts
--
-- - `clip`, `activation`, `out_dtype`, `prepack`: as in @{int4mm.linear.linear}
-- - `device`: where the layer is to be, "cpu" by default; a weight of floats is quantised there
-- - `rotate`, `weight_clip`: the same, for a weight of floats
-- - `checkpoint_format`: of GPTQ, "gptq" or "gptq_v2", which config.json tells; by default the file's metadata, then
--   "gptq"
-- @treturn linear
-- @raise naming the file, the layer, the tensor, what it is and what was expected
function checkpoint.load_linear(f, layer, opts)
  json.need(NAME)
  safetensors.check_file(NAME, "file", f)
  if type(layer) ~= "string" then
    check.raise(NAME, "layer is %s, expected the name of a layer", check.describe(layer))
  end
  opts = check.options(NAME, opts,
    { "clip", "activation", "out_dtype", "prepack", "device", "rotate", "weight_clip", "checkpoint_format" })
  enums.device(NAME, "device", opts.device, "cpu")
  check.choice(NAME, "checkpoint_format", opts.checkpoint_format, { gptq = true, gptq_v2 = true }, "gptq")
  local source = setmetatable({ file = f, layer = layer, prefix = layer == "" and "" or layer .. "." }, Source)
  local weight, all = take_packed(source, opts)
  if weight then
    for _, key in ipairs(FLOAT_ONLY) do
      if opts[key] ~= nil then
        source:refuse("%s is given, but the weight is packed already: it is for a weight of floats", key)
      end
    end
  else
    weight, all = source:tensor "weight", { rotate = opts.rotate, weight_clip = opts.weight_clip }
  end
  all.bias = source:bias(all.scales and all.scales:size(1) or weight:size(1))
  for _, key in ipairs(PASSED) do all[key] = opts[key] end
  return linear.linear(moved(weight, all, opts.device), all)
end

return checkpoint
