"""Latent tools: what is exact is tested as exact, and what keeps N(0, I) is put before a Kolmogorov-Smirnov test."""

import itertools
import math

import pytest
import torch

import pyfold
from pyfold.gan import latent

scipy_stats = pytest.importorskip("scipy.stats")
D = 12


def codes(count, size=D, seed=0):
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_standard_normal(z):
    """Every coordinate, random directions, and the squared norm (chi squared), at a level that 100 tests pass by chance."""
    directions = torch.nn.functional.normalize(codes(8, z.shape[1], seed=99), dim=1)
    for marginal in [*z.T, *(z @ directions.T).T]:
        assert scipy_stats.kstest(marginal.numpy(), "norm").pvalue > 1e-5
    assert scipy_stats.kstest(z.square().sum(1).numpy(), "chi2", args=(z.shape[1],)).pvalue > 1e-5


def test_the_counterpart_keeps_the_normal_distribution_and_the_norm():
    z, a, b = codes(20_000), *codes(2, seed=1) * torch.tensor([[1.0], [3.0]])
    image = latent.counterpart(z, a, b)
    assert_standard_normal(image)
    torch.testing.assert_close(image.norm(dim=1), z.norm(dim=1), rtol=0, atol=1e-13)
    assert (image - z).norm(dim=1).mean() > 1


def test_the_test_of_normality_can_fail():
    """A fold is no reflection: it halves the space, and its mean along the normal is -sqrt(2 / pi)."""
    z, normal = codes(20_000), torch.eye(D, dtype=torch.float64)[0]
    folded, bit = latent.fold_hyperplane(z, normal)
    assert folded[:, 0].mean().item() == pytest.approx(-math.sqrt(2 / math.pi), abs=0.02)
    with pytest.raises(AssertionError):
        assert_standard_normal(folded)
    a, b = codes(2, seed=1)
    with pytest.raises(AssertionError):  # the translation of vector arithmetic drifts
        assert_standard_normal(z + 0.2 * (b - a))
    torch.testing.assert_close(torch.where(bit, latent.reflect(folded, normal), folded), z, rtol=0, atol=1e-14)


def test_the_counterpart_is_an_involution_that_swaps_the_concepts():
    z, a, b = codes(50), *codes(2, seed=1)
    torch.testing.assert_close(latent.counterpart(latent.counterpart(z, a, b), a, b), z, rtol=0, atol=1e-13)
    a, b = latent.equalise(a, 7 * b)
    torch.testing.assert_close(latent.counterpart(a, a, b), b, rtol=0, atol=1e-13)
    torch.testing.assert_close(latent.counterpart(b, a, b), a, rtol=0, atol=1e-13)
    across = z - (z @ (a - b))[:, None] * (a - b) / (a - b).square().sum()  # what lies on the crease stays
    torch.testing.assert_close(latent.counterpart(across, a, b), across, rtol=0, atol=1e-13)


