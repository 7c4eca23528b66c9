"""Schedulers under torch.compile: a step is one operator of the graph, with the bits and the memory of an eager step."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("torchsde", reason="two schedulers are placeholders without it")
pytest.importorskip("scipy", reason="one scheduler is a placeholder without it")

from pyfold.adapters import diffusers as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPE = (2, 4, 6, 6)
#: Whose step takes more than a model's output, a timestep and a sample of this shape.
OTHER_STEPS = {
    "CogVideoXDPMScheduler",
    "DDPMWuerstchenScheduler",
    "HeliosDMDScheduler",
    "KarrasVeScheduler",
    "PiflowScheduler",
    "RFD4ProteinaScheduler",
    "RePaintScheduler",
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
}
CLASSES = sorted(set(ours.__all__) - OTHER_STEPS)
#: Gives a number beside its tensors, the order of the step, which the tables decide.
BREAKS = "HeliosScheduler"


def made(name, **config):
    if not hasattr(ours, name) and tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 42):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    scheduler = getattr(ours, name)(**({"stages": 1} if name == BREAKS else {}), **config)
    scheduler.set_timesteps(2 if name in ("SCMScheduler", "ConsistencyDecoderScheduler") else 4)
    return scheduler


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graph_breaks(scheduler, **arguments):
    """Of the first step."""
    x = torch.ones(SHAPE)
    step = lambda model, t, x: scheduler.step(model * 0.5, t, x, return_dict=False, **arguments)[0] + 1  # noqa: E731
    return torch._dynamo.explain(step)(x, scheduler.timesteps[0], x).graph_break_count


def test_a_step_that_gives_a_number_is_one_break():
    assert graph_breaks(made(BREAKS)) == 1


def state(seed=1, dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(scheduler, step, dtype=torch.float32):
    """The states of a run, and what torch's generator would draw next."""
    x, states = state(dtype=dtype), []
    torch.manual_seed(5)
    # SCM's last timestep is the end of its last step.
    for t in scheduler.timesteps[:-1] if type(scheduler).__name__ == "SCMScheduler" else scheduler.timesteps:
        x = step(x, t)
        states.append(x)
    return [*states, torch.randn(2)]


def stepper(scheduler, **arguments):
    """A model of a few operations, the step, and something after it."""

    def step(x, t):
        x = scheduler.step((x * 1.5).sin(), t, x + 0.0, return_dict=False, **arguments)[0]
        return (x * 1.0).clamp(-50, 50)

    return step


@pytest.mark.parametrize("begin_index", [None, 0])
@pytest.mark.parametrize("name", [name for name in CLASSES if name != BREAKS])
def test_a_compiled_run_has_the_bits_of_an_eager_one(name, begin_index):
    """From a graph without a break, whatever the scheduler holds between its steps; noise is drawn as often.

    diffusers' steps break a graph 3 to 26 times where their index must be looked up, and 0 to 23 times where it is known.
    """
    eager, scheduler = made(name), made(name)
    dtype = torch.bfloat16
    if begin_index is not None:
        if not hasattr(scheduler, "set_begin_index"):
            pytest.skip(f"{name} has no begin index")
        dtype = torch.float32
        eager.set_begin_index(begin_index)
        scheduler.set_begin_index(begin_index)
    expected = run(eager, stepper(eager), dtype)
    result = run(scheduler, torch.compile(stepper(scheduler), fullgraph=True, backend="aot_eager"), dtype)
    assert all(map(torch.equal, expected, result))
    assert getattr(scheduler, "_step_index", None) == getattr(eager, "_step_index", None)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"])
def test_what_a_scheduler_keeps_is_not_memory_of_the_graph(name):
    """Inductor uses a buffer again after its last use, and writes results over inputs."""
    eager, scheduler = made(name), made(name)

    def steps(scheduler):
        def both(x, t, s):
            for one in (t, s):
                model = (x * 1.5).sin()
                x = scheduler.step(model, one, x * 0.99, return_dict=False)[0]
                x = (x * 0.98).cos()
            return x

        return both

    x, y = state(), state()
    compiled = torch.compile(steps(scheduler), fullgraph=True)
    for t, s in scheduler.timesteps[:4].view(2, 2):
        x, y = steps(eager)(x, t, s), compiled(y, t, s)
        torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-3)


