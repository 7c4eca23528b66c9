"""The sampler step: one pass over memory, noise made on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pyfold import _C
from pyfold.ops._autograd import Differentiable
from pyfold.ops._checks import as_seeds, check_batched, check_choice, check_tensor, check_window, counter
from pyfold.ops._declare import Op, declare
from pyfold.ops._tensors import accumulation, normal, per_sample, sample_rows
from pyfold.ops.noise import SAMPLER_STREAM, randn
from pyfold.ops.noise import _reference as _noise

#: Columns of a sampler's table; the kernels' own list.
AFFINE_STEP_COLUMNS: tuple[str, ...] = tuple(_C.AFFINE_STEP_COLUMNS)
_STEP_DEFAULTS = {"g1": 1.0, "c_in": 1.0, "clip_min": -math.inf, "clip_max": math.inf}
_STEP = {name: i for i, name in enumerate(AFFINE_STEP_COLUMNS)}


def affine_table(rows: Sequence[Mapping[str, float]], device: torch.device | str = "cpu") -> torch.Tensor:
    """A sampler's coefficients as the float64 table [len(rows), 25] that :func:`affine_step` reads.

    Args:
        rows: one mapping a step from names of ``AFFINE_STEP_COLUMNS`` to values; absent ones are 0, but ``g1 = c_in = 1``
            and the clip is open.

    Raises:
        ValueError: an unknown name, a NaN, an infinity anywhere but in the clip, a noise step n1..n3 outside [0, 2**32).
    """
    table = []
    for i, row in enumerate(rows):
        for name, value in row.items():
            check_choice(f"row {i}'s coefficient", name, AFFINE_STEP_COLUMNS)
            bounded = name not in ("clip_min", "clip_max")
            if math.isnan(value) or (bounded and math.isinf(value)):
                raise ValueError(f"coefficient {name} of row {i} must be finite, got {value}")
            if name in ("n1", "n2", "n3") and not 0 <= value < 2**32:
                raise ValueError(f"noise step {name} of row {i} must be in [0, 2**32), got {value}")
        merged = {**_STEP_DEFAULTS, **row}
        table.append([float(merged.get(name, 0.0)) for name in AFFINE_STEP_COLUMNS])
    return torch.tensor(table, dtype=torch.float64, device=device).reshape(-1, len(AFFINE_STEP_COLUMNS))


def affine_step(
    x: torch.Tensor,
    models: torch.Tensor | Sequence[torch.Tensor],
    table: torch.Tensor,
    index: torch.Tensor | None = None,
    *,
    base: torch.Tensor | None = None,
    history: Sequence[torch.Tensor] = (),
    seeds: torch.Tensor | Sequence[int] | int | None = None,
    stream: int | torch.Tensor = SAMPLER_STREAM,
    step: int | torch.Tensor = 0,
    out: torch.Tensor | None = None,
    history_out: torch.Tensor | None = None,
    next_input: torch.Tensor | None = None,
    x0_out: torch.Tensor | None = None,
    offset: Sequence[int] | None = None,
    global_shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """One step of any sampler, in one pass (docs/architecture.md, "Every sampler is data").

    For each sample b, with its row of coefficients ``table[index[b]]``::

        e  = g1 m1 + g2 m2 + g3 m3
        x0 = clamp(p x + q e, clip_min, clip_max)
        u  = r x + s e + t x0
        x' = a x + a_base base + b1 h1 + ... + b4 h4 + c_x0 x0 + c_u u
           + d1 noise(n1) + d2 noise(n2) + d3 noise(n3)

    where ``noise(n) = pyfold.randn(seeds, ..., stream=stream, step=step + n)``. A coefficient of zero drops its term, whatever
    the operand holds.

    Args:
        x: the state, [B, ...]; float32 also where the model runs in bfloat16 or float16. Any strides.
        models: 1 to 3 model outputs shaped like ``x``, of its dtype, or bfloat16/float16 beside a float32 state.
        table: float64 [R, 25] on the device of ``x``, columns ``AFFINE_STEP_COLUMNS`` (:func:`affine_table`).
        index: int64 rows, one or one for each sample, on the device: the step counter. It is never read by the host; a
            sample whose row is not in the table becomes NaN. None takes row b for sample b, or the only row.
        base, history: the base state of a multi-stage step, up to 4 earlier ``u``; shaped like ``x``.
        seeds: int64 [B], or ints as in :func:`pyfold.randn`; without them there is no noise.
        stream, step: numbers, or int64 tensors on the device, one or one for each sample.
        out: x'; may be ``x``. history_out: u. x0_out: x0. Shaped like ``x``; none may overlap another operand, unless it is it.
        next_input: c_in x', in the model's dtype.

    Returns:
        ``out``, new with the layout of ``x`` if not given. Where a gradient is asked for, the step runs as differentiable
        torch operations instead of the fused kernel, and takes no out=, history_out=, next_input= or x0_out=.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    if type(x) is not torch.Tensor or x.dim() == 0:
        check_batched("x", check_tensor("x", x))
    if seeds is not None and (type(seeds) is not torch.Tensor or seeds.dim() == 0):
        seeds = as_seeds(seeds, x.shape[0], x.device)
    streams = positions = None
    if type(stream) is not int or type(step) is not int:
        (streams, stream), (positions, step) = counter("stream", stream), counter("step", step)
    if offset is not None or global_shape is not None:
        offset, global_shape = check_window(offset, global_shape, x.shape[1:])
    return _affine_step(  # type: ignore[no-any-return]
        x, models, base, history, table, index, seeds, streams, positions, stream, step, offset or (), global_shape or (),
        out, history_out, next_input, x0_out,
    )  # fmt: skip