def test_equal_concepts_change_nothing():
    z, a = codes(5), codes(1, seed=1)[0]
    assert torch.equal(latent.counterpart(a, a, a), a)
    assert torch.equal(latent.counterpart(z, a, a.clone()), z)
    children = latent.crease_children(a, a, [1, 2, 3])
    torch.testing.assert_close(children, a.expand(3, -1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("spread", [0.0, 0.4, 1.0])
def test_crease_children_are_equidistant(spread):
    a, b = latent.equalise(*codes(2, seed=1))
    children = latent.crease_children(a, b, range(200), spread=spread)
    to_a, to_b = (children - a).norm(dim=1), (children - b).norm(dim=1)
    torch.testing.assert_close(to_a, to_b, rtol=0, atol=1e-12)
    torch.testing.assert_close(children.norm(dim=1), a.norm().expand(200), rtol=0, atol=1e-12)
    distinct = torch.pdist(children).min().item()
    assert (distinct > 0.05) == (spread > 0)
    if spread == 0:
        torch.testing.assert_close(children[0], latent.slerp(a, b, 0.5), rtol=0, atol=1e-12)
    if spread == 1:
        torch.testing.assert_close((children @ (a + b)) / (a + b).norm(), ((a + b) / 2).norm().expand(200), rtol=0, atol=1e-12)


def test_children_are_functions_of_their_seeds():
    a, b = codes(2, seed=1)
    assert torch.equal(latent.crease_children(a, b, [4, 9])[1:], latent.crease_children(a, b, [9]))
    opposite = latent.crease_children(a, -a, [4, 9])
    torch.testing.assert_close((opposite - a).norm(dim=1), (opposite + a).norm(dim=1), rtol=0, atol=1e-12)
    torch.testing.assert_close(opposite.norm(dim=1), a.norm().expand(2), rtol=0, atol=1e-12)


GROUPS = [latent.SignFlips(), latent.Permutations(), latent.Hyperplanes.random(5, D, seed=3, dtype=torch.float64)]


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: type(g).__name__)
def test_variations_keep_the_normal_distribution_and_the_orbit(group):
    z = codes(20_000)
    varied = torch.cat([latent.variations(row, group, [i]) for i, row in enumerate(z.split(1))])[:, 0]
    assert_standard_normal(varied)
    torch.testing.assert_close(varied.norm(dim=1), z.norm(dim=1), rtol=0, atol=1e-13)
    torch.testing.assert_close(group.fold(varied), group.fold(z), rtol=0, atol=1e-13)
    torch.testing.assert_close(group.fold(group.fold(z)), group.fold(z), rtol=0, atol=1e-13)
    assert (varied - z).norm(dim=1).median() > 0.5


@pytest.mark.parametrize(
    ("group", "order"),
    [(latent.SignFlips(), 8), (latent.Permutations(), 6), (latent.Hyperplanes.random(2, 3, 5, torch.float64), 4)],
)
def test_every_element_of_the_group_is_equally_likely(group, order):
    z = torch.tensor([0.3, -1.1, 2.0], dtype=torch.float64)
    images = latent.variations(z, group, torch.arange(6000))
    _, counts = images.mul(1e9).round().unique(dim=0, return_counts=True)
    assert len(counts) == order
    assert scipy_stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_hyperplanes_must_be_upright():
    with pytest.raises(ValueError, match="normals must be orthonormal.*0.5"):
        latent.Hyperplanes(torch.tensor([[1.0, 0.0], [0.5, math.sqrt(0.75)]]))
    with pytest.raises(ValueError, match=r"count must be in \[1, 3\], got 4"):
        latent.Hyperplanes.random(4, 3)


def test_walks():
    a, b = latent.equalise(*codes(2, seed=1))
    t = torch.linspace(0, 1, 7)
    line, arc = latent.lerp(a, b, t), latent.slerp(a, b, t)
    assert line.shape == arc.shape == (7, D)
    for walk in (line, arc):
        torch.testing.assert_close(walk[[0, -1]], torch.stack([a, b]), rtol=0, atol=1e-12)
    torch.testing.assert_close(line[3], (a + b) / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(arc.norm(dim=1), a.norm().expand(7), rtol=0, atol=1e-12)
    angles = [torch.acos((p @ q) / (p.norm() * q.norm())) for p, q in itertools.pairwise(arc)]
    torch.testing.assert_close(torch.stack(angles), torch.stack(angles[:1] * 6), rtol=0, atol=1e-7)
    torch.testing.assert_close(latent.slerp(a, a, t), a.expand(7, -1), rtol=0, atol=1e-12)
    batch = codes(4)
    assert latent.slerp(batch, batch.flip(0), t).shape == (4, 7, D)
    torch.testing.assert_close(
        latent.slerp(batch, batch.flip(0), 0.25), latent.slerp(batch, batch.flip(0), t.new_tensor([0.25]))[:, 0]
    )
    with pytest.raises(ValueError, match="opposite"):
        latent.slerp(a, -a, 0.5)


def test_arithmetic_of_averaged_codes():
    glasses, bare, woman = codes(3, seed=1), codes(5, seed=2), codes(3, seed=3)
    result = latent.arithmetic([glasses, woman], [bare])
    torch.testing.assert_close(result, glasses.mean(0) + woman.mean(0) - bare.mean(0))
    scaled = latent.arithmetic([glasses, woman], [bare], radius=2.0)
    torch.testing.assert_close(scaled, 2 * result / result.norm())
    torch.testing.assert_close(latent.rescale(result).norm().item(), math.sqrt(D))


def test_combinations_keep_the_normal_distribution():
    z = codes(60_000).reshape(20_000, 3, D)
    assert_standard_normal(latent.combine(z, torch.tensor([0.5, -2.0, 0.1])))


def two_concepts(count=400):
    """Two clouds that differ along one axis, with a wide common variation that is not orthogonal to the difference of means."""
    base, tilt = codes(2 * count), torch.eye(D, dtype=torch.float64)
    base = base @ torch.diag(torch.tensor([0.3, 2.0] + [1.0] * (D - 2), dtype=torch.float64))
    shift = tilt[0] + 0.5 * tilt[1]
    return base[:count] + shift, base[count:] - shift


def test_the_discriminant_finds_what_tells_apart():
    a, b = two_concepts()
    normal, offset = latent.discriminant(a, b, shrinkage=0.0)
    assert normal.norm().item() == pytest.approx(1)
    correct = lambda n, c: ((a @ n > c).double().mean() + (b @ n < c).double().mean()).item() / 2  # noqa: E731
    assert correct(normal, offset) > 0.99
    means = latent.rescale(a.mean(0) - b.mean(0), 1.0)
    torch.testing.assert_close(latent.discriminant(a, b, shrinkage=1.0)[0], means, rtol=0, atol=1e-10)
    sklearn = pytest.importorskip("sklearn.discriminant_analysis")
    labels = [0] * len(b) + [1] * len(a)
    other = torch.from_numpy(sklearn.LinearDiscriminantAnalysis(solver="lsqr").fit(torch.cat([b, a]).numpy(), labels).coef_[0])
    torch.testing.assert_close(normal, other / other.norm(), rtol=0, atol=1e-6)


def test_a_fold_learns_from_its_formula():
    """Adam on the logistic loss of the bit and the energy distance of moved a's from b's, step by step."""
    a, b = two_concepts()
    normal = torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fold = latent.LearnedFold(normal).fit(a, b, steps=4, lr=0.03, sharpness=2.0)
    n, c = normal.clone().requires_grad_(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([n, c], 0.03)
    for _ in range(4):
        unit = n / n.norm()
        side_a, side_b = a @ unit - c, b @ unit - c
        bit = torch.log1p(torch.exp(-2 * side_a)).mean() + torch.log1p(torch.exp(2 * side_b)).mean()
        moved = a - 2 * side_a[:, None] * unit
        apart = lambda x, y: (x[:, None] - y[None]).square().sum(-1).add(1e-300).sqrt().mean()  # noqa: E731
        energy = 2 * apart(moved, b) - apart(a, a) - apart(b, b)
        optimizer.zero_grad()
        (bit + energy).backward()
        optimizer.step()
    torch.testing.assert_close(fold.normal.detach(), n.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fold.offset.detach(), c.detach(), rtol=1e-7, atol=1e-9)


def test_a_learned_fold():
    a, b = two_concepts()
    start = latent.LearnedFold(torch.randn(D, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    energy = lambda f: (2 * torch.cdist(f.translate(a), b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()  # noqa: E731
    before = energy(start)
    fold = start.fit(a, b, steps=150)
    assert energy(fold) < 0.2 * before
    code, bit = fold.fold(torch.cat([a, b]))
    assert (bit[:400].double().mean() - bit[400:].double().mean()) > 0.9
    torch.testing.assert_close(fold.unfold(code, bit), torch.cat([a, b]), rtol=0, atol=1e-12)
    torch.testing.assert_close(fold(fold.translate(a)), fold(a), rtol=0, atol=1e-12)  # the shared code does not know the bit
    torch.testing.assert_close(fold.translate(fold.translate(a)), a, rtol=0, atol=1e-12)
    lda = latent.LearnedFold.between(a, b)
    assert lda.fold(a)[1].double().mean() > 0.95


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: latent.lerp(torch.zeros(3), torch.zeros(4), 0.5), ValueError, r"same size, got a \(3,\), b \(4,\)"),
        (lambda: latent.lerp(torch.zeros(3), [0.0], 0.5), TypeError, "b must be a torch.Tensor"),
        (lambda: latent.slerp(torch.ones(3), torch.ones(3), float("nan")), ValueError, "t must be finite"),
        (lambda: latent.counterpart(torch.zeros(3).half(), torch.zeros(3), torch.zeros(3)), TypeError, "z.*float16"),
        (lambda: latent.crease_children(torch.ones(4), -torch.ones(4), [1], spread=2), ValueError, r"spread.*\[0, 1\], got 2"),
        (lambda: latent.crease_children(torch.ones(2), -torch.ones(2), [1]), ValueError, "d >= 3"),
        (lambda: latent.arithmetic([]), ValueError, "plus must hold"),
        (lambda: latent.combine(torch.ones(2, 3), torch.zeros(2)), ValueError, "weights must not all"),
        (lambda: latent.discriminant(torch.ones(1, 3), torch.ones(2, 3)), ValueError, "N >= 2"),
        (lambda: latent.LearnedFold(torch.zeros(3)), ValueError, "other than 0"),
        (lambda: latent.LearnedFold(torch.ones(3)).fit(torch.ones(2, 3), [[0.0] * 3]), TypeError, "b must be a torch.Tensor"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_gradients_flow():
    z, a, b = codes(3).requires_grad_(), *codes(2, seed=1).unbind()
    b = b.clone().requires_grad_()
    torch.autograd.gradcheck(latent.counterpart, (z, a.clone().requires_grad_(), b))
    assert pyfold.gan.latent is latent


@pytest.mark.parametrize("angle", [1e-6, 1e-5, 1e-3, 0.05, 0.5, 3.0])
def test_slerp_at_small_angles_too(angle):
    """Two codes of the plane: the way is an arc, to the last digits however short it is."""
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 0.7], dtype=torch.float64)
    expected = torch.stack([(t * angle).cos(), (t * angle).sin()], 1)
    torch.testing.assert_close(latent.slerp(a, b, t), expected, rtol=1e-8 if angle < 1e-4 else 1e-11, atol=1e-13)
