"""A plugin of pytest that asks tests about mutants: which test reaches which, and which are noticed.

The environment says what to do (tools/mutants.py sets it): PYFOLD_MUTANTS_JOB is a JSON file with

    mode    "record": run the tests, and note for each which mutants it reached, its seconds, and whether it failed
            "judge": collect once, then fork for every mutant and run its tests until one fails
            "single": run the tests of one mutant, which is on before anything is imported
    tests   what "record" noted, in other modes
    out     the file that is appended to
    mutants [{"number", "reach"}]: reach is the number that its tests reached
    limit   seconds of tests for each mutant
    each    how many cases of each parametrized test run; 0: all
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mutants_python
import pytest
from _pytest.runner import runtestprotocol

_FIRST = 4  # tests that noticed most so far, and are asked before all others
_HANGS, _HANGS_LEAST = 10, 20.0  # times its own seconds, and at least so many, until a test is taken to hang
_MEMORY = 8 << 30


@dataclass
class Noted:
    """The tests that passed without any mutant, by what they reach."""

    seconds: dict[str, float] = field(default_factory=dict)
    reaching: dict[int, list[str]] = field(default_factory=dict)
    noticed: Counter[str] = field(default_factory=Counter)

    @classmethod
    def load(cls, path: Path) -> Noted:
        result = cls()
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if not entry["failed"]:
                result.seconds[entry["test"]] = entry["seconds"]
                for number in entry["reached"]:
                    result.reaching.setdefault(number, []).append(entry["test"])
        return result

    def order(self, reach: int) -> list[str]:
        """Those that reach a mutant: the cheapest of each function, then the next of each, and so on."""
        functions: dict[str, list[str]] = {}
        for test in sorted(self.reaching.get(reach, []), key=lambda t: self.seconds[t]):
            functions.setdefault(test.split("[")[0], []).append(test)
        rounds = [(i, self.seconds[test], test) for tests in functions.values() for i, test in enumerate(tests)]
        order = [test for *_, test in sorted(rounds)]
        reaching = set(order)
        first = [test for test, _ in self.noticed.most_common() if test in reaching][:_FIRST]
        return first + [test for test in order if test not in first]


def _thinned(items: list[pytest.Item], each: int) -> list[pytest.Item]:
    """So many cases of each test, evenly over those there are."""
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        functions.setdefault(item.nodeid.split("[")[0], []).append(item)
    if not each:
        return items
    return [
        item
        for cases in functions.values()
        for i, item in enumerate(cases)
        if i * each // len(cases) != (i - 1) * each // len(cases)
    ]  # fmt: skip


class Recorder:
    def __init__(self, job: dict[str, Any]):
        self.out, self.each = Path(job["out"]), job["each"]
        self.failed: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        noted = {json.loads(line)["test"] for line in self.out.read_text().splitlines()}
        items[:] = [item for item in _thinned(items, self.each) if item.nodeid not in noted]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        control = mutants_python.control
        assert control is not None
        control.record(True)
        begin = time.monotonic()
        result = yield
        entry = {"test": item.nodeid, "seconds": round(time.monotonic() - begin, 4), "failed": item.nodeid in self.failed}
        with self.out.open("a") as file:
            file.write(json.dumps({**entry, "reached": control.taken()}) + "\n")
        control.record(False)
        return result


def _ask(items: list[pytest.Item], noted: Noted, limit: float, failures: Path) -> int:
    """Runs tests until one fails: 1 if one did, 2 if time was over before the last, else 0."""
    begin = time.monotonic()
    for item, following in zip(items, [*items[1:], None], strict=True):
        if time.monotonic() - begin > limit:
            return 2
        failures.write_text(item.nodeid)
        # The default action ends the process, wherever it hangs.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, max(_HANGS * noted.seconds[item.nodeid], _HANGS_LEAST))
        reports = runtestprotocol(item, nextitem=following, log=False)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if any(report.failed for report in reports):
            return 1
    return 0


def _bounded() -> None:
    with Path("/proc/self/statm").open() as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Judge:
    def __init__(self, job: dict[str, Any]):
        self.job, self.out, self.noted = job, Path(job["out"]), Noted.load(Path(job["tests"]))
        self.failures = Path(f"{job['out']}.{os.getpid()}.test")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        by_name = {item.nodeid: item for item in session.items}
        if "torch" in sys.modules:  # what every test's end asks for, and takes seconds to import, once for all forks
            importlib.import_module("torch._dynamo")
        for mutant in self.job["mutants"]:
            items = [by_name[test] for test in self.noted.order(mutant["reach"]) if test in by_name]
            begin = time.monotonic()
            code = self._forked(mutant["number"], items)
            outcome = {0: "survived", 2: "limit"}.get(code, "killed")
            test = self.failures.read_text() if outcome == "killed" else ""
            if test:
                self.noted.noticed[test] += 1
            entry = {"number": mutant["number"], "outcome": outcome, "by": test, "code": code, "tests": len(items)}
            with self.out.open("a") as file:
                file.write(json.dumps({**entry, "seconds": round(time.monotonic() - begin, 2)}) + "\n")
        return True

    def _forked(self, number: int, items: list[pytest.Item]) -> int:
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                silent = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(silent, stream)
                _bounded()
                assert mutants_python.control is not None
                mutants_python.control.switch(number)
                os._exit(_ask(items, self.noted, self.job["limit"], self.failures))
            finally:  # also where the mutant ends the process by an exception
                os._exit(70)
        _, status = os.waitpid(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what its tests started and left
        return os.waitstatus_to_exitcode(status)


class Single:
    def __init__(self, job: dict[str, Any]):
        self.job, self.noted = job, Noted.load(Path(job["tests"]))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        by_name = {item.nodeid: item for item in session.items}
        wanted = self.noted.order(self.job["mutants"][0]["reach"])
        items = [by_name[test] for test in wanted if test in by_name]
        _bounded()
        # Tests that are no longer there were made from what the mutant changed.
        code = 1 if len(items) < len(wanted) else _ask(items, self.noted, self.job["limit"], Path(self.job["failures"]))
        sys.stdout.flush()
        os._exit(code)


_MODES = {"record": Recorder, "judge": Judge, "single": Single}


def pytest_configure(config: pytest.Config) -> None:
    job = json.loads(Path(os.environ["PYFOLD_MUTANTS_JOB"]).read_text())
    config.pluginmanager.register(_MODES[job["mode"]](job), "mutants")
