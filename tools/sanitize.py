"""Tests under AddressSanitizer and UndefinedBehaviorSanitizer: no kernel reads or writes outside of its tensors.

Builds csrc with both into build/sanitize, beside a copy of the Python package, and runs there the C++ tests, the tests of ops,
noise, steps and folds at one instruction set, all derivatives, and the fuzz of tests/fuzz.py.

    python tools/sanitize.py                      all of it (make sanitize)
    python tools/sanitize.py --run COMMAND ...    a command with the sanitizers' build and settings
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "sanitize"
PACKAGE = BUILD / "package"
#: Files of tests -> which of them, at one instruction set: every op in every shape and layout.
TESTS = {
    "tests/test_ops.py": "matches_the_reference and cpu-{tier} and bfloat16 or layout_or_threads or infinity and cpu-{tier}",
    "tests/test_noise.py": "not ({others} or statistics or numpy_module or empirical)",
    "tests/test_affine_step.py": "not ({others})",
    "tests/test_fold.py": "not ({others} or torchlip or orthogonium)",
}
#: All ops in all dtypes with their derivatives, their bits compared besides.
DIGESTS = ["tests/digests.py", "--only", "ops/"]
FUZZ = {"programs": 1000, "calls": 2000}


def build() -> None:
    """The libraries with the sanitizers, and the Python files beside them."""
    sys.path.insert(0, str(ROOT / "build_backend"))
    import find  # type: ignore[import-not-found,unused-ignore]

    cmake, ninja = find.tool("cmake"), find.tool("ninja")
    if cmake is None:
        raise SystemExit("CMake is needed; install it: pip install cmake ninja")
    options = {
        "PYFOLD_OUTPUT": PACKAGE / "pyfold",
        "PYFOLD_CUDA": "off",
        "PYFOLD_SANITIZE": "address,undefined",
        "PYFOLD_BUILD_TESTS": "on",
        "PYFOLD_TORCH_DIR": find.torch_folder(),
        "Python_EXECUTABLE": sys.executable,
    }
    configure = [cmake, "-S", str(ROOT), "-B", str(BUILD), *(f"-D{k}={v}" for k, v in options.items())]
    if ninja:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    subprocess.check_call(configure, stdout=subprocess.DEVNULL)
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
    subprocess.check_call([cmake, "--build", str(BUILD), "--parallel", jobs])
    for source in (ROOT / "pyfold").rglob("*"):
        target = PACKAGE / source.relative_to(ROOT)
        if source.is_file() and source.suffix not in (".so", ".pyc"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def environment() -> dict[str, str]:
    """Preloads the sanitizers: Python itself knows nothing of them. Its leaks are not looked for."""
    compiler = os.environ.get("CXX", "c++")
    found = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096:handle_segv=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(PACKAGE),
        "OMP_NUM_THREADS": "2",
    }


def commands() -> list[list[str]]:
    ask = "from pyfold import _C; print(*_C.cpu_tiers_supported())"
    tiers = subprocess.check_output([sys.executable, "-c", ask], env=environment(), text=True).split()
    # The baseline calls the C library for each fma, and that takes long here.
    tier = "avx2" if "avx2" in tiers else tiers[-1]
    others = " or ".join(f"cpu-{t}" for t in ("baseline", "avx2", "avx512", "neon") if t != tier)
    found = [[str(BUILD / "pyfold_tests")]]
    # The command beside this Python, not "-m pytest", which would find the package of the present folder first.
    pytest = str(Path(sys.executable).with_name("pytest"))
    for path, chosen in TESTS.items():
        choice = chosen.format(tier=tier, others=others)
        found.append([pytest, "-q", "-x", "-p", "no:cacheprovider", path, "-m", "not slow", "-k", choice])
    found.append([sys.executable, *DIGESTS])
    fuzz = [sys.executable, "tests/fuzz.py", "--crashes"]
    return found + [[*fuzz, kind, "--count", str(count)] for kind, count in FUZZ.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs=argparse.REMAINDER, help="a command instead of the tests")
    arguments = parser.parse_args()
    build()
    if arguments.run:
        return subprocess.run(arguments.run, cwd=ROOT, env=environment(), check=False).returncode
    for command in commands():
        print(" ".join(command), flush=True)
        instruments_itself = command[0].endswith("pyfold_tests")
        done = subprocess.run(command, cwd=ROOT, env=None if instruments_itself else environment(), check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
