--- Reads what cuobjdump prints of compiled kernels: their resources, and of their machine code the inner loop, by kinds
-- of instructions. Pure functions of text.

local sass = {}

-- Kinds of instructions, by how their names begin; the first that fits. An instruction of the uniform datapath (U...)
-- takes an issue slot as any other.
local KINDS = {
  { "mma", "^[IH]MMA%.", "^[IHQ]GMMA%." },
  { "shared", "^LDSM?[%. ]", "^LDSM?$", "^STS" },
  { "copy", "^LDGSTS", "^LDG", "^STG", "^UBLKCP", "^UTMA" },
  { "convert", "^I2F", "^F2", "^I2I" },
  { "float", "^FFMA", "^FMUL", "^FADD", "^HFMA2", "^HMUL2", "^HADD2", "^FSEL", "^FSETP" },
  { "logic", "^LOP3", "^PRMT", "^SHF", "^SGXT", "^ULOP3", "^USHF", "^UPRMT" },
  { "integer", "^IMAD", "^IADD", "^VIADD", "^LEA", "^ISETP", "^SEL", "^IMNMX", "^VIMNMX", "^MOV", "^PLOP3",
    "^R2UR", "^R2P", "^P2R", "^CS2R", "^S2R", "^UI", "^UMOV", "^ULEA", "^USEL", "^UPLOP3", "^UVI", "^ULDC", "^LDC",
    "^S2UR", "^UR2UP" },
}

--- The kinds, in the order in which a table shows them; "control" is whatever is none of the others.
sass.KINDS = { "mma", "shared", "copy", "convert", "float", "logic", "integer", "control" }

--- The kind of an instruction: "IMMA.16832.S8.S8" is an mma.
function sass.kind(name)
  for _, kind in ipairs(KINDS) do
    for i = 2, #kind do
      if name:find(kind[i]) then return kind[1] end
    end
  end
  return "control"
end

--- Multiplications of an mma for a warp (for a warpgroup where the name begins with one of its own): "IMMA.16832.S8.S8"
-- has 16 x 8 x 32. nil for other instructions.
function sass.products(name)
  local m, n, k = name:match "GMMA%.(%d+)x(%d+)x(%d+)"
  if not m then
    local digits = name:match "^[IH]MMA%.(%d+)"
    if not digits then return nil end
    m, n, k = digits:match "^(16)(8)(%d+)$"
    if not m then
      m, n, k = digits:match "^(8)(8)(%d+)$"
    end
  end
  return m and m * n * k or nil
end

-- Bytes that a warp moves from or to shared memory by an instruction: those of its size in bits for 32 lanes.
local function shared_bytes(name)
  if name:find "^LDSM" then return 128 * tonumber(name:match "%.(%d)$" or 1) end
  if name:find "^LDGSTS" then return 4 * tonumber(name:match "%.(%d%d+)" or 32) end
  if name:find "^LDS" or name:find "^STS" then return 4 * tonumber(name:match "%.(%d%d+)" or 32) end
  return 0
end

