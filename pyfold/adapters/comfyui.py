"""A node pack for ComfyUI: pyfold's samplers (SAMPLER), spacings (SIGMAS) and seeded noise (NOISE) for custom sampling.

Install pyfold into ComfyUI's Python and put the source tree's folder ``comfyui/pyfold`` into ``custom_nodes``. docs/comfyui.md
compares every sampler of ComfyUI's KSampler.

The nodes appear under "sampling/pyfold"; connect them to SamplerCustomAdvanced. They work on models of epsilon and v prediction
(Stable Diffusion), whose states ComfyUI keeps as ``x0 + sigma eps``, and on flows (Flux, SD3), ``(1 - sigma) x0 + sigma eps``.
Nothing of ComfyUI is imported before a node runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pyfold import diffusion
from pyfold.adapters import k_diffusion
from pyfold.adapters.k_diffusion import SCHEDULE, points_of, run
from pyfold.diffusion import SAMPLERS as ALL_SAMPLERS
from pyfold.diffusion import spacings
from pyfold.ops import randn

_FLOW = diffusion.flow()
#: On a flow these are euler, heun, euler_ancestral and dpm2_ancestral.
_SAME = ("flow_euler", "flow_heun", "flow_ancestral", "flow_dpm2_ancestral")
#: ComfyUI's names of samplers that have another name here, or options of their own.
_COMFY: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("euler", {}),
    # In ComfyUI's variables the ancestral step is DDPM's posterior.
    "ddpm": ("euler_ancestral", {}),
    # A consistency model's step, at whatever sigmas: x0, then new noise on it.
    "lcm": ("consistency", {}),
    "dpmpp_sde_gpu": ("dpmpp_sde", {}),
    "dpmpp_2m_sde_gpu": ("dpmpp_2m_sde", {}),
    "dpmpp_2m_sde_heun": ("dpmpp_2m_sde", {"solver": "heun"}),
    "dpmpp_2m_sde_heun_gpu": ("dpmpp_2m_sde", {"solver": "heun"}),
    "dpmpp_3m_sde_gpu": ("dpmpp_3m_sde", {}),
}
#: CFG++: x0 of the guided output, the noise of the unconditional one.
_PLUS_PLUS = {"euler_cfg_pp": "euler", "euler_ancestral_cfg_pp": "euler_ancestral"}
_COMFY |= {name: (plain, {}) for name, plain in _PLUS_PLUS.items()}
#: Which go from the first sigma to the last above 0 in steps of their own.
_OWN_STEPS: dict[str, Callable[..., Any]] = {
    "dpm_fast": k_diffusion.sample_dpm_fast,
    "dpm_adaptive": k_diffusion.sample_dpm_adaptive,
}
SAMPLERS = sorted({*_COMFY, *_OWN_STEPS, *(n for n, s in ALL_SAMPLERS.items() if s.on_sigmas and n not in _SAME)})
#: What ComfyUI's KSampler offers and this pack does not.
MISSING = (
    "heunpp2", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "res_multistep_ancestral_cfg_pp",
    "gradient_estimation_cfg_pp",
)  # fmt: skip
#: Whose last step, where it goes to 0, is the denoised sample in ComfyUI, not an extrapolation.
_ENDS_DENOISED = ("lms", "ipndm", "gradient_estimation")
#: What a flow runs in place of a sampler whose noise is made for variance-exploding states.
_ON_FLOWS = {"euler_ancestral": "flow_ancestral", "dpm2_ancestral": "flow_dpm2_ancestral"}
#: Their variable sigma / alpha is too coarsely stepped by a flow's sigmas.
_NOT_ON_FLOWS = ("edm_stochastic", "dpm_fast", "dpm_adaptive")
SPACINGS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic", "kl_optimal",
    "polyexponential",
)  # fmt: skip
#: In place of a sampler's own eta or noise_scale.
_OWN = -1.0


def _is_flow(model_sampling: Any) -> bool:
    return isinstance(model_sampling, importlib.import_module("comfy.model_sampling").CONST)


def seeds_of(seed: int, indices: Any) -> torch.Tensor:
    """int64 seeds ``seed + i`` of ComfyUI's unsigned 64-bit seed, wrapping around."""
    return torch.tensor([(int(seed) + int(i) + 2**63) % 2**64 - 2**63 for i in indices], dtype=torch.int64)


