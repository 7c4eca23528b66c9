"""The table of what is measured: a row is one function, decorated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pyfold.bench.peers import Peers

#: Sizes of a row, from what a call's overhead decides to what lies beyond the caches.
LEVELS = ("small", "middle", "large")
IMAGES = {"small": (1, 4, 64, 64), "middle": (8, 3, 256, 256), "large": (16, 3, 512, 512)}
FEATURES = {"small": (1, 8, 64, 64), "middle": (8, 8, 128, 256), "large": (32, 64, 64, 64)}

#: What the rows of a group have in common.
GROUPS = {
    "ops": "the ops alone",
    "gradients": "the ops with their derivatives: forward + backward, and backward of backward",
    "steps": "one step of a sampler, in place, the model's output ready",
    "loops": "a whole loop of a sampler, the model's output ready: time for all its steps",
    "jobs": "a training step or a sampling loop with its network",
    "overhead": "one call at 64 elements, above an empty Python call",
}

Form = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """One point of a row: a size, a dtype, a device, and what there is to compare with.

    Attributes:
        shape: of the main tensor.
        dtype, device: of it.
        peers: what there is to compare with.
        level: the size's name.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    peers: Peers
    level: str

    def tensors(self, count: int, shape: Sequence[int] | None = None) -> list[torch.Tensor]:
        """Standard normals of this setting, the same ones every time."""
        generator = torch.Generator().manual_seed(0)
        made = (torch.randn(shape or self.shape, generator=generator) for _ in range(count))
        return [t.to(self.device, self.dtype) for t in made]

    def seeds(self) -> torch.Tensor:
        return torch.arange(self.shape[0], device=self.device)

    def per_sample(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.device, self.dtype).reshape(-1, *[1] * (len(self.shape) - 1))


@dataclass
class Case:
    """What a row runs at one setting.

    Attributes:
        forms: "pyfold" and its peers, each a call without arguments; a peer that is None is not there.
        moved: bytes that must move, once each: the share of the bandwidth is reckoned from them.
        normals: how many normals are drawn: the share of the pure generator's speed is reckoned from them.
        grad: whether autograd records.
        memory: whether to say the peak memory of each form.
        overhead: whether an empty call's time is taken off every form.
    """

    forms: Mapping[str, Form | None]
    moved: int | None = None
    normals: int = 0
    grad: bool = False
    memory: bool = False
    overhead: bool = False


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name, group: what it is; GROUPS says what the groups are.
        build: makes the case for a setting.
        shapes: the shape at each level it has.
        dtypes: the dtypes it has.
        floor: how many times longer eager PyTorch must take at the middle size in float32, at the very least: a gate with a
            wide margin, for the benchmarks.
    """

    name: str
    group: str
    build: Callable[[Setting], Case]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: IMAGES)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    floor: float | None = None


ROWS: dict[str, Row] = {}


def row(name: str, group: str, **options: Any) -> Callable[[Callable[[Setting], Case]], Callable[[Setting], Case]]:
    """Adds the decorated function to the table."""

    def add(build: Callable[[Setting], Case]) -> Callable[[Setting], Case]:
        if name in ROWS:
            raise ValueError(f"row {name!r} is there already")
        if group not in GROUPS:
            raise ValueError(f"group must be one of {', '.join(GROUPS)}, got {group!r}")
        ROWS[name] = Row(name, group, build, **options)
        return build

    return add


def settings(
    row: Row, levels: Sequence[str], dtypes: Sequence[torch.dtype], device: torch.device, peers: Peers
) -> Iterator[Setting]:
    """The points of a row among the levels and dtypes asked for.

    Args:
        row: of the benchmark.
        levels: names of sizes.
        dtypes, device: of the tensors.
        peers: what there is to compare with.

    Returns:
        An iterator of settings.
    """
    for dtype in dtypes:
        for level, shape in row.shapes.items():
            if level in levels and dtype in row.dtypes:
                yield Setting(shape, dtype, device, peers, level)
