"""Square roots that are the nearest number on every machine: torch may ask a vendor's library, whose may be the one beside."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_compiling


def root_of_double(x: torch.Tensor) -> torch.Tensor:
    """The square root of float64 x, as C has it.

    What ``root * root`` lacks of x is exact by Dekker's product (1971); where that could overflow or underflow, torch's root
    stays.
    """
    root = x.sqrt()
    y, r = x.detach(), root.detach()
    split = r * 134217729.0  # 2^27 + 1
    high = split - (split - r)
    low = r - high
    lacking = ((y - high * high) - 2 * high * low) - low * low
    inside = (y > 2.0**-800) & (y < 2.0**800)
    return root + torch.where(inside, lacking / torch.where(inside, 2 * r, 1.0), 0.0)


def _nearest(x: torch.Tensor) -> torch.Tensor:
    # Of a narrower type no root lies so near the middle of two numbers that the last digit of float64 could decide.
    return root_of_double(x) if x.dtype == torch.float64 else x.double().sqrt().to(x.dtype)


class _Root(torch.autograd.Function):
    """With the derivative that torch's root has, of the nearest number."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return _nearest(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (root,) = ctx.saved_tensors
        half: torch.Tensor = gradient / (2 * root)
        return half

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
        (root,) = ctx.saved_tensors
        half: torch.Tensor = tangent / (2 * root)
        return half


def root(x: torch.Tensor) -> torch.Tensor:
    """The square root of a tensor of any floating-point dtype; its derivative rounded as torch's is, but in a compiled graph,
    which takes no Function that knows forward mode."""
    result: torch.Tensor = _nearest(x) if is_compiling() else _Root.apply(x)  # type: ignore[no-untyped-call]
    return result
