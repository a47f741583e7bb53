"""One network unlearned several times, and the means of those networks, measured.

The task that ``mean_of_runs.py`` runs for each network.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from measured_models import pool_model
from most_unusual import most_unusual
from null_networks import CLEAN_IMAGES

from bezoar.evaluation import compare, evaluate
from bezoar.executors import report
from bezoar.how_far import mean_of
from bezoar.methods import JointUnlearning
from bezoar.trying import RUNS, seeds_of


def look(*, name: str, seed: int) -> dict[str, Any]:
    """One network's runs, one at a time, and the means of the first of them."""
    torch.set_num_threads(1)
    one = pool_model(name, CLEAN_IMAGES, seed)
    assert one.attack is not None
    used = time.process_time()
    first, known, _, finding, survivors = most_unusual(one, seed)
    method, triggers = JointUnlearning(target_class=first), survivors.triggers
    single = [
        method.unlearn(
            one.classifier, one.classifier, known, triggers, seed=own, progress=report
        ).classifier
        for own in seeds_of(seed, RUNS)
    ]
    used = time.process_time() - used
    before = evaluate(one.classifier, one.test, one.attack)
    means = []
    for networks in [[network] for network in single] + [single[:n] for n in range(2, RUNS + 1)]:
        after = evaluate(mean_of(networks), one.test, one.attack)
        means.append(
            {
                "averaged": len(networks),
                "acc drop": before.acc - after.acc,
                "asr": after.asr,
                "der": compare(one.attack, before, after)["der"],
            }
        )
    return {
        "model": name,
        "seed": seed,
        **{key: one.facts[key] for key in ("attack", "target")},
        "verdict": finding.verdict.value,
        "first": first,
        "processor seconds": used,
        "means": means,
    }
