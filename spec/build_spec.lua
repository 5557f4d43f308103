--- The Makefile: what it builds, what it refuses, where it installs. Stand-ins for the compilers make empty objects, so
-- that a whole build takes a moment and nvcc may be of any version; the tree is a copy, so that sources may be touched.

local helper = require "spec.helper"

local ROOT = assert(io.popen("pwd"):read "*l")

--- What a compiler does here: answers what it is asked about itself, else leaves the file after -o.
local COMPILER = [==[#!/bin/sh
case "$*" in
  *-dumpmachine*) echo x86_64-linux-gnu; exit ;;
  *-E*) exec gcc "$@" ;;
esac
echo "$0 $*" >> "$CALLS"
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
]==]

local NVCC = [==[#!/bin/sh
echo "nvcc $*" >> "$CALLS"
case "$*" in
  *--version*) echo "Cuda compilation tools, release ${FAKE_CUDA_VERSION:-13.0}, V0"; exit ;;
  *--help*) echo "Allowed values: 'sm_70','sm_75','sm_80','sm_86','sm_89','sm_90','sm_90a','sm_100','sm_120'."; exit ;;
esac
case "$*" in *"$FAKE_SPILL"*) echo "    0 bytes stack frame, 16 bytes spill stores, 16 bytes spill loads" >&2 ;; esac
while [ $# -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done
]==]

--- Machine code of one kernel, which loads before it waits where the object's name has $FAKE_EARLY in it.
local CUOBJDUMP = [==[#!/bin/sh
load='        /*0080*/              @!P0 LDG.E.CONSTANT R4, desc[UR4][R2.64] ;   /* 0x0000000402040981 */'
wait='        /*0090*/                   ACQBULK ;                               /* 0x000000000000782e */'
printf '\t\tFunction : _Z6kernelv\n'
case "$*" in *"$FAKE_EARLY"*) printf '%s\n%s\n' "$load" "$wait" ;; *) printf '%s\n%s\n' "$wait" "$load" ;; esac
]==]

--- A sanitizer that this process was started with is not for the programs that it runs here.
local function shell(command) return helper.shell("unset LD_PRELOAD; " .. command) end

local folder, bin, tree, calls

local function write(path, text)
  local file = assert(io.open(path, "w"))
  assert(file:write(text))
  file:close()
end

