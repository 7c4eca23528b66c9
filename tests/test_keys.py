"""Keys of torch's stateless generator against docs/keys.md: the same words, pyfold's normals, wherever seeds go.

tests/keys.json holds what torch 2.14.1 made of some keys: ``words``, the 64-bit words of ``split(key, 4)``; ``low_bits``, the
low 24 bits of each 32-bit word, of ``uniform(key, (16,))``; and ``normals``, the bits of ``normal(key, (16,))``.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pyfold
from pyfold import _C, diffusion, ops
from pyfold._torch_private import stateless_generator
from pyfold.ops import _noise_reference as oracle

NOTED = json.loads(Path(__file__).with_name("keys.json").read_text())["keys"]
#: The largest difference of torch's normals from pyfold's; torch's own from the exact transform is 2.05e-5, pyfold's 5.8e-7.
TORCH_ERROR = 2.1e-5
WORD = st.integers(0, 2**64 - 1)
COUNTER = st.integers(0, 2**32 - 1)


def keys_of(*pairs, device="cpu"):
    return torch.tensor(pairs, dtype=torch.uint64, device=device)


def noted_key(noted):
    return tuple(int(word, 16) for word in noted["key"])


def bits(x):
    return x.cpu().numpy().view(np.uint32)


def same(a, b):
    return np.array_equal(bits(a), bits(b))


@pytest.mark.parametrize("noted", NOTED, ids=lambda noted: noted["name"])
def test_words_are_torchs(noted, backend):
    """The kernel's normals are the transform of the words that torch noted, in torch's order, and near torch's normals."""
    wide = np.array([int(word, 16) for word in noted["words"]], np.uint64)
    words = np.stack([wide & np.uint64(0xFFFFFFFF), wide >> np.uint64(32)], 1).astype(np.uint32).reshape(-1)
    assert [f"{word & 0xFFFFFF:06X}" for word in words.tolist()] == noted["low_bits"]
    expected = np.stack(oracle.box_muller(words[0::2].copy(), words[1::2].copy()), 1).reshape(-1)
    actual = pyfold.randn(keys_of(noted_key(noted), device=backend), (16,))[0]
    assert np.array_equal(bits(actual), expected.view(np.uint32))
    theirs = np.array([int(word, 16) for word in noted["normals"]], np.uint32).view(np.float32)
    assert np.abs(actual.cpu().double().numpy() - theirs).max() < TORCH_ERROR


def test_a_split_key_is_two_words_of_its_block():
    """docs/keys.md's split and fold_in, by the words that torch noted."""
    by_name = {noted["name"]: noted for noted in NOTED}
    words = by_name["key(42)"]["words"]
    assert by_name["split(key(42), 3)[2]"]["key"] == words[4:6]
    counter = np.array([[7, 0, 0, 0]], np.uint32)
    folded = _C.philox4x32(counter, np.array([42, 0], np.uint32))[0].tolist()
    assert [int(word, 16) for word in by_name["fold_in(key(42), 7)"]["key"]] == [
        folded[0] | folded[1] << 32, folded[2] | folded[3] << 32,
    ]  # fmt: skip


@pytest.mark.skipif(stateless_generator() is None, reason="this torch has no stateless generator")
def test_live_keys():
    random = stateless_generator()
    keys = random.split(random.fold_in(random.key(5), 11), 3)
    theirs = random.normal(keys.unsqueeze(1), (3, 100_003))
    ours = pyfold.randn(keys, (100_003,))
    assert (theirs.double() - ours.double()).abs().max() < TORCH_ERROR
    low = (random.uniform(keys.unsqueeze(1), (3, 64)) * 2**24).to(torch.int64)
    for key, found in zip(keys.tolist(), low.tolist(), strict=True):
        blocks = (np.arange(16, dtype=np.uint64) + np.uint64(key[1])).view(np.uint32).reshape(-1, 2)
        counter = np.concatenate([blocks, np.zeros_like(blocks)], 1)
        words = _C.philox4x32(counter, np.array([key[0] & 0xFFFFFFFF, key[0] >> 32], np.uint32))
        assert (words & np.uint32(0xFFFFFF)).reshape(-1).tolist() == found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORD, WORD), max_size=3), st.lists(st.integers(0, 9), max_size=3).map(tuple), COUNTER, COUNTER)
