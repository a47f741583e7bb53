"""The null of a witness that is judged by the smallest statistic of networks without a backdoor.

The networks are of the kinds of ``null_networks.py`` with other seeds than those of
``scan_null.py``, in which the combination with the other witnesses is measured. Each is written to
the result file at once, and a rerun does only what is missing. Those of some tasks that learned
theirs make the file in the package, against which the witness is judged; the others are measured
beside them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finished_tasks import finished
from result_file import result_head
from scan_null import LEARNED
from witness_looking import look

from bezoar.executors import Task
from bezoar.methods import methods
from bezoar.records import write_json
from bezoar.reference_classes import BY_CLASS, MOST
from bezoar.scanning import WITNESSES

DATA = Path(__file__).parents[1] / "src" / "bezoar" / "data"
FIRST = 100  # seed
CLASSES = {"gtsrb": 43}  # of those with more than a scan looks at


@dataclass
class Options:
    """What to run.

    Attributes:
        executor: where, and how many side by side.
        keep: a folder where trained networks are kept, and taken from where they are there.
    """

    executor: str = "local:2"
    keep: Path | None = None


@dataclass(frozen=True)
class Witness:
    """Whose null is measured.

    Attributes:
        name: of the witness.
        title: of the result file.
        script: that measures it; the files are named after it.
        log: of its values, such that small is suspicious.
        networks: of each task.
        null: the tasks whose networks make the null.
    """

    name: str
    title: str
    script: str
    log: Callable[[float], float]
    networks: Mapping[str, int]
    null: tuple[str, ...]

    @property
    def results(self) -> Path:
        """The result file."""
        return Path(self.script).parent / "results" / f"{Path(self.script).stem}.json"

    def measure(self, options: Options) -> None:
        """Runs what is missing and writes the null."""
        runs = json.loads(self.results.read_text())["runs"] if self.results.exists() else []
        head = result_head(self.script, self.title, "one thread a network, other work beside it")
        known = {(run["task"], run["seed"]) for run in runs}
        for key, row in finished(self._tasks(options, known), options.executor):
            runs.append(self._measured(row))
            write_json(self.results, head | {"runs": runs})
            print(key, runs[-1], flush=True)
        write_json(self.results, head | {"summary": self._by_task(runs), "runs": runs})
        learned = sorted(r["smallest"] for r in runs if r["task"] in self.null and counts(r))
        write_json(DATA / self.results.name, {"version": 1, "log ratios": learned})

    def _tasks(self, options: Options, known: set[tuple[str, int]]) -> Iterator[Task]:
        # Where a scan chooses classes by what the witnesses before say, these look first.
        chosen = methods.get(self.name) in BY_CLASS
        before = WITNESSES[: WITNESSES.index(self.name)] if chosen else ()
        for name, count in self.networks.items():
            for seed in range(FIRST, FIRST + count):
                if (name, seed) in known:
                    continue
                keep = options.keep and str(options.keep.resolve())
                arguments = {"kind": "null", "name": name, "seed": seed, "keep": keep}
                looking = [*(before if CLASSES.get(name, 0) > MOST else ()), self.name]
                yield Task(
                    key=f"{name} {seed}",
                    function=look,
                    arguments=arguments | {"witnesses": looking},
                )

    def _measured(self, row: dict[str, Any]) -> dict[str, Any]:
        """What is kept of a look; its p-values are those of the null that is replaced."""
        found = row["witnesses"][self.name]
        values = [self.log(value) for value in found["values"] if value is not None]
        facts = {key: row[key] for key in ("task", "network", "seed", "classes", "acc")}
        return facts | {
            "refused": found.get("refused"),
            "smallest": min(values, default=None),
            "median": statistics.median(values) if values else None,
            "processor seconds": found["processor seconds"],
        }

    def _by_task(self, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
                    "in the null": task in self.null,
                    "smallest log ratio, mean": statistics.fmean(smallest) if smallest else None,
                    "smallest log ratio, least": min(smallest, default=None),
                    "smallest log ratio, greatest": max(smallest, default=None),
                    "processor seconds": statistics.fmean(
                        run["processor seconds"] for run in found
                    ),
                }
            )
        return rows


def counts(run: dict[str, Any]) -> bool:
    """Whether a network learned enough to be looked at."""
    return run["acc"] >= LEARNED and run["smallest"] is not None
