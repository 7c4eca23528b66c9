"""How folded a network is: one report, between classes, and while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyfold.folding.lines import check_samples, lines
from pyfold.folding.probe import Call, Layer, Probe


@dataclass(frozen=True)
class LayerFolding:
    """One activation of a network, over all paths.

    Attributes:
        layer: which.
        crossed: mean number of its creases that a path crosses.
        chi: mean space-folding measure of the network up to and including it.
        depth: mean number of its creases between an end point and the identity.
    """

    layer: Layer
    crossed: float
    chi: float
    depth: float


@dataclass(frozen=True)
class FoldingReport:
    """How a network folds the segments between pairs of inputs.

    Attributes:
        chi: the space-folding measure of each pair, float64 [pairs].
        regions: activation regions that each segment meets, int64 [pairs].
        crossed: creases crossed on each segment, int64 [pairs].
        depth: creases between each end point and the identity, int64 [pairs, 2].
        layers: the same, layer by layer.
        exact: whether every crease was found.
        samples: how many points of each segment were looked at instead; None where every crease was found.
    """

    chi: torch.Tensor
    regions: torch.Tensor
    crossed: torch.Tensor
    depth: torch.Tensor
    layers: tuple[LayerFolding, ...]
    samples: int | None

    @property
    def exact(self) -> bool:
        return self.samples is None

    def scalars(self) -> dict[str, float]:
        """What a log keeps."""
        return {
            "chi": self.chi.mean().item(),
            "chi_max": self.chi.max().item(),
            "regions": self.regions.double().mean().item(),
            "crossed": self.crossed.double().mean().item(),
            "depth": self.depth.double().mean().item(),
        }

    def __str__(self) -> str:
        means = self.scalars()
        how = "exact" if self.exact else f"{self.samples} samples each"
        rows = [
            f"folding of {len(self.chi)} segments ({how})",
            f"  chi {means['chi']:.4f} (largest {means['chi_max']:.4f}), regions {means['regions']:.1f}, "
            f"creases crossed {means['crossed']:.1f}, fold depth {means['depth']:.1f}",
            f"  {'layer':24} {'kind':12} {'units':>7} {'crossed':>9} {'depth':>9} {'chi up to it':>13}",
        ]
        for entry in self.layers:
            name, kind = entry.layer.name or "(the model)", entry.layer.kind
            rows.append(
                f"  {name:24} {kind:12} {entry.layer.units:7d} {entry.crossed:9.2f} {entry.depth:9.2f} {entry.chi:13.4f}"
            )
        return "\n".join(rows)


def fold_depth(model: nn.Module, x: torch.Tensor, *, call: Call | None = None) -> torch.Tensor:
    """How many folds each input lies under: creases between it and the region where the activation is the identity.

    For abs and ReLU these are the negative inputs, for sorts the inversions, for a box or a periodic fold the walls on the way
    home.

    Args:
        model, call: as for :func:`line`.
        x: [B, ...].

    Returns:
        int64 [B, layers].

    Raises:
        TypeError: x is no floating-point tensor.
    """
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    probe, x = Probe(model, call), x.detach().cpu().double()
    parts = []
    count = probe.batch(x[:1])
    for first in range(0, len(x), count):
        part = x[first : first + count]
        at = probe.read(part)
        depth = torch.zeros(len(part), len(at.layers), dtype=torch.int64)
        for layer, creases in zip(at.layer_of, at.creases, strict=True):
            depth[:, layer] += creases.depth().cpu()
        parts.append(depth)
    return torch.cat(parts)


def folding_report(
    model: nn.Module,
    pairs: tuple[torch.Tensor, torch.Tensor],
    *,
    samples: int | None = None,
    call: Call | None = None,
) -> FoldingReport:
    """How a network folds the segments between pairs of inputs (Lewandowski et al. 2025, arXiv 2502.09954).

    Args:
        model: any module with ReLU-like activations or folds (``ACTIVATION_CREASES``); it is copied, not changed.
        pairs: (a, b), each [pairs, ...].
        samples: look at so many points of each segment instead of finding every crease; needed where something bends (smooth
            activations, normalisation by the sample, pooling by the maximum), and faster for large networks.
        call: ``call(model, x)`` for models that take more than x.

    Raises:
        TypeError, ValueError: as for :func:`line`.

    Returns:
        The measures of all pairs.

    Example:
        >>> ends = torch.zeros(1, 1), torch.ones(1, 1)
        >>> round(folding_report(pyfold.folding.tent_network(2), ends).chi.item(), 3)  # three creases, at most two apart
        0.333
    """
    if not isinstance(pairs, (tuple, list)) or len(pairs) != 2:
        raise TypeError(f"pairs must be (a, b), got {type(pairs).__name__}")
    a, b = pairs
    traced = lines(model, a, b, samples=samples, call=call, patterns=False)
    depth = fold_depth(model, torch.cat([a, b]), call=call)
    crossed = torch.stack([one.crossed for one in traced])
    layers = tuple(
        LayerFolding(
            layer,
            crossed=crossed[:, i].double().mean().item(),
            chi=sum(one.chi_up_to(i + 1) for one in traced) / len(traced),
            depth=depth[:, i].double().mean().item(),
        )
        for i, layer in enumerate(traced[0].layers)
    )
    return FoldingReport(
        chi=torch.tensor([one.chi for one in traced], dtype=torch.float64),
        regions=torch.tensor([one.regions for one in traced]),
        crossed=crossed.sum(1),
        depth=depth.sum(1).reshape(2, -1).T.contiguous(),
        layers=layers,
        samples=samples,
    )


def class_pairs(labels: torch.Tensor, first: int, second: int, pairs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of random pairs, one sample of class ``first`` and another of class ``second``; int64 [pairs] each.

    Args:
        labels: integers [N].
        first, second: classes with two or more samples if they are one, else one or more.
        pairs: how many.
        seed: of the choice.

    Returns:
        (of the first class, of the second).

    Raises:
        ValueError: no two different samples of the classes.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = ((labels.cpu() == c).nonzero().squeeze(1) for c in (first, second))
    if len(left) == 0 or len(right) == 0 or (first == second and len(left) < 2):
        raise ValueError(f"labels must hold two different samples for the classes {first} and {second}")
    i = torch.randint(len(left), (pairs,), generator=generator)
    if first == second:
        j = (i + torch.randint(1, len(left), (pairs,), generator=generator)) % len(left)
    else:
        j = torch.randint(len(right), (pairs,), generator=generator)
    return left[i], right[j]


@dataclass(frozen=True)
class ClassFolding:
    """Mean chi from samples of one class (row) to samples of another (column).

    Attributes:
        classes: the labels.
        chi: float64 [classes, classes]; not symmetric, as chi is not.
    """

    classes: tuple[int, ...]
    chi: torch.Tensor

    @property
    def within(self) -> float:
        return self.chi.diagonal().mean().item()

    @property
    def between(self) -> float:
        n = len(self.classes)
        return ((self.chi.sum() - self.chi.diagonal().sum()) / (n * (n - 1))).item() if n > 1 else float("nan")

    def __str__(self) -> str:
        rows = [f"chi within classes {self.within:.4f}, between classes {self.between:.4f}", "from\\to"]
        rows[1] += "".join(f"{c:8d}" for c in self.classes)
        rows += [f"{c:7d}" + "".join(f"{v:8.4f}" for v in row.tolist()) for c, row in zip(self.classes, self.chi, strict=True)]
        return "\n".join(rows)


def folding_between_classes(
    model: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    pairs: int = 8,
    seed: int = 0,
    samples: int | None = None,
    call: Call | None = None,
) -> ClassFolding:
    """The space-folding measure between and within the classes of a data set (Lewandowski et al. 2025, arXiv 2502.09954).

    Args:
        model, samples, call: as for :func:`folding_report`.
        x: [N, ...].
        labels: integers [N], two or more samples of each class.
        pairs: random pairs for each of the classes squared.
        seed: of the pairs.

    Returns:
        The measures between and within classes.

    Raises:
        TypeError, ValueError: as for :func:`line`; labels of another shape, or pairs below 1.
    """
    if not isinstance(labels, torch.Tensor) or labels.dim() != 1 or labels.is_floating_point() or len(labels) != len(x):
        raise ValueError(f"labels must be integers of shape ({len(x)},)")
    if isinstance(pairs, bool) or not isinstance(pairs, int) or pairs < 1:
        raise ValueError(f"pairs must be an int from 1, got {pairs!r}")
    classes = tuple(sorted(set(labels.tolist())))
    ends = [class_pairs(labels, c, d, pairs, seed) for c in classes for d in classes]
    i, j = (torch.cat(side).to(x.device) for side in zip(*ends, strict=True))
    traced = lines(model, x[i], x[j], samples=samples, call=call, patterns=False)
    chi = torch.tensor([one.chi for one in traced], dtype=torch.float64)
    return ClassFolding(classes, chi.reshape(len(classes), len(classes), pairs).mean(2))


class FoldingCallback:
    """Reports the folding of one of a trainer's networks with the scalars of its run.

    Args:
        pairs: (a, b), each [pairs, ...], inputs of the network.
        module: its name in ``trainer.modules``: ``"model"`` or ``"ema"`` of a diffusion model, ``"discriminator"`` of a GAN.
        samples, call: as for :func:`folding_report`; a diffusion model needs ``call=lambda model, x: model(x, t)``.

    ``reports`` holds (step, report) of all calls.

    Example:
        ``train(config, out, callbacks=[FoldingCallback((a, b), "discriminator")])``
    """

    def __init__(
        self,
        pairs: tuple[torch.Tensor, torch.Tensor],
        module: str = "model",
        *,
        samples: int | None = None,
        call: Call | None = None,
    ):
        check_samples(samples)
        self.pairs, self.module, self.samples, self.call = pairs, module, samples, call
        self.reports: list[tuple[int, FoldingReport]] = []

    def __call__(self, trainer: Any, step: int) -> Mapping[str, float]:
        if self.module not in trainer.modules:
            modules = ", ".join(map(repr, trainer.modules))
            raise ValueError(f"module must be one of the trainer's, {modules}, got {self.module!r}")
        report = folding_report(trainer.modules[self.module], self.pairs, samples=self.samples, call=self.call)
        self.reports.append((step, report))
        return {f"folding/{name}": value for name, value in report.scalars().items()}
