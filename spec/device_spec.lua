--- Devices, instruction sets, and what a call would do.

local helper = require "spec.helper"
local q = require "int4mm"

local ISAS = { scalar = true, avx2 = true, avxvnni = true, avx512vl_vnni = true, avx512vnni = true, neon_dot = true,
  neon_i8mm = true }

describe("the module", function()
  it("has a version, the header's", function()
    local parts = {}
    for line in io.lines "src/int4mm.h" do parts[#parts + 1] = line:match "^#define INT4MM_VERSION_%u+ (%d+)$" end
    assert.equal(table.concat(parts, "."), q._VERSION)
  end)

  it("tells tensors from other things", function()
    assert.is_true(q.is_tensor(q.zeros { 1 }))
    for _, other in ipairs { 1, "tensor", {}, false } do assert.is_false(q.is_tensor(other)) end
    assert.is_false(q.is_tensor(nil))
  end)
end)

describe("cuda_available", function()
  it("is true, or false with a reason", function()
    local available, reason = q.cuda_available()
    if available then
      assert.is_true(available)
      assert.is_nil(reason)
      assert(q.device_count() >= 1)
    else
      assert.is_false(available)
      assert.matches("^CUDA is not available: .+", reason)
      assert.same({ 0, reason }, { q.device_count() })
      assert.same({ nil, reason }, { q.device_info() })
    end
  end)

  it("gives the same answer every time", function()
    assert.same({ q.cuda_available() }, { q.cuda_available() })
  end)
end)

describe("device_info", function()
  it("describes the CPU", function()
    local info = q.device_info "cpu"
    assert.equal("cpu", info.device)
    assert.equal(q.cpu_isa(), info.isa)
    assert.same(q.cpu_isas(), info.isas)
    assert.equal(q.get_num_threads(), info.threads)
  end)

  it("refuses what is no device", function()
    assert.fails_with('device_info: device is "tpu", expected "cpu", "cuda" or "cuda:0" and so on',
      function() q.device_info "tpu" end)
  end)
end)

describe("the instruction set", function()
  after_each(function() q.set_cpu_isa(nil) end)

  it("is one of the known ones, the best first", function()
    local isas = q.cpu_isas()
    for _, isa in ipairs(isas) do assert.is_true(ISAS[isa], isa) end
    assert.equal("scalar", isas[#isas])
    if not os.getenv "INT4MM_CPU" then assert.equal(isas[1], q.cpu_isa()) end
  end)

  it("can be forced by a call and put back", function()
    local default = q.cpu_isa()
    for _, isa in ipairs(q.cpu_isas()) do
      q.set_cpu_isa(isa)
      assert.equal(isa, q.cpu_isa())
    end
    q.set_cpu_isa()
    assert.equal(default, q.cpu_isa())
  end)

  it("can be forced by INT4MM_CPU", function()
    local code = 'print(require("int4mm").cpu_isa())'
    for _, isa in ipairs(q.cpu_isas()) do
      assert.equal(isa .. "\n", (helper.luajit(code, { INT4MM_CPU = isa })))
    end
    local best = q.cpu_isas()[1]
    local ignored = helper.luajit(code, { INT4MM_CPU = "no such set" })
    assert.matches('^int4mm: INT4MM_CPU is "no such set", expected one of ".*"scalar"; the best is used\n', ignored)
    assert.equal(best .. "\n", ignored:match "[^\n]*\n$")
    assert.equal(best .. "\n", (helper.luajit(code, { INT4MM_CPU = false })))
  end)

  it("cannot be one that is unknown, or that this machine lacks", function()
    local chosen = q.cpu_isa()
    assert.fails_with({ pattern = '^set_cpu_isa: name is "mmx", expected one of .*"scalar"' },
      function() q.set_cpu_isa "mmx" end)
    local here = {}
    for _, isa in ipairs(q.cpu_isas()) do here[isa] = true end
    for isa in pairs(ISAS) do
      if not here[isa] then
        assert.fails_with({ pattern = "^set_cpu_isa: [^:]*" .. isa }, function() q.set_cpu_isa(isa) end)
      end
    end
    assert.equal(chosen, q.cpu_isa())
  end)
end)

describe("explain", function()
  it("says where a product would run and why", function()
    local a, b, scale_a, scale_b = q.generate_test_data(16, 64, 16, { seed = 1 })
    local plan = q.explain(a, b, scale_a, scale_b)
    assert.equal("cpu", plan.device) -- too small for the copies to pay, whatever GPU there is
    assert.equal(q.cpu_isa(), plan.kernel)
    assert.matches("too small for copies to a GPU to pay", plan.reason, 1, true)
    assert.matches(q.cpu_isa() .. " on cpu", tostring(plan), 1, true)
  end)

  it("tells Strassen's levels, where they were asked for", function()
    local a, b, scale_a, scale_b = q.generate_test_data(1000, 1000, 1000, { seed = 1 })
    q.set_cpu_isa(q.cpu_isas()[1])
    local here = q.explain(a, b, scale_a, scale_b).device == "cpu" -- with a GPU it is there
    if here and q.cpu_isa() == "avx512vnni" then -- the one that has kernels for it
      for levels, words in pairs { "1 level of exact Strassen", "2 levels of exact Strassen" } do
        assert.matches(words, q.explain(a, b, scale_a, scale_b, { strassen = levels }).reason, 1, true)
      end
      assert.is_nil(q.explain(a, b, scale_a, scale_b, { strassen = false }).reason:find("Strassen", 1, true))
    end
    q.set_cpu_isa(nil)
  end)

  it("follows the instruction set", function()
    local a, b, scale_a, scale_b = q.generate_test_data(20, 64, 24, { seed = 1 }) -- too small for a GPU
    for _, isa in ipairs(q.cpu_isas()) do
      q.set_cpu_isa(isa)
      assert.equal(isa, q.explain(a, b, scale_a, scale_b).kernel)
    end
    q.set_cpu_isa(nil)
  end)

  it("does not run the product, and takes its options", function()
    local a, b, scale_a, scale_b = q.generate_test_data(16, 64, 16, { seed = 1 })
    a:unmark_()
    local out = q.empty({ 16, 16, dtype = "float16" }):fill_bytes_(0x55)
    assert.is_table(q.explain(a, b, scale_a, scale_b, { out = out, encoding_a = "offset" }))
    assert.same_bits(("\85"):rep(512), out)
  end)

  it("refuses what the product refuses", function()
    local a, b, scale_a, scale_b = q.generate_test_data(3, 16, 5, { seed = 1 })
    assert.fails_with("explain: scale_a is [5] float32, expected [3] float32: one scale per row of a_packed",
      function() q.explain(a, b, scale_b, scale_b) end)
    assert.fails_with({ pattern = '^explain: unknown option "m"' },
      function() q.explain(a, b, scale_a, scale_b, { m = 1 }) end)
  end)
end)

describe("synchronize", function()
  it("has nothing to wait for on the CPU", function()
    q.synchronize "cpu"
    q.synchronize()
    assert.fails_with({ pattern = '^synchronize: device is "gpu:0"' }, function() q.synchronize "gpu:0" end)
  end)
end)

describe("a second load of the module", function()
  it("in the same Lua state works", function()
    local output, status = helper.luajit [[
      local q = require "int4mm"
      local first = q.ones { 2 }
      for name in pairs(package.loaded) do if name:find "^int4mm" then package.loaded[name] = nil end end
      local again = require "int4mm"
      print(again.int4_matmul == q.int4_matmul, first:get(1))
    ]]
    assert.equal(0, status, output)
    assert.equal("false\t1\n", output)
  end)
end)
