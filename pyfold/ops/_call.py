"""Calls of raw ops: what each is, the words for what is wrong with a call, and the way through torch's dispatcher.

An op is declared once, in csrc/ops; ``RAW`` is that declaration. ``_C.<op>`` runs a call past the dispatcher, or gives None
where torch must see it: :func:`dispatch` is the way then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold._torch_private import open_fast_path
from pyfold.ops import _checks
from pyfold.ops._declare import FLOAT_DTYPES, SEED_DTYPES
from pyfold.ops._tensors import accumulation, is_dense, wrote

#: The kinds of operands, in the order of csrc/ops/op.h.
_KINDS = (
    "state", "lower", "accumulation", "table", "integers", "seeds", "bits", "int", "float", "bool", "ints", "floats", "text"
)  # fmt: skip
_TENSORS = _KINDS[:7]
_OPTIONAL, _WRITTEN, _LIST = 1, 2, 4


@dataclass(frozen=True)
class Operand:
    name: str
    kind: str
    optional: bool
    written: bool
    is_list: bool


@dataclass(frozen=True)
class RawOp:
    """A raw op: its name, schema, operands in order, and the shape rules of its results."""

    name: str
    schema: str
    operands: tuple[Operand, ...]
    results: tuple[str, ...]
    run: Callable[..., Any]  # past the dispatcher, where it was asked already whether that may be

    @property
    def saves_bits(self) -> bool:
        """Whether the results after the first are what backward needs, where asked for by the last operand."""
        return self.operands[-1].name == "save_bits"

    def differentiable(self, args: tuple[Any, ...]) -> list[torch.Tensor]:
        """The tensors of a call whose gradient may be asked for."""
        both = zip(self.operands, args, strict=True)
        values = [v for operand, v in both if operand.kind in ("state", "lower", "accumulation") and not operand.written]
        flat = [t for v in values for t in (v if isinstance(v, (list, tuple)) else (v,))]
        return [t for t in flat if isinstance(t, torch.Tensor)]

    def outputs(self, args: tuple[Any, ...]) -> list[torch.Tensor]:
        """What a call was given to write to."""
        both = zip(self.operands, args, strict=True)
        return [value for operand, value in both if operand.written and isinstance(value, torch.Tensor)]

    def named(self, args: tuple[Any, ...]) -> dict[str, Any]:
        return {operand.name: value for operand, value in zip(self.operands, args, strict=True)}


def _raw(name: str, schema: str, operands: list[tuple[str, int, int]], results: list[str]) -> RawOp:
    declared = tuple(
        Operand(operand, _KINDS[kind], bool(flags & _OPTIONAL), bool(flags & _WRITTEN), bool(flags & _LIST))
        for operand, kind, flags in operands
    )
    return RawOp(name, schema, declared, tuple(results), _C.RUN[name])


#: The raw ops, by name.
RAW: dict[str, RawOp] = {op[0]: _raw(*op) for op in _C.OPS}


# --- through the dispatcher


def _is_dense_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def dispatch(op: RawOp, *args: Any) -> Any:
    """The op as torch sees it. Returns its results, or of what it writes the first and all that it made."""
    values = list(args)
    if op.name.startswith("fold") and not is_dense(values[0]):
        values[0] = values[0].contiguous()
    returned = []
    written = None
    for i, operand in enumerate(op.operands):
        value = values[i]
        if operand.written:
            make = value is True or isinstance(value, torch.dtype) or (value is None and not operand.optional)
            if make:
                like = values[0] if written is None or operand.kind == "state" else written
                value = values[i] = torch.empty_like(like, dtype=value if isinstance(value, torch.dtype) else None)
            if make or not operand.optional:
                returned.append(value)
            written = value
        elif value is not None and operand.kind in ("accumulation", "table", "integers", "seeds", "bits"):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{operand.name} must be a torch.Tensor, got {type(value).__name__}")
            value = value.to(accumulation(args[0].dtype)) if operand.kind == "accumulation" else value
            values[i] = value.contiguous()
        elif operand.is_list:
            values[i] = [value] if isinstance(value, torch.Tensor) or not hasattr(value, "__iter__") else list(value)
    function = getattr(torch.ops.pyfold, op.name)
    if is_compiling():
        result = function(*values)
    else:
        try:
            result = function(*values)
        except RuntimeError as error:
            _explain_message(op, str(error), args)
            _refuse_what_no_schema_takes(op, values, error)
            raise
        wrote(*op.outputs(args))
    if op.results:
        return result
    return returned[0] if len(returned) == 1 else tuple(returned)


def _refuse_what_no_schema_takes(op: RawOp, values: Sequence[Any], error: RuntimeError) -> None:
    """The errors that torch raises of itself, in our words."""
    for operand, value in zip(op.operands, values, strict=True):
        if operand.written and value is not None and not _is_dense_tensor(value):
            raise TypeError(f"{operand.name} must be a dense torch.Tensor, got {type(value).__name__}") from error
        if operand.kind == "int" and isinstance(value, int) and not -(2**63) <= value < 2**63:
            explain(op.name, "range", operand.name, -1, "", tuple(values))
        if operand.kind not in _TENSORS or (value is None and operand.optional):
            continue
        for item, each in enumerate(value) if operand.is_list else ((-1, value),):
            if not isinstance(each, torch.Tensor):
                explain(op.name, "type", operand.name, item, "", tuple(values))


# --- what is wrong with a call, in words: the C++ says which operand, and in which way


def explain(name: str, code: str, operand: str, item: int, text: str, args: tuple[Any, ...]) -> None:
    """Raises what is wrong; returns where the dispatcher can do what the fast path cannot."""
    op = RAW[name]
    given = op.named(args)
    value, label = given[operand], operand
    if item >= 0:
        value = value if isinstance(value, torch.Tensor) else value[item]
        label = f"{operand}[{item}]"
    declared = next(o for o in op.operands if o.name == operand)
    first_name = op.operands[0].name
    _WORDS[code](Wrong(op, given, declared, label, value, first_name, given[first_name], text))


@dataclass(frozen=True)
class Wrong:
    op: RawOp
    given: dict[str, Any]
    operand: Operand
    label: str
    value: Any
    first_name: str
    first: Any
    text: str

    @property
    def samples(self) -> int:
        return self.first.shape[0] if isinstance(self.first, torch.Tensor) and self.first.dim() else 1


def _wrong_type(wrong: Wrong) -> None:
    kind = type(wrong.value).__name__
    expected = {"int": "an int", "float": "a number", "bool": "a bool", "text": "a str"}.get(wrong.operand.kind)
    if wrong.operand.name in ("offset", "global_shape"):
        raise TypeError(f"{wrong.label} must be a sequence of ints, one for each dimension, got {wrong.value!r}")
    if wrong.operand.is_list and wrong.label == wrong.operand.name:
        raise TypeError(f"{wrong.label} must be a tensor or a sequence of tensors, got {kind}")
    raise TypeError(f"{wrong.label} must be {expected or 'a torch.Tensor'}, got {kind}")


def _unreadable(wrong: Wrong) -> None:
    if isinstance(wrong.value, torch.Tensor):
        _checks.check_tensor(wrong.label, wrong.value, (wrong.value.dtype,))


def _allowed_dtypes(wrong: Wrong) -> tuple[torch.dtype, ...]:
    state = wrong.first.dtype
    return {
        "state": FLOAT_DTYPES if wrong.value is wrong.first else (state,),
        "accumulation": (accumulation(state),),
        "table": (torch.float64,),
        "integers": (torch.int64,),
        "seeds": SEED_DTYPES,
        "bits": (torch.uint8,),
    }.get(wrong.operand.kind, FLOAT_DTYPES)


def _wrong_dtype(wrong: Wrong) -> None:
    _checks.check_tensor(wrong.label, wrong.value, _allowed_dtypes(wrong))
    _checks.check_lower_dtype(wrong.label, wrong.value.dtype, wrong.first)


def _wrong_shape(wrong: Wrong) -> None:
    shape = tuple(wrong.value.shape)
    if wrong.operand.name == "table":
        columns = len(_C.AFFINE_STEP_COLUMNS if wrong.op.name == "affine_step" else _C.NOISING_COLUMNS)
        raise ValueError(f"table must have shape (rows, {columns}), got {shape}")
    if wrong.operand.name == "index":
        raise ValueError(f"index must have shape (), (1,) or ({wrong.samples},), got {shape}")
    if wrong.operand.kind == "seeds":
        _checks.check_seeds(wrong.value, wrong.samples, wrong.first.device)
    if wrong.operand.kind == "integers":
        raise ValueError(f"{wrong.label} must have shape () or ({wrong.samples},), one for each sample, got {shape}")
    _checks.check_same(wrong.label, wrong.value, wrong.first_name, wrong.first)
    raise ValueError(
        f"{wrong.label} has shape {shape}, which does not belong to {wrong.first_name} of {tuple(wrong.first.shape)}"
    )


def _wrong_device(wrong: Wrong) -> None:
    _checks.check_device(wrong.label, wrong.value, wrong.first_name, wrong.first)


def _wrong_count(wrong: Wrong) -> None:
    if wrong.operand.name == "table":
        rows = wrong.value.shape[0]
        raise ValueError(f"table must have 1 or {wrong.samples} rows where index is not given, got {rows}")
    most = {"models": "1 to 3", "history": "at most 4"}[wrong.operand.name]
    raise ValueError(f"{wrong.label} must be {most} tensors, got {len(wrong.value)}")


def _wrong_range(wrong: Wrong) -> None:
    bound = "in [0, 2**32)" if wrong.operand.name in ("stream", "step") else "in range"
    raise ValueError(f"{wrong.label} must be {bound}, got {wrong.value!r}")


def _wrong_window(wrong: Wrong) -> None:
    offset, global_shape = wrong.given["offset"], wrong.given["global_shape"]
    _checks.check_window(offset, global_shape, wrong.first.shape[1:])
    raise ValueError(f"global_shape {list(global_shape)} has more elements than 2**63")


def _overlaps_itself(wrong: Wrong) -> None:
    raise ValueError(f"{wrong.label} must not share memory among its own elements, got strides {wrong.value.stride()}")


def _overlaps(wrong: Wrong) -> None:
    raise ValueError(
        f"{wrong.label} must not overlap {wrong.text} in memory, unless it is the same tensor and {wrong.text} is read alone"
    )


def _in_words(wrong: Wrong) -> None:
    raise ValueError(f"{wrong.label} of shape {tuple(wrong.first.shape)}: {wrong.text}")


def _needs_gradient(wrong: Wrong) -> None:
    raise ValueError(f"{wrong.label}= cannot be used where a gradient is needed, nor hold a tensor that requires one")


def refuse_outputs(op: RawOp, args: tuple[Any, ...]) -> None:
    """In a call with a gradient."""
    for operand, value in zip(op.operands, args, strict=True):
        if operand.written and isinstance(value, torch.Tensor):
            explain(op.name, "gradient", operand.name, -1, "", args)


_WORDS: dict[str, Callable[[Wrong], None]] = {
    "type": _wrong_type,
    "unreadable": _unreadable,
    "dtype": _wrong_dtype,
    "shape": _wrong_shape,
    "device": _wrong_device,
    "batch": lambda wrong: _checks.check_batched(wrong.label, wrong.value),
    "count": _wrong_count,
    "range": _wrong_range,
    "window": _wrong_window,
    "layout": lambda wrong: None,  # dispatch() copies
    "units": _in_words,
    "self_overlap": _overlaps_itself,
    "overlap": _overlaps,
    "program": _in_words,
    "gradient": _needs_gradient,
}

_MESSAGE = re.compile(r"pyfold::(\w+): (\w+) of (\w+)(?:\[(\d+)\])?: (.*)")


def _explain_message(op: RawOp, message: str, args: tuple[Any, ...]) -> None:
    """The same from the message of a raw op that was dispatched."""
    found = _MESSAGE.search(message)
    if found is not None and found[1] == op.name:
        explain(op.name, found[2], found[3], int(found[4] or -1), found[5], args)


# --- shapes


def _accumulated(first: torch.Tensor, size: Any) -> torch.Tensor:
    return first.new_empty((size,), dtype=accumulation(first.dtype))


#: The result of a raw op from its operands by name, for each rule that csrc/ops names.
SHAPES: dict[str, Callable[[dict[str, Any]], torch.Tensor]] = {
    "per_sample": lambda given: _accumulated(given["x0"], given["x0"].shape[0]),
    "like": lambda given: torch.empty_like(given["prediction"] if "prediction" in given else next(iter(given.values()))),
    "per_line": lambda given: _accumulated(given["grad"], given["grad"].shape[given["dim"]] // 2),
}


def register_shapes() -> None:
    """Called once all of SHAPES is known."""
    for op in RAW.values():
        _register_shape(op)


def _register_shape(op: RawOp) -> None:
    def fake(*args: Any) -> Any:
        given = op.named(args)
        # The dispatcher comes here with a meta tensor among others of the CPU.
        for operand in op.operands:
            values = given[operand.name] if operand.is_list else (given[operand.name],)
            for item, value in enumerate(values):
                if isinstance(value, torch.Tensor) and value.device != args[0].device:
                    explain(op.name, "device", operand.name, item if operand.is_list else -1, "", args)
        made = tuple(SHAPES[rule](given) for rule in op.results)
        return None if not made else made[0] if len(made) == 1 else made

    torch.library.register_fake(f"pyfold::{op.name}")(fake)


open_fast_path(_C.use_torch, (*FLOAT_DTYPES, torch.int64, torch.uint8, torch.uint64), explain)
