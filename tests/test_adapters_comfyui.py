"""The ComfyUI nodes against the few interfaces of ComfyUI that they touch, as its sources document them.

A KSAMPLER scales the noise by the model's sampling, calls ``sampler_function(model_k, noise, sigmas, extra_args=, callback=,
disable=, **extra_options)`` and scales back; ``model_k(x, sigma, model_options=, seed=)`` returns the denoised x, and its
``inner_model.inner_model.model_sampling`` says what states are.
"""

import math
import subprocess
import sys
import types
from functools import partial

import pytest
import torch

import pyfold
from pyfold import diffusion
from pyfold.adapters import comfyui

SHAPE = (4, 6, 5)
MEAN, VARIANCE = 0.3, 0.5


class Epsilon:
    """States x0 + sigma eps, from a table of sigmas."""

    sigmas = torch.linspace(math.log(0.03), math.log(14.6), 1000).exp()

    @property
    def sigma_min(self):
        return self.sigmas[0]

    @property
    def sigma_max(self):
        return self.sigmas[-1]

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return noise * (torch.sqrt(1.0 + sigma**2.0) if max_denoise else sigma) + latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class Const:
    """ComfyUI's CONST: straight lines, (1 - sigma) x0 + sigma eps."""

    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return sigma * noise + (1.0 - sigma) * latent

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1.0 - sigma)


class Flux(Const):
    sigmas = torch.linspace(1 / 10000, 1, 10000).mul(3).div(1 + 2 * torch.linspace(1 / 10000, 1, 10000))
    sigma_min, sigma_max = sigmas[0], sigmas[-1]


class KSampler:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        extra_args["denoise_mask"] = denoise_mask
        sampling = model_wrap.inner_model.model_sampling
        most = math.isclose(float(sampling.sigma_max), float(sigmas[0]), rel_tol=1e-5) or sigmas[0] > sampling.sigma_max
        noise = sampling.noise_scaling(sigmas[0], noise, latent_image, most)
        told = None if callback is None else lambda info: callback(info["i"], info["denoised"], info["x"], len(sigmas) - 1)
        model_k = KSamplerX0Inpaint(model_wrap)
        samples = self.sampler_function(
            model_k, noise, sigmas, extra_args=extra_args, callback=told, disable=disable_pbar, **self.extra_options
        )
        return sampling.inverse_noise_scaling(sigmas[-1], samples)


class KSamplerX0Inpaint:
    def __init__(self, model):
        self.inner_model = model

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        assert denoise_mask is None and sigma.shape == (len(x),)
        return self.inner_model(x, sigma, model_options=model_options, seed=seed)


class Guider:
    """What a KSAMPLER gets: callable, around the model with its sampling. The data are N(0.3, 0.5)."""

    def __init__(self, sampling):
        self.inner_model = types.SimpleNamespace(model_sampling=sampling)

    def __call__(self, x, sigma, model_options=None, seed=None):
        sigma = sigma.reshape(-1, 1, 1, 1)
        alpha = 1 - sigma if isinstance(self.inner_model.model_sampling, Const) else torch.ones_like(sigma)
        return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


@pytest.fixture(autouse=True)
def _comfy(monkeypatch):
    comfy, samplers, sampling = (types.ModuleType(n) for n in ("comfy", "comfy.samplers", "comfy.model_sampling"))
    samplers.KSAMPLER, sampling.CONST = KSampler, Const
    for module in (comfy, samplers, sampling):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def nodes():
    return {name: node() for name, node in comfyui.NODE_CLASS_MAPPINGS.items()}


def defaults(node):
    """A node's required inputs at their defaults, as ComfyUI makes them from INPUT_TYPES."""
    return {name: spec[1]["default"] for name, spec in node.INPUT_TYPES()["required"].items() if len(spec) > 1}


def patcher(sampling):
    """A MODEL."""
    return types.SimpleNamespace(get_model_object=lambda name: {"model_sampling": sampling}[name])


def workflow(sampling, count, seed=7, spacing="karras", steps=20, callback=None, **options):
    """Noise, scheduler, sampler, as SamplerCustomAdvanced connects them."""
    pack = nodes()
    (noise,) = pack["PyfoldNoise"].get_noise(seed)
    (sigmas,) = pack["PyfoldScheduler"].get_sigmas(patcher(sampling), spacing, steps, 1.0)
    (sampler,) = pack["PyfoldSampler"].get_sampler(**{**defaults(pack["PyfoldSampler"]), **options})
    latent = {"samples": torch.zeros(count, *SHAPE)}
    extra = {"model_options": {}, "seed": noise.seed}
    return sampler.sample(
        Guider(sampling), sigmas, extra, callback, noise.generate_noise(latent), latent["samples"], disable_pbar=True
    )


def test_the_pack_is_one_that_comfyui_loads():
    assert set(comfyui.NODE_CLASS_MAPPINGS) == set(comfyui.NODE_DISPLAY_NAME_MAPPINGS)
    for node in comfyui.NODE_CLASS_MAPPINGS.values():
        assert isinstance(node.RETURN_TYPES, tuple) and isinstance(node.CATEGORY, str)
        assert set(node.INPUT_TYPES()) == {"required"} and callable(getattr(node, node.FUNCTION))
        for kind, *rest in node.INPUT_TYPES()["required"].values():
            assert kind in ("FLOAT", "INT", "MODEL") or rest[0]["default"] in kind


