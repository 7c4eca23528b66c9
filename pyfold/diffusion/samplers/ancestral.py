"""One evaluation a step, noise put back: x0 is predicted, then noised again to the next level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from pyfold.diffusion.plan import Builder, Plan
from pyfold.diffusion.schedules import Point, Schedule, check_schedule
from pyfold.diffusion.spacings import Points, choose_points

Spacing = str | Callable[..., list[Point]] | Points


def check_eta(eta: float, most: float = 1.0) -> float:
    """In [0, most], so not NaN."""
    if not 0 <= eta <= most:
        raise ValueError(f"eta must be in [0, {most:g}], got {eta}")
    return float(eta)


def check_noise_scale(noise_scale: float) -> float:
    """Finite and from 0."""
    if not 0 <= noise_scale < math.inf:
        raise ValueError(f"noise_scale must be finite and from 0, got {noise_scale}")
    return float(noise_scale)


def discrete(schedule: Schedule) -> Schedule:
    """For samplers whose formula is on the betas of training times."""
    if not check_schedule(schedule).steps:
        raise ValueError(f"schedule must be a schedule with discrete times, got {schedule.name}")
    return schedule


VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")


def ddpm(
    schedule: Schedule,
    steps: int = 1000,
    *,
    prediction: str = "epsilon",
    clip: float | None = 1.0,
    variance: str = "fixed_small",
    spacing: Spacing = "leading",
) -> Plan:
    """Ancestral sampling from the posterior of the forward process (Ho et al. 2020, eq. 6, 7).

    Args:
        schedule: with discrete times.
        steps: model evaluations.
        prediction: what the model predicts, a name in ``pyfold.diffusion.PREDICTIONS``.
        clip: bound on the predicted x0, or None.
        variance: "fixed_small" (the posterior's, eq. 7), "fixed_large" (beta), or what a model's second half of channels
            says: "learned" (its logarithm) or "learned_range" (between the two in logarithm, from -1 to 1; Nichol and Dhariwal
            2021, eq. 15).
        spacing: which times are visited (``pyfold.diffusion.spacings``).
    """
    build = Builder(discrete(schedule), prediction, clip)
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(map(repr, VARIANCES))}, got {variance!r}")
    learned = []
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        beta = 1 - (here.alpha / there.alpha) ** 2
        posterior = (there.sigma / here.sigma) ** 2 * beta
        # The last step lands on the mean.
        spread = 0.0 if there.sigma == 0 else posterior if variance == "fixed_small" else beta
        if variance.startswith("learned"):
            # A step to zero noise has none, whatever the model says.
            learned.append((math.log(posterior), math.log(beta)) if spread else None)
            spread = 0.0
        build.stage(
            here,
            a=here.alpha / there.alpha * (there.sigma / here.sigma) ** 2,
            c_x0=there.alpha * beta / here.sigma**2,
            noise=math.sqrt(spread),
            remembered=False,
        )
    plan = build.plan("ddpm")
    if not learned:
        return plan
    return replace(plan, noisy=True, learned=tuple(learned), log_variance=variance == "learned")


def ddim(
    schedule: Schedule,
    steps: int = 50,
    *,
    prediction: str = "epsilon",
    eta: float = 0.0,
    clip: float | None = 1.0,
    use_clipped: bool = False,
    spacing: Spacing = "leading",
) -> Plan:
    """Denoising diffusion implicit models (Song, Meng and Ermon 2021, eq. 12, 16).

    Args:
        schedule, steps, prediction, spacing: as for :func:`ddpm`.
        eta: noise, from 0 (deterministic) to 1 (as much as ancestral sampling).
        clip: bound on the predicted x0, or None.
        use_clipped: take epsilon from the clipped x0; else it stays the model's own.
    """
    build = Builder(discrete(schedule), prediction, clip, "epsilon", raw=not use_clipped)
    check_eta(eta)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        noise = eta * there.sigma / here.sigma * math.sqrt(1 - (here.alpha / there.alpha) ** 2)
        build.stage(here, c_x0=there.alpha, c_u=math.sqrt(max(there.sigma**2 - noise**2, 0.0)), noise=noise)
    return build.plan("ddim")


def ddim_inverse(
    schedule: Schedule, steps: int = 50, *, prediction: str = "epsilon", clip: float | None = None, spacing: Spacing = "leading"
) -> Plan:
    """DDIM run from data to the noise it comes from (Song, Meng and Ermon 2021, section 4.3); start it with ``x=``.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`ddim`; the points are visited upwards.
    """
    points = [p for p in choose_points(schedule, steps, spacing) if p.sigma][::-1]
    build = Builder(schedule, prediction, clip, "epsilon", raw=True)
    for here, there in pairwise(points):
        build.stage(here, c_x0=there.alpha, c_u=there.sigma)
    return build.plan("ddim_inverse")


def ancestral_split(here: Point, there: Point, eta: float) -> tuple[float, float]:
    """(down, up) with ``down^2 + up^2 = there.ratio^2``: step to the first, add the second as noise (k-diffusion)."""
    if there.sigma == 0:
        return 0.0, 0.0
    up = min(there.ratio, eta * there.ratio * math.sqrt(max(1 - (there.ratio / here.ratio) ** 2, 0.0)))
    return math.sqrt(there.ratio**2 - up**2), up


def euler_ancestral(
    schedule: Schedule,
    steps: int = 30,
    *,
    prediction: str = "epsilon",
    eta: float = 1.0,
    noise_scale: float = 1.0,
    clip: float | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Euler's method to less noise than wanted, the rest put back as new noise (Song et al. 2021; k-diffusion).

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`ddpm`; any schedule.
        eta: noise, from 0 to 1.
        noise_scale: factor on the noise.
    """
    check_noise_scale(noise_scale)
    build = Builder(schedule, prediction, clip, "epsilon")
    check_eta(eta)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        down, up = ancestral_split(here, there, eta)
        build.stage(here, c_x0=there.alpha, c_u=there.alpha * down, noise=there.alpha * up * noise_scale)
    return build.plan("euler_ancestral")


def flow_ancestral(
    schedule: Schedule,
    steps: int = 28,
    *,
    prediction: str = "flow",
    eta: float = 1.0,
    noise_scale: float = 1.0,
    clip: float | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Euler ancestral on straight lines: down to ``sigma' (1 + (sigma' / sigma - 1) eta)``, noise back to sigma' (ComfyUI).

    Args:
        schedule: a flow schedule.
        steps, prediction, eta, noise_scale, clip, spacing: as for :func:`euler_ancestral`.
    """
    check_noise_scale(noise_scale)
    if not check_schedule(schedule).is_flow:
        raise ValueError(f"schedule must be a flow schedule, got {schedule.name}")
    build = Builder(schedule, prediction, clip, "x0")
    check_eta(eta)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        down = there.sigma * (1 + (there.sigma / here.sigma - 1) * eta)
        rescale = there.alpha / (1 - down)
        up = math.sqrt(max(there.sigma**2 - (down * rescale) ** 2, 0.0)) if eta else 0.0
        a = rescale * down / here.sigma
        build.stage(here, a=a, c_x0=there.alpha - a * here.alpha, noise=up * noise_scale, remembered=False)
    return build.plan("flow_ancestral")


def flow_sde(
    schedule: Schedule,
    steps: int = 10,
    *,
    prediction: str = "flow",
    noise_level: float = 0.7,
    clip: float | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Euler-Maruyama on an SDE with the flow's marginals, for policy gradients (Liu et al. 2025, Flow-GRPO, eq. 9, 12).

    Noise of ``noise_level sqrt(sigma / (1 - sigma))`` a square root of time; the last step is Euler's.

    Args:
        schedule: a flow schedule.
        steps, prediction, clip, spacing: as for :func:`euler_ancestral`.
        noise_level: from 0 (the flow).
    """
    if not check_schedule(schedule).is_flow:
        raise ValueError(f"schedule must be a flow schedule, got {schedule.name}")
    if not 0 <= noise_level < math.inf:
        raise ValueError(f"noise_level must be finite and from 0, got {noise_level}")
    build = Builder(schedule, prediction, clip, "flow")
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        # At pure noise sigma / (1 - sigma) is infinite: the next point's stands for it.
        safe = here if here.alpha else there
        rate = 0.0 if there.sigma == 0 else noise_level**2 * here.sigma / safe.alpha
        dt = there.sigma - here.sigma
        drift = rate / (2 * here.sigma)
        build.stage(here, a=1 + drift * dt, c_u=(1 + drift * here.alpha) * dt, noise=math.sqrt(-rate * dt))
    return build.plan("flow_sde")


