"""The sampler step: one pass over memory, noise made on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold.ops._autograd import Differentiable
from pyfold.ops._call import RAW
from pyfold.ops._checks import (
    as_seeds,
    check_batched,
    check_choice,
    check_device,
    check_index,
    check_same,
    check_seeds,
    check_tensor,
    check_window,
    counter,
)
from pyfold.ops._declare import Op, declare
from pyfold.ops._segments import Segments, is_segmented, last_dimension
from pyfold.ops._tensors import accumulation, normal, per_sample, sample_rows, sample_seeds
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
        device: where it goes.

    Returns:
        The table.

    Raises:
        ValueError: an unknown name, a NaN, an infinity anywhere but in the clip, a noise counter n1..n3 outside [0, 2**53).
    """
    table = []
    if isinstance(rows, (str, Mapping, torch.Tensor)) or not isinstance(rows, Iterable):
        raise TypeError(f"rows must be a sequence of mappings, got {type(rows).__name__}")
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"rows must be mappings of coefficients, got {type(row).__name__} at {i}")
        for name, value in row.items():
            check_choice(f"rows[{i}]'s coefficient", name, AFFINE_STEP_COLUMNS)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"coefficient {name} of rows[{i}] must be a number, got {type(value).__name__}")
            bounded = name not in ("clip_min", "clip_max")
            if math.isnan(value) or (bounded and math.isinf(value)):
                raise ValueError(f"coefficient {name} of rows[{i}] must be finite, got {value}")
            if name in ("n1", "n2", "n3") and not 0 <= value < 2**53:
                raise ValueError(f"noise counter {name} of rows[{i}] must be in [0, 2**53), got {value}")
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

    where ``noise(n) = pyfold.randn(seeds, ..., stream=stream + 2048 (n div 2**32), step=step + n mod 2**32)``. A coefficient of
    zero drops its term, whatever the operand holds.

    Args:
        x: the state, [B, ...]; float32 also where the model runs in bfloat16 or float16. Any strides.
        models: 1 to 3 model outputs shaped like ``x``, of its dtype, or bfloat16/float16 beside a float32 state.
        table: float64 [R, 25] on the device of ``x``, columns ``AFFINE_STEP_COLUMNS`` (:func:`affine_table`).
        index: int64 rows, one or one for each sample, on the device: the step counter. It is never read by the host; a
            sample whose row is not in the table becomes NaN. None takes row b for sample b, or the only row. One for each
            frame, action or token is shaped like ``x``, with ones in the dimensions in which it stays the same, [B, tokens, 1]
            say: docs/sampling.md.
        base, history: the base state of a multi-stage step, up to 4 earlier ``u``; shaped like ``x``.
        seeds: int64 [B], ints or keys, as in :func:`pyfold.randn`; without them there is no noise.
        stream, step: numbers, or int64 tensors on the device, one or one for each sample.
        out: x'; may be ``x``. history_out: u. x0_out: x0. Shaped like ``x``; none may overlap another operand, unless it is it.
        next_input: c_in x', in the model's dtype.
        offset, global_shape: the part of each sample that ``x`` is, for its noise, as in :func:`pyfold.randn`.

    Returns:
        ``out``, new with the layout of ``x`` if not given. Where a gradient is asked for, the step runs as differentiable
        torch operations instead of the fused kernel, and takes no tensors to write to.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.

    Example:
        >>> table = affine_table([{"a": 1.0, "c_u": -0.5, "s": 1.0, "g1": 1.0}])  # x - m / 2
        >>> affine_step(torch.ones(1, 2), torch.ones(1, 2), table, torch.tensor([0])).tolist()
        [[0.5, 0.5]]
    """
    if type(x) is not torch.Tensor or x.dim() == 0:
        check_batched("x", check_tensor("x", x))
    if seeds is not None and (type(seeds) is not torch.Tensor or seeds.dim() == 0):
        seeds = as_seeds(seeds, x.shape[0], x.device)
    streams = positions = None
    if type(stream) is not int or type(step) is not int:
        (streams, stream), (positions, step) = counter("stream", stream, x.shape[0]), counter("step", step, x.shape[0])
    if offset is not None or global_shape is not None:
        offset, global_shape = check_window(offset, global_shape, x.shape[1:])
    run = _affine_step if index is None or not is_segmented(index) else _step_of_segments
    result: torch.Tensor = run(
        x, models, base, history, table, index, seeds, streams, positions, stream, step, offset or (), global_shape or (),
        out, history_out, next_input, x0_out,
    )  # fmt: skip
    return result


class PreparedStep:
    """:func:`affine_step` for a loop: what stays through it is given once, what changes in each call.

    Args:
        table, seeds, stream, offset, global_shape: as in :func:`affine_step`.

    A call takes the other arguments of :func:`affine_step` but ``step``, by name but for ``x`` and ``models``, and returns the
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
        self._options: dict[str, Any] = {"table": table, "seeds": seeds, "stream": stream}
        self._options |= {"offset": offset, "global_shape": global_shape}
        streams, number = counter("stream", stream)
        fixed = {**self._options, "streams": streams, "positions": None, "stream": number, "step": 0}
        fixed |= {"offset": tuple(offset or ()), "global_shape": tuple(global_shape or ())}
        operands = [fixed.get(operand.name, ...) for operand in RAW["affine_step"].operands]
        self._call = _C.prepare("affine_step", -1, -1, -1, *operands) or (lambda *_, **__: None)

    def __call__(self, x: torch.Tensor, models: torch.Tensor | Sequence[torch.Tensor], **operands: Any) -> torch.Tensor:
        done: torch.Tensor | None = None if is_compiling() else self._call(x, models, **operands)
        return affine_step(x, models, **operands, **self._options) if done is None else done


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


