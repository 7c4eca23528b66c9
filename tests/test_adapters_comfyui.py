"""The ComfyUI nodes against the few interfaces of ComfyUI that they touch, as its sources document them.

A KSAMPLER scales the noise by the model's sampling, calls ``sampler_function(model_k, noise, sigmas, extra_args=, callback=,
disable=, **extra_options)`` and scales back; ``model_k(x, sigma, model_options=, seed=)`` returns the denoised x, and its
``inner_model.inner_model.model_sampling`` says what states are.
"""

import importlib.util
import json
import math
import subprocess
import sys
import types
from functools import partial
from itertools import pairwise
from pathlib import Path

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

    def timestep(self, sigma):
        return (sigma.log() - self.sigmas.log()[:, None]).abs().argmin(dim=0).view(sigma.shape)

    def sigma(self, timestep):
        low, high = timestep.floor().long(), timestep.ceil().long()
        return self.sigmas.log()[low].lerp(self.sigmas.log()[high], timestep.frac()).exp()

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

    def timestep(self, sigma):
        return sigma

    def sigma(self, timestep):
        return 3 * timestep / (1 + 2 * timestep)


class KSampler:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        extra_args["denoise_mask"] = denoise_mask
        sampling = model_wrap.inner_model.model_sampling
        most = math.isclose(float(sampling.sigma_max), float(sigmas[0]), rel_tol=1e-5) or sigmas[0] > sampling.sigma_max
        noise = sampling.noise_scaling(sigmas[0], noise, latent_image, most)
        report = None if callback is None else lambda info: callback(info["i"], info["denoised"], info["x"], len(sigmas) - 1)
        model_k = KSamplerX0Inpaint(model_wrap)
        samples = self.sampler_function(
            model_k, noise, sigmas, extra_args=extra_args, callback=report, disable=disable_pbar, **self.extra_options
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

    def __init__(self, sampling, cfg=1.0, negative=MEAN):
        self.inner_model = types.SimpleNamespace(model_sampling=sampling)
        self.cfg, self.negative = cfg, negative

    def denoised(self, x, sigma, mean):
        sigma = sigma.reshape(-1, 1, 1, 1)
        alpha = 1 - sigma if isinstance(self.inner_model.model_sampling, Const) else torch.ones_like(sigma)
        return mean + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * mean)

    def __call__(self, x, sigma, model_options=None, seed=None):
        """Guided; then what hooked itself in after guidance is told both outputs."""
        model_options = model_options or {}
        cond, uncond = self.denoised(x, sigma, MEAN), None
        if self.negative is not None and (self.cfg != 1 or model_options.get("disable_cfg1_optimization")):
            uncond = self.denoised(x, sigma, self.negative)
        result = cond if uncond is None else uncond + self.cfg * (cond - uncond)
        for function in model_options.get("sampler_post_cfg_function", []):
            result = function({"denoised": result, "cond_denoised": cond, "uncond_denoised": uncond, "sigma": sigma})
        return result


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
        for kind, *options in node.INPUT_TYPES()["required"].values():
            assert kind in ("FLOAT", "INT", "MODEL", "BOOLEAN") or options[0]["default"] in kind


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
    if name in ("edm_stochastic", "dpm_fast", "dpm_adaptive") and isinstance(sampling, Const):
        with pytest.raises(ValueError, match="got a flow"):
            workflow(sampling, 1, sampler_name=name)
        return
    reports = []
    x = workflow(sampling, 8, sampler_name=name, steps=40, callback=lambda *a: reports.append((a[0], a[3])))
    if name not in ("dpm_fast", "dpm_adaptive"):  # whose steps are their own
        assert reports == [(i, 40) for i in range(40)]
    n = x.numel()
    if name == "lcm":
        return  # these denoisers are no consistency models
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


