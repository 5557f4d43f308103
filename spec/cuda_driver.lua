--- The few calls of the CUDA driver API that the specs of the CUDA backend need of their own: busy streams, graphs.

local ffi = require "ffi"

ffi.cdef [[
typedef struct CUstream_st *spec_CUstream;
typedef struct CUgraph_st *spec_CUgraph;
typedef struct CUgraphExec_st *spec_CUgraphExec;
int cuGetErrorString(int result, const char **text);
int cuStreamQuery(spec_CUstream stream);
int cuStreamBeginCapture_v2(spec_CUstream stream, int mode);
int cuStreamEndCapture(spec_CUstream stream, spec_CUgraph *graph);
int cuGraphInstantiateWithFlags(spec_CUgraphExec *executable, spec_CUgraph graph, unsigned long long flags);
int cuGraphLaunch(spec_CUgraphExec executable, spec_CUstream stream);
int cuGraphExecDestroy(spec_CUgraphExec executable);
int cuGraphDestroy(spec_CUgraph graph);
]]

local NOT_READY, THREAD_LOCAL = 600, 1

local driver = {}

local library -- opened on first use: only where there is a GPU

--- Whether there is a driver: not so where another library stands in for int4mm's CUDA library.
function driver.present()
  if os.getenv "INT4MM_FAKE_CUDA" then return false end
  local ok, found = pcall(ffi.load, "libcuda.so.1")
  library = library or ok and found or nil
  return ok
end

local function call(name, ...)
  assert(driver.present())
  local result = library[name](...)
  if result ~= 0 then
    local text = ffi.new "const char *[1]"
    library.cuGetErrorString(result, text)
    error(("%s: %s"):format(name, text[0] ~= nil and ffi.string(text[0]) or "error " .. result), 3)
  end
end

local function stream_handle(stream) return ffi.cast("spec_CUstream", stream) end

--- Whether a stream still has work to do.
function driver.busy(stream)
  assert(driver.present())
  return library.cuStreamQuery(stream_handle(stream)) == NOT_READY
end

--- Captures what f enqueues on a stream, and gives a function that launches it there.
function driver.capture(stream, f)
  local s = stream_handle(stream)
  call("cuStreamBeginCapture_v2", s, THREAD_LOCAL)
  local ok, err = pcall(f)
  local graph = ffi.new "spec_CUgraph[1]"
  if not ok then -- whatever the state of the capture now is, the first error is the one that tells
    library.cuStreamEndCapture(s, graph)
    error(err, 0)
  end
  call("cuStreamEndCapture", s, graph)
  local executable = ffi.new "spec_CUgraphExec[1]"
  call("cuGraphInstantiateWithFlags", executable, graph[0], 0)
  return {
    launch = function() call("cuGraphLaunch", executable[0], s) end,
    destroy = function()
      call("cuGraphExecDestroy", executable[0])
      call("cuGraphDestroy", graph[0])
    end,
  }
end

return driver
