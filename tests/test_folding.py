"""Folding measures against closed forms, exact rational arithmetic, and the networks themselves."""

import itertools
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pyfold
from pyfold import folding
from pyfold.folding import ACTIVATION_CREASES, Creases
from pyfold.folding.creases import fold_creases
from pyfold.folding.probe import Probe
from pyfold.models import MLP, Discriminator, MLPDenoiser, UNet
from pyfold.nn import Fold
from pyfold.ops import FOLDS
from pyfold.train.config import Config
from pyfold.train.run import train

ZERO, ONE = torch.zeros(1), torch.ones(1)
CREASED = [name for name, kind in FOLDS.items() if kind.creased]


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def relu_mlp(sizes, activation=nn.ReLU):
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


# --- closed forms


@pytest.mark.parametrize("depth", range(1, 11))
def test_tent_map(depth):
    line = folding.line(folding.tent_network(depth), ZERO, ONE)
    assert line.exact and line.regions == line.pieces == 2**depth
    assert len({tuple(p) for p in line.patterns.tolist()}) == 2**depth
    assert line.chi == pytest.approx(1 - depth / (2**depth - 1), abs=1e-15)
    assert torch.equal(line.t, torch.linspace(0, 1, 2**depth + 1, dtype=torch.float64))
    assert line.crossed.tolist() == [2**i for i in range(depth)]
    expected = torch.arange(2**depth + 1, dtype=torch.float64) % 2
    assert torch.equal(line.outputs.squeeze(1), expected)
    for layers in range(1, depth + 1):
        assert line.chi_up_to(layers) == pytest.approx(1 - layers / (2**layers - 1), abs=1e-15)


def test_tent_map_of_relus():
    """Two ReLUs a layer: the first only touches its crease, and a touch is no crossing."""
    first, second = nn.Linear(1, 2), nn.Linear(2, 1)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [1.0]]))
        first.bias.copy_(torch.tensor([0.0, -0.5]))
        second.weight.copy_(torch.tensor([[2.0, -4.0]]))
        second.bias.zero_()
    line = folding.line(nn.Sequential(*[first, nn.ReLU(), second] * 6), ZERO, ONE)
    assert line.regions == line.pieces == 64
    assert line.chi == pytest.approx(1 - 6 / 63, abs=1e-15)
    assert len(line.layers) == 6  # one module, run six times


@pytest.mark.parametrize(("teeth", "layers"), [(2, 3), (3, 3), (4, 3), (5, 2), (3, 5)])
def test_sawtooth(teeth, layers):
    line = folding.line(folding.sawtooth_network(teeth, layers), ZERO, ONE)
    assert line.regions == line.pieces == teeth**layers
    torch.testing.assert_close(line.t, torch.linspace(0, 1, teeth**layers + 1, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, lambda: Fold("abs"), lambda: Fold("maxmin")])
def test_one_hidden_layer_does_not_fold(activation):
    model = seeded(lambda: relu_mlp([5, 40, 3], activation))
    for line in folding.lines(model, 3 * torch.randn(10, 5), 3 * torch.randn(10, 5)):
        assert line.crossed.item() > 0
        assert line.chi == 0


@pytest.mark.parametrize(("units", "regions"), [(4, 11), (8, 37)])
def test_zaslavsky(units, regions):
    """A generic arrangement of n lines cuts the plane into 1 + n + n (n - 1) / 2 regions."""
    model = seeded(lambda: relu_mlp([2, units, 1]), 3).double()
    weight, bias = model[0].weight.detach(), model[0].bias.detach()
    meetings = [torch.linalg.solve(weight[[i, j]], -bias[[i, j]]) for i, j in itertools.combinations(range(units), 2)]
    size = 2 * torch.stack(meetings).abs().max().item()
    plane = folding.plane(model, torch.zeros(2), *torch.eye(2), bounds=(-size, size, -size, size))
    assert plane.regions == regions == sum(math.comb(units, i) for i in range(3))
    assert len({tuple(p) for p in plane.patterns.tolist()}) == regions