def on_sigmas(sampling, name, sigmas, guider, seed=7, count=2, dtype=torch.float32, **options):
    """(x where it started, where it ended) of a sampler on sigmas of the test's own."""
    (sampler,) = nodes()["PyfoldSampler"].get_sampler(**{**defaults(comfyui.PyfoldSampler), "sampler_name": name, **options})
    (noise,) = nodes()["PyfoldNoise"].get_noise(seed)
    latent = {"samples": torch.zeros(count, *SHAPE, dtype=dtype)}
    start, extra = noise.generate_noise(latent), {"model_options": {}, "seed": noise.seed}
    end = sampler.sample(guider, sigmas, extra, None, start, latent["samples"], disable_pbar=True)
    assert extra["model_options"] == {}
    return start * sigmas[0], end


def draws(sampling, name, sigmas, seed=7, count=2):
    """The noise of each step, as the plan of pyfold's own name draws it."""
    flow = diffusion.flow() if isinstance(sampling, Const) else comfyui.SCHEDULE
    at = diffusion.spacings.at_sigmas if flow.is_flow else diffusion.spacings.at_ratios
    plan = getattr(diffusion, name)(flow, prediction="x0", spacing=at(flow, sigmas[:-1].double().tolist()))
    seeds = torch.arange(seed, seed + count)
    return lambda i: plan.draw(i, seeds, SHAPE, dtype=torch.float64)


SIGMAS = {"epsilon": [12.0, 5.0, 2.0, 0.6, 0.1, 0.0], "flow": [1.0, 0.9, 0.7, 0.4, 0.15, 0.0]}


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("sampling", [Epsilon(), Flux()], ids=["epsilon", "flow"])
def test_cfg_plus_plus_by_its_formula(sampling, eta):
    """Chung et al. 2024, algorithm 2: x0 of the guided output, noise of the unconditional one; ancestral in sigma / alpha."""
    flow, guider = isinstance(sampling, Const), Guider(sampling, cfg=1.6, negative=-0.4)
    sigmas = torch.tensor(SIGMAS["flow" if flow else "epsilon"])
    name, options = ("euler_ancestral_cfg_pp", {"eta": eta}) if eta else ("euler_cfg_pp", {})
    x, result = on_sigmas(sampling, name, sigmas, guider, **options)
    noise, x = draws(sampling, "euler_ancestral", sigmas), x.double()
    for i, (s, s2) in enumerate(pairwise(sigmas.double())):
        a, a2 = (1 - s, 1 - s2) if flow else (torch.ones(()), torch.ones(()))
        uncond = guider.denoised(x, s, -0.4)
        guided = uncond + 1.6 * (guider.denoised(x, s, MEAN) - uncond)
        up = eta * s2 / a2 * (1 - (s2 / a2 * a / s) ** 2).sqrt()
        down = ((s2 / a2) ** 2 - up**2).sqrt()
        x = a2 * (guided + down * (x - a * uncond) / s)
        x = x + a2 * up * noise(i) if s2 and eta else x
    torch.testing.assert_close(result.double(), x, rtol=0, atol=2e-6 * x.abs().max().item())


def test_cfg_plus_plus_asks_for_a_negative_prompt_and_keeps_other_hooks():
    sigmas = torch.tensor(SIGMAS["epsilon"])
    with pytest.raises(ValueError, match="CFG\\+\\+ needs a guider with a negative prompt"):
        on_sigmas(Epsilon(), "euler_cfg_pp", sigmas, Guider(Epsilon(), negative=None))
    x, seen = torch.ones(1, *SHAPE), []
    hook = lambda args: seen.append(args["denoised"]) or 0.5 * args["denoised"]  # noqa: E731
    extra = {"model_options": {"sampler_post_cfg_function": [hook]}, "seed": 1}
    guider = KSamplerX0Inpaint(Guider(Epsilon()))
    model = lambda x, sigma, **given: guider(x, sigma, denoise_mask=None, **given)  # noqa: E731
    model.inner_model = guider.inner_model
    result = comfyui.sample(model, x, sigmas, extra, disable=True, sampler="euler_cfg_pp")
    assert (
        len(seen) == 5
        and torch.equal(result, 0.5 * seen[-1])
        and extra["model_options"] == {"sampler_post_cfg_function": [hook]}
    )


