"""A GAN on a ring of eight Gaussians, from the public API alone: relativistic loss, R1 and R2, folds as activations.

python examples/train_gan.py --out ring.png
"""

import argparse
from pathlib import Path

import torch
from tqdm import trange

import pyfold
from pyfold import gan
from pyfold.models import MLP, MLPCritic
from pyfold.train.data import ring
from pyfold.train.metrics import mode_metrics
from pyfold.train.pictures import save_picture

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("ring.png"), help="picture of samples")
parser.add_argument("--steps", type=int, default=2000, help="training steps")
parser.add_argument("--batch", type=int, default=256, help="points in a step")
arguments = parser.parse_args()

data = ring()
generator, critic = MLP(16, 2, activation="maxmin"), MLPCritic(2, activation="maxmin")
players = [torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.0, 0.99)) for m in (generator, critic)]


def latents(step, count):
    return pyfold.randn(torch.arange(step * count, (step + 1) * count), (16,), stream=32)


for step in (bar := trange(arguments.steps)):
    real = data.batch(0, step, arguments.batch).requires_grad_()
    z = latents(step, arguments.batch)
    fake = generator(z).detach().requires_grad_()
    real_logits, fake_logits = critic(real), critic(fake)
    penalty = gan.r1_penalty(real_logits, real, 0.1) + gan.r2_penalty(fake_logits, fake, 0.1)
    players[1].zero_grad()
    (gan.relativistic_d(real_logits, fake_logits) + penalty).backward()
    players[1].step()

    players[0].zero_grad()
    gan.relativistic_g(critic(generator(z)), critic(real).detach()).backward()
    players[0].step()
    if step % 50 == 0:
        bar.set_postfix(penalty=f"{penalty.item():.3f}")

with torch.no_grad():
    samples = generator(latents(-1, 10_000))
print(mode_metrics(data, samples))
save_picture(samples, arguments.out)
