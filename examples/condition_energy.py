"""A condition as potential energy: a model of digits, pulled towards what was wished for as a particle is pulled downhill.

A diffusion model learns 8 x 8 digits without being told which is which. An energy U(x) says how far a state is from a wish, and
sampling adds -grad U to the score (Dhariwal and Nichol 2021, algorithm 1, for a classifier): the more weight, the better the
wish is met, at the cost of what digits look like. Two wishes:

  classifier  U = -log p(digit | x) of a network that learned from noised digits
  mask        U = mean log(1 + (x - blank)^2) over the picture's right part: a fish that flies, for hardly a digit is so

on a schedule that keeps its input's variance (cosine) and on one that scales it (EDM). A judge that saw neither network says
what the samples are.

python examples/condition_energy.py --out energy.png
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from tqdm import trange

from pyfold import diffusion
from pyfold.models import MLP, MLPDenoiser
from pyfold.train.files import write
from pyfold.train.pictures import image_grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("energy.png"), help="the picture (default: %(default)s)")
parser.add_argument("--digit", type=int, default=3, choices=range(10), metavar="0-9", help="wished for (default: %(default)s)")
parser.add_argument("--samples", type=int, default=500, help="for each weight (default: %(default)s)")
parser.add_argument("--steps", type=int, default=4000, help="of training (default: %(default)s)")
parser.add_argument("--seed", type=int, default=1, help="of training and samples (default: %(default)s)")
parser.add_argument("--quick", action="store_true", help="a few steps and samples, to see that it runs")
arguments = parser.parse_args()
STEPS, SAMPLES = (300, 40) if arguments.quick else (arguments.steps, arguments.samples)

CALLS = 40  # of the model, a sample
WEIGHTS = {"classifier": (0.0, 1.0, 3.0, 10.0), "mask": (0.0, 3.0, 10.0, 30.0)}
SCHEDULES = {"cosine": (diffusion.vp_cosine(), "v", 1e-3), "EDM": (diffusion.edm(), "F", 0.25)}
INK = "#22303c"

bunch = load_digits()
IMAGES = torch.tensor(bunch.images, dtype=torch.float32).flatten(1) / 8 - 1
LABELS = torch.from_numpy(bunch.target)
RIGHT = torch.zeros(8, 8)
RIGHT[:, 5:] = 1
RIGHT = RIGHT.flatten()


def batches(objective, seed):
    """Noised digits and their labels, step by step, and a learning rate that falls to 0."""
    torch.manual_seed(seed)
    for step in trange(STEPS, leave=False):
        rows = torch.randint(len(IMAGES), (128,))
        seeds = torch.arange(step * 128, step * 128 + 128) + (seed << 40)
        yield 2e-3 * (1 - step / STEPS), objective.noise(IMAGES[rows], seeds), LABELS[rows]


def trained(network, objective, loss_of, seed):
    optimizer = torch.optim.Adam(network.parameters())
    for rate, noised, labels in batches(objective, seed):
        optimizer.param_groups[0]["lr"] = rate
        loss = loss_of(network, noised, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.requires_grad_(False)


def unit(x):
    """At any noise level of the same size, so that one classifier serves all."""
    return x / x.square().mean(1, keepdim=True).add(0.01).sqrt()


def blank(x):
    """Slopes fall as 1 / distance, as a score's do, so that noise is not pulled harder than digits are."""
    return ((x + 1).square().log1p() * RIGHT).sum(1) / RIGHT.sum()


def run(schedule, prediction, time_scale, seed):
    """Samples, energies on the way and shares met, by wish and weight."""
    objective = diffusion.TrainingLoss(schedule, prediction)
    denoiser = trained(
        MLPDenoiser(64, 256, 3, "maxmin"),
        objective,
        lambda net, noised, labels: objective(net(noised.x_t, noised.t * time_scale), noised).mean(),
        seed,
    )
    state = lambda noised: schedule.state_of(noised.x_t, noised.t)  # noqa: E731
    classifier = trained(
        MLP(64, 10, 256, 2, "maxmin"),
        objective,
        lambda net, noised, labels: torch.nn.functional.cross_entropy(net(unit(state(noised))), labels),
        seed + 1,
    )
    energies = {
        "classifier": lambda x: -classifier(unit(x)).log_softmax(1)[:, arguments.digit],
        "mask": blank,
    }
    plan, result = diffusion.euler_ancestral(schedule, CALLS, prediction=prediction, spacing="karras"), {}
    seeds = torch.arange(SAMPLES) + (seed << 40)
    for wish, energy in energies.items():
        model = diffusion.with_gradient(lambda x, t: denoiser(x, t * time_scale), energy, schedule)
        for weight in WEIGHTS[wish]:
            curve = []
            x = diffusion.sample(
                model,
                diffusion.guided_by_energy(plan, weight=weight),
                (64,),
                seeds,
                callback=lambda stage, x, energy=energy, curve=curve: curve.append(energy(x).mean().item()),
            )
            result[wish, weight] = x, curve
    return result


judge = SVC().fit(IMAGES.numpy(), bunch.target)
results = {name: run(*settings, arguments.seed) for name, settings in SCHEDULES.items()}
print(
    f"of {SAMPLES} samples: judged a {arguments.digit}, and the mask's energy (0: blank; digits have {{:.2f}})".format(
        blank(IMAGES).mean().item()
    )
)
print("| schedule | wish | weight | digit | energy at the end | distance to the nearest real |")
print("|---|---|---|---|---|---|")
for name, result in results.items():
    for (wish, weight), (x, curve) in result.items():
        share = (judge.predict(x.clamp(-1, 1).numpy()) == arguments.digit).mean()
        near = torch.cdist(x.clamp(-1, 1), IMAGES).min(1).values.mean()
        print(f"| {name} | {wish} | {weight:g} | {share:.1%} | {curve[-1]:.3f} | {near:.2f} |")

figure = plt.figure(figsize=(11, 7.2), dpi=100, layout="constrained")
columns = figure.subfigures(1, 2)
for part, (name, result) in zip(columns, results.items(), strict=True):
    part.suptitle(f"{name} schedule", fontsize=12, color=INK)
    axes = part.subplots(4, 2, width_ratios=[1.4, 1])
    for half, (wish, weights) in enumerate(WEIGHTS.items()):
        drawn = (weights[0], weights[-1])
        for i, weight in enumerate(drawn):
            picture, curve = axes[2 * half + i]
            picture.imshow(image_grid(result[wish, weight][0][:18].reshape(-1, 1, 8, 8), 6))
            picture.set_title(f"{wish}, weight {weight:g}", loc="left", fontsize=9, color=INK)
            picture.axis("off")
            for other in weights:
                values = result[wish, other][1]
                curve.plot(
                    range(1, len(values) + 1),
                    values,
                    lw=2 if other == weight else 0.7,
                    color="#2970b8" if other == weight else "#aaaaaa",
                )
            curve.set_title("U by step", loc="left", fontsize=9, color=INK)
            curve.set_yscale("log" if (name, wish) == ("EDM", "mask") else "linear")
            curve.spines[["top", "right"]].set_visible(False)
write(arguments.out, figure.savefig)
print(f"wrote {arguments.out}")
