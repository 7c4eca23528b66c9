"""The rows of ``pyfold.bench`` under pytest-benchmark, with the table at the end."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

from pyfold import bench
from pyfold.bench.measure import machine_limits

RESULTS: list[bench.Measured] = []


def pytest_addoption(parser):
    parser.addoption("--ratios-json", metavar="OUT", help="write the table of ratios to this file, as pyfold bench --json does")
    parser.addoption("--full", action="store_true", help="every size in every dtype, torch.compile at every size")
    parser.addoption("--budget", type=float, default=0.5, metavar="SECONDS", help="of measuring, for each row and size")


def found_peers() -> bench.Peers:
    peers = bench.Peers.found()
    if peers.k_diffusion is None and importlib.util.find_spec("k_diffusion"):
        # Its package imports what its samplers do not need.
        peers.k_diffusion = importlib.import_module("k_diffusion_reference").sampling
        peers.k_diffusion.torchsde = importlib.import_module("torchsde")
    return peers


def pytest_generate_tests(metafunc):
    """Every row at every size in float32, and at the middle size in bfloat16; torch.compile at the middle size, where it takes
    its seconds once."""
    if "setting" not in metafunc.fixturenames:
        return
    peers, full, cpu = found_peers(), metafunc.config.getoption("--full"), torch.device("cpu")
    without = bench.Peers(False, peers.diffusers, peers.k_diffusion, peers.torchlip)
    points, names = [], []
    for row in bench.ROWS.values():
        for setting in bench.settings(row, bench.LEVELS, row.dtypes, cpu, peers):
            if not (full or setting.dtype == torch.float32 or setting.level == "middle"):
                continue
            if not (full or setting.level == "middle"):
                setting = bench.Setting(setting.shape, setting.dtype, cpu, without, setting.level)
            points.append((row, setting))
            names.append(f"{row.name}-{setting.level}-{setting.dtype}".replace("torch.", ""))
    metafunc.parametrize(("row", "setting"), points, ids=names)


def pytest_terminal_summary(terminalreporter, config):
    if not RESULTS:
        return
    terminalreporter.write_line(f"\nmedians of forms run by turns, {torch.get_num_threads()} threads\n")
    terminalreporter.write_line(bench.table(RESULTS))
    if path := config.getoption("--ratios-json"):
        limits = machine_limits(torch.device("cpu"))
        bench.write_json(Path(path), RESULTS, limits=limits, budget=config.getoption("--budget"))
        terminalreporter.write_line(f"\n{path}")


@pytest.fixture
def results():
    return RESULTS
