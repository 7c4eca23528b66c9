"""What is special to folds: ties, isometry, unfolding, their memory of one bit."""

import math

import pytest
import torch

import pyfold
from pyfold import nn
from pyfold.ops import FOLDS, unfold

PAIRS = [kind for kind, fold in FOLDS.items() if fold.components == 2]


def angles(kind, count, dtype=torch.float64):
    return torch.linspace(-3, 3, count, dtype=dtype) if FOLDS[kind].has_angle else None


def raw(x, kind, angle=None, dim=1, pairing="adjacent"):
    return torch.ops.pyfold.fold(x, None, angle, kind, dim, pairing, 1.0, 0.0, 1)


@pytest.mark.parametrize("kind", FOLDS)
def test_at_a_tie_the_fold_is_the_identity(kind, backend):
    ties = {
        "abs": torch.zeros(1, 2),
        "maxmin": torch.tensor([[0.7, 0.7]]),
        "householder": torch.tensor([[math.cos(0.5), math.sin(0.5)]]) * 0,
    }
    x = ties[kind].to(backend, torch.float64).requires_grad_()
    angle = torch.tensor([1.0], device=backend, dtype=torch.float64) if FOLDS[kind].has_angle else None
    jacobian = torch.autograd.functional.jacobian(lambda x: pyfold.fold(x, kind, angle=angle), x).reshape(2, 2)
    assert torch.equal(jacobian.cpu(), torch.eye(2, dtype=torch.float64))
    bits = raw(x.detach(), kind, angle)[1]
    assert int(bits.sum()) == 0


@pytest.mark.parametrize("pairing", ["adjacent", "halves"])
@pytest.mark.parametrize("kind", FOLDS)
def test_the_jacobian_is_orthogonal_everywhere(kind, pairing, generator):
    x = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    x[0, :4] = torch.tensor([0.0, 0.0, 0.3, 0.3])  # ties among them
    function = lambda x: pyfold.fold(x, kind, angle=angles(kind, 4), pairing=pairing)  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(function, x).reshape(8, 8)
    torch.testing.assert_close(torch.linalg.svdvals(jacobian), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-12)


def test_identities():
    x = torch.randn(50, 2, dtype=torch.float64)
    a, b = x.unbind(1)
    at = lambda t: pyfold.fold(x, "householder", angle=torch.tensor([t], dtype=torch.float64))  # noqa: E731
    torch.testing.assert_close(at(0.0), torch.stack([a, b.abs()], 1), rtol=0, atol=1e-15)
    torch.testing.assert_close(at(math.pi / 2), torch.stack([torch.minimum(a, b), torch.maximum(a, b)], 1), rtol=0, atol=1e-15)
    torch.testing.assert_close(at(math.pi), torch.stack([-a.abs(), b], 1), rtol=0, atol=1e-15)
    torch.testing.assert_close(pyfold.fold(x, "abs"), x.abs(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fifty_folds_unfold(dtype, backend):
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(3, 16, 5, generator=generator, dtype=dtype).to(backend)
    x, trail = start, []
    for i in range(50):
        kind = list(FOLDS)[i % len(FOLDS)]
        pairing = ("adjacent", "halves")[i % 2]
        angle = (torch.rand(8, generator=generator, dtype=dtype) * 6).to(backend) if FOLDS[kind].has_angle else None
        shift = torch.randn(16, 1, generator=generator, dtype=dtype).to(backend)
        y, bits, _ = raw(x + shift, kind, angle, pairing=pairing)
        trail.append((kind, pairing, angle, shift, bits))
        x = y
    for kind, pairing, angle, shift, bits in reversed(trail):
        x = unfold(x, bits, kind, angle=angle, pairing=pairing) - shift
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(x, start, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", FOLDS)
def test_bits_are_packed(kind, backend):
    x = torch.randn(4, 6, 5, device=backend)
    bits = raw(x, kind, angles(kind, 3, torch.float32).to(backend) if FOLDS[kind].has_angle else None)[1]
    units = x.numel() // FOLDS[kind].components
    assert bits.dtype == torch.uint8
    assert bits.numel() == (units + 7) // 8
    if kind == "abs":
        unpacked = (bits.reshape(-1, 1) >> torch.arange(8, device=backend)) & 1
        assert torch.equal(unpacked.flatten()[:units].bool(), (x < 0).flatten())


@pytest.mark.parametrize("kind", FOLDS)
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1])
def test_any_channel_dimension_and_memory_order(kind, dim, backend, generator):
    x = torch.randn(4, 6, 8, 10, generator=generator).to(backend)
    angle = angles(kind, x.shape[dim] // 2, torch.float32)
    angle = angle if angle is None else angle.to(backend)
    bias = torch.randn(x.shape[dim], generator=generator).to(backend)
    expected = pyfold.fold(x, kind, dim=dim, angle=angle, bias=bias)
    gradient = torch.randn(x.shape, generator=generator).to(backend)
    leaf = x.clone().requires_grad_()
    pyfold.fold(leaf, kind, dim=dim, angle=angle, bias=bias).backward(gradient)
    for order in ((0, 2, 3, 1), (3, 1, 0, 2), (1, 0, 3, 2)):
        other = x.permute(order).contiguous().permute([order.index(d) for d in range(4)])
        y = pyfold.fold(other, kind, dim=dim, angle=angle, bias=bias)
        assert y.stride() == other.stride()
        assert torch.equal(y, expected)
        leaf_other = other.detach().requires_grad_()
        pyfold.fold(leaf_other, kind, dim=dim, angle=angle, bias=bias).backward(gradient)
        assert torch.equal(leaf_other.grad, leaf.grad)


def test_bias_and_angle_in_lower_precision(backend, generator):
    x = torch.randn(8, 6, 4, generator=generator).to(backend, torch.bfloat16)
    bias = torch.randn(6, generator=generator).to(backend).requires_grad_()
    angle = torch.randn(3, generator=generator).to(backend).requires_grad_()
    y = pyfold.fold(x, "householder", bias=bias, angle=angle)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert bias.grad.dtype == angle.grad.dtype == torch.float32
    # |F(z)|^2 does not depend on the angle; what is left is bfloat16's rounding.
    assert angle.grad.abs().max() < 0.05 * y.float().square().sum()


def test_modules(generator):
    x = torch.randn(5, 6, 7, generator=generator)
    module = nn.Fold("householder", 6, bias=True, gain=1.5)
    assert {name for name, _ in module.named_parameters()} == {"bias", "angle"}
    expected = 1.5 * torch.stack([torch.minimum(x[:, 0::2], x[:, 1::2]), torch.maximum(x[:, 0::2], x[:, 1::2])], 2).flatten(
        1, 2
    )
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)
    module(x).sum().backward()
    assert module.bias.grad is not None
    assert module.angle.grad is not None
    assert "householder" in repr(module)
    assert torch.equal(nn.Fold("abs")(x), x.abs())


def test_learned_angle_with_clamp_is_still_differentiable():
    x = torch.randn(3, 4, 2, dtype=torch.float64).requires_grad_()
    angle = torch.randn(2, dtype=torch.float64).requires_grad_()
    function = lambda x, angle: pyfold.fold(x, "householder", angle=angle, clamp=0.9, gain=1.1)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, angle))
    assert torch.autograd.gradgradcheck(function, (x, angle))


def test_angle_gradient_does_not_depend_on_threads(generator):
    x = torch.randn(8, 64, 31, 33, generator=generator)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            angle = torch.linspace(-3, 3, 32).requires_grad_()
            pyfold.fold(x, "householder", angle=angle).square().sin().sum().backward()
            results.append(angle.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
