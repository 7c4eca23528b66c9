"""Dynamics of games whose motion is known exactly: V(x, y) = x y, and the Dirac-GAN."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from pyfold import gan
from pyfold.gan import dynamics
from pyfold.gan.dynamics import DYNAMICS, Extragradient, Optimistic, Simultaneous

START = (1.0, 0.5)
AHEAD, RATE = 3, 0.02
MOMENTUM = -0.5
STRENGTH = 0.1  # larger ones reach the smallest number before the last step


def players(make, rate, /, loss=lambda x, y: x * y, start=START, optimizer=torch.optim.SGD, **settings):
    """min over x, max over y of the loss; returns the dynamic and its two scalars."""
    x, y = (torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in start)
    optimizers = [optimizer([x], lr=rate), optimizer([y], lr=rate)]
    return make(optimizers, lambda: (loss(x, y).sum(), -loss(x, y).sum()), **settings), x, y


def path(steps, /, *args, **settings):
    dynamic, x, y = players(*args, **settings)
    places = [(x.item(), y.item())]
    for _ in range(steps):
        dynamic.step()
        places.append((x.item(), y.item()))
    return np.array(places)


def rotation(a, b):
    """The map z -> (a + ib) z of z = x + iy as a matrix."""
    return np.array([[a, -b], [b, a]])


#: The exact linear map of each dynamic on (x, y), or on (x, y, x before, y before), and the modulus of its largest eigenvalue.
def exact(g):
    field = np.array([[0.0, 1.0], [-1.0, 0.0]])  # (grad_x, -grad_y) at (x, y)
    one, zero = np.eye(2), np.zeros((2, 2))
    first, second = np.array([[1.0, -g], [0.0, 1.0]]), np.array([[1.0, 0.0], [g, 1.0]])
    look = one - g * field
    heavy_x = np.array([1 + MOMENTUM, -g, -MOMENTUM, 0])  # the second player's step sees the first's
    heavy = np.stack([heavy_x, g * heavy_x + [0, 1 + MOMENTUM, 0, -MOMENTUM], [1, 0, 0, 0], [0, 1, 0, 0]])
    return {
        "negative momentum": (heavy, max(abs(np.linalg.eigvals(heavy)))),
        "simultaneous": (look, math.sqrt(1 + g * g)),
        "alternating": (second @ first, 1.0),
        "extragradient": (one - g * field @ look, math.sqrt(1 - g**2 + g**4)),
        "optimistic": (
            np.block([[one - 2 * g * field, g * field], [one, zero]]),
            max(abs(np.roots([1, -(1 - 2j * g), -1j * g]))),
        ),
        "proximal": (np.linalg.inv(one + g * field), 1 / math.sqrt(1 + g * g)),
        "consensus": (one - g * (field + STRENGTH * field.T @ field), math.sqrt((1 - g * STRENGTH) ** 2 + g * g)),
        "symplectic": (one - g * (field + STRENGTH * field.T @ field), math.sqrt((1 - g * STRENGTH) ** 2 + g * g)),
        "unrolled": (look - g * np.diag([2 * AHEAD * RATE, 0]), math.sqrt(1 - 2 * AHEAD * RATE * g + g * g)),
    }


SETTINGS = {
    "negative momentum": {"momentum": MOMENTUM},
    "consensus": {"strength": STRENGTH},
    "symplectic": {"strength": STRENGTH},
    "proximal": {"iterations": 14},
    "unrolled": {"steps": AHEAD, "rate": RATE, "leader": 0},
}


@pytest.mark.parametrize("steps", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", exact(0.1))
def test_steps_follow_the_exact_map(name, steps):
    g = 0.1
    matrix, modulus = exact(g)[name]
    assert max(abs(np.linalg.eigvals(matrix))) == pytest.approx(modulus, abs=1e-12)
    places = path(steps, DYNAMICS.get(name, dynamics.Alternating), g, **SETTINGS.get(name, {}))
    for step in (1, 2, 17, steps // 10, steps):
        state = np.concatenate([START, START])[: len(matrix)]
        expected = (np.linalg.matrix_power(matrix, step) @ state)[:2]
        np.testing.assert_allclose(places[step], expected, rtol=0, atol=1e-9 * max(np.hypot(*expected), 1e-300))
    # The radius swings where the map is not normal; along its left eigenvector every step has the same factor.
    values, vectors = np.linalg.eig(matrix.T)
    along = vectors[:, np.argmax(abs(values))]
    size = [abs(along @ places[[step, step - 1]].ravel()[: len(matrix)]) for step in (steps // 2, steps)]
    assert (size[1] / size[0]) ** (2 / steps) == pytest.approx(modulus, abs=1e-9)


def test_alternating_descent_conserves_an_ellipse():
    g = 0.1
    x, y = path(10_000, DYNAMICS["alternating"], g).T
    energy = x**2 + y**2 - g * x * y
    np.testing.assert_allclose(energy, energy[0], rtol=1e-11)


@pytest.mark.parametrize(("g", "period"), [(1.0, 6), (math.sqrt(2), 4), (math.sqrt(3), 3)])
def test_alternating_descent_is_periodic(g, period):
    places = path(4 * period, DYNAMICS["alternating"], g)
    np.testing.assert_allclose(places[period::period], np.tile(START, (4, 1)), atol=1e-12)
    assert all(np.hypot(*(places[i] - places[0])) > 0.1 for i in range(1, period))


def test_alternating_descent_grows_linearly_at_its_bound():
    radius = np.hypot(*path(400, DYNAMICS["alternating"], 2.0).T)
    assert radius[400] / radius[200] == pytest.approx(2, rel=0.02)


def test_optimistic_descent_has_its_threshold():
    """It converges for steps below 1 / sqrt(3) alone."""
    for g, inside in ((0.577, True), (0.58, False)):
        radius = np.hypot(*path(4000, Optimistic, g).T)
        rate = (radius[4000] / radius[2000]) ** (1 / 2000)
        assert rate == pytest.approx(max(abs(np.roots([1, -(1 - 2j * g), -1j * g]))), abs=1e-9)
        assert (rate < 1) == inside


def test_negative_momentum_turns_the_orbit_inwards():
    for momentum, inwards in ((-0.5, True), (0.5, False)):
        radius = np.hypot(*path(2000, DYNAMICS["alternating"], 0.1, momentum=momentum).T)
        rate = (radius[2000] / radius[1000]) ** (1 / 1000)
        assert rate == pytest.approx(0.99851 if inwards else 1.0323, abs=2e-4)
    assert exact(0.1)["negative momentum"][1] == pytest.approx(0.99851, abs=1e-5)
    assert set(exact(0.1)) == {*DYNAMICS, "negative momentum"}


@pytest.mark.parametrize(("name", "settles"), [("alternating", True), ("simultaneous", False)])
def test_averages_end_an_orbit_and_save_no_spiral(name, settles):
    """The mean of M z, M^2 z, ... is (M - 1)^-1 (M^(n + 1) - M) z / n; torch's averages of the weights are that mean."""
    g, steps = 0.1, 2000
    point = torch.nn.ParameterList([torch.tensor([v], dtype=torch.float64) for v in START])
    dynamic = DYNAMICS[name]([torch.optim.SGD([p], lr=g) for p in point], lambda: ((v := (point[0] * point[1]).sum()), -v))
    mean = torch.optim.swa_utils.AveragedModel(point)
    decay = 0.99
    smooth = torch.optim.swa_utils.AveragedModel(point, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay))
    wanted = None
    for _ in range(steps):
        dynamic.step()
        mean.update_parameters(point)
        smooth.update_parameters(point)
        here = np.array([p.item() for p in point])
        wanted = here if wanted is None else decay * wanted + (1 - decay) * here
    matrix = exact(g)[name][0]
    expected = np.linalg.solve(matrix - np.eye(2), np.linalg.matrix_power(matrix, steps + 1) - matrix) @ START / steps
    actual = np.array([p.item() for p in mean.module])
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    np.testing.assert_allclose([p.item() for p in smooth.module], wanted, rtol=1e-9)
    assert np.hypot(*actual) < 20 / steps if settles else np.hypot(*actual) > 100 * np.hypot(*START)


