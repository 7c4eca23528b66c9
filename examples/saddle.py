"""The game V(x, y) = x y: one player lowers V by x, the other raises it by y, and plain gradient descent never ends it.

Each dynamic of pyfold.gan.dynamics plays from the same point. The table holds the factor by which it moves away from or
towards the solution in each step, as measured and as the theory says; the picture draws the paths.

python examples/saddle.py --out saddle.png
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

from pyfold import gan
from pyfold.folding.pictures import INK, LAYER_COLOURS, new_figure
from pyfold.train.files import write

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("saddle.png"), help="the picture (default: %(default)s)")
parser.add_argument("--step-size", type=float, default=0.2, help="g of every player's descent (default: %(default)s)")
parser.add_argument("--steps", type=int, default=400, help="steps of each dynamic (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="as few steps as will do")
arguments = parser.parse_args()
g, steps = arguments.step_size, 60 if arguments.quick else arguments.steps
if not 0 < g < 1 / math.sqrt(3):
    parser.error(f"--step-size must be in (0, {1 / math.sqrt(3):.3f}), where every dynamic but the simultaneous one is stable")

ON_SURFACE = {"simultaneous": LAYER_COLOURS[1], "alternating": INK, "extragradient": LAYER_COLOURS[5]}
STRENGTH = 0.3
AHEAD, RATE = 5, 0.06


def negative_momentum(momentum):
    """The map of (x, y, x before, y before) under alternating steps with momentum; y's step sees the x that has moved."""
    x = np.array([1 + momentum, -g, -momentum, 0])
    return np.stack([x, g * x + [0, 1 + momentum, 0, -momentum], [1, 0, 0, 0], [0, 1, 0, 0]])


#: name -> (settings, the exact factor of the distance in each step)
DYNAMICS = {
    "simultaneous": ({}, math.hypot(1, g)),
    "alternating": ({}, 1.0),
    "negative momentum": ({"momentum": -0.5}, max(abs(np.linalg.eigvals(negative_momentum(-0.5))))),
    "extragradient": ({}, math.sqrt(1 - g**2 + g**4)),
    "optimistic": ({}, max(abs(np.roots([1, -(1 - 2j * g), -1j * g])))),
    "proximal": ({"iterations": 25}, 1 / math.hypot(1, g)),
    "consensus": ({"strength": STRENGTH}, math.hypot(1 - g * STRENGTH, g)),
    "symplectic": ({"strength": STRENGTH}, math.hypot(1 - g * STRENGTH, g)),
    "unrolled": ({"steps": AHEAD, "rate": RATE, "leader": 0}, math.sqrt(1 - 2 * AHEAD * RATE * g + g * g)),
}


def play(name, settings):
    x, y = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (1.0, 0.0))
    players = [torch.optim.SGD([x], lr=g), torch.optim.SGD([y], lr=g)]
    make = gan.DYNAMICS.get(name, gan.DYNAMICS["alternating"])
    dynamic = make(players, lambda: ((x * y).sum(), -(x * y).sum()), **settings)
    path = [(x.item(), y.item())]
    for _ in trange(steps, desc=name, leave=False):
        dynamic.step()
        path.append((x.item(), y.item()))
    return np.array(path)


figure = new_figure(21, 7)
left, right = figure.subfigures(1, 2, width_ratios=(1, 3))
surface = left.add_subplot(projection="3d", computed_zorder=False)
side = np.linspace(-2.4, 2.4, 61)
surface.plot_surface(side[:, None], side[None], side[:, None] * side, cmap="coolwarm", alpha=0.45, linewidth=0, zorder=1)
axes = right.subplots(2, 5).flat
print(f"{'dynamic':19}{'measured':>14}{'exact':>14}   a step of size {g:g}")
for axis, (name, (settings, exact)) in zip(axes, DYNAMICS.items(), strict=False):
    path = play(name, settings)
    # The triangle of the solution and two places in a row shrinks by the factor's square, also where the radius swings.
    area = abs(np.cross(np.pad(path[:-1], ((0, 0), (0, 1))), np.pad(path[1:], ((0, 0), (0, 1))))[:, 2])
    half = steps // 2
    measured = (area[-1] / area[half]) ** (0.5 / (len(area) - 1 - half))
    print(f"{name:19}{measured:14.9f}{exact:14.9f}")
    if name in ON_SURFACE:
        climbed = path[:45]
        surface.plot(*climbed.T, climbed.prod(1), color=ON_SURFACE[name], lw=1.8, zorder=2, label=name)
    drawn = path[: min(steps, 90) + 1]
    axis.plot(*drawn.T, color=INK, linewidth=0.5, alpha=0.4)
    axis.scatter(*drawn.T, c=np.arange(len(drawn)), cmap="plasma", s=11, zorder=2)
    axis.scatter(0, 0, marker="+", color=INK, s=60, linewidth=1.2, zorder=3)
    reach = max(1.25, 1.08 * abs(drawn).max())
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", title=f"{name}: {exact:.5f} a step")
surface.set_facecolor("none")
surface.set(xlabel="x: lowers V", ylabel="y: raises V", zlabel="V")
surface.set_title("V = x y, and three ways to play on it", fontsize=13)
surface.legend(frameon=False, loc="upper left")
last = axes[9]
for name, (_, exact) in DYNAMICS.items():
    last.plot(exact ** np.arange(200), label=name, linewidth=1.4, linestyle="--" if name == "symplectic" else "-")
last.set(yscale="log", title="distance to the solution, exact", xlabel="steps", ylim=(1e-8, 60))
last.legend(fontsize=7, frameon=False)
write(arguments.out, lambda path: figure.savefig(path, dpi=90))
print(f"wrote {arguments.out}")
