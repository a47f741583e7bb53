"""The null of plane waves: the smallest log odds ratio of networks without a backdoor.

    BEZOAR_DATA=... python benchmarks/plane_waves_null.py [--executor local:2]

The networks are of the kinds of ``null_networks.py`` with other seeds than those of
``scan_null.py``, in which the combination with the other witnesses is measured. Each is written to
``results/plane_waves_null.json`` at once, and a rerun does only what is missing. Those that learned
to tell photographs apart make ``src/bezoar/data/plane_waves_null.json``, against which the witness
is judged. Networks for digits, which such waves hardly lead anywhere, have far larger ones: they
would widen the null and say nothing of its tail.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from finished_tasks import finished
from result_file import result_head
from scan_null import LEARNED
from witness_looking import look

from bezoar.executors import Task
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "plane_waves_null.json"
NULL = Path(__file__).parents[1] / "src" / "bezoar" / "data" / "plane_waves_null.json"
WITNESS = "plane-waves"
FIRST = 100  # seed
NETWORKS = {"digits": 9, "cifar10": 10, "gtsrb": 8, "twelve signs": 6}
PHOTOGRAPHS = ("cifar10", "gtsrb", "twelve signs")


@dataclass
class Options:
    """What to run.

    Attributes:
        executor: where, and how many side by side.
        keep: a folder where trained networks are kept, and taken from where they are there.
    """

    executor: str = "local:2"
    keep: Path | None = None


def tasks(options: Options, known: set[tuple[str, int]]) -> Iterator[Task]:
    """What is missing."""
    for name, count in NETWORKS.items():
        for seed in range(FIRST, FIRST + count):
            if (name, seed) not in known:
                keep = options.keep and str(options.keep.resolve())
                arguments = {"kind": "null", "name": name, "seed": seed, "keep": keep}
                yield Task(
                    key=f"{name} {seed}",
                    function=look,
                    arguments=arguments | {"witnesses": [WITNESS]},
                )


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a look; its p-values are those of the null that is replaced."""
    found = row["witnesses"][WITNESS]
    values = [value for value in found["values"] if value is not None]
    facts = {key: row[key] for key in ("task", "network", "seed", "classes", "acc")}
    return facts | {
        "refused": found.get("refused"),
        "smallest": min(values, default=None),
        "median": statistics.median(values) if values else None,
        "processor seconds": found["processor seconds"],
    }


def counts(run: dict[str, Any]) -> bool:
    """Whether a network learned enough to be looked at."""
    return run["acc"] >= LEARNED and run["refused"] is None


def by_task(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the networks of each task show."""
    rows = []
    for task in dict.fromkeys(run["task"] for run in runs):
        found = [run for run in runs if run["task"] == task]
        smallest = [run["smallest"] for run in found if counts(run)]
        rows.append(
            {
                "models are": task,
                "classes": found[0]["classes"],
                "runs": len(found),
                "counted": len(smallest),
                "in the null": task in PHOTOGRAPHS,
                "smallest log ratio, mean": statistics.fmean(smallest),
                "smallest log ratio, least": min(smallest),
                "smallest log ratio, greatest": max(smallest),
                "processor seconds": statistics.fmean(run["processor seconds"] for run in found),
            }
        )
    return rows


def main(options: Options) -> None:
    """Runs what is missing."""
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    head = result_head(
        __file__,
        "The smallest log odds ratio of plane waves in networks without a backdoor",
        "one thread a network, other work beside it",
    )
    known = {(run["task"], run["seed"]) for run in runs}
    for key, row in finished(tasks(options, known), options.executor):
        runs.append(measured(row))
        write_json(RESULTS, head | {"runs": runs})
        print(key, runs[-1], flush=True)
    write_json(RESULTS, head | {"summary": by_task(runs), "runs": runs})
    learned = sorted(r["smallest"] for r in runs if r["task"] in PHOTOGRAPHS and counts(r))
    write_json(NULL, {"version": 1, "log ratios": learned})


if __name__ == "__main__":
    main(tyro.cli(Options))
