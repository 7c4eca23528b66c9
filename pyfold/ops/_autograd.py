"""One gradient rule, three ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad


def functorch_active() -> bool:
    """Whether a torch.func transform runs, in eager mode; under the compiler it is part of what is traced."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def compiling_a_transform() -> bool:
    """Whether a torch.func transform is being compiled.

    The compiler runs a Function's backward once, so a gradient of its gradient would be lost without an error.
    """
    return torch.compiler.is_compiling() and torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def forward_mode(tensors: Iterable[Any]) -> bool:
    """Whether one of them carries a tangent, or torch.func differentiates forwards: torch's own operations know how to."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._are_functorch_transforms_active():
        return any(level.key() == TransformType.Jvp for level in get_interpreter_stack())
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(t, torch.Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def plain_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` outside of torch.func, without what it does there for tensors that left a transform."""
    return super(torch.autograd.Function, function).apply


class Differentiable:
    """An op with its gradient, run by the cheapest of three ways that serves the call.

    forward(*args) computes, save(ctx, args, output) keeps what backward needs, backward(ctx, *grads) returns one gradient
    for each argument, and vmap(info, in_dims, *args) batches. They are written once; each call takes

    - the bare forward, where no gradient is asked for;
    - a plain ``autograd.Function`` in eager mode: the least overhead;
    - a ``Function`` with ``setup_context`` and ``vmap`` under ``torch.compile`` and ``torch.func``, which need that form;
    - composed(*args), the same in torch's own operations, in forward mode and where the compiler meets a torch.func transform.

    Where only the first ``tensors`` arguments may be tensors, the others pass the plain ``Function`` as one tuple, since
    autograd looks at every argument.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., Any],
        save: Callable[..., None],
        backward: Callable[..., Any],
        vmap: Callable[..., Any],
        composed: Callable[..., Any] | None = None,
        tensors: int | None = None,
    ):
        def eager_forward(ctx: Any, *args: Any) -> Any:
            args = args[:-1] + args[-1]
            output = forward(*args)
            save(ctx, args, output)
            return output

        def eager_backward(ctx: Any, *grads: Any) -> Any:
            return *backward(ctx, *grads)[:tensors], None

        def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
            save(ctx, inputs, output)

        self.forward = forward
        self.composed = composed
        self.tensors = tensors
        self.eager = type(
            f"{name}Eager",
            (torch.autograd.Function,),
            {"forward": staticmethod(eager_forward), "backward": staticmethod(eager_backward)},
        )
        self.transformable = type(
            name,
            (torch.autograd.Function,),
            {
                "forward": staticmethod(forward),
                "setup_context": staticmethod(setup_context),
                "backward": staticmethod(backward),
                "vmap": staticmethod(vmap),
            },
        )

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            if self.composed is not None and compiling_a_transform():
                return self.composed(*args)
            return self.transformable.apply(*args)
        if forward_mode(args):
            if self.composed is None:
                raise NotImplementedError(f"{self.transformable.__name__} has no derivative in forward mode")
            return self.composed(*args)
        if torch._C._are_functorch_transforms_active():
            return self.transformable.apply(*args)
        if torch.is_grad_enabled() and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args):
            rest = () if self.tensors is None else args[self.tensors :]
            return self.eager.apply(*args[: self.tensors], rest)
        return self.forward(*args)
