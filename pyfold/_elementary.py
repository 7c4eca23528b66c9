"""Square roots, exponentials, logarithms and circular functions that are the same bits on every machine.

torch's own are not: on CPUs they are MKL's, which has other code for other processors, and even ``torch.sqrt`` is then one unit
of its last place beside the nearest number for some values. These are made of sums, products, quotients and whole numbers, each
a torch operation that rounds in one way everywhere, and are within two units of the last place. Arguments are float64; a
gradient flows through all of them.
"""

from __future__ import annotations

import math

import torch

_FRACTION = (1 << 52) - 1
_ONE = 1023 << 52  # the bits of 1.0
# ln 2 = _LN2 + _LN2_LOW: the former ends in 20 zeros, so that products with an exponent are exact.
_LN2 = 0.6931471804855391
_LN2_LOW = 7.440617110012397e-11
# pi / 2 likewise, as the nearest number and what it lacks.
_HALF_PI = math.pi / 2
_HALF_PI_LOW = 6.123233995736766e-17

_EXP = [1 / math.factorial(n) for n in range(14)]
_ATANH = [1 / (2 * n + 1) for n in range(11)]
_ATAN = [(-1) ** n / (2 * n + 1) for n in range(13)]
_SIN = [(-1) ** n / math.factorial(2 * n + 1) for n in range(9)]
_COS = [(-1) ** n / math.factorial(2 * n) for n in range(9)]


def _polynomial(x: torch.Tensor, coefficients: list[float]) -> torch.Tensor:
    """The lowest power first; a product and a sum a step, for a fused one rounds otherwise."""
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def sqrt(x: torch.Tensor) -> torch.Tensor:
    """The nearest number to the square root, of float32 and half types too.

    What ``root * root`` lacks of x is exact by Dekker's product (1971), and the root is corrected by it. Beyond 2^-800 and
    2^800, where that could underflow or overflow, it stays torch's.
    """
    if x.device.type != "cpu" or x.dtype in (torch.bfloat16, torch.float16):
        return x.sqrt()  # rounded to the nearest there
    if x.dtype == torch.float32:
        return x.to(torch.float64).sqrt_().to(torch.float32)  # no root of a float32 is so near to a midpoint
    root = x.sqrt()
    return root + _lacking(x.detach(), root.detach())


def _lacking(x: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """``(x - root^2) / (2 root)``, the square without rounding: that of two halves of 26 bits, in as few arrays as may be."""
    high = root * 134217729.0  # 2^27 + 1
    high -= high - root
    low = root - high
    residual = (high * high).neg_().add_(x)
    residual -= high.mul_(2).mul_(low)
    residual -= low.square_()
    residual /= 2 * root
    return residual.masked_fill_((x < 2.0**-800).logical_or_(x > 2.0**800), 0.0)


def exp(x: torch.Tensor) -> torch.Tensor:
    """``exp(x)``: 2^k times a Taylor polynomial on [-ln 2 / 2, ln 2 / 2]. 0 below -708, where it would not be normal."""
    k = (x.detach() * (1 / math.log(2))).round().clamp(-1022, 1024).nan_to_num()
    near = x.clamp(-745, 746) - k * _LN2 - k * _LN2_LOW
    value = _polynomial(near, _EXP)
    # 2^1024 is infinite: in two factors.
    half = (k / 2).floor()
    for power in (half, k - half):
        value = value * ((power.to(torch.int64) + 1023) << 52).view(torch.float64)
    return torch.where(x < -708, 0.0, torch.where(x == math.inf, math.inf, value))


def log(x: torch.Tensor) -> torch.Tensor:
    """``log(x)`` of normal x: ``k ln 2 + 2 atanh(s)`` with x = 2^k (1 + s) / (1 - s) and 2^k x in [sqrt(1/2), sqrt(2)]."""
    bits = x.detach().contiguous().view(torch.int64)
    k = ((bits >> 52) & 2047) - 1023
    scaled = ((bits & _FRACTION) | _ONE).view(torch.float64)
    above = scaled > math.sqrt(2)
    k = torch.where(above, k + 1, k)
    power = ((1023 - k).clamp(1, 2046) << 52).view(torch.float64)
    m = x * power
    s = (m - 1) / (m + 1)
    whole = k.to(torch.float64)
    value = whole * _LN2 + (2 * s * _polynomial(s * s, _ATANH) + whole * _LN2_LOW)
    value = torch.where(x == math.inf, math.inf, value)
    return torch.where(x > 0, value, torch.where(x == 0, -math.inf, math.nan))


def power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """``x ** exponent`` of x >= 0 and an exponent above 0."""
    return x if exponent == 1 else exp(exponent * log(x))


def log_plus_one(x: torch.Tensor) -> torch.Tensor:
    """``log(1 + x)``, to the last bits near 0 too (Kahan)."""
    whole = 1 + x
    return torch.where((whole == 1) | x.isinf(), x, log(whole) * (x / (whole - 1)))


def one_minus_exp(x: torch.Tensor) -> torch.Tensor:
    """``1 - exp(-x)`` for x >= 0, to the last bits near 0 too (Kahan)."""
    whole = exp(-x)
    inside = (whole != 1) & (whole != 0)
    return torch.where(inside, (1 - whole) * (x / -log(torch.where(inside, whole, 0.5))), torch.where(whole == 0, 1.0, x))


def _sin_cos(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of x in [0, pi / 2]; the half beyond pi / 4 is the other function's of ``pi / 2 - x``."""
    beyond = x > math.pi / 4
    near = torch.where(beyond, (_HALF_PI - x) + _HALF_PI_LOW, x)
    square = near * near
    sin, cos = near * _polynomial(square, _SIN), _polynomial(square, _COS)
    return torch.where(beyond, cos, sin), torch.where(beyond, sin, cos)


def sin(x: torch.Tensor) -> torch.Tensor:
    """``sin(x)`` of x in [0, pi / 2]."""
    return _sin_cos(x)[0]


def cos(x: torch.Tensor) -> torch.Tensor:
    """``cos(x)`` of x in [0, pi / 2]; of the float next to pi / 2, 6e-17."""
    return _sin_cos(x)[1]


def tan(x: torch.Tensor) -> torch.Tensor:
    """``tan(x)`` of x in [0, pi / 2]."""
    sin, cos = _sin_cos(x)
    return sin / cos


def atan(x: torch.Tensor) -> torch.Tensor:
    """``atan(x)`` of x >= 0, infinity too: two halvings of the angle by ``x / (1 + sqrt(1 + x^2))``, and a series."""
    beyond = x > 1
    near = torch.where(beyond, 1 / torch.where(beyond, x, 1.0), x)
    for _ in range(2):
        near = near / (1 + sqrt(1 + near * near))
    angle = 4 * near * _polynomial(near * near, _ATAN)
    return torch.where(beyond, (_HALF_PI - angle) + _HALF_PI_LOW, angle)


def asinh(x: torch.Tensor) -> torch.Tensor:
    """``asinh(x)`` of x >= 0."""
    large = x > 1e8
    near = torch.where(large, 1.0, x)
    square = near * near
    small = log_plus_one(near + square / (1 + sqrt(1 + square)))
    return torch.where(large, log(torch.where(large, x, 1.0)) + math.log(2), small)
