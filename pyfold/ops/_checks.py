"""Checks of arguments, before any kernel runs. Each error names the argument, what it was and what it should be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from pyfold.ops._declare import FLOAT_DTYPES

DEVICES = ("cpu", "cuda")


def _kind(value: Any) -> str:
    return type(value).__name__


def is_finite(value: float) -> bool:
    """math.isfinite, in a form that the compiler traces with symbolic numbers."""
    return value - value == 0


def check_tensor(name: str, value: Any, dtypes: Iterable[torch.dtype] = FLOAT_DTYPES) -> torch.Tensor:
    """A dense tensor of one of the dtypes on a device with kernels."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {_kind(value)}")
    if value.dtype not in dtypes:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must have dtype {allowed}, got {str(value.dtype).removeprefix('torch.')}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")
    if value.device.type not in DEVICES and value.device.type != "meta":
        raise ValueError(f"{name} is on device {value.device}; pyfold has kernels for {' and '.join(DEVICES)}")
    return value


def check_same(name: str, value: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    """The same shape and device as another argument."""
    if value.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {like_name}, {tuple(like.shape)}, got {tuple(value.shape)}")
    check_device(name, value, like_name, like)


def check_device(name: str, value: torch.Tensor, like_name: str, like: torch.Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, got {value.device}")


def check_batched(name: str, value: torch.Tensor) -> None:
    if value.dim() == 0:
        raise ValueError(f"{name} needs a batch dimension, got a 0-d tensor")
    if value.dim() > 9:
        raise ValueError(f"{name} may have at most 8 dimensions after the batch, got shape {tuple(value.shape)}")


def check_seeds(seeds: Any, samples: int, device: torch.device) -> torch.Tensor:
    """int64 seeds [samples] on the device; a sequence of ints is taken too."""
    if not isinstance(seeds, torch.Tensor):
        if not isinstance(seeds, Sequence) or not all(isinstance(s, int) for s in seeds):
            raise TypeError(f"seeds must be an int64 tensor or a sequence of ints, got {_kind(seeds)}")
        seeds = torch.tensor(seeds, dtype=torch.int64, device=device)
    if seeds.dtype != torch.int64:
        raise TypeError(f"seeds must have dtype int64, got {str(seeds.dtype).removeprefix('torch.')}")
    if seeds.dim() != 1 or seeds.shape[0] != samples:
        raise ValueError(f"seeds must have shape ({samples},), one for each sample, got {tuple(seeds.shape)}")
    if seeds.device != device:
        raise ValueError(f"seeds must be on device {device}, got {seeds.device}")
    return seeds.contiguous()


def check_counter(name: str, value: Any) -> int:
    """An unsigned 32-bit counter word."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {_kind(value)}")
    if not 0 <= value < 2**32:
        raise ValueError(f"{name} must be in [0, 2**32), got {value}")
    return value


def check_window(
    offset: Sequence[int] | None, global_shape: Sequence[int] | None, shape: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The window [offset, offset + shape) of global_shape; both or neither."""
    if offset is None and global_shape is None:
        return [], []
    if offset is None or global_shape is None:
        raise ValueError(f"offset and global_shape go together, got {offset} and {global_shape}")
    offset, global_shape = list(offset), list(global_shape)
    if len(offset) != len(shape) or len(global_shape) != len(shape):
        raise ValueError(
            f"offset and global_shape must have one entry for each of the {len(shape)} dimensions after the batch, "
            f"got {offset} and {global_shape}"
        )
    for start, size, whole in zip(offset, shape, global_shape, strict=True):
        if start < 0 or start + size > whole:
            raise ValueError(f"the window at offset {offset} of shape {list(shape)} leaves global_shape {global_shape}")
    return offset, global_shape


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def check_finite(name: str, value: Any) -> float:
    """A finite Python number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {_kind(value)}")
    if not is_finite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def check_index(index: torch.Tensor | None, samples: int, like_name: str, like: torch.Tensor) -> torch.Tensor | None:
    """int64 table rows, one or one for each sample."""
    if index is None:
        return None
    check_tensor("index", index, (torch.int64,))
    if index.dim() > 1 or index.numel() not in (1, samples):
        raise ValueError(f"index must have shape (), (1,) or ({samples},), got {tuple(index.shape)}")
    check_device("index", index, like_name, like)
    return index.contiguous()
