"""Checkpointing around every fold: the run without it, bit for bit, and saved tensors unpacked as often as eager code does."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pyfold
from pyfold.ops import FOLDS, OPS

#: Settings of each kind from the test matrix, each with a bias, a gain and a clamp beside it.
VARIANTS = {**OPS["fold"].variants, **OPS["fold, in torch operations"].variants}


def run(sample, layer, x, weight, penalty, mode):
    """Losses and gradients of Linear, fold, Linear over three iterations, which is where a wrong count was noticed."""
    results = []
    leaves = [v for v in (*layer.parameters(), *sample.values()) if isinstance(v, torch.Tensor) and v.requires_grad]
    block = lambda x: pyfold.fold(layer(x.movedim(1, -1)).movedim(-1, 1), **sample)  # noqa: E731
    for _ in range(3):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = block(given) if mode is None else checkpoint(block, given, use_reentrant=mode)
        loss = (y * weight).sum() if weight is not None else y.sum()  # a gradient of stride 0
        if penalty:
            (gradient,) = torch.autograd.grad(loss, given, create_graph=True)
            loss = loss + gradient.square().sum()
        gradients = torch.autograd.grad(loss, [given, *leaves], allow_unused=True) if mode is not True else None
        if mode is True:  # reentrant checkpointing works with backward() alone
            for leaf in leaves:
                leaf.grad = None
            loss.backward()
            gradients = [given.grad, *(leaf.grad for leaf in leaves)]
        results += [loss.detach(), *(g for g in gradients if g is not None)]
    return results


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("form", ["plain", "bias, gain, clamp", "stride 0", "R1"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_nothing(variant, form, layout, generator):
    shape = (2, 4, 3, 6)
    sample = OPS["fold"].sample(shape, torch.float32, torch.device("cpu"), generator, **VARIANTS[variant])
    x = sample.pop("x").contiguous(memory_format=layout)
    for name, value in sample.items():
        learned = isinstance(value, torch.Tensor) and name in ("bias", "angle", "slope", "normal", "offset")
        if learned and form != "R1":
            value.requires_grad_()
    if form == "bias, gain, clamp":
        sample |= {
            "bias": torch.randn(x.shape[sample.get("dim", 1)], generator=generator).requires_grad_(),
            "gain": 1.25,
            "clamp": 0.8,
        }
    layer = torch.nn.Linear(4, 4)
    weight = None if form == "stride 0" else torch.randn(pyfold.fold(x, **sample).shape, generator=generator)
    expected = run(sample, layer, x, weight, form == "R1", None)
    # torch's reentrant form has no gradient of a gradient, and runs forward without one: sphere and ball by another way.
    modes = [False] if form == "R1" or variant in ("sphere", "ball, gain") else [False, True]
    for mode in modes:
        for a, b in zip(run(sample, layer, x, weight, form == "R1", mode), expected, strict=True):
            assert torch.equal(a, b)


def test_every_kind_is_checkpointed():
    assert {variant["kind"] for variant in VARIANTS.values()} == set(FOLDS)


def test_a_gradient_that_is_not_there_stays_away():
    """As in torch: a penalty on the gradient does not reach the bias before the fold, so its gradient is None, not zeros."""
    first, second = torch.nn.Conv2d(1, 4, 3), torch.nn.Conv2d(4, 1, 3)
    x = torch.randn(2, 1, 6, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(second(pyfold.fold(first(x), "maxmin")).sum(), x, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), first.bias, allow_unused=True) == (None,)
