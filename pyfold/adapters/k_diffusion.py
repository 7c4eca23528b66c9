"""k-diffusion's ``sample_*`` functions under their own names and signatures (version 0.1.1.post1), on pyfold's plans.

``from pyfold.adapters import k_diffusion as sampling`` in place of ``from k_diffusion import sampling``: ``model(x, sigma,
**extra_args)`` returns the denoised x, ``noise_sampler(sigma, sigma_next)`` is asked for noise in k-diffusion's order,
``callback`` gets the same dictionary, and torch's generator gives the same numbers. What differs:

- ``seeds=`` (int64 [B]) makes the noise of each sample from its own seed inside the step: the same bits in any batch, on any
  device. It excludes ``noise_sampler``.
- The state is float32 for a model in half precision, and coefficients are float64.
- sigmas are read on the host once, before the first step, and must decrease; ``order`` of ``sample_lms`` goes up to 4, and its
  integrals are exact.
- Where k-diffusion draws noise that it multiplies by 0, none is drawn.
- The default noise of the SDE functions is :class:`BrownianTreeNoiseSampler` of this module, which needs no torchsde.
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch

from pyfold import diffusion
from pyfold._requirements import need
from pyfold.diffusion import Plan, Point, Schedule
from pyfold.diffusion.loop import Drawn, churned

Denoiser = Callable[..., torch.Tensor]
NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: k-diffusion's states: ``x = x0 + sigma eps``, the model told sigma.
SCHEDULE = Schedule("k-diffusion", curve=lambda t: (torch.ones_like(t), t), inverse=lambda ratio: ratio, t_max=math.inf)


class BrownianTreeNoiseSampler:
    """Increments of one Brownian motion in ``transform(sigma)``, of unit variance: the same path for any number of steps.

    Args:
        x: like the noise.
        sigma_min, sigma_max: ends of the path.
        seed: an int for the whole batch, or one for each sample; by default drawn from torch's generator.
        transform: the path's time as a function of sigma.
    """

    def __init__(self, x, sigma_min, sigma_max, seed=None, transform=lambda sigma: sigma):
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, ()))
        self.transform, self.batched = transform, not isinstance(seed, int)
        seeds = torch.as_tensor([seed] if not self.batched else list(seed), device=x.device)
        if self.batched and len(seeds) != len(x):
            raise ValueError(f"seed must be an int or {len(x)} of them, got {len(seeds)}")
        low, high = sorted(self._time(sigma) for sigma in (sigma_min, sigma_max))
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.path = diffusion.BrownianPath(seeds, x.shape[1 if self.batched else 0 :], low, high, dtype=dtype)
        self.dtype = x.dtype

    def _time(self, sigma: Any) -> float:
        return float(self.transform(torch.as_tensor(sigma)))

    def __call__(self, sigma, sigma_next):
        start, end = (min(max(self._time(s), self.path.low), self.path.high) for s in (sigma, sigma_next))
        increment = self.path.normal(end, start).to(self.dtype)
        return increment if self.batched else increment[0]


def points_of(sigmas: torch.Tensor, schedule: Schedule = SCHEDULE) -> list[Point]:
    """The points at k-diffusion's sigmas, read on the host; of a flow schedule, at its own sigmas."""
    if not isinstance(sigmas, torch.Tensor) or sigmas.dim() != 1:
        raise ValueError(f"sigmas must be a tensor of one dimension, got {sigmas!r}")
    values = sigmas.detach().double().tolist()
    if len(values) < 2 or not all(0 <= v < math.inf for v in values) or any(b >= a for a, b in pairwise(values)):
        raise ValueError(f"sigmas must be at least 2, finite, from 0 and decreasing, got {values}")
    if schedule.is_flow and values[0] > 1:
        raise ValueError(f"sigmas of a flow must be in [0, 1], got {values}")
    return [schedule.at_ratio(v / (1 - v) if v < 1 else math.inf) if schedule.is_flow else schedule.at_ratio(v) for v in values]


def _check_noise(x: torch.Tensor, seeds: Any, noise_sampler: NoiseSampler | None) -> torch.Tensor | None:
    if seeds is None:
        return None
    if noise_sampler is not None:
        raise ValueError("seeds and noise_sampler must not both be given")
    seeds = torch.as_tensor(seeds, dtype=torch.int64, device=x.device)
    if seeds.shape != (len(x),):
        raise ValueError(f"seeds must have shape {(len(x),)}, got {tuple(seeds.shape)}")
    return seeds


