--- The CPU backend against the plain-Lua oracle, bit for bit. INT4MM_CPU, given from outside, chooses the path; here
-- each path of this machine also runs a part of the cases.

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

local function merged(opts, more)
  local both = {}
  for key, value in pairs(opts) do both[key] = value end
  for key, value in pairs(more) do both[key] = value end
  return both
end

local function with_prepacked(a, b, scale_a, scale_b, opts)
  local panels = q.prepack(b, { encoding = opts.encoding_b, layout_b = opts.layout_b })
  opts = merged(opts, { encoding_b = "twos_complement", layout_b = "kn" })
  return q.int4_matmul_cpu(a, panels, scale_a, scale_b, opts)
end

describe("int4_matmul_cpu", function()
  for _, case in ipairs(cases.generated()) do
    it("agrees with the oracle: " .. case.name, function() cases.check(case, q.int4_matmul_cpu) end)
  end

  for _, case in ipairs(cases.large()) do
    for _, levels in ipairs { 0, 1, 2 } do
      it(("agrees with the oracle, Strassen levels %d: %s"):format(levels, case.name), function()
        cases.check(case, q.int4_matmul_cpu, { strassen = levels })
      end)
    end
  end

  it("sums the longest K of all, 33,554,424, with all -8, on every instruction set", function()
    local K = 33554424
    local a = q.empty({ 1, K / 8, dtype = "int32" }):fill_bytes_(0x88)
    local b = q.wrap(a:data(), { shape = { K / 8, 1 }, dtype = "int32", owner = a })
    for _, isa in ipairs(q.cpu_isas()) do
      q.set_cpu_isa(isa)
      local out = q.int4_matmul_cpu(a, b, q.ones { 1 }, q.ones { 1 }, { out_dtype = "float32" })
      assert.equal(64 * K, out:get(1, 1), isa) -- 2^31 - 512, a float32
    end
    q.set_cpu_isa(nil)
  end)

  it("allocates out as float16 when not told otherwise", function()
    local a, b, scale_a, scale_b = q.generate_test_data(3, 16, 5, { seed = 1 })
    local out = q.int4_matmul_cpu(a, b, scale_a, scale_b)
    assert.equal("float16", out.dtype)
    assert.same({ 3, 5 }, out.shape)
    assert.equal("cpu", out.device)
    assert.same_bits(q.int4_matmul_reference(a, b, scale_a, scale_b), out)
  end)

  it("gives back the very tensor that was passed as out", function()
    local a, b, scale_a, scale_b = q.generate_test_data(3, 16, 5, { seed = 1 })
    local out = q.empty { 3, 5, dtype = "float32" }
    assert.equal(out, q.int4_matmul_cpu(a, b, scale_a, scale_b, { out = out }))
  end)

  it("leaves the operands as they were", function()
    local a, b, scale_a, scale_b = q.generate_test_data(9, 256, 40, { seed = 3 })
    local before = { helper.bytes(a), helper.bytes(b), helper.bytes(scale_a), helper.bytes(scale_b) }
    for _, levels in ipairs { 0, 1 } do q.int4_matmul_cpu(a, b, scale_a, scale_b, { strassen = levels }) end
    assert.same(before, { helper.bytes(a), helper.bytes(b), helper.bytes(scale_a), helper.bytes(scale_b) })
  end)
end)