def test_unrolling_differentiates_through_the_moves_ahead():
    """A curved game of networks: the leader's step is that of autograd through explicitly unrolled moves."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    w, v, theta = draw(4, 2).requires_grad_(), draw(4).requires_grad_(), draw(2, 3).requires_grad_()
    unused = draw(2).requires_grad_()
    z, real = draw(16, 3), draw(16, 2)
    rate, steps, h = 0.3, 4, 0.05

    def values(w, v, theta):
        critic = lambda x: torch.tanh(x @ w.T) @ v  # noqa: E731
        fake = critic(torch.sin(z @ theta.T))
        return gan.non_saturating_d(critic(real), fake), gan.minimax_g(fake)

    ahead = (w, v)
    for _ in range(steps):
        slopes = torch.autograd.grad(values(*ahead, theta)[0], ahead, create_graph=True)
        ahead = tuple(p - rate * s for p, s in zip(ahead, slopes, strict=True))
    (lead,) = torch.autograd.grad(values(*ahead, theta)[1], theta)
    follow = torch.autograd.grad(values(w, v, theta)[0], (w, v))
    expected = [p.detach() - h * s for p, s in zip((w, v, theta), (*follow, lead), strict=True)]
    players = [torch.optim.SGD([w, v, unused], lr=h), torch.optim.SGD([theta], lr=h)]
    before = unused.detach().clone()
    present = values(w, v, theta)
    reported = dynamics.Unrolled(players, lambda: values(w, v, theta), steps=steps, rate=rate).step()
    torch.testing.assert_close(reported, [loss.detach() for loss in present], rtol=1e-12, atol=0)
    for actual, wanted in zip((w, v, theta, unused), (*expected, before), strict=True):
        torch.testing.assert_close(actual.detach(), wanted, rtol=1e-12, atol=1e-14)
    (simultaneous,) = torch.autograd.grad(values(w, v, theta)[1], theta)
    assert (lead - simultaneous).abs().max() > 0.1 * lead.abs().max()  # what is looked for is not what a plain step does


NODES, WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(60))
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1.0),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.8),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.5, 0.999)),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=1e-4),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.03),
}


def logistic_game(place=1.5):
    """Real N(0, 1), generated N(theta, 1), D(x) = a x + b away from its optimum; expectations by quadrature."""
    critic = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([place], dtype=torch.float64, requires_grad=True)

    def losses():
        d = lambda x: critic[0] * x + critic[1]  # noqa: E731
        value = -((WEIGHTS * (softplus(-d(NODES)) + softplus(d(theta + NODES)))).sum() / WEIGHTS.sum())
        return -value, value

    return critic, theta, losses


def ahead(make, steps, place=1.5):
    """The leader's derivative: it steps by SGD of rate 1."""
    critic, theta, losses = logistic_game(place)
    dynamics.Unrolled([make([critic]), torch.optim.SGD([theta], lr=1.0)], losses, steps=steps).step()
    return place - theta.item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unrolling_approaches_the_derivative_of_the_best_discriminator(name):
    """d/dtheta max_D V = 0.46445 at 1.5: twice the Jensen-Shannon divergence, by differences of its integral."""
    x = np.linspace(-12, 15, 200_001)
    normal = lambda x: np.exp(-x * x / 2) / math.sqrt(2 * math.pi)  # noqa: E731

    def best(theta):
        p, q = normal(x), normal(x - theta)
        return np.trapezoid(-p * np.log1p(q / p) - q * np.log1p(p / q), x)

    truth = (best(1.5 + 1e-4) - best(1.5 - 1e-4)) / 2e-4
    assert truth == pytest.approx(0.46445, abs=5e-6)
    off = [abs(ahead(OPTIMIZERS[name], steps) - truth) for steps in (1, 10, 100)]
    assert off[0] > off[1] > off[2]
    assert off[2] < 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unrolling_is_the_derivative_of_the_optimizers_own_moves(name):
    """By differences of the value after three moves of the optimizer in use, from a state that it has by then. A parameter
    whose gradient is exactly 0 has no part in it, and the critic's own step is a plain one."""
    critic, theta, losses = logistic_game()
    idle = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = OPTIMIZERS[name]([critic, idle])

    def move(count):
        for _ in range(count):
            optimizer.zero_grad()
            (losses()[0] + 0 * idle.sum()).backward()
            optimizer.step()

    def value(place):
        saved, state = critic.detach().clone(), copy.deepcopy(optimizer.state_dict())
        with torch.no_grad():
            theta.fill_(place)
        move(3)
        result = losses()[1].item()
        with torch.no_grad():
            critic.copy_(saved)
            theta.fill_(1.5)
        optimizer.load_state_dict(state)
        return result

    move(2)
    h = 1e-5
    truth = (value(1.5 + h) - value(1.5 - h)) / (2 * h)
    before = copy.deepcopy(optimizer.state_dict()), critic.detach().clone(), idle.detach().clone()
    zero = [losses()[0] + 0 * idle.sum(), losses()[1]]
    dynamic = dynamics.Unrolled(
        [optimizer, torch.optim.SGD([theta], lr=1.0)], lambda: (losses()[0] + 0 * idle.sum(), losses()[1]), steps=3
    )
    reported = dynamic.step()
    assert 1.5 - theta.item() == pytest.approx(truth, rel=1e-7)
    assert [v.item() for v in reported] == [v.item() for v in zero]  # where the step began
    # The critic took one plain step from where it was.
    after = copy.deepcopy(optimizer.state_dict()), critic.detach().clone(), idle.detach().clone()
    optimizer.load_state_dict(before[0])
    with torch.no_grad():
        critic.copy_(before[1])
        idle.copy_(before[2])
        theta.fill_(1.5)
    move(1)
    assert torch.equal(critic, after[1]) and torch.equal(idle, after[2])
    for a, b in zip(optimizer.state_dict()["state"].values(), after[0]["state"].values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a if a[k] is not None)


