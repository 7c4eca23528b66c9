"""``python -m pyfold``: the command ``pyfold``."""

from pyfold.train.cli import main

if __name__ == "__main__":
    main()
