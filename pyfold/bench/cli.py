"""``pyfold bench``: the table for the machine it runs on."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyfold.bench.measure import Measured
    from pyfold.bench.rows import Row, Setting

    Runs = dict[str, tuple[Row, Setting]]

ABOUT = """\
Measures pyfold on this machine and prints a table. Every row times pyfold and what would run instead by turns, in one process,
and gives medians: pyfold's time, and how many times longer each peer takes (above 1x, pyfold is faster). "of bandwidth" is the
rate of the bytes that must move over that of torch.add(a, b, out=c) on arrays of the same size, "of generator" the share of the
time that making the noise alone would take. Peers are eager PyTorch at its best, torch.compile, and diffusers, k-diffusion and
deel-torchlip where they are installed. Takes about two minutes.
"""
EXAMPLES = """\
examples:
  pyfold bench --quick                                  seconds, for a first look
  pyfold bench --rows 'DDPM|randn'                      some rows
  pyfold bench --json before.json                       keep the numbers ...
  pyfold bench --compare before.json --fail-above 10%   ... and see whether anything became slower (exit status 1)
  pyfold bench --floors                                 do the rows keep their least ratio to eager PyTorch? (half a minute)
  pyfold bench --groups ops steps loops jobs --full     everything, about a quarter of an hour
"""
_DEFAULT_GROUPS = ("ops", "gradients", "steps", "overhead")
#: Rows of --quick: one of each kind.
_QUICK = r"randn$|DDPM step|maxmin, forward|maxmin, no gradient"
#: A row that looks too slow is measured again, this often and this much longer, before it is called so.
_SECOND_LOOKS, _LONGER = 2, 4


def percentage(text: str) -> float:
    """10%, 10 % or 0.1 as a share."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a percentage such as 10%, got {text!r}")
    return float(match[1]) / (100 if match[2] else 1)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        help="how fast pyfold is on this machine, beside what would run instead",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a few rows at the smallest size, without torch.compile: seconds")
    add("--full", action="store_true", help="every group, size and dtype, torch.compile at every size, longer measurements")
    add(
        "--floors",
        action="store_true",
        help="the rows that have a least ratio to eager PyTorch, a wide margin; exit status 1 if one stays below it",
    )
    add("--rows", metavar="REGEX", default="", help="rows whose names match; --list names them all")
    add(
        "--groups",
        nargs="+",
        metavar="GROUP",
        help=f"of: ops gradients steps loops jobs overhead (default: {' '.join(_DEFAULT_GROUPS)})",
    )
    add("--sizes", nargs="+", choices=("small", "middle", "large"), help="1x4x64x64, 8x3x256x256, 16x3x512x512 (default: all)")
    add("--dtypes", nargs="+", choices=("float32", "bfloat16"), help="of the tensors (default: float32)")
    add("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: cpu)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: as torch has it)")
    add("--budget", type=float, metavar="SECONDS", help="of measuring, for each row and size (default: 0.4)")
    add("--no-compile", action="store_true", help="leave torch.compile out, which takes half of the time")
    add("--json", type=Path, metavar="OUT", help="write the numbers to this file")
    add("--compare", type=Path, metavar="OLD", help="say what changed since this file was written by --json")
    add(
        "--fail-above",
        type=percentage,
        default=None,
        metavar="P%",
        help="with --compare: exit status 1 if a row is slower by more",
    )
    add("--show", type=Path, metavar="FILE", help="print the tables of a file written by --json, and measure nothing")
    add("--plot", type=Path, metavar="FILE", help="also draw the ratios: .png, .svg or .pdf (needs pyfold[pictures])")
    add("--markdown", action="store_true", help="print tables in Markdown")
    add("--list", action="store_true", help="name all rows and stop")


def _levels(arguments: argparse.Namespace) -> tuple[str, ...]:
    from pyfold.bench import LEVELS

    if arguments.floors:
        return ("middle",)
    return tuple(arguments.sizes or (("small",) if arguments.quick else LEVELS))


