"""Every continuous scheduler of diffusers beside pyfold's of the same name: same tables, same numbers, diffusers' arithmetic unused."""

import inspect

import numpy as np
import pytest
import torch

import pyfold

diffusers = pytest.importorskip("diffusers")

import diffusers.schedulers  # noqa: E402

from pyfold.adapters import diffusers as ours  # noqa: E402

SHAPE = (3, 4, 6, 6)
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EPS, X0, V, FLOW = ({"prediction_type": p} for p in ("epsilon", "sample", "v_prediction", "flow_prediction"))
#: Of tokens and masks, where nothing is added to anything.
DISCRETE = {"AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler", "VQDiffusionScheduler"}


def theirs(name):
    return next(c for c in getattr(ours, name).__mro__ if c.__module__.startswith("diffusers."))


# --- the cases: (class, configuration, how it is run)

CASES = []


def case(name, *configs, **run):
    CASES.extend((name, config, run) for config in (configs or ({},)))


def grid(*axes):
    """Every combination of one dictionary from each axis."""
    merged = [{}]
    for axis in axes:
        merged = [{**a, **b} for a in merged for b in axis]
    return merged


THRESHOLDING = {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9}
SIGMAS = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
SPACINGS = [{"timestep_spacing": s} for s in ("leading", "linspace", "trailing")]

