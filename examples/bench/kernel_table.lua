--- What each CUDA kernel was compiled to, and from that the share of a card's tensor cores that its inner loop can
-- reach: a table in Markdown, for cards that are not at hand.
--
--     luajit examples/bench/kernel_table.lua [--library build/libint4mm_cuda.so] [--only mma] [--arch 80,86]
--
-- Needs cuobjdump, which comes with the CUDA toolkit; c++filt, of binutils, makes the names readable. No GPU.
--
-- A scheduler of an SM issues one instruction a clock, and an mma keeps its tensor core for `clocks`, by the rates of
-- int4mm.architectures(). Two bounds come from that, as shares of the rate:
--
--     all overlaps       clocks / max(clocks, instructions for each mma, bytes of shared memory / share)
--     nothing overlaps   clocks / (clocks + other instructions for each mma)
--
-- where four schedulers share the 128 bytes that shared memory gives in a clock, 64 as is taken for sm_75. On an H100
-- what is measured is the second: mma_128x256 for int8, 74 % by count, does 74 % at 8192^3. The loop of a kernel that
-- promotes groups has code for the end of a group after each part of k, most of which is not run: bounds are too low.

package.path = (arg[0]:match "^(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path

local argparse = require "argparse"
local q = require "int4mm"
local sass = require "sass"

-- By number, as text.
local architectures = {}
for _, architecture in ipairs(q.architectures()) do architectures[tostring(architecture.arch)] = architecture end

-- Cards beside that of the architecture which int4mm.architectures() has: SMs and boost clock in MHz. Their SMs
-- multiply integers alike; floats with float32 sums are slower on a GeForce.
local MORE_CARDS = { ["89"] = { { card = "L4", sms = 58, clock = 2040 } } }

-- Bytes of an SM's shared memory a clock; of sm_75 not known for sure.
local function shared_rate(architecture) return architecture.arch < 80 and 64 or 128 end

-- The output of a command as lines; none where it fails.
local function lines_of(command) return assert(io.popen(command .. " 2>/dev/null")):lines() end

local function has(program) return os.execute("command -v " .. program .. " >/dev/null 2>&1") == 0 end

-- Readable names of functions, those of templates without what their arguments are called.
local function readable(names)
  if #names == 0 or not has "c++filt" then return names end
  local file = os.tmpname()
  local out = assert(io.open(file, "w"))
  out:write(table.concat(names, "\n"), "\n")
  out:close()
  local found = {}
  for line in lines_of("c++filt -p < " .. file) do
    found[#found + 1] = line:gsub("%(anonymous namespace%)::", ""):gsub("^void ", ""):gsub("%(bool%)", "")
      :gsub("%(int%)", ""):gsub("%(unsigned int%)", ""):gsub("%([^()]*%)$", "")
  end
  os.remove(file)
  return found
end

-- The architectures that a library has machine code for: "80", "90a", ...
local function compiled_for(library)
  local found, seen = {}, {}
  for line in lines_of("cuobjdump --list-elf " .. library) do
    local arch = line:match "%.sm_(%d+%a?)%."
    if arch and not seen[arch] then
      seen[arch], found[#found + 1] = true, arch
    end
  end
  table.sort(found, function(a, b) return tonumber(a:match "%d+") < tonumber(b:match "%d+") end)
  return found
end

-- The kernels of one architecture that have an inner loop with mma: name, resources and counts each.
local function kernels(library, arch)
  local of_arch = (" -arch sm_%s %s"):format(arch, library)
  local resources = sass.resources(lines_of("cuobjdump -res-usage" .. of_arch))
  local threads = sass.threads(lines_of("cuobjdump -elf" .. of_arch))
  local found, names = {}, {}
  for name, code in sass.functions(lines_of("cuobjdump -sass" .. of_arch)) do
    local first, last = sass.inner_loop(code)
    if first and resources[name] then
      found[#found + 1] =
        { counts = sass.count(code, first, last), resources = resources[name], threads = threads[name] }
      names[#names + 1] = name
    end
  end
  for i, name in ipairs(readable(names)) do found[i].name = name end
  return found
end

-- Bytes of shared memory of a kernel's CTA, and CTAs for which an SM has room; "-" where that is not known. From sm_90
-- on cuobjdump counts the 1 KiB that the GPU takes for each CTA.
local function shared_and_ctas(kernel, arch)
  local dynamic, architecture = sass.dynamic_shared(kernel.name), architectures[arch:match "%d+"]
  if not dynamic or not architecture or not kernel.threads then return "-", "-" end
  local declared = kernel.resources.shared - (architecture.arch < 90 and 0 or 1024)
  return dynamic + declared, sass.ctas(architecture, kernel.resources.registers, kernel.threads, dynamic + declared)
end

-- Multiply-adds of an SM a clock for an mma, by what it multiplies.
local function macs_of(architecture, mma)
  if mma:find "S4" or mma:find "U4" then return architecture.int4_macs end
  if mma:find "S8" or mma:find "U8" then return architecture.int8_macs end
  return architecture.fp16_macs
end

-- Both bounds of a kernel in words, with the rates of the cards.
local function bounds(kernel, arch)
  local counts, architecture = kernel.counts, architectures[arch:match "%d+"]
  if not architecture or counts.mma_name:find "GMMA" then return "-" end
  local macs = macs_of(architecture, counts.mma_name)
  local clocks = counts.products / counts.mma / (macs / 4)
  local issued = counts.instructions / counts.mma
  local share = shared_rate(architecture) / 4
  local all = clocks / math.max(clocks, issued, counts.shared_bytes / counts.mma / share)
  local nothing = clocks / (clocks + issued - 1)
  local rates = {}
  local more = counts.mma_name:find "^I" and MORE_CARDS[arch:match "%d+"] or {}
  for _, card in ipairs { architecture, unpack(more) } do
    rates[#rates + 1] = ("%s %.0f"):format(card.card, macs * 2 * card.sms * card.clock / 1e6)
  end
  return ("%.0f to %.0f %% of %s"):format(100 * nothing, 100 * all, table.concat(rates, ", "))
end

local function row(arch, kernel)
  local counts, per_mma, spilled = kernel.counts, {}, kernel.resources.stack + kernel.resources.spilled
  for _, kind in ipairs(sass.KINDS) do
    if kind ~= "mma" then per_mma[#per_mma + 1] = ("%.2f"):format(counts[kind] / counts.mma) end
  end
  local shared, ctas = shared_and_ctas(kernel, arch)
  print(("| %s | `%s` | %d | %d | %s | %s | %s | %s | %.4f | %s |"):format(arch, kernel.name,
    kernel.resources.registers, spilled, shared, ctas, counts.mma_name, table.concat(per_mma, " | "),
    counts.shared_bytes / counts.products, bounds(kernel, arch)))
end

local parser = argparse("kernel_table.lua", "What the CUDA kernels were compiled to, and their bounds.")
parser:option("--library", "the library, or one object of it", "build/libint4mm_cuda.so")
parser:option("--only", "kernels whose name has this Lua pattern", "")
parser:option("--arch", "architectures, as 80,90a; all that there are", "")
local options = parser:parse()

local file = io.open(options.library)
if not file then
  io.stderr:write(options.library, " cannot be read: build it first (make all)\n")
  os.exit(1)
end
file:close()
if not has "cuobjdump" then
  io.stderr:write "cuobjdump is not on PATH: it comes with the CUDA toolkit (package cuda-cuobjdump)\n"
  os.exit(1)
end

local heads = {}
for _, kind in ipairs(sass.KINDS) do
  if kind ~= "mma" then heads[#heads + 1] = kind end
end
print(("| sm | kernel | registers | bytes spilled | shared memory | CTAs of an SM | mma | %s |"):format(
  table.concat(heads, " | ")) .. " bytes of shared memory a product | nothing to all overlaps, of TOPS |")
print("|" .. (" --- |"):rep(9 + #heads))
local archs = compiled_for(options.library)
if #archs == 0 then
  io.stderr:write("cuobjdump finds no machine code in ", options.library, "\n")
  os.exit(1)
end
for _, arch in ipairs(archs) do
  if options.arch == "" or ("," .. options.arch .. ","):find("," .. arch .. ",", 1, true) then
    for _, kernel in ipairs(kernels(options.library, arch)) do
      if kernel.name:find(options.only) then row(arch, kernel) end
    end
  end
end
