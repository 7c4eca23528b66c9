"""``pyfold verify``: its rows hold here, and it sees a bit that differs."""

import json
import re
from pathlib import Path

import pytest

import pyfold
from pyfold import verify

PAGE = Path(__file__).parents[1] / "docs" / "noise.md"


def test_rows_hold_and_are_the_page_s():
    """All but those that start processes or compile, which the command runs: docs/noise.md has the command's table."""
    checks = (*verify.frozen(), verify.batch, verify.order, verify.threads, verify.layout, verify.window, verify.split)
    rows = [check() for check in checks]
    assert all(row.equal is True for row in rows), rows
    # How many threads are tried depends on the machine.
    unnumbered = lambda text: re.sub(r"\| threads \| [\d, ]+ \|", "| threads |", text)  # noqa: E731
    for line in verify.table(rows).splitlines():
        assert unnumbered(line) in unnumbered(PAGE.read_text()).splitlines(), line
    whole = re.search(r"\| \| ways \| result \|\n(?:\|.*\n)+", PAGE.read_text())[0].splitlines()[2:]
    names = [line.split(" | ")[0].strip("| ") for line in whole]
    others = ["instruction set"] * names.count("instruction set")
    assert names == [
        *(r.what for r in rows[:-3]),
        *others,
        *(r.what for r in rows[-3:]),
        "torch.compile",
        "processes",
        "device",
    ]


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("times", lambda noted: noted["uniform on flow"].__setitem__(0, (0.123).hex())),
        ("brownian", lambda noted: noted["float32"]["0.3"].__setitem__(1, "00000000")),
        ("noising", lambda noted: noted["v"]["loss"].__setitem__(0, "00000000")),
        ("plans", lambda noted: noted["euler"]["rows"][1].__setitem__("a", (0.5).hex())),
        ("plans", lambda noted: noted["unipc"]["end"].__setitem__(2, "00000000")),
        ("plans", lambda noted: noted.pop("heun")),
        ("folds", lambda noted: noted["ball"]["dx"].__setitem__(2, "00000000")),
    ],
)
def test_every_section_is_compared(section, change, tmp_path, monkeypatch):
    noted = json.loads(verify.VECTORS.read_text())
    change(noted[section])
    changed = tmp_path / "vectors.json"
    changed.write_text(json.dumps(noted))
    monkeypatch.setattr(verify, "VECTORS", changed)
    row = verify._compared(section)
    assert row.equal is False and row.note.startswith(section)


def test_it_sees_a_bit_that_differs(tmp_path, monkeypatch, capsys):
    noted = json.loads(verify.VECTORS.read_text())
    noted["noise"]["float32"][0]["bits"][2] = "BF1E1B9E"
    changed = tmp_path / "vectors.json"
    changed.write_text(json.dumps(noted))
    monkeypatch.setattr(verify, "VECTORS", changed)
    row = verify._compared("noise")
    assert row.equal is False and row.note == "noise float32 0 bits 2"
    monkeypatch.setattr(verify, "checks", lambda: verify.frozen()[:1])
    assert verify.run() == 1
    assert "DIFFERENT BITS" in capsys.readouterr().out


def test_a_window_at_another_place_is_seen(monkeypatch):
    randn = pyfold.randn

    def moved(*args, offset=None, **given):
        return randn(*args, offset=None if offset is None else [*offset[:-1], offset[-1] - 1], **given)

    monkeypatch.setattr(pyfold, "randn", moved)
    assert verify.window().equal is False
