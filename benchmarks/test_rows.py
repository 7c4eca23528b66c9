"""Every row of pyfold.bench; a row that falls below its floor against eager PyTorch, a wide margin, fails."""

import torch

from pyfold import bench


def test_row(benchmark, request, results, row, setting):
    case = row.build(setting)
    measured = bench.measure(row, setting, request.config.getoption("--budget"), case)
    results.append(measured)
    benchmark.extra_info.update(measured.as_json())
    with torch.enable_grad() if case.grad else torch.no_grad():
        benchmark.pedantic(case.forms["pyfold"], rounds=3, iterations=1)
    assert not measured.below_floor, (
        f"eager takes {measured.ratios['eager']:.2f} times as long, at least {measured.floor} is due"
    )
