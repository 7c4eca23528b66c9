"""Schedulers on a table of betas: DDPM, DDIM, their relatives, consistency models on such a table, and PNDM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pyfold.adapters.diffusers._fused import Fused, Step, base, noise_tensor
from pyfold.diffusion.formulas import BASE, X0, H, M, N, X
from pyfold.diffusion.samplers.linear import ADAMS_BASHFORTH
from pyfold.ops import SAMPLER_STREAM, add_noise


class OnBetas(Fused):
    """What all of them share: ``x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps``."""

    _tables = ("alphas_cumprod",)

    def _abar(self, t: Any) -> Any:
        """abar of a timestep; before the first, what the configuration says."""
        if isinstance(t, torch.Tensor):
            table = self._on("alphas_cumprod", t.device)
            return torch.where(t >= 0, table[t.clamp(min=0)], 1.0)
        if t >= 0:
            return self._host("alphas_cumprod")[int(t)]
        return np.float64(1.0) if self._end is None else self._host(self._end)[()]

    def _clean(self, abar: Any) -> tuple[Any, Any]:
        """(x0 before the clip, x0 in formulas)."""
        x0 = self._known("x0", abar**0.5, (1 - abar) ** 0.5)
        return x0, (x0 if self._bound() is None else X0)

    def _stride(self) -> int:
        return self.config.num_train_timesteps // self.num_inference_steps

    def _ready(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step, num_inference_steps is None")


class Noising(OnBetas):
    def add_noise(self, original_samples, noise, timesteps, *, seeds=None):
        """diffusers' ``add_noise``, the schedule not rounded to the samples' dtype; ``noise`` None for noise from seeds."""
        alpha, sigma = self._levels(timesteps, original_samples.device)
        return self._combine(original_samples, alpha, noise, sigma, seeds)

    def _levels(self, timesteps, device):
        abar = self._on("alphas_cumprod", device)[timesteps.to(device).reshape(-1)]
        return abar.sqrt(), (1 - abar).sqrt()


class Velocity(Noising):
    def get_velocity(self, sample, noise, timesteps):
        """v of the noised sample (Salimans and Ho 2022)."""
        alpha, sigma = self._levels(timesteps, sample.device)
        return self._combine(sample, -sigma, noise, alpha, None)


# --- DDIM


class DDIM(OnBetas):
    _end = "final_alpha_cumprod"

    def _ddim(self, abar: Any, before: Any, eta: float, clipped: bool) -> Step:
        """Song et al. 2021, eq. 12 and 16."""
        alpha, sigma = abar**0.5, (1 - abar) ** 0.5
        x0, clean = self._clean(abar)
        epsilon = (X - clean * alpha) / sigma if clipped else self._known("epsilon", alpha, sigma)
        prev = clean * before**0.5
        if eta == 0:
            return Step(prev + epsilon * (1 - before) ** 0.5, x0=x0, clip=self._bound())
        std = eta * ((1 - before) / (1 - abar) * (1 - abar / before)) ** 0.5
        return Step(prev + epsilon * (1 - before - std**2) ** 0.5 + N * std, x0=x0, clip=self._bound())

    def step(
        self,
        model_output,
        timestep,
        sample,
        eta=0.0,
        use_clipped_model_output=False,
        generator=None,
        variance_noise=None,
        return_dict=True,
        *,
        seeds=None,
    ):
        self._ready()
        if variance_noise is not None and generator is not None and eta > 0:
            raise ValueError("variance_noise and generator must not be given together")
        noise = self._draw(model_output, generator, seeds, given=variance_noise) if eta > 0 else None
        stride = self._stride()

        def rule(t):
            return self._ddim(self._abar(t), self._abar(t - stride), eta, use_clipped_model_output)

        tag = eta, use_clipped_model_output, stride
        prev, _, x0 = self._fuse(self._numbers(timestep), rule, sample, model_output, tag=tag, noise=noise, show=True)
        return self._finish(return_dict, prev, x0)


class DDIMScheduler(DDIM, Velocity, base("DDIMScheduler")):
    pass


class DDIMParallelScheduler(DDIM, Velocity, base("DDIMParallelScheduler")):
    def batch_step_no_noise(self, model_output, timesteps, sample, eta=0.0, use_clipped_model_output=False):
        """A deterministic step of each sample at its own timestep; abar before the first is 1."""
        self._ready()
        if eta != 0.0:
            raise ValueError(f"eta must be 0 for batch_step_no_noise, got {eta}")
        t = timesteps.to(model_output.device).reshape(-1)

        def rule(_):
            return self._ddim(self._abar(t), self._abar(t - self._stride()), 0.0, use_clipped_model_output)

        return self._fuse(None, rule, sample, model_output)[0]


class DDIMInverseScheduler(DDIM, base("DDIMInverseScheduler")):
    """From data to noise."""

    _end = "initial_alpha_cumprod"

    def step(self, model_output, timestep, sample, return_dict=True):
        stride = self._stride()

        def rule(t):
            here = min(t - stride, self.config.num_train_timesteps - 1)
            return self._ddim(self._abar(here), self._abar(t), 0.0, False)

        prev, _, x0 = self._fuse(self._numbers(timestep), rule, sample, model_output, tag=stride, show=True)
        return self._finish(return_dict, prev, x0)


class CogVideoXDDIMScheduler(Velocity, base("CogVideoXDDIMScheduler")):
    _end = "final_alpha_cumprod"

    def _bound(self):
        # Theirs has the setting and does not read it.
        return None

    def step(
        self,
        model_output,
        timestep,
        sample,
        eta=0.0,
        use_clipped_model_output=False,
        generator=None,
        variance_noise=None,
        return_dict=True,
    ):
        self._ready()
        stride = self._stride()

        def rule(t):
            abar, before = self._abar(t), self._abar(t - stride)
            a = ((1 - before) / (1 - abar)) ** 0.5
            x0, clean = self._clean(abar)
            return Step(X * a + clean * (before**0.5 - abar**0.5 * a), x0=x0)

        prev, _, x0 = self._fuse(self._numbers(timestep), rule, sample, model_output, tag=stride, show=True)
        return self._finish(return_dict, prev, x0)


class CogVideoXDPMScheduler(Velocity, base("CogVideoXDPMScheduler")):
    """The SDE form of DPM-Solver++, whose caller keeps the earlier x0."""

    _end = "final_alpha_cumprod"

    def _bound(self):
        return None

    def step(
        self,
        model_output,
        old_pred_original_sample,
        timestep,
        timestep_back,
        sample,
        eta=0.0,
        use_clipped_model_output=False,
        generator=None,
        variance_noise=None,
        return_dict=False,
        *,
        seeds=None,
    ):
        self._ready()
        stride, t = self._stride(), self._number(timestep)
        second = old_pred_original_sample is not None and t - stride >= 0
        back = self._number(timestep_back) if second else None
        noise = self._draw(sample, generator, seeds)
        if second and isinstance(noise, torch.Tensor):
            # Theirs draws for a first-order step, which it throws away.
            noise = self._draw(sample, generator, seeds)

        def rule(t):
            abar, before = self._abar(t), self._abar(t - stride)
            lam, there = (0.5 * np.log(a / (1 - a)) for a in (abar, before))
            h = there - lam
            a = ((1 - before) / (1 - abar)) ** 0.5 * np.exp(-h)
            x0, clean = self._clean(abar)
            slope = 0.0
            if second:
                r = (lam - 0.5 * np.log(self._abar(back) / (1 - self._abar(back)))) / h
                slope = (clean - H[0]) / (2 * r)
            prev = X * a - (clean + slope) * (np.expm1(-2 * h) * before**0.5)
            return Step(prev + N * ((1 - before) * -np.expm1(-2 * h)) ** 0.5, x0=x0)

        history = [old_pred_original_sample] if second else []
        prev, _, x0 = self._fuse(t, rule, sample, model_output, tag=(stride, back), history=history, noise=noise, show=True)
        # Theirs returns a tuple from first-order steps always.
        return self._finish(return_dict and second, prev, x0)


# --- DDPM


class DDPM(OnBetas):
    """Ho et al. 2020, eq. 6 and 7, and the variances of Nichol and Dhariwal 2021, eq. 15."""

    _tables = ("alphas_cumprod", "betas", "alphas")

    def _split(self, model_output, sample):
        """(output, its second half, which says the variance)."""
        learns = self.variance_type in ("learned", "learned_range")
        if learns and model_output.shape[1] == sample.shape[1] * 2:
            return torch.split(model_output, sample.shape[1], dim=1)
        return model_output, None

    def _posterior(self, abar, before, beta, alpha):
        """(step without its noise, variance)."""
        x0, clean = self._clean(abar)
        mean = clean * (before**0.5 * beta / (1 - abar)) + X * (alpha**0.5 * (1 - before) / (1 - abar))
        return Step(mean, x0=x0, clip=self._bound()), (1 - before) / (1 - abar) * beta

    def _std(self, variance, beta):
        """Theirs is NaN for fixed_large_log, a root of a logarithm; here it is what the name says."""
        if self.variance_type in ("fixed_small", "fixed_small_log"):
            return np.maximum(variance, 1e-20) ** 0.5
        if self.variance_type in ("fixed_large", "fixed_large_log"):
            return beta**0.5
        raise ValueError(f"variance_type {self.variance_type!r} needs a model of twice the sample's channels")

    def _ancestral(self, t, levels, tag, model_output, sample, noise, return_dict):
        """``levels(t)``: (abar, abar before, beta, alpha) of the step."""
        model_output, said = self._split(model_output, sample)
        learned = said is not None and noise is not None

        def rule(j):
            abar, before, beta, alpha = levels(j)
            step, variance = self._posterior(abar, before, beta, alpha)
            if j > 0 and noise is not None:
                step = replace(step, prev=step.prev + (N if learned else N * self._std(variance, beta)))
            return step

        if learned:
            with np.errstate(all="ignore"):
                rows = [levels(j) for j in (t if isinstance(t, list) else [t])]
                logs = [(np.log(np.maximum((1 - b) / (1 - a) * beta, 1e-20)), np.log(beta)) for a, b, beta, _ in rows]
            low, high = (
                torch.tensor(v, dtype=said.dtype, device=said.device).view(-1, *[1] * (said.dim() - 1))
                for v in zip(*logs, strict=True)
            )
            if self.variance_type == "learned":
                std = said**0.5
            else:
                part = (said + 1) / 2
                std = (0.5 * (part * high + (1 - part) * low)).exp()
            noise = std * noise_tensor(noise, model_output, t)
        prev, _, x0 = self._fuse(t, rule, sample, model_output, tag=(tag, self.variance_type, learned), noise=noise, show=True)
        return self._finish(return_dict, prev, x0)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        t = self._numbers(timestep)
        times = [t] if not isinstance(t, list) else t
        before = {j: self._previous(j) for j in times}

        def levels(j):
            abar, earlier = self._abar(j), self._abar(before[j])
            return abar, earlier, 1 - abar / earlier, abar / earlier

        like = self._split(model_output, sample)[0]
        noise = self._draw(like, generator, seeds) if any(j > 0 for j in times) else None
        return self._ancestral(t, levels, tuple(before.values()), model_output, sample, noise, return_dict)

    def _previous(self, t):
        if not (self.custom_timesteps or self.num_inference_steps):
            return t - 1
        times = self._host("timesteps")
        place = np.flatnonzero(times == t)
        if not len(place):
            raise ValueError(f"timestep must be from {type(self).__name__}.timesteps, got {t}")
        return int(times[place[0] + 1]) if place[0] + 1 < len(times) else -1


class DDPMScheduler(DDPM, Velocity, base("DDPMScheduler")):
    pass


class DDPMParallelScheduler(DDPM, Velocity, base("DDPMParallelScheduler")):
    def batch_step_no_noise(self, model_output, timesteps, sample):
        """The posterior's mean of each sample at its own timestep."""
        t = timesteps.to(model_output.device).reshape(-1)
        stride = self.config.num_train_timesteps // (self.num_inference_steps or self.config.num_train_timesteps)
        model_output, _ = self._split(model_output, sample)

        def rule(_):
            abar, before = self._abar(t), self._abar(t - stride)
            return self._posterior(abar, before, 1 - abar / before, abar / before)[0]

        return self._fuse(None, rule, sample, model_output)[0]


