"""A fold of the simplest kind: abs folds the number line at 0, so that -3 comes to lie on 3.

Above, the line is bent at 0 until it lies on itself: nothing is torn or stretched, two numbers share a place. Below, a
deep network is folds of folds: abs, a shift, abs, a shift. Each fold of the pile doubles the pieces of the graph, as paper
that is folded n times has 2^n sheets, where a sum of n abs side by side has n + 1 pieces: that is what depth is for.

python examples/number_line.py --out number_line.png
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from pyfold.folding import line
from pyfold.folding.pictures import INK, LAYER_COLOURS, new_figure
from pyfold.nn import Fold
from pyfold.train.files import write

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("number_line.png"), help="the picture (default: %(default)s)")
parser.add_argument("--folds", type=int, default=4, choices=range(1, 7), metavar="1-6", help="at most (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="it takes seconds anyway")
arguments = parser.parse_args()

BENT = (0, 60, 120, 172)  # degrees by which the left half is turned
LEFT, RIGHT = LAYER_COLOURS[1], LAYER_COLOURS[0]


class Shift(torch.nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x - self.by


def deep(folds):
    """| ... ||x| - 2| - 1 ... |: each fold at the middle of what the one before has left."""
    layers = []
    for k in range(folds):
        layers += [Fold("abs"), Shift(4 / 2 ** (k + 1))]
    return torch.nn.Sequential(*layers[:-1])


figure = new_figure(12.5, 6.2)
above, below = figure.subfigures(2, 1, height_ratios=(1, 1.05))
for part in (above, below):
    part.set_facecolor("none")

for axes, degrees in zip(above.subplots(1, len(BENT)), BENT, strict=True):
    angle = np.deg2rad(180 - degrees)
    for x in range(-4, 5):
        turned, colour = (angle, LEFT) if x < 0 else (0, RIGHT)
        # Numbers stand outside of the bend.
        beside = turned + np.pi / 2 if x < 0 else -np.pi / 2
        place = abs(x) * np.array([np.cos(turned), np.sin(turned)])
        text = place + 0.55 * np.array([np.cos(beside), np.sin(beside)])
        strong = abs(x) == 3
        axes.plot(*place, "o", ms=8 if strong else 4, color=colour, zorder=3)
        axes.text(*text, f"{x}", ha="center", va="center", fontsize=11 if strong else 8, color=colour)
    axes.plot([0, 4.4], [0, 0], color=RIGHT, lw=2)
    axes.plot([0, 4.4 * np.cos(angle)], [0, 4.4 * np.sin(angle)], color=LEFT, lw=2)
    axes.set(xlim=(-4.9, 4.9), ylim=(-1.1, 4.9), aspect="equal")
    axes.axis("off")
titles = ("the number line", "bent at 0 ...", "... and further ...", "folded: -3 lies on 3")
for axes, title in zip(above.axes, titles, strict=True):
    axes.set_title(title, fontsize=11, color=INK)

print("| folds | pieces | as many abs side by side |")
print("|---|---|---|")
panels = below.subplots(1, arguments.folds, squeeze=False)[0]
for folds, axes in enumerate(panels, 1):
    found = line(deep(folds), torch.tensor([-4.0]), torch.tensor([4.0]))
    pieces = len(found.t) - 1
    print(f"| {folds} | {pieces} | {folds + 1} |")
    axes.plot(8 * found.t - 4, found.outputs[:, 0], color=INK, lw=1.8)
    axes.set(xlim=(-4.2, 4.2), ylim=(-0.15, 4.2), xticks=[-4, 0, 4], yticks=[0, 4], facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{folds} fold{'s' * (folds > 1)}: {pieces} pieces", fontsize=11, color=INK)
panels[0].set_ylabel("output", color=INK)
write(arguments.out, lambda path: figure.savefig(path, dpi=110))
print(f"wrote {arguments.out}")
