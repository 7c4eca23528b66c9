"""A step of diffusers' tensors as a row of ``pyfold.affine_step``: where its noise goes, and what the row depends on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from torch.compiler import is_compiling

from pyfold._torch_private import transforms_active
from pyfold.diffusion import formulas
from pyfold.diffusion.draws import stream_and_step
from pyfold.diffusion.formulas import X0, Form, H, absent
from pyfold.ops import AFFINE_STEP_COLUMNS, affine_step, affine_table, randn
from pyfold.ops._checks import as_seeds

T = torch.Tensor
_COLUMN = {name: i for i, name in enumerate(AFFINE_STEP_COLUMNS)}
_EMPTY_ROW = affine_table([{}])
HALF = (torch.float16, torch.bfloat16)


# --- noise


class Counted(NamedTuple):
    """Noise that the kernel makes: a function of the seed and of a draw's address."""

    seeds: T


def is_int(seed: Any) -> bool:
    """Whether it is one number, NumPy's too."""
    return isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)


def check_seeds_given(seeds: Any) -> None:
    if isinstance(seeds, torch.Tensor):
        valid = (seeds.dtype, seeds.dim()) in ((torch.int64, 1), (torch.uint64, 2)) and seeds.shape[1:] in ((), (2,))
    else:
        several = [seeds] if is_int(seeds) else seeds
        valid = isinstance(several, (list, tuple)) and all(map(is_int, several))
    if not valid:
        raise TypeError(f"seeds must be an int, a list of ints, an int64 tensor [B] or keys, uint64 [B, 2], got {seeds!r}")
    if not isinstance(seeds, torch.Tensor):
        as_seeds(seeds, 1, torch.device("cpu"))


def seed_tensor(seeds: Any, samples: int, device: torch.device) -> T:
    """int64 [samples], or keys; one int is the first sample's, the others' follow it, modulo 2^64."""
    check_seeds_given(seeds)
    if is_int(seeds):
        return as_seeds([(int(seeds) + i) % 2**64 for i in range(samples)], samples, device)
    if len(seeds) != samples:
        raise ValueError(f"seeds must be one for each of the {samples} samples, got {len(seeds)}")
    return seeds.to(device) if isinstance(seeds, torch.Tensor) else as_seeds(seeds, samples, device)


def noise_tensor(noise: T | Counted, like: T, draw: Any) -> T:
    """The noise as a tensor, where a formula is not linear in it; ``draw``: its address, or one a sample."""
    if isinstance(noise, Counted):
        draw = torch.tensor(draw, device=like.device) if isinstance(draw, list) else draw
        return randn(noise.seeds, like.shape[1:], **stream_and_step(draw), dtype=like.dtype)
    return noise


# --- a step as a formula


@dataclass(frozen=True)
class Step(formulas.Step):
    """A scheduler's step, which keeps nothing for later ones unless it says so.

    Attributes:
        model_last: the model's output is also the last of the history, because u and x0 both leave it out.
        draw: address of its noise (pyfold.diffusion.draws), or int64 of one for each sample.
    """

    keep: Form | None = None
    model_last: bool = False
    draw: Any = None


class _Unknown(Exception):
    """A rule depends on a tensor whose values the host has not, or on a large one."""


_SCALARS = frozenset((type(None), bool, int, float, str, np.float64, torch.device))
#: Larger tensors are not looked through.
_MOST_VALUES = 16


def _value(thing: Any) -> Hashable:
    """What a rule read, by its value."""
    if type(thing) in _SCALARS:
        return thing if thing == thing else "nan"
    if isinstance(thing, ConfigMixin):
        # The scheduler itself, whose tables and settings are looked at anew.
        return None
    if isinstance(thing, MethodType):
        return thing.__func__, _value(thing.__self__)
    if isinstance(thing, FunctionType):
        if hasattr(thing, "rule"):
            return thing.__name__
        cells = [_value(cell.cell_contents) for cell in thing.__closure__ or ()]
        return thing.__code__, thing.__defaults__ and _value(thing.__defaults__), *cells
    if isinstance(thing, np.generic):
        return _value(thing.item())
    if isinstance(thing, Form):
        return tuple((name, _value(value)) for name, value in thing.terms.items())
    if isinstance(thing, (list, tuple)):
        return tuple(map(_value, thing))
    if isinstance(thing, torch.Tensor):
        if not thing.is_cpu or thing.requires_grad or thing.numel() > _MOST_VALUES or transforms_active():
            raise _Unknown
        return thing.dtype, thing.shape, _value(thing.tolist())
    raise _Unknown


def _read(rule: Callable[..., Any]) -> Hashable | None:
    """All that a rule closes over, on which its row depends beside tables and settings; None where it cannot be known."""
    try:
        return _value(rule)
    except _Unknown:
        return None


