"""Flow matching: ``x = (1 - sigma) x0 + sigma eps``, the model saying ``eps - x0``; and TrigFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pyfold.adapters.diffusers._discrete import DATA
from pyfold.adapters.diffusers._fused import Fused, StretchesFlows, refuse_integers
from pyfold.adapters.diffusers._multistep import UniPC
from pyfold.adapters.diffusers._rows import HALF, Counted, Step, T, as_dtype, pass_once
from pyfold.adapters.diffusers._sigmas import Churns
from pyfold.adapters.k_diffusion import SCHEDULE
from pyfold.diffusion.formulas import BASE, KEPT_AS, Form, H, M, N, U, X
from pyfold.diffusion.samplers import Past
from pyfold.diffusion.samplers._declare import FRAMES
from pyfold.diffusion.samplers.ancestral import consistency, flow_ancestral
from pyfold.diffusion.samplers.correctors import Method, unipc_method
from pyfold.diffusion.samplers.runge_kutta import euler, heun, line_coefficients
from pyfold.diffusion.schedule import Point
from pyfold.ops._tensors import accumulation

FRAME = FRAMES["flow"]


def level(sigma: Any) -> Point:
    return Point(0.0, 1 - sigma, sigma)


class OnFlow(Fused):
    def _means(self, wanted: str, at: Point) -> Form:
        return X - M * at.sigma if wanted == "x0" else X + M * at.alpha

    def _bound(self) -> None:
        return None

    def _at(self, i: int) -> Point:
        return level(self._host("sigmas")[i])

    def _ends(self, i: int) -> tuple[Point, Point]:
        return self._at(i), self._at(i + 1)

    def _euler(self, here: Point, there: Point, flow: Form = M) -> Step:
        return self._follow(euler, here, there, u=flow, shows=False, frame=FRAME)

    def _to_next(self, i: int) -> Step:
        return self._euler(*self._ends(i))

    def _renoised(self, i: int, x0: Form | None = None) -> Step:
        """x0, then noise on it, up to the level of the next place."""
        return self._follow(consistency, *self._ends(i), x0=x0, visit=self._visit(i + 1))


class ScalesNoise(OnFlow):
    def scale_noise(self, sample: T, timestep: T, noise: T | None = None, *, seeds: Any = None) -> T:
        """The forward process at the timesteps; ``noise`` None for noise from seeds."""
        places = self._places(timestep, sample.device)
        sigma = self._in_places("sigmas", places)
        return self._combine(sample, 1 - sigma, noise, sigma, seeds)


class FlowMatchEulerDiscreteScheduler(StretchesFlows, ScalesNoise):
    def step(
        self, model_output: T, timestep: Any, sample: T, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Any = None, per_token_timesteps: T | None = None,
        return_dict: bool = True, *, seeds: Any = None,
    ) -> Any:  # fmt: skip
        refuse_integers(self, timestep)
        place, stochastic = self._enter(timestep), self.config.stochastic_sampling
        noise = self._draw(sample, generator, seeds, dtype=torch.float32) if stochastic else None
        if per_token_timesteps is not None:
            prev = self._per_token(model_output, sample, per_token_timesteps, noise, place)
            self._advance(place)
            return self._finish(return_dict, prev)
        rule = self._renoised if stochastic else self._to_next
        prev = self._fuse(place, rule, sample, model_output, noise=noise, upcast=True)[0]
        self._advance(place)
        return self._finish(return_dict, as_dtype(prev, model_output.dtype))

    def _traced_step(
        self, model_output: T, timestep: Any, sample: T, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Any = None, per_token_timesteps: T | None = None,
        return_dict: bool = True, *, seeds: Any = None,
    ) -> Any:  # fmt: skip
        i = self._begin_index if self._step_index is None else self._step_index
        several = isinstance(timestep, torch.Tensor) and timestep.numel() > 1
        if i is None or several or per_token_timesteps is not None or self.config.stochastic_sampling:
            return NotImplemented
        refuse_integers(self, timestep)
        here, there = level(self.sigmas[i].double()), level(self.sigmas[i + 1].double())
        # _euler's line: the compiler does not follow a Form times a tensor, which the rule writes.
        of_x, of_model = line_coefficients(FRAME, here, there)
        prev = pass_once(Form(x=of_x, m=of_model), sample, model_output)
        self._step_index = i + 1
        return self._finish(return_dict, as_dtype(prev, model_output.dtype))

    def _per_token(self, model_output: T, sample: T, timesteps: T, noise: Any, place: Any) -> T:
        """Each token of [B, L, C] from its own level to the next lower one of the table; a row of coefficients a token.

        Tokens draw as samples of their own would: token l's draw is l, its elements count from 0.
        """
        here = timesteps / self.config.num_train_timesteps
        own = self.sigmas.to(here.device)[:, None, None]
        there = ((own < here[None] - 1e-6) * own).amax(0)
        ends = level(here.double().reshape(-1)), level(there.double().reshape(-1))
        samples, tokens = sample.shape[:2]
        if isinstance(noise, Counted):
            noise = Counted(noise.seeds.repeat_interleave(tokens))
        elif noise is not None:
            noise = noise.flatten(0, 1)
        which = torch.arange(tokens, device=here.device).repeat(samples) << 32

        def rule(_: int) -> Step:
            if noise is None:
                # The other sign than for one timestep, as theirs.
                return self._euler(*ends, -M)
            step = self._follow(consistency, *ends)
            return replace(step, draw=step.draw + which)

        flat = sample.flatten(0, 1), model_output.flatten(0, 1)
        return self._fuse(0, rule, *flat, noise=noise, upcast=True)[0].view(sample.shape)


class FlowMatchHeunDiscreteScheduler(OnFlow, Churns):
    _level_of = staticmethod(level)

    def scale_noise(self, sample: T, timestep: Any, noise: T | None, *, seeds: Any = None) -> T:
        """The forward process at this step's level."""
        sigma = float(self._host("sigmas")[self._enter_together(timestep)])
        return self._combine(sample, 1 - sigma, noise, sigma, seeds)

    def step(
        self, model_output: T, timestep: Any, sample: T, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float("inf"), s_noise: float = 1.0, generator: Any = None, return_dict: bool = True, *,
        seeds: Any = None,
    ) -> Any:  # fmt: skip
        refuse_integers(self, timestep)
        place, first = self._enter_together(timestep), self.state_in_first_order
        start = place if first else place - 1
        churn = s_churn, s_tmin, s_tmax, s_noise, generator, seeds
        sample, gamma = self._churn(sample, start, model_output, *churn, stage=int(not first), stages=2)
        sigma, there = self._host("sigmas")[start : start + 2]
        hat = sigma * (gamma + 1)
        length = None if first else float(self.dt)

        def rule(_: int) -> Step:
            # The churned state's slope is (x - x0) / hat; the second stage is as long as the first was.
            slope, end = (M * (sigma / hat), there) if first else (M, hat + length)
            return self._follow(
                heun, level(hat), level(end), stage=0 if first else 1, u=slope, keep=first, shows=False, frame=FRAME
            )

        origin, history = (None, []) if first else (self.sample, [self.prev_derivative])
        prev, slope, _ = self._fuse(0, rule, sample, model_output, base=origin, history=history, upcast=True)
        self.prev_derivative, self.dt, self.sample = slope, there - hat if first else None, sample if first else None
        self._step_index += 1
        return self._finish(return_dict, as_dtype(prev, model_output.dtype))


