"""k-diffusion's ``sample_*`` functions under their own names and signatures (version 0.1.1.post1), on pyfold's plans.

``from pyfold.adapters import k_diffusion as sampling`` in place of ``from k_diffusion import sampling``: ``model(x, sigma,
**extra_args)`` returns the denoised x, ``noise_sampler(sigma, sigma_next)`` is asked for noise in k-diffusion's order,
``callback`` gets the same dictionary, and torch's generator gives the same numbers. What differs:

- ``seeds=`` (int64 [B]) makes the noise of each sample from its own seed inside the step: the same bits in any batch, on any
  device. It excludes ``noise_sampler``. A draw belongs to the sigma that it leads to, so a run on ``sigmas[k:]`` from the
  state that another ended with draws as the unbroken run does; ``before=`` says which sigmas were visited before these, where
  the run returns to some of them (a restart).
- The state is float32 for a model in half precision, and coefficients are float64.
- sigmas are read on the host once, before the first step. They must decrease, but for ``sample_euler``, ``sample_heun`` and
  ``sample_dpm_2``, and, without repeating one, ``sample_lms`` and ``sample_dpmpp_2m``: these also run backwards, from an
  image to its noise. One sigma is no step, and returns ``x``. ``order`` of ``sample_lms`` goes up to 4, and its
  integrals are exact.
- Where k-diffusion draws noise that it multiplies by 0, none is drawn.
- The default noise of the SDE functions is :class:`BrownianTreeNoiseSampler` of this module, which needs no torchsde.

Example:
    >>> from pyfold.adapters import k_diffusion as sampling
    >>> sigmas = torch.tensor([10.0, 1.0, 0.0])
    >>> x = sampling.sample_euler(lambda x, sigma: 0.2 * x, torch.ones(1, 2), sigmas, disable=True)
    >>> x.shape
    torch.Size([1, 2])
"""

from __future__ import annotations

import contextlib
import inspect
import math
import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, cast

import torch

from pyfold import diffusion
from pyfold._requirements import need
from pyfold.diffusion import Attempt, Plan, Point, Schedule
from pyfold.diffusion.loop import Drawn, churned
from pyfold.diffusion.samplers import Sampler
from pyfold.ops._checks import as_seeds, check_seeds
from pyfold.ops._tensors import accumulation

Denoiser = Callable[..., torch.Tensor]
NoiseSampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

#: k-diffusion's states: ``x = x0 + sigma eps``, the model told sigma.
SCHEDULE = Schedule("k-diffusion", curve=lambda t: (torch.ones_like(t), t), inverse=lambda ratio: ratio, t_max=math.inf)


class BrownianTreeNoiseSampler:
    """Increments of one Brownian motion in ``transform(sigma)``, of unit variance: the same path for any number of steps.

    Args:
        x: like the noise.
        sigma_min, sigma_max: ends of the path.
        seed: an int of 64 bits for the whole batch, or seeds or keys, one for each sample; by default drawn from torch's
            generator.
        transform: the path's time as a function of sigma.
    """

    def __init__(
        self,
        x: torch.Tensor,
        sigma_min: float | torch.Tensor,
        sigma_max: float | torch.Tensor,
        seed: int | Iterable[int] | torch.Tensor | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] = lambda sigma: sigma,
    ) -> None:
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, ()))
        self.transform, self.batched = transform, isinstance(seed, torch.Tensor) or not hasattr(seed, "__index__")
        several: Any = seed
        if self.batched and not isinstance(seed, torch.Tensor):
            several = list(several)
        seeds = as_seeds(several, 1, x.device).to(x.device)
        if self.batched and len(seeds) != len(x):
            raise ValueError(f"seed must be an int or {len(x)} of them, got {len(seeds)}")
        low, high = sorted(self._time(sigma) for sigma in (sigma_min, sigma_max))
        shape = x.shape[1 if self.batched else 0 :]
        self.path = diffusion.BrownianPath(seeds, shape, low, high, dtype=accumulation(x.dtype))
        self.dtype = x.dtype

    def _time(self, sigma: Any) -> float:
        return float(self.transform(torch.as_tensor(sigma)))

    def __call__(self, sigma: float | torch.Tensor, sigma_next: float | torch.Tensor) -> torch.Tensor:
        start, end = (min(max(self._time(s), self.path.low), self.path.high) for s in (sigma, sigma_next))
        increment = self.path.normal(end, start).to(self.dtype)
        return increment if self.batched else increment[0]


