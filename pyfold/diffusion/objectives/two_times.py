"""What objectives of two times share: random numbers that two forwards of a model have in common, and times in float64."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch

from pyfold.diffusion.schedule import Schedule
from pyfold.diffusion.schedules import flow
from pyfold.ops import add_noise
from pyfold.ops._tensors import accumulation

Model = Callable[..., torch.Tensor]
Tensors = tuple[torch.Tensor, ...]
#: Draws of the stream of times: the first time is that of every objective (0), and self-conditioning has one (1).
SECOND_TIME, COIN = 2, 3


def model_time(time: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    """A model's time [B] in float32, or float64 for float64 samples."""
    return time.to(accumulation(x0.dtype))


def same_draws(device: torch.device, active: bool) -> AbstractContextManager[None]:
    """What torch's generators draw inside, they draw once more after it: dropout's masks, for one."""
    return torch.random.fork_rng([device] if device.type == "cuda" else []) if active else nullcontext()


def together(model: Model, *pairs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The model's outputs for several inputs in one call of ``torch.func.vmap``, with the same random numbers in each.

    The form that the compiler traces as one graph, where a generator's state cannot be put back.

    Args:
        model: of as many tensors as each of ``pairs`` has.
        pairs: the inputs of each evaluation, of the same shapes.
    """
    stacked = [torch.stack(inputs) for inputs in zip(*pairs, strict=True)]
    outputs: Any = torch.func.vmap(model, randomness="same")(*stacked)
    return tuple(outputs.unbind())


def check_target_model(target_model: Model | None, dropout: bool) -> None:
    """Another module's masks cannot be the same in one compiled graph."""
    if target_model is not None and dropout and torch.compiler.is_compiling():
        raise ValueError("target_model must be None where the loss is compiled with dropout=True, got a model")


def check_samples(name: str, output: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The output of the model in the dtype of the samples, after a look at its shape."""
    if output.shape != like.shape:
        raise ValueError(f"{name} must return the shape of its input, {tuple(like.shape)}, got {tuple(output.shape)}")
    return output.to(like.dtype)


def jvp(
    model: Model, inputs: tuple[torch.Tensor, ...], tangents: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the model's output, its derivative along the tangents)."""
    output, change, *_ = torch.func.jvp(model, inputs, tangents)
    return output, change


def along_path(
    model: Model,
    target_model: Model | None,
    inputs: Tensors,
    tangents: Tensors,
    dropout: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the output of a forward that is trained, its derivative along the tangents, of one without a graph)."""
    if dropout and torch.compiler.is_compiling():
        return jvp(model, inputs, tangents)
    with torch.no_grad(), same_draws(inputs[0].device, dropout):
        _, change = jvp(target_model or model, inputs, tangents)
    return model(*inputs), change


@dataclass(frozen=True)
class NoisedInterval:
    """A batch on straight paths, the interval [r, t] that its mean velocity is of, and the path's own velocity.

    Attributes:
        x_t: the model's input. t, r: what the model is told, sigma at both ends, [B], float32 (float64 for float64 samples).
        velocity: ``eps - x0``.
        x0, seeds: as given.

    Example:
        >>> interval = pyfold.diffusion.MeanFlowLoss().noise(torch.zeros(2, 3), torch.tensor([7, 8]))
        >>> interval.of(torch.tensor([1])).t.shape
        torch.Size([1])
    """

    x_t: torch.Tensor
    t: torch.Tensor
    r: torch.Tensor
    velocity: torch.Tensor
    x0: torch.Tensor
    seeds: torch.Tensor

    def of(self, rows: torch.Tensor) -> NoisedInterval:
        """Some of the samples."""
        return NoisedInterval(*(getattr(self, field.name)[rows] for field in fields(self)))


class Interval:
    """What objectives of intervals [r, t] on straight paths share.

    Args:
        schedule: a flow; None for ``flow()``.
    """

    dropout: bool

    def __init__(self, schedule: Schedule | None):
        self.schedule = flow() if schedule is None else schedule
        if not (isinstance(self.schedule, Schedule) and self.schedule.is_flow):
            raise ValueError(f"schedule must be a flow schedule, got {getattr(schedule, 'name', type(schedule).__name__)}")

    def times(self, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, r), sigma at both ends of the samples' intervals, float64 [B], from their seeds; r <= t."""
        raise NotImplementedError

    def noise(
        self,
        x0: torch.Tensor,
        seeds: torch.Tensor,
        t: torch.Tensor | None = None,
        r: torch.Tensor | None = None,
    ) -> NoisedInterval:
        """The noised batch and its velocity, in one pass.

        Args:
            x0: clean samples [B, ...].
            seeds: int64 [B], a new one for each sample of each epoch.
            t, r: sigma at both ends [B], 0 <= r <= t <= 1, instead of ``times(seeds)``; both or none.
        """
        if (t is None) != (r is None):
            raise ValueError(f"t and r must be given both or none, got {'r' if t is None else 't'} alone")
        if t is None or r is None:
            t, r = self.times(seeds)
        t, r = t.to(torch.float64), r.to(torch.float64)
        x_t, velocity = add_noise(x0, 1 - t, t, seeds, target="flow")
        return NoisedInterval(x_t, model_time(t, x0), model_time(r, x0), velocity, x0, seeds)

    def of_longer(self, of: Callable[[NoisedInterval], torch.Tensor], n: NoisedInterval) -> torch.Tensor:
        """What is asked of the samples with r < t alone, where that may be known: zeros for others, or whatever it is there."""
        if self.dropout or n.t.device.type != "cpu" or torch.compiler.is_compiling():
            # A device would have to be waited for, and masks would be other samples'.
            return of(n)
        rows = (n.r < n.t).nonzero()[:, 0]
        found = torch.zeros_like(n.velocity)
        if len(rows):
            found[rows] = of(n.of(rows)).to(found.dtype)
        return found
