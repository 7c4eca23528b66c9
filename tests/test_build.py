"""The libraries themselves: what they need from outside, what they must not share, how they were compiled."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pybind11
import pytest
import torch

import gates
import pyfold
from pyfold import _C, _requirements
from pyfold.ops import OPS

PACKAGE = Path(pyfold.__file__).parent
ROOT = PACKAGE.parent
LIBRARIES = sorted((PACKAGE / "_lib").glob("*.so"))
BUILDS = gates.builds()
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
needs_source = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")
needs_build = pytest.mark.skipif(not BUILDS, reason="needs the build folder of this source tree")
#: Symbols of libc, libstdc++ and the compiler's runtime carry a version, or are these.
RUNTIME = re.compile(r"@|^(__cxa_|__gmon|_ITM_|__gxx_personality|_Unwind_|__dso_handle)")
#: What the repository needs and a source archive does not.
NOT_IN_SDIST = {".gitignore"}
#: A few ops of an installed pyfold.
WORKS = """
import torch, pyfold
print(pyfold.__file__)
pyfold.show_config()
x = pyfold.randn([1, 2], (8,))
assert torch.equal(x[1:], pyfold.randn([2], (8,)))
y, bits = pyfold.ops.fold_with_bits(x, "maxmin")
assert torch.equal(pyfold.ops.unfold(y, bits, "maxmin"), x)
"""
SHIM = re.compile(r"^(aoti_torch_|torch_)[a-z0-9_]+$")


def undefined(path):
    out = subprocess.run(["nm", "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in out.splitlines()]


@needs_nm
def test_ops_need_nothing_of_torch_but_its_stable_shim():
    for path in LIBRARIES:
        kernels = subprocess.run(
            ["nm", "-D", "--defined-only", PACKAGE / "_lib/libpyfold_kernels.so"], capture_output=True, text=True
        )
        own = {line.split()[-1] for line in kernels.stdout.splitlines()}
        foreign = [s for s in undefined(path) if not RUNTIME.search(s) and not SHIM.match(s) and s not in own]
        assert not foreign, f"{path.name}: {foreign}"
    assert any(SHIM.match(s) for s in undefined(PACKAGE / "_lib/libpyfold_ops.so"))


@needs_nm
def test_kernels_and_module_know_no_torch():
    module = next(PACKAGE.glob("_C*.so"))
    for path in (PACKAGE / "_lib/libpyfold_kernels.so", module):
        assert not [s for s in undefined(path) if "torch" in s or "c10" in s]
    code = "import sys; from importlib.util import spec_from_file_location as s, module_from_spec as m; "
    code += f"spec = s('_C', {str(module)!r}); c = m(spec); spec.loader.exec_module(c); "
    code += "assert 'torch' not in sys.modules; print(c.cpu_tier())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() in _C.cpu_tiers_supported()


@needs_nm
@needs_build
def test_no_symbol_of_one_instruction_set_can_stand_in_for_another():
    objects = [o for build in BUILDS for o in build.glob("CMakeFiles/pyfold_cpu_*.dir/**/*.o")]
    assert len(objects) >= 2 * len(_C.cpu_tiers_built())
    for path in objects:
        lines = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout.splitlines()
        weak = [line for line in lines if re.search(r" [WVu] ", line)]
        assert not weak, f"{path}: {weak}"
        exported = [line.split()[-1] for line in lines if re.search(r" [TDRB] ", line)]
        tier = re.search(r"pyfold_cpu_(\w+)\.dir", str(path))[1]
        assert exported
        assert all(tier in symbol for symbol in exported), f"{path}: {exported}"


@needs_build
def test_compiles_without_a_warning_and_without_fast_math():
    for build in BUILDS[:1]:
        commands = json.loads((build / "compile_commands.json").read_text())
        assert len(commands) > 8
        for entry in commands:
            assert "fast-math" not in entry["command"]
            assert "-Ofast" not in entry["command"]
            command = re.sub(r" -o \S+ -c ", " -fsyntax-only -Werror ", entry["command"])
            # pip's isolated build has taken its own copy of these headers away.
            command = re.sub(r"\S+/pybind11/include", pybind11.get_include(), command)
            assert "-fsyntax-only" in command
            assert "-Wextra" in command
            result = subprocess.run(command, shell=True, cwd=entry["directory"], capture_output=True, text=True)
            assert result.returncode == 0, result.stderr[:2000]
        ninja = (build / "build.ninja").read_text() if (build / "build.ninja").exists() else ""
        assert "use_fast_math" not in ninja
        if _C.build_info()["cuda_built"] and ninja:
            assert "--fmad=false" in ninja


def test_cuda_library_loads_beside_any_torch_and_has_every_op():
    if not _C.build_info()["cuda_built"]:
        pytest.skip(f"built without CUDA: {_C.build_info()['cuda_reason']}")
    code = (
        "import torch, pyfold\n"
        "from pyfold.ops import OPS\n"
        "for name in sorted({r for op in OPS.values() for r in op.raw}):\n"
        "    table = torch._C._dispatch_dump(f'pyfold::{name}')\n"
        "    print(name, 'CUDA: registered' in table, 'CPU: registered' in table)\n"
        "print(pyfold.config()['cuda']['loaded'])\n"
    )
    environment = {**os.environ, "PYFOLD_LOAD_CUDA": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert out.returncode == 0, out.stderr
    *rows, loaded = out.stdout.splitlines()
    assert loaded == "True"
    assert rows == [f"{name} True True" for name in sorted({r for op in OPS.values() for r in op.raw})]


@needs_build
@pytest.mark.slow
def test_kernels_hold_their_own_tests(tmp_path):
    """The torch-free C++ tests, built and run."""
    cache = (BUILDS[0] / "CMakeCache.txt").read_text()
    torch_dir = str(Path(torch.__file__).parent)
    cmake = re.search(r"CMAKE_COMMAND:INTERNAL=(\S+)", cache)[1]
    cmake = cmake if Path(cmake).exists() else shutil.which("cmake")
    options = [f"-DPYFOLD_OUTPUT={tmp_path / 'pyfold'}", "-DPYFOLD_BUILD_TESTS=ON", "-DPYFOLD_CUDA=off"]
    options += [f"-DPYFOLD_TORCH_DIR={torch_dir}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure = subprocess.run([cmake, "-S", ROOT, "-B", tmp_path / "build", *options], capture_output=True, text=True)
    assert configure.returncode == 0, configure.stderr
    targets = ["--target", "pyfold_tests", "pyfold_driver", "--parallel", "2"]
    build = subprocess.run([cmake, "--build", tmp_path / "build", *targets], capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    run = subprocess.run([tmp_path / "build" / "pyfold_tests"], capture_output=True, text=True)
    assert run.stdout == "all hold\n"
    for tier in _C.cpu_tiers_supported():
        run = subprocess.run([tmp_path / "build" / "pyfold_driver", "all", tier, "4096"], capture_output=True, text=True)
        assert run.returncode == 0 and "randn float32\n" in run.stdout


@needs_source
@pytest.mark.slow
def test_sdist_builds_a_wheel_that_works(tmp_path):
    """Source tree -> sdist -> wheel, by pip's isolated build with the torch that is there -> a fresh environment."""
    environment = {**os.environ, "PYFOLD_CUDA": "off", "PYTHONPATH": ""}

    def run(*command, cwd=tmp_path):
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path, ROOT)
    (sdist,) = tmp_path.glob("pyfold-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    files = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    assert not [f for f in files if f.endswith((".so", ".pyc"))]
    if (ROOT / ".git").exists() and shutil.which("git"):
        tracked = run("git", "ls-files", cwd=ROOT).splitlines()
        assert [f for f in tracked if f not in files and f not in NOT_IN_SDIST] == []

    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("pyfold-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names} == {"pyfold", next(n for n in names if ".dist-info" in n).split("/")[0]}

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "lent.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")  # torch and numpy, without a copy
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel)
    out = run(python, "-c", WORKS)
    assert str(site) in out
    assert "CUDA: not built: built with PYFOLD_CUDA=off" in out
    assert run(python, "-m", "pyfold", "info").startswith("pyfold ")


