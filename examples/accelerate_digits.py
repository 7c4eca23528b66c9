"""A training loop as diffusers' scripts have it, whose noise is the same on any number of processes.

accelerate launch --multi_gpu --num_processes 2 examples/accelerate_digits.py --out runs/accelerate [--resume]
"""

import argparse
import hashlib
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import pyfold
from pyfold import diffusion
from pyfold.models import UNet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, required=True, help="folder of the state")
for name, default in (("steps", 1000), ("save-every", 100), ("batch", 64), ("width", 32)):
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--resume", action="store_true")
arguments = parser.parse_args()

# split_batches: a step's batch is that of one process, in parts.
accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True))
torch.manual_seed(0)
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
data = TensorDataset(images, torch.arange(len(images)))
loader = DataLoader(data, arguments.batch, shuffle=True, drop_last=True)
model = UNet(1, 8, arguments.width, "maxmin")
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
objective = diffusion.TrainingLoss(diffusion.flow(), "flow", density="logit_normal")
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

step = 0
if arguments.resume:
    accelerator.load_state(str(arguments.out))
    step = int((arguments.out / "step").read_text())
while step < arguments.steps:
    epoch, done = divmod(step, len(loader))
    loader.set_epoch(epoch)
    for x0, index in accelerator.skip_first_batches(loader, done) if done else loader:
        # A seed for each image of each epoch, wherever it lands: noise and times are functions of it.
        noised = objective.noise(x0, pyfold.seed_of(0, index, epoch))
        loss = objective(model(noised.x_t, noised.t), noised).mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % arguments.save_every == 0 or step == arguments.steps:
            seen = hashlib.sha256(accelerator.gather(noised.x_t).cpu().numpy().tobytes()).hexdigest()[:16]
            mean = accelerator.reduce(loss.detach(), "mean").item()
            accelerator.print(f"{accelerator.num_processes} processes: step {step} loss {mean:.6f} batch {seen}", flush=True)
            accelerator.save_state(str(arguments.out))
            (arguments.out / "step").write_text(str(step))
        if step == arguments.steps:
            break
