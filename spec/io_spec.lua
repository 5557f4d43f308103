--- Files: safetensors, .npy, layers, and layers out of other programs' checkpoints.
--
-- Files are made here byte by byte, good ones and each kind of bad one, and so are the weights of each format, by the
-- format's own rule: what int4mm writes is not taken for granted.

local bit = require "bit"
local ffi = require "ffi"

local cases = require "spec.cases"
local helper = require "spec.helper"
local q = require "int4mm"

-- ---- files ----

local folder

setup(function() folder = helper.temporary_folder() end)

teardown(function() helper.shell("rm -rf '" .. folder .. "'") end)

local function at(name) return folder .. "/" .. name end

local function write(name, bytes)
  local path = at(name)
  local stream = assert(io.open(path, "wb"))
  assert(stream:write(bytes))
  assert(stream:close())
  return path
end

local function read(path)
  local stream = assert(io.open(path, "rb"))
  local bytes = stream:read "*a"
  stream:close()
  return bytes
end

-- The names in a folder, sorted.
local function listing(path) return (helper.shell("ls -a '" .. path .. "' | grep -v '^[.]*$' | sort")) end

-- A whole number as so many bytes, the lowest first.
local function little(number, bytes)
  local text = {}
  for i = 1, bytes do
    text[i] = string.char(number % 256)
    number = math.floor(number / 256)
  end
  return table.concat(text)
end

local function le32(number) return little(number % 2 ^ 32, 4) end

