"""1-Lipschitz networks: exact singular values of whole operators, and Wasserstein distances that are known."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from pyfold.lipschitz import (
    ACTIVATIONS,
    LipschitzConvCritic,
    LipschitzCritic,
    OrthogonalConv2d,
    OrthogonalDownsample,
    fit_critic,
    kantorovich_rubinstein,
    orthogonal_linear,
    wasserstein1,
)
from pyfold.ops import FOLDS


def operator(module, *shape):
    """The matrix of a linear module between flattened inputs and outputs, without its bias."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    with torch.no_grad():
        return (module(basis) - module(torch.zeros_like(basis[:1]))).flatten(1).T


@pytest.fixture
def double():
    """Layers are made in float64: the orthogonal matrix that a parametrization starts from is as exact as its dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def shaken(module):
    """Away from how it was made: orthogonality must hold for any parameters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 5), (3, 7), (7, 3), (4, 1), (1, 4)])
def test_linear(inputs, outputs, double):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(operator(shaken(orthogonal_linear(inputs, outputs)), inputs))
    assert len(values) == min(inputs, outputs)
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("inputs", "outputs", "size"), [(3, 3, (5, 6)), (2, 4, (4, 3)), (4, 2, (3, 4)), (3, 3, (1, 2))])
def test_convolution(inputs, outputs, size, kernel_size, double):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(operator(shaken(OrthogonalConv2d(inputs, outputs, kernel_size)), inputs, *size))
    assert len(values) == min(inputs, outputs) * math.prod(size)
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-12)


def test_convolution_is_one():
    """It commutes with cyclic shifts, and sees its neighbours."""
    torch.manual_seed(0)
    conv = OrthogonalConv2d(3, 3).double()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    shifted = conv(x.roll((2, 3), (2, 3)))
    torch.testing.assert_close(shifted, conv(x).roll((2, 3), (2, 3)), rtol=0, atol=1e-12)
    kernel = operator(conv, 3, 6, 7).reshape(3, 6, 7, 3, 6, 7)[:, :, :, 0, 3, 3]
    assert (kernel.abs() > 1e-3).sum() > 20
    with torch.no_grad():
        conv.weight.zero_()
    torch.testing.assert_close(conv(x), x)


def test_convolution_in_float32_by_power_iteration():
    """The largest singular value of a larger operator, from products with it and its transpose."""
    torch.manual_seed(0)
    conv = OrthogonalConv2d(8, 16, bias=False)
    x = torch.randn(1, 8, 20, 20)
    for _ in range(20):
        y, pull = torch.func.vjp(conv, x / x.norm())
        (x,) = pull(y)
    assert abs(x.norm().item() - 1) < 1e-5
    assert abs(y.norm().item() - 1) < 1e-5


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(3, 12, 2), (2, 5, 2), (2, 20, 2), (1, 4, 3)])
def test_downsample(inputs, outputs, stride, double):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(operator(shaken(OrthogonalDownsample(inputs, outputs, stride)), inputs, 6, 6))
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-12)


def test_convolution_gradients():
    torch.manual_seed(0)
    conv = OrthogonalConv2d(2, 3, bias=False).double()
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = conv.weight.detach().clone().requires_grad_()

    def run(x, weight):
        return torch.func.functional_call(conv, {"weight": weight}, x)

    assert torch.autograd.gradcheck(run, (x, weight))
    assert torch.autograd.gradgradcheck(run, (x, weight))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_critics_are_1_lipschitz(activation, double):
    torch.manual_seed(0)
    for critic, shape in [
        (LipschitzCritic(6, 16, 4, activation), (6,)),
        (LipschitzConvCritic(2, 8, 4, 2, activation), (2, 8, 8)),
    ]:
        x = 3 * torch.randn(64, *shape, requires_grad=True)
        values = shaken(critic)(x)
        (gradient,) = torch.autograd.grad(values.sum(), x)
        assert gradient.flatten(1).norm(dim=1).max() <= 1 + 1e-12
        y = x + torch.randn_like(x)
        slope = (critic(y) - values).abs() / (y - x).flatten(1).norm(dim=1)
        assert 0 < slope.max() <= 1 + 1e-12


