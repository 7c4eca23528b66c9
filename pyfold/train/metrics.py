"""How good samples are: class shares and a Frechet distance for labelled images, modes for Gaussians in the plane."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pyfold._requirements import need
from pyfold.gan.metrics import frechet_distance, mode_coverage
from pyfold.train.data import Data

_FEATURES = 32


def image_metrics(data: Data, samples: torch.Tensor) -> dict[str, Any]:
    """Shares of the classes by a support vector machine trained on the real images, and the Frechet distance in the space of
    their first principal components, beside that of one half of the real images from the other."""
    samples_of_data, labels = data.reference()
    real = samples_of_data.flatten(1).numpy()
    fake = samples.flatten(1).float().cpu().numpy()
    result: dict[str, Any] = {"samples": len(fake)}
    components = min(_FEATURES, real.shape[1], len(real) // 8)
    if components > 1:  # a handful of images says nothing of a covariance
        project = need("sklearn.decomposition").PCA(components, random_state=0).fit(real).transform
        halves = project(real[0::2]), project(real[1::2])
        result["frechet"] = frechet_distance(project(real), project(fake))
        result["frechet_between_halves_of_the_data"] = frechet_distance(*halves)
    if labels is not None and len(np.unique(labels.numpy())) > 1:
        judge = need("sklearn.svm").SVC().fit(real, labels.numpy())
        shares = np.bincount(judge.predict(fake), minlength=int(labels.max()) + 1) / len(fake)
        names = data.classes or [str(label) for label in range(len(shares))]
        result["class_share"] = {name: round(float(share), 4) for name, share in zip(names, shares, strict=False)}
        result["classes"] = int((shares > 0).sum())
    return result


def mode_metrics(data: Data, samples: torch.Tensor) -> dict[str, Any]:
    """Modes, quality and balance of samples of Gaussians in the plane."""
    if data.centres is None:
        raise ValueError(f"data must be Gaussians with centres, got {data.name}")
    return {"samples": len(samples), **asdict(mode_coverage(samples, data.centres, data.std))}


def measure(data: Data, samples: torch.Tensor) -> dict[str, Any]:
    return image_metrics(data, samples) if data.is_image else mode_metrics(data, samples)
