"""A magnet that remembers letters: spins with couplings learned from 26 letters read a corrupted one by rolling downhill.

Each pixel is a spin s in [-1, 1], and a state has an energy. Langevin steps ``s' = s - h dU/ds + sqrt(2 h T) noise`` at a low
temperature T lead from a spoiled picture to a state of low energy near it: the letter that it was. Three magnets:

  Hebb        couplings W = mean of p p^T (Hopfield 1982):              U = -s W s / 2 + double wells that keep s near -1 or 1
  projection  W onto the letters' span (Personnaz et al. 1986):         U as above
  modern      one well a letter (Ramsauer et al. 2021, equation 1):     U = -log(sum exp(beta p.s)) / beta + s.s / 2

Letters are alike, which Hebb's rule cannot bear: all its states run together. The picture shows a few letters on their way, and
the energy as it falls; the table counts letters read right by how many pixels were flipped, each bent as a hand bends it.

python examples/spins.py --out spins.png
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

import pyfold
from pyfold.train.files import write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("spins.png"), help="the picture (default: %(default)s)")
parser.add_argument("--copies", type=int, default=40, help="spoiled pictures of each letter (default: %(default)s)")
parser.add_argument("--steps", type=int, default=200, help="Langevin steps (default: %(default)s)")
parser.add_argument("--temperature", type=float, default=0.01, help="T of the steps (default: %(default)s)")
parser.add_argument("--beta", type=float, default=0.25, help="inverse width of the modern wells (default: %(default)s)")
parser.add_argument("--seed", type=int, default=1, help="of pictures and kicks (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="two pictures of each letter")
arguments = parser.parse_args()
COPIES = 2 if arguments.quick else arguments.copies

SIDE, STEP, WELL = 24, 0.1, 1.0
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PICTURED = "FOLDSPACE"
FLIPPED = (0.1, 0.2, 0.3, 0.4)
MAGNETS = ("Hebb", "projection", "modern")


def letters() -> torch.Tensor:
    """[26, pixels] of -1 and 1."""
    font = ImageFont.truetype(findfont("DejaVu Sans:bold"), 22)
    pictures = []
    for letter in LETTERS:
        sheet = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(sheet).text((SIDE / 2, SIDE / 2), letter, 255, font, anchor="mm")
        pictures.append(np.asarray(sheet) > 110)
    return torch.tensor(np.stack(pictures)).flatten(1).float() * 2 - 1


def bent(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Slanted, stretched, moved and waved, as a hand would."""
    n = len(pictures)
    slant, stretch_x, stretch_y = (0.06 * torch.randn(n, generator=generator) for _ in range(3))
    x0, y0 = (0.03 * torch.randn(n, 1, 1, generator=generator) for _ in range(2))
    wave = 0.03 * torch.randn(n, 2, 3, 3, generator=generator)
    wave = torch.nn.functional.interpolate(wave, (SIDE, SIDE), mode="bicubic", align_corners=True)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    column = lambda v: v[:, None, None]  # noqa: E731
    grid_x = x * (1 + column(stretch_x)) + column(slant) * y + x0 + wave[:, 0]
    grid_y = y * (1 + column(stretch_y)) + y0 + wave[:, 1]
    images = pictures.reshape(n, 1, SIDE, SIDE)
    moved = torch.nn.functional.grid_sample(
        images, torch.stack([grid_x, grid_y], -1), padding_mode="border", align_corners=True
    )
    return torch.where(moved > 0, 1.0, -1.0).flatten(1)


def energy(magnet: str, patterns: torch.Tensor):
    """``U(s)`` [N] of states [N, pixels], in units of one spin's."""
    pixels = patterns.shape[1]
    if magnet == "modern":
        return lambda s: -torch.logsumexp(arguments.beta * (s @ patterns.T), 1) / arguments.beta + s.square().sum(1) / 2
    w = patterns.T @ patterns / pixels if magnet == "Hebb" else patterns.T @ torch.linalg.pinv(patterns.T)
    w = w - torch.diag(torch.diagonal(w))
    return lambda s: -((s @ w) * s).sum(1) / 2 + WELL / 4 * (s.square() - 1).square().sum(1)


