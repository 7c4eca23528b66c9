"""Does a seed mean the same picture everywhere? Hashes of one sampling job, run in every way a job can be run.

Eight samples of a small problem in ten Euler-ancestral steps, by pyfold, diffusers and k-diffusion, each seeded as its users
do it (diffusers also with a list of generators, one a sample): in one batch and in three, in another order, on two threads,
with other instruction sets, cut in halves for two machines, compiled.
A table of hashes; a hash that differs from the first of its column is marked.

python examples/noise_everywhere.py --out hashes.png
"""

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import matplotlib
import torch
from tqdm import tqdm

import pyfold
from pyfold import diffusion
from pyfold.train.files import write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SEEDS, SHAPE, STEPS = list(range(40, 48)), (3, 33, 31), 10
PLAN = diffusion.euler_ancestral(diffusion.vp_scaled_linear(), STEPS, prediction="epsilon")


def denoiser(x: torch.Tensor, *_: object) -> torch.Tensor:
    """One multiplication an element: what differs is the noise and the step."""
    return x * 0.25


def by_pyfold(seeds: list[int]) -> torch.Tensor:
    return diffusion.sample(denoiser, PLAN, SHAPE, seeds)


def in_halves(seeds: list[int]) -> torch.Tensor:
    """Upper and lower half of each sample, as two machines would make them: each draws the noise of its own part."""
    x = pyfold.randn(seeds, SHAPE) * PLAN.start_std
    halves = (slice(None), slice(0, 17)), (slice(None), slice(17, None))
    results = [diffusion.sample(denoiser, PLAN, SHAPE, seeds, x=x, region=half) for half in halves]
    return torch.cat([result[(slice(None), *half)] for result, half in zip(results, halves, strict=True)], 2)


def by_diffusers(seeds: list[int], shape: tuple[int, ...] = SHAPE, each: bool = False) -> torch.Tensor:
    """One generator for the batch, from its first seed, or one for each: what a pipeline gets by ``generator=``."""
    scheduler = importlib.import_module("diffusers").EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear")
    randn_tensor = importlib.import_module("diffusers.utils.torch_utils").randn_tensor
    scheduler.set_timesteps(STEPS)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    generator = generators if each else generators[0]
    x = randn_tensor((len(seeds), *shape), generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(scheduler.scale_model_input(x, t)), t, x, generator=generator).prev_sample
    return x


