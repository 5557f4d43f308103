--- The CPU backend's threads: how many, after a fork, and from several OS threads with a Lua state each.

local ffi = require "ffi"

local helper = require "spec.helper"
local q = require "int4mm"

ffi.cdef [[
int fork(void);
int waitpid(int pid, int *status, int options);
unsigned alarm(unsigned seconds);
void _exit(int status);
int usleep(unsigned microseconds);

typedef struct lua_State spec_lua_State;
spec_lua_State *luaL_newstate(void);
void luaL_openlibs(spec_lua_State *L);
int luaL_loadstring(spec_lua_State *L, const char *text);
int lua_pcall(spec_lua_State *L, int arguments, int results, int handler);
const char *lua_tolstring(spec_lua_State *L, int index, size_t *length);
int fesetround(int mode);

double lua_tonumber(spec_lua_State *L, int index);
void lua_settop(spec_lua_State *L, int index);
void lua_close(spec_lua_State *L);

int pthread_create(unsigned long *thread, const void *attributes, void *(*start)(void *), void *argument);
int pthread_join(unsigned long thread, void **result);
]]

-- Large enough that every thread gets work.
local M, K, N = 96, 512, 160
local a, b, scale_a, scale_b = q.generate_test_data(M, K, N, { seed = 11 })
local expected = helper.bytes(q.int4_matmul_reference(a, b, scale_a, scale_b))

describe("threads", function()
  after_each(function() q.set_num_threads(0) end)

  it("may be set and asked for", function()
    q.set_num_threads(3)
    assert.equal(3, q.get_num_threads())
    q.set_num_threads(0)
    assert(q.get_num_threads() >= 1)
  end)

  it("do not change the bits", function()
    for _, threads in ipairs { 1, 2, 3, 7, 16 } do
      q.set_num_threads(threads)
      assert.same_bits(expected, q.int4_matmul_cpu(a, b, scale_a, scale_b), threads .. " threads")
    end
  end)

  it("do not change the bits where M and N are tiny and K is long", function()
    local la, lb, lsa, lsb = q.generate_test_data(2, 65536, 3, { seed = 12 })
    local long = helper.bytes(q.int4_matmul_reference(la, lb, lsa, lsb))
    for _, threads in ipairs { 1, 2, 5, 8 } do
      q.set_num_threads(threads)
      assert.same_bits(long, q.int4_matmul_cpu(la, lb, lsa, lsb), threads .. " threads")
    end
  end)

  it("round to nearest whatever the caller's rounding is", function()
    local upward = ({ x64 = 0x800, arm64 = 0x400000 })[jit.arch]
    if not upward then return end
    for _, threads in ipairs { 1, 3 } do
      q.set_num_threads(threads)
      ffi.C.fesetround(upward)
      local ok, out = pcall(q.int4_matmul_cpu, a, b, scale_a, scale_b)
      ffi.C.fesetround(0)
      assert.is_true(ok)
      assert.same_bits(expected, out, threads .. " threads")
    end
  end)

  it("that are idle do no harm when the Lua state closes", function()
    local code = [[
      local q = require "int4mm"
      q.set_num_threads(4)
      local a, b, scale_a, scale_b = q.generate_test_data(256, 256, 256)
      q.int4_matmul_cpu(a, b, scale_a, scale_b)
      io.write "done"
    ]]
    for _ = 1, 10 do assert.same({ "done", 0 }, { helper.luajit(code) }) end
  end)

  it("start with INT4MM_NUM_THREADS", function()
    local code = 'print(require("int4mm").get_num_threads())'
    assert.equal("3\n", (helper.luajit(code, { INT4MM_NUM_THREADS = "3" })))
    assert.equal("1\n", (helper.luajit(code, { INT4MM_NUM_THREADS = "1" })))
  end)

  it("start with every core when INT4MM_NUM_THREADS is not a count", function()
    local code = 'print(require("int4mm").get_num_threads())'
    local default = helper.luajit(code, { INT4MM_NUM_THREADS = false })
    assert.equal(default, (helper.luajit(code, { INT4MM_NUM_THREADS = "" })))
    for _, value in ipairs { "0", "-2", "many", "1x", "2.5", "1025", "99999999999999999999" } do
      local warning = ('int4mm: INT4MM_NUM_THREADS is "%s", expected 1 to 1024; the default is used\n'):format(value)
      assert.equal(warning .. default, (helper.luajit(code, { INT4MM_NUM_THREADS = value })), value)
    end
  end)

  it("are no more than OMP_NUM_THREADS by default", function()
    local code = 'print(require("int4mm").get_num_threads())'
    local default = helper.luajit(code, { INT4MM_NUM_THREADS = false, OMP_NUM_THREADS = false })
    local function threads(openmp, own)
      return (helper.luajit(code, { INT4MM_NUM_THREADS = own or false, OMP_NUM_THREADS = openmp }))
    end
    for _, value in ipairs { "1", "1,4", " 1 " } do assert.equal("1\n", threads(value), value) end
    for _, value in ipairs { "1000", "0", "-1", "some", "" } do assert.equal(default, threads(value), value) end
    assert.equal("3\n", threads("1", "3"))
  end)

  it("cannot be fewer than none", function()
    assert.fails_with({ pattern = "^set_num_threads: .*%-1" }, function() q.set_num_threads(-1) end)
    assert.fails_with({ pattern = "^set_num_threads: .*1%.5" }, function() q.set_num_threads(1.5) end)
    assert.fails_with({ pattern = '^set_num_threads: .*"two"' }, function() q.set_num_threads "two" end)
  end)
end)

