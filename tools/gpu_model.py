"""The table of docs/performance.md about GPUs: csrc/bench/machine_code.json, with a model of what bounds each workload.

python tools/gpu_model.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from machine_code import ARCHITECTURES

#: An H100 SXM, by a clock of one multiprocessor: what its memory delivers, threads whose instruction is issued, of which this
#: share is usable, and threads that each pipe takes (CUDA C++ Programming Guide, arithmetic throughput of 9.0). IMAD has half
#: of the pipe of FADD and its like, and shares it with them.
MEMORY_BYTES, ISSUED, USABLE = 13.9, 128, 0.85
PIPE_WIDTHS = {"alu": 64, "imad": 64, "fp64": 64, "xu": 16, "lsu": 32}
FMA_WIDTH = 128
SECTOR = 32
MULTIPROCESSORS, CLOCK = 132, 1.7e9


def limits(row: dict[str, float]) -> dict[str, float]:
    """Clocks of a multiprocessor that an element of the workload takes, by what could hold it up."""
    moved = sum(row[f"{way}: distinct sectors an element"] for way in ("loads", "stores"))
    clocks = {"memory": SECTOR * moved / MEMORY_BYTES}
    clocks["issue"] = row["SASS an element"] / (ISSUED * USABLE)
    clocks["fma"] = (row["fma"] + row["imad"]) / FMA_WIDTH
    return clocks | {pipe: row[pipe] / width for pipe, width in PIPE_WIDTHS.items()}


def markdown(notes: dict[str, Any]) -> str:
    """The table of docs/performance.md of one compiler's notes: float32 / bfloat16."""
    heads = [
        "workload",
        *(f"SASS an element, {a}" for a in ARCHITECTURES),
        "sectors loaded",
        "sectors stored",
        "widest load, store",
    ]
    heads += ["registers", "occupancy", "bound by", "elements a second, 10^9", "of memory's rate"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]

    def both(of: Any) -> str:
        return " / ".join(dict.fromkeys(of) if len(set(of)) == 1 else of)

    for workload, dtypes in notes["sm_90"].items():
        rows = list(dtypes.values())
        cells = [workload]
        cells += [both([f"{r['SASS an element']:.0f}" for r in notes[a][workload].values()]) for a in ARCHITECTURES]
        cells += [both([f"{r[f'{way}: sectors an element']:.3f}" for r in rows]) for way in ("loads", "stores")]
        cells.append(both([f"{r['loads: widest']}, {r['stores: widest']}" for r in rows]))
        cells += [both([f"{r['registers']}" for r in rows]), both([f"{r['occupancy']:.0%}" for r in rows])]
        clocks = [limits(row) for row in rows]
        cells.append(both([max(c, key=lambda what, c=c: c[what]) for c in clocks]))
        cells.append(both([f"{MULTIPROCESSORS * CLOCK / max(c.values()) / 1e9:.0f}" for c in clocks]))
        cells.append(both([f"{c['memory'] / max(c.values()):.0%}" for c in clocks]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    noted = json.loads((Path(__file__).resolve().parents[1] / "csrc" / "bench" / "machine_code.json").read_text())
    print(markdown(list(noted.values())[-1]))
