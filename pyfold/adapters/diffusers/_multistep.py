"""Exponential integrators of several steps: the DPM-Solver family, DEIS, UniPC, SA-Solver.

Each remembers what the model said of x0 or of epsilon, the newest last, where diffusers does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pyfold.adapters.diffusers._discrete import Noising
from pyfold.adapters.diffusers._fused import Fused, StretchesFlows
from pyfold.adapters.diffusers._rows import Counted, Step, T, as_dtype
from pyfold.adapters.diffusers._sigmas import BrownianSteps, OnSigmas, preconditioned
from pyfold.adapters.k_diffusion import SCHEDULE
from pyfold.diffusion import formulas
from pyfold.diffusion.formulas import BASE, Form, H, M, U, X
from pyfold.diffusion.samplers import Past, Sampler
from pyfold.diffusion.samplers.correctors import Method, adams_method, unipc_method
from pyfold.diffusion.samplers.exponential import dpm_multistep, dpmpp_multistep
from pyfold.diffusion.samplers.linear import deis
from pyfold.diffusion.schedule import Point


class OnLevels(Fused):
    """Noise levels sigma / alpha of a variance-preserving state, or of a flow's."""

    _least_sigma = 0.0

    def _level(self, sigma: Any, i: int = 0) -> Point:
        if getattr(self.config, "use_flow_sigmas", None):
            return Point(i, 1 - sigma, max(sigma, self._least_sigma))
        alpha = 1 / (sigma**2 + 1) ** 0.5
        return Point(i, alpha, sigma * alpha)

    def _at(self, i: int) -> Point:
        return self._level(self._host("sigmas")[i], i)

    def _means(self, wanted: str, at: Point) -> Form:
        prediction, flow = self.config.prediction_type, getattr(self.config, "use_flow_sigmas", None)
        if prediction == "flow_prediction":
            if wanted != "x0":
                raise ValueError(f"prediction_type 'flow_prediction' needs an algorithm on x0 in {type(self).__name__}")
            # With sigma of the table, whatever use_flow_sigmas says.
            return X - M * (at.sigma if flow else at.ratio)
        if prediction == "v_prediction" and flow:
            # As theirs, which takes the flow's state for a variance-preserving one.
            return X * at.alpha - M * at.sigma if wanted == "x0" else X * at.sigma + M * at.alpha
        return super()._means(wanted, at)

    def _bound(self) -> str | None:
        return "dynamic" if getattr(self.config, "thresholding", None) else None

    def _output_of(self, model_output: T) -> T:
        """Without the variance that some models say besides."""
        learns = getattr(self.config, "variance_type", None) in ("learned", "learned_range")
        return model_output[:, :3] if learns and self.config.prediction_type == "epsilon" else model_output

    def _kept_dtype(self, model_output: T, sample: T, of_x0: bool) -> torch.dtype:
        """Of what is remembered: the model's own, where it is what the model said."""
        itself = self.config.prediction_type == ("sample" if of_x0 else "epsilon") and (of_x0 or self._bound() is None)
        return model_output.dtype if itself else torch.promote_types(model_output.dtype, sample.dtype)

    def _remember(self, newest: T | None) -> None:
        self.model_outputs = [*self.model_outputs[1:], newest]


class NoisingLevels(OnLevels):
    def add_noise(self, original_samples: T, noise: T | None, timesteps: T, *, seeds: Any = None) -> T:
        """diffusers' ``add_noise``; ``noise`` None for noise from seeds."""
        places = self._places(timesteps, original_samples.device, last_if_missing=True)
        level, flow = self._in_places("sigmas", places), self.config.use_flow_sigmas
        alpha = 1 - level if flow else 1 / (level**2 + 1) ** 0.5
        return self._combine(original_samples, alpha, noise, level if flow else level * alpha, seeds)


# --- DPM-Solver and DEIS: the order grows with what is remembered, and may fall at the end


