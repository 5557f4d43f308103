--- Whole layers: activations quantised, or as they are, multiplied by an int4 weight, scaled, and what follows.
--
-- @{int4_linear} is one call on a packed weight. @{linear} makes an object that holds a weight and what belongs to it:
--
--     local layer = q.linear(weight, { bias = bias })   -- weight [N, K] of floats, as PyTorch has it
--     local y = layer(x)                                -- x [M, K], y [M, N]
-- @module int4mm.linear

local ffi = require "ffi"
local binding = require "int4mm.lib"
local check = require "int4mm.internal.check"
local devices = require "int4mm.device"
local enums = require "int4mm.enums"
local memory = require "int4mm.internal.memory"
local numeric = require "int4mm.internal.numeric"
local ops = require "int4mm.ops"
local options = require "int4mm.internal.options"
local scaling = require "int4mm.internal.scaling"
local tensor = require "int4mm.tensor"

local lib = binding.lib
local linear = {}

-- ---- one call ----

local TENSORS = { "bias", "residual", "workspace", "out" } -- options that are tensors
local OPTIONS = {
  "bias", "activations", "rotate", "clip", "activation", "residual", "zeros", "factors", "group_size", "out",
  "out_dtype", "layout_b", "encoding_b", "workspace", "kernel", "stream",
}
local POINTERS = { "bias", "residual", "workspace", "zeros", "factors" } -- that are only read, and their fields in C
local FIELDS = { zeros = "zero_b", factors = "factor_b" }

-- The options as the C core takes them, and the tensors among them.
local function make_args(name, x, b_packed, opts)
  local args = ffi.new("int4mm_linear_args")
  args.out_dtype = options.out_dtype(name, opts, enums.float_dtypes[x.dtype] and x.dtype or "float16")
  args.encoding_b = options.encoding(name, opts, "encoding_b", "b_packed", b_packed)
  args.layout_b = options.layout_b(name, opts, b_packed)
  args.group = options.scaling(name, opts)
  args.activations = options.activations(name, opts)
  args.rotate = options.rotation(name, opts, "b_packed", b_packed)
  local clip, mse = options.clip(name, opts.clip)
  args.clip, args.clip_mse = numeric.float_argument(0, clip), mse
  args.activation = check.choice(name, "activation", opts.activation, enums.activations, "none")
  args.stream = devices.stream_handle(name, opts.stream, x.c.device)
  if opts.kernel ~= nil then args.kernel = opts.kernel end
  for i = 1, #POINTERS do
    local key = POINTERS[i]
    if opts[key] ~= nil then args[FIELDS[key] or key] = opts[key].c end
  end
  return args
end

-- Checks the tensors of a call and its options, for the oracle as well. Returns the options as a table.
function linear.check_tensors(name, x, b_packed, scale_b, opts, known)
  opts = check.options(name, opts, known or OPTIONS)
  tensor.check(name, "x", x)
  tensor.check(name, "b_packed", b_packed)
  tensor.check(name, "scale_b", scale_b)
  for _, key in ipairs(TENSORS) do
    if opts[key] ~= nil then tensor.check(name, key, opts[key]) end
  end
  options.check_kernel(name, opts)
  return opts
end

local function call_linear(args) return lib.int4mm_linear(args) end

local function run(name, x, b_packed, scale_b, opts)
  local args = make_args(name, x, b_packed, opts)
  local out = opts.out or tensor.released()
  args.x, args.b_packed, args.scale_b, args.out = x.c, b_packed.c, scale_b.c, out.c
  local status
  if opts.out then
    status = memory.with_retry(x.c.device, call_linear, args)
  else
    local nk = args.layout_b == enums.layouts_b.nk
    local bytes = tonumber(x.c.shape[0]) * tonumber(b_packed.c.shape[nk and 0 or 1])
      * enums.dtypes[enums.dtype_names[args.out_dtype]].bytes
    status = memory.with_room(x.c.device, bytes, call_linear, args)
  end
  binding.check(name, status)
  tensor.keep(x, b_packed, scale_b, opts)
  return out
end

