--- Ways to hold and multiply the weight of a linear layer: float32, and int4 with activations of 16, 8 and 4 bits.
--
-- A scheme has a `name`, whether its results have the same bits on every backend (`exact`), and `linear(weight, opts)`:
-- a layer from a weight [N, K] float32 on the CPU with `bias` ([N]) and `activation`, an object with `bytes()` and
-- `to(device)` that is called as `layer(x, { residual = r })`.

local ffi = require "ffi"
local floats = require "floats"
local q = require "int4mm"

local schemes = {}

-- ---- float32, by OpenBLAS where there is one ----

local has_blas, blas = pcall(ffi.load, "libopenblas.so.0")
if has_blas then
  ffi.cdef [[
    void minilm_sgemm(int order, int transpose_a, int transpose_b, int M, int N, int K, float alpha, const float *a,
                      int lda, const float *b, int ldb, float beta, float *c, int ldc) __asm__("cblas_sgemm");
  ]]
end
local ROW_MAJOR, AS_IT_IS, TRANSPOSED = 101, 111, 112

--- What multiplies floats: "OpenBLAS" or "plain Lua".
schemes.float_library = has_blas and "OpenBLAS" or "plain Lua"

-- Memory behind a pointer lives as long as its tensor, which is in use until it is given to this.
local function keep() end

-- x w^T [M, N] of x [M, K] and w [N, K].
local function product(x, w)
  if not has_blas then return floats.linear(x, w) end
  local M, K, N = x:size(1), x:size(2), w:size(1)
  local y = q.empty { M, N }
  blas.minilm_sgemm(ROW_MAJOR, AS_IT_IS, TRANSPOSED, M, N, K, 1, x:data(), K, w:data(), K, 0, y:data(), N)
  keep(x, w)
  return y
end

local FloatLayer = {}
FloatLayer.__index = FloatLayer

function FloatLayer:__call(x, opts)
  local y = q.add(product(x, self.weight), self.bias)
  if self.activation == "gelu" then y = q.gelu(y, { out = y }) end
  if opts and opts.residual then y = q.add(y, opts.residual, { out = y }) end
  return y
end

function FloatLayer:bytes() return self.weight:bytes() + self.bias:bytes() end

local function float_layer(weight, opts)
  return setmetatable({ weight = weight, bias = opts.bias, activation = opts.activation }, FloatLayer)
end

-- ---- int4 ----

--- The largest block of a rotation that divides K.
function schemes.largest_block(K)
  local block = 1024
  while K % block ~= 0 do block = block / 2 end
  return block
end

-- A layer as q.linear makes it with these options; `rotate = "largest"` stands for the block.
local function quantised(options)
  return function(weight, opts)
    local all = { bias = opts.bias, activation = opts.activation }
    for key, value in pairs(options) do all[key] = value end
    if options.rotate == "largest" then all.rotate = schemes.largest_block(weight:size(2)) end
    return q.linear(weight, all)
  end
end

schemes.list = {
  { name = "float32", exact = false, linear = float_layer, on_cpu = true },
  { name = "W4A16, groups of 128", exact = false,
    linear = quantised { activations = "float", group_size = 128, rotate = false } },
  { name = "W4A8, groups of 128", exact = true,
    linear = quantised { activations = "int8", group_size = 128, rotate = false } },
  { name = "W4A4", exact = true, linear = quantised { rotate = false, weight_clip = 1 } },
  { name = "W4A4, rotated", exact = true, linear = quantised { rotate = "largest", weight_clip = 1 } },
  { name = "W4A4, rotated and clipped", exact = true, linear = quantised { rotate = "largest", clip = "mse" } },
}

return schemes