@contextlib.contextmanager
def _progress(total: int | None, disable: bool | None) -> Iterator[Callable[[], Any]]:
    if disable:
        yield lambda: None
        return
    with need("tqdm.auto").tqdm(total=total, disable=disable) as bar:
        yield bar.update


class _Noise(Drawn):
    """The noise of a plan's counters, asked of a noise sampler once for each, in order."""

    def __init__(self, plan: Plan, x: torch.Tensor, sigmas: torch.Tensor, noise_sampler: NoiseSampler | None):
        super().__init__(plan, self._churn if noise_sampler is None else self._ask)
        self.x, self.sigmas, self.noise_sampler, self.count = x, sigmas, noise_sampler, 0

    def _ask(self, n: int) -> torch.Tensor:
        starts = self.plan.step_starts
        step = bisect_right(starts, n) - 1
        inside = n + 1 < len(self.plan) and n + 1 not in starts
        end = self.x.new_tensor(self.plan.points[n + 1].ratio) if inside else self.sigmas[step + 1]
        assert self.noise_sampler is not None
        return self.noise_sampler(self.sigmas[step], end)

    def _churn(self, n: int) -> torch.Tensor:
        """k-diffusion draws before each step, also where it adds nothing; ours comes at the end of the step before."""
        step = 0 if n == len(self.plan) else bisect_right(self.plan.step_starts, n)
        value = self.x
        while self.count <= step:
            value = torch.randn_like(self.x)
            self.count += 1
        return value


@torch.no_grad()
def run(
    plan: Plan,
    model: Denoiser,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None,
    callback: Callable[[dict[str, Any]], Any] | None,
    disable: bool | None,
    *,
    seeds: Any = None,
    noise_sampler: NoiseSampler | None = None,
    sigma_of: Callable[[Point], float] = lambda point: point.ratio,
) -> torch.Tensor:
    """Runs a plan that predicts x0 as k-diffusion runs its loops; the adapter of ComfyUI runs its own through here.

    Args:
        plan: on :data:`SCHEDULE`, or another whose sigma ``sigma_of`` gives.
        model, x, sigmas, extra_args, callback, disable, seeds, noise_sampler: as k-diffusion's; the plan's steps are between
            the sigmas.
    """
    seeds = _check_noise(x, seeds, noise_sampler)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    noise = _Noise(plan, x, sigmas, noise_sampler) if seeds is None and plan.noisy else None
    history: list[torch.Tensor] = []
    state, ones = churned(plan, x.to(dtype, copy=True), seeds, noise), x.new_ones(len(x))
    # Who is called with a state may keep it; else steps work in place.
    out, starts = state if callback is None else None, plan.step_starts
    with _progress(len(starts), disable) as advance:
        for i, (point, (_, counter)) in enumerate(zip(plan.points, plan.stages(x.device, len(x)), strict=True)):
            given = state.to(x.dtype)
            denoised = model(given, sigma_of(point) * ones, **(extra_args or {}))
            if callback is not None and i in starts:
                k = starts.index(i)
                info = {"x": given, "i": k, "sigma": sigmas[k], "sigma_hat": sigmas.new_tensor(sigma_of(point))}
                callback({**info, "denoised": denoised})
            added = None if noise is None else noise.of(i, state)
            state = plan.step(state, denoised, counter, history=history, seeds=seeds, noise=added, out=out, stage=i)
            if i + 1 == len(plan) or i + 1 in starts:
                advance()
    return state.to(x.dtype)


def _churned(method, model, x, sigmas, extra_args, callback, disable, s_churn, s_tmin, s_tmax, s_noise, seeds):
    plan = diffusion.edm_stochastic(
        SCHEDULE, prediction="x0", method=method, spacing=points_of(sigmas),
        churn=s_churn, churn_min=s_tmin, churn_max=s_tmax, noise_scale=s_noise,
    )  # fmt: skip
    return run(plan, model, x, sigmas, extra_args, callback, disable, seeds=seeds)


def _noised(sampler, model, x, sigmas, extra_args, callback, disable, noise_sampler, seeds, brownian=False, **options):
    plan = sampler(SCHEDULE, prediction="x0", spacing=points_of(sigmas), **options)
    if noise_sampler is None and seeds is None:
        if brownian:
            noise_sampler = BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max())
        else:
            noise_sampler = lambda sigma, sigma_next: torch.randn_like(x)  # noqa: E731
    return run(plan, model, x, sigmas, extra_args, callback, disable, seeds=seeds, noise_sampler=noise_sampler)


