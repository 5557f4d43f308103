--- e^x, tanh, erf and the activations in plain Lua numbers, each step rounded to float32.
--
-- The oracle of core/activation.h, written apart from the C core on purpose. Products, sums and quotients of float32
-- are exact enough in double that rounding them once more gives what float32 arithmetic gives (53 >= 2 * 24 + 2).
-- @module int4mm.internal.activation

local numeric = require "int4mm.internal.numeric"

local f = numeric.to_float
local NAN = 0 / 0

local activation = {}

--- Coefficients as float32, the highest power first.
local function coefficients(list)
  for i, c in ipairs(list) do list[i] = f(c) end
  return list
end

local EXP = coefficients { 0.00138380018, 0.00836916547, 0.0416681021, 0.166665167, 0.49999994 }
local TANH = coefficients { -0.00569229666, 0.0206281673, -0.0537365153, 0.133314058, -0.333332807 }
local ERF = coefficients {
  7.80690389e-05, -0.00079978531, 0.0051871622, -0.0268533472, 0.112835787, -0.37612626, 0.128379166,
}
-- ln(1 - erf(x)) / -x
local ERFC_EXPONENT = coefficients {
  1.15235098e-05, -0.000325668778, 0.00365384785, -0.023785565, 0.106263444, 0.63513571, 1.12865222,
}
local LOG2_E, MINUS_LN2_LOW = f(1.44269502), f(2.12194442e-4)
local SQRT_HALF, SQRT_2_OVER_PI, KAPPA = f(0.707106769), f(0.797884583), f(0.044715)

-- By Horner's rule.
local function polynomial(list, x)
  local sum = list[1]
  for i = 2, #list do sum = f(f(sum * x) + list[i]) end
  return sum
end

-- n and e^(x - n ln 2), n the whole number nearest to x / ln 2.
local function split(x)
  local n = f(f(f(x * LOG2_E) + 12582912) - 12582912)
  local r = f(f(x - f(n * 0.693359375)) + f(n * MINUS_LN2_LOW))
  return n, f(1 + f(r + f(f(r * r) * polynomial(EXP, r))))
end

--- e^x.
-- @tparam number x a float32
function activation.exp(x)
  if x ~= x then return NAN end
  local n, p = split(math.min(math.max(x, -104), 89))
  local half = math.floor(n / 2)
  return f(f(p * 2 ^ half) * 2 ^ (n - half))
end

-- The odd function that is `magnitude` of |x|.
local function odd(magnitude, x)
  if x ~= x then return NAN end
  if x < 0 or (x == 0 and 1 / x < 0) then return -magnitude(-x) end
  return magnitude(x)
end

local function tanh_magnitude(a)
  if a < 0.625 then
    local z = f(a * a)
    return f(a + f(a * f(z * polynomial(TANH, z))))
  end
  local n, p = split(2 * math.min(a, 10))
  return f(1 - f(2 / f(f(p * 2 ^ n) + 1)))
end

--- tanh(x).
function activation.tanh(x) return odd(tanh_magnitude, x) end

local function erf_magnitude(a)
  if a < 1 then return f(a + f(a * polynomial(ERF, f(a * a)))) end
  local b = math.min(a, 4)
  local n, p = split(-f(b * polynomial(ERFC_EXPONENT, b)))
  return f(1 - f(p * 2 ^ n))
end

--- erf(x).
function activation.erf(x) return odd(erf_magnitude, x) end

--- x where it is positive, else +0.
function activation.relu(x)
  if x ~= x then return NAN end
  return x > 0 and x or 0
end

--- x / (1 + e^-x).
function activation.silu(x) return f(x / f(1 + activation.exp(-x))) end

--- x / 2 * (1 + erf(x / sqrt 2)).
function activation.gelu(x)
  return f(f(0.5 * x) * f(1 + activation.erf(f(x * SQRT_HALF))))
end

--- x / 2 * (1 + tanh(sqrt(2 / pi) * (x + .044715 x^3))).
function activation.gelu_tanh(x)
  local cube = f(f(x * x) * x)
  return f(f(0.5 * x) * f(1 + activation.tanh(f(SQRT_2_OVER_PI * f(x + f(KAPPA * cube))))))
end

return activation
