"""Every CUDA kernel in every layout that it tells apart, by the raw ops, and the cases of tests/fuzz.py, beside the CPU's."""

import itertools
import math
import os
import random

import fuzz_calls
import fuzz_programs
import pytest
import torch
from compared import Compared
from simulator import Fault

from matrix import contiguous, misaligned
from pyfold.folds.program import Program
from pyfold.ops import FLOAT_DTYPES

CPU = torch.ops.pyfold
EVERYTHING = os.environ.get("PYFOLD_GPU_TEST_ALL") == "1"

#: Shape, the channel dimension, and in how many groups the bits lie: channels last and not, lines alone and in rows of
#: eight, units that end within a byte, one block of units and several, more lines than a block has threads.
FOLD_SHAPES = [
    ((3, 16), 1, 1),
    ((9, 1), 1, 1),
    ((9, 2), 1, 1),
    ((5, 640), 1, 1),
    ((4, 32), 1, 2),
    ((4, 12), 1, 2),
    ((2, 4, 5), 1, 1),
    ((2, 4, 24), 1, 1),
    ((2, 4, 24), 1, 2),
    ((2, 4, 3), 1, 2),
    ((4, 6, 1000), 1, 1),
    ((1, 16, 1), 1, 1),
    ((70, 64), 1, 1),
    ((2, 4144), 1, 1),
    ((2500, 16), 1, 1),
]


def accumulation(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def normal(shape, dtype, generator):
    return torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["abs", "maxmin", "householder"])
def test_reflections(kind, dtype):
    generator = torch.Generator().manual_seed(1)
    wide = accumulation(dtype)
    with Compared():
        for (shape, dim, groups), pairing, layout in itertools.product(
            FOLD_SHAPES, ["adjacent", "halves"], [contiguous, misaligned]
        ):
            lines = shape[dim] // (1 if kind == "abs" else 2)
            if lines == 0:
                continue
            x = layout(normal(shape, dtype, generator))
            angle = normal((lines,), wide, generator) if kind == "householder" else None
            if angle is not None:
                # Zero, and what no angle is: each has a branch of its own.
                angle[:2] = torch.tensor([0.0, math.nan if groups == 2 else 1e30])[:lines]
            units = dim, pairing, groups
            for with_bias, gain, clamp in [(False, 1.0, 0.0), (True, -0.7, 0.9)]:
                bias = normal((shape[dim],), wide, generator) if with_bias else None
                CPU.fold(x, bias, angle, *units, kind, gain, clamp, False)
                y, bits, clamped = CPU.fold(x, bias, angle, *units, kind, gain, clamp, True)
                for transpose in (False, True):
                    CPU.fold_backward(x, bits, clamped if clamp else None, angle, *units, kind, gain, transpose)
            if kind == "householder":
                CPU.fold_angle_grad(x, layout(y), bits, *units)
                CPU.fold_rotate(x, bits, angle, *units)


def sort_of(width):
    program = Program(width)
    program.sort(range(width))
    return program


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("width", [2, 3, 4, 8, 16])
def test_sorts(width, dtype):
    """3 is none of the networks in registers."""
    generator = torch.Generator().manual_seed(2)
    program = sort_of(width)
    form = program.instructions, program.constants, width
    shapes = [((5, 2 * width), 1, 1), ((4, width), 1, 2), ((2, width, 5), 1, 1), ((2, width, 40), 1, 2), ((300, width), 1, 1)]
    with Compared():
        for (shape, dim, groups), pairing, layout in itertools.product(
            shapes, ["adjacent", "halves"][: 2 if width == 2 else 1], [contiguous, misaligned]
        ):
            x = layout(normal(shape, dtype, generator))
            units = dim, pairing, groups
            for with_bias in (False, True):
                bias = normal((shape[dim],), accumulation(dtype), generator) if with_bias else None
                CPU.fold_sequence(x, bias, None, *units, *form, False)
                y, bits = CPU.fold_sequence(x, bias, None, *units, *form, True)
            for direction in ("tangent", "adjoint", "inverse"):
                CPU.fold_sequence_apply(layout(y), bits, None, *units, direction, *form)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "width"),
    [
        (name, width)
        for name in fuzz_programs.OPS
        for width in (1, 3)
        if not ((width == 1 and name in ("Swap", "Line")) or (width == 3 and name == "Crelu"))
    ],
)
def test_instructions(name, width, dtype):
    """Each instruction of a program by itself and after another, with numbers for its constants and with a tensor. Units
    of one value have a kernel of their own."""
    code, planes = fuzz_programs.OPS[name]
    generator = torch.Generator().manual_seed(5)
    planes *= width if name == "Clamp" else 1
    count = {"Plane": width + 1, "Affine": 1 + width, "Matrix": 2 * width**2 + width}.get(name)
    count = count or fuzz_programs.CONSTANTS.get(name, 0)
    constants = torch.linspace(0.4, 1.3, max(count, 1), dtype=torch.float64)
    mirror = [fuzz_programs.OPS["Mirror"][0], 0, 0, 0, planes]
    parameters = constants.to(accumulation(dtype))
    with Compared():
        for first, (shape, dim, groups), follows in itertools.product(
            [0, fuzz_programs.LIMITS["first_parameter"]],
            [((4, 3 * width), 1, 2), ((2, width, 50), 1, 1), ((300, width), 1, 1), ((5, 16 * width), 1, 1)],
            [[], mirror],
        ):
            learned = parameters if first else None
            form = [code, 0, int(width > 1), first, 0, *follows], constants.tolist(), width
            units = dim, "adjacent", groups
            x = (3 * torch.randn(shape, generator=generator)).to(dtype)
            bias = normal((shape[dim],), accumulation(dtype), generator) if follows else None
            CPU.fold_sequence(x, bias, learned, *units, *form, False)
            y, bits = CPU.fold_sequence(x, bias, learned, *units, *form, True)
            for direction in ("tangent", "adjoint", "inverse")[: 2 if name in ("Box", "Tri") else 3]:
                CPU.fold_sequence_apply(x if direction == "tangent" else y, bits, learned, *units, direction, *form)


