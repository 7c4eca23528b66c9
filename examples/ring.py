"""Mode collapse and its cures: eight narrow Gaussians on a circle, five recipes in one harness.

A plain GAN, one whose generator looks five moves of its critic ahead, one whose critic judges pairs, one with R1 and R2, and
pyfold's recommendation: relativistic loss, R1 and R2 that fall, a critic of folds (these are the defaults of
`pyfold train gan --data ring`). All share networks, optimizer, batches and latent codes of a seed. Two more, by --recipes, have
the settings of Metz et al. 2017, appendix A: the plain game hops from mode to mode, the unrolled one spreads over all.
The table holds modes found (one sample within three deviations is enough), modes that are the nearest of at least half their
share of the samples, share of samples within three deviations of a mode, Kullback-Leibler divergence of the modes' shares (with
one bin for what is near none) from the truth, and seconds of training; beside it what real data reach. Writes the picture, and
beside it the numbers (.json) and an animation of the first seed (.gif). A minute or two a recipe and seed.

python examples/ring.py --out ring.png
python examples/ring.py --seeds 0 1 2 3 4 --jobs 2 --runs runs/ring --out ring.png
python examples/ring.py --recipes metz "metz unrolled" --strip --out metz.png
"""

import argparse
import dataclasses
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tqdm import trange

from pyfold.folding.pictures import INK, LAYER_COLOURS, PAPER, new_figure
from pyfold.gan.metrics import mode_coverage
from pyfold.train.config import Config
from pyfold.train.data import load, load_for
from pyfold.train.files import write, write_text
from pyfold.train.trainers import GanTrainer

UNREGULARISED = {"loss": "non_saturating", "activation": "leaky_relu", "gamma": 0.0}
#: Metz et al. 2017, appendix A, on Gaussians of radius 2 and deviation 0.02.
METZ = {
    "scale": 2.0, "latent": 256, "batch": 512, "depth": 2, "depth_discriminator": 1, "activation": "relu", "init": "orthogonal",
    "init_gain": 0.8, "discriminator_scale": 0.25, "lr": 1e-4, "beta1": 0.5, "beta2": 0.999, "loss": "minimax", "gamma": 0.0,
    "cooldown": 0.0, "ema": 0.0, "dynamics": "simultaneous",
}  # fmt: skip
#: Settings that differ from the recommended ones. An unrolled game costs about as much in a quarter of the steps.
RECIPES = {
    "plain": UNREGULARISED,
    "unrolled": {**UNREGULARISED, "dynamics": "unrolled", "dynamics_steps": 5},
    "packed": {**UNREGULARISED, "pack": 2},
    "R1 + R2": {"loss": "non_saturating", "activation": "leaky_relu"},
    "recommended": {},
    "metz": METZ,
    "metz unrolled": {**METZ, "dynamics": "unrolled", "dynamics_steps": 10},
}
USUAL = ["plain", "unrolled", "packed", "R1 + R2", "recommended"]
COUNT, DRAWN, FRAMES = 25_000, 1500, 60
TRAINED = 500  # a picture after fewer steps says that it shows nothing yet


