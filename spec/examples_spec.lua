--- The examples run, at small sizes, and say what they should.

local json = require "cjson"

local helper = require "spec.helper"
local q = require "int4mm"

-- That a program given these arguments fails with these words.
local function refuses(script, cases)
  for arguments, words in pairs(cases) do
    local output, status = helper.script(script, arguments)
    assert.not_equal(0, status, arguments)
    assert.matches(words, output, 1, true)
  end
end

describe("examples/quickstart.lua", function()
  it("multiplies, prints and checks", function()
    local output, status = helper.script("examples/quickstart.lua", "40 64 56")
    assert.equal(0, status, output)
    assert.matches("A +%[40, 64%] int8 on ", output)
    assert.matches("packed +%[40, 8%] int32 on ", output)
    assert.matches("packed +%[8, 56%] int32 on ", output)
    assert.matches("C = A B +%[40, 56%] float16 on ", output)
    assert.matches("Ran on", output)
    assert.matches("all 2240 outputs equal the plain-LuaJIT oracle bit for bit", output, 1, true)
  end)

  it("finds the module from another folder", function()
    local root = io.popen("pwd"):read "*l"
    local function absolute(paths) return ((";" .. paths):gsub(";%./", ";" .. root .. "/"):sub(2)) end
    local output, status = helper.shell(("cd / && LUA_PATH=%q LUA_CPATH=%q luajit %q 8 8 8"):format(
      absolute(package.path), absolute(package.cpath), root .. "/examples/quickstart.lua"))
    assert.equal(0, status, output)
    assert.matches("all 64 outputs equal", output, 1, true)
  end)
end)

-- On the device in host memory where there is no GPU.
local function gpu_environment()
  if q.cuda_available() then return nil end
  return { INT4MM_CUDA_LIBRARY = helper.build_folder() .. "/spec/c/fake_cuda.so", INT4MM_FAKE_CUDA = "host" }
end

describe("examples/linear.lua", function()
  for place, env in pairs { cpu = { INT4MM_CUDA_LIBRARY = "/nowhere/cuda.so" }, cuda = gpu_environment() or {} } do
    it("shows what rotation and clipping are for, on " .. place, function()
      local output, status = helper.script("examples/linear.lua", "8 512 256", env)
      assert.equal(0, status, output)
      assert.matches("A linear layer 512 -> 256, batch of 8, W4A4 on " .. place, output, 1, true)
      local function percent(name) return tonumber(output:match("\n" .. name .. " +([%d%.]+)%%")) end
      assert.equal(0, percent "float32 in plain Lua")
      local plain, rotated = percent "int4", percent "int4, rotated"
      local weight, both = percent "int4, rotated, weight clipped", percent "int4, rotated, both clipped"
      assert(plain > 25 and rotated < 0.6 * plain and weight < rotated and both < weight and both > 5, output)
      assert.matches("513 KiB", output, 1, true) -- 4 (256 * 512 + 256) bytes
      assert.matches("66.0 KiB", output, 1, true) -- 256 * 512 / 2 + 8 * 256
    end)
  end
end)

describe("examples/mlp.lua", function()
  for place, env in pairs { cpu = { INT4MM_CUDA_LIBRARY = "/nowhere/cuda.so" }, cuda = gpu_environment() or {} } do
    it("comes near the float block, on " .. place, function()
      local output, status = helper.script("examples/mlp.lua", "3 64 160", env)
      assert.equal(0, status, output)
      assert.matches("linear 64 %-> 160, int4, rotated by 64, silu on " .. place, output)
      assert.matches("linear 160 %-> 64, int4, rotated by 16 on " .. place, output)
      assert.matches("weights: 120 KiB in float32, 16.5 KiB in int4", output, 1, true)
      assert.matches("a token of 3 at once: [%d%.]+ %l+ on " .. place, output)
      local percent = tonumber(output:match "error against float32: ([%d%.]+)%%")
      assert(percent and percent > 5 and percent < 30, output)
    end)
  end
end)

describe("examples/graph.lua", function()
  it("says what it needs where there is no GPU", function()
    local output, status = helper.script("examples/graph.lua", "", { INT4MM_CUDA_LIBRARY = "/nowhere/cuda.so" })
    assert.equal(0, status, output)
    assert.equal("A CUDA graph takes a GPU. CUDA is not available: no CUDA build of int4mm: there is no "
      .. "/nowhere/cuda.so\n", output)
  end)

  it("launches layers as one, with the same bits", function()
    local output, status = helper.script("examples/graph.lua", "3 256", gpu_environment())
    assert.equal(0, status, output)
    assert.matches("3 layers of 256 x 256 as graph%(cuda:0, %d+ nodes%)", output)
    assert.matches("one by one +%d+%.%d us\nas a graph +%d+%.%d us\n", output)
    assert.matches("the results are the same, bit for bit", output, 1, true)
  end)
end)

