--- The CUDA kernels against the plain-Lua oracle and, for shapes that are too large for it, against the CPU backend,
-- which the oracle has checked. Skipped where there is no GPU.

local ffi = require "ffi"

local cases = require "spec.cases"
local driver = require "spec.cuda_driver"
local helper = require "spec.helper"
local q = require "int4mm"

local KERNELS = q.cuda_kernels()

local on_gpu = helper.on_gpu

--- int4_matmul_cuda with a kernel forced.
local function forced(kernel)
  return function(a, b, scale_a, scale_b, opts)
    opts.kernel = kernel
    return q.int4_matmul_cuda(a, b, scale_a, scale_b, opts)
  end
end

--- Whether a kernel takes this call; a refusal has to be the one that names the kernel.
local function serves(kernel, a, b, scale_a, scale_b, opts)
  local with = { kernel = kernel }
  for key, value in pairs(opts or {}) do with[key] = value end
  local ok, message = pcall(q.explain, a, b, scale_a, scale_b, with)
  assert(ok or tostring(message):find(kernel, 1, true), message)
  return ok
end

describe("int4_matmul_cuda agrees with the oracle", function()
  on_gpu("on tensors of the GPU, by its own choice", function()
    for _, case in ipairs(cases.generated()) do cases.check(case, q.int4_matmul_cuda, nil, "cuda:0") end
    for _, case in ipairs(cases.large()) do cases.check(case, q.int4_matmul_cuda, nil, "cuda:0") end
  end)

  on_gpu("on tensors of the CPU, which it copies over and back", function()
    for i, case in ipairs(cases.generated()) do
      if i % 3 == 0 then cases.check(case, q.int4_matmul_cuda) end
    end
  end)

  for _, kernel in ipairs(KERNELS) do
    on_gpu("with the kernel " .. kernel, function()
      local multiply, served = forced(kernel), 0
      for _, list in ipairs { cases.generated(), cases.large() } do
        for _, case in ipairs(list) do
          cases.check(case, function(a, b, scale_a, scale_b, opts)
            if serves(kernel, a, b, scale_a, scale_b, opts) then
              served = served + 1
              return multiply(a, b, scale_a, scale_b, opts)
            end
            return q.int4_matmul_cuda(a, b, scale_a, scale_b, opts)
          end, nil, "cuda:0")
        end
      end
      if kernel == "simple" or kernel == "tiled" then assert(served > 300, served .. " cases") end
    end)
  end

  on_gpu("for a weight that was prepacked on the GPU", function()
    for i, case in ipairs(cases.generated()) do
      if i % 5 == 0 then
        cases.check(case, function(a, b, scale_a, scale_b, opts)
          local prepacked = q.prepack(b, { encoding = opts.encoding_b, layout_b = opts.layout_b })
          opts.encoding_b, opts.layout_b = nil, nil
          return q.int4_matmul(a, prepacked, scale_a, scale_b, opts)
        end, nil, "cuda:0")
      end
    end
  end)
end)

-- ---- many shapes against the CPU backend ----

--- Operands from the generator, on the GPU and on the CPU alike, inside larger matrices where `pad_*` > 0: the last
-- columns of them, so that nothing lies behind the last row.
local function operands(M, N, K, seed, case)
  local function words(rows, cols, sequence, pad)
    local whole = q.random(q.empty { rows, cols + pad, dtype = "int32" }, { seed = seed, sequence = sequence })
    local function view(t) return pad > 0 and t:narrow(2, pad + 1, cols) or t end
    return view(whole), view(whole:to "cuda")
  end
  local nk = case.layout_b == "nk"
  local a, a_gpu = words(M, K / 8, 1, case.pad_a)
  local b, b_gpu = words(nk and N or K / 8, nk and K / 8 or N, 2, case.pad_b)
  local scale_a = q.random(q.empty { M }, { seed = seed, sequence = 3, low = -0.01, high = 0.05 })
  local scale_b = q.random(q.empty { N }, { seed = seed, sequence = 4, low = -0.01, high = 0.05 })
  local bias = q.random(q.empty { N }, { seed = seed, sequence = 5, low = -1, high = 1 })
  return { a, b, scale_a, scale_b, bias }, { a_gpu, b_gpu, scale_a:to "cuda", scale_b:to "cuda", bias:to "cuda" }
end

local ENCODINGS = { "twos_complement", "offset" }
local DTYPES = { "float16", "bfloat16", "float32" }