def test_steps_of_one_graph_come_one_after_the_other():
    """Also one whose outcome nobody uses."""
    scheduler, eager = made("EulerDiscreteScheduler"), made("EulerDiscreteScheduler")

    def whole(scheduler, x):
        for t in scheduler.timesteps[:3]:
            x = scheduler.step(x.sin(), t, x).prev_sample
        scheduler.step(x, scheduler.timesteps[3], x)
        return x

    compiled = torch.compile(whole, fullgraph=True)
    torch.testing.assert_close(compiled(scheduler, state()), whole(eager, state()), rtol=1e-5, atol=1e-5)
    assert scheduler.step_index == 4


def test_other_schedulers_of_a_class_use_the_same_graph():
    """New ones, copies and pickles, each with its own memory; after the second nothing is compiled again."""
    first = made("DPMSolverMultistepScheduler")
    step = lambda scheduler, x, t: scheduler.step(x.sin(), t, x, return_dict=False)[0]  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    compiled(first, state(), first.timesteps[0])
    others = [
        made("DPMSolverMultistepScheduler", solver_order=3),
        copy.deepcopy(first),
        pickle.loads(pickle.dumps(first)),
        copy.copy(first),
        first,
    ]
    expected = [step(copy.deepcopy(s), state(2), s.timesteps[1]) for s in others]
    compiled(others[0], state(2), others[0].timesteps[1])
    others[0] = made("DPMSolverMultistepScheduler", solver_order=3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for other, right in zip(others, expected, strict=True):
            assert torch.equal(compiled(other, state(2), other.timesteps[1]), right)
    assert first.step_index == 2


def test_settings_count_at_once():
    scheduler = made("EulerDiscreteScheduler")
    step = torch.compile(stepper(scheduler), fullgraph=True, backend="aot_eager")
    step(state(), scheduler.timesteps[0])
    scheduler.sigmas[2] *= 0.5
    eager = copy.deepcopy(scheduler)
    assert torch.equal(step(state(), scheduler.timesteps[1]), stepper(eager)(state(), eager.timesteps[1]))
    scheduler.set_timesteps(7)
    eager = copy.deepcopy(scheduler)
    assert all(map(torch.equal, run(scheduler, step), run(eager, stepper(eager))))
    for prediction in ("epsilon", "sample"):
        scheduler.register_to_config(prediction_type=prediction)
        scheduler.set_timesteps(3)
        eager = copy.deepcopy(scheduler)
        assert all(map(torch.equal, run(scheduler, step, torch.bfloat16), run(eager, stepper(eager), torch.bfloat16)))


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler"]
)
def test_a_run_under_way_is_compiled(name):
    """With what the scheduler has kept by then."""
    scheduler, eager = made(name), made(name)
    steps, x = [stepper(scheduler), stepper(eager)], state()
    for t in scheduler.timesteps[:2]:
        x, same = (step(x, t) for step in steps)
        assert torch.equal(x, same)
    compiled = torch.compile(steps[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, scheduler.timesteps[2]), steps[1](x, eager.timesteps[2]))


class Halved(ours.DDIMScheduler):
    """A step of a user's around pyfold's."""

    def step(self, model_output, *args, **kwargs):
        return super().step(model_output * 0.5, *args, **kwargs)


def test_a_step_around_a_step_runs_once():
    scheduler, eager = Halved(), Halved()
    for one in (scheduler, eager):
        one.set_timesteps(4)
    step = torch.compile(stepper(scheduler), fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, run(scheduler, step), run(eager, stepper(eager))))


def test_a_float32_state_is_kept_between_compiled_steps():
    scheduler, eager = made("EulerDiscreteScheduler"), made("EulerDiscreteScheduler")
    for one in (scheduler, eager):
        one.keep_float32()
    plain = lambda scheduler, x, t: scheduler.step(x.sin(), t, x, return_dict=False)[0]  # noqa: E731
    step = torch.compile(plain, backend="aot_eager")
    x = y = state(dtype=torch.bfloat16)
    for t in scheduler.timesteps:
        x, y = step(scheduler, x, t), plain(eager, y, t)
        assert torch.equal(x, y)


def test_outputs_with_names():
    scheduler, eager = made("DDIMScheduler"), made("DDIMScheduler")
    step = lambda scheduler, x, t: scheduler.step(x.sin(), t, x)  # noqa: E731
    result = torch.compile(step, fullgraph=True, backend="aot_eager")(scheduler, state(), scheduler.timesteps[0])
    expected = step(eager, state(), eager.timesteps[0])
    assert type(result) is type(expected)
    assert torch.equal(result.prev_sample, expected.prev_sample)
    assert torch.equal(result.pred_original_sample, expected.pred_original_sample)


