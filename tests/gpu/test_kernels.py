"""Every CUDA kernel on the simulated GPU against the CPU kernels, bit for bit: the registry of ops in every dtype and layout,
with gradients to the second order, and arguments drawn at random."""

import os
import random

import pytest
import torch
from compared import Compared

from matrix import CASES, LAYOUTS, SHAPES, case_id, outputs, relayout
from pyfold.ops import FLOAT_DTYPES

EVERYTHING = os.environ.get("PYFOLD_GPU_TEST_ALL") == "1"
#: One element, less and more than a thread's share, a channel dimension, more than a block.
FEW_SHAPES = [(0, 4), (1,), (3, 2), (5, 7), (2, 4, 3, 5), (2, 2, 1, 132)]


def leaves_of(op, sample):
    leaves = []
    for name in op.differentiable:
        value = sample.get(name)
        for tensor in value if isinstance(value, list) else [value]:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                leaves.append(tensor.requires_grad_())
    return leaves


def run(op, sample, gradients):
    """The op alone, and once more with its gradients and theirs."""
    with torch.no_grad():
        op.public(**sample)
    if not gradients or not op.differentiable:
        return
    leaves = leaves_of(op, sample)
    result = sum((o.float() ** 2).sum() for o in outputs(op.public(**sample)))
    if not result.requires_grad:
        return
    first = torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True)
    second = sum((g.float() ** 2).sum() for g in first if g is not None)
    if isinstance(second, torch.Tensor) and second.requires_grad:
        torch.autograd.grad(second, leaves, allow_unused=True)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize(("op", "variant"), CASES, ids=case_id)
def test_bits_equal_the_cpu(op, variant, dtype):
    generator = torch.Generator().manual_seed(20261126)
    with Compared(may_be_none=not op.raw):
        for shape in SHAPES if EVERYTHING else FEW_SHAPES:
            for layout in LAYOUTS:
                sample = op.sample(shape, dtype, torch.device("cpu"), generator, **op.variants[variant])
                sample = sample and relayout(op, sample, layout)
                if sample is not None:
                    run(op, sample, gradients=layout.__name__ in ("contiguous", "channels_last"))


@pytest.mark.parametrize("seed", range(200 if EVERYTHING else 20))
def test_drawn_arguments(seed):
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    with Compared():
        for _ in range(10):
            op, variant = draw.choice(CASES)
            shape = tuple(draw.randint(0, 9) for _ in range(draw.randint(0, 5)))
            dtype, layout = draw.choice(FLOAT_DTYPES), draw.choice(LAYOUTS)
            sample = op.sample(shape, dtype, torch.device("cpu"), generator, **op.variants[variant])
            sample = sample and relayout(op, sample, layout)
            if sample is not None:
                run(op, sample, gradients=draw.random() < 0.5)
