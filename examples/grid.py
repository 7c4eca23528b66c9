"""Mode collapse and its cures on the usual grid: twenty-five Gaussians, forty deviations apart.

The harness of ring.py, with the same recipes, settings, table, picture and animation.

python examples/grid.py --out grid.png
python examples/grid.py --seeds 0 1 2 3 4 --jobs 2 --runs runs/grid --out grid.png
"""

from ring import main

if __name__ == "__main__":
    main("grid", __doc__)
