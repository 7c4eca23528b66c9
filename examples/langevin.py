"""A particle in a potential: heated until it is noise, cooled until it is a sample. Langevin dynamics, drawn.

Each step is ``x' = x - h U'(x) + sqrt(2 h T) noise``. While the temperature T is high the particles forget where they were;
as it falls they settle into the wells, each about as often as the Boltzmann density ``exp(-U(x) / T) / Z`` has it, and the
nearer the slower it falls: the picture says at three temperatures how near, beside how near as many independent samples come.
Writes a picture (--out) and an animation beside it (.gif).

python examples/langevin.py --out langevin.png
"""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import pyfold
from pyfold.train.files import write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EDGES = np.linspace(-4.2, 4.2, 106)
INK, COLD, HOT = "#22303c", np.array([0.16, 0.44, 0.72]), np.array([0.88, 0.33, 0.18])


def potential(x):
    """Four wells of unequal depth."""
    return 0.02 * x**4 - 0.2 * x**2 + 0.7 * np.cos(2.4 * x) + 0.1 * x


def slope(x: torch.Tensor) -> torch.Tensor:
    return 0.08 * x**3 - 0.4 * x - 1.68 * torch.sin(2.4 * x) + 0.1


def boltzmann(temperature: float) -> np.ndarray:
    """The density's mean over each bin."""
    fine = np.linspace(-7, 7, 200_001)
    weight = np.exp(-potential(fine) / temperature)
    total = np.concatenate([[0], np.cumsum((weight[1:] + weight[:-1]) / 2)])
    return np.diff(np.interp(EDGES, fine, total / total[-1])) / np.diff(EDGES)


def temperature_at(part: float, cold: float, hot: float) -> float:
    """Heated in the run's first eighth, hot in the second, then cooled in proportion to itself, the last tenth held."""
    if part < 1 / 4:
        return cold * (hot / cold) ** min(8 * part, 1)
    return hot * (cold / hot) ** min((part - 0.25) / 0.65, 1)


def distances(x: np.ndarray, temperature: float) -> tuple[float, float]:
    """Total variation of particles from Boltzmann's density, and what as many independent samples have."""
    width = np.diff(EDGES)
    p = boltzmann(temperature) * width
    measured = np.histogram(x, EDGES)[0] / len(x)
    return 0.5 * abs(measured - p).sum(), 0.5 * np.sqrt(2 * p * (1 - p) / (math.pi * len(x))).sum()


def draw(axes, x: np.ndarray, temperature: float, part: float, cold: float, hot: float) -> None:
    """The particles on their potential, and their histogram on the density of this temperature."""
    warm = math.log(temperature / cold) / math.log(hot / cold)
    colour = (1 - warm) * COLD + warm * HOT
    grid = np.linspace(EDGES[0], EDGES[-1], 600)
    top, bottom = axes
    for ax in axes:
        ax.clear()
        ax.set_xlim(EDGES[0], EDGES[-1])
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.set_yticks([])
    top.plot(grid, potential(grid), color=INK, lw=1.6, label="U")
    few = x[:350]
    # Off the line by an energy of their own, for the eye.
    lift = 0.12 - 0.22 * temperature * np.log(np.linspace(0.02, 1, len(few)))[np.argsort(np.arange(len(few)) * 7919 % 353)]
    top.scatter(few, potential(few) + lift, s=7, color=colour, alpha=0.75, lw=0)
    top.set_ylim(-2.0, 5)
    top.set_title(f"temperature {temperature:4.2f}", color=colour, loc="left", fontsize=13)
    if part < 1:
        top.plot([EDGES[0] + 8.4 * part], [4.8], "v", color=colour, ms=6)
    density, _ = np.histogram(x, EDGES)
    bottom.stairs(density / len(x) / np.diff(EDGES), EDGES, fill=True, color=colour, alpha=0.35)
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    bottom.plot(middles, boltzmann(temperature), color=INK, lw=1.6, label=r"$e^{-U/T}/Z$")
    bottom.set_ylim(0, 0.9)
    bottom.legend(frameon=False, loc="upper right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("langevin.png"), help="picture; the animation lies beside it")
    parser.add_argument("--particles", type=int, default=100_000, help="particles, of which 350 are drawn")
    parser.add_argument("--steps", type=int, default=12_000, help="steps of the dynamics")
    parser.add_argument("--frames", type=int, default=120, help="frames of the animation")
    parser.add_argument("--step-size", type=float, default=8e-3, help="h, time of a step")
    parser.add_argument("--cold", type=float, default=0.5, help="temperature at both ends")
    parser.add_argument("--hot", type=float, default=6.0, help="temperature between")
    parser.add_argument("--seed", type=int, default=1, help="of the noise")
    parser.add_argument("--quick", action="store_true", help="seconds instead of a minute: fewer of everything")
    a = parser.parse_args()
    if a.quick:
        a.particles, a.steps, a.frames = 20_000, 6000, 6

    seeds = torch.tensor([a.seed])
    x = torch.full((1, a.particles), -1.2)  # all in one well
    every = max(a.steps // a.frames, 1)
    figure, axes = plt.subplots(2, 1, figsize=(6.4, 5.2), dpi=90, height_ratios=[3, 2], layout="constrained")
    shots, kept, halfway = [], {}, 0.25 + 0.65 / 2
    for step in tqdm(range(a.steps)):
        part = step / a.steps
        temperature = temperature_at(part, a.cold, a.hot)
        for moment in (0.25, halfway):
            if part >= moment and moment not in kept:
                kept[moment] = x[0].numpy().copy(), temperature
        if step % every == 0:
            draw(axes, x[0].numpy(), temperature, part, a.cold, a.hot)
            figure.canvas.draw()
            shots.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()).quantize(64))
        x.sub_(slope(x), alpha=a.step_size)
        # Noise and its addition in one pass, the same bits on every machine.
        pyfold.add_noise(x, 1.0, math.sqrt(2 * a.step_size * temperature), seeds, stream=32, step=step, out=x)
    plt.close(figure)

    columns = [*[kept[part] for part in sorted(kept)], (x[0].numpy(), a.cold)]
    figure, axes = plt.subplots(2, len(columns), figsize=(13.5, 5.2), dpi=100, height_ratios=[3, 2], layout="constrained")
    for pair, (particles, temperature) in zip(axes.T, columns, strict=True):
        draw(pair, particles, temperature, 1.0, a.cold, a.hot)
        distance, chance = distances(particles, temperature)
        pair[1].set_title(
            f"{distance:.3f} from Boltzmann's density ({chance:.3f} by chance)", loc="left", fontsize=10, color=INK
        )
        print(f"T = {temperature:.2f}: total variation from Boltzmann's density {distance:.4f}, of {a.particles} particles")
        print(f"    of which {chance:.4f} is what so many independent samples have")
    for ax, name in zip(axes[:, 0], ("potential U", "where they are"), strict=True):
        ax.set_ylabel(name, color=INK)
    write(a.out, figure.savefig)
    animation = a.out.with_suffix(".gif")
    write(animation, lambda path: shots[0].save(path, save_all=True, append_images=shots[1:], duration=80, loop=0))
    print(f"wrote {a.out} and {animation}")


if __name__ == "__main__":
    main()