def _step_noise(
    rows: torch.Tensor, draw: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Callable[[int], torch.Tensor]:
    """The k-th noise of each sample; draw(streams, steps) makes noise, given what its counter adds to each."""

    def noise(k: int) -> torch.Tensor:
        values = rows[:, _STEP[f"n{k}"]]
        # What no int64 holds counts as 0, as in the kernels.
        counters = values.where(values.abs() < 2**63, 0.0).to(torch.int64)
        return draw(counters >> 32 << 11, counters & 0xFFFFFFFF)

    return noise


def _affine_composed(x: Any, models: Any, base: Any, history: Any, table: Any, index: Any, *operands: Any) -> torch.Tensor:
    seeds, streams, positions, stream, step, offset, global_shape = operands[:7]
    models = [models] if isinstance(models, torch.Tensor) else models
    _check_operands(x, models, base, history, table)
    if index is not None:
        check_index(index, x.shape[0], "x", x)
    elif table.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"table must have 1 or {x.shape[0]} rows without index, got {table.shape[0]}")
    if seeds is not None:
        check_seeds(seeds, x.shape[0], x.device)
    rows = sample_rows(table, index, x.shape[0])
    noise = None
    if seeds is not None:

        def draw(above: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
            return randn(
                seeds, x.shape[1:], stream=above + (stream if streams is None else streams),
                step=steps + (step if positions is None else positions), dtype=accumulation(x.dtype),
                offset=offset or None, global_shape=global_shape or None,
            )  # fmt: skip

        noise = _step_noise(rows, draw)
    return _composed_outputs(x, models, rows, base, history, noise)["out"]


def _check_operands(x: Any, models: Any, base: Any, history: Any, table: Any) -> None:
    """What the fused kernel's own checks ask of the operands."""
    check_batched("x", check_tensor("x", x))
    for name, values in (("models", models), ("history", history)):
        if not isinstance(values, (list, tuple)):
            raise TypeError(f"{name} must be tensors, got {type(values).__name__}")
        for value in values:
            check_same(name, check_tensor(name, value), "x", x)
    if base is not None:
        check_same("base", check_tensor("base", base), "x", x)
    check_tensor("table", table, (torch.float64,))
    check_device("table", table, "x", x)
    if table.dim() != 2 or table.shape[1] != len(AFFINE_STEP_COLUMNS):
        raise ValueError(f"table must have shape [rows, {len(AFFINE_STEP_COLUMNS)}], got {tuple(table.shape)}")


_affine_step = Differentiable("affine_step", composed=_affine_composed)


# --- steps that differ within a sample

_OUTPUTS = [operand.name for operand in RAW["affine_step"].operands if operand.written]


def _step_of_segments(x: Any, models: Any, base: Any, history: Any, table: Any, index: Any, *operands: Any) -> torch.Tensor:
    noise, outputs = operands[:7], dict(zip(_OUTPUTS, operands[7:], strict=True))
    models = [models] if isinstance(models, torch.Tensor) else models
    _check_operands(x, models, base, history, table)
    check_tensor("index", index, (torch.int64,))
    segments = Segments(x, last_dimension("index", index, "x", x), *noise[5:])
    written = [segments.output(name, out, "x", x) for name, out in outputs.items()]
    index = segments.of_each(index)
    flat, of_base = segments.flatten(x), None if base is None else segments.flatten(base)
    of_models, of_history = ([segments.flatten(tensor) for tensor in tensors] for tensors in (models, history))
    if noise[0] is None or segments.aligned:
        noise = segments.noise_operands(noise)
        made: torch.Tensor = _affine_step(flat, of_models, of_base, of_history, table, index, *noise, *written)
        given: torch.Tensor | None = outputs["out"]
        return torch.unflatten(made, 0, segments.sizes) if given is None else given
    if any(out is not None for out in written):
        raise ValueError(
            f"{', '.join(f'{name}=' for name in outputs)} cannot be used where noise is drawn for segments of {segments.size} "
            f"elements, which is no multiple of 4"
        )
    seeds, streams, positions, stream, step = noise[:5]

    def draw(above: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        streams_, positions_ = (segments.of_each(counter) for counter in (streams, positions))
        return segments.noise(
            seeds, stream=above + (stream if streams_ is None else streams_),
            step=steps + (step if positions_ is None else positions_), dtype=accumulation(x.dtype),
        )  # fmt: skip

    rows = sample_rows(table, index, flat.shape[0])
    made = _composed_outputs(flat, of_models, rows, of_base, of_history, _step_noise(rows, draw))["out"]
    return torch.unflatten(made, 0, segments.sizes)


def _affine_reference(
    x: Any, models: Any, table: Any, index: Any = None, *, base: Any = None, history: Any = (), seeds: Any = None,
    stream: Any = SAMPLER_STREAM, step: Any = 0, offset: Any = None, global_shape: Any = None, **_: Any,
) -> torch.Tensor:  # fmt: skip
    rows = sample_rows(table, index, x.shape[0])
    noise = None
    if seeds is not None:
        window = {"offset": offset, "global_shape": global_shape}
        draw = lambda above, steps: _noise(seeds, x.shape[1:], stream=stream + above, step=steps + step, **window)  # noqa: E731
        noise = _step_noise(rows, draw)
    models = [models] if isinstance(models, torch.Tensor) else models
    return _composed_outputs(x, models, rows, base, history, noise)["out"]


# --- declaration


def _step_sample(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator, *, models: int = 1,
    base: bool = False, history: int = 0, noises: int = 0, clip: bool = False, index: bool = False,
    keys: bool = False,
) -> dict[str, Any] | None:  # fmt: skip
    if len(shape) == 0:
        return None
    rows: list[dict[str, float]] = []
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
        sample["seeds"] = sample_seeds(shape[0], device, generator, keys)
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
            "keys": {"noises": 2, "keys": True},
            "everything": {"models": 3, "base": True, "history": 4, "noises": 3, "clip": True, "index": True},
        },
        differentiable=("x", "models", "base", "history"),
    )
)
