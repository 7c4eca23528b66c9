"""What R1 costs: the step of a critic alone, with the penalty and without, for folds and the same in torch operations.

The critic is ``pyfold.models.Discriminator`` on images 16x3x32x32; a step is the loss on real and generated images, its
gradient, and Adam's move. The share of an activation is what a step takes beyond the same step without any. Times are of the
processor, on one thread, so that other work on the machine counts little; rounds go through all variants in turn, and medians
are printed, as the table of docs/performance.md.

python tools/r1_cost.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from pyfold import gan
from pyfold.models import Discriminator
from pyfold.nn import Fold


class EagerMaxMin(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x[:, 0::2], x[:, 1::2]
        return torch.stack([torch.minimum(a, b), torch.maximum(a, b)], 2).flatten(1, 2)


class EagerAbs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()


#: name -> the activation of pyfold, and of torch; each is made for a number of channels
ACTIVATIONS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
    "maxmin": (lambda channels: Fold("maxmin", channels), lambda channels: EagerMaxMin()),
    "abs": (lambda channels: Fold("abs", channels), lambda channels: EagerAbs()),
    "leaky": (lambda channels: Fold("leaky", channels, slope=0.2), lambda channels: nn.LeakyReLU(0.2)),
}


def critic(make: Callable[[int], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = Discriminator(3, 32, width=32, activation="relu")
    for i, layer in enumerate(network.body):
        if isinstance(layer, nn.ReLU):
            before = network.body[i - 1]
            assert isinstance(before, nn.Conv2d)
            network.body[i] = make(before.out_channels)
    return network


def stepper(make: Callable[[int], nn.Module], gamma: float) -> Callable[[], None]:
    network = critic(make)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, betas=(0.0, 0.99))
    real, fake = torch.randn(2, 16, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def step() -> None:
        seen = real.clone().requires_grad_(gamma > 0)
        logits = network(seen)
        loss = gan.non_saturating_d(logits, network(fake))
        if gamma:
            loss = loss + gan.r1_penalty(logits, seen, gamma)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="steps of each variant (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    variants = {(name, kind): pair[kind] for name, pair in ACTIVATIONS.items() for kind in (0, 1)}
    variants["none", 0] = lambda channels: nn.Identity()
    steps = {(key, gamma): stepper(make, gamma) for key, make in variants.items() for gamma in (0.0, 1.0)}
    times: dict[object, list[float]] = {key: [] for key in steps}
    for i in range(arguments.rounds + 3):
        for key, step in steps.items():
            begin = time.process_time()
            step()
            if i >= 3:
                times[key].append(1000 * (time.process_time() - begin))
    middle = {key: statistics.median(values) for key, values in times.items()}
    bare = {gamma: middle[("none", 0), gamma] for gamma in (0.0, 1.0)}
    print("| activation | without R1 | with R1 | ratio | its share of the step with R1 |\n|---|---|---|---|---|")
    for key in variants:
        without, paid = middle[key, 0.0], middle[key, 1.0]
        name = {"none": "none"}.get(key[0], f"{key[0]}, {('pyfold', 'torch')[key[1]]}")
        share = f"{100 * (1 - bare[1.0] / paid):.0f} %" if key[0] != "none" else ""
        print(f"| {name} | {without:.1f} ms | {paid:.1f} ms | {paid / without:.1f} | {share} |")


if __name__ == "__main__":
    main()
