"""Every private name of torch that pyfold uses. Where a torch lacks one, what it served goes the slower, public way.

``MISSING`` lists what is lacking, with what that costs; ``pyfold.show_config()`` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from torch.autograd import forward_ad

MISSING: list[str] = []


def _find(path: str, cost: str) -> Any:
    """torch.<path>, or None, noted."""
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        MISSING.append(f"torch.{path}: {cost}")
        return None


_DISPATCHED = "every call of an op goes through torch's dispatcher, 3 to 5 us slower"
_FUNCTORCH = "torch.func transforms of pyfold's ops are not noticed"

#: Each says false, 0 or None where nothing watches or transforms the calls of ops.
WATCHERS = tuple(
    _find(path, _DISPATCHED)
    for path in (
        "_C._len_torch_dispatch_stack",
        "_C._len_torch_function_stack",
        "_C._are_functorch_transforms_active",
        "_C._get_tracing_state",
        "_C._autograd._profiler_enabled",
    )
)
_EXCHANGE = _find("Tensor.__dlpack_c_exchange_api__", _DISPATCHED)
_INCREMENT = _find("_C._increment_version", _DISPATCHED)
_FORWARD_LEVEL = _find("autograd.forward_ad._current_level", "tangents of torch.autograd.forward_ad are not noticed")
_TRANSFORMS = _find("_C._are_functorch_transforms_active", _FUNCTORCH)
_LAYERS = _find("_C._functorch.get_dynamic_layer_stack_depth", _FUNCTORCH)
_INTERPRETERS = _find("_C._functorch.get_interpreter_stack", _FUNCTORCH)
_JVP = _find("_C._functorch.TransformType.Jvp", _FUNCTORCH)
_CUDA_DEVICE = _find("_C._cuda_getDevice", "") if torch.version.cuda is not None else None


def transforms_active() -> bool:
    """Whether a torch.func transform runs."""
    return _TRANSFORMS is not None and _TRANSFORMS()


def transform_depth() -> int:
    """How many torch.func transforms run, in eager mode or in what is being compiled."""
    return 0 if _LAYERS is None else _LAYERS()


def differentiates_forwards() -> bool:
    """Whether one of the torch.func transforms that run is a jvp."""
    return _INTERPRETERS is not None and any(level.key() == _JVP for level in _INTERPRETERS() or ())


def has_tangent(tensors: Iterable[Any]) -> bool:
    """Whether one of them carries a tangent of a dual level."""
    if _FORWARD_LEVEL is None or forward_ad._current_level < 0:
        return False
    return any(
        isinstance(t, torch.Tensor) and forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]
        for t in tensors
    )


def eager_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` outside of torch.func, without what it does there for tensors that left a transform."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc]


def fast_path(dtypes: tuple[torch.dtype, ...], explain: Callable[..., None]) -> tuple[Any, ...] | None:
    """What ``_C.use_torch`` takes; None where this torch cannot answer all that has to be asked before a fast call."""
    if None in (*WATCHERS, _EXCHANGE, _INCREMENT, _FORWARD_LEVEL):
        return None
    made = torch.empty_like, torch.empty_strided
    device = _CUDA_DEVICE or torch.cuda.current_device
    classes = torch.Tensor, torch.nn.Parameter
    return *classes, torch.is_grad_enabled, *made, _INCREMENT, device, dtypes, explain, vars(forward_ad), WATCHERS
