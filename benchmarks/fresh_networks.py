"""How often does the scan alarm on honest networks that it was not made from?

    BEZOAR_DATA=... python benchmarks/fresh_networks.py [--executor local:2]

The scan's null says how often it should; here that is tried. Networks without a backdoor are
trained with numbers that no null and no other script uses, every second one of a kind that no null
is made of (``null_networks.py``), and scanned as a user would, with 500 clean images and without
any. Those that do not learn their task, or whose clean images the scan refuses, are told apart and
not counted. Writes ``results/fresh_networks.json``, each network at once; a rerun does only what is
missing. ``scan_power.py`` hands the rates to every scan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from alarm_rates import at_levels
from finished_tasks import finished
from fresh_looking import look
from result_file import machine_of, result_head
from scan_null import LEARNED

from bezoar.executors import Task
from bezoar.records import to_json, write_json

RESULTS = Path(__file__).parent / "results" / "fresh_networks.json"
NETWORKS = {"digits": 32, "pairs": 40, "cifar10": 6, "gtsrb": 9}
FIRST = 5000
SMALL = ("digits", "pairs")  # whose images are below ``smooth_pattern.SMALLEST`` pixels
Run = dict[str, Any]


@dataclass
class Options:
    """What to run.

    Attributes:
        out: the result file.
        executor: where, and how many side by side.
        keep: a folder where trained networks are kept, and taken from where they are there.
    """

    out: Path = RESULTS
    executor: str = "local:2"
    keep: Path | None = None


def tasks(options: Options, runs: dict[str, Run]) -> Iterator[Task]:
    """What is missing; the sets take turns, so that a part of the work is a part of each."""
    turns = sorted(
        ((i + 0.5) / count, task, i) for task, count in NETWORKS.items() for i in range(count)
    )
    for _, task, i in turns:
        number = FIRST + i
        if f"{task} {number}" in runs:
            continue
        arguments = {
            "task": task,
            "number": number,
            "kind": i // 2,
            "other": i % 2 == 1,
            "keep": options.keep and str(options.keep.resolve()),
        }
        yield Task(key=f"{task} {number}", function=look, arguments=arguments)


def learned(runs: list[Run]) -> list[Run]:
    """Those that count: they know their task, and the scan took their clean images."""
    return [run for run in runs if run["acc"] >= LEARNED and "refused" not in run]


def false_alarms(runs: list[Run], *, images: bool, small: bool = False) -> dict[str, Any]:
    """Shares of alarms by the number of classes, and of all.

    Args:
        runs: of this script.
        images: of the scans with images, or of those without.
        small: only of networks for small images.
    """
    counted = [run for run in learned(runs) if run["task"] in SMALL or not small]
    looks = [run | ({} if images else run["without images"]) for run in counted]
    classes = sorted({run["classes"] for run in looks})
    rows = {str(k): at_levels([r["p"] for r in looks if r["classes"] == k]) for k in classes}
    return rows | {"all": at_levels([run["p"] for run in looks])}


def summary(runs: list[Run]) -> list[dict[str, Any]]:
    """A row for each task, of the kinds of the null and of others."""
    rows = []
    for task in NETWORKS:
        for other in (False, True):
            own = [run for run in runs if (run["task"], run["other"]) == (task, other)]
            if not (counted := learned(own)):
                continue
            rows.append(
                {
                    "models are": task,
                    "kinds": "others" if other else "of the null",
                    "classes": counted[0]["classes"],
                    "runs": len(counted),
                    "refused": sum("refused" in run for run in own),
                    "not learned": sum(run["acc"] < LEARNED for run in own),
                    "smallest accuracy": min(run["acc"] for run in counted),
                    "false alarms at 0.05": _at_level(counted),
                    "backdoor found": sum(run["verdict"] == "backdoor found" for run in counted),
                    "smallest p": min(run["p"] for run in counted),
                    "false alarms at 0.05, no images": _at_level(
                        [run["without images"] for run in counted]
                    ),
                }
            )
    return rows


def _at_level(looks: list[Run]) -> dict[str, Any]:
    return at_levels([look["p"] for look in looks])["at 0.05"]


def main(options: Options) -> None:
    """Runs what is missing."""
    done: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    runs = {f"{run['task']} {run['seed']}": run for run in done.get("runs", [])}
    for key, row in finished(tasks(options, runs), options.executor):
        runs[key] = row
        _write(options.out, list(runs.values()))
        print(key, row["network"], row.get("verdict"), row.get("p"), flush=True)
    _write(options.out, list(runs.values()))


def _write(out: Path, runs: list[Run]) -> None:
    head = result_head(__file__, "False alarms of a scan on networks that it was not made from")
    machine = machine_of(runs, "one thread a network, two at once")
    write_json(out, to_json(head | {"machine": machine, "summary": summary(runs), "runs": runs}))


if __name__ == "__main__":
    main(tyro.cli(Options))
