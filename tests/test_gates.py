"""Counts that say whether a kernel became slower (tools/gates.py), and that each gate notices it when one does."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gates
from pyfold import _C
from pyfold.ops import OPS

BUILDS = gates.builds()


def or_skip(function, *arguments):
    try:
        return function(*arguments)
    except gates.Unavailable as reason:
        pytest.skip(str(reason))


SLOW = {"steps": [pytest.mark.slow], "machine_code": [pytest.mark.slow]}


@pytest.mark.parametrize("gate", [pytest.param(gate, marks=SLOW.get(gate, [])) for gate in gates.GATES])
def test_nothing_became_slower(gate):
    complaints = or_skip(gates.check, gate)
    assert not complaints, "\n".join([*complaints, "where this is meant, note it: make gates-update"])


def test_every_cpu_kernel_has_its_instructions_counted():
    """Every entry of the kernel tables is called by the driver."""
    driver = (gates.NOTES / "driver.cpp").read_text()
    for header in (gates.ROOT / "csrc" / "cpu").glob("*.h"):
        for name in re.findall(r"^\s+void \(\*(\w+)\)\(", header.read_text(), re.M):
            assert re.search(rf"kernels(\(\))?\.{name}\b", driver), f"{name} of {header.name} is not in csrc/bench/driver.cpp"


@pytest.mark.parametrize("measure", [gates.measure_instructions, gates.measure_steps])
def test_counts_are_the_same_twice(measure):
    first, second = (or_skip(measure, gates.LIBRARY, "step_ddpm") for _ in range(2))
    assert first == second
    assert all(count > 1 for _, count in gates._leaves(first))


def test_steps_count_instructions(tmp_path):
    """Where valgrind can count too, single steps give the same but for a call's own few."""
    counted = or_skip(gates.measure_instructions, gates.LIBRARY, "randn")
    tier = "avx2" if "avx2" in counted else next(iter(counted))
    driver = gates.compile_driver(tmp_path)
    run = subprocess.run([driver, "randn", tier, "4096", "stepped"], capture_output=True, text=True, env=gates._bound())
    if run.returncode == 3:
        pytest.skip(run.stderr)
    for line in run.stdout.splitlines():
        kernel, dtype, steps = line.split()
        assert int(steps) / 4096 == pytest.approx(counted[tier][kernel][dtype], rel=0.04)
    assert run.stdout.count("\n") == 2


def slowed_source(folder, path, before, after):
    """A copy of csrc in which one kernel does work that it need not."""
    source = folder / "csrc"
    shutil.copytree(gates.ROOT / "csrc", source)
    text = (source / path).read_text()
    assert text.count(before) == 1, f"{before!r} is no longer in csrc/{path}"
    (source / path).write_text(text.replace(before, after))
    return source


@pytest.mark.skipif(not BUILDS, reason="needs the build folder of this source tree")
def test_a_slower_cpu_kernel_is_noticed(tmp_path):
    """randn that draws its noise twice, compiled with the build's own command and linked in the place of the true one."""
    noted = or_skip(gates.read_notes, "instructions")
    tier = next(t for t in _C.cpu_tiers_supported() if t in noted and (t != "baseline" or len(noted) == 1))
    draw = "tile.write(args.out, z, Noise{args.noise});"
    read = 'asm volatile("" : : "r"(z.data) : "memory");'  # else the compiler could drop the first
    source = slowed_source(tmp_path, "diffusion/randn.h", draw, f"{draw}\n  {read}\n  {draw}")
    commands = json.loads((BUILDS[0] / "compile_commands.json").read_text())
    (entry,) = [c for c in commands if c["file"].endswith("cpu/diffusion.cpp") and f"PYFOLD_TIER={tier} " in c["command"]]
    command = entry["command"].replace(f"{gates.ROOT}/csrc", str(source))
    slowed = tmp_path / "diffusion.o"
    command = re.sub(r" -o \S+ ", f" -o {slowed} ", command)
    subprocess.run(command, shell=True, cwd=entry["directory"], check=True)
    true_object = Path(entry["directory"], re.search(r" -o (\S+) ", entry["command"])[1])
    objects = [o for o in BUILDS[0].glob("CMakeFiles/pyfold_cpu_*.dir/**/*.o") if o != true_object]
    objects += BUILDS[0].glob("CMakeFiles/pyfold_kernels.dir/**/*.o")
    library = tmp_path / gates.LIBRARY.name
    compiler = entry["command"].split()[0]
    subprocess.run([compiler, "-shared", *objects, slowed, "-o", library], check=True)

    complaints = gates.compare({tier: noted[tier]}, gates.measure_instructions(library))
    # Other programs of that file may be compiled otherwise beside it; randn is above in every dtype.
    of_randn = [c for c in complaints if c.startswith(f"{tier} / randn / ")]
    assert len(of_randn) == len(noted[tier]["randn"]), complaints
    assert all("above the noted" in c for c in of_randn)


