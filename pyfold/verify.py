"""``pyfold verify``: that this machine makes the promised bits, whichever way they are asked for.

The first rows compare all sections of the frozen bits (vectors.json): noise, noised samples, losses, folds, training times,
Brownian paths, every sampler's plan and the end of its run. What every other row computes is one digest: noise, noised samples,
times, a path, the end of runs of four samplers, and folds with their gradients.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import pyfold
from pyfold import _vectors, diffusion

VECTORS = Path(__file__).with_name("vectors.json")
SEEDS, SHAPE, STEPS = (7, -8, 9, 2**40, 11), (3, 16, 24), 6
SAMPLERS = ("euler_ancestral", "dpmpp_sde", "heun", "unipc")


class Row(NamedTuple):
    """A line of the table."""

    what: str
    ways: str
    equal: bool | None
    note: str = ""


def _model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return x * 0.5


def _run(name: str, seeds: Iterable[int], **options: Any) -> torch.Tensor:
    schedule = diffusion.edm() if name == "heun" else diffusion.vp_linear()
    plan = diffusion.SAMPLERS[name](schedule, STEPS)
    return diffusion.sample(_model, plan, SHAPE, list(seeds), **options)


def _runs(seeds: Iterable[int] = SEEDS, **options: Any) -> torch.Tensor:
    return torch.stack([_run(name, seeds, **options) for name in SAMPLERS])


def _noise(seeds: Iterable[int] = SEEDS) -> torch.Tensor:
    return pyfold.randn(list(seeds), (4, 64, 257), stream=32, step=5)


def _folds(x: torch.Tensor) -> list[torch.Tensor]:
    made = []
    for kind in ("abs", "maxmin", "groupsort", "householder", "tri", "box"):
        options: dict[str, dict[str, Any]] = {"householder": {"angle": 0.7}, "groupsort": {"size": 4}, "box": {"length": 0.5}}
        given = options.get(kind, {})
        leaf = x.clone().requires_grad_()
        y = pyfold.fold(leaf, kind, **given)
        made += [y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]]
    return made


def _drawn(device: str) -> Iterator[torch.Tensor]:
    """Noised samples and their targets, training times of every density, and a Brownian path."""
    seeds = torch.tensor(list(SEEDS), device=device)
    x0 = pyfold.randn(seeds, SHAPE, stream=33)
    for target in ("epsilon", "v"):
        yield from pyfold.add_noise(x0, 0.8, 0.6, seeds, target=target)
    for density in diffusion.DENSITIES:
        yield diffusion.TrainingLoss(diffusion.edm(), density=density).times(seeds)
    path = diffusion.BrownianPath(seeds, SHAPE, 0.1, 10.0)
    yield from (path(at) for at in (0.3, 5.05, 9.99))


def digest(device: str = "cpu") -> str:
    """SHA-256 of all of it, made on a device. Sphere and ball are not among it: they run in torch's operations."""
    made = hashlib.sha256()
    x = pyfold.randn([1, 2, 3], (8, 9), device=device)
    noise = pyfold.randn(list(SEEDS), (4, 64, 257), stream=32, step=5, device=device)
    for value in (noise, *_drawn(device), _runs(device=device), *_folds(x)):
        made.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