def test_unrolling_needs_an_optimizer_that_torch_differentiates():
    critic, theta, losses = logistic_game()
    optimizers = [torch.optim.LBFGS([critic]), torch.optim.SGD([theta], lr=1.0)]
    with pytest.raises(TypeError, match=r"optimizers\[0\] must be one that torch can differentiate, got LBFGS"):
        dynamics.Unrolled(optimizers, losses, steps=1)


def test_steps_of_each_player():
    dynamic, x, y = players(DYNAMICS["alternating"], 0.1, steps=(3, 1))
    dynamic.step()
    assert x.item() == pytest.approx(1 - 3 * 0.1 * 0.5)
    assert y.item() == pytest.approx(0.5 + 0.1 * x.item())


@pytest.mark.parametrize("gamma", [0.1, 0.3, 1.0, 3.0])
def test_the_dirac_gan_with_r1_has_its_eigenvalues_and_rate(gamma):
    """Mescheder, Geiger and Nowozin 2018, section 3: D(x) = psi x, data at 0, one sample at theta."""
    h = 0.1
    start = torch.tensor([0.01], dtype=torch.float64)
    psi, theta = start.clone().requires_grad_(), start.clone().requires_grad_()

    def losses():
        value = softplus(psi * theta).sum()
        return value + gamma / 2 * psi.square().sum(), -value

    dynamic = Simultaneous([torch.optim.SGD([psi], lr=h), torch.optim.SGD([theta], lr=h)], losses)
    root = np.sqrt(complex(gamma**2 / 4 - 1 / 4))
    expected = np.array([gamma / 2 + root, gamma / 2 - root])
    for _ in range(3000 if gamma < 0.2 else 400):
        dynamic.step()
    actual = gan.game_eigenvalues(dynamic, 2)
    np.testing.assert_allclose(
        sorted(actual, key=lambda v: (v.real, v.imag)), sorted(expected, key=lambda v: (v.real, v.imag)), atol=1e-3
    )
    # The rate over these very steps, by the map's own powers: at gamma 1, where both eigenvalues meet, it nears its limit
    # only as fast as n^(1/n) nears 1.
    steps = 400
    before = np.array([psi.item(), theta.item()])
    for _ in range(steps):
        dynamic.step()
    matrix = np.eye(2) - h * np.array([[gamma, 0.5], [-0.5, 0.0]])
    wanted = np.linalg.matrix_power(matrix, steps) @ before
    rate = (math.hypot(psi.item(), theta.item()) / np.hypot(*before)) ** (1 / steps)
    assert rate == pytest.approx((np.hypot(*wanted) / np.hypot(*before)) ** (1 / steps), abs=1e-6)
    assert rate == pytest.approx(max(abs(1 - h * expected)), abs=2e-3 if gamma == 1 else 1e-3)


