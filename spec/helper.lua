--- What the specs share: assertions on bits and on error messages, subprocesses, plain-Lua number formats.

local assert = require "luassert"
local busted = require "busted"
local ffi = require "ffi"
local say = require "say"

local q = require "int4mm"

local helper = {}

local ELEMENT_BYTES = { int32 = 4, int8 = 1, float16 = 2, bfloat16 = 2, float32 = 4 }
helper.ELEMENT_BYTES = ELEMENT_BYTES

-- ---- tensors as bytes ----

--- The C type of a pointer to a tensor's elements.
local POINTER = {
  int32 = ffi.typeof "int32_t *",
  int8 = ffi.typeof "int8_t *",
  float16 = ffi.typeof "uint16_t *",
  bfloat16 = ffi.typeof "uint16_t *",
  float32 = ffi.typeof "float *",
}

--- Address of row i (from 0) of a tensor on the CPU.
local function row_address(t, i)
  return ffi.cast("uint8_t *", t:data()) + i * t.stride * ELEMENT_BYTES[t.dtype]
end

--- The elements of a tensor, row-major without gaps, as a string of bytes.
function helper.bytes(t)
  if t.device ~= "cpu" then t = t:to "cpu" end
  local rows, cols = t.shape[1], t.shape[2]
  if not cols then rows, cols = 1, rows end
  local width = cols * ELEMENT_BYTES[t.dtype]
  if rows == 0 or width == 0 then return "" end
  if #t.shape == 1 or t.stride == cols then return ffi.string(row_address(t, 0), rows * width) end
  local lines = {}
  for i = 1, rows do lines[i] = ffi.string(row_address(t, i - 1), width) end
  return table.concat(lines)
end

