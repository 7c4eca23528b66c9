"""What is special to folds: ties, isometry, unfolding, their memory of bits."""

import importlib
import inspect
import itertools
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

import pyfold
from pyfold import _C, nn
from pyfold._elementary import sqrt
from pyfold.folds.program import CODES, Program, sorting_network
from pyfold.folds.soft import root
from pyfold.ops import FLOAT_DTYPES, FOLDS, fold_table, fold_with_bits, unfold

F64 = torch.float64
#: Each kind with parameters away from special values, for 8 channels.
SETTINGS = [
    ("abs", {}),
    ("abs", {"offset": -0.3}),
    ("leaky", {"slope": -0.6}),
    ("leaky", {"slope": -1.0}),
    ("box", {"length": 0.6}),
    ("tri", {"length": 0.4, "phase": 0.3}),
    ("maxmin", {}),
    ("maxmin", {"pairing": "halves"}),
    ("groupsort", {"size": 2}),
    ("groupsort", {"size": 4}),
    ("groupsort", {}),
    ("sortabs", {"size": 4}),
    ("sortabs", {}),
    ("householder", {"angle": torch.linspace(-3, 3, 4, dtype=F64)}),
    ("householder", {"angle": 0.8, "pairing": "halves"}),
    ("dihedral", {"m": 5, "angle": 0.7}),
    ("dihedral", {"m": 8, "pairing": "halves"}),
    ("hyperplane", {"normal": torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=F64), "offset": 0.2}),
    ("crelu", {}),
    ("sphere", {"radius": 3.0, "inner": 1.5}),
    ("ball", {"radius": 2.0}),
    ("soft", {"epsilon": 0.2}),
]


def setting_id(value):
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items() if not isinstance(v, torch.Tensor)) or "-"
    return str(value)


def settings(keep=lambda fold, parameters: True):
    """Those whose kind and parameters fit."""
    chosen = []
    for kind, given in SETTINGS:
        parameters = {**FOLDS[kind].defaults(), **{k: v for k, v in given.items() if k != "pairing"}}
        if keep(FOLDS[kind], parameters):
            chosen.append((kind, given))
    return pytest.mark.parametrize(("kind", "given"), chosen, ids=setting_id)


def to(given, device="cpu", dtype=F64):
    return {k: v.to(device, dtype) if isinstance(v, torch.Tensor) else v for k, v in given.items()}


def jacobian(x, kind, given):
    function = lambda v: pyfold.fold(v.unsqueeze(0), kind, **given).squeeze(0)  # noqa: E731
    return torch.autograd.functional.jacobian(function, x)


# --- what the declarations say


def test_every_kind_is_tested():
    assert {kind for kind, _ in SETTINGS} == set(FOLDS)


#: An input of 8 channels that lies on creases of the kind, one after another.
TIES = {
    "abs": lambda given: torch.full((8,), given.get("offset", 0.0), dtype=F64),
    "leaky": lambda given: torch.zeros(8),
    "crelu": lambda given: torch.zeros(8),
    "box": lambda given: torch.tensor([0.6, -0.6] * 4, dtype=F64),
    "tri": lambda given: torch.tensor([0.75, -0.25] * 4),
    "maxmin": lambda given: torch.full((8,), 0.7),
    "groupsort": lambda given: torch.full((8,), 0.7),
    "sortabs": lambda given: torch.zeros(8),
    "householder": lambda given: torch.zeros(8),
    "dihedral": lambda given: torch.zeros(8),
    "hyperplane": lambda given: torch.zeros(8),
}


@settings(lambda fold, parameters: fold.preserves_norm(**parameters))
def test_at_a_tie_the_fold_is_the_identity(kind, given, backend):
    x = TIES[kind](given).to(F64)
    if kind == "tri":
        given = {"length": 0.5, "phase": 0.25}  # so that the creases are exact
    if kind == "hyperplane":
        given = {**given, "offset": 0.0}
    given = to(given, backend)
    expected = torch.eye(8, dtype=F64)
    if kind == "crelu":
        expected = torch.cat([expected, torch.zeros(8, 8, dtype=F64)])
    assert torch.equal(jacobian(x.to(backend), kind, given).cpu(), expected)
    bits = fold_with_bits(x.to(backend).unsqueeze(0), kind, **given)[1]
    assert int(bits.sum()) == 0


