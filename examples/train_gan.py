"""A GAN on a ring of eight Gaussians, from the public API alone, by the recipe of docs/mode_collapse.md.

Relativistic loss, R1 and R2 that fall, a critic of folds, a step size that cools down, and an average of the generator's
weights: all eight modes, with 96 to 97 % of the samples within three deviations of one. A minute or two on two cores.

python examples/train_gan.py --out ring.png
"""

import argparse
import copy
from pathlib import Path

import torch
from tqdm import trange

import pyfold
from pyfold import gan
from pyfold.models import MLP, MLPCritic
from pyfold.train.data import ring
from pyfold.train.metrics import mode_metrics
from pyfold.train.pictures import save_picture
from pyfold.train.trainers import update_average

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("ring.png"), help="picture of samples")
parser.add_argument("--steps", type=int, default=5000, help="training steps")
parser.add_argument("--batch", type=int, default=256, help="points in a step")
arguments = parser.parse_args()

data = ring()
generator, critic = MLP(4, 2, activation="relu"), MLPCritic(2, activation="maxmin")
average = copy.deepcopy(generator).requires_grad_(False)
players = [torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.0, 0.99)) for m in (generator, critic)]


def latents(step, count):
    return pyfold.randn(torch.arange(step * count, (step + 1) * count), (4,), stream=32)


for step in (bar := trange(arguments.steps)):
    part = step / arguments.steps
    gamma = 0.03 * 0.1 ** min(1.0, part / 0.4)  # strong, to find every mode; weak, so that the critic can be steep
    for player in players:
        player.param_groups[0]["lr"] = 2e-3 * min(1.0, (1 - part) / 0.6)
    real = data.batch(0, step, arguments.batch).requires_grad_()
    z = latents(step, arguments.batch)
    fake = generator(z).detach().requires_grad_()
    real_logits, fake_logits = critic(real), critic(fake)
    penalty = gan.r1_penalty(real_logits, real, gamma) + gan.r2_penalty(fake_logits, fake, gamma)
    players[1].zero_grad()
    (gan.relativistic_d(real_logits, fake_logits) + penalty).backward()
    players[1].step()

    players[0].zero_grad()
    gan.relativistic_g(critic(generator(z)), critic(real).detach()).backward()
    players[0].step()
    update_average(average, generator, 0.998, step)
    if step % 50 == 0:
        bar.set_postfix(penalty=f"{penalty.item():.3f}")

with torch.no_grad():
    samples = average(latents(-1, 10_000))
print(mode_metrics(data, samples))
save_picture(samples, arguments.out)
