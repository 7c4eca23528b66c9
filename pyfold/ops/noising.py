"""Noising and the denoising loss: one pass over memory each, noise made on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold.ops._autograd import Differentiable, functorch_active
from pyfold.ops._checks import (
    check_batched,
    check_choice,
    check_counter,
    check_same,
    check_seeds,
    check_tensor,
    check_window,
    is_finite,
)
from pyfold.ops._declare import Op, declare
from pyfold.ops._tensors import _accumulation, _normal, _output_dtype, _per_sample, _rows, wrote
from pyfold.ops.noise import TRAINING_STREAM, randn

#: Columns of a noising table; the kernels' own list.
NOISING_COLUMNS: tuple[str, ...] = tuple(_C.NOISING_COLUMNS)

#: What a network can be trained to predict: (coefficient of x0, coefficient of epsilon) from alpha and sigma.
TARGETS = {
    "epsilon": lambda alpha, sigma: (0.0, 1.0),
    "x0": lambda alpha, sigma: (1.0, 0.0),
    "v": lambda alpha, sigma: (-sigma, alpha),
    "flow": lambda alpha, sigma: (-1.0, 1.0),
}


#: One of them, or its coefficients, each a number or a tensor [B].
Target = str | tuple[float | torch.Tensor, float | torch.Tensor]


def _factors(target: str) -> tuple[float, ...]:
    """A target, which is linear, as the factors of 1, alpha and sigma: three for x0, three for epsilon."""
    at_zero, at_alpha, at_sigma = (TARGETS[target](*where) for where in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    return tuple(v for z, a, s in zip(at_zero, at_alpha, at_sigma, strict=True) for v in (z, a - z, s - z))


_FACTORS = {None: _factors("epsilon"), **{target: _factors(target) for target in TARGETS}}


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
    target: Target | None = "epsilon",
    weight: float | torch.Tensor = 1.0,
    samples: int,
    device: torch.device,
) -> torch.Tensor:
    """The float64 table [samples, 5] that ``add_noise`` and ``denoising_loss`` read; see ``NOISING_COLUMNS``."""
    given = {"alpha": alpha, "sigma": sigma, "weight": weight}
    named = target is None or isinstance(target, str)
    if not named:
        if not isinstance(target, tuple) or len(target) != 2:
            raise TypeError(f"target must be a name or a pair (of x0, of epsilon), got {type(target).__name__}")
        given |= {"target[0]": target[0], "target[1]": target[1]}
    elif target is not None:
        check_choice("target", target, TARGETS)
    if named and device.type == "cpu" and not is_compiling():
        table = torch.empty(samples, len(NOISING_COLUMNS), dtype=torch.float64, device=device)
        if _C.noising_table(table, alpha, sigma, weight, _FACTORS[target]) is not None:
            return table
    for name, value in given.items():
        _check_coefficient(name, value, samples, device)
    given = {name: v.detach().double().reshape(-1) if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    alpha, sigma, weight, *pair = given.values()
    columns = (alpha, sigma, *(TARGETS[target or "epsilon"](alpha, sigma) if named else pair), weight)
    table = torch.stack([_column(c, samples, device) for c in columns], 1)
    # Reading values of a CUDA tensor would wait for the device, so only a CPU's are looked into.
    looked_into = device.type == "cpu" and not is_compiling() and not functorch_active()
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
    if index is None and not global_shape and not is_compiling():
        done = _C.add_noise(x0, table, None, seeds, None, stream, step, dtype, out, want_target)
        if done is not None:
            return done
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
    target: Target | None = None,
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
        target: also return what a network is trained on, for :func:`pyfold.mse_loss`: "epsilon" (eps), "x0", "v"
            (``alpha eps - sigma x0``, Salimans and Ho 2022), "flow" (``eps - x0``, Liu et al. 2022), or a pair of
            coefficients, ``target[0] x0 + target[1] eps``, each a number or a float tensor [B].
        stream, step, offset, global_shape: as in :func:`pyfold.randn`.
        dtype: of the results, by default that of ``x0``; a float32 ``x0`` may give a bfloat16 or float16 model input.
        out: written and returned as x_t; may be ``x0``.

    Returns:
        x_t, or (x_t, target) where ``target`` is given. Differentiable in ``x0``, any number of times.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    if offset is None and global_shape is None and not is_compiling():
        factors = _FACTORS.get(target) if target is None or isinstance(target, str) else None
        if factors is not None:
            done = _C.add_noise(x0, alpha, sigma, seeds, factors, stream, step, dtype, out, target is not None)
            if done is not None:
                wrote(out)
                return done
    check_tensor("x0", x0)
    check_batched("x0", x0)
    seeds = check_seeds(seeds, x0.shape[0], x0.device)
    table = noising_table(alpha, sigma, target=target, samples=x0.shape[0], device=x0.device)
    dtype = _output_dtype("dtype", dtype, out, x0)
    if out is not None:
        check_same("out", check_tensor("out", out), "x0", x0)
    offset, global_shape = check_window(offset, global_shape, x0.shape[1:])
    counters = check_counter("stream", stream), check_counter("step", step)
    result = _add_noise(x0, table, None, seeds, *counters, offset, global_shape, dtype, target is not None, out)
    wrote(out)
    return result


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
    if isinstance(target, tuple):
        of_x0, of_epsilon = (_per_sample(torch.as_tensor(c, dtype=x0.dtype), x0) for c in target)
        return x_t, of_x0 * x0 + of_epsilon * eps
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
    if index is None and not global_shape and not is_compiling():
        done = _C.denoising_loss(prediction, x0, table, seeds, stream, step, _accumulation(x0.dtype))
        if done is not None:
            return done
    return torch.ops.pyfold.denoising_loss(prediction, x0, table, index, seeds, stream, step, offset, global_shape)


def _loss_backward(ctx, grad):
    prediction, x0, table, index, seeds = ctx.saved_tensors
    count = max(prediction.numel() // max(prediction.shape[0], 1), 1)
    gradient = _residual_scale(grad * (2 / count), prediction, x0, table, index, seeds, *ctx.rest)
    to_x0 = None
    if ctx.needs_input_grad[1]:
        rows = _rows(table, index, x0.shape[0])
        to_x0 = (gradient * _per_sample(-rows[:, 2].to(_accumulation(x0.dtype)), x0)).to(x0.dtype)
    return gradient, to_x0, *[None] * (3 + len(ctx.rest))


def _scale_forward(scale, prediction, x0, table, index, seeds, stream, step, offset, global_shape):
    scale = scale.to(_accumulation(x0.dtype)).contiguous()
    if index is None and not global_shape and not is_compiling():
        done = _C.denoising_residual_scale(prediction, x0, table, seeds, stream, step, scale)
        if done is not None:
            return done
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


def _check_pair(prediction: Any, name: str, value: Any) -> None:
    check_tensor(name, value)
    check_batched(name, value)
    check_same("prediction", check_tensor("prediction", prediction), name, value)
    _output_dtype("prediction", prediction.dtype, None, value)


def denoising_loss(
    prediction: torch.Tensor,
    x0: torch.Tensor,
    alpha: float | torch.Tensor,
    sigma: float | torch.Tensor,
    seeds: torch.Tensor | Sequence[int],
    *,
    target: Target = "epsilon",
    weight: float | torch.Tensor | None = None,
    stream: int = TRAINING_STREAM,
    step: int = 0,
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
        weight: a number, or a float tensor [B] that is not differentiated.

    Returns:
        [B], float32, or float64 for float64 samples. Twice (and more) differentiable in ``prediction`` and ``x0``.
        Summed in a fixed order: the same bits for any number of threads.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    _check_pair(prediction, "x0", x0)
    if target is None:
        raise TypeError("target must be a name or a pair (of x0, of epsilon), got None")
    seeds = check_seeds(seeds, x0.shape[0], x0.device)
    weight = 1.0 if weight is None else weight
    table = noising_table(alpha, sigma, target=target, weight=weight, samples=x0.shape[0], device=x0.device)
    offset, global_shape = check_window(offset, global_shape, x0.shape[1:])
    counters = check_counter("stream", stream), check_counter("step", step)
    return _denoising_loss(prediction, x0, table, None, seeds, *counters, offset, global_shape)


def mse_loss(prediction: torch.Tensor, target: torch.Tensor, *, weight: float | torch.Tensor | None = None) -> torch.Tensor:
    """Each sample's weighted mean square error: ``loss[b] = weight[b] mean_i (prediction[b, i] - target[b, i])**2``.

    Like ``torch.nn.functional.mse_loss`` for each sample, in one pass, and remembering its two arguments alone.

    Args:
        prediction: [B, ...]; bfloat16 or float16 may go with a float32 ``target``.
        target: [B, ...], float32, float64, bfloat16 or float16, any strides; as :func:`pyfold.add_noise` returns it, or any.
        weight: a number, or a float tensor [B] that is not differentiated.

    Returns:
        [B], float32, or float64 for float64 targets. Differentiable any number of times in ``prediction`` and ``target``.
        Summed in a fixed order: the same bits for any number of threads.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    _check_pair(prediction, "target", target)
    weight = 1.0 if weight is None else weight
    # The denoising loss of x0, which asks for no noise.
    table = noising_table(0.0, 0.0, target="x0", weight=weight, samples=target.shape[0], device=target.device)
    seeds = torch.zeros(target.shape[0], dtype=torch.int64, device=target.device)
    return _denoising_loss(prediction, target, table, None, seeds, 0, 0, [], [])


def _mse_loss_reference(prediction, target, *, weight=None):
    square = (prediction.to(target.dtype) - target) ** 2
    weight = 1.0 if weight is None else weight
    return weight * square.reshape(square.shape[0], math.prod(square.shape[1:])).mean(1)


def _denoising_loss_reference(prediction, x0, alpha, sigma, seeds, *, target="epsilon", weight=None, **noise):
    _, aim = _add_noise_reference(x0, alpha, sigma, seeds, target=target, **noise)
    return _mse_loss_reference(prediction, aim, weight=weight)


# --- shape rules: add_noise writes what it is given


@torch.library.register_fake("pyfold::add_noise")
def _(x0, table, index, seeds, stream, step, offset, global_shape, out, target):
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


def _mse_sample(shape, dtype, device, generator, *, weight=None):
    if len(shape) == 0 or math.prod(shape[1:]) == 0:
        return None
    prediction, target = (_normal(shape, dtype, device, generator) for _ in range(2))
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
        variants={"default": {}, **{target: {"target": target} for target in TARGETS}, "pair": {"target": (0.3, -1.2)}},
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