def test_on_a_radius(backend):
    """What is neither inside nor outside is left by ball and sphere, and on the inner radius it belongs to the shell."""
    x = torch.tensor([[3.0, 4.0] + [0.0] * 6], device=backend)
    for kind, given, factor, planes in (
        ("ball", {"radius": 5.0}, 1, [0]),
        ("sphere", {"radius": 5.0, "inner": 1.0}, 1, [0, 0]),
        ("sphere", {"radius": 10.0, "inner": 5.0}, 4, [0, 1]),
    ):
        y, bits = fold_with_bits(x, kind, **given)
        assert torch.equal(y, factor * x) and bits.flatten().tolist() == planes


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_abs_folds_neither_zero_nor_nan(dtype, backend):
    """By their bits, of whatever payload; infinities it folds."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    below, above = (torch.tensor(sign * math.inf, dtype=dtype).view(words).item() for sign in (-1, 1))
    zero = torch.tensor(-0.0, dtype=dtype).view(words).item()
    x = torch.tensor([zero, 0, below + 1, -1, above + 1, ~zero, below, above] * 9, dtype=words).to(backend)
    y, bits = fold_with_bits(x.view(dtype)[:, None], "abs")
    expected = torch.where(x == below, above, x)
    assert torch.equal(y.view(words)[:, 0], expected) and bits.flatten().tolist() == [1 << 6] * 9
    assert torch.equal(pyfold.fold(x.view(dtype)[:, None], "abs").view(words)[:, 0], expected)


@settings(lambda fold, parameters: fold.preserves_norm(**parameters))
def test_all_singular_values_are_one(kind, given, generator):
    for ties in (False, True):
        x = 1.5 * torch.randn(8, generator=generator, dtype=F64)
        if ties:
            x[:5] = torch.tensor([0.0, 0.0, 0.3, 0.3, -0.3])
        found = jacobian(x, kind, given)
        torch.testing.assert_close(torch.linalg.svdvals(found), torch.ones(8, dtype=F64), rtol=0, atol=1e-12)


@settings(lambda fold, parameters: not fold.widens)
def test_volume_is_kept_where_the_kind_says_so(kind, given, generator):
    fold = FOLDS[kind]
    parameters = {**fold.defaults(), **{k: v for k, v in given.items() if k != "pairing"}}
    determinants = [torch.linalg.det(jacobian(1.5 * torch.randn(8, generator=generator, dtype=F64), kind, given)).abs()
                    for _ in range(20)]  # fmt: skip
    off = (torch.stack(determinants) - 1).abs().max().item()
    assert (off < 1e-12) if fold.preserves_volume(**parameters) else (off > 1e-2)


@settings()
def test_lipschitz_constant(kind, given, generator):
    """No pair of points comes further apart than it says, and for some pairs it is met."""
    fold = FOLDS[kind]
    parameters = {**fold.defaults(), **{k: v for k, v in given.items() if k != "pairing"}}
    constant = fold.lipschitz(**parameters)
    x = torch.randn(20000, 8, generator=generator, dtype=F64) * torch.linspace(0.05, 3, 20000, dtype=F64)[:, None]
    near = x + 1e-6 * torch.randn(x.shape, generator=generator, dtype=F64)
    ratio = (pyfold.fold(x, kind, **given) - pyfold.fold(near, kind, **given)).norm(dim=1) / (x - near).norm(dim=1)
    assert ratio.max() <= constant * (1 + 1e-8)
    assert ratio.max() >= 0.95 * constant


@settings(lambda fold, parameters: fold.unfolds(**parameters))
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
def test_unfolds(kind, given, dtype, backend, generator):
    given = to(given, backend, dtype if dtype != torch.bfloat16 else torch.float32)
    x = (2 * torch.randn(6, 8, 5, generator=generator)).to(backend, dtype)
    y, bits = fold_with_bits(x, kind, **given)
    assert torch.equal(y, pyfold.fold(x, kind, **given))
    bound = {F64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(unfold(y, bits, kind, **given), x, rtol=0, atol=bound)
    permuted = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    y, bits = fold_with_bits(permuted, kind, **given)
    torch.testing.assert_close(unfold(y, bits, kind, **given), x, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_fifty_folds_unfold(dtype, backend):
    generator = torch.Generator().manual_seed(5)
    isometries = [(k, g) for k, g in SETTINGS if FOLDS[k].preserves_norm(**{**FOLDS[k].defaults(), **{
        a: b for a, b in g.items() if a != "pairing"}}) and not FOLDS[k].widens]  # fmt: skip
    start = torch.randn(3, 8, 5, generator=generator, dtype=dtype).to(backend)
    x, trail = start, []
    for i in range(50):
        kind, given = isometries[i % len(isometries)]
        shift = torch.randn(8, 1, generator=generator, dtype=dtype).to(backend)
        given = to(given, backend, dtype)
        y, bits = fold_with_bits(x + shift, kind, **given)
        trail.append((kind, given, shift, bits))
        x = y
    for kind, given, shift, bits in reversed(trail):
        x = unfold(x, bits, kind, **given) - shift
    torch.testing.assert_close(x, start, rtol=0, atol=1e-12 if dtype == F64 else 1e-4)


@pytest.mark.parametrize("folds", [50])
def test_a_stack_of_random_folds_is_an_isometry_almost_everywhere(folds):
    generator = torch.Generator().manual_seed(2)

    def stack(x):
        state = generator.get_state()
        for i in range(folds):
            kind, given = [s for s in SETTINGS if s[0] in ("abs", "box", "tri", "groupsort", "dihedral", "hyperplane")][i % 8]
            x = pyfold.fold(x + torch.randn(8, generator=generator, dtype=F64), kind, **given)
        generator.set_state(state)
        return x

    x = torch.randn(1, 8, generator=generator, dtype=F64)
    found = torch.autograd.functional.jacobian(stack, x).reshape(8, 8)
    torch.testing.assert_close(found.T @ found, torch.eye(8, dtype=F64), rtol=0, atol=1e-12)


# --- memory


#: Bits of a unit, the contract: a fold remembers one bit, a wedge log2 of its 2 m mirror images.
BITS = [
    ("abs", {}, 1, 1), ("abs", {"offset": 0.5}, 1, 1), ("leaky", {}, 1, 1), ("box", {}, 1, 1), ("tri", {}, 1, 1),
    ("maxmin", {}, 2, 1), ("groupsort", {"size": 2}, 2, 1), ("groupsort", {"size": 4}, 4, 5), ("groupsort", {"size": 8}, 8, 19),
    ("sortabs", {"size": 2}, 2, 3), ("sortabs", {"size": 4}, 4, 9), ("dihedral", {"m": 2}, 2, 2),
    ("dihedral", {"m": 8}, 2, 4), ("dihedral", {"m": 5}, 2, 4), ("crelu", {}, 1, 1),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "given", "rows", "planes"), BITS, ids=setting_id)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_keeps_bits_alone(kind, given, rows, planes, dtype, generator):
    x = torch.randn(4, 16, 6, 6, generator=generator).to(dtype).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        pyfold.fold(x, kind, **given)
    assert sum(t.numel() * t.element_size() for t in saved) == planes * x.numel() // rows // 8


def test_bits_of_abs_are_signs(backend, generator):
    x = torch.randn(4, 6, 5, generator=generator).to(backend)
    bits = fold_with_bits(x, "abs")[1]
    unpacked = (bits.reshape(-1, 1) >> torch.arange(8, device=backend)) & 1
    assert torch.equal(unpacked.flatten()[: x.numel()].bool(), (x < 0).flatten())


@pytest.mark.parametrize("size", range(1, 10))
def test_sorting_networks_sort(size):
    """The 0-1 principle: a network that sorts every sequence of zeros and ones sorts everything (Knuth, 5.3.4)."""
    for values in itertools.product((0, 1), repeat=size):
        values = list(values)
        for i, j in sorting_network(size):
            assert i < j
            values[i], values[j] = min(values[i], values[j]), max(values[i], values[j])
        assert values == sorted(values)


# --- values, against other definitions and other packages


def test_identities(generator):
    x = torch.randn(50, 2, generator=generator, dtype=F64)
    a, b = x.unbind(1)
    at = lambda t: pyfold.fold(x, "householder", angle=torch.tensor([t], dtype=F64))  # noqa: E731
    sure = {"rtol": 0, "atol": 1e-15}
    torch.testing.assert_close(at(0.0), torch.stack([a, b.abs()], 1), **sure)
    torch.testing.assert_close(at(math.pi / 2), torch.stack([torch.minimum(a, b), torch.maximum(a, b)], 1), **sure)
    torch.testing.assert_close(at(math.pi), torch.stack([-a.abs(), b], 1), **sure)
    torch.testing.assert_close(pyfold.fold(x, "abs"), x.abs(), rtol=0, atol=0)
    torch.testing.assert_close(pyfold.fold(x, "leaky", slope=-1), x.abs(), rtol=0, atol=0)
    torch.testing.assert_close(pyfold.fold(x, "leaky", slope=0), x.relu(), rtol=0, atol=0)
    torch.testing.assert_close(pyfold.fold(x, "leaky", slope=1), x, rtol=0, atol=0)
    # One mirror at t + pi is the half plane above a line.
    torch.testing.assert_close(pyfold.fold(x, "dihedral", m=1), torch.stack([a, b.abs()], 1), **sure)
    torch.testing.assert_close(pyfold.fold(x, "dihedral", m=2), x.abs(), rtol=0, atol=1e-15)
    near = x.clamp(-2.9, 2.9)
    torch.testing.assert_close(pyfold.fold(near, "tri"), pyfold.fold(near, "box"), rtol=0, atol=4e-15)


def test_equal_numbers_are_equal_bits_whichever_came_first():
    x, clamp = torch.tensor([-2.0]), 1.1875  # in no other test, so that the first of these calls makes what the second finds
    minus, plus = (pyfold.fold(x, "leaky", slope=slope, clamp=clamp, dim=0) for slope in (-0.0, 0.0))
    assert minus.signbit().all() and plus.signbit().all()


@pytest.mark.parametrize("m", range(1, 10))
def test_dihedral_folds_into_the_wedge(m, generator):
    """The same length, an angle in the wedge, and the same image for all 2 m mirror images of a point."""
    t = 0.7
    x = torch.randn(300, 2, generator=generator, dtype=F64)
    y = pyfold.fold(x, "dihedral", m=m, angle=t)
    torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-13, atol=0)
    turn = torch.remainder(torch.atan2(y[:, 1], y[:, 0]) - t + 1e-9, 2 * math.pi)
    assert (turn <= math.pi / m + 2e-9).all()
    angle, length = torch.atan2(x[:, 1], x[:, 0]) - t, x.norm(dim=1)
    for k, sign in itertools.product(range(m), (1, -1)):
        image = sign * angle + 2 * math.pi * k / m + t
        points = torch.stack([length * image.cos(), length * image.sin()], 1)
        torch.testing.assert_close(pyfold.fold(points, "dihedral", m=m, angle=t), y, rtol=0, atol=1e-12)


def _exact_half_angles(angles):
    """sin(t / 2) and cos(t / 2) to 300 bits."""
    with mpmath.workprec(300):
        halves = [mpmath.mpf(float(t)) / 2 for t in angles]
        return [mpmath.sin(h) for h in halves], [mpmath.cos(h) for h in halves]


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 0.5001), (np.float64, 0.7)])
def test_half_angles_are_as_exact_as_they_say(dtype, bound, backend):
    """The kernels' sine and cosine of half angles, of every size up to 2^31 and beside the multiples of pi."""
    rng = np.random.default_rng(5)
    multiples = np.pi * np.concatenate([np.arange(1, 40), [1e5, 12345678, 6e8]])
    angles = np.concatenate([
        rng.uniform(-8, 8, 200), rng.uniform(-1, 1, 200) * 10 ** rng.uniform(-30, 9.3, 200), [np.pi * 80143857 * 8],
        multiples, np.nextafter(multiples, 0), [2.0**31, -(2.0**31)], [0.0, -0.0],
    ]).astype(dtype)  # fmt: skip
    found, exact = _C.half_angles(angles), _exact_half_angles(angles)
    for values, wanted in zip(found, exact, strict=True):
        assert values.dtype == dtype
        for value, want in zip(values, wanted, strict=True):
            assert abs(mpmath.mpf(float(value)) - want) <= bound * np.spacing(dtype(abs(float(want))))
    assert np.signbit(found[0][-1]) and not np.signbit(found[0][-2])


