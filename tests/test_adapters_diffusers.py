"""Every continuous scheduler of diffusers beside pyfold's of the same name: same tables and numbers, its arithmetic unused."""

import copy
import inspect
import itertools
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import pyfold

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("torchsde", reason="two schedulers are placeholders without it")
pytest.importorskip("scipy", reason="one scheduler is a placeholder without it")

from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler  # noqa: E402

from pyfold._requirements import install_command  # noqa: E402
from pyfold.adapters import diffusers as ours  # noqa: E402
from pyfold.adapters.diffusers import _rows  # noqa: E402
from pyfold.adapters.diffusers._sigmas import _torchsde_noise  # noqa: E402

SHAPE = (3, 4, 6, 6)
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EPS, X0, V, FLOW = ({"prediction_type": p} for p in ("epsilon", "sample", "v_prediction", "flow_prediction"))
#: Of tokens and masks, where nothing is added to anything.
DISCRETE = {
    "AmusedScheduler",
    "BlockRefinementScheduler",
    "DiscreteDDIMScheduler",
    "EntropyBoundScheduler",
    "VQDiffusionScheduler",
}


def mine(name):
    """pyfold's class; what an older diffusers lacks is skipped."""
    if not hasattr(ours, name) and tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 42):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    return getattr(ours, name)


def theirs(name):
    return next(c for c in mine(name).__mro__ if c.__module__.startswith("diffusers."))


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
for name in ("LCMScheduler", "TCDScheduler"):
    case(name, {}, timesteps={"timesteps": [999, 759, 499, 259]})
case("TCDScheduler", {}, step={"eta": 0.0})
case("TCDScheduler", {}, step={"eta": 0.77})
case("PNDMScheduler", *grid([EPS, V], [{}, {"skip_prk_steps": True}], [{}, {"set_alpha_to_one": True}]))
case("PNDMScheduler", *({**s, "skip_prk_steps": True} for s in SPACINGS))
case("IPNDMScheduler", {})

