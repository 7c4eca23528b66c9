"""Tests of the CUDA kernels on a simulated GPU; 'make test-cuda' builds it and names its folder in PYFOLD_GPU_TEST."""

import os
import sys
from pathlib import Path

if "PYFOLD_GPU_TEST" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))


def pytest_terminal_summary(terminalreporter):
    """What was compared, and which kernels and basic blocks were executed."""
    if "compared" not in sys.modules:
        return
    from compared import Compared
    from simulator import launches, report

    kernels = [kernel for kernel in report() if kernel["kernel"].startswith("void pyfold::")]
    blocks = {}
    for kernel in kernels:
        for block in kernel["blocks"]:
            # A function that several kernels call counts once.
            owner = kernel["kernel"] if block["function"] == kernel["kernel"] else ""
            key = owner, block["function"], block["label"]
            blocks[key] = blocks.get(key, 0) + block["entered"]
    never = [kernel["kernel"] for kernel in kernels if not kernel["launches"]]
    terminalreporter.section("simulated GPU")
    terminalreporter.line(f"{Compared.calls} calls compared with the CPU, {launches()} launches")
    terminalreporter.line(f"{len(kernels) - len(never)} of {len(kernels)} kernels executed")
    terminalreporter.line(f"{sum(map(bool, blocks.values()))} of {len(blocks)} basic blocks executed")
    for name in never:
        terminalreporter.line(f"never executed: {name}")