for name in ("DDIMScheduler", "DDIMParallelScheduler"):
    case(name, *grid([EPS, X0, V], [{"clip_sample": False}, {"clip_sample_range": 0.7}, THRESHOLDING]))
    case(name, VP, {**VP, "clip_sample": False}, step={"eta": 1.0})
    case(name, {**VP, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, step={"eta": 0.4})
    case(name, {"set_alpha_to_one": False}, step={"use_clipped_model_output": True, "eta": 0.5})
case("DDIMInverseScheduler", *grid([EPS, V], [{"clip_sample": False}, {}], [{}, {"set_alpha_to_one": False}]))
case("DDIMInverseScheduler", {**X0, "set_alpha_to_one": False})
case("CogVideoXDDIMScheduler", EPS, X0, V, {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
case("CogVideoXDPMScheduler", EPS, X0, V, {**V, "timestep_spacing": "trailing"})
for name in ("DDPMScheduler", "DDPMParallelScheduler"):
    case(name, *grid([EPS, X0, V], [{"clip_sample": False}, {"clip_sample_range": 0.7}, THRESHOLDING]))
    case(name, *({"variance_type": v} for v in ("fixed_small_log", "fixed_large", "learned_range")))
    case(name, *SPACINGS, {"beta_schedule": "sigmoid"}, {"beta_schedule": "squaredcos_cap_v2"})
    case(name, {"variance_type": "learned"}, positive=True)
case("DDPMScheduler", {}, timesteps={"timesteps": [900, 700, 411, 200, 3]})
case("UnCLIPScheduler", *grid([EPS, X0], [{}, {"clip_sample": False}], [{}, {"variance_type": "learned_range"}]))
case("DDPMWuerstchenScheduler", {}, {"scaler": 2.0}, {"scaler": 0.5})
case("RePaintScheduler", {}, {"clip_sample": False}, {"eta": 0.7})
case("ConsistencyDecoderScheduler", {}, steps=2)
case("LCMScheduler", *grid([EPS, X0, V], [{}, {"clip_sample": True}, THRESHOLDING]), {"set_alpha_to_one": False})
case("TCDScheduler", EPS, X0, V)
case("TCDScheduler", {}, step={"eta": 0.0})
case("TCDScheduler", {}, step={"eta": 0.77})
case("PNDMScheduler", *grid([EPS, V], [{}, {"skip_prk_steps": True}], [{}, {"set_alpha_to_one": True}]))
case("PNDMScheduler", *({**s, "skip_prk_steps": True} for s in SPACINGS))
case("IPNDMScheduler", {})

case("EulerDiscreteScheduler", *grid([EPS, X0, V], [{}, {"use_karras_sigmas": True}], [{}, {"final_sigmas_type": "sigma_min"}]))
case("EulerDiscreteScheduler", *SIGMAS, *SPACINGS, {"interpolation_type": "log_linear"}, {"rescale_betas_zero_snr": True})
case("EulerDiscreteScheduler", {**V, "timestep_type": "continuous", "sigma_min": 0.01, "sigma_max": 20.0, "use_karras_sigmas": True})
case("EulerDiscreteScheduler", EPS, X0, V, step={"s_churn": 3.0, "s_noise": 1.1, "s_tmin": 0.2, "s_tmax": 10.0})
case("EulerDiscreteScheduler", {}, timesteps={"sigmas": [12.0, 5.0, 1.0, 0.3, 0.0]})
case("EulerDiscreteScheduler", {}, timesteps={"timesteps": [900, 600, 400, 100]})
case("EulerAncestralDiscreteScheduler", EPS, V, *SPACINGS, {**V, "rescale_betas_zero_snr": True})
case("HeunDiscreteScheduler", *grid([EPS, X0, V], [{}, {"clip_sample": True}]), *SIGMAS, {"beta_schedule": "exp"})
case("KDPM2DiscreteScheduler", EPS, V, *SIGMAS[1:], *SPACINGS)
case("KDPM2AncestralDiscreteScheduler", EPS, V, *SIGMAS[1:], *SPACINGS)
case("LMSDiscreteScheduler", EPS, X0, V, *SIGMAS[1:])
case("LMSDiscreteScheduler", {}, step={"order": 2})
case("EDMEulerScheduler", EPS, V, {"sigma_schedule": "exponential"}, {"final_sigmas_type": "sigma_min"})
case("EDMEulerScheduler", {}, step={"s_churn": 3.0, "s_noise": 1.1})
case("CMStochasticIterativeScheduler", {}, {"clip_denoised": False, "s_noise": 1.2})
case("DPMSolverSDEScheduler", *grid([EPS, V], [{"noise_sampler_seed": 3}], [{}, {"use_karras_sigmas": True}]))
case("DPMSolverSDEScheduler", {"noise_sampler_seed": 3}, step={"s_noise": 0.5})
# Its slope is a difference of near numbers over a small one, in float32 mere rounding.
case("KarrasVeScheduler", {}, {"sigma_max": 20.0}, dtype=torch.float64)

SOLVERS = [{"solver_type": s} for s in ("midpoint", "heun")]
ORDERS = [{"solver_order": o} for o in (1, 2, 3)]
DETERMINISTIC = [{"algorithm_type": "dpmsolver++"}, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}]
STOCHASTIC = [{"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}]
for steps in (10, 16):
    case("DPMSolverMultistepScheduler", *grid([VP], DETERMINISTIC, ORDERS, SOLVERS), steps=steps)
    case("DPMSolverMultistepScheduler", *grid([VP], STOCHASTIC, ORDERS[:2], SOLVERS), steps=steps)
    case("DPMSolverMultistepScheduler", {**VP, **STOCHASTIC[0], "solver_order": 3}, steps=steps)
case("DPMSolverMultistepScheduler", *grid([X0, V], DETERMINISTIC), *SIGMAS, *SPACINGS, {"use_lu_lambdas": True})
case("DPMSolverMultistepScheduler", THRESHOLDING, {**THRESHOLDING, **DETERMINISTIC[1]}, {"euler_at_final": True})
case("DPMSolverMultistepScheduler", {**FLOW, "use_flow_sigmas": True, "flow_shift": 3.0}, {"variance_type": "learned_range"})
case("DPMSolverMultistepScheduler", {"lower_order_final": False}, {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
INVERSE = [{"algorithm_type": a} for a in ("dpmsolver++", "dpmsolver")]
case("DPMSolverMultistepInverseScheduler", *grid([VP], INVERSE, ORDERS, SOLVERS), X0, V, *SIGMAS[1:3], *SPACINGS)
case("DPMSolverMultistepInverseScheduler", SIGMAS[3], double=True)
# Backwards the variance of their noise is negative: NaN, here as there.
case("DPMSolverMultistepInverseScheduler", *({"algorithm_type": f"sde-{a['algorithm_type']}"} for a in INVERSE), nan=True)
SINGLESTEP = [{"lower_order_final": True}, {}]
case("DPMSolverSinglestepScheduler", *grid([VP], DETERMINISTIC, ORDERS, SOLVERS, SINGLESTEP), steps=12)
case("DPMSolverSinglestepScheduler", *grid([VP], STOCHASTIC[:1], ORDERS, SOLVERS), X0, V, THRESHOLDING, *SIGMAS[1:], steps=12)
case("DPMSolverSinglestepScheduler", {**FLOW, "use_flow_sigmas": True, "solver_order": 2}, steps=12)
case("EDMDPMSolverMultistepScheduler", *grid([EPS, V], ORDERS, SOLVERS), {"sigma_schedule": "exponential"}, THRESHOLDING)
case("EDMDPMSolverMultistepScheduler", *grid(STOCHASTIC[:1], ORDERS[:2], SOLVERS), {"final_sigmas_type": "sigma_min"})
case("CosineDPMSolverMultistepScheduler", *grid(ORDERS[:2], SOLVERS), EPS, {"sigma_schedule": "karras"})
case("DEISMultistepScheduler", *grid([VP], [EPS, X0, V], ORDERS), THRESHOLDING, *SIGMAS[1:], *SPACINGS)
case("DEISMultistepScheduler", {**FLOW, "use_flow_sigmas": True})
BH = [{"solver_type": "bh2"}, {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}]
case("UniPCMultistepScheduler", *grid([VP], [EPS, X0, V], ORDERS, BH), *SIGMAS[1:], *SPACINGS, THRESHOLDING)
case("UniPCMultistepScheduler", *grid([{"predict_x0": False, "final_sigmas_type": "sigma_min"}], [EPS, X0, V], ORDERS))
case("UniPCMultistepScheduler", {"disable_corrector": [0, 3]}, {"lower_order_final": False, "final_sigmas_type": "sigma_min"})
case("UniPCMultistepScheduler", {**FLOW, "use_flow_sigmas": True, "flow_shift": 3.0}, {**FLOW, "use_flow_sigmas": True, "solver_order": 3})
ADAMS = [{"predictor_order": p, "corrector_order": c} for p, c in ((1, 1), (2, 2), (3, 3), (3, 4), (2, 1), (1, 3))]
case("SASolverScheduler", *grid([VP], ADAMS, [{}, {"algorithm_type": "noise_prediction"}]))
case("SASolverScheduler", X0, V, THRESHOLDING, *SIGMAS[1:], *SPACINGS)
case("SASolverScheduler", {**FLOW, "use_flow_sigmas": True}, {"lower_order_final": False})

case("FlowMatchEulerDiscreteScheduler", {}, {"shift": 3.0}, {"stochastic_sampling": True}, {"invert_sigmas": True}, {"shift_terminal": 0.1})
case("FlowMatchEulerDiscreteScheduler", *SIGMAS[1:])
case("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, timesteps={"mu": 0.9})
case("FlowMatchEulerDiscreteScheduler", {}, timesteps={"sigmas": [1.0, 0.8, 0.3, 0.1]})
case("FlowMatchHeunDiscreteScheduler", {}, {"shift": 3.0})
case("FlowMatchHeunDiscreteScheduler", {}, step={"s_churn": 2.0})
case("FlowMatchLCMScheduler", {}, {"shift": 2.0})
case("FlowMatchLCMScheduler", {"scale_factors": [1.0, 1.0, 1.5, 2.0]}, steps=5)
case("FlowMapEulerDiscreteScheduler", {}, {"shift": 3.0})
case("LTXEulerAncestralRFScheduler", {}, {"eta": 0.5}, {"eta": 0.0}, {"s_noise": 0.9}, timesteps={"sigmas": [1.0, 0.8, 0.55, 0.3, 0.1, 0.0]})
case("MiniMaxH3Scheduler", {}, {"shift": 3.0})
case("HeliosScheduler", *grid([{"stages": 1}], [{"scheduler_type": "euler"}, {}]))
# From pure noise theirs is NaN with bh1 or order 3.
case("HeliosScheduler", *grid([{}, {"solver_type": "bh1", "lower_order_final": False}], [{}, {"solver_order": 3}]), timesteps={"stage_index": 1})
case("HeliosDMDScheduler", {})
case("PiflowScheduler", {}, {"shift": 1.0, "n_grid": 4, "num_policy_substeps": 30}, {"n_grid": 14})
case("RFD4ProteinaScheduler", *grid([{"tsr_k": 1.3, "tsr_sigma": 0.7}], [{"schedule_mode": m} for m in ("log", "power")], [{"noise_mode": m} for m in ("1/t", "tan")]), steps=30)
case("SCMScheduler", {}, steps=4)
case("SCMScheduler", {}, steps=1)
case("ScoreSdeVeScheduler", {}, {"snr": 0.3, "sigma_max": 20.0})
case("ScoreSdeVpScheduler", {})


def label(value):
    name, config, run = value
    short = ",".join(str(v) for v in config.values())
    return f"{name.removesuffix('Scheduler')}-{short}" + "".join(f"-{k}{v}" for k, v in run.items())


# --- running a scheduler


class Network:
    """Outputs that are random, and depend a little on what goes in."""

    def __init__(self, dtype, channels=1, positive=False, shape=SHAPE):
        self.generator = torch.Generator().manual_seed(5)
        self.dtype, self.channels, self.positive, self.shape = dtype, channels, positive, shape

    def __call__(self, x):
        shape = (self.shape[0], self.shape[1] * self.channels, *self.shape[2:])
        said = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if self.positive:
            said[:, self.shape[1] :] = 0.1 + said[:, self.shape[1] :].abs()
        if x.shape[2:] == shape[2:]:
            said[:, : x.shape[1]] += 0.1 * torch.tanh(x.double())
        else:
            said = torch.randn(x.shape, generator=self.generator, dtype=torch.float64)
        return said.to(self.dtype)


def prepare(scheduler, steps=10, timesteps=None):
    """set_timesteps as the class has it."""
    given = dict(timesteps or {})
    if "timesteps" in given or ("sigmas" in given and "mu" not in given):
        scheduler.set_timesteps(**given)
    elif type(scheduler).__name__ == "ScoreSdeVeScheduler":
        scheduler.set_timesteps(steps)
        scheduler.set_sigmas(steps)
    elif type(scheduler).__name__ == "SCMScheduler":
        scheduler.set_timesteps(steps, intermediate_timesteps=None) if steps != 2 else scheduler.set_timesteps(steps)
    elif type(scheduler).__name__ == "RFD4ProteinaScheduler":
        scheduler.set_timesteps(steps)
    elif type(scheduler).__name__ != "HeliosDMDScheduler":
        scheduler.set_timesteps(steps, **given)


def start(scheduler, dtype, shape=SHAPE):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (x * float(getattr(scheduler, "init_noise_sigma", 1.0))).to(dtype)


def run(scheduler, dtype=torch.float32, samples=slice(None), seeds=None, generator=True, step=None, positive=False, **options):
    """All outputs of a trajectory, in order. ``samples``: of the batch, which of them; ``generator``: draw from torch's."""
    prepare(scheduler, **{k: options[k] for k in ("steps", "timesteps") if k in options})
    if options.get("double"):
        # It spares them their rounding.
        for table, value in list(vars(scheduler).items()):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and table != "timesteps":
                setattr(scheduler, table, value.double())
    name = type(scheduler).__name__
    shape = (3, 5, 3) if name == "RFD4ProteinaScheduler" else (3, 4, 2, 6, 6) if name == "HeliosDMDScheduler" else SHAPE
    grid_size = scheduler.n_grid if name == "PiflowScheduler" else None
    channels = 2 if scheduler.config.get("variance_type") in ("learned", "learned_range") else 1
    if name.startswith("DPMSolver") and channels == 2:
        shape = (3, 3, 6, 6)
    x = start(scheduler, dtype, shape)[samples]
    network = Network(dtype, channels, positive, shape)
    full = network.__call__
    model = lambda x: full(x)[samples]  # noqa: E731
    draws = torch.Generator().manual_seed(9) if generator else None
    noise = {} if seeds is None else {"seeds": seeds}
    outputs = []

    def keep(result):
        values = list(result.values()) if hasattr(result, "values") else list(result)
        outputs.extend(v for v in values if isinstance(v, torch.Tensor))
        return values[0]

    def call(method, *args, **kwargs):
        parameters = inspect.signature(method).parameters
        if "generator" in parameters and seeds is None:
            kwargs["generator"] = draws
        if "seeds" in parameters:
            kwargs |= noise
        return keep(method(*args, **kwargs))

    if name == "KarrasVeScheduler":
        for i, t in enumerate(scheduler.timesteps):
            sigma, there = scheduler.schedule[t], scheduler.schedule[t - 1] if t > 0 else torch.tensor(0.0)
            hat_x, hat = scheduler.add_noise_to_input(x, sigma, **({"generator": draws} if seeds is None else noise))
            outputs.append(hat_x)
            first = scheduler.step(model(hat_x), hat, there, hat_x)
            x = keep(first)
            if there != 0:
                x = keep(scheduler.step_correct(model(x), hat, there, hat_x, x, first["derivative"]))
        return outputs
    if name.startswith("ScoreSde"):
        for t in scheduler.timesteps:
            if name == "ScoreSdeVeScheduler":
                for _ in range(scheduler.config.correct_steps):
                    x = call(scheduler.step_correct, model(x), x) if samples == slice(None) else x
                x = call(scheduler.step_pred, model(x), t, x)
            else:
                x = call(scheduler.step_pred, model(x), x, t.expand(x.shape[0]))
        return outputs
    if name == "HeliosDMDScheduler":
        table, times = torch.linspace(1, 0.001, 1000, dtype=torch.float64), torch.linspace(1000, 1, 1000)
        sampling = torch.tensor([999, 700, 400])
        for i, t in enumerate(sampling):
            z = start(scheduler, dtype, shape)[samples] * (i + 1) / 2
            x = keep(
                scheduler.step(
                    model(x), t, x, cur_sampling_step=i, dmd_noisy_tensor=z, dmd_sigmas=table, dmd_timesteps=times, all_timesteps=sampling
                )
            )
        return outputs
    old, mask = None, (torch.arange(6) % 2).to(dtype).expand(SHAPE)[samples]
    original = start(scheduler, dtype).flip(2)[samples] if name == "RePaintScheduler" else None
    times = list(scheduler.timesteps)
    if name == "SCMScheduler":
        times = times[:-1]
    if name == "DDPMWuerstchenScheduler":
        times = [t.expand(x.shape[0]) for t in times[:-1]]
    for i, t in enumerate(times):
        inside = x
        if hasattr(scheduler, "scale_model_input"):
            inside = scheduler.scale_model_input(x, t)
            outputs.append(inside)
        said = model(inside)
        if name == "CogVideoXDPMScheduler":
            x = call(scheduler.step, said, old, t, times[i - 1] if i else None, x)
            old = outputs[-1]
        elif name == "RePaintScheduler":
            x = call(scheduler.step, said, t, x, original, mask)
            if i == 2:
                x = scheduler.undo_step(x, t - scheduler.config.num_train_timesteps // 10, **({"generator": draws} if seeds is None else noise))
                outputs.append(x)
        elif name == "RFD4ProteinaScheduler":
            own = [torch.Generator().manual_seed(100 * i + k) for k in range(x.shape[0])]
            emitted = torch.ones(x.shape[:2], dtype=dtype)
            emitted[:, 2] = 0
            x = keep(scheduler.step(said, t, x, emitted, **({"generator": own} if seeds is None else noise)))
        elif name == "PiflowScheduler":
            parts = [model(x) for _ in range(grid_size)]
            x = call(scheduler.step, torch.cat(parts, -1), t, x)
        else:
            x = call(scheduler.step, said, t, x, **(step or {}))
    return outputs


def pair(value):
    name, config, options = value
    return theirs(name)(**config), getattr(ours, name)(**config), options


def assert_equal_tables(reference, scheduler):
    for table in ("timesteps", "sigmas", "betas", "alphas_cumprod", "discrete_sigmas", "schedule"):
        expected, result = (getattr(s, table, None) for s in (reference, scheduler))
        if isinstance(expected, torch.Tensor):
            assert torch.equal(expected, result), table
        else:
            assert np.array_equal(expected, result), table


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", CASES, ids=[label(c) for c in CASES])
def test_trajectory(value):
    reference, scheduler, options = pair(value)
    expected, result = run(reference, **options), run(scheduler, **options)
    assert_equal_tables(reference, scheduler)
    assert len(expected) == len(result) > 0
    scale = 1.0
    for i, (a, b) in enumerate(zip(expected, result, strict=True)):
        assert a.dtype == b.dtype, (i, a.dtype, b.dtype)
        if options.get("nan"):
            assert torch.equal(a.isnan(), b.isnan()), i
            continue
        assert torch.isfinite(a).all(), i
        # Rounding at high noise stays, at its size.
        scale = max(scale, a.abs().max().item())
        torch.testing.assert_close(b, a, rtol=0, atol=2e-5 * scale, msg=lambda m, i=i: f"output {i}: {m}")