case("EulerDiscreteScheduler", *grid([EPS, X0, V], [{}, {"use_karras_sigmas": True}], [{}, {"final_sigmas_type": "sigma_min"}]))
case("EulerDiscreteScheduler", *SIGMAS, *SPACINGS, {"interpolation_type": "log_linear"}, {"rescale_betas_zero_snr": True})
case(
    "EulerDiscreteScheduler",
    {**V, "timestep_type": "continuous", "sigma_min": 0.01, "sigma_max": 20.0, "use_karras_sigmas": True},
)
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
case("DPMSolverMultistepScheduler", {}, timesteps={"timesteps": [990, 700, 420, 333, 100, 20]})
case("DPMSolverMultistepScheduler", THRESHOLDING, {**THRESHOLDING, **DETERMINISTIC[1]}, {"euler_at_final": True})
case("DPMSolverMultistepScheduler", {**FLOW, "use_flow_sigmas": True, "flow_shift": 3.0}, {"variance_type": "learned_range"})
case(
    "DPMSolverMultistepScheduler",
    {"lower_order_final": False},
    {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
)
INVERSE = [{"algorithm_type": a} for a in ("dpmsolver++", "dpmsolver")]
case("DPMSolverMultistepInverseScheduler", *grid([VP], INVERSE, ORDERS, SOLVERS), X0, V, *SIGMAS[1:3], *SPACINGS)
case("DPMSolverMultistepInverseScheduler", SIGMAS[3], double=True)
# Backwards the variance of their noise is negative: NaN, here as there.
SINGLESTEP = [{"lower_order_final": True}, {}]
case("DPMSolverSinglestepScheduler", *grid([VP], DETERMINISTIC, ORDERS, SOLVERS, SINGLESTEP), steps=12)
case("DPMSolverSinglestepScheduler", *grid([VP], STOCHASTIC[:1], ORDERS, SOLVERS), X0, V, THRESHOLDING, *SIGMAS[1:], steps=12)
case("DPMSolverSinglestepScheduler", {**FLOW, "use_flow_sigmas": True, "solver_order": 2}, steps=12)
case("EDMDPMSolverMultistepScheduler", *grid([EPS, V], ORDERS, SOLVERS), {"sigma_schedule": "exponential"}, THRESHOLDING)
case("EDMDPMSolverMultistepScheduler", *grid(STOCHASTIC[:1], ORDERS[:2], SOLVERS), {"final_sigmas_type": "sigma_min"})
case("CosineDPMSolverMultistepScheduler", *grid(ORDERS[:2], SOLVERS), EPS, {"sigma_schedule": "karras"})
case("DEISMultistepScheduler", *grid([VP], [EPS, X0, V], ORDERS), THRESHOLDING, *SIGMAS[1:], *SPACINGS)
case("DEISMultistepScheduler", {**FLOW, "use_flow_sigmas": True}, *grid([VP], [FLOW], ORDERS), {**FLOW, **THRESHOLDING})
BH = [{"solver_type": "bh2"}, {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}]
case("UniPCMultistepScheduler", *grid([VP], [EPS, X0, V], ORDERS, BH), *SIGMAS[1:], *SPACINGS, THRESHOLDING)
case("UniPCMultistepScheduler", *grid([{"predict_x0": False, "final_sigmas_type": "sigma_min"}], [EPS, X0, V], ORDERS))
case("UniPCMultistepScheduler", {"disable_corrector": [0, 3]}, {"lower_order_final": False, "final_sigmas_type": "sigma_min"})
case(
    "UniPCMultistepScheduler",
    {**FLOW, "use_flow_sigmas": True, "flow_shift": 3.0},
    {**FLOW, "use_flow_sigmas": True, "solver_order": 3},
)
ADAMS = [{"predictor_order": p, "corrector_order": c} for p, c in ((1, 1), (2, 2), (3, 3), (3, 4), (2, 1), (1, 3), (4, 4))]
case("SASolverScheduler", *grid([VP], ADAMS, [{}, {"algorithm_type": "noise_prediction"}]))
case("SASolverScheduler", X0, V, THRESHOLDING, *SIGMAS[1:], *SPACINGS)
case("SASolverScheduler", {**FLOW, "use_flow_sigmas": True}, {"lower_order_final": False})

case(
    "FlowMatchEulerDiscreteScheduler",
    {},
    {"shift": 3.0},
    {"stochastic_sampling": True},
    {"invert_sigmas": True},
    {"shift_terminal": 0.1},
)
case("FlowMatchEulerDiscreteScheduler", *SIGMAS[1:])
case("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, timesteps={"mu": 0.9})
case("FlowMatchEulerDiscreteScheduler", {}, timesteps={"sigmas": [1.0, 0.8, 0.3, 0.1]})
case("FlowMatchHeunDiscreteScheduler", {}, {"shift": 3.0})
case("FlowMatchHeunDiscreteScheduler", {}, step={"s_churn": 2.0})
case("FlowMatchLCMScheduler", {}, {"shift": 2.0})
case("FlowMatchLCMScheduler", {"scale_factors": [1.0, 1.0, 1.5, 2.0]}, steps=5)
case("FlowMapEulerDiscreteScheduler", {}, {"shift": 3.0})
case(
    "LTXEulerAncestralRFScheduler",
    {},
    {"eta": 0.5},
    {"eta": 0.0},
    {"s_noise": 0.9},
    timesteps={"sigmas": [1.0, 0.8, 0.55, 0.3, 0.1, 0.0]},
)
case("MiniMaxH3Scheduler", {}, {"shift": 3.0})
case("HeliosScheduler", *grid([{"stages": 1}], [{"scheduler_type": "euler"}, {}]))
# From pure noise theirs is NaN with bh1 or order 3.
case(
    "HeliosScheduler",
    *grid([{}, {"solver_type": "bh1", "lower_order_final": False}], [{}, {"solver_order": 3}]),
    timesteps={"stage_index": 1},
)
case("HeliosDMDScheduler", {})
case("PiflowScheduler", {}, {"shift": 1.0, "n_grid": 4, "num_policy_substeps": 30}, {"n_grid": 14})
case(
    "RFD4ProteinaScheduler",
    *grid(
        [{"tsr_k": 1.3, "tsr_sigma": 0.7}],
        [{"schedule_mode": m} for m in ("log", "power")],
        [{"noise_mode": m} for m in ("1/t", "tan")],
    ),
    steps=30,
)
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
        output = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if self.positive:
            output[:, self.shape[1] :] = 0.1 + output[:, self.shape[1] :].abs()
        if x.shape[2:] == shape[2:]:
            output[:, : x.shape[1]] += 0.1 * torch.tanh(x.double())
        else:
            output = torch.randn(x.shape, generator=self.generator, dtype=torch.float64)
        return output.to(self.dtype)


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


def run(
    scheduler,
    dtype=torch.float32,
    output_dtype=None,
    samples=slice(None),
    seeds=None,
    generator=True,
    step=None,
    positive=False,
    **options,
):
    """All outputs of a trajectory, in order.

    ``dtype`` of the state, ``output_dtype`` of the model's output; ``samples`` of the batch; ``generator``: draw from torch's;
    ``positive``: the second half of the model's channels.
    """
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
    network = Network(output_dtype or dtype, channels, positive, shape)
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
        for t in scheduler.timesteps:
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
                    model(x),
                    t,
                    x,
                    cur_sampling_step=i,
                    dmd_noisy_tensor=z,
                    dmd_sigmas=table,
                    dmd_timesteps=times,
                    all_timesteps=sampling,
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
        output = model(inside)
        if name == "CogVideoXDPMScheduler":
            x = call(scheduler.step, output, old, t, times[i - 1] if i else None, x)
            old = outputs[-1]
        elif name == "RePaintScheduler":
            x = call(scheduler.step, output, t, x, original, mask)
            if i == 2:
                x = scheduler.undo_step(
                    x, t - scheduler.config.num_train_timesteps // 10, **({"generator": draws} if seeds is None else noise)
                )
                outputs.append(x)
        elif name == "RFD4ProteinaScheduler":
            own = [torch.Generator().manual_seed(100 * i + k) for k in range(x.shape[0])]
            emitted = torch.ones(x.shape[:2], dtype=dtype)
            emitted[:, 2] = 0
            x = keep(scheduler.step(output, t, x, emitted, **({"generator": own} if generator and seeds is None else noise)))
        elif name == "PiflowScheduler":
            parts = [model(x) for _ in range(grid_size)]
            x = call(scheduler.step, torch.cat(parts, -1), t, x)
        else:
            x = call(scheduler.step, output, t, x, **(step or {}))
    return outputs


def pair(value):
    name, config, options = value
    return theirs(name)(**config), mine(name)(**config), options


def assert_equal_tables(reference, scheduler):
    for table in ("timesteps", "sigmas", "betas", "alphas_cumprod", "discrete_sigmas", "schedule"):
        expected, result = (getattr(s, table, None) for s in (reference, scheduler))
        if isinstance(expected, torch.Tensor):
            assert torch.equal(expected, result), table
        else:
            assert np.array_equal(expected, result), table


#: What diffusers computes with; their tables, indices and orders stay in use.
ARITHMETIC = [
    "step",
    "step_prk",
    "step_plms",
    "step_pred",
    "step_correct",
    "step_euler",
    "step_unipc",
    "undo_step",
    "batch_step_no_noise",
    "add_noise",
    "add_noise_to_input",
    "scale_noise",
    "get_velocity",
    "convert_model_output",
    "convert_flow_pred_to_x0",
    "dpm_solver_first_order_update",
    "multistep_dpm_solver_second_order_update",
    "multistep_dpm_solver_third_order_update",
    "singlestep_dpm_solver_update",
    "singlestep_dpm_solver_second_order_update",
    "singlestep_dpm_solver_third_order_update",
    "deis_first_order_update",
    "multistep_deis_second_order_update",
    "multistep_deis_third_order_update",
    "multistep_uni_p_bh_update",
    "multistep_uni_c_bh_update",
    "stochastic_adams_bashforth_update",
    "stochastic_adams_moulton_update",
    "get_coefficients_fn",
    "get_lms_coefficient",
    "precondition_inputs",
    "precondition_outputs",
    "get_scalings_for_boundary_condition",
    "get_adjacent_sigma",
    "get_scalings_for_boundary_condition_discrete",
    "_get_prev_sample",
    "_get_variance",
    "_batch_get_variance",
    "_threshold_sample",
    "_policy_step",
]


def forbid(name, monkeypatch):
    """Makes diffusers' arithmetic of a class raise; scale_model_input too where it scales."""

    def forbidden(*args, **kwargs):
        raise AssertionError("diffusers' own arithmetic was entered")

    for cls in {theirs(name), *theirs(name).__mro__}:
        if not cls.__module__.startswith("diffusers.schedulers"):
            continue
        scales = "sigma" in inspect.getsource(cls.scale_model_input) if hasattr(cls, "scale_model_input") else False
        for method in (*ARITHMETIC, *(["scale_model_input"] if scales else [])):
            if method in vars(cls):
                monkeypatch.setattr(cls, method, forbidden)


def assert_equal_runs(expected, result, tolerance, nan=False):
    assert len(expected) == len(result) > 0
    scale = 1.0
    for i, (a, b) in enumerate(zip(expected, result, strict=True)):
        assert a.dtype == b.dtype, (i, a.dtype, b.dtype)
        if nan:
            assert torch.equal(a.isnan(), b.isnan()), i
            continue
        assert torch.isfinite(a).all(), i
        # Rounding at high noise stays, at its size.
        scale = max(scale, a.abs().max().item())
        torch.testing.assert_close(b, a, rtol=0, atol=tolerance * scale, msg=lambda m, i=i: f"output {i}: {m}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", CASES, ids=[label(c) for c in CASES])
def test_trajectory(value, monkeypatch):
    reference, scheduler, options = pair(value)
    expected = run(reference, **options)
    forbid(value[0], monkeypatch)
    result = run(scheduler, **options)
    assert_equal_tables(reference, scheduler)
    assert_equal_runs(expected, result, 2e-5, options.get("nan", False))


#: Their step rounds to float32 inside, in the state or in what it makes of the tables.
ROUNDED = {
    *("EulerDiscrete", "EulerAncestralDiscrete", "EDMEuler", "LCM", "DPMSolverSDE", "DPMSolverMultistep", "KarrasVe", "SCM"),
    *("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "LTXEulerAncestralRF", "Piflow", "RFD4Proteina"),
    *("ScoreSdeVe", "ScoreSdeVp"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", CASES, ids=[label(c) for c in CASES])
def test_trajectory_in_float64(value):
    """States and tables in float64: the formulas are the same to rounding."""
    reference, scheduler, options = pair(value)
    rounded = value[0].removesuffix("Scheduler") in ROUNDED or value[1].get("scheduler_type") == "euler"
    options = {**options, "dtype": torch.float64, "double": True}
    expected, result = run(reference, **options), run(scheduler, **options)
    assert_equal_runs(expected, result, 3e-6 if rounded else 1e-12, options.get("nan", False))


# --- every scheduler is here, and is diffusers'


def exported():
    names = {name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")}
    return names | {"KarrasVeScheduler", "ScoreSdeVpScheduler"}


def test_all_names_every_continuous_scheduler():
    assert set(ours.__all__) == exported() - DISCRETE
    assert {name for name, _, _ in CASES} == set(ours.__all__)


PUBLIC = [
    m
    for m in ARITHMETIC
    if not m.startswith(("_", "convert", "precond", "get_s", "get_c", "get_l", "get_a")) and "update" not in m
]


@pytest.mark.parametrize("name", ours.__all__)
def test_subclass_with_the_same_methods(name):
    cls, original = mine(name), theirs(name)
    assert cls.__name__ == original.__name__ and issubclass(cls, original) and cls is not original
    assert cls._compatibles == original._compatibles
    # Pipelines look for arguments such as timesteps, sigmas and eta in them.
    for method in (*PUBLIC, "scale_model_input", "set_timesteps", "__init__"):
        assert hasattr(cls, method) == hasattr(original, method), method
        if hasattr(original, method):
            expected = inspect.signature(getattr(original, method)).parameters
            result = [p for p in inspect.signature(getattr(cls, method)).parameters.values() if p.name != "seeds"]
            assert [p.name for p in result] == list(expected), method
            # None for the noise asks for seeds'.
            defaults = [(p.default, expected[p.name].default) for p in result if p.name != "noise"]
            assert all(a == b for a, b in defaults), method


ONE_EACH = {name: (name, config, options) for name, config, options in reversed(CASES)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ours.__all__)
def test_config_round_trips(name, tmp_path):
    _, config, options = ONE_EACH[name]
    cls, original = mine(name), theirs(name)
    scheduler = cls.from_config(original(**config).config)
    assert type(scheduler) is cls
    back = original.from_config(scheduler.config)
    assert type(back) is original
    assert {**scheduler.config} == {**back.config} == {**original(**config).config}
    original(**config).save_pretrained(tmp_path / "theirs")
    cls(**config).save_pretrained(tmp_path / "ours")
    assert (tmp_path / "theirs/scheduler_config.json").read_text() == (tmp_path / "ours/scheduler_config.json").read_text()
    assert type(cls.from_pretrained(tmp_path / "theirs")) is cls
    assert type(original.from_pretrained(tmp_path / "ours")) is original


def test_other_schedulers_configs_are_taken():
    config = diffusers.PNDMScheduler(**VP, steps_offset=1, skip_prk_steps=True).config
    for name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler"):
        reference, scheduler = theirs(name).from_config(config), mine(name).from_config(config)
        assert {**reference.config} == {**scheduler.config}
        assert reference.compatibles == scheduler.compatibles


@pytest.mark.filterwarnings("ignore")
def test_pickle_and_deepcopy():
    scheduler = ours.UniPCMultistepScheduler(**VP)
    expected = run(scheduler)
    for other in (pickle.loads(pickle.dumps(scheduler)), copy.deepcopy(scheduler)):
        assert type(other) is ours.UniPCMultistepScheduler
        assert all(torch.equal(a, b) for a, b in zip(expected, run(other), strict=True))


# --- noising


NOISING = [
    n
    for n in ours.__all__
    if hasattr(theirs(n), "add_noise") and n not in ("KarrasVeScheduler", "RePaintScheduler", "HeliosDMDScheduler")
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("name", NOISING)
def test_add_noise(name, prepared, monkeypatch):
    reference, scheduler, options = pair(ONE_EACH[name])
    shape = (3, 5, 3) if name == "RFD4ProteinaScheduler" else SHAPE
    x, noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3))
    if prepared or name in ("DDPMWuerstchenScheduler", "RFD4ProteinaScheduler"):
        for s in (reference, scheduler):
            prepare(s, **{k: options[k] for k in ("steps", "timesteps") if k in options})
    if name in ("RFD4ProteinaScheduler", "DDPMWuerstchenScheduler"):
        times = torch.tensor([0.1, 0.5, 0.9])
    elif name in ("ScoreSdeVeScheduler", "PNDMScheduler"):
        times = torch.tensor([0, 3, 7])
    else:
        times = reference.timesteps[[0, len(reference.timesteps) // 2, 1]]
        if hasattr(reference, "alphas_cumprod") and reference.add_noise.__code__.co_names[0] == "alphas_cumprod":
            times = times.long()
    expected = reference.add_noise(x, noise, times)
    forbid(name, monkeypatch)
    result = scheduler.add_noise(x, noise, times)
    assert result.dtype == expected.dtype
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6 * max(1, expected.abs().max().item()))
    # One timestep for all samples.
    alone = scheduler.add_noise(x, noise, times[:1].expand(3))
    torch.testing.assert_close(scheduler.add_noise(x, noise, times[:1]) if name != "RFD4ProteinaScheduler" else alone, alone)
    # Noise from seeds is that of the kernel, whatever the split.
    seeded = scheduler.add_noise(x, None, times, seeds=[4, 5, 6])
    explicit = scheduler.add_noise(x, pyfold.randn(torch.tensor([4, 5, 6]), shape[1:], stream=2), times)
    torch.testing.assert_close(seeded, explicit, rtol=0, atol=1e-5 * max(1, expected.abs().max().item()))
    assert torch.equal(scheduler.add_noise(x[1:2], None, times[1:2], seeds=[5]), seeded[1:2])
    if name != "ScoreSdeVeScheduler":
        # That one draws then, as diffusers' does.
        with pytest.raises(ValueError, match="noise must be given, or seeds"):
            scheduler.add_noise(x, None, times)


@pytest.mark.parametrize(
    "name", [n for n in ours.__all__ if hasattr(theirs(n), "add_noise") and hasattr(theirs(n), "set_begin_index")]
)
@pytest.mark.filterwarnings("ignore")
def test_add_noise_from_begin_index(name):
    reference, scheduler, options = pair(ONE_EACH[name])
    if name == "HeliosDMDScheduler":
        pytest.skip("brings its own tables")
    x, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    results = []
    for s in (reference, scheduler):
        prepare(s, **{k: options[k] for k in ("steps", "timesteps") if k in options})
        s.set_begin_index(2)
        times = s.timesteps[2:3]
        noisy = s.add_noise(x, noise, times.repeat(3))
        inside = s.scale_model_input(noisy, times[0]) if hasattr(s, "scale_model_input") else noisy
        kwargs = {"generator": torch.Generator().manual_seed(1)} if "generator" in inspect.signature(s.step).parameters else {}
        results.append([noisy, inside, s.step(noise, times[0], noisy, **kwargs)[0]])
    assert_equal_runs(*results, 2e-5)


@pytest.mark.parametrize("name", [n for n in ours.__all__ if hasattr(theirs(n), "scale_noise")])
def test_scale_noise(name):
    reference, scheduler, options = pair(ONE_EACH[name])
    x, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    for s in (reference, scheduler):
        prepare(s, steps=5)
    times = reference.timesteps[:1] if name == "FlowMatchHeunDiscreteScheduler" else reference.timesteps[[0, 3, 1]]
    expected = reference.scale_noise(x, times, noise)
    torch.testing.assert_close(scheduler.scale_noise(x, times, noise), expected, rtol=0, atol=1e-6)
    seeded = scheduler.scale_noise(x, times, None, seeds=11)
    explicit = scheduler.scale_noise(x, times, pyfold.randn([11, 12, 13], SHAPE[1:], stream=2))
    torch.testing.assert_close(seeded, explicit, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in ours.__all__ if hasattr(theirs(n), "get_velocity")])
def test_get_velocity(name):
    reference, scheduler, _ = pair(ONE_EACH[name])
    x, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    times = torch.tensor([999, 3, 500])
    times = times.float() if name == "EulerDiscreteScheduler" else times
    expected = reference.get_velocity(x, noise, times)
    torch.testing.assert_close(scheduler.get_velocity(x, noise, times), expected, rtol=0, atol=2e-6)


def test_half_precision_samples_do_not_round_the_schedule():
    """In half precision theirs adds no noise at the first timesteps."""
    x, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3)).bfloat16()
    times = torch.tensor([0, 0, 0])
    exact = ours.DDPMScheduler().add_noise(x.double(), noise.double(), times)
    result = ours.DDPMScheduler().add_noise(x, noise, times)
    assert result.dtype == torch.bfloat16 and torch.equal(result, exact.bfloat16())
    assert not torch.equal(diffusers.DDPMScheduler().add_noise(x, noise, times), result)


# --- noise from seeds

STOCHASTIC_CASES = [
    ONE_EACH[name]
    for name in ours.__all__
    if name != "DPMSolverMultistepInverseScheduler"  # which refuses its stochastic settings
    and any(
        "seeds" in inspect.signature(getattr(mine(name), m)).parameters
        for m in ("step", "step_pred", "add_noise_to_input")
        if hasattr(mine(name), m)
    )
]
#: A configuration and arguments with which each of them draws.
DRAWS = {
    "DDIMScheduler": ({}, {"step": {"eta": 1.0}}),
    "DDIMParallelScheduler": ({}, {"step": {"eta": 0.5}}),
    "EulerDiscreteScheduler": ({}, {"step": {"s_churn": 3.0}}),
    "EDMEulerScheduler": ({}, {"step": {"s_churn": 3.0}}),
    "FlowMatchHeunDiscreteScheduler": ({}, {"step": {"s_churn": 3.0}}),
    "FlowMatchEulerDiscreteScheduler": ({"stochastic_sampling": True}, {}),
    "DPMSolverMultistepScheduler": ({"algorithm_type": "sde-dpmsolver++"}, {}),
    "DPMSolverSinglestepScheduler": ({"algorithm_type": "sde-dpmsolver++"}, {}),
    "EDMDPMSolverMultistepScheduler": ({"algorithm_type": "sde-dpmsolver++"}, {}),
    "DPMSolverSDEScheduler": ({}, {}),
    "RePaintScheduler": ({"eta": 1.0}, {}),
    "SASolverScheduler": ({"tau_func": lambda t: 0.7}, {}),
    "SCMScheduler": ({}, {"steps": 4}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", STOCHASTIC_CASES, ids=[v[0] for v in STOCHASTIC_CASES])
def test_seeds_are_the_same_for_every_split(value):
    name, config, options = value
    if name in DRAWS:
        config, options = DRAWS[name]
    options = {k: v for k, v in options.items() if k != "dtype"}
    make = lambda: mine(name)(**config)  # noqa: E731
    whole = run(make(), seeds=[7, 8, 9], **options)
    again, counted = run(make(), seeds=torch.tensor([7, 8, 9]), **options), run(make(), seeds=7, **options)
    # Samples alone draw the same; theirs of the Langevin corrector is by the batch's norms and stays out.
    batched = name != "ScoreSdeVeScheduler"
    parts = [run(make(), seeds=[7 + k], samples=slice(k, k + 1), **options) for k in range(3)] if batched else []
    for i, output in enumerate(whole):
        assert torch.isfinite(output).all()
        assert torch.equal(output, again[i]) and torch.equal(output, counted[i]), i
        if batched:
            assert torch.equal(output, torch.cat([part[i] for part in parts])), i
    other = run(make(), seeds=[1, 2, 3], **options)
    assert not torch.equal(whole[-1], other[-1])
    # Set, they hold whatever generator a pipeline passes.
    scheduler = make()
    scheduler.set_seeds([7, 8, 9])
    assert all(torch.equal(a, b) for a, b in zip(whole, run(scheduler, **options), strict=True))
    scheduler.set_seeds(None)
    assert not torch.equal(whole[-1], run(scheduler, **options)[-1])


@pytest.mark.parametrize(
    "name", ["EulerAncestralDiscreteScheduler", "DDPMScheduler", "LTXEulerAncestralRFScheduler", "LCMScheduler"]
)
@pytest.mark.filterwarnings("ignore")
def test_seeds_have_the_variance_of_the_generator(name):
    """The step's noise is standard normal times the same coefficient, within 5 standard errors."""
    scheduler = mine(name)()
    prepare(scheduler, timesteps={"sigmas": [1.0, 0.8, 0.3, 0.0]} if name.startswith("LTX") else None)
    t, zero = scheduler.timesteps[1], torch.zeros(4, 50_000)
    drawn = []
    for noise in ({"generator": torch.Generator().manual_seed(0)}, {"seeds": 0}):
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = 1
        drawn.append(scheduler.step(zero, t, zero, **noise)[0].double())
    std = drawn[0].std()
    assert std > 0.01
    error = std / (2 * zero.numel()) ** 0.5
    assert abs(drawn[1].std() - std) < 5 * 2**0.5 * error
    assert abs(drawn[1].mean()) < 5 * std / zero.numel() ** 0.5
    assert abs((drawn[0] * drawn[1]).mean()) < 5 * std**2 / zero.numel() ** 0.5


def test_seeds_and_noise_exclude_each_other():
    scheduler = ours.DDIMScheduler()
    scheduler.set_timesteps(5)
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="seeds and generator"):
        scheduler.step(x, 800, x, eta=1.0, generator=torch.Generator(), seeds=1)
    with pytest.raises(ValueError, match="seeds must not be given"):
        scheduler.step(x, 800, x, eta=1.0, variance_noise=x, seeds=1)
    with pytest.raises(ValueError, match="variance_noise and generator"):
        scheduler.step(x, 800, x, eta=1.0, variance_noise=x, generator=torch.Generator())
    with pytest.raises(ValueError, match="one for each of the 3 samples, got 2"):
        scheduler.step(x, 800, x, eta=1.0, seeds=[1, 2])
    with pytest.raises(TypeError, match="seeds must be an int"):
        scheduler.set_seeds(1.5)


# --- other ways to call a step


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in ours.__all__ if hasattr(theirs(n), "step")])
def test_tuple_and_output(name):
    if name in (
        "KarrasVeScheduler",
        "HeliosDMDScheduler",
        "RFD4ProteinaScheduler",
        "RePaintScheduler",
        "CogVideoXDPMScheduler",
        "PiflowScheduler",
    ):
        pytest.skip("takes more than a model's output; its trajectories cover both")
    outputs = []
    for cls in (theirs(name), mine(name)):
        for return_dict in (True, False):
            _, config, options = ONE_EACH[name]
            scheduler = cls(**config)
            prepare(scheduler, **{k: options[k] for k in ("steps", "timesteps") if k in options})
            x, t = start(scheduler, torch.float32), scheduler.timesteps[0]
            t = t.expand(3) if name == "DDPMWuerstchenScheduler" else t
            outputs.append(scheduler.step(x, t, x, return_dict=return_dict))
    assert type(outputs[0]) is type(outputs[2]) and outputs[0].keys() == outputs[2].keys()
    assert type(outputs[1]) is type(outputs[3]) is tuple and len(outputs[1]) == len(outputs[3])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [n for n in ours.__all__ if not n.startswith(("KarrasVe", "RFD4", "HeliosDMD"))])
def test_half_precision(name, dtype):
    """Output dtypes are theirs; against float32, the error is no larger than theirs."""
    _, config, options = ONE_EACH[name]
    options = {**options, "dtype": dtype}
    exact = run(theirs(name)(**config), **{**options, "dtype": torch.float64})
    expected, result = run(theirs(name)(**config), **options), run(mine(name)(**config), **options)
    assert [a.dtype for a in expected] == [b.dtype for b in result]
    scale = max(a.abs().max().item() for a in exact)
    error = [
        max((a.double() - e).abs().max().item() for a, e in zip(outputs, exact, strict=True)) for outputs in (expected, result)
    ]
    # Noise drawn in half precision is another than float64's; then only the size is compared.
    assert error[1] <= max(2 * error[0], scale * torch.finfo(dtype).eps * 4), (error, scale)


#: One of each kind of prediction and algorithm, without those in which theirs multiplies matrices of two dtypes.
MIXED = {
    (c[0], *(c[1].get(k) for k in ("prediction_type", "algorithm_type", "thresholding", "predict_x0"))): c
    for c in CASES
    if not (c[0] == "UniPCMultistepScheduler" and c[1].get("solver_order") == 3)
}.values()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", MIXED, ids=[label(c) for c in MIXED])
def test_dtypes_of_a_float32_state_and_a_half_precision_model(value):
    reference, scheduler, options = pair(value)
    options = {**options, "dtype": torch.float32, "output_dtype": torch.bfloat16}
    expected, result = run(reference, **options), run(scheduler, **options)
    assert [a.dtype for a in expected] == [b.dtype for b in result]


@pytest.mark.parametrize("shape", [(3, 7), (3, 5, 6), (2, 4, 3, 6, 6)])
@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler"]
)
def test_any_shape(name, shape):
    if name == "UniPCMultistepScheduler" and len(shape) == 2:
        shape = (3, 7, 1)
    outputs = []
    for cls in (theirs(name), mine(name)):
        scheduler, draws = cls(), torch.Generator().manual_seed(3)
        scheduler.set_timesteps(6)
        x, kept = torch.randn(shape, generator=draws), []
        noise = {"generator": draws} if name == "DDPMScheduler" else {}
        for t in scheduler.timesteps:
            x = scheduler.step(torch.randn(shape, generator=draws), t, x, **noise).prev_sample
            kept.append(x)
        outputs.append(kept)
    assert_equal_runs(*outputs, 2e-5)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler"])
