"""Training objectives of models that sample in one or a few steps: each looks at two times of a sample's path."""

from __future__ import annotations

from pyfold.diffusion.objectives.any_flow import AnyFlowLoss, any_flow_weighting
from pyfold.diffusion.objectives.consistency import ECMLoss, NoisedPair
from pyfold.diffusion.objectives.continuous import SCMLoss
from pyfold.diffusion.objectives.mean_flow import MeanFlowLoss, with_next_time
from pyfold.diffusion.objectives.shortcut import ShortcutLoss
from pyfold.diffusion.objectives.two_times import NoisedInterval

__all__ = [
    "AnyFlowLoss",
    "ECMLoss",
    "MeanFlowLoss",
    "NoisedInterval",
    "NoisedPair",
    "SCMLoss",
    "ShortcutLoss",
    "any_flow_weighting",
    "with_next_time",
]
