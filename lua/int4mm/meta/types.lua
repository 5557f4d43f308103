---@meta _
--- Types of the module for editors (LuaCATS, as lua-language-server and EmmyLua read it); never loaded. What each
--- function does is told at length in the reference that `make docs` writes.
---
--- A new public function: its signature below, in the order of lua/int4mm/init.lua, and its options as a class, one
--- `---@field` each. spec/types_spec.lua holds all of it against the module.

---@alias int4mm.dtype "int32"|"int8"|"float16"|"half"|"bfloat16"|"float32"|"float"
---@alias int4mm.float_dtype "float16"|"half"|"bfloat16"|"float32"|"float"
---@alias int4mm.device string "cpu", "cuda" (the first GPU), "cuda:0" and so on
---@alias int4mm.encoding "twos_complement"|"offset"
---@alias int4mm.layout "kn"|"nk"
---@alias int4mm.activation "none"|"relu"|"silu"|"gelu"|"gelu_tanh"
---@alias int4mm.activations "int4"|"int8"|"float"
---@alias int4mm.any_stream int4mm.stream|ffi.cdata*|lightuserdata one of q.stream, or a cudaStream_t of another library

-- ---- tensors ----

---How a matrix of words is packed.
---@class int4mm.packing
---@field dim 1|2 the dimension that is packed eight to a word
---@field encoding int4mm.encoding
---@field length? integer how many values there are along it, where that is known
---@field rotate? integer the block that q.quantize rotated by
---@field with? "zeros"|"factors" what q.quantize wrote beside the scales

---A matrix or a vector on the CPU or a GPU. All fields are for reading.
---@class int4mm.tensor
---@field shape integer[] { rows, columns } or { length }
---@field dtype int4mm.dtype
---@field device int4mm.device
---@field stride integer elements from one row to the next
---@field layout "rows"|"panels" "panels" of a prepacked weight, whose elements cannot be read
---@field packing? int4mm.packing
---@field pinned boolean whether it lies in page-locked host memory
local tensor = {}

---@class int4mm.copy_options
---@field stream? int4mm.any_stream
---@field non_blocking? boolean a copy between pinned memory and a GPU is enqueued too

---@class int4mm.mark_options
---@field dim? 1|2
---@field encoding? int4mm.encoding
---@field length? number

---@class int4mm.stream_options
---@field stream? int4mm.any_stream

---@class int4mm.allclose_options
---@field rtol? number 1e-5
---@field atol? number 1e-8
---@field equal_nan? boolean

---@class int4mm.to_dlpack_options
---@field versioned? boolean
---@field stream? int4mm.any_stream|number

---@return integer
function tensor:dim() end

---@return integer
function tensor:numel() end

---@param dim? 1|2
---@return integer|integer[]
---@overload fun(self: int4mm.tensor): integer[]
---@overload fun(self: int4mm.tensor, dim: 1|2): integer
function tensor:size(dim) end

---@return integer
function tensor:bytes() end

---A typed C pointer to the first element, which counts from 0 and keeps nothing alive.
---@return any
function tensor:data() end

---@return boolean
function tensor:is_contiguous() end

---@return int4mm.tensor
function tensor:contiguous() end

---@return int4mm.tensor
function tensor:clone() end

---@param src int4mm.tensor
---@param opts? int4mm.any_stream|int4mm.copy_options
---@return int4mm.tensor self
function tensor:copy_(src, opts) end

---@return int4mm.tensor
function tensor:pin() end

---@param where int4mm.device|int4mm.dtype
---@param also? int4mm.device|int4mm.dtype
---@param opts? int4mm.copy_options
---@return int4mm.tensor
---@overload fun(self: int4mm.tensor, where: int4mm.device|int4mm.dtype, opts: int4mm.copy_options): int4mm.tensor
function tensor:to(where, also, opts) end

---@param dim 1|2
---@param first number counted from 1
---@param length number
---@return int4mm.tensor view
function tensor:narrow(dim, first, length) end

---@param i number
---@param j? number
---@return number
function tensor:get(i, j) end

---@param i number
---@param j number the column, of a vector the value
---@param value? number
---@return int4mm.tensor self
function tensor:set(i, j, value) end

---@param value number
---@return int4mm.tensor self
function tensor:fill_(value) end

---@param byte number
---@param stream? int4mm.any_stream
---@return int4mm.tensor self
function tensor:fill_bytes_(byte, stream) end

---@param opts? int4mm.mark_options
---@return int4mm.tensor self
function tensor:mark_(opts) end

---@return int4mm.tensor self
function tensor:unmark_() end

---@return number[]|number[][]
function tensor:totable() end

---@param other int4mm.tensor
---@return boolean
---@return string? difference
function tensor:equal(other) end

