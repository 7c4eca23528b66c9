"""How fast pyfold is on a machine, as ratios against what would run instead: the command ``pyfold bench``.

``ROWS`` is the table of everything that is measured, ``measure`` runs one row, ``report`` prints, writes and compares results.
``benchmarks/`` runs the same rows under pytest-benchmark.
"""

from pyfold.bench import jobs, ops, overhead, samplers  # noqa: F401  (they fill ROWS)
from pyfold.bench.measure import Measured, measure
from pyfold.bench.peers import Peers
from pyfold.bench.report import compare, read_json, table, write_json
from pyfold.bench.rows import GROUPS, LEVELS, ROWS, Case, Row, Setting, settings

__all__ = [
    "GROUPS",
    "LEVELS",
    "ROWS",
    "Case",
    "Measured",
    "Peers",
    "Row",
    "Setting",
    "compare",
    "measure",
    "read_json",
    "settings",
    "table",
    "write_json",
]
