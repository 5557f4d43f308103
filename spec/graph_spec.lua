--- CUDA graphs, the current stream, events and pinned memory. What needs a GPU is skipped without one, and runs on the
-- fake device too (fake_device_spec).

local ffi = require "ffi"

local driver = require "spec.cuda_driver"
local helper = require "spec.helper"
local q = require "int4mm"

local on_gpu = helper.on_gpu

--- Random floats on the CPU.
local function floats(seed, rows, columns, dtype)
  return q.random(q.empty { rows, columns }, { seed = seed, low = -3, high = 2 }):to(dtype or "float32")
end

local function allocated() return q.memory()["cuda:0"].allocated end

--- All garbage collected: a tensor in a closure that has become garbage goes with the second collection.
local function collect()
  collectgarbage()
  collectgarbage()
end

describe("without CUDA", function()
  it("graphs, events and pinned memory raise the reason", function()
    local output, status = helper.luajit([[
      local q = require "int4mm"
      print(pcall(q.graph, function() end))
      print(pcall(q.event))
      print(pcall(q.empty, { 2, pinned = true }))
      print(pcall(q.zeros, { 0, pinned = true }))
      print(pcall(q.tensor, { 1, 2 }, { pinned = true }))
      print(pcall(function() q.ones({ 2 }):pin() end))
      print(q.ones({ 2 }).pinned)
    ]], { INT4MM_CUDA_LIBRARY = "/nowhere/libint4mm_cuda.so" })
    assert.equal(0, status, output)
    local reason = "CUDA is not available: no CUDA build of int4mm: there is no /nowhere/libint4mm_cuda.so"
    for _, name in ipairs { "graph", "event", "empty", "zeros", "tensor", "pin" } do
      assert.matches("[^\n]*" .. name .. ": " .. reason:gsub("%p", "%%%0"), output)
    end
    assert.matches("\nfalse\n$", output)
  end)

  it("what is no stream, function, event or graph is refused before anything is opened", function()
    assert.fails_with("graph: f is 5, expected a function", function() q.graph(5) end)
    assert.fails_with({ pattern = '^graph: unknown option "stream"; the options are device, warmup' },
      function() q.graph(print, { stream = 1 }) end)
    assert.fails_with({ pattern = "^graph: warmup is %-1, expected a whole number from 0 to 1000" },
      function() q.graph(print, { warmup = -1 }) end)
    assert.fails_with({ pattern = '^event: unknown option "timing"' }, function() q.event { timing = true } end)
    assert.fails_with("with_stream: the stream is nil, expected one from int4mm.stream",
      function() q.with_stream(nil, print) end)
    assert.fails_with("empty: pinned is 1, expected true or false", function() q.empty { 2, pinned = 1 } end)
    assert.fails_with("empty: pinned is true but device is cuda:0: pinned memory is the host's; leave one of them out",
      function() q.empty { 2, pinned = true, device = "cuda" } end)
    local t = q.ones { 2 }
    assert.fails_with({ pattern = '^copy_: unknown option "async"; the options are stream, non_blocking' },
      function() t:copy_(t, { async = true }) end)
    assert.fails_with("to: the options are 3, expected a table", function() t:to("cpu", "int8", 3) end)
  end)

  it("the C functions refuse NULL", function()
    local lib = require("int4mm.lib").lib
    local out, graph, something = ffi.new "void *[1]", ffi.new "int4mm_graph *[1]", ffi.cast("void *", 16)
    local done, milliseconds = ffi.new "int32_t[1]", ffi.new "float[1]"
    local function refuses(words, name, ...)
      assert.equal(1, lib[name](...), name)
      assert.equal(words, ffi.string(lib.int4mm_last_error()))
    end
    refuses("event is NULL", "int4mm_event_create", 0, nil)
    refuses("device is -1: CUDA devices count from 0", "int4mm_event_create", -1, out)
    for _, name in ipairs { "destroy", "synchronize" } do refuses("event is NULL", "int4mm_event_" .. name, 0, nil) end
    refuses("event is NULL", "int4mm_event_record", 0, nil, nil)
    refuses("event is NULL", "int4mm_event_query", 0, nil, done)
    refuses("done is NULL", "int4mm_event_query", 0, something, nil)
    refuses("start is NULL", "int4mm_event_elapsed", 0, nil, something, milliseconds)
    refuses("end is NULL", "int4mm_event_elapsed", 0, something, nil, milliseconds)
    refuses("milliseconds is NULL", "int4mm_event_elapsed", 0, something, something, nil)
    refuses("event is NULL", "int4mm_stream_wait", 0, nil, nil)
    refuses("graph is NULL", "int4mm_graph_begin", 0, nil, out)
    refuses("stream is NULL", "int4mm_graph_begin", 0, graph, nil)
    refuses("device is -1: CUDA devices count from 0", "int4mm_graph_begin", -1, graph, out)
    refuses("graph is NULL", "int4mm_graph_end", nil)
    refuses("graph is NULL", "int4mm_graph_launch", nil, nil)
    refuses("graph is NULL", "int4mm_graph_synchronize", nil)
    assert.equal(0, lib.int4mm_graph_destroy(nil))
    assert.equal(0, tonumber(lib.int4mm_graph_nodes(nil)))
    refuses("tensor is NULL", "int4mm_tensor_alloc_pinned", nil, 1, 1, 1, 0)
    refuses("rank is 3: a tensor is a vector (1) or a matrix (2)", "int4mm_tensor_alloc_pinned",
      ffi.new "int4mm_tensor", 3, 1, 1, 0)
    refuses("dst is NULL", "int4mm_tensor_copy_async", nil, nil, nil)
    assert.equal(0, lib.int4mm_tensor_is_pinned(nil))
    assert.equal(0, lib.int4mm_tensor_is_pinned(ffi.new "int4mm_tensor"))
  end)

  it("non-blocking copies between CPU tensors are copies", function()
    local t = q.empty { 2 }
    t:copy_(q.tensor { 3, 4 }, { non_blocking = true })
    assert.same({ 3, 4 }, t:totable())
    assert.same({ 3, 4 }, t:to("float16", { non_blocking = true }):totable())
    assert.same({ 3, 4 }, t:to("cpu", "float16", { non_blocking = true }):totable())
  end)
end)

