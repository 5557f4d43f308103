#!/usr/bin/env python3
"""Layers as other programs write them, for spec/checkpoint_spec.lua: a safetensors file whose layers were packed by
their writers' own code, with what PyTorch and Python's fractions make of them.

usage: pip install torch numpy safetensors compressed-tensors
       pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9 comfy-kitchen==0.2.40      (all unpacked into FOLDER)
       python3 spec/golden/checkpoints.py FOLDER spec/golden/checkpoints.safetensors     (the output is kept in the tree)

The functions that pack are taken out of the packages' sources and run on their own, without what the packages import.
Each layer has x [M, K] in common and
  y, magnitude  float64 [M, N]: x times the dequantised weight, and the same of magnitudes
  y8            float32 [M, N]: the same bits that a layer with int8 activations has to give, where groups are in order
"""

import ast
import math
import sys
import types
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import save_file

torch.manual_seed(20261126)
M, K, N, GROUP = 3, 256, 32, 64
GROUPS = K // GROUP
FOLDER = Path(sys.argv[1])

# ---- the writers ----


def function_of(pattern, owner, name, **names):
    """A function out of a package's source: of a class, or of the module where owner is None."""
    path = next(p for p in FOLDER.glob(pattern))
    body = ast.parse(path.read_text()).body
    if owner:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == owner).body
    node = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)
    node.decorator_list, node.returns = [], None
    for argument in node.args.args:
        argument.annotation = None
    scope = {"torch": torch, "np": np, "math": math, "nn": torch.nn, **names}
    exec(compile(ast.Module([node], []), str(path), "exec"), scope)
    return scope[name]


def linear(weight, bias):
    layer = torch.nn.Linear(K, N, bias=True)
    layer.weight.data, layer.bias.data = weight, bias
    return layer


def pack_gptq(weight, bias, scales, zeros, g_idx):
    no_conv = types.SimpleNamespace(pytorch_utils=types.SimpleNamespace(Conv1D=type(None)))
    pack = function_of("**/qlinear_cuda.py", "QuantLinear", "pack", transformers=no_conv)
    layer = types.SimpleNamespace(infeatures=K, outfeatures=N, bits=4, group_size=GROUP, g_idx=g_idx)
    pack(layer, linear(weight, bias), scales.clone(), zeros.clone().to(torch.float32), g_idx)
    return {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales.half(),
            "g_idx": layer.g_idx.to(torch.int32), "bias": bias.half()}


def pack_awq(weight, bias, scales, zeros):
    pack = function_of("**/awq/modules/linear/gemm.py", "WQLinear_GEMM", "from_linear", get_best_device=lambda: "cpu")

    def make(w_bit, *_):
        return types.SimpleNamespace(w_bit=w_bit, in_features=K)

    layer = pack(make, linear(weight, bias), 4, GROUP, scales=scales, zeros=zeros.to(torch.float32))
    return {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales, "bias": layer.bias.detach()}


def pack_compressed(values, scales, zeros, g_idx=None):
    tensors = {"weight_packed": pack_to_int32(values.to(torch.int8), 4),
               "weight_scale": scales.to(torch.bfloat16),
               "weight_shape": torch.tensor([N, K]),
               "weight_zero_point": pack_to_int32(zeros.to(torch.int8), 4, packed_dim=0).contiguous()}
    if g_idx is not None:
        tensors["weight_g_idx"] = g_idx.to(torch.int32)
    return tensors


def pack_convrot(weight, block):
    names = {}
    for name in ["_build_hadamard", "_rotate_weight", "_round_int4", "_quantize_signed_int4_rowwise_unpacked"]:
        names[name] = function_of("**/eager/convrot_w4a4.py", None, name, _HADAMARD_CACHE={}, _INT4_MAX=7, **names)
    packing = function_of("**/eager/svdquant.py", None, "_pack_int4_row_major")
    hadamard = names["_build_hadamard"](block)
    rotated = names["_rotate_weight"](weight, hadamard, block)
    values, scales = names["_quantize_signed_int4_rowwise_unpacked"](rotated)
    return packing(values), values, scales, hadamard, names["_quantize_signed_int4_rowwise_unpacked"]


# ---- what they mean ----