class UnCLIPScheduler(DDPM, Noising, base("UnCLIPScheduler")):
    def step(self, model_output, timestep, sample, prev_timestep=None, generator=None, return_dict=True, *, seeds=None):
        t = self._numbers(timestep)
        earlier = None if prev_timestep is None else self._number(prev_timestep)

        def levels(j):
            last = j - 1 if earlier is None else earlier
            abar, before = self._abar(j), self._abar(last)
            if last == j - 1:
                return abar, before, self._host("betas")[int(j)], self._host("alphas")[int(j)]
            return abar, before, 1 - abar / before, abar / before

        like = self._split(model_output, sample)[0]
        draws = any(j > 0 for j in (t if isinstance(t, list) else [t]))
        noise = self._draw(like, generator, seeds) if draws else None
        return self._ancestral(t, levels, earlier, model_output, sample, noise, return_dict)


class DDPMWuerstchenScheduler(Fused, base("DDPMWuerstchenScheduler")):
    """Timesteps are from 0 to 1, one for each sample, on a cosine."""

    def _levels_at(self, t, device):
        return self._alpha_cumprod(t.to(device), device).double().reshape(-1)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        before = self.previous_timestep(timestep)
        noise = self._draw(model_output, generator, seeds)

        def rule(_):
            abar, earlier = (self._levels_at(t, sample.device) for t in (timestep, before))
            alpha = abar / earlier
            mean = (X - M * ((1 - alpha) / (1 - abar) ** 0.5)) * (1 / alpha) ** 0.5
            std = ((1 - alpha) * (1 - earlier) / (1 - abar)) ** 0.5
            return Step(mean + N * torch.where(before.to(std.device) != 0, std, 0.0))

        tick = None
        if not isinstance(noise, torch.Tensor):
            tick = int(np.abs(self._host("timesteps") - float(timestep.reshape(-1)[0])).argmin())
        prev = self._fuse(None, rule, sample, model_output, noise=noise, tick=tick)[0]
        return self._finish(return_dict, prev.to(model_output.dtype))

    def add_noise(self, original_samples, noise, timesteps, *, seeds=None):
        abar = self._levels_at(timesteps, original_samples.device)
        noisy = self._combine(original_samples, abar.sqrt(), noise, (1 - abar).sqrt(), seeds)
        return noisy.to(original_samples.dtype)


