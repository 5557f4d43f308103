--- What gpu_peers.lua measured, as text. The report is the one that --json prints.

local bench = require "bench"

local TITLES = { fp16 = "cuBLAS fp16", int8 = "cuBLASLt int8", fp8 = "cuBLASLt fp8" }

local function us_text(us)
  if not us then return "-" end
  return (us < 100 and "%.2f" or us < 1000 and "%.1f" or "%.0f"):format(us)
end

local function whole(number) return number and ("%.0f"):format(number) or "-" end

local function tops_text(tops) return tops and tops < 100 and ("%.1f"):format(tops) or whole(tops) end

local function shape_text(row) return ("%d, %d, %d"):format(row.M, row.K, row.N) end

local function clocks_text(clocks)
  if not clocks then return "nvidia-smi does not say" end
  return ("%s MHz, memory %s MHz, %s W, %s C"):format(clocks.sm_mhz or "?", clocks.memory_mhz or "?",
    clocks.watts or "?", clocks.celsius or "?")
end

-- ---- tables ----

local function times_table(report)
  local heading = { "M, K, N", "kernel", "us", "TOPS", "GB/s", "host us", "exact" }
  for _, kind in ipairs(report.peers) do
    for _, title in ipairs { kind .. " us", "TOPS", "x" } do heading[#heading + 1] = title end
  end
  local rows = { heading }
  for _, row in ipairs(report.shapes) do
    local own = row.int4mm or {}
    local cells = { shape_text(row), own.kernel or "-", us_text(own.us), tops_text(own.tops), whole(own.weight_gbs),
      us_text(own.host_us), own.exact and "yes" or "NO" }
    for _, kind in ipairs(report.peers) do
      local peer = row.peers[kind] or {}
      cells[#cells + 1] = us_text(peer.us)
      cells[#cells + 1] = tops_text(peer.tops)
      cells[#cells + 1] = peer.ratio and ("%.2f"):format(peer.ratio) or "-"
    end
    rows[#rows + 1] = cells
  end
  return bench.columns(rows, "1 2")
end

local function sustained_table(report)
  local rows = { { "M, K, N", "contender", "us", "TOPS", "MHz", "W" } }
  for _, row in ipairs(report.shapes) do
    local function add(name, result)
      local sustained = result and result.sustained
      if not sustained then return end
      local clocks = sustained.clocks or {}
      rows[#rows + 1] = { shape_text(row), name, us_text(sustained.us), tops_text(sustained.tops), whole(clocks.sm_mhz),
        whole(clocks.watts) }
    end
    add("int4mm", row.int4mm)
    for _, kind in ipairs(report.peers) do add(kind, row.peers[kind]) end
  end
  return bench.columns(rows, "1 2")
end

-- ---- what the tables do not say ----

local function best(report, get)
  local tops, where = 0, nil
  for _, row in ipairs(report.shapes) do
    local result = get(row)
    if result and result.tops > tops then tops, where = result.tops, row end
  end
  return where and ("%s TOPS at %s"):format(tops_text(tops), shape_text(where)) or "-"
end

local function ceilings(report)
  local read = report.ceilings.read_gbs
  local lines = {
    "reading 2 vectors (cublasSdot): " .. (read and ("%.0f GB/s"):format(read) or report.ceilings.no_read_gbs or "-"),
    ("shortest int4mm call in a graph: %s us"):format(us_text(report.ceilings.shortest_us)),
    "best of int4mm: " .. best(report, function(row) return row.int4mm end),
  }
  for _, kind in ipairs(report.peers) do
    lines[#lines + 1] = ("best of %s: %s"):format(TITLES[kind], best(report, function(row) return row.peers[kind] end))
  end
  return table.concat(lines, "\n")
end

-- What was skipped, failed or done otherwise, each reason once with the shapes that it is about.
local function notes(report)
  local lines, shapes = {}, {}
  local function note(text, row)
    if not shapes[text] then
      shapes[text] = {}
      lines[#lines + 1] = text
    end
    table.insert(shapes[text], shape_text(row))
  end
  for _, row in ipairs(report.shapes) do
    if row.failed then note("int4mm failed: " .. row.failed, row) end
    for _, kind in ipairs(report.peers) do
      local peer = row.peers[kind]
      if row.skipped[kind] then note(("%s was skipped: %s"):format(TITLES[kind], row.skipped[kind]), row) end
      if peer and peer.rows ~= row.M then note(("%s with M padded to %d"):format(TITLES[kind], peer.rows), row) end
    end
    if row.int4mm and row.int4mm.cached then
      note("int4mm's operands are less than twice the L2 together (--sets takes more of them)", row)
    end
  end
  for i, text in ipairs(lines) do lines[i] = ("%s: %s"):format(text, table.concat(shapes[text], "; ")) end
  return table.concat(lines, "\n")
end

--- The report as text.
return function(report)
  local gpu, parts = report.gpu, {}
  local function add(format, ...) parts[#parts + 1] = select("#", ...) > 0 and format:format(...) or format end
  add("int4mm %s on %s: %d SMs, L2 %s, driver %s", report.version, gpu.name, gpu.sms, bench.size(gpu.l2_bytes),
    gpu.driver_version)
  add("cudart %s, %s", report.runtime.version, report.runtime.path)
  for _, name in ipairs { "cublas", "cublasLt" } do
    local library = report.libraries[name]
    add("%s %s", name, library.missing and "was skipped: " .. library.missing
      or library.version .. ", " .. library.path)
  end
  add("clocks before: %s", clocks_text(report.clocks_before))
  add("clocks after:  %s\n", clocks_text(report.clocks_after))
  add(times_table(report))
  if report.sustained then
    add("\nSustained for %g s each, clock and power meanwhile:\n", report.sustained)
    add(sustained_table(report))
  end
  add("\n" .. ceilings(report))
  add(notes(report))
  if report.stopped then add("The run stopped before its end: %s", report.stopped) end
  return (table.concat(parts, "\n"):gsub("\n+$", ""))
end
