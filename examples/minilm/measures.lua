--- How near embeddings are to those of float32: cosines, the neighbours found, the order of similarities.
-- Embeddings are matrices [sentences, width] float32 on the CPU, their rows of length 1.

local measures = {}

--- The product of row i of x and row j of y, from 1: their cosine.
function measures.cosine(x, i, y, j)
  local width, sum = x:size(2), 0
  local a, b = x:data() + (i - 1) * width, y:data() + (j - 1) * width
  for c = 0, width - 1 do sum = sum + a[c] * b[c] end
  return sum
end

--- The mean and the least of the cosines of rows with their counterparts.
function measures.cosines(x, y)
  local sum, least = 0, math.huge
  for i = 1, x:size(1) do
    local cosine = measures.cosine(x, i, y, i)
    sum, least = sum + cosine, math.min(least, cosine)
  end
  return sum / x:size(1), least
end

--- The rows of x that are nearest to row j of y, nearest first, the lower index first of equals.
-- @tparam tensor x
-- @tparam tensor y
-- @tparam number j
-- @tparam number count how many
-- @tparam[opt] number except an index that is left out
-- @treturn table of { index =, cosine = }
function measures.nearest(x, y, j, count, except)
  local all = {}
  for i = 1, x:size(1) do
    if i ~= except then all[#all + 1] = { index = i, cosine = measures.cosine(x, i, y, j) } end
  end
  table.sort(all, function(a, b) return a.cosine > b.cosine or a.cosine == b.cosine and a.index < b.index end)
  for i = #all, count + 1, -1 do all[i] = nil end
  return all
end

--- The share of each sentence's `count` nearest neighbours in y that are among those in x as well, over all sentences.
function measures.recall(x, y, count)
  local found, total = 0, 0
  for i = 1, x:size(1) do
    local expected = {}
    for _, neighbour in ipairs(measures.nearest(y, y, i, count, i)) do expected[neighbour.index] = true end
    for _, neighbour in ipairs(measures.nearest(x, x, i, count, i)) do
      total, found = total + 1, found + (expected[neighbour.index] and 1 or 0)
    end
  end
  return found / total
end

-- Ranks from 1; equals have the mean of theirs.
local function ranks_of(values)
  local order, ranks = {}, {}
  for i = 1, #values do order[i] = i end
  table.sort(order, function(a, b) return values[a] < values[b] end)
  local first = 1
  while first <= #order do
    local last = first
    while last < #order and values[order[last + 1]] == values[order[first]] do last = last + 1 end
    for i = first, last do ranks[order[i]] = (first + last) / 2 end
    first = last + 1
  end
  return ranks
end

--- Spearman's rank correlation of two lists of numbers.
function measures.spearman(a, b)
  local ranks_a, ranks_b, mean = ranks_of(a), ranks_of(b), (#a + 1) / 2
  local both, of_a, of_b = 0, 0, 0
  for i = 1, #a do
    local x, y = ranks_a[i] - mean, ranks_b[i] - mean
    both, of_a, of_b = both + x * y, of_a + x * x, of_b + y * y
  end
  return both / math.sqrt(of_a * of_b)
end

--- The cosines of all pairs of rows.
function measures.similarities(x)
  local list = {}
  for i = 1, x:size(1) do
    for j = i + 1, x:size(1) do list[#list + 1] = measures.cosine(x, i, x, j) end
  end
  return list
end

return measures
