--- Tuning, on a device in host memory (spec/c/fake_cuda.c): what is written, what is taken from it, what is refused.

local helper = require "spec.helper"
local q = require "int4mm"

local library = helper.build_folder() .. "/spec/c/fake_cuda.so"
local folder

local function on_fake(code, env)
  env = env or {}
  env.INT4MM_CUDA_LIBRARY, env.INT4MM_FAKE_CUDA, env.INT4MM_NUM_THREADS = library, "host", "1"
  if env.INT4MM_CUDA_ARCH == nil then env.INT4MM_CUDA_ARCH = false end -- an sm_90
  local head = ('local q, FILE = require "int4mm", "%s/tuned.json"\n'):format(folder)
  local output, status = helper.luajit(head .. code, env)
  assert.equal(0, status, output)
  return output
end

--- A file that says that 64 x 256 x 128 is fastest with simple; `set` overrides fields of it and of its entry.
local function write(set, entry)
  local text = { format = "int4mm tuning 1", version = q._VERSION, device = "host memory", arch = 90 }
  for key, value in pairs(set or {}) do text[key] = value end
  local product = { M = 64, K = 256, N = 128, group_size = 0, dtype_a = "int32", scaling = "per_column", zeros = false,
    layout_b = "kn", kernel = "simple" }
  for key, value in pairs(entry or {}) do product[key] = value end
  text.entries = { product }
  local file = assert(io.open(folder .. "/tuned.json", "w"))
  assert(file:write((require "cjson".encode(text))))
  file:close()
end

local EXPLAIN = [[
  local function explain(M, opts)
    local a, b, scale_a, scale_b = q.generate_test_data(M, 256, 128, { device = "cuda" })
    local plan = q.explain(a, b, scale_a, scale_b, opts)
    assert(q.int4_matmul(a, b, scale_a, scale_b, opts):equal(q.int4_matmul_cpu(a:to "cpu", b:to "cpu", scale_a:to "cpu",
      scale_b:to "cpu")))
    return plan.kernel, plan.reason
  end
]]