def test_half_angles_of_any_size_lie_on_the_circle(backend):
    angles = np.array([3e9, 1e20, -1e100, 1.7e308, 5e-324, np.inf, np.nan])
    sine, cosine = _C.half_angles(angles)
    assert np.abs(sine[:5] ** 2 + cosine[:5] ** 2 - 1).max() < 1e-15
    assert np.isnan(sine[5:]).all() and np.isnan(cosine[5:]).all()


def test_half_angles_know_no_others_beside_them(backend):
    """In blocks of the kernel, whole ones and not, with small ones and too large ones."""
    angles = np.random.default_rng(7).uniform(2e9, 3e9, 64 * 3 + 5)
    angles[64:70] = 0.5
    for found, alone in zip(_C.half_angles(angles), zip(*(_C.half_angles(a[None]) for a in angles), strict=True), strict=True):
        assert np.array_equal(found, np.concatenate(alone))


def test_half_angles_are_the_same_bits_on_every_instruction_set():
    angles = np.random.default_rng(6).normal(size=1000) * 10
    before, results = _C.cpu_tier(), set()
    try:
        for tier in _C.cpu_tiers_supported():
            _C.set_cpu_tier(tier)
            results.add(
                b"".join(part.tobytes() for kind in (np.float32, np.float64) for part in _C.half_angles(angles.astype(kind)))
            )
    finally:
        _C.set_cpu_tier(before)
    assert len(results) == 1