@lru_cache
def _empty_row(device: torch.device) -> T:
    """Copied to a device once, so that per-sample rows are made there without a wait."""
    with torch.inference_mode(False):
        return _EMPTY_ROW.to(device)


def as_dtype(tensor: T, dtype: torch.dtype) -> T:
    """``tensor.to(dtype)``, which takes 2 us to find that there is nothing to do."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _table(rows: Sequence[dict[str, Any]], device: torch.device) -> T:
    """float64 [rows, 25]; a row of tensors is one for each sample. Not finite stays so: their NaN is our NaN."""
    tensors = [value for row in rows for value in row.values() if isinstance(value, torch.Tensor)]
    if len(rows) == 1 and tensors:
        # The compiler warns of a cache that it looks through.
        empty = _empty_row.__wrapped__ if is_compiling() else _empty_row
        table = empty(device).repeat(max(value.numel() for value in tensors), 1)
        for name, value in rows[0].items():
            table[:, _COLUMN[name]] = value
        return table
    values = _EMPTY_ROW.numpy().repeat(len(rows), 0)
    for i, row in enumerate(rows):
        for name, value in row.items():
            values[i, _COLUMN[name]] = value
    table = torch.from_numpy(values)
    return table if device.type == "cpu" else table.to(device)


class Written(NamedTuple):
    """Steps with a place for their noise, their rows, and rows that add the noise where the step has no place left."""

    steps: list[Step]
    table: T
    separate: T | None


class Operands:
    """The tensors of a step, of one dtype and shape, and the place that its noise takes among them.

    ``slot``: the tensor that the noise is given as, "separate" where none is free; None for no noise or the kernel's own.
    """

    def __init__(self, x: T, model: T, base: T | None, history: Sequence[T], noise: T | Counted | None):
        if model.dtype != x.dtype or model.shape != x.shape:
            x, model = _together(x, model)
        dtype = x.dtype
        self.x, self.model, self.noise = x, model, noise
        self.history = [as_dtype(h, dtype) for h in history] if history else []
        self.base = None if base is None else as_dtype(base, dtype)
        self.slot: str | None = None
        self.counted = isinstance(noise, Counted)
        if isinstance(noise, torch.Tensor):
            if base is None:
                self.slot, self.base = "base", as_dtype(noise, dtype)
            elif len(self.history) < len(H):
                self.history.append(as_dtype(noise, dtype))
                self.slot = f"h{len(self.history)}"
            else:
                self.slot = "separate"

    @property
    def needs_grad(self) -> bool:
        if not torch.is_grad_enabled():
            return False
        if self.x.requires_grad or self.model.requires_grad or (self.base is not None and self.base.requires_grad):
            return True
        return True in [t.requires_grad for t in self.history]

    def write(self, steps: list[Step], show: bool) -> Written:
        """The rows of steps of these tensors."""
        placed, rows, separate = [], [], []
        for step in steps:
            of_noise = step.prev["noise"]
            if step.clip == "dynamic" and show:
                # x0 divided by its bound leaves the kernel as u.
                step = replace(step, keep=X0)
            if self.slot not in (None, "separate"):
                step = replace(step, prev=step.prev.over(noise=Form(**{str(self.slot): 1.0})))
            if step.clip is not None and step.keep is not None and absent(step.keep["m"]) and not absent(step.prev["m"]):
                step = replace(step, prev=step.prev.over(m=H[len(self.history)]), model_last=True)
            noise = {"d1": of_noise, "n1": step.draw} if self.counted and not absent(of_noise) else {}
            placed.append(step)
            rows.append(formulas.row(step, show and step.clip != "dynamic") | noise)
            if self.slot == "separate":
                separate.append({"a": 1.0, "s": 1.0, "c_u": of_noise})
        device = self.x.device
        apart = _table(separate, device) if separate else None
        return Written(placed, _table(rows, device), apart)


def pass_once(form: Form, x: T, model: T, base: T | None = None) -> T:
    """A form of X, M and BASE with coefficients that no other step has, so that its row is not kept.

    A half-precision state becomes float32.
    """
    given = Operands(x.float() if x.dtype in HALF else x, model, base, (), None)
    return affine_step(given.x, given.model, _table([formulas.row(Step(form))], given.x.device), base=given.base)


def _together(x: T, model: T) -> tuple[T, T]:
    """Of one shape, and of one dtype, but for a half-precision model beside a float32 state."""
    shape: torch.Size = torch.broadcast_shapes(x.shape, model.shape)  # type: ignore[no-untyped-call]
    dtype = torch.promote_types(x.dtype, model.dtype)
    x, model = x.expand(shape).to(dtype), model.expand(shape)
    return x, model if dtype == torch.float32 and model.dtype in HALF else model.to(dtype)
