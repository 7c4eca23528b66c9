"""pyfold.adapters.k_diffusion beside k-diffusion: the same call to both, noise and all, in float64."""

import inspect
import math
import sys

import pytest
import torch

import pyfold
from k_diffusion_reference import sampling
from pyfold import diffusion
from pyfold.adapters import k_diffusion as ours

NAMES = sorted(name for name in vars(sampling) if name.startswith("sample_"))
SIGMAS = torch.tensor([15.0, 9.0, 5.5, 3.0, 1.4, 0.8, 0.3, 0.1, 0.0], dtype=torch.float64)
SHAPE = (3, 5)


@pytest.fixture(autouse=True)
def _in_float64():
    """Their tables are made in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model(x, sigma, gain=1.0):
    """A smooth function that is no true denoiser."""
    sigma = sigma.reshape(-1, 1, 1)
    return gain * (0.7 * torch.sin(x / (1 + sigma)) + 0.2 * torch.cos(sigma.log() + x / 3) + 0.1 * x / (1 + sigma**2))


class Noise:
    """A noise sampler that remembers what it was asked."""

    def __init__(self, x):
        self.x, self.asked = x, []

    def __call__(self, sigma, sigma_next):
        self.asked.append((float(sigma), float(sigma_next)))
        return pyfold.randn(range(len(self.x)), self.x.shape[1:], step=len(self.asked), dtype=self.x.dtype)


def arguments(name):
    """What stands between x and extra_args."""
    if name == "sample_dpm_fast":
        return 0.05, 15.0, 8
    return (0.05, 15.0) if name == "sample_dpm_adaptive" else (SIGMAS,)


OPTIONS = {
    "sample_euler": [{}, {"s_churn": 3.0, "s_noise": 1.003}, {"s_churn": 9.0, "s_tmin": 0.2, "s_tmax": 8.0}],
    "sample_heun": [{}, {"s_churn": 3.0, "s_noise": 1.003}, {"s_churn": 9.0, "s_tmin": 0.2, "s_tmax": 8.0}],
    "sample_dpm_2": [{}, {"s_churn": 3.0, "s_noise": 1.003}, {"s_churn": 9.0, "s_tmin": 0.2, "s_tmax": 8.0}],
    "sample_euler_ancestral": [{}, {"eta": 0.4, "s_noise": 1.1}],
    "sample_dpm_2_ancestral": [{}, {"eta": 0.4, "s_noise": 1.1}],
    "sample_dpmpp_2s_ancestral": [{}, {"eta": 0.4, "s_noise": 1.1}],
    "sample_dpmpp_sde": [{}, {"eta": 0.4, "s_noise": 1.1, "r": 0.3}],
    "sample_dpmpp_2m": [{}],
    "sample_dpmpp_2m_sde": [{}, {"eta": 0.7, "solver_type": "heun", "s_noise": 0.9}, {"eta": 0.0}],
    "sample_dpmpp_3m_sde": [{}, {"eta": 0.5, "s_noise": 1.1}, {"eta": 0.0}],
    "sample_lms": [{}, {"order": 2}],
    "sample_dpm_fast": [{}, {"eta": 0.6, "s_noise": 1.1}, {"eta": 1.0}],
    "sample_dpm_adaptive": [
        {},
        {"order": 2, "rtol": 0.01},
        {"h_init": 2.0, "rtol": 1e-3, "atol": 1e-4},
        {"eta": 0.7, "s_noise": 1.1},
        {"pcoeff": 0.2, "icoeff": 0.7, "dcoeff": 0.1, "rtol": 0.01},
    ],
}
CASES = [(name, i) for name in OPTIONS for i in range(len(OPTIONS[name]))]


def test_every_function_is_there():
    assert set(OPTIONS) == set(NAMES)
    assert sorted(ours.__all__) == ["BrownianTreeNoiseSampler", *NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    theirs = inspect.signature(getattr(sampling, name)).parameters
    mine = dict(inspect.signature(getattr(ours, name)).parameters)
    assert mine.pop("seeds").kind is inspect.Parameter.KEYWORD_ONLY
    before = mine.pop("before", None)
    assert (before is None) == (name in ("sample_dpm_fast", "sample_dpm_adaptive"))
    assert [(n, p.default, p.kind) for n, p in mine.items()] == [(n, p.default, p.kind) for n, p in theirs.items()]


def both(name, start, options, with_noise=True, **common):
    """(result, calls of the model, callbacks, noise asked for) of theirs and of ours."""
    runs = []
    for module in (sampling, ours):
        reports, sigmas, noise = [], [], Noise(start)

        def counted(x, sigma, **extra):
            sigmas.append(sigma.clone())
            return model(x, sigma, **extra)

        more = (
            {"noise_sampler": noise}
            if with_noise and "noise_sampler" in inspect.signature(getattr(sampling, name)).parameters
            else {}
        )
        torch.manual_seed(7)
        result = getattr(module, name)(
            counted, start.clone(), *arguments(name), {"gain": 0.9}, reports.append, True, **more, **options, **common
        )
        runs.append((result, sigmas, reports, noise.asked))
    return runs


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize(("name", "case"), CASES)
def test_against_k_diffusion(name, case, generator):
    options = OPTIONS[name][case]
    start = torch.randn(4, *SHAPE, generator=generator) * 15
    theirs, mine = both(name, start, options)
    # Their integrals of LMS are good to a relative 1e-4, as they ask for.
    atol = (1e-6 if name == "sample_lms" else 1e-10) * theirs[0].abs().max().item()
    torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=atol)
    if name == "sample_dpm_adaptive":
        rejected = theirs[2][-1]["n_reject"]
        assert len(mine[1]) == len(theirs[1]) - rejected
    else:
        torch.testing.assert_close(torch.stack(mine[1]), torch.stack(theirs[1]), rtol=1e-12, atol=0)
    if options.get("eta", getattr(inspect.signature(getattr(ours, name)).parameters.get("eta"), "default", 0.0)):
        # DPM-Solver asks for the last step's noise, too, which it multiplies by 0.
        assert len(mine[3]) >= len(theirs[3]) - ("dpm_fast" in name or "adaptive" in name) > 0
        torch.testing.assert_close(torch.tensor(mine[3]), torch.tensor(theirs[3][: len(mine[3])]), rtol=1e-12, atol=0)
    else:
        assert not mine[3]
    assert len(mine[2]) == len(theirs[2]) > 2
    kept = 0
    for a, b in zip(mine[2], theirs[2], strict=True):
        assert set(a) == set(b)
        for key in set(a) - {"nfe"}:
            tensor = isinstance(b[key], torch.Tensor)
            assert isinstance(a[key], torch.Tensor) == tensor, key
            torch.testing.assert_close(a[key], b[key], rtol=1e-9 if atol < 1e-7 else 1e-5, atol=100 * atol, check_dtype=False)
        if "nfe" in b:
            assert a["nfe"] == b["nfe"] - kept
            kept = b["n_reject"]


@pytest.mark.parametrize("name", [n for n in NAMES if "fast" not in n and "adaptive" not in n])
def test_sigmas_that_end_above_zero(name, generator):
    """Part of a way, as two models that share it have."""
    start = torch.randn(4, *SHAPE, generator=generator) * 15
    asks = "noise_sampler" in inspect.signature(getattr(ours, name)).parameters
    noise = [{"noise_sampler": Noise(start)} if asks else {} for _ in range(2)]
    theirs, mine = (
        getattr(module, name)(model, start.clone(), SIGMAS[:5], disable=True, **more)
        for module, more in zip((sampling, ours), noise, strict=True)
    )
    atol = (1e-6 if name == "sample_lms" else 1e-10) * theirs.abs().max().item()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("sample_dpm_fast", "sample_dpm_adaptive") and "sde" not in n])
def test_the_default_noise_is_torch_s(name, generator):
    """Seeded alike, torch's generator gives the same picture."""
    start = torch.randn(4, *SHAPE, generator=generator) * 15
    churn = {"s_churn": 9.0, "s_tmax": 8.0} if "s_churn" in inspect.signature(getattr(ours, name)).parameters else {}
    theirs, mine = both(name, start, churn, with_noise=False)
    atol = (1e-6 if name == "sample_lms" else 1e-10) * theirs[0].abs().max().item()
    torch.testing.assert_close(mine[0], theirs[0], rtol=0, atol=atol)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sample_dpm_adaptive"])