def test_one_hyperplane_is_householders_fold(generator):
    x = torch.randn(40, 2, generator=generator, dtype=F64)
    t = 0.9
    normal = torch.tensor([math.sin(t / 2), -math.cos(t / 2)], dtype=F64)
    folded = pyfold.fold(x, "hyperplane", normal=5 * normal)
    torch.testing.assert_close(folded, pyfold.fold(x, "householder", angle=t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", ["maxmin", "box", "groupsort"])
def test_the_gradient_of_a_bias_is_summed_in_float32(kind, generator):
    """A float32 bias of a bfloat16 state: its gradient is the sum of bfloat16 numbers, to float32's rounding."""
    x = torch.randn(64, 4, 50, generator=generator).bfloat16().requires_grad_()
    bias = torch.randn(4, generator=generator).requires_grad_()
    y = pyfold.fold(x, kind, bias=bias)
    of_x, of_bias = torch.autograd.grad(y, [x, bias], torch.randn(y.shape, generator=generator).bfloat16())
    torch.testing.assert_close(of_bias.double(), of_x.double().sum((0, 2)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("kind", "parameter"), [("abs", None), ("maxmin", None), ("box", None), ("householder", "angle")])
def test_a_gradient_does_not_ask_which_others_are_wanted(kind, parameter, generator):
    x, cotangent = (torch.randn(5, 4, 3, generator=generator, dtype=F64) for _ in range(2))
    operands = {"x": x, "bias": torch.randn(4, generator=generator, dtype=F64)}
    if parameter:
        operands[parameter] = torch.randn(2, generator=generator, dtype=F64)

    def gradients(wanted):
        leaves = {name: tensor.clone().requires_grad_(name in wanted) for name, tensor in operands.items()}
        y = pyfold.fold(leaves["x"], kind, **{n: v for n, v in leaves.items() if n != "x"})
        return torch.autograd.grad(y, [leaves[name] for name in wanted], cotangent)

    for name, expected in zip(operands, gradients(list(operands)), strict=True):
        (alone,) = gradients([name])
        assert torch.equal(alone, expected)


def test_roots_are_the_nearest_numbers(generator):
    """As Python's, which asks the processor; torch may ask a library whose roots are now and then the number beside."""
    for dtype in FLOAT_DTYPES:
        value = (7 * torch.rand(20_000, generator=generator, dtype=torch.float64)).to(dtype)
        expected = torch.tensor([math.sqrt(v) for v in value.tolist()], dtype=torch.float64).to(dtype)
        leaf = value.clone().requires_grad_()
        y = root(leaf)
        assert torch.equal(y, expected)
        (gradient,) = torch.autograd.grad(y.sum(), leaf)
        assert torch.equal(gradient, 1 / (2 * expected))
    for function in (root, sqrt):
        x = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
        assert torch.autograd.gradgradcheck(function, x.requires_grad_())
        assert torch.autograd.gradcheck(function, x, check_forward_ad=True, check_batched_grad=True)
        assert function(torch.tensor([0.0, math.inf], dtype=torch.float64)).tolist() == [0.0, math.inf]


def test_sphere_and_ball_are_continuous_and_bounded(generator):
    direction = torch.nn.functional.normalize(torch.randn(30, 4, generator=generator, dtype=F64), dim=1)
    for radius in (0.5, 1.0):
        for sign in (-1, 1):
            x = (radius + sign * 1e-12) * direction
            torch.testing.assert_close(pyfold.fold(x, "sphere"), (4 if radius == 0.5 else 1) * x, rtol=0, atol=1e-11)
    x = torch.linspace(0, 20, 30, dtype=F64)[:, None] * direction
    assert (pyfold.fold(x, "ball", radius=1.5).norm(dim=1) <= 1.5 + 1e-15).all()


def test_learned_parameters_give_what_numbers_give(generator):
    x = torch.randn(5, 6, 7, generator=generator, dtype=F64)
    cases = {
        "leaky": [{"slope": -0.3}, {"slope": torch.tensor(-0.3, dtype=F64)}, {"slope": torch.full((6,), -0.3, dtype=F64)}],
        "dihedral": [{"m": 5, "angle": 0.4}, {"m": 5, "angle": torch.tensor(0.4, dtype=F64)},
                     {"m": 5, "angle": torch.full((3,), 0.4, dtype=F64)}],
        "householder": [{"angle": 0.4}, {"angle": torch.full((3,), 0.4, dtype=F64)}],
    }  # fmt: skip
    for kind, (first, *others) in cases.items():
        for other in others:
            learned = {k: v.requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in other.items()}
            torch.testing.assert_close(pyfold.fold(x, kind, **learned), pyfold.fold(x, kind, **first), rtol=0, atol=1e-14)


def test_derivatives_in_normals_offsets_slopes_and_angles(generator):
    x = torch.randn(4, 6, generator=generator, dtype=F64).requires_grad_()
    normal = torch.randn(2, 6, generator=generator, dtype=F64).requires_grad_()
    offset = torch.tensor([0.1, -0.2], dtype=F64).requires_grad_()
    hyperplane = lambda x, n, b: pyfold.fold(x, "hyperplane", normal=n, offset=b, gain=1.5)  # noqa: E731
    slope = torch.tensor(-0.4, dtype=F64).requires_grad_()
    angle = torch.tensor([0.3, 0.5, 2.0], dtype=F64).requires_grad_()
    for function, leaves in (
        (hyperplane, (x, normal, offset)),
        (lambda x, a: pyfold.fold(x, "leaky", slope=a), (x, slope)),
        (lambda x, t: pyfold.fold(x, "dihedral", m=5, angle=t), (x, angle)),
        (lambda x, t: pyfold.fold(x, "householder", angle=t, clamp=0.9, gain=1.1), (x, angle)),
    ):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("kind", [kind for kind, fold in FOLDS.items() if not fold.paired])
def test_pairing_is_of_pairs_alone(kind, generator):
    """A unit of many channels laid out as two halves left its tensor."""
    given = {"hyperplane": {"normal": torch.randn(3, 32, generator=generator)}}.get(kind, {})
    sizes = [{"size": size} for size in (None, 2, 8)] if "size" in FOLDS[kind].parameters else [{}]
    for size in sizes:
        x = torch.randn(1, 32, 64, generator=generator, requires_grad=True)
        y = pyfold.fold(x, kind, pairing="halves", **given, **size)
        expected = pyfold.fold(x, kind, **given, **size)
        assert torch.equal(y, expected)
        (to_x,), (expected_to_x,) = (torch.autograd.grad(z.square().sum(), x) for z in (y, expected))
        assert torch.equal(to_x, expected_to_x)


def test_raw_programs_stay_inside_their_tensors(generator):
    """Units of more than two channels have no halves, and the inverse of tri needs planes that its one bit does not fill."""
    x = torch.randn(1, 32, 64, generator=generator)
    swap, tri = [6, 0, 1, 0, 0], [4, 0, 0, 0, 0]
    bits = torch.zeros(1, 64 * 32 // 8, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="two by two"):
        torch.ops.pyfold.fold_sequence(x, None, None, 1, "halves", 1, swap, [], 8, False)
    for instruction in (tri, [2, 0, 0, 0, 0]):
        with pytest.raises(RuntimeError, match="too little"):
            torch.ops.pyfold.fold_sequence_apply(x, bits, None, 1, "adjacent", 1, "inverse", instruction, [1.0, 0.0], 1)


def test_the_inverse_of_a_scaled_and_shifted_program(backend, generator):
    """No fold that unfolds has one; raw programs may."""
    program = Program(2, unfoldable=True)
    program.mirror(0, 0.3)
    program.affine(-1.5, [0.2, -0.7])
    program.box(1, 0.4)
    program.affine(0.5)
    x = torch.randn(2, 4, 5, generator=generator, dtype=F64).to(backend)
    units = 1, "adjacent", 1
    y, bits = torch.ops.pyfold.fold_sequence(x, None, None, *units, *program.operands, True)
    a, b = x[:, 0::2], x[:, 1::2]
    a, b = -1.5 * (0.3 + (a - 0.3).abs()) + 0.2, -1.5 * b - 0.7
    expected = 0.5 * torch.stack([a, 2 * b.clamp(-0.4, 0.4) - b], 2).reshape(x.shape)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-14)
    back = torch.ops.pyfold.fold_sequence_apply(y, bits, None, *units, "inverse", *program.operands)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-14)


def test_against_torchlip(generator):
    """deel-torchlip sorts adjacent channels as pyfold does; its pairs of halves are [min; max]."""
    functional = pytest.importorskip("deel.torchlip.functional")
    x = torch.randn(6, 24, generator=generator)
    for size in (2, 3, 4, 6, 8, 12, 24):
        assert torch.equal(pyfold.fold(x, "groupsort", size=size), functional.group_sort(x, size))
    assert torch.equal(pyfold.fold(x, "groupsort"), functional.full_sort(x))
    image = torch.randn(2, 8, 5, 7, generator=generator)
    assert torch.equal(pyfold.fold(image, "maxmin"), functional.group_sort_2(image))
    other = pytest.importorskip("deel.torchlip").HouseHolder(8)
    with torch.no_grad():
        other.theta.copy_(torch.linspace(-3, 3, 4).reshape(other.theta.shape))
        angle = other.theta.flatten()
        torch.testing.assert_close(pyfold.fold(image, "householder", angle=angle, pairing="halves"), other(image))
    torch.testing.assert_close(pyfold.fold(image, "crelu"), functional.max_min(image))


def test_against_orthogonium(generator):
    """orthogonium's MaxMin gives [max; min], and its HouseHolder divides by the square root of 2, which folds no longer do."""
    layers = pytest.importorskip("orthogonium.layers")
    x = torch.randn(2, 8, 5, 7, generator=generator)
    least, most = pyfold.fold(x, "maxmin", pairing="halves").chunk(2, 1)
    assert torch.equal(torch.cat([most, least], 1), layers.MaxMin()(x))
    other = layers.HouseHolder(8)
    with torch.no_grad():
        other.theta.copy_(torch.linspace(-3, 3, 4).reshape(other.theta.shape))
        folded = pyfold.fold(x, "householder", angle=other.theta.flatten(), pairing="halves", gain=0.5**0.5)
        torch.testing.assert_close(folded, other(x))
    assert torch.equal(pyfold.fold(x, "abs"), layers.Abs()(x))


# --- memory order, precision, modules, docs


@settings()
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1])
def test_any_channel_dimension_and_memory_order(kind, given, dim, backend, generator):
    x = torch.randn(8, 8, 8, 8, generator=generator).to(backend)
    given = to(given, backend, torch.float32)
    bias = torch.randn(8, generator=generator).to(backend)
    composed = kind in ("sphere", "ball", "soft")
    same = (
        (lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)) if composed else (lambda a, b: torch.equal(a, b))
    )
    leaf = x.clone().requires_grad_()
    expected = pyfold.fold(leaf, kind, dim=dim, bias=bias, **given)
    gradient = torch.randn(expected.shape, generator=generator).to(backend)
    expected.backward(gradient)
    for order in ((0, 2, 3, 1), (3, 1, 0, 2), (1, 0, 3, 2)):
        other = x.permute(order).contiguous().permute([order.index(d) for d in range(4)]).requires_grad_()
        y = pyfold.fold(other, kind, dim=dim, bias=bias, **given)
        if not composed and not FOLDS[kind].widens:
            assert y.stride() == other.stride()
        y.backward(gradient)
        assert same(y, expected) is not False
        assert same(other.grad, leaf.grad) is not False


