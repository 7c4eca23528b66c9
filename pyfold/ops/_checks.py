"""Checks of arguments, before any kernel runs. Each error names the argument, what it was and what it should be."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from pyfold.ops._declare import FLOAT_DTYPES, SEED_DTYPES

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


def as_sizes(name: str, sizes: Any) -> tuple[Any, ...]:
    """A tuple of what is a sequence of ints."""
    if type(sizes) is tuple:
        return sizes
    if isinstance(sizes, (str, bytes, torch.Tensor)) or not isinstance(sizes, Iterable):
        raise TypeError(f"{name} must be a sequence of ints, got {_kind(sizes)}")
    return tuple(sizes)


def check_sizes(name: str, sizes: Sequence[Any]) -> None:
    """At most 8 sizes, ints from 0."""
    for size in sizes:
        if (type(size) is not int and not isinstance(size, torch.SymInt)) or size < 0:
            if isinstance(size, (bool, torch.Tensor)) or not hasattr(size, "__index__"):
                raise TypeError(f"{name} must be ints, got {tuple(sizes)}")
            if size < 0:
                raise ValueError(f"{name} must not have negative sizes, got {tuple(sizes)}")
    if len(sizes) > 8:
        raise ValueError(f"{name} may have at most 8 dimensions, got {tuple(sizes)}")


def check_batched(name: str, value: torch.Tensor) -> None:
    if value.dim() == 0:
        raise ValueError(f"{name} needs a batch dimension, got a 0-d tensor")
    if value.dim() > 9:
        raise ValueError(f"{name} may have at most 8 dimensions after the batch, got shape {tuple(value.shape)}")


def as_seeds(seeds: Any, samples: int, device: torch.device) -> torch.Tensor:
    """int64 seeds [samples] on the device, of ints of 64 bits, signed or not, or one for all samples; or other seeds."""
    if isinstance(seeds, torch.Tensor):
        if seeds.dim() == 0 and seeds.dtype == torch.int64:
            return seeds.expand(samples).contiguous()
        return seeds
    if (
        not isinstance(seeds, str)
        and hasattr(seeds, "__index__")
        and not isinstance(seeds, bool)
        and not getattr(seeds, "ndim", 0)
    ):
        seeds = [seeds] * samples
    try:
        return torch.tensor([_word("seeds", seed) for seed in seeds], dtype=torch.int64, device=device)
    except TypeError:
        raise TypeError(f"seeds must be an int64 tensor, an int, or a sequence of ints, got {_kind(seeds)}") from None


def _word(name: str, value: Any) -> int:
    """A number of 64 bits, signed or not, as int64 holds its bits."""
    if isinstance(value, (bool, str)):
        raise TypeError
    word = operator.index(value)
    if not -(2**63) <= word < 2**64:
        raise ValueError(f"{name} must be 64-bit numbers, in [-2**63, 2**64), got {word}")
    return word - 2**64 if word >= 2**63 else word


def seed_count(seeds: torch.Tensor) -> int:
    """How many samples have these seeds or keys."""
    return seeds.shape[0] if seeds.dim() > (seeds.dtype == torch.uint64) else 1


def check_seeds(seeds: Any, samples: int, device: torch.device) -> torch.Tensor:
    """The same, checked; or keys, uint64 [samples, 2] (docs/keys.md)."""
    return _checked_seeds(as_seeds(seeds, samples, device), samples, device)


def _checked_seeds(seeds: torch.Tensor, samples: int, device: torch.device) -> torch.Tensor:
    if seeds.dtype not in SEED_DTYPES:
        raise TypeError(f"seeds must have dtype int64, or uint64 for keys, got {str(seeds.dtype).removeprefix('torch.')}")
    if seeds.layout != torch.strided:
        raise TypeError(f"seeds must be a dense (strided) tensor, got layout {seeds.layout}")
    keys = seeds.dtype == torch.uint64
    if tuple(seeds.shape) != ((samples, 2) if keys else (samples,)):
        allowed = f"({samples}, 2), keys" if keys else f"({samples},)"
        raise ValueError(f"seeds must have shape {allowed}, one for each sample, got {tuple(seeds.shape)}")
    if seeds.device != device:
        raise ValueError(f"seeds must be on device {device}, got {seeds.device}")
    return seeds.contiguous()


def counter(name: str, value: Any, samples: int | None = None) -> tuple[torch.Tensor | None, int]:
    """A counter word as an op takes it: (int64 tensor on the device, or None; number)."""
    if isinstance(value, torch.Tensor) and (value.dtype != torch.int64 or value.layout != torch.strided or value.dim() > 1):
        kind = str(value.dtype).removeprefix("torch.")
        raise TypeError(
            f"{name} must be an int, or a dense int64 tensor () or [B], got {kind}, shape {tuple(value.shape)}, {value.layout}"
        )
    if samples is not None and isinstance(value, torch.Tensor) and value.numel() not in (1, samples):
        raise ValueError(f"{name} must be an int, or int64 () or ({samples},), got shape {tuple(value.shape)}")
    return (value, 0) if isinstance(value, torch.Tensor) else (None, check_counter(name, value))


def check_counter(name: str, value: Any) -> Any:
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
    offset, global_shape = list(as_sizes("offset", offset)), list(as_sizes("global_shape", global_shape))
    for name, sizes in (("offset", offset), ("global_shape", global_shape)):
        if not all(type(s) is int or isinstance(s, torch.SymInt) for s in sizes):
            raise TypeError(f"{name} must be a sequence of ints, got {sizes}")
    if len(offset) != len(shape) or len(global_shape) != len(shape):
        raise ValueError(
            f"offset and global_shape must have one entry for each of the {len(shape)} dimensions after the batch, "
            f"got {offset} and {global_shape}"
        )
    for start, size, whole in zip(offset, shape, global_shape, strict=True):
        if start < 0 or start + size > whole:
            raise ValueError(f"the window at offset {offset} of shape {list(shape)} leaves global_shape {global_shape}")
    return offset, global_shape


def check_lower_dtype(name: str, dtype: torch.dtype, state: torch.Tensor) -> None:
    """The dtype of a state, or a half type beside float32."""
    allowed = (state.dtype, torch.bfloat16, torch.float16) if state.dtype == torch.float32 else (state.dtype,)
    if dtype not in allowed:
        raise TypeError(f"{name} must be {' or '.join(map(str, allowed))} for {state.dtype} input, got {dtype}")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    for choice in (allowed := tuple(allowed)):
        if choice == value:
            return choice
    raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_finite(name: str, value: Any) -> float:
    """A finite Python number; 0.0 for -0.0, so that equal numbers give equal bits."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {_kind(value)}")
    if not is_finite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value) + 0.0


def check_index(index: torch.Tensor | None, samples: int, like_name: str, like: torch.Tensor) -> torch.Tensor | None:
    """int64 table rows, one or one for each sample."""
    if index is None:
        return None
    check_tensor("index", index, (torch.int64,))
    if index.dim() > 1 or index.numel() not in (1, samples):
        raise ValueError(f"index must have shape (), (1,) or ({samples},), got {tuple(index.shape)}")
    check_device("index", index, like_name, like)
    return index.contiguous()
