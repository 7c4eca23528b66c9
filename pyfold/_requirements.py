"""Optional packages, with an error that says what brings them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

_ROOT = Path(__file__).resolve().parent.parent


def install_command(extra: str) -> str:
    """What to type for the packages of an extra: of the source tree where pyfold runs from one, else of what is installed."""
    if (_ROOT / "setup.py").exists() and (_ROOT / "pyproject.toml").exists():
        return f"pip install -e '{_ROOT}[{extra}]'"
    return f"pip install 'pyfold[{extra}]'"


def need(module: str, extra: str = "train") -> ModuleType:
    """The module, or an ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed here; install it with: {install_command(extra)}") from error
