"""How good samples are: distances between two sets, each with a known value to check it by.

Sets of features are arrays [N, D]; what the features are (pixels, principal components, a network's last layer) is the
caller's choice and belongs beside every number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pyfold._requirements import need

NDArray = np.ndarray[Any, np.dtype[Any]]
Array = NDArray | torch.Tensor


def _numbers(name: str, value: Array) -> NDArray:
    """float64, from any real dtype.

    Raises:
        TypeError: complex numbers, or none at all.
        ValueError: NaN or infinity.
    """
    if isinstance(value, torch.Tensor):
        kept = value.detach().cpu()
        array = (kept if kept.is_complex() else kept.double()).numpy()  # NumPy has no bfloat16
    else:
        array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity among {array.shape} values")
    return array


def _features(name: str, value: Array) -> NDArray:
    array = _numbers(name, value)
    if array.ndim != 2 or len(array) < 2 or not array.shape[1]:
        raise ValueError(f"{name} must be features of shape [N, D] with N of at least 2, got shape {array.shape}")
    return array


def _two_sets(real: Array, fake: Array) -> tuple[NDArray, NDArray]:
    x, y = _features("real", real), _features("fake", fake)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"real and fake must have as many features, got {x.shape[1]} and {y.shape[1]}")
    return x, y


def _root_of_covariance(x: NDArray) -> NDArray:
    """R [D, D] with ``R^T R`` the covariance: the triangle of the centred samples, with lines of zeros where N < D."""
    triangle = np.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r")
    return np.pad(triangle, ((0, x.shape[1] - len(triangle)), (0, 0)))


def frechet_distance(real: Array, fake: Array) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of the Gaussians fitted to two sets (Heusel et al. 2017, eq. 6).

    Never negative, and exact for any rank: with ``C1 = A^T A`` and ``C2 = B^T B`` the trace is ``min |A - Q B|^2`` over
    orthogonal Q, reached where ``A B^T = U S V^T`` and ``Q = U V^T`` (Bhatia, Jain and Lim 2019, theorem 1).

    Args:
        real, fake: features [N, D] and [M, D], of any real dtype; two samples or more of each.

    Raises:
        TypeError: complex features.
        ValueError: other shapes, NaN or infinity.

    Returns:
        Not negative; 0 where mean and covariance are equal.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)).double()
        >>> round(frechet_distance(x, x + 3.0), 6)  # the means are 3 apart in both features
        18.0
    """
    x, y = _two_sets(real, fake)
    a, b = _root_of_covariance(x), _root_of_covariance(y)
    u, _, v = np.linalg.svd(a @ b.T)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + ((a - u @ v @ b) ** 2).sum())


def kernel_distance(real: Array, fake: Array) -> float:
    """The squared maximum mean discrepancy under ``k(x, y) = (<x, y> / D + 1)^3``, without bias (Binkowski et al. 2018,
    section 4), so that equal distributions give a mean of zero and single values may be negative.

    Args:
        real, fake: features [N, D] and [M, D], two samples or more of each.

    Returns:
        The discrepancy; what is small depends on the features.

    Raises:
        TypeError: complex features.
        ValueError: other shapes, NaN or infinity.
    """
    x, y = _two_sets(real, fake)

    def kernel(a: NDArray, b: NDArray) -> NDArray:
        result: NDArray = (a @ b.T / a.shape[1] + 1) ** 3
        return result

    within = sum((kernel(z, z).sum() - np.trace(kernel(z, z))) / (len(z) * (len(z) - 1)) for z in (x, y))
    return float(within - 2 * kernel(x, y).mean())


