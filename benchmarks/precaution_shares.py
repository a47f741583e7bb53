"""What a part of joint unlearning's way costs and removes, as if a scan had found nothing.

    BEZOAR_DATA=... python benchmarks/precaution_shares.py [--seeds 0 1]

The triggers of the most unusual class of every network of the pool's development half are unlearned
with 400 of 500 clean images, and the accuracy and the ASR are taken at some shares of the way on
2,000 test images. The shares of ``bezoar.precaution`` were chosen by this. Each network is written
to ``results/precaution_shares.json`` at once, and a rerun does only what is missing.
"""

from __future__ import annotations

import statistics
from typing import Any

import tyro
from development_half import Options, measured, results_of
from precaution_looking import look


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The loss of accuracy and the ASR at each share, over the networks of each seed."""
    rows = []
    for seed in sorted({run["seed"] for run in runs}):
        own = [run for run in runs if run["seed"] == seed]
        for place, share in enumerate(point["share"] for point in own[0]["shares"]):
            lost = {
                status: [
                    run["shares"][0]["acc"] - run["shares"][place]["acc"]
                    for run in own
                    if run["status"] == status
                ]
                for status in ("clean", "backdoored")
            }
            asr = [run["shares"][place]["asr"] for run in own if run["status"] == "backdoored"]
            row: dict[str, Any] = {"share of the way": share, "seed": seed}
            for status, values in lost.items():
                if values:
                    row |= {
                        status: len(values),
                        f"acc drop, {status}": statistics.fmean(values),
                        f"largest acc drop, {status}": max(values),
                    }
            rows.append(row | ({"asr after": statistics.fmean(asr)} if asr else {}))
    return rows


def main(options: Options) -> None:
    """Runs what is missing."""
    for key, whole in measured(
        options,
        look,
        __file__,
        "A part of the way of a precaution",
        lambda runs: {"summary": summary(runs)},
        statuses=("clean", "backdoored"),
    ):
        print(key, whole["runs"][-1], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, default=Options(results_of(__file__))))
