--- The oracle: the product in plain LuaJIT, straight from its definition.
--
-- No function of the C core computes here (one checks the arguments): nibbles, sums, scales and roundings are written
-- a second time, plainly, so that a mistake has to be made twice to stay unseen. A sum of int4 products is a whole
-- number far below 2^53, so Lua's doubles hold it exactly.
-- @module int4mm.reference

local ffi = require "ffi"
local bit = require "bit"
local enums = require "int4mm.enums"
local numeric = require "int4mm.internal.numeric"
local ops = require "int4mm.ops"
local tensor = require "int4mm.tensor"

local band, rshift = bit.band, bit.rshift
local to_float, from_float_bits = numeric.to_float, numeric.from_float_bits

-- The value of a nibble, by encoding: two's complement, or value + 8.
local values = {
  twos_complement = function(nibble) return nibble < 8 and nibble or nibble - 16 end,
  offset = function(nibble) return nibble - 8 end,
}

-- Decodes packed words into int8 [vectors][K]: `along` words lead from one word of a vector to its next, `across` from
-- one vector to the next.
local function decode(words, vectors, k8, along, across, encoding)
  local value = values[encoding]
  local K = 8 * k8
  local plain = ffi.new("int8_t[?]", vectors * K)
  for v = 0, vectors - 1 do
    for j = 0, k8 - 1 do
      local word = words[v * across + j * along]
      for i = 0, 7 do plain[v * K + 8 * j + i] = value(band(rshift(word, 4 * i), 15)) end
    end
  end
  return plain
end

-- A float32 vector as Lua numbers, counted from 0.
local function floats(t)
  local bits = ffi.cast("uint32_t *", t:data())
  local list = {}
  for i = 0, t:numel() - 1 do list[i] = from_float_bits(bits[i]) end
  return list
end

local function dot(a, b, K)
  local acc = 0
  for k = 0, K - 1 do acc = acc + a[k] * b[k] end
  return acc
end

-- The contract's arithmetic for one output, every step rounded to float32. A double holds the product of two float32
-- exactly, and their sum with more than twice the digits, so that rounding it is rounding once.
local function scale(acc, scale_a, scale_b, bias)
  local x = to_float(to_float(to_float(acc) * scale_a) * scale_b)
  return bias and to_float(x + bias) or x
end

-- All operands on the CPU and known to fit each other.
local function multiply(out, a_packed, b_packed, scale_a, scale_b, opts)
  local M, k8, N = a_packed:size(1), a_packed:size(2), out:size(2)
  if M * N == 0 then return end
  local K, lda, ldb = 8 * k8, a_packed.stride, b_packed.stride
  local nk = opts.layout_b == "nk"
  local a = decode(a_packed:data(), M, k8, 1, lda, opts.encoding_a or "twos_complement")
  local b = decode(b_packed:data(), N, k8, nk and 1 or ldb, nk and ldb or 1, opts.encoding_b or "twos_complement")
  local rows, columns, bias = floats(scale_a), floats(scale_b), opts.bias and floats(opts.bias)
  local dtype = enums.dtypes[out.dtype]
  local encode, data, ldo = dtype.encode, ffi.cast(dtype.pointer, out:data()), out.stride
  for m = 0, M - 1 do
    for n = 0, N - 1 do
      data[m * ldo + n] = encode(scale(dot(a + m * K, b + n * K, K), rows[m], columns[n], bias and bias[n]))
    end
  end
  tensor.keep(out, a_packed, b_packed)
end

local OPTIONS = { "out", "out_dtype", "bias", "encoding_a", "encoding_b", "layout_b" }

--- The product in plain LuaJIT: slow on purpose, and what every other backend is compared with, bit for bit.
-- GPU operands are copied to the CPU, the result to where `a_packed` is.
-- @function int4_matmul_reference
-- @tparam tensor a_packed [M, K/8] int32
-- @tparam tensor b_packed [K/8, N] int32, or [N, K/8] with `layout_b = "nk"`; not prepacked
-- @tparam tensor scale_a [M] float32
-- @tparam tensor scale_b [N] float32
-- @tparam[opt] table opts `out`, `out_dtype`, `bias`, `encoding_a`, `encoding_b`, `layout_b` as in
--   @{int4mm.ops.int4_matmul}
-- @treturn tensor [M, N]
-- @raise as int4_matmul
return function(a_packed, b_packed, scale_a, scale_b, opts)
  local name = "int4_matmul_reference"
  opts = ops.check_matmul(name, a_packed, b_packed, scale_a, scale_b, opts, OPTIONS)
  local device = a_packed.c.device
  local here = {}
  for key, value in pairs(opts) do here[key] = value end
  local function on_cpu(t) return tensor.on_cpu(name, t) end
  a_packed, b_packed, scale_a, scale_b = on_cpu(a_packed), on_cpu(b_packed), on_cpu(scale_a), on_cpu(scale_b)
  here.bias = here.bias and on_cpu(here.bias)
  local out = opts.out
  if not out or out.c.device ~= enums.CPU then
    local M, N = a_packed:size(1), b_packed:size(here.layout_b == "nk" and 1 or 2)
    local dtype = out and out.dtype or here.out_dtype or "float16"
    here.out = tensor.alloc(name, 2, M, N, enums.dtypes[dtype], enums.CPU)
  end
  multiply(here.out, a_packed, b_packed, scale_a, scale_b, here)
  if out then return out == here.out and out or tensor.copy(name, out, here.out) end
  return tensor.convert(name, here.out, device, enums.dtypes[here.out.dtype])
end
