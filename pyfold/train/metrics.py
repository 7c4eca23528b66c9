"""How good samples are: class shares and a Frechet distance for labelled images, modes for Gaussians in the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyfold._requirements import need
from pyfold.train.data import Data

_FEATURES = 32


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Frechet distance of Gaussians fitted to two sets of features [N, D] (Heusel et al. 2017, eq. 6)."""
    means, covariances = zip(*((z.mean(0), np.cov(z, rowvar=False)) for z in (x, y)), strict=True)
    # The trace of a root is the sum of the roots of the eigenvalues of a product of two semidefinite matrices.
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + sum(np.trace(c) for c in covariances) - 2 * roots)


def image_metrics(data: Data, samples: torch.Tensor) -> dict[str, Any]:
    """Shares of the classes by a support vector machine trained on the real images, and the Frechet distance in the space of
    their first principal components, beside that of one half of the real images from the other."""
    real = data.samples.flatten(1).numpy()
    fake = samples.flatten(1).cpu().numpy()
    result: dict[str, Any] = {"samples": len(fake)}
    components = min(_FEATURES, real.shape[1], len(real) // 8)
    if components > 1:  # a handful of images says nothing of a covariance
        project = need("sklearn.decomposition").PCA(components, random_state=0).fit(real).transform
        halves = project(real[0::2]), project(real[1::2])
        result["frechet"] = frechet_distance(project(real), project(fake))
        result["frechet_between_halves_of_the_data"] = frechet_distance(*halves)
    if data.labels is not None:
        judge = need("sklearn.svm").SVC().fit(real, data.labels.numpy())
        shares = np.bincount(judge.predict(fake), minlength=int(data.labels.max()) + 1) / len(fake)
        result["class_share"] = {str(label): round(float(share), 4) for label, share in enumerate(shares)}
        result["classes"] = int((shares > 0).sum())
    return result


def mode_metrics(data: Data, samples: torch.Tensor) -> dict[str, Any]:
    """Modes with a sample within three standard deviations, and the fraction of all samples that are so near to one."""
    distance = torch.cdist(samples.cpu(), data.centres)
    nearest, mode = distance.min(1)
    good = nearest < 3 * data.std
    covered = torch.bincount(mode[good], minlength=len(data.centres)) > 0
    return {
        "samples": len(samples),
        "modes": int(covered.sum()),
        "of": len(data.centres),
        "high_quality": float(good.float().mean()),
    }


def measure(data: Data, samples: torch.Tensor) -> dict[str, Any]:
    return image_metrics(data, samples) if data.is_image else mode_metrics(data, samples)