def test_seeds_give_the_same_bits_in_any_batch(name):
    def run(seeds):
        x = pyfold.randn(seeds, SHAPE, dtype=torch.float32) * 15
        churn = {"s_churn": 3.0} if name in ("sample_euler", "sample_heun", "sample_dpm_2") else {}
        eta = {"eta": 0.5} if name == "sample_dpm_fast" else {}
        args = [a.float() if isinstance(a, torch.Tensor) else a for a in arguments(name)]
        denoise = lambda x, s: x * 0.3  # noqa: E731
        return getattr(ours, name)(denoise, x, *args, disable=True, seeds=seeds, **churn, **eta)

    whole = run([3, 1, 4])
    assert torch.equal(torch.cat([run([3]), run([1, 4])]), whole)
    other = run([3, 1, 5])
    assert torch.equal(other[:2], whole[:2]) and not torch.equal(other[2], whole[2])


@pytest.mark.parametrize(
    "name",
    ["sample_euler", "sample_euler_ancestral", "sample_dpm_2_ancestral", "sample_dpmpp_2s_ancestral", "sample_dpmpp_sde"],
)
def test_a_run_on_the_last_sigmas_goes_on(name):
    churn = {"s_churn": 100.0} if name == "sample_euler" else {}

    def run(x, sigmas, **more):
        denoise = lambda x, s: x * 0.3  # noqa: E731
        return getattr(ours, name)(denoise, x, sigmas, disable=True, seeds=[5, 2**64 - 6], **churn, **more)

    x = torch.randn(2, *SHAPE) * 15
    half = run(x, SIGMAS[:5])
    assert torch.equal(run(half, SIGMAS[4:]), run(x, SIGMAS))
    # Told that it is the second pass, it draws anew.
    assert not torch.equal(run(half, SIGMAS[4:], before=SIGMAS), run(x, SIGMAS))


