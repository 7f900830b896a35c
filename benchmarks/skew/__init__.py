"""The skew suite: small cases that batch and live features have to get right, run on this library and on others.

`run` puts systems to the test, `report` prints who passes what. `sameriver bench skew` and
``python -m benchmarks.skew`` are both.
"""

from benchmarks.skew.runs import run
from benchmarks.skew.table import markdown, report, write

__all__ = ["markdown", "report", "run", "write"]
