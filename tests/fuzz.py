"""Random calls, hostile ones among them, in processes whose end is watched: nothing may crash, hang or write elsewhere.

``python tests/fuzz.py calls --count 20000`` makes public calls of ops, modules, samplers, losses and schedules with every
option in the pool; ``python tests/fuzz.py programs --count 5000`` gives random programs of folds to the raw ops. Each case is a
function of the seed and its number, so ``--first 1234 --count 1`` repeats one. A call may succeed, or refuse by a ValueError or
TypeError that names an argument (a raw op by a RuntimeError of pyfold's). Tensors lie between guards that must be whole
afterwards; with the sanitizers (tools/sanitize.py) reads outside are seen too.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuzz_pool import Case

#: Cases of one process, and seconds that one case may take.
CHUNK, PATIENCE = 1000, 20
CRASHES = 5
#: Bytes of address space of a process.
MEMORY = 16 << 30


class Hang(BaseException):
    """A case took longer than PATIENCE."""


def complaint(kind: str, seed: int, number: int) -> str | None:
    """What is wrong with a case, or None."""
    import fuzz_calls
    import fuzz_programs

    rng = random.Random(f"{kind} {seed} {number}")
    make: Callable[[random.Random], Case] = {"calls": fuzz_calls.make, "programs": fuzz_programs.make}[kind]
    case = make(rng)
    reason: str | None = None
    try:
        case.run()
    except Exception as error:
        if (why := judged(case, error)) is not None:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            reason = f"{case.label}: {why}: {type(error).__name__}: {str(error)[:300]} (at {where})"
    except Hang:
        reason = f"{case.label}: took longer than {PATIENCE} s"
    return case.guards.broken() or reason


def judged(case: Case, error: Exception) -> str | None:
    """Why an error is no proper refusal, or None."""
    message = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in message:
        return None
    if case.raw:
        return None if isinstance(error, RuntimeError) and "pyfold:" in message else "not a refusal of the raw op"
    if type(error) not in (ValueError, TypeError):
        return "neither a ValueError nor a TypeError"
    words = set(re.findall(r"\w+", message))
    return None if words & case.names else "names no argument"


def worker(kind: str, seed: int, first: int, count: int) -> None:
    """Prints a line when a case begins and one for each complaint; the last line of a crash says where it was."""
    import torch

    torch.set_num_threads(1)
    faulthandler.enable()
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        # What asks for more than there is fails at once, and not the machine with it.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def alarm(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, alarm)
    for number in range(first, first + count):
        print(f"{number}", flush=True)
        signal.alarm(PATIENCE)
        reason = complaint(kind, seed, number)
        signal.alarm(0)
        if reason is not None:
            print(json.dumps([number, reason]), flush=True)


def chunk(kind: str, seed: int, first: int, count: int) -> Iterator[tuple[int, str]]:
    """Complaints of some cases, crashes among them; after a crash the others go on in another process."""
    end = first + count
    for _ in range(CRASHES):
        command = [sys.executable, __file__, kind, "--seed", str(seed), "--first", str(first), "--count", str(end - first)]
        with tempfile.TemporaryFile("w+") as errors:
            done = subprocess.run(
                [*command, "--worker"], stdout=subprocess.PIPE, stderr=errors, text=True, check=False,
                timeout=PATIENCE * (end - first),
            )  # fmt: skip
            errors.seek(0)
            log = errors.read()
        number = first
        for line in done.stdout.splitlines():
            if line.startswith("["):
                yield tuple(json.loads(line))
            else:
                number = int(line)
        if done.returncode == 0:
            return
        telling = [
            s for s in log.splitlines() if "ERROR" in s or "error" in s or "Fatal" in s or "free()" in s or "SUMMARY" in s
        ]
        yield number, f"CRASH, status {done.returncode}: {' | '.join(telling[:4]) or log[-400:]}"
        first = number + 1
        if first >= end:
            return
    yield first, f"no more of these cases after {CRASHES} crashes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("calls", "programs"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--crashes", action="store_true", help="say nothing of how calls are refused")
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.kind, arguments.seed, arguments.first, arguments.count)
        return 0
    failures = 0
    end = arguments.first + arguments.count
    for first in range(arguments.first, end, CHUNK):
        for number, reason in chunk(arguments.kind, arguments.seed, first, min(CHUNK, end - first)):
            if arguments.crashes and not re.search("CRASH|longer|outside", reason):
                continue
            failures += 1
            print(f"{arguments.kind} --seed {arguments.seed} --first {number} --count 1: {reason}", flush=True)
    print(f"{arguments.count} {arguments.kind}, {failures} complaints")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    sys.exit(main())
