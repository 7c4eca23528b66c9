"""How a network folds space: its linear regions along a line and in a plane, the space-folding measure, fold depth.

Every number here comes from the creases of the activations (``ACTIVATION_CREASES``), read by hooks, so any module will do
whose activations are modules. The exact forms find every crease in float64 and then check that the network is affine between
them; the sampled forms (``samples=``) look at points of a segment and take any network.
"""

from pyfold.folding.creases import ACTIVATION_CREASES, Creases
from pyfold.folding.lines import Line, line, lines, space_folding
from pyfold.folding.networks import sawtooth_network, tent_network
from pyfold.folding.planes import Plane, plane
from pyfold.folding.probe import Layer
from pyfold.folding.report import (
    ClassFolding,
    FoldingCallback,
    FoldingReport,
    LayerFolding,
    class_pairs,
    fold_depth,
    folding_between_classes,
    folding_report,
)

__all__ = [
    "ACTIVATION_CREASES",
    "ClassFolding",
    "Creases",
    "FoldingCallback",
    "FoldingReport",
    "Layer",
    "LayerFolding",
    "Line",
    "Plane",
    "class_pairs",
    "fold_depth",
    "folding_between_classes",
    "folding_report",
    "line",
    "lines",
    "plane",
    "sawtooth_network",
    "space_folding",
    "tent_network",
]
