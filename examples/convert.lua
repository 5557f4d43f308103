--- Converts a checkpoint of floats into one of int4 weights, for this module and for other programs.
--
--     luajit examples/convert.lua model.safetensors --format convrot_w4a4 --output int4.safetensors
--     luajit examples/convert.lua folder --format compressed-tensors --group-size 128 --output int4/model.safetensors
--     luajit examples/convert.lua --help
--
-- Tensors are read one at a time, when they are written; what is no linear layer's weight is copied as it is. Of
-- convrot_w4a4 the int4 weights, a quarter of what they were in float16, are held in memory until the end, where they
-- stand in the file.

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
package.path = here .. "/?.lua;" .. here .. "/bench/?.lua;" .. package.path
local argparse = require "argparse"
local ffi = require "ffi"
local q = require "int4mm"
local bench = require "bench"
local formats = require "convert.formats"

local FLOATS = { F32 = true, F16 = true, BF16 = true }
local HELD = { F32 = true, F16 = true, BF16 = true, I32 = true, I8 = true } -- dtypes that tensors have
local APART = { "embed", "lm_head", "norm", "wte", "wpe" } -- in names of what is converted by --only alone

-- Ends the program with a sentence for the user.
local function stop(message, ...)
  io.stderr:write("convert.lua: ", message:format(...), "\n")
  os.exit(1)
end

-- An error's sentence without where it was raised.
local function sentence(message) return (tostring(message):gsub("^[^\n]-%.lua:%d+: ", "")) end

-- What a function returns; ends the program where it raises.
local function attempt(f, ...)
  local results = { pcall(f, ...) }
  if not results[1] then stop("%s", sentence(results[2])) end
  return unpack(results, 2, 6)
end

-- A path without what leads nowhere, to be compared.
local function plain_path(path) return (path:gsub("//+", "/"):gsub("/%./", "/"):gsub("^%./", "")) end

-- ---- arguments ----

local function whole(text)
  local number = tonumber(text)
  if number and number >= 1 and number <= 2 ^ 31 and number % 1 == 0 then return number end
  return nil, ("%q is not a whole number from 1"):format(text)
end

local function clip(text)
  local number = tonumber(text)
  if text == "mse" or number and number > 0 and number <= 1 then return number or text end
  return nil, ('a clip is "mse" or a number above 0 and up to 1; %q is not'):format(text)
end

local function parse_arguments()
  local parser = argparse("convert.lua", "Turns a float checkpoint into one of int4 weights.",
    "A pattern is the name of a layer, where * stands for any characters and ? for one. Without --only all weights of\n"
    .. "two dimensions whose sizes fit are converted, but for those of embeddings, lm_head and norms.")
  parser:argument("input", "a .safetensors file, its index, or the folder of a model")
  parser:option("--format", "convrot_w4a4 (ComfyUI) or compressed-tensors"):choices(formats.names):count(1)
  parser:option("--output", "the .safetensors file to write"):count(1)
  parser:option("--group-size", "compressed-tensors: values along K that share a scale (default: all)"):convert(whole)
  parser:flag("--zero-point", "compressed-tensors: zero points beside the scales")
  parser:option("--rotate", "convrot_w4a4: the rotation's block, a power of four (default: 256)"):convert(whole)
  parser:option("--clip", "what the largest magnitude is multiplied by, or mse: the least squared error", "mse")
    :convert(clip)
  parser:option("--only", "pattern of layers to convert; may be given again"):count("*")
  parser:option("--skip", "pattern of layers to leave as they are; may be given again"):count("*")
  local arguments = parser:parse()
  local reason = formats[arguments.format].check(arguments)
  if reason then parser:error(reason) end
  if not arguments.output:find "[^/]%.safetensors$" then
    parser:error(("--output is %q, expected the name of a .safetensors file"):format(arguments.output))
  end
  return arguments
end

-- ---- which layers ----

