"""docs/noise.md in NumPy: the same bits as every kernel, by a second route.

Written from that page alone, for reading and for tests; it is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011) of counters uint32 [..., 4] under one key; uint32 [..., 4]."""
    c0, c1, c2, c3 = (np.asarray(counter, np.uint64)[..., i] for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & _MASK
        c2, c3 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1).astype(np.uint32)


#: Float32, of any shape.
Floats = np.ndarray | np.float32


def fma(a: Floats, b: Floats, c: Floats) -> np.ndarray:
    """float32 a*b + c with one rounding.

    The product is exact in float64. The sum is rounded to odd there, by its exact error, so that the second rounding, to
    float32, is the only one that counts (Boldo and Melquiond 2008).
    """
    product = np.multiply(a, b, dtype=np.float64)
    addend = np.asarray(c, np.float64)
    total = product + addend
    head = total - product
    error = (product - (total - head)) + (addend - head)
    even = (np.atleast_1d(total).view(np.uint64) & np.uint64(1)) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    odd = np.where((error != 0) & even.reshape(np.shape(total)), np.nextafter(total, toward), total)
    return np.asarray(odd, np.float32)


def _polynomial(x: np.ndarray, *coefficients: float) -> np.ndarray:
    """Horner's rule from the highest coefficient, one fma a step."""
    value = np.full_like(x, np.float32(coefficients[0]))
    for coefficient in coefficients[1:]:
        value = fma(x, value, np.float32(coefficient))
    return value


def box_muller(word0: np.ndarray, word1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 normals from two uint32 words, step by step as docs/noise.md numbers them."""
    f32 = np.float32
    high, low = (word0 >> np.uint32(16)).astype(f32), (word0 & np.uint32(0xFFFF)).astype(f32)
    scaled = fma(high, f32(65536), low + f32(0.5))

    shifted = scaled.view(np.uint32) - np.uint32(0x3F3504F3)
    exponent = shifted.view(np.int32) >> 23
    mantissa = ((shifted & np.uint32(0x007FFFFF)) + np.uint32(0x3F3504F3)).view(f32)
    below_one = fma(word0.view(np.int32).astype(f32), f32(2.0**-32), f32(2.0**-33))
    f = np.where(exponent == 32, below_one, mantissa - f32(1))

    p = _polynomial(
        f,
        -0.17400869727134705,
        0.2853496670722961,
        -0.2982953786849976,
        0.3315517008304596,
        -0.3992612659931183,
        0.5000267624855042,
        -0.6666781902313232,
    )
    minus_two_log = fma(f, f32(-2), (f * f) * fma(f, p, f32(1)))
    radius = np.sqrt(fma((exponent - 32).astype(f32), f32(-1.3862943611198906), minus_two_log))

    quadrant = (word1 + np.uint32(0x20000000)) >> np.uint32(30)
    turn = ((word1 << np.uint32(2)) | np.uint32(2)).view(np.int32).astype(f32) * f32(2.0**-32)
    z = turn * turn
    sine = turn * _polynomial(z, -0.00460165785625577, 0.07968003302812576, -0.6459634900093079, 1.5707963705062866)
    cosine = _polynomial(z, -0.020417282357811928, 0.2536032199859619, -1.2336976528167725, 1.0)

    swap = (quadrant & 1) == 1
    x, y = np.where(swap, sine, cosine), np.where(swap, cosine, sine)
    x = np.where((quadrant == 1) | (quadrant == 2), -x, x)
    y = np.where(quadrant >= 2, -y, y)
    return radius * x, radius * y


def normals(seed: int | Sequence[int], stream: int, step: int, elements: np.ndarray) -> np.ndarray:
    """float32 normals of the given logical elements (int64, any shape) of one sample: of a seed, or a key (seed, block)."""
    seed, first_block = (int(word) for word in (seed if isinstance(seed, Sequence) else (seed, 0)))
    elements = np.asarray(elements, np.int64)
    blocks, inverse = np.unique(elements // 4, return_inverse=True)
    blocks = blocks.astype(np.uint64) + np.uint64(first_block)
    counter = np.empty((len(blocks), 4), np.uint32)
    counter[:, 0] = blocks & _MASK
    counter[:, 1] = blocks >> np.uint64(32)
    counter[:, 2] = step
    counter[:, 3] = stream
    seed &= (1 << 64) - 1
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    values = np.empty((len(blocks), 4), np.float32)
    values[:, 0], values[:, 1] = box_muller(words[:, 0].copy(), words[:, 1].copy())
    values[:, 2], values[:, 3] = box_muller(words[:, 2].copy(), words[:, 3].copy())
    found: np.ndarray = values[inverse.reshape(elements.shape), elements % 4]
    return found


def randn(
    seeds: np.ndarray | Sequence[Any],
    shape: tuple[int, ...],
    stream: int = 0,
    step: int = 0,
    offset: tuple[int, ...] | None = None,
    global_shape: tuple[int, ...] | None = None,
) -> np.ndarray:
    """float32 [B, *shape]: what ``pyfold.randn`` returns."""
    offset = offset or (0,) * len(shape)
    global_shape = global_shape or shape
    axes = [np.arange(size) + start for size, start in zip(shape, offset, strict=True)]
    elements = np.zeros(shape, np.int64)
    stride = 1
    for axis in range(len(shape) - 1, -1, -1):
        view = [1] * len(shape)
        view[axis] = shape[axis]
        elements = elements + axes[axis].reshape(view) * stride
        stride *= global_shape[axis]
    if len(seeds) == 0 or elements.size == 0:
        return np.zeros((len(seeds), *shape), np.float32)
    listed = seeds.tolist() if isinstance(seeds, np.ndarray) else seeds
    return np.stack([normals(seed, stream, step, elements) for seed in listed])
