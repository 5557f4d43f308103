--- Tensors as text, after PyTorch's printing: aligned columns, four digits, the middle of large tensors left out.
-- @module int4mm.internal.print

local EDGE = 3           -- rows and columns shown at each end
local SUMMARISE = 1000   -- elements from which the middle is left out
local WIDTH = 100        -- of a line of values

-- The indices to show of an extent: all, or both ends around a 0 that stands for "...".
local function shown(extent, summarise)
  local indices = {}
  for i = 1, extent do
    if not summarise or extent <= 2 * EDGE or i <= EDGE then
      indices[#indices + 1] = i
    else
      indices[#indices + 1] = 0
      for j = extent - EDGE + 1, extent do indices[#indices + 1] = j end
      break
    end
  end
  return indices
end

-- The rows to show as tables of numbers; only those are copied from a GPU. 0 stands for rows or columns left out.
local function gather(t, rows, columns)
  local values = {}
  for r, i in ipairs(rows) do
    if i == 0 then
      values[r] = 0
    else
      local row = (t:dim() == 1 and t or t:narrow(1, i, 1)):to("cpu")
      values[r] = {}
      for c, j in ipairs(columns) do
        values[r][c] = j == 0 and "..." or (t:dim() == 1 and row:get(j) or row:get(1, j))
      end
    end
  end
  return values
end

-- One format for all values shown: integers, floats that are all whole ("3."), fixed or scientific.
local function number_format(values, integer)
  if integer then return "%d" end
  local low, high, whole = math.huge, 0, true
  for _, row in ipairs(values) do
    for _, x in ipairs(row ~= 0 and row or {}) do
      if type(x) == "number" and x == x and x ~= 0 and math.abs(x) ~= math.huge then
        low, high = math.min(low, math.abs(x)), math.max(high, math.abs(x))
        whole = whole and x % 1 == 0
      end
    end
  end
  local wide = high > 1000 * low or high >= 1e8
  if whole then return wide and "%.4e" or "%.0f." end
  return (wide or low < 1e-4) and "%.4e" or "%.4f"
end

local function number_text(format, x)
  if x ~= x then return "nan" end
  if x == math.huge or x == -math.huge then return x > 0 and "inf" or "-inf" end
  return format:format(x)
end

-- [1, 2, 3], broken into lines that start under the first value
local function row_text(row, width, indent)
  local per_line = math.max(1, math.floor((WIDTH - indent) / (width + 2)))
  local lines, line = {}, {}
  for c, text in ipairs(row) do
    line[#line + 1] = text == "..." and text or (" "):rep(width - #text) .. text
    if #line == per_line or c == #row then
      lines[#lines + 1] = table.concat(line, ", ")
      line = {}
    end
  end
  return "[" .. table.concat(lines, ",\n" .. (" "):rep(indent)) .. "]"
end

--- The text of a tensor.
-- @tparam tensor t a live tensor in rows
-- @tparam boolean integer whether its values are integers
-- @tparam string suffix what stands after the values: dtype, device and shape
-- @treturn string
return function(t, integer, suffix)
  local body
  if t:numel() == 0 then
    body = "[]"
  else
    local matrix = t:dim() == 2
    local summarise = t:numel() > SUMMARISE
    local rows = shown(matrix and t:size(1) or 1, summarise)
    local columns = shown(t:size(matrix and 2 or 1), summarise)
    local values = gather(t, rows, columns)
    local format, width = number_format(values, integer), 0
    for _, row in ipairs(values) do
      for c, x in ipairs(row ~= 0 and row or {}) do
        if type(x) == "number" then row[c] = number_text(format, x) width = math.max(width, #row[c]) end
      end
    end
    local indent = matrix and #"tensor([[" or #"tensor(["
    local lines = {}
    for r, row in ipairs(values) do lines[r] = row == 0 and "..." or row_text(row, width, indent) end
    body = table.concat(lines, ",\n" .. (" "):rep(indent - 1))
    if matrix then body = "[" .. body .. "]" end
  end
  local last = #body - (body:find("\n[^\n]*$") or 0)
  local break_line = last + #suffix > 110 and "\n" .. (" "):rep(#"tensor(") or " "
  return "tensor(" .. body .. "," .. break_line .. suffix .. ")"
end
