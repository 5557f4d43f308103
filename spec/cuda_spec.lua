--- Tensors, copies, packing, quantising and test data on a GPU: the same bits as on the CPU. Skipped without one.

local ffi = require "ffi"

local cases = require "spec.cases"
local driver = require "spec.cuda_driver"
local helper = require "spec.helper"
local q = require "int4mm"

local DTYPES = { "int32", "int8", "float16", "bfloat16", "float32" }
local MIB = 2 ^ 20

local on_gpu = helper.on_gpu

--- A matrix of random bytes inside a larger one on the CPU, and the same on the GPU.
local function pair(seed, dtype, rows, cols, guard)
  local size = helper.ELEMENT_BYTES[dtype]
  local whole = q.empty { rows + 2 * guard, cols + 2 * guard, dtype = dtype }
  local n = whole:numel() * size
  local buffer = ffi.new("uint8_t[?]", n + 4)
  cases.random(seed):fill(buffer, n + 4 - n % 4)
  ffi.copy(whole:data(), buffer, n)
  local function inner(t) return t:narrow(1, guard + 1, rows):narrow(2, guard + 1, cols) end
  return inner(whole), inner(whole:to "cuda"), whole
end

--- Quantises a matrix and its copy on the GPU, whose words and scales have to be the same bits.
local function check_quantised(source, source_gpu, opts, name)
  local packed, scales = q.quantize(source, opts)
  local packed_gpu, scales_gpu = q.quantize(source_gpu, opts)
  assert.same_bits(scales, scales_gpu, name .. " scales")
  assert.same_bits(packed, packed_gpu, name .. " packed")
end

