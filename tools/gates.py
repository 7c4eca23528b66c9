"""Gates on speed that no noisy machine can blur: counts instead of times.

- instructions: instructions for each element of every CPU kernel, dtype and instruction set, by callgrind on the torch-free
  driver (csrc/bench/driver.cpp). Baseline and AVX2; valgrind cannot run AVX-512.
- steps: the same for AVX-512, counted by single steps of the processor: half a minute.
- resources: registers, spills and stack of every CUDA kernel and architecture, as ptxas said them during the build.
- executed: PTX instructions an element of the CUDA kernels' executed path, and how they reach memory, counted by the simulated
  GPU (tests/gpu/workloads.py) on what 'make test-cuda' or 'make test-cuda-all' built.
- machine_code: the same path in the machine code of each architecture (tools/machine_code.py).
- memory: bytes that every op keeps for backward, and the allocations of forward and backward.

Each is compared with what csrc/bench/*.json notes for the same tools. More than 2 % above is a kernel that became slower; more
than 2 % below is a gain that must be noted, or it could be lost again in silence.

    python tools/gates.py               measure and compare
    python tools/gates.py --update      measure and note (make gates-update); review the difference as any other change
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine_code
from machine_code import Unavailable

ROOT = Path(__file__).resolve().parents[1]
NOTES = ROOT / "csrc" / "bench"
LIBRARY = ROOT / "pyfold" / "_lib" / "libpyfold_kernels.so"
TOLERANCE = 0.02
#: Elements of one run: whole tiles, and enough of them that a call's own cost is little.
ELEMENTS = 16384
#: The same for single steps, which are slow.
STEPPED_ELEMENTS = 1024
#: The op's shape for the memory gate.
SHAPE = (4, 16, 16, 16)


#: Names to numbers, or to such trees.
Tree = dict[str, Any]


def _run(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{result.stdout}{result.stderr}")
    return result


# --- instructions of CPU kernels


def compile_driver(work: Path, library: Path = LIBRARY) -> Path:
    """csrc/bench/driver.cpp, linked to a build of the kernels."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        raise Unavailable("no C++ compiler (c++, or $CXX)")
    driver = work / "driver"
    command = [compiler, "-std=c++20", "-O2", f"-I{ROOT / 'csrc'}", NOTES / "driver.cpp", "-o", driver]
    _run([*command, f"-L{library.parent}", "-lpyfold_kernels", f"-Wl,-rpath,{library.parent}"])
    return driver


def _tiers(library: Path) -> list[str]:
    if not library.exists():
        raise Unavailable(f"{library} is not built")
    from pyfold import _C

    tiers: list[str] = _C.cpu_tiers_supported()
    return tiers


