"""Schedulers on a table of noise levels sigma, where ``x = x0 + sigma eps``: Euler, Heun, DPM-2, LMS and their relatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pyfold._elementary import sqrt
from pyfold.adapters.diffusers._fused import Fused, refuse_integers
from pyfold.adapters.diffusers._rows import Step, T, as_dtype, seed_tensor
from pyfold.diffusion.brownian import BrownianPath
from pyfold.diffusion.formulas import Form, H, M, N, X
from pyfold.diffusion.samplers import Sampler
from pyfold.diffusion.samplers.ancestral import consistency, euler_ancestral
from pyfold.diffusion.samplers.linear import lms
from pyfold.diffusion.samplers.runge_kutta import dpm2, dpm2_ancestral, euler, heun
from pyfold.diffusion.samplers.stochastic import dpmpp_sde
from pyfold.diffusion.schedule import Point


def level(sigma: Any) -> Point:
    return Point(0.0, 1.0, sigma)


class Churns(Fused):
    """Noise put in before a step (Karras et al. 2022, algorithm 2)."""

    _level_of: Callable[[Any], Point] = staticmethod(level)

    def _churn(
        self, sample: T, place: Any, model_output: T, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float,
        generator: Any, seeds: Any, stage: int = 0, stages: int = 1,
    ) -> tuple[T, float]:  # fmt: skip
        """(state with more noise, by how much its sigma is larger).

        ``stage`` of ``stages`` of the step that starts at the place.
        """
        if s_churn <= 0:
            return sample, 0.0
        sigma = self._host("sigmas")[place]
        gamma = min(s_churn / (len(self.sigmas) - 1), 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
        if gamma > 0:
            noise, added = self._draw(model_output, generator, seeds), s_noise * sigma * ((gamma + 1) ** 2 - 1) ** 0.5

            def rule(i: int) -> Step:
                hat = self._level_of(sigma * (gamma + 1))
                return Step(X + N * added, draw=self._draw_at(hat, self._visit(i, stages), stage))

            sample = self._fuse(place, rule, sample, sample, noise=noise, upcast=True)[0]
        return sample, gamma


class OnSigmas(Churns):
    _last_if_missing = False

    def add_noise(self, original_samples: T, noise: T | None, timesteps: T, *, seeds: Any = None) -> T:
        """diffusers' ``add_noise``; ``noise`` None for noise from seeds."""
        places = self._places(timesteps, original_samples.device, self._last_if_missing)
        sigma = self._in_places("sigmas", places)
        return self._combine(original_samples, 1.0, noise, sigma, seeds)

    def scale_model_input(self, sample: T, timestep: Any) -> T:
        place, first = self._enter(timestep), getattr(self, "state_in_first_order", True)
        self.is_scale_input_called = True
        return self._scaled(sample, place, lambda i: 1 / (self._seen(i, first) ** 2 + self._data_std() ** 2) ** 0.5)

    def _seen(self, place: int, first: bool) -> Any:
        """The sigma at which the model is evaluated, in the first stage of a step or the second."""
        return self._host("sigmas")[place]

    def _data_std(self) -> float:
        return 1.0

    def _at(self, i: int) -> Point:
        return level(self._host("sigmas")[i])

    def _means(self, wanted: str, at: Point) -> Form:
        """The model is trained on variance-preserving states, x / sqrt(sigma^2 + 1)."""
        norm = (at.sigma**2 + 1) ** 0.5
        form = super()._means(wanted, Point(at.t, 1 / norm, at.sigma / norm))
        return Form(x=form["x"] / norm, m=form["m"])

    def _refuse_sample(self) -> None:
        if self.config.prediction_type == "sample":
            raise NotImplementedError(f"{type(self).__name__} has no prediction_type 'sample'")


# --- one stage


class ChurnedEuler(OnSigmas):
    def _clean(self, sigma: Any, hat: Point) -> Form:
        """x0 of the state at ``hat``, which was at sigma before the churn."""
        raise NotImplementedError

    def _churned_euler(
        self, model_output: T, timestep: Any, sample: T, return_dict: bool, s_churn: float, *churn: Any, clean: T | None = None
    ) -> Any:
        """``clean``: x0, where the caller has it."""
        refuse_integers(self, timestep)
        place = self._enter_together(timestep) if s_churn > 0 else self._enter(timestep)
        sample, gamma = self._churn(sample, place, model_output, s_churn, *churn)
        given, history = (False, []) if clean is None else (True, [clean])

        def rule(i: int) -> Step:
            sigma, there = self._host("sigmas")[i : i + 2]
            hat = level(sigma * (gamma + 1))
            return self._follow(euler, hat, level(there), u="epsilon", x0=H[0] if given else self._clean(sigma, hat))

        prev, _, x0 = self._fuse(place, rule, sample, model_output, history=history, show=not given, upcast=True)
        self._advance(place)
        return self._finish(return_dict, as_dtype(prev, model_output.dtype), clean if given else x0)