--- A layer in one call: x is rotated and quantised to int4 or int8 by rows, as @{int4mm.ops.quantize} does it, or stays
-- as it is, and is multiplied as in @{int4mm.ops.int4_matmul}; then
-- out[m, n] = round(activation(float32(acc[m, n]) * scale_x[m] * scale_b[n] + bias[n]) + residual[m, n]), in float32
-- with every step rounded once: the same bits on every backend, but for floats. A row of x with NaN or an infinity
-- gives a row of NaN.
-- On a GPU the product's start overlaps the quantising, and the call may be captured into a CUDA graph.
-- @tparam tensor x [M, K] float32, float16 or bfloat16
-- @tparam tensor b_packed [K/8, N] int32, or [N, K/8] with `layout_b = "nk"`, or a weight from @{int4mm.ops.prepack};
--   where `rotate` is used, quantised with the same rotation
-- @tparam tensor scale_b [N] float32, or group scales, as in @{int4mm.ops.int4_matmul}
-- @tparam[opt] table opts
--
-- - `bias`: a tensor [N] float32
-- - `activations`: what x becomes: "int4" (the default), "int8", or "float", which is not quantised
-- - `rotate`, `clip`: how x is quantised, as in @{int4mm.ops.quantize}; `rotate` by default as the weight was, where
--   its words know that, and false for an x that is rotated already
-- - `zeros`, `factors`, `group_size`: of the weight, as in @{int4mm.ops.int4_matmul}
-- - `activation`: "none", "relu", "silu", "gelu" (exact, by erf) or "gelu_tanh"
-- - `residual`: a tensor [M, N] of a float dtype, added after the activation
-- - `out`: a tensor [M, N] to write to, apart from the others; `out_dtype`: of a new result, by default x's
-- - `layout_b`, `encoding_b`: of a weight that does not know its own
-- - `workspace`: a vector of int8 of @{linear_workspace} bytes for the quantised or rotated x, instead of memory taken
--   on every call
-- - `kernel`: the name of a CUDA kernel to take
-- - `stream`: for GPU tensors
-- @treturn tensor [M, N] on the device of x, where all tensors have to be
-- @raise naming the argument, what it was and what was expected
function linear.int4_linear(x, b_packed, scale_b, opts)
  local name = "int4_linear"
  return (run(name, x, b_packed, scale_b, linear.check_tensors(name, x, b_packed, scale_b, opts)))
end

--- The bytes of workspace that @{int4_linear} needs for x [M, K].
-- @tparam number M
-- @tparam number K
-- @tparam[opt] string activations "int4" (the default), "int8" or "float"
-- @treturn number
function linear.linear_workspace(M, K, activations)
  local name = "linear_workspace"
  check.integer(name, "M", M, 0)
  check.integer(name, "K", K, 0)
  local kind = check.choice(name, "activations", activations, enums.activation_kinds, "int4")
  return tonumber(lib.int4mm_linear_workspace(M, K, kind))
end

-- ---- a layer ----

local Linear = { __name = "int4mm.linear" }
Linear.__index = Linear

--- Whether a value is a layer. By name, so that those made before the modules were loaded anew are too.
-- @local
function linear.is_linear(value)
  local metatable = type(value) == "table" and getmetatable(value)
  return type(metatable) == "table" and metatable.__name == Linear.__name
end

local NEW_OPTIONS = {
  "bias", "scales", "zeros", "factors", "group_size", "layout", "encoding", "order", "rotate", "clip", "weight_clip",
  "group_scales", "zero_point", "activations", "activation", "out_dtype", "prepack",
}
local OF_WORDS = { "scales", "zeros", "factors", "encoding", "order" }
local OF_FLOATS = { "weight_clip", "group_scales", "zero_point" }

-- Refuses options for the other kind of weight.
local function refuse_options(name, keys, opts, message, ...)
  for _, key in ipairs(keys) do
    if opts[key] ~= nil then check.raise(name, "%s is given, but weight is " .. message, key, ...) end
  end
end

-- The largest block of a power of four up to 256 that divides K, whose rotation ends with an exact scale.
local function default_block(K)
  for _, block in ipairs { 256, 64, 16, 4 } do
    if K % block == 0 then return block end
  end
  return 0
end

local DIMS = { nk = 2, kn = 1 } -- that is packed, by layout

-- Words and scales of a float weight; sets the layer's sizes and rotation.
local function quantize_weight(name, layer, weight, opts)
  refuse_options(name, OF_WORDS, opts, "%s and will be quantised: it is for packed words", weight.dtype)
  local dim = check.choice(name, "layout", opts.layout, DIMS, "nk")
  local K = weight:size(dim)
  layer.in_features, layer.out_features = K, weight:size(3 - dim)
  if opts.rotate == nil or opts.rotate == true then
    layer.rotate = default_block(K)
  else
    layer.rotate = options.block(name, "rotate", opts.rotate)
  end
  local given = { group_size = opts.group_size }
  scaling.group_size(name, given, K)
  local beside -- zero points or factors
  layer.weight, given.scales, beside = ops.quantize_as(name, "weight", weight, {
    dim = dim, rotate = layer.rotate > 0 and layer.rotate or nil, clip = check.default(opts.weight_clip, "mse"),
    group_size = opts.group_size, group_scales = opts.group_scales, zero_point = opts.zero_point,
  })
  given[opts.zero_point and "zeros" or "factors"] = beside
  scaling.set(name, layer, given, dim == DIMS.nk)