class RePaintScheduler(OnBetas, base("RePaintScheduler")):
    """Lugmayr et al. 2022, algorithm 1: DDIM where the mask is 0, the noised original where it is 1."""

    _end = "final_alpha_cumprod"

    def _bound(self):
        return 1.0 if self.config.clip_sample else None

    def add_noise(self, original_samples, noise, timesteps):
        raise NotImplementedError("RePaint is trained with DDPMScheduler.add_noise")

    def step(self, model_output, timestep, sample, original_image, mask, generator=None, return_dict=True, *, seeds=None):
        t, stride = self._number(timestep), self._stride()
        noise, tick = self._draw(model_output, generator, seeds), self._tick()
        before = self._abar(t - stride)

        def rule(t):
            abar = self._abar(t)
            x0, clean = self._clean(abar)
            std = self.eta * ((1 - before) / (1 - abar) * (1 - abar / before)) ** 0.5
            prev = clean * before**0.5 + M * (1 - before - std**2) ** 0.5
            return Step(prev + N * std if t > 0 and self.eta > 0 else prev, x0=x0, clip=self._bound())

        tick = None if isinstance(noise, torch.Tensor) else tick
        unknown, _, x0 = self._fuse(t, rule, sample, model_output, tag=(stride, self.eta), noise=noise, tick=tick, show=True)
        alpha, sigma = float(before**0.5), float((1 - before) ** 0.5)
        if isinstance(noise, torch.Tensor):
            known = self._combine(original_image, alpha, noise, sigma, None)
        else:
            known = add_noise(original_image.to(unknown.dtype), alpha, sigma, noise.seeds, stream=SAMPLER_STREAM, step=tick)
        return self._finish(return_dict, mask * known + (1.0 - mask) * unknown, x0)

    def undo_step(self, sample, timestep, generator=None, *, seeds=None):
        """Back to more noise, one training step after the other."""
        start = self._number(timestep)
        for i in range(self._stride()):
            beta = self._host("betas")[int(start) + i]
            noise, tick = self._draw(sample, generator, seeds), self._tick()
            kept, new = float((1 - beta) ** 0.5), float(beta**0.5)
            if isinstance(noise, torch.Tensor):
                sample = self._combine(sample, kept, noise, new, None)
            else:
                sample = add_noise(sample, kept, new, noise.seeds, stream=SAMPLER_STREAM, step=tick)
        return sample