function tensor:free() end

---@param rows number[]
---@param columns? number
---@return int4mm.tensor view
function tensor:view(rows, columns) end

---@param rows number[]
---@param columns? number
---@return int4mm.tensor
function tensor:reshape(rows, columns) end

---@return fun(t: int4mm.tensor, i: integer): integer?, int4mm.tensor?
---@return int4mm.tensor
---@return integer
function tensor:rows() end

---@param opts? int4mm.stream_options
---@return int4mm.tensor
function tensor:t(opts) end

---@param dim 1|2
---@param indices int4mm.tensor|number[] a table counts from 1, an int32 tensor from 0
---@param opts? int4mm.stream_options
---@return int4mm.tensor
function tensor:index_select(dim, indices, opts) end

---@return number
function tensor:sum() end

---@return number
function tensor:mean() end

---@return number
function tensor:max() end

---@return number
function tensor:min() end

---@return number
function tensor:abs_max() end

---@param other int4mm.tensor
---@param opts? int4mm.allclose_options
---@return boolean
---@return string? difference
function tensor:allclose(other, opts) end

---@param opts? int4mm.to_dlpack_options
---@return ffi.cdata* managed
function tensor:to_dlpack(opts) end

-- ---- layers ----

---A linear layer: `layer(x)`.
---@class int4mm.linear
---@field weight int4mm.tensor packed words
---@field scales int4mm.tensor # [N], or [G, N]
---@field zeros? int4mm.tensor int8 zero points of that shape
---@field factors? int4mm.tensor int8 [G, N]
---@field group_size? integer
---@field order? int4mm.tensor int32 [K]
---@field activations int4mm.activations
---@field bias? int4mm.tensor
---@field in_features integer
---@field out_features integer
---@field rotate integer the block, 0 for none
---@field clip? number|"mse"
---@field activation int4mm.activation
---@field out_dtype? int4mm.float_dtype
---@overload fun(x: int4mm.tensor, opts?: int4mm.layer_call_options): int4mm.tensor
local linear = {}

---@class int4mm.layer_call_options
---@field residual? int4mm.tensor # [M, N], added after the activation
---@field out? int4mm.tensor
---@field out_dtype? int4mm.float_dtype
---@field workspace? int4mm.tensor
---@field stream? int4mm.any_stream
---@field kernel? string

---@param device int4mm.device
---@return int4mm.linear
function linear:to(device) end

---@return table<string, int4mm.tensor>
function linear:parameters() end

---@return integer
function linear:bytes() end

-- ---- GPU ----

---@class int4mm.stream
---@field device int4mm.device
---@field handle ffi.cdata*
local stream = {}

function stream:synchronize() end

---Later work on the stream comes after the event.
---@param e int4mm.event
---@return int4mm.stream self
function stream:wait(e) end

function stream:destroy() end

---@class int4mm.event
---@field device int4mm.device
---@field handle ffi.cdata*
local event = {}

---@param stream? int4mm.any_stream
---@return int4mm.event self
function event:record(stream) end

function event:synchronize() end

---@return boolean
function event:query() end

---@param stop int4mm.event
---@return number milliseconds
function event:elapsed(stop) end

function event:free() end

---@class int4mm.graph
---@field device int4mm.device
---@field nodes integer
local graph = {}

---@param stream? int4mm.any_stream
---@return int4mm.graph self
function graph:launch(stream) end

function graph:synchronize() end

function graph:free() end

-- ---- files ----

---An open safetensors file, or the files of one model.
---@class int4mm.safetensors
---@field path string
---@field metadata table<string, string>
local safetensors = {}

---@return string[]
function safetensors:names() end

---@param name string
---@return boolean
function safetensors:has(name) end

---@param name string
---@return { dtype: string, shape: integer[], bytes: integer, path: string }
function safetensors:info(name) end

---@param name string
---@return int4mm.tensor
function safetensors:tensor(name) end

---@param name string
---@return string
function safetensors:bytes(name) end

---@param name string
---@return any[]
function safetensors:values(name) end

function safetensors:close() end

-- ---- the module ----

---@class int4mm
---@field _VERSION string
---@field elementwise_reference table<string, function> the oracle of what stands between products
local int4mm = {}

---@class int4mm.matmul_options
---@field out? int4mm.tensor # [M, N] to write to
---@field out_dtype? int4mm.float_dtype of a new result, "float16" by default
---@field bias? int4mm.tensor # [N] float32
---@field zeros? int4mm.tensor zero points of scale_b's shape: int8, or int32 words of eight along N
---@field factors? int4mm.tensor integer group scales [G, N], int8 from 1 to 15
---@field group_size? number values of K in a group, by default K / G
---@field encoding_a? int4mm.encoding of words that do not know theirs
---@field encoding_b? int4mm.encoding
---@field layout_b? int4mm.layout
---@field stream? int4mm.any_stream
---@field kernel? string the name of a CUDA kernel, of q.cuda_kernels
---@field strassen? boolean|0|1|2 on the CPU: by measured rules (true, the default), never, or so many levels