end

-- That what quantize wrote beside the scales of words is given; factors may have been multiplied into scales of groups.
local function check_beside(name, words, opts)
  local with = options.is_marked(words) and words.packing.with
  if not with or opts[with] ~= nil or with == "factors" and opts.scales:dim() == 2 then return end
  check.raise(name, "weight was quantised with %s: give them as %s",
    with == "zeros" and "zero points" or "integer group scales", with)
end

-- Words that are packed already.
local function take_words(name, layer, words, opts)
  if words.layout ~= "rows" then
    check.raise(name, "weight is prepacked: give the words that it was made from, and prepack = true")
  end
  if opts.scales == nil then
    check.raise(name, "scales is nil: a weight of packed words comes with its scales, a tensor [N] float32, or [G, N] "
      .. "of floats for groups")
  end
  refuse_options(name, OF_FLOATS, opts, "packed already: it is for a weight of floats")
  local marked = options.is_marked(words)
  local dim = marked and words.packing.dim or check.choice(name, "layout", opts.layout, DIMS, "nk")
  if marked and opts.layout ~= nil and DIMS[opts.layout] ~= dim then
    check.raise(name, "layout is %s, but weight was packed along dim %d; leave layout out",
      check.describe(opts.layout), dim)
  end
  local encoding = enums.encoding_names[options.encoding(name, opts, "encoding", "weight", words)]
  local scales, N = tensor.check(name, "scales", opts.scales), words:size(3 - dim)
  if not marked then
    if scales:dim() == 1 and scales:size(1) ~= N and scales:size(1) == words:size(dim) then
      check.raise(name, 'scales is %s, but weight is read as %s, which has %d outputs: give layout = "%s"',
        check.describe(scales), dim == 2 and "[N, K/8]" or "[K/8, N]", N, dim == 2 and "kn" or "nk")
    end
    words = words:narrow(1, 1, words:size(1)):mark_ { dim = dim, encoding = encoding }
  end
  layer.weight = words
  layer.in_features, layer.out_features = words.packing.length or 8 * words:size(dim), N
  layer.rotate = options.rotation(name, opts, "weight", words)
  check_beside(name, words, opts)
  scaling.set(name, layer, opts, dim == DIMS.nk, encoding)
end

-- The order that the weight's values along K have among the inputs, checked: each input once.
local function take_order(name, layer, order)
  if order == nil then return nil end
  local K = layer.in_features
  tensor.check(name, "order", order)
  if order:dim() ~= 1 or order.dtype ~= "int32" or order:size(1) ~= K then
    check.raise(name, "order is %s, expected [%d] int32: an input for each value along K, counted from 0",
      check.describe(order), K)
  end
  if order.c.device ~= layer.weight.c.device then
    check.raise(name, "order is on %s but weight is on %s", order.device, layer.weight.device)
  end
  local seen, here = {}, tensor.on_cpu(name, order)
  for k, input in ipairs(here:totable()) do
    if input < 0 or input >= K or seen[input] then
      check.raise(name, "order has %d at index %d, expected each input from 0 to %d once", input, k, K - 1)
    end
    seen[input] = true
  end
  return order
end

-- The weight as kernels on its device read it fastest: on a GPU [K/8, N], which takes a tenth less time for few rows.
local function arrange(weight)
  if weight.c.device >= 0 and weight.packing.dim == DIMS.nk then return ops.prepack(weight) end
  return weight
end

local function check_vector(name, what, t, length, like)
  if t == nil then return nil end
  tensor.check(name, what, t)
  if t.c.rank ~= 1 or t.dtype ~= "float32" or t:size(1) ~= length then
    check.raise(name, "%s is %s, expected [%d] float32: one for each output", what, check.describe(t), length)
  end
  if t.device ~= like.device then check.raise(name, "%s is on %s but weight is on %s", what, t.device, like.device) end
  return t
end

local function check_weight(name, weight)
  tensor.check(name, "weight", weight)
  if weight.c.rank == 2 and weight.dtype ~= "int8" then return end
  check.raise(name, "weight is %s, expected a matrix of floats, or of packed words (int32)%s", check.describe(weight),
    weight.c.rank == 2 and ": pack_int4_to_int32 packs int4 values" or "")
