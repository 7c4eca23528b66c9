"""A digits model learns to draw sevens from a classifier's reward: Flow-GRPO on rollouts that are kept as seeds.

python examples/grpo_digits.py --out grpo.png
torchrun --nproc-per-node 2 examples/grpo_digits.py --out grpo.png      # the same rollouts, half of them in each process
"""

import argparse
import copy
import hashlib
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch import distributed
from tqdm import tqdm

import pyfold
from pyfold import diffusion
from pyfold.diffusion import rl
from pyfold.train import parallel
from pyfold.train.config import Config
from pyfold.train.data import load_for
from pyfold.train.pictures import image_grid
from pyfold.train.run import open_run
from pyfold.train.trainers import DiffusionTrainer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--digit", type=int, default=7, choices=range(10), help="what to draw")
parser.add_argument("--out", type=Path, default=Path("grpo.png"), help="reward curve, and digits before and after")
parser.add_argument("--run", type=Path, help="folder of a run on the flow schedule; else a model is trained first")
parser.add_argument("--train-steps", type=int, default=1200, help="of the model that is trained without --run")
parser.add_argument("--updates", type=int, default=100)
parser.add_argument("--batch", type=int, default=64, help="samples of a rollout, in two micro-batches")
parser.add_argument("--steps", type=int, default=8, help="of the sampler")
parser.add_argument("--lr", type=float, default=3e-4)
parser.add_argument("--kl", type=float, default=0.02, help="weight of the divergence from the model at the start")
parser.add_argument("--clip", type=float, default=1e-3, help="of the ratio; log-probabilities are means over the pixels")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--quick", action="store_true", help="an untrained model and two updates, in seconds")
arguments = parser.parse_args()
if arguments.quick:
    arguments.train_steps, arguments.updates, arguments.batch, arguments.steps = 2, 2, 8, 3

SHAPE, MICRO_BATCHES = (1, 8, 8), 2
begin = time.perf_counter()
flow = diffusion.flow()
plan = rl.policy_sde(flow, arguments.steps)
if arguments.run is not None:
    trainer, config, _ = open_run(arguments.run, torch.device("cpu"))
    if (config.data, config.schedule, config.prediction) != ("digits", "flow", "flow"):
        parser.error(f"--run must be of digits with schedule and prediction flow, got {config}")
else:
    config = Config(
        "diffusion", schedule="flow", prediction="flow", sampler="flow_euler", steps=arguments.train_steps, width=16
    )
    trainer = DiffusionTrainer(config, load_for(config), torch.device("cpu"))
    for step in tqdm(range(config.steps), desc="training", unit="step", leave=False, disable=parallel.rank_of_launch() != 0):
        trainer.step(step)
data = load_for(config)
policy = copy.deepcopy(trainer.average).requires_grad_(True)
start = copy.deepcopy(policy).requires_grad_(False)
optimizer = torch.optim.Adam(policy.parameters(), arguments.lr)

# The reward is one classifier's probability; another, which is not asked in training, judges what came of it.
images, labels = data.samples.flatten(1).numpy(), data.labels.numpy()
classifier = LogisticRegression(C=0.05, max_iter=1000).fit(images, labels)
judge = SVC().fit(images, labels)


def reward_of(samples):
    found = classifier.predict_proba(samples.flatten(1).clamp(-1, 1).numpy())[:, arguments.digit]
    return torch.from_numpy(found).float()


def seeds_of(update):
    """A rollout: these 8 bytes a sample are all that is kept of it."""
    return pyfold.seed_of(arguments.seed, torch.arange(arguments.batch), update)


def gathered(part):
    """[batch, ...] of all micro-batches, from those of this process."""
    if parallel.count() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(parallel.count())]
    distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def gradient(old, seeds, advantages):
    """(gradients of a micro-batch, its KL from the start): GRPO's clipped objective at each step of the sampler.

    The states are made again from the seeds, by the policy that drew them.
    """
    total, distance = [torch.zeros_like(p) for p in policy.parameters()], 0.0
    table = plan.on(seeds.device)[0]
    for i, x, output, after in rl.replay(old, plan, SHAPE, seeds):
        index, time_now = torch.tensor([i]), plan.on(x.device)[1][i].expand(len(x))
        velocity = policy(x, time_now)
        ratio = (rl.log_prob(plan, x, velocity, index, after) - rl.log_prob(plan, x, output, index, after)).exp()
        clipped = ratio.clamp(1 - arguments.clip, 1 + arguments.clip)
        # The divergence of two Gaussians of one width is how much less likely the one's mean is under the other.
        with torch.no_grad():
            reference = start(x, time_now)
            mean = pyfold.affine_step(x, reference, table, index)
            most = rl.log_prob(plan, x, reference, index, mean)
        divergence = most - rl.log_prob(plan, x, velocity, index, mean)
        gain = torch.minimum(ratio * advantages, clipped * advantages)
        loss = (arguments.kl * divergence - gain).mean() / len(plan)
        for sum_, part in zip(total, torch.autograd.grad(loss, list(policy.parameters())), strict=True):
            sum_ += part
        distance += divergence.mean().item() / len(plan)
    return total, distance


def digest(tensors):
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()[:16]


def rollout(model, seeds):
    with torch.no_grad():
        return diffusion.sample(model, plan, SHAPE, seeds)