class Multistep(OnLevels):
    _stochastic_orders: tuple[int, ...] = (1, 2, 3)

    def _order(self, i: int, final: bool) -> int:
        """``final``: whether the last step is of order 1 in any case."""
        config, steps = self.config, len(self.timesteps)
        few = config.lower_order_final and steps < 15
        if config.solver_order == 1 or self.lower_order_nums < 1 or (i == steps - 1 and (final or few)):
            return 1
        if config.solver_order == 2 or self.lower_order_nums < 2 or (i == steps - 2 and few):
            return 2
        return 3

    def _rule(self, order: int, solver: str) -> tuple[Sampler, str, dict[str, Any]]:
        """The sampler of the configuration, what it keeps, and its options."""
        algorithm = getattr(self.config, "algorithm_type", "sde-dpmsolver++")
        stochastic = algorithm.startswith("sde")
        if algorithm.endswith("++"):
            solver = f"{solver}_sde" if stochastic and order == 3 else solver
            return dpmpp_multistep, "x0", {"order": order, "solver": solver, "eta": 1.0 if stochastic else 0.0}
        if stochastic and order == 3:
            raise ValueError("solver_order 3 has no formula for algorithm_type 'sde-dpmsolver'")
        return dpm_multistep, "epsilon", {"order": order, "solver": solver, "stochastic": stochastic}

    def _stays(self, here: Point, there: Point) -> bool:
        """Whether a stochastic step has no length but for the rounding of float32 tables, whose end may be the larger."""
        if there.ratio <= here.ratio:
            return there.ratio == here.ratio
        if there.ratio > here.ratio * (1 + 1e-6):
            raise ValueError(
                f"algorithm_type {self.config.algorithm_type!r} cannot step to more noise in {type(self).__name__}: "
                "the variance of what it adds, 1 - exp(-2 h) of a falling lambda, would be negative; choose one without 'sde'"
            )
        return True

    def _multistep(self, i: int, order: int, model_output: T, sample: T, noise: Any, upcast: bool = False) -> T:
        if noise is not None and order not in self._stochastic_orders:
            raise ValueError(f"solver_order {order} has no stochastic formula in {type(self).__name__}")

        noisy = noise is not None

        def rule(i: int) -> Step:
            sampler, u, options = self._rule(order, self.config.solver_type)
            before = [self._at(i - j) for j in range(1, order)]
            ends, options["visit"] = (self._at(i), self._at(i + 1)), self._visit(i + 1)
            if noisy and self._stays(*ends):
                ends, options["order"] = (ends[0], ends[0]), 1
            return self._follow(sampler, *ends, before, u=u, keep=True, shows=False, **options)

        past = self.model_outputs[:0:-1][: order - 1]
        prev, newest, _ = self._fuse(i, rule, sample, model_output, history=past, noise=noise, upcast=upcast)
        self._remember(newest)
        if self.lower_order_nums < self.config.solver_order:
            self.lower_order_nums += 1
        self._step_index += 1
        return prev


class DPMMultistep(NoisingLevels, Multistep):
    _final_zero = True
    _single_precision_noise = False

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, variance_noise: T | None = None,
        return_dict: bool = True, *, seeds: Any = None,
    ) -> Any:  # fmt: skip
        self._ready()
        i, config, upcast = self._enter_together(timestep), self.config, self._single_precision_noise
        final = config.euler_at_final or (self._final_zero and config.final_sigmas_type == "zero")
        model_output = self._output_of(model_output)
        dtype = self._kept_dtype(model_output, sample, config.algorithm_type.endswith("++"))
        noise = None
        if config.algorithm_type.startswith("sde"):
            drawn = torch.float32 if upcast else dtype
            noise = self._draw(model_output, generator, seeds, given=variance_noise, dtype=drawn)
        prev = self._multistep(i, self._order(i, final), model_output, sample, noise, upcast)
        return self._finish(return_dict, as_dtype(prev, dtype) if upcast else prev)


class DPMSolverMultistepScheduler(DPMMultistep):
    _single_precision_noise = True


class DPMSolverMultistepInverseScheduler(DPMMultistep):
    """From data to noise."""

    _final_zero = False
    # Theirs passes no noise to order 3.
    _stochastic_orders = (1, 2)


class Preconditioned(OnSigmas, Multistep):
    """DPM-Solver++ at alpha 1, behind EDM's preconditioning."""

    _stochastic_orders = (1, 2)
    _last_if_missing = True

    def _data_std(self) -> float:
        return float(self.config.sigma_data)

    def _means(self, wanted: str, at: Point) -> Form:
        return preconditioned(self.config, at.sigma)

    def _order(self, i: int, final: bool = False) -> int:
        return super()._order(i, self.config.euler_at_final or self.config.final_sigmas_type == "zero")


class EDMDPMSolverMultistepScheduler(Preconditioned):
    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        self._ready()
        i, stochastic = self._enter_together(timestep), self.config.algorithm_type.startswith("sde")
        dtype = torch.promote_types(model_output.dtype, sample.dtype)
        noise = self._draw(model_output, generator, seeds, dtype=dtype) if stochastic else None
        return self._finish(return_dict, self._multistep(i, self._order(i), model_output, sample, noise))


