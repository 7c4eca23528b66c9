"""Pictures of folding: crease patterns, a folded plane, a tent network unfolded. Each returns a matplotlib Figure.

``figure.savefig(path)`` writes one; ``axes=`` draws into a figure of your own. Needs matplotlib, which the
extra ``pictures`` brings.
"""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyfold.folding.lines import line
from pyfold.folding.networks import tent_network
from pyfold.folding.planes import Plane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

PAPER, INK = "#fbfaf6", "#26242b"
#: Creases of the first layers, then of later ones; told apart also without colour, by their lightness.
LAYER_COLOURS = ("#1d2a5b", "#b3263a", "#0f8b8d", "#e08e1b", "#7a4fa3", "#5c9e31", "#d76aa0", "#7d7a75")


def _matplotlib(name: str) -> Any:
    """matplotlib, with one of its modules loaded."""
    from pyfold._requirements import need

    need(f"matplotlib.{name}", "pictures")
    return need("matplotlib")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure on paper, apart from pyplot's global state."""
    figure: Figure = _matplotlib("figure").figure.Figure(figsize=(width, height), facecolor=PAPER, layout="constrained")
    return figure


def _bare(axes: Axes) -> None:
    axes.set_facecolor(PAPER)
    axes.tick_params(colors=INK, labelsize=8, length=3)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_linewidth(0.6)


def layer_colour(layer: int) -> str:
    return LAYER_COLOURS[layer % len(LAYER_COLOURS)]


def _affine_slopes(plane: Plane) -> np.ndarray:
    """[regions, 2]: the gradient of the first output in each region."""
    slopes = []
    for polygon, outputs in zip(plane.polygons, plane.outputs, strict=True):
        basis = polygon - polygon.mean(0)
        slopes.append(np.linalg.lstsq(basis, outputs[:, 0] - outputs[:, 0].mean(), rcond=None)[0])
    return np.array(slopes)


def _gradient_colours(slopes: np.ndarray) -> list[tuple[float, float, float]]:
    """Pastels: the hue is the direction of a gradient, the strength its length."""
    length = np.hypot(*slopes.T)
    strength = np.sqrt(length / max(np.quantile(length, 0.95), 1e-300)).clip(0, 1)
    hue = (np.arctan2(slopes[:, 1], slopes[:, 0]) / (2 * np.pi)) % 1
    return [colorsys.hls_to_rgb(h, 0.965 - 0.2 * s, 0.65 * s) for h, s in zip(hue, strength, strict=True)]


def crease_pattern(plane: Plane, axes: Axes | None = None) -> Figure | SubFigure:
    """The regions of a plane and the creases between them.

    A region's colour is the direction in which the first output grows there (strong where it grows fast); a crease's colour is
    the layer that folds there, the first layers with the boldest lines.
    """
    collections = _matplotlib("collections").collections
    figure = new_figure(7, 7) if axes is None else axes.figure
    axes = figure.add_subplot() if axes is None else axes
    _bare(axes)
    colours = _gradient_colours(_affine_slopes(plane))
    axes.add_collection(collections.PolyCollection(plane.polygons, facecolors=colours, edgecolors=colours, linewidths=0.3))
    for layer in reversed(range(len(plane.layers))):
        own = plane.creases[plane.crease_layers == layer]
        if len(own):
            axes.add_collection(
                collections.LineCollection(
                    own, colors=layer_colour(layer), linewidths=max(1.7 - 0.35 * layer, 0.5), capstyle="round",
                    label=f"layer {layer + 1}",
                )
            )  # fmt: skip
    p0, p1, q0, q1 = plane.bounds
    axes.set(xlim=(p0, p1), ylim=(q0, q1), aspect="equal")
    axes.set_title(f"{plane.regions} regions, {len(plane.layers)} layers", color=INK, fontsize=10)
    if len(plane.creases):
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="upper right", fontsize=8, framealpha=0.85, edgecolor="none")
    return figure


def _place_colours(points: np.ndarray, bounds: tuple[float, float, float, float]) -> list[tuple[float, float, float]]:
    """A colour for each place of the plane, so that it is known again after folding."""
    p0, p1, q0, q1 = bounds
    x, y = (points[:, 0] - p0) / (p1 - p0), (points[:, 1] - q0) / (q1 - q0)
    hue = (0.5 + np.arctan2(y - 0.5, x - 0.5) / (2 * np.pi)) % 1
    radius = np.hypot(x - 0.5, y - 0.5) / 0.7
    return [colorsys.hls_to_rgb(h, 0.78 - 0.33 * r, 0.35 + 0.4 * r) for h, r in zip(hue, radius.clip(0, 1), strict=True)]


