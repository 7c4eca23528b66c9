"""Results as a table, as a file, and beside an older file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pyfold.bench.measure import Measured
from pyfold.bench.rows import GROUPS

_FORMAT = "pyfold bench 1"
#: Peers in the order of their columns; the first one that two runs share is what a comparison goes by.
PEERS = ("eager", "compile", "diffusers", "k-diffusion", "torchlip", "adapter")


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.2g} us"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _cells(rows: Sequence[Measured]) -> list[tuple[str, list[str]]]:
    """(heading, one cell a row) for each column that is not empty."""
    columns = [("", [r.row for r in rows])]
    columns += [("size", [r.size for r in rows])]
    if {r.dtype for r in rows} != {"float32"}:
        columns += [("dtype", [r.dtype for r in rows])]
    columns += [("pyfold", [duration(r.seconds) for r in rows])]
    columns += [(peer, [_ratio(r.ratios.get(peer)) for r in rows]) for peer in PEERS]
    columns += [
        ("of bandwidth", [_percent(r.bandwidth) for r in rows]),
        ("of generator", [_percent(r.generator) for r in rows]),
        ("peak MB", [f"{r.peak['pyfold'] / 1e6:.1f}" if r.peak else "" for r in rows]),
    ]
    for peer in PEERS:
        share = [r.peak["pyfold"] / r.peak[peer] if r.peak.get(peer) else None for r in rows]
        columns += [(f"of {peer}'s", [_percent(value) for value in share])]
    return [(heading, cells) for heading, cells in columns if any(cells)]


def table(rows: Sequence[Measured], markdown: bool = False) -> str:
    """A table for each group, for a terminal or in Markdown.

    Args:
        rows: measured.
        markdown: else for a terminal.

    Returns:
        The text.
    """
    parts = []
    for group, about in GROUPS.items():
        of_group = [r for r in rows if r.group == group]
        if not of_group:
            continue
        columns = _cells(of_group)
        if markdown:
            lines = ["| " + " | ".join(heading for heading, _ in columns) + " |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(cells) + " |" for cells in zip(*(c for _, c in columns), strict=True)]
            parts.append(f"### {group}: {about}\n\n" + "\n".join(lines))
            continue
        widths = [max(len(heading), *map(len, cells)) for heading, cells in columns]
        lines = [f"{group}: {about}"]
        for cells in ([heading for heading, _ in columns], *zip(*(c for _, c in columns), strict=True)):
            first, *others = zip(cells, widths, strict=True)
            lines.append("  ".join([f"  {first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]).rstrip())
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def machine() -> dict[str, Any]:
    """Where and with what the run was made."""
    from pyfold import config

    facts = config()
    facts.pop("libraries")
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    return {"processor": processor, "cores": os.cpu_count(), **facts}


def write_json(path: Path, rows: Sequence[Measured], **more: Any) -> None:
    """Writes rows with the machine and the date, to a temporary name first.

    Args:
        path: of the file.
        rows: measured.
        more: what else the file holds, by name.
    """
    record = {
        "format": _FORMAT,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        **more,
        "rows": [row.as_json() for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def read_json(path: Path) -> tuple[list[Measured], dict[str, Any]]:
    """The rows of a file, and everything else in it.

    Args:
        path: of the file.

    Returns:
        (rows, the rest by name).

    Raises:
        ValueError: the file is not one that ``write_json`` wrote.
    """
    try:
        record = json.loads(Path(path).read_text())
        columns = {f.name for f in fields(Measured)}
        if record["format"] != _FORMAT:
            raise KeyError("format")
        rows = [Measured(**{k: v for k, v in row.items() if k in columns}) for row in record.pop("rows")]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a result of pyfold bench --json") from error
    return rows, record


def slowdown(old: Measured, new: Measured) -> float:
    """How much longer a row takes now, as a share: 0.1 is 10 % longer.

    By the ratio to a peer that both runs have, since it does not care how busy or how warm the machine is; by the share of the
    bandwidth without a peer, and by the time alone where there is neither.
    """
    for peer in PEERS:
        if peer in old.ratios and peer in new.ratios:
            return old.ratios[peer] / new.ratios[peer] - 1
    if old.bandwidth and new.bandwidth:
        return old.bandwidth / new.bandwidth - 1
    return new.seconds / old.seconds - 1


def compare(old: Sequence[Measured], new: Sequence[Measured]) -> dict[str, float]:
    """The slowdown of every row that both have, by its key, the slowest first.

    Args:
        old, new: measured rows.

    Returns:
        {key: new time over old}.
    """
    before = {row.key: row for row in old}
    both = {row.key: slowdown(before[row.key], row) for row in new if row.key in before}
    return dict(sorted(both.items(), key=lambda item: -item[1]))
