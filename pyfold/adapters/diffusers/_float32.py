"""A float32 state between the steps of a half-precision pipeline, which sees rounded copies of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from pyfold._torch_private import version
from pyfold.adapters.diffusers._rows import HALF

T = torch.Tensor


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """A copy in that dtype, whose writes are counted in inference mode too."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    if not value.is_inference():
        return value.to(dtype)
    with torch.inference_mode(False):
        copy = torch.empty_like(value, dtype=dtype)
    return copy.copy_(value)


class Float32Step:
    """``scheduler.step`` that continues from the float32 state whose rounded copy the pipeline hands back.

    A sample that is another tensor than the last copy, or was written to since, is taken as it is: a pipeline that blends a
    part of the state between steps is followed, at the cost of that step's rounding.
    """

    def __init__(self, scheduler: Any):
        own = inspect.signature(type(scheduler).step)
        parameters = list(own.parameters.values())[1:]
        if [p.name for p in parameters[:3]] != ["model_output", "timestep", "sample"]:
            name = type(scheduler).__name__
            raise TypeError(f"keep_float32 needs a step of (model_output, timestep, sample), which {name} has not")
        self._scheduler = scheduler
        self._copy: T | None = None
        self._state: T | None = None
        self._version: int | bytes = 0
        #: What pipelines look for: eta, generator and the like.
        self.__signature__ = own.replace(parameters=parameters)

    def __call__(self, model_output: T, timestep: Any, sample: T, *args: Any, **kwargs: Any) -> Any:
        step, dtype = type(self._scheduler).step, sample.dtype
        if dtype not in HALF:
            return step(self._scheduler, model_output, timestep, sample, *args, **kwargs)
        own = sample is self._copy and version(sample) == self._version
        state = self._state if own else sample.float()
        outputs = step(self._scheduler, model_output.float(), timestep, state, *args, **kwargs)
        named = isinstance(outputs, Mapping)
        self._state = outputs["prev_sample"] if named else outputs[0]
        rounded = [_rounded(value, dtype) for value in (outputs.values() if named else outputs)]
        result: Any = type(outputs)(**dict(zip(outputs, rounded, strict=True))) if named else tuple(rounded)
        self._copy = result["prev_sample"] if named else rounded[0]
        self._version = version(self._copy)
        return result
