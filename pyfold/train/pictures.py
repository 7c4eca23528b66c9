"""Samples as a picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from pyfold._requirements import need
from pyfold.train.files import write

_SIDE = 56  # an image is shown at least this large
_GAP = 4


def image_grid(samples: torch.Tensor, columns: int | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of images [N, C, S, S] in [-1, 1], enlarged so that a person sees them."""
    count, channels, size, _ = samples.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = max(1, math.ceil(_SIDE / size))
    cell = size * scale + _GAP
    sheet = np.full((rows * cell + _GAP, columns * cell + _GAP, 3), 255, np.uint8)
    if channels not in (1, 3):
        samples = samples[:, :1]
    # Smoothly: a person reads eight pixels across as a digit, and squares as squares.
    large = (
        torch.nn.functional.interpolate(samples.float(), scale_factor=scale, mode="bicubic") if scale > 1 else samples.float()
    )
    images = ((large.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    for i, image in enumerate(images.transpose(0, 2, 3, 1)):
        top, left = (_GAP + cell * k for k in divmod(i, columns))
        sheet[top : top + size * scale, left : left + size * scale] = image
    return sheet


def point_map(samples: torch.Tensor, side: int = 512) -> np.ndarray:
    """uint8 [side, side, 3]: how densely points [N, 2] fill the square from -1.5 to 1.5."""
    x, y = samples.float().cpu().numpy().T
    density, _, _ = np.histogram2d(-y, x, bins=side, range=[[-1.5, 1.5]] * 2)
    shade = np.clip(density * 64, 0, 255).astype(np.uint8)
    return np.stack([255 - shade] * 3, -1)


def save_picture(samples: torch.Tensor, path: Path) -> None:
    """Writes images as a grid, points as a map of their density; the format is that of the path's suffix."""
    array = image_grid(samples) if samples.dim() == 4 else point_map(samples)
    picture = need("PIL.Image").fromarray(array)
    write(path, picture.save)