def to_float32(value):
    """The float32 nearest to a fraction, ties to even; normal numbers and zero alone."""
    if value == 0:
        return np.float32(0)
    exponent = math.frexp(float(value))[1] - 24
    scaled = value / Fraction(2) ** exponent
    return np.float32(math.ldexp(round(scaled), exponent))


def exact_int8_result(x, values, scales, groups, bias):
    """y8: the activations as int8 by rows, exact sums, the chain of fused multiply-adds in fractions."""
    scale_x = (np.abs(x).max(axis=1) / np.float32(127)).astype(np.float32)
    q = np.rint(x / scale_x[:, None]).astype(np.int64)
    y = np.zeros((M, N), np.float32)
    for m in range(M):
        for n in range(N):
            t = np.float32(0)
            for g in range(GROUPS):
                acc = int((q[m, groups == g] * values[n, groups == g]).sum())
                t = to_float32(Fraction(float(np.float32(acc))) * Fraction(float(scales[g, n])) + Fraction(float(t)))
            y[m, n] = np.float32(np.float32(t * scale_x[m]) + np.float32(bias[n]))
    return y


def add(tensors, name, layer, x, weight, bias, y8=None):
    """weight: float64 [N, K], dequantised."""
    for key, value in layer.items():
        tensors[f"{name}.{key}"] = value.contiguous()
    x64, bias64 = x.double(), bias.double()
    tensors[f"{name}.y"] = x64 @ weight.T + bias64
    tensors[f"{name}.magnitude"] = x64.abs() @ weight.abs().T + bias64.abs()
    if y8 is not None:
        tensors[f"{name}.y8"] = torch.from_numpy(y8)


# ---- the layers ----


def main():
    tensors = {}
    x = (torch.randn(M, K) * torch.logspace(-1, 1, K)).half().float()
    tensors["x"] = x
    bias = torch.randn(N).half()
    in_order = torch.arange(K) // GROUP
    shuffled = in_order[torch.randperm(K)]
    codes = torch.randint(0, 16, (N, K))
    zeros = torch.randint(1, 16, (N, GROUPS))
    scales = (torch.rand(N, GROUPS) * 0.02 + 0.005).half()

    def dequantized(groups):
        return (codes - zeros[:, groups]).double() * scales.double()[:, groups]

    def int8_result(groups):
        centred = (codes - zeros[:, groups]).numpy().astype(np.int64)
        return exact_int8_result(x.numpy(), centred, scales.float().T.numpy(), groups.numpy(), bias.float().numpy())

    for name, groups in (("gptq", in_order), ("gptq_act_order", shuffled)):
        weight = dequantized(groups).float()
        layer = pack_gptq(weight, bias.float(), scales.float(), zeros, groups)
        y8 = int8_result(groups)
        add(tensors, name, layer, x, dequantized(groups), bias, y8)
        if name == "gptq":  # GPTQModel's convert_gptq_v1_to_v2_format
            layer["qzeros"] = layer["qzeros"] + 0x11111111
            add(tensors, "gptq_v2", layer, x, dequantized(groups), bias, y8)

    weight = dequantized(in_order).float()
    layer = pack_awq(weight, bias, scales.T.float().contiguous(), zeros.T.contiguous())
    add(tensors, "awq", layer, x, dequantized(in_order), bias, int8_result(in_order))

    scales = scales.to(torch.bfloat16)
    for name, groups in (("compressed", in_order), ("compressed_act_order", shuffled)):
        layer = pack_compressed(codes - 8, scales, zeros - 8, None if groups is in_order else groups)
        layer["bias"] = bias
        add(tensors, name, layer, x, dequantized(groups), bias, int8_result(groups))

    # activations whose rotation is exact, so that theirs are the bits of ours
    packed, values, row_scales, hadamard, quantize = pack_convrot(torch.randn(N, K), 256)
    whole = torch.randint(-8, 9, (M, K)).float()
    q, scale_x = quantize(whole @ hadamard)
    acc = (q.double() @ values.double().T).float()  # whole numbers below 2^24
    tensors["convrot.weight"], tensors["convrot.weight_scale"] = packed.view(torch.int8), row_scales
    tensors["convrot.x"], tensors["convrot.y4"] = whole, acc * scale_x[:, None] * row_scales[None, :]
    about = b'{"format": "convrot_w4a4", "convrot_groupsize": 256}'
    tensors["convrot.comfy_quant"] = torch.frombuffer(bytearray(about), dtype=torch.uint8)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, sys.argv[2])


main()
