--- Test data: the same numbers for the same seed on every machine and device.
-- @module int4mm.data

local check = require "int4mm.check"
local construct = require "int4mm.construct"
local names = require "int4mm.names"
local ops = require "int4mm.ops"

local data = {}

--- Random operands of a product: uniform int4 values and scales in (0, 1/64].
-- Philox4x32-10 with the seed as its key and sequences 1 (a), 2 (b), 3 (scale_a) and 4 (scale_b).
-- @tparam number M rows of A
-- @tparam number K columns of A and rows of B, a multiple of 8
-- @tparam number N columns of B
-- @tparam[opt] table opts `seed` (0), `device` ("cpu")
-- @treturn tensor a_packed [M, K/8] int32
-- @treturn tensor b_packed [K/8, N] int32
-- @treturn tensor scale_a [M] float32
-- @treturn tensor scale_b [N] float32
-- @treturn tensor a [M, K] int8: what a_packed holds
-- @treturn tensor b [K, N] int8
function data.generate_test_data(M, K, N, opts)
  local name = "generate_test_data"
  check.integer(name, "M", M, 0)
  check.integer(name, "K", K, 0)
  check.integer(name, "N", N, 0)
  if K % 8 ~= 0 then check.raise(name, "K is %d, expected a multiple of 8: a word holds eight values", K) end
  opts = check.options(name, opts, { "seed", "device" })
  local device = names.device_name(names.device(name, "device", opts.device, "cpu"))
  local seed = construct.check_seed(name, opts.seed)
  local function words(rows, columns, sequence)
    return construct.random(construct.empty { rows, columns, dtype = "int32", device = device },
      { seed = seed, sequence = sequence })
  end
  local function scales(length, sequence)
    return construct.random(construct.empty { length, device = device },
      { seed = seed, sequence = sequence, low = 0, high = 1 / 64 })
  end
  local a_packed, b_packed = words(M, K / 8, 1), words(K / 8, N, 2)
  return a_packed, b_packed, scales(M, 3), scales(N, 4), ops.unpack_int32_to_int4(a_packed),
    ops.unpack_int32_to_int4(b_packed, { dim = 1 })
end

return data
