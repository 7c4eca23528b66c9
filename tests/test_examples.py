"""The README's Python runs, its commands parse, and the examples do their work, small."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pyfold.train import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
#: Settings that make an example quick.
EXAMPLES = {
    "creative_fold.py": ["--quick"],
    "dcgan_digits.py": ["--quick"],
    "stacked_digits.py": ["--quick"],
    "train_diffusion.py": ["--steps", "3", "--batch", "16"],
    "train_gan.py": ["--steps", "3", "--batch", "16"],
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_readme_python_runs():
    assert len(blocks("python")) == 3
    exec("\n".join(blocks("python")), {})


def test_readme_examples_are_short():
    assert all(len(block.splitlines()) <= 15 for block in blocks("python"))


def test_readme_commands_parse():
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("pyfold ")]
    assert len(lines) >= 4
    for line in lines:
        cli._parser().parse_args(shlex.split(line)[1:])
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_readme_links():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_example_is_tested():
    assert set(EXAMPLES) == {p.name for p in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    out = tmp_path / "out.png"
    command = [sys.executable, ROOT / "examples" / name, "--out", out, *EXAMPLES[name]]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert min(Image.open(out).size) > 100


def test_noise_specification_names_the_constants():
    """docs/noise.md and the kernel hold the same numbers."""
    page = (ROOT / "docs" / "noise.md").read_text()
    header = (ROOT / "csrc" / "core" / "normal.h").read_text()
    constants = re.findall(r"-?\d\.\d{6,}(?=f)", header)
    assert len(constants) == 15
    for constant in constants:
        assert constant in page, constant