def test_bits_equal_the_specification(keys, shape, stream, step):
    expected = oracle.randn(keys, shape, stream, step)
    given_keys = torch.tensor(keys, dtype=torch.uint64).reshape(-1, 2)
    before = _C.cpu_tier()
    try:
        for tier in _C.cpu_tiers_supported():
            _C.set_cpu_tier(tier)
            assert np.array_equal(bits(pyfold.randn(given_keys, shape, stream=stream, step=step)), expected.view(np.uint32)), (
                tier
            )
    finally:
        _C.set_cpu_tier(before)


@pytest.mark.parametrize("block", [1, 127, 2**32 - 3, 2**32 - 200, 2**61 - 1000])
def test_a_block_is_four_elements_of_a_window(block, backend):
    """What the key draws is what the seed draws from element 4 block on, over a change of the counter's second word too."""
    seeds = torch.tensor([-9], device=backend)
    window = {"offset": (4 * block,), "global_shape": (2**63 - 1,)}
    expected = pyfold.randn(seeds, (1501,), stream=3, step=4, **window)
    assert same(pyfold.randn(keys_of((2**64 - 9, block), device=backend), (1501,), stream=3, step=4), expected)


@pytest.mark.parametrize("before", [1, 100, 256, 300])
def test_blocks_wrap(before, backend):
    """Block 2^64 is block 0, without a carry into the step: as torch's words do (keys.json holds one)."""
    memory = torch.zeros(1, 2000, device=backend)
    pyfold.randn(keys_of((7, 2**64 - before), device=backend), (1500,), out=memory[:, :1500])
    assert same(memory[:, 4 * before : 1500], pyfold.randn([7], (1500 - 4 * before,), device=backend))
    assert np.array_equal(bits(memory[:, :1500]), oracle.randn([(7, 2**64 - before)], (1500,)).view(np.uint32))
    assert not memory[:, 1500:].any()


def test_windows_layouts_and_dtypes(backend):
    keys = keys_of((3, 2**32 - 40), (4, 2**64 - 5), device=backend)
    whole = pyfold.randn(keys, (12, 31))
    assert np.array_equal(bits(whole), oracle.randn(keys.tolist(), (12, 31)).view(np.uint32))
    part = pyfold.randn(keys, (5, 7), offset=(3, 11), global_shape=(12, 31))
    assert same(part.contiguous(), whole[:, 3:8, 11:18].contiguous())
    out = torch.empty(2, 31, 12, device=backend).transpose(1, 2)
    assert torch.equal(pyfold.randn(keys, (12, 31), out=out), whole)
    assert torch.equal(pyfold.randn(keys, (12, 31), dtype=torch.bfloat16), whole.bfloat16())
    assert torch.equal(pyfold.randn(keys.t().contiguous().t(), (12, 31)), whole)


def test_keys_of_offset_0_are_seeds(backend):
    """In every op that draws: (seed, 0) is the seed, and any key draws what randn of it gives."""
    seeds = torch.tensor([-5, 2**62], device=backend)
    keys = torch.stack([seeds, torch.zeros_like(seeds)], 1).view(torch.uint64)
    offset = torch.stack([seeds, torch.tensor([2**40, -2], device=backend)], 1).view(torch.uint64)
    x = pyfold.randn(seeds, (3, 50))
    table = ops.affine_table([{"a": 0.5, "d1": 0.7, "d2": -0.1, "n1": 2**32 + 9, "n2": 3}], backend)
    calls = (
        lambda s: pyfold.randn(s, (3, 50), step=torch.tensor([4, 5], device=backend)),
        lambda s: pyfold.add_noise(x, 0.8, 0.6, s, target="v")[1],
        lambda s: pyfold.denoising_loss(x, x, 0.8, 0.6, s),
        lambda s: pyfold.affine_step(x, x, table, seeds=s, stream=7),
    )
    for call in calls:
        assert same(call(keys), call(seeds))
        assert not same(call(offset), call(seeds))
    assert same(pyfold.add_noise(x, 0.0, 1.0, offset, stream=6, step=2), pyfold.randn(offset, (3, 50), stream=6, step=2))
    alone = ops.affine_table([{"d1": 1.0, "n1": 2**32 + 9}], backend)
    assert same(pyfold.affine_step(x, x, alone, seeds=offset, stream=7), pyfold.randn(offset, (3, 50), stream=7 + 2048, step=9))


