"""Does it help to prune before the recovered triggers are unlearned?

    BEZOAR_DATA=... python benchmarks/pruning_first.py [--seeds 0 1]

Every backdoored network of the pool's development half is scanned with 500 images and repaired by
the plan of ``clean``. Where no trial of it ends the search, CLP, RNP and ANP follow, alone and with
the unlearning after them, judged in the same way: by held-out images and recovered triggers. The
true trigger is used afterwards, on 2,000 test images, and chooses nothing. Each network is written
to ``results/pruning_first.json`` at once, and a rerun does only what is missing.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from finished_tasks import finished, resumed
from pool_methods import POOL
from pruning_first_looking import look
from result_file import result_head

from bezoar.pools import open_pool
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "pruning_first.json"


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
    """Each repair over the networks on which none of the plan ended the search."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        if not run.get("ended early", True):
            for trial in run["trials"]:
                if "steps" in trial:
                    groups.setdefault(", then ".join(trial["steps"]), []).append(trial)
    return [
        {"name": name, "networks": len(own)}
        | {
            key: statistics.fmean(trial[key] for trial in own)
            for key in ("balance", "acc drop", "asr after", "der", "seconds")
        }
        for name, own in groups.items()
    ]


def told(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """How often pruning first would be kept."""
    flagged = [run for run in runs if run["trials"]]
    late = [run for run in flagged if not run["ended early"]]
    pairs = [[run["trials"][run[key]] for key in ("kept", "kept, pruned")] for run in late]
    facts: dict[str, Any] = {
        "backdoored networks": len(runs),
        "suspected": len(flagged),
        "search ended by the plan": len(flagged) - len(late),
        "better with pruning": sum(own["balance"] > other["balance"] for own, other in pairs),
    }
    if pairs:
        for place, kind in enumerate(("plan", "pruning")):
            facts[f"balance of the {kind}, mean"] = statistics.fmean(
                pair[place]["balance"] for pair in pairs
            )
            facts[f"asr after the {kind}, mean"] = statistics.fmean(
                pair[place]["asr after"] for pair in pairs
            )
    return facts


def main(options: Options) -> None:
    """Runs what is missing."""
    names = [e.name for e in open_pool(POOL).half("development") if e.status == "backdoored"]
    runs, tasks = resumed(options.out, look, names, options.seeds)
    head = result_head(
        __file__,
        "Pruning before the triggers are unlearned",
        "one thread a model, other work beside it",
    )
    for key, row in finished(tasks, options.executor):
        runs.append(row)
        write_json(options.out, head | {"summary": summary(runs), "told": told(runs), "runs": runs})
        print(key, told(runs), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