class CosineDPMSolverMultistepScheduler(BrownianSteps, Preconditioned):
    """The SDE form with noise of a Brownian path."""

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        self._ready()
        i, config = self._enter_together(timestep), self.config
        if generator is not None and seeds is not None:
            raise ValueError("seeds and generator must not be given together")
        of_path = None
        if generator is not None:
            of_path = [g.initial_seed() for g in generator] if isinstance(generator, list) else generator.initial_seed()
        like = sample.to(torch.promote_types(model_output.dtype, sample.dtype))
        start, end = self.sigmas[i : i + 2]
        noise = self._increment(like, config.sigma_min, config.sigma_max, of_path, start, end, seeds)
        return self._finish(return_dict, self._multistep(i, min(self._order(i), 2), model_output, sample, noise))


class DPMSolverSinglestepScheduler(NoisingLevels, Multistep):
    """Steps of order 1, 2, 3, each from where the group of them started.

    The multistep rules, whose derivatives are those of the polynomial through any points: at the start of the group, the points
    inside it in place of those before it.
    """

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        self._ready()
        i, algorithm = self._enter_together(timestep), self.config.algorithm_type
        model_output = self._output_of(model_output)
        dtype = self._kept_dtype(model_output, sample, algorithm.endswith("++"))
        noise = self._draw(model_output, generator, seeds, dtype=dtype) if algorithm.startswith("sde") else None
        order, past = self.order_list[i], self.model_outputs[:0:-1]
        while order > 1 and past[order - 2] is None:
            order -= 1
        if order == 1:
            self.sample = sample
        origin, history = None if order == 1 else self.sample, past[: order - 1]
        stays = noise is not None and self._stays(self._at(i), self._at(i + 1))
        rule = lambda i: self._from_start(i, order, i if stays else i + 1)  # noqa: E731
        prev, newest, _ = self._fuse(i, rule, sample, model_output, base=origin, history=history, noise=noise)
        self._remember(newest)
        self._step_index += 1
        return self._finish(return_dict, prev)

    def _from_start(self, i: int, order: int, end: int) -> Step:
        solver = self.config.solver_type
        if order < 3:
            nodes, values = [i][: order - 1], [U]
        elif solver == "midpoint":
            # Of order 2 with the third evaluation's slope.
            nodes, values, solver = [i], [U], "heun"
        else:
            nodes, values, solver = [i - 1, i], [H[0], U], "exact"
        sampler, u, options = self._rule(len(nodes) + 1, solver)
        way = Past([*map(self._at, nodes[::-1]), self._at(i - order + 1), self._at(end)], len(nodes), SCHEDULE)
        step = sampler.rule(way.here, way.there, way, **options)
        assert isinstance(step, formulas.Step)
        names = {f"h{k}": value for k, value in enumerate(values, 1)} if order > 1 else {}
        prev = step.prev.over(x=BASE, u=H[order - 2], **names) if order > 1 else step.prev
        meant = self._meant(prev, self._at(i), u, True, shows=False)
        return replace(meant, draw=self._draw_at(way.there, self._visit(i + 1)))


