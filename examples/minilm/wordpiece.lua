--- BERT's tokenizer for uncased vocabularies: text is cleaned, lower-cased, cut into words and punctuation, and each
-- word into the longest pieces that the vocabulary has (WordPiece; pieces inside a word begin with "##").
--
-- Text is UTF-8. Latin, Greek and Cyrillic letters are lower-cased and lose their accents; letters of other scripts
-- stay as they are. Ids count from 0, as the rows of a model's table of embeddings do.

local wordpiece = {}

local LONGEST_WORD = 100 -- characters; longer ones are unknown
local CHARACTER = "[%z\1-\127\194-\244][\128-\191]*" -- of UTF-8

-- ---- characters ----

local function code_of(character)
  local first = character:byte()
  local code = first < 0x80 and first or first < 0xe0 and first - 0xc0 or first < 0xf0 and first - 0xe0 or first - 0xf0
  for i = 2, #character do code = code * 64 + character:byte(i) - 0x80 end
  return code
end

-- Of characters that have an accent or a capital form: what is left without both.
local PLAIN = {
  a = "ÀÁÂÃÄÅàáâãäåĀāĂăĄąǍǎ", c = "ÇçĆćĈĉĊċČč", d = "Ďď", e = "ÈÉÊËèéêëĒēĔĕĖėĘęĚě", g = "ĜĝĞğĠġĢģ", h = "Ĥĥ",
  i = "ÌÍÎÏìíîïĨĩĪīĬĭĮįİǏǐ", j = "Ĵĵ", k = "Ķķ", l = "ĹĺĻļĽľ", n = "ÑñŃńŅņŇň", o = "ÒÓÔÕÖòóôõöŌōŎŏŐőǑǒ", r = "ŔŕŖŗŘř",
  s = "ŚśŜŝŞşŠšȘș", t = "ŢţŤťȚț", u = "ÙÚÛÜùúûüŨũŪūŬŭŮůŰűŲųǓǔ", w = "Ŵŵ", y = "ÝýÿŶŷŸ", z = "ŹźŻżŽž",
  ["æ"] = "Æ", ["ø"] = "Ø", ["đ"] = "Đ", ["ð"] = "Ð", ["þ"] = "Þ", ["ł"] = "Ł", ["œ"] = "Œ", ["ŋ"] = "Ŋ", ["ß"] = "ẞ",
  ["ħ"] = "Ħ",
  ["α"] = "ΑΆά", ["β"] = "Β", ["γ"] = "Γ", ["δ"] = "Δ", ["ε"] = "ΕΈέ", ["ζ"] = "Ζ", ["η"] = "ΗΉή", ["θ"] = "Θ",
  ["ι"] = "ΙΊίΪϊΐ", ["κ"] = "Κ", ["λ"] = "Λ", ["μ"] = "Μ", ["ν"] = "Ν", ["ξ"] = "Ξ", ["ο"] = "ΟΌό", ["π"] = "Π",
  ["ρ"] = "Ρ", ["σ"] = "Σ", ["τ"] = "Τ", ["υ"] = "ΥΎύΫϋΰ", ["φ"] = "Φ", ["χ"] = "Χ", ["ψ"] = "Ψ", ["ω"] = "ΩΏώ",
  ["а"] = "А", ["б"] = "Б", ["в"] = "В", ["г"] = "ГЃѓ", ["д"] = "Д", ["е"] = "ЕЁёЀѐ", ["ж"] = "Ж", ["з"] = "З",
  ["и"] = "ИЙйЍѝ", ["к"] = "КЌќ", ["л"] = "Л", ["м"] = "М", ["н"] = "Н", ["о"] = "О", ["п"] = "П", ["р"] = "Р",
  ["с"] = "С", ["т"] = "Т", ["у"] = "УЎў", ["ф"] = "Ф", ["х"] = "Х", ["ц"] = "Ц", ["ч"] = "Ч", ["ш"] = "Ш", ["щ"] = "Щ",
  ["ъ"] = "Ъ", ["ы"] = "Ы", ["ь"] = "Ь", ["э"] = "Э", ["ю"] = "Ю", ["я"] = "Я", ["і"] = "ІЇї", ["є"] = "Є", ["ґ"] = "Ґ",
  ["ђ"] = "Ђ", ["ѕ"] = "Ѕ", ["ј"] = "Ј", ["љ"] = "Љ", ["њ"] = "Њ", ["ћ"] = "Ћ", ["џ"] = "Џ",
}
local PLAIN_OF = {}
for plain, characters in pairs(PLAIN) do
  for character in characters:gmatch(CHARACTER) do PLAIN_OF[character] = plain end
end

-- Ranges of code points, both ends included.
local SPACE = { { 9, 10 }, { 13, 13 }, { 32, 32 }, { 0xa0, 0xa0 }, { 0x1680, 0x1680 }, { 0x2000, 0x200a },
  { 0x2028, 0x2029 }, { 0x202f, 0x202f }, { 0x205f, 0x205f }, { 0x3000, 0x3000 } }