@pytest.mark.parametrize("sampling", [Epsilon(), Flux()], ids=["epsilon", "flow"])
def test_lcm_by_its_formula(sampling):
    """Song et al. 2023, algorithm 1: the model's x0, then new noise of the next level on it."""
    flow, guider = isinstance(sampling, Const), Guider(sampling)
    sigmas = torch.tensor(SIGMAS["flow" if flow else "epsilon"])
    x, result = on_sigmas(sampling, "lcm", sigmas, guider)
    noise, x = draws(sampling, "consistency", sigmas), x.double()
    for i, (s, s2) in enumerate(pairwise(sigmas.double())):
        x = guider.denoised(x, s, MEAN)
        x = (1 - s2 if flow else 1) * x + s2 * noise(i) if s2 else x
    torch.testing.assert_close(result.double(), x, rtol=0, atol=2e-6 * x.abs().max().item())


@pytest.fixture
def in_float64():
    """k-diffusion's tables are made in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["dpm_fast", "dpm_adaptive"])
def test_samplers_with_steps_of_their_own_are_k_diffusion_s(name, in_float64):
    """From the first sigma to the last above 0, dpm_fast with one evaluation a sigma."""
    sampling = pytest.importorskip("k_diffusion_reference").sampling
    sigmas, guider = torch.tensor(SIGMAS["epsilon"], dtype=torch.float64), Guider(Epsilon())
    x, result = on_sigmas(Epsilon(), name, sigmas, guider, dtype=torch.float64)
    count = [5] if name == "dpm_fast" else []
    expected = getattr(sampling, f"sample_{name}")(guider, x, 0.1, 12.0, *count, disable=True)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-11)
    _, one = on_sigmas(Epsilon(), name, torch.tensor([12.0, 0.0]), guider, dtype=torch.float64)
    assert torch.equal(one, guider(x, torch.full((2,), 12.0, dtype=torch.float64)))


@pytest.mark.parametrize("sampling", [Epsilon(), Flux()], ids=["epsilon", "flow"])
def test_a_seed_s_picture_in_any_batch(sampling):
    one = partial(workflow, sampling, sampler_name="dpmpp_multistep", eta=1.0, steps=6)
    whole = one(3, seed=10)
    assert torch.equal(whole[:1], one(1, seed=10)) and torch.equal(whole[1:], one(2, seed=11))
    assert not torch.equal(whole[0], whole[1])


STOCHASTIC = ["euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "seeds_2", "annealed_langevin"]


def run(sampling, noise, sigmas, latent, name):
    """What SamplerCustomAdvanced does: noise first, then the seed."""
    options = {**defaults(comfyui.PyfoldSampler), "sampler_name": name, "eta": 1.0}
    (sampler,) = comfyui.PyfoldSampler().get_sampler(**options)
    made = noise.generate_noise(latent)
    extra = {"model_options": {}, "seed": noise.seed}
    return sampler.sample(Guider(sampling), sigmas, extra, None, made, latent["samples"], disable_pbar=True)


@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n in comfyui.SAMPLERS])
def test_chained_samplers_are_the_unbroken_run(name):
    """KSamplerAdvanced's steps 0 to 4 and 4 to 8: the second starts with no noise of its own, and the same seed."""
    (sigmas,) = nodes()["PyfoldScheduler"].get_sigmas(patcher(Epsilon()), "karras", 8, 1.0)
    (noise,), (none,) = nodes()["PyfoldNoise"].get_noise(7), nodes()["PyfoldNoise"].get_noise(7, add_noise=False)
    latent = {"samples": torch.zeros(2, *SHAPE)}
    whole = run(Epsilon(), noise, sigmas, latent, name)
    half = run(Epsilon(), noise, sigmas[:5], latent, name)
    second = run(Epsilon(), none, sigmas[4:], {"samples": half}, name)
    assert torch.equal(second, whole)


@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n in comfyui.SAMPLERS])
def test_one_picture_of_a_batch_again(name):
    """A latent with batch_index [3] alone is picture 3 of the batch, in every draw."""
    (sigmas,) = nodes()["PyfoldScheduler"].get_sigmas(patcher(Epsilon()), "karras", 6, 1.0)
    (noise,) = nodes()["PyfoldNoise"].get_noise(7)
    whole = run(Epsilon(), noise, sigmas, {"samples": torch.zeros(5, *SHAPE)}, name)
    some = run(Epsilon(), noise, sigmas, {"samples": torch.zeros(2, *SHAPE), "batch_index": [3, 1]}, name)
    assert torch.equal(some, whole[[3, 1]])


