"""Coefficients that change within samples: frames, actions or tokens at steps of their own, with their sample's noise."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyfold
from pyfold import diffusion
from pyfold.ops import AFFINE_STEP_COLUMNS, affine_table

#: (samples, the dimension that segments lie on).
LAYOUTS = {
    "tokens": ((3, 5, 8), 1),
    "frames": ((2, 3, 4, 4, 6), 2),
    "pixels": ((2, 3, 4), 2),
    "actions of 7 numbers": ((3, 6, 7), 1),
    "alone": ((2, 9), 1),
}
SEEDS = torch.tensor([5, -6, 7])
KEYS = torch.tensor([[5, 2**63 - 1], [6, -(2**40)], [7, -1]]).view(torch.uint64)


def ones_but(samples, sizes, dims):
    """A shape [samples, 1, ..., size, ..., 1]."""
    return [samples, *(size if d in dims else 1 for d, size in enumerate(sizes, 1))]


def steps_table(generator, rows=7):
    table = torch.randn(rows, len(AFFINE_STEP_COLUMNS), generator=generator, dtype=torch.float64)
    for i, name in enumerate(AFFINE_STEP_COLUMNS):
        table[:, i] = {"clip_min": -0.9, "clip_max": 0.8}.get(name, table[:, i])
        if name in ("n1", "n2", "n3"):
            table[:, i] = torch.arange(rows) * 2.0**32 + i
        elif name in ("b3", "b4", "g3"):
            table[:, i] = 0
    table[3, AFFINE_STEP_COLUMNS.index("d1")] = 0
    return table


def step_operands(shape, generator, dtype=torch.float32):
    x, m1, m2, base, h1, h2 = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(6))
    return {"x": x, "models": [m1, m2], "base": base, "history": [h1, h2]}


def one_by_one(shape, dim, call):
    """What call(part, sizes of its place, number) gives for each segment of the dimension, put together."""
    parts = []
    for k in range(shape[dim]):
        offset = [k if d == dim else 0 for d in range(1, len(shape))]
        parts.append(call(lambda t, k=k: t.narrow(dim, k, 1), offset, k))
    return torch.cat(parts, dim)


@pytest.mark.parametrize("seeds", [SEEDS, KEYS], ids=["seeds", "keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_segments_is_that_of_each_alone(layout, dtype, seeds, generator):
    """Window by window: the same rows, and the noise of the same place in the sample."""
    shape, dim = LAYOUTS[layout]
    seeds, table = seeds[: shape[0]], steps_table(generator)
    o = step_operands(shape, generator, dtype)
    index = torch.randint(7, ones_but(shape[0], shape[1:], [dim]), generator=generator)
    found = pyfold.affine_step(**o, table=table, index=index, seeds=seeds, stream=9)

    def alone(part, offset, k):
        return pyfold.affine_step(
            part(o["x"]), [part(m) for m in o["models"]], table, part(index).reshape(-1), base=part(o["base"]),
            history=[part(h) for h in o["history"]], seeds=seeds, stream=9, offset=offset, global_shape=shape[1:],
        )  # fmt: skip

    expected = one_by_one(shape, dim, alone)
    if math.prod(shape[dim + 1 :]) % 4:  # in torch's operations
        torch.testing.assert_close(found, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("seeds", [SEEDS, KEYS], ids=["seeds", "keys"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noising_and_loss_of_segments_are_those_of_each_alone(layout, seeds, generator):
    shape, dim = LAYOUTS[layout]
    seeds = seeds[: shape[0]]
    x0, prediction = (torch.randn(shape, generator=generator) for _ in range(2))
    alpha, weight = (torch.rand(ones_but(shape[0], shape[1:], [dim]), generator=generator) for _ in range(2))
    sigma = (1 - alpha**2).sqrt()
    positions = torch.arange(shape[0]) + 40

    def alone(which):
        def call(part, offset, k):
            a, s = (part(c).reshape(-1) for c in (alpha, sigma))
            place = {"step": positions, "offset": offset, "global_shape": shape[1:]}
            return pyfold.add_noise(part(x0), a, s, seeds, target="v", **place)[which]

        return one_by_one(shape, dim, call)

    x_t, target = pyfold.add_noise(x0, alpha, sigma, seeds, target="v", step=positions)
    assert torch.equal(x_t, alone(0)) and torch.equal(target, alone(1))
    assert torch.equal(pyfold.add_noise(x0, alpha, sigma, seeds, step=positions), x_t)
    expected = (weight.double() * (prediction - target).double() ** 2).flatten(1).mean(1)
    for loss in (
        pyfold.mse_loss(prediction, target, weight=weight),
        pyfold.denoising_loss(prediction, x0, alpha, sigma, seeds, target="v", weight=weight, step=positions),
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_steps_are_one_step(layout, generator):
    """The bits of a call with one index a sample, and of a coefficient that is one for all."""
    shape, dim = LAYOUTS[layout]
    seeds, table = SEEDS[: shape[0]], steps_table(generator)
    o = step_operands(shape, generator)
    row = torch.randint(7, (shape[0],), generator=generator)
    sizes = ones_but(shape[0], shape[1:], [dim])
    index = row.reshape(-1, *[1] * (len(shape) - 1)).expand(sizes)
    found = pyfold.affine_step(**o, table=table, index=index, seeds=seeds)
    torch.testing.assert_close(found, pyfold.affine_step(**o, table=table, index=row, seeds=seeds), rtol=0, atol=2e-6)
    if math.prod(shape[dim + 1 :]) % 4 == 0:
        assert torch.equal(found, pyfold.affine_step(**o, table=table, index=row, seeds=seeds))
    alpha = torch.rand(shape[0], generator=generator)
    whole = pyfold.add_noise(o["x"], alpha, 0.5, seeds)
    assert torch.equal(pyfold.add_noise(o["x"], alpha.reshape(-1, *[1] * (len(shape) - 1)).expand(sizes), 0.5, seeds), whole)
    one = torch.full([1] * len(shape), 0.5)
    assert torch.equal(pyfold.add_noise(o["x"], alpha, one, seeds), whole)


def test_every_output_and_a_window(generator):
    """Outputs are written in place; a shard of frames, of which each is cut, draws its part."""
    shape, table = (2, 4, 6, 8), steps_table(generator)
    o = step_operands(shape, generator)
    index = torch.randint(7, (2, 4, 1, 1), generator=generator)
    outs = {name: torch.empty(shape) for name in ("out", "history_out", "next_input", "x0_out")}
    whole = pyfold.affine_step(**o, table=table, index=index, seeds=SEEDS[:2], **outs)
    assert whole is outs["out"] and all(value.isfinite().all() for value in outs.values())
    place = slice(None), slice(1, 3), slice(2, 5)
    cut = {name: [t[place] for t in value] if isinstance(value, list) else value[place] for name, value in o.items()}
    part = pyfold.affine_step(
        **cut, table=table, index=index[:, 1:3], seeds=SEEDS[:2], offset=[1, 2, 0], global_shape=shape[1:]
    )
    assert torch.equal(part, whole[place])
    x, again = o["x"].clone(), dict(o)
    again["x"] = x
    assert pyfold.affine_step(**again, table=table, index=index, seeds=SEEDS[:2], out=x) is x and torch.equal(x, whole)


def test_a_step_for_each_pixel_of_each_frame(generator):
    """Any of a sample's dimensions, more than one at once, the batch not among them."""
    shape, table = (2, 3, 4, 4), steps_table(generator)
    o = step_operands(shape, generator)
    index = torch.randint(7, (1, 3, 4, 1), generator=generator)
    found = pyfold.affine_step(**o, table=table, index=index, seeds=SEEDS[:2])
    merged = {name: [t.flatten(1, 2) for t in v] if isinstance(v, list) else v.flatten(1, 2) for name, v in o.items()}
    alone = pyfold.affine_step(**merged, table=table, index=index.expand(2, 3, 4, 1).flatten(1, 2), seeds=SEEDS[:2])
    assert torch.equal(found.flatten(1, 2), alone)


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.made.append((str(function), result.numel() if isinstance(result, torch.Tensor) else 0))
        return result


