--- Layers out of other programs' files: how a weight was quantised is recognised by the tensors that there are.
--
-- - **convrot_w4a4** (ComfyUI): `weight` int8 [N, K/2], two nibbles a byte, rotated; `weight_scale` [N]; JSON with the
--   size of the rotation in `comfy_quant`, or by layer in the metadata `_quantization_metadata`
-- - **compressed-tensors**, "pack-quantized": `weight_packed` [N, K/8], `weight_scale` [N, G], `weight_shape`;
--   `weight_zero_point` [N/8, G], packed along N, or int8 [N, G]; `weight_g_idx` [K]
-- - **GPTQ**: `qweight` [K/8, N], `scales` [G, N], `qzeros` [G, N/8], `g_idx` [K]
-- - **AWQ** (gemm): `qweight` [K, N/8], `scales` [G, N], `qzeros` [G, N/8], whose words hold the columns 0, 2, 4, 6, 1,
--   3, 5, 7 of eight
-- - **floats**: `weight` [N, K] float32, float16 or bfloat16, which is quantised here
--
-- Each has its `bias` [N] or none. The weights of the second to the fourth were made for activations that are not
-- quantised, and are multiplied by floats unless `activations` says otherwise. Where an order of activations (g_idx)
-- is not ascending, the weight's values along K are put in order of their groups, and the layer does the same with its
-- input. Zero points that are all zero are left out.
-- @module int4mm.io.checkpoint

local bit = require "bit"
local ffi = require "ffi"
local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"
local file = require "int4mm.io.file"
local json = require "int4mm.io.json"
local linear = require "int4mm.linear"
local ops = require "int4mm.ops"
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

-- A tensor of a rank of two, which has to have this shape; `why` says what it holds.
function Source:matrix(what, dtypes, rows, columns, why)
  local info = self:info(what, dtypes, 2)
  if info.shape[1] ~= rows or info.shape[2] ~= columns then
    self:refuse("%s is %s, expected [%d, %d]: %s", what, shape_text(info.shape), rows, columns, why)
  end
  return self:tensor(what)
end

-- ---- groups ----

-- The group of each of K values by `what`, where it says any; -1 throughout stands for none.
function Source:group_index(what, K)
  if not self:has(what) then return nil end
  local length = self:info(what, "I32", 1).shape[1]
  if length ~= K then self:refuse("%s is [%d], expected [%d]: a group for each value along K", what, length, K) end
  local index, none = self.file:values(self.prefix .. what), true
  for _, g in ipairs(index) do none = none and g == -1 end
  return not none and index or nil
end

-- How many values of K are in a group: as given, else as many as the first has by `index`, else K / G; nil where there
-- is one for all.
function Source:group_size(what, K, groups, index, given)
  if groups <= 1 and (not given or given >= K) then return nil end
  local size, first = given or K / groups, 0
  for _, g in ipairs(not given and index or {}) do first = first + (g == 0 and 1 or 0) end
  if first > 0 and first % 32 == 0 and math.ceil(K / first) == groups then size = first end
  if size % 32 ~= 0 or size == 0 then
    self:refuse("%s holds %d groups of K = %d, expected groups of a multiple of 32; where the last is shorter, "
      .. "group_size says how long the others are", what, groups, K)
  elseif math.ceil(K / size) ~= groups then
    self:refuse("%s holds %d groups, but K = %d has %d groups of %d", what, groups, K, math.ceil(K / size), size)
  end
  return size
end

-- The values along K in order of their groups, as a vector of int32 counted from 0; nil where they are in order.
function Source:order(what, index, K, groups, size)
  if not index then return nil end
  local next_of, sorted = {}, true
  for g = 0, groups - 1 do next_of[g] = g * (size or K) end
  local order = tensor.alloc(NAME, 1, K, 1, enums.dtypes.int32, enums.CPU)
  local data = ffi.cast("int32_t *", order.c.data)
  for k, g in ipairs(index) do
    local place = next_of[g]
    if not place then
      self:refuse("%s has %d for value %d of K, expected groups from 0 to %d", what, g, k, groups - 1)
    end
    if place >= math.min((g + 1) * (size or K), K) then
      self:refuse("%s has more than %d values of K in group %d", what, size or K, g)
    end
    sorted, data[place], next_of[g] = sorted and place == k - 1, k - 1, place + 1
  end
  tensor.keep(order)
  return not sorted and order or nil
end