end

--- A linear layer with an int4 weight, y = activation(x W^T + bias): an object that is called.
-- It has the fields `weight` (packed words), `scales` ([N], or [G, N] for groups), `zeros` (int8 zero points of that
-- shape), `factors` (int8 [G, N]), `group_size`, `order`, `bias`, `in_features` (K), `out_features` (N), `rotate` (0:
-- none), `clip`, `activations`, `activation` and `out_dtype` (nil: its input's), all for reading. It runs where its
-- weight is; on a GPU that is [K/8, N].
-- @tparam tensor weight [N, K] of floats, as PyTorch keeps it, or [K, N] with `layout = "kn"`; or packed words (int32)
-- @tparam[opt] table opts
--
-- - `bias`: a tensor [N] float32
-- - `layout`: "nk" (the default) or "kn"; of marked words, their own
-- - `rotate`: the block of a Hadamard rotation of weight and activations along K, which makes int4 usable for values
--   with outliers. Of a float weight by default the largest of 256, 64, 16 and 4 that divides K, false for none; words
--   from @{int4mm.ops.quantize} know theirs; of others it is the block that they were quantised with, by default none
-- - `weight_clip`: of a float weight, "mse" (the default) or a number, as `clip` in @{int4mm.ops.quantize}
-- - `group_size`: a scale for each group of so many values along K, a multiple of 32 or K, which is more accurate than
--   one for all; of packed words by default K / G
-- - `group_scales`, `zero_point`: of a float weight, as in @{int4mm.ops.quantize}
-- - `activations`: "int4" (the default), "int8" or "float", as in @{int4_linear}
-- - `clip`: of the activations; by default their largest magnitude
-- - `activation`, `out_dtype`: as in @{int4_linear}
-- - `scales`, `zeros`, `factors` as in @{int4mm.ops.int4_matmul} (matrices also [N, G] for a weight [N, K]) and
--   `encoding`: of packed words
-- - `order`: of packed words whose values along K do not stand in the order of the inputs: a vector [K] of int32, the
--   input of each, counted from 0. The layer puts its input in that order
-- - `prepack`: true keeps the weight in the layout that the CPU reads fastest; the layer then stays on the CPU
-- @treturn linear
function linear.linear(weight, opts)
  local name = "linear"
  if tensor.is_tensor(opts) then -- q.linear(q.quantize(w))
    check.raise(name, "the options are %s, expected a table: scales are given as { scales = scales }",
      check.describe(opts))
  end
  opts = check.options(name, opts, NEW_OPTIONS)
  check_weight(name, weight)
  options.clip(name, opts.clip) -- checked here rather than in the first call
  options.activations(name, opts)
  local layer = {
    clip = opts.clip, activations = check.default(opts.activations, "int4"),
    activation = check.default(opts.activation, "none"), out_dtype = opts.out_dtype,
  }
  check.choice(name, "activation", layer.activation, enums.activations)
  check.choice(name, "out_dtype", layer.out_dtype, enums.float_dtypes, "float16")
  local take = weight.dtype == "int32" and take_words or quantize_weight
  take(name, layer, weight, opts)
  layer.order = take_order(name, layer, opts.order)
  layer.bias = check_vector(name, "bias", opts.bias, layer.out_features, weight)
  if layer.rotate > 0 and layer.in_features % layer.rotate ~= 0 then
    check.raise(name, "rotate is %d, which does not divide the %d inputs", layer.rotate, layer.in_features)
  end
  layer.weight = arrange(layer.weight)
  if check.boolean(name, "prepack", opts.prepack, false) then
    if weight.device ~= "cpu" then
      check.raise(name, "prepack is true, but weight is on %s: it is for layers on the CPU, so leave it out",
        weight.device)
    end
    layer.weight = ops.prepack(layer.weight)
  end
  return setmetatable(layer, Linear)
end

local CALL_OPTIONS = { "residual", "out", "out_dtype", "workspace", "stream", "kernel" }

--- Methods of layers
-- @section methods

local TRANSPOSED = ': was its weight transposed? A weight [N, K] is layout "nk", the default, [K, N] is "kn", and '
  .. "words are packed along K"

-- That x is where the layer is and has its inputs; the C core checks the rest, but knows no layer.
local function check_input(name, layer, x)
  tensor.check(name, "x", x)
  tensor.check(name, "the layer's weight", layer.weight)
  local c = x.c
  if c.rank == 2 and enums.float_dtypes[x.dtype] and tonumber(c.shape[1]) ~= layer.in_features then
    local transposed = tonumber(c.shape[1]) == layer.out_features
    check.raise(name, "x is %s, but the layer has %d inputs and %d outputs%s", check.describe(x), layer.in_features,
      layer.out_features, transposed and TRANSPOSED or "")
  end
  if c.device ~= layer.weight.c.device then
    check.raise(name, 'x is on %s but the layer is on %s: move one of them, as in x:to "%s"', x.device,
      layer.weight.device, layer.weight.device)
  end
end

--- Runs the layer: `layer(x, opts)`.
-- @tparam tensor x [M, K] float32, float16 or bfloat16, where the layer is
-- @tparam[opt] table opts `residual`, `out`, `out_dtype`, `workspace`, `kernel` and `stream` as in @{int4_linear}
-- @treturn tensor [M, N]
function Linear:__call(x, opts)
  local name = "linear"
  opts = check.options(name, opts, CALL_OPTIONS)
  check_input(name, self, x)
  local all = {
    bias = self.bias, rotate = self.rotate, clip = self.clip, activation = self.activation, out_dtype = self.out_dtype,
    activations = self.activations, zeros = self.zeros, factors = self.factors, group_size = self.group_size,
  }
  if opts.out ~= nil then all.out_dtype = nil end
  for i = 1, #CALL_OPTIONS do
    local key = CALL_OPTIONS[i]
    if opts[key] ~= nil then all[key] = opts[key] end
  end
  if all.rotate == 0 then all.rotate = false end
  if self.order then x = x:index_select(2, self.order, { stream = opts.stream }) end
  linear.check_tensors(name, x, self.weight, self.scales, all)
  return (run(name, x, self.weight, self.scales, all))
end

--- The layer on a device; itself where it is there.
-- @tparam string device "cpu", "cuda:0" and so on
-- @treturn linear
function Linear:to(device)
  local number = enums.device("to", "device", device)
  if number == self.weight.c.device then return self end
  if self.weight.layout ~= "rows" then
    check.raise("to", "the layer was made with prepack = true, which keeps its weight on the CPU: make it without")
  end
  local moved = {}
  for key, value in pairs(self) do
    moved[key] = tensor.is_tensor(value) and value:to(device) or value
  end
  moved.weight = arrange(moved.weight)
  return setmetatable(moved, Linear)
end

local PARAMETERS = { "weight", "scales", "zeros", "factors", "order", "bias" }

--- The layer's tensors by name: `{ weight =, scales =, zeros =, factors =, order =, bias = }`, without those that it
-- does not have.
function Linear:parameters()
  local tensors = {}
  for _, key in ipairs(PARAMETERS) do tensors[key] = self[key] end
  return tensors
end

--- The bytes of its tensors.
function Linear:bytes()
  local sum = 0
  for _, t in pairs(self:parameters()) do sum = sum + t:bytes() end
  return sum
end

-- "29.4 MB"
local function size_text(bytes)
  for _, unit in ipairs { "bytes", "KB", "MB", "GB" } do
    if bytes < 1000 or unit == "GB" then return (bytes < 10 or unit == "bytes") and ("%.3g %s"):format(bytes, unit)
      or ("%.1f %s"):format(bytes, unit) end
    bytes = bytes / 1000
  end
end

--- The sizes, what it does to its input, where it is, its bytes and those of the floats that it replaces.
function Linear:__tostring()
  local parts = { ("linear %d -> %d, int4"):format(self.in_features, self.out_features) }
  if self.group_size then
    parts[#parts + 1] = ("%s of %d"):format(self.factors and "integer scales for groups" or "groups", self.group_size)
  end
  if self.zeros then parts[#parts + 1] = "zero points" end
  if self.order then parts[#parts + 1] = "inputs reordered" end
  if self.activations ~= "int4" then parts[#parts + 1] = self.activations .. " activations" end
  if self.rotate > 0 then parts[#parts + 1] = "rotated by " .. self.rotate end
  if self.clip then parts[#parts + 1] = "clip " .. self.clip end
  if self.bias then parts[#parts + 1] = "bias" end
  if self.activation ~= "none" then parts[#parts + 1] = self.activation end
  if self.weight.layout ~= "rows" then parts[#parts + 1] = "prepacked" end
  return ("%s on %s: %s, in place of %s as float16"):format(table.concat(parts, ", "), self.weight.device,
    size_text(self:bytes()), size_text(2 * self.in_features * self.out_features))
end

return linear