@pytest.mark.filterwarnings("ignore")
def test_any_layout(name):
    """A state in channels-last order stays so; slices of a larger tensor are read in place."""
    both = torch.randn(2 * SHAPE[0], *SHAPE[1:], generator=torch.Generator().manual_seed(3))
    outputs = []
    for layout in (torch.contiguous_format, torch.channels_last):
        scheduler = mine(name)()
        scheduler.set_timesteps(6)
        scheduler.set_seeds(4)
        x = start(scheduler, torch.float32).to(memory_format=layout)
        model = both[::2] if layout is torch.channels_last else both[::2].contiguous()
        for t in scheduler.timesteps:
            x = scheduler.step(model, t, x).prev_sample
            assert x.is_contiguous(memory_format=layout)
        outputs.append(x)
    assert torch.equal(*outputs)


#: A corrected state that is an output; a known and an unknown part; more outputs than a pass takes.
PASSES = {"HeliosScheduler": 2, "RePaintScheduler": 2, "PiflowScheduler": 2}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in ours.__all__ if not n.startswith(("KarrasVe", "ScoreSde", "HeliosDMD"))])
def test_a_step_is_one_pass(name, monkeypatch):
    from pyfold.adapters.diffusers import _fused

    calls, steps = [], []
    step, affine_step = mine(name).step, _fused.affine_step
    monkeypatch.setattr(_fused, "affine_step", lambda *a, **k: calls.append(len(steps)) or affine_step(*a, **k))

    def counted(self, *args, **kwargs):
        steps.append(1)
        try:
            return step(self, *args, **kwargs)
        finally:
            steps.append(0)

    counted.__signature__ = inspect.signature(step)
    monkeypatch.setattr(mine(name), "step", counted)
    _, config, options = ONE_EACH[name]
    run(mine(name)(**config), **options)
    inside = [calls.count(k) for k in range(1, len(steps), 2)]
    assert 1 <= max(inside) <= PASSES.get(name, 1), inside


