"""Metrics of samples against closed forms."""

import math

import numpy as np
import pytest
import torch

from pyfold.gan import metrics

rng = np.random.default_rng(0)


def moments(mean, covariance, count=4000):
    """Points whose mean and covariance are exactly these."""
    dims = len(mean)
    points = rng.standard_normal((count, dims))
    points -= points.mean(0)
    points @= np.linalg.inv(np.linalg.cholesky(np.cov(points, rowvar=False))).T
    return points @ np.linalg.cholesky(covariance).T + mean


def test_frechet_of_two_gaussians():
    """Commuting covariances: the sum of squared differences of means and of standard deviations."""
    x = moments(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    y = moments(np.array([1.0, -2.0, 0.5]), np.diag([4.0, 1.0, 0.25]))
    expected = 1 + 4 + 0.25 + (1 - 2) ** 2 + (2 - 1) ** 2 + (3 - 0.5) ** 2
    assert metrics.frechet_distance(x, torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    assert metrics.frechet_distance(x @ turn, y @ turn) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_where_covariances_do_not_commute():
    """Against scipy's root of a matrix, and the closed form of Gaussians in the plane, tr (C1 C2)^(1/2) =
    sqrt(tr C1 C2 + 2 sqrt(det C1 C2))."""
    linalg = pytest.importorskip("scipy.linalg")
    for dims in (2, 6):
        a, b = rng.standard_normal((2, dims, dims))
        first, second = a @ a.T + np.diag(np.arange(1.0, dims + 1)), b @ b.T + np.ones((dims, dims)) + 0.1 * np.eye(dims)
        shift = rng.standard_normal(dims)
        value = metrics.frechet_distance(moments(np.zeros(dims), first), moments(shift, second))
        cross = np.trace(linalg.sqrtm(first @ second).real)
        if dims == 2:
            product = first @ second
            assert cross == pytest.approx(np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product))), rel=1e-8)
        assert value == pytest.approx(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross, rel=1e-8)
        assert np.linalg.norm(first @ second - second @ first) > 0.5


@pytest.mark.parametrize("count", [5, 30, 64, 65, 300])
def test_frechet_of_any_rank(count):
    """Fewer samples than features: a set with itself is 0, with itself stretched by 2 and moved tr C + |m|^2, and turned and
    embedded in more features the same."""
    x = rng.standard_normal((count, 64)) @ rng.standard_normal((64, 64)) + 5
    trace = np.trace(np.cov(x, rowvar=False))
    assert 0 <= metrics.frechet_distance(x, x) < 1e-9 * trace
    assert 0 <= metrics.frechet_distance(x, x[::-1]) < 1e-9 * trace
    shift = rng.standard_normal(64)
    moved = 2 * (x - x.mean(0)) + x.mean(0) + shift
    expected = shift @ shift + trace
    assert metrics.frechet_distance(x, moved) == pytest.approx(expected, rel=1e-11)
    assert metrics.frechet_distance(moved, x) == pytest.approx(expected, rel=1e-11)
    y = rng.standard_normal((40, 64))
    turn = np.linalg.qr(rng.standard_normal((90, 90)))[0][:64]
    assert metrics.frechet_distance(x @ turn, y @ turn) == pytest.approx(metrics.frechet_distance(x, y), rel=1e-11)


def test_frechet_where_ranks_differ():
    """Points on one line and on another, at an angle w: 1 + 1 - 2 |cos w| for unit variances; and a plane around a line."""
    line = moments(np.zeros(2), np.eye(2))[:, 0]
    for angle in (0.0, 0.3, 1.0, math.pi / 2):
        first, second = np.outer(line, [1, 0, 0]), np.outer(line, [math.cos(angle), math.sin(angle), 0])
        assert metrics.frechet_distance(first, second) == pytest.approx(2 - 2 * math.cos(angle), abs=1e-12)
    plane = np.pad(moments(np.zeros(2), np.diag([4.0, 9.0])), ((0, 0), (0, 1)))
    assert metrics.frechet_distance(np.outer(line, [1, 0, 0]), plane) == pytest.approx((2 - 1) ** 2 + 9, rel=1e-12)


