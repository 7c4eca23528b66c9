"""Flow matching: ``x = (1 - sigma) x0 + sigma eps``, the model saying ``eps - x0``; and TrigFlow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from pyfold.adapters.diffusers._fused import HALF, Fused, Step, base, noise_tensor, refuse_integers
from pyfold.adapters.diffusers._multistep import Level, UniPC, unipc
from pyfold.adapters.diffusers._sigmas import OnSigmas
from pyfold.diffusion.formulas import BASE, H, M, N, X


class OnFlow(Fused):
    _tables = ("sigmas",)


class ScalesNoise(OnFlow):
    def scale_noise(self, sample, timestep, noise=None, *, seeds=None):
        """The forward process at the timesteps; ``noise`` None for noise from seeds."""
        places = self._places(timestep, sample.device)
        sigma = self._on("sigmas", sample.device)[places]
        return self._combine(sample, 1 - sigma, noise, sigma, seeds)


class FlowMatchEulerDiscreteScheduler(ScalesNoise, base("FlowMatchEulerDiscreteScheduler")):
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
        per_token_timesteps=None,
        return_dict=True,
        *,
        seeds=None,
    ):
        refuse_integers(self, timestep)
        place = self._enter(timestep)
        stochastic = self.config.stochastic_sampling
        noise = self._draw(sample, generator, seeds, dtype=torch.float32) if stochastic else None
        if per_token_timesteps is not None:
            prev = self._per_token(model_output, sample, per_token_timesteps, noise, place)
            self._advance(place)
            return self._finish(return_dict, prev)

        def rule(i):
            sigma, there = self._host("sigmas")[i : i + 2]
            if stochastic:
                return Step((X - M * sigma) * (1 - there) + N * there)
            return Step(X + M * (there - sigma))

        prev = self._fuse(place, rule, sample, model_output, tag=stochastic, noise=noise, upcast=True)[0]
        self._advance(place)
        return self._finish(return_dict, prev.to(model_output.dtype))

    def _per_token(self, model_output, sample, timesteps, noise, place):
        """Each token of [B, L, C] from its own level to the next lower one of the table; a row of coefficients a token."""
        here = timesteps / self.config.num_train_timesteps
        own = self.sigmas.to(here.device)[:, None, None]
        there = ((own < here[None] - 1e-6) * own).amax(0)
        here, there = here.double().reshape(-1), there.double().reshape(-1)
        if noise is not None:
            noise = noise_tensor(noise, sample.float(), place if isinstance(place, int) else 0).flatten(0, 1)

        def rule(_):
            if noise is not None:
                return Step((X - M * here) * (1 - there) + N * there)
            # The other sign than for one timestep, as theirs.
            return Step(X + M * (here - there))

        flat = sample.flatten(0, 1), model_output.flatten(0, 1)
        return self._fuse(None, rule, *flat, noise=noise, upcast=True)[0].view(sample.shape)


class FlowMatchHeunDiscreteScheduler(OnFlow, base("FlowMatchHeunDiscreteScheduler")):
    _churn = OnSigmas._churn

    def scale_noise(self, sample, timestep, noise, *, seeds=None):
        """The forward process at this step's level."""
        sigma = float(self._host("sigmas")[self._enter_together(timestep)])
        return self._combine(sample, 1 - sigma, noise, sigma, seeds)

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
        place, first = self._enter_together(timestep), self.state_in_first_order
        start = place if first else place - 1
        sample, gamma = self._churn(sample, start, model_output, s_churn, s_tmin, s_tmax, s_noise, generator, seeds)

        def rule(i):
            sigma, there = self._host("sigmas")[i : i + 2]
            hat = sigma * (gamma + 1)
            if first:
                return Step(X + M * (sigma / hat * (there - hat)), keep=M * (sigma / hat))
            return Step(BASE + (H[0] + M) * (self.dt / 2))

        tag = first, gamma, None if first else float(self.dt)
        origin, history = (None, []) if first else (self.sample, [self.prev_derivative])
        prev, slope, _ = self._fuse(start, rule, sample, model_output, tag=tag, base=origin, history=history, upcast=True)
        sigma, there = self._host("sigmas")[start : start + 2]
        self.prev_derivative = slope
        self.dt = there - sigma * (gamma + 1) if first else None
        self.sample = sample if first else None
        self._step_index += 1
        return self._finish(return_dict, prev.to(model_output.dtype))