class FlowMatchLCMScheduler(StretchesFlows, ScalesNoise):
    _init_size: Any

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        refuse_integers(self, timestep)
        factors: Sequence[float] = (self._scale_factors if self._upscale_mode else None) or ()
        if factors and len(self.timesteps) != len(factors) + 1:
            raise ValueError(f"scale_factors must be one fewer than timesteps, got {len(factors)} and {len(self.timesteps)}")
        if self._init_size is None or self.step_index is None:
            self._init_size = model_output.size()[2:]
        place, like, output = self._enter(timestep), sample, model_output
        scaled = bool(factors) and place < len(factors)
        if scaled:
            x0 = self._fuse(place, lambda i: Step(self._means("x0", self._ends(i)[0])), sample, output, upcast=True)[0]
            size = [round(factors[place] * length) for length in self._init_size]
            like = output = torch.nn.functional.interpolate(x0, size=size, mode=self._upscale_mode)
        noise = self._draw(like, generator, seeds, dtype=accumulation(model_output.dtype))
        rule = lambda i: self._renoised(i, X if scaled else None)  # noqa: E731
        prev = self._fuse(place, rule, like, output, noise=noise, upcast=True)[0]
        self._advance(place)
        return self._finish(return_dict, as_dtype(prev, model_output.dtype))


