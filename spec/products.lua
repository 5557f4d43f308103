--- Random products on a GPU by kernels of one's choice, in a LuaJIT alone: what NVIDIA's sanitizers can follow.
--
--     eval "$(make -s env)"
--     compute-sanitizer --tool racecheck --show-backtrace no luajit spec/products.lua [KEY=VALUE ...]
--
-- count=20 seed=1             so many products
-- kernel=skinny_8,skinny_16   by these; left out, by every one that serves a product
-- M=1-16 N=4224-5000/32       sizes: from one to another, multiples of a number
-- experts=3 share=ragged rows=40   grouped products by spec/experts.lua, of an expert up to so many rows
-- group=128 a=int8 zeros=false guard_a=0   any field of a case of spec/kinds.lua
--
-- Of integers a result has the bits of the CPU's, of floats the same ones twice; a line for each kernel says how many
-- products it had. The exit status is 1 where one differs.

local experts = require "spec.experts"
local cases = require "spec.cases"
local helper = require "spec.helper"
local kinds = require "spec.kinds"
local q = require "int4mm"

io.stdout:setvbuf "line"

local sizes = { M = "1-70", N = "1-300", K = "1-700" }
local fields = { count = "20", seed = "1", share = "ragged" }
local set = {}
for _, word in ipairs(arg) do
  local key, value = word:match "^([%w_]+)=(.+)$"
  assert(key, word .. " is not KEY=VALUE")
  if sizes[key] then
    sizes[key] = value
  elseif fields[key] or key == "kernel" or key == "experts" or key == "rows" then
    fields[key] = value
  else
    set[key] = value ~= "false" and (tonumber(value) or value)
  end
end

--- One of "5", "1-16" or "4224-5000/32".
local function draw_size(r, text)
  local range, step = text:match "^([%d-]+)/(%d+)$"
  local low, high = (range or text):match "^(%d+)%-(%d+)$"
  low = low or (range or text):match "^%d+$"
  assert(low, text .. " is no size, as 5, 1-16 or 128-512/32 is")
  step = step or 1
  return step * r:range(math.ceil(low / step), math.floor((high or low) / step))
end

local kernels = {}
for kernel in (fields.kernel or table.concat(q.cuda_kernels(), ",")):gmatch "[^,]+" do
  kernels[#kernels + 1] = kernel
end

local grouped = fields.experts ~= nil
local generator = grouped and experts or kinds

local function draw(r)
  local M, N, K = draw_size(r, sizes.M), draw_size(r, sizes.N), draw_size(r, sizes.K)
  if not grouped then return kinds.draw(r, M, N, K, set) end
  return experts.draw(r, tonumber(fields.experts), fields.share, N, K, set, tonumber(fields.rows))
end

--- The bytes of a case's product on a device; nil where the kernel does not serve it.
local function product(case, built, place, kernel)
  local a, b, scale_a, scale_b, offsets, opts = generator.arguments(case, built, place)
  if not grouped then offsets, opts = nil, offsets end
  opts.kernel, opts.offsets = kernel, offsets
  if kernel and not pcall(q.explain, a, b, scale_a, scale_b, opts) then return nil end
  opts.offsets = nil
  local multiply = place == "cpu" and "matmul_cpu" or "matmul_cuda"
  if grouped then return helper.bytes(q["int4_grouped_" .. multiply](a, b, scale_a, scale_b, offsets, opts)) end
  return helper.bytes(q["int4_" .. multiply](a, b, scale_a, scale_b, opts))
end

local r, served, wrong = cases.random(tonumber(fields.seed)), {}, 0
for _ = 1, tonumber(fields.count) do
  local case = draw(r)
  local built = generator.build(case)
  local expected = not kinds.IS_FLOAT[case.a] and product(case, built, "cpu")
  for _, kernel in ipairs(kernels) do
    local bytes = product(case, built, "cuda:0", kernel)
    if bytes then
      served[kernel] = (served[kernel] or 0) + 1
      if bytes ~= (expected or product(case, built, "cuda:0", kernel)) then
        wrong = wrong + 1
        print(kernel .. " differs: " .. case.name)
      end
    end
  end
end
for _, kernel in ipairs(kernels) do print(("%-16s %d products"):format(kernel, served[kernel] or 0)) end
os.exit(wrong == 0 and 0 or 1)
