"""Standard normals that are a function of the sample's seed, not a state (docs/noise.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold.ops import _noise_reference
from pyfold.ops._checks import check_counter, check_device, check_seeds, check_tensor, check_window
from pyfold.ops._declare import FLOAT_DTYPES, Op, declare
from pyfold.ops._tensors import wrote

#: Streams that pyfold itself draws from; a seed gives independent noise in each.
INITIAL_STREAM, SAMPLER_STREAM, TRAINING_STREAM = 0, 1, 2
_CPU = torch.device("cpu")


def randn(
    seeds: torch.Tensor | Sequence[int],
    shape: Sequence[int],
    *,
    stream: int = INITIAL_STREAM,
    step: int = 0,
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
        seeds: int64 [B]; any value, negative ones included. A sequence of ints is taken too.
        shape: the shape of one sample.
        stream: which of 2**32 independent noises of a seed. pyfold uses 0 for initial noise, 1 for sampler steps and 2 for
            training; the trainer draws from 3 and 16, and yours can start at 32.
        step: which of 2**32 independent draws of a stream.
        dtype: float32, float64, bfloat16 or float16. All hold the float32 value: widened, or rounded to nearest even.
        device: where to make them; the device of ``seeds`` by default.
        out: written and returned instead of a new tensor: [B, *shape], any strides.
        offset, global_shape: the sample is the window [offset, offset + shape) of a larger one of shape
            ``global_shape``, and gets that window's noise: a shard draws its own part.

    Returns:
        [B, *shape].

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range.
    """
    if offset is None and global_shape is None and (device is None or device == _CPU) and not is_compiling():
        done = _C.randn(seeds, shape, stream, step, dtype, out)
        if done is not None:
            wrote(out)
            return done
    shape = [int(size) if not isinstance(size, torch.SymInt) else size for size in shape]
    if any(size < 0 for size in shape):
        raise ValueError(f"shape must not have negative sizes, got {tuple(shape)}")
    if len(shape) > 8:
        raise ValueError(f"shape may have at most 8 dimensions, got {tuple(shape)}")
    if device is None:
        device = out.device if out is not None else seeds.device if isinstance(seeds, torch.Tensor) else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if isinstance(seeds, torch.Tensor) and seeds.device != device:
        seeds = seeds.to(device)
    seeds = check_seeds(seeds, seeds.shape[0] if isinstance(seeds, torch.Tensor) and seeds.dim() else len(seeds), device)
    offset, global_shape = check_window(offset, global_shape, shape)
    given = out
    if out is None:
        if dtype not in FLOAT_DTYPES:
            raise TypeError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
        out = torch.empty([seeds.shape[0], *shape], dtype=dtype, device=device)
        check_tensor("the result", out)
    else:
        check_tensor("out", out)
        if list(out.shape) != [seeds.shape[0], *shape]:
            raise ValueError(f"out must have shape {(seeds.shape[0], *shape)}, got {tuple(out.shape)}")
        check_device("out", out, "seeds", seeds)
    torch.ops.pyfold.randn(seeds, check_counter("stream", stream), check_counter("step", step), offset, global_shape, out)
    wrote(given)
    return out


@torch.library.register_fake("pyfold::randn")
def _(seeds, stream, step, offset, global_shape, out):
    return None


def _reference(seeds, shape, *, stream=0, step=0, offset=None, global_shape=None, **_):
    values = _noise_reference.randn(seeds.cpu().numpy(), tuple(shape), stream, step, offset, global_shape)
    return torch.from_numpy(values).to(seeds.device)


def _sample(shape, dtype, device, generator, **variant):
    if len(shape) == 0:
        return None
    seeds = torch.randint(-(2**62), 2**62, (shape[0],), generator=generator).to(device)
    sample_shape = list(shape[1:])
    if variant.pop("window", False):
        variant["offset"] = [3] * len(sample_shape)
        variant["global_shape"] = [size + 5 for size in sample_shape]
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
        },
    )
)
