"""What a bfloat16 state costs: the rounding error of whole sampling runs, against a float32 state with the same bfloat16 model.

The data are a Gaussian mixture, whose denoiser is a formula; the solution is the same steps in float64. The model always gets
its input in bfloat16 and answers in bfloat16, as networks do. What differs is the state between the steps: float32, as
``pyfold.diffusion.sample`` keeps it, or rounded to bfloat16 after each step. With --pipeline the same model stands as the
transformer of diffusers' FluxPipeline, whose scheduler is diffusers', pyfold's, or pyfold's after ``keep_float32``.

python examples/state_precision.py --out precision.png
"""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import torch
from tqdm import tqdm

import pyfold
from pyfold import diffusion
from pyfold.train.files import write, write_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEANS, STD = torch.tensor([-0.9, -0.2, 0.4, 1.0], dtype=torch.float64), 0.08
FLOW, VP = diffusion.flow(3.0), diffusion.vp_scaled_linear()
SAMPLERS = {
    "flow Euler": (FLOW, lambda n: diffusion.flow_euler(FLOW, n)),
    "DDIM": (VP, lambda n: diffusion.ddim(VP, n, prediction="v", clip=None, spacing="trailing")),
    "DPM++ 2M": (VP, lambda n: diffusion.dpmpp_multistep(VP, n, prediction="v", spacing="trailing")),
    "Euler ancestral": (VP, lambda n: diffusion.euler_ancestral(VP, n, prediction="v")),
}


def predict(schedule: diffusion.Schedule, point: diffusion.Point, x: torch.Tensor) -> torch.Tensor:
    """What a perfect model of the mixture says, in float64."""
    variance = point.alpha**2 * STD**2 + point.sigma**2
    away = x.double()[..., None] - point.alpha * MEANS
    weights = (-away.square() / (2 * variance)).softmax(-1)
    x0 = (weights * (MEANS + point.alpha * STD**2 / variance * away)).sum(-1)
    eps = (x.double() - point.alpha * x0) / point.sigma
    return eps - x0 if schedule.is_flow else point.alpha * eps - point.sigma * x0


def run(schedule, plan, start: torch.Tensor, seeds: torch.Tensor, state: torch.dtype, model: torch.dtype) -> torch.Tensor:
    """The plan's steps on a state of that dtype."""
    x, history, counters = start.to(state), [], plan.on("cpu")[2]
    for i, point in enumerate(plan.points):
        prediction = predict(schedule, point, x.to(model)).to(model)
        x = plan.step(x, prediction, counters[i : i + 1], history=history, seeds=seeds)
    return x.double()


class Mixture(torch.nn.Module):
    """The perfect model where FluxPipeline has its transformer."""

    config = SimpleNamespace(in_channels=64, guidance_embeds=False)
    dtype, device = torch.bfloat16, torch.device("cpu")

    def __init__(self, scheduler: Any):
        super().__init__()
        self.scheduler = scheduler

    def cache_context(self, name: str) -> Any:
        return nullcontext()

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        # At the table's level: the pipeline hands timesteps on in bfloat16, which would be another error.
        sigma = float(self.scheduler.sigmas[self.scheduler.step_index or 0])
        point = diffusion.Point(0.0, 1 - sigma, sigma)
        return (predict(FLOW, point, hidden_states).to(hidden_states.dtype),)