class FlowMatchLCMScheduler(ScalesNoise, base("FlowMatchLCMScheduler")):
    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        refuse_integers(self, timestep)
        factors = self._scale_factors if self._upscale_mode else None
        if factors and len(self.timesteps) != len(factors) + 1:
            raise ValueError(f"scale_factors must be one fewer than timesteps, got {len(factors)} and {len(self.timesteps)}")
        if self._init_size is None or self.step_index is None:
            self._init_size = model_output.size()[2:]
        place = self._enter(timestep)
        x0 = None
        if factors and place < len(factors):
            rule = lambda i: Step(X - M * self._host("sigmas")[i])  # noqa: E731
            x0 = self._fuse(place, rule, sample, model_output, tag="x0", upcast=True)[0]
            size = [round(factors[place] * length) for length in self._init_size]
            x0 = torch.nn.functional.interpolate(x0, size=size, mode=self._upscale_mode)
        like = sample if x0 is None else x0
        noise = self._draw(like, generator, seeds, dtype=torch.promote_types(torch.float32, model_output.dtype))

        def rule(i):
            sigma, there = self._host("sigmas")[i : i + 2]
            return Step((X - M * sigma if x0 is None else X) * (1 - there) + N * there)

        said = model_output if x0 is None else x0
        prev = self._fuse(place, rule, like, said, tag=x0 is None, noise=noise, upcast=True)[0]
        self._advance(place)
        return self._finish(return_dict, prev.to(model_output.dtype))


class FlowMapEulerDiscreteScheduler(OnFlow, base("FlowMapEulerDiscreteScheduler")):
    """From any level to any other."""

    def scale_noise(self, sample, timestep, noise=None, *, seeds=None):
        """The forward process at the timesteps, of the table or not."""
        sigma = timestep.to(sample.device).double().reshape(-1) / self.config.num_train_timesteps
        return self._combine(sample, 1 - sigma, noise, sigma, seeds)

    def _place(self, timestep):
        """The nearest of the table, by the first sample's timestep; None for one between them."""
        t = float(self._number(timestep.reshape(-1)[0] if isinstance(timestep, torch.Tensor) else timestep))
        far = np.abs(self._host("timesteps") - t)
        return int(far.argmin()) if far.min() <= 1e-3 else None

    def _sigma(self, timestep, device):
        place = self._place(timestep)
        if place is not None:
            return float(self._host("sigmas")[place])
        if isinstance(timestep, torch.Tensor) and timestep.numel() > 1:
            return timestep.to(device).double().reshape(-1) / self.config.num_train_timesteps
        return float(timestep) / self.config.num_train_timesteps

    def step(self, model_output, timestep, sample, r_timestep=None, return_dict=True):
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
        far = sigma - there
        key = None if isinstance(far, torch.Tensor) else far
        prev = self._fuse(key, lambda _: Step(X - M * far), sample, model_output)[0]
        self._step_index += 1
        return self._finish(return_dict, prev.to(model_output.dtype))


