"""Noising, the denoising loss and the sampler step: one pass over memory each, noise made on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pyfold import _C
from pyfold.ops._autograd import Differentiable, functorch_active
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
    is_finite,
)
from pyfold.ops._declare import Op, declare
from pyfold.ops.noise import SAMPLER_STREAM, TRAINING_STREAM, randn

#: Columns of a noising table, and of a sampler's; the kernels' own lists.
NOISING_COLUMNS: tuple[str, ...] = tuple(_C.NOISING_COLUMNS)
AFFINE_STEP_COLUMNS: tuple[str, ...] = tuple(_C.AFFINE_STEP_COLUMNS)
_STEP_DEFAULTS = {"g1": 1.0, "c_in": 1.0, "clip_min": -math.inf, "clip_max": math.inf}
_STEP = {name: i for i, name in enumerate(AFFINE_STEP_COLUMNS)}

#: What a network can be trained to predict: (coefficient of x0, coefficient of epsilon) from alpha and sigma.
TARGETS = {
    "epsilon": lambda alpha, sigma: (0.0, 1.0),
    "x0": lambda alpha, sigma: (1.0, 0.0),
    "v": lambda alpha, sigma: (-sigma, alpha),
    "flow": lambda alpha, sigma: (-1.0, 1.0),
}


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _per_sample(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] against [B, ...]."""
    return value.reshape(-1, *[1] * (like.dim() - 1))


# --- noising tables


def _check_coefficient(name: str, value: Any, samples: int, device: torch.device) -> None:
    if isinstance(value, torch.Tensor):
        check_tensor(name, value)
        if value.dim() > 1 or value.numel() not in (1, samples):
            raise ValueError(f"{name} must be a number or have shape ({samples},), got shape {tuple(value.shape)}")
        if value.device != device:
            raise ValueError(f"{name} must be on device {device}, got {value.device}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")


