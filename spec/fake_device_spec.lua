--- The specs of the GPU on a device in host memory (spec/c/fake_cuda.c), so that everything but the kernels is tested
-- where there is no GPU: copies, views, streams, staging, the choice of a device.

local helper = require "spec.helper"

local library = helper.build_folder() .. "/spec/c/fake_cuda.so"

describe("on a device in host memory", function()
  for _, spec in ipairs {
    "spec/cuda_spec.lua", "spec/elementwise_spec.lua", "spec/matmul_cuda_spec.lua", "spec/graph_spec.lua",
    "spec/tensor_methods_spec.lua", "spec/dlpack_spec.lua", "spec/group_quantize_spec.lua", "spec/grouped_spec.lua",
    "spec/layer_kinds_spec.lua",
  } do
    it(spec .. " passes", function()
      local output, status = helper.luajit('require("busted.runner")({ standalone = false })',
        { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host", INT4MM_SWEEP = "30", INT4MM_NUM_THREADS = "1",
          INT4MM_CPU = false }, -- the fastest: the product itself is not what is tested
        "/dev/null --ignore-lua --output=plainTerminal " .. spec)
      local passed, failed, errors = output:match "(%d+) success%w* / (%d+) failures? / (%d+) errors?"
      assert(status == 0 and tonumber(passed) > 20 and failed == "0" and errors == "0", output)
    end)
  end

  -- INT4MM_CUDA_ARCH hides the kernels of newer architectures, from their names as well.
  it("spec/matmul_cuda_spec.lua passes with the kernels of sm_80 alone", function()
    local output, status = helper.luajit('require("busted.runner")({ standalone = false })',
      { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host", INT4MM_SWEEP = "20", INT4MM_NUM_THREADS = "1",
        INT4MM_CPU = false, INT4MM_CUDA_ARCH = "sm_80" },
      "/dev/null --ignore-lua --output=plainTerminal spec/matmul_cuda_spec.lua")
    assert(status == 0 and output:find " 0 failures / 0 errors", output)
  end)

  local function as_arch(arch, code)
    return helper.luajit('local q = require "int4mm"\n' .. code,
      { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host", INT4MM_CUDA_ARCH = arch })
  end

  it("the choice is an older architecture's where INT4MM_CUDA_ARCH says so", function()
    local output, status = as_arch("80", [[
      local a, b, scale_a, scale_b = q.generate_test_data(512, 512, 512, { device = "cuda" })
      print(q.device_info().arch, q.device_info().kernel_arch)
      local plan = q.explain(a, b, scale_a, scale_b)
      print(plan.kernel == q.choose_cuda { arch = 80, code_arch = 90, sms = 132, clock = 1980, memory = 3350, M = 512,
        K = 512, N = 512 }.kernel, (plan.reason:match "scaled from sm_90 to .*"))
      print(select(2, pcall(q.int4_matmul, a, b, scale_a, scale_b, { kernel = "hopper_256x128" })))
    ]])
    assert.equal(0, status, output)
    assert.equal("90\t80\ntrue\tscaled from sm_90 to 1980 MHz and 3350 GB/s\nint4_matmul: the kernel "
      .. "hopper_256x128 needs sm_90, this is sm_80 by INT4MM_CUDA_ARCH\n", (output:gsub("%(command line%):%d+: ", "")))
  end)

  it("an INT4MM_CUDA_ARCH that cannot be followed is an error of the first call on a GPU", function()
    for arch, message in pairs {
      ["85x"] = 'INT4MM_CUDA_ARCH is "85x", expected one of 75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121',
      ["81"] = 'INT4MM_CUDA_ARCH is "81", expected one of 75,',
      ["120"] = "INT4MM_CUDA_ARCH is 120, but cuda:0 is an sm_90, which runs no newer code",
    } do
      local output, status = as_arch(arch, [[
        print(q.cuda_available(), q.ones({ 2, 8 }).device)
        print(select(2, pcall(q.zeros, { 2, 2, device = "cuda" })))
        print(select(2, pcall(q.device_info)))
      ]])
      assert.equal(0, status, output)
      assert.matches("^true\tcpu\n", output)
      local _, count = output:gsub(message:gsub("%p", "%%%0"), "")
      assert.equal(2, count, output)
    end
  end)

  it("products of one's choice are drawn and compared", function()
    local env = { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host", INT4MM_NUM_THREADS = "1" }
    local function draw(arguments) return helper.script("spec/products.lua", arguments, env) end
    local output, status = draw "count=6 M=2 N=32-64/32 K=256 group=128 scaling=group zeros=false kernel=simple,tiled"
    assert.same({ "simple           6 products\ntiled            6 products\n", 0 }, { output, status })
    output, status = draw "M=2-"
    assert.equal(1, status)
    assert.matches("2- is no size, as 5, 1-16 or 128-512/32 is", output, 1, true)
    assert.matches("fast is not KEY=VALUE", draw "fast", 1, true)
  end)

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

  --- Output of a script on the device, in which these calls fail (see spec/c/fake_cuda.c).
  local function with_failures(failing, code)
    local output, status = helper.luajit('local q = require "int4mm"\n' .. code,
      { INT4MM_CUDA_LIBRARY = library, INT4MM_FAKE_CUDA = "host", INT4MM_FAKE_FAIL = failing,
        INT4MM_CUDA_ARCH = false }) -- an sm_90, whose kernels are named
    assert.equal(0, status, output)
    return output
  end

  it("a product that a GPU cannot run for want of code is done on the CPU, unless the GPU was asked for", function()
    -- slow enough on one thread of scalar code for copies to a GPU to pay
    assert.equal("true\tcpu\tcuda:0\nfalse\ttrue\n", with_failures("2matmul", [[
      q.set_cpu_isa "scalar"
      q.set_num_threads(1)
      local a, b, scale_a, scale_b = q.generate_test_data(256, 256, 256)
      local planned = q.explain(a, b, scale_a, scale_b).device
      local c = q.int4_matmul(a, b, scale_a, scale_b)
      print(c:equal(q.int4_matmul_cpu(a, b, scale_a, scale_b)), c.device, planned)
      local ok, message = pcall(q.int4_matmul_cuda, a, b, scale_a, scale_b)
      print(ok, message:find("no kernel image is available", 1, true) ~= nil)
    ]]))
  end)

  it("a product into a given out is tried again after a collection, too", function()
    -- rows of a start off 16 bytes, and this kernel takes a copy of them
    local product = [[
      local garbage = {}
      local _, b, scale_a, scale_b = q.generate_test_data(16, 64, 16, { device = "cuda" })
      local a = q.ones({ 16, 12, dtype = "int32", device = "cuda" }):narrow(2, 2, 8)
      local out = q.empty { 16, 16, dtype = "float16", device = "cuda" }
      local collected = false
      getmetatable(newproxy(true)).__gc = function() collected = true end
      local opts = { kernel = "narrow_64x64", out = out }
      local ok, message = pcall(q.int4_matmul_cuda, a, b, scale_a, scale_b, opts)
      print(ok, collected, ok or message)
    ]]
    assert.equal("true\ttrue\ttrue\n", with_failures("1scratch", product))
    assert.matches("^false\ttrue\tint4_matmul_cuda: out of memory on cuda:0: asked for 2048 bytes of scratch memory\n$",
      with_failures("2scratch", product))
  end)

  it("a product whose CTAs would share K does without where there is no scratch memory for it", function()
    local product = [[
      local a, b, scale_a, scale_b = q.generate_test_data(16, 8192, 32, { device = "cuda" })
      local opts = { kernel = "mma_64x64" }
      assert(q.explain(a, b, scale_a, scale_b, opts).split_k > 1)
      opts.out = q.empty { 16, 32, dtype = "float16", device = "cuda" }
      local expected = q.int4_matmul_cpu(a:to "cpu", b:to "cpu", scale_a:to "cpu", scale_b:to "cpu")
      local free = q.device_info().free_memory
      for _ = 1, 2 do
        print(q.int4_matmul_cuda(a, b, scale_a, scale_b, opts):to "cpu":equal(expected))
        assert(q.device_info().free_memory == free)
      end
    ]]
    assert.equal("true\ntrue\n", with_failures("1scratch", product))
  end)

  it("the first failure of a call is the one that is told", function()
    assert.matches("^false\tint4_matmul_cuda: cannot launch the product: no kernel image is available[^\n]*\n$",
      with_failures("matmul,scratch_free", [[
        local _, b, scale_a, scale_b = q.generate_test_data(16, 64, 16, { device = "cuda" })
        local a = q.ones({ 16, 12, dtype = "int32", device = "cuda" }):narrow(2, 2, 8)
        print(pcall(q.int4_matmul_cuda, a, b, scale_a, scale_b, { kernel = "narrow_64x64" }))
      ]]))
  end)

  it("a stream that could not be destroyed can be tried again", function()
    assert.matches("^false\t.*destroy: cannot destroy the stream: it was told so\ntrue\nstream%(cuda:0, destroyed%)\n$",
      with_failures("stream_destroy", [[
        local stream = q.stream()
        print(pcall(stream.destroy, stream))
        print((pcall(stream.synchronize, stream)))
        stream:destroy()
        print(stream)
      ]]))
  end)

  it("a graph that cannot be instantiated leaves nothing, and its function may be captured again", function()
    assert.matches("^false\t[^\n]*graph: cannot instantiate the CUDA graph: it was told so\n0\ntrue\n$",
      with_failures("graph_end", [[
        local x = q.ones { 8, 8, device = "cuda" }
        local before = q.memory()["cuda:0"].allocated
        local function body() return q.rotate(x, { block = 4 }) end
        print(pcall(q.graph, body))
        collectgarbage()
        print(q.memory()["cuda:0"].allocated - before)
        local graph, y = q.graph(body)
        graph:launch()
        print(y:equal(body()))
      ]]))
  end)

  it("pinned memory is tried again after a collection, too", function()
    local allocation = "print(pcall(q.empty, { 4, dtype = 'int8', pinned = true }))"
    assert.matches("^true", with_failures("1host_alloc", allocation))
    assert.matches("^false\t.*empty: out of pinned memory on cpu: asked for 4 bytes, %d+ are in use by this library",
      with_failures("2host_alloc", allocation))
  end)

  it("a call takes the current stream of its tensors' GPU, not another's", function()
    local output = with_failures(nil, [[
      local x, w = q.ones { 2, 8, device = "cuda:0" }, q.zeros { 3, 1, dtype = "int32", device = "cuda:0" }
      local scales = q.ones { 3, device = "cuda:0" }
      for name, call in pairs {
        add = function() return q.add(x, 1) end, silu = function() return q.silu(x) end,
        softmax = function() return q.softmax(x) end, rotate = function() return q.rotate(x, { block = 8 }) end,
        quantize = function() return (q.quantize(x)) end, dequantize = function() return q.dequantize(w, scales) end,
        linear = function() return q.int4_linear(x, w, scales, { layout_b = "nk" }) end,
        t = function() return x:t() end,
        matmul = function() return q.int4_matmul(w, w, scales, scales, { layout_b = "nk" }) end,
        rms_norm = function() return q.rms_norm(x) end, argmax = function() return q.argmax(x) end,
        clone = function() return x:clone() end, half = function() return x:to "float16" end,
      } do
        local y
        local graph = q.graph(function() y = call() end, { device = "cuda:1" })
        if tostring(graph) ~= "graph(cuda:1, 0 nodes)" or y:equal(call()) ~= true then print(name, graph) end
      end
    ]])
    assert.equal("", output)
  end)

  it("graphs, events and streams keep to their devices", function()
    local output = with_failures(nil, [[
      local x = q.zeros { 4, device = "cuda:1" }
      local graph = q.graph(function()
        x:fill_bytes_(1)
        q.synchronize "cuda:0" -- another device may be waited for
      end, { device = "cuda:1" })
      print(graph, select(2, pcall(graph.launch, graph, q.stream "cuda:0")))
      local event, other = q.event { device = "cuda:1" }, q.event()
      print(select(2, pcall(event.record, event, q.stream())))
      event:record()
      print(select(2, pcall(event.elapsed, event, other:record())))
      q.stream():wait(event)
      print(select(2, pcall(q.graph, function()
        q.with_stream(q.stream "cuda:0", function() x:fill_bytes_(2) end)
        q.zeros({ 4, device = "cuda:0" }):get(1)
        x:get(1)
      end, { device = "cuda:1" })))
      print(x:get(1))
      graph:launch()
      print(x:get(1) > 0)
    ]])
    local lines = {}
    for line in output:gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.matches("^graph%(cuda:1, 1 node%)\t.*launch: the stream is on cuda:0, expected one on cuda:1", lines[1])
    assert.matches("record: the stream is on cuda:0, expected one on cuda:1", lines[2], 1, true)
    assert.matches("elapsed: the event is on cuda:1 but the later one is on cuda:0", lines[3], 1, true)
    assert.matches("get: cannot copy between devices while a CUDA graph is being captured", lines[4], 1, true)
    assert.same({ "0", "true" }, { lines[5], lines[6] })
  end)

  it("memory of one device is not wrapped as another's", function()
    local output = with_failures(nil, [[
      local ffi = require "ffi"
      local host, gpu = q.ones { 4 }, q.ones { 4, device = "cuda:1" }
      for _, t in ipairs { host, gpu } do
        for _, device in ipairs { "cpu", "cuda:0", "cuda:1", "cuda:2" } do
          print(t.device, device, select(2, pcall(q.wrap, t:data(), { shape = { 4 }, device = device, owner = t })))
        end
      end
      print(pcall(q.wrap, ffi.cast("float *", 0), { shape = { 0 }, device = "cuda:0" }))
    ]])
    local expected = {
      "cpu\tcpu\ttensor([1., 1., 1., 1.]", "which is memory of cpu, not of cuda:0",
      "which is memory of cpu, not of cuda:1", "wrap: there is no device cuda:2",
      "which is memory of cuda:1, not of cpu", "which is memory of cuda:1, not of cuda:0",
      "cuda:1\tcuda:1\ttensor([1., 1., 1., 1.]", "wrap: there is no device cuda:2", "true\ttensor([]",
    }
    local i = 0
    for line in output:gmatch "[^\n]+" do
      i = i + 1
      assert.matches(expected[i], line, 1, true)
    end
    assert.equal(#expected, i)
  end)
end)
