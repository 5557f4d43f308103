std = "luajit"
max_line_length = 120
files["spec"] = { std = "+busted" }
files[".busted"] = {}
files["**/*.rockspec"] = { std = "+rockspec" }
files["lua/int4mm/meta"] = { unused = false, redefined = false, ignore = { "241" } } -- signatures alone