# --- an oracle in exact rational arithmetic


def rational_breakpoints(layers, a, b):
    """Breakpoints of a ReLU network along a segment, and the bits of each piece, by Fractions: from each piece to the next
    through the nearest crossing. Written apart from the library's way, which goes layer by layer."""

    def affine(t, side):
        """Bits and preactivations (constant, slope) just beside t."""
        points = [(p, q - p) for p, q in zip(a, b, strict=True)]
        bits, seen = [], []
        for weight, bias in layers:
            points = [
                (
                    c + sum(w * p[0] for w, p in zip(row, points, strict=True)),
                    sum(w * p[1] for w, p in zip(row, points, strict=False)),
                )
                for row, c in zip(weight, bias, strict=True)
            ]
            seen += points
            on = [(v := p + t * s) > 0 or (v == 0 and s * side > 0) for p, s in points]
            bits += on
            points = [z if one else (Fraction(0), Fraction(0)) for z, one in zip(points, on, strict=True)]
        return bits, seen

    t, breaks, patterns = Fraction(0), [Fraction(0)], []
    while True:
        bits, seen = affine(t, 1)
        patterns.append(bits)
        crossings = [-p / s for p, s in seen if s != 0 and -p / s > t]
        t = min([*crossings, Fraction(1)])
        if t >= 1:
            return [*breaks, Fraction(1)], patterns
        before, after = affine(t, -1)[0], affine(t, 1)[0]
        if before == after:  # a unit touched its crease and turned back
            patterns.pop()
        else:
            breaks.append(t)


def rational_network(layers):
    modules = []
    for weight, bias in layers:
        linear = nn.Linear(len(weight[0]), len(weight), dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor([[float(w) for w in row] for row in weight]))
            linear.bias.copy_(torch.tensor([float(c) for c in bias]))
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules)


def assert_equals_oracle(layers, a, b):
    breaks, patterns = rational_breakpoints(layers, a, b)
    ends = [torch.tensor([float(v) for v in end], dtype=torch.float64) for end in (a, b)]
    line = folding.line(rational_network(layers), *ends)
    assert len(line.patterns) == len(patterns)
    assert line.patterns.bool().tolist() == patterns
    np.testing.assert_allclose(line.t.numpy(), [float(t) for t in breaks], rtol=0, atol=1e-12)
    return line


def test_random_networks_against_fractions(generator):
    def number():
        return Fraction(int(torch.randint(-16, 17, (), generator=generator)), 8)

    crossed = 0
    for _ in range(20):
        sizes = [3, 6, 5, 4]
        layers = [([[number() for _ in range(m)] for _ in range(n)], [number() for _ in range(n)])
                  for m, n in itertools.pairwise(sizes)]  # fmt: skip
        a, b = ([Fraction(int(v), 3) for v in torch.randint(-9, 10, (3,), generator=generator)] for _ in range(2))
        crossed += len(assert_equals_oracle(layers, a, b).patterns)
    assert crossed > 100


@pytest.mark.parametrize("times", [1, 2, 3])
def test_cantor_network(times):
    """CantorNet (Lewandowski et al. 2024): each pair of layers triples x and folds it at 1/3 and 2/3."""
    one = [([[3, 0], [-3, 0], [0, 1]], [-2, 1, 0]), ([[1, 1, 0], [0, 0, 1]], [0, 0])]
    layers = [*one * times, ([[Fraction(-1, 2), 1]], [Fraction(-1, 2)])]
    line = assert_equals_oracle(layers, [Fraction(0), Fraction(5, 7)], [Fraction(1), Fraction(4, 7)])
    assert line.regions > 2**times


# --- every kind of fold, and every activation


def folds(kind, channels=12, **options):
    """A fold whose parameters are away from symmetric values."""
    given = {
        "abs": {"offset": -0.2},
        "leaky": {"slope": -0.5},
        "box": {"length": 0.7},
        "tri": {"length": 0.5, "phase": 0.2},
        "groupsort": {"size": 4},
        "sortabs": {"size": 3},
        "dihedral": {"m": 3, "angle": 0.4},
        "hyperplane": {"normal": torch.randn(8, channels), "offset": torch.linspace(-0.3, 0.3, 8)},
    }
    fold = Fold(kind, channels, **given.get(kind, {}), **options).double()
    with torch.no_grad():
        for parameter in fold.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return fold


