"""The main job from end to end: a diffusion model and a GAN learn handwritten digits, each in minutes on two cores."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pyfold.train.config import Config
from pyfold.train.run import train

CONFIGS = {
    "diffusion": Config("diffusion", steps=2500, batch=128, width=32),
    "gan": Config("gan", steps=2200, batch=128, width=32),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for both runs")
    parser.add_argument("--only", choices=tuple(CONFIGS), help="train one of them alone")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    for name, config in CONFIGS.items():
        if arguments.only in (None, name):
            folder = arguments.out / name
            metrics = train(config, folder, resume=True)
            shares = metrics["class_share"].values()
            print(
                f"{name}: {metrics['classes']} of 10 digits, each {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the "
                f"samples; Frechet distance {metrics['frechet']:.2f} "
                f"(halves of the data: {metrics['frechet_between_halves_of_the_data']:.2f}); {folder / 'samples.png'}"
            )
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()