def through_pipeline(values: int, steps: int) -> dict[str, float]:
    """The rounding error of FluxPipeline with each scheduler, against the same steps in float64."""
    import diffusers

    import pyfold.adapters.diffusers as adapted

    schedulers = {
        name: m.FlowMatchEulerDiscreteScheduler(shift=3.0) for name, m in (("diffusers", diffusers), ("pyfold", adapted))
    }
    schedulers["keep_float32"] = adapted.FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedulers["keep_float32"].keep_float32()
    side = round((values / 64) ** 0.5)
    start = pyfold.randn([0], (side * side, 64)).bfloat16()
    errors = {}
    for name, scheduler in schedulers.items():
        pipeline = diffusers.FluxPipeline(scheduler, None, None, None, None, None, Mixture(scheduler))
        pipeline.set_progress_bar_config(disable=True)
        nothing = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
        end = pipeline(
            prompt_embeds=nothing, pooled_prompt_embeds=nothing[0], latents=start, height=16 * side, width=16 * side,
            num_inference_steps=steps, output_type="latent",
        ).images  # fmt: skip
        x, sigmas = start.double(), scheduler.sigmas.double()
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = x + (following - sigma) * predict(FLOW, diffusion.Point(0.0, 1 - float(sigma), float(sigma)), x)
        errors[name] = float((end.double() - x).square().median().sqrt())
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("precision.png"), help="picture; a .json of the numbers beside it")
    parser.add_argument("--values", type=int, default=50_000, help="independent values that are sampled")
    parser.add_argument("--steps", type=int, nargs="+", default=[28, 50, 100], help="numbers of steps")
    parser.add_argument("--pipeline", action="store_true", help="a table of diffusers' FluxPipeline instead")
    parser.add_argument("--quick", action="store_true", help="seconds: fewer values")
    a = parser.parse_args()
    if a.quick:
        a.values = 5000

    if a.pipeline:
        print("Median rounding error of a value after FluxPipeline in bfloat16, the last state's own rounding included:\n")
        print("| steps | diffusers' scheduler | pyfold's | pyfold's, keep_float32 |\n|---|---|---|---|")
        for steps in a.steps:
            print(f"| {steps} | " + " | ".join(f"{error:.1e}" for error in through_pipeline(a.values, steps).values()) + " |")
        return

    seeds = torch.arange(4)
    start = pyfold.randn(seeds, (a.values // 4,), dtype=torch.float64)
    bf16, f32, f64 = torch.bfloat16, torch.float32, torch.float64
    kinds = {"bf16 state": (bf16, bf16), "float32 state": (f32, bf16), "float32 state and model": (f32, f32)}
    errors: dict[str, dict[str, list[float]]] = {}
    for name, (schedule, make) in tqdm(SAMPLERS.items()):
        errors[name] = {kind: [] for kind in kinds}
        for steps in a.steps:
            plan = make(steps)
            exact = run(schedule, plan, start, seeds, f64, f64)
            for kind, dtypes in kinds.items():
                wrong = (run(schedule, plan, start, seeds, *dtypes) - exact).square()
                # A value that rounding tips into another mode is as wrong as the modes are apart; the median is of the others.
                errors[name][kind].append(float(wrong.median().sqrt()))

    print("Median rounding error of a value, data of standard deviation 0.7:\n")
    print("| sampler | steps | " + " | ".join(kinds) + " | bf16 / float32 state |")
    print("|---" * (len(kinds) + 3) + "|")
    for name, by_kind in errors.items():
        for k, steps in enumerate(a.steps):
            cells = [f"{by_kind[kind][k]:.1e}" for kind in kinds]
            ratio = by_kind["bf16 state"][k] / by_kind["float32 state"][k]
            print(f"| {name} | {steps} | " + " | ".join(cells) + f" | {ratio:.1f} |")

    figure, axes = plt.subplots(1, len(SAMPLERS), figsize=(11, 3.6), dpi=130, sharey=True, layout="constrained")
    colours = {"bf16 state": "#d1603d", "float32 state": "#2f6fb5", "float32 state and model": "#7d8790"}
    for ax, (name, by_kind) in zip(axes, errors.items(), strict=True):
        for kind, values in by_kind.items():
            ax.loglog(a.steps, values, "o-", color=colours[kind], label=kind, ms=5)
        ax.set_title(name, loc="left")
        ax.set_xticks(a.steps, [str(n) for n in a.steps])
        ax.minorticks_off()
        ax.set_xlabel("steps")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("rounding error")
    axes[-1].legend(frameon=False, fontsize=8.5)
    write(a.out, figure.savefig)
    write_text(a.out.with_suffix(".json"), json.dumps({"steps": a.steps, "errors": errors}, indent=1))
    print(f"\nwrote {a.out}")


if __name__ == "__main__":
    main()