@pytest.mark.parametrize("kind", CREASED)
@pytest.mark.parametrize("variant", ["plain", "bias", "clamp", "last dim", "halves"])
def test_creases_are_where_the_fold_is_not_affine(kind, variant):
    """Between neighbouring levels the Jacobian is one matrix; at every crease it changes; at depth 0 it is the identity."""
    torch.manual_seed(1)
    fold = folds(kind, 24)
    if variant == "bias":
        fold = folds(kind, 24, bias=True)
    elif variant == "clamp":
        fold.clamp = 0.7
    elif variant == "last dim":
        fold.dim = -1
    elif variant == "halves":
        if not FOLDS[kind].paired:
            pytest.skip("no pairs")
        fold.pairing = "halves"
    a, b = 2 * torch.randn(2, 24, dtype=torch.float64)
    line = folding.line(fold, a, b)  # raises if anything bends between the creases
    assert line.regions >= 3
    middles = torch.lerp(a, b, ((line.t[1:] + line.t[:-1]) / 2).unsqueeze(1))
    jacobians = torch.func.vmap(torch.func.jacrev(lambda x: fold(x.unsqueeze(0)).squeeze(0)))(middles)
    changes = (jacobians.diff(dim=0).abs().amax((1, 2)) > 1e-9).tolist()
    if variant == "clamp":  # where a whole pair is clamped, its crease is not seen
        assert sum(changes) > len(changes) / 2
    else:
        assert all(changes)
        if FOLDS[kind].widens:
            return
        depth = folding.fold_depth(fold, middles).squeeze(1)
        shift = 0 if fold.bias is None else fold.bias
        moved = (fold(middles) - middles - shift).abs().amax(1) > 1e-12
        assert torch.equal(depth > 0, moved.cpu())


@pytest.mark.parametrize("kind", CREASED)
def test_deep_networks_of_each_fold(kind):
    wide = 24 if FOLDS[kind].widens else 12
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 12), folds(kind), nn.Linear(wide, 12), folds(kind), nn.Linear(wide, 1)))
    plane = folding.plane(model, torch.zeros(2), *torch.eye(2), bounds=(-2, 2, -2, 2))
    assert plane.areas.sum() == pytest.approx(16, rel=1e-12)
    assert plane.regions > 30


class ReferenceFold(nn.Module):
    """A fold in torch operations, with the attributes that its kind's rule reads."""

    bias = clamp = None
    dim, pairing = 1, "adjacent"

    def __init__(self, kind, forward, **attributes):
        super().__init__()
        self.kind, self.run = kind, forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.run(x)


def reflect_all(x, normals, offsets):
    for n, b in zip(normals, offsets, strict=True):
        x = x - 2 * (x @ n - b).clamp(min=0).unsqueeze(1) * n
    return x


