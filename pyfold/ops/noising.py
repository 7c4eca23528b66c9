"""Noising and the denoising loss: one pass over memory each, noise made on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold.ops._autograd import Differentiable, functorch_active
from pyfold.ops._checks import (
    as_seeds,
    check_batched,
    check_choice,
    check_lower_dtype,
    check_same,
    check_tensor,
    check_window,
    counter,
    is_finite,
)
from pyfold.ops._declare import Op, declare
from pyfold.ops._segments import Segments, is_segmented, last_dimension
from pyfold.ops._tensors import accumulation, normal, per_sample, sample_rows, sample_seeds
from pyfold.ops.noise import TRAINING_STREAM, randn
from pyfold.ops.noise import _reference as _noise

#: Columns of a noising table; the kernels' own list.
NOISING_COLUMNS: tuple[str, ...] = tuple(_C.NOISING_COLUMNS)
_COLUMN = {name: i for i, name in enumerate(NOISING_COLUMNS)}

#: What a network can be trained to predict: (coefficient of x0, coefficient of epsilon) from alpha and sigma.
TARGETS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "epsilon": lambda alpha, sigma: (0.0, 1.0),
    "x0": lambda alpha, sigma: (1.0, 0.0),
    "v": lambda alpha, sigma: (-sigma, alpha),
    "flow": lambda alpha, sigma: (-1.0, 1.0),
}


#: One of them, or its coefficients, each a number or a tensor [B].
Target = str | tuple[float | torch.Tensor, float | torch.Tensor]
#: Of a sample: a number, or a tensor of one or of each sample's; or of each part of it, with ones where it stays the same.
Coefficient = float | torch.Tensor


def _factors(target: str) -> tuple[float, ...]:
    """A target, which is linear, as the factors of 1, alpha and sigma: three for x0, three for epsilon."""
    at_zero, at_alpha, at_sigma = (TARGETS[target](*where) for where in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    return tuple(v for z, a, s in zip(at_zero, at_alpha, at_sigma, strict=True) for v in (z, a - z, s - z))


_FACTORS = {target: _factors(target) for target in TARGETS}
_NAMED = {factors: target for target, factors in _FACTORS.items()}


# --- noising tables


#: What a table is made from: alpha, sigma, weight, and a target's factors or its two coefficients.
Coefficients = tuple[Coefficient, Coefficient, Coefficient, tuple[Any, ...]]


def _coefficients(alpha: Any, sigma: Any, weight: Any, target: Any) -> Coefficients:
    if type(target) is str:
        factors = _FACTORS.get(target)
        if factors is not None:
            return alpha, sigma, weight, factors
        check_choice("target", target, TARGETS)
    if not isinstance(target, tuple) or len(target) != 2:
        raise TypeError(f"target must be a name or a pair (of x0, of epsilon), got {type(target).__name__}")
    return alpha, sigma, weight, target


def _check_coefficient(name: str, value: Any, samples: int, device: torch.device) -> None:
    if isinstance(value, torch.Tensor):
        check_tensor(name, value)
        if value.dim() > 1 or value.numel() not in (1, samples):
            raise ValueError(f"{name} must be a number or have shape ({samples},), got shape {tuple(value.shape)}")
        if value.device != device:
            raise ValueError(f"{name} must be on device {device}, got {value.device}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    elif not is_finite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _noising_table(coefficients: Any, x0: torch.Tensor) -> torch.Tensor:
    """The float64 table [samples, 5] of coefficients; see ``NOISING_COLUMNS``. A table is given back as it is."""
    if isinstance(coefficients, torch.Tensor):
        return coefficients
    samples, device = x0.shape[0], x0.device
    if device.type == "cpu" and not is_compiling():
        table = torch.empty(samples, len(NOISING_COLUMNS), dtype=torch.float64)
        if _C.noising_table(table, coefficients):
            return table
    alpha, sigma, weight, target = coefficients
    given = {"alpha": alpha, "sigma": sigma, "weight": weight}
    if len(target) == 2:
        given |= {"target[0]": target[0], "target[1]": target[1]}
    for name, value in given.items():
        _check_coefficient(name, value, samples, device)
    # Reading values of a CUDA tensor would wait for the device, so only a CPU's are looked into.
    if device.type == "cpu" and not is_compiling() and not functorch_active():
        for name, value in given.items():
            if isinstance(value, torch.Tensor) and not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} must be finite, got {value}")
    values = [v.detach().double().reshape(-1) if isinstance(v, torch.Tensor) else v for v in given.values()]
    alpha, sigma, weight, *pair = values
    columns = (alpha, sigma, *(pair or TARGETS[_NAMED[target]](alpha, sigma)), weight)
    return torch.stack([_column(c, samples, device) for c in columns], 1)


def _column(value: Any, samples: int, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.expand(samples)
    return torch.full((samples,), value, dtype=torch.float64, device=device)


def _column_of(rows: torch.Tensor, name: str, like: torch.Tensor) -> torch.Tensor:
    """A column of the samples' rows against [B, ...], in the accumulation type."""
    return per_sample(rows[:, _COLUMN[name]], like).to(accumulation(like.dtype))


