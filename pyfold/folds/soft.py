"""abs with a round crease."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.compiler import is_compiling

from pyfold._elementary import sqrt
from pyfold.folds.kind import LENGTH, FoldKind, one_value


class _Root(torch.autograd.Function):
    """The nearest number on every machine, with the derivative that torch's root has, of that number."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return sqrt(x)

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
    """The square root of a tensor of any floating-point dtype, and its derivative rounded as torch's is.

    But in a compiled graph, which takes no Function that knows forward mode.
    """
    result: torch.Tensor = sqrt(x) if is_compiling() else _Root.apply(x)  # type: ignore[no-untyped-call]
    return result


def _no(**_: Any) -> bool:
    return False


KIND = FoldKind(
    name="soft",
    rule="sqrt(x^2 + e^2): abs with a round crease",
    source="the hyperbola with the asymptotes of |x|",
    tie="nowhere",
    bits="the input",
    reference=lambda z, epsilon: root(z * z + epsilon**2),
    creases=None,
    emit=None,
    width=one_value,
    parameters={"epsilon": replace(LENGTH, default=0.1)},
    preserves_norm=_no,
    preserves_volume=_no,
    unfolds=_no,
    composed_variants={"soft": {}},
)
