"""The adapters' entries of tests/digests.py: runs of every class and function, under models that halve what they are given."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from digests import Digest, Entries

SHAPE = (3, 4, 6, 6)
SEEDS = torch.tensor([3, -1, 2**61 + 4])


def uniform(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).random_sample(shape) * 4 - 2).float()


# --- diffusers

EPS, X0, V, FLOW = ({"prediction_type": p} for p in ("epsilon", "sample", "v_prediction", "flow_prediction"))
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
THRESHOLDING = {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9}
KARRAS = {"use_karras_sigmas": True}
FLOWS = {**FLOW, "use_flow_sigmas": True, "flow_shift": 3.0}
SDE, PLUS, EPSILON = (
    {"algorithm_type": a, "final_sigmas_type": s}
    for a, s in (("sde-dpmsolver++", "zero"), ("dpmsolver++", "zero"), ("dpmsolver", "sigma_min"))
)
#: By class: configurations, each with what its step is asked for.
CLASSES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}


def case(name: str, *configs: dict[str, Any], **step: Any) -> None:
    CLASSES.setdefault(name, []).extend((config, step) for config in (configs or ({},)))


for _name in ("DDIMScheduler", "DDIMParallelScheduler"):
    case(_name, EPS, {**X0, "clip_sample": False}, V, THRESHOLDING, {"set_alpha_to_one": False})
    case(_name, {**VP, "clip_sample": False}, ZERO, eta=0.4)
    case(_name, {}, use_clipped_model_output=True, eta=0.5)
for _name in ("DDPMScheduler", "DDPMParallelScheduler"):
    case(_name, EPS, {**X0, "clip_sample": False}, V, THRESHOLDING)
    case(_name, *({"variance_type": v} for v in ("fixed_small_log", "fixed_large", "fixed_large_log", "learned_range")))
case("DDIMInverseScheduler", {"clip_sample": False}, {**V, "set_alpha_to_one": False})
case("CogVideoXDDIMScheduler", EPS, X0, ZERO)
case("CogVideoXDPMScheduler", EPS, V, {**V, "timestep_spacing": "trailing"})
case("UnCLIPScheduler", EPS, {**X0, "variance_type": "learned_range"}, {"clip_sample": False})
case("DDPMWuerstchenScheduler", {}, {"scaler": 2.0})
case("RePaintScheduler", {}, {"clip_sample": False, "eta": 0.7})
case("ConsistencyDecoderScheduler")
case("LCMScheduler", EPS, V, {"clip_sample": True}, THRESHOLDING)
case("TCDScheduler", EPS, V)
case("TCDScheduler", {}, eta=0.77)
case("PNDMScheduler", EPS, {**V, "skip_prk_steps": True}, {"set_alpha_to_one": True})
case("IPNDMScheduler")
case("EulerDiscreteScheduler", EPS, X0, V, KARRAS, {"rescale_betas_zero_snr": True}, {"final_sigmas_type": "sigma_min"})
case("EulerDiscreteScheduler", EPS, V, s_churn=3.0, s_noise=1.1, s_tmin=0.2, s_tmax=10.0)
case("EulerAncestralDiscreteScheduler", EPS, V, {**V, "rescale_betas_zero_snr": True})
case("HeunDiscreteScheduler", EPS, V, {"clip_sample": True}, KARRAS)
case("KDPM2DiscreteScheduler", EPS, V, KARRAS)
case("KDPM2AncestralDiscreteScheduler", EPS, V, KARRAS)
case("LMSDiscreteScheduler", EPS, V, KARRAS)
case("LMSDiscreteScheduler", order=2)
case("EDMEulerScheduler", EPS, V, {"sigma_schedule": "exponential"})
case("EDMEulerScheduler", s_churn=3.0, s_noise=1.1)
case("CMStochasticIterativeScheduler", {}, {"clip_denoised": False, "s_noise": 1.2})
case("DPMSolverSDEScheduler", {"noise_sampler_seed": 3}, {**V, **KARRAS, "noise_sampler_seed": 3})
case("DPMSolverSDEScheduler", {"noise_sampler_seed": 3}, s_noise=0.5)
case("KarrasVeScheduler", {}, {"sigma_max": 20.0})
for _config in (SDE, PLUS, EPSILON):
    case("DPMSolverMultistepScheduler", *({**VP, **_config, "solver_order": o, "solver_type": "heun"} for o in (1, 2)))
    case("DPMSolverMultistepScheduler", {**V, **_config, **KARRAS})
    case("EDMDPMSolverMultistepScheduler", *({**_config, "solver_order": o, "final_sigmas_type": "zero"} for o in (1, 2))
         if _config is not EPSILON else [{"solver_order": 3}, V])  # fmt: skip
case("DPMSolverMultistepScheduler", {"solver_order": 3}, {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"})
case("DPMSolverMultistepScheduler", THRESHOLDING, {"euler_at_final": True}, FLOWS, {"variance_type": "learned_range"})
case("DPMSolverMultistepInverseScheduler", VP, {**V, "solver_order": 3}, {"algorithm_type": "dpmsolver", "solver_type": "heun"})
case("DPMSolverSinglestepScheduler", *({**VP, **c, "solver_order": 3} for c in (SDE, PLUS, EPSILON)))
case("DPMSolverSinglestepScheduler", {**V, "lower_order_final": True}, THRESHOLDING, {**FLOWS, "solver_order": 2})
case("CosineDPMSolverMultistepScheduler", {}, {"solver_order": 1}, {**EPS, "solver_type": "heun"})
case("DEISMultistepScheduler", *({**VP, "solver_order": o} for o in (1, 2, 3)), V, THRESHOLDING, FLOWS)
case("UniPCMultistepScheduler", *({**VP, "solver_order": o} for o in (1, 2, 3)), V, THRESHOLDING, {**FLOWS, "solver_order": 3})
case("UniPCMultistepScheduler", *({"predict_x0": False, "final_sigmas_type": "sigma_min", **p} for p in (EPS, V)))
case("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, {"disable_corrector": [0, 3]})
case("SASolverScheduler", *({**VP, "predictor_order": p, "corrector_order": c} for p, c in ((1, 1), (2, 2), (3, 4))))
case("SASolverScheduler", {"algorithm_type": "noise_prediction"}, V, THRESHOLDING, FLOWS)
case("FlowMatchEulerDiscreteScheduler", {}, {"shift": 3.0}, {"stochastic_sampling": True}, {"invert_sigmas": True}, KARRAS)
case("FlowMatchHeunDiscreteScheduler", {}, {"shift": 3.0})
case("FlowMatchHeunDiscreteScheduler", s_churn=2.0)
case("FlowMatchLCMScheduler", {}, {"shift": 2.0})
case("FlowMapEulerDiscreteScheduler", {}, {"shift": 3.0})
case("LTXEulerAncestralRFScheduler", {}, {"eta": 0.5, "s_noise": 0.9}, {"eta": 0.0})
case("MiniMaxH3Scheduler", {}, {"shift": 3.0})
case("HeliosScheduler", {"stages": 1}, {"stages": 1, "scheduler_type": "euler"}, {"stages": 1, "solver_order": 3})
case("HeliosDMDScheduler")
case("PiflowScheduler", {}, {"shift": 1.0, "n_grid": 4, "num_policy_substeps": 30})
case(
    "RFD4ProteinaScheduler",
    *({"tsr_k": 1.3, "tsr_sigma": 0.7, "schedule_mode": m, "noise_mode": n} for m, n in (("log", "1/t"), ("power", "tan"))),
)
case("SCMScheduler")
case("ScoreSdeVeScheduler", {}, {"snr": 0.3, "sigma_max": 20.0})
case("ScoreSdeVpScheduler")


class Run:
    """One trajectory of a scheduler; what each of its methods returns goes into the digest."""

    def __init__(self, scheduler: Any, seeds: Any, step: dict[str, Any]):
        self.scheduler, self.seeds, self.options = scheduler, seeds, step
        self.name, self.digest = type(scheduler).__name__, Digest()
        self.draws, *self.own = (torch.Generator().manual_seed(9 + i) for i in range(4))
        self.doubled = scheduler.config.get("variance_type") in ("learned", "learned_range")

    def noise(self, method: Callable[..., Any]) -> dict[str, Any]:
        has = inspect.signature(method).parameters
        if self.seeds is not None:
            return {"seeds": self.seeds} if "seeds" in has or "kwargs" in has else {}
        if self.name == "RFD4ProteinaScheduler":
            return {"generator": self.own}
        return {"generator": self.draws} if "generator" in has else {}

    def __call__(self, method: Callable[..., Any], *args: Any, **options: Any) -> torch.Tensor:
        result = method(*args, **options, **self.noise(method))
        values = list(result.values()) if hasattr(result, "values") else list(result)
        tensors = [v for v in values if isinstance(v, torch.Tensor)]
        self.digest.add(*tensors)
        return tensors[0]

    def model(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 * x, 0.25 * x.abs()], 1) if self.doubled else 0.5 * x

    def start(self, *shape: int) -> torch.Tensor:
        return uniform(1, shape) * float(getattr(self.scheduler, "init_noise_sigma", 1.0))

    def prepare(self) -> None:
        if self.name == "LTXEulerAncestralRFScheduler":
            self.scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.55, 0.3, 0.1, 0.0])
        elif self.name == "SCMScheduler":
            self.scheduler.set_timesteps(4, intermediate_timesteps=None)
        elif self.name != "HeliosDMDScheduler":
            self.scheduler.set_timesteps({"RFD4ProteinaScheduler": 30, "ConsistencyDecoderScheduler": 2}.get(self.name, 8))
        if self.name == "ScoreSdeVeScheduler":
            self.scheduler.set_sigmas(8)

    def karras_ve(self) -> None:
        scheduler, x = self.scheduler, self.start(*SHAPE)
        for t in scheduler.timesteps:
            sigma, there = scheduler.schedule[t], scheduler.schedule[t - 1] if t > 0 else torch.tensor(0.0)
            noised, hat = scheduler.add_noise_to_input(x, sigma, **self.noise(scheduler.add_noise_to_input))
            self.digest.add(noised)
            first = scheduler.step(self.model(noised), hat, there, noised)
            x = first["prev_sample"]
            if there != 0:
                x = self(scheduler.step_correct, self.model(x), hat, there, noised, x, first["derivative"])

    def score(self) -> None:
        scheduler, x = self.scheduler, self.start(*SHAPE)
        for t in scheduler.timesteps:
            if self.name == "ScoreSdeVeScheduler":
                x = self(scheduler.step_correct, self.model(x), x)
                x = self(scheduler.step_pred, self.model(x), t, x)
            else:
                x = self(scheduler.step_pred, self.model(x), x, t.expand(len(x)))

    def distilled(self) -> None:
        table, times = torch.linspace(1, 0.001, 1000, dtype=torch.float64), torch.linspace(1000, 1, 1000)
        sampling, x = torch.tensor([999, 700, 400]), self.start(3, 4, 2, 6, 6)
        for i, t in enumerate(sampling):
            x = self(
                self.scheduler.step, self.model(x), t, x, cur_sampling_step=i, dmd_noisy_tensor=self.start(3, 4, 2, 6, 6),
                dmd_sigmas=table, dmd_timesteps=times, all_timesteps=sampling,
            )  # fmt: skip

    def repaint(self) -> None:
        original, mask = uniform(2, SHAPE), (torch.arange(6) % 2).float().expand(SHAPE)
        x = self.start(*SHAPE)
        for i, t in enumerate(self.scheduler.timesteps):
            x = self(self.scheduler.step, self.model(x), t, x, original, mask)
            if i == 2:
                x = self.scheduler.undo_step(x, t - 100, **self.noise(self.scheduler.undo_step))
                self.digest.add(x)

    def protein(self) -> None:
        x = self.start(3, 5, 3)
        for t in self.scheduler.timesteps:
            x = self(self.scheduler.step, self.model(x), t, x, torch.ones(3, 5))

    def cog_video(self) -> None:
        x, old, times = self.start(*SHAPE), None, self.scheduler.timesteps
        for i, t in enumerate(times):
            method = self.scheduler.step
            result = method(self.model(x), old, t, times[i - 1] if i else None, x, **self.noise(method), return_dict=False)
            x, old = result[:2]
            self.digest.add(x, old)

    def loop(self) -> None:
        scheduler = self.scheduler
        shape = (3, 3, 6, 6) if self.doubled and self.name.startswith("DPMSolver") else SHAPE
        x, times = self.start(*shape), list(scheduler.timesteps)
        if self.name in ("SCMScheduler", "DDPMWuerstchenScheduler"):
            times = times[:-1]
        for t in times:
            inside = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            output = self.model(inside)
            if self.name == "PiflowScheduler":
                output = torch.cat([output] * scheduler.n_grid, -1)
            if self.name == "DDPMWuerstchenScheduler":
                t = t.expand(len(x))
            self.digest.add(inside)
            x = self(scheduler.step, output, t, x, **self.options)

    def run(self) -> str:
        self.prepare()
        special = {
            "KarrasVeScheduler": self.karras_ve,
            "ScoreSdeVeScheduler": self.score,
            "ScoreSdeVpScheduler": self.score,
            "HeliosDMDScheduler": self.distilled,
            "RePaintScheduler": self.repaint,
            "RFD4ProteinaScheduler": self.protein,
            "CogVideoXDPMScheduler": self.cog_video,
        }
        special.get(self.name, self.loop)()
        return self.digest.text()


def of_class(name: str) -> dict[str, str]:
    """One digest with torch's generator and one with seeds, over all configurations; and of what trainers ask a class for."""
    from pyfold.adapters import diffusers as adapters

    found = {}
    for kind, seeds in (("generator", None), ("seeds", SEEDS)):
        texts = []
        for config, step in CLASSES[name]:
            torch.manual_seed(11)
            texts.append(Run(getattr(adapters, name)(**config), seeds, step).run())
        found[kind] = Digest().add(texts).text()
    return found


