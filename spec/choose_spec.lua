--- The choice of a CUDA kernel, which is a pure function of the problem and needs no GPU.

local ffi = require "ffi"

require "spec.helper"
local q = require "int4mm"
local lib = require("int4mm.lib").lib

local OK, ARGUMENT, UNSUPPORTED = 0, 1, 5
local ARCHITECTURES = { 75, 80, 86, 87, 89, 90, 100, 103, 120, 121 }
local SMS = { 1, 16, 40, 84, 108, 132, 148, 188 }
local OUT_DTYPES = { 2, 3, 4 } -- float16, bfloat16, float32

local function names()
  local list = {}
  while lib.int4mm_cuda_kernel_at(#list) ~= nil do list[#list + 1] = ffi.string(lib.int4mm_cuda_kernel_at(#list)) end
  return list
end
local KERNELS = names()

--- A contiguous, well-aligned problem; `set` overrides fields.
local function problem(arch, M, N, K, set)
  local p = ffi.new("int4mm_gpu_problem", { arch = arch, sms = 132, M = M, N = N, K = K, lda = K / 8, ldb = N, ldo = N,
    align_a = 256, align_b = 256, align_out = 256, out_dtype = 2, encoding_a = 0, encoding_b = 0 })
  for key, value in pairs(set or {}) do p[key] = value end
  return p
end

local function describe_problem(p)
  return ("sm_%d, %d SMs, M=%d N=%d K=%d, strides %d/%d/%d, alignment %d/%d/%d, dtype %d"):format(p.arch, p.sms,
    tonumber(p.M), tonumber(p.N), tonumber(p.K), tonumber(p.lda), tonumber(p.ldb), tonumber(p.ldo), p.align_a,
    p.align_b, p.align_out, p.out_dtype)
end

--- The status and, where it is OK, the plan as a table.
local function choose(p, kernel)
  local plan = ffi.new "int4mm_plan"
  local status = lib.int4mm_choose_cuda(p, kernel, plan)
  if status ~= OK then return status, ffi.string(lib.int4mm_last_error()) end
  return OK, { name = ffi.string(plan.name), kernel = plan.kernel, tile_m = plan.tile_m, tile_n = plan.tile_n,
    tile_k = plan.tile_k, stages = plan.stages, split_k = plan.split_k, ctas = plan.ctas,
    reason = ffi.string(plan.reason), widened = plan.widened, whole_tiles = plan.whole_tiles }
end

local EXTENTS = { 1, 2, 3, 7, 8, 16, 17, 31, 33, 63, 64, 65, 100, 128, 129, 255, 256, 500, 512, 1000, 1024, 2048, 4095,
  4096, 8192, 28672 }
local DEPTHS = { 0, 8, 16, 24, 64, 72, 128, 512, 1000, 4096, 14336, 131064, 131072, 131080, 200000, 33554424 }

--- Calls f with some thousand problems: every architecture over shapes, strides and alignments.
local function sweep(f)
  local turn = 0
  local function next_of(list)
    turn = turn + 1
    return list[turn * 7 % #list + 1]
  end
  for _, arch in ipairs(ARCHITECTURES) do
    for _, M in ipairs(EXTENTS) do
      for _ = 1, 12 do
        local N, K = next_of(EXTENTS), next_of(DEPTHS)
        local set = { sms = next_of(SMS), out_dtype = next_of(OUT_DTYPES) }
        set.encoding_a, set.encoding_b = turn % 2, turn % 3 % 2
        set.layout_b = turn % 5 % 2
        set.ldb = set.layout_b == 1 and K / 8 or N
        if turn % 2 == 0 then
          set.align_a, set.align_b = next_of { 4, 8, 16, 256 }, next_of { 4, 16, 64 }
          set.align_out = next_of { 2, 4, 16 }
        end
        if turn % 3 == 0 then
          set.lda, set.ldb, set.ldo = K / 8 + next_of { 1, 3, 4 }, set.ldb + turn % 5, N + turn % 9
        end
        if set.out_dtype == 4 and set.align_out == 2 then set.align_out = 4 end
        f(problem(arch, M, N, K, set))
      end
    end
  end
end

local function wgmma(name) return name:find "^hopper" or name:find "^narrow" end

describe("int4mm_choose_cuda", function()
  it("has a kernel and a reason for every problem from sm_75 on", function()
    local known = {}
    for _, name in ipairs(KERNELS) do known[name] = true end
    sweep(function(p)
      local status, plan = choose(p)
      local what = describe_problem(p)
      assert(status == OK, what .. ": " .. tostring(plan))
      assert(known[plan.name], ("%s: chose %s, which int4mm_cuda_kernel_at does not list"):format(what, plan.name))
      assert(#plan.reason > 0, what .. ": no reason")
      assert(plan.ctas >= 1 and plan.split_k >= 1 and plan.stages >= 1,
        ("%s: %s with %d CTAs, split_k %d, %d stages"):format(what, plan.name, plan.ctas, plan.split_k, plan.stages))
    end)
  end)

  it("chooses only what it would also accept when forced, with the same plan", function()
    sweep(function(p)
      local _, plan = choose(p)
      local status, forced = choose(p, plan.name)
      assert(status == OK, ("%s: chose %s but refuses it: %s"):format(describe_problem(p), plan.name, tostring(forced)))
      assert.equal(plan.name, forced.name)
      for _, field in ipairs { "kernel", "tile_m", "tile_n", "split_k", "ctas" } do
        assert(plan[field] == forced[field],
          ("%s: %s %s, forced %s"):format(describe_problem(p), field, plan[field], forced[field]))
      end
    end)
  end)

  -- M, K, N, what was fastest on an H200 by at least 5%
  local measured = {
    { 1, 4096, 4096, "skinny_8" }, { 1, 8192, 28672, "skinny_8" }, { 16, 4096, 14336, "skinny_16" },
    { 33, 512, 28672, "narrow_64x64" }, { 64, 512, 28672, "narrow_64x64" }, { 64, 4096, 14336, "narrow_64x64" },
    { 512, 512, 512, "narrow_64x64" }, { 128, 4096, 4096, "narrow_128x64" }, { 256, 4096, 4096, "narrow_128x64" },
    { 1024, 1024, 1024, "narrow_128x64" }, { 384, 4096, 4096, "hopper_128x128" }, { 512, 2048, 4096, "hopper_128x128" },
    { 512, 4096, 4096, "hopper_128x128" }, { 1024, 4096, 5120, "hopper_128x128" },
    { 640, 4096, 4096, "hopper_256x128" }, { 1664, 1024, 8192, "hopper_256x128" },
    { 1920, 512, 28672, "hopper_256x128" }, { 2048, 2048, 2048, "hopper_256x128" },
    { 4096, 4096, 4096, "hopper_256x128" }, { 256, 14336, 4096, "hopper_128x128" },
    { 512, 14336, 4096, "hopper_256x128" },
  }

  it("takes what was fastest by far where that was measured", function()
    for _, case in ipairs(measured) do
      local p = problem(90, case[1], case[3], case[2])
      local status, plan = choose(p)
      assert.equal(OK, status)
      assert(plan.name == case[4], ("%s: %s, expected %s"):format(describe_problem(p), plan.name, case[4]))
    end
  end)

  it("takes wgmma kernels for int8 activations, integer group scales and zero points of columns", function()
    local INT8, GROUP_SCALES, FACTORS = 1, 1, 2
    local a8, f128 = { dtype_a = INT8 }, { dtype_a = INT8, scaling = FACTORS, group = 128 }
    local zeros, zeros4, f32 = { dtype_a = INT8, zeros = 1 }, { zeros = 1 }, { scaling = FACTORS, group = 32 }
    local nk = { dtype_a = INT8, layout_b = 1, ldb = 512 }
    for _, case in ipairs {
      { 128, a8, "narrow_128x64" }, { 256, a8, "narrow_128x64" }, { 512, a8, "grouped_128x128" },
      { 1024, a8, "grouped_256x128" }, { 4096, a8, "grouped_256x128" }, { 1024, f128, "grouped_256x128" },
      { 512, nk, "grouped_128x128" }, { 4096, nk, "grouped_256x128" },
      { 256, zeros, "narrow_128x64" }, { 4096, zeros, "grouped_256x128" }, { 256, zeros4, "narrow_128x64" },
      { 4096, zeros4, "hopper_256x128" }, { 256, f32, "grouped_128x128" }, { 4096, f32, "grouped_256x128" },
    } do
      local p = problem(90, case[1], 4096, 4096, case[2])
      if p.dtype_a == INT8 then p.lda = 4096 end
      local status, plan = choose(p)
      assert.equal(OK, status, plan)
      assert.equal(case[3], plan.name, describe_problem(p))
    end
    for kernel, set in pairs {
      hopper_128x128 = { scaling = GROUP_SCALES, group = 128 }, narrow_128x64 = f32,
      narrow_64x64 = { dtype_a = 2, lda = 4096 },
    } do
      local status, message = choose(problem(90, 512, 4096, 4096, set), kernel)
      assert.not_equal(OK, status)
      assert.matches("the kernel " .. kernel .. " ", message, 1, true)
    end
    local _, unaligned = choose(problem(90, 1024, 4096, 4090, { dtype_a = INT8, lda = 4090 }))
    assert.equal("grouped_256x128", unaligned.name)
    assert.matches(", A copied", unaligned.reason, 1, true)
  end)

  it("serves [N, K/8] and rows that start anywhere with the same kernels", function()
    for _, case in ipairs(measured) do
      local M, K, N = case[1], case[2], case[3]
      local _, nk = choose(problem(90, M, N, K, { layout_b = 1, ldb = K / 8 }))
      assert.equal(case[4], nk.name)
      assert.matches(", B along k", nk.reason, 1, true)
      for _, set in ipairs { { ldb = N + 1 }, { align_b = 4 }, { ldo = N + 1 }, { align_a = 4, lda = K / 8 + 1 } } do
        local p = problem(90, M, N, K, set)
        local _, plan = choose(p)
        local small = M < 65 or set.lda and M * K < 2 ^ 20 -- a copy of a is not worth it
        assert(small or wgmma(plan.name), describe_problem(p) .. ": " .. plan.name)
        if wgmma(plan.name) then
          assert.matches(", rows off 16 bytes", plan.reason, 1, true)
          assert.equal(set.lda ~= nil, plan.reason:find(", A copied", 1, true) ~= nil)
        end
      end
    end
  end)

  it("takes a copy of an [N, K/8] off 16 bytes where rows are many, with hopper", function()
    local function copies(kernel, M, set)
      local p = problem(90, M, 4096, 4104, set or { layout_b = 1, ldb = 513 })
      local status, plan = choose(p, kernel)
      assert.equal(OK, status)
      return plan.reason:find(", B copied", 1, true) ~= nil
    end
    assert.is_true(copies("hopper_256x128", 4096))
    assert.is_false(copies("hopper_256x128", 1024))
    assert.is_false(copies("hopper_256x128", 4096, { layout_b = 1, ldb = 516 }))
    assert.is_false(copies("hopper_256x128", 4096, { ldb = 4097 }))
    assert.is_false(copies("narrow_128x64", 4096))
  end)

  it("counts the rows of b by its layout", function()
    local p = problem(90, 64, 64, 512, { layout_b = 1, ldb = 64 })
    assert.equal(OK, (choose(p)))
    p.ldb = 63
    local status, message = choose(p)
    assert.equal(ARGUMENT, status)
    assert.matches("ldb is 63, expected from 64", message, 1, true)
    p.layout_b = 2
    status, message = choose(p)
    assert.equal(ARGUMENT, status)
    assert.matches("layout_b is 2, expected from 0 to 1", message, 1, true)
  end)

  it("depends on nothing but its arguments", function()
    local seen = {}
    local function record(p)
      local _, plan = choose(p)
      return plan.name .. plan.ctas .. plan.reason .. plan.split_k
    end
    sweep(function(p) seen[#seen + 1] = record(p) end)
    local i = 0
    sweep(function(p)
      i = i + 1
      assert(seen[i] == record(p), describe_problem(p))
    end)
  end)

  it("lists simple and tiled, which serve every problem everywhere", function()
    local listed = " " .. table.concat(KERNELS, " ") .. " "
    assert.matches(" simple ", listed, 1, true)
    assert.matches(" tiled ", listed, 1, true)
    sweep(function(p)
      for _, name in ipairs { "simple", "tiled" } do
        local status, plan = choose(p, name)
        assert(status == OK, ("%s: %s refused: %s"):format(describe_problem(p), name, tostring(plan)))
        assert.equal(name, plan.name)
      end
    end)
  end)

  it("gives hopper and narrow kernels to sm_90 alone, and skinny and mma kernels from sm_80 on", function()
    for _, name in ipairs(KERNELS) do
      for _, arch in ipairs(ARCHITECTURES) do
        local status = choose(problem(arch, 4096, 4096, 4096), name)
        local small = choose(problem(arch, 1, 4096, 4096), name)
        local sm80 = name:find "^skinny" or name:find "^mma"
        if wgmma(name) and arch ~= 90 or sm80 and arch < 80 then
          assert.equal(UNSUPPORTED, status, name .. " on sm_" .. arch)
          assert.equal(UNSUPPORTED, small, name .. " on sm_" .. arch)
        end
      end
    end
    sweep(function(p)
      local _, plan = choose(p)
      assert(not wgmma(plan.name) or p.arch == 90, describe_problem(p) .. ": " .. plan.name)
      assert(not plan.name:find "^skinny" or p.arch >= 80, describe_problem(p) .. ": " .. plan.name)
    end)
  end)

  it("gives mma kernels from sm_80 on what is neither small nor for wgmma", function()
    for _, arch in ipairs(ARCHITECTURES) do
      for _, shape in ipairs { { 128, 4096, 4096 }, { 512, 4096, 4096 }, { 1024, 1024, 1024 }, { 4096, 4096, 4096 } } do
        for layout_b = 0, 1 do
          local p = problem(arch, shape[1], shape[3], shape[2], { layout_b = layout_b,
            ldb = layout_b == 1 and shape[2] / 8 or shape[3] })
          local _, plan = choose(p)
          local mma = plan.name:find "^mma" ~= nil
          assert(mma == (arch >= 80 and arch ~= 90), describe_problem(p) .. ": " .. plan.name)
          if arch >= 80 then -- int4 tensor cores by what the code was compiled for, not by the device
            for _, code_arch in ipairs { 80, 86, 89, 90, 100, 120 } do
              p.code_arch = code_arch
              local _, forced = choose(p, "mma_128x128")
              assert.matches(code_arch < 90 and "by int4 mma.sync" or "by int8 mma.sync", forced.reason, 1, true)
            end
          end
        end
      end
    end
  end)

  it("gives mma kernels copies of what is not aligned, and int8 ones no wide K", function()
    local function refused(set, pattern, K)
      local status, message = choose(problem(89, 300, 640, K or 512, set), "mma_128x128")
      assert.equal(UNSUPPORTED, status)
      assert.matches("mma_128x128 " .. pattern, message, 1, true)
    end
    assert.equal(OK, (choose(problem(89, 300, 640, 512), "mma_128x128")))
    local _, plan = choose(problem(89, 300, 640, 512, { lda = 65 }), "mma_128x128")
    assert.matches("A copied", plan.reason, 1, true)
    local function copied(set, K, text)
      local _, made = choose(problem(89, 300, 640, K, set), "mma_128x128")
      assert.matches(text, made.reason, 1, true)
      assert.equal(text:find("A copied", 1, true) ~= nil, made.reason:find("A copied", 1, true) ~= nil)
    end
    copied({ align_b = 8 }, 512, ", B copied")
    copied({ ldb = 641 }, 512, ", B copied")
    copied({ N = 639 }, 512, ", B copied")
    copied({ lda = 68 }, 520, ", A copied")
    copied({ lda = 65, layout_b = 1, ldb = 65 }, 520, ", B along k, A copied, B copied")
    refused({ code_arch = 90 }, "needs a K below 131072", 131072)
    refused({ code_arch = 75 }, "needs code for sm_80 or later")
    refused({ dtype_a = 4, lda = 512 }, "has no code for an A of float32")
    assert.equal(OK, (choose(problem(89, 300, 640, 131072), "mma_128x128")))
  end)

  it("gives mma kernels every kind of operands, int4 activations with group scales where int4 is native", function()
    local int8, half = ffi.C.INT4MM_INT8, ffi.C.INT4MM_FLOAT16
    local function planned(code_arch, dtype_a, scaling, group, zeros)
      local status, plan = choose(problem(89, 300, 640, 1024, { code_arch = code_arch, dtype_a = dtype_a,
        lda = dtype_a == ffi.C.INT4MM_INT32 and 128 or 1024, scaling = scaling, group = group, zeros = zeros }),
        "mma_128x128")
      assert(status == OK, plan)
      return plan
    end
    for _, code_arch in ipairs { 80, 89, 90, 120 } do
      for scaling = 0, 2 do
        for zeros = 0, scaling == 2 and 0 or 1 do
          assert.matches("int8 mma.sync", planned(code_arch, int8, scaling, 128, zeros).reason, 1, true)
          if scaling < 2 then
            assert.matches("float16 mma.sync", planned(code_arch, half, scaling, 128, zeros).reason, 1, true)
          end
          local words = planned(code_arch, ffi.C.INT4MM_INT32, scaling, 128, zeros)
          local native = zeros == 0 and (scaling == 0 or (scaling == 1 and code_arch < 90))
          assert.equal(native and 0 or 1, words.widened)
          assert.matches(native and code_arch < 90 and "int4 mma.sync" or "int8 mma.sync", words.reason, 1, true)
        end
      end
      assert.equal(1, planned(code_arch, ffi.C.INT4MM_INT32, 1, 96, 0).widened)
    end
    assert.equal(UNSUPPORTED, (choose(problem(89, 300, 640, 1024, { dtype_a = int8, lda = 1024, scaling = 1,
      group = 288 }), "mma_128x128")))
  end)

  it("can take every kernel that it lists, somewhere", function()
    local served = {}
    sweep(function(p)
      for _, name in ipairs(KERNELS) do
        if not served[name] and choose(p, name) == OK then served[name] = true end
        p.scaling, p.group = 1, 128 -- what the grouped kernels are for
        if name:find "^grouped" and not served[name] then
          p.dtype_a = name == "grouped_256x128" and ffi.C.INT4MM_INT8 or ffi.C.INT4MM_INT32
          p.lda = name == "grouped_256x128" and p.lda * 8 or p.lda
          served[name] = choose(p, name) == OK
          p.lda = name == "grouped_256x128" and p.lda / 8 or p.lda
        end
        p.scaling, p.group, p.dtype_a = 0, 0, ffi.C.INT4MM_INT32
      end
    end)
    for _, name in ipairs(KERNELS) do assert.is_true(served[name], name) end
  end)

  it("says why a forced kernel cannot serve a problem", function()
    for _, name in ipairs(KERNELS) do
      local status, message = choose(problem(75, 64, 64, 64), name)
      if status ~= OK then
        assert.equal(UNSUPPORTED, status)
        assert.matches(name, message, 1, true)
      end
    end
  end)

  it("takes turing kernels on sm_75, and nowhere else unless it must", function()
    local INT8, FLOAT16, BFLOAT16 = 1, 2, 3
    local function on_turing(M, N, K, set)
      local status, plan = choose(problem(75, M, N, K, set))
      assert.equal(OK, status, plan)
      return plan
    end
    for shape, name in pairs {
      [{ 1, 4096, 4096 }] = "turing_32x64", [{ 200, 1024, 4096 }] = "turing_64x64",
      [{ 4096, 4096, 4096 }] = "turing_128x128",
    } do
      for layout_b = 0, 1 do
        local p = { sms = 40, layout_b = layout_b, ldb = layout_b == 1 and shape[3] / 8 or shape[2] }
        assert.equal(name, on_turing(shape[1], shape[2], shape[3], p).name)
      end
    end
    for _, M in ipairs { 1, 16, 64, 300, 4096 } do
      for dtype = 0, FLOAT16 do
        for scaling = 0, 2 do
          for zeros = 0, scaling < 2 and 1 or 0 do
            local plan = on_turing(M, 4096, 4096, { dtype_a = dtype, lda = dtype == 0 and 512 or 4096,
              scaling = scaling, group = 128, zeros = zeros })
            local served, what = dtype ~= FLOAT16 or scaling < 2, ("%d %d %d: %s"):format(dtype, scaling, zeros,
              plan.name)
            assert.equal(served, plan.name:find "^turing" ~= nil, what)
            assert.equal(dtype == 0 and (scaling == 2 or zeros == 1), plan.widened == 1)
          end
        end
      end
      local plan = on_turing(M, 4096, 4096, { dtype_a = BFLOAT16, lda = 4096 })
      assert(plan.name == "tiled" or plan.name == "simple", plan.name)
    end
    for set, reason in pairs {
      [{ K = 40, lda = 5 }] = "a multiple of 32", [{ N = 61, ldb = 64 }] = "a multiple of 4",
      [{ align_b = 8 }] = "16 bytes", [{ dtype_a = INT8, lda = 131072, K = 131072 }] = "131072",
      [{ dtype_a = BFLOAT16, lda = 64 }] = "bfloat16",
    } do
      local status, message = choose(problem(75, 64, 64, 64, set), "turing_32x64")
      assert.equal(UNSUPPORTED, status, reason)
      assert.matches(reason, message, 1, true)
    end
    for _, arch in ipairs { 80, 89, 90, 120 } do
      assert.equal(OK, (choose(problem(arch, 64, 64, 64), "turing_64x64")))
    end
    sweep(function(p)
      local _, plan = choose(p)
      assert(p.arch == 75 or not plan.name:find "^turing", describe_problem(p) .. ": " .. plan.name)
    end)
  end)

  -- int8, float16, bfloat16 and words of A; scales for each column, group scales and factors; zero points.
  it("takes skinny kernels for few rows of operands of every kind from sm_80 on", function()
    local INT32, INT8, FLOAT16, BFLOAT16, FLOAT32 = 0, 1, 2, 3, 4
    for _, arch in ipairs { 80, 86, 89, 90, 100, 120 } do
      for _, M in ipairs { 1, 8, 9, 16 } do
        for _, dtype in ipairs { INT32, INT8, FLOAT16, BFLOAT16 } do
          for scaling = 0, 2 do
            for _, group in ipairs { 32, 64, 96, 128, 256 } do
              local zeros = scaling < 2 and group == 128 and 1 or 0
              for layout_b = 0, 1 do
                if dtype ~= INT32 or scaling > 0 or zeros > 0 then
                  local p = problem(arch, M, 4096, 4096, { dtype_a = dtype, scaling = scaling, group = group,
                    zeros = zeros, lda = dtype == INT32 and 512 or 4096, layout_b = layout_b,
                    ldb = layout_b == 1 and 512 or 4096 })
                  local status, plan = choose(p)
                  assert.equal(OK, status, plan)
                  assert.matches("^skinny_", plan.name, 1, describe_problem(p))
                  assert(plan.tile_k >= 256 or scaling ~= 1 or dtype > INT8, "a chain needs two warps along K")
                end
              end
            end
          end
        end
      end
    end
    for set, reason in pairs {
      [{ dtype_a = FLOAT32, lda = 4096 }] = "float32",
      [{ dtype_a = INT8, lda = 4097 }] = "16 bytes",
      [{ dtype_a = FLOAT16, lda = 4100 }] = "16 bytes",
      [{ dtype_a = INT8, lda = 2 ^ 21, K = 2 ^ 21, scaling = 1, group = 128 }] = "2^20",
    } do
      local status, message = choose(problem(90, 4, 4096, 4096, set), "skinny_16")
      assert.equal(UNSUPPORTED, status, reason)
      assert.matches(reason, message, 1, true)
      assert.equal(OK, (choose(problem(90, 4, 4096, 4096, set))), reason)
    end
    local nk = problem(90, 64, 4096, 4096, { dtype_a = INT8, lda = 4096, layout_b = 1, ldb = 512 })
    local status, message = choose(nk, "skinny_64")
    assert.equal(UNSUPPORTED, status)
    assert.matches("[K/8, N]", message, 1, true)
  end)

  it("takes skinny kernels for few rows of the usual kinds of [N, K/8] as well", function()
    for _, arch in ipairs { 80, 86, 89, 90, 100, 120 } do
      for _, M in ipairs { 1, 8, 16 } do
        for dtype = 0, 3 do
          for scaling = 0, 1 do
            local set = { dtype_a = dtype, scaling = scaling, group = 128, lda = dtype == 0 and 512 or 4096,
              layout_b = 1, ldb = 512 }
            local p = problem(arch, M, 4096, 4096, set)
            local status, plan = choose(p)
            assert.equal(OK, status, plan)
            assert.matches("^skinny_", plan.name, 1, describe_problem(p))
          end
        end
      end
    end
  end)

  it("refuses a kernel that there is not, naming it", function()
    for _, name in ipairs { "hoper", "", "TILED", "simple " } do
      local status, message = choose(problem(90, 64, 64, 64), name)
      assert.equal(ARGUMENT, status, name)
      assert.matches('"' .. name .. '"', message, 1, true)
    end
  end)

  -- Clusters exist from sm_90 on. PTX of an older architecture runs there too, and its code knows nothing of them.
  it("splits K over a cluster only where the code was compiled for clusters", function()
    local split = 0
    for _, arch in ipairs(ARCHITECTURES) do
      for _, code_arch in ipairs { 75, 80, 86, 89, 90, 100, 120 } do
        for _, shape in ipairs { { 1, 256, 16384 }, { 8, 1024, 28672 }, { 30, 512, 8192 }, { 64, 64, 4096 } } do
          for _, name in ipairs(KERNELS) do
            if name:find "^skinny" then
              local p = problem(arch, shape[1], shape[2], shape[3], { code_arch = code_arch })
              local status, plan = choose(p, name)
              if status == OK then
                assert(code_arch >= 90 or plan.split_k == 1, name .. " splits K " .. plan.split_k .. " times on sm_" ..
                  arch .. " with code of sm_" .. code_arch)
                if plan.split_k > 1 then split = split + 1 end
              end
            end
          end
        end
      end
    end
    assert(split > 0, "no case split K, so the others prove nothing")
  end)

  it("has CTAs of mma and turing share K where tiles are few and sums exact in any order", function()
    local split, behind, INT8, FLOAT16, GROUP_SCALES, FACTORS = {}, {}, 1, 2, 1, 2
    local function splits_of(kinds, experts)
      split = {}
      for _, arch in ipairs { 75, 80, 86, 89, 90, 100, 120 } do
        for _, set in ipairs(kinds) do
          for _, shape in ipairs { { 1, 4, 512 }, { 128, 1024, 14336 }, { 64, 256, 65536 }, { 300, 500, 3000 },
            { 64, 64, 128 }, { 4096, 4096, 4096 }, { 192, 3072, 14336 }, { 1500, 3068, 14336 } } do
            for _, name in ipairs(KERNELS) do
              local M, N, K = unpack(shape)
              local p = problem(arch, M, N, K, set)
              p.lda, p.experts = set.dtype_a and K or K / 8, experts or 0
              local status, plan = choose(p, name)
              local family = name:match "^%a+"
              if (family == "mma" or family == "turing") and status == OK and plan.split_k > 1 then
                local tiles = math.ceil(M / plan.tile_m) * math.ceil(N / plan.tile_n)
                local what = ("%s, %s, %d times"):format(describe_problem(p), name, plan.split_k)
                local whole = plan.whole_tiles
                local sharing = (tiles - whole) * plan.split_k
                assert(plan.ctas == whole + sharing and sharing > 0 and sharing <= 2 * p.sms, what)
                assert(whole % p.sms == 0 and plan.split_k <= math.ceil(K / 128), what)
                assert.matches("^" .. tiles .. " tiles", plan.reason)
                local words = (", the last %d by %d CTAs each"):format(tiles - whole, plan.split_k)
                assert.equal(whole > 0, plan.reason:find(words, 1, true) ~= nil, plan.reason)
                split[name] = (split[name] or 0) + 1
                if whole > 0 then behind[name] = (behind[name] or 0) + 1 end
              end
            end
          end
        end
      end
      return split
    end
    local int8, factors = { dtype_a = INT8 }, { dtype_a = INT8, scaling = FACTORS, group = 128 }
    for name in pairs(splits_of { {}, int8, factors, { dtype_a = INT8, zeros = 1 } }) do
      assert(split[name] >= 6, name .. " splits K " .. split[name] .. " times")
    end
    assert(split.mma_64x64 and split.mma_128x64 and split.mma_128x128 and split.turing_32x64)
    assert(behind.mma_64x64 and behind.mma_128x64 and behind.mma_128x128 and behind.mma_128x256 and
      behind.turing_128x128, "tiles behind whole waves are not shared")
    local scales = { dtype_a = INT8, scaling = GROUP_SCALES, group = 128 }
    assert.same({}, splits_of { scales, { scaling = GROUP_SCALES, group = 128 }, { dtype_a = FLOAT16 } })
    assert.same({}, splits_of({ {}, int8 }, 4))
  end)

  it("takes code_arch 0 for the device's own architecture", function()
    local p = problem(90, 1, 256, 16384)
    local _, plan = choose(p, "skinny_8")
    p.code_arch = 90
    local _, same = choose(p, "skinny_8")
    assert(plan.split_k > 1)
    assert.same(plan, same)
  end)

  -- Extents that the wgmma kernels would cast to int, and strides beyond the copy engine's.
  it("gives no kernel a size that it does not hold", function()
    local huge = { 2 ^ 31 - 1, 2 ^ 31, 2 ^ 32 + 4, 2 ^ 40, 2 ^ 53 }
    for _, arch in ipairs(ARCHITECTURES) do
      for _, size in ipairs(huge) do
        for _, p in ipairs { problem(arch, size, 4, 8), problem(arch, 4, size, 8), problem(arch, size, size, 8),
          problem(arch, 4, 128, 64, { lda = size }), problem(arch, 512, 128, 64, { ldb = size }),
          problem(arch, 512, 512, 512, { ldo = size }), problem(arch, size, 128, 33554424) } do
          local status, plan = choose(p)
          assert(status == OK, describe_problem(p) .. ": " .. tostring(plan))
          if p.M >= 2 ^ 31 - 1 or p.N >= 2 ^ 31 - 1 or p.lda >= 2 ^ 36 or p.ldb >= 2 ^ 36 then
            assert(not wgmma(plan.name), describe_problem(p) .. ": " .. plan.name)
          end
        end
      end
    end
    local status, message = choose(problem(90, 2 ^ 32 + 4, 128, 128), "hopper_256x128")
    assert.equal(UNSUPPORTED, status)
    assert.matches("needs an M and N below", message, 1, true)
  end)

  it("refuses a problem that cannot be, naming the field", function()
    local cases = {
      { "K is ", { K = 2 ^ 53 } }, { "K is 33554432, expected", { K = 33554432 } }, { "K is 12, expected", { K = 12 } },
      { "K is -8, expected", { K = -8 } }, { "M is -1, expected", { M = -1 } }, { "N is ", { N = -2 ^ 62 } },
      { "M is ", { M = 2 ^ 62 } }, { "lda is 7, expected", { lda = 7 } }, { "ldb is 63, expected", { ldb = 63 } },
      { "ldo is -1, expected", { ldo = -1 } }, { "align_a is 0, expected", { align_a = 0 } },
      { "align_b is 24, expected", { align_b = 24 } }, { "align_out is -16, expected", { align_out = -16 } },
      { "out_dtype is int8, expected", { out_dtype = 1 } },
      { "out_dtype is unknown dtype, expected", { out_dtype = 77 } },
      { "sms is 65537, expected", { sms = 65537 } }, { "sms is -5, expected", { sms = -5 } },
      { "clock is -1, expected", { clock = -1 } }, { "memory is 1000001, expected", { memory = 1000001 } },
      { "shared is -1, expected", { shared = -1 } }, { "shared is 49151, expected", { shared = 49151 } },
    }
    for _, case in ipairs(cases) do
      for _, kernel in ipairs { false, "simple", "skinny_64", "hopper_256x128" } do
        local status, message = choose(problem(90, 64, 64, 64, case[2]), kernel or nil)
        assert.equal(ARGUMENT, status, case[1])
        assert.matches(case[1], message, 1, true)
      end
    end
  end)

  it("says that an architecture before the first served has no kernel", function()
    local status, message = choose(problem(70, 64, 64, 64))
    assert.equal(UNSUPPORTED, status)
    assert.matches("no kernel serves sm_70", message, 1, true)
    status, message = choose(problem(89, 512, 512, 512), "hopper_256x128")
    assert.equal(UNSUPPORTED, status)
    assert.matches("hopper_256x128 needs sm_90, this is sm_89", message, 1, true)
    status, message = choose(problem(75, 4, 512, 512), "skinny_8")
    assert.equal(UNSUPPORTED, status)
    assert.matches("skinny_8 needs sm_80 or later, this is sm_75", message, 1, true)
  end)

  it("takes an empty problem", function()
    for _, shape in ipairs { { 0, 5, 8 }, { 5, 0, 8 }, { 0, 0, 0 }, { 5, 7, 0 } } do
      for _, arch in ipairs(ARCHITECTURES) do
        assert.equal(OK, (choose(problem(arch, shape[1], shape[2], shape[3]))))
      end
    end
  end)

  it("does not launch more threads than an output of 2^31 elements needs, nor fewer than one CTA", function()
    for _, name in ipairs(KERNELS) do
      for _, arch in ipairs { 75, 90 } do
        local status, plan = choose(problem(arch, 2 ^ 20, 2 ^ 14, 64), name)
        if status == OK then assert(plan.ctas >= 1 and plan.ctas <= 2 ^ 27, name .. ": " .. plan.ctas) end
      end
    end
  end)
end)

describe("q.choose_cuda", function()
  it("is the same choice in Lua", function()
    for _, shape in ipairs { { 1, 4096, 4096 }, { 64, 64, 64 }, { 4096, 4096, 4096 }, { 17, 3, 8 } } do
      for _, arch in ipairs { 75, 80, 90 } do
        local M, N, K = unpack(shape)
        local _, plan = choose(problem(arch, M, N, K))
        local got = q.choose_cuda { arch = arch, sms = 132, M = M, N = N, K = K }
        assert.same({ plan.name, plan.tile_m, plan.tile_n, plan.tile_k },
          { got.kernel, got.tile.m, got.tile.n, got.tile.k })
        assert.same({ plan.stages, plan.split_k, plan.ctas, plan.reason },
          { got.stages, got.split_k, got.ctas, got.reason })
      end
    end
  end)

  it("takes strides, alignments, dtypes, encodings and a kernel to force", function()
    local set = { lda = 100, ldb = 700, ldo = 900, align_a = 4, align_b = 8, align_out = 2 }
    local p = problem(90, 300, 600, 512, set)
    p.out_dtype, p.encoding_a, p.encoding_b = 4, 1, 1
    local lua = { arch = 90, sms = 132, M = 300, N = 600, K = 512, out_dtype = "float32", encoding_a = "offset",
      encoding_b = "offset" }
    for key, value in pairs(set) do lua[key] = value end
    local _, plan = choose(p)
    assert.equal(plan.name, q.choose_cuda(lua).kernel)
    assert.equal(plan.reason, q.choose_cuda(lua).reason)
    p.layout_b, lua.layout_b = 1, "nk"
    _, plan = choose(p)
    assert.matches("B along k", plan.reason, 1, true)
    assert.equal(plan.reason, q.choose_cuda(lua).reason)
    p.ldb, lua.ldb = 64, nil
    _, plan = choose(p)
    assert.equal(plan.reason, q.choose_cuda(lua).reason)
    lua.kernel = "simple"
    assert.equal("simple", q.choose_cuda(lua).kernel)
  end)

  it("gives nil and the reason where a forced kernel cannot serve", function()
    for _, name in ipairs(q.cuda_kernels()) do
      local status, message = choose(problem(75, 64, 64, 64), name)
      if status == UNSUPPORTED then
        local plan, reason = q.choose_cuda { arch = 75, sms = 40, M = 64, N = 64, K = 64, kernel = name }
        assert.is_nil(plan)
        assert.equal(message, reason)
      end
    end
  end)

  it("refuses problems that are none", function()
    local function with(set)
      local p = { arch = 90, sms = 132, M = 1, N = 1, K = 8 }
      for key, value in pairs(set) do p[key] = value end
      return p
    end
    assert.fails_with({ pattern = "^choose_cuda: M is %-1, expected a whole number" },
      function() q.choose_cuda(with { M = -1 }) end)
    assert.fails_with("choose_cuda: K is 9, expected a multiple of 8", function() q.choose_cuda(with { K = 9 }) end)
    assert.fails_with({ pattern = '^choose_cuda: unknown option "m"' }, function() q.choose_cuda(with { m = 1 }) end)
    assert.fails_with({ pattern = '^choose_cuda: .*"wgmma"' }, function() q.choose_cuda(with { kernel = "wgmma" }) end)
    for _, arch in ipairs { 75, 80, 90 } do
      assert.fails_with("choose_cuda: sms is 65537, expected from 1 to 65536",
        function() q.choose_cuda(with { arch = arch, sms = 65537 }) end)
      for _, key in ipairs { "sms", "clock", "memory", "shared" } do
        assert.fails_with({ pattern = "^choose_cuda: " .. key .. " is 0, expected a whole number from 1" },
          function() q.choose_cuda(with { arch = arch, [key] = 0 }) end)
      end
    end
    for _, arch in ipairs { "sm90", "90", "ampere", 80.5, -1, {} } do
      assert.fails_with({ pattern = '^choose_cuda: arch is .*, expected an architecture such as 86 or "sm_86"$' },
        function() q.choose_cuda(with { arch = arch }) end)
    end
    assert.fails_with({ pattern = "^choose_cuda: the problem is nil, expected a table" },
      function() q.choose_cuda() end)
  end)

  it("prints as a sentence", function()
    local text = tostring(q.choose_cuda { arch = 75, sms = 40, M = 4096, N = 4096, K = 4096, kernel = "tiled" })
    assert.matches("tiled on sm_75 (tiles of 16 x 16, ", text, 1, true)
  end)
end)

describe("the grouped kernels", function()
  local WORDS, INT8, FLOAT16, BFLOAT16, FLOAT32 = 0, ffi.C.INT4MM_INT8, ffi.C.INT4MM_FLOAT16, ffi.C.INT4MM_BFLOAT16,
    ffi.C.INT4MM_FLOAT32
  local PER_COLUMN, GROUPS, FACTORS = 0, 1, 2

  local function grouped(M, K, N, dtype_a, group, set)
    local p = problem(90, M, N, K, { dtype_a = dtype_a, scaling = group and GROUPS or PER_COLUMN, group = group or 0,
      lda = dtype_a == WORDS and K / 8 or math.ceil(K / 16) * 16 })
    for key, value in pairs(set or {}) do p[key] = value end
    return p
  end

  it("serve group scales and W4A16 of a large M, the larger tile where it fills the GPU", function()
    for _, case in ipairs {
      { 4096, 4096, 4096, WORDS, 128, "grouped_256x128" }, { 4096, 4096, 4096, INT8, 128, "grouped_256x128" },
      { 4096, 4096, 4096, BFLOAT16, 128, "grouped_256x128" }, { 4096, 4096, 4096, FLOAT16, nil, "grouped_256x128" },
      { 1024, 4096, 14336, INT8, 128, "grouped_256x128" }, { 1024, 4096, 14336, WORDS, 64, "grouped_256x128" },
      { 256, 4096, 4096, INT8, 128, "grouped_64x128" }, { 64, 4096, 4096, INT8, 128, "grouped_32x64" },
      { 128, 4096, 4096, INT8, 128, "grouped_64x64" }, { 64, 4096, 4096, BFLOAT16, 128, "grouped_32x64" },
      { 512, 4096, 4096, INT8, 128, "grouped_128x128" }, { 512, 4096, 4096, BFLOAT16, 128, "grouped_128x128" },
      { 4096, 4096, 4096, INT8, 32, "grouped_256x128" }, { 256, 4096, 4096, INT8, 32, "grouped_64x128" },
      { 256, 3072, 12288, BFLOAT16, 128, "grouped_256x128" }, { 1024, 4096, 14336, BFLOAT16, 128, "grouped_256x128" },
      { 4096, 4096, 4096, INT8, 256, "grouped_64x128" }, { 4096, 4096, 4096, WORDS, 4096, "grouped_64x128" },
    } do
      local M, K, N, dtype_a, group, expected = unpack(case, 1, 6)
      local p = grouped(M, K, N, dtype_a, group)
      local status, plan = choose(p)
      assert.equal(OK, status)
      assert(plan.name == expected, ("%s: %s, expected %s"):format(describe_problem(p), plan.name, expected))
      assert.equal(dtype_a == WORDS and 1 or 0, plan.widened)
    end
  end)

  it("serve 17 to 32 rows by tiles of as many rows, and leave fewer to skinny, wide weights too", function()
    for _, weight in ipairs { { 8192, 8192 }, { 4096, 14336 }, { 4096, 28672 }, { 4096, 128256 } } do
      for _, M in ipairs { 9, 16, 17, 32 } do
        for _, dtype_a in ipairs { WORDS, INT8, BFLOAT16 } do
          local p = grouped(M, weight[1], weight[2], dtype_a, 128)
          local status, plan = choose(p)
          assert.equal(OK, status)
          assert.equal(M > 16 and "grouped_32x64" or "skinny_16", plan.name, describe_problem(p))
        end
      end
    end
    -- 592 stripes of columns: four to a CTA would be 148 CTAs, sixteen more than there are SMs
    local status, plan = choose(grouped(16, 3584, 18944, WORDS, 128))
    assert.equal(OK, status)
    assert.same({ "skinny_16", 96, 198 }, { plan.name, plan.tile_n, plan.ctas })
  end)

  it("say what they do not serve", function()
    local function refuses(p, reason, kernels)
      for _, kernel in ipairs(kernels or { "grouped_256x128", "grouped_128x128", "grouped_64x128", "grouped_64x64",
        "grouped_32x64" }) do
        local status, message = choose(p, kernel)
        assert.equal(UNSUPPORTED, status)
        assert.matches(reason, message, 1, true)
      end
    end
    refuses(problem(90, 256, 256, 256), "is not for int4 activations")
    refuses(grouped(256, 256, 256, INT8, nil), "is not for integer activations with a scale for each column",
      { "grouped_64x128", "grouped_64x64", "grouped_32x64" })
    refuses(grouped(256, 131072, 256, INT8, nil), "needs a K below 131072 with a scale for each column",
      { "grouped_256x128", "grouped_128x128" })
    refuses(grouped(256, 256, 256, FLOAT32, 128), "is not for float32 activations")
    refuses(grouped(256, 256, 256, BFLOAT16, 128, { scaling = FACTORS }), "is not for integer group scales")
  end)

  it("say which operands the smallest of them does not serve", function()
    local function refuses(p, reason)
      local status, message = choose(p, "grouped_64x128")
      assert.equal(UNSUPPORTED, status)
      assert.equal("the kernel grouped_64x128 " .. reason, message)
    end
    assert.equal(OK, (choose(grouped(256, 256, 256, INT8, 128, { layout_b = 1, ldb = 32 }), "grouped_64x128")))
    refuses(grouped(256, 256, 257, INT8, 128, { layout_b = 1, ldb = 32 }), "needs an even N for [N, K/8]")
    local experts = grouped(256, 256, 256, INT8, 128, { layout_b = 1, ldb = 32 })
    experts.experts = 4
    refuses(experts, "needs a b_packed that is [K/8, N] for experts")
    refuses(grouped(256, 256, 257, INT8, 128), "needs rows of b_packed that start on 16 bytes")
    refuses(grouped(256, 512, 256, INT8, 96), "needs groups of 32, 64 or a multiple of 128 values")
    refuses(grouped(5, 128, 96, INT8, 96), "needs groups of 32, 64 or a multiple of 128 values")
    refuses(grouped(256, 512, 256, BFLOAT16, 160), "needs groups of 32, 64 or a multiple of 128 values")
    refuses(grouped(256, 262144, 256, INT8, 131072),
      "needs groups below 131072 values with integer activations")
    assert.equal(OK, (choose(grouped(256, 262144, 256, BFLOAT16, 131072), "grouped_64x128")))
  end)

  it("take a copy of rows of a that start off 16 bytes", function()
    for _, set in ipairs { { lda = 4100 }, { align_a = 8 } } do
      for _, dtype in ipairs { INT8, BFLOAT16 } do
        local status, plan = choose(grouped(1024, 4096, 4096, dtype, 128, set))
        assert.equal(OK, status)
        assert.matches("^grouped_", plan.name)
        assert.matches(", A copied", plan.reason, 1, true)
      end
    end
  end)

  it("have two CTAs to an SM where a small tile leaves room for them", function()
    local function ctas(M, dtype_a, group)
      local status, plan = choose(grouped(M, 4096, 4096, dtype_a, group), "grouped_32x64")
      assert.equal(OK, status)
      return plan.ctas
    end
    assert.same({ 128, 256, 264 }, { ctas(64, INT8, 256), ctas(128, INT8, 256), ctas(256, INT8, 256) })
    assert.same({ 132, 132, 132 }, { ctas(128, INT8, 128), ctas(128, INT8, 64), ctas(128, BFLOAT16, 128) })
  end)

  it("leave groups that they do not serve to another kernel", function()
    local status, plan = choose(grouped(1024, 4096, 4096, INT8, 96))
    assert.equal(OK, status)
    assert.equal("mma_128x128", plan.name)
  end)
end)

describe("the choice by architecture", function()
  local KINDS = {
    W4A4 = {}, ["W4A4, groups of 128"] = { scaling = "group_scales", group_size = 128 },
    ["W4A4, integer group scales"] = { scaling = "group_factors", group_size = 128 },
    W4A8 = { dtype_a = "int8" }, ["W4A8, groups of 128"] = { dtype_a = "int8", scaling = "group_scales",
      group_size = 128 },
    ["W4A4 of experts"] = { experts = 64 }, ["W4A8, groups of 128, of experts"] = { dtype_a = "int8", experts = 8,
      scaling = "group_scales", group_size = 128 },
    W4A16 = { dtype_a = "float16" }, ["W4A16, groups of 64"] = { dtype_a = "bfloat16", scaling = "group_scales",
      group_size = 64 },
  }

  it("has one table of architectures, each with a card", function()
    local list, before = q.architectures(), 0
    for _, a in ipairs(list) do
      assert(a.arch > before and #a.card > 0, a.arch)
      for _, key in ipairs { "sms", "clock", "memory", "l2", "shared", "int4_macs", "int8_macs", "fp16_macs" } do
        assert(a[key] > 0, a.card .. " has no " .. key)
      end
      -- native int4 tensor cores, twice int8's rate, are those of Turing, Ampere and Ada
      assert.equal(a.arch < 90, a.int4_macs == 2 * a.int8_macs, a.card)
      before = a.arch
    end
    for _, arch in ipairs(ARCHITECTURES) do
      local found = false
      for _, a in ipairs(list) do found = found or a.arch == arch end
      assert(found, arch)
    end
    assert(lib.int4mm_architecture_at(-1) == nil and lib.int4mm_architecture_at(#list) == nil)
  end)

  it("is explained for each of them and every kind of operands", function()
    for _, a in ipairs(q.architectures()) do
      for kind, set in pairs(KINDS) do
        for _, M in ipairs { 1, 16, 64, 300, 4096 } do
          local shape = { arch = "sm_" .. a.arch, M = M, K = 4096, N = 4096 }
          for key, value in pairs(set) do shape[key] = value end
          local plan = q.explain(shape)
          local what = ("%s on sm_%d, M = %d: %s"):format(kind, a.arch, M, plan.reason)
          assert(#plan.reason < 207, what .. " is cut off")
          local elementary = plan.kernel == "simple" or plan.kernel == "tiled"
          assert(elementary == (plan.reason:find "; by times " == nil), what)
          if a.arch == 90 and not elementary then
            assert.matches("; by times measured on sm_90", plan.reason, 1, true)
          elseif not elementary then
            local how = a.arch < 80 and "derived for" or "scaled from sm_90 to"
            assert.matches(("; by times %s %d MHz and %d GB/s of %s"):format(how, a.clock, a.memory, a.card),
              plan.reason, 1, true)
          end
        end
      end
    end
  end)

  it("takes the device's own clock and memory before the card's", function()
    local shape = { arch = 86, sms = 84, clock = 1800, memory = 768, M = 4096, K = 4096, N = 4096 }
    assert.matches("by times scaled from sm_90 to 1800 MHz and 768 GB/s$", q.explain(shape).reason)
    assert.matches("on 84 SMs", q.explain(shape).reason, 1, true)
    shape.memory = nil
    assert.matches("to 1800 MHz and 936 GB/s of RTX 3090$", q.explain(shape).reason)
    shape.sms = nil
    assert.matches("on 82 SMs", q.explain(shape).reason, 1, true)
  end)

  -- 16 rows read the weight once: memory bounds them; where tensor cores are slow beside it, tiles of many rows are
  it("weighs memory against tensor cores", function()
    local function kernel(set)
      local shape = { arch = 86, M = 48, K = 4096, N = 4096 }
      for key, value in pairs(set) do shape[key] = value end
      return q.explain(shape).kernel
    end
    local few = kernel { M = 4 }
    assert.matches("^skinny_8", few)
    assert.matches("^mma", kernel { M = 512 })
    for _, a in ipairs(q.architectures()) do
      if a.arch >= 80 and a.arch ~= 90 then
        assert.matches("^skinny", kernel { arch = a.arch, M = 1 })
        assert.matches("^mma", kernel { arch = a.arch, M = 4096 })
      end
    end
  end)

  -- Code of sm_80 on an sm_90, where int4 mma.sync is emulated: 49 TOPS, of 1,320 by int8.
  it("knows what an emulated instruction costs", function()
    for _, arch in ipairs { 90, 100, 120 } do
      for _, M in ipairs { 64, 512, 4096 } do
        local p = problem(arch, M, 4096, 4096, { code_arch = 80 })
        local _, plan = choose(p, "mma_128x128")
        assert.matches("by int4 mma.sync", plan.reason, 1, true)
        _, plan = choose(p) -- A made int8 first costs less, or wgmma does
        assert(arch == 90 and wgmma(plan.name) or arch > 90 and plan.widened == 1, describe_problem(p) .. plan.reason)
        p.code_arch = 0
        _, plan = choose(p)
        assert.equal(0, plan.widened)
      end
    end
    for _, arch in ipairs { 80, 86, 89 } do -- where it is native
      local _, plan = choose(problem(arch, 512, 4096, 4096))
      assert.matches("^mma.*0$", plan.name .. plan.widened)
    end
  end)

  -- Built for 75 and 90a, kernels/sm80 has no code that an sm_80 runs.
  it("takes no kernel that has no code on the device", function()
    for _, M in ipairs { 1, 64, 4096 } do
      local p = problem(80, M, 4096, 4096, { code_arch = 75 })
      local _, plan = choose(p)
      assert(not plan.name:find "^skinny" and not plan.name:find "^mma", plan.name)
      local status, message = choose(p, "skinny_8")
      assert.equal(UNSUPPORTED, status)
      assert.equal("the kernel skinny_8 needs code for sm_80 or later", message)
    end
  end)

  it("lets a CTA have no more shared memory than there is", function()
    local function stages(shared)
      local _, plan = choose(problem(80, 64, 4096, 4096, { dtype_a = 2, lda = 4096, shared = shared }), "skinny_64")
      return type(plan) == "table" and plan.tile_n * plan.tile_k * plan.stages or 0
    end
    assert(stages(163 * 1024) > stages(48 * 1024))
    assert.equal(stages(163 * 1024), stages(0))
  end)

  it("splits K over a cluster only on architectures that have them", function()
    local _, plan = choose(problem(80, 1, 256, 16384, { code_arch = 90 }), "skinny_8")
    assert.equal(1, plan.split_k)
    _, plan = choose(problem(90, 1, 256, 16384, { code_arch = 90 }), "skinny_8")
    assert(plan.split_k > 1)
  end)
end)