def test_list_of_generators():
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    outputs = []
    for cls in (diffusers.DDPMScheduler, ours.DDPMScheduler):
        scheduler = cls()
        scheduler.set_timesteps(5)
        generators = [torch.Generator().manual_seed(k) for k in range(3)]
        outputs.append([scheduler.step(x, t, x, generator=generators).prev_sample for t in scheduler.timesteps])
    assert_equal_runs(*outputs, 2e-5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.filterwarnings("ignore")
def test_variance_noise(name):
    config = {} if name == "DDIMScheduler" else {"algorithm_type": "sde-dpmsolver++"}
    outputs = []
    for cls in (theirs(name), mine(name)):
        scheduler = cls(**config)
        scheduler.set_timesteps(8)
        x, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
        eta = {"eta": 1.0} if name == "DDIMScheduler" else {}
        outputs.append([scheduler.step(x, scheduler.timesteps[0], x, variance_noise=noise, **eta)[0]])
    assert_equal_runs(*outputs, 2e-5)


SINGLE = [
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
]
SINGLE += [
    "LCMScheduler",
    "TCDScheduler",
    "UnCLIPScheduler",
    "CogVideoXDDIMScheduler",
    "CMStochasticIterativeScheduler",
    "EDMEulerScheduler",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SINGLE)
def test_each_sample_at_its_own_timestep(name):
    scheduler = mine(name)()
    scheduler.set_timesteps(8)
    x, model = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    places = [1, 5, 3]
    takes_seeds = "seeds" in inspect.signature(scheduler.step).parameters
    together = scheduler.step(model, scheduler.timesteps[places], x, **({"seeds": [4, 5, 6]} if takes_seeds else {}))[0]
    for row, place in enumerate(places):
        one = slice(row, row + 1)
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = None
        noise = {"seeds": [4 + row]} if takes_seeds else {}
        alone = scheduler.step(model[one], scheduler.timesteps[place], x[one], **noise)[0]
        assert torch.equal(together[one], alone), row


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_one_timestep_written_for_each_sample(name):
    """Pipelines that have set a begin_index may pass it so; diffusers does not look at it then."""
    outputs = []
    for cls in (theirs(name), mine(name)):
        scheduler, draws = cls(), torch.Generator().manual_seed(3)
        scheduler.set_timesteps(6)
        scheduler.set_begin_index(0)
        x, kept = torch.randn(SHAPE, generator=draws), []
        for t in scheduler.timesteps:
            x = scheduler.step(torch.randn(SHAPE, generator=draws), t.expand(3), x).prev_sample
            kept.append(x)
        outputs.append(kept)
    assert_equal_runs(*outputs, 2e-5)


def test_schedulers_with_a_history_take_one_timestep():
    scheduler = ours.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(8)
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="one for all samples of DPMSolverMultistepScheduler"):
        scheduler.step(x, scheduler.timesteps[[0, 1, 2]], x)


