"""How good samples are: distances between two sets, each with a known value to check it by.

Sets of features are arrays [N, D]; what the features are (pixels, principal components, a network's last layer) is the
caller's choice and belongs beside every number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pyfold._requirements import need

Array = np.ndarray | torch.Tensor


def _features(name: str, value: Array) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim != 2 or len(array) < 2:
        raise ValueError(f"{name} must be features of shape [N, D] with N of at least 2, got shape {array.shape}")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity among {array.shape} values")
    return array


def _two_sets(real: Array, fake: Array) -> tuple[np.ndarray, np.ndarray]:
    x, y = _features("real", real), _features("fake", fake)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"real and fake must have as many features, got {x.shape[1]} and {y.shape[1]}")
    return x, y


def frechet_distance(real: Array, fake: Array) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` of the Gaussians fitted to two sets (Heusel et al. 2017, eq. 6)."""
    x, y = _two_sets(real, fake)
    means, covariances = zip(*((z.mean(0), np.atleast_2d(np.cov(z, rowvar=False))) for z in (x, y)), strict=True)
    # The trace of a root is the sum of the roots of the eigenvalues of a product of two semidefinite matrices.
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * roots)


def kernel_distance(real: Array, fake: Array) -> float:
    """The squared maximum mean discrepancy under ``k(x, y) = (<x, y> / D + 1)^3``, without bias (Binkowski et al. 2018,
    section 4), so that equal distributions give a mean of zero and single values may be negative."""
    x, y = _two_sets(real, fake)
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    within = sum((kernel(z, z).sum() - np.trace(kernel(z, z))) / (len(z) * (len(z) - 1)) for z in (x, y))
    return float(within - 2 * kernel(x, y).mean())


@dataclass(frozen=True)
class Manifolds:
    """How two sets cover each other, by balls that reach each point's k-th neighbour.

    Attributes:
        precision: share of generated points inside a ball of a real one (Kynkaanniemi et al. 2019, eq. 2).
        recall: share of real points inside a ball of a generated one.
        density: real balls around a generated point, over k; 1 for equal sets, and not bounded by it (Naeem et al. 2020, 6).
        coverage: share of real balls that hold a generated point (eq. 8).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(real: Array, fake: Array, neighbours: int = 5) -> Manifolds:
    """Precision, recall, density and coverage; ``neighbours`` is k, in [1, N) of the smaller set."""
    x, y = _two_sets(real, fake)
    if isinstance(neighbours, bool) or not isinstance(neighbours, int) or not 1 <= neighbours < min(len(x), len(y)):
        raise ValueError(f"neighbours must be an int in [1, {min(len(x), len(y))}), got {neighbours!r}")
    nearest = need("sklearn.neighbors").NearestNeighbors
    # A set's own point is its nearest neighbour, so the k-th other is one further.
    radius = [nearest(n_neighbors=neighbours + 1).fit(z).kneighbors(z)[0][:, -1] for z in (x, y)]
    distance = need("sklearn.metrics").pairwise_distances(x, y)
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
    """
    p = _features("probabilities", probabilities)
    if (p < 0).any() or not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError("probabilities must be rows that are not negative and sum to 1")
    marginal = p.mean(0)
    ratio = np.log(np.where(p > 0, p, 1)) - np.log(np.where(marginal > 0, marginal, 1))
    return float(np.exp((p * ratio).sum(1).mean()))


def jensen_shannon(p: Array, q: Array) -> float:
    """The Jensen-Shannon divergence of two histograms over the same bins, in nats: 0 to log 2. By scipy."""
    return float(need("scipy.spatial.distance", "examples").jensenshannon(np.asarray(p), np.asarray(q)) ** 2)


def wasserstein(real: Array, fake: Array) -> float:
    """The 1-Wasserstein distance of two sets, exact: by sorting for one feature, else by linear programming (scipy), which
    takes N of a few hundred. For more see :func:`pyfold.lipschitz.wasserstein1`."""
    x, y = _two_sets(real, fake)
    stats = need("scipy.stats", "examples")
    if x.shape[1] == 1:
        return float(stats.wasserstein_distance(x[:, 0], y[:, 0]))
    return float(stats.wasserstein_distance_nd(x, y))


@dataclass(frozen=True)
class ModeCoverage:
    """How samples fall onto equally likely round Gaussians: no one of these numbers says enough alone.

    Attributes:
        modes: Gaussians with a sample of high quality, within three standard deviations; ``of`` how many.
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
    """
    centres, samples = _two_sets(centres, samples)
    if not std > 0:
        raise ValueError(f"std must be positive, got {std}")
    distance, mode = need("sklearn.neighbors").NearestNeighbors(n_neighbors=1).fit(centres).kneighbors(samples)
    good = distance[:, 0] < 3 * std
    counts = np.bincount(mode[good, 0], minlength=len(centres))
    ceiling = float(torch.special.gammainc(torch.tensor(samples.shape[1] / 2).double(), torch.tensor(4.5).double()))
    share = np.append(counts, (~good).sum()) / len(samples)
    truth = np.append(np.full(len(centres), ceiling / len(centres)), 1 - ceiling)
    kl = float((share * np.log(np.where(share > 0, share, 1) / truth)).sum())
    return ModeCoverage(int((counts > 0).sum()), len(centres), float(good.mean()), ceiling, kl)