--- Multiplies on both sides with `out` poisoned and between guards, and compares all of it. `set` fixes what else is
-- drawn: layout_b, pad_a, pad_b, guard. False when the kernel does not serve the call.
local function compare(r, kernel, M, N, K, set)
  local seed, pad = r:range(1, 2 ^ 30), r:choose { 0, 0, 0, 1, 4, 32 }
  local case = { pad_a = pad, pad_b = pad, guard = r:choose { 0, 0, 1, 8 }, layout_b = r:choose { "kn", "nk" } }
  for key, value in pairs(set or {}) do case[key] = value end
  local here, there = operands(M, N, K, seed, case)
  local dtype, guard = r:choose(DTYPES), case.guard
  local opts = { encoding_a = r:choose(ENCODINGS), encoding_b = r:choose(ENCODINGS), layout_b = case.layout_b }
  if r:chance(0.3) then opts.bias = here[5] end
  local whole = q.empty({ M, N + 2 * guard, dtype = dtype }):fill_bytes_(0x5a)
  local whole_gpu = whole:to "cuda"
  local gpu_opts = { encoding_a = opts.encoding_a, encoding_b = opts.encoding_b, layout_b = case.layout_b,
    kernel = kernel, bias = opts.bias and there[5], out = whole_gpu:narrow(2, guard + 1, N) }
  if kernel and not serves(kernel, there[1], there[2], there[3], there[4], gpu_opts) then return false end
  opts.out = whole:narrow(2, guard + 1, N)
  q.int4_matmul_cpu(here[1], here[2], here[3], here[4], opts)
  q.int4_matmul_cuda(there[1], there[2], there[3], there[4], gpu_opts)
  local same, difference = whole:equal(whole_gpu) -- by memcmp: the strings of same_bits would be large
  if not same then
    error(("%s: M=%d N=%d K=%d %s %s a:%s b:%s%s padding %d and %d, guard %d, seed %d: %s"):format(
      kernel or "its own choice", M, N, K, case.layout_b, dtype, opts.encoding_a, opts.encoding_b,
      opts.bias and " +bias" or "", case.pad_a, case.pad_b, guard, seed, difference))
  end
  return true
end

--- A multiple of a kernel's natural step, or one beside it, so that aligned shapes and tails both come.
local function near(r, most)
  local step = r:choose { 1, 8, 16, 32, 64, 128 }
  return math.max(1, math.min(most, step * r:range(1, math.ceil(most / step)) + r:choose { 0, 0, 0, 0, -1, 1, 3 }))
end

local function near_k(r, most)
  local step = r:choose { 8, 8, 32, 64, 128, 256 }
  return step * r:range(1, math.floor(most / step))
end

describe("a thousand shapes agree with the CPU backend", function()
  local count = tonumber(os.getenv "INT4MM_SWEEP" or 1000)

  on_gpu("by the choice of the backend", function()
    local r = cases.random(1)
    for i = 1, count do
      local small = i % 2 == 0
      compare(r, nil, near(r, small and 64 or 700), near(r, 900), near_k(r, small and 4096 or 2048))
    end
  end)

  for _, kernel in ipairs(KERNELS) do
    on_gpu("with the kernel " .. kernel, function()
      local r, served, drawn = cases.random(2), 0, 0
      local slow = kernel == "simple" or kernel == "tiled"
      local skinny = kernel:find "^skinny"
      local here = q.device_info().kernel_arch
      local hopper = kernel:find "^hopper" or kernel:find "^narrow"
      local possible = not (hopper and here ~= 90) and not ((skinny or kernel:find "^mma") and here < 80)
        and not kernel:find "^grouped" -- which serve what has group scales or floats
      local most = possible and 6 * count or count / 20
      while served < (slow and count / 5 or count) and drawn < most do
        drawn = drawn + 1
        local M, N = near(r, skinny and 64 or 700), near(r, 900)
        local K = near_k(r, skinny and 8192 or hopper and 4096 or 2048)
        if compare(r, kernel, M, N, K) then served = served + 1 end
      end
      assert(served >= count / 10 or not possible, ("%s served %d of %d shapes"):format(kernel, served, drawn))
    end)
  end

  -- Many tiles for each CTA of a persistent kernel, and stripes wider than one wave.
  for i = 0, #KERNELS do
    local kernel = KERNELS[i]
    on_gpu("also large ones, with " .. (kernel or "its own choice"), function()
      local r = cases.random(5)
      local most = kernel and kernel:find "^skinny" and 64 or 5000
      for _ = 1, math.ceil(count / 40) do
        compare(r, kernel, near(r, most), 1000 + near(r, 4000), near_k(r, 1024))
      end
    end)
  end

  on_gpu("every M from 1 to 130, every tail of N and of K", function()
    local r = cases.random(3)
    for M = 1, 130 do compare(r, nil, M, 256, 512) end
    for N = 1, 130 do compare(r, nil, 1 + N % 3 * 70, N, 256) end
    for k8 = 1, 66 do compare(r, nil, 1 + k8 % 3 * 70, 192, 8 * k8) end
  end)
end)