class DEISMultistepScheduler(NoisingLevels, Multistep):
    """Zhang and Chen 2023, eq. 15, the polynomial in log rho."""

    def _epsilon_sigma(self, at: Point) -> float:
        # Theirs takes the table's sigma of a flow's prediction, which is sigma / alpha where use_flow_sigmas is not set.
        of_table = self.config.prediction_type == "flow_prediction" and not self.config.use_flow_sigmas
        return at.ratio if of_table else at.sigma

    def _means(self, wanted: str, at: Point) -> Form:
        if wanted == "epsilon" and self.config.prediction_type in ("flow_prediction", "v_prediction"):
            return (X - self._means("x0", at) * at.alpha) / self._epsilon_sigma(at)
        return super()._means(wanted, at)

    def _rule(self, order: int, solver: str) -> tuple[Sampler, str, dict[str, Any]]:
        return deis, "epsilon", {"order": order}

    def step(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        self._ready()
        i = self._enter_together(timestep)
        return self._finish(return_dict, self._multistep(i, self._order(i, False), model_output, sample, None))


# --- UniPC and SA-Solver


class PredictorCorrector(OnLevels):
    """A corrector's pass that is also the next predictor's.

    The corrected state differs from the predicted one by terms in what the model said, so the state before, which diffusers
    keeps as ``last_sample``, is not needed: here that is the predicted state, a copy that the pass writes out of the caller's
    reach.
    """

    def _bound(self) -> str | None:
        # Theirs clips predictions of x0 only.
        return super()._bound() if self.predict_x0 else None

    def _u(self) -> str:
        return "x0" if self.predict_x0 else "epsilon"

    def _final_order(self) -> int | None:
        return 1 if self.config.lower_order_final else None

    def _way_from(self, i: int, count: int) -> Past:
        """To the step from place i, with what is remembered before it; the places behind it are only counted."""
        points = [self._at(j) for j in range(i - count, i + 2)]
        return Past(points + points[-1:] * (len(self._host("sigmas")) - i - 2), count, SCHEDULE)

    def _past(self) -> list[T]:
        return [kept for kept in self.model_outputs[::-1] if kept is not None][:4]

    def _both(self, i: int, method: Method, corrects: bool, model_output: T, sample: T, noise: T | Counted | None = None) -> T:
        """Corrector of the last step, then predictor of the next."""
        count, u = self.lower_order_nums, self._u()

        def rule(i: int) -> Step:
            prev = method.step(self._way_from(i, count), corrects).prev
            meant = self._meant(prev.renamed({"x": "base"} if corrects else {}), self._at(i), u, True, shows=False)
            return replace(meant, draw=self._draw_at(self._at(i + 1), self._visit(i + 1)))

        copies: list[T] = []
        origin = self.last_sample if corrects else None
        prev, newest, _ = self._fuse(
            i, rule, sample, model_output, base=origin, history=self._past(), noise=noise, copies=copies
        )  # fmt: skip
        self.last_sample = copies[0]
        self._remember(newest)
        return prev


class UniPC(PredictorCorrector):
    def _method(self, order: int) -> Method:
        return unipc_method(order, self.config.solver_type, self._u(), self._final_order())

    def _next_order(self, i: int) -> int:
        order = self.config.solver_order
        if self.config.lower_order_final:
            order = min(order, len(self.timesteps) - i)
        return int(min(order, self.lower_order_nums + 1))

    def _corrects(self, i: int) -> bool:
        return i > 0 and i - 1 not in self.disable_corrector and self.last_sample is not None


class UniPCMultistepScheduler(StretchesFlows, NoisingLevels, UniPC):
    def step(self, model_output: T, timestep: Any, sample: T, return_dict: bool = True) -> Any:
        self._ready()
        i, method = self._enter_together(timestep), self._method(self.config.solver_order)
        corrects = self._corrects(i)
        self.this_order = self._next_order(i)
        if self.solver_p:
            prev = self._with_predictor(i, method, corrects, model_output, timestep, sample)
        else:
            prev = self._both(i, method, corrects, model_output, sample)
        if self.lower_order_nums < self.config.solver_order:
            self.lower_order_nums += 1
        self._step_index += 1
        return self._finish(return_dict, as_dtype(prev, sample.dtype))

    def _with_predictor(self, i: int, method: Method, corrects: bool, model_output: T, timestep: Any, sample: T) -> T:
        """The corrector alone, another scheduler's step after it."""
        count, u, origin = self.lower_order_nums, self._u(), self.last_sample if corrects else None

        def rule(i: int) -> Step:
            prev = method.corrected(self._way_from(i, count).back(), BASE, (U, *H)) if corrects else X
            return self._meant(prev, self._at(i), u, True, shows=False)

        self.last_sample, newest, _ = self._fuse(i, rule, sample, model_output, base=origin, history=self._past())
        self._remember(newest)
        prev: T = self.solver_p.step(model_output, timestep, self.last_sample).prev_sample
        return prev


class SASolverScheduler(PredictorCorrector, Noising):
    """Xue et al. 2023, algorithm 1, with the change of order 2 that the authors' code makes."""

    _taus: dict[int, float]

    def step(
        self, model_output: T, timestep: Any, sample: T, generator: Any = None, return_dict: bool = True, *, seeds: Any = None
    ) -> Any:
        self._ready()
        i, config = self._enter_together(timestep), self.config
        if config.thresholding and not self.predict_x0:
            raise ValueError("thresholding needs algorithm_type 'data_prediction'")
        noise = self._draw(model_output, generator, seeds)
        model_output = self._output_of(model_output)
        corrects = i > 0 and self.last_sample is not None
        # By place, as they were when each step was taken.
        self._taus = {**(self._taus if corrects else {}), i: float(self.tau_func(self._number(timestep)))}
        taus = tuple((j, tau) for j, tau in self._taus.items() if j >= i - 1)
        most = config.predictor_order, config.corrector_order
        method = adams_method(*most, lambda at: dict(taus)[int(at.t)], True, self._u(), self._final_order())
        prev = self._both(i, method, corrects, model_output, sample, noise)
        if self.lower_order_nums < max(most[0], most[1] - 1):
            self.lower_order_nums += 1
        self._step_index += 1
        return self._finish(return_dict, as_dtype(prev, sample.dtype))
