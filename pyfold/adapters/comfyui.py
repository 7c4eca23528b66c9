"""A node pack for ComfyUI: pyfold's samplers (SAMPLER), spacings (SIGMAS) and seeded noise (NOISE) for custom sampling.

Install pyfold into ComfyUI's Python, then put one file into ``custom_nodes``, say ``pyfold_nodes.py``::

    from pyfold.adapters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

The nodes appear under "sampling/pyfold"; connect them to SamplerCustomAdvanced. They work on models of epsilon and v prediction
(Stable Diffusion), whose states ComfyUI keeps as ``x0 + sigma eps``, and on flows (Flux, SD3), ``(1 - sigma) x0 + sigma eps``.
Nothing of ComfyUI is imported before a node runs.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from pyfold import diffusion
from pyfold.adapters.k_diffusion import SCHEDULE, points_of, run
from pyfold.diffusion import SAMPLERS as ALL_SAMPLERS
from pyfold.diffusion import spacings
from pyfold.ops import randn

_FLOW = diffusion.flow()
#: On a flow these are euler, heun and euler_ancestral.
_SAME = ("flow_euler", "flow_heun", "flow_ancestral")
SAMPLERS = sorted(name for name, sampler in ALL_SAMPLERS.items() if sampler.on_sigmas and name not in _SAME)
#: What a flow runs in place of a sampler whose noise is made for variance-exploding states.
_ON_FLOWS = {"euler_ancestral": "flow_ancestral"}
#: Its variable sigma / alpha is too coarsely stepped by a flow's sigmas.
_NOT_ON_FLOWS = ("edm_stochastic",)
#: Starts a flow a ten-thousandth below pure noise, where sigma / alpha is infinite.
_NOT_FROM_PURE_NOISE = ("dpm2_ancestral",)
SPACINGS = ("simple", "karras", "exponential", "polyexponential", "beta", "kl_optimal")


def _is_flow(model_sampling: Any) -> bool:
    return isinstance(model_sampling, importlib.import_module("comfy.model_sampling").CONST)


def seeds_of(seed: int, indices: Any) -> torch.Tensor:
    """int64 seeds ``seed + i`` of ComfyUI's unsigned 64-bit seed, wrapping around."""
    return torch.tensor([(int(seed) + int(i) + 2**63) % 2**64 - 2**63 for i in indices], dtype=torch.int64)


def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, *, sampler, **options):
    """A sampler function as ComfyUI's KSAMPLER calls it; its noise is from ``extra_args["seed"]`` plus the place in the batch.

    Args:
        model, x, sigmas, extra_args, callback, disable: ComfyUI's.
        sampler: a name in ``pyfold.diffusion.SAMPLERS``; options: of that sampler.
    """
    flow = _is_flow(model.inner_model.inner_model.model_sampling)
    known = ALL_SAMPLERS[sampler].alias_of or sampler
    if flow and known in _NOT_ON_FLOWS:
        raise ValueError(f"sampler {sampler!r} is for models of epsilon and v prediction, got a flow")
    schedule = _FLOW if flow else SCHEDULE
    make = ALL_SAMPLERS[_ON_FLOWS[known] if flow and known in _ON_FLOWS else sampler]
    points = points_of(sigmas, schedule)
    if points[0].alpha == 0 and known in _NOT_FROM_PURE_NOISE:
        points[0] = schedule.at_ratio(9999.0)
    plan = make(schedule, prediction="x0", clip=None, spacing=points, **options)
    seeds = seeds_of((extra_args or {}).get("seed") or 0, range(len(x))).to(x.device)
    told = (lambda point: point.sigma) if flow else (lambda point: point.ratio)
    return run(plan, model, x, sigmas, extra_args, callback, disable, seeds=seeds, sigma_of=told)


