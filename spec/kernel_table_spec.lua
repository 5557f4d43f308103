--- What the table of kernels reads of cuobjdump's output: examples/bench/sass.lua.

local helper = require "spec.helper"
local sass = require "examples.bench.sass"

-- Lines as cuobjdump prints them.
local function lines(text) return text:gmatch "[^\n]+" end

-- A function of two nested loops: the inner one has two mma, the outer one a third.
local SASS = [[
	code for sm_80
		Function : _Z5firstv
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                  /* 0x00000a0000017a02 */
                                                                           /* 0x000fe40000000f00 */
        /*0010*/                   IMMA.16864.S4.S4 R4, R8.ROW, R2.COL, R4 ; /* 0x0000000208047237 */
        /*0020*/                   LDSM.16.M88.4 R8, [R2] ;                /* 0x000000000208783b */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R3], [R6.64] ;     /* 0x0000000006037fae */
        /*0040*/              @!P0 LDS.128 R12, [R2+0x10] ;                /* 0x000010000c027984 */
        /*0050*/                   IMMA.16864.S4.S4 R4, R8.ROW, R2.COL, R4 ; /* 0x0000000208047237 */
        /*0060*/                   LOP3.LUT R8, R8, 0x88888888, RZ, 0x3c, !PT ; /* 0x8888888808087812 */
        /*0070*/                   IMMA.16864.S4.S4 R4, R8.ROW, R2.COL, R4 ; /* 0x0000000208047237 */
        /*0080*/              @P1  BRA 0x20 ;                              /* 0xffffff9000001947 */
        /*0090*/              @!PT BRA 0x10 ;                              /* 0xffffff7000007947 */
        /*00a0*/                   EXIT ;                                  /* 0x000000000000794d */
		Function : _Z6secondv
        /*0000*/                   EXIT ;                                  /* 0x000000000000794d */
        /*0010*/                   BRA 0x10;                               /* 0xfffffff000007947 */
]]

