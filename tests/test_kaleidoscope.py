"""What is special to kaleidoscopes: one pass, one memory of bits, and the way round by round."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyfold

F64 = torch.float64
MANDELBOX = ["box", ("sphere", {"radius": 1.0, "inner": 0.5})]


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))

    def of_pyfold(self):
        return [name for name in self.names if name.startswith("pyfold::")]


def turn(angle):
    return [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]


def test_a_whole_block_is_one_kernel(generator):
    x = torch.randn(1000, 3, generator=generator)
    with Calls() as calls:
        pyfold.kaleidoscope(x, [*MANDELBOX, "abs", "groupsort"], scale=2.0, centre=(1, 1, 1), iterations=8)
    assert calls.of_pyfold() == ["pyfold::fold_sequence"]
    leaf = x.clone().requires_grad_()
    with Calls() as calls:
        y = pyfold.kaleidoscope(leaf, ["abs", "groupsort"], scale=2.0, centre=(1, 1, 1), iterations=8)
        y.sum().backward()
    assert calls.of_pyfold() == ["pyfold::fold_sequence", "pyfold::fold_sequence_apply"]


def test_remembers_a_bit_for_each_fold(generator):
    x = torch.randn(4, 3, 8, 8, generator=generator).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        pyfold.kaleidoscope(x, ["abs", "groupsort"], scale=2.0, iterations=5)
    # Three signs and three swaps in each of five rounds, for each of 4 x 64 points.
    assert sum(t.numel() * t.element_size() for t in saved) == 5 * 6 * 4 * 64 // 8


@pytest.mark.parametrize("iterations", [1, 7])
def test_equals_its_rounds(iterations, backend, generator):
    x = (2 * torch.randn(50, 2, 6, generator=generator)).to(backend, F64)
    normal = torch.randn(2, 2, generator=generator, dtype=F64)
    folds = ["box", ("dihedral", {"m": 3, "angle": 0.2}), ("householder", {"angle": 0.4}), ("tri", {"length": 2.0}), "ball"]
    for extra in ([], [("hyperplane", {"normal": normal.to(backend), "offset": 0.3})]):
        options = {"scale": 1.4, "centre": (0.3, -0.2), "rotation": turn(0.8), "iterations": iterations}
        y = pyfold.kaleidoscope(x, folds + extra, **options)
        z = x
        for _ in range(iterations):
            for item in folds + extra:
                kind, parameters = (item, {}) if isinstance(item, str) else item
                z = pyfold.fold(z, kind, **parameters)
            rotation = torch.tensor(turn(0.8), dtype=F64, device=backend)
            centre = torch.tensor([0.3, -0.2], dtype=F64, device=backend)[:, None]
            z = 1.4 * (rotation @ z) - 0.4 * centre
        torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)


def test_longer_than_a_kernel_takes(generator):
    """300 rounds of three folds are more than one program holds, and go round by round; the values are the same."""
    x = torch.randn(20, 3, generator=generator, dtype=F64)
    short = x
    for _ in range(10):
        short = pyfold.kaleidoscope(short, ["abs"], scale=1.01, centre=(1, 0, 0), iterations=30)
    torch.testing.assert_close(pyfold.kaleidoscope(x, ["abs"], scale=1.01, centre=(1, 0, 0), iterations=300), short)


def test_the_gradient_of_a_mandelbox_is_that_of_its_rounds(generator):
    x = torch.randn(10, 3, generator=generator, dtype=F64).requires_grad_()
    function = lambda x: pyfold.kaleidoscope(x, MANDELBOX, scale=-1.5, iterations=2)  # noqa: E731
    assert torch.autograd.gradcheck(function, x)
    with torch.no_grad():
        torch.testing.assert_close(function(x), function(x.detach().requires_grad_()), rtol=1e-13, atol=1e-13)


def test_a_learned_normal_learns_through_a_kaleidoscope(generator):
    x = torch.randn(10, 3, generator=generator, dtype=F64)
    normal = torch.randn(3, generator=generator, dtype=F64).requires_grad_()
    function = lambda n: pyfold.kaleidoscope(x, [("hyperplane", {"normal": n})], scale=1.1, iterations=3)  # noqa: E731
    assert torch.autograd.gradcheck(function, normal)


X = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pyfold.kaleidoscope(X, "abs"), TypeError, "folds.*'abs'"),
        (lambda: pyfold.kaleidoscope(X, ["crelu"]), ValueError, "folds.*'crelu'"),
        (lambda: pyfold.kaleidoscope(X, ["maxmin"]), ValueError, "even number.*3"),
        (lambda: pyfold.kaleidoscope(X, [("box", {"length": -1.0})]), ValueError, "length.*-1"),
        (lambda: pyfold.kaleidoscope(X, ["abs"], iterations=0), ValueError, "iterations.*0"),
        (lambda: pyfold.kaleidoscope(X, ["abs"], iterations=2**70), ValueError, "iterations must be from 1 to 1048576, got"),
        (lambda: pyfold.kaleidoscope(X, ["abs"], iterations=1.5), TypeError, "iterations.*float"),
        (lambda: pyfold.kaleidoscope(X, ["abs"], scale=0), ValueError, "scale.*0"),
        (lambda: pyfold.kaleidoscope(X, ["abs"], scale=math.inf), ValueError, "scale.*inf"),
        (lambda: pyfold.kaleidoscope(X, ["abs"], centre=(1, 2)), ValueError, "centre.*3 entries"),
        (lambda: pyfold.kaleidoscope(X, ["abs"], rotation=turn(1)), ValueError, "rotation.*3 rows"),
        (lambda: pyfold.kaleidoscope(X[:, :2], ["abs"], rotation=[[1, 1], [0, 1]]), ValueError, "orthogonal"),
        (lambda: pyfold.kaleidoscope(torch.tensor(1.0), ["abs"]), ValueError, "0-d"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
