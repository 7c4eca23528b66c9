"""setuptools' build backend, with the torch that is already there.

In pip's isolated build, torch cannot be imported, but sysconfig still names the environment that the build is for. A torch
found there is enough, because the ops are built on torch's stable ABI and need its headers alone; so torch is only required
(and then downloaded into the isolated environment) where there is none.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

# The first release with all of the stable ABI that pyfold uses.
_NEEDED = Path("include/torch/csrc/stable/library.h"), Path("include/torch/headeronly/core/TensorAccessor.h")


def torch_folder() -> Path | None:
    """The torch package to build against, or None."""
    candidates = []
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.submodule_search_locations:
        candidates.append(Path(next(iter(spec.submodule_search_locations))))
    paths = sysconfig.get_paths()
    candidates += [Path(paths[key]) / "torch" for key in ("platlib", "purelib")]
    candidates += [Path(base) / "torch" for base in sys.path]
    for folder in candidates:
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


def _requirements() -> list[str]:
    needed = []
    if torch_folder() is None:
        needed.append("torch>=2.10")
    if tool("cmake") is None:
        needed.append("cmake>=3.18")
    if tool("ninja") is None:
        needed.append("ninja")
    return needed


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _requirements()
