"""One model cleaned without naming a method, measured with the true trigger afterwards.

The task that ``automatic.py`` runs many times.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from measured_models import MODELS
from null_networks import CLEAN_IMAGES
from pool_methods import clean_accuracy

from bezoar.evaluation import compare, evaluate
from bezoar.executors import report
from bezoar.pipeline import clean


def look(*, kind: str, name: str, seed: int, precaution: bool = False) -> dict[str, Any]:
    """Cleans one model and measures it."""
    torch.set_num_threads(1)
    report("reading", 0.0)
    one = MODELS[kind](name, CLEAN_IMAGES, seed)
    classifier, known, test, attack = one.classifier, one.clean, one.test, one.attack
    started, used = time.perf_counter(), time.process_time()
    repair = clean(classifier, known, seed=seed, precaution=precaution, progress=report)
    record = repair.record
    row: dict[str, Any] = {
        "set": kind,
        "model": name,
        "seed": seed,
        "precaution": precaution,
        "clean images": len(known),
        "seconds": time.perf_counter() - started,
        "processor seconds": time.process_time() - used,
        "verdict": record["scan"]["verdict"],
        "suspects": record["scan"]["suspects"],
        "first": record["scan"]["ranking"][0],
        "p": min(record["scan"]["p_values"]),
        "classes": classifier.num_classes,
        "witnesses": {e.method: list(e.p_values) for e in repair.evidence},
        "proofs": record["scan"]["proofs"],
        "scan seconds": record["scan"]["seconds"]["total"],
        "untouched": record["untouched"],
        "accepted": record["accepted"],
        "trials": record.get("trials", []),
        "kept": record.get("kept"),
        "rescan": record["rescan"]["verdict"] if record.get("rescan") else None,
        "aftercare": record.get("aftercare"),
    } | one.facts
    # What was not accepted is not written, so the user keeps the model as it was.
    kept = repair.classifier if record["accepted"] else classifier
    if attack is None:
        row |= {
            when: {"acc": clean_accuracy(model, test)}
            for when, model in (("before", classifier), ("after", kept))
        }
        return row
    compared = compare(attack, evaluate(classifier, test, attack), evaluate(kept, test, attack))
    return row | {key: compared[key] for key in ("before", "after", "der")}
