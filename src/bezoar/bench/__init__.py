"""Benchmarks: a grid of models, methods, budgets and seeds; one JSON a run; tables from these.

``read_grid`` reads what shall run, ``make_ready`` plans it, ``run`` does what is missing, and
``summarise`` makes the rows that ``markdown``, ``comma_separated`` and the leaderboard show.
"""

from bezoar.bench.grid import BenchGrid, read_grid
from bezoar.bench.harness import Bench, Summary, make_ready, plan_again, run
from bezoar.bench.results import read_result
from bezoar.bench.summary import summarise
from bezoar.bench.table import comma_separated, markdown

__all__ = [
    "Bench",
    "BenchGrid",
    "Summary",
    "comma_separated",
    "make_ready",
    "markdown",
    "plan_again",
    "read_grid",
    "read_result",
    "run",
    "summarise",
]