class LTXEulerAncestralRFScheduler(OnFlow, base("LTXEulerAncestralRFScheduler")):
    """Euler ancestral for a flow: down to less noise than the next level, then up to it."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        refuse_integers(self, timestep)
        if self.sigmas is None or self.timesteps is None:
            raise ValueError("set_timesteps must be called before step")
        place = self._enter_together(timestep)
        last = len(self.sigmas) - 1
        if place >= last:
            return self._finish(return_dict, sample)
        eta, s_noise = float(self.config.eta), float(self.config.s_noise)
        there = self._host("sigmas")[place + 1]
        noisy = abs(there) >= 1e-8 and eta > 0 and s_noise > 0
        noise = self._draw(sample, generator, seeds, dtype=torch.float32) if noisy else None

        def rule(i):
            sigma, there = self._host("sigmas")[i : i + 2]
            x0 = X - M * sigma
            if abs(there) < 1e-8:
                return Step(x0)
            down = there * (1 + (there / sigma - 1) * eta)
            prev = X * (down / sigma) + x0 * (1 - down / sigma)
            if not noisy:
                return Step(prev)
            alpha, alpha_down = 1 - there, 1 - down
            up = max(there**2 - down**2 * alpha**2 / (alpha_down**2 + 1e-12), 0.0) ** 0.5
            return Step(prev * (alpha / (alpha_down + 1e-12)) + N * (up * s_noise))

        prev = self._fuse(place, rule, sample, model_output, noise=noise, upcast=True)[0]
        self._step_index = min(self._step_index + 1, last)
        return self._finish(return_dict, prev.to(sample.dtype))


class MiniMaxH3Scheduler(OnFlow, base("MiniMaxH3Scheduler")):
    """Euler for a flow whose timestep is 1 - sigma and whose model says x0 - eps."""

    def scale_noise(self, sample, timestep, noise, *, seeds=None):
        """The forward process at the timesteps."""
        t = torch.as_tensor(timestep, device=sample.device).double().reshape(-1)
        return self._combine(sample, t, noise, 1 - t, seeds)

    def step(self, model_output, timestep, sample, return_dict=True):
        if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
            refuse_integers(self, timestep)
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        sigma, there = self._host("sigmas")[self._step_index : self._step_index + 2]
        each = isinstance(timestep, torch.Tensor) and timestep.numel() > 1
        level = 1 - (timestep.to(sample.device).double().reshape(-1) if each else self._number(timestep))

        def rule(_):
            ratio = float(there / sigma)
            return Step(X * ratio + (X + M * level) * (1 - ratio))

        prev = self._fuse(None if each else (self._step_index, level), rule, sample, model_output)[0]
        self._step_index += 1
        return self._finish(return_dict, prev.to(sample.dtype))


# --- Helios: a pyramid of stages, each a flow; the caller may hold the history


class HeliosScheduler(UniPC, OnFlow, base("HeliosScheduler")):
    _least_sigma = 1e-8

    def step_euler(
        self, model_output, timestep=None, sample=None, generator=None, sigma=None, sigma_next=None, return_dict=True
    ):
        if (sigma is None) != (sigma_next is None):
            raise ValueError("sigma and sigma_next must be given together or not at all")
        if sigma is None and timestep is not None:
            refuse_integers(self, timestep)
        if self.step_index is None:
            self._step_index = 0
        levels = self._host("sigmas")[self._step_index : self._step_index + 2] if sigma is None else (sigma, sigma_next)
        sigma, there = (float(self._number(level)) for level in levels)
        rule = lambda _: Step(X + M * (there - sigma))  # noqa: E731
        prev = self._fuse((sigma, there), rule, sample, model_output, tag="euler", upcast=True)[0]
        self._step_index += 1
        return self._finish(return_dict, prev.to(model_output.dtype))

    def step_unipc(
        self,
        model_output,
        timestep=None,
        sample=None,
        return_dict=True,
        model_outputs=None,
        timestep_list=None,
        sigma_before=None,
        sigma=None,
        sigma_next=None,
        cus_step_index=None,
        cus_lower_order_num=None,
        cus_this_order=None,
        cus_last_sample=None,
    ):
        """The corrector, then the predictor: two passes, because the corrected state is an output."""
        self._ready()
        if cus_step_index is not None:
            self._step_index = cus_step_index
        elif self.step_index is None:
            self._step_index = 0
        self.lower_order_nums = self.lower_order_nums if cus_lower_order_num is None else cus_lower_order_num
        self.this_order = getattr(self, "this_order", None) if cus_this_order is None else cus_this_order
        self.last_sample = self.last_sample if cus_last_sample is None else cus_last_sample
        i = self._step_index
        given = tuple(None if s is None else float(self._number(s)) for s in (sigma_before, sigma, sigma_next))
        lists = model_outputs is not None and timestep_list is not None
        if lists:
            self.model_outputs, self.timestep_list = model_outputs[:-1], timestep_list[:-1]
        order = self.this_order if self._corrects(i) else None
        past = [said for said in self.model_outputs[::-1] if said is not None][:4]

        def corrector(i):
            said = self._says_at(i, given[1])
            if order is None:
                return Step(X, keep=said)
            levels = self._levels(i - 1, order, given[0], given[1])
            return Step(unipc(levels, order, self.config.solver_type, self.predict_x0, BASE, H, said), keep=said)

        origin = None if order is None else self.last_sample
        corrected, newest, _ = self._fuse(
            i, corrector, sample, model_output, tag=("corrector", order, given), base=origin, history=past
        )
        corrected = sample if order is None else corrected.to(sample.dtype)
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
            order = self.this_order
            past = [said for said in self.model_outputs[::-1] if said is not None][:4]

            def predictor(i):
                levels = self._levels(i, order, given[1], given[2])
                return Step(unipc(levels, order, self.config.solver_type, self.predict_x0, X, H))

            tag = "predictor", order, given
            prev = self._fuse(i, predictor, corrected, corrected, tag=tag, history=past)[0].to(sample.dtype)
        if cus_lower_order_num is None and self.lower_order_nums < self.config.solver_order:
            self.lower_order_nums += 1
        if cus_step_index is None:
            self._step_index += 1
        outputs = prev, model_outputs, self.last_sample, self.this_order
        return self._finish(True, *outputs) if return_dict else outputs

    def _levels(self, i: int, order: int, here: float | None, there: float | None) -> list[Level]:
        """Of the step from i, its two ends as given or from the table."""
        ends = [self._at(i + 1) if there is None else self._level(there), self._at(i) if here is None else self._level(here)]
        return ends + [self._at(j) for j in range(i - 1, i - order, -1)]

    def _says_at(self, i: int, sigma: float | None) -> Any:
        if self.config.thresholding:
            raise ValueError("thresholding must be False for HeliosScheduler, which has none")
        if sigma is None:
            return self._says(i, self.predict_x0)
        if self.config.prediction_type == "flow_prediction" and self.predict_x0:
            return X - M * sigma
        here = self._level(sigma)
        return self._known("x0" if self.predict_x0 else "epsilon", here.alpha, here.sigma)

    def step(self, model_output, timestep=None, sample=None, generator=None, return_dict=True):
        if self.config.scheduler_type == "euler":
            return self.step_euler(model_output, timestep, sample, generator, return_dict=return_dict)
        if self.config.scheduler_type == "unipc":
            return self.step_unipc(model_output, timestep, sample, return_dict)
        raise ValueError(f"scheduler_type must be 'euler' or 'unipc', got {self.config.scheduler_type!r}")


class HeliosDMDScheduler(Fused, base("HeliosDMDScheduler")):
    """x0, then noise again to the next of the sampling timesteps; the caller brings noise and tables."""

    def _level(self, timestep, sigmas, timesteps):
        """sigma of the nearest timestep of a table, float64 on the device."""
        place = (timesteps.unsqueeze(0) - timestep.unsqueeze(1)).abs().argmin(1)
        return sigmas[place].double()

    def add_noise(self, original_samples, noise, timestep, sigmas, timesteps):
        sigma = self._level(timestep, sigmas.to(noise.device), timesteps.to(noise.device))
        return self._combine(original_samples, 1 - sigma, noise, sigma, None).type_as(noise)

    def convert_flow_pred_to_x0(self, flow_pred, xt, timestep, sigmas, timesteps):
        """x0 from the flow."""
        sigma = self._level(timestep, sigmas.double().to(flow_pred.device), timesteps.double().to(flow_pred.device))
        return self._fuse(None, lambda _: Step(X - M * sigma), xt, flow_pred)[0].to(flow_pred.dtype)

    def step(
        self,
        model_output,
        timestep=None,
        sample=None,
        generator=None,
        return_dict=True,
        cur_sampling_step=0,
        dmd_noisy_tensor=None,
        dmd_sigmas=None,
        dmd_timesteps=None,
        all_timesteps=None,
    ):
        device, samples = model_output.device, model_output.shape[0]

        def level(t, dtype):
            t = torch.as_tensor(t, device=device).to(torch.long).reshape(-1).expand(samples)
            return self._level(t, dmd_sigmas.to(device, dtype), dmd_timesteps.to(device, dtype))

        sigma = level(timestep, torch.float64)
        if cur_sampling_step >= len(all_timesteps) - 1:
            prev = self._fuse(None, lambda _: Step(X - M * sigma), sample, model_output)[0]
            return self._finish(return_dict, prev.to(model_output.dtype))
        there = level(all_timesteps[cur_sampling_step + 1], None)
        rule = lambda _: Step((X - M * sigma) * (1 - there) + N * there)  # noqa: E731
        prev = self._fuse(None, rule, sample, model_output, noise=dmd_noisy_tensor)[0]
        return self._finish(return_dict, prev.to(dmd_noisy_tensor.dtype))


# --- pi-Flow: the model says x0 on a grid of times, and the flow is followed through it in many small steps


class PiflowScheduler(OnFlow, base("PiflowScheduler")):
    """The small steps are linear in the state and the grid, so their product is, and one pass does them all."""

    def _substeps(self, place: int) -> tuple[float, np.ndarray]:
        """(of the state, of each x0 of the grid), after all small steps."""
        shift, eps = float(self.config.shift), self.eps
        raw = self._piflow_raw_timesteps.cpu()
        end = raw[place + 1] if place + 1 < raw.numel() else raw.new_full((), eps)
        # Their number is rounded in the table's precision, as theirs.
        count = max(int(((raw[place] - end) * self.num_policy_substeps).round()), 1)
        start, end = float(raw[place]), float(end)
        unwarp = lambda s: s / (shift + (1 - shift) * s)  # noqa: E731
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

    def _policy_step(self, model_output, sample, step_index):
        said = self._to_grid(model_output, sample).unbind(1)
        sigma = float(self._host("sigmas")[step_index])
        state, left = sample, list(range(self.n_grid))
        memory = self._memory()["rows"]
        key = "substeps", step_index, tuple(self._host("_piflow_raw_timesteps")), self.n_grid, self.num_policy_substeps
        if key not in memory:
            memory[key] = self._substeps(step_index)
        kept, grid = memory[key]
        # x0 of the grid is x - sigma said; a pass takes six.
        total = kept + grid.sum()
        while left:
            now, left = left[:6], left[6:]
            weights = [-sigma * grid[k] for k in now]
            forms = [M, *H, BASE][: len(now)]
            rule = lambda _, total=total, forms=forms, weights=weights: Step(  # noqa: E731
                X * total + sum(form * w for form, w in zip(forms, weights, strict=True))
            )
            others = [said[k] for k in now[1:]]
            tag = "grid", total, tuple(weights)
            state = self._fuse(
                step_index, rule, state, said[now[0]], tag=tag, history=others[:4], base=others[4] if others[4:] else None
            )[0]
            total = 1.0
        return state

    def step(self, model_output, timestep, sample, return_dict=True):
        if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
            refuse_integers(self, timestep)
        place = self._step_index_for(timestep)
        state = sample.float() if sample.dtype != torch.float64 else sample
        prev = self._policy_step(model_output, state, place)
        self._step_index += 1
        return self._finish(return_dict, prev.to(sample.dtype))


class RFD4ProteinaScheduler(Fused, base("RFD4ProteinaScheduler")):
    """A flow from noise at 0 to data at 1, as ODE at its ends and as SDE between, of the atoms that the mask keeps."""

    _tables = ("_times", "_noise")

    def add_noise(self, original_samples, noise, timesteps, *, seeds=None):
        samples = original_samples.shape[0]
        time = torch.as_tensor(timesteps, device=original_samples.device).double()
        time = time.expand(samples) if time.ndim == 0 else time
        if time.shape != (samples,) or bool(((time < 0) | (time >= 1)).any()):
            raise ValueError(f"timesteps must be in [0, 1) and have shape ({samples},), got {timesteps}")
        return self._combine(original_samples, time, noise, 1 - time, seeds)

    def step(self, model_output, timestep, sample, emit_mask, generator=None, return_dict=True, *, seeds=None):
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
        ode = t == 0 or t > config.t_lim_ode or t < config.t_lim_ode_below
        noise = None if ode else self._draw(sample, list(generators) if generators else None, seeds)

        def rule(i):
            if t == 0:
                return Step(X * 1.0)
            times = self._host("_times")
            dt, strength = times[i + 1] - times[i], self._host("_noise")[i]
            snr = t**2 / (1 - t) ** 2
            ratio = (snr * config.tsr_sigma**2 + 1) / (snr * config.tsr_sigma**2 / config.tsr_k + 1)
            score = (M * t - X) / (1 - t) * ratio
            velocity = (X + score * (1 - t)) / t
            if ode:
                return Step(X + velocity * dt)
            return Step(X + (velocity + score * strength) * dt + N * (2 * strength * dt) ** 0.5)

        prev = self._fuse(place, rule, sample, model_output, noise=noise, upcast=t != 0)[0]
        self._step_index += 1
        return self._finish(return_dict, prev * emit_mask[..., None])


class SCMScheduler(Fused, base("SCMScheduler")):
    """Lu and Song 2025: x = cos(t) x0 + sin(t) eps, multistep consistency sampling."""

    _tables = ("timesteps",)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step, num_inference_steps is None")
        if self.config.prediction_type != "trigflow":
            raise ValueError(f"prediction_type must be 'trigflow', got {self.config.prediction_type!r}")
        place = self._enter(timestep)
        stochastic = len(self.timesteps) > 1
        noise = self._draw(model_output, generator, seeds, dtype=torch.get_default_dtype()) if stochastic else None

        def rule(i):
            here, there = self._host("timesteps")[i : i + 2]
            x0 = X * math.cos(here) - M * math.sin(here)
            prev = x0 * math.cos(there) + N * (math.sin(there) * self.config.sigma_data) if stochastic else x0
            return Step(prev, x0=x0)

        # Their noise is float32, and so is what they add it to.
        prev, _, x0 = self._fuse(
            place,
            rule,
            sample,
            model_output,
            tag=stochastic,
            noise=noise,
            show=True,
            upcast=stochastic and sample.dtype in HALF,
        )
        self._advance(place)
        return self._finish(return_dict, prev, x0.to(torch.promote_types(sample.dtype, model_output.dtype)))