def test_noise():
    (noise,) = nodes()["PyfoldNoise"].get_noise(2**64 - 2)
    assert noise.seed == 2**64 - 2
    latent = {"samples": torch.zeros(4, *SHAPE)}
    made = noise.generate_noise(latent)
    assert torch.equal(made, pyfold.randn([-2, -1, 0, 1], SHAPE))
    assert torch.equal(noise.generate_noise({"samples": torch.zeros(2, *SHAPE), "batch_index": [3, 1]}), made[[3, 1]])
    with pytest.raises(ValueError, match="batch_index must have 4"):
        noise.generate_noise({**latent, "batch_index": [1]})


def test_the_seeds_of_a_batch_wrap():
    seeds = comfyui.seeds_of(2**63 - 2, range(4))
    assert seeds.tolist() == [2**63 - 2, 2**63 - 1, -(2**63), 1 - 2**63]


@pytest.mark.parametrize("sampling", [Epsilon(), Flux()], ids=["epsilon", "flow"])
@pytest.mark.parametrize("spacing", comfyui.SPACINGS)
def test_sigmas(spacing, sampling):
    get = partial(nodes()["PyfoldScheduler"].get_sigmas, patcher(sampling), spacing)
    (sigmas,) = get(20, 1.0)
    assert sigmas.shape in ((21,), (20,)) and sigmas.dtype == torch.float32  # beta leaves out what it meets twice
    # Every so many of the table from its second entry on does not reach its last.
    assert sigmas[0].item() == pytest.approx(float(sampling.sigma_max), rel=0.3 if spacing == "ddim_uniform" else 1e-6)
    assert sigmas[-1] == 0
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


#: KSampler's names in ComfyUI 0.3.64.
KSAMPLER = [
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
]


def test_every_name_of_ksampler_is_here_or_missing_on_purpose():
    assert len(KSAMPLER) == 42
    assert sorted(KSAMPLER) == sorted([n for n in comfyui.SAMPLERS if n in KSAMPLER] + list(comfyui.MISSING))


def test_options_at_minus_one_are_the_sampler_s_own():
    own = workflow(Epsilon(), 2, sampler_name="euler_ancestral", steps=6)
    assert torch.equal(own, workflow(Epsilon(), 2, sampler_name="euler_ancestral", steps=6, eta=1.0, noise_scale=1.0))
    deterministic = workflow(Epsilon(), 2, sampler_name="euler", steps=6)
    torch.testing.assert_close(workflow(Epsilon(), 2, sampler_name="euler_ancestral", steps=6, eta=0.0), deterministic)
    assert (own - deterministic).abs().max() > 0.1


@pytest.mark.parametrize("name", ["lms", "ipndm", "ipndm_v", "gradient_estimation"])
def test_the_last_step_is_the_denoised_sample(name):
    """ComfyUI's callback gets the last denoised one, and that is the result."""
    seen = []
    x = workflow(Epsilon(), 2, sampler_name=name, steps=6, callback=lambda i, denoised, *_: seen.append(denoised.clone()))
    assert torch.equal(x, seen[-1])


@pytest.mark.parametrize("name", ["euler", "lms", "dpmpp_2m", "deis"])
def test_sigmas_that_do_not_decrease_do_not_stop_a_run(name):
    (sampler,) = nodes()["PyfoldSampler"].get_sampler(name, -1.0, -1.0, 0)
    x = torch.randn(1, *SHAPE)
    run = lambda sigmas: sampler.sample(  # noqa: E731
        Guider(Epsilon()),
        torch.tensor(sigmas),
        {"model_options": {}, "seed": 1},
        None,
        x,
        torch.zeros_like(x),
        disable_pbar=True,
    )
    if name == "deis":
        with pytest.warns(UserWarning, match=r"not below those before them are left out: \[5.0, 2.5\]"):
            edited = run([14.0, 5.0, 5.0, 2.0, 2.5, 1.0, 0.0])
        assert torch.equal(edited, run([14.0, 5.0, 2.0, 1.0, 0.0]))
    elif name == "euler":
        assert run([14.0, 5.0, 5.0, 2.0, 2.5, 1.0, 0.0]).isfinite().all()
    else:
        with pytest.warns(UserWarning, match=r"repeat the one before are left out: \[5.0\]"):
            edited = run([14.0, 5.0, 5.0, 2.0, 2.5, 1.0, 0.0])
        assert torch.equal(edited, run([14.0, 5.0, 2.0, 2.5, 1.0, 0.0]))
    assert torch.equal(comfyui.sample(None, x, torch.tensor([3.0]), sampler=name), x)


