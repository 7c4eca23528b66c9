"""A scheduler's step as one operator of a compiled graph: called there as it is called without, and never traced."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch

from pyfold._torch_private import is_exporting

T = torch.Tensor

#: What a graph, which holds no objects, knows schedulers by.
numbers = itertools.count(2)
_SCHEDULERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
#: (method, arguments with _TENSOR for tensors, names of the last ones) by their text; filled while the compiler traces.
_CALLS: dict[str, tuple[str, tuple[Any, ...], tuple[str, ...]]] = {}
_TENSOR = "<tensor>"
_ABSENT = "none"


def register(scheduler: Any) -> None:
    """Under the number of its memory."""
    _SCHEDULERS[scheduler._memory.number] = scheduler


def _bound(scheduler: Any, call: str, tensors: list[T]) -> tuple[Any, inspect.BoundArguments]:
    """The step of a call, and its arguments."""
    method, values, names = _CALLS[call]
    rest = iter(tensors)
    filled = [next(rest) if value is _TENSOR else value for value in values]
    positional = len(filled) - len(names)
    step = getattr(type(scheduler), method)
    by_name = dict(zip(names, filled[positional:], strict=True))
    return step, inspect.signature(step).bind(scheduler, *filled[:positional], **by_name)


def _outputs(result: Any) -> list[Any]:
    return list(result.values() if isinstance(result, Mapping) else result)


def _dtypes(outputs: list[T | None]) -> str:
    return " ".join(_ABSENT if value is None else str(value.dtype).removeprefix("torch.") for value in outputs)


def _narrow(value: Any) -> Any:
    """One element of each tensor that is no table."""
    if isinstance(value, torch.Tensor):
        return value[(slice(1),) * value.dim()] if value.dim() > 1 else value
    return type(value)(map(_narrow, value)) if type(value) in (list, tuple) else value


def describe(scheduler: Any, method: str, values: Any, names: tuple[str, ...], tensors: Any) -> Any:
    """(the call's text, the sample's place among its tensors, the outputs' dtypes, whether they are a tuple).

    By a step of a copy with one element for each sample; None if that raises, or gives more than tensors.

    Args:
        values: the arguments, those by name last. tensors: (place, dtype, device, dimensions, channels of its one element).
    """
    filled = list(values)
    for place, *_ in tensors:
        filled[place] = _TENSOR
    call = repr((method, filled, names))
    _CALLS[call] = method, tuple(filled), names
    ones = [torch.ones([1, channels, *[1] * dims][:dims], dtype=d, device=device) for _, d, device, dims, channels in tensors]
    tried = copy.deepcopy(scheduler)
    vars(tried).update({name: _narrow(value) for name, value in vars(tried).items()})
    tried._eager = True
    try:
        step, bound = _bound(tried, call, ones)
        like = next(i for i, one in enumerate(ones) if one is bound.arguments["sample"])
        if any(one is bound.arguments.get("timestep") for one in ones):
            place = getattr(tried, "_step_index", None) or getattr(tried, "_begin_index", None) or 0
            bound.arguments["timestep"] = tried.timesteps[place]
        with torch.no_grad():  # The compiler puts torch's generators back after it has traced.
            result = step(*bound.args, **bound.kwargs)
        outputs = _outputs(result)
        if any(value is not None and value.shape != ones[like].shape for value in outputs):
            return None
    except Exception:  # The step says itself what is wrong, where the graph breaks for it.
        return None
    return call, like, _dtypes(outputs), isinstance(result, tuple)


@torch.library.custom_op("pyfold_diffusers::step", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _step(order: T, tensors: list[T], scheduler: int, call: str, like: int, dtypes: str) -> list[T]:
    """A new ``order``, and the outputs of a scheduler's step.

    Args:
        order: of the step before, which makes the graph keep all steps and their order.
        like: which tensor is the sample; the outputs have its shape and layout.
    """
    owner = _SCHEDULERS[scheduler]
    step, bound = _bound(owner, call, tensors)
    for name, value in bound.arguments.items():
        # The scheduler may keep it, and the graph uses its memory again. A timestep is known by where it lies.
        if isinstance(value, torch.Tensor) and name != "timestep":
            bound.arguments[name] = value.clone()
    outputs = _outputs(step(*bound.args, **bound.kwargs))
    if _dtypes(outputs) != dtypes:
        raise RuntimeError(
            f"{type(owner).__name__}.{step.__name__} gave {_dtypes(outputs)} where the graph was made for {dtypes}"
        )
    return [torch.empty_like(order), *(value for value in outputs if value is not None)]


@_step.register_fake
def _(order: T, tensors: list[T], scheduler: int, call: str, like: int, dtypes: str) -> list[T]:
    made = [torch.empty_like(tensors[like], dtype=getattr(torch, name)) for name in dtypes.split() if name != _ABSENT]
    return [torch.empty_like(order), *made]


def step_in_graph(scheduler: Any, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the compiler traces of a step; NotImplemented where the graph must break for it.

    That is for a gradient, an export, a torch.Generator or another object among the arguments, and outputs that are no tensors.
    """
    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if is_exporting() or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return NotImplemented
    # A model may have twice the sample's channels.
    least = min([tensor.shape[1] for tensor in tensors if tensor.dim() > 1], default=0)
    shown = []
    for place, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            channels = 1 if value.dim() < 2 or value.shape[1] == least else 2
            shown.append((place, value.dtype, value.device, value.dim(), channels))
            values[place] = None
        elif value is not None and not isinstance(value, (bool, int, float, str)):
            return NotImplemented
    # The compiler looks at the number of the scheduler, and at the setting that dtypes depend on.
    prediction = getattr(scheduler.config, "prediction_type", None)
    described = scheduler._described(prediction, method, tuple(values), tuple(kwargs), tuple(shown))
    if described is None:
        return NotImplemented
    call, like, dtypes, plain = described
    memory = scheduler._memory
    made = torch.ops.pyfold_diffusers.step(memory.order, tensors, memory.number, call, like, dtypes)
    memory.order = made[0]
    places = [place for place, name in enumerate(dtypes.split()) if name != _ABSENT]
    outputs = [made[1 + places.index(place)] if place in places else None for place in range(len(dtypes.split()))]
    return tuple(outputs) if plain else scheduler._output(*outputs)
