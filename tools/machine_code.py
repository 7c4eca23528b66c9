"""Machine code of the executed path of CUDA kernels: what the simulated GPU counted in PTX, carried over to what ptxas makes
of it for each architecture.

Every PTX statement gets a line of its own (.loc), ptxas keeps it for each instruction it makes, and nvdisasm prints both. Each
basic block's count is then the flow through the kernel's graph of blocks that keeps Kirchhoff's law (what enters a block leaves
it, all threads enter the kernel) and is nearest, in the sum of absolute differences, to what the statements' counts ask for:

- an access to memory, a barrier, a vote, and an arithmetic operation that rounds is one instruction of machine code, wherever
  the assembler puts it and however often it copies it, so the copies' counts add up to the statement's;
- of any other statement the same is asked with a tenth of the weight, with as many instructions as the block with fewest has;
- where an instruction has a guard, more threads may pass it than executed the statement: a branch became a predicate, which
  takes its issue slots either way.

It is an approximation. Flow follows what the graph and these counts say, not data; where they leave a choice (an unlikely
slow path of a division, say), the way with fewer instructions is taken. A branch that only divergent warps take (BRA.DIV) is
never taken. Counts are of threads: a warp whose threads part takes more issue slots than a 32nd of them. sm_80 and sm_100 are
made from the same PTX as sm_90, that for compute_90 (the simulator's), so what nvcc would write otherwise for them is not seen.
"unexplained" is the part of what the statements ask for that the flow does not give: some code of two paths became one.

    python tools/gates.py machine_code     measure and compare with csrc/bench/machine_code.json
    python tools/gpu_model.py              the table of docs/performance.md, of what is noted, with a model of an H100
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

#: PTX that is one instruction of machine code wherever it stands, and how that begins.
ONE_TO_ONE = [
    (r"ld\.global", "LDG"),
    (r"st\.global", "STG"),
    (r"ld\.shared", "LDS"),
    (r"st\.shared", "STS"),
    (r"bar\.sync|barrier\.sync", "BAR"),
    (r"vote\.", "VOTE"),
    (r"shfl\.", "SHFL"),
    (r"(add|sub)(\.rn)?\.f32", "FADD"),
    (r"mul(\.rn)?\.f32", "FMUL"),
    (r"fma\.rn\.f32", "FFMA"),
    (r"(add|sub)(\.rn)?\.f64", "DADD"),
    (r"mul(\.rn)?\.f64", "DMUL"),
    (r"fma\.rn\.f64", "DFMA"),
]
WEAK = 0.1

#: Limits of a multiprocessor: registers, warps, blocks, bytes of shared memory (CUDA C++ Programming Guide, technical
#: specifications per compute capability), of which a block takes a KB more than it asks for.
REGISTERS, WARPS, BLOCKS = 65536, 64, 32
SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
RESERVED_SHARED = 1 << 10

#: Pipes by the first part of an opcode; what is not named goes through "alu", or, with U first, through the uniform one.
PIPES = {
    "fma": "FADD FMUL FFMA FADD2 FMUL2 FFMA2 FFMA32I FMUL32I FADD32I",
    "imad": "IMAD IMAD32I",
    "fp64": "DADD DMUL DFMA DSETP",
    "xu": "MUFU F2F I2F F2I FRND POPC FLO BREV",
    "lsu": "LDG STG LDS STS LDL STL LD ST ATOMG RED LDC SHFL",
    "control": "BRA EXIT RET CALL BRX BSSY BSYNC BREAK WARPSYNC BAR NOP VOTE VOTEU YIELD DEPBAR CS2R S2R S2UR MEMBAR",
}
PIPE_OF = {opcode: pipe for pipe, opcodes in PIPES.items() for opcode in opcodes.split()}


class Unavailable(Exception):
    """This machine lacks a tool; the message names it."""


def tool(name: str, package: str) -> str:
    """A program of the CUDA toolkit, from PATH or from pip's package."""
    places = [str(path) for path in Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin")]
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if variable in os.environ:
            places.append(f"{os.environ[variable]}/bin")
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join([*places, "/usr/local/cuda/bin"]))
    if found is None:
        raise Unavailable(f"{name} is not installed (pip install {package})")
    return found


# --- PTX


def _entry_symbol(line: str) -> str | None:
    match = re.match(r"\s*(?:\.(?:visible|weak|extern)\s+)?\.entry\s+([\w$]+)", line)
    return match[1] if match else None