@pytest.mark.parametrize("name", ["DDIMParallelScheduler", "DDPMParallelScheduler"])
@pytest.mark.parametrize("config", [{}, V, THRESHOLDING], ids=str)
def test_batch_step_no_noise(name, config):
    reference, scheduler = theirs(name)(**config), mine(name)(**config)
    x, model = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    for s in (reference, scheduler):
        s.set_timesteps(20)
    times = torch.tensor([950, 500, 0])
    expected = reference.batch_step_no_noise(model, times, x)
    torch.testing.assert_close(scheduler.batch_step_no_noise(model, times, x), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("stochastic", [False, True])
def test_per_token_timesteps(stochastic):
    x, model = torch.randn(2, 3, 7, 5, generator=torch.Generator().manual_seed(3))
    tokens = torch.rand(3, 7, generator=torch.Generator().manual_seed(4)) * 1000
    outputs = []
    for cls in (diffusers.FlowMatchEulerDiscreteScheduler, ours.FlowMatchEulerDiscreteScheduler):
        scheduler = cls(shift=2.0, stochastic_sampling=stochastic)
        scheduler.set_timesteps(6)
        draws = torch.Generator().manual_seed(2)
        t = scheduler.timesteps[0]
        outputs.append([scheduler.step(model, t, x, per_token_timesteps=tokens, generator=draws).prev_sample])
    assert_equal_runs(*outputs, 2e-6)


def test_edm_euler_with_a_given_x0():
    x, model, x0 = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3))
    outputs = []
    for cls in (diffusers.EDMEulerScheduler, ours.EDMEulerScheduler):
        scheduler = cls()
        scheduler.set_timesteps(6)
        outputs.append(list(scheduler.step(model, scheduler.timesteps[2], x, pred_original_sample=x0, return_dict=False)))
    assert_equal_runs(*outputs, 2e-6)


def test_flow_map_off_the_schedule():
    x, model = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3))
    outputs = []
    for cls in (theirs("FlowMapEulerDiscreteScheduler"), mine("FlowMapEulerDiscreteScheduler")):
        scheduler = cls()
        scheduler.set_timesteps(4)
        given = [
            (torch.tensor(987.6), torch.tensor(123.4)),
            (torch.tensor([987.6, 800.1, 3.3]), torch.tensor([400.3, 1.2, 0.5])),
        ]
        outputs.append([scheduler.step(model, t, x, r_timestep=r).prev_sample for t, r in given])
    assert_equal_runs(*outputs, 2e-6)


@pytest.mark.filterwarnings("ignore")
def test_helios_with_the_callers_history():
    """The caller keeps outputs, orders and the last sample, and says the levels."""
    outputs = []
    for cls in (theirs("HeliosScheduler"), mine("HeliosScheduler")):
        scheduler = cls()
        scheduler.set_timesteps(6, stage_index=1)
        draws = torch.Generator().manual_seed(3)
        x, last, kept = torch.randn(SHAPE, generator=draws), None, []
        # One place more than the order, the last for the step to fill.
        history, times, order = [None] * 3, [None] * 3, None
        for i, t in enumerate(scheduler.timesteps):
            before, here, there = (torch.tensor(0.95 - 0.1 * (i + k), dtype=torch.float64) for k in (-1, 0, 1))
            x, history, last, order = scheduler.step_unipc(
                torch.randn(SHAPE, generator=draws), t, x, False, history, times, before, here, there, i, min(i, 2), order, last
            )
            history, times = [*history[1:], None], [*times[1:-1], t, None]
            kept += [x, last]
        outputs.append(kept)
    assert_equal_runs(*outputs, 2e-5)


def test_unipc_with_another_predictor():
    outputs = []
    for module in (diffusers, ours):
        predictor = module.DDIMScheduler(**VP, clip_sample=False)
        scheduler = module.UniPCMultistepScheduler(**VP)
        scheduler.set_timesteps(8)
        predictor.set_timesteps(8)
        scheduler.solver_p = predictor
        network, x = Network(torch.float32), start(scheduler, torch.float32)
        kept = []
        for t in scheduler.timesteps:
            x = scheduler.step(network(x), t.long(), x).prev_sample
            kept.append(x)
        outputs.append(kept)
    assert_equal_runs(*outputs, 2e-5)


