"""One model cleaned without naming a method, measured with the true trigger afterwards.

The task that ``automatic.py`` runs many times.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import third_party
import torch
from null_networks import CLEAN_IMAGES
from pool_methods import POOL, clean_accuracy, parts

from bezoar.attacks import Attack, StoredPattern
from bezoar.classifier import Classifier
from bezoar.evaluation import compare, evaluate
from bezoar.executors import report
from bezoar.images import ImageSet
from bezoar.pipeline import clean
from bezoar.pools import open_pool


def subject(
    kind: str, name: str, seed: int
) -> tuple[Classifier, ImageSet, ImageSet, Attack | None, dict[str, Any]]:
    """A network, clean and test images, its trigger or None, and what is known of it."""
    if kind == "pool":
        pool = open_pool(POOL)
        halves = ("development", "held-out")
        entry = next(e for half in halves for e in pool.half(half) if e.name == name)
        rest, test = parts(entry.data)
        facts = {"half": entry.half, "status": entry.status, "target": entry.target}
        attack = pool.attack(entry) if entry.attack else None
        known = rest.sample(CLEAN_IMAGES, seed=seed)
        return pool.load(entry).classifier, known, test, attack, facts | {"attack": entry.attack}
    root = Path(os.environ["BEZOAR_DATA"])
    folder = root / "models" / name
    loaded, facts = third_party.load(folder)
    everything = third_party.test_images(root, facts)
    known, test = everything.split(CLEAN_IMAGES / len(everything), seed=seed)
    bad = facts["backdoored"]
    attack = None
    if bad:
        attack = StoredPattern(file=str(folder / "trigger.npy"), target=facts["attack"]["target"])
    told = {
        "half": "third-party",
        "status": "backdoored" if bad else "clean",
        "target": facts["attack"]["target"] if bad else None,
        "attack": facts["attack"]["kind"] if bad else None,
    }
    return loaded.classifier, known, test, attack, told


def look(*, kind: str, name: str, seed: int, precaution: bool = False) -> dict[str, Any]:
    """Cleans one model and measures it."""
    torch.set_num_threads(1)
    report("reading", 0.0)
    classifier, known, test, attack, facts = subject(kind, name, seed)
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
    } | facts
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