def test_the_dirac_gan_alone_spirals_outwards():
    h, start = 0.1, torch.tensor([1e-4], dtype=torch.float64)
    psi, theta = start.clone().requires_grad_(), start.clone().requires_grad_()
    value = lambda: softplus(psi * theta).sum()  # noqa: E731
    dynamic = Simultaneous([torch.optim.SGD([psi], lr=h), torch.optim.SGD([theta], lr=h)], lambda: (value(), -value()))
    before = math.hypot(psi.item(), theta.item())
    for _ in range(500):
        dynamic.step()
    rate = (math.hypot(psi.item(), theta.item()) / before) ** (1 / 500)
    assert rate == pytest.approx(math.sqrt(1 + h * h / 4), abs=1e-5)


@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.AdamW])
def test_any_optimizer(name, optimizer):
    """A convex-concave game with one solution: each dynamic gets closer to it."""
    game = lambda x, y: x**2 / 2 + x * y - y**2 / 2  # noqa: E731
    dynamic, x, y = players(
        DYNAMICS[name], 0.01, game, optimizer=optimizer, **{**SETTINGS, "proximal": {"iterations": 3}}.get(name, {})
    )
    for _ in range(200):
        values = dynamic.step()
    assert len(values) == 2
    assert not values[0].requires_grad
    assert math.hypot(x.item(), y.item()) < 0.5 * math.hypot(*START)


