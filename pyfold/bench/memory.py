"""What a call allocates, by torch's own account of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """The profiler writes a line there whenever it starts or stops."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def allocations(phases: Mapping[str, Callable[[], Any]]) -> dict[str, list[int]]:
    """What each phase allocates on the CPU, in order and in bytes; what it gives back is negative. Phases run in order."""
    from torch.profiler import ProfilerActivity, profile, record_function

    with _without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for name, phase in phases.items():
            with record_function(f"phase:{name}"):
                phase()
    events = profiler.profiler.kineto_results.events()
    ranges = {e.name()[6:]: (e.start_ns(), e.end_ns()) for e in events if e.name().startswith("phase:")}
    made = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return {name: [n for at, n in made if begin <= at <= end] for name, (begin, end) in ranges.items()}


def peak(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that a call holds at once beyond what there was before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    held = most = 0
    for change in allocations({"call": call})["call"]:
        held += change
        most = max(most, held)
    return most
