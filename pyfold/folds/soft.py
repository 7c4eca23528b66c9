"""abs with a round crease."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pyfold.folds.kind import LENGTH, FoldKind, one_value
from pyfold.folds.roots import root


def _no(**_: Any) -> bool:
    return False


KIND = FoldKind(
    name="soft",
    rule="sqrt(x^2 + e^2): abs with a round crease",
    source="the hyperbola with the asymptotes of |x|",
    tie="nowhere",
    bits="the input",
    reference=lambda z, epsilon: root(z * z + epsilon**2),
    creases=None,
    emit=None,
    width=one_value,
    parameters={"epsilon": replace(LENGTH, default=0.1)},
    preserves_norm=_no,
    preserves_volume=_no,
    unfolds=_no,
    composed_variants={"soft": {}},
)