NORMALS = torch.randn(8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NORMALS = NORMALS / NORMALS.norm(dim=1, keepdim=True)
OFFSETS = torch.linspace(-0.3, 0.3, 8, dtype=torch.float64)
REFERENCE_FOLDS = [
    ReferenceFold("leaky", lambda x: torch.where(x > 0, x, -0.5 * x), slope=-0.5),
    ReferenceFold("crelu", lambda x: torch.cat([x.relu(), (-x).relu()], 1)),
    ReferenceFold("box", lambda x: 2 * x.clamp(-0.6, 0.6) - x, length=0.6),
    ReferenceFold("tri", lambda x: 0.3 - ((x - 0.2 + 0.3) % 1.2 - 0.6).abs() + 0.3, length=0.3, phase=0.2),
    ReferenceFold("groupsort", lambda x: x.unflatten(1, (-1, 4)).sort(-1)[0].flatten(1), size=4),
    ReferenceFold("groupsort", lambda x: x.sort(1)[0], size=None),
    ReferenceFold("sortabs", lambda x: x.abs().unflatten(1, (-1, 3)).sort(-1)[0].flatten(1), size=3),
    ReferenceFold("hyperplane", lambda x: reflect_all(x, NORMALS, OFFSETS), normal=NORMALS, offset=OFFSETS),
]


@pytest.mark.parametrize("fold", REFERENCE_FOLDS, ids=lambda f: f.kind)
def test_creases_of_folds_in_torch_operations(fold, monkeypatch):
    """The rule of each kind against the kind's formula: all creases found, and each of them a crease."""
    monkeypatch.setitem(ACTIVATION_CREASES, ReferenceFold, ACTIVATION_CREASES[Fold])
    a, b = torch.randn(2, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = folding.line(fold, 2 * a, 2 * b)
    middles = torch.lerp(2 * a, 2 * b, ((line.t[1:] + line.t[:-1]) / 2).unsqueeze(1))
    jacobians = torch.stack([torch.autograd.functional.jacobian(fold, x.unsqueeze(0))[0, :, 0] for x in middles])
    assert line.regions >= 3 and line.crossed.item() == line.regions - 1
    assert (jacobians.diff(dim=0).abs().amax((1, 2)) > 1e-9).all()


def test_sorts_measure_kendall_distance():
    """Patterns of a sort differ by the inversions between two orders, whatever the way from one to the other."""
    orders = torch.stack([torch.randperm(6) for _ in range(20)]).double()
    (creases,) = fold_creases(FOLDS["groupsort"], orders, size=6)
    levels = creases.levels()
    for i, j in itertools.combinations(range(20), 2):
        inversions = sum(
            (orders[i, k] - orders[i, m]) * (orders[j, k] - orders[j, m]) < 0 for k, m in itertools.combinations(range(6), 2)
        )
        assert (levels[i] - levels[j]).abs().sum() == inversions
    assert creases.depth()[0] == sum(orders[0, k] > orders[0, m] for k, m in itertools.combinations(range(6), 2))


def test_chamber_of_sorted_absolute_values():
    x = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [-3.0, -2.0, -1.0]])
    (creases,) = fold_creases(FOLDS["sortabs"], x, size=3)
    assert creases.value.shape == (4, 9)
    # -1, -2, -3 is the longest element of B_3, all nine mirrors away; here two of its values are in order again.
    assert creases.depth().tolist() == [0, 1, 1, 6]


def test_periodic_creases():
    x = torch.tensor([[-3.5], [-1.5], [0.0], [0.9], [1.1], [5.5]], dtype=torch.float64)
    (creases,) = fold_creases(FOLDS["tri"], x, length=1.0, phase=0.0)
    assert creases.levels().squeeze(1).tolist() == [-2, -1, 0, 0, 1, 3]
    assert creases.depth().tolist() == [2, 1, 0, 0, 1, 3]
    assert creases.reached() == [-3.0, -1.0, 1.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("activation", "creases"),
    [(nn.ReLU(), 1), (nn.ReLU(inplace=True), 1), (nn.LeakyReLU(), 1), (nn.PReLU(), 1), (nn.RReLU(), 1), (nn.ReLU6(), 2),
     (nn.Hardtanh(-0.5, 2), 2), (nn.Hardsigmoid(), 2), (nn.Softshrink(0.5), 2)],
)  # fmt: skip
def test_activations(activation, creases):
    """A ramp meets every crease, and the exact line holds only if all were found."""
    model = nn.Sequential(nn.Linear(1, 1), activation, nn.Linear(1, 1)).double()
    line = folding.line(model, -50 * ONE, 50 * ONE)
    assert line.regions == line.pieces == creases + 1
    deep = seeded(lambda: relu_mlp([3, 10, 10, 10, 1], lambda: activation))
    assert folding.line(deep, *(4 * torch.randn(2, 3))).regions > 3