def sample_euler(
    model, x, sigmas, extra_args=None, callback=None, disable=None,
    s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0, *, seeds=None,
):  # fmt: skip
    """Euler's method with churn: :func:`pyfold.diffusion.edm_stochastic`."""
    return _churned(
        "euler", model, x, sigmas, extra_args, callback, disable, s_churn, s_tmin, s_tmax, s_noise, seeds
    )  # fmt: skip


def sample_heun(
    model, x, sigmas, extra_args=None, callback=None, disable=None,
    s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0, *, seeds=None,
):  # fmt: skip
    """Heun's method with churn: :func:`pyfold.diffusion.edm_stochastic`."""
    return _churned(
        "heun", model, x, sigmas, extra_args, callback, disable, s_churn, s_tmin, s_tmax, s_noise, seeds
    )  # fmt: skip


def sample_dpm_2(
    model, x, sigmas, extra_args=None, callback=None, disable=None,
    s_churn=0.0, s_tmin=0.0, s_tmax=math.inf, s_noise=1.0, *, seeds=None,
):  # fmt: skip
    """The midpoint method with churn: :func:`pyfold.diffusion.edm_stochastic`."""
    return _churned(
        "dpm2", model, x, sigmas, extra_args, callback, disable, s_churn, s_tmin, s_tmax, s_noise, seeds
    )  # fmt: skip


def sample_euler_ancestral(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None, *, seeds=None
):
    """:func:`pyfold.diffusion.euler_ancestral`."""
    return _noised(
        diffusion.euler_ancestral, model, x, sigmas, extra_args, callback, disable, noise_sampler, seeds,
        eta=eta, noise_scale=s_noise,
    )  # fmt: skip


def sample_dpm_2_ancestral(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None, *, seeds=None
):
    """:func:`pyfold.diffusion.dpm2_ancestral`."""
    return _noised(
        diffusion.dpm2_ancestral, model, x, sigmas, extra_args, callback, disable, noise_sampler, seeds,
        eta=eta, noise_scale=s_noise,
    )  # fmt: skip


def sample_dpmpp_2s_ancestral(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None, *, seeds=None
):
    """:func:`pyfold.diffusion.dpmpp_2s_ancestral`."""
    return _noised(
        diffusion.dpmpp_2s_ancestral, model, x, sigmas, extra_args, callback, disable, noise_sampler, seeds,
        eta=eta, noise_scale=s_noise,
    )  # fmt: skip


def sample_dpmpp_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None, r=1 / 2,
    *, seeds=None,
):  # fmt: skip
    """:func:`pyfold.diffusion.dpmpp_sde`."""
    # A noise sampler's two increments are what it makes them; those from seeds are put together in the step.
    return _noised(
        lambda *args, **options: diffusion.dpmpp_sde(*args, brownian=seeds is not None, **options),
        model, x, sigmas, extra_args, callback, disable, noise_sampler, seeds, True, eta=eta, noise_scale=s_noise, r=r,
    )  # fmt: skip


def sample_dpmpp_2m(model, x, sigmas, extra_args=None, callback=None, disable=None, *, seeds=None):
    """:func:`pyfold.diffusion.dpmpp_multistep` of order 2."""
    return _noised(diffusion.dpmpp_multistep, model, x, sigmas, extra_args, callback, disable, None, seeds)


def sample_dpmpp_2m_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None,
    eta=1.0, s_noise=1.0, noise_sampler=None, solver_type="midpoint", *, seeds=None,
):  # fmt: skip
    """:func:`pyfold.diffusion.dpmpp_multistep` of order 2 with noise; ``solver_type`` "midpoint" or "heun"."""
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")
    return _noised(
        diffusion.dpmpp_multistep, model, x, sigmas, extra_args, callback, disable, noise_sampler, seeds, True,
        eta=eta, noise_scale=s_noise, solver=solver_type,
    )  # fmt: skip


def sample_dpmpp_3m_sde(
    model, x, sigmas, extra_args=None, callback=None, disable=None, eta=1.0, s_noise=1.0, noise_sampler=None, *, seeds=None
):
    """:func:`pyfold.diffusion.dpmpp_multistep` of order 3 as published, with noise."""
    return _noised(
        diffusion.dpmpp_multistep, model, x, sigmas, extra_args, callback, disable, noise_sampler, seeds, True,
        eta=eta, noise_scale=s_noise, order=3, solver="heun",
    )  # fmt: skip