def report(text):
    if parallel.rank() == 0:
        print(text, flush=True)


def learn():
    """Updates; returns the mean reward of each rollout."""
    if MICRO_BATCHES % parallel.count():
        raise SystemExit(f"processes must be 1 or 2, got {parallel.count()}")
    rewards = []
    own = range(MICRO_BATCHES)[parallel.rank() * MICRO_BATCHES // parallel.count() :][: MICRO_BATCHES // parallel.count()]
    for update in tqdm(range(arguments.updates), unit="update", leave=False, disable=parallel.rank() != 0):
        old = copy.deepcopy(policy).requires_grad_(False)
        parts = seeds_of(update).chunk(MICRO_BATCHES)
        samples = gathered(torch.cat([rollout(old, parts[k]) for k in own]))
        reward = reward_of(samples)
        # Not over the rewards' deviation (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783): as it shrinks with success, what is
        # left of it would be blown up until the divergence weighs nothing and all samples look alike.
        advantages = (reward - reward.mean()).chunk(MICRO_BATCHES)
        found = [gradient(old, parts[k], advantages[k]) for k in own]
        mean = found[0][0]
        for other, _ in found[1:]:
            mean = [a + b for a, b in zip(mean, other, strict=True)]
        mean = [m / len(found) for m in mean]
        parallel.average(mean)
        for parameter, value in zip(policy.parameters(), mean, strict=True):
            parameter.grad = value
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        rewards.append(reward.mean().item())
        if update % 10 == 0 or update == arguments.updates - 1:
            distance = torch.tensor([sum(d for _, d in found) / len(found)])
            parallel.average([distance])
            report(
                f"{parallel.count()} processes: update {update:3d}  reward {rewards[-1]:.3f}  KL {distance.item():.2e}"
                f"  rollout {digest([samples])}  {time.perf_counter() - begin:.0f} s"
            )
    report(f"weights {digest(policy.parameters())}")
    if parallel.rank() == 0:
        save_file(policy.state_dict(), arguments.out.with_suffix(".safetensors"))
    return rewards


def largest_log_ratio():
    """Of an unchanged policy whose replay splits the batch otherwise; 0 for a model that is evaluated a sample at a time."""
    seeds, largest = seeds_of(10**6), {}

    def of_part(part):
        steps = rl.replay(start, plan, SHAPE, part)
        return torch.stack([rl.log_prob(plan, x, output, torch.tensor([i]), after) for i, x, output, after in steps])

    def replayed(size):
        return torch.cat([of_part(part) for part in seeds.split(size)], 1)

    whole = replayed(len(seeds))
    for size in (1, 2, 3, 8, len(seeds) // 2):
        largest[size] = (replayed(size) - whole).abs().max().item()
    return largest


def variety(samples):
    """Mean squared distance of two samples, over that of two real pictures of the digit: below 1, they are more alike."""
    real = data.samples[data.labels == arguments.digit]
    return (samples.var(0).sum() / real.var(0).sum()).item()


def picture(rewards, before, after):
    from matplotlib import pyplot

    shares = []
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.6), dpi=80, layout="constrained", width_ratios=[1.2, 1, 1])
    axes[0].plot(rewards, color="#2a6f97")
    axes[0].set(xlabel="update", ylabel=f"mean reward: probability of a {arguments.digit}", ylim=(0, 1))
    for axis, samples, title in ((axes[1], before, "before"), (axes[2], after, "after")):
        share = float(np.mean(judge.predict(samples.flatten(1).numpy()) == arguments.digit))
        axis.imshow(image_grid(samples[:36]))
        axis.set(title=f"{title}: {100 * share:.0f} % are a {arguments.digit}", xticks=[], yticks=[])
        shares.append(f"{100 * share:.1f} %")
    figure.savefig(arguments.out)
    return shares


with parallel.joined(torch.device("cpu")):
    report(f"trained in {time.perf_counter() - begin:.0f} s")
    rewards = learn()
    if parallel.rank() == 0:
        judged = pyfold.seed_of(arguments.seed + 1, torch.arange(64 if arguments.quick else 500), 0)
        drawn = rollout(start, judged), rollout(policy, judged)
        shares = picture(rewards, *drawn)
        states = sum(x.nbytes for _, x, _, _ in rl.replay(start, plan, SHAPE, seeds_of(0))) + arguments.batch * 4 * 64
        ratios = largest_log_ratio()
        report("\n| measured | |\n|---|---|")
        for what, found in (
            (f"mean reward of a rollout, first and last of {arguments.updates}", [f"{rewards[0]:.3f}", f"{rewards[-1]:.3f}"]),
            (f"of {len(judged)} samples a {arguments.digit} to a classifier not trained on, before and after", shares),
            (f"variety, 1 for real pictures of a {arguments.digit}: before and after", [f"{variety(s):.2f}" for s in drawn]),
            (f"bytes that a rollout of {arguments.batch} keeps, and its states", [seeds_of(0).nbytes, states]),
            (f"largest log ratio of an unchanged policy, replayed {', '.join(map(str, ratios))} at a time",
             [f"{value:.1e}" for value in ratios.values()]),
            (f"seconds, of {parallel.count()} processes", [f"{time.perf_counter() - begin:.0f}"]),
        ):  # fmt: skip
            report(f"| {what} | {', '.join(map(str, found))} |")