def test_skips_shared_layers_convolutions_and_norms():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            for _ in range(2):
                x = x + self.second(self.act(self.norm(self.first(x))))
            return nn.functional.avg_pool2d(x, 2)

    model = seeded(Block).train()
    model.norm.running_mean.normal_()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    line = folding.line(model, torch.randn(2, 6, 6), torch.randn(2, 6, 6))
    assert [layer.name for layer in line.layers] == ["act", "act"] and line.layers[0].units == 144
    assert line.regions > 20
    assert model.training and not model.act._forward_pre_hooks
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_device(device):
    """A network on a GPU is measured there, to the same result."""
    model = seeded(
        lambda: nn.Sequential(nn.Linear(2, 12), Fold("householder", 12), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2))
    )
    a, b = torch.randn(2, 4, 2)
    here = folding.folding_report(model, (a, b))
    there = folding.folding_report(model.to(device), (a.to(device), b.to(device)))
    assert torch.equal(here.crossed, there.crossed) and torch.equal(here.depth, there.depth)
    planes = [folding.plane(m, torch.zeros(2), *torch.eye(2)) for m in (model.cpu(), model.to(device))]
    assert planes[0].regions == planes[1].regions and torch.equal(planes[0].depth.sort()[0], planes[1].depth.sort()[0])


# --- exact and sampled, line and plane, tell one story


def test_samples_converge_to_the_exact_line():
    model = seeded(lambda: relu_mlp([3, 12, 12, 12, 1]))
    a, b = 2 * torch.randn(2, 3)
    exact = folding.line(model, a, b)
    assert exact.chi > 0.02
    assert exact.t.diff().min() > 1e-6
    dense = folding.line(model, a, b, samples=200_001)
    # A sample in every piece that is longer than a step: only creases of shorter ones can be missed.
    assert (exact.t.diff() > 1 / 200_000).all()
    assert dense.regions == exact.regions and dense.chi == exact.chi
    assert torch.equal(dense.crossed, exact.crossed)
    assert folding.line(model, a, b, samples=5).regions <= 5
    with pytest.raises(ValueError, match="pieces of a sampled line"):
        dense.pieces  # noqa: B018


def test_the_line_of_a_plane():
    """A segment crosses exactly the regions of the plane that it goes through."""
    model = seeded(lambda: relu_mlp([4, 10, 10, 10, 1]))
    u, v = torch.randn(2, 4)
    plane = folding.plane(model, torch.zeros(4), u, v, bounds=(-2, 2, -2, 2))
    assert plane.areas.sum() == pytest.approx(16, rel=1e-12)
    line = folding.line(model, -2 * u - 1.3 * v, 2 * u + 0.7 * v)
    patterns = {tuple(p) for p in plane.patterns.tolist()}
    assert all(tuple(p) in patterns for p in line.patterns.tolist())
    # Every region is convex and its corners are mapped by one affine map.
    for polygon, outputs in zip(plane.polygons, plane.outputs, strict=True):
        basis = np.concatenate([polygon, np.ones((len(polygon), 1))], 1)
        fitted = np.linalg.lstsq(basis, outputs, rcond=None)[0]
        np.testing.assert_allclose(basis @ fitted, outputs, atol=1e-7 * np.abs(outputs).max())


def test_regions_of_a_plane_against_samples():
    model = seeded(lambda: relu_mlp([2, 6, 6, 1]), 5)
    plane = folding.plane(model, torch.zeros(2), *torch.eye(2), bounds=(-3, 3, -3, 3))
    p = 6 * torch.rand(300_000, 2, dtype=torch.float64) - 3
    patterns, counts = torch.unique(Probe(model).read(p).patterns, dim=0, return_counts=True)
    areas = {}
    for pattern, area in zip(plane.patterns.tolist(), plane.areas, strict=True):
        areas[tuple(pattern)] = areas.get(tuple(pattern), 0) + area
    found = {tuple(k): n for k, n in zip(patterns.tolist(), counts.tolist(), strict=True)}
    assert found.keys() <= areas.keys()
    for pattern, area in areas.items():
        expected = 300_000 * area / 36
        assert abs(found.get(pattern, 0) - expected) < 6 * math.sqrt(expected) + 3


