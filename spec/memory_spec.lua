--- Memory: what is dropped is given back, and the figures say how much is held.

local ffi = require "ffi"

local helper = require "spec.helper"
local q = require "int4mm"

local MIB = 2 ^ 20

--- How far resident memory may grow while garbage gathers: the slack, what the allocator keeps, and under a sanitizer
-- what it holds back to catch a late use.
local function allowance() return (helper.sanitized() and 500 or 160) * MIB end

describe("10,000 results, multiplied and dropped,", function()
  it("leave resident memory flat", function()
    local a, b, scale_a, scale_b = q.generate_test_data(32, 8, 1024, { seed = 1 })
    for _ = 1, 50 do q.int4_matmul_cpu(a, b, scale_a, scale_b) end
    collectgarbage()
    local before, most = helper.resident(), 0
    for i = 1, 10000 do -- 64 KiB each: 640 MiB if they stayed
      q.int4_matmul_cpu(a, b, scale_a, scale_b)
      if i % 500 == 0 then most = math.max(most, helper.resident()) end
    end
    assert(most - before < allowance(), ("grew by %.0f MiB"):format((most - before) / MIB))
  end)

  it("are collected within the slack that was set", function()
    local a, b, scale_a, scale_b = q.generate_test_data(32, 8, 1024, { seed = 1 })
    q.set_memory_slack("cpu", 4 * MIB)
    collectgarbage()
    collectgarbage()
    local before, most = q.memory().cpu.allocated, 0
    for _ = 1, 2000 do
      q.int4_matmul_cpu(a, b, scale_a, scale_b)
      most = math.max(most, q.memory().cpu.allocated)
    end
    q.set_memory_slack("cpu", 64 * MIB)
    -- at most the slack or half of what is alive, whichever is more, and the result being made
    local limit = math.max(4 * MIB, before / 2) + MIB
    assert(most - before <= limit, ("%.1f MiB of garbage"):format((most - before) / MIB))
  end)
end)

describe("every operation", function()
  it("gives all its memory back", function()
    local _, _, _, _, a, b = q.generate_test_data(40, 64, 48, { seed = 2 })
    local floats = q.random(q.empty { 40, 64 }, { low = -1, high = 1 })
    local function work()
      local a_packed, scale_a = q.quantize(floats)
      local b_packed = q.pack_int4_to_int32(b, { dim = 1 })
      local scale_b = q.ones { 48 }
      q.unpack_int32_to_int4(a_packed)
      q.dequantize(a_packed, scale_a, { dtype = "float16" })
      local panels = q.prepack(b_packed)
      local c = q.int4_matmul(a_packed, panels, scale_a, scale_b)
      q.int4_matmul_cpu(a_packed, b_packed, scale_a, scale_b, { strassen = 2, out_dtype = "float32" })
      q.int4_matmul_reference(a_packed, b_packed, scale_a, scale_b, { out = c })
      c:narrow(1, 2, 3):clone():to("float32"):contiguous():totable()
      pcall(q.int4_matmul, a_packed, b_packed, scale_b, scale_a)
      pcall(q.quantize, q.full({ 4, 8 }, 1 / 0))
      pcall(q.pack_int4_to_int32, q.full({ 4, 8, dtype = "int8" }, 8))
      a:free()
      a = a_packed
    end
    work()
    collectgarbage()
    collectgarbage()
    local before = q.memory().cpu.allocated
    for _ = 1, 200 do work() end
    a = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    assert(q.memory().cpu.allocated <= before, ("%d bytes, %d before"):format(q.memory().cpu.allocated, before))
  end)
end)

describe("an eager collector", function()
  local old_pause, old_step
  before_each(function() old_pause, old_step = collectgarbage("setpause", 1), collectgarbage("setstepmul", 10000) end)
  after_each(function()
    collectgarbage("setpause", old_pause)
    collectgarbage("setstepmul", old_step)
  end)

  it("takes no temporary from a call that still works on it, compiled or not", function()
    local _, _, _, _, a, b = q.generate_test_data(9, 64, 11, { seed = 3 })
    local ones_a, ones_b = q.ones { 9 }, q.ones { 11 }
    local opts = { out_dtype = "float32" }
    local expected = q.int4_matmul_reference(q.pack_int4_to_int32(a), q.pack_int4_to_int32(b, { dim = 1 }), ones_a,
      ones_b, opts)
    local dim1 = { dim = 1 }
    local function multiply_temporaries()
      return q.int4_matmul_cpu(q.pack_int4_to_int32(a), q.prepack(q.pack_int4_to_int32(b, dim1)), q.ones { 9 },
        q.ones { 11 }, opts)
    end
    for compiled = 0, 1 do
      if compiled == 0 then jit.off(multiply_temporaries, true) else jit.on(multiply_temporaries, true) end
      for i = 1, 1500 do
        local out = multiply_temporaries()
        assert(helper.bytes(out) == helper.bytes(expected), "round " .. i)
        assert(q.unpack_int32_to_int4(q.pack_int4_to_int32(a:clone())):narrow(1, 2, 3):clone():equal(a:narrow(1, 2, 3)))
      end
    end
  end)
end)

