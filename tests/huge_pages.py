"""What of a process's memory is marked for huge pages, as JSON: a process by itself, as memory used before is left alone."""

import ctypes
import json
import mmap
from collections.abc import Callable
from pathlib import Path

import torch

import pyfold

LARGE = (8, 8, 512, 512)  # 64 MiB in float32
X = torch.zeros(LARGE)
SEEDS = torch.arange(LARGE[0])


def advised(tensor: torch.Tensor) -> bool:
    """Whether the memory in the middle of a tensor has been marked for huge pages."""
    return advised_at(tensor.data_ptr() + tensor.nbytes // 2)


def advised_at(address: int) -> bool:
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError("the tensor lies in no mapping")


def gradient(function: Callable[..., torch.Tensor], *operands: torch.Tensor) -> torch.Tensor:
    x = X.clone().requires_grad_()
    y = function(x, *operands)
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


# Results of 64 MiB in memory that comes from the system.
FRESH: dict[str, Callable[[], torch.Tensor]] = {
    "randn": lambda: pyfold.randn(SEEDS, LARGE[1:]),
    "add_noise": lambda: pyfold.add_noise(X, 0.5, 0.5, SEEDS),
    "the target of add_noise": lambda: pyfold.add_noise(X, 0.5, 0.5, SEEDS, target="v")[1],
    "a fold of values": lambda: pyfold.fold(X, "abs"),
    "a fold of pairs": lambda: pyfold.fold(X, "householder", angle=torch.zeros(4)),
    "a program of folds": lambda: pyfold.fold(X, "groupsort"),
    "gradient of the loss": lambda: gradient(pyfold.mse_loss, X),
    "gradient of a fold": lambda: gradient(lambda x: pyfold.fold(x, "maxmin")),
    "gradient of a program": lambda: gradient(lambda x: pyfold.fold(x, "groupsort")),
}


def of_memory_in_use() -> bool:
    out = torch.ones(LARGE)
    assert pyfold.randn(SEEDS, LARGE[1:], out=out) is out
    return advised(out)


def beside_a_result() -> list[bool]:
    """At the first and last address that whole huge pages of a result have, and just outside them, where its memory goes on."""
    page, huge = 4096, 2**21
    memory = mmap.mmap(-1, 96 * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = torch.frombuffer(memory, dtype=torch.float32).data_ptr()
    first = -start % huge + huge - page  # the result begins a page before a huge page, and ends a page behind one
    out = torch.frombuffer(memory, dtype=torch.float32, offset=first, count=(32 * huge + 2 * page) // 4)
    pyfold.randn([0], out.shape, out=out[None])
    begin, end = out.data_ptr() + page, out.data_ptr() + out.nbytes - page
    assert begin % huge == end % huge == 0
    return [advised_at(address) for address in (begin, end - 1, begin - 1, end)]


def of_memory_used_before() -> bool:
    """Of a result where the allocator has kept as much memory, freed in pieces too small to be given back."""
    libc = ctypes.CDLL(None)
    keeps_up_to = -3  # M_MMAP_THRESHOLD: pieces below it lie side by side
    assert libc.mallopt(keeps_up_to, 32 * 2**20) == 1
    pieces = [torch.zeros(5 * 2**20) for _ in range(8)]
    top = torch.ones(64 * 1024)  # above them, so that they are no end to cut off
    del pieces
    seen = advised(pyfold.randn(SEEDS, LARGE[1:]))
    assert top.sum() == top.numel()
    return seen


if __name__ == "__main__":
    report: dict[str, bool | list[bool]] = {name: advised(make()) for name, make in FRESH.items()}
    report["torch.abs"] = advised(torch.abs(X))
    report["8 MiB"] = advised(pyfold.fold(torch.zeros(4, 2, 512, 512), "abs"))
    report["in use"] = of_memory_in_use()
    report["beside"] = beside_a_result()
    report["used before"] = of_memory_used_before()
    print(json.dumps(report))