class EulerDiscreteScheduler(ChurnedEuler):
    def step(
        self, model_output: T, timestep: Any, sample: T, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Any = None, return_dict: bool = True, *,
        seeds: Any = None,
    ) -> Any:  # fmt: skip
        churn = s_churn, s_tmin, s_tmax, s_noise, generator, seeds
        return self._churned_euler(model_output, timestep, sample, return_dict, *churn)

    def _clean(self, sigma: Any, hat: Point) -> Form:
        """Of v at the sigma before the churn, as theirs."""
        if self.config.prediction_type == "original_sample":
            return M
        return self._means("x0", hat if self.config.prediction_type == "epsilon" else level(sigma))

    def get_velocity(self, sample: T, noise: T, timesteps: T) -> T:
        """Of the level at the timestep's place, counted from the first, as theirs."""
        if not torch.is_floating_point(timesteps):
            refuse_integers(self, timesteps)
        places = self._places(timesteps, sample.device, from_begin=False)
        abar = self._in_places("alphas_cumprod", places)
        return self._combine(sample, -sqrt(1 - abar), noise, sqrt(abar), None)


class EulerAncestralDiscreteScheduler(OnSigmas):
    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        refuse_integers(self, timestep)
        self._refuse_sample()
        place = self._enter(timestep)
        noise = self._draw(model_output, generator, seeds)
        rule = lambda i: self._follow(euler_ancestral, self._at(i), self._at(i + 1), visit=self._visit(i + 1))  # noqa: E731
        prev, _, x0 = self._fuse(place, rule, sample, model_output, noise=noise, show=True, upcast=True)
        self._advance(place)
        return self._finish(return_dict, as_dtype(prev, model_output.dtype), x0)


class LMSDiscreteScheduler(OnSigmas):
    """Linear multistep, the integrals exact instead of by quadrature."""

    def step(self, model_output: T, timestep: Any, sample: T, order: int = 4, return_dict: bool = True) -> Any:
        if not 1 <= order <= 5:
            raise ValueError(f"order must be from 1 to 5, got {order}")
        place = self._enter_together(timestep)
        past = self.derivatives[::-1][: order - 1]
        count = len(past)

        def rule(i: int) -> Step:
            before = [self._at(i - j) for j in range(1, min(i, order - 1) + 1)]
            step = self._follow(lms, self._at(i), self._at(i + 1), before, u="epsilon", keep=True, order=order)
            # After a start inside the table theirs has weights for derivatives that it has not.
            return replace(step, prev=step.prev.without(*(f"h{j}" for j in range(count + 1, 5))))

        prev, newest, x0 = self._fuse(place, rule, sample, model_output, history=past, show=True)
        self.derivatives.append(newest)
        if len(self.derivatives) > order:
            self.derivatives.pop(0)
        self._advance(place)
        return self._finish(return_dict, prev, x0)


def preconditioned(config: Any, sigma: Any) -> Form:
    """x0 = c_skip x + c_out F (Karras et al. 2022, table 1); c_out is negative for v."""
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be epsilon or v_prediction, got {config.prediction_type!r}")
    std, norm = config.sigma_data, (sigma**2 + config.sigma_data**2) ** 0.5
    sign = 1.0 if config.prediction_type == "epsilon" else -1.0
    return Form(x=std**2 / norm**2, m=sign * sigma * std / norm)


class EDMEulerScheduler(ChurnedEuler):
    def _data_std(self) -> float:
        return float(self.config.sigma_data)

    def step(
        self, model_output: T, timestep: Any, sample: T, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Any = None, return_dict: bool = True,
        pred_original_sample: T | None = None, *, seeds: Any = None,
    ) -> Any:  # fmt: skip
        churn = s_churn, s_tmin, s_tmax, s_noise, generator, seeds
        return self._churned_euler(model_output, timestep, sample, return_dict, *churn, clean=pred_original_sample)

    def _clean(self, sigma: Any, hat: Point) -> Form:
        return preconditioned(self.config, hat.sigma)