# --- add_noise

# Operands: x0, table, index, seeds, streams, positions, stream, step, offset, global_shape, out, target.


def _prepare_add_noise(x0: torch.Tensor, table: Any, *operands: Any) -> tuple[Any, ...]:
    return x0, _noising_table(table, x0), *operands


def _add_noise_save(ctx: Any, args: Any, output: Any) -> None:
    x0, table, index = args[:3]
    ctx.save_for_backward(table, index)
    ctx.dtype = x0.dtype


def _add_noise_backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
    table, index = ctx.saved_tensors
    rows = sample_rows(table, index, grads[0].shape[0])
    gradient: Any = 0
    for column, grad in zip(("alpha", "target_x0"), grads, strict=False):
        gradient = gradient + _column_of(rows, column, grad) * grad
    return gradient.to(ctx.dtype), *[None] * 11


def _stack_batches(info: Any, in_dims: Any, tensors: Any, shared: Any) -> tuple[list[Any], list[Any]]:
    """Under vmap: (B, ...) tensors with a batch of their own become (V * B, ...), shared ones of each sample are repeated."""
    size = info.batch_size

    def merge(tensor: Any, dim: Any) -> Any:
        if tensor is None:
            return None
        tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return tensor.reshape(-1, *tensor.shape[2:])

    return [merge(t, d) for t, d in zip(tensors, in_dims, strict=True)], [merge(t, None) for t in shared]


def _each_sample(counters: Any, samples: int) -> Any:
    return None if counters is None else counters.expand(samples)


def _shared(samples: int, table: Any, index: Any, seeds: Any, streams: Any, positions: Any) -> list[Any]:
    """What the samples of a batch share under vmap, one entry a sample."""
    rows = sample_rows(table, index, samples).contiguous()
    return [rows, seeds, _each_sample(streams, samples), _each_sample(positions, samples)]


def _add_noise_vmap(info: Any, in_dims: Any, x0: Any, table: Any, index: Any, *operands: Any) -> Any:
    if any(dim is not None for dim in in_dims[1:6]):
        raise ValueError("under vmap only x0 of add_noise may be batched")
    samples = x0.shape[0] if in_dims[0] is None else x0.movedim(in_dims[0], 0).shape[1]
    shared = _shared(samples, table, index, *operands[:3])
    (x0,), (rows, *noise) = _stack_batches(info, in_dims[:1], [x0], shared)
    result = _add_noise(x0, rows, None, *noise, *operands[3:])

    def split(value: torch.Tensor) -> torch.Tensor:
        return value.reshape(info.batch_size, samples, *value.shape[1:])

    return (tuple(map(split, result)), (0, 0)) if isinstance(result, tuple) else (split(result), 0)


def _combination(rows: torch.Tensor, columns: tuple[str, str], x0: torch.Tensor, noise: Any) -> torch.Tensor:
    """Two columns of a noising table times x0 and eps, in torch operations; noise: its operands, or eps."""
    of_x0, of_epsilon = (_column_of(rows, column, x0) for column in columns)
    result = of_x0 * x0.to(of_x0.dtype)
    if isinstance(noise, torch.Tensor):
        return result + of_epsilon * noise
    return result if noise[0] is None else result + of_epsilon * _epsilon(x0, noise)


def _epsilon(x0: torch.Tensor, noise: Any) -> torch.Tensor:
    seeds, streams, positions, stream, step, offset, global_shape = noise
    return randn(
        seeds, x0.shape[1:], stream=stream if streams is None else streams, step=step if positions is None else positions,
        dtype=accumulation(x0.dtype), offset=offset or None, global_shape=global_shape or None,
    )  # fmt: skip


