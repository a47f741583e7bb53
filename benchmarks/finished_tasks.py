"""The tasks of a measuring script, run side by side; one that fails is told and costs only itself.

``bezoar.executors`` runs them; a script writes each value at once and leaves what failed to a
rerun.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bezoar.executors import Done, Task, make_executor

LONGEST = 3600  # seconds of one task


def resumed(
    out: Path, look: Callable[..., Any], names: Iterable[str], seeds: Iterable[int]
) -> tuple[list[dict[str, Any]], list[Task]]:
    """The runs that a result file holds, and the looks at networks that it lacks, seed by seed.

    Args:
        out: the file; it may not be there yet.
        look: takes ``name`` and ``seed``, and gives a row that holds both, the former as ``model``.
        names: of the networks.
        seeds: each draws other clean images.
    """
    runs: list[dict[str, Any]] = json.loads(out.read_text())["runs"] if out.exists() else []
    known, names = {(run["model"], run["seed"]) for run in runs}, list(names)
    tasks = [
        Task(key=f"{name} {seed}", function=look, arguments={"name": name, "seed": seed})
        for seed in seeds
        for name in names
        if (name, seed) not in known
    ]
    return runs, tasks


def finished(tasks: Iterable[Task], executor: str) -> Iterator[tuple[str, Any]]:
    """The key and the value of each task that was done, as they end.

    Args:
        tasks: what to run.
        executor: where, and how many side by side, such as ``local:2``.
    """
    for key, outcome in make_executor(executor, timeout_s=LONGEST, reuse=True).run(list(tasks)):
        if isinstance(outcome, Done):
            yield key, outcome.value
        else:
            print(key, outcome.message, outcome.traceback, flush=True)
