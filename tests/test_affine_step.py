"""What affine_step promises beyond its values: every output in one pass, in place, mixed precision, no look at the device."""

import math
from itertools import permutations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pyfold
from pyfold.ops import AFFINE_STEP_COLUMNS, affine_table
from pyfold.ops.step import _composed_outputs


def random_row(generator, **fixed):
    values = dict.fromkeys(AFFINE_STEP_COLUMNS[:22], 0.0)
    for name in values:
        values[name] = torch.randn((), generator=generator, dtype=torch.float64).item()
    return {**values, "clip_min": -0.7, "clip_max": 0.6, "n1": 3, "n2": 2**53 - 7, "n3": 5 * 2**32 + 2**31, **fixed}


def test_every_output(backend, generator):
    shape = (3, 4, 33)
    x, m1, m2, base, h = (torch.randn(shape, generator=generator).to(backend) for _ in range(5))
    table = affine_table([random_row(generator) for _ in range(3)], backend)
    outs = {name: torch.empty_like(x) for name in ("out", "history_out", "next_input", "x0_out")}
    seeds = torch.tensor([5, 6, 7], device=backend)
    pyfold.affine_step(x, [m1, m2], table, base=base, history=[h], seeds=seeds, **outs)

    def noise(k):
        # The high half of a counter goes to the stream, from bit 11 on.
        stream, step = ((1, 3), (1 + (2**21 - 1 << 11), 2**32 - 7), (1 + (5 << 11), 2**31))[k - 1]
        return pyfold.randn(seeds, shape[1:], stream=stream, step=step).double()

    doubles = [t.double() for t in (x, m1, m2, base, h)]
    expected = _composed_outputs(doubles[0], doubles[1:3], table, doubles[3], doubles[4:], noise)
    for name, value in outs.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("model_dtype", [torch.bfloat16, torch.float16])
def test_float32_state_beside_a_low_precision_model(model_dtype, backend, generator):
    x = torch.randn(2, 3, 100, generator=generator).to(backend)
    model = torch.randn(2, 3, 100, generator=generator).to(backend, model_dtype)
    table = affine_table([{"a": 0.9, "s": 1.0, "c_u": -0.3, "c_in": 0.5}], backend)
    next_input = torch.empty_like(model)
    y = pyfold.affine_step(x, model, table, next_input=next_input)
    expected = 0.9 * x.double() - 0.3 * model.double()
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(next_input, (0.5 * y).to(model_dtype))


def test_in_place_gives_the_same_bits(backend, generator):
    x, model = (torch.randn(2, 3, 1000, generator=generator).to(backend) for _ in range(2))
    history = [torch.randn(2, 3, 1000, generator=generator).to(backend) for _ in range(2)]
    row = random_row(generator, g2=0.0, g3=0.0)
    table = affine_table([row], backend)
    seeds = torch.tensor([1, 2], device=backend)
    u = torch.empty_like(x)
    expected = pyfold.affine_step(x, model, table, history=history, seeds=seeds, history_out=u)
    # The state over itself, and the newest history entry over the oldest.
    y = x.clone()
    result = pyfold.affine_step(y, model, table, history=history, seeds=seeds, out=y, history_out=history[-1])
    assert result is y
    assert torch.equal(y, expected)
    assert torch.equal(history[-1], u)


ROWS = {
    "of everything": {},
    "u is the model's output": {"r": 0.0, "s": 1.0, "t": 0.0},
    "u is x0": {"r": 0.0, "s": 0.0, "t": 1.0},
    "x' without x": {"a": 0.0},
    "x' of x alone": dict.fromkeys(("a_base", "b1", "b2", "c_x0", "c_u", "d1", "d2", "d3"), 0.0),
}