-- A safetensors file of a header and data.
local function container(header, data) return little(#header, 8) .. header .. (data or "") end

-- A safetensors file of tensors { name, dtype, shape as text, bytes }, and of a metadata text.
local function made(tensors, metadata)
  local parts, data, position = {}, {}, 0
  if metadata then parts[1] = '"__metadata__":' .. metadata end
  for i, t in ipairs(tensors) do
    parts[#parts + 1] = ('"%s":{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}'):format(t[1], t[2], t[3], position,
      position + #t[4])
    position = position + #t[4]
    data[i] = t[4]
  end
  return container("{" .. table.concat(parts, ",") .. "}", table.concat(data))
end

local function open(name, bytes) return assert(q.open_safetensors(write(name, bytes))) end

-- A tensor of random bits of every kind.
local function random_bits(r, dtype, rows, columns)
  local t = q.empty { rows, columns, dtype = dtype }
  local bytes = {}
  for i = 1, rows * (columns or 1) * helper.ELEMENT_BYTES[dtype] do bytes[i] = string.char(r:range(0, 255)) end
  return helper.set_bytes(t, table.concat(bytes))
end

local DTYPES = { int32 = "I32", int8 = "I8", float16 = "F16", bfloat16 = "BF16", float32 = "F32" }

-- ---- safetensors ----

describe("save_safetensors", function()
  it("is read back with the same bits, every dtype, vectors, views and nothing", function()
    local r, tensors = cases.random(1), {}
    for dtype in pairs(DTYPES) do
      tensors[dtype .. ".matrix"] = random_bits(r, dtype, 5, 7)
      tensors[dtype .. ".vector"] = random_bits(r, dtype, 11)
      tensors[dtype .. ".view"] = random_bits(r, dtype, 6, 9):narrow(2, 3, 4):narrow(1, 2, 4)
      tensors[dtype .. ".empty"] = q.empty { 0, 3, dtype = dtype }
    end
    local path = at "round.safetensors"
    assert.is_true(q.save_safetensors(path, tensors, { metadata = { format = "pt", ["k\""] = "v\\\n\195\164" } }))
    local f = assert(q.open_safetensors(path))
    assert.same({ format = "pt", ["k\""] = "v\\\n\195\164" }, f.metadata)
    local names = {}
    for name, t in pairs(tensors) do
      names[#names + 1] = name
      assert.same_bits(t, f:tensor(name), name)
      local info = f:info(name)
      assert.same({ DTYPES[t.dtype], t.shape, t:bytes(), path }, { info.dtype, info.shape, info.bytes, info.path })
      assert.equal(helper.bytes(t), f:bytes(name), name)
    end
    table.sort(names)
    assert.same(names, f:names())
    f:close()
  end)

  it("writes the bytes that the format has, aligned, the same on every run", function()
    local tensors = {
      c = q.tensor({ 1, -2, 3 }, { dtype = "int8" }), b = q.tensor({ { 1, 2 } }, { dtype = "int32" }),
      a = q.tensor({ 1 }, { dtype = "float16" }),
    }
    local path = at "bytes.safetensors"
    assert(q.save_safetensors(path, tensors, { metadata = { z = "1", y = "2" } }))
    local header = '{"__metadata__":{"y":"2","z":"1"},"b":{"dtype":"I32","shape":[1,2],"data_offsets":[0,8]},'
      .. '"a":{"dtype":"F16","shape":[1],"data_offsets":[8,10]},"c":{"dtype":"I8","shape":[3],"data_offsets":[10,13]}}'
    header = header .. (" "):rep(-#header % 8)
    assert.equal(helper.to_hex(container(header, "\1\0\0\0\2\0\0\0\0\60\1\254\3")), helper.to_hex(read(path)))
    local again = at "again.safetensors"
    local output, status = helper.luajit(([[
      local q = require "int4mm"
      local tensors = { a = q.tensor({ 1 }, { dtype = "float16" }), b = q.tensor({ { 1, 2 } }, { dtype = "int32" }) }
      tensors.c = q.tensor({ 1, -2, 3 }, { dtype = "int8" })
      assert(q.save_safetensors(%q, tensors, { metadata = { y = "2", z = "1" } }))]]):format(again))
    assert.equal(0, status, output)
    assert.equal(read(path), read(again))
    assert(q.save_safetensors(path, {}))
    assert.equal(container("{}      ", ""), read(path))
    assert.same({}, assert(q.open_safetensors(path)):names())
  end)

  it("replaces a file only by a whole one, and leaves nothing else behind", function()
    helper.shell("mkdir '" .. at "room" .. "'")
    local path, big = at "room/x.safetensors", q.zeros { 300, 100 }
    assert(q.save_safetensors(path, { old = q.ones { 3 } }))
    local old = assert(q.open_safetensors(path))
    assert.equal("x.safetensors\n", listing(at "room"))
    assert(q.save_safetensors(path, { new = big }))
    assert.same({ "new" }, assert(q.open_safetensors(path)):names())
    assert.same({ 1, 1, 1 }, old:tensor("old"):totable()) -- the file that was there stays for those that have it open

    local before = read(path)
    local limited = "trap '' XFSZ; ulimit -f 8; export LUA_PATH=%q LUA_CPATH=%q; luajit -e %s"
    local code = ([['local q = require "int4mm"; print(q.save_safetensors("%s", { t = q.ones { 300, 100 } }))']])
      :format(path)
    assert.equal("nil\t" .. path .. ": File too large\n",
      (helper.shell(limited:format(package.path, package.cpath, code))))
    assert.equal(before, read(path))
    assert.equal("x.safetensors\n", listing(at "room"))

    helper.shell("mkdir '" .. at "room/folder" .. "'")
    local ok, reason = q.save_safetensors(at "room/folder", { t = big })
    assert.is_nil(ok)
    assert.truthy(reason:find("Is a directory", 1, true), reason)
    assert.equal("folder\nx.safetensors\n", listing(at "room"))
    ok, reason = q.save_safetensors(at "nowhere/x", { t = big })
    assert.is_nil(ok)
    assert.truthy(reason:find("nowhere/x.*: No such file or directory$"), reason)
  end)

  it("raises for what cannot be saved", function()
    local path, t = at "refused.safetensors", q.ones { 2 }
    local function fails(message, ...)
      local arguments, n = { ... }, select("#", ...)
      assert.fails_with("save_safetensors: " .. message, function()
        local _ = q.save_safetensors(unpack(arguments, 1, n))
      end)
    end
    fails("path is nil, expected the name of a file", nil, {})
    fails('path is "a\\0b", expected the name of a file', "a\0b", {})
    fails("the tensors are nil, expected a table of tensors by name", path)
    fails("the tensors have the key 1, expected names", path, { t })
    fails('the tensors have the key "__metadata__", expected names other than that of the metadata', path,
      { __metadata__ = t })
    fails('the name "x\255" is not UTF-8, which JSON is written in', path, { ["x\255"] = t })
    fails('tensor "x" is 3, expected a tensor', path, { x = 3 })
    local freed = q.ones { 2 }
    freed:free()
    fails('tensor "x" was freed', path, { x = freed })
    local words = q.quantize(q.ones { 8, 32 }, { dim = 1 })
    fails('tensor "x" is prepacked, and its elements cannot be read; save what it was made from', path,
      { x = q.prepack(words) })
    fails("metadata has \"a\" = 3, expected strings", path, { x = t }, { metadata = { a = 3 } })
    fails('metadata has "a" = "\192\128", expected UTF-8, which JSON is written in', path, { x = t },
      { metadata = { a = "\192\128" } })
    fails('unknown option "meta"; the options are metadata', path, { x = t }, { meta = {} })
    assert.is_nil(io.open(path))
  end)
end)

describe("open_safetensors", function()
  it("reads a file made by hand: every dtype as values and bytes", function()
    local f = open("hand.safetensors", made({
      { "b", "BOOL", "[3]", "\0\1\2" }, { "u8", "U8", "[2]", "\255\7" }, { "i8", "I8", "[2]", "\255\127" },
      { "i16", "I16", "[1]", "\254\255" }, { "u16", "U16", "[1]", "\254\255" },
      { "u32", "U32", "[1]", "\255\255\255\255" }, { "i32", "I32", "[2, 1]", "\255\255\255\255\0\0\0\128" },
      { "i64", "I64", "[3]", ("\255"):rep(8) .. "\1\0\0\0\0\0\32\0\2\0\0\0\0\0\0\0" },
      { "u64", "U64", "[1]", ("\255"):rep(8) },
      { "f64", "F64", "[5]", "\0\0\0\0\0\0\248\63" .. "\0\0\0\0\0\0\240\255" .. "\1\0\0\0\0\0\0\0"
        .. ("\255"):rep(8) .. "\0\0\0\0\0\0\0\128" },
      { "f16", "F16", "[2]", "\0\60\1\0" }, { "bf16", "BF16", "[1]", "\128\191" },
      { "f32", "F32", "[2]", "\0\0\192\63\255\255\255\255" }, { "f8", "F8_E4M3", "[2]", "\1\2" },
      { "f4", "F4", "[4]", "\33\67" }, { "c64", "C64", "[1]", ("\0"):rep(8) },
    }, '{"a": "b"}'))
    assert.same({ a = "b" }, f.metadata)
    local function values(name) return f:values(name) end
    assert.same({ false, true, true }, values "b")
    assert.same({ 255, 7 }, values "u8")
    assert.same({ -1, 127 }, values "i8")
    assert.same({ { -2 }, { 65534 }, { 4294967295 } }, { values "i16", values "u16", values "u32" })
    assert.same({ -1, -2147483648 }, values "i32")
    local i64 = values "i64"
    assert.equal(-1, i64[1])
    assert.is_true(ffi.istype("int64_t", i64[2]) and i64[2] == 9007199254740993LL)
    assert.equal(2, i64[3])
    assert.is_true(values("u64")[1] == 0xffffffffffffffffULL)
    local f64 = values "f64"
    assert.same({ 1.5, -math.huge, 2 ^ -1074 }, { f64[1], f64[2], f64[3] })
    assert.is_true(f64[4] ~= f64[4] and 1 / f64[5] == -math.huge)
    assert.same({ { 1, 2 ^ -24 }, { -1 } }, { values "f16", values "bf16" })
    assert.equal(1.5, values("f32")[1])
    assert.is_true(values("f32")[2] ~= values("f32")[2])
    assert.equal("\33\67", f:bytes "f4")
    assert.same({ dtype = "F4", shape = { 4 }, bytes = 2, path = f.path }, f:info "f4")

    assert.equal("int32", f:tensor("i32").dtype)
    assert.same({ { -1 }, { -2147483648 } }, f:tensor("i32"):totable())
    assert.fails_with("tensor: " .. f.path .. ': tensor "i64" is I64, which tensors cannot hold (I32, I8, F16, BF16 '
      .. "and F32 they can); f:bytes(name) gives its bytes, f:values(name) its elements", function()
      local _ = f:tensor "i64"
    end)
    assert.fails_with("values: " .. f.path .. ': tensor "f8" is F8_E4M3, which is not decoded; f:bytes(name) gives its '
      .. "bytes", function()
      local _ = f:values "f8"
    end)
  end)

  it("folds what has more than two dimensions, and gives one element where there are none", function()
    local f = open("fold.safetensors", made {
      { "three", "I8", "[2,3,2]", "\1\2\3\4\5\6\7\8\9\10\11\12" }, { "none", "I8", "[]", "\5" },
      { "zero", "F32", "[4, 0, 3]", "" }, { "wide", "F32", "[1099511627776, 0]", "" },
    })
    assert.same({ { 1, 2 }, { 3, 4 }, { 5, 6 }, { 7, 8 }, { 9, 10 }, { 11, 12 } }, f:tensor("three"):totable())
    assert.same({ 2, 3, 2 }, f:info("three").shape)
    assert.same({ 5 }, f:tensor("none"):totable())
    assert.same({ 0, 3 }, f:tensor("zero").shape)
    assert.equal(0, f:tensor("wide"):numel())
  end)

  it("takes tensors in any order in the header, and names of odd bytes", function()
    local header = '{"b":{"data_offsets":[1,2],"dtype":"I8","shape":[1]},"":{"shape":[1],"dtype":"I8",'
      .. '"data_offsets":[0,1]},"\\u0000\\n\\"\\\\\195\164/\255":{"dtype":"I8","shape":[0],"data_offsets":[2,2]},'
      .. '"a:{}[],":{"dtype":"I8","shape":[1],"data_offsets":[2,3],"more":{"a":[null]}}}  '
    local f = open("odd\n.safetensors", container(header, "\1\2\3"))
    assert.same({ "", "\0\n\"\\\195\164/\255", "a:{}[],", "b" }, f:names())
    assert.same({ { 1 }, { 2 }, { 3 } }, { f:values "", f:values "b", f:values "a:{}[]," })
    assert.equal("", f:bytes "\0\n\"\\\195\164/\255")
    assert.is_true(f:has "" and not f:has "c")
    local ok, err = pcall(f.tensor, f, "c\n")
    assert.is_false(ok)
    assert.equal("tensor: " .. f.path .. ' has no tensor "c\\n"', err)
    f:close()
    assert.fails_with("names: the file is closed: " .. f.path, function()
      local _ = f:names()
    end)
    f:close()
  end)

  -- { what is wrong, header or { length, header }, data, the message after the path }
  local function one(entry) return '{"x":' .. entry .. "}" end
  local X = '{"dtype":"I8","shape":[2],"data_offsets":[0,2]}'
  local NO_JSON = "the header is not as safetensors has it: "
  local OFFSETS = ", expected two whole numbers, the begin and the end"
  local SHAPE = ", expected whole numbers with a product below 2^53"
  local BAD = {
    { "text", "[]", "", NO_JSON .. "it does not begin with {" },
    { "white space before the header", " " .. one(X), "ab", NO_JSON .. "it does not begin with {" },
    { "cut JSON", '{"x":', "", NO_JSON .. "expected value but found T_END at character 6" },
    { "more than an object", one(X) .. "{}", "ab", { "^" .. NO_JSON .. "expected the end but found .* at character" } },
    { "deep JSON", ('{"x":'):rep(50) .. "1" .. ("}"):rep(50), "", { "^" .. NO_JSON .. "Found too many nested" } },
    { "a name twice", '{"x":' .. X .. ',"x":' .. X .. "}", "ab",
      NO_JSON .. 'the name "x" stands twice in one object' },
    { "a name twice, one escaped", '{"a\\"":' .. X .. ',"a\\u0022":' .. X .. "}", "ab",
      NO_JSON .. 'the name "a\\"" stands twice in one object' },
    { "a field twice", one '{"dtype":"I8","dtype":"I8","shape":[2],"data_offsets":[0,2]}', "ab",
      NO_JSON .. 'the name "dtype" stands twice in one object' },
    { "metadata twice", '{"__metadata__":{},"__metadata__":{},"x":' .. X .. "}", "ab",
      NO_JSON .. 'the name "__metadata__" stands twice in one object' },
    { "no entry", one "3", "", 'tensor "x": its entry is 3, expected dtype, shape and data_offsets' },
    { "an unknown dtype", one '{"dtype":"I7","shape":[2],"data_offsets":[0,2]}', "ab",
      'tensor "x": dtype is "I7", which safetensors does not have' },
    { "no dtype", one '{"shape":[2],"data_offsets":[0,2]}', "ab",
      'tensor "x": dtype is nil, which safetensors does not have' },
    { "a dtype that is a table's name", one '{"dtype":["I8"],"shape":[2],"data_offsets":[0,2]}', "ab",
      'tensor "x": dtype is ["I8"], which safetensors does not have' },
    { "no shape", one '{"dtype":"I8","data_offsets":[0,2]}', "ab", 'tensor "x": shape is nil' .. SHAPE },
    { "a fraction in the shape", one '{"dtype":"I8","shape":[2.5],"data_offsets":[0,2]}', "ab",
      'tensor "x": shape is [2.5]' .. SHAPE },
    { "a negative shape", one '{"dtype":"I8","shape":[-1, -2],"data_offsets":[0,2]}', "ab",
      'tensor "x": shape is [-1, -2]' .. SHAPE },
    { "text in the shape", one '{"dtype":"I8","shape":["2"],"data_offsets":[0,2]}', "ab",
      'tensor "x": shape is ["2"]' .. SHAPE },
    { "null in the shape", one '{"dtype":"I8","shape":[null],"data_offsets":[0,2]}', "ab",
      'tensor "x": shape is [null]' .. SHAPE },
    { "an object for the shape", one '{"dtype":"I8","shape":{"1":2},"data_offsets":[0,2]}', "ab",
      'tensor "x": shape is a table' .. SHAPE },
    { "a dimension of 2^53 + 1", one '{"dtype":"I8","shape":[9007199254740993],"data_offsets":[0,2]}', "ab",
      { '^tensor "x": shape is %[9007199254740992%], expected' } },
    { "a product that wraps in 64 bits", one '{"dtype":"I8","shape":[2,4294967297,4294967296],"data_offsets":[0,2]}',
      "ab", 'tensor "x": shape is [2, 4294967297, 4294967296]' .. SHAPE },
    { "a product that overflows beside a zero", one
      '{"dtype":"I8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}', "",
      'tensor "x": shape is [0, 4294967296, 4294967296]' .. SHAPE },
    { "an infinite number", one '{"dtype":"I8","shape":[1e999],"data_offsets":[0,2]}', "ab",
      'tensor "x": shape is [inf]' .. SHAPE },
    { "a hexadecimal number", one '{"dtype":"I8","shape":[0x2],"data_offsets":[0,2]}', "ab",
      { "^" .. NO_JSON .. "expected value but found invalid number" } },
    { "no offsets", one '{"dtype":"I8","shape":[2]}', "ab", 'tensor "x": data_offsets are nil' .. OFFSETS },
    { "three offsets", one '{"dtype":"I8","shape":[2],"data_offsets":[0,1,2]}', "ab",
      'tensor "x": data_offsets are [0, 1, 2]' .. OFFSETS },
    { "an end before the begin", one '{"dtype":"I8","shape":[2],"data_offsets":[2,0]}', "ab",
      'tensor "x": data_offsets are [2, 0]' .. OFFSETS },
    { "negative offsets", one '{"dtype":"I8","shape":[2],"data_offsets":[-2,0]}', "ab",
      'tensor "x": data_offsets are [-2, 0]' .. OFFSETS },
    { "fractional offsets", one '{"dtype":"I8","shape":[2],"data_offsets":[0.5,2.5]}', "abc",
      'tensor "x": data_offsets are [0.5, 2.5]' .. OFFSETS },
    { "offsets above 2^53", one '{"dtype":"I8","shape":[2],"data_offsets":[18446744073709551614,18446744073709551616]}',
      "ab", { '^tensor "x": data_offsets are %[1%.8446744073709' } },
    { "another size than the shape's", one '{"dtype":"F32","shape":[2, 3],"data_offsets":[0,20]}', ("a"):rep(20),
      'tensor "x": shape [2, 3] of F32 takes 24 bytes, but data_offsets are [0, 20], which is 20' },
    { "half a byte", one '{"dtype":"F4","shape":[3],"data_offsets":[0,1]}', "a",
      'tensor "x": shape [3] of F4 takes 1.5 bytes, but data_offsets are [0, 1], which is 1' },
    { "offsets outside the file", one(X), "a", 'tensor "x": data_offsets are [0, 2], but the file has 1 bytes of data: '
      .. "it is cut, or its header is wrong" },
    { "an empty tensor outside the file", one '{"dtype":"I8","shape":[0],"data_offsets":[9,9]}', "",
      { '^tensor "x": data_offsets are %[9, 9%], but the file has 0 bytes' } },
    { "two tensors in one place", '{"x":' .. X .. ',"y":' .. X .. "}", "ab",
      { '^tensor "[xy]": data_offsets are %[0, 2%], which overlap another tensor\'s$' } },
    { "overlap", '{"x":' .. X .. ',"y":{"dtype":"I8","shape":[2],"data_offsets":[1,3]}}', "abc",
      'tensor "y": data_offsets are [1, 3], which overlap another tensor\'s' },
    { "a gap", '{"x":' .. X .. ',"y":{"dtype":"I8","shape":[1],"data_offsets":[3,4]}}', "abcd",
      'no tensor has the bytes from 2 to 3 of the data, before tensor "y": a safetensors file has no gaps' },
    { "a gap that claims to be covered", one '{"dtype":"I8","shape":[1],"data_offsets":[1,2],"covered":true,"first":0}',
      "ab", 'no tensor has the bytes from 0 to 1 of the data, before tensor "x": a safetensors file has no gaps' },
    { "bytes behind the data", one(X), "abc",
      "no tensor has the bytes from 2 to 3 of the data at its end: a safetensors file has no gaps" },
    { "metadata of numbers", '{"__metadata__":{"a":1}}', "", '__metadata__ has "a" = 1, expected a string' },
    { "metadata in a list", '{"__metadata__":["a"]}', "", '__metadata__ is ["a"], expected an object of strings' },
  }
  for _, case in ipairs(BAD) do
    it("refuses " .. case[1], function()
      local path = write("bad.safetensors", container(case[2], case[3]))
      local f, reason = q.open_safetensors(path)
      assert.is_nil(f)
      assert.equal(path .. ": ", reason:sub(1, #path + 2))
      if type(case[4]) == "table" then
        assert.matches(case[4][1], reason:sub(#path + 3))
      else
        assert.equal(case[4], reason:sub(#path + 3))
      end
    end)
  end

  it("refuses what is no such file, and what is cut anywhere", function()
    local function reason_of(bytes)
      local path = write("cut.safetensors", bytes)
      local f, reason = q.open_safetensors(path)
      assert.is_nil(f)
      assert.equal(path .. ": ", reason:sub(1, #path + 2))
      return reason:sub(#path + 3)
    end
    assert.equal("the file has 0 bytes, too few for the length of a header: it is no safetensors file, or cut",
      reason_of "")
    assert.equal("the length of the header is 0, expected 2 to 100000000: it is no safetensors file",
      reason_of(("\0"):rep(8)))
    assert.matches("^the length of the header is 18446744073709551616, expected", reason_of(("\255"):rep(20)))
    assert.equal("the length of the header is 9, but only 2 bytes follow: the file is cut, or no safetensors file",
      reason_of(little(9, 8) .. "{}"))
    local whole = made { { "x", "F32", "[2]", "abcdefgh" }, { "y", "I8", "[3]", "xyz" } }
    open("cut.safetensors", whole):close()
    for length = 0, #whole - 1 do reason_of(whole:sub(1, length)) end
    local f, reason = q.open_safetensors(at "nothing")
    assert.is_nil(f)
    assert.equal(at "nothing" .. ": No such file or directory", reason)
    assert.fails_with("open_safetensors: path is 3, expected the name of a file", function()
      local _ = q.open_safetensors(3)
    end)
  end)

  it("raises where a file is cut while it is open, and lives", function()
    local path = write("shrinks.safetensors", made { { "x", "F32", "[40000]", ("a"):rep(160000) },
      { "y", "I8", "[2]", "ab" } })
    local f = assert(q.open_safetensors(path))
    assert.equal(40000, f:tensor("x"):numel())
    local stream = assert(io.open(path, "wb")) -- of the same file: it is cut to nothing
    stream:write(("a"):rep(1000))
    stream:close()
    for _, method in ipairs { "tensor", "bytes", "values" } do
      local ok, err = pcall(f[method], f, "x")
      assert.is_false(ok)
      assert.matches(": the file ends at byte 1000, expected %d+ bytes more: it has been cut %(tensor \"x\"%)$", err)
    end
    assert.is_false((pcall(f.tensor, f, "y")))
  end)

  it("opens 100,000 tensors in a moment", function()
    local parts = {}
    for i = 0, 99999 do
      parts[i + 1] = ('"model.layers.%d.self_attn.q_proj.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[%d,%d]}')
        :format(i, 4 * i, 4 * i + 4)
    end
    local path = write("many.safetensors", container("{" .. table.concat(parts, ",") .. "}", ("\0\0\128\63"):rep(1e5)))
    local start = os.clock()
    local f = assert(q.open_safetensors(path))
    local seconds = os.clock() - start
    assert.equal(100000, #f:names())
    assert.same({ { 1 } }, f:tensor("model.layers.99999.self_attn.q_proj.weight"):totable())
    assert.is_true(seconds < (helper.sanitized() and 60 or 5), seconds .. " s")
    f:close()
  end)

  it("says that lua-cjson is missing, which nothing else needs", function()
    local output = helper.luajit [[
      package.preload.cjson = function() error("not here", 0) end
      local q = require "int4mm"
      assert(q.save_npy(os.tmpname(), q.ones { 2 }))
      print(select(2, pcall(function() local _ = q.open_safetensors "x" end)))]]
    assert.matches("open_safetensors: lua%-cjson is not installed %(Debian: lua%-cjson, LuaRocks: lua%-cjson%): not "
      .. "here", output)
  end)

  describe("of several files", function()
    local X_FILE, Y_FILE = "model-1.safetensors", "model-2.safetensors"
    local function index(text) return write("sharded/model.safetensors.index.json", text) end

    setup(function()
      helper.shell("mkdir '" .. at "sharded" .. "'")
      write("sharded/" .. X_FILE, made({ { "x", "I8", "[2]", "\1\2" } }, '{"from":"1"}'))
      write("sharded/" .. Y_FILE, made { { "y", "I8", "[2]", "\3\4" } })
    end)

    it("opens them when they are asked for, by the index or the folder", function()
      local path = index('{"metadata":{"total_size":4},"weight_map":{"x":"' .. X_FILE .. '","y":"' .. Y_FILE
        .. '","z":"' .. X_FILE .. '","w":"missing.safetensors"}}')
      for _, name in ipairs { path, at "sharded", at "sharded/" } do
        local f = assert(q.open_safetensors(name))
        assert.same({ "w", "x", "y", "z" }, f:names())
        assert.same({ total_size = 4 }, f.metadata)
        assert.same({ { 1, 2 }, { 3, 4 } }, { f:tensor("x"):totable(), f:values "y" })
        assert.equal(at("sharded/" .. Y_FILE), f:info("y").path:gsub("//", "/"), nil)
        local ok, err = pcall(f.tensor, f, "w")
        assert.is_false(ok)
        assert.matches("^tensor: .*/missing.safetensors: No such file or directory$", err)
        ok, err = pcall(f.info, f, "z")
        assert.is_false(ok)
        assert.matches('^info: .*/model%-1.safetensors has no tensor "z", though .*index.json says so$', err)
        assert.matches("^safetensors%(.*, 4 tensors%)$", tostring(f))
        f:close()
        assert.is_false((pcall(f.tensor, f, "x")))
      end
    end)

    it("refuses an index that is none, and files elsewhere", function()
      local function reason_of(text)
        local f, reason = q.open_safetensors(index(text))
        assert.is_nil(f)
        return reason:match "index%.json: (.*)$"
      end
      assert.equal("the index is not JSON as it should be: it does not begin with {", reason_of "[1]")
      assert.equal("weight_map is 3, expected an object of tensors and their files", reason_of '{"weight_map":3}')
      local BESIDE = ", expected the name of a file beside the index"
      assert.equal('weight_map has "x" in "../y"' .. BESIDE, reason_of '{"weight_map":{"x":"../y"}}')
      assert.equal('weight_map has "x" in "/etc/y"' .. BESIDE, reason_of '{"weight_map":{"x":"/etc/y"}}')
      assert.equal('weight_map has "x" in 3' .. BESIDE, reason_of '{"weight_map":{"x":3}}')
      assert.equal('weight_map has 1 in "a"' .. BESIDE, reason_of '{"weight_map":["a"]}')
      assert.equal('the index is not JSON as it should be: the name "x" stands twice in one object',
        reason_of '{"weight_map":{"x":"a","x":"b"}}')
    end)

    it("opens model.safetensors of a folder without an index, and names what it looked for", function()
      helper.shell("mkdir '" .. at "plain" .. "'")
      local f, reason = q.open_safetensors(at "plain")
      assert.is_nil(f)
      assert.matches("plain: the folder has none of model.safetensors.index.json, model.safetensors, ", reason)
      helper.shell("ln -s . '" .. at "plain/model.safetensors" .. "'")
      f, reason = q.open_safetensors(at "plain")
      assert.is_nil(f)
      assert.equal(at "plain/model.safetensors" .. ": Is a directory", reason)
      helper.shell("rm '" .. at "plain/model.safetensors" .. "'")
      write("plain/model.safetensors", made { { "x", "I8", "[2]", "\1\2" } })
      assert.same({ "x" }, assert(q.open_safetensors(at "plain")):names())
    end)
  end)
end)

-- ---- npy ----

-- A .npy file of a version, a header and data.
local function npy(version, header, data)
  return "\147NUMPY" .. string.char(version, 0) .. little(#header, version == 1 and 2 or 4) .. header .. (data or "")
end

local function header_text(descr, fortran, shape)
  return ("{'descr': '%s', 'fortran_order': %s, 'shape': %s, }\n"):format(descr, fortran and "True" or "False", shape)
end

describe("npy files", function()
  it("are read back with the same bits", function()
    local r = cases.random(3)
    for dtype in pairs(DTYPES) do
      for _, t in ipairs { random_bits(r, dtype, 5, 7), random_bits(r, dtype, 9), q.empty { 0, 3, dtype = dtype },
        random_bits(r, dtype, 6, 9):narrow(2, 3, 4), q.empty { 0, dtype = dtype } } do
        assert.is_true(q.save_npy(at "round.npy", t))
        assert.same_bits(t, assert(q.load_npy(at "round.npy")), dtype)
      end
    end
  end)

  it("have numpy's own bytes", function()
    local data = { int32 = "<i4", int8 = "|i1", float16 = "<f2", float32 = "<f4", bfloat16 = "<V2" }
    for dtype, descr in pairs(data) do
      local t = q.tensor({ { 1, 2, 3 } }, { dtype = dtype })
      assert(q.save_npy(at "bytes.npy", t))
      local header = ("{'descr': '%s', 'fortran_order': False, 'shape': (1, 3), }"):format(descr)
      assert.equal("\147NUMPY\1\0\118\0" .. header .. (" "):rep(117 - #header) .. "\n" .. helper.bytes(t),
        read(at "bytes.npy"))
    end
    assert(q.save_npy(at "bytes.npy", q.ones { 3 }))
    assert.truthy(read(at "bytes.npy"):find("'shape': (3,), }", 1, true))
    assert.equal(128 + 12, #read(at "bytes.npy"))
  end)

  it("are read in versions 1 to 3, in either order, whatever the white space", function()
    local data = "\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0\5\0\0\0\6\0\0\0"
    local function loaded(version, header, bytes)
      return assert(q.load_npy(write("hand.npy", npy(version, header, bytes or data)))):totable()
    end
    local C = { { 1, 2, 3 }, { 4, 5, 6 } }
    for version = 1, 3 do assert.same(C, loaded(version, header_text("<i4", false, "(2, 3)"))) end
    assert.same({ { 1, 3, 5 }, { 2, 4, 6 } }, loaded(1, header_text("<i4", true, "(2, 3)")))
    assert.same({ 1, 2, 3, 4, 5, 6 }, loaded(1, header_text("<i4", true, "(6,)")))
    assert.same(C, loaded(1, '{ "shape":( 2 ,3L,) ,"descr":"<i4","fortran_order":False}'))
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, loaded(1, header_text("<i4", false, "(1, 2, 3)")))
    assert.same({ 1 }, loaded(1, header_text("<i4", false, "()"), data:sub(1, 4)))
    assert.same({ -1 }, loaded(1, header_text("|i1", false, "(1,)"), "\255"))
    for _, descr in ipairs { "<V2", "|V2" } do
      local t = assert(q.load_npy(write("hand.npy", npy(1, header_text(descr, false, "(1,)"), "\128\63"))))
      assert.same({ "bfloat16", 1 }, { t.dtype, t:get(1) })
    end
  end)

  local SHORT = "the header is not as numpy writes it, with descr, fortran_order and shape of a plain array"
  local NONE = "it does not begin as a .npy file does"
  local BAD = {
    { "nothing", "", NONE }, { "a text", "some text that is longer", NONE }, { "a cut magic", "\147NUMPY\1", NONE },
    { "version 4", npy(4, header_text("|i1", false, "(1,)"), "a"), "the version is 4.0, expected 1.0, 2.0 or 3.0" },
    { "a cut header", npy(1, header_text("|i1", false, "(1,)")):sub(1, 30),
      { "^the header has %d+ bytes, but 20 follow: the file is cut, or no .npy file$" } },
    { "a cut length", "\147NUMPY\2\0\1\0", { "^the header has 1 bytes, but %-2 follow" } },
    { "a long header", npy(2, (" "):rep(2 ^ 20 + 1)), { "^the header has 1048577 bytes, but 1048577 follow" } },
    { "a program", npy(1, "{'descr': __import__('os').system('true')}", ""), { "^" .. SHORT .. " %(descr%): " } },
    { "structured arrays", npy(1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "abcd"),
      { "^" .. SHORT .. " %(descr%): " } },
    { "an expression for the shape", npy(1, header_text("|i1", false, "(1+1,)"), "ab"), { " %(shape%): " } },
    { "a negative shape", npy(1, header_text("|i1", false, "(-1,)"), "ab"), { " %(shape%): " } },
    { "a number for the shape", npy(1, header_text("|i1", false, "(2)"), "ab"), { " %(shape%): " } },
    { "commas alone", npy(1, header_text("|i1", false, "(,)"), "ab"), { " %(shape%): " } },
    { "two commas", npy(1, header_text("|i1", false, "(1,,2)"), "ab"), { " %(shape%): " } },
    { "another word than True", npy(1, "{'descr': '|i1', 'fortran_order': 0, 'shape': (1,)}", "a"),
      { " %(fortran_order%): " } },
    { "no shape", npy(1, "{'descr': '|i1', 'fortran_order': False}", "a"), { "^" .. SHORT .. ": " } },
    { "a key twice", npy(1, "{'descr': '|i1', 'descr': '|i1', 'fortran_order': False, 'shape': (1,)}", "a"),
      { "^" .. SHORT .. ": " } },
    { "another key", npy(1, "{'descr': '|i1', 'fortran_order': False, 'shape': (1,), 'x': 1}", "a"),
      { "^" .. SHORT .. ": " } },
    { "no comma", npy(1, "{'descr': '|i1' 'fortran_order': False, 'shape': (1,)}", "a"), { "^" .. SHORT .. ": " } },
    { "more than a dictionary", npy(1, "{'descr': '|i1', 'fortran_order': False, 'shape': (1,)} + 1", "a"),
      { "^" .. SHORT .. ": " } },
    { "an escape in a string", npy(1, "{'descr': '\\x7ci1', 'fortran_order': False, 'shape': (1,)}", "a"),
      { " %(descr%): " } },
    { "unlike quotation marks", npy(1, "{'descr\": '|i1', 'fortran_order': False, 'shape': (1,)}", "a"),
      { "^" .. SHORT .. ": " } },
    { "float64", npy(1, header_text("<f8", false, "(1,)"), "abcdefgh"), 'descr is "<f8", which cannot be loaded: '
      .. "tensors hold <i4, |i1, <f2, <f4 and bfloat16 (<V2); astype converts the array in numpy" },
    { "the other byte order", npy(1, header_text(">i4", false, "(1,)"), "abcd"), 'descr is ">i4", which cannot be '
      .. "loaded: its byte order is the other one; astype converts the array in numpy" },
    { "pickled objects", npy(1, header_text("|O", false, "(1,)"), "abcd"), { '^descr is "|O", which cannot' } },
    { "cut data", npy(1, header_text("<i4", false, "(2, 3)"), ("a"):rep(23)),
      "shape (2, 3) of <i4 takes 24 bytes, but the file has 23 bytes of data: it is cut" },
    { "more data", npy(1, header_text("<i4", false, "(1,)"), "abcde"),
      "shape (1) of <i4 takes 4 bytes, but the file has 5 bytes of data" },
    { "a shape that overflows", npy(1, header_text("|i1", false, "(4294967296, 4294967296, 0)"), ""),
      "the shape (4294967296, 4294967296, 0) is too large" },
    { "a dimension of 2^53 + 1", npy(1, header_text("|i1", false, "(9007199254740993,)"), ""),
      { "^the shape .* is too large" } },
    { "three dimensions in Fortran order", npy(1, header_text("|i1", true, "(1, 1, 2)"), "ab"), "it is in Fortran "
      .. "order and has 3 dimensions; numpy.ascontiguousarray gives an array that can be loaded" },
  }
  for _, case in ipairs(BAD) do
    it("are refused: " .. case[1], function()
      local path = write("bad.npy", case[2])
      local t, reason = q.load_npy(path)
      assert.is_nil(t)
      assert.equal(path .. ": ", reason:sub(1, #path + 2))
      if type(case[3]) == "table" then
        assert.matches(case[3][1], reason:sub(#path + 3))
      else
        assert.equal(case[3], reason:sub(#path + 3))
      end
    end)
  end

  it("raise for what is no tensor or path", function()
    assert.fails_with("save_npy: the tensor is nil, expected a tensor", function()
      local _ = q.save_npy(at "x.npy")
    end)
    assert.fails_with("load_npy: path is nil, expected the name of a file", function()
      local _ = q.load_npy()
    end)
    local t, reason = q.load_npy(folder)
    assert.is_nil(t)
    assert.equal(folder .. ": Is a directory", reason)
  end)
end)

-- ---- layers ----

local function vector(r, n)
  local values = {}
  for i = 1, n do values[i] = r:range(-1000, 1000) / 256 end
  return q.tensor(values)
end

-- Layers of every kind, K x N.
local function some_layers(r, K, N)
  local weight = cases.draw(r, N, K, "bfloat16", "plain")
  local words, scales = q.quantize(weight, { encoding = "offset" })
  local kn, kn_scales = q.quantize(cases.draw(r, K, N, "float32", "plain"), { dim = 1 })
  local raw = q.pack_int4_to_int32(q.unpack_int32_to_int4(words)):unmark_()
  local order = q.empty { K, dtype = "int32" }
  for k = 1, K do order:set(k, K - k) end
  return {
    groups = q.linear(weight, { group_size = 32, rotate = false, activations = "int8" }),
    zeros = q.linear(weight, { group_size = 32, zero_point = true, activations = "int8", bias = vector(r, N) }),
    column_zeros = q.linear(weight, { zero_point = true, rotate = 4 }),
    factors = q.linear(weight, { group_size = 32, group_scales = "integer", layout = "nk" }),
    floats = q.linear(weight, { group_size = 64, activations = "float", activation = "relu" }),
    half_scales = q.linear(words, { scales = q.full({ N, 1, dtype = "float16" }, 0.5) }),
    order = q.linear(words, { scales = scales, order = order, rotate = 4 }),
    plain = q.linear(weight), [""] = q.linear(weight, { rotate = false }),
    ["model.0.\"\195\164"] = q.linear(weight, { bias = vector(r, N), activation = "gelu_tanh", clip = 0.1 + 0.2 }),
    ["clip.mse"] = q.linear(weight, { clip = "mse", out_dtype = "float32", weight_clip = 0.8 }),
    offset = q.linear(words, { scales = scales }), kn = q.linear(kn, { scales = kn_scales, bias = vector(r, N) }),
    raw = q.linear(raw, { scales = scales, encoding = "twos_complement" }),
  }
end

local function assert_same_layer(expected, actual, x, name)
  assert.same_bits(expected(x), actual(x), name)
  for _, key in ipairs { "weight", "scales", "zeros", "factors", "order", "bias" } do
    assert.equal(expected[key] == nil, actual[key] == nil)
    if expected[key] ~= nil then assert.same_bits(expected[key], actual[key], name .. "." .. key) end
  end
  for _, key in ipairs {
    "in_features", "out_features", "rotate", "clip", "activation", "out_dtype", "group_size", "activations",
  } do
    assert.equal(expected[key], actual[key], name .. "." .. key)
  end
  assert.same(expected.weight.packing, actual.weight.packing, name)
  assert.equal(tostring(expected), tostring(actual))
end

describe("save and load", function()
  it("give layers with the same bits and fields", function()
    local r = cases.random(4)
    for _, shape in ipairs { { 64, 24 }, { 52, 7 }, { 16, 1 } } do
      local K, N = unpack(shape)
      local given, x = some_layers(r, K, N), cases.draw(r, 3, K, "bfloat16", "plain")
      if K % 8 ~= 0 then given.raw = nil end -- words without a mark are K = 56
      assert.is_true(q.save(at "layers.safetensors", given))
      local loaded = assert(q.load(at "layers.safetensors"))
      for name, layer in pairs(given) do assert_same_layer(layer, loaded[name], x, name) end
      for name in pairs(loaded) do assert.is_not_nil(given[name]) end
      for name, layer in pairs(given) do
        assert(q.save(at "layer.safetensors", layer))
        local single = assert(q.load(at "layer.safetensors"))
        assert_same_layer(layer, single, x, name)
        local prepacked = assert(q.load(at "layer.safetensors", { prepack = true }))
        assert.equal("panels", prepacked.weight.layout)
        assert.same_bits(layer(x), prepacked(x), name)
      end
    end
    assert(q.save(at "layers.safetensors", {}))
    assert.same({}, assert(q.load(at "layers.safetensors")))
  end)

  it("give the same bytes on every run", function()
    local given = some_layers(cases.random(5), 32, 8)
    assert(q.save(at "one.safetensors", given))
    assert(q.save(at "two.safetensors", assert(q.load(at "one.safetensors"))))
    assert.equal(read(at "one.safetensors"), read(at "two.safetensors"))
  end)

  it("go to a GPU and come from one", function()
    local env = not q.cuda_available() and {
      INT4MM_CUDA_LIBRARY = helper.build_folder() .. "/spec/c/fake_cuda.so", INT4MM_FAKE_CUDA = "host",
    } or nil
    local output, status = helper.luajit(([[
      local q = require "int4mm"
      local path, weight = %q, q.random(q.empty { 24, 32 }, { seed = 1, low = -1 })
      local layer = q.linear(weight, { bias = q.ones { 24 } })
      local moved = layer:to "cuda:0"
      assert(q.save(path, { x = moved }))
      local here, there = assert(q.load(path)).x, assert(q.load(path, { device = "cuda:0" })).x
      for key, t in pairs(moved:to("cpu"):parameters()) do
        assert(t:equal(here[key]) and t:equal(there[key]) and there[key].device == "cuda:0")
      end
      assert(q.save_npy(path, weight:to "cuda:0"))
      assert(weight:equal(assert(q.load_npy(path))))
      assert(q.save_safetensors(path, { weight = weight:to "cuda:0", bias = layer.bias:to "cuda:0" }))
      local f = assert(q.open_safetensors(path))
      assert(weight:equal(f:tensor "weight"))
      local loaded = q.load_linear(f, "", { device = "cuda:0" })
      assert(loaded.weight.device == "cuda:0" and loaded.weight:equal(moved.weight))
      print "done"
    ]]):format(at "moved.safetensors"), env)
    assert.equal(0, status, output)
    assert.equal("done\n", output)
    assert.fails_with('load: device is "gpu", expected "cpu", "cuda" or "cuda:0" and so on', function()
      local _ = q.load(at "x", { device = "gpu" })
    end)
    assert.fails_with("load: prepack is true but device is cuda:0: a prepacked weight is the CPU's; leave one of them "
      .. "out", function()
      local _ = q.load(at "x", { device = "cuda:0", prepack = true })
    end)
  end)

  it("say what is no file of layers", function()
    local function reason_of(bytes)
      local path = write("other.safetensors", bytes)
      local loaded, reason = q.load(path)
      assert.is_nil(loaded)
      assert.equal(path .. ": ", reason:sub(1, #path + 2))
      return reason:sub(#path + 3)
    end
    assert.equal("it holds no layers of int4mm; load_linear makes a layer of other files, open_safetensors reads their "
      .. "tensors", reason_of(made { { "x", "I8", "[1]", "a" } }))
    local function about(text, tensors)
      return reason_of(made(tensors or {}, '{"int4mm":"' .. text:gsub('"', '\\"') .. '"}'))
    end
    assert.equal("the metadata int4mm is not JSON as it should be: it does not begin with {", about "3")
    assert.equal("the layers are of version 2, this int4mm reads version 1", about '{"version":2,"layers":{}}')
    assert.equal("the metadata int4mm has neither layer nor layers", about '{"version":1}')
    assert.equal('layer "x" is not an object in the metadata int4mm', about '{"version":1,"layers":{"x":1}}')
    local FIELDS = '"in_features":8,"out_features":1,"rotate":%s,"activation":"none","dim":2,"encoding":"%s"%s'
    local function record(rotate, encoding, more)
      return '{"version":1,"layer":{' .. FIELDS:format(rotate, encoding, more or "") .. "}}"
    end
    local tensors = { { "weight", "I32", "[1,1]", "\1\0\0\0" }, { "scales", "F32", "[1]", "\0\0\128\63" } }
    local path = write("good.safetensors", made(tensors, '{"int4mm":"' .. record(0, "offset"):gsub('"', '\\"') .. '"}'))
    assert.equal(8, assert(q.load(path)).in_features)
    assert.matches("^the layer has rotate = \"0\" in the metadata int4mm, expected a number",
      about(record('"0"', "offset"), tensors))
    assert.equal('the layer has "group" = 32 in the metadata int4mm, which this int4mm does not know',
      about(record(0, "offset", ',"group":32'), tensors))
    assert.matches("^the layer: mark_: encoding is \"ofset\", expected", about(record(0, "ofset"), tensors))
    assert.matches("^the layer: linear: rotate is 16, which does not divide the 8 inputs",
      about(record(16, "offset"), tensors))
    assert.matches('^the layer: linear: clip is "often", expected',
      about(record(0, "offset", ',"clip":"often"'), tensors))
    assert.matches("^the layer: mark_: .*16", about(record(0, "offset", ',"length":16'), tensors))
    assert.equal("the layer: in_features is 8, but the tensors have 5",
      about(record(0, "offset", ',"length":5'), tensors))
    assert.matches('^the layer: tensor: .* has no tensor "scales"', about(record(0, "offset"), { tensors[1] }))
    assert.matches("^the layer: linear: scales is a tensor %[1%] float16, expected", about(record(0, "offset"),
      { tensors[1], { "scales", "F16", "[1]", "\0\60" } }))
  end)

  it("raise for what is no layer", function()
    local layer = q.linear(q.ones { 8, 16 })
    local function fails(message, given)
      assert.fails_with("save: " .. message, function()
        local _ = q.save(at "refused.safetensors", given)
      end)
    end
    fails("the layers are nil, expected a layer or a table of layers by name")
    fails('layer "x" is 3, expected what q.linear makes', { x = 3 })
    fails("the layers have the key 1, expected names", { layer })
    fails('layer "x" was made with prepack = true, and its words cannot be read; save it without, load has prepack as '
      .. "well", { x = q.linear(q.ones { 8, 16 }, { prepack = true }) })
    layer.group = 32
    fails('the layer has the field "group", which files of layers do not hold', layer)
    assert.is_nil(io.open(at "refused.safetensors"))
  end)
end)

-- ---- checkpoints ----

-- N x K int4 values as a table of rows.
local function int4_values(r, N, K)
  local rows = {}
  for n = 1, N do
    rows[n] = {}
    for k = 1, K do rows[n][k] = r:range(-8, 7) end
  end
  return rows
end

-- A word of the values at(0), ..., at(7) plus 8, lowest first; nil is a nibble of 0.
local function offset_word(get)
  local word = 0
  for i = 0, 7 do
    local value = get(i)
    if value then word = bit.bor(word, bit.lshift(value + 8, 4 * i)) end
  end
  return le32(word)
end

-- The words [N, K/8] and the oracle's layer.
local function expected_of(values, scales, x, opts)
  local words = q.pack_int4_to_int32(q.tensor(values, { dtype = "int8" }))
  return q.int4_linear_reference(x, words, scales, opts)
end

-- A random layer of N x K: its values, scales as bytes of a dtype and as float32, bias alike, x.
local function checkpoint_case(seed, N, K)
  local r = cases.random(seed)
  local case = { N = N, K = K, values = int4_values(r, N, K), x = cases.draw(r, 4, K, "float16", "plain") }
  case.scale16 = cases.draw(r, N, 1, "float16", "plain")
  case.bias16 = cases.draw(r, N, 1, "bfloat16", "plain")
  local function flat(t)
    local result = {}
    for n = 1, N do result[n] = t:get(n, 1) end
    return q.tensor(result)
  end
  case.scales, case.bias = flat(case.scale16), flat(case.bias16)
  return case
end

local function convrot_bytes(case)
  local bytes = {}
  for n = 1, case.N do
    for k = 1, case.K, 2 do
      bytes[#bytes + 1] = string.char(case.values[n][k] % 16 + 16 * (case.values[n][k + 1] % 16))
    end
  end
  return table.concat(bytes)
end

local function convrot_tensors(case, json)
  local tensors = {
    { "a.b.weight", "I8", ("[%d,%d]"):format(case.N, case.K / 2), convrot_bytes(case) },
    { "a.b.weight_scale", "F32", ("[%d]"):format(case.N), helper.bytes(case.scales) },
    { "a.b.bias", "BF16", ("[%d]"):format(case.N), helper.bytes(case.bias16) },
  }
  if json then tensors[4] = { "a.b.comfy_quant", "U8", ("[%d]"):format(#json), json } end
  return tensors
end

local function compressed_tensors(case, K)
  local words = {}
  for n = 1, case.N do
    for j = 0, math.ceil(K / 8) - 1 do
      words[#words + 1] = offset_word(function(i) return case.values[n][8 * j + i + 1] end)
    end
  end
  return {
    { "a.weight_packed", "I32", ("[%d,%d]"):format(case.N, math.ceil(K / 8)), table.concat(words) },
    { "a.weight_scale", "F16", ("[%d,1]"):format(case.N), helper.bytes(case.scale16) },
    { "a.weight_shape", "I64", "[2]", little(case.N, 8) .. little(K, 8) },
  }
end

local function gptq_tensors(case, zero)
  local words, zeros = {}, {}
  for j = 0, case.K / 8 - 1 do
    for n = 1, case.N do
      words[#words + 1] = offset_word(function(i) return case.values[n][8 * j + i + 1] end)
    end
  end
  for _ = 1, math.ceil(case.N / 8) do zeros[#zeros + 1] = offset_word(function() return (zero or 7) - 8 end) end
  return {
    { "a.qweight", "I32", ("[%d,%d]"):format(case.K / 8, case.N), table.concat(words) },
    { "a.scales", "F16", ("[1,%d]"):format(case.N), helper.bytes(case.scale16) },
    { "a.qzeros", "I32", ("[1,%d]"):format(math.ceil(case.N / 8)), table.concat(zeros) },
    { "a.g_idx", "I32", ("[%d]"):format(case.K), ("\0"):rep(4 * case.K) },
    { "a.bias", "F32", ("[%d]"):format(case.N), helper.bytes(case.bias) },
  }
end

describe("load_linear", function()
  local function load(tensors, name, opts, metadata)
    local f = open("checkpoint.safetensors", made(tensors, metadata))
    return q.load_linear(f, name, opts)
  end

  local function refuses(message, tensors, name, opts, metadata)
    local f = open("checkpoint.safetensors", made(tensors, metadata))
    assert.fails_with(("load_linear: %s: layer %q: %s"):format(f.path, name, message), function()
      local _ = q.load_linear(f, name, opts)
    end)
  end

  it("takes convrot_w4a4, by comfy_quant or by the file's metadata", function()
    for seed, shape in ipairs { { 24, 64 }, { 9, 12 }, { 1, 256 } } do
      local case = checkpoint_case(seed, shape[1], shape[2])
      local block = shape[2] == 12 and 4 or shape[2]
      local expected = expected_of(case.values, case.scales, case.x,
        { rotate = block, bias = case.bias, activation = "silu" })
      local json = ('{"format": "convrot_w4a4", "convrot_groupsize": %d}'):format(block)
      local layer = load(convrot_tensors(case, json), "a.b", { activation = "silu" })
      assert.same({ block, shape[2], shape[1] }, { layer.rotate, layer.in_features, layer.out_features })
      assert.same_bits(expected, layer(case.x))
      local metadata = ('{"_quantization_metadata":"{\\"layers\\":{\\"a.b\\":%s}}"}'):format((json:gsub('"', '\\"')))
      assert.same_bits(expected, load(convrot_tensors(case), "a.b", { activation = "silu" }, metadata)(case.x))
      if block == 256 then
        layer = load(convrot_tensors(case, '{"format": "convrot_w4a4"}'), "a.b", { activation = "silu" })
        assert.same_bits(expected, layer(case.x))
      end
    end
  end)

  it("takes the metadata of the very file that an index names", function()
    local case = checkpoint_case(4, 8, 16)
    helper.shell("mkdir '" .. at "comfy" .. "'")
    write("comfy/1.safetensors", made(convrot_tensors(case),
      [[{"_quantization_metadata":"{\"layers\":{\"a.b\":{\"format\":\"convrot_w4a4\",\"convrot_groupsize\":16}}}"}]]))
    write("comfy/model.safetensors.index.json", [[{"weight_map":{"a.b.weight":"1.safetensors",
      "a.b.weight_scale":"1.safetensors","a.b.bias":"1.safetensors"}}]])
    local layer = q.load_linear(assert(q.open_safetensors(at "comfy")), "a.b")
    assert.same_bits(expected_of(case.values, case.scales, case.x, { rotate = 16, bias = case.bias }), layer(case.x))
  end)

  it("refuses other formats of ComfyUI, and blocks that are none", function()
    local case = checkpoint_case(5, 8, 16)
    refuses('its format is "int8_tensorwise", of ComfyUI\'s only convrot_w4a4 can be loaded',
      convrot_tensors(case, '{"format":"int8_tensorwise"}'), "a.b")
    refuses("comfy_quant is not JSON as it should be: it does not begin with {", convrot_tensors(case, "3"), "a.b")
    for _, block in ipairs { "8", "256", "2", "4.5", '"16"', "0", "4096" } do
      refuses(("convrot_groupsize is %s, expected a power of four from 4 to 1024 that divides K, 16"):format(block),
        convrot_tensors(case, '{"format":"convrot_w4a4","convrot_groupsize":' .. block .. "}"), "a.b")
    end
    refuses("weight is [8, 8] I8, but neither comfy_quant nor _quantization_metadata says what it is",
      convrot_tensors(case), "a.b")
    refuses("rotate is given, but the weight is packed already: it is for a weight of floats",
      convrot_tensors(case, '{"format":"convrot_w4a4","convrot_groupsize":16}'), "a.b", { rotate = 16 })
    local tensors = convrot_tensors(case, '{"format":"convrot_w4a4","convrot_groupsize":16}')
    tensors[2] = { "a.b.weight_scale", "F32", "[8,2]", ("\0"):rep(64) }
    refuses("weight_scale is [8, 2], expected one for each of 8 outputs", tensors, "a.b")
    tensors[2] = { "a.b.weight_scale", "F32", "[7]", ("\0"):rep(28) }
    refuses("weight_scale is [7], expected one for each of 8 outputs", tensors, "a.b")
    table.remove(tensors, 2)
    refuses("it has no weight_scale", tensors, "a.b")
  end)

  it("takes compressed-tensors with a scale for each output", function()
    for seed, shape in ipairs { { 24, 64 }, { 9, 20 }, { 3, 1 } } do
      local case = checkpoint_case(10 + seed, shape[1], shape[2])
      local expected = expected_of(case.values, case.scales, case.x, { clip = 0.9 })
      local tensors = compressed_tensors(case, shape[2])
      local layer = load(tensors, "a", { clip = 0.9, activations = "int4" })
      assert.same({ shape[2], shape[1] }, { layer.in_features, layer.out_features })
      assert.same_bits(expected, layer(case.x))
      assert.same(case.values, q.unpack_int32_to_int4(layer.weight):totable())
      local unpacked = q.unpack_int32_to_int4(layer.weight:clone():unmark_(), { encoding = "offset" })
      for k = shape[2] + 1, unpacked:size(2) do assert.equal(0, unpacked:get(1, k)) end -- whatever the file has there
      local zero_words = math.ceil(shape[1] / 8)
      tensors[4] = { "a.weight_zero_point", "I32", ("[%d,1]"):format(zero_words), le32(0x88888888):rep(zero_words) }
      tensors[5] = { "a.weight_g_idx", "I32", ("[%d]"):format(shape[2]), ("\255"):rep(4 * shape[2]) }
      assert.same_bits(expected, load(tensors, "a", { clip = 0.9, activations = "int4" })(case.x))
      assert.same_bits(expected, load(tensors, "a", { clip = 0.9, activations = "int4", prepack = true })(case.x))
    end
  end)

  it("refuses compressed-tensors with groups of no multiple of 32, or another width", function()
    local case = checkpoint_case(20, 8, 16)
    local function with(index, tensor)
      local tensors = compressed_tensors(case, 16)
      tensors[index] = tensor
      return tensors
    end
    refuses("weight_scale holds 2 groups of K = 16, expected groups of a multiple of 32; where the last is shorter, "
      .. "group_size says how long the others are", with(2, { "a.weight_scale", "F16", "[8,2]", ("\0"):rep(32) }), "a")
    refuses("weight_g_idx has 1 for value 2 of K, expected groups from 0 to 0",
      with(4, { "a.weight_g_idx", "I32", "[16]", le32(0) .. le32(1) .. ("\0"):rep(56) }), "a")
    refuses("weight_packed is [8, 2] for K = 8, expected [8, 1]: eight values of 4 bits a word",
      with(3, { "a.weight_shape", "I64", "[2]", little(8, 8) .. little(8, 8) }), "a")
    refuses("weight_shape does not belong to weight_packed [8, 2]",
      with(3, { "a.weight_shape", "I64", "[2]", little(7, 8) .. little(16, 8) }), "a")
    refuses("weight_shape does not belong to weight_packed [8, 2]",
      with(3, { "a.weight_shape", "I64", "[2]", little(8, 8) .. ("\255"):rep(8) }), "a")
    refuses("weight_shape is [1] F32, expected I64 or I32 with 1 dimension",
      with(3, { "a.weight_shape", "F32", "[1]", "abcd" }), "a")
    local tensors = compressed_tensors(case, 16)
    table.remove(tensors)
    refuses("it has no weight_shape", tensors, "a")
  end)

  it("takes symmetric GPTQ with a scale for each output", function()
    for seed, shape in ipairs { { 24, 64 }, { 9, 16 }, { 1, 8 } } do
      local case = checkpoint_case(30 + seed, shape[1], shape[2])
      local expected = expected_of(case.values, case.scales, case.x, { bias = case.bias })
      local int4 = { activations = "int4" }
      assert.same_bits(expected, load(gptq_tensors(case), "a", int4)(case.x))
      local tensors = gptq_tensors(case, 8)
      table.remove(tensors, 4) -- g_idx
      assert.same_bits(expected, load(tensors, "a", { checkpoint_format = "gptq_v2", activations = "int4" })(
        case.x))
      assert.same_bits(expected, load(tensors, "a", int4, '{"checkpoint_format":"gptq_v2"}')(case.x))
    end
  end)

  it("refuses GPTQ with groups of no multiple of 32, or another width", function()
    local case = checkpoint_case(40, 8, 16)
    local function with(index, tensor)
      local tensors = gptq_tensors(case)
      tensors[index] = tensor
      return tensors
    end
    refuses("scales holds 2 groups of K = 16, expected groups of a multiple of 32; where the last is shorter, "
      .. "group_size says how long the others are", with(2, { "a.scales", "F16", "[2,8]", ("\0"):rep(32) }), "a")
    refuses("qzeros is [1, 2], expected [1, 1]: eight zero points of 4 bits a word",
      with(3, { "a.qzeros", "I32", "[1,2]", ("\0"):rep(8) }), "a")
    refuses("g_idx has 1 for value 1 of K, expected groups from 0 to 0",
      with(4, { "a.g_idx", "I32", "[16]", le32(1) .. ("\0"):rep(60) }), "a")
    refuses("g_idx is [8], expected [16]: a group for each value along K",
      with(4, { "a.g_idx", "I32", "[8]", ("\0"):rep(32) }), "a")
    refuses("scales is [1, 8], but qweight is [16, 2], which has 2 outputs, or 16 as AWQ has it",
      with(1, { "a.qweight", "I32", "[16,2]", ("\0"):rep(128) }), "a")
  end)

  it("quantises a weight of floats with the options given", function()
    local r = cases.random(50)
    for _, dtype in ipairs { "float32", "float16", "bfloat16" } do
      local weight, bias = cases.draw(r, 24, 64, dtype, "plain"), vector(r, 24)
      local x = cases.draw(r, 3, 64, dtype, "plain")
      local f = open("float.safetensors", made {
        { "weight", DTYPES[dtype], "[24,64]", helper.bytes(weight) }, { "bias", "F32", "[24]", helper.bytes(bias) },
      })
      local opts = { rotate = 16, weight_clip = 0.9, clip = "mse", activation = "relu", out_dtype = "float32" }
      local layer = q.load_linear(f, "", opts)
      local words, scales = q.quantize_reference(weight, { rotate = 16, clip = 0.9 })
      assert.same_bits(words, layer.weight)
      assert.same_bits(scales, layer.scales)
      assert.same_bits(q.int4_linear_reference(x, words, scales, {
        layout_b = "nk", rotate = 16, bias = bias, clip = "mse", activation = "relu", out_dtype = "float32",
      }), layer(x))
      assert.equal(64, q.load_linear(f, "").rotate)
      assert.equal(0, q.load_linear(f, "", { rotate = false }).rotate)
    end
  end)

  it("says what is not there", function()
    local tensors = { { "a.weight", "F32", "[4]", ("\0"):rep(16) }, { "b.bias", "F32", "[1]", "\0\0\0\0" },
      { "c.weight", "F64", "[1,1]", ("\0"):rep(8) } }
    refuses("weight is [4] F32, expected F32 or F16 or BF16 or I8 with 2 dimensions", tensors, "a")
    refuses("it has no weight: none of the tensors weight, weight_packed and qweight", tensors, "b")
    refuses("weight is [1, 1] F64, expected F32 or F16 or BF16 or I8 with 2 dimensions", tensors, "c")
    local function fails(message, ...)
      local arguments = { ... }
      assert.fails_with("load_linear: " .. message, function()
        local _ = q.load_linear(unpack(arguments))
      end)
    end
    fails('file is "model.safetensors", expected a file from open_safetensors: open it first', "model.safetensors", "a")
    local f = open("checkpoint.safetensors", made(tensors))
    fails("layer is nil, expected the name of a layer", f)
    fails('checkpoint_format is "awq", expected "gptq" or "gptq_v2"', f, "a", { checkpoint_format = "awq" })
    fails('unknown option "group"; the options are activations, clip, activation, out_dtype, prepack, device, '
      .. "group_size, rotate, weight_clip, group_scales, zero_point, checkpoint_format", f, "a", { group = 32 })
    f:close()
    fails("file is closed: " .. f.path, f, "a")
  end)
end)

-- ---- fuzz ----

-- A file's bytes cut somewhere, some of them changed, or with a piece of it moved.
local function damaged(r, bytes)
  local kind = r:range(1, 4)
  if kind == 1 then return bytes:sub(1, r:range(0, #bytes)) end
  for _ = 1, r:range(1, 4) do
    local at_byte = kind == 2 and r:range(1, math.min(#bytes, 300)) or r:range(1, #bytes)
    local new = kind == 4 and ("0123456789-.,:\"{}[]e\\ "):sub(r:range(1, 20)):sub(1, 1) or string.char(r:range(0, 255))
    bytes = bytes:sub(1, at_byte - 1) .. new .. bytes:sub(at_byte + 1)
  end
  return bytes
end

describe("a damaged file", function()
  local ROUNDS = tonumber(os.getenv "INT4MM_FUZZ" or 1500) -- of each format

  -- A result, or a sentence that begins with the path; anything else is a fault of int4mm.
  local function survives(path, ok, result, reason)
    assert.is_true(ok, tostring(result))
    if result == nil then assert.equal(path, reason:sub(1, #path)) end
    return result
  end

  it("gives a good result or an error: safetensors and layers", function()
    local r, opened = cases.random(60), 0
    local path = at "fuzz.safetensors"
    assert(q.save(path, some_layers(cases.random(61), 16, 4)))
    local files = { read(path), made({ { "x", "F32", "[2,1]", "abcdefgh" }, { "yy", "I64", "[1]", "abcdefgh" },
      { "z", "BF16", "[0]", "" } }, '{"a":"b"}') }
    for round = 1, ROUNDS do
      write("fuzz.safetensors", damaged(r, files[round % 2 + 1]))
      local f = survives(path, pcall(q.open_safetensors, path))
      for _, name in ipairs(f and f:names() or {}) do
        local info = f:info(name)
        assert.equal(info.bytes, #f:bytes(name))
        local held = pcall(f.tensor, f, name)
        for _, dtype in pairs(DTYPES) do assert(held or info.dtype ~= dtype, name) end
      end
      if f then
        opened = opened + 1
        f:close()
      end
      survives(path, pcall(q.load, path))
    end
    assert.is_true(opened > ROUNDS / 20 and opened < ROUNDS, opened)
  end)

  it("gives a good result or an error: npy", function()
    local r, loaded = cases.random(62), 0
    local path = at "fuzz.npy"
    local files = { npy(1, header_text("<f4", false, "(2, 3)"), ("a"):rep(24)),
      npy(2, header_text("|i1", true, "(4, 2)"), ("a"):rep(8)) }
    for round = 1, ROUNDS do
      write("fuzz.npy", damaged(r, files[round % 2 + 1]))
      local t = survives(path, pcall(q.load_npy, path))
      if t then
        loaded = loaded + 1
        assert.equal(t:numel(), #helper.bytes(t) / helper.ELEMENT_BYTES[t.dtype])
      end
    end
    assert.is_true(loaded > ROUNDS / 40 and loaded < ROUNDS, loaded) -- of 10,000 files 449 stay good
  end)

  it("gives a layer or an error: load_linear", function()
    local r, path = cases.random(63), at "fuzz_checkpoint.safetensors"
    local case = checkpoint_case(64, 8, 16)
    local files = {
      { made(convrot_tensors(case, '{"format": "convrot_w4a4", "convrot_groupsize": 16}')), "a.b" },
      { made(compressed_tensors(case, 16)), "a" }, { made(gptq_tensors(case)), "a" },
    }
    local made_layers, refused = 0, 0
    for round = 1, ROUNDS do
      local bytes, name = unpack(files[round % 3 + 1])
      write("fuzz_checkpoint.safetensors", damaged(r, bytes))
      local f = q.open_safetensors(path)
      if f then
        local ok, result = pcall(q.load_linear, f, name)
        if ok then
          made_layers = made_layers + 1
          assert.equal(4, result(case.x:narrow(2, 1, math.min(16, result.in_features))):size(1))
        else
          refused = refused + 1
          assert.matches("^%l+_?%l*: ", result)
        end
        f:close()
      end
    end
    assert.is_true(made_layers > 50 and refused > 20, made_layers .. ", " .. refused)
  end)
end)
