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
