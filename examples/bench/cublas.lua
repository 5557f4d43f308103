--- NVIDIA's runtime, cuBLAS and cuBLASLt through the FFI: as much of them as gpu_peers.lua needs.
--
-- Declarations and numbers follow cuda_runtime_api.h, driver_types.h, library_types.h, cublas_api.h and cublasLt.h of
-- CUDA 12 and 13; handles and descriptors are opaque there and void * here.

local ffi = require "ffi"

ffi.cdef [[
  typedef struct peers_glob { size_t count; char **paths; size_t offset; char rest[128]; } peers_glob;
  int peers_glob_find(const char *pattern, int flags, void *on_error, peers_glob *found) __asm__("glob");
  void peers_glob_free(peers_glob *found) __asm__("globfree");

  const char *cudaGetErrorString(int error);
  int cudaGetLastError(void);
  int cudaSetDevice(int device);
  int cudaRuntimeGetVersion(int *version);
  int cudaDeviceGetPCIBusId(char *id, int length, int device);
  int cudaStreamSynchronize(void *stream);
  int cudaStreamBeginCapture(void *stream, int mode);
  int cudaStreamEndCapture(void *stream, void **graph);
  int cudaGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags);
  int cudaGraphLaunch(void *exec, void *stream);
  int cudaGraphExecDestroy(void *exec);
  int cudaGraphDestroy(void *graph);
  int cudaEventCreate(void **event);
  int cudaEventRecord(void *event, void *stream);
  int cudaEventSynchronize(void *event);
  int cudaEventElapsedTime(float *milliseconds, void *start, void *stop);

  int cublasCreate_v2(void **handle);
  int cublasGetVersion_v2(void *handle, int *version);
  int cublasSetStream_v2(void *handle, void *stream);
  int cublasSetWorkspace_v2(void *handle, void *workspace, size_t bytes);
  int cublasSetPointerMode_v2(void *handle, int mode);
  int cublasSdot_v2(void *handle, int n, const float *x, int incx, const float *y, int incy, float *result);
  int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a,
                   int type_a, int lda, const void *b, int type_b, int ldb, const void *beta, void *c, int type_c,
                   int ldc, int compute_type, int algorithm);

  typedef struct cublasLtMatmulAlgo_t { uint64_t data[8]; } cublasLtMatmulAlgo_t;
  typedef struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    int state;
    float wavesCount;
    int reserved[4];
  } cublasLtMatmulHeuristicResult_t;
  const char *cublasLtGetStatusString(int status);
  size_t cublasLtGetVersion(void);
  int cublasLtCreate(void **handle);
  int cublasLtMatmulDescCreate(void **desc, int compute_type, int scale_type);
  int cublasLtMatmulDescSetAttribute(void *desc, int attribute, const void *value, size_t bytes);
  int cublasLtMatmulDescDestroy(void *desc);
  int cublasLtMatrixLayoutCreate(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int cublasLtMatrixLayoutDestroy(void *layout);
  int cublasLtMatmulPreferenceCreate(void **preference);
  int cublasLtMatmulPreferenceSetAttribute(void *preference, int attribute, const void *value, size_t bytes);
  int cublasLtMatmulAlgoGetHeuristic(void *handle, void *desc, void *a, void *b, void *c, void *d, void *preference,
                                     int requested, cublasLtMatmulHeuristicResult_t *results, int *returned);
  int cublasLtMatmul(void *handle, void *desc, const void *alpha, const void *a, void *layout_a, const void *b,
                     void *layout_b, const void *beta, const void *c, void *layout_c, void *d, void *layout_d,
                     const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes, void *stream);
]]

