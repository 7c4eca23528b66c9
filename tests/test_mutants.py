"""tools/mutants.py: changes that can be switched on, and tests that notice them."""

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import mutants
import mutants_cpp
import mutants_python
import pytest

TOOLS = Path(mutants.__file__).parent
CPP = """#pragma once
#include "core/macros.h"

namespace pyfold {
constexpr int kLimit = 3 + 1;

template <class A>
PYFOLD_HD bool below(A a, A b) {
  return a < b;
}

PYFOLD_HD int halved(int x) {
  int result = x;
  if (x > kLimit) {
    result = x / 2;
  }
  return result;
}
}  // namespace pyfold
"""
MAIN = """#include "core/small.h"
#include <stdio.h>
int main() { printf("%d %d %d", pyfold::below(1, 2), pyfold::below(2, 2), pyfold::halved(10)); }
"""
PYTHON = '''"""A module."""
from __future__ import annotations

LIMIT = 4


def below(a: int, b: int = 7) -> bool:
    """Whether it is."""
    if a < 0:
        raise ValueError("a must be from 0 " + str(1))
    return a < b


def doubled(x):
    return [2 * value for value in x if value != LIMIT]
'''
TESTS = """import pytest
from pyfold.ops.small import below, doubled


def test_below():
    assert below(1, 2) and not below(2, 2)


def test_negative():
    with pytest.raises(ValueError):
        below(-1, 2)


def test_doubled():
    assert doubled([1, 4]) == [2]
"""


def described(changes):
    return [(c.line, c.kind, c.before, c.after) for c in changes]


@pytest.fixture
def tree(tmp_path):
    for folder in ("csrc/core", "csrc/diffusion", "csrc/folds", "csrc/cpu", "pyfold/ops", "tests"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "csrc/core/small.h").write_text(CPP)
    (tmp_path / "pyfold/ops/small.py").write_text(PYTHON)
    (tmp_path / "pyfold/__init__.py").touch()
    (tmp_path / "pyfold/ops/__init__.py").touch()
    (tmp_path / "tests/test_small.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow: is")
    return tmp_path


def test_changes_of_cpp_are_switched_on(tree):
    pytest.importorskip("tree_sitter_cpp")
    found = mutants_cpp.changes(tree)
    assert described(found) == [
        (9, "operator", "a < b", "a <= b"),
        (14, "condition", "x > kLimit", "!(x > kLimit)"),
        (14, "operator", "x > kLimit", "x >= kLimit"),
        (15, "statement", "result = x / 2;", ""),
        (15, "operator", "x / 2", "x * 2"),
        (15, "constant", "2", "2 + 1"),
    ]
    copy = tree / "copy"
    shutil.copytree(tree / "csrc", copy / "csrc")
    shutil.copy(mutants.ROOT / "csrc/core/macros.h", copy / "csrc/core")
    mutants_cpp.write(tree, copy, dict(enumerate(found)))
    (copy / "main.cpp").write_text(MAIN)
    subprocess.check_call(
        [os.environ.get("CXX", "c++"), "-std=c++20", "-I", copy / "csrc", copy / "main.cpp", "-o", copy / "main"]
    )
    control = mutants_python.Control.make(tree / "control")
    environment = {**os.environ, "PYFOLD_MUTANTS": str(tree / "control")}

    def printed(number, **environment):
        control.switch(number)
        return subprocess.run([copy / "main"], env=environment, capture_output=True, text=True, check=True).stdout

    assert printed(0) == "1 0 5"  # without the variable nothing is on
    assert [printed(k, **environment) for k in range(-1, 6)] == [
        "1 0 5",
        "1 1 5",
        "1 0 10",
        "1 0 5",
        "1 0 10",
        "1 0 20",
        "1 0 3",
    ]
    control.record(True)
    printed(-1, **environment)
    assert control.taken() == [0, 1, 2, 3, 4, 5] and control.taken() == []
    control.record(False)


