"""Seeds from places: Random123's known answers, one to one within a run, and no collisions."""

import numpy as np
import pytest
import torch

import pyfold
from pyfold.ops.seeds import _philox2x32


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0x00000000, 0x00000000), 0x00000000, (0xFF1DAE59, 0x6CD10DF2)),
        ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, (0x2C3F628B, 0xAB4FD7AD)),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, (0xDD7CE038, 0xF62A4C12)),
    ],
)
def test_philox_known_answers(counter, key, words):
    """The vectors of Random123's kat_vectors for philox2x32-10."""
    assert tuple(w.item() for w in _philox2x32(*map(torch.tensor, (*counter, key)))) == words


def in_numpy(run, sample, step):
    """From the docstring alone, in unsigned arithmetic."""
    c0, c1 = np.uint64(sample), np.uint64(step)
    for word in (run & 0xFFFFFFFF, run >> 32 & 0xFFFFFFFF):
        key = np.uint64(word)
        for _ in range(10):
            product = np.uint64(0xD256D193) * c0
            c0, c1 = (product >> np.uint64(32)) ^ key ^ c1, product & np.uint64(0xFFFFFFFF)
            key = (key + np.uint64(0x9E3779B9)) & np.uint64(0xFFFFFFFF)
    return int((c1 << np.uint64(32) | c0).astype(np.int64))


def test_the_docstring_says_how():
    for run, sample, step in (
        (0, 0, 0),
        (7, 2, 100),
        (2**64 - 1, 2**32 - 1, 5),
        (-1, 2**32 - 1, 5),
        (2**40 + 3, 9, 2**32 - 1),
        (2**63, 1, 0),
    ):
        assert pyfold.seed_of(run, sample, step).item() == in_numpy(run, sample, step)
    assert pyfold.seed_of(-1, 3) == pyfold.seed_of(2**64 - 1, 3)


def test_one_to_one_within_a_run():
    """Undone, round by round: two places of a run cannot share a seed."""
    generator = torch.Generator().manual_seed(0)
    sample, step = torch.randint(0, 2**32, (2, 1000), generator=generator)
    run, inverse = 0x0123456789ABCDEF, pow(0xD256D193, -1, 2**32)
    seed = pyfold.seed_of(run, sample, step)
    c0, c1 = (part.numpy().astype(np.uint64) for part in (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    mask = np.uint64(0xFFFFFFFF)
    for word in (run >> 32, run & 0xFFFFFFFF):
        for k in reversed(range(10)):
            key = np.uint64((word + k * 0x9E3779B9) & 0xFFFFFFFF)
            before = (c1 * np.uint64(inverse)) & mask
            c0, c1 = before, ((np.uint64(0xD256D193) * before) >> np.uint64(32)) ^ key ^ c0
    assert np.array_equal(c0.astype(np.int64), sample.numpy()) and np.array_equal(c1.astype(np.int64), step.numpy())


def test_no_collisions():
    """Over 4 million places of 64 runs that count, as runs do."""
    seeds = pyfold.seed_of(torch.arange(64).reshape(-1, 1, 1), torch.arange(1024).reshape(-1, 1), torch.arange(64))
    assert seeds.shape == (64, 1024, 64)
    assert len(np.unique(seeds.numpy())) == seeds.numel()


def test_bits_are_even():
    """Each of the 64 is set half of the time, and flipped half of the time by each bit of the sample; 5 standard errors."""
    count = 4096
    places = torch.arange(count)
    bits = torch.arange(64)
    set_bits = (pyfold.seed_of(1, places).unsqueeze(1) >> bits & 1).double().mean(0)
    assert (set_bits - 0.5).abs().max() < 5 * 0.5 / count**0.5
    for flipped in (1, 1 << 15, 1 << 31):
        changed = (pyfold.seed_of(1, places) ^ pyfold.seed_of(1, places ^ flipped)).unsqueeze(1) >> bits & 1
        assert (changed.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / count**0.5


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((1.5, 0), TypeError, "run must be an int.*float"),
        ((0, True), TypeError, "sample must be an int.*bool"),
        ((0, 2**32), ValueError, r"sample must be in \[0, 2\*\*32\), got 4294967296"),
        ((0, 0, -1), ValueError, r"step must be in \[0, 2\*\*32\), got -1"),
        ((2**64, 0), ValueError, "run must be in"),
        ((0, torch.zeros(2)), TypeError, "sample must be.*float32"),
    ],
)
def test_bad_places(arguments, error, text):
    with pytest.raises(error, match=text):
        pyfold.seed_of(*arguments)
