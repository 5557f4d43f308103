--- Multiplies two random int4 matrices on the best backend at hand and checks the result against the oracle.
--
--     luajit examples/quickstart.lua [M K N]     1024 1024 1024 by default; K a multiple of 8

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
package.path = here .. "/bench/?.lua;" .. package.path
local q = require "int4mm"
local bench = require "bench"

local M, K, N = tonumber(arg[1] or 1024), tonumber(arg[2] or 1024), tonumber(arg[3] or 1024)

-- ---- data, on the GPU where there is one ----

local cuda, reason = q.cuda_available()
local a_packed, b_packed, scale_a, scale_b, a, b = q.generate_test_data(M, K, N, {
  seed = 1, device = cuda and "cuda" or "cpu",
})

local function describe(label, t)
  local shape = table.concat(t.shape, ", ")
  print(("%-10s [%s] %s on %s, %s"):format(label, shape, t.dtype, t.device, bench.size(t:bytes())))
end

print("int4mm " .. q._VERSION .. "\n")
describe("A", a)
describe("  packed", a_packed)
describe("  scales", scale_a)
describe("B", b)
describe("  packed", b_packed)
describe("  scales", scale_b)

-- ---- the product ----

local c = q.int4_matmul(a_packed, b_packed, scale_a, scale_b)
describe("C = A B", c)
print(c)

local seconds, samples = bench.time(function() q.int4_matmul(a_packed, b_packed, scale_a, scale_b, { out = c }) end,
  { finish = q.synchronize })
local plan = q.explain(a_packed, b_packed, scale_a, scale_b)
local where = q.device_info(plan.device)
print(("\nRan on     %s, %s"):format(plan.device, where.name or where.threads .. " threads"))
print("Kernel     " .. tostring(plan))
print(("Time       %s, %.3f TOPS (median of %d)"):format(bench.duration(seconds), 2 * M * N * K / seconds * 1e-12,
  samples))
if not cuda then print("No GPU     " .. reason) end

-- ---- the check: every output, bit for bit, or as many rows as the oracle does in ten seconds ----

local ROWS, LIMIT = 64, 10
local start, checked = bench.now(), 0
while checked < M and bench.now() - start < LIMIT do
  local rows = math.min(ROWS, M - checked)
  local expected = q.int4_matmul_reference(a_packed:narrow(1, checked + 1, rows), b_packed,
    scale_a:narrow(1, checked + 1, rows), scale_b)
  local same, difference = c:narrow(1, checked + 1, rows):equal(expected)
  if not same then
    print(("Check      FAILED in the rows from %d on (result, oracle): %s"):format(checked + 1, difference))
    os.exit(1)
  end
  checked = checked + rows
end
local share = checked == M and "all" or ("the first %d of %d rows,"):format(checked, M)
print(("Check      %s %d outputs equal the plain-LuaJIT oracle bit for bit (it took %s)"):format(share, checked * N,
  bench.duration(bench.now() - start)))
