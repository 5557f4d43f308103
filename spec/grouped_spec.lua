--- Grouped products: every row has the bits that its expert's own product gives, on the CPU and on a GPU, for every
--- kind of operands and every way to share rows out; what is wrong has a sentence, and offsets that a GPU cannot check
--- touch no other rows.

local assert = require "luassert"
local ffi = require "ffi"

local cases = require "spec.cases"
local experts = require "spec.experts"
local helper = require "spec.helper"
local q = require "int4mm"

local draw, build, part, check = experts.draw, experts.build, experts.part, experts.check

local generated

local function all_cases()
  if generated then return generated end
  local r, list = cases.random(77), {}
  local function add(...) list[#list + 1] = draw(r, ...) end
  for _, E in ipairs { 1, 2, 8 } do
    for _, share in ipairs { "even", "ragged", "one", "none", "outside" } do
      add(E, share, r:range(1, 40), 8 * r:range(1, 30), { a = "int4", scaling = "column", zeros = false })
      add(E, share, r:range(1, 40), r:range(1, 200))
    end
  end
  for _, a in ipairs { "int4", "int8", "float16", "float32" } do
    for _, scaling in ipairs { "column", "group", "factors" } do
      for _, layout_b in ipairs { "kn", "nk" } do
        add(3, "ragged", r:range(1, 50), r:range(1, 260), { a = a, scaling = scaling, layout_b = layout_b })
        add(3, "ragged", r:range(1, 50), 128, { a = a, scaling = scaling, layout_b = layout_b, group = 32 })
      end
    end
  end
  add(64, "ragged", 17, 64, { a = "int4", scaling = "column" })
  add(64, "one", 17, 40, { a = "int8" })
  add(70, "ragged", 9, 96, { a = "int4", scaling = "group", group = 32 })
  add(4, "ragged", 0, 64)
  add(4, "ragged", 12, 0, { a = "int4", scaling = "column", zeros = false })
  generated = list
  return list
end

-- ---- specs ----

describe("a grouped product", function()
  after_each(function() q.set_cpu_isa(nil) end)

  it("has each expert's own bits on the CPU", function()
    for _, case in ipairs(all_cases()) do check(case, q.int4_grouped_matmul_cpu, "cpu") end
  end)

  it("has them on every instruction set", function()
    local list = all_cases()
    helper.on_every_isa(function()
      for i = 1, #list, 7 do check(list[i], q.int4_grouped_matmul_cpu, "cpu") end
    end)
  end)

  it("has them from the oracle", function()
    for _, case in ipairs(all_cases()) do check(case, q.int4_grouped_matmul_reference, "cpu") end
  end)

  it("makes its own result, of equal shares where the number of experts is given", function()
    local E, M, K, N = 4, 3, 64, 10
    local a, _, scale_a = q.generate_test_data(E * M, K, N, { seed = 3 })
    local b = select(2, q.generate_test_data(1, E * K, N, { seed = 4 }))
    local scale_b = q.random(q.empty { E, N }, { seed = 5 })
    for _, multiply in ipairs { q.int4_grouped_matmul, q.int4_grouped_matmul_cpu, q.int4_grouped_matmul_reference } do
      local out = multiply(a, b, scale_a, scale_b, E, { out_dtype = "bfloat16" })
      assert.same({ E * M, N, "bfloat16", "cpu" }, { out:size(1), out:size(2), out.dtype, out.device })
      for e = 1, E do
        local own = q.int4_matmul_reference(part(a, e, E), part(b, e, E), scale_a:narrow(1, (e - 1) * M + 1, M),
          part(scale_b, e, E, true), { out_dtype = "bfloat16" })
        assert.same_bits(own, part(out, e, E))
      end
    end
  end)

  it("goes by the marks of its operands", function()
    local E, K, N = 2, 64, 6
    local b = q.random(q.empty { E * N, K }, { seed = 8, low = -1, high = 1 })
    local words, scales = q.quantize(b, { encoding = "offset" })
    local a, scale_a = q.quantize(q.random(q.empty { 5, K }, { seed = 9, low = -1, high = 1 }), { encoding = "offset" })
    local offsets = q.tensor({ 0, 2, 5 }, { dtype = "int32" })
    local out = q.int4_grouped_matmul(a, words, scale_a, scales:view(E, N), offsets)
    assert.same_bits(q.int4_grouped_matmul_reference(a, words, scale_a, scales:view(E, N), offsets), out)
    assert.same_bits(q.int4_matmul(a:narrow(1, 3, 3), words:narrow(1, N + 1, N), scale_a:narrow(1, 3, 3),
      scales:narrow(1, N + 1, N)), out:narrow(1, 3, 3))
  end)

  it("goes by the marks of zero points, in each layout", function()
    local E, K, N, G = 3, 64, 16, 2
    local r = cases.random(12)
    local function int4(rows, columns) return cases.draw_int4(r, rows, columns) end
    local a, b, scale_a = int4(7, K), q.pack_int4_to_int32(int4(E * N, K), { encoding = "offset" }), q.ones { 7 }
    local offsets = q.tensor({ 0, 2, 2, 7 }, { dtype = "int32" })
    for _, encoding in ipairs { "twos_complement", "offset" } do
      for what, case in pairs {
        columns = { zeros = int4(E, N), scales = q.ones { E, N }, dim = 2 },
        groups = { zeros = int4(E * G, N), scales = q.ones { E * G, N }, dim = 2, group_size = 32 },
        turned = { zeros = int4(E * N, G), scales = q.ones { E * N, G }, dim = 1, group_size = 32 },
      } do
        local function with(zeros) return { zeros = zeros, group_size = case.group_size } end
        local expected = q.int4_grouped_matmul_reference(a, b, scale_a, case.scales, offsets, with(case.zeros))
        local words = q.pack_int4_to_int32(case.zeros, { dim = case.dim, encoding = encoding })
        for _, multiply in ipairs { q.int4_grouped_matmul, q.int4_grouped_matmul_reference } do
          local out = multiply(a, b, scale_a, case.scales, offsets, with(words))
          assert.same_bits(expected, out, what .. " " .. encoding)
        end
      end
    end
    assert.fails_with("int4_grouped_matmul: zeros was packed from 45 values along dim 1, which fill no whole words for "
      .. "each of 3 experts: pack each expert's and take the marks away", function()
      local _ = q.int4_grouped_matmul(a, b:narrow(1, 1, 45), scale_a, q.ones { 45, G }, offsets,
        { group_size = 32, zeros = q.pack_int4_to_int32(int4(45, G), { dim = 1 }) })
    end)
    assert.fails_with("int4_grouped_matmul: zeros holds 15 values along dim 2, expected 16: one for each output",
      function()
        local _ = q.int4_grouped_matmul(a, b, scale_a, q.ones { E, N }, offsets,
          { zeros = q.pack_int4_to_int32(int4(E, 15)) })
      end)
  end)

  it("is explained", function()
    local a, _, scale_a = q.generate_test_data(12, 64, 10)
    local b = select(2, q.generate_test_data(1, 256, 10))
    local plan = q.explain(a, b, scale_a, q.ones { 4, 10 }, { offsets = 4 })
    assert.equal("cpu", plan.device)
    assert.fails_with(
      "explain: a_packed is [12, 8] int32, whose rows are not as many for each of 8 experts: give offsets", function()
        local _ = q.explain(a, q.zeros { 64, 10, dtype = "int32" }, scale_a, q.ones { 8, 10 }, { offsets = 8 })
      end)
  end)
end)

describe("the choice for a grouped product", function()
  local function choose(set)
    local problem = { arch = 90, M = 8192, N = 14336, K = 4096, experts = 8 }
    for key, value in pairs(set) do problem[key] = value end
    return q.choose_cuda(problem)
  end

  it("is of kernels that serve one, on every architecture", function()
    for _, arch in ipairs { 75, 80, 86, 89, 90, 100, 120 } do
      for _, M in ipairs { 0, 1, 16, 500, 8192, 2 ^ 30 } do
        for _, set in ipairs { {}, { dtype_a = "int8" }, { dtype_a = "float16", scaling = "group_scales",
          group_size = 128 }, { N = 33 }, { experts = 2 ^ 20 }, { layout_b = "nk" } } do
          set.arch, set.M = arch, M
          local plan, reason = choose(set)
          assert(plan, reason)
          assert.matches(("; at most so many, for %d experts"):format(set.experts or 8), plan.reason, 1, true)
          set.kernel = plan.kernel
          assert.equal(plan.kernel, choose(set).kernel)
        end
      end
    end
    assert.equal("tiled", choose({ arch = 75 }).kernel)
    assert.equal("mma_128x128", choose({ arch = 80 }).kernel)
    assert.equal("hopper_256x128", choose({}).kernel)
    assert.equal("grouped_256x128", choose({ dtype_a = "int8" }).kernel)
    local groups = { dtype_a = "int8", scaling = "group_scales", group_size = 128 }
    assert.equal("grouped_256x128", choose(groups).kernel)
    groups.M = 8
    assert.equal("skinny_8", choose(groups).kernel)
    assert.equal("skinny_8", choose({ M = 8 }).kernel)
    assert.equal("skinny_8", choose({ M = 8, arch = 80 }).kernel)
  end)

  it("says why a kernel cannot", function()
    for kernel, reason in pairs { simple = "has no code for grouped products",
      mma_128x64 = "has no code for grouped products", narrow_64x64 = "has no code for grouped products" } do
      assert.same({ nil, ("the kernel %s %s"):format(kernel, reason) }, { choose { kernel = kernel } })
    end
    assert.equal("the kernel hopper_256x128 is for grouped products of at most 256 experts",
      select(2, choose { kernel = "hopper_256x128", experts = 257 }))
    assert.equal("the kernel hopper_256x128 needs a K that is a multiple of 128 for grouped products",
      select(2, choose { kernel = "hopper_256x128", K = 4160 }))
    for reason, set in pairs {
      ["grouped_256x128 is for grouped products of at most 256 experts"] = { dtype_a = "int8", experts = 257 },
      ["grouped_128x128 needs a K below 2^23 for grouped products"] = { dtype_a = "float16", K = 2 ^ 23 },
      ["grouped_256x128 needs groups of at least 128 values for grouped products"] = { dtype_a = "float16",
        scaling = "group_scales", group_size = 64 },
      ["skinny_16 needs a K below 131072 for grouped products"] = { K = 131072 },
      ["skinny_16 needs rows that start on 16 bytes for grouped products"] = { N = 33 },
      ["skinny_16 has no code for grouped products of this kind of operands"] = { dtype_a = "int8",
        scaling = "group_scales", group_size = 32 },
      ["skinny_64 has no code for grouped products of this kind of operands"] = { dtype_a = "float16" },
    } do
      set.kernel = reason:match "^%S+"
      assert.equal("the kernel " .. reason, select(2, choose(set)))
    end
    assert.fails_with("choose_cuda: experts is -1, expected a whole number from 0 to 1048576", function()
      local _ = choose { experts = -1 }
    end)
  end)
end)

-- ---- mistakes ----

--- A valid call of 3 experts: K 32, N 10, 6 rows.
local function valid()
  local a, _, scale_a = q.generate_test_data(6, 32, 10, { seed = 1 })
  local b = select(2, q.generate_test_data(1, 96, 10, { seed = 2 }))
  return { a = a, b = b, scale_a = scale_a, scale_b = q.ones { 3, 10 },
    offsets = q.tensor({ 0, 1, 4, 6 }, { dtype = "int32" }) }
end

local function offsets_of(list) return q.tensor(list, { dtype = "int32" }) end

local mistakes = {
  { "no offsets", function(c) c.offsets = nil end,
    { pattern = "^offsets is nil, expected a tensor %[E %+ 1%] int32" } },
  { "offsets of floats", function(c) c.offsets = q.ones { 4 } end,
    "offsets is [4] float32, expected [E + 1] int32: where each expert's rows begin, and the end" },
  { "one offset", function(c) c.offsets = offsets_of { 0 } end,
    "offsets is [1] int32, expected [E + 1] int32: where each expert's rows begin, and the end" },
  { "no experts", function(c) c.offsets = 0 end, "offsets is 0, expected a whole number from 1 to 1048576" },
  { "offsets that descend", function(c) c.offsets = offsets_of { 0, 4, 3, 6 } end,
    "offsets holds 3 at index 3: expected 4 to 6" },
  { "a negative offset", function(c) c.offsets = offsets_of { -1, 4, 5, 6 } end,
    "offsets holds -1 at index 1: expected 0 to 6" },
  { "an offset past the rows", function(c) c.offsets = offsets_of { 0, 4, 5, 7 } end,
    "offsets holds 7 at index 4: expected 5 to 6" },
  { "rows that are not as many for each", function(c)
    c.offsets = 4
    c.b, c.scale_b = q.zeros { 16, 10, dtype = "int32" }, q.ones { 4, 10 }
  end, "a_packed is [6, 4] int32, whose rows are not as many for each of 4 experts: give offsets" },
  { "a weight whose rows are not as many for each", function(c) c.b = q.zeros { 13, 10, dtype = "int32" } end,
    "b_packed is [13, 10] int32, whose rows are not as many for each of 3 experts" },
  { "a weight of another K", function(c) c.b = q.zeros { 15, 10, dtype = "int32" } end,
    "for each of 3 experts: b_packed is [5, 10] int32 but a_packed is [6, 4] int32: K/8 differs (4 and 5)" },
  { "scales as a vector", function(c) c.scale_b = q.ones { 30 } end,
    "scale_b is [30] float32, expected a matrix, the rows of each of 3 experts below the other's" },
  { "scales of another N", function(c) c.scale_b = q.ones { 3, 9 } end,
    "for each of 3 experts: scale_b is [9] float32, expected [10] float32: one scale per column of b" },
  { "scale_a that is too short", function(c) c.scale_a = q.ones { 5 } end,
    "for each of 3 experts: scale_a is [5] float32, expected [6] float32: one scale per row of a_packed" },
  { "a bias for one expert", function(c) c.opts = { bias = q.ones { 1, 10 } } end,
    "bias is [1, 10] float32, expected a row for each of 3 experts" },
  { "zero points that are out of range for one expert", function(c)
    c.opts = { zeros = q.zeros { 3, 10, dtype = "int8" } }
    c.opts.zeros:set(2, 4, 127)
  end, { pattern = "^expert 2: zeros holds 127 at index 4" } },
  { "an out of another shape", function(c) c.opts = { out = q.zeros { 5, 10, dtype = "float16" } } end,
    { pattern = "^for each of 3 experts: out is %[5, 10%] float16, expected %[6, 10%]" } },
  { "an out that overlaps another expert's weight", function(c)
    c.b:unmark_()
    local memory = ffi.cast("void *", c.b:narrow(1, 5, 1):data())
    c.opts = { out = q.wrap(memory, { shape = { 6, 10 }, dtype = "float16", owner = c.b }) }
  end, "out overlaps b_packed in memory" },
  { "an unknown option", function(c) c.opts = { offset = 1 } end, { pattern = '^unknown option "offset"' } },
}

for _, name in ipairs { "int4_grouped_matmul", "int4_grouped_matmul_cpu" } do
  describe(name .. " refuses", function()
    for _, mistake in ipairs(mistakes) do
      it(mistake[1], function()
        local c, expected = valid(), mistake[3]
        mistake[2](c)
        expected = type(expected) == "table" and { pattern = "^" .. name .. ": " .. expected.pattern:gsub("^%^", "") }
          or name .. ": " .. expected
        assert.fails_with(expected, function()
          local _ = q[name](c.a, c.b, c.scale_a, c.scale_b, c.offsets, c.opts)
        end)
      end)
    end

    it("a prepacked weight", function()
      local c = valid()
      assert.fails_with(name .. ": b_packed is prepacked, expected words: a grouped product takes those", function()
        local _ = q[name](c.a, q.prepack(c.b), c.scale_a, c.scale_b, c.offsets)
      end)
    end)
  end)
end

-- ---- GPU ----

describe("a grouped product on a GPU", function()
  --- Calls f(kernel) for each kernel that serves a case.
  local function each_kernel(case, f)
    local a, b, scale_a, scale_b, offsets, opts = experts.arguments(case, build(case), "cuda:0")
    opts.offsets = offsets
    for _, kernel in ipairs(q.cuda_kernels()) do
      opts.kernel = kernel
      local serves = pcall(q.explain, a, b, scale_a, scale_b, opts)
      if serves then f(kernel) end
      assert(serves or kernel ~= "tiled", case.name)
    end
  end

  helper.on_gpu("has each expert's own bits by every kernel that serves it", function()
    for _, case in ipairs(all_cases()) do
      check(case, q.int4_grouped_matmul_cuda, "cuda:0")
      each_kernel(case, function(kernel) check(case, q.int4_grouped_matmul_cuda, "cuda:0", { kernel = kernel }) end)
    end
  end)

  helper.on_gpu("has them on shapes that the fast kernels serve", function()
    local r, served = cases.random(31), {}
    for _, set in ipairs { { a = "int4" }, { a = "int8" }, { a = "float16" }, { a = "bfloat16" } } do
      for _, layout_b in ipairs { "kn", "nk" } do
        for _, scaling in ipairs { "column", "column", "group", "factors" } do
          local E, share = r:choose { 1, 3, 8 }, r:choose { "ragged", "one", "even" }
          local case = draw(r, E, share, 4 * r:range(1, 70), 128 * r:range(1, 4), { a = set.a, scaling = scaling,
            layout_b = layout_b, group = 128, guard_a = 16, guard_b = 4, guard_out = r:choose { 0, 1, 8 } })
          each_kernel(case, function(kernel)
            served[kernel] = true
            check(case, q.int4_grouped_matmul_cuda, "cuda:0", { kernel = kernel })
          end)
        end
      end
    end
    assert.is_true(served.tiled)
  end)

  helper.on_gpu("takes operands on the CPU", function()
    local list = all_cases()
    for i = 1, #list, 5 do check(list[i], q.int4_grouped_matmul_cuda, "cpu") end
  end)

  --- What offsets stand for on a GPU: the largest so far, from 0 to T.
  local function limited(list, T)
    local begins, last = {}, 0
    for i, offset in ipairs(list) do
      last = math.min(math.max(last, offset), T)
      begins[i] = last
    end
    return begins
  end

  helper.on_gpu("touches no other rows, whatever the offsets are", function()
    local r = cases.random(5)
    for i = 1, 40 do
      local E = r:range(1, 40)
      local case = draw(r, E, "even", i % 2 == 0 and 4 * r:range(1, 20) or r:range(1, 70), 32 * r:range(1, 5),
        { guard_out = 2, guard_a = r:choose { 1, 16 }, guard_b = r:choose { 0, 4, 13 } })
      local hostile = {}
      for e = 1, E + 1 do
        hostile[e] = r:choose { -2 ^ 31, -1, 0, r:range(-10, case.M + 10), case.M, case.M + 1, 2 ^ 31 - 1 }
      end
      case.begins = limited(hostile, case.M)
      local offsets = offsets_of(hostile):to "cuda:0"
      local function with_hostile(multiply)
        return function(a, b, scale_a, scale_b, _, opts) multiply(a, b, scale_a, scale_b, offsets, opts) end
      end
      check(case, with_hostile(q.int4_grouped_matmul_reference), "cuda:0")
      each_kernel(case, function(kernel)
        check(case, with_hostile(q.int4_grouped_matmul_cuda), "cuda:0", { kernel = kernel })
      end)
    end
  end)

  helper.on_gpu("reads the offsets when a graph is launched", function()
    local case = draw(cases.random(9), 4, "even", 33, 256, { a = "int4", scaling = "column", zeros = false })
    local built = build(case)
    local a, b, scale_a, scale_b, offsets, opts = experts.arguments(case, built, "cuda:0")
    opts.out = q.empty { case.M, case.N, dtype = case.out_dtype, device = "cuda:0" }
    opts.out_dtype = nil
    local graph = q.graph(function() q.int4_grouped_matmul(a, b, scale_a, scale_b, offsets, opts) end)
    for _, begins in ipairs { case.begins, { 0, 0, 20, 20, 20 }, { 3, 4, 5, 6, 7 } } do
      case.begins = begins
      offsets:copy_(offsets_of(begins))
      graph:launch()
      q.synchronize()
      assert.same_bits(experts.work_out(case, built).bytes, opts.out, table.concat(begins, " "))
    end
  end)

  helper.on_gpu("names an operand that is elsewhere", function()
    local c = valid()
    assert.fails_with({ pattern = "offsets is on cpu but a_packed is on cuda:0" }, function()
      local _ = q.int4_grouped_matmul(c.a:to "cuda:0", c.b:to "cuda:0", c.scale_a:to "cuda:0", c.scale_b:to "cuda:0",
        c.offsets)
    end)
  end)
end)
