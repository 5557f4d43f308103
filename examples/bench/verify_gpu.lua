--- What a GPU makes of int4mm, in two files to send back: whether the specs passed, how long products take beside
-- cuBLAS, and whether the kernels that were chosen are the fastest there. `make verify-gpu` runs the specs first.
--
--     luajit examples/bench/verify_gpu.lua --help

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/../.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
package.path = here .. "/?.lua;" .. package.path
local argparse = require "argparse"
local json = require "cjson"
local q = require "int4mm"
local bench = require "bench"
local options = require "options"
local describe_peers = require "gpu_peers_report"

local function parse_arguments()
  local parser = argparse("verify_gpu.lua",
    "Writes verify-<GPU>.json and verify-<GPU>.md: the GPU and driver, how many specs passed, times beside cuBLAS\n"
    .. "where it is found (gpu_peers.lua), and the times of all kernels that can serve each product.",
    "Exit status: 0; 1 where there is no GPU, a spec failed or a result was wrong.")
  parser:option("--log", "what busted printed of the specs"):argname "<file>"
  parser:option("--shapes", "MxKxN,... instead of the usual 23"):convert(options.shapes):argname "<list>"
  parser:option("--seconds", "for each kernel and product", "0.05"):convert(options.seconds):argname "<time>"
  parser:option("--folder", "where to write", "."):argname "<folder>"
  parser:flag("--check", "only say whether there is a GPU to verify")
  local arguments = parser:parse()
  arguments.shapes = arguments.shapes or options.shapes(options.GPU_SHAPES)
  return arguments
end

local arguments = parse_arguments()

local function fail(message)
  io.stderr:write("verify_gpu: ", message, "\n")
  os.exit(1)
end

local available, why = q.cuda_available()
if not available then fail("there is nothing to verify: " .. why) end
local ok, gpu = pcall(q.device_info)
if not ok then fail("the GPU cannot be used: " .. tostring(gpu)) end
if arguments.check then os.exit(0) end

-- The first line of a file, or nil.
local function first_line(path)
  local file = io.open(path)
  local line = file and file:read "*l"
  if file then file:close() end
  return line
end

-- ---- what was found ----

-- Counts of the specs and the names of those that failed, of a log of `make test`.
local function read_specs(path)
  local file = path and io.open(path)
  if not file then return { missing = path and "there is no " .. path or "no log was given" } end
  local specs = { failures = {} }
  local expected
  for line in file:lines() do
    local passed, failed, errors, skipped =
      line:match "^(%d+) success%w* / (%d+) failures? / (%d+) errors? / (%d+) pending"
    if passed and not specs.passed then -- later ones are quoted by specs that failed
      specs.passed, specs.failed, specs.skipped = tonumber(passed), failed + errors, tonumber(skipped)
    end
    if expected then specs.failures[#specs.failures + 1] = line end
    expected = line:find "^Failure %->" or line:find "^Error %->"
  end
  file:close()
  if not specs.passed then specs.missing = "the specs ended before their summary" end
  return specs
end

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- The report of gpu_peers.lua, a process of its own, or { skipped = why }.
local function time_peers()
  local names = {}
  for i, shape in ipairs(arguments.shapes) do names[i] = shape.name end
  local command = ("%s %s --json --shapes %s"):format(quote(arg[-1] or "luajit"), quote(here .. "/gpu_peers.lua"),
    table.concat(names, ","))
  local pipe = io.popen(command)
  local text = pipe and pipe:read "*a" or ""
  if pipe then pipe:close() end
  local decoded, report = pcall(json.decode, text)
  return decoded and report or { skipped = "gpu_peers.lua ended without a report" }
end

local function tune()
  local shapes = {}
  for i, shape in ipairs(arguments.shapes) do shapes[i] = { M = shape.M, K = shape.K, N = shape.N } end
  local tuned, result = pcall(q.tune, shapes, { seconds = arguments.seconds })
  return tuned and result or { failed = tostring(result), entries = {} }
end

-- ---- the page ----

local function us(nanoseconds) return bench.duration(nanoseconds * 1e-9) end

local function kernels_table(entries)
  local lines = { "| M, K, N | chosen | time | fastest | time | all |", "| --- | --- | --- | --- | --- | --- |" }
  for _, entry in ipairs(entries) do
    local all = {}
    for kernel, time in pairs(entry.kernels) do all[#all + 1] = ("%s %s"):format(kernel, us(time)) end
    table.sort(all)
    lines[#lines + 1] = ("| %d, %d, %d | %s | %s | %s | %s | %s |"):format(entry.M, entry.K, entry.N, entry.taken,
      us(entry.taken_nanoseconds), entry.kernel, us(entry.nanoseconds), table.concat(all, ", "))
  end
  return table.concat(lines, "\n")
end

local function specs_text(specs)
  if specs.missing then return specs.missing end
  local text = ("%d passed, %d failed, %d skipped"):format(specs.passed, specs.failed, specs.skipped)
  for _, name in ipairs(specs.failures) do text = text .. "\n  - " .. name end
  return text
end

local function page(report)
  local peers, tuning = report.peers, report.tuning
  return table.concat({
    "# int4mm " .. report.version .. " on " .. report.gpu.name, "",
    ("- sm_%d, kernels chosen for sm_%d, %d SMs, %d MHz, %d GB/s, %s of memory, %s of L2"):format(report.gpu.arch,
      report.gpu.kernel_arch, report.gpu.sms, report.gpu.clock, report.gpu.memory, bench.size(report.gpu.total_memory),
      bench.size(report.gpu.l2_bytes)),
    ("- CUDA %s, driver for CUDA %s (%s)"):format(report.gpu.runtime_version, report.gpu.driver_version, report.driver),
    "- " .. report.system,
    "- specs: " .. specs_text(report.specs),
    "", "## Times beside cuBLAS", "",
    peers.skipped and "Not taken: " .. peers.skipped or "```\n" .. describe_peers(peers) .. "\n```",
    "", "## Kernels", "", tuning.failed and "Not timed: " .. tuning.failed or kernels_table(tuning.entries), "",
  }, "\n")
end

-- ---- the run ----

local report = {
  version = q._VERSION, gpu = gpu, specs = read_specs(arguments.log), peers = time_peers(), tuning = tune(),
  driver = (first_line "/proc/driver/nvidia/version" or ""):match "%s(%d+%.[%d.]+)%s" or "its version is not told",
  system = ("%s %s, %s, CPU %s"):format(jit.os, first_line "/proc/sys/kernel/osrelease" or "", jit.arch, q.cpu_isa()),
}

local function write(ending, text)
  local path = ("%s/verify-%s.%s"):format(arguments.folder, gpu.name:gsub("[^%w]+", "-"), ending)
  local file, reason = io.open(path, "w")
  if not file then fail("cannot write " .. reason) end
  local written, failure = file:write(text)
  if not (written and file:close()) then fail(("cannot write %s: %s"):format(path, tostring(failure))) end
  print(path)
end

write("json", json.encode(report) .. "\n")
write("md", page(report))
local wrong = report.peers.stopped or report.tuning.failed
for _, row in ipairs(report.peers.shapes or {}) do wrong = wrong or not row.int4mm end
if wrong or report.specs.failed ~= 0 then
  fail "something failed, as the files say: they are worth sending all the more"
end
