"""The paper that a network folds, while it learns: the regions between its creases, along training.

A network of abs folds is affine between its creases, so it cuts the plane into polygons, each with a formula of its own. It
learns to tell two spirals apart. At first its creases lie anywhere; then they gather where the two meet, and the boundary
(black) is pieced together from straight lines.

python examples/regions.py --out regions.png
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from tqdm import trange

from pyfold import folding
from pyfold.folding.pictures import INK, LAYER_COLOURS, crease_pattern, new_figure
from pyfold.models import MLP
from pyfold.train.files import write

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("regions.png"), help="the picture (default: %(default)s)")
parser.add_argument("--width", type=int, default=16, help="units of each of three layers (default: %(default)s)")
parser.add_argument("--steps", type=int, default=2000, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="of data and weights (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="a few steps of a small network, to see that it runs")
arguments = parser.parse_args()
if arguments.quick:
    arguments.width, arguments.steps = 6, 100
DRAWN = sorted({round(arguments.steps * part) for part in (0, 0.02, 0.15, 1)})

torch.manual_seed(arguments.seed)
labels = torch.arange(400) % 2
radius = torch.linspace(0.15, 1, 400)
angle = 1.35 * 2 * torch.pi * radius + torch.pi * labels
points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + 0.02 * torch.randn(400, 2)
model = MLP(2, 1, arguments.width, 3, "abs")
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

figure = new_figure(4 * len(DRAWN), 4.5)
panels = iter(figure.subplots(1, len(DRAWN)))
side = torch.linspace(-1.2, 1.2, 300)
print("| step | regions | right |")
print("|---|---|---|")
for step in trange(arguments.steps + 1, leave=False):
    logits = model(points).squeeze(1)
    if step in DRAWN:
        axes = next(panels)
        plane = folding.plane(model, torch.zeros(2), *torch.eye(2), bounds=(-1.2, 1.2, -1.2, 1.2))
        crease_pattern(plane, axes)
        right = ((logits > 0) == labels.bool()).float().mean().item()
        with torch.no_grad():
            surface = model(torch.cartesian_prod(side, side)).reshape(300, 300).T
        axes.contour(side, side, surface, levels=[0], colors="black", linewidths=2.2)
        for label in (0, 1):
            axes.scatter(*points[labels == label].T, s=7, color=LAYER_COLOURS[3 * label], linewidths=0, zorder=3)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"step {step}: {plane.regions} regions, {right:.0%} right", fontsize=12, color=INK)
        if step:
            axes.get_legend().remove()
        print(f"| {step} | {plane.regions} | {right:.1%} |")
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
write(arguments.out, lambda path: figure.savefig(path, dpi=100))
print(f"wrote {arguments.out}")
