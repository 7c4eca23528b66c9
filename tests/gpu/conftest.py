"""Tests of the CUDA kernels on a simulated GPU; 'make test-cuda' builds it and names its folder in PYFOLD_GPU_TEST."""

import os
import sys
from pathlib import Path

if "PYFOLD_GPU_TEST" not in os.environ:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

#: The reasons of tests/gpu/reached.py are of this compiler's text; another copies lines to other places.
LINES_COUNT = os.environ.get("PYFOLD_GPU_TEST_CAPABILITY", "90") == "90"


def of_project():
    from simulator import report

    return [kernel for kernel in report() if kernel["kernel"].startswith("void pyfold::")]


def pytest_sessionfinish(session, exitstatus):
    """All tests together must reach every kernel, and every line in every kernel that has code of it; CI skips none."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter.stats.get("skipped"):
        session.exitstatus = 1
    chosen = session.config.option.keyword or session.config.option.markexpr or exitstatus
    if chosen or len([m for m in sys.modules if m in TESTS]) < len(TESTS):
        return
    from reached import lines, missed

    kernels = of_project()
    unknown = LINES_COUNT and [one for one in missed(lines(kernels)) if not one[2]]
    if [kernel for kernel in kernels if not kernel["launches"]] or unknown:
        session.exitstatus = 1


TESTS = [path.stem for path in Path(__file__).parent.glob("test_*.py")]


def pytest_terminal_summary(terminalreporter):
    """What was compared, and which kernels and lines were executed."""
    if "compared" not in sys.modules:
        return
    from compared import Compared
    from reached import lines, missed, text_of
    from simulator import launches

    kernels = of_project()
    never = [kernel["kernel"] for kernel in kernels if not kernel["launches"]]
    entered = lines([kernel for kernel in kernels if kernel["launches"]])
    say = terminalreporter.line
    terminalreporter.section("simulated GPU")
    say(f"{Compared.calls} calls compared with the CPU, {launches()} launches")
    say(f"{len(kernels) - len(never)} of {len(kernels)} kernels executed")
    say(f"{sum(entered.values())} of {len(entered)} lines executed, counted in each kernel that has them")
    for name in never:
        say(f"never executed: {name}")
    if len(never) > len(kernels) / 4:
        return  # a few tests, not all
    grouped = {}
    for source, kernel, why in missed(entered):
        grouped.setdefault((source, why), []).append(kernel)
    for (source, why), names in grouped.items():
        why = why or ("NO REASON KNOWN, which fails" if LINES_COUNT else "no reason known")
        say(f"not reached: {source} {text_of(source)!r} in {', '.join(names)}: {why}")