def noising_table(
    alpha: float | torch.Tensor,
    sigma: float | torch.Tensor,
    *,
    target: str | None = "epsilon",
    weight: float | torch.Tensor = 1.0,
    samples: int,
    device: torch.device,
) -> torch.Tensor:
    """The float64 table [samples, 5] that ``add_noise`` and ``denoising_loss`` read; see ``NOISING_COLUMNS``."""
    if target is not None:
        check_choice("target", target, TARGETS)
    given = {"alpha": alpha, "sigma": sigma, "weight": weight}
    for name, value in given.items():
        _check_coefficient(name, value, samples, device)
    given = {name: v.detach().double().reshape(-1) if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    of_x0, of_epsilon = TARGETS[target or "epsilon"](given["alpha"], given["sigma"])
    columns = (given["alpha"], given["sigma"], of_x0, of_epsilon, given["weight"])
    table = torch.stack([_column(c, samples, device) for c in columns], 1)
    # Reading values of a CUDA tensor would wait for the device, so only a CPU's are looked into.
    looked_into = device.type == "cpu" and not torch.compiler.is_compiling() and not functorch_active()
    for name, value in given.items():
        if not isinstance(value, torch.Tensor) and not is_finite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    if looked_into and not math.isfinite(float(table.sum())):
        for name, value in given.items():
            if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite, got {value}")
    return table


def _column(value: Any, samples: int, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.expand(samples)
    return torch.full((samples,), value, dtype=torch.float64, device=device)


# --- add_noise


def _add_noise_forward(x0, table, index, seeds, stream, step, offset, global_shape, dtype, want_target, out):
    if out is None:
        out = torch.empty_like(x0, dtype=dtype)
    target = torch.empty_like(out) if want_target else None
    torch.ops.pyfold.add_noise(x0, table, index, seeds, stream, step, offset, global_shape, out, target)
    return (out, target) if want_target else out


def _add_noise_save(ctx, args, output):
    x0, table, index = args[:3]
    ctx.save_for_backward(table, index)
    ctx.dtype = x0.dtype
    if args[-1] is not None:
        raise ValueError("out= cannot be used where x0 needs a gradient")


def _rows(table, index, samples):
    if index is not None:
        table = table[index.reshape(-1)]
    return table.expand(samples, -1)


def _add_noise_backward(ctx, *grads):
    table, index = ctx.saved_tensors
    rows = _rows(table, index, grads[0].shape[0])
    gradient = 0
    for column, grad in zip((0, 2), grads, strict=False):
        gradient = gradient + _per_sample(rows[:, column], grad).to(_accumulation(grad.dtype)) * grad
    return gradient.to(ctx.dtype), *[None] * 10


def _stack_batches(info, in_dims, tensors, per_sample):
    """Under vmap: (B, ...) tensors with a batch of their own become (V * B, ...), shared per-sample ones are repeated."""
    size = info.batch_size

    def merge(tensor, dim):
        if tensor is None:
            return None
        tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return tensor.reshape(-1, *tensor.shape[2:])

    return [merge(t, d) for t, d in zip(tensors, in_dims, strict=True)], [merge(t, None) for t in per_sample]


def _expanded_rows(table, index, samples):
    return _rows(table, index, samples).contiguous()


def _add_noise_vmap(info, in_dims, x0, table, index, seeds, *rest):
    if any(dim is not None for dim in in_dims[1:4]):
        raise ValueError("under vmap only x0 of add_noise may be batched")
    samples = seeds.shape[0]
    (x0,), (rows, seeds) = _stack_batches(info, in_dims[:1], [x0], [_expanded_rows(table, index, samples), seeds])
    result = _add_noise(x0, rows, None, seeds, *rest)
    split = lambda t: t.reshape(info.batch_size, samples, *t.shape[1:])  # noqa: E731
    return (tuple(map(split, result)), (0, 0)) if isinstance(result, tuple) else (split(result), 0)


def _combination(rows, columns, x0, seeds, noise):
    """Two columns of a noising table times x0 and eps, in torch operations."""
    of_x0, of_epsilon = (_per_sample(rows[:, c], x0).to(_accumulation(x0.dtype)) for c in columns)
    stream, step, offset, global_shape = noise
    window = {"offset": offset or None, "global_shape": global_shape or None}
    eps = randn(seeds, x0.shape[1:], stream=stream, step=step, dtype=of_x0.dtype, **window)
    return of_x0 * x0.to(of_x0.dtype) + of_epsilon * eps


def _add_noise_composed(x0, table, index, seeds, stream, step, offset, global_shape, dtype, want_target, out):
    rows, noise = _rows(table, index, x0.shape[0]), (stream, step, offset, global_shape)
    x_t = _combination(rows, (0, 1), x0, seeds, noise).to(dtype)
    return (x_t, _combination(rows, (2, 3), x0, seeds, noise).to(dtype)) if want_target else x_t


_add_noise = Differentiable(
    "AddNoise", _add_noise_forward, _add_noise_save, _add_noise_backward, _add_noise_vmap, _add_noise_composed
)


def add_noise(
    x0: torch.Tensor,
    alpha: float | torch.Tensor,
    sigma: float | torch.Tensor,
    seeds: torch.Tensor | Sequence[int],
    *,
    target: str | None = None,
    stream: int = TRAINING_STREAM,
    step: int = 0,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    offset: Sequence[int] | None = None,
    global_shape: Sequence[int] | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The forward process ``x_t = alpha[b] x0 + sigma[b] eps`` (Kingma et al. 2021, eq. 1), and its training target.

    ``eps = pyfold.randn(seeds, x0.shape[1:], stream=stream, step=step)`` is made on the way and never stored.

    Args:
        x0: [B, ...], float32, float64, bfloat16 or float16, any strides.
        alpha, sigma: a number, or a float tensor [B].
        seeds: int64 [B].
        target: also return what a network is trained on: "epsilon" (eps), "x0", "v" (``alpha eps - sigma x0``, Salimans
            and Ho 2022) or "flow" (``eps - x0``, Liu et al. 2022).
        stream, step, offset, global_shape: as in :func:`pyfold.randn`.
        dtype: of the results, by default that of ``x0``; a float32 ``x0`` may give a bfloat16 or float16 model input.
        out: written and returned as x_t; may be ``x0``.

    Returns:
        x_t, or (x_t, target) where ``target`` is given. Differentiable in ``x0``, any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    check_tensor("x0", x0)
    check_batched("x0", x0)
    seeds = check_seeds(seeds, x0.shape[0], x0.device)
    table = noising_table(alpha, sigma, target=target, samples=x0.shape[0], device=x0.device)
    dtype = _output_dtype("dtype", dtype, out, x0)
    if out is not None:
        check_same("out", check_tensor("out", out), "x0", x0)
    offset, global_shape = check_window(offset, global_shape, x0.shape[1:])
    counters = check_counter("stream", stream), check_counter("step", step)
    return _add_noise(x0, table, None, seeds, *counters, offset, global_shape, dtype, target is not None, out)


def _output_dtype(name, dtype, out, x0):
    if dtype is None:
        dtype = out.dtype if out is not None else x0.dtype
    allowed = (x0.dtype, torch.bfloat16, torch.float16) if x0.dtype == torch.float32 else (x0.dtype,)
    if dtype not in allowed:
        raise TypeError(f"{name} must be {' or '.join(map(str, allowed))} for {x0.dtype} input, got {dtype}")
    return dtype


def _eps(like, seeds, stream, step, offset, global_shape):
    from pyfold.ops import noise

    window = {"offset": offset, "global_shape": global_shape}
    return noise._reference(seeds, like.shape[1:], stream=stream, step=step, **window).to(like.dtype)


def _add_noise_reference(
    x0, alpha, sigma, seeds, *, target=None, stream=TRAINING_STREAM, step=0, offset=None, global_shape=None, **_
):
    eps = _eps(x0, seeds, stream, step, offset, global_shape)
    alpha, sigma = (_per_sample(torch.as_tensor(c, dtype=x0.dtype), x0) for c in (alpha, sigma))
    x_t = alpha * x0 + sigma * eps
    if target is None:
        return x_t
    return x_t, {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[target]


# --- denoising_loss

# Three linear maps of the residual r = prediction - target are closed under differentiation:
#   loss_b = weight_b mean_i r_i^2,  scale(s)_bi = s_b weight_b r_bi,  dot(u)_b = sum_i weight_b u_bi r_bi.
# Each makes the noise again from the seeds; none of them stores it.


def _residual_gradients(rows, weight, cotangent, prediction, x0, needs):
    """Gradients in prediction and x0 of sum_bi weight_b cotangent_bi r_bi, for a weight without the row's own."""
    scaled = cotangent.to(_accumulation(x0.dtype)) * _per_sample(weight * rows[:, 4].to(weight.dtype), cotangent)
    to_x0 = None
    if needs[1]:
        to_x0 = (scaled * _per_sample(-rows[:, 2].to(weight.dtype), scaled)).to(x0.dtype)
    return scaled.to(prediction.dtype) if needs[0] else None, to_x0


def _save_residual(count):
    def save(ctx, args, output):
        # The tensors a call was given, the noise not among them; tables and seeds are one row and one word a sample.
        ctx.save_for_backward(*args[: count + 3])
        ctx.rest = args[count + 3 :]

    return save


def _vmap_residual(count, run):
    def vmap(info, in_dims, *args):
        tensors, (table, index, seeds), rest = args[:count], args[count : count + 3], args[count + 3 :]
        if any(dim is not None for dim in in_dims[count : count + 3]):
            raise ValueError("under vmap only the tensors of denoising_loss may be batched, not its coefficients or seeds")
        samples = seeds.shape[0]
        shared = [_expanded_rows(table, index, samples), seeds]
        tensors, (rows, seeds) = _stack_batches(info, in_dims[:count], tensors, shared)
        result = run(*tensors, rows, None, seeds, *rest)
        return result.reshape(info.batch_size, samples, *result.shape[1:]), 0

    return vmap


# The parameters are spelled out because the compiler counts them.


def _loss_forward(prediction, x0, table, index, seeds, stream, step, offset, global_shape):
    return torch.ops.pyfold.denoising_loss(prediction, x0, table, index, seeds, stream, step, offset, global_shape)


def _loss_backward(ctx, grad):
    prediction, x0, table, index, seeds = ctx.saved_tensors
    count = max(prediction[0].numel(), 1) if prediction.shape[0] else 1
    gradient = _residual_scale(grad * (2 / count), prediction, x0, table, index, seeds, *ctx.rest)
    to_x0 = None
    if ctx.needs_input_grad[1]:
        rows = _rows(table, index, x0.shape[0])
        to_x0 = (gradient * _per_sample(-rows[:, 2].to(_accumulation(x0.dtype)), x0)).to(x0.dtype)
    return gradient, to_x0, *[None] * (3 + len(ctx.rest))


def _scale_forward(scale, prediction, x0, table, index, seeds, stream, step, offset, global_shape):
    scale = scale.to(_accumulation(x0.dtype)).contiguous()
    noise = stream, step, offset, global_shape
    return torch.ops.pyfold.denoising_residual_scale(scale, prediction, x0, table, index, seeds, *noise)


def _scale_backward(ctx, cotangent):
    scale, prediction, x0, table, index, seeds = ctx.saved_tensors
    rows = _rows(table, index, x0.shape[0])
    to_scale = None
    if ctx.needs_input_grad[0]:
        to_scale = _residual_dot(cotangent, prediction, x0, table, index, seeds, *ctx.rest).to(scale.dtype)
    needs = ctx.needs_input_grad[1:3]
    gradients = _residual_gradients(rows, scale, cotangent, prediction, x0, needs)
    return to_scale, *gradients, *[None] * (3 + len(ctx.rest))


def _dot_forward(cotangent, prediction, x0, table, index, seeds, stream, step, offset, global_shape):
    noise = stream, step, offset, global_shape
    return torch.ops.pyfold.denoising_residual_dot(cotangent, prediction, x0, table, index, seeds, *noise)


def _dot_backward(ctx, grad):
    cotangent, prediction, x0, table, index, seeds = ctx.saved_tensors
    rows = _rows(table, index, x0.shape[0])
    to_cotangent = None
    if ctx.needs_input_grad[0]:
        to_cotangent = _residual_scale(grad, prediction, x0, table, index, seeds, *ctx.rest).to(cotangent.dtype)
    needs = ctx.needs_input_grad[1:3]
    gradients = _residual_gradients(rows, grad, cotangent, prediction, x0, needs)
    return to_cotangent, *gradients, *[None] * (3 + len(ctx.rest))


def _loss_composed(prediction, x0, table, index, seeds, stream, step, offset, global_shape):
    rows = _rows(table, index, x0.shape[0])
    target = _combination(rows, (2, 3), x0, seeds, (stream, step, offset, global_shape))
    square = (prediction.to(target.dtype) - target).square()
    return rows[:, 4].to(square.dtype) * square.reshape(square.shape[0], math.prod(square.shape[1:])).mean(1)


_denoising_loss = Differentiable(
    "DenoisingLoss", _loss_forward, _save_residual(2), _loss_backward,
    _vmap_residual(2, lambda *args: _denoising_loss(*args)), _loss_composed,
)  # fmt: skip
_residual_scale = Differentiable(
    "DenoisingResidualScale", _scale_forward, _save_residual(3), _scale_backward,
    _vmap_residual(3, lambda *args: _residual_scale(*args)),
)  # fmt: skip
_residual_dot = Differentiable(
    "DenoisingResidualDot", _dot_forward, _save_residual(3), _dot_backward,
    _vmap_residual(3, lambda *args: _residual_dot(*args)),
)  # fmt: skip


def denoising_loss(
    prediction: torch.Tensor,
    x0: torch.Tensor,
    alpha: float | torch.Tensor,
    sigma: float | torch.Tensor,
    seeds: torch.Tensor | Sequence[int],
    *,
    target: str = "epsilon",
    weight: float | torch.Tensor | None = None,
    stream: int = TRAINING_STREAM,
    step: int = 0,
    offset: Sequence[int] | None = None,
    global_shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """Each sample's weighted mean square error of a denoiser (Ho et al. 2020, eq. 14; Kingma and Gao 2023).

    ``loss[b] = weight[b] mean_i (prediction[b, i] - target[b, i])**2`` with the target of :func:`pyfold.add_noise` for the
    same arguments. Noise and target are made again from the seeds, in forward and in backward; neither is stored.

    Args:
        prediction: the network's output, [B, ...]; bfloat16 or float16 may go with a float32 ``x0``.
        x0: the clean samples, [B, ...].
        alpha, sigma, seeds, target, stream, step, offset, global_shape: as given to ``add_noise``.
        weight: a number, or a float tensor [B] that is not differentiated.

    Returns:
        [B], float32, or float64 for float64 samples. Twice (and more) differentiable in ``prediction`` and ``x0``.
        Summed in a fixed order: the same bits for any number of threads.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    check_tensor("x0", x0)
    check_batched("x0", x0)
    check_same("prediction", check_tensor("prediction", prediction), "x0", x0)
    _output_dtype("prediction", prediction.dtype, None, x0)
    check_choice("target", target, TARGETS)
    seeds = check_seeds(seeds, x0.shape[0], x0.device)
    weight = 1.0 if weight is None else weight
    table = noising_table(alpha, sigma, target=target, weight=weight, samples=x0.shape[0], device=x0.device)
    offset, global_shape = check_window(offset, global_shape, x0.shape[1:])
    counters = check_counter("stream", stream), check_counter("step", step)
    return _denoising_loss(prediction, x0, table, None, seeds, *counters, offset, global_shape)


def _denoising_loss_reference(prediction, x0, alpha, sigma, seeds, *, target="epsilon", weight=None, **noise):
    _, aim = _add_noise_reference(x0, alpha, sigma, seeds, target=target, **noise)
    square = (prediction.to(x0.dtype) - aim) ** 2
    weight = 1.0 if weight is None else weight
    return weight * square.reshape(square.shape[0], math.prod(square.shape[1:])).mean(1)


# --- affine_step


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
    models = [models] if isinstance(models, torch.Tensor) else list(models)
    history = list(history)
    others = (base, out, history_out, x0_out)
    if not _plainly_valid(x, models, history, others, next_input, table, index, seeds):
        seeds = _check_affine_step(x, models, history, others, next_input, table, index, seeds)
        index = None if index is None else index.contiguous()
    stream = check_counter("stream", stream)
    offset, global_shape = check_window(offset, global_shape, x.shape[1:])

    operands = [x, *models, *history, *([] if base is None else [base])]
    if functorch_active() or (torch.is_grad_enabled() and any(t.requires_grad for t in operands)):
        if any(t is not None for t in (out, history_out, next_input, x0_out)):
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


# --- shape rules: every op of this file writes what it is given, but for the losses


@torch.library.register_fake("pyfold::add_noise")
def _(x0, table, index, seeds, stream, step, offset, global_shape, out, target):
    return None


@torch.library.register_fake("pyfold::affine_step")
def _(x, models, base, history, table, index, seeds, stream, offset, global_shape, out, history_out, next_input,
      x0_out):  # fmt: skip
    return None


@torch.library.register_fake("pyfold::denoising_loss")
def _(prediction, x0, table, index, seeds, stream, step, offset, global_shape):
    return x0.new_empty((x0.shape[0],), dtype=_accumulation(x0.dtype))


@torch.library.register_fake("pyfold::denoising_residual_dot")
def _(cotangent, prediction, x0, table, index, seeds, stream, step, offset, global_shape):
    return x0.new_empty((x0.shape[0],), dtype=_accumulation(x0.dtype))


@torch.library.register_fake("pyfold::denoising_residual_scale")
def _(scale, prediction, x0, table, index, seeds, stream, step, offset, global_shape):
    return torch.empty_like(prediction)


# --- declarations


def _normal(shape, dtype, device, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)


def _batch(shape, device, generator):
    seeds = torch.randint(-(2**62), 2**62, (shape[0],), generator=generator).to(device)
    alpha = torch.rand(shape[0], generator=generator, dtype=torch.float64).to(device)
    return seeds, alpha, (1 - alpha**2).sqrt()


def _noising_sample(shape, dtype, device, generator, **variant):
    if len(shape) == 0:
        return None
    seeds, alpha, sigma = _batch(shape, device, generator)
    x0 = _normal(shape, dtype, device, generator)
    return {"x0": x0, "alpha": alpha, "sigma": sigma, "seeds": seeds, **variant}


def _loss_sample(shape, dtype, device, generator, **variant):
    if len(shape) == 0 or math.prod(shape[1:]) == 0:
        return None
    sample = _noising_sample(shape, dtype, device, generator, **variant)
    return {"prediction": _normal(shape, dtype, device, generator), **sample}


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
        name="add_noise",
        public=add_noise,
        reference=_add_noise_reference,
        sample=_noising_sample,
        tensors=("x0",),
        raw=("add_noise",),
        rule="x_t = alpha x0 + sigma eps; target: eps, x0, alpha eps - sigma x0, eps - x0",
        variants={"default": {}, **{target: {"target": target} for target in TARGETS}},
        differentiable=("x0",),
        saved_bytes=lambda x0, **_: 0,
    )
)
declare(
    Op(
        name="denoising_loss",
        public=denoising_loss,
        reference=_denoising_loss_reference,
        sample=_loss_sample,
        tensors=("prediction", "x0"),
        raw=("denoising_loss", "denoising_residual_dot", "denoising_residual_scale"),
        rule="loss_b = weight_b mean_i (prediction - target)^2, target from the seeds",
        variants={**{target: {"target": target} for target in TARGETS}, "weighted": {"weight": 0.37, "step": 5}},
        differentiable=("prediction", "x0"),
        saved_bytes=lambda prediction, x0, **_: 0,
    )
)
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
