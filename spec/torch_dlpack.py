"""What spec/dlpack_spec.lua has PyTorch check: tensors to Lua and back, in the same memory, with both structs of DLPack,
on the CPU and on a GPU where PyTorch has one. Prints a line for each group that passed."""
import gc
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "examples"))
import dlpack  # noqa: E402

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.int32]
VERSIONED = b"dltensor_versioned"
lua = dlpack.Lua()
lua.run("""
  ffi, q = require "ffi", require "int4mm"
  function take(address, versioned) return q.from_dlpack(address, { versioned = versioned == 1 }) end
  function give(t, versioned) return tonumber(ffi.cast("uintptr_t", t:to_dlpack { versioned = versioned == 1 })) end
""")


class Managed:
    """A struct by its address, for torch.from_dlpack to take."""

    def __init__(self, address, device, versioned):
        self.address, self.device, self.name = int(address), device, VERSIONED if versioned else dlpack.OLD

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **_):
        return dlpack.api.PyCapsule_New(self.address, self.name, None)


def hand_over(tensor, versioned):
    options = {"max_version": (1, 0)} if versioned else {}
    if tensor.is_cuda:
        options["stream"] = 1  # int4mm works on the default stream
    capsule = tensor.__dlpack__(**options)
    assert dlpack.api.PyCapsule_IsValid(capsule, VERSIONED if versioned else dlpack.OLD)
    address = dlpack.api.PyCapsule_GetPointer(capsule, VERSIONED if versioned else dlpack.OLD)
    dlpack.api.PyCapsule_SetName(capsule, dlpack.USED)
    return address


def round_trips(device):
    for dtype in DTYPES:
        for versioned in (0, 1):
            base = torch.arange(24, device=device).reshape(3, 8).to(dtype)
            for x in (base, base[:, 2:7], base[1], base[:, 3:4], base[0:0], base[::2]):
                kind = (2, x.device.index) if x.is_cuda else (1, 0)
                address = lua.run("return give(take(...), select(2, ...))", hand_over(x, versioned), versioned)
                y = torch.from_dlpack(Managed(address, kind, versioned))
                assert y.dtype == x.dtype and y.device == x.device and torch.equal(x, y), (dtype, x.shape)
                assert x.numel() == 0 or y.data_ptr() == x.data_ptr()
    x = torch.arange(6.0, device=device).reshape(2, 3)
    lua.run("local x = take(..., 0) q.mul(x, 2, { out = x }) x:free()", hand_over(x, 0))
    assert x.tolist() == [[0, 2, 4], [6, 8, 10]]
    print(f"{device}: ok")


def lifetimes():
    address = lua.run("return give(q.full({ 3, 1000 }, 2), 1)")
    y = torch.from_dlpack(Managed(address, (1, 0), 1))
    held = lua.run("collectgarbage() collectgarbage() return q.memory().cpu.allocated")
    view = y[1]
    del y
    gc.collect()
    assert lua.run("return q.memory().cpu.allocated") == held and float(view.sum()) == 2000
    del view
    gc.collect()
    assert lua.run("return q.memory().cpu.allocated") == held - 12000
    print("lifetimes: ok")


round_trips("cpu")
lifetimes()
fake = "INT4MM_FAKE_CUDA" in os.environ  # a device of the specs' own in host memory, which PyTorch's tensors are not on
if not fake and torch.cuda.is_available() and lua.run("return q.cuda_available() and 1 or 0") == 1:
    round_trips("cuda")
lua.close()
