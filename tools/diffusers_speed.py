"""How long a run of each of diffusers' schedulers takes, and pyfold's of the same name: a table for docs/performance.md.

A run is all its steps, the model's output ready; every class at its defaults, noise by torch's generator (generator=) and from
seeds (seeds=). The three run by turns in one process. A class that draws nothing has one figure. On a quiet machine:

python tools/diffusers_speed.py --json diffusers.json
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from tqdm import tqdm

from pyfold.adapters import diffusers as ours
from pyfold.bench.measure import interleaved
from pyfold.bench.report import duration, machine
from pyfold.bench.rows import IMAGES, LEVELS
from pyfold.train.files import write_text

STEPS = 12
#: Whose defaults need more than a number of steps, or another configuration to run at all.
CONFIGS: dict[str, dict[str, Any]] = {
    "HeliosScheduler": {"stages": 1},
    "DPMSolverSDEScheduler": {"noise_sampler_seed": 3},
    "RFD4ProteinaScheduler": {"schedule_mode": "power", "noise_mode": "tan", "tsr_k": 1.3, "tsr_sigma": 0.7},
}
#: Whose noise is torchsde's Brownian tree, which takes minutes for a run at the larger sizes.
TREES = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
#: Steps of classes that are made for fewer or more.
OWN_STEPS = {"SCMScheduler": 2, "ConsistencyDecoderScheduler": 2, "RFD4ProteinaScheduler": 30}
Noise = dict[str, Any]
Step = Callable[..., Any]


def prepare(scheduler: Any) -> None:
    name = type(scheduler).__name__
    if name == "ScoreSdeVeScheduler":
        scheduler.set_timesteps(STEPS)
        scheduler.set_sigmas(STEPS)
    elif name == "RePaintScheduler":  # without its jumps back, which make a thousand steps of twelve
        scheduler.set_timesteps(STEPS, jump_length=1, jump_n_sample=1)
    elif name != "HeliosDMDScheduler":
        scheduler.set_timesteps(OWN_STEPS.get(name, STEPS))


@functools.cache
def parameters(function: Step) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def asks(method: Any, noise: Noise) -> Noise:
    """Of the noise's arguments those that the method has."""
    given = parameters(method.__func__)  # a look at the signature takes as long as a step
    return {key: value for key, value in noise.items() if key in given}


