"""Large fresh results ask for huge pages; what is in use, and what is small, is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyfold

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="this system has no transparent huge pages"
)

LARGE = (8, 8, 512, 512)  # 64 MiB in float32


def advised(tensor: torch.Tensor) -> bool:
    """Whether the memory in the middle of a tensor has been marked for huge pages."""
    address, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError("the tensor lies in no mapping")


X = torch.zeros(LARGE)
SEEDS = torch.arange(LARGE[0])
OPS = {
    "randn": lambda: pyfold.randn(SEEDS, LARGE[1:]),
    "add_noise": lambda: pyfold.add_noise(X, 0.5, 0.5, SEEDS),
    "the target of add_noise": lambda: pyfold.add_noise(X, 0.5, 0.5, SEEDS, target="v")[1],
    "a fold of values": lambda: pyfold.fold(X, "abs"),
    "a fold of pairs": lambda: pyfold.fold(X, "householder", angle=torch.zeros(4)),
    "a program of folds": lambda: pyfold.fold(X, "groupsort"),
    "gradient of the loss": lambda: _gradient(pyfold.mse_loss, X),
    "gradient of a fold": lambda: _gradient(lambda x: pyfold.fold(x, "maxmin")),
    "gradient of a program": lambda: _gradient(lambda x: pyfold.fold(x, "groupsort")),
}


def _gradient(function, *rest):
    x = X.clone().requires_grad_()
    y = function(x, *rest)
    return torch.autograd.grad(y, x, torch.ones_like(y))[0]


@pytest.mark.parametrize("name", OPS)
def test_a_large_result_asks_for_them(name):
    assert advised(OPS[name]())


def test_torch_does_not_by_itself():
    """Else the tests above would see what torch does."""
    assert not advised(torch.abs(X))


def test_memory_in_use_is_left_alone():
    out = torch.ones(LARGE)
    assert pyfold.randn(SEEDS, LARGE[1:], out=out) is out
    assert not advised(out)


def test_small_results_are_left_alone():
    assert not advised(pyfold.fold(torch.zeros(4, 2, 512, 512), "abs"))  # 8 MiB


def test_they_can_be_turned_off():
    code = (
        "import pyfold, test_huge_pages as t\n"
        "assert not t.advised(pyfold.fold(t.X, 'abs')) and not t.advised(pyfold.randn(t.SEEDS, t.LARGE[1:]))"
    )
    environment = {
        **os.environ,
        "PYFOLD_HUGE_PAGES": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
