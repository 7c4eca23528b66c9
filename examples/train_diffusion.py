"""A diffusion model on handwritten digits, from the public API alone: about a minute on two cores.

python examples/train_diffusion.py --out digits.png
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from tqdm import trange

from pyfold import diffusion
from pyfold.models import UNet
from pyfold.train.pictures import save_picture

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("digits.png"), help="picture of samples")
parser.add_argument("--steps", type=int, default=1200, help="training steps")
parser.add_argument("--batch", type=int, default=128, help="images in a step")
arguments = parser.parse_args()

images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
model = UNet(channels=1, size=8, activation="maxmin")
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
schedule = diffusion.vp_cosine()
objective = diffusion.TrainingLoss(schedule, prediction="v")

for step in (bar := trange(arguments.steps)):
    x0 = images[torch.randint(len(images), (arguments.batch,))]
    # One seed for each image of each step: noise, time and target are functions of it.
    seeds = torch.arange(step * arguments.batch, (step + 1) * arguments.batch)
    noised = objective.noise(x0, seeds)
    loss = objective(model(noised.x_t, noised.t / schedule.steps), noised).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        bar.set_postfix(loss=f"{loss.item():.3f}")

plan = diffusion.ddim(schedule, 50, prediction="v")
samples = diffusion.sample(lambda x, t: model(x, t / schedule.steps), plan, (1, 8, 8), torch.arange(-64, 0))
save_picture(samples, arguments.out)