-- ---- graphs ----

describe("a graph", function()
  local shapes = { { 1, 64, 32 }, { 5, 136, 24 }, { 33, 264, 129 }, { 130, 512, 256 } }

  for _, layout in ipairs { "kn", "nk" } do -- nk takes scratch memory
    on_gpu("replays quantising and a product on new inputs: " .. layout, function()
      for i, shape in ipairs(shapes) do
        local M, K, N = unpack(shape)
        local weight = floats(1, layout == "kn" and K or N, layout == "kn" and N or K):to "cuda"
        local w, scale_w = q.quantize(weight, { dim = layout == "kn" and 1 or 2 })
        local x = floats(2, M, K):to "cuda"
        local bias = q.random(q.empty { N, device = "cuda" }, { seed = 3 })
        local function layer()
          local a, scale_a = q.quantize(x, { check = false, rotate = 8, clip = i % 2 == 0 and "mse" or nil })
          return q.int4_matmul(a, w, scale_a, scale_w, { bias = bias, out_dtype = "bfloat16" }), a, scale_a
        end
        local graph, c, a, scale_a = q.graph(layer)
        for seed = 4, 6 do
          x:copy_(floats(seed, M, K))
          c:fill_bytes_(0x55)
          graph:launch()
          local expected, expected_a, expected_scale = layer()
          local name = ("%d x %d x %d, inputs %d"):format(M, K, N, seed)
          assert.same_bits(expected_a, a, name)
          assert.same_bits(expected_scale, scale_a, name)
          assert.same_bits(expected, c, name)
        end
      end
    end)
  end

  on_gpu("holds everything else that is only enqueued", function()
    local x, words = floats(1, 6, 40, "float16"):to "cuda", q.zeros { 6, 5, dtype = "int32", device = "cuda" }
    local function body()
      local rotated = q.rotate(x, { block = 4 })
      local copied = q.empty({ 6, 40, dtype = "float16", device = "cuda" }):copy_(rotated)
      local zeros = q.zeros { 6, 40, dtype = "float16", device = "cuda" }
      zeros:narrow(1, 2, 3):copy_(copied:narrow(1, 1, 3))
      local values = q.unpack_int32_to_int4(words)
      q.random(words, { seed = 9 })
      local scales = q.random(q.empty { 6, device = "cuda" }, { seed = 5 })
      return zeros, values, q.dequantize(words, scales, { dtype = "bfloat16" }), rotated:clone()
    end
    local graph, zeros, values, dequantized, clone = q.graph(body)
    local got = { zeros, values, dequantized, clone }
    assert(graph.nodes >= 8, tostring(graph))
    for seed = 1, 3 do
      x:copy_(floats(seed, 6, 40, "float16"))
      words:fill_bytes_(seed)
      graph:launch()
      local bits = {}
      for i, t in ipairs(got) do bits[i] = helper.bytes(t) end
      words:fill_bytes_(seed)
      for i, t in ipairs { body() } do assert.same_bits(bits[i], t, "result " .. i) end
    end
  end)

  on_gpu("runs nothing before it is launched, and what it was given streams for at once", function()
    local captured, direct = q.zeros { 4, device = "cuda" }, q.zeros { 4, device = "cuda" }
    local stream = q.stream()
    local graph = q.graph(function()
      captured:fill_bytes_(1)
      direct:fill_bytes_(1, stream)
    end)
    stream:synchronize()
    assert.same_bits(("\0"):rep(16), captured)
    assert.same_bits(("\1"):rep(16), direct)
    direct:fill_bytes_(0)
    graph:launch():launch()
    graph:synchronize()
    assert.same_bits(("\1"):rep(16), captured)
    assert.same_bits(("\0"):rep(16), direct)
    assert.equal(1, graph.nodes)
  end)

  on_gpu("may be empty", function()
    local graph, one, two, three = q.graph(function() return nil, 2, nil end)
    graph:launch():synchronize()
    assert.equal("graph(cuda:0, 0 nodes)", tostring(graph))
    assert.same({ nil, 2, nil }, { one, two, three })
  end)

  on_gpu("is warmed up by as many calls as asked for", function()
    local calls, count, streams = 0, q.zeros { 1, dtype = "int32", device = "cuda" }, {}
    local graph = q.graph(function(stream)
      calls = calls + 1
      streams[calls] = stream
      count:fill_bytes_(calls)
    end, { warmup = 2, device = "cuda:0" })
    assert.equal(3, calls)
    assert.equal(0x02020202, count:get(1))
    graph:launch()
    assert.equal(0x03030303, count:get(1))
    for i = 1, 3 do
      assert.equal("cuda:0", streams[i].device)
      assert.fails_with({ pattern = "^fill_bytes_: the stream has been destroyed" },
        function() count:fill_bytes_(0, streams[i]) end)
    end
  end)

  on_gpu("keeps what it uses, whatever becomes of the tensors", function()
    local a, b, scale_a, scale_b = q.generate_test_data(16, 64, 24, { device = "cuda" })
    local expected = helper.bytes(q.int4_matmul(a, b, scale_a, scale_b))
    local out = q.empty { 16, 24, dtype = "float16", device = "cuda" }
    local graph = q.graph(function() q.int4_matmul(a, b, scale_a, scale_b, { out = out }) end)
    local view = out:narrow(1, 1, 16)
    for _, t in ipairs { a, b, scale_a, scale_b, out } do t:free() end
    a, b, scale_a, scale_b = nil, nil, nil, nil
    collect()
    for _ = 1, 20 do q.empty({ 16, 24, device = "cuda" }):fill_bytes_(0xff) end
    view:fill_bytes_(0)
    graph:launch()
    assert.same_bits(expected, view)
  end)

  on_gpu("keeps what is made inside until it is freed, and its results outlive it", function()
    collect()
    local x = q.ones { 256, 1024, device = "cuda" }
    local before = allocated()
    local graph, result = q.graph(function()
      for _ = 1, 10 do q.quantize(x, { check = false }) end -- dropped
      collect()
      return q.rotate(x, { block = 4 })
    end)
    collect()
    assert.equal(10 * (256 * 128 + 256) * 4 + 256 * 1024 * 4, allocated() - before)
    graph:launch()
    graph:free()
    assert.equal(256 * 1024 * 4, allocated() - before)
    q.empty({ 256, 1024, device = "cuda" }):fill_bytes_(0xff)
    assert.same_bits(q.rotate(x, { block = 4 }), result)
    result:free()
    collect()
    assert.equal(before, allocated())
  end)

  on_gpu("stands garbage collection in its function", function()
    local x = floats(1, 64, 256):to "cuda"
    local w, scale_w = q.quantize(floats(2, 256, 128):to "cuda", { dim = 1 })
    local graphs = {}
    local function body()
      local c
      for i = 1, 60 do
        q.empty({ 300, 300, device = "cuda" }):narrow(1, 2, 5):fill_bytes_(i) -- garbage that the graph uses
        q.empty { 100, 100, device = "cuda" } -- and that it does not
        q.stream()
        q.event():record()
        local a, scale_a = q.quantize(x, { check = false })
        c = q.int4_matmul(a, w, scale_a, scale_w)
        if i % 7 == 0 then
          for k in pairs(graphs) do graphs[k] = nil end -- graphs that are collected during a capture
          collect()
        end
      end
      return c
    end
    for round = 1, 3 do
      local graph, c = q.graph(body)
      collect()
      x:copy_(floats(round, 64, 256))
      graph:launch()
      local a, scale_a = q.quantize(x)
      assert.same_bits(q.int4_matmul(a, w, scale_a, scale_w), c)
      graphs[round] = q.graph(function() x:clone() end):launch()
    end
  end)

  on_gpu("that is dropped with its tensors leaves nothing", function()
    collect()
    local before = allocated()
    for i = 1, 50 do
      local graph = q.graph(function()
        return q.empty({ 100, 100, device = "cuda" }):fill_bytes_(i):fill_bytes_(i + 1)
      end)
      graph:launch()
    end
    collect()
    q.synchronize()
    assert.equal(before, allocated())
  end)

  on_gpu("has scratch memory of its own, without nodes for it, which calls one after the other share", function()
    local w, scale = q.quantize(floats(1, 32, 64):to "cuda")
    local xs, outs, expected = {}, {}, {}
    for i, M in ipairs { 40, 3, 130, 130, 7 } do
      xs[i], outs[i] = floats(i, M, 64):to "cuda", q.empty { M, 32, device = "cuda" }
      expected[i] = q.int4_linear(xs[i], w, scale, { layout_b = "nk", rotate = 8 })
    end
    local workspace = q.empty { q.linear_workspace(130, 64), dtype = "int8", device = "cuda" }
    local function capture(given)
      collect()
      local before = allocated()
      local graph = q.graph(function()
        for i, x in ipairs(xs) do
          q.int4_linear(x, w, scale, { layout_b = "nk", rotate = 8, out = outs[i], workspace = given })
        end
      end)
      return graph, allocated() - before
    end
    local graph, bytes = capture()
    local plain = capture(workspace)
    assert.equal(plain.nodes, graph.nodes)
    assert.equal(q.linear_workspace(40, 64) + q.linear_workspace(130, 64), bytes)
    for _ = 1, 3 do
      for _, out in ipairs(outs) do out:fill_bytes_(0x55) end
      graph:launch()
      for i, out in ipairs(outs) do assert.same_bits(expected[i], out, "call " .. i) end
    end
    local before = allocated()
    graph:free()
    assert.equal(before - bytes, allocated())
  end)

  on_gpu("shares no scratch memory between streams", function()
    local w, scale = q.quantize(floats(1, 256, 512):to "cuda")
    local x, y = floats(2, 300, 512):to "cuda", floats(3, 300, 512):to "cuda"
    local side, opts = q.stream(), { layout_b = "nk", rotate = 16 }
    local expected = { q.int4_linear(x, w, scale, opts), q.int4_linear(y, w, scale, opts) }
    local outs = { q.zeros { 300, 256, device = "cuda" }, q.zeros { 300, 256, device = "cuda" } }
    local function layer(input, out, stream)
      for _ = 1, 4 do
        q.int4_linear(input, w, scale, { layout_b = "nk", rotate = 16, out = out, stream = stream })
      end
    end
    local graph = q.graph(function(stream)
      local fork, join = q.event(), q.event()
      fork:record()
      side:wait(fork)
      layer(x, outs[1])
      layer(y, outs[2], side)
      join:record(side)
      stream:wait(join)
    end)
    for _ = 1, 20 do
      for _, out in ipairs(outs) do out:fill_bytes_(0x55) end
      graph:launch()
      for i, out in ipairs(outs) do assert.same_bits(expected[i], out, "stream " .. i) end
    end
  end)

  on_gpu("keeps the owner of borrowed memory", function()
    local memory = q.zeros { 4, device = "cuda" }
    local gone = false
    local owner = newproxy(true)
    getmetatable(owner).__gc = function() gone = true end
    local t = q.wrap(memory:data(), { shape = { 4 }, device = "cuda", owner = owner })
    local graph = q.graph(function() t:narrow(1, 1, 2):fill_bytes_(7) end)
    t, owner = nil, nil
    collect()
    assert.is_false(gone)
    graph:launch()
    assert.same_bits(("\7"):rep(8) .. ("\0"):rep(8), memory)
    graph:free()
    collect()
    assert.is_true(gone)
    assert.is_nil(t or owner)
  end)

  on_gpu("passes on an error of its function, and everything is as before", function()
    collect()
    local x = q.ones { 100, 100, device = "cuda" }
    local before = allocated()
    local thrown = { "an error of the program's own" }
    for _ = 1, 5 do
      local ok, err = pcall(q.graph, function()
        x:fill_bytes_(9)
        q.rotate(x, { block = 4 })
        error(thrown)
      end)
      assert.is_false(ok)
      assert.equal(thrown, err)
    end
    assert.fails_with({ pattern = "^fill_bytes_: the byte is 256, expected a whole number from 0 to 255" },
      function() q.graph(function() x:fill_bytes_(256) end) end)
    collect()
    q.synchronize()
    assert.equal(before, allocated())
    assert.equal(1, x:get(100, 100))
    local graph = q.graph(function() x:fill_bytes_(0) end)
    graph:launch()
    assert.equal(0, x:get(100, 100))
  end)

  local target, capturing -- what they use
  local refused = {
    { "quantising with its check", "^quantize: cannot check values while a CUDA graph is being captured, .*: "
      .. "give check = false", function() q.quantize(target) end },
    { "packing, which checks", "^pack_int4_to_int32: .*: pack before the capture",
      function() q.pack_int4_to_int32(target:narrow(2, 1, 8)) end, "int8" },
    { "reading an element", "^get: cannot copy between devices while a CUDA graph is being captured, .* pinned host "
      .. "memory and non_blocking = true", function() print(target:get(1, 1)) end },
    { "setting an element", "^set: cannot copy", function() target:set(1, 1, 5) end },
    { "reading all", "^totable: cannot copy", function() target:totable() end },
    { "filling from the host", "^fill_: cannot copy", function() target:fill_(5) end },
    { "a copy to the host", "^to: cannot copy", function() target:to("cpu"):free() end },
    { "a copy from the host", "^copy_: cannot copy", function() target:copy_(q.ones { 16, 16 }) end, "float32" },
    { "a copy without pinned memory", "^copy_: cannot copy",
      function() target:copy_(q.ones { 16, 16 }, { non_blocking = true }) end, "float32" },
    { "waiting for the device", "^synchronize: cannot wait for cuda:0 while a CUDA graph is being captured",
      function() q.synchronize() end },
    { "waiting for its stream", "^synchronize: cannot wait for the stream while",
      function() capturing:synchronize() end },
    { "destroying its stream", "^destroy: the stream is a CUDA graph's", function() capturing:destroy() end },
    { "prepacking", "^prepack: a CUDA graph is being captured on cuda:0, .*: prepack before",
      function() q.prepack(target) end, "int32" },
    { "another graph", "^graph: a CUDA graph is being captured already, and captures do not nest",
      function() q.graph(function() end) end },
  }
  for _, case in ipairs(refused) do
    local what, pattern, f, dtype = unpack(case, 1, 4)
    on_gpu("refuses " .. what .. ", and the capture goes on", function()
      target = q.zeros { 16, 16, dtype = dtype or "float32", device = "cuda" }
      local graph = q.graph(function(stream)
        capturing = stream
        assert.fails_with({ pattern = pattern }, f)
        target:fill_bytes_(3)
      end)
      assert.same_bits(("\0"):rep(target:bytes()), target)
      graph:launch()
      assert.same_bits(("\3"):rep(target:bytes()), target)
    end)
  end

  on_gpu("is not launched inside another", function()
    local inner = q.graph(function() end)
    q.graph(function()
      assert.fails_with({ pattern = "^launch: a CUDA graph is being captured, in which another one cannot be" },
        function() inner:launch() end)
    end)
    inner:launch()
  end)

  on_gpu("may span several streams, by events", function()
    local x, y = floats(1, 64, 64):to "cuda", q.zeros { 64, 64, device = "cuda" }
    local z = q.zeros { 64, 64, device = "cuda" }
    local side = q.stream()
    local graph = q.graph(function(stream)
      local fork, join = q.event(), q.event()
      fork:record()
      side:wait(fork)
      q.rotate(x, { block = 4, out = y, stream = side })
      join:record(side)
      q.rotate(x, { block = 16, out = z })
      stream:wait(join)
      y:copy_(z:narrow(1, 1, 64))
    end)
    y:fill_bytes_(0)
    x:copy_(floats(2, 64, 64))
    side:synchronize() -- it captures no more
    graph:launch()
    assert.same_bits(q.rotate(x, { block = 16 }), y)
    assert.equal(3, graph.nodes)
  end)

  on_gpu("is launched on any stream of its GPU", function()
    local t = q.zeros { 1000, 1000, dtype = "int32", device = "cuda" }
    local graph = q.graph(function() t:copy_(q.random(q.empty { 1000, 1000, dtype = "int32", device = "cuda" })) end)
    local expected = q.random(q.empty { 1000, 1000, dtype = "int32" })
    local stream = q.stream()
    for _, on in ipairs { stream, stream.handle } do
      t:fill_bytes_(0, stream)
      graph:launch(on)
      graph:synchronize()
      assert.same_bits(expected, t)
    end
    t:fill_bytes_(0, stream)
    q.with_stream(stream, function() graph:launch() end)
    stream:synchronize()
    assert.same_bits(expected, t)
    stream:destroy()
    graph:synchronize() -- although the stream is gone
  end)

  on_gpu("is ordered with the default stream", function()
    local x = q.zeros { 2048, 2048, dtype = "int32", device = "cuda" }
    local graph, y = q.graph(function() return x:clone() end)
    for i = 1, 50 do
      x:fill_bytes_(i)
      graph:launch()
      x:fill_bytes_(0xff)
      if i % 10 == 0 then assert.same_bits(string.char(i):rep(4 * 2048 * 2048), y) end
    end
  end)

  on_gpu("describes itself, and is of no use once freed", function()
    local graph = q.graph(function() q.zeros { 3, device = "cuda" } end)
    assert.equal("graph(cuda:0, 1 node)", tostring(graph))
    assert.equal("cuda:0", graph.device)
    assert.fails_with({ pattern = '^graph: there is no field or method "run"' }, function() graph:run() end)
    assert.fails_with({ pattern = "^graph: \"device\" cannot be assigned" }, function() graph.device = 1 end)
    assert.fails_with({ pattern = "^launch: stream is 5" }, function() graph:launch(5) end)
    graph:free()
    graph:free()
    assert.equal("graph(cuda:0, freed)", tostring(graph))
    for _, name in ipairs { "launch", "synchronize" } do
      assert.fails_with(name .. ": the graph was freed", function() graph[name](graph) end)
    end
    assert.fails_with("launch: the graph is nil, expected one from int4mm.graph", function() graph.launch() end)
  end)
end)

