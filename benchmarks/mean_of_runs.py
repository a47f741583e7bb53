"""What the mean of several unlearnings is worth beside each of them.

    BEZOAR_DATA=... python benchmarks/mean_of_runs.py [--seeds 0 1]

Every backdoored network of the pool's development half is scanned with 500 images, and the triggers
of its most unusual class are unlearned three times with 400 of them, as the first repair of
``clean`` does. Accuracy, ASR and DER of each run, and of the means of the first two and of all, are
taken on 2,000 test images with the true trigger, all the way. That three are averaged was settled
by a first look at nine of these networks; two do nearly as well. Each network is written to
``results/mean_of_runs.json`` at once, and a rerun does only what is missing.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from finished_tasks import finished, resumed
from mean_of_runs_looking import look
from pool_methods import POOL
from result_file import result_head

from bezoar.pools import open_pool
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "mean_of_runs.json"


@dataclass
class Options:
    """What to run.

    Attributes:
        seeds: each draws other clean images.
        executor: where, and how many side by side.
        out: the result file.
    """

    seeds: tuple[int, ...] = (0,)
    executor: str = "local:2"
    out: Path = RESULTS


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Loss of accuracy, ASR and DER by how many networks are averaged, in the mean of all."""
    rows = []
    for averaged in sorted({row["averaged"] for run in runs for row in run["means"]}):
        own = [row for run in runs for row in run["means"] if row["averaged"] == averaged]
        rows.append(
            {"averaged": averaged, "networks": len(runs), "looks": len(own)}
            | {key: statistics.fmean(r[key] for r in own) for key in ("acc drop", "asr", "der")}
        )
    return rows


def main(options: Options) -> None:
    """Runs what is missing."""
    entries = open_pool(POOL).half("development")
    names = [entry.name for entry in entries if entry.status == "backdoored"]
    runs, tasks = resumed(options.out, look, names, options.seeds)
    head = result_head(
        __file__, "The mean of several unlearnings", "one thread a model, other work beside it"
    )
    for key, row in finished(tasks, options.executor):
        runs.append(row)
        write_json(options.out, head | {"summary": summary(runs), "runs": runs})
        print(key, row, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
