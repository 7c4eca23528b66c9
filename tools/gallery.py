"""Makes the pictures of docs/gallery.md anew, by the commands that stand under them there.

Each is brought to at most 150 KB, by fewer colours and then by fewer pixels.

python tools/gallery.py [--only spins xor]
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from pyfold.train.files import write

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "gallery.md"
LARGEST = 150_000  # bytes of a picture
ALL = 3_000_000  # bytes of all


def commands() -> dict[str, list[str]]:
    """The commands of the page, by the name of the picture that each makes."""
    lines = re.findall(r"^python examples/.*--out docs/pictures/.*$", PAGE.read_text(), re.MULTILINE)
    split = [shlex.split(line) for line in lines]
    return {Path(words[words.index("--out") + 1]).stem: words[1:] for words in split}


def encoded(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    picture.save(data, "png", optimize=True)
    return data.getvalue()


def fitted(picture: Image.Image, largest: int = LARGEST) -> bytes:
    """A PNG of at most so many bytes."""
    full = picture.convert("RGB")
    scale = 1.0
    while True:
        size = (round(full.width * scale), round(full.height * scale))
        resized = full if scale == 1 else full.resize(size, Image.Resampling.LANCZOS)
        for colours in (256, 128, 64):
            data = encoded(resized.quantize(colours))
            if len(data) <= largest:
                return data
        scale *= 0.9


def _save(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(commands()), help="make these alone")
    chosen = parser.parse_args().only or list(commands())
    rows = []
    for name in tqdm(chosen, unit="picture"):
        begin = time.perf_counter()
        words = commands()[name]
        tqdm.write(shlex.join(["python", *words]))
        # Elsewhere, for some write an animation or figures beside their picture.
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / f"{name}.png"
            words[words.index("--out") + 1] = str(made)
            subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
            with Image.open(made) as picture:
                data = fitted(picture)
        write(ROOT / "docs" / "pictures" / f"{name}.png", partial(_save, data))
        rows.append((name, time.perf_counter() - begin, len(data)))
    for name, seconds, size in rows:
        print(f"{name:20} {seconds:6.0f} s {size / 1000:6.0f} KB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