---@class int4mm.explain_options
---@field out? int4mm.tensor # [M, N] to write to
---@field out_dtype? int4mm.float_dtype of a new result, "float16" by default
---@field bias? int4mm.tensor # [N] float32
---@field zeros? int4mm.tensor zero points of scale_b's shape: int8, or int32 words of eight along N
---@field factors? int4mm.tensor integer group scales [G, N], int8 from 1 to 15
---@field group_size? number values of K in a group, by default K / G
---@field encoding_a? int4mm.encoding of words that do not know theirs
---@field encoding_b? int4mm.encoding
---@field layout_b? int4mm.layout
---@field stream? int4mm.any_stream
---@field kernel? string the name of a CUDA kernel, of q.cuda_kernels
---@field strassen? boolean|0|1|2 on the CPU: by measured rules (true, the default), never, or so many levels
---@field offsets? int4mm.tensor|number of a grouped product

---@class int4mm.matmul_reference_options
---@field out? int4mm.tensor
---@field out_dtype? int4mm.float_dtype
---@field bias? int4mm.tensor
---@field zeros? int4mm.tensor
---@field factors? int4mm.tensor
---@field group_size? number
---@field encoding_a? int4mm.encoding
---@field encoding_b? int4mm.encoding
---@field layout_b? int4mm.layout

---@class int4mm.matmul_bound_options
---@field out_dtype? int4mm.float_dtype
---@field bias? int4mm.tensor
---@field zeros? int4mm.tensor
---@field factors? int4mm.tensor
---@field group_size? number
---@field encoding_b? int4mm.encoding
---@field layout_b? int4mm.layout

---@class int4mm.prepack_options
---@field layout_b? int4mm.layout
---@field encoding? int4mm.encoding

---What a product would do; tostring makes a sentence of it.
---@class int4mm.plan
---@field device int4mm.device
---@field kernel string
---@field tile { m: integer, n: integer, k: integer }
---@field stages integer
---@field split_k integer
---@field ctas integer
---@field reason string
---@field arch? integer of q.choose_cuda: the problem's
---@field a_packed? string
---@field b_packed? string

---@class int4mm.gpu_problem
---@field arch number|string 90 or "sm_90" for compute capability 9.0
---@field code_arch? number|string what the kernels for every architecture were compiled for
---@field sms? number that of the architecture's card by default, as the next three
---@field clock? number MHz
---@field memory? number GB/s
---@field shared? number bytes that a CTA may have
---@field M number
---@field N number
---@field K number
---@field lda? number words from row to row, elements of an A that is none
---@field ldb? number
---@field ldo? number elements from row to row
---@field align_a? number a power of two up to 256 that divides the address
---@field align_b? number
---@field align_out? number
---@field out_dtype? int4mm.float_dtype
---@field encoding_a? int4mm.encoding
---@field encoding_b? int4mm.encoding
---@field layout_b? int4mm.layout
---@field dtype_a? "int32"|"int8"|int4mm.float_dtype words of int4 by default
---@field scaling? "per_column"|"group_scales"|"group_factors"
---@field group_size? number
---@field zeros? boolean whether there are zero points
---@field experts? number of a grouped product, whose M counts the rows of all
---@field kernel? string

---The product with an int4 weight, where its operands are; of int4 and int8 exact up to one rounding.
---@param a_packed int4mm.tensor # [M, K/8] int32 words, or [M, K] int8 or floats
---@param b_packed int4mm.tensor # [K/8, N] int32, or [N, K/8], or a weight of q.prepack
---@param scale_a int4mm.tensor|nil # [M] float32; nil for floats
---@param scale_b int4mm.tensor # [N] float32, or [G, N] of floats
---@param opts? int4mm.matmul_options
---@return int4mm.tensor
function int4mm.int4_matmul(a_packed, b_packed, scale_a, scale_b, opts) end

---As q.int4_matmul, on the CPU.
---@param a_packed int4mm.tensor
---@param b_packed int4mm.tensor
---@param scale_a int4mm.tensor|nil
---@param scale_b int4mm.tensor
---@param opts? int4mm.matmul_options
---@return int4mm.tensor
function int4mm.int4_matmul_cpu(a_packed, b_packed, scale_a, scale_b, opts) end

---As q.int4_matmul, on a GPU.
---@param a_packed int4mm.tensor
---@param b_packed int4mm.tensor
---@param scale_a int4mm.tensor|nil
---@param scale_b int4mm.tensor
---@param opts? int4mm.matmul_options
---@return int4mm.tensor
function int4mm.int4_matmul_cuda(a_packed, b_packed, scale_a, scale_b, opts) end