@pytest.mark.parametrize(
    "name", ["UniPCMultistepScheduler", "SASolverScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"]
)
@pytest.mark.filterwarnings("ignore")
def test_states_that_the_caller_changes(name):
    """Inpainting pipelines replace a part of the state between steps, some of them in place."""
    outputs = []
    for cls in (theirs(name), mine(name)):
        scheduler = cls(**VP)
        scheduler.set_timesteps(8)
        network, x, draws = Network(torch.float32), start(scheduler, torch.float32), torch.Generator().manual_seed(2)
        kept = []
        noise = {"generator": draws} if name == "SASolverScheduler" else {}
        for t in scheduler.timesteps:
            x = scheduler.step(network(x), t, x, **noise).prev_sample
            kept.append(x.clone())
            x[:, :2] = 0.5
        outputs.append(kept)
    assert_equal_runs(*outputs, 2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        n
        for n in ours.__all__
        if not n.startswith(("KarrasVe", "ScoreSde", "RFD4", "HeliosDMD", "RePaint", "Piflow", "CogVideoXDPM"))
    ],
)
def test_gradients_flow_through_a_step(name):
    gradients = []
    for cls in (theirs(name), mine(name)):
        _, config, options = ONE_EACH[name]
        scheduler = cls(**config)
        prepare(scheduler, **{k: options[k] for k in ("steps", "timesteps") if k in options})
        x = start(scheduler, torch.float32)
        model = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
        channels = 2 if config.get("variance_type") in ("learned", "learned_range") else 1
        model = model.repeat(1, channels, 1, 1).requires_grad_()
        x.requires_grad_()
        noise = (
            {"generator": torch.Generator().manual_seed(1)}
            if "generator" in inspect.signature(scheduler.step).parameters
            else {}
        )
        t = scheduler.timesteps[1]
        result = scheduler.step(model, t.expand(3) if name == "DDPMWuerstchenScheduler" else t, x, return_dict=False, **noise)
        total = sum(
            (k + 1) * (r * torch.linspace(-1, 1, r.numel()).view_as(r)).sum()
            for k, r in enumerate(result)
            if isinstance(r, torch.Tensor)
        )
        grads = torch.autograd.grad(total, (x, model), allow_unused=True)
        gradients.append([torch.zeros(1) if g is None else g for g in grads])
    assert_equal_runs(*gradients, 1e-5)


def test_rows_of_inference_mode_serve_gradients():
    scheduler, x = ours.DPMSolverMultistepScheduler(), torch.randn(SHAPE)
    for requires_grad in (False, True):
        scheduler.set_timesteps(5)
        model = torch.randn(SHAPE, requires_grad=requires_grad)
        with torch.inference_mode(not requires_grad):
            result = scheduler.step(model, scheduler.timesteps[0], x).prev_sample
            scheduler.add_noise(x, x, scheduler.timesteps[:1])
    result.sum().backward()
    assert torch.isfinite(model.grad).all() and model.grad.abs().max() > 0


@pytest.mark.filterwarnings("ignore")
def test_tables_may_be_changed():
    """Rows are kept for a table's values; another table, or other values in it, are noticed."""
    outputs = []
    for cls in (diffusers.EulerDiscreteScheduler, ours.EulerDiscreteScheduler):
        scheduler, kept = cls(), []
        x = torch.ones(SHAPE)
        for change in (lambda s: None, lambda s: s.sigmas.mul_(1.5), lambda s: setattr(s, "sigmas", s.sigmas * 0.5)):
            scheduler.set_timesteps(4)
            scheduler.step(x, scheduler.timesteps[0], x)
            scheduler._step_index = 0
            change(scheduler)
            kept.append(scheduler.step(x * 0.3, scheduler.timesteps[0], x).prev_sample)
        scheduler.set_timesteps(4)
        scheduler.register_to_config(prediction_type="v_prediction")
        kept.append(scheduler.step(x * 0.3, scheduler.timesteps[0], x).prev_sample)
        outputs.append(kept)
    assert_equal_runs(*outputs, 2e-6)


def test_the_last_level_may_be_changed():
    outputs = []
    for cls in (diffusers.DDIMScheduler, ours.DDIMScheduler):
        scheduler, x, kept = cls(), torch.ones(SHAPE), []
        scheduler.set_timesteps(4)
        for last in (1.0, 0.99995):
            scheduler.final_alpha_cumprod = torch.tensor(last)
            kept.append(scheduler.step(x * 0.3, 0, x).prev_sample)
        outputs.append(kept)
    assert_equal_runs(*outputs, 2e-6)


def test_rows_are_computed_once(monkeypatch):
    from pyfold.adapters.diffusers import _rows

    calls = []
    table = _rows._table
    monkeypatch.setattr(_rows, "_table", lambda *args: calls.append(1) or table(*args))
    scheduler = ours.DPMSolverMultistepScheduler()
    for _ in range(3):
        run(scheduler)
    assert len(calls) == 10


class NoReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Raises where a value is read that is not in a scheduler's tables."""

    def __init__(self, scheduler):
        super().__init__()
        self.tables = {t.untyped_storage().data_ptr() for t in vars(scheduler).values() if isinstance(t, torch.Tensor)}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
            for tensor in args:
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.tables:
                    raise AssertionError(f"{func.name()} of {tensor}")
        return func(*args, **(kwargs or {}))


#: Brownian paths are made on the host; the others' indices are diffusers' own look at the timesteps.
READS = (
    "DPMSolverSDE",
    "CosineDPM",
    "DDPMWuerstchen",
    "KarrasVe",
    "HeliosDMD",
    "RFD4",
    "RePaint",
    "CogVideoXDPM",
    "Piflow",
    "ScoreSde",
)


def test_a_read_is_noticed():
    scheduler = ours.EulerDiscreteScheduler()
    with NoReads(scheduler):
        assert scheduler.sigmas[0].item() > 1  # of its own table
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            torch.ones(2)[0].item()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in ours.__all__ if not n.startswith(READS)])
def test_no_step_reads_a_tensor(name):
    """But timesteps of its own tables, which are known on the host."""
    _, config, options = ONE_EACH[name]
    scheduler = mine(name)(**config)
    prepare(scheduler, **{k: options[k] for k in ("steps", "timesteps") if k in options})
    channels = 2 if config.get("variance_type") in ("learned", "learned_range") else 1
    x, model = start(scheduler, torch.float32), torch.randn(SHAPE).repeat(1, channels, 1, 1)
    noise = {"seeds": torch.tensor([1, 2, 3])} if "seeds" in inspect.signature(scheduler.step).parameters else {}
    times = list(scheduler.timesteps)[: -1 if name == "SCMScheduler" else None]
    scheduler.step(model, times[0], x, **noise)
    with NoReads(scheduler):
        for t in times[1:]:
            x = scheduler.step(model, t, x, **noise)[0]
    assert torch.isfinite(x).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["EulerAncestralDiscreteScheduler", "DDPMScheduler", "UniPCMultistepScheduler", "SASolverScheduler"]
)
def test_seeds_give_the_same_bits_on_a_gpu(name):
    results = []
    for device in ("cpu", "cuda"):
        scheduler = mine(name)()
        scheduler.set_timesteps(8)
        x, draws = start(scheduler, torch.float32).to(device), torch.Generator().manual_seed(5)
        scheduler.set_seeds([1, 2, 3])
        for t in scheduler.timesteps:
            x = scheduler.step(torch.randn(SHAPE, generator=draws).to(device), t.to(device), x).prev_sample
        results.append(x.cpu())
    assert torch.equal(*results)


def test_integers_are_no_timesteps():
    scheduler = ours.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    x = torch.zeros(SHAPE)
    for t in (3, torch.tensor(3)):
        with pytest.raises(ValueError, match="timestep must be one of EulerDiscreteScheduler.timesteps"):
            scheduler.step(x, t, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_equal_timesteps_at_the_start_are_steps_each(name):
    """Nine of twenty are 998 here; diffusers starts at the second and runs out of steps at the end."""
    scheduler = mine(name)(beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    x = torch.ones(SHAPE)
    for i, t in enumerate(scheduler.timesteps):
        assert (scheduler.step_index or 0) == i
        x = scheduler.step(x * 0.1, t, x).prev_sample
    assert x.isfinite().all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "UniPCMultistepScheduler"])