def test_one_pass_without_a_copy(generator):
    """Of samples whose frames lie in one piece; nothing of their size but the kernel's results is made."""
    x, model = (torch.randn(2, 3, 4, 64, generator=generator) for _ in range(2))
    index, table = torch.randint(7, (2, 1, 4, 1), generator=generator), steps_table(generator)
    with Calls() as calls:
        pyfold.affine_step(x, model, table, index, seeds=SEEDS[:2])
        pyfold.add_noise(x, index / 7.0, 0.5, SEEDS[:2])
    ours = [name for name, _ in calls.made if name.startswith("pyfold")]
    assert ours == ["pyfold.affine_step.default", "pyfold.add_noise.default"]
    large = {name for name, size in calls.made if size >= x.numel()}
    assert large <= {"aten.view.default", "aten.empty_like.default"}


def test_gradients(generator):
    shape = (2, 3, 4)
    x0, prediction = (torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    alpha, weight = (torch.rand(2, 3, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    table, index = steps_table(generator), torch.randint(7, (2, 3, 1), generator=generator)

    def loss(prediction, x0):
        return pyfold.denoising_loss(prediction, x0, alpha, 0.3, SEEDS[:2], target="v", weight=weight)

    def noised(x0):
        return pyfold.add_noise(x0, alpha, 0.3, SEEDS[:2], target="flow")

    def step(x0, prediction):
        return pyfold.affine_step(x0, prediction, table, index, seeds=SEEDS[:2])

    for function, inputs in ((loss, (prediction, x0)), (noised, (x0,)), (step, (x0, prediction))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_compiled_and_exported_with_any_batch(generator):
    table = steps_table(generator)

    class Training(torch.nn.Module):
        def forward(self, x0, alpha, seeds, index):
            x_t = pyfold.add_noise(x0, alpha, 0.5, seeds)
            y = pyfold.affine_step(x_t, x0, table, index, seeds=seeds)
            return y, pyfold.denoising_loss(y, x0, alpha, 0.5, seeds)

    def batch(samples):
        x0 = torch.randn(samples, 3, 8, generator=generator)
        alpha, index = torch.rand(samples, 3, 1, generator=generator), torch.randint(7, (samples, 3, 1), generator=generator)
        return x0, alpha, torch.arange(samples), index

    size, first = torch.export.Dim("batch", min=2), batch(4)
    exported = torch.export.export(Training(), first, dynamic_shapes=({0: size},) * 4).module()
    compiled = torch.compile(Training(), fullgraph=True, dynamic=True, backend="eager")
    for samples in (4, 6):
        inputs = batch(samples)
        for call in (exported, compiled):
            for found, expected in zip(call(*inputs), Training()(*inputs), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_frames_at_stages_of_their_own(generator):
    """A plan with history and noise: each frame's run is that of the frames that stand where it stands."""
    plan = diffusion.dpmpp_multistep(diffusion.vp_linear(), 6, eta=1.0)
    x, output, newest = (torch.randn(2, 3, 2, 4, generator=generator) for _ in range(3))
    stages = torch.tensor([[1, 4, 2], [3, 3, 5]])

    def step(index):
        return plan.step(x, output, index, history=[newest.clone()], seeds=SEEDS[:2])

    found = step(stages.reshape(2, 3, 1, 1))
    for b in range(2):
        for frame in range(3):
            assert torch.equal(found[b, frame], step(stages[b, frame].reshape(1))[b, frame])
    with pytest.raises(ValueError, match="history must hold 1 earlier values at stage 1"):
        plan.step(x, output, stages.reshape(2, 3, 1, 1), history=[], seeds=SEEDS[:2])
    with pytest.raises(ValueError, match="index must be one for each sample for adapt="):
        plan.step(x, output, stages.reshape(2, 3, 1, 1), history=[newest], seeds=SEEDS[:2], adapt=[diffusion.rescale(0.7)])


def test_diffusion_forcing(generator):
    """A training loss whose frames are at times of their own."""
    x0, seeds = torch.randn(2, 3, 4, 4, generator=generator), SEEDS[:2]
    for schedule, prediction in ((diffusion.flow(), "flow"), (diffusion.vp_linear(), "v")):
        for options in ({}, {"keep_target": True}, {"offset_noise": 0.1, "input_perturbation": 0.1}):
            loss = diffusion.TrainingLoss(schedule, prediction, "simple" if options else "min_snr", **options)
            t = loss.times(torch.arange(6)).reshape(2, 3, 1, 1)
            noised = loss.noise(x0, seeds, t)
            assert noised.t.shape == (2, 3, 1, 1)
            losses = loss(torch.sin(noised.x_t), noised)
            same = loss.noise(x0, seeds, t[:, :1].expand(2, 3, 1, 1))
            uniform = loss.noise(x0, seeds, t[:, 0].reshape(-1))
            assert torch.equal(same.x_t, uniform.x_t) and losses.shape == (2,) and losses.isfinite().all()
            torch.testing.assert_close(loss(torch.sin(same.x_t), same), loss(torch.sin(uniform.x_t), uniform))
            if schedule.is_flow and not options:
                eps = pyfold.randn(seeds, (3, 4, 4), stream=2)
                torch.testing.assert_close(noised.x_t, ((1 - t) * x0 + t * eps).float())
                recovered = loss.x0(eps - x0, noised)
                torch.testing.assert_close(recovered, x0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"index": torch.zeros(2, 3, dtype=torch.int64)}, r"index must have shape \(\), \(1,\), \(2,\), or that of x"),
        ({"index": torch.zeros(2, 2, 1, dtype=torch.int64)}, r"with ones in the dimensions.*got \(2, 2, 1\)"),
        ({"index": torch.zeros(2, 3, 1)}, "index must have dtype int64, got float32"),
        ({"out": torch.empty(2, 3, 4).transpose(0, 1).contiguous().transpose(0, 1)}, "out must have dimensions 0 to 1"),
        ({"models": torch.zeros(2, 3, 5)}, "models must have the shape of x"),
        ({"history_out": torch.empty(2, 3, 5)}, "history_out must have the shape of x"),
        ({"seeds": SEEDS}, r"seeds must have shape \(2,\)"),
    ],
)
def test_what_is_refused(change, match):
    given = {
        "x": torch.zeros(2, 3, 4), "models": torch.zeros(2, 3, 4), "table": affine_table([{"a": 1.0, "d1": 1.0}]),
        "index": torch.zeros(2, 3, 1, dtype=torch.int64), "seeds": SEEDS[:2],
    }  # fmt: skip
    pyfold.affine_step(**given)
    with pytest.raises((ValueError, TypeError), match=match):
        pyfold.affine_step(**given | change)


def test_what_noising_refuses():
    x0, alpha = torch.zeros(2, 3, 7), torch.zeros(2, 3, 1)
    with pytest.raises(ValueError, match="alpha must have shape .* or that of x0"):
        pyfold.add_noise(x0, torch.zeros(2, 3), 1.0, [1, 2])
    with pytest.raises(ValueError, match=r"sigma must be a number or have shape \(2,\)"):
        pyfold.add_noise(x0, alpha, torch.zeros(3), [1, 2])
    with pytest.raises(ValueError, match="out= cannot be used with segments of 7"):
        pyfold.add_noise(x0, alpha, 1.0, [1, 2], out=x0)
    with pytest.raises(ValueError, match="weight must have shape .* or that of target"):
        pyfold.mse_loss(x0, x0, weight=torch.zeros(3, 2, 1))
    row = affine_table([{"d1": 1.0}])
    with pytest.raises(ValueError, match="no multiple of 4"):
        pyfold.affine_step(x0, x0, row, torch.zeros(2, 3, 1, dtype=torch.int64), seeds=[1, 2], out=torch.empty(2, 3, 7))
    assert pyfold.add_noise(x0[:, :0], alpha[:, :0], 1.0, [1, 2]).shape == (2, 0, 7)
    assert pyfold.mse_loss(x0[:, :0], x0[:, :0], weight=alpha[:, :0]).isnan().all()