#: What of the frozen bits is compared, and how closely: float64 rows of the mathematics libraries differ in their last bits.
_SECTIONS = {
    "noise": "noise",
    "noising": "noised samples, targets and losses",
    "folds": "folds and their gradients",
    "times": "training times",
    "brownian": "Brownian paths",
    "plans": "plans of every sampler",
    "deciding": "adaptive steps and thresholds",
}
_ROWS_AGREE = 1e-13


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of a section, with the way to it."""
    if not isinstance(value, (dict, list)):
        yield where, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{where} {key}")


def _agree(found: Any, noted: Any, closely: bool) -> bool:
    if found == noted or closely:
        return bool(found == noted)
    try:
        a, b = float.fromhex(found), float.fromhex(noted)
    except (TypeError, ValueError):
        return False
    return math.isclose(a, b, rel_tol=_ROWS_AGREE, abs_tol=_ROWS_AGREE / 100)


def _compared(section: str) -> Row:
    """A section of the frozen bits, computed here. The rows of plans to 1e-13, the ends of their runs to the bit."""
    noted = json.loads(VECTORS.read_text())[section]
    found = json.loads(json.dumps(_vectors.SECTIONS[section]()))
    here, there = dict(_leaves(found)), dict(_leaves(noted))
    wrong = [f"{section}{at}" for at in {**there, **here} if at not in here or at not in there]
    wrong += [
        f"{section}{at}"
        for at in here.keys() & there.keys()
        if not _agree(here[at], there[at], section != "plans" or " end " in at)
    ]
    ways = _SECTIONS[section] + (f", rows to {_ROWS_AGREE:g}, and steps to the end" if section == "plans" else "")
    return Row("frozen vectors", ways, not wrong, "; ".join(sorted(wrong)[:3]))


def frozen() -> list[Callable[[], Row]]:
    """A check for each section of the frozen bits."""
    return [partial(_compared, section) for section in _SECTIONS]


def _elsewhere(note: str, count: int = 1, **environment: str) -> Row:
    """The digest of other processes."""
    code = "from pyfold import verify; print(verify.digest())"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
        for _ in range(count)
    ]
    found = {process.communicate()[0].strip() for process in started}
    what = "instruction set" if environment else "processes"
    return Row(what, note, found == {digest()})


def _capabilities() -> list[str]:
    from pyfold import config

    return list(config()["cpu"]["supported"])


def batch() -> Row:
    alone = torch.cat([_runs([seed]) for seed in SEEDS], dim=1)
    noise = torch.cat([_noise([seed]) for seed in SEEDS])
    return Row("batch", "samples alone and together", torch.equal(alone, _runs()) and torch.equal(noise, _noise()))


def order() -> Row:
    backwards = _runs(SEEDS[::-1]).flip(1)
    return Row("order", "samples in another order", torch.equal(backwards, _runs()))


def threads() -> Row:
    before, found = torch.get_num_threads(), set()
    counts = sorted({1, 2, 3, 8, before})
    try:
        for count in counts:
            torch.set_num_threads(count)
            found.add(digest())
    finally:
        torch.set_num_threads(before)
    return Row("threads", ", ".join(map(str, counts)), len(found) == 1)


def layout() -> Row:
    start = pyfold.randn(list(SEEDS), SHAPE)
    last = start.to(memory_format=torch.channels_last)
    there, here = _run("dpmpp_sde", SEEDS, x=last), _run("dpmpp_sde", SEEDS, x=start)
    x = pyfold.randn([1, 2, 3], (8, 5, 9))
    folds = zip(_folds(x), _folds(x.transpose(1, 2).contiguous().transpose(1, 2)), strict=True)
    equal = torch.equal(there, here) and all(torch.equal(a, b) for a, b in folds)
    return Row("memory layout", "channels_last, transposed", equal)


def window() -> Row:
    whole = _noise()
    part = pyfold.randn(list(SEEDS), (3, 20, 100), stream=32, step=5, offset=[1, 30, 57], global_shape=[4, 64, 257])
    return Row("window", "a shard's part of a sample", torch.equal(part, whole[:, 1:4, 30:50, 57:157]))


def split() -> Row:
    equal = True
    for name in SAMPLERS:
        schedule = diffusion.edm() if name == "heun" else diffusion.vp_linear()
        plan = diffusion.SAMPLERS[name](schedule, STEPS)
        at, history = plan.step_starts[3], list[torch.Tensor]()
        half = diffusion.sample(_model, plan[:at], SHAPE, list(SEEDS), history=history)
        whole = diffusion.sample(_model, plan[at:], SHAPE, list(SEEDS), x=half, history=history)
        equal = equal and torch.equal(whole, _run(name, SEEDS))
    return Row("split and resumed", "a run in two parts", equal)


def compiled() -> Row:
    def run(x: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        return pyfold.fold(pyfold.add_noise(x, 0.8, 0.6, seeds), "maxmin") + pyfold.randn(seeds, x.shape[1:], stream=33)

    x, seeds = pyfold.randn([1, 2, 3], (8, 9)), torch.tensor([4, 5, 6])
    try:
        torch.compile(torch.neg, fullgraph=True)(x)
    except Exception as error:  # torch compiles nothing here: a machine without a compiler
        return Row("torch.compile", "fullgraph", None, f"not here: {str(error).splitlines()[0][:60]}")
    found = torch.compile(run, fullgraph=True)(x, seeds)
    return Row("torch.compile", "fullgraph", torch.equal(found, run(x, seeds)))


def device() -> Row:
    if not torch.cuda.is_available():
        return Row("device", "CUDA", None, "none here")
    return Row("device", torch.cuda.get_device_name(), digest("cuda") == digest())


def checks() -> list[Callable[[], Row]]:
    """Each makes one row."""
    sets = [lambda name=name: _elsewhere(name, PYFOLD_CPU_CAPABILITY=name) for name in _capabilities()]
    two = lambda: _elsewhere("2 at once", 2)  # noqa: E731
    return [*frozen(), batch, order, threads, *sets, layout, window, split, compiled, two, device]


def table(rows: Iterable[Row]) -> str:
    """In Markdown."""
    words = {True: "the same bits", False: "DIFFERENT BITS", None: "not looked at"}
    lines = ["| | ways | result |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {r.what} | {r.ways} | {words[r.equal]}{f' ({r.note})' if r.note else ''} |" for r in rows)])


def run() -> int:
    """The command; its exit status, 1 where bits differ."""
    rows, every, start = [], checks(), time.monotonic()
    for i, check in enumerate(every):
        if sys.stderr.isatty():
            print(f"\r[{'#' * i}{'.' * (len(every) - i)}] {i} of {len(every)}", end="", file=sys.stderr, flush=True)
        rows.append(check())
    if sys.stderr.isatty():
        print("\r" + " " * (len(every) + 20) + "\r", end="", file=sys.stderr)
    print(table(rows))
    print(
        f"\n{sum(row.equal is True for row in rows)} of {len(rows)} rows have the same bits, {time.monotonic() - start:.0f} s."
    )
    return 1 if any(row.equal is False for row in rows) else 0