def imitation_of_torch(environment):
    folder = environment / "lib/python3.12/site-packages/torch"
    for header in ("csrc/stable/library.h", "headeronly/core/TensorAccessor.h"):
        (folder / "include/torch" / header).parent.mkdir(parents=True)
        (folder / "include/torch" / header).touch()
    return folder


@needs_source
@pytest.mark.parametrize("way", ["option", "option=", "frontend", "cwd", "VIRTUAL_ENV", "PATH", "PYFOLD_TORCH_DIR", "none"])
def test_an_isolated_build_finds_torch(way, tmp_path):
    """uv and build make an environment of their own, and call the backend from it."""
    target = tmp_path / (".venv" if way == "cwd" else "target")
    torch_there = imitation_of_torch(target)
    (target / "bin").mkdir()
    (target / "bin/python").touch()
    isolated = tmp_path / "isolated"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", isolated], check=True)
    # The frontend: it runs the backend as its child, and its command line says the rest.
    query = f"import sys; sys.path.insert(0, {str(ROOT / 'build_backend')!r}); sys.base_prefix = '/nowhere'; "
    query += "import find; print(find.torch_folder())"
    frontend = f"import subprocess; subprocess.run([{str(isolated / 'bin/python')!r}, '-c', {query!r}], check=True)"
    words = {"option": ["--python", "target/bin/python"], "option=": ["--python=target/bin/python"]}.get(way, [])
    words += [target / "bin/python"] if way == "frontend" else []
    values = {"VIRTUAL_ENV": target, "PATH": target / "bin", "PYFOLD_TORCH_DIR": torch_there}
    environment = {"PATH": "/nowhere"} | ({way: str(values[way])} if way in values else {})
    command = [sys.executable, "-I", "-c", frontend, "install", *words]
    # The interpreter's own path is a word of its command line too, so it is given by another name.
    found = subprocess.run(
        ["python", *command[1:]], executable=sys.executable, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == (str(torch_there) if way != "none" else "None")


@needs_source
def test_errors_about_extras_name_a_command_that_works_here():
    """Nothing has to be on an index: the extras are those of the source tree, or of what is installed."""
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.findall(r"^(\w+) = \[", section, re.MULTILINE)
    assert _requirements.install_command("train") == f"pip install -e '{ROOT}[train]'"
    sources = "".join(p.read_text() for p in PACKAGE.rglob("*.py"))
    used = set(re.findall(r"\bneed\(\"[\w.]+\", \"(\w+)\"\)", sources)) | {"train"}
    assert used <= set(extras)
    assert "pip install 'pyfold[" not in sources.replace("pip install 'pyfold[{extra}]'", "")


@needs_build
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "fails", "message"),
    [
        (["-DPYFOLD_CUDA=maybe"], True, "PYFOLD_CUDA must be auto, on or off, got 'maybe'"),
        (["-DPYFOLD_TORCH_DIR=/nowhere"], True, "Install it first: pip install torch"),
        (["-DPYFOLD_CUDA=on", "-DPYFOLD_NVCC=/nowhere/nvcc"], True, "PYFOLD_CUDA=on, but /nowhere/nvcc does not run"),
        (["-DPYFOLD_CUDA=auto", "-DPYFOLD_NVCC=/nowhere/nvcc"], False, "without CUDA: /nowhere/nvcc does not run"),
    ],
    ids=["a wrong choice", "no torch", "no nvcc, on", "no nvcc, auto"],
)
def test_build_errors_say_what_to_do(options, fails, message, tmp_path):
    cache = (BUILDS[0] / "CMakeCache.txt").read_text()
    cmake = re.search(r"CMAKE_COMMAND:INTERNAL=(\S+)", cache)[1]
    cmake = cmake if Path(cmake).exists() else shutil.which("cmake")
    command = [cmake, "-S", ROOT, "-B", tmp_path, f"-DPython_EXECUTABLE={sys.executable}", *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode != 0) == fails, result.stderr
    assert message in " ".join((result.stdout + result.stderr).split())
    if not fails:
        assert '#define PYFOLD_CUDA_REASON "/nowhere/nvcc does not run"' in (tmp_path / "build_info.h").read_text()
