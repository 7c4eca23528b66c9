"""A sampler's step as a formula: linear combinations of the tensors of a step, and the row of ``affine_step`` they make.

Plans, k-diffusion's functions, ComfyUI's nodes and diffusers' classes all run rows that :func:`row` writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyfold.diffusion.schedule import Point


class Form:
    """A linear combination of tensors: coefficients by the tensor's name, numbers or float64 [B]."""

    __slots__ = ("terms",)
    __array_ufunc__ = None

    def __init__(self, **terms: Any):
        self.terms: dict[str, Any] = terms

    def __repr__(self) -> str:
        return f"Form({', '.join(f'{name}={value}' for name, value in self.terms.items())})"

    def __getitem__(self, name: str) -> Any:
        return self.terms.get(name, 0.0)

    def __add__(self, other: Form | float) -> Form:
        if not isinstance(other, Form):
            if other != 0:
                return NotImplemented
            return self
        terms = dict(self.terms)
        for name, value in other.terms.items():
            terms[name] = terms[name] + value if name in terms else value
        return Form(**terms)

    __radd__ = __add__

    def __mul__(self, factor: Any) -> Form:
        return Form(**{name: value * factor for name, value in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Form:
        return Form(**{name: value / factor for name, value in self.terms.items()})

    def __neg__(self) -> Form:
        return self * -1.0

    def __sub__(self, other: Form) -> Form:
        return self + -other

    def over(self, **forms: Form) -> Form:
        """With formulas in the place of some tensors."""
        result = Form(**{name: value for name, value in self.terms.items() if name not in forms})
        return sum((forms[name] * value for name, value in self.terms.items() if name in forms), result)

    def without(self, *names: str) -> Form:
        """The other terms."""
        return Form(**{name: value for name, value in self.terms.items() if name not in names})

    def renamed(self, names: Mapping[str, str]) -> Form:
        """The same coefficients of other tensors."""
        return Form(**{names.get(name, name): value for name, value in self.terms.items()})


#: The state; the model's output; what that means; what the step keeps of it; the state before the first stage; the noise.
X, M, X0, EPSILON, FLOW, U, BASE, N = (
    Form(**{name: 1.0}) for name in ("x", "m", "x0", "epsilon", "flow", "u", "base", "noise")
)
#: What earlier stages kept, the newest first; the noise that the first, the second, ... stage of this step brings in.
H = tuple(Form(**{f"h{i}": 1.0}) for i in range(1, 5))
NOISE = tuple(Form(**{f"noise{i}": 1.0}) for i in range(3))
#: Where the next stage finds what this one keeps and looks back on.
KEPT_AS = {"u": "h1", "h1": "h2", "h2": "h3", "h3": "h4"}


@dataclass(frozen=True)
class Step:
    """One evaluation of the model, and what is made of it.

    Attributes:
        prev: the next state, of any of the tensors.
        keep: what later stages may look back on: of X, M, X0, and in a sampler's rule of U for what the sampler keeps.
        x0: what X0 stands for, of X and M, before the clip.
        clip: bound on X0; "dynamic" for a bound by each sample's quantile; None for none.
        at: where the model is evaluated, if not where the step starts.
        overwrites: ``keep`` takes the place of the newest earlier one instead of being put in front of it.
        starts: whether this is a step of its own; by default only the first of several stages is.
        churns_to: the level that the step's noise leads to, where it churns the state of the next step.
    """

    prev: Form
    keep: Form | None = U
    x0: Form | None = None
    clip: float | str | None = None
    at: Point | None = None
    overwrites: bool = False
    starts: bool = False
    churns_to: Point | None = None


def weighted(forms: Iterable[Form], weights: Iterable[Any]) -> Form:
    """The sum of forms times weights, of as many as there are of both."""
    return sum((form * weight for form, weight in zip(forms, weights, strict=False)), Form())


def absent(value: Any) -> bool:
    """Whether a coefficient is zero; one on a device is not looked into."""
    return not isinstance(value, torch.Tensor) and bool(value == 0)


def row(step: Step, show: bool = False) -> dict[str, Any]:
    """The coefficients of ``affine_step`` for a step of X, M, X0, U, BASE and H; absent ones are zero.

    The model's output enters x' through x0 or u, whichever nothing else needs. ``show``: x0 is an output.
    """
    prev, keep, x0 = step.prev, step.keep, step.x0
    result = {"a": prev["x"], "c_x0": prev["x0"], "c_u": prev["u"]}
    result |= {f"b{i}": prev[f"h{i}"] for i in range(1, 5) if not absent(prev[f"h{i}"])}
    if not absent(prev["base"]):
        result["a_base"] = prev["base"]
    uses = show or not absent(prev["x0"]) or (keep is not None and not absent(keep["x0"]))
    if uses:
        assert x0 is not None
        result |= {"p": x0["x"], "q": x0["m"]}
        if isinstance(step.clip, (int, float)):
            result |= {"clip_min": -float(step.clip), "clip_max": float(step.clip)}
    if keep is not None:
        result |= {name: keep[term] for name, term in (("r", "x"), ("s", "m"), ("t", "x0")) if not absent(keep[term])}
    of_model = prev["m"]
    if absent(of_model):
        return result
    if keep is None:
        return result | {"s": 1.0, "c_u": of_model}
    if not uses:
        return result | {"q": 1.0, "c_x0": of_model}
    if step.clip is None and x0 is not None and not absent(x0["m"]):
        part = of_model / x0["m"]
        return result | {"c_x0": result["c_x0"] + part, "a": result["a"] - part * x0["x"]}
    part = of_model / keep["m"]
    changes = {"c_u": result["c_u"] + part, "a": result["a"] - part * keep["x"], "c_x0": result["c_x0"] - part * keep["x0"]}
    return result | changes


def formula(row: Mapping[str, float]) -> tuple[Form, Form]:
    """(next state, u) of X, M and H that a row without clip computes, noise left out: the way back from :func:`row`."""
    x0 = X * row.get("p", 0.0) + M * row.get("q", 0.0)
    u = X * row.get("r", 0.0) + M * row.get("s", 0.0) + x0 * row.get("t", 0.0)
    past = weighted(H, [row.get(f"b{i}", 0.0) for i in range(1, 5)])
    return X * row.get("a", 0.0) + x0 * row.get("c_x0", 0.0) + u * row.get("c_u", 0.0) + past, u


def clipped(row: Mapping[str, float]) -> bool:
    """Whether a row bounds x0."""
    return row.get("clip_min", -math.inf) > -math.inf or row.get("clip_max", math.inf) < math.inf
