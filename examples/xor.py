"""XOR by one fold: the plane is folded along a learned line, and what no line could separate, one line separates.

The network is a fold with a learned crease (one angle, one shift: one bit for each point) and a linear layer.

python examples/xor.py --out xor.png
"""

import argparse
from pathlib import Path

import torch
from matplotlib.collections import LineCollection
from torch import nn
from tqdm import trange

from pyfold import folding
from pyfold.folding.pictures import INK, LAYER_COLOURS, new_figure
from pyfold.nn import Fold
from pyfold.train.files import write

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("xor.png"), help="the picture (default: %(default)s)")
parser.add_argument("--steps", type=int, default=600, help="training steps (default: %(default)s)")
parser.add_argument("--points", type=int, default=400, help="points in the four clouds (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="of data and weights (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="as few steps as will do")
arguments = parser.parse_args()
steps = 300 if arguments.quick else arguments.steps

torch.manual_seed(arguments.seed)
corner = torch.randint(2, (arguments.points, 2))
points = 2.0 * corner - 1 + 0.22 * torch.randn(arguments.points, 2)
labels = (corner[:, 0] != corner[:, 1]).float()

model = nn.Sequential(Fold("householder", 2, bias=True), nn.Linear(2, 1))
nn.init.uniform_(model[0].angle, 0, 2 * torch.pi)
line_alone = nn.Linear(2, 1)
optimizer = torch.optim.Adam([*model.parameters(), *line_alone.parameters()], lr=0.05)
for _ in trange(steps, desc="learning where to fold"):
    loss = sum(nn.functional.binary_cross_entropy_with_logits(m(points).squeeze(1), labels) for m in (model, line_alone))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def accuracy(network):
    return ((network(points).squeeze(1) > 0) == labels.bool()).float().mean().item()


plane = folding.plane(model, torch.zeros(2), *torch.eye(2), bounds=(-2, 2, -2, 2))
print(f"a line alone: {100 * accuracy(line_alone):.1f} % right; one fold and a line: {100 * accuracy(model):.1f} %")
print(f"regions of the plane: {plane.regions}; the crease at {model[0].angle.rad2deg().item() / 2 % 180:.1f} degrees")

# --- the picture: the sheet with its crease, the sheet folded, and the answer on the sheet unfolded again
COLOURS = (LAYER_COLOURS[0], LAYER_COLOURS[1])
figure = new_figure(12, 4.4)
sheet, folded, unfolded = figure.subplots(1, 3)
fold, readout = (m.requires_grad_(False) for m in model)
side = torch.linspace(-2, 2, 401)
grid = torch.cartesian_prod(side, side)
logits = model(grid).reshape(401, 401).T

ruled = torch.linspace(-2, 2, 17)
lines = [torch.stack([torch.full_like(side, r), side], 1) for r in ruled] + [
    torch.stack([side, torch.full_like(side, r)], 1) for r in ruled
]
for axes, move in ((sheet, lambda x: x), (folded, lambda x: fold(x) - fold.bias)):
    axes.add_collection(LineCollection([move(s).numpy() for s in lines], colors="#cfcabd", linewidths=0.7))
for axes in (sheet, unfolded):
    axes.add_collection(LineCollection(plane.creases, colors=INK, linewidths=1.4, linestyles="--"))
    axes.set(xlim=(-2, 2), ylim=(-2, 2))
unfolded.contourf(side, side, logits, levels=[-1e9, 0, 1e9], colors=COLOURS, alpha=0.16)
unfolded.contour(side, side, logits, levels=[0], colors=INK, linewidths=1.6)

# One line, in the folded sheet.
weight = readout.weight[0]
bias = readout.bias + weight @ fold.bias
along = torch.tensor([-weight[1], weight[0]]) / weight.norm()
middle = -bias * weight / weight.square().sum()
folded.plot(*torch.stack([middle - 6 * along, middle + 6 * along]).T, color=INK, linewidth=1.6)
images = fold(points) - fold.bias
span = fold(grid) - fold.bias
for axes, where in ((sheet, points), (folded, images), (unfolded, points)):
    for label, colour in enumerate(COLOURS):
        axes.scatter(*where[labels == label].T, s=9, color=colour, alpha=0.75, linewidths=0, zorder=3)
    axes.set_aspect("equal")
    axes.axis("off")
folded.set(xlim=(span[:, 0].min() - 0.1, span[:, 0].max() + 0.1), ylim=(span[:, 1].min() - 0.1, span[:, 1].max() + 0.1))
sheet.set_title("XOR, and the crease that was learned", color=INK, fontsize=11)
folded.set_title("folded: one line is enough", color=INK, fontsize=11)
unfolded.set_title("unfolded again: the line has become two", color=INK, fontsize=11)
write(arguments.out, lambda path: figure.savefig(path, dpi=150))
print(f"picture: {arguments.out}")
