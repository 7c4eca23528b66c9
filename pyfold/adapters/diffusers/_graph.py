"""A scheduler's step as one operator of a compiled graph: called there as it is called without, and never traced."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch

from pyfold._torch_private import is_exporting

T = torch.Tensor

#: What a graph, which holds no objects, knows schedulers by.
numbers = itertools.count(2)
_SCHEDULERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_STEPS: dict[str, Callable[..., Any]] = {}
#: (step, arguments with _TENSOR for tensors, names of the last ones) by their text; filled while the compiler traces.
_CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], tuple[str, ...]]] = {}
_TENSOR = "<tensor>"
_ABSENT = "none"


def register(scheduler: Any) -> None:
    """Under the number of its memory."""
    _SCHEDULERS[scheduler._memory.number] = scheduler


def named_step(step: Callable[..., Any]) -> str:
    """The name of a class's step, whatever a subclass or a scheduler has in its place."""
    name = f"{step.__module__}.{step.__qualname__}"
    _STEPS[name] = step
    return name


def _given(call: str, scheduler: Any, tensors: Sequence[T]) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """The step of a call, and its arguments by place and by name."""
    step, values, names = _CALLS[call]
    rest = iter(tensors)
    filled = [next(rest) if value is _TENSOR else value for value in values]
    placed = len(filled) - len(names)
    return step, [scheduler, *filled[:placed]], dict(zip(names, filled[placed:], strict=True))


def _outputs(result: Any) -> list[Any]:
    return list(result.values() if isinstance(result, Mapping) else result)


def _dtypes(outputs: list[T | None]) -> str:
    return " ".join(_ABSENT if value is None else str(value.dtype).removeprefix("torch.") for value in outputs)


def _narrow(value: Any) -> Any:
    """One element of each tensor that is no table."""
    if isinstance(value, torch.Tensor):
        return value[(slice(1),) * value.dim()] if value.dim() > 1 else value
    return type(value)(map(_narrow, value)) if type(value) in (list, tuple) else value


def describe(scheduler: Any, name: str, values: Any, names: tuple[str, ...], tensors: Any) -> Any:
    """(the call's text, the places of the sample and the timestep among its tensors, the outputs' dtypes, whether a tuple).

    By a step of a copy with one element for each sample; None if that raises, or gives more than tensors.

    Args:
        values: the arguments, those by name last. tensors: (place, dtype, device, dimensions, channels of its one element).
    """
    filled = list(values)
    for place, *_ in tensors:
        filled[place] = _TENSOR
    call = repr((name, filled, names))
    _CALLS[call] = _STEPS[name], tuple(filled), names
    ones = [torch.ones([1, channels, *[1] * dims][:dims], dtype=d, device=device) for _, d, device, dims, channels in tensors]
    try:
        tried = copy.deepcopy(scheduler)
        vars(tried).update({key: _narrow(value) for key, value in vars(tried).items()})
        tried._eager = True
        step, placed, by_name = _given(call, tried, ones)
        found = inspect.signature(step).bind(*placed, **by_name).arguments
        like, timestep = (
            next((i for i, one in enumerate(ones) if one is found.get(key)), -1) for key in ("sample", "timestep")
        )
        if timestep >= 0:
            place = getattr(tried, "_step_index", None) or getattr(tried, "_begin_index", None) or 0
            ones[timestep] = tried.timesteps[place]
        step, placed, by_name = _given(call, tried, ones)
        with torch.no_grad():  # The compiler puts torch's generators back after it has traced.
            result = step(*placed, **by_name)
        outputs = _outputs(result)
        if like < 0 or any(value is not None and value.shape != ones[like].shape for value in outputs):
            return None
    except Exception:  # The step says itself what is wrong, where the graph breaks for it.
        return None
    return call, like, timestep, _dtypes(outputs), isinstance(result, tuple)


def _step(order: T, tensors: list[T], scheduler: int, call: str, like: int, timestep: int, dtypes: str) -> list[T]:
    """A new ``order``, and the outputs of a scheduler's step.

    Args:
        order: of the step before, which makes the graph keep all steps and their order.
        like: which tensor is the sample; the outputs have its shape and layout.
        timestep: which is the timestep, or -1. It is known by where it lies; the others the scheduler may keep, and the graph
            uses their memory again.
    """
    owner = _SCHEDULERS[scheduler]
    step, placed, by_name = _given(call, owner, [t if i == timestep else t.clone() for i, t in enumerate(tensors)])
    outputs = _outputs(step(*placed, **by_name))
    if _dtypes(outputs) != dtypes:
        raise RuntimeError(
            f"{type(owner).__name__}.{step.__name__} gave {_dtypes(outputs)} where the graph was made for {dtypes}"
        )
    return [torch.empty_like(order), *(value for value in outputs if value is not None)]


# Not a torch.library.custom_op, whose layers take 50 us longer; nothing here has a gradient.
_LIBRARY = torch.library.Library("pyfold_diffusers", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "step(Tensor order, Tensor[] tensors, SymInt scheduler, str call, int like, int timestep, str dtypes) -> Tensor[]",
    tags=(torch.Tag.cudagraph_unsafe, torch.Tag.needs_exact_strides),
)
_LIBRARY.impl("step", _step, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


@torch.library.register_fake("pyfold_diffusers::step", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _(order: T, tensors: list[T], scheduler: int, call: str, like: int, timestep: int, dtypes: str) -> list[T]:
    made = [torch.empty_like(tensors[like], dtype=getattr(torch, name)) for name in dtypes.split() if name != _ABSENT]
    return [torch.empty_like(order), *made]


def step_in_graph(scheduler: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
    described = scheduler._described(prediction, name, tuple(values), tuple(kwargs), tuple(shown))
    if described is None:
        return NotImplemented
    *call, dtypes, plain = described
    memory = scheduler._memory
    made = torch.ops.pyfold_diffusers.step(memory.order, tensors, memory.number, *call, dtypes)
    memory.order = made[0]
    places = [place for place, name in enumerate(dtypes.split()) if name != _ABSENT]
    outputs = [made[1 + places.index(place)] if place in places else None for place in range(len(dtypes.split()))]
    return tuple(outputs) if plain else scheduler._output(*outputs)