def test_seeds():
    scheduler, eager = made("DDPMScheduler"), made("DDPMScheduler")
    seeds = torch.tensor([4, 9])
    step = torch.compile(stepper(scheduler, seeds=seeds), fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, run(scheduler, step), run(eager, stepper(eager, seeds=seeds))))


def test_twice_the_channels():
    """A model that says its variance."""
    scheduler, eager = (made("DDPMScheduler", variance_type="learned_range") for _ in range(2))
    step = lambda scheduler, x, t: scheduler.step(torch.cat([x, x], 1).sin(), t, x).prev_sample  # noqa: E731
    x, t = state(), scheduler.timesteps[0]
    torch.manual_seed(3)
    expected = step(eager, x, t)
    torch.manual_seed(3)
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(scheduler, x, t), expected)


@pytest.mark.parametrize("layout", ["channels_last", "slice", "expanded"])
def test_layouts(layout):
    """The outcome lies as the graph was told, whatever the sample's strides."""
    x = state()
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "slice":
        x = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(1))[::2]
    else:
        x = x[:1].expand(SHAPE)
    scheduler, eager = made("DDIMScheduler"), made("DDIMScheduler")
    step = lambda scheduler, x, t: scheduler.step(x.sin(), t, x).prev_sample + 1  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="inductor")
    torch.testing.assert_close(compiled(scheduler, x, scheduler.timesteps[0]), step(eager, x, eager.timesteps[0]))


def test_a_generator_breaks_the_graph():
    """Which cannot hold one; the step is the eager one."""
    assert graph_breaks(made("DDPMScheduler"), generator=torch.Generator().manual_seed(1)) == 1
    scheduler, eager = made("DDPMScheduler"), made("DDPMScheduler")
    step = torch.compile(stepper(scheduler, generator=torch.Generator().manual_seed(1)), backend="aot_eager")
    assert all(map(torch.equal, run(scheduler, step), run(eager, stepper(eager, generator=torch.Generator().manual_seed(1)))))


def test_a_gradient_breaks_the_graph_and_is_right():
    scheduler, eager = made("DDIMScheduler"), made("DDIMScheduler")
    x, y = state().requires_grad_(), state().requires_grad_()
    step = lambda scheduler, x: scheduler.step(x.sin(), scheduler.timesteps[0], x).prev_sample.square().sum()  # noqa: E731
    torch.compile(step, backend="aot_eager")(scheduler, x).backward()
    step(eager, y).backward()
    assert torch.equal(x.grad, y.grad)
    assert x.grad.abs().sum() > 0


def test_errors_are_those_of_the_step():
    scheduler = made("EulerDiscreteScheduler")
    step = torch.compile(lambda x: scheduler.step(x, 3, x).prev_sample, backend="aot_eager")
    with pytest.raises(ValueError, match="timestep must be one of EulerDiscreteScheduler.timesteps, not its place"):
        step(state())


def test_a_step_that_traces_draws_nothing():
    """What is tried while the compiler traces leaves torch's generator alone."""
    scheduler = made("DDPMScheduler")
    torch.manual_seed(5)
    compiled = torch.compile(lambda x, t: scheduler.step(x, t, x).prev_sample, fullgraph=True, backend="aot_eager")
    result = compiled(state(), scheduler.timesteps[0])
    torch.manual_seed(5)
    assert torch.equal(result, made("DDPMScheduler").step(state(), scheduler.timesteps[0], state()).prev_sample)


def test_no_scheduler_is_kept_alive():
    scheduler = made("DDIMScheduler")
    gone = weakref.ref(scheduler)
    step = torch.compile(lambda s, x: s.step(x, s.timesteps[0], x).prev_sample, fullgraph=True, backend="aot_eager")
    step(scheduler, state())
    del scheduler, step
    torch._dynamo.reset()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_flow_step_is_no_break(dtype):
    """From the index on that a pipeline sets, as in diffusers; the bits are those of the eager step."""
    results = []
    for compiled in (False, True):
        scheduler = made("FlowMatchEulerDiscreteScheduler", shift=3.0)
        scheduler.set_timesteps(3)
        scheduler.set_begin_index(0)
        step = lambda model, t, x: scheduler.step(model * 0.5, t, x, return_dict=False)[0]  # noqa: E731
        step = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(dtype)
        for t in scheduler.timesteps:
            x = step(x.sin(), t, x)
        assert scheduler.step_index == 3
        results.append(x)
    assert torch.equal(*results)
