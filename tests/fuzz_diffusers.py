"""Random configurations of every scheduler, run beside diffusers': equal numbers, or an error where theirs is one.

    python tests/fuzz_diffusers.py --cases 1600 --seed 0     # a line for each difference, and the counts

Where diffusers gives no finite number, pyfold may give one or say why not; where diffusers raises, pyfold may work
(docs/diffusers.md says so); everything else must agree.
"""

from __future__ import annotations

import argparse
import inspect
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from test_adapters_diffusers import SHAPE, ours, run, theirs
from tqdm import tqdm

#: Values to draw from, by the name of the argument.
POOL: dict[str, list[Any]] = {
    "algorithm_type": ["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "data_prediction", "noise_prediction"],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "beta_start": [0.0001, 0.00085],
    "clip_denoised": [True, False],
    "clip_sample": [True, False],
    "clip_sample_range": [0.5, 1.0, 3.0],
    "corrector_order": [1, 2, 3],
    "disable_corrector": [[], [0], [1, 3]],
    "dynamic_thresholding_ratio": [0.0, 0.5, 0.9, 0.995, 1.0],
    "eta": [0.0, 0.3, 1.0],
    "euler_at_final": [True, False],
    "final_sigmas_type": ["zero", "sigma_min"],
    "flow_shift": [1.0, 3.0],
    "interpolation_type": ["linear", "log_linear"],
    "invert_sigmas": [True, False],
    "lower_order_final": [True, False],
    "num_train_timesteps": [1000, 100],
    "predict_x0": [True, False],
    "prediction_type": ["epsilon", "sample", "v_prediction", "flow_prediction"],
    "predictor_order": [1, 2, 3],
    "rescale_betas_zero_snr": [True, False],
    "rho": [5.0, 7.0],
    "s_noise": [0.9, 1.0],
    "sample_max_value": [0.5, 1.0, 3.0],
    "set_alpha_to_one": [True, False],
    "shift": [1.0, 3.0],
    "shift_terminal": [None, 0.05],
    "sigma_data": [0.5, 1.0],
    "sigma_schedule": ["karras", "exponential"],
    "skip_prk_steps": [True, False],
    "solver_order": [1, 2, 3],
    "solver_type": ["midpoint", "heun", "bh1", "bh2", "logrho"],
    "steps_offset": [0, 1],
    "stochastic_sampling": [True, False],
    "thresholding": [True, False],
    "timestep_spacing": ["leading", "linspace", "trailing"],
    "timestep_type": ["discrete", "continuous"],
    "use_beta_sigmas": [True, False],
    "use_exponential_sigmas": [True, False],
    "use_flow_sigmas": [True, False],
    "use_karras_sigmas": [True, False],
    "use_lu_lambdas": [True, False],
    "variance_type": ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"],
}
#: Arguments of step, likewise.
OF_STEP: dict[str, list[Any]] = {
    "eta": [0.0, 0.4, 1.0],
    "s_churn": [0.0, 2.0],
    "s_noise": [1.0, 1.1],
    "use_clipped_model_output": [False, True],
}
#: Driven in ways of their own, which the tests of trajectories walk.
ELSEWHERE = {
    "HeliosDMDScheduler",
    "PiflowScheduler",
    "RFD4ProteinaScheduler",
    "HeliosScheduler",
    "LTXEulerAncestralRFScheduler",
}
#: Their noise is theirs alone unless it is seeded.
ALWAYS = {"DPMSolverSDEScheduler": {"noise_sampler_seed": 3}}
#: A slope that is a difference of near numbers over a small one, or a variance 1 - exp(-small): in float32 mere rounding.
OF_NEAR_NUMBERS = {"KarrasVeScheduler", "ScoreSdeVpScheduler"}
#: Errors where diffusers makes a sign of x - epsilon, clipped, out of a division by no signal (docs/diffusers.md).
DOCUMENTED = ("does not determine",)
TOLERANCE = 3e-5
#: Its times are float32 where ours are float64, and at 1e-3 the variance 1 - exp(-small) is a difference of near numbers.
TOLERANCES = {"ScoreSdeVpScheduler": 1e-4}


def cases(count: int, seed: int) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(class, configuration, how it is run), the classes in turn."""
    draw = random.Random(seed)
    names = sorted(set(ours.__all__) - ELSEWHERE)
    for k in range(count):
        name = names[k % len(names)]
        parameters = [p for p in inspect.signature(theirs(name).__init__).parameters if p in POOL]
        chosen = draw.sample(parameters, draw.randint(0, min(len(parameters), 6)))
        config = {p: draw.choice(POOL[p]) for p in chosen} | ALWAYS.get(name, {})
        options: dict[str, Any] = {"steps": draw.choice([1, 2, 3, 5, 8, 13, 20])}
        if name in OF_NEAR_NUMBERS:
            options["dtype"] = torch.float64
        if hasattr(theirs(name), "step"):
            arguments = [p for p in inspect.signature(theirs(name).step).parameters if p in OF_STEP]
            options["step"] = {p: draw.choice(OF_STEP[p]) for p in draw.sample(arguments, draw.randint(0, len(arguments)))}
        yield name, config, options


def outcome(cls: type, config: dict[str, Any], options: dict[str, Any]) -> list[torch.Tensor] | Exception:
    try:
        return run(cls(**config), **options)
    except Exception as error:
        return error


def difference(name: str, config: dict[str, Any], options: dict[str, Any]) -> tuple[str, str]:
    """(what came of it, the difference or nothing)."""
    expected, result = outcome(theirs(name), config, options), outcome(getattr(ours, name), config, options)
    if isinstance(expected, Exception):
        return ("both raise" if isinstance(result, Exception) else "theirs raises"), ""
    finite = all(bool(torch.isfinite(t).all()) for t in expected)
    if isinstance(result, Exception):
        if not finite and isinstance(result, (ValueError, NotImplementedError)):
            return "not finite there", ""
        if any(text in str(result) for text in DOCUMENTED):
            return "documented", ""
        return "differs", f"raises {type(result).__name__}: {result}"
    if len(expected) != len(result):
        return "differs", f"{len(result)} outputs for {len(expected)}"
    worst, text = distance(expected, result)
    if worst <= TOLERANCES.get(name, TOLERANCE):
        return "equal", ""
    if not finite:
        return "not finite there", ""
    # Who rounds? Their formulas on float64 tables know, and in float64 where nothing is drawn.
    for more in ({"double": True}, {"double": True, "dtype": torch.float64}):
        exact = outcome(theirs(name), config, {**options, **more})
        if not isinstance(exact, Exception) and distance(exact, result)[0] <= min(TOLERANCE, distance(exact, expected)[0]):
            return "theirs rounds", ""
    return "differs", text


def distance(expected: list[torch.Tensor], result: list[torch.Tensor]) -> tuple[float, str]:
    """The largest difference, relative to the largest value so far, and where; over the finite values of what is expected."""
    worst, where, scale = 0.0, "", 1.0
    for i, (a, b) in enumerate(zip(expected, result, strict=True)):
        if a.shape != b.shape:
            return float("inf"), f"output {i} has shape {tuple(b.shape)} for {tuple(a.shape)}"
        finite = a.isfinite()
        scale = max(scale, a[finite].abs().max().item() if finite.any() else 0.0)
        apart = ((a.double() - b.double())[finite].abs().max().item() if finite.any() else 0.0) / scale
        if not apart <= worst:
            worst, where = apart if apart == apart else float("inf"), f"output {i} by {apart:.2g} of {scale:.3g}"
    return worst, where


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    warnings.simplefilter("ignore")
    for case in tqdm(cases(arguments.cases, arguments.seed), total=arguments.cases, disable=not sys.stderr.isatty()):
        kind, text = difference(*case)
        counts[kind] += 1
        if text:
            tqdm.write(f"{case[0]}(**{case[1]}), {case[2]}: {text}")
    print(", ".join(f"{n} {kind}" for kind, n in counts.most_common()), f"(shape {SHAPE})")
    return 1 if counts["differs"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