class CMStochasticIterativeScheduler(OnSigmas):
    """Song et al. 2023, algorithm 1."""

    def _data_std(self) -> float:
        return float(self.config.sigma_data)

    def _bound(self) -> float | None:
        return 1.0 if self.config.clip_denoised else None

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        refuse_integers(self, timestep)
        place = self._enter(timestep)
        noise = self._draw(model_output, generator, seeds) if len(self.timesteps) > 1 else None
        last = noise is None

        def rule(i: int) -> Step:
            config, sigmas = self.config, self._host("sigmas")
            sigma, std, least = sigmas[i], config.sigma_data, config.sigma_min
            there = np.clip(sigmas[i + 1 if i + 1 < config.num_train_timesteps else -1], least, config.sigma_max)
            above = sigma - least
            x0 = X * (std**2 / (above**2 + std**2)) + M * (above * std / (sigma**2 + std**2) ** 0.5)
            aim = level(0.0 if last else config.s_noise * (there**2 - least**2) ** 0.5)
            step = self._follow(consistency, level(sigma), aim, x0=x0)
            return replace(step, draw=self._draw_at(level(there), self._visit(min(i + 1, len(sigmas) - 1))))

        prev = self._fuse(place, rule, sample, model_output, noise=noise)[0]
        self._advance(place)
        return self._finish(return_dict, prev)


# --- two stages: the second starts again from the state before the first


