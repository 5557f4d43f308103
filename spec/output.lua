--- busted's output, but for specs that were skipped: a line for each file with how many and why. busted takes three for
-- each spec, which on a machine without a GPU is most of what there is to read. With --verbose they are named.

local busted = require "busted"

-- The spec file that an element of busted's tree is in.
local function file_of(element)
  while element and element.descriptor ~= "file" do element = busted.parent(element) end
  return element and (element.name:gsub("^%./", "")) or "no file"
end

-- Reasons stand in brackets at the end of a name, as helper.on_gpu writes them, or are pending's message.
local function reason_of(pending)
  if type(pending.message) == "string" then return (pending.message:gsub("^[^\n]-:%d+: ", "")) end
  return pending.name:match "%(([^()]*)%)$" or "pending"
end

-- { file =, count =, reasons = { ... } } by file, in the order of the run.
local function by_file(pendings)
  local files = {}
  for _, pending in ipairs(pendings) do
    local name, reason = pending.file, reason_of(pending)
    local file = files[name] or { name = name, count = 0, reasons = {} }
    if not files[name] then files[name], files[#files + 1] = file, file end
    if not file.reasons[reason] then
      file.reasons[reason], file.reasons[#file.reasons + 1] = true, reason
    end
    file.count = file.count + 1
  end
  return files
end

return function(options)
  local handler = require("busted.outputHandlers." .. options.defaultOutput)(options)
  if options.verbose then return handler end
  local format, pendings = handler.format, nil
  handler.format = function(element, ...)
    local formatted = format(element, ...) -- with a copy of the element, which has no place in the tree
    formatted.file = file_of(element)
    return formatted
  end
  busted.subscribe({ "suite", "end" }, function()
    pendings, handler.pendings = handler.pendings, {}
    return nil, true
  end, { priority = 1 }) -- before the one that prints them
  busted.subscribe({ "suite", "end" }, function()
    if #pendings > 0 then io.write "\n" end
    for _, file in ipairs(by_file(pendings)) do
      io.write(("skipped %4d in %s: %s\n"):format(file.count, file.name, table.concat(file.reasons, "; ")))
    end
    return nil, true
  end)
  return handler
end
