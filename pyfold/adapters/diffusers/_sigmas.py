"""Schedulers on a table of noise levels sigma, where ``x = x0 + sigma eps``: Euler, Heun, DPM-2, LMS and their relatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pyfold.adapters.diffusers._fused import Fused, Step, base, refuse_integers, seed_tensor
from pyfold.diffusion.brownian import BrownianPath
from pyfold.diffusion.formulas import BASE, X0, Form, H, M, N, X
from pyfold.diffusion.integrals import lagrange_integrals


class OnSigmas(Fused):
    _tables = ("sigmas",)
    _last_if_missing = False

    def add_noise(self, original_samples, noise, timesteps, *, seeds=None):
        """diffusers' ``add_noise``; ``noise`` None for noise from seeds."""
        places = self._places(timesteps, original_samples.device, self._last_if_missing)
        sigma = self._on("sigmas", original_samples.device)[places]
        return self._combine(original_samples, 1.0, noise, sigma, seeds)

    def scale_model_input(self, sample, timestep):
        place = self._enter(timestep)
        self.is_scale_input_called = True
        factor = lambda i: 1 / (self._input_sigma(i) ** 2 + self._data_std() ** 2) ** 0.5  # noqa: E731
        return self._scaled(sample, place, factor, getattr(self, "state_in_first_order", None))

    def _input_sigma(self, place: int) -> Any:
        return self._host("sigmas")[place]

    def _data_std(self) -> float:
        return 1.0

    def _x0(self, sigma: Any) -> Form:
        """From what the model says at a sigma: its variance-preserving state is x / sqrt(sigma^2 + 1)."""
        alpha = 1 / (sigma**2 + 1) ** 0.5
        return self._known("x0", alpha, sigma * alpha, alpha)

    def _refuse_sample(self) -> None:
        if self.config.prediction_type == "sample":
            raise NotImplementedError(f"{type(self).__name__} has no prediction_type 'sample'")

    def _churn(
        self,
        sample: Any,
        place: Any,
        model_output: Any,
        s_churn: float,
        s_tmin: float,
        s_tmax: float,
        s_noise: float,
        generator,
        seeds,
    ) -> tuple[torch.Tensor, float]:
        """(state with more noise, by how much its sigma is larger), Karras et al. 2022, algorithm 2."""
        if s_churn <= 0:
            return sample, 0.0
        sigma = self._host("sigmas")[place]
        gamma = min(s_churn / (len(self.sigmas) - 1), 2**0.5 - 1) if s_tmin <= sigma <= s_tmax else 0.0
        if gamma > 0:
            noise = self._draw(model_output, generator, seeds)
            rule = lambda i: Step(X + N * (s_noise * sigma * ((gamma + 1) ** 2 - 1) ** 0.5))  # noqa: E731
            # Its counter is beyond those of the steps.
            sample = self._fuse(
                place, rule, sample, sample, tag=("churn", gamma, s_noise), noise=noise, tick=2**31 + place, upcast=True
            )[0]
        return sample, gamma


# --- one stage


class EulerDiscreteScheduler(OnSigmas, base("EulerDiscreteScheduler")):
    def step(
        self,
        model_output,
        timestep,
        sample,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=float("inf"),
        s_noise=1.0,
        generator=None,
        return_dict=True,
        *,
        seeds=None,
    ):
        refuse_integers(self, timestep)
        place = self._enter_together(timestep) if s_churn > 0 else self._enter(timestep)
        sample, gamma = self._churn(sample, place, model_output, s_churn, s_tmin, s_tmax, s_noise, generator, seeds)

        def rule(i):
            sigma, there = self._host("sigmas")[i : i + 2]
            hat = sigma * (gamma + 1)
            prediction = self.config.prediction_type
            if prediction in ("original_sample", "sample"):
                x0 = M * 1.0
            elif prediction == "epsilon":
                x0 = X - M * hat
            else:
                # v at the sigma before the churn, as theirs.
                x0 = self._x0(sigma)
            return Step(X + (X - x0) * ((there - hat) / hat), x0=x0)

        prev, _, x0 = self._fuse(place, rule, sample, model_output, tag=gamma, show=True, upcast=True)
        self._advance(place)
        return self._finish(return_dict, prev.to(model_output.dtype), x0)

    def get_velocity(self, sample, noise, timesteps):
        """Of the level at the timestep's place, counted from the first, as theirs."""
        if not torch.is_floating_point(timesteps):
            refuse_integers(self, timesteps)
        places = self._places(timesteps, sample.device, from_begin=False)
        abar = self._on("alphas_cumprod", sample.device)[places]
        return self._combine(sample, -((1 - abar).sqrt()), noise, abar.sqrt(), None)


