"""Launches that the matrix of ops has not: elements beyond 2^31, nothing at all, what is refused before a launch, rows outside
a table, more rows than a block, and recorded launches that are replayed with other seeds and positions."""

import itertools

import pytest
import torch
from compared import Compared, OnDevice, same_bits
from simulator import launches, only_blocks, recording, replay

from pyfold import diffusion
from pyfold.folds.program import Program
from pyfold.ops import FLOAT_DTYPES

#: Of csrc/diffusion/noising.h.
NOISING_COLUMNS = 5

GPU = torch.ops.pyfold_gpu_test
CPU = torch.ops.pyfold


@pytest.mark.parametrize(
    ("count", "first", "step"),
    [
        (2**32 + 2**20, 0, 1),
        (2**31 - 300, 1, 1),  # the most that a warp counts in 32 bits, off by one
        (2**31 - 200, 1, 1),
        (2**30, 0, 2),  # the last one 2^31 - 2 from the first, and 2^31
        (2**30 + 1, 0, 2),
    ],
)
def test_elements_beyond_two_to_the_31(count, first, step):
    """A sample reserved and not touched but for a few blocks: each holds its own window's noise."""
    seeds = torch.tensor([7])
    out = torch.empty(1, first + step * count, dtype=torch.bfloat16)[:, first::step]
    with only_blocks(0):
        GPU.randn(out, seeds, None, None, 0, 0, [], [])
    per_block = int((out[0, : 2**16] != 0).sum())
    assert 0 < per_block < 2**16
    blocks = sorted({at // per_block for at in (0, 2**30, 2**31, 2**32, count - 1) if at < count})
    with only_blocks(*blocks):
        GPU.randn(out, seeds, None, None, 0, 0, [], [])
    for block in blocks:
        start = block * per_block
        part = torch.empty(1, min(per_block, count - start), dtype=torch.bfloat16)
        CPU.randn(part, seeds, None, None, 0, 0, [start], [count])
        assert torch.equal(out[:, start : start + per_block], part), f"block {block}"


def test_keys_draw_windows_and_wrap():
    """Over a change of the counter's second word, over its end, and element by element of a window."""
    keys = torch.tensor([[5, 2**32 - 3], [2**64 - 1, 2**64 - 2]], dtype=torch.uint64)
    whole, part = torch.empty(2, 4, 33), torch.empty(2, 3, 7)
    with Compared():
        CPU.randn(whole, keys, None, None, 3, 9, [], [])
        CPU.randn(part, keys, None, None, 3, 9, [1, 5], [4, 33])
    assert torch.equal(part, whole[:, 1:4, 5:12])


def test_rows_outside_a_table_become_nan():
    x0 = torch.ones(4, 40)
    table = torch.ones(3, NOISING_COLUMNS, dtype=torch.float64)
    out = torch.zeros_like(x0)
    with Compared():
        CPU.add_noise(x0, table, torch.tensor([0, 3, -1, 2]), torch.arange(4), None, None, 0, 0, [], [], out, None)
    assert out.isnan().any(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("rows", [1000, 70000])
def test_more_rows_than_a_grid_is_wide(rows):
    out = torch.empty(rows, 3)
    with Compared():
        CPU.randn(out, torch.arange(rows), None, None, 0, 0, [], [])


@pytest.mark.parametrize("columns", [64, 129], ids=["packs", "warps"])
def test_more_rows_of_blocks_than_a_launch_has(columns):
    """They are dealt 65535 to a launch; the first row of each of three is compared, and of two sums."""
    rows, first = 2 * 65535 + 1, [0, 65535, 2 * 65535]
    seeds = torch.arange(rows)
    out = torch.empty(rows, columns, dtype=torch.bfloat16)
    with only_blocks(0):
        GPU.randn(out, seeds, None, None, 0, 0, [], [])
    drawn = torch.empty(len(first), columns, dtype=torch.bfloat16)
    CPU.randn(drawn, seeds[first], None, None, 0, 0, [], [])
    assert torch.equal(out[first], drawn)
    table = torch.ones(1, NOISING_COLUMNS, dtype=torch.float64)
    noise = seeds, None, None, 0, 0, [], []
    with only_blocks(0, 65535):
        sums = GPU.denoising_loss(out, out, table, None, *noise)
    expected = CPU.denoising_loss(drawn, drawn, table, None, seeds[first], None, None, 0, 0, [], [])
    torch.testing.assert_close(sums[first[:2]], expected[:2])


def test_recorded_launches_use_the_seeds_of_the_replay():
    """A loop of 50 launches, recorded once: other seeds, streams and positions give other, right bits."""
    seeds, streams, position = torch.tensor([1, 2]), torch.tensor([0, 0]), torch.tensor([0])
    start, table = torch.randn(2, 37), torch.zeros(50, 25, dtype=torch.float64)
    table[:, 0], table[:, 8], table[:, 11] = 0.9, 0.5, 0.1  # x' = 0.9 x + 0.5 noise, and the model's output is not asked for
    table[:, 22] = torch.arange(50)

    def steps(ops, states):
        for step in range(50):
            noise = torch.tensor([step]), seeds, streams, position, 3, 0, [], []
            kept.append(noise)
            x, out = states[step], states[step + 1]
            ops.affine_step(x, [x], None, [], table, *noise, out, None, None, None)

    kept = []
    states = torch.empty(51, 2, 37)
    states[0] = start
    with recording():
        steps(GPU, states)
    assert states[1:].isnan().all()
    seen = []
    for new in ([1, 2, 0, 0, 0], [3, 4, 0, 0, 0], [3, 4, 5, -6, 0], [3, 4, 5, -6, 2**32 - 20]):
        seeds.copy_(torch.tensor(new[:2]))
        streams.copy_(torch.tensor(new[2:4]))
        position.fill_(new[4])
        replay()
        expected = torch.empty(51, 2, 37)
        expected[0] = start
        steps(CPU, expected)
        assert same_bits(states, expected)
        seen.append(states[-1].clone())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


def test_a_recorded_sampler_uses_the_seeds_of_the_replay():
    """diffusion.sample as a captured graph has it: noise and 50 steps launched once, other seeds at each replay."""
    plan = diffusion.ddpm(diffusion.vp_linear(), 50)
    seeds = torch.tensor([1, 2])

    def sample():
        return diffusion.sample(lambda x, t: x, plan, (3, 5, 7), seeds)

    with recording(), OnDevice() as ops:
        x = sample()
    assert ops.calls == 51
    seen = []
    for new in ([1, 2], [3, 4], [-1, 2**62]):
        seeds.copy_(torch.tensor(new))
        replay()
        assert same_bits(x, sample())
        seen.append(x.clone())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


#: Channels of a row below, and rows so that elements pass 2^31.
WIDE, MANY = 4096, 2**31 // 4096 + 512


def reserved(dtype, rows, generator, columns=WIDE, many=MANY):
    """Memory for more than 2^31 elements, of which these rows alone are touched."""
    x = torch.empty(many, columns, dtype=dtype)
    for row in rows:
        x[row] = torch.randn(columns, generator=generator)
    return x


def blocks_of(rows, blocks_per_row):
    return [row * blocks_per_row + i for row in rows for i in range(blocks_per_row)]


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["abs", "maxmin", "householder"])
def test_folds_beyond_two_to_the_31(kind, groups, dtype):
    generator = torch.Generator().manual_seed(6)
    rows = [0, 3, MANY // 2, MANY - 1]
    x = reserved(dtype, rows, generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    angle = torch.randn(WIDE // 2, generator=generator, dtype=wide) if kind == "householder" else None
    bias = torch.randn(WIDE, generator=generator, dtype=wide)
    for pairing in ("adjacent", "halves"):
        units, of_row = (1, pairing, groups), (1, pairing, 1)
        with only_blocks(*blocks_of(rows, 2 if kind == "abs" else 1)):  # 2048 units each
            y, bits, clamped = GPU.fold(x, bias, angle, *units, kind, 1.5, 2.0, True)
            back = GPU.fold_backward(x, bits, clamped, angle, *units, kind, 1.5, False)
            turned = None if angle is None else GPU.fold_rotate(x, bits, angle, *units)
        for row in rows:
            part = x[row : row + 1].clone()
            expected, row_bits, row_clamped = CPU.fold(part, bias, angle, *of_row, kind, 1.5, 2.0, True)
            assert same_bits(y[row : row + 1], expected), row
            assert torch.equal(bits.view(MANY, -1)[row], row_bits[0]), row
            assert same_bits(back[row], CPU.fold_backward(part, row_bits, row_clamped, angle, *of_row, kind, 1.5, False)[0])
            if turned is not None:
                assert same_bits(turned[row : row + 1], CPU.fold_rotate(part, row_bits, angle, *of_row))


def test_more_angles_than_a_grid_is_high():
    """A row of 134 million pairs, each with an angle of its own: beyond what the rows of lines of a launch hold."""
    lines = 65535 * 2048 + 8
    x, y = torch.empty(1, 2 * lines, dtype=torch.bfloat16), torch.empty(1, 2 * lines, dtype=torch.bfloat16)
    bits = torch.empty(1, lines // 8, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(8)
    for memory in (x, y):
        memory[0, -32:] = torch.randn(32, generator=generator)
    bits[0, -2:] = torch.tensor([0b10110001, 0b01011101])
    with only_blocks(*range(lines - 16, lines), (lines - 1) // 256):  # a block each, and that of their sums
        grad = GPU.fold_angle_grad(x, y, bits, 1, "adjacent", 1)
    expected = CPU.fold_angle_grad(x[:, -32:].clone(), y[:, -32:].clone(), bits[:, -2:].clone(), 1, "adjacent", 1)
    # The sums' block has eight of the lines.
    assert torch.equal(grad[-8:], expected[-8:]) and bool(expected[-8:].count_nonzero() > 3)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("width", [2, 3, 4, 8, 16])
def test_more_sorts_than_two_to_the_31(width, groups, dtype):
    """More units than 2^31, 256 a row and a block; 3 is none of the networks in registers."""
    generator = torch.Generator().manual_seed(7)
    columns = 256 * width
    many = 2**31 // 256 + 512
    rows = [0, 3, many // 2, many - 1]
    x = reserved(dtype, rows, generator, columns, many)
    program = Program(width)
    program.sort(range(width))
    form = program.instructions, program.constants, width
    with only_blocks(*rows):
        y, bits = GPU.fold_sequence(x, None, None, 1, "adjacent", groups, *form, True)
        back = GPU.fold_sequence_apply(y, bits, None, 1, "adjacent", groups, "adjoint", *form)
    planes = bits.view(groups, -1, many // groups, 32)  # a group has its planes one after another
    for row in rows:
        expected, row_bits = CPU.fold_sequence(x[row : row + 1].clone(), None, None, 1, "adjacent", 1, *form, True)
        assert same_bits(y[row : row + 1], expected)
        group, within = divmod(row, many // groups)
        assert torch.equal(planes[group, :, within].flatten(), row_bits[0])
        assert same_bits(back[row], x[row])


@pytest.mark.parametrize("ops", [GPU, CPU], ids=["GPU", "CPU"])
def test_operands_of_another_device_are_refused(ops):
    """As the kernels' own device would be asked: the dispatcher of a torch with one device never gets there."""
    device = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    x, bits = torch.randn(4, 8), torch.zeros(1, 4, dtype=torch.uint8)
    seeds, elsewhere = torch.arange(4), torch.device("meta")
    units = 1, "adjacent", 1, "abs", 1.0, False
    with pytest.raises(RuntimeError, match="device of bits"):
        ops.fold_backward.default.redispatch(device, x, bits.to(elsewhere), None, None, *units)
    with pytest.raises(RuntimeError, match="device of seeds"):
        ops.randn.default.redispatch(device, x, seeds.to(elsewhere), None, None, 0, 0, [], [])
    table = torch.zeros(1, 25, dtype=torch.float64)
    noise = None, None, None, None, 0, 0, [], []
    with pytest.raises(RuntimeError, match=r"device of models\[0\]"):
        ops.affine_step.default.redispatch(device, x, [x.to(elsewhere)], None, [], table, *noise, x, None, None, None)


@pytest.mark.parametrize("ops", [GPU, CPU], ids=["GPU", "CPU"])
def test_outputs_that_partly_overlap_are_refused(ops):
    """Before a launch: what a thread writes, another would still read."""
    memory, before = torch.randn(5, 8), launches()
    noise = torch.arange(4), None, None, 0, 0, [], []
    noising, step = torch.ones(1, NOISING_COLUMNS, dtype=torch.float64), torch.ones(1, 25, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="overlap"):
        ops.add_noise(memory[:4], noising, None, *noise, memory[1:], None)
    with pytest.raises(RuntimeError, match="self_overlap of out"):
        ops.randn(memory.flatten().as_strided((4, 8), (7, 1)), *noise)
    with pytest.raises(RuntimeError, match="overlap"):
        ops.affine_step(memory[:4], [torch.ones(4, 8)], None, [], step, None, *noise, memory[1:], None, None, None)
    assert launches() == before


@pytest.mark.parametrize("n", [-1.0, 2.0**32, 2.0**32 + 5, -(2.0**63), 1e300, float("inf"), float("nan"), 0.75])
def test_counters_of_a_raw_table(n):
    """Any number that a raw table may hold counts alike on both."""
    table = torch.zeros(1, 25, dtype=torch.float64)
    table[0, 8:11] = 1.0
    table[0, 22:] = torch.tensor([n, 1.0, n])
    x, out = torch.zeros(2, 40), torch.empty(2, 40)
    with Compared():
        CPU.affine_step(x, [x], None, [], table, None, torch.arange(2), None, None, 0, 3, [], [], out, None, None, None)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0), (2, 0, 5)])
def test_nothing_and_one_value(shape, dtype):
    """Folds of 0-d tensors and of nothing; samples of nothing, whose mean is none."""
    x = torch.ones(shape, dtype=dtype)
    with Compared():
        CPU.fold(x, None, None, 0, "adjacent", 1, "abs", 1.0, 0.0, True)
        CPU.fold_sequence(x, None, None, 0, "adjacent", 1, [0, 0, 0, 0, 0], [0.5], 1, True)
        for dim in [d for d, size in enumerate(shape) if size % 2 == 0]:
            angle = torch.zeros(shape[dim] // 2, dtype=torch.promote_types(dtype, torch.float32))
            units = dim, "adjacent", 1
            y, bits, _ = CPU.fold(x, None, angle, *units, "householder", 1.0, 0.0, True)
            CPU.fold_rotate(x, bits, angle, *units)
            CPU.fold_angle_grad(x, y, bits, *units)
        if not shape:
            return
        noise = torch.arange(shape[0]), None, None, 0, 0, [], []
        table = torch.ones(1, NOISING_COLUMNS, dtype=torch.float64)
        CPU.randn(torch.empty_like(x), *noise)
        CPU.add_noise(x, table, None, *noise, torch.empty_like(x), torch.empty_like(x))
        CPU.denoising_loss(x, x, table, None, *noise)


def test_comparing_nothing_is_noticed():
    with pytest.raises(AssertionError, match="nothing was compared"), Compared():
        torch.ones(3)
