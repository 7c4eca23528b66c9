"""Import and configuration: quiet, quick, and honest about what is in use."""

import os
import subprocess
import sys

import pytest
import torch

import pyfold
from pyfold import _C, _library


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


@pytest.mark.parametrize(
    ("capability", "code", "runs"),
    [
        ((8, 0), "sm_80;sm_90;compute_90", True),
        ((8, 9), "sm_80;sm_90;compute_90", True),  # machine code of the same major version
        ((12, 0), "sm_80;sm_90;compute_90", True),  # PTX
        ((10, 0), "sm_120;compute_120", False),
        ((7, 5), "sm_80;sm_90;compute_90", False),
        ((8, 0), "sm_86;compute_86", False),
        ((7, 5), "sm_75;sm_80;compute_120", True),
    ],
)
def test_a_gpu_older_than_the_build_is_not_usable(capability, code, runs, monkeypatch):
    monkeypatch.setitem(_library._loaded, "libpyfold_cuda.so", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    info = {**_C.build_info(), "cuda_code": code}
    monkeypatch.setattr(_C, "build_info", lambda: info)
    usable, reason = _library.cuda_usable()
    assert usable == runs
    if not runs:
        number = ".".join(map(str, capability))
        assert f"Some GPU has compute capability {number}, and this build has code for {code}" in reason
        assert f"PYFOLD_CUDA_ARCHS={capability[0]}{capability[1]}" in reason
