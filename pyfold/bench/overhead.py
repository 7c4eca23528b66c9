"""Rows of what a call costs before any work is done: 64 elements, above an empty Python call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import pyfold
from pyfold import diffusion
from pyfold.bench.ops import TIMED_FOLDS, fold_forms, step_form
from pyfold.bench.rows import Case, Setting, row

_SHAPES = {"small": (1, 8, 2, 4)}
_OPTIONS: dict[str, Any] = {"shapes": _SHAPES, "dtypes": (torch.float32,)}


@row("randn, out=", "overhead", **_OPTIONS)
def _randn(s: Setting) -> Case:
    seeds, out = s.seeds(), torch.empty(s.shape, device=s.device)
    forms = {
        "pyfold": lambda: pyfold.randn(seeds, s.shape[1:], out=out),
        "eager": lambda: torch.randn(s.shape, out=out),
    }
    return Case(forms, overhead=True)


@row("affine_step, in place", "overhead", **_OPTIONS)
def _step(s: Setting) -> Case:
    x, model = s.tensors(2)
    ours = step_form(diffusion.ddim(diffusion.vp_linear(), 50), x, model, s.seeds())
    return Case({"pyfold": ours, "eager": lambda: x.add_(model, alpha=0.1)}, overhead=True)


@row("add_noise, out=", "overhead", **_OPTIONS)
def _add_noise(s: Setting) -> Case:
    (x0,) = s.tensors(1)
    seeds, out = s.seeds(), torch.empty_like(x0)
    alpha, sigma = (torch.full((s.shape[0],), value, device=s.device) for value in (0.8, 0.6))
    a, b = s.per_sample(alpha), s.per_sample(sigma)
    forms = {
        "pyfold": lambda: pyfold.add_noise(x0, alpha, sigma, seeds, out=out),
        "eager": lambda: a * x0 + b * torch.randn_like(x0),
    }
    return Case(forms, overhead=True)


def _add_fold_rows(name: str) -> None:
    """A fold without and with a gradient to come."""

    def forms(s: Setting, grad: bool) -> dict[str, Callable[[], object]]:
        x, folds = fold_forms(s, name)
        x.requires_grad_(grad)
        return {form: partial(fold, x) for form, fold in folds.items() if fold is not None and form in ("pyfold", "eager")}

    @row(f"fold {name}, no gradient", "overhead", **_OPTIONS)
    def without_gradient(s: Setting) -> Case:
        return Case(forms(s, False), overhead=True)

    @row(f"fold {name}, with gradient", "overhead", **_OPTIONS)
    def with_gradient(s: Setting) -> Case:
        return Case(forms(s, True), overhead=True, grad=True)


for _name in TIMED_FOLDS:
    _add_fold_rows(_name)