class EulerAncestralDiscreteScheduler(OnSigmas, base("EulerAncestralDiscreteScheduler")):
    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        refuse_integers(self, timestep)
        self._refuse_sample()
        place = self._enter(timestep)
        noise = self._draw(model_output, generator, seeds)

        def rule(i):
            sigma, there = self._host("sigmas")[i : i + 2]
            up, down = ancestral(sigma, there)
            x0 = self._x0(sigma)
            return Step(X + (X - x0) * ((down - sigma) / sigma) + N * up, x0=x0)

        prev, _, x0 = self._fuse(place, rule, sample, model_output, noise=noise, show=True, upcast=True)
        self._advance(place)
        return self._finish(return_dict, prev.to(model_output.dtype), x0)


def ancestral(sigma: Any, there: Any) -> tuple[Any, Any]:
    """(noise put in, sigma stepped to), of which the sum of squares is ``there`` squared."""
    up = min(there, (there**2 * (sigma**2 - there**2) / sigma**2) ** 0.5)
    return up, (there**2 - up**2) ** 0.5


class LMSDiscreteScheduler(OnSigmas, base("LMSDiscreteScheduler")):
    """Linear multistep, the integrals exact instead of by quadrature."""

    def step(self, model_output, timestep, sample, order=4, return_dict=True):
        if not 1 <= order <= 5:
            raise ValueError(f"order must be from 1 to 5, got {order}")
        place = self._enter_together(timestep)
        past = self.derivatives[::-1][: order - 1]

        def rule(i):
            sigmas = self._host("sigmas")
            nodes = sigmas[i - min(i, order - 1) : i + 1][::-1]
            weights = lagrange_integrals(nodes, sigmas[i], sigmas[i + 1])
            x0 = self._x0(sigmas[i])
            slope = (X - x0) / sigmas[i]
            terms = list(zip([slope, *H[: len(past)]], weights, strict=False))
            return Step(X + sum(form * w for form, w in terms), keep=slope, x0=x0)

        tag = order, len(past)
        prev, newest, x0 = self._fuse(place, rule, sample, model_output, tag=tag, history=past, show=True)
        self.derivatives.append(newest)
        if len(self.derivatives) > order:
            self.derivatives.pop(0)
        self._advance(place)
        return self._finish(return_dict, prev, x0)


class EDMEulerScheduler(OnSigmas, base("EDMEulerScheduler")):
    def _data_std(self):
        return self.config.sigma_data

    def step(
        self,
        model_output,
        timestep,
        sample,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=float("inf"),
        s_noise=1.0,
        generator=None,
        return_dict=True,
        pred_original_sample=None,
        *,
        seeds=None,
    ):
        refuse_integers(self, timestep)
        place = self._enter_together(timestep) if s_churn > 0 else self._enter(timestep)
        sample, gamma = self._churn(sample, place, model_output, s_churn, s_tmin, s_tmax, s_noise, generator, seeds)
        given = pred_original_sample is not None

        def rule(i):
            sigma, there = self._host("sigmas")[i : i + 2]
            hat = sigma * (gamma + 1)
            x0 = H[0] if given else preconditioned(self.config, hat)
            return Step(X + (X - x0) * ((there - hat) / hat), x0=x0)

        history = [pred_original_sample] if given else []
        prev, _, x0 = self._fuse(
            place, rule, sample, model_output, tag=(gamma, given), history=history, show=not given, upcast=True
        )
        self._advance(place)
        return self._finish(return_dict, prev.to(model_output.dtype), pred_original_sample if given else x0)


def preconditioned(config: Any, sigma: Any) -> Form:
    """x0 = c_skip x + c_out F (Karras et al. 2022, table 1); c_out is negative for v."""
    if config.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be epsilon or v_prediction, got {config.prediction_type!r}")
    std, norm = config.sigma_data, (sigma**2 + config.sigma_data**2) ** 0.5
    sign = 1.0 if config.prediction_type == "epsilon" else -1.0
    return X * (std**2 / norm**2) + M * (sign * sigma * std / norm)


class CMStochasticIterativeScheduler(OnSigmas, base("CMStochasticIterativeScheduler")):
    """Song et al. 2023, algorithm 1."""

    def _data_std(self):
        return self.config.sigma_data

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        refuse_integers(self, timestep)
        place = self._enter(timestep)
        noise = self._draw(model_output, generator, seeds) if len(self.timesteps) > 1 else None

        def rule(i):
            config, sigmas = self.config, self._host("sigmas")
            sigma = sigmas[i]
            there = np.clip(sigmas[i + 1 if i + 1 < config.num_train_timesteps else -1], config.sigma_min, config.sigma_max)
            std, above = config.sigma_data, sigma - config.sigma_min
            x0 = X * (std**2 / (above**2 + std**2)) + M * (above * std / (sigma**2 + std**2) ** 0.5)
            clip = 1.0 if config.clip_denoised else None
            clean = x0 if clip is None else X0
            if noise is None:
                return Step(clean, x0=x0, clip=clip)
            return Step(clean + N * (config.s_noise * (there**2 - config.sigma_min**2) ** 0.5), x0=x0, clip=clip)

        prev = self._fuse(place, rule, sample, model_output, tag=noise is None, noise=noise)[0]
        self._advance(place)
        return self._finish(return_dict, prev)


