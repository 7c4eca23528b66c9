"""1-Lipschitz networks: orthogonal layers, folds between them, and the Wasserstein-1 distance they measure.

A fold keeps the length of every gradient, and so does an orthogonal layer that does not widen. A network of both is 1-Lipschitz
by construction, and its gradient can have length 1 everywhere, as the best critic of the Kantorovich-Rubinstein dual has (Anil,
Lucas and Grosse 2019). ReLU between the same layers is 1-Lipschitz as well, but each flattened unit loses length: it is as good
as a fold where the best critic is affine (its biases lift the data over the creases), and cannot make one that bends.

Every bound here is that of exact arithmetic; in float32 orthogonality holds to about 1e-6 a layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyfold.models.layers import FOLD_ACTIVATIONS
from pyfold.models.layers import activation as activation_by_name
from pyfold.ops import FOLDS
from pyfold.ops._tensors import accumulation

#: Activations that are 1-Lipschitz; FOLDS says which of the folds keep the length of gradients. The others do not.
ACTIVATIONS = (
    *(kind for kind in FOLD_ACTIVATIONS if FOLDS[kind].lipschitz(**FOLDS[kind].defaults()) <= 1),
    "relu",
    "leaky_relu",
    "tanh",
)


def _activation(name: str, channels: int) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be 1-Lipschitz, one of {', '.join(map(repr, ACTIVATIONS))}, got {name!r}")
    return activation_by_name(name, channels)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an int from 1, got {value!r}")


def orthogonal_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer whose weight is orthogonal: all its singular values are 1.

    It keeps every length if ``outputs >= inputs``, that of every gradient if ``outputs <= inputs``. The weight is a Cayley
    transform on top of a random orthogonal matrix, by ``torch.nn.utils.parametrizations.orthogonal``; it is as exact as the
    dtype that the layer is made in. In half types the weight is computed in float32 and rounded.

    Args:
        inputs, outputs: its sizes.
        bias: whether it has one.

    Returns:
        The layer.
    """
    _check_sizes(inputs=inputs, outputs=outputs)
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.orthogonal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    nn.utils.parametrizations.orthogonal(layer, orthogonal_map="cayley")
    chain: Any = layer.parametrizations
    chain["weight"][0] = _InFloat32(chain["weight"][0])
    return layer


class _InFloat32(nn.Module):
    """A parametrization that solves linear equations, which torch does for no half type."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if weight.dtype.itemsize > 2:
            result: torch.Tensor = self.inner(weight)
            return result
        wide = {name: value.float() for name, value in self.inner.named_buffers()}
        narrow: torch.Tensor = torch.func.functional_call(self.inner, wide, (weight.float(),))
        return narrow.to(weight.dtype)


class OrthogonalConv2d(nn.Module):
    """A convolution that is an orthogonal map of whole images; [B, in, H, W] -> [B, out, H, W], any H and W.

    With circular padding a convolution is one matrix for each frequency; each of them is a Cayley transform
    ``(I + A)^-1 (I - A)`` of the skew part ``A = F - F^H`` of a learned kernel's transform F, hence unitary (Trockman and
    Kolter 2021, section 4). What that guarantees:

    - all singular values of the map are 1: it keeps every length if ``out >= in``, that of every gradient if ``out <= in``;
    - of circular padding only: at the borders it looks around to the other side;
    - the effective kernel is as large as the image; ``kernel_size`` is that of F.

    With ``in != out`` the smaller side is filled up with channels of zeros, or cut.

    Args:
        inputs, outputs: channels.
        kernel_size: side of the learned kernel.
        bias: learn one value for each output channel.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int = 3, bias: bool = True):
        super().__init__()
        _check_sizes(inputs=inputs, outputs=outputs, kernel_size=kernel_size)
        self.inputs, self.outputs, self.kernel_size = inputs, outputs, kernel_size
        channels = max(inputs, outputs)
        # So that A is about as large as I: the transform is then far from the identity and from its pole.
        self.weight = nn.Parameter(torch.randn(channels, channels, kernel_size, kernel_size) / (kernel_size * channels**0.5))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, kernel_size={self.kernel_size}, bias={self.bias is not None}"

    def _waves(self, size: int, frequencies: int) -> torch.Tensor:
        """[frequencies, kernel_size]: the transform of each place of the kernel, its middle at 0."""
        place = torch.arange(self.kernel_size, device=self.weight.device) - self.kernel_size // 2
        frequency = torch.arange(frequencies, device=self.weight.device)
        # The phase is reduced in integers, so that large images lose nothing.
        # Neither transforms nor solutions are there in half types: from float32 on.
        dtype = accumulation(self.weight.dtype)
        phase = (frequency[:, None] * place % size).to(dtype) * (2 * math.pi / size)
        return torch.complex(phase.cos(), -phase.sin())

    def matrices(self, height: int, width: int) -> torch.Tensor:
        """The unitary matrix of each frequency, complex [height, width // 2 + 1, out, in] before channels are cut."""
        columns = width // 2 + 1
        waves = self._waves(height, height), self._waves(width, columns)
        transform = torch.einsum("oikl,hk,wl->hwoi", self.weight.to(waves[0].dtype), *waves)
        skew = transform - transform.mH
        identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        result: torch.Tensor = torch.linalg.solve(identity + skew, identity - skew)
        return result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4 or x.shape[1] != self.inputs:
            raise ValueError(f"x must have shape [B, {self.inputs}, H, W], got {tuple(x.shape)}")
        height, width = x.shape[2:]
        matrices = self.matrices(height, width)[..., : self.outputs, : self.inputs]
        spectrum = torch.fft.rfft2(x.to(accumulation(x.dtype))).permute(2, 3, 1, 0)
        y = torch.fft.irfft2((matrices @ spectrum).permute(3, 2, 0, 1), s=(height, width)).to(x.dtype)
        result: torch.Tensor = y if self.bias is None else y + self.bias[:, None, None]
        return result