class HeunDiscreteScheduler(OnSigmas):
    def step(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        place, first = self._enter_together(timestep), self.state_in_first_order
        start = place if first else place - 1

        def rule(i: int) -> Step:
            stage = 0 if first else 1
            return self._follow(heun, self._at(i), self._at(i + 1), stage=stage, u="epsilon", keep=first)

        origin, history = (None, []) if first else (self.sample, [self.prev_derivative])
        prev, slope, x0 = self._fuse(start, rule, sample, model_output, base=origin, history=history, show=True)
        sigma, there = self._host("sigmas")[start : start + 2]
        self.prev_derivative, self.dt, self.sample = slope, there - sigma if first else None, sample if first else None
        self._advance(place)
        return self._finish(return_dict, prev, x0)


class KDPM2(OnSigmas):
    """DPM-Solver-2: a stage to the middle, then one from the start with the middle's slope; diffusers' tables say where."""

    #: Where in the table of middles that of a step's start is.
    _middle = 0

    def _seen(self, place: int, first: bool) -> Any:
        return self._host("sigmas")[place] if first else self._host("sigmas_interpol")[place - 1 + self._middle]

    def _two_stages(
        self, sampler: Sampler, model_output: T, timestep: Any, sample: T, return_dict: bool, noise: Any = None
    ) -> Any:
        self._refuse_sample()
        place, first = self._enter_together(timestep), self.state_in_first_order
        origin, stage = (None, 0) if first else (self.sample, 1)

        def rule(i: int) -> Step:
            options: dict[str, Any] = {"middle": level(self._host("sigmas_interpol")[i + self._middle])}
            if sampler is dpm2_ancestral:
                options["split"] = self._host("sigmas_down")[i], self._host("sigmas_up")[i]
            ends, visit = (self._at(i), self._at(i + 1)), self._visit(i + 1, stages=2)
            return self._follow(sampler, *ends, stage=stage, u="epsilon", visit=visit, **options)

        start = place - stage
        prev, _, x0 = self._fuse(start, rule, sample, model_output, base=origin, noise=noise, show=True)
        self.sample = sample if first else None
        self._advance(place)
        return self._finish(return_dict, prev, x0)


class KDPM2DiscreteScheduler(KDPM2):
    _middle = 1

    def step(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        return self._two_stages(dpm2, model_output, timestep, sample, return_dict)


class KDPM2AncestralDiscreteScheduler(KDPM2):
    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        noise = None if self.state_in_first_order else self._draw(model_output, generator, seeds)
        return self._two_stages(dpm2_ancestral, model_output, timestep, sample, return_dict, noise)


def _torchsde_noise(like: T, low: float, high: float, seed: Any) -> Any:
    """diffusers' sampler of that path, its trees remembering 100 states.

    The two ends of a step are 60 intervals: torchsde's 45 states forget the one on the way to the other, and every third
    normal is drawn twice.
    """
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler
    from torchsde import BrownianInterval

    sampler = BrownianTreeNoiseSampler(like, low, high, seed)
    ends = sorted(float(torch.as_tensor(end)) for end in (low, high))
    sampler.tree.trees = [
        BrownianInterval(
            *ends, size=tree.shape, dtype=tree.dtype, device=tree.device, entropy=tree.entropy, tol=tree.tol,
            pool_size=tree.pool_size, halfway_tree=tree.halfway_tree, cache_size=100,
        )
        for tree in sampler.tree.trees
    ]  # fmt: skip
    return sampler


class BrownianSteps(Fused):
    """Noise that is the increment of a Brownian path in sigma: torchsde's as theirs, or one of seeds (``BrownianPath``)."""

    noise_sampler: Any

    def _increment(self, like: T, low: float, high: float, generator_seed: Any, start: T, end: T, seeds: Any) -> T:
        """(W(start) - W(end)) / sqrt(start - end) of the path on [low, high]."""
        seeds = self._memory.seeds if seeds is None else seeds
        if seeds is not None:
            dtype = like.dtype if like.dtype == torch.float64 else torch.float32
            path = BrownianPath(seed_tensor(seeds, like.shape[0], like.device), like.shape[1:], low, high, dtype=dtype)
            ends = [min(max(float(t), low), high) for t in (start, end)]
            return path.normal(*ends) if ends[0] > ends[1] else torch.zeros_like(like)
        if self.noise_sampler is None:
            self.noise_sampler = _torchsde_noise(like, low, high, generator_seed)
        return torch.as_tensor(self.noise_sampler(start, end)).to(like.device)


class DPMSolverSDEScheduler(BrownianSteps, OnSigmas):
    """DPM-Solver++ as a two-stage SDE solver (k-diffusion's dpmpp_sde), its noises as the path has them."""

    def _seen(self, place: int, first: bool) -> Any:
        return self._host("sigmas")[place] if first else self.mid_point_sigma

    def step(
        self, model_output: T, timestep: Any, sample: T, return_dict: bool = True, s_noise: float = 1.0, *, seeds: Any = None
    ) -> Any:
        self._refuse_sample()
        place, first = self._enter_together(timestep), self.state_in_first_order
        start, sigmas = place if first else place - 1, self._host("sigmas")
        last = sigmas[start + 1] == 0

        def rule(i: int) -> Step:
            stage, ends = 0 if first else 1, (self._at(i), self._at(i + 1))
            return self._follow(dpmpp_sde, *ends, stage=stage, u="x0", noise_scale=s_noise, brownian=False)

        noise, origin = None, None
        if not last:
            positive = sigmas[sigmas > 0]
            low, high = float(positive.min()), float(sigmas.max())
            # torchsde's tree takes the last bit of a time for another time: through logarithms and back, as theirs.
            logs = self.sigmas[start : start + 2].log()
            end = logs[0] + (logs[1] - logs[0]) * 0.5 if first else logs[1]
            noise = self._increment(sample, low, high, self.noise_sampler_seed, logs[0].exp(), end.exp(), seeds)
            origin = None if first else self.sample
        prev, _, x0 = self._fuse(start, rule, sample, model_output, base=origin, noise=noise, show=True)
        if not last:
            self.sample = sample if first else None
            self.mid_point_sigma = torch.tensor((sigmas[start] * sigmas[start + 1]) ** 0.5) if first else None
        self._advance(place)
        return self._finish(return_dict, prev, x0)


class KarrasVeScheduler(Fused):
    """Karras et al. 2022, algorithm 2; the caller holds the states and says the levels, the model says -epsilon."""

    def add_noise_to_input(self, sample: T, sigma: Any, generator: Any = None, *, seeds: Any = None) -> Any:
        """The state at a higher level, and that level."""
        config, given, sigma = self.config, sigma, self._number(sigma)
        gamma = min(config.s_churn / self.num_inference_steps, 2**0.5 - 1) if config.s_min <= sigma <= config.s_max else 0
        noise = self._draw(sample, generator, seeds, dtype=torch.get_default_dtype(), device=torch.device("cpu"))
        added = config.s_noise * ((sigma + gamma * sigma) ** 2 - sigma**2) ** 0.5
        rule = lambda _: Step(X + N * added, draw=self._draw_at(level(sigma + gamma * sigma)))  # noqa: E731
        noised = self._fuse(0, rule, sample, sample, noise=noise, upcast=True)[0]
        return noised, given + gamma * given

    def step(self, model_output: T, sigma_hat: Any, sigma_prev: Any, sample_hat: T, return_dict: bool = True) -> Any:
        here, there = level(self._number(sigma_hat)), level(self._number(sigma_prev))
        rule = lambda _: self._follow(euler, here, there, u=-M, keep=True, x0=X + M * here.sigma)  # noqa: E731
        outputs = self._fuse(0, rule, sample_hat, model_output, show=True)
        return self._finish(True, *outputs) if return_dict else outputs[:2]

    def step_correct(
        self, model_output: T, sigma_hat: Any, sigma_prev: Any, sample_hat: T, sample_prev: T, derivative: T,
        return_dict: bool = True,
    ) -> Any:  # fmt: skip
        here, there = level(self._number(sigma_hat)), level(self._number(sigma_prev))

        def rule(_: int) -> Step:
            return self._follow(heun, here, there, stage=1, u=-M, x0=X + M * there.sigma)

        prev, _, x0 = self._fuse(0, rule, sample_prev, model_output, base=sample_hat, history=[derivative], show=True)
        return self._finish(True, prev, derivative, x0) if return_dict else (prev, derivative)