describe("a collector that the program has stopped", function()
  after_each(function() collectgarbage("restart") end)

  it("stays stopped through collections under memory pressure", function()
    local before = q.memory().cpu.allocated
    q.set_memory_slack("cpu", 4 * MIB)
    collectgarbage("stop")
    for _ = 1, 20 do q.empty { MIB, dtype = "int8" } end
    assert.is_false(collectgarbage("isrunning"))
    -- the collections themselves take place: 20 MiB of garbage do not stay
    assert(q.memory().cpu.allocated - before <= math.max(4 * MIB, before / 2) + MIB)
    q.set_memory_slack("cpu", 64 * MIB)
    assert.is_false(collectgarbage("isrunning"))
  end)

  it("is not stopped by them where it runs", function()
    collectgarbage("restart")
    q.set_memory_slack("cpu", 64 * MIB)
    assert.is_true(collectgarbage("isrunning"))
  end)
end)

describe("an owner of wrapped memory", function()
  --- An array whose end is counted in count[1].
  local function array(count)
    count[1] = 0
    return ffi.gc(ffi.new("float[4]", 1, 2, 3, 4), function() count[1] = count[1] + 1 end)
  end

  --- A tensor over memory, and a view of it, kept by `object`.
  local function add_tensors(object, memory, owner)
    object.tensor = q.wrap(ffi.cast("float *", memory), { shape = { 4 }, owner = owner })
    object.view = object.tensor:narrow(1, 2, 2)
    return object
  end

  local function collect(count)
    for _ = 1, 3 do collectgarbage() end
    return count[1]
  end

  it("goes with the tensor and its views", function()
    local count, kept = {}, {}
    local function make()
      local memory = array(count)
      add_tensors(kept, memory, { memory })
    end
    make()
    kept.tensor = nil
    assert.equal(0, collect(count))
    assert.same({ 2, 3 }, kept.view:totable())
    kept.view = nil
    assert.equal(1, collect(count))
  end)

  it("goes with an object that keeps both it and the tensor", function()
    local count = {}
    local function make()
      local object = { memory = array(count) }
      add_tensors(object, object.memory, object.memory)
    end
    make()
    assert.equal(1, collect(count))
  end)

  it("that keeps the tensor itself stays, until the tensor and its views are freed", function()
    local count, weak = {}, setmetatable({}, { __mode = "v" })
    local function make()
      local object = { memory = array(count) }
      weak[1] = add_tensors(object, object.memory, object)
    end
    make()
    assert.equal(0, collect(count))
    weak[1].tensor:free()
    assert.equal(0, collect(count))
    weak[1].view:free()
    assert.equal(1, collect(count))
  end)
end)

describe("q.memory", function()
  it("counts what tensors hold, once for all views", function()
    collectgarbage()
    collectgarbage()
    local before = q.memory().cpu.allocated
    local t = q.empty { 100, 100, dtype = "int32" }
    local view = t:narrow(1, 1, 50)
    assert.equal(40000, q.memory().cpu.allocated - before)
    assert.equal(40000, view:numel() * 8)
    q.wrap(t:data(), { shape = { 100 }, dtype = "int32", owner = t })
    assert.equal(40000, q.memory().cpu.allocated - before)
    t:free()
    view:free()
    assert.equal(0, q.memory().cpu.allocated - before)
  end)

  it("tells the soft limit", function()
    q.set_memory_slack("cpu", 10 * MIB)
    local figures = q.memory().cpu
    assert(figures.limit >= figures.allocated + 10 * MIB)
    q.set_memory_slack("cpu", 64 * MIB)
    assert.fails_with({ pattern = "^set_memory_slack: bytes is %-1, expected a whole number" },
      function() q.set_memory_slack("cpu", -1) end)
    assert.fails_with({ pattern = '^set_memory_slack: device is "disk", expected "cpu"' },
      function() q.set_memory_slack("disk", 1) end)
  end)
end)

describe("out of memory", function()
  -- a sanitizer takes more address space than any limit that would make this fail
  local test = helper.sanitized() and pending or it

  test("is tried again after a collection, before it is an error" .. (test == it and "" or " (under a sanitizer)"),
  function()
    -- in a process of its own, whose address space is limited to what two of the tensors need
    local output, status = helper.shell(([[ulimit -v %d; LUA_PATH=%q LUA_CPATH=%q luajit -e '
      local q = require "int4mm"
      q.set_memory_slack("cpu", 2^40)
      for i = 1, 20 do q.empty { 192 * 2^20, dtype = "int8" } end
      print "kept going"
      local held = {}
      local ok, message = pcall(function() for i = 1, 20 do held[i] = q.empty { 192 * 2^20, dtype = "int8" } end end)
      print(ok, message)
    ']]):format(768 * 1024, package.path, package.cpath))
    assert.matches("kept going", output, 1, true)
    assert.matches("false%s+.*empty: out of memory on cpu: asked for 201326592 bytes, %d+ are in use", output)
    assert.equal(0, status)
  end)
end)
