"""Are two backdoors in one network seen that are as strong as each other?

    BEZOAR_DATA=... python benchmarks/two_targets.py [--executor local:2]

A test that looks for one class unlike all others can be blind to two: each hides the other. The
networks are those of ``null_networks.py``, trained with two patches in two corners that lead to two
classes (``several``), with numbers that no other script uses. Writes ``results/two_targets.json``,
each network at once; a rerun does only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from finished_tasks import finished
from result_file import result_head
from two_targets_looking import look

from bezoar.executors import Task
from bezoar.metrics import rate
from bezoar.records import to_json, write_json

RESULTS = Path(__file__).parent / "results" / "two_targets.json"
NETWORKS = {"digits": 6, "cifar10": 6, "gtsrb": 3}
FIRST = 300


@dataclass
class Options:
    """What to run.

    Attributes:
        first: the number of the first network of each task; each number is another network.
        out: the result file.
        executor: where, and how many side by side.
        keep: a folder where trained networks are kept, and taken from where they are there.
    """

    first: int = FIRST
    out: Path = RESULTS
    executor: str = "local:2"
    keep: Path | None = None


def tasks(options: Options, runs: dict[str, dict[str, Any]]) -> Iterator[Task]:
    """What is missing."""
    for task, count in NETWORKS.items():
        for number in range(options.first, options.first + count):
            if f"{task} {number}" not in runs:
                yield Task(
                    key=f"{task} {number}",
                    function=look,
                    arguments={
                        "task": task,
                        "number": number,
                        "keep": options.keep and str(options.keep.resolve()),
                    },
                )


def by_task(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How often one target or both are suspected, of the networks that obey both triggers."""
    rows = []
    for task in NETWORKS:
        own = [run for run in runs if run["task"] == task and run["asr"] >= 0.8]
        if not own:
            continue
        rows.append(
            {
                "models are": task,
                "classes": own[0]["classes"],
                "runs": len(own),
                "smallest accuracy": min(run["acc"] for run in own),
                "smallest asr": min(run["asr"] for run in own),
                **{
                    told: share(own, lambda run, least=least: run["targets suspected"] >= least)
                    for told, least in (("a target suspected", 1), ("both suspected", 2))
                },
                "backdoor found": share(own, lambda run: run["verdict"] == "backdoor found"),
                "another class suspected": share(own, lambda run: run["others suspected"] > 0),
            }
        )
    return rows


def share(runs: list[dict[str, Any]], told: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The share of networks of which this is true."""
    return rate(sum(map(told, runs)), len(runs)).as_record()


def main(options: Options) -> None:
    """Runs what is missing."""
    done: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    runs = {f"{run['task']} {run['seed']}": run for run in done.get("runs", [])}
    head = result_head(
        __file__, "A scan of networks with two like backdoors", "one thread a network, two at once"
    )
    for key, row in finished(tasks(options, runs), options.executor):
        runs[key] = row
        rows = list(runs.values())
        write_json(options.out, to_json(head | {"summary": by_task(rows), "runs": rows}))
        print(key, row["verdict"], row["targets"], row["suspects"], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