def test_crelu_keeps_channels_last_and_doubles_one_channel(generator):
    x = torch.randn(2, 6, 5, 7, generator=generator).contiguous(memory_format=torch.channels_last)
    y = pyfold.fold(x, "crelu")
    assert y.shape == (2, 12, 5, 7) and y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, torch.cat([x.relu(), (-x).relu()], 1))
    for layout in (torch.contiguous_format, torch.channels_last):
        one = torch.randn(2, 1, 5, 7, generator=generator).contiguous(memory_format=layout).requires_grad_()
        y = pyfold.fold(one, "crelu")
        assert torch.equal(y, torch.cat([one.relu(), (-one).relu()], 1))
        y.backward(torch.ones_like(y))
        assert torch.equal(one.grad, one.detach().sign())


def test_bias_and_angle_in_lower_precision(backend, generator):
    x = torch.randn(8, 6, 4, generator=generator).to(backend, torch.bfloat16)
    bias = torch.randn(6, generator=generator).to(backend).requires_grad_()
    angle = torch.randn(3, generator=generator).to(backend).requires_grad_()
    y = pyfold.fold(x, "householder", bias=bias, angle=angle)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert bias.grad.dtype == angle.grad.dtype == torch.float32
    # |F(z)|^2 does not depend on the angle; what is left is bfloat16's rounding.
    assert angle.grad.abs().max() < 0.05 * y.float().square().sum()