describe("after a fork", function()
  --- Forks, runs f in the child, and returns the child's exit status (142 or so when it hung and was killed).
  local function in_child(f)
    io.stdout:flush()
    -- A thread that ends holds a lock of AddressSanitizer's for a moment, which a child would never get: let those end
    -- that the smaller number of threads has dismissed.
    if helper.sanitized() then ffi.C.usleep(100000) end
    local pid = ffi.C.fork()
    if pid == 0 then
      ffi.C.alarm(60) -- a hang is a failure, not a wait without end
      local ok, right = pcall(f)
      ffi.C._exit(ok and right and 0 or 1)
    end
    local status = ffi.new "int[1]"
    assert.equal(pid, ffi.C.waitpid(pid, status, 0))
    return status[0]
  end

  local function multiply_right()
    return helper.bytes(q.int4_matmul_cpu(a, b, scale_a, scale_b)) == expected
  end

  it("a child multiplies, when the parent has multiplied before", function()
    q.set_num_threads(2)
    assert.is_true(multiply_right())
    assert.equal(0, in_child(multiply_right))
    assert.equal(0, in_child(multiply_right))
    assert.is_true(multiply_right())
    q.set_num_threads(0)
  end)

  it("a child's child does too", function()
    q.set_num_threads(2)
    assert.equal(0, in_child(function()
      return multiply_right() and in_child(multiply_right) == 0 and multiply_right()
    end))
    q.set_num_threads(0)
  end)
end)

describe("several OS threads with a Lua state each", function()
  -- Runs in every state. The entry point is a callback of that state, which no other thread touches while it runs.
  local worker = [[
    local package_path, package_cpath, seed = ...
    package.path, package.cpath = package_path, package_cpath
    local ffi = require "ffi"
    local q = require "int4mm"
    local trouble = ""
    local function work()
      for round = 1, 20 do
        local a, b, scale_a, scale_b = q.generate_test_data(33, 256, 65, { seed = seed * 100 + round })
        local got = q.int4_matmul_cpu(a, b, scale_a, scale_b, { out_dtype = "float32" }):totable()
        local expected = q.int4_matmul_reference(a, b, scale_a, scale_b, { out_dtype = "float32" }):totable()
        for i = 1, 33 do
          for j = 1, 65 do
            if got[i][j] ~= expected[i][j] then trouble = ("round %d: (%d, %d)"):format(round, i, j) end
          end
        end
        -- the sentence of a failure is this thread's own
        local ok, message = pcall(q.int4_matmul_cpu, a, b, scale_b, scale_a)
        if ok or not message:find "65" then trouble = "no error, or another's: " .. tostring(message) end
      end
    end
    jit.off(work, true) -- compiled code must not be left through a callback
    local entry = ffi.cast("void *(*)(void *)", function()
      local ok, message = pcall(work)
      if not ok then trouble = tostring(message) end
      return nil
    end)
    function spec_trouble() return trouble end
    return tonumber(ffi.cast("uintptr_t", entry))
  ]]

  local function start(i)
    local L = ffi.C.luaL_newstate()
    assert(L ~= nil, "no memory for a Lua state")
    ffi.C.luaL_openlibs(L)
    local chunk = ("return (function(...) %s end)(%q, %q, %d)"):format(worker, package.path, package.cpath, i)
    local function run(text)
      assert.equal(0, ffi.C.luaL_loadstring(L, text))
      if ffi.C.lua_pcall(L, 0, 1, 0) ~= 0 then error(ffi.string(ffi.C.lua_tolstring(L, -1, nil))) end
    end
    run(chunk)
    local address = ffi.C.lua_tonumber(L, -1)
    ffi.C.lua_settop(L, 0)
    local id = ffi.new "unsigned long[1]"
    assert.equal(0, ffi.C.pthread_create(id, nil, ffi.cast("void *(*)(void *)", ffi.cast("uintptr_t", address)), nil))
    return { L = L, id = id[0], run = run }
  end

  it("all get the right bits", function()
    local threads = {}
    for i = 1, 8 do threads[i] = start(i) end
    assert.is_true(helper.bytes(q.int4_matmul_cpu(a, b, scale_a, scale_b)) == expected)
    local troubles = {}
    for i, t in ipairs(threads) do
      assert.equal(0, ffi.C.pthread_join(t.id, nil))
      t.run "return spec_trouble()"
      troubles[i] = ffi.string(ffi.C.lua_tolstring(t.L, -1, nil))
      ffi.C.lua_close(t.L)
    end
    assert.same({ "", "", "", "", "", "", "", "" }, troubles)
  end)
end)