class FlowMapEulerDiscreteScheduler(OnFlow):
    """From any level to any other."""

    def scale_noise(self, sample: T, timestep: T, noise: T | None = None, *, seeds: Any = None) -> T:
        """The forward process at the timesteps, of the table or not."""
        sigma = timestep.to(sample.device).double().reshape(-1) / self.config.num_train_timesteps
        return self._combine(sample, 1 - sigma, noise, sigma, seeds)

    def _place(self, timestep: Any) -> int | None:
        """The nearest of the table, by the first sample's timestep; None for one between them."""
        t = float(self._number(timestep.reshape(-1)[0] if isinstance(timestep, torch.Tensor) else timestep))
        far = np.abs(self._host("timesteps") - t)
        return int(far.argmin()) if far.min() <= 1e-3 else None

    def _sigma(self, timestep: Any, device: torch.device) -> Any:
        place = self._place(timestep)
        if place is not None:
            return float(self._host("sigmas")[place])
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            return timestep.to(device).double().reshape(-1) / self.config.num_train_timesteps
        return float(timestep) / self.config.num_train_timesteps

    def step(self, model_output: T, timestep: Any, sample: T, r_timestep: Any = None, return_dict: bool = True) -> Any:
        if self.sigmas is None or self.timesteps is None:
            raise ValueError("set_timesteps must be called before step")
        if self._step_index is None:
            self._init_step_index(timestep)
        sigma = self._sigma(timestep, sample.device)
        if r_timestep is None:
            place = self._place(timestep)
            if place is None:
                raise ValueError("r_timestep must be given for a timestep that is not one of scheduler.timesteps")
            there = float(self._host("sigmas")[place + 1])
        else:
            there = self._sigma(r_timestep, sample.device)
        prev = self._fuse(0, lambda _: self._euler(level(sigma), level(there)), sample, model_output)[0]
        self._step_index += 1
        return self._finish(return_dict, as_dtype(prev, model_output.dtype))


class LTXEulerAncestralRFScheduler(OnFlow):
    """Euler ancestral for a flow: down to less noise than the next level, then up to it."""

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        refuse_integers(self, timestep)
        if self.sigmas is None or self.timesteps is None:
            raise ValueError("set_timesteps must be called before step")
        place, last = self._enter_together(timestep), len(self.sigmas) - 1
        if place >= last:
            return self._finish(return_dict, sample)
        eta, s_noise = float(self.config.eta), float(self.config.s_noise)
        noisy = abs(self._host("sigmas")[place + 1]) >= 1e-8 and eta > 0 and s_noise > 0
        noise = self._draw(sample, generator, seeds, dtype=torch.float32) if noisy else None

        def rule(i: int) -> Step:
            here, there = self._ends(i)
            if noisy:
                return self._follow(
                    flow_ancestral, here, there, shows=False, visit=self._visit(i + 1), eta=eta, noise_scale=s_noise
                )
            # Theirs goes down all the same, and not up again.
            return self._euler(here, level(there.sigma * (1 + (there.sigma / here.sigma - 1) * eta)))

        prev = self._fuse(place, rule, sample, model_output, noise=noise, upcast=True)[0]
        self._step_index = min(self._step_index + 1, last)
        return self._finish(return_dict, as_dtype(prev, sample.dtype))


