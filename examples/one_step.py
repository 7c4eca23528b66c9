"""Digits in one step: a diffusion model's fifty, then easy consistency tuning and AnyFlow, each from scratch. 4 CPU minutes.

python examples/one_step.py --out one_step.png
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from tqdm import tqdm

from pyfold.train.config import OBJECTIVES, Config
from pyfold.train.data import load_for
from pyfold.train.metrics import measure
from pyfold.train.pictures import save_beside
from pyfold.train.run import sample_for_metrics
from pyfold.train.trainers import DiffusionTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("one_step.png"), help="picture of each model's digits")
parser.add_argument("--steps", type=int, default=1200, help="training steps of each model")
parser.add_argument(
    "--objectives", nargs="+", default=["denoising", "ecm", "anyflow"], choices=[*OBJECTIVES], help="of each model"
)
parser.add_argument("--quick", action="store_true", help="a few steps: nothing is learned")
arguments = parser.parse_args()
steps, samples = (4, 40) if arguments.quick else (arguments.steps, 1000)
untrained = ", untrained" if arguments.quick else ""

panels = []
print(f"Frechet distance of {samples} samples after {steps} training steps{untrained}")
columns = [1, 2, 4, 50]
for objective in arguments.objectives:
    config = Config("diffusion", objective=objective, steps=steps, width=16, final_samples=samples)
    data = load_for(config)
    trainer, begin = DiffusionTrainer(config, data, torch.device("cpu")), time.process_time()
    for step in tqdm(range(steps), desc=objective, unit="step", leave=False):
        trainer.step(step)
    seconds = time.process_time() - begin
    if not panels:
        halves = measure(data, data.samples)["frechet_between_halves_of_the_data"]
        print(f"the data's halves from each other: {halves:.2f}\n")
        print("| objective | 1 step | 2 steps | 4 steps | 50 steps | CPU seconds of training |\n|---|---|---|---|---|---|")
        panels.append(("real digits", data.samples[:25]))
    found = {}
    counts = (50, 1, 2, 4) if objective == "denoising" else (1, 2, 4)  # the first one is shown
    for count in tqdm(counts, desc=f"{objective}, measured", unit="model", leave=False):
        trainer.config = dataclasses.replace(config, sampler_steps=count)
        made = sample_for_metrics(trainer, progress=False)
        found[count] = f"{measure(data, made)['frechet']:.2f}"
        if count == counts[0]:
            panels.append((f"{objective}, {count} step{'s' * (count > 1)}{untrained}: Frechet {found[count]}", made[:25]))
    print("|", " | ".join([objective, *(found.get(count, "") for count in columns), f"{seconds:.0f}"]), "|", flush=True)
save_beside(panels, arguments.out)