#: How an operand of samples lies beside the others.
OPERANDS = {
    "flat": lambda shape, dtype, g: normal(shape, dtype, g),
    "off by one": lambda shape, dtype, g: misaligned(normal(shape, dtype, g)),
    "channels last": lambda shape, dtype, g: normal(shape, dtype, g).contiguous(memory_format=torch.channels_last),
    "transposed": lambda shape, dtype, g: normal((*shape[:-2], shape[-1], shape[-2]), dtype, g).transpose(-1, -2),
    "every second": lambda shape, dtype, g: normal((*shape[:-1], 2 * shape[-1]), dtype, g)[..., ::2],
}
#: Samples of a map's kernel, and of blocks that have a part of one: more than a block's, the last warp with a rest, and
#: lines of one and of two dimensions within a warp and beyond.
SMALL, LARGE = (3, 4, 9), (2, 3, 347)
LOWER = {
    torch.float64: [torch.float64],
    torch.float32: [torch.float32, torch.bfloat16, torch.float16],
    torch.bfloat16: [torch.bfloat16],
    torch.float16: [torch.float16],
}


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("window", [False, True], ids=["whole", "window"])
def test_noising_and_losses(dtype, window):
    generator = torch.Generator().manual_seed(3)
    noise = torch.tensor([1, -5]), torch.tensor([3, 4]), torch.tensor([9]), 7, 2**32 - 1
    noise += ([1, 2, 3], [9, 9, 20]) if window else ([], [])
    samples = [SMALL] if window or dtype == torch.float64 else [SMALL, LARGE]
    table = torch.tensor([[0.5, 0.8, 0.3, -0.7, 2.0], [0.6, 0.7, 0.0, 1.0, 1.0]], dtype=torch.float64)
    rows = [None, torch.tensor([1, 0]), torch.tensor([7, 0])]
    with Compared():
        for sample, x0_as, other_as, lower, index in itertools.product(samples, OPERANDS, OPERANDS, LOWER[dtype], rows):
            shape = 2, *sample
            x0 = OPERANDS[x0_as](shape, dtype, generator)
            other = OPERANDS[other_as](shape, lower, generator)
            out, target = torch.empty_like(other), torch.empty_like(x0).to(lower)
            CPU.randn(out, *noise)
            CPU.add_noise(x0, table, index, *noise, out, target)
            for of_noise in (noise, (None, *noise[1:])):
                scale = torch.ones(2, dtype=accumulation(dtype))
                CPU.denoising_loss(x0, other, table, index, *of_noise)
                CPU.denoising_residual_dot(x0, other, other, table, index, *of_noise)
                CPU.denoising_residual_scale(x0, other, scale, table, index, *of_noise)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("layout", OPERANDS)
@pytest.mark.parametrize("window", [[], [1, 2, 3]], ids=["whole", "window"])
def test_steps(window, layout, dtype):
    """All operands and outputs at once, each in a layout in turn, with rows that use all of them, some, or none."""
    generator = torch.Generator().manual_seed(4)
    samples = [SMALL] if window or dtype == torch.float64 else [SMALL, LARGE]
    seeds = torch.tensor([5, 6, 7])
    counters = torch.tensor([4, 5, 6]), torch.tensor([3]), 1, 2, window, [9, 9, 20][: len(window)]
    table = torch.randn(4, 25, generator=generator, dtype=torch.float64)
    table[:, 16], table[:, 17] = -0.9, 0.8  # the clip
    table[2] = 0.0
    table[:2, 6] = table[0, 20] = 0.0  # x' asks for no x0, and in one row the next history entry for none either
    table[3, 11], table[3, 12:14] = 1.0, 0.0
    with Compared():
        for sample, other, lower, index in itertools.product(samples, OPERANDS, LOWER[dtype], [[0, 1, 2], [3, -1, 9]]):
            of = {name: OPERANDS[way] for name, way in (("x", layout), ("other", other))}
            state = lambda name, d=dtype, of=of, s=sample: of[name]((3, *s), d, generator)  # noqa: E731
            out, history_out, next_input, x0_out = state("x"), state("other"), state("other", lower), state("x")
            for models, history, base in ((3, 4, True), (1, 0, False)):
                outputs = [history_out, next_input, x0_out] if base else [None] * 3
                CPU.affine_step(
                    state("x"), [state("other", lower) for _ in range(models)], state("other") if base else None,
                    [state("x") for _ in range(history)], table, torch.tensor(index), seeds, *counters, out, *outputs,
                )  # fmt: skip


@pytest.mark.parametrize("kind", ["programs", "calls"])
@pytest.mark.parametrize("part", range(8))
def test_fuzz(kind, part):
    """The cases of tests/fuzz.py; what is refused, and how, is asked there."""
    make = {"programs": fuzz_programs.make, "calls": fuzz_calls.make}[kind]
    count = 200 if EVERYTHING else 25
    with Compared():
        for number in range(part * count, (part + 1) * count):
            case = make(random.Random(f"gpu {number}"))
            try:
                case.run()
            except (Fault, AssertionError) as error:
                raise AssertionError(f"case {number}, {case.label}: {error}") from error
            except (TypeError, ValueError, RuntimeError):  # NotImplementedError too
                continue
