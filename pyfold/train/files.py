"""Files that are whole or absent, written under a temporary name and renamed; and a folder that one process writes to."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "lock"


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Calls save with a temporary path beside ``path``, then renames its file into place.

    The file's bytes reach the disk before its name does, and the name before this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        save(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Deletes temporary files of a process that was killed while it wrote."""
    for path in folder.glob(".*.tmp.*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write(path, lambda temporary: temporary.write_text(text))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the lock ends with the process, however it ends.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ValueError(f"{folder} is in use by another process ({holder})") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield
