"""Import and configuration: quiet, quick, and honest about what is in use."""

import os
import subprocess
import sys

import pytest

import pyfold
from pyfold import _C


def run(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})


def test_show_config(capsys):
    assert pyfold.show_config() is None
    out = capsys.readouterr().out
    facts = pyfold.config()
    for expected in (facts["pyfold"], facts["torch"], f"{facts['cpu']['in_use']} in use", "CUDA:", "libpyfold_ops.so"):
        assert expected in out
    assert facts["cuda"]["usable"] or facts["cuda"]["reason"]
    assert set(facts["cpu"]["supported"]) <= set(facts["cpu"]["built"])


def test_import_says_nothing_and_starts_nothing():
    heavy = "('sklearn', 'tqdm', 'tensorboard', 'diffusers', 'PIL', 'matplotlib')"
    code = "import sys, torch; before = set(sys.modules); import pyfold; new = set(sys.modules) - before; "
    result = run(code + f"print(*[m for m in {heavy} if m in new])")
    assert result.stdout.strip() == ""
    assert result.stderr == ""


def test_import_adds_little_to_torch():
    """What makes an import slow, counted: modules beyond torch's own. benchmarks/test_import.py has the milliseconds."""
    code = "import sys, torch; before = set(sys.modules); import pyfold; "
    result = run(code + "print(*{m for m in sys.modules if m not in before and not m.startswith('pyfold')})")
    foreign = {name.split(".")[0] for name in result.stdout.split()}
    assert foreign <= {"numpy"}
    assert len(result.stdout.split()) < 20


@pytest.mark.parametrize("tier", _C.cpu_tiers_supported())
def test_the_environment_chooses_the_instruction_set(tier):
    result = run("import pyfold; print(pyfold.config()['cpu']['in_use'])", PYFOLD_CPU_CAPABILITY=tier)
    assert result.stdout.strip() == tier


def test_an_instruction_set_that_is_not_there():
    result = run("import pyfold", PYFOLD_CPU_CAPABILITY="sse9")
    assert result.returncode != 0
    assert "ImportError: pyfold: PYFOLD_CPU_CAPABILITY is 'sse9', but this build on this machine can run" in result.stderr
    with pytest.raises(ValueError, match="'mmx'.*can run"):
        _C.set_cpu_tier("mmx")


def test_numpy_bindings_check_their_arguments():
    import numpy as np

    with pytest.raises(ValueError, match="counter"):
        _C.philox4x32(np.zeros((2, 3), np.uint32), np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match="count"):
        _C.normals(0, 0, 0, -1)