def _add_noise_composed(x0: Any, table: Any, index: Any, *operands: Any) -> Any:
    *noise, out, target = operands
    return _composed(x0, sample_rows(table, index, x0.shape[0]), noise, out, target)


def _composed(x0: Any, rows: Any, noise: Any, out: Any, target: Any) -> Any:
    dtype = out if isinstance(out, torch.dtype) else x0.dtype
    x_t = _combination(rows, ("alpha", "sigma"), x0, noise).to(dtype)
    if target is None:
        return x_t
    return x_t, _combination(rows, ("target_x0", "target_epsilon"), x0, noise).to(dtype)


_add_noise = Differentiable(
    "add_noise", _add_noise_save, _add_noise_backward, _add_noise_vmap, 1, _add_noise_composed, _prepare_add_noise
)


def _noise_operands(x0: torch.Tensor, seeds: Any, stream: Any, step: Any, offset: Any, global_shape: Any) -> tuple[Any, ...]:
    """seeds, streams, positions, stream, step, offset, global_shape, as ops take them."""
    if type(seeds) is not torch.Tensor or seeds.dim() == 0:
        seeds = as_seeds(seeds, x0.shape[0], x0.device)
    if type(stream) is int and type(step) is int and offset is None and global_shape is None:
        return seeds, None, None, stream, step, (), ()
    (streams, stream), (positions, step) = counter("stream", stream, len(x0)), counter("step", step, len(x0))
    return seeds, streams, positions, stream, step, *check_window(offset, global_shape, x0.shape[1:])


def _check_state(name: str, value: Any) -> None:
    """What the rest of a call looks at, before an op checks all."""
    check_batched(name, check_tensor(name, value))


def add_noise(
    x0: torch.Tensor,
    alpha: Coefficient,
    sigma: Coefficient,
    seeds: torch.Tensor | Sequence[int] | int,
    *,
    target: Target | None = None,
    stream: int | torch.Tensor = TRAINING_STREAM,
    step: int | torch.Tensor = 0,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
    offset: Sequence[int] | None = None,
    global_shape: Sequence[int] | None = None,
) -> Any:
    """The forward process ``x_t = alpha[b] x0 + sigma[b] eps`` (Kingma et al. 2021, eq. 1), and its training target.

    ``eps = pyfold.randn(seeds, x0.shape[1:], stream=stream, step=step)`` is made on the way and never stored.

    Args:
        x0: [B, ...], float32, float64, bfloat16 or float16, any strides.
        alpha, sigma: a number, or a float tensor [B]; or one that differs within samples, shaped like ``x0`` with ones in the
            dimensions in which it stays the same ([B, 1, frames, 1, 1], [B, tokens, 1]): docs/sampling.md.
        seeds: int64 [B], or ints of 64 bits as in :func:`pyfold.randn`; one int gives all samples the same noise.
        target: also return what a network is trained on, for :func:`pyfold.mse_loss`: "epsilon" (eps), "x0", "v"
            (``alpha eps - sigma x0``, Salimans and Ho 2022), "flow" (``eps - x0``, Liu et al. 2022), or a pair of
            coefficients, ``target[0] x0 + target[1] eps``, each like ``alpha``.
        stream, step, offset, global_shape: as in :func:`pyfold.randn`.
        dtype: of the results, by default that of ``x0``; a float32 ``x0`` may give a bfloat16 or float16 model input.
        out: written and returned as x_t; may be ``x0``, and else must not overlap it. No gradient flows then.

    Returns:
        x_t, or (x_t, target) where ``target`` is given. Differentiable in ``x0``, any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.

    Example:
        >>> x, seeds = torch.zeros(1, 3), torch.tensor([7])
        >>> torch.equal(add_noise(x, 0.8, 1.0, seeds), pyfold.randn(seeds, (3,), stream=pyfold.ops.TRAINING_STREAM))
        True
    """
    if type(x0) is not torch.Tensor or x0.dim() == 0:
        _check_state("x0", x0)
    coefficients = _coefficients(alpha, sigma, 1.0, "epsilon" if target is None else target)
    noise = _noise_operands(x0, seeds, stream, step, offset, global_shape)
    made: Any = out
    if dtype is not None:
        check_lower_dtype("dtype", dtype, x0)
        if out is None:
            made = dtype
        elif out.dtype != dtype:
            raise TypeError(f"dtype must be that of out, {out.dtype}, got {dtype}")
    run = _add_noise_in_segments if _change_within_samples(coefficients) else _add_noise
    return run(x0, coefficients, None, *noise, made, None if target is None else True)


