"""The two jobs users come for: ``scan`` a classifier, ``clean`` it; both leave a full record.

The way of a tensor: each witness, a method that inspects, turns network and clean images into one
statistic per class (``methods``), ``verdict`` judges them together, ``scan_record`` writes it down.
``clean`` then repairs a copy on four fifths of the images and judges the copy on the rest.
"""

from __future__ import annotations

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
from bezoar.networks.purified import Purified
from bezoar.scan_record import no_proof, scan_record
from bezoar.training import Progress, no_progress
from bezoar.verdict import Levels, Verdict, judge

HELD_OUT = 0.2  # share of the clean images that judge a repair and take no part in it

WITNESSES = ("tac",)  # who looks where nobody is named


@dataclass(frozen=True)
class Finding:
    """What a scan says.

    Attributes:
        verdict: one of the three.
        suspects: flagged classes, most suspicious first.
        ranking: all classes, most suspicious first.
        p_values: for each class, corrected for the number of classes and witnesses.
        evidence: what each method saw.
        deciding: for each class, which of ``evidence`` proves it, or else finds it most unusual.
        record: all of it as plain JSON-able data.
    """

    verdict: Verdict
    suspects: tuple[int, ...]
    ranking: tuple[int, ...]
    p_values: tuple[float, ...]
    evidence: tuple[Evidence, ...]
    deciding: tuple[int, ...]
    record: dict[str, Any]


def scan(
    classifier: Classifier,
    clean: ImageSet,
    *,
    seed: int = 0,
    witnesses: Sequence[str | Method] = WITNESSES,
    levels: Levels | None = None,
    progress: Progress = no_progress,
) -> Finding:
    """Looks for a backdoor in ``classifier`` with the help of clean images.

    Args:
        classifier: the suspect.
        clean: clean images of its task; labels are used for checks only.
        seed: of everything drawn at random.
        witnesses: the methods that look, or their names for their default settings.
        levels: the limits of the verdicts.
        progress: called with what is done and its share.

    Raises:
        InputError: the images, the network or a witness cannot be used (see the message).
    """
    started = time.perf_counter()
    levels = levels or Levels()
    looking = find_witnesses(witnesses)
    notices = check_input(classifier, clean)
    evidence = tuple(
        witness.inspect(classifier, clean, seed=seed, progress=progress) for witness in looking
    )
    flags = [flag for witness in evidence for flag in witness.record.get("flags", [])]
    judgement = judge(evidence, classifier.classes, levels)
    record = (
        describe(classifier, clean, seed)
        | scan_record(judgement, evidence, classifier.classes, len(clean), levels)
        | {"notices": notices + flags, "seconds": {"total": time.perf_counter() - started}}
    )
    return Finding(
        judgement.verdict,
        judgement.suspects,
        judgement.ranking,
        judgement.p_values,
        evidence,
        judgement.deciding,
        record,
    )


def find_witnesses(witnesses: Sequence[str | Method]) -> tuple[Method, ...]:
    """The methods of a scan, from methods and names.

    Raises:
        InputError: a name is not known, a method does not look for the target class, one is given
            twice, or there is none.
    """
    known = [name for name in methods.names() if methods.get(name).inspects]
    found: list[Method] = []
    for given in [witnesses] if isinstance(witnesses, str | Method) else witnesses:
        witness = methods.get(given)() if isinstance(given, str) else given
        if not witness.inspects:
            raise InputError(
                f"the method {witness.name!r} removes backdoors and does not look for the target "
                f"class; methods that do: {', '.join(known)}"
            )
        if witness in found:  # it would only make every p-value larger
            raise InputError(f"the method {witness.name!r} is given twice; give it once")
        found.append(witness)
    if not found:
        raise InputError(f"no method is given that looks; there are {', '.join(known)}")
    return tuple(found)