def training(name: str) -> str:
    from pyfold.adapters import diffusers as adapters

    scheduler, digest = getattr(adapters, name)(), Digest()
    x, noise = uniform(1, SHAPE), uniform(2, SHAPE)
    times = scheduler.timesteps[[3, 500, 990]]
    for method in ("add_noise", "get_velocity", "scale_noise"):
        if hasattr(scheduler, method):
            # A scaled sample, its time, and the noise.
            given = (x, times, noise) if method == "scale_noise" else (x, noise, times)
            digest.add(getattr(scheduler, method)(*given))
    return digest.text()


TRAINED = (
    "DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler", "LCMScheduler", "HeunDiscreteScheduler",
)  # fmt: skip

# --- k-diffusion

SIGMAS = torch.tensor([15.0, 9.0, 5.5, 3.0, 1.4, 0.75, 0.3, 0.1, 0.0])
CHURN = [{}, {"s_churn": 3.0, "s_noise": 1.003}, {"s_churn": 9.0, "s_tmin": 0.2, "s_tmax": 8.0}]
ETA = [{}, {"eta": 0.4, "s_noise": 1.1}]
FUNCTIONS: dict[str, list[dict[str, Any]]] = {
    "sample_euler": CHURN,
    "sample_heun": CHURN,
    "sample_dpm_2": CHURN,
    "sample_euler_ancestral": ETA,
    "sample_dpm_2_ancestral": ETA,
    "sample_dpmpp_2s_ancestral": ETA,
    "sample_dpmpp_sde": [*ETA, {"eta": 0.4, "r": 0.3}],
    "sample_dpmpp_2m": [{}],
    "sample_dpmpp_2m_sde": [*ETA, {"eta": 0.7, "solver_type": "heun"}, {"eta": 0.0}],
    "sample_dpmpp_3m_sde": [*ETA, {"eta": 0.0}],
    "sample_lms": [{}, {"order": 2}],
    "sample_dpm_fast": [{}, {"eta": 0.6, "s_noise": 1.1}],
    "sample_dpm_adaptive": [{}, {"order": 2, "rtol": 0.01}, {"eta": 0.7, "s_noise": 1.1}],
}