--- Fills a contiguous tensor on the CPU from a string of exactly its bytes.
function helper.set_bytes(t, bytes)
  local n = (t.shape[1] or 1) * (t.shape[2] or 1) * ELEMENT_BYTES[t.dtype]
  assert(#bytes == n, ("%d bytes for a tensor of %d"):format(#bytes, n))
  if n > 0 then ffi.copy(t:data(), bytes, n) end
  return t
end

--- A tensor on the CPU with these bytes.
function helper.from_bytes(bytes, dtype, rows, cols)
  return helper.set_bytes(q.empty { rows, cols, dtype = dtype }, bytes)
end

--- A typed pointer to the first element of a tensor on the CPU.
function helper.pointer(t)
  return ffi.cast(POINTER[t.dtype], t:data())
end

function helper.from_hex(text)
  return (text:gsub("%s", ""):gsub("..", function(pair) return string.char(tonumber(pair, 16)) end))
end

function helper.to_hex(bytes)
  return (bytes:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

-- ---- assertions ----

--- One element's bits as a hexadecimal number.
local function pattern(bytes, index, size)
  return "0x" .. helper.to_hex(bytes:sub((index - 1) * size + 1, index * size):reverse())
end

--- Says where two strings of elements differ first, or nil when they agree.
function helper.difference(expected, actual, dtype, cols)
  if expected == actual then return nil end
  if #expected ~= #actual then return ("%d bytes where %d were expected"):format(#actual, #expected) end
  local size, count, first = ELEMENT_BYTES[dtype], 0, nil
  for i = 1, #expected / size do
    if expected:sub((i - 1) * size + 1, i * size) ~= actual:sub((i - 1) * size + 1, i * size) then
      first, count = first or i, count + 1
    end
  end
  return ("%d of %d elements differ, first at (%d, %d): %s where %s was expected (%s)"):format(count, #expected / size,
    math.floor((first - 1) / cols) + 1, (first - 1) % cols + 1, pattern(actual, first, size),
    pattern(expected, first, size), dtype)
end

say:set("assertion.same_bits", "the two tensors should have had the same bits")
say:set("assertion.fails_with", "the call should have failed with this message, at the line of the call")

--- assert.same_bits(expected, actual, name): tensors of one shape and dtype with the same bits. `expected` may be the
-- string of its bytes.
assert:register("assertion", "same_bits", function(state, arguments)
  local expected, actual, name = arguments[1], arguments[2], arguments[3]
  local trouble
  if type(expected) ~= "string" then
    if expected.dtype ~= actual.dtype then
      trouble = ("dtype %s where %s was expected"):format(actual.dtype, expected.dtype)
    elseif table.concat(expected.shape, ", ") ~= table.concat(actual.shape, ", ") then
      trouble = ("shape [%s] where [%s] was expected"):format(table.concat(actual.shape, ", "),
        table.concat(expected.shape, ", "))
    end
    expected = helper.bytes(expected)
  end
  local columns = actual.shape[2] or actual.shape[1]
  trouble = trouble or helper.difference(expected, helper.bytes(actual), actual.dtype, columns)
  state.failure_message = trouble and (name and name .. ": " or "") .. trouble
  for i = 1, arguments.n do arguments[i] = "" end
  return not trouble
end, "assertion.same_bits", "assertion.same_bits")

--- assert.fails_with(message, f): f raises exactly `message`, reported at a line of f itself (so of the caller of the
-- function that found the mistake). A Lua pattern may be given as { pattern = "..." }. f must not end in a tail call.
assert:register("assertion", "fails_with", function(state, arguments)
  local expected, f = arguments[1], arguments[2]
  for i = 1, arguments.n do arguments[i] = "" end
  local ok, err = pcall(f)
  if ok then
    state.failure_message = "no error was raised"
    return false
  end
  local file, line, message = tostring(err):match "^(.-):(%d+): (.*)$"
  local info = debug.getinfo(f, "S")
  line = tonumber(line)
  if file ~= info.short_src or line < info.linedefined or line > info.lastlinedefined then
    state.failure_message = ("raised elsewhere than at %s:%d-%d: %s"):format(info.short_src, info.linedefined,
      info.lastlinedefined, tostring(err))
    return false
  end
  local fits
  if type(expected) == "table" then
    fits = message:find(expected.pattern) ~= nil
    expected = "pattern " .. expected.pattern
  else
    fits = message == expected
  end
  if not fits then state.failure_message = ("raised:   %s\nexpected: %s"):format(message, expected) end
  return fits
end, "assertion.fails_with", "assertion.fails_with")

-- ---- subprocesses ----

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

--- Runs a shell command; returns its output (stdout and stderr) and its exit status.
function helper.shell(command)
  local pipe = assert(io.popen("{ " .. command .. "\n} 2>&1; echo status=$?"))
  local output = pipe:read "*a"
  pipe:close()
  local text, status = output:match "^(.*)status=(%d+)\n$"
  return text, tonumber(status)
end

--- The env command that sets variables (or unsets those that are false) and lets Lua find the module as it does here.
local function with_environment(env)
  local unset, set = { "env" }, { "LUA_PATH=" .. quote(package.path), "LUA_CPATH=" .. quote(package.cpath) }
  for name, value in pairs(env or {}) do
    if value then set[#set + 1] = name .. "=" .. quote(value) else unset[#unset + 1] = "-u " .. name end
  end
  return table.concat(unset, " ") .. " " .. table.concat(set, " ")
end

--- A new empty folder for a spec's files, which the spec removes.
function helper.temporary_folder()
  local folder = helper.shell("mktemp -d"):gsub("%s+$", "")
  assert(folder:find "^/", folder)
  return folder
end

--- Runs Lua code in a LuaJIT of its own. `env` holds environment variables; false unsets one.
function helper.luajit(code, env, arguments)
  return helper.shell(with_environment(env) .. " luajit -e " .. quote(code) .. " " .. (arguments or ""))
end

--- Runs a script of the tree in the same way. It may end with os.exit, which frees nothing: no leak check there.
function helper.script(path, arguments, env)
  env = env or {}
  env.ASAN_OPTIONS = (os.getenv "ASAN_OPTIONS" or "") .. ":detect_leaks=0"
  return helper.shell(with_environment(env) .. " luajit " .. path .. " " .. (arguments or ""))
end

--- The folder of the shared libraries, where the build also leaves the C programs of the specs.
function helper.build_folder()
  return assert(package.searchpath("libint4mm", package.cpath)):match "^(.*)/[^/]*$"
end

--- Resident memory of this process in bytes.
function helper.resident()
  for line in io.lines "/proc/self/status" do
    local kib = line:match "^VmRSS:%s+(%d+) kB"
    if kib then return tonumber(kib) * 1024 end
  end
  error "no VmRSS in /proc/self/status"
end

--- Whether this process runs under a sanitizer, which holds on to freed memory and slows everything.
function helper.sanitized()
  for line in io.lines "/proc/self/maps" do
    if line:find "libasan" or line:find "libtsan" or line:find "libclang_rt" then return true end
  end
  return false
end

--- it(), or pending() where CUDA cannot be used; with `driver`, where there is no driver behind it either.
function helper.on_gpu(name, f, driver)
  local available = q.cuda_available()
  if not available then
    busted.pending(name .. " (no CUDA here)")
  elseif driver and not driver.present() then
    busted.pending(name .. " (no CUDA driver here)")
  else
    busted.it(name, f)
  end
end

--- Runs f on every instruction set that this machine has.
function helper.on_every_isa(check)
  for _, isa in ipairs(q.cpu_isas()) do
    q.set_cpu_isa(isa)
    check(isa)
  end
  q.set_cpu_isa(nil)
end

-- ---- float formats in plain Lua ----

local cell = ffi.new "union { float f; uint32_t u; int32_t i; }"

--- The float32 nearest to a Lua number.
function helper.float32(x)
  cell.f = x
  return cell.f
end

function helper.float_bits(x)
  cell.f = x
  return cell.u
end

--- The value of float32 bits. Some NaN patterns, read through the FFI as they are, would turn into nil or worse: LuaJIT
-- keeps its type tags in NaNs.
function helper.bits_float(u)
  cell.u = u
  if u % 2 ^ 31 > 0x7f800000 then return 0 / 0 end
  return cell.f
end

--- Rounds a Lua number to the nearest multiple of a power of two, ties to even; exact in doubles.
local function round_even(x, unit)
  local scaled = x / unit
  local low = math.floor(scaled)
  local rest = scaled - low
  if rest > 0.5 or (rest == 0.5 and low % 2 == 1) then low = low + 1 end
  return low * unit
end
helper.round_even = round_even

--- Bits of a float with `fraction` fraction bits and exponents from `lowest` to `highest`, nearest to a float32. Slow
-- and by the definition: a value is a multiple of a unit that its exponent gives.
local function narrow_float(x, fraction, lowest, highest)
  local sign = (x < 0 or 1 / x < 0) and 0x8000 or 0
  local infinity = (highest - lowest + 2) * 2 ^ fraction
  if x ~= x then return 0x7fff end
  x = math.abs(x)
  if x == 0 then return sign end
  if x == math.huge then return sign + infinity end
  local _, exponent = math.frexp(x)
  exponent = math.max(exponent - 1, lowest)
  local unit = 2 ^ (exponent - fraction)
  local rounded = round_even(x, unit)
  if rounded >= 2 ^ (highest + 1) then return sign + infinity end
  -- a carry into the next binade, and the step from subnormal to normal, come out right by adding
  return sign + (exponent - lowest) * 2 ^ fraction + rounded / unit
end

function helper.half_bits(x) return narrow_float(x, 10, -14, 15) end
function helper.bfloat_bits(x) return narrow_float(x, 7, -126, 127) end

local function widen_float(bits, fraction, lowest, highest)
  local sign = bits >= 0x8000 and -1 or 1
  bits = bits % 0x8000
  local exponent, rest = math.floor(bits / 2 ^ fraction), bits % 2 ^ fraction
  if exponent > highest - lowest + 1 then return rest == 0 and sign * math.huge or 0 / 0 end
  if exponent == 0 then return sign * rest * 2 ^ (lowest - fraction) end
  return sign * (2 ^ fraction + rest) * 2 ^ (exponent - 1 + lowest - fraction)
end

function helper.half_value(bits) return widen_float(bits, 10, -14, 15) end
function helper.bfloat_value(bits) return widen_float(bits, 7, -126, 127) end

return helper
