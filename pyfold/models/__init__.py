"""Small reference networks, with folds as activations wherever one is asked for."""

from pyfold.models.dcgan import Discriminator, Generator
from pyfold.models.hub import Hub
from pyfold.models.layers import ACTIVATIONS, Scaled, TimeEmbedding, activation, orthogonal_
from pyfold.models.mlp import MLP, MLPCritic, MLPDenoiser
from pyfold.models.resnet import ResidualBlock, ResNetDiscriminator, ResNetGenerator
from pyfold.models.unet import UNet

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "Discriminator",
    "Generator",
    "Hub",
    "MLPCritic",
    "MLPDenoiser",
    "ResNetDiscriminator",
    "ResNetGenerator",
    "ResidualBlock",
    "Scaled",
    "TimeEmbedding",
    "UNet",
    "activation",
    "orthogonal_",
]