# --- consistency models


class ConsistencyDecoderScheduler(Fused, base("ConsistencyDecoderScheduler")):
    _tables = ("c_skip", "c_out", "c_in", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "timesteps")

    def scale_model_input(self, sample, timestep=None):
        t = int(self._number(timestep))
        return self._scaled(sample, t, lambda t: self._host("c_in")[t])

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        t, times = int(self._number(timestep)), self._host("timesteps")
        place = int(np.flatnonzero(times == t)[0])
        last = place == len(times) - 1
        noise = None if last else self._draw(sample, generator, seeds)

        def rule(t):
            x0 = M * self._host("c_out")[t] + X * self._host("c_skip")[t]
            if last:
                return Step(x0)
            there = int(times[place + 1])
            alpha, sigma = self._host("sqrt_alphas_cumprod")[there], self._host("sqrt_one_minus_alphas_cumprod")[there]
            return Step(x0 * alpha + N * sigma)

        return self._finish(return_dict, self._fuse(t, rule, sample, model_output, noise=noise)[0])


class Consistency(Velocity):
    """LCM and TCD: a step from the model's x0, from the timestep at a place of the table to the next's."""

    _tables = ("alphas_cumprod", "timesteps")
    _end = "final_alpha_cumprod"

    def _consistency(
        self,
        rule: Callable[[Any, int], Step],
        tag: Any,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Any,
        seeds: Any,
        stochastic: bool,
        return_dict: bool,
    ):
        self._ready()
        place = self._enter(timestep)
        times = self._numbers(timestep)
        places = place if isinstance(place, list) else [place]
        at = dict(zip(places, times if isinstance(times, list) else [times], strict=True))
        stochastic = stochastic and any(j != self.num_inference_steps - 1 for j in places)
        noise = (
            self._draw(model_output, generator, seeds, dtype=torch.promote_types(sample.dtype, model_output.dtype))
            if stochastic
            else None
        )
        tag = tag, tuple(at.values()), self.num_inference_steps
        prev, shown, _ = self._fuse(place, lambda j: rule(at[j], j), sample, model_output, tag=tag, noise=noise)
        self._advance(place)
        return self._finish(return_dict, prev, shown)