def folded_plane(plane: Plane) -> Figure:
    """A plane before and after a network has folded it, each region in its colour, on translucent paper.

    The network's outputs must have two values or more; of more, the two directions that vary most are drawn (principal
    components over the corners).
    """
    values = plane.outputs[0].shape[1]
    if values < 2:
        raise ValueError(f"plane must be of a network with two outputs or more, got {values}")
    collections = _matplotlib("collections").collections
    corners = np.concatenate(plane.outputs)
    axes_of_image = np.eye(2)
    if values > 2:
        axes_of_image = np.linalg.svd(corners - corners.mean(0), full_matrices=False)[2][:2].T
    images = [outputs @ axes_of_image for outputs in plane.outputs]
    colours = _place_colours(np.array([p.mean(0) for p in plane.polygons]), plane.bounds)

    figure = new_figure(11, 5.4)
    before, after = figure.subplots(1, 2)
    style = {"edgecolors": INK, "linewidths": 0.35, "facecolors": colours}
    before.add_collection(collections.PolyCollection(plane.polygons, **style))
    after.add_collection(collections.PolyCollection(images, alpha=0.42, **style))
    p0, p1, q0, q1 = plane.bounds
    before.set(xlim=(p0, p1), ylim=(q0, q1))
    before.set_title(f"the plane: {plane.regions} regions", color=INK, fontsize=10)
    after.set_title("the plane, folded", color=INK, fontsize=10)
    after.autoscale_view()
    for axes in (before, after):
        _bare(axes)
        axes.set_aspect("equal")
    return figure


def _stack(depth: int) -> list[int]:
    """The height of each piece of a strip in the pile, after folding the right half over the left ``depth`` times."""
    heights = [0]
    for _ in range(depth):
        pile = len(heights)
        halves = []
        for piece, height in enumerate(heights):
            left, right = height, 2 * pile - 1 - height
            halves += [left, right] if piece % 2 == 0 else [right, left]
        heights = halves
    return heights


def unfolding(depth: int = 4) -> Figure:
    """A tent network unfolded, fold by fold: what it computes, and the pile of paper that it makes of the interval [0, 1].

    Colours follow the places of the interval. A network of ``depth`` folds has piled up ``2^depth`` sheets; reading a column
    from the bottom up unfolds it.
    """
    if not 1 <= depth <= 6:
        raise ValueError(f"depth must be in [1, 6], got {depth}")
    collections = _matplotlib("collections").collections

    def colour(where: Any) -> Any:
        return _matplotlib("colors").colormaps["plasma"](0.88 * where)

    figure = new_figure(2.5 * (depth + 1), 5.2)
    grid = figure.subplots(2, depth + 1, height_ratios=(1, 1.15), squeeze=False)
    for folds in range(depth + 1):
        graph, pile = grid[:, folds]
        _bare(graph)
        if folds:
            found = line(tent_network(folds), torch.zeros(1), torch.ones(1))
            t, y, chi = found.t.numpy(), found.outputs[:, 0].numpy(), found.chi
        else:
            t, y, chi = np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0.0
        fine = np.unique(np.concatenate([np.linspace(0, 1, 400), t]))
        path = np.stack([fine, np.interp(fine, t, y)], 1)
        colours = colour((fine[1:] + fine[:-1]) / 2)
        graph.add_collection(
            collections.LineCollection(np.stack([path[:-1], path[1:]], 1), colors=colours, linewidths=2, capstyle="round")
        )
        graph.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05), xticks=[0, 1], yticks=[0, 1])
        graph.set_title(
            f"{folds} fold{'s' * (folds != 1)}: {len(t) - 1} piece{'s' * (folds > 0)}, chi {chi:.3f}", color=INK, fontsize=9
        )
        _draw_pile(pile, y, _stack(folds), colour)
    grid[0][0].set_ylabel("output", color=INK, fontsize=9)
    grid[1][0].set_ylabel("the folded interval, from the side", color=INK, fontsize=9)
    return figure


def _draw_pile(axes: Axes, ends: np.ndarray, heights: list[int], colour: Any) -> None:
    """Sheets at their heights, and the turns where one goes over into the next."""
    collections = _matplotlib("collections").collections
    segments, colours, sheets = [], [], len(heights)
    gap = 1 / max(sheets, 6)
    for piece, height in enumerate(heights):
        x = np.linspace(ends[piece], ends[piece + 1], 40)
        y = np.full_like(x, height * gap)
        if piece + 1 < sheets:
            # A half turn around the sheets between; wide piles bulge, but never far.
            middle, radius = (height + heights[piece + 1]) / 2, abs(heights[piece + 1] - height) / 2
            angle = np.linspace(-np.pi / 2, np.pi / 2, 40) * (1 if heights[piece + 1] > height else -1)
            out = 1 if ends[piece + 1] > 0.5 else -1
            bulge = 0.16 * radius / max(sheets / 2, 1)
            x = np.concatenate([x, ends[piece + 1] + out * bulge * np.cos(angle)])
            y = np.concatenate([y, gap * (middle + radius * np.sin(angle))])
        points = np.stack([x, y], 1)
        segments += list(np.stack([points[:-1], points[1:]], 1))
        colours += [colour(w) for w in np.linspace(piece, piece + 1, len(points) - 1) / sheets]
    axes.add_collection(collections.LineCollection(segments, colors=colours, linewidths=2.2, capstyle="round", snap=False))
    axes.set(xlim=(-0.22, 1.22), ylim=(-0.08, 1.08))
    axes.axis("off")
