"""Samples as a picture."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyfold._requirements import need
from pyfold.train.files import write

_SIDE = 56  # an image is shown at least this large
_GAP = 4
_APART = 24  # between sets of samples

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def image_grid(samples: torch.Tensor, columns: int | None = None) -> Pixels:
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


def point_map(samples: torch.Tensor, side: int = 512) -> Pixels:
    """uint8 [side, side, 3]: how densely points [N, 2] fill the square from -1.5 to 1.5."""
    x, y = samples.float().cpu().numpy().T
    density, _, _ = np.histogram2d(-y, x, bins=side, range=[[-1.5, 1.5]] * 2)
    shade = np.clip(density * 64, 0, 255).astype(np.uint8)
    return np.stack([255 - shade] * 3, -1)


def _picture_of(samples: torch.Tensor) -> Pixels:
    return image_grid(samples) if samples.dim() == 4 else point_map(samples)


def beside(panels: Sequence[tuple[str, torch.Tensor]]) -> Pixels:
    """uint8 [H, W, 3]: sets of samples side by side, each with its caption under it.

    Args:
        panels: captions and samples, images [N, C, S, S] or points [N, 2]. A long caption goes on in further lines.
    """
    image, draw_module, font_module = need("PIL.Image"), need("PIL.ImageDraw"), need("PIL.ImageFont")
    pictures = [_picture_of(samples) for _, samples in panels]
    width = max(picture.shape[1] for picture in pictures)
    font = font_module.load_default(size=max(14, min(24, width // 24)))
    letter = font.getlength("n")
    texts = ["\n".join(textwrap.wrap(caption, max(8, int(width / letter)))) for caption, _ in panels]
    below = (
        2 * _GAP
        + max(font.getbbox(line)[3] for text in texts for line in [*text.split("\n"), "Ag"])
        * max(text.count("\n") + 1 for text in texts)
        * 5
        // 4
    )
    height = max(picture.shape[0] for picture in pictures)
    sheet = image.new("RGB", (len(panels) * width + (len(panels) - 1) * _APART, height + below), "white")
    pen = draw_module.Draw(sheet)
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left = i * (width + _APART)
        sheet.paste(image.fromarray(picture), (left, 0))
        pen.multiline_text((left + _GAP, height + _GAP), text, fill="black", font=font)
    return np.asarray(sheet)


def save_beside(panels: Sequence[tuple[str, torch.Tensor]], path: Path) -> None:
    """Writes :func:`beside`; the format is that of the path's suffix."""
    picture = need("PIL.Image").fromarray(beside(panels))
    write(path, picture.save)


def save_picture(samples: torch.Tensor, path: Path) -> None:
    """Writes images as a grid, points as a map of their density; the format is that of the path's suffix."""
    picture = need("PIL.Image").fromarray(_picture_of(samples))
    write(path, picture.save)
