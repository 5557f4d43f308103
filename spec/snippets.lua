--- The fenced blocks of Markdown pages, and programs of their Lua and C ones.

local helper = require "spec.helper"
local q = require "int4mm"

local snippets = {}

local ROOT = assert(io.popen "pwd"):read "*l"

-- Paths of package.path and package.cpath from another folder.
local function absolute(paths) return ((";" .. paths):gsub(";%./", ";" .. ROOT .. "/"):sub(2)) end

function snippets.read(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  return text
end

--- The fenced blocks in order: { language =, line =, text =, output = }. The output is the text of the block right
-- after a program's, with nothing but a blank line between them, that is in no language (or in "text").
function snippets.blocks(path)
  local blocks, block, number = {}, nil, 0
  for line in snippets.read(path):gmatch "(.-)\n" do
    number = number + 1
    local fence = line:match "^```(%w*)$"
    if fence and block then
      local last = blocks[#blocks]
      if (block.language == "" or block.language == "text") and last and last.stop == block.line - 3 then
        last.output = block.text
      end
      block.stop = number
      blocks[#blocks + 1] = block
      block = nil
    elseif fence then
      block = { language = fence, line = number + 1, text = "" }
    elseif block then
      block.text = block.text .. line .. "\n"
    end
  end
  assert(not block, path .. " ends inside a block")
  return blocks
end

-- A folder that a block may write to, with one file in it.
local function with_folder(name, text, f)
  local folder = helper.shell("mktemp -d"):gsub("\n", "")
  local file = assert(io.open(folder .. "/" .. name, "w"))
  assert(file:write(text))
  file:close()
  local output, status = f(folder)
  helper.shell("rm -rf '" .. folder .. "'")
  return output, status
end

--- Runs a Lua block in a process and a folder of its own. One that begins with the comment "-- needs a GPU" runs on the
-- device in host memory where there is no other.
-- @treturn string what it printed, errors included
-- @treturn number its exit status
function snippets.run_lua(block, path)
  local env = ""
  if block.text:find "^%-%- needs a GPU" and not q.cuda_available() then
    env = ("INT4MM_FAKE_CUDA=host INT4MM_CUDA_LIBRARY='%s/spec/c/fake_cuda.so' "):format(
      absolute(helper.build_folder() .. "/"))
  end
  -- newlines before it, so that errors name the line of the page
  return with_folder(path:match "[^/]*$", ("\n"):rep(block.line - 1) .. block.text, function(folder)
    return helper.shell(("cd '%s' && ASAN_OPTIONS=detect_leaks=0 LUA_PATH='%s' LUA_CPATH='%s' %s luajit '%s'"):format(
      folder, absolute(package.path), absolute(package.cpath), env, path:match "[^/]*$"))
  end)
end

--- Compiles a C block against the build, and runs it.
function snippets.run_c(block)
  return with_folder("program.c", block.text, function(folder)
    return helper.shell(("unset LD_PRELOAD; gcc -std=c11 -Wall -Wextra -Werror -pedantic -I src -o '%s/program' "
      .. "'%s/program.c' -L'%s' -lint4mm && LD_LIBRARY_PATH='%s' '%s/program'"):format(folder, folder,
      helper.build_folder(), helper.build_folder(), folder))
  end)
end

--- The targets that a page's shell commands and text name, as in `make docs`.
function snippets.targets(text)
  local targets = {}
  for name in text:gmatch "[\n`(]make ([%l-]+)" do
    if name:sub(1, 1) ~= "-" then targets[name] = true end
  end
  for name in text:gmatch "make %-s ([%l-]+)" do targets[name] = true end
  return targets
end

return snippets