-- Whether a name is one of the patterns.
local function matches(name, patterns)
  for _, pattern in ipairs(patterns) do
    local lua = pattern:gsub("[%^%$%(%)%%%.%[%]%+%-]", "%%%0"):gsub("%*", ".*"):gsub("%?", ".")
    if name:find("^" .. lua .. "$") then return true end
  end
  return false
end

local function is_apart(layer)
  for _, word in ipairs(APART) do
    if layer:lower():find(word, 1, true) then return true end
  end
  return false
end

-- The layers to convert, { name =, N =, K =, dtype = } each by the tensor's name; the names of linear layers that stay
-- as they are; how many of these do not fit.
local function choose(file, arguments)
  local chosen, left, unfit, count = {}, {}, 0, 0
  for _, name in ipairs(file:names()) do
    local layer, info = name:match "^(.*)%.weight$", file:info(name)
    if plain_path(info.path) == plain_path(arguments.output) then
      stop("--output is %s, which the input is read from: give another name", info.path)
    end
    if layer and #info.shape == 2 and FLOATS[info.dtype] then
      local wanted = not is_apart(layer)
      if #arguments.only > 0 then wanted = matches(layer, arguments.only) end
      wanted = wanted and not matches(layer, arguments.skip)
      local N, K = info.shape[1], info.shape[2]
      local fits = N > 0 and K > 0 and formats[arguments.format].fits(K, arguments)
      if wanted and fits then
        chosen[name], count = { name = layer, N = N, K = K }, count + 1
      else
        left[#left + 1] = layer
        if wanted then unfit = unfit + 1 end
      end
    end
  end
  return chosen, left, unfit, count
end

-- ---- converting ----

-- The sum of squares of a - b, and that of a, both [N, K] float32 without gaps.
local function squares(a, b)
  local x, y = ffi.cast("const float *", a:data()), ffi.cast("const float *", b:data())
  local difference, all = 0, 0
  for i = 0, a:numel() - 1 do
    local d = x[i] - y[i]
    difference, all = difference + d * d, all + x[i] * x[i]
  end
  return difference, all, a, b -- which live until here
end

-- Quantises one layer; returns words, scales and zero points, and adds what was lost to `report`.
local function quantize(file, layer, arguments, report)
  local rotate = formats[arguments.format].block(arguments)
  local weight = file:tensor(layer.name .. ".weight")
  local ok, words, scales, zeros = pcall(q.quantize, weight, {
    rotate = rotate, clip = arguments.clip, group_size = arguments.group_size,
    zero_point = arguments.zero_point, encoding = formats[arguments.format].encoding,
  })
  if not ok then error(("layer %s of %s: %s"):format(layer.name, file.path, words), 0) end
  local float = weight:to "float32"
  if rotate then float = q.rotate(float, { block = rotate }) end
  local difference, all = squares(float, q.dequantize(words, scales, { zeros = zeros }))
  report.difference, report.all = report.difference + difference, report.all + all
  local relative = all > 0 and math.sqrt(difference / all) or 0
  if not report.worst or relative > report.worst then report.worst, report.where = relative, layer.name end
  return words, scales, zeros
end

-- What the output holds, as q.save_safetensors takes it: every tensor is made when it is written.
local function plan(file, arguments, chosen, report, step)
  local tensors, sizes = {}, { before = 0, after = 0 }
  local function add(name, entry)
    if tensors[name] or (not chosen[name] and entry.of and file:has(name)) then
      stop("%s has the tensor %s already, which layer %s would get", file.path, name, entry.of)
    end
    tensors[name] = entry
    sizes.after = sizes.after + entry.bytes
  end
  for _, name in ipairs(file:names()) do
    local info, layer = file:info(name), chosen[name]
    sizes.before = sizes.before + info.bytes
    if layer then
      formats[arguments.format].add(add, layer, arguments, function()
        step(layer.name)
        return quantize(file, layer, arguments, report)
      end)
    else
      add(name, { dtype = info.dtype, shape = info.shape, bytes = info.bytes, data = function()
        return HELD[info.dtype] and file:tensor(name) or file:bytes(name)
      end })
    end
  end
  return tensors, sizes
end

-- ---- config.json ----

local function read_text(path)
  local stream = io.open(path, "rb")
  if not stream then return nil end
  local text = stream:read "*a"
  stream:close()
  return text
end

-- The folder that a path is in, with its slash; "" for the current one.
local function folder_of(path) return path:match "^.*/" or "" end

-- The text of the new config.json and its path; nil where the input has none, or the format needs none.
local function new_config(input, arguments, left)
  local make = formats[arguments.format].config
  local path = folder_of(input) .. "config.json"
  local text = make and read_text(path)
  if not text then return nil end
  local target = folder_of(arguments.output) .. "config.json"
  if read_text(target) then stop("%s is there already: write to a folder that has no config.json", target) end
  local new, reason = make(text, arguments, left)
  if not new then stop("%s: %s", path, reason) end
  return new, target
end

-- Writes a text to a file of another name beside `path`; returns that name.
local function write_beside(path, text)
  local temporary = path .. ".tmp"
  local stream, reason = io.open(temporary, "wb")
  if not stream then stop("%s", reason) end
  local done, why = stream:write(text)
  local closed, trouble = stream:close()
  if not (done and closed) then
    os.remove(temporary)
    stop("%s: %s", temporary, why or trouble)
  end
  return temporary
end

-- ---- all of it ----

-- Strings of the input's metadata; "pt" is what Hugging Face's programs want to see.
local function metadata_of(file)
  local metadata = { format = "pt" }
  for key, value in pairs(file.metadata or {}) do
    if type(key) == "string" and type(value) == "string" then metadata[key] = value end
  end
  return metadata
end

-- Saves tensors and config.json, both or neither.
local function save(file, arguments, tensors, config, target, step)
  local temporary = config and write_beside(target, config)
  local ok, saved, reason = pcall(q.save_safetensors, arguments.output, tensors, { metadata = metadata_of(file) })
  if ok and saved then
    if not temporary then return end
    saved, reason = os.rename(temporary, target)
    if saved then return end
    os.remove(arguments.output)
  end
  if temporary then os.remove(temporary) end
  step()
  stop("%s", sentence(not ok and saved or reason))
end

-- Loads every layer of the output once.
local function check(arguments, chosen, step)
  local file, reason = q.open_safetensors(arguments.output)
  if not file then stop("%s", reason) end
  local names = {}
  for _, layer in pairs(chosen) do names[#names + 1] = layer.name end
  table.sort(names)
  for _, name in ipairs(names) do
    step("checking " .. name)
    attempt(q.load_linear, file, name, { group_size = arguments.group_size })
  end
  file:close()
end

local function main()
  local arguments = parse_arguments()
  local file, reason = attempt(q.open_safetensors, arguments.input)
  if not file then stop("%s", reason) end
  local chosen, left, unfit, count = attempt(choose, file, arguments)
  if count == 0 then
    stop("%s has no layer to convert%s", file.path,
      unfit > 0 and (": K does not fit in %d, expected %s"):format(unfit, formats[arguments.format].needs(arguments))
      or ": no float weight of two dimensions that is asked for")
  end
  local config, target = new_config(file.path, arguments, left)
  local step, report = bench.progress(2 * count), { difference = 0, all = 0 }
  local tensors, sizes = plan(file, arguments, chosen, report, step)
  save(file, arguments, tensors, config, target, step)
  check(arguments, chosen, step)
  step()
  print(("%d layer%s converted to %s%s"):format(count, count == 1 and "" or "s", arguments.format,
    unfit > 0 and (", %d left whose K is not %s"):format(unfit, formats[arguments.format].needs(arguments)) or ""))
  print(("tensors: %s before, %s after"):format(bench.size(sizes.before), bench.size(sizes.after)))
  print(("relative error of the weights: %.2f%%, at most %.2f%% (%s)"):format(
    100 * math.sqrt(report.difference / math.max(report.all, 2 ^ -1000)), 100 * report.worst, report.where))
  print("written: " .. arguments.output .. (config and ", " .. target or ""))
end

main()
