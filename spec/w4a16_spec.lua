--- An int4 weight with activations of floats: results within the bound of the exact ones on data that cancel, the same
-- bits on every run, and no row that another row has a part in.

local cases = require "spec.cases"
local helper = require "spec.helper"
local kinds = require "spec.kinds"
local q = require "int4mm"

local FLOATS = { "float16", "bfloat16", "float32" }
local SCALINGS = {
  { name = "a scale for each column" }, { name = "groups of 128", group = 128 }, { name = "groups of 32", group = 32 },
  { name = "groups of 64 and zero points", group = 64, zeros = true }, { name = "zero points", zeros = true },
  { name = "factors for groups of 128", factors = true, group = 128 },
}

after_each(function() q.set_cpu_isa(nil) end)

--- Operands whose sums all but vanish: the terms of each pair of neighbours along K differ in sign, and by a little in
-- magnitude; pairs are of very different size. Each weight stands twice, so that a[k + 1] = -a[k] (1 + e) cancels.
local function cancelling(seed, dtype, M, N, K, scaling)
  local r = cases.random(seed)
  local a, b = q.empty { M, K, dtype = dtype }, q.empty { K, N, dtype = "int8" }
  for m = 1, M do
    for k = 1, K, 2 do
      local x = r:range(2 ^ 9, 2 ^ 10) * 2 ^ r:range(-16, -6)
      a:set(m, k, x)
      if k < K then a:set(m, k + 1, -a:get(m, k) * (1 + r:range(-1, 1) * 2 ^ -8)) end
    end
  end
  for n = 1, N do
    for k = 1, K do b:set(k, n, k % 2 == 0 and b:get(k - 1, n) or r:range(-8, 7)) end
  end
  local groups = scaling.group and math.ceil(K / scaling.group) or 1
  local opts = { group_size = scaling.group }
  local scale_b = scaling.group and not scaling.factors and q.empty { groups, N } or q.empty { N }
  q.random(scale_b, { seed = seed, low = 0.001, high = 0.01 })
  if scaling.zeros then
    opts.zeros = scaling.group and q.empty { groups, N, dtype = "int8" } or q.empty { N, dtype = "int8" }
    for n = 1, N do
      for g = 1, groups do
        if scaling.group then opts.zeros:set(g, n, r:range(-8, 7)) else opts.zeros:set(n, r:range(-8, 7)) end
      end
    end
  end
  if scaling.factors then
    opts.factors = q.empty { groups, N, dtype = "int8" }
    for g = 1, groups do
      for n = 1, N do opts.factors:set(g, n, r:range(1, 15)) end
    end
  end
  return a, q.pack_int4_to_int32(b, { dim = 1 }), scale_b, opts
end

--- The part of the outputs whose exact value is below a 64th of the sum of magnitudes that the bound has.
local function share_of_cancelled(expected, K)
  local cancelled, all = 0, 0
  for m, row in ipairs(expected.exact) do
    for n, exact in ipairs(row) do
      local magnitude = expected.bound[m][n] / ((16 + K / 8) * 2 ^ -24)
      all, cancelled = all + 1, cancelled + (math.abs(exact) < magnitude / 64 and 1 or 0)
    end
  end
  return cancelled / all
end

local function moved(opts, device)
  local there = {}
  for key, value in pairs(opts) do there[key] = q.is_tensor(value) and value:to(device) or value end
  return there
end