-- ---- the current stream ----

describe("with_stream", function()
  on_gpu("gives calls a stream, and puts the one of before back", function()
    local outer, inner = q.stream(), q.stream()
    local t = q.zeros { 500, 500, dtype = "int32", device = "cuda" }
    local one, two, three = q.with_stream(outer, function(...)
      t:fill_bytes_(1)
      outer:synchronize() -- nothing else orders the two
      q.with_stream(inner, function() t:fill_bytes_(2) end)
      inner:synchronize()
      return nil, select("#", ...), t:clone()
    end, nil, nil)
    assert.is_nil(one)
    assert.equal(2, two)
    assert.equal(3, q.with_stream(outer, function() return t:copy_(three):get(1, 1) end) % 256 + 1)
    local ok, err = pcall(q.with_stream, outer, error, "an error")
    assert.same({ false, "an error" }, { ok, err })
    outer:destroy() -- nothing uses it any more
    inner:destroy()
    t:fill_bytes_(4)
    assert.equal(0x04040404, t:get(500, 500))
  end)

  on_gpu("serves the whole of a layer, with the same bits", function()
    local x, weight = floats(1, 40, 128):to "cuda", floats(2, 128, 64):to "cuda"
    local function layer()
      local w, scale_w = q.quantize(weight, { dim = 1 })
      local a, scale_a = q.quantize(x)
      return q.int4_matmul(a, q.prepack(w), scale_a, scale_w)
    end
    assert.same_bits(layer(), q.with_stream(q.stream(), layer))
  end)

  on_gpu("gives its stream to work of any device that is not told, until it returns", function()
    local devices = require "int4mm.device"
    local outer, inner = q.stream(), q.stream()
    local function handle() return devices.stream_handle("spec", nil) end
    assert.is_nil(handle())
    q.with_stream(outer, function()
      q.with_stream(inner, function() assert.equal(inner.handle, handle()) end)
      assert.equal(outer.handle, handle())
    end)
    assert.is_nil(handle())
  end)

  on_gpu("refuses a stream that is gone", function()
    local stream = q.stream()
    stream:destroy()
    assert.fails_with("with_stream: the stream has been destroyed", function() q.with_stream(stream, print) end)
    assert.fails_with("with_stream: f is nil, expected a function", function() q.with_stream(q.stream()) end)
  end)
end)

