"""Sections of tools/gpu_check.sh that need a card: graphs (3), streams and devices (4), torch.compile (5)."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

import pyfold


def say(name: str, equal: bool) -> None:
    print(f"{name}: {'equal' if equal else 'DIFFERENT'}")


def graphs() -> None:
    """One capture, replayed with other seeds in the same memory."""
    seeds = torch.tensor([1, 2], device="cuda")
    out = torch.empty(2, 3, 64, 64, device="cuda")
    pyfold.randn(seeds, (3, 64, 64), out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pyfold.randn(seeds, (3, 64, 64), out=out)
    for values in ([1, 2], [3, 4]):
        seeds.copy_(torch.tensor(values))
        graph.replay()
        say(f"replayed with seeds {values}", torch.equal(out.cpu(), pyfold.randn(torch.tensor(values), (3, 64, 64))))


def streams() -> None:
    expected = pyfold.fold(torch.arange(-8.0, 8.0).view(2, 8), "abs")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        y = pyfold.fold(torch.arange(-8.0, 8.0, device="cuda").view(2, 8), "abs")
    side.synchronize()
    say("a side stream", torch.equal(y.cpu(), expected))
    if torch.cuda.device_count() < 2:
        print("cuda:1: there is one GPU, not run")
        return
    other = pyfold.fold(torch.arange(-8.0, 8.0, device="cuda:1").view(2, 8), "abs")
    say("cuda:1 while cuda:0 is current", other.device.index == 1 and torch.equal(other.cpu(), expected))


def compiled() -> None:
    function = torch.compile(lambda x: 2 * pyfold.fold(x, "maxmin") + 1, mode="reduce-overhead", fullgraph=True)
    for _ in range(3):
        x = torch.randn(4, 64, device="cuda")
        say("reduce-overhead", torch.equal(function(x).clone(), 2 * pyfold.fold(x, "maxmin") + 1))


SECTIONS: dict[str, Callable[[], None]] = {"3": graphs, "4": streams, "5": compiled}

if __name__ == "__main__":
    SECTIONS[sys.argv[1]]()