def with_lines(text: str, symbols: set[str], target: str) -> str:
    """The module for another target, with these entries alone and each statement on a line that names the one it came from."""
    out: list[str] = []
    skipped = inside = within = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.startswith(".section"):
            break  # debug information of the compiler's own lines
        symbol = _entry_symbol(line)
        if symbol is not None:
            skipped = symbol not in symbols
        if skipped:
            skipped = line != "}"
            continue
        bare = line.split("//")[0].strip()
        if re.match(r"\.(loc|file)\s", bare):
            continue
        if bare.startswith(".target"):
            line = f".target {target}"
        inside = (inside or line == "{") and line != "}"
        if inside and not within and re.match(r"[@a-z]", bare):
            out.append(f".loc 1 {number} 0")
        if inside and re.match(r"[@a-z]", bare):
            within = True
        if ";" in bare:
            within = False
        out.append(line)
        if bare.startswith(".address_size"):
            out.append('.file 1 "module.ptx"')
    return "\n".join(out) + "\n"


# --- machine code


@dataclass
class Block:
    instructions: list[tuple[str, int, bool]] = field(default_factory=list)  #: opcode, line, whether it has a guard
    next: list[str] = field(default_factory=list)  #: names of blocks
    calls: list[str] = field(default_factory=list)
    ends: bool = False  #: threads may leave the kernel, or the function, here


@dataclass
class Code:
    """A kernel: its blocks by name, the first of which it enters."""

    entry: str
    blocks: dict[str, Block]
    resources: dict[str, int] = field(default_factory=dict)


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_LINE = re.compile(r'//## File "[^"]*", line (\d+)')
_ENDS = ("BRA", "BRX", "EXIT", "RET", "JMP", "JMX", "CALL")


def parse(text: str) -> dict[str, Code]:
    """{symbol: code} of what nvdisasm -g -c prints."""
    kernels: dict[str, Code] = {}
    code: Code | None = None
    block, name, line, count = Block(), "", 0, 0

    def begin(label: str) -> None:
        nonlocal block, name
        assert code is not None
        code.blocks[label] = Block()
        block, name = code.blocks[label], label

    def fall(label: str) -> None:
        """Begins a block that the one before may run into."""
        if name:
            block.next.append(label)
        begin(label)

    for row in text.split("\n"):
        if found := re.match(r"\.text\.(\S+):", row):
            code = kernels[found[1]] = Code(f"start of {found[1]}", {})
            name = ""
            begin(code.entry)
        elif row.lstrip().startswith(".section"):
            code = None
        elif code is None:
            continue
        elif found := _LINE.search(row):
            line = int(found[1])
        elif found := re.match(r"([.$\w]+):", row):
            fall(found[1])
        elif found := _INSTRUCTION.search(row):
            guard, opcode, operands = found[1], found[2], found[3] + row[found.end() :]
            block.instructions.append((opcode, line, guard is not None))
            base = opcode.split(".")[0]
            if base not in _ENDS or opcode.startswith("BRA.DIV"):
                continue
            targets = re.findall(r"`\(([.$\w]+)\)", operands) if base != "RET" else []
            if listed := re.search(r"BRANCH_TARGETS ([^\"]+)", operands):
                targets += [one.strip() for one in listed[1].split(",")]
            conditional = guard is not None or (base == "BRA" and re.match(r"\s*!?U?P\w+,", operands) is not None)
            count += 1
            after = f"after {count}"
            if base == "CALL":
                block.calls += targets
                block.next.append(after)
            else:
                block.next += targets
                block.ends = base in ("EXIT", "RET")
                if conditional:
                    block.next.append(after)
            begin(after)
    for code in kernels.values():
        for one in code.blocks.values():
            one.next = [to for to in dict.fromkeys(one.next) if to in code.blocks]
            one.calls = [to for to in one.calls if to in code.blocks]
    return kernels


