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
from typing import Any

import tyro
from development_half import Options, measured, results_of
from mean_of_runs_looking import look


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
    title = "The mean of several unlearnings"
    for key, whole in measured(
        options, look, __file__, title, lambda runs: {"summary": summary(runs)}
    ):
        print(key, whole["runs"][-1], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, default=Options(results_of(__file__))))