describe("options that a table inherits", function()
  it("count, in a table that is empty itself too", function()
    local a, b, scale_a, scale_b = q.generate_test_data(3, 16, 5, { seed = 1 })
    local bias = q.full({ 5 }, 0.5)
    a:unmark_()
    local given = { out_dtype = "float32", encoding_a = "offset", bias = bias }
    for _, multiply in ipairs { q.int4_matmul, q.int4_matmul_cpu, q.int4_matmul_reference } do
      local expected = multiply(a, b, scale_a, scale_b, given)
      assert.equal("float32", expected.dtype)
      assert.same_bits(expected, multiply(a, b, scale_a, scale_b, setmetatable({}, { __index = given })))
      local one = { encoding_a = "offset" }
      local others = setmetatable(one, { __index = { out_dtype = "float32", bias = bias } })
      assert.same_bits(expected, multiply(a, b, scale_a, scale_b, others))
    end
    local out = q.zeros { 3, 5, dtype = "float32" }
    assert.equal(out, q.int4_matmul_reference(a, b, scale_a, scale_b, setmetatable({}, { __index = { out = out } })))
    local plan = q.explain(a, b, scale_a, scale_b, setmetatable({}, { __index = { out = out } }))
    assert.equal("cpu", plan.device)
  end)

  it("are read once, so that what was checked is what is used", function()
    local a, b, scale_a, scale_b = q.generate_test_data(3, 16, 5, { seed = 1 })
    local out, reads = q.zeros { 3, 5, dtype = "float32" }, 0
    local opts = setmetatable({}, { __index = function(_, key)
      if key ~= "out" then return nil end
      reads = reads + 1
      return reads == 1 and out or 5
    end })
    assert.equal(out, q.int4_matmul_cpu(a, b, scale_a, scale_b, opts))
  end)

  it("count in the other functions", function()
    local function inheriting(opts) return setmetatable({}, { __index = opts }) end
    assert.same({ 2 }, q.zeros(inheriting { 2, dtype = "int8" }).shape)
    assert.equal("int8", q.zeros(inheriting { 2, dtype = "int8" }).dtype)
    assert.equal("int8", q.tensor({ 1 }, inheriting { dtype = "int8" }).dtype)
    local values = q.zeros { 16, 16, dtype = "int8" }
    assert.same({ 2, 16 }, q.pack_int4_to_int32(values, inheriting { dim = 1 }).shape)
    assert.same_bits(q.random(q.empty { 4 }, { seed = 5 }), q.random(q.empty { 4 }, inheriting { seed = 5 }))
    local problem = { arch = 80, sms = 100, M = 64, N = 64, K = 64, kernel = "tiled" }
    assert.equal("tiled", q.choose_cuda(inheriting(problem)).kernel)
  end)
end)

describe("int4_matmul", function()
  it("agrees with the oracle, wherever it runs", function()
    for _, list in ipairs { cases.generated(), cases.large() } do
      for _, case in ipairs(list) do cases.check(case, q.int4_matmul) end
    end
  end)
end)

describe("a product too large for the oracle", function()
  --- What the scalar path gives, which the oracle has checked above.
  local function by_scalar(...)
    local isa = q.cpu_isa()
    q.set_cpu_isa "scalar"
    local out = q.int4_matmul_cpu(...)
    q.set_cpu_isa(isa)
    return out
  end

  --- The words of b, [K/8, N], as [N, K/8]; not marked.
  local function transposed(b)
    local rows, cols = unpack(b.shape)
    local nk = q.empty { cols, rows, dtype = "int32" }
    local from, to = helper.pointer(b), helper.pointer(nk)
    for j = 0, rows - 1 do
      for n = 0, cols - 1 do to[n * rows + j] = from[j * cols + n] end
    end
    return nk
  end

  for _, shape in ipairs { { 700, 1032, 520 }, { 65, 66000, 70 }, { 3, 4096, 3000 }, { 1000, 64, 1000 } } do
    local M, K, N = unpack(shape)
    it(("is the scalar path's, whatever the levels and the threads: M=%d K=%d N=%d"):format(M, K, N), function()
      local a, b, scale_a, scale_b = q.generate_test_data(M, K, N, { seed = 1 })
      local opts = { out_dtype = "float32" }
      local expected = helper.bytes(by_scalar(a, b, scale_a, scale_b, opts))
      local panels, nk = q.prepack(b), transposed(b)
      for _, threads in ipairs { 1, 2, 5 } do
        q.set_num_threads(threads)
        for _, levels in ipairs { false, 1, 2, true } do
          opts.strassen = levels
          local name = ("%d threads, strassen %s"):format(threads, tostring(levels))
          assert.same_bits(expected, q.int4_matmul_cpu(a, b, scale_a, scale_b, opts), name)
          assert.same_bits(expected, q.int4_matmul_cpu(a, panels, scale_a, scale_b, opts), name .. ", prepacked")
          opts.layout_b = "nk"
          assert.same_bits(expected, q.int4_matmul_cpu(a, nk, scale_a, scale_b, opts), name .. ", [N, K/8]")
          opts.layout_b = nil
        end
      end
      q.set_num_threads(0)
    end)
  end

  it("is the scalar path's over a sweep of shapes, options, strides and levels", function()
    for i, case in ipairs(cases.sweep(80, 5, { M = 330, N = 420, K = 1600 })) do
      local built = cases.build(case)
      local opts = cases.options(case, { bias = built.bias })
      local a, b = built.a.view, built.b.view
      local expected = helper.bytes(by_scalar(a, b, built.scale_a, built.scale_b, opts))
      opts.strassen = ({ false, true, 1, 2 })[i % 4 + 1]
      local before = helper.bytes(built.out.whole)
      opts.out = built.out.view
      assert.same_bits(expected, q.int4_matmul_cpu(a, b, built.scale_a, built.scale_b, opts), case.name)
      if case.guard_out > 0 then cases.check_guards(case, before, helper.bytes(built.out.whole)) end
    end
  end)

  it("is the same under every number of Strassen's levels where the sums are largest", function()
    local n = q.cpu_isa() == "scalar" and 300 or 1100
    for _, byte in ipairs { 0x88, 0x87, 0x77 } do -- nibbles 8 are -8, 7 are 7
      local a = q.empty({ n, n / 4 * 2, dtype = "int32" }):fill_bytes_(byte)
      local b = q.empty({ n / 4 * 2, n + 3, dtype = "int32" }):fill_bytes_(0x88)
      local opts = { out_dtype = "float32", strassen = 0 }
      local expected = helper.bytes(q.int4_matmul_cpu(a, b, q.ones { n }, q.ones { n + 3 }, opts))
      for _, levels in ipairs { 1, 2, true } do
        opts.strassen = levels
        assert.same_bits(expected, q.int4_matmul_cpu(a, b, q.ones { n }, q.ones { n + 3 }, opts),
          ("byte 0x%x, strassen %s"):format(byte, tostring(levels)))
      end
    end
  end)
end)

