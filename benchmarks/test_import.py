"""What ``import pyfold`` adds to ``import torch``, from byte code as an installed package has it."""

import os
import subprocess
import sys

CODE = "import torch, time; t = time.perf_counter(); import pyfold; print(time.perf_counter() - t)"


def test_import(benchmark, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)

    def run():
        return float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment).stdout)

    run()
    seconds = sorted(run() for _ in range(5))[2]
    benchmark.extra_info["import pyfold, beyond torch, ms"] = round(1000 * seconds, 1)
    benchmark.pedantic(run, rounds=1)
    assert seconds < 0.1