describe("the GPU", function()
  on_gpu("has a name, an architecture and memory", function()
    local info = q.device_info()
    assert.equal("cuda:0", info.device)
    assert(#info.name > 0 and info.arch >= 75 and info.sms > 0)
    assert(info.free_memory > 0 and info.free_memory <= info.total_memory)
    assert.matches("^%d+%.%d$", info.driver_version)
    assert.matches("^%d+%.%d$", info.runtime_version)
  end)

  on_gpu("with a number that does not exist is an error that says so", function()
    assert.fails_with({ pattern = "^device_info: .*63" }, function() q.device_info "cuda:63" end)
    assert.fails_with({ pattern = "^empty: .*63" }, function() q.empty { 1, device = "cuda:63" } end)
  end)
end)

describe("a tensor on the GPU", function()
  for _, dtype in ipairs(DTYPES) do
    on_gpu("goes there and back: " .. dtype, function()
      for _, shape in ipairs { { 1, 1, 0 }, { 7, 5, 0 }, { 7, 5, 3 }, { 64, 129, 1 }, { 0, 4, 0 }, { 4, 0, 0 } } do
        local here, there = pair(3, dtype, unpack(shape))
        assert.equal("cuda:0", there.device)
        assert.equal(dtype, there.dtype)
        assert.same_bits(here, there:to "cpu")
        assert.same_bits(here, here:clone():to("cuda:0"):clone():to "cpu")
      end
    end)
  end

  on_gpu("vectors too", function()
    local v = q.tensor { 1, 2, 3, 4 }
    assert.same({ 2, 3 }, v:to("cuda"):narrow(1, 2, 2):totable())
  end)

  on_gpu("is made, filled and read in place", function()
    local t = q.zeros { 3, 4, dtype = "int32", device = "cuda" }
    t:narrow(1, 2, 1):narrow(2, 2, 2):fill_bytes_(255)
    assert.same({ { 0, 0, 0, 0 }, { 0, -1, -1, 0 }, { 0, 0, 0, 0 } }, t:totable())
    t:set(3, 4, 77)
    assert.equal(77, t:get(3, 4))
    assert.equal(-1, t:get(2, 3))
    assert.same({ { 2.5, 2.5 } }, q.full({ 1, 2, dtype = "float16", device = "cuda" }, 2.5):totable())
    assert.matches("device=cuda:0", tostring(t), 1, true)
    assert.matches("77", tostring(t), 1, true)
    assert.is_true(t:equal(t:to "cpu"))
  end)

  on_gpu("copies between strides on the device, leaving the rest", function()
    local source, source_gpu = pair(5, "int32", 9, 13, 2)
    local target, _, whole = pair(6, "int32", 9, 13, 3)
    local whole_gpu = whole:to "cuda"
    target:copy_(source)
    whole_gpu:narrow(1, 4, 9):narrow(2, 4, 13):copy_(source_gpu)
    assert.same_bits(whole, whole_gpu)
  end)

  on_gpu("converts through the CPU", function()
    local t = q.tensor({ { 1, -2 } }, { dtype = "int8", device = "cuda" })
    assert.same({ { 1, -2 } }, t:to("float32"):totable())
    assert.equal("cuda:0", t:to("float32", "cuda").device)
    assert.fails_with({ pattern = "^to: .*a float does not become an integer" }, function()
      local _ = q.ones({ 2, device = "cuda" }):to "int8"
    end)
  end)

  on_gpu("converts floats to others there, with the CPU's bits, in a graph too", function()
    for _, from in ipairs { "float32", "float16", "bfloat16" } do
      for _, to in ipairs { "float32", "float16", "bfloat16" } do
        -- all patterns of 16 bits, or as many of float32, as a tensor whose rows lie apart
        local bits = ffi.new(from == "float32" and "uint32_t[65536]" or "uint16_t[65536]")
        for i = 0, 65535 do bits[i] = from == "float32" and i * 65549 or i end
        local all = q.tensor(ffi.cast("void *", bits), { shape = { 256, 256 }, dtype = from })
        local whole = q.zeros { 257, 300, dtype = from }
        whole:narrow(1, 2, 256):narrow(2, 5, 256):copy_(all)
        local there = whole:to("cuda"):narrow(1, 2, 256):narrow(2, 5, 256)
        assert.same_bits(all:to(to), there:to(to), from .. " to " .. to)
        local row = all:narrow(1, 7, 1):view(256)
        assert.same_bits(row:to(to), row:to("cuda"):to(to))
        local graph, y = q.graph(function() return there:to(to) end)
        graph:launch()
        assert.same_bits(all:to(to), y)
      end
    end
    assert.same({ 0, 3 }, q.zeros({ 0, 3, device = "cuda" }):to("float16").shape)
  end)

  on_gpu("refuses a copy that would convert there", function()
    local t = q.zeros { 2, 2, dtype = "float16", device = "cuda" }
    assert.fails_with({ pattern = "^copy_: .*float32" },
      function() t:copy_(q.zeros { 2, 2, dtype = "float32", device = "cuda" }) end)
  end)

  on_gpu("runs out of memory with a sentence, and goes on", function()
    assert.fails_with({ pattern = "^empty: out of memory on cuda:0: asked for %d+ bytes, %d+ are in use" },
      function() q.empty { 2 ^ 42, dtype = "int8", device = "cuda" } end)
    assert.equal(6, q.zeros({ 6, dtype = "int8", device = "cuda" }):numel())
  end)

  on_gpu("is counted while it lives", function()
    local t = q.empty { 1024, 1024, dtype = "int8", device = "cuda" }
    local before = q.memory()["cuda:0"].allocated
    t:free()
    assert.equal(MIB, before - q.memory()["cuda:0"].allocated)
  end)
end)

describe("on the GPU as on the CPU:", function()
  for _, dim in ipairs { 1, 2 } do
    for _, encoding in ipairs { "twos_complement", "offset" } do
      on_gpu(("packing and unpacking along dim %d, %s"):format(dim, encoding), function()
        local r = cases.random(dim)
        for _, shape in ipairs { { 1, 1 }, { 8, 8 }, { 5, 13 }, { 13, 5 }, { 33, 200 }, { 200, 33 }, { 257, 1031 } } do
          local whole = q.empty { shape[1] + 2, shape[2] + 3, dtype = "int8" }
          for i = 0, whole:numel() - 1 do whole:data()[i] = r:range(-8, 7) end
          local function inner(t) return t:narrow(1, 2, shape[1]):narrow(2, 3, shape[2]) end
          local opts = { dim = dim, encoding = encoding }
          local packed = q.pack_int4_to_int32(inner(whole), opts)
          assert.same_bits(packed, q.pack_int4_to_int32(inner(whole:to "cuda"), opts))
          assert.same_bits(packed, q.pack_int4_to_int32(inner(whole:to("int32"):to "cuda"), opts))
          for _, dtype in ipairs { "int8", "int32" } do
            opts.dtype, opts.length = dtype, shape[dim]
            assert.same_bits(inner(whole):to(dtype), q.unpack_int32_to_int4(packed:to "cuda", opts))
          end
        end
      end)
    end

    for _, dtype in ipairs { "float32", "float16", "bfloat16" } do
      on_gpu(("quantising and dequantising %s along dim %d"):format(dtype, dim), function()
        for _, shape in ipairs { { 1, 1 }, { 5, 13 }, { 13, 5 }, { 70, 300 }, { 300, 70 }, { 999, 17 }, { 17, 999 } } do
          local source = q.random(q.empty(shape), { low = -3, high = 5, seed = shape[1] })
          for i = 1, math.min(shape[1], shape[2]) do -- from the subnormal to the large
            source:set(i, i, (i % 5 - 2) * (dtype == "float16" and 2 ^ (i % 38 - 24) or 2 ^ (11 * (i % 25) - 149)))
          end
          source:narrow(dim, 1, 1):fill_bytes_(0)
          source = source:to(dtype)
          local opts = { dim = dim, encoding = "offset" }
          local packed, scales = q.quantize(source, opts)
          local packed_gpu, scales_gpu = q.quantize(source:to "cuda", opts)
          local name = ("[%d, %d]"):format(shape[1], shape[2])
          assert.same_bits(scales, scales_gpu, name .. " scales")
          assert.same_bits(packed, packed_gpu, name .. " packed")
          opts.dtype, opts.length = dtype, shape[dim]
          assert.same_bits(q.dequantize(packed, scales, opts), q.dequantize(packed_gpu, scales_gpu, opts), name)
        end
      end)
    end
  end

  --- Halves, which are ties of many scales, and in the second row or column what overflows when it is rotated.
  local function halves(rows, columns, dtype, dim)
    local source = q.random(q.empty { rows, columns }, { low = -14, high = 15, seed = rows * columns })
    local x = source:data()
    for i = 0, rows * columns - 1 do x[i] = math.floor(x[i]) / 2 end
    if dtype ~= "float16" and math.min(rows, columns) > 1 then
      local line = source:narrow(3 - dim, 2, 1)
      for i = 1, math.min(line.shape[dim], 9) do
        if dim == 2 then line:set(1, i, 2 ^ 126) else line:set(i, 1, 2 ^ 126) end
      end
    end
    return source:to(dtype)
  end

  on_gpu("quantising ten thousand random rows, with every block, few rows at a time and many", function()
    for _, dtype in ipairs { "float32", "float16", "bfloat16" } do
      local source = q.random(q.empty { 10000, 1024 }, { seed = 9, low = -3, high = 3 }):to(dtype)
      local there = source:to "cuda:0"
      for _, block in ipairs { false, 16, 64, 256, 512, 1024 } do
        local opts = { rotate = block or nil }
        local words, scales = q.quantize(source, opts)
        local name = ("%s, block %s"):format(dtype, tostring(block))
        local on_gpu_words, on_gpu_scales = q.quantize(there, opts)
        assert.same_bits(scales, on_gpu_scales, name)
        assert.same_bits(words, on_gpu_words, name)
        local few, few_scales = q.quantize(there:narrow(1, 101, 300), opts)
        assert.same_bits(scales:narrow(1, 101, 300), few_scales, name .. ", few rows")
        assert.same_bits(words:narrow(1, 101, 300), few, name .. ", few rows")
      end
    end
  end)

  on_gpu("quantising and rotating many rows, which CTAs have one after another, and few, in clusters", function()
    for _, dtype in ipairs { "float32", "bfloat16" } do
      -- a warp, part of its values, several warps, as many as a CTA may have, rows that start off 16 bytes
      for _, case in ipairs { { 6200, 1024, 256 }, { 9000, 520, 8 }, { 1400, 4104, 8 }, { 2100, 4096, 64 },
        { 600, 14336, 1024 }, { 530, 29696, 512 }, { 2000, 2052, 4 }, { 1, 14336, 256 }, { 3, 16380, 4 },
        { 16, 8200, 8 }, { 33, 6144, 512 } } do
        local rows, columns, block = case[1], case[2], case[3]
        local source = halves(rows, columns, dtype, 2)
        local source_gpu = source:to "cuda"
        local name = ("%s [%d, %d], block %d"):format(dtype, rows, columns, block)
        assert.same_bits(q.rotate(source, { block = block }), q.rotate(source_gpu, { block = block }), name)
        for _, out in ipairs { "int4", "int8" } do
          for _, rotate in ipairs { false, block } do
            local opts = { dtype = out, clip = rotate and 0.7 or 1, rotate = rotate or nil }
            check_quantised(source, source_gpu, opts, name .. " " .. out)
          end
        end
      end
    end
  end)

  -- blocks of 256 to int4 and none to int8, of whole chunks, have code of their own; one column fewer or more has not
  for _, dtype in ipairs { "float16", "bfloat16" } do
    on_gpu("quantising rows of a usual kind, " .. dtype, function()
      local r = cases.random(21)
      local function check(source, name)
        local source_gpu = source:clone():to "cuda"
        for _, opts in ipairs { { rotate = 256 }, { rotate = 256, clip = 0.7, encoding = "offset" },
          { dtype = "int8" }, { dtype = "int8", clip = 0.3 } } do
          if not opts.rotate or source.shape[2] % opts.rotate == 0 then
            check_quantised(source, source_gpu, opts, name)
          end
        end
      end
      for _, shape in ipairs { { 1, 512 }, { 2, 1536 }, { 3, 1280 }, { 1, 4096 }, { 1, 17408 } } do
        for _, kind in ipairs(cases.KIND_NAMES) do
          local rows, columns = shape[1], shape[2]
          check(cases.draw(r, rows, columns, dtype, kind), ("%s [%d, %d]"):format(kind, rows, columns))
        end
      end
      for _, shape in ipairs { { 520, 4096 }, { 600, 4095 }, { 6200, 512 } } do
        check(halves(shape[1], shape[2], dtype, 2), ("[%d, %d]"):format(unpack(shape)))
      end
    end)
  end

  on_gpu("quantising rows to places where sixteen values are aligned, and where they are not", function()
    for _, columns in ipairs { 15, 16, 24, 40, 48, 1040, 4096 } do
      local source = halves(33, columns, "bfloat16", 2)
      for _, dtype in ipairs { "int4", "int8" } do
        local int8 = dtype == "int8"
        local width = int8 and columns or math.ceil(columns / 8)
        for _, place in ipairs { { 1, 0 }, { 1, 1 }, { 2, 1 }, { 3, 2 }, { 5, 4 }, { 9, 8 }, { 17, 16 } } do
          for _, rotate in ipairs { false, columns % 16 == 0 and 16 or nil } do
            local function quantized(x)
              local whole = q.empty { 33, width + place[2], dtype = int8 and "int8" or "int32", device = x.device }
              whole:fill_bytes_(0x5a)
              q.quantize(x, { dtype = dtype, rotate = rotate or nil, out = whole:narrow(2, place[1], width) })
              return whole
            end
            assert.same_bits(quantized(source), quantized(source:to "cuda"),
              ("%s, %d values from %d of %d on, rotate %s"):format(dtype, columns, place[1], width + place[2], rotate))
          end
        end
      end
    end
  end)

  for _, dtype in ipairs { "float32", "float16", "bfloat16" } do
    for dim = 1, 2 do
      on_gpu(("rotating, and quantising with rotation and clip, %s along dim %d"):format(dtype, dim), function()
        -- block, values along dim, rows or columns: parts of a warp's 1024, of a tile, and rows too long for a CTA
        for _, case in ipairs { { 4, 20, 3 }, { 8, 1000, 7 }, { 16, 1040, 9 }, { 32, 2080, 70 }, { 64, 192, 33 },
          { 128, 4224, 5 }, { 256, 1280, 65 }, { 512, 1536, 40 }, { 1024, 3072, 12 }, { 256, 33024, 2 } } do
          local block, rows, columns = case[1], case[2], case[3]
          if dim == 2 then rows, columns = columns, rows end
          local source = halves(rows, columns, dtype, dim)
          local source_gpu = source:to "cuda"
          local name = ("block %d of [%d, %d]"):format(block, rows, columns)
          assert.same_bits(q.rotate(source, { block = block, dim = dim }),
            q.rotate(source_gpu, { block = block, dim = dim }), name)
          for _, clip in ipairs { 1, 0.7, "mse" } do
            for _, out in ipairs { "int4", "int8" } do
              for _, rotate in ipairs { false, block } do
                local opts = { dim = dim, dtype = out, clip = clip, rotate = rotate or nil }
                check_quantised(source, source_gpu, opts, name)
              end
            end
          end
        end
      end)
    end
  end

  for _, dtype in ipairs { "float32", "float16", "bfloat16" } do
    on_gpu(("quantising columns of %s that clusters have whole"):format(dtype), function()
      -- rows that a cluster holds and more, that are no multiple of a tile's; columns in eights, in fours, and odd
      -- ones, and more than all clusters hold, which then have one group after another
      for _, case in ipairs { { 4352, 1730, 256 }, { 4608, 1732, 512 }, { 4096, 72, 256 }, { 2304, 41, 128 },
        { 4096, 66, 1024 }, { 520, 33, 4 }, { 1000, 129, 8 }, { 9, 8, 0 }, { 9, 30001, 0 }, { 2080, 7000, 0 } } do
        local rows, columns, block = case[1], case[2], case[3]
        local source = halves(rows, columns, dtype, 1)
        local source_gpu = source:to "cuda"
        for _, out in ipairs { "int4", "int8" } do
          for _, clip in ipairs { 1, 0.7 } do
            for _, rotate in ipairs { false, block > 0 and block or nil } do
              local opts = { dim = 1, dtype = out, clip = clip, rotate = rotate or nil }
              local name = ("%s of [%d, %d], clip %g, rotate %s"):format(out, rows, columns, clip, rotate)
              check_quantised(source, source_gpu, opts, name)
            end
          end
        end
      end
    end)
  end

  for dtype, bits in pairs { float16 = 11, bfloat16 = 8 } do
    on_gpu(("quantising every quotient of two %ss, of which many lie halfway"):format(dtype), function()
      local absmaxes, values = 2 ^ (bits - 1), 6 * 2 ^ (bits - 1)
      for dim = 1, 2 do
        local source = q.empty(dim == 1 and { values, absmaxes } or { absmaxes, values })
        local x, across, down = source:data(), dim == 1 and 1 or values, dim == 1 and absmaxes or 1
        for a = 0, absmaxes - 1 do
          for v = 0, values - 1 do
            local value = (absmaxes + v % absmaxes) * 2 ^ -math.floor(v / absmaxes)
            x[a * across + v * down] = math.min(value, absmaxes + a) * (v % 2 == 0 and 1 or -1)
          end
        end
        source = source:to(dtype)
        local source_gpu = source:to "cuda"
        for _, out in ipairs { "int4", "int8" } do
          for _, clip in ipairs { 1, 0.83 } do
            local opts = { dim = dim, dtype = out, clip = clip }
            check_quantised(source, source_gpu, opts, ("%s, clip %g"):format(out, clip))
          end
        end
      end
    end)
  end

  on_gpu("quantising columns from and to places that are aligned, and that are not", function()
    for _, dtype in ipairs { "float32", "bfloat16" } do
      for _, out in ipairs { "int4", "int8" } do
        local int8 = out == "int8"
        for _, place in ipairs { 1, 2, 3, 5, 9 } do
          local source = halves(531, 83, dtype, 1)
          local function quantized(x)
            local whole = q.empty { int8 and 531 or 67, 96, dtype = int8 and "int8" or "int32", device = x.device }
            whole:fill_bytes_(0x5a)
            for _, columns in ipairs { 40, 8 } do
              q.quantize(x:narrow(2, place, columns), { dim = 1, dtype = out,
                out = whole:narrow(2, columns == 8 and 88 or place, columns) })
            end
            return whole
          end
          assert.same_bits(quantized(source), quantized(source:to "cuda"),
            ("%s to %s from %d on"):format(dtype, out, place))
        end
      end
    end
  end)

  --- Calls on the CPU and on the GPU by turns, as the weight is: layers and products of int4 and int8 activations, also
  -- with rows that start off 16 bytes, of which a copy is made first.
  local function calls_of(x)
    local x_gpu = x:to "cuda"
    local calls = {
      layer = function(words, scales) return q.int4_linear(words.device == "cpu" and x or x_gpu, words, scales) end,
    }
    for _, dtype in ipairs { "int4", "int8" } do
      local a, scales_a = q.quantize(x, { dtype = dtype })
      local scales_gpu, rows, width = scales_a:to "cuda", a.shape[1], a.shape[2]
      for _, past in ipairs { 0, 5 } do
        local gpu = q.zeros { rows, width + past, dtype = a.dtype, device = "cuda" }
        gpu = gpu:narrow(2, past > 0 and 2 or 1, width):copy_(a)
        calls[dtype .. " + " .. past] = function(words, scales)
          if words.device == "cpu" then return q.int4_matmul(a, words, scales_a, scales) end
          return q.int4_matmul(gpu, words, scales_gpu, scales)
        end
      end
    end
    return calls
  end

  -- Kernels overlap: the weight must not be read too soon.
  on_gpu("calls whose weight was quantised just before them", function()
    local K, N = 1024, 640
    for _, M in ipairs { 40, 256, 700 } do
      local x = q.random(q.empty { M, K }, { seed = M, low = -1, high = 1 }):to "bfloat16"
      for name, call in pairs(calls_of(x)) do
        local floats, expected, outs = {}, {}, {}
        for i = 1, 3 do
          local weight = q.random(q.empty { K, N }, { seed = i, low = -1, high = 1 })
          floats[i], expected[i] = weight:to "cuda", call(q.quantize(weight, { dim = 1 }))
        end
        local words = q.empty { K / 8, N, dtype = "int32", device = "cuda" }
        local scales = q.empty { N, device = "cuda" }
        local graph = q.graph(function()
          for i = 1, 12 do
            q.quantize(floats[i % 3 + 1], { dim = 1, check = false, out = words, scales = scales })
            outs[i] = call(words, scales)
          end
        end)
        for _ = 1, 5 do graph:launch() end
        for i = 1, 12 do assert.same_bits(expected[i % 3 + 1], outs[i], ("%s, M = %d, call %d"):format(name, M, i)) end
        graph:free()
      end
    end
  end)

  on_gpu("the first bad value when packing and quantising", function()
    local values = q.zeros { 70, 90, dtype = "int8" }
    values:set(61, 3, 8)
    values:set(40, 77, -9)
    assert.fails_with({ pattern = "^pack_int4_to_int32: .* %-9 at row 40, column 77" },
      function() q.pack_int4_to_int32(values:to "cuda") end)
    for _, rows in ipairs { 72, 1024 } do -- one CTA has columns whole, or a cluster
      local floats = q.zeros { rows, 90 }
      floats:set(61, 3, 0 / 0)
      floats:set(40, 77, 1 / 0)
      for _, opts in ipairs { { dim = 1 }, { dim = 2 }, { dim = 1, rotate = 8 } } do
        assert.fails_with({ pattern = "^quantize: .* at row 40, column 77" },
          function() q.quantize(floats:to "cuda", opts) end)
      end
    end
    for dim, shape in ipairs { { 4, 30000 }, { 4, 14336 } } do -- clusters that have several groups, or a row
      local floats = q.zeros(shape)
      floats:set(3, 13001, 0 / 0)
      floats:set(4, 2, 1 / 0)
      assert.fails_with({ pattern = "^quantize: .* at row 3, column 13001" },
        function() q.quantize(floats:to "cuda", { dim = dim }) end)
    end
  end)

  on_gpu("random words and floats", function()
    for _, n in ipairs { 1, 5, 1023, 100003 } do
      for _, dtype in ipairs { "int32", "float32" } do
        local opts = { seed = n, sequence = 7, low = -2, high = 3 }
        assert.same_bits(q.random(q.empty { n, dtype = dtype }, opts),
          q.random(q.empty { n, dtype = dtype, device = "cuda" }, opts), n .. " " .. dtype)
      end
    end
    local whole = q.zeros { 9, 11, dtype = "int32" }
    local whole_gpu = whole:to "cuda"
    q.random(whole:narrow(1, 2, 5):narrow(2, 3, 7), { seed = 1 })
    q.random(whole_gpu:narrow(1, 2, 5):narrow(2, 3, 7), { seed = 1 })
    assert.same_bits(whole, whole_gpu)
  end)

  on_gpu("test data", function()
    local here = { q.generate_test_data(33, 72, 21, { seed = 5 }) }
    for i, t in ipairs { q.generate_test_data(33, 72, 21, { seed = 5, device = "cuda" }) } do
      assert.equal("cuda:0", t.device)
      assert.same_bits(here[i], t)
    end
  end)
end)

describe("a stream", function()
  on_gpu("carries work in order, and may be waited for", function()
    local stream = q.stream()
    local t = q.empty { 1000, 1000, dtype = "int32", device = "cuda" }
    for i = 0, 20 do t:fill_bytes_(i, stream) end
    local copy = q.empty { 1000, 1000, dtype = "int32", device = "cuda" }
    copy:copy_(t, stream)
    stream:synchronize()
    assert.equal(0x14141414, copy:get(1000, 1000))
    stream:destroy()
    stream:destroy()
    assert.fails_with({ pattern = "^fill_bytes_: the stream has been destroyed" },
      function() t:fill_bytes_(0, stream) end)
  end)

  on_gpu("may be a bare cudaStream_t", function()
    local stream = q.stream()
    local t = q.zeros { 4, dtype = "int8", device = "cuda" }
    t:fill_bytes_(3, stream.handle)
    stream:synchronize()
    assert.same({ 3, 3, 3, 3 }, t:totable())
    assert.fails_with({ pattern = "^fill_bytes_: stream is 5, expected one from int4mm.stream" },
      function() t:fill_bytes_(0, 5) end)
  end)

  on_gpu("may lose its tensors while work is under way", function()
    local stream = q.stream()
    local kept = q.zeros { 2048, 2048, dtype = "int32", device = "cuda" }
    for _ = 1, 200 do
      local t = q.empty({ 2048, 2048, dtype = "int32", device = "cuda" }):fill_bytes_(7, stream)
      kept:copy_(t, stream)
      t:free() -- and its memory goes to the next one, made on the default stream
      q.empty({ 2048, 2048, dtype = "int32", device = "cuda" }):fill_bytes_(9)
    end
    stream:synchronize()
    assert.same_bits(("\7"):rep(4 * 2048 * 2048), kept)
  end)

  on_gpu("is not waited for by a call that only enqueues", function()
    local stream = q.stream()
    local a, b, scale_a, scale_b = q.generate_test_data(8192, 8192, 8192, { device = "cuda" })
    local out = q.empty { 8192, 8192, dtype = "float16", device = "cuda" }
    q.int4_matmul(a, b, scale_a, scale_b, { out = out, stream = stream }) -- the first call loads the kernels
    stream:synchronize()
    local busy = 0
    for _ = 1, 5 do
      for _ = 1, 4 do q.int4_matmul(a, b, scale_a, scale_b, { out = out, stream = stream }) end
      if driver.busy(stream.handle) then busy = busy + 1 end
      stream:synchronize()
      assert.is_false(driver.busy(stream.handle))
    end
    assert(busy >= 4, ("the stream was still busy after %d of 5 rounds of calls"):format(busy))
  end, driver)
end)

describe("memory of the GPU", function()
  on_gpu("stays flat over 10,000 results, multiplied and dropped", function()
    local a, b, scale_a, scale_b = q.generate_test_data(1024, 8, 1024, { device = "cuda" })
    for _ = 1, 50 do q.int4_matmul(a, b, scale_a, scale_b) end
    collectgarbage()
    q.synchronize()
    local before, host, most = q.device_info().free_memory, helper.resident(), 0
    for i = 1, 10000 do -- 2 MiB each: 20 GiB if they stayed
      q.int4_matmul(a, b, scale_a, scale_b)
      if i % 250 == 0 then most = math.max(most, before - q.device_info().free_memory) end
    end
    assert(most < 1600 * MIB, ("%.0f MiB of device memory"):format(most / MIB))
    assert(helper.resident() - host < 160 * MIB, ("%.0f MiB of host memory"):format((helper.resident() - host) / MIB))
  end, driver)

  on_gpu("stays flat over products of CPU operands", function()
    local a, b, scale_a, scale_b = q.generate_test_data(2048, 8, 1024)
    for _ = 1, 50 do q.int4_matmul_cuda(a, b, scale_a, scale_b) end
    local before, host = q.device_info().free_memory, helper.resident()
    for _ = 1, 400 do q.int4_matmul_cuda(a, b, scale_a, scale_b) end
    assert(before - q.device_info().free_memory < 256 * MIB)
    assert(helper.resident() - host < 160 * MIB)
  end)
end)

describe("after a fork, where the parent has opened CUDA,", function()
  ffi.cdef [[
    int fork(void);
    int waitpid(int pid, int *status, int options);
    unsigned alarm(unsigned seconds);
    void _exit(int status);
    int usleep(unsigned microseconds);
  ]]

  on_gpu("the child says that CUDA is gone, and works on the CPU", function()
    local a, b, scale_a, scale_b = q.generate_test_data(16, 64, 16)
    local expected = helper.bytes(q.int4_matmul_cuda(a, b, scale_a, scale_b))
    if helper.sanitized() then ffi.C.usleep(100000) end -- as in threads_spec
    local pid = ffi.C.fork()
    if pid == 0 then
      ffi.C.alarm(60)
      local ok, right = pcall(function()
        local still, why = q.cuda_available()
        return not still and why:find "fork" and helper.bytes(q.int4_matmul(a, b, scale_a, scale_b)) == expected
      end)
      ffi.C._exit(ok and right and 0 or 1)
    end
    local status = ffi.new "int[1]"
    assert.equal(pid, ffi.C.waitpid(pid, status, 0))
    assert.equal(0, status[0])
    assert.same_bits(expected, q.int4_matmul_cuda(a, b, scale_a, scale_b))
  end)
end)
