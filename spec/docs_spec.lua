--- The reference: its front page, the comment at the top of lua/int4mm/init.lua, and the pages that `make docs` writes.

local helper = require "spec.helper"
local q = require "int4mm"
local snippets = require "spec.snippets"

describe("the front page of the reference", function()
  local page = snippets.read "lua/int4mm/init.lua":match "^(.-)\n\n"

  it("lists every public function, and none that there is not", function()
    local listed = {}
    for name in page:gmatch "@{[%w_.]+|([%w_]+)}" do
      assert.is_function(q[name], name)
      listed[name] = true
    end
    for name, value in pairs(q) do
      if type(value) == "function" then assert.is_true(listed[name], name .. " is not listed") end
    end
  end)

  it("links to where they are", function()
    local places = 0
    for module, name, shown in page:gmatch "@{([%w_.]+)%.([%w_]+)|([%w_]+)}" do
      local value = require(module)[name]
      assert.equal(q[shown], value, shown)
      places = places + 1
    end
    assert.is_true(places > 40)
  end)

  it("links to modules that are public in config.ld", function()
    local config = snippets.read "config.ld"
    for module in page:gmatch "@{(int4mm[%w_.]*)%.[%w_]+|" do
      assert.is_truthy(config:find('"' .. module .. '"', 1, true), module)
    end
  end)
end)

describe("the pages of make docs #make", function()
  local folder, pages, text

  -- What objects of each kind are, by what stands before the names of their methods.
  local objects = {
    t = q.ones { 1 }, layer = q.linear(q.ones { 1, 1 }),
  }

  -- A safetensors file of one tensor.
  local function open_file()
    local path = os.tmpname()
    assert(q.save_safetensors(path, { x = q.ones { 1 } }))
    local file = assert(q.open_safetensors(path))
    os.remove(path)
    return file
  end

  setup(function()
    if os.execute "command -v ldoc >/dev/null 2>&1 && luajit -e 'require \"discount\"' 2>/dev/null" ~= 0 then return end
    objects.file = open_file()
    folder = helper.temporary_folder()
    local output, status = helper.shell(("unset LD_PRELOAD MAKEFLAGS MAKELEVEL; make docs APT=0 BUILD='%s'")
      :format(folder))
    assert.equal(0, status, output)
    pages, text = {}, ""
    for path in helper.shell(("find '%s/doc' -name '*.html'"):format(folder)):gmatch "[^\n]+" do
      pages[path:match "doc/(.*)$"] = snippets.read(path)
      if path:find("/reference/", 1, true) then text = text .. pages[path:match "doc/(.*)$"] end
    end
  end)
  teardown(function() if folder then helper.shell("rm -rf '" .. folder .. "'") end end)

  it("show functions under the names that users call, all of them and no others", function()
    if not pages then return pending "no ldoc here" end
    local shown = {}
    for object, separator, name in text:gmatch "<h3><code>(%w+)([.:])([%w_]+)" do
      if object == "q" and separator == "." then
        assert.is_function(q[name], "q." .. name)
        shown[name] = true
      elseif objects[object] then
        assert.is_truthy(objects[object][name], object .. ":" .. name)
      else
        assert.matches("^[esg][vtr][era][nep][tah]", object) -- event, stream, graph
      end
    end
    for name, value in pairs(q) do
      if type(value) == "function" then assert.is_true(shown[name], "q." .. name .. " has no entry") end
    end
    assert.is_nil(text:find("<h3><code>%u"))
  end)

  it("are the guide, the reference and the examples, of nothing internal, for every width", function()
    if not pages then return pending "no ldoc here" end
    for name, page in pairs(pages) do
      assert.is_nil(page:find ">int4mm%.[%w_.]+</a>", name) -- a module's name is no title
      assert.is_truthy(page:find('<meta name="viewport" content="width=device-width, initial-scale=1">', 1, true), name)
      assert.is_truthy(page:find 'href="[./]*ldoc%.css"', name)
    end
    for path in helper.shell("ls examples/guide/*.md"):gmatch "[^\n]+" do
      assert.is_truthy(pages["guide/" .. path:match "[^/]+$" .. ".html"], path .. " is not in config.ld")
    end
    for path in helper.shell("ls examples/*.lua"):gmatch "[^\n]+" do
      assert.is_truthy(pages[path .. ".html"], path .. " is not in config.ld")
    end
    assert.is_truthy(pages["index.html"]:find("How bits are defined", 1, true))
  end)

  it("have no link that leads nowhere", function()
    if not pages then return pending "no ldoc here" end
    for name, page in pairs(pages) do
      for target in page:gmatch 'href="([^"#:]+%.html)' do
        local path = (name:match "^(.*/)" or "") .. target
        path = path:gsub("[^/]+/%.%./", "")
        assert.is_truthy(pages[path], name .. " links to " .. target)
      end
      for target, anchor in page:gmatch 'href="([^":]*)#([^"]+)"' do
        local path = target == "" and name or ((name:match "^(.*/)" or "") .. target):gsub("[^/]+/%.%./", "")
        local there = pages[path]
        assert.is_truthy(there:find('id="' .. anchor .. '"', 1, true) or there:find('name="' .. anchor .. '"', 1, true),
          name .. " links to " .. target .. "#" .. anchor)
      end
    end
  end)
end)