--- Runs a shell command in the tree, with nothing of this process's environment but what is given.
local function run(command, env)
  local words = { ("env -i HOME=/nonexistent FAKE_SPILL=none FAKE_EARLY=none CALLS='%s' CC='%s/cc'"):format(calls, bin),
    ("PATH='%s:/usr/bin:/bin'"):format(bin) }
  for name, value in pairs(env or {}) do words[#words + 1] = ("%s='%s'"):format(name, value) end
  return shell(("cd '%s' && %s %s"):format(tree, table.concat(words, " "), command))
end

--- make with these arguments, which must succeed; or must fail, with this sentence in what it says.
local function make(arguments, env)
  local output, status = run("make -j2 " .. arguments, env)
  assert.equal(0, status, output)
  return output
end
local function refused(sentence, arguments, env)
  local output, status = run("make -j2 " .. arguments, env)
  assert.equal(2, status, output)
  assert.matches(sentence, output, 1, true)
end

--- The lines of what the stand-ins were called with, since the last time.
local function called()
  local file = io.open(calls)
  local text = file and file:read "*a" or ""
  if file then file:close() end
  os.remove(calls)
  return text
end

local function exists(path)
  local file = io.open(path:sub(1, 1) == "/" and path or tree .. "/" .. path)
  if file then file:close() end
  return file ~= nil
end

describe("the Makefile #make", function()
  setup(function()
    folder = shell("mktemp -d"):gsub("\n", "")
    bin, tree, calls = folder .. "/bin", folder .. "/tree", folder .. "/calls"
    local copied, status = shell(("mkdir '%s' '%s' && cd '%s' && cp -r Makefile src kernels lua rockspec examples '%s'")
      :format(bin, tree, ROOT, tree))
    assert.equal(0, status, copied)
    for name, text in pairs { cc = COMPILER, ["g++"] = COMPILER, nvcc = NVCC, cuobjdump = CUOBJDUMP } do
      write(bin .. "/" .. name, text)
    end
    shell("chmod +x '" .. bin .. "'/*")
  end)
  teardown(function() shell("rm -rf '" .. folder .. "'") end)
  before_each(function()
    shell("rm -rf '" .. tree .. "/build'")
    called()
  end)

  describe("asks nvcc", function()
    it("where the CUDA library is built", function()
      make ""
      assert.matches("nvcc --version", called(), 1, true)
      assert.is_true(exists "build/libint4mm_cuda.so")
    end)

    it("nowhere else", function()
      for _, goal in ipairs { "help", "clean", "uninstall DESTDIR=stage", "all CUDA=0" } do
        make(goal)
        assert.not_matches("nvcc", called(), 1, true)
      end
    end)

    it("by name, and stops where it is not there", function()
      refused("NVCC=/nonexistent cannot be had", "NVCC=/nonexistent")
      refused("NVCC=/nonexistent cannot be had", "", { NVCC = "/nonexistent" })
      refused("NVCC=/bin/true cannot be had: '/bin/true --version' does not run, or is not of nvcc", "NVCC=/bin/true")
      refused("CUDA=1 cannot be had: no nvcc", "CUDA=1 NVCC=")
    end)

    it("and leaves out one that is too old, with the reason", function()
      local output = make("", { FAKE_CUDA_VERSION = "12.0" })
      assert.matches("CUDA is skipped: " .. bin .. "/nvcc is of CUDA 12.0, the oldest served is 12.1", output, 1, true)
      make("", { FAKE_CUDA_VERSION = "12.10" })
      assert.is_true(exists "build/libint4mm_cuda.so")
    end)
  end)

  describe("compiles a kernel for", function()
    --- The architectures that each folder was compiled for, and a file that has its own, PTX with a p before it.
    local function compiled(arguments)
      shell("rm -rf '" .. tree .. "/build'")
      called()
      make(arguments)
      local archs = {}
      for line in called():gmatch "nvcc [^\n]*%-c[^\n]*" do
        local list = {}
        for code in line:gmatch "code=(%w+_%w+)" do list[#list + 1] = code:gsub("sm_", ""):gsub("compute_", "p") end
        local folder_name, file = line:match "kernels/([%w]+)/([%w_]+)%.cu"
        if folder_name == "sm75" and file == "mma" then folder_name = "sm75/mma" end
        archs[folder_name] = table.concat(list, " ")
      end
      return archs
    end

    it("the architectures that its folder serves", function()
      local archs = compiled ""
      assert.equal("75 80 86 89 90a 100 120 p100", archs.sm75)
      assert.equal("75 80 86 89 90a 100 120 p100", archs.elementwise)
      assert.equal("80 86 89 90a 100 120 p100", archs.sm80)
      assert.equal("90a", archs.sm90)
      assert.equal("75 p75", archs["sm75/mma"])
    end)

    it("one at least, whatever CUDA_ARCHS says, the newest as PTX", function()
      local archs = compiled "CUDA_ARCHS='90a 80'"
      assert.equal("80 90a p80", archs.sm75)
      assert.equal("80 90a p80", archs.sm80)
      archs = compiled "CUDA_ARCHS='120 75 86'"
      assert.equal("75 86 120 p120", archs.sm75)
      assert.equal("86 120 p120", archs.sm80)
      assert.equal("90a", archs.sm90)
      archs = compiled "CUDA_ARCHS=75"
      assert.equal("75 p75", archs.sm75)
      assert.equal("80 p80", archs.sm80)
    end)

    -- Machine code runs on its own architecture and, without a letter, on later ones of its major version; PTX on any
    -- later one.
    it("so that every GPU from sm_75 on has code in a library that was built without CUDA_ARCHS", function()
      local function covers(code, arch)
        local ptx, number, letter = code:match "^(p?)(%d+)(%a?)$"
        number = tonumber(number)
        if ptx == "p" then return number <= arch end
        if letter ~= "" then return number == arch end
        return number <= arch and math.floor(number / 10) == math.floor(arch / 10)
      end
      for folder_name, list in pairs(compiled "") do
        local first = folder_name == "sm80" and 80 or 75
        for _, arch in ipairs { 75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121, 130 } do
          local by
          for code in list:gmatch "%S+" do by = by or covers(code, arch) and code end
          local of_all = folder_name ~= "sm90" and folder_name ~= "sm75/mma"
          assert(by or arch < first or not of_all,
            ("kernels/%s, compiled for %s, has no code for sm_%d"):format(folder_name, list, arch))
        end
      end
    end)

    it("none that nvcc does not know, nor one that is too old", function()
      local known = ("expected are architectures that %s/nvcc of CUDA 13.0 knows (70 75 80 86 89 90 90a 100 120)")
        :format(bin)
      refused("CUDA_ARCHS is '9.0': " .. known .. ", not 9.0", "CUDA_ARCHS=9.0")
      refused("CUDA_ARCHS is '80 999': " .. known .. ", not 999", "CUDA_ARCHS='80 999'")
      refused("CUDA_ARCHS is '': " .. known, "CUDA_ARCHS=")
      refused("CUDA_ARCHS is '70': the oldest architecture that the kernels serve is 75", "", { CUDA_ARCHS = "70" })
    end)

    it("without a spill in the tuned folders, unless ptxas is an old one", function()
      for _, file in ipairs { "kernels/sm90/", "kernels/sm80/", "kernels/sm75/mma" } do
        local env = { FAKE_SPILL = file }
        refused("ptxas spilled", "", env)
        assert.is_false(exists "build/libint4mm_cuda.so")
        env.FAKE_CUDA_VERSION = "12.8"
        assert.matches("ptxas spilled", make("", env), 1, true)
        make "clean"
        refused("ptxas spilled", "WERROR=1", env)
        make "clean"
      end
      make("", { FAKE_SPILL = "kernels/sm75/tiled" })
    end)

    it("without a kernel that loads before it waits for the grid ahead of it, where warnings are errors", function()
      local env = { FAKE_EARLY = "kernels/sm90/narrow" }
      refused("kernels/sm90/narrow.cu: code for 90a touches global memory before griddepcontrol.wait", "WERROR=1", env)
      assert.is_false(exists "build/kernels/sm90/narrow.o")
      make("WERROR=1", { FAKE_EARLY = "kernels/sm75/mma" }) -- for 75 alone, which does not wait
      make "clean"
      make("WERROR=1 CUOBJDUMP=", env)
      make "clean"
      make("", env)
    end)
  end)

  describe("keeps a CUDA library", function()
    local ELSEWHERE = "NVCC="

    it("that was built where nvcc was in sight, and installs it", function()
      make ""
      local output = make("install DESTDIR=stage " .. ELSEWHERE)
      assert.matches("build/libint4mm_cuda.so is kept as it was built earlier: no nvcc", output, 1, true)
      assert.is_true(exists "build/libint4mm_cuda.so")
      assert.is_true(exists "stage/usr/local/lib/libint4mm_cuda.so")
    end)

    it("but not for other sources", function()
      make ""
      for _, source in ipairs { "kernels/common/ptx.cuh", "src/cuda/backend.c" } do
        shell(("touch -d '+1 minute' '%s/%s'"):format(tree, source))
        refused("build/libint4mm_cuda.so is older than " .. source .. " and cannot be built: no nvcc", ELSEWHERE)
        shell(("touch -d '-1 minute' '%s/%s'"):format(tree, source))
        make(ELSEWHERE)
      end
    end)

    it("not with CUDA=0", function()
      make ""
      make "CUDA=0"
      assert.is_false(exists "build/libint4mm_cuda.so")
      assert.matches("CUDA is '2': 0 or 1 is expected", (run "make CUDA=2"), 1, true)
    end)

    it("and compiles no C again when nvcc goes or comes", function()
      make "CUDA=0"
      called()
      make ""
      assert.not_matches("src/error.c", called(), 1, true)
    end)
  end)

  describe("installs", function()
    local FILES = { "lib/libint4mm.so", "lib/libint4mm.so.0", "lib/libint4mm.so.0.1.0", "lib/lua/5.1/libint4mm.so",
      "lib/pkgconfig/int4mm.pc", "share/lua/5.1/int4mm/init.lua", "share/lua/5.1/int4mm/cdef.lua", "include/int4mm.h" }

    local function installed(arguments, place)
      make("install CUDA=0 " .. arguments)
      local count = shell(("cd '%s' && find . -name '*.lua' -o -name '*.so*' -o -name int4mm.pc -o -name int4mm.h "
        .. "| grep -v -e ^./lua/ -e ^./build/ -e ^./src/ -e ^./examples/ | wc -l"):format(tree))
      local inside = shell(("cd '%s' && cd '%s' && find . ! -type d | wc -l"):format(tree, place))
      if place:sub(1, 1) ~= "/" then assert.equal(tonumber(inside), tonumber(count)) end
      for _, file in ipairs(FILES) do assert.is_true(exists(place .. "/" .. file), file) end
      make("uninstall " .. arguments)
      assert.equal("0\n", (shell(("cd '%s' && cd '%s' && find . ! -type d | wc -l"):format(tree, place))))
    end

    before_each(function() shell("rm -rf '" .. tree .. "/stage' '" .. folder .. "/far away'") end)

    it("below a relative DESTDIR or PREFIX, all in one place", function()
      installed("DESTDIR=stage", "stage/usr/local")
      installed("DESTDIR=./stage/../stage PREFIX=/opt/x", "stage/opt/x")
      installed("PREFIX=stage/here", "stage/here")
    end)

    it("below absolute ones, with spaces too", function()
      installed(("PREFIX='%s/far away/x'"):format(folder), folder .. "/far away/x")
      installed(("DESTDIR='%s/far away'"):format(folder), folder .. "/far away/usr/local")
    end)

    it("the library once, whatever looks for it", function()
      make "install CUDA=0 DESTDIR=stage"
      local function target(link) return (shell(("cd '%s/stage/usr/local/lib' && readlink %s"):format(tree, link))) end
      assert.equal("libint4mm.so.0\n", target "libint4mm.so")
      assert.equal("libint4mm.so.0.1.0\n", target "libint4mm.so.0")
      assert.equal("../../libint4mm.so.0.1.0\n", target "lua/5.1/libint4mm.so")
      assert.equal("", target "libint4mm.so.0.1.0")
      make "install CUDA=0 DESTDIR=stage LIBDIR=/x CMODDIR=/x"
      assert.equal("libint4mm.so.0\n", (shell(("readlink '%s/stage/x/libint4mm.so'"):format(tree))))
    end)

    it("a pkg-config file that names the places without DESTDIR", function()
      make "install CUDA=0 DESTDIR=stage PREFIX=/opt/x LIBDIR='/opt/a b'"
      local text = shell(("cat '%s/stage/opt/a b/pkgconfig/int4mm.pc'"):format(tree))
      assert.matches("libdir=/opt/a\\ b\nincludedir=/opt/x/include\n", text, 1, true)
      assert.matches("\nVersion: 0.1.0\n", text, 1, true)
    end)

    it("nowhere when the place is not clear", function()
      refused("LUADIR is 'usr/share/lua/5.1': below DESTDIR an absolute path is expected (from PREFIX too, which is "
        .. "'usr')",
        "install CUDA=0 DESTDIR=stage PREFIX=usr")
      refused("LIBDIR is 'x': below DESTDIR an absolute path is expected", "install CUDA=0 DESTDIR=/stage LIBDIR=x")
      refused("begins with '~'", "install CUDA=0 PREFIX='~/x'")
      assert.is_false(exists "build/libint4mm.so")
    end)
  end)

  describe("refuses", function()
    it("a BUILD that no rule can name", function()
      refused("BUILD is 'a b': the name of one folder, without spaces, is expected", "CUDA=0 BUILD='a b'")
      refused("BUILD is '': the name of one folder, without spaces, is expected", "CUDA=0 BUILD=")
    end)

    it("flags that change the bits of results", function()
      for _, flag in ipairs { "-Ofast", "-ffast-math", "-ffinite-math-only", "-funsafe-math-optimizations" } do
        for _, variable in ipairs { "CFLAGS", "LDFLAGS" } do
          refused("LDFLAGS has " .. flag .. ", which changes the bits", ("CUDA=0 %s='-O2 %s'"):format(variable, flag))
        end
      end
      for _, flag in ipairs { "--use_fast_math", "-use_fast_math", "--ftz=true", "-ftz true", "-prec-div=false" } do
        refused("which changes the bits of results", ("NVCCFLAGS='-O3 %s'"):format(flag))
        refused("which changes the bits of results", "", { NVCC_APPEND_FLAGS = flag })
      end
      make "CUDA=0 CFLAGS='-O2 -fno-fast-math'"
      make "NVCCFLAGS='-O3 -ftz=false'"
    end)

    it("flags that change the bits, where the Makefile is not used, by a header of the core", function()
      local header = shell("grep -rl --include='*.h' __FAST_MATH__ src"):match "^(%S+)\n$"
      for _, compiler in ipairs { "gcc", "clang" } do
        local found = select(2, shell("command -v " .. compiler)) == 0
        for _, flag in ipairs(found and { "-ffast-math", "-Ofast", "-ffinite-math-only" } or {}) do
          local command = ("%s -std=gnu11 -Isrc -fsyntax-only -x c %s "):format(compiler, header)
          assert.equal(0, select(2, shell(command .. "-O3")))
          local output, status = shell(command .. flag)
          assert.equal(1, status, output)
          assert.matches("change the bits of results", output, 1, true)
        end
      end
    end)
  end)

  describe("ties what belongs together", function()
    local HEADER = "build/include/int4mm_abi.h"

    --- Both numbers of the generated header, and the cdef's.
    local function numbers()
      make("CUDA=0 build/lua/int4mm/cdef.lua " .. HEADER)
      local text = shell(("cat '%s/%s'"):format(tree, HEADER))
      local cdef = shell(("cat '%s/build/lua/int4mm/cdef.lua'"):format(tree))
      local hash = assert(text:match 'INT4MM_ABI_HASH "(%d+)"', text)
      assert.equal(hash, cdef:match 'int4mm_cdef_hash%[%] __asm__%("(%d+)"%)')
      return hash, assert(text:match "INT4MM_CUDA_ABI (%d+)u", text)
    end

    local function edit(file, script)
      shell(("cd '%s' && sed -i.kept '%s' %s && ! cmp -s %s %s.kept"):format(tree, script, file, file, file))
    end
    local function restore(file) shell(("cd '%s' && mv %s.kept %s"):format(tree, file, file)) end

    it("a declaration that changes changes both numbers; a comment or white space not the cdef's", function()
      local hash, cuda = numbers()
      edit("src/int4mm.h", "s/int32_t rank; /int64_t rank; /")
      local other_hash, other_cuda = numbers()
      restore "src/int4mm.h"
      assert.not_equal(hash, other_hash)
      assert.not_equal(cuda, other_cuda)
      edit("src/int4mm.h", "s/int32_t rank; .*/int32_t   rank;/")
      assert.equal(hash, (numbers()))
      restore "src/int4mm.h"
    end)

    it("a struct that the core shares with the CUDA library changes the latter's", function()
      local hash, cuda = numbers()
      for file, script in pairs { ["src/core/problem.h"] = "s/uint32_t xor_mask;/uint64_t xor_mask;/",
        ["src/cuda/table.h"] = "s/uint32_t abi;/uint64_t abi;/", ["kernels/common/kernels.inc"] = "/KERNEL(tiled/d" } do
        edit(file, script)
        local other_hash, other_cuda = numbers()
        restore(file)
        assert.equal(hash, other_hash, file)
        assert.not_equal(cuda, other_cuda, file)
      end
    end)
  end)

  it("a cdef and a library of other declarations do not load together", function()
    local cdef = assert(io.open(assert(package.searchpath("int4mm.cdef", package.path)))):read "*a"
    shell(("mkdir -p '%s/other/int4mm'"):format(folder))
    write(folder .. "/other/int4mm/cdef.lua", (cdef:gsub('(cdef_hash%[%] __asm__%(")%d+', "%142")))
    local output, status = helper.luajit(("package.path = '%s/other/?.lua;' .. package.path "):format(folder)
      .. "print(select(2, pcall(require, 'int4mm')))")
    assert.equal(0, status, output)
    assert.matches("^int4mm: %S+/libint4mm.so is of version [%d.]+, interface %d+, but the Lua files on package.path "
      .. "are of version [%d.]+, interface 42; one of them is of another build\n$", output)
  end)

  describe("runs programs", function()
    local LUAJIT = "#!/bin/sh\necho \"LUA_PATH $LUA_PATH\" \"LUA_CPATH $LUA_CPATH\" with \"$@\"\n"

    setup(function()
      write(bin .. "/luajit", LUAJIT)
      shell("chmod +x '" .. bin .. "/luajit'")
      write(tree .. "/a program.lua", "")
    end)
    teardown(function() os.remove(bin .. "/luajit") end)

    it("with the module of the tree before what LuaRocks put on the caller's LUA_PATH", function()
      local output = make("demo CUDA=0", { LUA_PATH = "/rocks/?.lua", LUA_CPATH = "/rocks/?.so;;" })
      assert.matches("LUA_PATH " .. tree .. "/lua/?.lua;", output, 1, true)
      assert.matches("/build/lua/?.lua;/rocks/?.lua LUA_CPATH ", output, 1, true)
      assert.matches("/build/?.so;/rocks/?.so;;", output, 1, true)
      output = make "demo CUDA=0"
      assert.matches("/build/lua/?.lua;; LUA_CPATH ", output, 1, true)
    end)

    it("of the user's, and says so at the end of the demo", function()
      assert.matches('make run FILE=x.lua, or eval "$(make -s env)" once and then luajit x.lua.\n',
        make "demo CUDA=0", 1, true)
      local output = make("run CUDA=0 FILE='a program.lua' ARGS='1 2'")
      assert.matches("LUA_PATH " .. tree .. "/lua/?.lua;", output, 1, true)
      assert.matches(" with a program.lua 1 2\n", output, 1, true)
    end)

    it("but not one that there is not", function()
      refused("FILE is 'x.lua', which is no file: expected is a Lua program, as in make run FILE=x.lua",
        "run CUDA=0 FILE=x.lua")
      refused("FILE is '', which is no file", "run CUDA=0")
      assert.is_false(exists "build/libint4mm.so")
    end)

    it("that the shell starts, after eval", function()
      make "CUDA=0"
      local output, status = run([[sh -c 'eval "$(make -s env)" && luajit x.lua']], { LUA_PATH = "/rocks/?.lua" })
      assert.equal(0, status, output)
      assert.matches("^LUA_PATH " .. tree:gsub("%p", "%%%0") .. "/lua/%?.lua;", output)
      assert.matches("/build/lua/?.lua;/rocks/?.lua LUA_CPATH " .. tree .. "/build/?.so;; with x.lua\n", output, 1,
        true)
      assert.matches("elsewhere/libint4mm.so is not built yet: run make", (run("make -s env BUILD=elsewhere")), 1, true)
    end)
  end)

  describe("installs what the machine lacks", function()
    -- Answers a simulation, and notes everything else.
    local APT = [==[#!/bin/sh
case "$*" in
  *--simulate*"$FAKE_CONFLICT"*) echo "The following packages will be REMOVED: nginx"; exit 100 ;;
  *--simulate*) echo "Inst clang-format [13-1] (14-1 Debian [amd64])"; echo "Inst llvm (14-2 Debian [amd64])"
                echo "Conf llvm (14-2 Debian [amd64])"; exit ;;
esac
echo "apt-get $*" >> "$CALLS"
case "$*" in *install*) printf '#!/bin/sh\n' > "${0%/*}/clang-format"; chmod +x "${0%/*}/clang-format" ;; esac
]==]
    local path -- without this machine's clang-format

    setup(function()
      path = bin .. ":" .. folder .. "/few"
      shell(("mkdir '%s/few' && for tool in make sh sed mkdir id env echo printf cat find sort tr uname rm true chmod;"
        .. "do ln -s \"$(command -v $tool)\" '%s/few'; done"):format(folder, folder))
      write(bin .. "/apt-get", APT)
      write(bin .. "/luacheck", "#!/bin/sh\n")
      write(bin .. "/sudo", '#!/bin/sh\nexec "$@"\n')
      shell("chmod +x '" .. bin .. "'/*")
    end)
    before_each(function() os.remove(bin .. "/clang-format") end)
    teardown(function()
      for _, name in ipairs { "apt-get", "luacheck", "sudo", "clang-format" } do os.remove(bin .. "/" .. name) end
    end)

    it("after it has shown what that is, and never by removing a package", function()
      local output = make("lint CUDA=0", { PATH = path, FAKE_CONFLICT = "nothing" })
      assert.matches("lacks clang-format (Debian's package names)", output, 1, true)
      assert.matches("apt-get installs (APT=0 would leave it to you):\n  clang-format 14-1 [13-1]\n  llvm 14-2\n",
        output, 1, true)
      assert.matches("apt-get update -qq\napt-get install --no-remove --no-install-recommends -qq -y clang-format\n",
        called(), 1, true)
    end)

    it("not where that would remove one: it says so, and changes nothing", function()
      refused("will be REMOVED: nginx\napt-get cannot install clang-format, or not without removing packages",
        "lint CUDA=0", { PATH = path, FAKE_CONFLICT = "clang" })
      assert.equal("apt-get update -qq\n", called())
    end)

    it("not when it is told not to", function()
      refused("Install these, then run make again; APT is 0", "lint CUDA=0 APT=0", { PATH = path })
      assert.equal("", called())
    end)
  end)
end)

-- The bound is for all architectures of a build without CUDA_ARCHS; raise it knowingly, since packages carry it.
describe("the CUDA library that was built", function()
  it("has at most 24 MB where the compiler packs it for size, 80 elsewhere", function()
    local file = io.open(helper.build_folder() .. "/libint4mm_cuda.so")
    if not file then return end
    local bytes = file:seek "end"
    file:close()
    file = assert(io.open(helper.build_folder() .. "/cuda_flags.txt"))
    local bound = file:read("*a"):find("--compress-mode=size", 1, true) and 24e6 or 80e6
    file:close()
    assert(bytes <= bound, ("it has %.1f MB"):format(bytes / 1e6))
  end)
end)
