"""k-diffusion's functions, loaded without what they do not need."""

import importlib
import importlib.util
import sys
import types

import pytest


def load_sampling():
    """k_diffusion/sampling.py alone: the package's other files import what these functions never call."""
    package = importlib.util.find_spec("k_diffusion")
    if package is None:
        pytest.skip("k-diffusion is not installed", allow_module_level=True)
    stands_in = {name: types.ModuleType(name) for name in ("torchsde", "torchdiffeq", "k_diffusion", "k_diffusion.utils")}
    stands_in["torchdiffeq"].odeint = None
    stands_in["k_diffusion"].__path__ = list(package.submodule_search_locations)
    stands_in["k_diffusion.utils"].append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
    stands_in["k_diffusion"].utils = stands_in["k_diffusion.utils"]
    before = {name: sys.modules.get(name) for name in [*stands_in, "k_diffusion.sampling"]}
    sys.modules.update(stands_in)
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


sampling = load_sampling()
