"""Finds and loads the compiled libraries, and says which ones are in use."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from pyfold import _torch_private
from pyfold._version import __version__

_FOLDER = Path(__file__).resolve().parent / "_lib"
_BUILD_HINT = "Build it with 'pip install .' in pyfold's source folder, or 'make build' to work on it there."

_loaded: dict[str, str] = {}
_cuda_reason = ""


def _load(name: str) -> None:
    path = _FOLDER / name
    torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]  # torch gives it no types
    _loaded[name] = str(path)


def _torch_too_old() -> bool:
    release = torch.__version__.split("+")[0].split(".")
    return (int(release[0]), int(release[1])) < (2, 10)


def load() -> None:
    """Loads the ops, and the CUDA kernels where they can be used; called once, by ``import pyfold``."""
    global _cuda_reason
    if _torch_too_old():
        raise ImportError(f"pyfold needs torch >= 2.10, found {torch.__version__}. Upgrade it: pip install 'torch>=2.10'")
    try:
        from pyfold import _C
    except ImportError as error:
        raise ImportError(f"pyfold's compiled module is missing or does not load ({error}). {_BUILD_HINT}") from error
    if not (_FOLDER / "libpyfold_ops.so").exists():
        raise ImportError(f"pyfold's library is missing: {_FOLDER / 'libpyfold_ops.so'}. {_BUILD_HINT}")
    try:
        _C.cpu_tier()
    except ValueError as error:
        raise ImportError(f"pyfold: {error}") from error
    _load("libpyfold_ops.so")

    if not _C.build_info()["cuda_built"]:
        _cuda_reason = _C.build_info()["cuda_reason"]
    elif torch.version.cuda is None and os.environ.get("PYFOLD_LOAD_CUDA") != "1":
        _cuda_reason = "this torch is a CPU build"
    else:
        try:
            _load("libpyfold_cuda.so")
        except OSError as error:
            _cuda_reason = f"libpyfold_cuda.so does not load: {error}"


def _built_for(capability: tuple[int, int], code: list[str]) -> bool:
    """Whether a GPU runs the compiled code, as in ["sm_80", "compute_90"]: machine code serves its major version from its minor
    one on, PTX (compute_) every later GPU."""
    for name in code:
        kind, _, number = name.partition("_")
        major, minor = divmod(int(number), 10)
        if (kind == "compute" and capability >= (major, minor)) or (capability[0] == major and capability[1] >= minor):
            return True
    return False


def cuda_usable() -> tuple[bool, str]:
    """Whether CUDA tensors can be given to pyfold, and why not where not; asks the device, so CUDA is initialised."""
    if "libpyfold_cuda.so" not in _loaded:
        return False, _cuda_reason
    if not torch.cuda.is_available():
        return False, "this torch is a CPU build" if torch.version.cuda is None else "torch sees no CUDA device"
    from pyfold import _C

    major, minor = torch.cuda.get_device_capability()
    code = _C.build_info()["cuda_code"]
    if not _built_for((major, minor), code.split(";")):
        return False, (
            f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, and this build has code for {code}; build "
            f"with PYFOLD_CUDA_ARCHS={major}{minor}"
        )
    return True, ""


def config() -> dict[str, Any]:
    """What is installed, loaded and in use; :func:`show_config` prints it.

    Returns:
        A dictionary of numbers, words and dictionaries.
    """
    from pyfold import _C

    info = _C.build_info()
    usable, reason = cuda_usable()
    return {
        "pyfold": __version__,
        "torch": torch.__version__,
        "torch_lacks": list(_torch_private.MISSING),
        "python": platform.python_version(),
        "compiler": info["compiler"],
        "libraries": dict(_loaded),
        "cpu": {
            "in_use": _C.cpu_tier(),
            "supported": _C.cpu_tiers_supported(),
            "built": _C.cpu_tiers_built(),
            "threads": torch.get_num_threads(),
        },
        "cuda": {
            "built": info["cuda_built"],
            "nvcc": info["nvcc"],
            "code": info["cuda_code"].split(";") if info["cuda_code"] else [],
            "loaded": "libpyfold_cuda.so" in _loaded,
            "usable": usable,
            "reason": reason,
        },
    }


def show_config() -> None:
    """Prints versions, the loaded libraries, the CPU instruction set in use, and whether CUDA kernels can be used."""
    facts = config()
    cpu, cuda = facts["cpu"], facts["cuda"]
    lines = [
        f"pyfold {facts['pyfold']}, torch {facts['torch']}, Python {facts['python']}, built by {facts['compiler']}",
        f"CPU: {cpu['in_use']} in use on {cpu['threads']} threads; built: {', '.join(cpu['built'])}; "
        f"this machine runs: {', '.join(cpu['supported'])}",
    ]
    if cuda["built"]:
        state = "usable" if cuda["usable"] else f"not usable: {cuda['reason']}"
        lines.append(f"CUDA: built by nvcc {cuda['nvcc']} for {', '.join(cuda['code'])}; {state}")
    else:
        lines.append(f"CUDA: not built: {cuda['reason']}")
    lines += [f"this torch lacks {name}" for name in facts["torch_lacks"]]
    lines += [f"loaded: {path}" for path in facts["libraries"].values()]
    print("\n".join(lines))
