"""Finds torch and the build tools. Imports nothing but the standard library.

The ops are built on torch's stable ABI and need torch's headers alone, so any torch >= 2.10 will do, also one of an environment
that cannot be imported from here: pip's isolated build hides the packages but not sysconfig's paths; uv and ``python -m build``
make an environment of their own, and the one that they build for shows only in the environment variables and in the command
that was given.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

#: The first release with all of the stable ABI that pyfold uses.
_NEEDED = Path("include/torch/csrc/stable/library.h"), Path("include/torch/headeronly/core/TensorAccessor.h")


def _own_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.submodule_search_locations:
        yield Path(next(iter(spec.submodule_search_locations)))
    paths = sysconfig.get_paths()
    yield from (Path(paths[key]) / "torch" for key in ("platlib", "purelib"))
    yield from (Path(base) / "torch" for base in sys.path)


def _environments() -> Iterator[Path]:
    """The environments that the user may mean: those of the variables, then those of the frontend's command line."""
    yield from (Path(os.environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name))
    yield from (Path(entry).parent for entry in os.environ.get("PATH", "").split(os.pathsep) if entry)
    yield Path(sys.base_prefix)
    process = Path("/proc") / str(os.getppid())
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        folder = (process / "cwd").resolve(strict=True)
    except OSError:
        return
    # As in: uv pip install --python venv/bin/python; venv/bin/python -m build.
    for word in words:
        path = folder / word.partition("=")[2] if word.startswith("--") else folder / word
        if path.exists():
            yield from (path, path.parent.parent)
    yield folder / ".venv"  # uv's default


def torch_folder() -> Path | None:
    """The torch package to build against, or None. PYFOLD_TORCH_DIR names one and wins."""
    if given := os.environ.get("PYFOLD_TORCH_DIR"):
        return Path(given)
    for folder in _own_folders():
        if all((folder / header).exists() for header in _NEEDED):
            return folder
    for environment in _environments():
        for folder in sorted(environment.glob("lib*/python3*/site-packages/torch")):
            if all((folder / header).exists() for header in _NEEDED):
                return folder
    return None


def tool(name: str) -> str | None:
    """A build tool of the build environment, or else of the system; one that does not run, as a script of another
    environment inside pip's isolation, counts as absent."""
    for candidate in (str(Path(sys.executable).parent / name), shutil.which(name)):
        try:
            if candidate and subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
                return candidate
        except OSError:
            continue
    return None
