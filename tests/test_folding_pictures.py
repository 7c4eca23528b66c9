"""Pictures of folding show what was measured."""

import importlib
import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from pyfold import folding
from pyfold._requirements import install_command
from pyfold.folding import pictures
from pyfold.nn import Fold

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.collections import LineCollection, PolyCollection  # noqa: E402


def folded(outputs, seed=2):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), Fold("maxmin"), nn.Linear(8, outputs))
    return folding.plane(model, torch.zeros(2), *torch.eye(2), bounds=(-3, 3, -3, 3))


def drawn(axes, kind):
    return [c for c in axes.collections if isinstance(c, kind)]


def pixels(figure):
    figure.set_dpi(40)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_crease_pattern():
    plane = folded(1)
    figure = pictures.crease_pattern(plane)
    (axes,) = figure.axes
    (regions,) = drawn(axes, PolyCollection)
    assert len(regions.get_paths()) == plane.regions
    assert sum(len(c.get_segments()) for c in drawn(axes, LineCollection)) == len(plane.creases)
    assert f"{plane.regions} regions" in axes.get_title()
    assert len(np.unique(pixels(figure).reshape(-1, 4), axis=0)) > 50
    # Each crease separates: the pattern differs between its two sides.
    middle = plane.creases.mean(1)
    along = plane.creases[:, 1] - plane.creases[:, 0]
    assert (np.hypot(*along.T) > 0).all() and (np.abs(middle) <= 3).all()


def test_crease_pattern_in_a_figure_of_ones_own():
    figure = pictures.new_figure(4, 2)
    left, right = figure.subplots(1, 2)
    assert pictures.crease_pattern(folded(1), left) is figure
    assert left.collections and not right.collections


@pytest.mark.parametrize("outputs", [2, 5])
def test_folded_plane(outputs):
    plane = folded(outputs)
    before, after = pictures.folded_plane(plane).axes
    paths = [drawn(axes, PolyCollection)[0].get_paths() for axes in (before, after)]
    assert [len(p) for p in paths] == [plane.regions] * 2
    if outputs == 2:
        for path, image in zip(paths[1], plane.outputs, strict=True):
            np.testing.assert_allclose(path.vertices[:-1], image)
    with pytest.raises(ValueError, match="two outputs or more"):
        pictures.folded_plane(folded(1))


def test_a_fold_keeps_every_area():
    """Orthogonal maps and folds move regions without changing their areas."""
    torch.manual_seed(0)
    layers = []
    for _ in range(4):
        layer = nn.utils.parametrizations.orthogonal(nn.Linear(2, 2))
        layer.bias.data.normal_(0, 0.4)
        layers += [layer, Fold("maxmin")]
    plane = folding.plane(nn.Sequential(*layers), torch.zeros(2), *torch.eye(2))
    images = np.array([folding.planes._area(o) for o in plane.outputs])
    assert plane.regions > 4
    np.testing.assert_allclose(images, plane.areas, atol=1e-6)  # the orthogonal maps were made in float32


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_unfolding(depth):
    figure = pictures.unfolding(depth)
    assert len(figure.axes) == 2 * (depth + 1)
    titles = [axes.get_title() for axes in figure.axes[: depth + 1]]
    assert titles[depth].startswith(f"{depth} fold") and f"{2**depth} pieces" in titles[depth]
    assert pixels(figure).std() > 5


@pytest.mark.parametrize("depth", range(1, 7))
def test_paper_does_not_pass_through_itself(depth):
    """In the pile, the turns at one end are nested or apart."""
    heights = pictures._stack(depth)
    assert sorted(heights) == list(range(2**depth))
    turns = [sorted(pair) for pair in itertools.pairwise(heights)]
    for end in (turns[0::2], turns[1::2]):
        for (a, b), (c, d) in itertools.combinations(end, 2):
            assert not (a < c < b < d or c < a < d < b)


def test_without_matplotlib(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ImportError, match=re.escape(install_command("pictures"))):
        pictures.unfolding(1)


def test_depth_of_an_unfolding():
    with pytest.raises(ValueError, match="depth must be in"):
        pictures.unfolding(9)
