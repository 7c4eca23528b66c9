"""The simulated GPU of csrc/test/gpu, by ctypes: modules from PTX text, launches, and what is asked of all launches."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

#: The folder of libpyfold_gpu.so and libpyfold_gpu_test.so, which 'make test-cuda' builds.
FOLDER = Path(os.environ.get("PYFOLD_GPU_TEST", ""))

_library = ctypes.CDLL(str(FOLDER / "libpyfold_gpu.so"), mode=ctypes.RTLD_GLOBAL)
_library.gpu_module.restype = ctypes.c_void_p
_library.gpu_module.argtypes = [ctypes.c_char_p]
_library.gpu_fault_text.restype = ctypes.c_char_p
_library.gpu_faults.restype = ctypes.c_uint64
_library.gpu_launches.restype = ctypes.c_uint64
_library.gpu_end_recording.restype = ctypes.c_uint64
_library.gpu_allocated.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
_library.gpu_freed.argtypes = [ctypes.c_void_p]
_Words = ctypes.c_uint32 * 3


class Fault(RuntimeError):
    """What a launch did wrong."""


def _fault_text() -> str:
    return bytes(_library.gpu_fault_text()).decode()


class Module:
    """A PTX module; raises :class:`Fault` where its text is not understood."""

    def __init__(self, text: str) -> None:
        self._module = _library.gpu_module(text.encode())
        if not self._module:
            raise Fault(_fault_text())

    def launch(
        self,
        kernel: str,
        parameters: bytes = b"",
        grid: Sequence[int] = (1, 1, 1),
        block: Sequence[int] = (32, 1, 1),
        shared: int = 0,
    ) -> None:
        """Runs the kernel; ``parameters`` are laid out as PTX does. Raises :class:`Fault`."""
        padded = parameters + bytes(4096)
        if _library.gpu_launch(ctypes.c_void_p(self._module), kernel.encode(), _Words(*grid), _Words(*block), shared, padded):
            raise Fault(_fault_text())


class Memory:
    """``size`` bytes that kernels may touch."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._storage = ctypes.create_string_buffer(data, self.size + 256)
        base = ctypes.addressof(self._storage)
        self.address = (base + 255) // 256 * 256
        ctypes.memmove(self.address, data, self.size)
        _library.gpu_allocated(self.address, self.size)

    def read(self) -> bytes:
        return ctypes.string_at(self.address, self.size)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        _library.gpu_freed(self.address)


def faults() -> int:
    return int(_library.gpu_faults())


def launches() -> int:
    return int(_library.gpu_launches())


@contextlib.contextmanager
def only_blocks(*blocks: int) -> Iterator[None]:
    """Of each launch within, executes these blocks of its grid alone, as far as it has them."""
    _library.gpu_only_blocks((ctypes.c_uint64 * len(blocks))(*blocks), ctypes.c_uint64(len(blocks)))
    try:
        yield
    finally:
        _library.gpu_only_blocks(None, ctypes.c_uint64(0))


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Keeps the launches within, as the capture of a stream does; none runs before :func:`replay`."""
    _library.gpu_begin_recording()
    try:
        yield
    finally:
        _library.gpu_end_recording()


def replay() -> None:
    if _library.gpu_replay():
        raise Fault(_fault_text())


def report() -> list[dict[str, Any]]:
    """What every kernel has executed: see csrc/test/gpu/report.h."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        if _library.gpu_report(str(path).encode()):
            raise Fault(_fault_text())
        result: list[dict[str, Any]] = json.loads(path.read_text())
    return result


def module_text(symbol: str) -> str:
    """The PTX module that a kernel is of, by the kernel's symbol."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module.ptx"
        if _library.gpu_module_text(symbol.encode(), str(path).encode()):
            raise Fault(_fault_text())
        return path.read_text()


@contextlib.contextmanager
def counted(sectors: bool = False, anew: bool = True) -> Iterator[None]:
    """Counts, from zero if ``anew``; :func:`report` tells. ``sectors``: those of global memory too, which takes longer."""
    if anew:
        _library.gpu_reset_counts()
    _library.gpu_count_sectors(int(sectors))
    try:
        yield
    finally:
        _library.gpu_count_sectors(0)
