#!/usr/bin/env python3
"""NumPy and int4mm in one process: arrays go over to Lua and back through DLPack, without a copy.

    make && python3 examples/dlpack.py [M K N]

Python loads LuaJIT with ctypes, LuaJIT loads int4mm. What passes between them is the address of a DLManagedTensor, a
plain number. It owns its memory until its deleter is called, so a Python capsule that was handed on is renamed, as
DLPack asks, and its array lives until Lua's tensor is freed; the other way round the memory of Lua's tensor lives until
NumPy's array is gone. PyTorch's tensors and torch.from_dlpack go the same way, GPUs included: there __dlpack__ is given
the stream that int4mm works on (1 is the default stream), and to_dlpack the one that PyTorch works on.
"""
import ctypes
import os
import sys

import numpy as np

# ---- a Lua state ----


class Lua:
    """A Lua state; run(code, numbers) gives the number that the code returns."""

    def __init__(self):
        self.lib = ctypes.CDLL("libluajit-5.1.so.2")
        for name, result, arguments in [
            ("luaL_newstate", ctypes.c_void_p, []),
            ("luaL_openlibs", None, [ctypes.c_void_p]),
            ("luaL_loadstring", ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
            ("lua_pushnumber", None, [ctypes.c_void_p, ctypes.c_double]),
            ("lua_pcall", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]),
            ("lua_tonumber", ctypes.c_double, [ctypes.c_void_p, ctypes.c_int]),
            ("lua_tolstring", ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]),
            ("lua_settop", None, [ctypes.c_void_p, ctypes.c_int]),
            ("lua_close", None, [ctypes.c_void_p]),
        ]:
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments
        self.state = self.lib.luaL_newstate()
        self.lib.luaL_openlibs(self.state)

    def run(self, code, *numbers):
        failed = self.lib.luaL_loadstring(self.state, code.encode())
        for number in () if failed else numbers:
            self.lib.lua_pushnumber(self.state, number)
        failed = failed or self.lib.lua_pcall(self.state, len(numbers), 1, 0)
        text = self.lib.lua_tolstring(self.state, -1, None) if failed else None
        result = self.lib.lua_tonumber(self.state, -1)
        self.lib.lua_settop(self.state, 0)
        if failed:
            raise RuntimeError(text.decode())
        return result

    def close(self):
        self.lib.lua_close(self.state)


# ---- capsules and addresses ----

api = ctypes.pythonapi
api.PyCapsule_IsValid.restype, api.PyCapsule_IsValid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_GetPointer.restype = ctypes.c_void_p
api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
api.PyCapsule_New.restype = ctypes.py_object
api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

OLD, USED = b"dltensor", b"used_dltensor"  # a capsule keeps the pointer to its name, so these stay


def hand_over(array):
    """The address of an array's DLManagedTensor, which from here on belongs to whoever is given it."""
    capsule = array.__dlpack__()
    address = api.PyCapsule_GetPointer(capsule, OLD)
    api.PyCapsule_SetName(capsule, USED)
    return address


class Managed:
    """A DLManagedTensor by its address, on the CPU, for from_dlpack of NumPy or PyTorch to take."""

    def __init__(self, address):
        self.address = int(address)

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **_):
        address, self.address = self.address, None
        return api.PyCapsule_New(address, OLD, None)


# ---- the product ----

SETUP = """
local ffi, q = require "ffi", require "int4mm"

-- a [M, K] and b [K, N] int8 to [M, N] float32
function product(a, b)
  a, b = q.from_dlpack(a), q.from_dlpack(b)
  local a_packed = q.pack_int4_to_int32(a)
  local b_packed = q.pack_int4_to_int32(b, { dim = 1 })
  local out = q.int4_matmul(a_packed, b_packed, q.ones { a.shape[1] }, q.ones { b.shape[2] }, { out_dtype = "float32" })
  a:free()
  b:free()
  return tonumber(ffi.cast("uintptr_t", out:to_dlpack()))
end

function double(x)
  x = q.from_dlpack(x)
  q.mul(x, 2, { out = x })
  x:free()
end
"""


def main():
    M, K, N = (int(size) for size in sys.argv[1:4]) if len(sys.argv) > 3 else (64, 256, 48)
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    build = os.path.join(root, os.environ.get("BUILD", "build"))
    os.environ.setdefault("LUA_PATH", f"{root}/lua/?.lua;{root}/lua/?/init.lua;{build}/lua/?.lua;;")
    os.environ.setdefault("LUA_CPATH", f"{build}/?.so;;")
    lua = Lua()
    lua.run(SETUP)

    random = np.random.default_rng(1)
    a = random.integers(-8, 8, (M, K), dtype=np.int8)
    b = random.integers(-8, 8, (K, N), dtype=np.int8)
    references = sys.getrefcount(a)
    c = np.from_dlpack(Managed(lua.run("return product(...)", hand_over(a), hand_over(b))))
    assert sys.getrefcount(a) == references, "Lua still holds a"
    equal = np.array_equal(c, a.astype(np.int32) @ b.astype(np.int32))
    print(f"a {a.shape} {a.dtype}, b {b.shape} {b.dtype} from NumPy; c {c.shape} {c.dtype} from int4mm")
    print("all results equal NumPy's" if equal else "THE RESULTS DIFFER")

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    lua.run("double(...)", hand_over(x))
    print(f"doubled in place by Lua: {x.tolist()}")

    lua.run("collectgarbage()")
    total = float(c.sum())  # c outlives Lua's tensor
    lua.close()  # and Lua itself
    assert float(c.sum()) == total
    return 0 if equal and x[1, 2] == 10 else 1


if __name__ == "__main__":
    sys.exit(main())