def _found(pattern: str, text: str) -> str:
    """What the first group of a pattern matches in a line of the text."""
    match = re.search(pattern, text, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{pattern!r} is not in:\n{text}")
    return match[1]


def _bound() -> dict[str, str]:
    """The environment with symbols bound at once: a first call's search for one is not the kernel's."""
    return {**os.environ, "LD_BIND_NOW": "1"}


def measure_instructions(library: Path = LIBRARY, kernel: str = "all") -> Tree:
    """{tier: {kernel: {dtype: instructions for each element}}}."""
    if shutil.which("valgrind") is None:
        raise Unavailable("valgrind is not installed")
    counts: Tree = {}
    for tier in _tiers(library):
        if tier == "avx512":
            continue
        with tempfile.TemporaryDirectory() as folder:
            driver = compile_driver(Path(folder), library)
            options = ["--tool=callgrind", "--dump-before=pyfold_mark", f"--callgrind-out-file={folder}/out"]
            run = _run(["valgrind", *options, driver, kernel, tier, ELEMENTS], env=_bound())
            for i, name in enumerate(run.stdout.splitlines()):
                # Dump 1 ends where the first run begins.
                dump = Path(folder, f"out.{i + 2}").read_text()
                total = int(_found(r"^totals: (\d+)$", dump))
                kernel_name, dtype = name.split()
                counts.setdefault(tier, {}).setdefault(kernel_name, {})[dtype] = round(total / ELEMENTS, 3)
    return counts


def measure_steps(library: Path = LIBRARY, kernel: str = "all") -> Tree:
    """{"avx512 on a family of processors": {kernel: {dtype: instructions for each element}}}.

    The family counts because the C library chooses its copies by it.
    """
    if "avx512" not in _tiers(library):
        raise Unavailable("this machine has no AVX-512")
    about = Path("/proc/cpuinfo").read_text()
    vendor, family = (_found(rf"^{key}\s*: (.+)$", about) for key in ("vendor_id", "cpu family"))
    counts: Tree = {}
    with tempfile.TemporaryDirectory() as folder:
        driver = compile_driver(Path(folder), library)
        command = [str(c) for c in (driver, kernel, "avx512", STEPPED_ELEMENTS, "stepped")]
        run = subprocess.run(command, capture_output=True, text=True, env=_bound())
        if run.returncode == 3:
            raise Unavailable(run.stderr.strip())
        if run.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{run.stdout}{run.stderr}")
        for line in run.stdout.splitlines():
            kernel_name, dtype, total = line.split()
            counts.setdefault(kernel_name, {})[dtype] = round(int(total) / STEPPED_ELEMENTS, 3)
    return {f"avx512 on {vendor} {family}": counts}


def instructions_made_by() -> str:
    """The compiler of the kernels, and the C library whose fma the baseline calls."""
    from pyfold import _C

    return f"{_C.build_info()['compiler']}, {' '.join(platform.libc_ver())}, {platform.machine()}"


# --- resources of CUDA kernels


def builds() -> list[Path]:
    """The folders that built the package in use: not those of sanitizers, simulated GPUs or other processors."""
    found = []
    for commands in sorted(ROOT.glob("build/*/compile_commands.json")):
        cache = (commands.parent / "CMakeCache.txt").read_text()
        output = re.search(r"^PYFOLD_OUTPUT:\w+=(.+)$", cache, re.MULTILINE)
        if output and Path(output[1]).resolve() == ROOT / "pyfold":
            found.append(commands.parent)
    return found


def build_folder() -> Path:
    """The newest build of this tree that compiled CUDA."""
    logs = sorted((log for build in builds() for log in build.glob("cuda_*.ptxas")), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise Unavailable("no build folder with CUDA kernels (nvcc was missing at build time, or nothing was built)")
    return logs[-1].parent


def parse_resources(text: str) -> Tree:
    """{architecture: {kernel: {registers, stack, spills}}} of what ptxas -v writes."""
    if shutil.which("c++filt") is None:
        raise Unavailable("c++filt (binutils) is not installed")
    resources: Tree = {}
    entry = None
    for line in _run(["c++filt"], input=text).stdout.splitlines():
        if found := re.search(r"Compiling entry function '(?:void )?(.*?)' for '(\w+)'", line):
            name = re.sub(r"pyfold::|cuda::|\(anonymous namespace\)::", "", found[1])
            entry = resources.setdefault(found[2], {}).setdefault(name.split("(")[0], {})
        elif entry is not None and "stack" not in entry and (found := re.search(r"(\d+) bytes stack frame", line)):
            spills = sum(map(int, re.findall(r"(\d+) bytes spill", line)))
            entry |= {"stack": int(found[1]), "spills": spills}
        elif entry is not None and (found := re.search(r"Used (\d+) registers", line)):
            entry["registers"] = int(found[1])
            entry = None
    if not resources or any(len(e) != 3 for kernels in resources.values() for e in kernels.values()):
        raise RuntimeError("what ptxas wrote is not understood")
    return resources


def measure_resources(build: Path | None = None) -> Tree:
    merged: Tree = {}
    for log in sorted((build or build_folder()).glob("cuda_*.ptxas")):
        for arch, kernels in parse_resources(log.read_text()).items():
            merged.setdefault(arch, {}).update(kernels)
    return {arch: dict(sorted(kernels.items())) for arch, kernels in sorted(merged.items())}


def resources_made_by() -> str:
    from pyfold import _C

    return f"nvcc {_C.build_info()['nvcc']}"


# --- what CUDA kernels execute


def _of_gpu_test(variable: str) -> tuple[Path, str]:
    """The newest build with the simulated GPU, and a variable of its configuration."""
    built = sorted(ROOT.glob("build/*/libpyfold_gpu_test.so"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise Unavailable("no build folder with the simulated GPU ('make test-cuda' builds it)")
    return built[-1].parent, _found(rf"^{variable}:\w+=(.*)$", (built[-1].parent / "CMakeCache.txt").read_text())


@functools.cache
def _workloads(folder: Path, capability: str) -> Tree:
    """What tests/gpu/workloads.py counts."""
    environment = {**os.environ, "PYFOLD_GPU_TEST": str(folder), "PYFOLD_GPU_TEST_CAPABILITY": capability}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    found: Tree = json.loads(_run([sys.executable, ROOT / "tests" / "gpu" / "workloads.py"], env=environment).stdout)
    return found


def measure_executed() -> Tree:
    """{capability: {workload: {dtype: {what: count}}}}."""
    folder, capabilities = _of_gpu_test("PYFOLD_GPU_TEST_ARCHS")
    return {f"compute_{c}": _workloads(folder, c)["counts"] for c in capabilities.split(";")}


def measure_machine_code(workloads: list[str] | None = None, slower: Callable[[str], str] = lambda text: text) -> Tree:
    """{architecture: {workload: {dtype: {what: count}}}}, of compute_90's PTX; slower: changes lines of its text."""
    folder, capabilities = _of_gpu_test("PYFOLD_GPU_TEST_ARCHS")
    if "90" not in capabilities.split(";"):
        raise Unavailable("the simulated GPU was built without compute_90")
    found = _workloads(folder, "90")
    profile = {name: of for name, of in found["profile"].items() if workloads is None or name in workloads}
    launched = {kernel["symbol"] for of in profile.values() for one in of.values() for kernel in one["kernels"]}
    return machine_code.table(profile, {symbol: slower(found["texts"][found["modules"][symbol]]) for symbol in launched})


def executed_made_by() -> str:
    _, nvcc = _of_gpu_test("PYFOLD_NVCC")
    return f"nvcc {_found(r'release ([0-9.]+)', _run([nvcc, '--version']).stdout)}"


# --- memory of ops


def _bytes_kept(call: Callable[[], Any], arguments: Any) -> dict[str, int]:
    """Bytes that autograd keeps for backward: all of them, and those that are not the arguments' own memory."""
    import torch

    given = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return {"kept": sum(kept.values()), "kept of its own": sum(n for at, n in kept.items() if at not in given)}


def measure_op_memory(op: Any, variant: str) -> Tree:
    import torch

    from pyfold.bench.memory import allocations

    generator = torch.Generator().manual_seed(0)
    sample = op.sample(SHAPE, torch.float32, torch.device("cpu"), generator, **op.variants[variant])
    if sample is None:  # not of this shape
        return {}
    leaves = []
    for name in op.differentiable:
        value = sample.get(name)
        leaves += [t.requires_grad_() for t in (value if isinstance(value, list) else [value]) if isinstance(t, torch.Tensor)]
    results: list[Any] = []

    def forward() -> None:
        results.append(op.public(**sample))

    def backward() -> None:
        output = results.pop()
        output = output[0] if isinstance(output, tuple) else output
        torch.autograd.grad(output, leaves, torch.ones_like(output), allow_unused=True)

    def without_gradient() -> None:
        with torch.no_grad():
            op.public(**sample)

    without_gradient()
    phases = {"forward": without_gradient}
    if leaves:
        forward()
        backward()
        phases |= {"forward with gradient": forward, "backward": backward}
    measured: Tree = {}
    for name, changes in allocations(phases).items():
        sizes = [size for size in changes if size > 0]
        measured |= {f"{name}: allocations": len(sizes), f"{name}: bytes": sum(sizes)}
    if leaves:
        measured |= _bytes_kept(lambda: op.public(**sample), sample)
    return measured


def measure_memory() -> Tree:
    """{op: {variant: {what: count or bytes}}} for float32 of shape SHAPE."""
    from pyfold.ops import OPS

    return {name: {variant: measure_op_memory(op, variant) for variant in op.variants} for name, op in OPS.items()}


def memory_made_by() -> str:
    import torch

    return f"torch {torch.__version__.split('+')[0]}"


# --- notes and comparison

#: gate -> (its file, what measures it, what the numbers depend on)
GATES: dict[str, tuple[Path, Callable[[], Tree], Callable[[], str]]] = {
    "instructions": (NOTES / "instructions.json", measure_instructions, instructions_made_by),
    "steps": (NOTES / "steps.json", measure_steps, instructions_made_by),
    "resources": (NOTES / "resources.json", measure_resources, resources_made_by),
    "executed": (NOTES / "executed.json", measure_executed, executed_made_by),
    "machine_code": (NOTES / "machine_code.json", measure_machine_code, executed_made_by),
    "memory": (NOTES / "memory.json", measure_memory, memory_made_by),
}


def _leaves(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def compare(noted: Tree, measured: Tree, tolerance: float = TOLERANCE) -> list[str]:
    """What differs by more than the tolerance, one line each; nothing where all is as noted.

    A group at the top (an instruction set, an architecture) that only one side has is left out: a machine without it cannot
    measure it. A kernel or an op that only one side has is named.
    """
    groups = [g for g in noted if g in measured]
    before = dict(_leaves({g: noted[g] for g in groups}))
    now = dict(_leaves({g: measured[g] for g in groups}))
    complaints = []
    for path in sorted(before.keys() | now.keys()):
        name = " / ".join(path)
        if path not in now:
            complaints.append(f"{name}: noted, but no longer there")
        elif path not in before:
            complaints.append(f"{name}: {now[path]:g}, not noted yet")
        elif now[path] > before[path] * (1 + tolerance):
            complaints.append(f"{name}: {now[path]:g}, above the noted {before[path]:g}")
        elif now[path] < before[path] * (1 - tolerance):
            complaints.append(f"{name}: {now[path]:g}, a gain over the noted {before[path]:g} to be noted")
    return complaints


def read_notes(gate: str) -> Tree:
    """What the gate's file notes for the tools that are here."""
    path, _, made_by = GATES[gate]
    notes = json.loads(path.read_text()) if path.exists() else {}
    if made_by() not in notes:
        noted_for = ", ".join(notes) or "none"
        raise Unavailable(f"{path.name} notes nothing for {made_by()} (only for: {noted_for}); 'make gates-update' notes it")
    noted: Tree = notes[made_by()]
    return noted


def check(gate: str) -> list[str]:
    """Complaints of one gate; raises Unavailable where it cannot be measured or has nothing to compare with."""
    noted = read_notes(gate)
    measured = GATES[gate][1]()
    if not set(noted) & set(measured):
        raise Unavailable(f"{GATES[gate][0].name} notes {', '.join(noted)}, and here there is {', '.join(measured)}")
    return compare(noted, measured)


def update(gate: str) -> Path:
    """Notes what is measured here, beside what other tools gave, and beside groups that cannot be measured here."""
    path, measure, made_by = GATES[gate]
    measured = measure()
    notes = json.loads(path.read_text()) if path.exists() else {}
    notes[made_by()] = {**notes.get(made_by(), {}), **measured}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(_readable(notes) + "\n")
    temporary.replace(path)
    return path


def _readable(tree: Any, indent: int = 0) -> str:
    """JSON with one line for each innermost object, so that a change is a line of a diff."""
    if not isinstance(tree, dict) or not any(isinstance(value, dict) for value in tree.values()):
        return json.dumps(tree)
    inner = ",\n".join(f"{' ' * (indent + 2)}{json.dumps(k)}: {_readable(v, indent + 2)}" for k, v in tree.items())
    return "{\n" + inner + "\n" + " " * indent + "}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gates", nargs="*", metavar="GATE", help=f"of: {', '.join(GATES)} (default: all)")
    parser.add_argument("--update", action="store_true", help="note what is measured instead of comparing")
    parser.add_argument(
        "--build", type=Path, metavar="DIR", help="read the CUDA kernels of this build folder, as of one for all architectures"
    )
    arguments = parser.parse_args()
    if arguments.build:
        path, _, made_by = GATES["resources"]
        GATES["resources"] = path, lambda: measure_resources(arguments.build), made_by
    if unknown := set(arguments.gates) - set(GATES):
        parser.error(f"no gate is named {', '.join(sorted(unknown))}; there are: {', '.join(GATES)}")
    failed = False
    for gate in arguments.gates or GATES:
        try:
            if arguments.update:
                print(f"{gate}: noted in {update(gate).relative_to(ROOT)}")
                continue
            complaints = check(gate)
        except Unavailable as reason:
            print(f"{gate}: not checked: {reason}")
            # What CI names must be measured there.
            failed |= gate in arguments.gates and os.environ.get("CI") == "true"
            continue
        failed |= bool(complaints)
        print(f"{gate}: {'as noted' if not complaints else f'{len(complaints)} differ from {GATES[gate][0].name}'}")
        for complaint in complaints:
            print(f"  {complaint}")
    return int(failed)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
