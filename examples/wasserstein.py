"""The Wasserstein-1 distance of two known distributions, by a critic with folds and by one with ReLU.

Two problems with a distance in closed form, in the plane: a Gaussian and the same one shifted, where the best critic is a
ramp; and two Gaussians of different width, where it is the cone |x|. Both critics are 1-Lipschitz by orthogonal layers, so both
estimate from below. ReLU manages the ramp, its biases lifting all data over its creases; of the cone it gets about 60 %.

python examples/wasserstein.py --out wasserstein.png
"""

import argparse
import math
from pathlib import Path

import torch
from tqdm import tqdm

from pyfold.folding.pictures import INK, LAYER_COLOURS, new_figure
from pyfold.lipschitz import ACTIVATIONS, LipschitzCritic, wasserstein1
from pyfold.train.files import write

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("wasserstein.png"), help="the picture (default: %(default)s)")
parser.add_argument("--fold", default="maxmin", choices=[a for a in ACTIVATIONS if a not in ("relu", "leaky_relu", "tanh")],
                    help="the fold (default: %(default)s)")  # fmt: skip
parser.add_argument("--steps", type=int, default=400, help="steps that a critic is fitted for (default: %(default)s)")
parser.add_argument("--samples", type=int, default=20_000, help="of each distribution (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="of samples and weights (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="a few steps and samples")
arguments = parser.parse_args()
if arguments.quick:
    arguments.steps, arguments.samples = 60, 4000

torch.manual_seed(arguments.seed)
p, q = torch.randn(2, arguments.samples, 2)
direction = torch.tensor([math.cos(0.5), math.sin(0.5)])
problems = {
    "shifted by 2": (p + 2 * direction, q, 2.0),
    "three times as wide": (3 * p, q, 2 * math.sqrt(math.pi / 2)),  # 2 E|z| in the plane
}
results = {}
for name, (left, right, _) in (bar := tqdm(problems.items())):
    for activation in (arguments.fold, "relu"):
        bar.set_description(f"{name}, {activation}")
        torch.manual_seed(arguments.seed)
        critic = LipschitzCritic(2, 64, 3, activation)
        results[name, activation] = wasserstein1(left, right, critic=critic, steps=arguments.steps)

for name, (_, _, distance) in problems.items():
    print(f"{name}: W1 = {distance:.4f}")
    for activation in (arguments.fold, "relu"):
        found = results[name, activation]
        share = 100 * found.value / distance
        print(f"  {activation:12} {found.value:.4f} +- {found.standard_error:.4f}  ({share:.1f} % of it)")

figure = new_figure(13, 6.6)
grid = figure.subplots(2, 3, width_ratios=(1.25, 1, 1))
reach = torch.linspace(-6, 6, 161)
places = torch.cartesian_prod(reach, reach)
LEVELS = torch.arange(0, 17.5, 0.5)  # one scale for all, so that dense lines are steep
for row, (name, (left, right, distance)) in zip(grid, problems.items(), strict=True):
    curve = row[0]
    curve.axhline(distance, color=INK, linewidth=1, linestyle="--", label=f"W1 = {distance:.3f}")
    for activation, colour in zip((arguments.fold, "relu"), LAYER_COLOURS, strict=False):
        found = results[name, activation]
        curve.plot(found.history, color=colour, linewidth=0.8, alpha=0.55)
        curve.axhline(found.value, color=colour, linewidth=1.8, label=f"{activation}: {found.value:.3f} on fresh samples")
    curve.set(xlabel="step", ylabel="E f(x) - E f(y)", ylim=(0, 1.25 * distance))
    curve.set_title(f"two Gaussians, one {name}", color=INK, fontsize=10)
    curve.legend(fontsize=8, frameon=False, loc="lower right")
    curve.spines[["top", "right"]].set_visible(False)
    for axes, activation in zip(row[1:], (arguments.fold, "relu"), strict=True):
        with torch.no_grad():
            height = results[name, activation].critic(places).reshape(161, 161).T
        height -= height.min()
        axes.contourf(reach, reach, height, levels=LEVELS, cmap="cividis")
        axes.contour(reach, reach, height, levels=LEVELS, colors="white", linewidths=0.35, alpha=0.6)
        for cloud, colour in ((left, "#ffd9c0"), (right, "#9fe3ff")):
            axes.scatter(*cloud[:250].T, s=3, color=colour, linewidths=0)
        axes.set(xlim=(-6, 6), ylim=(-6, 6), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"the critic with {activation}, a line for each half", color=INK, fontsize=10)
for axes in figure.axes:
    axes.set_facecolor("none")
    axes.tick_params(labelsize=8)
write(arguments.out, lambda path: figure.savefig(path, dpi=140))
print(f"picture: {arguments.out}")