def state_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A protein is [B, residues, 3]; a clip has frames."""
    batch, channels, height, width = shape
    if name == "RFD4ProteinaScheduler":
        return batch, channels * height * width // 3, 3
    return (batch, channels, 2, height // 2, width) if name == "HeliosDMDScheduler" else shape


def karras_ve(scheduler: Any, x: torch.Tensor, output: torch.Tensor, noise: Noise) -> None:
    churn = asks(scheduler.add_noise_to_input, noise)
    for t in scheduler.timesteps:
        sigma, there = scheduler.schedule[t], scheduler.schedule[t - 1] if t > 0 else torch.tensor(0.0)
        hat_x, hat = scheduler.add_noise_to_input(x, sigma, **churn)
        first = scheduler.step(output, hat, there, hat_x)
        x = first["prev_sample"]
        if there != 0:
            x = scheduler.step_correct(output, hat, there, hat_x, x, first["derivative"])["prev_sample"]


def score_sde(scheduler: Any, x: torch.Tensor, output: torch.Tensor, noise: Noise) -> None:
    predict = asks(scheduler.step_pred, noise)
    for t in scheduler.timesteps:
        if type(scheduler).__name__ == "ScoreSdeVeScheduler":
            x = scheduler.step_correct(output, x, **asks(scheduler.step_correct, noise)).prev_sample
            x = scheduler.step_pred(output, t, x, **predict).prev_sample
        else:
            x = scheduler.step_pred(output, x, t.expand(len(x)), **predict)[0]


def helios_dmd(scheduler: Any, x: torch.Tensor, output: torch.Tensor, noise: Noise) -> None:
    table, times = torch.linspace(1, 0.001, 1000, dtype=torch.float64), torch.linspace(1000, 1, 1000)
    sampling = torch.tensor([999, 700, 400])
    levels = {"dmd_noisy_tensor": output, "dmd_sigmas": table, "dmd_timesteps": times, "all_timesteps": sampling}
    for i, t in enumerate(sampling):
        x = scheduler.step(output, t, x, cur_sampling_step=i, return_dict=False, **levels)[0]


def cogvideox_dpm(scheduler: Any, x: torch.Tensor, output: torch.Tensor, noise: Noise) -> None:
    old, times = None, scheduler.timesteps
    for i, t in enumerate(times):
        x, old = scheduler.step(
            output, old, t, times[i - 1] if i else None, x, return_dict=False, **asks(scheduler.step, noise)
        )


def common(scheduler: Any, x: torch.Tensor, output: torch.Tensor, noise: Noise) -> None:
    name, times, more = type(scheduler).__name__, list(scheduler.timesteps), ()
    if name in ("SCMScheduler", "DDPMWuerstchenScheduler"):
        times = times[:-1]
    if name == "DDPMWuerstchenScheduler":
        times = [t.expand(len(x)) for t in times]
    if name == "RePaintScheduler":
        more = (output, torch.ones_like(x))
    if name == "RFD4ProteinaScheduler":
        more = (torch.ones(x.shape[:2]),)
        if "generator" in noise:
            noise = {"generator": [torch.Generator().manual_seed(i) for i in range(len(x))]}
    if name == "PiflowScheduler":
        output = torch.cat([output] * scheduler.n_grid, -1)
    asked = asks(scheduler.step, noise)
    for t in times:
        x = scheduler.step(output, t, x, *more, return_dict=False, **asked)[0]


RUNS = {
    "KarrasVeScheduler": karras_ve,
    "ScoreSdeVeScheduler": score_sde,
    "ScoreSdeVpScheduler": score_sde,
    "HeliosDMDScheduler": helios_dmd,
    "CogVideoXDPMScheduler": cogvideox_dpm,
}


def loop(scheduler: Any, x: torch.Tensor, output: torch.Tensor, noise: Noise) -> Callable[[], None]:
    """A whole run; before each the scheduler is put back to where set_timesteps left it, its tables kept."""
    prepare(scheduler)
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True  # else it warns; scaling the input is no part of the step
    fresh, run = dict(vars(scheduler)), RUNS.get(type(scheduler).__name__, common)

    def call() -> None:
        for name, value in fresh.items():
            setattr(scheduler, name, list(value) if isinstance(value, list) else value)
        if hasattr(scheduler, "set_seeds"):
            scheduler.set_seeds(None)  # the way of the run before is over
        run(scheduler, x, output, noise)

    return call


def draws(kind: type) -> bool:
    """Whether any of its methods takes seeds."""
    methods = (getattr(kind, name, None) for name in ("step", "step_pred", "step_correct", "add_noise_to_input"))
    return any(m is not None and "seeds" in parameters(m) for m in methods)


def forms_of(name: str, shape: tuple[int, ...]) -> dict[str, Callable[[], None]]:
    """A run by diffusers' class, and by pyfold's of that name with either noise."""
    kind = getattr(ours, name)
    base = next(c for c in kind.__mro__ if c.__module__.startswith("diffusers."))
    generator = torch.Generator().manual_seed(0)
    x, output = (torch.randn(state_shape(name, shape), generator=generator) for _ in range(2))
    config, by_torch = CONFIGS.get(name, {}), {"generator": torch.Generator().manual_seed(1)}
    forms = {
        "diffusers": loop(base(**config), x, output, by_torch),
        "generator=": loop(kind(**config), x, output, by_torch),
    }
    if draws(kind):
        forms["seeds="] = loop(kind(**config), x, output, {"seeds": torch.arange(len(x))})
    return forms


def measured(name: str, level: str, budget: float) -> dict[str, float]:
    """Median seconds of each form."""
    times = interleaved(forms_of(name, IMAGES[level]), budget, torch.device("cpu"), warm=budget / 4)
    return {form: statistics.median(seconds) for form, seconds in times.items()}


def lines(results: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    """The table: how many times longer diffusers takes."""
    yield "| | size | diffusers | with `generator=` | with `seeds=` |"
    yield "|---|---|---|---|---|"
    for name, by_level in results.items():
        for level, seconds in by_level.items():
            theirs = seconds["diffusers"]
            ratios = [f"{theirs / seconds[form]:.2f}x" if form in seconds else "" for form in ("generator=", "seeds=")]
            size = "x".join(map(str, IMAGES[level]))
            yield f"| {name.removesuffix('Scheduler')} | {size} | {duration(theirs)} | {' | '.join(ratios)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(ours.__all__), metavar="CLASS", help="these alone")
    parser.add_argument("--sizes", nargs="+", choices=LEVELS, default=["small", "middle"], help="(default: small middle)")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for a class and size (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the seconds to this file")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in tqdm(arguments.only or sorted(ours.__all__), unit="class", leave=False):
        levels = [level for level in arguments.sizes if level == "small" or name not in TREES]
        results[name] = {level: measured(name, level, arguments.budget) for level in levels}
    print("\n".join(lines(results)))
    if arguments.json:
        write_text(arguments.json, json.dumps({"machine": machine(), "seconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
