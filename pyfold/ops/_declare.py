"""The record that declares an op; tests, benchmarks and the table in the docs are generated from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
#: Of seeds [B], and of keys [B, 2].
SEED_DTYPES = (torch.int64, torch.uint64)


@dataclass(frozen=True)
class Op:
    """One public op.

    Attributes:
        name: the public name.
        public: the function users call.
        reference: the same signature in plain torch operations, meant to be read and to be run in float64.
        sample: ``sample(shape, dtype, device, generator, **variant)`` draws the keyword arguments of one call, or returns
            None for a shape the op does not take.
        variants: the parameter settings that the test matrix visits, by name; each is passed to ``sample``.
        tensors: arguments that share the shape of the main tensor; the matrix permutes their memory layout.
        differentiable: arguments that receive a gradient.
        raw: the raw ops behind it, with a CPU and a CUDA kernel each.
        tie_distance: distance of the arguments to the nearest kink of the op, where finite differences fail; None for a
            smooth op.
        saved_bytes: bytes that the op itself keeps for backward, from the arguments of a call; arguments kept as they are
            do not count.
        batched: whether the first dimension is a batch of samples, with one seed each.
        rule: the formula, one line, for the table of ops.
        dtypes: that it takes.
    """

    name: str
    public: Callable[..., Any]
    reference: Callable[..., Any]
    sample: Callable[..., dict[str, Any] | None]
    tensors: tuple[str, ...]
    raw: tuple[str, ...]
    rule: str
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"default": {}})
    differentiable: tuple[str, ...] = ()
    tie_distance: Callable[..., torch.Tensor] | None = None
    saved_bytes: Callable[..., int | None] | None = None
    batched: bool = True
    dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES


OPS: dict[str, Op] = {}


def declare(op: Op) -> Op:
    """Adds an op to the registry that tests, benchmarks and docs walk."""
    if op.name in OPS:
        raise ValueError(f"op {op.name!r} is declared twice")
    OPS[op.name] = op
    return op