def test_parts_make_the_whole(monkeypatch):
    """Large networks are read in parts; the results are those of one reading."""
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 12), Fold("maxmin"), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)))
    a, b = 4 * torch.randn(2, 2)

    def measure():
        return folding.line(model, a, b), folding.line(model, a, b, samples=301), folding.plane(model, a, a - b, a + b)

    whole = measure()
    monkeypatch.setattr(Probe, "batch", lambda self, x: 4)
    parts = measure()
    for one, other in zip(whole[:2], parts[:2], strict=True):
        for name in ("away", "steps", "patterns", "pattern_layers"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        torch.testing.assert_close(one.t, other.t)
        torch.testing.assert_close(one.outputs, other.outputs)
        assert one.chi == folding.space_folding(one.patterns) == other.chi
    regions = [{tuple(pattern): area for pattern, area in zip(p.patterns.tolist(), p.areas, strict=True)} for p in
               (whole[2], parts[2])]  # fmt: skip
    assert regions[0] == pytest.approx(regions[1]) and len(regions[0]) > 10
    assert (folding.lines(model, a[None], b[None], patterns=False)[0].patterns) is None


# --- reports


def test_report():
    model = seeded(lambda: MLP(4, 1, 16, 3, "maxmin"))
    a, b = 3 * torch.randn(6, 4), 3 * torch.randn(6, 4)
    report = folding.folding_report(model, (a, b))
    lines = folding.lines(model, a, b)
    assert report.exact and report.chi.tolist() == [line.chi for line in lines]
    assert report.regions.tolist() == [line.regions for line in lines]
    assert report.crossed.tolist() == [line.crossed.sum().item() for line in lines]
    assert report.layers[0].chi == 0 and report.layers[-1].chi == pytest.approx(report.chi.mean().item())
    assert sum(layer.crossed for layer in report.layers) == pytest.approx(report.crossed.double().mean().item())
    assert torch.equal(report.depth[:, 1], folding.fold_depth(model, b).sum(1))
    text = str(report)
    assert "6 segments (exact)" in text and text.count("maxmin") == 3 and f"chi {report.chi.mean():.4f}" in text
    sampled = folding.folding_report(model, (a, b), samples=64)
    assert "64 samples each" in str(sampled) and (sampled.crossed <= report.crossed).all()


def test_report_of_the_reference_networks():
    x = torch.randn(2, 2, 1, 8, 8)
    critic = seeded(lambda: Discriminator(1, 8, 4, "householder"))
    assert folding.folding_report(critic, (x[0], x[1])).regions.min() > 20
    unet = seeded(lambda: UNet(1, 8, 8, "abs"))
    call = lambda model, x: model(x, torch.zeros(len(x), dtype=x.dtype))  # noqa: E731
    with pytest.raises(ValueError, match="not piecewise linear"):  # it has group norms
        folding.folding_report(unet, (x[0], x[1]), call=call)
    assert folding.folding_report(unet, (x[0], x[1]), call=call, samples=16).crossed.min() > 16
    # The time embedding is smooth, but constant along a path.
    denoiser = seeded(lambda: MLPDenoiser(2, 16, activation="abs"))
    assert folding.folding_report(denoiser, (torch.randn(2, 2), torch.randn(2, 2)), call=call).exact


def test_between_classes():
    model = seeded(lambda: relu_mlp([2, 16, 16, 16, 1]))
    labels = torch.arange(60) % 3
    x = torch.randn(60, 2) + 3 * torch.nn.functional.one_hot(labels, 3)[:, :2]
    result = folding.folding_between_classes(model, x, labels, pairs=4, seed=7)
    assert result.classes == (0, 1, 2) and result.chi.shape == (3, 3)
    i, j = folding.class_pairs(labels, 1, 2, 4, seed=7)
    assert (labels[i] == 1).all() and (labels[j] == 2).all()
    expected = sum(folding.line(model, x[p], x[q]).chi for p, q in zip(i, j, strict=True)) / 4
    assert result.chi[1, 2].item() == pytest.approx(expected)
    i, j = folding.class_pairs(labels, 1, 1, 200)
    assert (i != j).all() and (labels[j] == 1).all()
    assert result.between > result.within
    assert f"{result.within:.4f}" in str(result)


@pytest.mark.parametrize(("kind", "module"), [("gan", "discriminator"), ("diffusion", "ema")])
def test_trainer_callback(kind, module, tmp_path):
    call = None if kind == "gan" else lambda model, x: model(x, torch.full((len(x),), 0.5, dtype=x.dtype))
    watch = folding.FoldingCallback(tuple(torch.randn(2, 3, 2)), module, call=call)
    config = Config(kind, data="ring", steps=6, batch=16, width=4, latent=4, log_every=2, sampler_steps=3)
    train(config, tmp_path / "watched", progress=False, callbacks=[watch])
    assert [step for step, _ in watch.reports] == [2, 4, 6]
    assert all(report.regions.min() > 1 for _, report in watch.reports)
    # Watching does not change the run.
    again = folding.FoldingCallback(tuple(torch.randn(2, 3, 2)), module, call=call)
    train(config, tmp_path / "plain", progress=False)
    from pyfold.train.run import open_run

    left, right = (open_run(tmp_path / name)[0].modules[module].state_dict() for name in ("watched", "plain"))
    assert all(torch.equal(left[k], right[k]) for k in left)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "watched" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("folding/chi")] == [2, 4, 6]
    again.module = "critic"
    with pytest.raises(ValueError, match="module must be one of the trainer's"):
        train(config, tmp_path / "wrong", progress=False, callbacks=[again])