-- ---- events ----

describe("an event", function()
  on_gpu("tells when work is done, and the time it took", function()
    local a, b, scale_a, scale_b = q.generate_test_data(512, 512, 512, { device = "cuda" })
    local out = q.empty { 512, 512, dtype = "float16", device = "cuda" }
    for _, stream in ipairs { false, q.stream() } do
      local events = {}
      for i = 1, 4 do
        events[i] = q.event():record(stream or nil)
        for _ = 1, i do q.int4_matmul(a, b, scale_a, scale_b, { out = out, stream = stream or nil }) end
      end
      local last = q.event { device = "cuda:0" }
      assert.equal("event(cuda:0, not recorded)", tostring(last))
      last:record(stream or nil)
      assert.equal("event(cuda:0, recorded)", tostring(last))
      last:synchronize()
      local sum = 0
      events[5] = last
      for i = 1, 4 do
        assert.is_true(events[i]:query())
        local between = events[i]:elapsed(events[i + 1])
        assert(between > 0, between)
        sum = sum + between
      end
      assert(math.abs(sum - events[1]:elapsed(last)) < 0.01)
      assert(last:elapsed(events[1]) < 0)
    end
  end)

  on_gpu("is not done while its work is not", function()
    local n = 32 * 2 ^ 20
    local pinned, t = q.zeros { n, dtype = "int8", pinned = true }, q.empty { n, dtype = "int8", device = "cuda" }
    q.synchronize()
    local stream, event = q.stream(), q.event()
    assert.is_true(event:query()) -- nothing to wait for
    for _ = 1, 20 do t:copy_(pinned, { stream = stream, non_blocking = true }) end
    event:record(stream)
    assert.is_false(event:query())
    event:synchronize()
    assert.is_true(event:query())
  end)

  on_gpu("orders streams", function()
    local first, second = q.stream(), q.stream()
    local x = q.zeros { 4096, 4096, dtype = "int32", device = "cuda" }
    local y = q.zeros { 4096, 4096, dtype = "int32", device = "cuda" }
    local done = q.event()
    for i = 1, 10 do
      x:fill_bytes_(i, first)
      done:record(first)
      second:wait(done)
      y:copy_(x, second)
      q.with_stream(second, function() done:record() end)
      first:wait(done)
    end
    second:synchronize()
    assert.same_bits(("\10"):rep(4 * 4096 * 4096), y)
  end)

  on_gpu("refuses what has no time, no stream or no event", function()
    local event, other = q.event(), q.event()
    assert.fails_with("elapsed: the event was not recorded", function() event:elapsed(other) end)
    event:record()
    assert.fails_with("elapsed: the later event was not recorded", function() event:elapsed(other) end)
    assert.fails_with("elapsed: the later event is 5, expected one from int4mm.event", function() event:elapsed(5) end)
    assert.fails_with({ pattern = "^record: stream is \"main\"" }, function() event:record "main" end)
    assert.fails_with("wait: the event is nil, expected one from int4mm.event", function() q.stream():wait() end)
    assert.fails_with({ pattern = "^event: there is no field or method \"wait\"" }, function() event:wait() end)
    event:free()
    event:free()
    assert.fails_with("query: the event was freed", function() event:query() end)
    assert.equal("event(cuda:0, freed)", tostring(event))
  end)

  on_gpu("of a capture can be asked nothing", function()
    local event = q.event()
    q.graph(function() event:record() end)
    local words = ": it was last recorded while a CUDA graph was captured"
    assert.fails_with({ pattern = "^query: cannot ask whether the event is done" .. words },
      function() event:query() end)
    assert.fails_with({ pattern = "^synchronize: cannot wait for the event" .. words },
      function() event:synchronize() end)
    assert.fails_with({ pattern = "^elapsed: cannot find the time between the events" .. words },
      function() q.event():record():elapsed(event) end)
    event:record()
    event:synchronize()
    assert.is_true(event:query())
  end)
end)

