"""How fast each sampler converges: its error against the number of model evaluations, where the answer is known.

The data are a mixture of five Gaussians on a ring, whose score is a formula, so the only error is the sampler's: the distance
to where the probability flow really leads, from the same noise. The slope in a log-log plot is the order of convergence.
A multistep method has no past at its first steps, which are of lower order: that error is what is left of it in the end.

python examples/sampler_orders.py --out orders.png
"""

import argparse
import math
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from pyfold import diffusion
from pyfold.train.files import write

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCHEDULE = diffusion.vp_linear()
ANGLES = 2 * math.pi * torch.arange(5, dtype=torch.float64) / 5
MEANS, STD = torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.25

#: name: (order by theory, evaluations a step, sampler)
SAMPLERS = {
    "euler (DDIM)": (1, 1, diffusion.euler),
    "heun": (2, 2, diffusion.heun),
    "dpm2": (2, 2, diffusion.dpm2),
    "dpm++ 2S": (2, 2, diffusion.dpmpp_singlestep),
    "dpm++ 2M": (2, 1, diffusion.dpmpp_multistep),
    "dpm++ 3M as published": (2, 1, partial(diffusion.dpmpp_multistep, order=3, solver="heun")),
    "dpm++ 3M exact": (3, 1, partial(diffusion.dpmpp_multistep, order=3, solver="exact")),
    "dpm-solver 3": (3, 3, partial(diffusion.dpm_singlestep, order=3)),
    "deis 3": (3, 1, diffusion.deis),
    "unipc 2": (3, 1, partial(diffusion.unipc, final_order=None)),
    "unipc 3": (4, 1, partial(diffusion.unipc, order=3, final_order=None)),
    "lms 4": (4, 1, diffusion.lms),
}


def denoiser(plan: diffusion.Plan):
    """The mixture's mean of x0 given x, at each of the plan's points in turn."""
    points = iter(plan.points)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        p = next(points)
        variance = p.alpha**2 * STD**2 + p.sigma**2
        away = x[..., None, :] - p.alpha * MEANS
        weights = (-away.square().sum(-1) / (2 * variance)).softmax(-1)
        x0 = MEANS + p.alpha * STD**2 / variance * away
        return (weights[..., None] * x0).sum(-2)

    return model


def run(sampler, steps: int, start: torch.Tensor, high: float, low: float) -> torch.Tensor:
    """From sigma / alpha ``high`` to ``low`` in equal steps of its logarithm, in float64."""
    points = [SCHEDULE.at_ratio(r) for r in np.geomspace(high, low, steps + 1)]
    plan = sampler(SCHEDULE, prediction="x0", spacing=points)
    return diffusion.sample(denoiser(plan), plan, start.shape[1:], [0], x=start, dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("orders.png"), help="picture")
    parser.add_argument("--points", type=int, default=256, help="points that are sampled")
    parser.add_argument("--most", type=int, default=512, help="most evaluations; doubled from 16 up to it")
    parser.add_argument("--high", type=float, default=20.0, help="sigma / alpha at the start")
    parser.add_argument("--low", type=float, default=0.05, help="sigma / alpha at the end")
    parser.add_argument("--quick", action="store_true", help="seconds: fewer points and evaluations")
    a = parser.parse_args()
    if a.quick:
        a.points, a.most = 32, 256

    generator = torch.Generator().manual_seed(1)
    start = torch.randn(1, a.points, 2, generator=generator, dtype=torch.float64)
    exact = run(partial(diffusion.dpm_singlestep, order=3), 8 * a.most, start, a.high, a.low)
    budgets = [2**k for k in range(4, int(math.log2(a.most)) + 1)]
    errors: dict[str, list[float]] = {}
    for name, (_, each, sampler) in tqdm(SAMPLERS.items()):
        wrong = [run(sampler, max(n // each, 1), start, a.high, a.low) - exact for n in budgets]
        errors[name] = [float(w.square().mean().sqrt()) for w in wrong]

    print(f"| sampler | order | measured | error at {budgets[1]} | error at {budgets[-1]} evaluations |")
    print("|---|---|---|---|---|")
    measured = {}
    for name, (order, each, _) in SAMPLERS.items():
        used = [max(n // each, 1) for n in budgets]
        measured[name] = math.log(errors[name][-2] / errors[name][-1]) / math.log(used[-1] / used[-2])
        print(f"| {name} | {order} | {measured[name]:.2f} | {errors[name][1]:.1e} | {errors[name][-1]:.1e} |")

    figure, ax = plt.subplots(figsize=(8.6, 5.6), dpi=130, layout="constrained")
    colours = {1: "#7d8790", 2: "#2f6fb5", 3: "#d1603d", 4: "#2c8f6b"}
    marks = {order: iter("osD^vP") for order in colours}
    for name, (order, _, _) in SAMPLERS.items():
        ax.loglog(
            budgets, errors[name], marker=next(marks[order]), ms=4.5, lw=1.4, color=colours[order],
            label=f"{name}: {measured[name]:.1f}",
        )  # fmt: skip
    for order, colour in colours.items():
        anchor = max(errors[name][-3] for name in SAMPLERS if SAMPLERS[name][0] == order)
        line = [2.2 * anchor * (budgets[-3] / n) ** order for n in budgets[-3:]]
        ax.loglog(budgets[-3:], line, ":", color=colour, lw=1.2)
        ax.annotate(f"order {order}", (budgets[-1], line[-1]), (5, 0), textcoords="offset points", color=colour, va="center")
    ax.set_xlabel("model evaluations")
    ax.set_ylabel("error (root mean square)")
    ax.set_xticks(budgets, [str(n) for n in budgets])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8.5, title="sampler: measured order", alignment="left", loc="lower left")
    write(a.out, figure.savefig)
    print(f"wrote {a.out}")


if __name__ == "__main__":
    main()
