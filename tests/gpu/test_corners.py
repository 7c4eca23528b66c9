"""Launches that the matrix of ops has not: elements beyond 2^31, rows outside a table, more rows than a block, and recorded
launches that are replayed with other seeds and positions."""

import pytest
import torch
from compared import Compared, same_bits
from simulator import only_blocks, recording, replay

#: Of csrc/diffusion/noising.h.
NOISING_COLUMNS = 5

GPU = torch.ops.pyfold_gpu_test
CPU = torch.ops.pyfold


def test_elements_beyond_two_to_the_31():
    """A sample of 2^32 + 2^20 elements, reserved and not touched but for a few blocks: each holds its own window's noise."""
    count = 2**32 + 2**20
    seeds = torch.tensor([7])
    out = torch.empty(1, count, dtype=torch.bfloat16)
    with only_blocks(0):
        GPU.randn(out, seeds, None, None, 0, 0, [], [])
    per_block = int((out[0, : 2**16] != 0).sum())
    assert 0 < per_block < 2**16
    blocks = [0, 2**31 // per_block, 2**32 // per_block, count // per_block - 1]
    with only_blocks(*blocks):
        GPU.randn(out, seeds, None, None, 0, 0, [], [])
    for block in blocks:
        first = block * per_block
        part = torch.empty(1, per_block, dtype=torch.bfloat16)
        CPU.randn(part, seeds, None, None, 0, 0, [first], [count])
        assert torch.equal(out[:, first : first + per_block], part), f"block {block}"


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


def test_recorded_launches_use_the_seeds_of_the_replay():
    """A loop of 50 launches, recorded once: other seeds give other, right bits."""
    seeds, out = torch.tensor([1, 2]), torch.empty(50, 2, 37)
    with recording():
        for step in range(50):
            GPU.randn(out[step], seeds, None, None, 0, step, [], [])
    assert out.isnan().all()
    for new in ([1, 2], [3, 4]):
        seeds.copy_(torch.tensor(new))
        replay()
        expected = torch.empty(50, 2, 37)
        for step in range(50):
            CPU.randn(expected[step], seeds, None, None, 0, step, [], [])
        assert same_bits(out, expected)
