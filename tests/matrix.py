"""Inputs for the tests that walk the registry of ops."""

from __future__ import annotations

import torch

from pyfold.ops import OPS

#: 0-d, empty, one element, odd sizes, more than a tile, more than a thread's share.
SHAPES = [
    (),
    (0,),
    (0, 4),
    (2, 0),
    (1,),
    (1, 1),
    (3, 2),
    (5, 7),
    (2, 6, 5),
    (2, 4, 3, 5),
    (3, 2, 1, 700),
    (2, 8, 64, 65),
]
CASES = [(op, variant) for op in OPS.values() for variant in op.variants]
GRADIENT_CASES = [(op, variant) for op, variant in CASES if op.differentiable]


def case_id(value):
    return value.name if hasattr(value, "public") else str(value)


def contiguous(x):
    return x


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else None


def sliced(x):
    """Every second element of a larger tensor."""
    if x.dim() == 0:
        return None
    larger = torch.zeros([*x.shape[:-1], 2 * x.shape[-1] + 1], dtype=x.dtype, device=x.device)
    view = larger[..., 1::2]
    return view.copy_(x)


def expanded(x):
    """One sample repeated without memory of its own."""
    return x[:1].expand(x.shape) if x.dim() > 1 and x.shape[0] > 0 else None


def transposed(x):
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 2 else None


def misaligned(x):
    """One element off the allocation's alignment."""
    flat = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)
    return flat[1:].view(x.shape).copy_(x)


LAYOUTS = [contiguous, channels_last, sliced, expanded, transposed, misaligned]


def relayout(op, sample, layout):
    """The sample with its tensors in another layout, or None where their shape has no such layout."""
    result = dict(sample)
    changed = not op.tensors and layout is contiguous
    for name in op.tensors:
        if name not in sample:
            continue
        value = sample[name]
        values = [layout(v) for v in (value if isinstance(value, list) else [value])]
        if any(v is None for v in values):
            return None
        result[name] = values if isinstance(value, list) else values[0]
        changed = True
    return result if changed else None


def in_float64(sample):
    def widen(value):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value.detach().to(torch.float64)
        return [widen(v) for v in value] if isinstance(value, list) else value

    return {name: widen(value) for name, value in sample.items()}


def outputs(result):
    return list(result) if isinstance(result, tuple) else [result]


#: Largest relative error of rounding to the dtype, once.
ROUNDING = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
#: Arithmetic before that rounding, relative to the largest value.
ARITHMETIC = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}


def assert_matches(actual, expected, dtype, where=""):
    assert actual.shape == expected.shape, where
    if actual.numel() == 0:
        return
    expected = expected.to(torch.float64)
    scale = max(1.0, expected.abs().max().item())
    bound = (
        ARITHMETIC[dtype] * scale
        + ROUNDING.get(actual.dtype, 0.0) * expected.abs() * 1.0001
        + (2.0**-25 if actual.dtype == torch.float16 else 0.0)
    )
    error = (actual.to(torch.float64) - expected).abs()
    assert bool((error <= bound).all()), f"{where}: off by {error.max().item():.3g} at a scale of {scale:.3g}"