def points_of(sigmas: torch.Tensor, schedule: Schedule = SCHEDULE, way: str = "falls") -> list[Point]:
    """The points at k-diffusion's sigmas, read on the host; of a flow schedule, at its own sigmas.

    Args:
        way: how they may go, as a sampler's ``way`` has it.
    """
    if not isinstance(sigmas, torch.Tensor) or sigmas.dim() != 1:
        raise ValueError(f"sigmas must be a tensor of one dimension, got {sigmas!r}")
    values = sigmas.detach().double().tolist()
    refused: Callable[[float, float], bool] = {"falls": operator.le, "turns": operator.eq, "rests": lambda a, b: False}[way]
    if not values or not all(0 <= v < math.inf for v in values) or any(refused(a, b) for a, b in pairwise(values)):
        must = {"falls": " and decreasing", "turns": ", and not repeat", "rests": ""}[way]
        raise ValueError(f"sigmas must be finite, from 0{must}, got {values}")
    if schedule.is_flow and values[0] > 1:
        raise ValueError(f"sigmas of a flow must be in [0, 1], got {values}")
    return schedule.at_ratios(v if not schedule.is_flow else v / (1 - v) if v < 1 else math.inf for v in values)


def visited(sigmas: Any) -> list[Point]:
    """The points at the sigmas that a run has visited before."""
    return SCHEDULE.at_ratios(torch.as_tensor(sigmas).detach().double().tolist())


