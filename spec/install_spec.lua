--- What `make install` and `make rock` make of this very build: a C program links with it and runs, the module finds
-- it, and the archive and the rockspec name every file.

local helper = require "spec.helper"
local q = require "int4mm"

local BUILD = helper.build_folder()

local function shell(command)
  local output, status = helper.shell("unset LD_PRELOAD MAKEFLAGS MAKELEVEL; " .. command)
  assert.equal(0, status, output)
  return output
end

local function read(path)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  return text
end

local function write(path, text)
  local file = assert(io.open(path, "w"))
  assert(file:write(text))
  file:close()
end

local function each_line(text) return text:gmatch "[^\n]+" end

-- For programs in C: what pkg-config says of a package file, or plainly its own text.
local function package_flags(file)
  local text = read(file)
  local function expand(name)
    return (assert(text:match("\n" .. name .. ": ([^\n]*)"), name):gsub("%${(%w+)}", function(variable)
      return assert(("\n" .. text):match("\n" .. variable .. "=([^\n]*)"), variable)
    end))
  end
  return expand "Cflags" .. " " .. expand "Libs"
end

local PROGRAM = [[
#include <int4mm.h>
#include <stdio.h>

#if INT4MM_VERSION_NUMBER < 100
#error "an older header"
#endif

int main(void) {
  int4mm_tensor t = {0};
  if (int4mm_tensor_alloc(&t, 2, 3, 4, INT4MM_FLOAT32, INT4MM_CPU)) {
    puts(int4mm_last_error());
    return 1;
  }
  printf("%s %s %d.%d.%d %d\n", int4mm_version(), INT4MM_VERSION, INT4MM_VERSION_MAJOR, INT4MM_VERSION_MINOR,
         INT4MM_VERSION_PATCH, INT4MM_VERSION_NUMBER);
  int4mm_tensor_release(&t);
  return 0;
}
]]

describe("the installed build #make", function()
  local folder, lib

  setup(function()
    folder = helper.temporary_folder()
    lib = folder .. "/lib"
    -- nothing is built: `all` is taken to be there
    shell(("make -s -o all install CUDA=0 BUILD='%s' PREFIX='%s'"):format(BUILD:gsub("^%./", ""), folder))
  end)
  teardown(function() shell("rm -rf '" .. folder .. "'") end)

  it("serves C programs, which ask for it by its SONAME", function()
    if helper.sanitized() then return end -- a program would have to be built with the sanitizer, too
    write(folder .. "/program.c", PROGRAM)
    local package = lib .. "/pkgconfig/int4mm.pc"
    local flags = package_flags(package)
    if os.execute "command -v pkg-config >/dev/null 2>&1" == 0 then
      local asked = shell(("PKG_CONFIG_PATH='%s/pkgconfig' pkg-config --cflags --libs int4mm"):format(lib))
      assert.equal(flags, (asked:gsub("%s+$", "")))
    end
    shell(("cd '%s' && gcc -std=c11 -Wall -Wextra -Werror -pedantic -o program program.c %s"):format(folder, flags))
    assert.equal(("%s %s %s %d\n"):format(q._VERSION, q._VERSION, q._VERSION,
      tonumber((q._VERSION:gsub("(%d+)%.(%d+)%.(%d+)", function(major, minor, patch)
        return major * 10000 + minor * 100 + patch
      end)))), shell(("LD_LIBRARY_PATH='%s' '%s/program'"):format(lib, folder)))
    -- the name that it was linked with is not the one that it asks for
    shell(("rm '%s/libint4mm.so' && LD_LIBRARY_PATH='%s' '%s/program'"):format(lib, lib, folder))
  end)

  it("serves Lua programs, which find its CUDA library beside the library itself", function()
    if helper.sanitized() then return end -- luajit would have to load the sanitizer before the library
    local paths = ("%s/share/lua/5.1/?.lua;%s/share/lua/5.1/?/init.lua"):format(folder, folder)
    local output = shell(("cd / && LUA_PATH='%s' LUA_CPATH='%s/lua/5.1/?.so' luajit -e '%s'"):format(paths, lib,
      'local q = require "int4mm"; print(q.ones({ 8 }):sum(), q.cuda_available())'))
    assert.equal(("8\tfalse\tCUDA is not available: no CUDA build of int4mm: there is no %s/libint4mm_cuda.so\n")
      :format(lib), output)
  end)

  it("says that an empty CUDA library, which LuaRocks installs where there is none, is none", function()
    write(folder .. "/empty.so", "")
    local output, status = helper.luajit([[print(select(2, require "int4mm".cuda_available()))]],
      { INT4MM_CUDA_LIBRARY = folder .. "/empty.so" })
    assert.equal(0, status, output)
    assert.equal(("CUDA is not available: no CUDA build of int4mm: %s/empty.so is empty\n"):format(folder), output)
  end)
end)

