"""Ops, plans and samplers give what tests/digests notes (tests/digests.py says what that is)."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("torchsde", reason="two schedulers are placeholders without it")
pytest.importorskip("scipy", reason="one scheduler is a placeholder without it")


def test_everything_is_as_noted():
    tool = Path(__file__).with_name("digests.py")
    done = subprocess.run([sys.executable, str(tool)], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