-- ---- pinned memory ----

describe("pinned memory", function()
  on_gpu("is known as such", function()
    local t = q.zeros { 3, 4, dtype = "int8", pinned = true }
    assert.is_true(t.pinned)
    assert.equal("cpu", t.device)
    assert.same_bits(("\0"):rep(12), t)
    assert.is_true(t:narrow(1, 2, 1).pinned)
    assert.equal(t, t:pin())
    assert.is_true(q.wrap(t:data(), { shape = { 3, 4 }, dtype = "int8", owner = t }).pinned)
    local plain = q.tensor { { 1, 2 }, { 3, 4 } }
    assert.is_false(plain.pinned)
    assert.is_false(plain:to("cuda").pinned)
    assert.is_false(q.wrap(plain:data(), { shape = { 4 }, owner = plain }).pinned)
    for _, pinned in ipairs { plain:pin(), q.tensor({ { 1, 2 }, { 3, 4 } }, { pinned = true }),
        q.tensor(plain, { pinned = true }), q.tensor(plain:to "cuda", { pinned = true }) } do
      assert.is_true(pinned.pinned)
      assert.same_bits(plain, pinned)
    end
    assert.same({ { 5, 5 } }, q.full({ 1, 2, pinned = true }, 5):totable())
    assert.is_true(q.ones({ 2, pinned = true }).pinned)
    assert.is_true(q.empty({ 0, 5, pinned = true }).pinned)
    local again = q.tensor(t, { pinned = true })
    assert.is_true(again.pinned and again:data() ~= t:data())
    assert.fails_with({ pattern = "^pin: the tensor is on cuda:0, expected one on the CPU" },
      function() plain:to("cuda"):pin() end)
  end)

  on_gpu("goes there and back without waiting, strided too", function()
    for _, dtype in ipairs { "int32", "int8", "float16" } do
      for _, shape in ipairs { { 1, 1, 0 }, { 7, 5, 0 }, { 7, 5, 3 }, { 300, 129, 1 }, { 0, 4, 0 }, { 4, 0, 2 } } do
        local rows, columns, guard = unpack(shape)
        local whole = floats(1, rows + 2 * guard, columns + 2 * guard):to(dtype == "float16" and dtype or "float32")
        if dtype ~= "float16" then
          whole = q.random(q.empty { rows + 2 * guard, 2 * (columns + 2 * guard), dtype = "int32" }, { seed = 2 })
          whole = dtype == "int32" and whole or q.unpack_int32_to_int4(whole)
        end
        local inner = whole:pin():narrow(1, guard + 1, rows):narrow(2, guard + 1, columns)
        for _, stream in ipairs { false, q.stream() } do
          local opts = { non_blocking = true, stream = stream or nil }
          local there = inner:to("cuda:0", opts)
          local target = q.full({ rows + 1, columns + 2, dtype = dtype, pinned = true }, 0)
          target:narrow(1, 2, rows):narrow(2, 2, columns):copy_(there, opts)
          local back = there:to("cpu", opts)
          assert.is_true(back.pinned)
          q.synchronize()
          assert.same_bits(inner, back)
          assert.same_bits(inner, target:narrow(1, 2, rows):narrow(2, 2, columns))
          assert.same_bits(q.zeros { 1, columns + 2, dtype = dtype }, target:narrow(1, 1, 1))
        end
      end
    end
  end)

  on_gpu("is waited for by nobody but who needs it", function()
    local n = 64 * 2 ^ 20
    local pinned, t = q.zeros { n, dtype = "int8", pinned = true }, q.empty { n, dtype = "int8", device = "cuda" }
    t:fill_bytes_(7)
    q.synchronize()
    local stream, done = q.stream(), q.event()
    for _ = 1, 8 do pinned:copy_(t, { stream = stream, non_blocking = true }) end
    done:record(stream)
    assert.is_false(done:query())
    stream:synchronize()
    assert.same_bits(("\7"):rep(n), pinned)
    -- memory that is not pinned is waited for
    local plain = q.zeros { n, dtype = "int8" }
    plain:copy_(t, { stream = stream, non_blocking = true })
    done:record(stream)
    assert.is_true(done:query())
    assert.same_bits(("\7"):rep(n), plain)
  end)

  on_gpu("may be dropped while copies are under way", function()
    local n = 4 * 2 ^ 20
    local stream = q.stream()
    local rows = q.empty { 40, n, dtype = "int8", device = "cuda" }
    for i = 1, 40 do
      local pinned = q.empty({ 1, n, dtype = "int8", pinned = true }):fill_bytes_(i)
      rows:narrow(1, i, 1):copy_(pinned, { stream = i % 2 == 0 and stream or nil, non_blocking = true })
      if i % 3 == 0 then pinned:free() end
    end
    collect()
    q.synchronize()
    for i = 1, 40, 3 do assert.same_bits(string.char(i):rep(n), rows:narrow(1, i, 1)) end
  end)

  on_gpu("counts as memory of the CPU", function()
    collect()
    local before = q.memory().cpu.allocated
    local t = q.empty { 1000, dtype = "int8", pinned = true }
    assert.equal(before + 1000, q.memory().cpu.allocated)
    t:free()
    assert.equal(before, q.memory().cpu.allocated)
  end)

  on_gpu("goes into a graph, with what it holds at each launch", function()
    local input, output = q.zeros { 8, 64, pinned = true }, q.zeros { 8, 8, dtype = "int32", pinned = true }
    local x = q.empty { 8, 64, device = "cuda" }
    local graph = q.graph(function()
      x:copy_(input, { non_blocking = true })
      output:copy_(q.quantize(x, { check = false }), { non_blocking = true })
    end)
    local view = output:narrow(1, 1, 8)
    output:free()
    collect()
    for seed = 1, 3 do
      input:copy_(floats(seed, 8, 64))
      graph:launch():synchronize()
      assert.same_bits((q.quantize(input)), view)
    end
    assert.equal("int4 packed along dim 2, K = 64, twos_complement", tostring(view):match "int4 packed.-complement")
    graph:free()
  end)

  on_gpu("is dropped during a capture without harm", function()
    local x = q.zeros { 1000, device = "cuda" }
    local graph = q.graph(function()
      for i = 1, 30 do
        local pinned = q.full({ 1000, pinned = true }, i)
        if i % 2 == 0 then x:copy_(pinned, { non_blocking = true }) end
        pinned:free()
      end
      collect()
    end)
    collect()
    graph:launch()
    assert.equal(30, x:get(1000))
  end)

  on_gpu("is not the device's: copies go on in order on a busy stream", function()
    local stream = q.stream()
    local a, b, scale_a, scale_b = q.generate_test_data(4096, 4096, 4096, { device = "cuda" })
    local out = q.empty { 4096, 4096, dtype = "float16", device = "cuda" }
    local host = q.empty { 4096, 4096, dtype = "float16", pinned = true }
    q.int4_matmul(a, b, scale_a, scale_b, { out = out, stream = stream })
    stream:synchronize()
    local expected = helper.bytes(out)
    out:fill_bytes_(0, stream)
    for _ = 1, 20 do q.int4_matmul(a, b, scale_a, scale_b, { out = out, stream = stream }) end
    host:copy_(out, { stream = stream, non_blocking = true })
    assert.is_true(driver.busy(stream.handle))
    stream:synchronize()
    assert.same_bits(expected, host)
  end, driver)
end)
