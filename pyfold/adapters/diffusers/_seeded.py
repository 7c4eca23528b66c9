"""A pipeline whose images are functions of their seeds, whatever the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pyfold.adapters.diffusers._rows import is_int
from pyfold.ops import INITIAL_STREAM, randn
from pyfold.ops._checks import as_seeds


class _NormalsOfSeeds(TorchFunctionMode):
    """``torch.randn`` with one of these generators gives pyfold's noise of its seed instead; draws are counted by generator."""

    def __init__(self, seeds: dict[torch.Generator, int]):
        super().__init__()
        self.seeds = seeds
        self.draws = dict.fromkeys(seeds, 0)

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if function is not torch.randn or generator not in self.seeds:
            return function(*args, **kwargs)
        shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
        if shape[0] != 1:
            raise ValueError(
                f"a generator of a seed draws for one image, got shape {tuple(shape)}: give one seed for each image"
            )
        draw = self.draws[generator]
        self.draws[generator] += 1
        device = torch.device(kwargs.get("device") or "cpu")
        seeds = as_seeds(self.seeds[generator], 1, device)
        dtype = kwargs.get("dtype") or torch.get_default_dtype()
        return randn(seeds, tuple(shape[1:]), stream=INITIAL_STREAM, step=draw, dtype=dtype, device=device)


def _drawing_methods(pipeline: Any) -> Iterator[str]:
    """The pipeline's own methods that are given the generator, but for the call itself."""
    for name, method in inspect.getmembers(type(pipeline), inspect.isfunction):
        if name != "__call__" and "generator" in inspect.signature(method).parameters:
            yield name


@contextmanager
def seeded(pipeline: Any, seeds: Iterable[int]) -> Iterator[list[torch.Generator]]:
    """Within it a pipeline's image depends on its seed alone: not on the batch, its order, or the device.

    ::

        with seeded(pipeline, [9, 10]) as generator:
            images = pipeline(["a fold", "a drop of ink"], generator=generator).images

    Latents, the noise on images and masks, and a VAE's draws are ``pyfold.randn`` of the image's seed (stream 0, counting
    draws from 0: where nothing else is drawn before, the latents are ``pyfold.randn(seeds, shape)``), and a scheduler of
    pyfold draws its steps from the same seeds. A scheduler of diffusers draws from a generator for each image.

    Args:
        pipeline: a pipeline of diffusers; not one that another thread is running.
        seeds: ints of 64 bits, signed or not, one for each image of the batch, prompts times images a prompt.

    Yields:
        The generators to call the pipeline with, one for each image.

    Raises:
        TypeError: seeds that are not ints; keys too, of which no generator can be made (``set_seeds`` of a scheduler takes
            them, and so does :func:`pyfold.randn` for the latents).
        ValueError: no seeds, or more than 64 bits.
    """
    seeds = list(seeds)
    if not seeds:
        raise ValueError("seeds must be one for each image, got none")
    for seed in seeds:
        if not is_int(seed):
            keys = isinstance(seed, torch.Tensor) and seed.dtype == torch.uint64
            which = (
                "ints, one for each image: keys go to scheduler.set_seeds and, for latents, to pyfold.randn" if keys else "ints"
            )
            raise TypeError(f"seeds must be {which}, got {seed!r}")
    as_seeds(seeds, 1, torch.device("cpu"))
    # The device on which the pipeline's own draws are made, so that none crosses to it.
    device = pipeline._execution_device if pipeline._execution_device.type == "cuda" else torch.device("cpu")
    generators = [torch.Generator(device).manual_seed(int(seed) % 2**64) for seed in seeds]
    mode = _NormalsOfSeeds(dict(zip(generators, seeds, strict=True)))

    def drawing(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return method(*args, **kwargs)

        return inside

    names = list(_drawing_methods(pipeline))
    scheduler = pipeline.scheduler
    steps_of_seeds: Callable[[Sequence[int] | None], None] | None = getattr(scheduler, "set_seeds", None)
    for name in names:
        setattr(pipeline, name, drawing(getattr(pipeline, name)))
    if steps_of_seeds is not None:
        steps_of_seeds(seeds)
    try:
        yield generators
    finally:
        for name in names:
            delattr(pipeline, name)
        if steps_of_seeds is not None:
            steps_of_seeds(None)
