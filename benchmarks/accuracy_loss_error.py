"""How well a hundred held-out images tell the accuracy that a repair costs.

    BEZOAR_DATA=... python benchmarks/accuracy_loss_error.py

Every backdoored model of the pool's development half is repaired in three ways with 400 of 500
clean images. What ``bezoar.accuracy_loss`` says from the other hundred is compared with the loss on
2,000 test images that took no part.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from measured_models import pool_model
from null_networks import CLEAN_IMAGES
from pool_methods import POOL, clean_accuracy
from result_file import result_head

from bezoar.accuracy_loss import accuracy_loss
from bezoar.given import HELD_OUT
from bezoar.methods import BtiDbf, FineTuning, NeuralCleanse
from bezoar.pools import open_pool
from bezoar.records import write_json

RESULTS = Path(__file__).parent / "results" / "accuracy_loss_error.json"
SEED = 0
FIGURES = ("counted", "expected", "value")


def look(name: str) -> list[dict[str, Any]]:
    """One model, repaired in three ways."""
    one = pool_model(name, CLEAN_IMAGES, SEED)
    known, held_out = one.clean.split(1 - HELD_OUT, seed=SEED)
    before = clean_accuracy(one.classifier, one.test)["value"]
    rows = []
    for method in (
        FineTuning(schedule="super-convergent"),
        NeuralCleanse(target_class=one.facts["target"]),
        BtiDbf(),
    ):
        repaired = method.remove(one.classifier, known, seed=SEED).classifier
        told = accuracy_loss(one.classifier, repaired, held_out, seed=SEED).as_record()
        after = clean_accuracy(repaired, one.test)["value"]
        rows.append({"name": name, "repair": method.name, "true": before - after} | told)
    return rows


def main() -> None:
    """Runs all and writes the table."""
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for entry in open_pool(POOL).half("development"):
        if entry.status == "backdoored":
            runs += look(entry.name)
            print(*runs[-3:], sep="\n", flush=True)
    errors = {figure: [run[figure] - run["true"] for run in runs] for figure in FIGURES}
    told = result_head(__file__, "The loss of accuracy, told by a hundred images", "one thread") | {
        "summary": [
            {
                "loss": figure,
                "repairs": len(own),
                "root mean square error": math.sqrt(sum(e * e for e in own) / len(own)),
                "mean error": sum(own) / len(own),
                "largest error": max(map(abs, own)),
            }
            for figure, own in errors.items()
        ],
        "runs": runs,
    }
    write_json(RESULTS, told)


if __name__ == "__main__":
    main()
