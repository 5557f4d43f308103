--- What benchmarks and examples share: examples/bench/bench.lua.

local helper = require "spec.helper"
local bench = require "examples.bench.bench"

describe("bench", function()
  it("has a clock that goes forward", function()
    local before = bench.now()
    for _ = 1, 1000 do
      local now = bench.now()
      assert(now >= before)
      before = now
    end
  end)

  it("takes medians, and leaves the list as it was", function()
    local values = { 5, 1, 3 }
    assert.equal(3, bench.median(values))
    assert.same({ 5, 1, 3 }, values)
    assert.equal(2.5, bench.median { 4, 1, 2, 3 })
    assert.equal(7, bench.median { 7 })
  end)

  it("times calls", function()
    local calls, finished = 0, 0
    local function wait()
      calls = calls + 1
      local stop = bench.now() + 0.002
      while bench.now() < stop do end
    end
    local seconds, samples = bench.time(wait,
      { seconds = 0.05, samples = 5, finish = function() finished = finished + 1 end })
    assert(seconds >= 0.002 and seconds < 0.1, seconds)
    assert(samples >= 1 and samples <= 5, samples)
    assert(calls > samples and finished > samples, "there was no call to warm up")
  end)

  it("writes figures with units", function()
    assert.equal("1.23 ms", bench.duration(1.2345e-3))
    assert.equal("2.00 s", bench.duration(2))
    assert.equal("45.7 us", bench.duration(45.67e-6))
    assert.equal("2.00 MiB", bench.size(2 ^ 21))
    assert.equal("100 B", bench.size(100))
    assert.equal("1.50 GiB", bench.size(1.5 * 2 ^ 30))
  end)

  it("aligns columns", function()
    local text = bench.columns({ { "name", "n" }, { "a", "1" }, { "long one", "100" } }, "1")
    assert.equal("name        n\n-------------\na           1\nlong one  100", text)
  end)

  it("draws a progress bar on a terminal alone", function()
    local code = [[
      local step = require("examples.bench.bench").progress(2)
      step "first"
      step "second"
      step()
    ]]
    assert.equal("", (helper.luajit(code)))
    if os.execute "command -v script >/dev/null 2>&1" ~= 0 then return end
    local file = os.tmpname()
    local handle = assert(io.open(file, "w"))
    handle:write(code)
    handle:close()
    local output = helper.shell(("LUA_PATH=%q LUA_CPATH=%q script -qec 'luajit %s' /dev/null"):format(package.path,
      package.cpath, file))
    os.remove(file)
    assert.matches("[..............................] 0/2 first", output, 1, true)
    assert.matches("[###############...............] 1/2 second", output, 1, true)
  end)
end)

describe("benchmarks in C #make", function()
  -- Compiled here, without their peers: a program is what `make peers-cpu` and `make bench-threads` build.
  local folder, programs = nil, { "cpu_peers", "pool_bench" }

  local function run(program, arguments)
    return helper.shell(("unset LD_PRELOAD; LD_LIBRARY_PATH='%s' '%s/%s' %s"):format(helper.build_folder(), folder,
      program, arguments))
  end

  setup(function()
    folder = helper.shell("mktemp -d"):gsub("\n", "")
    for _, name in ipairs(programs) do
      local output, status = helper.shell(("unset LD_PRELOAD; gcc -std=gnu11 -Isrc -fopenmp -o '%s/%s' "
        .. "examples/bench/%s.c -L'%s' -lint4mm -ldl"):format(folder, name, name, helper.build_folder()))
      if not helper.sanitized() then assert.equal(0, status, output) end
    end
  end)
  teardown(function() helper.shell("rm -rf '" .. folder .. "'") end)

  it("refuse what they cannot follow, and empty selections", function()
    if helper.sanitized() then return end -- they are not built with it
    local shapes = "shapes MxKxN, with K a multiple of 8, as in 1x4096x4096,1024x1024x1024"
    for _, case in ipairs {
      { "cpu_peers", "--shapes ''", "--shapes is '', expected " .. shapes },
      { "cpu_peers", "--shapes 8x12x8", "--shapes is '8x12x8', expected " .. shapes },
      { "cpu_peers", "--shapes 8x8x8,", "--shapes is '8x8x8,', expected " .. shapes },
      { "cpu_peers", "--threads 0", "--threads is '0', expected numbers of threads, as in 1,2" },
      { "cpu_peers", "--rounds 1x", "--rounds is '1x', expected a whole number from 1 to 101" },
      { "cpu_peers", "--rounds", "--rounds: a value is expected after it" },
      { "cpu_peers", "--bogus", "--bogus: cpu_peers [--json]" },
      { "cpu_peers", "--only nobody --shapes 24x8x8 --rounds 1",
        "--only is 'nobody', expected a part of a contender's name: nothing was timed" },
      { "pool_bench", "", "no library is given: pool_bench [--seconds 0.3]" },
      { "pool_bench", "--seconds 0 x", "--seconds is '0', expected seconds, above 0, up to 3600" },
      { "pool_bench", "--shapes 8 x", "--shapes is '8', expected " .. shapes },
      { "pool_bench", "--only '' x", "--only is '', expected a part of a row's title: nothing was timed" },
    } do
      local output, status = run(case[1], case[2])
      assert.equal(1, status, output)
      assert.matches(case[1] .. ": " .. case[3], output, 1, true)
    end
  end)

  it("time what was selected", function()
    if helper.sanitized() then return end
    local output, status = run("cpu_peers", "--shapes 32x64x32,24x64x64 --rounds 1 --threads 1 --only prepacked")
    assert.equal(0, status, output)
    local timed = 0
    for line in output:gmatch "[^\n]+" do timed = timed + (line:find(" int4mm prepacked ", 1, true) and 1 or 0) end
    assert.equal(2, timed, output)
    output, status = run("pool_bench", "--only alone,forked --rounds 1 --seconds 0.01 --shapes 8x64x32 "
      .. helper.build_folder() .. "/libint4mm.so")
    assert.equal(0, status, output)
    assert.matches("\nalone, ms +8 x +64 x +32 .*\nforked child, ms ", output)
    assert.is_nil(output:find("neighbour", 1, true))
  end)
end)