# --- the measure itself, and what is refused


def test_space_folding_of_given_patterns():
    bits = torch.tensor
    assert folding.space_folding(bits([[0, 0], [0, 1], [1, 1]])) == 0
    assert folding.space_folding(bits([[0, 0], [0, 0]])) == 0
    assert folding.space_folding(bits([[0], [1], [0]])) == 0.5
    assert folding.space_folding(bits([[0, 0], [1, 1], [0, 1], [0, 0]])) == 0.5
    assert folding.space_folding(bits([[0], [1], [2], [1]])) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="patterns must have shape"):
        folding.space_folding(torch.zeros(3))


def test_an_unknown_bend_is_refused_until_it_is_made_known(monkeypatch):
    class Vee(nn.Module):
        def forward(self, x):
            return x.abs()

    model = seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), Vee(), nn.Linear(8, 1)))
    a, b = 4 * torch.randn(2, 2)
    with pytest.raises(ValueError, match="not piecewise linear.*the output departs"):
        folding.line(model, a, b)
    monkeypatch.setitem(ACTIVATION_CREASES, Vee, lambda module, x: iter([Creases(x.flatten(1))]))
    assert folding.line(model, a, b).pieces > 1


class Bent(nn.Module):
    """x -> relu(first(x)) and what no rule knows, side by side or summed."""

    def __init__(self, function):
        super().__init__()
        self.relu, self.function = nn.ReLU(), function

    def forward(self, x):
        return self.function(self.relu, x)


#: Each departs from affine between its known creases, though at the middle of its piece or beside large values it does not.
BENT = {
    "meets its chord in the middle": lambda relu, x: relu(x + 10) + x.clamp(-0.5, 0.5),
    "meets it at both quarters too": lambda relu, x: relu(x + 10) + torch.sin(4 * torch.pi * x),
    "small beside another output": lambda relu, x: torch.cat([1e9 * relu(x), torch.sin(3 * x)], 1),
    "small beside another unit": lambda relu, x: relu(torch.cat([1e9 * (x + 2), torch.sin(3 * x) + 2], 1)),
}


@pytest.mark.parametrize("name", BENT)
def test_a_bend_hides_neither_in_symmetry_nor_beside_large_values(name):
    model = Bent(BENT[name])
    with pytest.raises(ValueError, match="not piecewise linear"):
        folding.line(model, -ONE, ONE)
    with pytest.raises(ValueError, match="not piecewise linear"):
        folding.plane(nn.Sequential(nn.Linear(2, 1, bias=False), model), torch.zeros(2), *torch.eye(2))