---The product in plain LuaJIT, to compare with.
---@param a_packed int4mm.tensor
---@param b_packed int4mm.tensor
---@param scale_a int4mm.tensor|nil
---@param scale_b int4mm.tensor
---@param opts? int4mm.matmul_reference_options
---@return int4mm.tensor
function int4mm.int4_matmul_reference(a_packed, b_packed, scale_a, scale_b, opts) end

---How near q.int4_matmul is with an `a` of floats: the exact results and the bound of each, as rows.
---@param a int4mm.tensor
---@param b_packed int4mm.tensor
---@param scale_b int4mm.tensor
---@param opts? int4mm.matmul_bound_options
---@return number[][] exact
---@return number[][] bound
function int4mm.int4_matmul_bound(a, b_packed, scale_b, opts) end

---The products of several experts, or of a batch.
---@param a_packed int4mm.tensor # [T, K/8] int32 words, or [T, K] int8 or floats: each expert's rows in turn
---@param b_packed int4mm.tensor # [E * K/8, N] int32, or [E * N, K/8]
---@param scale_a int4mm.tensor|nil # [T] float32; nil for floats
---@param scale_b int4mm.tensor # [E, N] float32, or [E * G, N] of floats
---@param offsets int4mm.tensor|number # [E + 1] int32, where each expert's rows begin; or E
---@param opts? int4mm.matmul_options
---@return int4mm.tensor
function int4mm.int4_grouped_matmul(a_packed, b_packed, scale_a, scale_b, offsets, opts) end

---As q.int4_grouped_matmul, on the CPU.
---@param a_packed int4mm.tensor # [T, K/8] int32 words, or [T, K] int8 or floats: each expert's rows in turn
---@param b_packed int4mm.tensor # [E * K/8, N] int32, or [E * N, K/8]
---@param scale_a int4mm.tensor|nil # [T] float32; nil for floats
---@param scale_b int4mm.tensor # [E, N] float32, or [E * G, N] of floats
---@param offsets int4mm.tensor|number # [E + 1] int32, where each expert's rows begin; or E
---@param opts? int4mm.matmul_options
---@return int4mm.tensor
function int4mm.int4_grouped_matmul_cpu(a_packed, b_packed, scale_a, scale_b, offsets, opts) end

---As q.int4_grouped_matmul, on a GPU.
---@param a_packed int4mm.tensor # [T, K/8] int32 words, or [T, K] int8 or floats: each expert's rows in turn
---@param b_packed int4mm.tensor # [E * K/8, N] int32, or [E * N, K/8]
---@param scale_a int4mm.tensor|nil # [T] float32; nil for floats
---@param scale_b int4mm.tensor # [E, N] float32, or [E * G, N] of floats
---@param offsets int4mm.tensor|number # [E + 1] int32, where each expert's rows begin; or E
---@param opts? int4mm.matmul_options
---@return int4mm.tensor
function int4mm.int4_grouped_matmul_cuda(a_packed, b_packed, scale_a, scale_b, offsets, opts) end

---The products of several experts in plain LuaJIT, to compare with.
---@param a_packed int4mm.tensor # [T, K/8] int32 words, or [T, K] int8 or floats: each expert's rows in turn
---@param b_packed int4mm.tensor # [E * K/8, N] int32, or [E * N, K/8]
---@param scale_a int4mm.tensor|nil # [T] float32; nil for floats
---@param scale_b int4mm.tensor # [E, N] float32, or [E * G, N] of floats
---@param offsets int4mm.tensor|number # [E + 1] int32, where each expert's rows begin; or E
---@param opts? int4mm.matmul_reference_options
---@return int4mm.tensor
function int4mm.int4_grouped_matmul_reference(a_packed, b_packed, scale_a, scale_b, offsets, opts) end

---Rearranges a weight once for many products on the CPU.
---@param b_packed int4mm.tensor
---@param opts? int4mm.prepack_options
---@return int4mm.tensor
function int4mm.prepack(b_packed, opts) end

---What q.int4_matmul, or with `offsets` q.int4_grouped_matmul, would do with these arguments; with one
---int4mm.gpu_problem in their place, what a GPU would.
---@overload fun(problem: int4mm.gpu_problem): int4mm.plan?, string?
---@param a_packed int4mm.tensor
---@param b_packed int4mm.tensor
---@param scale_a int4mm.tensor|nil
---@param scale_b int4mm.tensor
---@param opts? int4mm.explain_options
---@return int4mm.plan
function int4mm.explain(a_packed, b_packed, scale_a, scale_b, opts) end

