--- What benchmarks and examples share: a clock, medians, figures as text, a progress bar.

local ffi = require "ffi"

-- under names of their own: a program may declare the usual ones differently
if not pcall(ffi.typeof, "bench_timespec") then
  ffi.cdef [[
    typedef struct bench_timespec { long seconds; long nanoseconds; } bench_timespec;
    int bench_clock_gettime(int clock, bench_timespec *time) __asm__("clock_gettime");
    int bench_isatty(int fd) __asm__("isatty");
  ]]
end

local bench = {}

local CLOCK_MONOTONIC = 1
local time = ffi.new("bench_timespec")

--- Seconds on a clock that only goes forward.
-- @treturn number
function bench.now()
  ffi.C.bench_clock_gettime(CLOCK_MONOTONIC, time)
  return tonumber(time.seconds) + tonumber(time.nanoseconds) * 1e-9
end

--- The median of a list of numbers.
-- @tparam table values array, not empty
-- @treturn number
function bench.median(values)
  local sorted = { unpack(values) }
  table.sort(sorted)
  local middle = math.floor(#sorted / 2)
  if #sorted % 2 == 1 then return sorted[middle + 1] end
  return (sorted[middle] + sorted[middle + 1]) / 2
end

--- Times calls on a GPU within a CUDA graph.
-- @tparam table q the module int4mm
-- @tparam function call is called with 1 .. calls while the graph is captured, and before that to warm up
-- @tparam number calls of a graph
-- @tparam number rounds launches of which the median counts, after five that do not
-- @treturn number microseconds a call
function bench.graph_time(q, call, calls, rounds)
  local graph = q.graph(function()
    for i = 1, calls do call(i) end
  end, { warmup = 1 })
  local times, start, stop = {}, q.event(), q.event()
  for _ = 1, 5 do graph:launch() end
  for i = 1, rounds do
    start:record()
    graph:launch()
    stop:record()
    times[i] = start:elapsed(stop) * 1000 / calls
  end
  graph:free()
  return bench.median(times)
end

--- Times a function: one call to warm up, then samples, each of as many calls as fill a few milliseconds.
-- @tparam function f what to time
-- @tparam[opt] table opts `seconds` (0.5): about how long the samples take together; `samples` (15): at most so many,
--   at least one; `finish`: called at the end of each sample, such as int4mm.synchronize for work on a GPU
-- @treturn number the median, in seconds a call
-- @treturn number how many samples
function bench.time(f, opts)
  opts = opts or {}
  local seconds, max_samples, finish = opts.seconds or 0.5, opts.samples or 15, opts.finish or function() end
  local function sample(calls)
    local start = bench.now()
    for _ = 1, calls do f() end
    finish()
    return (bench.now() - start) / calls
  end
  local first = sample(1)
  if first < seconds then first = sample(1) end -- what was paid once (pages, threads, a context) is not counted
  local calls = math.max(1, math.ceil(math.min(seconds / max_samples, 0.005) / first))
  local samples = {}
  local stop = bench.now() + seconds
  repeat samples[#samples + 1] = sample(calls) until #samples == max_samples or bench.now() >= stop
  return bench.median(samples), #samples
end

local function scaled(value, units)
  for _, unit in ipairs(units) do
    if value >= unit[1] or unit == units[#units] then
      local figure = value / unit[1]
      local digits = (unit[2] == "B" or figure >= 100) and 0 or figure >= 10 and 1 or 2
      return ("%." .. digits .. "f %s"):format(figure, unit[2])
    end
  end
end

local TIMES = { { 1, "s" }, { 1e-3, "ms" }, { 1e-6, "us" } }
local SIZES = { { 2 ^ 30, "GiB" }, { 2 ^ 20, "MiB" }, { 2 ^ 10, "KiB" }, { 1, "B" } }

--- Seconds as text of three digits: "1.23 ms".
function bench.duration(seconds) return scaled(seconds, TIMES) end

--- Bytes as text of three digits: "2.00 MiB".
function bench.size(bytes) return scaled(bytes, SIZES) end

--- Rows of texts as aligned columns, the first row as a heading.
-- @tparam table rows array of arrays of strings
-- @tparam[opt] string left the numbers of the columns that are aligned left: "1 2"
-- @treturn string
function bench.columns(rows, left)
  local widths = {}
  for _, row in ipairs(rows) do
    for c, text in ipairs(row) do widths[c] = math.max(widths[c] or 0, #text) end
  end
  local lines = {}
  for r, row in ipairs(rows) do
    local cells = {}
    for c, text in ipairs(row) do
      local gap = (" "):rep(widths[c] - #text)
      cells[c] = (" " .. (left or "") .. " "):find(" " .. c .. " ", 1, true) and text .. gap or gap .. text
    end
    lines[#lines + 1] = (table.concat(cells, "  "):gsub(" +$", ""))
    if r == 1 then lines[2] = ("-"):rep(#table.concat(cells, "  ")) end
  end
  return table.concat(lines, "\n")
end

local STDERR, BAR = 2, 30

--- A progress bar on stderr, where that is a terminal; else nothing is written.
-- @tparam number total how many steps there will be
-- @treturn function step(text): draws the bar with what comes next and counts one step; step() at the end removes it
function bench.progress(total)
  if ffi.C.bench_isatty(STDERR) ~= 1 then return function() end end
  local done = 0
  return function(text)
    if not text then
      io.stderr:write("\r\27[K")
      return
    end
    local filled = math.floor(BAR * done / total)
    io.stderr:write(("\r\27[K[%s%s] %d/%d %s"):format(("#"):rep(filled), ("."):rep(BAR - filled), done, total, text))
    io.stderr:flush()
    done = done + 1
  end
end

return bench