def test_changes_of_python():
    found = mutants_python.changes_of(ast.parse(PYTHON), "small.py")
    assert described(found) == [
        (4, "constant", "4", "5"),
        (7, "constant", "7", "8"),
        (9, "condition", "a < 0", "not a < 0"),
        (9, "operator", "a < 0", "a <= 0"),
        (9, "constant", "0", "1"),
        (10, "statement", "raise ValueError('a must be from 0 ' + str(1))", ""),
        (11, "operator", "a < b", "a <= b"),
        (15, "operator", "2 * value", "2 / value"),
        (15, "constant", "2", "3"),
        (15, "operator", "value != LIMIT", "value == LIMIT"),
    ]
    assert [c.static for c in found] == [True, True] + [False] * 8


def test_which_tests_notice_what(tree, monkeypatch):
    """Recorded, judged in forks and, where a change is evaluated by the import, in a process of its own."""
    monkeypatch.setattr(mutants, "BUILD", tree)
    monkeypatch.setattr(mutants, "COPY", tree)
    (tree / "tools").symlink_to(TOOLS)
    found, mark = mutants_python.changes_of(ast.parse(PYTHON), "pyfold/ops/small.py"), 99
    mutants.write_plan(tree, {"pyfold/ops/small.py": ({i: i for i in range(len(found))}, mark)})
    sample = [
        mutants.Mutant(i, c.file, c.line, c.kind, f"line {c.line}", c.before, c.after, c.static, mark if c.static else i)
        for i, c in enumerate(found)
    ]  # fmt: skip
    (tree / "left_out.json").write_text("{}")
    mutants.record(["tests/test_small.py"])
    recorded = {json.loads(line)["test"].split("::")[1]: json.loads(line) for line in (tree / "tests.jsonl").open()}
    assert recorded["test_negative"]["reached"] == [2, 3, 4, 5, mark]
    mutants.judge(sample, 30)
    outcomes = {number: entry["outcome"] for number, entry in mutants.results().items()}
    # The default is taken by nobody (1), and 2 / 1 is 2 * 1 (7).
    assert {n for n, outcome in outcomes.items() if outcome == "killed"} == {0, 2, 5, 6, 8, 9}
    assert {n for n, outcome in outcomes.items() if outcome == "survived"} == {1, 3, 4, 7}
    # Which of two tests is asked first depends on how long they took.
    by = {number: entry["by"].split("::")[-1] for number, entry in mutants.results().items()}
    assert by[2] in ("test_below", "test_negative")
    assert [by[n] for n in (0, 5, 6, 8, 9)] == ["test_doubled", "test_negative", "test_below", "test_doubled", "test_doubled"]
    report = mutants.report(sample)
    assert "Python: 6 of 10 noticed, 60.0% (31.3% to 83.2%); 0 equivalent, 0 not asked" in report
    assert "small.py:15 (operator; survived, 1 tests)\nline: line 15\nbefore: 2 * value\nafter: 2 / value" in report
    listed = "== pyfold/ops/small.py\nline: line 15\nbefore: 2 * value\nafter: 2 / value\nreason: 2 / 1 is 2 * 1\n"
    (tree / "listed.txt").write_text(listed)
    monkeypatch.setattr(mutants, "EQUIVALENT", tree / "listed.txt")
    assert "Python: 6 of 9 noticed" in mutants.report(sample)


def test_the_interval_of_a_proportion():
    """Against the quadratic equation that it solves: |share - p| = z sqrt(p (1 - p) / n)."""
    low, high = mutants.wilson(85, 100)
    for p in (low, high):
        assert abs(0.85 - p) == pytest.approx(1.96 * (p * (1 - p) / 100) ** 0.5, rel=1e-12)
    assert low < 0.85 < high
    assert mutants.wilson(0, 0) == (0.0, 1.0)


def test_what_is_listed_as_equivalent_stands_in_the_sources():
    for file, line, before, _ in mutants.equivalents():
        lines = {" ".join(text.split()) for text in (mutants.ROOT / file).read_text().splitlines()}
        assert line in lines, f"{file} no longer has the line {line!r}"
        assert before
