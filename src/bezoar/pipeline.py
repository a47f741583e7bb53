"""The two jobs users come for: ``scan`` a classifier, ``clean`` it; both leave a full record.

The way of a tensor: the clean images run through the classifier once (``Classifier.survey``), the
method turns logits and head into one statistic per class (``methods``), ``verdict`` judges it.
``clean`` then repairs a copy on four fifths of the images and judges the copy on the rest.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import torch

import bezoar
from bezoar.checks import check_input
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import TAC, Evidence, Method, Repair, methods
from bezoar.metrics import accuracy, agreement
from bezoar.power import power_sentence
from bezoar.statistics import FEWEST_CLASSES, critical_value
from bezoar.training import Progress, no_progress
from bezoar.verdict import Judgement, Levels, Verdict, judge

HELD_OUT = 0.2  # share of the clean images that judge a repair and take no part in it

NO_PROOF = (
    "This is no proof that the model has no backdoor: the scan looks for one class that is too "
    "easy to reach in the last layer, and some attacks do not show there."
)


@dataclass(frozen=True)
class Finding:
    """What a scan says.

    Attributes:
        verdict: one of the three.
        suspects: flagged classes, most suspicious first.
        ranking: all classes, most suspicious first.
        p_values: for each class, corrected for the number of classes and witnesses.
        evidence: what each method saw.
        record: all of it as plain JSON-able data.
    """

    verdict: Verdict
    suspects: tuple[int, ...]
    ranking: tuple[int, ...]
    p_values: tuple[float, ...]
    evidence: tuple[Evidence, ...]
    record: dict[str, Any]


def scan(
    classifier: Classifier,
    clean: ImageSet,
    *,
    seed: int = 0,
    witnesses: Sequence[Method] = (TAC(),),
    levels: Levels | None = None,
    progress: Progress = no_progress,
) -> Finding:
    """Looks for a backdoor in ``classifier`` with the help of clean images.

    Args:
        classifier: the suspect.
        clean: clean images of its task; labels are used for checks only.
        seed: of everything drawn at random.
        witnesses: the methods that look.
        levels: the limits of the verdicts.
        progress: called with what is done and its share.

    Raises:
        InputError: the images or the network cannot be used (see the message).
    """
    started = time.perf_counter()
    levels = levels or Levels()
    notices = check_input(classifier, clean)
    evidence = tuple(
        witness.inspect(classifier, clean, seed=seed, progress=progress) for witness in witnesses
    )
    judgement = judge(evidence, classifier.classes, levels)
    record = describe(classifier, clean, seed) | {
        "kind": "scan",
        "verdict": judgement.verdict.value,
        "sentence": _sentence(judgement, classifier.classes, len(clean)),
        "reasons": list(judgement.reasons),
        "suspects": list(judgement.suspects),
        "ranking": list(judgement.ranking),
        "p_values": list(judgement.p_values),
        "levels": msgspec.structs.asdict(levels),
        "power": f"{power_sentence()} {NO_PROOF}",
        "statistic": _statistic_record(evidence[0], levels),
        "evidence": [_evidence_record(item) for item in evidence],
        "skipped": [
            "No trigger in pixel space was recovered: the scan shifts the last layer's input."
        ],
        "notices": notices,
        "seconds": {"total": time.perf_counter() - started},
    }
    return Finding(
        judgement.verdict,
        judgement.suspects,
        judgement.ranking,
        judgement.p_values,
        evidence,
        record,
    )


def clean(
    classifier: Classifier,
    images: ImageSet,
    *,
    method: str | Method | None = None,
    seed: int = 0,
    max_accuracy_drop: float = 0.05,
    progress: Progress = no_progress,
) -> Repair:
    """Scans, repairs a copy of ``classifier``, and judges the copy on held-out clean images.

    Without ``method``, a classifier in which nothing is found comes back as an unchanged copy, and
    one with a suspected class is repaired by TAC. With one, it is always repaired.

    Args:
        classifier: the suspect; it stays as it is.
        images: labelled clean images; a fifth of each class is kept from the repair and judges it.
        method: a method, or its name for its default settings.
        seed: of everything drawn at random.
        max_accuracy_drop: largest loss of held-out accuracy, in [0, 1], of an accepted repair.
        progress: called with what is done and its share.

    Returns:
        The repaired classifier and the record; ``record["accepted"]`` says whether the loss of
        accuracy is within the limit.

    Raises:
        InputError: the images, the network or the method cannot be used.
    """
    started = time.perf_counter()
    if not 0 <= max_accuracy_drop <= 1:
        raise InputError(f"max_accuracy_drop is {max_accuracy_drop}; expected a share in [0, 1]")
    chosen = methods.get(method)() if isinstance(method, str) else method
    labels = images.require_labels("cleaning")
    finding = scan(classifier, images, seed=seed, progress=progress)
    record = describe(classifier, images, seed) | {"kind": "clean", "scan": finding.record}
    if chosen is None and finding.verdict is Verdict.NOTHING_FOUND:
        return Repair(
            classifier.copy(),
            record
            | {
                "accepted": True,
                "untouched": True,
                "outcome": "Left untouched: the scan found nothing, and no method was asked for. "
                + NO_PROOF,
                "seconds": {"total": time.perf_counter() - started},
            },
        )
    reason = "It was asked for."
    if chosen is None:
        suspect = finding.suspects[0]
        chosen = TAC(target_class=suspect)
        reason = (
            f"The scan suspects class {classifier.classes[suspect]}; of the methods that are "
            "there, TAC undoes a change of the last layer's input towards one class."
        )
    fit_part, held_out = images.split(1 - HELD_OUT, seed=seed)
    if not len(held_out):
        raise InputError(
            f"there are {len(images)} clean images, one of each class, and none is left to judge "
            "the repair; give at least two images of each class"
        )
    repair = chosen.remove(classifier, fit_part, seed=seed, progress=progress)
    truth = held_out.require_labels("cleaning").to(classifier.device)
    old = classifier.logits(held_out).argmax(1)
    new = repair.classifier.logits(held_out).argmax(1)
    before, after = accuracy(old, truth), accuracy(new, truth)
    drop = before.value - after.value
    accepted = drop <= max_accuracy_drop + 1e-12
    try:
        rescan = scan(repair.classifier, images, seed=seed)
        again = f"A new scan of the repaired model says: {rescan.verdict.value}."
    except InputError as error:  # the repair ruined the network; the gate says so, not an error
        rescan = None
        again = f"The repaired model could not be scanned again: {error}."
    limit = f"{100 * max_accuracy_drop:g} points"
    outcome = (
        f"{'Repaired' if accepted else 'Not accepted'}: accuracy {100 * before.value:.1f} % before "
        f"and {100 * after.value:.1f} % after, on {len(held_out)} held-out clean images "
        f"({'within' if accepted else 'beyond'} the limit of {limit}). "
        f"{again}"
    )
    return Repair(
        repair.classifier,
        record
        | {
            "accepted": accepted,
            "untouched": False,
            "outcome": outcome,
            "method": {
                "name": chosen.name,
                "title": chosen.title,
                "paper": chosen.paper,
                "reason": reason,
                "configuration": chosen.configuration(),
            },
            "before": {"accuracy": before.as_record()},
            "after": {"accuracy": after.as_record()},
            "agreement": agreement(old, new).as_record(),
            "accuracy_drop": drop,
            "max_accuracy_drop": max_accuracy_drop,
            "fitted_on": {"count": len(fit_part), "of": len(labels)},
            "changes": changes(classifier, repair.classifier),
            "curves": repair.record.get("curves", []),
            "repair": {key: value for key, value in repair.record.items() if key != "curves"},
            "rescan": rescan and rescan.record,
            "seconds": {"total": time.perf_counter() - started},
        },
    )


def describe(classifier: Classifier, images: ImageSet, seed: int) -> dict[str, Any]:
    """The facts that every record starts with; whoever knows the files adds their names."""
    network = classifier.network
    counts = None
    if images.labels is not None:
        counts = images.class_counts(classifier.num_classes).tolist()
    return {
        "bezoar": bezoar.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "device": str(classifier.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "model": {
            "architecture": type(network).__name__,
            "parameters": sum(p.numel() for p in network.parameters()),
            "input": list(images.shape),
            "mean": list(classifier.mean),
            "std": list(classifier.std),
            "classes": list(classifier.classes),
            "head": classifier.head.name,
        },
        "images": {
            "count": len(images),
            "labelled": images.labels is not None,
            "per_class": counts,
            "sha256": images.sha256(),
        },
    }


def changes(before: Classifier, after: Classifier) -> list[dict[str, Any]]:
    """For each changed tensor of the state dict: ||new - old|| / ||old||, largest first."""
    rows = []
    new_state = after.network.state_dict()
    for name, old in before.network.state_dict().items():
        if not old.is_floating_point():
            continue  # counters of batches say nothing
        gap = float((new_state[name].float() - old.float()).norm())
        size = float(old.float().norm())
        if gap:
            rows.append(
                {
                    "tensor": name,
                    "shape": list(old.shape),
                    "relative_change": gap / size if size else None,
                }
            )
    return sorted(rows, key=lambda row: -(row["relative_change"] or float("inf")))


def _sentence(judgement: Judgement, classes: Sequence[str], count: int) -> str:
    if judgement.verdict is Verdict.NOTHING_FOUND:
        return (
            f"None of the {len(classes)} classes is unusually easy to reach with these {count} "
            f"clean images. {NO_PROOF}"
        )
    names = ", ".join(classes[k] for k in judgement.suspects)
    plural = "es" if len(judgement.suspects) > 1 else ""
    if judgement.verdict is Verdict.BACKDOOR_FOUND:
        return (
            f"A small change of the last layer's input, the same for all images, carries almost "
            f"every image into class{plural} {names}, and backdoor-free models hardly ever show "
            "one so small."
        )
    return (
        f"Class{plural} {names} can be reached more easily than backdoor-free models show, without "
        "the proof that would make it a finding."
    )


def _statistic_record(evidence: Evidence, levels: Levels) -> dict[str, Any]:
    """The statistic in its own units with the two critical values of the most suspicious class."""
    finite = [v for v in evidence.values if 0 < v < float("inf")]
    logs = [math.log(v) if 0 < v < float("inf") else float("inf") for v in evidence.values]
    null: dict[str, Any] = {"description": evidence.null}
    if len(finite) >= FEWEST_CLASSES:
        smallest = min(range(len(logs)), key=lambda k: logs[k])
        null |= {
            "median": float(np.median(finite)),
            "critical_suspicious": math.exp(critical_value(logs, smallest, levels.suspicious)),
            "critical_found": math.exp(critical_value(logs, smallest, levels.found)),
        }
    return {
        "name": evidence.statistic,
        "values": list(evidence.values),
        "scores": list(evidence.scores),
        "null": null,
    }


def _evidence_record(evidence: Evidence) -> dict[str, Any]:
    """One witness, with its figures for each class as columns."""
    details = dict(evidence.record)
    per_class: dict[str, Any] = {"norm": details.pop("norms", list(evidence.values))}
    if evidence.carried is not None:
        per_class["held_out_flip"] = list(evidence.carried)
    for key, column in (("weight_norms", "weight_norm"), ("predicted_images", "predicted")):
        if key in details:
            per_class[column] = details.pop(key)
    return {
        "method": evidence.method,
        "paper": details.pop("paper", ""),
        "per_class": per_class,
        "kkt_residual": details.pop("kkt_residual", None),
        "seconds": sum(details.get("seconds", {}).values()),
        "details": details,
    }