class SeedOfBatch(int):
    """ComfyUI's seed, an int, that knows the ``batch_index`` of the latents it came with: a sampler gets nothing else."""

    indices: tuple[int, ...] = ()


def passable(sigmas: torch.Tensor, way: str) -> torch.Tensor:
    """The sigmas [n] without those that a sampler of this ``way`` cannot go to: for one that falls those not below all before
    them, for one that turns repetitions. Schedulers round two to one, other nodes edit them, and unsampling flips them;
    ComfyUI's own multistep samplers divide by the distance between such a pair."""
    values = sigmas.detach().double().tolist()
    kept: list[int] = []
    for i, value in enumerate(values):
        last = values[kept[-1]] if kept else math.inf
        if value < last or way == "rests" or (way == "turns" and value != last):
            kept.append(i)
    if len(kept) == len(values):
        return sigmas
    dropped = [round(value, 6) for i, value in enumerate(values) if i not in set(kept)]
    which = "are not below those before them" if way == "falls" else "repeat the one before"
    warnings.warn(f"pyfold: sigmas that {which} are left out: {dropped}", stacklevel=2)
    return sigmas[kept]


def _ends_denoised(plan: diffusion.Plan) -> diffusion.Plan:
    """The same plan, its last row the model's x0 alone."""
    last = {**dict.fromkeys(plan.rows[-1], 0.0), "q": 1.0, "c_x0": 1.0, "c_in": plan.rows[-1].get("c_in", 1.0)}
    return dataclasses.replace(plan, rows=(*plan.rows[:-1], last))