def _boundary(here: Point, data_std: float, scaling: float, t: float) -> tuple[float, float]:
    """c_skip and c_out of a consistency model at a time (Luo et al. 2023, appendix)."""
    scaled = t * scaling
    return data_std**2 / (scaled**2 + data_std**2), scaled / math.hypot(scaled, data_std)


def lcm(
    schedule: Schedule,
    steps: int = 4,
    *,
    prediction: str = "epsilon",
    clip: float | None = None,
    time_scaling: float = 10.0,
    data_std: float = 0.5,
    spacing: Spacing = "trailing",
) -> Plan:
    """Multistep sampling of a latent consistency model (Luo et al. 2023, algorithm 3): x0, then new noise on it.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`ddpm`.
        time_scaling, data_std: of the model's boundary condition ``x0 = c_skip x + c_out x0'``.
    """
    build = Builder(discrete(schedule), prediction, clip)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        c_skip, c_out = _boundary(here, data_std, time_scaling, here.t)
        build.stage(here, a=there.alpha * c_skip, c_x0=there.alpha * c_out, noise=there.sigma, remembered=False)
    return build.plan("lcm")


def consistency(
    schedule: Schedule, steps: int = 2, *, prediction: str = "x0", clip: float | None = None, spacing: Spacing = "trailing"
) -> Plan:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): x0, then new noise on it.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`ddpm`; any schedule.
    """
    build = Builder(schedule, prediction, clip)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        build.stage(here, c_x0=there.alpha, noise=there.sigma, remembered=False)
    return build.plan("consistency")


def tcd(
    schedule: Schedule,
    steps: int = 4,
    *,
    prediction: str = "epsilon",
    eta: float = 0.3,
    clip: float | None = None,
    spacing: Spacing = "trailing",
) -> Plan:
    """Strategic stochastic sampling of a trajectory consistency model (Zheng et al. 2024, algorithm 4).

    Deterministically to the time ``(1 - eta) t'``, then noise up to t'.

    Args:
        schedule, steps, prediction, clip, spacing: as for :func:`ddpm`.
        eta: from 0 (deterministic) to 1 (``consistency``).
    """
    build = Builder(discrete(schedule), prediction, clip, "epsilon")
    check_eta(eta)
    for here, there in pairwise(choose_points(schedule, steps, spacing)):
        if there.sigma == 0:
            build.stage(here, c_x0=1.0)
            continue
        middle = schedule.at(math.floor((1 - eta) * there.t))
        keep = there.alpha / middle.alpha
        build.stage(
            here,
            c_x0=there.alpha,
            c_u=keep * middle.sigma,
            noise=math.sqrt(max(1 - keep**2, 0.0)) if eta else 0.0,
        )
    return build.plan("tcd")