local function wants_16_bytes(kernel) return kernel:find "^mma" or kernel:find "^turing" end

-- Every layout of B and every place where rows of A, B and out may start, for every kernel.
describe("rows that start anywhere", function()
  for i = 0, #KERNELS do
    local kernel = KERNELS[i]
    on_gpu("agree with the CPU backend, with " .. (kernel or "its own choice"), function()
      local r, served = cases.random(6), 0
      local skinny, turing = kernel and kernel:find "^skinny", kernel and kernel:find "^turing" -- below
      for _, layout_b in ipairs { "kn", "nk" } do
        for _, M in ipairs { 1, 16, 65, 128, 1000 } do
          for _, shape in ipairs { { 257, 520 }, { 130, 1032 }, { 324, 512 }, { 64, 264 }, { 3, 40 }, { 131, 8 } } do
            for pad_b = 0, 3 do
              local set = { layout_b = layout_b, pad_a = r:range(0, 3), pad_b = pad_b, guard = r:range(0, 9) }
              local few = M <= 128 or not skinny
              if few and compare(r, kernel, M, shape[1], shape[2], set) then served = served + 1 end
            end
          end
        end
      end
      assert(served > 150 or (served == 0 or turing) and kernel, ("%d cases"):format(served))
    end)
  end

  on_gpu("on 16 bytes, with the kernels that want that", function()
    local r, served = cases.random(8), 0
    for _, kernel in ipairs(KERNELS) do
      for _, layout_b in ipairs { "kn", "nk" } do
        for _, M in ipairs { 1, 64, 65, 300 } do
          for _, shape in ipairs { { 4, 32 }, { 60, 96 }, { 128, 512 }, { 324, 2080 }, { 520, 256 } } do
            local set = { layout_b = layout_b, pad_a = r:range(0, 2) * 4, pad_b = r:range(0, 2) * 4 }
            if wants_16_bytes(kernel) and compare(r, kernel, M, shape[1], shape[2], set) then served = served + 1 end
          end
        end
      end
    end
    assert.equal(q.device_info().kernel_arch < 80 and 120 or 280, served) -- of turing, and of mma as well
  end)

  on_gpu("of few rows and columns, and of a wide K", function()
    local r = cases.random(7)
    for _, kernel in ipairs(KERNELS) do
      for n = 1, 5 do
        for _, layout_b in ipairs { "kn", "nk" } do
          compare(r, kernel, n, 6 - n, 8 * n, { layout_b = layout_b, pad_a = n % 4, pad_b = (n + 1) % 4 })
          compare(r, kernel, 3, 70 + n, 131080, { layout_b = layout_b, pad_b = n % 4 })
        end
      end
    end
  end)
end)

