--- Matrix multiplication by int4 weights on CPUs and CUDA GPUs, exact with int4 and int8 activations.
--
--     local q = require "int4mm"
--     local a_packed, b_packed, scale_a, scale_b = q.generate_test_data(1024, 1024, 1024)
--     print(q.int4_matmul(a_packed, b_packed, scale_a, scale_b))
--
-- Everything public is a field of this module; the modules below it say how each part works. Mistakes of the caller
-- raise, at the caller's line; what may legitimately fail returns nil or false and the reason. Indices and dimensions
-- count from 1.
--
-- - the product: @{int4mm.ops.int4_matmul|int4_matmul}, @{int4mm.ops.int4_matmul_cpu|int4_matmul_cpu},
--   @{int4mm.ops.int4_matmul_cuda|int4_matmul_cuda}, the oracle
--   @{int4mm.reference.int4_matmul_reference|int4_matmul_reference} and what it holds others to with floats,
--   @{int4mm.reference.int4_matmul_bound|int4_matmul_bound}; @{int4mm.ops.prepack|prepack}
-- - the products of several experts, or of a batch: @{int4mm.ops.int4_grouped_matmul|int4_grouped_matmul},
--   @{int4mm.ops.int4_grouped_matmul_cpu|int4_grouped_matmul_cpu},
--   @{int4mm.ops.int4_grouped_matmul_cuda|int4_grouped_matmul_cuda}, the oracle
--   @{int4mm.reference.int4_grouped_matmul_reference|int4_grouped_matmul_reference}
-- - what a product would do: @{int4mm.ops.explain|explain}, @{int4mm.ops.choose_cuda|choose_cuda},
--   @{int4mm.ops.cuda_kernels|cuda_kernels}, @{int4mm.ops.architectures|architectures},
--   @{int4mm.tune.tune|tune}, @{int4mm.tune.load_tuning|load_tuning}
-- - layers: @{int4mm.linear.linear|linear}, @{int4mm.linear.int4_linear|int4_linear},
--   @{int4mm.linear.linear_workspace|linear_workspace}, the oracle
--   @{int4mm.reference.int4_linear_reference|int4_linear_reference}
-- - packing: @{int4mm.ops.pack_int4_to_int32|pack_int4_to_int32},
--   @{int4mm.ops.unpack_int32_to_int4|unpack_int32_to_int4}; data:
--   @{int4mm.factory.generate_test_data|generate_test_data}
-- - quantising: @{int4mm.ops.rotate|rotate}, @{int4mm.ops.quantize|quantize}, @{int4mm.ops.dequantize|dequantize}, the
--   oracles @{int4mm.reference.rotate_reference|rotate_reference},
--   @{int4mm.reference.quantize_reference|quantize_reference} and
--   @{int4mm.reference.dequantize_reference|dequantize_reference}
-- - between products: @{int4mm.elementwise.add|add}, @{int4mm.elementwise.mul|mul}, @{int4mm.elementwise.exp|exp},
--   @{int4mm.elementwise.tanh|tanh}, @{int4mm.elementwise.erf|erf}, @{int4mm.elementwise.relu|relu},
--   @{int4mm.elementwise.silu|silu}, @{int4mm.elementwise.gelu|gelu}, @{int4mm.elementwise.softmax|softmax},
--   @{int4mm.elementwise.layer_norm|layer_norm}, @{int4mm.elementwise.rms_norm|rms_norm},
--   @{int4mm.elementwise.argmax|argmax}; their oracle is the table `elementwise_reference`
--   (@{int4mm.elementwise_reference})
-- - files: @{int4mm.io.safetensors.open_safetensors|open_safetensors},
--   @{int4mm.io.safetensors.save_safetensors|save_safetensors}, @{int4mm.io.npy.load_npy|load_npy},
--   @{int4mm.io.npy.save_npy|save_npy}; layers in files: @{int4mm.io.layers.save|save}, @{int4mm.io.layers.load|load},
--   @{int4mm.io.checkpoint.load_linear|load_linear}
-- - tensors: @{int4mm.factory.tensor|tensor}, @{int4mm.factory.empty|empty}, @{int4mm.factory.zeros|zeros},
--   @{int4mm.factory.ones|ones}, @{int4mm.factory.full|full}, @{int4mm.factory.random|random},
--   @{int4mm.factory.wrap|wrap}, @{int4mm.shape.cat|cat}, @{int4mm.tensor.is_tensor|is_tensor}, and the methods in
--   @{int4mm.tensor}, @{int4mm.shape} and @{int4mm.reduce}. A dtype is "int32", "int8", "float16" ("half"), "bfloat16"
--   or "float32" ("float")
-- - tensors of other libraries: @{int4mm.dlpack.from_dlpack|from_dlpack} and `to_dlpack` in @{int4mm.dlpack}
-- - devices: @{int4mm.device.cuda_available|cuda_available}, @{int4mm.device.device_count|device_count},
--   @{int4mm.device.device_info|device_info}, @{int4mm.device.synchronize|synchronize}, @{int4mm.device.stream|stream},
--   @{int4mm.device.with_stream|with_stream}, @{int4mm.event.event|event}
-- - CUDA graphs: @{int4mm.graph.graph|graph}
-- - the CPU: @{int4mm.device.set_num_threads|set_num_threads}, @{int4mm.device.get_num_threads|get_num_threads},
--   @{int4mm.device.cpu_isa|cpu_isa}, @{int4mm.device.set_cpu_isa|set_cpu_isa}, @{int4mm.device.cpu_isas|cpu_isas}
-- - memory: @{int4mm.internal.memory.figures|memory}, @{int4mm.internal.memory.set_slack|set_memory_slack}
-- @module int4mm