describe("every instruction set of this machine", function()
  local isas = q.cpu_isas()
  local chosen = q.cpu_isa()
  local some = {}
  for i, case in ipairs(cases.generated()) do
    if i % 5 == 0 then some[#some + 1] = case end
  end
  local k_major, large_k_major = cases.k_major(), cases.large { layout_b = "nk" }

  after_each(function() q.set_cpu_isa(nil) end)

  for _, isa in ipairs(isas) do
    it(isa .. " agrees with the oracle", function()
      q.set_cpu_isa(isa)
      assert.equal(isa, q.cpu_isa())
      for _, case in ipairs(some) do cases.check(case, q.int4_matmul_cpu) end
      for i, case in ipairs(cases.large()) do cases.check(case, q.int4_matmul_cpu, { strassen = i % 3 }) end
    end)

    it(isa .. " agrees with the oracle on weights [N, K/8]", function()
      q.set_cpu_isa(isa)
      for _, case in ipairs(k_major) do cases.check(case, q.int4_matmul_cpu) end
      for i, case in ipairs(large_k_major) do cases.check(case, q.int4_matmul_cpu, { strassen = i % 3 }) end
    end)

    it(isa .. " prepacks weights [N, K/8]", function()
      q.set_cpu_isa(isa)
      for _, case in ipairs(k_major) do cases.check(case, with_prepacked) end
    end)
  end

  it("includes scalar, which is always there", function()
    assert.equal("scalar", isas[#isas])
    assert.equal(chosen, q.cpu_isa())
  end)
end)

describe("a prepacked weight", function()
  it("gives the same bits as the weight itself", function()
    for _, case in ipairs(cases.generated()) do cases.check(case, with_prepacked) end
  end)

  it("gives the same bits under Strassen's method", function()
    for _, case in ipairs(cases.large()) do
      for levels = 0, 2 do cases.check(case, with_prepacked, { strassen = levels }) end
    end
  end)

  it("outlives the weight that it was made from", function()
    local a, b, scale_a, scale_b = q.generate_test_data(5, 64, 40, { seed = 5 })
    local expected = q.int4_matmul_reference(a, b, scale_a, scale_b)
    local panels = q.prepack(b)
    b:free()
    assert.same_bits(expected, q.int4_matmul_cpu(a, panels, scale_a, scale_b))
    assert.same_bits(expected, q.int4_matmul(a, panels, scale_a, scale_b))
  end)
end)

describe("where memory is short", function()
  --- Runs code that is given `limit(mib)`, after which the process may take so much more memory, operands `a`, `b`,
  -- `scale_a`, `scale_b` of M x K x N, and `attempt`, which prints what became of a call.
  local function short_of_memory(M, K, N, code)
    return helper.luajit(([[
      local ffi = require "ffi"
      ffi.cdef "int setrlimit(int, const uint64_t *);"
      local q = require "int4mm"
      q.set_num_threads(1)
      local a, b, scale_a, scale_b = q.generate_test_data(%d, %d, %d)
      collectgarbage()
      collectgarbage()
      local function limit(mib)
        local pages = io.open("/proc/self/statm"):read "*n"
        local bytes = pages * 4096 + mib * 2 ^ 20
        assert(ffi.C.setrlimit(9, ffi.new("uint64_t[2]", bytes, bytes)) == 0) -- RLIMIT_AS
      end
      local function attempt(expected, out, b, opts)
        opts.out = out:fill_bytes_(0)
        local ok, message = pcall(q.int4_matmul_cpu, a, b, scale_a, scale_b, opts)
        print(ok and tostring(out:equal(expected)) or message)
      end
    ]]):format(M, K, N) .. code, { INT4MM_CPU = q.cpu_isa() })
  end
  local busted_it = helper.sanitized() and pending or it -- a sanitizer takes all address space there is

  busted_it("a product that takes Strassen by itself takes the blocked one instead", function()
    local output = short_of_memory(2048, 2048, 2048, [[
      local out = q.empty { 2048, 2048, dtype = "float16" }
      local expected = q.int4_matmul_cpu(a, b, scale_a, scale_b, { strassen = false })
      print(q.explain(a, b, scale_a, scale_b).reason)
      limit(12)
      attempt(expected, out, b, {})
      attempt(expected, out, b, { strassen = 2 })
    ]])
    if not output:find "Strassen" then return pending(q.cpu_isa() .. " has no Strassen") end
    assert.matches("Strassen\ntrue\n.*int4_matmul_cpu: no memory for a workspace of %d+ bytes\n$", output)
  end)

  busted_it("a weight [N, K/8] is multiplied where it is", function()
    local output = short_of_memory(3, 4096, 8000, [[
      local nk = q.empty { 8000, 512, dtype = "int32" }
      local from, to = ffi.cast("int32_t *", b:data()), ffi.cast("int32_t *", nk:data())
      for j = 0, 511 do
        for n = 0, 7999 do to[n * 512 + j] = from[j * 8000 + n] end
      end
      for _, dtype in ipairs { "float32", "float16" } do
        local out = q.empty { 3, 8000, dtype = dtype }
        local expected = q.int4_matmul_cpu(a, b, scale_a, scale_b, { out_dtype = dtype, bias = scale_b })
        if dtype == "float32" then limit(2) end
        attempt(expected, out, nk, { layout_b = "nk", bias = scale_b })
      end
      print(select(2, pcall(q.empty, { 2 ^ 24, dtype = "int8" })))
    ]])
    assert.matches("^true\ntrue\n.*empty: out of memory on cpu", output)
  end)

  busted_it("a weight [N, K/8] is prepacked beside little else", function()
    local output = short_of_memory(3, 4096, 8000, [[
      local nk = q.random(q.empty { 8000, 512, dtype = "int32" }, { seed = 3 })
      limit(18) -- its panels take 16
      local panels = q.prepack(nk, { layout_b = "nk" })
      local part = q.empty { 512, 64, dtype = "int32" }
      local from, to = nk:data(), part:data()
      for j = 0, 511 do
        for n = 0, 63 do to[j * 64 + n] = from[(7900 + n) * 512 + j] end
      end
      local whole = q.int4_matmul_cpu(a, panels, scale_a, scale_b)
      print(whole:narrow(2, 7901, 64):clone():equal(q.int4_matmul_cpu(a, part, scale_a, scale_b:narrow(1, 7901, 64))))
    ]])
    assert.equal("true\n", output)
  end)
end)