@pytest.mark.parametrize("activation", ["abs", "maxmin", "householder", "relu"])
def test_folds_keep_the_length_of_gradients(activation, double):
    """Of layers that do not widen, at every input; ReLU loses most of it."""
    torch.manual_seed(0)
    x = 3 * torch.randn(64, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(shaken(LipschitzCritic(16, 16, 6, activation))(x).sum(), x)
    length = gradient.norm(dim=1)
    if activation in FOLDS:
        torch.testing.assert_close(length, torch.ones(64), rtol=0, atol=1e-12)
    else:
        assert length.mean() < 0.5


# --- Wasserstein distances in closed form


def shifted(dimensions, generator, size=8192):
    """Two Gaussians, one shifted by 2: the distance is the shift, and an affine function is the best critic."""
    direction = torch.nn.functional.normalize(torch.randn(dimensions, generator=generator), dim=0)
    p, q = torch.randn(2, size, dimensions, generator=generator)
    return p + 2 * direction, q, 2.0


def spread(dimensions, generator, size=8192):
    """Two Gaussians, one three times as wide: the distance is 2 E|z|, and |x| is the best critic."""
    p, q = torch.randn(2, size, dimensions, generator=generator)
    return 3 * p, q, 2 * math.sqrt(2) * math.gamma((dimensions + 1) / 2) / math.gamma(dimensions / 2)


def estimate(activation, p, q):
    torch.manual_seed(0)
    return wasserstein1(p, q, critic=LipschitzCritic(p.shape[1], activation=activation), steps=200, batch=256)


@pytest.mark.parametrize("problem", [shifted, spread])
@pytest.mark.parametrize("activation", ["maxmin", "householder", "abs"])
def test_fold_critics_reach_the_distance(problem, activation, generator):
    p, q, distance = problem(2, generator)
    result = estimate(activation, p, q)
    assert 0.95 * distance <= result.value <= distance + 4 * result.standard_error
    assert result.history[-1] > result.history[0]


def test_relu_critics_fall_short_where_the_best_critic_bends(generator):
    """Between orthogonal layers ReLU reaches an affine critic through its biases, but |x| not at all (Anil et al. 2019)."""
    p, q, distance = shifted(2, generator)
    assert estimate("relu", p, q).value >= 0.95 * distance
    for dimensions in (1, 2):
        p, q, distance = spread(dimensions, generator)
        assert 0.4 * distance < estimate("relu", p, q).value < 0.75 * distance
        assert estimate("maxmin", p, q).value > 0.95 * distance


def test_distance_in_one_dimension_against_scipy(generator):
    """Two lumps against one in the middle; scipy sorts the samples."""
    sign = torch.randint(2, (8192, 1), generator=generator) * 2 - 1
    p = 2.0 * sign + 0.3 * torch.randn(8192, 1, generator=generator)
    q = 0.3 * torch.randn(8192, 1, generator=generator)
    expected = stats.wasserstein_distance(p[1::2, 0], q[1::2, 0])
    assert estimate("maxmin", p, q).value == pytest.approx(expected, rel=0.01)
    assert estimate("relu", p, q).value < 0.75 * expected


def test_images(generator):
    pattern = torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0).reshape(1, 8, 8)
    p, q = torch.randn(2, 2048, 1, 8, 8, generator=generator)
    torch.manual_seed(0)
    result = wasserstein1(p + 4 * pattern, q, critic=LipschitzConvCritic(1, 8, 8, 1), steps=60, batch=128)
    assert 0.95 * 4 <= result.value <= 4 + 4 * result.standard_error


def test_the_same_distribution_is_at_no_distance(generator):
    p, q = torch.randn(2, 4096, 3, generator=generator)
    result = wasserstein1(p, q, steps=50)
    assert abs(result.value) < 4 * result.standard_error
    again = wasserstein1(p, q, steps=50)
    assert again.value == result.value and again.history == result.history


def test_refusals():
    p = torch.randn(8, 2)
    with pytest.raises(ValueError, match="activation must be 1-Lipschitz, one of .*got 'silu'"):
        LipschitzCritic(2, activation="silu")
    with pytest.raises(ValueError, match="size must be divisible by 4 for 2 levels, got 6"):
        LipschitzConvCritic(1, 6)
    with pytest.raises(ValueError, match="kernel_size must be an int from 1, got 0"):
        OrthogonalConv2d(1, 1, 0)
    with pytest.raises(ValueError, match=r"x must have shape \[B, 2, H, W\]"):
        OrthogonalConv2d(2, 2)(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="inputs must be an int from 1"):
        orthogonal_linear(0, 1)
    with pytest.raises(ValueError, match="samples .* of one shape"):
        wasserstein1(p, torch.randn(8, 3))
    with pytest.raises(TypeError, match="q must be a floating-point tensor"):
        fit_critic(nn.Linear(2, 1), p, p.long())
    with pytest.raises(ValueError, match="at least 4 samples"):
        wasserstein1(p[:2], p)
    with pytest.raises(ValueError, match="critic is needed for samples that are not vectors"):
        wasserstein1(torch.randn(8, 1, 4, 4), torch.randn(8, 1, 4, 4))
    assert kantorovich_rubinstein(lambda x: x.sum(1), p, p) == 0


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str)
def test_half_types(dtype, unit):
    """Layers run forward and backward, within a few roundings of the float32 layer with the same parameters."""
    torch.manual_seed(0)
    layers = [
        (orthogonal_linear(6, 6), (9, 6)),
        (OrthogonalConv2d(2, 3), (4, 2, 6, 5)),
        (OrthogonalDownsample(2, 8), (4, 2, 4, 4)),
        (LipschitzCritic(6, 16, 2), (9, 6)),
        (LipschitzConvCritic(2, 8, 4, 1), (4, 2, 8, 8)),
    ]
    for layer, shape in layers:
        half = layer.to(dtype)
        x = torch.randn(shape).to(dtype).requires_grad_()
        y = half(x)
        assert y.dtype == dtype
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.isfinite().all()
        with torch.no_grad():
            exact = layer.float()(x.float())
        assert (y.float() - exact).abs().max() < 16 * unit * exact.abs().max(), type(layer)
    p, q = torch.randn(2, 400, 2)
    result = wasserstein1((p + 2).to(dtype), q.to(dtype), steps=20, batch=64)
    assert math.isfinite(result.value) and next(result.critic.parameters()).dtype == torch.float32


def test_large_images_lose_nothing_in_the_phase():
    """Where a place times a frequency is many turns, the wave is that of float64 to a rounding of its phase."""
    conv = OrthogonalConv2d(1, 1, kernel_size=63)
    place = torch.arange(63, dtype=torch.float64) - 31
    phase = torch.arange(2049, dtype=torch.float64)[:, None] * place * (2 * math.pi / 4096)
    error = (conv._waves(4096, 2049).to(torch.complex128) - torch.exp(-1j * phase)).abs().max()
    assert error < 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_are_no_numbers(bad):
    p, q = torch.zeros(8, 2), torch.zeros(8, 2)
    q[3, 1] = bad
    for call in (lambda: wasserstein1(p, q), lambda: fit_critic(LipschitzCritic(2), p, q, steps=1)):
        with pytest.raises(ValueError, match="q must be finite"):
            call()
