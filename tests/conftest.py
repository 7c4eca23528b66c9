import pytest
import torch

from pyfold import _C

CUDA = torch.cuda.is_available()
#: Every way there is to run a kernel: each CPU instruction set, and the GPU where there is one.
BACKENDS = [f"cpu-{tier}" for tier in _C.cpu_tiers_supported()] + (["cuda"] if CUDA else [])
DEVICES = ["cpu"] + (["cuda"] if CUDA else [])


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The device, with the CPU kernels of one instruction set chosen."""
    name = request.param
    before = _C.cpu_tier()
    if name.startswith("cpu-"):
        _C.set_cpu_tier(name.removeprefix("cpu-"))
    yield torch.device(name.split("-")[0])
    _C.set_cpu_tier(before)


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(20261121)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    yield
    torch._dynamo.reset()
