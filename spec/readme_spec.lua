--- Runs every Lua block of README.md; a text block right after one holds exactly what it prints.

local function read(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  return text
end

--- The fenced blocks in order: { language =, line =, text = }.
local function fenced_blocks(text)
  local blocks, block, number = {}, nil, 0
  for line in text:gmatch "(.-)\n" do
    number = number + 1
    local fence = line:match "^```(%w*)$"
    if fence and block then
      blocks[#blocks + 1] = block
      block = nil
    elseif fence then
      block = { language = fence, line = number + 1, text = "" }
    elseif block then
      block.text = block.text .. line .. "\n"
    end
  end
  assert(not block, "README.md ends inside a block")
  return blocks
end

--- Runs a block with a `print` of its own and returns what it printed.
local function run(block)
  local printed = {}
  local environment = setmetatable({
    print = function(...)
      local texts = {}
      for i = 1, select("#", ...) do texts[i] = tostring((select(i, ...))) end
      printed[#printed + 1] = table.concat(texts, "\t") .. "\n"
    end,
  }, { __index = _G })
  -- newlines before it, so that errors name the line in README.md
  local chunk = assert(loadstring(("\n"):rep(block.line - 1) .. block.text, "@README.md"))
  setfenv(chunk, environment)()
  return table.concat(printed)
end

describe("README.md", function()
  local text = read "README.md"
  local blocks = fenced_blocks(text)

  it("has Lua blocks, most of them with their output", function()
    local lua, outputs = 0, 0
    for i, block in ipairs(blocks) do
      if block.language == "lua" then lua = lua + 1 end
      if block.language == "text" then
        outputs = outputs + 1
        assert.equal("lua", blocks[i - 1].language)
      end
    end
    assert.is_true(lua >= 5)
    assert.is_true(outputs >= 4)
  end)

  for i, block in ipairs(blocks) do
    if block.language == "lua" then
      it(("runs and prints as it says: the block at line %d"):format(block.line), function()
        local printed = run(block)
        local shown = blocks[i + 1]
        if shown and shown.language == "text" then
          assert.equal(shown.text, printed)
        else
          assert.not_equal("", printed)
        end
      end)
    end
  end

  it("names only functions that there are", function()
    local q, checked = require "int4mm", 0
    for name in text:gmatch "q%.([%a_][%w_]*)" do
      assert.is_not_nil(q[name], "q." .. name)
      checked = checked + 1
    end
    assert.is_true(checked > 20)
  end)

  it("names only environment variables that the C core reads", function()
    local sources, checked = read "src/cuda/loader.c" .. read "src/cpu/thread_count.c" .. read "src/cpu/cpu.c", 0
    for name in text:gmatch "`(INT4MM_[%u_]+)`" do
      assert.is_truthy(sources:find('getenv("' .. name .. '")', 1, true), name)
      checked = checked + 1
    end
    assert.equal(3, checked)
  end)

  it("names only targets that the Makefile has", function()
    local makefile, checked = "\n" .. read "Makefile" .. read "rockspec/package.mk", 0
    for name in text:gmatch "[\n`]make ([%l-]+)" do
      assert.is_truthy(makefile:find("\n" .. name .. ":", 1, true), "make " .. name)
      checked = checked + 1
    end
    assert.is_true(checked >= 5)
  end)
end)