def test_seeds_are_the_plan_s_noise():
    """The adapter's seeds are those of pyfold.diffusion.sample."""
    seeds, x = torch.tensor([5, 6]), torch.randn(2, *SHAPE)
    plan = diffusion.euler_ancestral(ours.SCHEDULE, prediction="x0", spacing=ours.points_of(SIGMAS))
    points = iter(plan.points)
    expected = diffusion.sample(
        lambda x, t: model(x, torch.full((2,), next(points).ratio)), plan, SHAPE, seeds, x=x, dtype=torch.float64
    )
    result = ours.sample_euler_ancestral(model, x, SIGMAS, disable=True, seeds=seeds)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sample_dpmpp_sde", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"])
def test_the_default_of_the_sdes_is_one_path(name):
    """Twice the steps lead nearly to the same sample, and not so with new noise in each step."""

    def run(steps, noise):
        sigmas = torch.cat([torch.logspace(1, -1.5, steps), torch.zeros(1)])
        x = pyfold.randn([1], (2000,), dtype=torch.float64) * 10
        sampler = noise(x, sigmas)
        return getattr(ours, name)(lambda x, s: x / (1 + s[:, None] ** 2), x, sigmas, disable=True, noise_sampler=sampler)

    def path(x, sigmas):
        return ours.BrownianTreeNoiseSampler(x, 10**-1.5, 10.0, seed=[9])

    def fresh(x, sigmas):
        return lambda a, b: torch.randn(x.shape, generator=generator)

    generator = torch.Generator().manual_seed(3)
    near = (run(40, path) - run(81, path)).std()
    far = (run(40, fresh) - run(81, fresh)).std()
    assert near < 0.35 * far
    torch.manual_seed(5)
    first = run(20, lambda x, s: None)
    torch.manual_seed(5)
    assert torch.equal(run(20, lambda x, s: None), first)


