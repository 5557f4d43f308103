--- Loading: again in one Lua state, after a program's own declarations, and where there is no FFI.

local helper = require "spec.helper"

-- What development servers do: forget the modules, and load them again.
local RELOAD = [[
  local function reload()
    for name in pairs(package.loaded) do
      if name:find "^int4mm" then package.loaded[name] = nil end
    end
    return require "int4mm"
  end
]]

--- Runs code in a LuaJIT of its own, which has to end well; returns what it printed.
local function run(code)
  local output, status = helper.luajit(code)
  assert.equal(0, status, output)
  return output
end

describe("int4mm loaded anew", function()
  it("takes tensors made before, and the other way round", function()
    local output = run(RELOAD .. [[
      local before = require "int4mm"
      local old = before.tensor { 1, 2, 3 }
      local after = reload()
      assert(after ~= before)
      local new = after.tensor { 1, 2, 3 }
      assert(after.is_tensor(old) and before.is_tensor(new))
      assert(old:equal(new) and new:equal(old))
      local a, b, scale_a, scale_b = before.generate_test_data(8, 16, 8)
      local c = after.int4_matmul(a, b, scale_a, scale_b)
      assert(before.int4_matmul_reference(a, b, scale_a, scale_b):equal(c))
      print(old)
      print(select(2, pcall(after.int4_matmul, old)))
    ]])
    assert.equal("tensor([1., 2., 3.], dtype=float32, device=cpu, shape=[3])\n"
      .. "int4_matmul: b_packed is nil, expected a tensor\n", output)
  end)

  it("keeps the memory below tensors wrapped before, and what was set", function()
    local output = run(RELOAD .. [[
      local ffi = require "ffi"
      local q = require "int4mm"
      q.set_memory_slack("cpu", 123456)
      local t = q.wrap(ffi.gc(ffi.new("float[2]", { 5, 6 }), function() print "the array was collected" end),
        { shape = { 2 } })
      q = reload()
      collectgarbage()
      collectgarbage()
      print(t)
      print(q.memory().cpu.limit - q.memory().cpu.allocated)
      t:free()
      collectgarbage()
      collectgarbage()
    ]])
    assert.equal("tensor([5., 6.], dtype=float32, device=cpu, shape=[2])\n123456\nthe array was collected\n", output)
  end)

  it("runs the code that was loaded last", function()
    run(RELOAD .. [[
      local t = require("int4mm").zeros { 2 }
      package.preload["int4mm.internal.print"] = function() return function() return "another text" end end
      reload()
      assert(tostring(t) == "another text", tostring(t))
    ]])
  end)

  it("makes no new C types, of which a Lua state has room for 65536", function()
    local output = run(RELOAD .. [[
      local ffi = require "ffi"
      local function types() return tonumber(tostring(ffi.typeof "struct {}"):match "%d+") end
      local function work()
        local q = reload()
        local a, b, scale_a, scale_b = q.generate_test_data(8, 16, 8)
        local c = q.int4_matmul_reference(a, b, scale_a, scale_b)
        assert(q.int4_matmul(a, b, scale_a, scale_b):equal(c) and q.explain(a, b, scale_a, scale_b))
        q.choose_cuda { arch = 90, sms = 132, M = 8, N = 8, K = 8 }
        pcall(q.stream)
        return tostring(c)
      end
      work()
      local before = types()
      for _ = 1, 20 do work() end
      print(types() - before - 1)
    ]])
    assert.equal("0\n", output)
  end)

  it("is refused as another build", function()
    local output = run(RELOAD .. [[
      require "int4mm"
      package.loaded["int4mm.cdef"] = nil
      local cdef = require "int4mm.cdef"
      package.preload["int4mm.cdef"] = function() return cdef .. " extern int int4mm_of_later;" end
      print(select(2, pcall(reload)))
    ]])
    assert.matches("another build of int4mm, version 0.1.0, has been loaded in this program; start it anew", output, 1,
      true)
  end)
end)

describe("a program that has declared the header", function()
  it("loads int4mm all the same", function()
    local output = run [[
      require("ffi").cdef(require "int4mm.cdef")
      local q = require "int4mm"
      local a, b, scale_a, scale_b = q.generate_test_data(8, 16, 8)
      print(q.int4_matmul(a, b, scale_a, scale_b):equal(q.int4_matmul_reference(a, b, scale_a, scale_b)))
    ]]
    assert.equal("true\n", output)
  end)

  it("is told when it has declared another one", function()
    local cases = {
      ["int4mm_status"] = "typedef struct int4mm_tensor { void *data; } int4mm_tensor;",
      ["int4mm_prepack"] = { "(int4mm_)prepack(%()", "%1prepare%2" },
      ["INT4MM_FLOAT32"] = { "INT4MM_FLOAT32 = 4", "INT4MM_FLOAT32 = 5" },
    }
    for name, case in pairs(cases) do
      local declaration = type(case) == "string" and ("%q"):format(case)
        or ("(require('int4mm.cdef'):gsub(%q, %q))"):format(case[1], case[2])
      local output = run(("require('ffi').cdef(%s) print(select(2, pcall(require, 'int4mm')))"):format(declaration))
      assert.matches("int4mm: this program has declared types of int4mm, but not " .. name .. " as this build has it",
        output, 1, true)
    end
  end)
end)

describe("a library of another build", function()
  it("is refused before anything is declared", function()
    local output = run(RELOAD .. [[
      package.loaded["int4mm.cdef"] = require("int4mm.cdef"):gsub('"0%.1%.0"', '"9.9.9"')
      print(select(2, pcall(require, "int4mm")))
      print(reload().ones { 2 })
    ]])
    assert.matches("libint4mm%.so is of version 0%.1%.0, .*but the Lua files on package%.path are of version 9%.9%.9, "
      .. ".*; one of them is of another build", output)
    assert.matches("tensor([1., 1.], dtype=float32, device=cpu, shape=[2])", output, 1, true)
  end)
end)

describe("a Lua without the FFI", function()
  local SENTENCE = "int4mm: this is Lua 5.%d without the FFI; int4mm needs LuaJIT 2.1, so start the program with luajit"

  it("is told that int4mm needs LuaJIT", function()
    local output = run [[
      package.loaded.ffi, jit = nil, nil
      package.preload.ffi = function() error "module 'ffi' not found" end
      print(select(2, pcall(require, "int4mm")))
    ]]
    assert.equal(SENTENCE:format(1) .. "\n", output)
  end)

  for minor = 1, 4 do
    local lua = "lua5." .. minor
    if os.execute("command -v " .. lua .. " >/dev/null 2>&1") == 0 then
      it("is told so, if it is " .. lua, function()
        local output = helper.shell(("LUA_PATH=%q %s -e 'print(select(2, pcall(require, \"int4mm\")))'"):format(
          package.path, lua))
        assert.matches(SENTENCE:format(minor), output, 1, true)
      end)
    end
  end
end)