local DROPPED = { -- control characters, and accents that stand by themselves
  { 0, 31 }, { 127, 0x9f }, { 0xad, 0xad }, { 0x300, 0x36f }, { 0x200b, 0x200f }, { 0x202a, 0x202e },
  { 0x2060, 0x206f }, { 0x302a, 0x302d }, { 0xfe00, 0xfe0f }, { 0xfeff, 0xfeff }, { 0xfffd, 0xfffd },
}
local ALONE = { -- punctuation, and ideographs, each of which is a word
  { 33, 47 }, { 58, 64 }, { 91, 96 }, { 123, 126 }, { 0xa1, 0xa1 }, { 0xa7, 0xa7 }, { 0xab, 0xab }, { 0xb6, 0xb7 },
  { 0xbb, 0xbb }, { 0xbf, 0xbf }, { 0x37e, 0x37e }, { 0x387, 0x387 }, { 0x2010, 0x2027 }, { 0x2030, 0x2043 },
  { 0x2045, 0x2051 }, { 0x2053, 0x205e }, { 0x3001, 0x3003 }, { 0x3008, 0x3011 }, { 0x3014, 0x301f },
  { 0x3030, 0x3030 }, { 0x303d, 0x303d }, { 0x3400, 0x4dbf }, { 0x4e00, 0x9fff }, { 0xf900, 0xfaff },
  { 0xff01, 0xff03 }, { 0xff05, 0xff0a }, { 0xff0c, 0xff0f }, { 0xff1a, 0xff1b }, { 0xff1f, 0xff20 },
  { 0xff3b, 0xff3d }, { 0xff3f, 0xff3f }, { 0xff5b, 0xff5b }, { 0xff5d, 0xff5d }, { 0xff5f, 0xff65 },
  { 0x20000, 0x2a6df }, { 0x2a700, 0x2ebef }, { 0x2f800, 0x2fa1f },
}

local function within(code, ranges)
  for _, range in ipairs(ranges) do
    if code >= range[1] and code <= range[2] then return true end
  end
  return false
end

--- Words and punctuation, in lower case and without accents. Bytes that are no UTF-8 are left out.
-- @tparam string text
-- @treturn table array of strings
function wordpiece.words(text)
  local words, word = {}, {}
  local function finish()
    if #word > 0 then words[#words + 1], word = table.concat(word), {} end
  end
  for character in text:gmatch(CHARACTER) do
    local code = code_of(character)
    if within(code, SPACE) then
      finish()
    elseif within(code, ALONE) then
      finish()
      words[#words + 1] = character
    elseif not within(code, DROPPED) then
      word[#word + 1] = PLAIN_OF[character] or character:lower()
    end
  end
  finish()
  return words
end

-- ---- pieces ----

local Tokenizer = {}
Tokenizer.__index = Tokenizer

--- A tokenizer with a vocabulary.
-- @tparam table pieces the piece of id 0 first
-- @treturn ?tokenizer
-- @treturn ?string why: a special piece that is missing
function wordpiece.new(pieces)
  local ids = {}
  for i, piece in ipairs(pieces) do ids[piece] = i - 1 end
  for _, piece in ipairs { "[UNK]", "[CLS]", "[SEP]" } do
    if not ids[piece] then return nil, ("the vocabulary has no %s"):format(piece) end
  end
  return setmetatable({ ids = ids, size = #pieces }, Tokenizer)
end

--- A tokenizer with the vocabulary of a file.
-- @tparam string path a vocab.txt: a piece a line
-- @treturn ?tokenizer
-- @treturn ?string why
function wordpiece.load(path)
  local file, reason = io.open(path, "rb")
  if not file then return nil, reason end
  local pieces = {}
  for line in file:lines() do pieces[#pieces + 1] = line:gsub("\r$", "") end
  file:close()
  local tokenizer, missing = wordpiece.new(pieces)
  if not tokenizer then return nil, path .. ": " .. missing end
  return tokenizer
end

-- Appends the ids of a word's pieces, always the longest that fits; one [UNK] for a word that does not come out even.
local function append_pieces(ids, known, word)
  local start, first = #ids, 1
  local _, characters = word:gsub("[^\128-\191]", "")
  while first <= #word and characters <= LONGEST_WORD do
    local last, prefix = #word, first > 1 and "##" or ""
    while last >= first and not known[prefix .. word:sub(first, last)] do last = last - 1 end
    if last < first then break end
    ids[#ids + 1], first = known[prefix .. word:sub(first, last)], last + 1
  end
  if first > #word then return end
  for i = #ids, start + 1, -1 do ids[i] = nil end
  ids[start + 1] = known["[UNK]"]
end

--- The ids of a text: [CLS], its pieces, [SEP].
-- @tparam string text
-- @tparam[opt] number longest how many ids at most; the text's last pieces are left out
-- @treturn table array of numbers
function Tokenizer:encode(text, longest)
  local ids, known = { self.ids["[CLS]"] }, self.ids
  for _, word in ipairs(wordpiece.words(text)) do append_pieces(ids, known, word) end
  for i = #ids, longest or math.huge, -1 do ids[i] = nil end
  ids[#ids + 1] = known["[SEP]"]
  return ids
end

return wordpiece
