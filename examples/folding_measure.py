"""How a network folds space while it learns digits, against its depth.

Networks of one to six hidden layers learn scikit-learn's digits. Again and again the segments between pairs of test images are
followed through each network, every crease of every layer exactly, and the space-folding measure chi is taken: 0 if the path
never turns back to activation patterns that it has left, nearing 1 the more it does. One hidden layer cannot fold.

What one sees: the first epoch irons out the folds that a random network has; then, while the error falls, new ones grow, on the
whole the more the deeper the network.

python examples/folding_measure.py --out folding_measure.png
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from tqdm import tqdm

from pyfold import folding
from pyfold.folding.pictures import INK, LAYER_COLOURS, new_figure
from pyfold.models import ACTIVATIONS, MLP
from pyfold.train.files import write

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("folding_measure.png"), help="the picture (default: %(default)s)")
parser.add_argument("--activation", default="abs", choices=[a for a in ACTIVATIONS if a not in ("silu", "tanh")],
                    help="a piecewise-linear activation (default: %(default)s)")  # fmt: skip
parser.add_argument("--depth", type=int, default=6, help="most hidden layers (default: %(default)s)")
parser.add_argument("--width", type=int, default=64, help="units of a layer (default: %(default)s)")
parser.add_argument("--epochs", type=int, default=100, help="passes over the data (default: %(default)s)")
parser.add_argument("--pairs", type=int, default=60, help="pairs of test images, half within a class (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="of weights, batches and pairs (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="a few epochs and pairs of small networks")
arguments = parser.parse_args()
if arguments.quick:
    arguments.depth, arguments.width, arguments.epochs, arguments.pairs = 3, 16, 4, 6

digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(arguments.seed))
train, test = order[: 3 * len(order) // 4], order[3 * len(order) // 4 :]

# Pairs within a class and between classes, in equal shares.
half = arguments.pairs // 2
drawn = torch.Generator().manual_seed(arguments.seed)
within, between = [], []
while len(within) < half or len(between) < half:
    i, j = test[torch.randint(len(test), (2,), generator=drawn)].tolist()
    chosen = within if labels[i] == labels[j] else between
    if i != j and len(chosen) < half:
        chosen.append((i, j))
start, end = torch.tensor(within + between).T
pairs = images[start], images[end]

watched = sorted({round(arguments.epochs * (k / 12) ** 2) for k in range(13)})
depths = range(1, arguments.depth + 1)
chi, error, report = {}, {}, {}
bar = tqdm(total=len(depths) * arguments.epochs, unit="epoch")
for depth in depths:
    torch.manual_seed(arguments.seed)
    model = MLP(64, 10, arguments.width, depth, arguments.activation)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    chi[depth], error[depth] = [], []
    for epoch in range(arguments.epochs + 1):
        if epoch in watched:
            report[depth] = folding.folding_report(model, pairs)
            chi[depth].append(report[depth].chi)
            with torch.no_grad():
                error[depth].append((model(images[test]).argmax(1) != labels[test]).float().mean().item())
            bar.set_postfix(depth=depth, chi=f"{report[depth].chi.mean():.3f}", error=f"{100 * error[depth][-1]:.1f} %")
        if epoch == arguments.epochs:
            break
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        bar.update()
bar.close()

print(report[arguments.depth])
print("layers  test error  chi at first  chi at last  of which within a class  between classes")
for depth in depths:
    first, last = chi[depth][0], chi[depth][-1]
    print(f"{depth:6d} {100 * error[depth][-1]:9.1f} % {first.mean():13.3f} {last.mean():12.3f} "
          f"{last[:half].mean():24.3f} {last[half:].mean():16.3f}")  # fmt: skip

figure = new_figure(12.5, 4.2)
learning, deep, failing = figure.subplots(1, 3)
for depth in depths:
    colour = LAYER_COLOURS[(depth - 1) % len(LAYER_COLOURS)]
    label = f"{depth} hidden layer{'s' * (depth > 1)}"
    learning.plot(watched, torch.stack(chi[depth]).mean(1), color=colour, marker="o", markersize=3, label=label)
    deep.plot(range(1, depth + 1), [layer.chi for layer in report[depth].layers], color=colour, marker="o", markersize=4)
    failing.plot(watched, [100 * e for e in error[depth]], color=colour, marker="o", markersize=3)
learning.set(xlabel="epoch", ylabel="mean chi between test images", xscale="symlog", xlim=(0, arguments.epochs))
learning.set_title("folding while it learns", color=INK, fontsize=10)
learning.legend(fontsize=8, frameon=False)
deep.set(xlabel="layers counted", ylabel="mean chi of the layers so far, trained", xticks=list(depths))
deep.set_title("folding, layer by layer", color=INK, fontsize=10)
failing.set(xlabel="epoch", ylabel="%", xscale="symlog", yscale="log", xlim=(0, arguments.epochs))
failing.set_title("test error", color=INK, fontsize=10)
for axes in figure.axes:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
write(arguments.out, lambda path: figure.savefig(path, dpi=150))
print(f"picture: {arguments.out}")
