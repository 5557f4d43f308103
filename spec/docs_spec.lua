--- The reference's front page, the comment at the top of lua/int4mm/init.lua.

local q = require "int4mm"

describe("the front page of the reference", function()
  local file = assert(io.open "lua/int4mm/init.lua")
  local page = file:read("*a"):match "^(.-)\n\n"
  file:close()

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
end)
