"""What pyfold is measured against, where it is installed; nothing here is needed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@functools.cache
def _compiler_works() -> str | None:
    """Why torch.compile cannot run here, or None."""
    try:
        torch.compile(lambda x: 2 * x + 1, fullgraph=True)(torch.ones(8))
    except Exception as error:  # a missing C++ compiler shows in many ways
        return str(error).strip().splitlines()[0][:100]
    return None


@dataclass
class Peers:
    """The libraries beside pyfold. Eager PyTorch is always one of them.

    Attributes:
        compiler: whether torch.compile takes part; it is tried out once.
        diffusers, k_diffusion, torchlip: the modules, None where not installed or not wanted. ``k_diffusion`` is its module
            ``sampling``, ``torchlip`` is ``deel.torchlip.functional``.
        missing: what is not here, and why.
    """

    compiler: bool = True
    diffusers: ModuleType | None = None
    k_diffusion: ModuleType | None = None
    torchlip: ModuleType | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def found(cls, compiler: bool = True) -> Peers:
        """Those that this environment has."""
        names = {"diffusers": "diffusers", "k_diffusion": "k_diffusion.sampling", "torchlip": "deel.torchlip.functional"}
        modules = {attribute: _module(name) for attribute, name in names.items()}
        peers = cls(compiler, modules["diffusers"], modules["k_diffusion"], modules["torchlip"])
        peers.missing = {name: "not installed" for name in names if modules[name] is None}
        if compiler and (reason := _compiler_works()):
            peers.compiler, peers.missing["torch.compile"] = False, reason
        return peers

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any] | None:
        """The function through torch.compile, or None without it."""
        if not self.compiler:
            return None
        torch.compiler.reset()  # else the compiler gives up after eight functions
        return torch.compile(function, fullgraph=True)
