--- Runs every Lua and C block of README.md and of the guide; a block of no language right after one holds exactly what
-- it prints.

local helper = require "spec.helper"
local q = require "int4mm"
local snippets = require "spec.snippets"

local pages = { "README.md" }
for path in (helper.shell "ls examples/guide/*.md"):gmatch "[^\n]+" do pages[#pages + 1] = path end

-- A block with its output, or that it has some.
local function check(block, path)
  local run = block.language == "c" and snippets.run_c or snippets.run_lua
  local printed, status = run(block, path)
  assert.equal(0, status, printed)
  if block.output then assert.equal(block.output, printed) else assert.not_equal("", printed) end
end

for _, path in ipairs(pages) do
  describe(path, function()
    local text, blocks = snippets.read(path), snippets.blocks(path)

    it("has blocks, most of them with their output", function()
      local programs, outputs = 0, 0
      for _, block in ipairs(blocks) do
        if block.language == "lua" or block.language == "c" then
          programs, outputs = programs + 1, outputs + (block.output and 1 or 0)
        end
      end
      assert.is_true(programs >= 1 and 2 * outputs >= programs)
    end)

    for _, block in ipairs(blocks) do
      if block.language == "lua" or block.language == "c" then
        local name = ("runs and prints as it says: the block at line %d"):format(block.line)
        if block.language == "c" and helper.sanitized() then
          pending(name .. " (not under a sanitizer)")
        else
          it(name, function() check(block, path) end)
        end
      end
    end

    it("names only functions that there are", function()
      for name in text:gmatch "[^%w_.]q%.([%a_][%w_]*)" do assert.is_not_nil(q[name], "q." .. name) end
      for module, name in text:gmatch "@{(int4mm[%w_.]-)%.([%w_]+)|q%." do
        assert.is_function(require(module)[name], module .. "." .. name)
      end
    end)

    it("names only targets that the Makefile has", function()
      local makefile = "\n" .. snippets.read "Makefile" .. snippets.read "rockspec/package.mk"
      for name in pairs(snippets.targets("\n" .. text)) do
        assert.is_truthy(makefile:find("\n" .. name .. ":", 1, true), "make " .. name)
      end
    end)

    it("names only files that there are", function()
      for name in text:gmatch "[`( ](examples/[%w_/]+%.%w+)" do assert(io.open(name), name):close() end
      local folder = path:match "^(.*/)" or ""
      for name in text:gmatch "%]%(([%w/-]+%.md)%)" do assert(io.open(folder .. name), name):close() end
    end)

    it("names only environment variables that the library reads", function()
      local sources = ""
      for _, source in ipairs {
        "src/cuda/loader.c", "src/cpu/thread_count.c", "src/cpu/cpu.c", "src/dispatch/gpu.c", "lua/int4mm/tune.lua",
      } do sources = sources .. snippets.read(source):gsub('getenv "([%w_]+)"', 'getenv("%1")') end
      for name in text:gmatch "`(INT4MM_[%u_]+)`" do
        local read = sources:find('getenv("' .. name .. '")', 1, true)
        local defined = snippets.read "src/int4mm.h":find("#define " .. name .. " ", 1, true)
        assert.is_truthy(read or defined, name)
      end
    end)
  end)
end

describe("examples/guide/errors.md", function()
  it("has only sentences that the library says", function()
    -- texts that are broken over lines are joined
    local sources = helper.shell "cat lua/int4mm/*.lua lua/int4mm/*/*.lua src/*/*.c src/*/*.h"
      :gsub('"%s*\n%s*%.%. "', ""):gsub('"%s*\n%s*"', "")
    local checked = 0
    for sentence in snippets.read "examples/guide/errors.md":gmatch "\n| `([^`]+)`" do
      if not sentence:find "^module" then -- that one is Lua's
        assert.is_truthy(sources:find(sentence, 1, true), sentence)
        checked = checked + 1
      end
    end
    assert(checked > 12, checked)
  end)
end)