def test_it_imports_without_comfyui():
    code = "import sys; sys.modules['comfy'] = None; import pyfold.adapters.comfyui as c; print(sorted(c.NODE_CLASS_MAPPINGS))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['PyfoldNoise', 'PyfoldSampler', 'PyfoldScheduler']"


@pytest.mark.parametrize("sampling", [Epsilon(), Flux()], ids=["epsilon", "flow"])
@pytest.mark.parametrize("name", comfyui.SAMPLERS)
def test_every_sampler_on_both_kinds_of_model(name, sampling):
    """Means and spreads of Gaussian data, roughly: 20 steps of a solver; and a callback for each step, in order."""
    if name == "flow_sde" and not isinstance(sampling, Const):
        with pytest.raises(ValueError, match="flow schedule"):
            workflow(sampling, 1, sampler_name=name)
        return
    if name == "edm_stochastic" and isinstance(sampling, Const):
        with pytest.raises(ValueError, match="got a flow"):
            workflow(sampling, 1, sampler_name=name)
        return
    told = []
    x = workflow(sampling, 8, sampler_name=name, steps=40, callback=lambda *a: told.append((a[0], a[3])))
    assert told == [(i, 40) for i in range(40)]
    n = x.numel()
    # 5 standard errors, and the solver's own error.
    assert abs(x.mean().item() - MEAN) < 5 * math.sqrt(VARIANCE / n) + 0.05
    assert abs(x.var().item() - VARIANCE) < 5 * VARIANCE * math.sqrt(2 / n) + 0.12


def test_euler_is_pyfold_s_own():
    """The same numbers as a loop without ComfyUI."""
    (sigmas,) = nodes()["PyfoldScheduler"].get_sigmas(patcher(Flux()), "simple", 12, 1.0)
    x = workflow(Flux(), 3, spacing="simple", steps=12, sampler_name="euler")
    flow = diffusion.flow()
    points = diffusion.spacings.at_sigmas(flow, sigmas[:-1].double().tolist())
    plan, seeds = diffusion.flow_euler(flow, prediction="x0", spacing=points), torch.tensor([7, 8, 9])
    expected = diffusion.sample(Guider(Flux()), plan, SHAPE, seeds)
    torch.testing.assert_close(x, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("sampling", [Epsilon(), Flux()], ids=["epsilon", "flow"])
def test_a_seed_s_picture_in_any_batch(sampling):
    one = partial(workflow, sampling, sampler_name="dpmpp_multistep", eta=1.0, steps=6)
    whole = one(3, seed=10)
    assert torch.equal(whole[:1], one(1, seed=10)) and torch.equal(whole[1:], one(2, seed=11))
    assert not torch.equal(whole[0], whole[1])


def test_noise():
    (noise,) = nodes()["PyfoldNoise"].get_noise(2**64 - 2)
    assert noise.seed == 2**64 - 2
    latent = {"samples": torch.zeros(4, *SHAPE)}
    made = noise.generate_noise(latent)
    assert torch.equal(made, pyfold.randn([-2, -1, 0, 1], SHAPE))
    assert torch.equal(noise.generate_noise({"samples": torch.zeros(2, *SHAPE), "batch_index": [3, 1]}), made[[3, 1]])
    with pytest.raises(ValueError, match="batch_index must have 4"):
        noise.generate_noise({**latent, "batch_index": [1]})


@pytest.mark.parametrize("sampling", [Epsilon(), Flux()], ids=["epsilon", "flow"])
@pytest.mark.parametrize("spacing", comfyui.SPACINGS)
def test_sigmas(spacing, sampling):
    get = partial(nodes()["PyfoldScheduler"].get_sigmas, patcher(sampling), spacing)
    (sigmas,) = get(20, 1.0)
    assert sigmas.shape == (21,) and sigmas.dtype == torch.float32
    assert sigmas[0].item() == pytest.approx(float(sampling.sigma_max), rel=1e-6) and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
    (half,) = get(10, 0.5)
    assert torch.equal(half, sigmas[-11:])
    assert get(20, 0.0)[0].shape == (0,)


def test_bad_inputs():
    pack = nodes()
    with pytest.raises(ValueError, match="spacing.*'none'"):
        pack["PyfoldScheduler"].get_sigmas(patcher(Flux()), "none", 5, 1.0)
    with pytest.raises(ValueError, match="denoise.*2"):
        pack["PyfoldScheduler"].get_sigmas(patcher(Flux()), "karras", 5, 2.0)
    with pytest.raises(ValueError, match="steps.*0"):
        pack["PyfoldScheduler"].get_sigmas(patcher(Flux()), "karras", 0, 1.0)
    with pytest.raises(ValueError, match="sampler_name.*'none'"):
        pack["PyfoldSampler"].get_sampler("none", 0.0, 1.0, 0)
    with pytest.raises(ValueError, match="eta.*3"):
        workflow(Epsilon(), 1, sampler_name="euler_ancestral", eta=3.0)
