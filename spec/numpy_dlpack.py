"""What spec/dlpack_spec.lua has NumPy check: arrays to Lua and back, of every dtype, shape and stride, both structs of
DLPack, and that each side gives back what it was given. Prints a line for each group that passed."""
import ctypes
import gc
import os
import sys
import weakref

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples"))
import dlpack  # noqa: E402

VERSIONED, USED_VERSIONED = b"dltensor_versioned", b"used_dltensor_versioned"
DTYPES = [np.int32, np.int8, np.float16, np.float32]
lua = dlpack.Lua()
lua.run("""
  ffi, q = require "ffi", require "int4mm"
  function give(t, versioned) return tonumber(ffi.cast("uintptr_t", t:to_dlpack { versioned = versioned == 1 })) end
""")


def hand_over(array, versioned):
    if not versioned:
        return dlpack.hand_over(array)
    capsule = array.__dlpack__(max_version=(1, 0))
    address = dlpack.api.PyCapsule_GetPointer(capsule, VERSIONED)
    dlpack.api.PyCapsule_SetName(capsule, USED_VERSIONED)
    return address


class Managed(dlpack.Managed):
    """The versioned struct, whose capsule has another name."""

    def __dlpack__(self, **_):
        address, self.address = self.address, None
        return dlpack.api.PyCapsule_New(address, VERSIONED, None)


def arrays(dtype):
    """Vectors, matrices, rows with gaps, rows and columns alone, empty ones; of random bits."""
    random = np.random.default_rng(7)
    base = random.integers(0, 256, 24 * 40 * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype).reshape(24, 40)
    yield base
    yield base.reshape(-1)
    yield base[3:7, 5:18]
    yield base[1:2, 3:9]
    yield base[:, 4:5]
    yield base[::3, 2:30]
    yield base[5]
    yield base[0:0]
    yield base[:, 0:0]
    yield base[:1, :1]


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def round_trips(versioned):
    flag = int(versioned)
    for dtype in DTYPES:
        for array in arrays(dtype):
            address = lua.run("return give(q.from_dlpack(..., { versioned = select(2, ...) == 1 }), select(2, ...))",
                              hand_over(array, versioned), flag)
            back = np.from_dlpack((Managed if versioned else dlpack.Managed)(address))
            assert back.dtype == array.dtype and back.shape == array.shape, (back.dtype, back.shape)
            assert bits(back) == bits(array), (dtype, array.shape)
            assert array.size == 0 or back.ctypes.data == array.ctypes.data
    print(f"round trips, versioned {flag}: ok")


def lifetimes(versioned):
    class Watched(np.ndarray):
        """An ndarray that can be referred to weakly."""

    array = np.arange(12, dtype=np.float32).reshape(3, 4).view(Watched)
    gone = weakref.ref(array)
    lua.run("held = q.from_dlpack(..., { versioned = select(2, ...) == 1 }):narrow(1, 2, 1)",
            hand_over(array, versioned), int(versioned))
    del array
    gc.collect()
    lua.run("collectgarbage() collectgarbage()")
    assert gone() is not None, "the array went while Lua had a view of it"
    assert lua.run("return held:get(1, 2)") == 5
    lua.run("held:free()")
    gc.collect()
    assert gone() is None, "the array stayed"

    before = lua.run("collectgarbage() collectgarbage() return q.memory().cpu.allocated")
    address = lua.run("return give(q.ones { 3, 1000 }, ...)", int(versioned))
    back = np.from_dlpack((Managed if versioned else dlpack.Managed)(address))
    lua.run("collectgarbage() collectgarbage()")
    assert lua.run("return q.memory().cpu.allocated") == before + 12000
    assert back.sum() == 3000
    del back
    gc.collect()
    assert lua.run("return q.memory().cpu.allocated") == before
    print(f"lifetimes, versioned {int(versioned)}: ok")


def refused(array, versioned, words, options=""):
    """Lua refuses the array, which stays ours: its deleter has not been called."""
    address = hand_over(array, versioned)
    code = f"local ok, message = pcall(q.from_dlpack, ..., {{ versioned = {str(versioned).lower()}{options} }}) " \
           f"assert(not ok) assert(message:find({words!r}, 1, true), message)"
    lua.run(code, address)
    # where the deleter stands in both structs
    offset = 16 if versioned else 56
    deleter = ctypes.c_void_p.from_address(address + offset).value
    ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(deleter)(address)


def refusals():
    base = np.zeros((4, 6), np.float32)
    references = sys.getrefcount(base)
    for versioned in (False, True):
        refused(base.T, versioned, "a stride of 6 from one element of a row to the next, expected 1")
        refused(base[::-1], versioned, "a stride of -6 from row to row")
        refused(base.reshape(4, 3, 2), versioned, "managed has 3 dimensions, expected 1 or 2")
        for dtype, name in [(np.float64, "float64"), (np.int64, "int64"), (np.uint8, "uint8"), (np.bool_, "bool8"),
                            (np.complex64, "complex64")]:
            refused(np.zeros((2, 2), dtype), versioned, f"managed holds {name}, expected int32, int8, float16")
    gc.collect()
    assert sys.getrefcount(base) == references
    fixed = np.zeros((2, 2), np.float32)
    fixed.flags.writeable = False
    refused(fixed, True, "managed is flagged as read-only")
    refused(np.broadcast_to(np.zeros(3, np.float32), (4, 3)), True, "a stride of 0 from row to row", ", read_only = true")
    address = lua.run("return give(q.from_dlpack(..., { versioned = true, read_only = true }), 1)",
                      hand_over(fixed, True))
    back = np.from_dlpack(Managed(address))
    assert not back.flags.writeable and back.ctypes.data == fixed.ctypes.data
    print("refusals: ok")


for kind in (False, True):
    round_trips(kind)
    lifetimes(kind)
refusals()
lua.close()
