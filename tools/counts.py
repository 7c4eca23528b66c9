"""Counts that say whether each fact still has one room: lines by part, complexity, and where things stand that may stand once.

python tools/counts.py            # a table of all counts, with the limits that they should come under
python tools/counts.py --check    # 1, and the counts in question, where one passes what has been reached (make lint)
python tools/counts.py --base DIR # beside another checkout
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import lizard  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
_OF_SAMPLERS = ("samplers", "formulas.py", "plan.py", "loop.py", "predictions.py")


def sources(root: Path, *places: str) -> list[Path]:
    """Files of C++, CUDA and Python under these folders or of these names."""
    found: list[Path] = []
    for place in places:
        path = root / place
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [f for f in files if f.suffix in (".h", ".cpp", ".cu", ".cuh", ".py") and f.is_file()]
    return found


def lines(*places: str) -> Callable[[Path], int]:
    return lambda root: sum(len(f.read_text().splitlines()) for f in sources(root, *places))


def functions_above(limit: int) -> Callable[[Path], int]:
    """How many functions have a larger cyclomatic complexity."""

    def count(root: Path) -> int:
        files = [str(f) for f in sources(root, "pyfold", "csrc", "tools", "build_backend", "setup.py")]
        return sum(f.cyclomatic_complexity > limit for one in lizard.analyze(files) for f in one.function_list)

    return count


def _imports(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def importers_of_the_module(root: Path) -> int:
    """Files of pyfold outside of ops, and of _library.py, that import pyfold._C."""
    found = 0
    for file in sources(root, "pyfold"):
        inside = file.relative_to(root / "pyfold")
        if inside.parts[0] in ("ops", "_library.py") or str(inside) == "folds/program.py":
            continue
        found += any(name == "pyfold._C" or name.startswith("pyfold._C.") for name in _imports(ast.parse(file.read_text())))
    return found


def matches(pattern: str, *places: str, outside: str = "") -> Callable[[Path], int]:
    def count(root: Path) -> int:
        files = [f for f in sources(root, *places) if not outside or outside not in f.relative_to(root).as_posix()]
        return sum(len(re.findall(pattern, f.read_text())) for f in files)

    return count


def asks_for_a_kind(root: Path) -> int:
    """Comparisons with the name of a fold, in pyfold outside of the folds' own files."""
    names = {file.stem for file in (root / "pyfold" / "folds").glob("*.py")} - {"__init__", "kind", "program"}
    found = 0
    for file in sources(root, "pyfold"):
        if file.parent.name != "folds":
            compared = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Compare)]
            found += sum(any(isinstance(n, ast.Constant) and n.value in names for n in ast.walk(one)) for one in compared)
    return found


def operand_lists(root: Path) -> int:
    """Places that name the outputs of affine_step one after another: within 400 characters, in this order."""
    pattern = re.compile(r"history_out(?:(?!history_out).){1,400}?next_input(?:(?!next_input).){1,400}?x0_out", re.DOTALL)
    return sum(
        len(pattern.findall(f.read_text())) for f in sources(root, "pyfold/ops", "csrc/ops", "csrc/torch", "csrc/python")
    )


@dataclass(frozen=True)
class Count:
    """A count, the limit that it should come under, and what it may be until then; None is not held."""

    what: str
    measure: Callable[[Path], int]
    limit: int
    held: int | None = 0


COUNTS = (
    Count("lines of csrc/python, csrc/torch and csrc/ops", lines("csrc/python", "csrc/torch", "csrc/ops"), 1500, 2083),
    Count("lines of csrc/python", lines("csrc/python"), 600, 809),
    Count(
        "lines of samplers, formulas, plan, loop, predictions and adapters",
        lines(*(f"pyfold/diffusion/{name}" for name in _OF_SAMPLERS), "pyfold/adapters"),
        4600,
        None,
    ),
    Count("lines of samplers", lines("pyfold/diffusion/samplers"), 1200, None),
    Count("functions of a complexity above 25", functions_above(25), 0),
    Count("files that import _C outside of ops and _library", importers_of_the_module, 0),
    Count("places of pyfold that ask which kind of fold they have", asks_for_a_kind, 0),
    Count("places of csrc that do", matches(r"[!=]= FoldKind::k", "csrc", outside="csrc/folds/"), 0),
    Count("places that list affine_step's outputs", operand_lists, 3),
    Count("words about passes in csrc/diffusion", matches("kPassesCount", "csrc/diffusion"), 0),
)


def check() -> int:
    passed = [
        (count, now)
        for count in COUNTS
        if count.held is not None and (now := count.measure(ROOT)) > max(count.limit, count.held)
    ]
    for count, now in passed:
        print(f"{count.what}: {now}, at most {max(count.limit, count.held or 0)}")
    return 1 if passed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="another checkout, for a column beside")
    parser.add_argument("--check", action="store_true", help="whether what has been reached still holds")
    given = parser.parse_args()
    if given.check:
        return check()
    base = given.base
    print(f"| what | {'before | ' if base else ''}now | limit |\n|---|{'---|' if base else ''}---|---|")
    for count in COUNTS:
        now = count.measure(ROOT)
        before = f"{count.measure(base.resolve())} | " if base else ""
        print(f"| {count.what} | {before}{now}{'' if now <= count.limit else ' (!)'} | {count.limit} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
