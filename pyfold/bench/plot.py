"""Results as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyfold._requirements import need
from pyfold.bench.measure import Measured
from pyfold.bench.report import PEERS
from pyfold.bench.rows import GROUPS
from pyfold.train.files import write

_COLOURS = {"eager": "#2a6f97", "compile": "#c9622e", "diffusers": "#6b8f3c", "k-diffusion": "#8d6a9f", "torchlip": "#b08d2e",
            "adapter": "#7a7a7a"}  # fmt: skip


def plot(rows: Sequence[Measured], path: Path) -> None:
    """How many times longer each peer takes, one panel a group: to the right of the line at 1, pyfold is faster."""
    need("matplotlib", "pictures")
    from matplotlib.figure import Figure

    rows = [r for r in rows if r.ratios]
    groups = [g for g in GROUPS if any(r.group == g for r in rows)]
    if not groups:
        raise ValueError("there is nothing to draw: no row has a peer")
    sizes = [sum(r.group == g for r in rows) for g in groups]
    figure = Figure(figsize=(9, 1 + 0.19 * sum(sizes) + 0.5 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=[s + 1.5 for s in sizes])[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        of_group = [r for r in rows if r.group == group][::-1]
        labels = [f"{r.row}  {r.size}{'' if r.dtype == 'float32' else '  ' + r.dtype}" for r in of_group]
        for peer in PEERS:
            points = [(r.ratios[peer], i) for i, r in enumerate(of_group) if peer in r.ratios]
            if points:
                axes.scatter(*zip(*points, strict=True), s=22, color=_COLOURS[peer], label=peer, zorder=3)
        axes.axvline(1, color="#333333", linewidth=1)
        axes.set_yticks(range(len(labels)), labels, fontsize=6.5)
        axes.set_ylim(-0.7, len(labels) - 0.3)
        axes.grid(axis="x", which="both", color="#e3e3e3", linewidth=0.6)
        axes.set_title(GROUPS[group], loc="left", fontsize=9)
        axes.set_xscale("log")
        axes.legend(fontsize=7, loc="upper right", framealpha=0.9)
    panels[-1].set_xlabel("times longer than pyfold takes (log scale)", fontsize=8)
    write(path, lambda file: figure.savefig(file, dpi=150))
