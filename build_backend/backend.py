"""setuptools' build backend, with the torch that is already there (find.py): torch is required, and then downloaded into the
isolated environment, only where none is found."""

from __future__ import annotations

from find import tool, torch_folder
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403


def _requirements() -> list[str]:
    needed = []
    if torch_folder() is None:
        needed.append("torch>=2.10")
    if tool("cmake") is None:
        needed.append("cmake>=3.18")
    if tool("ninja") is None:
        needed.append("ninja")
    return needed


def get_requires_for_build_wheel(config_settings: dict[str, str] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requirements()]


def get_requires_for_build_editable(config_settings: dict[str, str] | None = None) -> list[str]:
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requirements()]
