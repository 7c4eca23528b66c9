"""Functions of float64 that round alike on every machine: their accuracy, their bits, and that what is promised uses them."""

import hashlib
import math

import mpmath
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyfold import _elementary as elementary
from pyfold import diffusion
from pyfold.diffusion.densities import DENSITIES

mpmath.mp.dps = 40
#: name: (exact function, arguments as (least, most, whether spread over the logarithm))
FUNCTIONS = {
    "sqrt": (mpmath.sqrt, [(0.0, 2.0, False), (1e-200, 1e200, True)]),
    "exp": (mpmath.exp, [(-1.0, 1.0, False), (-700.0, 700.0, False), (1e-20, 1.0, True)]),
    "log": (mpmath.log, [(0.9, 1.1, False), (1e-300, 1e300, True)]),
    "log_plus_one": (mpmath.log1p, [(1e-30, 1e30, True)]),
    "one_minus_exp": (lambda x: -mpmath.expm1(-x), [(1e-30, 40.0, True)]),
    "sin": (mpmath.sin, [(0.0, math.pi / 2, False), (1e-9, 1e-2, True)]),
    "cos": (mpmath.cos, [(0.0, math.pi / 2, False), (1.57, math.pi / 2, False)]),
    "tan": (mpmath.tan, [(0.0, math.pi / 2, False), (1.57, math.pi / 2, False)]),
    "atan": (mpmath.atan, [(0.0, 2.0, False), (1e-20, 1e20, True)]),
    "asinh": (mpmath.asinh, [(0.0, 2.0, False), (1e-20, 1e20, True)]),
}
#: Of their values at 2,000 dyadic arguments in (0, 1.5]: changes with any bit.
BITS = {
    "sqrt": "b16641aa985bb781",
    "exp": "4e4766c258ed0b19",
    "log": "4cda3c804bd5cf9a",
    "log_plus_one": "ac5036c008c06d23",
    "one_minus_exp": "61c6919304db7bd5",
    "sin": "2d485e4713366d52",
    "cos": "b6f5a7ec5424e771",
    "tan": "ff467edd65305fe9",
    "atan": "de4b3f2d939af29f",
    "asinh": "31985d3f41322dc4",
}


def arguments(name, count=400):
    """The same on every machine: products and sums of dyadic numbers; of a logarithm's, powers of two."""
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    parts = []
    for low, high, spread in FUNCTIONS[name][1]:
        parts.append(torch.from_numpy(np.geomspace(low, high, count)) if spread else low + u * (high - low))
    return torch.cat(parts)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_accuracy(name):
    """To the nearest number for roots, and to four units of the last place for the rest."""
    x = arguments(name)
    found = getattr(elementary, name)(x)
    worst = 0.0
    for argument, value in zip(x.tolist(), found.tolist(), strict=True):
        exact = FUNCTIONS[name][0](mpmath.mpf(argument))
        worst = max(worst, float(abs(mpmath.mpf(value) - exact) / mpmath.mpf(math.ulp(float(exact)))))
    assert worst <= (0.5 if name == "sqrt" else 4.0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits(name):
    x = torch.arange(1, 2001, dtype=torch.float64) * (1.5 / 2048)
    found = getattr(elementary, name)(x)
    assert hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16] == BITS[name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(name):
    x = torch.linspace(0.02, 1.5, 20, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(getattr(elementary, name), x)
    assert torch.autograd.gradgradcheck(getattr(elementary, name), x)


def test_ends():
    inf, nan = math.inf, math.nan
    for name, x, expected in (
        ("sqrt", [0.0, inf, -1.0, nan], [0.0, inf, nan, nan]),
        (
            "exp",
            [-inf, inf, nan, 0.0, 709.7, 709.8, -709.0],
            [0.0, inf, nan, 1.0, math.exp(709.7), inf, 0.0],
        ),
        ("log", [0.0, inf, -1.0, nan, 1.0], [-inf, inf, nan, nan, 0.0]),
        ("log_plus_one", [0.0, inf, 1e-300], [0.0, inf, 1e-300]),
        ("one_minus_exp", [0.0, inf, 1e-300, 800.0], [0.0, 1.0, 1e-300, 1.0]),
        ("atan", [0.0, inf], [0.0, math.pi / 2]),
        ("asinh", [0.0, inf, 1e300], [0.0, inf, math.asinh(1e300)]),
        ("sin", [0.0, math.pi / 2], [0.0, 1.0]),
        ("cos", [0.0, math.pi / 2], [1.0, math.cos(math.pi / 2)]),
    ):
        found = getattr(elementary, name)(torch.tensor(x, dtype=torch.float64))
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_roots_of_smaller_dtypes_are_the_nearest(dtype):
    x = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).mul(30).to(dtype)
    exact = torch.from_numpy(np.sqrt(x.double().numpy())).to(dtype)
    assert elementary.sqrt(x).dtype == dtype and torch.equal(elementary.sqrt(x), exact)


class Functions(TorchDispatchMode):
    """Which of torch's functions, whose bits depend on the machine, are called."""

    NAMES = frozenset(
        {"exp", "exp2", "expm1", "log", "log1p", "log2", "sin", "cos", "tan", "atan", "asinh", "tanh", "sigmoid"}
        | {"rsqrt", "lerp", "hypot", "erf", "erfinv", "logit"}
    )

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name in self.NAMES or (name == "pow" and args[1] not in (2, 3, -1)):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [*diffusion.SCHEDULES, "flow of an exponent"])
def test_schedules_and_times_call_no_other(name):
    schedule = diffusion.flow(3.0, exponent=1.5) if name not in diffusion.SCHEDULES else diffusion.SCHEDULES[name]()
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    with Functions() as functions:
        for density in DENSITIES.values():
            t = density(schedule, u)
            alpha, sigma = schedule.coefficients(t)
            schedule.coefficients(t * 0.99 + 0.3 * u * schedule.t_min)
            schedule.time(sigma / alpha.clamp(min=1e-3))
            schedule.model_time(t, alpha.clamp(min=1e-3), sigma.clamp(min=1e-3))
            schedule.input_scale(alpha, sigma)
    assert not functions.seen


def test_the_mode_sees_them():
    with Functions() as functions:
        torch.rand(3).double().exp_() ** 0.3
    assert functions.seen == {"exp", "pow"}