def _change_within_samples(coefficients: Coefficients) -> bool:
    alpha, sigma, weight, target = coefficients
    of_target = len(target) == 2 and (is_segmented(target[0]) or is_segmented(target[1]))
    return of_target or is_segmented(alpha) or is_segmented(sigma) or is_segmented(weight)


def _segments(x0_name: str, x0: torch.Tensor, coefficients: Coefficients, noise: Any) -> tuple[Segments, Coefficients]:
    """The segments of samples, and each one's coefficients."""
    alpha, sigma, weight, target = coefficients
    named = {"alpha": alpha, "sigma": sigma, "weight": weight}
    if len(target) == 2:
        named |= {"target[0]": target[0], "target[1]": target[1]}
    last = 0
    for name, value in named.items():
        if isinstance(value, torch.Tensor) and is_segmented(value):
            last = max(last, last_dimension(name, value, x0_name, x0))
        else:
            _check_coefficient(name, value, x0.shape[0], x0.device)
    segments = Segments(x0, last, *noise[5:])
    alpha, sigma, weight, *pair = map(segments.of_each, named.values())
    return segments, (alpha, sigma, weight, tuple(pair) or target)


def _add_noise_in_segments(x0: torch.Tensor, coefficients: Coefficients, index: None, *operands: Any) -> Any:
    *noise, out, target = operands
    segments, of_segments = _segments("x0", x0, coefficients, noise)
    flat, written = segments.flatten(x0), segments.output("out", out, "x0", x0)
    if segments.aligned:
        made = _add_noise(flat, of_segments, None, *segments.noise_operands(noise), written, target)
    elif isinstance(out, torch.Tensor):
        raise ValueError(f"out= cannot be used with segments of {segments.size} elements, which is no multiple of 4")
    else:
        eps = segments.flatten(_epsilon(x0, noise))
        made = _composed(flat, _noising_table(of_segments, flat), eps, out, target)
    results = [each.unflatten(0, segments.sizes) for each in (made if isinstance(made, tuple) else (made,))]
    if isinstance(out, torch.Tensor):
        results[0] = out
    return results[0] if target is None else tuple(results)


def _noise_like(like: torch.Tensor, seeds: torch.Tensor, **noise: Any) -> torch.Tensor:
    return _noise(seeds, like.shape[1:], **noise).to(like.dtype)


