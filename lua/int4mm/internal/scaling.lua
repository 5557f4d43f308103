--- What belongs to the scales of a weight, brought into the one form that a layer keeps: scales [N], or [G, N] with
-- zero points; int8 zero points of that shape; factors [G, N].
-- @module int4mm.internal.scaling

local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"
local ops = require "int4mm.ops"
local options = require "int4mm.internal.options"
local tensor = require "int4mm.tensor"

local scaling = {}

-- "[G, 40]", and where the weight is [N, K/8] " or [40, G]"
local function expected_shape(groups, N, nk)
  return ("[%s, %d]%s"):format(groups, N, nk and (" or [%d, %s]"):format(N, groups) or "")
end

-- The number of groups that a matrix [G, N], of a weight [N, K/8] also [N, G], has by its shape; `groups` where it is
-- known.
local function groups_of(name, what, t, sizes, groups)
  local rows, columns = t:size(1), t:size(2)
  if columns == sizes.N and (not groups or rows == groups) then return rows, false end
  if sizes.nk and rows == sizes.N and (not groups or columns == groups) then return columns, true end
  local hint = ""
  if rows == sizes.N and not sizes.nk then
    hint = (": is it [N, G]? %s:t() turns it"):format(what)
  elseif groups and sizes.group then
    hint = (": K = %d has %d groups of %d"):format(sizes.K, groups, sizes.group)
  end
  return check.raise(name, "%s is %s, expected %s%s", what, check.describe(t),
    expected_shape(groups or "G", sizes.N, sizes.nk), hint)
end

local function check_place(name, what, t, weight)
  if t.c.device ~= weight.c.device then
    check.raise(name, "%s is on %s but weight is on %s", what, t.device, weight.device)
  end
  return t
end

-- A matrix for groups as [G, N].
local function by_group(name, what, t, sizes, groups)
  local count, turned = groups_of(name, what, t, sizes, groups)
  return turned and t:t() or t, count
end

-- The values of K in each of `groups`: the option, or what follows from their number; nil for one group or none.
local function group_size(name, what, sizes, groups)
  if sizes.group then return sizes.group end
  if groups <= 1 then return nil end
  local size = sizes.K / groups
  if size % 32 ~= 0 then
    check.raise(name, "%s has %d groups for K = %d, which is no multiple of 32 for each: give group_size if the last "
      .. "is shorter", what, groups, sizes.K)
  end
  return size
end

-- Refuses int8 values outside a range, which a GPU would not tell.
local function check_values(name, what, t, low, high)
  local here = tensor.on_cpu(name, t)
  local data, columns, stride = here:data(), here:size(here:dim()), here.stride
  for i = 0, here:dim() == 2 and here:size(1) - 1 or 0 do
    for j = 0, columns - 1 do
      local value = data[i * stride + j]
      if value < low or value > high then
        check.raise(name, "%s has %d%s, expected values from %d to %d", what, value,
          here:dim() == 2 and (" for group %d, output %d"):format(i + 1, j + 1) or (" for output %d"):format(j + 1),
          low, high)
      end
    end
  end
  tensor.keep(here)
end

-- Words of zero points, eight outputs to one, as int8.
local function unpacked_zeros(name, t, sizes, groups)
  local words, opts = math.ceil(sizes.N / 8), { encoding = not tensor.is_marked(t) and sizes.encoding or nil }
  opts.length = sizes.N
  local vector = t:dim() == 1
  if vector then t = tensor.view(name, t, 2, 1, t:size(1)) end
  if t:size(2) == words and t:size(1) == groups and t.c.packing ~= 1 then
    opts.dim = 2
    local plain = ops.unpack_int32_to_int4(t, opts)
    return vector and plain:view(sizes.N) or plain
  elseif sizes.nk and not vector and t:size(1) == words and t:size(2) == groups then
    opts.dim = 1
    return ops.unpack_int32_to_int4(t, opts):t()
  end
  return check.raise(name, "zeros is %s, expected %s: eight zero points to a word", check.describe(t),
    vector and ("[%d]"):format(words) or expected_shape(groups, words, sizes.nk))
end

