--- A layer in floats, in plain Lua: what the examples compare int4 with.

local q = require "int4mm"

local floats = {}

--- y = x w^T + bias, summed in double.
-- @tparam tensor x [M, K] float32 on the CPU, contiguous like the others
-- @tparam tensor w [N, K] float32
-- @tparam[opt] tensor bias [N] float32
-- @treturn tensor [M, N] float32
function floats.linear(x, w, bias)
  local M, K, N = x:size(1), x:size(2), w:size(1)
  local y = q.empty { M, N }
  local from, weights, to = x:data(), w:data(), y:data()
  for m = 0, M - 1 do
    for n = 0, N - 1 do
      local sum = bias and bias:data()[n] or 0
      for k = 0, K - 1 do sum = sum + from[m * K + k] * weights[n * K + k] end
      to[m * N + n] = sum
    end
  end
  return y
end

--- The root mean square of the difference over that of the expected values.
-- @tparam tensor actual on any device, of any float dtype
-- @tparam tensor expected float32 on the CPU
-- @treturn number
function floats.relative_error(actual, expected)
  local difference, whole = 0, 0
  local got, wanted = actual:to("cpu", "float32"):data(), expected:data()
  for i = 0, expected:numel() - 1 do
    difference, whole = difference + (got[i] - wanted[i]) ^ 2, whole + wanted[i] ^ 2
  end
  return math.sqrt(difference / whole)
end

return floats