def _with_unconditional(extra_args: dict[str, Any] | None, model: Any) -> tuple[dict[str, Any], Callable[..., Any]]:
    """Arguments and model for (guided, unconditional): ComfyUI's guider hands both to what is hooked in after guidance."""
    seen: list[Any] = []

    def after_guidance(args: dict[str, Any]) -> Any:
        seen[:] = [args.get("uncond_denoised")]
        return args["denoised"]

    options = dict((extra_args or {}).get("model_options") or {})
    options["sampler_post_cfg_function"] = [*options.get("sampler_post_cfg_function", []), after_guidance]
    options["disable_cfg1_optimization"] = True

    def both(x: torch.Tensor, sigma: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        seen.clear()
        denoised = model(x, sigma, **given)
        if not seen or seen[0] is None:
            raise ValueError(
                "a sampler of CFG++ needs a guider with a negative prompt (CFGGuider), got no unconditional output"
            )
        return denoised, seen[0]

    return {**(extra_args or {}), "model_options": options}, both


def _in_own_steps(
    name: str, model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict[str, Any] | None, *arguments: Any,
    seeds: torch.Tensor, **options: Any,
) -> torch.Tensor:  # fmt: skip
    """To the last sigma above 0; dpm_fast in as many evaluations as there are steps."""
    end = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
    result: torch.Tensor
    if end >= sigmas[0]:  # one step to 0 has no way of its own
        result = model(x, sigmas[0] * x.new_ones(len(x)), **(extra_args or {}))
        return result
    count = [len(sigmas) - 1] if name == "dpm_fast" else []
    options = {{"noise_scale": "s_noise"}.get(option, option): value for option, value in options.items()}
    result = _OWN_STEPS[name](model, x, float(end), float(sigmas[0]), *count, extra_args, *arguments, seeds=seeds, **options)
    return result


def sample(
    model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict[str, Any] | None = None,
    callback: Callable[..., Any] | None = None, disable: bool | None = None, *, sampler: str, **options: Any,
) -> torch.Tensor:  # fmt: skip
    """A sampler function as ComfyUI's KSAMPLER calls it; its noise is from ``extra_args["seed"]`` plus the place in the batch.

    The place is the latent's ``batch_index`` where the seed is :class:`SeededNoise`'s. A draw belongs to the sigma that it
    leads to, so samplers chained on parts of the sigmas, with one seed, draw what one sampler draws on all of them.

    Args:
        model, x, sigmas, extra_args, callback, disable: ComfyUI's.
        sampler: a name in :data:`SAMPLERS`; options: of that sampler.

    Returns:
        The state at the last sigma; ``x`` where there are fewer than two sigmas.

    Raises:
        ValueError: an option is out of range, or the sampler is none for the model's kind of states.
    """
    plus_plus = sampler in _PLUS_PLUS
    sampler, own = _COMFY.get(sampler, (sampler, {}))
    options = {**own, **options}
    one = isinstance(sigmas, torch.Tensor) and sigmas.dim() == 1
    if one and len(sigmas) < 2:
        return x
    flow = _is_flow(model.inner_model.inner_model.model_sampling)
    name = sampler if sampler in _OWN_STEPS else ALL_SAMPLERS[sampler].alias_of or sampler
    if flow and name in _NOT_ON_FLOWS:
        raise ValueError(f"sampler {sampler!r} is for models of epsilon and v prediction, got a flow")
    seed = (extra_args or {}).get("seed") or 0
    indices = getattr(seed, "indices", ())
    seeds = seeds_of(seed, indices if len(indices) == len(x) else range(len(x))).to(x.device)
    if name in _OWN_STEPS:
        return _in_own_steps(name, model, x, sigmas, extra_args, callback, disable, seeds=seeds, **options)
    schedule = _FLOW if flow else SCHEDULE
    make = ALL_SAMPLERS[_ON_FLOWS[name] if flow and not plus_plus and name in _ON_FLOWS else sampler]
    way = make.way(options)
    if one:
        sigmas = passable(sigmas, way)
        if len(sigmas) < 2:
            return x
    points = points_of(sigmas, schedule, way)
    plan = make(schedule, prediction="x0", clip=None, spacing=points, **options)
    if name in _ENDS_DENOISED and points[-1].sigma == 0:
        plan = _ends_denoised(plan)
    if plus_plus:
        plan = diffusion.guided_plus_plus(plan, 1.0)
        extra_args, model = _with_unconditional(extra_args, model)
    sigma_of = (lambda point: point.sigma) if flow else (lambda point: point.ratio)
    return run(plan, model, x, sigmas, extra_args, callback, disable, seeds=seeds, sigma_of=sigma_of)


class PyfoldSampler:
    """A SAMPLER. eta, noise_scale and order go to samplers that have them; -1, of order 0, is the sampler's own."""

    CATEGORY, FUNCTION, RETURN_TYPES = "sampling/pyfold", "get_sampler", ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        number = {"default": _OWN, "min": _OWN, "max": 100.0, "step": 0.01, "round": False}
        own = "-1: the sampler's own"
        return {
            "required": {
                "sampler_name": (SAMPLERS, {"default": "dpmpp_multistep"}),
                "eta": ("FLOAT", {**number, "tooltip": f"strength of the noise that is put back; {own}"}),
                "noise_scale": ("FLOAT", {**number, "tooltip": f"what that noise is multiplied by; {own}"}),
                "order": ("INT", {"default": 0, "min": 0, "max": 4, "tooltip": "0: the sampler's own"}),
            }
        }

    def get_sampler(self, sampler_name: str, eta: float, noise_scale: float, order: int) -> tuple[Any]:
        if sampler_name not in SAMPLERS:
            raise ValueError(f"sampler_name must be one of {', '.join(SAMPLERS)}, got {sampler_name!r}")
        given = {name: value for name, value in (("eta", eta), ("noise_scale", noise_scale)) if value != _OWN}
        given |= {"order": order} if order else {}
        name = _COMFY.get(sampler_name, (sampler_name, {}))[0]
        has = {"eta", "noise_scale"} if name in _OWN_STEPS else inspect.signature(ALL_SAMPLERS[name]).parameters
        options = {"sampler": sampler_name, **{name: value for name, value in given.items() if name in has}}
        return (importlib.import_module("comfy.samplers").KSAMPLER(sample, options),)


def _simple(sampling: Any, steps: int) -> list[float]:
    table = sampling.sigmas.double()
    return [float(table[len(table) - 1 - int(i * (len(table) / steps))]) for i in range(steps)] + [0.0]


def _by_times(sampling: Any, steps: int, *, last: bool) -> list[float]:
    """At times with equal distances from the greatest sigma's to the least's, that one included or not, and 0."""
    start, end = (float(sampling.timestep(sigma)) for sigma in (sampling.sigma_max, sampling.sigma_min))

    def at(time: float) -> float:
        return float(sampling.sigma(torch.tensor(time, dtype=torch.float32)))

    if not last:
        return [at(time) for time in np.linspace(start, end, steps + 1)[:-1]] + [0.0]
    if at(end) < 1e-5:  # the least is 0 already
        return [at(time) for time in np.linspace(start, end, steps + 1)]
    return [at(time) for time in np.linspace(start, end, steps)] + [0.0]


def _ddim_uniform(sampling: Any, steps: int) -> list[float]:
    """Every so many of the table from its second entry on: a step more or less than asked for, as in ComfyUI."""
    table = sampling.sigmas.double()
    zero = float(table[1]) < 1e-5
    picked = table[1 :: max(len(table) // (steps + zero), 1)].tolist()
    return [*reversed(picked), *([] if zero else [0.0])]


def _beta(sampling: Any, steps: int) -> list[float]:
    """The table at quantiles of Beta(0.6, 0.6), rounded to entries (Lee et al. 2024); an entry met twice counts once."""
    quantiles = spacings.beta_quantiles(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
    # The median is between two entries of a table of even length: to the even one, not to where the last bit points.
    entries = np.rint(quantiles.round(12) * (len(sampling.sigmas) - 1)).astype(int).tolist()
    return [float(sampling.sigmas[i]) for i in dict.fromkeys(entries)] + [0.0]


def _linear_quadratic(sampling: Any, steps: int, threshold: float = 0.025) -> list[float]:
    """Half of the steps linearly from 1 down to ``1 - threshold``, the others along a parabola with the same slope there,
    to 0; times the greatest sigma (Genmo's Mochi 1)."""
    high = float(sampling.sigma_max)
    if steps == 1:
        return [high, 0.0]
    linear = steps // 2
    curved = steps - linear
    slope = threshold / linear
    # 1 - s = threshold + slope k + curve k^2 reaches 1 after the rest.
    curve = (1 - threshold - slope * curved) / curved**2
    down = [slope * i for i in range(linear)] + [threshold + slope * k + curve * k * k for k in range(curved)] + [1.0]
    return [(1 - d) * high for d in down]


#: ComfyUI's schedulers that read the model's table or times; the others are formulas of its ends.
_OF_MODELS: dict[str, Any] = {
    "simple": _simple,
    "sgm_uniform": lambda sampling, steps: _by_times(sampling, steps, last=False),
    "normal": lambda sampling, steps: _by_times(sampling, steps, last=True),
    "ddim_uniform": _ddim_uniform,
    "beta": _beta,
    "linear_quadratic": _linear_quadratic,
}


class PyfoldScheduler:
    """SIGMAS of a model, from its greatest to 0, by ComfyUI's schedulers and polyexponential."""

    CATEGORY, FUNCTION, RETURN_TYPES = "sampling/pyfold", "get_sigmas", ("SIGMAS",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "spacing": (list(SPACINGS), {"default": "karras"}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def get_sigmas(self, model: Any, spacing: str, steps: int, denoise: float) -> tuple[torch.Tensor]:
        if spacing not in SPACINGS:
            raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")
        if not 0 <= denoise <= 1:
            raise ValueError(f"denoise must be in [0, 1], got {denoise}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if denoise == 0:
            return (torch.zeros(0),)
        # Less denoising is the end of a longer way.
        total, sampling = int(steps / denoise), model.get_model_object("model_sampling")
        if spacing in _OF_MODELS:
            levels = _OF_MODELS[spacing](sampling, total)
        else:
            flow = _is_flow(sampling)
            ends = {"sigma_min": float(sampling.sigma_min), "sigma_max": float(sampling.sigma_max)}
            points = spacings.SPACINGS[spacing](_FLOW if flow else SCHEDULE, total, **ends)
            levels = [p.sigma if flow else p.ratio for p in points]
        return (torch.tensor(levels, dtype=torch.float32)[-(steps + 1) :],)


class SeededNoise:
    """A NOISE: each latent of a batch has the noise of its own seed, ``seed`` plus its batch_index, in any batch.

    Args:
        seed: of the first latent.
        add_noise: whether noise is put on the latents; else they go on from where another sampler stopped, whose steps drew
            from the same seed.
    """

    def __init__(self, seed: int, add_noise: bool = True):
        self.seed, self.add_noise = SeedOfBatch(seed), add_noise

    def generate_noise(self, input_latent: dict[str, Any]) -> torch.Tensor:
        """Like ``input_latent["samples"]``, on the CPU, as ComfyUI's own; the same bits on any device."""
        samples = input_latent["samples"]
        if getattr(samples, "is_nested", False):
            nested: torch.Tensor = self._nested(samples, input_latent)
            return nested
        indices = input_latent.get("batch_index")
        indices = range(len(samples)) if indices is None else indices
        if len(indices) != len(samples):
            raise ValueError(f"batch_index must have {len(samples)} entries, got {len(indices)}")
        # ComfyUI asks for the noise, then hands the seed to the sampler.
        self.seed = SeedOfBatch(self.seed)
        self.seed.indices = tuple(int(i) for i in indices)
        if not self.add_noise:
            return torch.zeros(samples.shape, dtype=samples.dtype)
        return randn(seeds_of(self.seed, indices), samples.shape[1:], dtype=samples.dtype)

    def _nested(self, samples: Any, input_latent: dict[str, Any]) -> Any:
        """Of latents of several parts, as video and its sound: one sample's noise runs on from part to part."""
        parts = samples.unbind()
        sizes = [math.prod(part.shape[1:]) for part in parts]
        flat = {**input_latent, "samples": parts[0].new_zeros(1).expand(len(parts[0]), sum(sizes))}
        pieces = torch.split(self.generate_noise(flat), sizes, dim=1)
        return type(samples)([piece.reshape(part.shape).to(part.dtype) for piece, part in zip(pieces, parts, strict=True)])


class PyfoldNoise:
    """A NOISE from a seed: the picture of a seed does not depend on the size of its batch or on its place in it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "sampling/pyfold", "get_noise", ("NOISE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        seed = {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}
        add = {"default": True, "tooltip": "off for a sampler that goes on where another stopped, with the same seed"}
        return {"required": {"noise_seed": ("INT", seed), "add_noise": ("BOOLEAN", add)}}

    def get_noise(self, noise_seed: int, add_noise: bool = True) -> tuple[SeededNoise]:
        return (SeededNoise(noise_seed, add_noise),)


NODE_CLASS_MAPPINGS = {"PyfoldSampler": PyfoldSampler, "PyfoldScheduler": PyfoldScheduler, "PyfoldNoise": PyfoldNoise}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PyfoldSampler": "Sampler (pyfold)",
    "PyfoldScheduler": "Scheduler (pyfold)",
    "PyfoldNoise": "Seeded Noise (pyfold)",
}

__all__ = ["MISSING", "NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "SAMPLERS", "SPACINGS", "SeededNoise", "sample"]