-- Words packed along a dimension with what they hold along it in another order.
local function reordered(words, order)
  local packing = words.packing
  local plain = ops.unpack_int32_to_int4(words):index_select(packing.dim, order)
  return ops.pack_int4_to_int32(plain, { dim = packing.dim, encoding = packing.encoding })
end

-- Whether all elements of a matrix of int8 without gaps are 0.
local function is_zero(t)
  local data, n = ffi.cast("int8_t *", t.c.data), t:numel()
  for i = 0, n - 1 do
    if data[i] ~= 0 then return false end
  end
  tensor.keep(t)
  return true
end

-- What q.linear takes with words: scales and zero points [G, N], or [N] where there is one group.
local function scaling_of(scales, zeros, size, order)
  local N = scales:size(2)
  local single = size == nil
  if zeros and is_zero(zeros) then zeros = nil end
  return {
    scales = single and scales:view(N):to "float32" or scales, zeros = zeros and single and zeros:view(N) or zeros,
    group_size = size, order = order,
  }
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

local function take_convrot(source, about, opts)
  local format = type(about) == "table" and about.format or about
  if format ~= "convrot_w4a4" then
    source:refuse("its format is %s, of ComfyUI's only convrot_w4a4 can be loaded", check.describe(format))
  end
  if opts.group_size then
    source:refuse("group_size is given, but the weight has one scale for each output, as convrot_w4a4 always has")
  end
  local shape = source:info("weight", "I8", 2).shape
  local N, K = shape[1], 2 * shape[2]
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

-- Zero points [G, N] of words [N/8, G] or of int8 [N, G].
local function compressed_zeros(source, N, groups)
  local what = "weight_zero_point"
  if not source:has(what) then return nil end
  local info = source:info(what, "I32 I8", 2)
  if info.dtype == "I8" then return source:matrix(what, "I8", N, groups, "a zero point for each scale"):t() end
  local words = source:matrix(what, "I32", math.ceil(N / 8), groups, "eight zero points of 4 bits a word")
  return ops.unpack_int32_to_int4(words, { dim = 1, encoding = "offset", length = N }):t()
end

local function take_compressed(source, opts)
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
  local groups = source:info("weight_scale", FLOATS).shape[2] or 1
  local index = source:group_index("weight_g_idx", K)
  local size = source:group_size("weight_scale", K, groups, index, opts.group_size)
  local order = source:order("weight_g_idx", index, K, groups, size)
  local scales = groups == 1 and source:vector("weight_scale", N):view(1, N)
    or source:matrix("weight_scale", FLOATS, N, groups, "a scale for each group"):t()
  local words = source:tensor "weight_packed"
  clean_padding(words, K)
  words:mark_ { dim = 2, encoding = "offset", length = K > 0 and K or nil }
  return order and reordered(words, order) or words,
    scaling_of(scales, compressed_zeros(source, N, groups), size, order)
end

-- ---- GPTQ and AWQ ----

-- What each nibble of a word is of eight columns; the inverse says where a column is.
local AWQ_NIBBLE = { 0, 4, 1, 5, 2, 6, 3, 7 }

-- int8 [R, N] out of words [R, N/8], each value 8 less than its nibble.
local function unpacked_columns(words, N, awq)
  local plain = ops.unpack_int32_to_int4(words, { dim = 2, encoding = "offset", length = N })
  if not awq then return plain end
  local columns = {}
  for n = 0, N - 1 do columns[n + 1] = n - n % 8 + AWQ_NIBBLE[n % 8 + 1] + 1 end
  return plain:index_select(2, columns)
end

-- Stored one less than they are, but for "gptq_v2": as 15 where they are 0. A zero point of 9 throughout has no reason;
-- files of newer writers say "gptq" and hold 8, a symmetric weight's, as it is.
local function add_one(zeros)
  local data, n, all_eight = ffi.cast("int8_t *", zeros.c.data), zeros:numel(), true
  for i = 0, n - 1 do all_eight = all_eight and data[i] == 0 end
  for i = 0, n - 1 do data[i] = (all_eight and 0) or (data[i] == 7 and -8) or data[i] + 1 end
  tensor.keep(zeros)
end