class OrthogonalDownsample(nn.Module):
    """A strided convolution of patches that do not overlap, orthogonal; [B, in, H, W] -> [B, out, H / stride, W / stride].

    All its singular values are 1: it cuts the image into patches, which moves values only, and maps each by
    :func:`orthogonal_linear`.

    Args:
        inputs, outputs: channels.
        stride: side of a patch; it must divide height and width.
        bias: whether it has one.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 2, bias: bool = True):
        super().__init__()
        _check_sizes(inputs=inputs, outputs=outputs, stride=stride)
        self.patches = nn.PixelUnshuffle(stride)
        self.linear = orthogonal_linear(inputs * stride**2, outputs, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(self.patches(x).movedim(1, -1)).movedim(-1, 1)
        return result


class LipschitzCritic(nn.Module):
    """A 1-Lipschitz function of vectors; ``critic(x [B, inputs])`` -> [B].

    Args:
        inputs, width: sizes; ``width`` even for folds of pairs.
        depth: hidden layers.
        activation: a name of ``pyfold.lipschitz.ACTIVATIONS``.
    """

    def __init__(self, inputs: int, width: int = 64, depth: int = 3, activation: str = "maxmin"):
        super().__init__()
        _check_sizes(inputs=inputs, width=width, depth=depth)
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [orthogonal_linear(inputs if i == 0 else width, width), _activation(activation, width)]
        self.body = nn.Sequential(*layers, orthogonal_linear(width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x).squeeze(1)
        return result


class LipschitzConvCritic(nn.Module):
    """A 1-Lipschitz function of small images; ``critic(x [B, channels, size, size])`` -> [B].

    Args:
        channels, size: of the image; the side is divisible by ``2^levels``.
        width: channels at full resolution; each halving of the side doubles them.
        levels: halvings.
        activation: a name of ``pyfold.lipschitz.ACTIVATIONS``.
    """

    def __init__(self, channels: int, size: int, width: int = 16, levels: int = 2, activation: str = "maxmin"):
        super().__init__()
        _check_sizes(channels=channels, size=size, width=width, levels=levels)
        if size % 2**levels:
            raise ValueError(f"size must be divisible by {2**levels} for {levels} levels, got {size}")
        layers: list[nn.Module] = [OrthogonalConv2d(channels, width), _activation(activation, width)]
        for _ in range(levels):
            layers += [OrthogonalDownsample(width, 2 * width), _activation(activation, 2 * width)]
            width *= 2
            layers += [OrthogonalConv2d(width, width), _activation(activation, width)]
        self.body = nn.Sequential(*layers, nn.Flatten(), orthogonal_linear(width * (size // 2**levels) ** 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x).squeeze(1)
        return result


def kantorovich_rubinstein(critic: nn.Module, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """``E_p f - E_q f``; never more than the Wasserstein-1 distance, in expectation, for a 1-Lipschitz critic f fitted to other
    samples. The best f reaches it (Villani 2009, theorem 5.10).

    Args:
        critic: maps samples [B, ...] to values [B].
        p, q: samples [N, ...] and [M, ...].

    Returns:
        0-d.
    """
    result: torch.Tensor = critic(p).mean() - critic(q).mean()
    return result


def fit_critic(
    critic: nn.Module,
    p: torch.Tensor,
    q: torch.Tensor,
    *,
    steps: int = 300,
    batch: int = 512,
    lr: float = 0.02,
    seed: int = 0,
) -> list[float]:
    """Maximises :func:`kantorovich_rubinstein` over a 1-Lipschitz critic's parameters, by Adam with a rate that falls to 0.

    Args:
        critic: changed in place; nothing here makes it 1-Lipschitz, its layers must.
        p, q: samples [N, ...] and [M, ...] that batches are drawn from.
        steps, batch, lr: of Adam.
        seed: of the batches.

    Returns:
        The value on each step's batch.
    """
    _check_samples(p, q)
    _check_sizes(steps=steps, batch=batch)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(critic.parameters(), lr, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    values = []
    for _ in range(steps):
        rows = [torch.randint(len(x), (batch,), generator=generator).to(x.device) for x in (p, q)]
        value = kantorovich_rubinstein(critic, p[rows[0]], q[rows[1]])
        optimizer.zero_grad()
        (-value).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        values.append(value.detach())
    return torch.stack(values).tolist()


def _check_samples(p: torch.Tensor, q: torch.Tensor) -> None:
    for name, value in (("p", p), ("q", q)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {getattr(value, 'dtype', type(value).__name__)}")
    if p.dim() < 2 or p.shape[1:] != q.shape[1:]:
        raise ValueError(f"p and q must be samples [N, ...] of one shape, got {tuple(p.shape)} and {tuple(q.shape)}")
    for name, value in (("p", p), ("q", q)):
        if not value.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinity among {tuple(value.shape)} values")


@dataclass(frozen=True)
class Wasserstein1:
    """An estimate from below of a Wasserstein-1 distance.

    Attributes:
        value: ``E_p f - E_q f`` on samples that the critic was not fitted to.
        standard_error: of ``value``, for the critic as it is.
        history: the value on each fitting step's batch.
        critic: the fitted critic.
    """

    value: float
    standard_error: float
    history: list[float]
    critic: nn.Module


def wasserstein1(
    p: torch.Tensor, q: torch.Tensor, *, critic: nn.Module | None = None, steps: int = 300, batch: int = 512, lr: float = 0.02,
    seed: int = 0,
) -> Wasserstein1:  # fmt: skip
    """Estimates ``W_1(P, Q)`` from samples, from below: a critic is fitted to every second sample and measured on the others
    (Anil, Lucas and Grosse 2019, section 5.1).

    Args:
        p, q: samples [N, ...] and [M, ...], four or more of each.
        critic: 1-Lipschitz; by default a :class:`LipschitzCritic` of vectors with maxmin folds.
        steps, batch, lr, seed: as for :func:`fit_critic`; the seed is also that of the default critic.

    Returns:
        The estimate, its error, and the critic.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or range.

    Example:
        >>> p = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> found = wasserstein1(p + 3, p, steps=60)  # a shift by 3 along both axes: 3 sqrt(2)
        >>> bool(abs(found.value - 4.24) < 0.4)
        True
    """
    _check_samples(p, q)
    if min(len(p), len(q)) < 4:
        raise ValueError(f"p and q must hold at least 4 samples, got {len(p)} and {len(q)}")
    if critic is None:
        p, q = (x.float() if x.dtype.itemsize < 4 else x for x in (p, q))
        if p.dim() != 2:
            raise ValueError(f"critic is needed for samples that are not vectors, got shape {tuple(p.shape[1:])}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = LipschitzCritic(p.shape[1]).to(p)
    history = fit_critic(critic, p[0::2], q[0::2], steps=steps, batch=batch, lr=lr, seed=seed)
    with torch.no_grad():
        values = [critic(x[1::2]).double() for x in (p, q)]
    value = (values[0].mean() - values[1].mean()).item()
    error = sum(v.var().item() / len(v) for v in values) ** 0.5
    return Wasserstein1(value, error, history, critic)
