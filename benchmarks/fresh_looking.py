"""A network that no null is made of, scanned; the task of ``fresh_networks.py``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from null_networks import null_network
from result_file import processor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.executors import report
from bezoar.pipeline import scan
from bezoar.scanning import Finding


def look(*, task: str, number: int, kind: int, other: bool, keep: str | None) -> dict[str, Any]:
    """Trains one network, or takes it from ``keep``, and scans it with images and without.

    Args:
        task: of ``null_networks.TASKS``.
        number: its seed, of all that is drawn.
        kind: which of the task's kinds; they take turns.
        other: whether it is of a kind that no null is made of.
        keep: where trained networks are kept.
    """
    torch.set_num_threads(1)
    report("training", 0.0)
    classifier, clean, facts = null_network(
        task, number, keep and Path(keep), kind=kind, other=other
    )
    size = (clean.shape[1], clean.shape[2])
    sized = Classifier(
        classifier.network, mean=classifier.mean, std=classifier.std, input_size=size
    )
    facts |= {"other": other, "processor": processor()}
    used = time.process_time()
    try:
        shown = scan(sized, clean, seed=0, progress=report)
    except InputError as error:  # of 200 classes one may have no image among the clean ones
        return facts | {"refused": str(error)}
    seconds = time.process_time() - used
    blind = told(scan(sized, seed=0))
    return facts | told(shown) | {"processor seconds": seconds, "without images": blind}


def told(finding: Finding) -> dict[str, Any]:
    """The verdict and what it rests on."""
    first = finding.ranking[0]
    return {
        "verdict": finding.record["verdict"],
        "p": finding.p_values[first],
        "first": first,
        "p by witness": {e.method: e.p_values[first] for e in finding.evidence},
    }