class PreparedStep:
    """:func:`affine_step` for a loop: what stays through it is given once, what changes in each call.

    Args:
        table, seeds, stream, offset, global_shape: as in :func:`affine_step`.

    A call takes the other arguments of :func:`affine_step`, by name but for ``x``, ``models`` and ``index``, and returns the
    same.
    """

    def __init__(
        self,
        table: torch.Tensor,
        *,
        seeds: torch.Tensor | None = None,
        stream: int | torch.Tensor = SAMPLER_STREAM,
        offset: Sequence[int] | None = None,
        global_shape: Sequence[int] | None = None,
    ):
        streams, number = counter("stream", stream)
        shape = () if global_shape is None else global_shape
        window = ((), ()) if offset is None else (list(offset), list(shape))
        self._fixed = table, seeds, streams, number, *window

    def __call__(
        self,
        x: torch.Tensor,
        models: torch.Tensor | Sequence[torch.Tensor],
        index: torch.Tensor | None = None,
        *,
        base: torch.Tensor | None = None,
        history: Sequence[torch.Tensor] = (),
        positions: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
        history_out: torch.Tensor | None = None,
        next_input: torch.Tensor | None = None,
        x0_out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        table, seeds, streams, stream, offset, global_shape = self._fixed
        return _affine_step(  # type: ignore[no-any-return]
            x, models, base, history, table, index, seeds, streams, positions, stream, 0, offset, global_shape, out,
            history_out, next_input, x0_out,
        )  # fmt: skip


# --- the same in torch's operations


def _composed_outputs(
    x: torch.Tensor, models: Sequence[torch.Tensor], rows: torch.Tensor, base: torch.Tensor | None,
    history: Sequence[torch.Tensor], noise: Callable[[int], torch.Tensor] | None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Every output by name, of samples with these rows; noise(k) gives the k-th noise of each."""
    acc = accumulation(x.dtype)

    def c(name: str) -> torch.Tensor:
        return per_sample(rows[:, _STEP[name]], x).to(acc)

    def term(name: str, value: torch.Tensor) -> torch.Tensor:
        return torch.where(c(name) == 0, 0, c(name) * value.to(acc))

    e: Any = sum(term(f"g{j + 1}", m) for j, m in enumerate(models))
    x0 = term("p", x) + term("q", e)
    x0 = torch.where(x0 < c("clip_min"), c("clip_min"), x0)
    x0 = torch.where(x0 > c("clip_max"), c("clip_max"), x0)
    u = term("r", x) + term("s", e) + term("t", x0)
    y = term("a", x)
    if base is not None:
        y = y + term("a_base", base)
    for i, h in enumerate(history):
        y = y + term(f"b{i + 1}", h)
    y = y + term("c_x0", x0) + term("c_u", u)
    if noise is not None:
        for k in (1, 2, 3):
            y = y + term(f"d{k}", noise(k))
    results = {"out": y, "history_out": u, "x0_out": x0, "next_input": c("c_in") * y}
    return {name: value.to(x.dtype) for name, value in results.items()}


def _step_noise(rows: torch.Tensor, draw: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[int], torch.Tensor]:
    """The k-th noise of each sample; draw(steps) makes noise."""
    return lambda k: draw(rows[:, _STEP[f"n{k}"]].nan_to_num().to(torch.int64))


def _affine_composed(x: Any, models: Any, base: Any, history: Any, table: Any, index: Any, *rest: Any) -> torch.Tensor:
    seeds, streams, positions, stream, step, offset, global_shape = rest[:7]
    rows = sample_rows(table, index, x.shape[0])
    noise = None
    if seeds is not None:

        def draw(steps: torch.Tensor) -> torch.Tensor:
            return randn(
                seeds, x.shape[1:], stream=stream if streams is None else streams,
                step=steps + (step if positions is None else positions), dtype=accumulation(x.dtype),
                offset=offset or None, global_shape=global_shape or None,
            )  # fmt: skip

        noise = _step_noise(rows, draw)
    models = [models] if isinstance(models, torch.Tensor) else models
    return _composed_outputs(x, models, rows, base, history, noise)["out"]


_affine_step = Differentiable("affine_step", composed=_affine_composed)


def _affine_reference(
    x: Any, models: Any, table: Any, index: Any = None, *, base: Any = None, history: Any = (), seeds: Any = None,
    stream: Any = SAMPLER_STREAM, step: Any = 0, offset: Any = None, global_shape: Any = None, **_: Any,
) -> torch.Tensor:  # fmt: skip
    rows = sample_rows(table, index, x.shape[0])
    noise = None
    if seeds is not None:
        window = {"offset": offset, "global_shape": global_shape}
        noise = _step_noise(rows, lambda steps: _noise(seeds, x.shape[1:], stream=stream, step=steps + step, **window))
    models = [models] if isinstance(models, torch.Tensor) else models
    return _composed_outputs(x, models, rows, base, history, noise)["out"]


# --- declaration


def _step_sample(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator, *, models: int = 1,
    base: bool = False, history: int = 0, noises: int = 0, clip: bool = False, index: bool = False,
) -> dict[str, Any] | None:  # fmt: skip
    if len(shape) == 0:
        return None
    rows = []
    for _ in range(shape[0] + 2):
        used = ["a", "c_u", "r", "s", "p", "q", "c_x0", "t", "c_in"]
        used += ["a_base"] * base + [f"b{i + 1}" for i in range(history)] + [f"d{k + 1}" for k in range(noises)]
        used += [f"g{j + 1}" for j in range(models)]
        values = torch.randn(len(used), generator=generator, dtype=torch.float64).tolist()
        row = dict(zip(used, values, strict=True))
        row |= {f"n{k + 1}": 1000 * len(rows) + k for k in range(noises)}
        row |= {"clip_min": -0.8, "clip_max": 0.9} if clip else {}
        rows.append(row)
    table = affine_table(rows, device)
    sample = {
        "x": normal(shape, dtype, device, generator),
        "models": [normal(shape, dtype, device, generator) for _ in range(models)],
        "table": table if index else table[: shape[0]].contiguous(),
        "history": [normal(shape, dtype, device, generator) for _ in range(history)],
    }
    if index:
        sample["index"] = torch.randperm(shape[0] + 2, generator=generator)[: shape[0]].to(device)
    if base:
        sample["base"] = normal(shape, dtype, device, generator)
    if noises:
        sample["seeds"] = torch.randint(-(2**62), 2**62, (shape[0],), generator=generator).to(device)
    return sample


declare(
    Op(
        name="affine_step",
        public=affine_step,
        reference=_affine_reference,
        sample=_step_sample,
        tensors=("x", "models", "base", "history"),
        raw=("affine_step", "randn"),
        rule="x' = a x + a_base base + sum b_i h_i + c_x0 x0 + c_u u + sum d_k noise_k",
        variants={
            "deterministic": {},
            "clipped": {"clip": True},
            "one noise": {"noises": 1},
            "everything": {"models": 3, "base": True, "history": 4, "noises": 3, "clip": True, "index": True},
        },
        differentiable=("x", "models", "base", "history"),
    )
)