def test_more_channels_than_the_kernels_take(generator):
    """Long sorts and wide hyperplanes run in torch operations, with the same values and gradients."""
    x = torch.randn(3, 300, generator=generator, dtype=F64).requires_grad_()
    y = pyfold.fold(x, "groupsort")
    assert torch.equal(y, x.sort(1).values)
    normal = torch.randn(300, generator=generator, dtype=F64)
    y = pyfold.fold(x, "hyperplane", normal=normal, offset=0.5)
    n = normal / normal.norm()
    torch.testing.assert_close(y, x - 2 * (x @ n - 0.5).clamp(min=0)[:, None] * n)
    assert torch.autograd.gradcheck(lambda v: pyfold.fold(v, "groupsort"), x[:1, :60].detach().requires_grad_())
    fold_with_bits(x.detach()[:, :39], "groupsort")  # the most whose network is one program
    for channels in (40, 300):
        with pytest.raises(ValueError, match=f"{channels} channels"):
            fold_with_bits(x.detach()[:, :channels], "groupsort")


def test_modules(generator):
    x = torch.randn(5, 6, 7, generator=generator)
    module = nn.Fold("householder", 6, bias=True, gain=1.5)
    assert {name for name, _ in module.named_parameters()} == {"bias", "angle"}
    expected = 1.5 * torch.stack([torch.minimum(x[:, 0::2], x[:, 1::2]), torch.maximum(x[:, 0::2], x[:, 1::2])], 2).flatten(
        1, 2
    )
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)
    module(x).sum().backward()
    assert module.bias.grad is not None
    assert module.angle.grad is not None
    assert "householder" in repr(module)
    assert torch.equal(nn.Fold("abs")(x), x.abs())