def settings(data, recipe, seed, steps):
    options = RECIPES[recipe]
    steps = max(steps // 4, 1) if options.get("dynamics") == "unrolled" or options.get("scale") else steps
    return Config("gan", data=data, seed=seed, steps=steps, **options)


def train(config, name, frames):
    """The trained game: what the generator's samples were on the way, and the measures of its average and its last weights."""
    data = load_for(config)
    trainer = GanTrainer(config, data, torch.device("cpu"))
    latents = trainer.latents(torch.arange(-COUNT, 0))  # of seeds that training never uses

    def measure(generator, count):
        with torch.no_grad():
            samples = generator(latents[:count])
        share = torch.cdist(samples, data.centres).argmin(1).bincount(minlength=len(data.centres)) / count
        wide = int((share >= 0.5 / len(data.centres)).sum())
        return {**dataclasses.asdict(mode_coverage(samples, data.centres, data.std)), "spread": wide}

    when = np.unique(np.round(config.steps * np.linspace(0, 1, frames + 1)[1:] ** 1.5).astype(int).clip(1))
    shots, curve, seconds = [], [], 0.0
    begin = time.perf_counter()
    for step in trange(config.steps, desc=f"{name}, seed {config.seed}"):
        trainer.step(step)
        if step + 1 in when:
            seconds += time.perf_counter() - begin
            with torch.no_grad():
                shots.append(trainer.generator(latents[:DRAWN]).numpy() / config.scale)
            curve.append({"step": step + 1, **measure(trainer.average, 5000)})
            begin = time.perf_counter()
    with torch.no_grad():
        final = trainer.average(latents[:DRAWN]).numpy() / config.scale
    result = {"seed": config.seed, "seconds": round(seconds, 1), **measure(trainer.average, COUNT)}
    result |= {"last": measure(trainer.generator, COUNT), "curve": curve}
    return result, np.stack(shots).astype(np.float32), final


def run(data, recipe, seed, steps, frames, folder):
    """A run, kept in the folder: what is there already with the same settings is not done again."""
    config = settings(data, recipe, seed, steps)
    key = json.dumps(dataclasses.asdict(config))
    path = folder / f"{data}-{recipe.replace(' ', '')}-{seed}.npz" if folder else None
    if path and path.exists():
        with np.load(path) as kept:
            if kept["key"] == key and len(kept["shots"]) >= min(frames, config.steps) // 2:
                return json.loads(str(kept["result"])), kept["shots"], kept["final"]
    result, shots, final = train(config, recipe, frames)
    if path:
        write(path, lambda p: np.savez(p, key=key, result=json.dumps(result), shots=shots, final=final))
    return result, shots, final


def alone():
    """One thread for each of several processes."""
    torch.set_num_threads(1)


def draw(axes, points, data, title):
    """Samples in the colour of the mode that they belong to, and in ink where they belong to none."""
    distance = torch.cdist(torch.from_numpy(points), data.centres)
    near, mode = (v.numpy() for v in distance.min(1))
    colours = np.array(LAYER_COLOURS)[mode % len(LAYER_COLOURS)]
    good = near < 3 * data.std
    axes.clear()
    axes.scatter(*data.centres.numpy().T, s=90, facecolors="none", edgecolors=INK, linewidths=0.5, alpha=0.35)
    axes.scatter(*points[~good].T, s=1.2, color=INK, alpha=0.35, linewidths=0)
    axes.scatter(*points[good].T, s=5, c=colours[good], linewidths=0)
    axes.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), aspect="equal", xticks=[], yticks=[], facecolor="white")
    axes.set_title(title, fontsize=9, color=INK)


def picture(results, data, steps):
    """A recipe in each row: the generator on its way, the average of its weights at the end, and the quality of every seed."""
    figure = new_figure(13.5, 2.75 * len(results))
    grid = figure.subplots(len(results), 5, squeeze=False)
    for row, (recipe, runs) in zip(grid, results.items(), strict=True):
        first, shots, final = runs[0]
        picks = [int(len(shots) * part) for part in (0.2, 0.45, 0.7)]
        for axes, pick in zip(row, picks, strict=False):
            draw(axes, shots[pick], data, f"step {first['curve'][pick]['step']}")
        title = f"in the end: {first['modes']} of {first['of']} modes, {100 * first['high_quality']:.0f} % near one"
        if steps < TRAINED:
            title = f"NOT TRAINED: {first['curve'][-1]['step']} steps, to see that it runs"
        draw(row[3], final, data, title)
        row[0].set_ylabel(recipe, fontsize=13, color=INK)
        for i, (result, _, _) in enumerate(runs):
            part = [point["step"] / result["curve"][-1]["step"] for point in result["curve"]]
            share = [point["modes"] / point["of"] for point in result["curve"]]
            row[4].plot(part, share, color=LAYER_COLOURS[0], lw=0.9, alpha=0.55, label="modes found" if i == 0 else None)
            quality = [point["high_quality"] for point in result["curve"]]
            row[4].plot(part, quality, color=LAYER_COLOURS[1], lw=1.4, alpha=0.8, label="near a mode" if i == 0 else None)
        row[4].axhline(first["ceiling"], color=INK, lw=0.7, ls=":", label="real data")
        row[4].set(xlim=(0, 1), ylim=(0, 1.05), xlabel="part of the training", facecolor="white")
        row[4].set_title(f"{len(runs)} seed{'s' if len(runs) > 1 else ''}", fontsize=9, color=INK)
    grid[-1][4].legend(frameon=False, fontsize=8)
    return figure