if not pcall(require, "ffi") or not jit then
  error("int4mm: this is " .. _VERSION .. " without the FFI; int4mm needs LuaJIT 2.1, so start the program with luajit",
    0)
end

local binding = require "int4mm.lib"
local factory = require "int4mm.factory"
local checkpoint = require "int4mm.io.checkpoint"
local device = require "int4mm.device"
local dlpack = require "int4mm.dlpack"
local elementwise = require "int4mm.elementwise"
local event = require "int4mm.event"
local graph = require "int4mm.graph"
local layers = require "int4mm.io.layers"
local linear = require "int4mm.linear"
local memory = require "int4mm.internal.memory"
local npy = require "int4mm.io.npy"
local ops = require "int4mm.ops"
local reference = require "int4mm.reference"
local safetensors = require "int4mm.io.safetensors"
local shape = require "int4mm.shape"
local tensor = require "int4mm.tensor"
local tune = require "int4mm.tune"
require "int4mm.reduce" -- methods of tensors

local warning = binding.lib.int4mm_warning() -- of the environment's variables
if warning ~= nil then
  io.stderr:write("int4mm: ", (require("ffi").string(warning):gsub("\n", "\nint4mm: ")), "\n")
end
local untuned = tune.load_environment()
if untuned then io.stderr:write("int4mm: ", untuned, "\n") end

return {
  --- The version of the library, as "0.1.0".
  _VERSION = binding.version,

  -- the product
  int4_matmul = ops.int4_matmul,
  int4_matmul_cpu = ops.int4_matmul_cpu,
  int4_matmul_cuda = ops.int4_matmul_cuda,
  int4_matmul_reference = reference.int4_matmul_reference,
  int4_matmul_bound = reference.int4_matmul_bound,
  int4_grouped_matmul = ops.int4_grouped_matmul,
  int4_grouped_matmul_cpu = ops.int4_grouped_matmul_cpu,
  int4_grouped_matmul_cuda = ops.int4_grouped_matmul_cuda,
  int4_grouped_matmul_reference = reference.int4_grouped_matmul_reference,
  prepack = ops.prepack,
  explain = ops.explain,
  choose_cuda = ops.choose_cuda,
  cuda_kernels = ops.cuda_kernels,
  architectures = ops.architectures,
  tune = tune.tune,
  load_tuning = tune.load_tuning,

  -- layers
  linear = linear.linear,
  int4_linear = linear.int4_linear,
  int4_linear_reference = reference.int4_linear_reference,
  linear_workspace = linear.linear_workspace,

  -- packing, quantising, test data
  pack_int4_to_int32 = ops.pack_int4_to_int32,
  unpack_int32_to_int4 = ops.unpack_int32_to_int4,
  rotate = ops.rotate,
  rotate_reference = reference.rotate_reference,
  quantize = ops.quantize,
  quantize_reference = reference.quantize_reference,
  dequantize = ops.dequantize,
  dequantize_reference = reference.dequantize_reference,
  generate_test_data = factory.generate_test_data,

  -- between products
  add = elementwise.add,
  mul = elementwise.mul,
  exp = elementwise.exp,
  tanh = elementwise.tanh,
  erf = elementwise.erf,
  relu = elementwise.relu,
  silu = elementwise.silu,
  gelu = elementwise.gelu,
  softmax = elementwise.softmax,
  layer_norm = elementwise.layer_norm,
  rms_norm = elementwise.rms_norm,
  argmax = elementwise.argmax,
  elementwise_reference = require "int4mm.elementwise_reference",

  -- files
  open_safetensors = safetensors.open_safetensors,
  save_safetensors = safetensors.save_safetensors,
  load_npy = npy.load_npy,
  save_npy = npy.save_npy,
  save = layers.save,
  load = layers.load,
  load_linear = checkpoint.load_linear,

  -- tensors
  tensor = factory.tensor,
  empty = factory.empty,
  zeros = factory.zeros,
  ones = factory.ones,
  full = factory.full,
  random = factory.random,
  wrap = factory.wrap,
  cat = shape.cat,
  from_dlpack = dlpack.from_dlpack,
  is_tensor = tensor.is_tensor,

  -- devices, streams, threads, memory
  cuda_available = device.cuda_available,
  device_count = device.device_count,
  device_info = device.device_info,
  synchronize = device.synchronize,
  stream = device.stream,
  with_stream = device.with_stream,
  event = event.event,
  graph = graph.graph,
  set_num_threads = device.set_num_threads,
  get_num_threads = device.get_num_threads,
  cpu_isa = device.cpu_isa,
  set_cpu_isa = device.set_cpu_isa,
  cpu_isas = device.cpu_isas,
  memory = memory.figures,
  set_memory_slack = memory.set_slack,
} --[[@as int4mm]] -- lua/int4mm/meta/types.lua has the types
