"""Times that mean something on a noisy machine: all forms by turns in one process, medians, and ratios of them.

A disturbance falls on all forms alike, so the ratios stay; the bandwidth and the generator's speed are measured in the same
turns.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from pyfold.bench.memory import peak
from pyfold.bench.rows import Case, Form, Row, Setting
from pyfold.ops import randn

#: Forms that are measured beside the peers to say how near the machine's limits a row is.
_TRIAD, _GENERATOR, _EMPTY = "triad", "generator", "empty"
#: Normals of one call of the generator alone: enough that a call's overhead is little, few enough to stay in the caches. It is
#: called a few times in a row, because the first call after something else also wakes the threads.
_GENERATED, _CALLS = (8, 65536), 4
_NORMALS = _CALLS * _GENERATED[0] * _GENERATED[1]
#: A sample of the clock is at least this long; shorter calls are repeated within it.
_SHORTEST = 2e-5


@dataclass(frozen=True)
class Measured:
    """One row at one setting.

    Attributes:
        row, group, size, dtype: which one.
        seconds: the median of pyfold's time.
        spread: half the interquartile range over the median.
        ratios: how many times longer each peer takes: above 1, pyfold is faster.
        bandwidth: the rate of the bytes that must move over that of ``torch.add(a, b, out=c)`` on arrays of the same size.
        generator: for noise, the share of the time that the generator alone would take.
        peak: the most bytes that each form holds at once.
        floor: the least ratio against eager that the row allows here, if any.
    """

    row: str
    group: str
    size: str
    dtype: str
    seconds: float
    spread: float
    ratios: dict[str, float] = field(default_factory=dict)
    bandwidth: float | None = None
    generator: float | None = None
    peak: dict[str, int] = field(default_factory=dict)
    floor: float | None = None

    @property
    def key(self) -> str:
        return f"{self.row}, {self.size}, {self.dtype}"

    @property
    def below_floor(self) -> bool:
        """Whether eager PyTorch is nearer than the row allows: the gate of ratios."""
        return self.floor is not None and self.ratios["eager"] < self.floor

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, {})}


def interleaved(forms: dict[str, Form], budget: float, device: torch.device, warm: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each form, sorted, measured by turns until the budget is spent.

    Each turn has an order of its own, so that no form always finds its operands in the caches because of the one before. At
    least seven turns, or three where forms take so long that seven would last for many budgets. Before them, turns that do not
    count for ``warm`` seconds: a virtual machine may get its memory from its host as it is first touched.
    """
    cuda = device.type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if cuda else lambda: None
    calls = {}
    for name, form in forms.items():
        form()  # compiles, allocates, fills caches
        wait()
        begin = time.perf_counter()
        form()
        wait()
        calls[name] = max(1, min(1000, round(_SHORTEST / max(time.perf_counter() - begin, 1e-8))))
    times: dict[str, list[float]] = {name: [] for name in forms}
    began = time.perf_counter()
    while time.perf_counter() - began < warm:
        for form in forms.values():
            form()
        wait()
    order, shuffle = list(forms.items()), random.Random(0).shuffle
    turns, spent, began = 0, 0.0, time.perf_counter()
    while turns < 3 or (turns < 7 and spent < 8 * budget) or (turns < 5000 and spent < budget):
        turns += 1
        shuffle(order)
        for name, form in order:
            count = range(calls[name])
            wait()
            begin = time.perf_counter()
            for _ in count:
                form()
            wait()
            times[name].append((time.perf_counter() - begin) / len(count))
        spent = time.perf_counter() - began
    return {name: sorted(values) for name, values in times.items()}


def _limits(case: Case, setting: Setting) -> dict[str, Form]:
    """The forms that say how fast the machine itself is, here and now."""
    forms: dict[str, Form] = {}
    if case.moved is not None:
        # Two reads and a write of as many bytes as the row moves.
        a, b, c = (torch.ones(max(case.moved // 12, 1024), device=setting.device) for _ in range(3))
        forms[_TRIAD] = lambda: torch.add(a, b, alpha=0.5, out=c)
    if case.normals:
        seeds, out = torch.arange(_GENERATED[0], device=setting.device), torch.empty(_GENERATED, device=setting.device)
        forms[_GENERATOR] = lambda: [randn(seeds, _GENERATED[1:], out=out) for _ in range(_CALLS)]
    if case.overhead:
        forms[_EMPTY] = lambda: None
    return forms


def measure(row: Row, setting: Setting, budget: float = 0.5, case: Case | None = None) -> Measured:
    """Runs one row at one setting, for about ``budget`` seconds beyond what its forms need to get warm.

    Args:
        row, setting: which one.
        budget: seconds.
        case: what ``row.build(setting)`` gave, if it is built already.

    Returns:
        The measured row.
    """
    case = case or row.build(setting)
    forms = {name: form for name, form in case.forms.items() if form is not None}
    with torch.enable_grad() if case.grad else torch.no_grad():
        warm = budget if setting.level == "large" else 0.0
        times = interleaved({**forms, **_limits(case, setting)}, budget, setting.device, warm)
        peaks = {name: peak(form, setting.device) for name, form in forms.items()} if case.memory else {}
    medians = {name: statistics.median(values) for name, values in times.items()}
    if case.overhead:
        empty = medians.pop(_EMPTY)
        medians = {name: max(value - empty, 1e-9) for name, value in medians.items()}
    ours, own = medians["pyfold"], times["pyfold"]
    gate = row.floor is not None and setting.level == "middle" and setting.dtype == torch.float32
    return Measured(
        row=row.name,
        group=row.group,
        size="x".join(map(str, setting.shape)),
        dtype=str(setting.dtype).removeprefix("torch."),
        seconds=ours,
        spread=(own[3 * len(own) // 4] - own[len(own) // 4]) / 2 / statistics.median(own),
        ratios={name: medians[name] / ours for name in forms if name != "pyfold"},
        bandwidth=medians[_TRIAD] / (12 * max(case.moved // 12, 1024)) * case.moved / ours if case.moved else None,
        generator=medians[_GENERATOR] / _NORMALS * case.normals / ours if case.normals else None,
        peak=peaks,
        floor=row.floor if gate and "eager" in medians else None,
    )


def machine_limits(device: torch.device) -> dict[str, float]:
    """Bytes a second of ``torch.add(a, b, out=c)`` beyond the caches, and normals a second of the generator alone."""
    count = 1 << 24
    case = Case({}, moved=12 * count, normals=1)
    setting = Setting((1,), torch.float32, device, None, "large")  # type: ignore[arg-type]
    times = interleaved(_limits(case, setting), 0.5, device)
    triad, generator = (statistics.median(times[name]) for name in (_TRIAD, _GENERATOR))
    return {"triad bytes per second": 12 * count / triad, "normals per second": _NORMALS / generator}