describe("a long K", function()
  local function long(M, N, K, value_a, value_b)
    local encoded = function(v) return ffi.cast("int32_t", ffi.cast("uint32_t", v % 16) * 0x11111111) end
    local a = q.full({ M, K / 8, dtype = "int32" }, tonumber(encoded(value_a))):to "cuda"
    local b = q.full({ K / 8, N, dtype = "int32" }, tonumber(encoded(value_b))):to "cuda"
    return a, b, q.ones { M, device = "cuda" }, q.ones { N, device = "cuda" }
  end

  for _, K in ipairs { 131064, 131072, 131080, 131136, 262144 } do
    on_gpu(("of %d is summed exactly by every kernel"):format(K), function()
      for _, shape in ipairs { { 1, 128 }, { 130, 136 } } do
        local a, b, scale_a, scale_b = long(shape[1], shape[2], K, -8, -8)
        local expected = helper.float32(64 * K)
        for i = 0, #KERNELS do
          local opts = { out_dtype = "float32", kernel = KERNELS[i] }
          if i == 0 or serves(KERNELS[i], a, b, scale_a, scale_b, opts) then
            local out = q.int4_matmul_cuda(a, b, scale_a, scale_b, opts)
            assert.same_bits(q.full({ shape[1], shape[2] }, expected), out, KERNELS[i] or "its own choice")
          end
        end
      end
    end)
  end

  on_gpu("of 33,554,424, the longest of all", function()
    local a, b, scale_a, scale_b = long(1, 1, 33554424, -8, -8)
    assert.equal(64 * 33554424, q.int4_matmul_cuda(a, b, scale_a, scale_b, { out_dtype = "float32" }):get(1, 1))
  end)

  on_gpu("of random values agrees with the CPU backend", function()
    local r = cases.random(4)
    for _, K in ipairs { 131072, 131104, 140000, 200000 } do
      compare(r, nil, 130, 136, K)
      compare(r, nil, 1, 264, K)
    end
  end)
end)

-- ---- streams, graphs, places ----

