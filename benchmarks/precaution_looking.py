"""One network unlearned as a precaution, measured at some shares of the way.

The task that ``precaution_shares.py`` runs for each network.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from measured_models import pool_model
from most_unusual import most_unusual
from null_networks import CLEAN_IMAGES
from pool_methods import clean_accuracy

from bezoar.accuracy_loss import Baseline
from bezoar.evaluation import evaluate
from bezoar.executors import report
from bezoar.how_far import between
from bezoar.methods import JointUnlearning
from bezoar.precaution import SHARES
from bezoar.trying import Unlearning

WHOLE = 1.0


def look(*, name: str, seed: int) -> dict[str, Any]:
    """One network, unlearned and measured at every share of the way."""
    torch.set_num_threads(1)
    one = pool_model(name, CLEAN_IMAGES, seed)
    used = time.process_time()
    first, known, held_out, finding, survivors = most_unusual(one, seed)
    step = Unlearning(JointUnlearning(target_class=first), survivors, runs=1)
    repair = step.remove(one.classifier, known, seed=seed, progress=report)
    used = time.process_time() - used
    baseline = Baseline(one.classifier, held_out, seed=seed)
    shares = []
    for share in (0.0, *SHARES[::-1], WHOLE):
        network = between(one.classifier, repair.classifier, share)
        row: dict[str, Any] = {"share": share, "told": baseline.loss(network).value}
        if one.attack is None:
            row["acc"] = clean_accuracy(network, one.test)["value"]
        else:
            scores = evaluate(network, one.test, one.attack)
            row |= {"acc": scores.acc, "asr": scores.asr}
        shares.append(row)
    return {
        "model": name,
        "seed": seed,
        **{key: one.facts[key] for key in ("status", "attack", "target")},
        "verdict": finding.verdict.value,
        "first": first,
        "processor seconds": used,
        "shares": shares,
    }
