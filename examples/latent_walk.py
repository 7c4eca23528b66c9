"""Walks and sums among the codes of a GAN (Radford, Metz and Chintala 2016, sections 6.1 and 6.3.2), on handwritten digits.

A walk along the great circle between two codes changes a digit into another without a jump, and its pictures are as far from
the training digits as digits that nobody saw: the GAN drew them, and did not look them up. A sum of codes is of concepts, each
the mean of three codes: leaning a - upright a + b should be a leaning b. A judge that saw other digits says whether it is a b.
The control takes three codes of a from three others of a, at random.

python examples/latent_walk.py --out latent_walk.png
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from tqdm import trange

from pyfold.gan import latent
from pyfold.train.config import Config
from pyfold.train.data import Data
from pyfold.train.files import write
from pyfold.train.pictures import image_grid
from pyfold.train.trainers import GanTrainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("latent_walk.png"), help="the picture (default: %(default)s)")
parser.add_argument("--steps", type=int, default=1500, help="training steps of the GAN (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="of everything (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
arguments = parser.parse_args()
STEPS = 3 if arguments.quick else arguments.steps
CODES = 4000

bunch = load_digits()
order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(arguments.seed))
pixels = (torch.tensor(bunch.images, dtype=torch.float32) / 8 - 1)[order, None]
labels = torch.from_numpy(bunch.target)[order]
train, judged, unseen = pixels[:898], pixels[898:1347], pixels[1347:]
judge = MLPClassifier((96, 48), max_iter=30 if arguments.quick else 800, alpha=1e-2, random_state=0)
judge.fit(judged.flatten(1), labels[898:1347])

config = Config("gan", steps=STEPS, seed=arguments.seed)
gan = GanTrainer(config, Data("digits", train, labels[:898]), torch.device("cpu"))
for step in trange(STEPS, desc="GAN"):
    gan.step(step)
codes = gan.latents(torch.arange(-CODES, 0))  # of seeds that training never uses


@torch.no_grad()
def draw(z):
    return gan.average(z)


def probabilities(x):
    return torch.from_numpy(judge.predict_proba(x.flatten(1)))


def lean(x):
    """How far the ink moves to the right from a row to the one above it; [N]."""
    ink = (x[:, 0] + 1) / 2 + 1e-6
    place = torch.arange(8.0) - 3.5
    total = ink.sum((1, 2))
    centre = [(ink.sum(dim) * place).sum(1) / total for dim in (1, 2)]
    dx, dy = place[None, None, :] - centre[0][:, None, None], place[None, :, None] - centre[1][:, None, None]
    return -(ink * dx * dy).sum((1, 2)) / (ink * dy * dy).sum((1, 2))


def nearest(x):
    """Distance to the nearest training digit; [N]."""
    return torch.cdist(x.flatten(1), train.flatten(1)).min(1).values


drawn = draw(codes)
surest = [row.argsort(descending=True) for row in probabilities(drawn).T]

# Walks: from the surest 0 to the surest 1, and so on.
along = torch.linspace(0, 1, 10)
walks = torch.stack([draw(latent.slerp(codes[surest[i][0]], codes[surest[(i + 1) % 10][0]], along)) for i in range(10)])
fine = torch.stack(
    [draw(latent.slerp(codes[surest[i][0]], codes[surest[(i + 1) % 10][0]], torch.linspace(0, 1, 101))) for i in range(10)]
)
moves = fine.diff(dim=1).flatten(2).norm(dim=2)
jump = (moves.max(1).values / moves.sum(1)).max().item()

# Sums: of the 150 surest of a digit, the three that lean most, and the three that lean least.
leaning, upright, some = [], [], []
slants = lean(drawn)
generator = torch.Generator().manual_seed(arguments.seed)
for digit in range(10):
    of_digit = surest[digit][:150]
    by_lean = of_digit[slants[of_digit].argsort()]
    upright.append(codes[by_lean[:3]])
    leaning.append(codes[by_lean[-3:]])
    some.append(codes[of_digit[torch.randperm(150, generator=generator)]])
sure = [codes[surest[digit][:3]] for digit in range(10)]
mean = lambda concept: latent.rescale(concept.mean(0))  # noqa: E731
pairs = [(a, b) for a in range(10) for b in range(10) if a != b]
size = config.latent**0.5
results = {
    "leaning a - upright a + b": [latent.arithmetic([leaning[a], sure[b]], [upright[a]], radius=size) for a, b in pairs],
    "some a - other a + b": [latent.arithmetic([some[a][:3], sure[b]], [some[a][3:6]], radius=size) for a, b in pairs],
    "b": [mean(sure[b]) for _, b in pairs],
}
before = lean(draw(torch.stack(results["b"])))
target = torch.tensor([b for _, b in pairs])

print("| walk, nine steps each | |")
print("|---|---|")
print(f"| longest of 100 steps, of its walk | {100 * jump:.1f} % |")
print(f"| distance to the nearest training digit, median | {nearest(walks.flatten(0, 1)).median():.2f} |")
print(f"| of digits that nobody saw | {nearest(unseen).median():.2f} |")
print("| mean of three codes each | judged b | leans more than b |")
print("|---|---|---|")
for name, z in results.items():
    made = draw(torch.stack(z))
    right = (probabilities(made).argmax(1) == target).float().mean().item()
    more = (lean(made) > before).float().mean().item()
    print(f"| {name} | {100 * right:.0f} % | {100 * more:.0f} % |")

rows = []
for a in range(10):
    b = (a + 1) % 10
    sum_of = results["leaning a - upright a + b"][pairs.index((a, b))]
    rows.append(draw(torch.stack([mean(leaning[a]), mean(upright[a]), mean(sure[b]), sum_of])))
figure, axes = plt.subplots(1, 2, figsize=(10, 7.2), dpi=100, layout="constrained", width_ratios=(10, 4))
axes[0].imshow(image_grid(walks.flatten(0, 1), 10))
axes[0].set_title("walks from each digit to the next", loc="left", fontsize=11, color="#22303c")
axes[1].imshow(image_grid(torch.cat(rows), 4))
axes[1].set_title("leaning a - upright a + b = ?", loc="left", fontsize=11, color="#22303c")
for ax in axes:
    ax.axis("off")
if arguments.quick:
    figure.suptitle(f"NOT TRAINED: {STEPS} steps, to see that it runs")
write(arguments.out, figure.savefig)
print(f"wrote {arguments.out}")
