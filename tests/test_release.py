"""What the package says of itself: one version, one home, and the files that state them."""

import email
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyfold
from pyfold import _version
from pyfold.train import cli

ROOT = Path(pyfold.__file__).parent.parent
needs_source = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


@needs_source
def test_one_version_and_one_home():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == _version.__version__
    home = re.search(r"^repository-code: (.*)$", citation, re.M)
    assert (home[1] if home else "") == _version.__home__
    assert f"## {_version.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@needs_source
def test_metadata(tmp_path):
    """As setuptools writes it, without a build."""
    code = "import sys; sys.path.insert(0, 'build_backend'); import backend; "
    code += f"print(backend.prepare_metadata_for_build_wheel({str(tmp_path)!r}))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    facts = email.message_from_string((tmp_path / out.stdout.split()[-1] / "METADATA").read_text())
    assert facts["Version"] == _version.__version__
    assert facts["Author"] == "The pyfold developers"
    urls = facts.get_all("Project-URL", [])
    assert bool(urls) == bool(_version.__home__)
    assert all(_version.__home__ in url for url in urls)
    classifiers = facts.get_all("Classifier")
    assert [c for c in classifiers if c.startswith("Operating System")] == ["Operating System :: POSIX :: Linux"]


def test_version_on_the_command_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"pyfold {pyfold.__version__}\n"


def test_completion(capsys):
    pytest.importorskip("shtab")
    cli.main(["completion", "bash"])
    script = capsys.readouterr().out
    completed = subprocess.run(
        ["bash", "-c", script + "\nCOMP_WORDS=(pyfold tr); COMP_CWORD=1; _shtab_pyfold; echo ${COMPREPLY[@]}"],
        capture_output=True,
        text=True,
    )
    assert completed.stdout.split() == ["train"]
