--- Mistakes of the caller: each has a message of its own, reported at the caller's line, and leaves `out` alone.

local ffi = require "ffi"

local helper = require "spec.helper"
local q = require "int4mm"

local M, K, N = 6, 32, 10

--- A valid call's arguments, by name.
local function valid()
  local a, b, scale_a, scale_b = q.generate_test_data(M, K, N, { seed = 1 })
  return { a = a, b = b, scale_a = scale_a, scale_b = scale_b, opts = nil }
end

local function freed(t)
  t = t:clone()
  t:free()
  return t
end

--- A matrix whose rows are all one row, so that a long K costs no memory.
local function long_operand(rows, k8)
  local memory = ffi.new "int32_t[1]"
  return q.wrap(ffi.cast("void *", memory), { shape = { rows, k8 }, stride = k8, dtype = "int32", owner = memory })
end

--- The bytes of a tensor from an element on, as memory of any dtype.
local function raw(t, offset) return ffi.cast("void *", t:data() + (offset or 0)) end

-- What is wrong, a function that makes it so, and the message without the name of the function.
local mistakes = {
  { "a_packed is a vector", function(c) c.a = q.zeros { 4, dtype = "int32" } end,
    "a_packed is [4] int32, expected a matrix: int32 words [M, K/8], or int8, float16, bfloat16 or float32 [M, K]" },
  { "b_packed is a vector", function(c) c.b = q.zeros { 4, dtype = "int32" } end,
    "b_packed is [4] int32, expected a matrix of int32, eight int4 to a word" },
  { "a_packed is of another K", function(c) c.a = q.zeros { M, K + 1, dtype = "int8" } end,
    "b_packed is [4, 10] int32 but a_packed is [6, 33] int8: K/8 differs (5 and 4)" },
  { "a_packed is not packed", function(c) c.a = q.zeros { M, K, dtype = "int32" } end,
    "b_packed is [4, 10] int32 but a_packed is [6, 32] int32: K/8 differs (32 and 4); was a packed along dim 2?" },
  { "b_packed is of floats", function(c) c.b = q.zeros { K / 8, N, dtype = "float32" } end,
    "b_packed is [4, 10] float32, expected a matrix of int32, eight int4 to a word: quantize it first" },
  { "K differs", function(c) c.b = q.zeros { K / 8 + 1, N, dtype = "int32" } end,
    "b_packed is [5, 10] int32 but a_packed is [6, 4] int32: K/8 differs (4 and 5)" },
  { "b_packed was packed along its columns", function(c) c.b = q.zeros { K, N, dtype = "int32" } end,
    "b_packed is [32, 10] int32 but a_packed is [6, 4] int32: K/8 differs (4 and 32); was b packed along dim 1?" },
  { "b_packed was packed along its columns in the layout nk", function(c)
    c.b, c.opts = q.zeros { N, K, dtype = "int32" }, { layout_b = "nk" }
  end, "b_packed is [10, 32] int32 but a_packed is [6, 4] int32: K/8 differs (4 and 32); was b packed along dim 2?" },
  { "a_packed was packed along its rows", function(c) c.a = q.zeros { 1, K, dtype = "int32" } end,
    "b_packed is [4, 10] int32 but a_packed is [1, 32] int32: K/8 differs (32 and 4); was a packed along dim 2?" },
  { "K differs in the layout nk", function(c) c.b:unmark_() c.opts = { layout_b = "nk" } end,
    "b_packed is [4, 10] int32 but a_packed is [6, 4] int32: K/8 differs (4 and 10)" },
  { "scale_a is too short", function(c) c.scale_a = q.zeros { M - 1 } end,
    "scale_a is [5] float32, expected [6] float32: one scale per row of a_packed" },
  { "scale_b is too long", function(c) c.scale_b = q.zeros { N + 1 } end,
    "scale_b is [11] float32, expected [10] float32: one scale per column of b" },
  { "scale_a is a matrix", function(c) c.scale_a = q.zeros { M, 1 } end,
    "scale_a is [6, 1] float32, expected [6] float32: one scale per row of a_packed" },
  { "scale_b is of halves", function(c) c.scale_b = q.zeros { N, dtype = "float16" } end,
    "scale_b is [10] float16, expected [10] float32: one scale per column of b" },
  { "bias has another length", function(c) c.opts = { bias = q.zeros { M } } end,
    "bias is [6] float32, expected [10] float32: one addend per column of b" },
  { "bias has another dtype", function(c) c.opts = { bias = q.zeros { N, dtype = "int32" } } end,
    "bias is [10] int32, expected [10] float32: one addend per column of b" },
  { "out has another shape", function(c) c.opts = { out = q.zeros { N, M, dtype = "float16" } } end,
    "out is [10, 6] float16, expected [6, 10] float16, bfloat16 or float32" },
  { "out has another rank", function(c) c.opts = { out = q.zeros { M * N, dtype = "float16" } } end,
    "out is [60] float16, expected [6, 10] float16, bfloat16 or float32" },
  { "out has another dtype", function(c) c.opts = { out = q.zeros { M, N, dtype = "int32" } } end,
    "out is [6, 10] int32, expected [6, 10] float16, bfloat16 or float32" },
  { "a_packed was freed", function(c) c.a = freed(c.a) end, "a_packed was freed" },
  { "b_packed was freed", function(c) c.b = freed(c.b) end, "b_packed was freed" },
  { "scale_a was freed", function(c) c.scale_a = freed(c.scale_a) end, "scale_a was freed" },
  { "scale_b was freed", function(c) c.scale_b = freed(c.scale_b) end, "scale_b was freed" },
  { "out was freed", function(c) c.opts = { out = freed(q.zeros { M, N, dtype = "float16" }) } end,
    "out was freed" },
  { "bias was freed", function(c) c.opts = { bias = freed(c.scale_b) } end, "bias was freed" },
  { "a_packed is nil", function(c) c.a = nil end, "a_packed is nil, expected a tensor" },
  { "b_packed is a number", function(c) c.b = 3 end, "b_packed is 3, expected a tensor" },
  { "scale_a is a table", function(c) c.scale_a = { 1, 2, 3, 4, 5, 6 } end,
    "scale_a is a table, expected a tensor (int4mm.tensor makes one from a table)" },
  { "scale_b is a string", function(c) c.scale_b = "ones" end, 'scale_b is "ones", expected a tensor' },
  { "out is a string", function(c) c.opts = { out = "here" } end, 'out is "here", expected a tensor' },
  { "the options are a tensor", function(c) c.opts = c.a end,
    "the options are a tensor [6, 4] int32, expected a table" },
  { "the options are a string", function(c) c.opts = "float32" end, 'the options are "float32", expected a table' },
  { "an option is unknown", function(c) c.opts = { out_dtyp = "float32" } end,
    { pattern = '^unknown option "out_dtyp"; the options are .*out_dtype' } },
  { "an option has a number for its key", function(c) c.opts = { "float32" } end,
    { pattern = "^unknown option 1; the options are " } },
  { "out_dtype is none", function(c) c.opts = { out_dtype = "float64" } end,
    { pattern = '^out_dtype is "float64", expected .*"float16"' } },
  { "out_dtype is an integer type", function(c) c.opts = { out_dtype = "int32" } end,
    'out_dtype is "int32", expected "bfloat16", "float16" or "float32"' },
  { "out_dtype is a name of another library", function(c) c.opts = { out_dtype = "fp16" } end,
    'out_dtype is "fp16", expected "bfloat16", "float16" or "float32"' },
  { "encoding_a is none", function(c) c.opts = { encoding_a = "signed" } end,
    'encoding_a is "signed", expected "offset" or "twos_complement"' },
  { "encoding_b is a number", function(c) c.opts = { encoding_b = 1 } end,
    'encoding_b is 1, expected "offset" or "twos_complement"' },
  { "layout_b is none", function(c) c.opts = { layout_b = "mn" } end, 'layout_b is "mn", expected "kn" or "nk"' },
  { "out is a_packed's memory", function(c)
    local memory = q.zeros { 4 * M * N, dtype = "int32" }
    c.a = q.wrap(memory:data(), { shape = { M, K / 8 }, dtype = "int32", owner = memory })
    c.opts = { out = q.wrap(raw(memory, 3), { shape = { M, N }, dtype = "float32", owner = memory }) }
  end, "out overlaps a_packed in memory" },
  { "out is b_packed's memory", function(c)
    c.opts = { out = q.wrap(raw(c.b), { shape = { M, N }, dtype = "float16", owner = c.b }) }
  end, "out overlaps b_packed in memory" },
  { "out is scale_b's memory", function(c)
    local memory = q.zeros { M, N }
    c.scale_b = q.wrap(memory:data() + 20, { shape = { N }, owner = memory })
    c.opts = { out = memory }
  end, "out overlaps scale_b in memory" },
  { "K is too large for int32", function(c)
    c.a, c.b = long_operand(1, 4194304), long_operand(4194304, 1)
    c.scale_a, c.scale_b = q.zeros { 1 }, q.zeros { 1 }
  end, { pattern = "^a_packed is %[1, 4194304%] int32, so K/8 is 4194304, expected at most 4194303: .*33554431" } },
}

