"""One evaluation a step, noise put back: x0 is predicted, then noised again to the next level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyfold.diffusion.formulas import EPSILON, FLOW, X0, Form, N, Step, X
from pyfold.diffusion.plan import Plan
from pyfold.diffusion.samplers._declare import Past, Steps, alias, sampler
from pyfold.diffusion.schedule import Point

VARIANCES = ("fixed_small", "fixed_large", "learned", "learned_range")


def posterior(here: Point, there: Point) -> tuple[Any, Any]:
    """(beta of the step, the posterior's variance): Ho et al. 2020, eq. 7."""
    beta = 1 - (here.alpha / there.alpha) ** 2
    return beta, (there.sigma / here.sigma) ** 2 * beta


def _learned(plan: Plan, points: Sequence[Point], options: dict[str, Any]) -> Plan:
    """The variances between which the model chooses; a step to zero noise has none."""
    if not options["variance"].startswith("learned"):
        return plan
    pairs = [posterior(*ends) if ends[1].sigma else None for ends in zip(points, points[1:], strict=False)]
    learned = tuple(None if pair is None else (math.log(pair[1]), math.log(pair[0])) for pair in pairs)
    return replace(plan, noisy=True, learned=learned, log_variance=options["variance"] == "learned")


@sampler(
    1000,
    source="Ho et al. 2020, eq. 6 and 7; learned variances: Nichol and Dhariwal 2021, eq. 15",
    keeps="",
    spacing="leading",
    clip=1.0,
    schedules="discrete",
    finish=_learned,
    variance=VARIANCES,
    texts={"variance": "the posterior's, beta, or the second half of channels: its logarithm, or a place between the two."},
)
def ddpm(here: Point, there: Point, past: Past, *, variance: str = "fixed_small") -> Step:
    """Ancestral sampling from the posterior of the forward process."""
    beta, small = posterior(here, there)
    # The last step lands on the mean.
    spread = 0.0 if there.sigma == 0 or variance.startswith("learned") else small if variance == "fixed_small" else beta
    return Step(posterior_mean(here, there, X0, beta) + N * spread**0.5)


def posterior_mean(here: Point, there: Point, x0: Form, beta: Any, ratio: Any = None) -> Form:
    """Ho et al. 2020, eq. 7; beta of the step, and the ratio of its alphas, where a table has them."""
    kept = (here.alpha / there.alpha if ratio is None else ratio) * (there.sigma / here.sigma) ** 2
    mean: Form = X * kept + x0 * (there.alpha * beta / here.sigma**2)
    return mean


@sampler(
    50,
    source="Song, Meng and Ermon 2021, eq. 12 and 16",
    keeps="epsilon",
    spacing="leading",
    clip=1.0,
    schedules="discrete",
    raw=lambda options: not options["use_clipped"],
    texts={"use_clipped": "take epsilon from the clipped x0; else it stays the model's own."},
)
def ddim(here: Point, there: Point, past: Past, *, eta: float = 0.0, use_clipped: bool = False) -> Step:
    """Denoising diffusion implicit models; eta 1 has as much noise as ancestral sampling."""
    if eta == 0:
        return Step(X0 * there.alpha + EPSILON * there.sigma)
    noise = eta * there.sigma / here.sigma * (1 - (here.alpha / there.alpha) ** 2) ** 0.5
    return Step(X0 * there.alpha + EPSILON * max(there.sigma**2 - noise**2, 0.0) ** 0.5 + N * noise)


@sampler(
    50,
    source="Song, Meng and Ermon 2021, section 4.3",
    keeps="epsilon",
    spacing="leading",
    raw=lambda options: True,
    points=lambda schedule, points, options: [p for p in points if p.sigma][::-1],
    listed=False,
)
def ddim_inverse(here: Point, there: Point, past: Past) -> Steps:
    """DDIM run from data to the noise it comes from; start it with ``x=``. The points are visited upwards."""
    return ddim.rule(here, there, past)


def ancestral_split(here: Point, there: Point, eta: float) -> tuple[Any, Any]:
    """(down, up) with ``down^2 + up^2 = there.ratio^2``: step to the first, add the second as noise (k-diffusion)."""
    if there.sigma == 0:
        return 0.0, 0.0
    up = min(there.ratio, eta * there.ratio * max(1 - (there.ratio / here.ratio) ** 2, 0.0) ** 0.5)
    return (there.ratio**2 - up**2) ** 0.5, up


def less_noise(here: Point, there: Point, eta: float) -> tuple[Point, Any]:
    """(where a step with less noise than wanted leads, in the scale of ``there``; the noise that is put back)."""
    down, up = ancestral_split(here, there, eta)
    return Point(there.t, there.alpha, there.alpha * down), there.alpha * up


@sampler(30, source="Song et al. 2021; k-diffusion", keeps="epsilon", spacing="trailing")
def euler_ancestral(here: Point, there: Point, past: Past, *, eta: float = 1.0, noise_scale: float = 1.0) -> Step:
    """Euler's method to less noise than wanted, the rest put back as new noise."""
    aim, noise = less_noise(here, there, eta)
    return Step(X0 * aim.alpha + EPSILON * aim.sigma + N * (noise * noise_scale))


def flow_split(here: Point, there: Point, eta: float) -> tuple[float, float, float]:
    """(sigma of a flow to step down to, what the state there is multiplied by, the noise that is then put back)."""
    down = there.sigma * (1 + (there.sigma / here.sigma - 1) * eta)
    rescale = there.alpha / (1 - down)
    return down, rescale, max(there.sigma**2 - (down * rescale) ** 2, 0.0) ** 0.5 if eta else 0.0


@sampler(28, source="ComfyUI", keeps="", spacing="trailing", prediction="flow", schedules="flow")
def flow_ancestral(here: Point, there: Point, past: Past, *, eta: float = 1.0, noise_scale: float = 1.0) -> Step:
    """Euler ancestral on straight lines: down to ``sigma' (1 + (sigma' / sigma - 1) eta)``, noise back to sigma'."""
    down, rescale, up = flow_split(here, there, eta)
    a = rescale * down / here.sigma
    return Step(X * a + X0 * (there.alpha - a * here.alpha) + N * (up * noise_scale))


def flow_grpo_rate(here: Point, there: Point, noise_level: float) -> float:
    """Squared noise a unit of time; at pure noise, where it is infinite, the next point's stands for it."""
    safe = here if here.alpha else there
    return noise_level**2 * here.sigma / safe.alpha


def flow_sde_step(here: Point, there: Point, rate: float) -> Step:
    """Euler-Maruyama on the SDE of this squared noise a unit of time that has the flow's marginals."""
    dt = there.sigma - here.sigma
    drift = rate / (2 * here.sigma)
    return Step(X * (1 + drift * dt) + FLOW * ((1 + drift * here.alpha) * dt) + N * (-rate * dt) ** 0.5)


@sampler(
    10,
    source="Liu et al. 2025, Flow-GRPO, eq. 9 and 12",
    keeps="flow",
    spacing="trailing",
    prediction="flow",
    schedules="flow",
    noise_level=(0.0, math.inf),
    texts={"noise_level": "a of the noise ``a sqrt(sigma / (1 - sigma))`` a square root of time; 0 is the flow."},
)
def flow_sde(here: Point, there: Point, past: Past, *, noise_level: float = 0.7) -> Step:
    """Euler-Maruyama on an SDE with the flow's marginals, for policy gradients; the last step is Euler's."""
    return flow_sde_step(here, there, flow_grpo_rate(here, there, noise_level) if there.sigma else 0.0)


@sampler(
    4,
    source="Luo et al. 2023, algorithm 3",
    keeps="",
    spacing="trailing",
    schedules="discrete",
    texts={
        "time_scaling": "s of the boundary condition ``x0 = c_skip x + c_out x0'`` at time s t.",
        "data_std": "standard deviation of the data in it.",
    },
)
def lcm(here: Point, there: Point, past: Past, *, time_scaling: float = 10.0, data_std: float = 0.5) -> Step:
    """Multistep sampling of a latent consistency model: x0, then new noise on it."""
    return Step(boundary(here.t * time_scaling, data_std, X0) * there.alpha + N * there.sigma)


def boundary(scaled: Any, data_std: float, x0: Form) -> Form:
    """``c_skip x + c_out x0'`` at a scaled time (Luo et al. 2023, appendix)."""
    norm = scaled**2 + data_std**2
    denoised: Form = X * (data_std**2 / norm) + x0 * (scaled / norm**0.5)
    return denoised


@sampler(
    2, source="Song et al. 2023, algorithm 1", keeps="", spacing="trailing", few="angles", prediction="x0", on_sigmas=False
)
def consistency(here: Point, there: Point, past: Past) -> Step:
    """Multistep consistency sampling: x0, then new noise on it.

    A step from little noise changes little, so ``edm()``'s points are those of "angles" here: two steps meet at sigma 1 (Song
    and Dhariwal 2024 and Geng et al. 2024 take 0.821 for CIFAR-10).
    """
    return Step(X0 * there.alpha + N * there.sigma)


@sampler(4, source="Zheng et al. 2024, algorithm 4", keeps="epsilon", spacing="trailing", schedules="discrete")
def tcd(here: Point, there: Point, past: Past, *, eta: float = 0.3) -> Step:
    """Strategic stochastic sampling of a trajectory consistency model: to the time ``(1 - eta) t'``, then noise up to t'.

    eta 1 is :func:`consistency`.
    """
    if there.sigma == 0:
        return Step(X0)
    middle = past.schedule.at(math.floor((1 - eta) * there.t))
    step = strategic(middle, there, X0 * middle.alpha + EPSILON * middle.sigma)
    return Step(step if eta else step.without("noise"))


def strategic(middle: Point, there: Point, x: Form) -> Form:
    """Up from the state in the middle, the signal scaled down."""
    keep = there.alpha / middle.alpha
    up: Form = x * keep + N * max(1 - keep**2, 0.0) ** 0.5
    return up


alias("euler_a", euler_ancestral, "A1111 and diffusers")
