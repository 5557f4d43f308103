--- The types for editors, lua/int4mm/meta/types.lua, held against the module: names, parameters, options, methods and
-- fields.

local helper = require "spec.helper"
local q = require "int4mm"
local snippets = require "spec.snippets"

local PATH = "lua/int4mm/meta/types.lua"

-- ---- the file ----

-- "a, b" as a list.
local function names(text)
  local list = {}
  for name in text:gmatch "[^,%s]+" do list[#list + 1] = name end
  return list
end

-- { classes = { [name] = { fields = { [name] = type }, functions = { [name] = function } } }, errors = { ... } }; a
-- function has `params`, those of its signature, and `types` of them, with "?" at the end of optional ones.
local function parse(text)
  local function fresh() return { params = {}, types = {} } end
  local types, locals, doc = { classes = {}, errors = {} }, {}, fresh()
  for line in text:gmatch "([^\n]*)\n" do
    local class = line:match "^%-%-%-@class ([%w_.]+)"
    local field, field_type = line:match "^%-%-%-@field (%[?[%w_]+%]?%??) (%S+)"
    local param, param_type = line:match "^%-%-%-@param ([%w_.]+%??) (%S+)"
    local object, separator, name, signature = line:match "^function (%w+)([.:])([%w_]+)%((.-)%) end$"
    if class then
      types.classes[class] = { fields = {}, functions = {} }
      doc.class = class
    elseif field then
      types.classes[doc.class].fields[field:gsub("%?", "")] = field_type .. (field:find "?" and "?" or "")
    elseif param then
      local plain = param:gsub("%?", "")
      doc.params[#doc.params + 1] = plain
      doc.types[plain] = param_type .. (param:find "?" and "?" or "")
    elseif line:match "^local (%w+) = {}$" then
      locals[line:match "^local (%w+)"] = doc.class
    elseif object then
      local entry = { params = names(signature), types = doc.types, method = separator == ":" }
      if table.concat(doc.params, " ") ~= table.concat(entry.params, " ") then
        types.errors[#types.errors + 1] = name .. ": the comment has " .. table.concat(doc.params, ", ")
          .. ", the signature " .. signature
      end
      types.classes[locals[object]].functions[name] = entry
    elseif line ~= "" and not line:find "^%-%-" then
      types.errors[#types.errors + 1] = "what is this: " .. line
    end
    if line == "" or object then doc = fresh() end
  end
  return types
end

local types = parse(snippets.read(PATH))

-- ---- the module ----

-- The parameters of a function, "..." where it takes more.
local function parameters(f)
  local list, info = {}, debug.getinfo(f, "u")
  for i = 1, info.nparams do list[i] = debug.getlocal(f, i) end
  if info.isvararg then list[#list + 1] = "..." end
  return table.concat(list, ", ")
end

-- What stands for an argument of a type, enough to come to the check of the options.
local tensor = q.ones { 1, 8 }
local EXAMPLES = {
  ["int4mm.tensor"] = tensor, number = 8, string = "/nowhere/at-all", any = tensor, ["ffi.cdata*"] = tensor:data(),
  ["int4mm.tensor|number"] = tensor, ["int4mm.tensor|nil"] = tensor, ["int4mm.tensor[]"] = { tensor },
  ["int4mm.tensor|number[]"] = { 1 }, ["int4mm.tuned_product[]"] = { { M = 1, K = 8, N = 1 } },
  ["string|int4mm.tuning|nil"] = "/nowhere/at-all",
  ["1|2"] = 1, ["table<string,"] = { x = tensor }, ["fun(stream:"] = function() end, ["function"] = function() end,
  ["number[]|number[][]|string|ffi.cdata*|int4mm.tensor"] = { 1 }, ["number|ffi.cdata*|lightuserdata"] = 8,
}

local safetensors_file

-- Calls a function with an option that it does not know; returns the names of those that it does.
local function known_options(what, f, entry, class, object)
  local arguments, n = {}, 0
  if object then arguments[1], n = object, 1 end
  for _, name in ipairs(entry.params) do
    n = n + 1
    local kind = entry.types[name]:gsub("%?$", "")
    if kind:find(class, 1, true) then
      arguments[n] = { ["no such option"] = 1 }
    elseif kind == "int4mm.safetensors" then
      arguments[n] = safetensors_file
    else
      arguments[n] = EXAMPLES[kind]
      assert(arguments[n] ~= nil, what .. ": no example of " .. kind .. "; add one")
    end
  end
  local _, message = pcall(f, unpack(arguments, 1, n))
  local list = tostring(message):match 'unknown option "no such option"; the options are (.*)$'
  assert(list, what .. ": " .. tostring(message))
  return names(list)
end

-- The class of the table of options that a function takes, or nil.
local function options_class(entry)
  for _, kind in pairs(entry.types) do
    local class = kind:match "(int4mm%.[%w_]+_options)" or kind:match "(int4mm%.gpu_problem)"
      or kind:match "(int4mm%.shape)"
    if class then return class end
  end
end

local function sorted(set, list)
  local result = list or {}
  for name in pairs(set or {}) do
    if not name:find "^%[" then result[#result + 1] = name end
  end
  table.sort(result)
  return result
end

describe("the types for editors", function()
  setup(function()
    local path = os.tmpname()
    assert(q.save_safetensors(path, { ["x.weight"] = tensor }))
    safetensors_file = assert(q.open_safetensors(path))
    os.remove(path)
  end)

  it("are well formed", function()
    assert.same({}, types.errors)
    local text, used = snippets.read(PATH), 0
    for comment in text:gmatch "\n%-%-%-@([^\n]*)" do
      for class in comment:gmatch "int4mm%.[%w_]+" do
        assert.is_truthy(types.classes[class] or text:find("---@alias " .. class .. " ", 1, true), class)
        used = used + 1
      end
    end
    assert(used > 100)
  end)

  it("are those of what the module returns", function()
    assert.matches("\n} %-%-%[%[@as int4mm%]%]", snippets.read "lua/int4mm/init.lua")
  end)

  it("have every function of the module with its parameters, and no others", function()
    local module = types.classes.int4mm
    for name, value in pairs(q) do
      if type(value) == "function" then
        assert.is_truthy(module.functions[name], "q." .. name .. " is not in " .. PATH)
        assert.equal(parameters(value), table.concat(module.functions[name].params, ", "), "q." .. name)
      else
        assert.is_truthy(module.fields[name], "q." .. name .. " is not in " .. PATH)
      end
    end
    for _, kind in ipairs { "functions", "fields" } do
      for name in pairs(module[kind]) do assert.is_not_nil(q[name], "q." .. name) end
    end
  end)

  it("have every option of the functions, and no others", function()
    local checked = 0
    for name, entry in pairs(types.classes.int4mm.functions) do
      local class = options_class(entry)
      if class then
        local known = known_options("q." .. name, q[name], entry, class)
        assert.same(sorted(nil, known), sorted(types.classes[class].fields), "of q." .. name .. ", " .. class)
        checked = checked + 1
      end
    end
    assert(checked > 35, checked)
  end)

  -- Methods of an object as the module has them, and as the file has them.
  local function check_methods(class, object, methods)
    local entries = types.classes[class].functions
    for name, method in pairs(methods) do
      if not name:find "^__" and type(method) == "function" then
        assert.is_truthy(entries[name], class .. ":" .. name .. " is not in " .. PATH)
        assert.equal(parameters(method):gsub("^%w+,? ?", ""), table.concat(entries[name].params, ", "), name)
      end
    end
    for name, entry in pairs(entries) do
      assert.is_function(object[name], name)
      local options = options_class(entry)
      if options and name ~= "to" then
        assert.same(sorted(nil, known_options(name, object[name], entry, options, object)),
          sorted(types.classes[options].fields), class .. ":" .. name)
      end
    end
  end

  it("have every method of tensors, layers and files", function()
    check_methods("int4mm.tensor", tensor, require("int4mm.tensor").methods)
    local layer = q.linear(q.ones { 1, 8 })
    check_methods("int4mm.linear", layer, getmetatable(layer))
    check_methods("int4mm.safetensors", safetensors_file, getmetatable(safetensors_file).__index)
    local _, message = pcall(layer, tensor, { ["no such option"] = 1 })
    assert.same(sorted(nil, names(message:match "the options are (.*)$")),
      sorted(types.classes["int4mm.layer_call_options"].fields))
  end)

  it("have fields that there are", function()
    for name in pairs(types.classes["int4mm.tensor"].fields) do
      assert.is_true((pcall(function() return tensor[name] end)), name)
    end
    for name, kind in pairs(types.classes["int4mm.packing"].fields) do
      assert(q.quantize(tensor, { rotate = 8, zero_point = true }).packing[name] ~= nil, name .. kind)
    end
    local plan = q.explain(q.generate_test_data(1, 8, 1), q.zeros { 1, 1, dtype = "int32" }, q.ones { 1 }, q.ones { 1 })
    for name, kind in pairs(types.classes["int4mm.plan"].fields) do
      assert(plan[name] ~= nil or kind:find "?$", name)
    end
    for name in pairs(plan) do assert.is_truthy(types.classes["int4mm.plan"].fields[name], name) end
    local layer = q.linear(q.ones { 1, 8 })
    for name in pairs(layer) do assert.is_truthy(types.classes["int4mm.linear"].fields[name], name) end
    for name, kind in pairs(types.classes["int4mm.linear"].fields) do
      assert(layer[name] ~= nil or kind:find "?$", name)
    end
  end)

  it("have methods and fields of streams, events and graphs that there are", function()
    local lines = {}
    for _, class in ipairs { "stream", "event", "graph" } do
      for _, kind in ipairs { "functions", "fields" } do
        for name in pairs(types.classes["int4mm." .. class][kind]) do
          lines[#lines + 1] = ("assert(%s.%s ~= nil)"):format(class, name)
        end
      end
    end
    assert(#lines > 15)
    local env = { INT4MM_CUDA_LIBRARY = helper.build_folder() .. "/spec/c/fake_cuda.so", INT4MM_FAKE_CUDA = "host" }
    local output, status = helper.luajit([[
      local q = require "int4mm"
      local stream, event, graph = q.stream(), q.event(), q.graph(function() end)
    ]] .. table.concat(lines, "\n"), q.cuda_available() and {} or env)
    assert.equal(0, status, output)
  end)
end)
