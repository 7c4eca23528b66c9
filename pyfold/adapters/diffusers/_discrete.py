"""Schedulers on a table of betas: DDPM, DDIM, their relatives, consistency models on such a table, and PNDM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pyfold._elementary import sqrt
from pyfold.adapters.diffusers._fused import Fused
from pyfold.adapters.diffusers._rows import Counted, Step, T, as_dtype, noise_tensor
from pyfold.diffusion.draws import Addresses, stream_and_step
from pyfold.diffusion.formulas import BASE, X0, Form, H, M, N, X, weighted
from pyfold.diffusion.samplers._declare import NOISE_FRAME
from pyfold.diffusion.samplers.ancestral import boundary, consistency, ddim, lcm, posterior, posterior_mean, strategic
from pyfold.diffusion.samplers.exponential import dpmpp_multistep
from pyfold.diffusion.samplers.linear import ADAMS_BASHFORTH, ipndm
from pyfold.diffusion.samplers.runge_kutta import line
from pyfold.diffusion.schedule import Point
from pyfold.ops import add_noise

DATA = Point(0.0, 1.0, 0.0)


class OnBetas(Fused):
    """What all of them share: ``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps``."""

    #: The table's name for the abar before its first.
    _end: str | None = None

    def _abar(self, t: Any) -> Any:
        """abar of a timestep; before the first, what the configuration says."""
        if isinstance(t, torch.Tensor):
            table = self._on("alphas_cumprod", t.device)
            return torch.where(t >= 0, table[t.clamp(min=0)], 1.0)
        if t >= 0:
            return self._host("alphas_cumprod")[int(t)]
        return np.float64(1.0) if self._end is None else self._host(self._end)[()]

    def _at(self, t: Any) -> Point:
        abar = self._abar(t)
        return Point(t, abar**0.5, (1 - abar) ** 0.5)

    def _stride(self) -> int:
        return int(self.config.num_train_timesteps // self.num_inference_steps)


class Noising(OnBetas):
    def add_noise(self, original_samples: T, noise: T | None, timesteps: T, *, seeds: Any = None) -> T:
        """diffusers' ``add_noise``, the schedule not rounded to the samples' dtype; ``noise`` None for noise from seeds."""
        alpha, sigma = self._levels(timesteps, original_samples.device)
        return self._combine(original_samples, alpha, noise, sigma, seeds)

    def _levels(self, timesteps: T, device: torch.device) -> tuple[T, T]:
        abar = self._on("alphas_cumprod", device)[timesteps.to(device).reshape(-1)]
        return sqrt(abar), sqrt(1 - abar)


class Velocity(Noising):
    def get_velocity(self, sample: T, noise: T, timesteps: T) -> T:
        """v of the noised sample (Salimans and Ho 2022)."""
        alpha, sigma = self._levels(timesteps, sample.device)
        return self._combine(sample, -sigma, noise, alpha, None)


# --- DDIM


class DDIM(OnBetas):
    _end = "final_alpha_cumprod"

    def step(
        self, model_output: T, timestep: Any, sample: T, eta: float = 0.0, use_clipped_model_output: bool = False,
        generator: Any = None, variance_noise: T | None = None, return_dict: bool = True, *, seeds: Any = None,
    ) -> Any:  # fmt: skip
        self._ready()
        if variance_noise is not None and generator is not None and eta > 0:
            raise ValueError("variance_noise and generator must not be given together")
        noise = self._draw(model_output, generator, seeds, given=variance_noise) if eta > 0 else None
        stride, raw = self._stride(), not use_clipped_model_output
        rule = lambda t: self._follow(ddim, self._at(t), self._at(t - stride), raw=raw, eta=eta)  # noqa: E731
        prev, _, x0 = self._fuse(self._numbers(timestep), rule, sample, model_output, noise=noise, show=True)
        return self._finish(return_dict, prev, x0)


class DDIMScheduler(DDIM, Velocity):
    pass


class DDIMParallelScheduler(DDIM, Velocity):
    def batch_step_no_noise(
        self, model_output: T, timesteps: T, sample: T, eta: float = 0.0, use_clipped_model_output: bool = False
    ) -> T:
        """A deterministic step of each sample at its own timestep; abar before the first is 1."""
        self._ready()
        if eta != 0.0:
            raise ValueError(f"eta must be 0 for batch_step_no_noise, got {eta}")
        t = timesteps.to(model_output.device).reshape(-1)
        rule = lambda _: self._follow(ddim, self._at(t), self._at(t - self._stride()), raw=True)  # noqa: E731
        return self._fuse(0, rule, sample, model_output)[0]


class DDIMInverseScheduler(DDIM):
    """From data to noise."""

    _end = "initial_alpha_cumprod"

    def step(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:  # type: ignore[override]
        stride, last = self._stride(), self.config.num_train_timesteps - 1
        rule = lambda t: self._follow(ddim, self._at(min(t - stride, last)), self._at(t), raw=True)  # noqa: E731
        prev, _, x0 = self._fuse(self._numbers(timestep), rule, sample, model_output, show=True)
        return self._finish(return_dict, prev, x0)


class CogVideoXDDIMScheduler(DDIM, Velocity):
    """Deterministic, whatever eta; theirs has the clip's setting and does not read it."""

    def _bound(self) -> None:
        return None

    def step(  # type: ignore[override]
        self, model_output: T, timestep: Any, sample: T, eta: float = 0.0, use_clipped_model_output: bool = False,
        generator: Any = None, variance_noise: T | None = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        return super().step(model_output, timestep, sample, return_dict=return_dict)


class CogVideoXDPMScheduler(Velocity):
    """The SDE form of DPM-Solver++, whose caller keeps the earlier x0."""

    _end = "final_alpha_cumprod"

    def _bound(self) -> None:
        return None

    def step(
        self, model_output: T, old_pred_original_sample: T | None, timestep: Any, timestep_back: Any, sample: T,
        eta: float = 0.0, use_clipped_model_output: bool = False, generator: Any = None, variance_noise: T | None = None,
        return_dict: bool = False, *, seeds: Any = None,
    ) -> Any:  # fmt: skip
        self._ready()
        stride, t = self._stride(), self._number(timestep)
        history = [old_pred_original_sample] if old_pred_original_sample is not None and t >= stride else []
        back = [self._number(timestep_back)] if history else []
        noise = self._draw(sample, generator, seeds)
        if history and isinstance(noise, torch.Tensor):
            # Theirs draws for a first-order step, which it throws away.
            noise = self._draw(sample, generator, seeds)

        def rule(t: int) -> Step:
            past = [self._at(earlier) for earlier in back]
            return self._follow(dpmpp_multistep, self._at(t), self._at(t - stride), past, u="x0", eta=1.0)

        prev, _, x0 = self._fuse(t, rule, sample, model_output, history=history, noise=noise, show=True)
        # Theirs returns a tuple from first-order steps always.
        return self._finish(return_dict and bool(history), prev, x0)


# --- DDPM


class DDPM(OnBetas):
    """Ho et al. 2020, eq. 6 and 7, and the variances of Nichol and Dhariwal 2021, eq. 15.

    Of the rule of :func:`pyfold.diffusion.ddpm` the mean and the variance: UnCLIP has its betas from a table, and a step that
    ends without noise adds some here unless its timestep is 0.
    """

    def _split(self, model_output: T, sample: T) -> tuple[T, T | None]:
        """(output, its second half, which says the variance)."""
        if self.variance_type in ("learned", "learned_range") and model_output.shape[1] == sample.shape[1] * 2:
            first, second = torch.split(model_output, sample.shape[1], dim=1)
            return first, second
        return model_output, None

    def _ratio(self, t: Any, before: Any) -> tuple[Any, Any]:
        """(abar over that before the step, beta)."""
        ratio = self._abar(t) / self._abar(before)
        return ratio, 1 - ratio

    def _mean(self, t: Any, before: Any) -> Step:
        here, (ratio, beta) = self._at(t), self._ratio(t, before)
        return self._meant(posterior_mean(here, self._at(before), X0, beta, ratio**0.5), here)

    def _ancestral(
        self, t: Any, before: dict[int, int], model_output: T, sample: T, generator: Any, seeds: Any, return_dict: bool
    ) -> Any:
        """``before``: where the step from each timestep leads."""
        each = t if isinstance(t, list) else [t]
        model_output, levels = self._split(model_output, sample)
        noise = self._draw(model_output, generator, seeds) if any(j > 0 for j in before) else None
        kind, noisy, learned = self.variance_type, noise is not None, False
        if noise is not None and levels is not None:
            learned = True
            draws = [self._draw_at(self._at(before[j])) for j in each]
            noise = noise_tensor(noise, model_output, draws) * self._std_of(levels, [(j, before[j]) for j in each])
        ends = tuple(before.items())

        def rule(j: int) -> Step:
            end = dict(ends)[j]
            mean, beta = self._mean(j, end), self._ratio(j, end)[1]
            if j <= 0 or not noisy:
                return mean
            if learned:
                std = 1.0
            elif kind in ("fixed_small", "fixed_small_log"):
                std = max((1 - self._abar(end)) / (1 - self._abar(j)) * beta, 1e-20) ** 0.5
            elif kind in ("fixed_large", "fixed_large_log"):
                # Theirs is NaN for fixed_large_log, a root of a logarithm; here it is what the name says.
                std = beta**0.5
            else:
                raise ValueError(f"variance_type {kind!r} needs a model of twice the sample's channels")
            return Step(mean.prev + N * std, x0=mean.x0, clip=mean.clip, draw=self._draw_at(self._at(end)))

        prev, _, x0 = self._fuse(t, rule, sample, model_output, noise=noise, show=True)
        return self._finish(return_dict, prev, x0)

    def _std_of(self, levels: Any, ends: list[tuple[int, int]]) -> T:
        """Of the noise, as the model's second half of channels says it, for the ends of one step or of each sample's."""
        if self.variance_type == "learned":
            return torch.as_tensor(levels**0.5)
        bounds = []
        with np.errstate(all="ignore"):
            for j, earlier in ends:
                beta = self._ratio(j, earlier)[1]
                small = (1 - self._abar(earlier)) / (1 - self._abar(j)) * beta
                bounds.append((np.log(max(small, 1e-20)), np.log(beta)))
        low, high = (
            torch.tensor(bound, dtype=levels.dtype, device=levels.device).view(-1, *[1] * (levels.dim() - 1))
            for bound in zip(*bounds, strict=True)
        )
        part = (levels + 1) / 2
        return torch.as_tensor((0.5 * (part * high + (1 - part) * low)).exp())

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        t = self._numbers(timestep)
        before = {j: self._previous(j) for j in (t if isinstance(t, list) else [t])}
        return self._ancestral(t, before, model_output, sample, generator, seeds, return_dict)

    def _previous(self, t: int) -> int:
        if not (self.custom_timesteps or self.num_inference_steps):
            return t - 1
        times = self._host("timesteps")
        place = np.flatnonzero(times == t)
        if not len(place):
            raise ValueError(f"timestep must be from {type(self).__name__}.timesteps, got {t}")
        return int(times[place[0] + 1]) if place[0] + 1 < len(times) else -1


class DDPMScheduler(DDPM, Velocity):
    pass


class DDPMParallelScheduler(DDPM, Velocity):
    def batch_step_no_noise(self, model_output: T, timesteps: T, sample: T) -> T:
        """The posterior's mean of each sample at its own timestep."""
        t = timesteps.to(model_output.device).reshape(-1)
        stride = self.config.num_train_timesteps // (self.num_inference_steps or self.config.num_train_timesteps)

        return self._fuse(0, lambda _: self._mean(t, t - stride), sample, self._split(model_output, sample)[0])[0]


class UnCLIPScheduler(DDPM, Noising):
    def _ratio(self, t: Any, before: Any) -> tuple[Any, Any]:
        if before == t - 1:
            return self._host("alphas")[int(t)], self._host("betas")[int(t)]
        return super()._ratio(t, before)

    def step(  # type: ignore[override]
        self, model_output: T, timestep: Any, sample: T, prev_timestep: Any = None, generator: Any = None,
        return_dict: bool = True, *, seeds: Any = None,
    ) -> Any:  # fmt: skip
        t = self._numbers(timestep)
        earlier = None if prev_timestep is None else self._number(prev_timestep)
        before = {j: j - 1 if earlier is None else earlier for j in (t if isinstance(t, list) else [t])}
        return self._ancestral(t, before, model_output, sample, generator, seeds, return_dict)


class DDPMWuerstchenScheduler(Fused):
    """Timesteps are from 0 to 1, one for each sample, on a cosine; the model predicts epsilon."""

    def _at(self, t: T, device: torch.device) -> Point:
        abar = self._alpha_cumprod(t.to(device), device).double().reshape(-1)
        return Point(t, sqrt(abar), sqrt(1 - abar))  # type: ignore[arg-type]

    def step(
        self, model_output: T, timestep: T, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        t, before = (time.to(sample.device) for time in (timestep, self.previous_timestep(timestep)))
        noise = self._draw(model_output, generator, seeds)

        def rule(_: int, reads: Any = (self.scaler, self.s, self._init_alpha_cumprod)) -> Step:
            here, there = self._at(t, t.device), self._at(before, t.device)
            beta, variance = posterior(here, there)
            mean = posterior_mean(here, there, self._means("x0", here), beta)
            prev = mean + N * torch.where(before != 0, variance**0.5, 0.0)
            return Step(prev, draw=self._draw_at(there))

        prev = self._fuse(0, rule, sample, model_output, noise=noise)[0]
        return self._finish(return_dict, as_dtype(prev, model_output.dtype))

    def add_noise(self, original_samples: T, noise: T | None, timesteps: T, *, seeds: Any = None) -> T:
        _, alpha, sigma = self._at(timesteps, original_samples.device)
        return self._combine(original_samples, alpha, noise, sigma, seeds).to(original_samples.dtype)


class RePaintScheduler(OnBetas):
    """Lugmayr et al. 2022, algorithm 1: DDIM where the mask is 0, the noised original where it is 1.

    A level that the run returns to is another visit of it; a step's noise is that of both parts, which share no element.
    """

    _end = "final_alpha_cumprod"

    def _bound(self) -> float | None:
        return 1.0 if self.config.clip_sample else None

    def add_noise(self, original_samples: T, noise: T, timesteps: T) -> T:
        raise NotImplementedError("RePaint is trained with DDPMScheduler.add_noise")

    def _noised(self, x: T, alpha: Any, sigma: Any, noise: Any, draw: Any) -> T:
        if isinstance(noise, torch.Tensor):
            return self._combine(x, float(alpha), noise, float(sigma), None)
        noised: T = add_noise(x, float(alpha), float(sigma), noise.seeds, **stream_and_step(draw))
        return noised

    def step(
        self, model_output: T, timestep: Any, sample: T, original_image: T, mask: T, generator: Any = None,
        return_dict: bool = True, *, seeds: Any = None,
    ) -> Any:  # fmt: skip
        t, stride, eta = self._number(timestep), self._stride(), self.eta
        noise, there = self._draw(model_output, generator, seeds), self._at(t - stride)
        draw = self._way(Addresses).step(self._at(t), there, [None])[0] if isinstance(noise, Counted) else None

        def rule(t: int) -> Step:
            step = self._follow(ddim, self._at(t), self._at(t - stride), raw=True, eta=eta if t > 0 else 0.0)
            return replace(step, draw=draw)

        generated, _, x0 = self._fuse(t, rule, sample, model_output, noise=noise, show=True)
        original_part = self._noised(as_dtype(original_image, generated.dtype), there.alpha, there.sigma, noise, draw)
        return self._finish(return_dict, mask * original_part + (1.0 - mask) * generated, x0)

    def undo_step(self, sample: T, timestep: Any, generator: Any = None, *, seeds: Any = None) -> T:
        """Back to more noise, one training step after the other: draws 0, 1, ... of the way to the timestep's level."""
        start, stride = int(self._number(timestep)), self._stride()
        draws = self._way(Addresses).step(self._at(start - stride), self._at(start), [None] * stride)
        for i, draw in enumerate(draws, start):
            beta = self._host("betas")[i]
            noise = self._draw(sample, generator, seeds)
            sample = self._noised(sample, (1 - beta) ** 0.5, beta**0.5, noise, draw)
        return sample


# --- consistency models


class ConsistencyDecoderScheduler(Fused):
    def scale_model_input(self, sample: T, timestep: Any = None) -> T:
        return self._scaled(sample, int(self._number(timestep)), lambda t: self._host("c_in")[t])

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        t, times = int(self._number(timestep)), self._host("timesteps")
        place = int(np.flatnonzero(times == t)[0])
        there = int(times[place + 1]) if place + 1 < len(times) else None
        noise = None if there is None else self._draw(sample, generator, seeds)

        def rule(t: int) -> Step:
            x0 = M * self._host("c_out")[t] + X * self._host("c_skip")[t]
            levels = [self._host(name) for name in ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")]
            aim = DATA if there is None else Point(there, *(level[there] for level in levels))
            return self._follow(consistency, DATA, aim, x0=x0)

        return self._finish(return_dict, self._fuse(t, rule, sample, model_output, noise=noise)[0])


class Consistency(Velocity):
    """LCM and TCD: a step from the model's x0, from the timestep at a place of the table to the next's."""

    _end = "final_alpha_cumprod"

    def _consistency(
        self, rule: Callable[[Any, int], Step], model_output: T, timestep: Any, sample: T, generator: Any, seeds: Any,
        stochastic: bool, return_dict: bool,
    ) -> Any:  # fmt: skip
        """``rule(timestep, place)``."""
        self._ready()
        place, times = self._enter(timestep), self._numbers(timestep)
        places = place if isinstance(place, list) else [place]
        at = tuple(zip(places, times if isinstance(times, list) else [times], strict=True))
        noise = None
        if stochastic and any(j != self.num_inference_steps - 1 for j in places):
            dtype = torch.promote_types(sample.dtype, model_output.dtype)
            noise = self._draw(model_output, generator, seeds, dtype=dtype)
        prev, x0, _ = self._fuse(place, lambda j: rule(dict(at)[j], j), sample, model_output, noise=noise)
        self._advance(place)
        return self._finish(return_dict, prev, x0)


class LCMScheduler(Consistency):
    """Luo et al. 2023, algorithm 3."""

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        steps = self.num_inference_steps

        def rule(t: int, place: int) -> Step:
            times, here = self._host("timesteps"), self._at(t)
            there = DATA if place == steps - 1 else self._at(times[place + 1] if place + 1 < len(times) else t)
            scaling = self.config.timestep_scaling
            denoised = self._meant(boundary(t * scaling, 0.5, X0), here).prev
            return replace(self._follow(lcm, here, there, time_scaling=scaling), keep=denoised)

        return self._consistency(rule, model_output, timestep, sample, generator, seeds, True, return_dict)


class TCDScheduler(Consistency):
    """Zheng et al. 2024, algorithm 4."""

    def _bound(self) -> None:
        # Theirs has the settings and does not read them.
        return None

    def step(
        self, model_output: T, timestep: Any, sample: T, eta: float = 0.3, generator: Any = None, return_dict: bool = True,
        *, seeds: Any = None,
    ) -> Any:  # fmt: skip
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        steps = self.num_inference_steps

        def rule(t: int, place: int) -> Step:
            times, here = self._host("timesteps"), self._at(t)
            there = int(times[place + 1]) if place + 1 < len(times) else 0
            # In float32, as theirs: a product just below a whole number is the next one.
            middle = self._at(int(np.float32(1 - eta) * np.float32(there)))
            down = self._follow(ddim, here, middle)
            last = eta == 0 or place == steps - 1
            prev = down.prev if last else strategic(middle, self._at(there), down.prev)
            return Step(prev, keep=down.prev, x0=down.x0, draw=self._draw_at(self._at(there)))

        return self._consistency(rule, model_output, timestep, sample, generator, seeds, eta > 0, return_dict)


# --- pseudo numerical methods


class PNDMScheduler(Noising):
    """Liu et al. 2022, algorithms 1 and 2. Outputs are mixed as they are, then taken for epsilon at the step's start.

    The rules of plms keep derivatives where these keep outputs, and no state before the step; what is left is eq. 9 alone.
    """

    _end = "final_alpha_cumprod"
    ets: list[T]
    cur_sample: Any
    counter: int

    def _transfer(self, mixed: Form, start: Form, t: int, there: int) -> Step:
        """Eq. 9 of the paper, from the state ``start``."""
        here = self._at(t)
        if self.config.prediction_type == "v_prediction":
            mixed = mixed * here.alpha + start * here.sigma
        elif self.config.prediction_type != "epsilon":
            raise ValueError(f"prediction_type must be epsilon or v_prediction, got {self.config.prediction_type!r}")
        return Step(line(NOISE_FRAME, here, self._at(there), start, mixed))

    def step(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        first = self.counter < len(self.prk_timesteps) and not self.config.skip_prk_steps
        return (self.step_prk if first else self.step_plms)(model_output, timestep, sample, return_dict)

    def step_prk(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        """A stage of Runge-Kutta, whose four make a step."""
        self._ready()
        t, stage, memory = self._number(timestep), self.counter % 4, self._memory
        there = t - (0 if self.counter % 2 else self._stride() // 2)
        start = self.prk_timesteps[self.counter // 4 * 4]
        if stage == 0:
            self.ets.append(model_output)
            self.cur_sample = sample
            memory.stages = []
        history = memory.stages[::-1] if stage == 3 else []

        def rule(_: int) -> Step:
            return self._transfer(weighted((M, *H), [1 / 6, 1 / 3, 1 / 3, 1 / 6]) if stage == 3 else M, BASE, start, there)

        prev = self._fuse(t, rule, sample, model_output, base=self.cur_sample, history=history)[0]
        memory.stages.append(model_output)
        self.counter += 1
        return self._finish(return_dict, prev)

    def step_plms(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        """A linear multistep; the first is done again with what it led to."""
        self._ready()
        if not self.config.skip_prk_steps and len(self.ets) < 3:
            raise ValueError(f"step_plms needs 12 stages of step_prk before it, or skip_prk_steps, got {len(self.ets)} steps")
        t, twice = self._number(timestep), self.counter == 1
        there, start = t - self._stride(), X
        if twice:
            there, t, start = t, t + self._stride(), BASE
            past, weights = self.ets[-1:], [0.5, 0.5]
        else:
            if self.counter == 0:
                self.cur_sample = sample
            past = self.ets[-3:][::-1]
            weights = ADAMS_BASHFORTH[len(past)]
            self.ets = [*self.ets[-3:], model_output]

        rule = lambda t: self._transfer(weighted((M, *H), weights), start, t, there)  # noqa: E731
        prev = self._fuse(t, rule, sample, model_output, base=self.cur_sample if twice else None, history=past)[0]
        if twice:
            self.cur_sample = None
        self.counter += 1
        return self._finish(return_dict, prev)


class IPNDMScheduler(Fused):
    """Adams-Bashforth of up to order 4 on what the tables make of the model's output."""

    ets: list[Any]

    def _at(self, i: int) -> Point:
        return Point(i, max(self._host("alphas")[i], 1e-8), self._host("betas")[i])

    def step(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        self._ready()
        place, past = self._enter_together(timestep), self.ets[::-1][:3]
        count = len(past)

        def rule(i: int) -> Step:
            direction = X * self._host("betas")[i] + M * self._host("alphas")[i]
            before = [self._at(i - j) for j in range(1, count + 1)]
            return self._follow(ipndm, self._at(i), self._at(i + 1), before, u=direction, keep=True, shows=False)

        prev, newest, _ = self._fuse(place, rule, sample, model_output, history=past)
        self.ets = [*self.ets[-3:], newest]
        self._advance(place)
        return self._finish(return_dict, prev)
