"""The loop over a plan's stages: one pass of ``pyfold.affine_step`` each, without a wait for the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pyfold.diffusion.draws import stream_and_step
from pyfold.ops import INITIAL_STREAM, add_noise, randn
from pyfold.ops._checks import as_seeds, as_sizes, check_batched, check_seeds, check_sizes, check_tensor, seed_count
from pyfold.ops._tensors import accumulation
from pyfold.ops.step import PreparedStep

if TYPE_CHECKING:
    from pyfold.diffusion.plan import Adaptations, Plan

Output = torch.Tensor | tuple[torch.Tensor, ...]
Model = Callable[[torch.Tensor, torch.Tensor], Output]


def outputs_of(models: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What a model returned, one or several."""
    return (models,) if isinstance(models, torch.Tensor) else tuple(models)


def stage(
    step: Callable[..., torch.Tensor],
    x: torch.Tensor,
    models: torch.Tensor | Sequence[torch.Tensor],
    history: list[torch.Tensor],
    depth: int,
    overwrites: bool = False,
    **operands: Any,
) -> torch.Tensor:
    """One stage of any loop: the step, and its u into the history.

    Args:
        step: :func:`pyfold.affine_step`, or a prepared one.
        x, models, operands: of the step.
        history: earlier u, the newest first; this stage's is put in front, at most ``depth`` are kept. A full history's oldest
            tensor is read and overwritten in the same pass.
        overwrites: u takes the place of the newest instead.
    """
    if not depth:
        return step(x, models, history=history, **operands)
    if overwrites:
        return step(x, models, history=history, history_out=history[0], **operands)
    newest = history[-1] if len(history) == depth else torch.empty_like(x)
    result = step(x, models, history=history, history_out=newest, **operands)
    del history[depth - 1 :]
    history.insert(0, newest)
    return result


class Drawn:
    """The noise of a plan's draws from a function of the stages that bring them in, which is asked once for each, in order."""

    def __init__(self, plan: Plan, draw: Callable[[int], torch.Tensor]):
        self.plan, self.draw = plan, draw
        self.kept: dict[int, torch.Tensor] = {}
        self.stages = {address: n for n, address in enumerate(plan.draws[:-1])}

    def __call__(self, n: int) -> torch.Tensor:
        if n not in self.kept:
            self.kept[n] = self.draw(n)
        return self.kept[n]

    def of(self, i: int, like: torch.Tensor) -> torch.Tensor:
        """What stage i adds, scaled."""
        if i in self.plan.step_starts:
            # A step uses no noise of the steps before.
            self.kept = {n: value for n, value in self.kept.items() if n >= i}
        row: Mapping[str, float] = self.plan.rows[i]
        terms = [row[f"d{k}"] * self(self.stages[int(row[f"n{k}"])]) for k in (1, 2, 3) if row.get(f"d{k}")]
        return sum(terms[1:], terms[0]).to(like) if terms else torch.zeros_like(like)


def inpaint(
    plan: Plan, original: torch.Tensor, mask: torch.Tensor, seeds: torch.Tensor, *, noised: bool = True
) -> Callable[[int, torch.Tensor], None]:
    """A callback for :func:`sample`: where ``mask`` is true, the state is ``original``, noised to the level of each stage.

    Its noise is the start's, so that part lies on one straight path from there to itself; Lugmayr et al. 2022, eq. 8a, draw it
    anew at each level.

    Args:
        plan: being run.
        original: [B, ...], float32. mask: bool, broadcast against it. seeds: int64 [B].
        noised: False for models that see that part at no noise; then put it into the start, too. Where that part is
            frames or a rectangle, ``sample(region=...)`` does without this pass.

    Returns:
        ``callback(stage, x)``, which changes x in place.

    Raises:
        TypeError: a mask that is not bool.
        ValueError: when called with a state of another shape than ``original``.
    """

    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")

    def callback(i: int, x: torch.Tensor) -> None:
        if original.shape != x.shape:
            raise ValueError(f"original must have the shape of the state, {tuple(x.shape)}, got {tuple(original.shape)}")
        if not noised:
            x.copy_(torch.where(mask, original.to(x.dtype), x))
            return
        last = i + 1 == len(plan)
        alpha, sigma = (1.0, 0.0) if last else (plan.points[i + 1].alpha, plan.points[i + 1].sigma)
        x.copy_(torch.where(mask, add_noise(original.to(x.dtype), alpha, sigma, seeds, stream=INITIAL_STREAM), x))

    return callback