local function take_zeros(name, zeros, layer, sizes, groups)
  check_place(name, "zeros", tensor.check(name, "zeros", zeros), layer.weight)
  if zeros.dtype ~= "int32" and zeros.dtype ~= "int8" then
    check.raise(name, "zeros is %s, expected int8, or int32 words of eight: whole numbers that are taken from the "
      .. "weight's values", check.describe(zeros))
  end
  if zeros:dim() ~= layer.scales:dim() then
    check.raise(name, "zeros is %s but scales is %s: they go together, one zero point for each scale",
      check.describe(zeros), check.describe(layer.scales))
  end
  if zeros.dtype == "int32" then return unpacked_zeros(name, zeros, sizes, groups) end
  if zeros:dim() == 2 then
    zeros = by_group(name, "zeros", zeros, sizes, groups)
  elseif zeros:size(1) ~= sizes.N then
    check.raise(name, "zeros is %s, expected [%d]: one for each output", check.describe(zeros), sizes.N)
  end
  check_values(name, "zeros", zeros, -120, 119)
  return zeros
end

local function take_factors(name, factors, layer, sizes)
  check_place(name, "factors", tensor.check(name, "factors", factors), layer.weight)
  if factors.dtype ~= "int8" or factors:dim() ~= 2 then
    check.raise(name, "factors is %s, expected a matrix of int8, %s", check.describe(factors),
      expected_shape("G", sizes.N, sizes.nk))
  end
  local groups
  factors, groups = by_group(name, "factors", factors, sizes, sizes.groups)
  check_values(name, "factors", factors, 1, 15)
  return factors, groups
end

local function check_scales(name, scales, layer, sizes)
  check_place(name, "scales", tensor.check(name, "scales", scales), layer.weight)
  if scales:dim() == 2 and enums.float_dtypes[scales.dtype] then return end
  if scales:dim() == 1 and scales.dtype == "float32" and scales:size(1) == sizes.N then return end
  if scales:dim() == 1 then
    check.raise(name, "scales is %s, expected [%d] float32: one for each output", check.describe(scales), sizes.N)
  end
  check.raise(name, "scales is %s, expected %s of floats: one for each group and output", check.describe(scales),
    expected_shape("G", sizes.N, sizes.nk))
end

--- The option group_size, checked; 0 where there is none. Checks the tensors `zeros` and `factors` as well.
function scaling.group_size(name, opts, K)
  local group = options.scaling(name, opts)
  return group == 0 and 0 or options.group_size(name, group, K)
end

--- Sets `scales`, `zeros`, `factors` and `group_size` of a layer that has its weight and sizes.
-- @tparam string name the function that the user called
-- @tparam table layer
-- @tparam table given `scales`, `zeros`, `factors`, `group_size`
-- @tparam boolean nk whether matrices may be [N, G]
-- @tparam string encoding of zero points in words
function scaling.set(name, layer, given, nk, encoding)
  local group = scaling.group_size(name, given, layer.in_features)
  local sizes = { K = layer.in_features, N = layer.out_features, nk = nk, encoding = encoding }
  if group > 0 then
    sizes.group, sizes.groups = group, math.ceil(sizes.K / group)
  end
  check_scales(name, given.scales, layer, sizes)
  layer.scales = given.scales
  local groups
  if layer.scales:dim() == 2 then
    if given.factors ~= nil then
      check.raise(name, "factors is given, but scales is %s: factors belong to scales [%d], one for each output",
        check.describe(layer.scales), sizes.N)
    end
    layer.scales, groups = by_group(name, "scales", layer.scales, sizes, sizes.groups)
    layer.group_size = group_size(name, "scales", sizes, groups)
  elseif given.factors ~= nil then
    if given.zeros ~= nil then
      check.raise(name, "zeros and factors are given: a weight with factors has no zero points")
    end
    layer.factors, groups = take_factors(name, given.factors, layer, sizes)
    layer.group_size = group_size(name, "factors", sizes, groups)
  elseif sizes.groups and sizes.groups > 1 then
    check.raise(name, "group_size is %d, but scales is %s and there are no factors: scales for groups are %s", group,
      check.describe(layer.scales), expected_shape(sizes.groups, sizes.N, nk))
  end
  if given.zeros ~= nil then layer.zeros = take_zeros(name, given.zeros, layer, sizes, groups or 1) end
end

return scaling