# --- two stages: the second starts again from the state before the first


class HeunDiscreteScheduler(OnSigmas, base("HeunDiscreteScheduler")):
    def step(self, model_output, timestep, sample, return_dict=True):
        place, first = self._enter_together(timestep), self.state_in_first_order

        def rule(i):
            sigmas = self._host("sigmas")
            sigma, there = sigmas[i : i + 2] if first else sigmas[i - 1 : i + 1]
            at = sigma if first else there
            x0 = self._x0(at)
            clean = x0 if self._bound() is None else X0
            slope = (X - clean) / at
            prev = X + slope * (there - sigma) if first else BASE + (slope + H[0]) * ((there - sigma) / 2)
            return Step(prev, keep=slope if first else None, x0=x0, clip=self._bound())

        prev, slope, x0 = self._fuse(
            place,
            rule,
            sample,
            model_output,
            tag=first,
            base=None if first else self.sample,
            history=[] if first else [self.prev_derivative],
            show=True,
        )
        sigmas = self._host("sigmas")
        self.prev_derivative = slope
        self.dt = sigmas[place + 1] - sigmas[place] if first else None
        self.sample = sample if first else None
        self._advance(place)
        return self._finish(return_dict, prev, x0)


class KDPM2(OnSigmas):
    """DPM-Solver-2: a stage to the middle, then one from the start with the middle's slope."""

    def _two_stages(self, model_output, timestep, sample, return_dict, between, noise=None):
        """``between(i)``: (sigma, sigma in the middle, sigma the second stage leads to, noise put in)."""
        self._refuse_sample()
        place, first = self._enter_together(timestep), self.state_in_first_order

        def rule(i):
            sigma, middle, there, up = between(i)
            at = sigma if first else middle
            x0 = self._x0(at)
            prev = X * 1.0 if first else BASE * 1.0
            prev = prev + (X - x0) * (((middle if first else there) - sigma) / at)
            return Step(prev if first or noise is None else prev + N * up, x0=x0)

        origin = None if first else self.sample
        prev, _, x0 = self._fuse(place, rule, sample, model_output, tag=first, base=origin, noise=noise, show=True)
        self.sample = sample if first else None
        self._advance(place)
        return self._finish(return_dict, prev, x0)


class KDPM2DiscreteScheduler(KDPM2, base("KDPM2DiscreteScheduler")):
    _tables = ("sigmas", "sigmas_interpol")

    def _input_sigma(self, place):
        return self._host("sigmas" if self.state_in_first_order else "sigmas_interpol")[place]

    def step(self, model_output, timestep, sample, return_dict=True):
        start = 0 if self.state_in_first_order else -1

        def between(i):
            sigmas, middles = self._host("sigmas"), self._host("sigmas_interpol")
            i += start
            return sigmas[i], middles[i + 1], sigmas[i + 1], 0.0

        return self._two_stages(model_output, timestep, sample, return_dict, between)


class KDPM2AncestralDiscreteScheduler(KDPM2, base("KDPM2AncestralDiscreteScheduler")):
    _tables = ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down")

    def _input_sigma(self, place):
        return self._host("sigmas")[place] if self.state_in_first_order else self._host("sigmas_interpol")[place - 1]

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        first = self.state_in_first_order
        noise = None if first else self._draw(model_output, generator, seeds)

        def between(i):
            names = ("sigmas", "sigmas_interpol", "sigmas_down", "sigmas_up")
            return [self._host(name)[i if first else i - 1] for name in names]

        return self._two_stages(model_output, timestep, sample, return_dict, between, noise)