@pytest.mark.parametrize("make", [
    lambda: nn.Fold("maxmin"), lambda: nn.Fold("householder", 8, bias=True), lambda: nn.Fold("leaky", learn=["slope"]),
])  # fmt: skip
def test_modules_are_traced_by_fx(make, generator):
    """A fold is one call of a traced graph, and its parameters still learn."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), make())
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [pyfold.fold]
    x = torch.randn(3, 4, generator=generator)
    assert torch.equal(traced(x), model(x))
    names, grads = [name for name, _ in model.named_parameters()], []
    for each in (model, traced):
        parameters = dict(each.named_parameters())
        grads.append(torch.autograd.grad(each(x).square().sum(), [parameters[name] for name in names]))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@settings()
def test_modules_are_exported_for_every_batch_size(kind, given):
    """Down to 1, where the bits of a gradient would be one byte, and with what layers before it that learn."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), nn.Fold(kind, 8, **given))
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(model, (torch.ones(5, 4),), dynamic_shapes=dynamic).module()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 4, generator=torch.Generator().manual_seed(batch))
        torch.testing.assert_close(exported(x), model(x), rtol=1e-6, atol=1e-6)


def test_module_parameters_learn_or_stay(generator):
    x = torch.randn(5, 6, generator=generator)
    slope = nn.Fold("leaky", slope=-0.5, learn=["slope"])
    assert [name for name, _ in slope.named_parameters()] == ["slope"]
    slope(x).sum().backward()
    torch.testing.assert_close(slope.slope.grad, x.clamp(max=0).sum())
    assert "slope=0.3" in repr(nn.Fold("leaky", slope=0.3))
    fixed = nn.Fold("hyperplane", normal=torch.randn(2, 6), learn=["offset"])
    assert set(fixed.state_dict()) == {"normal", "offset"} and [n for n, _ in fixed.named_parameters()] == ["offset"]
    fixed(x).sum().backward()
    assert fixed.offset.grad is not None
    again = nn.Fold("hyperplane", normal=torch.zeros(2, 6), learn=["offset"])
    again.load_state_dict(fixed.state_dict())
    assert torch.equal(again(x), fixed(x))