def _chosen(arguments: argparse.Namespace) -> list[Row]:
    from pyfold.bench import GROUPS, ROWS

    everything = arguments.full or arguments.floors or bool(arguments.rows)
    groups = arguments.groups or (GROUPS if everything else _DEFAULT_GROUPS)
    if unknown := set(groups) - set(GROUPS):
        raise ValueError(f"--groups must be of {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}")
    try:
        pattern = re.compile(arguments.rows or (_QUICK if arguments.quick and not arguments.groups else ""))
    except re.error as error:
        raise ValueError(f"--rows must be a regular expression, got {arguments.rows!r}: {error}") from error
    rows = [row for row in ROWS.values() if row.group in groups and pattern.search(row.name)]
    if arguments.floors:
        rows = [row for row in rows if row.floor is not None]
    if not rows:
        raise ValueError(f"--rows {arguments.rows!r} matches no row of {', '.join(groups)}; see pyfold bench --list")
    return rows


def _compiles(arguments: argparse.Namespace) -> bool:
    return not (arguments.no_compile or arguments.quick or arguments.floors)


def _settings(arguments: argparse.Namespace, rows: Iterable[Row]) -> Iterator[tuple[Row, Setting]]:
    import torch

    from pyfold.bench import Peers, settings

    try:
        device = torch.empty(0, device=arguments.device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device must be one that torch has, got {arguments.device}: {error}") from error
    peers = Peers.found(_compiles(arguments))
    # The compiler takes seconds for each function and size.
    without = Peers(False, peers.diffusers, peers.k_diffusion, peers.torchlip)
    dtypes = arguments.dtypes or (("float32", "bfloat16") if arguments.full else ("float32",))
    for row in rows:
        for setting in settings(row, _levels(arguments), [getattr(torch, d) for d in dtypes], device, without):
            compiled = peers.compiler and (arguments.full or setting.level == "middle")
            yield row, setting if not compiled else type(setting)(setting.shape, setting.dtype, device, peers, setting.level)


def _second_look(
    old: list[Measured], measured: dict[str, Measured], runs: Runs, limit: float, budget: float
) -> dict[str, float]:
    """Slowdowns, after rows beyond the limit had the chance to show that it was the machine."""
    from pyfold.bench import compare, measure

    slowdowns = compare(old, list(measured.values()))
    for _ in range(_SECOND_LOOKS):
        for key in [key for key, value in slowdowns.items() if value > limit]:
            repeated = measure(*runs[key], budget=_LONGER * budget)
            now = compare(old, [repeated])[key]
            if now < slowdowns[key]:
                measured[key], slowdowns[key] = repeated, now
    return slowdowns


def _below_floors(measured: dict[str, Measured], runs: Runs, budget: float) -> list[Measured]:
    """Rows that are below their floor still, after the chance to show that it was the machine."""
    from pyfold.bench import measure

    for _ in range(_SECOND_LOOKS):
        for key in [key for key, value in measured.items() if value.below_floor]:
            repeated = measure(*runs[key], budget=_LONGER * budget)
            if repeated.ratios["eager"] > measured[key].ratios["eager"]:
                measured[key] = repeated
    return [value for value in measured.values() if value.below_floor]


def _list() -> int:
    from pyfold.bench import GROUPS, ROWS

    for group, about in GROUPS.items():
        print(f"{group}: {about}")
        print("".join(f"  {row.name}\n" for row in ROWS.values() if row.group == group))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from pyfold.bench import read_json, table
    from pyfold.bench.plot import plot

    listed = read_json(arguments.show)[0]
    print(table(listed, arguments.markdown))
    if arguments.plot:
        plot(listed, arguments.plot)
    return 0


def _checked_budget(arguments: argparse.Namespace) -> float:
    """Seconds for each row; raises ValueError for options that do not go together or are out of range."""
    if arguments.fail_above is not None and not arguments.compare:
        raise ValueError("--fail-above needs --compare OLD")
    if arguments.floors and (arguments.sizes or arguments.dtypes or arguments.compare):
        raise ValueError("--floors chooses sizes and dtypes itself, and goes without --compare")
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {arguments.threads}")
    budget = 0.02 if arguments.quick else 0.2 if arguments.floors else 1.5 if arguments.full else 0.4
    if arguments.budget is not None:
        budget = arguments.budget
    if not 0 < budget < 3600:
        raise ValueError(f"--budget must be a number of seconds above 0, got {budget}")
    return float(budget)


def _say_machine(arguments: argparse.Namespace, facts: dict[str, Any], limits: dict[str, float]) -> None:
    from pyfold.bench import Peers

    print(f"pyfold {facts['pyfold']}, torch {facts['torch']}, {facts['processor']}, {facts['cpu']['in_use']}, ", end="")
    print(f"{facts['cpu']['threads']} threads, {arguments.device}")
    print(
        f"{limits['triad bytes per second'] / 1e9:.1f} GB/s by torch.add(a, b, out=c); "
        f"{limits['normals per second'] / 1e9:.2f} G normals/s by the generator alone"
    )
    for name, reason in Peers.found(_compiles(arguments)).missing.items():
        print(f"without {name}: {reason}")


def _measured(points: list[tuple[Row, Setting]], budget: float) -> tuple[dict[str, Measured], Runs]:
    """(measurements, what gave them) by their keys."""
    from pyfold._requirements import need
    from pyfold.bench import measure

    measured: dict[str, Measured] = {}
    runs: Runs = {}
    bar = need("tqdm", "bench").tqdm(points, unit="row", leave=False, dynamic_ncols=True)
    for row, setting in bar:
        bar.set_description_str(f"{row.name} {'x'.join(map(str, setting.shape))}")
        result = measure(row, setting, budget)
        measured[result.key], runs[result.key] = result, (row, setting)
    bar.close()
    return measured, runs


def _say_floors(below: list[Measured], count: int) -> int:
    for value in below:
        print(f"{value.key}: eager takes {value.ratios['eager']:.2f} times as long, at least {value.floor} is due")
    print(f"{len(below)} of {count} below their floors" if below else f"all {count} keep their floors")
    return int(bool(below))


def run(arguments: argparse.Namespace) -> int:
    """The command; its exit status."""
    import torch

    from pyfold.bench import read_json, table, write_json
    from pyfold.bench.measure import machine_limits
    from pyfold.bench.plot import plot
    from pyfold.bench.report import machine

    if arguments.list:
        return _list()
    if arguments.show:
        return _show(arguments)
    budget = _checked_budget(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    old, about_old = read_json(arguments.compare) if arguments.compare else ([], {})
    points = list(_settings(arguments, _chosen(arguments)))

    facts, began = machine(), time.perf_counter()
    limits = machine_limits(torch.device(arguments.device))
    _say_machine(arguments, facts, limits)
    measured, runs = _measured(points, budget)
    slowdowns: dict[str, float] = {}
    if old:
        slowdowns = _second_look(old, measured, runs, arguments.fail_above or float("inf"), budget)
    below = _below_floors(measured, runs, budget) if arguments.floors else []
    results = list(measured.values())
    print(f"\n{table(results, arguments.markdown)}\n")
    if arguments.json:
        write_json(arguments.json, results, limits=limits, budget=budget)
    if arguments.plot:
        plot(results, arguments.plot)
    print(f"{len(results)} rows in {time.perf_counter() - began:.0f} s" + (f"; {arguments.json}" if arguments.json else ""))
    if arguments.floors:
        return _say_floors(below, len(results))
    return _say_changes(arguments, slowdowns, about_old, facts) if arguments.compare else 0


def _say_changes(
    arguments: argparse.Namespace, slowdowns: dict[str, float], about_old: dict[str, Any], facts: dict[str, Any]
) -> int:
    before = about_old.get("machine", {})
    for what in ("processor", "torch"):
        if before.get(what) != facts[what]:
            print(f"careful: {arguments.compare} was measured with another {what}: {before.get(what)}, now {facts[what]}")
    if not slowdowns:
        raise ValueError(f"{arguments.compare} has no row of this run")
    limit = arguments.fail_above
    slower = {key: value for key, value in slowdowns.items() if limit is not None and value > limit}
    print(f"\nsince {arguments.compare} ({about_old.get('date')}), {len(slowdowns)} rows, relative to their peers:")
    listed = slower or dict(list(slowdowns.items())[:3])
    for key, value in listed.items():
        print(f"  {key}: {abs(value):.1%} {'slower' if value > 0 else 'faster'}")
    if limit is None:
        return 0
    print(f"{len(slower)} slower by more than {limit:.0%}" if slower else f"none is slower by more than {limit:.0%}")
    return int(bool(slower))