describe("a product with activations of floats", function()
  for _, dtype in ipairs(FLOATS) do
    for i, scaling in ipairs(SCALINGS) do
      it(("is within its bound on ten thousand outputs that cancel: %s, %s"):format(dtype, scaling.name), function()
        for _, shape in ipairs { { 100, 100, 416 }, { 1, 97, 1030 }, { 5, 64, 4096 } } do
          local M, N, K = unpack(shape)
          local a, b, scale_b, opts = cancelling(10 * i + M, dtype, M, N, K, scaling)
          opts.out_dtype = "float32"
          local expected = {}
          expected.exact, expected.bound = q.int4_matmul_bound(a, b, scale_b, opts)
          assert(share_of_cancelled(expected, K) > 0.5, share_of_cancelled(expected, K))
          helper.on_every_isa(function(isa)
            kinds.check_bound(expected, q.int4_matmul_cpu(a, b, nil, scale_b, opts), isa)
            kinds.check_bound(expected, q.int4_matmul_cpu(a, q.prepack(b), nil, scale_b, opts), isa .. ", prepacked")
          end)
          for _, out_dtype in ipairs(FLOATS) do
            opts.out_dtype = out_dtype
            expected.exact, expected.bound = q.int4_matmul_bound(a, b, scale_b, opts)
            kinds.check_bound(expected, q.int4_matmul(a, b, nil, scale_b, opts), out_dtype)
            kinds.check_bound(expected, q.int4_matmul_reference(a, b, nil, scale_b, opts), "the oracle, " .. out_dtype)
          end
        end
      end)
    end
  end

  it("would not be within its bound with activations rounded to bfloat16", function()
    local a, b, scale_b, opts = cancelling(5, "float32", 20, 20, 512, SCALINGS[2])
    opts.out_dtype = "float32"
    local expected = {}
    expected.exact, expected.bound = q.int4_matmul_bound(a, b, scale_b, opts)
    local rounded = q.int4_matmul(a:to "bfloat16", b, nil, scale_b, opts)
    assert.is_false(pcall(kinds.check_bound, expected, rounded, ""))
  end)

  it("has the same bits on every run and with any number of threads", function()
    for i, scaling in ipairs(SCALINGS) do
      for _, shape in ipairs { { 1, 300, 2048 }, { 7, 130, 512 }, { 70, 200, 300 } } do
        local a, b, scale_b, opts = cancelling(i, FLOATS[i % 3 + 1], shape[1], shape[2], shape[3], scaling)
        helper.on_every_isa(function(isa)
          local expected = helper.bytes(q.int4_matmul_cpu(a, b, nil, scale_b, opts))
          for _, threads in ipairs { 1, 2, 3, 5 } do
            q.set_num_threads(threads)
            assert.same_bits(expected, q.int4_matmul_cpu(a, b, nil, scale_b, opts), isa .. ", " .. scaling.name)
          end
          q.set_num_threads(0)
        end)
      end
    end
  end)

  it("has a row's bits whatever the other rows are, and NaN in no other row", function()
    for i, scaling in ipairs(SCALINGS) do
      for _, M in ipairs { 2, 7, 40 } do
        local a, b, scale_b, opts = cancelling(i, FLOATS[i % 3 + 1], M, 70, 300, scaling)
        local others = a:clone():fill_(0 / 0)
        for k = 1, 300 do others:set(2, k, a:get(2, k)) end
        others:set(1, 5, math.huge)
        helper.on_every_isa(function(isa)
          local expected = q.int4_matmul_cpu(a, b, nil, scale_b, opts)
          local out = q.int4_matmul_cpu(others, b, nil, scale_b, opts)
          assert.same_bits(expected:narrow(1, 2, 1):clone(), out:narrow(1, 2, 1):clone(), isa .. ", " .. scaling.name)
          for m = 1, M do
            for n = 1, 70 do assert((out:get(m, n) ~= out:get(m, n)) == (m ~= 2), isa) end
          end
        end)
      end
    end
  end)

  it("passes infinities on where the weight is not 0", function()
    local a = q.zeros { 2, 64, dtype = "float16" }
    a:set(1, 3, math.huge)
    a:set(2, 64, -math.huge)
    local b = q.pack_int4_to_int32(q.full({ 64, 9, dtype = "int8" }, 2), { dim = 1 })
    for _, scale_b in ipairs { q.ones { 9 }, q.ones { 2, 9 } } do
      helper.on_every_isa(function(isa)
        local out = q.int4_matmul_cpu(a, b, nil, scale_b)
        assert.same_bits(q.full({ 1, 9, dtype = "float16" }, math.huge), out:narrow(1, 1, 1):clone(), isa)
        assert.same_bits(q.full({ 1, 9, dtype = "float16" }, -math.huge), out:narrow(1, 2, 1):clone(), isa)
      end)
    end
  end)
end)

describe("on a GPU a product with activations of floats", function()
  local function serves(kernel, ...)
    local ok, plan = pcall(q.explain, ...)
    return ok and plan.kernel == kernel
  end

  local known = {}

  -- As cancelling, with the exact results and their bounds, worked out once for all kernels.
  local function known_case(seed, dtype, M, N, K, scaling)
    local key = table.concat({ seed, dtype, M, N, K }, " ")
    if not known[key] then
      local a, b, scale_b, opts = cancelling(seed, dtype, M, N, K, scaling)
      opts.out_dtype = "float32"
      local exact, bound = q.int4_matmul_bound(a, b, scale_b, opts)
      known[key] = { a, b, scale_b, opts, { exact = exact, bound = bound } }
    end
    return unpack(known[key])
  end

  for i = 0, #q.cuda_kernels() do
    local kernel = q.cuda_kernels()[i]
    helper.on_gpu("is within its bound on ten thousand outputs that cancel, with " .. (kernel or "its own choice"),
      function()
        local served, drawn = 0, 0
        for _, dtype in ipairs(FLOATS) do
          for j, scaling in ipairs(SCALINGS) do
            for _, shape in ipairs { { 100, 104, 416 }, { 1, 256, 1024 }, { 16, 128, 2048 }, { 5, 99, 333 } } do
              local M, N, K = unpack(shape)
              local a, b, scale_b, opts, expected = known_case(10 * j + M, dtype, M, N, K, scaling)
              local there = moved(opts, "cuda:0")
              a, b, scale_b, there.kernel = a:to "cuda:0", b:to "cuda:0", scale_b:to "cuda:0", kernel
              drawn = drawn + 1
              if not kernel or serves(kernel, a, b, nil, scale_b, there) then
                served = served + 1
                local out = q.int4_matmul_cuda(a, b, nil, scale_b, there)
                local title = ("%s, %s, %s, M=%d"):format(kernel or "chosen", dtype, scaling.name, M)
                kinds.check_bound(expected, out, title)
                for _ = 1, 5 do assert.same_bits(out, q.int4_matmul_cuda(a, b, nil, scale_b, there), title) end
                local others = a:to "cpu":clone():fill_(0 / 0)
                for k = 1, K do others:set(1, k, a:get(1, k)) end
                local first = q.int4_matmul_cuda(others:to "cuda:0", b, nil, scale_b, there)
                assert.same_bits(out:narrow(1, 1, 1):clone(), first:narrow(1, 1, 1):clone(), title)
              end
            end
          end
        end
        local all = not kernel or kernel == "simple" or kernel == "tiled"
        assert(not all or served == drawn, ("%d of %d cases were served"):format(served, drawn))
      end)
  end
end)
