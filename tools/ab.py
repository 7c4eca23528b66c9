"""What calls cost in two checkouts: python tools/ab.py OLD NEW, both compiled.

Alternates processes of the two, so that a machine that warms up or is shared treats them alike; a row is the median over the
turns of a call on 64 elements, with the ratio and the difference of the two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

#: Calls of one sample, and calls a sample.
SAMPLES, CALLS = 7, 60


def calls() -> dict[str, Callable[[], Any]]:
    """Every op, fold kind and module on 64 elements, by the public functions that both checkouts have."""
    import torch

    import pyfold
    from pyfold.ops import affine_table

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, model, seeds = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4), torch.arange(1)
    learned = x.clone().requires_grad_()
    table = affine_table([{"a": 0.5, "s": 1.0, "c_u": 0.3}])
    rows: dict[str, Callable[[], Any]] = {
        "affine_step": lambda: pyfold.affine_step(x, model, table),
        "affine_step, in place": lambda: pyfold.affine_step(x, model, table, out=x),
        "randn": lambda: pyfold.randn(seeds, (4, 4, 4)),
        "add_noise": lambda: pyfold.add_noise(x, 0.5, 0.5, seeds),
        "denoising_loss": lambda: pyfold.denoising_loss(model, x, 0.5, 0.5, seeds),
        "mse_loss": lambda: pyfold.mse_loss(model, x),
    }
    needed = {"householder": {"angle": torch.zeros(2)}, "hyperplane": {"normal": torch.randn(1, 4)}}
    for kind in pyfold.ops.FOLDS:
        parameters: dict[str, Any] = needed.get(kind, {})
        module = pyfold.nn.Fold(kind, 4, **parameters)
        rows[f"fold {kind}"] = lambda kind=kind, given=parameters: pyfold.fold(x, kind, **given)
        rows[f"module {kind}"] = lambda module=module: module(x)
    for kind in ("abs", "maxmin", "groupsort"):
        rows[f"gradient of {kind}"] = lambda kind=kind: pyfold.fold(learned, kind).backward(x)
    return rows


def measure() -> dict[str, float]:
    """Microseconds a call, the median of some samples."""
    measured = {}
    for name, call in calls().items():
        samples = []
        for _ in range(SAMPLES + 1):  # the first warms up
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            samples.append((time.perf_counter() - start) / CALLS * 1e6)
        measured[name] = statistics.median(samples[1:])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="*", metavar="CHECKOUT", help="OLD and NEW")
    parser.add_argument("--turns", type=int, default=20)
    arguments = parser.parse_args()
    if not arguments.checkouts:
        print(json.dumps(measure()))
        return
    if len(arguments.checkouts) != 2:
        parser.error(f"two checkouts are compared, got {len(arguments.checkouts)}")
    from tqdm import tqdm

    medians: list[dict[str, list[float]]] = [{}, {}]
    for turn in tqdm(range(2 * arguments.turns), desc="processes"):
        root = arguments.checkouts[turn % 2]
        environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, os.path.abspath(__file__)]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
        for name, value in json.loads(done.stdout).items():
            medians[turn % 2].setdefault(name, []).append(value)
    print(f"{'call':24} {'old us':>8} {'new us':>8} {'ratio':>6} {'more':>7}")
    for name in (n for n in medians[0] if n in medians[1]):
        old, new = (statistics.median(m[name]) for m in medians)
        print(f"{name:24} {old:8.2f} {new:8.2f} {new / old:6.2f} {new - old:+7.2f}")


if __name__ == "__main__":
    main()