def test_shift_terminal_of_one_step(name):
    """There is nothing to stretch: diffusers' sigma is not a number."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"} if name.startswith("UniPC") else {}
    scheduler = mine(name)(shift_terminal=0.1, **flow)
    scheduler.set_timesteps(1)
    torch.testing.assert_close(scheduler.sigmas.cpu(), torch.tensor([1.0, 0.0]), atol=2e-6, rtol=0)
    x = torch.ones(SHAPE)
    assert scheduler.step(x, scheduler.timesteps[0], x).prev_sample.isfinite().all()
    scheduler.set_timesteps(3)
    assert scheduler.sigmas[2].item() == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "EulerDiscreteScheduler"])
def test_a_time_that_is_not_there_is_nan_where_the_host_may_not_look(name, monkeypatch):
    """On the host it is an IndexError; on a device it was the level of the last."""
    scheduler = mine(name)()
    scheduler.set_timesteps(10)
    there, missing = scheduler.timesteps[3:4], torch.tensor([127])
    with pytest.raises(IndexError, match=r"timesteps must be from scheduler.timesteps, got \[127\]"):
        scheduler._in_places("sigmas", scheduler._places(missing, torch.device("cpu")))
    places = scheduler._places(there, torch.device("cpu"))
    assert scheduler._in_places("sigmas", places).item() == scheduler.sigmas[3].item()
    assert scheduler._in_places("sigmas", torch.tensor([3, -1])).isnan().tolist() == [False, True]
    on_meta = scheduler._places(missing.to("meta"), torch.device("meta"))
    assert on_meta.shape == (1,)


@pytest.mark.filterwarnings("ignore")
def test_what_diffusers_gets_wrong():
    x = torch.ones(SHAPE)
    # A logarithm's root.
    scheduler = ours.DDPMScheduler(variance_type="fixed_large_log")
    scheduler.set_timesteps(5)
    assert torch.isfinite(scheduler.step(x, 800, x, seeds=1).prev_sample).all()
    # The last step to zero noise with B(h) = h.
    scheduler = ours.UniPCMultistepScheduler(solver_type="bh1")
    assert all(torch.isfinite(t).all() for t in run(scheduler))
    # No signal left, of which epsilon says nothing.
    scheduler = ours.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="epsilon does not determine x0"):
        run(scheduler)
    # No formula.
    for config in (
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", "solver_order": 3},
        {"prediction_type": "score"},
    ):
        with pytest.raises(ValueError, match="solver_order 3|prediction_type must be"):
            run(ours.DPMSolverMultistepScheduler(**config))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sde-dpmsolver++", "sde-dpmsolver"])
def test_no_stochastic_step_to_more_noise(kind):
    """diffusers takes the root of a negative variance; here the step says so, from seeds or not, also of sigmas that rise."""
    for options in ({}, {"seeds": [7, 8, 9]}):
        with pytest.raises(ValueError, match=re.escape(f"{kind!r} cannot step to more noise")):
            run(ours.DPMSolverMultistepInverseScheduler(algorithm_type=kind), **options)
    names = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
    for name in names[: 1 if kind == "sde-dpmsolver" else 2]:
        scheduler = mine(name)(algorithm_type=kind, final_sigmas_type="sigma_min")
        scheduler.set_timesteps(4)
        scheduler.sigmas = scheduler.sigmas.flip(0)
        x = torch.ones(SHAPE)
        with pytest.raises(ValueError, match="cannot step to more noise"):
            scheduler.step(x, scheduler.timesteps[0], x, seeds=1)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_diffusers():
    """pyfold has no need of it, and says what brings it."""
    result = python("import sys; sys.modules['diffusers'] = None; import pyfold; import pyfold.adapters.diffusers")
    assert "ImportError: diffusers is needed here; install it with: " + install_command("diffusers") in result.stderr


def test_without_torchsde():
    """Its two schedulers are diffusers' placeholders then, which say so."""
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "torchsde" else find(name, *rest)
from pyfold.adapters import diffusers
diffusers.EulerDiscreteScheduler()
print(len(diffusers.__all__))
diffusers.DPMSolverSDEScheduler()
"""
    result = python(code)
    assert result.stdout.strip() == str(len(ours.__all__))
    assert "requires the torchsde library" in result.stderr


# --- pipelines


def tiny_unet(**options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), **options,
    )  # fmt: skip


def images_of(pipeline, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(batch_size=2, generator=generator, num_inference_steps=4, output_type="np", **arguments).images


@pytest.mark.parametrize("kind", ["DDPM", "DDIM"])
def test_unconditional_pipeline(kind, monkeypatch):
    pipeline = getattr(diffusers, f"{kind}Pipeline")(tiny_unet(), getattr(diffusers, f"{kind}Scheduler")())
    arguments = {"eta": 0.5} if kind == "DDIM" else {}
    expected = images_of(pipeline, **arguments)
    # Given to the constructor, DDIMPipeline would make its own from it.
    pipeline.scheduler = getattr(ours, f"{kind}Scheduler").from_config(pipeline.scheduler.config)
    forbid(f"{kind}Scheduler", monkeypatch)
    np.testing.assert_allclose(images_of(pipeline, **arguments), expected, atol=2e-5)


def test_consistency_pipeline():
    unet = tiny_unet(num_class_embeds=4)
    config = {"num_train_timesteps": 40, "sigma_min": 0.002, "sigma_max": 80.0}
    images = []
    for module in (diffusers, ours):
        pipeline = diffusers.ConsistencyModelPipeline(unet, module.CMStochasticIterativeScheduler(**config))
        assert type(pipeline.scheduler) is module.CMStochasticIterativeScheduler
        pipeline.set_progress_bar_config(disable=True)
        draws = torch.Generator().manual_seed(0)
        images.append(
            pipeline(
                batch_size=2,
                num_inference_steps=None,
                timesteps=[22, 0],
                generator=draws,
                class_labels=[1, 2],
                output_type="np",
            ).images
        )
    np.testing.assert_allclose(images[1], images[0], atol=2e-5)


@pytest.mark.parametrize("name", ours.__all__)
def test_pipelines_find_custom_timesteps_and_sigmas(name):
    """By the signature, as retrieve_timesteps does."""
    if hasattr(theirs(name), "set_timesteps"):
        expected, result = (inspect.signature(cls.set_timesteps) for cls in (theirs(name), mine(name)))
        assert expected == result


def dit(scheduler):
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=4, num_layers=1, patch_size=2, attention_head_dim=4, num_attention_heads=2, in_channels=4, out_channels=8,
        attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    return diffusers.DiTPipeline(transformer.eval(), vae.eval(), scheduler)


LATENT = [
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "PNDMScheduler",
]
LATENT += ["UniPCMultistepScheduler"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LATENT)
def test_latent_pipeline_with_guidance(name, monkeypatch):
    images = []
    for module in (diffusers, ours):
        pipeline = dit(getattr(module, name)(**({"skip_prk_steps": True} if name == "PNDMScheduler" else {})))
        if module is ours:
            assert type(pipeline.scheduler) is mine(name)
            forbid(name, monkeypatch)
        pipeline.set_progress_bar_config(disable=True)
        draws = torch.Generator().manual_seed(0)
        images.append(pipeline(class_labels=[1, 2], generator=draws, num_inference_steps=5, output_type="np").images)
    np.testing.assert_allclose(images[1], images[0], atol=5e-5)


def test_pipeline_with_seeds_is_the_same_for_every_split():
    """The model's own sums depend on the batch, so equality is to rounding."""
    scheduler, unet = ours.DDPMScheduler(), tiny_unet()
    pipeline = diffusers.DDPMPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = {}
    for seeds in ([5, 6], [5], [6]):
        scheduler.set_seeds(seeds)
        # The initial noise is the pipeline's own: a generator for each, which the steps are given too.
        draws = [torch.Generator().manual_seed(s) for s in seeds]
        images[tuple(seeds)] = pipeline(batch_size=len(seeds), generator=draws, num_inference_steps=4, output_type="np").images
    np.testing.assert_allclose(images[5, 6], np.concatenate([images[5,], images[6,]]), atol=1e-5)


def test_saved_pipeline_loads(tmp_path):
    """With diffusers' scheduler in the place of pyfold's, so that it loads where pyfold is not installed."""
    pipeline = diffusers.DDPMPipeline(tiny_unet(), ours.DDPMScheduler())
    pipeline.save_pretrained(tmp_path)
    loaded = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(pipeline.scheduler) is ours.DDPMScheduler
    assert type(loaded.scheduler) is diffusers.DDPMScheduler
    loaded.scheduler = ours.DDPMScheduler.from_config(loaded.scheduler.config)
    np.testing.assert_array_equal(images_of(loaded), images_of(pipeline))


