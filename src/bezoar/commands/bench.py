"""``bezoar bench``: run a grid, and make tables of what is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from bezoar.commands.exit_codes import FOUND, OK
from bezoar.commands.outputs import check_outputs, every_output, write_record
from bezoar.screen import print_bench, progress_bar, say

if TYPE_CHECKING:
    from bezoar.bench import Bench


@dataclass(frozen=True, kw_only=True)
class BenchRun:
    """Do the runs of a grid that are missing; each becomes one JSON file at once.

    A benchmark that was interrupted goes on when the same command is given again.

    Exit code 0: every run has a result. 1: some failed, or could not be written. 2: the grid is not
    usable.

    Attributes:
        grid: a TOML file with models, methods, budgets and seeds; see the guide for its keys.
        out: folder of the results; by default beside the grid, with its name.
        executor: here, local, local:N for N runs at a time, ray, or ray:ADDRESS.
        threads: of each run, on Ray also a fraction of a core; 1 is best for many runs.
        gpus: share of a GPU for each run; by default local gives each a GPU of its own.
        timeout: seconds after which a run is ended and counts as failed; not with here.
        retry: also do again what failed before.
        device: where each run computes; by default the accelerator if there is one.
        json: write the summary as JSON to this file; - is standard output.
        quiet: no progress and no summary.
    """

    grid: tyro.conf.Positional[Path]
    out: Path | None = None
    executor: str = "local"
    threads: float = 1
    gpus: float = 0.0
    timeout: float | None = None
    retry: bool = False
    device: str | None = None
    json: str | None = None
    quiet: bool = False

    def run(self) -> int:
        """Runs what is missing."""
        from bezoar import bench
        from bezoar.executors import make_executor

        check_outputs(self.json, inputs=(self.grid,))
        grid = bench.read_grid(self.grid)
        executor = make_executor(
            self.executor,
            cpus_per_task=self.threads,
            gpus_per_task=self.gpus,
            timeout_s=self.timeout,
            reuse=True,
            device=self.device,
        )
        silent = self.quiet or self.json == "-"
        out = _folder(self.grid, self.out)
        with progress_bar(silent) as progress:
            ready = bench.make_ready(
                grid,
                out,
                beside=self.grid.parent,
                executor=executor,
                device=self.device,
                progress=lambda name, what, share: progress(f"models ({name}: {what})", share),
            )
            summary = bench.run(
                ready,
                out,
                executor,
                device=self.device,
                retry=self.retry,
                finished=lambda _record, done, total: progress(
                    f"runs ({done} of {total})", done / total
                ),
                progress=_in_work(ready, progress),
            )
        with every_output() as attempt:
            if not silent:
                with attempt():
                    print_bench(summary.as_record(), len(ready.plan.runs), str(out))
                    _print_notes(summary.notices)
            with attempt():
                write_record(self.json, summary.as_record())
        return FOUND if summary.failed or summary.unwritten or ready.plan.unmade else OK


@dataclass(frozen=True, kw_only=True)
class BenchTable:
    """Tables of the results that are there: Markdown, CSV, and an HTML leaderboard.

    Exit code 0: every run has a result. 1: some are missing or failed, or a model of the grid is
    not there; the tables say which. 2: the grid is not usable.

    Attributes:
        grid: the TOML file that `bezoar bench run` was given.
        out: folder of the results; by default beside the grid, with its name.
        to: folder for the tables; by default `tables` in the folder of the results.
        json: write the summary that the tables show as JSON to this file; - is standard output.
        quiet: nothing on the screen.
    """

    grid: tyro.conf.Positional[Path]
    out: Path | None = None
    to: Path | None = None
    json: str | None = None
    quiet: bool = False

    def run(self) -> int:
        """Writes the tables."""
        from bezoar import bench
        from bezoar.records import make_folder, write_text
        from bezoar.report.leaderboard import write_leaderboard

        check_outputs(self.json, inputs=(self.grid,))
        grid = bench.read_grid(self.grid)
        out = _folder(self.grid, self.out)
        plan = bench.plan_again(grid, out)
        results = {one.key: bench.read_result(out, one) for one in plan.runs}
        summary = bench.summarise(plan, results)
        folder = self.to or out / "tables"
        there = {key: record for key, record in results.items() if record is not None}
        counts, silent = summary["counts"], self.quiet or self.json == "-"
        with every_output() as attempt:
            if not silent:
                with attempt():
                    say(
                        f"{counts['done']} of {counts['planned']} runs are done, "
                        f"{counts['failed']} failed, {counts['missing']} are still to be done."
                    )
                    _print_notes(summary["notices"])
            with attempt():
                write_record(self.json, {"kind": "bench table", **summary})
            with attempt():
                make_folder(folder)
                write_text(folder / "table.md", bench.markdown(summary))
                write_text(folder / "runs.csv", bench.comma_separated(summary))
                write_leaderboard(folder, summary, there)
                if not silent:
                    say(f"Tables: {folder / 'index.html'}, table.md, runs.csv")
        return OK if counts["done"] == counts["planned"] and not plan.unmade else FOUND


def _folder(grid: Path, out: Path | None) -> Path:
    return grid.with_suffix("") if out is None else out


def _in_work(ready: Bench, progress: Any) -> Any:
    """The executors' progress on one bar, with names in the place of addresses."""
    names = {one.key: f"{one.label} {one.entry.name}" for one in ready.plan.runs}
    return lambda key, what, share: progress(f"in work ({names[key]}: {what})", share)


def _print_notes(notices: Iterable[str]) -> None:
    for notice in notices:
        say(f"Note: {notice}")