def test_known_values_of_the_schedulers():
    """Of a table of ten sigmas 1 to 10, whose times are its places."""
    table = types.SimpleNamespace(
        sigmas=torch.arange(1.0, 11.0),
        sigma_min=torch.tensor(1.0),
        sigma_max=torch.tensor(10.0),
        timestep=lambda sigma: sigma - 1,
        sigma=lambda time: time + 1,
    )
    get = lambda spacing, steps: nodes()["PyfoldScheduler"].get_sigmas(patcher(table), spacing, steps, 1.0)[0].tolist()  # noqa: E731
    assert get("simple", 5) == [10, 8, 6, 4, 2, 0]
    assert get("sgm_uniform", 3) == [10, 7, 4, 0]
    assert get("normal", 4) == [10, 7, 4, 1, 0]
    assert get("ddim_uniform", 5) == [10, 8, 6, 4, 2, 0]
    assert get("linear_quadratic", 1) == [10, 0]
    # 0.0125 a step for two steps, then a parabola of the same slope: d(3) - d(2) = .0125 + (1 - .05) / 4.
    assert get("linear_quadratic", 4) == pytest.approx([10, 9.875, 9.75, 7.25, 0])
    assert get("beta", 2) == [10, 5, 0]  # the median, 4.5, to the even place


def test_nested_latents_get_nested_noise():
    class Nested:
        is_nested = True

        def __init__(self, tensors):
            self.tensors = tensors

        def unbind(self):
            return self.tensors

    (noise,) = nodes()["PyfoldNoise"].get_noise(7)
    made = noise.generate_noise({"samples": Nested([torch.zeros(2, 4, 3, 5, 5), torch.zeros(2, 8, 6)])})
    assert isinstance(made, Nested)
    assert [part.shape for part in made.unbind()] == [(2, 4, 3, 5, 5), (2, 8, 6)]
    whole = pyfold.randn([7, 8], (4 * 3 * 25 + 48,))
    assert torch.equal(torch.cat([part.flatten(1) for part in made.unbind()], 1), whole)


def test_workflows_are_graphs_of_their_nodes():
    """Links join an output to an input of the same type, and nodes of this pack have values for all their widgets."""
    folder = Path(pyfold.__file__).parent.parent / "comfyui" / "pyfold"
    if not folder.exists():
        pytest.skip("needs the source tree")
    spec = importlib.util.spec_from_file_location("pack", folder / "__init__.py")
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    files = sorted(folder.glob("example_workflows/*.json"))
    assert len(files) == 3
    for file in files:
        graph = json.loads(file.read_text())
        by_id = {node["id"]: node for node in graph["nodes"]}
        for link, source, slot, target, entry, kind in graph["links"]:
            assert by_id[source]["outputs"][slot]["type"] == by_id[target]["inputs"][entry]["type"] == kind
            assert link in by_id[source]["outputs"][slot]["links"] and by_id[target]["inputs"][entry]["link"] == link
        ours = [node for node in graph["nodes"] if node["type"] in pack.NODE_CLASS_MAPPINGS]
        assert len(ours) == 3
        for node in ours:
            required = pack.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()["required"]
            widgets = [entry for entry in required.values() if isinstance(entry[0], list) or entry[0] in ("FLOAT", "INT")]
            values = [v for v in node["widgets_values"] if v != "fixed"]  # what follows a seed
            assert len(values) == len(widgets)
            for entry, value in zip(widgets, values, strict=False):
                assert value in entry[0] if isinstance(entry[0], list) else isinstance(value, (int, float))
