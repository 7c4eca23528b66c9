"""Ratios measured in one run: each row times its forms by turns and compares medians.

Interleaving is what makes a ratio mean something on a noisy machine: a disturbance falls on all forms alike.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

SIZES = {"1x4x64x64": (1, 4, 64, 64), "8x3x256x256": (8, 3, 256, 256), "16x3x512x512": (16, 3, 512, 512)}
ROWS: list[dict] = []


def pytest_addoption(parser):
    parser.addoption("--ratios-json", default=None, help="write the table of ratios to this file")


def interleaved(forms: dict[str, Callable[[], object]], budget: float) -> dict[str, float]:
    """Median seconds of each form, measured by turns until the budget is spent, at least seven turns."""
    for form in forms.values():
        form()
        form()
    times = {name: [] for name in forms}
    end = time.perf_counter() + budget
    while len(next(iter(times.values()))) < 7 or time.perf_counter() < end:
        for name, form in forms.items():
            begin = time.perf_counter()
            form()
            times[name].append(time.perf_counter() - begin)
        if len(next(iter(times.values()))) > 2000:
            break
    return {name: statistics.median(values) for name, values in times.items()}


@pytest.fixture
def compare(benchmark):
    """compare(row, size, {"pyfold": f, peer: g, ...}, moved=bytes): prints nothing, keeps the row, feeds pytest-benchmark."""

    def run(row: str, size: str, forms: dict[str, Callable[[], object]], *, moved: int | None = None, budget: float = 1.5):
        with torch.no_grad() if row.endswith("step") else torch.enable_grad():
            if moved is not None:
                count = max(moved // 12, 1024)
                a, b, c = (torch.ones(count) for _ in range(3))
                # Two reads and a write: the bandwidth that this size has, here and now.
                forms = {**forms, "triad": lambda: torch.add(a, b, alpha=0.5, out=c)}
            medians = interleaved(forms, budget)
            benchmark.pedantic(forms["pyfold"], rounds=5, iterations=1, warmup_rounds=1)
        ours = medians["pyfold"]
        entry = {"row": row, "size": size, "ms": round(1000 * ours, 4)}
        entry |= {f"vs {name}": round(value / ours, 2) for name, value in medians.items() if name not in ("pyfold", "triad")}
        if moved is not None:
            entry["bandwidth share"] = round(medians["triad"] / (12 * count) * moved / ours, 3)
        benchmark.extra_info.update(entry)
        ROWS.append(entry)
        return entry

    return run


def table(rows: list[dict]) -> str:
    columns = ["row", "size", "ms", *sorted({k for r in rows for k in r if k.startswith("vs ")}), "bandwidth share"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(str(row.get(c, "")) for c in columns) + " |")
    return "\n".join(lines)


def pytest_terminal_summary(terminalreporter, config):
    if not ROWS:
        return
    terminalreporter.write_line("")
    terminalreporter.write_line(
        f"medians of interleaved runs; 'vs' is how many times longer the peer takes; threads: {torch.get_num_threads()}"
    )
    terminalreporter.write_line(table(ROWS))
    path = config.getoption("--ratios-json")
    if path:
        from pyfold import config as pyfold_config

        record = {"config": pyfold_config(), "rows": ROWS}
        record["config"].pop("libraries")
        temporary = Path(path).with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        temporary.replace(path)
