"""GAN losses and penalties against closed forms, and second derivatives through folds against eager operations."""

import math

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.functional import softplus

import pyfold
from pyfold import gan
from pyfold.models import Discriminator


def test_losses_at_known_logits():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    s = softplus
    expected = (s(torch.tensor(-2.0)) + s(torch.tensor(1.0))) / 2 + (s(torch.tensor(0.5)) + s(torch.tensor(1.0))) / 2
    torch.testing.assert_close(gan.non_saturating_d(real, fake), expected)
    torch.testing.assert_close(gan.non_saturating_g(fake), (s(torch.tensor(-0.5)) + s(torch.tensor(-1.0))) / 2)
    expected = (s(torch.tensor(-1.5)) + s(torch.tensor(2.0))) / 2
    torch.testing.assert_close(gan.relativistic_d(real, fake), expected)
    torch.testing.assert_close(gan.relativistic_g(fake, real), (s(torch.tensor(1.5)) + s(torch.tensor(-2.0))) / 2)


def test_equilibrium_values():
    """An undecided discriminator: 2 log 2 for the plain game, log 2 for the paired one."""
    zero = torch.zeros(5)
    assert gan.non_saturating_d(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert gan.relativistic_d(zero, zero).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("penalty", [gan.r1_penalty, gan.r2_penalty])
def test_penalties_of_known_gradients(penalty):
    x = torch.randn(6, 3, dtype=torch.float64).requires_grad_()
    w = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64).requires_grad_()
    linear = penalty(x @ w, x, 0.5)
    assert linear.item() == pytest.approx(0.25 * 9)  # gamma / 2 |w|^2
    (gradient,) = torch.autograd.grad(linear, w)
    torch.testing.assert_close(gradient, 0.5 * w.detach(), rtol=1e-6, atol=0)
    quadratic = penalty((x**2).sum(1) / 2, x, 2.0)
    assert quadratic.item() == pytest.approx((x**2).sum(1).mean().item(), rel=1e-6)


def critic(kind, dtype):
    """A small critic whose activations are a fold, or the same fold in eager operations."""
    torch.manual_seed(3)
    angle = nn.Parameter(torch.randn(4, dtype=dtype))

    def fused(h):
        parameters = {
            "householder": {"angle": angle},
            "leaky": {"slope": -0.5},
            "groupsort": {"size": 4},
            "box": {"length": 0.5},
        }
        return pyfold.fold(h, kind, **parameters.get(kind, {}))

    def eager(h):
        if kind == "abs":
            return h.abs()
        if kind == "leaky":
            return nn.functional.leaky_relu(h, -0.5)
        if kind == "groupsort":
            return h.unflatten(1, (-1, 4)).sort(-1).values.flatten(1)
        if kind == "box":
            return 2 * h.clamp(-0.5, 0.5) - h
        a, b = h[:, 0::2], h[:, 1::2]
        if kind == "maxmin":
            return torch.stack([torch.minimum(a, b), torch.maximum(a, b)], 2).flatten(1)
        m = a * (angle / 2).sin() > b * (angle / 2).cos()
        c, s = angle.cos(), angle.sin()
        return torch.stack([torch.where(m, a * c + b * s, a), torch.where(m, a * s - b * c, b)], 2).flatten(1)

    first, second, last = nn.Linear(5, 8, dtype=dtype), nn.Linear(8, 8, dtype=dtype), nn.Linear(8, 1, dtype=dtype)
    parameters = [angle] * (kind == "householder") + [*first.parameters(), *second.parameters(), last.weight]
    return {name: lambda x, f=f: last(f(second(f(first(x))))) for name, f in (("fused", fused), ("eager", eager))}, parameters


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("kind", ["abs", "maxmin", "householder", "leaky", "groupsort", "box"])
def test_r1_through_folds_equals_eager(kind, dtype, tolerance):
    forms, parameters = critic(kind, dtype)
    results = {}
    x = torch.randn(16, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))
    for name, network in forms.items():
        leaf = x.clone().requires_grad_()
        logits = torch.tanh(network(leaf))  # curved, so that the penalty depends on every parameter
        (gradient,) = torch.autograd.grad(logits.sum(), leaf, create_graph=True)
        penalty = gradient.square().sum(1).mean()
        results[name] = [penalty, *torch.autograd.grad(penalty, parameters, materialize_grads=True)]
    for a, e in zip(results["fused"], results["eager"], strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)
    assert all(g.abs().max() > 0 for g in results["fused"])