def test_extragradient_leaves_the_optimizers_state_to_real_steps():
    dynamic, x, _ = players(Extragradient, 0.01, optimizer=torch.optim.Adam)
    for _ in range(3):
        dynamic.step()
    assert [int(o.state[p]["step"]) for o, (p,) in zip(dynamic.optimizers, dynamic.parameters, strict=True)] == [3, 3]


def test_optimistic_keeps_copies():
    """Gradients that are written over in place must not become the gradients of the step before."""
    buffer = torch.zeros(1, dtype=torch.float64)

    class Reusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return buffer.copy_(gradient)

    expected = path(50, Optimistic, 0.1)
    reused = path(50, Optimistic, 0.1, loss=lambda x, y: Reusing.apply(x) * y)
    np.testing.assert_array_equal(expected, reused)


def settings(name):
    return {"steps": (2, 1), "momentum": MOMENTUM} if name == "alternating" else SETTINGS.get(name, {})


@pytest.mark.parametrize("name", gan.DYNAMICS)
def test_losses_one_by_one_are_the_losses_at_once(name):
    ends = []
    for one_by_one in (False, True):
        dynamic, x, y = players(gan.DYNAMICS[name], 0.1, **settings(name))
        together, calls = dynamic.losses, [0, 0]
        if one_by_one:

            def only(player, together=together, calls=calls):
                calls[player] += 1
                return together()[player]

            dynamic.losses = [lambda: only(0), lambda: only(1)]
        for _ in range(5):
            values = dynamic.step()
        assert len(values) == 2 and not any(value.requires_grad for value in values)
        ends.append((x.item(), y.item()))
    assert ends[0] == ends[1]
    if name == "alternating":
        assert calls == [10, 5]  # nobody's loss but that of who moves


