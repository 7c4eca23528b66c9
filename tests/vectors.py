"""Bits that do not change: what pyfold/vectors.json holds, written anew by ``python tests/vectors.py --update``.

pyfold/_vectors.py computes them, for ``pyfold verify`` as well.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from typing import Any

from pyfold._vectors import SECTIONS
from pyfold.verify import VECTORS as FILE


def frozen() -> dict[str, Any]:
    noted: dict[str, Any] = json.loads(FILE.read_text())
    return noted


def update(only: str) -> None:
    found = frozen() if FILE.exists() else {}
    for name, make in SECTIONS.items():
        if only in ("", name):
            found[name] = make()

    def lines(value: dict[str, Any]) -> str:
        return ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())

    text = "{\n" + ",\n".join(f"{json.dumps(name)}: {{\n{lines(found[name])}\n}}" for name in SECTIONS) + "\n}\n"
    with tempfile.NamedTemporaryFile("w", dir=FILE.parent, delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, FILE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", default=None, nargs="?", const="", metavar="SECTION", help="write what is computed here")
    arguments = parser.parse_args()
    if arguments.update is None:
        parser.error("nothing to do without --update; tests/test_vectors.py compares")
    update(arguments.update)