def test_cancellation_is_no_bend():
    """What rounds because it is a small difference of large values is affine nevertheless."""
    model = Bent(lambda relu, x: relu(1e6 * x + 1e6) - relu(1e6 * x + 1e6 - 1e-3))
    assert folding.line(model, ZERO, ONE).regions >= 1


@pytest.mark.parametrize("kind", ["abs", "box", "tri", "maxmin", "groupsort", "sortabs", "householder", "dihedral"])
def test_what_is_folded_lies_at_home(kind):
    """These folds fold once and for all: no crease lies between their output and the identity."""
    torch.manual_seed(3)
    fold = folds(kind)
    x = (1.5 * torch.randn(50, 12, dtype=torch.float64)).clamp(-2, 2)
    with torch.no_grad():
        y = fold(x)
    assert folding.fold_depth(fold, x).sum() > 100
    assert folding.fold_depth(fold, y).sum() == 0


def test_depth_counts_the_walls_on_the_way_home():
    """Of a box one, on either side; of a triangle wave each wall passed; of two hyperplanes those that fold."""
    x = torch.tensor([[0.0, 0.6, -0.6, 1.0], [0.7, 0.8, -0.8, 5.0], [-9.0, -0.71, 0.69, 0.1]])
    assert folding.fold_depth(Fold("box", length=0.7), x).squeeze(1).tolist() == [1, 3, 2]
    assert folding.fold_depth(Fold("tri", length=1.0), torch.tensor([[0.5], [1.5], [-3.5]])).squeeze(1).tolist() == [0, 1, 2]
    normal, points = torch.eye(2), torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0]])
    assert folding.fold_depth(Fold("hyperplane", normal=normal), points).squeeze(1).tolist() == [0, 1, 2]


def test_not_a_number_is_refused():
    model = relu_mlp([2, 3, 1])
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="not a number at the output"):
        folding.line(model, *torch.randn(2, 2))


def test_smooth_activations_are_only_sampled():
    model = seeded(lambda: relu_mlp([2, 8, 8, 1], nn.SiLU))
    with pytest.raises(ValueError, match="not piecewise linear"):
        folding.line(model, *torch.randn(2, 2))
    assert folding.line(model, *(5 * torch.randn(2, 2)), samples=50).regions > 1


def test_refusals():
    model = relu_mlp([2, 3, 1])
    a = torch.zeros(2)
    with pytest.raises(ValueError, match="no activation with known creases"):
        folding.line(nn.Linear(2, 1), a, a)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        folding.line(lambda x: x, a, a)
    with pytest.raises(ValueError, match="a and b must have one shape"):
        folding.line(model, a, torch.zeros(3))
    with pytest.raises(TypeError, match="b must be a floating-point tensor"):
        folding.line(model, a, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="samples must be an int from 2"):
        folding.line(model, a, a, samples=1)
    with pytest.raises(ValueError, match=r"a must have shape \[pairs"):
        folding.lines(model, a, a)
    with pytest.raises(ValueError, match="bounds must be"):
        folding.plane(model, a, a, a, bounds=(1, 0, 0, 1))
    with pytest.raises(TypeError, match="pairs must be"):
        folding.folding_report(model, a)
    with pytest.raises(ValueError, match="labels must be integers"):
        folding.folding_between_classes(model, torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="two different samples"):
        folding.folding_between_classes(model, torch.zeros(3, 2), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="depth must be"):
        folding.tent_network(0)
    assert pyfold.folding is folding


def test_the_page_runs(capsys):
    """docs/folding.md: its code does what it says."""
    page = (Path(__file__).parent.parent / "docs" / "folding.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    printed = capsys.readouterr().out
    assert "folding of 1 segments (exact)" in printed and re.search(r"^\d+ 16\.0|^\d+ 15\.99", printed, re.MULTILINE)
