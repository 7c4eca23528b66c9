"""Seeds for people who make them from places: which run, which sample, which step."""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIER, _WEYL, _ROUNDS = 0xD256D193, 0x9E3779B9, 10


def _philox2x32(c0: torch.Tensor, c1: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Philox2x32-10 on 32-bit words held in int64."""
    for _ in range(_ROUNDS):
        # The 64-bit product of two 32-bit words, by halves of the second: none of the sums leaves 63 bits.
        below = _MULTIPLIER * (c0 & 0xFFFF)
        above = _MULTIPLIER * (c0 >> 16) + (below >> 16)
        high, low = above >> 16, (above & 0xFFFF) << 16 | below & 0xFFFF
        c0, c1 = high ^ key ^ c1, low
        key = (key + _WEYL) & _MASK
    return c0, c1


def _words(name: str, value: int | torch.Tensor, bits: int, device: torch.device) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        if value.dtype != torch.int64:
            raise TypeError(f"{name} must be an int or an int64 tensor, got {str(value.dtype).removeprefix('torch.')}")
        return value
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int or an int64 tensor, got {type(value).__name__}")
    number = value.__index__()
    low = -(2**63) if bits == 64 else 0
    if not low <= number < 2**bits:
        raise ValueError(f"{name} must be in [{'-2**63' if low else 0}, 2**{bits}), got {number}")
    return torch.tensor(number - 2**64 if number >= 2**63 else number, dtype=torch.int64, device=device)


def seed_of(run: int | torch.Tensor, sample: int | torch.Tensor, step: int | torch.Tensor = 0) -> torch.Tensor:
    """The seed of a place: a hash of (run, sample, step), int64, on the arguments' device and without a wait for it.

    Seeds that count (``run + sample``, ``1000 * step + sample``) meet each other sooner or later, and then noise repeats.
    Within a run no two places share a seed: for each run the map from (sample, step) is one to one. Seeds of different runs
    are as good as random 64-bit numbers.

    Two Philox2x32-10 blocks (Salmon et al. 2011), the first of the counter (sample, step) under the run's low word, the second
    of its result under the high word; the first word of the result is the seed's low half.

    Args:
        run: a 64-bit number, signed or not.
        sample: the sample's place in the data set or the whole batch, in [0, 2^32). What lies above in a tensor is dropped.
        step: of training, or the epoch; in [0, 2^32), likewise.

    Each is an int or an int64 tensor; tensors broadcast.

    Returns:
        int64, of the arguments' broadcast shape.

    Raises:
        TypeError, ValueError: a number that is no int, a tensor that is not int64, or an int out of its range.

    Example:
        >>> pyfold.seed_of(7, torch.arange(3), step=100)
        tensor([-1632330518368330752,  2750917402697120014, -4100578581330589481])
    """
    tensors = [value for value in (run, sample, step) if isinstance(value, torch.Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    key = _words("run", run, 64, device)
    c0, c1 = (_words(name, value, 32, device) & _MASK for name, value in (("sample", sample), ("step", step)))
    c0, c1 = _philox2x32(c0, c1, key & _MASK)
    c0, c1 = _philox2x32(c0, c1, key >> 32 & _MASK)
    return c1 << 32 | c0
