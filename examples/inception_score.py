"""What the Inception score sees, and what it does not: two ways to score high with nothing to show.

The score is exp of the mean divergence of p(y | x) from p(y) by a classifier (Salimans et al. 2016, section 4; on its failings
Barratt and Sharma 2018). Four sets of 8 x 8 digits, judged by it, by the Frechet distance and by recall and coverage:

  real        digits that neither the classifier nor the model saw
  diffusion   samples of a small diffusion model
  fooled      noise, moved by gradient ascent on the score itself: it looks like nothing
  collapsed   ten digits, one of each kind, over and over

python examples/inception_score.py --out inception.png
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits
from tqdm import trange

import pyfold
from pyfold import diffusion
from pyfold.gan.metrics import classifier_score, frechet_distance, manifold_metrics
from pyfold.models import MLP, MLPDenoiser
from pyfold.train.files import write
from pyfold.train.pictures import image_grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("inception.png"), help="the picture (default: %(default)s)")
parser.add_argument("--steps", type=int, default=4000, help="training steps of the diffusion model (default: %(default)s)")
parser.add_argument("--seed", type=int, default=1, help="of everything (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
arguments = parser.parse_args()
STEPS = 20 if arguments.quick else arguments.steps
ASCENT, SEEDS = 300, arguments.seed << 40

bunch = load_digits()
order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(arguments.seed))
IMAGES = torch.tensor(bunch.images, dtype=torch.float32).flatten(1)[order] / 8 - 1
LABELS = torch.from_numpy(bunch.target)[order]
HALF = len(IMAGES) // 2
train, labels, real = IMAGES[:HALF], LABELS[:HALF], IMAGES[HALF:]


def fit(network, loss_of, steps):
    torch.manual_seed(arguments.seed)
    optimizer = torch.optim.Adam(network.parameters())
    for step in trange(steps, leave=False):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        loss = loss_of(network, step, torch.randint(HALF, (128,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False)


def probabilities(x):
    return (head(body(x))).softmax(1)


torch.manual_seed(arguments.seed)
body, head = MLP(64, 64, 128, 2, "maxmin"), torch.nn.Linear(64, 10)
classifier = torch.nn.Sequential(body, head)
fit(classifier, lambda net, step, rows: torch.nn.functional.cross_entropy(net(train[rows]), labels[rows]), 600)
right = (probabilities(real).argmax(1) == LABELS[HALF:]).float().mean().item()

schedule = diffusion.vp_cosine()
objective = diffusion.TrainingLoss(schedule, "v")


def denoising(net, step, rows):
    noised = objective.noise(train[rows], torch.arange(step * 128, step * 128 + 128) + SEEDS)
    return objective(net(noised.x_t, noised.t / 1000), noised).mean()


denoiser = fit(MLPDenoiser(64, 256, 3, "maxmin"), denoising, STEPS)
plan = diffusion.ddim(schedule, 50, prediction="v")
generated = diffusion.sample(lambda x, t: denoiser(x, t / 1000), plan, (64,), torch.arange(len(real)) + SEEDS).clamp(-1, 1)

fooled = pyfold.randn(torch.arange(len(real)) + SEEDS, (64,), stream=32).mul_(0.5).requires_grad_(True)
optimizer = torch.optim.Adam([fooled], 0.02)
for _ in trange(ASCENT, leave=False):
    p = probabilities(fooled.clamp(-1, 1))
    score = (p * (p.clamp_min(1e-12).log() - p.mean(0).log())).sum(1).mean()
    optimizer.zero_grad()
    (-score).backward()
    optimizer.step()
fooled = fooled.detach().clamp(-1, 1)

ten = torch.stack(
    [real[LABELS[HALF:] == digit][probabilities(real[LABELS[HALF:] == digit])[:, digit].argmax()] for digit in range(10)]
)
collapsed = ten.repeat(-(-len(real) // 10), 1)[: len(real)]

sets = {"real": real, "diffusion": generated, "fooled": fooled, "collapsed": collapsed}
print(f"the classifier is right on {right:.1%} of {len(real)} digits it never saw")
print("| set | Inception score (at most 10) | Frechet distance | recall | coverage |")
print("|---|---|---|---|---|")
captions = []
for name, x in sets.items():
    score = classifier_score(probabilities(x).double())
    distance = frechet_distance(body(train).double(), body(x).double())
    spread = manifold_metrics(train.double(), x.double())
    print(f"| {name} | {score:.2f} | {distance:.2f} | {spread.recall:.2f} | {spread.coverage:.2f} |")
    captions.append(f"{name}\nInception score {score:.2f}\nFrechet distance {distance:.1f}\ncoverage {spread.coverage:.2f}")

figure, axes = plt.subplots(1, len(sets), figsize=(10, 3.9), dpi=100, layout="constrained")
for ax, caption, x in zip(axes, captions, sets.values(), strict=True):
    ax.imshow(image_grid(x[:25].reshape(-1, 1, 8, 8), 5))
    ax.set_title(caption, loc="left", fontsize=10, color="#22303c")
    ax.axis("off")
write(arguments.out, figure.savefig)
print(f"wrote {arguments.out}")
