"""What a discriminator sees: images augmented differentiably, and samples in packs.

Each image's augmentation is a function of its seed, as all randomness here: it needs no generator's state and is the same on
one process as on many.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyfold.ops import randn
from pyfold.ops._checks import check_tensor

#: The stream of ``pyfold.randn`` that augmentations are drawn from.
AUGMENT_STREAM = 18


def _spread(value: torch.Tensor) -> torch.Tensor:
    return value[:, None, None, None]


def brightness(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Adds ``u - 1/2`` to an image."""
    return x + _spread(u[:, 0] - 0.5)


def saturation(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Scales the distance of the channels from their mean by ``2 u``; a grey image is left alone."""
    mean = x.mean(1, keepdim=True)
    return mean + _spread(2 * u[:, 0]) * (x - mean)


def contrast(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Scales the distance of an image from its mean by ``u + 1/2``."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + _spread(u[:, 0] + 0.5) * (x - mean)


def _lines(size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(size, device=like.device)[None]


def translation(x: torch.Tensor, u: torch.Tensor, ratio: float = 0.125) -> torch.Tensor:
    """Shifts by whole pixels, up to ``ratio`` of a side, and fills with 0."""
    height, width = x.shape[2:]
    result = x
    for dim, size, part in ((2, height, u[:, 0]), (3, width, u[:, 1])):
        reach = int(size * ratio + 0.5)
        source = _lines(size, x) + ((2 * reach + 1) * part).floor().clamp(max=2 * reach).long()[:, None] - reach
        shape = (len(x), 1, size, 1) if dim == 2 else (len(x), 1, 1, size)
        inside = ((source >= 0) & (source < size)).view(shape)
        rows = source.clamp(0, size - 1).view(shape).expand_as(result)
        result = result.gather(dim, rows) * inside
    return result


def cutout(x: torch.Tensor, u: torch.Tensor, ratio: float = 0.5) -> torch.Tensor:
    """Sets a rectangle of ``ratio`` of each side, with its centre anywhere, to 0."""
    masks = []
    for size, part in zip(x.shape[2:], (u[:, 0], u[:, 1]), strict=True):
        length = int(size * ratio + 0.5)
        first = ((size + 1 - length % 2) * part).floor().long()[:, None] - length // 2
        masks.append((_lines(size, x) >= first) & (_lines(size, x) < first + length))
    return x * ~(masks[0][:, None, :, None] & masks[1][:, None, None, :])


#: name -> transforms; each takes images and uniforms [B, 2] and is linear in the image.
POLICIES = {
    "color": (brightness, saturation, contrast),
    "translation": (translation,),
    "cutout": (cutout,),
}


class Augment(torch.nn.Module):
    """Differentiable augmentation of real and generated images alike, with a fixed or an adaptive probability.

    The transforms are those of DiffAugment (Zhao et al. 2020). With ``target=None`` every one of the policy is applied to every
    image, as there. With a target, each is applied to each image with probability p, and :meth:`update` moves p so that the
    overfitting heuristic ``r = E sign(D(x))`` over real images comes to the target: that is the controller of ADA (Karras et
    al. 2020, eq. 1) and not its pipeline of eighteen transforms, which is not here. p is a buffer and so part of a checkpoint.

    Args:
        policy: names of ``POLICIES`` with commas between them.
        target: of the heuristic, 0.6 in the paper, or None.
        images: how many real images p takes from 0 to 1 at most; 500 000 in the paper.
    """

    p: torch.Tensor

    def __init__(self, policy: str = "color,translation,cutout", *, target: float | None = None, images: int = 500_000):
        super().__init__()
        names = [name.strip() for name in policy.split(",")]
        for name in names:
            if name not in POLICIES:
                raise ValueError(f"policy must be names of {', '.join(POLICIES)} with commas between them, got {policy!r}")
        if target is not None and not 0 < target < 1:
            raise ValueError(f"target must be between 0 and 1, or None, got {target}")
        if images < 1:
            raise ValueError(f"images must be at least 1, got {images}")
        self.transforms = [transform for name in names for transform in POLICIES[name]]
        self.target, self.images = target, images
        self.register_buffer("p", torch.tensor(1.0 if target is None else 0.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor, seeds: torch.Tensor | Sequence[int], step: int = 0) -> torch.Tensor:
        """Images like x.

        Args:
            x: [B, C, H, W]; 0 is what shifts and cuts leave.
            seeds: int64 [B].
            step: tells apart the draws of one seed: real from generated, discriminator's turn from generator's.
        """
        check_tensor("x", x)
        if x.dim() != 4:
            raise ValueError(f"x must be images [B, C, H, W], got shape {tuple(x.shape)}")
        normals = randn(seeds, (len(self.transforms), 3), stream=AUGMENT_STREAM, step=step, device=x.device)
        uniforms = torch.special.ndtr(normals)
        for i, transform in enumerate(self.transforms):
            chosen = uniforms[:, i, 2] < self.p
            x = torch.where(_spread(chosen), transform(x, uniforms[:, i, :2]), x)
        return x

    @torch.no_grad()
    def update(self, sign: torch.Tensor, count: int) -> None:
        """Moves p by ``count / images`` towards more augmentation if ``sign`` is above the target, else towards less.

        Args:
            sign: mean of sign(D(x)) over real images (0-d); for a relativistic discriminator of sign(D(x) - D(G(z))).
            count: real images since the last call.
        """
        if self.target is not None:
            direction = torch.sign(sign.to(self.p) - self.target)
            self.p.add_(direction * (count / self.images)).clamp_(0, 1)


def pack(x: torch.Tensor, size: int) -> torch.Tensor:
    """Samples [B, C, ...] in packs [B / size, size C, ...], which a discriminator judges as one (Lin et al. 2018, PacGAN).

    Raises:
        ValueError: B is no multiple of ``size``.
    """
    if size < 1 or len(x) % size:
        raise ValueError(f"size must divide the batch of {len(x)}, got {size}")
    return x.reshape(len(x) // size, size * x.shape[1], *x.shape[2:])