# --- one reading of one state: what is changed on a live scheduler counts at once, as in diffusers


def stepped(scheduler, change=None, x=3.0, model=0.0):
    scheduler.set_timesteps(5)
    scheduler.step(torch.full(SHAPE, model), scheduler.timesteps[0], torch.full(SHAPE, x))
    if change is not None:
        change(scheduler)
    scheduler.set_timesteps(5)
    return scheduler.step(torch.full(SHAPE, model), scheduler.timesteps[0], torch.full(SHAPE, x))[0]


@pytest.mark.parametrize(
    "setting", [{"clip_sample": False}, {"prediction_type": "v_prediction"}, {"clip_sample_range": 0.3}], ids=str
)
@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"]
)
def test_settings_of_a_live_scheduler(name, setting):
    """diffusers#7214: they read the attribute at each step; the first step's rows must not outlive it."""

    def change(scheduler):
        for key, value in setting.items():
            setattr(scheduler.config, key, value)

    torch.manual_seed(0)
    expected = stepped(theirs(name)(), change, model=0.4)
    torch.manual_seed(0)
    result = stepped(mine(name)(), change, model=0.4)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("edit", ["torch", "numpy", "inference"])
def test_tables_edited_in_place(edit):
    def change(scheduler):
        table = scheduler.alphas_cumprod
        if edit == "numpy":
            table.numpy()[500:700] *= 0.5
        elif edit == "torch":
            table[500:700].mul_(0.5)
        else:
            with torch.inference_mode():
                table[500:700].mul_(0.5)

    name = "DDIMScheduler"
    expected = stepped(theirs(name)(clip_sample=False), change, model=0.4)
    unchanged = stepped(theirs(name)(clip_sample=False), model=0.4)
    result = stepped(mine(name)(clip_sample=False), change, model=0.4)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert (expected - unchanged).abs().max() > 0.1


def test_rows_are_found_again_where_a_table_holds_nan():
    scheduler = ours.KDPM2DiscreteScheduler()
    x = torch.ones(SHAPE)
    for _ in range(2):
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps:
            scheduler.step(0.1 * x, t, x)
        count = len(scheduler._memory.rows)
    scheduler.set_timesteps(4)
    scheduler.step(0.1 * x, scheduler.timesteps[0], x)
    assert len(scheduler._memory.rows) == count > 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(ours.__all__))
def test_a_second_run_makes_no_row_again(name, monkeypatch):
    """Rows are remembered by what their rules read, a sample's own timesteps included."""
    written, write = [], _rows.Operands.write
    monkeypatch.setattr(_rows.Operands, "write", lambda given, *args: written.append(1) or write(given, *args))
    name, config, options = ONE_EACH[name]
    scheduler = mine(name)(**config)
    run(scheduler, **options)
    assert written
    written.clear()
    run(scheduler, **options)
    # As long as the norms of this step's noise say.
    corrected = len(scheduler.timesteps) * scheduler.config.correct_steps if name == "ScoreSdeVeScheduler" else 0
    assert len(written) <= corrected


@pytest.mark.parametrize("edit", ["values", "attribute", "object", "copied"])
def test_settings_outside_the_configuration(edit):
    """A row of tensors is made anew where a tensor or an attribute that it was made of has changed."""

    def change(scheduler):
        if edit == "values":
            scheduler.s.mul_(30)
        elif edit == "attribute":
            scheduler.scaler = 0.5
        elif edit == "object":
            scheduler._init_alpha_cumprod = scheduler._init_alpha_cumprod * 1.5
        else:
            scheduler.timesteps = scheduler.timesteps**2

    outputs = []
    for cls in (theirs("DDPMWuerstchenScheduler"), mine("DDPMWuerstchenScheduler")):
        scheduler, kept = cls(), []
        scheduler.set_timesteps(4)
        for _ in range(2):
            draws = torch.Generator().manual_seed(2)
            t, x = scheduler.timesteps[1].expand(SHAPE[0]), torch.ones(SHAPE)
            kept.append(scheduler.step(0.5 * x, t, x, generator=draws)[0])
            change(scheduler)
        outputs.append(kept)
        assert (kept[0] - kept[1]).abs().max() > 1e-3
    assert_equal_runs(*outputs, 1e-4)


@pytest.mark.parametrize("move", ["data", "set_", "share_memory_"])
def test_a_table_that_is_moved(move):
    """The same tensor in other memory is looked at there."""
    outputs = []
    for cls in (theirs("EulerDiscreteScheduler"), mine("EulerDiscreteScheduler")):
        scheduler = cls()
        scheduler.set_timesteps(4)
        x, t = torch.ones(SHAPE), scheduler.timesteps[0]
        scheduler.step(0.5 * x, t, x)
        other = scheduler.sigmas.clone()
        if move == "data":
            scheduler.sigmas.data = other
        elif move == "set_":
            scheduler.sigmas.set_(other)
        else:
            scheduler.sigmas.share_memory_()
        scheduler.sigmas.numpy()[1] *= 0.5
        scheduler._step_index = 0
        outputs.append([scheduler.step(0.5 * x, t, x)[0]])
    assert_equal_runs(*outputs, 1e-5)


def test_a_copy_looks_at_its_own_tables():
    scheduler = ours.EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    x, t = torch.ones(SHAPE), scheduler.timesteps[0]
    first = scheduler.step(0.5 * x, t, x)[0]
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        scheduler.sigmas[1] *= 0.5
        other._step_index = 0
        assert torch.equal(other.step(0.5 * x, t, x)[0], first)
        scheduler.sigmas[1] *= 2
        other.sigmas[1] *= 0.5
        other._step_index = 0
        assert not torch.equal(other.step(0.5 * x, t, x)[0], first)


def test_levels_are_not_counted_for_the_noise_of_torch():
    """An address has room for 513 visits of a level; a generator has no addresses."""
    scheduler = ours.ScoreSdeVeScheduler()
    scheduler.set_timesteps(4)
    scheduler.set_sigmas(4)
    x = torch.ones(1, 2)
    for _ in range(515):
        x = scheduler.step_pred(0 * x, scheduler.timesteps[0], 0 * x, generator=torch.Generator()).prev_sample
    assert x.isfinite().all()


def test_a_corrector_keeps_no_row():
    """Its length is by the norms of the noise, which no other step has."""
    scheduler = ours.ScoreSdeVeScheduler()
    scheduler.set_timesteps(4)
    scheduler.set_sigmas(4)
    x = torch.ones(SHAPE)
    for seed in range(3):
        scheduler.step_correct(x, x, generator=torch.Generator().manual_seed(seed))
    assert not scheduler._memory.rows


@pytest.mark.parametrize("seeds", [3, [3, 4, 5]])
def test_torchsdes_noise_is_drawn_once(seeds, monkeypatch):
    """The bits of diffusers' tree, of fewer draws: its 45 states are forgotten between the ends of a step."""
    drawn, randn = [], torch.randn
    monkeypatch.setattr(torch, "randn", lambda *a, **k: (drawn.append(1), randn(*a, **k))[1])
    x, sigmas = torch.ones(SHAPE), (torch.linspace(4.0, 0.2, 12) ** 2).tolist()
    noises, counts = [], []
    for make in (BrownianTreeNoiseSampler, _torchsde_noise):
        drawn.clear()
        sampler = make(x, sigmas[-1], sigmas[0], seeds)
        noises.append([sampler(torch.tensor(a), torch.tensor(b)) for a, b in itertools.pairwise(sigmas)])
        counts.append(len(drawn))
    assert all(map(torch.equal, *noises))
    assert counts[1] < 0.75 * counts[0]


@pytest.mark.parametrize(
    "hook", ["_threshold_sample", "convert_model_output", "_get_variance", "dpm_solver_first_order_update"]
)
def test_hooks_of_a_subclass_are_refused_not_ignored(hook):
    with pytest.raises(TypeError, match=f"Mine overrides {hook}, which pyfold's step does not call"):
        type("Mine", (ours.DPMSolverMultistepScheduler,), {hook: lambda self, *a, **k: None})
    own = type("Own", (ours.DDIMScheduler,), {hook: lambda self: None, "step": lambda self, *a, **k: "mine"})
    assert own().step() == "mine"
