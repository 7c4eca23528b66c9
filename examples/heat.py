"""A picture is a point: a cloud of them is heated until it is a round ball, and cooled until it is pictures again.

A picture of two pixels has two numbers, so it is a point in a plane, and a set of pictures is a cloud there. In this set the
pixels are alike or each other's negative, so the cloud is a cross. Noise heats it: in the end nothing is left but a round ball,
whatever the cloud was. A small network learns the way back, and cools another ball step by step into new pictures. The same for
digits of 8 x 8 pixels, which are points of 64 numbers.

The table compares, at each level of noise, the heated cloud with the ball (it comes nearer) and with the cooled cloud (they are
the same all along), by total variation over a grid of 24 x 24 cells; two sets of one kind have what the last column says.

python examples/heat.py --out heat.png
"""

import argparse
import math
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from tqdm import trange

import pyfold
from pyfold import diffusion
from pyfold.folding.pictures import INK, LAYER_COLOURS, new_figure
from pyfold.models import MLPDenoiser
from pyfold.train.files import write
from pyfold.train.pictures import image_grid

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("heat.png"), help="the picture (default: %(default)s)")
parser.add_argument("--points", type=int, default=20_000, help="pictures of two pixels (default: %(default)s)")
parser.add_argument("--steps", type=int, default=4000, help="of training, for each of the two (default: %(default)s)")
parser.add_argument("--seed", type=int, default=1, help="of everything (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="fewer steps and points, to see that it runs")
arguments = parser.parse_args()
POINTS, STEPS = (2000, 200) if arguments.quick else (arguments.points, arguments.steps)

SCHEDULE, CALLS, CELLS = diffusion.vp_cosine(), 100, 24
LEVELS = (0.0, 0.25, 0.5, 1.0)  # parts of the way to the ball that are drawn
FOLLOWED, DIGITS = 6, 3
SEEDS = arguments.seed << 40


def cross(count):
    """Pictures of two pixels, from -1 (black) to 1 (white): alike, or each other's negative, and most of full contrast."""
    draw = torch.Generator().manual_seed(arguments.seed)
    value = torch.rand(count, generator=draw).sqrt() * torch.randint(2, (count,), generator=draw).mul(2).sub(1)
    other = value * torch.randint(2, (count,), generator=draw).mul(2).sub(1)
    return torch.stack([value, other], 1) + 0.04 * torch.randn(count, 2, generator=draw)


def learn(data, width):
    """A network that says, of heated points, which way they were heated."""
    torch.manual_seed(arguments.seed)
    network = MLPDenoiser(data.shape[1], width, 3, "maxmin")
    objective = diffusion.TrainingLoss(SCHEDULE, "v")
    optimizer = torch.optim.Adam(network.parameters())
    for step in trange(STEPS, leave=False):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / STEPS)
        batch = data[torch.randint(len(data), (128,))]
        noised = objective.noise(batch, torch.arange(step * 128, step * 128 + 128) + SEEDS)
        loss = objective(network(noised.x_t, noised.t / 1000), noised).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False)


def heated(data, seeds):
    """The data at each level, along straight paths to noise of their own."""
    noise = pyfold.randn(seeds, data.shape[1:], stream=32)
    points = [SCHEDULE.clean() if level == 0 else SCHEDULE.at(level * (SCHEDULE.steps - 1)) for level in LEVELS]
    return [point.alpha * data + point.sigma * noise for point in points]


def cooled(network, size, seeds):
    """New points at each level, the same levels backwards, and at the end free of noise."""
    plan = diffusion.ddpm(SCHEDULE, CALLS, prediction="v")
    # The state after a stage belongs to the time that the next one is told.
    near = {int(abs(plan.times - level * (SCHEDULE.steps - 1)).argmin()) - 1: level for level in LEVELS[1:-1]}
    kept = {1.0: pyfold.randn(seeds, (size,))}

    def keep(stage, x):
        if stage in near:
            kept[near[stage]] = x.clone()

    kept[0.0] = diffusion.sample(lambda x, t: network(x, t / 1000), plan, (size,), seeds, callback=keep)
    return [kept[level] for level in LEVELS]


def shares(points):
    """The share of the points in each cell."""
    cell = ((points + 3) / 6 * CELLS).floor().clamp(0, CELLS - 1).long()
    return torch.bincount(cell[:, 0] * CELLS + cell[:, 1], minlength=CELLS**2) / len(points)


def apart(a, b):
    return 0.5 * (shares(a) - shares(b)).abs().sum().item()


data = cross(POINTS)
there = heated(data, torch.arange(POINTS) + SEEDS)
back = cooled(learn(data, 128), 2, torch.arange(POINTS, 2 * POINTS) + SEEDS)
ball = pyfold.randn(torch.arange(2 * POINTS, 3 * POINTS) + SEEDS, (2,))

print("| noise | heated, from the ball | heated, from the cooled | by chance |")
print("|---|---|---|---|")
for level, hot, cold in zip(LEVELS, there, back, strict=True):
    p = shares(hot)
    chance = (p * (1 - p) / (math.pi * POINTS)).sqrt().sum()
    print(f"| {level:.0%} | {apart(hot, ball):.3f} | {apart(hot, cold):.3f} | {chance:.3f} |")

digits = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1) / 8 - 1
digits_there = heated(digits[:DIGITS], torch.arange(DIGITS) + SEEDS)
digits_back = cooled(learn(digits, 256), 64, torch.arange(DIGITS, 2 * DIGITS) + SEEDS)

names = ["pictures", *[f"{level:.0%} noise" for level in LEVELS[1:]]]
columns = list(zip(names, there, digits_there, strict=True))
columns[-1] = ("a round ball", *columns[-1][1:])
columns.append(("another ball", back[-1], digits_back[-1]))
columns += list(zip(names, back, digits_back, strict=True))[-2:0:-1]
columns.append(("new pictures", back[0], digits_back[0]))

figure = new_figure(15, 6)
rows = figure.subplots(3, len(columns), height_ratios=[2, 0.35, 3])
for i, (title, points, pictures) in enumerate(columns):
    cloud, pairs, sheet = rows[:, i]
    cloud.hist2d(*points.T.numpy(), bins=90, range=[[-2.6, 2.6]] * 2, cmap="Greys", vmax=POINTS / 700)
    for k in range(FOLLOWED):
        cloud.plot(*points[k], "o", ms=5, mec="white", mew=0.7, color=LAYER_COLOURS[k])
    cloud.set(aspect="equal", xticks=[], yticks=[], xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    arrow = "heat: " if i == 1 else "cool: " if i == len(LEVELS) + 1 else ""
    cloud.set_title(arrow + title, fontsize=11, color=INK)
    for k, pair in enumerate(points[:FOLLOWED]):
        left, right, top = 1.2 * k, 1.2 * k + 1, 0.5
        pairs.imshow(pair[None], cmap="gray", vmin=-1, vmax=1, extent=(left, right, 0, top))
        pairs.plot([left, right, right, left, left], [0, 0, top, top, 0], color=LAYER_COLOURS[k], lw=2)
    pairs.set(xlim=(-0.1, 1.2 * FOLLOWED - 0.1), ylim=(-0.1, 0.6))
    pairs.axis("off")
    sheet.imshow(image_grid(pictures.reshape(-1, 1, 8, 8), 1))
    sheet.axis("off")
rows[0, 0].set(xlabel="left pixel", ylabel="right pixel")
write(arguments.out, lambda path: figure.savefig(path, dpi=100))
print(f"wrote {arguments.out}")
