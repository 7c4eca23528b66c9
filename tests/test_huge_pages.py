"""Large fresh results ask for huge pages; what is in use, and what is small, is left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huge_pages
import pytest

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="this system has no transparent huge pages"
)


def in_a_process(**environment: str) -> dict[str, bool | list[bool]]:
    result = subprocess.run(
        [sys.executable, huge_pages.__file__],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def seen():
    return in_a_process()


@pytest.mark.parametrize("name", huge_pages.FRESH)
def test_a_large_result_asks_for_them(seen, name):
    assert seen[name]


def test_torch_does_not_by_itself(seen):
    """Else the tests above would see what torch does."""
    assert not seen["torch.abs"]


def test_memory_in_use_is_left_alone(seen):
    assert not seen["in use"]


def test_memory_that_the_allocator_kept_is_left_alone(seen):
    assert not seen["used before"]


def test_memory_beside_a_result_is_left_alone(seen):
    """Whole huge pages of the result alone, though the memory goes on at both ends."""
    assert seen["beside"] == [True, True, False, False]


def test_small_results_are_left_alone(seen):
    assert not seen["8 MiB"]


def test_they_can_be_turned_off():
    seen = in_a_process(PYFOLD_HUGE_PAGES="0")
    assert seen.pop("beside") == [False] * 4
    assert not any(seen.values()), seen