describe("tuning", function()
  setup(function() folder = helper.shell("mktemp -d"):gsub("\n", "") end)
  teardown(function() helper.shell("rm -rf '" .. folder .. "'") end)

  it("times what can serve each product and writes it, and the choice follows where it is loaded", function()
    local output = on_fake(EXPLAIN .. [[
      local shapes = {
        { M = 64, K = 256, N = 128 }, { M = 3, K = 64, N = 24, layout_b = "nk" },
        { M = 5, K = 64, N = 32, dtype_a = "int8" },
        { M = 5, K = 256, N = 32, dtype_a = "float16", scaling = "group_scales", group_size = 128, zeros = true },
        { M = 70, K = 256, N = 32, scaling = "group_factors", group_size = 64 },
        { M = 4, K = 50, N = 16, dtype_a = "bfloat16", zeros = true }, { M = 4, K = 50, N = 16, dtype_a = "int8" },
        { M = 6, K = 64, N = 16, dtype_a = "float32" },
      }
      local before = explain(64)
      local tuning = q.tune(shapes, { path = FILE, seconds = 0 })
      assert(#tuning.entries == #shapes and explain(64) == before)
      for i, entry in ipairs(tuning.entries) do
        assert(entry.kernels[entry.kernel] == entry.nanoseconds)
        assert(entry.kernels[entry.taken] == entry.taken_nanoseconds)
        assert(entry.nanoseconds > 0 and entry.M == shapes[i].M and entry.dtype_a == (shapes[i].dtype_a or "int32"))
      end
      local count = 0
      for _ in pairs(tuning.entries[1].kernels) do count = count + 1 end
      assert(count >= 10 and not tuning.entries[1].kernels.grouped_64x64)
      assert(q.load_tuning(tuning) == #shapes)
      assert(q.load_tuning(FILE) == #shapes)
      print(explain(64))
      print(explain(65))
    ]])
    assert.matches("; the fastest when it was tuned\n", output)
    assert.matches("; by times measured on sm_90\n$", output)
  end)

  it("counts for exactly its products, passes over what cannot serve, and goes again", function()
    write()
    local output = on_fake(EXPLAIN .. [[
      print(q.load_tuning(FILE))
      print(explain(64))
      print((explain(63)))
      print((explain(64, { kernel = "tiled" })))
      print((explain(64, { layout_b = "kn" })))
      print(q.load_tuning(nil), (explain(64)))
    ]])
    local after, last = output:match "^1\nsimple\t.*; the fastest when it was tuned\n(%S+)\ntiled\nsimple\n0\t(%S+)\n$"
    assert(after ~= "simple" and last and last ~= "simple", output)
    write(nil, { kernel = "grouped_64x64" }) -- which has no W4A4
    output = on_fake(EXPLAIN .. "assert(q.load_tuning(FILE)) print(explain(64))")
    assert.matches("; by times measured on sm_90\n$", output)
  end)

  it("counts for layers as well, and by their kind", function()
    write(nil, { dtype_a = "int8", scaling = "group_scales", group_size = 64 })
    local output = on_fake [[
      assert(q.load_tuning(FILE))
      local w = q.random(q.empty { 32, 128, dtype = "int32", device = "cuda" })
      local function kernel(dtype, group_size)
        local scale_b = q.full({ 256 / group_size, 128, device = "cuda" }, 1)
        local a = q.full({ 64, 256, dtype = dtype, device = "cuda" }, 1)
        return q.explain(a, w, dtype == "int8" and q.ones { 64, device = "cuda" } or nil, scale_b,
          { group_size = group_size }).kernel
      end
      print(kernel("int8", 64), kernel("int8", 128), kernel("float16", 64))
    ]]
    local other, float = output:match "^simple\t(%S+)\t(%S+)\n$"
    assert(other and other ~= "simple" and float ~= "simple", output)
  end)

  it("is read from INT4MM_TUNE, without a look at the driver", function()
    write()
    assert.matches("^nil\nsimple\t.*; the fastest when it was tuned\n$", on_fake(EXPLAIN .. [[
      print(package.loaded.nothing)
      print(explain(64))
    ]], { INT4MM_TUNE = folder .. "/tuned.json" }))
    for set, reason in pairs {
      [{ version = "0.0.9" }] = "it is of int4mm 0.0.9, this is " .. q._VERSION .. ": tune again",
      [{ format = "int4mm tuning 0" }] = "it is no tuning of int4mm",
    } do
      write(set)
      local output = on_fake(EXPLAIN .. "print((explain(64)))", { INT4MM_TUNE = folder .. "/tuned.json" })
      assert.matches(("int4mm: INT4MM_TUNE is not used: %s/tuned.json: %s\n"):format(folder, reason), output, 1, true)
      assert.not_matches("simple", output)
    end
    assert.matches("INT4MM_TUNE is not used: /nonexistent/file", on_fake("", { INT4MM_TUNE = "/nonexistent/file" }))
  end)

  it("is refused for another GPU, architecture or version, with the reason", function()
    local here = "and cuda:0 is host memory, sm_90: tune again"
    for set, reason in pairs {
      [{ device = "NVIDIA H100" }] = "it is of NVIDIA H100, sm_90, " .. here,
      [{ arch = 80 }] = "it is of host memory, sm_80, " .. here,
      [{ version = "9.9.9" }] = "it is of int4mm 9.9.9, this is " .. q._VERSION .. ": tune again",
      [{ format = "else" }] = "it is no tuning of int4mm", [{ device = 7 }] = "it has no device, arch or entries",
    } do
      write(set)
      assert.equal(("nil\t%s/tuned.json: %s\n"):format(folder, reason), on_fake "print(q.load_tuning(FILE))")
    end
    write { device = "NVIDIA H100" } -- the environment's is compared on first need, and explain says so
    local output = on_fake(EXPLAIN .. "print(explain(64))", { INT4MM_TUNE = folder .. "/tuned.json" })
    assert.matches("; the tuning is of another GPU\n$", output)
    write { arch = 80 }
    assert.equal("1\n", on_fake("print(q.load_tuning(FILE))", { INT4MM_CUDA_ARCH = "80" }))
  end)

  it("is refused where the file is damaged", function()
    for entry, reason in pairs {
      [{ M = -1 }] = "M is no whole number", [{ K = "8" }] = "K is no whole number",
      [{ N = 1.5 }] = "N is no whole number",
      [{ dtype_a = "int4" }] = "dtype_a is no dtype", [{ scaling = "none" }] = "scaling is none",
      [{ layout_b = 1 }] = "layout_b is none", [{ zeros = 1 }] = "zeros is neither true nor false",
      [{ kernel = 5 }] = "kernel is no name",
    } do
      write(nil, entry)
      assert.equal(("nil\t%s/tuned.json: entry 1: %s\n"):format(folder, reason), on_fake "print(q.load_tuning(FILE))")
    end
    write(nil, { kernel = "wgmma" })
    assert.equal(("nil\t%s/tuned.json: entries[1].kernel is \"wgmma\", expected one of cuda_kernels\n"):format(folder),
      on_fake "print(q.load_tuning(FILE))")
    assert.matches("^nil\t/nonexistent: ", on_fake 'print(q.load_tuning "/nonexistent")')
    helper.shell(("printf '{\"a\": ' > '%s/tuned.json'"):format(folder))
    assert.matches("^nil\t.*/tuned.json: ", on_fake "print(q.load_tuning(FILE))")
  end)

  it("says what is wrong with its arguments", function()
    local output = on_fake [[
      for _, f in ipairs {
        function() q.tune {} end, function() q.tune "8x8x8" end, function() q.tune { { M = 1, K = 8 } } end,
        function() q.tune({ { M = 1, K = 8, N = 8, scaling = "group_scales" } }) end,
        function() q.tune({ { M = 1, K = 8, N = 8, sms = 3 } }) end,
        function() q.tune({ { M = 1, K = 8, N = 8 } }, { device = "cpu" }) end,
        function() q.tune({ { M = 1, K = 8, N = 8 } }, { path = 5 }) end,
        function() q.tune({ { M = 1, K = 9, N = 8 } }) end,
        function() q.load_tuning(5) end, function() q.tune { M = 1, K = 8, N = 8 } end,
        function() q.tune({ { M = 1, K = 8, N = 8 } }, { seconds = 0 / 0 }) end,
        function() q.tune({ { M = 1, K = 8, N = 8 } }, { seconds = -1 }) end,
        function() q.tune({ { M = 1, K = 8, N = 8 } }, { path = "/nonexistent/tuned.json" }) end,
      } do print((tostring(select(2, pcall(f))):gsub("^%(command line%):%d+: ", ""))) end
    ]]
    local lines = {}
    for line in output:gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.same({
      "tune: shapes is empty, expected an array of products { M =, K =, N = }",
      'tune: shapes is "8x8x8", expected an array of products { M =, K =, N = }',
      "tune: shapes[1].N is nil, expected a whole number from 1 to 2147483647",
      "tune: shapes[1].group_size is nil, expected a whole number from 1 to 8",
    }, { unpack(lines, 1, 4) })
    assert.matches('^tune: unknown option "sms"', lines[5])
    assert.matches('^tune: device is "cpu", expected a GPU', lines[6])
    assert.matches("^tune: .*5", lines[7])
    assert.matches("^tune: shapes%[1%].K is 9, expected a multiple of 8", lines[8])
    assert.matches("^load_tuning: .*5", lines[9])
    assert.same({
      "tune: shapes is one product, expected an array of them: { { M =, K =, N = } }",
      "tune: seconds is nan, expected a finite number, 0 or more",
      "tune: seconds is -1, expected a finite number, 0 or more",
    }, { unpack(lines, 10, 12) })
    assert.matches("^tune: /nonexistent/tuned.json.*No such file", lines[13])
  end)
end)

describe("int4mm_set_tuning", function()
  local ffi = require "ffi"
  local lib = require("int4mm.lib").lib
  local function refused(message, ...)
    assert.equal(1, lib.int4mm_set_tuning(...))
    assert.matches(message, ffi.string(lib.int4mm_last_error()), 1, true)
  end

  it("checks its arguments", function()
    local two = ffi.new "int4mm_tuned[2]"
    local name = "simple"
    two[0].kernel, two[1].kernel = name, name
    refused("count is -1", "gpu", 90, two, -1)
    refused("device is NULL", nil, 90, two, 2)
    refused("tuned is NULL", "gpu", 90, nil, 2)
    refused("device has 200 characters, expected at most 127", ("x"):rep(200), 90, two, 2)
    refused("tuned has the product M = 0, N = 0, K = 0 twice", "gpu", 90, two, 2)
    two[1].group = 5 -- which means nothing without groups
    refused("twice", "gpu", 90, two, 2)
    two[1].kernel = nil
    refused('tuned[1].kernel is "NULL"', "gpu", 90, two, 2)
    assert.equal(0, lib.int4mm_set_tuning("gpu", 90, two, 1))
    assert.equal(0, lib.int4mm_set_tuning(nil, 0, nil, 0))
  end)
end)