describe("a product on the GPU", function()
  on_gpu("lives where its operands live", function()
    local a, b, scale_a, scale_b = q.generate_test_data(20, 64, 24, { device = "cuda" })
    assert.equal("cuda:0", q.int4_matmul(a, b, scale_a, scale_b).device)
    assert.equal("cuda:0", q.explain(a, b, scale_a, scale_b).device)
    assert.same_bits(q.int4_matmul_reference(a, b, scale_a, scale_b), q.int4_matmul(a, b, scale_a, scale_b))
    local here = { a:to "cpu", b:to "cpu", scale_a:to "cpu", scale_b:to "cpu" }
    assert.equal("cpu", q.int4_matmul_cuda(here[1], here[2], here[3], here[4]).device)
    local out = q.empty { 20, 24, dtype = "float16", device = "cuda" }
    assert.equal(out, q.int4_matmul(here[1], here[2], here[3], here[4], { out = out }))
    assert.same_bits(q.int4_matmul_reference(here[1], here[2], here[3], here[4]), out)
  end)

  on_gpu("refuses operands and out on different devices", function()
    local a, b, scale_a, scale_b = q.generate_test_data(20, 64, 24, { device = "cuda" })
    assert.fails_with("int4_matmul_cuda: out is on cpu but a_packed is on cuda:0", function()
      local _ = q.int4_matmul_cuda(a, b, scale_a, scale_b, { out = q.empty { 20, 24, dtype = "float16" } })
    end)
    assert.fails_with("int4_matmul: b_packed is on cpu but a_packed is on cuda:0",
      function() local _ = q.int4_matmul(a, b:to "cpu", scale_a, scale_b) end)
    assert.fails_with("int4_matmul: scale_a is on cpu but a_packed is on cuda:0",
      function() local _ = q.int4_matmul(a, b, scale_a:to "cpu", scale_b) end)
    assert.fails_with({ pattern = "^int4_matmul_cpu: a_packed is on cuda:0 but the backend is the CPU" },
      function() local _ = q.int4_matmul_cpu(a, b, scale_a, scale_b) end)
  end)

  on_gpu("refuses a kernel that there is not and one that cannot serve", function()
    local a, b, scale_a, scale_b = q.generate_test_data(20, 64, 24, { device = "cuda" })
    assert.fails_with({ pattern = '^int4_matmul_cuda: .*"fast"' },
      function() local _ = q.int4_matmul_cuda(a, b, scale_a, scale_b, { kernel = "fast" }) end)
    for _, kernel in ipairs(KERNELS) do
      if not serves(kernel, a, b, scale_a, scale_b) then
        assert.fails_with({ pattern = "^int4_matmul_cuda: .*" .. kernel:gsub("%p", "%%%0") },
          function() local _ = q.int4_matmul_cuda(a, b, scale_a, scale_b, { kernel = kernel }) end)
      end
    end
  end)

  on_gpu("goes to a kernel that serves misaligned operands", function()
    local r = cases.random(8)
    for shift = 1, 3 do
      local a, b, scale_a, scale_b = q.generate_test_data(300, 512, 320)
      local expected = q.int4_matmul_cpu(a, b, scale_a, scale_b)
      local function misaligned(t)
        local whole = q.empty { t.shape[1], t.shape[2] + 4, dtype = "int32", device = "cuda" }
        local view = whole:narrow(2, shift + 1, t.shape[2])
        return view:copy_(t)
      end
      local out = q.empty({ 300, 333, dtype = "float16", device = "cuda" }):narrow(2, 1 + r:range(1, 9), 320)
      q.int4_matmul(misaligned(a), misaligned(b), scale_a:to "cuda", scale_b:to "cuda", { out = out })
      assert.same_bits(expected, out, "words shifted by " .. shift)
    end
  end)

  on_gpu("runs on a stream of the caller's", function()
    local stream = q.stream()
    for _, M in ipairs { 1, 64, 512 } do
      local a, b, scale_a, scale_b = q.generate_test_data(M, 1024, 1024, { device = "cuda", seed = M })
      q.synchronize()
      local out = q.int4_matmul(a, b, scale_a, scale_b, { stream = stream })
      stream:synchronize()
      assert.same_bits(q.int4_matmul(a, b, scale_a, scale_b), out)
    end
  end)

  on_gpu("can be captured into a graph and replayed on new data", function()
    for _, kernel in ipairs(KERNELS) do
      for _, shape in ipairs { { 1, 512, 256 }, { 16, 4096, 512 }, { 256, 512, 512 } } do
        local M, K, N = unpack(shape)
        local a, b, scale_a, scale_b = q.generate_test_data(M, K, N, { device = "cuda", seed = 1 })
        local opts = { kernel = kernel, out = q.empty { M, N, dtype = "float16", device = "cuda" } }
        if serves(kernel, a, b, scale_a, scale_b, opts) then
          local stream = q.stream()
          opts.stream = stream
          q.int4_matmul(a, b, scale_a, scale_b, opts) -- kernels load before a capture
          stream:synchronize()
          local graph = driver.capture(stream.handle, function() q.int4_matmul(a, b, scale_a, scale_b, opts) end)
          for seed = 2, 4 do
            local other = q.generate_test_data(M, K, N, { device = "cuda", seed = seed })
            a:copy_(other)
            q.synchronize()
            graph.launch()
            stream:synchronize()
            local here = q.int4_matmul_cpu(a:to "cpu", b:to "cpu", scale_a:to "cpu", scale_b:to "cpu")
            assert.same_bits(here, opts.out, ("%s, M=%d, replay %d"):format(kernel, M, seed - 1))
          end
          graph.destroy()
          stream:destroy()
        end
      end
    end
  end, driver)

  -- CTAs of mma and turing share K, whose parts meet in scratch memory that is taken anew for every call; those of
  -- hopper and narrow in a cluster.
  on_gpu("of few tiles and a long K is the same on several streams and from a graph", function()
    local streams, split = { q.stream(), q.stream(), q.stream() }, 0
    local function check(kernel, expected, a, b, scale_a, scale_b, bias, name)
      local opts, outs = { kernel = kernel, bias = bias, out_dtype = "bfloat16" }, {}
      if q.explain(a, b, scale_a, scale_b, opts).split_k > 1 then split = split + 1 end
      q.synchronize()
      for i = 1, 12 do
        opts.stream = streams[i % 3 + 1]
        outs[i] = q.int4_matmul(a, b, scale_a, scale_b, opts)
      end
      for _, stream in ipairs(streams) do stream:synchronize() end
      for i = 1, 12 do assert.same_bits(expected, outs[i], name) end
      opts.stream = nil
      local graph, one, two = q.graph(function()
        return q.int4_matmul(a, b, scale_a, scale_b, opts), q.int4_matmul(a, b, scale_a, scale_b, opts)
      end)
      for _ = 1, 2 do
        one:fill_bytes_(0x55)
        two:fill_bytes_(0x55)
        graph:launch()
        assert.same_bits(expected, one, name)
        assert.same_bits(expected, two, name)
      end
    end
    for i, shape in ipairs { { 3, 4096, 8 }, { 70, 8200, 76 }, { 130, 3000, 260 }, { 64, 65536, 256 },
      { 200, 2568, 392 } } do
      local M, K, N = unpack(shape)
      local a, b, scale_a, scale_b = q.generate_test_data(M, K, N, { seed = i, device = "cuda" })
      local bytes = q.empty { M, K, dtype = "int8" }
      ffi.copy(bytes:data(), q.random(q.empty { M, K / 4, dtype = "int32" }, { seed = i }):data(), M * K)
      local bias = q.random(q.empty { N, device = "cuda" }, { seed = i })
      for _, of in ipairs { a, bytes:to "cuda" } do
        local expected = q.int4_matmul_cpu(of:to "cpu", b:to "cpu", scale_a:to "cpu", scale_b:to "cpu",
          { bias = bias:to "cpu", out_dtype = "bfloat16" })
        for _, kernel in ipairs(KERNELS) do
          local wgmma = kernel:find "^hopper" or kernel:find "^narrow"
          if (wgmma or wants_16_bytes(kernel)) and serves(kernel, of, b, scale_a, scale_b) then
            check(kernel, expected, of, b, scale_a, scale_b, bias, ("%s, %s, M=%d"):format(kernel, of.dtype, M))
          end
        end
      end
    end
    assert(split >= (q.device_info().kernel_arch < 80 and 8 or 20), split .. " of the products split K")
  end)

  -- Two CTAs an SM, then a few tiles more, whose K CTAs share.
  on_gpu("of some tiles behind whole waves is the same whoever has a part of K", function()
    local shared, sms = 0, q.device_info().sms
    for _, kernel in ipairs(KERNELS) do
      if wants_16_bytes(kernel) then
        local tile_m, tile_n = kernel:match "(%d+)x(%d+)"
        local M, K, N = tile_m + 5, 1568, tile_n * (sms + 1) + 4
        local a, b, scale_a, scale_b = q.generate_test_data(M, K, N, { seed = 5, device = "cuda" })
        local bytes = q.empty { M, K, dtype = "int8" }
        ffi.copy(bytes:data(), q.random(q.empty { M, K / 4, dtype = "int32" }, { seed = 5 }):data(), M * K)
        for _, of in ipairs { a, bytes:to "cuda" } do
          local opts = { kernel = kernel, out = q.empty { M, N, dtype = "float16", device = "cuda" } }
          if serves(kernel, of, b, scale_a, scale_b, opts) then
            opts.out:fill_bytes_(0x55)
            q.int4_matmul(of, b, scale_a, scale_b, opts)
            local reason = q.explain(of, b, scale_a, scale_b, opts).reason
            if reason:find ", the last %d+ by %d+ CTAs each" then shared = shared + 1 end
            local here = q.int4_matmul_cpu(of:to "cpu", b:to "cpu", scale_a:to "cpu", scale_b:to "cpu")
            assert.same_bits(here, opts.out, ("%s, %s, %s"):format(kernel, of.dtype, reason))
          end
        end
      end
    end
    local least = q.device_info().kernel_arch < 80 and 2 or 4
    assert(shared >= least, shared .. " of the products have tiles that CTAs share behind whole waves")
  end)

  on_gpu("cannot be captured without out, and says so", function()
    local a, b, scale_a, scale_b = q.generate_test_data(16, 64, 16, { device = "cuda" })
    local stream = q.stream()
    local ok, message = pcall(driver.capture, stream.handle, function()
      q.int4_matmul(a, b, scale_a, scale_b, { stream = stream })
    end)
    assert.is_false(ok)
    assert.matches("no tensor can be allocated while its stream captures a CUDA graph", message, 1, true)
    assert.same_bits(q.int4_matmul_reference(a, b, scale_a, scale_b), q.int4_matmul(a, b, scale_a, scale_b))
  end, driver)

  on_gpu("gives the same bits every time, also with other work beside it", function()
    local streams = { q.stream(), q.stream(), q.stream() }
    for _, shape in ipairs { { 1, 4096, 4096 }, { 8, 4096, 1024 }, { 128, 2048, 512 }, { 512, 1024, 1024 } } do
      local M, K, N = unpack(shape)
      local a, b, scale_a, scale_b = q.generate_test_data(M, K, N, { device = "cuda", seed = 1 })
      local expected = helper.bytes(q.int4_matmul_cpu(a:to "cpu", b:to "cpu", scale_a:to "cpu", scale_b:to "cpu"))
      q.synchronize()
      local outs = {}
      for i = 1, 60 do outs[i] = q.int4_matmul(a, b, scale_a, scale_b, { stream = streams[i % 3 + 1] }) end
      for _, stream in ipairs(streams) do stream:synchronize() end
      for i = 1, 60 do assert.same_bits(expected, outs[i], ("M=%d, call %d"):format(M, i)) end
    end
  end)
end)
