"""The bits of pyfold/vectors.json: on every instruction set, and by NumPy from docs/noise.md and docs/bits.md alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from vectors import frozen

from pyfold import _C, _vectors, diffusion
from pyfold.diffusion import SAMPLERS
from pyfold.ops import _noise_reference

FROZEN = frozen()


def test_noise(backend):
    assert _vectors.noise() == FROZEN["noise"]


def test_noising_and_losses(backend):
    assert _vectors.noising() == FROZEN["noising"]


def test_folds(backend):
    assert _vectors.folds() == FROZEN["folds"]


def test_training_times():
    assert _vectors.times() == FROZEN["times"]


def test_brownian_paths(backend):
    assert _vectors.brownian() == FROZEN["brownian"]


@pytest.mark.parametrize("sampler", FROZEN["plans"])
def test_the_end_of_a_run(sampler, backend):
    assert _vectors.end(sampler) == FROZEN["plans"][sampler]["end"]


def test_runs_that_look_at_their_values(backend):
    assert _vectors.deciding() == FROZEN["deciding"]


def test_no_sampler_is_missing():
    assert set(FROZEN["plans"]) == {name for name, sampler in SAMPLERS.items() if not sampler.alias_of}


@pytest.mark.parametrize("sampler", FROZEN["plans"])
def test_rows(sampler):
    """To 1e-13: they are float64 of the mathematics libraries, whose last bits differ; float32, in which a step takes them,
    hides that."""
    noted, found = FROZEN["plans"][sampler], _vectors.as_json(_vectors.plan_of(sampler))
    for name in ("history", "overwrites", "start_draw"):
        assert noted.get(name) == found.get(name)
    numbers = [[noted["start_std"], noted["start_scale"], *noted["times"], *(noted["start_churn"] or ())]]
    again = [[found["start_std"], found["start_scale"], *found["times"], *(found["start_churn"] or ())]]
    assert len(noted["rows"]) == len(found["rows"])
    for row, new in zip(noted["rows"], found["rows"], strict=True):
        assert row.keys() == new.keys()
        numbers.append(list(row.values()))
        again.append([new[name] for name in row])
    for before, now in zip(numbers, again, strict=True):
        np.testing.assert_allclose([float.fromhex(v) for v in now], [float.fromhex(v) for v in before], rtol=1e-13, atol=1e-15)


# --- docs/bits.md, followed in NumPy


def normals(seeds, stream, counter):
    stream, step = stream + (counter >> 32 << 11), counter & 0xFFFFFFFF
    return _noise_reference.randn(np.array(seeds, dtype=np.int64), tuple(_vectors.RUN_SHAPE), stream, step).astype(np.float32)


def summed(terms):
    """A sum by the page: in order, a zero coefficient dropping its term, each product and each sum rounded to float32."""
    total = None
    for coefficient, x in terms:
        c = np.float32(coefficient)
        if c != 0:
            total = c * x if total is None else total + c * x
    return np.zeros_like(terms[0][1]) if total is None else total


def step(row, x, model, history, seeds):
    """(next state, u) of one step."""
    c = {name: float.fromhex(value) for name, value in row.items()}.get
    e = model if c("g1", 0) == 1 else summed([(c("g1", 0), model)])
    x0 = summed([(c("p", 0), x), (c("q", 0), e)])
    x0 = np.clip(x0, np.float32(c("clip_min", 0)), np.float32(c("clip_max", 0)))
    u = summed([(c("r", 0), x), (c("s", 0), e), (c("t", 0), x0)])
    terms = [(c("a", 0), x), *((c(f"b{i + 1}", 0), h) for i, h in enumerate(history)), (c("c_x0", 0), x0), (c("c_u", 0), u)]
    terms += [(c(f"d{k}", 0), normals(seeds, 1, int(c(f"n{k}", 0)))) for k in (1, 2, 3) if c(f"d{k}", 0)]
    return summed(terms), u


@pytest.mark.parametrize("sampler", FROZEN["plans"])
def test_a_run_by_the_page(sampler):
    noted, seeds = FROZEN["plans"][sampler], _vectors.RUN_SEEDS
    x = normals(seeds, 0, 0)
    start = float.fromhex(noted["start_std"])
    x = x if start == 1 else x * np.float32(start)
    if noted["start_churn"]:
        keep, add = (float.fromhex(v) for v in noted["start_churn"])
        x = summed([(keep, x), (add, normals(seeds, 1, noted["start_draw"]))])
    seen, history = x * np.float32(float.fromhex(noted["start_scale"])), []
    for stage, row in enumerate(noted["rows"]):
        x, u = step(row, x, np.float32(0.5) * seen, history, seeds)
        if stage in noted["overwrites"]:
            history[0] = u
        else:
            history = [u, *history][: noted["history"]]
        seen = np.float32(float.fromhex(row.get("c_in", "0x0p+0"))) * x
    assert _vectors.bits(torch.from_numpy(x)) == noted["end"]


# --- what is promised does not pass through functions whose rounding depends on the machine


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_torchs_instruction_set_does_not_matter(capability):
    if capability != "default" and capability not in _C.cpu_tiers_supported():
        pytest.skip(f"this processor has no {capability}")  # torch would try it all the same
    sections = ["times", "brownian", "deciding", "folds"]
    code = f"import vectors as v; f = v.frozen(); assert all(v.SECTIONS[s]() == f[s] for s in {sections})"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")]), str(Path(__file__).parents[1])]
    subprocess.run([sys.executable, "-c", code], env={**environment, "PYTHONPATH": os.pathsep.join(paths)}, check=True)


def test_dpm_adaptive_does_not_depend_on_threads():
    seeds, results = torch.arange(2), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(diffusion.dpm_adaptive(_vectors.halves, diffusion.vp_linear(), (3, 128, 128), seeds))
    torch.set_num_threads(before)
    assert all(torch.equal(results[0], r) for r in results[1:])