def _noise_of_stage(
    plan: Plan, i: int, models: Any, x: torch.Tensor, seeds: torch.Tensor, noise: Drawn | None
) -> tuple[Any, torch.Tensor | None]:
    """(what the model predicts, what the stage adds in place of noise of the seeds)."""
    if plan.learned:
        prediction, levels = models.chunk(2, dim=1)
        return prediction, _learned_noise(plan, i, levels, seeds, noise).to(x.dtype)
    return models, None if noise is None else noise.of(i, x)


def _learned_noise(plan: Plan, i: int, levels: torch.Tensor, seeds: torch.Tensor, noise: Drawn | None) -> torch.Tensor:
    """Noise of the variance that the second half of the model's channels gives."""
    bounds = plan.learned[i]
    if bounds is None:
        return torch.zeros_like(levels)
    low, high = bounds
    levels = levels.to(accumulation(levels.dtype))
    log_variance = levels if plan.log_variance else low + (levels + 1) / 2 * (high - low)
    z = plan.draw(i, seeds, levels.shape[1:], dtype=levels.dtype) if noise is None else noise(i)
    return (log_variance / 2).exp() * z


def initial_noise(
    shape: Sequence[int],
    seeds: torch.Tensor | Sequence[int] | int,
    std: float,
    device: torch.device,
    dtype: torch.dtype,
    x: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(state to start from: noise of the seeds, or a copy of x; seeds on the device)."""
    if x is not None:
        check_batched("x", check_tensor("x", x))
    if isinstance(seeds, torch.Tensor) and seeds.device.type == "meta" != device.type:
        raise ValueError(f"seeds must hold values, got a tensor on device {seeds.device}")
    seeds = as_seeds(seeds, 1 if x is None else len(x), device)
    seeds = check_seeds(seeds, seed_count(seeds), seeds.device).to(device)
    shape = as_sizes("shape", shape)
    check_sizes("shape", shape)
    if x is None:
        if math.isnan(std):
            raise ValueError("x must be given for a part of a plan that starts behind its first stage, got None")
        x = randn(seeds, shape, stream=INITIAL_STREAM, device=device, dtype=dtype)
        return x if std == 1 else x.mul_(std), seeds
    if x.device.type == "meta" != device.type:
        raise ValueError(f"x must hold values, got one on device {x.device}")
    if tuple(x.shape) != (len(seeds), *shape):
        raise ValueError(f"x must have shape {(len(seeds), *shape)}, got {tuple(x.shape)}")
    return (x.clone() if x.dtype == dtype and x.device == device else x.to(device, dtype, copy=True)), seeds


def churned(
    plan: Plan, x: torch.Tensor, seeds: torch.Tensor | None, noise: Callable[[int], torch.Tensor] | None, **window: Any
) -> torch.Tensor:
    """x with the noise that the plan wants before its first stage, in place."""
    if plan.start_churn is None:
        return x
    keep, add = plan.start_churn
    if noise is None and seeds is not None:
        place: dict[str, Any] = stream_and_step(plan.draws[-1])
        noised: torch.Tensor = add_noise(x, keep, add, seeds, out=x, **place, **window)
        return noised
    assert noise is not None
    return x.copy_(keep * x + add * noise(len(plan)).to(x))


def _region(region: Sequence[slice] | None, shape: Sequence[int], x_given: bool) -> tuple[tuple[slice, ...], dict[str, Any]]:
    """(index of a batch, the window of noise) of a region."""
    if region is None:
        return (slice(None),), {}
    if not x_given:
        raise ValueError("x must be given with region: it holds what is known, got None")
    if not isinstance(region, (list, tuple)):
        raise TypeError(f"region must be a sequence of slices, got {type(region).__name__}")
    if len(region) > len(shape):
        raise ValueError(f"region must have at most {len(shape)} slices, got {len(region)}")
    whole = [*region, *[slice(None)] * (len(shape) - len(region))]
    for part in whole:
        if not isinstance(part, slice):
            raise TypeError(f"region must be slices, got {type(part).__name__}")
        if part.step not in (None, 1):
            raise ValueError(f"region must be of slices of step 1, got {part}")
    offset = [part.indices(size)[0] for part, size in zip(whole, shape, strict=True)]
    return (slice(None), *whole), {"offset": offset, "global_shape": list(shape)}


def _checked(model: Any, plan: Any, device: Any, dtype: Any, adapt: Any) -> torch.device:
    """The device, once what else :func:`sample` is given is what it takes."""
    if not hasattr(plan, "step_starts"):
        raise TypeError(f"plan must be a pyfold.diffusion.Plan, got {type(plan).__name__}")
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device must be a torch.device or the name of one, got {type(device).__name__}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating torch.dtype, got {dtype!r}")
    if isinstance(adapt, torch.Tensor) or not isinstance(adapt, Iterable) or not all(map(callable, adapt)):
        raise TypeError(f"adapt must be functions of (rows, x, models), got {adapt!r}")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be the name of one, got {device!r}") from error


@torch.no_grad()
def sample(
    model: Model,
    plan: Plan,
    shape: Sequence[int],
    seeds: torch.Tensor | Sequence[int] | int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    x: torch.Tensor | None = None,
    history: list[torch.Tensor] | None = None,
    noise: Callable[[int], torch.Tensor] | None = None,
    region: Sequence[slice] | None = None,
    adapt: Adaptations = (),
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Runs a plan from noise to samples; the same bits for every batch split, thread count and instruction set of the steps.

    The state is float32 throughout (float64 for a float64 model); a model in bfloat16 or float16 gets its input from the same
    pass. Nothing here waits for the device, so a captured loop is one CUDA graph.

    Args:
        model: ``model(x, t)`` with x [B, *shape] of ``dtype`` and t [B] returns the plan's prediction, or a tuple of up to
            three for :func:`guided`.
        plan: from a sampler.
        shape: of one sample.
        seeds: int64 [B], or ints of 64 bits, signed or not, or one for all; sample b depends on ``seeds[b]`` alone.
        device, dtype: where the model runs, and in what.
        x: start from this state instead of noise; it belongs to the first point of the plan.
        history: a list that outlives the call, for a run in parts (``plan[:8]``, then ``plan[8:]``) of a sampler that has one.
        noise: ``noise(n)`` gives the standard normals [B, *shape] that stage n brings in, in place of ``plan.draw(n, seeds,
            shape)``: a ``torch.Generator``'s, say. It is asked once for each n; ``len(plan)`` is that before the first stage.
        region: slices of one sample, outside of which ``x`` (then required) is known and kept as it is, at no noise: the first
            frames of a video, say, or what surrounds a rectangle. The model sees the whole; tell it there of each element's
            own time, 0 where it is known. Elements inside have the noise that they have without a region.
        adapt: changes of each sample's coefficients by the model's output, such as ``pyfold.diffusion.rescale(0.7)``.
        callback: called after each stage with its number and the state, which it may change in place (a mask, say).

    Returns:
        float32 [B, *shape], or float64.

    Example:
        >>> schedule = pyfold.diffusion.flow()
        >>> plan = pyfold.diffusion.euler(schedule, 8, prediction="flow")
        >>> two = sample(lambda x, t: x, plan, (3,), [1, 2])
        >>> torch.equal(two[1:], sample(lambda x, t: x, plan, (3,), [2]))  # whatever else is in the batch
        True
    """
    device = _checked(model, plan, device, dtype, adapt)
    state = accumulation(dtype)
    x_given = x is not None
    x, seeds = initial_noise(shape, seeds, plan.start_std, device, state, x)
    inside, window = _region(region, shape, x_given)

    def crop(whole: torch.Tensor) -> torch.Tensor:
        return whole if region is None else whole[inside]

    def full_stage(i: int, models: Any, counter: torch.Tensor) -> None:
        models, added = _noise_of_stage(plan, i, models, x, seeds, drawn)
        added = None if added is None else crop(added).to(part.dtype)
        inner = [crop(output) for output in outputs_of(models)]
        plan.step(part, inner, counter, history=history, seeds=seeds, noise=added, adapt=adapt, stage=i, **outputs)

    part, drawn = crop(x), None if noise is None else Drawn(plan, noise)
    churned(plan, part, seeds, None if drawn is None else lambda n: crop(drawn(n)), **window)
    separate = dtype != state or plan.scales_input
    model_input = (x * plan.start_scale).to(dtype) if separate else x
    history = [] if history is None else history
    outputs: dict[str, Any] = {"out": part, **window}
    if separate:
        outputs["next_input"] = crop(model_input)
    one_pass = region is None and drawn is None and not (adapt or plan.learned or plan.base_output is not None)
    step = PreparedStep(plan.on(device)[0], seeds=seeds if plan.noisy else None)
    for i, (time, counter) in enumerate(plan.stages(device, len(seeds))):
        models = model(model_input, time)
        if one_pass:
            # What plan.step does, without what it asks anew at each stage.
            stage(step, x, models, history, plan.history, i in plan.overwrites, index=counter, **outputs)
        else:
            full_stage(i, models, counter)
        if callback is not None:
            callback(i, x)
            if separate:
                model_input.copy_(x * plan.rows[i].get("c_in", 1.0))
    return x