def of_function(name: str) -> dict[str, str]:
    """With torch's generator (and Brownian noise where that is the default), with a noise sampler, and with seeds."""
    from pyfold.adapters import k_diffusion

    function = getattr(k_diffusion, name)
    between = {"sample_dpm_fast": (0.05, 15.0, 8), "sample_dpm_adaptive": (0.05, 15.0)}.get(name, (SIGMAS,))
    found = {}
    for kind in ("generator", "noise_sampler", "seeds"):
        if kind == "noise_sampler" and kind not in inspect.signature(function).parameters:
            continue
        digest = Digest()
        for options in FUNCTIONS[name]:
            drawn = iter(range(1000))
            noise = {
                "noise_sampler": {"noise_sampler": lambda *between, n=drawn: uniform(next(n), (3, 4, 33))},
                "seeds": {"seeds": SEEDS},
            }.get(kind, {})
            torch.manual_seed(7)
            model = lambda x, sigma, gain: gain * x  # noqa: E731
            x = uniform(1, (3, 4, 33)) * 15
            digest.add(function(model, x, *between, {"gain": 0.5}, digest_of(digest), True, **noise, **options))
        found[kind] = digest.text()
    return found


def digest_of(digest: Digest) -> Callable[[dict[str, Any]], None]:
    return lambda report: digest.add(report["x"], report["denoised"]) and None