def _check_noise(x: torch.Tensor, seeds: Any, noise_sampler: NoiseSampler | None) -> torch.Tensor | None:
    if seeds is None:
        return None
    if noise_sampler is not None:
        raise ValueError("seeds and noise_sampler must not both be given")
    seeds = as_seeds(seeds, len(x), x.device)
    return check_seeds(seeds.to(x.device), len(x), x.device)


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
        plan: on :data:`SCHEDULE`, or another whose sigma ``sigma_of`` gives. One of several outputs takes a model's tuple.
        model, x, sigmas, extra_args, callback, disable, seeds, noise_sampler: as k-diffusion's; the plan's steps are between
            the sigmas.
    """
    seeds = _check_noise(x, seeds, noise_sampler)
    dtype = accumulation(x.dtype)
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
                callback({**info, "denoised": denoised[0] if isinstance(denoised, tuple) else denoised})
            added = None if noise is None else noise.of(i, state)
            state = plan.step(state, denoised, counter, history=history, seeds=seeds, noise=added, out=out, stage=i)
            if i + 1 == len(plan) or i + 1 in starts:
                advance()
    return state.to(x.dtype)


#: k-diffusion's names for options of pyfold's samplers.
_OURS = {
    "s_churn": "churn", "s_tmin": "churn_min", "s_tmax": "churn_max", "s_noise": "noise_scale", "solver_type": "solver",
}  # fmt: skip
_CHURN: dict[str, Any] = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf, "s_noise": 1.0}
_NOISE: dict[str, Any] = {"eta": 1.0, "s_noise": 1.0, "noise_sampler": None}


def _of_signature(
    name: str,
    make: Sampler,
    own: dict[str, Any],
    words: str = "",
    *,
    brownian: bool = False,
    check: Callable[[dict[str, Any]], None] | None = None,
    **fixed: Any,
) -> Callable[..., torch.Tensor]:
    """k-diffusion's function of this name: ``(model, x, sigmas, extra_args=None, callback=None, disable=None, <own>, *,
    seeds=None, before=())``.

    Args:
        make: pyfold's sampler. own: the function's own options and their defaults, by k-diffusion's names.
        words: what it is, by default the sampler.
        brownian: whether its noise is that of one Brownian path by default.
        check: of its own options. fixed: further options for ``make``.
    """
    anywhere, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    shared = {"extra_args": None, "callback": None, "disable": None, **own}
    signature = inspect.Signature(
        [inspect.Parameter(required, anywhere) for required in ("model", "x", "sigmas")]
        + [inspect.Parameter(option, anywhere, default=default) for option, default in shared.items()]
        + [inspect.Parameter("seeds", named, default=None), inspect.Parameter("before", named, default=())]
    )

    def sample(*args: Any, **kwargs: Any) -> torch.Tensor:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        options = {option: given[option] for option in own if option != "noise_sampler"}
        if check is not None:
            check(options)
        options = {_OURS.get(option, option): value for option, value in options.items()}
        x, sigmas, seeds, noise_sampler = given["x"], given["sigmas"], given["seeds"], given.get("noise_sampler")
        options |= fixed
        if make is diffusion.dpmpp_sde:
            # A noise sampler's two increments are what it makes them; those from seeds are put together in the step.
            options["brownian"] = seeds is not None
        points = points_of(sigmas, way=make.way(options))
        if len(points) == 1:
            return cast(torch.Tensor, x)
        plan = make(SCHEDULE, prediction="x0", spacing=points, before=visited(given["before"]), **options)
        if "noise_sampler" in own and noise_sampler is None and seeds is None:
            # A step to 0 draws nothing.
            path = BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max()) if brownian and plan.noisy else None
            noise_sampler = path or _default_noise(x)
        return run(
            plan, given["model"], x, sigmas, given["extra_args"], given["callback"], given["disable"], seeds=seeds,
            noise_sampler=noise_sampler,
        )  # fmt: skip

    made: Any = sample
    made.__signature__, made.__name__, made.__qualname__ = signature, name, name
    made.__doc__ = words or f":func:`pyfold.diffusion.{make.__name__}`."
    return sample


def _default_noise(x: torch.Tensor) -> NoiseSampler:
    return lambda sigma, sigma_next: torch.randn_like(x)


def _check_solver(options: dict[str, Any]) -> None:
    if options["solver_type"] not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {options['solver_type']!r}")


_EDM = "with churn: :func:`pyfold.diffusion.edm_stochastic`."
_MULTISTEP = ":func:`pyfold.diffusion.dpmpp_multistep` of order"

sample_euler = _of_signature("sample_euler", diffusion.edm_stochastic, _CHURN, f"Euler's method {_EDM}", method="euler")
sample_heun = _of_signature("sample_heun", diffusion.edm_stochastic, _CHURN, f"Heun's method {_EDM}", method="heun")
sample_dpm_2 = _of_signature("sample_dpm_2", diffusion.edm_stochastic, _CHURN, f"The midpoint method {_EDM}", method="dpm2")
sample_euler_ancestral = _of_signature("sample_euler_ancestral", diffusion.euler_ancestral, _NOISE)
sample_dpm_2_ancestral = _of_signature("sample_dpm_2_ancestral", diffusion.dpm2_ancestral, _NOISE)
sample_dpmpp_2s_ancestral = _of_signature("sample_dpmpp_2s_ancestral", diffusion.dpmpp_2s_ancestral, _NOISE)
sample_dpmpp_sde = _of_signature("sample_dpmpp_sde", diffusion.dpmpp_sde, {**_NOISE, "r": 1 / 2}, brownian=True)
sample_dpmpp_2m = _of_signature("sample_dpmpp_2m", diffusion.dpmpp_multistep, {}, f"{_MULTISTEP} 2.")
sample_dpmpp_2m_sde = _of_signature(
    "sample_dpmpp_2m_sde", diffusion.dpmpp_multistep, {**_NOISE, "solver_type": "midpoint"},
    f'{_MULTISTEP} 2 with noise; ``solver_type`` "midpoint" or "heun".', brownian=True, check=_check_solver,
)  # fmt: skip
sample_dpmpp_3m_sde = _of_signature(
    "sample_dpmpp_3m_sde", diffusion.dpmpp_multistep, _NOISE, f"{_MULTISTEP} 3 as published, with noise.", brownian=True,
    order=3, solver="heun",
)  # fmt: skip
sample_lms = _of_signature("sample_lms", diffusion.lms, {"order": 4})


def _check_ends(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    low, high = float(sigma_min), float(sigma_max)
    if not 0 < low < high < math.inf:
        raise ValueError(f"sigma_min and sigma_max must be finite and 0 < sigma_min < sigma_max, got {low} and {high}")
    return low, high


Callback = Callable[[dict[str, Any]], Any]


def sample_dpm_fast(
    model: Denoiser, x: torch.Tensor, sigma_min: float, sigma_max: float, n: int, extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None, disable: bool | None = None, eta: float = 0.0, s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None, *, seeds: Any = None,
) -> torch.Tensor:  # fmt: skip
    """:func:`pyfold.diffusion.dpm_fast`: ``n`` evaluations. ``callback`` gets t and t_up (minus log sigma) as well."""
    low, high = _check_ends(sigma_min, sigma_max)
    plan = diffusion.dpm_fast(SCHEDULE, n, prediction="x0", eta=eta, noise_scale=s_noise, sigma_min=low, sigma_max=high)
    sigmas = torch.tensor(
        [*(plan.points[i].ratio for i in plan.step_starts), low], dtype=accumulation(x.dtype), device=x.device
    )
    if noise_sampler is None and seeds is None:
        noise_sampler = _default_noise(x)

    def with_times(info: dict[str, Any]) -> None:
        t = info["sigma"].log().neg()
        if callback is not None:
            callback({**info, "t": t, "t_up": t})

    reports = None if callback is None else with_times
    return run(plan, model, x, sigmas, extra_args, reports, disable, seeds=seeds, noise_sampler=noise_sampler)


def sample_dpm_adaptive(
    model: Denoiser, x: torch.Tensor, sigma_min: float, sigma_max: float, extra_args: dict[str, Any] | None = None,
    callback: Callback | None = None, disable: bool | None = None, order: int = 3, rtol: float = 0.05, atol: float = 0.0078,
    h_init: float = 0.05, pcoeff: float = 0.0, icoeff: float = 1.0, dcoeff: float = 0.0, accept_safety: float = 0.81,
    eta: float = 0.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, return_info: bool = False,
    *, seeds: Any = None,
) -> torch.Tensor | tuple[torch.Tensor, dict[str, int]]:  # fmt: skip
    """:func:`pyfold.diffusion.dpm_adaptive`: whether a step is accepted is read from the device, once a step.

    A rejected step keeps its first evaluation, so ``nfe`` is ``order * steps - n_reject``.
    """
    low, high = _check_ends(sigma_min, sigma_max)
    seeds = _check_noise(x, seeds, noise_sampler)
    info = {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}
    dtype = accumulation(x.dtype)
    ask = noise_sampler or _default_noise(x)

    def scalar(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=dtype, device=x.device)

    def noise(n: int, sigma: float, sigma_next: float) -> torch.Tensor:
        return ask(scalar(sigma), scalar(sigma_next))

    with _progress(None, disable) as advance:

        def denoise(value: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            advance()
            return model(value, sigma.to(x.dtype), **(extra_args or {}))

        def report(tried: Attempt) -> None:
            info.update(
                steps=tried.steps, nfe=tried.evaluations, n_accept=tried.steps - tried.rejected, n_reject=tried.rejected
            )
            if callback is not None:
                sigma = scalar(tried.point.ratio)
                t = sigma.log().neg()
                callback(
                    {
                        "sigma": sigma, "sigma_hat": sigma, "x": tried.x.to(x.dtype), "i": tried.steps - 1, "t": t, "t_up": t,
                        "denoised": tried.x0.to(x.dtype), "error": scalar(tried.error), "h": tried.h, **info,
                    }
                )  # fmt: skip

        result = diffusion.dpm_adaptive(
            denoise, SCHEDULE, x.shape[1:], torch.zeros(len(x), dtype=torch.int64) if seeds is None else seeds,
            prediction="x0", order=order, rtol=rtol, atol=atol, h=h_init, proportional=pcoeff, integral=icoeff,
            derivative=dcoeff, safety=accept_safety, eta=eta, noise_scale=s_noise, sigma_min=low, sigma_max=high,
            device=x.device, dtype=x.dtype, x=x, noise=noise if seeds is None else None, callback=report,
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

_ARGUMENTS = {
    "model": "``model(x, sigma, **extra_args)`` -> the denoised x; sigma is [B].",
    "x": "the state, [B, ...], at the first sigma.",
    "sigmas": "falling, on any device; 0 at the end is the data.",
    "sigma_min": "where it ends, above 0.",
    "sigma_max": "where x stands.",
    "n": "evaluations of the model.",
    "extra_args": "for the model.",
    "callback": "called with a dictionary after each evaluation.",
    "disable": "True for no progress bar; None for one on a terminal alone.",
    "eta": "how much noise; 0 for none.",
    "order": "of the method.",
    "rtol": "relative tolerance of a step.",
    "atol": "absolute tolerance of a step.",
    "h_init": "the first step, in -log sigma.",
    "pcoeff": "proportional part of the step's controller.",
    "icoeff": "integral part.",
    "dcoeff": "derivative part.",
    "accept_safety": "how much longer a step may become.",
    "return_info": "also return the counts of steps.",
    "solver_type": '"midpoint" or "heun".',
    "r": "where the second evaluation lies in a step.",
    "s_churn": "noise put back before steps, in all.",
    "s_tmin": "the least sigma at which it is.",
    "s_tmax": "the greatest.",
    "s_noise": "a factor of the noise.",
    "noise_sampler": "``noise_sampler(sigma, sigma_next)`` -> noise like x.",
    "seeds": "int64 [B], ints or keys, uint64 [B, 2]; noise from seeds, in place of a noise_sampler.",
    "before": "the sigmas visited before these, where the run returns to some of them.",
}


def _describe(name: str) -> None:
    """What all functions share, appended to a docstring."""
    function = globals()[name]
    arguments = "\n".join(f"    {argument}: {_ARGUMENTS[argument]}" for argument in inspect.signature(function).parameters)
    result = "x at the last sigma" + (", or (x, counts)." if "return_info" in arguments else ".")
    function.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:\n{arguments}\n\nReturns:\n    {result}"


for _name in __all__[1:]:
    _describe(_name)