--- The functions in what `cuobjdump -sass` prints, as an iterator over `lines` (an iterator of lines): name and the
-- instructions, { address =, name =, target =, callee =, conditional = } each: where a branch or a call goes, and
-- whether a predicate or an operand may keep it from that.
function sass.functions(lines)
  return coroutine.wrap(function()
    local name, code
    for line in lines do
      local started = line:match "^%s*Function : (%S+)"
      if started then
        if name then coroutine.yield(name, code) end
        name, code = started, {}
      elseif name then
        local address, text = line:match "^%s*/%*(%x%x%x%x+)%*/%s+(.-)%s*;"
        if address then
          local bare = text:gsub("^@!?U?P%w+%s+", "")
          local instruction =
            { address = tonumber(address, 16), name = bare:match "^%S+", conditional = bare ~= text }
          local branch = instruction.name:match "^BRA" or instruction.name:match "^CALL"
          if branch then
            local target = tonumber((text:match "(0x%x+)%s*$"))
            instruction[branch == "BRA" and "target" or "callee"] = target
            if not bare:find "^%S+%s+0x%x+$" then instruction.conditional = true end
          end
          code[#code + 1] = instruction
        end
      end
    end
    if name then coroutine.yield(name, code) end
  end)
end

-- Whether an instruction reads or writes global memory, or branches to where is not known.
local function is_access(name)
  for _, begins in ipairs { "LDG?%.", "LDGSTS", "STG?%.", "ATOMG?%.", "REDG?%.", "BRX", "JMX" } do
    if name:find("^" .. begins) then return true end
  end
  return false
end

local WAIT = "ACQBULK" -- griddepcontrol.wait

-- Whether no path goes on from an instruction without a wait: it is one, or a branch around nothing but one, as in code
-- that may do without.
local function waits(code, i)
  local target = code[i].target
  return code[i].name == WAIT
    or target and code[i].conditional and code[i + 1].name == WAIT and code[i + 2].address == target
end

--- Indexes into `code` of what touches global memory before griddepcontrol.wait: instructions to which some path leads
-- from the beginning without one. A kernel that has none at all is not launched before the grid ahead of it has ended.
function sass.early_accesses(code)
  local index, has_wait = {}, false
  for i, instruction in ipairs(code) do
    index[instruction.address] = i
    has_wait = has_wait or instruction.name == WAIT
  end
  local found, seen, left = {}, {}, { has_wait and 1 or nil }
  while #left > 0 do
    local i = table.remove(left)
    while code[i] and not seen[i] and not waits(code, i) do
      local instruction = code[i]
      seen[i] = true
      if is_access(instruction.name) then found[#found + 1] = i end
      left[#left + 1] = index[instruction.target or instruction.callee]
      local ends = instruction.target or instruction.name:find "^EXIT" or instruction.name:find "^RET"
      i = ends and not instruction.conditional and 0 or i + 1
    end
  end
  table.sort(found)
  return found
end

--- The innermost loop with the most mma instructions: first and last index into `code`, nil where no loop has any.
function sass.inner_loop(code)
  local index, loops = {}, {}
  for i, instruction in ipairs(code) do
    index[instruction.address] = i
    local first = instruction.target and index[instruction.target]
    if first and first < i then
      local count = 0
      for j = first, i do
        if sass.kind(code[j].name) == "mma" then count = count + 1 end
      end
      if count > 0 then loops[#loops + 1] = { first = first, last = i, mma = count } end
    end
  end
  local best
  for _, loop in ipairs(loops) do
    local innermost = true
    for _, other in ipairs(loops) do
      if other ~= loop and other.first >= loop.first and other.last <= loop.last then innermost = false end
    end
    if innermost and (not best or loop.mma > best.mma) then best = loop end
  end
  if best then return best.first, best.last end
end

--- What a warp issues in one turn of a loop: a count for each of KINDS, `instructions` in all, `mma_name`, `products`
-- of its mma and `shared_bytes` that it moves.
function sass.count(code, first, last)
  local counts = { instructions = last - first + 1, products = 0, shared_bytes = 0 }
  for _, kind in ipairs(sass.KINDS) do counts[kind] = 0 end
  for i = first, last do
    local name = code[i].name
    local kind = sass.kind(name)
    counts[kind] = counts[kind] + 1
    counts.shared_bytes = counts.shared_bytes + shared_bytes(name)
    local products = sass.products(name)
    if products then counts.mma_name, counts.products = name, counts.products + products end
  end
  return counts
end

--- Registers and bytes of stack and local memory by function, of what `cuobjdump -res-usage` prints: spills show as
-- either.
function sass.resources(lines)
  local found, name = {}, nil
  for line in lines do
    name = line:match "^%s*Function (%S+):" or name
    local registers = line:match "REG:(%d+)"
    if registers and name then
      found[name] = {
        registers = tonumber(registers),
        stack = tonumber(line:match "STACK:(%d+)"),
        spilled = tonumber(line:match "LOCAL:(%d+)"),
        shared = tonumber(line:match "SHARED:(%d+)"),
      }
    end
  end
  return found
end

--- Most threads of a CTA by function, of what `cuobjdump -elf` prints.
function sass.threads(lines)
  local found, name, wanted = {}, nil, false
  for line in lines do
    name = line:match "^%.nv%.info%.(%S+)" or name
    if line:find("EIATTR_MAX_THREADS", 1, true) then
      wanted = true
    elseif wanted and line:find("Value:", 1, true) then
      local threads = 1
      for extent in line:gmatch "0x(%x+)" do threads = threads * tonumber(extent, 16) end
      if name then found[name] = threads end
      wanted = false
    end
  end
  return found
end

--- Bytes of dynamic shared memory of a CTA, which kernels of mma and turing have at the end of their readable name,
-- after their tile; nil for others.
function sass.dynamic_shared(name) return tonumber(name:match "^mma[%w_]*<Tile<.*>, (%d+)>") end

local REGISTERS, REGISTER_UNIT = 65536, 256 -- of an SM; those of a warp are given out by so many
local KIB = 1024

--- CTAs for which an SM has registers and shared memory. An SM of sm_80 and later has 1 KiB more of it than
-- `architecture.shared`, which a CTA may have, and takes 1 KiB for each CTA.
-- @tparam table architecture of int4mm.architectures()
-- @tparam number registers of a thread
-- @tparam number threads of a CTA
-- @tparam number shared bytes of a CTA
function sass.ctas(architecture, registers, threads, shared)
  local of_warp = math.ceil(registers * 32 / REGISTER_UNIT) * REGISTER_UNIT
  local own = architecture.arch < 80 and 0 or KIB
  return math.min(math.floor(REGISTERS / (of_warp * threads / 32)),
    math.floor((architecture.shared + own) / (shared + own)))
end

return sass
