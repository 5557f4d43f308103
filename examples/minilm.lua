--- A sentence encoder, all-MiniLM-L6-v2, with int4 linear layers: what each scheme costs and keeps, and a search.
--
--     make minilm ARGS="'How do animals talk to each other?'"      fetches the model, 84 MB, where it is missing
--     luajit examples/minilm.lua --help

-- From a source tree (after make) the module is found beside this script; an installed one comes first.
local here = arg[0]:match("^(.*)[/\\]") or "."
if not package.searchpath("int4mm", package.path) then
  local root = here .. "/.."
  package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s/build/lua/?.lua;"):format(root, root, root) .. package.path
  package.cpath = root .. "/build/?.so;" .. package.cpath
end
package.path = here .. "/?.lua;" .. here .. "/bench/?.lua;" .. package.path
local argparse = require "argparse"
local q = require "int4mm"
local bench = require "bench"
local encoder, measures = require "minilm.encoder", require "minilm.measures"
local model, schemes = require "minilm.model", require "minilm.schemes"

local NEIGHBOURS, FOUND = 5, 5
local QUERY = "How do animals talk to each other?"
local LONGEST = 256 -- ids of a sentence; the model was trained on no more

-- ---- arguments ----

local function parse_arguments()
  local parser = argparse("minilm.lua",
    "Encodes sentences with all-MiniLM-L6-v2 in float32 and in int4, compares the two, and searches the sentences.",
    "Columns: linear layers are the bytes of the 36 weights with their scales and biases; cosine is that of each\n"
    .. "embedding with its float32 one; recall@5 is how many of a sentence's five nearest sentences are the same as\n"
    .. "in float32; rho is Spearman's rank correlation of the similarities of all pairs.")
  parser:argument("query", ("what to search the sentences for (default: %s)"):format(QUERY)):args("?")
  parser:option("--model", "folder with model.safetensors, vocab.txt and config.json", here .. "/../build/minilm")
  parser:option("--sentences", "file with a sentence a line", here .. "/minilm/sentences.txt")
  parser:option("--device", "cpu, cuda or cuda:N", q.cuda_available() and "cuda" or "cpu")
  parser:option("--seconds", "time for each row of the table", "2"):convert(tonumber)
  parser:option("--svg", "file for a picture of the table, drawn by gnuplot")
  parser:flag("--search", "the search alone, without the table")
  return parser:parse()
end

-- Ends the program with a sentence for the user.
local function stop(message, ...)
  io.stderr:write("minilm.lua: ", message:format(...), "\n")
  os.exit(1)
end