def by_k_diffusion(seeds: list[int], shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    """torch.manual_seed before the batch; the functions draw by torch.randn_like."""
    sampling = k_diffusion()
    torch.manual_seed(seeds[0])
    sigmas = sampling.get_sigmas_karras(STEPS, 0.03, 14.6)
    return sampling.sample_euler_ancestral(denoiser, torch.randn(len(seeds), *shape) * 14.6, sigmas, disable=True)


def k_diffusion() -> types.ModuleType:
    """k_diffusion.sampling; the package's training code wants packages that sampling never calls."""
    if importlib.util.find_spec("k_diffusion") is None:
        raise ImportError("k-diffusion is not installed")
    while True:
        try:
            return importlib.import_module("k_diffusion.sampling")
        except ModuleNotFoundError as error:
            if not error.name or error.name.startswith("k_diffusion"):
                raise
            missing = types.ModuleType(error.name)
            missing.__path__ = []
            missing.__getattr__ = lambda name: None
            sys.modules[error.name] = missing
            for name in [name for name in sys.modules if name.startswith("k_diffusion")]:
                del sys.modules[name]


def hash_of(x: torch.Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()[:8]


RUNS = {
    "pyfold": by_pyfold,
    "diffusers": by_diffusers,
    "diffusers, list": partial(by_diffusers, each=True),
    "k-diffusion": by_k_diffusion,
}


def in_process(name: str, variables: dict[str, str]) -> str:
    """The whole batch in a process of its own."""
    command = [sys.executable, __file__, "--only", name]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def with_threads(run, count: int) -> torch.Tensor:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return run(SEEDS)
    finally:
        torch.set_num_threads(before)


def compiled(name: str) -> tuple[str, str]:
    """One step with noise, eager and compiled."""
    x, seeds = torch.linspace(-1, 1, 8 * 4096).reshape(8, 4096), torch.tensor(SEEDS)

    def step(x):
        if name == "pyfold":
            return pyfold.add_noise(denoiser(x), 1.0, 0.5, seeds, stream=32)
        return denoiser(x) + 0.5 * torch.randn_like(x)

    results = []
    for function in (step, torch.compile(step)):
        torch.manual_seed(SEEDS[0])
        results.append(hash_of(function(x)))
    return tuple(results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("hashes.png"), help="picture of the table")
    parser.add_argument("--quick", action="store_true", help="seconds: without compiling, and one other instruction set")
    parser.add_argument("--only", choices=list(RUNS), help="print one hash and stop (the script calls itself so)")
    a = parser.parse_args()
    if a.only:
        print(json.dumps(hash_of(RUNS[a.only](SEEDS))))
        return

    names = []
    for name, run in RUNS.items():
        try:
            run(SEEDS[:1])
            names.append(name)
        except ImportError as error:
            print(f"left out: {error}")
    tiers = pyfold.config()["cpu"]["supported"]
    # What torch's own kernels are called, for the packages that are made of them.
    of_torch = {"baseline": "default", "avx2": "avx2", "avx512": "avx512"}
    if a.quick:
        tiers = tiers[:1]
    rows: dict[str, dict[str, str]] = {}

    def row(title: str, make) -> None:
        rows[title] = {name: make(name) for name in names}
        bar.update()

    bar = tqdm(total=6 + len(tiers) + 2 * (not a.quick))
    row("one batch of 8", lambda n: hash_of(RUNS[n](SEEDS)))
    row("batches of 3, 3, 2", lambda n: hash_of(torch.cat([RUNS[n](SEEDS[i:j]) for i, j in ((0, 3), (3, 6), (6, 8))])))
    row("one at a time", lambda n: hash_of(torch.cat([RUNS[n]([s]) for s in SEEDS])))
    row("in reverse, put back", lambda n: hash_of(RUNS[n](SEEDS[::-1]).flip(0)))
    row("2 threads", lambda n: hash_of(with_threads(RUNS[n], 2)))

    def halves(name):
        if name == "pyfold":
            return hash_of(in_halves(SEEDS))
        return hash_of(torch.cat([RUNS[name](SEEDS, (3, size, 31)) for size in (17, 16)], 2))

    row("two halves of each sample", halves)
    for tier in tiers:
        variables = {"PYFOLD_CPU_CAPABILITY": tier, "ATEN_CPU_CAPABILITY": of_torch.get(tier, "default")}
        row(f"instruction set {tier}", lambda n, v=variables: in_process(n, v))
    groups = [list(rows)]
    if not a.quick:
        both = {name: compiled(name) for name in names}
        row("one step, eager", lambda n: both[n][0])
        row("one step, compiled", lambda n: both[n][1])
        groups.append(["one step, eager", "one step, compiled"])
    bar.close()

    print("| | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    table, same = [], []
    for group in groups:
        for title in group:
            agree = [rows[title][n] == rows[group[0]][n] for n in names]
            cells = [rows[title][n] + ("" if ok else " differs") for n, ok in zip(names, agree, strict=True)]
            print(f"| {title} | " + " | ".join(cells) + " |")
            table.append([title, *cells])
            same.append(agree)

    figure, ax = plt.subplots(figsize=(2.6 + 1.9 * len(names), 0.5 + 0.36 * len(table)), dpi=130, layout="constrained")
    ax.axis("off")
    drawn = ax.table(table, colLabels=["", *names], cellLoc="left", loc="center", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9.5)
    drawn.scale(1, 1.45)
    drawn.auto_set_column_width(range(len(names) + 1))
    for (line, column), cell in drawn.get_celld().items():
        cell.set_edgecolor("#d5dade")
        if line == 0:
            cell.set_text_props(weight="bold")
        elif column:
            cell.set_text_props(color="#1f7a4d" if same[line - 1][column - 1] else "#c4472b", family="monospace")
    write(a.out, figure.savefig)
    print(f"wrote {a.out}")


if __name__ == "__main__":
    main()
