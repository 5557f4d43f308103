--- The specs of the GPU on a device in host memory (spec/c/fake_cuda.c), so that everything but the kernels is tested
-- where there is no GPU: copies, views, streams, staging, the choice of a device.

local helper = require "spec.helper"

local library = helper.build_folder() .. "/spec/c/fake_cuda.so"

describe("on a device in host memory", function()
  for _, spec in ipairs { "spec/cuda_spec.lua", "spec/matmul_cuda_spec.lua" } do
    it(spec .. " passes", function()
      local output, status = helper.luajit('require("busted.runner")({ standalone = false })',
        { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host", INT4MM_SWEEP = "30", INT4MM_NUM_THREADS = "1",
          INT4MM_CPU = false }, -- the fastest: the product itself is not what is tested
        "/dev/null --ignore-lua --output=plainTerminal " .. spec)
      local passed, failed, errors = output:match "(%d+) success%w* / (%d+) failures? / (%d+) errors?"
      assert(status == 0 and tonumber(passed) > 20 and failed == "0" and errors == "0", output)
    end)
  end

  it("the second device is another one", function()
    local output, status = helper.luajit([[
      local q = require "int4mm"
      assert(q.device_count() == 2)
      local a, b, scale_a, scale_b = q.generate_test_data(20, 64, 24, { device = "cuda:1" })
      local c = q.int4_matmul(a, b, scale_a, scale_b)
      assert(c.device == "cuda:1")
      assert(c:equal(q.int4_matmul_reference(a, b, scale_a, scale_b)))
      print(select(2, pcall(q.int4_matmul, a, b:to "cuda:0", scale_a, scale_b)))
      print(select(2, pcall(function() a:copy_(a:to "cuda:0") return "copied" end)))
    ]], { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host" })
    assert.equal(0, status, output)
    assert.matches("int4_matmul: b_packed is on cuda:0 but a_packed is on cuda:1", output, 1, true)
    assert.matches("copied", output, 1, true)
  end)

  it("a product that the device has no memory for is done on the CPU", function()
    local output, status = helper.luajit([[
      local q = require "int4mm"
      local a, b, scale_a, scale_b = q.generate_test_data(64, 64, 64)
      local held = q.empty { 2^30 - 1000, dtype = "int8", device = "cuda" }
      print(q.int4_matmul(a, b, scale_a, scale_b):equal(q.int4_matmul_reference(a, b, scale_a, scale_b)))
      print(select(2, pcall(q.int4_matmul_cuda, a, b, scale_a, scale_b)))
      held:free()
      print(q.int4_matmul_cuda(a, b, scale_a, scale_b).device)
    ]], { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host" })
    assert.equal(0, status, output)
    assert.matches("^true\n.*int4_matmul_cuda: out of memory on cuda:0: asked for %d+ bytes.*\ncpu\n$", output)
  end)

  it("a small product goes there from the slowest instruction set alone", function()
    local output, status = helper.luajit([[
      local q = require "int4mm"
      local a, b, scale_a, scale_b = q.generate_test_data(128, 128, 128)
      for _, isa in ipairs(q.cpu_isas()) do
        q.set_cpu_isa(isa)
        local device = q.explain(a, b, scale_a, scale_b).device
        if device ~= (isa == "scalar" and "cuda:0" or "cpu") then print(isa, device) end
      end
    ]], { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host", INT4MM_NUM_THREADS = "1" })
    assert.equal(0, status, output)
    assert.equal("", output)
  end)

  -- the slowest instruction set, so that a small product is worth the copies
  it("a product that went there by itself and finds no memory comes back to the CPU", function()
    local output, status = helper.luajit([[
      local q = require "int4mm"
      local a, b, scale_a, scale_b = q.generate_test_data(256, 256, 256)
      print(q.explain(a, b, scale_a, scale_b).device)
      local held = q.empty { 2^30 - 1000, dtype = "int8", device = "cuda" }
      print(q.int4_matmul(a, b, scale_a, scale_b):equal(q.int4_matmul_cpu(a, b, scale_a, scale_b)))
      local out = q.zeros { 256, 256 }
      q.int4_matmul(a, b, scale_a, scale_b, { out = out })
      print(out:equal(q.int4_matmul_cpu(a, b, scale_a, scale_b, { out_dtype = "float32" })))
      print(select(2, pcall(q.int4_matmul_cuda, a, b, scale_a, scale_b)), held.device)
    ]], { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host", INT4MM_NUM_THREADS = "1", INT4MM_CPU = "scalar" })
    assert.equal(0, status, output)
    assert.matches("^cuda:0\ntrue\ntrue\n.*int4_matmul_cuda: out of memory", output)
  end)
end)