def test_samplers_and_losses_take_keys():
    keys = keys_of((11, 0), (12, 2**63), (13, 5))
    plan = diffusion.ddpm(diffusion.vp_linear(), 4)
    model = lambda x, t: 0.3 * x  # noqa: E731
    sample = diffusion.sample(model, plan, (40,), keys)
    assert same(sample[:1], diffusion.sample(model, plan, (40,), [11]))
    for b in range(3):
        assert same(sample[b : b + 1], diffusion.sample(model, plan, (40,), keys[b : b + 1]))
    start = pyfold.randn(keys, (40,))
    assert same(diffusion.sample(model, plan, (40,), keys, x=start * plan.start_std), sample)
    loss = diffusion.TrainingLoss(diffusion.vp_linear())
    noised = loss.noise(start, keys)
    of_seed = loss.noise(start[:1], torch.tensor([11]))
    assert same(noised.x_t[:1].contiguous(), of_seed.x_t)
    path = diffusion.BrownianPath(keys, (40,), 0.0, 1.0)
    assert same(path(0.7)[:1], diffusion.BrownianPath([11], (40,), 0.0, 1.0)(0.7))


def test_compiled_and_differentiated():
    keys = keys_of((11, 2**33), (12, 2**63))
    x = pyfold.randn(keys, (40,))

    def step(x, keys):
        return pyfold.denoising_loss(pyfold.add_noise(x, 0.8, 0.6, keys), x, 0.8, 0.6, keys).sum()

    def run(function):
        leaf = x.clone().requires_grad_()
        value = function(leaf, keys)
        return value.detach(), *torch.autograd.grad(value, leaf)

    for eager, compiled in zip(run(step), run(torch.compile(step, fullgraph=True, backend="aot_eager")), strict=True):
        assert torch.equal(eager, compiled)
    mapped = torch.func.vmap(lambda x: pyfold.add_noise(x, 0.8, 0.6, keys))(torch.stack([x, 2 * x]))
    assert torch.equal(mapped[1], pyfold.add_noise(2 * x, 0.8, 0.6, keys))


@pytest.mark.parametrize(
    ("seeds", "error", "text"),
    [
        (keys_of((1, 2))[0], ValueError, r"seeds must have shape \(\d, 2\), keys, one for each sample, got \(2,\)"),
        (keys_of((1, 2)).expand(3, 2)[:, :1], ValueError, r"seeds must have shape \(3, 2\), keys.*got \(3, 1\)"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"seeds must have shape \(2,\), one for each sample, got \(2, 2\)"),
        (torch.zeros(2, 2, dtype=torch.int32), TypeError, "seeds must have dtype int64.*uint64.*got int32"),
    ],
)
def test_what_is_no_key(seeds, error, text):
    with pytest.raises(error, match=text):
        pyfold.randn(seeds, (3,))
    x = torch.zeros(seeds.numel() if seeds.dim() == 1 else len(seeds), 5)
    with pytest.raises(error, match="seeds must have"):
        pyfold.add_noise(x, 1.0, 1.0, seeds)
    with pytest.raises(error, match="seeds must have"):
        pyfold.affine_step(x, x, ops.affine_table([{"a": 1.0}]), seeds=seeds)
