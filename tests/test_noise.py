"""Noise against docs/noise.md: the bits, the promises, and the statistics."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyfold
from pyfold import _C
from pyfold.ops import _noise_reference as oracle

# Known answers of Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    counter, key = np.array([counter], np.uint32), np.array(key, np.uint32)
    assert _C.philox4x32(counter, key).tolist() == [expected]
    assert oracle.philox4x32(counter, tuple(int(k) for k in key)).tolist() == [expected]


SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)
WORDS = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3), SHAPES, WORDS, WORDS)
def test_bits_equal_the_specification(seeds, shape, stream, step):
    expected = oracle.randn(np.array(seeds, np.int64), shape, stream, step)
    before = _C.cpu_tier()
    try:
        for tier in _C.cpu_tiers_supported():
            _C.set_cpu_tier(tier)
            actual = pyfold.randn(torch.tensor(seeds, dtype=torch.int64), shape, stream=stream, step=step).numpy()
            assert np.array_equal(actual.view(np.uint32), expected.view(np.uint32)), tier
    finally:
        _C.set_cpu_tier(before)


def test_long_samples_equal_the_specification(backend):
    seeds = torch.tensor([7, -1], device=backend)
    actual = pyfold.randn(seeds, (3, 41, 67), stream=2, step=9).cpu().numpy()
    assert np.array_equal(actual, oracle.randn(np.array([7, -1]), (3, 41, 67), 2, 9))


def test_elements_beyond_32_bits(backend):
    """The last row of a sample of 2**34 elements, by a window: the block counter needs its high word."""
    window = {"offset": (2**24 - 1, 1000), "global_shape": (2**24, 1024)}
    seeds = torch.tensor([5], device=backend)
    actual = pyfold.randn(seeds, (1, 24), **window).cpu().numpy()
    assert np.array_equal(actual, oracle.randn(np.array([5]), (1, 24), **window))
    far = {"offset": (2**36,), "global_shape": (2**40,)}
    actual = pyfold.randn(seeds, (7,), **far).cpu().numpy()
    assert np.array_equal(actual, oracle.randn(np.array([5]), (7,), **far))


def test_counters_carry_within_a_sample(backend):
    """Elements on both sides of the counter's second word, and nothing written beside them."""
    seeds = torch.tensor([5], device=backend)
    for before, count in ((600, 1200), (40, 512), (508, 512)):
        window = {"offset": (2**34 - before,), "global_shape": (2**40,)}
        memory = torch.zeros(1, count + 64, device=backend)
        pyfold.randn(seeds, (count,), out=memory[:, :count], **window)
        assert np.array_equal(memory[:, :count].cpu().numpy(), oracle.randn(np.array([5]), (count,), **window))
        assert not memory[:, count:].any()


def test_numpy_module_gives_the_same_bits():
    expected = pyfold.randn([11], (1000,), stream=4, step=2)[0].numpy()
    assert np.array_equal(_C.normals(11, 4, 2, 1000), expected)
    assert np.array_equal(_C.normals(11, 4, 2, 300, 333), expected[333:633])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=6, unique=True), st.data())
def test_each_sample_depends_on_its_seed_alone(seeds, data):
    shape = (3, 10)
    whole = pyfold.randn(seeds, shape)
    order = data.draw(st.permutations(range(len(seeds))))
    assert torch.equal(pyfold.randn([seeds[i] for i in order], shape), whole[list(order)])
    cut = data.draw(st.integers(0, len(seeds)))
    assert torch.equal(torch.cat([pyfold.randn(seeds[:cut], shape), pyfold.randn(seeds[cut:], shape)]), whole)


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 40)), st.data())
def test_shards_draw_their_part(shape, data):
    whole = pyfold.randn([3, 4], shape)
    start = [data.draw(st.integers(0, size - 1)) for size in shape]
    size = [data.draw(st.integers(1, whole_size - begin)) for whole_size, begin in zip(shape, start, strict=True)]
    part = pyfold.randn([3, 4], size, offset=start, global_shape=shape)
    assert torch.equal(part, whole[:, start[0] : start[0] + size[0], start[1] : start[1] + size[1]])


def test_threads_and_layout_do_not_matter(backend):
    seeds = torch.arange(4, device=backend)
    expected = pyfold.randn(seeds, (6, 33, 50))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert torch.equal(pyfold.randn(seeds, (6, 33, 50)), expected)
    finally:
        torch.set_num_threads(threads)
    out = torch.empty(4, 6, 33, 50, device=backend).to(memory_format=torch.channels_last)
    assert torch.equal(pyfold.randn(seeds, (6, 33, 50), out=out), expected)
    assert out.is_contiguous(memory_format=torch.channels_last)
    gaps = torch.zeros(4, 6, 33, 101, device=backend)[..., 1::2]
    assert torch.equal(pyfold.randn(seeds, (6, 33, 50), out=gaps), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_hold_the_float32_value(dtype, backend):
    seeds = torch.arange(3, device=backend)
    expected = pyfold.randn(seeds, (5, 77)).to(dtype)
    assert torch.equal(pyfold.randn(seeds, (5, 77), dtype=dtype), expected)


def test_transform_is_within_a_few_ulp_of_its_formula():
    words = np.random.default_rng(0).integers(0, 2**32, (2, 400_000), dtype=np.uint32)
    edges = np.array([0, 1, 2, 2**24 - 1, 2**24, 2**31, 0xB504F333, 0xB504F334, 2**32 - 129, 2**32 - 2, 2**32 - 1], np.uint32)
    pairs = np.stack(np.meshgrid(edges, edges), 0).reshape(2, -1)
    # The furthest off of 80 million pairs.
    worst = np.array([[0xA267DB7C], [0x757E47BD]], np.uint32)
    words = np.concatenate([words, pairs, worst], 1)
    z = oracle.box_muller(words[0].copy(), words[1].copy())
    u, v = (words.astype(np.float64) + 0.5) / 2**32
    radius = np.sqrt(-2 * np.log(u))
    units = []
    for actual, exact in zip(z, (radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)), strict=True):
        # In units of the last place of the radius: near an axis the small coordinate is a difference.
        assert np.abs(actual - exact).max() <= 8e-7
        units.append((np.abs(actual - exact) / np.spacing(radius.astype(np.float32))).max())
    assert 3.1 < max(units) < 3.2
    assert radius.max() > 6.6


def test_statistics():
    """Moments, tails, and independence of neighbours, samples, streams and steps, each within five standard errors."""
    n = 1_000_000
    z = pyfold.randn([0, 1], (n,)).double()
    other = [pyfold.randn([0], (n,), **k)[0].double() for k in ({"stream": 1}, {"step": 1}, {"stream": 2})]
    for row in (*z, *other):
        moments = [(row**k).mean().item() for k in (1, 2, 3, 4)]
        for actual, exact, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
            assert abs(actual - exact) < 5 * math.sqrt(variance / n)
        beyond = (row.abs() > 4).double().mean().item()
        exact = math.erfc(4 / math.sqrt(2))
        assert abs(beyond - exact) < 5 * math.sqrt(exact / n)
    pairs = [(z[0], z[1]), *((z[0], o) for o in other), *((z[0][:-lag], z[0][lag:]) for lag in (1, 2, 3, 4, 5, 256))]
    for a, b in pairs:
        assert abs((a * b).mean().item()) < 5 / math.sqrt(len(a))


def test_the_empirical_distribution_is_normal():
    from scipy.stats import kstest

    assert kstest(pyfold.randn([42], (200_000,))[0].numpy(), "norm").pvalue > 1e-3