def test_functional_penalty_compiles_whole():
    torch.manual_seed(0)
    discriminator = Discriminator(1, 8, width=8, activation="maxmin")
    x = torch.randn(4, 1, 8, 8)
    parameters = [p for name, p in discriminator.named_parameters() if "body.9" not in name or "bias" not in name]
    expected = gan.functional_penalty(discriminator, x, 2.0)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(expected, gan.r1_penalty(discriminator(leaf), leaf, 2.0))
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    compiled = torch.compile(lambda x: gan.functional_penalty(discriminator, x, 2.0), fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(x), parameters, allow_unused=True)
    for a, e in zip(actual, wanted, strict=True):
        if e is not None:
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)


# --- the other losses


def quantiles(mean, count=200_000):
    """Points whose mean of a function is its expectation under N(mean, 1), but for the tails' last part in 1e5."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return mean + torch.special.ndtri(places)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kl", lambda d: d * d / 2),
        ("reverse_kl", lambda d: d * d / 2),
        ("pearson", lambda d: math.expm1(d * d)),
        ("squared_hellinger", lambda d: 2 * -math.expm1(-d * d / 8)),
    ],
)
def test_the_best_discriminator_attains_the_divergence(name, value):
    """Nowozin et al. 2016, eq. 4: the game of two Gaussians, and any other discriminator stays below."""
    shift = 0.7
    real, fake = quantiles(shift), quantiles(0.0)
    log_ratio = lambda x: shift * x - shift**2 / 2  # noqa: E731
    divergence = gan.DIVERGENCES[name]
    best = -divergence.d_loss(divergence.optimum(log_ratio(real)), divergence.optimum(log_ratio(fake))).item()
    assert best == pytest.approx(value(shift), rel=1e-3)
    for factor in (0.9, 1.1):
        other = -divergence.d_loss(
            factor * divergence.optimum(log_ratio(real)), factor * divergence.optimum(log_ratio(fake))
        ).item()
        assert other < best


def test_jensen_shannon_is_the_logistic_game():
    real, fake = torch.randn(9), torch.randn(9)
    expected = gan.non_saturating_d(real, fake) - 2 * math.log(2)
    torch.testing.assert_close(gan.DIVERGENCES["jensen_shannon"].d_loss(real, fake), expected)
    expected = gan.minimax_g(fake) + math.log(2)
    torch.testing.assert_close(gan.DIVERGENCES["jensen_shannon"].g_loss(fake), expected)


@pytest.mark.parametrize("name", gan.DIVERGENCES)
def test_the_activation_reaches_the_conjugates_argument(name):
    """f* taken at g_f(v) by its own formula (table 2) equals the simplified one."""
    conjugates = {
        "kl": lambda t: (t - 1).exp(),
        "reverse_kl": lambda t: -1 - (-t).log(),
        "pearson": lambda t: t.square() / 4 + t,
        "squared_hellinger": lambda t: t / (1 - t),
        "jensen_shannon": lambda t: -(2 - t.exp()).log(),
    }
    v = torch.linspace(-4, 4, 41, dtype=torch.float64)
    divergence = gan.DIVERGENCES[name]
    torch.testing.assert_close(conjugates[name](divergence.activation(v)), divergence.conjugate(v))


def test_other_losses_at_known_logits():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    expected = {
        "least_squares": ((1 + 4) / 2 / 2 + (0.25 + 9) / 2 / 2, (0.25 + 16) / 2 / 2),
        "wasserstein": (-1.25 - 0.5, 1.25),
        "hinge": ((0 + 2) / 2 + (1.5 + 0) / 2, 1.25),
    }
    for name, (d, g) in expected.items():
        d_loss, g_loss = gan.LOSSES[name]
        assert d_loss(real, fake).item() == pytest.approx(d), name
        assert g_loss(fake, real).item() == pytest.approx(g), name


@pytest.mark.parametrize("name", gan.LOSSES)
def test_every_generator_wants_higher_logits(name):
    fake = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
    real = torch.zeros(9, dtype=torch.float64)
    loss = gan.LOSSES[name][1]
    (gradient,) = torch.autograd.grad(loss(fake, real), fake)
    upwards = gradient < 0
    assert upwards[fake < 1].all() if name == "least_squares" else upwards[fake > -2].all()


def test_energies():
    real, fake = torch.tensor([0.2, 0.4]), torch.tensor([0.5, 3.0])
    assert gan.energy_d(real, fake, margin=1.0).item() == pytest.approx(0.3 + 0.25)
    assert gan.energy_g(fake).item() == pytest.approx(1.75)
    with pytest.raises(ValueError, match=r"margin.*-1"):
        gan.energy_d(real, fake, margin=-1)


def test_boundary_equilibrium_finds_its_ratio():
    """Energies that answer to k: the controller settles where fake / real = diversity."""
    balance = gan.BoundaryEquilibrium(diversity=0.4, rate=0.05)
    real = torch.tensor([1.0])
    for _ in range(2000):
        fake = torch.tensor([0.2 + 0.5 * balance.k.item()])  # the more the discriminator pushes, the higher
        measure = balance.update(real, fake)
    assert (fake / real).item() == pytest.approx(0.4, abs=1e-4)
    assert balance.k.item() == pytest.approx(0.4, abs=1e-3)
    assert measure.item() == pytest.approx(1.0, abs=1e-3)
    assert balance.d_loss(real, fake).item() == pytest.approx(1 - 0.4 * 0.4, abs=1e-3)
    for _ in range(100):
        balance.update(torch.tensor([100.0]), torch.tensor([0.0]))
    assert balance.k.item() == 1
    with pytest.raises(ValueError, match=r"diversity.*0"):
        gan.BoundaryEquilibrium(diversity=0)


def test_boundary_equilibrium_outlives_a_bad_batch_and_a_restart():
    balance = gan.BoundaryEquilibrium(diversity=0.5, rate=0.5)
    balance.update(torch.tensor([1.0]), torch.tensor([0.2]))
    assert balance.k.item() == pytest.approx(0.15)
    for bad in (math.nan, math.inf, -math.inf):
        assert not balance.update(torch.tensor([1.0, bad]), torch.tensor([0.2])).isfinite()
        assert not balance.update(torch.tensor([1.0]), torch.tensor([bad, 0.2])).isfinite()
        assert balance.k.item() == pytest.approx(0.15)
    again = gan.BoundaryEquilibrium(diversity=0.5, rate=0.5)
    again.load_state_dict(balance.state_dict())
    assert torch.equal(again.k, balance.k)
    real, fake = torch.tensor([1.0, 1.0078125]).bfloat16(), torch.tensor([0.203125]).bfloat16()
    balance.update(real, fake)  # their means in bfloat16 would be 1.0 and 0.203
    assert balance.k.dtype == torch.float32
    assert balance.k.item() == pytest.approx(0.15 + 0.5 * (0.5 * (1 + 1.0078125) / 2 - 0.203125), abs=1e-6)


# --- the other penalties


def test_penalties_between_and_around():
    torch.manual_seed(2)
    real, fake = torch.randn(64, 3, dtype=torch.float64), torch.randn(64, 3, dtype=torch.float64) + 5
    w = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64)
    linear = lambda x: x @ w  # noqa: E731
    assert gan.wgan_gp_penalty(linear, real, fake).item() == pytest.approx(10 * (3 - 1) ** 2)
    assert gan.zero_centred_penalty(linear, real, fake, weight=2.0).item() == pytest.approx(2 * 9)
    assert gan.dragan_penalty(linear, real, weight=1.0).item() == pytest.approx(4)
    seen = []
    gan.wgan_gp_penalty(lambda x: (seen.append(x), linear(x))[1], real, fake)
    place = (seen[0] - real)[:, :1] / (fake - real)[:, :1]
    assert 0 <= place.min() < 0.1 < 0.9 < place.max() <= 1
    torch.testing.assert_close(seen[0], torch.lerp(real, fake, place))
    gan.dragan_penalty(lambda x: (seen.append(x), linear(x))[1], real, 1.0, 0.5, torch.Generator().manual_seed(4))
    noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    around = real + 0.5 * ((real - real.mean()) ** 2).mean().sqrt() * noise
    torch.testing.assert_close(seen[1].detach(), around, rtol=1e-12, atol=0)
    offset = (seen[1] - real) / (0.5 * real.std(correction=0))
    assert 0 <= offset.min() < 0.05 < 0.95 < offset.max() < 1
    with pytest.raises(ValueError, match="same shape"):
        gan.wgan_gp_penalty(linear, real, fake[:3])


@pytest.mark.parametrize("penalty", [gan.wgan_gp_penalty, gan.zero_centred_penalty], ids=lambda f: f.__name__)
def test_a_flat_discriminator_has_finite_second_derivatives(penalty):
    x = torch.randn(8, 3, dtype=torch.float64)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty(lambda x: torch.tanh(x @ w), x, x + 1), w)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("kind", ["abs", "maxmin", "householder"])
def test_one_centred_penalty_through_folds_equals_eager(kind, dtype, tolerance):
    forms, parameters = critic(kind, dtype)
    real, fake = torch.randn(2, 16, 5, dtype=dtype, generator=torch.Generator().manual_seed(1))
    results = {}
    for name, network in forms.items():
        curved = lambda x, network=network: torch.tanh(network(x))  # noqa: E731
        penalty = gan.wgan_gp_penalty(curved, real, fake, 1.0, torch.Generator().manual_seed(4))
        results[name] = [penalty, *torch.autograd.grad(penalty, parameters, materialize_grads=True)]
    for a, e in zip(results["fused"], results["eager"], strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


def test_one_centred_penalty_compiles_whole():
    torch.manual_seed(0)
    discriminator = Discriminator(1, 8, width=8, activation="abs")
    x = torch.randn(4, 1, 8, 8)
    weight = next(discriminator.parameters())
    function = lambda x: gan.functional_penalty(discriminator, x, 2.0, centre=1.0)  # noqa: E731
    (expected,) = torch.autograd.grad(function(x), weight)
    (actual,) = torch.autograd.grad(torch.compile(function, fullgraph=True, backend="aot_eager")(x), weight)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "penalty",
    [
        lambda d, real, fake: gan.wgan_gp_penalty(d, real, fake, 3.0),
        lambda d, real, fake: gan.zero_centred_penalty(d, real, fake, 3.0),
        lambda d, real, fake: gan.dragan_penalty(d, real, 3.0),
        lambda d, real, fake: gan.functional_penalty(d, real, 3.0) + gan.functional_penalty(d, fake, 2.0),
    ],
    ids=["wgan_gp", "zero_centred", "dragan", "r1 and r2"],
)
def test_every_penalty_by_name_compiles_whole(penalty):
    """The same points and the same gradient in every weight, as one graph."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(5, 8), pyfold.nn.Fold("maxmin"), nn.Linear(8, 8), pyfold.nn.Fold("abs"), nn.Linear(8, 1))
    weights = [p for name, p in critic.named_parameters() if name.endswith("weight")]
    real, fake = torch.randn(2, 6, 5)
    function = lambda real, fake: penalty(lambda x: torch.tanh(critic(x)), real, fake)  # noqa: E731
    results = []
    for form in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        results.append(torch.autograd.grad(form(real, fake), weights))
    for actual, expected in zip(results[1], results[0], strict=True):
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


