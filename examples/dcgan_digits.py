"""A convolutional GAN on handwritten digits, measured and explored: samples, walks, arithmetic, counterparts of latent codes.

Half of scikit-learn's digits train the GAN, a quarter trains a judge (a small network), and a quarter is kept for the test. The
Frechet distance is taken in the judge's hidden layer, beside that of real training images from real test images, and beside
that of a diffusion model with the same data.

python examples/dcgan_digits.py --out dcgan.png
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from tqdm import tqdm, trange

from pyfold.gan import latent
from pyfold.gan.metrics import frechet_distance
from pyfold.train.config import Config
from pyfold.train.data import Data
from pyfold.train.pictures import image_grid
from pyfold.train.trainers import DiffusionTrainer, GanTrainer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("dcgan.png"), help="the picture")
parser.add_argument("--steps", type=int, default=1500, help="training steps of the GAN")
parser.add_argument("--diffusion-steps", type=int, default=1500, help="training steps of the diffusion model; 0 for none")
parser.add_argument("--activation", default="maxmin", help="a name of pyfold.models.ACTIVATIONS")
parser.add_argument(
    "--augment",
    choices=("none", "fixed", "adaptive"),
    default="none",
    help="fixed: DiffAugment; adaptive: its transforms by ADA's controller",
)
parser.add_argument("--seed", type=int, default=0, help="of everything")
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
arguments = parser.parse_args()
if arguments.quick:
    arguments.steps = arguments.diffusion_steps = 3

bunch = load_digits()
order = np.random.default_rng(0).permutation(len(bunch.target))
pixels, labels = (bunch.images[order] / 8 - 1).reshape(-1, 64).astype(np.float32), bunch.target[order]
train, judged, test = slice(0, 898), slice(898, 1347), slice(1347, None)
judge = MLPClassifier((96, 48), max_iter=30 if arguments.quick else 800, alpha=1e-2, random_state=0)
judge.fit(pixels[judged], labels[judged])


def features(x):
    """The judge's last hidden layer."""
    for weight, bias in zip(judge.coefs_[:-1], judge.intercepts_[:-1], strict=True):
        x = np.maximum(x @ weight + bias, 0)
    return x


def report(name, x):
    shares = np.bincount(judge.predict(x), minlength=10) / len(x)
    distance = frechet_distance(features(x), features(pixels[test]))
    tqdm.write(f"{name:26} {distance:16.2f}    {100 * shares.min():5.1f} to {100 * shares.max():.1f} %")
    return distance, shares


def fit(trainer, steps, name):
    begin = time.perf_counter()
    for step in (bar := trange(steps, desc=name)):
        scalars = trainer.step(step)
        if step % 50 == 0:
            bar.set_postfix({k: f"{v.item():.3f}" for k, v in scalars.items()})
    seeds = torch.arange(-2000, 0)  # none that training uses
    return trainer.sample(seeds), time.perf_counter() - begin


data = Data("digits", torch.from_numpy(pixels[train]).reshape(-1, 1, 8, 8), torch.from_numpy(labels[train]))
common = {"seed": arguments.seed, "activation": arguments.activation}
config = Config("gan", steps=arguments.steps, augment=arguments.augment, **common)
made, gan = {}, GanTrainer(config, data, torch.device("cpu"))
made["GAN"] = fit(gan, arguments.steps, "GAN")
if arguments.diffusion_steps:
    sampler_steps = 3 if arguments.quick else 50
    config = Config("diffusion", steps=arguments.diffusion_steps, sampler_steps=sampler_steps, **common)
    diffusion = DiffusionTrainer(config, data, torch.device("cpu"))
    made["diffusion"] = fit(diffusion, arguments.diffusion_steps, "diffusion")

accuracy = judge.score(pixels[test], labels[test])
tqdm.write(f"{f'(judge right {100 * accuracy:.1f} %)':26} Frechet distance    shares of the ten digits")
report("real train, of real test", pixels[train])
results = {}
for name, (samples, seconds) in made.items():
    results[name] = report(f"{name}, trained {seconds:.0f} s", samples.flatten(1).numpy())
distance, shares = results["GAN"]
within = shares.min() >= 0.05 and shares.max() <= 0.2
tqdm.write(f"all ten digits within a factor of two of a tenth: {'yes' if within else 'no'}")

# Codes of each digit, those that the judge is surest of first.
codes = gan.latents(torch.arange(-2000, 0))
sure = judge.predict_proba(made["GAN"][0].flatten(1).numpy())
ranked = {digit: codes[np.argsort(-sure[:, digit])] for digit in range(10)}
means = {digit: ranked[digit][:40].mean(0) for digit in range(10)}


@torch.no_grad()
def draw(z):
    return gan.average(z)


figure, axes = plt.subplot_mosaic([["samples", "walk"], ["arithmetic", "counterpart"]], figsize=(12, 13), layout="constrained")
if arguments.quick:
    figure.suptitle(f"NOT TRAINED: {arguments.steps} steps, to see that it runs", fontsize=16)
axes["samples"].imshow(image_grid(made["GAN"][0][:100]))
axes["samples"].set_title(f"samples: Frechet distance {distance:.2f}")

walk = torch.cat([latent.slerp(ranked[i][0], ranked[(i + 1) % 10][0], torch.linspace(0, 1, 10)) for i in range(10)])
axes["walk"].imshow(image_grid(draw(walk), 10))
axes["walk"].set_title("walks (slerp) from each digit to the next")

# As in the DCGAN paper, with means of three codes each.
rows = []
ink = lambda z: draw(z).mean((1, 2, 3))  # noqa: E731
for digit in range(10):
    some = ranked[digit][:60]
    by_ink = some[ink(some).argsort()]
    other = ranked[(digit + 1) % 10][:60]
    thin, bold, thin_other = by_ink[:3], by_ink[-3:], other[ink(other).argsort()][:3]
    result = latent.arithmetic([bold, thin_other], [thin], radius=thin_other.shape[1] ** 0.5)
    typical = [latent.rescale(c.mean(0)) for c in (bold, thin, thin_other)]
    rows.append(torch.stack([*typical, result]))
sheet = torch.cat([draw(torch.cat(rows[:5])), draw(torch.cat(rows[5:]))])
wide = torch.cat([sheet[:20].unflatten(0, (5, 4)), sheet[20:].unflatten(0, (5, 4))], 1).flatten(0, 1)
axes["arithmetic"].imshow(image_grid(wide, 8))
axes["arithmetic"].set_title("bold a - thin a + thin b = bold b?  (means of three; two sums a row)")

table = torch.stack([latent.counterpart(ranked[a][0], means[a], means[b]) for a in range(10) for b in range(10)])
axes["counterpart"].imshow(image_grid(draw(table), 10))
named = judge.predict(draw(table).flatten(1).numpy()).reshape(10, 10)
hits = (named == np.arange(10))[~np.eye(10, dtype=bool)].mean()
axes["counterpart"].set_title(f"counterparts: row a as a column b ({100 * hits:.0f} % judged b)")
for axis in axes.values():
    axis.set_axis_off()
arguments.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out, dpi=90)
