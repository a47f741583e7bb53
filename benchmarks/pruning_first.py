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
from typing import Any

import tyro
from development_half import Options, measured, results_of
from pruning_first_looking import look


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
    for key, whole in measured(
        options,
        look,
        __file__,
        "Pruning before the triggers are unlearned",
        lambda runs: {"summary": summary(runs), "told": told(runs)},
    ):
        print(key, whole["told"], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, default=Options(results_of(__file__))))
