--- The table as a picture: each scheme's mean cosine with float32, and the least, drawn by gnuplot as SVG.

local PLOT = [[
set terminal svg size 720, 250 font "Helvetica,14" background "#ffffff"
set output '%s'
set lmargin 25
set rmargin 13
set border 1 linecolor rgb "#888888"
set xrange [%g:1]
set yrange [-0.6:%g]
set format x "%%.1f"
set xtics 0.1 nomirror textcolor rgb "#333333"
set ytics (%s) scale 0 textcolor rgb "#333333"
set grid xtics linecolor rgb "#dddddd"
set title "Cosine with the float32 embedding: mean of %d sentences, line to the least" textcolor rgb "#333333"
unset key
$data << EOD
%s
EOD
plot $data using 2:1:3:2 with xerrorbars pointtype -1 linewidth 3 linecolor rgb "#9bb8d9", \
     $data using 2:1 with points pointtype 7 pointsize 0.9 linecolor rgb "#1f5fa8", \
     $data using (1):1:4 with labels offset 1, 0 left textcolor rgb "#333333"
]]

--- Draws.
-- @tparam string path of the SVG
-- @tparam table results rows: `scheme.name`, `mean`, `least`, `bytes`, `embeddings`
-- @treturn ?boolean true
-- @treturn ?string why not
return function(path, results)
  if os.execute "command -v gnuplot >/dev/null 2>&1" ~= 0 then
    return nil, "the picture takes gnuplot (Debian: gnuplot-nox), which is not there"
  end
  local names, rows, low = {}, {}, 0.5
  for i, result in ipairs(results) do
    local y = #results - i
    names[i] = ('"%s" %d'):format(result.scheme.name, y)
    low = math.min(low, math.floor(10 * result.least) / 10)
    rows[i] = ('%d %.4f %.4f "%.3f, %.1f MB"'):format(y, result.mean, result.least, result.mean, result.bytes / 1e6)
  end
  local gnuplot = assert(io.popen("gnuplot", "w"))
  gnuplot:write(PLOT:format((path:gsub("'", "''")), low, #results - 0.4, table.concat(names, ", "),
    results[1].embeddings:size(1), table.concat(rows, "\n")))
  gnuplot:close()
  local file = io.open(path)
  if not file then return nil, ("gnuplot did not write %s"):format(path) end
  file:close()
  return true
end