def test_a_cuda_kernel_of_more_registers_is_noticed(tmp_path):
    """randn that holds its numbers in an array it looks into at a place known only at run time, by nvcc."""
    noted, build = or_skip(gates.read_notes, "resources"), or_skip(gates.build_folder)
    nvcc = re.search(r"^PYFOLD_NVCC:\w+=(.+)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE)[1]
    arch = next(iter(noted))
    write = "tile.write(args.out, z, Noise{args.noise});"
    slower = "float held[64];\n  for (int i = 0; i < 64; ++i) held[i] = static_cast<float>(args.noise.step * i);\n"
    slower += "  typename Tile::Register scaled;\n  tile.load(z, Noise{args.noise});\n"
    slower += "  tile.write(args.out, scaled, held[args.noise.step % 64] * z);"
    source = slowed_source(tmp_path, "diffusion/randn.h", write, slower)
    flags = re.search(r"set\(nvcc_flags (.*?)\)", (gates.ROOT / "cmake" / "cuda.cmake").read_text())[1].split()
    command = [sys.executable, gates.ROOT / "cmake" / "nvcc.py", tmp_path / "cuda_diffusion.ptxas", nvcc, *flags]
    command += [f"-arch={arch}", f"-I{source}", "-cubin", source / "cuda" / "diffusion.cu", "-o", tmp_path / "diffusion.cubin"]
    subprocess.run([str(c) for c in command], check=True)

    measured = gates.measure_resources(tmp_path)[arch]
    complaints = gates.compare({arch: {name: noted[arch][name] for name in measured}}, {arch: measured})
    stack = f"{arch} / pack_kernel<Randn> / stack: "
    assert any(c.startswith(stack) and "above the noted" in c for c in complaints)
    assert all("kernel<Randn" in c for c in complaints), complaints


def split_stores(text):
    """PTX whose packed stores of four words are four stores, each on its line: what an assembler may make of plain ones."""
    form = r"st\.global\.wb\.v4\.\w+ \[(%rd\d+)(?:\+(\d+))?\], \{(.*?)\};"

    def four(store):
        base, offset, words = store.groups()
        return " ".join(
            f"st.global.b32 [{base}+{int(offset or 0) + 4 * k}], {word};" for k, word in enumerate(re.split(r",\s*", words))
        )

    text, count = re.subn(form, four, text)
    assert count > 0, "no packed store is in the PTX"
    return text


@pytest.mark.slow
def test_split_stores_are_noticed_in_machine_code():
    noted = or_skip(gates.read_notes, "machine_code")
    for name in ("abs, maps",):
        measured = or_skip(gates.measure_machine_code, [name], split_stores)
        assert set(measured) == set(gates.machine_code.ARCHITECTURES)
        for arch in measured:
            complaints = gates.compare({arch: {name: noted[arch][name]}}, {arch: measured[arch]})
            for dtype in ("float32", "bfloat16"):
                above = [c for c in complaints if "above the noted" in c and f"{arch} / {name} / {dtype}" in c]
                assert any("SASS an element" in c for c in above), complaints
                assert f"{arch} / {name} / {dtype} / stores: widest: 4, a gain over the noted 16 to be noted" in complaints


def test_flow_keeps_kirchhoffs_law():
    """Ten rounds of a loop, unrolled by two: what lines counted is shared by the copies, and a branch may become a guard."""
    machine_code = gates.machine_code
    listing = """
.text.kernel:
        //## File "module.ptx", line 1
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        //## File "module.ptx", line 2
        /*0010*/                   FADD R1, R1, R2 ;
        //## File "module.ptx", line 2
        /*0020*/                   FADD R1, R1, R2 ;
        //## File "module.ptx", line 3
        /*0030*/               @P1 FMUL R1, R1, R3 ;
        //## File "module.ptx", line 4
        /*0040*/               @P0 BRA `(.L_x_0) ;
        //## File "module.ptx", line 5
        /*0050*/              @!P2 BRA `(.L_x_1) ;
        //## File "module.ptx", line 6
        /*0060*/                   STG.E.128 desc[UR4][R4.64], R8 ;
.L_x_1:
        /*0070*/                   EXIT ;
"""
    (code,) = machine_code.parse(listing).values()
    statements = {1: "mov.u32", 2: "add.f32", 3: "mul.f32", 4: "bra", 5: "bra", 6: "st.global.v4.u32"}
    counts, unexplained = machine_code.flow(code, {1: 64, 2: 640, 3: 8, 4: 320, 5: 64, 6: 16}, statements, 64)
    stores = next(name for name, block in code.blocks.items() if any(o.startswith("STG") for o, _, _ in block.instructions))
    assert (
        counts[".L_x_0"] == pytest.approx(320) and counts[stores] == pytest.approx(16) and counts[".L_x_1"] == pytest.approx(64)
    )
    assert unexplained == pytest.approx(0)


class Hoarder(torch.autograd.Function):
    """abs as a fold has it, but for its memory: it keeps its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.abs()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.where(x < 0, -grad, grad)


def test_an_op_that_keeps_its_input_is_noticed():
    import dataclasses

    noted = or_skip(gates.read_notes, "memory")["fold"]["abs"]
    hoarder = dataclasses.replace(OPS["fold"], public=lambda x, kind: Hoarder.apply(x))
    measured = gates.measure_op_memory(hoarder, "abs")
    complaints = gates.compare({"fold": {"abs": noted}}, {"fold": {"abs": measured}})
    assert any(c.startswith("fold / abs / kept: 65536, above the noted 2048") for c in complaints), complaints
    assert any(c.startswith("fold / abs / backward: allocations: ") and "above" in c for c in complaints), complaints


def test_comparison_names_what_differs():
    noted = {"avx2": {"randn": {"float32": 10.0}, "gone": {"float32": 1.0}}, "neon": {"randn": {"float32": 9.0}}}
    same = {"avx2": {"randn": {"float32": 10.1}, "gone": {"float32": 1.0}}}
    assert gates.compare(noted, same) == []
    other = {"avx2": {"randn": {"float32": 10.3}, "new": {"float32": 2.0}}}
    assert gates.compare(noted, other) == [
        "avx2 / gone / float32: noted, but no longer there",
        "avx2 / new / float32: 2, not noted yet",
        "avx2 / randn / float32: 10.3, above the noted 10",
    ]
    faster = {"avx2": {"randn": {"float32": 9.0}, "gone": {"float32": 1.0}}}
    assert gates.compare(noted, faster) == ["avx2 / randn / float32: 9, a gain over the noted 10 to be noted"]
    assert gates.compare({"a": {"k": {"spills": 0}}}, {"a": {"k": {"spills": 8}}})


def test_another_compiler_is_no_failure(tmp_path, monkeypatch):
    """It has notes of its own, or none, and then the gate says so."""
    _, measure, _ = gates.GATES["instructions"]
    path = tmp_path / "instructions.json"
    path.write_text(json.dumps({"Clang 99": {"avx2": {"randn": {"float32": 1.0}}}}))
    monkeypatch.setitem(gates.GATES, "instructions", (path, measure, lambda: "GNU 12"))
    with pytest.raises(gates.Unavailable, match=r"notes nothing for GNU 12 \(only for: Clang 99\); 'make gates-update'"):
        gates.check("instructions")
    monkeypatch.setitem(gates.GATES, "instructions", (path, lambda: {"avx2": {"randn": {"float32": 2.0}}}, lambda: "GNU 12"))
    gates.update("instructions")
    assert gates.check("instructions") == []
    assert set(json.loads(path.read_text())) == {"Clang 99", "GNU 12"}


def test_what_ptxas_says_is_understood():
    text = (
        "ptxas info    : 0 bytes gmem\n"
        "ptxas info    : Compiling entry function '_Z5scalePfi' for 'sm_90'\n"
        "ptxas info    : Function properties for _Z5scalePfi\n"
        "    24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 40 registers, used 1 barriers, 24 bytes cumulative stack size\n"
    )
    assert or_skip(gates.parse_resources, text) == {"sm_90": {"scale": {"stack": 24, "spills": 20, "registers": 40}}}
    with pytest.raises(RuntimeError, match="not understood"):
        gates.parse_resources("ptxas info : something else\n")
