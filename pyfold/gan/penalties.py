"""Gradient penalties, and how to pay them only now and then.

Zero-centred ones carry the factor one half of Mescheder, Geiger and Nowozin 2018, eq. 9 and 10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyfold._torch_private import CONVOLUTIONS, transforms_active

Discriminator = Callable[[torch.Tensor], torch.Tensor]


def _off_centre(gradient: torch.Tensor, centre: float) -> torch.Tensor:
    """``mean (|g| - centre)^2`` over samples; at centre 0 without the root, whose second derivative at g = 0 is infinite.

    Elsewhere the derivative of ``|g|`` is ``g / |g|`` for any length that the dtype holds, and 0 where g is 0.
    """
    flat = gradient.flatten(1) if gradient.dtype == torch.float64 else gradient.float().flatten(1)
    if centre == 0:
        return flat.square().sum(1).mean()
    # In units of the largest value no square vanishes; a constant unit drops out of the derivative.
    largest = flat.detach().abs().amax(1, keepdim=True)
    unit = torch.where(largest > 0, largest, 1.0)
    squared = (flat / unit).square().sum(1)
    root = torch.where(squared > 0, squared, 1.0).sqrt()
    norm = torch.where(squared > 0, root, 0.0) * unit.squeeze(1)
    return (norm - centre).square().mean()


def _check_gamma(gamma: float) -> None:
    if not gamma >= 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")


def _gradient_penalty(logits: torch.Tensor, samples: torch.Tensor, gamma: float, name: str) -> torch.Tensor:
    if not samples.requires_grad:
        raise ValueError(f"{name} must require a gradient before the discriminator sees them: {name}.requires_grad_()")
    if not logits.requires_grad:
        raise ValueError(f"logits must be the discriminator's output for {name}, got a tensor without a graph")
    _check_gamma(gamma)
    (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gamma / 2 * _off_centre(gradient, 0.0)


def r1_penalty(logits: torch.Tensor, real: torch.Tensor, gamma: float) -> torch.Tensor:
    """``gamma / 2 E |grad D(x)|^2`` over real samples (Mescheder, Geiger and Nowozin 2018, eq. 9).

    Args:
        logits: D(real), one or more for each sample.
        real: [B, ...], requiring a gradient before the discriminator saw them.
        gamma: the weight; note the half that comes with it.

    Returns:
        0-d; float32 for half types. It can be differentiated with respect to the discriminator's parameters.

    Raises:
        ValueError: gamma is negative, real samples do not require a gradient, or the logits have no graph.

    Example:
        >>> critic, real = torch.nn.Linear(2, 1), torch.randn(8, 2).requires_grad_()
        >>> penalty = r1_penalty(critic(real), real, gamma=2.0)
        >>> bool(torch.isclose(penalty, critic.weight.square().sum()))  # the gradient of a linear critic is its weight
        True
    """
    return _gradient_penalty(logits, real, gamma, "real")


def r2_penalty(logits: torch.Tensor, fake: torch.Tensor, gamma: float) -> torch.Tensor:
    """``gamma / 2 E |grad D(G(z))|^2`` over generated samples, detached from the generator; arguments as for R1
    (Mescheder, Geiger and Nowozin 2018, eq. 10).

    Args:
        logits: D(fake), one or more for each sample.
        fake: [B, ...], requiring a gradient before the discriminator saw them.
        gamma: the weight; note the half that comes with it.

    Returns:
        0-d; float32 for half types. It can be differentiated with respect to the discriminator's parameters.

    Raises:
        ValueError: gamma is negative, generated samples do not require a gradient, or the logits have no graph.
    """
    return _gradient_penalty(logits, fake, gamma, "fake")


def functional_penalty(discriminator: Discriminator, samples: torch.Tensor, gamma: float, centre: float = 0.0) -> torch.Tensor:
    """``gamma / 2 E (|grad D(x)| - centre)^2`` (Mescheder, Geiger and Nowozin 2018; Gulrajani et al. 2017, with centre 1).

    With centre 0 it is R1 or R2, by the samples; :func:`between` and :func:`around` make the points of the other penalties.
    It compiles with ``torch.compile(fullgraph=True)``, double backward included, and runs inside transforms of ``torch.func``:
    there by ``torch.func.grad``. Elsewhere it is ``torch.autograd.grad``, so a discriminator may checkpoint its layers
    (``use_reentrant=False``) or keep statistics as batch norm does. With batch norm the gradient of one sample is that of the
    sum of all logits, as in every penalty of this kind, and the penalty's pass updates the running statistics as well.

    Args:
        discriminator: maps samples to logits.
        samples: [B, ...].
        gamma: the weight, not negative; note the half.
        centre: the wanted length of the gradient: 0, or 1 for a 1-Lipschitz critic.

    Returns:
        0-d; float32 for half types. It can be differentiated with respect to the discriminator's parameters.

    Raises:
        ValueError: gamma is negative.
    """
    _check_gamma(gamma)
    if torch.compiler.is_compiling() or transforms_active():
        gradient = torch.func.grad(lambda x: discriminator(x).sum())(samples)
    else:
        further = torch.is_grad_enabled()
        with torch.enable_grad():
            # The samples' own graph stays attached, so that a penalty may train a generator too.
            leaf = samples if samples.requires_grad else samples.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(discriminator(leaf).sum(), leaf, create_graph=further, materialize_grads=True)
    return gamma / 2 * _off_centre(gradient, centre)


def between(real: torch.Tensor, fake: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Points on the lines from real to generated samples, one uniform place for each pair: [B, ...].

    Args:
        real, fake: [B, ...], of the same shape.
        generator: of the random places; torch's global one by default.

    Returns:
        [B, ...], without a gradient to either.

    Raises:
        ValueError: the shapes differ.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real and fake must have the same shape, got {tuple(real.shape)} and {tuple(fake.shape)}")
    shape = [real.shape[0]] + [1] * (real.dim() - 1)
    place = torch.rand(shape, generator=generator, dtype=real.dtype, device=real.device)
    return torch.lerp(real.detach(), fake.detach(), place)


def around(real: torch.Tensor, scale: float = 0.5, generator: torch.Generator | None = None) -> torch.Tensor:
    """DRAGAN's points near real samples: ``x + scale std(x) u`` (Kodali et al. 2017, section 2.3).

    Conventions, which differ among implementations: ``std`` is one number, over all values of the batch, dividing by their
    count (correction 0, as TensorFlow's moments in the authors' code; others divide by count - 1); ``u`` is uniform in [0, 1)
    for each value, and there is no further uniform factor for each sample, which some multiply the noise by.

    Args:
        real: [B, ...].
        scale: of the noise.
        generator: of the noise.

    Returns:
        [B, ...], without a gradient to the real samples.
    """
    noise = torch.rand(real.shape, generator=generator, dtype=real.dtype, device=real.device)
    return real.detach() + scale * real.detach().std(correction=0) * noise


def wgan_gp_penalty(
    discriminator: Discriminator,
    real: torch.Tensor,
    fake: torch.Tensor,
    weight: float = 10.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """``weight E (|grad D| - 1)^2`` between real and generated samples (Gulrajani et al. 2017, eq. 3); no half.

    Args:
        discriminator: maps samples to logits.
        real, fake: [B, ...], of the same shape.
        weight: of the penalty, not negative.
        generator: of the random places; torch's global one by default.

    Returns:
        0-d; float32 for half types. It can be differentiated with respect to the discriminator's parameters.

    Raises:
        ValueError: the weight is negative, or the shapes of real and fake differ.
    """
    return functional_penalty(discriminator, between(real, fake, generator), 2 * weight, centre=1.0)


def zero_centred_penalty(
    discriminator: Discriminator,
    real: torch.Tensor,
    fake: torch.Tensor,
    weight: float = 10.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """``weight E |grad D|^2`` between real and generated samples (Thanh-Tung, Tran and Venkatesh 2019, eq. 12); no half.

    Args:
        discriminator, real, fake, weight, generator: as for :func:`wgan_gp_penalty`, whose errors are these too.

    Returns:
        0-d, as there.
    """
    return functional_penalty(discriminator, between(real, fake, generator), 2 * weight)


def dragan_penalty(
    discriminator: Discriminator,
    real: torch.Tensor,
    weight: float = 10.0,
    scale: float = 0.5,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """``weight E (|grad D| - 1)^2`` around real samples (Kodali et al. 2017, eq. 1); no half.

    Args:
        discriminator: maps samples to logits.
        real: [B, ...].
        weight: of the penalty, not negative.
        scale: of the noise, in standard deviations of the batch.
        generator: of the random places; torch's global one by default.

    Returns:
        0-d; float32 for half types. It can be differentiated with respect to the discriminator's parameters.

    Raises:
        ValueError: the weight is negative.
    """
    return functional_penalty(discriminator, around(real, scale, generator), 2 * weight, centre=1.0)


class LazyPenalty:
    """A penalty paid every ``interval`` steps, with what the optimizer needs for that (Karras et al. 2020, appendix B).

    The penalty is multiplied by the interval, so that its mean pull stays. Its extra steps are undone in the optimizer:
    with ``c = interval / (interval + 1)`` the learning rate becomes ``c lr`` and the betas ``beta^c``.

    Not for small problems: with ring and grid toys and stacked digits, lazy penalties were found to fail.

    Args:
        interval: steps from one penalty to the next, at least 1.
    """

    def __init__(self, interval: int = 16):
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval must be an int of at least 1, got {interval!r}")
        self.interval = interval

    def due(self, step: int) -> bool:
        return step % self.interval == 0

    def scaled(self, penalty: torch.Tensor) -> torch.Tensor:
        return self.interval * penalty

    def settings(self, *, lr: float, betas: tuple[float, float]) -> dict[str, Any]:
        """``lr`` and ``betas`` for an Adam that takes the lazy penalty's steps as well.

        They fit where the penalty has an optimizer step of its own beside the loss's, ``interval + 1`` steps for
        ``interval`` batches, as in StyleGAN2. Where it is added to the loss before one step, keep the settings as they are.
        """
        ratio = self.interval / (self.interval + 1) if self.interval > 1 else 1.0
        return {"lr": lr * ratio, "betas": tuple(beta**ratio for beta in betas)}


def with_spectral_norm(module: torch.nn.Module) -> torch.nn.Module:
    """Every linear and convolution layer of ``module`` divided by its largest singular value (Miyato et al. 2018), by
    ``torch.nn.utils.parametrizations.spectral_norm``; layers that have it already stay. Returns the module.

    Args:
        module: any; its layers are changed in place.

    Returns:
        The module.
    """
    for layer in [m for m in module.modules() if isinstance(m, (torch.nn.Linear, *CONVOLUTIONS))]:
        if not torch.nn.utils.parametrize.is_parametrized(layer, "weight"):
            torch.nn.utils.parametrizations.spectral_norm(layer)
    return module
