--- Attention in float32, on the CPU: products of activations with activations, which nothing was quantised for.
--
-- Rows of x belong to sentences that follow one another; each sentence attends to itself alone, so there is no padding.
-- Sums are double, in one order, so that the result has the same bits on every machine.

local q = require "int4mm"

-- Memory behind a pointer lives as long as its tensor, which is in use until it is given to this.
local function keep() end

-- Offsets into tensors are numbers beside a pointer, not pointers of their own, which would be objects.

-- The product of n floats of a from offset i and of b from offset j, eight at a time.
local function dot(a, i, b, j, n)
  local sum = 0
  for _ = 1, n / 8 do
    sum = sum + (((a[i] * b[j] + a[i + 1] * b[j + 1]) + (a[i + 2] * b[j + 2] + a[i + 3] * b[j + 3]))
      + ((a[i + 4] * b[j + 4] + a[i + 5] * b[j + 5]) + (a[i + 6] * b[j + 6] + a[i + 7] * b[j + 7])))
    i, j = i + 8, j + 8
  end
  for k = 0, n % 8 - 1 do sum = sum + a[i + k] * b[j + k] end
  return sum
end

-- Of one head of a sentence of n rows: scores [n, n] at offset `to`, from rows of `depth` floats at offset `from`.
local function head_scores(scores, to, query, key, from, n, width, depth)
  local scale = 1 / math.sqrt(depth)
  for i = 0, n - 1 do
    for j = 0, n - 1 do
      scores[to + i * n + j] = scale * dot(query, from + i * width, key, from + j * width, depth)
    end
  end
end

-- The sums of value's rows at offset `at`, weighted by the rows of weights [n, n] at offset `by`, to the same place in
-- context; four columns at a time.
local function head_context(context, value, at, weights, by, n, width, depth)
  for i = 0, n - 1 do
    for d = at, at + depth - 1, 4 do
      local s0, s1, s2, s3 = 0, 0, 0, 0
      for j = 0, n - 1 do
        local weight, v = weights[by + i * n + j], d + j * width
        s0, s1 = s0 + weight * value[v], s1 + weight * value[v + 1]
        s2, s3 = s2 + weight * value[v + 2], s3 + weight * value[v + 3]
      end
      local c = d + i * width
      context[c], context[c + 1], context[c + 2], context[c + 3] = s0, s1, s2, s3
    end
  end
end

--- softmax(query key^T / sqrt(depth)) value, by heads and sentences.
-- @tparam tensor query [T, width] float32, as key and value, on any device
-- @tparam tensor key
-- @tparam tensor value
-- @tparam table lengths the rows of each sentence, T together
-- @tparam number heads how many; each has depth = width / heads columns, a multiple of 4
-- @treturn tensor [T, width] on the device of query
return function(query, key, value, lengths, heads)
  local device, width = query.device, query:size(2)
  query, key, value = query:to "cpu", key:to "cpu", value:to "cpu"
  local context, depth, first = q.empty { query:size(1), width }, width / heads, 0
  local a, b, v, c = query:data(), key:data(), value:data(), context:data()
  for _, n in ipairs(lengths) do
    local weights = q.empty { heads * n, n }
    local w = weights:data()
    for head = 0, heads - 1 do head_scores(w, head * n * n, a, b, first + head * depth, n, width, depth) end
    q.softmax(weights, { out = weights })
    for head = 0, heads - 1 do head_context(c, v, first + head * depth, w, head * n * n, n, width, depth) end
    first = first + n * width
  end
  keep(query, key, value)
  return context:to(device)
end
