#!/usr/bin/env python3
"""Golden vectors for int4mm, made by numpy and by Python's integers, with none of int4mm's own code.

usage: python3 spec/golden/generate.py > spec/golden/vectors.lua      (needs numpy; the output is kept in the tree)

What numpy is trusted for: integer products, float32 multiplication, addition and division, and the rounding of float32
to float16. The rounding to bfloat16 is done here on the bits. A NaN has one pattern per type, as the contract says.
"""

import textwrap

import numpy as np

rng = np.random.default_rng(20261122)
F32, U32 = np.float32, np.uint32
np.seterr(all="ignore")

# float32 values that tend to break things: zeros, subnormals, the edges of float16, infinities, NaN
SPECIAL = np.array(
    [0.0, -0.0, -1.0, 1e-45, -3e-42, 1.17549435e-38, 2.0**-24, 2.0**-25, 6.1e-5, 1.0, 1023.5, 65504.0, -65520.0, 3e38,
     -3.4028235e38, np.inf, -np.inf, np.nan], dtype=F32)


# ---- numbers ----

def to_half(x):
    bits = x.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), bits)


def to_bfloat(x):
    """Round to nearest even on the bits."""
    bits = x.view(U32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def to_float(x):
    return np.where(np.isnan(x), U32(0x7FFFFFFF), x.view(U32))


def from_bfloat(bits):
    return (bits.astype(U32) << 16).view(F32)


def pack(values, dim, encoding):
    """Eight values to a word along dim (1 rows, 2 columns), lowest nibble first; padding means zero."""
    v = values.T if dim == 1 else values
    pad = -v.shape[1] % 8
    v = np.pad(v, ((0, 0), (0, pad))).astype(np.int64)
    nibbles = (v + 8 if encoding == "offset" else v & 15).reshape(v.shape[0], -1, 8)
    words = sum(nibbles[:, :, i] << (4 * i) for i in range(8)).astype(U32)
    return words.T if dim == 1 else words


# ---- Lua text ----

def data(array):
    """Little-endian bytes as hex in a long string."""
    text = np.ascontiguousarray(array).tobytes().hex()
    return "[[\n" + "\n".join(textwrap.wrap(text, 118)) + "]]" if len(text) > 80 else f'"{text}"'


def emit(name, records):
    print(f"  {name} = {{")
    for record in records:
        fields = []
        for key, value in record.items():
            if isinstance(value, np.ndarray):
                value = data(value)
            elif isinstance(value, str):
                value = f'"{value}"'
            elif isinstance(value, bool):
                value = "true" if value else "false"
            fields.append(f"      {key} = {value},")
        print("    {\n" + "\n".join(fields) + "\n    },")
    print("  },")


# ---- products ----

def scale_vector(kind, n):
    if kind == "special":
        return SPECIAL[rng.permutation(np.resize(np.arange(len(SPECIAL)), n))]
    if kind == "overflow":  # results about the largest half, 65504, and its rounding edge 65520
        return rng.choice(np.array([16.0, 31.9, 32.0, 64.0, -32.0], dtype=F32), n)
    if kind == "tiny":  # results that are subnormal halves
        return rng.uniform(1e-6, 4e-5, n).astype(F32)
    return rng.uniform(-0.05, 0.25, n).astype(F32)


def product(M, N, K, kind="plain", a=None, b=None, enc_a="twos_complement", enc_b="twos_complement", layout_b="kn",
            bias=False, scale_kinds=None):
    a = rng.integers(-8, 8, (M, K)) if a is None else a
    b = rng.integers(-8, 8, (K, N)) if b is None else b
    kinds = scale_kinds or (kind, kind)
    scale_a, scale_b = scale_vector(kinds[0], M), scale_vector(kinds[1], N)
    acc = a.astype(np.int64) @ b.astype(np.int64)
    assert abs(acc).max(initial=0) < 2**31
    result = acc.astype(np.int32).astype(F32) * scale_a[:, None] * scale_b[None, :]
    record = dict(M=M, N=N, K=K, encoding_a=enc_a, encoding_b=enc_b, layout_b=layout_b, kind=kind)
    if bias:
        record["bias"] = scale_vector(kind, N)
        result = result + record["bias"][None, :]
    words_b = pack(b, 1, enc_b)
    record.update(a=pack(a, 2, enc_a), b=words_b.T if layout_b == "nk" else words_b, scale_a=scale_a, scale_b=scale_b,
                  float16=to_half(result), bfloat16=to_bfloat(result), float32=to_float(result))
    return record


def long_product(K, row_a, column_b, scale_a, scale_b):
    """One output of a long K whose words all alike: `row_a` and `column_b` are eight values each."""
    acc = sum(x * y for x, y in zip(row_a, column_b)) * (K // 8)
    assert abs(acc) < 2**31
    result = np.array([[np.int32(acc)]]).astype(F32) * F32(scale_a) * F32(scale_b)
    word = lambda v: pack(np.array([v]), 2, "twos_complement")
    return dict(K=K, acc=acc, word_a=word(row_a), word_b=word(column_b), scale_a=np.array([scale_a], F32),
                scale_b=np.array([scale_b], F32), float16=to_half(result), bfloat16=to_bfloat(result),
                float32=to_float(result))


def products():
    offset = dict(enc_a="offset", enc_b="offset")
    return [
        product(1, 1, 8), product(3, 5, 16), product(17, 9, 64), product(16, 16, 128, bias=True),
        product(5, 33, 40, **offset), product(6, 7, 48, enc_a="offset"),
        product(7, 6, 48, enc_b="offset", layout_b="nk"), product(9, 12, 72, layout_b="nk", bias=True),
        product(1, 40, 256), product(33, 1, 256),
        product(4, 4, 512, a=np.full((4, 512), -8), b=np.full((512, 4), -8)),
        product(4, 4, 512, a=np.full((4, 512), -8), b=np.full((512, 4), 7), **offset),
        product(36, 18, 24, kind="special"), product(18, 19, 16, kind="special", scale_kinds=("special", "plain")),
        product(18, 18, 16, kind="special", bias=True), product(12, 20, 128, kind="overflow"),
        product(12, 20, 32, kind="tiny"), product(10, 10, 32, kind="tiny", bias=True),
    ]


def long_products():
    eights = [-8] * 8
    odd = ([7, 7, 7, 7, 7, 7, 7, 6], [7, 7, 7, 7, 7, 7, 7, 7])  # 385 a word: an odd sum needs rounding from 2^24 on
    return [
        long_product(200000, eights, eights, 1.0, 0.001), long_product(200008, *odd, 0.01, -0.02),
        long_product(400008, *odd, 1.0, 1.0), long_product(131072, eights, eights, 1.0, 2.0**-9),
        long_product(524296, [-8] * 7 + [7], [7] * 8, 1.0, 1.0),
        long_product(33554424, eights, eights, 2.0**-16, 0.75),
    ]


# ---- packing, quantising, dequantising, conversion, the generator ----

def packings():
    out = []
    for R, C in [(1, 8), (3, 16), (16, 3), (5, 13), (13, 5), (1, 1), (9, 33)]:
        values = rng.integers(-8, 8, (R, C)).astype(np.int8)
        record = dict(R=R, C=C, values=values)
        for dim in (1, 2):
            for encoding in ("twos_complement", "offset"):
                record[f"{encoding}_{dim}"] = pack(values, dim, encoding)
        out.append(record)
    return out


def quantise(source, dim, encoding):
    x = source.T if dim == 1 else source  # one scale per row of x
    absmax = np.max(np.abs(x), axis=1, initial=F32(0)).astype(F32)
    scale = absmax / F32(7)
    assert scale.dtype == F32
    q = np.zeros(x.shape, np.int64)
    some = scale != 0
    q[some] = np.clip(np.rint((x[some] / scale[some, None]).astype(F32)), -7, 7).astype(np.int64)
    q = q.T if dim == 1 else q
    return q, scale, pack(q, dim, encoding)


def sources():
    """Matrices in three float types, as bits and as the float32 values that the bits mean."""
    normal = rng.normal(0, 1, (6, 21)).astype(F32)
    # ties: absmax 7 makes the scale 1, so x.5 is a tie
    ties = np.array([[7, .5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, -.5, -1.5, -2.5, -6.5],
                     [14, 1, 3, 5, 7, 9, 11, 13, -1, -3, -5, -13],
                     [0] * 12, [-0.0] * 12], F32)
    subnormal = np.array([[1e-45, 0, -1e-45, 3e-45, 4e-45, 7e-45, 0, 0, -9e-45],
                          [1e-40, 2e-41, -1e-40, 3e-41, 5e-41, 0, 0, 0, 9e-41],
                          [3e38, -3.4028235e38, 1e38, 2e38, -2e38, 1e30, 0, 0, 1]], F32)
    for name, m in (("normal", normal), ("ties", ties), ("subnormal", subnormal)):
        yield name, "float32", m, m
        half = m.astype(np.float16)
        if np.isfinite(half).all():
            yield name, "float16", half.view(np.uint16), half.astype(F32)
        bits = to_bfloat(m)
        if np.isfinite(from_bfloat(bits)).all():
            yield name, "bfloat16", bits, from_bfloat(bits)


def quantisings():
    out = []
    for name, dtype, bits, value in sources():
        for dim in (1, 2):
            encoding = "offset" if dim == 1 else "twos_complement"
            q, scale, packed = quantise(value, dim, encoding)
            back = q.astype(F32) * (scale[None, :] if dim == 1 else scale[:, None])
            out.append(dict(name=name, dtype=dtype, R=value.shape[0], C=value.shape[1], dim=dim, encoding=encoding,
                            source=bits, scales=scale, packed=packed, float16=to_half(back), bfloat16=to_bfloat(back),
                            float32=to_float(back)))
    return out


def rotate(x, block):
    """Blocks along the rows, as int4mm.h has it: every operation on float32 arrays rounds once."""
    y = x.reshape(-1, block).copy()
    stride = 1
    while 4 * stride <= block:
        v = y.reshape(y.shape[0], -1, 4, stride)
        x0, x1, x2, x3 = (v[:, :, i, :] for i in range(4))
        s = (x0 + x1) + (x2 + x3)
        y = np.stack([s - (x3 + x3), s - (x2 + x2), s - (x1 + x1), s - (x0 + x0)], axis=2).reshape(y.shape)
        stride *= 4
    if stride < block:
        v = y.reshape(y.shape[0], 2, stride)
        y = np.concatenate([v[:, 0] + v[:, 1], v[:, 0] - v[:, 1]], axis=1)
    y = y * F32(1 / np.sqrt(block))
    assert y.dtype == F32
    return y.reshape(x.shape)


def least_error_scale(row, most):
    best, least = None, None
    absmax = np.max(np.abs(row)).astype(F32)
    for i in range(64, 31, -1):
        scale = absmax * F32(i / 64) / F32(most)
        q = np.clip(np.rint(row / scale), -most, most) if scale else np.zeros_like(row)
        terms = (row.astype(np.float64) - q.astype(np.float64) * np.float64(scale))**2
        sums, total = [0.0] * 32, 0.0
        for k, t in enumerate(terms):
            sums[k % 32] += t
        for t in sums:
            total += t
        if least is None or total < least:
            best, least = scale, total
    return best


def rotations():
    """Rotated rows, and what they are quantised to: clip 0 stands for the search of least squared error."""
    out = []
    for block, C, clip, most in [(4, 12, 1, 7), (8, 40, 0.9, 7), (16, 48, 0, 7), (32, 64, 0, 127), (64, 128, 0.5, 127),
                                 (256, 256, 0, 7), (512, 512, 1, 7)]:
        half = (rng.normal(0, 1, (3, C)) * np.where(np.arange(C) % 16 == 5, 20, 1)).astype(np.float16)
        y = rotate(half.astype(F32), block)
        scales = np.array([least_error_scale(row, most) for row in y]) if clip == 0 else \
            np.max(np.abs(y), axis=1) * F32(clip) / F32(most)
        assert scales.dtype == F32
        q = np.clip(np.rint(y / scales[:, None]), -most, most).astype(np.int64)
        packed = pack(q, 2, "twos_complement") if most == 7 else q.astype(np.int8)
        out.append(dict(block=block, R=3, C=C, clip=float(clip), dtype="int4" if most == 7 else "int8",
                        source=half.view(np.uint16), rotated=to_float(y), scales=scales, packed=packed))
    return out


def conversions():
    """float32 values about every rounding edge of float16 and bfloat16."""
    base = np.array([
        0, 1, 0x33000000, 0x33000001, 0x33800000, 0x337FFFFF, 0x33C00000, 0x38800000, 0x387FE000, 0x387FF000,
        0x387FFFFF, 0x3F800000, 0x3F801000, 0x3F803000, 0x3F808000, 0x3F818000, 0x3F80FFFF, 0x477FE000,
        0x477FEFFF, 0x477FF000, 0x47800000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000, 0x7F800001,
        0x7FC00000, 0x7FFFFFFF, 0x00008000, 0x00018000, 0x00007FFF, 0x007FFFFF, 0x00800000
    ], dtype=U32)
    bits = np.concatenate([base, base | U32(0x80000000), rng.integers(0, 2**32, 256, dtype=U32),
                           rng.integers(0x37800000, 0x39000000, 64, dtype=U32)])
    x = bits.view(F32)
    return [dict(n=len(bits), source=bits, float16=to_half(x), bfloat16=to_bfloat(x))]


def philox(counter, key):
    c, k, mask = list(counter), list(key), 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & mask, (p0 >> 32) ^ c[3] ^ k[1], p0 & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


def randoms():
    out = []
    for seed, sequence, count in [(0, 0, 11), (1, 0, 8), (1, 3, 8), (0x123456789ABCD, 0xFFFFFFFF, 10)]:
        words = []
        for block in range(-(-count // 4)):
            words += philox([block, 0, sequence, 0], [seed & 0xFFFFFFFF, seed >> 32])
        words = np.array(words[:count], dtype=U32)
        u = ((words >> 8) + 1).astype(F32) * F32(2.0**-24)
        low, high = F32(-0.1), F32(2.7)
        out.append(dict(seed=float(seed), sequence=sequence, n=count, words=words, low=float(low), high=float(high),
                        floats=low + u * (high - low)))
    return out


print(f"-- Written by spec/golden/generate.py with numpy {np.__version__}; do not edit. Hex of little-endian arrays.")
print("return {")
emit("products", products())
emit("long_products", long_products())
emit("packings", packings())
emit("quantisings", quantisings())
emit("conversions", conversions())
emit("randoms", randoms())
emit("rotations", rotations())
print("}")
