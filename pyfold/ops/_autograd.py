"""One gradient rule for each op, and the one decision how a call runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any

import torch
from torch.compiler import is_compiling

from pyfold import _C
from pyfold._torch_private import (
    differentiates_forwards,
    eager_apply,
    has_tangent,
    is_exporting,
    transform_depth,
    transforms_active,
)
from pyfold.ops._call import RAW, RawOp, dispatch, refuse_outputs


class Way(Enum):
    """How a call that is not on the fast path runs."""

    NO_GRADIENT = "the op"
    GRADIENT = "an autograd.Function"
    COMPOSED = "torch's own operations"


def needs_gradient(tensors: Iterable[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)


def way(tensors: Sequence[Any], writes: bool = False, differentiable: bool = True) -> Way:
    """Whether and how a call with these tensors is differentiated: the one decision, of every call that torch must see.

    ``_C.<op>`` runs a call at once where nothing watches or transforms it (``WATCHERS`` of _torch_private.py, a dual level), so
    that all there is to ask is :func:`needs_gradient`, which it asks of the same operands; every other call comes here.

    - Under the compiler a Function is traced whether or not a gradient is needed, so that one graph serves both. Below a
      torch.func transform the compiler would run its backward once, and lose the gradient of the gradient without an error.
    - An exported program keeps no Function, so none of its backward: the op alone, without bits for a backward, which of a
      batch of 1 could be one byte, a size that no symbol has.
    - torch.func's transforms do not show in ``requires_grad`` what they differentiate, so a Function runs with its rules for
      them; but a Function has no rule for forward mode, nor for tangents of a dual level: torch's operations have.
    - In eager mode a Function costs 20 us that a call without a gradient need not pay.

    Args:
        writes: into tensors of the caller's, or there is no Function for it: under the compiler one runs else, gradient or not.
        differentiable: whether the op has a gradient for these options; torch's operations run where one is needed.
    """
    if is_compiling():
        always = not writes and differentiable
        wanted = not is_exporting() and (always or needs_gradient(tensors))
        chosen = Way.GRADIENT if wanted else Way.NO_GRADIENT
        chosen = Way.COMPOSED if transform_depth() > 0 else chosen
    elif transforms_active():
        chosen = Way.COMPOSED if differentiates_forwards() else Way.GRADIENT
    elif has_tangent(tensors):
        chosen = Way.COMPOSED
    else:
        chosen = Way.GRADIENT if needs_gradient(tensors) else Way.NO_GRADIENT
    return Way.COMPOSED if chosen is Way.GRADIENT and not differentiable else chosen


def functorch_active() -> bool:
    """Whether a torch.func transform runs, in eager mode; under the compiler it is part of what is traced."""
    return not is_compiling() and transforms_active()


class Differentiable:
    """A raw op with its gradient. A call takes the operands of the op, in order.

    save(ctx, args, output) keeps what backward needs, backward(ctx, *grads) returns one gradient for each operand, and
    vmap(info, in_dims, *args) batches. They are written once, for two forms of ``autograd.Function``: a plain one for eager
    calls, the least overhead, whose forward is on the fast path; and one with ``setup_context`` and ``vmap`` for torch.compile,
    torch.func and calls that torch must see. composed(*args) is the same in torch's own operations; it runs all gradients
    where there is no backward.

    The first ``tensors`` operands alone may need a gradient; a plain Function gets the others as one tuple, since autograd
    looks at every argument. prepare(*args) makes of operands that only the fast path takes what torch takes. Where an
    op can save bits, its results after the first are for backward alone. differentiable(*args) says of a call whether backward
    holds for its options (None: always); where it does not, a call that needs a gradient gives None.
    """

    def __init__(
        self,
        op: str,
        save: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
        vmap: Callable[..., Any] | None = None,
        tensors: int = 0,
        composed: Callable[..., Any] | None = None,
        prepare: Callable[..., tuple[Any, ...]] | None = None,
        differentiable: Callable[..., bool] | None = None,
    ):
        self.raw, self.entry = RAW[op], getattr(_C, op)
        self.composed, self.prepare = composed, prepare
        self.gradient: Any = composed
        if save is None or backward is None:
            _C.differentiate(op, composed)
            return
        self.gradient = _transformable(self.raw, save, backward, vmap).apply
        apply = eager_apply(_eager(self.raw, save, backward, tensors))
        saves_bits = self.raw.saves_bits

        def with_gradient(*args: Any) -> Any:
            if differentiable is not None and not differentiable(*args):
                return None
            if prepare is not None:
                args = prepare(*args)
            elif saves_bits:
                return apply(*args[:tensors], (*args[tensors:-1], True))
            return apply(*args[:tensors], args[tensors:])

        _C.differentiate(op, with_gradient)

    def __call__(self, *args: Any) -> Any:
        if not is_compiling():
            done = self.entry(*args)
            if done is not None:
                return done
        return self.dispatched(*args)

    def function(self, *args: Any) -> Any:
        """All results, through the Function that torch's transforms take."""
        return self.gradient(*args)

    def dispatched(self, *args: Any) -> Any:
        """A call that is not on the fast path."""
        if self.prepare is not None:
            args = self.prepare(*args)
        tensors = self.raw.differentiable(args)
        chosen = way(tensors, self.gradient is self.composed or bool(self.raw.outputs(args)))
        if chosen is Way.NO_GRADIENT:
            return dispatch(self.raw, *args)
        refuse_outputs(self.raw, args)
        run = self.gradient if chosen is Way.GRADIENT else self.composed
        if self.raw.saves_bits and (functorch_active() or needs_gradient(tensors)):
            args = *args[:-1], True
        if run is None:
            raise NotImplementedError(f"{self.raw.name} has no derivative in forward mode")
        return run(*args)


def _transformable(op: RawOp, save: Any, backward: Any, vmap: Any) -> Any:
    # The compiler counts a forward's parameters, so they are spelled out.
    names = ", ".join(operand.name for operand in op.operands)
    forward = eval(f"lambda {names}: dispatch(RAW[{op.name!r}], {names})", globals())
    saves_bits = op.saves_bits

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if saves_bits:
            ctx.mark_non_differentiable(*output[1:])
            ctx.set_materialize_grads(False)
        save(ctx, inputs, output)

    return _function(op.name, forward=forward, setup_context=setup_context, backward=backward, vmap=vmap)


def both(result: Any) -> tuple[Any, ...]:
    """The fold and its bits, of an op that was to save them; a program that folds nothing (a sort of one value) has none."""
    return result if isinstance(result, tuple) else (result, result.new_empty(0, dtype=torch.uint8))


def _eager(op: RawOp, save: Any, backward: Any, tensors: int) -> Any:
    def forward(ctx: Any, *args: Any) -> Any:
        args = args[:-1] + args[-1]
        output = op.run(*args)
        if output is None:
            output = dispatch(op, *args)
        if op.saves_bits:
            output = both(output)
        save(ctx, args, output)
        if not op.saves_bits:
            return output
        ctx.set_materialize_grads(False)
        return output[0]

    def of_tensors(ctx: Any, *grads: Any) -> Any:
        return *backward(ctx, *grads)[:tensors], None

    return _function(f"{op.name}_eager", forward=forward, backward=of_tensors)


def _function(name: str, **methods: Callable[..., Any]) -> Any:
    return type(name, (torch.autograd.Function,), {key: staticmethod(method) for key, method in methods.items()})
