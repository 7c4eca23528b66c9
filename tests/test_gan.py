"""GAN losses and penalties against closed forms, and second derivatives through folds against eager operations."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import pyfold
from pyfold import gan
from pyfold.models import Discriminator


def test_losses_at_known_logits():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    s = softplus
    expected = (s(torch.tensor(-2.0)) + s(torch.tensor(1.0))) / 2 + (s(torch.tensor(0.5)) + s(torch.tensor(1.0))) / 2
    torch.testing.assert_close(gan.non_saturating_d(real, fake), expected)
    torch.testing.assert_close(gan.non_saturating_g(fake), (s(torch.tensor(-0.5)) + s(torch.tensor(-1.0))) / 2)
    expected = (s(torch.tensor(-1.5)) + s(torch.tensor(2.0))) / 2
    torch.testing.assert_close(gan.relativistic_d(real, fake), expected)
    torch.testing.assert_close(gan.relativistic_g(fake, real), (s(torch.tensor(1.5)) + s(torch.tensor(-2.0))) / 2)


def test_equilibrium_values():
    """An undecided discriminator: 2 log 2 for the plain game, log 2 for the paired one."""
    zero = torch.zeros(5)
    assert gan.non_saturating_d(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert gan.relativistic_d(zero, zero).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("penalty", [gan.r1_penalty, gan.r2_penalty])
def test_penalties_of_known_gradients(penalty):
    x = torch.randn(6, 3, dtype=torch.float64).requires_grad_()
    w = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64).requires_grad_()
    linear = penalty(x @ w, x, 0.5)
    assert linear.item() == pytest.approx(0.25 * 9)  # gamma / 2 |w|^2
    (gradient,) = torch.autograd.grad(linear, w)
    torch.testing.assert_close(gradient, 0.5 * w.detach(), rtol=1e-6, atol=0)
    quadratic = penalty((x**2).sum(1) / 2, x, 2.0)
    assert quadratic.item() == pytest.approx((x**2).sum(1).mean().item(), rel=1e-6)


def critic(kind, dtype):
    """A small critic whose activations are a fold, or the same fold in eager operations."""
    torch.manual_seed(3)
    angle = nn.Parameter(torch.randn(4, dtype=dtype))

    def fused(h):
        return pyfold.fold(h, kind, angle=angle if kind == "householder" else None)

    def eager(h):
        if kind == "abs":
            return h.abs()
        a, b = h[:, 0::2], h[:, 1::2]
        if kind == "maxmin":
            return torch.stack([torch.minimum(a, b), torch.maximum(a, b)], 2).flatten(1)
        m = a * (angle / 2).sin() > b * (angle / 2).cos()
        c, s = angle.cos(), angle.sin()
        return torch.stack([torch.where(m, a * c + b * s, a), torch.where(m, a * s - b * c, b)], 2).flatten(1)

    first, second, last = nn.Linear(5, 8, dtype=dtype), nn.Linear(8, 8, dtype=dtype), nn.Linear(8, 1, dtype=dtype)
    parameters = [angle] * (kind == "householder") + [*first.parameters(), *second.parameters(), last.weight]
    return {name: lambda x, f=f: last(f(second(f(first(x))))) for name, f in (("fused", fused), ("eager", eager))}, parameters


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("kind", ["abs", "maxmin", "householder"])
def test_r1_through_folds_equals_eager(kind, dtype, tolerance):
    forms, parameters = critic(kind, dtype)
    results = {}
    x = torch.randn(16, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for name, network in forms.items():
        leaf = x.clone().requires_grad_()
        logits = torch.tanh(network(leaf))  # curved, so that the penalty depends on every parameter
        (gradient,) = torch.autograd.grad(logits.sum(), leaf, create_graph=True)
        penalty = gradient.square().sum(1).mean()
        results[name] = [penalty, *torch.autograd.grad(penalty, parameters, materialize_grads=True)]
    for a, e in zip(results["fused"], results["eager"], strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)
    assert all(g.abs().max() > 0 for g in results["fused"])


def test_functional_penalty_compiles_whole():
    torch.manual_seed(0)
    discriminator = Discriminator(1, 8, width=8, activation="maxmin")
    x = torch.randn(4, 1, 8, 8)
    parameters = [p for name, p in discriminator.named_parameters() if "body.9" not in name or "bias" not in name]
    expected = gan.functional_penalty(discriminator, x, 2.0)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(expected, gan.r1_penalty(discriminator(leaf), leaf, 2.0))
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    compiled = torch.compile(lambda x: gan.functional_penalty(discriminator, x, 2.0), fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(x), parameters, allow_unused=True)
    for a, e in zip(actual, wanted, strict=True):
        if e is not None:
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)