def test_brownian_noise_sampler():
    x = torch.zeros(3, 20_000)
    sampler = ours.BrownianTreeNoiseSampler(x, torch.tensor(0.1), torch.tensor(10.0), seed=[1, 2, 3])
    a, b = sampler(10.0, 4.0), sampler(4.0, 1.0)
    whole = sampler(10.0, 1.0)
    torch.testing.assert_close(math.sqrt(6) * a + math.sqrt(3) * b, 3 * whole, rtol=0, atol=1e-9)
    for value in (a, b, whole):
        assert value.shape == x.shape
        assert abs(value.var().item() - 1) < 5 * math.sqrt(2 / value.numel())
    assert abs((a * b).mean().item()) < 5 / math.sqrt(a.numel())
    one = ours.BrownianTreeNoiseSampler(x[:1], 0.1, 10.0, seed=[2])
    torch.testing.assert_close(one(10.0, 4.0)[0], a[1], rtol=0, atol=0)
    assert ours.BrownianTreeNoiseSampler(x, 0.1, 10.0, seed=4)(3.0, 1.0).shape == x.shape
    for seed, same in (
        (2**64 - 4, -4),
        ([2**63, 5, 6], torch.tensor([-(2**63), 5, 6])),
        (torch.tensor([[1, 0], [2, 0], [3, 0]]).view(torch.uint64), [1, 2, 3]),
    ):
        assert torch.equal(*(ours.BrownianTreeNoiseSampler(x, 0.1, 10.0, seed=s)(3.0, 1.0) for s in (seed, same)))


def test_a_callback_may_keep_and_change_the_state():
    kept = []

    def callback(info):
        kept.append(info["x"])
        info["x"][:, 0] = 0.25

    x = torch.randn(2, *SHAPE) * 15
    ours.sample_euler(model, x, SIGMAS, callback=callback, disable=True)
    assert all((state[:, 0] == 0.25).all() for state in kept)
    assert len({state.data_ptr() for state in kept}) == len(kept)
    # And the caller's x is left alone, called back or not.
    before = x.clone()
    ours.sample_euler(model, x, SIGMAS, disable=True)
    assert torch.equal(x, before)


def test_half_precision_keeps_a_float32_state(generator):
    x = torch.randn(2, *SHAPE, generator=generator).bfloat16()
    seen = set()

    def low(x, sigma):
        seen.add((x.dtype, sigma.dtype))
        return (0.3 * x.float()).to(x.dtype)

    result = ours.sample_dpmpp_2m(low, x, SIGMAS.float(), disable=True)
    exact = ours.sample_dpmpp_2m(lambda x, s: 0.3 * x, x.double(), SIGMAS, disable=True)
    assert result.dtype == torch.bfloat16 and seen == {(torch.bfloat16, torch.bfloat16)}
    assert (result.double() - exact).abs().max() < 2**-7 * exact.abs().max()


