"""The reference networks: shapes, every activation, gradients to every parameter."""

import pytest
import torch

from pyfold.models import (
    ACTIVATIONS,
    MLP,
    Discriminator,
    Generator,
    MLPCritic,
    MLPDenoiser,
    ResidualBlock,
    ResNetDiscriminator,
    ResNetGenerator,
    UNet,
    activation,
)
from pyfold.models.layers import levels


@pytest.mark.parametrize(("size", "expected"), [(4, 0), (7, 0), (8, 1), (28, 2), (32, 3), (64, 4)])
def test_levels(size, expected):
    assert levels(size) == expected


@pytest.mark.parametrize("size", [3, 9, 18, 30])
def test_sizes_that_do_not_halve(size):
    with pytest.raises(ValueError, match=f"size.*{size}"):
        levels(size)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_network_with_every_activation(act):
    torch.manual_seed(0)
    t = torch.rand(3)
    networks = [
        (UNet(3, 8, 8, act), (torch.randn(3, 3, 8, 8), t), (3, 3, 8, 8)),
        (Generator(1, 28, 6, 8, act), (torch.randn(3, 6),), (3, 1, 28, 28)),
        (Discriminator(1, 28, 8, act), (torch.randn(3, 1, 28, 28),), (3,)),
        (Generator(1, 28, 6, 8, act, normalise=True), (torch.randn(3, 6),), (3, 1, 28, 28)),
        (Discriminator(1, 28, 8, act, normalise=True), (torch.randn(3, 1, 28, 28),), (3,)),
        (ResNetGenerator(3, 14, 6, 8, act), (torch.randn(3, 6),), (3, 3, 14, 14)),
        (ResNetDiscriminator(3, 14, 8, act), (torch.randn(3, 3, 14, 14),), (3,)),
        (MLP(4, 2, 8, activation=act), (torch.randn(3, 4),), (3, 2)),
        (MLPDenoiser(2, 8, activation=act), (torch.randn(3, 2), t), (3, 2)),
        (MLPCritic(2, 8, activation=act), (torch.randn(3, 2),), (3,)),
    ]
    for network, inputs, shape in networks:
        y = network(*inputs)
        assert y.shape == shape
        (y * torch.randn_like(y)).sum().backward()
        assert all(p.grad is not None for p in network.parameters())


def test_a_generator_makes_images_in_range():
    y = Generator(3, 16, 4, 8)(10 * torch.randn(5, 4))
    assert y.abs().max() <= 1


def test_unknown_activation():
    with pytest.raises(ValueError, match="activation.*'gelu'"):
        activation("gelu", 8)


@pytest.mark.parametrize("act", ["leaky_relu", "relu", "abs", "maxmin"])
def test_residual_networks_keep_the_second_moment_however_deep(act):
    """A block starts as the identity, and the branch before its last convolution at the size of depth^(-1/2)."""
    torch.manual_seed(0)
    x = torch.randn(8, 64, 7, 7)
    for depth in (1, 16):
        block = ResidualBlock(64, depth, act)
        assert torch.equal(block(x), x)
        inner = block.branch[:4](x)[..., 1:-1, 1:-1]  # away from the zeros of the border
        assert inner.square().mean().sqrt().item() == pytest.approx(depth**-0.5, rel=0.25)
    assert ResNetDiscriminator(3, 32, 16, act, blocks=8)(torch.randn(64, 3, 32, 32)).std() < 5
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        ResNetGenerator(1, 8, width=12)


def test_residual_networks_have_no_normalisation_and_dcgan_has_it_where_the_paper_says():
    kinds = lambda model: [type(m).__name__ for m in model.modules()]  # noqa: E731
    for model in (ResNetGenerator(1, 8), ResNetDiscriminator(1, 8), Generator(1, 8), Discriminator(1, 8)):
        assert not any("Norm" in kind for kind in kinds(model))
    generator, discriminator = Generator(1, 16, normalise=True), Discriminator(1, 16, normalise=True)
    assert kinds(generator)[-2:] == ["Conv2d", "Tanh"]  # none at the output
    assert kinds(discriminator)[2:5] == ["Conv2d", "LeakyReLU", "Conv2d"]  # none at the input
    assert kinds(generator).count("BatchNorm2d") == kinds(discriminator).count("BatchNorm2d") + 1 == 4
    assert generator.project.weight.std().item() == pytest.approx(0.02, rel=0.05)
