"""The sampler step: one pass over memory, noise made on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold.ops._autograd import forward_mode, functorch_active
from pyfold.ops._checks import (
    DEVICES,
    check_batched,
    check_choice,
    check_counter,
    check_device,
    check_index,
    check_same,
    check_seeds,
    check_tensor,
    check_window,
)
from pyfold.ops._declare import Op, declare
from pyfold.ops._tensors import _accumulation, _normal, _output_dtype, _per_sample, _rows, wrote
from pyfold.ops.noise import SAMPLER_STREAM, randn

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


def _plainly_valid(x, models, history, others, next_input, table, index, seeds) -> bool:
    """The quick look that most calls pass; what fails it goes through ``_check_affine_step``, which knows why."""
    if type(x) is not torch.Tensor or x.dtype != torch.float32 or x.layout != torch.strided or not 1 <= x.dim() <= 9:
        return False
    shape, device = x.shape, x.device
    if device.type not in DEVICES or not 1 <= len(models) <= 3 or len(history) > 4:
        return False
    for t in (*models, *history, *others):
        if t is not None and (
            type(t) is not torch.Tensor or t.shape != shape or t.dtype != torch.float32 or t.device != device
        ):
            return False
    return (
        next_input is None
        and type(table) is torch.Tensor
        and table.dtype == torch.float64
        and table.device == device
        and table.dim() == 2
        and table.shape[1] == len(AFFINE_STEP_COLUMNS)
        and (table.shape[0] in (1, shape[0]) if index is None else _is_row(index, shape[0], device))
        and (seeds is None or (type(seeds) is torch.Tensor and seeds.dim() == 1 and _is_row(seeds, shape[0], device, False)))
    )


def _is_row(value, samples, device, one=True) -> bool:
    """A contiguous int64 tensor of one entry for each sample, or one in all."""
    count = value.numel() if type(value) is torch.Tensor and value.dim() <= 1 and value.is_contiguous() else -1
    return (count == samples or (one and count == 1)) and value.dtype == torch.int64 and value.device == device


def _check_affine_step(x, models, history, others, next_input, table, index, seeds):
    base, out, history_out, x0_out = others
    check_tensor("x", x)
    check_batched("x", x)
    if not 1 <= len(models) <= 3:
        raise ValueError(f"models must be 1 to 3 tensors, got {len(models)}")
    if len(history) > 4:
        raise ValueError(f"history must be at most 4 tensors, got {len(history)}")
    for i, model in enumerate(models):
        check_same(f"models[{i}]", check_tensor(f"models[{i}]", model), "x", x)
        _output_dtype(f"models[{i}]", model.dtype, None, x)
    state = [("base", base), ("out", out), ("history_out", history_out), ("x0_out", x0_out)]
    for name, value in [*state, *((f"history[{i}]", h) for i, h in enumerate(history))]:
        if value is not None:
            check_same(name, check_tensor(name, value, (x.dtype,)), "x", x)
    if next_input is not None:
        check_same("next_input", check_tensor("next_input", next_input), "x", x)
        _output_dtype("next_input", next_input.dtype, None, x)
    check_tensor("table", table, (torch.float64,))
    if table.dim() != 2 or table.shape[1] != len(AFFINE_STEP_COLUMNS):
        raise ValueError(f"table must have shape (rows, {len(AFFINE_STEP_COLUMNS)}), got {tuple(table.shape)}")
    check_device("table", table, "x", x)
    check_index(index, x.shape[0], "x", x)
    if index is None and table.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"table must have 1 or {x.shape[0]} rows where index is not given, got {table.shape[0]}")
    if seeds is not None:
        seeds = check_seeds(seeds, x.shape[0], x.device)
    return seeds


def affine_step(
    x: torch.Tensor,
    models: torch.Tensor | Sequence[torch.Tensor],
    table: torch.Tensor,
    index: torch.Tensor | None = None,
    *,
    base: torch.Tensor | None = None,
    history: Sequence[torch.Tensor] = (),
    seeds: torch.Tensor | Sequence[int] | None = None,
    stream: int = SAMPLER_STREAM,
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

    where ``noise(n) = pyfold.randn(seeds, ..., stream=stream, step=n)``. A coefficient of zero drops its term, whatever
    the operand holds.

    Args:
        x: the state, [B, ...]; float32 also where the model runs in bfloat16 or float16. Any strides.
        models: 1 to 3 model outputs shaped like ``x``, of its dtype, or bfloat16/float16 beside a float32 state.
        table: float64 [R, 25] on the device of ``x``, columns ``AFFINE_STEP_COLUMNS`` (:func:`affine_table`).
        index: int64 rows, one or one for each sample, on the device: the step counter. It is never read by the host; a
            sample whose row is not in the table becomes NaN. None takes row b for sample b, or the only row.
        base, history: the base state of a multi-stage step, up to 4 earlier ``u``; shaped like ``x``.
        seeds: int64 [B]; without them there is no noise.
        out: x'; may be ``x``. history_out: u. x0_out: x0. Shaped like ``x``.
        next_input: c_in x', in the model's dtype.

    Returns:
        ``out``, new with the layout of ``x`` if not given. Where a gradient is asked for, the step runs as differentiable
        torch operations instead of the fused kernel, and takes no out=, history_out=, next_input= or x0_out=.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    outputs = out, history_out, next_input, x0_out
    if offset is None and global_shape is None and not is_compiling():
        done = _C.affine_step(x, models, table, index, base, history, seeds, stream, *outputs)
        if done is not None:
            wrote(*outputs)
            return done
    models = [models] if isinstance(models, torch.Tensor) else list(models)
    history = list(history)
    others = (base, out, history_out, x0_out)
    if not _plainly_valid(x, models, history, others, next_input, table, index, seeds):
        seeds = _check_affine_step(x, models, history, others, next_input, table, index, seeds)
        index = None if index is None else index.contiguous()
    stream = check_counter("stream", stream)
    offset, global_shape = check_window(offset, global_shape, x.shape[1:])

    operands = [x, *models, *history, *([] if base is None else [base])]
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in operands)
    if recorded or functorch_active() or forward_mode(operands):
        if any(t is not None for t in outputs):
            raise ValueError("out=, history_out=, next_input= and x0_out= cannot be used where a gradient is needed")
        noise = None
        if seeds is not None:
            noise = _step_noise(x, table, index, seeds, stream, offset or None, global_shape or None)
        return _affine_composed(x, models, table, index, base, history, noise)["out"]
    if out is None:
        out = torch.empty_like(x)
    torch.ops.pyfold.affine_step(
        x, models, base, history, table.contiguous(), index, seeds, stream, offset, global_shape, out, history_out,
        next_input, x0_out,
    )  # fmt: skip
    wrote(*outputs)
    return out


def _affine_composed(x, models, table, index, base, history, noise):
    """The step in torch operations, every output by name; noise(k) gives the k-th noise of each sample."""
    acc = _accumulation(x.dtype)
    rows = _rows(table, index, x.shape[0])

    def c(name):
        return _per_sample(rows[:, _STEP[name]], x).to(acc)

    def term(name, value):
        return torch.where(c(name) == 0, 0, c(name) * value.to(acc))

    e = sum(term(f"g{j + 1}", m) for j, m in enumerate(models))
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


def _step_noise(x, table, index, seeds, stream, offset, global_shape, draw=randn):
    """The k-th noise of each sample. The noise steps are read on the host: this is the slow, differentiable path."""
    steps = _rows(table, index, x.shape[0])[:, [_STEP["n1"], _STEP["n2"], _STEP["n3"]]].to(torch.int64)

    def noise(k):
        window = {"offset": offset, "global_shape": global_shape}
        rows = [
            draw(seeds[b : b + 1], x.shape[1:], stream=stream, step=int(steps[b, k - 1]), **window) for b in range(x.shape[0])
        ]
        return torch.cat(rows).to(_accumulation(x.dtype)) if rows else torch.zeros_like(x)

    return noise


def _affine_reference(x, models, table, index=None, *, base=None, history=(), seeds=None, stream=SAMPLER_STREAM,
                      offset=None, global_shape=None, **_):  # fmt: skip
    from pyfold.ops import noise as noise_ops

    models = [models] if isinstance(models, torch.Tensor) else models
    noise = None
    if seeds is not None:
        noise = _step_noise(x, table, index, seeds, stream, offset, global_shape, draw=noise_ops._reference)
    return _affine_composed(x, models, table, index, base, history, noise)["out"]


# --- shape rule: the op writes what it is given


@torch.library.register_fake("pyfold::affine_step")
def _(x, models, base, history, table, index, seeds, stream, offset, global_shape, out, history_out, next_input,
      x0_out):  # fmt: skip
    return None


# --- declaration


def _step_sample(shape, dtype, device, generator, *, models=1, base=False, history=0, noises=0, clip=False, index=False):
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
        "x": _normal(shape, dtype, device, generator),
        "models": [_normal(shape, dtype, device, generator) for _ in range(models)],
        "table": table if index else table[: shape[0]].contiguous(),
        "history": [_normal(shape, dtype, device, generator) for _ in range(history)],
    }
    if index:
        sample["index"] = torch.randperm(shape[0] + 2, generator=generator)[: shape[0]].to(device)
    if base:
        sample["base"] = _normal(shape, dtype, device, generator)
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
