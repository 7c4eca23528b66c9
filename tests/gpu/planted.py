"""Plants faults in copies of the CUDA sources, one at a time, and asks whether test_kernels.py finds each.

    python tests/gpu/planted.py BUILD_FOLDER [--ci | NAME ...]

BUILD_FOLDER is the one that 'make test-cuda' built: of it, what a fault changes is compiled once more, into a folder beside.
Exits with 1 where one is not found, or where its text no longer stands in the sources."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Of which file a header's kernels are.
FAMILY_OF = {"fold_units.cuh": "folds"} | dict.fromkeys(
    ["tile.cuh", "row_tile.cuh", "pack_tile.cuh", "warp_tile.cuh"], "diffusion"
)


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    tests: str  #: pytest's -k
    text: str
    instead: str
    in_ci: bool


def faults() -> list[Fault]:
    """Those of planted.txt."""
    form = r"^== ([^\n]+?)( \(CI\))?\nfile: ([^\n]+)\ntests: ([^\n]+)\n-- goes\n(.+?)\n-- comes\n(.*?)\n(?=^== )"
    found = re.findall(form, Path(__file__).with_suffix(".txt").read_text(), re.MULTILINE | re.DOTALL)
    return [Fault(name, file, tests, text, instead, bool(ci)) for name, ci, file, tests, text, instead in found]


def plant(fault: Fault, sources: Path) -> None:
    path = sources / fault.file
    text = path.read_text()
    if fault.text not in text:
        sys.exit(f"{fault.name}: {fault.file} no longer holds {fault.text!r}")
    path.write_text(text.replace(fault.text, fault.instead))


def command_of(output: str, build: Path) -> list[str]:
    """The last command with which ninja makes a file of the build folder."""
    listed = subprocess.run(["ninja", "-C", build, "-t", "commands", "-s", output], check=True, capture_output=True, text=True)
    parts = [part for part in re.split(r" && |\n", listed.stdout) if output in part]
    return shlex.split(parts[-1])


def compiled(fault: Fault, sources: Path, build: Path) -> None:
    """The library of the tests, in the folder of the sources, with the kernels of the one file that changed."""
    family = Path(fault.file).stem if fault.file.endswith(".cu") else FAMILY_OF[Path(fault.file).name]
    folder, object_, library = sources.parent, f"gpu_test_{family}.o", "libpyfold_gpu_test.so"
    originals = [str(ROOT / "csrc"), str(build / object_), f"{build / object_}.d"]
    instead = dict(zip(originals, [str(sources), str(folder / object_), f"{folder / object_}.d"], strict=True))
    compile_ = command_of(str(build / object_), build)
    for before, after in instead.items():
        compile_ = [re.sub(re.escape(before) + r"(?=$|/|\.d$)", after, word) for word in compile_]
    link = [str(folder / object_) if word.endswith(object_) else word for word in command_of(library, build)]
    link = [str(folder / library) if word == library else word for word in link]
    for command in (compile_, link):
        done = subprocess.run(command, cwd=build, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{fault.name}: does not compile\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    shutil.copy(build / "libpyfold_gpu.so", folder)


def found(fault: Fault, folder: Path) -> str:
    """The first failure that the tests report, or nothing."""
    environment = {**os.environ, "PYFOLD_GPU_TEST": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", fault.tests]
    command.append("tests/gpu/test_kernels.py")
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode not in (0, 1):
        sys.exit(f"{fault.name}: the tests did not run\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    reasons = [line[2:].strip() for line in result.stdout.splitlines() if line.startswith("E  ")]
    return (reasons or ["a failure without a reason"])[0].split("GPU simulator: ")[-1] if result.returncode else ""


def main() -> int:
    build = Path(sys.argv[1]).resolve()
    wanted = [m for m in faults() if m.name in sys.argv[2:] or len(sys.argv) == 2 or (m.in_ci and "--ci" in sys.argv)]
    missed = 0
    for fault in wanted:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            sources = Path(folder).resolve() / "csrc"
            shutil.copytree(ROOT / "csrc", sources)
            plant(fault, sources)
            compiled(fault, sources, build)
            reason = found(fault, sources.parent)
        missed += not reason
        seconds = time.monotonic() - start
        print(f"{'found' if reason else 'MISSED'} in {seconds:.0f} s: {fault.name}: {reason[:160]}", flush=True)
    print(f"{len(wanted) - missed} of {len(wanted)} planted faults found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