def test_progress_and_no_progress(capsys, monkeypatch):
    x = torch.zeros(1, *SHAPE)
    ours.sample_heun(model, x, SIGMAS, disable=False)
    assert "8/8" in capsys.readouterr().err
    ours.sample_heun(model, x, SIGMAS, disable=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    ours.sample_heun(model, x, SIGMAS, disable=True)
    with pytest.raises(ImportError, match=r"tqdm.auto is needed.*\[train\]"):
        ours.sample_heun(model, x, SIGMAS)


RISING = {"sample_euler": 5e-2, "sample_heun": 5e-4, "sample_dpm_2": 5e-4, "sample_lms": 5e-4, "sample_dpmpp_2m": 5e-4}


@pytest.mark.parametrize("name", RISING)
def test_the_way_back_to_noise(name):
    """Of Gaussian data of variance 1 the probability flow is ``x sqrt(1 + sigma^2)`` for any two sigmas, either way."""
    denoised = lambda x, sigma: x / (1 + sigma.reshape(-1, 1, 1) ** 2)  # noqa: E731
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    up = torch.linspace(math.log(0.1), math.log(10), 200).exp()
    y = getattr(ours, name)(denoised, x, up, disable=True)
    exact = x * ((1 + 10**2) / (1 + 0.1**2)) ** 0.5
    torch.testing.assert_close(y, exact, rtol=RISING[name], atol=0)
    back = getattr(ours, name)(denoised, y, up.flip(0), disable=True)
    torch.testing.assert_close(back, x, rtol=2 * RISING[name], atol=0)


def test_a_sigma_that_repeats_is_no_step():
    denoised = lambda x, sigma: x / (1 + sigma.reshape(-1, 1, 1) ** 2)  # noqa: E731
    x = torch.randn(2, *SHAPE)
    for name in ("sample_euler", "sample_heun", "sample_dpm_2"):
        run = lambda *sigmas, name=name: getattr(ours, name)(denoised, x, torch.tensor(sigmas), disable=True)  # noqa: E731
        torch.testing.assert_close(run(5.0, 2.0, 2.0, 1.0, 0.0), run(5.0, 2.0, 1.0, 0.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name", [n for n in dir(ours) if n.startswith("sample_") and n not in ("sample_dpm_fast", "sample_dpm_adaptive")]
)
def test_few_sigmas(name):
    """One is no step; from one to 0 every method takes x0."""
    x = torch.ones(2, *SHAPE)
    assert torch.equal(getattr(ours, name)(model, x, torch.tensor([3.0]), disable=True), x)
    end = getattr(ours, name)(model, x, torch.tensor([3.0, 0.0]), disable=True)
    torch.testing.assert_close(end, model(x, torch.tensor([3.0, 3.0])))


X = torch.zeros(2, *SHAPE)
BAD = {
    "rising": (lambda: ours.sample_euler_ancestral(model, X, SIGMAS.flip(0)), "sigmas.*decreasing"),
    "repeated": (lambda: ours.sample_lms(model, X, torch.tensor([3.0, 2.0, 2.0])), "sigmas.*not repeat"),
    "NaN": (lambda: ours.sample_euler(model, X, torch.tensor([1.0, math.nan])), "sigmas.*nan"),
    "negative": (lambda: ours.sample_euler(model, X, torch.tensor([1.0, -1.0])), "sigmas.*-1"),
    "none": (lambda: ours.sample_euler(model, X, torch.tensor([])), "sigmas must be finite, from 0"),
    "list": (lambda: ours.sample_euler(model, X, [1.0, 0.0]), "sigmas must be a tensor"),
    "eta": (lambda: ours.sample_euler_ancestral(model, X, SIGMAS, eta=-1.0), "eta.*-1"),
    "s_noise": (lambda: ours.sample_dpmpp_sde(model, X, SIGMAS, s_noise=math.nan), "noise_scale.*nan"),
    "s_churn": (lambda: ours.sample_heun(model, X, SIGMAS, s_churn=math.nan), "churn.*nan"),
    "s_tmin": (lambda: ours.sample_heun(model, X, SIGMAS, s_tmin=math.nan), "churn_min.*nan"),
    "solver": (lambda: ours.sample_dpmpp_2m_sde(model, X, SIGMAS, solver_type="rk"), "solver_type.*'rk'"),
    "order": (lambda: ours.sample_lms(model, X, SIGMAS, order=5), "order.*5"),
    "ends": (lambda: ours.sample_dpm_fast(model, X, 0.0, 1.0, 5), "sigma_min.*0.0 and 1.0"),
    "n": (lambda: ours.sample_dpm_fast(model, X, 0.1, 1.0, 0), "steps.*0"),
    "adaptive ends": (lambda: ours.sample_dpm_adaptive(model, X, 1.0, 1.0), "sigma_min.*1.0 and 1.0"),
    "adaptive order": (lambda: ours.sample_dpm_adaptive(model, X, 0.1, 1.0, order=1, disable=True), "order.*1"),
    "rtol": (lambda: ours.sample_dpm_adaptive(model, X, 0.1, 1.0, rtol=0.0, disable=True), "rtol.*0"),
    "seeds": (lambda: ours.sample_euler_ancestral(model, X, SIGMAS, seeds=[1]), r"seeds.*\(2,\).*\(1,\)"),
    "two noises": (
        lambda: ours.sample_euler_ancestral(model, X, SIGMAS, seeds=[1, 2], noise_sampler=Noise(X)),
        "must not both",
    ),
    "path seeds": (lambda: ours.BrownianTreeNoiseSampler(X, 0.1, 1.0, seed=[1]), "seed.*2 of them, got 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


# --- dpm_adaptive on its own

VP = diffusion.vp_scaled_linear()


def gaussian(schedule):
    """x0 on average, of data N(0.3, 0.5), at any time the schedule has."""

    def x0(x, t):
        alpha, sigma = (c.reshape(-1, 1) for c in schedule.coefficients(t))
        return 0.3 + alpha * 0.5 / (alpha**2 * 0.5 + sigma**2) * (x - alpha * 0.3)

    return x0


@pytest.mark.parametrize("schedule", [VP, ours.SCHEDULE], ids=["vp", "plain"])
@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_error_follows_its_tolerance(schedule, order):
    """On Gaussian data, whose flow is known; on a discrete schedule's scale as on k-diffusion's."""
    low, high = 0.05, 14.0
    start, end = schedule.at_ratio(high), schedule.at_ratio(low)
    spread = lambda p: math.sqrt(p.alpha**2 * 0.5 + p.sigma**2)  # noqa: E731
    z = torch.linspace(-2, 2, 9)[None]
    exact = end.alpha * 0.3 + spread(end) * z
    errors, evaluations = [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        seen = []
        x = diffusion.dpm_adaptive(
            gaussian(schedule), schedule, (9,), [0], prediction="x0", order=order, rtol=tolerance, atol=tolerance,
            sigma_min=low, sigma_max=high, x=start.alpha * 0.3 + spread(start) * z, dtype=torch.float64, callback=seen.append,
        )  # fmt: skip
        errors.append((x - exact).abs().max().item())
        evaluations.append(seen[-1].evaluations)
        assert seen[-1].point == end and seen[-1].steps == len(seen)
    # The tolerance is of a step, and steps add up.
    assert all(error < 20 * tolerance for error, tolerance in zip(errors, (1e-2, 1e-3, 1e-4), strict=True)), errors
    assert errors[2] < errors[0] / 20 and evaluations[0] < evaluations[1] < evaluations[2]


def test_adaptive_variance_with_noise():
    """20,000 samples, within 5 standard errors."""
    count, low, high = 20_000, 0.02, 50.0
    start = math.sqrt(0.5 + high**2) * pyfold.randn([1], (count,), dtype=torch.float64) + 0.3
    x = diffusion.dpm_adaptive(
        gaussian(ours.SCHEDULE), ours.SCHEDULE, (count,), [8], prediction="x0", eta=1.0, rtol=1e-3, atol=1e-3,
        sigma_min=low, sigma_max=high, x=start, dtype=torch.float64,
    )  # fmt: skip
    variance = 0.5 + low**2
    assert abs(x.mean().item() - 0.3) < 5 * math.sqrt(variance / count)
    assert abs(x.var().item() - variance) < 5 * variance * math.sqrt(2 / count)


def test_adaptive_bad_models():
    with pytest.raises(ValueError, match="finite values.*nan"):
        diffusion.dpm_adaptive(lambda x, t: x * math.nan, VP, (3,), [1])
    with pytest.raises(RuntimeError, match="no end after 5 steps"):
        diffusion.dpm_adaptive(lambda x, t: x * 0.5, VP, (3,), [1], h=1e-9, most_steps=5)


def test_sigmas_of_a_flow_end_at_one():
    """ComfyUI#16019: 1.5 was taken for 1 without a word."""
    with pytest.raises(ValueError, match=r"sigmas of a flow must be in \[0, 1\], got \[1\.5"):
        ours.points_of(torch.tensor([1.5, 0.9, 0.5, 0.0]), diffusion.flow())
    assert ours.points_of(torch.tensor([1.0, 0.5, 0.0]), diffusion.flow())[0].alpha == 0
