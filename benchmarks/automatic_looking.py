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
from result_file import processor

from bezoar.classifier import Classifier
from bezoar.evaluation import compare, evaluate
from bezoar.executors import report
from bezoar.pipeline import clean


def look(
    *, kind: str, name: str, seed: int, images: int, precaution: bool = False
) -> dict[str, Any]:
    """Cleans one model with so many clean images, or none, and measures it."""
    torch.set_num_threads(1)
    report("reading", 0.0)
    one = MODELS[kind](name, images or CLEAN_IMAGES, seed)
    classifier, test, attack = one.classifier, one.test, one.attack
    known = one.clean if images else None
    if known is None:
        classifier = Classifier(
            classifier.network,
            mean=classifier.mean,
            std=classifier.std,
            classes=classifier.classes,
            input_size=(one.clean.shape[1], one.clean.shape[2]),
        )
    started, used = time.perf_counter(), time.process_time()
    repair = clean(classifier, known, seed=seed, precaution=precaution, progress=report)
    record = repair.record
    row: dict[str, Any] = {
        "set": kind,
        "model": name,
        "seed": seed,
        "precaution": precaution,
        "clean images": images,
        "processor": processor(),
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
        "method": record["method"]["name"] if "method" in record else None,
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
    row |= {key: compared[key] for key in ("before", "after", "der")}
    return row | {"twin": one.twin and evaluate(one.twin, test, attack).as_record()}