local CAPTURE_GLOBAL = 0                                -- cudaStreamCaptureMode: no unsafe call in any thread
local R_32F, R_16F, R_8I, R_32I, R_8F_E4M3 = 0, 2, 3, 10, 28 -- cudaDataType_t
local COMPUTE_32F, COMPUTE_32I = 68, 72                 -- cublasComputeType_t
local OP = { N = 0, T = 1 }                             -- cublasOperation_t
local GEMM_DEFAULT = -1                                 -- cublasGemmAlgo_t
local POINTER_HOST, POINTER_DEVICE = 0, 1               -- cublasPointerMode_t
local DESC_TRANSA, DESC_A_SCALE, DESC_B_SCALE, DESC_FAST_ACCUM = 3, 17, 18, 25 -- cublasLtMatmulDescAttributes_t
local PREF_MAX_WORKSPACE = 1                            -- cublasLtMatmulPreferenceAttributes_t

local cublas = {}

-- ---- finding the libraries ----

local function glob(pattern)
  local found, paths = ffi.new("peers_glob"), {}
  if ffi.C.peers_glob_find(pattern, 0, nil, found) == 0 then
    for i = 0, tonumber(found.count) - 1 do paths[#paths + 1] = ffi.string(found.paths[i]) end
  end
  ffi.C.peers_glob_free(found)
  return paths
end

-- Patterns of folders: those named by the environment, the toolkit's, then the packages of Python's environments.
local function folders()
  local list = {}
  for folder in (os.getenv "LD_LIBRARY_PATH" or ""):gmatch "[^:]+" do list[#list + 1] = folder end
  for _, name in ipairs { "CUDA_HOME", "CUDA_PATH" } do
    if os.getenv(name) then list[#list + 1] = os.getenv(name) .. "/lib64" end
  end
  for _, folder in ipairs { "/usr/local/cuda/lib64", "/usr/local/cuda/targets/*/lib", "/usr/local/cuda-*/lib64" } do
    list[#list + 1] = folder
  end
  local home = os.getenv "HOME"
  local roots = { os.getenv "VIRTUAL_ENV" or "/usr", "/usr/local", "/usr", "/opt/*", home and home .. "/.local" }
  for _, root in ipairs(roots) do list[#list + 1] = root .. "/lib/python3*/*-packages/nvidia/*/lib" end
  return list
end

--- Opens a library of the toolkit.
-- @tparam string name "cublasLt"
-- @treturn the namespace, or nil
-- @treturn string the path it was opened by, or why there is none
function cublas.load(name)
  local file, reason = "lib" .. name .. ".so", nil
  for _, folder in ipairs(folders()) do
    for _, path in ipairs(glob(folder .. "/" .. file .. "*")) do
      local ok, lib = pcall(ffi.load, path)
      if ok then return lib, path end
      reason = reason or lib
    end
  end
  for _, path in ipairs { name, file .. ".13", file .. ".12" } do -- wherever the dynamic linker looks
    local ok, lib = pcall(ffi.load, path)
    if ok then return lib, path end
  end
  return nil, reason or file .. " was not found in LD_LIBRARY_PATH, the CUDA toolkit or Python's packages"
end

-- ---- the runtime: graphs and their time ----

local runtime

local function check(what, status)
  if status ~= 0 then
    runtime.cudaGetLastError() -- takes it back, where that is possible
    error(("%s: %s"):format(what, ffi.string(runtime.cudaGetErrorString(status))), 0)
  end
end

local function version_text(number)
  return ("%d.%d.%d"):format(math.floor(number / 10000), math.floor(number / 100) % 100, number % 100)
end

--- Opens the runtime on the first device. Handles and addresses of another copy of the runtime (int4mm has its own) are
-- good here: both work in the device's primary context.
-- @treturn table `{ version =, path =, bus = }` or nil
-- @treturn ?string then the reason
function cublas.open_runtime()
  local lib, path = cublas.load "cudart"
  if not lib then return nil, path end
  runtime = lib
  local version, bus = ffi.new("int[1]"), ffi.new("char[64]")
  local ok, reason = pcall(function()
    check("cudaSetDevice", runtime.cudaSetDevice(0))
    check("cudaRuntimeGetVersion", runtime.cudaRuntimeGetVersion(version))
    check("cudaDeviceGetPCIBusId", runtime.cudaDeviceGetPCIBusId(bus, 64, 0))
  end)
  if not ok then return nil, reason end
  local number = ("%d.%d"):format(math.floor(version[0] / 1000), math.floor(version[0] % 1000 / 10))
  return { version = number, path = path, bus = ffi.string(bus) }
end

--- Waits for a stream and raises what went wrong on it.
function cublas.synchronize(stream) check("cudaStreamSynchronize", runtime.cudaStreamSynchronize(stream)) end

--- Captures what a function enqueues on a stream.
-- @tparam cdata stream a cudaStream_t
-- @tparam function record called once; what it raises is raised again once the capture is closed
-- @treturn cdata a cudaGraphExec_t
function cublas.capture(stream, record)
  local graph, exec = ffi.new("void *[1]"), ffi.new("void *[1]")
  check("cudaStreamBeginCapture", runtime.cudaStreamBeginCapture(stream, CAPTURE_GLOBAL))
  collectgarbage "stop" -- giving back a tensor now would be work on another stream
  local ok, reason = pcall(record)
  collectgarbage "restart"
  local status = runtime.cudaStreamEndCapture(stream, graph)
  if not ok then
    runtime.cudaGetLastError()
    if graph[0] ~= nil then runtime.cudaGraphDestroy(graph[0]) end
    error(reason, 0)
  end
  check("cudaStreamEndCapture", status)
  status = runtime.cudaGraphInstantiateWithFlags(exec, graph[0], 0)
  check("cudaGraphDestroy", runtime.cudaGraphDestroy(graph[0]))
  check("cudaGraphInstantiateWithFlags", status)
  return exec[0]
end

function cublas.destroy_graph(exec) check("cudaGraphExecDestroy", runtime.cudaGraphExecDestroy(exec)) end

function cublas.launch(exec, stream) check("cudaGraphLaunch", runtime.cudaGraphLaunch(exec, stream)) end

local events = {} -- made once, used again

local function record_event(index, stream)
  if not events[index] then
    local event = ffi.new("void *[1]")
    check("cudaEventCreate", runtime.cudaEventCreate(event))
    events[index] = event[0]
  end
  check("cudaEventRecord", runtime.cudaEventRecord(events[index], stream))
end

--- Replays a graph with an event before, between and after, all enqueued ahead, so that the host is not in the times.
-- @tparam cdata exec
-- @tparam cdata stream
-- @tparam number replays
-- @tparam[opt=1] number each how many replays from event to event
-- @tparam[opt] function meanwhile called when all is enqueued and the GPU is at work
-- @treturn table seconds of one replay, as often as there are intervals
function cublas.replay(exec, stream, replays, each, meanwhile)
  record_event(0, stream)
  for i = 1, replays do
    for _ = 1, each or 1 do cublas.launch(exec, stream) end
    record_event(i, stream)
  end
  if meanwhile then meanwhile() end
  check("cudaEventSynchronize", runtime.cudaEventSynchronize(events[replays]))
  local times, milliseconds = {}, ffi.new("float[1]")
  for i = 1, replays do
    check("cudaEventElapsedTime", runtime.cudaEventElapsedTime(milliseconds, events[i - 1], events[i]))
    times[i] = milliseconds[0] * 1e-3 / (each or 1)
  end
  return times
end

-- ---- the peers ----

--- What is timed. `weights` says how the weight lies: T as [N, K] rows, N as [K, N] rows; the 8-bit types are served in
-- the first only (cuBLAS counts columns first: there it is a transposed A). The fp8 operands have a scale each.
cublas.peers = {
  fp16 = {
    type = R_16F, bytes = 2, out_type = R_16F, out_bytes = 2, compute = COMPUTE_32F, scale_type = R_32F,
    weights = { "T", "N" },
  },
  int8 = {
    type = R_8I, bytes = 1, out_type = R_32I, out_bytes = 4, compute = COMPUTE_32I, scale_type = R_32I,
    weights = { "T" },
  },
  fp8 = {
    type = R_8F_E4M3, bytes = 1, out_type = R_16F, out_bytes = 2, compute = COMPUTE_32F, scale_type = R_32F,
    weights = { "T" }, scaled = true,
  },
}

local lt, lt_handle, preference -- cuBLASLt
local blas, blas_handle         -- cuBLAS
local stream, workspace, workspace_bytes -- of both

local function check_lt(what, status)
  if status ~= 0 then error(("%s: %s"):format(what, ffi.string(lt.cublasLtGetStatusString(status))), 0) end
end

local function check_blas(what, status)
  if status ~= 0 then error(("%s: cuBLAS status %d"):format(what, status), 0) end
end

local function open_lt()
  local lib, path = cublas.load "cublasLt"
  if not lib then error(path, 0) end
  lt = lib
  local handle = ffi.new("void *[1]")
  check_lt("cublasLtCreate", lt.cublasLtCreate(handle))
  lt_handle = handle[0]
  check_lt("cublasLtMatmulPreferenceCreate", lt.cublasLtMatmulPreferenceCreate(handle))
  preference = handle[0]
  check_lt("cublasLtMatmulPreferenceSetAttribute", lt.cublasLtMatmulPreferenceSetAttribute(preference,
    PREF_MAX_WORKSPACE, ffi.new("uint64_t[1]", workspace_bytes), 8))
  return { version = version_text(tonumber(lt.cublasLtGetVersion())), path = path }
end

local function open_blas()
  local lib, path = cublas.load "cublas"
  if not lib then error(path, 0) end
  local handle, version = ffi.new("void *[1]"), ffi.new("int[1]")
  check_blas("cublasCreate", lib.cublasCreate_v2(handle))
  check_blas("cublasSetStream", lib.cublasSetStream_v2(handle[0], stream))
  check_blas("cublasSetWorkspace", lib.cublasSetWorkspace_v2(handle[0], workspace, workspace_bytes))
  check_blas("cublasGetVersion", lib.cublasGetVersion_v2(handle[0], version))
  blas, blas_handle = lib, handle[0]
  return { version = version_text(version[0]), path = path }
end

--- Opens cuBLASLt and cuBLAS, which are to work on one stream and in one workspace on the device.
-- @treturn table `{ cublasLt = { version =, path = }, cublas = { ... } }`, each with `missing`, the reason, instead
--   where it cannot be used
function cublas.open(on_stream, memory, bytes)
  stream, workspace, workspace_bytes = on_stream, memory, bytes
  local result = {}
  -- cuBLASLt first: cuBLAS needs it and then takes the one that is loaded
  for _, each in ipairs { { "cublasLt", open_lt }, { "cublas", open_blas } } do
    local ok, value = pcall(each[2])
    result[each[1]] = ok and value or { missing = tostring(value) }
  end
  return result
end

-- cuBLAS's own choice of an algorithm.
local function gemm_ex(peer, op, M, K, N)
  local one, zero = ffi.new("float[1]", 1), ffi.new("float[1]", 0)
  return {
    name = "cublasGemmEx " .. op .. "N",
    run = function(activation, weight, out)
      check_blas("cublasGemmEx", blas.cublasGemmEx(blas_handle, OP[op], OP.N, N, M, K, one, weight, peer.type,
        op == "T" and K or N, activation, peer.type, K, zero, out, peer.out_type, N, peer.compute, GEMM_DEFAULT))
    end,
  }
end

local function lt_layout(close, type, rows, columns)
  local layout = ffi.new("void *[1]")
  check_lt("cublasLtMatrixLayoutCreate", lt.cublasLtMatrixLayoutCreate(layout, type, rows, columns, rows))
  close[#close + 1] = function() lt.cublasLtMatrixLayoutDestroy(layout[0]) end
  return layout[0]
end

local function lt_desc(close, peer, op, scale)
  local desc = ffi.new("void *[1]")
  check_lt("cublasLtMatmulDescCreate", lt.cublasLtMatmulDescCreate(desc, peer.compute, peer.scale_type))
  close[#close + 1] = function() lt.cublasLtMatmulDescDestroy(desc[0]) end
  local function set(attribute, ctype, value)
    local cell = ffi.new(ctype .. "[1]", value)
    check_lt("cublasLtMatmulDescSetAttribute", lt.cublasLtMatmulDescSetAttribute(desc[0], attribute, cell,
      ffi.sizeof(cell)))
  end
  set(DESC_TRANSA, "int32_t", OP[op])
  if peer.scaled then
    set(DESC_A_SCALE, "const void *", scale)
    set(DESC_B_SCALE, "const void *", scale)
    set(DESC_FAST_ACCUM, "int8_t", 1) -- the peer at its fastest, if not at its most exact
  end
  return desc[0]
end

-- Adds the first algorithms of cuBLASLt's heuristic. Row-major [M, N] = [M, K] x weight is its column-major [N, M].
local function add_algorithms(list, close, peer, op, M, K, N, scale, most)
  local desc = lt_desc(close, peer, op, scale)
  local weights = op == "T" and lt_layout(close, peer.type, K, N) or lt_layout(close, peer.type, N, K)
  local activations, outs = lt_layout(close, peer.type, K, M), lt_layout(close, peer.out_type, N, M)
  local results, returned = ffi.new("cublasLtMatmulHeuristicResult_t[?]", most), ffi.new("int[1]")
  check_lt("cublasLtMatmulAlgoGetHeuristic", lt.cublasLtMatmulAlgoGetHeuristic(lt_handle, desc, weights, activations,
    outs, outs, preference, most, results, returned))
  local scalar = peer.scale_type == R_32I and "int32_t[1]" or "float[1]"
  local one, zero = ffi.new(scalar, 1), ffi.new(scalar, 0)
  for i = 0, returned[0] - 1 do
    if results[i].state == 0 then
      list[#list + 1] = {
        name = ("cublasLtMatmul %sN, algorithm %d"):format(op, i + 1),
        run = function(activation, weight, out)
          check_lt("cublasLtMatmul", lt.cublasLtMatmul(lt_handle, desc, one, weight, weights, activation, activations,
            zero, out, outs, out, outs, results[i].algo, workspace, workspace_bytes, stream))
        end,
      }
    end
  end
end

--- The ways in which a peer can do a product.
-- @tparam table peer one of `cublas.peers`
-- @tparam number M
-- @tparam number K
-- @tparam number N
-- @tparam cdata scale the fp8 operands' scale, a float on the device
-- @tparam number most how many algorithms of the heuristic
-- @treturn table array of `{ name =, run = function(activation, weight, out) }`: run enqueues one product of activation
--   [M, K] and the weight (as many values as [N, K] has) and raises when it is refused; may be empty
-- @treturn ?string why the heuristic gave none
-- @treturn function to be called when they are no longer used
function cublas.candidates(peer, M, K, N, scale, most)
  local list, close, reason = {}, {}, nil
  for _, op in ipairs(peer.weights) do
    if peer.type == R_16F and blas then list[#list + 1] = gemm_ex(peer, op, M, K, N) end
    if lt then
      local ok, message = pcall(add_algorithms, list, close, peer, op, M, K, N, scale, most)
      if not ok then reason = message end
    end
  end
  return list, reason or "the heuristic finds no algorithm", function()
    for i = #close, 1, -1 do close[i]() end
  end
end

--- Enqueues the dot product of two float vectors on the device, with its result there too: a stream that only reads.
function cublas.dot(n, x, y, result)
  if not blas then error("cuBLAS is missing", 0) end
  check_blas("cublasSetPointerMode", blas.cublasSetPointerMode_v2(blas_handle, POINTER_DEVICE))
  local status = blas.cublasSdot_v2(blas_handle, n, x, 1, y, 1, result)
  check_blas("cublasSetPointerMode", blas.cublasSetPointerMode_v2(blas_handle, POINTER_HOST))
  check_blas("cublasSdot", status)
end

return cublas