---The choice of a CUDA kernel, which needs no GPU.
---@param problem int4mm.gpu_problem
---@return int4mm.plan?
---@return string? reason why the kernel that was asked for cannot serve it
function int4mm.choose_cuda(problem) end

---@return string[]
function int4mm.cuda_kernels() end

---@class int4mm.architecture
---@field arch number
---@field card string
---@field sms number
---@field clock number MHz
---@field memory number GB/s
---@field l2 number bytes
---@field shared number bytes that a CTA may have
---@field int4_macs number multiply-adds of an SM a clock by mma.sync
---@field int8_macs number
---@field fp16_macs number

---The architectures that the CUDA kernels serve, oldest first.
---@return int4mm.architecture[]
function int4mm.architectures() end

---@class int4mm.tuned_product
---@field M number
---@field K number
---@field N number
---@field dtype_a? "int32"|"int8"|int4mm.float_dtype words of int4 by default
---@field scaling? "per_column"|"group_scales"|"group_factors"
---@field group_size? number
---@field zeros? boolean
---@field layout_b? int4mm.layout

---@class int4mm.tune_options
---@field device? string "cuda" by default
---@field path? string the file to write
---@field seconds? number for each kernel and product, 0.05 by default

---@class int4mm.tuning
---@field format string
---@field version string
---@field device string the GPU's name
---@field arch number
---@field entries table[]

---Times the kernels that can serve each product.
---@param shapes int4mm.tuned_product[]
---@param opts? int4mm.tune_options
---@return int4mm.tuning
function int4mm.tune(shapes, opts) end

---@class int4mm.load_tuning_options
---@field device? string "cuda" by default

---Has products take the kernels that q.tune found; nil: nothing is tuned any more.
---@param source string|int4mm.tuning|nil
---@param opts? int4mm.load_tuning_options
---@return number? products
---@return string? reason
function int4mm.load_tuning(source, opts) end

---@class int4mm.linear_options
---@field bias? int4mm.tensor # [N] float32
---@field scales? int4mm.tensor of packed words: [N] float32, or [G, N] or [N, G] of floats
---@field zeros? int4mm.tensor of packed words: int8 or words, beside each scale
---@field factors? int4mm.tensor of packed words: int8 [G, N], from 1 to 15
---@field group_size? number values of K in a group, a multiple of 32
---@field layout? int4mm.layout "nk" by default
---@field encoding? int4mm.encoding of packed words
---@field order? int4mm.tensor of packed words: int32 [K], the input of each value along K
---@field rotate? boolean|number the block; false for none
---@field clip? number|"mse" of the activations
---@field weight_clip? number|"mse" of a float weight, "mse" by default
---@field group_scales? "float"|"integer" of a float weight
---@field zero_point? boolean of a float weight
---@field activations? int4mm.activations
---@field activation? int4mm.activation
---@field out_dtype? int4mm.float_dtype
---@field prepack? boolean the layout that the CPU reads fastest

---@class int4mm.int4_linear_options
---@field bias? int4mm.tensor # [N] float32
---@field activations? int4mm.activations
---@field zeros? int4mm.tensor zero points of scale_b's shape: int8, or int32 words of eight along N
---@field factors? int4mm.tensor integer group scales [G, N], int8 from 1 to 15
---@field group_size? number values of K in a group, by default K / G
---@field rotate? boolean|number
---@field clip? number|"mse"
---@field activation? int4mm.activation
---@field residual? int4mm.tensor # [M, N]
---@field out? int4mm.tensor
---@field out_dtype? int4mm.float_dtype
---@field layout_b? int4mm.layout
---@field encoding_b? int4mm.encoding
---@field workspace? int4mm.tensor of q.linear_workspace bytes
---@field kernel? string
---@field stream? int4mm.any_stream

---@class int4mm.int4_linear_reference_options
---@field bias? int4mm.tensor
---@field activations? int4mm.activations
---@field zeros? int4mm.tensor
---@field factors? int4mm.tensor
---@field group_size? number
---@field rotate? boolean|number
---@field clip? number|"mse"
---@field activation? int4mm.activation
---@field residual? int4mm.tensor
---@field out_dtype? int4mm.float_dtype
---@field layout_b? int4mm.layout
---@field encoding_b? int4mm.encoding

---A linear layer with an int4 weight.
---@param weight int4mm.tensor # [N, K] of floats, or packed words
---@param opts? int4mm.linear_options
---@return int4mm.linear
function int4mm.linear(weight, opts) end

---A layer in one call: x is quantised and multiplied.
---@param x int4mm.tensor # [M, K] of floats
---@param b_packed int4mm.tensor
---@param scale_b int4mm.tensor # [N] float32, or [G, N] of floats
---@param opts? int4mm.int4_linear_options
---@return int4mm.tensor
function int4mm.int4_linear(x, b_packed, scale_b, opts) end

