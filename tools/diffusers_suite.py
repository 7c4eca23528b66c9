"""diffusers' own scheduler tests on pyfold's classes.

The suite is no part of diffusers' wheel. Take it from a clone at the version that is installed::

    git clone --depth 1 --branch v0.42.1 https://github.com/huggingface/diffusers diffusers-source
    python tools/diffusers_suite.py diffusers-source

Every class of ``pyfold.adapters.diffusers`` takes the place of diffusers' of its name before a test is imported; those of
tokens and masks stay diffusers'. Options after the folder go to pytest, ``--theirs`` runs diffusers' classes alone.

979 of 981 pass on 0.42.1. ``test_full_loop_with_noise`` of DDPM and of DDPMParallel fail: they hold a sum to 1e-2 that float32
tables round by 2e-2, and pyfold's is nearer to that of diffusers' own formulas on float64 tables. Two more, of
test_schedulers.py, load a model from the Hugging Face Hub and fail without a network on either's classes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import diffusers
import diffusers.schedulers
import pytest

from pyfold.adapters import diffusers as ours


def substitute() -> int:
    """pyfold's classes under diffusers' names; how many."""
    names = [name for name in ours.__all__ if name != "SchedulerMixin"]
    for name in names:
        for package in (diffusers, diffusers.schedulers):
            setattr(package, name, getattr(ours, name))
    return len(names)


def main(argv: list[str]) -> int:
    if not argv or not (Path(argv[0]) / "tests/schedulers").is_dir():
        print(__doc__)
        return 2
    options = [a for a in argv[1:] if a != "--theirs"]
    if "--theirs" not in argv:
        print(f"{substitute()} classes are pyfold's")
    with tempfile.TemporaryDirectory() as copy:
        # Away from the clone, whose conftest.py and src/ belong to the whole of diffusers.
        tests = Path(copy) / "tests"
        shutil.copytree(Path(argv[0]) / "tests/schedulers", tests / "schedulers")
        shutil.copy(Path(argv[0]) / "tests/testing_utils.py", tests)
        shutil.copytree(Path(argv[0]) / "tests/others", tests / "others")
        (tests / "__init__.py").touch()
        quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore"]
        return int(pytest.main([str(tests / "schedulers"), f"--rootdir={copy}", *quiet, *options]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
