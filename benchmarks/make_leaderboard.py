"""Writes the leaderboards in ``docs`` from the result files of the grids in this folder.

    python benchmarks/make_leaderboard.py           writes the pages
    python benchmarks/make_leaderboard.py --check   fails where one differs from the results

Needs no images: the addresses of the runs follow from the grid, the pool and ``images.json``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from bezoar import bench
from bezoar.records import write_text

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGES = {
    "grid.toml": "leaderboard.md",
    "grid_development.toml": "leaderboard_development.md",
}
ORIGIN = (
    "Written by `python benchmarks/make_leaderboard.py` from the files in "
    "`benchmarks/{folder}/runs`, which `bezoar bench run benchmarks/{grid}` makes; the protocol is "
    "that of [Benchmark](benchmark.md)."
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
    return f"{title}\n\n{ORIGIN.format(grid=grid.name, folder=grid.stem)}\n{rest}"


def main(*, check: bool) -> None:
    """Writes the pages, or compares them."""
    for grid, name in PAGES.items():
        file, wanted = DOCS / name, page(HERE / grid)
        if file.exists() and file.read_text(encoding="utf-8") == wanted:
            continue
        if check:
            sys.exit(f"docs/{name} does not show the results of {grid}; run `make measured`")
        write_text(file, wanted)


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
