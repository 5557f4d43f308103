--- Options that several functions share, from their words to the C core's numbers.
-- @module int4mm.internal.options

local check = require "int4mm.internal.check"
local enums = require "int4mm.enums"
local numeric = require "int4mm.internal.numeric"
local tensor = require "int4mm.tensor"

local options = {}

-- Whether words say themselves how they are packed; of a prepacked weight the core tells what is wrong.
function options.is_marked(words) return tensor.is_marked(words) and words.c.layout == enums.ROWS end

-- The encoding that an option names. Where `words` are read (the argument `what`) and marked, it is the mark's, with
-- which the option has to agree; dim, length and layout_b are taken in the same way.
function options.encoding(name, opts, key, what, words)
  local given = check.choice(name, key, opts[key], enums.encodings, "twos_complement")
  if not words or not options.is_marked(words) then return given end
  if opts[key] ~= nil and given ~= words.c.encoding then
    check.raise(name, '%s is "%s" but %s was packed as "%s"; leave %s out', key, opts[key], what,
      enums.encoding_names[words.c.encoding], key)
  end
  return words.c.encoding
end

function options.dim(name, opts, what, words)
  local given = enums.dim(name, opts.dim, 2)
  if not options.is_marked(words) then return given end
  if opts.dim ~= nil and opts.dim ~= words.c.packing then
    check.raise(name, "dim is %d but %s was packed along dim %d; leave dim out", opts.dim, what, words.c.packing)
  end
  return words.c.packing - 1
end

local LAYOUTS = { "kn", "nk" } -- of b_packed by the dimension it is packed along

function options.layout_b(name, opts, b_packed)
  local given = check.choice(name, "layout_b", opts.layout_b, enums.layouts_b, "kn")
  if not options.is_marked(b_packed) then return given end
  local marked = LAYOUTS[b_packed.c.packing]
  if opts.layout_b ~= nil and opts.layout_b ~= marked then
    check.raise(name, 'layout_b is "%s" but b_packed was packed along dim %d, which is "%s"; leave layout_b out',
      opts.layout_b, b_packed.c.packing, marked)
  end
  return enums.layouts_b[marked]
end

-- A block of a rotation; 0 for none. The C core checks that it is a power of two that divides the extent.
function options.block(name, key, value)
  if value == nil or value == false then return 0 end
  return check.integer(name, key, value, 4, 1024)
end

-- The block of a rotation that goes with the words of a weight, by default what they were quantised with. That was
-- perhaps none because their floats had been rotated before, and false may stand for activations that have been.
function options.rotation(name, opts, what, words)
  local given, known = options.block(name, "rotate", opts.rotate), words.c.packing ~= 0 and words.c.packed_rotate or 0
  if opts.rotate == nil then return known end
  if given > 0 and known > 0 and given ~= known then
    check.raise(name, "rotate is %d but %s was quantised with rotate = %d; leave rotate out", given, what, known)
  end
  return given
end

-- The clip as the C core takes it: the factor as a float32 (0 stands for 1), and whether to search for it.
function options.clip(name, value)
  if value == nil then return 0, 0 end
  if value == "mse" then return 0, 1 end
  -- what float32 rounds to 0 is refused as well
  if type(value) ~= "number" or not (value <= 1 and numeric.to_float(value) > 0) then
    check.raise(name, 'clip is %s, expected a number above 0 and up to 1, or "mse"', check.describe(value))
  end
  return numeric.to_float(value), 0
end

-- What a layer makes of its input; floats are not quantised, so there is nothing to clip.
function options.activations(name, opts)
  local kind = check.choice(name, "activations", opts.activations, enums.activation_kinds, "int4")
  if kind == enums.activation_kinds.float and opts.clip ~= nil then
    check.raise(name, 'clip is %s, but activations is "float", which are not quantised: leave clip out',
      check.describe(opts.clip))
  end
  return kind
end

-- The values in a group along K.
function options.group_size(name, value, K)
  check.integer(name, "group_size", value, 1)
  if value % 32 ~= 0 and value ~= K then
    check.raise(name, "group_size is %d, expected a multiple of 32, or all of K = %d", value, K)
  end
  return value
end

-- What belongs to the scales of a weight: `zeros` and `factors`, tensors, are checked; returns the group's size, 0 for
-- what follows from the number of groups.
function options.scaling(name, opts)
  if opts.zeros ~= nil then tensor.check(name, "zeros", opts.zeros) end
  if opts.factors ~= nil then tensor.check(name, "factors", opts.factors) end
  return opts.group_size == nil and 0 or check.integer(name, "group_size", opts.group_size, 1)
end

-- The C core knows which kernels there are.
function options.check_kernel(name, opts)
  if opts.kernel == nil or type(opts.kernel) == "string" then return end
  check.raise(name, "kernel is %s, expected the name of a CUDA kernel", check.describe(opts.kernel))
end

-- out_dtype's number, which has to be that of `out` where both are given
function options.out_dtype(name, opts, default)
  local dtype = check.choice(name, "out_dtype", opts.out_dtype, enums.float_dtypes, default)
  if opts.out_dtype ~= nil and opts.out ~= nil and opts.out.c.dtype ~= dtype.id then
    check.raise(name, "out is %s but out_dtype is %s; leave one of them out", opts.out.dtype, dtype.name)
  end
  return dtype.id
end

return options
