"""Exponential integrators of several steps: the DPM-Solver family, DEIS, UniPC, SA-Solver.

Each remembers what the model said of x0 or of epsilon, the newest last, where diffusers does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyfold.adapters.diffusers._discrete import Noising
from pyfold.adapters.diffusers._fused import Fused, Step, base
from pyfold.adapters.diffusers._sigmas import BrownianSteps, OnSigmas, preconditioned
from pyfold.diffusion.formulas import BASE, X0, Form, H, M, N, X
from pyfold.diffusion.integrals import lagrange_integrals
from pyfold.diffusion.samplers.correctors import adams_adjustment, adams_weights, unipc_weights
from pyfold.diffusion.samplers.exponential import bends


class Level:
    """alpha, sigma and lambda = log(alpha / sigma) of a place in the table."""

    def __init__(self, alpha: Any, sigma: Any):
        self.alpha, self.sigma = np.float64(alpha), np.float64(sigma)
        self.lam = np.log(self.alpha) - np.log(self.sigma)


class OnLevels(Fused):
    """Noise levels sigma / alpha of a variance-preserving state, or of a flow's."""

    _tables = ("sigmas",)
    _least_sigma = 0.0

    def _level(self, sigma: Any) -> Level:
        if getattr(self.config, "use_flow_sigmas", None):
            return Level(1 - sigma, max(sigma, self._least_sigma))
        alpha = 1 / (sigma**2 + 1) ** 0.5
        return Level(alpha, sigma * alpha)

    def _at(self, i: int) -> Level:
        return self._level(self._host("sigmas")[i])

    def _says(self, i: int, of_x0: bool) -> Form:
        """What the model's output says of x0 or epsilon, before any clip."""
        here = self._at(i)
        if self.config.prediction_type == "flow_prediction":
            if not of_x0:
                raise ValueError(f"prediction_type 'flow_prediction' needs an algorithm on x0 in {type(self).__name__}")
            # With sigma of the table, whatever use_flow_sigmas says.
            return X - M * self._host("sigmas")[i]
        return self._known("x0" if of_x0 else "epsilon", here.alpha, here.sigma)

    def _told(self, i: int, of_x0: bool) -> dict[str, Any]:
        """keep, x0 and clip of a step that remembers what the model says."""
        clip = self._bound()
        if clip is None:
            return {"keep": self._says(i, of_x0)}
        here, x0 = self._at(i), self._says(i, True)
        return {"keep": X0 if of_x0 else (X - X0 * here.alpha) / here.sigma, "x0": x0, "clip": clip}

    def _bound(self):
        return "dynamic" if getattr(self.config, "thresholding", None) else None

    def _output_of(self, model_output: torch.Tensor) -> torch.Tensor:
        """Without the variance that some models say besides."""
        learns = getattr(self.config, "variance_type", None) in ("learned", "learned_range")
        return model_output[:, :3] if learns and self.config.prediction_type == "epsilon" else model_output

    def _said_dtype(self, model_output: torch.Tensor, sample: torch.Tensor, of_x0: bool) -> torch.dtype:
        """Of what is remembered: the model's own, where it is what the model said."""
        itself = self.config.prediction_type == ("sample" if of_x0 else "epsilon") and (of_x0 or self._bound() is None)
        return model_output.dtype if itself else torch.promote_types(model_output.dtype, sample.dtype)

    def _ready(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError("set_timesteps must be called before step, num_inference_steps is None")

    def _remember(self, newest: torch.Tensor) -> None:
        self.model_outputs = [*self.model_outputs[1:], newest]


class NoisingLevels(OnLevels):
    def add_noise(self, original_samples, noise, timesteps, *, seeds=None):
        """diffusers' ``add_noise``; ``noise`` None for noise from seeds."""
        places = self._places(timesteps, original_samples.device, last_if_missing=True)
        level, flow = self._on("sigmas", original_samples.device)[places], self.config.use_flow_sigmas
        alpha = 1 - level if flow else 1 / (level**2 + 1) ** 0.5
        return self._combine(original_samples, alpha, noise, level if flow else level * alpha, seeds)


# --- DPM-Solver


def exponential(algorithm: str, start: Level, there: Level) -> tuple[Any, ...]:
    """Of a step in h = lambda' - lambda: what multiplies x, D0, h D', h^2 D'' / 2 and noise (Lu et al. 2022 and 2023).

    ``D`` is x0 for the algorithms in "++", else epsilon.
    """
    plus, stochastic = algorithm.endswith("++"), algorithm.startswith("sde")
    h = there.lam - start.lam
    if not plus:
        size = (2 if stochastic else 1) * there.sigma
        noise = there.sigma * np.expm1(2 * h) ** 0.5 if stochastic else 0.0
        return there.alpha / start.alpha, *(size * c for c in (-np.expm1(h), *bends(h, False))), noise
    rate = 2 * h if stochastic else h
    lead, (first, second) = -np.expm1(-rate), bends(rate, True)
    kept = there.sigma / start.sigma
    if not stochastic:
        return kept, *(there.alpha * c for c in (lead, first, second)), 0.0
    # Theirs is of D'' less by one, which only makes a difference of order 3.
    return kept * np.exp(-h), *(there.alpha * c for c in (lead, first, second - 1)), there.sigma * lead**0.5


def refined(algorithm: str, solver: str, x: Form, start: Level, there: Level, d0: Form, d1: Any = None, d2: Any = None) -> Form:
    """The step from differences: D0, h D' and h^2 D''; the midpoint rule has half of D0's weight for h D'."""
    kept, of_d0, of_d1, of_d2, noise = exponential(algorithm, start, there)
    result = x * kept + d0 * of_d0
    if noise or algorithm.startswith("sde"):
        result = result + N * noise
    if d1 is not None:
        result = result + d1 * (of_d0 / 2 if solver == "midpoint" and d2 is None else of_d1)
    return result if d2 is None else result + d2 * of_d2


def multistep(algorithm: str, solver: str, levels: list[Level], told: list[Form]) -> Form:
    """From levels there, here, before, ... and what the model said here, before, ...; order is the number of the latter."""
    if len(told) == 3 and algorithm == "sde-dpmsolver":
        raise ValueError("solver_order 3 has no formula for algorithm_type 'sde-dpmsolver'")
    there, here, *past = levels
    h = there.lam - here.lam
    if len(told) == 1:
        return refined(algorithm, solver, X, here, there, told[0])
    r0 = (here.lam - past[0].lam) / h
    d1 = (told[0] - told[1]) / r0
    if len(told) == 2:
        return refined(algorithm, solver, X, here, there, told[0], d1)
    r1 = (past[0].lam - past[1].lam) / h
    older = (told[1] - told[2]) / r1
    d2 = (d1 - older) / (r0 + r1)
    return refined(algorithm, solver, X, here, there, told[0], d1 + (d1 - older) * (r0 / (r0 + r1)), d2)


class Multistep(OnLevels):
    """DPM-Solver and DEIS: the order grows with what is remembered, and may fall at the end."""

    _stochastic_orders = (1, 2, 3)

    def _order(self, i: int, final: bool) -> int:
        """``final``: whether the last step is of order 1 in any case."""
        config, steps = self.config, len(self.timesteps)
        few = config.lower_order_final and steps < 15
        if config.solver_order == 1 or self.lower_order_nums < 1 or (i == steps - 1 and (final or few)):
            return 1
        if config.solver_order == 2 or self.lower_order_nums < 2 or (i == steps - 2 and few):
            return 2
        return 3

    def _of_x0(self) -> bool:
        return getattr(self.config, "algorithm_type", "++").endswith("++")

    def _update(self, i: int, order: int, told: list[Form]) -> Form:
        config = self.config
        algorithm = getattr(config, "algorithm_type", "sde-dpmsolver++")
        return multistep(algorithm, config.solver_type, [self._at(j) for j in range(i + 1, i - order, -1)], told)

    def _multistep(self, i: int, order: int, model_output, sample, noise, **options: Any) -> torch.Tensor:
        if noise is not None and order not in self._stochastic_orders:
            raise ValueError(f"solver_order {order} has no stochastic formula in {type(self).__name__}")
        past = self.model_outputs[:0:-1][: order - 1]

        def rule(i):
            told = self._told(i, self._of_x0())
            return Step(self._update(i, order, [told["keep"], *H[: order - 1]]), **told)

        prev, newest, _ = self._fuse(i, rule, sample, model_output, tag=order, history=past, noise=noise, **options)
        self._remember(newest)
        if self.lower_order_nums < self.config.solver_order:
            self.lower_order_nums += 1
        self._step_index += 1
        return prev


class DPMMultistep(NoisingLevels, Multistep):
    _final_zero = True
    _single_precision_noise = False

    def step(
        self,
        model_output,
        timestep,
        sample,
        generator=None,
        variance_noise=None,
        return_dict=True,
        *,
        seeds=None,
    ):
        self._ready()
        i = self._enter_together(timestep)
        config = self.config
        final = config.euler_at_final or (self._final_zero and config.final_sigmas_type == "zero")
        model_output = self._output_of(model_output)
        dtype = self._said_dtype(model_output, sample, self._of_x0())
        noise = None
        if config.algorithm_type.startswith("sde"):
            drawn = torch.float32 if self._single_precision_noise else dtype
            noise = self._draw(model_output, generator, seeds, given=variance_noise, dtype=drawn)
        upcast = self._single_precision_noise
        prev = self._multistep(i, self._order(i, final), model_output, sample, noise, upcast=upcast)
        return self._finish(return_dict, prev.to(dtype) if upcast else prev)


class DPMSolverMultistepScheduler(DPMMultistep, base("DPMSolverMultistepScheduler")):
    _single_precision_noise = True


class DPMSolverMultistepInverseScheduler(DPMMultistep, base("DPMSolverMultistepInverseScheduler")):
    """From data to noise."""

    _final_zero = False
    # Theirs passes no noise to order 3.
    _stochastic_orders = (1, 2)


class Preconditioned(OnSigmas, Multistep):
    """DPM-Solver++ at alpha 1, behind EDM's preconditioning."""

    _stochastic_orders = (1, 2)
    _last_if_missing = True

    def _data_std(self):
        return self.config.sigma_data

    def _level(self, sigma):
        return Level(1.0, sigma)

    def _says(self, i, of_x0):
        return preconditioned(self.config, self._host("sigmas")[i])


class EDMDPMSolverMultistepScheduler(Preconditioned, base("EDMDPMSolverMultistepScheduler")):
    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        self._ready()
        i = self._enter_together(timestep)
        final = self.config.euler_at_final or self.config.final_sigmas_type == "zero"
        stochastic = self.config.algorithm_type.startswith("sde")
        dtype = torch.promote_types(model_output.dtype, sample.dtype)
        noise = self._draw(model_output, generator, seeds, dtype=dtype) if stochastic else None
        prev = self._multistep(i, self._order(i, final), model_output, sample, noise)
        return self._finish(return_dict, prev)


class CosineDPMSolverMultistepScheduler(Preconditioned, BrownianSteps, base("CosineDPMSolverMultistepScheduler")):
    """The SDE form with noise of a Brownian path."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        self._ready()
        i = self._enter_together(timestep)
        config = self.config
        final = config.euler_at_final or config.final_sigmas_type == "zero"
        if generator is not None and seeds is not None:
            raise ValueError("seeds and generator must not be given together")
        of_path = None
        if generator is not None:
            of_path = [g.initial_seed() for g in generator] if isinstance(generator, list) else generator.initial_seed()
        like = sample.to(torch.promote_types(model_output.dtype, sample.dtype))
        noise = self._increment(like, config.sigma_min, config.sigma_max, of_path, *self.sigmas[i : i + 2], seeds)
        prev = self._multistep(i, min(self._order(i, final), 2), model_output, sample, noise)
        return self._finish(return_dict, prev)


class DPMSolverSinglestepScheduler(NoisingLevels, base("DPMSolverSinglestepScheduler")):
    """Steps of order 1, 2, 3, each from where the group of them started."""

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        self._ready()
        i, config = self._enter_together(timestep), self.config
        model_output = self._output_of(model_output)
        dtype = self._said_dtype(model_output, sample, config.algorithm_type.endswith("++"))
        stochastic = config.algorithm_type.startswith("sde")
        noise = self._draw(model_output, generator, seeds, dtype=dtype) if stochastic else None
        order = self.order_list[i]
        past = self.model_outputs[:0:-1]
        while order > 1 and past[order - 2] is None:
            order -= 1
        if order == 1:
            self.sample = sample

        def rule(i):
            told = self._told(i, config.algorithm_type.endswith("++"))
            levels = [self._at(j) for j in range(i + 1, i - order, -1)]
            return Step(self._from_start(levels, [told["keep"], *H[: order - 1]]), **told)

        prev, newest, _ = self._fuse(
            i,
            rule,
            sample,
            model_output,
            tag=order,
            base=None if order == 1 else self.sample,
            history=past[: order - 1],
            noise=noise,
        )
        self._remember(newest)
        self._step_index += 1
        return self._finish(return_dict, prev)

    def _from_start(self, levels: list[Level], told: list[Form]) -> Form:
        algorithm, solver = self.config.algorithm_type, self.config.solver_type
        there, start = levels[0], levels[-1]
        if len(told) == 1:
            return refined(algorithm, solver, X, start, there, told[0])
        h = there.lam - start.lam
        r0 = (levels[1].lam - start.lam) / h
        slope = (told[0] - told[-1]) / r0
        if len(told) == 2:
            return refined(algorithm, solver, BASE, start, there, told[1], slope)
        if solver == "midpoint":
            # Of order 2 with the third evaluation's slope.
            return refined(algorithm, "heun", BASE, start, there, told[2], slope)
        r1 = (levels[2].lam - start.lam) / h
        earlier = (told[1] - told[2]) / r1
        d1 = (earlier * r0 - slope * r1) / (r0 - r1)
        return refined(algorithm, solver, BASE, start, there, told[2], d1, (slope - earlier) * (2 / (r0 - r1)))


class DEISMultistepScheduler(NoisingLevels, Multistep, base("DEISMultistepScheduler")):
    """Zhang and Chen 2023, eq. 15, the polynomial in log rho."""

    def _of_x0(self):
        return False

    def _says(self, i, of_x0):
        if self.config.prediction_type == "flow_prediction" and not of_x0:
            here = self._at(i)
            return (X - super()._says(i, True) * here.alpha) / here.sigma
        return super()._says(i, of_x0)

    def _update(self, i, order, told):
        there, here = self._at(i + 1), self._at(i)
        if order == 1:
            return X * (there.alpha / here.alpha) + told[0] * (there.sigma - there.alpha * here.sigma / here.alpha)
        nodes = [-self._at(j).lam for j in range(i, i - order, -1)]
        weights = lagrange_integrals(nodes, -here.lam, -there.lam, np.exp)
        return (X / here.alpha + sum(form * w for form, w in zip(told, weights, strict=True))) * there.alpha

    def step(self, model_output, timestep, sample, return_dict=True):
        self._ready()
        i = self._enter_together(timestep)
        return self._finish(return_dict, self._multistep(i, self._order(i, False), model_output, sample, None))


# --- UniPC


def unipc(
    levels: list[Level], order: int, variant: str, of_x0: bool, x: Form, told: list[Form], new: Form | None = None
) -> Form:
    """Predictor, or with what the model says at the step's end, corrector (Zhao et al. 2023, algorithms 5 to 8).

    Args:
        levels: there, here, before, ... told: here, before, ...
    """
    there, here = levels[:2]
    kept = there.sigma / here.sigma if of_x0 else there.alpha / here.alpha
    predictor, corrector = unipc_weights(levels, order, variant, "x0" if of_x0 else "epsilon")
    if new is None:
        return x * kept + sum(form * w for form, w in zip(told, predictor[1:], strict=False))
    return x * kept + sum(form * w for form, w in zip([new, *told], corrector, strict=False))


class PredictorCorrector(OnLevels):
    """A corrector's pass that is also the next predictor's.

    The corrected state differs from the predicted one by terms in what the model said, so the state before, which diffusers
    keeps as ``last_sample``, is not needed: here that is the predicted state, a copy that the pass writes out of the caller's
    reach.
    """

    def _predict(self, i: int, order: int, x: Form, told: list[Form]) -> Form:
        """From place i, without noise."""
        raise NotImplementedError

    def _correct(self, i: int, order: int, x: Form, told: list[Form], new: Form) -> Form:
        """The same step again, knowing what the model said at its end."""
        raise NotImplementedError

    def _start(self, i: int, orders: tuple[int, int] | None, keep: Form, predicted: bool = True) -> Form:
        """The corrected state, from the predicted one or from that before; ``orders`` of the predictor and corrector."""
        if orders is None:
            return X
        if not predicted:
            return self._correct(i - 1, orders[1], BASE, H, keep)
        nothing = Form()
        return BASE + self._correct(i - 1, orders[1], nothing, H, keep) - self._predict(i - 1, orders[0], nothing, H)

    def _both(
        self, i: int, order: int, orders: tuple[int, int] | None, tag: Any, model_output, sample, noise=None, of_noise=0.0
    ):
        """Corrector with ``orders`` of the last step, then predictor of ``order``."""
        past = [said for said in self.model_outputs[::-1] if said is not None][:4]

        def rule(i):
            told = self._told(i, self.predict_x0)
            start = self._start(i, orders, told["keep"])
            return Step(self._predict(i, order, start, [told["keep"], *H]) + N * of_noise, **told)

        copies: list[torch.Tensor] = []
        origin = None if orders is None else self.last_sample
        prev, newest, _ = self._fuse(
            i, rule, sample, model_output, tag=(tag, order, orders), base=origin, history=past, noise=noise, copies=copies
        )
        self.last_sample = copies[0]
        self._remember(newest)
        return prev

    def _told(self, i, of_x0):
        # Theirs clips predictions of x0 only.
        return super()._told(i, of_x0) if of_x0 else {"keep": self._says(i, False)}


class UniPC(PredictorCorrector):
    def _predict(self, i, order, x, told):
        levels = [self._at(j) for j in range(i + 1, i - order, -1)]
        return unipc(levels, order, self.config.solver_type, self.predict_x0, x, told)

    def _correct(self, i, order, x, told, new):
        levels = [self._at(j) for j in range(i + 1, i - order, -1)]
        return unipc(levels, order, self.config.solver_type, self.predict_x0, x, told, new)

    def _next_order(self, i: int) -> int:
        order = self.config.solver_order
        if self.config.lower_order_final:
            order = min(order, len(self.timesteps) - i)
        return min(order, self.lower_order_nums + 1)

    def _corrects(self, i: int) -> bool:
        return i > 0 and i - 1 not in self.disable_corrector and self.last_sample is not None


class UniPCMultistepScheduler(NoisingLevels, UniPC, base("UniPCMultistepScheduler")):
    def step(self, model_output, timestep, sample, return_dict=True):
        self._ready()
        i = self._enter_together(timestep)
        orders = (self.this_order, self.this_order) if self._corrects(i) else None
        self.this_order = self._next_order(i)
        if self.solver_p:
            prev = self._with_predictor(i, orders, model_output, timestep, sample)
        else:
            prev = self._both(i, self.this_order, orders, self.predict_x0, model_output, sample)
        if self.lower_order_nums < self.config.solver_order:
            self.lower_order_nums += 1
        self._step_index += 1
        return self._finish(return_dict, prev.to(sample.dtype))

    def _with_predictor(self, i, orders, model_output, timestep, sample):
        """The corrector alone, another scheduler's step after it."""

        def rule(i):
            told = self._told(i, self.predict_x0)
            return Step(self._start(i, orders, told["keep"], predicted=False), **told)

        past = [said for said in self.model_outputs[::-1] if said is not None][:4]
        origin = None if orders is None else self.last_sample
        self.last_sample, newest, _ = self._fuse(
            i, rule, sample, model_output, tag=("corrector", orders), base=origin, history=past
        )
        self._remember(newest)
        return self.solver_p.step(model_output, timestep, self.last_sample).prev_sample


# --- SA-Solver


class SASolverScheduler(Noising, PredictorCorrector, base("SASolverScheduler")):
    """Xue et al. 2023, algorithm 1, with the change of order 2 that the authors' code makes."""

    _tables = ("sigmas", "alphas_cumprod")

    def _weights(self, i: int, nodes: list[Level]) -> list[float]:
        """Of what the model said at the nodes, in the step from place i (eq. 14 and 17)."""
        there, here, tau = self._at(i + 1), self._at(i), self._taus[i]
        lams = [node.lam for node in nodes]
        return list(adams_weights(here, there, tau**2, lams, "x0" if self.predict_x0 else "epsilon"))

    def _adjusted(self, i: int, weights: list[float], over: float) -> list[float]:
        """Order 2 on x0 with the authors' change, divided by ``over`` steps."""
        there, here = self._at(i + 1), self._at(i)
        if not self.predict_x0 or len(weights) != 2 or there.lam == here.lam:
            return weights
        change = adams_adjustment(here, there, self._taus[i] ** 2) / over
        return [weights[0] + change, weights[1] - change]

    def _kept(self, i: int) -> tuple[Any, Any]:
        """(of x, of noise) of the step from i."""
        there, here, tau = self._at(i + 1), self._at(i), self._taus[i]
        h = there.lam - here.lam
        if self.predict_x0:
            kept = there.sigma / here.sigma * np.exp(-(tau**2) * h)
            return kept, there.sigma * (-np.expm1(-2 * tau**2 * h)) ** 0.5
        return there.alpha / here.alpha, tau * there.sigma * np.expm1(2 * h) ** 0.5

    def _predict(self, i, order, x, told):
        there, *nodes = (self._at(j) for j in range(i + 1, i - order, -1))
        weights, here = self._weights(i, nodes), nodes[0]
        if order == 2:
            weights = self._adjusted(i, weights, (here.lam - nodes[1].lam) / (there.lam - here.lam))
        return x * self._kept(i)[0] + sum(form * w for form, w in zip(told, weights, strict=False))

    def _correct(self, i, order, x, told, new):
        nodes = [self._at(j) for j in range(i + 1, i + 1 - order, -1)]
        weights = self._adjusted(i, self._weights(i, nodes), 1.0)
        return x * self._kept(i)[0] + sum(form * w for form, w in zip([new, *told], weights, strict=False))

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, *, seeds=None):
        self._ready()
        i, config = self._enter_together(timestep), self.config
        if config.thresholding and not self.predict_x0:
            raise ValueError("thresholding needs algorithm_type 'data_prediction'")
        noise = self._draw(model_output, generator, seeds)
        model_output = self._output_of(model_output)
        orders = (self.this_predictor_order, self.this_corrector_order) if i > 0 and self.last_sample is not None else None
        left = len(self.timesteps) - i if config.lower_order_final else 4
        self.this_predictor_order = min(config.predictor_order, left, self.lower_order_nums + 1)
        self.this_corrector_order = min(config.corrector_order, left + 1, self.lower_order_nums + 2)
        if i == 0 or orders is None:
            self._taus = {}
        self._taus[i] = float(self.tau_func(self._number(timestep)))
        taus = self._taus[i], self._taus.get(i - 1)
        of_noise = self._kept(i)[1]
        prev = self._both(i, self.this_predictor_order, orders, taus, model_output, sample, noise, of_noise)
        if self.lower_order_nums < max(config.predictor_order, config.corrector_order - 1):
            self.lower_order_nums += 1
        self._step_index += 1
        return self._finish(return_dict, prev.to(sample.dtype))