describe("the rock #make", function()
  local rockspec = setmetatable({}, { __index = function() return nil end })

  setup(function() setfenv(assert(loadfile "rockspec/int4mm-scm-1.rockspec"), rockspec)() end)

  it("has every Lua file, and none that there is not", function()
    local there = { ["build/lua/int4mm/cdef.lua"] = "int4mm.cdef" }
    for path in each_line(shell "find lua -name '*.lua'") do
      there[path] = path:gsub("^lua/", ""):gsub("%.lua$", ""):gsub("/", ".")
    end
    for module, path in pairs(rockspec.build.install.lua) do
      assert.equal(there[path], module, path)
      there[path] = nil
    end
    assert.same({}, there) -- these are not in rockspec/int4mm-scm-1.rockspec
  end)

  it("is made with a version and a checksum, of an archive that builds", function()
    if os.execute "command -v zip >/dev/null 2>&1" ~= 0 then return pending "no zip here" end
    local folder = helper.temporary_folder()
    local name = "int4mm-" .. q._VERSION
    local url = "https://example.org/" .. name .. ".tar.gz"
    shell(("make -s rock BUILD='%s' URL='%s'"):format(folder, url))
    local made = {}
    setfenv(assert(loadfile(("%s/%s-1.rockspec"):format(folder, name))), made)()
    assert.equal(q._VERSION .. "-1", made.version)
    assert.equal(url, made.source.url)
    assert.equal(made.source.md5, (shell(("md5sum < '%s/%s.tar.gz'"):format(folder, name)):match "^%x+"))
    assert.same(rockspec.build, made.build)
    assert.equal(("%s-1.rockspec\n%s.tar.gz\n"):format(name, name), shell(("unzip -Z1 '%s/%s-1.src.rock' | sort")
      :format(folder, name)))
    shell(("tar -xzf '%s/%s.tar.gz' -C '%s'"):format(folder, name, folder))
    for _, file in ipairs { "Makefile", "src/int4mm.h", "lua/int4mm/init.lua", "kernels/cuda.mk", "spec/helper.lua",
        "rockspec/package.mk", "README.md", "LICENSE" } do
      assert.equal(read(file), read(("%s/%s/%s"):format(folder, name, file)))
    end
    local output, status = helper.shell(("unset MAKEFLAGS; make -s rock BUILD='%s' URL=https://example.org/x.zip")
      :format(folder))
    assert.equal(2, status)
    assert.matches("URL is 'https://example.org/x.zip': the URL of " .. name .. ".tar.gz is expected", output, 1, true)
    shell("rm -rf '" .. folder .. "'")
  end)
end)

describe("the output of the specs #make", function()
  -- busted on a file of two specs that are skipped and one that is not.
  local function busted(arguments)
    local file = os.tmpname()
    write(file .. "_spec.lua", [[
      describe("a thing", function()
        pending "goes (no GPU here)"
        pending "comes (no GPU here)"
        it("stays", function() end)
        it("is told", function() pending "no locale" end)
      end)
    ]])
    local output = helper.shell("busted " .. arguments .. " " .. file .. "_spec.lua")
    os.remove(file)
    os.remove(file .. "_spec.lua")
    return output, file .. "_spec.lua"
  end

  it("has a line for each file of skipped specs", function()
    if os.execute "command -v busted >/dev/null 2>&1" ~= 0 then return pending "no command busted here" end
    local output, file = busted ""
    assert.matches("\n1 success / 0 failures / 0 errors / 3 pending", output, 1, true)
    assert.matches("\n\nskipped    3 in " .. file .. ": no GPU here; no locale\n", output, 1, true)
    assert.is_nil(output:find("a thing goes", 1, true))
  end)

  it("names them when asked to", function()
    if os.execute "command -v busted >/dev/null 2>&1" ~= 0 then return pending "no command busted here" end
    local output = busted "--verbose"
    assert.matches("a thing goes (no GPU here)", output, 1, true)
    assert.is_nil(output:find("skipped", 1, true))
  end)
end)