# --- ComfyUI


class Const:
    """ComfyUI's CONST, by which it knows a flow."""


def of_node(sampler: str) -> dict[str, str]:
    """A sampler's function on a model of sigmas and on a flow, with its own options and with some noise."""
    from pyfold.adapters import comfyui

    comfy, sampling = types.ModuleType("comfy"), types.ModuleType("comfy.model_sampling")
    sampling.CONST = Const  # type: ignore[attr-defined]
    sys.modules |= {"comfy": comfy, "comfy.model_sampling": sampling}
    found = {}
    for kind, made in (("epsilon", object()), ("flow", Const())):
        inner = types.SimpleNamespace(inner_model=types.SimpleNamespace(model_sampling=made))

        class Model:
            inner_model = inner

            def __call__(self, x, sigma, **extra):
                return 0.5 * x

        sigmas = torch.tensor([1.0, 0.9, 0.8, 0.6, 0.4, 0.15, 0.0]) if kind == "flow" else SIGMAS
        x, extra = uniform(1, SHAPE) * sigmas[0], {"seed": 2**64 - 2, "model_options": {}}
        try:
            found[kind] = Digest().add(comfyui.sample(Model(), x, sigmas, extra, None, True, sampler=sampler)).text()
        except ValueError:
            continue
    return found


def comfy_noise() -> str:
    from pyfold.adapters import comfyui

    latent = {"samples": torch.zeros(3, 4, 6, 5), "batch_index": [4, 0, 2]}
    return Digest().add(comfyui.SeededNoise(2**64 - 3).generate_noise(latent)).text()


def entries() -> Entries:
    import diffusers

    from pyfold.adapters import comfyui

    diffusers.logging.set_verbosity_error()
    for name in CLASSES:
        yield f"diffusers/{name}", partial(of_class, name)
    for name in TRAINED:
        yield f"diffusers/training/{name}", partial(training, name)
    for name in FUNCTIONS:
        yield f"k_diffusion/{name}", partial(of_function, name)
    for name in sorted(n for n, s in comfyui.ALL_SAMPLERS.items() if n in comfyui.SAMPLERS and not s.alias_of):
        yield f"comfyui/{name}", partial(of_node, name)
    yield "comfyui/noise", comfy_noise
