"""A thousand modes: three digits stacked as the colours of one image, with a plain GAN and with pyfold's recipe, side by side.

The stand-in for Stacked-MNIST (Metz et al. 2017, section 3.3.1) that two cores can train: scikit-learn's 8 x 8 digits, each
colour drawn by itself, so that all 1000 triples are equally likely. A judge names the digit of each colour of 25,600 samples;
reported are the triples that occur and the Kullback-Leibler divergence of their shares from uniform, beside real stacks.

python examples/stacked_digits.py --out stacked.png
"""

import argparse
import copy
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from tqdm import tqdm, trange

import pyfold
from pyfold import gan
from pyfold.gan.augment import pack
from pyfold.models import Discriminator, Generator
from pyfold.train.pictures import image_grid
from pyfold.train.trainers import update_average

matplotlib.use("Agg")
import matplotlib.pyplot as plt

#: name -> loss, weight of R1 and R2, samples in a pack, activation
RECIPES = {
    "plain": ("non_saturating", 0.0, 1, "leaky_relu"),
    "packed": ("non_saturating", 0.0, 2, "leaky_relu"),
    "recommended": ("relativistic", 1.0, 1, "maxmin"),
}
LATENT, BATCH, COUNT = 64, 64, 25_600

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "--out", type=Path, default=Path("stacked.png"), help="picture of samples and of the modes found on the way"
)
parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=["plain", "recommended"], help="what to train")
parser.add_argument("--steps", type=int, default=1500, help="training steps of each recipe; 1000 take about a minute")
parser.add_argument("--width", type=int, default=24, help="channels of the generator at full resolution")
parser.add_argument("--critic-width", type=int, default=24, help="channels of the discriminator; less makes collapse likelier")
parser.add_argument("--seed", type=int, default=0, help="of weights, batches and latents")
parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
arguments = parser.parse_args()
if arguments.quick:
    arguments.steps, COUNT = 4, 400

bunch = load_digits()
digits = torch.tensor(bunch.images, dtype=torch.float32) / 8 - 1
judge = SVC().fit(digits.flatten(1), bunch.target)


def real_batch(step, size=BATCH):
    generator = torch.Generator().manual_seed(arguments.seed * 1_000_003 + step)
    return digits[torch.randint(len(digits), (size, 3), generator=generator)]


def latents(step):
    first = (arguments.seed << 40) + step * BATCH
    return pyfold.randn(torch.arange(first, first + BATCH), (LATENT,), stream=32)


def modes(samples):
    """Triples of digits that occur, and KL(shares | uniform) in nats."""
    labels = judge.predict(samples.flatten(0, 1).flatten(1).numpy()).reshape(-1, 3)
    shares = np.bincount(labels @ [100, 10, 1], minlength=1000) / len(labels)
    found = shares[shares > 0]
    return len(found), float((found * np.log(found * 1000)).sum())


def train(name):
    loss, gamma, size, activation = RECIPES[name]
    d_loss, g_loss = gan.LOSSES[loss]
    torch.manual_seed(arguments.seed)
    generator = Generator(3, 8, LATENT, arguments.width, activation)
    critic = Discriminator(3 * size, 8, arguments.critic_width, activation)
    average = copy.deepcopy(generator).requires_grad_(False)
    players = [torch.optim.Adam(m.parameters(), 1e-3, betas=(0.0, 0.99)) for m in (generator, critic)]

    @torch.no_grad()
    def sample():
        seeds = torch.arange(-COUNT, 0)  # none that training uses
        return torch.cat([average(pyfold.randn(part, (LATENT,), stream=32)) for part in seeds.split(1600)])

    curve, begin = [], time.perf_counter()
    for step in (bar := trange(arguments.steps, desc=name)):
        for player in players:  # the last third cools down
            player.param_groups[0]["lr"] = 1e-3 * min(1.0, 3 * (1 - step / arguments.steps))
        z, rows = latents(step), real_batch(step)
        real, fake = pack(rows, size).requires_grad_(), pack(generator(z).detach(), size).requires_grad_()
        real_logits, fake_logits = critic(real), critic(fake)
        loss = d_loss(real_logits, fake_logits)
        if gamma:
            loss = loss + gan.r1_penalty(real_logits, real, gamma) + gan.r2_penalty(fake_logits, fake, gamma)
        players[1].zero_grad()
        loss.backward()
        players[1].step()

        players[0].zero_grad()
        g_loss(critic(pack(generator(z), size)), real_logits.detach()).backward()
        players[0].step()
        update_average(average, generator, 0.998, step)
        if (step + 1) % max(arguments.steps // 5, 1) == 0:
            seconds = time.perf_counter() - begin
            samples = sample()
            curve.append((step + 1, *modes(samples)))
            bar.set_postfix(modes=curve[-1][1], kl=f"{curve[-1][2]:.3f}")
            begin = time.perf_counter() - seconds  # without the judge
    return samples, curve, time.perf_counter() - begin


results = {name: train(name) for name in arguments.recipes}
of_real = modes(real_batch(-1, COUNT))
lines = [f"{'':14}{'modes':>6}{'KL':>8}{'seconds':>9}"]
for name, (_, curve, seconds) in results.items():
    lines.append(f"{name:14}{curve[-1][1]:>6}{curve[-1][2]:>8.3f}{seconds:>9.0f}")
lines.append(f"{'real stacks':14}{of_real[0]:>6}{of_real[1]:>8.3f}")
tqdm.write("\n".join(lines))

figure, axes = plt.subplots(1, len(results) + 1, figsize=(5 * len(results) + 5, 5.4), layout="constrained")
for axis, (name, (samples, curve, _)) in zip(axes, results.items(), strict=False):
    axis.imshow(image_grid(samples[:64]))
    axis.set_axis_off()
    title = f"{name}: {curve[-1][1]} of 1000 modes, KL {curve[-1][2]:.3f}"
    axis.set_title(f"{name}: NOT TRAINED, {arguments.steps} steps to see that it runs" if arguments.quick else title)
    axes[-1].plot([c[0] for c in curve], [c[2] for c in curve], marker="o", label=name)
axes[-1].axhline(of_real[1], color="grey", linestyle=":", label="real stacks")
axes[-1].set(xlabel="step", title="KL of the modes' shares from uniform", yscale="log")
axes[-1].legend()
arguments.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(arguments.out, dpi=90)
