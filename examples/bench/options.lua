--- The options that the benchmarks in Lua have in common; options.h has them for those in C, under the same names:
--
--     --shapes MxKxN,...   --only name,...   --rounds n   --seconds t   --warm t   --threads n   --seed n   --json
--
-- Each function makes what argparse's `convert` takes: the value, or nil and a sentence for what cannot be followed, an
-- empty list too.

local options = {}

-- What gpu_peers.lua and verify_gpu.lua time unless told otherwise.
options.GPU_SHAPES = "512x512x512,1024x1024x1024,2048x2048x2048,4096x4096x4096,8192x8192x8192,16384x16384x16384,"
  .. "2048x4096x14336,2048x14336x4096,2048x8192x28672,512x8192x28672,512x4096x14336,512x4096x4096,128x4096x4096,"
  .. "128x8192x28672,64x4096x14336,32x4096x14336,16x4096x4096,16x4096x14336,16x14336x4096,1x4096x4096,1x4096x14336,"
  .. "1x14336x4096,1x8192x28672"

-- The items of "a,b"; nil where one is empty or there are none.
local function items(text)
  local list = {}
  for item in (text .. ","):gmatch "([^,]*)," do
    if item == "" then return nil end
    list[#list + 1] = item
  end
  return list
end

--- Shapes as { name =, M =, K =, N = } each.
function options.shapes(text)
  local list, given = {}, items(text)
  if not given then return nil, ("shapes are MxKxN,... such as 1x4096x4096,1024x1024x1024; %q is not"):format(text) end
  for _, item in ipairs(given) do
    local M, K, N = item:match "^(%d+)x(%d+)x(%d+)$"
    if not M then return nil, ("a shape is MxKxN, such as 1024x1024x1024; %q is not"):format(item) end
    if K % 8 ~= 0 then return nil, ("K is %s in %s, expected a multiple of 8"):format(K, item) end
    if M * K * N == 0 then return nil, ("%s is empty"):format(item) end
    list[#list + 1] = { name = item, M = tonumber(M), K = tonumber(K), N = tonumber(N) }
  end
  return list
end

--- A choice among contenders, in the order in which they are known: for the option --only.
-- @tparam table known their names
function options.only(known)
  local all = table.concat(known, ", ")
  return function(text)
    local given = items(text)
    if not given then return nil, ("contenders are of %s; %q names none"):format(all, text) end
    local wanted, list = {}, {}
    for _, item in ipairs(given) do wanted[item] = true end
    for _, name in ipairs(known) do
      if wanted[name] then list[#list + 1], wanted[name] = name, nil end
    end
    local unknown = next(wanted)
    if unknown then return nil, ("a contender is one of %s; %q is not"):format(all, unknown) end
    return list
  end
end

--- A whole number of `least` or more.
function options.count(least)
  return function(text)
    local count = tonumber(text)
    if count and count >= least and count % 1 == 0 and count < 1e6 then return count end
    return nil, ("%q is not a whole number from %d"):format(text, least)
  end
end

--- Seconds, up to an hour.
function options.seconds(text)
  local seconds = tonumber(text)
  if seconds and seconds > 0 and seconds <= 3600 then return seconds end
  return nil, ("%q is not a number of seconds"):format(text)
end

return options
