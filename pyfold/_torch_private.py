"""Every private name of torch that pyfold uses. Where a torch lacks one, what it served goes the slower, public way.

``MISSING`` lists what is lacking, with what that costs; ``pyfold.show_config()`` prints it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import torch
from torch.autograd import forward_ad

MISSING: list[str] = []
_RELEASE = tuple(map(int, torch.__version__.split(".")[:2]))


def _find(path: str, cost: str, asked: bool = False) -> Any:
    """torch.<path>, or None, noted.

    Args:
        cost: what is lost without it.
        asked: whether it is a function without arguments, which has to answer.
    """
    try:
        found: Any = reduce(getattr, path.split("."), torch)
        if asked:
            found()
    except (AttributeError, TypeError):
        MISSING.append(f"torch.{path}: {cost}")
        return None
    return found


_DISPATCHED = "every call of an op goes through torch's dispatcher, 3 to 5 us slower"
_PROBED = "whether torch.func transforms a call is found out by trying, 6 us slower"

#: Each says false, 0 or None where nothing watches or transforms the calls of ops.
WATCHERS = tuple(
    _find(path, _DISPATCHED, asked=True)
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
_FORWARD_LEVEL = _find("autograd.forward_ad._current_level", f"{_DISPATCHED}, and each tensor is asked for its tangent")
_TRANSFORMS = _find("_C._are_functorch_transforms_active", _PROBED, asked=True)
_LAYERS = _find(
    "_C._functorch.get_dynamic_layer_stack_depth", "under torch.compile ops run as torch's own operations, without out=", True
)
_EXPORTS = _find("compiler._is_exporting_flag", "compiled by torch 2.10 to 2.12, ops have no gradient")
_JVP_COST = "inside any transform of torch.func ops run as torch's own operations, without out="
_INTERPRETERS = _find("_C._functorch.get_interpreter_stack", _JVP_COST, asked=True)
_JVP = _find("_C._functorch.TransformType.Jvp", _JVP_COST)
_LERP = _find("_foreach_lerp_", "the average of weights is made one tensor after another")
_VERSION = _find("Tensor._version", "tables of diffusers' schedulers on a GPU are copied to the host at each step to see edits")
_FUNCTION_BASE = _find("_C._FunctionBase", "a call with a gradient takes longer")
_CUDA_DEVICE = (
    _find("_C._cuda_getDevice", "the current GPU is asked for by torch.cuda.current_device, slower")
    if torch.version.cuda is not None
    else None
)

#: Every layer that convolves: the public classes under torch.nn.modules.conv._ConvNd.
CONVOLUTIONS = (
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.ConvTranspose2d,
    torch.nn.ConvTranspose3d,
)


def stateless_generator(device: torch.device | str = "cpu") -> Any:
    """torch's functions of keys, where they run on the device (a CPU: torch >= 2.14), or None.

    pyfold takes keys without them, and only compares.
    """
    try:
        functions = importlib.import_module("torch.func._random")
        functions.normal(functions.key(0, device=device), (1,))
    except (ImportError, AttributeError, RuntimeError):
        return None
    return functions


def transforms_active() -> bool:
    """Whether a torch.func transform runs, in eager mode."""
    if _TRANSFORMS is not None:
        return bool(_TRANSFORMS())
    try:
        # Every transform refuses this, and nothing else does.
        torch.empty(()).requires_grad_()
    except RuntimeError:
        return True
    return False


def transform_depth() -> int:
    """How many torch.func transforms run, in eager mode or in what is being compiled; where it is unknown, at least one."""
    if not torch.compiler.is_compiling():
        return int(transforms_active())
    # Before torch 2.13 the compiler traces only whether there are any.
    if _LAYERS is not None and _RELEASE >= (2, 13):
        return int(_LAYERS())
    return 1 if _TRANSFORMS is None else int(_TRANSFORMS())


def is_exporting() -> bool:
    """Whether torch.export traces; torch's own function says so of all that torch 2.10 to 2.12 compile."""
    return bool(torch.compiler._is_exporting_flag) if _EXPORTS is not None else torch.compiler.is_exporting()


def differentiates_forwards() -> bool:
    """Whether one of the torch.func transforms that run is a jvp, or may be."""
    if _INTERPRETERS is None or _JVP is None:
        return transforms_active()
    return any(level.key() == _JVP for level in _INTERPRETERS() or ())


def lerp_(ends: list[torch.Tensor], others: list[torch.Tensor], weight: float) -> None:
    """``ends`` move towards ``others`` by ``weight`` of the way, in place."""
    if _LERP is not None:
        _LERP(ends, others, weight)
        return
    for end, other in zip(ends, others, strict=True):
        end.lerp_(other, weight)


def version(tensor: torch.Tensor) -> int | bytes:
    """What changes when the tensor, which is no inference tensor, is written to, by whomever."""
    if _VERSION is not None:
        return int(tensor._version)
    return bytes(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())


def has_tangent(tensors: Iterable[Any]) -> bool:
    """Whether one of them carries a tangent of a dual level."""
    if _FORWARD_LEVEL is not None and forward_ad._current_level < 0:
        return False
    return any(
        isinstance(t, torch.Tensor) and forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]
        for t in tensors
    )


def eager_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` outside of torch.func, without what it does there for tensors that left a transform."""
    if _FUNCTION_BASE is None:
        return function.apply
    return super(torch.autograd.Function, function).apply  # type: ignore[misc, no-any-return]  # torch._C._FunctionBase's


def open_fast_path(use_torch: Callable[..., bool], dtypes: tuple[torch.dtype, ...], explain: Callable[..., None]) -> None:
    """Gives ``_C.use_torch`` what it asks of torch, unless this torch cannot answer all that has to be asked before a call."""
    if None in (*WATCHERS, _EXCHANGE, _INCREMENT, _FORWARD_LEVEL):
        return
    device = _CUDA_DEVICE or torch.cuda.current_device
    of_torch = torch.Tensor, torch.nn.Parameter, torch.is_grad_enabled, torch.empty_like, torch.empty_strided
    if not use_torch(*of_torch, _INCREMENT, device, dtypes, explain, vars(forward_ad), WATCHERS):
        MISSING.append(f"torch.Tensor.__dlpack_c_exchange_api__ of DLPack 1: {_DISPATCHED}")
