"""The reference networks: shapes, every activation, gradients to every parameter."""

import pytest
import torch

from pyfold.models import ACTIVATIONS, MLP, Discriminator, Generator, MLPCritic, MLPDenoiser, UNet, activation
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