class LCMScheduler(Consistency, base("LCMScheduler")):
    """Luo et al. 2023, algorithm 3."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        def rule(t, place):
            times = self._host("timesteps")
            abar = self._abar(t)
            before = self._abar(times[place + 1] if place + 1 < len(times) else t)
            scaled = np.float64(t) * self.config.timestep_scaling
            x0, clean = self._clean(abar)
            denoised = clean * (scaled / (scaled**2 + 0.25) ** 0.5) + X * (0.25 / (scaled**2 + 0.25))
            last = place == self.num_inference_steps - 1
            prev = denoised if last else denoised * before**0.5 + N * (1 - before) ** 0.5
            return Step(prev, keep=denoised, x0=x0, clip=self._bound())

        return self._consistency(rule, None, model_output, timestep, sample, generator, seeds, True, return_dict)


class TCDScheduler(Consistency, base("TCDScheduler")):
    """Zheng et al. 2024, algorithm 4."""

    def _bound(self):
        # Theirs has the settings and does not read them.
        return None

    def step(self, model_output, timestep, sample, eta=0.3, generator=None, return_dict=True, *, seeds=None):
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")

        def rule(t, place):
            times = self._host("timesteps")
            there = int(times[place + 1]) if place + 1 < len(times) else 0
            # In float32, as theirs: a product just below a whole number is the next one.
            middle = int(np.float32(1 - eta) * np.float32(there))
            abar, before, between = self._abar(t), self._abar(there), self._abar(middle)
            x0, epsilon = (self._known(wanted, abar**0.5, (1 - abar) ** 0.5) for wanted in ("x0", "epsilon"))
            noised = x0 * between**0.5 + epsilon * (1 - between) ** 0.5
            prev = noised
            if eta > 0 and place != self.num_inference_steps - 1:
                prev = noised * (before / between) ** 0.5 + N * (1 - before / between) ** 0.5
            return Step(prev, keep=noised, x0=x0)

        return self._consistency(rule, eta, model_output, timestep, sample, generator, seeds, eta > 0, return_dict)


# --- pseudo numerical methods


class PNDMScheduler(Noising, base("PNDMScheduler")):
    """Liu et al. 2022, algorithms 1 and 2. Outputs are mixed as they are, then taken for epsilon at the step's start."""

    _end = "final_alpha_cumprod"

    def _transfer(self, mixed, start, t, there) -> Step:
        """Eq. 9 of the paper, from the state ``start``."""
        abar, before = self._abar(t), self._abar(there)
        if self.config.prediction_type == "v_prediction":
            mixed = mixed * abar**0.5 + start * (1 - abar) ** 0.5
        elif self.config.prediction_type != "epsilon":
            raise ValueError(f"prediction_type must be epsilon or v_prediction, got {self.config.prediction_type!r}")
        scale = abar * (1 - before) ** 0.5 + (abar * (1 - abar) * before) ** 0.5
        return Step(start * (before / abar) ** 0.5 - mixed * ((before - abar) / scale))

    def step(self, model_output, timestep, sample, return_dict=True):
        first = self.counter < len(self.prk_timesteps) and not self.config.skip_prk_steps
        return (self.step_prk if first else self.step_plms)(model_output, timestep, sample, return_dict)

    def step_prk(self, model_output, timestep, sample, return_dict=True):
        """A stage of Runge-Kutta, whose four make a step."""
        self._ready()
        t, stage = self._number(timestep), self.counter % 4
        there = t - (0 if self.counter % 2 else self._stride() // 2)
        start = self.prk_timesteps[self.counter // 4 * 4]
        if stage == 0:
            self.ets.append(model_output)
            self.cur_sample = sample
            self._memory()["stages"] = []
        stages = self._memory()["stages"]
        # The newest first.
        mixed = M if stage < 3 else M / 6 + H[0] / 3 + H[1] / 3 + H[2] / 6

        def rule(_):
            return self._transfer(mixed, BASE, start, there)

        history = stages[::-1] if stage == 3 else []
        tag = "prk", stage, start, there
        prev = self._fuse(t, rule, sample, model_output, tag=tag, base=self.cur_sample, history=history)[0]
        stages.append(model_output)
        self.counter += 1
        return self._finish(return_dict, prev)

    def step_plms(self, model_output, timestep, sample, return_dict=True):
        """A linear multistep; the first is done again with what it led to."""
        self._ready()
        if not self.config.skip_prk_steps and len(self.ets) < 3:
            raise ValueError(f"step_plms needs 12 stages of step_prk before it, or skip_prk_steps, got {len(self.ets)} steps")
        t, again = self._number(timestep), self.counter == 1
        there, start = t - self._stride(), X
        if again:
            there, t, start = t, t + self._stride(), BASE
            past, mixed = self.ets[-1:], (M + H[0]) / 2
        else:
            if self.counter == 0:
                self.cur_sample = sample
            past = self.ets[-3:][::-1]
            mixed = sum(form * w for form, w in zip([M, *H], ADAMS_BASHFORTH[len(past)], strict=False))
            self.ets = [*self.ets[-3:], model_output]

        def rule(t):
            return self._transfer(mixed, start, t, there)

        origin = self.cur_sample if again else None
        tag = "plms", there, len(past), again
        prev = self._fuse(t, rule, sample, model_output, tag=tag, base=origin, history=past)[0]
        if again:
            self.cur_sample = None
        self.counter += 1
        return self._finish(return_dict, prev)


class IPNDMScheduler(Fused, base("IPNDMScheduler")):
    """Adams-Bashforth of up to order 4 on what the tables make of the model's output."""

    _tables = ("alphas", "betas")

    def step(self, model_output, timestep, sample, return_dict=True):
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step, num_inference_steps is None")
        place, past = self._enter_together(timestep), self.ets[::-1][:3]

        def rule(i):
            alphas, betas = self._host("alphas"), self._host("betas")
            direction = X * betas[i] + M * alphas[i]
            mixed = sum(form * w for form, w in zip([direction, *H], ADAMS_BASHFORTH[len(past)], strict=False))
            x0 = (X - mixed * betas[i]) / max(alphas[i], 1e-8)
            return Step(x0 * alphas[i + 1] + mixed * betas[i + 1], keep=direction)

        prev, newest, _ = self._fuse(place, rule, sample, model_output, tag=len(past), history=past)
        self.ets = [*self.ets[-3:], newest]
        self._advance(place)
        return self._finish(return_dict, prev)