def test_kernel_distance_by_another_library():
    """scikit-learn's polynomial kernel, whose diagonals are left out within a set."""
    kernel = pytest.importorskip("sklearn.metrics.pairwise").polynomial_kernel
    x, y = rng.standard_normal((50, 7)), rng.standard_normal((40, 7)) + 0.3
    within = sum((kernel(z).sum() - np.trace(kernel(z))) / (len(z) * (len(z) - 1)) for z in (x, y))
    assert metrics.kernel_distance(x, y) == pytest.approx(within - 2 * kernel(x, y).mean(), rel=1e-10)


def test_kernel_distance_of_points():
    """k(x, y) = (xy + 1)^3 in one dimension; E k over a standard normal pair and a shifted one is a polynomial."""
    x, y = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0]])
    k = lambda a, b: (a * b + 1) ** 3  # noqa: E731
    expected = (2 * k(0, 1) + 2 * k(0, 2) + 2 * k(1, 2)) / 6 + k(1, 3)
    expected -= 2 * np.mean([k(a, b) for a in (0, 1, 2) for b in (1, 3)])
    assert metrics.kernel_distance(x, y) == pytest.approx(expected)
    # E (xy + 1)^3 with x, y ~ N(m, 1): 1 + 3 m m' + 3 (1 + m^2)(1 + m'^2) + (m^3 + 3 m)(m'^3 + 3 m')
    mean = lambda a, b: 1 + 3 * a * b + 3 * (1 + a * a) * (1 + b * b) + (a**3 + 3 * a) * (b**3 + 3 * b)  # noqa: E731
    truth = mean(0, 0) + mean(0.5, 0.5) - 2 * mean(0, 0.5)
    draws = [metrics.kernel_distance(rng.standard_normal((400, 1)), 0.5 + rng.standard_normal((400, 1))) for _ in range(60)]
    assert abs(np.mean(draws) - truth) < 4 * np.std(draws) / math.sqrt(60)
    draws = [metrics.kernel_distance(*rng.standard_normal((2, 100, 2))) for _ in range(100)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 10


def test_manifolds_of_known_sets():
    line = np.arange(40.0)[:, None]
    same = metrics.manifold_metrics(line, line + 0.25, neighbours=1)
    assert same == metrics.Manifolds(1.0, 1.0, pytest.approx(2 * 39 / 40 + 1 / 40, abs=0.03), 1.0)
    half = metrics.manifold_metrics(line, line[:20] + 0.25, neighbours=1)
    assert half.precision == 1
    assert half.coverage == pytest.approx(0.525)  # the ball of one more real point reaches the last generated one
    assert half.recall == pytest.approx(0.525)
    apart = metrics.manifold_metrics(line, line + 1000, neighbours=3)
    assert apart == metrics.Manifolds(0.0, 0.0, 0.0, 0.0)


def by_definition(x, y, k):
    """Naeem et al. 2020, eq. 1 to 8, distances by differences of whole arrays in extended precision."""
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    pairs = lambda a, b: ((a[:, None] - b[None]) ** 2).sum(-1)  # noqa: E731
    radius = [np.sort(pairs(z, z), 1)[:, k] for z in (x, y)]
    inside = [pairs(x, y) < radius[0][:, None], pairs(x, y) < radius[1][None]]
    return metrics.Manifolds(
        inside[0].any(0).mean(), inside[1].any(1).mean(), inside[0].sum(0).mean() / k, inside[0].any(1).mean()
    )


@pytest.mark.parametrize("dims", [1, 3, 16, 64])
@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_manifolds_of_a_set_with_itself_are_1(dims, neighbours):
    for offset in (0, 100, 1e6):
        z = rng.standard_normal((300, dims)) + offset
        assert metrics.manifold_metrics(z, z.copy(), neighbours) == metrics.Manifolds(1.0, 1.0, 1.0, 1.0)
    z = rng.standard_normal((300, dims))
    assert metrics.manifold_metrics(torch.from_numpy(z).float(), z.astype(np.float32), neighbours).density == 1


def test_manifolds_by_definition():
    """Sets that share points, memorised halves, and data far from the origin."""
    x, y = rng.standard_normal((2, 200, 8))
    cases = {
        "apart": (x, y),
        "shared": (x, np.concatenate([x[:100], y[:100]])),
        "memorised halves": (x, np.concatenate([x[:100], x[:100] + 1e-3 * y[:100]])),
        "far": (x + 1e6, y + 1e6),
        "far and shared": (x + 1e6, np.concatenate([x[:100], y[:100]]) + 1e6),
    }
    for name, (real, fake) in cases.items():
        assert metrics.manifold_metrics(real, fake) == by_definition(real, fake, 5), name
    assert metrics.manifold_metrics(*cases["far"]).recall > 0.3


def test_coverage_of_equal_distributions_is_what_its_authors_derive():
    """Naeem et al. 2020, lemma 3: E coverage = 1 - (M - 1) ... (M - k) / ((2 M - 1) ... (2 M - k)); E density = 1."""
    count, k = 100, 3
    values = [metrics.manifold_metrics(*rng.standard_normal((2, count, 4)), neighbours=k) for _ in range(60)]
    expected = 1 - math.prod((count - i) / (2 * count - i) for i in range(1, k + 1))
    for name, truth in (("coverage", expected), ("density", 1.0)):
        draws = [getattr(v, name) for v in values]
        assert abs(np.mean(draws) - truth) < 4 * np.std(draws) / math.sqrt(60)


def test_classifier_score():
    assert metrics.classifier_score(np.eye(7)) == pytest.approx(7)
    assert metrics.classifier_score(np.full((5, 4), 0.25)) == pytest.approx(1)
    assert metrics.classifier_score(np.eye(7)[[0, 0, 1, 1]]) == pytest.approx(2)
    p = np.array([[0.9, 0.1], [0.1, 0.9]])
    expected = 2 * math.exp(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert metrics.classifier_score(p) == pytest.approx(expected)


def test_divergences():
    assert metrics.jensen_shannon([1, 0], [0, 1]) == pytest.approx(math.log(2))
    p, q = np.array([0.7, 0.3]), np.array([0.2, 0.8])
    m = (p + q) / 2
    assert metrics.jensen_shannon(p, q) == pytest.approx(((p * np.log(p / m)).sum() + (q * np.log(q / m)).sum()) / 2)
    x = rng.standard_normal((500, 1))
    assert metrics.wasserstein(x, x + 1.25) == pytest.approx(1.25)
    cloud = rng.standard_normal((40, 3))
    assert metrics.wasserstein(cloud, cloud + np.array([3.0, 0.0, 4.0])) == pytest.approx(5)


def ring(modes=8, count=40_000, std=0.01, kept=None):
    angle = 2 * np.pi * np.arange(modes) / modes
    centres = np.stack([np.cos(angle), np.sin(angle)], 1)
    which = rng.integers(kept or modes, size=count)
    return centres[which] + std * rng.standard_normal((count, 2)), centres


def test_a_perfect_sampler_reaches_the_ceiling():
    samples, centres = ring()
    result = metrics.mode_coverage(samples, centres, 0.01)
    ceiling = 1 - math.exp(-4.5)
    assert result.ceiling == pytest.approx(ceiling, abs=1e-12)
    assert (result.modes, result.of) == (8, 8)
    assert abs(result.high_quality - ceiling) < 4 * math.sqrt(ceiling * (1 - ceiling) / len(samples))
    assert 0 <= result.kl < 5 * 8 / (2 * len(samples))  # 2 N KL has a chi-squared distribution with 8 degrees


def test_mode_coverage_sees_each_failure():
    samples, centres = ring(kept=2)
    collapsed = metrics.mode_coverage(samples, centres, 0.01)
    assert collapsed.modes == 2
    assert collapsed.kl == pytest.approx(math.log(4) * collapsed.high_quality, abs=0.01)
    blurred = metrics.mode_coverage(centres[rng.integers(8, size=9000)] + 0.1 * rng.standard_normal((9000, 2)), centres, 0.01)
    assert blurred.modes == 8  # coverage alone would call this perfect
    assert blurred.high_quality == pytest.approx(1 - math.exp(-0.045), abs=0.01)
    assert blurred.kl > 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.frechet_distance(np.zeros(3), np.zeros((3, 2))), r"real.*\[N, D\].*\(3,\)"),
        (lambda: metrics.frechet_distance(np.zeros((3, 2)), np.zeros((3, 4))), "2 and 4"),
        (lambda: metrics.kernel_distance(np.full((3, 2), np.nan), np.zeros((3, 2))), "real.*finite"),
        (lambda: metrics.manifold_metrics(np.zeros((3, 2)), np.zeros((9, 2)), 3), r"neighbours.*\[1, 3\).*3"),
        (lambda: metrics.classifier_score(np.ones((3, 2))), "probabilities.*sum to 1"),
        (lambda: metrics.mode_coverage(np.zeros((3, 2)), np.eye(2), 0.0), "std.*0"),
        (lambda: metrics.mode_coverage(np.zeros((3, 2)), np.eye(2), math.inf), "std.*inf"),
        (lambda: metrics.frechet_distance(np.zeros((3, 0)), np.zeros((3, 0))), r"real.*\(3, 0\)"),
        (lambda: metrics.jensen_shannon([0, 0], [1, 1]), "p must be a histogram.*not all 0"),
        (lambda: metrics.jensen_shannon([1, 1], [2, -1]), "q must be a histogram.*not negative"),
        (lambda: metrics.jensen_shannon([1, math.nan], [1, 1]), "p must be finite"),
        (lambda: metrics.jensen_shannon([1, 1], [1, math.inf]), "q must be finite"),
        (lambda: metrics.jensen_shannon([1, 1], [1, 1, 1]), "same bins, got 2 and 3"),
        (lambda: metrics.jensen_shannon([[1, 1]], [[1, 1]]), "p must be a histogram"),
        (lambda: metrics.wasserstein(np.full((3, 1), np.nan), np.zeros((3, 1))), "real.*finite"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


FUNCTIONS = {
    "frechet": metrics.frechet_distance,
    "kernel": metrics.kernel_distance,
    "manifolds": lambda x, y: metrics.manifold_metrics(x, y, 3),
    "wasserstein": metrics.wasserstein,
    "modes": lambda x, y: metrics.mode_coverage(x, y, 1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_features_of_every_dtype(name):
    """Half types and integers as their values; complex numbers and texts are refused."""
    values = torch.randint(-8, 9, (20, 3), generator=torch.Generator().manual_seed(0))
    other = torch.randint(-8, 9, (20, 3), generator=torch.Generator().manual_seed(1))
    expected = FUNCTIONS[name](values.double(), other.double())
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.int8):
        assert FUNCTIONS[name](values.to(dtype), other.to(dtype)) == expected
    with pytest.raises(TypeError, match="must hold real numbers, got dtype complex64"):
        FUNCTIONS[name](values.to(torch.complex64), other)
    with pytest.raises(TypeError, match="must hold real numbers, got dtype complex128"):
        FUNCTIONS[name](values.numpy() + 1j, other)
    with pytest.raises(TypeError, match="must hold real numbers"):
        FUNCTIONS[name](np.full((20, 3), "x"), other)
    assert metrics.jensen_shannon(torch.tensor([1, 0], dtype=torch.bfloat16), [0, 1]) == pytest.approx(math.log(2))