class PyfoldSampler:
    """A SAMPLER. eta, noise_scale and order go to samplers that have them; order 0 is the sampler's own."""

    CATEGORY, FUNCTION, RETURN_TYPES = "sampling/pyfold", "get_sampler", ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls):
        number = {"min": 0.0, "max": 100.0, "step": 0.01, "round": False}
        return {
            "required": {
                "sampler_name": (SAMPLERS, {"default": "dpmpp_multistep"}),
                "eta": ("FLOAT", {**number, "default": 0.0, "tooltip": "strength of the noise that is put back"}),
                "noise_scale": ("FLOAT", {**number, "default": 1.0}),
                "order": ("INT", {"default": 0, "min": 0, "max": 4, "tooltip": "0: the sampler's own"}),
            }
        }

    def get_sampler(self, sampler_name, eta, noise_scale, order):
        if sampler_name not in SAMPLERS:
            raise ValueError(f"sampler_name must be one of {', '.join(SAMPLERS)}, got {sampler_name!r}")
        given = {"eta": eta, "noise_scale": noise_scale, **({"order": order} if order else {})}
        has = inspect.signature(ALL_SAMPLERS[sampler_name]).parameters
        options = {"sampler": sampler_name, **{name: value for name, value in given.items() if name in has}}
        return (importlib.import_module("comfy.samplers").KSAMPLER(sample, options),)


class PyfoldScheduler:
    """SIGMAS of a model, from its greatest to 0: "simple" takes every so many of its table, the others are formulas."""

    CATEGORY, FUNCTION, RETURN_TYPES = "sampling/pyfold", "get_sigmas", ("SIGMAS",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "spacing": (list(SPACINGS), {"default": "karras"}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def get_sigmas(self, model, spacing, steps, denoise):
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
        if spacing == "simple":
            table = sampling.sigmas.double()
            levels = [float(table[len(table) - 1 - int(i * (len(table) / total))]) for i in range(total)] + [0.0]
        else:
            flow = _is_flow(sampling)
            ends = {"sigma_min": float(sampling.sigma_min), "sigma_max": float(sampling.sigma_max)}
            points = spacings.SPACINGS[spacing](_FLOW if flow else SCHEDULE, total, **ends)
            levels = [p.sigma if flow else p.ratio for p in points]
        return (torch.tensor(levels, dtype=torch.float32)[-(steps + 1) :],)


class SeededNoise:
    """A NOISE: each latent of a batch has the noise of its own seed, ``seed`` plus its batch_index, in any batch."""

    def __init__(self, seed: int):
        self.seed = seed

    def generate_noise(self, input_latent: dict[str, Any]) -> torch.Tensor:
        """Like ``input_latent["samples"]``, on the CPU, as ComfyUI's own; the same bits on any device."""
        samples = input_latent["samples"]
        indices = input_latent.get("batch_index")
        indices = range(len(samples)) if indices is None else indices
        if len(indices) != len(samples):
            raise ValueError(f"batch_index must have {len(samples)} entries, got {len(indices)}")
        return randn(seeds_of(self.seed, indices), samples.shape[1:], dtype=samples.dtype)


class PyfoldNoise:
    """A NOISE from a seed: the picture of a seed does not depend on the size of its batch or on its place in it."""

    CATEGORY, FUNCTION, RETURN_TYPES = "sampling/pyfold", "get_noise", ("NOISE",)

    @classmethod
    def INPUT_TYPES(cls):
        seed = {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}
        return {"required": {"noise_seed": ("INT", seed)}}

    def get_noise(self, noise_seed):
        return (SeededNoise(noise_seed),)


NODE_CLASS_MAPPINGS = {"PyfoldSampler": PyfoldSampler, "PyfoldScheduler": PyfoldScheduler, "PyfoldNoise": PyfoldNoise}
NODE_DISPLAY_NAME_MAPPINGS = {
    "PyfoldSampler": "Sampler (pyfold)",
    "PyfoldScheduler": "Scheduler (pyfold)",
    "PyfoldNoise": "Seeded Noise (pyfold)",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "SAMPLERS", "SPACINGS", "SeededNoise", "sample"]
