"""Changes csrc and pyfold in many small ways, one at a time, and asks whether a test notices each (mutation testing).

    python tools/mutants.py --count 600 [--seed S]    a sample, half C++ and half Python (make mutants N=600)
    python tools/mutants.py --only 17 230             these of the last sample anew
    python tools/mutants.py --report                  what is there so far

All changes of a sample stand in one copy of the repository under build/mutants, each behind a switch (mutants_cpp.py,
mutants_python.py). One run of the tests says which test reaches which change; then each change is switched on and the tests
that reach it run until one fails (mutants_run.py). A run that was stopped goes on where it was. What no test can notice
stands in mutants_equivalent.txt, one by one with a reason; what a sample left out is counted.

Needs cmake, ninja, pytest, tree-sitter and tree-sitter-cpp."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutants_cpp
import mutants_python

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "mutants"
COPY = BUILD / "copy"
ORIGINAL = BUILD / "original"  # the sources as they were, whatever becomes of them in the meantime
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.txt")
_FOLDERS = ["csrc", "cmake", "build_backend", "pyfold", "tests", "tools", "docs", "examples", "comfyui", "benchmarks"]
_COPIED = [
    "CMakeLists.txt",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Makefile",
    "pyproject.toml",
    "LICENSE",
    "setup.py",
]
#: Tests of something else than csrc and pyfold as they run: packages, counts, other programs.
IGNORED = ("test_build.py", "test_gates.py", "test_release.py", "test_bench.py", "test_examples.py", "test_mutants.py", "gpu")
_NUMBERS = mutants_python.CONTROL_BYTES - mutants_python.HEADER_BYTES


@dataclass(frozen=True)
class Mutant:
    """One change of the sample; its number is that of its switch."""

    number: int
    file: str
    line: int
    kind: str
    text: str  #: of its line
    before: str
    after: str
    static: bool
    reach: int  #: the number that the tests which reach it mark

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What it is called where lines move."""
        return self.file, self.text, self.before, self.after


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The interval of a proportion (Wilson 1927, eq. 4 solved): by default of 95 %."""
    if count == 0:
        return 0.0, 1.0
    share, spread = successes / count, z * z / count
    centre, half = share + spread / 2, z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (centre - half) / (1 + spread), (centre + half) / (1 + spread)


def equivalents() -> dict[tuple[str, str, str, str], str]:
    """Key -> reason, of blocks of five lines: file, text of the line, before, after, reason."""
    form = r"^== (\S+)\nline: ([^\n]*)\nbefore: ([^\n]*)\nafter:(?: ([^\n]*))?\nreason: ([^\n]+)$"
    return {(f, line, b, a): reason for f, line, b, a, reason in re.findall(form, EQUIVALENT.read_text(), re.MULTILINE)}


def _copy() -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_lib", "*.pyc")
    COPY.mkdir(parents=True)
    for name in _FOLDERS:
        shutil.copytree(ROOT / name, COPY / name, ignore=ignored)
    for folder in ("csrc", "pyfold"):
        shutil.copytree(ROOT / folder, ORIGINAL / folder, ignore=ignored)
    for name in _COPIED:
        shutil.copy2(ROOT / name, COPY / name)


def _text_of(file: str, line: int) -> str:
    return " ".join((ORIGINAL / file).read_text().splitlines()[line - 1].split())


def sample(count: int, seed: int) -> tuple[list[Mutant], dict[str, int]]:
    """Writes and builds the copy with a sample in it: the sample, and what was left out."""
    shutil.rmtree(BUILD, ignore_errors=True)
    _copy()
    random_ = random.Random(seed)
    half = count // 2
    of_cpp = mutants_cpp.changes(ORIGINAL)
    random_.shuffle(of_cpp)
    # Some will not compile: more than are wanted stand in the copy.
    chosen = dict(enumerate(of_cpp[: half + half // 2 + 10]))
    options = [f"-DPYFOLD_OUTPUT={COPY / 'pyfold'}", "-DPYFOLD_CUDA=off", f"-DPython_EXECUTABLE={sys.executable}"]
    options += ["-DCMAKE_BUILD_TYPE=Mutants", "-DCMAKE_CXX_FLAGS_MUTANTS=-O1 -w"]
    kept, left_out = mutants_cpp.build(COPY, options, ORIGINAL, chosen)
    result = [
        Mutant(k, c.file, c.line, c.kind, _text_of(c.file, c.line), c.before, c.after, False, k)
        for k, c in list(kept.items())[:half]
    ]  # fmt: skip
    found = mutants_python.changes(ORIGINAL)
    first, places = len(chosen), Counter[str]()
    order = []
    for change in found:
        order.append((change, places[change.file]))
        places[change.file] += 1
    random_.shuffle(order)
    marks = {file: _NUMBERS - 1 - i for i, file in enumerate(places)}
    plan: dict[str, tuple[dict[int, int], int]] = {file: ({}, mark) for file, mark in marks.items()}
    for number, (c, place) in enumerate(order[: count - half], first):
        plan[c.file][0][place] = number
        reach = marks[c.file] if c.static else number
        result.append(Mutant(number, c.file, c.line, c.kind, _text_of(c.file, c.line), c.before, c.after, c.static, reach))
    write_plan(BUILD, plan)
    (BUILD / "sample.json").write_text(json.dumps([dataclasses.asdict(m) for m in result], indent=1))
    (BUILD / "left_out.json").write_text(json.dumps(left_out))
    return result, left_out


def write_plan(folder: Path, plan: dict[str, tuple[dict[int, int], int]]) -> None:
    """What mutants_python.install reads, and the module by which every Python process there does."""
    (folder / "plan.json").write_text(json.dumps(plan))
    hook = f"import mutants_python\nfrom pathlib import Path\nmutants_python.install(Path({str(folder / 'plan.json')!r}))\n"
    (folder / "hook").mkdir()
    (folder / "hook" / "sitecustomize.py").write_text(hook)


def _pytest(job: dict[str, Any], arguments: list[str], active: int = -1, limit: float | None = None) -> int | None:
    """Runs pytest in the copy; its exit code, or None where time was over."""
    name = f"{job['mode']}-{os.getpid()}"
    control, path = BUILD / f"control-{name}", BUILD / f"job-{name}.json"
    mutants_python.Control.make(control).switch(active)
    path.write_text(json.dumps(job))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (BUILD / "hook", COPY, COPY / "tools"))),
        "PYFOLD_MUTANTS": str(control),
        "PYFOLD_MUTANTS_JOB": str(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",  # a process with threads cannot be forked
    }
    plugins = ["-p", "mutants_run", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", "-s", "-m", "not slow", *arguments]
    with (BUILD / f"{job['mode']}.log").open("a") as log:
        try:
            done = subprocess.run(command, cwd=COPY, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=limit)
        except subprocess.TimeoutExpired:
            return None
    return done.returncode


def _files() -> list[str]:
    return [f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_*.py")) if path.name not in IGNORED]


def record(files: list[str], each: int = 0) -> None:
    """Which tests reach which mutants; those that are noted already are passed over."""
    out = BUILD / "tests.jsonl"
    out.touch()
    code = _pytest({"mode": "record", "out": str(out), "each": each}, files)
    if code not in (0, 1, 5):
        raise SystemExit(f"the tests ended with {code}: {BUILD / 'record.log'}")
    print(f"{len(out.read_text().splitlines())} tests have run", flush=True)


def judge(mutants: list[Mutant], limit: float) -> None:
    """Asks the tests about each mutant that nothing is noted of."""
    files = sorted({json.loads(line)["test"].split("::")[0] for line in (BUILD / "tests.jsonl").read_text().splitlines()})
    out = BUILD / "results.jsonl"
    judged = set(results())
    left = [m for m in mutants if m.number not in judged and m.key not in equivalents()]
    job = {"out": str(out), "tests": str(BUILD / "tests.jsonl"), "limit": limit}
    asked = [{"number": m.number, "reach": m.reach} for m in left if not m.static]
    if asked:
        code = _pytest({**job, "mode": "judge", "mutants": asked}, files)
        print(f"judged {len(asked)} mutants in forks ({code})", flush=True)
    for mutant in [m for m in left if m.static]:
        one = {"number": mutant.number, "reach": mutant.reach}
        failures = BUILD / "single.test"
        failures.write_text("(import)")
        reaching = sorted({test.split("::")[0] for test in _reaching(mutant.reach)})
        if reaching:
            single = {**job, "mode": "single", "mutants": [one], "failures": str(failures)}
            code = _pytest(single, reaching, mutant.number, limit + 120)
            outcome = {0: "survived", 2: "limit"}.get(code if code is not None else -1, "killed")
        else:
            code, outcome = 0, "survived"
        test = failures.read_text() if outcome == "killed" else ""
        entry = {"number": mutant.number, "outcome": outcome, "by": test, "code": code, "tests": len(reaching)}
        with out.open("a") as text:
            text.write(json.dumps(entry) + "\n")


#: Files of tests that are collected for what is on before the import: collecting takes longer than most tests.
_FILES_EACH = 6


def _reaching(reach: int) -> list[str]:
    """The tests that reach it, those of the files with the most of them first."""
    tests = [json.loads(line) for line in (BUILD / "tests.jsonl").read_text().splitlines()]
    names = [t["test"] for t in tests if reach in t["reached"] and not t["failed"]]
    of_file = Counter(name.split("::")[0] for name in names)
    best = [file for file, _ in of_file.most_common(_FILES_EACH)]
    return [name for name in names if name.split("::")[0] in best]


def results() -> dict[int, dict[str, Any]]:
    path = BUILD / "results.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {entry["number"]: entry for entry in entries}


def report(mutants: list[Mutant]) -> str:
    """How many were noticed, with an interval, and each that was not."""
    left_out: dict[str, int] = json.loads((BUILD / "left_out.json").read_text())
    found, reasons, lines = results(), equivalents(), []
    for language in ("C++", "Python", "both"):
        of_language = [m for m in mutants if language == "both" or (m.file.startswith("csrc") == (language == "C++"))]
        equivalent = [m for m in of_language if m.key in reasons]
        asked = [m for m in of_language if m.key not in reasons and m.number in found]
        killed = sum(found[m.number]["outcome"] == "killed" for m in asked)
        low, high = wilson(killed, len(asked))
        share = killed / len(asked) if asked else 0.0
        lines.append(
            f"{language}: {killed} of {len(asked)} noticed, {share:.1%} ({low:.1%} to {high:.1%}); "
            f"{len(equivalent)} equivalent, {len(of_language) - len(asked) - len(equivalent)} not asked"
        )
    lines.append(f"left out of C++: {', '.join(f'{count} {reason}' for reason, count in left_out.items())}")
    lines.append("evaluated by the compiler or the preprocessor: passed over")
    for mutant in mutants:
        entry = found.get(mutant.number)
        if entry is None or entry["outcome"] == "killed" or mutant.key in reasons:
            continue
        how = "no test reaches it" if not entry["tests"] else f"{entry['outcome']}, {entry['tests']} tests"
        lines.append(f"\n{mutant.number}: {mutant.file}:{mutant.line} ({mutant.kind}; {how})")
        lines += [f"line: {mutant.text}", f"before: {mutant.before}", f"after: {mutant.after}"]
    return "\n".join(lines)


def _last() -> list[Mutant]:
    return [Mutant(**entry) for entry in json.loads((BUILD / "sample.json").read_text())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="size of the sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of tests for a mutant")
    parser.add_argument("--files", nargs="*", default=None, help="files of tests; by default all that apply")
    parser.add_argument("--each", type=int, default=0, help="cases of each parametrized test that are asked; by default all")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the last sample to ask about anew")
    parser.add_argument("--report", action="store_true", help="print what is there so far")
    options = parser.parse_args()
    same = {"count": options.count, "seed": options.seed}
    made = BUILD / "made.json"
    if options.report or options.only:
        mutants = _last()
    elif made.exists() and json.loads(made.read_text()) == same:
        mutants = _last()
        print("going on with the sample in build/mutants; delete that folder for one of the sources as they are", flush=True)
    else:
        mutants, _ = sample(options.count, options.seed)
        made.write_text(json.dumps(same))
    if options.only:
        path = BUILD / "results.jsonl"
        path.write_text("".join(json.dumps(e) + "\n" for n, e in results().items() if n not in options.only))
        mutants = [m for m in mutants if m.number in options.only]
    if not options.report:
        record(options.files or _files(), options.each)
        judge(mutants, options.limit)
    print(report(mutants))
    return 0


if __name__ == "__main__":
    sys.exit(main())