class MiniMaxH3Scheduler(OnFlow):
    """Euler for a flow whose timestep is 1 - sigma and whose model says x0 - eps."""

    def scale_noise(self, sample: T, timestep: Any, noise: T | None, *, seeds: Any = None) -> T:
        """The forward process at the timesteps."""
        t = torch.as_tensor(timestep, device=sample.device).double().reshape(-1)
        return self._combine(sample, t, noise, 1 - t, seeds)

    def step(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        refuse_integers(self, timestep)
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        here, there = self._ends(self._step_index)
        each = isinstance(timestep, torch.Tensor) and timestep.numel() > 1
        # x0 is of the timestep that is given, the step of the table's levels.
        time = 1 - (timestep.to(sample.device).double().reshape(-1) if each else self._number(timestep))
        rule = lambda _: self._euler(here, there, M * (-time / here.sigma))  # noqa: E731
        prev = self._fuse(0, rule, sample, model_output)[0]
        self._step_index += 1
        return self._finish(return_dict, as_dtype(prev, sample.dtype))


# --- Helios: a pyramid of stages, each a flow; the caller may hold the history


class HeliosScheduler(UniPC):
    _least_sigma = 1e-8

    def step_euler(
        self, model_output: T, timestep: Any = None, sample: Any = None, generator: Any = None, sigma: Any = None,
        sigma_next: Any = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        if (sigma is None) != (sigma_next is None):
            raise ValueError("sigma and sigma_next must be given together or not at all")
        if sigma is None and timestep is not None:
            refuse_integers(self, timestep)
        if self.step_index is None:
            self._step_index = 0
        own = self._host("sigmas")[self._step_index : self._step_index + 2]
        here, there = (level(float(self._number(s))) for s in (own if sigma is None else (sigma, sigma_next)))
        rule = lambda _: self._follow(euler, here, there, u=M, shows=False, frame=FRAME)  # noqa: E731
        prev = self._fuse(0, rule, sample, model_output, upcast=True)[0]
        self._step_index += 1
        return self._finish(return_dict, as_dtype(prev, model_output.dtype))

    def step_unipc(
        self, model_output: T, timestep: Any = None, sample: Any = None, return_dict: bool = True, model_outputs: Any = None,
        timestep_list: Any = None, sigma_before: Any = None, sigma: Any = None, sigma_next: Any = None,
        cus_step_index: int | None = None, cus_lower_order_num: int | None = None, cus_this_order: int | None = None,
        cus_last_sample: T | None = None,
    ) -> Any:  # fmt: skip
        """The corrector, then the predictor: two passes, because the corrected state is an output."""
        self._ready()
        if cus_step_index is not None:
            self._step_index = cus_step_index
        elif self.step_index is None:
            self._step_index = 0
        self.lower_order_nums = self.lower_order_nums if cus_lower_order_num is None else cus_lower_order_num
        self.this_order = getattr(self, "this_order", None) if cus_this_order is None else cus_this_order
        self.last_sample = self.last_sample if cus_last_sample is None else cus_last_sample
        if self.config.thresholding:
            raise ValueError("thresholding must be False for HeliosScheduler, which has none")
        i, u = self._step_index, self._u()
        given = tuple(None if s is None else float(self._number(s)) for s in (sigma_before, sigma, sigma_next))
        lists = model_outputs is not None and timestep_list is not None
        if lists:
            self.model_outputs, self.timestep_list = model_outputs[:-1], timestep_list[:-1]
        order = self.this_order if self._corrects(i) else None

        def corrector(i: int) -> Step:
            ends = self._end(i - 1, given[0]), self._end(i, given[1])
            prev = X if order is None else self._method(order).corrected(self._between(i - 1, order, *ends), BASE, (U, *H))
            return self._meant(prev, ends[1], u, True, shows=False)

        origin = None if order is None else self.last_sample
        corrected, newest, _ = self._fuse(i, corrector, sample, model_output, base=origin, history=self._past())
        corrected = sample if order is None else as_dtype(corrected, sample.dtype)
        if lists:
            model_outputs[-1] = newest
            self.model_outputs, self.timestep_list = model_outputs[1:], timestep_list[1:]
        else:
            self._remember(newest)
            self.timestep_list = [*self.timestep_list[1:], timestep]
        self.this_order, self.last_sample = self._next_order(i), corrected
        if self.solver_p:
            prev = self.solver_p.step(model_output, self.timestep_list[-1], corrected).prev_sample
        else:
            now = self.this_order

            def predictor(i: int) -> Step:
                ends = self._end(i, given[1]), self._end(i + 1, given[2])
                # What the model said here is the newest of the history.
                step = self._method(now).step(self._between(i, now, *ends), corrects=False)
                return Step(step.prev.renamed(KEPT_AS))

            prev = self._fuse(i, predictor, corrected, corrected, history=self._past())[0]
            prev = as_dtype(prev, sample.dtype)
        if cus_lower_order_num is None and self.lower_order_nums < self.config.solver_order:
            self.lower_order_nums += 1
        if cus_step_index is None:
            self._step_index += 1
        outputs = prev, model_outputs, self.last_sample, self.this_order
        return self._finish(True, *outputs) if return_dict else outputs

    def _end(self, i: int, sigma: float | None) -> Point:
        """An end of a step, as given or from the table."""
        return self._at(i) if sigma is None else self._level(sigma, i)

    def _between(self, i: int, order: int, here: Point, there: Point) -> Past:
        """To the step from i, with what its order looks at."""
        return Past([*(self._at(j) for j in range(i - order + 1, i)), here, there], order - 1, SCHEDULE)

    def _method(self, order: int) -> Method:
        # The order is the caller's, and theirs corrects a step from pure noise, too.
        return unipc_method(order, self.config.solver_type, self._u(), None, limits=False)

    def step(
        self, model_output: T, timestep: Any = None, sample: Any = None, generator: Any = None, return_dict: bool = True
    ) -> Any:
        if self.config.scheduler_type == "euler":
            return self.step_euler(model_output, timestep, sample, generator, return_dict=return_dict)
        if self.config.scheduler_type == "unipc":
            return self.step_unipc(model_output, timestep, sample, return_dict)
        raise ValueError(f"scheduler_type must be 'euler' or 'unipc', got {self.config.scheduler_type!r}")


class HeliosDMDScheduler(OnFlow):
    """x0, then noise again to the next of the sampling timesteps; the caller brings noise and tables."""

    def _level(self, timestep: T, sigmas: T, timesteps: T) -> Point:
        """The nearest timestep of a table, float64 on the device."""
        place = (timesteps.unsqueeze(0) - timestep.unsqueeze(1)).abs().argmin(1)
        return level(sigmas[place].double())

    def add_noise(self, original_samples: T, noise: T, timestep: T, sigmas: T, timesteps: T) -> T:
        _, alpha, sigma = self._level(timestep, sigmas.to(noise.device), timesteps.to(noise.device))
        return self._combine(original_samples, alpha, noise, sigma, None).type_as(noise)

    def convert_flow_pred_to_x0(self, flow_pred: T, xt: T, timestep: T, sigmas: T, timesteps: T) -> T:
        """x0 from the flow."""
        at = self._level(timestep, sigmas.double().to(flow_pred.device), timesteps.double().to(flow_pred.device))
        return self._fuse(0, lambda _: Step(self._means("x0", at)), xt, flow_pred)[0].to(flow_pred.dtype)

    def step(
        self, model_output: T, timestep: Any = None, sample: Any = None, generator: Any = None, return_dict: bool = True,
        cur_sampling_step: int = 0, dmd_noisy_tensor: Any = None, dmd_sigmas: Any = None, dmd_timesteps: Any = None,
        all_timesteps: Any = None,
    ) -> Any:  # fmt: skip
        device, samples = model_output.device, model_output.shape[0]

        def at(t: Any, dtype: torch.dtype | None) -> Point:
            t = torch.as_tensor(t, device=device).to(torch.long).reshape(-1).expand(samples)
            return self._level(t, dmd_sigmas.to(device, dtype), dmd_timesteps.to(device, dtype))

        here = at(timestep, torch.float64)
        if cur_sampling_step >= len(all_timesteps) - 1:
            prev = self._fuse(0, lambda _: Step(self._means("x0", here)), sample, model_output)[0]
            return self._finish(return_dict, as_dtype(prev, model_output.dtype))
        there = at(all_timesteps[cur_sampling_step + 1], None)
        rule = lambda _: self._follow(consistency, here, there)  # noqa: E731
        prev = self._fuse(0, rule, sample, model_output, noise=dmd_noisy_tensor.to(device))[0]
        return self._finish(return_dict, as_dtype(prev, dmd_noisy_tensor.dtype))


# --- pi-Flow: the model says x0 on a grid of times, and the flow is followed through it in many small steps


class PiflowScheduler(OnFlow):
    """The small steps are linear in the state and the grid, so their product is, and one pass does them all.

    A rule of its own: its model says x0 at several times at once, where a sampler's rule has one output between two points.
    """

    def _substeps(self, place: int) -> tuple[float, np.ndarray]:
        """(of the state, of each x0 of the grid), after all small steps."""
        shift, eps = float(self.config.shift), self.eps
        raw = self._piflow_raw_timesteps.cpu()
        end = raw[place + 1] if place + 1 < raw.numel() else raw.new_full((), eps)
        # Their number is rounded in the table's precision, as theirs.
        count = max(int(((raw[place] - end) * self.num_policy_substeps).round()), 1)
        start, end = float(raw[place]), float(end)

        def unwarp(s: float) -> float:
            return s / (shift + (1 - shift) * s)

        source = unwarp(float(self._host("sigmas")[place]))
        target = max(source - (start - end), 0.0)
        span = max(source - target, eps)
        kept, grid = 1.0, np.zeros(self.n_grid)
        time, sigma = start, float(self._host("sigmas")[place])
        for _ in range(count):
            at = min(max((unwarp(sigma) - target) / span, 0.0), 1.0) * (self.n_grid - 1)
            low = min(int(at), self.n_grid - 2)
            weights = np.zeros(self.n_grid)
            weights[low], weights[low + 1] = low + 1 - at, at - low
            time = max(time - (start - end) / count, 0.0)
            there = shift * time / (1 + (shift - 1) * time)
            part = (there - sigma) / max(sigma, eps)
            kept, grid, sigma = kept * (1 + part), grid * (1 + part) - weights * part, there
        return kept, grid

    def _policy_step(self, model_output: T, sample: T, step_index: int) -> T:
        outputs = self._to_grid(model_output, sample).unbind(1)
        sigma = float(self._host("sigmas")[step_index])
        state, left = sample, list(range(self.n_grid))
        memory = self._memory.rows
        key = "substeps", step_index, tuple(self._host("_piflow_raw_timesteps")), self.n_grid, self.num_policy_substeps
        if key not in memory:
            memory[key] = self._substeps(step_index)
        kept, grid = memory[key]
        # x0 of the grid is x - sigma output; a pass takes six.
        total = kept + grid.sum()
        while left:
            now, left = left[:6], left[6:]
            weights = [-sigma * grid[k] for k in now]
            forms = [M, *H, BASE][: len(now)]
            prev = sum((form * w for form, w in zip(forms, weights, strict=True)), X * total)
            others = [outputs[k] for k in now[1:]]
            base = others[4] if others[4:] else None
            rule = lambda _, prev=prev: Step(prev)  # noqa: E731
            state = self._fuse(0, rule, state, outputs[now[0]], history=others[:4], base=base)[0]
            total = 1.0
        return state

    def step(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        refuse_integers(self, timestep)
        place = self._step_index_for(timestep)
        state = sample.float() if sample.dtype != torch.float64 else sample
        prev = self._policy_step(model_output, state, place)
        self._step_index += 1
        return self._finish(return_dict, as_dtype(prev, sample.dtype))


class RFD4ProteinaScheduler(Fused):
    """A flow from noise at 0 to data at 1, as ODE at its ends and as SDE between, of the atoms that the mask keeps.

    A rule of its own: its score is scaled for a target of lower temperature, and the strength of its noise is a table of
    theirs, so that no sampler has its marginals.
    """

    def add_noise(self, original_samples: T, noise: T | None, timesteps: Any, *, seeds: Any = None) -> T:
        samples = original_samples.shape[0]
        time = torch.as_tensor(timesteps, device=original_samples.device).double()
        time = time.expand(samples) if time.ndim == 0 else time
        if time.shape != (samples,) or bool(((time < 0) | (time >= 1)).any()):
            raise ValueError(f"timesteps must be in [0, 1) and have shape ({samples},), got {timesteps}")
        return self._combine(original_samples, time, noise, 1 - time, seeds)

    def step(
        self, model_output: T, timestep: Any, sample: T, emit_mask: T, generator: Any = None, return_dict: bool = True, *,
        seeds: Any = None,
    ) -> Any:  # fmt: skip
        place = self._step_index
        if place is None:
            raise ValueError("set_timesteps must be called before step")
        if place >= len(self.timesteps):
            raise ValueError("step was called after the last of scheduler.timesteps; call set_timesteps")
        t = self._number(timestep)
        if t != self._host("timesteps")[place]:
            raise ValueError(f"timestep must be {self._host('timesteps')[place]}, the next of scheduler.timesteps, got {t}")
        generators = self._generators(generator, sample.shape[0])
        config = self.config
        tsr_sigma, tsr_k = config.tsr_sigma, config.tsr_k
        ode = t == 0 or t > config.t_lim_ode or t < config.t_lim_ode_below
        noise = None if ode else self._draw(sample, list(generators) if generators else None, seeds)

        def rule(i: int) -> Step:
            if t == 0:
                return Step(X * 1.0)
            times = self._host("_times")
            dt, strength = times[i + 1] - times[i], self._host("_noise")[i]
            snr = t**2 / (1 - t) ** 2
            ratio = (snr * tsr_sigma**2 + 1) / (snr * tsr_sigma**2 / tsr_k + 1)
            score = (M * t - X) / (1 - t) * ratio
            velocity = (X + score * (1 - t)) / t
            if ode:
                return Step(X + velocity * dt)
            prev = X + (velocity + score * strength) * dt + N * (2 * strength * dt) ** 0.5
            return Step(prev, draw=self._draw_at(Point(0.0, times[i + 1], 1 - times[i + 1])))

        prev = self._fuse(place, rule, sample, model_output, noise=noise, upcast=t != 0)[0]
        self._step_index += 1
        return self._finish(return_dict, prev * emit_mask[..., None])


class SCMScheduler(Fused):
    """Lu and Song 2025: x = cos(t) x0 + sin(t) eps, multistep consistency sampling."""

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        self._ready()
        if self.config.prediction_type != "trigflow":
            raise ValueError(f"prediction_type must be 'trigflow', got {self.config.prediction_type!r}")
        place, stochastic = self._enter(timestep), len(self.timesteps) > 1
        noise = self._draw(model_output, generator, seeds, dtype=torch.get_default_dtype()) if stochastic else None

        def rule(i: int) -> Step:
            here, there = self._host("timesteps")[i : i + 2]
            x0 = X * math.cos(here) - M * math.sin(here)
            # The last of several steps ends at the angle 0.
            end = Point(there, math.cos(there), math.sin(there) * self.config.sigma_data) if stochastic else DATA
            return self._follow(consistency, Point(here, math.cos(here), math.sin(here)), end, x0=x0)

        # Their noise is float32, and so is what they add it to.
        upcast = stochastic and sample.dtype in HALF
        prev, _, x0 = self._fuse(place, rule, sample, model_output, noise=noise, show=True, upcast=upcast)
        self._advance(place)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        return self._finish(return_dict, prev, None if x0 is None else as_dtype(x0, dtype))