@pytest.mark.parametrize("size", [1024, 1000])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("over", ["x", "model", "base", "newest", "oldest"])
@pytest.mark.parametrize("output", ["out", "history_out", "next_input", "x0_out"])
def test_any_output_may_be_any_operand(output, over, row, size, backend, generator):
    table = affine_table(
        [random_row(generator, **{"g1": 1.0, "g2": 0.0, "g3": 0.0, "b3": 0.0, "b4": 0.0, **ROWS[row]})], backend
    )

    def run(operands, **outputs):
        x, model, base, newest, oldest = operands
        noise = {"seeds": torch.tensor([1, 2], device=backend), "history": [newest, oldest], "base": base}
        outputs = {"out": torch.empty_like(x), output: torch.empty_like(x), **outputs}
        pyfold.affine_step(x, model, table, **noise, **outputs)
        return outputs["out"], outputs[output]

    operands = [torch.randn(2, size, generator=generator).to(backend) for _ in range(5)]
    expected = run(operands)
    copies = [t.clone() for t in operands]
    written = copies[["x", "model", "base", "newest", "oldest"].index(over)]
    for a, b in zip(run(copies, **{output: written}), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("over", range(5))
def test_out_may_be_any_operand_beside_other_outputs(over, row, backend, generator):
    """What is stored after it is of the operands as they were."""
    table = affine_table([random_row(generator, **{"g1": 1.0, "g2": 0.0, "g3": 0.0, **ROWS[row]})], backend)

    def run(operands, out):
        x, model, base, newest, oldest = operands
        others = {name: torch.empty_like(x) for name in ("history_out", "next_input", "x0_out")}
        pyfold.affine_step(x, model, table, history=[newest, oldest], base=base, seeds=seeds, out=out, **others)
        return [out, *others.values()]

    seeds = torch.tensor([1, 2], device=backend)
    operands = [torch.randn(2, 1000, generator=generator).to(backend) for _ in range(5)]
    expected = run(operands, torch.empty_like(operands[0]))
    copies = [t.clone() for t in operands]
    for a, b in zip(run(copies, copies[over]), expected, strict=True):
        assert torch.equal(a, b)


def test_a_zero_coefficient_drops_its_term_whatever_it_holds(backend):
    x = torch.ones(1, 40, device=backend)
    bad = torch.full_like(x, float("nan"))
    table = affine_table([{"a": 2.0, "b1": 0.0, "g1": 0.0, "p": 1.0, "q": 0.0, "c_x0": 1.0}], backend)
    assert torch.equal(pyfold.affine_step(x, bad, table, history=[bad], base=bad), 3 * x)


def test_no_term_at_all_is_zero_in_the_output_alone(backend):
    """Also in whole lanes, where it is written in place."""
    for size in (16, 40):
        memory = torch.ones(size + 1, device=backend)
        out = memory[:size][None]
        pyfold.affine_step(torch.ones_like(out), torch.ones_like(out), affine_table([{"a": 0.0}], backend), out=out)
        assert not out.any() and memory[-1] == 1


def test_a_noise_counter_that_no_int64_holds_counts_as_zero(backend):
    """A table that was not made by affine_table, in the kernels and where tangents flow."""
    x, seeds = torch.zeros(1, 40, device=backend), torch.tensor([3], device=backend)

    def drawn(counter):
        table = affine_table([{"d1": 1.0}], backend)
        table[0, AFFINE_STEP_COLUMNS.index("n1")] = counter
        by_torch, _ = torch.func.jvp(lambda x: pyfold.affine_step(x, x, table, seeds=seeds), (x,), (x,))
        y = pyfold.affine_step(x, x, table, seeds=seeds)
        assert torch.equal(y, by_torch)
        return y

    for counter in (math.nan, math.inf, -math.inf, 1e300, 2.0**63, -(2.0**63)):
        assert torch.equal(drawn(counter), drawn(0.0))
    assert not torch.equal(drawn(1.0), drawn(0.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_number_is_widened_and_rounded_as_torch_does(dtype, backend):
    """All 65,536, times factors that round, overflow and underflow: infinities, subnormals, signed zeros and NaN among them."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).to(backend)[None]
    for factor in (1.0, -1.0, 1.5, 1 / 3, 3e4, 2.0**-12, 2.0**-24):
        out = pyfold.affine_step(x, torch.zeros_like(x), affine_table([{"a": factor}], backend))
        expected = (x.float() * torch.tensor(factor, dtype=torch.float32, device=backend)).to(dtype)
        assert torch.equal(out.isnan(), expected.isnan())
        number = ~expected.isnan()
        assert torch.equal(out.view(torch.int16)[number], expected.view(torch.int16)[number])


def test_each_sample_has_its_own_step(backend, generator):
    """Continuous batching: samples at different steps of a plan, in one call."""
    x, model = (torch.randn(4, 77, generator=generator).to(backend) for _ in range(2))
    table = affine_table([random_row(generator, n1=i) for i in range(6)], backend)
    index = torch.tensor([5, 0, 3, 3], device=backend)
    seeds = torch.tensor([9, 8, 7, 6], device=backend)
    together = pyfold.affine_step(x, model, table, index, seeds=seeds)
    for b in range(4):
        alone = pyfold.affine_step(x[b : b + 1], model[b : b + 1], table, index[b : b + 1], seeds=seeds[b : b + 1])
        assert torch.equal(together[b : b + 1], alone)


def test_shards_of_a_sample(backend, generator):
    x, model = (torch.randn(2, 6, 30, generator=generator).to(backend) for _ in range(2))
    table = affine_table([random_row(generator)], backend)
    seeds = torch.tensor([9, 8], device=backend)
    whole = pyfold.affine_step(x, model, table, seeds=seeds)
    part = pyfold.affine_step(
        x[:, 2:5, 7:20], model[:, 2:5, 7:20], table, seeds=seeds, offset=(2, 7), global_shape=(6, 30)
    )  # fmt: skip
    assert torch.equal(part, whole[:, 2:5, 7:20])


@pytest.mark.parametrize("noisy", [False, True])
def test_any_order_of_dimensions_in_memory_gives_the_same_bits(noisy, backend, generator):
    x, model, base = (torch.randn(2, 3, 4, 5, generator=generator).to(backend) for _ in range(3))
    table = affine_table([random_row(generator)], backend)
    seeds = torch.tensor([9, 8], device=backend) if noisy else None

    def laid(tensor, order):
        lying = tensor.permute(0, *order).contiguous()
        return lying.permute(0, *(order.index(d) + 1 for d in (1, 2, 3)))

    expected = pyfold.affine_step(x, model, table, base=base, seeds=seeds)
    orders = list(permutations((1, 2, 3)))
    for order in orders:
        like = [laid(t, order) for t in (x, model, base)]
        result = pyfold.affine_step(*like[:2], table, base=like[2], seeds=seeds)
        assert torch.equal(result, expected)
        assert result.stride() == like[0].stride()
        for other in orders:
            out = laid(torch.empty_like(x), other)
            pyfold.affine_step(like[0], laid(model, other), table, base=like[2], seeds=seeds, out=out)
            assert torch.equal(out, expected), (order, other)


class NoHostReads(TorchDispatchMode):
    """Fails where a tensor's value would be read by the host, or a tensor made that the op did not need."""

    FORBIDDEN = ("_local_scalar_dense", "item", "_to_copy", "copy_", "nonzero", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        assert name not in self.FORBIDDEN, f"{func} reads or moves values"
        self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_reads_nothing_on_the_host_and_launches_one_kernel(device, generator):
    x, model = (torch.randn(2, 8, generator=generator).to(device) for _ in range(2))
    table = affine_table([random_row(generator) for _ in range(3)], device)
    counter, seeds = torch.zeros(1, dtype=torch.int64, device=device), torch.arange(2, device=device)
    with NoHostReads() as seen:
        pyfold.affine_step(x, model, table, counter, seeds=seeds, out=x, history_out=torch.empty_like(x))
    assert seen.names == ["empty_like", "affine_step"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_loop_is_one_cuda_graph(generator):
    device = torch.device("cuda")
    table = affine_table([random_row(generator, n1=i) for i in range(5)], device)
    x, seeds = torch.randn(2, 64, generator=generator).to(device), torch.arange(2, device=device)
    counter = torch.zeros(1, dtype=torch.int64, device=device)

    def step(state):
        pyfold.affine_step(state, state, table, counter, seeds=seeds, out=state)
        counter.add_(1)

    expected = x.clone()
    for _ in range(5):
        step(expected)
    state = x.clone()
    counter.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(5):
            step(state)
    state.copy_(x)
    counter.zero_()
    graph.replay()
    assert torch.equal(state, expected)
