std = "luajit"
max_line_length = 120
files["spec"] = { std = "+busted" }
files[".busted"] = {}
files["**/*.rockspec"] = { std = "+rockspec" }
