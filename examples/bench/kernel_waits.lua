--- Kernels that touch global memory before griddepcontrol.wait, in what `cuobjdump -sass` of an object prints:
--
--     cuobjdump -sass -arch sm_90a build/kernels/sm90/narrow.o | luajit examples/bench/kernel_waits.lua
--
-- Code of 90 on may run before the grid ahead of it in the stream has ended, which may still write what it reads. ptxas
-- moves ld.global.nc up beyond the wait. A line for each such instruction; the exit status is 1 where there is one.

package.path = (arg[0]:match "^(.*)/[^/]*$" or ".") .. "/?.lua;" .. package.path

local sass = require "sass"

local found = false
for name, code in sass.functions(io.lines()) do
  for _, i in ipairs(sass.early_accesses(code)) do
    found = true
    io.stderr:write(("%s: %s at 0x%x comes before griddepcontrol.wait\n"):format(name, code[i].name, code[i].address))
  end
end
os.exit(found and 1 or 0)
