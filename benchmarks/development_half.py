"""Looks at networks of the pool's development half, one task a network and a draw of images.

What the scripts that measure a choice have in common: which networks, how they resume, and that the
result file is written after each. The task itself is ``look``, from a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finished_tasks import finished, resumed
from pool_methods import POOL
from result_file import result_head

from bezoar.pools import open_pool
from bezoar.records import write_json

Rows = list[dict[str, Any]]


@dataclass
class Options:
    """What to run.

    Attributes:
        out: the result file.
        seeds: each draws other clean images.
        executor: where, and how many side by side.
    """

    out: Path
    seeds: tuple[int, ...] = (0,)
    executor: str = "local:2"


def results_of(script: str) -> Path:
    """The result file of a script, by its ``__file__``."""
    return Path(script).parent / "results" / f"{Path(script).stem}.json"


def measured(
    options: Options,
    look: Callable[..., Any],
    script: str,
    title: str,
    facts: Callable[[Rows], dict[str, Any]],
    *,
    statuses: Collection[str] = ("backdoored",),
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs what is missing; gives each key, and what the file holds since.

    Args:
        options: which draws, where, and the result file.
        look: takes ``name`` and ``seed``, and gives a row that holds both, the former as ``model``.
        script: the script's ``__file__``.
        title: what was measured.
        facts: what is derived from the rows, by name.
        statuses: of the networks that are looked at.
    """
    names = [e.name for e in open_pool(POOL).half("development") if e.status in statuses]
    runs, tasks = resumed(options.out, look, names, options.seeds)
    head = result_head(script, title, "one thread a model, other work beside it")
    for key, row in finished(tasks, options.executor):
        runs.append(row)
        whole = head | facts(runs) | {"runs": runs}
        write_json(options.out, whole)
        yield key, whole
