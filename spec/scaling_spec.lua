--- Products of every kind of activations and scales against the oracle; the same bits whatever is beside a row; wrong
-- calls. Activations of floats are held to their bound in spec/w4a16_spec.lua as well.

local cases = require "spec.cases"
local helper = require "spec.helper"
local kinds = require "spec.kinds"
local q = require "int4mm"

local KERNELS = q.cuda_kernels()

after_each(function() q.set_cpu_isa(nil) end)

local function with_prepacked(a, b, scale_a, scale_b, opts)
  local panels = q.prepack(b, { encoding = opts.encoding_b, layout_b = opts.layout_b })
  opts.encoding_b, opts.layout_b = nil, nil
  return q.int4_matmul_cpu(a, panels, scale_a, scale_b, opts)
end

-- Matrices [N, G] and zero points in words go with the layout and the encoding of the weight that was.
local function can_be_prepacked(case)
  return not case.ng and not (case.zeros == "words" and case.encoding_b == "offset")
end

describe("a product of any kind", function()
  for _, case in ipairs(kinds.generated()) do
    it("is the oracle's on every instruction set: " .. case.name, function()
      helper.on_every_isa(function()
        kinds.check(case, q.int4_matmul_cpu)
        if can_be_prepacked(case) then kinds.check(case, with_prepacked) end
      end)
      kinds.check(case, q.int4_matmul)
    end)
  end

  it("is the oracle's over a sweep of shapes, whatever the threads", function()
    for i, case in ipairs(kinds.sweep(60, 8, { M = 130, N = 150, K = 1100 })) do
      q.set_num_threads(({ 1, 2, 5 })[i % 3 + 1])
      helper.on_every_isa(function() kinds.check(case, q.int4_matmul_cpu) end)
    end
    q.set_num_threads(0)
  end)

  it("has the largest sums exactly", function()
    local function all(M, K, dtype, value) return q.full({ M, K, dtype = dtype }, value) end
    local words = { [-8] = 0x88888888 - 2 ^ 32, [7] = 0x77777777 }
    local function sum(a, value_b, opts, groups)
      local K = a.dtype == "int32" and 8 * a:size(2) or a:size(2)
      local b = all(math.ceil(K / 8), 3, "int32", words[value_b])
      opts.out_dtype = "float32"
      local scale_b = groups and q.ones { groups, 3 } or q.ones { 3 }
      local results = {}
      helper.on_every_isa(function(isa)
        local out = q.int4_matmul_cpu(a, b, q.ones { a:size(1) }, scale_b, opts)
        results[#results + 1] = out:get(1, 3)
        assert.equal(results[1], out:get(a:size(1), 1), isa)
        assert.equal(results[1], results[#results], isa)
      end)
      return results[1]
    end
    for _, M in ipairs { 1, 9 } do
      assert.equal(2 ^ 31 - 1024, sum(all(M, 2097151, "int8", -128), -8, {})) -- the longest K of W4A8
      assert.equal(-helper.float32(896 * 2097151), sum(all(M, 2097151, "int8", -128), 7, {}))
      local factors = q.full({ 1, 3, dtype = "int8" }, 15)
      assert.equal(helper.float32(128 * 120 * 139810), sum(all(M, 139810, "int8", -128), -8, { factors = factors }))
      assert.equal(helper.float32(960 * 2236952), sum(all(M, 279619, "int32", words[-8]), -8, { factors = factors }))
      local zeros = q.full({ 3, dtype = "int8" }, -120)
      assert.equal(-helper.float32(128 * 127 * 131071), sum(all(M, 131071, "int8", -128), 7, { zeros = zeros }))
      zeros = q.full({ 1, 3, dtype = "int8" }, 119)
      assert.equal(helper.float32(128 * 127 * 131071), sum(all(M, 131071, "int8", -128), -8, { zeros = zeros }, 1))
      -- K has no limit where each group has a sum of its own: 2 groups of the longest
      assert.equal(2 ^ 32 - 2 ^ 16, sum(all(M, 2 * 2097120, "int8", -128), -8, { group_size = 2097120 }, 2))
    end
  end)

  it("reads nothing of a weight past K", function()
    local r = cases.random(9)
    for _, K in ipairs { 1, 7, 9, 31, 33, 100, 129 } do
      for _, dtype in ipairs { "int8", "float32" } do
        for _, layout in ipairs { "kn", "nk" } do
          local words, results = math.ceil(K / 8), {}
          local a = q.random(q.empty({ 3, K }), { seed = K, low = -100, high = 100 })
          if dtype == "int8" then
            a = q.empty { 3, K, dtype = "int8" }
            for i = 1, 3 do
              for k = 1, K do a:set(i, k, r:range(-128, 127)) end
            end
          end
          local b = q.random(q.empty { words * 8, 20, dtype = "int32" }, { seed = 2 })
          local values = q.zeros { words * 8, 20, dtype = "int8" }
          for k = 1, 8 * words do
            for n = 1, 20 do values:set(k, n, b:get(k, n) % 16 - 8) end
          end
          for round = 1, 2 do
            for k = K + 1, 8 * words do
              for n = 1, 20 do values:set(k, n, round == 1 and -8 or r:range(-7, 7)) end
            end
            local packed = q.pack_int4_to_int32(values, { dim = 1 }):unmark_()
            if layout == "nk" then packed = packed:t() end
            local groups = math.ceil(K / 32)
            results[round] = q.int4_matmul_cpu(a, packed, dtype == "int8" and q.ones { 3 } or nil,
              q.ones { groups, 20 },
              { layout_b = layout, group_size = 32, zeros = q.full({ groups, 20, dtype = "int8" }, 3) })
          end
          assert.same_bits(results[1], results[2], ("%s, K=%d, %s"):format(dtype, K, layout))
        end
      end
    end
  end)

  it("takes no level of Strassen's where there are groups, and says so in its plan", function()
    for _, case in ipairs(kinds.sweep(20, 10, { M = 200, N = 200, K = 600, set = { bias = false } })) do
      local a, b, scale_a, scale_b, opts = kinds.arguments(case, kinds.build(case))
      opts.strassen = 2
      local plan = q.explain(a, b, scale_a, scale_b, opts)
      assert.equal("cpu", plan.device) -- these are too small for copies to a GPU
      if case.scaling ~= "column" then
        assert.is_nil(plan.reason:find "level", case.name)
        if q.cpu_isa() ~= "scalar" then -- which never takes any
          assert.matches("without Strassen", plan.reason, 1, true)
        end
      end
    end
  end)

  it("takes a group of all of K, whatever K is", function()
    for _, K in ipairs { 1, 24, 40, 64, 100 } do
      local r = cases.random(K)
      for _, a in ipairs { "int4", "int8", "float32" } do
        local case = kinds.draw(r, 3, 9, K, { a = a, scaling = "group", group = 2048, give = false, bias = false })
        local x, b, scale_a, scale_b, opts = kinds.arguments(case, kinds.build(case))
        local expected = q.int4_matmul_cpu(x, b, scale_a, scale_b, opts)
        for name, multiply in pairs { int4_matmul_cpu = q.int4_matmul_cpu, reference = q.int4_matmul_reference } do
          if name ~= "reference" or scale_a then
            for _, size in ipairs { case.K, a == "int4" and case.K > 1 and case.K - 1 or nil } do -- a word's padding
              opts.group_size = size
              assert.same_bits(expected, multiply(x, b, scale_a, scale_b, opts), name .. " " .. case.name)
            end
          end
        end
      end
    end
  end)

  it("takes encoding and dimension of zero points from their mark, and refuses one that does not fit", function()
    local N, K = 16, 64 -- with two groups words are [2, 2] either way
    local r = cases.random(3)
    local function draw(rows, columns) return cases.draw_int4(r, rows, columns) end
    local a, zeros, scale_a, scale_b = draw(3, K), draw(2, N), q.ones { 3 }, q.ones { 2, N }
    local multiplies = { q.int4_matmul, q.int4_matmul_cpu, q.int4_matmul_reference }
    for _, encoding_b in ipairs { "twos_complement", "offset" } do
      local b = q.pack_int4_to_int32(draw(N, K), { encoding = encoding_b })
      local expected = q.int4_matmul_reference(a, b, scale_a, scale_b, { zeros = zeros })
      for _, encoding in ipairs { "twos_complement", "offset" } do
        local words = q.pack_int4_to_int32(zeros, { encoding = encoding })
        local turned = q.pack_int4_to_int32(zeros:t(), { dim = 1, encoding = encoding }) -- [N/8, G]
        for i, multiply in ipairs(multiplies) do
          local what = ("%d %s %s"):format(i, encoding, encoding_b)
          assert.same_bits(expected, multiply(a, b, scale_a, scale_b, { zeros = words }), what)
          assert.same_bits(expected, multiply(a, b, scale_a, scale_b:t(), { zeros = turned }), what)
        end
        assert.same_bits(zeros, q.linear(b, { scales = scale_b, zeros = words }).zeros)
        assert.same_bits(zeros, q.linear(b, { scales = scale_b, zeros = turned }).zeros)
      end
      for i, name in ipairs { "int4_matmul", "int4_matmul_cpu", "int4_matmul_reference" } do
        local function fails(message, wrong, weight)
          assert.fails_with(name .. ": " .. message, function()
            local _ = multiplies[i](a, weight or b, scale_a, scale_b, { zeros = wrong })
          end)
        end
        fails("zeros holds 15 values along dim 2, expected 16: one for each output",
          q.pack_int4_to_int32(draw(2, 15)))
        fails("zeros was packed along dim 1, expected along dim 2: eight outputs to a word",
          q.pack_int4_to_int32(draw(N, 2), { dim = 1 }), b:t())
      end
    end
  end)
end)

-- Every exact kind of A and scales, and shapes that take different paths for few rows and for many.
local EXACT = {}
for _, a in ipairs { "int4", "int8" } do
  for _, set in ipairs {
    { scaling = "column", zeros = false }, { scaling = "group", zeros = false, group = 32 }, { scaling = "factors" },
    { scaling = "group", zeros = "int8", group = 128 }, { scaling = "column", zeros = "int8" },
  } do
    local all = { a = a, guard_a = 0, guard_b = 0, ng = false, scale_a = "plain", scale_b = "plain" }
    for key, value in pairs(set) do all[key] = value end
    EXACT[#EXACT + 1] = all
  end
end

local function with_rows(set, M)
  local all = { M = M }
  for key, value in pairs(set) do all[key] = value end
  return all
end

-- Rows of a product alone and in batches of M have the bits that they have among `M` rows.
local function check_rows(case, multiply, sizes, place)
  local a, b, scale_a, scale_b, opts = kinds.arguments(case, kinds.build(case), place)
  local expected = multiply(a, b, scale_a, scale_b, opts)
  for _, M in ipairs(sizes) do
    for _, first in ipairs { 1, case.M - M + 1 } do
      local part = multiply(a:narrow(1, first, M), b, scale_a:narrow(1, first, M), scale_b, opts)
      assert.same_bits(expected:narrow(1, first, M):clone(), part, ("M=%d from %d: %s"):format(M, first, case.name))
    end
  end
end

describe("a row of an exact product", function()
  for i, set in ipairs(EXACT) do
    for _, shape in ipairs { { 37, 260 }, { 128, 512 } } do
      local case = kinds.draw(cases.random(20 + i), 300, shape[1], shape[2], set)
      it("has the same bits alone and inside M = 2 to 300: " .. case.name, function()
        helper.on_every_isa(function()
          check_rows(case, q.int4_matmul_cpu, { 1, 2, 3, 4, 5, 8, 13, 16, 31, 64, 100, 257 })
        end)
      end)
    end
  end

  it("has the same bits alone and inside M = 4096", function()
    for i, set in ipairs(EXACT) do
      check_rows(kinds.draw(cases.random(40 + i), 4096, 20, 192, with_rows(set, 4096)), q.int4_matmul_cpu,
        { 1, 7, 1000, 4095 })
    end
  end)
end)

describe("wrong calls", function()
  local a = q.zeros { 3, 256, dtype = "int8" }
  local floats = q.zeros { 3, 256, dtype = "float16" }
  local b, scale_a, scale_b = q.zeros { 32, 24, dtype = "int32" }, q.ones { 3 }, q.ones { 24 }
  local factors = q.ones { 2, 24, dtype = "int8" }
  local function zeros(...) return q.zeros { dtype = "int8", ... } end
  local function fails(message, ...)
    local arguments, n = { ... }, select("#", ...)
    for name, multiply in pairs {
      int4_matmul = q.int4_matmul, int4_matmul_cpu = q.int4_matmul_cpu, int4_matmul_reference = q.int4_matmul_reference,
      explain = q.explain,
    } do
      assert.fails_with(name .. ": " .. message, function()
        local _ = multiply(unpack(arguments, 1, n))
      end)
    end
  end

  it("with scales for groups say what fits", function()
    fails("scale_b is [24, 2] float32, expected [N] float32, or a row of N float32, float16 or bfloat16 for each "
      .. "group: it lies as for a weight [N, K/8]; transpose it", a, b, scale_a, q.ones { 24, 2 })
    fails("scale_b is [2, 24] int8, expected [N] float32, or a row of N float32, float16 or bfloat16 for each group",
      a, b, scale_a, zeros(2, 24))
    for _, groups in ipairs { 3, 16 } do
      fails(("scale_b has %d groups, which do not divide K = 256 into multiples of 32: give group_size"):format(groups),
        a, b, scale_a, q.ones { groups, 24 })
    end
    fails("scale_b has 3 groups, expected 2: K is 256 and group 128", a, b, scale_a, q.ones { 3, 24 },
      { group_size = 128 })
    fails("group_size is 100, expected a multiple of 32, or all of K = 256", a, b, scale_a, q.ones { 3, 24 },
      { group_size = 100 })
    fails('group_size is "128", expected a whole number >= 1', a, b, scale_a, q.ones { 2, 24 }, { group_size = "128" })
    fails("group_size is 128, but scale_b is [24] float32, one for each column: it is for scales of groups", a, b,
      scale_a, scale_b, { group_size = 128 })
  end)

  it("with zero points say what fits", function()
    local WHAT = ", expected int8 of scale_b's shape, or int32 words of eight along N"
    fails("zeros is [2, 24] float32" .. WHAT, a, b, scale_a, q.ones { 2, 24 }, { zeros = q.zeros { 2, 24 } })
    fails("zeros is [24] int8" .. WHAT, a, b, scale_a, q.ones { 2, 24 }, { zeros = zeros(24) })
    fails("zeros is [1, 24] int8" .. WHAT, a, b, scale_a, scale_b, { zeros = zeros(1, 24) })
    fails("zeros is [2, 24] int32" .. WHAT, a, b, scale_a, q.ones { 2, 24 },
      { zeros = q.zeros { 2, 24, dtype = "int32" } })
    fails("zeros is [4, 24] int8, which has 4 groups, but there are 2", a, b, scale_a, q.ones { 2, 24 },
      { zeros = zeros(4, 24) })
    fails("zeros holds 127 at index 2: zero points lie in -120 .. 119", a, b, scale_a, scale_b,
      { zeros = zeros(24):set(2, 127) })
    fails("zeros is 8, expected a tensor", a, b, scale_a, scale_b, { zeros = 8 })
    assert.fails_with({ pattern = '^int4_matmul: unknown option "zero_points"; the options are .*zeros' }, function()
      local _ = q.int4_matmul(a, b, scale_a, scale_b, { zero_points = zeros(24) })
    end)
  end)

  it("with factors say what fits", function()
    fails("zeros is given beside factors: a weight with factors is symmetric", a, b, scale_a, scale_b,
      { factors = factors, zeros = zeros(24) })
    fails("factors is given, but scale_b is [2, 24] float32: factors of groups go with a scale for each column, [24] "
      .. "float32", a, b, scale_a, q.ones { 2, 24 }, { factors = factors })
    for _, value in ipairs { 0, 16, -1 } do
      fails(("factors holds %d at row 2, column 3: factors lie in 1 .. 15"):format(value), a, b, scale_a, scale_b,
        { factors = factors:clone():set(2, 3, value) })
    end
    fails("factors is [2, 24] float32, expected a row of N int8 for each group", a, b, scale_a, scale_b,
      { factors = q.ones { 2, 24 } })
    fails("factors is [24] int8, expected a row of N int8 for each group", a, b, scale_a, scale_b,
      { factors = zeros(24) })
  end)

  it("with other activations say what fits", function()
    fails("scale_a is [3] float32, but a_packed is [3, 256] float16, floats, which have no scale: leave scale_a out, "
      .. "or quantize a_packed first", floats, b, scale_a, scale_b)
    fails("scale_a is nil, expected a tensor", a, b, nil, scale_b)
    fails("encoding_a is offset, but a_packed is [3, 256] int8: it is for packed words", a, b, scale_a, scale_b,
      { encoding_a = "offset" })
    fails("a_packed is [256] int8, expected a matrix: int32 words [M, K/8], or int8, float16, bfloat16 or float32 "
      .. "[M, K]", zeros(256), b, scale_a, scale_b)
    fails("b_packed is [32, 24] int32 but a_packed is [3, 32] int8: K/8 differs (4 and 32); was b packed along dim 1?",
      zeros(3, 32), b, scale_a, scale_b)
  end)

  it("with a K whose sums could overflow say how long it may be", function()
    local function long(K, most, product, opts, groups)
      local words = q.empty { math.ceil(K / 8), 1, dtype = "int32" }
      fails(("a_packed has K = %d, expected at most %d: a sum of so many products of up to %d must fit int32"):format(K,
        most, product), q.empty { 1, K, dtype = "int8" }, words, q.ones { 1 },
        groups and q.ones { groups, 1 } or q.ones { 1 }, opts)
    end
    long(2097152, 2097151, 1024)
    long(2097152, 2097151, 1024, nil, 1)
    long(139811, 139810, 128 * 120, { factors = q.ones { 1, 1, dtype = "int8" } })
    long(131072, 131071, 128 * 128, { zeros = zeros(1) })
  end)
end)

-- ---- on a GPU ----

local function serves(kernel, ...)
  local ok, plan = pcall(q.explain, ...)
  return ok and plan.kernel == kernel
end

describe("on a GPU a product of any kind", function()
  for i = 0, #KERNELS do
    local kernel = KERNELS[i]
    helper.on_gpu("is the oracle's with " .. (kernel or "its own choice"), function()
      local served, list = 0, kinds.generated()
      for _, case in ipairs(list) do
        local a, b, scale_a, scale_b, opts = kinds.arguments(case, kinds.build(case), "cuda:0")
        opts.kernel = kernel
        if not kernel or serves(kernel, a, b, scale_a, scale_b, opts) then
          kinds.check(case, q.int4_matmul_cuda, { kernel = kernel }, "cuda:0")
          served = served + 1
        end
      end
      local all = not kernel or kernel == "simple" or kernel == "tiled"
      assert(not all or served == #list, ("%d of %d cases were served"):format(served, #list))
    end)
  end

  -- The bits of the CPU backend, on larger shapes; floats are held to their bound.
  for i = 0, #KERNELS do
    local kernel = KERNELS[i]
    helper.on_gpu("is the CPU's on larger shapes with " .. (kernel or "its own choice"), function()
      local r, count = cases.random(31), tonumber(os.getenv "INT4MM_SWEEP" or 150)
      local skinny = kernel and kernel:find "^skinny"
      for _ = 1, kernel and (kernel == "simple" or kernel == "tiled") and count / 4 or count do
        local few = skinny or r:chance(0.5)
        local step = r:choose { 8, 32, 128, 256 }
        local case = kinds.draw(r, r:range(1, few and 64 or 500), r:choose { r:range(1, 700), 128, 256, 512, 768 },
          step * r:range(1, math.floor(2048 / step)) + r:choose { 0, 0, 0, 1, 5 })
        local a, b, scale_a, scale_b, opts = kinds.arguments(case, kinds.build(case), "cuda:0")
        opts.kernel = kernel
        if not kernel or serves(kernel, a, b, scale_a, scale_b, opts) then
          local out = q.empty({ case.M, case.N, dtype = case.out_dtype, device = "cuda:0" }):fill_bytes_(0xA5)
          opts.out, opts.out_dtype = out, nil
          q.int4_matmul_cuda(a, b, scale_a, scale_b, opts)
          local title = (kernel or "its own choice") .. ": " .. case.name
          if kinds.IS_FLOAT[case.a] then
            if case.M * case.N * case.K < 2e6 then
              kinds.check_bound(kinds.expected(case, kinds.build(case)), out, title)
            end
            local again = out:clone():fill_bytes_(0x5A)
            opts.out = again
            q.int4_matmul_cuda(a, b, scale_a, scale_b, opts)
            assert.same_bits(helper.bytes(out), again, title .. ", run again")
          else
            local here = { kinds.arguments(case, kinds.build(case)) }
            assert.same_bits(helper.bytes(q.int4_matmul_cpu(here[1], here[2], here[3], here[4], here[5])), out, title)
          end
        end
      end
    end)
  end

  -- Runs an exact case so many times by a kernel that serves it; false where it does not.
  local function is_the_cpus(case, kernel, times)
    local a, b, scale_a, scale_b, opts = kinds.arguments(case, kinds.build(case), "cuda:0")
    opts.kernel = kernel
    if not serves(kernel, a, b, scale_a, scale_b, opts) then return false end
    local here = { kinds.arguments(case, kinds.build(case)) }
    local expected = helper.bytes(q.int4_matmul_cpu(here[1], here[2], here[3], here[4], here[5]))
    for _ = 1, times do
      assert.same_bits(expected, q.int4_matmul_cuda(a, b, scale_a, scale_b, opts), kernel .. ": " .. case.name)
    end
    return true
  end

  -- Their CTAs have several stripes of columns, or too long a K to keep the sums of all groups.
  for _, kernel in ipairs { "skinny_8", "skinny_16", "skinny_64" } do
    helper.on_gpu("is the CPU's with groups of 128 on wide and long shapes with " .. kernel, function()
      local served = 0
      for i, shape in ipairs {
        { 1, 8600, 264 }, { 7, 4300, 1160 }, { 8, 9000, 128 }, { 13, 4480, 2048 }, { 16, 64, 12032 },
        { 16, 13600, 520 }, { 19, 4300, 1000 }, { 64, 9000, 392 }, { 5, 96, 30000 },
      } do
        for j = 1, 9 do
          local set = {
            a = j % 2 == 0 and "int4" or "int8", scaling = "group", group = 128, layout_b = j > 6 and "nk" or "kn",
            ng = false, zeros = j > 3 and j <= 6 and "int8" or false, guard_b = 0, guard_s = 0,
          }
          local case = kinds.draw(cases.random(10 * i + j), shape[1], shape[2], shape[3], set)
          if is_the_cpus(case, kernel, 3) then served = served + 1 end
        end
      end
      assert(served > 0 or q.device_info().kernel_arch < 80) -- which has none of them
    end)
  end

  -- Stages of two k-blocks: columns of several stripes, an odd number of k-blocks, tails of both.
  for _, kernel in ipairs { "skinny_8", "skinny_16" } do
    helper.on_gpu("is the CPU's with int8 activations and [N, K/8] on wide and long shapes with " .. kernel, function()
      local served = 0
      for i, shape in ipairs {
        { 1, 8600, 288 }, { 7, 4300, 1184 }, { 8, 9000, 128 }, { 13, 4480, 2048 }, { 16, 64, 12032 },
        { 16, 13600, 544 }, { 19, 4300, 992 }, { 5, 96, 30016 }, { 1, 4096, 4096 }, { 9, 33, 96 },
      } do
        for seed = 1, 4 do
          local set = { a = "int8", scaling = "column", layout_b = "nk", zeros = false, guard_b = 0 }
          local case = kinds.draw(cases.random(10 * i + seed), shape[1], shape[2], shape[3], set)
          if is_the_cpus(case, kernel, 1) then served = served + 1 end
        end
      end
      assert(served > 0 or q.device_info().kernel_arch < 80) -- which has none of them
    end)
  end

  for i, set in ipairs(EXACT) do
    helper.on_gpu(("has a row's bits alone and inside M = 2 to 4096, kind %d"):format(i), function()
      local all = with_rows(set, 4096)
      for _, shape in ipairs { { 384, 512 }, { 136, 1000 } } do
        check_rows(kinds.draw(cases.random(60 + i), 4096, shape[1], shape[2], all), q.int4_matmul_cuda,
          { 1, 2, 5, 8, 16, 17, 32, 64, 65, 128, 250, 512, 1000, 2048 }, "cuda:0")
      end
    end)
  end

  helper.on_gpu("takes operands on the CPU, copied over and back", function()
    for _, case in ipairs(kinds.sweep(40, 33, { M = 40, N = 60, K = 500 })) do kinds.check(case, q.int4_matmul_cuda) end
  end)
end)

describe("choose_cuda", function()
  local function problem(set)
    local p = { arch = 90, sms = 132, M = 64, N = 4096, K = 4096 }
    for key, value in pairs(set) do p[key] = value end
    return p
  end

  it("finds a kernel for every kind, from compute capability 7.5 on", function()
    for _, arch in ipairs { 75, 80, 86, 89, 90, 100, 120 } do
      for _, dtype in ipairs { "int32", "int8", "float16", "bfloat16", "float32" } do
        for _, scaling in ipairs { "per_column", "group_scales", "group_factors" } do
          for _, M in ipairs { 1, 16, 64, 300, 4096 } do
            local plan = q.choose_cuda(problem { arch = arch, dtype_a = dtype, scaling = scaling, M = M,
              group_size = scaling ~= "per_column" and 128 or nil, zeros = scaling ~= "group_factors" })
            assert.is_string(plan.kernel)
          end
        end
      end
    end
  end)

  it("says why a kernel does not take a kind", function()
    local named = 0
    for _, kernel in ipairs(KERNELS) do
      local plan, reason = q.choose_cuda(problem { kernel = kernel, dtype_a = "float32", scaling = "group_scales",
        group_size = 32, zeros = true })
      if not plan then
        assert.is_string(reason)
        assert.truthy(reason:find(kernel, 1, true), reason)
        named = named + 1
      end
    end
    assert(named > 0 and named < #KERNELS, named)
  end)

  it("takes any K where A is not words, and checks the rest", function()
    assert.is_string(q.choose_cuda(problem { dtype_a = "int8", K = 4097 }).kernel)
    local function fails(message, set)
      assert.fails_with("choose_cuda: " .. message, function()
        local _ = q.choose_cuda(problem(set))
      end)
    end
    fails("K is 4097, expected a multiple of 8", { K = 4097 })
    fails('dtype_a is "int4", expected "bfloat16", "float16", "float32", "int32" or "int8"', { dtype_a = "int4" })
    fails('scaling is "groups", expected "group_factors", "group_scales" or "per_column"', { scaling = "groups" })
    fails("group_size is nil, expected a whole number >= 1", { scaling = "group_scales" })
    fails('group_size is 32, but scaling is "per_column", which has no groups', { group_size = 32 })
    fails("zeros is 1, expected true or false", { zeros = 1 })
  end)
end)
