"""Standard normals that are a function of the sample's seed, not a state (docs/noise.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold.ops import _noise_reference
from pyfold.ops._call import RAW, dispatch
from pyfold.ops._checks import (
    as_seeds,
    as_sizes,
    check_device,
    check_seeds,
    check_sizes,
    check_tensor,
    check_window,
    counter,
    seed_count,
)
from pyfold.ops._declare import FLOAT_DTYPES, Op, declare
from pyfold.ops._tensors import sample_seeds

#: Streams that pyfold itself draws from; a seed gives independent noise in each.
INITIAL_STREAM, SAMPLER_STREAM, TRAINING_STREAM = 0, 1, 2


def randn(
    seeds: torch.Tensor | Sequence[int] | int,
    shape: Sequence[int],
    *,
    stream: int | torch.Tensor = INITIAL_STREAM,
    step: int | torch.Tensor = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    out: torch.Tensor | None = None,
    offset: Sequence[int] | None = None,
    global_shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """Standard normals, one sample for each seed: ``out[b, i] = f(seeds[b], stream, step, i)``.

    ``f`` is Philox4x32-10 (Salmon et al. 2011) followed by a Box-Muller transform in a fixed order of operations, so the
    values are the same bits on every device, instruction set, thread count, batch split and memory layout. ``i`` is the
    row-major index inside the sample. Values reach 6.76 standard deviations.

    Args:
        seeds: int64 [B]; any value, negative ones included. A sequence of ints of 64 bits, signed or not, is taken too, and
            one int, for one sample. Or keys of ``torch.func._random``, uint64 [B, 2] (docs/keys.md).
        shape: the shape of one sample.
        stream: which of 2**32 independent noises of a seed. pyfold uses 0 for initial noise, 1 for sampler steps and 2 for
            training; the trainer draws from 3 and 16, and yours can start at 32.
        step: which of 2**32 independent draws of a stream. stream and step may be int64 tensors on the device, () or [B],
            modulo 2**32: a recorded graph reads them anew.
        dtype: float32, float64, bfloat16 or float16. All hold the float32 value: widened, or rounded to nearest even.
        device: where to make them; the device of ``seeds`` by default.
        out: written and returned instead of a new tensor: [B, *shape], any strides.
        offset, global_shape: the sample is the window [offset, offset + shape) of a larger one of shape
            ``global_shape``, and gets that window's noise: a shard draws its own part.

    Returns:
        [B, *shape].

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.

    Example:
        >>> both = pyfold.randn(torch.tensor([7, 8]), (3,))
        >>> torch.equal(both[1:], pyfold.randn(torch.tensor([8]), (3,)))  # a sample's noise is its seed's
        True
    """
    if type(shape) is not tuple:
        shape = as_sizes("shape", shape)
    check_sizes("shape", shape)
    if type(seeds) is not torch.Tensor or device is not None:
        seeds, device = _seeds_on(seeds, device, out)
    streams = positions = None
    if type(stream) is not int or type(step) is not int:
        (streams, stream), (positions, step) = counter("stream", stream), counter("step", step)
    if offset is not None or global_shape is not None:
        offset, global_shape = check_window(offset, global_shape, shape)
    if out is None:
        if dtype not in FLOAT_DTYPES:
            raise TypeError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
        if seeds.dim() != 1:
            seeds = check_seeds(seeds, seed_count(seeds), seeds.device)
        out = seeds.new_empty((seeds.shape[0], *shape), dtype=dtype)
    else:
        check_tensor("out", out)
        if tuple(out.shape) != (seed_count(seeds), *shape):
            raise ValueError(f"out must have shape {(seed_count(seeds), *shape)}, got {tuple(out.shape)}")
        check_device("out", out, "seeds", seeds)
    noise = seeds, streams, positions, stream, step, offset or (), global_shape or ()
    if not is_compiling():
        done: torch.Tensor | None = _C.randn(out, *noise)
        if done is not None:
            return done
    made: torch.Tensor = dispatch(RAW["randn"], out, *noise)
    return made


def _seeds_on(seeds: Any, device: Any, out: torch.Tensor | None) -> tuple[torch.Tensor, torch.device]:
    """Seeds as a tensor where the noise is to be made."""
    if out is not None:
        check_tensor("out", out)
    if device is None:
        device = out.device if out is not None else seeds.device if isinstance(seeds, torch.Tensor) else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    seeds = as_seeds(seeds, 1, device)
    return (seeds if seeds.device == device else seeds.to(device)), device


def _reference(
    seeds: torch.Tensor, shape: Sequence[int], *, stream: Any = 0, step: Any = 0, offset: Any = None, global_shape: Any = None,
    **_: Any,
) -> torch.Tensor:  # fmt: skip
    each = [
        _noise_reference.randn([seed], tuple(shape), _at(stream, b), _at(step, b), offset, global_shape)
        for b, seed in enumerate(seeds.tolist())
    ]
    values = torch.from_numpy(np.concatenate(each)) if each else torch.zeros(0, *shape)
    return values.to(seeds.device)


def _at(counter: Any, sample: int) -> int:
    if not isinstance(counter, torch.Tensor):
        return int(counter)
    return int(counter.expand(sample + 1)[sample] if counter.numel() == 1 else counter[sample]) % 2**32


def _sample(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator, **variant: Any
) -> dict[str, Any] | None:
    if len(shape) == 0:
        return None
    seeds = sample_seeds(shape[0], device, generator, variant.pop("keys", False))
    sample_shape = list(shape[1:])
    if variant.pop("window", False):
        variant["offset"] = [3] * len(sample_shape)
        variant["global_shape"] = [size + 5 for size in sample_shape]
    if variant.pop("on device", False):
        variant["stream"] = torch.arange(shape[0], device=device) + 5
        variant["step"] = torch.tensor(9, device=device)
    return {"seeds": seeds, "shape": sample_shape, "dtype": dtype, "device": device, **variant}


declare(
    Op(
        name="randn",
        public=randn,
        reference=_reference,
        sample=_sample,
        tensors=(),
        raw=("randn",),
        rule="out[b, i] = normal(seeds[b], stream, step, i)",
        variants={
            "default": {},
            "stream and step": {"stream": 7, "step": 2**32 - 1},
            "window": {"window": True},
            "stream and step on the device": {"on device": True},
            "keys": {"keys": True, "stream": 7, "step": 3},
        },
    )
)
