"""Drives CMake with Ninja: CMakeLists.txt is the build, this file only says where its results go."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
import find  # noqa: E402


def find_torch() -> str:
    """The torch package of the environment that the build is for, which need not be importable from here."""
    folder = find.torch_folder()
    if folder is None:
        raise SystemExit("pyfold: no torch >= 2.10 found. Install it first: pip install torch")
    return str(folder)


class CMakeBuild(build_ext):
    def run(self) -> None:
        cmake, ninja = find.tool("cmake"), find.tool("ninja")
        if cmake is None:
            raise SystemExit("pyfold: CMake >= 3.18 is needed to build. Install it: pip install cmake ninja")
        if not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++")):
            raise SystemExit("pyfold: a C++20 compiler is needed to build. On Debian: apt-get install g++")
        package = ROOT / "pyfold" if self.inplace else Path(self.build_lib).resolve() / "pyfold"
        package.mkdir(parents=True, exist_ok=True)
        # A build in place is kept, so that the next one compiles what changed.
        folder = ROOT / "build" / "inplace" if self.inplace else Path(self.build_temp).resolve() / "cmake"
        options = {
            "PYFOLD_OUTPUT": package,
            "PYFOLD_CUDA": os.environ.get("PYFOLD_CUDA", "auto"),
            "PYFOLD_CUDA_ARCHS": os.environ.get("PYFOLD_CUDA_ARCHS", ""),
            "PYFOLD_TORCH_DIR": find_torch(),
            "Python_EXECUTABLE": sys.executable,
            "CMAKE_BUILD_TYPE": "Release",
        }
        configure = [cmake, "-S", str(ROOT), "-B", str(folder), *(f"-D{k}={v}" for k, v in options.items())]
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        subprocess.check_call(configure)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.check_call([cmake, "--build", str(folder), "--parallel", jobs])

    def get_outputs(self) -> list[str]:
        return [str(p) for p in (Path(self.build_lib) / "pyfold").rglob("*.so")]


def project_urls() -> dict[str, str]:
    """Of the project's public home, where it has one."""
    facts: dict[str, str] = {}
    exec((ROOT / "pyfold" / "_version.py").read_text(), facts)
    home = facts["__home__"]
    return {"Homepage": home, "Repository": home, "Changelog": f"{home}/blob/main/CHANGELOG.md"} if home else {}


setup(ext_modules=[Extension("pyfold._C", sources=[])], cmdclass={"build_ext": CMakeBuild}, project_urls=project_urls())