@dataclass(frozen=True)
class Manifolds:
    """How two sets cover each other, by balls that reach each point's k-th neighbour.

    Attributes:
        precision: share of generated points inside a ball of a real one (Kynkaanniemi et al. 2019, eq. 2).
        recall: share of real points inside a ball of a generated one.
        density: real balls around a generated point, over k; 1 for equal sets without ties of distances, and not bounded by it
            (Naeem et al. 2020, eq. 6).
        coverage: share of real balls that hold a generated point (eq. 8).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def _distances(x: NDArray, y: NDArray) -> Iterator[NDArray]:
    """Euclidean distances [N, M] in blocks of rows, by differences: those of one pair are the same bits wherever they are
    taken, so that a neighbour lies exactly on the ball that reaches it, and nothing is lost far from the origin."""
    cdist = need("scipy.spatial.distance").cdist
    block = max(1, 2**24 // len(y))
    for i in range(0, len(x), block):
        yield cdist(x[i : i + block], y)


def manifold_metrics(real: Array, fake: Array, neighbours: int = 5) -> Manifolds:
    """Precision, recall, density and coverage; a ball's surface is outside (Kynkaanniemi et al. 2019; Naeem et al. 2020).

    Args:
        real, fake: features [N, D] and [M, D].
        neighbours: k, in [1, N) of the smaller set.

    Returns:
        The four shares.

    Raises:
        TypeError: complex features.
        ValueError: other shapes, NaN or infinity, or neighbours out of their range.
    """
    x, y = _two_sets(real, fake)
    if isinstance(neighbours, bool) or not isinstance(neighbours, int) or not 1 <= neighbours < min(len(x), len(y)):
        raise ValueError(f"neighbours must be an int in [1, {min(len(x), len(y))}), got {neighbours!r}")
    # A set's own point is its nearest neighbour, so the k-th other is one further.
    radius = [np.concatenate([np.partition(d, neighbours, 1)[:, neighbours] for d in _distances(z, z)]) for z in (x, y)]
    distance = np.concatenate(list(_distances(x, y)))
    in_real, in_fake = distance < radius[0][:, None], distance < radius[1][None, :]
    return Manifolds(
        precision=float(in_real.any(0).mean()),
        recall=float(in_fake.any(1).mean()),
        density=float(in_real.sum(0).mean() / neighbours),
        coverage=float(in_real.any(1).mean()),
    )


def classifier_score(probabilities: Array) -> float:
    """``exp E KL(p(y | x) || p(y))``, the Inception score of any classifier (Salimans et al. 2016, section 4).

    Args:
        probabilities: [N, classes], each row a classifier's distribution for one sample.

    Returns:
        Between 1 and the number of classes; the latter where every class is met as often and recognised without doubt.

    Raises:
        ValueError: rows that are negative or do not sum to 1.
    """
    p = _features("probabilities", probabilities)
    if (p < 0).any() or not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError("probabilities must be rows that are not negative and sum to 1")
    marginal = p.mean(0)
    ratio = np.log(np.where(p > 0, p, 1)) - np.log(np.where(marginal > 0, marginal, 1))
    return float(np.exp((p * ratio).sum(1).mean()))


def jensen_shannon(p: Array, q: Array) -> float:
    """The Jensen-Shannon divergence of two histograms over the same bins, in nats: 0 to log 2 (Lin 1991, eq. 4.1).

    Args:
        p, q: [bins], counts or shares: not negative, not all 0; each is divided by its sum.

    Raises:
        TypeError: complex numbers.
        ValueError: other shapes, negative, all zero or not finite.

    Returns:
        In nats; 0 for equal shares, log 2 for histograms that share no bin.
    """
    shares = []
    for name, value in (("p", p), ("q", q)):
        array = _numbers(name, value)
        if array.ndim != 1 or (array < 0).any() or not array.sum() > 0:
            raise ValueError(f"{name} must be a histogram [bins] of values that are not negative and not all 0, got {value}")
        shares.append(array / array.sum())
    if shares[0].shape != shares[1].shape:
        raise ValueError(f"p and q must have the same bins, got {len(shares[0])} and {len(shares[1])}")
    middle = (shares[0] + shares[1]) / 2
    parts = [s * np.log(np.where(s > 0, s, 1) / np.where(s > 0, middle, 1)) for s in shares]
    return float(max(0.0, sum(part.sum() for part in parts) / 2))


def wasserstein(real: Array, fake: Array) -> float:
    """The 1-Wasserstein distance of two sets, exact: by sorting for one feature, else by linear programming (scipy), which
    takes N of a few hundred (Peyre and Cuturi 2019, eq. 2.11 and 2.37). For more see :func:`pyfold.lipschitz.wasserstein1`.

    Args:
        real, fake: features [N, D] and [M, D].

    Returns:
        The distance, in the units of the features.

    Raises:
        TypeError: complex features.
        ValueError: other shapes, NaN or infinity.
    """
    x, y = _two_sets(real, fake)
    stats = need("scipy.stats", "examples")
    if x.shape[1] == 1:
        return float(stats.wasserstein_distance(x[:, 0], y[:, 0]))
    return float(stats.wasserstein_distance_nd(x, y))


@dataclass(frozen=True)
class ModeCoverage:
    """How samples fall onto equally likely round Gaussians: no one of these numbers says enough alone.

    Attributes:
        modes: Gaussians near which at least one sample is of high quality, within three standard deviations: a single one is
            enough, so read it with the share; ``of`` how many.
        high_quality: share of samples of high quality; ``ceiling``: that of a perfect sampler, 1 - exp(-4.5) in the plane.
        kl: ``KL(samples || truth)`` over one bin for each mode and one for what is near none, in nats; 0 is perfect.
    """

    modes: int
    of: int
    high_quality: float
    ceiling: float
    kl: float


def mode_coverage(samples: Array, centres: Array, std: float) -> ModeCoverage:
    """Modes, quality and balance together, after Dumoulin et al. 2017 and Lin et al. 2018 (PacGAN).

    Args:
        samples: [N, D].
        centres: [modes, D].
        std: the standard deviation of each, positive.

    Returns:
        The counts and shares.

    Raises:
        ValueError: std that is not positive and finite, or sets of other shapes.
    """
    centres, samples = _two_sets(centres, samples)
    if not 0 < std < float("inf"):
        raise ValueError(f"std must be positive and finite, got {std}")
    distance, mode = need("sklearn.neighbors").NearestNeighbors(n_neighbors=1).fit(centres).kneighbors(samples)
    good = distance[:, 0] < 3 * std
    counts = np.bincount(mode[good, 0], minlength=len(centres))
    ceiling = float(torch.special.gammainc(torch.tensor(samples.shape[1] / 2).double(), torch.tensor(4.5).double()))
    share = np.append(counts, (~good).sum()) / len(samples)
    truth = np.append(np.full(len(centres), ceiling / len(centres)), 1 - ceiling)
    kl = float((share * np.log(np.where(share > 0, share, 1) / truth)).sum())
    return ModeCoverage(int((counts > 0).sum()), len(centres), float(good.mean()), ceiling, kl)
