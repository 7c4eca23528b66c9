"""Kills training runs at seeded moments, lets each go on, and compares its last checkpoint with an uninterrupted run's.

Every run is a fork of this process, so that a moment is one of training and not of Python's start: ``--moments`` are drawn
evenly over the length of the uninterrupted run, its opening, its checkpoints and its last samples included. The digest of a
checkpoint covers every weight, average and optimizer state, so equal digests are equal bits.

python tools/kill_runs.py --moments 50
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyfold._requirements import need
from pyfold.train import checkpoint
from pyfold.train.config import Config
from pyfold.train.run import train

SMALL: dict[str, Any] = {
    "batch": 16,
    "width": 8,
    "save_every": 2,
    "log_every": 5,
    "metrics_every": 8,
    "final_samples": 32,
    "steps": 30,
}
GAN: dict[str, Any] = {"pack": 2, "augment": "adaptive", "latent": 4, "lr": 4e-3, "gamma": 0.1}
#: name -> settings, number of processes
RUNS = {
    "diffusion": (Config("diffusion", sampler_steps=3, **SMALL), 1),
    "gan": (Config("gan", **SMALL, **GAN), 1),
    "gan-2": (Config("gan", **SMALL, **GAN), 2),
}


def _fork(work: Callable[[], object]) -> int:
    """The process that does the work; quiet, and gone when it is done."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
            work()
        status = 0
    finally:
        os._exit(status)


def _start(name: str, out: Path) -> list[int]:
    """The processes of a run in ``out``, new or going on."""
    config, count = RUNS[name]
    if count > 1:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]

    def work(rank: int) -> None:
        if count > 1:
            os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE=str(count), RANK=str(rank))
        train(config, out, resume=True, device=torch.device("cpu"), progress=False)

    return [_fork(partial(work, rank)) for rank in range(count)]


def _wait(processes: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def _kill(processes: list[int], moment: float, first: int) -> bool:
    """SIGKILL to one process at the moment and to the others at once after; whether any was still there."""
    time.sleep(moment)
    alive = [process for process in processes if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None]
    for process in processes[first:] + processes[:first]:
        os.kill(process, signal.SIGKILL)
    _wait(processes)
    return bool(alive)


def digest(out: Path) -> str:
    """Of the last checkpoint."""
    path = checkpoint.find(out)[-1].with_suffix(".json")
    return str(json.loads(path.read_text())["sha256"])


def check(name: str, moments: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Where the kills hit, and what went wrong."""
    config, count = RUNS[name]
    draw = random.Random(f"{name} {seed}")
    hits: Counter[str] = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        whole, out = Path(folder) / "whole", Path(folder) / "killed"
        begin = time.perf_counter()
        if any(_wait(_start(name, whole))):
            return hits, [f"{name}: the uninterrupted run fails"]
        length = time.perf_counter() - begin
        wanted = digest(whole)
        for _ in range(moments):
            shutil.rmtree(out, ignore_errors=True)
            moment, first = draw.uniform(0, length), draw.randrange(count)
            alive = _kill(_start(name, out), moment, first)
            kept = checkpoint.find(out)
            step = int(kept[-1].stem.split("-")[1]) if kept else 0
            where = "after its end" if not alive else "before a checkpoint" if not kept else "last samples"
            hits[where if step in (0, config.steps) or not alive else "training"] += 1
            codes = _wait(_start(name, out))
            if any(codes):
                failures.append(f"{name}: killed at {moment:.3f} s, it does not go on: {codes}")
            elif digest(out) != wanted:
                failures.append(f"{name}: killed at {moment:.3f} s, it ends with other bits")
            elif list(out.glob(".*")):
                failures.append(f"{name}: killed at {moment:.3f} s, it leaves {[p.name for p in out.glob('.*')]}")
    return hits, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="kills of each run (default: %(default)s)")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="which")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a fork must not inherit a pool of threads
    for module in (
        "torch.utils.tensorboard",
        "safetensors.torch",
        "tqdm",
        "sklearn.datasets",
        "sklearn.decomposition",
        "sklearn.svm",
    ):
        need(module)  # imported once, not in every fork
    bad = []
    for name in arguments.runs:
        begin = time.perf_counter()
        hits, failures = check(name, arguments.moments, arguments.seed)
        places = ", ".join(f"{count} {where}" for where, count in sorted(hits.items()))
        same, seconds = arguments.moments - len(failures), time.perf_counter() - begin
        print(f"{name}: {same} of {arguments.moments} kills end with the same bits ({places}); {seconds:.0f} s")
        bad += failures
    print("\n".join(bad), end="\n" if bad else "")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