local function gptq_zeros(source, N, groups, awq, opts)
  if not source:has "qzeros" then return nil end
  local words = source:matrix("qzeros", "I32", groups, math.ceil(N / 8), "eight zero points of 4 bits a word")
  local zeros = unpacked_columns(words, N, awq)
  local format = opts.checkpoint_format
    or safetensors.metadata_of(NAME, source.file, source.prefix .. "qweight").checkpoint_format or "gptq"
  if not awq and format ~= "gptq_v2" then add_one(zeros) end
  return zeros
end

-- Words packed along K in place of those along N.
local function repacked(words, N, order)
  local plain = unpacked_columns(words, N, true)
  if order then plain = plain:index_select(1, order) end
  return ops.pack_int4_to_int32(plain, { dim = 1, encoding = "offset" })
end

local function take_gptq(source, opts)
  local packed = source:info("qweight", "I32", 2).shape
  local shape = source:info("scales", FLOATS, 2).shape
  local groups, N = shape[1], shape[2]
  local awq = packed[2] ~= N and 8 * packed[2] == N
  local K = awq and packed[1] or 8 * packed[1]
  if not awq and packed[2] ~= N then
    source:refuse("scales is %s, but qweight is %s, which has %d outputs, or %d as AWQ has it", shape_text(shape),
      shape_text(packed), packed[2], 8 * packed[2])
  end
  local index = source:group_index("g_idx", K)
  local size = source:group_size("scales", K, groups, index, opts.group_size)
  local order = source:order("g_idx", index, K, groups, size)
  local zeros = gptq_zeros(source, N, groups, awq, opts)
  local words = source:tensor "qweight"
  if awq then
    words = repacked(words, N, order)
  else
    words:mark_ { dim = 1, encoding = "offset", length = K > 0 and K or nil }
    if order then words = reordered(words, order) end
  end
  return words, scaling_of(source:tensor "scales", zeros, size, order)
end

-- ---- which one ----

local FLOAT_ONLY = { "rotate", "weight_clip", "group_scales", "zero_point" }
local PASSED = { "clip", "activation", "out_dtype", "prepack" }

-- Of the formats whose activations stay floats: what there is without an option.
local function with_floats(words, all)
  all.activations = "float"
  return words, all
end

-- Words and what q.linear needs with them, of a weight that is packed; nil for one of floats.
local function take_packed(source, opts)
  if source:has "qweight" then return with_floats(take_gptq(source, opts)) end
  if source:has "weight_packed" then return with_floats(take_compressed(source, opts)) end
  if not source:has "weight" then
    source:refuse("it has no weight: none of the tensors weight, weight_packed and qweight")
  end
  local about = source:comfy()
  if about ~= nil then return take_convrot(source, about, opts) end
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
  for _, key in ipairs { "scales", "zeros", "order", "bias" } do all[key] = all[key] and all[key]:to(device) end
  return weight:to(device)
end

local OPTIONS = {
  "activations", "clip", "activation", "out_dtype", "prepack", "device", "group_size", "rotate", "weight_clip",
  "group_scales", "zero_point", "checkpoint_format",
}

--- Makes a layer from a checkpoint, whatever of the formats above it is in.
-- @tparam file f from @{int4mm.io.safetensors.open_safetensors}
-- @tparam string layer what stands before `.weight` and so on: "model.layers.0.mlp.down_proj"; "" for tensors with
--   nothing before them
-- @tparam[opt] table opts
--
-- - `clip`, `activation`, `out_dtype`, `prepack`: as in @{int4mm.linear.linear}
-- - `activations`: the same; by default "float" for compressed-tensors, GPTQ and AWQ, else "int4"
-- - `device`: where the layer is to be, "cpu" by default; a weight of floats is quantised there
-- - `rotate`, `weight_clip`, `group_scales`, `zero_point`: the same, for a weight of floats
-- - `group_size`: the same, for a weight of floats; of others what config.json says, which is needed where the last
--   group is shorter
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
  opts = check.options(NAME, opts, OPTIONS)
  enums.device(NAME, "device", opts.device, "cpu")
  if opts.group_size ~= nil then check.integer(NAME, "group_size", opts.group_size, 1) end
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
    weight, all = source:tensor "weight", { group_size = opts.group_size }
    for _, key in ipairs(FLOAT_ONLY) do all[key] = opts[key] end
  end
  all.activations = check.default(opts.activations, all.activations)
  all.bias = source:bias(all.scales and all.scales:size(all.scales:dim()) or weight:size(1))
  for _, key in ipairs(PASSED) do all[key] = opts[key] end
  return linear.linear(moved(weight, all, opts.device), all)
end

return checkpoint