-- options that the oracle does not have
local fast_mistakes = {
  { "strassen is no number of levels", function(c) c.opts = { strassen = 3 } end,
    "strassen is 3, expected true, false or 0, 1 or 2 levels" },
  { "strassen is text", function(c) c.opts = { strassen = "on" } end,
    'strassen is "on", expected true, false or 0, 1 or 2 levels' },
  { "kernel is a number", function(c) c.opts = { kernel = 1 } end, "kernel is 1, expected the name of a CUDA kernel" },
  { "stream is text", function(c) c.opts = { stream = "default" } end,
    { pattern = '^stream is "default", expected one from int4mm.stream' } },
  { "the dtypes of out and out_dtype differ",
    function(c) c.opts = { out = q.zeros { M, N, dtype = "float16" }, out_dtype = "float32" } end,
    "out is float16 but out_dtype is float32; leave one of them out" },
}

local functions = { "int4_matmul", "int4_matmul_cpu", "int4_matmul_reference" }
if q.cuda_available() then functions[#functions + 1] = "int4_matmul_cuda" end

for _, name in ipairs(functions) do
  describe(name .. " refuses a call when", function()
    local list = { unpack(mistakes) }
    if name ~= "int4_matmul_reference" then
      for _, mistake in ipairs(fast_mistakes) do list[#list + 1] = mistake end
    end
    for _, mistake in ipairs(list) do
      it(mistake[1], function()
        local call = valid()
        mistake[2](call)
        local expected = mistake[3]
        if type(expected) == "table" then
          expected = { pattern = "^" .. name .. ": " .. expected.pattern:gsub("^%^", "") }
        else
          expected = name .. ": " .. expected
        end
        assert.fails_with(expected, function()
          local _ = q[name](call.a, call.b, call.scale_a, call.scale_b, call.opts)
        end)
      end)
    end

    it("anything is wrong, and leaves out as it was", function()
      local call = valid()
      local out = q.empty({ M, N, dtype = "float16" }):fill_bytes_(0xa5)
      pcall(q[name], call.a, call.b, call.scale_b, call.scale_a, { out = out })
      pcall(q[name], call.a, call.b, call.scale_a, call.scale_b, { out = out, encoding_a = "?" })
      assert.same_bits(("\165"):rep(2 * M * N), out)
    end)
  end)
end

describe("out beside an operand in one memory", function()
  it("is allowed where no byte is shared", function()
    local call = valid()
    local whole = q.zeros { M, N + K / 8, dtype = "int32" }
    local a = whole:narrow(2, N + 1, K / 8)
    a:copy_(call.a)
    local out = q.wrap(raw(whole), { shape = { M, N }, stride = N + K / 8, dtype = "float32", owner = whole })
    q.int4_matmul_cpu(a, call.b, call.scale_a, call.scale_b, { out = out })
    local opts = { out_dtype = "float32" }
    assert.same_bits(q.int4_matmul_reference(call.a, call.b, call.scale_a, call.scale_b, opts), out)
  end)
end)

describe("options of the CPU", function()
  it("know the instruction sets", function()
    assert.fails_with({ pattern = '^set_cpu_isa: .*"sse9"' }, function() q.set_cpu_isa "sse9" end)
    assert.fails_with({ pattern = "^set_cpu_isa: the name is 5, expected a string" }, function() q.set_cpu_isa(5) end)
  end)
end)

describe("a prepacked weight", function()
  it("is only good as b_packed", function()
    local c = valid()
    local panels = q.prepack(c.b)
    assert.fails_with({ pattern = "^totable: the tensor is prepacked; its elements cannot be read" },
      function() panels:totable() end)
    assert.fails_with({ pattern = "^int4_matmul_cpu: a_packed is prepacked" },
      function() local _ = q.int4_matmul_cpu(panels, c.b, c.scale_a, c.scale_b) end)
    assert.fails_with({ pattern = "^unpack_int32_to_int4: .*prepacked" },
      function() q.unpack_int32_to_int4(panels) end)
  end)

  it("has left its layout and encoding behind", function()
    local c = valid()
    local panels = q.prepack(c.b)
    for _, opts in ipairs { { layout_b = "nk" }, { encoding_b = "offset" } } do
      assert.fails_with({ pattern = "^int4_matmul_cpu: b_packed is prepacked, so .* leave layout_b and encoding_b" },
        function() local _ = q.int4_matmul_cpu(c.a, panels, c.scale_a, c.scale_b, opts) end)
    end
  end)

  it("is made from a matrix of words", function()
    assert.fails_with("prepack: b_packed is [4, 4] int8, expected a matrix of int32, eight int4 to a word: pack it "
      .. "first", function() q.prepack(q.zeros { 4, 4, dtype = "int8" }) end)
    assert.fails_with({ pattern = "^prepack: b_packed is nil, expected a tensor" }, function() q.prepack(nil) end)
    assert.fails_with({ pattern = "^prepack: b_packed was freed" },
      function() q.prepack(freed(q.zeros { 4, 4, dtype = "int32" })) end)
  end)
end)

describe("q.tensor refuses", function()
  it("ragged rows", function()
    assert.fails_with("tensor: row 2 has 1 values but row 1 has 2: the rows are ragged",
      function() q.tensor { { 1, 2 }, { 3 } } end)
    assert.fails_with("tensor: row 3 has 3 values but row 1 has 2: the rows are ragged",
      function() q.tensor { { 1, 2 }, { 3, 4 }, { 5, 6, 7 } } end)
  end)

  it("rows among numbers and numbers among rows", function()
    assert.fails_with("tensor: row 2 is 3, expected a table of 2 numbers", function() q.tensor { { 1, 2 }, 3 } end)
    assert.fails_with({ pattern = "^tensor: the value at index 2 is a table, expected a number" },
      function() q.tensor { 1, { 2 } } end)
  end)

  it("what is not a number", function()
    assert.fails_with('tensor: the value at row 1, column 2 is "2", expected a number',
      function() q.tensor { { 1, "2" } } end)
    assert.fails_with("tensor: the source is nil, expected a table of numbers, a string, C memory or a tensor",
      function() q.tensor(nil) end)
  end)

  it("numbers outside of the dtype", function()
    assert.fails_with("tensor: the value 128 at row 1, column 1 does not fit int8 (whole numbers from -128 to 127)",
      function() q.tensor({ { 128 } }, { dtype = "int8" }) end)
    assert.fails_with({ pattern = "^tensor: the value 2147483648 at index 2 does not fit int32" },
      function() q.tensor({ 0, 2 ^ 31 }, { dtype = "int32" }) end)
    assert.fails_with({ pattern = "^tensor: the value 0%.5 at index 1 does not fit int32" },
      function() q.tensor({ 0.5 }, { dtype = "int32" }) end)
    assert.fails_with({ pattern = "^tensor: the value nan at index 1 does not fit int8" },
      function() q.tensor({ 0 / 0 }, { dtype = "int8" }) end)
  end)

  it("a string or an array of another size", function()
    assert.fails_with("tensor: the string has 5 bytes, expected 8 for 2 values of float32",
      function() q.tensor("12345", { shape = { 2 } }) end)
    assert.fails_with("tensor: the source has 4 bytes, expected 24",
      function() q.tensor(ffi.new "float[1]", { shape = { 2, 3 } }) end)
    assert.fails_with({ pattern = "^tensor: shape is nil, expected a table" }, function() q.tensor "1234" end)
  end)

  it("unknown options, dtypes and devices", function()
    assert.fails_with({ pattern = '^tensor: unknown option "type"; the options are dtype, device, shape' },
      function() q.tensor({ 1 }, { type = "int8" }) end)
    assert.fails_with({ pattern = '^tensor: dtype is "int4", expected "bfloat16", .*"int8"' },
      function() q.tensor({ 1 }, { dtype = "int4" }) end)
    assert.fails_with({ pattern = '^tensor: device is "gpu", expected "cpu", "cuda" or "cuda:0" and so on' },
      function() q.tensor({ 1 }, { device = "gpu" }) end)
  end)
end)

describe("q.empty refuses", function()
  it("shapes that are none", function()
    assert.fails_with("empty: the number of rows is -1, expected a whole number >= 0", function() q.empty { -1, 2 } end)
    assert.fails_with("empty: the number of columns is 1.5, expected a whole number >= 0",
      function() q.empty { 2, 1.5 } end)
    assert.fails_with("empty: the length is nil, expected a whole number >= 0", function() q.empty {} end)
    assert.fails_with({ pattern = "^empty: a tensor has one or two dimensions" }, function() q.empty { 2, 3, 4 } end)
    assert.fails_with({ pattern = "^empty: the shape is 5, expected a table" }, function() q.empty(5) end)
  end)

  it("unknown options", function()
    assert.fails_with({ pattern = '^empty: unknown option "dtyp"; the options are dtype, device' },
      function() q.empty { 2, 2, dtyp = "int8" } end)
    assert.fails_with('zeros: dtype is "double", expected "bfloat16", "float16", "float32", "int32" or "int8"',
      function() q.zeros { 2, 2, dtype = "double" } end)
  end)

  it("more memory than there is", function()
    assert.fails_with({ pattern = "^empty: out of memory on cpu: asked for 4611686018427387904 bytes" },
      function() q.empty { 2 ^ 40, 2 ^ 20, dtype = "float32" } end)
    assert.fails_with({ pattern = "^empty: .* is larger than any memory" },
      function() q.empty { 2 ^ 50, 2 ^ 50, dtype = "float32" } end)
    assert.equal(6, q.ones({ 6, dtype = "int8" }):numel()) -- and goes on
  end)
end)

describe("q.wrap refuses", function()
  it("memory, shapes and strides that do not fit", function()
    local memory = ffi.new "int32_t[8]"
    assert.fails_with("wrap: the memory is a table, expected a C pointer or array",
      function() q.wrap({}, { shape = { 1 } }) end)
    assert.fails_with({ pattern = "^wrap: stride is 2, less than the 4 columns of a row" },
      function() q.wrap(memory, { shape = { 2, 4 }, stride = 2, dtype = "int32" }) end)
    assert.fails_with("wrap: the memory is NULL, expected 32 bytes",
      function() q.wrap(ffi.cast("int32_t *", nil), { shape = { 2, 4 }, dtype = "int32" }) end)
    assert.fails_with({ pattern = "^wrap: data is at .*, which is not aligned for int32" },
      function() q.wrap(ffi.cast("char *", memory) + 1, { shape = { 1 }, dtype = "int32" }) end)
    assert.fails_with({ pattern = "^wrap: shape is nil, expected a table" }, function() q.wrap(memory) end)
  end)
end)

describe("C values given as memory", function()
  local function wrap(value, opts) return function() local _ = q.wrap(value, opts or { shape = { 2 } }) end end
  local function make(value, opts) return function() local _ = q.tensor(value, opts or { shape = { 2 } }) end end
  local struct = ffi.new "struct { float x[4]; }"
  local none = {
    ["5LL"] = { 5LL, "a C value of type int64_t" },
    ["a struct"] = { struct, "a C value of type struct %d+" },
    ["a C type"] = { ffi.typeof "float[4]", "the C type float %[4%]" },
    ["an array of pointers"] = { ffi.new "float *[4]", "a C value of type float %*%[4%]" },
    ["a function"] = { ffi.cast("int (*)(int)", 4096), "a C value of type int %(%*%)%(%)" },
  }
  for name, case in pairs(none) do
    it("are refused where they are no memory: " .. name, function()
      assert.fails_with({ pattern = "^wrap: the memory is " .. case[2] .. ", expected a C pointer or array$" },
        wrap(case[1]))
      assert.fails_with({ pattern = "^tensor: the source is " .. case[2] .. ", expected a C pointer or array$" },
        make(case[1]))
    end)
  end

  it("are refused where they are a tensor", function()
    assert.fails_with("wrap: the memory is a tensor [2] float32, expected a C pointer or array", wrap(q.zeros { 2 }))
    assert.fails_with("wrap: the memory is a freed tensor, expected a C pointer or array", wrap(freed(q.zeros { 2 })))
    assert.fails_with("tensor: shape goes with a string or C memory; a tensor has its own", make(q.zeros { 2 }))
  end)

  it("are refused where they are NULL and bytes are needed", function()
    assert.fails_with("tensor: the source is NULL, expected 8 bytes", make(ffi.cast("float *", nil)))
    assert.fails_with("wrap: the memory is NULL, expected 8 bytes", wrap(ffi.cast("void *", nil)))
    assert.same({}, q.tensor(ffi.cast("float *", nil), { shape = { 0 } }):totable())
  end)

  it("are refused where an array is too small, rows and strides counted", function()
    local memory = ffi.new "float[8]"
    assert.fails_with("wrap: the memory has 32 bytes, expected 1600", wrap(memory, { shape = { 400 } }))
    assert.fails_with("wrap: the memory has 32 bytes, expected 36", wrap(memory, { shape = { 2, 3 }, stride = 6 }))
    assert.equal(5, q.wrap(memory, { shape = { 2, 3 }, stride = 5 }).stride)
    assert.fails_with("wrap: the memory has 16 bytes, expected 20", wrap(struct.x, { shape = { 5 } }))
    assert.fails_with("tensor: the source has 16 bytes, expected 20", make(struct.x, { shape = { 5 } }))
    assert.fails_with("tensor: the source has 12 bytes, expected 20", make(ffi.new("float[?]", 3), { shape = { 5 } }))
  end)

  it("are refused where their elements are of another type", function()
    local elements = { int32 = "int32_t", float16 = "uint16_t", bfloat16 = "uint16_t", float32 = "float" }
    for dtype, expected in pairs(elements) do
      for _, ctype in ipairs { "double[4]", "int64_t[4]", "bool[32]", "double *", "const double *", "float **" } do
        local value = ctype:find "%*" and ffi.cast(ctype, ffi.cast("void *", struct)) or ffi.new(ctype)
        local words = ctype == "float **" and "expected a C pointer or array"
          or ("expected %s for %s; a void * is taken as it is"):format(expected, dtype)
        for name, use in pairs { ["wrap: the memory"] = wrap, ["tensor: the source"] = make } do
          assert.fails_with({ pattern = "^" .. name .. " is a C value of type .-, " .. words:gsub("%*", "%%*") .. "$" },
            use(value, { shape = { 2 }, dtype = dtype }))
        end
      end
    end
    assert.fails_with({ pattern = "^wrap: .*expected float for float32" }, wrap(ffi.new "int32_t[4]"))
    assert.fails_with({ pattern = "^wrap: .*expected int8_t for int8" },
      wrap(ffi.new "int32_t[4]", { shape = { 4 }, dtype = "int8" }))
  end)

  it("are taken where their elements fit, or are bytes", function()
    local fitting = {
      int32 = { "int32_t", "uint32_t" }, int8 = { "int8_t" }, float32 = { "float" },
      float16 = { "int16_t", "uint16_t" }, bfloat16 = { "int16_t", "uint16_t" },
    }
    for dtype, ctypes in pairs(fitting) do
      for _, ctype in ipairs { "char", "uint8_t", "int8_t", unpack(ctypes) } do
        local array = ffi.new(ctype .. "[?]", 8 / ffi.sizeof(ctype))
        local opts = { shape = { 2 }, dtype = dtype }
        for _, memory in ipairs { array, ffi.cast(ctype .. " *", array), ffi.cast("const " .. ctype .. " *", array),
            ffi.cast("void *", array), ffi.cast("const volatile void *", array) } do
          opts.owner = array
          assert.same({ 0, 0 }, q.wrap(memory, opts):totable())
          assert.same({ 0, 0 }, q.tensor(memory, { shape = { 2 }, dtype = dtype }):totable())
        end
      end
    end
    local rows = ffi.new("float[2][3]", { { 1, 2, 3 }, { 4, 5, 6 } })
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, q.tensor(rows, { shape = { 2, 3 } }):totable())
    assert.same({ 4, 5, 6 }, q.wrap(rows[1], { shape = { 3 }, owner = rows }):totable())
  end)
end)

describe("a stream option", function()
  local stream_of = function(value)
    return function() q.zeros({ 2 }):fill_bytes_(0, value) end
  end

  it("is a handle, and nothing else that has an address", function()
    for name, value in pairs {
      ["a C value of type int64_t"] = 5LL,
      ["a tensor [2] float32"] = q.zeros { 2 },
      ["a C value of type void *[1]"] = ffi.new "void *[1]",
      ["a C value of type float *"] = ffi.cast("float *", 4096),
      ["the C type void *"] = ffi.typeof "void *",
      ["a userdata"] = io.stdout,
    } do
      assert.fails_with("fill_bytes_: stream is " .. name
        .. ", expected one from int4mm.stream or a cudaStream_t as C pointer or light userdata", stream_of(value))
    end
    stream_of(ffi.cast("void *", nil))() -- the default stream
    stream_of(ffi.new "struct { void *stream; }".stream)()
  end)
end)

describe("an operator on a tensor", function()
  it("is refused with what to use instead", function()
    local t = q.zeros { 2, 3 }
    local numbers = "; totable gives the elements as numbers"
    local cases = {
      ["operator +; int4mm.add adds tensors and numbers"] =
        { function() return t + 1 end, function() return 1 + t end },
      ["operator -" .. numbers] = { function() return t - t end, function() return -t end },
      ["operator /" .. numbers] = { function() return t / 2 end },
      ["operator %" .. numbers] = { function() return t % 2 end },
      ["operator ^" .. numbers] = { function() return t ^ 2 end },
      ["operator *; int4mm.mul multiplies element by element, int4_matmul packed matrices"] =
        { function() return t * t end },
      ["operator #; numel counts the elements, size gives the extents"] = { function() return #t end },
      ["operator ..; tostring gives a tensor as text"] =
        { function() return t .. "" end, function() return "" .. t end },
      ["operator <; equal compares two tensors"] = { function() return t < t end, function() return t > 1 end },
      ["operator <=; equal compares two tensors"] = { function() return t <= t end },
      ["iteration by pairs" .. numbers] = { function() local _ = pairs(t) end },
      ["iteration by ipairs" .. numbers] = { function() local _ = ipairs(t) end },
      ["call; get(i, j) reads an element"] = { function() local _ = t(1, 2) end },
    }
    for message, uses in pairs(cases) do
      for _, use in ipairs(uses) do assert.fails_with("tensor: there is no " .. message, use) end
    end
    assert.fails_with("tensor: there is no field or method 1; get(i, j) reads an element",
      function() return t[1] end)
  end)
end)

describe("a message starts with the function that was called", function()
  it("once, and with no other", function()
    local opts = { shape = { 2 ^ 53, 2 ^ 53 } }
    local cases = {
      ["^ones: the shape is 5, expected a table"] = function() q.ones(5) end,
      ["^ones: dtype is \"fp16\""] = function() q.ones { 2, dtype = "fp16" } end,
      ["^full: the shape is 5, expected a table"] = function() q.full(5, 1) end,
      ["^full: the value 300 does not fit int8 %("] = function() q.full({ 2, dtype = "int8" }, 300) end,
      ["^full: the value is nil, expected a number$"] = function() q.full { 2 } end,
      ["^fill_: the value 70000 is too large for float16$"] =
        function() q.zeros({ 2, dtype = "float16" }):fill_(70000) end,
      ["^contiguous: the tensor was freed$"] = function() freed(q.zeros { 2 }):contiguous() end,
      ["^tensor: dtype is \"int4\""] = function() q.tensor(q.zeros { 2 }, { dtype = "int4" }) end,
      ["^tensor: dst is int8 but src is float32: "] = function() q.tensor(q.zeros { 2 }, { dtype = "int8" }) end,
      ["^set_num_threads: threads is 2147483647, expected 1 to"] = function() q.set_num_threads(2 ^ 31 - 1) end,
      ["^generate_test_data: out of memory on cpu"] = function() q.generate_test_data(2 ^ 40, 2 ^ 20, 1) end,
      ["^generate_test_data: .* larger than any memory"] = function() q.generate_test_data(2 ^ 50, 2 ^ 50, 1) end,
      ["^tensor: the string has 4 bytes, expected 3245185536584267%d+ for 81129638414606%d+ values of float32$"] =
        function() q.tensor("1234", opts) end,
      ["^set: a vector has one index, two were given$"] = function() q.zeros({ 3 }):set(1, 2, 3) end,
    }
    for pattern, use in pairs(cases) do assert.fails_with({ pattern = pattern }, use) end
  end)

  it("and gives numbers with as few digits as tell them apart", function()
    local t = q.zeros { 2, dtype = "int8" }
    for _, number in ipairs { "0.1", "1.5", "1e+300", "-0.30000000000000004", "9007199254740992" } do
      assert.fails_with({ pattern = "^set: the value " .. number:gsub("[%-+.]", "%%%0") .. " at index 1 does not" },
        function() t:set(1, tonumber(number)) end)
    end
  end)

  it("and takes false for a value, not for nothing", function()
    for pattern, use in pairs {
      ["^set_num_threads: threads is false"] = function() q.set_num_threads(false) end,
      ["^random: seed is false"] = function() q.random(q.zeros { 2 }, { seed = false }) end,
      ["^random: low is false"] = function() q.random(q.zeros { 2 }, { low = false }) end,
      ["^random: sequence is false"] = function() q.random(q.zeros { 2 }, { sequence = false }) end,
      ["^wrap: stride is false"] =
        function() q.wrap(ffi.new "float[2]", { shape = { 2 }, stride = false }) end,
      ["^tensor: device is false"] = function() q.tensor({ 1 }, { device = false }) end,
      ["^generate_test_data: seed is false"] = function() q.generate_test_data(1, 8, 1, { seed = false }) end,
    } do
      assert.fails_with({ pattern = pattern }, use)
    end
  end)
end)

describe("packing and quantising refuse", function()
  local words = function() return q.zeros { 2, 2, dtype = "int32" } end
  local bytes = function() return q.zeros { 2, 16, dtype = "int8" } end
  local floats = function() return q.zeros { 2, 16 } end

  it("another dtype", function()
    assert.fails_with({ pattern = "^pack_int4_to_int32: .* is %[2, 16%] float32, expected .*int8 or int32" },
      function() q.pack_int4_to_int32(floats()) end)
    assert.fails_with({ pattern = "^unpack_int32_to_int4: .* is %[2, 16%] int8, expected .*int32" },
      function() q.unpack_int32_to_int4(bytes()) end)
    assert.fails_with({ pattern = "^quantize: .* is %[2, 16%] int8, expected .*float32, float16 or bfloat16" },
      function() q.quantize(bytes()) end)
    assert.fails_with({ pattern = "^dequantize: .* is %[2, 16%] float32, expected .*int32" },
      function() q.dequantize(floats(), q.zeros { 2 }) end)
  end)

  it("another rank", function()
    assert.fails_with({ pattern = "^pack_int4_to_int32: .* is %[4%] int8, expected a matrix" },
      function() q.pack_int4_to_int32(q.zeros { 4, dtype = "int8" }) end)
    assert.fails_with({ pattern = "^unpack_int32_to_int4: .* is %[4%] int32, expected a matrix" },
      function() q.unpack_int32_to_int4(q.zeros { 4, dtype = "int32" }) end)
    assert.fails_with({ pattern = "^quantize: .* is %[4%] float32, expected a matrix" },
      function() q.quantize(q.zeros { 4 }) end)
  end)

  it("what is no tensor, or was freed", function()
    for _, name in ipairs { "pack_int4_to_int32", "unpack_int32_to_int4", "quantize", "dequantize" } do
      assert.fails_with({ pattern = "^" .. name .. ": .* is nil, expected a tensor" }, function() q[name](nil) end)
      assert.fails_with({ pattern = "^" .. name .. ": .* is a table, expected a tensor" }, function() q[name] {} end)
      assert.fails_with({ pattern = "^" .. name .. ": .* was freed" }, function() q[name](freed(words())) end)
    end
  end)

  it("options that are none", function()
    assert.fails_with("pack_int4_to_int32: dim is 3, expected 1 (rows) or 2 (columns)",
      function() q.pack_int4_to_int32(bytes(), { dim = 3 }) end)
    assert.fails_with("unpack_int32_to_int4: dim is 0, expected 1 (rows) or 2 (columns)",
      function() q.unpack_int32_to_int4(words(), { dim = 0 }) end)
    assert.fails_with('quantize: encoding is "gptq", expected "offset" or "twos_complement"',
      function() q.quantize(floats(), { encoding = "gptq" }) end)
    assert.fails_with({ pattern = '^quantize: unknown option "axis"; the options are ' },
      function() q.quantize(floats(), { axis = 1 }) end)
    assert.fails_with({ pattern = '^dequantize: dtype is "int8", expected ' },
      function() q.dequantize(words(), q.zeros { 2 }, { dtype = "int8" }) end)
    assert.fails_with({ pattern = '^unpack_int32_to_int4: dtype is "float16", expected ' },
      function() q.unpack_int32_to_int4(words(), { dtype = "float16" }) end)
  end)

  it("scales that do not fit", function()
    assert.fails_with({ pattern = "^dequantize: scales is %[3%] float32, expected %[2%] float32: one per row" },
      function() q.dequantize(words(), q.zeros { 3 }) end)
    assert.fails_with({ pattern = "^dequantize: scales is %[2%] float16, expected %[2%] float32: one per row" },
      function() q.dequantize(words(), q.zeros { 2, dtype = "float16" }) end)
    assert.fails_with({ pattern = "^dequantize: scales is %[3%] float32, expected %[2%] float32: one per column" },
      function() q.dequantize(words(), q.zeros { 3 }, { dim = 1 }) end)
  end)

  it("an out of another shape", function()
    assert.fails_with({ pattern = "^pack_int4_to_int32: .*%[2, 3%] int32.*%[2, 2%]" },
      function() q.pack_int4_to_int32(bytes(), { out = q.zeros { 2, 3, dtype = "int32" } }) end)
  end)
end)

describe("generate_test_data and random refuse", function()
  it("sizes that are none", function()
    assert.fails_with({ pattern = "^generate_test_data: M is %-1, expected a whole number" },
      function() q.generate_test_data(-1, 8, 8) end)
    assert.fails_with({ pattern = "^generate_test_data: K is 12, expected a multiple of 8" },
      function() q.generate_test_data(4, 12, 8) end)
    assert.fails_with({ pattern = "^generate_test_data: N is nil, expected a whole number" },
      function() q.generate_test_data(4, 8) end)
    assert.fails_with({ pattern = "^generate_test_data: .*seed.* is 0%.5" },
      function() q.generate_test_data(4, 8, 4, { seed = 0.5 }) end)
    assert.fails_with({ pattern = '^generate_test_data: unknown option "sed"' },
      function() q.generate_test_data(4, 8, 4, { sed = 1 }) end)
  end)

  it("dtypes and ranges that are none", function()
    assert.fails_with({ pattern = "^random: .*int8, expected int32 or float32" },
      function() q.random(q.empty { 4, dtype = "int8" }) end)
    assert.fails_with({ pattern = "^random: low is 1 and high 0, expected finite numbers in order" },
      function() q.random(q.empty { 4 }, { low = 1, high = 0 }) end)
    assert.fails_with({ pattern = "^random: low is .* and high inf" },
      function() q.random(q.empty { 4 }, { high = 1 / 0 }) end)
    assert.fails_with({ pattern = "^random: sequence is %-1, expected a whole number from 0 to 4294967295" },
      function() q.random(q.empty { 4 }, { sequence = -1 }) end)
  end)
end)

describe("the C core", function()
  local lib = require("int4mm.lib").lib

  it("has words for every status", function()
    local seen = {}
    for status = 0, 7 do
      local text = ffi.string(lib.int4mm_strerror(status))
      assert(#text > 0 and not seen[text], ("status %d: %q"):format(status, text))
      seen[text] = true
    end
    assert.equal("out of memory", ffi.string(lib.int4mm_strerror(3)))
    assert.equal("unknown status", ffi.string(lib.int4mm_strerror(99)))
    assert.equal("unknown status", ffi.string(lib.int4mm_strerror(-1)))
  end)

  it("refuses NULL and wild numbers instead of crashing", function()
    local t, zeroed = ffi.new "int4mm_tensor", ffi.new "int4mm_tensor"
    assert.equal(1, lib.int4mm_matmul(nil))
    assert.equal(1, lib.int4mm_matmul(ffi.new "int4mm_matmul_args"))
    assert.equal(1, lib.int4mm_tensor_alloc(nil, 2, 1, 1, 0, -1))
    assert.equal(1, lib.int4mm_tensor_alloc(t, 3, 1, 1, 0, -1))
    assert.equal(1, lib.int4mm_tensor_alloc(t, 2, 1, 1, 17, -1))
    assert.equal(1, lib.int4mm_tensor_alloc(t, 2, 1, 1, 0, -2))
    assert.equal(1, lib.int4mm_tensor_alloc(t, 2, 1, 1, 0, 1000))
    assert.equal(1, lib.int4mm_tensor_copy(nil, nil, nil))
    assert.equal(1, lib.int4mm_tensor_copy(t, zeroed, nil))
    assert.equal(1, lib.int4mm_pack(nil, nil, 0, 0, nil))
    assert.equal(1, lib.int4mm_quantize(nil))
    assert.equal(1, lib.int4mm_quantize(ffi.new("int4mm_quantize_args")))
    assert.equal(1, lib.int4mm_rotate(nil, nil, 0, 4, nil))
    assert.equal(1, lib.int4mm_random(nil, 0, 0, 0, 1, nil))
    assert.equal(1, lib.int4mm_prepack(nil, nil, 0, 0))
    assert.equal(1, lib.int4mm_choose_cuda(nil, nil, nil))
    assert.is_true(lib.int4mm_cuda_kernel_at(-1) == nil)
    assert.is_true(lib.int4mm_cuda_kernel_at(1000) == nil)
    assert.is_true(lib.int4mm_cpu_isa_at(-1) == nil)
    assert.is_true(lib.int4mm_cpu_isa_at(1000) == nil)
    assert.equal(0, tonumber(lib.int4mm_allocated(1000)))
    lib.int4mm_tensor_release(zeroed)
    lib.int4mm_tensor_release(zeroed)
    lib.int4mm_tensor_release(nil)
  end)

  it("refuses to allocate into a tensor that holds one", function()
    local t = ffi.new "int4mm_tensor"
    assert.equal(0, lib.int4mm_tensor_alloc(t, 2, 3, 3, 0, -1))
    assert.equal(1, lib.int4mm_tensor_alloc(t, 2, 3, 3, 0, -1))
    assert.matches("already holds a tensor", ffi.string(lib.int4mm_last_error()), 1, true)
    lib.int4mm_tensor_release(t)
    assert.equal(0, t.rank)
    assert.is_true(t.data == nil)
  end)

  it("keeps the sentence of the last failure through later successes", function()
    assert.equal(1, lib.int4mm_set_num_threads(-5))
    local before = ffi.string(lib.int4mm_last_error())
    assert.matches("-5", before, 1, true)
    assert.equal(0, lib.int4mm_set_num_threads(0))
    assert.equal(before, ffi.string(lib.int4mm_last_error()))
  end)
end)

describe("conversions", function()
  it("refuse an int32 that int8 does not hold, and write nothing", function()
    local wide = q.zeros { 4, 6, dtype = "int32" }
    wide:set(3, 2, 300)
    wide:set(4, 1, -129)
    local narrow = q.full({ 4, 6, dtype = "int8" }, 5)
    local sentence = "src holds 300 at row 3, column 2: int8 holds -128 to 127"
    assert.fails_with("copy_: " .. sentence, function() narrow:copy_(wide) end)
    assert.fails_with("to: " .. sentence, function() local _ = wide:to "int8" end)
    assert.same_bits(("\5"):rep(24), narrow)
    assert.fails_with("to: src holds -200 at index 2: int8 holds -128 to 127", function()
      local _ = q.tensor({ 127, -200 }, { dtype = "int32" }):to "int8"
    end)
    assert.same({ { -128, 127 } }, q.tensor({ { -128, 127 } }, { dtype = "int32" }):to("int8"):totable())
  end)

  it("give one NaN from a float type to another, and keep bits within one", function()
    local halves = helper.from_bytes(helper.from_hex "01fc007e017dfeff", "float16", 1, 4)
    local bfloats = helper.from_bytes(helper.from_hex "81ffc07f817ffeff", "bfloat16", 1, 4)
    for _, isa in ipairs(q.cpu_isas()) do
      q.set_cpu_isa(isa)
      for _, t in ipairs { halves, bfloats } do
        assert.equal(("ffffff7f"):rep(4), helper.to_hex(helper.bytes(t:to "float32")), isa)
        assert.equal(("ff7f"):rep(4), helper.to_hex(helper.bytes(t:to(t == halves and "bfloat16" or "float16"))), isa)
        assert.same_bits(t, t:clone(), isa)
      end
      local floats = helper.from_bytes(helper.from_hex "0100807f2301c0ff", "float32", 1, 2)
      assert.same_bits(floats, q.zeros({ 1, 2 }):copy_(floats), isa)
    end
    q.set_cpu_isa(nil)
  end)
end)

describe("messages", function()
  it("have a decimal point whatever the locale", function()
    local folder = os.tmpname()
    os.remove(folder)
    local text, status = helper.shell("mkdir " .. folder .. " && localedef -i de_DE -f UTF-8 " .. folder .. "/comma")
    if status ~= 0 then return pending("no locale with a comma can be made here: " .. text) end
    local output = helper.luajit([[
      local ffi = require "ffi"
      ffi.cdef "char *setlocale(int, const char *); int snprintf(char *, size_t, const char *, ...);"
      print(ffi.C.setlocale(1, "comma") ~= nil) -- LC_NUMERIC
      local text = ffi.new "char[9]"
      ffi.C.snprintf(text, 9, "%.1f", 1.5)
      print(ffi.string(text))
      local q = require "int4mm"
      print(select(2, pcall(q.random, q.zeros { 3 }, { low = 1.5, high = 0.25 })))
      ffi.C.snprintf(text, 9, "%.1f", 1.5)
      print(ffi.string(text))
    ]], { LOCPATH = folder })
    helper.shell("rm -r " .. folder)
    assert.matches("^true\n1,5\n.*random: low is 1%.5 and high 0%.25, expected .*\n1,5\n$", output)
  end)

  it("of C name no function: Lua does", function()
    assert.fails_with({ pattern = "^set_num_threads: threads is " }, function() q.set_num_threads(100000) end)
    assert.equal(1, require("int4mm.lib").lib.int4mm_set_num_threads(-5))
    assert.matches("^threads is %-5, expected 1 to %d+", ffi.string(require("int4mm.lib").lib.int4mm_last_error()))
  end)

  it("stand at the caller's line even from compiled loops", function()
    local ok, messages = true, {}
    local t = helper.from_bytes(("\0"):rep(16), "int32", 2, 2)
    local function get(i) return t:get(i, 1) + 0 end
    for i = 1, 300 do
      local fine, message = pcall(get, i > 250 and 3 or 1)
      ok = ok and (fine or i > 250)
      if not fine then messages[message] = true end
    end
    assert.is_true(ok)
    local only = next(messages)
    assert.is_nil(next(messages, only))
    assert.matches("errors_spec%.lua:%d+: get: the row is 3", only)
  end)
end)