class BrownianSteps(Fused):
    """Noise that is the increment of a Brownian path in sigma: torchsde's as theirs, or one of seeds (``BrownianPath``)."""

    def _increment(
        self, like: torch.Tensor, low: float, high: float, generator_seed: Any, start: torch.Tensor, end: torch.Tensor, seeds
    ):
        """(W(start) - W(end)) / sqrt(start - end) of the path on [low, high]."""
        seeds = self._memory()["seeds"] if seeds is None else seeds
        if seeds is not None:
            dtype = like.dtype if like.dtype == torch.float64 else torch.float32
            path = BrownianPath(seed_tensor(seeds, like.shape[0], like.device), like.shape[1:], low, high, dtype=dtype)
            start, end = (min(max(float(t), low), high) for t in (start, end))
            return path.normal(start, end) if start > end else torch.zeros_like(like)
        if self.noise_sampler is None:
            from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

            self.noise_sampler = BrownianTreeNoiseSampler(like, low, high, generator_seed)
        return self.noise_sampler(start, end).to(like.device)


class DPMSolverSDEScheduler(OnSigmas, BrownianSteps, base("DPMSolverSDEScheduler")):
    """DPM-Solver++ as a two-stage SDE solver (k-diffusion's dpmpp_sde)."""

    def _input_sigma(self, place):
        return self._host("sigmas")[place] if self.state_in_first_order else self.mid_point_sigma

    def step(self, model_output, timestep, sample, return_dict=True, s_noise=1.0, *, seeds=None):
        self._refuse_sample()
        place, first = self._enter_together(timestep), self.state_in_first_order
        sigmas = self._host("sigmas")
        sigma, there = (float(s) for s in (sigmas[place : place + 2] if first else sigmas[place - 1 : place + 1]))
        middle = math.sqrt(sigma * there)
        to = middle if first else there

        def rule(_):
            x0 = self._x0(np.float64(sigma if first else middle))
            if there == 0:
                return Step(X + (X - x0) * -1.0, x0=x0)
            up, down = ancestral(sigma, to)
            prev = (X if first else BASE) * (down / sigma) + x0 * (1 - down / sigma)
            return Step(prev + N * (s_noise * up), x0=x0)

        noise, origin = None, None
        if there > 0:
            positive = sigmas[sigmas > 0]
            low, high = float(positive.min()), float(sigmas.max())
            # torchsde's tree takes the last bit of a time for another time: through logarithms and back, as theirs.
            start = place if first else place - 1
            logs = self.sigmas[start : start + 2].log()
            end = logs[0] + (logs[1] - logs[0]) * 0.5 if first else logs[1]
            noise = self._increment(sample, low, high, self.noise_sampler_seed, logs[0].exp(), end.exp(), seeds)
            origin = None if first else self.sample
        tag = first, s_noise
        prev, _, x0 = self._fuse(place, rule, sample, model_output, tag=tag, base=origin, noise=noise, show=True)
        if there > 0:
            self.sample = sample if first else None
            self.mid_point_sigma = torch.tensor(to) if first else None
        self._advance(place)
        return self._finish(return_dict, prev, x0)


class KarrasVeScheduler(Fused, base("KarrasVeScheduler", "deprecated.scheduling_karras_ve")):
    """Karras et al. 2022, algorithm 2; the caller holds the states and says the levels."""

    def add_noise_to_input(self, sample, sigma, generator=None, *, seeds=None):
        """The state at a higher level, and that level."""
        config, given, sigma = self.config, sigma, self._number(sigma)
        gamma = min(config.s_churn / self.num_inference_steps, 2**0.5 - 1) if config.s_min <= sigma <= config.s_max else 0
        noise = self._draw(sample, generator, seeds, dtype=torch.get_default_dtype(), device=torch.device("cpu"))
        hat = sigma + gamma * sigma
        rule = lambda _: Step(X + N * (config.s_noise * (hat**2 - sigma**2) ** 0.5))  # noqa: E731
        tick = self._tick()
        return self._fuse((sigma, gamma), rule, sample, sample, tag="input", noise=noise, tick=tick, upcast=True)[
            0
        ], given + gamma * given

    def step(self, model_output, sigma_hat, sigma_prev, sample_hat, return_dict=True):
        sigma, there = self._number(sigma_hat), self._number(sigma_prev)
        rule = lambda _: Step(X - M * (there - sigma), keep=-M, x0=X + M * sigma)  # noqa: E731
        outputs = self._fuse((sigma, there), rule, sample_hat, model_output, tag="step", show=True)
        return self._finish(True, *outputs) if return_dict else outputs[:2]

    def step_correct(self, model_output, sigma_hat, sigma_prev, sample_hat, sample_prev, derivative, return_dict=True):
        sigma, there = self._number(sigma_hat), self._number(sigma_prev)
        rule = lambda _: Step(BASE + (H[0] - M) * ((there - sigma) / 2), x0=X + M * there)  # noqa: E731
        prev, _, x0 = self._fuse(
            (sigma, there), rule, sample_prev, model_output, tag="correct", base=sample_hat, history=[derivative], show=True
        )
        return self._finish(True, prev, derivative, x0) if return_dict else (prev, derivative)
