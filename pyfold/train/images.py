"""A folder of images as people have them: upright, opaque, of any common format, and read as they are needed."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyfold._requirements import need

#: File names that are images; what else lies in a folder is counted and left out.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_LISTED = 10  # names of files in a message


def read_image(path: Path, size: int) -> np.ndarray:
    """An image as a viewer shows it, cropped to its middle square and resized: [3, size, size], uint8 of 0 to 255, or
    float32 in [0, 1] for one of 16 bits a channel.

    Its EXIF orientation is applied, and what is transparent is laid on white. Of an animation the first frame is taken.

    Raises:
        ValueError: it has more pixels than Pillow's limit (``PIL.Image.MAX_IMAGE_PIXELS``, 89 million), or cannot be read.
    """
    pil, ops = need("PIL.Image"), need("PIL.ImageOps")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            with pil.open(path) as image:
                upright = ops.exif_transpose(image)
                square = ops.fit(_opaque(upright, pil), (size, size), pil.Resampling.LANCZOS)
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise ValueError(f"more than {pil.MAX_IMAGE_PIXELS} pixels") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        # Pillow's text names the file again, often as an object in memory.
        raise ValueError(
            f"cannot be read ({type(error).__name__}: {str(error).split(' <')[0].replace(f' {str(path)!r}', '')})"
        ) from error
    array = np.asarray(square)
    if array.ndim == 2:
        return np.broadcast_to(array.clip(0, 1), (3, size, size)).astype(np.float32)
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _opaque(image: Any, pil: Any) -> Any:
    """RGB of 8 bits, or F from 0 to 1 where there are 16."""
    if image.mode.startswith("I"):
        # Pillow would cut 16 bits off at 255. It reads colours of 16 bits as their upper 8, which is right.
        return pil.fromarray(np.asarray(image, np.float32) / 65535)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        colours = image.convert("RGBA")
        return pil.alpha_composite(pil.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


@dataclass
class Images:
    """Images of files, float32 [N, 3, S, S] in [-1, 1] where a tensor of that kind is indexed.

    What fits into ``budget`` bytes is kept in memory as it was decoded, a byte a value; the others are read at each use.
    """

    files: list[Path]
    size: int
    budget: int
    kept: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    used: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), 3, self.size, self.size)

    def __len__(self) -> int:
        return len(self.files)

    def keep(self, index: int, image: np.ndarray) -> None:
        if index not in self.kept and self.used + image.nbytes <= self.budget:
            self.kept[index] = image
            self.used += image.nbytes

    def _image(self, index: int) -> np.ndarray:
        if index in self.kept:
            return self.kept[index]
        try:
            return read_image(self.files[index], self.size)
        except ValueError as error:
            raise ValueError(f"data: {self.files[index]} was readable when the run began: {error}") from error

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """[len(rows), 3, S, S] for int64 rows."""
        result = torch.empty(len(rows), *self.shape[1:])
        for target, index in zip(result, rows.tolist(), strict=True):
            image = torch.from_numpy(self._image(index))
            target.copy_(image)
            if image.dtype == torch.uint8:
                target.div_(255)
        return result.mul_(2).sub_(1)


@dataclass(frozen=True)
class Folder:
    """What was found in a folder.

    Attributes:
        images: those that are used.
        labels: int64 [N], the place of each image's first subfolder among ``classes``; None where they were not asked for.
        classes: names of the subfolders.
        left_out: how many files are not used, by reason.
    """

    images: Images
    labels: torch.Tensor | None
    classes: tuple[str, ...]
    left_out: dict[str, int]

    def __str__(self) -> str:
        left = "; ".join(f"{count} left out: {reason}" for reason, count in sorted(self.left_out.items()))
        of = f" of {len(self.classes)} classes" if self.classes else ""
        return f"images used: {len(self.images)}{of}" + (f"; {left}" if left else "")


def scan(path: Path, size: int, *, broken: str, labels: str, budget: int) -> Folder:
    """Reads every image of a folder and its subfolders once, so that what cannot be read is known before training.

    Args:
        path: the folder.
        size: side of the images.
        broken: "refuse" (ValueError naming the files) or "skip" (a warning naming them) what cannot be read.
        labels: "none", or "folders" for the names of the subfolders.
        budget: bytes of images kept in memory.

    Raises:
        ValueError: no image can be used, one cannot be read, or one lies in no subfolder although these are the labels.
    """
    for name, value, allowed in (("broken", broken, ("refuse", "skip")), ("labels", labels, ("none", "folders"))):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    present = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    candidates = [p for p in present if p.suffix.lower() in SUFFIXES]
    left_out = Counter({"not PNG, JPEG, WebP or BMP": len(present) - len(candidates)})
    images, failures = Images([], size, budget), []
    for file in candidates:
        try:
            image = read_image(file, size)
        except ValueError as error:
            failures.append(f"{file}: {error}")
            left_out[str(error).split(" (")[0]] += 1
        else:
            images.keep(len(images), image)
            images.files.append(file)
    if failures:
        more = [f"and {len(failures) - _LISTED} more"] if len(failures) > _LISTED else []
        message = f"{len(failures)} of {len(candidates)} images cannot be used:\n  " + "\n  ".join(failures[:_LISTED] + more)
        if broken == "refuse" or not images.files:
            raise ValueError(f"data: {message}")
        warnings.warn(message, stacklevel=4)
    if not images.files:
        raise ValueError(f"data: no PNG, JPEG, WebP or BMP images in {path}")
    classes, numbers = _labels(path, images.files) if labels == "folders" else ((), None)
    return Folder(images, numbers, classes, {reason: count for reason, count in left_out.items() if count})


def _labels(path: Path, files: list[Path]) -> tuple[tuple[str, ...], torch.Tensor]:
    parts = [file.relative_to(path).parts for file in files]
    alone = [file for file, part in zip(files, parts, strict=True) if len(part) < 2]
    if alone:
        raise ValueError(f"data: with labels from folders every image must be in a subfolder, got {alone[0]}")
    classes = tuple(sorted({part[0] for part in parts}))
    place = {name: i for i, name in enumerate(classes)}
    return classes, torch.tensor([place[part[0]] for part in parts])