---@param x int4mm.tensor
---@param b_packed int4mm.tensor
---@param scale_b int4mm.tensor
---@param opts? int4mm.int4_linear_reference_options
---@return int4mm.tensor
function int4mm.int4_linear_reference(x, b_packed, scale_b, opts) end

---The bytes of workspace that q.int4_linear needs for x [M, K].
---@param M number
---@param K number
---@param activations? int4mm.activations
---@return integer
function int4mm.linear_workspace(M, K, activations) end

---@class int4mm.pack_options
---@field dim? 1|2 the dimension to be packed, 2 by default
---@field encoding? int4mm.encoding
---@field out? int4mm.tensor
---@field stream? int4mm.any_stream

---@class int4mm.unpack_options
---@field dim? 1|2
---@field length? number how many values along dim
---@field encoding? int4mm.encoding
---@field dtype? "int8"|"int32"
---@field out? int4mm.tensor
---@field stream? int4mm.any_stream

---@class int4mm.rotate_options
---@field block? number
---@field dim? 1|2
---@field out? int4mm.tensor
---@field stream? int4mm.any_stream

---@class int4mm.rotate_reference_options
---@field block? number
---@field dim? 1|2
---@field out_dtype? int4mm.float_dtype

---@class int4mm.quantize_options
---@field dim? 1|2 the dimension to be packed, 2 by default
---@field rotate? number|false the block of a rotation before
---@field group_size? number values that share a scale, a multiple of 32
---@field group_scales? "float"|"integer" "integer": a float32 scale per row or column, and a factor per group
---@field zero_point? boolean
---@field clip? number|"mse"
---@field dtype? "int4"|"int8"
---@field encoding? int4mm.encoding
---@field check? boolean false: values on a GPU are not checked, which would wait
---@field out? int4mm.tensor
---@field scales? int4mm.tensor
---@field zeros? int4mm.tensor
---@field factors? int4mm.tensor
---@field stream? int4mm.any_stream

---@class int4mm.quantize_reference_options
---@field dim? 1|2
---@field rotate? number|false
---@field group_size? number
---@field group_scales? "float"|"integer"
---@field zero_point? boolean
---@field clip? number|"mse"
---@field dtype? "int4"|"int8"
---@field encoding? int4mm.encoding

---@class int4mm.dequantize_reference_options
---@field dim? 1|2
---@field length? number
---@field encoding? int4mm.encoding
---@field group_size? number
---@field zeros? int4mm.tensor
---@field factors? int4mm.tensor
---@field dtype? int4mm.float_dtype

---@class int4mm.dequantize_options
---@field dim? 1|2
---@field length? number
---@field encoding? int4mm.encoding
---@field group_size? number
---@field zeros? int4mm.tensor as q.quantize returns them
---@field factors? int4mm.tensor
---@field dtype? int4mm.float_dtype
---@field out? int4mm.tensor
---@field stream? int4mm.any_stream

---@class int4mm.test_data_options
---@field seed? number|ffi.cdata*
---@field device? int4mm.device

---Packs int4 values eight to an int32.
---@param src int4mm.tensor # [R, C] int8 or int32
---@param opts? int4mm.pack_options
---@return int4mm.tensor
function int4mm.pack_int4_to_int32(src, opts) end

---@param packed int4mm.tensor
---@param opts? int4mm.unpack_options
---@return int4mm.tensor
function int4mm.unpack_int32_to_int4(packed, opts) end

---Multiplies blocks by a regular Hadamard matrix.
---@param src int4mm.tensor
---@param opts? int4mm.rotate_options
---@return int4mm.tensor
function int4mm.rotate(src, opts) end

---@param src int4mm.tensor
---@param opts? int4mm.rotate_reference_options
---@return int4mm.tensor
function int4mm.rotate_reference(src, opts) end

---Floats as int4 words, or int8, and their scales.
---@param src int4mm.tensor # [R, C] of floats
---@param opts? int4mm.quantize_options
---@return int4mm.tensor packed
---@return int4mm.tensor scales float32
---@return int4mm.tensor? zeros or factors, int8
function int4mm.quantize(src, opts) end

---@param src int4mm.tensor
---@param opts? int4mm.quantize_reference_options
---@return int4mm.tensor packed
---@return int4mm.tensor scales
---@return int4mm.tensor? zeros or factors
function int4mm.quantize_reference(src, opts) end

---@param packed int4mm.tensor
---@param scales int4mm.tensor
---@param opts? int4mm.dequantize_options
---@return int4mm.tensor
function int4mm.dequantize(packed, scales, opts) end