def _add_noise_reference(
    x0: Any, alpha: Any, sigma: Any, seeds: Any, *, target: Any = None, stream: Any = TRAINING_STREAM, step: Any = 0,
    offset: Any = None, global_shape: Any = None, **_: Any,
) -> Any:  # fmt: skip
    eps = _noise_like(x0, seeds, stream=stream, step=step, offset=offset, global_shape=global_shape)
    alpha, sigma = (per_sample(torch.as_tensor(c, dtype=x0.dtype), x0) for c in (alpha, sigma))
    x_t = alpha * x0 + sigma * eps
    if target is None:
        return x_t
    if isinstance(target, tuple):
        of_x0, of_epsilon = (per_sample(torch.as_tensor(c, dtype=x0.dtype), x0) for c in target)
        return x_t, of_x0 * x0 + of_epsilon * eps
    return x_t, {"epsilon": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[target]


# --- denoising_loss

# Three linear maps of the residual r = prediction - target are closed under differentiation:
#   loss_b = weight_b mean_i r_i^2,  scale(s)_bi = s_b weight_b r_bi,  dot(u)_b = sum_i weight_b u_bi r_bi.
# Each makes the noise again from the seeds; none of them stores it.
# Operands: x0, prediction, (scale or cotangent,) table, index, seeds, streams, positions, stream, step, offset, global_shape.


def _residual_gradients(rows: Any, weight: Any, cotangent: Any, x0: Any, prediction: Any, needs: Any) -> tuple[Any, Any]:
    """Gradients in x0 and prediction of sum_bi weight_b cotangent_bi r_bi, for a weight without the row's own."""
    of_sample = weight * rows[:, _COLUMN["weight"]].to(weight.dtype)
    scaled = cotangent.to(accumulation(x0.dtype)) * per_sample(of_sample, x0)
    to_x0 = (scaled * -_column_of(rows, "target_x0", x0)).to(x0.dtype) if needs[0] else None
    return to_x0, scaled.to(prediction.dtype) if needs[1] else None


def _save_residual(count: int) -> Callable[..., None]:
    def save(ctx: Any, args: Any, output: Any) -> None:
        # The tensors a call was given, the noise not among them; tables and seeds are one row and one word a sample.
        ctx.save_for_backward(*args[: count + 5])
        ctx.counters = args[count + 5 :]

    return save


def _vmap_residual(count: int, run: Callable[..., Any]) -> Callable[..., Any]:
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        tensors, (table, index, *noise), counters = args[:count], args[count : count + 5], args[count + 5 :]
        if any(dim is not None for dim in in_dims[count : count + 5]):
            raise ValueError("under vmap only the tensors of denoising_loss may be batched, not its coefficients or seeds")
        samples = tensors[0].shape[0] if in_dims[0] is None else tensors[0].movedim(in_dims[0], 0).shape[1]
        stacked, (rows, *noise) = _stack_batches(info, in_dims[:count], tensors, _shared(samples, table, index, *noise))
        result = run(*stacked, rows, None, *noise, *counters)
        return result.reshape(info.batch_size, samples, *result.shape[1:]), 0

    return vmap


def _prepare_loss(x0: torch.Tensor, prediction: torch.Tensor, table: Any, *operands: Any) -> tuple[Any, ...]:
    return x0, prediction, _noising_table(table, x0), *operands


def _loss_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x0, prediction, table, index, *noise = ctx.saved_tensors
    operands = table, index, *noise, *ctx.counters
    count = max(prediction.numel() // max(prediction.shape[0], 1), 1)
    gradient = _residual_scale(x0, prediction, _as_scale(grad * (2 / count), x0), *operands)
    to_x0 = None
    if ctx.needs_input_grad[0]:
        rows = sample_rows(table, index, x0.shape[0])
        to_x0 = (gradient * -_column_of(rows, "target_x0", x0)).to(x0.dtype)
    return to_x0, gradient, *[None] * len(operands)


def _as_scale(scale: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    return scale.to(accumulation(x0.dtype)).contiguous()


def _scale_backward(ctx: Any, cotangent: torch.Tensor) -> tuple[Any, ...]:
    x0, prediction, scale, table, index, *noise = ctx.saved_tensors
    operands = table, index, *noise, *ctx.counters
    needs = ctx.needs_input_grad
    rows = sample_rows(table, index, x0.shape[0])
    to_scale = _residual_dot(x0, prediction, cotangent, *operands).to(scale.dtype) if needs[2] else None
    return *_residual_gradients(rows, scale, cotangent, x0, prediction, needs), to_scale, *[None] * len(operands)


def _dot_backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    x0, prediction, cotangent, table, index, *noise = ctx.saved_tensors
    operands = table, index, *noise, *ctx.counters
    needs = ctx.needs_input_grad
    rows = sample_rows(table, index, x0.shape[0])
    to_cotangent = None
    if needs[2]:
        to_cotangent = _residual_scale(x0, prediction, _as_scale(grad, x0), *operands).to(cotangent.dtype)
    return *_residual_gradients(rows, grad, cotangent, x0, prediction, needs), to_cotangent, *[None] * len(operands)


def _loss_composed(x0: Any, prediction: Any, table: Any, index: Any, *noise: Any) -> torch.Tensor:
    return _composed_loss(x0, prediction, sample_rows(table, index, x0.shape[0]), noise)


def _composed_loss(x0: torch.Tensor, prediction: torch.Tensor, rows: torch.Tensor, noise: Any) -> torch.Tensor:
    target = _combination(rows, ("target_x0", "target_epsilon"), x0, noise)
    square = (prediction.to(target.dtype) - target).square()
    return rows[:, _COLUMN["weight"]].to(square.dtype) * square.reshape(square.shape[0], math.prod(square.shape[1:])).mean(1)


_denoising_loss: Differentiable = Differentiable(
    "denoising_loss", _save_residual(2), _loss_backward, _vmap_residual(2, lambda *args: _denoising_loss(*args)), 2,
    _loss_composed, _prepare_loss,
)  # fmt: skip
_residual_scale: Differentiable = Differentiable(
    "denoising_residual_scale", _save_residual(3), _scale_backward,
    _vmap_residual(3, lambda *args: _residual_scale(*args)), 3,
)  # fmt: skip
_residual_dot: Differentiable = Differentiable(
    "denoising_residual_dot", _save_residual(3), _dot_backward, _vmap_residual(3, lambda *args: _residual_dot(*args)), 3
)


def _loss(x0_name: str, x0: torch.Tensor, prediction: torch.Tensor, coefficients: Coefficients, noise: Any) -> torch.Tensor:
    if not _change_within_samples(coefficients):
        return _denoising_loss(x0, prediction, coefficients, None, *noise)  # type: ignore[no-any-return]
    segments, of_segments = _segments(x0_name, x0, coefficients, noise)
    check_same("prediction", check_tensor("prediction", prediction), x0_name, x0)
    if segments.count == 0:
        return x0.new_full((x0.shape[0],), math.nan, dtype=accumulation(x0.dtype))
    flat, of_prediction = segments.flatten(x0), segments.flatten(prediction)
    if noise[0] is None or segments.aligned:
        return segments.mean(_denoising_loss(flat, of_prediction, of_segments, None, *segments.noise_operands(noise)))
    eps = segments.flatten(_epsilon(x0, noise))
    return segments.mean(_composed_loss(flat, of_prediction, _noising_table(of_segments, flat), eps))


def denoising_loss(
    prediction: torch.Tensor,
    x0: torch.Tensor,
    alpha: Coefficient,
    sigma: Coefficient,
    seeds: torch.Tensor | Sequence[int] | int,
    *,
    target: Target = "epsilon",
    weight: Coefficient | None = None,
    stream: int | torch.Tensor = TRAINING_STREAM,
    step: int | torch.Tensor = 0,
    offset: Sequence[int] | None = None,
    global_shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """Each sample's weighted mean square error of a denoiser (Ho et al. 2020, eq. 14; Kingma and Gao 2023).

    ``loss[b] = weight[b] mean_i (prediction[b, i] - target[b, i])**2`` with the target of :func:`pyfold.add_noise` for the
    same arguments. Noise and target are made again from the seeds, in forward and in backward; neither is stored.
    :func:`pyfold.mse_loss` of the target that ``add_noise`` returned is the same loss for one tensor more: faster on a CPU,
    where noise costs more than memory does.

    Args:
        prediction: the network's output, [B, ...]; bfloat16 or float16 may go with a float32 ``x0``.
        x0: the clean samples, [B, ...].
        alpha, sigma, seeds, target, stream, step, offset, global_shape: as given to ``add_noise``.
        weight: a number, or a float tensor like ``alpha`` that is not differentiated. The mean is of all that it weighs.

    Returns:
        [B], float32, or float64 for float64 samples. Twice (and more) differentiable in ``prediction`` and ``x0``.
        Summed in a fixed order: the same bits for any number of threads.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    if type(x0) is not torch.Tensor or x0.dim() == 0:
        _check_state("x0", x0)
    if isinstance(prediction, torch.Tensor) and prediction.device != x0.device:
        raise ValueError(f"prediction must be on the device of x0, {x0.device}, got {prediction.device}")
    coefficients = _coefficients(alpha, sigma, 1.0 if weight is None else weight, target)
    noise = _noise_operands(x0, seeds, stream, step, offset, global_shape)
    return _loss("x0", x0, prediction, coefficients, noise)


def mse_loss(prediction: torch.Tensor, target: torch.Tensor, *, weight: Coefficient | None = None) -> torch.Tensor:
    """Each sample's weighted mean square error: ``loss[b] = weight[b] mean_i (prediction[b, i] - target[b, i])**2``.

    Like ``torch.nn.functional.mse_loss`` for each sample, in one pass, and remembering its two arguments alone.

    Args:
        prediction: [B, ...]; bfloat16 or float16 may go with a float32 ``target``.
        target: [B, ...], float32, float64, bfloat16 or float16, any strides; as :func:`pyfold.add_noise` returns it, or any.
        weight: a number, or a float tensor that is not differentiated, as in :func:`pyfold.denoising_loss`.

    Returns:
        [B], float32, or float64 for float64 targets. Differentiable any number of times in ``prediction`` and ``target``.
        Summed in a fixed order: the same bits for any number of threads.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    if type(target) is not torch.Tensor or target.dim() == 0:
        _check_state("target", target)
    if isinstance(prediction, torch.Tensor) and prediction.device != target.device:
        raise ValueError(f"target must be on the device of prediction, {prediction.device}, got {target.device}")
    # The denoising loss of x0, which asks for no noise.
    coefficients = (0.0, 0.0, 1.0 if weight is None else weight, _FACTORS["x0"])
    noise = None, None, None, 0, 0, (), ()
    return _loss("target", target, prediction, coefficients, noise)


def _mse_loss_reference(prediction: Any, target: Any, *, weight: Any = None) -> torch.Tensor:
    square = (prediction.to(target.dtype) - target) ** 2
    weight = 1.0 if weight is None else weight
    loss: torch.Tensor = weight * square.reshape(square.shape[0], math.prod(square.shape[1:])).mean(1)
    return loss


def _denoising_loss_reference(
    prediction: Any, x0: Any, alpha: Any, sigma: Any, seeds: Any, *, target: Any = "epsilon", weight: Any = None, **noise: Any
) -> torch.Tensor:
    _, aim = _add_noise_reference(x0, alpha, sigma, seeds, target=target, **noise)
    return _mse_loss_reference(prediction, aim, weight=weight)


# --- declarations


def _batch(
    shape: Sequence[int], device: torch.device, generator: torch.Generator, keys: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    seeds = sample_seeds(shape[0], device, generator, keys)
    alpha = torch.rand(shape[0], generator=generator, dtype=torch.float64).to(device)
    return seeds, alpha, (1 - alpha**2).sqrt()


def _noising_sample(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator, **variant: Any
) -> dict[str, Any] | None:
    if len(shape) == 0:
        return None
    seeds, alpha, sigma = _batch(shape, device, generator, variant.pop("keys", False))
    x0 = normal(shape, dtype, device, generator)
    return {"x0": x0, "alpha": alpha, "sigma": sigma, "seeds": seeds, **variant}


def _loss_sample(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator, **variant: Any
) -> dict[str, Any] | None:
    sample = None if math.prod(shape[1:]) == 0 else _noising_sample(shape, dtype, device, generator, **variant)
    return None if sample is None else {"prediction": normal(shape, dtype, device, generator), **sample}


def _mse_sample(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator, *, weight: float | None = None
) -> dict[str, Any] | None:
    if len(shape) == 0 or math.prod(shape[1:]) == 0:
        return None
    prediction, target = (normal(shape, dtype, device, generator) for _ in range(2))
    if weight is None:
        return {"prediction": prediction, "target": target}
    of_sample = torch.rand(shape[0], generator=generator, dtype=torch.float64).to(device)
    return {"prediction": prediction, "target": target, "weight": weight * of_sample}


declare(
    Op(
        name="add_noise",
        public=add_noise,
        reference=_add_noise_reference,
        sample=_noising_sample,
        tensors=("x0",),
        raw=("add_noise",),
        rule="x_t = alpha x0 + sigma eps; target: eps, x0, alpha eps - sigma x0, eps - x0",
        variants={
            "default": {},
            **{target: {"target": target} for target in TARGETS},
            "pair": {"target": (0.3, -1.2)},
            "keys": {"keys": True, "target": "v"},
        },
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
        variants={**{target: {"target": target} for target in TARGETS}, "weighted": {"weight": 0.37, "step": 5, "keys": True}},
        differentiable=("prediction", "x0"),
        saved_bytes=lambda prediction, x0, **_: 0,
    )
)
declare(
    Op(
        name="mse_loss",
        public=mse_loss,
        reference=_mse_loss_reference,
        sample=_mse_sample,
        tensors=("prediction", "target"),
        raw=("denoising_loss", "denoising_residual_dot", "denoising_residual_scale"),
        rule="loss_b = weight_b mean_i (prediction - target)^2",
        variants={"default": {}, "weighted": {"weight": 0.7}},
        differentiable=("prediction", "target"),
        saved_bytes=lambda prediction, target, **_: 0,
    )
)