def clean(
    classifier: Classifier,
    images: ImageSet,
    *,
    method: str | Method | None = None,
    seed: int = 0,
    witnesses: Sequence[str | Method] = WITNESSES,
    max_accuracy_drop: float = 0.05,
    progress: Progress = no_progress,
) -> Repair:
    """Scans, repairs a copy of ``classifier``, and judges the copy on held-out clean images.

    Without ``method``, a classifier in which nothing is found comes back as an unchanged copy, and
    one with a suspected class is repaired by the witness that found it. With one, it is always
    repaired.

    Args:
        classifier: the suspect; it stays as it is.
        images: labelled clean images; a fifth of each class is kept from the repair and judges it.
        method: a method, or its name for its default settings.
        seed: of everything drawn at random.
        witnesses: the methods that look, before and after the repair.
        max_accuracy_drop: largest loss of held-out accuracy, in [0, 1], of an accepted repair.
        progress: called with what is done and its share.

    Returns:
        The repaired classifier and the record; ``record["accepted"]`` says whether the loss of
        accuracy is within the limit.

    Raises:
        InputError: the images, the network or a method cannot be used.
    """
    started = time.perf_counter()
    if not 0 <= max_accuracy_drop <= 1:
        raise InputError(f"max_accuracy_drop is {max_accuracy_drop}; expected a share in [0, 1]")
    chosen = methods.get(method)() if isinstance(method, str) else method
    looking = find_witnesses(witnesses)
    labels = images.require_labels("cleaning")
    finding = scan(classifier, images, seed=seed, witnesses=looking, progress=progress)
    record = describe(classifier, images, seed) | {"kind": "clean", "scan": finding.record}
    if chosen is None and finding.verdict is Verdict.NOTHING_FOUND:
        return Repair(
            classifier.copy(),
            record
            | {
                "accepted": True,
                "untouched": True,
                "outcome": "Left untouched: the scan found nothing, and no method was asked for. "
                + no_proof(finding.evidence),
                "seconds": {"total": time.perf_counter() - started},
            },
            finding.evidence,
        )
    reason = "It was asked for."
    if chosen is None:
        chosen, reason = _repair_for(finding, looking, classifier.classes)
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
        rescan = scan(repair.classifier, images, seed=seed, witnesses=looking)
        again = f"A new scan of the repaired model says: {rescan.verdict.value}."
    except InputError as error:  # the repair ruined the network; the gate says so, not an error
        rescan = None
        again = f"The repaired model could not be scanned again: {error}."
    front = wrapped(classifier, repair.classifier)
    if front is not None and rescan and rescan.verdict is not Verdict.NOTHING_FOUND:
        again += (
            " The weights behind the purifier are unchanged, so a scan may still see the backdoor "
            "in them."
        )
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
            "wrapped": front,
            "changes": changes(classifier, repair.classifier),
            "curves": repair.record.get("curves", []),
            "notices": list(repair.record.get("flags", [])),
            "repair": {key: value for key, value in repair.record.items() if key != "curves"},
            "rescan": rescan and rescan.record,
            "seconds": {"total": time.perf_counter() - started},
        },
        finding.evidence,
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
    """For each changed tensor of the state dict: ||new - old|| / ||old||, largest first.

    Of a network that got a purifier in front, the tensors that were there before.
    """
    rows = []
    front = _new_front(before, after)
    new_state = (after if front is None else front).network.state_dict()
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


def wrapped(before: Classifier, after: Classifier) -> dict[str, Any] | None:
    """What a repair put in front of the network: the purifier's parameters; None for nothing."""
    front = _new_front(before, after)
    if front is None:
        return None
    return {"parameters": sum(p.numel() for p in front.purifier.parameters())}


def _new_front(before: Classifier, after: Classifier) -> Purified | None:
    """``after``'s network where it is a purifier before ``before``'s, which may be purified too."""
    network = after.network
    same = network.state_dict().keys() == before.network.state_dict().keys()
    return network if isinstance(network, Purified) and not same else None


def _repair_for(
    finding: Finding, witnesses: Sequence[Method], classes: Sequence[str]
) -> tuple[Method, str]:
    """The method that removes the most suspicious class, and why that one."""
    suspect = finding.suspects[0]
    witness = witnesses[finding.deciding[suspect]]
    found = f"The scan suspects class {classes[suspect]}; "
    if type(witness).remove is Method.remove:
        return TAC(target_class=suspect), (
            f"{found}{witness.name}, which found it, removes nothing, so TAC is tried, which "
            "undoes a change of the last layer's input towards one class."
        )
    chosen = witness
    if "target_class" in witness.__struct_fields__:
        chosen = msgspec.structs.replace(witness, target_class=suspect)
    if isinstance(witness, TAC):
        return chosen, (
            f"{found}of the methods that are there, TAC undoes a change of the last layer's input "
            "towards one class."
        )
    return chosen, f"{found}{witness.name} found it, so {witness.name} repairs it."