def sample_lms(model, x, sigmas, extra_args=None, callback=None, disable=None, order=4, *, seeds=None):
    """:func:`pyfold.diffusion.lms`."""
    return _noised(diffusion.lms, model, x, sigmas, extra_args, callback, disable, None, seeds, order=order)


def _check_ends(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    low, high = float(sigma_min), float(sigma_max)
    if not 0 < low < high < math.inf:
        raise ValueError(f"sigma_min and sigma_max must be finite and 0 < sigma_min < sigma_max, got {low} and {high}")
    return low, high


def sample_dpm_fast(
    model, x, sigma_min, sigma_max, n, extra_args=None, callback=None, disable=None,
    eta=0.0, s_noise=1.0, noise_sampler=None, *, seeds=None,
):  # fmt: skip
    """:func:`pyfold.diffusion.dpm_fast`: ``n`` evaluations. ``callback`` gets t and t_up (minus log sigma) as well."""
    low, high = _check_ends(sigma_min, sigma_max)
    plan = diffusion.dpm_fast(
        SCHEDULE, n, prediction="x0", eta=eta, noise_scale=s_noise, sigma_min=low, sigma_max=high
    )  # fmt: skip
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    levels = [plan.points[i].ratio for i in plan.step_starts] + [low]
    if noise_sampler is None and seeds is None:
        noise_sampler = lambda sigma, sigma_next: torch.randn_like(x)  # noqa: E731

    def told(info):
        t = info["sigma"].log().neg()
        callback({**info, "t": t, "t_up": t})

    return run(
        plan, model, x, torch.tensor(levels, dtype=dtype, device=x.device), extra_args,
        None if callback is None else told, disable, seeds=seeds, noise_sampler=noise_sampler,
    )  # fmt: skip


@torch.no_grad()
def sample_dpm_adaptive(
    model, x, sigma_min, sigma_max, extra_args=None, callback=None, disable=None, order=3, rtol=0.05, atol=0.0078,
    h_init=0.05, pcoeff=0.0, icoeff=1.0, dcoeff=0.0, accept_safety=0.81, eta=0.0, s_noise=1.0, noise_sampler=None,
    return_info=False, *, seeds=None,
):  # fmt: skip
    """:func:`pyfold.diffusion.dpm_adaptive`: whether a step is accepted is read from the device, once a step.

    A rejected step keeps its first evaluation, so ``nfe`` is ``order * steps - n_reject``.
    """
    low, high = _check_ends(sigma_min, sigma_max)
    seeds = _check_noise(x, seeds, noise_sampler)
    info = {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}
    scalar = {"dtype": torch.float64 if x.dtype == torch.float64 else torch.float32, "device": x.device}
    ask = noise_sampler or (lambda sigma, sigma_next: torch.randn_like(x))

    def noise(n, sigma, sigma_next):
        return ask(torch.tensor(sigma, **scalar), torch.tensor(sigma_next, **scalar))

    with _progress(None, disable) as advance:

        def denoise(value, sigma):
            advance()
            return model(value, sigma.to(x.dtype), **(extra_args or {}))

        def tell(tried):
            info.update(
                steps=tried.steps, nfe=tried.evaluations, n_accept=tried.steps - tried.rejected, n_reject=tried.rejected
            )
            if callback is not None:
                sigma = torch.tensor(tried.point.ratio, **scalar)
                t = sigma.log().neg()
                error = torch.tensor(tried.error, **scalar)
                callback(
                    {
                        "sigma": sigma, "sigma_hat": sigma, "x": tried.x.to(x.dtype), "i": tried.steps - 1, "t": t, "t_up": t,
                        "denoised": tried.x0.to(x.dtype), "error": error, "h": tried.h, **info,
                    }
                )  # fmt: skip

        result = diffusion.dpm_adaptive(
            denoise, SCHEDULE, x.shape[1:], torch.zeros(len(x), dtype=torch.int64) if seeds is None else seeds,
            prediction="x0", order=order, rtol=rtol, atol=atol, h=h_init, proportional=pcoeff, integral=icoeff,
            derivative=dcoeff, safety=accept_safety, eta=eta, noise_scale=s_noise, sigma_min=low, sigma_max=high,
            device=x.device, dtype=x.dtype, x=x, noise=noise if seeds is None else None, callback=tell,
        )  # fmt: skip
    result = result.to(x.dtype)
    return (result, info) if return_info else result


__all__ = [
    "BrownianTreeNoiseSampler",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
]
