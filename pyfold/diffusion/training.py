"""The denoising objective: times, noise and loss from the samples' seeds alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pyfold.diffusion.densities import DENSITIES
from pyfold.diffusion.predictions import PREDICTIONS, check_prediction, convert
from pyfold.diffusion.schedule import Schedule, check_number, check_schedule
from pyfold.diffusion.weightings import WEIGHTINGS, weight_of_prediction
from pyfold.ops import TRAINING_STREAM, add_noise, denoising_loss, mse_loss, randn
from pyfold.ops._checks import check_batched, check_seeds, check_tensor
from pyfold.ops._tensors import per_sample

#: The stream that training times and coins are drawn from.
TIME_STREAM = 3
#: Draws of the training stream: the noise, its offset, the perturbation of the input.
_OFFSET, _PERTURBATION = 1, 2


@dataclass(frozen=True)
class Noised:
    """A batch ready for the model, and what its loss is made of again.

    Attributes:
        x_t: the model's input. t: what the model is told, float32, of the shape of time.
        x0, seeds: as given. alpha, sigma, time: float64, of the schedule: [B], or as the times were given.
        offset: what was added to the noise, or None.
        target: what the model should predict, where the loss keeps it; else None.
    """

    x_t: torch.Tensor
    t: torch.Tensor
    x0: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    seeds: torch.Tensor
    time: torch.Tensor
    offset: torch.Tensor | None = None
    target: torch.Tensor | None = None


def _per_sample(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value.to(like.dtype) if value.dim() > 1 else per_sample(value.to(like.dtype), like)


def _named_or_function(name: str, value: Any, table: dict[str, Any]) -> Any:
    if isinstance(value, str) and value not in table:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, table))}, got {value!r}")
    if not (isinstance(value, str) or callable(value)) or isinstance(value, type):
        raise TypeError(f"{name} must be a name or a function, got {type(value).__name__}")
    return value


def uniform_of_seeds(seeds: torch.Tensor, step: int = 0) -> torch.Tensor:
    """A number in (0, 1) for each seed, float64 [B]: the normal distribution function of a normal of the time stream."""
    uniform: torch.Tensor = torch.special.ndtr(randn(seeds, (), stream=TIME_STREAM, step=step, dtype=torch.float64))
    return uniform


class TrainingLoss:
    """Each sample's denoising loss, its noise from its seed.

    ::

        noised = loss.noise(x0, seeds)
        loss(model(noised.x_t, noised.t), noised).mean().backward()

    Args:
        schedule: of alpha and sigma.
        prediction: what the model predicts, a name in ``pyfold.diffusion.PREDICTIONS``.
        weighting: of the squared error, a name in ``WEIGHTINGS`` ("simple": none; Ho et al. 2020, eq. 14), or a function.
        density: of the times, a name in ``DENSITIES``, or a function; ``functools.partial`` sets options of either. By default
            the schedule's ``training_density``: "lognormal" for ``edm()``, "uniform" for the others.
        offset_noise: standard deviation of noise that is the same over all of a channel, added to the noise.
        input_perturbation: standard deviation of noise, relative to sigma, that the model sees and need not predict (Ning et
            al. 2023, algorithm 1).
        keep_target: whether ``noise`` keeps what the model should predict, a tensor like x0, until the loss is taken. If not,
            it is made again from the seeds in forward and backward: the same values (in x0's dtype) for less memory. A draw
            costs more than the memory on a CPU, and next to nothing on a GPU.

    Example:
        >>> loss = TrainingLoss(pyfold.diffusion.vp_linear(), "epsilon")
        >>> noised = loss.noise(torch.zeros(2, 3), torch.tensor([5, 6]))
        >>> loss(torch.zeros(2, 3), noised).shape
        torch.Size([2])
    """

    def __init__(
        self,
        schedule: Schedule,
        prediction: str = "epsilon",
        weighting: str | Callable[..., Any] = "simple",
        *,
        density: str | Callable[..., torch.Tensor] | None = None,
        offset_noise: float = 0.0,
        input_perturbation: float = 0.0,
        keep_target: bool = False,
    ):
        check_prediction("prediction", prediction)
        for name, value in (("offset_noise", offset_noise), ("input_perturbation", input_perturbation)):
            if not 0 <= check_number(name, value) < math.inf:
                raise ValueError(f"{name} must be finite and from 0, got {value}")
        check_schedule(schedule)
        self.schedule, self.prediction = schedule, prediction
        self.weighting = _named_or_function("weighting", weighting, WEIGHTINGS)
        self.density = _named_or_function("density", schedule.training_density if density is None else density, DENSITIES)
        if not isinstance(keep_target, bool):
            raise TypeError(f"keep_target must be a bool, got {type(keep_target).__name__}")
        self.offset_noise, self.input_perturbation = float(offset_noise), float(input_perturbation)
        self.keep_target = keep_target

    def times(self, seeds: torch.Tensor, strata: tuple[int, int] | None = None) -> torch.Tensor:
        """The samples' times, float64 [B], from their seeds: integers below ``schedule.steps``, or in [t_min, t_max].

        Args:
            seeds: int64 [B].
            strata: (first, total): sample b draws from the (first + b)-th of ``total`` equal parts of the density, so that a
                batch of ``total``, over however many processes, covers it evenly (Kingma et al. 2021, appendix I.1).
        """
        u = uniform_of_seeds(seeds)
        if strata is not None:
            first, total = strata
            if not 0 <= first <= total - len(seeds):
                raise ValueError(f"strata must be (first, total) with first + {len(seeds)} <= total, got {strata}")
            u = (torch.arange(first, first + len(seeds), device=u.device) + u) / total
        density = DENSITIES[self.density] if isinstance(self.density, str) else self.density
        return density(self.schedule, u)

    def noise(
        self,
        x0: torch.Tensor,
        seeds: torch.Tensor,
        t: torch.Tensor | None = None,
        *,
        strata: tuple[int, int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Noised:
        """The noised batch.

        Args:
            x0: clean samples [B, ...].
            seeds: int64 [B], a new one for each sample of each epoch.
            t: the schedule's times, instead of ``times(seeds, strata)``: [B], or of each frame or token, shaped like ``x0``
                with ones in the dimensions in which they stay the same.
            dtype: of the model's input, by default that of ``x0``.
        """
        check_batched("x0", check_tensor("x0", x0))
        seeds = check_seeds(seeds, x0.shape[0], x0.device)
        t = self.times(seeds, strata) if t is None else t.to(torch.float64)
        alpha, sigma = self.schedule.coefficients(t)
        scale = self.schedule.input_scale(alpha, sigma)
        offset = target = None
        if self.keep_target:
            pair = self._targets(alpha, sigma)
            x_t, target = add_noise(x0, alpha * scale, sigma * scale, seeds, target=pair)
        else:
            late = self.offset_noise or self.input_perturbation
            x_t = add_noise(x0, alpha * scale, sigma * scale, seeds, dtype=None if late else dtype)
        if self.input_perturbation:
            more = sigma * scale * self.input_perturbation
            x_t = add_noise(x_t, 1.0, more, seeds, step=_PERTURBATION)
        if self.offset_noise:
            shape = [x0.shape[1], *[1] * (x0.dim() - 2)] if x0.dim() > 1 else []
            offset = self.offset_noise * randn(seeds, shape, stream=TRAINING_STREAM, step=_OFFSET, dtype=x0.dtype)
            x_t = x_t + _per_sample(sigma * scale, x0) * offset
        model_time = self.schedule.model_time(t, alpha, sigma).to(torch.float32)
        return Noised(x_t if dtype is None else x_t.to(dtype), model_time, x0, alpha, sigma, seeds, t, offset, target)

    def __call__(self, prediction: torch.Tensor, noised: Noised) -> torch.Tensor:
        """Per-sample loss [B] of the model's prediction for a noised batch."""
        n = noised
        weight = weight_of_prediction(self.weighting, self.prediction, self.schedule, n.time)
        of_x0, of_epsilon = self.targets(n)
        if n.offset is not None:
            prediction = prediction - _per_sample(of_epsilon, prediction) * n.offset.to(prediction.dtype)
        if n.target is not None:
            return mse_loss(prediction, n.target, weight=weight)
        # "v" is of_epsilon eps + of_x0 x0 with -of_x0 for sigma, so any linear target is one.
        return denoising_loss(prediction, n.x0, of_epsilon, -of_x0, n.seeds, target="v", weight=weight)

    def targets(self, noised: Noised) -> tuple[torch.Tensor, torch.Tensor]:
        """(of x0, of epsilon) of what the model should predict, float64 [B]."""
        return self._targets(noised.alpha, noised.sigma)

    def _targets(self, alpha: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pair = PREDICTIONS[self.prediction](alpha, sigma, self.schedule.data_std)
        of_x0, of_epsilon = (c if isinstance(c, torch.Tensor) else torch.full_like(alpha, c) for c in pair)
        return of_x0, of_epsilon

    def x0(self, prediction: torch.Tensor, noised: Noised) -> torch.Tensor:
        """The x0 that a prediction means, for self-conditioning and previews; not where it means none (alpha 0)."""
        r, s = convert(self.prediction, "x0", noised.alpha, noised.sigma, self.schedule.data_std)
        r = r / self.schedule.input_scale(noised.alpha, noised.sigma)
        return _per_sample(r, prediction) * noised.x_t.to(prediction.dtype) + _per_sample(s, prediction) * prediction


def self_condition(
    model: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    loss: TrainingLoss,
    noised: Noised,
    probability: float = 0.5,
) -> torch.Tensor:
    """The prediction of a model that is shown its own x0: ``model(x_t, t, x0)`` (Chen et al. 2023, section 3.2).

    A sample sees its x0 from a first evaluation, without gradient, with ``probability``, decided by its seed, and else zeros.

    Args:
        model: ``model(x_t, t, x0)``.
        loss: says what the model predicts.
        noised: what ``loss.noise`` gave.
        probability: in [0, 1].

    Returns:
        The prediction, shaped like ``noised.x_t``.

    Raises:
        ValueError: a probability out of [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be in [0, 1], got {probability}")
    blank = torch.zeros_like(noised.x_t)
    with torch.no_grad():
        seen = loss.x0(model(noised.x_t, noised.t, blank), noised)
        conditioned = _per_sample(uniform_of_seeds(noised.seeds, step=1) < probability, seen)
    return model(noised.x_t, noised.t, torch.where(conditioned.bool(), seen, blank).to(blank.dtype))