local function read_sentences(path)
  local file, reason = io.open(path, "rb")
  if not file then stop("%s", reason) end
  local sentences = {}
  for line in file:lines() do
    line = line:gsub("\r$", "")
    if line:find "%S" then sentences[#sentences + 1] = line end
  end
  file:close()
  if #sentences <= NEIGHBOURS then
    stop("%s has %d sentences, expected more than %d, a sentence a line", path, #sentences, NEIGHBOURS)
  end
  return sentences
end

-- ---- the table ----

-- How a scheme did: its encoder, embeddings, bytes, seconds a sentence and nearness to the float32 embeddings, which
-- are its own where none are given.
local function measure(scheme, opened, device, texts, seconds, expected)
  local function encode_with(made)
    local sentences = {}
    for i, text in ipairs(texts) do sentences[i] = opened.tokenizer:encode(text, LONGEST) end
    return made:encode(sentences)
  end
  local function make(where)
    local ok, made = pcall(encoder.new, opened.weights, opened.config, scheme, where)
    return ok and made or stop("%s: %s", opened.folder, made)
  end
  local made = make(scheme.on_cpu and "cpu" or device)
  local start = bench.now()
  local result = { scheme = scheme, encoder = made, embeddings = encode_with(made), bytes = made:linear_bytes() }
  local once = bench.now() - start
  if seconds then -- what takes longer than that is not run again
    local time = once > seconds and once or bench.time(function() encode_with(made) end, { seconds = seconds })
    result.seconds = time / #texts
  end
  expected = expected or result.embeddings
  result.mean, result.least = measures.cosines(result.embeddings, expected)
  result.recall = measures.recall(result.embeddings, expected, NEIGHBOURS)
  result.rho = measures.spearman(measures.similarities(result.embeddings), measures.similarities(expected))
  if seconds and scheme.exact and device ~= "cpu" then
    result.differs = not result.embeddings:equal(encode_with(make "cpu"))
  end
  return result
end

local function print_table(results)
  local rows = { { "scheme", "linear layers", "sentences/s", "cosine, mean", "least", "recall@5", "rho" } }
  for i, result in ipairs(results) do
    rows[i + 1] = {
      result.scheme.name, ("%.1f MB"):format(result.bytes / 1e6), ("%.0f"):format(1 / result.seconds),
      ("%.4f"):format(result.mean), ("%.4f"):format(result.least), ("%.0f %%"):format(100 * result.recall),
      ("%.3f"):format(result.rho),
    }
  end
  print(bench.columns(rows, "1"))
end

-- On a GPU: whether the schemes with a promise kept it.
local function print_bits(results, device)
  local exact, differing = 0, {}
  for _, result in ipairs(results) do
    if result.scheme.exact then exact = exact + 1 end
    if result.differs then differing[#differing + 1] = result.scheme.name end
  end
  if #differing > 0 then stop("embeddings differ between %s and the CPU: %s", device, table.concat(differing, "; ")) end
  print(("\nThe embeddings of the %d W4A8 and W4A4 schemes have the same bits on %s and on the CPU."):format(exact,
    device))
end

local function compare(opened, arguments, texts)
  local step, results = bench.progress(#schemes.list), {}
  for i, scheme in ipairs(schemes.list) do
    step(scheme.name)
    results[i] = measure(scheme, opened, arguments.device, texts, arguments.seconds,
      results[1] and results[1].embeddings)
    if i > 1 and i < #schemes.list then results[i].encoder = nil end -- the search takes the others
  end
  step()
  print_table(results)
  if arguments.device ~= "cpu" then print_bits(results, arguments.device) end
  if arguments.svg then
    local drawn, reason = require("minilm.plot")(arguments.svg, results)
    if not drawn then stop("%s", reason) end
  end
  return results
end

-- ---- the search ----

local function search(opened, texts, int4, float, query)
  print(('\n"%s" (%s)\n   int4  float32'):format(query, int4.scheme.name))
  local ids = { opened.tokenizer:encode(query, LONGEST) }
  local asked, asked_float = int4.encoder:encode(ids), float.encoder:encode(ids)
  for _, found in ipairs(measures.nearest(int4.embeddings, asked, 1, FOUND)) do
    print((" %6.3f   %6.3f  %s"):format(found.cosine, measures.cosine(float.embeddings, found.index, asked_float, 1),
      texts[found.index]))
  end
end

-- ---- all of it ----

local arguments = parse_arguments()
local opened, reason = model.open(arguments.model)
if not opened then stop("%s: `make minilm` fetches the model, --model names the folder of another", reason) end
local texts = read_sentences(arguments.sentences)
local there, fault = pcall(q.ones, { 1, device = arguments.device })
if not there then stop("--device: %s", fault) end
local config, query = opened.config, arguments.query or QUERY

print(("%d layers, %d wide: %d linear layers, on %s; the embeddings, %.1f MB, and all else are float32"):format(
  config.num_hidden_layers, config.hidden_size, 6 * config.num_hidden_layers, arguments.device,
  4e-6 * config.hidden_size * (config.vocab_size + config.max_position_embeddings)))
print(("%d sentences; float32 is %s on the CPU\n"):format(#texts, schemes.float_library))
local first, last = schemes.list[1], schemes.list[#schemes.list]
if arguments.search then
  local float = measure(first, opened, arguments.device, texts)
  search(opened, texts, measure(last, opened, arguments.device, texts, nil, float.embeddings), float, query)
else
  local results = compare(opened, arguments, texts)
  search(opened, texts, results[#results], results[1], query)
end
