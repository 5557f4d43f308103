--- CUDA where it cannot be used: the reason is a sentence, the CPU serves without a word, and nothing is opened early.

local helper = require "spec.helper"
local q = require "int4mm"

local FAKE = helper.build_folder() .. "/spec/c/fake_cuda.so"

local REPORT = [[
  local q = require "int4mm"
  local available, reason = q.cuda_available()
  print("available", tostring(available))
  print("reason", tostring(reason))
  print("count", (q.device_count()))
  local a, b, scale_a, scale_b = q.generate_test_data(8, 64, 8)
  local c = q.int4_matmul(a, b, scale_a, scale_b)
  print("matmul", c:equal(q.int4_matmul_reference(a, b, scale_a, scale_b)), c.device)
  local ok, message = pcall(q.int4_matmul_cuda, a, b, scale_a, scale_b)
  print("cuda", tostring(ok), message)
  ok, message = pcall(function() a:to "cuda" end)
  print("to", tostring(ok), message)
  ok, message = pcall(function() q.empty { 2, 2, device = "cuda:0" } end)
  print("empty", tostring(ok), message)
  ok, message = pcall(function() q.stream() end)
  print("stream", tostring(ok), message)
  ok, message = pcall(function() q.int4_matmul(a, b, scale_a, scale_b, { kernel = "tiled" }) end)
  print("kernel", tostring(ok), message)
]]

--- What the report says in a process with this environment: a table by its first words.
local function report(env)
  local output, status = helper.luajit(REPORT, env)
  assert.equal(0, status, output)
  local lines = {}
  for line in output:gmatch "[^\n]+" do
    local key, rest = line:match "^(%w+)\t(.*)$"
    if key then lines[key] = rest end
  end
  assert.equal("true\tcpu", lines.matmul, output)
  return lines, output
end

local function check(env, reason)
  local lines = report(env)
  local sentence = "CUDA is not available: " .. reason
  assert.equal("false", lines.available)
  assert.equal(sentence, lines.reason)
  assert.equal("0", lines.count)
  assert.matches("int4_matmul_cuda: " .. sentence, lines.cuda, 1, true)
  assert.matches("to: " .. sentence, lines.to, 1, true)
  assert.matches("empty: " .. sentence, lines.empty, 1, true)
  assert.matches("stream: " .. sentence, lines.stream, 1, true)
  assert.matches("int4_matmul: " .. sentence, lines.kernel, 1, true)
  for _, key in ipairs { "cuda", "to", "empty", "stream", "kernel" } do
    assert.equal("false", lines[key]:match "^%w+", key)
  end
end

describe("without CUDA", function()
  it("the reason may be that there is no CUDA build", function()
    check({ INT4MM_CUDA_LIBRARY = "/nowhere/libint4mm_cuda.so" },
      "no CUDA build of int4mm: there is no /nowhere/libint4mm_cuda.so")
  end)

  local reasons = {
    no_driver = "no NVIDIA driver (libcuda.so.1 is not found or does not load)",
    old_driver = "the NVIDIA driver is too old: it serves CUDA 11.4, this build needs 13.0",
    no_device = "no CUDA device",
  }
  for fake, reason in pairs(reasons) do
    it("the reason may be " .. fake, function()
      check({ INT4MM_CUDA_LIBRARY = FAKE, INT4MM_FAKE_CUDA = fake }, reason)
    end)
  end

  it("the reason may be a CUDA library of another build", function()
    local lines = report { INT4MM_CUDA_LIBRARY = FAKE, INT4MM_FAKE_CUDA = "other_abi" }
    assert.matches(FAKE .. " is of another int4mm", lines.reason, 1, true)
    lines = report { INT4MM_CUDA_LIBRARY = FAKE, INT4MM_FAKE_CUDA = "no_table" }
    assert.matches(FAKE .. " is not a CUDA library of int4mm", lines.reason, 1, true)
  end)

  it("the reason may be a file that is not a library", function()
    local lines = report { INT4MM_CUDA_LIBRARY = "README.md" }
    assert.equal("false", lines.available)
    assert.matches("^CUDA is not available: ", lines.reason)
  end)

  -- A copy of LuaJIT that is set to run as a group which its user's process does not run as.
  it("a program with more rights than its user takes no library from the environment", function()
    if helper.sanitized() then return end -- such a program preloads no sanitizer either
    local folder = helper.shell("mktemp -d " .. helper.build_folder() .. "/setgid.XXXXXX"):gsub("\n", "")
    helper.shell(([[
      cp "$(readlink -f "$(command -v luajit)")" '%s/luajit' && cd '%s'
      chgrp "$([ "$(id -u)" = 0 ] && echo 65534 || id -G | cut -s -d ' ' -f 2)" luajit && chmod g+s luajit
    ]]):format(folder, folder))
    local output, status = helper.luajit([[
      local ffi = require "ffi"
      ffi.cdef "char *secure_getenv(const char *name);"
      print("set", ffi.C.secure_getenv("INT4MM_CUDA_LIBRARY") == nil)
      print(select(2, require("int4mm").cuda_available()))
    ]], { INT4MM_CUDA_LIBRARY = "/nowhere/asked_for.so", PATH = folder .. ":" .. os.getenv "PATH" })
    helper.shell("rm -r '" .. folder .. "'")
    assert.equal(0, status, output)
    if output:find "set\tfalse" then return pending "no second group here, or no set-group-ID programs" end
    assert.not_matches("asked_for", output, 1, true)
  end)

  it("the real library says why, where there is no GPU", function()
    if q.cuda_available() then return end
    local lines = report { INT4MM_CUDA_LIBRARY = false }
    local known = { "no CUDA build", "no NVIDIA driver", "driver is too old", "no CUDA device", "does not load" }
    local found
    for _, words in ipairs(known) do found = found or lines.reason:find(words, 1, true) end
    assert(found, lines.reason)
  end)
end)

describe("require", function()
  local function opened_after(code)
    local output, status = helper.luajit(code .. [[
      for line in io.lines "/proc/self/maps" do
        local file = line:match "(/%S+)$"
        if file and (file:find "cuda" or file:find "nvidia") then print(file) end
      end
    ]])
    assert.equal(0, status, output)
    return output
  end

  it("opens no CUDA library", function()
    assert.equal("", opened_after 'require "int4mm"')
  end)

  it("nor does work on the CPU, small or explicit", function()
    assert.equal("", opened_after [[
      local q = require "int4mm"
      local a, b, scale_a, scale_b = q.generate_test_data(64, 64, 64)
      q.int4_matmul(a, b, scale_a, scale_b)
      local la, lb, lscale_a, lscale_b = q.generate_test_data(512, 512, 512)
      q.int4_matmul_cpu(la, lb, lscale_a, lscale_b)
      q.int4_matmul_cpu(la, q.prepack(lb), lscale_a, lscale_b)
      q.quantize(q.random(q.empty { 64, 64 }))
      q.device_info "cpu"
      q.choose_cuda { arch = 90, sms = 132, M = 64, N = 64, K = 64 }
    ]])
  end)
end)