---@param packed int4mm.tensor
---@param scales int4mm.tensor
---@param opts? int4mm.dequantize_reference_options
---@return int4mm.tensor
function int4mm.dequantize_reference(packed, scales, opts) end

---Random operands of a product.
---@param M number
---@param K number a multiple of 8
---@param N number
---@param opts? int4mm.test_data_options
---@return int4mm.tensor a_packed
---@return int4mm.tensor b_packed
---@return int4mm.tensor scale_a
---@return int4mm.tensor scale_b
---@return int4mm.tensor a int8
---@return int4mm.tensor b int8
function int4mm.generate_test_data(M, K, N, opts) end

---@class int4mm.elementwise_options
---@field out? int4mm.tensor
---@field out_dtype? int4mm.float_dtype
---@field stream? int4mm.any_stream

---@class int4mm.gelu_options
---@field approximate? "none"|"tanh"
---@field out? int4mm.tensor
---@field out_dtype? int4mm.float_dtype
---@field stream? int4mm.any_stream

---@class int4mm.norm_options
---@field eps? number
---@field out? int4mm.tensor
---@field out_dtype? int4mm.float_dtype
---@field stream? int4mm.any_stream

---@class int4mm.argmax_options
---@field out? int4mm.tensor
---@field stream? int4mm.any_stream

---@param src int4mm.tensor
---@param other int4mm.tensor|number
---@param opts? int4mm.elementwise_options
---@return int4mm.tensor
function int4mm.add(src, other, opts) end

---@param src int4mm.tensor
---@param other int4mm.tensor|number
---@param opts? int4mm.elementwise_options
---@return int4mm.tensor
function int4mm.mul(src, other, opts) end

---@param src int4mm.tensor
---@param opts? int4mm.elementwise_options
---@return int4mm.tensor
function int4mm.exp(src, opts) end

---@param src int4mm.tensor
---@param opts? int4mm.elementwise_options
---@return int4mm.tensor
function int4mm.tanh(src, opts) end

---@param src int4mm.tensor
---@param opts? int4mm.elementwise_options
---@return int4mm.tensor
function int4mm.erf(src, opts) end

---@param src int4mm.tensor
---@param opts? int4mm.elementwise_options
---@return int4mm.tensor
function int4mm.relu(src, opts) end

---@param src int4mm.tensor
---@param opts? int4mm.elementwise_options
---@return int4mm.tensor
function int4mm.silu(src, opts) end

---@param src int4mm.tensor
---@param opts? int4mm.gelu_options
---@return int4mm.tensor
function int4mm.gelu(src, opts) end

---@param src int4mm.tensor
---@param opts? int4mm.elementwise_options
---@return int4mm.tensor
function int4mm.softmax(src, opts) end

---@param src int4mm.tensor
---@param weight? int4mm.tensor
---@param bias? int4mm.tensor
---@param opts? int4mm.norm_options
---@return int4mm.tensor
function int4mm.layer_norm(src, weight, bias, opts) end

---@param src int4mm.tensor
---@param weight? int4mm.tensor
---@param opts? int4mm.norm_options
---@return int4mm.tensor
function int4mm.rms_norm(src, weight, opts) end

---Where the largest element of each row is, counted from 0.
---@param src int4mm.tensor
---@param opts? int4mm.argmax_options
---@return int4mm.tensor int32
function int4mm.argmax(src, opts) end

---What is written to a file in place of a tensor: of any dtype of safetensors, or made when it is written.
---@class int4mm.safetensors_entry
---@field dtype string as safetensors calls it ("I64")
---@field shape number[]
---@field data string|int4mm.tensor|fun(): string|int4mm.tensor

---@class int4mm.save_safetensors_options
---@field metadata? table<string, string>

---@class int4mm.load_options
---@field device? int4mm.device
---@field prepack? boolean

---@class int4mm.load_linear_options
---@field activations? int4mm.activations "float" by default for GPTQ, AWQ and compressed-tensors
---@field group_size? number
---@field group_scales? "float"|"integer" of a weight of floats
---@field zero_point? boolean of a weight of floats
---@field clip? number|"mse"
---@field activation? int4mm.activation
---@field out_dtype? int4mm.float_dtype
---@field prepack? boolean
---@field device? int4mm.device
---@field rotate? boolean|number
---@field weight_clip? number|"mse"
---@field checkpoint_format? "gptq"|"gptq_v2"

---Opens a safetensors file, or a model by its index or folder.
---@param path string
---@return int4mm.safetensors?
---@return string? reason
function int4mm.open_safetensors(path) end

---@param path string
---@param tensors table<string, int4mm.tensor|int4mm.safetensors_entry>
---@param opts? int4mm.save_safetensors_options
---@return true?
---@return string? reason
function int4mm.save_safetensors(path, tensors, opts) end

