"""What every witness says of one network; the task that ``scan_null.py`` runs many times.

A network is named by its set: ``null`` (trained here, without a backdoor), ``pool`` or
``third-party``. What is kept is all that the verdict reads, so that the null of any choice of
witnesses, and of any rule that combines them, can be computed without looking again.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from measured_models import MODELS
from null_networks import CLEAN_IMAGES, null_network

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.executors import report
from bezoar.images import ImageSet
from bezoar.methods import Evidence, methods
from bezoar.proving import Prover
from bezoar.reference_classes import narrowed
from bezoar.scanning import LARGE_IMAGES, unfit_witnesses

TRIED = 3  # of each witness's classes, most unusual first, what it recovered is tried


def subject(
    kind: str, name: str, seed: int, keep: str | None
) -> tuple[Classifier, ImageSet, dict[str, Any]]:
    """A network, clean images for it, and what is known of it.

    Args:
        kind: the set.
        name: in the set; of a null network its task.
        seed: of the clean images; of a null network, which one it is.
        keep: where trained null networks are kept.
    """
    if kind == "null":
        classifier, clean, facts = null_network(name, seed, keep and Path(keep))
        return classifier, clean, facts | {"status": "clean", "target": None, "attack": None}
    one = MODELS[kind](name, CLEAN_IMAGES, seed)
    return one.classifier, one.clean, one.facts


def look(
    *, kind: str, name: str, seed: int, witnesses: list[str], keep: str | None = None
) -> dict[str, Any]:
    """Facts of the network and, for each witness, its figures."""
    torch.set_num_threads(1)
    report("reading", 0.0)
    classifier, clean, facts = subject(kind, name, seed, keep)
    classifier.trace(clean.shape)
    prover = Prover(classifier, clean, seed=0)
    seen: list[Evidence] = []
    found: dict[str, Any] = {}
    for witness in witnesses:
        started, used = time.perf_counter(), time.process_time()
        method = narrowed(methods.get(witness)(), seen, classifier.num_classes, seed=0)
        try:
            if witness in LARGE_IMAGES and witness in (unfit := unfit_witnesses(classifier, clean)):
                raise InputError(unfit[witness])
            evidence = method.inspect(classifier, clean, seed=0, progress=report)
        except InputError as error:  # a scan leaves it out; here it says nothing of any class
            figures = _refused(str(error), classifier.num_classes)
        else:
            seen.append(evidence)
            figures = _figures(evidence, prover)
        found[witness] = figures | {
            "seconds": time.perf_counter() - started,
            "processor seconds": time.process_time() - used,
        }
    return (
        {"set": kind, "name": name, "seed": seed}
        | facts
        | {
            "classes": classifier.num_classes,
            "witnesses": found,
        }
    )


def _refused(reason: str, classes: int) -> dict[str, Any]:
    return {"values": [None] * classes, "p": [1.0] * classes, "proofs": {}, "refused": reason}


def _figures(evidence: Evidence, prover: Prover) -> dict[str, Any]:
    classes = range(len(evidence.values))
    ranked = sorted(classes, key=lambda k: (evidence.p_values[k], evidence.values[k]))
    proofs = {k: prover.prove(evidence, k) for k in ranked[:TRIED]}
    return {
        "values": [v if math.isfinite(v) else None for v in evidence.values],
        "p": list(evidence.p_values),
        "proofs": {k: proof and proof.as_record() for k, proof in proofs.items()},
    }
