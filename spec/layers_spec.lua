--- The order of the source folders: each includes and calls only what lies below it, so that no circle can form.

local helper = require "spec.helper"

-- a folder, and those that it may use besides itself
local BELOW = {
  core = {},
  cpu = { core = true },
  kernels = { core = true },
  cuda = { core = true, kernels = true },
  dispatch = { core = true, cpu = true, cuda = true, kernels = true },
  ops = { core = true, cpu = true, cuda = true, dispatch = true },
}

-- the folders whose files the include path of the kernels gives by their own names
local KERNEL_FOLDERS = { common = true, sm75 = true, sm80 = true, sm90 = true, elementwise = true }

local function lines_of(command)
  local output, status = helper.shell(command)
  assert.equal(0, status, output)
  return output:gmatch "[^\n]+"
end

--- "core" for "src/core/tensor.c", "kernels" for "kernels/sm75/tiled.cu"; nil for src/int4mm.h.
local function folder_of(path) return path:match "^src/(%w+)/" or path:match "^(kernels)/" end

local function exists(path)
  local file = io.open(path)
  return file and file:close()
end

describe("a source folder", function()
  it("includes only what lies below it", function()
    local wrong, seen = {}, 0
    for line in lines_of [[grep -rHE '^ *# *include *"' src kernels]] do
      local path, included = line:match '^([^:]+):.-"(.-)"'
      local from, to = folder_of(path), included:match "^([%w_]+)/"
      if KERNEL_FOLDERS[to] then to = "kernels" end
      if from and to then
        seen = seen + 1
        if from ~= to and not (BELOW[from] and BELOW[from][to]) then wrong[#wrong + 1] = line end
      end
    end
    assert(seen > 50, "the includes were not found")
    assert.equal("", table.concat(wrong, "\n"))
  end)

  local build = helper.build_folder()
  local has_objects = exists(build .. "/src/core/error.o") -- libraries that were carried here come without
  local case = has_objects and it or function(name) pending(name .. " (no object files in " .. build .. ")") end
  case("calls only what lies below it", function()
    local defined_in, used, wrong = {}, {}, {}
    for line in lines_of("nm -A -g $(find " .. build .. "/src -name '*.o')") do
      local path, kind, symbol = line:match "^(.-):.* (%a) (int4mm_[%w_]+)$"
      local source = path and path:sub(#build + 2):gsub("o$", "c")
      local folder = source and exists(source) and folder_of(source) -- an object may be left of a file that is gone
      if folder and kind == "U" then used[#used + 1] = { folder, symbol, source } end
      if folder and kind ~= "U" then defined_in[symbol] = folder end
    end
    assert.equal("core", defined_in.int4mm_tensor_alloc)
    for _, use in ipairs(used) do
      local from, to = use[1], defined_in[use[2]]
      if to and from ~= to and not BELOW[from][to] then
        wrong[#wrong + 1] = ("%s calls %s of %s"):format(use[3], use[2], to)
      end
    end
    assert(#used > 50, "the calls were not found")
    assert.equal("", table.concat(wrong, "\n"))
  end)
end)
