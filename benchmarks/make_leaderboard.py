"""Writes ``docs/leaderboard.md`` from the result files of ``benchmarks/grid.toml``.

    python benchmarks/make_leaderboard.py           writes the page
    python benchmarks/make_leaderboard.py --check   fails where it differs from the results

Needs no images: the addresses of the runs follow from the grid, the pool and ``images.json``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bezoar import bench
from bezoar.records import write_text

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "leaderboard.md"
ORIGIN = (
    "Written by `python benchmarks/make_leaderboard.py` from the files in `benchmarks/grid/runs`, "
    "which `bezoar bench run benchmarks/grid.toml` makes; the protocol is that of "
    "[Benchmark](benchmark.md)."
)


def grid_summary(grid: Path) -> dict[str, Any]:
    """What ``bench.summarise`` makes of the results that lie beside a grid's file."""
    out = grid.with_suffix("")
    plan = bench.plan_again(bench.read_grid(grid), out)
    results = {one.key: bench.read_result(out, one) for one in plan.runs}
    return bench.summarise(plan, results)


def page(grid: Path) -> str:
    """The Markdown of a grid's results."""
    title, _, rest = bench.markdown(grid_summary(grid)).partition("\n")
    return f"{title}\n\n{ORIGIN}\n{rest}"


def main(*, check: bool) -> None:
    """Writes the page, or compares it."""
    wanted = page(HERE / "grid.toml")
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return
    if check:
        sys.exit(f"docs/{PAGE.name} does not show what is in benchmarks/grid; run `make measured`")
    write_text(PAGE, wanted)


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