def assembled(text: str, symbols: set[str], architecture: str) -> dict[str, Code]:
    """What ptxas makes of these entries of a module, with its registers and local memory."""
    ptxas, nvdisasm = tool("ptxas", "nvidia-cuda-nvcc"), tool("nvdisasm", "nvidia-cuda-nvdisasm")
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "module.ptx"), Path(folder, "module.cubin")
        ptx.write_text(with_lines(text, symbols, architecture))
        command = [ptxas, f"-arch={architecture}", "-O3", "-lineinfo", "-v", str(ptx), "-o", str(cubin)]
        ptxas_run = subprocess.run(command, capture_output=True, text=True)
        if ptxas_run.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{ptxas_run.stderr}")
        listing = subprocess.run([nvdisasm, "-g", "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    kernels = {symbol: code for symbol, code in parse(listing).items() if symbol in symbols}
    symbol = ""
    for line in ptxas_run.stderr.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)'", line):
            symbol = found[1]
        elif symbol and (found := re.search(r"(\d+) bytes stack frame", line)):
            kernels[symbol].resources["local bytes"] = int(found[1])
        elif symbol and (found := re.search(r"Used (\d+) registers", line)):
            kernels[symbol].resources["registers"] = int(found[1])
            symbol = ""
    return kernels


# --- counts of blocks


#: Blocks and their instructions, what the counts of these add up to, and whether they may add up to more.
_Evidence = tuple[tuple[tuple[str, int], ...], float, bool]


def _evidence(code: Code, lines: dict[int, int], statements: dict[int, str]) -> dict[_Evidence, float]:
    """With the weight of each."""
    by_line: dict[int, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    guarded: set[int] = set()
    for name, block in code.blocks.items():
        for opcode, line, guard in block.instructions:
            by_line[line][name][opcode] += 1
            if guard:
                guarded.add(line)
    weights: dict[_Evidence, float] = defaultdict(float)
    for line, blocks in by_line.items():
        executed = lines.get(line, 0)
        opcode = statements.get(line, "")
        prefix = next((sass for ptx, sass in ONE_TO_ONE if re.match(ptx, opcode)), None)
        of_kind = {b: sum(n for o, n in ops.items() if prefix and o.startswith(prefix)) for b, ops in blocks.items()}
        of_kind = {b: n for b, n in of_kind.items() if n}
        if of_kind:
            weights[tuple(of_kind.items()), executed, line in guarded] += 1.0
        else:
            copies = {b: ops.total() for b, ops in blocks.items()}
            weights[tuple(copies.items()), executed * min(copies.values()), line in guarded] += WEAK
    return weights


def flow(code: Code, lines: dict[int, int], statements: dict[int, str], threads: int) -> tuple[dict[str, float], float]:
    """{block: threads that entered it}, and the part of the evidence's weight that it does not meet."""
    import numpy as np
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    names = list(code.blocks)
    columns: dict[Any, int] = {name: i for i, name in enumerate(names)}
    for name, block in code.blocks.items():
        for to in block.next:
            columns[name, to] = len(columns)
        if block.ends:
            columns[name, None] = len(columns)
    rows: list[tuple[int, int, float]] = []
    right: list[float] = []
    into: dict[str, list[int]] = defaultdict(list)
    for key, column in columns.items():
        if isinstance(key, tuple) and key[1] is not None:
            into[key[1]].append(column)
    for block_name, block in code.blocks.items():
        for callee in block.calls:
            into[callee].append(columns[block_name])
    for name, block in code.blocks.items():
        rows += [(len(right), columns[name], -1.0)] + [(len(right), column, 1.0) for column in into[name]]
        right.append(-1.0 if name == code.entry else 0.0)
        leaving = [columns[name, to] for to in block.next] + ([columns[name, None]] if block.ends else [])
        if leaving:
            rows += [(len(right), columns[name], -1.0)] + [(len(right), column, 1.0) for column in leaving]
            right.append(0.0)
    evidence = _evidence(code, lines, statements)
    cost = np.zeros(len(columns) + 2 * len(evidence))
    for name, block in code.blocks.items():
        cost[columns[name]] = 1e-6 * len(block.instructions)
    for k, ((copies, total, more), weight) in enumerate(evidence.items()):
        above = len(columns) + 2 * k
        rows += [(len(right), columns[name], float(n)) for name, n in copies]
        rows += [(len(right), above, -1.0), (len(right), above + 1, 1.0)]
        right.append(total / threads)
        cost[above : above + 2] = 0.0 if more else weight, weight
    row, column, value = zip(*rows, strict=True)
    matrix = coo_array((value, (row, column)), shape=(len(right), len(cost)))
    solved = linprog(cost, A_eq=matrix.tocsr(), b_eq=right, method="highs-ds")
    if not solved.success:
        raise RuntimeError(f"the flow of {code.entry} is not found: {solved.message}")
    asked = sum(weight * total / threads for (_, total, _), weight in evidence.items())
    missed = float(cost[len(columns) :] @ solved.x[len(columns) :])
    return {name: float(solved.x[columns[name]]) * threads for name in names}, missed / asked


def occupancy(code: Code, block_threads: int, block_shared: int, architecture: str) -> float:
    """Resident warps over those that a multiprocessor has room for."""
    warps = -(-block_threads // 32)
    of_warp = -(-code.resources["registers"] * 32 // 256) * 256
    by_shared = SHARED[architecture] // (block_shared + RESERVED_SHARED)
    blocks = min(WARPS // warps, BLOCKS, REGISTERS // of_warp // warps, by_shared)
    return blocks * warps / WARPS


def measured(
    kernels: list[dict[str, Any]],
    codes: dict[str, Code],
    statements: dict[str, dict[int, str]],
    architecture: str,
    elements: int,
) -> dict[str, float]:
    """Of one workload: the kernels that it launched, as the simulator reports them."""
    pipes: Counter[str] = Counter()
    instructions = 0.0
    requests, widest = {"LDG": 0.0, "STG": 0.0}, {"LDG": 0, "STG": 0}
    missed = 0.0
    for kernel in kernels:
        code = codes[kernel["symbol"]]
        lines = {int(line): count for line, count in kernel["lines"].items()}
        counts, wrong = flow(code, lines, statements[kernel["symbol"]], kernel["threads"])
        missed = max(missed, wrong)
        for name, block in code.blocks.items():
            count = counts[name]
            if count < 0.5:
                continue
            for opcode, _, _ in block.instructions:
                base = opcode.split(".")[0]
                instructions += count
                pipes[_pipe(opcode)] += count
                if base in requests:
                    requests[base] += count / 32
                    bits = re.search(r"\.(\d+)(?:\.|$)", opcode)
                    size = int(bits[1]) // 8 if bits else 1 if re.search(r"\.[US]8", opcode) else 2 if "16" in opcode else 4
                    widest[base] = max(widest[base], size)
    found: dict[str, float] = {"SASS an element": round(instructions / elements, 2)}
    for pipe in ("fma", "imad", "alu", "fp64", "xu", "lsu"):
        found[pipe] = round(pipes[pipe] / elements, 2)
    for way, opcode in (("loads", "LDG"), ("stores", "STG")):
        sectors = sum(kernel[way]["sectors"] for kernel in kernels)
        found[f"{way}: sectors an element"] = round(sectors / elements, 4)
        found[f"{way}: distinct sectors an element"] = round(sum(k[way]["distinct"] for k in kernels) / elements, 4)
        found[f"{way}: sectors a request"] = round(sectors / requests[opcode], 2) if requests[opcode] else 0.0
        found[f"{way}: widest"] = widest[opcode]
    found["local bytes"] = max(codes[k["symbol"]].resources["local bytes"] for k in kernels)
    found["registers"] = max(codes[k["symbol"]].resources["registers"] for k in kernels)
    found["occupancy"] = min(
        round(occupancy(codes[k["symbol"]], k["block threads"], k["block shared"], architecture), 3) for k in kernels
    )
    found["unexplained"] = round(missed, 3)
    return found


def _pipe(opcode: str) -> str:
    base = opcode.split(".")[0]
    if base in PIPE_OF:
        return PIPE_OF[base]
    return "uniform" if base.startswith(("U", "R2UR")) else "alu"


def table(profile: dict[str, Any], modules: dict[str, str]) -> dict[str, Any]:
    """{architecture: {workload: {dtype: numbers}}}.

    profile: {workload: {dtype: {"elements": n, "kernels": [...]}}}; modules: {symbol: text of its PTX module}.
    """
    texts: dict[str, set[str]] = defaultdict(set)
    for symbol, text in modules.items():
        texts[text].add(symbol)
    statements: dict[str, dict[int, str]] = {}
    for text, symbols in texts.items():
        opcodes = {}
        for number, line in enumerate(text.split("\n"), 1):
            if found := re.match(r"\s*\{?\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)", line):
                opcodes[number] = found[1]
        statements |= dict.fromkeys(symbols, opcodes)
    result: dict[str, Any] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = {a: [pool.submit(assembled, text, symbols, a) for text, symbols in texts.items()] for a in ARCHITECTURES}
    for architecture in ARCHITECTURES:
        codes = {symbol: code for job in jobs[architecture] for symbol, code in job.result().items()}
        for workload, dtypes in profile.items():
            for dtype, one in dtypes.items():
                row = measured(one["kernels"], codes, statements, architecture, one["elements"])
                result.setdefault(architecture, {}).setdefault(workload, {})[dtype] = row
    return result