describe("examples/bench/int4_matmul_benchmark.lua", function()
  local script = "examples/bench/int4_matmul_benchmark.lua"
  local quick = "--seconds 0.01 --shapes 64x64x64,16x128x48"

  it("prints a table", function()
    local output, status = helper.script(script, quick)
    assert.equal(0, status, output)
    assert.matches("64x64x64 +cpu +" .. q.cpu_isa(), output)
    assert.matches("16x128x48 +prepacked +" .. q.cpu_isa(), output)
    assert.matches(" yes ", output, 1, true)
    assert.is_nil(output:find(" NO ", 1, true))
    if not q.cuda_available() then assert.matches("cuda was not timed: CUDA is not available", output, 1, true) end
  end)

  it("prints JSON that holds the same", function()
    local output, status = helper.script(script, quick .. " --json --only cpu --threads 1 --isa scalar")
    assert.equal(0, status, output)
    local report = json.decode(output)
    assert.equal(q._VERSION, report.version)
    assert.equal("scalar", report.cpu.isa)
    assert.equal(1, report.cpu.threads)
    assert.equal(2, #report.results)
    local first = report.results[1]
    assert.same({ 64, 64, 64, "cpu", "scalar", true },
      { first.M, first.K, first.N, first.backend, first.kernel, first.exact })
    assert(first.seconds > 0 and first.tops > 0)
    assert.equal(64 * 64 / 2 * 2 + 4 * 128, first.bytes)
    assert.equal(2 * 2 * 64 * 64, first.fp16_bytes)
    assert(first.error > 0.05 and first.error < 0.3, "error " .. first.error)
  end)

  it("explains itself", function()
    local output, status = helper.script(script, "--help")
    assert.equal(0, status)
    for _, option in ipairs { "--shapes", "--only", "--threads", "--isa", "--seconds", "--seed", "--json" } do
      assert.matches(option, output, 1, true)
    end
  end)

  it("refuses what it does not know", function()
    refuses(script, {
      ["--bogus"] = "unknown option '--bogus'",
      ["--shapes 64"] = "a shape is MxKxN",
      ["--shapes 64x12x64"] = "K is 12 in 64x12x64, expected a multiple of 8",
      ["--only tpu"] = 'a contender is one of cpu, prepacked, cuda; "tpu" is not',
      ["--only ''"] = 'contenders are of cpu, prepacked, cuda; "" names none',
      ["--seconds x"] = '"x" is not a number of seconds',
      ["--threads 0"] = '"0" is not a whole number from 1',
    })
  end)

  it("ends with an error where nothing that was asked for is there", function()
    local output, status = helper.script(script, "--only cuda --shapes 8x8x8",
      { INT4MM_CUDA_LIBRARY = "/nowhere/cuda.so" })
    assert.equal(1, status)
    assert.equal("int4_matmul_benchmark: nothing was timed: CUDA is not available: no CUDA build of int4mm: there is "
      .. "no /nowhere/cuda.so\n", output)
  end)

  it("draws no progress bar where stderr is not a terminal", function()
    local output = helper.script(script, quick)
    assert.is_nil(output:find("\r", 1, true))
    assert.is_nil(output:find("\27", 1, true))
  end)
end)

describe("examples/bench/layer_benchmark.lua", function()
  local script = "examples/bench/layer_benchmark.lua"

  it("has the options of the others, and refuses what it does not know", function()
    local output, status = helper.script(script, "--help")
    assert.equal(0, status)
    for _, option in ipairs { "--shapes", "--only", "--rounds", "--json" } do
      assert.matches(option, output, 1, true)
    end
    refuses(script, {
      ["--shapes 8x128x8"] = "K is 128 in 8x128x8, expected a multiple of 256",
      ["--shapes ''"] = "shapes are MxKxN,...", ["--only w4a2"] = 'a contender is one of w4a4, w4a8',
    })
  end)

  it("says why nothing was timed where there is no GPU", function()
    local output, status = helper.script(script, "--only w4a4", { INT4MM_CUDA_LIBRARY = "/nowhere/cuda.so" })
    assert.equal(1, status)
    assert.matches("layer_benchmark: nothing was timed: CUDA is not available", output, 1, true)
  end)
end)

describe("examples/bench/experts_benchmark.lua", function()
  local script = "examples/bench/experts_benchmark.lua"

  it("has the options of the others, and refuses what it does not know", function()
    local output, status = helper.script(script, "--help")
    assert.equal(0, status)
    for _, option in ipairs { "--shapes", "--experts", "--rounds" } do assert.matches(option, output, 1, true) end
    refuses(script, { ["--experts 1"] = '"1" is not a whole number from 2', ["--shapes ''"] = "shapes are MxKxN,..." })
  end)

  it("says why nothing was timed where there is no GPU", function()
    local output, status = helper.script(script, "", { INT4MM_CUDA_LIBRARY = "/nowhere/cuda.so" })
    assert.equal(1, status)
    assert.matches("experts_benchmark: nothing was timed: CUDA is not available", output, 1, true)
  end)

  helper.on_gpu("finds the same bits", function()
    local output, status = helper.script(script, "--shapes 20x256x64 --experts 4 --rounds 1")
    assert.equal(0, status, output)
    assert.matches("40x256x64 .* yes\n", output)
  end)
end)

describe("examples/bench/gpu_peers.lua", function()
  local script = "examples/bench/gpu_peers.lua"
  local quick = "--shapes 64x512x256 --only int4mm --rounds 3 --warm 0.01"

  it("explains itself, and refuses what it does not know", function()
    local output, status = helper.script(script, "--help")
    assert.equal(0, status)
    for _, option in ipairs { "--shapes", "--only", "--kernel", "--rounds", "--sets", "--warm", "--sustained", "--seed",
        "--json" } do
      assert.matches(option, output, 1, true)
    end
    output, status = helper.script(script, "--bogus")
    assert.not_equal(0, status)
    assert.matches("unknown option '--bogus'", output, 1, true)
    refuses(script, {
      ["--shapes ''"] = "shapes are MxKxN,...", ["--shapes 8x8x8,"] = "shapes are MxKxN,...",
      ["--shapes 0x8x8"] = "0x8x8 is empty", ["--only fp4"] = "a contender is one of int4mm, fp16, int8, fp8",
    })
  end)

  it("says why nothing was timed where there is no GPU", function()
    local output, status = helper.script(script, quick,
      { INT4MM_CUDA_LIBRARY = "/nowhere/libint4mm_cuda.so" })
    assert.not_equal(0, status)
    assert.matches("nothing was timed: CUDA is not available: no CUDA build of int4mm", output, 1, true)
  end)

  helper.on_gpu("times a shape and finds it exact", function()
    local output, status = helper.script(script, quick .. " --json")
    assert.equal(0, status, output)
    assert.is_table(json.decode(output))
  end, require "spec.cuda_driver")
end)

describe("examples/bench/verify_gpu.lua", function()
  local script = "examples/bench/verify_gpu.lua"
  local fake = { INT4MM_CUDA_LIBRARY = helper.build_folder() .. "/spec/c/fake_cuda.so", INT4MM_FAKE_CUDA = "host",
    INT4MM_NUM_THREADS = "1" }
  local folder

  setup(function() folder = helper.shell("mktemp -d"):gsub("\n", "") end)
  teardown(function() helper.shell("rm -rf '" .. folder .. "'") end)

  local function read(path)
    local file = assert(io.open(path))
    local text = file:read "*a"
    file:close()
    return text
  end

  it("says why there is nothing to verify where there is no GPU", function()
    local output, status = helper.script(script, "--check", { INT4MM_CUDA_LIBRARY = "/nowhere/libint4mm_cuda.so" })
    assert.equal(1, status)
    assert.equal("verify_gpu: there is nothing to verify: CUDA is not available: no CUDA build of int4mm: there is no "
      .. "/nowhere/libint4mm_cuda.so\n", output)
    assert.equal(0, select(2, helper.script(script, "--check", fake)))
  end)

  -- Where there is no GPU a device in host memory is verified, for which there is no cuBLAS.
  it("writes what was found to two files", function()
    local name = q.cuda_available() and q.device_info().name or "host memory"
    local base = ("%s/verify-%s"):format(folder, (name:gsub("[^%w]+", "-")))
    helper.shell(("printf '12 successes / 1 failure / 1 error / 3 pending : 9 seconds\\n\\nFailure -> spec/a.lua @ 7\\n"
      .. "a thing is so\\n1 success / 0 failures / 0 errors / 0 pending\\n' > '%s/log'"):format(folder))
    local output, status = helper.script(script,
      ("--log '%s/log' --folder '%s' --shapes 4x64x32,64x512x256 --seconds 0.001"):format(folder, folder),
      not q.cuda_available() and fake or nil)
    assert.equal(1, status, output) -- two specs failed
    assert.matches(("%s.json\n%s.md\n"):format(base, base), output, 1, true)
    assert.matches("verify_gpu: something failed, as the files say", output, 1, true)
    local report = json.decode(read(base .. ".json"))
    assert.same({ 12, 2, 3, "a thing is so" },
      { report.specs.passed, report.specs.failed, report.specs.skipped, report.specs.failures[1] })
    assert.equal(2, #report.tuning.entries)
    assert.equal(name, report.gpu.name)
    assert(report.peers.skipped or #report.peers.shapes == 2)
    local page = read(base .. ".md")
    assert.matches("# int4mm " .. q._VERSION .. " on " .. name, page, 1, true)
    assert.matches("- specs: 12 passed, 2 failed, 3 skipped\n  - a thing is so\n", page, 1, true)
    assert.matches("| 64, 512, 256 | ", page, 1, true)
    assert.matches(report.peers.skipped and "Not taken: " or "cuBLAS fp16", page, 1, true)
  end)
end)