PENALTIES = {
    "wgan_gp": lambda d, real, fake: gan.wgan_gp_penalty(d, real, fake, 3.0),
    "zero_centred": lambda d, real, fake: gan.zero_centred_penalty(d, real, fake, 3.0),
    "dragan": lambda d, real, fake: gan.dragan_penalty(d, real, 3.0),
    "functional": lambda d, real, fake: gan.functional_penalty(d, real, 3.0),
}


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_of_critics_with_batch_norm(penalty):
    """The same as the critic that divides by the batch's own moments by hand, and its running statistics move."""
    torch.manual_seed(0)
    first, norm, last = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
    real, fake = torch.randn(2, 16, 5)

    def by_hand(x):
        h = first(x)
        return last(torch.tanh((h - h.mean(0)) / (h.var(0, correction=0) + norm.eps).sqrt()))

    results = []
    for critic in (lambda x: last(torch.tanh(norm(first(x)))), by_hand):
        torch.manual_seed(1)
        value = PENALTIES[penalty](critic, real, fake)
        results.append([value, *torch.autograd.grad(value, [first.weight, last.weight])])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    assert norm.num_batches_tracked == 1 and norm.running_mean.abs().max() > 0


@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_of_critics_that_checkpoint(penalty):
    torch.manual_seed(0)
    body, last = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus()), nn.Linear(8, 1)
    real, fake = torch.randn(2, 16, 5)
    results = []
    for again in (True, False):
        run = lambda x, again=again: (  # noqa: E731
            torch.utils.checkpoint.checkpoint(body, x, use_reentrant=False) if again else body(x)
        )
        torch.manual_seed(1)
        value = PENALTIES[penalty](lambda x, run=run: last(run(x)), real, fake)
        results.append([value, *torch.autograd.grad(value, [*body[0].parameters(), last.weight], materialize_grads=True)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


def test_penalties_inside_transforms_and_without_a_graph():
    """torch.func's transforms around one, and no_grad: the same value; and it may train what made the samples."""
    torch.manual_seed(0)
    w, x = torch.randn(5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    value = lambda w, x: gan.functional_penalty(lambda x: torch.tanh(x @ w), x, 2.0, centre=1.0)  # noqa: E731
    leaf = w.clone().requires_grad_()
    (expected,) = torch.autograd.grad(value(leaf, x), leaf)
    torch.testing.assert_close(torch.func.grad(value)(w, x), expected)
    with torch.no_grad():
        assert value(leaf, x).item() == pytest.approx(value(w, x).item())
        assert not value(leaf, x).requires_grad
    moved = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(w, 2 * moved), moved)
    torch.testing.assert_close(slope, torch.func.grad(lambda x: value(w, 2 * x))(x))


@pytest.mark.parametrize("length", [1.0, 1e-3, 1e-7, 1e-20, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_centred_penalties_do_not_fade(dtype, length):
    """D(x) = w x: d/dw (|w| - 1)^2 = 2 (|w| - 1), which is -2 as far down as numbers go, and 0 at 0."""
    x = torch.randn(8, 1, dtype=dtype)
    for sign in (1, -1):
        w = torch.tensor([sign * length], dtype=dtype, requires_grad=True)
        for value in (gan.wgan_gp_penalty(lambda x: x @ w, x, x + 1, 1.0), gan.dragan_penalty(lambda x: x @ w, x, 1.0)):
            (slope,) = torch.autograd.grad(value, w)
            assert slope.item() == pytest.approx(2 * sign * (length - 1), rel=1e-5)
    w = torch.zeros(1, dtype=dtype, requires_grad=True)
    value = gan.wgan_gp_penalty(lambda x: x @ w, x, x + 1, 1.0)
    assert (value.item(), torch.autograd.grad(value, w)[0].item()) == (1, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_penalties_in_half_types_are_summed_in_float32(dtype):
    """D(x) = w x has the gradient w, whose 4096 squares are beyond float16 and lose their sum's digits in bfloat16."""
    w = (6 * torch.randn(4096, generator=torch.Generator().manual_seed(0))).to(dtype)
    x = torch.zeros(2, 4096, dtype=dtype)
    square = w.double().square().sum().item()
    for centre in (0.0, 1.0):
        value = gan.functional_penalty(lambda x: x @ w, x, 2.0, centre)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx((square**0.5 - centre) ** 2 if centre else square, rel=1e-6)
    leaf = x.clone().requires_grad_()
    assert gan.r1_penalty(leaf @ w, leaf, 2.0).item() == pytest.approx(square, rel=1e-6)


def test_one_centred_penalty_has_its_own_second_derivative():
    w = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    value = lambda w: gan.functional_penalty(lambda x: torch.sin(x @ w), x, 2.0, centre=1.0)  # noqa: E731
    assert torch.autograd.gradcheck(value, w) and torch.autograd.gradgradcheck(value, w)


def test_dragans_noise_is_that_of_the_authors():
    """One deviation over all values, by their count, times uniform numbers."""
    x = torch.tensor([[1.0, 2.0], [3.0, 10.0]], dtype=torch.float64)
    uniform = torch.rand(2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    actual = gan.penalties.around(x, 0.5, torch.Generator().manual_seed(3))
    torch.testing.assert_close(actual, x + 0.5 * math.sqrt(((x - 4) ** 2).mean()) * uniform, rtol=1e-14, atol=0)


def test_lazy_penalties_pull_as_much_as_paid_every_step():
    """Over one interval, what plain descent loses to the lazy penalty is the sum of what it loses paying every step."""
    lazy = gan.LazyPenalty(4)
    w = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 2, dtype=torch.float64).requires_grad_()
    pull = lambda: torch.autograd.grad(gan.r1_penalty(x @ w, x, 0.5), w)[0]  # noqa: E731
    paid = sum(lazy.scaled(pull()) for step in range(8) if lazy.due(step))
    torch.testing.assert_close(paid, 8 * pull())


def test_lazy_penalty():
    lazy = gan.LazyPenalty(16)
    assert [step for step in range(40) if lazy.due(step)] == [0, 16, 32]
    assert lazy.scaled(torch.tensor(0.5)).item() == 8
    settings = lazy.settings(lr=1.7e-3, betas=(0.0, 0.99))
    assert settings["lr"] == pytest.approx(1.6e-3)
    assert settings["betas"] == (0.0, pytest.approx(0.99 ** (16 / 17)))
    assert gan.LazyPenalty(1).settings(lr=1.0, betas=(0.5, 0.9)) == {"lr": 1.0, "betas": (0.5, 0.9)}
    with pytest.raises(ValueError, match="interval.*0"):
        gan.LazyPenalty(0)


def test_spectral_norm_reaches_every_layer():
    torch.manual_seed(0)
    network = gan.with_spectral_norm(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Sequential(nn.Linear(9, 4))))
    for _ in range(50):
        network(torch.randn(2, 6))
    for layer in (network[0], network[2][0]):
        assert torch.linalg.svdvals(layer.weight)[0].item() == pytest.approx(1, abs=1e-3)
    before = len(list(network.parameters()))
    assert len(list(gan.with_spectral_norm(network).parameters())) == before