@pytest.mark.parametrize("kind", ["hyperplane", "householder"])
def test_angle_and_normal_gradients_do_not_depend_on_threads(kind, generator):
    x = torch.randn(8, 64, 31, 33, generator=generator)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            if kind == "householder":
                leaf = torch.linspace(-3, 3, 32).requires_grad_()
                y = pyfold.fold(x, kind, angle=leaf)
            else:
                leaf = x.clone().requires_grad_()
                y = pyfold.fold(leaf, kind, normal=torch.ones(64))
            y.square().sin().sum().backward()
            results.append(leaf.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_the_docs_hold_the_table():
    page = Path(__file__).parent.parent / "docs" / "folds.md"
    assert fold_table() in page.read_text(), "docs/folds.md: paste pyfold.ops.fold_table() into it"


def test_every_kind_is_in_the_docstring():
    for kind, fold in FOLDS.items():
        text = inspect.getdoc(pyfold.fold)
        assert f'``"{kind}"``' in text
        assert all(name in text for name in fold.parameters)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize(("code", "constant"), [("Mirror", -0.3), ("Leaky", -0.6), ("Box", 0.7)], ids=str)
def test_folds_of_single_values_are_what_the_interpreter_makes_of_them(code, constant, dtype, backend, generator):
    """A program of one such fold runs in one pass; a clamp that never binds sends it to the interpreter. Bit for bit."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    one, two = [CODES[code], 0, 0, 0, 0], [CODES[code], 0, 0, 0, 0, CODES["Clamp"], 0, 0, 1, 1]
    for count in (1, 7, 8, 255, 256, 1000, 4103):
        x = torch.randn(count, generator=generator, dtype=F64).to(backend, dtype)
        special = torch.tensor([-0.0, 0.0, math.nan, math.inf, -math.inf, constant, -constant, 1e-42])
        x[: min(count, 8)] = special[: min(count, 8)].to(dtype)
        size = (count + 7) // 8
        results = []
        for program, constants in ((one, [constant]), (two, [constant, math.inf])):
            units, call = (0, "adjacent", 1), (program, constants, 1)
            y, bits = torch.ops.pyfold.fold_sequence(x, None, None, *units, *call, True)
            forgetful, _ = torch.ops.pyfold.fold_sequence(x, None, None, *units, *call, False)
            back = torch.ops.pyfold.fold_sequence_apply(x, bits, None, *units, "adjoint", *call)
            results.append([y.view(words), forgetful.view(words), back.view(words), bits[:, :size]])
        assert all(torch.equal(quick, slow) for quick, slow in zip(*results, strict=True))
        assert torch.equal(results[0][0], results[0][1])


@pytest.mark.parametrize(
    ("kind", "rows", "given"),
    [
        ("abs", 1, {}),
        ("leaky", 1, {"slope": -0.6}),
        ("maxmin", 2, {}),
        ("maxmin", 2, {"pairing": "halves"}),
        ("householder", 2, {"angle": 0.3}),
        ("groupsort", 4, {}),
    ],
    ids=setting_id,
)
def test_bits_beyond_the_last_unit_are_zero(kind, rows, given, backend, generator):
    """Also where the kernel's memory holds flags of larger tensors; so equal calls save equal bytes."""
    for units in (4101, 1027, 1024, 1019, 301, 9, 4, 1):
        x = torch.randn(units, rows, generator=generator).to(backend)
        bits = fold_with_bits(x, kind, **given)[1].reshape(-1, (units + 7) // 8)
        assert units % 8 == 0 or not (bits[:, -1] >> units % 8).any()


@pytest.mark.parametrize("kind", ["maxmin", "box"])
def test_at_the_clamp_itself_the_gradient_passes(kind, backend):
    """In the kernels of single folds and of programs, and in torch's operations, whose own clamp stops it from 2.15 on."""
    x = torch.tensor([[-0.7, 0.7, 0.7, -0.7, 0.75, -0.75, 0.5, 0.6]], device=backend, requires_grad=True)
    plain = pyfold.fold(x, kind)
    (to_x,) = torch.autograd.grad((plain * (plain.detach().abs() <= x[0, 1].detach())).sum(), x)
    for clamped in (
        pyfold.fold(x, kind, clamp=0.7),
        importlib.import_module("pyfold.ops.fold").fold_reference(x, kind, clamp=0.7),
    ):
        assert torch.equal(clamped, plain.clamp(-0.7, 0.7))
        assert torch.equal(torch.autograd.grad(clamped.sum(), x)[0], to_x)
    assert sorted(set(to_x.abs().flatten().tolist())) == [0, 1]


@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_a_sort_of_one_value_is_the_identity_and_keeps_no_bits(samples):
    x = torch.linspace(-2, 2, samples * 4).reshape(samples, 4).requires_grad_()
    y = pyfold.fold(x, "groupsort", size=1)
    assert torch.equal(y, x)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones_like(x))
    y, bits = pyfold.ops.fold_with_bits(x.detach(), "groupsort", size=1)
    assert torch.equal(y, x) and bits.numel() == 0
    assert torch.equal(pyfold.ops.unfold(y, bits, "groupsort", size=1), x)
    (tangent,) = torch.func.jvp(lambda x: pyfold.fold(x, "groupsort", size=1), (x.detach(),), (torch.ones_like(x),))[1:]
    assert torch.equal(tangent, torch.ones_like(x))
    each = torch.func.vmap(lambda x: pyfold.fold(x, "groupsort", size=1, dim=0))(x) if samples else x
    assert torch.equal(each, x)
