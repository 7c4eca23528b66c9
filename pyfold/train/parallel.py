"""Several processes that train as one: each takes its rows of a step's batch, and gradients are averaged.

A sample's noise is a function of its seed, so the processes together draw the bits that one process would, and their batches
are its rows. Weights agree to rounding and not to the bit: a gradient is a sum over the batch, which several processes take in
parts, in another order. Runs of the same number of processes agree to the bit with each other. Started by
``torchrun --nproc-per-node N -m pyfold.train.cli train ...`` or ``accelerate launch``, which both set RANK and WORLD_SIZE.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed


def count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if count() > 1 else 0


def rank_of_launch() -> int:
    """The rank that the launcher gave, also before :func:`joined` and after it."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes of the launcher, if there is one; the device of this process."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def own_samples(batch: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch [B, ...]; B is a multiple of the number of processes."""
    size = len(batch) // count()
    return batch[rank() * size : (rank() + 1) * size]


def average(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrites each tensor by its mean over the processes."""
    tensors = list(tensors)
    if count() > 1 and tensors:
        flat = torch.cat([t.flatten() for t in tensors])
        distributed.all_reduce(flat)
        flat /= count()
        for tensor, mean in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def average_gradients(module: torch.nn.Module) -> None:
    with torch.no_grad():
        average(p.grad for p in module.parameters() if p.grad is not None)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if count() == 1:
        return flag
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    value = torch.tensor(float(flag), device=device)
    distributed.all_reduce(value)
    return bool(value > 0)


def wait() -> None:
    if count() > 1:
        distributed.barrier()
