--- Exact int4 (W4A4) matrix multiplication on CPUs and CUDA GPUs.
--
--     local q = require "int4mm"
--     local a_packed, b_packed, scale_a, scale_b = q.generate_test_data(1024, 1024, 1024)
--     print(q.int4_matmul(a_packed, b_packed, scale_a, scale_b))
--
-- Everything public is a field of this module; the modules below it say how each part works. Mistakes of the caller
-- raise, at the caller's line; what may legitimately fail returns nil or false and the reason. Indices and dimensions
-- count from 1.
-- @module int4mm

local binding = require "int4mm.ffi"
local construct = require "int4mm.construct"
local data = require "int4mm.data"
local device = require "int4mm.device"
local memory = require "int4mm.memory"
local ops = require "int4mm.ops"
local tensor = require "int4mm.tensor"

return {
  --- The version of the library, as "0.1.0".
  _VERSION = binding.version,

  -- the product
  int4_matmul = ops.int4_matmul,
  int4_matmul_cpu = ops.int4_matmul_cpu,
  int4_matmul_cuda = ops.int4_matmul_cuda,
  int4_matmul_reference = require "int4mm.reference",
  prepack = ops.prepack,
  explain = ops.explain,
  choose_cuda = ops.choose_cuda,
  cuda_kernels = ops.cuda_kernels,

  -- packing, quantising, test data
  pack_int4_to_int32 = ops.pack_int4_to_int32,
  unpack_int32_to_int4 = ops.unpack_int32_to_int4,
  quantize = ops.quantize,
  dequantize = ops.dequantize,
  generate_test_data = data.generate_test_data,

  -- tensors
  tensor = construct.tensor,
  empty = construct.empty,
  zeros = construct.zeros,
  ones = construct.ones,
  full = construct.full,
  random = construct.random,
  wrap = construct.wrap,
  is_tensor = tensor.is_tensor,

  -- devices, streams, threads, memory
  cuda_available = device.cuda_available,
  device_count = device.device_count,
  device_info = device.device_info,
  synchronize = device.synchronize,
  stream = device.stream,
  set_num_threads = device.set_num_threads,
  get_num_threads = device.get_num_threads,
  cpu_isa = device.cpu_isa,
  set_cpu_isa = device.set_cpu_isa,
  cpu_isas = device.cpu_isas,
  memory = memory.figures,
  set_memory_slack = memory.set_slack,
}
