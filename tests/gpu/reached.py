"""Which lines of the CUDA kernels were executed, of each kernel that has code of them; and why the others were not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@dataclass(frozen=True)
class Excuse:
    file: str
    text: str  #: of the line
    kernels: str  #: a pattern
    why: str


_PACKED_ROWS = "a block has lines of rows only where all of them are packs"
_COPY = "a copy of the line that the compiler made; no arguments that lead there are known"
_STEPS = "where lines have an inner dimension units are a step apart"
_ONE_VALUE = "a line reflects two values; here units have one"
#: What no test reaches.
EXCUSES = (
    Excuse("fold_units.cuh", "body(at, i)", "row_part_kernel", _PACKED_ROWS),
    Excuse("fold_units.cuh", "out[k][i] = i < count", "row_part_kernel", _PACKED_ROWS),
    Excuse("dtype.h", "float widen(BFloat16", "row_part_kernel", _PACKED_ROWS),
    Excuse("fold_units.cuh", "side_by_side()", "line_part_kernel", _STEPS),
    Excuse("fold_units.cuh", "words[w]", "line_part_kernel", _STEPS),
    Excuse("fold_units.cuh", "memcpy(pack.value", "line_part_kernel", _STEPS),
    Excuse("dtype.h", "float widen(BFloat16", "line_part_kernel", _STEPS),
    Excuse("householder.h", "", "value_kernel", _ONE_VALUE),
    Excuse("fold_units.cuh", "eight(grid, group", "forward_kernel<.*, long", _COPY),
    Excuse("folds.cu", "if (line >= grid.lines) continue;", "row_part_kernel", _COPY),
    Excuse("sequence.cu", "unit = active ?", "sort_kernel<.*, long", _COPY),
)


@cache
def lines_of(file: str) -> list[str]:
    found = [path for path in CSRC.rglob(file) if "test" not in path.parts]
    return found[0].read_text().splitlines() if len(found) == 1 else []


def text_of(source: str) -> str:
    """The text of "file:line"."""
    file, _, number = source.partition(":")
    lines = lines_of(file)
    return lines[int(number) - 1].strip() if 0 < int(number) <= len(lines) else ""


def short(kernel: str) -> str:
    return re.sub(r"void |pyfold::|cuda::|\(.*", "", kernel)


def lines(kernels: list[dict[str, Any]]) -> dict[tuple[str, str], bool]:
    """(source, kernel) -> whether any of the line's basic blocks there was entered. A function of several kernels is one."""
    entered: dict[tuple[str, str], bool] = {}
    for kernel in kernels:
        for block in kernel["blocks"]:
            source = block["source"].split(" ")[0]
            if source.endswith(":0") or not text_of(source):
                continue  # the compiler's own, or of a header of CUDA's
            key = source, short(kernel["kernel"] if block["function"] == kernel["kernel"] else block["function"])
            entered[key] = entered.get(key, False) or block["entered"] > 0
    return entered


def missed(entered: dict[tuple[str, str], bool]) -> Iterator[tuple[str, str, str]]:
    """(source, kernel, why it cannot be reached, or nothing)."""
    for (source, kernel), yes in sorted(entered.items()):
        if not yes:
            file, text = source.partition(":")[0], text_of(source)
            why = [e.why for e in EXCUSES if e.file == file and e.text in text and re.search(e.kernels, kernel)]
            yield source, kernel, why[0] if why else ""
