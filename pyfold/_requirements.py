"""Optional packages, with an error that says which extra brings them."""

from __future__ import annotations

import importlib
from types import ModuleType


def need(module: str, extra: str = "train") -> ModuleType:
    """The module, or an ImportError that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed here; install it with: pip install 'pyfold[{extra}]'") from error