---@param path string
---@return int4mm.tensor?
---@return string? reason
function int4mm.load_npy(path) end

---@param path string
---@param t int4mm.tensor
---@return true?
---@return string? reason
function int4mm.save_npy(path, t) end

---@param path string
---@param given int4mm.linear|table<string, int4mm.linear>
---@return true?
---@return string? reason
function int4mm.save(path, given) end

---@param path string
---@param opts? int4mm.load_options
---@return int4mm.linear|table<string, int4mm.linear>|nil
---@return string? reason
function int4mm.load(path, opts) end

---A layer out of a checkpoint, recognised by the tensors that there are.
---@param f int4mm.safetensors
---@param layer string
---@param opts? int4mm.load_linear_options
---@return int4mm.linear
function int4mm.load_linear(f, layer, opts) end

---{ rows, columns } or { length }, and
---@class int4mm.shape
---@field [1] number
---@field [2]? number
---@field dtype? int4mm.dtype "float32" by default
---@field device? int4mm.device "cpu" by default
---@field pinned? boolean

---@class int4mm.tensor_options
---@field dtype? int4mm.dtype
---@field device? int4mm.device
---@field shape? number[] of a string or C memory
---@field pinned? boolean

---@class int4mm.random_options
---@field seed? number|ffi.cdata*
---@field sequence? number
---@field low? number
---@field high? number
---@field stream? int4mm.any_stream

---@class int4mm.wrap_options
---@field shape number[]
---@field dtype? int4mm.dtype
---@field device? int4mm.device
---@field stride? number
---@field owner? any kept as long as the tensor

---@class int4mm.from_dlpack_options
---@field versioned? boolean
---@field read_only? boolean

---A tensor from a table of numbers or rows, a string, C memory or another tensor.
---@param source number[]|number[][]|string|ffi.cdata*|int4mm.tensor
---@param opts? int4mm.tensor_options
---@return int4mm.tensor
function int4mm.tensor(source, opts) end

---@param spec int4mm.shape|number[]
---@return int4mm.tensor
function int4mm.empty(spec) end

---@param spec int4mm.shape|number[]
---@return int4mm.tensor
function int4mm.zeros(spec) end

---@param spec int4mm.shape|number[]
---@return int4mm.tensor
function int4mm.ones(spec) end

---@param spec int4mm.shape|number[]
---@param value number
---@return int4mm.tensor
function int4mm.full(spec, value) end

---@param t int4mm.tensor
---@param opts? int4mm.random_options
---@return int4mm.tensor t
function int4mm.random(t, opts) end

---A tensor over memory of something else.
---@param pointer ffi.cdata*
---@param opts int4mm.wrap_options
---@return int4mm.tensor
function int4mm.wrap(pointer, opts) end

---@param list int4mm.tensor[]
---@param dim? 1|2
---@param opts? int4mm.stream_options
---@return int4mm.tensor
function int4mm.cat(list, dim, opts) end

---@param managed number|ffi.cdata*|lightuserdata
---@param opts? int4mm.from_dlpack_options
---@return int4mm.tensor
function int4mm.from_dlpack(managed, opts) end

---@param value any
---@return boolean
function int4mm.is_tensor(value) end

---@class int4mm.event_options
---@field device? int4mm.device

---@class int4mm.graph_options
---@field device? int4mm.device
---@field warmup? number

---@return boolean
---@return string? reason
function int4mm.cuda_available() end

---@return integer
---@return string? reason
function int4mm.device_count() end

---@param which? int4mm.device
---@return table?
---@return string? reason
function int4mm.device_info(which) end

---@param which? int4mm.device
function int4mm.synchronize(which) end

---@param which? int4mm.device
---@return int4mm.stream
function int4mm.stream(which) end

---Calls f(...), whose work on the stream's GPU goes to the stream.
---@param stream int4mm.stream
---@param f function
---@param ... any
---@return any ...
function int4mm.with_stream(stream, f, ...) end

---@param opts? int4mm.event_options
---@return int4mm.event
function int4mm.event(opts) end

---Captures what f enqueues.
---@param f fun(stream: int4mm.stream): ...
---@param opts? int4mm.graph_options
---@return int4mm.graph
---@return any ... what f returned
function int4mm.graph(f, opts) end

---@param threads? number
function int4mm.set_num_threads(threads) end

---@return integer
function int4mm.get_num_threads() end

---@return string
function int4mm.cpu_isa() end

---@param name? string
function int4mm.set_cpu_isa(name) end

---@return string[]
function int4mm.cpu_isas() end

---@return table<string, { allocated: integer, limit: integer }>
function int4mm.memory() end

---@param device int4mm.device
---@param bytes number
function int4mm.set_memory_slack(device, bytes) end