describe("kernel table", function()
  it("finds the innermost loop with mma and counts it by kinds", function()
    local found = {}
    for name, code in sass.functions(lines(SASS)) do found[#found + 1] = { name = name, code = code } end
    assert.equal(2, #found)
    assert.equal("_Z5firstv", found[1].name)
    assert.equal(11, #found[1].code)
    local first, last = sass.inner_loop(found[1].code)
    assert.same({ 3, 9 }, { first, last })
    local counts = sass.count(found[1].code, first, last)
    assert.equal(7, counts.instructions)
    local kinds = {}
    for _, kind in ipairs(sass.KINDS) do kinds[#kinds + 1] = kind .. "=" .. counts[kind] end
    assert.equal("mma=2 shared=2 copy=1 convert=0 float=0 logic=1 integer=0 control=1", table.concat(kinds, " "))
    assert.equal(2 * 16 * 8 * 64, counts.products)
    assert.equal(3 * 512, counts.shared_bytes)
    assert.equal("IMMA.16864.S4.S4", counts.mma_name)
    assert.is_nil((sass.inner_loop(found[2].code)))
  end)

  --- What comes before the wait in a function of these instructions, which lie 16 bytes apart.
  local function early(...)
    local text = { "\t\tFunction : _Z1fv" }
    for i, instruction in ipairs { ... } do
      text[i + 1] = ("        /*%04x*/    %s ;    /* 0x0 */"):format(16 * (i - 1), instruction)
    end
    local names = {}
    for _, code in sass.functions(lines(table.concat(text, "\n"))) do
      for _, i in ipairs(sass.early_accesses(code)) do names[#names + 1] = code[i].name end
    end
    return table.concat(names, " ")
  end

  it("finds what touches global memory before griddepcontrol.wait", function()
    local load, wait = "@!P0 LDG.E.CONSTANT R4, desc[UR4][R2.64]", "ACQBULK"
    assert.equal("", early("MOV R1, R2", wait, load, "EXIT"))
    assert.equal("LDG.E.CONSTANT", early("MOV R1, R2", load, wait, "EXIT"))
    assert.equal("", early(load, "EXIT")) -- no wait at all
    assert.equal("", early("LDS R1, [R2]", "CCTL.E.PF2 [R2]", "LDGDEPBAR", "ATOMS.ADD R1, [R2], R3", wait, "EXIT"))
    for _, access in ipairs { "LD.E R1, [R2]", "LDGSTS.E.BYPASS.128 [R3], [R6.64]", "STG.E [R2.64], R1",
      "ATOMG.E.ADD R1, [R2.64], R3", "RED.E.ADD [R2.64], R3", "BRX R28 -0x1810" } do
      assert.equal(access:match "^%S+", early(access, wait, "EXIT"))
    end
  end)

  it("finds it on every path", function()
    local load, wait = "LDG.E R4, desc[UR4][R2.64]", "ACQBULK"
    -- each of two branches has its wait
    assert.equal("", early("@P0 BRA 0x0040", wait, load, "EXIT", wait, load, "EXIT"))
    assert.equal("LDG.E", early("@P0 BRA 0x0040", wait, load, "EXIT", load, wait, "EXIT"))
    assert.equal("LDG.E", early("@P0 BRA 0x0040", load, wait, "EXIT", wait, load, "EXIT"))
    -- around the wait alone: it may be left out
    assert.equal("", early("@P0 BRA 0x0020", wait, load, "EXIT"))
    assert.equal("LDG.E", early(load, "@P0 BRA 0x0030", wait, "EXIT"))
    assert.equal("LDG.E", early("@P0 BRA 0x0030", "MOV R1, R2", wait, load, "EXIT"))
    -- backward, never, and behind a call
    assert.equal("", early("BRA 0x0030", load, "EXIT", wait, "BRA 0x0010"))
    assert.equal("LDG.E", early("BRA P2, 0x0030", load, wait, "EXIT"))
    assert.equal("LDG.E", early("CALL.REL.NOINC 0x0030", wait, "EXIT", load, "RET.REL.NODEC R2 0x0"))
    assert.equal("", early("EXIT", load, wait))
    assert.equal("LDG.E", early("@P1 EXIT", load, wait))
  end)

  it("knows how much an mma multiplies", function()
    assert.equal(16 * 8 * 32, sass.products "IMMA.16832.S8.S8")
    assert.equal(16 * 8 * 16, sass.products "HMMA.16816.F32")
    assert.equal(16 * 8 * 8, sass.products "HMMA.1688.F32.BF16")
    assert.equal(8 * 8 * 32, sass.products "IMMA.8832.S4.S4")
    assert.equal(64 * 128 * 32, sass.products "IGMMA.64x128x32.S8.S8")
    assert.is_nil(sass.products "IMAD.WIDE")
  end)

  it("reads resources and threads by function", function()
    local found = sass.resources(lines [[
Resource usage:
 Common:
  GLOBAL:0
 Function _Z5firstv:
  REG:152 STACK:8 SHARED:64 LOCAL:16 CONSTANT[2]:8 CONSTANT[0]:488 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z6secondv:
  REG:4 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:488 TEXTURE:0 SURFACE:0 SAMPLER:0]])
    assert.same({ registers = 152, stack = 8, spilled = 16, shared = 64 }, found._Z5firstv)
    assert.equal(4, found._Z6secondv.registers)
    assert.same({ _Z5firstv = 256 }, sass.threads(lines [[
.nv.info
	Attribute:	EIATTR_MIN_STACK_SIZE
	Value:	function: _Z5firstv(0x5)	min stack size: 0x0
.nv.info._Z5firstv
	Attribute:	EIATTR_MAX_THREADS
	Format:	EIFMT_SVAL
	Value:	0x80 0x2 0x1]]))
  end)

  it("knows for how many CTAs an SM has room", function()
    assert.equal(98304, sass.dynamic_shared "mma<Tile<Int8<false>, 128, 256, 64, 64, 1, 256> >, 98304>")
    assert.equal(49152, sass.dynamic_shared "mma_experts<Tile<Bytes<0>, 64, 64>, 49152>")
    assert.is_nil(sass.dynamic_shared "skinny<Shape<8, 2, false>>")
    local ampere, turing = { arch = 86, shared = 99 * 1024 }, { arch = 75, shared = 64 * 1024 }
    assert.equal(2, sass.ctas(ampere, 232, 128, 49152))
    assert.equal(1, sass.ctas(ampere, 232, 256, 49152)) -- registers
    assert.equal(1, sass.ctas(ampere, 100, 128, 50 * 1024)) -- shared memory, with 1 KiB for each
    assert.equal(2, sass.ctas(ampere, 100, 128, 49 * 1024))
    assert.equal(2, sass.ctas(turing, 128, 256, 32 * 1024))
    assert.equal(1, sass.ctas(turing, 129, 256, 32 * 1024))
  end)

  it("says what it needs", function()
    local out, status = helper.script("examples/bench/kernel_table.lua", "--library nowhere.so")
    assert.equal(1, status)
    assert.equal("nowhere.so cannot be read: build it first (make all)\n", out)
  end)
end)