def roll_down(u, s: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """States and energies [steps + 1, N] on the way."""
    seeds = torch.arange(len(s)) + (arguments.seed << 20)
    states, energies = [s.clone()], []
    kick = (2 * STEP * arguments.temperature) ** 0.5
    for step in range(arguments.steps + 1):
        s.requires_grad_(True)
        value = u(s)
        (slope,) = torch.autograd.grad(value.sum(), s)
        s = s.detach()
        energies.append(value.detach())
        if step < arguments.steps:
            s = pyfold.add_noise(s.sub_(slope, alpha=STEP), 1.0, kick, seeds, stream=32, step=step).clamp_(-1.5, 1.5)
            states.append(s.clone())
    return states, torch.stack(energies)


def read(s: torch.Tensor, patterns: torch.Tensor) -> torch.Tensor:
    """The letter whose pixels a state has, each but 3 %; -1 for none of them."""
    same = (s.sign() @ patterns.T) / patterns.shape[1]
    return torch.where(same.max(1).values > 0.94, same.argmax(1), -1)


patterns = letters()
generator = torch.Generator().manual_seed(arguments.seed)
truth = torch.arange(len(LETTERS)).repeat(COPIES)
hands = bent(patterns[truth], generator)
flips = torch.rand(hands.shape, generator=generator)
right, pictures = {}, {}
with tqdm(total=len(MAGNETS) * len(FLIPPED)) as bar:
    for magnet in MAGNETS:
        for share in FLIPPED:
            spoiled = torch.where(flips < share, -hands, hands)
            states, energies = roll_down(energy(magnet, patterns), spoiled.clone())
            right[magnet, share] = (read(states[-1], patterns) == truth).float().mean().item()
            if share == 0.2:
                pictures[magnet] = [s[: len(LETTERS)] for s in states], energies[:, : len(LETTERS)]
            bar.update()
nearest = {s: (torch.where(flips < s, -hands, hands) @ patterns.T).argmax(1).eq(truth).float().mean().item() for s in FLIPPED}

print(f"letters read right, of {len(truth)}, by pixels flipped")
print("| magnet | " + " | ".join(f"{share:.0%}" for share in FLIPPED) + " |")
print("|---" * (len(FLIPPED) + 1) + "|")
for magnet in MAGNETS:
    print(f"| {magnet} | " + " | ".join(f"{right[magnet, share]:.1%}" for share in FLIPPED) + " |")
print("| nearest letter, by counting | " + " | ".join(f"{nearest[share]:.1%}" for share in FLIPPED) + " |")

INK = "#22303c"
which = [LETTERS.index(letter) for letter in PICTURED]
figure = plt.figure(figsize=(10, 5.6), dpi=100, layout="constrained")
figure.get_layout_engine().set(h_pad=0.12)
left, side = figure.subfigures(1, 2, width_ratios=[2.1, 1])
lines = [("seen: bent, 20 % flipped", pictures["modern"][0][0])]
lines += [("modern, on the way", pictures["modern"][0][4])]
lines += [(f"{magnet}, at rest", pictures[magnet][0][-1]) for magnet in reversed(MAGNETS)]
axes = left.subplots(len(lines), len(which))
for row, (caption, states) in zip(axes, lines, strict=True):
    for ax, i in zip(row, which, strict=True):
        ax.imshow(states[i].reshape(SIDE, SIDE), cmap="gray_r", vmin=-1, vmax=1)
        ax.axis("off")
    row[0].text(0, 1.07, caption, transform=row[0].transAxes, fontsize=10, color=INK).set_in_layout(False)
for ax, magnet in zip(side.subplots(len(MAGNETS), 1, sharex=True), reversed(MAGNETS), strict=True):
    ax.plot(pictures[magnet][1][:, which].numpy(), lw=1, color="#2970b8", alpha=0.7)
    ax.set_title(f"{magnet}: energy by step", loc="left", fontsize=10, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
write(arguments.out, figure.savefig)
print(f"wrote {arguments.out}")