def strip(results, data, columns=8):
    """The first seed's generator on its way, a recipe in each row: does it cover the modes, or go from one to the next?"""
    figure = new_figure(1.75 * columns, 2 * len(results))
    for row, (recipe, runs) in zip(figure.subplots(len(results), columns, squeeze=False), results.items(), strict=True):
        first, shots, _ = runs[0]
        for axes, pick in zip(row, np.linspace(len(shots) * 2 // 5, len(shots) - 1, columns).astype(int), strict=True):
            draw(axes, shots[pick], data, f"step {first['curve'][pick]['step']}")
            axes.set(xlim=(-2, 2), ylim=(-2, 2))
        row[0].set_ylabel(recipe, fontsize=11, color=INK)
    return figure


def animation(results, data, untrained=False):
    """Frames of all recipes side by side, each at the same part of its training."""
    figure = new_figure(2.6 * len(results), 2.95)
    canvas = FigureCanvasAgg(figure)
    row = figure.subplots(1, len(results), squeeze=False)[0]
    frames = []
    for i in range(max(len(runs[0][1]) for runs in results.values())):
        for axes, (recipe, runs) in zip(row, results.items(), strict=True):
            first, shots, _ = runs[0]
            at = min(i, len(shots) - 1)
            draw(axes, shots[at], data, f"{recipe}, {'untrained, ' if untrained else ''}step {first['curve'][at]['step']}")
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    return frames


def spread(values):
    values = list(values)
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def table(results, real):
    columns = ["recipe", "modes, each seed", "spread over", "near a mode", "KL", "near, last weights", "seconds"]
    rows = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for recipe, runs in results.items():
        r = [result for result, _, _ in runs]
        cells = [recipe, f"{', '.join(str(x['modes']) for x in r)} of {r[0]['of']}", ", ".join(str(x["spread"]) for x in r)]
        cells.append(spread(x["high_quality"] for x in r))
        cells += [spread(x["kl"] for x in r), spread(x["last"]["high_quality"] for x in r)]
        rows.append("| " + " | ".join([*cells, f"{np.mean([x['seconds'] for x in r]):.0f}"]) + " |")
    rows.append(f"| real data | {real.modes} of {real.of} | {real.of} | {real.high_quality:.3f} | {real.kl:.3f} | | |")
    return "\n".join(rows)


def main(name="ring", text=__doc__):
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(f"{name}.png"), help="the picture (default: %(default)s)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=USUAL, help="what to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of every recipe (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5000, help="training steps of each, a quarter if unrolled or Metz's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, of one thread each if more than one")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep every run here, and do none again that is here")
    parser.add_argument("--strip", action="store_true", help="draw the first seed's steps alone, eight to a row")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    a = parser.parse_args()
    frames = FRAMES
    if a.quick:
        a.steps, frames = 24, 6
    if a.steps < 1 or a.jobs < 1:
        parser.error(f"--steps and --jobs must be at least 1, got {a.steps} and {a.jobs}")

    todo = [(name, recipe, seed, a.steps, frames, a.runs) for recipe in a.recipes for seed in a.seeds]
    if a.jobs > 1:
        with ProcessPoolExecutor(a.jobs, get_context("spawn"), initializer=alone) as pool:
            done = list(pool.map(run, *zip(*todo, strict=True)))
    else:
        done = [run(*job) for job in todo]
    results = {}
    for (_, recipe, *_), outcome in zip(todo, done, strict=True):
        results.setdefault(recipe, []).append(outcome)

    data = load(name)
    real = mode_coverage(data.samples[:COUNT], data.centres, data.std)
    print(table(results, real))
    report = {"data": name, "std": data.std, "samples": COUNT, "real": dataclasses.asdict(real), "recipes": {}}
    for recipe, runs in results.items():
        config = dataclasses.asdict(settings(name, recipe, a.seeds[0], a.steps))
        report["recipes"][recipe] = {"config": config, "runs": [result for result, _, _ in runs]}
    write_text(a.out.with_suffix(".json"), json.dumps(report, indent=1) + "\n")
    figure = strip(results, data) if a.strip else picture(results, data, a.steps)
    write(a.out, lambda path: figure.savefig(path, dpi=100, facecolor=PAPER))
    shots = animation(results, data, a.steps < TRAINED)
    pause = [90] * (len(shots) - 1) + [2500]
    shots = [shot.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for shot in shots]
    write(a.out.with_suffix(".gif"), lambda p: shots[0].save(p, save_all=True, append_images=shots[1:], duration=pause, loop=0))
    print(f"wrote {a.out}, {a.out.with_suffix('.gif')} and {a.out.with_suffix('.json')}")


if __name__ == "__main__":
    main()
