"""Some of the random programs and calls of tests/fuzz.py; 'make fuzz' makes many, 'make sanitize' with ASan and UBSan."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("kind", "count"), [("programs", 1000), ("calls", 700)])
def test_nothing_crashes_hangs_or_writes_elsewhere(kind, count):
    """And every refusal of a public call names an argument, of a raw op its operand."""
    tool = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, str(tool), kind, "--count", str(count), "--seed", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
