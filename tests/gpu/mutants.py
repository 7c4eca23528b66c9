"""Plants faults in copies of the CUDA sources, one at a time, and asks whether test_kernels.py finds each.

    python tests/gpu/mutants.py BUILD_FOLDER [--ci | NAME ...]

Exits with 1 where one is not found, or where its text no longer stands in the sources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    tests: str  #: pytest's -k
    text: str
    instead: str
    in_ci: bool


def mutants() -> list[Mutant]:
    """Those of mutants.txt."""
    form = r"^== ([^\n]+?)( \(CI\))?\nfile: ([^\n]+)\ntests: ([^\n]+)\n-- goes\n(.+?)\n-- comes\n(.*?)\n(?=^== )"
    found = re.findall(form, Path(__file__).with_suffix(".txt").read_text(), re.MULTILINE | re.DOTALL)
    return [Mutant(name, file, tests, text, instead, bool(ci)) for name, ci, file, tests, text, instead in found]


def plant(mutant: Mutant, sources: Path) -> None:
    path = sources / mutant.file
    text = path.read_text()
    if mutant.text not in text:
        sys.exit(f"{mutant.name}: {mutant.file} no longer holds {mutant.text!r}")
    path.write_text(text.replace(mutant.text, mutant.instead))


def found(mutant: Mutant, folder: Path) -> str:
    """The first failure that the tests report, or nothing."""
    environment = {**os.environ, "PYFOLD_GPU_TEST": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", mutant.tests]
    command.append("tests/gpu/test_kernels.py")
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if result.returncode not in (0, 1):
        sys.exit(f"{mutant.name}: the tests did not run\n{result.stdout[-2000:]}{result.stderr[-2000:]}")
    reasons = [line[2:].strip() for line in result.stdout.splitlines() if line.startswith("E  ")]
    return (reasons or ["a failure without a reason"])[0].split("GPU simulator: ")[-1] if result.returncode else ""


def main() -> int:
    build = Path(sys.argv[1]).resolve()
    sources = build / "csrc"
    wanted = [m for m in mutants() if m.name in sys.argv[2:] or len(sys.argv) == 2 or (m.in_ci and "--ci" in sys.argv)]
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", sources)
    options = ["-G", "Ninja", "-DPYFOLD_CUDA=on", "-DPYFOLD_GPU_TEST=ON", f"-DPYFOLD_GPU_TEST_SOURCES={sources}"]
    options.append(f"-DPython_EXECUTABLE={sys.executable}")
    subprocess.run(["cmake", "-S", ROOT, "-B", build, *options], check=True, stdout=subprocess.DEVNULL)
    missed = 0
    for mutant in wanted:
        start = time.monotonic()
        original = (sources / mutant.file).read_text()
        plant(mutant, sources)
        command = ["cmake", "--build", str(build), "--target", "pyfold_gpu_test"]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            sys.exit(f"{mutant.name}: does not compile\n{built.stdout[-3000:]}")
        reason = found(mutant, build)
        (sources / mutant.file).write_text(original)
        missed += not reason
        seconds = time.monotonic() - start
        print(f"{'found' if reason else 'MISSED'} in {seconds:.0f} s: {mutant.name}: {reason[:160]}", flush=True)
    print(f"{len(wanted) - missed} of {len(wanted)} planted faults found")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