@pytest.mark.parametrize("name", gan.DYNAMICS)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD])
def test_the_optimizers_hold_all_that_a_dynamic_remembers(name, optimizer):
    """Another dynamic with the parameters and the optimizers' states of the first goes on as the first does."""
    make = lambda: players(gan.DYNAMICS[name], 0.1, optimizer=optimizer, **settings(name))  # noqa: E731
    first, second = make(), make()
    for _ in range(3):
        first[0].step()
    for a, b in zip(first[1:], second[1:], strict=True):
        b.data.copy_(a.data)
    for a, b in zip(first[0].optimizers, second[0].optimizers, strict=True):
        b.load_state_dict(copy.deepcopy(a.state_dict()))
    for _ in range(3):
        first[0].step(), second[0].step()
    assert [p.item() for p in first[1:]] == [p.item() for p in second[1:]]


def test_eigenvalues_by_iteration_equal_the_dense_ones():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    coupling = torch.randn(60, 60, generator=generator, dtype=torch.float64)
    value = lambda: x @ coupling @ y + 0.5 * (x @ x) - 0.25 * (y @ y)  # noqa: E731
    dynamic = Simultaneous([torch.optim.SGD([x]), torch.optim.SGD([y])], lambda: (value(), -value()))
    dense = np.block([[np.eye(60), coupling.numpy()], [-coupling.numpy().T, 0.5 * np.eye(60)]])
    expected = np.linalg.eigvals(dense)
    expected = expected[np.argsort(-abs(expected))][:4]
    np.testing.assert_allclose(abs(gan.game_eigenvalues(dynamic, 4)), abs(expected), rtol=1e-8)
    np.testing.assert_allclose(gan.game_eigenvalues(dynamic, 4).real, expected.real, rtol=1e-7)


def test_monitor_reads_radius_and_rotation():
    g = 0.1
    dynamic, x, y = players(Simultaneous, g)
    monitor = gan.GameMonitor(dynamic)
    for _ in range(5):
        dynamic.step()
        seen = monitor.measure()
        assert seen["radius"] == pytest.approx(math.hypot(x.item(), y.item()), rel=1e-14)
        assert seen["growth"] == pytest.approx(math.sqrt(1 + g * g), rel=1e-12)
        assert seen["rotation"] == pytest.approx(math.atan(g), rel=1e-10)
    np.testing.assert_allclose(sorted(gan.game_eigenvalues(dynamic).imag), [-1, 1], atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o, f: Simultaneous(o[:1], f), "optimizers.*1"),
        (lambda o, f: dynamics.Alternating(o, f, steps=(1,)), r"steps.*2 players.*\(1,\)"),
        (lambda o, f: dynamics.Alternating(o, f, steps=(0, 1)), "steps"),
        (lambda o, f: dynamics.Alternating(o, f, momentum=1.0), "momentum.*1.0"),
        (lambda o, f: dynamics.Proximal(o, f, iterations=0), "iterations.*0"),
        (lambda o, f: dynamics.Unrolled(o, f, steps=0, rate=0.1), "steps.*0"),
        (lambda o, f: dynamics.Unrolled(o, f, steps=1, rate=0.0), "rate.*0.0"),
        (lambda o, f: dynamics.Unrolled(o, f, steps=1, rate=math.inf), "rate.*inf"),
        (lambda o, f: dynamics.Unrolled(o, f, steps=1, rate=math.nan), "rate.*nan"),
        (lambda o, f: dynamics.Unrolled(o, f, steps=1, rate=0.1, leader=2), "leader.*2 players.*2"),
        (lambda o, f: dynamics.Consensus(o, f, strength=math.nan), "strength.*nan"),
        (lambda o, f: Simultaneous(o, lambda: f()[:1]).step(), "losses.*2.*1"),
        (lambda o, f: gan.game_eigenvalues(Simultaneous(o, f), 0), "count.*0"),
        (lambda o, f: gan.GameMonitor(Simultaneous(o, f), torch.zeros(3)), "centre.*2 values.*3"),
    ],
)
def test_errors(make, message):
    dynamic, _, _ = players(Simultaneous, 0.1)
    with pytest.raises(ValueError, match=message):
        make(dynamic.optimizers, dynamic.losses)
